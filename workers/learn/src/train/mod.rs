//! Knows: the distributed loop of sparse L1 logistic regression: the phases of a job and their order.
//! Knows not: who holds which lane (`lanes.rs`), how a lane computes ([`crate::lane`]), what comes next ([`crate::plan`]).
//! Called by: `rangefold train lr`, once per worker.
//! Paper: OSDI'14 §5.1, Algorithm 3.
//!
//! Rounds of an epoch that begins at round c, with the tables they touch:
//!
//! | round | every lane pushes | then pulls, at least as of |
//! | ----- | ----------------- | -------------------------- |
//! | c | its gradient and its losses | both, c + 1 |
//! | c + 1 | its part of the dual value | that, c + 2; everybody decides alike |
//! | c + 2 | (one lane) where the job stands ([`Standing`]) | that, c + 3 |
//! | c + 3 | (one lane) nothing, with the jump's factor | the weights, c + 4 |
//! | c + 4 + r | gradient and curvature of block r | the block, c + 5 + r |
//!
//! All tables are aggregated by rounds, so each round is applied once, whoever ran its lanes. A round of a block touches one
//! segment: it is applied whole or not at all, so a lane that is done again by another worker meets the weights that the
//! first one met. The rounds of a certificate leave the weights alone, with the same effect.
//!
//! # A worker that begins in the middle
//!
//! It reads where the job stands and walks from that jump on like any other: what it contributes to rounds that are applied
//! adds nothing, and the first that is not finds it with the weights that its lanes' former holder had. Three things make
//! that exact, however far the shards have come when it reads. A shard that has heard of the new holder applies no round of its
//! lanes without it, and all that hold weights have heard before the standing is read. Nobody jumps before the standing is
//! kept, so no weights are past the epoch that it names but by rounds which the newcomer goes through as well. And gradients of
//! successive certificates have tables in turn, so the one that the epoch was planned from is still there.

mod lanes;
mod tables;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rangefold_proto::client::TaskError;
use rangefold_proto::{Round, ShardId};
use rangefold_transport::Endpoint;
use rangefold_workers::driver::Dialer;
use rangefold_workers::{Client, Error, Table};

use crate::certificate::{Certificate, dual_scale};
use crate::libsvm::MalformedLine;
use crate::mapping::Mapping;
use crate::margin::MarginRangeError;
use crate::part::{LoadError, Survey, survey};
use crate::plan::{Decision, Epoch, LOSSES, Progress, Reason, SettingsError, decide};
use crate::standing::Standing;

use lanes::{Phase, Pulled, Worker};
use tables::{ROW, Tables};

/// What a job is, the same for all its workers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Job {
    /// Weight of the L1 penalty.
    pub lambda: f64,
    /// The certified gap at which the job is done.
    pub gap: f64,
    /// Bounded delay, in rounds.
    pub delay: u32,
    /// Seed of the order of blocks.
    pub seed: u64,
    /// Parts of the data, each a lane.
    pub parts: u32,
    /// Segments of the table of weights; a power of two. Fewer where there are fewer weights.
    pub segments: u16,
    /// Passes after which the job stops unfinished.
    pub passes_max: f64,
    /// How long a round may take before the job gives up.
    pub deadline: Duration,
}

/// Why a worker's part of a job ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The data are malformed.
    #[error(transparent)]
    Malformed(#[from] MalformedLine),
    /// The data do not fit.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The settings make no job.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A weight took margins out of their range.
    #[error(transparent)]
    Margin(#[from] MarginRangeError),
    /// The cluster does not do what it should.
    #[error(transparent)]
    Cluster(#[from] Error),
    /// The cluster trains something else.
    #[error(
        "this cluster trains: {running}; this worker was started to train: {asked}. Give all workers the same options and data; another job needs a cluster of its own"
    )]
    OtherJob {
        /// What the first worker was started for.
        running: String,
        /// What this one was started for.
        asked: String,
    },
    /// The servers hold no such job.
    #[error("the tables of this cluster were not written by this job")]
    OtherTables,
    /// The cluster runs another number of parts.
    #[error(
        "this worker was given part {lane}, but its job has only {parts}; give the cluster and the job the same number"
    )]
    OtherParts {
        /// The part given.
        lane: u32,
        /// Parts of the job.
        parts: u32,
    },
    /// There is nothing to train on.
    #[error("{0} has no rows")]
    NoRows(String),
    /// A round would be larger than the servers take.
    #[error(
        "{features} features: with {parts} parts, {shards} shards take at most {most}; take more servers or fewer parts, or renumber features that are far apart"
    )]
    TooManyFeatures {
        /// The largest index.
        features: u32,
        /// Parts of the job.
        parts: u32,
        /// Shards of the cluster.
        shards: usize,
        /// Features that they take.
        most: u64,
    },
    /// There are more parts than the data have rows to give.
    #[error("{parts} parts of {rows} rows; take fewer parts")]
    TooManyParts {
        /// Parts asked for.
        parts: u32,
        /// Rows there are.
        rows: u64,
    },
}

/// Why a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// As the plan says.
    Planned(Reason),
    /// A worker was interrupted; the weights are those of the last certificate.
    Interrupted,
}

/// What a worker has at the end of a job.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The weights, the constant's last; the same at every worker.
    pub weights: Vec<f64>,
    /// Why it ended.
    pub ended: Ended,
    /// The last certificate, of these weights.
    pub certificate: Certificate,
    /// Passes, rounds, epochs.
    pub progress: Progress,
    /// Rows of the parts that this worker read.
    pub rows: u64,
    /// Proximal steps by the shard that took them, one per round of a block, since this worker began.
    pub steps: BTreeMap<ShardId, u64>,
}

/// What a certificate showed, for whoever watches.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// The certificate.
    pub certificate: Certificate,
    /// Passes, rounds, epochs so far.
    pub progress: Progress,
    /// Rows in all parts.
    pub rows: u64,
}

/// Runs this worker's lanes to the end of the job. `watch` is told every certificate; `interrupt`, set at any time, ends the
/// job for all workers at its next certificate.
///
/// Memory: the parts held, and a few vectors as long as the weights. Blocks for as long as the job takes.
///
/// # Errors
/// [`TrainError`].
pub fn train<E, D>(
    client: &Client<E, D>,
    job: &Job,
    mapping: &Mapping,
    interrupt: &AtomicBool,
    mut watch: impl FnMut(&Seen),
) -> Result<Outcome, TrainError>
where
    E: Endpoint + Send + 'static,
    D: Dialer + Send + 'static,
{
    let survey = survey(mapping)?;
    if survey.rows == 0 {
        return Err(TrainError::NoRows(mapping.name().into()));
    }
    if survey.rows < u64::from(job.parts) {
        return Err(TrainError::TooManyParts { parts: job.parts, rows: survey.rows });
    }
    let settings = tables::settings(job, &survey);
    settings.check()?;
    agree(client, job, &survey)?;
    let tables = Tables::new(client, job, &survey, &settings)?;
    client.wait_for_lanes(job.deadline)?;
    let mut worker = Worker::new(client, tables, job, mapping, survey, settings, interrupt);
    let mut progress = Progress::new();
    if let Some(standing) = worker.stands()? {
        progress = standing.progress;
        worker.walk_from(&standing)?;
    } else {
        worker.take_over()?;
    }
    loop {
        let (certificate, decision, interrupted) = worker.certify(&mut progress)?;
        watch(&Seen { certificate, progress, rows: survey.rows });
        let ended = match decision {
            Decision::Run(_) if interrupted => Ended::Interrupted,
            Decision::Stop(reason) => Ended::Planned(reason),
            Decision::Run(epoch) => {
                worker.keep(&progress, epoch.jump_factor)?;
                worker.jump(epoch.jump_factor)?;
                worker.run(&Arc::new(epoch))?;
                continue;
            }
        };
        worker.until(|worker| worker.client.flush(worker.job.deadline))?;
        // The result is there; whoever is lost from here on leaves nothing to be done.
        client.ignore_lanes();
        let (weights, rows, steps) = (worker.replica.weights().to_vec(), worker.rows, worker.steps);
        return Ok(Outcome { weights, ended, certificate, progress, rows, steps });
    }
}

/// The first worker says what the job is; the others compare. Options that differ would give plans that differ.
fn agree<E, D>(client: &Client<E, D>, job: &Job, survey: &Survey) -> Result<(), TrainError>
where
    E: Endpoint + Send + 'static,
    D: Dialer + Send + 'static,
{
    let Job { lambda, gap, delay, seed, parts, segments, passes_max, .. } = job;
    let Survey { rows, features, checksum, .. } = survey;
    let asked = format!(
        "{rows} rows, {features} features, checksum {checksum:016x}, lambda {lambda}, gap {gap}, delay {delay}, seed {seed}, \
         {parts} parts, {segments} segments, at most {passes_max} passes"
    );
    client.post("lr/job", asked.clone().into_bytes())?;
    match client.notice("lr/job")? {
        Some(running) if running != asked.as_bytes() => {
            Err(TrainError::OtherJob { running: String::from_utf8_lossy(&running).into_owned(), asked })
        }
        _ => Ok(()),
    }
}

impl<E, D> Worker<'_, E, D>
where
    E: Endpoint + Send + 'static,
    D: Dialer + Send + 'static,
{
    /// Where the job stands, if it has begun. No lane is brought up to date before that is known.
    fn stands(&mut self) -> Result<Option<Standing>, TrainError> {
        let Tables { weights, standing, .. } = &self.tables;
        loop {
            self.client.attend();
            let read =
                |table: &Table<f64, E, D>| table.pull_at(0..table.spec().len, 0)?.wait(self.job.deadline);
            // Every shard that holds weights hears of the new holder by the first pull; so none can be past what the second
            // one brings.
            match read(weights).and_then(|_| read(standing)) {
                Err(Error::LanesChanged | Error::Task(TaskError::Fenced(_))) => {}
                row => return Ok(Standing::from_row(&row?)),
            }
        }
    }

    /// Begins with the jump of the last epoch that is kept, and goes through its blocks.
    fn walk_from(&mut self, standing: &Standing) -> Result<(), TrainError> {
        self.round = standing.jump_round;
        self.client.set_delay(Some(0));
        self.enter(Phase::Jump { factor: standing.jump_factor });
        self.take_over()?;
        self.jump(standing.jump_factor)?;
        let gradient = self.tables.gradient_of(standing.progress.epochs - 1).clone();
        let gradient = self.read(&gradient, self.settings.weights_len as u64)?;
        let (settings, anchors) = (&self.settings, self.replica.anchors());
        let epoch = Epoch::again(settings, &standing.progress, anchors, &gradient, standing.jump_factor)
            .ok_or(TrainError::OtherTables)?;
        self.run(&Arc::new(epoch))
    }

    /// The certificate's rounds. Everybody has the same weights before, and comes to the same decision.
    fn certify(&mut self, progress: &mut Progress) -> Result<(Certificate, Decision, bool), TrainError> {
        // Quiescent: whatever is on its way is waited for.
        self.client.set_delay(Some(0));
        self.until(|worker| worker.client.flush(worker.job.deadline))?;
        self.enter(Phase::Gradient { certificate: progress.epochs });
        self.play(|_| Ok(()))?;
        let gradient = self.tables.gradient_of(progress.epochs).clone();
        let gradient = self.read(&gradient, self.settings.weights_len as u64)?;
        let losses = self.read(&self.tables.losses.clone(), 1)?;
        let losses: [f64; LOSSES] = std::array::from_fn(|index| losses[index]);

        self.enter(Phase::Dual { scale: dual_scale(&gradient, self.settings.lambda) });
        self.play(|_| Ok(()))?;
        let dual = self.read(&self.tables.dual.clone(), 1)?;
        let evidence = self.replica.evidence(&gradient, &losses, dual[0]);
        let (certificate, decision) = decide(&self.settings, progress, &evidence);
        Ok((certificate, decision, dual[1] > 0.0))
    }

    /// The round that keeps the decision for workers that come later. Nobody jumps before it is there.
    fn keep(&mut self, progress: &Progress, jump_factor: f64) -> Result<(), TrainError> {
        let standing = Standing { progress: *progress, jump_factor, jump_round: self.round + 1 };
        self.enter(Phase::Keep { standing });
        self.play(|_| Ok(()))?;
        self.read(&self.tables.standing.clone(), 1).map(drop)
    }

    /// The round of the jump: the servers move every weight along its line, by the factor in the frame.
    fn jump(&mut self, factor: f64) -> Result<(), TrainError> {
        self.enter(Phase::Jump { factor });
        self.play(|_| Ok(()))?;
        let rows = self.read(&self.tables.weights.clone(), self.settings.weights_len as u64)?;
        let (rows, _) = rows.as_chunks::<ROW>();
        let (weights, anchors): (Vec<f64>, Vec<f64>) =
            rows.iter().map(|&[weight, anchor]| (weight, anchor)).unzip();
        // The worker's own jump gives the same bits and costs less than starting from what was pulled.
        self.replica.jump(factor)?;
        if self.replica.weights() != weights || self.replica.anchors() != anchors {
            self.replica.restore(&weights, &anchors)?;
        }
        Ok(())
    }

    /// The rounds of an epoch's blocks: each computed from weights that miss the last `delay` rounds at most.
    fn run(&mut self, epoch: &Arc<Epoch>) -> Result<(), TrainError> {
        self.client.set_delay(Some(Round::try_from(epoch.delay).unwrap_or(Round::MAX)));
        self.enter(Phase::Blocks { epoch: Arc::clone(epoch) });
        let mut pulls: VecDeque<Pulled<E, D>> = VecDeque::new();
        let mut received = 0;
        for round in 0..epoch.order.len() {
            self.receive(epoch, &mut pulls, &mut received, epoch.rounds_needed(round))?;
            self.play(|worker| {
                let block = epoch.block(round);
                let range = u64::from(block.range.start)..u64::from(block.range.end);
                if let Some(owner) = worker.tables.weights.owner(range.start) {
                    *worker.steps.entry(owner).or_insert(0) += 1;
                }
                pulls.push_back(worker.pull(&worker.tables.weights.clone(), range, worker.round + 1)?);
                Ok(())
            })?;
        }
        self.receive(epoch, &mut pulls, &mut received, epoch.order.len())
    }

    /// Takes in the weights of all rounds below `until`, and of later ones that are there already, in order.
    fn receive(
        &mut self,
        epoch: &Epoch,
        pulls: &mut VecDeque<Pulled<E, D>>,
        received: &mut usize,
        until: usize,
    ) -> Result<(), TrainError> {
        while let Some(pull) = pulls.pop_front_if(|pull| *received < until || pull.is_done()) {
            let rows = self.values(pull)?;
            let (rows, _) = rows.as_chunks::<ROW>();
            let block = epoch.block(*received);
            let weight = |&feature: &u32| rows[(feature - block.range.start) as usize][0];
            let weights: Vec<f64> = block.features.iter().map(weight).collect();
            self.replica.receive(&block.features, &weights)?;
            *received += 1;
        }
        Ok(())
    }
}
