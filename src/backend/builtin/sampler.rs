//! The language model's sequences of a core: one sampling call for all of them.
//!
//! Whoever wants its next token first has the tokens of all others computed with it that have none
//! waiting, so that requests under way together make one `[B, V]` batch a step. A row's token
//! depends on its own logits and parameters only, and so not on who it is computed with, nor on
//! whether a card does it.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::ngrams::{Context, Model};
use crate::cuda::Device;
use crate::post::sampling::{self, Batch, Edit, Logits, Params, Refusal, Sampled};

/// Rows of a batch: a core is kept from its streams for some 50 us by each.
const ROWS_MAX: usize = 256;
/// Logits of a batch, in bytes.
const LOGITS_BYTES_MAX: usize = 32 << 20;

/// The model, and where its tokens are drawn; shared by all cores.
#[derive(Clone, Debug)]
pub struct Language {
    /// It.
    pub model: Arc<Model>,
    /// On which card, once it is open.
    pub device: Device,
}

impl Language {
    /// A model whose tokens are drawn there.
    pub fn new(model: Model, device: Device) -> Language {
        Language { model: Arc::new(model), device }
    }
}

/// How a sequence wants its tokens drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Temperature, cuts, penalties, seed and stream.
    pub params: Params,
    /// What is added to logits.
    pub bias: Vec<(u32, f32)>,
    /// Tokens that penalties look back upon.
    pub penalty_window: usize,
    /// Likeliest tokens that are told with each; None: not even its own probability.
    pub top: Option<usize>,
}

/// A core's sequences.
#[derive(Debug)]
pub struct Sampler {
    language: Language,
    rows: Vec<Option<Row>>,
    free: Vec<usize>,
    logits: Vec<f32>,
    card: Card,
}

#[derive(Debug)]
struct Row {
    context: Context,
    options: Options,
    step: u32,
    /// Its end was drawn.
    is_over: bool,
    waiting: Option<Result<Sampled, Refusal>>,
}

/// One sequence. Dropping it ends it.
#[derive(Debug)]
pub struct Sequence {
    sampler: Rc<RefCell<Sampler>>,
    row: usize,
    /// It has told its last token.
    pub ended: bool,
}

/// A token, as a client is told of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// The token; None: the end.
    pub token: Option<u32>,
    /// Its text.
    pub text: String,
    /// Its probability and those of the likeliest, if that was wanted.
    pub probabilities: Option<Probabilities>,
}

/// Natural logarithms of probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct Probabilities {
    /// The token drawn.
    pub drawn: Probability,
    /// The likeliest, the likeliest first.
    pub top: Vec<Probability>,
}

/// A token's probability.
#[derive(Clone, Debug, PartialEq)]
pub struct Probability {
    /// Its number.
    pub token: u32,
    /// Its text.
    pub bytes: Vec<u8>,
    /// The natural logarithm.
    pub logarithm: f32,
}

impl Sampler {
    /// No sequence yet.
    pub fn new(language: Language) -> Sampler {
        let (rows, free, logits) = (Vec::new(), Vec::new(), Vec::new());
        Sampler { language, rows, free, logits, card: Card::new() }
    }

    /// The token that waits for this row; if none does, one is drawn for every row without.
    fn next(&mut self, row: usize) -> Result<Sampled, Refusal> {
        let waiting = |rows: &mut Vec<Option<Row>>| rows[row].as_mut()?.waiting.take();
        if let Some(waiting) = waiting(&mut self.rows) {
            return waiting;
        }
        self.draw(row);
        waiting(&mut self.rows).expect("it is the first of the batch")
    }

    fn draw(&mut self, first: usize) {
        let (vocab, end) = {
            let vocabulary = self.language.model.vocabulary();
            (vocabulary.size(), vocabulary.end())
        };
        let rows_max = (LOGITS_BYTES_MAX / (4 * vocab)).clamp(1, ROWS_MAX);
        let wants = |&row: &usize| {
            self.rows[row].as_ref().is_some_and(|r| r.waiting.is_none() && !r.is_over)
        };
        let others = (0..self.rows.len()).filter(|&row| row != first).filter(wants);
        let batch: Vec<usize> = [first].into_iter().chain(others).take(rows_max).collect();
        self.logits.resize(batch.len() * vocab, 0.0);
        let (mut params, mut edits, mut top_n) = (Vec::new(), Vec::new(), 0);
        for (&row, logits) in batch.iter().zip(self.logits.chunks_exact_mut(vocab)) {
            let row = self.rows[row].as_ref().expect("it was found above");
            self.language.model.logits(&row.context, logits);
            params.push(Params { step: row.step, ..row.options.params });
            edits.push(row.edits());
            top_n = top_n.max(row.options.top.unwrap_or(0));
        }
        if edits.iter().all(Vec::is_empty) {
            edits.clear();
        }
        let logits = Logits::F32(&self.logits);
        let batch_of =
            Batch { logits, vocab, params: &params, edits: &edits, top_n, entropy: false };
        let drawn = match self.card.sample(&self.language.device, &batch_of) {
            Some(drawn) => drawn,
            None => sampling::sample(&batch_of, 1)
                .expect("parameters and edits were checked when their request came"),
        };
        for (row, drawn) in batch.into_iter().zip(drawn) {
            let Some(row) = &mut self.rows[row] else { continue };
            if let Ok(drawn) = &drawn {
                row.context.push(drawn.token);
                row.step += 1;
                row.is_over = drawn.token == end;
            }
            row.waiting = Some(drawn);
        }
    }
}

impl Row {
    fn edits(&self) -> Vec<Edit> {
        let Params { repetition_penalty, presence_penalty, frequency_penalty, .. } =
            self.options.params;
        let is_penalised =
            repetition_penalty != 1.0 || presence_penalty != 0.0 || frequency_penalty != 0.0;
        let window = if is_penalised { self.options.penalty_window } else { 0 };
        Edit::list(self.context.last(window), &self.options.bias)
    }
}

impl Sequence {
    /// A sequence that goes on from `prompt`.
    pub fn new(sampler: &Rc<RefCell<Sampler>>, prompt: Vec<u32>, options: Options) -> Sequence {
        let mut inner = sampler.borrow_mut();
        let row =
            Row { context: Context::new(prompt), options, step: 0, is_over: false, waiting: None };
        let free = inner.free.pop();
        let row = match free {
            Some(free) => {
                inner.rows[free] = Some(row);
                free
            }
            None => {
                inner.rows.push(Some(row));
                inner.rows.len() - 1
            }
        };
        drop(inner);
        Sequence { sampler: sampler.clone(), row, ended: false }
    }

    /// The next token.
    ///
    /// # Errors
    /// No token can be drawn with these parameters.
    pub fn draw(&mut self) -> Result<Drawn, Refusal> {
        let mut sampler = self.sampler.borrow_mut();
        let drawn = sampler.next(self.row)?;
        let vocabulary = sampler.language.model.vocabulary();
        let of = |token: u32, logarithm: f32| {
            let bytes = vocabulary.piece(token).unwrap_or_default().to_vec();
            Probability { token, bytes, logarithm }
        };
        let text = vocabulary.piece(drawn.token).unwrap_or_default();
        let top = sampler.rows[self.row].as_ref().and_then(|row| row.options.top);
        let probabilities = top.map(|count| Probabilities {
            drawn: of(drawn.token, drawn.log_probability),
            top: drawn.top.iter().take(count).map(|&(token, log)| of(token, log)).collect(),
        });
        self.ended = drawn.token == vocabulary.end();
        Ok(Drawn {
            token: (!self.ended).then_some(drawn.token),
            text: String::from_utf8_lossy(text).into_owned(),
            probabilities,
        })
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        let mut sampler = self.sampler.borrow_mut();
        sampler.rows[self.row] = None;
        sampler.free.push(self.row);
    }
}

/// A card on which this core samples, once there is one.
#[derive(Debug)]
enum Card {
    /// It is not known yet whether there is one.
    #[cfg(feature = "cuda")]
    Awaited,
    /// It is there.
    #[cfg(feature = "cuda")]
    Open(Box<OnCard>),
    /// There is none, or it failed.
    None,
}

#[cfg(feature = "cuda")]
#[derive(Debug)]
struct OnCard {
    sampler: crate::cuda::sampling::Sampler,
    lane: crate::cuda::Lane,
}

#[cfg(feature = "cuda")]
impl Card {
    fn new() -> Card {
        Card::Awaited
    }

    /// None: the CPU is to do it.
    fn sample(
        &mut self,
        device: &Device,
        batch: &Batch<'_>,
    ) -> Option<Vec<Result<Sampled, Refusal>>> {
        use crate::cuda::sampling::SampleError;
        if let Card::Awaited = self {
            let opened = match device.start().poll()? {
                Ok(gpu) => OnCard::open(gpu),
                Err(error) => Err(error.clone()),
            };
            match opened {
                Ok(opened) => *self = Card::Open(Box::new(opened)),
                Err(error) => self.fail(device, &error),
            }
        }
        let Card::Open(open) = self else { return None };
        match open.sampler.sample(&open.lane, batch) {
            Ok(drawn) => Some(drawn),
            Err(SampleError::Batch(error)) => {
                unreachable!("checked when their request came: {error}")
            }
            Err(SampleError::Card(error)) => {
                self.fail(device, &error);
                None
            }
        }
    }

    /// Nothing is lost: a row whose token was not drawn has not moved on.
    fn fail(&mut self, device: &Device, error: &crate::cuda::Error) {
        device.give_up(error);
        *self = Card::None;
    }
}

#[cfg(feature = "cuda")]
impl OnCard {
    fn open(gpu: &Arc<crate::cuda::Gpu>) -> Result<OnCard, crate::cuda::Error> {
        let lane = crate::cuda::Lane::open(gpu, &crate::cuda::LaneBounds::default())?;
        lane.stream().meter().start();
        Ok(OnCard { sampler: crate::cuda::sampling::Sampler::open(gpu)?, lane })
    }
}

#[cfg(not(feature = "cuda"))]
impl Card {
    fn new() -> Card {
        Card::None
    }

    /// None: the CPU is to do it, since this build knows no card.
    fn sample(&mut self, _: &Device, _: &Batch<'_>) -> Option<Vec<Result<Sampled, Refusal>>> {
        match self {
            Card::None => None,
        }
    }
}
