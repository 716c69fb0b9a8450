//! A network in one thread and in virtual time, decided by a seed.
//! Knows hosts, links and faults; does not know nodes, and turns nobody: the harness does.
//! Called by the simulation harness (`Network`), and through the `Endpoint` trait by the shells that ship.
//! Source: TigerBeetle's packet simulator; what is lost and kept at a break follows protocol.md F1 to F3.
//!
//! # What it promises
//!
//! - Messages of one link and direction arrive in the order of posting, each after a random delay. Between links there is
//!   no order.
//! - Nothing is lost and nothing repeated while a link lives. When it breaks, in each direction a random prefix of what
//!   is in flight arrives and the rest is gone; `Sent` says nothing about which.
//! - The two ends of a broken link notice at independent times. An end that has not noticed goes on receiving the prefix,
//!   and may do so after the other end has a new link: late messages of the old meet those of the new.
//! - `Sent` comes after a delay of its own, before or after the arrival. Operations posted to a dead link may complete with
//!   `Ok`, as with a socket's buffer.
//! - The same seed and the same calls give the same run: nothing iterates in the order of addresses or hashes, and
//!   [`Network::trace_hash`] covers every event.
//!
//! It is `Send` and locks, though one thread uses it: a [`Link`](crate::Link) of any kind may change threads.

mod chance;
mod clock;
mod endpoint;
mod fault;
mod network;
#[cfg(all(test, not(loom)))]
mod tests;

use std::fmt;
use std::ops::Range;

pub use endpoint::Endpoint;
pub use network::Network;

use network::{End, Shared};

/// A machine of the simulated network. One may have several endpoints.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HostId(pub u32);

/// How the network behaves when nothing is done to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// From posting to arrival, between hosts of which nothing else was said.
    pub delay_ns: Range<u64>,
    /// From posting to `Sent`.
    pub completion_ns: Range<u64>,
    /// From a break to an end's noticing it.
    pub notice_ns: Range<u64>,
    /// From `place` to `Placed`.
    pub landing_ns: Range<u64>,
    /// A partition of this length breaks the links across it as silent; `None`: they wait for ever.
    pub silent_after_ns: Option<u64>,
    /// Operations posted and not completed, per peer. Small, so that `Full` happens.
    pub depth: u32,
    /// Bytes of a body that an endpoint takes.
    pub body_bytes_max: u32,
    /// Peers of an endpoint.
    pub peers_max: u32,
    /// How many of a hundred bodies arrive cut at other places than they were sent, as from a stream of buffers.
    pub recut_percent: u32,
}

impl Default for Config {
    /// A data centre's times (tens of microseconds), noticing within 10 ms, and queues of 8.
    fn default() -> Self {
        Self {
            delay_ns: 5_000..50_000,
            completion_ns: 1_000..60_000,
            notice_ns: 10_000..10_000_000,
            landing_ns: 1_000..50_000,
            silent_after_ns: None,
            depth: 8,
            body_bytes_max: 64 << 20,
            peers_max: 65_536,
            recut_percent: 25,
        }
    }
}

/// What has happened in a network so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    /// Messages that reached the other end.
    pub delivered: u64,
    /// Messages that did not, and never will.
    pub dropped: u64,
    /// Links broken by a fault.
    pub broken: u64,
    /// Messages reported by an endpoint after the other end had already reported the loss of the link.
    pub delivered_late: u64,
}

/// One end of a link that no endpoint has adopted yet. Dropping it closes the link.
pub(crate) struct Half {
    shared: Shared,
    end: End,
    adopted: bool,
}

impl Drop for Half {
    fn drop(&mut self) {
        if !self.adopted {
            network::lock(&self.shared).close(self.end, crate::error::LostReason::ClosedHere);
        }
    }
}

impl fmt::Debug for Half {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sim::Half({:?})", self.end)
    }
}
