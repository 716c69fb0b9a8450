//! A worker of a cluster of processes, as a program of its own becomes one.
//! Knows which transport is taken and what `rangefold launch` puts into the environment; joining is `rangefold_workers`.
//! Source: OSDI'14 §3 (worker node), §4.6.
#![doc = concat!("```no_run\n", include_str!("examples/sums.rs"), "```")]

use std::os::unix::ffi::OsStringExt as _;
use std::time::Duration;

pub use rangefold_transport::Route;
use rangefold_transport::auto;
pub use rangefold_transport::auto::{Choice, Wish};
use rangefold_transport::bootstrap::{PEER_TIMEOUT_MAX, PEER_TIMEOUT_MIN};
pub use rangefold_transport::bootstrap::{Secret, SecretError, Sharing, Terms, Unshared};
use rangefold_workers::remote::{self, RemoteDialer};
pub use rangefold_workers::remote::{ConnectError, Options, SCHEDULER};

use crate::pinning;

/// The environment variable with the cluster's secret: what `--secret-file` may hold instead.
pub const SECRET_VARIABLE: &str = "RANGEFOLD_SECRET";
/// The environment variable with the seconds within which a silent peer is found lost.
pub const PEER_TIMEOUT_VARIABLE: &str = "RANGEFOLD_PEER_TIMEOUT";

/// A worker of a cluster of processes.
pub type Client = rangefold_workers::Client<auto::Endpoint, RemoteDialer>;
/// A table of such a cluster.
pub type Table<T> = rangefold_workers::Table<T, auto::Endpoint, RemoteDialer>;
/// A push under way.
pub type Ticket = rangefold_workers::Ticket<auto::Endpoint, RemoteDialer>;
/// A pull under way.
pub type PullTicket<T> = rangefold_workers::PullTicket<T, auto::Endpoint, RemoteDialer>;

/// What `rangefold launch` has put into the environment of a worker.
#[derive(Clone, Default, Debug)]
pub struct Environment {
    /// How to join.
    pub options: Options,
    /// Over what.
    pub transport: Wish,
    /// Processors that are this process's own. The thread that waits on a client is the one that moves its data, so it gains by
    /// [`pinning::pin`]; after [`connect`], which counts the processors that the thread may use: with one only, waits never
    /// spin. Threads that are started afterwards inherit the binding.
    pub cores: Vec<usize>,
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

impl Environment {
    /// Reads `RANGEFOLD_SCHEDULER`, `RANGEFOLD_RANK`, `RANGEFOLD_WORLD` (the workers, and as many parts),
    /// `RANGEFOLD_TRANSPORT`, `RANGEFOLD_BUSY_THREADS`, `RANGEFOLD_CORES`, `RANGEFOLD_SECRET` and `RANGEFOLD_PEER_TIMEOUT`. What
    /// is not there stays as in [`Options::default`].
    ///
    /// # Errors
    /// [`EnvironmentError`], the first variable that holds something else.
    pub fn read() -> Result<Self, EnvironmentError> {
        let mut environment = Self::default();
        let options = &mut environment.options;
        if let Some(scheduler) = variable("RANGEFOLD_SCHEDULER") {
            options.scheduler = scheduler;
        }
        options.rank = parsed("RANGEFOLD_RANK", "a number from 0")?;
        if let Some(world) = parsed("RANGEFOLD_WORLD", "the number of workers")? {
            (options.workers, options.parts) = (world, world);
        }
        if let Some(threads) = parsed("RANGEFOLD_BUSY_THREADS", "a number of threads")? {
            options.busy_threads = threads;
        }
        options.terms.secret = secret().map_err(|error| EnvironmentError {
            name: SECRET_VARIABLE,
            // Whatever it is, it is not for logs.
            value: match error {
                SecretError::Length { found } => format!("({found} bytes)"),
                _ => "(not shown)".into(),
            },
            expected: "16 to 4096 bytes of text, the same on all nodes",
        })?;
        if let Some(value) = variable(PEER_TIMEOUT_VARIABLE) {
            let seconds = value.parse().ok().map(Duration::from_secs);
            let within = seconds.filter(|within| (PEER_TIMEOUT_MIN..=PEER_TIMEOUT_MAX).contains(within));
            let (name, expected) = (PEER_TIMEOUT_VARIABLE, "seconds, from 3 to 86400");
            options.terms.peer_timeout = within.ok_or(EnvironmentError { name, value, expected })?;
        }
        if let Some(transport) = parsed("RANGEFOLD_TRANSPORT", "auto, shm, uring or socket")? {
            environment.transport = transport;
        }
        if let Some(value) = variable(pinning::VARIABLE) {
            let (name, expected) = (pinning::VARIABLE, "processors of this process, like 0,1,4");
            environment.cores =
                pinning::parse(&value).map_err(|_| EnvironmentError { name, value, expected })?;
        }
        Ok(environment)
    }
}

/// The secret in [`SECRET_VARIABLE`]. One that is empty is none, and an error: whoever sets it means to have one.
///
/// # Errors
/// [`SecretError`]. It says nothing of what the variable holds but its length.
pub fn secret() -> Result<Option<Secret>, SecretError> {
    let text = std::env::var_os(SECRET_VARIABLE);
    text.map(|text| Secret::new(text.into_vec())).transpose()
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

/// Joins the job at `options.scheduler`. Any transport but [`Wish::Auto`] fails rather than take another; it also decides whether
/// memory is shared with servers of this host, whatever `options` say. Returns a client, and what its data travel over, with the
/// reasons; what each connection really goes through is in [`Client::routes`](rangefold_workers::Client::routes).
///
/// # Errors
/// [`JoinError`], within the deadline.
pub fn connect(options: &Options, transport: Wish) -> Result<(Client, Choice), JoinError> {
    let one_thread = options.one_thread;
    let endpoint = auto::Options { wish: transport, framing: remote::framing(), one_thread };
    let (endpoint, choice) = auto::Endpoint::new(&endpoint)?;
    let terms = Terms { sharing: endpoint.sharing(), ..options.terms.clone() };
    Ok((remote::connect(&Options { terms, ..options.clone() }, endpoint)?, choice))
}
