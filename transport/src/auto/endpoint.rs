//! One type for the backends that `choose.rs` picks from: the same contract over one of them, or over both, by peer.
//! Knows the backends' constructors, and whose peer is whose; adds nothing to what they do.
//! Source: `transport/DESIGN.md` (auto).

use std::collections::VecDeque;

use crate::auto::choose::{BOTH, Choice, SEVERAL_THREADS, Unavailable, Wish, choose};
use crate::caps::Capabilities;
use crate::endpoint::{Arrival, Batch, Endpoint as Contract, Events, Operation, Peer};
use crate::error::{AdoptError, AttachError, Full};
use crate::link::Link;
use crate::region::{Region, SliceMut};
use crate::stream::{Framing, Limits, Tag};
use crate::wait::{Armed, Sleep, Waker};
use crate::{socket, uring};

/// How an endpoint is made, whichever it becomes.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What was asked for.
    pub wish: Wish,
    /// How lengths are read out of heads.
    pub framing: Framing,
    /// Whether one thread will use it for its life, as a shard's does. A client's endpoint passes from thread to thread.
    pub one_thread: bool,
}

/// Connections of a thread that go over plain sockets while it has io_uring as well.
pub const SOCKETS_MAX: usize = 4;

const SOCKET: Tag = Tag(0);
const URING: Tag = Tag(1);

/// An endpoint of one backend, or of two of which each new link gets the faster.
pub struct Endpoint {
    backends: Backends,
    waker: Waker,
}

enum Backends {
    Uring(Box<uring::Endpoint>),
    Socket(Box<socket::Endpoint>),
    Both(Box<Both>),
}

/// Plain sockets for the first links, io_uring for what is more.
struct Both {
    socket: socket::Endpoint,
    uring: uring::Endpoint,
    sockets_max: usize,
    /// Whether each was ever given a link: one that was not costs nothing.
    socket_used: bool,
    uring_used: bool,
    /// Who is polled first; in turn.
    uring_first: bool,
    for_socket: Batch,
    for_uring: Batch,
}

impl Endpoint {
    /// Makes an endpoint of the best that the wish allows, and says what and why.
    ///
    /// # Errors
    /// [`Unavailable`]: a wish for one backend is never answered with another.
    pub fn new(options: &Options) -> Result<(Self, Choice), Unavailable> {
        Self::with(options, Limits::default(), SOCKETS_MAX)
    }

    /// The same with other limits, and with `sockets_max` instead of [`SOCKETS_MAX`].
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with(
        options: &Options,
        limits: Limits,
        sockets_max: usize,
    ) -> Result<(Self, Choice), Unavailable> {
        let waker = Waker::with_bell().map_err(|error| Unavailable {
            transport: "socket",
            reason: format!("no descriptor: {error}; raise the limit on open files (ulimit -n)"),
        })?;
        let one_thread = options.one_thread;
        let uring = match options.wish {
            Wish::Socket => Err(String::new()),
            Wish::Auto if !one_thread => Err(SEVERAL_THREADS.into()),
            Wish::Auto | Wish::Uring => {
                let settings = uring::Options { limits, one_thread, ..uring::Options::default() };
                uring::Endpoint::beside(options.framing, settings, waker.clone(), URING)
                    .map_err(|why| why.to_string())
            }
        };
        let socket = match options.wish {
            Wish::Uring => Err(String::new()),
            Wish::Auto | Wish::Socket => {
                socket::Endpoint::beside(options.framing, limits, waker.clone(), SOCKET)
                    .map_err(|error| error.to_string())
            }
        };
        let uring_said = uring.as_ref().map(drop).map_err(Clone::clone);
        let choice = choose(options.wish, uring_said, socket.as_ref().map(drop).map_err(Clone::clone))?;
        let backends = match (uring, socket) {
            (Ok(uring), Ok(socket)) => Backends::Both(Box::new(Both::new(socket, uring, sockets_max))),
            (Ok(uring), Err(_)) => Backends::Uring(Box::new(uring)),
            (Err(_), Ok(socket)) => Backends::Socket(Box::new(socket)),
            (Err(_), Err(reason)) => return Err(Unavailable { transport: "socket", reason }),
        };
        Ok((Self { backends, waker }, choice))
    }
}

/// Calls the same method of whichever it is.
macro_rules! each {
    ($self:expr, $endpoint:ident => $call:expr) => {
        match &mut $self.backends {
            Backends::Uring($endpoint) => $call,
            Backends::Socket($endpoint) => $call,
            Backends::Both($endpoint) => $call,
        }
    };
}

impl Contract for Endpoint {
    fn capabilities(&self) -> Capabilities {
        match &self.backends {
            Backends::Uring(endpoint) => endpoint.capabilities(),
            Backends::Socket(endpoint) => endpoint.capabilities(),
            Backends::Both(both) => both.capabilities(),
        }
    }

    fn attach(&mut self, region: &Region) -> Result<(), AttachError> {
        each!(self, endpoint => endpoint.attach(region))
    }

    fn adopt(&mut self, link: Link) -> Result<Peer, AdoptError> {
        each!(self, endpoint => endpoint.adopt(link))
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
        self.waker.clone()
    }

    fn close(&mut self, peer: Peer) {
        each!(self, endpoint => endpoint.close(peer));
    }
}

impl Both {
    fn new(socket: socket::Endpoint, uring: uring::Endpoint, sockets_max: usize) -> Self {
        Self {
            socket,
            uring,
            sockets_max,
            socket_used: false,
            uring_used: false,
            uring_first: false,
            for_socket: Batch::default(),
            for_uring: Batch::default(),
        }
    }

    fn capabilities(&self) -> Capabilities {
        let (socket, uring) = (self.socket.capabilities(), self.uring.capabilities());
        Capabilities {
            name: BOTH,
            operations_per_peer_max: socket.operations_per_peer_max.min(uring.operations_per_peer_max),
            peers_max: uring.peers_max,
            body_bytes_max: socket.body_bytes_max.min(uring.body_bytes_max),
            frame_bytes: socket.frame_bytes.min(uring.frame_bytes),
            by_reference: false,
        }
    }

    fn attach(&mut self, region: &Region) -> Result<(), AttachError> {
        self.socket.attach(region)?;
        self.uring.attach(region)
    }

    fn adopt(&mut self, link: Link) -> Result<Peer, AdoptError> {
        if self.socket.peer_count() < self.sockets_max {
            self.socket_used = true;
            self.socket.adopt(link)
        } else {
            self.uring_used = true;
            self.uring.adopt(link)
        }
    }

    fn post(&mut self, batch: &mut Batch) -> Result<(), Full> {
        if !self.uring_used {
            return self.socket.post(batch);
        }
        if !self.socket_used {
            return self.uring.post(batch);
        }
        for operation in batch.operations.drain(..) {
            let of_uring = Tag::of(operation.peer.0) == URING;
            if of_uring { &mut self.for_uring } else { &mut self.for_socket }.operations.push_back(operation);
        }
        let socket = if self.for_socket.is_empty() { Ok(()) } else { self.socket.post(&mut self.for_socket) };
        let uring = if self.for_uring.is_empty() { Ok(()) } else { self.uring.post(&mut self.for_uring) };
        // What stays goes back: the order between peers of two kinds is nobody's.
        let back: &mut VecDeque<Operation> = &mut batch.operations;
        back.append(&mut self.for_socket.operations);
        back.append(&mut self.for_uring.operations);
        socket.and(uring)
    }

    fn poll(&mut self, events: &mut Events) {
        self.uring_first = !self.uring_first;
        for uring in [self.uring_first, !self.uring_first] {
            match uring {
                true if self.uring_used => self.uring.poll(events),
                // Without links as well, because it hears the bell then.
                false if self.socket_used || !self.uring_used => self.socket.poll(events),
                _ => {}
            }
        }
    }

    fn place(&mut self, arrival: Arrival, destination: Option<SliceMut>) {
        match Tag::of(arrival.0) {
            URING => self.uring.place(arrival, destination),
            _ => self.socket.place(arrival, destination),
        }
    }

    fn arm(&mut self) -> Armed {
        if !self.uring_used {
            return self.socket.arm();
        }
        if !self.socket_used {
            return self.uring.arm();
        }
        match (self.socket.arm(), self.uring.arm()) {
            (Armed::Sleep(socket), Armed::Sleep(uring)) => {
                Armed::Sleep(Sleep::Either(Box::new([socket, uring])))
            }
            _ => Armed::Ready,
        }
    }

    fn close(&mut self, peer: Peer) {
        match Tag::of(peer.0) {
            URING => self.uring.close(peer),
            _ => self.socket.close(peer),
        }
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.backends {
            Backends::Uring(endpoint) => endpoint.fmt(f),
            Backends::Socket(endpoint) => endpoint.fmt(f),
            Backends::Both(both) => write!(f, "auto::Endpoint({:?}, {:?})", both.socket, both.uring),
        }
    }
}
