//! The accepting side: one address, a bounded number of handshakes at a time.
//! Knows sockets and deadlines; asks a handler who may come in. Called by the control thread of a process.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use thiserror::Error;

use super::Terms;
use super::dial::named;
use super::handshake::{Acceptor, Fault};
use super::message::{GREETING_BYTES_MAX, Hello, Purpose};
use super::secret::draw;
use super::stream::{Failure, Stream, converse, settle, write};
use crate::link::Link;

/// How a listener treats those who come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Handshakes at a time; further connections wait in the system's backlog.
    pub handshakes_max: usize,
    /// For the whole of a handshake.
    pub handshake_timeout: Duration,
    /// What they must prove, and how their silence is noticed.
    pub terms: Terms,
}

impl Default for Options {
    /// 16 threads are few and a stalled peer holds one for 5 s at most, so 16 stallers delay others by 5 s.
    fn default() -> Self {
        Self { handshakes_max: 16, handshake_timeout: Duration::from_secs(5), terms: Terms::default() }
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
    /// May this one come in?
    fn decide(&self, hello: &Hello, from: SocketAddr) -> Answer;
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
}

/// A bound address.
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    options: Options,
    counters: Counters,
    /// Rung by `stop`.
    bell: OwnedFd,
    stopped: AtomicBool,
    /// Handshakes under way, so that `stop` can end them.
    active: Mutex<BTreeMap<u64, TcpStream>>,
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
        Ok(Self {
            socket,
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
        }
    }

    /// Accepts connections on this thread until `stop`; handshakes run on threads of their own. Returns when all of
    /// them have ended.
    pub fn serve(&self, handler: &dyn Handler) {
        std::thread::scope(|scope| {
            for id in 0.. {
                self.wait_for_room();
                let Some((stream, from)) = self.next() else { break };
                count(&self.counters.connections);
                // A thread's clone, so that `stop` can end a handshake that waits.
                let Ok(clone) = stream.try_clone() else { continue };
                self.active().insert(id, clone);
                // Acquire, pairs with the Release in `stop`, which may have missed this one in the map.
                if self.stopped.load(Ordering::Acquire) {
                    self.leave(id);
                    break;
                }
                let handshake = std::thread::Builder::new().name("rangefold-hello".into());
                let spawned = handshake.spawn_scoped(scope, move || {
                    self.handshake(stream, from, handler);
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
        for stream in self.active().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Whether `stop` was called.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        // Acquire, pairs with the Release in `stop`.
        self.stopped.load(Ordering::Acquire)
    }

    fn active(&self) -> MutexGuard<'_, BTreeMap<u64, TcpStream>> {
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

    /// The next connection; `None` after `stop`.
    fn next(&self) -> Option<(TcpStream, SocketAddr)> {
        loop {
            // Acquire, pairs with the Release in `stop`.
            if self.stopped.load(Ordering::Acquire) {
                return None;
            }
            match self.socket.accept() {
                Ok((stream, from)) => {
                    if stream.set_nonblocking(false).is_ok() {
                        return Some((stream, from));
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let mut ready =
                        [PollFd::new(&self.socket, PollFlags::IN), PollFd::new(&self.bell, PollFlags::IN)];
                    // An error is a signal: look again.
                    let _ = poll(&mut ready, None);
                }
                // The connection is gone again, or files have run out: neither ends the listener.
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn handshake(&self, stream: TcpStream, from: SocketAddr, handler: &dyn Handler) {
        let (number, hello) = match self.receive(&stream, from, handler) {
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

    /// The accepting side of a handshake on any stream: the connection's number and what the other side has said, when it is
    /// in and has been told; or what it counts as.
    fn receive(
        &self,
        stream: &impl Stream,
        from: SocketAddr,
        handler: &dyn Handler,
    ) -> Result<(u64, Hello), &AtomicU64> {
        let deadline = Instant::now() + self.options.handshake_timeout;
        // Without random numbers a handshake could be replayed, and two connections take each other's frames: nobody comes in.
        let Ok(nonce) = draw() else { return Err(&self.counters.gone) };
        let Ok(number) = draw().map(u64::from_le_bytes) else { return Err(&self.counters.gone) };
        let mut acceptor = Acceptor::new(self.options.terms.secret.clone(), nonce);
        let heard = converse(stream, deadline, acceptor.begin(), |bytes| acceptor.take(bytes));
        let hello = heard.map_err(|failure| {
            if let Failure::Fault(fault) = &failure
                && let Some(farewell) = acceptor.farewell(fault)
            {
                // It may not want to hear it.
                let _ = write(stream, deadline, &farewell);
            }
            self.counter(&failure)
        })?;
        let greeting = match handler.decide(&hello, from) {
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
        let ready = acceptor.ready(number, &greeting);
        write(stream, deadline, &ready).map_err(|failure| self.counter(&failure))?;
        Ok((number, hello))
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
