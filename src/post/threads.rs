//! Rows spread over threads.

use std::ops::Range;
use std::thread;

/// Work below this is done by one thread: to start another takes some 30 us, and in that time one
/// reads as much from its cache.
const BYTES_PER_THREAD_MIN: usize = 1 << 20;

/// How many threads `bytes` of work are worth, at most `threads`.
pub fn worth(threads: usize, bytes: usize) -> usize {
    threads.min(bytes / BYTES_PER_THREAD_MIN).max(1)
}

/// The cores that this process may use.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Splits `rows` into as many ranges as threads, of nearly the same length, and tells what `each`
/// gives for them, in their order.
pub fn ranges<T: Send>(
    rows: usize,
    threads: usize,
    each: impl Fn(Range<usize>) -> T + Sync,
) -> Vec<T> {
    let threads = threads.min(rows).max(1);
    let at = |index: usize| rows / threads * index + (rows % threads).min(index);
    thread::scope(|scope| {
        let each = &each;
        let others: Vec<_> =
            (1..threads).map(|index| scope.spawn(move || each(at(index)..at(index + 1)))).collect();
        let first = each(0..at(1));
        let rest = others.into_iter().map(|thread| thread.join().expect("a panic aborts"));
        [first].into_iter().chain(rest).collect()
    })
}

/// Hands pieces of `out` to threads: `each` gets the rows of its piece, and the piece itself, in
/// which each row takes `width` elements.
pub fn pieces<T: Send>(
    out: &mut [T],
    width: usize,
    threads: usize,
    each: impl Fn(Range<usize>, &mut [T]) + Sync,
) {
    let rows = out.len().checked_div(width).unwrap_or(0);
    let threads = threads.min(rows).max(1);
    let of = |index: usize| rows / threads + usize::from(index < rows % threads);
    thread::scope(|scope| {
        let (each, mut at) = (&each, 0);
        let (first, mut rest) = out.split_at_mut(of(0) * width);
        at += of(0);
        for index in 1..threads {
            let (piece, behind) = rest.split_at_mut(of(index) * width);
            let range = at..at + of(index);
            (at, rest) = (range.end, behind);
            scope.spawn(move || each(range, piece));
        }
        each(0..of(0), first);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_done_once_and_in_order() {
        for rows in 0..20 {
            for threads in 1..6 {
                let all: Vec<usize> =
                    ranges(rows, threads, Vec::from_iter).into_iter().flatten().collect();
                assert_eq!(all, Vec::from_iter(0..rows));
                let mut out = vec![0; rows * 3];
                pieces(&mut out, 3, threads, |range, piece| {
                    assert_eq!(piece.len(), range.len() * 3);
                    for (row, out) in range.zip(piece.chunks_mut(3)) {
                        out.iter_mut().for_each(|out| *out += row + 1);
                    }
                });
                assert!(out.iter().enumerate().all(|(i, &out)| out == i / 3 + 1));
            }
        }
        assert_eq!((worth(8, 0), worth(8, 3 << 20), worth(2, 1 << 30)), (1, 3, 2));
    }
}
