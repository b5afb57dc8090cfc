//! What is done with embeddings: `normalize,truncate=256,quantize=int8,topk=10:corpus.npy`.
//!
//! However they are written, the steps go in one order: cut, then made as long as 1, then
//! quantised. A unit vector that is cut is none any more; OpenAI's `dimensions` cuts first too.

use std::path::PathBuf;

use super::embedding::search::Kind;
use super::embedding::{
    DIMS_MAX, Error, check_finite, normalize, quantize_binary, quantize_int8, truncate,
};
use super::matrix::Values;

/// Neighbours of a row.
pub const TOPK_MAX: usize = 10_000;

/// What is done with embeddings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Dimensions that are left of each.
    pub truncate: Option<usize>,
    /// Made as long as 1.
    pub normalize: bool,
    /// What they become.
    pub kind: Kind,
    /// So many nearest rows of a matrix are looked for.
    pub topk: Option<(usize, PathBuf)>,
}

impl Plan {
    /// Reads a plan.
    ///
    /// # Errors
    /// A sentence that names the step.
    pub fn parse(text: &str) -> Result<Plan, String> {
        let mut plan = Plan { truncate: None, normalize: false, kind: Kind::F32, topk: None };
        let mut seen = Vec::new();
        for step in text.split(',') {
            let (name, value) = step.split_once('=').map_or((step, None), |(n, v)| (n, Some(v)));
            if seen.contains(&name) {
                return Err(format!("{name} stands twice"));
            }
            seen.push(name);
            match (name, value) {
                ("normalize" | "normalise", None) => plan.normalize = true,
                ("truncate", Some(value)) => {
                    let dims = value.parse().ok().filter(|dims| (1..=DIMS_MAX).contains(dims));
                    let dims = dims.ok_or_else(|| {
                        format!("truncate={value}: not a number from 1 to {DIMS_MAX}")
                    })?;
                    plan.truncate = Some(dims);
                }
                ("quantize" | "quantise", Some("int8")) => plan.kind = Kind::Int8,
                ("quantize" | "quantise", Some("binary")) => plan.kind = Kind::Binary,
                ("quantize" | "quantise", Some(value)) => {
                    return Err(format!("quantize={value}: not int8 or binary"));
                }
                ("topk", Some(value)) => {
                    let (count, corpus) = value.split_once(':').unwrap_or((value, ""));
                    let count = count.parse().ok().filter(|count| (1..=TOPK_MAX).contains(count));
                    let (Some(count), false) = (count, corpus.is_empty()) else {
                        return Err(format!(
                            "topk={value}: not K:FILE.npy, with K from 1 to {TOPK_MAX}"
                        ));
                    };
                    plan.topk = Some((count, PathBuf::from(corpus)));
                }
                _ => {
                    return Err(format!(
                        "{step}: not normalize, truncate=N, quantize=int8, quantize=binary or \
                         topk=K:FILE.npy"
                    ));
                }
            }
        }
        Ok(plan)
    }

    /// Cuts rows and makes them as long as 1; how wide they are then comes back.
    ///
    /// # Errors
    /// A row is no vector, or too narrow.
    pub fn shape(&self, rows: &mut Vec<f32>, dims: usize, threads: usize) -> Result<usize, Error> {
        check_finite(rows, dims)?;
        let dims = match self.truncate {
            Some(to) => {
                truncate(rows, dims, to)?;
                to
            }
            None => dims,
        };
        if self.normalize {
            normalize(rows, dims, threads)?;
        }
        Ok(dims)
    }

    /// All of it but the search: what rows become, and how wide they are then.
    ///
    /// # Errors
    /// As `shape` and `quantize`.
    pub fn transform(
        &self,
        mut rows: Vec<f32>,
        dims: usize,
        threads: usize,
    ) -> Result<(Values, usize), Error> {
        let dims = self.shape(&mut rows, dims, threads)?;
        Ok((self.quantize(rows, dims, threads)?, dims))
    }

    /// What rows that were shaped become.
    ///
    /// # Errors
    /// They have no whole bytes of bits.
    pub fn quantize(&self, rows: Vec<f32>, dims: usize, threads: usize) -> Result<Values, Error> {
        Ok(match self.kind {
            Kind::F32 => Values::F32(rows),
            Kind::Int8 => {
                let mut out = vec![0; rows.len()];
                quantize_int8(&rows, dims, &mut out, threads);
                Values::Int8(out)
            }
            Kind::Binary => {
                let mut out = vec![0; rows.len() / 8];
                quantize_binary(&rows, dims, &mut out, threads)?;
                Values::Binary(out)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read_and_done_in_its_one_order() {
        let plan = Plan::parse("normalize,truncate=2,quantize=int8,topk=10:a/b.npy").unwrap();
        assert_eq!((plan.truncate, plan.kind), (Some(2), Kind::Int8));
        assert_eq!(plan.topk, Some((10, PathBuf::from("a/b.npy"))));
        let mut rows = vec![3.0, 4.0, 9.0, 0.0, 0.0, 1.0];
        assert_eq!(plan.shape(&mut rows, 3, 1), Ok(2));
        assert_eq!(rows, [0.6, 0.8, 0.0, 0.0]);
        assert_eq!(plan.quantize(rows, 2, 1), Ok(Values::Int8(vec![95, 127, 0, 0])));
        let plain = Plan::parse("normalise").unwrap();
        assert_eq!(plain.quantize(vec![1.0], 1, 1), Ok(Values::F32(vec![1.0])));
        assert!(plain.shape(&mut vec![f32::NAN], 1, 1).is_err());
        let binary = Plan::parse("quantize=binary").unwrap();
        assert_eq!(binary.quantize(vec![1.0; 8], 8, 1), Ok(Values::Binary(vec![255])));
        assert_eq!(binary.quantize(vec![1.0; 9], 9, 1), Err(Error::Bits { dims: 9 }));
        for (text, says) in [
            ("", "not normalize"),
            ("normalize,normalize", "stands twice"),
            ("truncate=0", "1 to 65536"),
            ("quantize=int4", "not int8 or binary"),
            ("topk=10", "K:FILE.npy"),
            ("topk=0:x", "1 to 10000"),
            ("normalize=2", "not normalize"),
        ] {
            let error = Plan::parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
