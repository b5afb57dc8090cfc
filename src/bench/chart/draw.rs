//! What charts are drawn with: heads, markers, intervals, words.

use super::style::{FONT_SIZE, Look, Marker, QUIET, SUBTITLE_SIZE, TITLE_SIZE};
use super::svg::{Attribute, Svg, number};
use super::text::wrap;

/// From the picture's edge to what is in it.
pub const MARGIN: f64 = 16.0;

/// Moves places apart to at least `gap`, as little as can be, within bounds if there is room;
/// `wanted` ascends.
pub fn spread(wanted: &[f64], gap: f64, top: f64, bottom: f64) -> Vec<f64> {
    let mut places = wanted.to_vec();
    for index in 0..places.len() {
        let least = if index == 0 { top } else { places[index - 1] + gap };
        places[index] = places[index].max(least);
    }
    for index in (0..places.len()).rev() {
        let most = if index + 1 == places.len() { bottom } else { places[index + 1] - gap };
        places[index] = places[index].min(most.max(top));
    }
    places
}

/// Title and subtitle.
pub struct Head {
    title: Vec<String>,
    subtitle: Vec<String>,
    /// Down to where the rest begins.
    pub height: f64,
}

impl Head {
    /// Lines that fit into `wide`.
    pub fn new(title: &str, subtitle: &str, wide: f64) -> Head {
        let room = wide - 2.0 * MARGIN;
        // Bold is wider.
        let title = wrap(title, TITLE_SIZE * 1.08, room);
        let subtitle = wrap(subtitle, SUBTITLE_SIZE, room);
        let height = 14.0 + title.len() as f64 * 20.0 + subtitle.len() as f64 * 16.0;
        Head { title, subtitle, height }
    }

    /// Draws them at the top.
    pub fn draw(&self, svg: &mut Svg) {
        let mut y = 10.0;
        for line in &self.title {
            y += 20.0;
            svg.words(
                "text",
                &[
                    ("x", MARGIN.into()),
                    ("y", (y - 2.0).into()),
                    ("font-size", TITLE_SIZE.into()),
                    ("font-weight", "bold".into()),
                ],
                line,
            );
        }
        for line in &self.subtitle {
            y += 16.0;
            svg.words(
                "text",
                &[
                    ("x", MARGIN.into()),
                    ("y", y.into()),
                    ("font-size", SUBTITLE_SIZE.into()),
                    ("fill", QUIET.into()),
                ],
                line,
            );
        }
    }
}

/// Says that there is nothing to draw.
pub fn nothing(svg: &mut Svg, x: f64, y: f64) {
    let place = [("x", Attribute::Number(x)), ("y", Attribute::Number(y))];
    let middle = ("text-anchor", "middle".into());
    svg.words("text", &[place[0], place[1], middle, ("fill", QUIET.into())], "no data");
}

/// A thin straight line.
pub fn rule_line(svg: &mut Svg, from: (f64, f64), to: (f64, f64), color: &str) {
    svg.empty(
        "line",
        &[
            ("x1", from.0.into()),
            ("y1", from.1.into()),
            ("x2", to.0.into()),
            ("y2", to.1.into()),
            ("stroke", color.into()),
            ("stroke-width", 1.0.into()),
        ],
    );
}

/// An interval: a bar with ends.
pub fn whisker(svg: &mut Svg, from: (f64, f64), to: (f64, f64), color: &str) {
    let along = (to.0 - from.0, to.1 - from.1);
    let across = if along.0.abs() > along.1.abs() { (0.0, 4.0) } else { (4.0, 0.0) };
    let ends = [from, to]
        .map(|end| ((end.0 - across.0, end.1 - across.1), (end.0 + across.0, end.1 + across.1)));
    let line = |(from, to): ((f64, f64), (f64, f64))| {
        format!("M{} {}L{} {}", number(from.0), number(from.1), number(to.0), number(to.1))
    };
    let d = line((from, to)) + &line(ends[0]) + &line(ends[1]);
    let stroke = [("stroke", color.into()), ("stroke-width", Attribute::Number(1.5))];
    svg.empty("path", &[("d", (&d).into()), stroke[0], stroke[1]]);
}

/// A line's colour, width and dash.
pub fn line_style(look: Look, wide: f64) -> [(&'static str, Attribute<'static>); 5] {
    [
        ("fill", "none".into()),
        ("stroke", look.color.into()),
        ("stroke-width", wide.into()),
        ("stroke-linejoin", "round".into()),
        ("stroke-dasharray", if look.dash.is_empty() { "none" } else { look.dash }.into()),
    ]
}

/// Words with a white edge, so that they read over lines.
pub fn halo(svg: &mut Svg, x: f64, y: f64, words: &str, anchor: &str, color: &str) {
    let common = [
        ("x", Attribute::Number(x)),
        ("y", y.into()),
        ("text-anchor", anchor.into()),
        ("font-size", (FONT_SIZE - 1.0).into()),
    ];
    let edge = [
        ("fill", "#fff".into()),
        ("stroke", "#fff".into()),
        ("stroke-width", Attribute::Number(3.0)),
    ];
    svg.words("text", &[&common[..], &edge].concat(), words);
    svg.words("text", &[&common[..], &[("fill", color.into())]].concat(), words);
}

/// A point.
pub fn marker(svg: &mut Svg, (x, y): (f64, f64), look: Look) {
    let (color, size) = (look.color, 4.0);
    let filled = [("fill", Attribute::Text(color)), ("stroke", "#fff".into())];
    let hollow =
        [("fill", Attribute::Text("#fff")), ("stroke", color.into()), ("stroke-width", 1.8.into())];
    let round = [("cx", Attribute::Number(x)), ("cy", y.into()), ("r", size.into())];
    match look.marker {
        Marker::Disc => svg.empty("circle", &[&round[..], &filled].concat()),
        Marker::Ring => svg.empty("circle", &[&round[..], &hollow].concat()),
        Marker::Square => {
            let size = 3.6;
            let corners = [
                (x - size, y - size),
                (x + size, y - size),
                (x + size, y + size),
                (x - size, y + size),
            ];
            svg.polygon(&corners, &hollow);
        }
        Marker::Triangle => {
            let corners = [(x, y - 5.0), (x + 5.0, y + 4.0), (x - 5.0, y + 4.0)];
            svg.polygon(&corners, &filled);
        }
        Marker::Diamond => {
            let corners = [(x, y - 5.5), (x + 5.5, y), (x, y + 5.5), (x - 5.5, y)];
            svg.polygon(&corners, &filled);
        }
        Marker::Cross | Marker::Plus => {
            let (a, b) = if look.marker == Marker::Cross { (size, size) } else { (5.0, 0.0) };
            let stroke = [
                ("fill", Attribute::Text("none")),
                ("stroke", color.into()),
                ("stroke-width", 2.0.into()),
            ];
            svg.path(&[(x - a, y - b), (x + a, y + b)], &stroke);
            svg.path(&[(x - b, y + a), (x + b, y - a)], &stroke);
        }
    }
}
