//! What can go wrong with models and where they are kept.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::digest::Digest;

/// Why a model was not stored, fetched, checked or removed.
#[derive(Clone, Debug)]
pub enum Error {
    /// A file or folder of this machine cannot be used.
    Io {
        /// What was tried: "read", "write".
        action: &'static str,
        /// With which.
        path: PathBuf,
        /// Why it did not work.
        error: Arc<io::Error>,
    },
    /// A file changed while it was read; what was read of it is no file that ever was.
    Changed {
        /// Which.
        path: PathBuf,
        /// How that was seen.
        how: String,
    },
    /// What is to be stored is a folder, a device or a pipe.
    NotAFile {
        /// What is named.
        path: PathBuf,
    },
    /// There is no such model, tag or blob.
    NotFound {
        /// What was asked for.
        what: String,
        /// Where.
        at: String,
    },
    /// The first digits of a digest that several blobs or manifests begin with.
    Ambiguous {
        /// The digits.
        prefix: String,
        /// Some that begin so.
        matches: Vec<Digest>,
    },
    /// A text that cannot be a name, a tag, a digest or a reference.
    Name {
        /// The text.
        text: String,
        /// Why not.
        why: &'static str,
    },
    /// A manifest or a blob's record does not keep its format's rules.
    Refused {
        /// Which.
        what: String,
        /// Where it is.
        at: String,
        /// Which rule.
        why: String,
    },
    /// A file begins as a GGUF and is none.
    Gguf {
        /// Which.
        path: PathBuf,
        /// Where and why.
        why: String,
    },
    /// Bytes are not those that their digest names.
    Damaged {
        /// The blob.
        digest: Digest,
        /// Its part, from 0; none: the blob as a whole.
        part: Option<u32>,
        /// Where it is.
        at: String,
    },
    /// Not enough room on the disk for what is about to be fetched.
    NoSpace {
        /// The folder whose disk it is.
        path: PathBuf,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are free, less those that running downloads have yet to write.
        free: u64,
    },
    /// The cache's budget does not admit what is about to be fetched.
    Budget {
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that the cache may hold.
        budget: u64,
        /// Bytes in it that cannot go: pinned or in use.
        held: u64,
    },
    /// Another process has taken over a transfer that this one was believed to have given up.
    TakenOver {
        /// The file of the transfer.
        path: PathBuf,
    },
    /// Not in the cache, and nothing may be fetched.
    Offline {
        /// What was asked for.
        what: String,
    },
    /// A remote cannot do this.
    Unsupported {
        /// Which remote.
        at: String,
        /// What it cannot do.
        what: String,
    },
    /// A remote did not do what it was asked, after as many tries as were sensible.
    Remote {
        /// Which remote.
        at: String,
        /// What was tried: "writing part 7 of 3f2a…".
        action: String,
        /// What it said, or how the connection failed.
        reason: String,
        /// Whether the same command may go through later as it is.
        retryable: bool,
    },
}

impl Error {
    /// A file operation that failed.
    pub fn io(action: &'static str, path: &Path, error: io::Error) -> Error {
        Error::Io { action, path: path.to_owned(), error: Arc::new(error) }
    }

    /// Whether the same command may go through later without anybody's doing.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Remote { retryable, .. } => *retryable,
            Error::TakenOver { .. } => true,
            _ => false,
        }
    }

    /// Whether the disk or a quota is full.
    pub fn is_full(&self) -> bool {
        let full = [nix::libc::ENOSPC, nix::libc::EDQUOT, nix::libc::EFBIG];
        match self {
            Error::NoSpace { .. } => true,
            Error::Io { error, .. } => {
                error.raw_os_error().is_some_and(|code| full.contains(&code))
            }
            _ => false,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io { action, path, error } => {
                write!(f, "cannot {action} {path:?}: {error}")?;
                if self.is_full() {
                    f.write_str(
                        "; what was transferred is kept: make room and run the same command again \
                         to go on where it stopped",
                    )?;
                }
                Ok(())
            }
            Error::Changed { path, how } => write!(
                f,
                "{path:?} changed while it was read ({how}); nothing was stored: leave it alone \
                 and run the same command again"
            ),
            Error::NotAFile { path } => {
                write!(f, "{path:?} is not a file: name one (a pipe comes with --file -)")
            }
            Error::NotFound { what, at } => {
                write!(f, "{what} is not in {at}; cnse ls lists what is there")
            }
            Error::Ambiguous { prefix, matches } => {
                write!(f, "{prefix} is not unique, give more digits:")?;
                matches.iter().try_for_each(|digest| write!(f, " {digest}"))
            }
            Error::Name { text, why } => write!(f, "{text:?}: {why}"),
            Error::Refused { what, at, why } => write!(
                f,
                "{what} in {at} is refused: {why}; it was not written by this program, or is \
                 damaged: remove it and store the model again"
            ),
            Error::Gguf { path, why } => write!(
                f,
                "{path:?} begins as a GGUF and is none: {why}; download it again, or store it as \
                 it is with --raw"
            ),
            Error::Damaged { digest, part: Some(part), at } => write!(
                f,
                "part {part} of {digest} is damaged in {at}: cnse verify --full --heal mends it \
                 from a cached copy or from --file"
            ),
            Error::Damaged { digest, part: None, at } => write!(
                f,
                "{digest} is damaged in {at}: its bytes have another SHA-256; remove it there and \
                 store the model again"
            ),
            Error::NoSpace { path, needed, free } => write!(
                f,
                "{path:?} has room for {free} bytes and {needed} are needed; nothing was fetched: \
                 make room, or name another disk with CNSE_CACHE"
            ),
            Error::Budget { needed, budget, held } => write!(
                f,
                "the cache may hold {budget} bytes, {held} of them are pinned or in use, and \
                 {needed} more are needed: raise --cache-size, or see cnse cache ls"
            ),
            Error::TakenOver { path } => write!(
                f,
                "another process has taken over {path:?}: run the same command again, and it waits \
                 for that one"
            ),
            Error::Offline { what } => {
                write!(f, "{what} is not in the cache, and --offline forbids to fetch it")
            }
            Error::Unsupported { at, what } => write!(f, "{at} cannot {what}"),
            Error::Remote { at, action, reason, retryable } => {
                write!(f, "{at}: {action}: {reason}")?;
                let go_on = "; run the same command again later, and it goes on where it stopped";
                f.write_str(if *retryable { go_on } else { "" })
            }
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_names_the_thing_and_the_remedy() {
        let (path, at) = (|| PathBuf::from("/a/b.gguf"), || "http://h:8888".to_owned());
        let digest = Digest::of(b"");
        let full = io::Error::from_raw_os_error(nix::libc::ENOSPC);
        let remote = |retryable| Error::Remote {
            at: at(),
            action: "writing part 7".to_owned(),
            reason: "503".to_owned(),
            retryable,
        };
        let name = || "gemma:q4".to_owned();
        let table = [
            (Error::io("write", &path(), full), "/a/b.gguf", "run the same command again"),
            (Error::Changed { path: path(), how: "it shrank".to_owned() }, "it shrank", "again"),
            (Error::NotAFile { path: path() }, "/a/b.gguf", "--file -"),
            (Error::NotFound { what: name(), at: at() }, "gemma:q4", "cnse ls"),
            (Error::Ambiguous { prefix: "e3".to_owned(), matches: vec![digest] }, "e3", "e3b0c4"),
            (Error::Name { text: "../x".to_owned(), why: "no" }, "../x", "no"),
            (Error::Refused { what: name(), at: at(), why: "9 parts".to_owned() }, "q4", "9 parts"),
            (Error::Gguf { path: path(), why: "version 1".to_owned() }, "version 1", "--raw"),
            (Error::Damaged { digest, part: Some(3), at: at() }, "part 3", "--heal"),
            (Error::Damaged { digest, part: None, at: at() }, "e3b0c4", "another SHA-256"),
            (Error::NoSpace { path: path(), needed: 9, free: 8 }, "8 bytes", "CNSE_CACHE"),
            (Error::Budget { needed: 9, budget: 8, held: 7 }, "8 bytes", "--cache-size"),
            (Error::TakenOver { path: path() }, "/a/b.gguf", "again"),
            (Error::Offline { what: name() }, "gemma:q4", "--offline"),
            (Error::Unsupported { at: at(), what: "mend".to_owned() }, "http://h:8888", "mend"),
            (remote(true), "writing part 7: 503", "goes on where it stopped"),
            (remote(false), "http://h:8888", "503"),
        ];
        for (error, thing, remedy) in table {
            let text = error.to_string();
            assert!(text.contains(thing) && text.contains(remedy), "{text}");
        }
        assert!(remote(true).is_retryable() && !remote(false).is_retryable());
    }
}
