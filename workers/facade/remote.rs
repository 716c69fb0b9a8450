//! A worker of a cluster of processes, as a program of its own becomes one.
//! Knows options and where they come from; joining and everything after it is `rangefold_workers`.
//! Source: OSDI'14 §3 (worker node), §4.6.
//!
//! ```no_run
//! use rangefold::{ElementType, TableSpec, UpdateFunction, DEADLINE, remote};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Under `rangefold launch --servers 2 --workers 3 -- ./program`, which sets the variables.
//! let options = remote::Options::from_env()?;
//! let (client, transport) = remote::connect(&options)?;
//! eprintln!("worker {:?} over {transport}", options.rank);
//! client.wait_for_lanes(DEADLINE)?; // the job starts when all workers have joined
//! let sums = client.table::<f64>(&TableSpec::dense("sums", ElementType::F64, 8, UpdateFunction::Add))?;
//! sums.push(0..8, &[1.0; 8])?.wait(DEADLINE)?;
//! client.barrier(DEADLINE)?;
//! assert_eq!(*sums.pull(0..8)?.wait(DEADLINE)?, [3.0; 8]);
//! client.leave();
//! # Ok(())
//! # }
//! ```

use std::time::Duration;

use rangefold_proto::{Limits, Round};
use rangefold_transport::auto;
pub use rangefold_transport::auto::{Choice, Wish};
pub use rangefold_workers::remote::ConnectError;
use rangefold_workers::remote::{self, TcpDialer};

use crate::pinning;

/// Where a scheduler listens if nobody says otherwise.
pub const SCHEDULER: &str = "127.0.0.1:7700";

/// A worker of a cluster of processes.
pub type Client = rangefold_workers::Client<auto::Endpoint, TcpDialer>;
/// A table of such a cluster.
pub type Table<T> = rangefold_workers::Table<T, auto::Endpoint, TcpDialer>;
/// A push under way.
pub type Ticket = rangefold_workers::Ticket<auto::Endpoint, TcpDialer>;
/// A pull under way.
pub type PullTicket<T> = rangefold_workers::PullTicket<T, auto::Endpoint, TcpDialer>;

/// How a program joins. All workers of a job name the same `workers` and `parts`; the scheduler refuses others.
#[derive(Clone, Debug)]
pub struct Options {
    /// The scheduler's address, host and port.
    pub scheduler: String,
    /// Workers of the job; it starts when so many have joined.
    pub workers: u32,
    /// Parts of the job's data, each a lane; at least as many as workers.
    pub parts: u32,
    /// Which of the workers this is, from 0, if somebody counts them. Lanes are handed out by the scheduler: a rank says
    /// nothing about them.
    pub rank: Option<u32>,
    /// Bounded delay; `None` is eventual (OSDI'14 §3.5).
    pub tau: Option<Round>,
    /// Which transport. Any but `Auto` fails rather than take another.
    pub transport: Wish,
    /// Processors that are this process's own, for [`Self::pin`].
    pub cores: Vec<usize>,
    /// Threads that may spin at once on this host, this process's and others'; where they outnumber the processors, nobody
    /// spins.
    pub busy_threads: usize,
    /// Bytes of pushes and pulls under way, and of values that the program holds.
    pub memory_bytes_max: usize,
    /// Capacities.
    pub limits: Limits,
    /// How long joining may take, and how long the first table may wait for servers.
    pub deadline: Duration,
}

impl Default for Options {
    /// The one worker of a job with one part, at the scheduler's usual place on this host; sequential; 1 GiB; 60 s.
    fn default() -> Self {
        Self {
            scheduler: SCHEDULER.into(),
            workers: 1,
            parts: 1,
            rank: None,
            tau: Some(0),
            transport: Wish::Auto,
            cores: Vec::new(),
            busy_threads: 1,
            memory_bytes_max: 1 << 30,
            limits: Limits::standard(),
            deadline: crate::DEADLINE,
        }
    }
}

/// A variable of the environment that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{name}={value:?}: expected {expected}; `rangefold launch` sets it")]
pub struct EnvironmentError {
    /// The variable.
    pub name: &'static str,
    /// What it holds.
    pub value: String,
    /// What it should hold.
    pub expected: &'static str,
}

impl Options {
    /// What `rangefold launch` has put into the environment: `RANGEFOLD_SCHEDULER`, `RANGEFOLD_RANK`, `RANGEFOLD_WORLD` (the
    /// workers, and as many parts), `RANGEFOLD_TRANSPORT`, `RANGEFOLD_BUSY_THREADS`, `RANGEFOLD_CORES`. What is not there stays
    /// as in [`Self::default`].
    ///
    /// # Errors
    /// [`EnvironmentError`], the first variable that holds something else.
    pub fn from_env() -> Result<Self, EnvironmentError> {
        let mut options = Self::default();
        if let Some(scheduler) = variable("RANGEFOLD_SCHEDULER") {
            options.scheduler = scheduler;
        }
        options.rank = parsed("RANGEFOLD_RANK", "a number from 0")?;
        if let Some(world) = parsed("RANGEFOLD_WORLD", "the number of workers")? {
            (options.workers, options.parts) = (world, world);
        }
        if let Some(transport) = parsed("RANGEFOLD_TRANSPORT", "auto, uring or socket")? {
            options.transport = transport;
        }
        if let Some(threads) = parsed("RANGEFOLD_BUSY_THREADS", "a number of threads")? {
            options.busy_threads = threads;
        }
        if let Some(value) = variable(pinning::VARIABLE) {
            let expected = "processors of this process, like 0,1,4";
            options.cores = pinning::parse(&value).map_err(|_| EnvironmentError {
                name: pinning::VARIABLE,
                value,
                expected,
            })?;
        }
        Ok(options)
    }

    /// Binds the calling thread to the first of [`Self::cores`], if there is one, and says whether it did. The thread that waits
    /// on a client is the one that moves its data. Call it after [`connect`], which counts the processors that this thread may
    /// use: with one only, waits never spin. Threads that are started afterwards inherit the binding.
    #[must_use = "a thread that is not bound may be moved to another processor"]
    pub fn pin(&self) -> bool {
        self.cores.first().is_some_and(|&core| pinning::pin(core))
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn parsed<T: std::str::FromStr>(
    name: &'static str,
    expected: &'static str,
) -> Result<Option<T>, EnvironmentError> {
    let Some(value) = variable(name) else { return Ok(None) };
    value.parse().map(Some).map_err(|_| EnvironmentError { name, value, expected })
}

/// Why a program cannot join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The transport that was asked for cannot be had.
    #[error(transparent)]
    Transport(#[from] auto::Unavailable),
    /// The scheduler cannot be reached, or refuses.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

/// Joins the job at `options.scheduler`. Returns a client, and what its data travel over, with the reasons.
///
/// # Errors
/// [`JoinError`], within the deadline.
pub fn connect(options: &Options) -> Result<(Client, Choice), JoinError> {
    // The thread that waits drives, and the progress thread now and then.
    let endpoint = auto::Options { wish: options.transport, framing: remote::framing(), one_thread: false };
    let (endpoint, choice) = auto::Endpoint::new(&endpoint)?;
    let joining = remote::Options {
        scheduler: options.scheduler.clone(),
        workers: options.workers,
        parts: options.parts,
        rank: options.rank,
        tau: options.tau,
        limits: options.limits,
        memory_bytes_max: options.memory_bytes_max,
        busy_threads: options.busy_threads,
        deadline: options.deadline,
    };
    Ok((remote::connect(&joining, endpoint)?, choice))
}
