//! SVG text: elements and attributes, escaped; what is not a number never gets in.

use std::fmt::Write;

/// An SVG that is being written.
#[derive(Debug)]
pub struct Svg {
    text: String,
    open: Vec<&'static str>,
}

/// An attribute's value.
#[derive(Clone, Copy, Debug)]
pub enum Attribute<'a> {
    /// A length or a place, in the units of the view box.
    Number(f64),
    /// Text, which is escaped.
    Text(&'a str),
}

impl From<f64> for Attribute<'_> {
    fn from(number: f64) -> Self {
        Attribute::Number(number)
    }
}

impl<'a> From<&'a str> for Attribute<'a> {
    fn from(text: &'a str) -> Self {
        Attribute::Text(text)
    }
}

impl<'a> From<&'a String> for Attribute<'a> {
    fn from(text: &'a String) -> Self {
        Attribute::Text(text)
    }
}

impl Svg {
    /// A picture of `width` times `height`, with a title and a description for those who cannot
    /// see it.
    pub fn new(width: f64, height: f64, title: &str, description: &str) -> Svg {
        let mut svg = Svg { text: String::new(), open: Vec::new() };
        let view = format!("0 0 {} {}", number(width), number(height));
        svg.start(
            "svg",
            &[
                ("xmlns", "http://www.w3.org/2000/svg".into()),
                ("viewBox", (&view).into()),
                ("width", width.into()),
                ("height", height.into()),
                ("role", "img".into()),
                ("font-family", super::style::FONT.into()),
                ("font-size", super::style::FONT_SIZE.into()),
                ("fill", super::style::INK.into()),
            ],
        );
        svg.words("title", &[], title);
        svg.words("desc", &[], description);
        svg.empty(
            "rect",
            &[("width", width.into()), ("height", height.into()), ("fill", "#fff".into())],
        );
        svg
    }

    /// Opens an element.
    pub fn start(&mut self, name: &'static str, attributes: &[(&str, Attribute<'_>)]) {
        self.tag(name, attributes);
        self.text.push('>');
        self.open.push(name);
    }

    /// Closes the element that was opened last.
    ///
    /// # Panics
    /// None is open.
    pub fn end(&mut self) {
        let name = self.open.pop().expect("an element is open");
        self.text.push_str("</");
        self.text.push_str(name);
        self.text.push_str(">\n");
    }

    /// An element without content.
    pub fn empty(&mut self, name: &'static str, attributes: &[(&str, Attribute<'_>)]) {
        self.tag(name, attributes);
        self.text.push_str("/>\n");
    }

    /// An element with text in it.
    pub fn words(&mut self, name: &'static str, attributes: &[(&str, Attribute<'_>)], text: &str) {
        self.start(name, attributes);
        self.text.push_str(&escape(text));
        self.end();
    }

    /// A line from place to place; the places must be finite.
    pub fn path(&mut self, places: &[(f64, f64)], attributes: &[(&str, Attribute<'_>)]) {
        self.outline(places, false, attributes);
    }

    /// The same, closed.
    pub fn polygon(&mut self, places: &[(f64, f64)], attributes: &[(&str, Attribute<'_>)]) {
        self.outline(places, true, attributes);
    }

    fn outline(
        &mut self,
        places: &[(f64, f64)],
        closed: bool,
        attributes: &[(&str, Attribute<'_>)],
    ) {
        let mut d = String::new();
        for (index, (x, y)) in places.iter().enumerate() {
            let command = if index == 0 { 'M' } else { 'L' };
            let written = write!(d, "{command}{} {}", number(*x), number(*y));
            debug_assert!(written.is_ok(), "a String takes every write");
        }
        if closed {
            d.push('Z');
        }
        let mut all = vec![("d", Attribute::Text(&d))];
        all.extend_from_slice(attributes);
        self.empty("path", &all);
    }

    /// The text of it all.
    ///
    /// # Panics
    /// An element other than the outermost is still open.
    pub fn finish(mut self) -> String {
        self.end();
        assert!(self.open.is_empty(), "{:?} is still open", self.open);
        self.text
    }

    fn tag(&mut self, name: &str, attributes: &[(&str, Attribute<'_>)]) {
        self.text.push('<');
        self.text.push_str(name);
        for (name, value) in attributes {
            self.text.push(' ');
            self.text.push_str(name);
            self.text.push_str("=\"");
            match value {
                Attribute::Number(value) => self.text.push_str(&number(*value)),
                Attribute::Text(value) => self.text.push_str(&escape(value)),
            }
            self.text.push('"');
        }
    }
}

/// A place to a hundredth, without needless zeros. What is not finite is a fault of the caller; it
/// becomes 0, since a single NaN makes browsers drop the whole shape.
pub fn number(value: f64) -> String {
    debug_assert!(value.is_finite(), "{value} has no place in a picture");
    let value = if value.is_finite() { value.clamp(-1e6, 1e6) } else { 0.0 };
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// Text as XML and HTML take it, in content and in attributes; characters that XML 1.0 forbids
/// become U+FFFD.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\t' | '\n' | '\r' => escaped.push(c),
            '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            _ => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
pub(in crate::bench) mod tests {
    use super::*;

    /// Checks that a text is one well-formed element of the kind that is written here (quoted and
    /// escaped attributes, matched tags), holds no number that is none, and needs nothing else.
    ///
    /// # Panics
    /// It does not.
    pub fn check(text: &str) {
        let mut open: Vec<String> = Vec::new();
        let mut rest = text.trim();
        let mut roots = 0;
        while let Some(start) = rest.find('<') {
            let between = &rest[..start];
            assert!(!between.contains('>'), "an unescaped > in {between:?}");
            assert!(!open.is_empty() || between.trim().is_empty(), "outside: {between:?}");
            entities(between);
            let end = start + rest[start..].find('>').expect("a tag ends");
            let tag = &rest[start + 1..end];
            rest = &rest[end + 1..];
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name), "{tag}");
                continue;
            }
            roots += usize::from(open.is_empty());
            let (tag, is_empty) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
            attributes(tag);
            if !is_empty {
                open.push(tag.split(' ').next().unwrap_or_default().to_owned());
            }
        }
        assert!(open.is_empty() && roots == 1 && rest.trim().is_empty(), "{open:?} {roots}");
        assert!(!text.contains("NaN") && !text.contains("inf\""), "{text}");
    }

    fn attributes(tag: &str) {
        let Some((_, mut rest)) = tag.split_once(' ') else { return };
        let mut seen = Vec::new();
        while !rest.is_empty() {
            let (name, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("{tag}"));
            let (value, more) = value.split_once('"').unwrap_or_else(|| panic!("{tag}"));
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{tag}");
            assert!(!seen.contains(&name), "{name} stands twice: {tag}");
            entities(value);
            seen.push(name);
            rest = more.trim_start();
        }
    }

    fn entities(text: &str) {
        for part in text.split('&').skip(1) {
            let (name, _) = part.split_once(';').unwrap_or_else(|| panic!("a bare &: {text}"));
            assert!(["amp", "lt", "gt", "quot", "#39"].contains(&name), "{text}");
        }
    }

    #[test]
    fn hostile_words_stay_words() {
        let mut svg = Svg::new(10.0, 10.0, "a<b> & \"c\"", "\u{1b}[2J\u{0}");
        svg.words("text", &[("x", 1.0.into()), ("class", "\"><script>".into())], "]]></svg>'");
        let text = svg.finish();
        check(&text);
        assert!(!text.contains("<script") && text.contains("\u{fffd}[2J\u{fffd}"));
    }

    #[test]
    fn numbers_are_short() {
        for (value, expected) in
            [(1.0, "1"), (0.126, "0.13"), (-0.001, "0"), (100.0, "100"), (1e300, "1000000")]
        {
            assert_eq!(number(value), expected);
        }
    }
}
