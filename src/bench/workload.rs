//! What is asked: prompts that are given, read from files, or made up.
//!
//! A made-up prompt depends on the seed and on its number alone, so that every core of a generator
//! makes the same one without asking another. By default each begins with a line of its own, so
//! that a server's prefix cache finds nothing; a shared prefix must be asked for.

use serde_json::{Value, json};

use super::arrival::Arrival;
use crate::prng::{self, Prng};
use crate::wire::message::{Infer, Input};

/// How many tokens a prompt or an answer has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// Always so many.
    Fixed(u32),
    /// From the first to the second, each as likely.
    Uniform(u32, u32),
    /// Normal with this mean and deviation, 1 at least.
    Normal(f64, f64),
    /// Log-normal with this mean, and this deviation of the logarithm.
    LogNormal(f64, f64),
}

/// The most tokens that a length may name: a prompt of a million is the largest context there is.
const LENGTH_MAX: u32 = 1 << 20;

impl Length {
    /// `64`, `uniform:32,128`, `normal:512,64`, `lognormal:200,0.6`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Length, String> {
        let wrong = || {
            "not a length such as 64, uniform:32,128, normal:512,64 or lognormal:200,0.6".to_owned()
        };
        let Some((kind, parameters)) = text.split_once(':') else {
            let fixed = text.parse().ok().filter(|n| (1..=LENGTH_MAX).contains(n));
            return fixed.map(Length::Fixed).ok_or_else(wrong);
        };
        let (a, b) = parameters.split_once(',').ok_or_else(wrong)?;
        let a: f64 = a.trim().parse().map_err(|_| wrong())?;
        let b: f64 = b.trim().parse().map_err(|_| wrong())?;
        if !(1.0..=f64::from(LENGTH_MAX)).contains(&a)
            || !(0.0..=f64::from(LENGTH_MAX)).contains(&b)
        {
            return Err(wrong());
        }
        match kind {
            "uniform" if a <= b => Ok(Length::Uniform(a as u32, b as u32)),
            "normal" => Ok(Length::Normal(a, b)),
            "lognormal" if b <= 4.0 => Ok(Length::LogNormal(a, b)),
            _ => Err(wrong()),
        }
    }

    /// One length.
    pub fn draw(self, prng: &mut Prng) -> u32 {
        let tokens = match self {
            Length::Fixed(tokens) => return tokens,
            Length::Uniform(low, high) => {
                return low + prng.below(u64::from(high - low) + 1) as u32;
            }
            Length::Normal(mean, deviation) => mean + deviation * prng.normal(),
            Length::LogNormal(mean, sigma) => {
                mean * (sigma * prng.normal() - sigma * sigma / 2.0).exp()
            }
        };
        tokens.round().clamp(1.0, f64::from(LENGTH_MAX)) as u32
    }
}

/// Prompts that are made up.
#[derive(Clone, Debug)]
pub struct Synthetic {
    /// What they depend on.
    pub seed: u64,
    /// Told apart from other runs with the same seed, so that a server which still holds that run's
    /// prompts in its cache finds none of these.
    pub salt: u64,
    /// Words of a prompt, shared ones included. A word is about a token; what the server counts
    /// is what is reported.
    pub input: Length,
    /// Tokens of an answer at most.
    pub output: Option<Length>,
    /// Words that all prompts begin with.
    pub shared: u32,
}

/// A request of a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Item {
    /// What the user says, turn by turn; one is a single request.
    pub turns: Vec<String>,
    /// All of a chat at once, as a JSON array; then there are no turns.
    pub messages: Option<String>,
    /// Tokens of the answer at most.
    pub output: Option<u32>,
}

/// Where prompts come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// From a list, in turn.
    Items(Vec<Item>),
    /// Made up.
    Synthetic(Synthetic),
}

/// What is asked of a server, request by request.
#[derive(Clone, Debug)]
pub struct Workload<'p> {
    /// Options that all requests have.
    pub options: Infer<'p>,
    /// Where prompts come from.
    pub source: Source,
    /// Each is asked as a chat's message.
    pub chat: bool,
    /// Requests of a session, each of which carries what was said before.
    pub turns: u32,
    /// Lengths by number, from a trace.
    pub lengths: Vec<Arrival>,
    /// Prompts in one request, as a list over llama-server's own API; 0: one, by itself.
    pub batch: u32,
}

/// The text of one request.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// The prompt; with `chat` the JSON array of messages.
    pub text: String,
    /// It is a chat.
    pub chat: bool,
    /// Tokens of the answer at most, where the workload says.
    pub output: Option<u32>,
    /// The text is the body of a call of llama-server's own API, which asks a list of prompts.
    pub call: bool,
}

impl<'p> Workload<'p> {
    /// The given requests in turn, all with `options`.
    pub fn listed(options: Infer<'p>, prompts: Vec<String>, chat: bool) -> Workload<'p> {
        let item = |prompt| Item { turns: vec![prompt], ..Item::default() };
        let source = Source::Items(prompts.into_iter().map(item).collect());
        Workload { options, source, chat, turns: 1, lengths: Vec::new(), batch: 0 }
    }

    /// How many different requests there are; None: each is another.
    pub fn distinct(&self) -> Option<usize> {
        match &self.source {
            Source::Items(items) if self.turns <= 1 && self.batch == 0 => Some(items.len()),
            _ => None,
        }
    }

    /// What the user says in request `number`, which is turn `number % turns` of its session, and
    /// the tokens of the answer at most where the workload says.
    pub fn turn(&self, number: u64) -> (String, Option<u32>) {
        let turns = u64::from(self.turns.max(1));
        let (session, turn) = (number / turns, (number % turns) as usize);
        match &self.source {
            Source::Items(items) => {
                let item = &items[(session % items.len() as u64) as usize];
                let text = item.turns.get(turn % item.turns.len().max(1));
                (text.cloned().unwrap_or_default(), item.output)
            }
            Source::Synthetic(synthetic) => {
                let given = self.lengths.get(number as usize % self.lengths.len().max(1));
                synthetic.make(number, turn == 0, given)
            }
        }
    }

    /// Request `number`; `said` is what was said in its session before: user, answer, user, …
    pub fn ask(&self, number: u64, said: &[String]) -> Ask {
        if self.batch > 0 {
            return self.ask_list(number);
        }
        if let Source::Items(items) = &self.source
            && let item = &items[(number % items.len() as u64) as usize]
            && let Some(messages) = &item.messages
        {
            return Ask { text: messages.clone(), chat: true, output: item.output, call: false };
        }
        let (text, output) = self.turn(number);
        if !self.chat && self.turns <= 1 {
            return Ask { text, chat: false, output, call: false };
        }
        // Written out, and not built as values: this is done for each request while others wait.
        let mut messages = String::with_capacity(text.len() + 64);
        for (index, text) in said.iter().chain([&text]).enumerate() {
            messages.push(if index == 0 { '[' } else { ',' });
            let role = if index.is_multiple_of(2) { "user" } else { "assistant" };
            messages.extend(["{\"role\":\"", role, "\",\"content\":"]);
            messages += &serde_json::to_string(text).expect("a text is JSON");
            messages.push('}');
        }
        messages.push(']');
        Ask { text: messages, chat: true, output, call: false }
    }

    fn ask_list(&self, number: u64) -> Ask {
        let batch = u64::from(self.batch);
        let turns = (number * batch..(number + 1) * batch).map(|number| self.turn(number));
        let (prompts, outputs): (Vec<String>, Vec<Option<u32>>) = turns.unzip();
        let output = outputs.into_iter().flatten().max().or(self.options.max_tokens);
        let mut body = match self.options.extra.map(serde_json::from_str) {
            Some(Ok(Value::Object(extra))) => extra,
            _ => serde_json::Map::new(),
        };
        body.insert("prompt".to_owned(), json!(prompts));
        body.insert("n_predict".to_owned(), json!(output));
        body.insert("stream".to_owned(), true.into());
        if let Some(temperature) = self.options.temperature {
            body.insert("temperature".to_owned(), json!(temperature));
        }
        Ask { text: Value::Object(body).to_string(), chat: false, output, call: true }
    }

    /// The request that an `ask` makes.
    pub fn infer<'a>(&'a self, ask: &'a Ask) -> Infer<'a> {
        let mut infer: Infer<'a> = self.options.clone();
        let text = ask.text.as_str();
        if ask.call {
            let body = text.as_bytes();
            return Infer::new(Input::Api { method: "POST", path: "/completion", body });
        }
        infer.input = if ask.chat { Input::Messages(text) } else { Input::Prompt(text) };
        infer.max_tokens = ask.output.or(infer.max_tokens);
        infer
    }
}

impl Synthetic {
    fn make(&self, number: u64, first: bool, given: Option<&Arrival>) -> (String, Option<u32>) {
        // Lengths depend on the seed alone, so that a run can be had again; texts on the salt too.
        let mut lengths = Prng::new(prng::hash(self.seed, &number.to_le_bytes()));
        let input =
            given.and_then(|line| line.input).unwrap_or_else(|| self.input.draw(&mut lengths));
        let output = self.output.map(|output| output.draw(&mut lengths));
        let output = given.and_then(|line| line.output).or(output);
        let mut text = String::with_capacity(input as usize * 6 + 16);
        let shared = if first { self.shared.min(input) } else { 0 };
        words(&mut Prng::new(self.seed), shared, &mut text);
        let mut own = Prng::new(prng::hash(self.seed ^ self.salt, &number.to_le_bytes()));
        if input > shared {
            // Five letters that no other request of the run has here.
            let mark = own.next_u64();
            if shared > 0 {
                text.push(' ');
            }
            for shift in 0..5 {
                text.push(char::from(b'a' + (mark >> (8 * shift)) as u8 % 26));
            }
            words(&mut own, input - shared - 1, &mut text);
        }
        (text, output.map(|tokens| tokens.max(1)))
    }
}

fn words(prng: &mut Prng, count: u32, out: &mut String) {
    for _ in 0..count {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(WORDS[prng.below(WORDS.len() as u64) as usize]);
    }
}

/// Common English words, most of them one token in common vocabularies. Prose of real words, and
/// not random letters, so that speculative decoding and tokenizers meet what they are made for.
const WORDS: [&str; 96] = [
    "the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "are", "as", "with",
    "his", "they", "at", "be", "this", "from", "have", "or", "by", "one", "had", "not", "but",
    "what", "all", "were", "when", "we", "there", "can", "an", "your", "which", "their", "said",
    "if", "do", "will", "each", "about", "how", "up", "out", "them", "then", "she", "many", "some",
    "so", "these", "would", "other", "into", "has", "more", "her", "two", "like", "him", "see",
    "time", "could", "no", "make", "than", "first", "been", "its", "who", "now", "people", "my",
    "made", "over", "did", "down", "only", "way", "find", "use", "may", "water", "long", "little",
    "very", "after", "words", "called", "just", "where", "most", "know",
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn synthetic(input: Length, shared: u32) -> Workload<'static> {
        let source = Source::Synthetic(Synthetic {
            seed: 3,
            salt: 9,
            input,
            output: Some(Length::Uniform(4, 8)),
            shared,
        });
        let options = Infer::new(Input::Prompt(""));
        Workload { options, source, chat: false, turns: 1, lengths: Vec::new(), batch: 0 }
    }

    #[test]
    fn lengths_are_what_they_say() {
        for (text, length) in [
            ("64", Length::Fixed(64)),
            ("uniform:32,128", Length::Uniform(32, 128)),
            ("normal:512,64", Length::Normal(512.0, 64.0)),
            ("lognormal:200,0.6", Length::LogNormal(200.0, 0.6)),
        ] {
            assert_eq!(Length::parse(text), Ok(length));
            let mut prng = Prng::new(1);
            let sum: u64 = (0..20_000).map(|_| u64::from(length.draw(&mut prng))).sum();
            let mean = match length {
                Length::Fixed(n) => f64::from(n),
                Length::Uniform(a, b) => f64::from(a + b) / 2.0,
                Length::Normal(mean, _) | Length::LogNormal(mean, _) => mean,
            };
            assert!((sum as f64 / 20_000.0 / mean - 1.0).abs() < 0.03, "{text}: {sum}");
        }
        for text in
            ["", "0", "-1", "uniform:5", "uniform:9,3", "zipf:1,2", "lognormal:5,9", "9999999"]
        {
            assert!(Length::parse(text).unwrap_err().starts_with("not a length"), "{text}");
        }
    }

    #[test]
    fn prompts_have_beginnings_of_their_own_unless_shared() {
        let workload = synthetic(Length::Fixed(20), 0);
        let texts: Vec<String> = (0..500).map(|number| workload.turn(number).0).collect();
        assert!(texts.iter().all(|text| text.split(' ').count() == 20), "{}", texts[0]);
        let heads: HashSet<&str> = texts.iter().map(|text| &text[..5]).collect();
        assert_eq!(heads.len(), 500);
        assert_eq!(workload.turn(77), workload.turn(77));
        let shared = synthetic(Length::Fixed(20), 12);
        let head = |number| shared.turn(number).0.split(' ').take(12).collect::<Vec<_>>().join(" ");
        assert_eq!(head(1), head(2));
        assert_ne!(shared.turn(1).0, shared.turn(2).0);
        let outputs: Vec<u32> = (0..50).filter_map(|number| workload.turn(number).1).collect();
        assert!(outputs.len() == 50 && outputs.iter().all(|n| (4..=8).contains(n)));
    }

    #[test]
    fn sessions_carry_what_was_said() {
        let item = Item { turns: vec!["a".into(), "b".into()], ..Item::default() };
        let mut workload = synthetic(Length::Fixed(1), 0);
        workload.source = Source::Items(vec![item]);
        workload.turns = 2;
        let ask = workload.ask(3, &["a".to_owned(), "x".to_owned()]);
        assert!(ask.chat && ask.output.is_none());
        assert_eq!(
            ask.text,
            r#"[{"role":"user","content":"a"},{"role":"assistant","content":"x"},{"role":"user","content":"b"}]"#
        );
        assert_eq!(workload.distinct(), None);
        assert_eq!(workload.infer(&ask).input, Input::Messages(&ask.text));
    }

    #[test]
    fn a_batch_is_a_list_of_different_prompts() {
        let mut workload = synthetic(Length::Fixed(3), 0);
        workload.batch = 4;
        let (first, second) = (workload.ask(0, &[]), workload.ask(1, &[]));
        let body: Value = serde_json::from_str(&first.text).unwrap();
        assert_eq!((body["prompt"].as_array().unwrap().len(), &body["stream"]), (4, &json!(true)));
        assert!((4..=8).contains(&body["n_predict"].as_u64().unwrap()));
        assert_ne!(first.text, second.text);
        let infer = workload.infer(&first);
        assert!(matches!(infer.input, Input::Api { path: "/completion", .. }));
    }

    #[test]
    fn a_trace_says_how_long() {
        let mut workload = synthetic(Length::Fixed(9), 0);
        let at = std::time::Duration::ZERO;
        workload.lengths = vec![Arrival { at, input: Some(3), output: Some(77) }];
        let (text, output) = workload.turn(0);
        assert_eq!((text.split(' ').count(), output), (3, Some(77)));
    }
}
