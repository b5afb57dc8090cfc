//! What `post` does with rows, done on a card: its embeddings are shaped and quantised, and its
//! searches run. Whoever asks gets the bits of the twins, or an error, and asks the twins.
//!
//! Rows that are shaped go in turn over two lanes, so that while one copies to the card the other
//! copies back; a corpus streams through a `Feeder`. All memory is the lanes', taken once.

use std::sync::Arc;

use super::kernels::embedding::{Embeddings, Fault, Shaped};
use super::kernels::search::{Feeder, Halt, Search};
use super::{DeviceVec, Error, Gpu, Landing, Lane, LaneBounds};
use crate::post::embedding::search::{Hit, Kind, Rows, Search as Twin};
use crate::post::matrix::{self, Matrix, Values};
use crate::post::plan::Plan;

/// Rows of a lane's turn, in bytes: far more than what a launch costs, and little to wait for.
const TURN_BYTES: usize = 2 << 20;
/// A turn's rows, what becomes of them, and where a fault is told.
const BOUNDS: LaneBounds = LaneBounds {
    device_slab_bytes: 8 << 20,
    pinned_slab_bytes: 6 << 20,
    pinned_bytes_max: 1 << 30,
};

/// A thread's way to a card, for rows.
#[derive(Debug)]
pub struct OnCard {
    embeddings: Embeddings,
    feeder: Option<Feeder>,
    lanes: [Lane; 2],
}

/// A turn under way.
struct Turn<'a> {
    /// Its first row.
    first: usize,
    rows: Out<'a>,
    fault: Landing<'a, u32>,
}

enum Out<'a> {
    F32(Landing<'a, f32>),
    Int8(Landing<'a, i8>),
    Binary(Landing<'a, u8>),
}

impl OnCard {
    /// Takes a card's kernels, and memory.
    ///
    /// # Errors
    /// `OutOfMemory`, `NoPinned`, or what the driver says.
    pub fn open(gpu: &Arc<Gpu>) -> Result<OnCard, Error> {
        let lane = || {
            let lane = Lane::open(gpu, &BOUNDS)?;
            lane.stream().meter().start();
            Ok::<Lane, Error>(lane)
        };
        Ok(OnCard { embeddings: Embeddings::load(gpu)?, feeder: None, lanes: [lane()?, lane()?] })
    }

    /// `Plan::transform` of rows that hold no NaN and are wide enough; or, as `Err` within, the
    /// first row whose squares sum to no number.
    ///
    /// # Errors
    /// What the driver says.
    pub fn transform(
        &mut self,
        plan: &Plan,
        rows: &[f32],
        dims: usize,
    ) -> Result<Result<(Values, usize), usize>, Error> {
        let to = plan.truncate.unwrap_or(dims);
        let count = rows.len() / dims;
        let step = (TURN_BYTES / (4 * dims)).max(1);
        let mut done = match plan.kind {
            Kind::F32 => Values::F32(vec![0.0; count * to]),
            Kind::Int8 => Values::Int8(vec![0; count * to]),
            Kind::Binary => Values::Binary(vec![0; count * to / 8]),
        };
        let mut turns: [Option<Turn<'_>>; 2] = [None, None];
        let mut refused = None;
        let mut land = |turn: Turn<'_>| {
            let row = turn.finish(&mut done, to)?;
            refused = refused.or(row);
            Ok::<(), Error>(())
        };
        for (index, part) in rows.chunks(step * dims).enumerate() {
            let lane = &self.lanes[index % 2];
            if let Some(turn) = turns[index % 2].take() {
                land(turn)?;
            }
            let turn = self.embeddings.turn(lane, plan, part, dims, to, index * step)?;
            turns[index % 2] = Some(turn);
        }
        // The older one first, so that the first refused row is the one that is told.
        let older = count.div_ceil(step) % 2;
        for index in [older, 1 - older] {
            if let Some(turn) = turns[index].take() {
                land(turn)?;
            }
        }
        Ok(refused.map_or(Ok((done, to)), Err))
    }

    /// What a search finds in the rows of a matrix from `first` on; or, as `Err` within, the first
    /// row whose squares sum to no number.
    ///
    /// # Errors
    /// The matrix cannot be read, or what the driver says.
    pub fn search(
        &mut self,
        matrix: &Matrix,
        first: u64,
        twin: &Twin,
    ) -> Result<Result<Vec<Vec<Hit>>, u64>, Halt<matrix::Error>> {
        let (kind, dims) = (matrix.kind(), matrix.dims());
        let row_bytes = kind.row_bytes(dims);
        let rows = matrix.rows() - first;
        let k = twin.k().min(usize::try_from(rows).unwrap_or(usize::MAX)) as u32;
        let (queries, lengths) = twin.queries();
        let queries = bytes_of(queries);
        let lane = &self.lanes[0];
        let gpu = lane.gpu();
        let feeder = match &mut self.feeder {
            Some(feeder) => feeder,
            none => none.insert(Feeder::open(gpu)?),
        };
        // Half of what is left: the pool's classes round up.
        let room = (gpu.budget().saturating_sub(gpu.held()) + lane.idle_bytes()) / 2;
        let group = (room / Search::bytes_of_query(row_bytes, k)).max(1);
        let mut found = Vec::with_capacity(twin.count());
        for (index, part) in queries.chunks(group * row_bytes).enumerate() {
            let of_part = lengths.map(|all| &all[index * group..][..part.len() / row_bytes]);
            let mut search = Search::open(lane, kind, dims, part, of_part, k)?;
            let start = first * row_bytes as u64;
            let fill = |at: u64, out: &mut [u8]| matrix.read_at(start + at, out);
            search.feed(feeder, rows * row_bytes as u64, &fill)?;
            match search.finish()? {
                Ok(of_part) => found.extend(of_part),
                Err(row) => return Ok(Err(first + u64::from(row))),
            }
        }
        found.iter_mut().flatten().for_each(|hit| hit.row += first);
        Ok(Ok(found))
    }
}

impl Embeddings {
    fn turn<'a>(
        &self,
        lane: &'a Lane,
        plan: &Plan,
        rows: &[f32],
        dims: usize,
        to: usize,
        first: usize,
    ) -> Result<Turn<'a>, Error> {
        let from = lane.upload(rows)?;
        let count = rows.len() / dims;
        let mut fault = Fault::open(lane)?;
        let normalize = plan.normalize;
        let rows = match plan.kind {
            Kind::F32 => {
                let mut out = lane.device(count * to)?;
                let shaped = Shaped::F32(&mut out);
                self.shape(lane, &from, dims, to, normalize, shaped, &mut fault)?;
                Out::F32(lane.begin_download(&out)?)
            }
            Kind::Int8 => {
                let mut out = lane.device(count * to)?;
                let shaped = Shaped::Int8(&mut out);
                self.shape(lane, &from, dims, to, normalize, shaped, &mut fault)?;
                Out::Int8(lane.begin_download(&out)?)
            }
            Kind::Binary => {
                let mut out: DeviceVec<u8> = lane.device(count * to / 8)?;
                let shaped = Shaped::Binary(&mut out);
                self.shape(lane, &from, dims, to, normalize, shaped, &mut fault)?;
                Out::Binary(lane.begin_download(&out)?)
            }
        };
        Ok(Turn { first, rows, fault: fault.begin_read(lane)? })
    }
}

impl Turn<'_> {
    /// Waits, puts the rows into their place, and tells the first that was refused.
    fn finish(self, done: &mut Values, to: usize) -> Result<Option<usize>, Error> {
        let at = self.first * to;
        match (self.rows, done) {
            (Out::F32(rows), Values::F32(done)) => {
                let rows = rows.wait()?;
                done[at..][..rows.len()].copy_from_slice(&rows);
            }
            (Out::Int8(rows), Values::Int8(done)) => {
                let rows = rows.wait()?;
                done[at..][..rows.len()].copy_from_slice(&rows);
            }
            (Out::Binary(rows), Values::Binary(done)) => {
                let rows = rows.wait()?;
                done[at / 8..][..rows.len()].copy_from_slice(&rows);
            }
            _ => unreachable!("a plan has one kind"),
        }
        Ok(Fault::of(&self.fault.wait()?).map(|row| self.first + row as usize))
    }
}

/// Rows as the file and the card have them.
fn bytes_of(rows: Rows<'_>) -> Vec<u8> {
    match rows {
        Rows::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Rows::Int8(values) => values.iter().map(|value| value.cast_unsigned()).collect(),
        Rows::Binary(bytes) => bytes.to_vec(),
    }
}
