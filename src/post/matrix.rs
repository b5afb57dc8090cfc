//! Matrices in .npy files: written row by row, read in blocks.
//!
//! A writer knows the number of rows at the end only, and puts it into the header then; until that
//! the file has a name of its own, so that whoever opens the matrix sees a whole one.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::embedding::search::{Kind, Rows};
use super::npy::{self, HEADER_BYTES, HEADER_BYTES_MAX, Header, Type};

/// Read from a matrix at once: past this the disk is the bound, and not the calls.
const BLOCK_BYTES: usize = 8 << 20;

/// What went wrong with a matrix.
#[derive(Debug)]
pub enum Error {
    /// It cannot be read.
    Read(PathBuf, io::Error),
    /// It cannot be written.
    Write(PathBuf, io::Error),
    /// It is no matrix.
    Npy(PathBuf, npy::Error),
    /// Its length is not what its header says.
    Length {
        /// Which.
        path: PathBuf,
        /// Its bytes.
        bytes: u64,
        /// What the header makes of it.
        wanted: u64,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Read(path, error) => write!(f, "cannot read {path:?}: {error}"),
            Error::Write(path, error) => write!(f, "cannot write {path:?}: {error}"),
            Error::Npy(path, error) => write!(f, "{path:?}: {error}"),
            Error::Length { path, bytes, wanted } => write!(
                f,
                "{path:?} has {bytes} bytes where its header says {wanted}: it was cut off, or is \
                 being written; make it again"
            ),
        }
    }
}

impl std::error::Error for Error {}

/// Rows that are owned.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// `[rows, dims]`.
    F32(Vec<f32>),
    /// `[rows, dims]`.
    Int8(Vec<i8>),
    /// `[rows, dims / 8]`.
    Binary(Vec<u8>),
}

impl Values {
    /// Lends them.
    pub fn rows(&self) -> Rows<'_> {
        match self {
            Values::F32(values) => Rows::F32(values),
            Values::Int8(values) => Rows::Int8(values),
            Values::Binary(bytes) => Rows::Binary(bytes),
        }
    }
}

/// A matrix that is being written.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
    header: Header,
    published: bool,
}

impl Writer {
    /// A matrix of rows of `dims` dimensions, which will be at `path`.
    ///
    /// # Errors
    /// No file can be made there.
    pub fn create(path: &Path, kind: Kind, dims: usize) -> Result<Writer, Error> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".writing");
        let temporary = PathBuf::from(temporary);
        let (value, columns) = match kind {
            Kind::F32 => (Type::F32, dims),
            Kind::Int8 => (Type::I8, dims),
            Kind::Binary => (Type::U8, dims / 8),
        };
        let header = Header { value, rows: 0, columns };
        let file = File::create(&temporary).map_err(|e| Error::Write(temporary.clone(), e))?;
        let file = BufWriter::with_capacity(1 << 20, file);
        let mut writer =
            Writer { path: path.to_owned(), temporary, file, header, published: false };
        writer.write(&header.encode())?;
        Ok(writer)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(|error| Error::Write(self.temporary.clone(), error))
    }

    /// Appends rows, which are of its kind.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn append(&mut self, rows: Rows<'_>) -> Result<(), Error> {
        let count = match (rows, self.header.value) {
            (Rows::F32(values), Type::F32) => {
                let mut bytes = Vec::with_capacity(size_of_val(values));
                values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
                self.write(&bytes)?;
                values.len()
            }
            (Rows::Int8(values), Type::I8) => {
                let bytes: Vec<u8> = values.iter().map(|&value| value as u8).collect();
                self.write(&bytes)?;
                values.len()
            }
            (Rows::Binary(bytes), Type::U8) => {
                self.write(bytes)?;
                bytes.len()
            }
            _ => unreachable!("rows are of the kind that the matrix was made for"),
        };
        assert!(count.is_multiple_of(self.header.columns), "whole rows are appended");
        self.header.rows += (count / self.header.columns) as u64;
        Ok(())
    }

    /// Gives the matrix its number of rows and its name; how many rows it has comes back.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn publish(mut self) -> Result<u64, Error> {
        let header = self.header.encode();
        let done = self
            .file
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.file.write_all(&header))
            .and_then(|()| self.file.flush())
            .and_then(|()| self.file.get_ref().sync_all())
            .and_then(|()| fs::rename(&self.temporary, &self.path));
        done.map_err(|error| Error::Write(self.path.clone(), error))?;
        self.published = true;
        Ok(self.header.rows)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.published {
            // Half a matrix is of no use, and the room may be needed.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// A matrix that is read.
#[derive(Debug)]
pub struct Matrix {
    path: PathBuf,
    file: File,
    header: Header,
    /// Where its values begin.
    start: u64,
}

impl Matrix {
    /// Opens a matrix.
    ///
    /// # Errors
    /// It cannot be read, or is none, or its length is not what it says.
    pub fn open(path: &Path) -> Result<Matrix, Error> {
        let read = |error| Error::Read(path.to_owned(), error);
        let file = File::open(path).map_err(read)?;
        let mut head = Vec::new();
        let mut limit = HEADER_BYTES;
        let (header, start) = loop {
            let more = (limit - head.len()) as u64;
            (&file).take(more).read_to_end(&mut head).map_err(read)?;
            let decoded = Header::decode(&head);
            match decoded.map_err(|error| Error::Npy(path.to_owned(), error))? {
                Some(found) => break found,
                None if head.len() < limit || limit == HEADER_BYTES_MAX => {
                    let error = npy::Error::Header("it ends too early".to_owned());
                    return Err(Error::Npy(path.to_owned(), error));
                }
                None => limit = HEADER_BYTES_MAX,
            }
        };
        let bytes = file.metadata().map_err(read)?.len();
        let wanted = start as u64 + header.data_bytes();
        if bytes != wanted {
            return Err(Error::Length { path: path.to_owned(), bytes, wanted });
        }
        Ok(Matrix { path: path.to_owned(), file, header, start: start as u64 })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What its rows are made of; bytes are bits.
    pub fn kind(&self) -> Kind {
        match self.header.value {
            Type::F32 => Kind::F32,
            Type::I8 => Kind::Int8,
            Type::U8 => Kind::Binary,
        }
    }

    /// Dimensions of a row.
    pub fn dims(&self) -> usize {
        if self.header.value == Type::U8 { self.header.columns * 8 } else { self.header.columns }
    }

    /// How many rows it has.
    pub fn rows(&self) -> u64 {
        self.header.rows
    }

    /// Rows of a block: `BLOCK_BYTES` of them.
    pub fn block_rows(&self) -> u64 {
        (BLOCK_BYTES / self.kind().row_bytes(self.dims())).max(1) as u64
    }

    /// Reads bytes of its values as they stand in the file, from that byte of them on; all are
    /// within the matrix. Threads may read at once.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn read_at(&self, byte: u64, out: &mut [u8]) -> Result<(), Error> {
        let read = self.file.read_exact_at(out, self.start + byte);
        read.map_err(|error| Error::Read(self.path.clone(), error))
    }

    /// Reads `count` rows from number `first` on; both are within the matrix.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn read(&self, first: u64, count: u64) -> Result<Values, Error> {
        let row_bytes = self.kind().row_bytes(self.dims()) as u64;
        let bytes = usize::try_from(count * row_bytes).expect("a block fits");
        let mut buffer = vec![0; bytes];
        self.read_at(first * row_bytes, &mut buffer)?;
        Ok(match self.header.value {
            Type::F32 => {
                let (words, _) = buffer.as_chunks::<4>();
                Values::F32(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
            }
            Type::I8 => Values::Int8(buffer.into_iter().map(|byte| byte as i8).collect()),
            Type::U8 => Values::Binary(buffer),
        })
    }
}
