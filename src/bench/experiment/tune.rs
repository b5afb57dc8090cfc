//! The best setting for a budget of runs, by Bayesian optimisation.
//!
//! A Gaussian process tells of each setting how good it may be; the next run is where the expected
//! improvement over the best is greatest (D. R. Jones, M. Schonlau and W. J. Welch, "Efficient
//! global optimization of expensive black-box functions", 1998), times the chance that the bounds
//! are kept (M. A. Gelbart, J. Snoek and R. P. Adams, "Bayesian optimization with unknown
//! constraints", 2014). What is best is judged by the surface, not by the luckiest run.

use super::gaussian::Surface;
use super::space::{Settings, Space, Values};
use crate::bench::record::Run;
use crate::bench::statistics::probability::{normal_cdf, normal_density};
use crate::prng::Prng;

/// Settings that are weighed for the next run: all of a small grid, else random ones and
/// neighbours of the best.
const CANDIDATES: usize = 400;
/// A setting of which the surface says less than this keeps no bound.
const FEASIBLE: f64 = 0.5;

/// What is to be had.
#[derive(Clone, Debug, PartialEq)]
pub struct Goal {
    /// The figure, by its name.
    pub figure: String,
    /// The most of it; else the least.
    pub most: bool,
    /// What must hold.
    pub bounds: Vec<Bound>,
}

/// A bound that a figure must keep: `ttft_ms_p99 < 500`.
#[derive(Clone, Debug, PartialEq)]
pub struct Bound {
    /// The figure, by its name.
    pub figure: String,
    /// It must be under the limit; else over.
    pub under: bool,
    /// The limit.
    pub limit: f64,
}

/// The best setting, and what is known of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Best {
    /// The setting.
    pub settings: Settings,
    /// Its figure, as the surface has it.
    pub value: f64,
    /// Its runs.
    pub runs: usize,
    /// The chance that it keeps all bounds, 0 to 1.
    pub feasible: f64,
}

impl Goal {
    /// From `max FIGURE` or `min FIGURE`, and bounds.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str, bounds: &[&str]) -> Result<Goal, String> {
        let (most, figure) = match text.trim().split_once(' ') {
            Some(("max", figure)) => (true, figure.trim()),
            Some(("min", figure)) => (false, figure.trim()),
            _ => return Err(format!("--tune {text:?}: not \"max FIGURE\" or \"min FIGURE\"")),
        };
        let bounds = bounds.iter().map(|bound| Bound::parse(bound)).collect::<Result<_, _>>()?;
        Ok(Goal { figure: figure.to_owned(), most, bounds })
    }
}

impl Bound {
    /// From `FIGURE < NUMBER` or `FIGURE > NUMBER`.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Bound, String> {
        let wrong = || format!("--slo {text:?}: not FIGURE < NUMBER or FIGURE > NUMBER");
        let at = text.find(['<', '>']).ok_or_else(wrong)?;
        let (figure, limit) = (text[..at].trim(), text[at + 1..].trim());
        let limit: f64 = limit.parse().map_err(|_| wrong())?;
        if figure.is_empty() || !limit.is_finite() {
            return Err(wrong());
        }
        Ok(Bound { figure: figure.to_owned(), under: &text[at..=at] == "<", limit })
    }

    fn keeps(&self, value: f64) -> bool {
        if self.under { value < self.limit } else { value > self.limit }
    }
}

/// Surfaces of the goal and of each bound.
struct Model {
    goal: Surface,
    /// Positive figures are taken by their logarithms, since their noise is a share of them.
    logarithm: bool,
    bounds: Vec<(Surface, bool, Bound)>,
    sign: f64,
}

impl Model {
    /// None: there are too few runs with figures.
    fn fit(goal: &Goal, space: &Space, runs: &[Run], prng: &mut Prng) -> Option<Model> {
        let categorical = space.categorical();
        let mut surface = |figure: &str| {
            let (points, values): (Vec<_>, Vec<_>) = runs
                .iter()
                .filter(|run| run.failure.is_none())
                .filter_map(|run| {
                    let value = run.record.number(figure).filter(|value| value.is_finite())?;
                    Some((space.coordinates(&run.settings), value))
                })
                .unzip();
            let logarithm = values.iter().all(|value| *value > 0.0);
            let how = |value: &f64| if logarithm { value.ln() } else { *value };
            let values: Vec<f64> = values.iter().map(how).collect();
            Some((Surface::fit(&points, &values, &categorical, prng)?, logarithm))
        };
        let (of_goal, logarithm) = surface(&goal.figure)?;
        let bounds = goal.bounds.iter().map(|bound| {
            let (surface, logarithm) = surface(&bound.figure)?;
            Some((surface, logarithm, bound.clone()))
        });
        let bounds = bounds.collect::<Option<Vec<_>>>()?;
        Some(Model { goal: of_goal, logarithm, bounds, sign: if goal.most { 1.0 } else { -1.0 } })
    }

    /// How good a point is, more being better, and how unsure that is.
    fn merit(&self, point: &[f64]) -> (f64, f64) {
        let (mean, deviation) = self.goal.at(point);
        (self.sign * mean, deviation)
    }

    fn feasible(&self, point: &[f64]) -> f64 {
        let chance = |(surface, logarithm, bound): &(Surface, bool, Bound)| {
            let (mean, deviation) = surface.at(point);
            let limit = match logarithm {
                true if bound.limit <= 0.0 => return f64::from(u8::from(!bound.under)),
                true => bound.limit.ln(),
                false => bound.limit,
            };
            let under = normal_cdf((limit - mean) / deviation.max(1e-12));
            if bound.under { under } else { 1.0 - under }
        };
        self.bounds.iter().map(chance).product()
    }
}

/// Runs before there is a surface to go by.
fn initial(space: &Space) -> usize {
    2 * space.dimensions.len() + 1
}

/// The setting to run next, after these runs. The seed and the runs alone determine it.
pub fn next(goal: &Goal, space: &Space, runs: &[Run], seed: u64) -> Settings {
    let mut prng = Prng::new(seed ^ (runs.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let fresh = |prng: &mut Prng| {
        let tried = |point: &Settings| runs.iter().any(|run| run.settings == *point);
        let mut points = (0..100).map(|_| space.point(prng));
        let first = points.next().unwrap_or_default();
        if tried(&first) { points.find(|point| !tried(point)).unwrap_or(first) } else { first }
    };
    if runs.len() < initial(space) {
        return fresh(&mut prng);
    }
    let Some(model) = Model::fit(goal, space, runs, &mut prng) else { return fresh(&mut prng) };
    let incumbent = best_of(&model, goal, space, runs);
    let candidates = candidates(space, incumbent.as_ref().map(|best| &best.settings), &mut prng);
    let least = incumbent.filter(|best| best.feasible >= FEASIBLE).map(|best| {
        let (merit, _) = model.merit(&space.coordinates(&best.settings));
        merit
    });
    let worth = |candidate: &Settings| {
        let point = space.coordinates(candidate);
        let (merit, deviation) = model.merit(&point);
        // While nothing keeps the bounds, what most likely does is looked for.
        let gain = least.map_or(1.0, |least| improvement(merit, deviation, least));
        let (kept, tried) = evidence(goal, runs, candidate);
        // A setting that broke the bounds whenever it was tried is not worth a third try, whatever
        // the surface makes of its neighbours.
        gain * model.feasible(&point) * (kept + 1) as f64 / (tried + 1) as f64
    };
    let worths = candidates.into_iter().map(|candidate| (worth(&candidate), candidate));
    let best = worths.max_by(|a, b| a.0.total_cmp(&b.0));
    best.map_or_else(|| fresh(&mut prng), |(_, candidate)| candidate)
}

/// What a value of this mean and deviation is expected to be over `least`.
fn improvement(mean: f64, deviation: f64, least: f64) -> f64 {
    if deviation <= 1e-12 {
        return (mean - least).max(0.0);
    }
    let z = (mean - least) / deviation;
    (mean - least) * normal_cdf(z) + deviation * normal_density(z)
}

fn candidates(space: &Space, best: Option<&Settings>, prng: &mut Prng) -> Vec<Settings> {
    let lists = space.dimensions.iter().map(|dimension| match &dimension.values {
        Values::List(values) => values.len(),
        Values::Range { .. } => CANDIDATES + 1,
    });
    if lists.fold(1, usize::saturating_mul) <= CANDIDATES
        && let Ok(grid) = space.grid()
    {
        return grid;
    }
    let mut found: Vec<Settings> = (0..CANDIDATES / 2).map(|_| space.point(prng)).collect();
    let near = best.into_iter().flat_map(|best| std::iter::repeat_n(best, CANDIDATES / 2));
    let near: Vec<Settings> = near.map(|best| space.neighbour(best, prng)).collect();
    found.extend(near);
    found
}

/// The best of the settings that were run; None: none has figures. If none keeps the bounds, the
/// one that most likely does.
pub fn best(goal: &Goal, space: &Space, runs: &[Run], seed: u64) -> Option<Best> {
    let model = Model::fit(goal, space, runs, &mut Prng::new(seed))?;
    best_of(&model, goal, space, runs)
}

fn best_of(model: &Model, goal: &Goal, space: &Space, runs: &[Run]) -> Option<Best> {
    let mut found: Option<(f64, Best)> = None;
    for run in runs.iter().filter(|run| run.failure.is_none()) {
        let point = space.coordinates(&run.settings);
        let (merit, _) = model.merit(&point);
        let feasible = model.feasible(&point);
        // Above all that keep their bounds stand none that do not.
        let (kept, tried) = evidence(goal, runs, &run.settings);
        let is_kept = feasible >= FEASIBLE && 2 * kept >= tried;
        let rank = if is_kept { merit } else { feasible - 1e12 };
        if found.as_ref().is_none_or(|(known, _)| rank > *known) {
            let value = model.sign * merit;
            let best = Best {
                settings: run.settings.clone(),
                value: if model.logarithm { value.exp() } else { value },
                runs: tried,
                feasible,
            };
            found = Some((rank, best));
        }
    }
    found.map(|(_, best)| best)
}

/// How many runs of a setting kept all bounds, and how many there were with figures.
fn evidence(goal: &Goal, runs: &[Run], of: &Settings) -> (usize, usize) {
    let runs = || runs.iter().filter(|run| run.settings == *of && run.failure.is_none());
    (runs().filter(|run| keeps(goal, run)).count(), runs().count())
}

/// Whether a run kept all bounds, by its own figures; a figure that is missing keeps none.
pub fn keeps(goal: &Goal, run: &Run) -> bool {
    let kept = |bound: &Bound| run.record.number(&bound.figure).is_some_and(|v| bound.keeps(v));
    goal.bounds.iter().all(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_and_bounds() {
        let goal = Goal::parse("max tokens_per_s", &["ttft_ms_p99 < 500", "ok>10"]).unwrap();
        assert!(goal.most && goal.bounds[0].under && !goal.bounds[1].under);
        assert_eq!((goal.bounds[0].limit, goal.bounds[1].figure.as_str()), (500.0, "ok"));
        for (text, bounds) in [("tokens", &[][..]), ("max x", &["y"]), ("min x", &["y < z"])] {
            assert!(Goal::parse(text, bounds).is_err(), "{text}");
        }
    }

    #[test]
    fn expected_improvement() {
        assert_eq!((improvement(2.0, 0.0, 1.0), improvement(1.0, 0.0, 2.0)), (1.0, 0.0));
        // At the same mean it is the deviation times the density at 0.
        assert!((improvement(1.0, 1.0, 1.0) - 0.398_942).abs() < 1e-5);
    }

    #[test]
    fn the_same_runs_bring_the_same_next() {
        let space = Space::parse(&["a=1..64:log", "b=x,y"]).unwrap();
        let goal = Goal::parse("max v", &[]).unwrap();
        let mut runs = Vec::new();
        for n in 0..8 {
            let settings = next(&goal, &space, &runs, 4);
            assert_eq!(settings, next(&goal, &space, &runs, 4));
            let mut run = Run { settings, ..Run::default() };
            run.record.set("v", f64::from(n));
            runs.push(run);
        }
        assert!(best(&goal, &space, &runs, 4).is_some());
        assert!(best(&goal, &space, &runs[..1], 4).is_none());
    }
}
