//! How fast files are hashed: `cargo bench --bench digest`. Each checks the digest, and
//! `cargo bench --bench digest -- --test` runs each once.

use std::hint::black_box;
use std::path::PathBuf;

use cnse::limits::PART_BYTES_LEAST;
use cnse::prng::Prng;
use cnse::store::files::{Disk, Files};
use cnse::store::hash::{Counters, damaged_parts, hash_file};
use cnse::store::record::{Layout, Record};
use cnse::store::{Digest, Hasher};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Larger than the caches of a processor, and soon made.
const BYTES: usize = 64 << 20;

/// A file that is removed at the end.
struct File(PathBuf);

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn digest(c: &mut Criterion) {
    let mut prng = Prng::new(1);
    let bytes: Vec<u8> = (0..BYTES / 8).flat_map(|_| prng.next_u64().to_le_bytes()).collect();
    let wanted = Digest::of(&bytes);
    let path = std::env::temp_dir().join(format!("cnse-bench-digest-{}", std::process::id()));
    let file = File(path);
    std::fs::write(&file.0, &bytes).unwrap();
    let open = || Disk.open(&file.0).unwrap();
    let counters = Counters::default();

    let mut group = c.benchmark_group("sha256");
    group.throughput(Throughput::Bytes(BYTES as u64)).sample_size(10);
    group.bench_function("memory", |b| {
        b.iter(|| {
            let mut hasher = Hasher::new();
            black_box(&bytes).chunks(256 << 10).for_each(|piece| hasher.update(piece));
            assert_eq!(hasher.finish(), wanted);
        });
    });
    group.bench_function("file, mapped", |b| {
        b.iter(|| assert_eq!(hash_file(&*open(), &file.0, &counters).unwrap(), wanted));
    });
    let part = 16 * PART_BYTES_LEAST;
    let parts: Vec<Digest> = bytes.chunks(part as usize).map(Digest::of).collect();
    let all: Vec<u32> = (0..parts.len() as u32).collect();
    let record = Record::new(BYTES as u64, part, Layout::File, parts);
    for threads in [1, 2] {
        group.bench_function(format!("file, by parts on {threads}"), |b| {
            b.iter(|| {
                let found = damaged_parts(&*open(), &file.0, &record, &all, threads, &counters);
                assert!(found.unwrap().is_empty());
            });
        });
    }
    group.finish();
}

criterion_group!(benches, digest);
criterion_main!(benches);
