//! Knows: the logistic loss of one row as a function of its margin, and what bounds it.
//! Knows not: features, sums, weights.
//! Called by: `lane`.
//! Paper: OSDI'14 §5.1 (the loss of Algorithm 3); the curvature is that of Jaakkola and Jordan (2000).
//!
//! `z` is the signed margin of a row, label times margin; the loss is `ln(1 + e^-z)`.
//!
//! # Why this curvature
//!
//! The second derivative `p (1 - p)` bounds nothing away from the point where it was taken: a row that is badly
//! wrong has slope 1 and next to no curvature, and a step computed from it flies off. With
//! `c(z) = (1 / (1 + e^-|z|) - 1/2) / |z|`, the parabola of curvature `c(z)` that touches the loss at `z` lies above
//! it *everywhere*, and no constant below `c(z)` does that. So a step needs no trust region and no state: with
//! fresh margins the objective cannot rise.

use crate::elementary::{exp_of_negative, ln_of_positive};

/// Below this size of a margin the curvature is its limit, 1/4; the formula would divide rounding errors.
const FLAT: f64 = 1e-4;

/// `ln(1 + e^-z)`.
#[must_use]
pub fn loss(z: f64) -> f64 {
    (-z).max(0.0) + ln_of_positive(1.0 + exp_of_negative(-z.abs()))
}

/// The probability given to the wrong label, `1 / (1 + e^z)`, by which the loss falls per unit of margin; and the curvature
/// `c(z)` described above. One exponential for both.
#[must_use]
#[inline]
pub fn slope_and_curvature(z: f64) -> (f64, f64) {
    let size = z.abs();
    let e = exp_of_negative(-size);
    let wrong = if z >= 0.0 { e / (1.0 + e) } else { 1.0 / (1.0 + e) };
    let curvature = if size < FLAT { 0.25 } else { 0.5 * (1.0 - e) / (size * (1.0 + e)) };
    (wrong, curvature)
}

/// `-a ln a - (1 - a) ln(1 - a)` for `a` in [0, 1]: the row's term of the dual value at `a`.
#[must_use]
pub fn entropy(a: f64) -> f64 {
    let term = |share: f64| if share > 1e-300 { -share * ln_of_positive(share) } else { 0.0 };
    term(a) + term(1.0 - a)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong_probability(z: f64) -> f64 {
        slope_and_curvature(z).0
    }

    fn margins() -> impl Iterator<Item = f64> {
        (-400..=400).map(|step| f64::from(step) * 0.1)
    }

    #[test]
    fn slope_is_the_derivative_of_the_loss() {
        for z in margins() {
            let difference = (loss(z + 1e-6) - loss(z - 1e-6)) / 2e-6;
            assert!((difference + wrong_probability(z)).abs() < 1e-8, "at {z}");
        }
    }

    #[test]
    fn the_parabola_lies_above_the_loss_everywhere() {
        for z in margins() {
            let (wrong, curvature) = slope_and_curvature(z);
            for other in margins() {
                let step = other - z;
                let bound = loss(z) - wrong * step + 0.5 * curvature * step * step;
                assert!(loss(other) <= bound + 1e-9, "at {z} for {other}");
            }
        }
    }

    #[test]
    fn extremes_are_finite() {
        for z in [0.0, 1e-300, 1e-4, 700.0, 1e6, -700.0, -1e6] {
            let (wrong, curvature) = slope_and_curvature(z);
            assert!((0.0..=1.0).contains(&wrong) && curvature > 0.0 && curvature <= 0.25, "at {z}");
        }
        assert_eq!(loss(-1e6), 1e6);
        assert_eq!(loss(1e6), 0.0);
    }

    #[test]
    fn entropy_is_the_conjugate_of_the_loss() {
        // The two meet where the parabola touches: loss(z) = entropy(p) - p z, p the wrong probability.
        for z in margins() {
            let wrong = wrong_probability(z);
            assert!((entropy(wrong) - wrong * z - loss(z)).abs() < 1e-12, "at {z}");
        }
        assert_eq!((entropy(0.0), entropy(1.0)), (0.0, 0.0));
    }
}
