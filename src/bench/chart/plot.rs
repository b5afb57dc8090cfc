//! Lines and points over two axes, with bands, intervals and names beside the lines.
//!
//! ```text
//!  Title
//!  how it is to be read
//!  y label, with its unit
//!  tick |                      .--o name
//!  tick |        ____.....-----'
//!  tick |___.---'______________---o name
//!       tick     tick     tick
//!                x label, with its unit
//! ```

use super::axis::Axis;
use super::draw::{Head, MARGIN, halo, line_style, marker, nothing, rule_line, spread, whisker};
use super::style::{ALARM, AXIS, FONT_SIZE, GRID, INK, Look, QUIET};
use super::svg::Svg;
use super::text::{fit, width};

/// A chart of lines and points.
#[derive(Clone, Debug)]
pub struct Plot {
    /// What it is.
    pub title: String,
    /// How it is to be read.
    pub subtitle: String,
    /// To the right.
    pub x: Axis,
    /// Upwards.
    pub y: Axis,
    /// What is drawn.
    pub series: Vec<Series>,
    /// Numbers that matter by themselves.
    pub rules: Vec<Rule>,
}

/// Places that belong together.
#[derive(Clone, Debug)]
pub struct Series {
    /// What stands beside it.
    pub name: String,
    /// Where it goes, in order.
    pub points: Vec<(f64, f64)>,
    /// An area around it: x, from, to.
    pub band: Vec<(f64, f64, f64)>,
    /// Bars through points: x, from, to.
    pub intervals: Vec<(f64, f64, f64)>,
    /// Words at points, by their number.
    pub words: Vec<(usize, String)>,
    /// How.
    pub style: Style,
    /// Its colour, dash and marker.
    pub look: Look,
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A line.
    Line,
    /// A line with a marker at each point.
    Marked,
    /// Markers only.
    Points,
    /// A thin line without a marker: what is compared against.
    Reference,
}

/// A line across the plot.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Where, on the y axis, or on the x axis if it is upright.
    pub at: f64,
    /// It stands upright.
    pub upright: bool,
    /// What it is.
    pub name: String,
}

/// Of the whole picture.
pub const WIDTH: f64 = 760.0;
/// Of the area within the axes.
const PLOT_HEIGHT: f64 = 280.0;
/// Names beside the lines have this much at most.
const NAME_WIDTH_MAX: f64 = 190.0;
/// From one name to the next.
const NAME_HEIGHT: f64 = 16.0;
/// A line's sample beside its name.
const SAMPLE: f64 = 24.0;
/// Points closer than this on the picture are one.
const NEAR: f64 = 0.3;
/// Markers of a series; of more only the line shows where they are, unless there is none.
const MARKERS_MAX: usize = 60;

impl Series {
    /// A line.
    pub fn line(name: &str, points: Vec<(f64, f64)>, look: Look) -> Series {
        Series {
            name: name.to_owned(),
            points,
            band: Vec::new(),
            intervals: Vec::new(),
            words: Vec::new(),
            style: Style::Line,
            look,
        }
    }
}

/// Where everything goes.
struct Area {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

impl Area {
    fn right(&self) -> f64 {
        self.left + self.width
    }

    fn bottom(&self) -> f64 {
        self.top + self.height
    }
}

impl Plot {
    /// The picture.
    pub fn to_svg(&self) -> String {
        let head = Head::new(&self.title, &self.subtitle, WIDTH);
        let ticks = self.y.ticks.iter().map(|(_, name)| width(name, FONT_SIZE));
        let left = MARGIN + ticks.fold(0.0, f64::max) + 8.0;
        let shown = || self.series.iter().filter(|series| !series.name.is_empty());
        let names = shown().map(|series| width(&series.name, FONT_SIZE));
        let names = names.fold(0.0, f64::max).min(NAME_WIDTH_MAX);
        let right = if shown().next().is_none() { MARGIN } else { names + SAMPLE + 26.0 };
        // The last tick's name is centred under its end of the axis.
        let right = right.max(34.0);
        let area = Area {
            left,
            top: head.height + 32.0,
            width: WIDTH - left - right,
            height: PLOT_HEIGHT.max(shown().count() as f64 * NAME_HEIGHT),
        };
        let mut svg = Svg::new(WIDTH, area.bottom() + 48.0, &self.title, &self.subtitle);
        head.draw(&mut svg);
        self.axes(&mut svg, &area);
        let empty = self.series.iter().all(|series| self.places(series, &area).is_empty());
        if empty {
            nothing(&mut svg, area.left + area.width / 2.0, area.top + area.height / 2.0);
        }
        self.series.iter().for_each(|series| self.areas(&mut svg, &area, series));
        self.rules.iter().for_each(|rule| self.rule(&mut svg, &area, rule));
        self.series.iter().for_each(|series| self.lines(&mut svg, &area, series));
        self.names(&mut svg, &area);
        svg.finish()
    }

    fn axes(&self, svg: &mut Svg, area: &Area) {
        let (right, bottom) = (area.right(), area.bottom());
        svg.words(
            "text",
            &[("x", MARGIN.into()), ("y", (area.top - 10.0).into()), ("fill", QUIET.into())],
            &self.y.label,
        );
        for (tick, name) in &self.y.ticks {
            let Some(place) = self.y.place(*tick) else { continue };
            let y = bottom - place * area.height;
            rule_line(svg, (area.left, y), (right, y), GRID);
            let at = [("x", (area.left - 6.0).into()), ("y", (y + 4.0).into())];
            svg.words("text", &[at[0], at[1], ("text-anchor", "end".into())], name);
        }
        let mut free = f64::NEG_INFINITY;
        for (tick, name) in &self.x.ticks {
            let Some(place) = self.x.place(*tick) else { continue };
            let x = area.left + place * area.width;
            rule_line(svg, (x, area.top), (x, bottom), GRID);
            rule_line(svg, (x, bottom), (x, bottom + 4.0), AXIS);
            let half = width(name, FONT_SIZE) / 2.0;
            if x - half < free {
                continue;
            }
            free = x + half + 6.0;
            let at = [("x", x.into()), ("y", (bottom + 18.0).into())];
            svg.words("text", &[at[0], at[1], ("text-anchor", "middle".into())], name);
        }
        rule_line(svg, (area.left, bottom), (right, bottom), AXIS);
        svg.words(
            "text",
            &[
                ("x", (area.left + area.width / 2.0).into()),
                ("y", (bottom + 37.0).into()),
                ("text-anchor", "middle".into()),
                ("fill", QUIET.into()),
            ],
            &self.x.label,
        );
    }

    fn place(&self, area: &Area, x: f64, y: f64) -> Option<(f64, f64)> {
        let (x, y) = (self.x.place(x)?, self.y.place(y)?);
        Some((area.left + x * area.width, area.bottom() - y * area.height))
    }

    /// The places of a series, without those that the eye cannot tell from the one before.
    fn places(&self, series: &Series, area: &Area) -> Vec<(f64, f64)> {
        let mut places: Vec<(f64, f64)> = Vec::new();
        let last = series.points.len().saturating_sub(1);
        for (index, &(x, y)) in series.points.iter().enumerate() {
            let Some(place) = self.place(area, x, y) else { continue };
            let is_near = places
                .last()
                .is_some_and(|(x, y)| (place.0 - x).abs() < NEAR && (place.1 - y).abs() < NEAR);
            if !is_near || index == last {
                places.push(place);
            }
        }
        places
    }

    fn areas(&self, svg: &mut Svg, area: &Area, series: &Series) {
        // An interval that reaches to zero or below has its edge at the bottom of a logarithmic
        // axis.
        let low = |low: f64| if self.y.place(low).is_none() { self.y.min } else { low };
        let mut upper = Vec::new();
        let mut lower = Vec::new();
        for &(x, from, to) in &series.band {
            let places = (self.place(area, x, low(from)), self.place(area, x, to));
            let (Some(from), Some(to)) = places else { continue };
            let near = upper.last().is_some_and(|(x, y): &(f64, f64)| {
                (to.0 - x).abs() < NEAR && (to.1 - y).abs() < NEAR
            });
            if !near {
                upper.push(to);
                lower.push(from);
            }
        }
        lower.reverse();
        upper.extend(lower);
        if !upper.is_empty() {
            svg.polygon(
                &upper,
                &[("fill", series.look.color.into()), ("fill-opacity", 0.16.into())],
            );
        }
        for &(x, from, to) in &series.intervals {
            let places = (self.place(area, x, low(from)), self.place(area, x, to));
            let (Some(from), Some(to)) = places else { continue };
            whisker(svg, from, to, series.look.color);
        }
    }

    fn lines(&self, svg: &mut Svg, area: &Area, series: &Series) {
        let places = self.places(series, area);
        let look = series.look;
        if series.style != Style::Points && places.len() > 1 {
            let thin = series.style == Style::Reference;
            svg.path(&places, &line_style(look, if thin { 1.2 } else { 2.0 }));
        }
        let alone = places.len() == 1;
        let few = places.len() <= MARKERS_MAX;
        if alone || series.style == Style::Points || series.style == Style::Marked && few {
            places.iter().for_each(|place| marker(svg, *place, look));
        }
        let mut taken: Vec<(f64, f64, f64)> = Vec::new();
        for (index, word) in &series.words {
            let Some(&(x, y)) = series.points.get(*index) else { continue };
            let Some((x, y)) = self.place(area, x, y) else { continue };
            let word = fit(word, FONT_SIZE - 1.0, NAME_WIDTH_MAX);
            let wide = width(&word, FONT_SIZE - 1.0);
            // Above the point, below, or to its sides: wherever no other word is.
            let beside = wide / 2.0 + 9.0;
            let spots = [(x, y - 9.0), (x, y + 18.0), (x + beside, y + 4.0), (x - beside, y + 4.0)];
            let is_free = |(x, y): &(f64, f64)| {
                let inside = *y > area.top + 4.0 && *y < area.bottom() - 2.0;
                let clear = |(at, line, half): &(f64, f64, f64)| {
                    (at - x).abs() > half + wide / 2.0 + 2.0 || (line - y).abs() > FONT_SIZE
                };
                inside && taken.iter().all(clear)
            };
            let (x, y) = spots.into_iter().find(is_free).unwrap_or(spots[0]);
            let x = x.clamp(area.left + wide / 2.0, (area.right() - wide / 2.0).max(area.left));
            taken.push((x, y, wide / 2.0));
            halo(svg, x, y, &word, "middle", INK);
        }
    }

    fn rule(&self, svg: &mut Svg, area: &Area, rule: &Rule) {
        let axis = if rule.upright { &self.x } else { &self.y };
        let Some(place) = axis.place(rule.at) else { return };
        let (from, to) = if rule.upright {
            let x = area.left + place * area.width;
            ((x, area.top), (x, area.bottom()))
        } else {
            let y = area.bottom() - place * area.height;
            ((area.left, y), (area.right(), y))
        };
        svg.path(
            &[from, to],
            &[
                ("fill", "none".into()),
                ("stroke", ALARM.into()),
                ("stroke-width", 1.2.into()),
                ("stroke-dasharray", "5 4".into()),
            ],
        );
        let (x, y, anchor) = match rule.upright {
            true if place > 0.7 => (from.0 - 5.0, from.1 + 12.0, "end"),
            true => (from.0 + 5.0, from.1 + 12.0, "start"),
            false if place > 0.93 => (area.left + 6.0, from.1 + 14.0, "start"),
            false => (area.left + 6.0, from.1 - 5.0, "start"),
        };
        halo(svg, x, y, &fit(&rule.name, FONT_SIZE - 1.0, area.width / 2.0), anchor, ALARM);
    }

    /// Names beside the ends of lines; where they would overlap they move apart.
    fn names(&self, svg: &mut Svg, area: &Area) {
        let nowhere = (area.right(), area.bottom());
        let mut ends: Vec<(&Series, (f64, f64))> = Vec::new();
        for series in self.series.iter().filter(|series| !series.name.is_empty()) {
            let last = self.places(series, area).last().copied();
            // What could not be drawn is still named.
            ends.push((series, last.unwrap_or(nowhere)));
        }
        ends.sort_by(|(_, (_, a)), (_, (_, b))| a.total_cmp(b));
        let wanted: Vec<f64> = ends.iter().map(|(_, (_, y))| *y).collect();
        let places = spread(&wanted, NAME_HEIGHT, area.top, area.bottom());
        let left = area.right() + 10.0;
        for ((series, end), y) in ends.iter().zip(places) {
            let is_line = series.style != Style::Points;
            let is_drawn = *end != nowhere;
            if is_line && is_drawn && (end.1 - y).abs() + (left - end.0) > 14.0 {
                svg.path(
                    &[*end, (left - 2.0, y)],
                    &[
                        ("fill", "none".into()),
                        ("stroke", series.look.color.into()),
                        ("stroke-width", 0.6.into()),
                        ("stroke-opacity", 0.6.into()),
                    ],
                );
            }
            if is_line {
                let sample = [(left, y), (left + SAMPLE, y)];
                svg.path(&sample, &line_style(series.look, 2.0));
            }
            if matches!(series.style, Style::Marked | Style::Points) {
                marker(svg, (left + SAMPLE / 2.0, y), series.look);
            }
            let name = fit(&series.name, FONT_SIZE, NAME_WIDTH_MAX);
            let x = left + SAMPLE + 6.0;
            svg.words("text", &[("x", x.into()), ("y", (y + 4.0).into())], &name);
        }
    }
}
