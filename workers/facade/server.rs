//! A server process: shard threads behind a listener, and the control connection to the scheduler.
//! Knows threads, addresses and the control stream; decides nothing. Run by `rangefold server`.
//! Source: OSDI'14 §3 (server node), §4.5; `kvstore/DESIGN.md` (one thread owns a shard).

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rangefold_kvstore::{Command, ShardHandle};
use rangefold_proto::client::Grant;
use rangefold_proto::{Limits, ServerId};
use rangefold_transport::Endpoint;
use rangefold_transport::bootstrap::{
    Accepted, Answer, BindError, DialError, Handler, Hello, Listener, Options as Listening, Purpose, Stats,
    Terms,
};
use rangefold_transport::wait::{Clock, Loop};
use rangefold_workers::control_stream::{FromScheduler, ToScheduler, read, write};
use rangefold_workers::coordinator::News;
use rangefold_workers::remote::{JOB, dial_control};

pub use crate::shards::Loss;
use crate::shards::{Plan, Shards, tell};

/// How long the scheduler may take to answer.
const ANSWER: Duration = Duration::from_secs(20);
/// Between two signs of life.
const ALIVE: Duration = Duration::from_millis(500);

/// How a server is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// The scheduler's address, host and port.
    pub scheduler: String,
    /// Where to listen; port 0 takes any.
    pub bind: String,
    /// Where others reach it, if that is not where it listens. Port 0 is the one that it listens on.
    pub advertise: Option<String>,
    /// Shard threads.
    pub shards: u16,
    /// The number it would like to be known by, below the number of servers that the cluster is to have.
    pub number: Option<u32>,
    /// Processors for the shard threads, in order; shards beyond them are not pinned.
    pub cores: Vec<usize>,
    /// Threads that may spin at once on this host, this process's and others'; shards do not spin when they outnumber the
    /// processors.
    pub busy_threads: usize,
    /// Whether the shard threads spin for ever instead, each with a processor to itself.
    pub busy_poll: bool,
    /// Capacities.
    pub limits: Limits,
    /// How long joining may take.
    pub deadline: Duration,
    /// What the cluster's connections are held to: its secret, how a silent peer is noticed, and whether data go through shared
    /// memory, which must be what the endpoints take.
    pub terms: Terms,
}

/// Why a server does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// It listens on every address, and others can be told one only.
    #[error(
        "{0} stands for every address of this host, and others must be told one: bind one (--bind, --interface), or advertise \
         one (--advertise)"
    )]
    Nowhere(SocketAddr),
    /// The scheduler cannot be reached.
    #[error("cannot reach the scheduler (--scheduler, RANGEFOLD_SCHEDULER): {0}")]
    Dial(#[from] DialError),
    /// The scheduler refuses.
    #[error("the scheduler refuses this server: {0}")]
    Refused(String),
    /// The control connection broke.
    #[error("the connection to the scheduler broke: {0}")]
    Stream(io::Error),
    /// The system gives no thread.
    #[error("cannot start a thread: {0}; raise the limit on processes (ulimit -u)")]
    Thread(#[from] io::Error),
    /// The transport cannot be used here.
    #[error("{0}")]
    Transport(String),
}

/// A server that has joined and does not serve yet.
pub struct Server {
    listener: Arc<Listener>,
    control: TcpStream,
    server: ServerId,
    shards: Shards,
    grant: Grant,
}

/// Ends a server from another thread, and sees who comes.
#[derive(Clone)]
pub struct Stopper(Arc<Listener>);

impl Stopper {
    /// Ends `serve`.
    pub fn stop(&self) {
        self.0.stop();
    }

    /// Who has come to the server's door so far, and what became of them.
    #[must_use]
    pub fn visitors(&self) -> Stats {
        self.0.stats()
    }
}

impl Server {
    /// Listens, joins at the scheduler, starts the shards; `endpoint` makes one for each, and `lost` hears of each connection that
    /// one loses, on its thread.
    ///
    /// # Errors
    /// [`ServeError`], within the deadline.
    pub fn start<E: Endpoint + Send + 'static>(
        options: &Options,
        mut endpoint: impl FnMut() -> Result<E, String>,
        lost: impl Fn(&Loss<'_>) + Clone + Send + 'static,
    ) -> Result<Self, ServeError> {
        let listening = Listening { terms: options.terms.clone(), ..Listening::default() };
        let listener = Arc::new(Listener::bind(&options.bind, listening)?);
        let address = advertised(options.advertise.as_deref(), listener.address())?;
        let control = dial_control(&options.scheduler, &options.terms, options.deadline)?;
        control.set_read_timeout(Some(options.deadline)).map_err(ServeError::Stream)?;
        control.set_write_timeout(Some(ANSWER)).map_err(ServeError::Stream)?;
        let (shards, number) = (options.shards, options.number);
        let join = ToScheduler::JoinServer { address, shards, host: 0, number };
        write(&control, &join).map_err(ServeError::Stream)?;
        let server = match read(&control).map_err(ServeError::Stream)? {
            FromScheduler::Server(server) => server,
            FromScheduler::Refused(text) => return Err(ServeError::Refused(text)),
            _ => return Err(ServeError::Refused("it answered another question".into())),
        };
        control.set_read_timeout(None).map_err(ServeError::Stream)?;
        let busy_threads = options.busy_threads.max(usize::from(options.shards));
        let plan = Plan {
            server,
            shards: options.shards,
            job: JOB,
            limits: options.limits,
            turns: Loop::new(Clock::new(), busy_threads).busy(options.busy_poll),
            cores: &options.cores,
        };
        let shards = Shards::start(&plan, || endpoint().map_err(ServeError::Transport), lost)?;
        let grant =
            Grant { push_bytes: options.limits.push_bytes_per_link, pulls: options.limits.pulls_per_link };
        Ok(Self { listener, control, server, shards, grant })
    }

    /// Whether only this host reaches it, while its scheduler is found by an address that others may reach.
    #[must_use]
    pub fn is_confined(&self) -> bool {
        let scheduler = self.control.peer_addr().map(|address| address.ip().to_canonical());
        self.address().ip().is_loopback() && scheduler.is_ok_and(|address| !address.is_loopback())
    }

    /// Why it shares no memory with workers of this host, though it should.
    #[must_use]
    pub fn unshared(&self) -> Option<&str> {
        self.listener.unshared()
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> ServerId {
        self.server
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// What ends it from another thread.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.listener))
    }

    /// Serves until it is told to stop, by the scheduler or a [`Stopper`]. Without the scheduler it goes on, and `alone` is called
    /// once: data traffic does not need it, but nobody can join any more.
    ///
    /// # Errors
    /// [`ServeError::Stream`], [`ServeError::Thread`].
    pub fn serve(self, alone: impl FnOnce() + Send + 'static) -> Result<(), ServeError> {
        let Self { listener, control, shards, grant, .. } = self;
        let ears = control.try_clone().map_err(ServeError::Stream)?;
        let (told, stopping) = (shards.handles().to_vec(), Arc::clone(&listener));
        let hear = move || {
            while let Ok(message) = read::<FromScheduler>(&ears) {
                let FromScheduler::News(news) = message else { continue };
                if news == News::Stop {
                    return stopping.stop();
                }
                tell(&told, &news);
            }
            if !stopping.is_stopped() {
                alone();
            }
        };
        thread::Builder::new().name("rangefold-control".into()).spawn(hear).map_err(ServeError::Thread)?;
        let mouth = control.try_clone().map_err(ServeError::Stream)?;
        let alive = move || {
            while write(&mouth, &ToScheduler::Alive).is_ok() {
                thread::sleep(ALIVE);
            }
        };
        thread::Builder::new().name("rangefold-alive".into()).spawn(alive).map_err(ServeError::Thread)?;
        listener.serve(&Door { shards: shards.handles(), grant });
        drop(shards);
        // Ends both threads of the control connection.
        let _ = control.shutdown(Shutdown::Both);
        Ok(())
    }
}

/// Where others are told to reach a server that listens on `bound`.
fn advertised(wish: Option<&str>, bound: SocketAddr) -> Result<String, ServeError> {
    match wish {
        Some(wish) => Ok(wish
            .strip_suffix(":0")
            .map_or_else(|| wish.to_owned(), |host| format!("{host}:{}", bound.port()))),
        None if bound.ip().is_unspecified() => Err(ServeError::Nowhere(bound)),
        None => Ok(bound.to_string()),
    }
}

/// Lets workers in to the shard that they ask for.
struct Door<'a> {
    shards: &'a [ShardHandle],
    grant: Grant,
}

impl Handler for Door<'_> {
    fn decide(&self, hello: &Hello, _: Option<SocketAddr>) -> Answer {
        match hello.purpose {
            Purpose::Control => {
                Answer::Refuse { text: "this is a server; control connections go to the scheduler".into() }
            }
            Purpose::Data { shard } if usize::from(shard) >= self.shards.len() => Answer::Refuse {
                text: format!("this server has {} shards, and none of number {shard}", self.shards.len()),
            },
            Purpose::Data { .. } if hello.job != JOB.0 => {
                Answer::Refuse { text: format!("this server serves job {}, not {}", JOB.0, hello.job) }
            }
            Purpose::Data { .. } => Answer::Accept { greeting: self.grant.encode().to_vec() },
        }
    }

    fn accepted(&self, accepted: Accepted) {
        if let Accepted::Data { link, shard, .. } = accepted
            && let Some(shard) = self.shards.get(usize::from(shard))
        {
            // A shard that takes no commands drops the link, and the other side hears of that.
            let _ = shard.command(Command::Adopt(link));
        }
    }
}
