//! Knows: the distributed loop of sparse L1 logistic regression: which table gets what in which round.
//! Knows not: how a lane computes ([`crate::lane`]), what comes next ([`crate::plan`]), how anything travels.
//! Called by: `rangefold train lr`, once per worker.
//! Paper: OSDI'14 §5.1, Algorithm 3.
//!
//! Rounds of an epoch that begins at round c, with the tables they touch:
//!
//! | round | every lane pushes | then pulls, at least as of |
//! | ----- | ----------------- | -------------------------- |
//! | c | its gradient and its losses | both, c + 1 |
//! | c + 1 | its part of the dual value | that, c + 2; everybody decides alike |
//! | c + 2 | (one lane) nothing, with the jump's factor | the weights, c + 3 |
//! | c + 3 + r | gradient and curvature of block r | the block, c + 4 + r |
//!
//! All tables are aggregated by rounds, so each round is applied once, whoever ran its lanes. A round of a block touches one
//! segment: it is applied whole or not at all, so a lane that is done again by another worker meets the weights that the
//! first one met. The rounds of a certificate leave the weights alone, with the same effect.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rangefold_proto::{Aggregation, ElementType, Member, Round, ShardId, TableSpec, UpdateFunction};
use rangefold_transport::Endpoint;
use rangefold_workers::driver::Dialer;
use rangefold_workers::{Client, Error, PullTicket, Table, Values};

use crate::certificate::{Certificate, dual_scale};
use crate::lane::Lane;
use crate::libsvm::MalformedLine;
use crate::mapping::Mapping;
use crate::margin::MarginRangeError;
use crate::part::{LoadError, Part, Survey, cut, survey};
use crate::plan::{Decision, Epoch, LOSSES, Progress, Reason, Settings, SettingsError, decide};
use crate::replica::Replica;

/// Elements of a row of the table of weights: weight and anchor.
const ROW: usize = 2;

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
    /// The job has begun without this worker.
    #[error(
        "the job on this cluster has begun; a worker cannot join in its middle, and a second job needs a cluster of its own"
    )]
    Running,
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
    /// Proximal steps by the shard that took them: one per round of a block.
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

/// The tables of a job.
struct Tables<E: Endpoint, D: Dialer> {
    weights: Table<f64, E, D>,
    gradient: Table<f64, E, D>,
    losses: Table<f64, E, D>,
    /// Dual value, and how many workers were interrupted.
    dual: Table<f64, E, D>,
}

/// What the rounds that are not applied yet consist of, for a lane that has to do them again.
#[derive(Clone)]
enum Phase {
    /// The round of gradients and losses.
    Gradient,
    /// The round of dual values, at this scale.
    Dual { scale: f64 },
    /// The round of the jump.
    Jump { factor: f64 },
    /// The rounds of an epoch's blocks, the first of them at this round of the job.
    Blocks { first: Round, epoch: Arc<Epoch> },
}

struct Worker<'a, E: Endpoint, D: Dialer> {
    client: &'a Client<E, D>,
    tables: Tables<E, D>,
    job: &'a Job,
    mapping: &'a Mapping,
    survey: Survey,
    settings: Settings,
    /// The lanes in `replica`, in its order.
    members: Vec<Member>,
    replica: Replica,
    /// The job's round: all lanes held have closed the rounds below it.
    round: Round,
    phase: Phase,
    interrupt: &'a AtomicBool,
    rows: u64,
    steps: BTreeMap<ShardId, u64>,
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
    if survey.rows < u64::from(job.parts) {
        return Err(TrainError::TooManyParts { parts: job.parts, rows: survey.rows });
    }
    let settings = settings(job, &survey);
    settings.check()?;
    let tables = tables(client, job, &settings)?;
    client.wait_for_lanes(job.deadline)?;
    if client.attend().iter().any(|member| member.first_round > 0) {
        return Err(TrainError::Running);
    }
    let replica = Replica::new(settings.weights_len, Vec::new());
    let phase = Phase::Gradient;
    let (members, round, rows, steps) = (Vec::new(), 0, 0, BTreeMap::new());
    let mut worker = Worker {
        client,
        tables,
        job,
        mapping,
        survey,
        settings,
        members,
        replica,
        round,
        phase,
        interrupt,
        rows,
        steps,
    };
    worker.take_over()?;
    let mut progress = Progress::new();
    loop {
        let (certificate, decision, interrupted) = worker.certify(&mut progress)?;
        watch(&Seen { certificate, progress, rows: survey.rows });
        let ended = match decision {
            Decision::Run(_) if interrupted => Ended::Interrupted,
            Decision::Stop(reason) => Ended::Planned(reason),
            Decision::Run(epoch) => {
                worker.jump(&epoch)?;
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

fn settings(job: &Job, survey: &Survey) -> Settings {
    let weights_len = survey.weights_len();
    let mut segments = usize::from(job.segments.max(1));
    while segments > 1 && segments > weights_len {
        segments /= 2;
    }
    Settings {
        lambda: job.lambda,
        gap: job.gap,
        delay: job.delay as usize,
        seed: job.seed,
        weights_len,
        segment_len: weights_len.div_ceil(segments),
        passes_max: job.passes_max,
    }
}

fn tables<E, D>(client: &Client<E, D>, job: &Job, settings: &Settings) -> Result<Tables<E, D>, Error>
where
    E: Endpoint + Send + 'static,
    D: Dialer + Send + 'static,
{
    let segments = settings.weights_len.div_ceil(settings.segment_len).next_power_of_two();
    // Segments of equal length: keys above the weights are there for that alone.
    let len = (segments * settings.segment_len) as u64;
    let table = |name: &str, len: u64, width: usize, update: UpdateFunction| {
        let mut spec = TableSpec::dense(name, ElementType::F64, len, update);
        spec.width = u32::try_from(width).unwrap_or(u32::MAX);
        spec.aggregation = Aggregation::Round;
        spec.segments = spec.segments.min(job.segments.max(1));
        spec
    };
    let mut weights = table("lr/weights", len, ROW, UpdateFunction::ProximalL1);
    weights.segments = u16::try_from(segments).unwrap_or(u16::MAX);
    Ok(Tables {
        weights: client.table(&weights)?,
        gradient: client.table(&table(
            "lr/gradient",
            settings.weights_len as u64,
            1,
            UpdateFunction::Assign,
        ))?,
        losses: client.table(&table("lr/losses", 1, LOSSES, UpdateFunction::Assign))?,
        dual: client.table(&table("lr/dual", 1, 2, UpdateFunction::Assign))?,
    })
}

impl<E, D> Worker<'_, E, D>
where
    E: Endpoint + Send + 'static,
    D: Dialer + Send + 'static,
{
    /// Waits for something; whenever lanes come or go meanwhile, does what they need and waits on.
    fn until<R>(&mut self, mut wait: impl FnMut(&mut Self) -> Result<R, Error>) -> Result<R, TrainError> {
        loop {
            match wait(self) {
                Err(Error::LanesChanged) => self.take_over()?,
                outcome => return Ok(outcome?),
            }
        }
    }

    //= protocol.md T10 (replace)
    /// Lets go of lanes that were given to others, and brings lanes that were given to this worker to where the job stands.
    ///
    /// Rounds that are applied already need nothing but to be closed: their contributions are in. Those that are not
    /// consist of the present phase, computed from the present weights. With delay 0 that is one round, and the weights
    /// are those that the former holder saw, so its contribution is made again to the last bit.
    fn take_over(&mut self) -> Result<(), TrainError> {
        let held = self.client.attend();
        let same = |a: &Member, b: &Member| (a.lane, a.incarnation) == (b.lane, b.incarnation);
        for index in (0..self.members.len()).rev() {
            if !held.iter().any(|member| same(member, &self.members[index])) {
                self.members.remove(index);
                self.replica.remove(index);
            }
        }
        for member in held {
            if self.members.iter().any(|known| same(known, &member)) {
                continue;
            }
            if member.lane.0 >= self.job.parts {
                return Err(TrainError::OtherParts { lane: member.lane.0, parts: self.job.parts });
            }
            let ranges = cut(self.mapping.bytes(), self.job.parts as usize);
            let part =
                Part::load(self.mapping, ranges[member.lane.0 as usize].clone(), self.survey.features)?;
            self.rows += part.labels.len() as u64;
            self.replica.add(Lane::new(part))?;
            self.members.push(member);
            self.catch_up(self.members.len() - 1)?;
        }
        Ok(())
    }

    /// Brings a lane from its first round to the job's.
    fn catch_up(&mut self, index: usize) -> Result<(), TrainError> {
        let member = self.members[index];
        // The oldest round that may not be applied everywhere.
        let live = match &self.phase {
            Phase::Blocks { first, epoch } => {
                let delay = Round::try_from(epoch.delay).unwrap_or(Round::MAX);
                self.round.saturating_sub(delay.saturating_add(1)).max(*first)
            }
            _ => self.round.saturating_sub(1),
        };
        for round in member.first_round..self.round {
            if round >= live {
                self.contribute(index, round)?;
            }
            self.client.advance_lane(member.lane)?;
        }
        Ok(())
    }

    /// Pushes one lane's part of a round.
    fn contribute(&mut self, index: usize, round: Round) -> Result<(), TrainError> {
        let lane = self.members[index].lane;
        let keys = self.settings.weights_len as u64;
        match self.phase.clone() {
            Phase::Gradient => {
                let mut gradient = vec![0.0; self.settings.weights_len];
                self.replica.lanes()[index].full_gradient(&mut gradient);
                let _ = self.tables.gradient.push_as(lane, 0..keys, &gradient, &[])?;
                let _ = self.tables.losses.push_as(lane, 0..1, &self.replica.losses(index), &[])?;
            }
            Phase::Dual { scale } => {
                let dual = self.replica.lanes()[index].dual(scale);
                let interrupted = f64::from(u8::from(self.interrupt.load(Ordering::Relaxed)));
                let _ = self.tables.dual.push_as(lane, 0..1, &[dual, interrupted], &[])?;
            }
            Phase::Jump { factor } if lane.0 == 0 => {
                let nothing = vec![0.0; self.settings.weights_len * ROW];
                let _ = self.tables.weights.push_as(lane, 0..keys, &nothing, &[factor])?;
            }
            Phase::Jump { .. } => {}
            Phase::Blocks { first, epoch } => {
                let round = (round - first) as usize;
                let block = epoch.block(round);
                let mut compact = vec![0.0; block.features.len() * ROW];
                let mut dense = vec![0.0; block.range.len() * ROW];
                self.replica.contribute(index, &epoch, round, &mut compact);
                block.spread(&compact, ROW, &mut dense);
                let range = u64::from(block.range.start)..u64::from(block.range.end);
                let arguments = [epoch.step.lambda, epoch.step.damping];
                let _ = self.tables.weights.push_as(lane, range, &dense, &arguments)?;
            }
        }
        Ok(())
    }

    /// A round in which every lane contributes to the present phase: pushes, closes, and `before_close` in between.
    fn play(
        &mut self,
        before_close: impl FnOnce(&mut Self) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        for index in 0..self.members.len() {
            self.contribute(index, self.round)?;
        }
        before_close(self)?;
        for member in &self.members {
            match self.client.advance_lane(member.lane) {
                // Given to another in this moment; the next wait says so.
                Err(Error::Issue(_)) => {}
                outcome => drop(outcome?),
            }
        }
        self.round += 1;
        self.until(|worker| worker.client.wait_for_round(worker.job.deadline))
    }

    /// Reads a range as of the present round.
    fn read(&mut self, table: &Table<f64, E, D>, keys: u64) -> Result<Values<f64>, TrainError> {
        let mut pull = table.pull_at(0..keys, self.round)?;
        self.until(|worker| pull.wait_once(worker.job.deadline))
    }

    /// The certificate's rounds. Everybody has the same weights before, and comes to the same decision.
    fn certify(&mut self, progress: &mut Progress) -> Result<(Certificate, Decision, bool), TrainError> {
        // Quiescent: whatever is on its way is waited for.
        self.client.set_delay(Some(0));
        self.until(|worker| worker.client.flush(worker.job.deadline))?;
        self.phase = Phase::Gradient;
        self.play(|_| Ok(()))?;
        let gradient = self.read(&self.tables.gradient.clone(), self.settings.weights_len as u64)?;
        let losses = self.read(&self.tables.losses.clone(), 1)?;
        let losses: [f64; LOSSES] = std::array::from_fn(|index| losses[index]);

        self.phase = Phase::Dual { scale: dual_scale(&gradient, self.settings.lambda) };
        self.play(|_| Ok(()))?;
        let dual = self.read(&self.tables.dual.clone(), 1)?;
        let evidence = self.replica.evidence(&gradient, &losses, dual[0]);
        let (certificate, decision) = decide(&self.settings, progress, &evidence);
        Ok((certificate, decision, dual[1] > 0.0))
    }

    /// The round of the jump: the servers move every weight along its line, by the factor in the frame.
    fn jump(&mut self, epoch: &Epoch) -> Result<(), TrainError> {
        self.phase = Phase::Jump { factor: epoch.jump_factor };
        self.play(|_| Ok(()))?;
        let rows = self.read(&self.tables.weights.clone(), self.settings.weights_len as u64)?;
        let (rows, _) = rows.as_chunks::<ROW>();
        let (weights, anchors): (Vec<f64>, Vec<f64>) =
            rows.iter().map(|&[weight, anchor]| (weight, anchor)).unzip();
        // The worker's own jump gives the same bits and costs less than starting from what was pulled.
        self.replica.jump(epoch)?;
        if self.replica.weights() != weights || self.replica.anchors() != anchors {
            self.replica.restore(&weights, &anchors)?;
        }
        Ok(())
    }

    /// The rounds of an epoch's blocks: each computed from weights that miss the last `delay` rounds at most.
    fn run(&mut self, epoch: &Arc<Epoch>) -> Result<(), TrainError> {
        self.client.set_delay(Some(Round::try_from(epoch.delay).unwrap_or(Round::MAX)));
        self.phase = Phase::Blocks { first: self.round, epoch: Arc::clone(epoch) };
        let mut pulls: VecDeque<PullTicket<f64, E, D>> = VecDeque::new();
        let mut received = 0;
        for round in 0..epoch.order.len() {
            self.receive(epoch, &mut pulls, &mut received, epoch.rounds_needed(round))?;
            self.play(|worker| {
                let block = epoch.block(round);
                let range = u64::from(block.range.start)..u64::from(block.range.end);
                if let Some(owner) = worker.tables.weights.owner(range.start) {
                    *worker.steps.entry(owner).or_insert(0) += 1;
                }
                pulls.push_back(worker.tables.weights.pull_at(range, worker.round + 1)?);
                Ok(())
            })?;
        }
        self.receive(epoch, &mut pulls, &mut received, epoch.order.len())
    }

    /// Takes in the weights of all rounds below `until`, and of later ones that are there already, in order.
    fn receive(
        &mut self,
        epoch: &Epoch,
        pulls: &mut VecDeque<PullTicket<f64, E, D>>,
        received: &mut usize,
        until: usize,
    ) -> Result<(), TrainError> {
        while let Some(mut pull) = pulls.pop_front_if(|pull| *received < until || pull.is_done()) {
            let rows = self.until(|worker| pull.wait_once(worker.job.deadline))?;
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
