//! Reads the header of a GGUF file: what a model is, and what its tensors take.
//!
//! ```text
//!   "GGUF" | version u32 | tensors u64 | pairs u64
//!   pair    key string | type u32 | value                      string: length u64, UTF-8
//!   tensor  name string | dimensions u32 | each u64 | type u32 | offset u64
//!   tensors' bytes from the next multiple of general.alignment on
//! ```
//!
//! (ggml/docs/gguf.md in ggml-org/ggml.) It is read as a stream; of arrays only the length is kept.
//! No length is believed beyond what is left of the file, and none beyond what is set below.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::limits::{GGUF_COUNT_MAX, GGUF_HEADER_BYTES_MAX};

/// What a GGUF's header tells.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gguf {
    /// Version of the format: 2 or 3.
    pub version: u32,
    /// `general.architecture`: llama, gemma2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// `general.name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `general.license`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// `{architecture}.context_length`, in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u64>,
    /// `{architecture}.block_count`: layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_count: Option<u64>,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Tensors.
    pub tensor_count: u64,
    /// What the weights are quantized to.
    pub quantization: Quantization,
    /// Where the tensors' bytes begin.
    pub data_offset: u64,
    /// `split.no` and `split.count`, of a model in several files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<(u64, u64)>,
    /// Numbers, flags and short texts of the header; of others what they are.
    pub metadata: Map<String, Value>,
}

/// What weights are quantized to. `general.file_type` may be missing or wrong; the bytes cannot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantization {
    /// `general.file_type`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_type: Option<u32>,
    /// Its name, such as Q4_K_M; else that of the type that takes most bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Bytes of the tensors of each type.
    pub bytes_per_type: BTreeMap<String, u64>,
}

/// A text of the metadata that is longer is left out.
const TEXT_BYTES_MAX: u64 = 256;
/// Arrays in arrays.
const NESTING_MAX: u32 = 4;
/// A key's bytes, by the format's own rule.
const KEY_BYTES_MAX: u64 = 65_535;

/// Whether a file that begins so wants to be a GGUF.
pub fn is_gguf(start: &[u8]) -> bool {
    start.starts_with(b"GGUF")
}

/// Reads a header from a file of `size` bytes.
///
/// # Errors
/// Where it is no GGUF, and why.
pub fn parse(input: impl Read, size: u64) -> Result<Gguf, String> {
    let mut reader = Reader { input, at: 0, size };
    if !is_gguf(&reader.array::<4>()?) {
        return Err("it does not begin with GGUF".to_owned());
    }
    let version = reader.u32()?;
    if version & 0xffff == 0 {
        return Err("its bytes are in big-endian order, which llama.cpp cannot map".to_owned());
    }
    if !(2..=3).contains(&version) {
        return Err(format!("its version is {version}, and 2 and 3 are known"));
    }
    let tensor_count = reader.count("tensors", 24)?;
    let pair_count = reader.count("pairs", 13)?;
    let mut pairs = Pairs { metadata: Map::new(), seen: HashSet::new() };
    for _ in 0..pair_count {
        pairs.read(&mut reader)?;
    }
    let alignment = pairs.number("general.alignment").unwrap_or(32);
    if !alignment.is_power_of_two() || alignment > 1 << 30 {
        return Err(format!("its alignment is {alignment}, no power of two up to 2^30"));
    }
    let mut tensors = Tensors::default();
    for _ in 0..tensor_count {
        tensors.read(&mut reader, alignment)?;
    }
    let data_offset = reader.at.next_multiple_of(alignment);
    let bytes_per_type = tensors.end(data_offset, size)?;
    let file_type = pairs.number("general.file_type").and_then(|n| u32::try_from(n).ok());
    let largest = bytes_per_type.iter().max_by_key(|(_, bytes)| **bytes);
    let label = file_type.and_then(file_type_name).map(str::to_owned);
    let label = label.or_else(|| largest.map(|(name, _)| name.clone()));
    let architecture = pairs.text("general.architecture");
    let of_architecture = |key: &str| pairs.number(&format!("{}.{key}", architecture.as_ref()?));
    Ok(Gguf {
        version,
        name: pairs.text("general.name"),
        licence: pairs.text("general.license"),
        context_length: of_architecture("context_length"),
        block_count: of_architecture("block_count"),
        parameters: tensors.parameters,
        tensor_count,
        quantization: Quantization { file_type, label, bytes_per_type },
        data_offset,
        split: pairs.number("split.no").zip(pairs.number("split.count")),
        architecture,
        metadata: pairs.metadata,
    })
}

/// Reads numbers and texts, and counts.
struct Reader<R> {
    input: R,
    at: u64,
    size: u64,
}

impl<R: Read> Reader<R> {
    fn fill(&mut self, into: &mut [u8]) -> Result<(), String> {
        self.take(into.len() as u64)?;
        let at = self.at;
        self.input.read_exact(into).map_err(|error| format!("at byte {at}: {error}"))?;
        self.at += into.len() as u64;
        Ok(())
    }

    /// Whether so many bytes can follow.
    fn take(&self, bytes: u64) -> Result<(), String> {
        let left = self.size.min(GGUF_HEADER_BYTES_MAX) - self.at;
        if bytes > left {
            let what =
                if self.size > GGUF_HEADER_BYTES_MAX { "a header may have" } else { "it has" };
            let total = self.at + left;
            return Err(format!("at byte {}: {bytes} bytes more, and {what} {total}", self.at));
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// How many things follow that have at least `bytes_each`.
    fn count(&mut self, what: &str, bytes_each: u64) -> Result<u64, String> {
        let count = self.u64()?;
        if count > GGUF_COUNT_MAX {
            return Err(format!("it has {count} {what}, more than {GGUF_COUNT_MAX}"));
        }
        self.take(count * bytes_each)?;
        Ok(count)
    }

    fn string(&mut self, max: u64) -> Result<String, String> {
        let len = self.u64()?;
        if len > max {
            return Err(format!("at byte {}: a name of {len} bytes, more than {max}", self.at));
        }
        self.take(len)?;
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| format!("at byte {}: a name is no UTF-8", self.at))
    }

    fn skip(&mut self, bytes: u64) -> Result<(), String> {
        self.take(bytes)?;
        let at = self.at;
        let skipped = std::io::copy(&mut (&mut self.input).take(bytes), &mut std::io::sink());
        match skipped {
            Ok(count) if count == bytes => {
                self.at += bytes;
                Ok(())
            }
            Ok(_) => Err(format!("at byte {at}: the file ends")),
            Err(error) => Err(format!("at byte {at}: {error}")),
        }
    }

    fn value(&mut self, kind: u32, nesting: u32) -> Result<Value, String> {
        Ok(match kind {
            0 => u8::from_le_bytes(self.array()?).into(),
            1 => i8::from_le_bytes(self.array()?).into(),
            2 => u16::from_le_bytes(self.array()?).into(),
            3 => i16::from_le_bytes(self.array()?).into(),
            4 => self.u32()?.into(),
            5 => i32::from_le_bytes(self.array()?).into(),
            6 => f64::from(f32::from_le_bytes(self.array()?)).into(),
            7 => (self.array::<1>()?[0] != 0).into(),
            8 => self.text()?,
            9 => self.list(nesting)?,
            10 => self.u64()?.into(),
            11 => i64::from_le_bytes(self.array()?).into(),
            12 => f64::from_le_bytes(self.array()?).into(),
            _ => return Err(format!("at byte {}: there is no value type {kind}", self.at)),
        })
    }

    fn text(&mut self) -> Result<Value, String> {
        let len = self.u64()?;
        if len > TEXT_BYTES_MAX {
            self.skip(len)?;
            return Ok(format!("[text of {len} bytes]").into());
        }
        self.take(len)?;
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into())
    }

    /// Of a list the length is kept.
    fn list(&mut self, nesting: u32) -> Result<Value, String> {
        let kind = self.u32()?;
        let len = self.u64()?;
        if nesting == NESTING_MAX {
            return Err(format!("at byte {}: lists in lists, over {NESTING_MAX} deep", self.at));
        }
        let bytes_each = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 | 9 => 0,
            _ => return Err(format!("at byte {}: there is no value type {kind}", self.at)),
        };
        if bytes_each > 0 {
            let bytes = len.checked_mul(bytes_each);
            self.skip(bytes.ok_or_else(|| format!("at byte {}: a list of {len}", self.at))?)?;
        } else {
            // Each has at least its own length in front.
            self.take(len.saturating_mul(8))?;
            for _ in 0..len {
                if kind == 8 {
                    let len = self.u64()?;
                    self.skip(len)?;
                } else {
                    self.list(nesting + 1)?;
                }
            }
        }
        Ok(format!("[list of {len}]").into())
    }
}

struct Pairs {
    metadata: Map<String, Value>,
    seen: HashSet<String>,
}

impl Pairs {
    fn read(&mut self, reader: &mut Reader<impl Read>) -> Result<(), String> {
        let key = reader.string(KEY_BYTES_MAX)?;
        let kind = reader.u32()?;
        let value = reader.value(kind, 0)?;
        if !self.seen.insert(key.clone()) {
            return Err(format!("the key {key:?} stands twice"));
        }
        self.metadata.insert(key, value);
        Ok(())
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.metadata.get(key)?.as_u64()
    }

    fn text(&self, key: &str) -> Option<String> {
        self.metadata.get(key)?.as_str().map(str::to_owned)
    }
}

#[derive(Default)]
struct Tensors {
    names: HashSet<String>,
    parameters: u64,
    /// Offset, type, bytes if the type is known.
    all: Vec<(u64, u32, Option<u64>)>,
}

impl Tensors {
    fn read(&mut self, reader: &mut Reader<impl Read>, alignment: u64) -> Result<(), String> {
        let name = reader.string(KEY_BYTES_MAX)?;
        let dimensions = reader.u32()?;
        if dimensions > 4 {
            return Err(format!("tensor {name:?} has {dimensions} dimensions, more than 4"));
        }
        let too_large = || format!("tensor {name:?} has more elements than there can be");
        let (mut elements, mut row) = (1_u64, 1);
        for dimension in 0..dimensions {
            let len = reader.u64()?;
            if dimension == 0 {
                row = len;
            }
            elements = elements.checked_mul(len).ok_or_else(too_large)?;
        }
        let (kind, offset) = (reader.u32()?, reader.u64()?);
        if offset % alignment != 0 {
            return Err(format!("tensor {name:?} is at {offset}, no multiple of {alignment}"));
        }
        let bytes = match tensor_type(kind) {
            Some((_, block, block_bytes)) => {
                if row % block != 0 {
                    return Err(format!("tensor {name:?} has rows of {row}, in blocks of {block}"));
                }
                Some((elements / block).checked_mul(block_bytes).ok_or_else(too_large)?)
            }
            None => None,
        };
        self.parameters = self.parameters.checked_add(elements).ok_or_else(too_large)?;
        if !self.names.insert(name.clone()) {
            return Err(format!("the tensor {name:?} stands twice"));
        }
        self.all.push((offset, kind, bytes));
        Ok(())
    }

    /// Bytes of each type; of an unknown one up to the next tensor.
    fn end(&mut self, data_offset: u64, size: u64) -> Result<BTreeMap<String, u64>, String> {
        self.all.sort_unstable();
        let mut per_type: BTreeMap<String, u64> = BTreeMap::new();
        for (i, &(offset, kind, bytes)) in self.all.iter().enumerate() {
            let next = self.all.get(i + 1).map_or(size.saturating_sub(data_offset), |next| next.0);
            let bytes = bytes.unwrap_or_else(|| next.saturating_sub(offset));
            let end = data_offset.checked_add(offset).and_then(|start| start.checked_add(bytes));
            if end.is_none_or(|end| end > size) {
                let end = end.map_or_else(|| "beyond all bounds".to_owned(), |n| n.to_string());
                return Err(format!(
                    "it was cut off: its tensors end at {end}, it has {size} bytes"
                ));
            }
            let name = tensor_type(kind).map(|(name, ..)| name.to_owned());
            *per_type.entry(name.unwrap_or_else(|| format!("type {kind}"))).or_default() += bytes;
        }
        Ok(per_type)
    }
}

/// Name, elements of a block, bytes of a block (ggml.c, `type_traits`).
fn tensor_type(kind: u32) -> Option<(&'static str, u64, u64)> {
    Some(match kind {
        0 => ("F32", 1, 4),
        1 => ("F16", 1, 2),
        2 => ("Q4_0", 32, 18),
        3 => ("Q4_1", 32, 20),
        6 => ("Q5_0", 32, 22),
        7 => ("Q5_1", 32, 24),
        8 => ("Q8_0", 32, 34),
        9 => ("Q8_1", 32, 40),
        10 => ("Q2_K", 256, 84),
        11 => ("Q3_K", 256, 110),
        12 => ("Q4_K", 256, 144),
        13 => ("Q5_K", 256, 176),
        14 => ("Q6_K", 256, 210),
        15 => ("Q8_K", 256, 292),
        16 => ("IQ2_XXS", 256, 66),
        17 => ("IQ2_XS", 256, 74),
        18 => ("IQ3_XXS", 256, 98),
        19 => ("IQ1_S", 256, 50),
        20 => ("IQ4_NL", 32, 18),
        21 => ("IQ3_S", 256, 110),
        22 => ("IQ2_S", 256, 82),
        23 => ("IQ4_XS", 256, 136),
        24 => ("I8", 1, 1),
        25 => ("I16", 1, 2),
        26 => ("I32", 1, 4),
        27 => ("I64", 1, 8),
        28 => ("F64", 1, 8),
        29 => ("IQ1_M", 256, 56),
        30 => ("BF16", 1, 2),
        34 => ("TQ1_0", 256, 54),
        35 => ("TQ2_0", 256, 66),
        39 => ("MXFP4", 32, 17),
        40 => ("NVFP4", 64, 36),
        41 => ("Q1_0", 128, 18),
        _ => return None,
    })
}

/// The name of a `general.file_type` (llama.h, `llama_ftype`); 1024 marks a guess.
fn file_type_name(file_type: u32) -> Option<&'static str> {
    Some(match file_type & !1024 {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        19 => "IQ2_XXS",
        20 => "IQ2_XS",
        21 => "Q2_K_S",
        22 => "IQ3_XS",
        23 => "IQ3_XXS",
        24 => "IQ1_S",
        25 => "IQ4_NL",
        26 => "IQ3_S",
        27 => "IQ3_M",
        28 => "IQ2_S",
        29 => "IQ2_M",
        30 => "IQ4_XS",
        31 => "IQ1_M",
        32 => "BF16",
        36 => "TQ1_0",
        37 => "TQ2_0",
        38 => "MXFP4_MOE",
        39 => "NVFP4",
        40 => "Q1_0",
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
