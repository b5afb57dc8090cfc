use serde_json::Value;

use super::*;
use crate::cuda::{Choice, Device};
use crate::wire::frame::ErrorCode;

fn builtin(echo: bool, itl_ms: u64) -> Builtin {
    Builtin::new(BuiltinConfig {
        model: "built-in".to_owned(),
        echo,
        ttft: Delay::Fixed(Duration::from_millis(5 * itl_ms)),
        itl: Delay::Fixed(Duration::from_millis(itl_ms)),
        stall: None,
        slots: 2,
        seed: 1,
        language: None,
    })
}

#[test]
fn a_stall_holds_back_what_is_due_in_it() {
    let stall = Stall { length: Duration::from_secs(2), every: Duration::from_secs(10) };
    let second = 1_000_000_000;
    for (at, left) in [(0, 0), (1, 0), (10, 2), (11, 1), (12, 0), (19, 0), (20, 2), (21, 1)] {
        assert_eq!(stall.left(Instant(at * second)), Duration::from_secs(left), "{at} s");
    }
    let mut stalled = builtin(false, 1);
    let mut config = (*stalled.config).clone();
    config.stall = Some(stall);
    stalled.config = Rc::new(config);
    let infer = Infer { max_tokens: Some(2), ..Infer::new(Input::Prompt(" the way")) };
    let mut job = stalled.start(&infer).unwrap();
    let now = Instant(11 * second);
    let mut told = 0;
    let mut step = |now| {
        job.step(now, usize::MAX, &mut |output| {
            told += u32::from(matches!(output, Output::Text { .. }))
        })
    };
    assert_eq!(step(now), Next::Wait(Duration::from_millis(5)), "its own delay comes first");
    let later = now + Duration::from_millis(5);
    assert_eq!(step(later), Next::Wait(Duration::from_millis(995)));
    assert_eq!(step(later + Duration::from_millis(995)), Next::Wait(Duration::ZERO));
    assert_eq!(told, 1);
}

/// Text or body, tokens told, the waits, and how it ended.
fn run(builtin: &mut Builtin, infer: &Infer<'_>) -> (String, u32, Vec<Duration>, Option<Finished>) {
    let (mut text, mut sum, mut waits, mut end) = (String::new(), 0, Vec::new(), None);
    let mut job = builtin.start(infer).unwrap();
    let mut now = Instant(1);
    loop {
        let next = job.step(now, usize::MAX, &mut |output| match output {
            Output::Text { text: t, tokens } => {
                text.push_str(t);
                sum += tokens;
            }
            Output::Body { bytes, tokens } => {
                text.push_str(std::str::from_utf8(bytes).unwrap());
                sum += tokens;
            }
            Output::Done(finished) => end = Some(finished),
            Output::Head { .. } | Output::Progress { .. } => {}
            other => panic!("{other:?}"),
        });
        match next {
            Next::Wait(wait) => {
                now = now + wait;
                waits.push(wait);
            }
            Next::Finished => return (text, sum, waits, end),
        }
    }
}

fn post<'a>(path: &'a str, body: &'a str) -> Infer<'a> {
    Infer::new(Input::Api { method: "POST", path, body: body.as_bytes() })
}

#[test]
fn text_with_and_without_delays() {
    let infer = Infer { max_tokens: Some(9), ..Infer::new(Input::Prompt(" the way")) };
    let (text, tokens, waits, end) = run(&mut builtin(false, 0), &infer);
    let wanted = Finished { reason: FinishReason::Length, prompt_tokens: 2, completion_tokens: 9 };
    assert_eq!((tokens, waits.len(), end), (9, 0, Some(wanted)));
    let (slow, tokens, waits, _) = run(&mut builtin(false, 2), &infer);
    assert_eq!((slow, tokens), (text, 9));
    let total: Duration = waits.iter().sum();
    assert_eq!(total, Duration::from_millis(10 + 8 * 2), "the first token, and eight more");
    let echo = Infer::new(Input::Prompt("hello there"));
    let (text, tokens, _, end) = run(&mut builtin(true, 0), &echo);
    assert_eq!((text.as_str(), tokens), ("hello there", 11));
    assert_eq!(end.map(|end| end.reason), Some(FinishReason::Stop));
}

#[test]
fn streams_and_plain_answers_have_the_same_text() {
    for (path, input) in [
        ("/completion", r#""prompt":"p","n_predict":7"#),
        ("/v1/completions", r#""prompt":["p","q"],"max_tokens":7"#),
        (
            "/v1/chat/completions",
            r#""messages":[{"role":"user","content":"p"}],"max_tokens":7,"n":2"#,
        ),
    ] {
        let (plain, tokens, _, _) =
            run(&mut builtin(false, 0), &post(path, &format!("{{{input}}}")));
        let plain: Value = serde_json::from_str(&plain).unwrap();
        let body =
            format!(r#"{{{input},"stream":true,"stream_options":{{"include_usage":true}}}}"#);
        let (stream, streamed, _, _) = run(&mut builtin(false, 1), &post(path, &body));
        assert_eq!(tokens, streamed);
        let mut text = String::new();
        for data in stream.split_terminator("\n\n").map(|event| &event["data: ".len()..]) {
            let Ok(event) = serde_json::from_str::<Value>(data) else {
                assert_eq!(data, "[DONE]");
                continue;
            };
            let first = &event["choices"][0];
            if first["index"].as_u64().unwrap_or(0) == 0 {
                let part = [&event["content"], &first["text"], &first["delta"]["content"]];
                text.extend(part.iter().filter_map(|part| part.as_str()));
            }
            if let Some(usage) = event.get("usage") {
                assert_eq!(usage, &plain["usage"]);
            }
        }
        let choice = &plain["choices"][0];
        let whole = [&plain["content"], &choice["text"], &choice["message"]["content"]];
        assert_eq!(whole.iter().find_map(|text| text.as_str()), Some(text.as_str()), "{path}");
        assert_eq!(stream.ends_with("data: [DONE]\n\n"), path != "/completion");
    }
}

#[test]
fn tokens_embeddings_and_what_is_not_there() {
    let mut builtin = builtin(false, 0);
    let mut ask = |path: &str, body: &str| -> Value {
        serde_json::from_str(&run(&mut builtin, &post(path, body)).0).unwrap()
    };
    let tokens = ask("/tokenize", r#"{"content":" the ü"}"#);
    assert_eq!(ask("/detokenize", &tokens.to_string())["content"], " the ü");
    let plain = ask("/v1/embeddings", r#"{"input":["a","b"],"dimensions":3}"#);
    assert_eq!(plain["data"][1]["embedding"].as_array().unwrap().len(), 3);
    let packed =
        ask("/v1/embeddings", r#"{"input":"a","dimensions":3,"encoding_format":"base64"}"#);
    assert_eq!(packed["data"][0]["embedding"].as_str().unwrap().len(), 16);
    let get = |path| Infer::new(Input::Api { method: "GET", path, body: b"" });
    for (infer, code) in [
        (post("/nope", "{}"), ErrorCode::NotFound),
        (get("/completion"), ErrorCode::NotFound),
        (post("/completion", "{"), ErrorCode::BadRequest),
        (post("/completion", "{}"), ErrorCode::BadRequest),
        (post("/v1/completions", r#"{"prompt":"a","n":1000}"#), ErrorCode::BadRequest),
        (post("/v1/chat/completions", r#"{"messages":[]}"#), ErrorCode::BadRequest),
    ] {
        assert_eq!(builtin.start(&infer).unwrap_err().code, code, "{infer:?}");
    }
    let props = run(&mut builtin, &get("/props")).0;
    assert!(props.contains(r#""total_slots":2"#));
}

#[test]
fn delays_have_the_mean_that_was_asked_for() {
    let delay = Delay::LogNormal { mean: Duration::from_millis(20), sigma: 0.5 };
    let mut prng = Prng::new(3);
    let sum: f64 = (0..20_000).map(|_| delay.draw(&mut prng).as_secs_f64()).sum();
    assert!((sum / 20_000.0 - 0.020).abs() < 0.0005);
}

fn model(itl_ms: u64) -> Builtin {
    let language = Language::new(ngrams::Model::new(2000), Device::new(Choice::Cpu));
    let config =
        BuiltinConfig { language: Some(language), ..(*builtin(false, itl_ms).config).clone() };
    Builtin::new(config)
}

fn ask(builtin: &mut Builtin, path: &str, body: &str) -> Value {
    serde_json::from_str(&run(builtin, &post(path, body)).0).unwrap()
}

#[test]
fn a_model_draws_the_same_tokens_whoever_is_served_with_it() {
    let body = |seed: u32| {
        format!(
            r#"{{"prompt":"tell me of the river","n_predict":40,"seed":{seed},"ignore_eos":true}}"#
        )
    };
    let alone: Vec<Value> =
        (0..5).map(|seed| ask(&mut model(0), "/completion", &body(seed))).collect();
    assert!(alone.windows(2).all(|pair| pair[0]["content"] != pair[1]["content"]));
    // All at once, a step each in turn, as a core's timers have it; one leaves early.
    let mut together = model(0);
    let bodies: Vec<String> = (0..5).map(body).collect();
    let mut jobs: Vec<Option<Job>> = bodies
        .iter()
        .map(|body| Some(together.start(&post("/completion", body)).unwrap()))
        .collect();
    let mut answers = vec![String::new(); 5];
    for turn in 0..60 {
        for (slot, answer) in jobs.iter_mut().zip(&mut answers) {
            let Some(job) = slot else { continue };
            let next = job.step(Instant(1), usize::MAX, &mut |output| {
                if let Output::Body { bytes, .. } = output {
                    answer.push_str(std::str::from_utf8(bytes).unwrap());
                }
            });
            if next == Next::Finished {
                *slot = None;
            }
        }
        if turn == 10 {
            jobs[3] = None;
        }
    }
    for (index, answer) in answers.iter().enumerate().filter(|(index, _)| *index != 3) {
        let answer: Value = serde_json::from_str(answer).unwrap();
        assert_eq!(answer["content"], alone[index]["content"]);
        assert_eq!(answer["tokens_predicted"], 40);
    }
    // Over the binary protocol, with delays, and in a chat's stream, it is the same text.
    let infer = Infer {
        max_tokens: Some(40),
        seed: Some(2),
        extra: Some(r#"{"ignore_eos":true}"#),
        ..Infer::new(Input::Prompt("tell me of the river"))
    };
    let (text, tokens, ..) = run(&mut model(2), &infer);
    assert_eq!((text.as_str(), tokens), (alone[2]["content"].as_str().unwrap(), 40));
    let stream = body(2).replace("\"seed\"", "\"stream\":true,\"seed\"");
    let (events, tokens, ..) = run(&mut model(0), &post("/completion", &stream));
    let parts = events.split_terminator("\n\n").map(|event| {
        let event: Value = serde_json::from_str(&event["data: ".len()..]).unwrap();
        event["content"].as_str().unwrap().to_owned()
    });
    assert_eq!((parts.collect::<String>(), tokens), (text, 40));
}

#[test]
fn a_model_does_what_parameters_say() {
    let mut model = model(0);
    // The end comes by itself.
    let body = r#"{"prompt":"a","n_predict":2000,"temperature":1}"#;
    let ended = ask(&mut model, "/completion", body);
    assert_eq!(ended["stop_type"], "eos");
    assert!(ended["content"].as_str().unwrap().ends_with('.'));
    // Greedy needs no seed, and top_k 1 is greedy.
    let greedy = |seed: u32, how: &str, model: &mut Builtin| {
        let body = format!(r#"{{"prompt":"a","n_predict":30,"seed":{seed},{how}}}"#);
        ask(model, "/completion", &body)["content"].clone()
    };
    let wanted = greedy(1, r#""temperature":0"#, &mut model);
    assert_eq!(greedy(2, r#""temperature":0"#, &mut model), wanted);
    assert_eq!(greedy(3, r#""top_k":1"#, &mut model), wanted);
    // A token that is banned does not come, and one that is wanted does.
    let first = wanted.as_str().unwrap().split(' ').nth(1).unwrap().to_owned();
    let token =
        ask(&mut model, "/tokenize", &format!(r#"{{"content":" {first}"}}"#))["tokens"][0].clone();
    let banned =
        greedy(1, &format!(r#""temperature":0,"logit_bias":[[{token},false]]"#), &mut model);
    assert!(!banned.as_str().unwrap().split(' ').any(|word| word == first), "{banned}");
    let wanted = greedy(1, r#""logit_bias":{"256":100}"#, &mut model);
    assert_eq!(wanted.as_str().unwrap().matches(" a").count(), 30);
    let varied =
        greedy(1, r#""logit_bias":{"256":9},"temperature":0,"presence_penalty":50"#, &mut model);
    assert!(varied.as_str().unwrap().matches(" a ").count() < 2, "{varied}");
    // Stop words, and what was said of tokens.
    let stopped = ask(&mut model, "/completion", r#"{"prompt":"a","n_predict":90,"stop":["."]}"#);
    assert_eq!(stopped["stop_type"], "word");
    assert_eq!(stopped["stopping_word"], ".");
    let error =
        model.start(&post("/completion", r#"{"prompt":"a","temperature":-1}"#)).unwrap_err();
    assert!(error.message.contains("temperature"), "{error:?}");
    // What no number can hold is refused when it is met.
    let mut failed = None;
    let infer =
        post("/completion", r#"{"prompt":"a","temperature":0.001,"logit_bias":{"65":900000}}"#);
    let mut job = model.start(&infer).unwrap();
    let next = job.step(Instant(1), usize::MAX, &mut |output| {
        if let Output::Fail(failure) = output {
            failed = Some(failure);
        }
    });
    assert_eq!((next, failed.unwrap().code), (Next::Finished, ErrorCode::BadRequest));
}

#[test]
fn probabilities_are_told_as_llama_server_tells_them() {
    let mut model = model(0);
    let chat = r#"{"messages":[{"role":"user","content":"p"}],"max_tokens":5,"logprobs":true,
        "top_logprobs":3,"temperature":0}"#;
    let plain = ask(&mut model, "/v1/chat/completions", chat);
    let content = plain["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 5);
    let text: String = content.iter().map(|one| one["token"].as_str().unwrap()).collect();
    assert_eq!(plain["choices"][0]["message"]["content"], text);
    for one in content {
        let top = one["top_logprobs"].as_array().unwrap();
        assert_eq!((top.len(), &top[0]["token"]), (3, &one["token"]), "greedy is the likeliest");
        let logs: Vec<f64> = top.iter().map(|one| one["logprob"].as_f64().unwrap()).collect();
        assert!(logs[0] == one["logprob"].as_f64().unwrap() && logs.is_sorted_by(|a, b| a >= b));
        assert!(logs.iter().map(|log| log.exp()).sum::<f64>() <= 1.0001);
    }
    let native = r#"{"prompt":"p","n_predict":4,"n_probs":2,"stream":true}"#;
    let (events, ..) = run(&mut model, &post("/completion", native));
    let with = events.matches("completion_probabilities").count();
    assert!(with >= 1 && events.contains("\"id\":"), "{events}");
    let completions = r#"{"prompt":"p","max_tokens":4,"logprobs":1,"logit_bias":{"1999":-100}}"#;
    let plain = ask(&mut model, "/v1/completions", completions);
    assert_eq!(plain["choices"][0]["logprobs"]["content"].as_array().unwrap().len(), 4);
    let models =
        run(&mut model, &Infer::new(Input::Api { method: "GET", path: "/v1/models", body: b"" })).0;
    assert!(models.contains("\"n_vocab\":2000"), "{models}");
}
