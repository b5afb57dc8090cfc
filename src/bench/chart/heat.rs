//! A grid of shaded numbers: what two factors do together (a heat map).

use super::draw::{Head, MARGIN, nothing};
use super::plot::WIDTH;
use super::style::{FONT_SIZE, GRID, INK, QUIET, shade};
use super::svg::Svg;
use super::text::{figure, fit, width};

/// Numbers by two factors.
#[derive(Clone, Debug)]
pub struct Heat {
    /// What it is.
    pub title: String,
    /// How it is to be read.
    pub subtitle: String,
    /// What the rows are.
    pub row_label: String,
    /// What the columns are.
    pub column_label: String,
    /// Their values, from the top.
    pub rows: Vec<String>,
    /// Their values, from the left.
    pub columns: Vec<String>,
    /// By row and column; None: there is none. The best is framed.
    pub cells: Vec<Vec<Option<f64>>>,
    /// The least is the best.
    pub less_is_better: bool,
}

const ROW: f64 = 34.0;
const COLUMN_MAX: f64 = 110.0;
/// Rows and columns; a grid of more is better looked at in the table.
pub const SIDE_MAX: usize = 24;

impl Heat {
    /// The picture.
    pub fn to_svg(&self) -> String {
        let head = Head::new(&self.title, &self.subtitle, WIDTH);
        let rows = &self.rows[..self.rows.len().min(SIDE_MAX)];
        let columns = &self.columns[..self.columns.len().min(SIDE_MAX)];
        let names = rows.iter().map(|name| width(name, FONT_SIZE)).fold(30.0, f64::max).min(160.0);
        let left = MARGIN + names + 12.0;
        let column = ((WIDTH - left - MARGIN) / columns.len().max(1) as f64).min(COLUMN_MAX);
        let top = head.height + 46.0;
        let bottom = top + rows.len().max(1) as f64 * ROW;
        let mut svg = Svg::new(WIDTH, bottom + MARGIN, &self.title, &self.subtitle);
        head.draw(&mut svg);
        let quiet = |x: f64, y: f64| [("x", x.into()), ("y", y.into()), ("fill", QUIET.into())];
        svg.words("text", &quiet(left, top - 24.0), &format!("{} →", self.column_label));
        svg.words("text", &quiet(MARGIN, top - 6.0), &format!("{} ↓", self.row_label));
        if rows.is_empty() || columns.is_empty() {
            nothing(&mut svg, WIDTH / 2.0, top + ROW / 2.0);
            return svg.finish();
        }
        let middle = ("text-anchor", "middle".into());
        for (index, name) in columns.iter().enumerate() {
            let x = left + (index as f64 + 0.5) * column;
            let name = fit(name, FONT_SIZE, column - 4.0);
            svg.words("text", &[("x", x.into()), ("y", (top - 6.0).into()), middle], &name);
        }
        for (index, name) in rows.iter().enumerate() {
            let y = top + (index as f64 + 0.5) * ROW + 4.0;
            let at = [("x", (left - 8.0).into()), ("y", y.into()), ("text-anchor", "end".into())];
            svg.words("text", &at, &fit(name, FONT_SIZE, names));
        }
        let known = self.known(rows.len(), columns.len());
        let values = || known.iter().map(|(_, _, value)| *value);
        let (min, max) =
            (values().fold(f64::INFINITY, f64::min), values().fold(f64::MIN, f64::max));
        for row in 0..rows.len() {
            for index in 0..columns.len() {
                let (x, y) = (left + index as f64 * column, top + row as f64 * ROW);
                let value = known.iter().find(|(r, c, _)| (*r, *c) == (row, index));
                let value = value.map(|(_, _, value)| *value);
                cell(&mut svg, (x, y), column, value, (min, max));
            }
        }
        self.frame_best(&mut svg, &known, (left, top), column);
        svg.finish()
    }

    fn known(&self, rows: usize, columns: usize) -> Vec<(usize, usize, f64)> {
        let cells = self.cells.iter().take(rows).enumerate().flat_map(|(row, cells)| {
            let cells = cells.iter().take(columns).enumerate();
            cells.filter_map(move |(column, value)| Some((row, column, (*value)?)))
        });
        cells.filter(|(_, _, value)| value.abs() < 1e150).collect()
    }

    fn frame_best(
        &self,
        svg: &mut Svg,
        known: &[(usize, usize, f64)],
        (left, top): (f64, f64),
        column: f64,
    ) {
        let best = match self.less_is_better {
            true => known.iter().min_by(|a, b| a.2.total_cmp(&b.2)),
            false => known.iter().max_by(|a, b| a.2.total_cmp(&b.2)),
        };
        let Some((row, index, _)) = best else { return };
        svg.empty(
            "rect",
            &[
                ("x", (left + *index as f64 * column + 1.5).into()),
                ("y", (top + *row as f64 * ROW + 1.5).into()),
                ("width", (column - 3.0).into()),
                ("height", (ROW - 3.0).into()),
                ("fill", "none".into()),
                ("stroke", "#d55e00".into()),
                ("stroke-width", 3.0.into()),
            ],
        );
    }
}

fn cell(svg: &mut Svg, (x, y): (f64, f64), wide: f64, value: Option<f64>, of: (f64, f64)) {
    let range = of.1 - of.0;
    let share = value.map(|value| if range > 0.0 { (value - of.0) / range } else { 0.0 });
    let (color, ink) = share.map_or(("#ffffff".to_owned(), INK), shade);
    svg.empty(
        "rect",
        &[
            ("x", x.into()),
            ("y", y.into()),
            ("width", wide.into()),
            ("height", ROW.into()),
            ("fill", (&color).into()),
            ("stroke", if value.is_some() { "#fff" } else { GRID }.into()),
        ],
    );
    let words = value.map_or("–".to_owned(), figure);
    svg.words(
        "text",
        &[
            ("x", (x + wide / 2.0).into()),
            ("y", (y + ROW / 2.0 + 4.0).into()),
            ("text-anchor", "middle".into()),
            ("fill", ink.into()),
        ],
        &fit(&words, FONT_SIZE, wide),
    );
}

#[cfg(test)]
mod tests {
    use super::super::svg::tests::check;
    use super::*;

    fn heat(cells: Vec<Vec<Option<f64>>>) -> Heat {
        Heat {
            title: "Throughput".to_owned(),
            subtitle: String::new(),
            row_label: "inflight".to_owned(),
            column_label: "batch".to_owned(),
            rows: (0..cells.len()).map(|row| format!("{row}")).collect(),
            columns: (0..cells.first().map_or(0, Vec::len)).map(|c| format!("c{c}")).collect(),
            cells,
            less_is_better: false,
        }
    }

    #[test]
    fn each_cell_is_shaded_and_the_best_framed() {
        let svg = heat(vec![vec![Some(1.0), Some(5.0)], vec![None, Some(3.0)]]).to_svg();
        check(&svg);
        assert_eq!(svg.matches("<rect").count(), 1 + 4 + 1);
        assert!(svg.contains("#08306b") && svg.contains("#f0f6fc"), "the ends of the range");
    }

    #[test]
    fn odd_grids() {
        check(&heat(vec![]).to_svg());
        check(&heat(vec![vec![Some(7.0)]]).to_svg());
        let odd = [None, Some(f64::NAN), Some(f64::INFINITY), Some(1e300), Some(-1e-300)];
        check(&heat(vec![odd.to_vec(), vec![]]).to_svg());
        check(&heat(vec![vec![Some(1.0); 100]; 100]).to_svg());
    }
}
