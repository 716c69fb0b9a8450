//! The ways over TCP of one thread: plain sockets, io_uring, or both, each for its links.
//! Knows the border between the two; adds nothing to what they do. A part of the endpoint in `endpoint.rs`.
//! Source: `transport/DESIGN.md` (auto).

use super::pair::Pair;
use crate::caps::Capabilities;
use crate::endpoint::{Arrival, Batch, Endpoint, Events, Peer};
use crate::error::{AdoptError, AttachError, Full};
use crate::link::Link;
use crate::region::{Region, SliceMut};
use crate::wait::{Armed, Waker};
use crate::{socket, uring};

pub(super) enum Tcp {
    Socket(Box<socket::Endpoint>),
    Uring(Box<uring::Endpoint>),
    /// Plain sockets for the first links, so many at a time, io_uring for what is more.
    Both(Box<Pair<socket::Endpoint, uring::Endpoint>>, usize),
}

/// Calls the same method of whichever it is.
macro_rules! each {
    ($self:expr, $endpoint:ident => $call:expr) => {
        match $self {
            Tcp::Socket($endpoint) => $call,
            Tcp::Uring($endpoint) => $call,
            Tcp::Both($endpoint, _) => $call,
        }
    };
}

impl Endpoint for Tcp {
    fn capabilities(&self) -> Capabilities {
        each!(self, endpoint => endpoint.capabilities())
    }

    fn attach(&mut self, region: &Region) -> Result<(), AttachError> {
        each!(self, endpoint => endpoint.attach(region))
    }

    fn adopt(&mut self, link: Link) -> Result<Peer, AdoptError> {
        match self {
            Self::Socket(endpoint) => endpoint.adopt(link),
            Self::Uring(endpoint) => endpoint.adopt(link),
            Self::Both(both, sockets_max) if both.first.peer_count() < *sockets_max => {
                both.adopt_by_first(link)
            }
            Self::Both(both, _) => both.adopt_by_second(link),
        }
    }

    fn post(&mut self, batch: &mut Batch) -> Result<(), Full> {
        each!(self, endpoint => endpoint.post(batch))
    }

    fn poll(&mut self, events: &mut Events) {
        each!(self, endpoint => endpoint.poll(events));
    }

    fn place(&mut self, arrival: Arrival, destination: Option<SliceMut>) {
        each!(self, endpoint => endpoint.place(arrival, destination));
    }

    fn arm(&mut self) -> Armed {
        each!(self, endpoint => endpoint.arm())
    }

    fn waker(&self) -> Waker {
        each!(self, endpoint => endpoint.waker())
    }

    fn close(&mut self, peer: Peer) {
        each!(self, endpoint => endpoint.close(peer));
    }
}

impl std::fmt::Debug for Tcp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(endpoint) => endpoint.fmt(f),
            Self::Uring(endpoint) => endpoint.fmt(f),
            Self::Both(both, _) => write!(f, "{:?}, {:?}", both.first, both.second),
        }
    }
}
