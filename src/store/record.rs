//! What is known of a blob beside its name: size, and the digests of its parts.

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::Error;
use crate::limits::{PART_BYTES_LEAST, PART_BYTES_MOST, STORE_JSON_BYTES_MAX};

/// How a remote keeps a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// One file: other programs can read it.
    File,
    /// An object for each part.
    Parts,
}

/// A blob's record. Part `n` are the bytes from `n * part_size` on, `part_size` of them or what is
/// left; an empty blob has no parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Version of this format.
    pub schema: u32,
    /// Bytes of the blob.
    pub size: u64,
    /// Bytes of each part but the last.
    pub part_size: u64,
    /// How the blob is kept.
    pub layout: Layout,
    /// SHA-256 of each part.
    pub parts: Vec<Digest>,
}

/// Version of a record's format.
pub const SCHEMA: u32 = 1;

impl Record {
    /// Of a blob, once all its parts are known.
    pub fn new(size: u64, part_size: u64, layout: Layout, parts: Vec<Digest>) -> Record {
        assert_eq!(parts.len() as u64, part_count(size, part_size), "a digest for each part");
        Record { schema: SCHEMA, size, part_size, layout, parts }
    }

    /// Reads one, and checks it.
    ///
    /// # Errors
    /// Which rule it does not keep.
    pub fn parse(bytes: &[u8]) -> Result<Record, String> {
        if bytes.len() > STORE_JSON_BYTES_MAX {
            return Err(format!("it has more than {STORE_JSON_BYTES_MAX} bytes"));
        }
        let record: Record = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        record.check()?;
        Ok(record)
    }

    /// Whether sizes and counts fit each other.
    ///
    /// # Errors
    /// Which rule is not kept.
    pub fn check(&self) -> Result<(), String> {
        if self.schema != SCHEMA {
            return Err(format!("its schema is {}, and {SCHEMA} is known", self.schema));
        }
        check_parts(self.size, self.part_size, self.parts.len())
    }

    /// Its bytes.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record has no keys but strings")
    }

    /// The same, as an error of whoever was asked for it.
    ///
    /// # Errors
    /// Which rule it does not keep.
    pub fn parse_of(digest: &Digest, bytes: &[u8], at: &str) -> Result<Record, Error> {
        Record::parse(bytes).map_err(|why| Error::Refused {
            what: format!("the record of {digest}"),
            at: at.to_owned(),
            why,
        })
    }
}

/// Whether a blob of this size has so many parts.
///
/// # Errors
/// Which rule is not kept.
pub fn check_parts(size: u64, part_size: u64, count: usize) -> Result<(), String> {
    if !(PART_BYTES_LEAST..=PART_BYTES_MOST).contains(&part_size) {
        let range = format!("{PART_BYTES_LEAST} to {PART_BYTES_MOST}");
        return Err(format!("parts of {part_size} bytes, and not {range}"));
    }
    if count as u64 != part_count(size, part_size) {
        return Err(format!("{count} parts of {part_size} bytes do not make {size} bytes"));
    }
    Ok(())
}

/// How many parts a blob has.
pub fn part_count(size: u64, part_size: u64) -> u64 {
    size.div_ceil(part_size)
}

/// Where a part begins, and how many bytes it has.
pub fn part_range(size: u64, part_size: u64, index: u32) -> (u64, usize) {
    let start = u64::from(index) * part_size;
    assert!(start < size, "part {index} of {size} bytes");
    (start, part_size.min(size - start) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_rules() {
        let digest = Digest::of(b"");
        let record = Record::new(100_000, 65_536, Layout::File, vec![digest; 2]);
        assert_eq!(Record::parse(&record.to_json()), Ok(record.clone()));
        let empty = Record::new(0, 65_536, Layout::Parts, vec![]);
        assert_eq!(Record::parse(&empty.to_json()), Ok(empty));
        let bad = [
            Record { schema: 2, ..record.clone() },
            Record { size: u64::MAX, ..record.clone() },
            Record { part_size: 0, ..record.clone() },
            Record { part_size: 1 << 31, ..record.clone() },
            Record { parts: vec![digest], ..record.clone() },
        ];
        for record in bad {
            assert!(Record::parse(&record.to_json()).is_err(), "{record:?}");
        }
        assert!(Record::parse(b"{}").is_err());
        assert!(Record::parse(&vec![b' '; STORE_JSON_BYTES_MAX + 1]).is_err());
        let refused = Record::parse_of(&digest, b"[]", "here").unwrap_err().to_string();
        assert!(refused.contains("the record of e3b0c4"), "{refused}");
    }

    #[test]
    fn ranges() {
        assert_eq!((part_count(0, 4), part_count(8, 4), part_count(9, 4)), (0, 2, 3));
        assert_eq!((part_range(9, 4, 1), part_range(9, 4, 2)), ((4, 4), (8, 1)));
    }
}
