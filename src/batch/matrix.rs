//! A searchable matrix of a batch's embeddings.
//!
//! ```text
//!   output (merged, in the order of the input)  --plan-->  matrix.npy  + matrix.ids.jsonl
//!                                                     '--> matrix.topk.jsonl   nearest rows
//! ```
//!
//! It is made of the merged output and of nothing else. So it does not matter how many ranks there
//! were, which of them died, or how often the job was run again; and another plan over the same
//! output asks no server anything. Each file takes its name when it is whole, the matrix last.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::error::Error;
use super::lines::Lines;
use crate::backend::embeddings::vectors;
use crate::limits::{BATCH_BLOCK_BYTES, RESULT_LINE_BYTES_MAX};
use crate::post::embedding::search::Hit;
use crate::post::matrix::{Matrix, Writer};
use crate::post::nearest::{Wanted, nearest, oversample};
use crate::post::plan::Plan;
use crate::wire::embeddings::Answer;

/// Floats that are gathered before they are worked on: what threads are worth, and few passes over
/// a corpus.
const GATHERED_FLOATS: usize = 4 << 20;

/// What is made, and of what.
#[derive(Clone, Debug)]
pub struct MatrixPlan {
    /// What is done with each vector.
    pub plan: Plan,
    /// The merged output.
    pub output: PathBuf,
    /// A matrix (`.npy`), or JSON lines (`.jsonl`).
    pub matrix: PathBuf,
    /// How many threads work.
    pub threads: usize,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Vectors.
    pub rows: u64,
    /// Their width, as it is now.
    pub dims: usize,
    /// Nearest rows of each, if they were asked for.
    pub topk: Option<PathBuf>,
}

/// The names of a matrix' rows: `{"custom_id", "index"}` for each, a line.
pub fn ids_path(matrix: &Path) -> PathBuf {
    matrix.with_extension("ids.jsonl")
}

fn topk_path(matrix: &Path) -> PathBuf {
    matrix.with_extension("topk.jsonl")
}

#[derive(Deserialize)]
struct Line<'a> {
    custom_id: String,
    #[serde(borrow)]
    response: Response<'a>,
}

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow)]
    body: &'a RawValue,
}

/// Makes the matrix.
///
/// # Errors
/// A line of the output holds no embeddings, or others than those before it; a file cannot be read
/// or written. No half matrix is left.
pub fn make(plan: &MatrixPlan) -> Result<Made, Error> {
    let file = File::open(&plan.output).map_err(|error| Error::read(&plan.output, error))?;
    let mut lines = Lines::new(file, BATCH_BLOCK_BYTES, RESULT_LINE_BYTES_MAX);
    let mut maker: Option<Maker> = None;
    let mut number = 0;
    while let Some(line) = lines.next().map_err(|error| Error::read(&plan.output, error))? {
        number += 1;
        let wrong = |custom_id: &str, message: String| Error::Vectors {
            path: plan.output.clone(),
            line: number,
            custom_id: custom_id.to_owned(),
            message,
        };
        let result: Line<'_> = serde_json::from_slice(line.bytes)
            .map_err(|error| wrong("", format!("it is no result: {error}")))?;
        let answer = Answer::parse(result.response.body.get().as_bytes())
            .map_err(|error| wrong(&result.custom_id, error.to_string()))?;
        if answer.dims == 0 {
            continue;
        }
        let maker = match &mut maker {
            Some(maker) => maker,
            none => none.insert(Maker::create(plan, answer.dims)?),
        };
        if answer.dims != maker.dims {
            let message = format!(
                "its embeddings have {} dimensions, and those before it {}: rows of one matrix \
                 come from one model",
                answer.dims, maker.dims
            );
            return Err(wrong(&result.custom_id, message));
        }
        // Looked at here, where it still has a name.
        let mut vectors = answer.vectors;
        plan.plan
            .shape(&mut vectors, maker.dims, 1)
            .map_err(|error| wrong(&result.custom_id, error.to_string()))?;
        maker.add(&result.custom_id, vectors)?;
    }
    match maker {
        Some(maker) => maker.finish(),
        None => Err(Error::NoVectors { path: plan.output.clone() }),
    }
}

struct Maker<'a> {
    plan: &'a MatrixPlan,
    /// As they come.
    dims: usize,
    /// As they are left.
    to: usize,
    matrix: Sink,
    ids: Text,
    topk: Option<(usize, Matrix, Text)>,
    gathered: Vec<f32>,
    names: Vec<(String, usize)>,
    rows: u64,
}

enum Sink {
    Npy(Writer),
    Lines(Text),
}

impl<'a> Maker<'a> {
    fn create(plan: &'a MatrixPlan, dims: usize) -> Result<Maker<'a>, Error> {
        let to = plan.plan.truncate.unwrap_or(dims).min(dims);
        let is_lines = plan.matrix.extension().is_some_and(|extension| extension == "jsonl");
        let matrix = if is_lines {
            Sink::Lines(Text::create(&plan.matrix)?)
        } else {
            Sink::Npy(Writer::create(&plan.matrix, plan.plan.kind, to).map_err(Error::post)?)
        };
        let topk = match &plan.plan.topk {
            Some((k, corpus)) => {
                let corpus = Matrix::open(corpus).map_err(Error::post)?;
                Some((*k, corpus, Text::create(&topk_path(&plan.matrix))?))
            }
            None => None,
        };
        let ids = Text::create(&ids_path(&plan.matrix))?;
        let (gathered, names) = (Vec::new(), Vec::new());
        Ok(Maker { plan, dims, to, matrix, ids, topk, gathered, names, rows: 0 })
    }

    /// Adds a row's vectors, which are shaped.
    fn add(&mut self, custom_id: &str, mut vectors: Vec<f32>) -> Result<(), Error> {
        for index in 0..vectors.len() / self.to {
            self.names.push((custom_id.to_owned(), index));
        }
        self.gathered.append(&mut vectors);
        if self.gathered.len() >= GATHERED_FLOATS { self.work() } else { Ok(()) }
    }

    fn work(&mut self) -> Result<(), Error> {
        let (plan, threads) = (self.plan, self.plan.threads);
        let (gathered, names) =
            (std::mem::take(&mut self.gathered), std::mem::take(&mut self.names));
        if let Some((k, corpus, text)) = &mut self.topk {
            let oversample = oversample(corpus.kind());
            let (queries, dims, k) = (gathered.as_slice(), self.to, *k);
            let wanted = Wanted { queries, dims, k, oversample, threads };
            let found = nearest(corpus, None, &wanted).map_err(Error::post)?;
            for ((id, index), hits) in names.iter().zip(found) {
                let hit = |hit: &Hit| json!({ "row": hit.row, "score": hit.score });
                let hits: Vec<_> = hits.iter().map(hit).collect();
                text.line(
                    &json!({ "custom_id": id, "index": index, "nearest": hits }).to_string(),
                )?;
            }
        }
        let values = plan.plan.quantize(gathered, self.to, threads).map_err(Error::post)?;
        match &mut self.matrix {
            Sink::Npy(writer) => writer.append(values.rows()).map_err(Error::post)?,
            Sink::Lines(text) => {
                for ((id, index), vector) in names.iter().zip(vectors(&values, self.to)) {
                    let vector = vector.json().map_err(Error::post)?;
                    let line = json!({ "custom_id": id, "index": index, "embedding": vector });
                    text.line(&line.to_string())?;
                }
            }
        }
        for (id, index) in &names {
            self.ids.line(&json!({ "custom_id": id, "index": index }).to_string())?;
        }
        self.rows += names.len() as u64;
        Ok(())
    }

    fn finish(mut self) -> Result<Made, Error> {
        self.work()?;
        let Maker { plan, to, matrix, ids, topk, rows, .. } = self;
        let topk = match topk {
            Some((.., text)) => {
                text.publish()?;
                Some(topk_path(&plan.matrix))
            }
            None => None,
        };
        match matrix {
            // Each of its lines has its name.
            Sink::Lines(text) => {
                drop(ids);
                text.publish()?;
            }
            Sink::Npy(writer) => {
                ids.publish()?;
                writer.publish().map_err(Error::post)?;
            }
        }
        Ok(Made { rows, dims: to, topk })
    }
}

/// Lines that take their file's name when they are whole.
struct Text {
    path: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
    published: bool,
}

impl Text {
    fn create(path: &Path) -> Result<Text, Error> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".writing");
        let temporary = PathBuf::from(temporary);
        let file = File::create(&temporary).map_err(|error| Error::write(&temporary, error))?;
        let file = BufWriter::with_capacity(1 << 20, file);
        Ok(Text { path: path.to_owned(), temporary, file, published: false })
    }

    fn line(&mut self, line: &str) -> Result<(), Error> {
        let written =
            self.file.write_all(line.as_bytes()).and_then(|()| self.file.write_all(b"\n"));
        written.map_err(|error| Error::write(&self.temporary, error))
    }

    fn publish(mut self) -> Result<(), Error> {
        let flushed = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        let renamed = flushed.and_then(|()| fs::rename(&self.temporary, &self.path));
        renamed.map_err(|error| Error::write(&self.path, error))?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests;
