//! The nearest rows of a corpus that need not fit on the card: `cuda/search.cu`. Scores are those
//! of `post::embedding::search`, to the bit, and so is the order.
//!
//! ```text
//! host rows --threads--> 2 pinned blocks --copy stream--> 2 blocks on the card     (Feeder)
//!                                                            |  score_*: keys above the bound
//!                                                            v
//!                      k nearest so far, their bound  <--  keep_nearest
//! ```
//!
//! A part of the corpus is scored at once: the first is small, since until there are k nearest
//! nothing can be left out, and each has at most as many rows as there is room for keys.
//!
//! Where there are several queries of floats, and tensor cores that multiply floats, those find in
//! a part the few rows that may be above the bound (`find_tf32_*`, by a product that is too coarse
//! to be a score but whose error is known), and scores are made of these alone (`score_found`):
//! what comes out is the same, to the bit. The twin's sums, of which no product may be fused with
//! its addition, take twice as many instructions as the fastest other search, and for 64 queries
//! they alone would take longer than a pass over the corpus does.

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::embedding::Fault;
use crate::cuda::{
    Arguments, DeviceVec, Error, Event, Family, Function, Gpu, Grid, Lane, LaneBounds, PinnedVec,
    Plain,
};
use crate::post::embedding::search::{Hit, Kind};
use crate::post::threads;

/// The kernels of `cuda/search.cu`.
pub static SEARCH: Family = family!("search");
/// Those of `cuda/search_int8.cu`.
pub static SEARCH_INT8: Family = family!("search_int8", (6, 1));
/// Those of `cuda/search_tf32.cu`.
pub static SEARCH_TF32: Family = family!("search_tf32", (8, 0));

const THREADS: u32 = 256;
const SELECT_THREADS: u32 = 512;
/// Rows of the first part, of which every score is kept; and where a `Finder` spares the rest most.
const FIRST_ROWS: u64 = 8 << 10;
const FIRST_ROWS_FINDER: u64 = 2 << 10;
/// How many times more rows there are after a part: so many times k keys it brings each query.
const GROWTH: RangeInclusive<u64> = 8..=64;
/// Keys of a part that cost less than another part does: of a query, and of all where each is made
/// of a row of its own.
const PART_KEYS: u64 = 10 << 10;
/// Keys of all queries that a part may bring, in bytes: of a card's memory a 64th at most. And rows
/// of a part at most.
const KEY_BYTES_MAX: usize = 256 << 20;
const PART_ROWS_MAX: usize = 4 << 20;
/// Rows of a block of `find_tf32_*`.
const FIND_ROWS: u32 = 128;
/// Blocks of `score_found` for all queries: what is found of each is a few hundred rows.
const FOUND_BLOCKS: u32 = 512;
/// One of the two blocks through which rows of the host come.
const BLOCK_BYTES: usize = 32 << 20;
/// Threads that fill a pinned block at most: one alone has a tenth of what the bus carries.
const FILL_THREADS_MAX: usize = 8;
/// What a thread fills at least: it takes longer than to start one.
const FILL_BYTES_MIN: usize = 1 << 20;

struct Block {
    host: PinnedVec<u8>,
    device: DeviceVec<u8>,
    copied: Event,
    scored: Event,
    used: bool,
}

/// The way of rows from the host: two pinned blocks, two on the card, and a stream that copies.
/// For any number of searches, one after the other.
pub struct Feeder {
    // Before the lane that they are of.
    blocks: [Block; 2],
    lane: Lane,
}

impl std::fmt::Debug for Feeder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Feeder({:?})", self.lane)
    }
}

impl Feeder {
    /// Takes the memory.
    ///
    /// # Errors
    /// `OutOfMemory`, `NoPinned`, or what the driver says.
    pub fn open(gpu: &Arc<Gpu>) -> Result<Feeder, Error> {
        let slab = 2 * BLOCK_BYTES;
        let bounds = LaneBounds {
            device_slab_bytes: slab,
            pinned_slab_bytes: slab,
            ..LaneBounds::default()
        };
        let lane = Lane::open(gpu, &bounds)?;
        lane.stream().meter().start();
        let block = || {
            Ok::<Block, Error>(Block {
                host: lane.pinned(BLOCK_BYTES)?,
                device: lane.device(BLOCK_BYTES)?,
                copied: Event::open(gpu)?,
                scored: Event::open(gpu)?,
                used: false,
            })
        };
        let blocks = [block()?, block()?];
        Ok(Feeder { blocks, lane })
    }
}

/// Why a search ended before its corpus did.
#[derive(Debug)]
pub enum Halt<E> {
    /// The card failed.
    Card(Error),
    /// Rows could not be had.
    Rows(E),
}

impl<E> From<Error> for Halt<E> {
    fn from(error: Error) -> Halt<E> {
        Halt::Card(error)
    }
}

/// Who finds what is worth a score.
struct Finder {
    find: Function,
    score: Function,
    /// Queries of a launch's tile.
    tile: u32,
    /// Rounded to what the tensor cores take of a float.
    queries: DeviceVec<f32>,
    /// How far a product of theirs may be from a score.
    margin: f32,
}

impl Finder {
    /// None where there are no such cores, or one query, for which a score takes no longer.
    fn open(
        lane: &Lane,
        (kind, dims): (Kind, usize),
        queries: &[u8],
        count: usize,
    ) -> Result<Option<Finder>, Error> {
        let is_newer = lane.gpu().facts().capability >= SEARCH_TF32.least;
        if kind != Kind::F32 || count == 1 || !dims.is_multiple_of(4) || !is_newer {
            return Ok(None);
        }
        let tile = [8, 16, 32].into_iter().find(|tile| count <= *tile).unwrap_or(64);
        let find = lane.gpu().function(&SEARCH_TF32, &format!("find_tf32_{tile}"))?;
        let score = lane.gpu().function(&SEARCH, "score_found")?;
        let (words, _) = queries.as_chunks::<4>();
        let rounded = words.iter().map(|word| tf32(f32::from_le_bytes(*word)));
        let rounded: Vec<f32> = rounded.collect();
        let (queries, tile) = (lane.upload(&rounded)?, tile as u32);
        Ok(Some(Finder { find, score, tile, queries, margin: margin(dims) }))
    }
}

/// The nearest float of 11 bits, which is what the tensor cores take of each.
fn tf32(value: f32) -> f32 {
    let bits = value.to_bits();
    // What is too large for that, or no number, makes a query of which all rows are found.
    if value.abs() < 1e38 { f32::from_bits((bits + (1 << 12)) & !0x1fff) } else { value }
}

/// How far the tensor cores' product may be from a score, both divided by the lengths: a query's
/// floats are off by 2^-11 of themselves, a row's by 2^-10, for they are cut; so the products are
/// off by 1.5 * 2^-10 of their sum without signs, which is at most the product of the lengths
/// (Cauchy and Schwarz). A sum of the cores is off by 9 * 2^-23 of that for each eight terms, the
/// score's own by 2^-24 for each term at most; the rest is for what lengths and quotients lose.
fn margin(dims: usize) -> f32 {
    (1.5 / 1024.0 + dims as f64 / f64::from(1 << 21) + 1.0 / f64::from(1 << 17)) as f32
}

/// A search under way.
pub struct Search<'a> {
    lane: &'a Lane,
    finder: Option<Finder>,
    score: Function,
    select: Function,
    kind: Kind,
    dims: usize,
    k: u32,
    count: u32,
    queries: DeviceVec<u8>,
    lengths: Option<DeviceVec<f32>>,
    /// Queries and rows of a block.
    tile: (u32, u32),
    room: u32,
    keys: DeviceVec<u64>,
    counts: DeviceVec<u32>,
    kept: DeviceVec<u32>,
    bounds: DeviceVec<u64>,
    nearest: [DeviceVec<u64>; 2],
    side: usize,
    fault: Fault,
    rows: u64,
}

impl std::fmt::Debug for Search<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Search({} queries, {} rows)", self.count, self.rows)
    }
}

impl<'a> Search<'a> {
    /// The `k` nearest rows for each of these queries: rows of `kind`, as bytes, and their lengths,
    /// which binary rows do not have.
    ///
    /// # Errors
    /// `OutOfMemory`, or what the driver says.
    ///
    /// # Panics
    /// The shapes do not fit, or there is no query or k is 0.
    pub fn open(
        lane: &'a Lane,
        kind: Kind,
        dims: usize,
        queries: &[u8],
        lengths: Option<&[f32]>,
        k: u32,
    ) -> Result<Search<'a>, Error> {
        let row_bytes = kind.row_bytes(dims);
        assert!(row_bytes > 0 && k > 0 && !queries.is_empty());
        let count = queries.len() / row_bytes;
        assert_eq!(queries.len(), count * row_bytes, "queries are whole rows");
        assert!(match lengths {
            Some(lengths) => lengths.len() == count,
            None => kind == Kind::Binary,
        });
        let key_bytes = KEY_BYTES_MAX.min(lane.gpu().budget() / 64);
        let room = (key_bytes / 8 / count).clamp(FIRST_ROWS_FINDER as usize, PART_ROWS_MAX);
        let (name, tile) = kernel(kind, row_bytes, count);
        let is_newer = lane.gpu().facts().capability >= SEARCH_INT8.least;
        let family = if kind == Kind::Int8 && is_newer { &SEARCH_INT8 } else { &SEARCH };
        let best = count * k as usize;
        let mut search = Search {
            lane,
            finder: Finder::open(lane, (kind, dims), queries, count)?,
            score: lane.gpu().function(family, name)?,
            select: lane.gpu().function(&SEARCH, "keep_nearest")?,
            kind,
            dims,
            k,
            count: u32::try_from(count).expect("queries are counted in 32 bits"),
            queries: lane.upload(queries)?,
            lengths: lengths.map(|lengths| lane.upload(lengths)).transpose()?,
            tile,
            room: u32::try_from(room).expect("parts are small"),
            keys: lane.device(count * room)?,
            counts: lane.device(count)?,
            kept: lane.device(count)?,
            bounds: lane.device(count)?,
            nearest: [lane.device(best)?, lane.device(best)?],
            side: 0,
            fault: Fault::open(lane)?,
            rows: 0,
        };
        lane.fill(&mut search.counts, 0)?;
        lane.fill(&mut search.kept, 0)?;
        lane.fill(&mut search.bounds, 0)?;
        Ok(search)
    }

    /// Looks at the next rows of the corpus, which are on the card. Does not wait.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// These are no whole rows, or the corpus has more than 2^32 - 1.
    pub fn add<T: Plain>(&mut self, rows: &DeviceVec<T>) -> Result<(), Error> {
        self.add_at(rows.at(), rows.bytes())
    }

    fn add_at(&mut self, at: u64, bytes: usize) -> Result<(), Error> {
        let row_bytes = self.kind.row_bytes(self.dims);
        let count = (bytes / row_bytes) as u64;
        assert_eq!(bytes as u64, count * row_bytes as u64, "rows are whole");
        assert!(self.rows + count < u64::from(u32::MAX), "rows are counted in 32 bits");
        let mut done = 0;
        while done < count {
            let part = self.part_rows().min(u64::from(self.room)).min(count - done);
            self.part(at + done * row_bytes as u64, part as u32)?;
            done += part;
        }
        Ok(())
    }

    /// Rows of the next part: what it brings should cost less than what another part would.
    fn part_rows(&self) -> u64 {
        let (first, keys) = match &self.finder {
            Some(_) => (FIRST_ROWS_FINDER, u64::from(self.k) * u64::from(self.count)),
            None => (FIRST_ROWS, u64::from(self.k)),
        };
        let growth = (PART_KEYS / keys).clamp(*GROWTH.start(), *GROWTH.end());
        ((growth - 1) * self.rows).max(first)
    }

    fn part(&mut self, at: u64, rows: u32) -> Result<(), Error> {
        // With a bound for each query: there are more rows than it keeps.
        match &self.finder {
            Some(_) if self.rows > u64::from(self.k) => self.find(at, rows)?,
            _ => self.score(at, rows)?,
        }
        let (from, to) = (self.side, 1 - self.side);
        let arguments = Arguments::new().with(self.nearest[from].at());
        let arguments = arguments.with(self.nearest[to].at_mut()).with(self.kept.at_mut());
        let arguments = arguments.with(self.bounds.at_mut()).with(self.counts.at_mut());
        let arguments = arguments.with(self.keys.at()).with(self.room).with(self.k);
        let grid = Grid::line(self.count, SELECT_THREADS);
        // SAFETY: as above; each side has room for k keys of each query.
        unsafe { self.lane.stream().launch(&self.select, grid, &arguments)? };
        self.side = to;
        self.rows += u64::from(rows);
        Ok(())
    }

    /// Appends the keys above the bound.
    fn score(&mut self, at: u64, rows: u32) -> Result<(), Error> {
        let (queries, of_block) = self.tile;
        let of_row = match self.kind {
            Kind::F32 => self.dims,
            Kind::Int8 | Kind::Binary => self.kind.row_bytes(self.dims),
        };
        let tiles = self.count.div_ceil(queries);
        let blocks = rows.div_ceil(of_block);
        let grid = Grid::line(blocks.checked_mul(tiles).expect("a grid has 31 bits"), THREADS);
        let lengths = self.lengths.as_ref().map_or(0, DeviceVec::at);
        let arguments = Arguments::new().with(at).with(rows).with(of_row as u32);
        let arguments = arguments.with(self.queries.at()).with(lengths).with(self.count);
        let arguments = arguments.with(self.rows as u32).with(self.bounds.at());
        let arguments = arguments.with(self.counts.at_mut()).with(self.keys.at_mut());
        let arguments = arguments.with(self.room).with(self.fault.at_mut());
        // SAFETY: pointers and counts as the kernel has them. The rows are there, of each query
        // there is all that the kernel touches, and a part has no more rows than there is room for.
        unsafe { self.lane.stream().launch(&self.score, grid, &arguments) }
    }

    /// The same by way of a `Finder`, which there is; it may append some that are not above.
    fn find(&mut self, at: u64, rows: u32) -> Result<(), Error> {
        let Some(finder) = &self.finder else { return Ok(()) };
        let (first, lengths) = (self.rows as u32, self.lengths.as_ref().map_or(0, DeviceVec::at));
        let dims = self.dims as u32;
        let blocks = rows.div_ceil(FIND_ROWS).checked_mul(self.count.div_ceil(finder.tile));
        let grid = Grid::line(blocks.expect("a grid has 31 bits"), THREADS);
        let arguments = Arguments::new().with(at).with(rows).with(dims);
        let arguments = arguments.with(finder.queries.at()).with(lengths).with(self.count);
        let arguments = arguments.with(first).with(self.bounds.at()).with(self.counts.at_mut());
        let arguments = arguments.with(self.keys.at_mut()).with(self.room);
        let arguments = arguments.with(finder.margin).with(self.fault.at_mut());
        // SAFETY: as in `score`.
        unsafe { self.lane.stream().launch(&finder.find, grid, &arguments)? };
        let of_query = (FOUND_BLOCKS / self.count).clamp(1, 64);
        let blocks = self.count.checked_mul(of_query).expect("a grid has 31 bits");
        let grid = Grid::line(blocks, THREADS);
        let arguments = Arguments::new().with(at).with(dims).with(self.queries.at());
        let arguments = arguments.with(lengths).with(first).with(self.counts.at());
        let arguments = arguments.with(self.keys.at_mut()).with(self.room).with(of_query);
        // SAFETY: as above; what was found are numbers of these rows.
        unsafe { self.lane.stream().launch(&finder.score, grid, &arguments) }
    }

    /// Looks at the next `bytes` of the corpus, whole rows that `fill` writes: from that byte of
    /// them on, in several threads at once. While one block is scored, the next is copied and the
    /// one behind it filled. Waits until all were copied.
    ///
    /// # Errors
    /// What `fill` or the driver says.
    ///
    /// # Panics
    /// As `add`.
    pub fn feed<E: Send>(
        &mut self,
        feeder: &mut Feeder,
        bytes: u64,
        fill: &(dyn Fn(u64, &mut [u8]) -> Result<(), E> + Sync),
    ) -> Result<(), Halt<E>> {
        let row_bytes = self.kind.row_bytes(self.dims);
        assert!(bytes.is_multiple_of(row_bytes as u64), "rows are whole");
        assert!(row_bytes <= BLOCK_BYTES, "a row of 65,536 dimensions is far below a block");
        let outcome = self.feed_blocks(feeder, bytes, BLOCK_BYTES / row_bytes * row_bytes, fill);
        // Nothing may be under way when the blocks are filled next, or dropped.
        let waited = self.lane.synchronize().and_then(|()| feeder.lane.synchronize());
        feeder.blocks.iter_mut().for_each(|block| block.used = false);
        outcome.and(waited.map_err(Halt::Card))
    }

    fn feed_blocks<E: Send>(
        &mut self,
        feeder: &mut Feeder,
        bytes: u64,
        block_bytes: usize,
        fill: &(dyn Fn(u64, &mut [u8]) -> Result<(), E> + Sync),
    ) -> Result<(), Halt<E>> {
        let Feeder { blocks, lane: copier } = feeder;
        let (mut done, mut turn) = (0, 0);
        while done < bytes {
            let block = &mut blocks[turn % 2];
            if std::mem::replace(&mut block.used, true) {
                block.copied.synchronize()?;
                copier.stream().wait(&block.scored)?;
            }
            let part = (bytes - done).min(block_bytes as u64) as usize;
            let host = &mut block.host[..part];
            fill_in_threads(done, host, fill).map_err(Halt::Rows)?;
            let at = block.device.at_mut();
            // SAFETY: both have that many bytes. The host's block is written again only when
            // `copied` is past, and the card's only when the other stream is past `scored`.
            unsafe { copier.copy_in(at, host.as_ptr(), part)? };
            block.copied.record(copier.stream())?;
            self.lane.stream().wait(&block.copied)?;
            self.add_at(at, part)?;
            blocks[turn % 2].scored.record(self.lane.stream())?;
            done += part as u64;
            turn += 1;
        }
        Ok(())
    }

    /// `feed` with rows that are in the host's memory.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// As `add`.
    pub fn add_host(&mut self, feeder: &mut Feeder, rows: &[u8]) -> Result<(), Error> {
        let fill = |at: u64, out: &mut [u8]| {
            out.copy_from_slice(&rows[at as usize..][..out.len()]);
            Ok(())
        };
        self.feed(feeder, rows.len() as u64, &fill).map_err(|halt| match halt {
            Halt::Card(error) | Halt::Rows(error) => error,
        })
    }

    /// Memory of the card that a query takes, in bytes.
    pub fn bytes_of_query(row_bytes: usize, k: u32) -> usize {
        2 * row_bytes + 8 * FIRST_ROWS_FINDER as usize + 16 * k as usize + 64
    }

    /// Waits, and tells the nearest rows of each query, the nearest first; or, as `Err` within, the
    /// first row whose squares sum to no number.
    ///
    /// # Errors
    /// What the driver says.
    pub fn finish(self) -> Result<Result<Vec<Vec<Hit>>, u32>, Error> {
        if let Some(row) = self.fault.read(self.lane)? {
            return Ok(Err(row));
        }
        let keys = self.lane.download(&self.nearest[self.side])?;
        let kept = self.lane.download(&self.kept)?;
        let of_query = keys.chunks_exact(self.k as usize).zip(kept.iter());
        let nearest = of_query.map(|(keys, kept)| {
            let mut keys = keys[..*kept as usize].to_vec();
            keys.sort_unstable_by(|a, b| b.cmp(a));
            keys.into_iter().map(near).collect()
        });
        Ok(Ok(nearest.collect()))
    }
}

/// The kernel for rows of so many bytes and so many queries, and its tile.
fn kernel(kind: Kind, row_bytes: usize, queries: usize) -> (&'static str, (u32, u32)) {
    let is_aligned = row_bytes.is_multiple_of(16);
    match (kind, is_aligned, queries) {
        (Kind::F32, _, 9..) => ("score_f32_16", (16, 32)),
        (Kind::F32, _, 5..=8) => ("score_f32_8", (8, 64)),
        (Kind::F32, false, _) => ("score_f32_odd", (2, 64)),
        (Kind::F32, _, 1) => ("score_f32_1", (1, 32)),
        (Kind::F32, ..) => ("score_f32_4", (4, 64)),
        (Kind::Int8, false, _) => ("score_int8_odd", (2, 64)),
        (Kind::Int8, _, 1) => ("score_int8_1", (1, 128)),
        (Kind::Int8, ..) => ("score_int8_4", (4, 64)),
        (Kind::Binary, false, _) => ("score_binary_odd", (2, 64)),
        (Kind::Binary, _, 1) => ("score_binary_1", (1, 128)),
        (Kind::Binary, ..) => ("score_binary_4", (4, 128)),
    }
}

fn fill_in_threads<E: Send>(
    from: u64,
    to: &mut [u8],
    fill: &(dyn Fn(u64, &mut [u8]) -> Result<(), E> + Sync),
) -> Result<(), E> {
    let threads = threads::cores().min(FILL_THREADS_MAX);
    let piece = to.len().div_ceil(threads).max(FILL_BYTES_MIN);
    std::thread::scope(|scope| {
        let at = (0..).map(|index| from + (index * piece) as u64);
        let mut pieces = at.zip(to.chunks_mut(piece));
        let mine = pieces.next();
        let others: Vec<_> =
            pieces.map(|(at, piece)| scope.spawn(move || fill(at, piece))).collect();
        let mut outcome = mine.map_or(Ok(()), |(at, piece)| fill(at, piece));
        for other in others {
            outcome = outcome.and(other.join().expect("a panic aborts"));
        }
        outcome
    })
}

/// What a key says.
fn near(key: u64) -> Hit {
    let bits = (key >> 32) as u32;
    let bits = if bits & 0x8000_0000 == 0 { !bits } else { bits & 0x7fff_ffff };
    Hit { score: f32::from_bits(bits), row: u64::from(!(key as u32)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_float_is_rounded_to_eleven_bits() {
        let mut prng = crate::prng::Prng::new(3);
        for _ in 0..1000 {
            let value = prng.normal() as f32;
            let rounded = tf32(value);
            assert_eq!(rounded.to_bits() & 0x1fff, 0);
            assert!((rounded - value).abs() <= value.abs() / 2048.0, "{value}: {rounded}");
        }
        assert_eq!((tf32(1.0), tf32(-0.0).to_bits()), (1.0, (-0f32).to_bits()));
        assert!(tf32(f32::MAX) == f32::MAX && margin(768) < 0.002 && margin(768) > 0.0018);
    }

    #[test]
    fn keys_are_in_the_order_of_scores_and_rows() {
        let key = |score: f32, row: u32| {
            let bits = score.to_bits();
            let bits = if bits >> 31 == 0 { bits | 0x8000_0000 } else { !bits };
            u64::from(bits) << 32 | u64::from(!row)
        };
        let order = [(1.0, 7), (0.5, 0), (0.5, 1), (0.0, 3), (-0.25, 0), (-1.0, 9)];
        for pair in order.windows(2) {
            assert!(key(pair[0].0, pair[0].1) > key(pair[1].0, pair[1].1));
        }
        for (score, row) in order {
            assert_eq!(near(key(score, row)), Hit { score, row: u64::from(row) });
        }
    }
}
