//! Links between processes of one host: two rings of bytes in shared memory, and a Unix socket that wakes and dies.
//! Knows mappings, rings, bells and peers; does not know what a head says. Called through the `Endpoint` trait.
//! Source: `transport/DESIGN.md` (shm).
//!
//! # How it goes
//!
//! - **A link** is made by two processes over a connected Unix socket ([`offer`], [`accept`]): one side makes a sealed memfd and passes it,
//!   the other checks it and maps it. The socket stays open for the link's life.
//! - **Sends** are copied into the ring in `post`, once; what does not fit follows as the other side reads. **Receives** are copied out of
//!   it once, straight to where they stay. A body longer than the ring flows through it in pieces, both sides copying at once.
//! - **Looking and ringing.** A poll looks at the rings of peers that were active lately, two cache lines each. All others ring: a byte
//!   through the socket, found by the endpoint's epoll set, which is asked now and then while there is work and always before a
//!   sleep. Before the thread sleeps all peers are asked to ring (`bell.rs`).
//! - **The end.** Whoever ends a link says so in the mapping after its last byte and closes the socket; a process that dies only does the
//!   second. The other side reads the ring to its end, then reports `Lost`: closed by the peer, or broken.
//!
//! # Whom it trusts
//!
//! Nobody on the other side of the mapping. Every word is loaded once and bounded, every byte is copied once and judged in the copy
//! (`ring.rs`, `copy.rs`); the mapping cannot be taken away (`mapping.rs`); the socket is read and written without ever blocking, and
//! descriptors that a peer sends through it later are never received. The worst that a peer can do is to end its own link.

mod bell;
#[cfg(not(loom))]
mod copy;
mod endpoint;
mod exchange;
mod mapping;
mod receive;
mod ring;

use std::fmt;
use std::os::unix::net::UnixStream;

use rustix::net::{RecvFlags, SendFlags, recv, send};

pub use endpoint::{Endpoint, Limits};
pub use exchange::{ExchangeError, RING_BYTES_DEFAULT, RING_BYTES_MAX, RING_BYTES_MIN, accept, offer};

use crate::primitive::{Arc, Ordering, fence};
use bell::{Bell, Ringer};
use mapping::{Mapping, mapped_bytes};
use ring::{Consumer, Producer};

/// Bytes of the socket that one visit reads away; a correct peer has one or two there.
const RINGS_BYTES: usize = 256;

/// One side of a link. Dropping it ends the link in an orderly way.
pub(crate) struct Half {
    socket: UnixStream,
    mapping: Arc<Mapping>,
    /// Which of the two sides this is.
    side: usize,
    send: Producer,
    receive: Consumer,
    bell: Bell,
    ringer: Ringer,
    /// Where the producer was, when the other side was last told.
    told: u64,
    /// The other side has broken a rule: it is not told that all is well.
    cut_off: bool,
}

impl Half {
    /// Asks to be rung from the start: nobody looks at the ring before the half is adopted.
    fn new(socket: UnixStream, mapping: Mapping, side: usize) -> Self {
        let mapping = Arc::new(mapping);
        let mut half = Self {
            send: Producer::new(Arc::clone(&mapping), side),
            receive: Consumer::new(Arc::clone(&mapping), 1 - side),
            socket,
            mapping,
            side,
            bell: Bell::default(),
            ringer: Ringer::default(),
            told: 0,
            cut_off: false,
        };
        half.ask();
        half
    }

    /// Bytes of memory that the link takes, those of both directions.
    fn mapped_bytes(&self) -> usize {
        mapped_bytes(self.mapping.ring_bytes())
    }

    /// Wants to be rung from now on. The rings must be looked at after this.
    fn ask(&mut self) {
        self.bell.ask(&self.mapping.side(self.side).state.0.bell);
        // Full fence, pairs with the one in `tell`: the word is stored before, the rings are looked at after.
        fence(Ordering::SeqCst);
    }

    /// The same without the fence, for several links that share one.
    fn ask_without_fence(&mut self) {
        self.bell.ask(&self.mapping.side(self.side).state.0.bell);
    }

    /// Looks at the rings by itself from now on.
    #[inline]
    fn look(&mut self) {
        self.bell.look(&self.mapping.side(self.side).state.0.bell);
    }

    /// Publishes what was written and gives back the room of what was read, and rings the other side if it may wait for either
    /// and wants to be rung. A fence and a load, if anything was written; a system call only to a side that is not looking.
    #[inline]
    fn tell(&mut self) {
        self.send.publish();
        let may_wait = self.receive.release();
        if !may_wait && self.told == self.send.position() {
            return;
        }
        self.told = self.send.position();
        // Full fence, pairs with the one in `ask`: the indices were moved before, the word is looked at after.
        fence(Ordering::SeqCst);
        if self.ringer.must_ring(&self.mapping.side(1 - self.side).state.0.bell) {
            self.ring();
        }
    }

    #[cold]
    fn ring(&self) {
        // A full buffer holds rings that were not heard; a broken socket is found by who listens to it.
        let _ = send(&self.socket, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }

    /// Reads away the rings that came. Says whether there may be more.
    fn hear(&self) -> bool {
        let mut rings = [0; RINGS_BYTES];
        // Without room for control messages, so descriptors that come along are closed by the kernel.
        matches!(recv(&self.socket, &mut rings[..], RecvFlags::DONTWAIT), Ok((RINGS_BYTES, _)))
    }

    /// Whether the other side has said that it ended the link. To be asked when nothing more can come.
    fn is_closed_by_peer(&self) -> bool {
        // Acquire, pairs with the Release in `drop`; the socket's end was seen before and orders as well.
        self.mapping.side(1 - self.side).state.0.closed.load(Ordering::Acquire) == 1
    }

    /// Whether one of the other's indices has moved since it was last looked at. Hints.
    #[inline]
    fn has_arrivals(&self) -> bool {
        self.receive.has_news()
    }

    #[inline]
    fn has_room_news(&self) -> bool {
        self.send.has_news()
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        self.send.publish();
        if !self.cut_off {
            // Release, pairs with the Acquire in `is_closed_by_peer`: all that was written is published before.
            self.mapping.side(self.side).state.0.closed.store(1, Ordering::Release);
        }
        // The socket closes now, and the other side hears of it.
    }
}

impl fmt::Debug for Half {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shm::Half(side {})", self.side)
    }
}
