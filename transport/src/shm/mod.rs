//! Links between processes of one host: two rings of bytes in shared memory, and a Unix socket that wakes and dies.
//! Knows mappings, rings, bells and peers; does not know what a head says. Called through the `Endpoint` trait.
//! Source: `transport/DESIGN.md` (shm).
//!
//! # How it goes
//!
//! - **A link** is made by two processes over a connected Unix socket ([`offer`], [`accept`]): one side makes a sealed memfd and passes it,
//!   the other checks it and maps it. The socket stays open for the link's life.
//! - **Sends** are copied into the ring in `post`, once; what does not fit follows as the other side reads. **Receives** are copied out of
//!   it once, straight to where they stay. A body longer than the ring flows through it in pieces, both sides copying at once.
//! - **Looking and ringing.** A poll looks at the rings of peers that were active lately, two cache lines each. All others ring: a byte
//!   through the socket, found by the endpoint's epoll set, which is asked now and then while there is work and always before a
//!   sleep. Before the thread sleeps all peers are asked to ring (`bell.rs`).
//! - **The end.** Whoever ends a link says so in the mapping after its last byte and closes the socket; a process that dies only does the
//!   second. The other side reads the ring to its end, then reports `Lost`: closed by the peer, or broken.
//!
//! # Whom it trusts
//!
//! Nobody on the other side of the mapping. Every word is loaded once and bounded, every byte is copied once and judged in the copy
//! (`ring.rs`, `copy.rs`); the mapping cannot be taken away (`mapping.rs`); the socket is read and written without ever blocking, and
//! descriptors that a peer sends through it later are never received. The worst that a peer can do is to end its own link.

mod bell;
#[cfg(not(loom))]
mod copy;
mod endpoint;
mod exchange;
mod half;
mod mapping;
mod receive;
mod ring;
#[cfg(all(test, not(any(miri, loom))))]
mod tests;

pub use endpoint::{Endpoint, Limits};
pub use exchange::{
    ExchangeError, RING_BYTES_DEFAULT, RING_BYTES_MAX, RING_BYTES_MIN, Refusal, accept, offer, probe,
};
pub(crate) use half::Half;
