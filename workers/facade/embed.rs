//! A whole cluster in one process: manager, scheduler, servers and workers, over the `memory` transport.
//! Knows threads and channels; decides nothing that a core decides.
//! Source: OSDI'14 §3 (roles), Figure 4.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::Sender;
pub use rangefold_kvstore::Report;
use rangefold_kvstore::{Command as NodeCommand, ShardHandle};
pub use rangefold_proto::WorkerId;
use rangefold_proto::client::Grant;
use rangefold_proto::scheduler::JobSpec;
use rangefold_proto::{ClusterMap, JobId, Lane, Limits, Round, ServerId, ShardId, TableId, TableSpec};
use rangefold_transport::wait::{Clock, Loop};
use rangefold_transport::{Endpoint as _, Waker, memory};
use rangefold_workers::control::{Control, ControlError};
use rangefold_workers::coordinator::{AdmitError, Coordinator, Listener, News};
use rangefold_workers::driver::{Dialed, Dialer, Driver};

use crate::pinning;
use crate::shards::{Plan, Shards, tell};

const JOB: JobId = JobId(1);
/// News waiting for a worker, at most. A worker that takes none for so long has ended.
const NEWS_MAX: usize = 4096;

/// A worker of an embedded cluster.
pub type Client = rangefold_workers::Client<memory::Endpoint, MemoryDialer>;
/// A table of an embedded cluster.
pub type Table<T> = rangefold_workers::Table<T, memory::Endpoint, MemoryDialer>;
/// A push under way.
pub type Ticket = rangefold_workers::Ticket<memory::Endpoint, MemoryDialer>;
/// A pull under way.
pub type PullTicket<T> = rangefold_workers::PullTicket<T, memory::Endpoint, MemoryDialer>;

/// How an embedded cluster is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Server nodes. 1, as in one process more of them only divide its cores.
    pub servers: u32,
    /// Shard threads of each. 1: only the user knows how many cores are to spare.
    pub shards: u16,
    /// Workers that must have joined before the job starts. 1: a program that joins once can begin.
    pub workers: u32,
    /// Parts of the job's data, each a lane; at least as many as workers. 1: the one worker's.
    pub parts: u32,
    /// Bounded delay; `None` is eventual (OSDI'14 §3.5). `Some(0)`: sequential promises most.
    pub tau: Option<Round>,
    /// Processors for the shard threads, in order; shards beyond them are not pinned. None: two processes that
    /// know nothing of each other would pin to the same.
    pub cores: Vec<usize>,
    /// Whether shard threads, and whoever waits on a client, spin for ever instead of sleeping after a while. No: that takes
    /// a processor for each.
    pub busy_poll: bool,
    /// Capacities. [`Limits::standard`], where each has its reason.
    pub limits: Limits,
    /// Bytes of one worker's pushes and pulls under way. 1 GiB: four times the pushes that the limits let it keep,
    /// so that pulls find room beside them; mapped as needed.
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
            cores: Vec::new(),
            busy_poll: false,
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
    /// Manager or scheduler refuse.
    #[error(transparent)]
    Refused(#[from] AdmitError),
}

/// A running cluster. Dropping it stops the servers; their values are gone then.
pub struct Cluster {
    shared: Arc<Shared>,
    servers: Vec<Shards>,
}

struct Shared {
    options: Options,
    turns: Loop,
    shards: BTreeMap<ShardId, ShardHandle>,
    next_connection: AtomicU64,
    coordinator: Coordinator,
}

/// A server's shards hear of news as commands.
struct ToShards(Vec<ShardHandle>);

impl Listener for ToShards {
    fn tell(&self, news: News) {
        tell(&self.0, &news);
    }
}

/// A worker hears of news through its session's queue.
struct ToWorker {
    news: Sender<News>,
    waker: Waker,
}

impl Listener for ToWorker {
    fn tell(&self, news: News) {
        // A worker that takes no news has ended; its lanes are taken when that is noticed.
        let _ = self.news.try_send(news);
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
        let turns = Loop::new(clock, busy_threads).busy(options.busy_poll);
        let coordinator = Coordinator::new(clock, options.servers);
        let (mut handles, mut servers) = (BTreeMap::new(), Vec::new());
        let mut cores = options.cores.as_slice();
        for server in (0..options.servers).map(ServerId) {
            let limits = options.limits;
            let plan = Plan { server, shards: options.shards, job: JOB, limits, turns, cores };
            cores = cores.get(usize::from(options.shards)..).unwrap_or_default();
            let shards = Shards::start(&plan, || Ok::<_, std::io::Error>(memory::Endpoint::new()), |_| {})?;
            for (shard, handle) in (0..).zip(shards.handles()) {
                handles.insert(ShardId { server, shard }, handle.clone());
            }
            let told = shards.handles().to_vec();
            servers.push(shards);
            let listener = |_| -> Box<dyn Listener> { Box::new(ToShards(told)) };
            coordinator.join_server("memory".into(), options.shards, 0, None, listener)?;
        }
        let next_connection = AtomicU64::new(1);
        let shared = Shared { options, turns, shards: handles, next_connection, coordinator };
        Ok(Self { shared: Arc::new(shared), servers })
    }

    /// Joins as a worker. The job starts when as many have joined as the options say.
    ///
    /// # Errors
    /// [`StartError::Refused`] for one worker too many.
    pub fn join(&self) -> Result<Client, StartError> {
        let shared = &self.shared;
        let options = &shared.options;
        let endpoint = memory::Endpoint::new();
        let (news, events) = crossbeam_channel::bounded(NEWS_MAX);
        let waker = endpoint.waker();
        let listener = |_| -> Box<dyn Listener> { Box::new(ToWorker { news, waker }) };
        // In one process a worker does not die alone, so silence proves nothing.
        let job = JobSpec { workers: options.workers, parts: options.parts, silence_ns: u64::MAX };
        let worker = shared.coordinator.join_worker(job, None, listener)?;
        let dialer = MemoryDialer { shared: Arc::clone(shared), dialed: VecDeque::new() };
        let driver = Driver::new(endpoint, dialer, JOB, options.limits, options.worker_bytes_max);
        let control: Arc<dyn Control> = Arc::new(Place { shared: Arc::clone(shared), worker });
        let client = Client::new(driver, events, control, shared.turns, options.tau);
        client.spawn_progress()?;
        Ok(client)
    }

    /// What every shard has done so far, in order. A shard that does not answer within a second is left out.
    #[must_use]
    pub fn report(&self) -> Vec<Report> {
        let (sender, reports) = crossbeam_channel::bounded(self.shared.shards.len());
        for shard in self.shared.shards.values() {
            // One that takes no commands is left out.
            let _ = shard.command(NodeCommand::Report(sender.clone()));
        }
        drop(sender);
        let mut all: Vec<Report> =
            std::iter::from_fn(|| reports.recv_timeout(std::time::Duration::from_secs(1)).ok()).collect();
        all.sort_by_key(|report| report.shard);
        all
    }

    /// Takes a worker for dead: its lanes go to others. What it still sends is fenced.
    pub fn give_up(&self, worker: WorkerId) {
        self.shared.coordinator.leave(worker);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Workers hear of it before their connections break; then the servers end with their threads.
        self.shared.coordinator.stop();
        self.servers.clear();
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
    let allowed = pinning::allowed();
    if let Some(core) = options.cores.iter().find(|core| !allowed.contains(core)) {
        return wrong(format!("processor {core} is not one of this process's: {allowed:?}"));
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

/// A worker's place at the coordinator.
struct Place {
    shared: Arc<Shared>,
    worker: WorkerId,
}

impl Control for Place {
    fn create_table(&self, spec: &TableSpec) -> Result<TableId, ControlError> {
        Ok(self.shared.coordinator.create_table(spec)?)
    }

    fn report(&self, acknowledged: &[(Lane, Round)]) -> Result<(), ControlError> {
        Ok(self.shared.coordinator.report(self.worker, acknowledged)?)
    }

    fn barrier(&self) -> Result<(), ControlError> {
        Ok(self.shared.coordinator.barrier(self.worker)?)
    }

    fn post(&self, name: &str, content: Vec<u8>) -> Result<(), ControlError> {
        Ok(self.shared.coordinator.post(self.worker, name, content)?)
    }

    fn notice(&self, name: &str) -> Result<Option<Vec<u8>>, ControlError> {
        Ok(self.shared.coordinator.notice(name))
    }

    fn leave(&self) {
        self.shared.coordinator.leave(self.worker);
    }
}

/// Connects to shards of the same process: a pair of rings, one side handed to the shard.
pub struct MemoryDialer {
    shared: Arc<Shared>,
    dialed: VecDeque<(ShardId, Result<Dialed, String>)>,
}

impl Dialer for MemoryDialer {
    fn dial(&mut self, _: &ClusterMap, shard: ShardId) {
        let limits = &self.shared.options.limits;
        // Relaxed: only that numbers differ matters.
        let number = self.shared.next_connection.fetch_add(1, Ordering::Relaxed);
        let (ours, theirs) = memory::pair(number, usize::from(limits.sends_per_link));
        let handed = self.shared.shards.get(&shard).is_some_and(|handle| {
            let adopt = NodeCommand::Adopt(theirs);
            handle.command(adopt).is_ok()
        });
        let grant = Grant { push_bytes: limits.push_bytes_per_link, pulls: limits.pulls_per_link };
        let dialed = Dialed { link: ours, grant };
        let gone = || "its thread takes no connections: it has ended".into();
        self.dialed.push_back((shard, handed.then_some(dialed).ok_or_else(gone)));
    }

    fn poll(&mut self) -> Option<(ShardId, Result<Dialed, String>)> {
        self.dialed.pop_front()
    }
}
