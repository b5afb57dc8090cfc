//! The built-in backend's language: a small vocabulary, a tokenizer, and a generator of endless
//! plausible text.
//!
//! A token is a byte (its number is the byte's value) or a word with its leading space (256 and
//! up), so that every text has tokens, and tokens put together give the text again.

use crate::prng;

/// The words, sorted, so that they can be searched.
const WORDS: [&str; 128] = [
    "a", "about", "above", "after", "again", "air", "all", "also", "an", "and", "answer", "are",
    "as", "at", "be", "because", "been", "before", "began", "being", "best", "between", "both",
    "but", "by", "call", "came", "can", "city", "close", "cold", "come", "could", "day", "did",
    "do", "down", "each", "early", "earth", "end", "even", "every", "far", "few", "find", "first",
    "for", "found", "from", "gave", "give", "go", "good", "great", "had", "hand", "has", "have",
    "he", "her", "high", "his", "home", "how", "idea", "if", "in", "into", "is", "it", "just",
    "keep", "kind", "know", "land", "last", "left", "life", "light", "like", "line", "little",
    "long", "made", "make", "many", "may", "more", "most", "much", "must", "name", "near", "new",
    "next", "night", "no", "not", "now", "of", "old", "on", "one", "only", "or", "other", "our",
    "out", "over", "own", "part", "place", "point", "right", "river", "said", "same", "sea", "see",
    "the", "their", "they", "time", "to", "water", "way", "world",
];

/// The first number of a word's token.
const FIRST_WORD: u32 = 256;
/// How many tokens there are.
pub const VOCABULARY: u32 = FIRST_WORD + WORDS.len() as u32;

/// Bytes of the longest token.
pub const TOKEN_BYTES_MAX: usize = 8;

/// The token at the start of `text`, and its length in bytes. `text` is not empty.
pub fn next_token(text: &[u8]) -> (u32, usize) {
    if text[0] == b' ' {
        let word = &text[1..];
        let len = word.iter().position(|b| !b.is_ascii_lowercase()).unwrap_or(word.len());
        if let Ok(index) = WORDS.binary_search_by(|w| w.as_bytes().cmp(&word[..len])) {
            return (FIRST_WORD + index as u32, len + 1);
        }
    }
    (u32::from(text[0]), 1)
}

/// The tokens of a text.
pub fn tokenize(mut text: &[u8]) -> Vec<u32> {
    let mut tokens = Vec::new();
    while !text.is_empty() {
        let (token, len) = next_token(text);
        tokens.push(token);
        text = &text[len..];
    }
    tokens
}

/// How many tokens a text has.
pub fn count_tokens(mut text: &[u8]) -> u32 {
    let mut count = 0;
    while !text.is_empty() {
        text = &text[next_token(text).1..];
        count += 1;
    }
    count
}

/// Appends a token's bytes; false: there is no such token.
pub fn detokenize(token: u32, out: &mut Vec<u8>) -> bool {
    match u8::try_from(token) {
        Ok(byte) => out.push(byte),
        Err(_) => match WORDS.get((token - FIRST_WORD) as usize) {
            Some(word) => {
                out.push(b' ');
                out.extend_from_slice(word.as_bytes());
            }
            None => return false,
        },
    }
    true
}

/// Text without end: the next token depends on the seed, the prompt and the two tokens before.
#[derive(Clone, Debug)]
pub struct Generator {
    state: u64,
    /// The last two tokens, the later in the low half.
    context: u64,
    words_in_sentence: u32,
}

impl Generator {
    /// The text that continues `prompt` under `seed`.
    pub fn new(seed: u64, prompt: &[u8]) -> Generator {
        Generator { state: prng::hash(seed, prompt), context: 0, words_in_sentence: 0 }
    }

    /// Appends the next token's text.
    pub fn next(&mut self, out: &mut String) {
        let mut x = self.state ^ self.context;
        let draw = prng::splitmix64(&mut x);
        self.state = x;
        // Sentences of 5 to 16 words.
        let ends = self.words_in_sentence >= 5
            && (draw >> 32) % 12 <= u64::from(self.words_in_sentence) - 5;
        let token = if ends {
            self.words_in_sentence = 0;
            out.push('.');
            u64::from(b'.')
        } else {
            self.words_in_sentence += 1;
            let index = (draw % WORDS.len() as u64) as usize;
            out.push(' ');
            out.push_str(WORDS[index]);
            u64::from(FIRST_WORD) + index as u64
        };
        self.context = self.context << 32 | token;
    }
}

/// A vector for a text: every pair of neighbouring tokens moves it, so that texts with much in
/// common are near each other. Of unit length, unless the text is empty.
pub fn embed(text: &[u8], dimensions: usize) -> Vec<f32> {
    let mut vector = vec![0f32; dimensions];
    let tokens = tokenize(text);
    for (i, token) in tokens.iter().enumerate() {
        let before = if i == 0 { u32::MAX } else { tokens[i - 1] };
        for (seed, key) in [(1, [0, *token]), (2, [before, *token])] {
            let mut x = prng::hash(seed, &[key[0].to_le_bytes(), key[1].to_le_bytes()].concat());
            for value in &mut vector {
                *value += (prng::splitmix64(&mut x) >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
            }
        }
    }
    let length = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|value| *value /= length);
    }
    vector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_sorted() {
        assert!(WORDS.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(WORDS.iter().all(|word| word.len() < TOKEN_BYTES_MAX));
    }

    #[test]
    fn tokens_give_the_text_again() {
        for text in ["", " the time of", "The way.  to  go\n", " über 漢", " timeless a"] {
            let tokens = tokenize(text.as_bytes());
            assert_eq!(tokens.len() as u32, count_tokens(text.as_bytes()));
            let mut bytes = Vec::new();
            assert!(tokens.iter().all(|&token| detokenize(token, &mut bytes)));
            assert_eq!(bytes, text.as_bytes());
        }
        assert_eq!(tokenize(b" the time").len(), 2);
        assert!(!detokenize(VOCABULARY, &mut Vec::new()));
    }

    #[test]
    fn the_same_seed_and_prompt_give_the_same_text() {
        let text = |seed, prompt: &str| {
            let (mut generator, mut out) = (Generator::new(seed, prompt.as_bytes()), String::new());
            (0..200).for_each(|_| generator.next(&mut out));
            out
        };
        assert_eq!(text(1, "a"), text(1, "a"));
        assert!(text(1, "a") != text(2, "a") && text(1, "a") != text(1, "b"));
        assert_eq!(count_tokens(text(1, "a").as_bytes()), 200);
        assert!(text(1, "a").matches('.').count() > 10);
    }

    #[test]
    fn near_texts_have_near_vectors() {
        let dot = |a: &str, b: &str| -> f32 {
            let (a, b) = (embed(a.as_bytes(), 64), embed(b.as_bytes(), 64));
            a.iter().zip(&b).map(|(x, y)| x * y).sum()
        };
        let text = " the time of day is near";
        assert!((dot(text, text) - 1.0).abs() < 1e-5);
        assert!(
            dot(text, " the time of night is near") > dot(text, " old water from every city") + 0.2
        );
        assert_eq!(dot("", "x"), 0.0);
    }
}
