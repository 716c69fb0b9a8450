//! What the two TCP backends share, and `shm` in part, whose rings are byte streams too: heads found in a byte stream, queues of
//! what is to be sent, peers and memory.
//! Knows streams of frames (a head, then its body) and nothing of system calls; does not know what a head says.
//! Called by `socket`, `uring` and `shm`. Source: `transport/DESIGN.md` (TCP); protocol.md F1.
//!
//! What a head says about lengths the shell tells through [`Framing`]: no length is believed before the head's check
//! has passed, and the bytes may be cut anywhere.

mod linger;
mod parse;
mod peers;
mod receive;
mod send;
mod staging;
#[cfg(all(test, not(loom)))]
mod tests;

pub(crate) use linger::Lingering;
pub use parse::{HeadParser, Parsed};
pub(crate) use peers::{ArrivalIds, Peers, Sender, Tag, slot_bits};
pub(crate) use receive::{Next, Receiver};
pub(crate) use send::{PARTS_MAX, Plan, SendQueue};
pub(crate) use staging::{Staged, Staging};

use crate::endpoint::HEADER_BYTES;
use crate::error::LostReason;

/// How to read lengths out of a head. Given by the shell, because the transport does not know what a head says.
#[derive(Clone, Copy)]
pub struct Framing {
    /// Bytes of extensions behind these first 64 bytes, at most 256, whatever the bytes are. `None`: not a head.
    pub extension_bytes: fn(fixed: &[u8; HEADER_BYTES]) -> Option<usize>,
    /// Verifies the check of the whole head with the connection's number and says how long the body is. `None`: not a
    /// head of this connection.
    pub body_bytes: fn(head: &[u8], connection: u64) -> Option<usize>,
}

impl std::fmt::Debug for Framing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Framing")
    }
}

/// What an endpoint over TCP accepts and may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Peers at a time; at most 65,535.
    pub peers_max: u32,
    /// Bytes of a body that this side takes. A peer that sends more is cut off.
    pub body_bytes_max: u32,
    /// Operations posted and not reported, per peer.
    pub operations_per_peer_max: u32,
    /// Memory for bodies that have arrived or are arriving. When it is used up, connections that need more are not
    /// read until bodies are dropped. Never less than one longest body and 8 MiB for small ones; mapped when
    /// the endpoint is made, resident when used.
    pub receive_bytes: usize,
}

impl Default for Limits {
    /// As many operations as the memory backend; frames are 256 KiB, so bodies of 16 MiB leave room for settings.
    fn default() -> Self {
        Self {
            peers_max: 4096,
            body_bytes_max: 16 << 20,
            operations_per_peer_max: 1024,
            receive_bytes: 64 << 20,
        }
    }
}

/// The frame size that serves a TCP stream best: of 256 KiB pieces the add still hides in the receive.
pub(crate) const FRAME_BYTES: u32 = 256 << 10;
/// Events that one peer may report before the next one's turn.
pub(crate) const QUOTA: usize = 32;
/// Bytes that one peer may send or receive before the next one's turn, at least.
pub(crate) const QUOTA_BYTES: usize = 1 << 20;
/// How long a closed connection may take to bring out what was posted, and to hear of the other side's close.
pub(crate) const CLOSE_PATIENCE_MS: u32 = 5_000;

/// Why a visit of a peer stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// There is nothing more.
    Idle,
    /// There may be more; it is another's turn.
    More,
    /// Memory (or buffers) are missing.
    Starved,
    /// All is reported, the loss included.
    Lost(LostReason),
}

/// Memory comes back without a ring of the bell; so a sleep in which it is missing is short.
pub(crate) const MEMORY_SLEEP_NS: u64 = 1_000_000;

/// What a failed send says of the end that a read will find. That the other side has closed is for the read to say.
pub(crate) fn failure(error: rustix::io::Errno) -> Option<rustix::io::Errno> {
    (error != rustix::io::Errno::PIPE).then_some(error)
}

/// What a failed receive or send says about the peer.
pub(crate) fn reason_of(error: rustix::io::Errno) -> LostReason {
    use rustix::io::Errno;
    match error {
        // Of a connection that stands, the last three say why the kernel had to give up waiting.
        Errno::TIMEDOUT | Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::NETDOWN => LostReason::Silent,
        _ => LostReason::Broken,
    }
}
