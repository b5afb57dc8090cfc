//! One sequence of tokens: where they come from, and what ends them.

use super::sampler::{self, Drawn, Probabilities};
use super::text::{Generator, TOKEN_BYTES_MAX, count_tokens, next_token};
use crate::wire::frame::FinishReason;

/// Where tokens come from.
#[derive(Debug)]
pub enum Source {
    /// The generator.
    Generated(Generator),
    /// The language model.
    Model(sampler::Sequence),
    /// The prompt, from `at` on.
    Echo {
        /// The prompt.
        text: Box<str>,
        /// How much of it was given back.
        at: usize,
    },
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its source ended.
    Source,
    /// The stop word of this number.
    Word(usize),
    /// Its tokens were used up.
    Limit,
}

impl End {
    /// As the protocols have it.
    pub fn reason(self) -> FinishReason {
        match self {
            End::Source | End::Word(_) => FinishReason::Stop,
            End::Limit => FinishReason::Length,
        }
    }

    /// As llama-server has it.
    pub fn stop_type(self) -> &'static str {
        match self {
            End::Source => "eos",
            End::Word(_) => "word",
            End::Limit => "limit",
        }
    }
}

/// A sequence.
#[derive(Debug)]
pub struct Sequence {
    source: Source,
    stop: Vec<String>,
    /// Text that may be the start of a stop word.
    held: String,
    tokens: u32,
    tokens_max: u32,
    ended: Option<End>,
    /// Of the tokens of the last step, where they were asked for.
    probabilities: Vec<Probabilities>,
    /// Why no token could be drawn.
    refused: Option<String>,
}

impl Source {
    /// Gives `text` back.
    pub fn echo(text: &str) -> Source {
        Source::Echo { text: text.into(), at: 0 }
    }

    /// Appends the text of the next tokens, whole characters, at most `budget` bytes but one token
    /// at least; how many tokens they are, 0 at the end.
    fn next(&mut self, out: &mut String, budget: usize, tokens_max: u32) -> u32 {
        let before = out.len();
        let mut tokens = 0;
        match self {
            Source::Model(_) => unreachable!("its tokens come one by one"),
            Source::Generated(generator) => {
                while tokens < tokens_max
                    && (tokens == 0 || out.len() + TOKEN_BYTES_MAX <= before + budget)
                {
                    generator.next(out);
                    tokens += 1;
                }
            }
            Source::Echo { text, at } => {
                let rest = &text[*at..];
                if rest.len() <= budget && tokens_max as usize >= rest.len() {
                    // All that is left at once: no text has more tokens than bytes.
                    out.push_str(rest);
                    *at = text.len();
                    return count_tokens(rest.as_bytes());
                }
                let mut end = 0;
                while end < rest.len() && tokens < tokens_max {
                    let mut next = end + next_token(&rest.as_bytes()[end..]).1;
                    let mut count = 1;
                    while !rest.is_char_boundary(next) {
                        next += 1;
                        count += 1;
                    }
                    if next > budget && end > 0 {
                        break;
                    }
                    end = next;
                    tokens += count;
                }
                out.push_str(&rest[..end]);
                *at += end;
            }
        }
        tokens
    }

    fn is_at_end(&self) -> bool {
        match self {
            Source::Generated(_) => false,
            Source::Model(sequence) => sequence.ended,
            Source::Echo { text, at } => *at == text.len(),
        }
    }
}

impl Sequence {
    /// At most `tokens_max` tokens of `source`, up to a stop word.
    pub fn new(source: Source, tokens_max: u32, stop: Vec<String>) -> Sequence {
        let mut ended = source.is_at_end().then_some(End::Source);
        if tokens_max == 0 {
            ended = Some(End::Limit);
        }
        let (held, probabilities) = (String::new(), Vec::new());
        let (tokens, refused) = (0, None);
        Sequence { source, stop, held, tokens, tokens_max, ended, probabilities, refused }
    }

    /// The text of the next tokens, and how many they are: one, or those of about `budget` bytes.
    pub fn next(&mut self, budget: usize) -> (String, u32) {
        let mut text = std::mem::take(&mut self.held);
        // With stop words each token must be looked at: what follows one was never generated.
        let budget = if self.stop.is_empty() { budget } else { 1 };
        let left = self.tokens_max - self.tokens;
        let tokens = match &mut self.source {
            Source::Model(sequence) => match sequence.draw() {
                Ok(Drawn { token, text: piece, probabilities }) => {
                    text.push_str(&piece);
                    self.probabilities.extend(probabilities.filter(|_| token.is_some()));
                    u32::from(token.is_some())
                }
                Err(refusal) => {
                    self.refused = Some(refusal.to_string());
                    0
                }
            },
            source => source.next(&mut text, budget, left),
        };
        self.tokens = self.tokens.saturating_add(tokens);
        if self.source.is_at_end() {
            self.ended = Some(End::Source);
        } else if self.tokens >= self.tokens_max {
            self.ended = Some(End::Limit);
        }
        if let Some((at, word)) = self.first_stop(&text) {
            text.truncate(at);
            self.ended = Some(End::Word(word));
        } else if self.ended.is_none() {
            let keep = self.stop_begins_at(&text);
            self.held = text.split_off(keep);
        }
        if self.ended.is_some() && self.is_model() {
            // Its place among the model's rows is free for another.
            self.source = Source::echo("");
        }
        (text, tokens)
    }

    /// Whether its tokens are drawn one by one, with those of other requests.
    pub fn is_model(&self) -> bool {
        matches!(self.source, Source::Model(_))
    }

    /// The probabilities of what `next` told, where they were asked for.
    pub fn take_probabilities(&mut self) -> Vec<Probabilities> {
        std::mem::take(&mut self.probabilities)
    }

    /// Why no token could be drawn, if so.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// Why it ended, if it has.
    pub fn ended(&self) -> Option<End> {
        self.ended
    }

    /// How many tokens it had so far.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// The stop word of a number.
    pub fn stop_word(&self, word: usize) -> &str {
        self.stop.get(word).map_or("", String::as_str)
    }

    fn first_stop(&self, text: &str) -> Option<(usize, usize)> {
        let found = |(i, word): (usize, &String)| text.find(word.as_str()).map(|at| (at, i));
        self.stop.iter().enumerate().filter_map(found).min()
    }

    /// Where the longest end of `text` begins that a stop word may go on from.
    fn stop_begins_at(&self, text: &str) -> usize {
        let may_begin = |at: usize| self.stop.iter().any(|word| word.starts_with(&text[at..]));
        let starts = text.char_indices().map(|(at, _)| at);
        starts.into_iter().find(|&at| may_begin(at)).unwrap_or(text.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(mut sequence: Sequence, budget: usize) -> (String, u32, End) {
        let mut all = String::new();
        loop {
            let (text, _) = sequence.next(budget);
            all.push_str(&text);
            if let Some(end) = sequence.ended() {
                return (all, sequence.tokens(), end);
            }
        }
    }

    #[test]
    fn what_ends_a_sequence() {
        let echo = |max, stop: &[&str], budget| {
            let stop = stop.iter().map(|&s| s.to_owned()).collect();
            run(Sequence::new(Source::echo(" the time of dayübel"), max, stop), budget)
        };
        for budget in [1, 7, 1000] {
            assert_eq!(echo(99, &[], budget), (" the time of dayübel".to_owned(), 9, End::Source));
            let (text, tokens, end) = echo(2, &[], budget);
            assert_eq!((text.as_str(), tokens, end), (" the time", 2, End::Limit));
            let (text, _, end) = echo(99, &["zz", "e of"], budget);
            assert_eq!((text.as_str(), end), (" the tim", End::Word(1)));
            assert_eq!(echo(99, &["bels"], budget).0, " the time of dayübel");
        }
        assert_eq!(Sequence::new(Source::echo(""), 5, vec![]).ended(), Some(End::Source));
    }
}
