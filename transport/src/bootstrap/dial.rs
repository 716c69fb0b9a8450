//! The dialling side: resolve, connect, shake hands, all within one deadline; then the same again at the acceptor's Unix socket,
//! if both sides share memory.
//! Knows addresses and reasons for failure; does not know what a greeting says. Called by whoever needs a connection.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::Terms;
use super::handshake::{Dialler, Fault, Mismatch, Verdict, Welcome};
use super::message::{Hello, Purpose, VERSION};
use super::secret::draw;
use super::sharing::{Asked, Kernel, Origin, Sharing, Unshared};
use super::stream::{Failure, Stream, converse, settle};
use super::unix::{Unreached, reach};
use crate::link::{Kind, Link};
use crate::shm::{self, RING_BYTES_DEFAULT};

/// A connection after its handshake.
#[derive(Debug)]
pub enum Dialed {
    /// For an endpoint.
    Data {
        /// To be adopted.
        link: Link,
        /// What the acceptor said.
        greeting: Vec<u8>,
    },
    /// For a control thread.
    Control {
        /// Blocking, without timeouts.
        stream: TcpStream,
        /// The connection's number.
        number: u64,
        /// What the acceptor said.
        greeting: Vec<u8>,
    },
}

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum DialError {
    /// The address means nothing.
    #[error(
        "cannot resolve {address}: {source}; expected host:port or [IPv6]:port, and a name that this machine knows"
    )]
    Resolve {
        /// As given.
        address: String,
        /// The system's words.
        source: std::io::Error,
    },
    /// The host answers, and no process listens.
    #[error(
        "nothing listens on {address} ({source}): its process is not started yet, has ended, or uses another port or interface"
    )]
    NothingListens {
        /// As given, and what it was resolved to.
        address: String,
        /// The system's words.
        source: std::io::Error,
    },
    /// No way there.
    #[error("cannot reach {address}: {source}; check the route, the firewall, and that the host is up")]
    Unreachable {
        /// As given, and what it was resolved to.
        address: String,
        /// The system's words.
        source: std::io::Error,
    },
    /// The deadline passed.
    #[error(
        "no answer from {address} in time ({stage}): a firewall drops packets, the host is down, or the process is \
         stopped or overloaded"
    )]
    Late {
        /// As given.
        address: String,
        /// What was waited for.
        stage: Stage,
    },
    /// The other side closed in the middle of the handshake.
    #[error(
        "{address} closed the connection during the handshake: its process is ending, or its limits are reached"
    )]
    Closed {
        /// As given.
        address: String,
    },
    /// The other side speaks another version.
    #[error("{address} speaks version {theirs}, this side {ours}; run the same release on all nodes")]
    Version {
        /// As given.
        address: String,
        /// This side's version.
        ours: u16,
        /// The other side's.
        theirs: u16,
    },
    /// The sides do not know the same secret.
    #[error(
        "this side and {address} do not share a cluster secret (--secret-file, RANGEFOLD_SECRET): {mismatch}"
    )]
    Unauthenticated {
        /// As given.
        address: String,
        /// How they do not.
        mismatch: Mismatch,
    },
    /// This side has no random source to draw a nonce from.
    #[error("cannot dial {address}: the system gives no random numbers: {source}")]
    NoRandom {
        /// As given.
        address: String,
        /// The system's words.
        source: std::io::Error,
    },
    /// The other side, which has proven itself, said no.
    #[error("{address} refused the connection: {text}")]
    Refused {
        /// As given.
        address: String,
        /// The other side's words.
        text: String,
    },
    /// Shared memory was required, and TCP is not taken instead.
    #[error("no shared memory with {address} (--transport shm): {reason}")]
    Unshared {
        /// As given.
        address: String,
        /// Why not, with the remedy where there is one.
        reason: String,
    },
    /// Something else listens there.
    #[error("what listens on {address} is not Rangefold; is the port right?")]
    NotRangefold {
        /// As given.
        address: String,
    },
}

/// What a dialler was waiting for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// The connection.
    Connect,
    /// The answer to the hello.
    Handshake,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Connect => "while connecting",
            Self::Handshake => "connected, but the handshake was not answered",
        })
    }
}

/// Connects to `address` ("host:port"), trying every address the name has, and shakes hands. Blocks until `deadline` at
/// most; resolving a name takes as long as the system's resolver does.
///
/// Where `terms` say so and the other side agrees, a data link goes through shared memory; the TCP connection is given up then. If
/// that comes to nothing and is not required, another TCP connection is made, whose link knows why ([`Link::route`]).
///
/// # Errors
/// [`DialError`], with causes and remedies.
///
/// # Panics
/// When the greeting is longer than [`GREETING_BYTES_MAX`](super::GREETING_BYTES_MAX).
pub fn dial(address: &str, hello: &Hello, terms: &Terms, deadline: Instant) -> Result<Dialed, DialError> {
    let kernel = match (hello.purpose, terms.sharing) {
        (Purpose::Control, _) | (_, Sharing::Never) => {
            return over_tcp(address, hello, terms, deadline, None);
        }
        _ => Kernel::here(),
    };
    let required = terms.sharing == Sharing::Required;
    let kernel = match kernel {
        Ok(kernel) => kernel,
        Err(reason) if required => return Err(DialError::Unshared { address: address.to_owned(), reason }),
        Err(reason) => {
            return over_tcp(address, hello, terms, deadline, Some(Unshared::Failed(reason)));
        }
    };
    let asked = if required { Asked::Memory } else { Asked::Either };
    let origin = Origin { asked, process: std::process::id(), kernel };
    let stream = connect_to(address, deadline)?;
    let name = match introduce(&stream, address, hello, origin, terms, deadline)? {
        Verdict::Ready(welcome) => return settled(stream, address, hello, terms, welcome),
        Verdict::Elsewhere(name) => name,
    };
    // The acceptor has given it up as well.
    drop(stream);
    let part = if required {
        deadline
    } else {
        // The rest is for TCP.
        let now = Instant::now();
        now + deadline.saturating_duration_since(now) / 2
    };
    let origin = Origin { asked: Asked::Here, ..origin };
    let reason = match share(&name, address, hello, origin, terms, part) {
        Ok(dialed) => return Ok(dialed),
        Err(reason) => reason,
    };
    if required {
        return Err(DialError::Unshared { address: address.to_owned(), reason });
    }
    match over_tcp(address, hello, terms, deadline, Some(Unshared::Failed(reason.clone()))) {
        // It takes nothing but what could not be.
        Err(DialError::Refused { address, text }) => {
            Err(DialError::Unshared { address, reason: format!("{reason}; and over TCP: {text}") })
        }
        dialed => dialed,
    }
}

/// A connection for which no shared memory is asked, because of `unshared` if it might have been.
fn over_tcp(
    address: &str,
    hello: &Hello,
    terms: &Terms,
    deadline: Instant,
    unshared: Option<Unshared>,
) -> Result<Dialed, DialError> {
    let stream = connect_to(address, deadline)?;
    match introduce(&stream, address, hello, Origin::TCP, terms, deadline)? {
        Verdict::Ready(welcome) => settled(
            stream,
            address,
            hello,
            terms,
            Welcome { unshared: unshared.or(welcome.unshared), ..welcome },
        ),
        Verdict::Elsewhere(_) => Err(DialError::NotRangefold { address: address.to_owned() }),
    }
}

/// A connection that stays on TCP.
fn settled(
    stream: TcpStream,
    address: &str,
    hello: &Hello,
    terms: &Terms,
    welcome: Welcome,
) -> Result<Dialed, DialError> {
    let Welcome { number, greeting, unshared } = welcome;
    let dialed = settle(&stream, terms).and_then(|()| match hello.purpose {
        Purpose::Data { .. } => {
            let link = Link::tcp(stream, number)?.unshared(unshared);
            Ok(Dialed::Data { link, greeting })
        }
        Purpose::Control => Ok(Dialed::Control { stream, number, greeting }),
    });
    dialed.map_err(|_| DialError::Closed { address: address.to_owned() })
}

/// Shakes hands at the Unix socket that the acceptor at `address` has named, and makes the memory there. Says in words why not.
fn share(
    name: &[u8],
    address: &str,
    hello: &Hello,
    origin: Origin,
    terms: &Terms,
    deadline: Instant,
) -> Result<Dialed, String> {
    let stream = reach(name, deadline).map_err(|unreached| match unreached {
        Unreached::Nobody => {
            "its Unix socket is not in the network namespace of this process: one of the two is in a container of its own \
             (with the host's network it is not), or it has just ended"
                .into()
        }
        Unreached::Late => "its Unix socket took no connection in time; it is stopped or overloaded".into(),
        Unreached::System(error) => format!(
            "its Unix socket cannot be reached: {error}; the limit on open files (ulimit -n) or a security policy may be the cause"
        ),
    })?;
    let socket = format!("the Unix socket of {address}");
    let welcome = match introduce(&stream, &socket, hello, origin, terms, deadline) {
        Ok(Verdict::Ready(welcome)) => welcome,
        Ok(Verdict::Elsewhere(_)) => return Err(DialError::NotRangefold { address: socket }.to_string()),
        Err(error) => return Err(error.to_string()),
    };
    let mut link = shm::offer(stream, welcome.number, RING_BYTES_DEFAULT, deadline)
        .map_err(|error| error.to_string())?;
    if let Kind::Shm(half) = &mut link.kind {
        half.address = Some(address.into());
    }
    Ok(Dialed::Data { link, greeting: welcome.greeting })
}

/// The dialling side of a handshake on any stream.
fn introduce(
    stream: &impl Stream,
    address: &str,
    hello: &Hello,
    origin: Origin,
    terms: &Terms,
    deadline: Instant,
) -> Result<Verdict, DialError> {
    let nonce = draw().map_err(|source| DialError::NoRandom { address: address.to_owned(), source })?;
    let (mut dialler, first) = Dialler::begin(hello, origin, terms.secret.clone(), nonce);
    converse(stream, deadline, first, |bytes| dialler.take(bytes))
        .map_err(|failure| explain(address, failure))
}

/// Resolves and connects.
fn connect_to(address: &str, deadline: Instant) -> Result<TcpStream, DialError> {
    let resolved: Vec<SocketAddr> = address
        .to_socket_addrs()
        .map_err(|source| DialError::Resolve { address: address.to_owned(), source })?
        .collect();
    connect(address, &resolved, deadline)
}

/// The first of the addresses that takes a connection. Each gets an equal part of the time that is left.
fn connect(address: &str, resolved: &[SocketAddr], deadline: Instant) -> Result<TcpStream, DialError> {
    let late = |address| DialError::Late { address, stage: Stage::Connect };
    let mut failure = None;
    for (tried, candidate) in resolved.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let part = left / u32::try_from(resolved.len() - tried).unwrap_or(u32::MAX);
        if part < Duration::from_micros(1) {
            break;
        }
        let source = match TcpStream::connect_timeout(candidate, part) {
            Ok(stream) => return Ok(stream),
            Err(source) => source,
        };
        let address = named(address, candidate);
        let error = match source.kind() {
            std::io::ErrorKind::ConnectionRefused => DialError::NothingListens { address, source },
            std::io::ErrorKind::TimedOut => late(address),
            _ => DialError::Unreachable { address, source },
        };
        // "Nothing listens" of one address says more than "no way there" of another.
        if !matches!(failure, Some(DialError::NothingListens { .. })) {
            failure = Some(error);
        }
    }
    Err(failure.unwrap_or_else(|| late(address.to_owned())))
}

/// An address as it was given, and what it was resolved to if that says more.
pub(super) fn named(address: &str, resolved: &SocketAddr) -> String {
    let resolved = resolved.to_string();
    if resolved == address { resolved } else { format!("{address} ({resolved})") }
}

fn explain(address: &str, failure: Failure) -> DialError {
    let address = address.to_owned();
    match failure {
        Failure::Late => DialError::Late { address, stage: Stage::Handshake },
        Failure::Closed => DialError::Closed { address },
        Failure::Fault(Fault::Foreign) => DialError::NotRangefold { address },
        Failure::Fault(Fault::Version(theirs)) => DialError::Version { address, ours: VERSION, theirs },
        Failure::Fault(Fault::Unauthenticated(mismatch)) => DialError::Unauthenticated { address, mismatch },
        Failure::Fault(Fault::Refused(text)) => DialError::Refused { address, text },
    }
}
