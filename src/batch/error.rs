//! What can go wrong with a batch's files.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A failure that ends the job or keeps it from starting. A bad row is none: it is recorded.
#[derive(Clone, Debug)]
pub enum Error {
    /// A file cannot be opened or read.
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: Arc<io::Error>,
    },
    /// What is named as a file is something else: a folder, a device, a pipe.
    NotAFile {
        /// What is named.
        path: PathBuf,
    },
    /// A file that was being read is shorter than it was.
    Shrunk {
        /// Which.
        path: PathBuf,
        /// Where its bytes ended.
        at: u64,
    },
    /// The pipe that rows come from failed.
    Pipe {
        /// Why.
        error: Arc<io::Error>,
    },
    /// A file or folder cannot be written, renamed or removed.
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        error: Arc<io::Error>,
    },
    /// Results cannot be recorded any more.
    Journal {
        /// The part.
        path: PathBuf,
        /// Why.
        error: Arc<io::Error>,
    },
    /// Another job writes the same output.
    Locked {
        /// The lock that it holds.
        path: PathBuf,
    },
    /// A file that would be replaced holds a line that no job of this kind wrote.
    Foreign {
        /// Which.
        path: PathBuf,
        /// Its line, from 1.
        line: u64,
    },
    /// Output and error file are one.
    SamePath {
        /// It.
        path: PathBuf,
    },
    /// More parts than a merge can number.
    Parts {
        /// Their folder.
        folder: PathBuf,
        /// How many there are.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A file of results is longer than a merge can address.
    Length {
        /// Which.
        path: PathBuf,
        /// Its bytes.
        bytes: u64,
        /// How many it may have.
        limit: u64,
    },
    /// A result that cannot be a row of the matrix.
    Vectors {
        /// The output.
        path: PathBuf,
        /// Its line, from 1.
        line: u64,
        /// Whose result.
        custom_id: String,
        /// What is wrong with it.
        message: String,
    },
    /// No result has an embedding.
    NoVectors {
        /// The output.
        path: PathBuf,
    },
    /// A matrix cannot be made or searched; the results themselves are there.
    Post {
        /// Why.
        message: String,
    },
}

impl Error {
    pub(super) fn read(path: &Path, error: io::Error) -> Error {
        Error::Read { path: path.to_owned(), error: Arc::new(error) }
    }

    pub(super) fn post(error: impl fmt::Display) -> Error {
        Error::Post { message: error.to_string() }
    }

    pub(super) fn write(path: &Path, error: io::Error) -> Error {
        Error::Write { path: path.to_owned(), error: Arc::new(error) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Read { path, error } => write!(f, "cannot read {path:?}: {error}"),
            Error::NotAFile { path } => {
                write!(f, "{path:?} is not a file: name one (rows from a pipe come with --input -)")
            }
            Error::Shrunk { path, at } => write!(
                f,
                "{path:?} was cut off at byte {at} while it was read: leave it alone until the job \
                 ends, then run the same command again"
            ),
            Error::Pipe { error } => write!(
                f,
                "reading rows from the pipe failed: {error}; what was recorded is kept: run the \
                 same command again to go on where it stopped"
            ),
            Error::Write { path, error } => write!(
                f,
                "cannot write {path:?}: {error}; results recorded so far are kept: once that is \
                 mended, run the same command again to go on where it stopped"
            ),
            Error::Journal { path, error } => write!(
                f,
                "cannot record results in {path:?}: {error}; what was recorded is kept: once there \
                 is room, run the same command again to go on where it stopped"
            ),
            Error::Locked { path } => write!(
                f,
                "another job is writing this output (it holds {path:?}): wait for its end or name \
                 another --output"
            ),
            Error::Foreign { path, line } => write!(
                f,
                "line {line} of {path:?} is no result of cnse schedule, and the file would be \
                 replaced: move it away or name another one"
            ),
            Error::SamePath { path } => {
                write!(f, "output and error file are both {path:?}: name two files")
            }
            Error::Parts { folder, count, limit } => write!(
                f,
                "{folder:?} holds {count} parts, more than {limit}: join some of them with cat, \
                 each as a whole"
            ),
            Error::Length { path, bytes, limit } => write!(
                f,
                "{path:?} has {bytes} bytes, more than {limit}: split the input into several jobs"
            ),
            Error::Vectors { path, line, custom_id, message } => write!(
                f,
                "--post: line {line} ({custom_id}) of {path:?}: {message}; the results are kept"
            ),
            Error::NoVectors { path } => {
                write!(f, "--post: {path:?} holds no embeddings: rows must call /v1/embeddings")
            }
            Error::Post { message } => {
                write!(f, "--post: {message}; the results are kept: the same command goes on there")
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
        let path = || PathBuf::from("/a/b.jsonl");
        let error = || Arc::new(io::Error::from_raw_os_error(nix::libc::ENOSPC));
        let table = [
            (Error::Read { path: path(), error: error() }, "No space left"),
            (Error::NotAFile { path: path() }, "--input -"),
            (Error::Shrunk { path: path(), at: 7 }, "byte 7"),
            (Error::Write { path: path(), error: error() }, "run the same command again"),
            (Error::Journal { path: path(), error: error() }, "what was recorded is kept"),
            (Error::Locked { path: path() }, "another --output"),
            (Error::Foreign { path: path(), line: 3 }, "line 3"),
            (Error::SamePath { path: path() }, "two files"),
            (Error::Parts { folder: path(), count: 9, limit: 8 }, "9 parts, more than 8"),
            (Error::Length { path: path(), bytes: 9, limit: 8 }, "9 bytes, more than 8"),
            (Error::NoVectors { path: path() }, "/v1/embeddings"),
            (Error::post("/a/b.jsonl is full"), "is full; the results are kept"),
            (
                Error::Vectors {
                    path: path(),
                    line: 3,
                    custom_id: "x".to_owned(),
                    message: "why".to_owned(),
                },
                "line 3 (x)",
            ),
        ];
        for (error, says) in table {
            let text = error.to_string();
            assert!(text.contains(says) && text.contains("/a/b.jsonl"), "{text}");
        }
        assert!(Error::Pipe { error: error() }.to_string().contains("pipe failed: No space left"));
    }
}
