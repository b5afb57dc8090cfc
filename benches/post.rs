//! How fast the CPU's twins of the GPU's kernels are, on one thread: `cargo bench --bench post`.
//! Each checks what it made, and `cargo bench -- --test` runs each once.

use std::hint::black_box;

use cnse::post::embedding::search::{Kind, Rows, Search};
use cnse::post::embedding::{mean_pool, normalize, quantize_binary, quantize_int8};
use cnse::post::quant::{Format, dequantize, matvec};
use cnse::prng::Prng;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const DIMS: usize = 768;
/// 24 MiB of floats: past most caches.
const ROWS: usize = 8192;

fn rows() -> Vec<f32> {
    let mut prng = Prng::new(1);
    (0..ROWS * DIMS).map(|_| prng.unit() as f32 - 0.5).collect()
}

fn embeddings(c: &mut Criterion) {
    let rows = rows();
    let bytes = size_of_val(&rows[..]) as u64;
    let mut group = c.benchmark_group("8192 x 768");
    group.sample_size(20).throughput(Throughput::Bytes(bytes));
    let mut pooled = vec![0.0; 64 * DIMS];
    group.bench_function("mean pool of 128 tokens", |b| {
        b.iter(|| mean_pool(black_box(&rows), &[128; 64], DIMS, &mut pooled, 1));
    });
    assert!(pooled[0].abs() < 0.2);
    let mut unit = rows.clone();
    group.bench_function("normalise", |b| {
        b.iter(|| normalize(black_box(&mut unit), DIMS, 1).unwrap());
    });
    let length: f32 = unit[..DIMS].iter().map(|v| v * v).sum();
    assert!((length - 1.0).abs() < 1e-3);
    let mut int8 = vec![0; rows.len()];
    group.bench_function("int8", |b| {
        b.iter(|| quantize_int8(black_box(&rows), DIMS, &mut int8, 1));
    });
    let mut binary = vec![0; rows.len() / 8];
    group.bench_function("binary", |b| {
        b.iter(|| quantize_binary(black_box(&rows), DIMS, &mut binary, 1).unwrap());
    });
    for (kind, corpus) in [
        (Kind::F32, Rows::F32(&rows)),
        (Kind::Int8, Rows::Int8(&int8)),
        (Kind::Binary, Rows::Binary(&binary)),
    ] {
        for queries in [1, 16] {
            let bytes = ROWS * kind.row_bytes(DIMS);
            group.throughput(Throughput::Bytes(bytes as u64));
            group.bench_function(format!("nearest 10, {kind:?}, queries {queries}"), |b| {
                b.iter(|| {
                    let queries = &rows[..queries * DIMS];
                    let mut search = Search::new(queries, DIMS, kind, 10, 1).unwrap();
                    search.add(black_box(corpus)).unwrap();
                    assert_eq!(search.finish()[0][0].row, 0);
                });
            });
        }
    }
    group.finish();
}

fn weights(c: &mut Criterion) {
    let mut prng = Prng::new(2);
    let mut group = c.benchmark_group("4096 x 4096");
    group.sample_size(20);
    for format in [Format::Q8_0, Format::Q4K] {
        let mut matrix: Vec<u8> =
            (0..format.bytes(4096 * 4096)).map(|_| prng.next_u64() as u8).collect();
        matrix.chunks_mut(format.block_bytes()).for_each(|block| {
            block[1] = 0;
            block[3] = 0;
        });
        group.throughput(Throughput::Bytes(matrix.len() as u64));
        let mut out = vec![0.0; 4096 * 4096];
        group.bench_function(format!("{format:?} to floats"), |b| {
            b.iter(|| dequantize(format, black_box(&matrix), &mut out, 1));
        });
        let x = vec![1.0; 4096];
        let mut y = vec![0.0; 4096];
        group.bench_function(format!("{format:?} by a vector"), |b| {
            b.iter(|| matvec(format, black_box(&matrix), &x, &mut y, 1));
        });
        let wanted: f64 = out[..4096].iter().map(|&w| f64::from(w)).sum();
        assert!((f64::from(y[0]) - wanted).abs() <= wanted.abs() * 1e-3 + 1e-3);
    }
    group.finish();
}

criterion_group!(benches, embeddings, weights);
criterion_main!(benches);
