use super::*;
use crate::post::embedding::normalize;
use crate::prng::Prng;

fn draw(prng: &mut Prng, n: usize) -> Vec<f32> {
    (0..n).map(|_| prng.normal() as f32).collect()
}

struct Quantised {
    int8: Vec<i8>,
    binary: Vec<u8>,
}

fn quantised(rows: &[f32], dims: usize) -> Quantised {
    let (mut int8, mut binary) = (vec![0; rows.len()], vec![0; rows.len() / 8]);
    quantize_int8(rows, dims, &mut int8, 1);
    quantize_binary(rows, dims, &mut binary, 1).unwrap();
    Quantised { int8, binary }
}

fn of<'a>(kind: Kind, rows: &'a [f32], small: &'a Quantised) -> Rows<'a> {
    match kind {
        Kind::F32 => Rows::F32(rows),
        Kind::Int8 => Rows::Int8(&small.int8),
        Kind::Binary => Rows::Binary(&small.binary),
    }
}

fn part(rows: Rows<'_>, dims: usize, from: usize, to: usize) -> Rows<'_> {
    match rows {
        Rows::F32(rows) => Rows::F32(&rows[from * dims..to * dims]),
        Rows::Int8(rows) => Rows::Int8(&rows[from * dims..to * dims]),
        Rows::Binary(rows) => Rows::Binary(&rows[from * dims / 8..to * dims / 8]),
    }
}

const KINDS: [Kind; 3] = [Kind::F32, Kind::Int8, Kind::Binary];

/// All scores, sorted.
fn plainly(query: &[f32], kind: Kind, rows: &[f32], dims: usize) -> Vec<Hit> {
    let (small_query, small) = (quantised(query, dims), quantised(rows, dims));
    let mut hits = Vec::new();
    for (number, row) in rows.chunks(dims).enumerate() {
        let int8 = &small.int8[number * dims..(number + 1) * dims];
        let whole = |a: &[i8], b: &[i8]| -> i32 {
            a.iter().zip(b).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum()
        };
        let score = match kind {
            Kind::F32 => {
                let length = |v: &[f32]| dot(v, v).sqrt();
                cosine(dot(query, row), length(query), length(row))
            }
            Kind::Int8 => {
                let length = |v: &[i8]| (whole(v, v) as f32).sqrt();
                let dot = whole(&small_query.int8, int8) as f32;
                cosine(dot, length(&small_query.int8), length(int8))
            }
            Kind::Binary => {
                let same = query.iter().zip(row).filter(|(a, b)| (**a > 0.0) == (**b > 0.0));
                (2 * same.count() as i32 - dims as i32) as f32 / dims as f32
            }
        };
        hits.push(Hit { score, row: number as u64 });
    }
    hits.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.row.cmp(&b.row)));
    hits
}

#[test]
fn the_nearest_are_those_of_a_full_sort_whatever_the_blocks() {
    let mut prng = Prng::new(5);
    for (count, dims, queries) in [(0, 8, 1), (1, 8, 2), (50, 16, 3), (300, 40, 5), (50, 768, 2)] {
        let mut rows = draw(&mut prng, count * dims);
        // Rows that are equal, and one of length 0.
        if count > 40 {
            rows.copy_within(0..dims, 9 * dims);
            rows.copy_within(0..dims, 33 * dims);
            rows[3 * dims..4 * dims].fill(0.0);
        }
        let mut of_queries = draw(&mut prng, queries * dims);
        if count > 0 {
            of_queries[..dims].copy_from_slice(&rows[..dims]);
        }
        let small = quantised(&rows, dims);
        for kind in KINDS {
            for k in [0, 1, 3, 10, count, count + 5] {
                for (step, threads) in [(count.max(1), 1), (7, 1), (count / 2 + 1, 3)] {
                    let mut search = Search::new(&of_queries, dims, kind, k, threads).unwrap();
                    for from in (0..count).step_by(step) {
                        let to = count.min(from + step);
                        search.add(part(of(kind, &rows, &small), dims, from, to)).unwrap();
                    }
                    for (found, query) in search.finish().iter().zip(of_queries.chunks(dims)) {
                        let mut wanted = plainly(query, kind, &rows, dims);
                        wanted.truncate(k);
                        assert_eq!(found, &wanted, "{count} {dims} {kind:?} {k} {step}");
                    }
                }
            }
        }
    }
}

#[test]
fn rescoring_brings_the_order_of_floats_nearer() {
    let (mut prng, dims) = (Prng::new(6), 256);
    let mut rows = draw(&mut prng, 200 * dims);
    normalize(&mut rows, dims, 1).unwrap();
    let query: Vec<f32> = rows[..dims].iter().map(|v| v + 0.05 * prng.normal() as f32).collect();
    let small = quantised(&rows, dims);
    let exact = plainly(&query, Kind::F32, &rows, dims);
    for kind in KINDS {
        let far = |score: &dyn Fn(usize) -> f32| -> f32 {
            exact.iter().map(|hit| (hit.score - score(hit.row as usize)).powi(2)).sum()
        };
        let coarse = plainly(&query, kind, &rows, dims);
        let coarse = |row: usize| coarse.iter().find(|hit| hit.row == row as u64).unwrap().score;
        let all = of(kind, &rows, &small);
        let fine = |row: usize| rescore(&query, part(all, dims, row, row + 1));
        assert!(far(&fine) <= far(&coarse), "{kind:?}: {} {}", far(&fine), far(&coarse));
        assert_eq!(kind == Kind::F32, far(&fine) == 0.0);
    }
}

#[test]
fn rows_without_a_length_are_named() {
    let (dims, query) = (2, [1.0, 0.0]);
    let mut search = Search::new(&query, dims, Kind::F32, 2, 1).unwrap();
    search.add(Rows::F32(&[1.0, 1.0])).unwrap();
    assert_eq!(search.add(Rows::F32(&[1.0, 0.0, 1e30, 0.0])), Err(Error::TooLong { row: 2 }));
    let error = search.add(Rows::F32(&[1.0, f32::INFINITY])).unwrap_err();
    assert_eq!(error, Error::NotFinite { row: 1, column: 1, value: f32::INFINITY });
    assert!(Search::new(&[f32::INFINITY, 0.0], 2, Kind::F32, 1, 1).is_err());
    assert!(Search::new(&[1e30, 0.0], 2, Kind::F32, 1, 1).is_err());
    assert_eq!(Search::new(&query, 2, Kind::Binary, 1, 1).unwrap_err(), Error::Bits { dims: 2 });
}
