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
use crate::cuda::{Choice, Device, Offload};
use crate::limits::{BATCH_BLOCK_BYTES, RESULT_LINE_BYTES_MAX};
use crate::post::embedding::search::{Hit, Kind};
use crate::post::embedding::{self, check_finite};
use crate::post::matrix::{Matrix, Values, Writer};
use crate::post::nearest::{Wanted, nearest, oversample};
use crate::post::plan::Plan;
use crate::wire::embeddings::Answer;

/// Floats that are gathered before they are worked on: what threads are worth.
const GATHERED_FLOATS: usize = 4 << 20;
/// Vectors that wait for a pass over a corpus, and what it finds of them: the more, the fewer
/// passes.
const NEIGHBOUR_BYTES_MAX: usize = 256 << 20;

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
    /// And which card.
    pub device: Device,
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
        let (dims, wanted) = (answer.dims, plan.plan.truncate.unwrap_or(0));
        if wanted > dims {
            let narrow = embedding::Error::TooNarrow { dims, wanted };
            return Err(wrong(&result.custom_id, narrow.to_string()));
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
        check_finite(&answer.vectors, maker.dims)
            .map_err(|error| wrong(&result.custom_id, error.to_string()))?;
        maker.add(&result.custom_id, number, answer.vectors)?;
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
    neighbours: Option<Neighbours>,
    /// As they come, and looked at.
    gathered: Vec<f32>,
    names: Vec<Name>,
    offload: Offload,
    rows: u64,
}

/// Who looks for the nearest rows of a matrix.
struct Neighbours {
    k: usize,
    corpus: Matrix,
    text: Text,
    /// Vectors that wait for the next pass, and where they come from.
    queries: Vec<f32>,
    names: Vec<Name>,
}

/// Where a vector comes from.
#[derive(Clone)]
struct Name {
    custom_id: String,
    /// Its number in its row's answer.
    index: usize,
    /// The line of the output.
    line: u64,
}

enum Sink {
    Npy(Writer),
    Lines(Text),
}

impl<'a> Maker<'a> {
    fn create(plan: &'a MatrixPlan, dims: usize) -> Result<Maker<'a>, Error> {
        let to = plan.plan.truncate.unwrap_or(dims);
        let is_lines = plan.matrix.extension().is_some_and(|extension| extension == "jsonl");
        let matrix = if is_lines {
            Sink::Lines(Text::create(&plan.matrix)?)
        } else {
            Sink::Npy(Writer::create(&plan.matrix, plan.plan.kind, to).map_err(Error::post)?)
        };
        let neighbours = match &plan.plan.topk {
            Some((k, corpus)) => {
                let corpus = Matrix::open(corpus).map_err(Error::post)?;
                let text = Text::create(&topk_path(&plan.matrix))?;
                let (queries, names) = (Vec::new(), Vec::new());
                Some(Neighbours { k: *k, corpus, text, queries, names })
            }
            None => None,
        };
        let ids = Text::create(&ids_path(&plan.matrix))?;
        let (gathered, names) = (Vec::new(), Vec::new());
        if let Choice::Device(_) = plan.device.choice()
            && let Err(why) = plan.device.start().wait()
        {
            plan.device.give_up(why);
        }
        let offload = Offload::new(&plan.device);
        Ok(Maker { plan, dims, to, matrix, ids, neighbours, gathered, names, offload, rows: 0 })
    }

    /// Adds a row's vectors.
    fn add(&mut self, custom_id: &str, line: u64, mut vectors: Vec<f32>) -> Result<(), Error> {
        for index in 0..vectors.len() / self.dims {
            self.names.push(Name { custom_id: custom_id.to_owned(), index, line });
        }
        self.gathered.append(&mut vectors);
        if self.gathered.len() >= GATHERED_FLOATS { self.work() } else { Ok(()) }
    }

    fn work(&mut self) -> Result<(), Error> {
        let (gathered, names) =
            (std::mem::take(&mut self.gathered), std::mem::take(&mut self.names));
        let plan = &self.plan.plan;
        let values = match self.neighbours.is_some() {
            true => {
                // The queries are floats, whatever the matrix is made of.
                let floats = Plan { kind: Kind::F32, ..plan.clone() };
                let Values::F32(shaped) = self.transform(&floats, gathered, self.dims, &names)?
                else {
                    unreachable!("the plan says floats")
                };
                if let Some(neighbours) = &mut self.neighbours {
                    neighbours.queries.extend_from_slice(&shaped);
                    neighbours.names.extend_from_slice(&names);
                }
                self.search(false)?;
                let quantized = Plan { truncate: None, normalize: false, ..plan.clone() };
                self.transform(&quantized, shaped, self.to, &names)?
            }
            false => self.transform(plan, gathered, self.dims, &names)?,
        };
        match &mut self.matrix {
            Sink::Npy(writer) => writer.append(values.rows()).map_err(Error::post)?,
            Sink::Lines(text) => {
                for (name, vector) in names.iter().zip(vectors(&values, self.to)) {
                    let mut line = name.json();
                    line["embedding"] = json!(vector.json().map_err(Error::post)?);
                    text.line(&line.to_string())?;
                }
            }
        }
        for name in &names {
            self.ids.line(&name.json().to_string())?;
        }
        self.rows += names.len() as u64;
        Ok(())
    }

    /// What a plan makes of vectors that have these names.
    fn transform(
        &mut self,
        plan: &Plan,
        vectors: Vec<f32>,
        dims: usize,
        names: &[Name],
    ) -> Result<Values, Error> {
        let done = self.offload.transform(plan, vectors, dims, self.plan.threads);
        done.map(|(values, _)| values).map_err(|error| match error {
            embedding::Error::TooLong { row } => {
                let Name { custom_id, index, line } = &names[row];
                Error::Vectors {
                    path: self.plan.output.clone(),
                    line: *line,
                    custom_id: custom_id.clone(),
                    message: embedding::Error::TooLong { row: *index }.to_string(),
                }
            }
            error => Error::post(error),
        })
    }

    /// Tells the nearest rows of the vectors that wait: once they are enough for a pass over the
    /// corpus, or all that are left.
    fn search(&mut self, rest: bool) -> Result<(), Error> {
        let Some(neighbours) = &mut self.neighbours else { return Ok(()) };
        let Neighbours { k, corpus, text, queries, names } = neighbours;
        let (oversample, threads) = (oversample(corpus.kind()), self.plan.threads);
        // Each vector, as it is and as it is looked for; and each thread's hits, and all of them.
        let hits = (*k * oversample).min(usize::try_from(corpus.rows()).unwrap_or(usize::MAX));
        let of_query = 2 * 4 * self.to + hits * size_of::<Hit>() * (threads + 1);
        let most = (NEIGHBOUR_BYTES_MAX / of_query).max(1);
        while names.len() >= most || rest && !names.is_empty() {
            let count = names.len().min(most);
            let of_pass: Vec<f32> = queries.drain(..count * self.to).collect();
            let wanted = Wanted { queries: &of_pass, dims: self.to, k: *k, oversample, threads };
            let found = nearest(corpus, None, &wanted, &mut self.offload).map_err(Error::post)?;
            for (name, hits) in names.drain(..count).zip(found) {
                let hit = |hit: &Hit| json!({ "row": hit.row, "score": hit.score });
                let mut line = name.json();
                line["nearest"] = hits.iter().map(hit).collect();
                text.line(&line.to_string())?;
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Made, Error> {
        self.work()?;
        self.search(true)?;
        let Maker { plan, to, matrix, ids, neighbours, rows, .. } = self;
        let topk = match neighbours {
            Some(neighbours) => {
                neighbours.text.publish()?;
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

impl Name {
    fn json(&self) -> serde_json::Value {
        json!({ "custom_id": self.custom_id, "index": self.index })
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
