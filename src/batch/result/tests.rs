use proptest::prelude::*;

use super::super::row::RowOptions;
use super::*;

const KEY: Key = Key([0xab; 16]);

fn line(outcome: &Outcome<'_>) -> String {
    let mut out = Vec::new();
    encode(&mut out, KEY, "a\n\"b", outcome);
    String::from_utf8(out).unwrap()
}

fn response(status: u16, body: &[u8]) -> String {
    line(&Outcome::Response { status, request_id: "r-1", body })
}

#[test]
fn lines_are_those_of_the_batch_api() {
    let id = format!("batch_req_{}", "ab".repeat(16));
    assert_eq!(
        response(200, br#"{"n":1e400}"#),
        format!(
            "{{\"id\":\"{id}\",\"custom_id\":\"a\\n\\\"b\",\"response\":{{\"status_code\":200,\
             \"request_id\":\"r-1\",\"body\":{{\"n\":1e400}}}},\"error\":null}}\n"
        )
    );
    assert_eq!(
        line(&Outcome::Error { code: "timeout", message: "no answer" }),
        format!(
            "{{\"id\":\"{id}\",\"custom_id\":\"a\\n\\\"b\",\"response\":null,\"error\":\
             {{\"code\":\"timeout\",\"message\":\"no answer\"}}}}\n"
        )
    );
}

#[test]
fn a_body_of_several_lines_or_none_of_json_still_is_one_line() {
    let table: [(&[u8], &str); 4] = [
        (b"{\r\n \"a\": 1e400\n}", "\"body\":{   \"a\": 1e400 }"),
        (b"<html>\n", "\"body\":\"<html>\\n\""),
        (b"\xff", "\"body\":\"\u{fffd}\""),
        (b"", "\"body\":\"\""),
    ];
    for (body, expected) in table {
        let line = response(500, body);
        assert!(line.contains(expected), "{line}");
        assert_eq!(line.find('\n'), Some(line.len() - 1));
    }
}

#[test]
fn keys_come_back_from_ids_that_are_ours() {
    assert_eq!(key(&format!("batch_req_{KEY}")), Some(KEY));
    let hex = KEY.to_string();
    let others = ["", "batch_req_", &format!("batch_req_{}", &hex[1..]), &hex];
    let signed = format!("batch_req_+f{}", &hex[2..]);
    let wide = format!("batch_req_é{}", &hex[2..]);
    for id in others.into_iter().chain([&*signed, &*wide]) {
        assert_eq!(key(id), None, "{id}");
    }
}

#[test]
fn recorded_lines_tell_whether_they_are_well() {
    let failure = Failure { code: "x".to_owned(), message: "y".to_owned(), status: None };
    let mut failed = Vec::new();
    failure.encode(&mut failed, &FailedRow { line: 1, key: Some(KEY), members: None, text: b"{" });
    let failed = String::from_utf8(failed).unwrap();
    let respaced = response(200, b"{}").replace("{\"id\":", "{ \"id\" : ");
    let table = [
        (response(200, b"{}"), Some(true)),
        (response(299, b"{}"), Some(true)),
        (respaced, Some(true)),
        (response(404, b"{}"), Some(false)),
        (line(&Outcome::Error { code: "", message: "" }), Some(false)),
        (failed, Some(false)),
        (response(200, b"{}").replace("batch", "botch"), None),
        (r#"{"error":{"code":"x"}}"#.to_owned(), None),
        (r#"{"custom_id":"a"}"#.to_owned(), None),
        ("{}".to_owned(), None),
        ("\0\0\0\0".to_owned(), None),
    ];
    for (line, ok) in table {
        let expected = ok.map(|ok| Recorded { key: Some(KEY), ok });
        assert_eq!(recorded(line.as_bytes()), expected, "{line}");
        assert_eq!(recorded_key(line.as_bytes()), expected.map(|_| KEY), "{line}");
    }
}

#[test]
fn a_duplicate_may_stand_for_no_request() {
    let failure = Failure { code: DUPLICATE.to_owned(), message: String::new(), status: None };
    let mut out = Vec::new();
    failure.encode(&mut out, &FailedRow { line: 1, key: None, members: None, text: b"" });
    assert_eq!(recorded(&out), Some(Recorded { key: None, ok: false }));
    assert_eq!(recorded_key(&out), None);
}

#[test]
fn failures_say_what_the_server_said() {
    let long = format!(r#"{{"error":{{"message":"{}"}}}}"#, "é".repeat(4000));
    let table = [
        (
            response(400, br#"{"error":{"message":"too long","code":7}}"#),
            "http_400",
            "too long",
            400,
        ),
        (response(500, br#"{"error":"oh"}"#), "http_500", "oh", 500),
        (response(502, b"<html>"), "http_502", "<html>", 502),
        (response(503, b"[1]"), "http_503", "[1]", 503),
        (response(500, long.as_bytes()), "http_500", &"é".repeat(2048), 500),
        (
            line(&Outcome::Error { code: "timeout", message: "no answer" }),
            "timeout",
            "no answer",
            0,
        ),
        ("{".to_owned(), "unreadable", "the recorded failure cannot be read any more", 0),
    ];
    for (line, code, message, status) in table {
        let status = (status > 0).then_some(status);
        let expected = Failure { code: code.to_owned(), message: message.to_owned(), status };
        assert_eq!(Failure::of(line.as_bytes()), expected);
    }
}

#[test]
fn the_error_file_is_valid_input_and_says_the_same_when_read_again() {
    let row =
        br#"{"x":1,"url":"/v1/embeddings", "custom_id":"a", "body":{"input":"b"},"error":{}}"#;
    let failure = Failure { code: "c".to_owned(), message: "m".to_owned(), status: Some(429) };
    let mut out = Vec::new();
    let (members, _) = Members::of(row);
    failure.encode(
        &mut out,
        &FailedRow { line: 3, key: Some(KEY), members: Some(members), text: row },
    );
    assert_eq!(
        String::from_utf8_lossy(&out),
        format!(
            "{{\"custom_id\":\"a\",\"url\":\"/v1/embeddings\",\"body\":{{\"input\":\"b\"}},\
             \"error\":{{\"code\":\"c\",\"message\":\"m\",\"status\":429,\"line\":3,\
             \"id\":\"batch_req_{KEY}\"}}}}\n"
        )
    );
    assert!(super::super::row::parse(&out, &RowOptions::default()).is_ok());
    assert_eq!(Failure::of(&out), failure);
}

#[test]
fn a_row_that_is_not_json_is_named_by_its_line() {
    let failure = Failure { code: "c".to_owned(), message: "m".to_owned(), status: None };
    let number = Members::of(br#"{"custom_id":5}"#).0;
    let text = "x\u{0}é".repeat(2000);
    for members in [None, Some(Members::default()), Some(number)] {
        let mut out = Vec::new();
        failure.encode(
            &mut out,
            &FailedRow { line: 3, key: Some(KEY), members, text: text.as_bytes() },
        );
        let value: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["custom_id"], "line-3");
        assert!(text.starts_with(value["line"].as_str().unwrap()));
        assert_eq!(value["error"]["line"], 3);
    }
}

proptest! {
    #[test]
    fn any_answer_can_be_recorded(body: Vec<u8>, status in 100u16..600, bytes: [u8; 16]) {
        let mut out = Vec::new();
        let outcome = Outcome::Response { status, request_id: "", body: &body };
        encode(&mut out, Key(bytes), "a", &outcome);
        prop_assert_eq!(out.iter().filter(|&&byte| byte == b'\n').count(), 1);
        let expected = Recorded { key: Some(Key(bytes)), ok: status / 100 == 2 };
        prop_assert_eq!(recorded(&out), Some(expected));
        prop_assert_eq!(recorded_key(&out), Some(Key(bytes)));
        // Cut anywhere it is torn.
        prop_assert!((0..out.len() - 1).all(|cut| recorded(&out[..cut]).is_none()));
        // And what is none is taken for none.
        prop_assert_eq!((recorded(&body), recorded_key(&body)), (None, None));
        let _ = Failure::of(&body);
    }
}
