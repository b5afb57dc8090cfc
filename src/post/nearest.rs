//! The nearest rows of a matrix that lies in a file, whatever its kind and size.

use std::fmt;

use super::embedding::search::{Hit, Kind, Nearest, Search, rescore};
use super::embedding::{self, DIMS_MAX};
use super::matrix::{self, Matrix};

/// Candidates for each neighbour, where rows are bits: they are put in order by the query's floats
/// (arxiv.org/abs/2106.00882 scores them so).
pub const OVERSAMPLE_BINARY: usize = 4;
/// The most that may be asked for.
pub const OVERSAMPLE_MAX: usize = 100;

/// Why nothing was found.
#[derive(Debug)]
pub enum Error {
    /// A matrix cannot be read.
    Matrix(matrix::Error),
    /// A query or a row is no vector; of a row the file is told too.
    Embedding(String, embedding::Error),
    /// A query is not as wide as a row.
    Dims {
        /// The matrix.
        corpus: String,
        /// Its dimensions.
        corpus_dims: usize,
        /// The query's.
        query_dims: usize,
    },
    /// The matrix to rescore with is not one of the same rows.
    Rows {
        /// It.
        rescore: String,
        /// Its rows.
        rows: u64,
        /// The corpus' rows.
        wanted: u64,
    },
}

impl From<matrix::Error> for Error {
    fn from(error: matrix::Error) -> Error {
        Error::Matrix(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Matrix(error) => write!(f, "{error}"),
            Error::Embedding(what, error) => write!(f, "{what}: {error}"),
            Error::Dims { corpus, corpus_dims, query_dims } => write!(
                f,
                "{corpus} has rows of {corpus_dims} dimensions, and the query {query_dims}: both \
                 must come from the same model, and be truncated alike"
            ),
            Error::Rows { rescore, rows, wanted } => write!(
                f,
                "{rescore} has {rows} rows, and the corpus {wanted}: rescoring needs the same rows \
                 in a finer form"
            ),
        }
    }
}

impl std::error::Error for Error {}

/// What is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// `[queries, dims]`.
    pub queries: &'a [f32],
    /// Their width.
    pub dims: usize,
    /// Neighbours of each.
    pub k: usize,
    /// Candidates for each neighbour; 1: what is found counts as it is.
    pub oversample: usize,
    /// How many threads look.
    pub threads: usize,
}

/// Who looks through a corpus.
pub trait Scan {
    /// Has a search look at all rows of a corpus, and gives it back.
    ///
    /// # Errors
    /// The corpus cannot be read, or holds a row that is no vector.
    fn scan(&mut self, corpus: &Matrix, search: Search) -> Result<Search, Error>;
}

/// Has a search look at `count` rows of a corpus, from number `first` on.
///
/// # Errors
/// They cannot be read, or one of them is no vector.
pub fn look(corpus: &Matrix, first: u64, count: u64, search: &mut Search) -> Result<(), Error> {
    let values = corpus.read(first, count)?;
    let refused = |error| Error::Embedding(format!("{:?}", corpus.path()), error);
    search.add(values.rows()).map_err(refused)
}

/// The `k` nearest rows of `corpus` for each query, the nearest first. With `oversample` over 1 so
/// many times more are found first, and their scores are then those of the query's floats with the
/// rows of `finer`, or else of the corpus itself.
///
/// # Errors
/// A matrix cannot be read, does not fit, or holds a row that is no vector.
pub fn nearest(
    corpus: &Matrix,
    finer: Option<&Matrix>,
    wanted: &Wanted<'_>,
    scan: &mut dyn Scan,
) -> Result<Vec<Vec<Hit>>, Error> {
    let name = |matrix: &Matrix| format!("{:?}", matrix.path());
    for matrix in [Some(corpus), finer].into_iter().flatten() {
        if matrix.dims() != wanted.dims || matrix.dims() > DIMS_MAX {
            return Err(Error::Dims {
                corpus: name(matrix),
                corpus_dims: matrix.dims(),
                query_dims: wanted.dims,
            });
        }
        if matrix.rows() != corpus.rows() {
            let (rows, wanted) = (matrix.rows(), corpus.rows());
            return Err(Error::Rows { rescore: name(matrix), rows, wanted });
        }
    }
    let kind = corpus.kind();
    let of_query = |error| Error::Embedding("the query".to_owned(), error);
    let k = wanted.k.saturating_mul(wanted.oversample);
    let search = Search::new(wanted.queries, wanted.dims, kind, k, wanted.threads);
    let search = search.map_err(of_query)?;
    let mut found = scan.scan(corpus, search)?.finish();
    if wanted.oversample > 1 {
        let finer = finer.unwrap_or(corpus);
        for (query, hits) in wanted.queries.chunks_exact(wanted.dims).zip(&mut found) {
            let mut best = Nearest::new(wanted.k);
            for &Hit { row, .. } in &*hits {
                let score = rescore(query, finer.read(row, 1)?.rows());
                best.push(Hit { score, row });
            }
            *hits = best.sorted();
        }
    }
    Ok(found)
}

/// How many candidates a kind of rows wants for each neighbour, if nobody says.
pub fn oversample(kind: Kind) -> usize {
    if kind == Kind::Binary { OVERSAMPLE_BINARY } else { 1 }
}
