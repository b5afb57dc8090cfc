//! A small Gaussian process: what a noisy surface is like at places that were not measured.
//!
//! The kernel is Matérn's with ν = 5/2 and a length for each name (C. E. Rasmussen and C. K. I.
//! Williams, "Gaussian Processes for Machine Learning", 2006, sections 2.2, 4.2 and 5.4); its
//! lengths and the noise are those of the greatest marginal likelihood that a seeded search finds.
//! For tens of points, not thousands: it solves its equations whole.

use crate::prng::Prng;

/// Tries of the search for lengths and noise.
const TRIES: usize = 40;
/// The length between two different values of a name that has no order.
const CATEGORY_DISTANCE: f64 = 1.0;

/// A surface, fitted to what was measured.
#[derive(Clone, Debug)]
pub struct Surface {
    points: Vec<Vec<f64>>,
    categorical: Vec<bool>,
    /// Lengths, and the noise's variance as a share of the surface's.
    shape: Shape,
    /// Lower triangle of the kernel's Cholesky factor.
    factor: Vec<Vec<f64>>,
    /// The kernel's inverse times the values.
    weights: Vec<f64>,
    mean: f64,
    /// The surface's variance.
    scale: f64,
}

#[derive(Clone, Debug)]
struct Shape {
    lengths: Vec<f64>,
    noise: f64,
}

impl Surface {
    /// Through values at points of the unit cube, all of one length; None: there are under two, or
    /// the equations have no answer.
    pub fn fit(
        points: &[Vec<f64>],
        values: &[f64],
        categorical: &[bool],
        prng: &mut Prng,
    ) -> Option<Surface> {
        if points.len() < 2 || points.len() != values.len() {
            return None;
        }
        let mean = super::super::statistics::mean(values);
        let centred: Vec<f64> = values.iter().map(|value| value - mean).collect();
        let mut best: Option<(f64, Shape)> = None;
        for attempt in 0..TRIES {
            // Half of the tries look anywhere, the rest near the best so far.
            let shape = match &best {
                Some((_, shape)) if attempt >= TRIES / 2 => shape.near(prng),
                _ => Shape::anywhere(categorical.len(), prng),
            };
            let Some((factor, weights)) = solve(points, categorical, &shape, &centred) else {
                continue;
            };
            let scale = scale(&centred, &weights);
            let determinant: f64 = factor.iter().enumerate().map(|(n, row)| row[n].ln()).sum();
            // The likelihood with the scale at its best (section 2.7 and 5.4.1, profiled), and a
            // weak preference for smooth surfaces.
            let likelihood =
                -0.5 * centred.len() as f64 * scale.max(1e-300).ln() - determinant + shape.prior();
            if best.as_ref().is_none_or(|(known, _)| likelihood > *known) {
                best = Some((likelihood, shape));
            }
        }
        let (_, shape) = best?;
        let (factor, weights) = solve(points, categorical, &shape, &centred)?;
        let scale = scale(&centred, &weights);
        Some(Surface {
            points: points.to_vec(),
            categorical: categorical.to_vec(),
            shape,
            factor,
            weights,
            mean,
            scale,
        })
    }

    /// The mean and the standard deviation of the surface, without the noise, at a point.
    pub fn at(&self, point: &[f64]) -> (f64, f64) {
        let near: Vec<f64> = self
            .points
            .iter()
            .map(|other| self.shape.kernel(point, other, &self.categorical))
            .collect();
        let mean: f64 = near.iter().zip(&self.weights).map(|(k, weight)| k * weight).sum();
        let solved = forward(&self.factor, &near);
        let explained: f64 = solved.iter().map(|value| value * value).sum();
        (self.mean + mean, (self.scale * (1.0 - explained).max(0.0)).sqrt())
    }
}

impl Shape {
    fn anywhere(dimensions: usize, prng: &mut Prng) -> Shape {
        let mut log = |low: f64, high: f64| (low.ln() + prng.unit() * (high / low).ln()).exp();
        Shape { lengths: (0..dimensions).map(|_| log(0.1, 4.0)).collect(), noise: log(1e-4, 1.0) }
    }

    fn near(&self, prng: &mut Prng) -> Shape {
        let mut move_by = |value: f64, low: f64, high: f64| {
            (value * (0.3 * prng.normal()).exp()).clamp(low, high)
        };
        Shape {
            lengths: self.lengths.iter().map(|length| move_by(*length, 0.1, 4.0)).collect(),
            noise: move_by(self.noise, 1e-4, 1.0),
        }
    }

    fn prior(&self) -> f64 {
        -self.lengths.iter().map(|length| (length / 0.7).ln().powi(2) / 4.0).sum::<f64>()
    }

    fn kernel(&self, a: &[f64], b: &[f64], categorical: &[bool]) -> f64 {
        let mut squared = 0.0;
        for (n, length) in self.lengths.iter().enumerate() {
            let distance = match categorical[n] {
                true if a[n] == b[n] => 0.0,
                true => CATEGORY_DISTANCE,
                false => a[n] - b[n],
            };
            squared += (distance / length).powi(2);
        }
        let r = (5.0 * squared).sqrt();
        (1.0 + r + r * r / 3.0) * (-r).exp()
    }
}

fn scale(centred: &[f64], weights: &[f64]) -> f64 {
    let sum: f64 = centred.iter().zip(weights).map(|(value, weight)| value * weight).sum();
    (sum / centred.len() as f64).max(0.0)
}

/// The Cholesky factor of kernel and noise, and its answer to `values`.
fn solve(
    points: &[Vec<f64>],
    categorical: &[bool],
    shape: &Shape,
    values: &[f64],
) -> Option<(Vec<Vec<f64>>, Vec<f64>)> {
    let n = points.len();
    let mut factor: Vec<Vec<f64>> = Vec::with_capacity(n);
    for i in 0..n {
        let mut row = vec![0.0; i + 1];
        for j in 0..=i {
            let mut sum = shape.kernel(&points[i], &points[j], categorical);
            if i == j {
                // The rest keeps points that are alike from making it singular.
                sum += shape.noise + 1e-9;
            }
            let other = if j < i { &factor[j][..] } else { &row[..] };
            sum -= row[..j].iter().zip(&other[..j]).map(|(a, b)| a * b).sum::<f64>();
            row[j] = if i == j {
                if sum <= 0.0 {
                    return None;
                }
                sum.sqrt()
            } else {
                sum / factor[j][j]
            };
        }
        factor.push(row);
    }
    let mut weights = forward(&factor, values);
    for i in (0..n).rev() {
        weights[i] /= factor[i][i];
        let weight = weights[i];
        for j in 0..i {
            weights[j] -= factor[i][j] * weight;
        }
    }
    Some((factor, weights))
}

/// The factor's inverse times a vector.
fn forward(factor: &[Vec<f64>], values: &[f64]) -> Vec<f64> {
    let mut solved: Vec<f64> = Vec::with_capacity(values.len());
    for (row, value) in factor.iter().zip(values) {
        let n = solved.len();
        let known: f64 = row[..n].iter().zip(&solved).map(|(a, b)| a * b).sum();
        solved.push((value - known) / row[n]);
    }
    solved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_through_what_was_measured_and_doubts_the_rest() {
        let points: Vec<Vec<f64>> = (0..8).map(|n| vec![f64::from(n) / 10.0]).collect();
        let values: Vec<f64> = points.iter().map(|p| 100.0 + 10.0 * (3.0 * p[0]).sin()).collect();
        let surface = Surface::fit(&points, &values, &[false], &mut Prng::new(1)).unwrap();
        for (point, value) in points.iter().zip(&values) {
            let (mean, deviation) = surface.at(point);
            assert!((mean - value).abs() < 0.5 && deviation < 1.0, "{mean} for {value}");
        }
        let (between, near) = surface.at(&[0.35]);
        assert!((between - (100.0 + 10.0 * 1.05_f64.sin())).abs() < 0.5, "{between}");
        assert!(surface.at(&[1.0]).1 > 2.0 * near);
    }

    #[test]
    fn names_without_an_order_are_told_apart() {
        let points =
            [[0.0, 0.1], [1.0, 0.1], [2.0, 0.1], [0.0, 0.9], [1.0, 0.9], [2.0, 0.9]].map(Vec::from);
        let values = [1.0, 5.0, 1.0, 1.2, 5.2, 1.2];
        let surface = Surface::fit(&points, &values, &[true, false], &mut Prng::new(3)).unwrap();
        assert!(surface.at(&[1.0, 0.5]).0 > surface.at(&[0.0, 0.5]).0 + 2.0);
    }

    #[test]
    fn too_few_points_are_no_surface() {
        let mut prng = Prng::new(1);
        assert!(Surface::fit(&[vec![0.5]], &[1.0], &[false], &mut prng).is_none());
        let alike = vec![vec![0.5]; 3];
        let surface = Surface::fit(&alike, &[1.0, 1.0, 1.0], &[false], &mut prng).unwrap();
        assert!((surface.at(&[0.5]).0 - 1.0).abs() < 1e-6);
    }
}
