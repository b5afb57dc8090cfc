//! What was counted while tasks ran.

/// Counts of a worker, a rank, or the job.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Tasks that ended well.
    pub ok: u64,
}

/// A task that ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample<'a> {
    /// Whether well.
    pub ok: bool,
    /// From its start to when it was sent, the server's own queue included.
    pub queue_us: u64,
    /// From there to its first token, where that can be known.
    pub ttft_us: Option<u64>,
    /// From when it was sent to its end.
    pub latency_us: u64,
    /// How long it held a slot, all its tries together.
    pub busy_us: u64,
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// Tokens of its answer.
    pub completion_tokens: u32,
    /// Tries after the first.
    pub retries: u32,
    /// Why it failed, a word.
    pub error: Option<&'a str>,
    /// Who served it, or was the last to fail.
    pub server: &'a str,
}

impl Tally {
    /// Takes note of a task.
    pub fn record(&mut self, sample: &Sample<'_>) {
        self.ok += u64::from(sample.ok);
    }
}
