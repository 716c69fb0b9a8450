//! How connections come about: a listener, a dialler, and the handshake between them. For control threads only.
//! Knows addresses, deadlines and greetings; does not know what a greeting says, and never meets the data path.
//! Called by the control thread of a process (`Listener::serve`) and by whoever connects (`dial`).
//! Source: `transport/DESIGN.md` (bootstrap); protocol.md F1 (the connection's number).
//!
//! Blocking sockets of the standard library, each with a deadline. Whoever is slow, silent or not of ours is cut off
//! and counted; nobody else notices. The acceptor draws the connection's number from the system's random source.

mod dial;
mod hello;
mod listener;
#[cfg(all(test, not(loom)))]
mod tests;

pub use dial::{DialError, Dialed, Stage, dial};
pub use hello::{GREETING_BYTES_MAX, Hello, Purpose, VERSION};
pub use listener::{Accepted, Answer, BindError, Handler, Listener, Options, Stats};
