//! Answers of `/v1/embeddings` (platform.openai.com/docs/api-reference/embeddings): the vectors in
//! them, and the same answer with other vectors.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};

/// Why an answer has no vectors.
#[derive(Debug)]
pub enum Error {
    /// It is not JSON, or has no `data` of the right shape.
    Shape(serde_json::Error),
    /// A vector is neither a list of numbers nor base64 of 32-bit floats.
    Vector(usize),
    /// Its vectors are not of one width.
    Widths {
        /// The first one's.
        first: usize,
        /// Another one.
        index: usize,
        /// Its width.
        width: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Shape(error) => write!(f, "it is no answer of /v1/embeddings: {error}"),
            Error::Vector(index) => write!(
                f,
                "embedding {index} is neither a list of numbers nor base64 of 32-bit floats"
            ),
            Error::Widths { first, index, width } => {
                write!(f, "embedding 0 has {first} dimensions and embedding {index} has {width}")
            }
        }
    }
}

impl std::error::Error for Error {}

/// An answer, taken apart.
#[derive(Debug)]
pub struct Answer<'a> {
    /// All of it.
    members: BTreeMap<&'a str, &'a RawValue>,
    /// Its embeddings, in the order of their indices.
    data: Vec<BTreeMap<&'a str, &'a RawValue>>,
    /// Whether the first vector is base64.
    is_base64: bool,
    /// The vectors, `[count, dims]`.
    pub vectors: Vec<f32>,
    /// Their width; 0 if there are none.
    pub dims: usize,
}

impl<'a> Answer<'a> {
    /// Takes an answer apart.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(body: &'a [u8]) -> Result<Answer<'a>, Error> {
        #[derive(Deserialize)]
        struct Data<'a> {
            #[serde(borrow)]
            data: Vec<Item<'a>>,
        }
        #[derive(Deserialize)]
        struct Item<'a> {
            #[serde(default)]
            index: usize,
            #[serde(borrow)]
            embedding: &'a RawValue,
        }
        let members: BTreeMap<&str, &RawValue> =
            serde_json::from_slice(body).map_err(Error::Shape)?;
        let Data { mut data } = serde_json::from_slice(body).map_err(Error::Shape)?;
        let raw = members.get("data").map_or("[]", |data| data.get());
        let mut items: Vec<BTreeMap<&str, &RawValue>> =
            serde_json::from_str(raw).map_err(Error::Shape)?;
        // Of equal indices the order stays.
        let mut order: Vec<usize> = (0..data.len()).collect();
        order.sort_by_key(|&at| data[at].index);
        items = order.iter().map(|&at| std::mem::take(&mut items[at])).collect();
        data.sort_by_key(|item| item.index);
        let (mut vectors, mut dims) = (Vec::new(), 0);
        for (index, item) in data.iter().enumerate() {
            let before = vectors.len();
            let raw = item.embedding.get();
            append(&mut vectors, raw).ok_or(Error::Vector(index))?;
            let width = vectors.len() - before;
            if index == 0 {
                dims = width;
            }
            if width != dims || width == 0 {
                return Err(Error::Widths { first: dims, index, width });
            }
        }
        let is_base64 = data.first().is_some_and(|item| item.embedding.get().starts_with('"'));
        Ok(Answer { members, data: items, is_base64, vectors, dims })
    }

    /// The answer with other vectors, one for each of its own; what JSON has for `values` goes in,
    /// or the base64 of `bytes` if the client asked for that.
    pub fn with_vectors<'v>(
        &self,
        vectors: impl Iterator<Item = Vector<'v>>,
    ) -> serde_json::Result<Vec<u8>> {
        let mut data = Vec::with_capacity(self.data.len());
        for (item, vector) in self.data.iter().zip(vectors) {
            let raw = if self.is_base64 {
                to_raw_value(&BASE64.encode(vector.bytes()))?
            } else {
                vector.json()?
            };
            let mut item: BTreeMap<&str, Box<RawValue>> =
                item.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
            item.insert("embedding", raw);
            data.push(item);
        }
        let data = to_raw_value(&data)?;
        let mut members = self.members.clone();
        members.insert("data", &data);
        serde_json::to_vec(&members)
    }
}

/// A vector that goes into an answer.
#[derive(Clone, Copy, Debug)]
pub enum Vector<'a> {
    /// Floats.
    F32(&'a [f32]),
    /// Small integers.
    Int8(&'a [i8]),
    /// Bits, as whole bytes.
    Bytes(&'a [u8]),
}

impl Vector<'_> {
    fn bytes(self) -> Vec<u8> {
        match self {
            Vector::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Vector::Int8(values) => values.iter().map(|value| *value as u8).collect(),
            Vector::Bytes(bytes) => bytes.to_vec(),
        }
    }

    /// As JSON has it.
    pub fn json(self) -> serde_json::Result<Box<RawValue>> {
        match self {
            Vector::F32(values) => to_raw_value(values),
            Vector::Int8(values) => to_raw_value(values),
            Vector::Bytes(bytes) => to_raw_value(bytes),
        }
    }
}

fn append(vectors: &mut Vec<f32>, raw: &str) -> Option<()> {
    if raw.starts_with('"') {
        let text: String = serde_json::from_str(raw).ok()?;
        let bytes = BASE64.decode(text).ok()?;
        let (words, []) = bytes.as_chunks::<4>() else { return None };
        vectors.extend(words.iter().map(|word| f32::from_le_bytes(*word)));
        return Some(());
    }
    vectors.append(&mut serde_json::from_str::<Vec<f32>>(raw).ok()?);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_come_in_the_order_of_their_indices_and_go_back() {
        let body = br#"{"object":"list","data":[{"index":1,"embedding":[3,4]},
            {"object":"embedding","index":0,"embedding":[1,2.5]}],"usage":{"total_tokens":3}}"#;
        let answer = Answer::parse(body).unwrap();
        assert_eq!((answer.dims, answer.vectors.as_slice()), (2, &[1.0, 2.5, 3.0, 4.0][..]));
        let vectors = [Vector::Int8(&[-1, 2]), Vector::F32(&[0.5, 1.0])].into_iter();
        let text = String::from_utf8(answer.with_vectors(vectors).unwrap()).unwrap();
        assert_eq!(
            text,
            "{\"data\":[{\"embedding\":[-1,2],\"index\":0,\"object\":\"embedding\"},\
             {\"embedding\":[0.5,1.0],\"index\":1}],\"object\":\"list\",\
             \"usage\":{\"total_tokens\":3}}"
        );
        let body = br#"{"data":[{"index":0,"embedding":"AACAPwAAAEA="}]}"#;
        let answer = Answer::parse(body).unwrap();
        assert_eq!(answer.vectors, [1.0, 2.0]);
        let text = answer.with_vectors([Vector::Bytes(&[255])].into_iter()).unwrap();
        assert_eq!(text, br#"{"data":[{"embedding":"/w==","index":0}]}"#);
    }

    #[test]
    fn what_is_no_answer_is_said() {
        for (body, says) in [
            ("{", "no answer of /v1/embeddings"),
            (r#"{"data":[{"embedding":{}}]}"#, "embedding 0 is neither"),
            (r#"{"data":[{"embedding":[1,"x"]}]}"#, "embedding 0 is neither"),
            (r#"{"data":[{"embedding":"AAA="}]}"#, "embedding 0 is neither"),
            (r#"{"data":[{"embedding":[]}]}"#, "0 dimensions"),
            (r#"{"data":[{"embedding":[1]},{"embedding":[1,2]}]}"#, "embedding 1 has 2"),
            (r#"{"choices":[]}"#, "missing field `data`"),
        ] {
            let error = Answer::parse(body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(says), "{body}: {error}");
        }
        let none = Answer::parse(br#"{"data":[]}"#).unwrap();
        assert_eq!((none.dims, none.vectors.len()), (0, 0));
    }
}
