//! What can go wrong in a transport, one small type per operation.
//! Errors say what the caller could not have known; each text names a likely cause.

use std::fmt;

use thiserror::Error;

/// Why a peer is gone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Error)]
pub enum LostReason {
    /// This side called `close`.
    #[error("closed by this side")]
    ClosedHere,
    /// The other side closed in an orderly way.
    #[error("closed by the peer: its process ended or gave up the connection")]
    ClosedByPeer,
    /// The connection broke.
    #[error("connection broken: the peer's process died, or the network between failed")]
    Broken,
    /// The peer sent what no correct peer sends.
    #[error("the peer broke the protocol and was cut off: {0}")]
    Violation(Violation),
    /// The peer has not been heard of for too long.
    #[error("no sign of life within the configured time: the peer is stopped, or the network between is cut")]
    Silent,
}

/// How a peer broke the rules of the byte stream.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Violation {
    /// A head that is not one of ours: magic, version, length or check.
    Head,
    /// A body longer than the limit that this side set.
    BodyTooLong,
    /// More messages than this side granted credits for.
    Overrun,
    /// Positions in shared memory that no correct peer writes.
    Indices,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Head => "a damaged or foreign message head",
            Self::BodyTooLong => "a body longer than the granted limit",
            Self::Overrun => "more messages than were granted",
            Self::Indices => "positions in shared memory that cannot be",
        })
    }
}

/// Some operations of a batch stayed in it: their peers have no room.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("a peer's queue is full; post again after a completion")]
pub struct Full;

/// Why a link was not taken over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum AdoptError {
    /// The link belongs to another backend.
    #[error("a {found} link was given to a {expected} endpoint")]
    OtherKind {
        /// The endpoint's backend.
        expected: &'static str,
        /// The link's backend.
        found: &'static str,
    },
    /// The endpoint has no room for another peer.
    #[error("the endpoint serves {limit} peers already, which is its limit")]
    TooManyPeers {
        /// The limit.
        limit: u32,
    },
    /// The rings of all links would take more than they may.
    #[error(
        "the links of this endpoint would share more than {limit} bytes of memory; raise `shared_bytes` or use smaller \
         rings (`ring_bytes`)"
    )]
    SharedMemory {
        /// The limit, in bytes.
        limit: usize,
    },
}

/// Why a region could not be registered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum AttachError {
    /// The backend registers at most so many regions.
    #[error("{limit} regions are attached already, which is the limit")]
    TooManyRegions {
        /// The limit.
        limit: u32,
    },
}

/// Why memory could not be had.
#[derive(Debug, Error)]
pub enum RegionError {
    /// The system refused to map it.
    #[error(
        "cannot map {bytes} bytes of memory: {source}; lower the memory budget or raise the limit (ulimit -v, cgroup)"
    )]
    Map {
        /// What was asked for.
        bytes: usize,
        /// The system's answer.
        source: std::io::Error,
    },
}
