//! Drawing tokens from logits: edits, temperature, top-k, top-p, min-p, softmax, draw.
//!
//! The token is a function of logits, parameters, seed, stream and step, and the same on a CPU and
//! on a GPU, to the last tie. This page is that function, and why order and machine cannot change
//! it; `row` computes it for one row, `cuda/sampling.cu` for many.
//!
//! # Definition
//!
//! 1. A row's logits are widened to f32 (exact) and edited (`Row::edit`). A NaN, a +inf, a row of
//!    nothing but -inf, and a largest logit past `weight::SCALED_MAX` once scaled are refused.
//! 2. Each logit `x` has a bin and a mass (`weight`), from `y = x * scale`, where `scale` holds the
//!    temperature. The window is the `weight::BINS` bins from the top of the largest logit's octave
//!    down; what lies below it weighs nothing. `S[t]` is the sum of the masses of the window's bin
//!    `t` (0 is the top), `W[t]` what it weighs, `Z` the sum of `W`.
//! 3. *Order* is by `key(x)`, largest first, then by index. Bins are intervals of logits, so order
//!    goes bin by bin. What a prefix of the order weighs is the sum of `W` of its whole bins and
//!    `weigh(t, sum of masses)` of the part of the last.
//! 4. Top-k keeps the prefix of `k`. Top-p keeps the shortest prefix that weighs
//!    `ceil(top_p * Z')` or more, `Z'` being what top-k kept. Min-p keeps `y >= y_max + distance`.
//!    Each keeps a prefix of the order, so together they keep the shortest of these. Its last bin
//!    is the *edge*, and only there must single logits be looked at.
//! 5. Draw 0 takes a number below what the bins down to the edge weigh, the edge counted in full;
//!    that gives a bin, and a second number below `S` of that bin an element of it, counted by
//!    mass in index order. In a bin above the edge it is the token; in the edge it is, if it is
//!    kept. If it is not, draws 1 to 3 do the same anew, and draw 4 with what is kept of the edge.
//!
//! A kept token of weight `w` is drawn with probability `w / kept`: where `full` counts the whole
//! edge, `kept` what is kept, and `r = (full - kept) / full`, that is the sum of `r^i * w / full`
//! for `i` from 0 to 3, and of `r^4 * w / kept`. The first draws need to know nothing of the edge
//! but its sum, which is why a GPU reads wide nuclei once: of a hundred rows about one draws from
//! the edge, and then one more pass tells whether the token is kept.
//!
//! Log-probabilities and entropy are those of the whole row after edits and temperature, before
//! anything was cut (at temperature 0: of temperature 1).
//!
//! # Why it is the same everywhere
//!
//! Bin, mass and key of a logit are made by single IEEE 754 operations without contraction
//! (`weight`). All else that decides is sums and comparisons of integers: the sums are exact and
//! stay below 2^64 (2^18 logits, masses below 2^17.1, factors below 2^26.9), so their order does
//! not matter. Ties have an order of their own. The random numbers are Philox4x32-10 of seed,
//! stream, step and draw. Logarithms are computed at the end, in f64, by a fixed sequence of single
//! operations.

mod params;
mod row;

use std::fmt;
use std::thread;

pub use params::{ADJUSTMENT_MAX, Edit, Params, Row, TEMPERATURE_MAX, TEMPERATURE_MIN};

use crate::post::weight;

/// Largest vocabulary: sums of its masses keep below 2^64.
pub const VOCAB_MAX: usize = 1 << 18;
/// Most log-probabilities for one token (OpenAI's API: 20; vLLM's default bound: 20).
pub const TOP_N_MAX: usize = 32;

/// Logits as `[rows, vocab]`, row after row.
#[derive(Clone, Copy, Debug)]
pub enum Logits<'a> {
    /// IEEE 754 binary32.
    F32(&'a [f32]),
    /// IEEE 754 binary16.
    F16(&'a [u16]),
    /// The upper halves of binary32.
    Bf16(&'a [u16]),
}

impl Logits<'_> {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Logits::F32(values) => values.len(),
            Logits::F16(values) | Logits::Bf16(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of one.
    pub fn width(&self) -> usize {
        if let Logits::F32(_) = self { 4 } else { 2 }
    }

    /// Appends the logits from `start` to `end`, as f32.
    fn widen(&self, start: usize, end: usize, out: &mut Vec<f32>) {
        match self {
            Logits::F32(values) => out.extend_from_slice(&values[start..end]),
            Logits::F16(values) => {
                out.extend(values[start..end].iter().map(|&half| weight::from_f16(half)));
            }
            Logits::Bf16(values) => {
                out.extend(values[start..end].iter().map(|&half| weight::from_bf16(half)));
            }
        }
    }
}

/// What to sample: a row's parameters and edits beside each row of logits.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// `[params.len(), vocab]`.
    pub logits: Logits<'a>,
    /// Logits of a row, up to `VOCAB_MAX`.
    pub vocab: usize,
    /// One for each row.
    pub params: &'a [Params],
    /// One list for each row, sorted by token (`Edit::list`), or no list at all.
    pub edits: &'a [Vec<Edit>],
    /// Most likely tokens to list for each row, up to `TOP_N_MAX`.
    pub top_n: usize,
    /// Whether the entropy is wanted.
    pub entropy: bool,
}

/// One row's result.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// Index in the vocabulary.
    pub token: u32,
    /// Natural logarithm of the token's probability.
    pub log_probability: f32,
    /// Entropy of the row in nats, to about 1e-5, if it was wanted.
    pub entropy: Option<f32>,
    /// The likeliest tokens and their log-probabilities, likeliest first: `top_n` of them, or as
    /// many as weigh something.
    pub top: Vec<(u32, f32)>,
}

/// Why a row has no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The logit of this token, the first such, is not a number.
    Nan(u32),
    /// Every logit is -inf.
    AllMasked,
    /// The logit of this token, the first such, is +inf.
    Infinite(u32),
    /// The largest logit is too far from 0 for its temperature.
    OutOfRange,
}

/// Why nothing was sampled.
#[derive(Clone, Debug, PartialEq)]
pub enum Error {
    /// The vocabulary has no logit, or more than `VOCAB_MAX`.
    Vocab(usize),
    /// There are not as many logits as rows times vocabulary.
    Shape {
        /// Logits that came.
        logits: usize,
        /// Rows that have parameters.
        rows: usize,
        /// Logits of a row.
        vocab: usize,
    },
    /// There are edits, but not a list for each row.
    EditLists {
        /// Lists that came.
        lists: usize,
        /// Rows that have parameters.
        rows: usize,
    },
    /// An edit names a token twice, out of order, or past the vocabulary.
    EditToken {
        /// Whose edits.
        row: usize,
        /// Which token.
        token: u32,
    },
    /// An edit's bias is no number in range.
    EditBias {
        /// Whose edits.
        row: usize,
        /// Which token.
        token: u32,
        /// Its bias.
        bias: f32,
    },
    /// A parameter out of its range.
    Param {
        /// Whose.
        row: usize,
        /// Its name.
        name: &'static str,
        /// Its value.
        value: f32,
        /// What it may be.
        range: &'static str,
    },
    /// More top log-probabilities than `TOP_N_MAX`.
    TopN(usize),
}

/// Samples a token for each row, rows spread over `threads`. The result does not depend on
/// `threads`.
pub fn sample(batch: &Batch, threads: usize) -> Result<Vec<Result<Sampled, Refusal>>, Error> {
    let rows = batch.check()?;
    let share = rows.len().div_ceil(threads.max(1)).max(1);
    if share >= rows.len() {
        return Ok(row::sample_rows(batch, &rows, 0));
    }
    thread::scope(|scope| {
        let parts: Vec<_> = rows
            .chunks(share)
            .enumerate()
            .map(|(i, part)| scope.spawn(move || row::sample_rows(batch, part, i * share)))
            .collect();
        let joined = parts.into_iter().map(|part| part.join().expect("rows do not panic"));
        Ok(joined.flatten().collect())
    })
}

impl Batch<'_> {
    /// Checks all but the logits' values, and turns the parameters into what the loops want.
    pub fn check(&self) -> Result<Vec<Row>, Error> {
        let (rows, vocab, logits) = (self.params.len(), self.vocab, self.logits.len());
        if vocab == 0 || vocab > VOCAB_MAX {
            return Err(Error::Vocab(vocab));
        }
        if rows.checked_mul(vocab) != Some(logits) {
            return Err(Error::Shape { logits, rows, vocab });
        }
        if !self.edits.is_empty() && self.edits.len() != rows {
            return Err(Error::EditLists { lists: self.edits.len(), rows });
        }
        if self.top_n > TOP_N_MAX {
            return Err(Error::TopN(self.top_n));
        }
        for (row, list) in self.edits.iter().enumerate() {
            let mut least = 0;
            for edit in list {
                let token = edit.token;
                if token < least || token as usize >= vocab {
                    return Err(Error::EditToken { row, token });
                }
                let bias = edit.bias;
                if !(bias.abs() <= ADJUSTMENT_MAX || bias == f32::NEG_INFINITY) {
                    return Err(Error::EditBias { row, token, bias });
                }
                least = token + 1;
            }
        }
        self.params.iter().enumerate().map(|(row, params)| params.check(row)).collect()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Refusal::Nan(token) => write!(f, "the logit of token {token} is NaN"),
            Refusal::AllMasked => write!(f, "every logit is -inf: no token is allowed"),
            Refusal::Infinite(token) => write!(f, "the logit of token {token} is +inf"),
            Refusal::OutOfRange => write!(
                f,
                "the largest logit over the temperature is further than 346,000 from 0: \
                 scale the logits, or raise the temperature"
            ),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Error::Vocab(vocab) => {
                write!(f, "a vocabulary of {vocab} tokens; it must be 1 to {VOCAB_MAX}")
            }
            Error::Shape { logits, rows, vocab } => {
                write!(f, "{logits} logits are not {rows} rows of {vocab}")
            }
            Error::EditLists { lists, rows } => {
                write!(f, "{lists} lists of edits for {rows} rows; give one for each row, or none")
            }
            Error::EditToken { row, token } => write!(
                f,
                "row {row}: the edit of token {token} is out of order, double, or past the \
                 vocabulary"
            ),
            Error::EditBias { row, token, bias } => write!(
                f,
                "row {row}: token {token} has the bias {bias}; it must be -1000000 to 1000000, or \
                 -inf to ban the token"
            ),
            Error::Param { row, name, value, range } => {
                write!(f, "row {row}: {name} is {value}; it must be {range}")
            }
            Error::TopN(n) => {
                write!(f, "{n} top log-probabilities; at most {TOP_N_MAX} can be had")
            }
        }
    }
}

impl std::error::Error for Refusal {}
impl std::error::Error for Error {}

#[cfg(test)]
mod tests;
