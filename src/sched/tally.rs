//! What was counted while tasks ran: by a worker, a rank, or the whole job, which is the sum of
//! its parts.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::message::Reader;
use crate::metrics::Durations;

/// Kinds of errors that are told apart; more than a person reads, fewer than a server can invent.
const ERROR_KINDS_MAX: usize = 64;
/// Bytes of an error's text; what follows them is what the server had to say about this one.
const ERROR_BYTES_MAX: usize = 160;
/// What the rest of the kinds are called together.
const ERROR_REST: &str = "other";

/// Counts of a worker, a rank, or the job.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Tasks that ended well.
    pub ok: u64,
    /// Tasks that failed, with all their tries.
    pub failed: u64,
    /// Tries beyond the first.
    pub retries: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Tokens of answers.
    pub completion_tokens: u64,
    /// Time that slots were held, in microseconds.
    pub busy_us: u64,
    /// The longest time that one task held its slot.
    pub longest_us: u64,
    /// Handed to the executor to first sent; of tasks that ended well, as are the next two.
    pub queue: Durations,
    /// First sent to first text.
    pub ttft: Durations,
    /// First sent to end.
    pub latency: Durations,
    /// Tasks that failed, by what they said.
    pub errors: BTreeMap<String, u64>,
    /// By server.
    pub servers: BTreeMap<String, ServerTally>,
}

/// What one server did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerTally {
    /// Tasks that ended well there.
    pub ok: u64,
    /// Tasks that failed, and were there last.
    pub failed: u64,
    /// Tokens of answers.
    pub completion_tokens: u64,
    /// Time that its slots were held, in microseconds.
    pub busy_us: u64,
}

/// A task that ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample<'a> {
    /// Whether well.
    pub ok: bool,
    /// How long it waited to be sent.
    pub queue_us: u64,
    /// How long its first text took, if it had one.
    pub ttft_us: Option<u64>,
    /// How long it took, from when it was first sent.
    pub latency_us: u64,
    /// How long it held a slot, all tries together.
    pub busy_us: u64,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// Tries beyond the first.
    pub retries: u32,
    /// Why it failed.
    pub error: Option<&'a str>,
    /// Where it ran last; empty: nowhere.
    pub server: &'a str,
}

impl Tally {
    /// Counts a task that ended. Does not allocate for what it has seen the like of.
    pub fn record(&mut self, sample: &Sample<'_>) {
        let (ok, failed) = (u64::from(sample.ok), u64::from(!sample.ok));
        let tokens = u64::from(sample.completion_tokens);
        self.ok += ok;
        self.failed += failed;
        self.retries += u64::from(sample.retries);
        self.prompt_tokens += u64::from(sample.prompt_tokens);
        self.completion_tokens += tokens;
        self.busy_us = self.busy_us.saturating_add(sample.busy_us);
        self.longest_us = self.longest_us.max(sample.busy_us);
        // The quick end of a refused request is no latency that anyone waited for an answer.
        if sample.ok {
            self.queue.record(sample.queue_us);
            self.latency.record(sample.latency_us);
            if let Some(ttft_us) = sample.ttft_us {
                self.ttft.record(ttft_us);
            }
        } else {
            self.count_error(sample.error.unwrap_or("unknown"), 1);
        }
        if !sample.server.is_empty() {
            let server =
                ServerTally { ok, failed, completion_tokens: tokens, busy_us: sample.busy_us };
            self.add_server(sample.server, &server);
        }
    }

    /// Adds what another counted.
    pub fn merge(&mut self, other: &Tally) {
        for (mine, theirs) in self.counts_mut().into_iter().zip(other.counts()) {
            *mine = mine.saturating_add(theirs);
        }
        self.longest_us = self.longest_us.max(other.longest_us);
        self.queue.merge(&other.queue);
        self.ttft.merge(&other.ttft);
        self.latency.merge(&other.latency);
        other.errors.iter().for_each(|(kind, count)| self.count_error(kind, *count));
        other.servers.iter().for_each(|(name, server)| self.add_server(name, server));
    }

    /// What was counted since the last call.
    pub fn take(&mut self) -> Tally {
        std::mem::take(self)
    }

    /// Tasks that ended.
    pub fn ended(&self) -> u64 {
        self.ok.saturating_add(self.failed)
    }

    /// Appends its bytes: numbers little-endian, lists with their count ahead, texts and
    /// histograms with their length.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.counts().iter().for_each(|count| out.extend(count.to_le_bytes()));
        out.extend(self.longest_us.to_le_bytes());
        for durations in [&self.queue, &self.ttft, &self.latency] {
            let at = out.len();
            out.extend([0; 4]);
            durations.encode(out);
            let bytes = length(out.len() - at - 4);
            out[at..at + 4].copy_from_slice(&bytes);
        }
        out.extend(length(self.errors.len()));
        for (kind, count) in &self.errors {
            encode_text(out, kind);
            out.extend(count.to_le_bytes());
        }
        out.extend(length(self.servers.len()));
        for (name, server) in &self.servers {
            encode_text(out, name);
            for count in [server.ok, server.failed, server.completion_tokens, server.busy_us] {
                out.extend(count.to_le_bytes());
            }
        }
    }

    /// From all of its bytes; None: they are none of a tally.
    pub fn decode(bytes: &[u8]) -> Option<Tally> {
        let mut reader = Reader(bytes);
        let tally = Tally::read(&mut reader)?;
        reader.0.is_empty().then_some(tally)
    }

    /// Off the front of a reader.
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Tally> {
        let mut tally = Tally::default();
        for count in tally.counts_mut() {
            *count = reader.u64()?;
        }
        tally.longest_us = reader.u64()?;
        for durations in [&mut tally.queue, &mut tally.ttft, &mut tally.latency] {
            let bytes = reader.u32()?;
            *durations = Durations::decode(reader.take(bytes as usize)?)?;
        }
        for _ in 0..reader.u32()? {
            let kind = read_text(reader)?;
            tally.count_error(kind, reader.u64()?);
        }
        for _ in 0..reader.u32()? {
            let name = read_text(reader)?;
            let (ok, failed) = (reader.u64()?, reader.u64()?);
            let (completion_tokens, busy_us) = (reader.u64()?, reader.u64()?);
            tally.add_server(name, &ServerTally { ok, failed, completion_tokens, busy_us });
        }
        Some(tally)
    }

    /// What adds up.
    fn counts(&self) -> [u64; 6] {
        let tokens = [self.prompt_tokens, self.completion_tokens];
        [self.ok, self.failed, self.retries, tokens[0], tokens[1], self.busy_us]
    }

    fn counts_mut(&mut self) -> [&mut u64; 6] {
        [
            &mut self.ok,
            &mut self.failed,
            &mut self.retries,
            &mut self.prompt_tokens,
            &mut self.completion_tokens,
            &mut self.busy_us,
        ]
    }

    fn count_error(&mut self, text: &str, count: u64) {
        let kind = &text[..text.floor_char_boundary(ERROR_BYTES_MAX)];
        let known = self.errors.contains_key(kind);
        // One place is kept for the rest.
        let full = self.errors.len() >= ERROR_KINDS_MAX - 1;
        let kind = if known || !full { kind } else { ERROR_REST };
        match self.errors.get_mut(kind) {
            Some(counted) => *counted = counted.saturating_add(count),
            None => {
                self.errors.insert(kind.to_owned(), count);
            }
        }
    }

    fn add_server(&mut self, name: &str, more: &ServerTally) {
        if let Some(server) = self.servers.get_mut(name) {
            server.add(more);
        } else if let Entry::Vacant(entry) = self.servers.entry(name.to_owned()) {
            entry.insert(*more);
        }
    }
}

impl ServerTally {
    fn add(&mut self, more: &ServerTally) {
        self.ok = self.ok.saturating_add(more.ok);
        self.failed = self.failed.saturating_add(more.failed);
        self.completion_tokens = self.completion_tokens.saturating_add(more.completion_tokens);
        self.busy_us = self.busy_us.saturating_add(more.busy_us);
    }
}

fn length(count: usize) -> [u8; 4] {
    u32::try_from(count).expect("a tally is far below 4 GiB").to_le_bytes()
}

/// Appends a text with its length ahead.
pub(super) fn encode_text(out: &mut Vec<u8>, text: &str) {
    out.extend(length(text.len()));
    out.extend(text.as_bytes());
}

/// A text with its length ahead.
pub(super) fn read_text<'a>(reader: &mut Reader<'a>) -> Option<&'a str> {
    let bytes = reader.u32()?;
    std::str::from_utf8(reader.take(bytes as usize)?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample<'a>(n: u64, error: Option<&'a str>, server: &'a str) -> Sample<'a> {
        Sample {
            ok: error.is_none(),
            queue_us: n,
            ttft_us: n.is_multiple_of(2).then_some(10 * n),
            latency_us: 100 * n,
            busy_us: 90 * n,
            prompt_tokens: 3,
            completion_tokens: 5,
            retries: u32::from(n.is_multiple_of(3)),
            error,
            server,
        }
    }

    fn some() -> Tally {
        let mut tally = Tally::default();
        for n in 1..=20 {
            let error = (n % 10 == 0).then_some("HTTP 500: no memory");
            tally.record(&sample(n, error, if n < 5 { "a:1" } else { "b:2" }));
        }
        tally
    }

    fn bytes(tally: &Tally) -> Vec<u8> {
        let mut bytes = Vec::new();
        tally.encode(&mut bytes);
        bytes
    }

    #[test]
    fn counts() {
        let tally = some();
        assert_eq!((tally.ok, tally.failed, tally.ended(), tally.retries), (18, 2, 20, 6));
        assert_eq!((tally.prompt_tokens, tally.completion_tokens), (60, 100));
        assert_eq!((tally.busy_us, tally.longest_us), (210 * 90, 20 * 90));
        let durations = [&tally.queue, &tally.ttft, &tally.latency].map(Durations::count);
        assert_eq!(durations, [18, 8, 18]);
        assert_eq!(tally.errors["HTTP 500: no memory"], 2);
        let a = ServerTally { ok: 4, failed: 0, completion_tokens: 20, busy_us: 900 };
        assert_eq!(tally.servers["a:1"], a);
        assert_eq!((tally.servers["b:2"].ok, tally.servers["b:2"].failed), (14, 2));
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        let (mut whole, mut worker) = (Tally::default(), Tally::default());
        for n in 1..=20 {
            let error = (n % 10 == 0).then_some("HTTP 500: no memory");
            worker.record(&sample(n, error, if n < 5 { "a:1" } else { "b:2" }));
            if n % 7 == 0 {
                whole.merge(&worker.take());
            }
        }
        whole.merge(&worker.take());
        assert_eq!(worker, Tally::default());
        assert_eq!(whole, some());
    }

    #[test]
    fn errors_are_bounded_in_number_and_length() {
        let mut tally = Tally::default();
        for n in 0..200 {
            tally.record(&sample(1, Some(&format!("{n} {}", "ü".repeat(200))), ""));
        }
        tally.record(&sample(1, None, ""));
        assert_eq!(tally.errors.len(), ERROR_KINDS_MAX);
        assert_eq!(tally.errors[ERROR_REST], 200 - ERROR_KINDS_MAX as u64 + 1);
        assert!(tally.errors.keys().all(|kind| kind.len() <= ERROR_BYTES_MAX));
        assert!(tally.servers.is_empty());
        let mut twice = tally.clone();
        twice.merge(&tally);
        assert_eq!(twice.errors.values().sum::<u64>(), 400);
        assert_eq!(Tally::decode(&bytes(&tally)), Some(tally));
    }

    #[test]
    fn a_cut_or_longer_one_is_none() {
        for tally in [Tally::default(), some()] {
            let mut bytes = bytes(&tally);
            (0..bytes.len()).for_each(|n| assert_eq!(Tally::decode(&bytes[..n]), None, "{n}"));
            assert_eq!(Tally::decode(&bytes), Some(tally));
            bytes.push(0);
            assert_eq!(Tally::decode(&bytes), None);
        }
    }

    proptest! {
        #[test]
        fn fuzz_decode(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Tally::decode(&noise);
        }

        #[test]
        fn fuzz_merge_of_damaged(at in 0_usize..1_000, byte in any::<u8>()) {
            let mut bytes = bytes(&some());
            let at = at % bytes.len();
            bytes[at] = byte;
            // What decodes can be added, however large its numbers are.
            if let Some(damaged) = Tally::decode(&bytes) {
                let mut sum = damaged.clone();
                sum.merge(&damaged);
                sum.merge(&some());
            }
        }
    }
}
