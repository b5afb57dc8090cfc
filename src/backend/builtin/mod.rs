//! The built-in backend: a deterministic generator that needs nothing, and a simulator of servers
//! that are slower.
//!
//! It answers as a llama-server does, over the same paths and in the same shapes, with text of its
//! own (`text`), or with the prompt itself in echo mode. Its text never ends by itself:
//! `max_tokens` ends it (64 when absent), or a stop word; an echo ends with the prompt. With a
//! vocabulary of its own (`ngrams`) it is a small language model instead, whose tokens are drawn
//! from logits as a request's parameters say, and which ends its answers itself. Delays before the
//! first token and between tokens are simulated, fixed or drawn from a log-normal distribution;
//! without any, an answer of the first two is complete within one step.

mod answer;
mod api;
pub mod ngrams;
mod options;
pub mod sampler;
mod sequence;
pub mod text;
pub mod vocabulary;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use self::answer::{Answer, Shape};
use self::options::Fields;
use self::sampler::{Language, Sampler};
use self::sequence::{Sequence, Source};
use super::{Failure, Finished, Output, Tell};
use crate::clock::Instant;
use crate::prng::{self, Prng};
use crate::wire::frame::{ErrorCode, FinishReason};
use crate::wire::message::{Infer, Input};

/// Tokens of an answer whose request says nothing.
const MAX_TOKENS_DEFAULT: u32 = 64;
/// Bytes of text in one step: after them others get their turn, and a slow reader is noticed.
const STEP_BYTES: usize = 1024;

/// A simulated delay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Delay {
    /// Always so long.
    Fixed(Duration),
    /// Log-normal with this mean, and this standard deviation of the logarithm.
    LogNormal {
        /// Mean of the delay itself.
        mean: Duration,
        /// Standard deviation of its natural logarithm.
        sigma: f64,
    },
}

impl Delay {
    /// No delay.
    pub const NONE: Delay = Delay::Fixed(Duration::ZERO);

    fn draw(self, prng: &mut Prng) -> Duration {
        match self {
            Delay::Fixed(duration) => duration,
            Delay::LogNormal { mean, sigma } => {
                // mean = exp(mu + sigma^2 / 2)
                let factor = (sigma * prng.normal() - sigma * sigma / 2.0).exp();
                Duration::from_secs_f64((mean.as_secs_f64() * factor).clamp(0.0, 3600.0))
            }
        }
    }
}

/// Every so often nothing is told for a while, as when a machine swaps or a garbage collector runs.
/// Requests are taken all the same, so that what they wait is known here too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    /// How long.
    pub length: Duration,
    /// From one's start to the next's, the first this long after the clock's; longer than `length`.
    pub every: Duration,
}

impl Stall {
    /// How much of the present stall is left; zero: there is none.
    fn left(self, now: Instant) -> Duration {
        let (every, length) = (self.every.as_nanos() as u64, self.length.as_nanos() as u64);
        let since = now.0 % every.max(1);
        let stalls = now.0 >= every && since < length;
        Duration::from_nanos(if stalls { length - since } else { 0 })
    }
}

/// What the built-in backend is like.
#[derive(Clone, Debug)]
pub struct BuiltinConfig {
    /// The model's name.
    pub model: String,
    /// The answer is the prompt.
    pub echo: bool,
    /// Before the first token.
    pub ttft: Delay,
    /// Between tokens.
    pub itl: Delay,
    /// When it tells nothing.
    pub stall: Option<Stall>,
    /// `total_slots` in `/props`; 0: as many as are asked for.
    pub slots: u32,
    /// The seed of requests that name none, and of the delays.
    pub seed: u64,
    /// The language model; None: words without end, which cost next to nothing.
    pub language: Option<Language>,
}

/// The built-in backend of one core.
#[derive(Debug)]
pub struct Builtin {
    config: Rc<BuiltinConfig>,
    jobs: u64,
    sampler: Option<Rc<RefCell<Sampler>>>,
}

/// A request's answer in the making.
#[derive(Debug)]
pub struct Job {
    config: Rc<BuiltinConfig>,
    prng: Prng,
    sequences: Vec<Sequence>,
    answer: Answer,
    prompt_tokens: u32,
    began: bool,
    /// What the simulated work has waited for already.
    waited: bool,
}

/// What a job wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// To be stepped again after so long.
    Wait(Duration),
    /// Nothing: the last output was told.
    Finished,
}

impl Builtin {
    /// A backend like `config`.
    pub fn new(config: BuiltinConfig) -> Builtin {
        let sampler = config.language.clone().map(|l| Rc::new(RefCell::new(Sampler::new(l))));
        Builtin { config: Rc::new(config), jobs: 0, sampler }
    }

    /// The job that answers `infer`, and whether the client asked for server-sent events.
    ///
    /// # Errors
    /// The request is malformed, or asks for what is not there.
    pub fn start(&mut self, infer: &Infer<'_>) -> Result<Job, Failure> {
        self.jobs += 1;
        match infer.input {
            Input::Prompt(prompt) => self.text_job(infer, prompt),
            Input::Messages(messages) => {
                let prompt = api::render(messages.as_bytes())?;
                self.text_job(infer, &prompt)
            }
            Input::Api { method, path, body } => api::start(self, method, path, body),
        }
    }

    fn text_job(&self, infer: &Infer<'_>, prompt: &str) -> Result<Job, Failure> {
        let seed = infer.seed.unwrap_or(self.config.seed);
        let fields = match self.sampler {
            Some(_) => Fields::of_infer(infer)?,
            None => Fields::default(),
        };
        let source = self.source(prompt, seed, 0, &fields)?;
        let max_tokens = self.max_tokens(infer.max_tokens);
        let stop = infer.stop.iter().map(|&word| word.to_owned()).collect();
        let sequence = Sequence::new(source, max_tokens, stop);
        let prompt_tokens = self.count_tokens(prompt);
        Ok(self.job(vec![sequence], Answer::text(), prompt_tokens, seed))
    }

    fn job(&self, sequences: Vec<Sequence>, answer: Answer, prompt_tokens: u32, seed: u64) -> Job {
        let config = self.config.clone();
        let prng = Prng::new(prng::hash(self.jobs, &(config.seed ^ seed).to_le_bytes()));
        Job { config, prng, sequences, answer, prompt_tokens, began: false, waited: false }
    }

    /// Where sequence `number` of a request comes from.
    fn source(
        &self,
        prompt: &str,
        seed: u64,
        number: u64,
        fields: &Fields,
    ) -> Result<Source, Failure> {
        if self.config.echo {
            return Ok(Source::echo(prompt));
        }
        let (Some(language), Some(sampler)) = (&self.config.language, &self.sampler) else {
            let seed = seed.wrapping_add(number);
            return Ok(Source::Generated(text::Generator::new(seed, prompt.as_bytes())));
        };
        let vocabulary = language.model.vocabulary();
        let mut options = fields.options(seed, vocabulary)?;
        // Requests of one seed are not to share their randomness.
        options.params.stream = prng::hash(number, prompt.as_bytes());
        let tokens = vocabulary.tokenize(prompt.as_bytes());
        Ok(Source::Model(sampler::Sequence::new(sampler, tokens, options)))
    }

    fn count_tokens(&self, text: &str) -> u32 {
        match &self.config.language {
            None => text::count_tokens(text.as_bytes()),
            Some(language) => language.model.vocabulary().tokenize(text.as_bytes()).len() as u32,
        }
    }

    fn max_tokens(&self, asked: Option<u32>) -> u32 {
        let default = if self.config.echo { u32::MAX } else { MAX_TOKENS_DEFAULT };
        asked.unwrap_or(default)
    }
}

impl Job {
    /// Whether its client asked for server-sent events.
    pub fn is_streamed(&self) -> bool {
        self.answer.is_streamed()
    }

    /// Sequences that it runs at once; 0 for what takes no slot.
    pub fn weight(&self) -> u32 {
        u32::try_from(self.sequences.len()).unwrap_or(u32::MAX)
    }

    /// Tells the tokens that are due. As many bytes as there is `room` for are told at once, those
    /// past it token by token, so that whoever has to cut the text knows where tokens end.
    pub fn step(&mut self, now: Instant, mut room: usize, tell: &mut Tell<'_>) -> Next {
        if !self.sequences.is_empty() && !std::mem::replace(&mut self.waited, true) {
            let delay = if self.began { self.config.itl } else { self.config.ttft };
            let wait = delay.draw(&mut self.prng);
            if wait > Duration::ZERO {
                return Next::Wait(wait);
            }
        }
        if let Some(stall) = self.config.stall
            && !self.sequences.is_empty()
            && let left = stall.left(now)
            && left > Duration::ZERO
        {
            return Next::Wait(left);
        }
        if !std::mem::replace(&mut self.began, true) {
            self.answer.begin(now, &self.config.model, self.sequences.len(), tell);
        }
        let at_once = self.config.itl == Delay::NONE;
        // A token of each request a turn, so that one batch serves all.
        let is_model = self.sequences.iter().any(Sequence::is_model);
        let mut told = 0;
        loop {
            for (index, sequence) in self.sequences.iter_mut().enumerate() {
                if sequence.ended().is_some() {
                    continue;
                }
                let batch = at_once && !is_model && self.answer.shape() == Shape::Text;
                let budget = if batch { room.clamp(1, STEP_BYTES) } else { 1 };
                let (piece, tokens) = sequence.next(budget);
                told += piece.len().max(1);
                room = room.saturating_sub(piece.len());
                if let Some(refused) = sequence.refused() {
                    let message = format!("no token can be drawn: {refused}");
                    tell(Output::Fail(Failure::request(ErrorCode::BadRequest, message)));
                    return Next::Finished;
                }
                let probabilities = sequence.take_probabilities();
                if !is_model || tokens > 0 || !piece.is_empty() {
                    self.answer.piece(index, &piece, tokens, &probabilities, tell);
                }
                if let Some(end) = sequence.ended() {
                    self.answer.sequence_end(now, index, sequence, end, self.prompt_tokens, tell);
                }
            }
            if self.sequences.iter().all(|sequence| sequence.ended().is_some()) {
                break;
            }
            if !at_once || is_model || told >= STEP_BYTES {
                self.waited = at_once;
                return Next::Wait(Duration::ZERO);
            }
        }
        self.finish(tell);
        Next::Finished
    }

    fn finish(&mut self, tell: &mut Tell<'_>) {
        let completion_tokens = self.sequences.iter().map(Sequence::tokens).sum();
        let prompt_tokens = self.prompt_tokens;
        self.answer.finish(&self.sequences, prompt_tokens, completion_tokens, tell);
        let reason = match self.sequences.first().and_then(Sequence::ended) {
            Some(end) if self.answer.shape() == Shape::Text => end.reason(),
            _ => FinishReason::Other,
        };
        tell(Output::Done(Finished { reason, prompt_tokens, completion_tokens }));
    }
}

#[cfg(test)]
mod tests;
