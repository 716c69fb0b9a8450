//! A worker of a cluster of processes: joins at the scheduler, dials servers, hears news.
//! Knows addresses, threads and the control stream; not what is pushed. Called by programs and by `rangefold train`.
//! Source: OSDI'14 §3, §4.6.

use std::collections::BTreeMap;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rangefold_proto::client::Grant;
use rangefold_proto::{ClusterMap, JobId, Lane, Limits, Round, ShardId, TableId, TableSpec, wire};
use rangefold_transport::bootstrap::{DialError, Dialed as Reached, Hello, Purpose, Terms, dial};
use rangefold_transport::wait::{Clock, Loop};
use rangefold_transport::{Endpoint, Framing, Waker};

use crate::control::{Control, ControlError};
use crate::control_stream::{FromScheduler, ToScheduler, read, write};
use crate::coordinator::News;
use crate::driver::{Dialed, Dialer, Driver};
use crate::handle::{Client, DEADLINE};

/// News waiting for the session, at most.
const NEWS_MAX: usize = 4096;
/// How long the scheduler may take to answer a request.
const ANSWER: Duration = Duration::from_secs(20);
/// How long one attempt to reach a server may take; the core tries again with a growing rest between.
const DIAL: Duration = Duration::from_secs(5);
/// Between two signs of life.
const ALIVE: Duration = Duration::from_millis(500);
/// As good as no deadline.
const FOR_EVER: Duration = Duration::from_secs(1 << 32);
/// Between two attempts to reach a scheduler that is not there yet.
const AGAIN: Duration = Duration::from_millis(50);

/// The one job of a cluster, so far.
pub const JOB: JobId = JobId(1);

/// Where a scheduler listens if nobody says otherwise.
pub const SCHEDULER: &str = "127.0.0.1:7700";

/// How a worker joins. All workers of a job name the same `workers` and `parts`; the scheduler refuses others.
#[derive(Clone, Debug)]
pub struct Options {
    /// The scheduler's address, host and port.
    pub scheduler: String,
    /// Workers of the job; it starts when so many have joined.
    pub workers: u32,
    /// Parts of the job's data, each a lane; at least as many as workers.
    pub parts: u32,
    /// Which of the workers this is, from 0, if somebody counts them: two with the same rank are refused. Lanes are handed out
    /// by the scheduler: a rank says nothing about them.
    pub rank: Option<u32>,
    /// Bounded delay; `None` is eventual (OSDI'14 §3.5).
    pub tau: Option<Round>,
    /// Capacities.
    pub limits: Limits,
    /// Bytes of pushes and pulls under way, and of values that the program holds.
    pub memory_bytes_max: usize,
    /// Threads that may spin at once on this host, this process's and others'; where they outnumber the processors, nobody
    /// spins.
    pub busy_threads: usize,
    /// Whether whoever waits spins for ever instead, on a processor of its own.
    pub busy_poll: bool,
    /// The program promises to use the client from one thread, the one that uses it first; over io_uring another one panics.
    /// There is no progress thread then: what is under way moves while the program is in a call of the client, and only then.
    pub one_thread: bool,
    /// How long joining may take, and how long a table may wait for servers.
    pub deadline: Duration,
    /// What the cluster's connections are held to: its secret, how a silent peer is noticed, and whether data go through shared
    /// memory, which must be what the endpoint takes.
    pub terms: Terms,
}

impl Default for Options {
    /// The one worker of a job with one part, at [`SCHEDULER`]; sequential; [`Limits::standard`]; 1 GiB, four times the pushes
    /// that these let it keep; one thread that spins, for a while; any thread may use the client; [`DEADLINE`]; no secret.
    fn default() -> Self {
        Self {
            scheduler: SCHEDULER.into(),
            workers: 1,
            parts: 1,
            rank: None,
            tau: Some(0),
            limits: Limits::standard(),
            memory_bytes_max: 1 << 30,
            busy_threads: 1,
            busy_poll: false,
            one_thread: false,
            deadline: DEADLINE,
            terms: Terms::default(),
        }
    }
}

/// Why a worker cannot join.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The scheduler cannot be reached.
    #[error("cannot reach the scheduler (--scheduler, RANGEFOLD_SCHEDULER): {0}")]
    Dial(#[from] DialError),
    /// The scheduler refuses.
    #[error("the scheduler at {address} refuses this worker: {text}")]
    Refused {
        /// Which.
        address: String,
        /// Why.
        text: String,
    },
    /// The control connection broke, or spoke nonsense.
    #[error("the connection to the scheduler at {address} broke: {source}")]
    Stream {
        /// Which.
        address: String,
        /// How.
        source: io::Error,
    },
    /// The system gives no thread.
    #[error("cannot start a thread: {0}; raise the limit on processes (ulimit -u)")]
    Thread(io::Error),
}

/// What a byte stream must know of heads.
#[must_use]
pub fn framing() -> Framing {
    Framing {
        extension_bytes: |fixed| wire::extension_bytes(fixed).ok(),
        body_bytes: |head, connection| wire::body_bytes(head, connection).ok(),
    }
}

/// Connects to a scheduler's control plane, trying again while nothing listens there: processes of a job start in any order.
///
/// # Errors
/// [`DialError`] of the last attempt.
pub fn dial_control(address: &str, terms: &Terms, deadline: Duration) -> Result<TcpStream, DialError> {
    // A deadline that no clock can tell is none.
    let until = Instant::now().checked_add(deadline).unwrap_or_else(|| Instant::now() + FOR_EVER);
    let hello = Hello { purpose: Purpose::Control, job: JOB.0, greeting: Vec::new() };
    loop {
        match dial(address, &hello, terms, until) {
            Ok(Reached::Control { stream, .. }) => return Ok(stream),
            Ok(Reached::Data { .. }) => unreachable!("a hello for control is answered by a control stream"),
            Err(DialError::NothingListens { .. }) if Instant::now() + AGAIN < until => thread::sleep(AGAIN),
            Err(error) => return Err(error),
        }
    }
}

/// Joins the job at `options.scheduler` as a worker, over `endpoint`.
///
/// # Errors
/// [`ConnectError`], within the deadline.
pub fn connect<E: Endpoint + Send + 'static>(
    options: &Options,
    endpoint: E,
) -> Result<Client<E, RemoteDialer>, ConnectError> {
    let address = options.scheduler.clone();
    let broken = |source| ConnectError::Stream { address: address.clone(), source };
    let stream = dial_control(&options.scheduler, &options.terms, options.deadline)?;
    stream.set_read_timeout(Some(options.deadline)).map_err(broken)?;
    stream.set_write_timeout(Some(ANSWER)).map_err(broken)?;
    let (workers, parts, rank) = (options.workers, options.parts, options.rank);
    write(&stream, &ToScheduler::JoinWorker { workers, parts, rank }).map_err(broken)?;
    match read(&stream).map_err(broken)? {
        FromScheduler::Worker(_) => {}
        FromScheduler::Refused(text) => return Err(ConnectError::Refused { address, text }),
        _ => return Err(broken(io::Error::new(io::ErrorKind::InvalidData, "an answer to another question"))),
    }
    // From here on the stream is read by its thread for as long as it lives.
    stream.set_read_timeout(None).map_err(broken)?;
    let (sender, news) = crossbeam_channel::bounded(NEWS_MAX);
    let line = Arc::new(Line {
        address: options.scheduler.clone(),
        writer: Mutex::new(stream.try_clone().map_err(broken)?),
        waiting: Mutex::new(BTreeMap::new()),
        next_request: AtomicU32::new(0),
        ended: AtomicBool::new(false),
    });
    let waker = endpoint.waker();
    let ending = stream.try_clone().map_err(broken)?;
    let hearing = Arc::clone(&line);
    let hear = move || hearing.hear(&stream, &sender, &waker);
    thread::Builder::new().name("rangefold-control".into()).spawn(hear).map_err(ConnectError::Thread)?;
    let (due, reports) = crossbeam_channel::bounded(1);
    let (alive, progress) = (Arc::downgrade(&line), Arc::new(Mutex::new(Vec::new())));
    let latest = Arc::clone(&progress);
    let sign = move || signs_of_life(&alive, &latest, &reports);
    thread::Builder::new().name("rangefold-alive".into()).spawn(sign).map_err(ConnectError::Thread)?;
    let dialer = RemoteDialer::new(endpoint.waker(), options.terms.clone());
    let driver = Driver::new(endpoint, dialer, JOB, options.limits, options.memory_bytes_max);
    let turns = Loop::new(Clock::new(), options.busy_threads).busy(options.busy_poll);
    let held = Held { line, progress, due, patience: options.deadline, stream: ending };
    let client = Client::new(driver, news, Arc::new(held), turns, options.tau);
    if !options.one_thread {
        client.spawn_progress().map_err(ConnectError::Thread)?;
    }
    Ok(client)
}

/// The control connection of one worker.
struct Line {
    address: String,
    writer: Mutex<TcpStream>,
    /// Requests that wait for their answers.
    waiting: Mutex<BTreeMap<u32, Sender<FromScheduler>>>,
    next_request: AtomicU32,
    /// The connection has ended.
    ended: AtomicBool,
}

/// How far the lanes are.
type Progress = Vec<(Lane, Round)>;

/// The line as the client holds it: when the client is gone, the connection is closed.
struct Held {
    line: Arc<Line>,
    /// What is to be reported next, by the thread that gives signs of life: a scheduler that does not read must not hold up
    /// whoever drives.
    progress: Arc<Mutex<Progress>>,
    due: Sender<()>,
    /// How long a table may wait for servers.
    patience: Duration,
    /// The line's stream, to be shut down whoever is writing to it.
    stream: TcpStream,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Ends the thread that hears. If the connection is broken already, it has ended.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Line {
    fn writer(&self) -> MutexGuard<'_, TcpStream> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<u32, Sender<FromScheduler>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, message: &ToScheduler) -> Result<(), ControlError> {
        let writer = self.writer();
        write(&*writer, message).map_err(|error| {
            // Half a message may have gone: nothing that follows would be understood.
            let _ = writer.shutdown(Shutdown::Both);
            ControlError::Unreachable(format!("{}: {error}", self.address))
        })
    }

    /// Asks and waits for the answer.
    fn ask(
        &self,
        within: Duration,
        question: impl FnOnce(u32) -> ToScheduler,
    ) -> Result<FromScheduler, ControlError> {
        // Relaxed: only that numbers differ matters.
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = crossbeam_channel::bounded(1);
        self.waiting().insert(request, sender);
        // Acquire, pairs with the Release in `hear`: either it sees this question, or the end is seen here.
        if self.ended.load(Ordering::Acquire) {
            self.waiting().remove(&request);
        }
        let said = self.say(&question(request));
        let outcome = said.and_then(|()| {
            answer.recv_timeout(within).map_err(|error| {
                let text = match error {
                    RecvTimeoutError::Timeout => format!("no answer within {within:?}; it is stopped"),
                    RecvTimeoutError::Disconnected => "it has ended".into(),
                };
                ControlError::Unreachable(format!("{}: {text}", self.address))
            })
        });
        self.waiting().remove(&request);
        outcome
    }

    /// Passes news to the session and answers to whoever asked, until the connection ends. Training does not need the
    /// scheduler as long as nothing changes, so its end is not this worker's.
    fn hear(&self, stream: &TcpStream, news: &Sender<News>, waker: &Waker) {
        self.pass_on(stream, news, waker);
        // Release, pairs with the Acquire in `ask`. Whoever waits hears at once that no answer will come.
        self.ended.store(true, Ordering::Release);
        self.waiting().clear();
    }

    fn pass_on(&self, stream: &TcpStream, news: &Sender<News>, waker: &Waker) {
        while let Ok(message) = read::<FromScheduler>(stream) {
            let request = match message {
                FromScheduler::News(heard) => {
                    // The session drains its queue whenever it is driven; a program that never drives has ended.
                    if news.send_timeout(heard, ANSWER).is_err() {
                        return;
                    }
                    waker.ring();
                    continue;
                }
                FromScheduler::Table { request, .. }
                | FromScheduler::Posted { request, .. }
                | FromScheduler::Notice { request, .. } => request,
                FromScheduler::Server(_) | FromScheduler::Worker(_) | FromScheduler::Refused(_) => continue,
            };
            if let Some(asker) = self.waiting().remove(&request) {
                // It may have given up waiting.
                let _ = asker.try_send(message);
            }
        }
    }
}

/// Tells the scheduler how far this worker is, and that it lives, also while the program computes; until the line is gone.
fn signs_of_life(line: &Weak<Line>, progress: &Mutex<Progress>, due: &Receiver<()>) {
    loop {
        let message = match due.recv_timeout(ALIVE) {
            Ok(()) => {
                let progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
                ToScheduler::Report(progress.clone())
            }
            Err(RecvTimeoutError::Timeout) => ToScheduler::Alive,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if line.upgrade().is_none_or(|line| line.say(&message).is_err()) {
            return;
        }
    }
}

fn unexpected() -> ControlError {
    ControlError::Unreachable("it answered another question; do both sides run the same release?".into())
}

impl Control for Held {
    fn create_table(&self, spec: &TableSpec) -> Result<TableId, ControlError> {
        // The scheduler waits for servers that have not joined, and says at the end how many are missing.
        let patience_ms = u32::try_from(self.patience.as_millis()).unwrap_or(u32::MAX);
        let question = |request| ToScheduler::CreateTable { request, spec: spec.clone(), patience_ms };
        match self.line.ask(self.patience.saturating_add(ANSWER), question)? {
            FromScheduler::Table { outcome, .. } => Ok(outcome?),
            _ => Err(unexpected()),
        }
    }

    fn report(&self, acknowledged: &[(Lane, Round)]) -> Result<(), ControlError> {
        acknowledged.clone_into(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner));
        // Full: it is due already, and the newest will be said. Gone: the connection has ended, which is noticed elsewhere.
        let _ = self.due.try_send(());
        Ok(())
    }

    fn barrier(&self) -> Result<(), ControlError> {
        self.line.say(&ToScheduler::Barrier)
    }

    fn post(&self, name: &str, content: Vec<u8>) -> Result<(), ControlError> {
        match self.line.ask(ANSWER, |request| ToScheduler::Post { request, name: name.into(), content })? {
            FromScheduler::Posted { outcome, .. } => outcome.map_err(ControlError::Unreachable),
            _ => Err(unexpected()),
        }
    }

    fn notice(&self, name: &str) -> Result<Option<Vec<u8>>, ControlError> {
        match self.line.ask(ANSWER, |request| ToScheduler::Notice { request, name: name.into() })? {
            FromScheduler::Notice { content, .. } => Ok(content),
            _ => Err(unexpected()),
        }
    }

    fn leave(&self) {
        // If it cannot be said, the broken connection says it.
        let _ = self.line.say(&ToScheduler::Leave);
    }
}

/// Connects to shards of server processes; each dial on a thread of its own, because it may wait for a dead host.
pub struct RemoteDialer {
    waker: Waker,
    terms: Terms,
    outcomes: (Sender<Outcome>, Receiver<Outcome>),
}

type Outcome = (ShardId, Result<Dialed, String>);

impl RemoteDialer {
    /// A dialer that rings `waker` when a dial has ended.
    #[must_use]
    pub fn new(waker: Waker, terms: Terms) -> Self {
        Self { waker, terms, outcomes: crossbeam_channel::unbounded() }
    }
}

impl Dialer for RemoteDialer {
    // At most one dial per shard is under way: the core waits for its outcome. That bounds threads and outcomes.
    fn dial(&mut self, map: &ClusterMap, shard: ShardId) {
        let (sender, waker, terms) = (self.outcomes.0.clone(), self.waker.clone(), self.terms.clone());
        let address = map.server(shard.server).map(|entry| entry.address.clone()).unwrap_or_default();
        let reach = move || {
            let hello =
                Hello { purpose: Purpose::Data { shard: shard.shard }, job: JOB.0, greeting: Vec::new() };
            let dialed = match dial(&address, &hello, &terms, Instant::now() + DIAL) {
                Ok(Reached::Data { link, greeting }) => Grant::decode(&greeting)
                    .map(|grant| Dialed { link, grant })
                    .ok_or_else(|| format!("{address} grants nothing; do both sides run the same release?")),
                Ok(Reached::Control { .. }) => {
                    unreachable!("a hello for data is answered by a link")
                }
                Err(error) => Err(error.to_string()),
            };
            // The client may be gone.
            let _ = sender.send((shard, dialed));
            waker.ring();
        };
        if thread::Builder::new().name("rangefold-dial".into()).spawn(reach).is_err() {
            let why = "no thread to dial with; raise the limit on processes (ulimit -u)";
            let _ = self.outcomes.0.send((shard, Err(why.into())));
        }
    }

    fn poll(&mut self) -> Option<Outcome> {
        self.outcomes.1.try_recv().ok()
    }
}
