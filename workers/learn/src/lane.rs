//! Knows: the rows of one part at their current margins: gradients, curvatures, losses, dual terms.
//! Knows not: other lanes, servers, what a sum over lanes is used for.
//! Called by: `replica`, for the lanes that a worker holds.
//! Paper: OSDI'14 §5.1, Algorithm 3, the worker's lines.
//!
//! # The curvature that is pushed
//!
//! Steps of several features are taken at once: those of a block, and with delay those of the rounds that cannot
//! see each other. With `c_i` the curvature of row `i` ([`crate::logistic`]) and `A_i` its *reach*, the sum of `|x_ik|` over
//! the features `k` of the last `delay + 1` rounds, feature `j` pushes
//!
//! ```text
//! u_j = sum_i c_i |x_ij| A_i
//! ```
//!
//! Since `2 |a b| <= a^2 + b^2`, the separable parabola of these curvatures lies above the loss whatever the
//! features of the window do together; with delay 0 each step therefore lowers the objective, and with delay the
//! cross terms of past and coming rounds are paid for in the mean. Reaches are sums in fixed point, rounded up, so
//! they too are a function of the plan alone, whatever was added and taken away before.

use crate::logistic::{entropy, loss, slope_and_curvature};
use crate::margin::{MarginRange, MarginRangeError, double, fixed};
use crate::part::{Columns, Part};
use crate::plan::{Epoch, FACTORS, LOSSES};
use crate::proximal::{CONTRIBUTION_WIDTH, line};

use std::ops::Range;

/// Units of reach in the largest value of a lane: sums over any row of 32-bit length stay within 63 bits.
const REACH_ONE: f64 = (1_u64 << 30) as f64;

/// All that a block's gradient reads of a row, side by side: 32 bytes.
#[derive(Debug, Clone, Copy)]
struct Row {
    /// Fixed-point sum over the file's features; the constant's share is `Lane::constant_margin`.
    margin: i64,
    /// Derivative of the loss by the margin: minus the label times the wrong probability.
    slope: f64,
    /// Curvature of the bounding parabola at the margin.
    curvature: f64,
    /// Sum of `|x|` over the window's features of the file, in units of `1 / Lane::reach_units`.
    reach: i64,
}

/// The rows of one part, at the weights that it was told.
#[derive(Debug, Clone)]
pub struct Lane {
    labels: Vec<f64>,
    columns: Columns,
    /// Largest absolute value of each column: `[features]`.
    value_max: Vec<f64>,
    range: MarginRange,
    rows: Vec<Row>,
    constant_margin: i64,
    /// Units of reach in 1: a power of two, so that scaling is exact.
    reach_units: f64,
    /// How often the constant feature is in the window.
    constant_reach: i64,
    /// The window that reaches are summed for: epoch and rounds.
    window: (u64, Range<usize>),
    /// Rows whose slope and curvature are older than their margin, with a mark on each so that none is listed twice.
    stale: Vec<u32>,
    is_stale: Vec<bool>,
}

impl Lane {
    /// A lane over a part, at weights 0. Cost: one pass over the part.
    #[must_use]
    pub fn new(part: Part) -> Self {
        let Part { labels, columns, longest_row } = part;
        let value_max: Vec<f64> = (0..columns.count())
            .map(|feature| {
                columns.column(feature).1.iter().fold(0.0, |largest, value| value.abs().max(largest))
            })
            .collect();
        let largest = value_max.iter().copied().fold(0.0, f64::max);
        let rows = vec![Row { margin: 0, slope: 0.0, curvature: 0.0, reach: 0 }; labels.len()];
        let mut lane = Self {
            is_stale: vec![false; labels.len()],
            stale: Vec::new(),
            range: MarginRange::new(longest_row),
            reach_units: REACH_ONE / power_of_two_above(largest),
            constant_margin: 0,
            constant_reach: 0,
            window: (0, 0..0),
            labels,
            columns,
            value_max,
            rows,
        };
        lane.refresh_all();
        lane
    }

    /// Length of the weights that the lane is for: the file's features and the constant.
    #[must_use]
    pub fn weights_len(&self) -> usize {
        self.columns.count() + 1
    }

    /// Forgets its margins and computes them from `weights: [weights_len]`: what a restarted worker does first.
    ///
    /// Cost: one pass over the columns of weights that are not 0.
    ///
    /// # Errors
    /// A weight takes margins out of their range; the lane must not be used before another `restore` passes.
    ///
    /// # Panics
    /// The length is wrong.
    pub fn restore(&mut self, weights: &[f64]) -> Result<(), MarginRangeError> {
        assert_eq!(weights.len(), self.weights_len(), "one weight per feature");
        for row in &mut self.rows {
            row.margin = 0;
        }
        self.constant_margin = 0;
        for (feature, &weight) in weights.iter().enumerate() {
            self.move_margins(feature, 0.0, weight)?;
        }
        self.clear_stale();
        self.refresh_all();
        Ok(())
    }

    /// Moves margins as the weights of some features change: `features`, `before`, `after`: `[n]` each, features
    /// ascending. Cost: one pass over the columns whose weight changes, one exponential per row in them.
    ///
    /// # Errors
    /// A weight takes margins out of their range; call [`Self::restore`] before any other use.
    ///
    /// # Panics
    /// Lengths disagree, or a feature does not exist.
    pub fn change(
        &mut self,
        features: &[u32],
        before: &[f64],
        after: &[f64],
    ) -> Result<(), MarginRangeError> {
        assert_eq!([before.len(), after.len()], [features.len(); 2], "two weights per feature");
        let constant_before = self.constant_margin;
        for ((&feature, &old), &new) in features.iter().zip(before).zip(after) {
            self.move_margins(feature as usize, old, new)?;
        }
        if self.constant_margin == constant_before {
            self.refresh_stale();
        } else {
            self.clear_stale();
            self.refresh_all();
        }
        Ok(())
    }

    /// The contribution to a round: `out: [features of the block * 2]`, gradient and curvature in turn.
    ///
    /// Margins must be those of the weights that the round may see; reaches follow the plan by themselves. Cost: one
    /// pass over the columns of this round's features, and of those that enter and leave the window.
    ///
    /// # Panics
    /// The length of `out` is wrong, or a feature of the plan does not exist.
    pub fn contribute(&mut self, epoch: &Epoch, round: usize, out: &mut [f64]) {
        self.slide_window(epoch, round);
        let features = &epoch.block(round).features;
        assert_eq!(out.len(), features.len() * CONTRIBUTION_WIDTH, "two values per feature");
        let (pairs, _) = out.as_chunks_mut::<CONTRIBUTION_WIDTH>();
        let unit = 1.0 / self.reach_units;
        let constant_reach = self.constant_reach as f64;
        for (&feature, pair) in features.iter().zip(pairs) {
            let (mut gradient, mut curvature) = (0.0, 0.0);
            if feature as usize == self.columns.count() {
                for row in &self.rows {
                    gradient += row.slope;
                    curvature += row.curvature * (row.reach as f64 * unit + constant_reach);
                }
            } else {
                let (rows, values) = self.columns.column(feature as usize);
                for (&row, &value) in rows.iter().zip(values) {
                    let row = &self.rows[row as usize];
                    gradient += row.slope * value;
                    curvature += row.curvature * value.abs() * (row.reach as f64 * unit + constant_reach);
                }
            }
            *pair = [gradient, curvature];
        }
    }

    /// The gradient by every weight: `out: [weights_len]`. Cost: one pass over the part.
    ///
    /// # Panics
    /// The length is wrong.
    pub fn full_gradient(&self, out: &mut [f64]) {
        assert_eq!(out.len(), self.weights_len(), "one value per feature");
        let (constant, features) = out.split_last_mut().expect("the constant is always there");
        for (feature, sum) in features.iter_mut().enumerate() {
            let (rows, values) = self.columns.column(feature);
            *sum = rows
                .iter()
                .zip(values)
                .fold(0.0, |sum, (&row, &value)| sum + self.rows[row as usize].slope * value);
        }
        *constant = self.rows.iter().fold(0.0, |sum, row| sum + row.slope);
    }

    /// Sums of the losses: at the lane's weights, and behind a jump by each of [`FACTORS`].
    ///
    /// `weights` must be those that the lane was told, `anchors` those of the last certificate: `[weights_len]` each.
    /// Cost: a pass over the columns that moved between the two, and 9 losses per row.
    ///
    /// # Panics
    /// A length is wrong.
    #[must_use]
    pub fn losses(&self, weights: &[f64], anchors: &[f64]) -> [f64; LOSSES] {
        assert_eq!(
            [weights.len(), anchors.len()],
            [self.weights_len(); 2],
            "one weight and anchor per feature"
        );
        let mut moved = vec![0_i64; self.rows.len()];
        let mut is_moving = false;
        for (feature, (&weight, &anchor)) in weights.iter().zip(anchors).enumerate() {
            let direction = line(weight, anchor);
            if direction == 0.0 {
                continue;
            }
            is_moving = true;
            if feature == self.columns.count() {
                let product = fixed(direction);
                for margin in &mut moved {
                    *margin = margin.wrapping_add(product);
                }
            } else {
                let (rows, values) = self.columns.column(feature);
                for (&row, &value) in rows.iter().zip(values) {
                    let margin = &mut moved[row as usize];
                    *margin = margin.wrapping_add(fixed(value * direction));
                }
            }
        }
        let mut sums = [0.0; LOSSES];
        for ((row, &label), &moved) in self.rows.iter().zip(&self.labels).zip(&moved) {
            let z = label * self.margin_of(row);
            sums[0] += loss(z);
            if is_moving {
                let moved = label * double(moved);
                for (sum, factor) in sums[1..].iter_mut().zip(FACTORS) {
                    *sum += loss(z + factor * moved);
                }
            }
        }
        if !is_moving {
            sums = [sums[0]; LOSSES];
        }
        sums
    }

    /// The dual value of the rows at their wrong probabilities times `scale` ([`crate::certificate::dual_scale`]).
    ///
    /// Cost: two logarithms per row.
    #[must_use]
    pub fn dual(&self, scale: f64) -> f64 {
        self.rows.iter().fold(0.0, |sum, row| sum + entropy(scale * row.slope.abs()))
    }

    fn margin_of(&self, row: &Row) -> f64 {
        double(row.margin.wrapping_add(self.constant_margin))
    }

    /// Replaces a weight in the margins, and lists the rows that this touches (unless it is the constant's: all rows).
    fn move_margins(&mut self, feature: usize, before: f64, after: f64) -> Result<(), MarginRangeError> {
        if before == after {
            return Ok(());
        }
        if feature == self.columns.count() {
            self.range.check(feature, 1.0, after)?;
            // Wrapping never wraps here, the range sees to it; it only says that no check is compiled in.
            self.constant_margin =
                self.constant_margin.wrapping_add(fixed(after).wrapping_sub(fixed(before)));
            return Ok(());
        }
        self.range.check(feature, self.value_max[feature], after)?;
        let (rows, values) = self.columns.column(feature);
        for (&row, &value) in rows.iter().zip(values) {
            let margin = &mut self.rows[row as usize].margin;
            *margin = margin.wrapping_add(fixed(value * after).wrapping_sub(fixed(value * before)));
            if !self.is_stale[row as usize] {
                self.is_stale[row as usize] = true;
                self.stale.push(row);
            }
        }
        Ok(())
    }

    fn refresh_stale(&mut self) {
        let stale = std::mem::take(&mut self.stale);
        for &row in &stale {
            self.is_stale[row as usize] = false;
            self.refresh(row as usize);
        }
        self.stale = stale;
        self.stale.clear();
    }

    fn clear_stale(&mut self) {
        self.is_stale.fill(false);
        self.stale.clear();
    }

    fn refresh_all(&mut self) {
        for row in 0..self.rows.len() {
            self.refresh(row);
        }
    }

    #[inline]
    fn refresh(&mut self, row: usize) {
        let label = self.labels[row];
        let z = label * self.margin_of(&self.rows[row]);
        let (wrong, curvature) = slope_and_curvature(z);
        let row = &mut self.rows[row];
        row.slope = -label * wrong;
        row.curvature = curvature;
    }

    /// Brings reaches to the window of a round: by the difference if the windows overlap, else anew.
    fn slide_window(&mut self, epoch: &Epoch, round: usize) {
        let target = epoch.window(round);
        let (number, current) = self.window.clone();
        let follows = number == epoch.number && current.start <= target.start && current.end <= target.end;
        let (leaving, entering) = if follows && current.end > target.start {
            (current.start..target.start, current.end..target.end)
        } else {
            for row in &mut self.rows {
                row.reach = 0;
            }
            self.constant_reach = 0;
            (0..0, target.clone())
        };
        for round in entering {
            self.add_reach(epoch, round, 1);
        }
        for round in leaving {
            self.add_reach(epoch, round, -1);
        }
        self.window = (epoch.number, target);
    }

    fn add_reach(&mut self, epoch: &Epoch, round: usize, sign: i64) {
        for &feature in &epoch.block(round).features {
            if feature as usize == self.columns.count() {
                self.constant_reach += sign;
                continue;
            }
            let (rows, values) = self.columns.column(feature as usize);
            for (&row, &value) in rows.iter().zip(values) {
                self.rows[row as usize].reach += sign * rounded_up(value.abs() * self.reach_units);
            }
        }
    }
}

/// The smallest power of two above a finite `value >= 0`, between 2^-500 and 2^1000.
///
/// A loop, not a logarithm: it runs once per lane and its result must not depend on a library.
fn power_of_two_above(value: f64) -> f64 {
    let mut power = 1.0;
    while power <= value && power < 1e301 {
        power *= 2.0;
    }
    while power * 0.5 > value && power > 1e-150 {
        power *= 0.5;
    }
    power
}

/// `value >= 0` rounded up to an integer; up, so that a reach is a bound.
#[allow(clippy::cast_possible_truncation, reason = "values are at most 2^30 by the choice of the unit")]
fn rounded_up(value: f64) -> i64 {
    let truncated = value as i64;
    if (truncated as f64) < value { truncated + 1 } else { truncated }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundled;
    use crate::plan::Block;
    use crate::proximal::Step;
    use proptest::prelude::*;

    const FEATURES: usize = 122;
    const WEIGHTS: usize = FEATURES + 1;

    fn adult_lane() -> Lane {
        let mapping = bundled::adult_test().unwrap();
        Lane::new(Part::load(&mapping, 0..mapping.bytes().len() / 8 * 8, 122).unwrap())
    }

    fn small_lane() -> Lane {
        let mapping = bundled::adult_test().unwrap();
        let range = crate::part::cut(mapping.bytes(), 50)[7].clone();
        Lane::new(Part::load(&mapping, range, 122).unwrap())
    }

    fn some_weights(seed: u64) -> Vec<f64> {
        let mut random = crate::random::Random::new(seed, 0);
        (0..WEIGHTS).map(|_| random.below(2001) as f64 / 1000.0 - 1.0).collect()
    }

    fn epoch(delay: usize, order: Vec<u32>) -> Epoch {
        let blocks = [(0..5), (40..60), (120..123)]
            .map(|range: Range<u32>| Block { range: range.clone(), features: range.collect() });
        let step = Step { lambda: 1.0, damping: 1.0 };
        Epoch { number: 1, jump_factor: 0.0, step, delay, blocks: blocks.to_vec(), order }
    }

    /// The textbook's gradient, row by row in doubles.
    fn naive(lane: &Lane, weights: &[f64]) -> (f64, Vec<f64>) {
        let mut margins = vec![weights[FEATURES]; lane.rows.len()];
        for (feature, weight) in weights[..FEATURES].iter().enumerate() {
            let (rows, values) = lane.columns.column(feature);
            for (&row, value) in rows.iter().zip(values) {
                margins[row as usize] += value * weight;
            }
        }
        let loss =
            margins.iter().zip(&lane.labels).map(|(margin, label)| (-label * margin).exp().ln_1p()).sum();
        let slope = |row: usize| -lane.labels[row] / (1.0 + (lane.labels[row] * margins[row]).exp());
        let mut gradient: Vec<f64> = (0..FEATURES)
            .map(|feature| {
                let (rows, values) = lane.columns.column(feature);
                rows.iter().zip(values).map(|(&row, value)| slope(row as usize) * value).sum()
            })
            .collect();
        gradient.push((0..lane.rows.len()).map(slope).sum());
        (loss, gradient)
    }

    #[test]
    fn gradient_and_loss_agree_with_the_textbook() {
        let mut lane = adult_lane();
        let weights = some_weights(1);
        lane.restore(&weights).unwrap();
        let (loss, gradient) = naive(&lane, &weights);
        assert!((lane.losses(&weights, &weights)[0] - loss).abs() < 1e-6);
        let mut ours = vec![0.0; WEIGHTS];
        lane.full_gradient(&mut ours);
        for (ours, naive) in ours.iter().zip(&gradient) {
            assert!((ours - naive).abs() < 1e-6, "{ours} against {naive}");
        }
        // A block's gradient is the full one's, to the bit.
        let epoch = epoch(0, vec![2, 1, 0]);
        for round in 0..3 {
            let block = epoch.block(round);
            let mut out = vec![0.0; block.features.len() * 2];
            lane.contribute(&epoch, round, &mut out);
            for (&feature, pair) in block.features.iter().zip(out.chunks(2)) {
                assert_eq!(pair[0], ours[feature as usize]);
            }
        }
    }

    #[test]
    fn gradient_agrees_with_finite_differences() {
        let mut lane = small_lane();
        let weights = some_weights(2);
        lane.restore(&weights).unwrap();
        let mut gradient = vec![0.0; WEIGHTS];
        lane.full_gradient(&mut gradient);
        for feature in [0_usize, 3, 50, 122] {
            let mut loss_at = |step: f64| {
                let mut moved = weights.clone();
                moved[feature] += step;
                lane.restore(&moved).unwrap();
                lane.losses(&moved, &moved)[0]
            };
            let difference = (loss_at(1e-4) - loss_at(-1e-4)) / 2e-4;
            assert!(
                (difference - gradient[feature]).abs() < 1e-4,
                "{difference} against {}",
                gradient[feature]
            );
        }
    }

    #[test]
    fn losses_behind_a_jump_are_those_of_the_moved_weights() {
        let mut lane = small_lane();
        let (weights, mut anchors) = (some_weights(3), some_weights(4));
        anchors[5] = 0.0;
        lane.restore(&weights).unwrap();
        let losses = lane.losses(&weights, &anchors);
        for (&loss, factor) in losses[1..].iter().zip(FACTORS) {
            let (mut moved, mut anchors) = (weights.clone(), anchors.clone());
            crate::proximal::jumps(&mut moved, &mut anchors, factor);
            lane.restore(&moved).unwrap();
            let direct = lane.losses(&moved, &moved)[0];
            assert!((loss - direct).abs() < 1e-7 * direct, "factor {factor}: {loss} against {direct}");
        }
    }

    #[test]
    fn the_curvature_bounds_the_loss_along_any_direction_of_a_window() {
        let mut lane = small_lane();
        let weights = some_weights(5);
        let epoch = epoch(0, vec![1]);
        lane.restore(&weights).unwrap();
        let mut out = vec![0.0; 40];
        lane.contribute(&epoch, 0, &mut out);
        let before = lane.losses(&weights, &weights)[0];
        for seed in 0..20 {
            let steps = some_weights(100 + seed);
            let (mut moved, mut bound) = (weights.clone(), before);
            for (&feature, pair) in epoch.block(0).features.iter().zip(out.chunks(2)) {
                let step = steps[feature as usize];
                moved[feature as usize] += step;
                bound += pair[0] * step + 0.5 * pair[1] * step * step;
            }
            lane.restore(&moved).unwrap();
            assert!(lane.losses(&moved, &moved)[0] <= bound + 1e-6);
        }
    }

    #[test]
    fn the_dual_value_is_below_any_objective() {
        let mut lane = small_lane();
        for seed in 0..10 {
            let weights = some_weights(seed);
            lane.restore(&weights).unwrap();
            let mut gradient = vec![0.0; WEIGHTS];
            lane.full_gradient(&mut gradient);
            for lambda in [0.01, 1.0, 50.0, 1e4] {
                let dual = lane.dual(crate::certificate::dual_scale(&gradient, lambda));
                for other in 0..10 {
                    let other = some_weights(other).iter().map(|weight| weight * 0.1).collect::<Vec<_>>();
                    let mut elsewhere = lane.clone();
                    elsewhere.restore(&other).unwrap();
                    let objective =
                        elsewhere.losses(&other, &other)[0] + lambda * crate::certificate::norm_l1(&other);
                    assert!(dual <= objective + 1e-9);
                }
            }
        }
    }

    #[test]
    fn values_out_of_range_are_an_error() {
        let mut lane = small_lane();
        let error = lane.change(&[3], &[0.0], &[1e7]).unwrap_err();
        assert_eq!(error.feature, 3);
        let mut weights = vec![0.0; WEIGHTS];
        weights[122] = f64::INFINITY;
        assert_eq!(lane.restore(&weights).unwrap_err().feature, 122);
    }

    #[test]
    fn a_part_without_rows_contributes_zeros() {
        let mapping = bundled::adult_test().unwrap();
        let mut lane = Lane::new(Part::load(&mapping, 0..0, 122).unwrap());
        lane.restore(&some_weights(1)).unwrap();
        let epoch = epoch(1, vec![2, 0]);
        let mut out = [1.0; 6];
        lane.contribute(&epoch, 0, &mut out);
        assert_eq!(out, [0.0; 6]);
        assert_eq!((lane.dual(0.5), lane.losses(&[0.0; WEIGHTS], &[0.0; WEIGHTS])[0]), (0.0, 0.0));
    }

    #[test]
    fn powers_of_two_and_rounding_up() {
        assert_eq!([0.3, 0.5, 1.0, 5.0].map(power_of_two_above), [0.5, 1.0, 2.0, 8.0]);
        assert!(power_of_two_above(0.0) > 0.0 && power_of_two_above(f64::MAX).is_finite());
        assert_eq!([0.0, 0.1, 1.0, 1.5].map(rounded_up), [0, 1, 1, 2]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn what_a_lane_contributes_does_not_depend_on_its_past(
            changes in proptest::collection::vec((0_u32..123, -3.0_f64..3.0), 0..60),
            skipped in proptest::collection::vec(any::<bool>(), 9)
        ) {
            let mut lane = small_lane();
            let mut restarted = lane.clone();
            let mut weights = vec![0.0; WEIGHTS];
            for &(feature, weight) in &changes {
                let before = weights[feature as usize];
                lane.change(&[feature], &[before], &[weight]).unwrap();
                weights[feature as usize] = weight;
            }
            restarted.restore(&weights).unwrap();
            let epoch = epoch(2, vec![1, 0, 2, 0, 1, 2, 2, 1, 0]);
            for (round, &skipped) in skipped.iter().enumerate() {
                let values = epoch.block(round).features.len() * 2;
                let (mut ours, mut theirs) = (vec![0.0; values], vec![0.0; values]);
                lane.contribute(&epoch, round, &mut ours);
                // The restarted one misses some rounds, and must catch up with the window.
                if !skipped {
                    restarted.contribute(&epoch, round, &mut theirs);
                    prop_assert!(ours.iter().zip(&theirs).all(|(left, right)| left.to_bits() == right.to_bits()));
                }
            }
            prop_assert_eq!(lane.losses(&weights, &weights).map(f64::to_bits), restarted.losses(&weights, &weights).map(f64::to_bits));
        }
    }
}
