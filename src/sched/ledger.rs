//! What is done, kept where a fabric can survive a death: then the survivors' ledgers tell what was
//! lost.

use super::tasks::Span;

/// Ranges of bytes or numbers in which rows begin that are done.
#[derive(Debug, Default)]
pub struct Ledger {
    ranges: Vec<(u64, u64)>,
    /// As many as there were after they were last joined.
    joined: usize,
}

/// Fewer ranges than this are not worth joining.
const JOIN_MIN: usize = 4096;

impl Ledger {
    /// Notes a range. What touches an earlier one is joined with it, now or later, so that memory
    /// follows the number of gaps.
    pub fn add(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        if let Some(last) = self.ranges.last_mut()
            && last.1 == start
        {
            last.1 = end;
            return;
        }
        self.ranges.push((start, end));
        if self.ranges.len() >= JOIN_MIN.max(2 * self.joined) {
            join(&mut self.ranges);
            self.joined = self.ranges.len();
        }
    }

    /// All of it.
    pub fn spans(&mut self) -> Vec<Span> {
        join(&mut self.ranges);
        self.joined = self.ranges.len();
        self.ranges.iter().map(|&(start, end)| Span { start, end, stride: 1 }).collect()
    }
}

/// What of `[0, whole)` none of `known` covers. `bytes`: the gaps are spans of bytes.
pub fn missing(known: &[Span], whole: u64, bytes: bool) -> Vec<Span> {
    let mut ranges = Vec::with_capacity(known.len());
    for span in known {
        if span.stride <= 1 {
            ranges.push((span.start, span.end));
        } else {
            let each = (span.start..span.end).step_by(span.stride as usize);
            ranges.extend(each.map(|number| (number, number + 1)));
        }
    }
    join(&mut ranges);
    let mut gaps = Vec::new();
    let mut at = 0;
    for (start, end) in ranges.into_iter().chain([(whole, whole)]) {
        if at < start.min(whole) {
            let (from, to) = (at, start.min(whole));
            gaps.push(if bytes { Span::bytes(from, to) } else { Span::numbers(from, to) });
        }
        at = at.max(end);
    }
    gaps
}

/// Sorts ranges, and joins those that touch or overlap.
fn join(ranges: &mut Vec<(u64, u64)>) {
    ranges.sort_unstable();
    ranges.dedup_by(|next, kept| {
        let touches = next.0 <= kept.1;
        if touches {
            kept.1 = kept.1.max(next.1);
        }
        touches
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prng::Prng;

    #[test]
    fn gaps_are_what_nobody_knows_of() {
        let known = [
            Span { start: 4, end: 10, stride: 2 },
            Span::numbers(0, 2),
            Span::numbers(12, 30),
            Span::numbers(5, 6),
        ];
        let gaps = missing(&known, 20, false);
        let wanted = [(2, 4), (7, 8), (9, 12)].map(|(start, end)| Span::numbers(start, end));
        assert_eq!(gaps, wanted);
        assert_eq!(missing(&[], 5, true), [Span::bytes(0, 5)]);
        assert_eq!(missing(&[Span::bytes(0, 5)], 5, true), []);
    }

    #[test]
    fn a_ledger_joins_what_touches() {
        let mut numbers: Vec<u64> = (0..20_000).collect();
        let mut prng = Prng::new(5);
        for i in (1..numbers.len()).rev() {
            numbers.swap(i, prng.below(i as u64 + 1) as usize);
        }
        let mut ledger = Ledger::default();
        for number in numbers {
            ledger.add(number, number + 1);
            assert!(ledger.ranges.len() <= JOIN_MIN.max(2 * ledger.joined));
        }
        assert_eq!(ledger.spans(), [Span::numbers(0, 20_000)]);
    }
}
