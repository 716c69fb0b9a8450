//! Knows: how objective and dual value make a certificate.
//! Knows not: rows (their sums arrive), what is decided from it.
//! Called by: `plan`; everybody, for the scale between the two rounds of a certificate.
//! Paper: none: the paper stops by eye; a duality gap says how far the optimum can be.
//!
//! The dual problem is to maximise `sum_i entropy(a_i)` over `a` in [0, 1]^rows with `|sum_i a_i y_i x_ij| <= lambda`
//! for every feature. The wrong probabilities `p_i` give sums `-gradient_j`; multiplied by `s = lambda / max_j
//! |gradient_j|` (or 1 if that is more) they obey, so `sum_i entropy(s p_i) <= F*`. Every certificate's bound holds for
//! ever, so the best one so far is kept.

/// How much the dual point is pulled inside, so that rounding in the gradient's sums cannot put it outside.
const INSIDE: f64 = 1.0 - 1e-9;

/// By how much rounding may put a bound above an objective that it equals.
const ROUNDING: f64 = 1e-9;

/// The factor that makes wrong probabilities a dual point. `gradient: [features]`, summed over all lanes.
///
/// Cost: one pass over the gradient.
#[must_use]
pub fn dual_scale(gradient: &[f64], lambda: f64) -> f64 {
    let largest = gradient_max(gradient);
    // Written so that a gradient that is not a number gives 0, a valid if useless point.
    if largest <= lambda * INSIDE { 1.0 } else { (lambda * INSIDE / largest).max(0.0) }
}

/// The largest absolute value of a gradient; 0 if it is empty.
fn gradient_max(gradient: &[f64]) -> f64 {
    gradient.iter().fold(0.0, |largest, value| value.abs().max(largest))
}

/// The L1 norm, summed in the order of the features.
#[must_use]
pub fn norm_l1(weights: &[f64]) -> f64 {
    weights.iter().fold(0.0, |sum, weight| sum + weight.abs())
}

/// What is proved about the weights at a quiescent point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Certificate {
    /// `F(w)`.
    pub objective: f64,
    /// A lower bound of the smallest objective, the best so far.
    pub bound: f64,
    /// `(objective - bound) / objective`, 0 or more: `F(w) <= F* / (1 - gap)`. Infinite if nothing is proved.
    pub gap: f64,
    /// Weights that are not 0, the constant's included.
    pub nonzeros: usize,
}

impl Certificate {
    /// Puts a certificate together from sums over all lanes. `bound_before` is the last certificate's bound,
    /// negative infinity at first. Cost: two passes over the weights.
    #[must_use]
    pub fn new(weights: &[f64], loss: f64, dual: f64, lambda: f64, bound_before: f64) -> Self {
        let objective = loss + lambda * norm_l1(weights);
        // No dual value exceeds any objective. One that does, or is not a number, comes from a broken sum.
        let objective_max = objective * (1.0 + ROUNDING);
        let bound = if dual <= objective_max { dual.max(bound_before) } else { bound_before };
        let gap = if bound <= objective_max && objective.is_finite() {
            if objective > 0.0 { ((objective - bound) / objective).max(0.0) } else { 0.0 }
        } else {
            f64::INFINITY
        };
        let nonzeros = weights.iter().filter(|&&weight| weight != 0.0).count();
        Self { objective, bound, gap, nonzeros }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_scaled_gradient_obeys_the_dual_constraint(
            gradient in proptest::collection::vec(-1e3_f64..1e3, 0..20), lambda in 1e-3_f64..2e3
        ) {
            let scale = dual_scale(&gradient, lambda);
            prop_assert!((0.0..=1.0).contains(&scale));
            prop_assert!(scale * gradient_max(&gradient) < lambda);
            // Nor is anything given away: the constraint is met closely, or the point is not moved.
            prop_assert!(scale == 1.0 || scale * gradient_max(&gradient) > lambda * (1.0 - 1e-8));
        }
    }

    #[test]
    fn the_scale_never_exceeds_one() {
        assert_eq!(dual_scale(&[0.5, -0.9], 1.0), 1.0);
        assert_eq!(dual_scale(&[], 1.0), 1.0);
        let scale = dual_scale(&[0.5, -4.0], 1.0);
        assert!(scale < 0.25 && scale > 0.249_999);
    }

    #[test]
    fn the_best_bound_is_kept() {
        let certificate = Certificate::new(&[1.0, 0.0, -2.0], 10.0, 11.0, 2.0, 12.0);
        assert_eq!((certificate.objective, certificate.bound, certificate.nonzeros), (16.0, 12.0, 2));
        assert_eq!(certificate.gap, 0.25);
        assert_eq!(Certificate::new(&[], 0.0, 0.0, 1.0, f64::NEG_INFINITY).gap, 0.0);
    }

    #[test]
    fn broken_sums_prove_nothing() {
        let gap = |loss, dual| Certificate::new(&[1.0], loss, dual, 2.0, f64::NEG_INFINITY).gap;
        assert_eq!(gap(f64::NAN, 1.0), f64::INFINITY);
        assert_eq!(gap(f64::INFINITY, 1.0), f64::INFINITY);
        assert_eq!(gap(8.0, f64::NAN), f64::INFINITY);
        assert_eq!(gap(8.0, 11.0), f64::INFINITY);
        assert_eq!(gap(8.0, 10.0), 0.0);
        let kept = Certificate::new(&[1.0], 8.0, f64::INFINITY, 2.0, 5.0);
        assert_eq!((kept.bound, kept.gap), (5.0, 0.5));
    }
}
