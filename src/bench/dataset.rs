//! Prompts from files: JSON lines, and ShareGPT's conversations.
//!
//! ```text
//! {"prompt": "…", "max_tokens": 64}                                       a line for each request
//! {"messages": [{"role": "user", "content": "…"}]}                        the same, as a chat
//! {"body": {"messages": […], "max_tokens": 64}, …}                        OpenAI's batch format
//! [{"conversations": [{"from": "human", "value": "…"}, …]}, …]            ShareGPT, one JSON array
//! ```

use serde_json::Value;

use super::workload::Item;

/// Reads a data set; what holds no prompt is an error that names its place.
///
/// # Errors
/// It is of neither form, or holds nothing.
pub fn read(text: &str) -> Result<Vec<Item>, String> {
    let items: Vec<Item> = if text.trim_start().starts_with('[') {
        let all: Vec<Value> =
            serde_json::from_str(text).map_err(|error| format!("it is no JSON array: {error}"))?;
        let entry = |(index, value): (usize, &Value)| {
            item(value).ok_or_else(|| format!("entry {}: {MISSING}", index + 1))
        };
        all.iter().enumerate().map(entry).collect::<Result<_, _>>()?
    } else {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let entry = |(index, line): (usize, &str)| {
            let value: Value =
                serde_json::from_str(line).map_err(|e| format!("line {}: {e}", index + 1))?;
            item(&value).ok_or_else(|| format!("line {}: {MISSING}", index + 1))
        };
        lines.map(entry).collect::<Result<_, String>>()?
    };
    if items.is_empty() { Err("it holds no prompt".to_owned()) } else { Ok(items) }
}

const MISSING: &str = "no prompt, no messages, no conversations with a human's turn";

fn item(value: &Value) -> Option<Item> {
    if let Value::String(prompt) = value {
        return Some(Item { turns: vec![prompt.clone()], ..Item::default() });
    }
    let value = if value["body"].is_object() { &value["body"] } else { value };
    let names = ["max_completion_tokens", "max_tokens", "n_predict", "output_tokens"];
    let output = names.iter().find_map(|name| value[*name].as_u64());
    let output = output.and_then(|tokens| u32::try_from(tokens).ok()).filter(|tokens| *tokens > 0);
    if let Some(messages) = value["messages"].as_array().filter(|messages| !messages.is_empty()) {
        let messages = Some(Value::from(messages.clone()).to_string());
        return Some(Item { turns: Vec::new(), messages, output });
    }
    if let Some(prompt) = ["prompt", "text", "question"].iter().find_map(|n| value[*n].as_str()) {
        return Some(Item { turns: vec![prompt.to_owned()], messages: None, output });
    }
    let said = value["conversations"].as_array().or(value["conversation"].as_array())?;
    let is_human = |turn: &&Value| {
        matches!(turn["from"].as_str().or(turn["role"].as_str()), Some("human" | "user"))
    };
    let text =
        |turn: &Value| turn["value"].as_str().or(turn["content"].as_str()).map(str::to_owned);
    let turns: Vec<String> = said.iter().filter(is_human).filter_map(text).collect();
    (!turns.is_empty()).then_some(Item { turns, messages: None, output })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form() {
        let lines = "{\"prompt\": \"a\", \"max_tokens\": 5}\n\n\
                     {\"messages\": [{\"role\": \"user\", \"content\": \"b\"}]}\n\
                     {\"custom_id\": \"1\", \"body\": {\"prompt\": \"c\", \"max_tokens\": 9}}\n\"d\"";
        let items = read(lines).unwrap();
        assert_eq!((items[0].turns[0].as_str(), items[0].output), ("a", Some(5)));
        assert_eq!(items[1].messages.as_deref(), Some(r#"[{"role":"user","content":"b"}]"#));
        assert_eq!((items[2].turns[0].as_str(), items[2].output), ("c", Some(9)));
        assert_eq!(items[3].turns, ["d"]);
        let sharegpt = r#"[{"id": "x", "conversations": [
            {"from": "human", "value": "one"}, {"from": "gpt", "value": "1"},
            {"from": "human", "value": "two"}, {"from": "gpt", "value": "2"}]}]"#;
        assert_eq!(read(sharegpt).unwrap()[0].turns, ["one", "two"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, message) in [
            ("", "it holds no prompt"),
            ("[]", "it holds no prompt"),
            ("{\"prompt\": \"a\"}\n{\"x\": 1}", "line 2: no prompt"),
            ("[{\"conversations\": []}]", "entry 1: no prompt"),
            ("{\"prompt\"", "line 1: EOF"),
            ("[1", "it is no JSON array"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(message), "{text:?}: {error}");
        }
    }
}
