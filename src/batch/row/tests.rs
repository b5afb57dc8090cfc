use proptest::prelude::*;
use serde_json::json;

use super::*;

fn options(defaults: Value) -> RowOptions {
    let Value::Object(defaults) = defaults else { panic!("{defaults} is no object") };
    RowOptions { defaults }
}

fn row(body: &str) -> Vec<u8> {
    format!(r#"{{"custom_id":"a","method":"POST","url":"/v1/completions","body":{body}}}"#).into()
}

#[test]
fn every_fault_of_a_row_is_named() {
    let table: [(&[u8], Option<&str>, &str); 17] = [
        (b"", None, "the row is not JSON: EOF"),
        (b"{\"custom_id\":\"a\",\"body\":{", Some("a"), "the row is not JSON: EOF"),
        (b"{} {}", None, "the row is not JSON: trailing"),
        (b"[1]", None, "the row is no JSON object"),
        (
            b"{\"custom_id\":\"a\",\"body\":\"\xff\"}",
            Some("a"),
            "the row is not JSON: invalid unicode",
        ),
        (b"{}", None, "the row has no custom_id"),
        (b"{\"custom_id\":5}", None, "custom_id is not a text, or empty"),
        (b"{\"custom_id\":\"\"}", None, "custom_id is not a text, or empty"),
        (b"{\"custom_id\":\"a\",\"method\":\"GET\"}", Some("a"), "method is not POST"),
        (b"{\"custom_id\":\"a\"}", Some("a"), "url \"\" is none of /v1/chat"),
        (b"{\"custom_id\":\"a\",\"url\":\"/x\"}", Some("a"), "url \"/x\" is none of /v1/chat"),
        (b"{\"custom_id\":\"a\",\"url\":\"/v1/embeddings\"}", Some("a"), "has no body"),
        (&row("5"), Some("a"), "body is not a JSON object"),
        (&row("[]"), Some("a"), "body is not a JSON object"),
        (&row(r#"{"stream":true}"#), Some("a"), "asks for a stream"),
        (
            &overlong(&row("{}"), 20 << 20),
            Some("a"),
            "the row has 20971520 bytes, more than 16777216",
        ),
        (&overlong(b"{\"cust", u64::MAX), None, "the row has 4294967295 bytes, more than"),
    ];
    for (line, custom_id, says) in table {
        let bad = parse(line, &RowOptions::default()).unwrap_err();
        assert!(bad.message.contains(says), "{:?}: {}", String::from_utf8_lossy(line), bad.message);
        assert_eq!(bad.custom_id.as_deref(), custom_id, "{says}");
        let size = estimate(line, &RowOptions::default());
        assert_eq!(size, Size { prompt: 0, tokens: 1, class: 0 });
    }
    let streams = options(json!({"stream": true}));
    assert!(parse(&row("{}"), &streams).unwrap_err().message.contains("asks for a stream"));
}

#[test]
fn a_body_is_sent_as_it_was_written_with_the_defaults_behind_it() {
    let options = options(json!({"model": "m", "max_tokens": 7}));
    let table = [
        ("{}", r#"{"model":"m","max_tokens":7}"#),
        (r#"{ "a" : 1e400 }"#, r#"{ "a" : 1e400 ,"model":"m","max_tokens":7}"#),
        (
            r#"{"model":null,"a":{"max_tokens":1}}"#,
            r#"{"model":null,"a":{"max_tokens":1},"max_tokens":7}"#,
        ),
        (r#"{"m\u006fdel":"x","max_tokens":9}"#, r#"{"m\u006fdel":"x","max_tokens":9}"#),
    ];
    for (body, sent) in table {
        let row = parse(&row(body), &options).unwrap();
        assert_eq!(String::from_utf8(row.body).unwrap(), sent);
    }
}

#[test]
fn sizes_count_texts_and_bounds() {
    let none = RowOptions::default();
    let defaults = options(json!({"model": "m", "n_predict": 3, "input": "abc"}));
    let table = [
        (&none, r#"{"prompt":"h\u00e9","max_tokens":5}"#, (3, 5, "")),
        (&none, r#"{"prompt":[1,2.5,-3],"max_completion_tokens":4,"max_tokens":5}"#, (12, 4, "")),
        (&none, r#"{"messages":[{"role":"user","content":[{"text":"abcd"}]}]}"#, (8, 0, "")),
        (
            &none,
            r#"{"prompt":[true,null],"n_predict":-1,"max_tokens":1.5,"model":"m"}"#,
            (0, 0, "m"),
        ),
        (&none, r#"{"max_tokens":5000000000}"#, (0, 0, "")),
        (&defaults, r#"{"prompt":"a"}"#, (4, 3, "m")),
        (&defaults, r#"{"input":"a","max_tokens":2}"#, (1, 2, "m")),
    ];
    for (options, body, (prompt, tokens, model)) in table {
        let class = class("/v1/completions", Some(&json!(model)));
        assert_eq!(
            parse(&row(body), options).unwrap().size,
            Size { prompt, tokens, class },
            "{body}"
        );
    }
    let embedding = br#"{"custom_id":"a","url":"/v1/embeddings","body":{"input":"abc"}}"#;
    assert_eq!(estimate(embedding, &none).tokens, 1);
}

#[test]
fn a_key_is_of_the_line_without_its_end_and_of_the_defaults() {
    let none = RowOptions::default();
    let key = none.key(b"{}");
    for same in [&b"{}\n"[..], b"{}\r\n", b"\xef\xbb\xbf{}\n"] {
        assert_eq!(none.key(same), key);
        assert!(Members::of(trim(same)).1.is_none());
    }
    assert_ne!(none.key(b"{ }"), key);
    assert_ne!(options(json!({"model": "m"})).key(b"{}"), key);
    // Outputs of earlier versions hold it.
    assert_eq!(key.to_string(), "28a3a18f6cd6406b086e9ffda1f9b8a1");
    assert_eq!(format!("{:016x}", key.prefix()), key.to_string()[..16]);
}

#[test]
fn requests_of_a_prompt_are_rows_of_their_own() {
    let options = options(json!({"n_predict": 3}));
    let row = parse(&prompt_line("say \"hi\"\n", 12), &options).unwrap();
    assert_eq!((row.custom_id.as_str(), row.url.as_str()), ("request-12", "/v1/completions"));
    assert_eq!(row.body, br#"{"prompt":"say \"hi\"\n","n_predict":3}"#);
    assert_ne!(prompt_key(&options, "a", 1), prompt_key(&options, "a", 2));
    assert_eq!(prompt_key(&options, "a", 1), options.key(b"a\x001"));
}

proptest! {
    #[test]
    fn whatever_stands_in_a_line_is_a_row_or_a_fault(bytes: Vec<u8>, cut in 0usize..100) {
        let options = options(json!({"model": "m"}));
        let _ = parse(&bytes, &options);
        let row = row(r#"{"prompt":"abc","max_tokens":5,"x":[{"y":null}]}"#);
        let cut = &row[..cut.min(row.len())];
        prop_assert_eq!(parse(cut, &options).is_ok(), cut.len() == row.len());
    }

    #[test]
    fn estimates_are_the_sizes_of_parsed_rows(text in ".{0,30}", tokens in 0u32..9, with: bool) {
        let options = if with { options(json!({"max_tokens": 4})) } else { RowOptions::default() };
        let row = row(&json!({"prompt": text, "n_predict": tokens}).to_string());
        let parsed = parse(&row, &options).unwrap();
        prop_assert_eq!(parsed.size, estimate(&row, &options));
        prop_assert_eq!(parsed.size.prompt as usize, text.len());
        // Sent again as a row, the body with its defaults is the same call.
        let value: Value = serde_json::from_slice(&parsed.body).unwrap();
        prop_assert_eq!(value.get("max_tokens").is_some(), with);
    }
}
