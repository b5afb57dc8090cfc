//! The language model's vocabulary: as many pieces as are asked for, each a byte or a word.
//!
//! ```text
//!   0 .. 256            bytes
//!   256 .. 384          the words of `text`, each with its leading space
//!   384 .. size - 1     made-up words of two and three syllables, with theirs
//!   size - 1            the end; no text
//! ```
//!
//! Every text has tokens, and tokens put together give the text again.

use std::collections::HashMap;
use std::fmt;

use super::text;

/// Least pieces: bytes, words, some made-up ones and the end.
pub const SIZE_MIN: usize = 512;
/// The first word.
pub const FIRST_WORD: u32 = 256;

const CONSONANTS: &[u8] = b"bdfghjklmnprstvwyz";
const VOWELS: &[u8] = b"aeiou";
/// Of a made-up word there are 90 syllables.
const SYLLABLES: usize = CONSONANTS.len() * VOWELS.len();

/// A vocabulary.
pub struct Vocabulary {
    bytes: Vec<u8>,
    /// Where each piece begins, and where the last one ends.
    starts: Vec<u32>,
    words: HashMap<Box<[u8]>, u32>,
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vocabulary({})", self.size())
    }
}

impl Vocabulary {
    /// `size` pieces, `SIZE_MIN` or more.
    ///
    /// # Panics
    /// Fewer.
    pub fn new(size: usize) -> Vocabulary {
        assert!(size >= SIZE_MIN, "a vocabulary has its bytes and its words");
        let (mut bytes, mut starts, mut words) = (Vec::new(), Vec::new(), HashMap::new());
        let mut push = |piece: &[u8]| {
            starts.push(bytes.len() as u32);
            bytes.extend_from_slice(piece);
            starts.len() as u32 - 1
        };
        (0..=u8::MAX).for_each(|byte| {
            push(&[byte]);
        });
        for token in FIRST_WORD..text::VOCABULARY {
            let mut piece = Vec::new();
            text::detokenize(token, &mut piece);
            push(&piece);
            words.insert(piece.into_boxed_slice(), token);
        }
        let mut number = 0;
        let mut token = text::VOCABULARY;
        while (token as usize) < size - 1 {
            let piece = made_up(number);
            number += 1;
            // Some of them are words of English.
            if !words.contains_key(&*piece) {
                token = push(&piece) + 1;
                words.insert(piece, token - 1);
            }
        }
        starts.extend([bytes.len() as u32; 2]);
        Vocabulary { bytes, starts, words }
    }

    /// How many pieces there are.
    pub fn size(&self) -> usize {
        self.starts.len() - 1
    }

    /// The token that ends an answer.
    pub fn end(&self) -> u32 {
        self.size() as u32 - 1
    }

    /// A token's text.
    pub fn piece(&self, token: u32) -> Option<&[u8]> {
        let end = *self.starts.get(token as usize + 1)?;
        Some(&self.bytes[self.starts[token as usize] as usize..end as usize])
    }

    /// The tokens of a text.
    pub fn tokenize(&self, mut text: &[u8]) -> Vec<u32> {
        let mut tokens = Vec::new();
        while !text.is_empty() {
            let (token, len) = self.next(text);
            tokens.push(token);
            text = &text[len..];
        }
        tokens
    }

    fn next(&self, text: &[u8]) -> (u32, usize) {
        if text[0] == b' ' {
            let word = text[1..].iter().position(|byte| !byte.is_ascii_lowercase());
            let len = word.map_or(text.len(), |word| word + 1);
            if let Some(&token) = self.words.get(&text[..len]) {
                return (token, len);
            }
        }
        (u32::from(text[0]), 1)
    }
}

/// Two syllables while there are such words, then three.
fn made_up(number: usize) -> Box<[u8]> {
    let two = SYLLABLES * SYLLABLES;
    let (mut rest, count) = if number < two { (number, 2) } else { (number - two, 3) };
    let mut piece = vec![b' '];
    for _ in 0..count {
        let syllable = rest % SYLLABLES;
        rest /= SYLLABLES;
        piece.push(CONSONANTS[syllable / VOWELS.len()]);
        piece.push(VOWELS[syllable % VOWELS.len()]);
    }
    piece.into_boxed_slice()
}

const _: () = assert!(SYLLABLES * SYLLABLES * SYLLABLES > 1 << 18);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_all_different_and_give_the_text_again() {
        for size in [SIZE_MIN, 32_000, 1 << 18] {
            let vocabulary = Vocabulary::new(size);
            assert_eq!(vocabulary.size(), size);
            let mut pieces: Vec<&[u8]> =
                (0..size as u32).map(|token| vocabulary.piece(token).unwrap()).collect();
            assert_eq!(pieces[size - 1], b"");
            pieces.sort_unstable();
            assert!(pieces.windows(2).all(|pair| pair[0] != pair[1]));
            assert_eq!(vocabulary.piece(size as u32), None);
            for text in ["", " the time of baba", "Über  x.\n", " babababax the"] {
                let tokens = vocabulary.tokenize(text.as_bytes());
                let back: Vec<u8> = tokens
                    .iter()
                    .flat_map(|&token| vocabulary.piece(token).unwrap().to_vec())
                    .collect();
                assert_eq!(back, text.as_bytes());
            }
            assert_eq!(vocabulary.tokenize(b" the time").len(), 2);
        }
    }
}
