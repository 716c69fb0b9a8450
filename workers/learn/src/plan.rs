//! Knows: what is done next: stop, or an epoch's jump, blocks, order, delay and damping.
//! Knows not: rows, lanes, who computes what, how long it takes.
//! Called by: whoever leads the job, or every node alike: equal inputs give equal plans.
//! Paper: OSDI'14 §5.1, Algorithm 3, the scheduler's lines; §3.6 for the filter by optimality conditions.
//!
//! # Active features
//!
//! A feature is active if its weight is not 0, or if its gradient is at least 0.95 lambda in size, the strongest
//! first, while the active ones are at most twice the non-zeros (or 64). All others are filtered, as the paper's KKT
//! filter does; each certificate looks at all features again, so none is lost.
//!
//! # Delay
//!
//! A round may be computed from weights that miss the last `delay` rounds. An epoch's delay is the job's, but at most
//! a third of its blocks: a feature whose last two steps are not yet visible would take them a third time.
//!
//! # Passes
//!
//! The unit of work, one visit of every feature: a round counts its active features over all features, a certificate 1.

use std::ops::Range;

use crate::certificate::{Certificate, norm_l1};
use crate::proximal::{Step, jump};
use crate::random::Random;

/// Factors that a jump may have; certificates compute the losses for each. 0 is always among the choices.
pub const FACTORS: [f64; 8] = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0];
/// Losses that a lane sums at a certificate: at the weights, then at each of [`FACTORS`].
pub const LOSSES: usize = 1 + FACTORS.len();

/// Visits of each block in an epoch: fewer spend too much on certificates, more profit too seldom from jumps.
const SWEEPS: usize = 3;
/// Blocks of an epoch at least: below 16 the features of a block hinder each other.
const BLOCKS_MIN: usize = 16;
/// Blocks for each round that may be on its way. An epoch's delay is a third of its blocks at most, so of a delay of 8 and more
/// about two thirds are used.
const BLOCKS_PER_DELAY: usize = 2;
/// A zero weight becomes active from this share of lambda on; 1 is where it must move.
const ACTIVE_FROM: f64 = 0.95;
/// Active features at most, in multiples of the non-zeros.
const ACTIVE_GROWTH: usize = 2;
/// Active features that are always allowed.
const ACTIVE_MIN: usize = 64;
/// A rise of the objective below this share of it is rounding.
const RISE_TOLERANCE: f64 = 1e-9;
/// Epochs without a rise after which the damping is halved.
const CALM_EPOCHS: u32 = 8;
/// Damping at most 2 to this power.
pub(crate) const CAUTION_MAX: u32 = 20;
/// Rounds of a certificate that sends contributions: gradient with losses, then dual.
const CERTIFICATE_ROUNDS: u64 = 2;
/// Rounds that open an epoch: the plan is kept, then the jump is made.
const OPENING_ROUNDS: u64 = 2;

/// What a job asks for. The same on all nodes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Weight of the L1 penalty, positive.
    pub lambda: f64,
    /// The certified gap at which the job is done.
    pub gap: f64,
    /// Rounds that a computation may miss, tau of the paper; 0 is sequential.
    pub delay: usize,
    /// Seed of the order of blocks.
    pub seed: u64,
    /// Length of the weights: the file's features and the constant.
    pub weights_len: usize,
    /// Keys in a segment of the table; blocks do not cross its borders.
    pub segment_len: usize,
    /// Passes after which the job stops unfinished.
    pub passes_max: f64,
}

/// Settings that no job can run with.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum SettingsError {
    /// The penalty is not a positive number.
    #[error("lambda must be a positive finite number, not {0}")]
    Lambda(f64),
    /// The gap is not a share.
    #[error("the gap must be above 0 and below 1, not {0}")]
    Gap(f64),
    /// No features, or more than 32 bits number.
    #[error("the weights must be from 1 to 2147483647, not {0}")]
    WeightsLen(usize),
    /// Segments without keys.
    #[error("a segment must hold at least one key")]
    SegmentLen,
}

impl Settings {
    /// Passes if a job can run with these settings.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn check(&self) -> Result<(), SettingsError> {
        if !(self.lambda > 0.0 && self.lambda.is_finite()) {
            Err(SettingsError::Lambda(self.lambda))
        } else if !(self.gap > 0.0 && self.gap < 1.0) {
            Err(SettingsError::Gap(self.gap))
        } else if self.weights_len == 0 || i32::try_from(self.weights_len).is_err() {
            Err(SettingsError::WeightsLen(self.weights_len))
        } else if self.segment_len == 0 {
            Err(SettingsError::SegmentLen)
        } else {
            Ok(())
        }
    }
}

/// All that a plan knows of the past: a few numbers, equal at every worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Epochs planned.
    pub epochs: u64,
    /// Rounds planned or done: blocks, certificates (2 each), plans kept, jumps.
    pub rounds: u64,
    /// Passes planned or done.
    pub passes: f64,
    /// The best lower bound of the objective.
    pub bound: f64,
    /// The objective behind the last jump, which the next certificate should not exceed.
    pub objective_expected: f64,
    /// The damping is 2 to this power.
    pub caution: u32,
    /// Epochs since the objective last rose, or since the damping last changed.
    pub calm_epochs: u32,
}

impl Progress {
    /// The start of a job.
    #[must_use]
    pub fn new() -> Self {
        Self {
            epochs: 0,
            rounds: 0,
            passes: 0.0,
            bound: f64::NEG_INFINITY,
            objective_expected: f64::INFINITY,
            caution: 0,
            calm_epochs: 0,
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

/// What a certificate's rounds brought together, at a quiescent point; sums run over all lanes in their order.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// The weights: `[weights_len]`.
    pub weights: &'a [f64],
    /// The weights at the last certificate, before its jump; zeros at first: `[weights_len]`.
    pub anchors: &'a [f64],
    /// Sums of the gradients: `[weights_len]`.
    pub gradient: &'a [f64],
    /// Sums of the losses.
    pub losses: &'a [f64; LOSSES],
    /// Sum of the dual terms.
    pub dual: f64,
}

/// A run of neighbouring keys in one segment, and the active features among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Keys from the first active feature to the last.
    pub range: Range<u32>,
    /// Active features, ascending: `[n]`, never empty.
    pub features: Vec<u32>,
}

impl Block {
    /// Spreads values of the active features (`compact: [n * width]`) over the whole range (`dense: [range * width]`),
    /// with zeros between, for a push that names a range instead of keys.
    ///
    /// # Panics
    /// A length is wrong.
    pub fn spread(&self, compact: &[f64], width: usize, dense: &mut [f64]) {
        assert_eq!(dense.len(), self.range.len() * width, "one row per key of the range");
        assert_eq!(compact.len(), self.features.len() * width, "one row per active feature");
        dense.fill(0.0);
        for (&feature, values) in self.features.iter().zip(compact.chunks_exact(width)) {
            let start = (feature - self.range.start) as usize * width;
            dense[start..start + width].copy_from_slice(values);
        }
    }
}

/// What is done until the next certificate.
#[derive(Debug, Clone, PartialEq)]
pub struct Epoch {
    /// Number of the epoch, from 1.
    pub number: u64,
    /// Factor of the jump that comes first; 0 moves no weight, but anchors move all the same.
    pub jump_factor: f64,
    /// Arguments of every block's step.
    pub step: Step,
    /// Rounds of this epoch that a computation may miss: round `r` needs rounds `< r - delay`.
    pub delay: usize,
    /// Blocks, in the order of their keys; no two share a key.
    pub blocks: Vec<Block>,
    /// The block of each round: every sweep visits each once, in an order of its own.
    pub order: Vec<u32>,
}

impl Epoch {
    /// The epoch that was planned last, once more: `progress` as [`decide`] left it, `weights` and `gradient` of the
    /// certificate before it. For a worker that came later; equal arguments give what the others have. `None` when nothing
    /// is active: then no epoch was planned.
    ///
    /// # Panics
    /// A length is not the settings'.
    #[must_use]
    pub fn again(
        settings: &Settings,
        progress: &Progress,
        weights: &[f64],
        gradient: &[f64],
        jump_factor: f64,
    ) -> Option<Self> {
        assert_eq!([weights.len(), gradient.len()], [settings.weights_len; 2], "of the settings' length");
        let active = active_features(weights, gradient, settings.lambda);
        (!active.is_empty()).then(|| Self::of(settings, progress, &active, jump_factor))
    }

    fn of(settings: &Settings, progress: &Progress, active: &[u32], jump_factor: f64) -> Self {
        let blocks = blocks_of(active, settings);
        Self {
            number: progress.epochs,
            jump_factor,
            step: Step { lambda: settings.lambda, damping: f64::from(1_u32 << progress.caution) },
            delay: settings.delay.min(blocks.len() / 3),
            order: order_of(blocks.len(), settings.seed, progress.epochs),
            blocks,
        }
    }

    /// The block of a round.
    ///
    /// # Panics
    /// `round >= order.len()`.
    #[must_use]
    pub fn block(&self, round: usize) -> &Block {
        &self.blocks[self.order[round] as usize]
    }

    /// The rounds whose steps may still be unseen by each other when `round` is computed, itself included.
    #[must_use]
    pub fn window(&self, round: usize) -> Range<usize> {
        self.rounds_needed(round)..round + 1
    }

    /// Rounds whose weights must have arrived before `round` is computed: all below this number.
    #[must_use]
    pub fn rounds_needed(&self, round: usize) -> usize {
        round.saturating_sub(self.delay)
    }
}

/// Why a job stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The certified gap is at most the one asked for.
    GapReached,
    /// The next epoch would exceed the passes allowed; the gap says how far the optimum can be.
    PassesSpent,
}

/// What follows a certificate.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// The weights are the result.
    Stop(Reason),
    /// Jump, run the rounds, certify again.
    Run(Epoch),
}

/// Judges a certificate and plans what follows. A pure function: equal arguments, equal results, on every machine.
///
/// Cost: a few passes over the weights, a sort of the candidates for activity.
///
/// # Panics
/// The lengths of the evidence disagree with the settings.
#[must_use]
pub fn decide(
    settings: &Settings,
    progress: &mut Progress,
    evidence: &Evidence<'_>,
) -> (Certificate, Decision) {
    let Evidence { weights, anchors, gradient, losses, dual } = *evidence;
    let lengths = [weights.len(), anchors.len(), gradient.len()];
    assert_eq!(lengths, [settings.weights_len; 3], "weights, anchors and gradient of the settings' length");
    let certificate = Certificate::new(weights, losses[0], dual, settings.lambda, progress.bound);
    progress.bound = certificate.bound;
    progress.passes += 1.0;
    progress.rounds += CERTIFICATE_ROUNDS;
    if certificate.gap <= settings.gap {
        return (certificate, Decision::Stop(Reason::GapReached));
    }
    judge_rise(progress, certificate.objective);

    let active = active_features(weights, gradient, settings.lambda);
    let passes = (SWEEPS * active.len()) as f64 / settings.weights_len as f64;
    if active.is_empty() || progress.passes + passes + 1.0 > settings.passes_max {
        return (certificate, Decision::Stop(Reason::PassesSpent));
    }
    progress.epochs += 1;
    progress.passes += passes;
    let (jump_factor, objective) = best_factor(settings.lambda, weights, anchors, losses);
    progress.objective_expected = objective;
    let epoch = Epoch::of(settings, progress, &active, jump_factor);
    progress.rounds += OPENING_ROUNDS + epoch.order.len() as u64;
    (certificate, Decision::Run(epoch))
}

/// With fresh margins the objective cannot rise; with stale ones it nearly cannot. If it did, steps are halved at once
/// and lengthened again slowly, so no run can climb for long.
fn judge_rise(progress: &mut Progress, objective: f64) {
    // The negation also catches an objective that is not a number.
    let fell = objective <= progress.objective_expected * (1.0 + RISE_TOLERANCE);
    if !fell {
        progress.caution = (progress.caution + 1).min(CAUTION_MAX);
        progress.calm_epochs = 0;
    } else if progress.caution > 0 {
        progress.calm_epochs += 1;
        if progress.calm_epochs == CALM_EPOCHS {
            progress.caution -= 1;
            progress.calm_epochs = 0;
        }
    }
}

/// The factor whose objective is smallest, and that objective. Exact at 0, so a jump never raises the objective.
fn best_factor(lambda: f64, weights: &[f64], anchors: &[f64], losses: &[f64; LOSSES]) -> (f64, f64) {
    let mut best = (0.0, losses[0] + lambda * norm_l1(weights));
    for (&factor, &loss) in FACTORS.iter().zip(&losses[1..]) {
        let norm = weights
            .iter()
            .zip(anchors)
            .fold(0.0, |sum, (&weight, &anchor)| sum + jump(weight, anchor, factor).abs());
        let objective = loss + lambda * norm;
        if objective < best.1 {
            best = (factor, objective);
        }
    }
    best
}

/// The features that the epoch visits, ascending. Empty only if all weights are 0 and no gradient is near lambda.
fn active_features(weights: &[f64], gradient: &[f64], lambda: f64) -> Vec<u32> {
    let mut active = Vec::new();
    let mut candidates = Vec::new();
    for (feature, (&weight, &slope)) in (0_u32..).zip(weights.iter().zip(gradient)) {
        if weight != 0.0 {
            active.push(feature);
        } else if slope.abs() >= lambda * ACTIVE_FROM {
            candidates.push((slope.abs(), feature));
        }
    }
    let limit = (active.len() * ACTIVE_GROWTH).max(ACTIVE_MIN);
    candidates.sort_unstable_by(|left, right| right.0.total_cmp(&left.0).then(left.1.cmp(&right.1)));
    candidates.truncate(limit - active.len());
    active.extend(candidates.into_iter().map(|(_, feature)| feature));
    active.sort_unstable();
    active
}

/// Cuts the active features into blocks of equal counts that stay within segments.
fn blocks_of(active: &[u32], settings: &Settings) -> Vec<Block> {
    let count = BLOCKS_MIN.max(BLOCKS_PER_DELAY * (settings.delay.saturating_add(1)));
    let features_max = active.len().div_ceil(count);
    let segment = |feature: u32| feature as usize / settings.segment_len;
    let mut blocks = Vec::new();
    for of_segment in active.chunk_by(|&left, &right| segment(left) == segment(right)) {
        for features in of_segment.chunks(features_max) {
            let range = features[0]..features[features.len() - 1] + 1;
            blocks.push(Block { range, features: features.to_vec() });
        }
    }
    blocks
}

/// A random permutation of the blocks for each sweep.
fn order_of(block_count: usize, seed: u64, epoch: u64) -> Vec<u32> {
    let mut random = Random::new(seed, epoch);
    let mut order = Vec::with_capacity(block_count * SWEEPS);
    for _ in 0..SWEEPS {
        let start = order.len();
        order.extend((0_u32..).take(block_count));
        for last in (1..block_count).rev() {
            order.swap(start + last, start + random.below(last + 1));
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings(weights_len: usize, segment_len: usize, delay: usize) -> Settings {
        Settings { lambda: 1.0, gap: 0.01, delay, seed: 7, weights_len, segment_len, passes_max: 1000.0 }
    }

    fn epoch_of(
        settings: &Settings,
        progress: &mut Progress,
        weights: &[f64],
        gradient: &[f64],
        loss: f64,
    ) -> Epoch {
        let anchors = vec![0.0; weights.len()];
        let evidence = Evidence { weights, anchors: &anchors, gradient, losses: &[loss; LOSSES], dual: 0.0 };
        match decide(settings, progress, &evidence) {
            (_, Decision::Run(epoch)) => epoch,
            (certificate, Decision::Stop(reason)) => panic!("stopped for {reason:?} at {certificate:?}"),
        }
    }

    proptest! {
        #[test]
        fn an_epoch_visits_each_active_feature_once_a_sweep(
            signs in proptest::collection::vec(0_u8..3, 1..400), segment_len in 1_usize..100, delay in 0_usize..40
        ) {
            // 0: idle, 1: not zero, 2: gradient above lambda.
            let weights: Vec<f64> = signs.iter().map(|&sign| f64::from(u8::from(sign == 1))).collect();
            let gradient: Vec<f64> = signs.iter().map(|&sign| f64::from(u8::from(sign == 2)) * 3.0).collect();
            prop_assume!(signs.iter().any(|&sign| sign > 0));
            let settings = settings(signs.len(), segment_len, delay);
            let epoch = epoch_of(&settings, &mut Progress::new(), &weights, &gradient, 100.0);
            prop_assert_eq!(&epoch, &epoch_of(&settings, &mut Progress::new(), &weights, &gradient, 100.0));

            let features: Vec<u32> = epoch.blocks.iter().flat_map(|block| block.features.clone()).collect();
            prop_assert!(features.is_sorted_by(|left, right| left < right));
            let nonzeros = signs.iter().filter(|&&sign| sign == 1).count();
            let wanted = signs.iter().filter(|&&sign| sign > 0).count();
            prop_assert_eq!(features.len(), wanted.min((2 * nonzeros).max(ACTIVE_MIN)));
            for (feature, &sign) in signs.iter().enumerate() {
                prop_assert!(sign != 1 || features.contains(&u32::try_from(feature).unwrap()));
            }
            for block in &epoch.blocks {
                prop_assert_eq!(block.range.start, block.features[0]);
                prop_assert_eq!(block.range.end, block.features.last().unwrap() + 1);
                prop_assert_eq!(block.range.start as usize / segment_len, (block.range.end - 1) as usize / segment_len);
            }
            prop_assert!(epoch.delay <= delay && epoch.delay <= epoch.blocks.len() / 3);
            for sweep in epoch.order.chunks(epoch.blocks.len()) {
                let mut sorted = sweep.to_vec();
                sorted.sort_unstable();
                prop_assert!(sorted.iter().copied().eq((0_u32..).take(epoch.blocks.len())));
            }
        }
    }

    #[test]
    fn a_rise_halves_the_steps_and_calm_restores_them() {
        let settings = settings(4, 4, 0);
        let mut progress = Progress::new();
        let mut damping = |loss: f64| {
            epoch_of(&settings, &mut progress, &[1.0, 0.0, 0.0, 0.0], &[0.0; 4], loss).step.damping
        };
        assert_eq!([damping(100.0), damping(101.0), damping(102.0)], [1.0, 2.0, 4.0]);
        let calm: Vec<f64> = (0..16).map(|_| damping(102.0)).collect();
        assert_eq!([calm[6], calm[7], calm[14], calm[15]], [4.0, 2.0, 2.0, 1.0]);
        assert_eq!(damping(f64::NAN), 2.0);
    }

    #[test]
    fn the_jump_takes_the_smallest_objective() {
        let mut losses = [10.0; LOSSES];
        losses[3] = 7.0;
        // The weight grows by 1 from its anchor 1: at factor 1 the penalty is 3 instead of 2.
        assert_eq!(best_factor(1.0, &[2.0], &[1.0], &losses), (1.0, 10.0));
        assert_eq!(best_factor(4.0, &[2.0], &[1.0], &losses), (0.0, 18.0));
    }

    #[test]
    fn it_stops_when_the_gap_is_reached_or_the_passes_are_spent() {
        let mut settings = settings(2, 2, 0);
        let (weights, gradient) = ([1.0, 0.0], [0.5, 0.5]);
        let evidence = |dual| Evidence {
            weights: &weights,
            anchors: &[0.0; 2],
            gradient: &gradient,
            losses: &[9.0; LOSSES],
            dual,
        };
        let (certificate, decision) = decide(&settings, &mut Progress::new(), &evidence(9.95));
        assert_eq!(decision, Decision::Stop(Reason::GapReached));
        assert!((certificate.gap - 0.005).abs() < 1e-12);
        settings.passes_max = 2.0;
        let (_, decision) = decide(&settings, &mut Progress::new(), &evidence(5.0));
        assert_eq!(decision, Decision::Stop(Reason::PassesSpent));
    }

    #[test]
    fn settings_are_checked() {
        let good = settings(10, 5, 3);
        assert_eq!(good.check(), Ok(()));
        assert_eq!(Settings { lambda: 0.0, ..good }.check(), Err(SettingsError::Lambda(0.0)));
        assert!(Settings { lambda: f64::NAN, ..good }.check().is_err());
        assert_eq!(Settings { gap: 1.0, ..good }.check(), Err(SettingsError::Gap(1.0)));
        assert_eq!(Settings { weights_len: 0, ..good }.check(), Err(SettingsError::WeightsLen(0)));
        assert_eq!(Settings { segment_len: 0, ..good }.check(), Err(SettingsError::SegmentLen));
    }

    #[test]
    fn ranges_are_spread() {
        let block = Block { range: 3..8, features: vec![3, 5, 7] };
        let mut dense = [9.0; 10];
        block.spread(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, &mut dense);
        assert_eq!(dense, [1.0, 2.0, 0.0, 0.0, 3.0, 4.0, 0.0, 0.0, 5.0, 6.0]);
    }
}
