//! The accepting side: one address, a Unix socket beside it if memory is shared, a bounded number of handshakes at a time.
//! Knows sockets and deadlines; asks a handler who may come in. Called by the control thread of a process.
//!
//! Who comes to the Unix socket is treated as who comes to the address: it counts among the same handshakes, has the same time,
//! the making of the link included, and proves the same.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use thiserror::Error;

use super::Terms;
use super::dial::named;
use super::handshake::{Acceptor, Fault, Visitor};
use super::message::{GREETING_BYTES_MAX, Hello, Purpose};
use super::secret::draw;
use super::sharing::{Ability, Direction, Door, Sharing, direct};
use super::stream::{Failure, Stream, converse, settle, write};
use super::unix::UnixDoor;
use crate::link::{Kind, Link};
use crate::shm::{self, ExchangeError, RING_BYTES_DEFAULT};

/// How a listener treats those who come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Handshakes at a time; further connections wait in the system's backlog.
    pub handshakes_max: usize,
    /// For the whole of a handshake.
    pub handshake_timeout: Duration,
    /// What they must prove, how their silence is noticed, and whether data go through shared memory.
    pub terms: Terms,
    /// Links through shared memory at a time; each maps up to twice [`RING_BYTES_DEFAULT`] and a page, charged to the other side.
    pub shared_links_max: usize,
}

/// So many links have 1 GiB of rings, which is what an endpoint takes ([`shm::Limits`]).
const SHARED_LINKS_MAX: usize = 511;

impl Default for Options {
    /// 16 threads are few and a stalled peer holds one for 5 s at most, so 16 stallers delay others by 5 s. Of links through
    /// shared memory as many as one endpoint takes: more go over TCP.
    fn default() -> Self {
        Self {
            handshakes_max: 16,
            handshake_timeout: Duration::from_secs(5),
            terms: Terms::default(),
            shared_links_max: SHARED_LINKS_MAX,
        }
    }
}

/// Why an address cannot be listened on.
#[derive(Debug, Error)]
pub enum BindError {
    /// The text is no address of this machine.
    #[error(
        "cannot listen on {address}: {source}; expected host:port or [IPv6]:port, where the host is a name or address of \
         this machine"
    )]
    Address {
        /// As given.
        address: String,
        /// The system's words.
        source: std::io::Error,
    },
    /// Others than this host could connect, and nobody would have to prove anything.
    #[error(
        "{address} can be reached from other hosts, and without a cluster secret only loopback addresses are listened on: give \
         all nodes the same secret (--secret-file or RANGEFOLD_SECRET), or bind a loopback address"
    )]
    Exposed {
        /// As given, and what it was resolved to.
        address: String,
    },
    /// Somebody listens there.
    #[error(
        "cannot listen on {address}: {source}; another process uses this port: stop it (ss -ltnp names it), choose another \
         port, or port 0 for any free one"
    )]
    InUse {
        /// As given.
        address: String,
        /// The system's words.
        source: std::io::Error,
    },
    /// A port below 1,024.
    #[error("cannot listen on {address}: {source}; ports below 1024 need privileges: choose a higher one")]
    Privileged {
        /// As given.
        address: String,
        /// The system's words.
        source: std::io::Error,
    },
    /// Shared memory was required.
    #[error("cannot share memory with the processes of this host (--transport shm): {reason}")]
    Unshared {
        /// Why not.
        reason: String,
    },
    /// Anything else.
    #[error(
        "cannot listen on {address}: {source}; the limit on open files (ulimit -n) or a security policy may be the cause"
    )]
    System {
        /// As given.
        address: String,
        /// The system's words.
        source: std::io::Error,
    },
}

/// What the handler says to a hello.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Come in; the greeting (at most [`GREETING_BYTES_MAX`] bytes) goes back.
    Accept {
        /// Opaque here.
        greeting: Vec<u8>,
    },
    /// Stay out; the other side is told why, shortened to 256 bytes.
    Refuse {
        /// For the other side's operator.
        text: String,
    },
}

/// A connection after its handshake.
#[derive(Debug)]
pub enum Accepted {
    /// For an endpoint.
    Data {
        /// To be adopted.
        link: Link,
        /// By the endpoint of this shard.
        shard: u16,
        /// What the other side had said.
        hello: Hello,
    },
    /// For a control thread.
    Control {
        /// Blocking, without timeouts.
        stream: TcpStream,
        /// The connection's number.
        number: u64,
        /// What the other side had said.
        hello: Hello,
    },
}

/// Decides who comes in, and takes them. Called on handshake threads, several at a time; must not block for long.
pub trait Handler: Sync {
    /// May this one come in? Over the Unix socket nobody has an address.
    fn decide(&self, hello: &Hello, from: Option<SocketAddr>) -> Answer;
    /// It is in: the other side has been told.
    fn accepted(&self, accepted: Accepted);
}

/// What has happened so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Stats {
    /// Connections that the system gave out.
    pub connections: u64,
    /// Handshakes that ended well.
    pub accepted: u64,
    /// Refused by the handler.
    pub refused: u64,
    /// Turned away because they did not prove that they know the secret, or want one that this side has not.
    pub unauthenticated: u64,
    /// Of another version.
    pub other_version: u64,
    /// Cut off because they had not finished in time.
    pub late: u64,
    /// Cut off because they spoke something else (a scanner, a browser).
    pub foreign: u64,
    /// Gone by themselves before the end of the handshake.
    pub gone: u64,
    /// Sent on to the Unix socket, where they come again.
    pub referred: u64,
    /// Proven there, and yet no memory was shared: theirs was not fit, or could not be mapped.
    pub unshared: u64,
}

impl Stats {
    /// Who was turned away or went, and how many, in words; nothing if nobody was.
    #[must_use]
    pub fn turned_away(&self) -> Option<String> {
        let kinds = [
            (self.unauthenticated, "did not prove the cluster secret"),
            (self.refused, "asked for what is not here"),
            (self.other_version, "of another version"),
            (self.foreign, "spoke something else"),
            (self.late, "did not finish in time"),
            (self.gone, "went away"),
            (self.unshared, "offered memory that cannot be shared"),
        ];
        let some: Vec<String> = kinds
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        (!some.is_empty()).then(|| some.join(", "))
    }
}

#[derive(Default)]
struct Counters {
    connections: AtomicU64,
    accepted: AtomicU64,
    refused: AtomicU64,
    unauthenticated: AtomicU64,
    other_version: AtomicU64,
    late: AtomicU64,
    foreign: AtomicU64,
    gone: AtomicU64,
    referred: AtomicU64,
    unshared: AtomicU64,
}

/// Somebody who has connected.
enum Caller {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// The means to end a handshake that waits.
enum Ending {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Caller {
    fn ending(&self) -> std::io::Result<Ending> {
        match self {
            Self::Tcp(stream, _) => stream.try_clone().map(Ending::Tcp),
            Self::Unix(stream) => stream.try_clone().map(Ending::Unix),
        }
    }
}

impl Ending {
    fn end(&self) {
        // One that is gone by itself needs no end.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

/// A bound address.
pub struct Listener {
    socket: TcpListener,
    /// Where processes of this host come to share memory, or why they cannot; without either if nobody wants it.
    unix: Option<Result<UnixDoor, String>>,
    /// Which of the two is looked at first; in turn.
    unix_first: AtomicBool,
    address: SocketAddr,
    options: Options,
    counters: Counters,
    /// Rung by `stop`.
    bell: OwnedFd,
    stopped: AtomicBool,
    /// Handshakes under way, so that `stop` can end them.
    active: Mutex<BTreeMap<u64, Ending>>,
    /// One has ended.
    ended: Condvar,
}

impl Listener {
    /// Listens on `address` (`host:port`, `[::1]:0`); the first resolved address that works is used. Without a secret, every
    /// one must be a loopback address.
    ///
    /// # Errors
    /// [`BindError`], with the likely cause and its remedy.
    pub fn bind(address: &str, options: Options) -> Result<Self, BindError> {
        let explain = |source: std::io::Error| {
            let address = address.to_owned();
            match source.kind() {
                std::io::ErrorKind::AddrInUse => BindError::InUse { address, source },
                std::io::ErrorKind::PermissionDenied => BindError::Privileged { address, source },
                std::io::ErrorKind::AddrNotAvailable => BindError::Address { address, source },
                _ => BindError::System { address, source },
            }
        };
        let resolved = address
            .to_socket_addrs()
            .map_err(|source| BindError::Address { address: address.to_owned(), source })?;
        let resolved: Vec<_> = resolved.collect();
        let exposed = resolved.iter().find(|address| !address.ip().to_canonical().is_loopback());
        if let (None, Some(exposed)) = (&options.terms.secret, exposed) {
            return Err(BindError::Exposed { address: named(address, exposed) });
        }
        let socket = TcpListener::bind(resolved.as_slice()).map_err(explain)?;
        // Ready may be said of a connection that is gone by the time it is accepted.
        socket.set_nonblocking(true).map_err(explain)?;
        let bound = socket.local_addr().map_err(explain)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let sharing = options.terms.sharing;
        let unix = (sharing != Sharing::Never).then(|| UnixDoor::open(options.shared_links_max));
        if let (Sharing::Required, Some(Err(reason))) = (sharing, &unix) {
            return Err(BindError::Unshared { reason: reason.clone() });
        }
        Ok(Self {
            socket,
            unix,
            unix_first: AtomicBool::new(false),
            address: bound,
            options,
            counters: Counters::default(),
            bell: bell.map_err(|errno| explain(errno.into()))?,
            stopped: AtomicBool::new(false),
            active: Mutex::default(),
            ended: Condvar::new(),
        })
    }

    /// The address that is listened on, with the port that the system chose.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Why it shares no memory with the processes of this host, though it should.
    #[must_use]
    pub fn unshared(&self) -> Option<&str> {
        self.unix.as_ref()?.as_ref().err().map(String::as_str)
    }

    /// What has happened so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        // Relaxed: numbers for people, each by itself.
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            connections: read(&self.counters.connections),
            accepted: read(&self.counters.accepted),
            refused: read(&self.counters.refused),
            unauthenticated: read(&self.counters.unauthenticated),
            other_version: read(&self.counters.other_version),
            late: read(&self.counters.late),
            foreign: read(&self.counters.foreign),
            gone: read(&self.counters.gone),
            referred: read(&self.counters.referred),
            unshared: read(&self.counters.unshared),
        }
    }

    /// Accepts connections on this thread until `stop`; handshakes run on threads of their own. Returns when all of
    /// them have ended.
    pub fn serve(&self, handler: &dyn Handler) {
        std::thread::scope(|scope| {
            for id in 0.. {
                self.wait_for_room();
                let Some(caller) = self.next() else { break };
                count(&self.counters.connections);
                // A clone of the stream, so that `stop` can end a handshake that waits.
                let Ok(ending) = caller.ending() else { continue };
                self.active().insert(id, ending);
                // Acquire, pairs with the Release in `stop`, which may have missed this one in the map.
                if self.stopped.load(Ordering::Acquire) {
                    self.leave(id);
                    break;
                }
                let handshake = std::thread::Builder::new().name("rangefold-hello".into());
                let spawned = handshake.spawn_scoped(scope, move || {
                    match caller {
                        Caller::Tcp(stream, from) => self.at_address(stream, from, handler),
                        Caller::Unix(stream) => self.at_unix_socket(stream, handler),
                    }
                    self.leave(id);
                });
                if spawned.is_err() {
                    // No thread to be had: this one is dropped, later ones may be luckier.
                    self.leave(id);
                }
            }
        });
    }

    /// Ends `serve`, from any thread; handshakes under way are cut off. For good.
    pub fn stop(&self) {
        // Release, pairs with the Acquire in `next` (the bell orders it as well).
        self.stopped.store(true, Ordering::Release);
        // The bell is never read, so it stays rung. It cannot be full: it is rung once a call.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        for ending in self.active().values() {
            ending.end();
        }
    }

    /// Whether `stop` was called.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        // Acquire, pairs with the Release in `stop`.
        self.stopped.load(Ordering::Acquire)
    }

    fn active(&self) -> MutexGuard<'_, BTreeMap<u64, Ending>> {
        // A handler that panics leaves the map whole.
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, id: u64) {
        self.active().remove(&id);
        self.ended.notify_all();
    }

    fn wait_for_room(&self) {
        let mut active = self.active();
        while active.len() >= self.options.handshakes_max.max(1) {
            active = self.ended.wait(active).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The Unix socket beside the address, if memory is shared.
    pub(super) fn unix(&self) -> Option<&UnixDoor> {
        self.unix.as_ref()?.as_ref().ok()
    }

    /// The next connection; `None` after `stop`.
    fn next(&self) -> Option<Caller> {
        loop {
            // Acquire, pairs with the Release in `stop`.
            if self.stopped.load(Ordering::Acquire) {
                return None;
            }
            match self.accept() {
                Ok(caller) => return Some(caller),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let tcp = PollFd::new(&self.socket, PollFlags::IN);
                    let bell = PollFd::new(&self.bell, PollFlags::IN);
                    // An error is a signal: look again.
                    let _ = match self.unix() {
                        Some(unix) => {
                            poll(&mut [tcp, bell, PollFd::new(&unix.listener, PollFlags::IN)], None)
                        }
                        None => poll(&mut [tcp, bell], None),
                    };
                }
                // The connection is gone again, or files have run out: neither ends the listener.
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Takes one from either socket. In turn, so that many at one do not keep those at the other waiting.
    fn accept(&self) -> std::io::Result<Caller> {
        // Relaxed: one thread serves.
        let unix_first = self.unix_first.fetch_xor(true, Ordering::Relaxed);
        let mut nobody = Err(std::io::ErrorKind::WouldBlock.into());
        for unix in [unix_first, !unix_first] {
            match if unix { self.accept_unix() } else { self.accept_tcp() } {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => nobody = Err(error),
                caller => return caller,
            }
        }
        nobody
    }

    fn accept_tcp(&self) -> std::io::Result<Caller> {
        let (stream, from) = self.socket.accept()?;
        stream.set_nonblocking(false)?;
        Ok(Caller::Tcp(stream, from))
    }

    fn accept_unix(&self) -> std::io::Result<Caller> {
        let unix = self.unix().ok_or(std::io::ErrorKind::WouldBlock)?;
        let (stream, _) = unix.listener.accept()?;
        stream.set_nonblocking(false)?;
        Ok(Caller::Unix(stream))
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.options.handshake_timeout
    }

    fn at_address(&self, stream: TcpStream, from: SocketAddr, handler: &dyn Handler) {
        let received = self.receive(&stream, Door::Tcp, Some(from), self.deadline(), handler);
        let (number, Visitor { hello, .. }) = match received {
            Ok(received) => received,
            Err(counter) => return count(counter),
        };
        let accepted = settle(&stream, &self.options.terms).and_then(|()| match hello.purpose {
            Purpose::Data { shard } => {
                Link::tcp(stream, number).map(|link| Accepted::Data { link, shard, hello })
            }
            Purpose::Control => Ok(Accepted::Control { stream, number, hello }),
        });
        match accepted {
            Ok(accepted) => {
                count(&self.counters.accepted);
                handler.accepted(accepted);
            }
            Err(_) => count(&self.counters.gone),
        }
    }

    fn at_unix_socket(&self, stream: UnixStream, handler: &dyn Handler) {
        let deadline = self.deadline();
        let (number, Visitor { hello, origin }) =
            match self.receive(&stream, Door::Unix, None, deadline, handler) {
                Ok(received) => received,
                Err(counter) => return count(counter),
            };
        let Purpose::Data { shard } = hello.purpose else { return count(&self.counters.foreign) };
        // Another one was quicker to take the last place.
        let Some(counted) = self.unix().and_then(UnixDoor::count_one) else {
            return count(&self.counters.unshared);
        };
        match shm::accept(stream, number, RING_BYTES_DEFAULT, deadline) {
            Ok(mut link) => {
                if let Kind::Shm(half) = &mut link.kind {
                    half.address = Some(format!("process {} of this host", origin.process).into());
                    half.counted = Some(counted);
                }
                count(&self.counters.accepted);
                handler.accepted(Accepted::Data { link, shard, hello });
            }
            Err(ExchangeError::Late) => count(&self.counters.late),
            Err(ExchangeError::Closed) => count(&self.counters.gone),
            Err(_) => count(&self.counters.unshared),
        }
    }

    /// The accepting side of a handshake on any stream: the connection's number and who the other side is, when it is
    /// in and has been told; or what it counts as.
    fn receive(
        &self,
        stream: &impl Stream,
        door: Door,
        from: Option<SocketAddr>,
        deadline: Instant,
        handler: &dyn Handler,
    ) -> Result<(u64, Visitor), &AtomicU64> {
        // Without random numbers a handshake could be replayed, and two connections take each other's frames: nobody comes in.
        let Ok(nonce) = draw() else { return Err(&self.counters.gone) };
        let Ok(number) = draw().map(u64::from_le_bytes) else { return Err(&self.counters.gone) };
        let mut acceptor = Acceptor::new(self.options.terms.secret.clone(), nonce);
        let heard = converse(stream, deadline, acceptor.begin(), |bytes| acceptor.take(bytes));
        let visitor = heard.map_err(|failure| {
            if let Failure::Fault(fault) = &failure
                && let Some(farewell) = acceptor.farewell(fault)
            {
                // It may not want to hear it.
                let _ = write(stream, deadline, &farewell);
            }
            self.counter(&failure)
        })?;
        let ability = self.unix().map_or(Ability::Unable, UnixDoor::ability);
        let sharing = self.options.terms.sharing;
        let unshared = match direct(door, sharing, ability, visitor.hello.purpose, &visitor.origin) {
            Direction::Here(unshared) => unshared,
            Direction::Elsewhere => {
                // Whether it may come in is decided where it comes in.
                let name = self.unix().map_or(&[][..], |unix| &unix.name);
                let told = write(stream, deadline, &acceptor.elsewhere(name));
                return Err(told.map_or_else(|failure| self.counter(&failure), |()| &self.counters.referred));
            }
            Direction::Out(text) => {
                let _ = write(stream, deadline, &acceptor.refused(&text));
                return Err(&self.counters.refused);
            }
        };
        let greeting = match handler.decide(&visitor.hello, from) {
            Answer::Accept { greeting } if greeting.len() <= GREETING_BYTES_MAX => greeting,
            Answer::Accept { greeting } => {
                debug_assert!(false, "a greeting of {} bytes", greeting.len());
                return Err(&self.counters.refused);
            }
            Answer::Refuse { text } => {
                let _ = write(stream, deadline, &acceptor.refused(&text));
                return Err(&self.counters.refused);
            }
        };
        let ready = acceptor.ready(number, &greeting, unshared);
        write(stream, deadline, &ready).map_err(|failure| self.counter(&failure))?;
        Ok((number, visitor))
    }

    fn counter(&self, failure: &Failure) -> &AtomicU64 {
        match failure {
            Failure::Late => &self.counters.late,
            Failure::Closed => &self.counters.gone,
            Failure::Fault(Fault::Version(_)) => &self.counters.other_version,
            Failure::Fault(Fault::Unauthenticated(_)) => &self.counters.unauthenticated,
            // Only a dialler is refused.
            Failure::Fault(Fault::Foreign | Fault::Refused(_)) => &self.counters.foreign,
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listener({})", self.address)
    }
}

fn count(counter: &AtomicU64) {
    // Relaxed: numbers for people.
    counter.fetch_add(1, Ordering::Relaxed);
}
