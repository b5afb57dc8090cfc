//! A language model of hashed n-grams: what came before decides the logits of what comes next.
//!
//! Nothing was learned. A word's own logit falls with its rank, as in Zipf's law; the last one, two
//! and three tokens each hash to a few words that they make likelier, the longer the context the
//! fewer and the more; so do the prompt, as a topic, and the sentence. A sentence's end gets
//! likelier with each of its words, and after it the answer's end with each sentence. So the
//! distribution is peaked as a real model's is, and of real size, and costs a copy of the
//! vocabulary's logits and some 60 additions.
//!
//! Logits are made of integers and single roundings, with no function of a mathematics library: the
//! same on every machine. Bytes that no text of letters has are -inf, so that text is always UTF-8.

use super::vocabulary::{FIRST_WORD, Vocabulary};
use crate::prng::{hash, splitmix64};

/// Tokens that a context hashes to, and what each of them gains: from the first to the last.
const ORDERS: [(usize, f32, f32); 3] = [(24, 4.0, 1.0), (12, 6.0, 2.0), (6, 7.5, 3.5)];
/// Of the prompt's topic, and of the sentence.
const TOPIC: (usize, f32, f32) = (20, 3.0, 1.0);
/// So many octaves of ranks are one: were they told apart, any context would favour the first word.
const COMMON_OCTAVES: u32 = 6;
/// What a letter loses against the rarest word.
const LETTER: f32 = -16.0;

/// The model; the same for all requests of a vocabulary.
#[derive(Debug)]
pub struct Model {
    vocabulary: Vocabulary,
    /// Of each token, whatever came before.
    alone: Vec<f32>,
}

/// What came before.
#[derive(Clone, Debug)]
pub struct Context {
    tokens: Vec<u32>,
    topic: u64,
    words: u32,
    sentences: u32,
}

impl Context {
    /// That of a prompt.
    pub fn new(prompt: Vec<u32>) -> Context {
        let bytes: Vec<u8> = prompt.iter().flat_map(|token| token.to_le_bytes()).collect();
        Context { topic: hash(0, &bytes), tokens: prompt, words: 0, sentences: 0 }
    }

    /// A token was chosen.
    pub fn push(&mut self, token: u32) {
        self.tokens.push(token);
        if token == u32::from(b'.') {
            (self.words, self.sentences) = (0, self.sentences + 1);
        } else {
            self.words += 1;
        }
    }

    /// The last `count` tokens, or all.
    pub fn last(&self, count: usize) -> &[u32] {
        &self.tokens[self.tokens.len().saturating_sub(count)..]
    }
}

impl Model {
    /// A model of so many pieces.
    pub fn new(size: usize) -> Model {
        let vocabulary = Vocabulary::new(size);
        let alone = (0..size as u32)
            .map(|token| match token {
                FIRST_WORD.. if token < vocabulary.end() => -0.75 * log2(token - FIRST_WORD + 2),
                FIRST_WORD.. => LETTER,
                10 | 32..127 => LETTER,
                _ => f32::NEG_INFINITY,
            })
            .collect();
        Model { vocabulary, alone }
    }

    /// Its pieces.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The logits of what may come next; `out` has one for each piece.
    pub fn logits(&self, context: &Context, out: &mut [f32]) {
        out.copy_from_slice(&self.alone);
        for (order, &likelier) in (1..).zip(&ORDERS) {
            let bytes: Vec<u8> =
                context.last(order).iter().flat_map(|token| token.to_le_bytes()).collect();
            self.raise(hash(order as u64, &bytes), likelier, out);
        }
        self.raise(context.topic, TOPIC, out);
        self.raise(context.topic ^ u64::from(context.sentences + 1), TOPIC, out);
        let full_stop = usize::from(b'.');
        let end = self.vocabulary.end() as usize;
        out[full_stop] = if context.words < 4 { LETTER } else { context.words as f32 - 4.0 };
        let is_after = context.words == 0 && context.sentences > 0;
        out[end] = if is_after { 3.0 + 0.5 * context.sentences as f32 } else { LETTER };
    }

    /// Makes some words likelier.
    fn raise(&self, seed: u64, (count, first, last): (usize, f32, f32), out: &mut [f32]) {
        let words = self.vocabulary.end() - FIRST_WORD;
        let octaves = u64::from(words.ilog2() - COMMON_OCTAVES);
        let mut x = seed;
        for place in 0..count {
            // The commonest words as often as each octave of ranks behind them.
            let draw = splitmix64(&mut x);
            let octave = u64::from(COMMON_OCTAVES) + draw % octaves;
            let below = (draw >> 32) & ((1 << octave) - 1);
            let is_common = octave == u64::from(COMMON_OCTAVES);
            let rank = if is_common { below } else { (1 << octave) - 1 + below };
            let token = u64::from(FIRST_WORD) + rank;
            out[token as usize] += first + (last - first) * place as f32 / count as f32;
        }
    }
}

/// log2, straight between the powers of two.
fn log2(n: u32) -> f32 {
    let whole = n.ilog2();
    whole as f32 + n as f32 / (1u32 << whole) as f32 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probabilities(model: &Model, context: &Context) -> Vec<f64> {
        let mut logits = vec![0f32; model.vocabulary().size()];
        model.logits(context, &mut logits);
        let weights: Vec<f64> = logits.iter().map(|&x| f64::from(x).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / sum).collect()
    }

    #[test]
    fn what_came_before_decides_and_a_real_models_peak_is_there() {
        let model = Model::new(32_000);
        let context = |text: &str| Context::new(model.vocabulary().tokenize(text.as_bytes()));
        let (a, b) = (context("tell me of the river"), context("tell me of the city"));
        let (of_a, of_b) = (probabilities(&model, &a), probabilities(&model, &b));
        assert_eq!(of_a, probabilities(&model, &a));
        assert!(of_a != of_b);
        let mut peaks = Vec::new();
        let mut nuclei = Vec::new();
        let mut context = a;
        for step in 0..200u32 {
            let mut sorted = probabilities(&model, &context);
            sorted.sort_by(|a, b| b.total_cmp(a));
            peaks.push(sorted[0]);
            let mut sum = 0.0;
            nuclei.push(
                sorted
                    .iter()
                    .take_while(|p| {
                        sum += **p;
                        sum < 0.9
                    })
                    .count(),
            );
            context.push(FIRST_WORD + step * 37 % 500);
            if step % 9 == 8 {
                context.push(u32::from(b'.'));
            }
        }
        let mean = peaks.iter().sum::<f64>() / 200.0;
        assert!((0.15..0.75).contains(&mean), "the likeliest has {mean}");
        nuclei.sort_unstable();
        assert!((3..200).contains(&nuclei[100]), "0.9 are in {} tokens", nuclei[100]);
    }

    #[test]
    fn an_answer_ends_after_a_sentence() {
        let model = Model::new(32_000);
        let mut context = Context::new(model.vocabulary().tokenize(b"x"));
        let end = model.vocabulary().end() as usize;
        assert!(probabilities(&model, &context)[end] < 1e-5);
        for _ in 0..8 {
            (0..9).for_each(|word| context.push(FIRST_WORD + word));
            assert!(probabilities(&model, &context)[usize::from(b'.')] > 0.02);
            context.push(u32::from(b'.'));
        }
        let likely = probabilities(&model, &context)[end];
        assert!(likely > 0.05, "{likely}");
        assert_eq!(context.last(2), [FIRST_WORD + 8, u32::from(b'.')]);
    }
}
