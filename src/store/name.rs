//! Names of models and tags, and what a user may call a model by.

use std::fmt;
use std::str::FromStr;

use super::digest::Digest;
use super::error::Error;
use crate::limits::STORE_NAME_BYTES_MAX;

/// A model's name and its tag: `gemma-2-2b:Q4_K_M`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag {
    name: String,
    tag: String,
}

/// The tag that is meant where none is given.
pub const TAG_DEFAULT: &str = "latest";

impl Tag {
    /// # Errors
    /// One of them has a character or a length that no name has.
    pub fn new(name: &str, tag: &str) -> Result<Tag, Error> {
        check(name)?;
        check(tag)?;
        Ok(Tag { name: name.to_owned(), tag: tag.to_owned() })
    }

    /// The model's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tag alone.
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl FromStr for Tag {
    type Err = Error;

    fn from_str(text: &str) -> Result<Tag, Error> {
        let (name, tag) = text.split_once(':').unwrap_or((text, TAG_DEFAULT));
        Tag::new(name, tag)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.tag)
    }
}

/// Whether a text can stand as one segment of a path and of a URL, on every remote: letters,
/// digits,
/// `.`, `_` and `-`, with no dot in front.
///
/// # Errors
/// Why it cannot.
pub fn check(text: &str) -> Result<(), Error> {
    let fault = |why| Err(Error::Name { text: text.to_owned(), why });
    let fine = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    if text.is_empty() || text.starts_with('.') {
        fault("a name is not empty and does not begin with a dot")
    } else if text.len() > STORE_NAME_BYTES_MAX {
        fault("a name has at most 200 characters")
    } else if !text.bytes().all(fine) {
        fault("a name has letters, digits, '.', '_' and '-' only")
    } else {
        Ok(())
    }
}

/// A text that can be a name, from one that need not: other characters become `-`.
pub fn clean(text: &str) -> String {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let clean: String = text.chars().map(|c| if fine(c) { c } else { '-' }).collect();
    let clean = clean.trim_matches(|c| matches!(c, '.' | '-'));
    let clean = &clean[..clean.len().min(STORE_NAME_BYTES_MAX)];
    if clean.is_empty() { "model".to_owned() } else { clean.to_owned() }
}

/// What a user calls a model or a blob by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// `name:tag`, or a name alone.
    Tag(Tag),
    /// All 64 digits of a blob's or a manifest's SHA-256.
    Digest(Digest),
    /// The first of them, at least 6; also a name alone, if no digest begins so.
    Prefix(String),
}

/// The fewest digits that are taken for the beginning of a digest.
pub const PREFIX_MIN: usize = 6;

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference, Error> {
        let bare = text.strip_prefix("sha256:").unwrap_or(text);
        let digits = bare.to_ascii_lowercase();
        let is_hex = digits.bytes().all(|c| c.is_ascii_hexdigit());
        if let Ok(digest) = digits.parse() {
            return Ok(Reference::Digest(digest));
        }
        if is_hex && (PREFIX_MIN..64).contains(&digits.len()) {
            return Ok(Reference::Prefix(digits));
        }
        if bare.len() != text.len() {
            let why = "sha256: is followed by 6 to 64 hexadecimal digits";
            return Err(Error::Name { text: text.to_owned(), why });
        }
        text.parse().map(Reference::Tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let digest = Digest::of(b"x");
        let hex = digest.to_string();
        let tag = |name, tag| Ok(Reference::Tag(Tag::new(name, tag).unwrap()));
        let table = [
            (hex.clone(), Ok(Reference::Digest(digest))),
            (format!("sha256:{}", hex.to_uppercase()), Ok(Reference::Digest(digest))),
            (hex[..6].to_owned(), Ok(Reference::Prefix(hex[..6].to_owned()))),
            ("abc".to_owned(), tag("abc", "latest")),
            ("gemma-2.b:Q4_K_M".to_owned(), tag("gemma-2.b", "Q4_K_M")),
        ];
        for (text, wanted) in table {
            assert_eq!(text.parse::<Reference>().map_err(|e| e.to_string()), wanted);
        }
        let long = "x".repeat(201);
        for text in ["", ":", "a:", ".a", "a/b", "..", "a b", "sha256:xyz", "ä", "a:b:c", &long] {
            assert!(matches!(text.parse::<Reference>(), Err(Error::Name { .. })), "{text}");
        }
    }

    #[test]
    fn clean_gives_names() {
        for text in ["", "...", "a b/c", ".hidden", "größe", &"x".repeat(300), "ok-1.0_B"] {
            assert!(check(&clean(text)).is_ok(), "{text}");
        }
        assert_eq!(clean("ok-1.0_B"), "ok-1.0_B");
        assert_eq!(clean("a b"), "a-b");
    }
}
