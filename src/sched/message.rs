//! What ranks say to one another, and its bytes.
//!
//! A message is a kind (1 byte) and its members in the order in which they stand below, all
//! little-endian; lists have their count ahead (u32). Ranks of a job are one version of one
//! program, so the form carries no version.

use super::queue::Gift;
use super::tasks::{Rank, Size, Span, Task};

/// Which rank has the most that waits, as far as the sender knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct More {
    /// It; maybe the sender itself.
    pub rank: Rank,
    /// About how many tasks wait there.
    pub count: u64,
}

/// A message between two ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A rank that runs short asks for work; answered by exactly one `Give`.
    Ask {
        /// Slots of it that stand idle.
        free: u32,
        /// Microseconds of work that wait with it.
        queued_us: u64,
        /// It cannot read the input: tasks must come with their rows, and no spans.
        bodies: bool,
    },
    /// A rank whose asking found nothing leaves word.
    Hunger {
        /// As in `Ask`; 0: the word that was left is to be forgotten.
        free: u32,
        /// As in `Ask`.
        bodies: bool,
    },
    /// Work, or, as an answer only, none.
    Give {
        /// It answers an `Ask`; else a `Hunger`.
        answer: bool,
        /// The work.
        gift: Gift,
        /// Where more is to be had.
        more: Option<More>,
    },
    /// The mass that is done in the sender's part of the tree.
    Done {
        /// Deaths that the sender has seen.
        epoch: u32,
        /// Bytes or numbers.
        mass: u64,
    },
    /// All is done.
    Stop,
    /// The job is to end early.
    Halt {
        /// At once; else what runs may end.
        now: bool,
        /// Why, for a person.
        reason: String,
    },
    /// After a death: a part of what the sender has done and holds.
    Held {
        /// Deaths that the sender has seen.
        epoch: u32,
        /// It is the last part.
        last: bool,
        /// What is done, as spans of where rows begin.
        done: Vec<Span>,
        /// What waits or runs with the sender.
        held: Vec<Span>,
    },
    /// What the job's own parts say to one another: start, progress, reports.
    Job(Vec<u8>),
}

impl Message {
    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Message::Ask { free, queued_us, bodies } => {
                out.push(1);
                out.extend(free.to_le_bytes());
                out.extend(queued_us.to_le_bytes());
                out.push(u8::from(*bodies));
            }
            Message::Hunger { free, bodies } => {
                out.push(2);
                out.extend(free.to_le_bytes());
                out.push(u8::from(*bodies));
            }
            Message::Give { answer, gift, more } => {
                out.push(3);
                out.push(u8::from(*answer));
                out.push(u8::from(more.is_some()));
                if let Some(More { rank, count }) = more {
                    out.extend(rank.0.to_le_bytes());
                    out.extend(count.to_le_bytes());
                }
                encode_spans(out, &gift.spans);
                out.extend(count(gift.tasks.len()));
                gift.tasks.iter().for_each(|task| encode_task(out, task));
            }
            Message::Done { epoch, mass } => {
                out.push(4);
                out.extend(epoch.to_le_bytes());
                out.extend(mass.to_le_bytes());
            }
            Message::Stop => out.push(5),
            Message::Halt { now, reason } => {
                out.push(6);
                out.push(u8::from(*now));
                out.extend(reason.as_bytes());
            }
            Message::Held { epoch, last, done, held } => {
                out.push(7);
                out.extend(epoch.to_le_bytes());
                out.push(u8::from(*last));
                encode_spans(out, done);
                encode_spans(out, held);
            }
            Message::Job(bytes) => {
                out.push(8);
                out.extend(bytes);
            }
        }
    }

    /// From all of its bytes; None: they are none of a message.
    pub fn decode(bytes: &[u8]) -> Option<Message> {
        let mut reader = Reader(bytes);
        let message = match reader.u8()? {
            1 => {
                let (free, queued_us) = (reader.u32()?, reader.u64()?);
                Message::Ask { free, queued_us, bodies: reader.bool()? }
            }
            2 => Message::Hunger { free: reader.u32()?, bodies: reader.bool()? },
            3 => {
                let answer = reader.bool()?;
                let more = match reader.bool()? {
                    true => Some(More { rank: Rank(reader.u32()?), count: reader.u64()? }),
                    false => None,
                };
                let spans = reader.spans()?;
                let tasks = (0..reader.u32()?).map(|_| reader.task()).collect::<Option<_>>()?;
                Message::Give { answer, gift: Gift { tasks, spans }, more }
            }
            4 => Message::Done { epoch: reader.u32()?, mass: reader.u64()? },
            5 => Message::Stop,
            6 => {
                let now = reader.bool()?;
                let reason = String::from_utf8(reader.rest().to_vec()).ok()?;
                Message::Halt { now, reason }
            }
            7 => {
                let (epoch, last) = (reader.u32()?, reader.bool()?);
                Message::Held { epoch, last, done: reader.spans()?, held: reader.spans()? }
            }
            8 => Message::Job(reader.rest().to_vec()),
            _ => return None,
        };
        reader.0.is_empty().then_some(message)
    }
}

fn count(len: usize) -> [u8; 4] {
    u32::try_from(len).expect("lists in messages are short").to_le_bytes()
}

fn encode_spans(out: &mut Vec<u8>, spans: &[Span]) {
    out.extend(count(spans.len()));
    for Span { start, end, stride } in spans {
        out.extend(start.to_le_bytes());
        out.extend(end.to_le_bytes());
        out.extend(stride.to_le_bytes());
    }
}

fn encode_task(out: &mut Vec<u8>, task: &Task) {
    out.extend(task.at.to_le_bytes());
    for number in [task.mass, task.cost_us, task.size.prompt, task.size.tokens] {
        out.extend(number.to_le_bytes());
    }
    out.extend(task.size.class.to_le_bytes());
    out.push(u8::from(task.body.is_some()));
    if let Some(body) = &task.body {
        out.extend(count(body.len()));
        out.extend(body.iter());
    }
}

/// Takes numbers off the front of bytes that another rank sent; None: they end too early.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn bool(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn spans(&mut self) -> Option<Vec<Span>> {
        let span = |reader: &mut Reader<'_>| {
            Some(Span { start: reader.u64()?, end: reader.u64()?, stride: reader.u32()? })
        };
        (0..self.u32()?).map(|_| span(self)).collect()
    }

    fn task(&mut self) -> Option<Task> {
        let (at, mass, cost_us) = (self.u64()?, self.u32()?, self.u32()?);
        let (prompt, tokens, class) = (self.u32()?, self.u32()?, self.u16()?);
        let body = match self.bool()? {
            true => {
                let len = self.u32()?;
                Some(self.take(len as usize)?.into())
            }
            false => None,
        };
        Some(Task { at, mass, cost_us, size: Size { prompt, tokens, class }, body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_comes_back_and_none_is_made_of_less() {
        let task = Task {
            at: 1 << 40,
            mass: 7,
            cost_us: 9,
            size: Size { prompt: 1, tokens: 2, class: 3 },
            body: Some(b"row\n"[..].into()),
        };
        let spans = vec![Span::bytes(1, 5), Span { start: 2, end: 9, stride: 4 }];
        let gift = Gift { tasks: vec![task.clone(), Task { body: None, ..task }], spans };
        let messages = [
            Message::Ask { free: 3, queued_us: 1 << 33, bodies: true },
            Message::Hunger { free: 1, bodies: false },
            Message::Give { answer: true, gift: gift.clone(), more: None },
            Message::Give {
                answer: false,
                gift: Gift::default(),
                more: Some(More { rank: Rank(4), count: 1 << 35 }),
            },
            Message::Done { epoch: 2, mass: u64::MAX },
            Message::Stop,
            Message::Halt { now: true, reason: "disk full".to_owned() },
            Message::Held { epoch: 1, last: true, done: gift.spans.clone(), held: vec![] },
            Message::Job(vec![1, 2, 3]),
        ];
        for message in messages {
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            assert_eq!(Message::decode(&bytes), Some(message.clone()));
            let free_length = matches!(message, Message::Halt { .. } | Message::Job(_));
            if !free_length {
                (0..bytes.len()).for_each(|n| assert_eq!(Message::decode(&bytes[..n]), None));
                bytes.push(0);
                assert_eq!(Message::decode(&bytes), None);
            }
        }
    }
}
