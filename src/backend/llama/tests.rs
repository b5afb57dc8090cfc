use super::*;
use crate::wire::http1::BodyLength;

fn post<'a>(path: &'a str, body: &'a str) -> Infer<'a> {
    Infer::new(Input::Api { method: "POST", path, body: body.as_bytes() })
}

/// What a reader tells of a stream: texts with tokens, bodies, the end.
fn read(infer: &Infer<'_>, events: &[&str], split: usize, complete: bool) -> String {
    let stream: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    let mut told = String::new();
    let mut tell = |output: Output<'_>| match output {
        Output::Text { text, tokens } => told += &format!("{text}/{tokens} "),
        Output::Body { bytes, tokens } => {
            told += &format!("{}/{tokens} ", std::str::from_utf8(bytes).unwrap());
        }
        Output::Head { status, stream, .. } => told += &format!("[{status} {stream}]"),
        Output::Done(d) => {
            told += &format!("{:?} {} {}", d.reason, d.prompt_tokens, d.completion_tokens);
        }
        Output::Fail(f) => told += &format!("{:?} {}: {}", f.kind, f.code.name(), f.message),
        Output::Progress { tokens } => told += &format!("+{tokens} "),
        Output::Moved { .. } | Output::Account(_) => {}
    };
    let mut reader = encode(infer).unwrap().reader;
    reader.head(
        &ResponseHead {
            status: 200,
            keep_alive: true,
            body: BodyLength::Chunked,
            content_type: Some("text/event-stream"),
            retry_after: None,
        },
        &mut tell,
    );
    stream.as_bytes().chunks(split).for_each(|part| reader.body(part, &mut tell));
    reader.end(complete, &mut tell);
    assert!(reader.is_over());
    told
}

const NATIVE: [&str; 4] = [
    r#"{"index":0,"content":"","tokens":[0],"stop":false,"tokens_predicted":0,"tokens_evaluated":6,"prompt_progress":{}}"#,
    r#"{"index":0,"content":" on","tokens":[282],"stop":false,"id_slot":-1,"tokens_predicted":1,"tokens_evaluated":6}"#,
    r#"{"index":0,"content":" \"it","tokens":[283,284],"stop":false,"id_slot":-1,"tokens_predicted":3,"tokens_evaluated":6}"#,
    r#"{"index":0,"content":"","tokens":[],"id_slot":1,"stop":true,"tokens_predicted":4,"tokens_evaluated":6,"generation_settings":{"stream":true},"stop_type":"word","timings":{"predicted_n":4}}"#,
];

#[test]
fn tokens_are_what_the_server_says() {
    let prompt = Infer::new(Input::Prompt("p"));
    for split in [1, 13, 10_000] {
        let told = read(&prompt, &NATIVE, split, true);
        assert_eq!(told, " on/1  \"it/2 /1 Stop 6 4");
    }
    let told = read(&prompt, &NATIVE[..3], 50, true);
    assert!(told.ends_with("Backend BACKEND: llama-server broke off after 3 tokens"), "{told}");
    assert_eq!(read(&prompt, &NATIVE[..3], 50, false), told);
}

#[test]
fn a_chat_counts_by_its_timings() {
    let events = [
        r#"{"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}]}"#,
        r#"{"choices":[{"finish_reason":null,"index":0,"delta":{"content":" a"}}],"timings":{"predicted_n":2}}"#,
        r#"{"choices":[{"finish_reason":"length","index":0,"delta":{}}],"timings":{"predicted_n":3}}"#,
        r#"{"choices":[],"usage":{"completion_tokens":3,"prompt_tokens":23},"timings":{"predicted_n":3}}"#,
        "[DONE]",
    ];
    let infer = Infer { max_tokens: Some(3), ..Infer::new(Input::Messages("[]")) };
    assert_eq!(read(&infer, &events, 9, true), " a/2 /1 Length 23 3");
    let body = String::from_utf8(encode(&infer).unwrap().body).unwrap();
    let wanted = r#"{"stream":true,"timings_per_token":true,"stream_options":{"include_usage":true},"max_tokens":3,"messages":[]}"#;
    assert_eq!(body, wanted);
}

#[test]
fn a_stream_that_was_asked_for_is_passed_on_as_it_is() {
    let infer = post("/completion?x=1", r#"{"prompt": "a", "stream": true}"#);
    let exchange = encode(&infer).unwrap();
    assert!(exchange.streamed);
    assert_eq!(exchange.body, br#"{"prompt": "a", "stream": true}"#);
    let told = read(&infer, &NATIVE, 11, true);
    let wanted: Vec<String> =
        NATIVE.iter().zip([0, 1, 2, 1]).map(|(e, n)| format!("data: {e}\n\n/{n} ")).collect();
    assert_eq!(told, format!("[200 true]{}Other 6 4", wanted.concat()));
}

fn collected(infer: &Infer<'_>, events: &[&str]) -> Value {
    let told = read(infer, events, 17, true);
    let (_, body) = told.split_once("[200 false]").unwrap_or_else(|| panic!("{told}"));
    serde_json::from_str(body.rsplit_once('/').unwrap().0).unwrap()
}

#[test]
fn a_plain_completion_is_put_together() {
    let infer = post("/completion", r#"{"prompt": "a", "n_predict": 4}"#);
    let exchange = encode(&infer).unwrap();
    assert!(!exchange.streamed && exchange.weight == 1);
    assert_eq!(exchange.body, br#"{"prompt":"a","n_predict":4,"stream":true}"#);
    let answer = collected(&infer, &NATIVE);
    let wanted = r#"{"index":0,"content":" on \"it","tokens":[],"id_slot":1,"stop":true,"tokens_predicted":4,"tokens_evaluated":6,"generation_settings":{"stream":false},"stop_type":"word","timings":{"predicted_n":4}}"#;
    assert_eq!(answer.to_string(), wanted);
    // Each token is told as it comes, though the answer is told at the end.
    assert!(read(&infer, &NATIVE, 17, true).starts_with("+0 +1 +2 +1 [200 false]{"));
    let with_tokens = post("/completion", r#"{"prompt": "a", "return_tokens": true}"#);
    assert_eq!(collected(&with_tokens, &NATIVE)["tokens"], json!([282, 283, 284]));
}

#[test]
fn several_prompts_are_a_list() {
    let infer = post("/completion", r#"{"prompt": ["a", "b"]}"#);
    assert_eq!(encode(&infer).unwrap().weight, 2);
    let events = [
        r#"{"index":1,"content":"y","tokens":[1],"stop":false,"tokens_predicted":1}"#,
        r#"{"index":0,"content":"x","tokens":[1],"stop":false,"tokens_predicted":1}"#,
        r#"{"index":1,"content":"","tokens":[],"stop":true,"tokens_predicted":1}"#,
        r#"{"index":0,"content":"","tokens":[],"stop":true,"tokens_predicted":1}"#,
    ];
    let answer = collected(&infer, &events);
    assert_eq!((&answer[0]["content"], &answer[1]["content"]), (&json!("x"), &json!("y")));
}

#[test]
fn a_plain_chat_is_put_together() {
    let infer = post("/v1/chat/completions", r#"{"messages":[],"n":2}"#);
    let events = [
        r#"{"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}],"id":"c","object":"chat.completion.chunk"}"#,
        r#"{"choices":[{"finish_reason":null,"index":1,"delta":{"role":"assistant","content":null}}],"id":"c","object":"chat.completion.chunk"}"#,
        r#"{"choices":[{"finish_reason":null,"index":0,"delta":{"reasoning_content":"h"},"logprobs":{"content":[{"token":"a"}]}}],"id":"c"}"#,
        r#"{"choices":[{"finish_reason":null,"index":0,"delta":{"reasoning_content":"m","content":"a"},"logprobs":{"content":[{"token":"b"}]}}],"id":"c"}"#,
        r#"{"choices":[{"finish_reason":null,"index":1,"delta":{"tool_calls":[{"index":0,"id":"t","type":"function","function":{"name":"f","arguments":"{"}}]}}],"id":"c"}"#,
        r#"{"choices":[{"finish_reason":null,"index":1,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"}"}}]}}],"id":"c"}"#,
        r#"{"choices":[{"finish_reason":"stop","index":0,"delta":{}}],"id":"c"}"#,
        r#"{"choices":[{"finish_reason":"tool_calls","index":1,"delta":{}}],"id":"c"}"#,
        r#"{"choices":[],"id":"c","usage":{"completion_tokens":2,"prompt_tokens":1},"timings":{"predicted_n":2}}"#,
        "[DONE]",
    ];
    let answer = collected(&infer, &events);
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["usage"]["completion_tokens"], 2);
    let [first, second] = [&answer["choices"][0], &answer["choices"][1]];
    assert_eq!(first["message"]["content"], "a");
    assert_eq!(first["message"]["reasoning_content"], "hm");
    assert_eq!(first["logprobs"], json!({"content": [{"token": "a"}, {"token": "b"}]}));
    assert_eq!(second["finish_reason"], "tool_calls");
    let call =
        json!([{"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
    assert_eq!(second["message"]["tool_calls"], call);
    assert_eq!(second["message"]["content"], Value::Null);
}

#[test]
fn what_is_refused_here_and_what_an_error_event_says() {
    for body in ["", "{", "[1"] {
        let failure = encode(&post("/completion", body)).unwrap_err();
        assert_eq!((failure.kind, failure.status), (super::super::FailureKind::Request, 400));
    }
    let seed = Infer { seed: Some(1 << 32), ..Infer::new(Input::Prompt("p")) };
    assert_eq!(encode(&seed).unwrap_err().code, ErrorCode::BadRequest);
    let error = r#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#;
    let told = read(&Infer::new(Input::Prompt("p")), &[error], 5, true);
    assert_eq!(told, "Loading BACKEND: Loading model");
    let get = Infer::new(Input::Api { method: "GET", path: "/props", body: b"" });
    let exchange = encode(&get).unwrap();
    assert_eq!((exchange.weight, exchange.content_type), (0, None));
    assert_eq!(encode(&post("/v1/embeddings", "{}")).unwrap().weight, 1);
    assert_eq!(encode(&post("/tokenize", "{}")).unwrap().weight, 0);
}
