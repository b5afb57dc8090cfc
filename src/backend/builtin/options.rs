//! How a request wants its tokens drawn: llama-server's names and defaults, and OpenAI's names.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::sampler::Options;
use super::vocabulary::Vocabulary;
use crate::backend::Failure;
use crate::post::sampling::{ADJUSTMENT_MAX, Edit, Params, TOP_N_MAX};
use crate::wire::frame::ErrorCode;
use crate::wire::message::Infer;

/// Biases of one request (OpenAI's API takes 300).
const BIAS_MAX: usize = 1024;
/// Tokens that penalties look back upon at most.
const WINDOW_MAX: i64 = 4096;

/// The members of a body that say how tokens are drawn.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Fields {
    temperature: Option<f32>,
    top_k: Option<i64>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    #[serde(alias = "repetition_penalty")]
    repeat_penalty: Option<f32>,
    repeat_last_n: Option<i64>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<Value>,
    ignore_eos: Option<bool>,
    logprobs: Option<Value>,
    top_logprobs: Option<usize>,
    n_probs: Option<usize>,
}

impl Fields {
    /// Those of a body.
    ///
    /// # Errors
    /// One is not of its type.
    pub fn of(body: &[u8]) -> Result<Fields, Failure> {
        serde_json::from_slice(body)
            .map_err(|error| bad(format!("the body's sampling parameters: {error}")))
    }

    /// Those of a request over the binary protocol; its own fields go before those in `extra`.
    ///
    /// # Errors
    /// One is not of its type.
    pub fn of_infer(infer: &Infer<'_>) -> Result<Fields, Failure> {
        let extra = Fields::of(infer.extra.unwrap_or("{}").as_bytes())?;
        Ok(Fields {
            temperature: infer.temperature.or(extra.temperature),
            top_k: infer.top_k.map(i64::from).or(extra.top_k),
            top_p: infer.top_p.or(extra.top_p),
            min_p: infer.min_p.or(extra.min_p),
            repeat_penalty: infer.repeat_penalty.or(extra.repeat_penalty),
            ..extra
        })
    }

    /// What the sampler is told of them, but for the sequence's number.
    ///
    /// # Errors
    /// A value is out of its range.
    pub fn options(&self, seed: u64, vocabulary: &Vocabulary) -> Result<Options, Failure> {
        // llama-server's defaults; its 0 or less of top_k is all.
        let params = Params {
            temperature: self.temperature.unwrap_or(0.8),
            top_k: u32::try_from(self.top_k.unwrap_or(40).max(0)).unwrap_or(0),
            top_p: self.top_p.unwrap_or(0.95),
            min_p: self.min_p.unwrap_or(0.05),
            repetition_penalty: self.repeat_penalty.unwrap_or(1.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            seed,
            stream: 0,
            step: 0,
        };
        params.check(0).map_err(|error| {
            let error = error.to_string();
            bad(error.strip_prefix("row 0: ").unwrap_or(&error))
        })?;
        let mut bias = match &self.logit_bias {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Object(object)) => by_name(object)?,
            Some(Value::Array(pairs)) => by_pair(pairs)?,
            Some(_) => return Err(bad("logit_bias is neither an object nor a list of pairs")),
        };
        if self.ignore_eos == Some(true) {
            bias.push((vocabulary.end(), f32::NEG_INFINITY));
        }
        check(&bias, vocabulary)?;
        let window = match self.repeat_last_n.unwrap_or(64) {
            -1 => WINDOW_MAX,
            window @ 0..=WINDOW_MAX => window,
            window => {
                return Err(bad(format!(
                    "repeat_last_n is {window}; it may be -1 to {WINDOW_MAX}"
                )));
            }
        };
        let top = self.top()?;
        Ok(Options { params, bias, penalty_window: window as usize, top })
    }

    /// `logprobs` is a switch in a chat, and a number elsewhere; llama-server has `n_probs`.
    fn top(&self) -> Result<Option<usize>, Failure> {
        let listed = match &self.logprobs {
            None | Some(Value::Null | Value::Bool(false)) => None,
            Some(Value::Bool(true)) => Some(self.top_logprobs.unwrap_or(0)),
            Some(other) => match other.as_u64() {
                Some(count) => Some(usize::try_from(count).unwrap_or(usize::MAX)),
                None => return Err(bad("logprobs is neither true, false nor a number")),
            },
        };
        let count = listed.or(self.n_probs.filter(|&count| count > 0));
        match count {
            Some(count) if count > TOP_N_MAX => {
                Err(bad(format!("{count} likeliest tokens; at most {TOP_N_MAX} can be asked for")))
            }
            count => Ok(count),
        }
    }
}

fn by_name(object: &Map<String, Value>) -> Result<Vec<(u32, f32)>, Failure> {
    let pair = |(name, value): (&String, &Value)| Some((name.parse().ok()?, weight(value)?));
    let pairs: Option<Vec<_>> = object.iter().map(pair).collect();
    pairs.ok_or_else(|| bad("logit_bias: its names are tokens, its values numbers"))
}

fn by_pair(pairs: &[Value]) -> Result<Vec<(u32, f32)>, Failure> {
    let pair = |pair: &Value| {
        let [token, value] = pair.as_array()?.as_slice() else { return None };
        Some((u32::try_from(token.as_u64()?).ok()?, weight(value)?))
    };
    let pairs: Option<Vec<_>> = pairs.iter().map(pair).collect();
    pairs.ok_or_else(|| bad("logit_bias: its pairs are a token and a number, or false"))
}

fn weight(value: &Value) -> Option<f32> {
    if *value == Value::Bool(false) {
        return Some(f32::NEG_INFINITY);
    }
    value.as_f64().map(|value| value as f32)
}

fn check(bias: &[(u32, f32)], vocabulary: &Vocabulary) -> Result<(), Failure> {
    if bias.len() > BIAS_MAX {
        let count = bias.len();
        return Err(bad(format!("logit_bias names {count} tokens; it may name {BIAS_MAX}")));
    }
    // As the sampler will have them: what names a token twice is added.
    for edit in Edit::list(&[], bias) {
        let Edit { token, bias, .. } = edit;
        if token as usize >= vocabulary.size() {
            let size = vocabulary.size();
            return Err(bad(format!("logit_bias: token {token} is not among the {size}")));
        }
        if !(bias.abs() <= ADJUSTMENT_MAX || bias == f32::NEG_INFINITY) {
            return Err(bad(format!("logit_bias: {bias} for token {token} is out of range")));
        }
    }
    Ok(())
}

fn bad(message: impl Into<String>) -> Failure {
    Failure::request(ErrorCode::BadRequest, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::Input;

    #[test]
    fn what_bodies_say() {
        let vocabulary = Vocabulary::new(512);
        let options = |body: &str| Fields::of(body.as_bytes())?.options(7, &vocabulary);
        let plain = options("{}").unwrap();
        let Params { temperature, top_k, top_p, min_p, seed, .. } = plain.params;
        assert_eq!((temperature, top_k, top_p, min_p, seed), (0.8, 40, 0.95, 0.05, 7));
        assert_eq!((plain.bias.len(), plain.penalty_window, plain.top), (0, 64, None));
        let all = options(
            r#"{"temperature":0,"top_k":-1,"repetition_penalty":1.5,"logit_bias":{"65":-2},
                "ignore_eos":true,"logprobs":true,"top_logprobs":3,"repeat_last_n":-1}"#,
        )
        .unwrap();
        assert_eq!((all.params.top_k, all.params.repetition_penalty, all.top), (0, 1.5, Some(3)));
        assert_eq!(all.bias, [(65, -2.0), (511, f32::NEG_INFINITY)]);
        assert_eq!(options(r#"{"logit_bias":[[65,false],[66,1]]}"#).unwrap().bias.len(), 2);
        assert_eq!(options(r#"{"logprobs":5}"#).unwrap().top, Some(5));
        assert_eq!(options(r#"{"n_probs":2}"#).unwrap().top, Some(2));
        for (body, says) in [
            (r#"{"temperature":"x"}"#, "sampling parameters"),
            (r#"{"temperature":-1}"#, "temperature is -1; it must be"),
            (r#"{"top_p":0}"#, "top_p is 0"),
            (r#"{"logit_bias":7}"#, "neither an object"),
            (r#"{"logit_bias":{"x":1}}"#, "its names are tokens"),
            (r#"{"logit_bias":[[1]]}"#, "its pairs"),
            (r#"{"logit_bias":{"512":1}}"#, "token 512 is not among the 512"),
            (r#"{"logit_bias":{"1":1e7}}"#, "out of range"),
            (r#"{"logprobs":"x"}"#, "logprobs is neither"),
            (r#"{"logprobs":33}"#, "at most 32"),
            (r#"{"repeat_last_n":-2}"#, "repeat_last_n is -2"),
        ] {
            let error = options(body).unwrap_err();
            assert!(error.message.contains(says), "{body}: {}", error.message);
            assert_eq!(error.code, ErrorCode::BadRequest);
        }
        let extra = Some(r#"{"temperature":0.5,"presence_penalty":1}"#);
        let infer = Infer { temperature: Some(0.1), extra, ..Infer::new(Input::Prompt("x")) };
        let options = Fields::of_infer(&infer).unwrap().options(1, &vocabulary).unwrap();
        assert_eq!((options.params.temperature, options.params.presence_penalty), (0.1, 1.0));
    }
}
