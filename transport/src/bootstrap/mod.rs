//! How connections come about: a listener, a dialler, and the handshake between them. For control threads only.
//! Knows addresses, secrets, deadlines and greetings; does not know what a greeting says, and never meets the data path.
//! Called by the control thread of a process (`Listener::serve`) and by whoever connects (`dial`). Data between processes of one
//! host go on through a Unix socket beside the TCP address to shared memory, where both sides want that ([`Sharing`]).
//! Source: `transport/DESIGN.md` (bootstrap, authentication); protocol.md F1 (the connection's number).
//!
//! Blocking sockets of the standard library, each with a deadline. Whoever is slow, silent, not of ours or does not know the
//! cluster's secret is cut off and counted; nobody else notices. The acceptor draws the connection's number from the
//! system's random source.

mod dial;
pub mod handshake;
mod keepalive;
mod listener;
mod message;
mod secret;
mod sharing;
mod stream;
#[cfg(all(test, not(loom)))]
mod tests;
mod unix;

use std::time::Duration;

pub use dial::{DialError, Dialed, Stage, dial};
pub use keepalive::{PEER_TIMEOUT, PEER_TIMEOUT_MAX, PEER_TIMEOUT_MIN};
pub use listener::{Accepted, Answer, BindError, Handler, Listener, Options, Stats};
pub use message::{GREETING_BYTES_MAX, Hello, Nonce, Purpose, VERSION};
pub use secret::{SECRET_BYTES_MAX, SECRET_BYTES_MIN, Secret, SecretError};
pub use sharing::{Asked, Kernel, Origin, Sharing, Unshared};

/// What every connection of a process is held to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Terms {
    /// What the sides prove to each other that they know. Without one, only loopback addresses are listened on.
    pub secret: Option<Secret>,
    /// Within how long a peer of which nothing is heard is found lost; between [`PEER_TIMEOUT_MIN`] and
    /// [`PEER_TIMEOUT_MAX`].
    pub peer_timeout: Duration,
    /// Whether data go through shared memory; each side may want something else.
    pub sharing: Sharing,
}

impl Default for Terms {
    /// No secret, which confines a cluster to its host; [`PEER_TIMEOUT`]; TCP.
    fn default() -> Self {
        Self { secret: None, peer_timeout: PEER_TIMEOUT, sharing: Sharing::Never }
    }
}
