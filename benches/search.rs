//! How long the CPU's search takes, in memory, for scripts/compare_search.sh:
//!
//! ```text
//! cargo bench --bench search -- CORPUS.npy QUERIES.npy K THREADS REPEATS
//! ```
//!
//! prints the median in ms, and the rows that the first query found. Without arguments it searches
//! a small corpus once, as `cargo test --benches` does.

use std::path::Path;
use std::time::Instant;

use cnse::post::embedding::search::{Kind, Search};
use cnse::post::matrix::{Matrix, Values};
use cnse::prng::Prng;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let [corpus, queries, numbers @ ..] = args.as_slice() else {
        let mut prng = Prng::new(1);
        let rows: Vec<f32> = (0..500 * 96).map(|_| prng.normal() as f32).collect();
        let queries = rows[..9 * 96].to_vec();
        return run(&Values::F32(rows), &queries, 96, [10, 2, 1]);
    };
    let numbers: Vec<usize> =
        numbers.iter().map(|text| text.parse().expect("K THREADS REPEATS")).collect();
    let numbers = numbers.try_into().expect("K THREADS REPEATS");
    let read = |path: &str| {
        let matrix = Matrix::open(Path::new(path)).expect("a matrix");
        (matrix.read(0, matrix.rows()).expect("its rows"), matrix.dims())
    };
    let (corpus, dims) = read(corpus);
    let (Values::F32(queries), _) = read(queries) else { panic!("queries are floats") };
    run(&corpus, &queries, dims, numbers);
}

fn run(corpus: &Values, queries: &[f32], dims: usize, [k, threads, repeats]: [usize; 3]) {
    let kind: Kind = corpus.rows().kind();
    let mut times = Vec::new();
    let mut found = Vec::new();
    for _ in 0..repeats {
        let begun = Instant::now();
        let mut search = Search::new(queries, dims, kind, k, threads).expect("queries");
        search.add(corpus.rows()).expect("rows");
        found = search.finish();
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let rows: Vec<String> = found[0].iter().map(|hit| hit.row.to_string()).collect();
    println!("{:.3} {}", times[repeats / 2], rows.join(","));
}
