//! Command lines with places to fill in: `llama-server -m m.gguf -ngl {ngl} --port {port}`.

use super::space::{Settings, show};

/// Words of a command line, as a shell would split them: by spaces, with '…', "…" and \ before a
/// character. No shell runs it: `|`, `>`, `$` and `*` mean themselves.
///
/// # Errors
/// A quote is not closed.
pub fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (None, ' ' | '\t' | '\n') => words.extend(word.take()),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some(open), c) if open == c => quote = None,
            (None | Some('"'), '\\') => {
                word.get_or_insert_default().push(characters.next().unwrap_or('\\'));
            }
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(open) = quote {
        return Err(format!("{text:?}: {open} is not closed"));
    }
    words.extend(word);
    Ok(words)
}

/// A word with each `{name}` filled in; braces around anything else stay, as in JSON.
pub fn fill(word: &str, settings: &Settings) -> String {
    let mut filled = word.to_owned();
    for (name, value) in settings {
        filled = filled.replace(&format!("{{{name}}}"), &show(value));
    }
    filled
}

/// Whether a name has a place in any of these words.
pub fn mentions(words: &[String], name: &str) -> bool {
    let place = format!("{{{name}}}");
    words.iter().any(|word| word.contains(&place))
}

#[cfg(test)]
mod tests {
    use super::super::space::settings;
    use super::*;

    #[test]
    fn words_are_split_as_by_a_shell() {
        for (text, expected) in [
            ("a  b\tc", vec!["a", "b", "c"]),
            ("--x 'a b' \"c d\"e ''", vec!["--x", "a b", "c de", ""]),
            (r#"a\ b "\"q\"" '\n' \"#, vec!["a b", "\"q\"", "\\n", "\\"]),
            ("", vec![]),
        ] {
            assert_eq!(words(text).unwrap(), expected, "{text}");
        }
        assert_eq!(words("a 'b").unwrap_err(), "\"a 'b\": ' is not closed");
    }

    #[test]
    fn places_are_filled() {
        let settings = settings("ngl=4,mode=fast").unwrap();
        assert_eq!(fill("-ngl={ngl},{mode},{x}", &settings), "-ngl=4,fast,{x}");
        assert_eq!(fill("{\"seed\": {ngl}}", &settings), "{\"seed\": 4}");
        let template = words("a {ngl}").unwrap();
        assert!(mentions(&template, "ngl") && !mentions(&template, "mode"));
    }
}
