//! Picks a backend and says why, and serves it behind one type.
//! The only folder that knows more than one backend. Called by whoever starts a node or a client.
//!
//! It knows the two ways over TCP: an endpoint that stays on one thread has both and gives each link to one of them; one that
//! several threads use has sockets only; where one way cannot be had the other is taken. `memory` links exist inside one process
//! only and are not chosen here; shared memory is built and not wired in, verbs are not built.

mod choose;
mod endpoint;

pub use choose::{Choice, NoSuchTransport, Refusal, Unavailable, Wish};
pub use endpoint::{Endpoint, Options, SOCKETS_MAX};
