//! One type for the backends that `choose.rs` picks from: the same contract over the ways over TCP, shared memory, or all of them, by peer.
//! Knows the backends' constructors, and which links are whose; adds nothing to what they do.
//! Source: `transport/DESIGN.md` (auto).

use super::choose::{BOTH, Choice, Offers, SEVERAL_THREADS, Unavailable, Wish, choose};
use super::pair::Pair;
use super::tcp::Tcp;
use crate::bootstrap::{Kernel, Sharing};
use crate::caps::Capabilities;
use crate::endpoint::{Arrival, Batch, Endpoint as Contract, Events, Peer};
use crate::error::{AdoptError, AttachError, Full};
use crate::link::{Kind, Link};
use crate::region::{Region, SliceMut};
use crate::stream::{Framing, Limits, Tag};
use crate::wait::{Armed, Waker};
use crate::{shm, socket, uring};

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
const SHM: Tag = Tag(2);

/// An endpoint of one backend, or of several of which each new link gets the one that it is for.
pub struct Endpoint {
    backends: Backends,
    waker: Waker,
}

enum Backends {
    Tcp(Tcp),
    Shm(Box<shm::Endpoint>),
    /// TCP, and beside it links through shared memory.
    Mixed(Box<Pair<Tcp, shm::Endpoint>>),
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
            transport: if options.wish == Wish::Shm { "shm" } else { "socket" },
            reason: format!("no descriptor: {error}; raise the limit on open files (ulimit -n)"),
        })?;
        let one_thread = options.one_thread;
        let uring = match options.wish {
            Wish::Socket | Wish::Shm => Err(String::new()),
            Wish::Auto if !one_thread => Err(SEVERAL_THREADS.into()),
            Wish::Auto | Wish::Uring => {
                let settings = uring::Options { limits, one_thread, ..uring::Options::default() };
                uring::Endpoint::beside(options.framing, settings, waker.clone(), URING)
                    .map_err(|why| why.to_string())
            }
        };
        let socket = match options.wish {
            Wish::Uring | Wish::Shm => Err(String::new()),
            Wish::Auto | Wish::Socket => {
                socket::Endpoint::beside(options.framing, limits, waker.clone(), SOCKET)
                    .map_err(|error| error.to_string())
            }
        };
        let shm = match options.wish {
            Wish::Uring | Wish::Socket => Err(String::new()),
            Wish::Auto | Wish::Shm => shm_beside(options.framing, limits, &waker),
        };
        let offers = Offers {
            uring: uring.as_ref().map(drop).map_err(Clone::clone),
            socket: socket.as_ref().map(drop).map_err(Clone::clone),
            shm: shm.as_ref().map(drop).map_err(Clone::clone),
        };
        let choice = choose(options.wish, offers)?;
        let name = choice.transport;
        let tcp = match (uring, socket) {
            (Ok(uring), Ok(socket)) => {
                Some(Tcp::Both(Box::new(Pair::new(socket, uring, URING, BOTH)), sockets_max))
            }
            (Ok(uring), Err(_)) => Some(Tcp::Uring(Box::new(uring))),
            (Err(_), Ok(socket)) => Some(Tcp::Socket(Box::new(socket))),
            (Err(_), Err(_)) => None,
        };
        let backends = match (tcp, shm) {
            (Some(tcp), Ok(shm)) => Backends::Mixed(Box::new(Pair::new(tcp, shm, SHM, name))),
            (Some(tcp), Err(_)) => Backends::Tcp(tcp),
            (None, Ok(shm)) => Backends::Shm(Box::new(shm)),
            (None, Err(reason)) => return Err(Unavailable { transport: name, reason }),
        };
        Ok((Self { backends, waker }, choice))
    }

    /// What links it takes: what [`Terms`](crate::bootstrap::Terms) are to say of its connections.
    #[must_use]
    pub fn sharing(&self) -> Sharing {
        match self.backends {
            Backends::Tcp(_) => Sharing::Never,
            Backends::Mixed(_) => Sharing::Preferred,
            Backends::Shm(_) => Sharing::Required,
        }
    }
}

/// The endpoint for links through shared memory, if this process can have any.
fn shm_beside(framing: Framing, limits: Limits, waker: &Waker) -> Result<shm::Endpoint, String> {
    Kernel::here()?;
    shm::probe().map_err(|error| format!("no shared memory (memfd): {error}"))?;
    let limits = shm::Limits {
        peers_max: limits.peers_max,
        body_bytes_max: limits.body_bytes_max,
        operations_per_peer_max: limits.operations_per_peer_max,
        receive_bytes: limits.receive_bytes,
        // Links are counted where they are made, by the listener: who has no room there goes over TCP, who has none here is lost.
        shared_bytes: usize::MAX,
    };
    shm::Endpoint::beside(framing, limits, waker.clone(), SHM)
        .map_err(|error| format!("no descriptor: {error}; raise the limit on open files (ulimit -n)"))
}

/// Calls the same method of whichever it is.
macro_rules! each {
    ($self:expr, $endpoint:ident => $call:expr) => {
        match $self {
            Backends::Tcp($endpoint) => $call,
            Backends::Shm($endpoint) => $call,
            Backends::Mixed($endpoint) => $call,
        }
    };
}

impl Contract for Endpoint {
    fn capabilities(&self) -> Capabilities {
        each!(&self.backends, endpoint => endpoint.capabilities())
    }

    fn attach(&mut self, region: &Region) -> Result<(), AttachError> {
        each!(&mut self.backends, endpoint => endpoint.attach(region))
    }

    fn adopt(&mut self, link: Link) -> Result<Peer, AdoptError> {
        match &mut self.backends {
            Backends::Tcp(tcp) => tcp.adopt(link),
            Backends::Shm(shm) => shm.adopt(link),
            Backends::Mixed(mixed) if matches!(link.kind, Kind::Shm(_)) => mixed.adopt_by_second(link),
            Backends::Mixed(mixed) => mixed.adopt_by_first(link),
        }
    }

    fn post(&mut self, batch: &mut Batch) -> Result<(), Full> {
        each!(&mut self.backends, endpoint => endpoint.post(batch))
    }

    fn poll(&mut self, events: &mut Events) {
        each!(&mut self.backends, endpoint => endpoint.poll(events));
    }

    fn place(&mut self, arrival: Arrival, destination: Option<SliceMut>) {
        each!(&mut self.backends, endpoint => endpoint.place(arrival, destination));
    }

    fn arm(&mut self) -> Armed {
        each!(&mut self.backends, endpoint => endpoint.arm())
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn close(&mut self, peer: Peer) {
        each!(&mut self.backends, endpoint => endpoint.close(peer));
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.backends {
            Backends::Tcp(tcp) => write!(f, "auto::Endpoint({tcp:?})"),
            Backends::Shm(shm) => write!(f, "auto::Endpoint({shm:?})"),
            Backends::Mixed(mixed) => write!(f, "auto::Endpoint({:?}, {:?})", mixed.first, mixed.second),
        }
    }
}
