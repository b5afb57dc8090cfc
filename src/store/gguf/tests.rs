use super::*;

/// A header as it is written, piece by piece.
#[derive(Clone, Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn u32(mut self, n: u32) -> Writer {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn u64(mut self, n: u64) -> Writer {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn string(self, text: &str) -> Writer {
        let mut this = self.u64(text.len() as u64);
        this.0.extend(text.as_bytes());
        this
    }

    fn head(version: u32, tensors: u64, pairs: u64) -> Writer {
        Writer(b"GGUF".to_vec()).u32(version).u64(tensors).u64(pairs)
    }

    fn text(self, key: &str, text: &str) -> Writer {
        self.string(key).u32(8).string(text)
    }

    fn number(self, key: &str, n: u32) -> Writer {
        self.string(key).u32(4).u32(n)
    }

    fn tensor(self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Writer {
        let this = self.string(name).u32(dims.len() as u32);
        dims.iter().fold(this, |this, &dim| this.u64(dim)).u32(kind).u64(offset)
    }

    fn data(mut self, alignment: usize, bytes: usize) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(alignment) + bytes, 0);
        self.0
    }
}

fn read(bytes: &[u8]) -> Result<Gguf, String> {
    parse(bytes, bytes.len() as u64)
}

fn good() -> Vec<u8> {
    Writer::head(3, 2, 8)
        .text("general.architecture", "llama")
        .text("general.license", "mit")
        .number("general.file_type", 15)
        .number("llama.context_length", 8192)
        .number("llama.block_count", 2)
        .string("tokenizer.ggml.tokens")
        .u32(9)
        .u32(8)
        .u64(2)
        .string("a")
        .string("bc")
        .text("chat", &"x".repeat(300))
        .string("nested")
        .u32(9)
        .u32(9)
        .u64(1)
        .u32(4)
        .u64(2)
        .u32(1)
        .u32(2)
        .tensor("a", &[256, 2], 12, 0)
        .tensor("b", &[3, 5], 0, 288)
        .data(32, 288 + 60)
}

#[test]
fn a_header_is_read() {
    let gguf = read(&good()).unwrap();
    assert_eq!((gguf.version, gguf.tensor_count, gguf.parameters), (3, 2, 527));
    assert_eq!(
        (gguf.architecture.as_deref(), gguf.licence.as_deref()),
        (Some("llama"), Some("mit"))
    );
    assert_eq!((gguf.context_length, gguf.block_count), (Some(8192), Some(2)));
    assert_eq!(gguf.quantization.label.as_deref(), Some("Q4_K_M"));
    let per_type = BTreeMap::from([("F32".to_owned(), 60), ("Q4_K".to_owned(), 288)]);
    assert_eq!(gguf.quantization.bytes_per_type, per_type);
    assert_eq!(gguf.metadata["tokenizer.ggml.tokens"], "[list of 2]");
    assert_eq!(gguf.metadata["chat"], "[text of 300 bytes]");
    let json = serde_json::to_string(&gguf).unwrap();
    assert_eq!(serde_json::from_str::<Gguf>(&json).unwrap(), gguf);
}

#[test]
fn without_a_file_type_the_bytes_tell() {
    let bytes = Writer::head(2, 2, 0)
        .tensor("a", &[32], 8, 0)
        .tensor("unknown", &[32], 99, 64)
        .data(32, 64 + 100);
    let gguf = read(&bytes).unwrap();
    let per_type = BTreeMap::from([("Q8_0".to_owned(), 34), ("type 99".to_owned(), 100)]);
    assert_eq!(gguf.quantization.bytes_per_type, per_type);
    assert_eq!(gguf.quantization.label.as_deref(), Some("type 99"));
}

#[test]
fn every_cut_is_refused_and_none_is_believed() {
    let good = good();
    for len in 0..good.len() {
        let error = read(&good[..len]).unwrap_err();
        assert!(!error.is_empty());
    }
}

#[test]
fn hostile_headers_are_refused() {
    let one = |writer: Writer| writer.data(32, 64);
    let table = [
        (b"GGUF".to_vec(), "byte 4: 4 bytes more"),
        (b"ABCDEFGH".to_vec(), "does not begin"),
        (one(Writer::head(1, 0, 0)), "version is 1"),
        (one(Writer::head(0x0300_0000, 0, 0)), "big-endian"),
        (one(Writer::head(3, u64::MAX, 0)), "tensors, more than"),
        (one(Writer::head(3, 0, 900_000)), "bytes more"),
        (one(Writer::head(3, 0, 1).u64(u64::MAX)), "a name of"),
        (one(Writer::head(3, 0, 1).string("k").u32(13)), "no value type 13"),
        (one(Writer::head(3, 0, 1).string("k").u32(9).u32(10).u64(u64::MAX)), "a list of"),
        (one(Writer::head(3, 0, 1).string("k").u32(9).u32(8).u64(u64::MAX)), "bytes more"),
        (one(Writer::head(3, 0, 1).string("k").u32(9).u32(77).u64(1)), "no value type 77"),
        (one(Writer::head(3, 0, 2).number("k", 1).number("k", 1)), "stands twice"),
        (one(Writer::head(3, 0, 1).number("general.alignment", 33)), "no power of two"),
        (one(Writer::head(3, 1, 0).tensor("t", &[1; 5], 0, 0)), "5 dimensions"),
        (one(Writer::head(3, 1, 0).tensor("t", &[1 << 40, 1 << 40], 0, 0)), "more elements"),
        (one(Writer::head(3, 1, 0).tensor("t", &[33], 8, 0)), "in blocks of 32"),
        (one(Writer::head(3, 1, 0).tensor("t", &[8], 0, 7)), "no multiple of 32"),
        (one(Writer::head(3, 1, 0).tensor("t", &[1 << 20], 0, 0)), "cut off"),
        (one(Writer::head(3, 1, 0).tensor("t", &[8], 0, u64::MAX - 31)), "beyond all bounds"),
        (one(Writer::head(3, 2, 0).tensor("t", &[1], 0, 0).tensor("t", &[1], 0, 32)), "twice"),
    ];
    for (bytes, why) in table {
        let error = read(&bytes).unwrap_err();
        assert!(error.contains(why), "{error:?} without {why:?}");
    }
    let deep = (0..6).fold(Writer::head(3, 0, 1).string("k").u32(9), |w, _| w.u32(9).u64(1));
    assert!(read(&one(deep)).unwrap_err().contains("deep"));
}
