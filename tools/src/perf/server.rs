//! The serving side of measurements: sessions, each with receivers on the raw transport or with a store of its own.
//! Knows sessions and threads; measures nothing. Run by `rangefold perf server`, and inside a client that names no server.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use rangefold_transport::auto::{self, NoSuchTransport, Wish};
use rangefold_transport::bootstrap::{Accepted, Answer as Admission, Handler, Hello, Listener, Terms};
use rangefold_transport::wait::{Clock, Loop};
use rangefold_transport::{Endpoint as _, Link};
use rangefold_workers::control_stream::{read, write};
use rangefold_workers::remote;

use super::cluster::{Cluster, Shard};
use super::connection::{self, Visitor};
use super::host::Host;
use super::options::ServerArguments;
use super::raw;
use super::session::{Answer, Ask, Chosen, Ready, agreed, keep, no_thread};
use crate::exit::{Unavailable, Verdict};
use crate::{say, usage};

/// Sessions at a time, and threads of one that it takes.
const SESSIONS_MAX: usize = 64;
const THREADS_MAX: u16 = 64;
/// How long a client may take to say what it wants.
const QUESTION: Duration = Duration::from_secs(5);

/// How a service is run.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) transport: Wish,
    /// Processors for the threads of a session, in order.
    pub(super) cores: Vec<usize>,
    pub(super) busy_poll: bool,
    /// Whether the clients' threads run in this process too, and compete for its processors.
    pub(super) shares_processors: bool,
    /// Says what happens; nothing where a client of the same process does.
    pub(super) told: fn(&str),
    /// What its connections are held to.
    pub(super) terms: Terms,
}

/// Receivers of one session.
struct Receivers {
    endpoint: auto::Options,
    turns: Loop,
    /// Raised when the session ends.
    stop: Arc<AtomicBool>,
    started: u16,
    threads: u16,
}

/// What all connections share.
struct Desk {
    options: Options,
    host: Host,
    listener: Arc<Listener>,
    next_session: AtomicU64,
    sessions: AtomicU64,
    receivers: Mutex<BTreeMap<u64, Receivers>>,
}

/// A service that listens. Dropping it stops it; sessions end with their clients.
pub(super) struct Service {
    listener: Arc<Listener>,
    thread: Option<JoinHandle<()>>,
}

/// `rangefold perf server`.
pub(super) fn run(arguments: &ServerArguments) -> anyhow::Result<Verdict> {
    let options = Options {
        transport: arguments.transport,
        cores: usage::cores(&arguments.pin, "--pin")?,
        busy_poll: arguments.busy_poll,
        shares_processors: false,
        told: say::note,
        terms: arguments.terms.terms()?,
    };
    let service = Service::start(&arguments.bind, options)?;
    let stopped = Arc::clone(&service.listener);
    ctrlc::set_handler(move || stopped.stop()).context("cannot catch interrupts")?;
    say::result("the address", &format!("{}{}\n", crate::scheduler::LISTENING, service.address()))?;
    service.serve();
    Ok(Verdict::Success)
}

impl Service {
    /// Listens at `address` and serves on a thread.
    ///
    /// # Errors
    /// The address cannot be bound, or others than this host could connect; the transport cannot be had.
    pub(super) fn start(address: &str, options: Options) -> anyhow::Result<Self> {
        // Now rather than when the first client comes.
        let (tried, _) = auto::Endpoint::new(&endpoint(options.transport, false))
            .map_err(|unavailable| Unavailable(unavailable.to_string()))?;
        let terms = Terms { sharing: tried.sharing(), ..options.terms.clone() };
        drop(tried);
        let listener = Arc::new(connection::listen(address, terms)?);
        if let Some(reason) = listener.unshared() {
            (options.told)(&format!("no memory is shared with clients of this host: {reason}"));
        }
        let desk = Arc::new(Desk {
            options,
            host: Host::here(),
            listener: Arc::clone(&listener),
            next_session: AtomicU64::new(1),
            sessions: AtomicU64::new(0),
            receivers: Mutex::default(),
        });
        let serving = Arc::clone(&listener);
        let serve = move || serving.serve(&Door(desk));
        let thread = thread::Builder::new().name("rangefold-perf-listen".into()).spawn(serve);
        Ok(Self { listener, thread: Some(thread.map_err(|error| no_thread(&error))?) })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Waits until it is stopped.
    fn serve(mut self) {
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so on standard error.
            let _ = thread.join();
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.listener.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How an endpoint of this wish is made, for the raw transport or a store's frames.
fn endpoint(wish: Wish, store: bool) -> auto::Options {
    auto::Options { wish, framing: if store { remote::framing() } else { raw::framing() }, one_thread: true }
}

/// Lets clients in.
struct Door(Arc<Desk>);

impl Handler for Door {
    fn decide(&self, hello: &Hello, _: Option<SocketAddr>) -> Admission {
        match connection::visitor(hello) {
            Ok(Visitor::Data(session)) if !self.0.receivers().contains_key(&session) => {
                Admission::Refuse { text: format!("there is no session {session} here") }
            }
            Ok(_) => Admission::Accept { greeting: Vec::new() },
            Err(text) => Admission::Refuse { text },
        }
    }

    fn accepted(&self, accepted: Accepted) {
        match accepted {
            Accepted::Data { link, hello, .. } => {
                if let Ok(Visitor::Data(session)) = connection::visitor(&hello) {
                    self.0.receive(session, link);
                }
            }
            Accepted::Control { stream, .. } => {
                let desk = Arc::clone(&self.0);
                let session = move || desk.session(&stream);
                // Without a thread the connection is dropped, and the client says so.
                let _ = thread::Builder::new().name("rangefold-perf-session".into()).spawn(session);
            }
        }
    }
}

impl Desk {
    fn receivers(&self) -> MutexGuard<'_, BTreeMap<u64, Receivers>> {
        self.receivers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session, from its question to its end.
    fn session(&self, stream: &TcpStream) {
        let from = stream.peer_addr().map_or_else(|_| "a client".into(), |address| address.to_string());
        // Relaxed: a bound, and what it guards is guarded elsewhere.
        if self.sessions.fetch_add(1, Ordering::Relaxed) < SESSIONS_MAX as u64 {
            let outcome = self.attend(stream, &from);
            let words = outcome
                .map_or_else(|error| format!("{from}: refused: {error:#}"), |()| format!("{from}: done"));
            (self.options.told)(&words);
        } else {
            let text = format!("{SESSIONS_MAX} sessions are under way, which is the limit");
            let _ = write(stream, &Answer::Refused { text, unavailable: false });
        }
        self.sessions.fetch_sub(1, Ordering::Relaxed);
    }

    fn attend(&self, stream: &TcpStream, from: &str) -> anyhow::Result<()> {
        stream.set_read_timeout(Some(QUESTION))?;
        stream.set_write_timeout(Some(QUESTION))?;
        let ask: Ask = read(stream).context("it did not say what it wants")?;
        // Relaxed: only that numbers differ matters.
        let session = self.next_session.fetch_add(1, Ordering::Relaxed);
        let refuse = |error: anyhow::Error, unavailable| {
            let answer = Answer::Refused { text: format!("{error:#}"), unavailable };
            // It hears of the end in any case.
            let _ = write(stream, &answer);
            error
        };
        if !(1..=THREADS_MAX).contains(&ask.threads) {
            return Err(refuse(anyhow::anyhow!("a session has 1 to {THREADS_MAX} threads"), false));
        }
        let asked = ask.transport.parse().map_err(|error: NoSuchTransport| refuse(error.into(), true))?;
        let wish =
            agreed(self.options.transport, asked).map_err(|text| refuse(anyhow::anyhow!(text), true))?;
        let options = endpoint(wish, ask.store);
        let (tried, choice) =
            auto::Endpoint::new(&options).map_err(|unavailable| refuse(unavailable.into(), true))?;
        let body_bytes_max = u64::from(tried.capabilities().body_bytes_max);
        let sharing = tried.sharing();
        drop(tried);
        let busy_threads = self.busy_threads(&ask);
        let turns = Loop::new(Clock::new(), busy_threads).busy(self.options.busy_poll);
        let mut ready = Ready {
            session,
            host: self.host.clone(),
            chosen: Chosen::before(choice),
            waiting: turns.to_string(),
            body_bytes_max,
            scheduler_port: 0,
        };
        // Lives as long as the session.
        let _serving: Serving<'_> = if ask.store {
            let shard = Shard {
                endpoint: &options,
                cores: self.options.cores.clone(),
                busy_threads,
                busy_poll: self.options.busy_poll,
                terms: Terms { sharing, ..self.options.terms.clone() },
            };
            let ip = stream.local_addr()?.ip();
            let cluster = Cluster::start(ip, shard).map_err(|error| refuse(error, false))?;
            ready.scheduler_port = cluster.scheduler_port();
            Serving::Store { _cluster: cluster }
        } else {
            let stop = Arc::new(AtomicBool::new(false));
            let receivers = Receivers { endpoint: options, turns, stop, started: 0, threads: ask.threads };
            self.receivers().insert(session, receivers);
            Serving::Raw { desk: self, session }
        };
        (self.options.told)(&format!(
            "{from}: {} over {}",
            if ask.store { "a store" } else { "the raw transport" },
            ready.chosen.transport
        ));
        write(stream, &Answer::Ready(ready))?;
        keep(stream, || self.listener.is_stopped());
        Ok(())
    }

    /// Threads that may spin at once on this host for a session.
    fn busy_threads(&self, ask: &Ask) -> usize {
        // One thread drives a store's client at a time.
        let ours = if ask.store { 1 } else { usize::from(ask.threads) };
        if self.options.shares_processors { 2 * ours } else { ours }
    }

    /// Starts a receiver of a session.
    fn receive(&self, session: u64, link: Link) {
        let mut all = self.receivers();
        let Some(receivers) = all.get_mut(&session).filter(|receivers| receivers.started < receivers.threads)
        else {
            return;
        };
        let core = self.options.cores.get(usize::from(receivers.started)).copied();
        receivers.started += 1;
        let (endpoint, turns, stop) = (receivers.endpoint, receivers.turns, Arc::clone(&receivers.stop));
        drop(all);
        let receive = move || {
            // A thread that stays where it was is slower, and no worse.
            let _ = core.map(rangefold::pinning::pin);
            // It could be made when the session began. Without it the link is dropped, and the client hears of that.
            if let Ok((endpoint, _)) = auto::Endpoint::new(&endpoint) {
                raw::receiver::receive(endpoint, link, turns, &stop);
            }
        };
        let _ = thread::Builder::new().name("rangefold-perf-receive".into()).spawn(receive);
    }
}

/// What a session runs on, ended with it.
enum Serving<'a> {
    Store { _cluster: Cluster },
    Raw { desk: &'a Desk, session: u64 },
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        if let Self::Raw { desk, session } = self
            && let Some(receivers) = desk.receivers().remove(session)
        {
            receivers.stop.store(true, Ordering::Relaxed);
        }
    }
}
