//! Knows: a worker's copy of weights and anchors, and the lanes that follow it.
//! Knows not: when weights arrive, what is sent.
//! Called by: a worker's loop, `reference`.
//! Paper: OSDI'14 §2.2 (a worker caches its working set of the parameters).

use crate::lane::Lane;
use crate::margin::MarginRangeError;
use crate::plan::{Epoch, Evidence, LOSSES};
use crate::proximal;

/// Weights, anchors and lanes that belong together: every change of a weight reaches every lane.
#[derive(Debug, Clone)]
pub struct Replica {
    weights: Vec<f64>,
    anchors: Vec<f64>,
    lanes: Vec<Lane>,
    /// Scratch: the weights that a change replaces.
    before: Vec<f64>,
}

impl Replica {
    /// A replica at weights 0, as at the start of a job.
    ///
    /// # Panics
    /// A lane is for another number of weights.
    #[must_use]
    pub fn new(weights_len: usize, lanes: Vec<Lane>) -> Self {
        assert!(lanes.iter().all(|lane| lane.weights_len() == weights_len), "lanes of one model");
        Self { weights: vec![0.0; weights_len], anchors: vec![0.0; weights_len], lanes, before: Vec::new() }
    }

    /// Takes over weights and anchors as the servers hold them: what a worker does that joins or restarts.
    ///
    /// Anchors matter to certificates only. Cost: that of [`Lane::restore`] for each lane.
    ///
    /// # Errors
    /// A weight takes margins out of their range.
    ///
    /// # Panics
    /// A length is wrong.
    pub fn restore(&mut self, weights: &[f64], anchors: &[f64]) -> Result<(), MarginRangeError> {
        self.weights.copy_from_slice(weights);
        self.anchors.copy_from_slice(anchors);
        self.lanes.iter_mut().try_for_each(|lane| lane.restore(weights))
    }

    /// Takes in a lane, brought to the replica's weights. It is the last one then. Cost: that of [`Lane::restore`].
    ///
    /// # Errors
    /// A weight takes margins out of their range.
    ///
    /// # Panics
    /// The lane is for another number of weights.
    pub fn add(&mut self, mut lane: Lane) -> Result<(), MarginRangeError> {
        assert_eq!(lane.weights_len(), self.weights.len(), "a lane of this model");
        lane.restore(&self.weights)?;
        self.lanes.push(lane);
        Ok(())
    }

    /// Lets a lane go.
    ///
    /// # Panics
    /// The lane does not exist.
    pub fn remove(&mut self, lane: usize) -> Lane {
        self.lanes.remove(lane)
    }

    /// The weights: `[weights_len]`.
    #[must_use]
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// The weights at the last certificate: `[weights_len]`.
    #[must_use]
    pub fn anchors(&self) -> &[f64] {
        &self.anchors
    }

    /// The lanes.
    #[must_use]
    pub fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// Sets weights that were pulled: `features` ascending, `values`: `[n]` each. Cost: that of [`Lane::change`].
    ///
    /// # Errors
    /// A weight takes margins out of their range.
    ///
    /// # Panics
    /// Lengths disagree, or a feature does not exist.
    pub fn receive(&mut self, features: &[u32], values: &[f64]) -> Result<(), MarginRangeError> {
        self.before.clear();
        self.before.extend(features.iter().map(|&feature| self.weights[feature as usize]));
        for lane in &mut self.lanes {
            lane.change(features, &self.before, values)?;
        }
        for (&feature, &value) in features.iter().zip(values) {
            self.weights[feature as usize] = value;
        }
        Ok(())
    }

    /// Makes the jump that opens an epoch, exactly as the servers make it; nothing needs to be pulled.
    ///
    /// Cost: a pass over the columns whose weight moves.
    ///
    /// # Errors
    /// A weight takes margins out of their range.
    pub fn jump(&mut self, factor: f64) -> Result<(), MarginRangeError> {
        let (mut features, mut values) = (Vec::new(), Vec::new());
        for (feature, (&weight, &anchor)) in (0_u32..).zip(self.weights.iter().zip(&self.anchors)) {
            let moved = proximal::jump(weight, anchor, factor);
            if moved != weight {
                features.push(feature);
                values.push(moved);
            }
        }
        self.anchors.copy_from_slice(&self.weights);
        self.receive(&features, &values)
    }

    /// One lane's contribution to a round; see [`Lane::contribute`].
    ///
    /// # Panics
    /// The lane does not exist, or a length is wrong.
    pub fn contribute(&mut self, lane: usize, epoch: &Epoch, round: usize, out: &mut [f64]) {
        self.lanes[lane].contribute(epoch, round, out);
    }

    /// One lane's losses at a certificate; see [`Lane::losses`].
    ///
    /// # Panics
    /// The lane does not exist.
    #[must_use]
    pub fn losses(&self, lane: usize) -> [f64; LOSSES] {
        self.lanes[lane].losses(&self.weights, &self.anchors)
    }

    /// The evidence for [`crate::plan::decide`], from this replica's weights and the sums over all lanes.
    #[must_use]
    pub fn evidence<'a>(&'a self, gradient: &'a [f64], losses: &'a [f64; LOSSES], dual: f64) -> Evidence<'a> {
        Evidence { weights: &self.weights, anchors: &self.anchors, gradient, losses, dual }
    }
}
