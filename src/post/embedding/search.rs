//! The nearest rows of a corpus, which comes in blocks and need not fit anywhere as a whole.
//!
//! A score is a cosine, in f32, and defined to the bit:
//!
//! | rows | score of query q and row c |
//! |---|---|
//! | f32 | `dot(q, c) / (sqrt(dot(q, q)) * sqrt(dot(c, c))) + 0` |
//! | int8 | the same, of integer sums, each turned to f32 first |
//! | binary | `(dims - 2 * d) / dims`, both integers turned to f32; d bits differ |
//!
//! A row or a query of length 0 scores 0. Of two rows the one with the larger score is nearer, and
//! of equal ones the one that stands first in the corpus; with `+ 0` there is no -0. So the result
//! depends neither on blocks nor on threads.

use std::array::from_fn;

use super::{Error, check_finite, quantize_binary, quantize_int8};
use crate::post::simd::{Kernel, widest};
use crate::post::sums::{dot, dot_int8, dot_tile};
use crate::post::threads::{ranges, worth};

/// Queries and rows whose dot products are made together: as many sums as there are registers.
const TILE_QUERIES: usize = 4;
const TILE_ROWS: usize = 2;
/// Rows that one thread looks at before the next query: they stay in its cache meanwhile.
const BLOCK_BYTES: usize = 128 << 10;

/// What rows are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 32-bit floats.
    F32,
    /// Integers from -127 to 127.
    Int8,
    /// Bits.
    Binary,
}

impl Kind {
    /// Bytes of a row.
    pub fn row_bytes(self, dims: usize) -> usize {
        match self {
            Kind::F32 => dims * 4,
            Kind::Int8 => dims,
            Kind::Binary => dims / 8,
        }
    }
}

/// Rows of one kind, one behind the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rows<'a> {
    /// `[rows, dims]`.
    F32(&'a [f32]),
    /// `[rows, dims]`.
    Int8(&'a [i8]),
    /// `[rows, dims / 8]`.
    Binary(&'a [u8]),
}

impl Rows<'_> {
    /// Their kind.
    pub fn kind(&self) -> Kind {
        match self {
            Rows::F32(_) => Kind::F32,
            Rows::Int8(_) => Kind::Int8,
            Rows::Binary(_) => Kind::Binary,
        }
    }

    /// How many there are.
    pub fn count(&self, dims: usize) -> usize {
        match self {
            Rows::F32(values) => values.len() / dims,
            Rows::Int8(values) => values.len() / dims,
            Rows::Binary(bytes) => bytes.len() / (dims / 8),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Rows::F32(values) => size_of_val(*values),
            Rows::Int8(values) => values.len(),
            Rows::Binary(bytes) => bytes.len(),
        }
    }
}

/// A row that is near a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    /// Its cosine.
    pub score: f32,
    /// Its number in the corpus, from 0.
    pub row: u64,
}

impl Hit {
    /// Whether it stands before `other`.
    #[inline(always)]
    pub fn is_before(&self, other: &Hit) -> bool {
        self.score > other.score || self.score == other.score && self.row < other.row
    }
}

/// The nearest rows so far of one query: at most k, the farthest at the top of a heap.
#[derive(Clone, Debug)]
pub struct Nearest {
    k: usize,
    heap: Vec<Hit>,
}

impl Nearest {
    /// None yet, of at most `k`.
    pub fn new(k: usize) -> Nearest {
        Nearest { k, heap: Vec::new() }
    }

    /// Takes a hit, if it is near enough.
    #[inline(always)]
    pub fn push(&mut self, hit: Hit) {
        match self.heap.first() {
            Some(farthest) if self.heap.len() == self.k && !hit.is_before(farthest) => {}
            _ => self.insert(hit),
        }
    }

    fn insert(&mut self, hit: Hit) {
        if self.heap.len() < self.k {
            self.heap.push(hit);
            let mut at = self.heap.len() - 1;
            while at > 0 && self.heap[(at - 1) / 2].is_before(&self.heap[at]) {
                self.heap.swap(at, (at - 1) / 2);
                at = (at - 1) / 2;
            }
        } else if self.k > 0 {
            self.heap[0] = hit;
            let mut at = 0;
            loop {
                let below = [2 * at + 1, 2 * at + 2].into_iter().filter(|&i| i < self.heap.len());
                let farther = |a: usize, b: usize| {
                    if self.heap[a].is_before(&self.heap[b]) { b } else { a }
                };
                let Some(child) = below.reduce(farther) else { break };
                if !self.heap[at].is_before(&self.heap[child]) {
                    break;
                }
                self.heap.swap(at, child);
                at = child;
            }
        }
    }

    /// Takes those of another.
    pub fn merge(&mut self, other: Nearest) {
        other.heap.into_iter().for_each(|hit| self.push(hit));
    }

    /// The nearest first.
    pub fn sorted(mut self) -> Vec<Hit> {
        self.heap.sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then(a.row.cmp(&b.row)));
        self.heap
    }
}

/// A search under way.
#[derive(Clone, Debug)]
pub struct Search {
    queries: Queries,
    dims: usize,
    threads: usize,
    rows: u64,
    nearest: Vec<Nearest>,
}

/// Queries as the corpus has them, and their lengths.
#[derive(Clone, Debug)]
enum Queries {
    F32(Vec<f32>, Vec<f32>),
    Int8(Vec<i8>, Vec<f32>),
    Binary(Vec<u8>),
}

impl Search {
    /// The `k` nearest rows of a corpus of this kind, for each query of `[queries, dims]`. Queries
    /// become what the corpus is of first.
    ///
    /// # Errors
    /// A query holds NaN or infinity, or is too long; the dimensions make no whole bytes.
    pub fn new(
        queries: &[f32],
        dims: usize,
        kind: Kind,
        k: usize,
        threads: usize,
    ) -> Result<Search, Error> {
        assert!(dims > 0 && dims <= DIMS, "dimensions were checked where they came from");
        check_finite(queries, dims)?;
        let count = queries.len() / dims;
        let queries = match kind {
            Kind::F32 => {
                let lengths = lengths_f32(queries, dims)?;
                Queries::F32(queries.to_vec(), lengths)
            }
            Kind::Int8 => {
                let mut values = vec![0; queries.len()];
                quantize_int8(queries, dims, &mut values, 1);
                let lengths = values.chunks_exact(dims).map(|row| widest(Length8(row))).collect();
                Queries::Int8(values, lengths)
            }
            Kind::Binary => {
                let mut bytes = vec![0; queries.len() / 8];
                quantize_binary(queries, dims, &mut bytes, 1)?;
                Queries::Binary(bytes)
            }
        };
        Ok(Search { queries, dims, threads, rows: 0, nearest: vec![Nearest::new(k); count] })
    }

    /// Looks at the next rows of the corpus, which are of its kind.
    ///
    /// # Errors
    /// A row of floats holds NaN or infinity, or is too long; it is named by its number in the
    /// corpus.
    pub fn add(&mut self, rows: Rows<'_>) -> Result<(), Error> {
        let (dims, count) = (self.dims, rows.count(self.dims));
        let work = rows.bytes().saturating_mul(self.nearest.len().max(1));
        let this = &*self;
        let found = ranges(count, worth(self.threads, work), |range| {
            let mut nearest = this.nearest.clone();
            nearest.iter_mut().for_each(|nearest| nearest.heap.clear());
            let step = (BLOCK_BYTES / rows.kind().row_bytes(dims)).max(1);
            let mut lengths = Vec::with_capacity(step);
            for start in range.clone().step_by(step) {
                let end = range.end.min(start + step);
                lengths.clear();
                let (lengths, nearest) = (&mut lengths, &mut nearest[..]);
                widest(Scan { search: this, rows, start, end, lengths, nearest })?;
            }
            Ok(nearest)
        });
        for of_thread in found {
            let of_thread = of_thread.map_err(|row: usize| this_row(rows, row, dims, self.rows))?;
            self.nearest.iter_mut().zip(of_thread).for_each(|(all, some)| all.merge(some));
        }
        self.rows += count as u64;
        Ok(())
    }

    /// How many queries there are.
    pub fn count(&self) -> usize {
        self.nearest.len()
    }

    /// How many rows are looked for, for each.
    pub fn k(&self) -> usize {
        self.nearest.first().map_or(0, |nearest| nearest.k)
    }

    /// The queries as rows of the corpus' kind, and their lengths, which bits do not have.
    pub fn queries(&self) -> (Rows<'_>, Option<&[f32]>) {
        match &self.queries {
            Queries::F32(values, lengths) => (Rows::F32(values), Some(lengths)),
            Queries::Int8(values, lengths) => (Rows::Int8(values), Some(lengths)),
            Queries::Binary(bytes) => (Rows::Binary(bytes), None),
        }
    }

    /// Takes what another found for each query in the next `rows` rows of the corpus: at least its
    /// `k` nearest.
    pub fn take(&mut self, found: Vec<Vec<Hit>>, rows: u64) {
        assert_eq!(found.len(), self.nearest.len(), "some for each query");
        for (nearest, hits) in self.nearest.iter_mut().zip(found) {
            hits.into_iter().for_each(|hit| nearest.push(hit));
        }
        self.rows += rows;
    }

    /// Leaves out the next rows of the corpus.
    pub fn skip(&mut self, rows: u64) {
        self.rows += rows;
    }

    /// The nearest rows of each query, the nearest first.
    pub fn finish(self) -> Vec<Vec<Hit>> {
        self.nearest.into_iter().map(Nearest::sorted).collect()
    }
}

const DIMS: usize = super::DIMS_MAX;

/// What is wrong with a row whose squares sum to no number.
fn this_row(rows: Rows<'_>, row: usize, dims: usize, first: u64) -> Error {
    let number = usize::try_from(first).unwrap_or(usize::MAX).saturating_add(row);
    let Rows::F32(values) = rows else { return Error::TooLong { row: number } };
    match check_finite(&values[row * dims..(row + 1) * dims], dims) {
        Err(Error::NotFinite { column, value, .. }) => {
            Error::NotFinite { row: number, column, value }
        }
        _ => Error::TooLong { row: number },
    }
}

fn lengths_f32(rows: &[f32], dims: usize) -> Result<Vec<f32>, Error> {
    let length = |(row, values)| {
        let squares = widest(Square(values));
        if squares.is_finite() { Ok(squares.sqrt()) } else { Err(Error::TooLong { row }) }
    };
    rows.chunks_exact(dims).enumerate().map(length).collect()
}

struct Square<'a>(&'a [f32]);

impl Kernel for Square<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        dot(self.0, self.0)
    }
}

struct Length8<'a>(&'a [i8]);

impl Kernel for Length8<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        (integer_dot(self.0, self.0) as f32).sqrt()
    }
}

/// `dims` bounds it (`DIMS_MAX`), so nothing wraps; with checks it would not be vectorised.
#[inline(always)]
fn integer_dot(a: &[i8], b: &[i8]) -> i32 {
    let products = a.iter().zip(b).map(|(&a, &b)| i32::from(a).wrapping_mul(i32::from(b)));
    products.fold(0, i32::wrapping_add)
}

#[inline(always)]
fn differing_bits(a: &[u8], b: &[u8]) -> u32 {
    let (a, a_rest) = a.as_chunks::<8>();
    let (b, b_rest) = b.as_chunks::<8>();
    let word = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
    let words = a.iter().zip(b).map(|(a, b)| (word(a) ^ word(b)).count_ones());
    let bytes = a_rest.iter().zip(b_rest).map(|(a, b)| (a ^ b).count_ones());
    words.fold(0, u32::wrapping_add) + bytes.fold(0, u32::wrapping_add)
}

/// A cosine of a dot product and two lengths.
#[inline(always)]
fn cosine(dot: f32, a: f32, b: f32) -> f32 {
    let lengths = a * b;
    if lengths > 0.0 { dot / lengths + 0.0 } else { 0.0 }
}

/// Rows `start..end` of those that were added.
struct Scan<'a, 'n> {
    search: &'a Search,
    rows: Rows<'a>,
    start: usize,
    end: usize,
    /// Empty; room for the lengths of these rows.
    lengths: &'n mut Vec<f32>,
    nearest: &'n mut [Nearest],
}

impl Kernel for Scan<'_, '_> {
    /// Else the row whose squares sum to no number.
    type Output = Result<(), usize>;

    #[inline(always)]
    fn run(self) -> Result<(), usize> {
        let Scan { search, rows, start, end, lengths, nearest } = self;
        let (dims, first) = (search.dims, search.rows + start as u64);
        match (&search.queries, rows) {
            (Queries::F32(queries, of_queries), Rows::F32(rows)) => {
                let rows = &rows[start * dims..end * dims];
                for (row, values) in rows.chunks_exact(dims).enumerate() {
                    let squares = dot(values, values);
                    if !squares.is_finite() {
                        return Err(start + row);
                    }
                    lengths.push(squares.sqrt());
                }
                let of_tiles = of_queries.chunks(TILE_QUERIES);
                let tiles = queries.chunks(TILE_QUERIES * dims).zip(of_tiles);
                for ((tile, of_tile), nearest) in tiles.zip(nearest.chunks_mut(TILE_QUERIES)) {
                    scan_f32(tile, of_tile, rows, lengths, dims, first, nearest);
                }
            }
            (Queries::Int8(queries, of_queries), Rows::Int8(rows)) => {
                let rows = rows[start * dims..end * dims].chunks_exact(dims);
                for (number, values) in (first..).zip(rows) {
                    let length = (integer_dot(values, values) as f32).sqrt();
                    let queries = queries.chunks_exact(dims).zip(of_queries);
                    for ((query, of_query), nearest) in queries.zip(nearest.iter_mut()) {
                        let dot = integer_dot(query, values) as f32;
                        nearest.push(Hit { score: cosine(dot, *of_query, length), row: number });
                    }
                }
            }
            (Queries::Binary(queries), Rows::Binary(rows)) => {
                let bytes = dims / 8;
                let rows = rows[start * bytes..end * bytes].chunks_exact(bytes);
                for (number, values) in (first..).zip(rows) {
                    let queries = queries.chunks_exact(bytes);
                    for (query, nearest) in queries.zip(nearest.iter_mut()) {
                        let alike = dims as i32 - 2 * differing_bits(query, values) as i32;
                        let score = alike as f32 / dims as f32;
                        nearest.push(Hit { score, row: number });
                    }
                }
            }
            _ => unreachable!("rows are of the kind that the search was made for"),
        }
        Ok(())
    }
}

/// A tile of queries, or fewer at the end.
#[inline(always)]
fn scan_f32(
    queries: &[f32],
    of_queries: &[f32],
    rows: &[f32],
    lengths: &[f32],
    dims: usize,
    first: u64,
    nearest: &mut [Nearest],
) {
    let mut done = 0;
    if of_queries.len() == TILE_QUERIES {
        let tile: [&[f32]; TILE_QUERIES] = from_fn(|q| &queries[q * dims..][..dims]);
        for of_tile in rows.chunks_exact(TILE_ROWS * dims) {
            let values: [&[f32]; TILE_ROWS] = from_fn(|r| &of_tile[r * dims..][..dims]);
            for dots in dot_tile(values, tile) {
                for ((dot, of_query), nearest) in dots.iter().zip(of_queries).zip(&mut *nearest) {
                    let score = cosine(*dot, *of_query, lengths[done]);
                    nearest.push(Hit { score, row: first + done as u64 });
                }
                done += 1;
            }
        }
    }
    let queries = queries.chunks_exact(dims).zip(of_queries).zip(nearest);
    for ((query, of_query), nearest) in queries {
        let rows = rows.chunks_exact(dims).zip(lengths).enumerate().skip(done);
        for (row, (values, length)) in rows {
            let score = cosine(dot(query, values), *of_query, *length);
            nearest.push(Hit { score, row: first + row as u64 });
        }
    }
}

/// The cosine of a query in floats with a row that may be coarser: what was found among coarse rows
/// is put in a better order by it. A bit counts as 1 or -1.
///
/// # Panics
/// The shapes do not fit.
pub fn rescore(query: &[f32], row: Rows<'_>) -> f32 {
    assert_eq!(row.count(query.len()), 1, "one row, as wide as the query");
    widest(Rescore { query, row })
}

struct Rescore<'a> {
    query: &'a [f32],
    row: Rows<'a>,
}

impl Kernel for Rescore<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let query = self.query;
        let length = dot(query, query).sqrt();
        match self.row {
            Rows::F32(row) => cosine(dot(query, row), length, dot(row, row).sqrt()),
            Rows::Int8(row) => {
                cosine(dot_int8(query, row), length, (integer_dot(row, row) as f32).sqrt())
            }
            Rows::Binary(bytes) => {
                let sign = |i: usize| if bytes[i / 8] << (i % 8) & 0x80 == 0 { -1 } else { 1 };
                let row: Vec<i8> = (0..query.len()).map(sign).collect();
                cosine(dot_int8(query, &row), length, (query.len() as f32).sqrt())
            }
        }
    }
}

#[cfg(test)]
mod tests;
