//! What a plan makes of an answer of `/v1/embeddings`.

use crate::cuda::Offload;
use crate::post::embedding::search::Rows;
use crate::post::matrix::Values;
use crate::post::plan::Plan;
use crate::wire::embeddings::{Answer, Vector};

/// Whether a call asks for embeddings in OpenAI's form.
pub fn is_call(method: &str, path: &str) -> bool {
    let path = path.split('?').next().unwrap_or(path);
    method == "POST" && matches!(path.trim_end_matches('/'), "/v1/embeddings" | "/embeddings")
}

/// The answer with its vectors as the plan wants them. Vectors in base64 stay so.
///
/// # Errors
/// It is no answer with embeddings, or they do not fit the plan.
pub fn transform(body: &[u8], plan: &Plan, offload: &mut Offload) -> Result<Vec<u8>, String> {
    let mut answer = Answer::parse(body).map_err(|error| error.to_string())?;
    if answer.dims == 0 {
        return Ok(body.to_vec());
    }
    let rows = std::mem::take(&mut answer.vectors);
    let done = offload.transform(plan, rows, answer.dims, 1);
    let (values, dims) = done.map_err(|error| error.to_string())?;
    answer.with_vectors(vectors(&values, dims)).map_err(|error| error.to_string())
}

/// Each row as a vector of an answer.
pub fn vectors(values: &Values, dims: usize) -> Box<dyn Iterator<Item = Vector<'_>> + '_> {
    match values.rows() {
        Rows::F32(values) => Box::new(values.chunks_exact(dims).map(Vector::F32)),
        Rows::Int8(values) => Box::new(values.chunks_exact(dims).map(Vector::Int8)),
        Rows::Binary(bytes) => Box::new(bytes.chunks_exact(dims / 8).map(Vector::Bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::{Choice, Device};

    #[test]
    fn vectors_are_transformed_and_all_else_stays() {
        let plan = Plan::parse("normalize,truncate=2,quantize=int8").unwrap();
        let mut offload = Offload::new(&Device::new(Choice::Cpu));
        let body = br#"{"data":[{"embedding":[3,4,9],"index":0}],"model":"m"}"#;
        let wanted = r#"{"data":[{"embedding":[95,127],"index":0}],"model":"m"}"#;
        let got = transform(body, &plan, &mut offload).unwrap();
        assert_eq!(String::from_utf8(got).unwrap(), wanted);
        assert_eq!(transform(br#"{"data":[]}"#, &plan, &mut offload).unwrap(), br#"{"data":[]}"#);
        for (body, says) in [("{}", "no answer"), (r#"{"data":[{"embedding":[3]}]}"#, "truncated")]
        {
            let error = transform(body.as_bytes(), &plan, &mut offload).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        assert!(is_call("POST", "/v1/embeddings?x=1") && !is_call("GET", "/v1/embeddings"));
        assert!(!is_call("POST", "/embedding") && is_call("POST", "/v1/embeddings/"));
    }
}
