//! Knows: the lanes that this worker holds: what each contributes to a round, and how one that comes is brought up to date.
//! Knows not: which phase follows which; how a lane computes ([`crate::lane`]).
//! Called by: the loop in `mod.rs`, for every round.
//! Paper: OSDI'14 §4.6 (lanes of the lost go to others); protocol.md T10 (*replace*).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rangefold_proto::client::TaskError;
use rangefold_proto::{Member, Round, ShardId};
use rangefold_transport::Endpoint;
use rangefold_workers::driver::Dialer;
use rangefold_workers::{Client, Error, PullTicket, Table, Values};

use super::tables::{ROW, Tables};
use super::{Job, TrainError};
use crate::lane::Lane;
use crate::mapping::Mapping;
use crate::part::{Part, Survey, cut};
use crate::plan::{Epoch, Settings};
use crate::replica::Replica;
use crate::standing::Standing;

/// What the rounds that are not applied yet consist of, for a lane that has to do them again.
#[derive(Clone)]
pub(super) enum Phase {
    /// The round of gradients and losses, for the certificate of this number.
    Gradient { certificate: u64 },
    /// The round of dual values, at this scale.
    Dual { scale: f64 },
    /// The round that keeps where the job stands.
    Keep { standing: Standing },
    /// The round of the jump.
    Jump { factor: f64 },
    /// The rounds of an epoch's blocks.
    Blocks { epoch: Arc<Epoch> },
}

/// A pull, and what to ask for again if the lane that asked is taken away.
pub(super) struct Pulled<E: Endpoint, D: Dialer> {
    ticket: PullTicket<f64, E, D>,
    table: Table<f64, E, D>,
    keys: Range<u64>,
    rounds: Round,
}

impl<E: Endpoint + Send + 'static, D: Dialer + Send + 'static> Pulled<E, D> {
    pub(super) fn is_done(&self) -> bool {
        self.ticket.is_done()
    }
}

pub(super) struct Worker<'a, E: Endpoint, D: Dialer> {
    pub(super) client: &'a Client<E, D>,
    pub(super) tables: Tables<E, D>,
    pub(super) job: &'a Job,
    mapping: &'a Mapping,
    survey: Survey,
    pub(super) settings: Settings,
    /// The lanes in `replica`, in its order.
    members: Vec<Member>,
    pub(super) replica: Replica,
    /// The job's round: all lanes held have closed the rounds below it.
    pub(super) round: Round,
    phase: Phase,
    /// The phase's first round. Those below are applied everywhere: a phase begins when the one before has been seen to end.
    phase_round: Round,
    interrupt: &'a AtomicBool,
    pub(super) rows: u64,
    pub(super) steps: BTreeMap<ShardId, u64>,
}

impl<'a, E, D> Worker<'a, E, D>
where
    E: Endpoint + Send + 'static,
    D: Dialer + Send + 'static,
{
    /// A worker at the beginning of a job, with no lane yet.
    pub(super) fn new(
        client: &'a Client<E, D>,
        tables: Tables<E, D>,
        job: &'a Job,
        mapping: &'a Mapping,
        survey: Survey,
        settings: Settings,
        interrupt: &'a AtomicBool,
    ) -> Self {
        Self {
            client,
            tables,
            job,
            mapping,
            survey,
            settings,
            members: Vec::new(),
            replica: Replica::new(settings.weights_len, Vec::new()),
            round: 0,
            phase: Phase::Gradient { certificate: 0 },
            phase_round: 0,
            interrupt,
            rows: 0,
            steps: BTreeMap::new(),
        }
    }

    /// A phase begins: all rounds before it are applied.
    pub(super) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.phase_round = self.round;
    }

    /// Does something that waits or issues; whenever lanes come or go meanwhile, does what they need and tries again.
    pub(super) fn until<R>(
        &mut self,
        mut act: impl FnMut(&mut Self) -> Result<R, Error>,
    ) -> Result<R, TrainError> {
        loop {
            match act(self) {
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
    pub(super) fn take_over(&mut self) -> Result<(), TrainError> {
        // Looked at anew for each lane that came: more may come and go while one is brought up to date.
        loop {
            let held = self.client.attend();
            for index in (0..self.members.len()).rev() {
                if !held.iter().any(|member| same(member, &self.members[index])) {
                    self.members.remove(index);
                    self.replica.remove(index);
                }
            }
            let Some(member) = held.into_iter().find(|member| self.place_of(member).is_none()) else {
                return Ok(());
            };
            if member.lane.0 >= self.job.parts {
                return Err(TrainError::OtherParts { lane: member.lane.0, parts: self.job.parts });
            }
            let ranges = cut(self.mapping.bytes(), self.job.parts as usize);
            let part =
                Part::load(self.mapping, ranges[member.lane.0 as usize].clone(), self.survey.features)?;
            self.rows += part.labels.len() as u64;
            self.replica.add(Lane::new(part))?;
            self.members.push(member);
            self.catch_up(&member)?;
        }
    }

    fn place_of(&self, member: &Member) -> Option<usize> {
        self.members.iter().position(|held| same(held, member))
    }

    /// Brings a lane from its first round to the job's.
    fn catch_up(&mut self, member: &Member) -> Result<(), TrainError> {
        // The oldest round that may not be applied everywhere.
        let delay = match &self.phase {
            Phase::Blocks { epoch } => Round::try_from(epoch.delay).unwrap_or(Round::MAX),
            _ => 0,
        };
        let live = self.round.saturating_sub(delay.saturating_add(1)).max(self.phase_round);
        for round in member.first_round..self.round {
            if round >= live {
                self.contribute(member, round)?;
            }
            self.close(member)?;
        }
        Ok(())
    }

    /// A round in which every lane contributes to the present phase and closes; `pulls` asks for what it will bring.
    pub(super) fn play(
        &mut self,
        pulls: impl FnOnce(&mut Self) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        pulls(self)?;
        let mut done: Vec<Member> = Vec::new();
        // Lanes may come while another pushes. One whose first round is still to come has done this one before it came.
        while let Some(member) =
            self.members.iter().copied().find(|member| {
                member.first_round <= self.round && !done.iter().any(|done| same(done, member))
            })
        {
            self.contribute(&member, self.round)?;
            self.close(&member)?;
            done.push(member);
        }
        self.round += 1;
        self.until(|worker| worker.client.wait_for_round(worker.job.deadline))
    }

    /// Pushes one lane's part of a round; as much of it as is wanted when the lane is given to another meanwhile.
    fn contribute(&mut self, member: &Member, round: Round) -> Result<(), TrainError> {
        let Some(index) = self.place_of(member) else { return Ok(()) };
        let first_lane = member.lane.0 == 0;
        let keys = 0..self.settings.weights_len as u64;
        match self.phase.clone() {
            Phase::Gradient { certificate } => {
                let mut gradient = vec![0.0; self.settings.weights_len];
                self.replica.lanes()[index].full_gradient(&mut gradient);
                let losses = self.replica.losses(index);
                self.push(member, &self.tables.gradient_of(certificate).clone(), keys, &gradient, &[])?;
                self.push(member, &self.tables.losses.clone(), 0..1, &losses, &[])
            }
            Phase::Dual { scale } => {
                let dual = self.replica.lanes()[index].dual(scale);
                let interrupted = f64::from(u8::from(self.interrupt.load(Ordering::Relaxed)));
                self.push(member, &self.tables.dual.clone(), 0..1, &[dual, interrupted], &[])
            }
            Phase::Keep { standing } if first_lane => {
                self.push(member, &self.tables.standing.clone(), 0..1, &standing.to_row(), &[])
            }
            Phase::Jump { factor } if first_lane => {
                let nothing = vec![0.0; self.settings.weights_len * ROW];
                self.push(member, &self.tables.weights.clone(), keys, &nothing, &[factor])
            }
            Phase::Keep { .. } | Phase::Jump { .. } => Ok(()),
            Phase::Blocks { epoch } => {
                let round = (round - self.phase_round) as usize;
                let block = epoch.block(round);
                let mut compact = vec![0.0; block.features.len() * ROW];
                let mut dense = vec![0.0; block.range.len() * ROW];
                self.replica.contribute(index, &epoch, round, &mut compact);
                block.spread(&compact, ROW, &mut dense);
                let range = u64::from(block.range.start)..u64::from(block.range.end);
                let arguments = [epoch.step.lambda, epoch.step.damping];
                self.push(member, &self.tables.weights.clone(), range, &dense, &arguments)
            }
        }
    }

    /// One push of a lane, if it is still held when there is room.
    fn push(
        &mut self,
        member: &Member,
        table: &Table<f64, E, D>,
        keys: Range<u64>,
        values: &[f64],
        arguments: &[f64],
    ) -> Result<(), TrainError> {
        self.as_lane(member, |_| table.push_as(member.lane, keys.clone(), values, arguments).map(drop))
    }

    /// Closes a lane's round, if it is still held.
    fn close(&mut self, member: &Member) -> Result<(), TrainError> {
        self.as_lane(member, |client| client.advance_lane(member.lane).map(drop))
    }

    fn as_lane(
        &mut self,
        member: &Member,
        mut act: impl FnMut(&Client<E, D>) -> Result<(), Error>,
    ) -> Result<(), TrainError> {
        while self.place_of(member).is_some() {
            match act(self.client) {
                Err(Error::LanesChanged) => self.take_over()?,
                outcome => return Ok(outcome?),
            }
        }
        Ok(())
    }

    /// Asks for a range as of a round.
    pub(super) fn pull(
        &mut self,
        table: &Table<f64, E, D>,
        keys: Range<u64>,
        rounds: Round,
    ) -> Result<Pulled<E, D>, TrainError> {
        let ticket = self.until(|_| table.pull_at(keys.clone(), rounds))?;
        Ok(Pulled { ticket, table: table.clone(), keys, rounds })
    }

    /// Waits for what was asked for.
    pub(super) fn values(&mut self, mut pulled: Pulled<E, D>) -> Result<Values<f64>, TrainError> {
        loop {
            match self.until(|worker| pulled.ticket.wait_once(worker.job.deadline)) {
                // The lane in whose name it was asked for was given to another; in the name of one that is held, then.
                Err(TrainError::Cluster(Error::Task(TaskError::Fenced(_)))) => {
                    pulled = self.pull(&pulled.table.clone(), pulled.keys.clone(), pulled.rounds)?;
                }
                outcome => return outcome,
            }
        }
    }

    /// Reads the first keys of a table as of the present round.
    pub(super) fn read(&mut self, table: &Table<f64, E, D>, keys: u64) -> Result<Values<f64>, TrainError> {
        let pulled = self.pull(table, 0..keys, self.round)?;
        self.values(pulled)
    }
}

fn same(one: &Member, other: &Member) -> bool {
    (one.lane, one.incarnation) == (other.lane, other.incarnation)
}
