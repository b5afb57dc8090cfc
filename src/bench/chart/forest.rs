//! Effects with their intervals, a row each, around the line of no effect (a forest plot).

use super::axis::{Axis, Scale};
use super::draw::{Head, MARGIN, marker, nothing, rule_line, whisker};
use super::plot::WIDTH;
use super::style::{AXIS, FONT_SIZE, GRID, INK, Look, Marker, QUIET};
use super::svg::{Attribute, Svg};
use super::text::{fit, width};

/// Effects and what they are of.
#[derive(Clone, Debug)]
pub struct Forest {
    /// What it is.
    pub title: String,
    /// How it is to be read.
    pub subtitle: String,
    /// What the axis shows, with its unit.
    pub label: String,
    /// Where there is no effect.
    pub none_at: f64,
    /// One a line.
    pub rows: Vec<Effect>,
}

/// An effect.
#[derive(Clone, Debug)]
pub struct Effect {
    /// Of what.
    pub name: String,
    /// How large; None: it is not known.
    pub effect: Option<f64>,
    /// Where it lies with the confidence that the subtitle names.
    pub interval: Option<(f64, f64)>,
    /// What stands beside it: the numbers, or a verdict.
    pub words: String,
    /// It is one of those to look at: filled, and bold.
    pub stands_out: bool,
}

const ROW: f64 = 26.0;
/// Rows of one chart; a chart of more is longer than a page.
pub const ROWS_MAX: usize = 60;
const COLOR: &str = "#0072b2";

impl Forest {
    /// The picture.
    pub fn to_svg(&self) -> String {
        let head = Head::new(&self.title, &self.subtitle, WIDTH);
        let rows = &self.rows[..self.rows.len().min(ROWS_MAX)];
        let wide = |text: fn(&Effect) -> &str, most: f64| {
            let widths = rows.iter().map(|row| width(text(row), FONT_SIZE * 1.06));
            widths.fold(40.0, f64::max).min(most)
        };
        let names = wide(|row| &row.name, 310.0);
        let words = wide(|row| &row.words, 220.0);
        let (left, right) = (MARGIN + names + 16.0, WIDTH - MARGIN - words - 16.0);
        let (top, bottom) = (head.height + 8.0, head.height + 8.0 + rows.len().max(1) as f64 * ROW);
        let numbers = rows.iter().flat_map(|row| {
            let (from, to) = row.interval.unwrap_or((f64::NAN, f64::NAN));
            [row.effect.unwrap_or(f64::NAN), from, to]
        });
        let axis = Axis::linear(&self.label, numbers.chain([self.none_at]));
        debug_assert!(axis.scale == Scale::Linear);
        let mut svg = Svg::new(WIDTH, bottom + 48.0, &self.title, &self.subtitle);
        head.draw(&mut svg);
        let at = |number: f64| axis.place(number).map(|place| left + place * (right - left));
        let mut free = f64::NEG_INFINITY;
        for (tick, name) in &axis.ticks {
            let Some(x) = at(*tick) else { continue };
            rule_line(&mut svg, (x, top), (x, bottom), GRID);
            let half = width(name, FONT_SIZE) / 2.0;
            if x - half < free {
                continue;
            }
            free = x + half + 6.0;
            text(&mut svg, x, bottom + 18.0, name, &[("text-anchor", "middle".into())]);
        }
        if let Some(x) = at(self.none_at) {
            rule_line(&mut svg, (x, top), (x, bottom), INK);
        }
        rule_line(&mut svg, (left, bottom), (right, bottom), AXIS);
        let label = [("text-anchor", "middle".into()), ("fill", Attribute::Text(QUIET))];
        text(&mut svg, (left + right) / 2.0, bottom + 37.0, &self.label, &label);
        if rows.is_empty() {
            nothing(&mut svg, (left + right) / 2.0, (top + bottom) / 2.0 + 4.0);
        }
        for (index, row) in rows.iter().enumerate() {
            let y = top + (index as f64 + 0.5) * ROW;
            let weight = if row.stands_out { "bold" } else { "normal" };
            let weight = [("font-weight", Attribute::Text(weight))];
            text(&mut svg, MARGIN, y + 4.0, &fit(&row.name, FONT_SIZE * 1.06, names), &weight);
            let words = fit(&row.words, FONT_SIZE * 1.06, words);
            text(&mut svg, right + 16.0, y + 4.0, &words, &weight);
            if let Some((Some(from), Some(to))) = row.interval.map(|(a, b)| (at(a), at(b))) {
                whisker(&mut svg, (from, y), (to, y), COLOR);
            }
            if let Some(x) = row.effect.and_then(at) {
                let kind = if row.stands_out { Marker::Disc } else { Marker::Ring };
                marker(&mut svg, (x, y), Look { color: COLOR, dash: "", marker: kind });
            }
        }
        svg.finish()
    }
}

fn text(svg: &mut Svg, x: f64, y: f64, words: &str, more: &[(&str, Attribute<'_>)]) {
    let mut attributes = vec![("x", x.into()), ("y", y.into())];
    attributes.extend_from_slice(more);
    svg.words("text", &attributes, words);
}

#[cfg(test)]
mod tests {
    use super::super::svg::tests::check;
    use super::*;

    fn forest(rows: Vec<Effect>) -> Forest {
        Forest {
            title: "Effects".to_owned(),
            subtitle: "95 %".to_owned(),
            label: "change, %".to_owned(),
            none_at: 0.0,
            rows,
        }
    }

    fn row(effect: f64, from: f64, to: f64) -> Effect {
        Effect {
            name: "ttft_ms_p99 <of> \"B\"".to_owned(),
            effect: Some(effect),
            interval: Some((from, to)),
            words: "+4 %".to_owned(),
            stands_out: from > 0.0,
        }
    }

    #[test]
    fn rows_have_a_point_and_an_interval() {
        let svg = forest(vec![row(4.0, 1.0, 7.0), row(-1.0, -3.0, 1.0)]).to_svg();
        check(&svg);
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.contains("bold") && svg.contains("&lt;of&gt;"));
    }

    #[test]
    fn odd_rows_are_drawn_as_far_as_they_go() {
        check(&forest(vec![]).to_svg());
        let inf = f64::INFINITY;
        let unknown = Effect { effect: None, interval: None, ..row(0.0, 0.0, 0.0) };
        let svg = forest(vec![unknown, row(f64::NAN, -inf, inf), row(1.0, -inf, 1e300)]).to_svg();
        check(&svg);
        assert_eq!(svg.matches("<circle").count(), 1);
        check(&forest(vec![row(1.0, 0.0, 2.0); 500]).to_svg());
    }
}
