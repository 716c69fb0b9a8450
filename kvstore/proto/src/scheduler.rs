//! The task scheduler of a job: cuts work into parts, hands each part's lane to one worker, takes it back from the dead.
//! Knows workers, lanes, rounds reported and the view; not data, not tables. Driven like the manager.
//! Source: OSDI'14 §3.4 ("a scheduler node"), §4.6; protocol.md §1, T7, T8, T10 (*replace*), N4.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

use crate::id::{Lane, WorkerId};
use crate::time::{Incarnation, Nanos, Round};
use crate::view::{Member, View};

/// What a job needs to know before it starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JobSpec {
    /// Workers that must have joined before lanes are handed out.
    pub workers: u32,
    /// Parts of the data, each a lane.
    pub parts: u32,
    /// A worker that was not heard of for so long is taken for dead, in nanoseconds.
    pub silence_ns: u64,
}

/// What the scheduler says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Order {
    /// To one worker: run these lanes from now on, besides those it has.
    Run {
        /// To whom.
        worker: WorkerId,
        /// Which lanes, under which incarnation, from which round.
        lanes: Vec<Member>,
    },
    /// To all workers and servers: the job's view.
    View(View),
    /// To one worker: you were given up; stop.
    Stop {
        /// To whom.
        worker: WorkerId,
    },
    /// To all workers: everybody has reached the barrier of this number.
    Barrier(u64),
}

/// Why a worker cannot join or a notice cannot be posted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SchedulerError {
    /// All workers are there.
    #[error(
        "the job has its {0} workers already and no part of the data is without one; this worker is one too many"
    )]
    Full(u32),
    /// Not one of this job's workers, or given up.
    #[error(
        "{0} is not a worker of this job (any more): it was silent for too long, or its process was replaced"
    )]
    Unknown(WorkerId),
    /// A notice is too long, or there are too many.
    #[error("notice `{name}` of {bytes} bytes is over the limit of {max} bytes in all")]
    NoticeTooLong {
        /// Its name.
        name: String,
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
}

/// Bytes of all notices of a job.
pub const NOTICE_BYTES_MAX: usize = 8 << 20;

#[derive(Clone, Debug)]
struct Worker {
    heard: Nanos,
    /// Barriers reached.
    barriers: u64,
}

#[derive(Clone, Copy, Debug)]
struct LaneEntry {
    holder: Option<WorkerId>,
    incarnation: Incarnation,
    first_round: Round,
    /// Rounds whose pushes are all acknowledged, as its holder last said.
    acknowledged: Round,
}

/// A job's scheduler.
#[derive(Clone, Debug)]
pub struct SchedulerCore {
    spec: JobSpec,
    workers: BTreeMap<WorkerId, Worker>,
    next_worker: u32,
    lanes: Vec<LaneEntry>,
    started: bool,
    view: View,
    barriers: u64,
    notices: BTreeMap<String, Vec<u8>>,
    orders: VecDeque<Order>,
}

impl SchedulerCore {
    /// A job that waits for its workers.
    #[must_use]
    pub fn new(spec: JobSpec) -> Self {
        let lane = LaneEntry { holder: None, incarnation: Incarnation(0), first_round: 0, acknowledged: 0 };
        Self {
            spec,
            workers: BTreeMap::new(),
            next_worker: 0,
            lanes: alloc::vec![lane; spec.parts as usize],
            started: false,
            view: View::default(),
            barriers: 0,
            notices: BTreeMap::new(),
            orders: VecDeque::new(),
        }
    }

    /// The same for the job after this one: no name is given twice, so that a late word of the old job's worker is nobody's.
    #[must_use]
    pub fn succeeded_by(&self, spec: JobSpec) -> Self {
        Self { next_worker: self.next_worker, ..Self::new(spec) }
    }

    /// The view as it is now.
    #[must_use]
    pub const fn view(&self) -> &View {
        &self.view
    }

    /// Workers that are there now.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Whether all workers came and lanes were handed out.
    #[must_use]
    pub const fn started(&self) -> bool {
        self.started
    }

    /// Barriers that everybody has reached.
    #[must_use]
    pub const fn barriers(&self) -> u64 {
        self.barriers
    }

    /// The lanes a worker holds.
    pub fn lanes_of(&self, worker: WorkerId) -> impl Iterator<Item = Lane> + '_ {
        (0u32..)
            .zip(&self.lanes)
            .filter(move |(_, entry)| entry.holder == Some(worker))
            .map(|(lane, _)| Lane(lane))
    }

    /// What was posted under a name.
    #[must_use]
    pub fn notice(&self, name: &str) -> Option<&[u8]> {
        self.notices.get(name).map(Vec::as_slice)
    }

    /// The next order to carry out.
    pub fn poll_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }

    /// A worker joins. The last one expected starts the job. A later one, in the place of one that is gone, takes over lanes
    /// without a holder, or else its share of the lanes that others took over.
    ///
    /// # Errors
    /// [`SchedulerError::Full`].
    pub fn join(&mut self, now: Nanos) -> Result<WorkerId, SchedulerError> {
        let orphans = self.lanes.iter().any(|entry| entry.holder.is_none());
        if self.workers.len() >= self.spec.workers as usize && !(self.started && orphans) {
            return Err(SchedulerError::Full(self.spec.workers));
        }
        let worker = WorkerId(self.next_worker);
        self.next_worker += 1;
        self.workers.insert(worker, Worker { heard: now, barriers: self.barriers });
        if self.started {
            self.relieve(worker);
            self.hand_out();
        } else if self.workers.len() == self.spec.workers as usize {
            self.started = true;
            self.hand_out();
        }
        Ok(worker)
    }

    /// A worker says how far its lanes are: rounds whose pushes are all acknowledged. A report is a sign of life.
    ///
    /// # Errors
    /// [`SchedulerError::Unknown`] for a worker that was given up.
    pub fn report(
        &mut self,
        now: Nanos,
        worker: WorkerId,
        acknowledged: &[(Lane, Round)],
    ) -> Result<(), SchedulerError> {
        self.workers.get_mut(&worker).ok_or(SchedulerError::Unknown(worker))?.heard = now;
        for &(lane, rounds) in acknowledged {
            if let Some(entry) =
                self.lanes.get_mut(lane.0 as usize).filter(|entry| entry.holder == Some(worker))
            {
                entry.acknowledged = entry.acknowledged.max(rounds);
            }
        }
        Ok(())
    }

    /// A worker is gone: it said so, its connection broke, or its process was seen to end. Its lanes go to others.
    pub fn leave(&mut self, worker: WorkerId) {
        if self.workers.remove(&worker).is_none() {
            return;
        }
        for entry in self.lanes.iter_mut().filter(|entry| entry.holder == Some(worker)) {
            entry.holder = None;
        }
        self.orders.push_back(Order::Stop { worker });
        if self.started {
            self.hand_out();
        }
        self.release_barrier();
    }

    /// Gives up workers that were silent for too long. Says when to come back.
    pub fn tick(&mut self, now: Nanos) -> Option<Nanos> {
        let silent = |worker: &Worker| worker.heard.after(self.spec.silence_ns) <= now;
        let gone: Vec<WorkerId> =
            self.workers.iter().filter(|(_, worker)| silent(worker)).map(|(&id, _)| id).collect();
        for worker in gone {
            self.leave(worker);
        }
        self.workers.values().map(|worker| worker.heard.after(self.spec.silence_ns)).min()
    }

    /// A worker has reached its next barrier. When all have, `Order::Barrier` goes to everybody.
    ///
    /// # Errors
    /// [`SchedulerError::Unknown`].
    pub fn barrier(&mut self, worker: WorkerId) -> Result<(), SchedulerError> {
        self.workers.get_mut(&worker).ok_or(SchedulerError::Unknown(worker))?.barriers += 1;
        self.release_barrier();
        Ok(())
    }

    fn release_barrier(&mut self) {
        // Workers that have not joined yet have not reached it.
        if !self.started {
            return;
        }
        while !self.workers.is_empty() && self.workers.values().all(|worker| worker.barriers > self.barriers)
        {
            self.barriers += 1;
            self.orders.push_back(Order::Barrier(self.barriers));
        }
    }

    /// Posts a notice that every worker can read, also one that comes later. The first of a name stays.
    ///
    /// # Errors
    /// [`SchedulerError::NoticeTooLong`].
    pub fn post(&mut self, name: &str, content: Vec<u8>) -> Result<(), SchedulerError> {
        if self.notices.contains_key(name) {
            return Ok(());
        }
        let held: usize = self.notices.iter().map(|(name, content)| name.len() + content.len()).sum();
        if held + name.len() + content.len() > NOTICE_BYTES_MAX {
            return Err(SchedulerError::NoticeTooLong {
                name: name.into(),
                bytes: content.len(),
                max: NOTICE_BYTES_MAX,
            });
        }
        self.notices.insert(name.into(), content);
        Ok(())
    }

    /// Takes lanes from those with the most until a newcomer could have as many as they keep.
    fn relieve(&mut self, newcomer: WorkerId) {
        let mut free = self.lanes.iter().filter(|entry| entry.holder.is_none()).count();
        loop {
            let loads = self.workers.keys().filter(|&&worker| worker != newcomer);
            let load =
                |worker: WorkerId| self.lanes.iter().filter(|entry| entry.holder == Some(worker)).count();
            let Some((most, worker)) = loads.map(|&worker| (load(worker), worker)).max() else { return };
            if most <= free + 1 {
                return;
            }
            let taken = self.lanes.iter_mut().rev().find(|entry| entry.holder == Some(worker));
            let Some(taken) = taken else { return };
            taken.holder = None;
            free += 1;
        }
    }

    /// Gives every lane without a holder to the worker with the fewest, under a new incarnation.
    //= protocol.md T10 (replace)
    fn hand_out(&mut self) {
        let mut loads: BTreeMap<WorkerId, usize> = self.workers.keys().map(|&worker| (worker, 0)).collect();
        for holder in self.lanes.iter().filter_map(|entry| entry.holder) {
            *loads.entry(holder).or_insert(0) += 1;
        }
        let mut given: BTreeMap<WorkerId, Vec<Member>> = BTreeMap::new();
        for (lane, entry) in (0u32..).zip(&mut self.lanes) {
            if entry.holder.is_some() {
                continue;
            }
            // Ties go to the lowest name, so that a run repeats.
            let Some((&worker, load)) = loads.iter_mut().min_by_key(|(worker, load)| (**load, **worker))
            else {
                return;
            };
            *load += 1;
            entry.holder = Some(worker);
            entry.incarnation.0 += 1;
            // Rounds below are applied everywhere, so nobody needs them again. Rounds from here on may have been
            // contributed to by the former holder; they are done again and count once (protocol.md T10).
            entry.first_round = entry.acknowledged;
            let member =
                Member { lane: Lane(lane), incarnation: entry.incarnation, first_round: entry.first_round };
            given.entry(worker).or_default().push(member);
        }
        if given.is_empty() {
            return;
        }
        self.view = View { number: self.view.number + 1, members: self.members() };
        self.orders.push_back(Order::View(self.view.clone()));
        self.orders.extend(given.into_iter().map(|(worker, lanes)| Order::Run { worker, lanes }));
    }

    fn members(&self) -> Vec<Member> {
        let member = |(lane, entry): (u32, &LaneEntry)| Member {
            lane: Lane(lane),
            incarnation: entry.incarnation,
            first_round: entry.first_round,
        };
        (0u32..).zip(&self.lanes).map(member).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: JobSpec = JobSpec { workers: 2, parts: 5, silence_ns: 100 };

    fn orders(scheduler: &mut SchedulerCore) -> Vec<Order> {
        core::iter::from_fn(|| scheduler.poll_order()).collect()
    }

    fn started() -> SchedulerCore {
        let mut scheduler = SchedulerCore::new(SPEC);
        assert_eq!(scheduler.join(Nanos(0)), Ok(WorkerId(0)));
        assert_eq!(orders(&mut scheduler), []);
        assert_eq!(scheduler.join(Nanos(0)), Ok(WorkerId(1)));
        scheduler
    }

    //= OSDI'14 §4.6
    //= type=test
    #[test]
    fn every_part_has_one_holder_once_all_workers_are_there() {
        let mut scheduler = started();
        let orders = orders(&mut scheduler);
        assert!(matches!(&orders[0], Order::View(view) if view.number == 1 && view.members.len() == 5));
        let held: Vec<usize> = [0, 1].map(|w| scheduler.lanes_of(WorkerId(w)).count()).into();
        assert_eq!(held, [3, 2]);
        assert_eq!(scheduler.join(Nanos(0)), Err(SchedulerError::Full(2)));
    }

    //= protocol.md T10
    //= type=test
    #[test]
    fn lanes_of_the_dead_go_on_under_a_new_incarnation_from_what_was_acknowledged() {
        let mut scheduler = started();
        orders(&mut scheduler);
        scheduler.report(Nanos(50), WorkerId(0), &[(Lane(0), 7), (Lane(2), 8), (Lane(1), 9)]).unwrap();
        // Expect: worker 1 was last heard of at 0, worker 0 at 50.
        assert_eq!(scheduler.tick(Nanos(99)), Some(Nanos(100)));
        assert_eq!(scheduler.tick(Nanos(100)), Some(Nanos(150)));
        let said = orders(&mut scheduler);
        assert_eq!(said[0], Order::Stop { worker: WorkerId(1) });
        let Order::View(view) = &said[1] else { panic!("{said:?}") };
        assert_eq!(view.number, 2);
        // Lane 1 was not worker 0's to report on.
        let taken: Vec<_> = view.members.iter().map(|m| (m.incarnation.0, m.first_round)).collect();
        assert_eq!(taken, [(1, 0), (2, 0), (1, 0), (2, 0), (1, 0)]);
        assert!(matches!(&said[2], Order::Run { worker: WorkerId(0), lanes } if lanes.len() == 2));
        assert_eq!(scheduler.report(Nanos(101), WorkerId(1), &[]), Err(SchedulerError::Unknown(WorkerId(1))));
        scheduler.leave(WorkerId(0));
        assert_eq!(scheduler.join(Nanos(200)), Ok(WorkerId(2)));
        let first: Vec<_> =
            scheduler.view().members.iter().map(|m| (m.incarnation.0, m.first_round)).collect();
        assert_eq!(first, [(2, 7), (3, 0), (2, 8), (3, 0), (2, 0)]);
    }

    #[test]
    fn a_barrier_waits_for_the_living() {
        let mut scheduler = started();
        orders(&mut scheduler);
        scheduler.barrier(WorkerId(0)).unwrap();
        assert_eq!(orders(&mut scheduler), []);
        scheduler.leave(WorkerId(1));
        assert!(orders(&mut scheduler).contains(&Order::Barrier(1)));
    }

    #[test]
    fn a_barrier_waits_for_workers_that_have_not_joined() {
        let mut scheduler = SchedulerCore::new(SPEC);
        scheduler.join(Nanos(0)).unwrap();
        scheduler.barrier(WorkerId(0)).unwrap();
        assert_eq!(orders(&mut scheduler), []);
        scheduler.join(Nanos(0)).unwrap();
        assert!(!orders(&mut scheduler).contains(&Order::Barrier(1)));
        scheduler.barrier(WorkerId(1)).unwrap();
        assert_eq!(orders(&mut scheduler), [Order::Barrier(1)]);
    }

    #[test]
    fn the_first_notice_of_a_name_stays_and_notices_are_bounded() {
        let mut scheduler = started();
        scheduler.post("plan 0", alloc::vec![1]).unwrap();
        scheduler.post("plan 0", alloc::vec![2]).unwrap();
        assert_eq!(scheduler.notice("plan 0"), Some(&[1][..]));
        let large = alloc::vec![0; NOTICE_BYTES_MAX];
        assert!(matches!(scheduler.post("large", large), Err(SchedulerError::NoticeTooLong { .. })));
    }
}
