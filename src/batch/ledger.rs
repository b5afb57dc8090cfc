//! What is told of a worker's tasks when they end: the result line, the counts, and the completion,
//! in this order, so that what is complete is with the journal.

use std::collections::VecDeque;
use std::sync::Arc;

use super::attempt::{Attempt, Invalid, error_word};
use super::factory::Shared;
use super::result::{self, Outcome};
use crate::backend::{Failure, Finished};
use crate::clock::Instant;
use crate::sched::executor::{Completion, End};
use crate::sched::tally::{Sample, Tally};
use crate::sched::tasks::Task;

/// The code of a row that is bad.
const INVALID: &str = "invalid_row";

/// Tasks that ended.
#[derive(Debug)]
pub struct Ledger {
    shared: Arc<Shared>,
    completions: VecDeque<Completion>,
    tally: Tally,
}

impl Ledger {
    /// Nothing has ended yet.
    pub fn new(shared: Arc<Shared>) -> Ledger {
        Ledger { shared, completions: VecDeque::new(), tally: Tally::default() }
    }

    /// A task has ended for good, at `server` or on the way there.
    pub fn finish(
        &mut self,
        now: Instant,
        mut attempt: Attempt,
        server: usize,
        result: Result<Finished, Failure>,
    ) {
        let config = &self.shared.config;
        let word = result.as_ref().err().map(error_word);
        if let Some(results) = &config.results {
            let mut line = Vec::new();
            match &result {
                Ok(finished) => attempt.encode_result(&mut line, finished),
                Err(failure) => {
                    attempt.encode_failure(&mut line, word.as_deref().unwrap_or_default(), failure);
                }
            }
            results(line);
        }
        let count = |of: fn(&Finished) -> u32| result.as_ref().map_or(0, of);
        let prompt_tokens = count(|finished| finished.prompt_tokens);
        let completion_tokens = count(|finished| finished.completion_tokens);
        let queue = attempt.dispatched.micros_since(attempt.started);
        self.tally.record(&Sample {
            ok: result.is_ok(),
            queue_us: queue + attempt.server_queue_us,
            ttft_us: attempt.first.map(|first| first.micros_since(attempt.dispatched)),
            latency_us: now.micros_since(attempt.dispatched),
            busy_us: attempt.busy_us,
            prompt_tokens,
            completion_tokens,
            retries: attempt.tries.min(config.retries),
            error: word.as_deref(),
            server: &config.servers[server].name,
        });
        let (ok, busy_us, tokens) = (result.is_ok(), attempt.busy_us, completion_tokens);
        let end = End::Done { ok, busy_us, tokens };
        self.completions.push_back(Completion { task: attempt.task, end });
    }

    /// A task's row is bad.
    pub fn refuse(&mut self, invalid: Invalid) {
        let Invalid { task, key, custom_id, message } = invalid;
        if let Some(results) = &self.shared.config.results {
            let mut line = Vec::new();
            let outcome = Outcome::Error { code: INVALID, message: &message };
            result::encode(&mut line, key, &custom_id, &outcome);
            results(line);
        }
        self.tally.record(&Sample { error: Some(INVALID), ..Sample::default() });
        let end = End::Done { ok: false, busy_us: 0, tokens: 0 };
        self.completions.push_back(Completion { task, end });
    }

    /// A task goes back as it came.
    pub fn give_back(&mut self, task: Task) {
        self.completions.push_back(Completion { task, end: End::Returned });
    }

    /// The next task that ended.
    pub fn next_completion(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }

    /// What was counted since the last call.
    pub fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }
}
