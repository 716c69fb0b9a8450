//! Picks a backend and says why, and serves it behind one type.
//! The only folder that knows more than one backend. Called by whoever starts a node or a client.
//!
//! Today it picks between the two ways over TCP, once per endpoint: io_uring where the kernel has and allows it, else
//! non-blocking sockets. `memory` links exist inside one process only and are not chosen here; shared memory and verbs
//! are not built, and will make the choice one per peer.

mod choose;
mod endpoint;

pub use choose::{Choice, NoSuchTransport, Refusal, Unavailable, Wish};
pub use endpoint::{Endpoint, Options, SOCKETS_MAX};
