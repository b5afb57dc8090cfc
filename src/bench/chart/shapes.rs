//! The charts of a report, each with the words that say how it is to be read.

use super::axis::Axis;
use super::plot::{Plot, Rule, Series, Style};
use super::style::{ALARM, Look, Marker, look};

/// Latencies of one kind in one run.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    /// What they are of.
    pub name: String,
    /// How many were measured.
    pub count: u64,
    /// Percentile and milliseconds, ascending.
    pub percentiles: Vec<(f64, f64)>,
    /// Percentile, and the interval in which its milliseconds lie.
    pub band: Vec<(f64, f64, f64)>,
}

/// A point of a run in time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Its middle, in seconds from the start.
    pub at_s: f64,
    /// Milliseconds: the median of it.
    pub p50: f64,
    /// And the highest.
    pub high: f64,
}

/// A setting of a load, and what it brought.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// The setting, as `concurrency 8`.
    pub name: String,
    /// What it brought, more is better.
    pub throughput: f64,
    /// Milliseconds, less is better.
    pub latency: f64,
    /// Where the latency lies.
    pub latency_interval: Option<(f64, f64)>,
}

/// How a job does with more ranks.
#[derive(Clone, Debug, Default)]
pub struct Scaling {
    /// What differs from the other lines.
    pub name: String,
    /// Ranks, and how many times as fast as one.
    pub points: Vec<(f64, f64)>,
    /// Ranks, and the interval in which that lies.
    pub band: Vec<(f64, f64, f64)>,
}

/// Outliers that are drawn; the highest of more.
pub const OUTLIERS_MAX: usize = 300;

/// Latency by percentile, over HdrHistogram's scale.
pub fn percentiles(title: &str, quantity: &str, runs: &[Latencies]) -> Plot {
    let count = runs.iter().map(|run| run.count).max().unwrap_or(0);
    let has_bands = runs.iter().any(|run| !run.band.is_empty());
    let band = if has_bands {
        " The shaded band is the 95 % confidence interval; it ends where the samples carry none."
    } else {
        ""
    };
    // Of few points the line between them is a guess, and the points say where it is none.
    let style =
        |run: &Latencies| if run.percentiles.len() > 12 { Style::Line } else { Style::Marked };
    let line = |(index, run): (usize, &Latencies)| Series {
        band: run.band.clone(),
        style: style(run),
        ..Series::line(&run.name, run.percentiles.clone(), look(index))
    };
    let numbers = runs.iter().flat_map(|run| {
        let ends = run.band.iter().flat_map(|(_, from, to)| [*from, *to]);
        run.percentiles.iter().map(|(_, ms)| *ms).chain(ends)
    });
    Plot {
        title: title.to_owned(),
        subtitle: format!(
            "At p99, 99 of 100 took no longer than the line. Each further nine is ten times as \
             rare, down to one in {}.{band} Lower is better.",
            super::text::grouped(count as f64, 0)
        ),
        x: Axis::percentiles("percentile (each further nine equally wide)", count),
        y: spread_axis(&format!("{quantity}, ms"), numbers),
        series: runs.iter().enumerate().map(line).collect(),
        rules: Vec::new(),
    }
}

/// The share that took no longer.
pub fn cdf(title: &str, quantity: &str, runs: &[Latencies]) -> Plot {
    let numbers = runs.iter().flat_map(|run| run.percentiles.iter().map(|(_, ms)| *ms));
    let x = spread_axis(&format!("{quantity}, ms"), numbers);
    let line = |(index, run): (usize, &Latencies)| {
        let points = run.percentiles.iter().map(|(percent, ms)| (*ms, *percent));
        // Beyond the slowest it is all of them.
        let end = (!run.percentiles.is_empty()).then_some((x.max, 100.0));
        Series::line(&run.name, points.chain(end).collect(), look(index))
    };
    Plot {
        title: title.to_owned(),
        subtitle: "The share that took no longer than the time below. A steep line is a steady \
                   service; a step is a group that waited for the same thing. Further left is \
                   better."
            .to_owned(),
        series: runs.iter().enumerate().map(line).collect(),
        y: Axis::linear("share, %", [0.0, 100.0]),
        x,
        rules: Vec::new(),
    }
}

/// Latency over the time of the run, with single requests that stand out.
pub fn timeline(
    title: &str,
    quantity: &str,
    intervals: &[Interval],
    outliers: &[(f64, f64)],
) -> Plot {
    let mut outliers = outliers.to_vec();
    outliers.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    outliers.truncate(OUTLIERS_MAX);
    let median = intervals.iter().map(|i| (i.at_s, i.p50)).collect();
    let high: Vec<(f64, f64)> = intervals.iter().map(|i| (i.at_s, i.high)).collect();
    let all = || intervals.iter().flat_map(|i| [i.p50, i.high]);
    let y =
        spread_axis(&format!("{quantity}, ms"), all().chain(outliers.iter().map(|(_, ms)| *ms)));
    let times = intervals.iter().map(|i| i.at_s).chain(outliers.iter().map(|(at, _)| *at));
    let x = time_axis(times);
    let mut series =
        vec![Series::line("median", median, look(0)), Series::line("highest", high, look(1))];
    if !outliers.is_empty() {
        let mark = Look { color: ALARM, dash: "", marker: Marker::Cross };
        let points = Series::line("outliers", outliers, mark);
        series.push(Series { style: Style::Points, ..points });
    }
    Plot {
        title: title.to_owned(),
        subtitle: "Requests by the moment at which they ended: the middle one and the slowest of \
                   each interval. Level lines mean that the run was steady, a slope that a queue \
                   grew; crosses are single requests far out of the rest."
            .to_owned(),
        x,
        y,
        series,
        rules: Vec::new(),
    }
}

/// Something counted over the time of the run.
pub fn course(title: &str, label: &str, points: Vec<(f64, f64)>) -> Plot {
    Plot {
        title: title.to_owned(),
        subtitle: String::new(),
        x: time_axis(points.iter().map(|(at, _)| *at)),
        y: Axis::from_zero(label, points.iter().map(|(_, y)| *y)),
        series: vec![Series::line("", points, look(0))],
        rules: Vec::new(),
    }
}

fn time_axis(times: impl Iterator<Item = f64> + Clone) -> Axis {
    let last = times.clone().fold(0.0, f64::max);
    Axis::from_zero("time since the start of the run, s", times).ending_at(last)
}

/// Latency against throughput, with the settings that no other beats.
pub fn tradeoff(
    title: &str,
    throughput: &str,
    latency: &str,
    settings: &str,
    points: &[Point],
    limit: Option<(f64, String)>,
) -> Plot {
    let best = frontier(points);
    let places: Vec<(f64, f64)> = points.iter().map(|p| (p.throughput, p.latency)).collect();
    let words = points.iter().enumerate().map(|(index, p)| (index, p.name.clone())).collect();
    let mut all = Series::line(settings, places, look(0));
    all.style = Style::Points;
    // Words at all points of many would hide them.
    all.words = words;
    if points.len() > 24 {
        all.words.retain(|(index, _)| best.contains(index));
    }
    let intervals = points.iter().filter_map(|p| {
        let (from, to) = p.latency_interval?;
        Some((p.throughput, from, to))
    });
    all.intervals = intervals.collect();
    let line: Vec<(f64, f64)> =
        best.iter().map(|&index| (points[index].throughput, points[index].latency)).collect();
    let frontier = Series::line("Pareto frontier", line, look(1));
    let ends = points.iter().flat_map(|p| {
        let (from, to) = p.latency_interval.unwrap_or((p.latency, p.latency));
        [p.latency, from, to]
    });
    let limits = limit.iter().map(|(at, _)| *at);
    Plot {
        title: title.to_owned(),
        subtitle: "Each point is one setting. Further right and lower is better. No setting beats \
                   one on the Pareto frontier in both; every other is beaten by one of them."
            .to_owned(),
        x: Axis::from_zero(throughput, points.iter().map(|p| p.throughput)),
        y: spread_axis(latency, ends.chain(limits)),
        series: vec![frontier, all],
        rules: limit.into_iter().map(|(at, name)| Rule { at, upright: false, name }).collect(),
    }
}

/// The points that no other beats in both, by throughput.
pub fn frontier(points: &[Point]) -> Vec<usize> {
    let finite = |p: &Point| p.throughput.is_finite() && p.latency.is_finite();
    let mut order: Vec<usize> = (0..points.len()).filter(|&at| finite(&points[at])).collect();
    // From the highest throughput down, only what is quicker than all before is on it.
    order.sort_by(|&a, &b| {
        let (a, b) = (&points[a], &points[b]);
        b.throughput.total_cmp(&a.throughput).then(a.latency.total_cmp(&b.latency))
    });
    let mut least = f64::INFINITY;
    order.retain(|&at| {
        let is_best = points[at].latency < least;
        least = least.min(points[at].latency);
        is_best
    });
    order.reverse();
    order
}

/// Speed-up by ranks, with the ideal.
pub fn speedup(title: &str, lines: &[Scaling]) -> Plot {
    let counts = counts(lines);
    let ideal = counts.iter().map(|n| (*n, *n)).collect();
    let ends = lines.iter().flat_map(|line| line.band.iter().flat_map(|(_, a, b)| [*a, *b]));
    let numbers = lines.iter().flat_map(|line| line.points.iter().map(|(_, y)| *y));
    let numbers: Vec<f64> = numbers.chain(ends).chain(counts.iter().copied()).collect();
    let y = Axis::log("speed-up, times as fast as one rank", numbers);
    let y = y.clone().ticks_at(&powers(&y));
    let mut series = vec![reference("ideal", ideal)];
    series.extend(lines.iter().enumerate().map(scaling_line));
    Plot {
        title: title.to_owned(),
        subtitle:
            "The same work on more ranks (strong scaling). On the ideal line twice the ranks \
                   take half the time; how far a line stays below it is what sharing the work \
                   costs. Bars are 95 % confidence intervals."
                .to_owned(),
        x: ranks_axis(&counts),
        y,
        series,
        rules: Vec::new(),
    }
}

/// Efficiency by ranks: the ideal is 100 %.
pub fn efficiency(title: &str, how: &str, lines: &[Scaling]) -> Plot {
    let counts = counts(lines);
    let ideal = counts.iter().map(|n| (*n, 100.0)).collect();
    let ends = lines.iter().flat_map(|line| line.band.iter().flat_map(|(_, a, b)| [*a, *b]));
    let numbers = lines.iter().flat_map(|line| line.points.iter().map(|(_, y)| *y));
    let mut series = vec![reference("ideal", ideal)];
    series.extend(lines.iter().enumerate().map(scaling_line));
    Plot {
        title: title.to_owned(),
        subtitle: how.to_owned(),
        x: ranks_axis(&counts),
        y: Axis::from_zero("efficiency, %", numbers.chain(ends).chain([100.0])),
        series,
        rules: Vec::new(),
    }
}

/// One quantity by a setting, with intervals: how a factor acts.
pub fn by_setting(title: &str, how: &str, x: &str, y: &str, lines: &[Scaling]) -> Plot {
    let counts = counts(lines);
    let ends = lines.iter().flat_map(|line| line.band.iter().flat_map(|(_, a, b)| [*a, *b]));
    let numbers = lines.iter().flat_map(|line| line.points.iter().map(|(_, y)| *y));
    let is_wide = counts.first().is_some_and(|least| *least > 0.0)
        && counts.last().zip(counts.first()).is_some_and(|(most, least)| most / least >= 8.0);
    let axis = if is_wide { Axis::log(x, counts.clone()) } else { Axis::linear(x, counts.clone()) };
    let axis = Axis {
        min: counts.first().copied().filter(|_| counts.len() > 1).unwrap_or(axis.min),
        max: counts.last().copied().filter(|_| counts.len() > 1).unwrap_or(axis.max),
        ..axis
    };
    Plot {
        title: title.to_owned(),
        subtitle: how.to_owned(),
        x: axis.ticks_at(&counts),
        y: Axis::from_zero(y, numbers.chain(ends)),
        series: lines.iter().enumerate().map(scaling_line).collect(),
        rules: Vec::new(),
    }
}

fn scaling_line((index, line): (usize, &Scaling)) -> Series {
    let series = Series::line(&line.name, line.points.clone(), look(index));
    Series { style: Style::Marked, intervals: line.band.clone(), ..series }
}

fn reference(name: &str, points: Vec<(f64, f64)>) -> Series {
    let grey = Look { color: "#777777", dash: "4 3", marker: Marker::Plus };
    Series { style: Style::Reference, ..Series::line(name, points, grey) }
}

/// The ranks that were tried, ascending.
fn counts(lines: &[Scaling]) -> Vec<f64> {
    let all = lines.iter().flat_map(|line| line.points.iter().map(|(x, _)| *x));
    let mut counts: Vec<f64> = all.filter(|x| x.is_finite()).collect();
    counts.sort_by(f64::total_cmp);
    counts.dedup();
    counts
}

fn ranks_axis(counts: &[f64]) -> Axis {
    let axis = Axis::log("ranks", counts.iter().copied());
    let (first, last) = (counts.first().copied(), counts.last().copied());
    match (first, last) {
        (Some(first), Some(last)) if 0.0 < first && first < last => {
            Axis { min: first, max: last, ..axis }.ticks_at(counts)
        }
        _ => axis.ticks_at(counts),
    }
}

/// Powers of two within an axis.
fn powers(axis: &Axis) -> Vec<f64> {
    let all = (-6..=14).map(|exponent| 2f64.powi(exponent));
    all.filter(|power| (axis.min..=axis.max).contains(power)).collect()
}

/// Logarithmic where numbers are spread over more than a factor of ten, since the low ones would
/// lie on the axis; else linear from zero.
fn spread_axis(label: &str, numbers: impl IntoIterator<Item = f64>) -> Axis {
    let numbers: Vec<f64> = numbers.into_iter().filter(|number| number.is_finite()).collect();
    let positive = numbers.iter().copied().filter(|number| *number > 0.0);
    let (least, most) =
        (positive.clone().fold(f64::INFINITY, f64::min), positive.fold(0.0, f64::max));
    if most > 10.0 * least {
        Axis::log(&format!("{label} (logarithmic)"), numbers)
    } else {
        Axis::from_zero(label, numbers)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::svg::tests::check;
    use super::*;

    fn point(throughput: f64, latency: f64) -> Point {
        Point {
            name: format!("<{throughput}>"),
            throughput,
            latency,
            latency_interval: Some((latency * 0.9, latency * 1.1)),
        }
    }

    fn run(points: &[(f64, f64)]) -> Latencies {
        Latencies {
            name: "a & b".to_owned(),
            count: points.len() as u64,
            percentiles: points.to_vec(),
            band: points.iter().map(|(p, ms)| (*p, ms * 0.9, ms * 1.1)).collect(),
        }
    }

    /// All charts of the same numbers.
    fn all(numbers: &[(f64, f64)]) -> Vec<String> {
        let points: Vec<Point> = numbers.iter().map(|(x, y)| point(*x, *y)).collect();
        let intervals: Vec<Interval> = numbers
            .iter()
            .map(|(at_s, p50)| Interval { at_s: *at_s, p50: *p50, high: *p50 })
            .collect();
        let line = Scaling {
            name: "stealing".to_owned(),
            points: numbers.to_vec(),
            band: numbers.iter().map(|(x, y)| (*x, y - 1.0, y + 1.0)).collect(),
        };
        let lines = [line.clone(), Scaling { name: "no stealing".to_owned(), ..line }];
        let runs = [run(numbers), run(numbers)];
        let limit = Some((50.0, "SLO".to_owned()));
        let plots = [
            percentiles("t", "latency", &runs),
            cdf("t", "latency", &runs),
            timeline("t", "latency", &intervals, numbers),
            tradeoff("t", "tokens/s", "latency, ms", "batch", &points, limit),
            speedup("t", &lines),
            efficiency("t", "how", &lines),
            by_setting("t", "how", "inflight", "tokens/s", &lines),
        ];
        plots.iter().map(Plot::to_svg).collect()
    }

    #[test]
    fn charts_are_well_formed_from_none_to_many() {
        let many: Vec<(f64, f64)> =
            (0..3_000).map(|n| (f64::from(n), f64::from(n % 977))).collect();
        for numbers in [&[][..], &[(8.0, 3.5)], &[(0.0, 0.0)], &many] {
            for svg in all(numbers) {
                check(&svg);
                assert!(svg.len() < 1 << 20, "{} bytes", svg.len());
                let has_place = numbers.iter().any(|(x, y)| *x > 0.0 && *y > 0.0);
                assert!(svg.contains("no data") != has_place || numbers.len() == 1, "{svg}");
            }
        }
    }

    #[test]
    fn the_frontier_is_what_no_other_beats() {
        let points = [
            point(10.0, 5.0),
            point(20.0, 6.0),
            point(20.0, 9.0),
            point(15.0, 7.0),
            point(30.0, 20.0),
            point(f64::NAN, 1.0),
            point(25.0, 20.0),
        ];
        assert_eq!(frontier(&points), [0, 1, 4]);
        assert!(frontier(&[]).is_empty());
    }

    #[test]
    fn units_and_names_are_there() {
        let svgs = all(&[(1.0, 2.0), (2.0, 3.0), (4.0, 90.0)]);
        for (svg, words) in svgs.iter().zip([
            ["latency, ms (logarithmic)", "percentile (each", "a &amp; b"],
            ["share, %", "latency, ms", "a &amp; b"],
            ["time since the start of the run, s", "median", "outliers"],
            ["Pareto frontier", "tokens/s", "&lt;4&gt;"],
            ["speed-up", "ranks", "no stealing"],
            ["efficiency, %", "ideal", "how"],
            ["inflight", "tokens/s", "no stealing"],
        ]) {
            words.iter().for_each(|word| assert!(svg.contains(word), "{word} in {svg}"));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_numbers_break_a_chart(
            numbers in prop::collection::vec((any::<f64>(), any::<f64>()), 0..12),
        ) {
            all(&numbers).iter().for_each(|svg| check(svg));
        }

        #[test]
        fn nothing_on_the_frontier_is_beaten(
            numbers in prop::collection::vec((0u32..50, 0u32..50), 1..30),
        ) {
            let points: Vec<Point> =
                numbers.iter().map(|(x, y)| point(f64::from(*x), f64::from(*y))).collect();
            let best = frontier(&points);
            for (index, p) in points.iter().enumerate() {
                let beaten = best.iter().any(|&at| {
                    let q = &points[at];
                    q.throughput >= p.throughput && q.latency <= p.latency
                });
                prop_assert!(beaten, "{index} is neither on it nor beaten");
            }
            let ascends = best.windows(2).all(|pair| {
                let (low, high) = (&points[pair[0]], &points[pair[1]]);
                low.throughput < high.throughput && low.latency < high.latency
            });
            prop_assert!(ascends);
        }
    }
}
