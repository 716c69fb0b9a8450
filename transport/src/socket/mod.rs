//! Links over TCP with non-blocking sockets and epoll: where io_uring is denied, and for threads with few connections.
//! Knows sockets, readiness and memory; does not know what a head says. Called through the `Endpoint` trait.
//! Source: `transport/DESIGN.md` (TCP; socket).
//!
//! # How it goes
//!
//! - **Readiness** comes by edges: a socket enters the set once, and is then read (written) until the system says that
//!   there is nothing (no room), or gives less than was asked for. An edge that says "the other side has closed" is
//!   kept, because no other comes for it.
//! - **Sends** leave in `post`: all frames due to a peer in one call. What the socket does not take goes on when it
//!   can be written again.
//! - **Receives** are one call of `[rest of a body, area]` (`stream/receive.rs`).
//! - **The end.** A `close` brings out what was posted, ends the sending direction, reports `Lost`, and reads away what
//!   the other side still sends (`stream/linger.rs`). A peer that takes nothing for 5 s is given up by the kernel.
//! - **Sleep** is a `poll` of the epoll set; the waker's eventfd is in it.

mod endpoint;

pub use crate::stream::Limits;
pub use endpoint::Endpoint;
