//! A whole cluster in one process: manager, scheduler, servers and workers, over the `memory` transport.
//! The only place that joins workers and kvstore. Knows threads and channels; decides nothing that a core decides.
//! Source: OSDI'14 §3 (roles), Figure 4; design.md §2 (an embedded cluster is the default for one machine).

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::Sender;
pub use rangefold_kvstore::Report;
use rangefold_kvstore::{Command as NodeCommand, NodeOptions, ShardHandle};
use rangefold_proto::client::Grant;
use rangefold_proto::manager::ManagerCore;
use rangefold_proto::scheduler::{JobSpec, Order, SchedulerCore, SchedulerError};
use rangefold_proto::{
    ClusterMap, JobId, Lane, Limits, Nanos, Round, ServerEntry, ServerId, ShardId, TableId, TableSpec,
    WorkerId,
};
use rangefold_transport::wait::{Clock, Loop};
use rangefold_transport::{Endpoint as _, Waker, memory};
use rangefold_workers::control::{Control, ControlError, Event};
use rangefold_workers::driver::{Command, Dialed, Dialer, Driver};

const JOB: JobId = JobId(1);
/// Events waiting for a worker, at most. A worker that takes none for so long has ended.
const EVENTS_MAX: usize = 4096;
/// Bytes that a shard may have under way in replies.
const REPLY_BYTES_MAX: usize = 128 << 20;

/// A worker of an embedded cluster.
pub type Client = rangefold_workers::Client<memory::Endpoint, MemoryDialer>;
/// A table of an embedded cluster.
pub type Table<T> = rangefold_workers::Table<T, memory::Endpoint, MemoryDialer>;
/// A push under way.
pub type Ticket = rangefold_workers::Ticket<memory::Endpoint, MemoryDialer>;
/// A pull under way.
pub type PullTicket<T> = rangefold_workers::PullTicket<T, memory::Endpoint, MemoryDialer>;

/// How an embedded cluster is made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Server nodes.
    pub servers: u32,
    /// Shard threads of each.
    pub shards: u16,
    /// Workers that must have joined before the job starts.
    pub workers: u32,
    /// Parts of the job's data, each a lane; at least as many as workers.
    pub parts: u32,
    /// Bounded delay; `None` is eventual (OSDI'14 §3.5).
    pub tau: Option<Round>,
    /// Capacities.
    pub limits: Limits,
    /// Bytes of one worker's pushes and pulls under way.
    pub worker_bytes_max: usize,
}

impl Default for Options {
    /// One server with one shard, one worker with one lane, sequential.
    fn default() -> Self {
        Self {
            servers: 1,
            shards: 1,
            workers: 1,
            parts: 1,
            tau: Some(0),
            limits: Limits::standard(),
            worker_bytes_max: 1 << 30,
        }
    }
}

/// Why a cluster cannot be started or joined.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Options that make no cluster.
    #[error("{0}")]
    Options(String),
    /// The system gives no thread.
    #[error("cannot start a thread: {0}; raise the limit on processes (ulimit -u)")]
    Thread(#[from] std::io::Error),
    /// The scheduler refuses.
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
}

/// A running cluster. Dropping it stops the servers; their values are gone then.
pub struct Cluster {
    coordinator: Arc<Coordinator>,
    threads: Vec<JoinHandle<()>>,
}

struct Coordinator {
    options: Options,
    clock: Clock,
    busy_threads: usize,
    shards: BTreeMap<ShardId, ShardHandle>,
    next_connection: AtomicU64,
    state: Mutex<State>,
}

/// The control plane's state. Its lock is held for a few calls of a core, never across one that waits.
struct State {
    manager: ManagerCore,
    scheduler: SchedulerCore,
    workers: BTreeMap<WorkerId, Listener>,
}

struct Listener {
    events: Sender<Event>,
    waker: Waker,
    /// Barriers that had been reached when it joined.
    barriers_before: u64,
}

impl Listener {
    fn tell(&self, event: Event) {
        // A worker that takes no events has ended; its lanes are taken when that is noticed.
        let _ = self.events.try_send(event);
        self.waker.ring();
    }
}

impl Cluster {
    /// Starts the servers' threads.
    ///
    /// # Errors
    /// [`StartError`], with what is wrong with the options or the limit that was met.
    pub fn start(options: Options) -> Result<Self, StartError> {
        check(&options)?;
        let clock = Clock::new();
        let busy_threads = options.servers as usize * usize::from(options.shards) + options.workers as usize;
        let mut manager = ManagerCore::new();
        let mut shards = BTreeMap::new();
        let mut threads = Vec::new();
        for server in (0..options.servers).map(ServerId) {
            let entry = ServerEntry { server, address: "memory".into(), shards: options.shards, host: 0 };
            manager.join(entry).map_err(|error| StartError::Options(error.to_string()))?;
            for shard in (0..options.shards).map(|shard| ShardId { server, shard }) {
                let node =
                    NodeOptions { shard, job: JOB, limits: options.limits, send_bytes_max: REPLY_BYTES_MAX };
                let (handle, thread) =
                    rangefold_kvstore::spawn(memory::Endpoint::new(), node, clock, busy_threads, || {})?;
                shards.insert(shard, handle);
                threads.push(thread);
            }
        }
        // In one process a worker does not die alone, so silence proves nothing.
        let job = JobSpec { workers: options.workers, parts: options.parts, silence_ns: u64::MAX };
        let state = State { manager, scheduler: SchedulerCore::new(job), workers: BTreeMap::new() };
        let coordinator = Coordinator {
            options,
            clock,
            busy_threads,
            shards,
            next_connection: AtomicU64::new(1),
            state: Mutex::new(state),
        };
        Ok(Self { coordinator: Arc::new(coordinator), threads })
    }

    /// Joins as a worker. The job starts when as many have joined as the options say.
    ///
    /// # Errors
    /// [`StartError::Scheduler`] for one worker too many.
    pub fn join(&self) -> Result<Client, StartError> {
        let coordinator = &self.coordinator;
        let endpoint = memory::Endpoint::new();
        let (sender, events) = crossbeam_channel::bounded(EVENTS_MAX);
        let waker = endpoint.waker();
        let worker = {
            let mut state = coordinator.lock();
            let worker = state.scheduler.join(Nanos(coordinator.clock.now_ns()))?;
            let listener = Listener { events: sender, waker, barriers_before: state.scheduler.barriers() };
            listener.tell(Event::Driver(Command::Map(state.manager.map().clone())));
            listener.tell(Event::Driver(Command::View(state.scheduler.view().clone())));
            state.workers.insert(worker, listener);
            coordinator.carry_orders(&mut state);
            worker
        };
        let dialer = MemoryDialer { coordinator: Arc::clone(coordinator), dialed: VecDeque::new() };
        let options = &coordinator.options;
        let driver = Driver::new(endpoint, dialer, JOB, options.limits, options.worker_bytes_max);
        let control: Arc<dyn Control> = Arc::new(Seat { coordinator: Arc::clone(coordinator), worker });
        let turns = Loop::new(coordinator.clock, coordinator.busy_threads);
        Ok(Client::new(driver, events, control, turns, options.tau)?)
    }

    /// What every shard has done so far, in order. A shard that does not answer within a second is left out.
    #[must_use]
    pub fn report(&self) -> Vec<Report> {
        let (sender, reports) = crossbeam_channel::bounded(self.coordinator.shards.len());
        self.coordinator.tell_shards(|| NodeCommand::Report(sender.clone()));
        drop(sender);
        let mut all: Vec<Report> =
            std::iter::from_fn(|| reports.recv_timeout(std::time::Duration::from_secs(1)).ok()).collect();
        all.sort_by_key(|report| report.shard);
        all
    }

    /// Takes a worker for dead: its lanes go to others. What it still sends is fenced.
    pub fn give_up(&self, client: WorkerId) {
        let mut state = self.coordinator.lock();
        state.scheduler.leave(client);
        self.coordinator.carry_orders(&mut state);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for worker in self.coordinator.lock().workers.values() {
            worker.tell(Event::Stop);
        }
        for shard in self.coordinator.shards.values() {
            shard.stop();
        }
        for thread in self.threads.drain(..) {
            // A shard that panicked has said so on standard error.
            let _ = thread.join();
        }
    }
}

fn check(options: &Options) -> Result<(), StartError> {
    let wrong = |text: String| Err(StartError::Options(text));
    if options.servers == 0 || options.shards == 0 || options.workers == 0 {
        return wrong("a cluster needs at least one server, one shard and one worker".into());
    }
    if options.parts < options.workers {
        let (parts, workers) = (options.parts, options.workers);
        return wrong(format!("{workers} workers need at least {workers} parts of the data, not {parts}"));
    }
    if options.parts > options.limits.lanes_max {
        let (parts, max) = (options.parts, options.limits.lanes_max);
        return wrong(format!("{parts} parts exceed the limit of {max} lanes of a job"));
    }
    //= protocol.md T10
    if options.tau.is_some_and(|tau| tau >= options.limits.rounds_open_max) {
        let max = options.limits.rounds_open_max - 1;
        return wrong(format!("a delay of {:?} exceeds the limit of {max}", options.tau.unwrap_or_default()));
    }
    Ok(())
}

impl Coordinator {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock can only come between two calls of a core.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_shards(&self, command: impl Fn() -> NodeCommand) {
        for shard in self.shards.values() {
            // A shard that takes no commands has ended with the cluster.
            let _ = shard.command(command());
        }
    }

    fn carry_orders(&self, state: &mut State) {
        while let Some(order) = state.scheduler.poll_order() {
            match order {
                Order::View(view) => {
                    self.tell_shards(|| NodeCommand::View(view.clone()));
                    for worker in state.workers.values() {
                        worker.tell(Event::Driver(Command::View(view.clone())));
                    }
                }
                Order::Run { worker, lanes } => {
                    if let Some(worker) = state.workers.get(&worker) {
                        worker.tell(Event::Driver(Command::Run(lanes)));
                    }
                }
                Order::Stop { worker } => {
                    if let Some(worker) = state.workers.remove(&worker) {
                        worker.tell(Event::Stop);
                    }
                }
                Order::Barrier(number) => {
                    for worker in state.workers.values() {
                        worker.tell(Event::Barrier(number.saturating_sub(worker.barriers_before)));
                    }
                }
                // Whoever wants a notice asks for it.
                Order::Posted { .. } => {}
            }
        }
    }
}

/// A worker's place at the coordinator.
struct Seat {
    coordinator: Arc<Coordinator>,
    worker: WorkerId,
}

impl Control for Seat {
    fn worker(&self) -> WorkerId {
        self.worker
    }

    fn create_table(&self, spec: &TableSpec) -> Result<TableId, ControlError> {
        let mut state = self.coordinator.lock();
        let before = state.manager.map().epoch;
        let table = state.manager.create_table(spec)?;
        if state.manager.map().epoch > before {
            let map = state.manager.map();
            self.coordinator.tell_shards(|| NodeCommand::Map(map.clone()));
            for worker in state.workers.values() {
                worker.tell(Event::Driver(Command::Map(map.clone())));
            }
        }
        Ok(table)
    }

    fn report(&self, acknowledged: &[(Lane, Round)]) -> Result<(), ControlError> {
        let now = Nanos(self.coordinator.clock.now_ns());
        Ok(self.coordinator.lock().scheduler.report(now, self.worker, acknowledged)?)
    }

    fn barrier(&self) -> Result<(), ControlError> {
        let mut state = self.coordinator.lock();
        state.scheduler.barrier(self.worker)?;
        self.coordinator.carry_orders(&mut state);
        Ok(())
    }

    fn post(&self, name: &str, content: Vec<u8>) -> Result<(), ControlError> {
        let mut state = self.coordinator.lock();
        state.scheduler.post(name, content)?;
        self.coordinator.carry_orders(&mut state);
        Ok(())
    }

    fn notice(&self, name: &str) -> Result<Option<Vec<u8>>, ControlError> {
        Ok(self.coordinator.lock().scheduler.notice(name).map(<[u8]>::to_vec))
    }

    fn leave(&self) {
        let mut state = self.coordinator.lock();
        state.scheduler.leave(self.worker);
        self.coordinator.carry_orders(&mut state);
    }
}

/// Connects to shards of the same process: a pair of rings, one side handed to the shard.
pub struct MemoryDialer {
    coordinator: Arc<Coordinator>,
    dialed: VecDeque<(ShardId, Option<Dialed>)>,
}

impl Dialer for MemoryDialer {
    fn dial(&mut self, _: &ClusterMap, shard: ShardId) {
        let limits = &self.coordinator.options.limits;
        // Relaxed: only that numbers differ matters.
        let number = self.coordinator.next_connection.fetch_add(1, Ordering::Relaxed);
        let (ours, theirs) = memory::pair(number, usize::from(limits.sends_per_link));
        let handed = self.coordinator.shards.get(&shard).is_some_and(|handle| {
            let adopt = NodeCommand::Adopt(theirs);
            handle.command(adopt).is_ok()
        });
        let grant = Grant { push_bytes: limits.push_bytes_per_link, pulls: limits.pulls_per_link };
        self.dialed.push_back((shard, handed.then_some(Dialed { link: ours, grant })));
    }

    fn poll(&mut self) -> Option<(ShardId, Option<Dialed>)> {
        self.dialed.pop_front()
    }
}
