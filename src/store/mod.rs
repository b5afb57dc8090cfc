//! Models, named by what they are: content-addressed blobs, manifests and tags.
//!
//! A blob is named by the SHA-256 of all its bytes, and has a record with the digests of its parts,
//! so that damage is found and mended part by part. A manifest tells which blobs make up a model. A
//! tag (`name:tag`) is the only thing that ever changes: it names a manifest. What refers to
//! something is written after it, and removed before it.
//!
//! Remotes hold all that for several machines; the cache holds blobs of one machine. All files are
//! reached through `files`, so that tests can fail or stop at every single call.

pub mod cache;
mod claim;
pub mod digest;
pub mod error;
pub mod fetch;
pub mod files;
pub mod gc;
pub mod gguf;
pub mod hash;
pub mod layout;
pub mod manifest;
mod map;
pub mod model;
pub mod name;
pub mod output;
pub mod pace;
pub mod put;
pub mod record;
pub mod remote;
pub mod sha;
pub mod verify;

pub use digest::Digest;
pub use error::Error;
pub use sha::Hasher;

#[cfg(test)]
mod tests;
#[cfg(test)]
use tests::test_folder;
