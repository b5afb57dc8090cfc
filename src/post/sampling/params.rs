//! How to sample: what a caller asks for, checked once, and the numbers that the loops need.

use super::Error;
use crate::post::weight;

/// Smallest temperature but 0: below it f32 logits of usual size have no digits left to tell them
/// apart, and the scaled ones leave `weight::SCALED_MAX`.
pub const TEMPERATURE_MIN: f32 = 1e-3;
/// Largest temperature: here 1,000 logits apart is one step of e.
pub const TEMPERATURE_MAX: f32 = 1e3;
/// Most that a penalty or its inverse may be, and (but for -inf, which bans) a bias either way.
pub const ADJUSTMENT_MAX: f32 = 1e6;

/// How to draw one row's token. The order is: edits, temperature, top-k, top-p of what is left,
/// min-p, draw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    /// Divides the logits; 0 takes the largest (of equals, the one of the lowest index).
    pub temperature: f32,
    /// Keeps the `top_k` largest; 0 keeps all.
    pub top_k: u32,
    /// Keeps the fewest whose probability is `top_p` or more; 1 keeps all.
    pub top_p: f32,
    /// Keeps what is at least this part as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// What a token's logit that was seen before is divided by if positive, multiplied by if not
    /// (Keskar et al., 2019, CTRL); 1 does nothing.
    pub repetition_penalty: f32,
    /// Taken off once if the token was seen before.
    pub presence_penalty: f32,
    /// Taken off for each time that the token was seen before.
    pub frequency_penalty: f32,
    /// Key of the randomness.
    pub seed: u64,
    /// Which sequence this is: rows of one seed must not share it.
    pub stream: u64,
    /// Which token of the sequence.
    pub step: u32,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
            stream: 0,
            step: 0,
        }
    }
}

/// What a row's sequence says of one token: `count` times seen before, and a bias on its logit.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct Edit {
    /// Index in the vocabulary.
    pub token: u32,
    /// Times seen before.
    pub count: u32,
    /// Added to the logit, last; -inf bans the token.
    pub bias: f32,
}

impl Edit {
    /// One row's edits from its history and its biases, sorted by token, each token once.
    pub fn list(history: &[u32], bias: &[(u32, f32)]) -> Vec<Edit> {
        let seen = history.iter().map(|&token| Edit { token, count: 1, bias: 0.0 });
        let biased = bias.iter().map(|&(token, bias)| Edit { token, count: 0, bias });
        let mut edits: Vec<Edit> = seen.chain(biased).collect();
        edits.sort_by_key(|edit| edit.token);
        edits.dedup_by(|next, kept| {
            let same = next.token == kept.token;
            if same {
                kept.count += next.count;
                kept.bias += next.bias;
            }
            same
        });
        edits
    }
}

/// `Params` as the loops want them, on either machine: 56 bytes, as in `cuda/sampling.cu`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct Row {
    /// Key of the randomness.
    pub seed: u64,
    /// Which sequence.
    pub stream: u64,
    /// Part of the probability to keep, in units of 2^-32: 1 to 2^32, which is all.
    pub top_p: u64,
    /// Which token of the sequence.
    pub step: u32,
    /// How many to keep: 1 to 2^32 - 1.
    pub top_k: u32,
    /// Scaled logit of a logit of 1: 8 log2(e) over the temperature.
    pub scale: f32,
    /// Scaled logits below the largest by more than this go: 0 or less; -inf keeps all.
    pub min_p: f32,
    /// As in `Params`.
    pub repetition_penalty: f32,
    /// As in `Params`.
    pub presence_penalty: f32,
    /// As in `Params`.
    pub frequency_penalty: f32,
    /// To a multiple of 8 bytes.
    pub unused: u32,
}

const _: () = assert!(size_of::<Row>() == 56 && size_of::<Edit>() == 12);

impl Params {
    /// Checks every value; `row` is for the message.
    pub fn check(&self, row: usize) -> Result<Row, Error> {
        let wrong = |name, value, range| Err(Error::Param { row, name, value, range });
        let t = self.temperature;
        if t != 0.0 && !(TEMPERATURE_MIN..=TEMPERATURE_MAX).contains(&t) {
            return wrong("temperature", t, "0, or 0.001 to 1000");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong("top_p", self.top_p, "above 0, at most 1");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return wrong("min_p", self.min_p, "0 to 1");
        }
        let r = self.repetition_penalty;
        if !(1.0 / ADJUSTMENT_MAX..=ADJUSTMENT_MAX).contains(&r) {
            return wrong("repetition_penalty", r, "0.000001 to 1000000");
        }
        for (name, value) in [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ] {
            if !(-ADJUSTMENT_MAX..=ADJUSTMENT_MAX).contains(&value) {
                return wrong(name, value, "-1000000 to 1000000");
            }
        }
        let greedy = t == 0.0;
        let divisor = if greedy { 1.0 } else { f64::from(t) };
        Ok(Row {
            seed: self.seed,
            stream: self.stream,
            top_p: if greedy { 1 << 32 } else { part(self.top_p) },
            step: self.step,
            top_k: match self.top_k {
                _ if greedy => 1,
                0 => u32::MAX,
                k => k,
            },
            scale: (8.0 * std::f64::consts::LOG2_E / divisor) as f32,
            min_p: if greedy { f32::NEG_INFINITY } else { distance(self.min_p) },
            repetition_penalty: r,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            unused: 0,
        })
    }
}

impl Row {
    /// An edited logit. Each step is rounded on its own.
    pub fn edit(&self, x: f32, edit: &Edit) -> f32 {
        let mut x = x;
        if edit.count > 0 {
            x = if x > 0.0 { x / self.repetition_penalty } else { x * self.repetition_penalty };
            x -= edit.count as f32 * self.frequency_penalty;
            x -= self.presence_penalty;
        }
        x + edit.bias
    }
}

/// A part of 1 in units of 2^-32, at least one of them.
fn part(p: f32) -> u64 {
    ((f64::from(p) * 4_294_967_296.0).ceil() as u64).max(1)
}

/// How far below the largest a scaled logit is that is `p` times as likely.
fn distance(p: f32) -> f32 {
    if p == 0.0 {
        f32::NEG_INFINITY
    } else {
        (8.0 / std::f64::consts::LN_2 * weight::ln(f64::from(p))) as f32
    }
}
