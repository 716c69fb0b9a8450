//! The dialling side: resolve, connect, shake hands, all within one deadline.
//! Knows addresses and reasons for failure; does not know what a greeting says. Called by whoever needs a connection.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::Terms;
use super::handshake::{Dialler, Fault, Mismatch};
use super::message::{Hello, Purpose, VERSION};
use super::secret::draw;
use super::stream::{Failure, Stream, converse, settle};
use crate::link::Link;

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
/// # Errors
/// [`DialError`], with causes and remedies.
///
/// # Panics
/// When the greeting is longer than [`GREETING_BYTES_MAX`](super::GREETING_BYTES_MAX).
pub fn dial(address: &str, hello: &Hello, terms: &Terms, deadline: Instant) -> Result<Dialed, DialError> {
    let resolved: Vec<SocketAddr> = address
        .to_socket_addrs()
        .map_err(|source| DialError::Resolve { address: address.to_owned(), source })?
        .collect();
    let stream = connect(address, &resolved, deadline)?;
    let (number, greeting) = introduce(&stream, address, hello, terms, deadline)?;
    let dialed = settle(&stream, terms).and_then(|()| match hello.purpose {
        Purpose::Data { .. } => Link::tcp(stream, number).map(|link| Dialed::Data { link, greeting }),
        Purpose::Control => Ok(Dialed::Control { stream, number, greeting }),
    });
    dialed.map_err(|_| DialError::Closed { address: address.to_owned() })
}

/// The dialling side of a handshake on any stream: the connection's number, and the acceptor's greeting.
fn introduce(
    stream: &impl Stream,
    address: &str,
    hello: &Hello,
    terms: &Terms,
    deadline: Instant,
) -> Result<(u64, Vec<u8>), DialError> {
    let nonce = draw().map_err(|source| DialError::NoRandom { address: address.to_owned(), source })?;
    let (mut dialler, first) = Dialler::begin(hello, terms.secret.clone(), nonce);
    converse(stream, deadline, first, |bytes| dialler.take(bytes))
        .map(|welcome| (welcome.number, welcome.greeting))
        .map_err(|failure| explain(address, failure))
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
