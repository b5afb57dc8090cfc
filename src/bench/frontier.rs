//! Which loads are worth it: the knee of throughput over load, and the Pareto frontier of
//! throughput and latency.

/// What a server gave at one load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Requests at once, or what else was raised.
    pub load: f64,
    /// Tokens a second.
    pub rate: f64,
    /// Milliseconds.
    pub latency: f64,
}

/// The share of the best rate past which more load makes each request wait and gains little.
const KNEE_SHARE: f64 = 0.9;

/// The smallest load that gives 90 % of the best rate; None: nothing was measured.
pub fn knee(points: &[Point]) -> Option<usize> {
    let best = points.iter().map(|point| point.rate).fold(0.0, f64::max);
    let enough = |index: &usize| points[*index].rate >= KNEE_SHARE * best && best > 0.0;
    let candidates = (0..points.len()).filter(enough);
    candidates.min_by(|a, b| points[*a].load.total_cmp(&points[*b].load))
}

/// Points of which no other has at least as much rate and at most as much latency, and differs; in
/// their order.
pub fn pareto(points: &[Point]) -> Vec<usize> {
    let beats = |a: &Point, b: &Point| {
        a.rate >= b.rate && a.latency <= b.latency && (a.rate > b.rate || a.latency < b.latency)
    };
    let is_best = |index: &usize| !points.iter().any(|other| beats(other, &points[*index]));
    (0..points.len()).filter(is_best).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(of: &[(f64, f64, f64)]) -> Vec<Point> {
        of.iter().map(|&(load, rate, latency)| Point { load, rate, latency }).collect()
    }

    #[test]
    fn the_knee_is_where_little_is_gained() {
        let all = points(&[
            (1.0, 100.0, 10.0),
            (2.0, 190.0, 11.0),
            (4.0, 205.0, 20.0),
            (8.0, 208.0, 40.0),
        ]);
        assert_eq!(knee(&all), Some(1));
        assert_eq!(pareto(&all), [0, 1, 2, 3]);
        assert_eq!((knee(&[]), knee(&points(&[(1.0, 0.0, 0.0)]))), (None, None));
    }

    #[test]
    fn what_another_beats_in_both_is_not_on_the_frontier() {
        let all =
            points(&[(1.0, 100.0, 10.0), (2.0, 90.0, 12.0), (4.0, 100.0, 10.0), (8.0, 80.0, 5.0)]);
        assert_eq!(pareto(&all), [0, 2, 3]);
    }
}
