//! Words and numbers in a picture: how wide they are, and how they are written.

/// About how wide a text is, in the font's size as unit; a little more than in Helvetica and Arial,
/// so that nothing overlaps where another font stands in.
pub fn width(text: &str, size: f64) -> f64 {
    let em = |c: char| match c {
        'i' | 'j' | 'l' | '\'' | '|' | '!' | '.' | ',' | ':' | ';' => 0.29,
        ' ' | 'f' | 't' | 'r' | 'I' | '(' | ')' | '[' | ']' | '/' | '-' | '`' => 0.36,
        'm' | 'M' | '%' => 0.88,
        'w' | 'W' | '@' => 0.84,
        'A'..='Z' | '&' | '…' => 0.72,
        c if c.is_ascii() => 0.58,
        // Wide scripts fill their square.
        '\u{1100}'.. => 1.05,
        _ => 0.62,
    };
    text.chars().map(em).sum::<f64>() * size
}

/// A text that fits, its end cut off if need be.
pub fn fit(text: &str, size: f64, most: f64) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if width(&text, size) <= most {
        return text;
    }
    let mut cut = String::new();
    for c in text.chars() {
        cut.push(c);
        if width(&cut, size) + width("…", size) > most {
            cut.pop();
            break;
        }
    }
    cut + "…"
}

/// A text in lines that fit.
pub fn wrap(text: &str, size: f64, most: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let word = fit(word, size, most);
        match lines.last_mut() {
            Some(last) if width(last, size) + width(" ", size) + width(&word, size) <= most => {
                last.push(' ');
                last.push_str(&word);
            }
            _ => lines.push(word),
        }
    }
    lines
}

/// A measured number: three significant figures, of which zeros count as others do; but no more
/// than three decimals, since times are measured in thousandths of a millisecond.
pub fn measured(value: f64) -> String {
    if value == 0.0 || !value.is_finite() || !(1e-4..1e12).contains(&value.abs()) {
        return figure(value);
    }
    // 99.96 has three figures as 100.
    let digits = (value.abs() * 1.000_5).log10().floor() as i32;
    grouped(value, (2 - digits).clamp(0, 3) as usize)
}

/// A change in per cent: with its sign, and as many figures as mean something.
pub fn change(percent: f64) -> String {
    let plus = if percent >= 0.05 { "+" } else { "" };
    let decimals = if percent.abs() < 100.0 { 1 } else { 0 };
    if percent.is_finite() {
        format!("{plus}{}", grouped(percent, decimals))
    } else {
        "–".to_owned()
    }
}

/// With a capital.
pub fn capital(text: &str) -> String {
    let mut chars = text.chars();
    let first: String = chars.next().map(|c| c.to_uppercase().collect()).unwrap_or_default();
    first + chars.as_str()
}

/// A number for people: three significant figures, thousands apart, no exponent until it takes one.
pub fn figure(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    let size = value.abs();
    if size != 0.0 && !(1e-4..1e12).contains(&size) {
        return format!("{value:.1e}");
    }
    let decimals = if size == 0.0 { 0 } else { (2 - size.log10().floor() as i32).clamp(0, 6) };
    let text = grouped(value, decimals as usize);
    let is_fraction = text.contains('.');
    if is_fraction { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// With so many decimals, thousands apart and a real minus sign.
pub fn grouped(value: f64, decimals: usize) -> String {
    let text = format!("{:.decimals$}", value.abs());
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let mut grouped = String::new();
    let is_zero = text.bytes().all(|b| matches!(b, b'0' | b'.'));
    if value < 0.0 && !is_zero {
        grouped.push('−');
    }
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if !fraction.is_empty() {
        grouped.push('.');
        grouped.push_str(fraction);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        for (value, expected) in [
            (0.0, "0"),
            (12.345, "12.3"),
            (1234.5, "1,234"),
            (0.00123, "0.00123"),
            (-5.0, "−5"),
            (100.0, "100"),
            (1e15, "1.0e15"),
            (3e-7, "3.0e-7"),
            (f64::NAN, "–"),
            (f64::INFINITY, "–"),
        ] {
            assert_eq!(figure(value), expected, "{value}");
        }
        for (value, expected) in
            [(3.0, "3.00"), (0.022, "0.022"), (99.97, "100"), (1234.5, "1,234"), (0.0, "0")]
        {
            assert_eq!(measured(value), expected, "{value}");
        }
        assert_eq!([0.0, 0.66, -20.04, 359.4].map(change), ["0.0", "+0.7", "−20.0", "+359"]);
        assert_eq!(capital("über"), "Über");
        assert_eq!(grouped(-0.001, 2), "0.00");
        assert_eq!(grouped(1_234_567.891, 1), "1,234,567.9");
    }

    #[test]
    fn texts_are_cut_and_wrapped_to_fit() {
        assert_eq!(fit("short", 12.0, 100.0), "short");
        let cut = fit(&"word ".repeat(40), 12.0, 100.0);
        assert!(cut.ends_with('…') && width(&cut, 12.0) <= 100.0, "{cut}");
        let lines = wrap("one two three four five six seven", 12.0, 60.0);
        assert!(lines.len() > 2 && lines.iter().all(|line| width(line, 12.0) <= 60.0), "{lines:?}");
        assert!(wrap("", 12.0, 60.0).is_empty() && !fit("a\nb", 12.0, 90.0).contains('\n'));
    }
}
