//! What is done about a failure, and when. Pure: randomness is handed in.

use std::time::Duration;

use crate::backend::{Failure, FailureKind};
use crate::prng::Prng;

/// What a failure means for the request that met it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It would fail anywhere and at any time: the end.
    Final,
    /// Another try may do better; this one counts.
    Retry,
    /// The server has no room for now (429); this try counts, and the server is left alone for a
    /// while.
    Busy,
    /// The server is not there, or loads its model. It never saw the request, so the try does not
    /// count.
    Away,
}

/// Judges a failure by the status of the answer, where there was one.
pub fn judge(failure: &Failure) -> Verdict {
    match failure.kind {
        FailureKind::Unreachable | FailureKind::Loading => return Verdict::Away,
        FailureKind::Request | FailureKind::Backend => {}
    }
    match failure.answer.as_deref().map(|answer| answer.status) {
        _ if failure.status == 429 => Verdict::Busy,
        // What a server has not got it will not have later either.
        Some(501) => Verdict::Final,
        _ if failure.kind == FailureKind::Request => Verdict::Final,
        // Keys are refused with these, as if it were the server's fault.
        Some(400..=499) => Verdict::Final,
        _ => Verdict::Retry,
    }
}

/// Exponential backoff with full jitter (Brooker, "Exponential backoff and jitter", 2015): what
/// failed together is not tried together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The most that the first wait takes; it doubles with each.
    pub base: Duration,
    /// And no wait takes more than this.
    pub max: Duration,
}

impl Backoff {
    /// The wait before try `tries` (1: the second one).
    pub fn wait(&self, tries: u32, prng: &mut Prng) -> Duration {
        let doubled = 1u32.checked_shl(tries.saturating_sub(1)).unwrap_or(u32::MAX);
        self.base.saturating_mul(doubled).min(self.max).mul_f64(prng.unit())
    }
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { base: Duration::from_millis(500), max: Duration::from_secs(30) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Answer;
    use crate::wire::frame::ErrorCode;

    #[test]
    fn what_is_tried_again() {
        let answered = |status: u16, failure: Failure| {
            let answer = Some(Box::new(Answer { status, body: Vec::new() }));
            judge(&Failure { answer, ..failure })
        };
        let request = |code: ErrorCode| Failure::request(code, "m");
        let backend = || Failure::backend(ErrorCode::Backend, "m");
        assert_eq!(answered(429, request(ErrorCode::Overloaded)), Verdict::Busy);
        assert_eq!(judge(&request(ErrorCode::Overloaded)), Verdict::Busy);
        for status in [500, 502, 503, 504, 529] {
            assert_eq!(answered(status, backend()), Verdict::Retry, "{status}");
        }
        for status in [401, 403, 501] {
            assert_eq!(answered(status, backend()), Verdict::Final, "{status}");
        }
        for status in [400, 404, 413, 422] {
            assert_eq!(answered(status, request(ErrorCode::BadRequest)), Verdict::Final);
        }
        // llama-server's 500 for an input that no server would take.
        assert_eq!(answered(500, request(ErrorCode::BadRequest)), Verdict::Final);
        assert_eq!(judge(&backend()), Verdict::Retry);
        assert_eq!(judge(&Failure::backend(ErrorCode::Deadline, "no connection")), Verdict::Retry);
        assert_eq!(judge(&Failure::unreachable("m")), Verdict::Away);
        let loading = Failure { kind: FailureKind::Loading, ..backend() };
        assert_eq!(answered(503, loading), Verdict::Away);
    }

    #[test]
    fn waits_double_are_spread_and_have_a_bound() {
        let backoff = Backoff::default();
        let mut prng = Prng::new(3);
        for (tries, most_ms) in [(1, 500), (2, 1_000), (5, 8_000), (7, 30_000), (99, 30_000)] {
            let waits: Vec<Duration> = (0..2_000).map(|_| backoff.wait(tries, &mut prng)).collect();
            let most = Duration::from_millis(most_ms);
            assert!(waits.iter().all(|wait| *wait <= most), "{tries}");
            // Full jitter: as many in the lowest fifth as in the highest.
            let low = waits.iter().filter(|wait| **wait < most / 5).count();
            let high = waits.iter().filter(|wait| **wait > most * 4 / 5).count();
            assert!((300..500).contains(&low) && (300..500).contains(&high), "{low} {high}");
        }
        let again = Backoff::default().wait(3, &mut Prng::new(9));
        assert_eq!(again, backoff.wait(3, &mut Prng::new(9)));
    }
}
