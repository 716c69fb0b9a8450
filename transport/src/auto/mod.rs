//! Picks a backend and says why, and serves it behind one type.
//! The only folder that knows more than one backend. Called by whoever starts a node or a client.
//!
//! It knows the two ways over TCP and shared memory: an endpoint that stays on one thread has all of them; one that several threads
//! use has no ring; where one way cannot be had the others are taken. Whether a link goes through shared memory the bootstrap finds
//! out ([`Endpoint::sharing`] says what may come); of links over TCP each is given to one of the ways. `memory` links exist inside
//! one process only and are not chosen here; verbs are not built.

mod choose;
mod endpoint;
mod pair;
mod tcp;

pub use choose::{Choice, NoSuchTransport, Refusal, Unavailable, Wish};
pub use endpoint::{Endpoint, Options, SOCKETS_MAX};
