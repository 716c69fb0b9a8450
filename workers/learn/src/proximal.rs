//! Knows: what a server does to one key: the proximal step, and the jump along the last epoch's line.
//! Knows not: rows, other keys, how sums were formed.
//! Called by: workers, for the jump and its line; `reference`, for both. Servers run a copy of their own (`store/apply.rs` of
//! kvstore, which this crate may not import); `tests/tests/proximal.rs` holds the two to the same bits.
//! Paper: OSDI'14 §5.1, Algorithm 3, the server's lines.
//!
//! State per key: the weight, and the *anchor*, which is the weight at the last certificate.

/// Values that lanes push per key: gradient, curvature.
pub const CONTRIBUTION_WIDTH: usize = 2;

/// Arguments of a block's step, the same for all keys of an epoch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Weight of the L1 penalty.
    pub lambda: f64,
    /// Factor on curvatures, 1 or more; above 1 only after an epoch in which the objective rose.
    pub damping: f64,
}

/// The weight that minimises `gradient * d + curvature * damping * d^2 / 2 + lambda * |weight + d|` over `d`.
///
/// A curvature of 0 says that no lane sent anything for the key (it is filtered, or no row has it): the weight stays.
/// It also stays if the result would not be finite. Cost: two divisions.
#[must_use]
pub fn proximal_step(weight: f64, gradient: f64, curvature: f64, step: Step) -> f64 {
    let curvature = curvature * step.damping;
    if curvature.is_nan() || curvature <= 0.0 {
        return weight;
    }
    let target = weight - gradient / curvature;
    let threshold = step.lambda / curvature;
    let moved = if target > threshold {
        target - threshold
    } else if target < -threshold {
        target + threshold
    } else {
        0.0
    };
    if moved.is_finite() && target.is_finite() { moved } else { weight }
}

/// Moves a weight on along the line from its anchor by `factor` times their distance.
///
/// Keys that are zero at either end stay: they have just entered or left the model. `factor` 0 moves nothing.
#[must_use]
pub fn jump(weight: f64, anchor: f64, factor: f64) -> f64 {
    if weight == 0.0 || anchor == 0.0 { weight } else { weight + factor * (weight - anchor) }
}

/// The direction of [`jump`]: from the anchor to the weight, or 0.
#[must_use]
pub fn line(weight: f64, anchor: f64) -> f64 {
    if weight == 0.0 || anchor == 0.0 { 0.0 } else { weight - anchor }
}

/// The jump for a run of keys, both `[n]`; each anchor becomes the weight *before* the jump.
///
/// # Panics
/// The lengths disagree.
pub fn jumps(weights: &mut [f64], anchors: &mut [f64], factor: f64) {
    assert_eq!(weights.len(), anchors.len(), "one anchor per weight");
    for (weight, anchor) in weights.iter_mut().zip(anchors) {
        let before = *weight;
        *weight = jump(before, *anchor, factor);
        *anchor = before;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STEP: Step = Step { lambda: 2.0, damping: 1.0 };

    #[test]
    fn filtered_and_broken_sums_leave_the_weight() {
        for curvature in [0.0, -1.0, f64::NAN] {
            assert_eq!(proximal_step(0.7, 5.0, curvature, STEP), 0.7);
        }
        assert_eq!(proximal_step(0.7, f64::NAN, 1.0, STEP), 0.7);
        assert_eq!(proximal_step(0.7, 1e300, 1e-300, STEP), 0.7);
    }

    #[test]
    fn small_gradients_make_zeros() {
        assert_eq!(proximal_step(0.0, 1.9, 1.0, STEP), 0.0);
        assert_eq!(proximal_step(0.0, -3.0, 1.0, STEP), 1.0);
        assert_eq!(proximal_step(0.0, -3.0, 1.0, Step { damping: 2.0, ..STEP }), 0.5);
    }

    #[test]
    fn a_jump_leaves_zeros_and_moves_anchors() {
        let (mut weights, mut anchors) = ([1.0, 0.0, 3.0], [0.5, 2.0, 0.0]);
        jumps(&mut weights, &mut anchors, 2.0);
        assert_eq!((weights, anchors), ([2.0, 0.0, 3.0], [1.0, 0.0, 3.0]));
    }

    proptest! {
        #[test]
        fn no_other_weight_is_better(
            weight in -5.0_f64..5.0, gradient in -50.0_f64..50.0, curvature in 0.01_f64..100.0, other in -20.0_f64..20.0
        ) {
            let value = |to: f64| {
                let d = to - weight;
                gradient * d + 0.5 * curvature * d * d + STEP.lambda * to.abs()
            };
            let best = proximal_step(weight, gradient, curvature, STEP);
            prop_assert!(value(best) <= value(other) + 1e-9 * value(other).abs().max(1.0));
        }
    }
}
