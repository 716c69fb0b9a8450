//! A finished link: what a handshake leaves behind and an endpoint adopts.
//! Knows which backend it is for and the number that both sides check frames with; carries no bytes itself.
//! Made by `memory`, `sim` and `bootstrap`; taken by `Endpoint::adopt`.

use crate::{memory, sim};

/// One side of an authenticated connection, not yet owned by an endpoint.
///
/// Dropping it closes the connection.
#[derive(Debug)]
pub struct Link {
    pub(crate) number: u64,
    pub(crate) place_from: Option<usize>,
    pub(crate) kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Memory(memory::Half),
    Sim(sim::Half),
}

impl Link {
    /// The connection's number (protocol.md F1): drawn anew for each connection and part of every header's check,
    /// so that a frame of another connection is never taken for one of this.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Asks that bodies of `bytes` and more be announced, so that this side chooses where they land. Without it
    /// every body arrives whole in the transport's own memory. An empty body is never announced.
    #[must_use]
    pub fn place_from(mut self, bytes: usize) -> Self {
        self.place_from = Some(bytes);
        self
    }

    pub(crate) fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Memory(_) => "memory",
            Kind::Sim(_) => "sim",
        }
    }
}
