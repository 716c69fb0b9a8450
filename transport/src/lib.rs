//! Moves bytes between the nodes of a cluster. Knows peers, messages and regions; never keys, clocks or tasks.
//!
//! **One endpoint per thread.** An [`Endpoint`] is owned by one thread; nothing in it is shared.
//!
//! **Batch first.** [`Endpoint::post`] takes many operations, [`Endpoint::poll`] reports many events.
//!
//! **Nothing blocks.** A peer without room is [`Full`](error::Full), a value. The one place that sleeps is [`wait`].
//!
//! **Every token completes exactly once**, flushed ones included, and a lost peer is an event with a reason.
//!
//! **Memory is explicit.** Bodies are [`Slice`]s of [`Region`]s, lent while in flight, returned by the completion.
//!
//! **A message is a head and a body.** The head is 64 bytes and up to 256 of extensions, opaque here; the body is a
//! list of slices. Messages to one peer keep their order.
#![doc = include_str!("../DESIGN.md")]
#![deny(unsafe_code)]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64", target_endian = "little")))]
compile_error!(
    "Rangefold runs on 64-bit little-endian Linux (x86-64, aarch64): it is built on io_uring and futexes"
);

pub mod arena;
pub mod auto;
pub mod bootstrap;
pub mod caps;
pub mod conformance;
pub mod endpoint;
pub mod error;
pub mod link;
pub mod memory;
mod primitive;
pub mod region;
pub mod shm;
pub mod sim;
pub mod socket;
pub mod stream;
pub mod uring;
pub mod wait;

pub use arena::Arena;
pub use caps::Capabilities;
pub use endpoint::{
    Arrival, Batch, Body, EXTENSION_BYTES_MAX, Endpoint, Event, Events, HEAD_BYTES_MAX, HEADER_BYTES, Head,
    Operation, Peer, Token,
};
pub use error::{AdoptError, AttachError, Full, LostReason, RegionError, Violation};
pub use link::{Link, Route};
pub use region::{Region, Slice, SliceMut};
pub use stream::Framing;
pub use wait::{Armed, Shell, Turn, Waker};
