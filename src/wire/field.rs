//! Fields: `tag: u16, reserved: u16, len: u32, value`, in a row. The payload of HELLO and INFER.

use std::fmt;

use super::frame::ErrorCode;

/// Tags from here on are critical: who does not know one refuses the request.
pub const CRITICAL: u16 = 0x8000;

/// Why a payload of fields is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldError {
    /// A field does not fit its payload.
    Truncated,
    /// A field stands twice.
    Repeated(&'static str),
    /// A field's value is of the wrong length, not UTF-8, or out of range.
    Invalid(&'static str, &'static str),
    /// A field is missing, or stands where it must not.
    Shape(&'static str),
    /// A critical field that is not known here.
    Critical(u16),
}

impl FieldError {
    /// What the peer is told.
    pub fn code(&self) -> ErrorCode {
        match self {
            FieldError::Critical(_) => ErrorCode::Unsupported,
            _ => ErrorCode::BadRequest,
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FieldError::Truncated => f.write_str("a field does not fit its payload"),
            FieldError::Repeated(name) => write!(f, "{name} stands twice"),
            FieldError::Invalid(name, wanted) => write!(f, "{name} is not {wanted}"),
            FieldError::Shape(what) => f.write_str(what),
            FieldError::Critical(tag) => write!(f, "field {tag:#06x} is not known here"),
        }
    }
}

/// The fields of a payload, in order.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Of `payload`.
    pub fn new(payload: &'a [u8]) -> Fields<'a> {
        Fields { rest: payload }
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u16, &'a [u8]), FieldError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.rest.split_first_chunk::<8>().and_then(|(head, rest)| {
            let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
            let (value, rest) = rest.split_at_checked(len)?;
            self.rest = rest;
            Some((u16::from_le_bytes([head[0], head[1]]), value))
        });
        if field.is_none() {
            self.rest = &[];
        }
        Some(field.ok_or(FieldError::Truncated))
    }
}

/// Appends a field.
pub fn encode_field(out: &mut Vec<u8>, tag: u16, value: &[u8]) {
    let len = u32::try_from(value.len()).expect("payloads are bounded far below 4 GiB");
    out.extend_from_slice(&tag.to_le_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(value);
}

/// A value as text.
pub fn text<'a>(name: &'static str, value: &'a [u8]) -> Result<&'a str, FieldError> {
    std::str::from_utf8(value).map_err(|_| FieldError::Invalid(name, "UTF-8"))
}

/// A value as a number of four bytes.
pub fn number(name: &'static str, value: &[u8]) -> Result<u32, FieldError> {
    let bytes = value.try_into().map_err(|_| FieldError::Invalid(name, "4 bytes"))?;
    Ok(u32::from_le_bytes(bytes))
}

/// A value as a finite float of four bytes.
pub fn float(name: &'static str, value: &[u8]) -> Result<f32, FieldError> {
    let float = f32::from_bits(number(name, value)?);
    if float.is_finite() { Ok(float) } else { Err(FieldError::Invalid(name, "finite")) }
}
