//! Drawing tokens on a card: the kernels of `cuda/sampling.cu`, safe to call. What they compute is
//! defined by `post::sampling`, bit for bit.
//!
//! ```text
//! Sampler::open(gpu)                     once
//!   .work(lane, shape)                   once for each shape: all the memory that it takes
//!     .set(lane, batch)                  parameters and edits of the rows, each step
//!     .launch(lane, logits)              adds the kernels to the lane's stream
//!     .read()                            after lane.synchronize()
//! ```
//!
//! Results are written into pinned memory that the card sees, so nothing is copied back.

use std::sync::Arc;

use super::memory::Plain;
use super::{Arguments, DeviceVec, Error, Family, Function, Gpu, Graph, Grid, Lane, PinnedVec};
use crate::post::sampling::{Batch, Edit, Logits, Refusal, Row, Sampled};

/// The kernels.
pub static SAMPLING: Family = family!("sampling");

/// Threads of a block.
const THREADS: u32 = 256;
/// Marks of a chunk: which octaves of its bins were written.
const MARKS: usize = 8;
/// Bins of a chunk, with one to spare.
const BINS: usize = 256;
/// Logits of which the largest's bin is kept.
const GROUP: usize = 32;
/// Longer rows are scanned with 32 logits a thread, others with 16: a row then has up to 32 chunks
/// of 8,192 or 4,096 logits. The scan itself hardly cares, but the draw reads the sums of all
/// chunks of its row. On an H100, with 16 instead of 8, 1 row of 128,256 takes 11.7 instead of 13.0
/// us; with 16 instead of 32, 256 rows of 128,256 take 59 to 62 instead of 60 to 64 us, and of
/// 32,000 24 instead of 26; at 256,000 it is 32 that is faster: 107 against 109 us. Least is lost
/// where 8 would be faster: 64 rows of 32,000 take 14.1 instead of 13.8 us.
const SHORT_ROW_MAX: usize = 1 << 17;
/// Bytes of the kernels' `Passes`.
const PASSES_BYTES: usize = 6_160;

// SAFETY: numbers without padding, for which any bytes are a value.
unsafe impl Plain for Row {}
// SAFETY: as above.
unsafe impl Plain for Edit {}

/// What the card says of a row: `Result` of the kernels.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Answer {
    status: u32,
    token: u32,
    ln_probability: f32,
    entropy: f32,
}

// SAFETY: as above.
unsafe impl Plain for Answer {}

/// One of the likeliest tokens: `Top` of the kernels.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Top {
    token: u32,
    ln_probability: f32,
}

// SAFETY: as above.
unsafe impl Plain for Top {}

/// In `Answer::status` until the card has written it.
const UNWRITTEN: u32 = u32::MAX;
/// In `Top::token` where there is no more.
const NO_TOKEN: u32 = u32::MAX;

/// How logits are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper halves of binary32.
    Bf16,
}

impl Type {
    /// Each of them.
    pub const ALL: [Type; 3] = [Type::F32, Type::F16, Type::Bf16];

    fn name(self) -> &'static str {
        match self {
            Type::F32 => "f32",
            Type::F16 => "f16",
            Type::Bf16 => "bf16",
        }
    }

    /// Bytes of a logit.
    pub fn width(self) -> usize {
        if self == Type::F32 { 4 } else { 2 }
    }
}

/// The type of a batch's logits.
pub fn type_of(logits: &Logits) -> Type {
    match logits {
        Logits::F32(_) => Type::F32,
        Logits::F16(_) => Type::F16,
        Logits::Bf16(_) => Type::Bf16,
    }
}

/// What decides how much memory a batch takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// How logits are written.
    pub logits: Type,
    /// Rows, up to 65,535 (a grid's bound).
    pub rows: usize,
    /// Logits of a row.
    pub vocab: usize,
    /// Likeliest tokens to list.
    pub top_n: usize,
    /// Whether the entropy is wanted.
    pub entropy: bool,
}

impl Shape {
    /// Most rows at once: blocks along a grid's second side.
    pub const ROWS_MAX: usize = 65_535;

    /// Logits of a thread of the scan.
    fn per_thread(&self) -> usize {
        if self.vocab > SHORT_ROW_MAX { 32 } else { 16 }
    }
}

/// The kernels of one card.
#[derive(Clone, Debug)]
pub struct Sampler {
    edit: [Function; 3],
    /// With 16 and with 32 logits for each thread.
    scan: [[Function; 2]; 3],
    draw: Function,
}

/// A batch's memory on the card, for any number of launches, one at a time.
#[derive(Debug)]
pub struct Work {
    shape: Shape,
    sampler: Sampler,
    chunks: usize,
    per_thread: usize,
    rows: DeviceVec<Row>,
    edits: Option<Edits>,
    /// The memory of edits that the last batch has not.
    spare: Option<Edits>,
    largest: DeviceVec<f32>,
    used: DeviceVec<u8>,
    masses: DeviceVec<u32>,
    moments: Option<DeviceVec<u32>>,
    group_bins: DeviceVec<u8>,
    passes: DeviceVec<u8>,
    answers: PinnedVec<Answer>,
    tops: PinnedVec<Top>,
}

#[derive(Debug)]
struct Edits {
    starts: DeviceVec<u32>,
    list: DeviceVec<Edit>,
    edited: DeviceVec<f32>,
    /// Of one row, the most.
    longest: usize,
}

impl Edits {
    /// Room for so many edits of all rows.
    fn open(lane: &Lane, rows: usize, room: usize) -> Result<Edits, Error> {
        Ok(Edits {
            starts: lane.device(rows + 1)?,
            list: lane.device(room)?,
            edited: lane.device(room)?,
            longest: 0,
        })
    }

    /// Brings each row's to the card, `count` in all.
    fn set(&mut self, lane: &Lane, of_rows: &[Vec<Edit>], count: usize) -> Result<(), Error> {
        let mut starts = lane.pinned::<u32>(of_rows.len() + 1)?;
        let mut list = lane.pinned::<Edit>(count)?;
        let mut at = 0;
        starts[0] = 0;
        for (edits, end) in of_rows.iter().zip(&mut starts[1..]) {
            list[at..][..edits.len()].copy_from_slice(edits);
            at += edits.len();
            *end = u32::try_from(at).expect("edits of 65,535 rows of 2^16 fit");
        }
        self.longest = of_rows.iter().map(Vec::len).max().unwrap_or(0);
        lane.send(starts, &mut self.starts)?;
        lane.send(list, &mut self.list)
    }
}

impl Sampler {
    /// Finds the kernels; loads them if that was not done yet.
    ///
    /// # Errors
    /// What the driver says of them.
    pub fn open(gpu: &Arc<Gpu>) -> Result<Sampler, Error> {
        let of = |name: String| gpu.function(&SAMPLING, &name);
        let mut edit = Vec::new();
        let mut scan = Vec::new();
        for name in Type::ALL.map(Type::name) {
            edit.push(of(format!("sampling_edit_{name}"))?);
            scan.push([
                of(format!("sampling_scan_{name}_16"))?,
                of(format!("sampling_scan_{name}_32"))?,
            ]);
        }
        let all = "one for each type";
        Ok(Sampler {
            edit: edit.try_into().expect(all),
            scan: scan.try_into().expect(all),
            draw: of("sampling_draw".to_owned())?,
        })
    }

    /// Takes the memory for batches of a shape.
    ///
    /// # Errors
    /// `OutOfMemory` or `NoPinned`.
    ///
    /// # Panics
    /// Where the shape has no row or more than `ROWS_MAX`.
    pub fn work(&self, lane: &Lane, shape: Shape) -> Result<Work, Error> {
        assert!((1..=Shape::ROWS_MAX).contains(&shape.rows), "{} rows", shape.rows);
        let per_thread = shape.per_thread();
        let chunk = THREADS as usize * per_thread;
        let chunks = shape.vocab.div_ceil(chunk);
        let all = shape.rows * chunks;
        Ok(Work {
            shape,
            sampler: self.clone(),
            chunks,
            per_thread,
            rows: lane.device(shape.rows)?,
            edits: None,
            spare: None,
            largest: lane.device(all)?,
            used: lane.device(all * MARKS)?,
            masses: lane.device(all * BINS)?,
            moments: if shape.entropy { Some(lane.device(all * BINS)?) } else { None },
            group_bins: lane.device(all * (chunk / GROUP))?,
            passes: lane.device(PASSES_BYTES)?,
            answers: lane.pinned(shape.rows)?,
            tops: lane.pinned(shape.rows * shape.top_n)?,
        })
    }

    /// Samples a batch whose logits are on the host: uploads, launches, waits.
    ///
    /// # Errors
    /// What is wrong with the batch, or with the card.
    pub fn sample(
        &self,
        lane: &Lane,
        batch: &Batch,
    ) -> Result<Vec<Result<Sampled, Refusal>>, SampleError> {
        if batch.params.is_empty() {
            return Ok(Vec::new());
        }
        let logits = type_of(&batch.logits);
        let Batch { vocab, top_n, entropy, .. } = *batch;
        let rows = batch.check().map_err(SampleError::Batch)?.len();
        let mut work = self.work(lane, Shape { logits, rows, vocab, top_n, entropy })?;
        work.set(lane, batch)?;
        match batch.logits {
            Logits::F32(values) => work.launch(lane, &lane.upload(values)?)?,
            Logits::F16(values) | Logits::Bf16(values) => {
                work.launch(lane, &lane.upload(values)?)?;
            }
        }
        lane.synchronize()?;
        Ok(work.read())
    }
}

impl Work {
    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Brings the rows' parameters and edits to the card. The batch's logits are looked at for
    /// their number only.
    ///
    /// # Errors
    /// What is wrong with the batch, or with the card.
    ///
    /// # Panics
    /// Where the batch has another shape.
    pub fn set(&mut self, lane: &Lane, batch: &Batch) -> Result<(), SampleError> {
        let rows = batch.check().map_err(SampleError::Batch)?;
        let shape = Shape {
            logits: type_of(&batch.logits),
            rows: rows.len(),
            vocab: batch.vocab,
            top_n: batch.top_n,
            entropy: batch.entropy,
        };
        assert_eq!(shape, self.shape, "the work was made for another batch");
        lane.upload_to(&rows, &mut self.rows)?;
        let kept = self.edits.take().or(self.spare.take());
        let count = batch.edits.iter().map(Vec::len).sum::<usize>();
        if count == 0 {
            self.spare = kept;
            return Ok(());
        }
        let mut edits = match kept {
            Some(edits) if edits.list.len() >= count => edits,
            // Twice what is needed: a sequence's history grows with each step.
            _ => Edits::open(lane, rows.len(), 2 * count)?,
        };
        edits.set(lane, batch.edits, count)?;
        self.edits = Some(edits);
        Ok(())
    }

    /// Adds the kernels to the lane's stream: `logits` is `[rows, vocab]`.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// Where there are not that many bytes of logits.
    pub fn launch<T: Plain>(&mut self, lane: &Lane, logits: &DeviceVec<T>) -> Result<(), Error> {
        let Shape { rows, vocab, top_n, logits: kind, .. } = self.shape;
        assert_eq!(logits.bytes(), rows * vocab * kind.width(), "logits of the work's shape");
        self.answers.fill(Answer {
            status: UNWRITTEN,
            token: 0,
            ln_probability: 0.0,
            entropy: 0.0,
        });
        let (answers, tops) = (self.answers.mapped()?, self.tops_at()?);
        let (rows_u32, vocab) = (rows as u32, vocab as u32);
        let (starts, list, edited) = match &mut self.edits {
            Some(edits) => (edits.starts.at(), edits.list.at(), edits.edited.at_mut()),
            None => (0, 0, 0),
        };
        let moments = self.moments.as_mut().map_or(0, DeviceVec::at_mut);
        let stream = lane.stream();
        let input = Arguments::new().with(logits.at());
        if let Some(edits) = &self.edits {
            let grid = Grid::plane((edits.longest as u32).div_ceil(THREADS), rows_u32, THREADS);
            let arguments = input_of(logits.at(), vocab)
                .with(self.rows.at())
                .with(starts)
                .with(list)
                .with(edited);
            // SAFETY: `starts` has rows + 1 places in the list and in `edited`, which is as long;
            // `check` saw that tokens are below `vocab`, and the assertion above the logits.
            unsafe { stream.launch(&self.sampler.edit[kind as usize], grid, &arguments)? };
        }
        let arguments = input_of(logits.at(), vocab)
            .with(self.rows.at())
            .with(starts)
            .with(list)
            .with(edited)
            .with(self.largest.at_mut())
            .with(self.used.at_mut())
            .with(self.masses.at_mut())
            .with(moments)
            .with(self.group_bins.at_mut())
            .with(self.passes.at_mut());
        let scan = &self.sampler.scan[kind as usize][usize::from(self.per_thread == 32)];
        let grid = Grid::plane(self.chunks as u32, rows_u32, THREADS);
        // SAFETY: `work` took the memory for rows * chunks blocks of this many logits, each of
        // which writes its own; logits past `vocab` are not read.
        unsafe { stream.launch(scan, grid, &arguments)? };
        let arguments = input
            .with(kind as u32)
            .with(vocab)
            .with(self.rows.at())
            .with(starts)
            .with(list)
            .with(edited)
            .with(self.chunks as u32)
            .with(self.per_thread as u32)
            .with(top_n as u32)
            .with(self.largest.at())
            .with(self.used.at())
            .with(self.masses.at())
            .with(moments)
            .with(self.group_bins.at())
            .with(answers)
            .with(tops)
            .with(self.passes.at_mut());
        // SAFETY: as above; a block for each row writes the row's answer and its `top_n` tops, and
        // what blocks tell each other is in `passes`, which the scan has emptied.
        unsafe { stream.launch(&self.sampler.draw, Grid::line(rows_u32, THREADS), &arguments) }
    }

    /// Records a launch for each of `logits`, in this order, to be replayed at a fraction of the
    /// cost of launching. What `read` finds afterwards is of the last.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// As `launch`.
    pub fn record<'a, T: Plain>(
        &'a mut self,
        lane: &Lane,
        logits: &'a [DeviceVec<T>],
    ) -> Result<Recording<'a, T>, Error> {
        let add = || logits.iter().try_for_each(|logits| self.launch(lane, logits));
        let graph = lane.stream().capture(add)?;
        Ok(Recording { graph, work: self, _logits: logits })
    }

    fn tops_at(&self) -> Result<u64, Error> {
        if self.shape.top_n == 0 { Ok(0) } else { self.tops.mapped() }
    }

    /// The rows' results, once the lane was waited for.
    ///
    /// # Panics
    /// Where it was not, or nothing was launched.
    pub fn read(&self) -> Vec<Result<Sampled, Refusal>> {
        let tops = |row: usize| &self.tops[row * self.shape.top_n..][..self.shape.top_n];
        let one = |(row, answer): (usize, &Answer)| {
            let top = tops(row).iter().take_while(|top| top.token != NO_TOKEN);
            match answer.status {
                0 => Ok(Sampled {
                    token: answer.token,
                    log_probability: answer.ln_probability,
                    entropy: self.shape.entropy.then_some(answer.entropy),
                    top: top.map(|top| (top.token, top.ln_probability)).collect(),
                }),
                1 => Err(Refusal::Nan(answer.token)),
                2 => Err(Refusal::AllMasked),
                3 => Err(Refusal::Infinite(answer.token)),
                4 => Err(Refusal::OutOfRange),
                other => panic!("row {row} has the status {other}: the card has not written it"),
            }
        };
        self.answers.iter().enumerate().map(one).collect()
    }
}

/// Recorded launches, with all the memory that they use.
#[derive(Debug)]
pub struct Recording<'a, T: Plain> {
    graph: Graph,
    work: &'a mut Work,
    _logits: &'a [DeviceVec<T>],
}

impl<T: Plain> Recording<'_, T> {
    /// As `Work::set`, for the next replays.
    ///
    /// # Errors
    /// What is wrong with the batch, or with the card.
    ///
    /// # Panics
    /// As `Work::set`; and where there are edits, or were when it was recorded.
    pub fn set(&mut self, lane: &Lane, batch: &Batch) -> Result<(), SampleError> {
        let has_edits = batch.edits.iter().any(|edits| !edits.is_empty());
        assert!(!has_edits && self.work.edits.is_none(), "edits have memory of their own");
        self.work.set(lane, batch)
    }

    /// Adds them to the stream of the lane that they were recorded on.
    ///
    /// # Errors
    /// What the driver says.
    pub fn replay(&self, lane: &Lane) -> Result<(), Error> {
        // SAFETY: what was recorded are `launch`es; their memory is borrowed as long as the
        // recording lives, and goes back to pools of that lane, whose order is the stream's.
        unsafe { lane.stream().replay(&self.graph) }
    }
}

fn input_of(logits: u64, vocab: u32) -> Arguments {
    Arguments::new().with(logits).with(vocab)
}

/// Why a batch was not sampled on a card.
#[derive(Clone, Debug, PartialEq)]
pub enum SampleError {
    /// The batch cannot be sampled anywhere.
    Batch(crate::post::sampling::Error),
    /// The card failed; its CPU twin can do it.
    Card(Error),
}

impl From<Error> for SampleError {
    fn from(error: Error) -> SampleError {
        SampleError::Card(error)
    }
}

impl std::fmt::Display for SampleError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SampleError::Batch(error) => error.fmt(f),
            SampleError::Card(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SampleError {}
