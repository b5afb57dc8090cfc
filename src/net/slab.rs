//! Slots that are reused, named by tokens that are not: a token of what is gone finds nothing.

/// Names one value of one kind: `kind: 4 bits | generation: 36 bits | index: 24 bits`.
///
/// The generation counts insertions, so that an event, a timer or a message that outlived its
/// subject is recognised: it would take 2^36 insertions between the two to confuse them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

const INDEX_BITS: u32 = 24;
const GENERATION_BITS: u32 = 36;

impl Token {
    /// A token of a thing of which there is only one, such as a listener.
    pub const fn single(kind: u8) -> Token {
        Token((kind as u64) << (INDEX_BITS + GENERATION_BITS))
    }

    fn new(kind: u8, generation: u64, index: usize) -> Token {
        debug_assert!(kind < 16 && index < 1 << INDEX_BITS);
        Token(Token::single(kind).0 | (generation << INDEX_BITS) | index as u64)
    }

    /// What the slab that made it holds.
    pub fn kind(self) -> u8 {
        (self.0 >> (INDEX_BITS + GENERATION_BITS)) as u8
    }

    fn index(self) -> usize {
        (self.0 & ((1 << INDEX_BITS) - 1)) as usize
    }
}

/// Values by token. Slots are reused last in, first out, and given back once most of them stand
/// empty.
#[derive(Debug)]
pub struct Slab<T> {
    kind: u8,
    generation: u64,
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Entry<T> {
    token: Token,
    value: Option<T>,
}

/// Fewer slots than this are not worth giving back.
const SHRINK_MIN: usize = 256;

impl<T> Slab<T> {
    /// An empty slab whose tokens are of `kind` (under 16).
    pub fn new(kind: u8) -> Slab<T> {
        assert!(kind < 16);
        Slab { kind, generation: 0, entries: Vec::new(), free: Vec::new() }
    }

    /// Puts in what `make` builds of the token that it will have.
    pub fn insert_with(&mut self, make: impl FnOnce(Token) -> T) -> Token {
        self.generation = (self.generation + 1) & ((1 << GENERATION_BITS) - 1);
        let index = match self.free.pop() {
            Some(index) => index as usize,
            None => {
                assert!(self.entries.len() < 1 << INDEX_BITS, "a slab holds 2^24 values at most");
                self.entries.push(Entry { token: Token::single(self.kind), value: None });
                self.entries.len() - 1
            }
        };
        let token = Token::new(self.kind, self.generation, index);
        self.entries[index] = Entry { token, value: Some(make(token)) };
        token
    }

    /// Puts a value in.
    pub fn insert(&mut self, value: T) -> Token {
        self.insert_with(|_| value)
    }

    /// The value of `token`, if it is still there.
    pub fn get(&self, token: Token) -> Option<&T> {
        let entry = self.entries.get(token.index())?;
        if entry.token == token { entry.value.as_ref() } else { None }
    }

    /// The value of `token`, if it is still there.
    pub fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let entry = self.entries.get_mut(token.index())?;
        if entry.token == token { entry.value.as_mut() } else { None }
    }

    /// Takes the value of `token` out.
    pub fn remove(&mut self, token: Token) -> Option<T> {
        let entry = self.entries.get_mut(token.index())?;
        if entry.token != token {
            return None;
        }
        let value = entry.value.take()?;
        self.free.push(token.index() as u32);
        if self.entries.len() >= SHRINK_MIN && self.len() < self.entries.len() / 4 {
            self.shrink();
        }
        Some(value)
    }

    /// How many values are in.
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Whether no value is in.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tokens of all values, in the order of their slots.
    pub fn tokens(&self) -> Vec<Token> {
        self.entries.iter().filter(|e| e.value.is_some()).map(|e| e.token).collect()
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().filter_map(|entry| entry.value.as_ref())
    }

    /// Drops the empty slots at the end, and the memory behind them.
    fn shrink(&mut self) {
        while self.entries.last().is_some_and(|entry| entry.value.is_none()) {
            self.entries.pop();
        }
        let len = self.entries.len();
        self.free.retain(|&index| (index as usize) < len);
        if self.entries.capacity() > 4 * len.max(SHRINK_MIN / 4) {
            self.entries.shrink_to(2 * len);
            self.free.shrink_to(2 * len);
        }
    }

    /// Holds after every call.
    #[cfg(test)]
    fn invariants(&self) {
        let vacant = self.entries.iter().filter(|entry| entry.value.is_none()).count();
        assert_eq!(vacant, self.free.len());
        assert!(self.free.iter().all(|&i| self.entries[i as usize].value.is_none()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prng::Prng;
    use std::collections::HashMap;

    #[test]
    fn a_stale_token_finds_nothing() {
        let mut slab = Slab::new(3);
        let first = slab.insert("a");
        assert_eq!((first.kind(), slab.get(first)), (3, Some(&"a")));
        assert_eq!(slab.remove(first), Some("a"));
        let second = slab.insert("b");
        assert_eq!(second.index(), first.index());
        assert_eq!((slab.get(first), slab.get(second)), (None, Some(&"b")));
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.len(), 1);
    }

    #[test]
    fn behaves_like_a_map_and_shrinks() {
        let mut prng = Prng::new(7);
        let (mut slab, mut model) = (Slab::new(1), HashMap::new());
        for step in 0..20_000u64 {
            let growing = (step / 4_000) % 2 == 0;
            if prng.below(10) < if growing { 7 } else { 3 } {
                let token = slab.insert(step);
                assert!(model.insert(token, step).is_none());
            } else if let Some(&token) = model.keys().next() {
                assert_eq!(slab.remove(token), model.remove(&token));
            }
            assert_eq!(slab.len(), model.len());
        }
        slab.invariants();
        for token in slab.tokens() {
            assert_eq!(slab.remove(token), model.remove(&token));
        }
        slab.invariants();
        assert!(model.is_empty() && slab.is_empty() && slab.entries.capacity() <= SHRINK_MIN);
    }
}
