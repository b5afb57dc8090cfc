//! The .npy format, version 1.0 (numpy.org/doc/stable/reference/generated/numpy.lib.format.html),
//! as far as a matrix of small numbers needs it.
//!
//! ```text
//!   \x93NUMPY | 1 | 0 | length u16 | {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }
//! ```
//!
//! What is written takes 128 bytes whatever its shape, so that the number of rows can be put in
//! afterwards. What is read is believed in nothing: each member must be there once and be one that
//! fits, and a shape is bounded before anything is multiplied.

use std::fmt;

use super::embedding::DIMS_MAX;

/// Bytes of a header as it is written.
pub const HEADER_BYTES: usize = 128;
/// Bytes of a header that is read: version 1.0 has no more.
pub const HEADER_BYTES_MAX: usize = 10 + u16::MAX as usize;
const MAGIC: &[u8; 8] = b"\x93NUMPY\x01\x00";

/// What a matrix is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// `<f4`.
    F32,
    /// `|i1`.
    I8,
    /// `|u1`.
    U8,
}

impl Type {
    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        if self == Type::F32 { 4 } else { 1 }
    }

    fn name(self) -> &'static str {
        match self {
            Type::F32 => "<f4",
            Type::I8 => "|i1",
            Type::U8 => "|u1",
        }
    }
}

/// A matrix' type and shape; a vector is a matrix of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is made of.
    pub value: Type,
    /// Its rows.
    pub rows: u64,
    /// Values of a row.
    pub columns: usize,
}

/// Why a file is no matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// It begins as no .npy file does.
    Magic,
    /// Another version of the format.
    Version(u8, u8),
    /// The header does not read as one; what was expected where.
    Header(String),
    /// Values of a type that is not read.
    Type(String),
    /// Columns first.
    Fortran,
    /// Not one or two dimensions.
    Dimensions(usize),
    /// Wider than any embedding.
    Columns(u64),
    /// More rows than can be addressed.
    Rows(u64),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Magic => write!(f, "it is no .npy file"),
            Error::Version(major, minor) => {
                write!(
                    f,
                    "it is .npy version {major}.{minor}, and 1.0 is read: save it with numpy.save"
                )
            }
            Error::Header(expected) => write!(f, "its .npy header is damaged: {expected}"),
            Error::Type(name) => write!(
                f,
                "its values are {name:?}, and '<f4', '|i1' and '|u1' are read: \
                 use .astype(numpy.float32)"
            ),
            Error::Fortran => {
                write!(f, "its columns come first: use numpy.ascontiguousarray before numpy.save")
            }
            Error::Dimensions(count) => {
                write!(f, "it has {count} dimensions, and a matrix has two (a vector one)")
            }
            Error::Columns(columns) => {
                write!(f, "its rows have {columns} values, and 1 to {DIMS_MAX} are read")
            }
            Error::Rows(rows) => write!(f, "its {rows} rows are more than a file can hold"),
        }
    }
}

impl std::error::Error for Error {}

impl Header {
    /// Bytes of the values.
    pub fn data_bytes(&self) -> u64 {
        self.rows * (self.columns * self.value.bytes()) as u64
    }

    /// The header as it stands at the front of a file.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let dict = format!(
            "{{'descr': '{}', 'fortran_order': False, 'shape': ({}, {}), }}",
            self.value.name(),
            self.rows,
            self.columns
        );
        let mut bytes = [b' '; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&(HEADER_BYTES as u16 - 10).to_le_bytes());
        bytes[10..10 + dict.len()].copy_from_slice(dict.as_bytes());
        bytes[HEADER_BYTES - 1] = b'\n';
        bytes
    }

    /// Reads a header, and how many bytes it takes; None: more bytes, please.
    ///
    /// # Errors
    /// It is none that can be read here.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Header, usize)>, Error> {
        let magic = bytes.len().min(6);
        if bytes[..magic] != MAGIC[..magic] {
            return Err(Error::Magic);
        }
        let &[_, _, _, _, _, _, major, minor, low, high, ref rest @ ..] = bytes else {
            return Ok(None);
        };
        if (major, minor) != (1, 0) {
            return Err(Error::Version(major, minor));
        }
        let length = usize::from(u16::from_le_bytes([low, high]));
        let Some(text) = rest.get(..length) else { return Ok(None) };
        let text = std::str::from_utf8(text);
        let text = text.map_err(|_| Error::Header("it is not ASCII".to_owned()))?;
        Ok(Some((dict(text)?, 10 + length)))
    }
}

/// `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`, its members in any order.
fn dict(text: &str) -> Result<Header, Error> {
    let mut reader = Reader { rest: text };
    let (mut value, mut fortran, mut shape) = (None, None, None);
    reader.expect("{")?;
    while !reader.take("}") {
        let name = reader.quoted()?;
        reader.expect(":")?;
        let again = match name {
            "descr" => value.replace(reader.value_type()?).is_some(),
            "fortran_order" => fortran.replace(reader.boolean()?).is_some(),
            "shape" => shape.replace(reader.tuple()?).is_some(),
            other => return Err(Error::Header(format!("{other:?} is no member of it"))),
        };
        if again {
            return Err(Error::Header(format!("{name:?} stands twice")));
        }
        if !reader.take(",") {
            reader.expect("}")?;
            break;
        }
    }
    if !reader.rest.trim_ascii().is_empty() {
        return Err(Error::Header("something stands behind it".to_owned()));
    }
    let missing = |name: &str| Error::Header(format!("{name:?} is missing"));
    let value = value.ok_or_else(|| missing("descr"))?;
    if fortran.ok_or_else(|| missing("fortran_order"))? {
        return Err(Error::Fortran);
    }
    let (rows, columns) = match *shape.ok_or_else(|| missing("shape"))?.as_slice() {
        [columns] => (1, columns),
        [rows, columns] => (rows, columns),
        ref other => return Err(Error::Dimensions(other.len())),
    };
    let narrow = usize::try_from(columns).ok().filter(|&columns| (1..=DIMS_MAX).contains(&columns));
    let columns = narrow.ok_or(Error::Columns(columns))?;
    let row_bytes = (columns * value.bytes()) as u64;
    if rows.checked_mul(row_bytes).is_none_or(|bytes| bytes > i64::MAX as u64 / 2) {
        return Err(Error::Rows(rows));
    }
    Ok(Header { value, rows, columns })
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn take(&mut self, what: &str) -> bool {
        self.rest = self.rest.trim_ascii_start();
        match self.rest.strip_prefix(what) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, what: &str) -> Result<(), Error> {
        if self.take(what) { Ok(()) } else { Err(Error::Header(format!("{what} is missing"))) }
    }

    fn quoted(&mut self) -> Result<&'a str, Error> {
        let quote = if self.take("'") {
            '\''
        } else {
            self.expect("\"")?;
            '"'
        };
        let end = self.rest.find(quote);
        let end = end.ok_or_else(|| Error::Header("a quote is missing".to_owned()))?;
        let text = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Ok(text)
    }

    fn value_type(&mut self) -> Result<Type, Error> {
        if !self.rest.trim_ascii_start().starts_with(['\'', '"']) {
            return Err(Error::Type("a record".to_owned()));
        }
        let name = self.quoted()?;
        let known = [Type::F32, Type::I8, Type::U8].into_iter().find(|t| t.name() == name);
        known.ok_or_else(|| Error::Type(name.to_owned()))
    }

    fn boolean(&mut self) -> Result<bool, Error> {
        if self.take("True") {
            return Ok(true);
        }
        self.expect("False").map(|()| false)
    }

    /// At most three numbers: a fourth is one too many already.
    fn tuple(&mut self) -> Result<Vec<u64>, Error> {
        let mut numbers = Vec::new();
        self.expect("(")?;
        while !self.take(")") {
            self.rest = self.rest.trim_ascii_start();
            let digits = self.rest.bytes().take_while(u8::is_ascii_digit).count();
            let number = self.rest[..digits].parse();
            let number = number.map_err(|_| Error::Header("the shape is no number".to_owned()))?;
            self.rest = &self.rest[digits..];
            numbers.push(number);
            if numbers.len() > 3 {
                return Err(Error::Dimensions(numbers.len()));
            }
            if !self.take(",") {
                self.expect(")")?;
                break;
            }
        }
        Ok(numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(text: &str) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&(text.len() as u16).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
        bytes
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(rows in 0u64..1 << 40, columns in 1..=DIMS_MAX, kind in 0..3) {
            let value = [Type::F32, Type::I8, Type::U8][kind as usize];
            let header = Header { value, rows, columns };
            let bytes = header.encode();
            prop_assert_eq!(Header::decode(&bytes), Ok(Some((header, HEADER_BYTES))));
            for end in 0..HEADER_BYTES {
                prop_assert_eq!(Header::decode(&bytes[..end]), Ok(None));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(text in "[{}(),: 'a-z0-9<|\"FalseTrue]{0,80}", cut: u8) {
            let mut bytes = whole(&text);
            let _ = Header::decode(&bytes);
            bytes.truncate(usize::from(cut));
            let _ = Header::decode(&bytes);
        }
    }

    #[test]
    fn what_numpy_writes_and_what_it_does_not() {
        let good = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }   \n";
        let header = Header { value: Type::F32, rows: 3, columns: 4 };
        assert_eq!(Header::decode(&whole(good)), Ok(Some((header, 10 + good.len()))));
        let vector = "{\"shape\":(7,),\"descr\":\"|u1\",\"fortran_order\":False}";
        let header = Header { value: Type::U8, rows: 1, columns: 7 };
        assert_eq!(Header::decode(&whole(vector)), Ok(Some((header, 10 + vector.len()))));
        for (from, to, says) in [
            ("<f4", "<f8", "\"<f8\""),
            ("'<f4'", "[('a', '<f4')]", "a record"),
            ("False", "True", "ascontiguousarray"),
            ("False", "0", "False is missing"),
            ("(3, 4)", "(3, 4, 5)", "3 dimensions"),
            ("(3, 4)", "(1, 2, 3, 4, 5)", "4 dimensions"),
            ("(3, 4)", "()", "0 dimensions"),
            ("(3, 4)", "(3, 0)", "0 values"),
            ("(3, 4)", "(3, 65537)", "65537 values"),
            ("(3, 4)", "(9223372036854775807, 4)", "9223372036854775807 rows"),
            ("(3, 4)", "(99999999999999999999, 4)", "no number"),
            ("(3, 4)", "(-3, 4)", "no number"),
            ("'shape'", "'descr'", "a quote|stands twice|no member|is missing|a record"),
            ("'shape': (3, 4), ", "", "\"shape\" is missing"),
            ("'descr'", "'desc'", "\"desc\" is no member"),
            ("}", "} x", "something stands behind"),
            ("}", "", "' is missing|quote"),
        ] {
            let error = Header::decode(&whole(&good.replace(from, to))).unwrap_err().to_string();
            assert!(says.split('|').any(|says| error.contains(says)) || from == "}", "{error}");
        }
        assert_eq!(Header::decode(b"PK"), Err(Error::Magic));
        assert_eq!(Header::decode(b"\x93NUMPY\x02\x00\x00\x00"), Err(Error::Version(2, 0)));
        assert!(Error::Magic.to_string().contains("no .npy"));
        assert!(Error::Version(2, 0).to_string().contains("2.0"));
    }
}
