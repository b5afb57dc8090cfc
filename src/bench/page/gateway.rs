//! `bench gateway`: the pairs, and what the gateway costs.

use serde_json::Value;

use super::document::{Block, Document, Notice, Table, Weight};
use super::terms;
use crate::bench::chart::axis::Axis;
use crate::bench::chart::forest::{Effect, Forest};
use crate::bench::chart::plot::{Plot, Rule, Series, Style};
use crate::bench::chart::style::look;
use crate::bench::chart::text::{grouped, measured};
use crate::bench::record::{Record, Run};

/// How the figures of a result begin that tell what the gateway costs.
const COST: &str = "gateway_cost_";
/// Figures of which each pair is drawn: what a user waits for the first word, and for the last.
const DRAWN: [&str; 2] = ["ttft_ms_p50", "e2e_ms_p50"];

/// What the gateway adds to a figure.
struct Cost<'r> {
    figure: &'r str,
    direct: f64,
    gateway: f64,
    cost: f64,
    interval: (f64, f64),
    rounds: u64,
}

/// Whether a result has costs.
pub fn has_costs(record: &Record) -> bool {
    costs(record).next().is_some()
}

fn costs(record: &Record) -> impl Iterator<Item = Cost<'_>> {
    record.figures.iter().filter_map(|(name, value)| {
        let number = |name: &str| value.get(name).and_then(Value::as_f64);
        Some(Cost {
            figure: name.strip_prefix(COST)?,
            direct: number("direct")?,
            gateway: number("gateway")?,
            cost: number("cost")?,
            interval: (value["ci"][0].as_f64()?, value["ci"][1].as_f64()?),
            rounds: value["rounds"].as_u64()?,
        })
    })
}

/// What a user feels of it, at the top.
fn answer(costs: &[Cost<'_>]) -> Option<Notice> {
    let cost = costs.iter().find(|cost| cost.figure == DRAWN[0])?;
    let (low, high) = cost.interval;
    let (value, range) = (signed(cost.cost), format!("{} to {} ms", signed(low), signed(high)));
    let words = if low > 0.0 {
        format!("Through the gateway the first token comes {value} ms later (median; {range}).")
    } else if high < 0.0 {
        format!("Through the gateway the first token comes sooner: {value} ms (median; {range}).")
    } else {
        format!(
            "What the gateway adds to the time to first token cannot be told from chance: {value} \
             ms (median; {range}). More --rounds would tell."
        )
    };
    Some(Notice { weight: Weight::Answer, words })
}

/// Writes costs, pairs, and the table of both.
pub fn write(document: &mut Document, record: &Record) {
    let costs: Vec<Cost<'_>> = costs(record).collect();
    if let Some(answer) = answer(&costs) {
        document.blocks.push(Block::Notices(vec![answer]));
    }
    let rounds = costs.iter().map(|cost| cost.rounds).max().unwrap_or(0);
    let under = format!(
        "{rounds} pairs of runs: the same requests at the same moments, once to the server directly \
         and once through the gateway, in an order that was drawn. The cost is the mean of the \
         pairs' differences, so that what drifts from pair to pair falls out of it."
    );
    document.blocks.push(Block::Heading("What the gateway adds".to_owned(), under));
    let times = costs.iter().filter(|cost| cost.figure.contains("_ms"));
    let forest = Forest {
        title: "Cost of the gateway".to_owned(),
        subtitle: "What a request takes longer through the gateway than directly. On the line it \
                   costs nothing. Bars are 95 % confidence intervals; where a bar does not reach \
                   the line the cost is sure, and the point is filled and bold."
            .to_owned(),
        label: "longer through the gateway, ms".to_owned(),
        none_at: 0.0,
        rows: times.map(row_of).collect(),
    };
    if !forest.rows.is_empty() {
        document.chart("cost of the gateway", &forest.title, forest.to_svg());
    }
    document.blocks.push(Block::Table(table(&costs)));
    for figure in DRAWN {
        if let Some(cost) = costs.iter().find(|cost| cost.figure == figure) {
            pairs(document, &record.runs, cost);
        }
    }
}

/// A cost with its sign; times are told to a thousandth of a millisecond.
fn signed(value: f64) -> String {
    let decimals = if value.abs() < 100.0 { 3 } else { 1 };
    let plus = if value > 0.0 { "+" } else { "" };
    format!("{plus}{}", grouped(value, decimals))
}

fn row_of(cost: &Cost<'_>) -> Effect {
    let (low, high) = cost.interval;
    Effect {
        name: terms::label(cost.figure).replace(", ms", ""),
        effect: Some(cost.cost),
        interval: Some(cost.interval),
        words: format!("{} ms ({} to {})", signed(cost.cost), signed(low), signed(high)),
        stands_out: low > 0.0 || high < 0.0,
    }
}

fn table(costs: &[Cost<'_>]) -> Table {
    let row = |cost: &Cost<'_>| {
        let (low, high) = cost.interval;
        vec![
            terms::label(cost.figure),
            measured(cost.direct),
            measured(cost.gateway),
            format!("{}\n{} to {}", signed(cost.cost), signed(low), signed(high)),
            cost.rounds.to_string(),
        ]
    };
    Table {
        columns: ["", "direct", "through the gateway", "cost", "pairs"].map(str::to_owned).to_vec(),
        rows: costs.iter().map(row).collect(),
        note: "Direct and gateway: medians over the rounds. Under each cost its 95 % confidence \
               interval; one that holds 0 means that no cost can be told from chance."
            .to_owned(),
        is_text: false,
    }
}

/// Each pair: both runs, and by how much they differ.
fn pairs(document: &mut Document, runs: &[Run], cost: &Cost<'_>) {
    let of = |way: &str| -> Vec<(f64, f64)> {
        let of_way = runs.iter().filter(|run| run.settings.get("way") == Some(&way.into()));
        let points = of_way
            .filter_map(|run| Some((f64::from(run.repeat + 1), run.record.number(cost.figure)?)));
        let mut points: Vec<(f64, f64)> = points.collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    };
    let (direct, gateway) = (of("direct"), of("gateway"));
    let pair = |(round, through): &(f64, f64)| {
        let (_, direct) = direct.iter().find(|(of, _)| of == round)?;
        Some((*round, through - direct))
    };
    let differences: Vec<(f64, f64)> = gateway.iter().filter_map(pair).collect();
    if differences.len() < 2 {
        return;
    }
    let (title, label) = (terms::title(cost.figure), terms::label(cost.figure));
    let rounds: Vec<f64> = differences.iter().map(|(round, _)| *round).collect();
    let x = || {
        let axis = Axis::linear("round", rounds.iter().copied());
        if rounds.len() <= TICKS_MAX { axis.ticks_at(&rounds) } else { axis }
    };
    let marked = |name: &str, points: &[(f64, f64)], index| Series {
        style: Style::Marked,
        ..Series::line(name, points.to_vec(), look(index))
    };
    let both = direct.iter().chain(&gateway).map(|(_, y)| *y);
    let plot = Plot {
        title: format!("{title}, pair by pair"),
        subtitle: "Both runs of each round. What moves both alike is the server and the machine; \
                   what lies between them is the gateway."
            .to_owned(),
        x: x(),
        y: Axis::from_zero(&label, both),
        series: vec![marked("direct", &direct, 0), marked("through the gateway", &gateway, 1)],
        rules: Vec::new(),
    };
    document.chart(&format!("{} pairs", cost.figure), &plot.title, plot.to_svg());
    let (low, high) = cost.interval;
    let ends = [rounds[0], rounds[rounds.len() - 1]];
    let mean = Series {
        band: ends.map(|round| (round, low, high)).to_vec(),
        ..Series::line("mean", ends.map(|round| (round, cost.cost)).to_vec(), look(0))
    };
    let numbers = differences.iter().map(|(_, y)| *y).chain([0.0, low, high]);
    let points = Series { style: Style::Points, ..marked("a pair", &differences, 1) };
    let plot = Plot {
        title: format!("{title}: what the gateway adds in each pair"),
        subtitle: "Through the gateway less direct. The line is the mean, the band its 95 % \
                   confidence interval."
            .to_owned(),
        x: x(),
        y: Axis::linear("longer through the gateway, ms", numbers),
        series: vec![mean, points],
        rules: vec![Rule { at: 0.0, upright: false, name: "no cost".to_owned() }],
    };
    document.chart(&format!("{} differences", cost.figure), &plot.title, plot.to_svg());
}

/// Rounds that each have a number under the axis.
const TICKS_MAX: usize = 20;
