//! Manager and scheduler of one cluster behind one lock: what every request of the control plane goes through.
//! Knows both cores and who listens; not how messages travel. Held by an embedded cluster and by a scheduler process.
//! Source: OSDI'14 §3 (server manager, scheduler node), §4.5, §4.6; `workers/DESIGN.md` (the control plane).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rangefold_proto::manager::{JoinError, ManagerCore};
use rangefold_proto::scheduler::{JobSpec, Order, SchedulerCore, SchedulerError};
use rangefold_proto::{
    ClusterMap, Lane, Member, Nanos, Round, ServerEntry, ServerId, TableError, TableId, TableSpec, View,
    WorkerId,
};
use rangefold_transport::wait::Clock;

/// What the control plane tells a server or a worker.
#[derive(Clone, PartialEq, Debug, serde::Serialize, serde::Deserialize)]
pub enum News {
    /// The manager's map.
    Map(ClusterMap),
    /// The scheduler's view.
    View(View),
    /// To a worker: lanes to run, besides those it has.
    Run(Vec<Member>),
    /// To a worker: everybody has reached the barrier of this number, counted from the worker's start.
    Barrier(u64),
    /// Given up, or the cluster ends.
    Stop,
}

/// How one server or worker hears of news. Telling never blocks; a listener that cannot take more has ended.
pub trait Listener: Send {
    /// Passes it on.
    fn tell(&self, news: News);
}

/// Parts of a job, at most: as many lanes as a shard with standard limits serves.
pub const LANES_MAX: u32 = rangefold_proto::Limits::standard().lanes_max;

/// Why a server or worker cannot join.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AdmitError {
    /// The manager refuses.
    #[error(transparent)]
    Server(#[from] JoinError),
    /// The scheduler refuses.
    #[error(transparent)]
    Worker(#[from] SchedulerError),
    /// The worker is of another job.
    #[error(
        "this cluster runs a job of {running_workers} workers and {running_parts} parts; the worker that joins wants {workers} and {parts}"
    )]
    OtherJob {
        /// Workers of the running job.
        running_workers: u32,
        /// Its parts.
        running_parts: u32,
        /// What the new one wants.
        workers: u32,
        /// What the new one wants.
        parts: u32,
    },
    /// A rank beyond the job's workers.
    #[error("rank {rank} of {workers} workers: ranks count from 0")]
    Rank {
        /// The rank.
        rank: u32,
        /// Workers of the job.
        workers: u32,
    },
    /// A living worker has the rank.
    #[error("rank {0} is taken by a worker that is there; give each worker a rank of its own")]
    RankTaken(u32),
    /// A job that cannot be.
    #[error(
        "{workers} workers and {parts} parts are no job: there must be a worker, a part for each, and at most {LANES_MAX} parts"
    )]
    Parts {
        /// Workers asked for.
        workers: u32,
        /// Parts asked for.
        parts: u32,
    },
}

struct Seat {
    listener: Box<dyn Listener>,
    /// Barriers that had been reached when the worker joined.
    barriers_before: u64,
    rank: Option<u32>,
}

struct State {
    manager: ManagerCore,
    scheduler: Option<SchedulerCore>,
    job: Option<JobSpec>,
    servers: BTreeMap<ServerId, Box<dyn Listener>>,
    workers: BTreeMap<WorkerId, Seat>,
}

/// The control plane's one place. Its lock is held for a few calls of a core, never across one that waits.
pub struct Coordinator {
    clock: Clock,
    /// Tables are made only when so many servers have joined.
    servers_expected: u32,
    state: Mutex<State>,
}

impl Coordinator {
    /// Nobody has joined. Tables are made only when `servers_expected` servers have.
    #[must_use]
    pub fn new(clock: Clock, servers_expected: u32) -> Self {
        let state = State {
            manager: ManagerCore::new(),
            scheduler: None,
            job: None,
            servers: BTreeMap::new(),
            workers: BTreeMap::new(),
        };
        Self { clock, servers_expected, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock can only come between two calls of a core.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Nanos {
        Nanos(self.clock.now_ns())
    }

    /// A server joins, under the name it would like if that is free. It hears of the map and the view at once.
    ///
    /// # Errors
    /// [`AdmitError::Server`].
    pub fn join_server(
        &self,
        address: String,
        shards: u16,
        host: u64,
        number: Option<u32>,
        listener: impl FnOnce(ServerId) -> Box<dyn Listener>,
    ) -> Result<ServerId, AdmitError> {
        let mut state = self.lock();
        // Its wish first. Where some wish, what others may still wish for is left to them.
        let wished = number.filter(|&number| number < self.servers_expected);
        let first = if number.is_some() { self.servers_expected } else { 0 };
        let is_free = |server: &ServerId| state.manager.map().server(*server).is_none();
        let Some(server) = wished.into_iter().chain(first..).map(ServerId).find(is_free) else {
            unreachable!("a map has fewer servers than there are names")
        };
        state.manager.join(ServerEntry { server, address, shards, host })?;
        let listener = listener(server);
        if let Some(scheduler) = &state.scheduler {
            listener.tell(News::View(scheduler.view().clone()));
        }
        state.servers.insert(server, listener);
        state.spread_map();
        Ok(server)
    }

    /// A worker joins. The first one names the job; all others must name the same. `rank`, which of them it is, is checked where
    /// it is known.
    ///
    /// # Errors
    /// [`AdmitError`].
    pub fn join_worker(
        &self,
        job: JobSpec,
        rank: Option<u32>,
        listener: impl FnOnce(WorkerId) -> Box<dyn Listener>,
    ) -> Result<WorkerId, AdmitError> {
        let mut state = self.lock();
        match state.job {
            Some(running) if (running.workers, running.parts) != (job.workers, job.parts) => {
                return Err(AdmitError::OtherJob {
                    running_workers: running.workers,
                    running_parts: running.parts,
                    workers: job.workers,
                    parts: job.parts,
                });
            }
            _ if job.parts < job.workers || job.workers == 0 || job.parts > LANES_MAX => {
                return Err(AdmitError::Parts { workers: job.workers, parts: job.parts });
            }
            _ => {}
        }
        if let Some(rank) = rank {
            if rank >= job.workers {
                return Err(AdmitError::Rank { rank, workers: job.workers });
            }
            if state.workers.values().any(|seat| seat.rank == Some(rank)) {
                return Err(AdmitError::RankTaken(rank));
            }
        }
        // Checked, so that the first worker's word binds the others.
        if state.job.replace(job).is_none() {
            let next = state.scheduler.as_ref().map(|scheduler| scheduler.succeeded_by(job));
            state.scheduler = Some(next.unwrap_or_else(|| SchedulerCore::new(job)));
        }
        let now = self.now();
        let Some(scheduler) = &mut state.scheduler else { unreachable!("made with the job") };
        let worker = scheduler.join(now)?;
        let barriers_before = scheduler.barriers();
        let view = scheduler.view().clone();
        let listener = listener(worker);
        listener.tell(News::Map(state.manager.map().clone()));
        listener.tell(News::View(view));
        state.workers.insert(worker, Seat { listener, barriers_before, rank });
        state.carry_orders();
        Ok(worker)
    }

    /// A worker is gone: it said so, or its connection broke, or it is taken for dead. Its lanes go to others.
    pub fn leave(&self, worker: WorkerId) {
        let mut state = self.lock();
        if let Some(scheduler) = &mut state.scheduler {
            scheduler.leave(worker);
        }
        state.carry_orders();
    }

    /// A server is gone. Its segments have no owner until it is replaced, which is not yet possible: whoever needs them waits.
    pub fn lose_server(&self, server: ServerId) {
        let mut state = self.lock();
        state.servers.remove(&server);
        state.manager.leave(server);
    }

    /// Makes a table, or finds it; everybody hears of the map.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn create_table(&self, spec: &TableSpec) -> Result<TableId, TableError> {
        let mut state = self.lock();
        let joined = u32::try_from(state.manager.servers()).unwrap_or(u32::MAX);
        // One that is there is found, whoever is gone.
        let is_new = state.manager.map().table(&spec.namespace, &spec.name).is_none();
        if is_new && joined < self.servers_expected {
            return Err(TableError::ServersMissing { joined, expected: self.servers_expected });
        }
        let before = state.manager.map().epoch;
        let table = state.manager.create_table(spec)?;
        if state.manager.map().epoch > before {
            state.spread_map();
        }
        Ok(table)
    }

    /// A worker says how far its lanes are. A sign of life.
    ///
    /// # Errors
    /// [`SchedulerError::Unknown`].
    pub fn report(&self, worker: WorkerId, acknowledged: &[(Lane, Round)]) -> Result<(), SchedulerError> {
        let now = self.now();
        let mut state = self.lock();
        let scheduler = state.scheduler.as_mut().ok_or(SchedulerError::Unknown(worker))?;
        scheduler.report(now, worker, acknowledged)
    }

    /// A worker has reached its next barrier.
    ///
    /// # Errors
    /// [`SchedulerError::Unknown`].
    pub fn barrier(&self, worker: WorkerId) -> Result<(), SchedulerError> {
        let mut state = self.lock();
        state.scheduler.as_mut().ok_or(SchedulerError::Unknown(worker))?.barrier(worker)?;
        state.carry_orders();
        Ok(())
    }

    /// Posts a notice; the first of a name stays.
    ///
    /// # Errors
    /// [`SchedulerError`].
    pub fn post(&self, worker: WorkerId, name: &str, content: Vec<u8>) -> Result<(), SchedulerError> {
        let mut state = self.lock();
        state.scheduler.as_mut().ok_or(SchedulerError::Unknown(worker))?.post(name, content)
    }

    /// Reads a notice.
    #[must_use]
    pub fn notice(&self, name: &str) -> Option<Vec<u8>> {
        self.lock().scheduler.as_ref()?.notice(name).map(<[u8]>::to_vec)
    }

    /// Gives up workers that were silent for too long. Call it now and then.
    pub fn tick(&self) {
        let now = self.now();
        let mut state = self.lock();
        if let Some(scheduler) = &mut state.scheduler {
            scheduler.tick(now);
        }
        state.carry_orders();
    }

    /// Tells everybody to stop.
    pub fn stop(&self) {
        let state = self.lock();
        for listener in state.everybody() {
            listener.tell(News::Stop);
        }
    }
}

impl State {
    fn everybody(&self) -> impl Iterator<Item = &dyn Listener> {
        self.servers
            .values()
            .map(AsRef::as_ref)
            .chain(self.workers.values().map(|seat| seat.listener.as_ref()))
    }

    fn spread_map(&self) {
        for listener in self.everybody() {
            listener.tell(News::Map(self.manager.map().clone()));
        }
    }

    fn carry_orders(&mut self) {
        while let Some(order) = self.scheduler.as_mut().and_then(SchedulerCore::poll_order) {
            match order {
                Order::View(view) => {
                    for listener in self.everybody() {
                        listener.tell(News::View(view.clone()));
                    }
                }
                Order::Run { worker, lanes } => {
                    if let Some(seat) = self.workers.get(&worker) {
                        seat.listener.tell(News::Run(lanes));
                    }
                }
                Order::Stop { worker } => {
                    if let Some(seat) = self.workers.remove(&worker) {
                        seat.listener.tell(News::Stop);
                    }
                }
                Order::Barrier(number) => {
                    for seat in self.workers.values() {
                        seat.listener.tell(News::Barrier(number.saturating_sub(seat.barriers_before)));
                    }
                }
            }
        }
        // A job that never started binds nobody when its last worker is gone: its workers may come again as others.
        let unstarted = |scheduler: &SchedulerCore| !scheduler.started() && scheduler.workers() == 0;
        if self.scheduler.as_ref().is_some_and(unstarted) {
            self.job = None;
        }
    }
}
