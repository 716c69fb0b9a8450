//! A finished link: what a handshake leaves behind and an endpoint adopts.
//! Knows which backend it is for and the number that both sides check frames with; carries no bytes itself.
//! Made by `memory`, `sim`, `shm` and `bootstrap`; taken by `Endpoint::adopt`.

use std::fmt;
use std::net::TcpStream;

use crate::bootstrap::Unshared;
use crate::{memory, shm, sim};

/// One side of an authenticated connection, not yet owned by an endpoint.
///
/// Dropping it closes the connection.
#[derive(Debug)]
pub struct Link {
    pub(crate) number: u64,
    pub(crate) place_from: Option<usize>,
    pub(crate) kind: Kind,
    /// Why it does not go through shared memory, where it might have.
    unshared: Option<Unshared>,
}

/// What the bytes of a link go through.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Route {
    /// The memory of this process, or of a simulated network.
    Inside,
    /// Memory that two processes share.
    Shared,
    /// A TCP connection; and why not shared memory, where that was asked for.
    Tcp(Option<Unshared>),
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inside => f.write_str("memory"),
            Self::Shared => f.write_str("shm"),
            Self::Tcp(None) => f.write_str("TCP"),
            Self::Tcp(Some(unshared)) => write!(f, "TCP (not shm: {unshared})"),
        }
    }
}

#[derive(Debug)]
pub(crate) enum Kind {
    Memory(memory::Half),
    Sim(sim::Half),
    Shm(shm::Half),
    Tcp(Tcp),
}

/// A connected TCP stream, for either of the backends that use one.
#[derive(Debug)]
pub(crate) struct Tcp {
    pub(crate) stream: TcpStream,
    /// For messages to people.
    pub(crate) address: Box<str>,
}

impl Link {
    pub(crate) fn of(kind: Kind, number: u64) -> Self {
        Self { number, place_from: None, kind, unshared: None }
    }

    /// A link over a connected stream, both of whose ends know `number`. Sends leave without delay from now on.
    ///
    /// # Errors
    /// The system's, when the stream is not connected any more.
    pub fn tcp(stream: TcpStream, number: u64) -> std::io::Result<Self> {
        stream.set_nodelay(true)?;
        let address = stream.peer_addr()?.to_string().into_boxed_str();
        Ok(Self::of(Kind::Tcp(Tcp { stream, address }), number))
    }

    /// Where the other side is, as text for people; `None` where a backend has no addresses.
    #[must_use]
    pub fn address(&self) -> Option<&str> {
        match &self.kind {
            Kind::Tcp(tcp) => Some(&tcp.address),
            Kind::Shm(half) => half.address(),
            Kind::Memory(_) | Kind::Sim(_) => None,
        }
    }

    /// What its bytes go through.
    #[must_use]
    pub fn route(&self) -> Route {
        match self.kind {
            Kind::Tcp(_) => Route::Tcp(self.unshared.clone()),
            Kind::Shm(_) => Route::Shared,
            Kind::Memory(_) | Kind::Sim(_) => Route::Inside,
        }
    }

    /// Notes why it does not go through shared memory.
    pub(crate) fn unshared(mut self, why: Option<Unshared>) -> Self {
        self.unshared = why;
        self
    }

    /// The connection's number (protocol.md F1): drawn anew for each connection and part of every header's check,
    /// so that a frame of another connection is never taken for one of this.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Asks that bodies of `bytes` and more be announced, so that this side chooses where they land. Without it
    /// every body arrives whole in the transport's own memory. An empty body is never announced.
    #[must_use]
    pub fn place_from(mut self, bytes: usize) -> Self {
        self.place_from = Some(bytes);
        self
    }

    pub(crate) fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Memory(_) => "memory",
            Kind::Sim(_) => "sim",
            Kind::Shm(_) => "shm",
            Kind::Tcp(_) => "tcp",
        }
    }
}
