//! One type for the backends that `choose.rs` picks from: the same contract, by a match per call.
//! Knows the backends' constructors; adds nothing to what they do.

use crate::auto::choose::{Choice, Unavailable, Wish, choose};
use crate::caps::Capabilities;
use crate::endpoint::{Arrival, Batch, Endpoint as Contract, Events, Peer};
use crate::error::{AdoptError, AttachError, Full};
use crate::link::Link;
use crate::region::{Region, SliceMut};
use crate::stream::Framing;
use crate::wait::{Armed, Waker};
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

/// An endpoint of the backend that was chosen.
#[derive(Debug)]
pub enum Endpoint {
    /// io_uring.
    Uring(Box<uring::Endpoint>),
    /// Non-blocking sockets.
    Socket(Box<socket::Endpoint>),
}

impl Endpoint {
    /// Makes an endpoint of the best backend that the wish allows, and says which and why.
    ///
    /// # Errors
    /// [`Unavailable`]: a wish for one backend is never answered with another.
    pub fn new(options: &Options) -> Result<(Self, Choice), Unavailable> {
        let ring = match options.wish {
            Wish::Socket => Err(String::new()),
            Wish::Auto | Wish::Uring => {
                let settings = uring::Options { one_thread: options.one_thread, ..uring::Options::default() };
                uring::Endpoint::new(options.framing, settings).map_err(|why| why.to_string())
            }
        };
        if let Ok(endpoint) = ring {
            let choice = choose(options.wish, Ok(()), Ok(()))?;
            return Ok((Self::Uring(Box::new(endpoint)), choice));
        }
        let plain = socket::Endpoint::new(options.framing, socket::Limits::default())
            .map_err(|error| error.to_string());
        let choice = choose(options.wish, ring.map(drop), plain.as_ref().map(drop).map_err(Clone::clone))?;
        let endpoint = plain.map_err(|reason| Unavailable { transport: "socket", reason })?;
        Ok((Self::Socket(Box::new(endpoint)), choice))
    }
}

/// Calls the same method of whichever it is.
macro_rules! either {
    ($self:expr, $endpoint:ident => $call:expr) => {
        match $self {
            Self::Uring($endpoint) => $call,
            Self::Socket($endpoint) => $call,
        }
    };
}

impl Contract for Endpoint {
    fn capabilities(&self) -> Capabilities {
        either!(self, endpoint => endpoint.capabilities())
    }

    fn attach(&mut self, region: &Region) -> Result<(), AttachError> {
        either!(self, endpoint => endpoint.attach(region))
    }

    fn adopt(&mut self, link: Link) -> Result<Peer, AdoptError> {
        either!(self, endpoint => endpoint.adopt(link))
    }

    fn post(&mut self, batch: &mut Batch) -> Result<(), Full> {
        either!(self, endpoint => endpoint.post(batch))
    }

    fn poll(&mut self, events: &mut Events) {
        either!(self, endpoint => endpoint.poll(events));
    }

    fn place(&mut self, arrival: Arrival, destination: Option<SliceMut>) {
        either!(self, endpoint => endpoint.place(arrival, destination));
    }

    fn arm(&mut self) -> Armed {
        either!(self, endpoint => endpoint.arm())
    }

    fn waker(&self) -> Waker {
        either!(self, endpoint => endpoint.waker())
    }

    fn close(&mut self, peer: Peer) {
        either!(self, endpoint => endpoint.close(peer));
    }
}
