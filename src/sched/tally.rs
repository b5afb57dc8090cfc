//! What was counted while tasks ran.

/// Counts of a worker, a rank, or the job.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Tasks that ended well.
    pub ok: u64,
}
