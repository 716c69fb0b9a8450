//! Knows: the whole algorithm in one thread, through the same functions, with any delay.
//! Knows not: messages; rounds are loops here.
//! Called by: tests, as the oracle: with delay 0 a distributed run must give these weights to the bit.
//! Paper: OSDI'14 §5.1, Algorithm 3.
//!
//! It reads as the program that the distributed one spreads over nodes; each step says who does it there.

use crate::certificate::{Certificate, dual_scale};
use crate::lane::Lane;
use crate::margin::MarginRangeError;
use crate::plan::{Decision, Epoch, LOSSES, Progress, Reason, Settings, decide};
use crate::proximal::{CONTRIBUTION_WIDTH, jumps, proximal_step};
use crate::random::Random;
use crate::replica::Replica;

/// How much of the allowed delay is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Staleness {
    /// Always all of it.
    Worst,
    /// For each lane and round any number of rounds up to it.
    Random {
        /// Seed of the numbers.
        seed: u64,
    },
}

/// A finished job.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The weights, the constant's last: `[weights_len]`.
    pub weights: Vec<f64>,
    /// Why it stopped.
    pub reason: Reason,
    /// Every certificate, the last one of the weights above.
    pub certificates: Vec<Certificate>,
    /// Passes, rounds, epochs.
    pub progress: Progress,
}

/// Trains on lanes, one worker each. Cost: about 100 passes over the data, by their difficulty and the gap.
///
/// # Errors
/// A weight took margins out of their range.
///
/// # Panics
/// A lane is for another number of weights than the settings.
pub fn train(
    lanes: Vec<Lane>,
    settings: &Settings,
    staleness: Staleness,
) -> Result<Outcome, MarginRangeError> {
    // Servers: one value of state beside each weight.
    let mut weights = vec![0.0; settings.weights_len];
    let mut anchors = vec![0.0; settings.weights_len];
    // Workers: one per lane, so that each has its own staleness.
    let mut workers: Vec<Replica> =
        lanes.into_iter().map(|lane| Replica::new(settings.weights_len, vec![lane])).collect();
    let mut progress = Progress::new();
    let mut certificates = Vec::new();
    let mut random = match staleness {
        Staleness::Worst => None,
        Staleness::Random { seed } => Some(Random::new(seed, 0)),
    };
    loop {
        let (gradient, losses) = gradient_and_losses(&workers, settings);
        let scale = dual_scale(&gradient, settings.lambda);
        let dual = workers.iter().fold(0.0, |sum, worker| sum + worker.lanes()[0].dual(scale));
        // Every node decides alike; here the servers' vectors stand for any worker's equal copies.
        let evidence = crate::plan::Evidence {
            weights: &weights,
            anchors: &anchors,
            gradient: &gradient,
            losses: &losses,
            dual,
        };
        let (certificate, decision) = decide(settings, &mut progress, &evidence);
        certificates.push(certificate);
        let epoch = match decision {
            Decision::Stop(reason) => return Ok(Outcome { weights, reason, certificates, progress }),
            Decision::Run(epoch) => epoch,
        };
        jumps(&mut weights, &mut anchors, epoch.jump_factor);
        workers.iter_mut().try_for_each(|worker| worker.jump(epoch.jump_factor))?;
        run_rounds(&epoch, &mut weights, &mut workers, random.as_mut())?;
    }
}

/// First round of a certificate: all lanes' gradients and losses, summed by the servers in the order of the lanes.
fn gradient_and_losses(workers: &[Replica], settings: &Settings) -> (Vec<f64>, [f64; LOSSES]) {
    let mut gradient = vec![0.0; settings.weights_len];
    let mut losses = [0.0; LOSSES];
    let mut of_lane = vec![0.0; settings.weights_len];
    for worker in workers {
        worker.lanes()[0].full_gradient(&mut of_lane);
        add(&mut gradient, &of_lane);
        add(&mut losses, &worker.losses(0));
    }
    (gradient, losses)
}

/// All rounds of an epoch, and the wait at its end.
fn run_rounds(
    epoch: &Epoch,
    weights: &mut [f64],
    workers: &mut [Replica],
    mut random: Option<&mut Random>,
) -> Result<(), MarginRangeError> {
    // What pulls would return: the block's weights behind each round.
    let mut pulled: Vec<Vec<f64>> = Vec::with_capacity(epoch.order.len());
    let mut received = vec![0; workers.len()];
    for round in 0..epoch.order.len() {
        let block = epoch.block(round);
        let mut sums = vec![0.0; block.features.len() * CONTRIBUTION_WIDTH];
        let mut of_lane = sums.clone();
        for (worker, received) in workers.iter_mut().zip(&mut received) {
            // A worker: waits for the rounds it must have seen, computes, pushes.
            let lag = random.as_deref_mut().map_or(epoch.delay, |random| random.below(epoch.delay + 1));
            receive_until(epoch, &pulled, round.saturating_sub(lag), worker, received)?;
            worker.contribute(0, epoch, round, &mut of_lane);
            add(&mut sums, &of_lane);
        }
        // The server of the block's segment: a step per key, when all lanes have contributed.
        let (pairs, _) = sums.as_chunks::<CONTRIBUTION_WIDTH>();
        for (&feature, &[gradient, curvature]) in block.features.iter().zip(pairs) {
            let weight = &mut weights[feature as usize];
            *weight = proximal_step(*weight, gradient, curvature, epoch.step);
        }
        pulled.push(block.features.iter().map(|&feature| weights[feature as usize]).collect());
    }
    for (worker, received) in workers.iter_mut().zip(&mut received) {
        receive_until(epoch, &pulled, epoch.order.len(), worker, received)?;
        debug_assert_eq!(worker.weights(), weights, "quiescent: all copies are equal");
    }
    Ok(())
}

/// Receives what was pulled for all rounds below `until` that a worker has not received yet.
fn receive_until(
    epoch: &Epoch,
    pulled: &[Vec<f64>],
    until: usize,
    worker: &mut Replica,
    received: &mut usize,
) -> Result<(), MarginRangeError> {
    while *received < until {
        worker.receive(&epoch.block(*received).features, &pulled[*received])?;
        *received += 1;
    }
    Ok(())
}

fn add(sums: &mut [f64], values: &[f64]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}
