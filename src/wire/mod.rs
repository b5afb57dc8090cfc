//! Bytes to values and back, without state: the binary protocol's frames and fields (`protocol.md`
//! in this folder is the protocol), and the heads, chunks and events of HTTP/1.1.

pub mod chunk;
pub mod embeddings;
pub mod field;
pub mod frame;
pub mod http1;
pub mod message;
pub mod openai;
pub mod sse;
