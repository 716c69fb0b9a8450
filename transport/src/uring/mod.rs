//! Links over TCP through io_uring: one ring a thread, received into shared buffers, sent by one vector a peer and turn.
//! Knows rings, buffers and sockets; does not know what a head says. Called through the `Endpoint` trait.
//! Source: `transport/DESIGN.md` (TCP; uring). Linux 6.1 and later.
//!
//! # How it goes
//!
//! - **The ring** has one issuer and deferred task-run. It is made disabled, on any thread, so that a refusal is known at
//!   once ([`Why`]); the first thread that posts or polls enables it, and from then on it is that thread's alone.
//! - **Receive.** A link has one of two ways for life. *Shared*: a multishot receive into the endpoint's provided buffers;
//!   heads are parsed where they lie, a body stays in its buffers until it is whole and is handed out as slices of
//!   them; the drop of the last slice, on any thread, brings the buffer back. *Exact* (links with `place_from`): one
//!   receive at a time into `[rest of a body, area]`, as over plain sockets, so that placed bodies are not copied.
//! - **Little memory.** Small bodies are copied out, so that nobody who keeps one keeps a whole buffer. A body that would
//!   take more than a quarter of the buffers goes to memory of its own. When the buffers run out, bodies in the middle
//!   move there too and are received directly; who needs buffers waits, without turning, until some come back.
//! - **Send.** One `SENDMSG` in flight a peer; what is posted meanwhile leaves with the next.
//! - **Memory the kernel may touch** (buffers, places, bodies, vectors) is let go only after the completion of the
//!   operation that names it; a lost peer is reported after that.
//! - **A turn** is one system call: `poll` enters the kernel only when the ring's shared memory says that there is work
//!   (or entries are waiting), `post` submits all that the turn has prepared.
//! - **Sleep** is a wait in the ring; the waker's eventfd is polled by it.

mod buffers;
mod endpoint;
mod frames;
mod message;
mod ring;
#[cfg(all(test, not(loom)))]
mod tests;

pub use crate::stream::Limits;
pub use endpoint::{Endpoint, Options};
pub use ring::{SleepingRing, Why};
