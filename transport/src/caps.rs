//! What a backend can do, as data: for the choice between backends and for people.
//! Knows numbers and names only. Read by `auto`, `info` and the cores' limits.

/// The limits and habits of one backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// The backend's name as `--transport` takes it.
    pub name: &'static str,
    /// Operations that may be posted and not completed, per peer.
    pub operations_per_peer_max: u32,
    /// Peers of one endpoint.
    pub peers_max: u32,
    /// Bytes of one body.
    pub body_bytes_max: u32,
    /// The frame size that serves this backend best, in bytes of body.
    pub frame_bytes: u32,
    /// Whether bodies travel without being copied by this process.
    pub by_reference: bool,
}
