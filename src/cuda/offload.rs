//! Rows' work on a card if there is one, by the CPU twins if not: the same bits either way.
//!
//! Nobody waits for a card: until it is open the twins work, and a search that is under way by then
//! hands the rest of its corpus over. A card that is lost or out of memory is said so once, and
//! what it was asked for is done by the twins, from where they stood.

use super::{Choice, Device};
#[cfg(feature = "cuda")]
use super::{kernels::search::Halt, rows::OnCard};
use crate::post::embedding::Error;
#[cfg(feature = "cuda")]
use crate::post::embedding::check_finite;
#[cfg(feature = "cuda")]
use crate::post::embedding::search::Kind;
use crate::post::embedding::search::Search;
use crate::post::matrix::{Matrix, Values};
use crate::post::nearest::{self, Scan};
use crate::post::plan::Plan;

/// Rows below this, in bytes, are done on a core in the 60 us that a card's two copies, launch and
/// wait take.
#[cfg(feature = "cuda")]
const SHAPE_BYTES_MIN: usize = 256 << 10;
/// Bytes of a corpus, times queries, below which a core has looked at them before a card's blocks
/// are filled.
#[cfg(feature = "cuda")]
const SEARCH_BYTES_MIN: u64 = 4 << 20;
/// The same while the card is not open: it takes some 0.3 s.
#[cfg(feature = "cuda")]
const OPEN_BYTES_MIN: u64 = 2 << 30;

/// A thread's way to do rows' work. Stays in the thread that made it.
#[derive(Debug)]
pub struct Offload {
    #[cfg(feature = "cuda")]
    device: Device,
    #[cfg(feature = "cuda")]
    card: Card,
}

#[cfg(feature = "cuda")]
#[derive(Debug)]
enum Card {
    /// It is not known yet whether there is one.
    Awaited,
    Open(Box<OnCard>),
    /// There is none, or it failed.
    None,
}

impl Offload {
    /// For work on this device, which is opened when there is enough of it.
    #[cfg(feature = "cuda")]
    pub fn new(device: &Device) -> Offload {
        Offload { device: device.clone(), card: Card::Awaited }
    }

    /// For work that this build does without a card.
    #[cfg(not(feature = "cuda"))]
    pub fn new(device: &Device) -> Offload {
        if let Choice::Device(_) = device.choice() {
            device.give_up(&super::Error::NotBuilt);
        }
        Offload {}
    }

    /// `Plan::transform`.
    ///
    /// # Errors
    /// As that.
    pub fn transform(
        &mut self,
        plan: &Plan,
        rows: Vec<f32>,
        dims: usize,
        threads: usize,
    ) -> Result<(Values, usize), Error> {
        #[cfg(feature = "cuda")]
        if let Some(done) = self.transform_on_card(plan, &rows, dims) {
            return done;
        }
        plan.transform(rows, dims, threads)
    }
}

impl Scan for Offload {
    fn scan(&mut self, corpus: &Matrix, mut search: Search) -> Result<Search, nearest::Error> {
        let (mut at, rows) = (0, corpus.rows());
        while at < rows {
            #[cfg(feature = "cuda")]
            if let Some(found) = self.search_on_card(corpus, at, &search)? {
                search.take(found, rows - at);
                break;
            }
            let count = corpus.block_rows().min(rows - at);
            nearest::look(corpus, at, count, &mut search)?;
            at += count;
        }
        Ok(search)
    }
}

#[cfg(feature = "cuda")]
impl Offload {
    /// The card, once it is open.
    fn card(&mut self) -> Option<&mut OnCard> {
        if let Card::Awaited = self.card {
            let opened = match self.device.start().poll()? {
                Ok(gpu) => OnCard::open(gpu),
                Err(error) => Err(error.clone()),
            };
            match opened {
                Ok(opened) => self.card = Card::Open(Box::new(opened)),
                // Where nobody asked for one, nobody need be told that there is none.
                Err(error) if error.is_absence() && self.device.choice() == Choice::Auto => {
                    self.card = Card::None;
                }
                Err(error) => self.fail(&error),
            }
        }
        match &mut self.card {
            Card::Open(card) => Some(card),
            Card::Awaited | Card::None => None,
        }
    }

    fn fail(&mut self, error: &super::Error) {
        self.device.give_up(error);
        self.card = Card::None;
    }

    /// None: the twin is to do it.
    fn transform_on_card(
        &mut self,
        plan: &Plan,
        rows: &[f32],
        dims: usize,
    ) -> Option<Result<(Values, usize), Error>> {
        let to = plan.truncate.unwrap_or(dims);
        let is_shaped = plan.normalize || plan.kind != Kind::F32;
        // What cannot be done the twin refuses.
        let fits = to <= dims && (plan.kind != Kind::Binary || to.is_multiple_of(8));
        if !is_shaped || !fits || size_of_val(rows) < SHAPE_BYTES_MIN {
            return None;
        }
        let card = self.card()?;
        if let Err(error) = check_finite(rows, dims) {
            return Some(Err(error));
        }
        match card.transform(plan, rows, dims) {
            Ok(Ok(done)) => Some(Ok(done)),
            Ok(Err(row)) => Some(Err(Error::TooLong { row })),
            Err(error) => {
                self.fail(&error);
                None
            }
        }
    }

    /// None: the twin is to look at the next rows.
    fn search_on_card(
        &mut self,
        corpus: &Matrix,
        first: u64,
        search: &Search,
    ) -> Result<Option<Vec<Vec<crate::post::embedding::search::Hit>>>, nearest::Error> {
        let rows = corpus.rows() - first;
        let row_bytes = corpus.kind().row_bytes(corpus.dims()) as u64;
        let work = (rows * row_bytes).saturating_mul(search.count() as u64);
        let least = if self.device.is_started() { SEARCH_BYTES_MIN } else { OPEN_BYTES_MIN };
        // A card counts rows in 32 bits.
        if work < least || rows >= u64::from(u32::MAX) || search.k() == 0 {
            return Ok(None);
        }
        let Some(card) = self.card() else { return Ok(None) };
        match card.search(corpus, first, search) {
            Ok(Ok(found)) => Ok(Some(found)),
            // The twin says what is wrong with that row.
            Ok(Err(row)) => {
                let mut refused = search.clone();
                refused.skip(row - first);
                nearest::look(corpus, row, 1, &mut refused)?;
                let said = format!("it refuses row {row}, in which nothing is wrong");
                self.fail(&super::Error::Input(said));
                Ok(None)
            }
            Err(Halt::Rows(error)) => Err(error.into()),
            Err(Halt::Card(error)) => {
                self.fail(&error);
                Ok(None)
            }
        }
    }
}
