//! One side of a link: a ring to write, a ring to read, both sides' bells, and the wire that wakes and dies.
//! Knows when the other side must be told and how; does not know messages or peers.
//! Made by `exchange.rs`, owned by the endpoint that adopts it.
//! Source: the two fences are Dekker's (`bell.rs`).

use std::fmt;
use std::os::unix::net::UnixStream;

use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::bell::{Bell, Ringer};
use super::mapping::{Mapping, mapped_bytes};
use super::ring::{Consumer, Producer};
use crate::primitive::{Arc, DescriptorArc as PlainArc, Ordering, fence};

/// Bytes of the socket that one visit reads away; a correct peer has one or two there.
const RINGS_BYTES: usize = 256;

/// What wakes the other side. The models have one of their own.
pub(crate) trait Wire {
    /// Wakes whoever listens at the other end. Never blocks; what does not fit need not be sent, it is heard already.
    fn ring(&self);
    /// Reads away the rings that came. Says whether there may be more. Never blocks.
    fn hear(&self) -> bool;
}

impl Wire for UnixStream {
    #[cold]
    fn ring(&self) {
        #[cfg(test)]
        rings::count();
        // A full buffer holds rings that were not heard; a broken socket is found by who listens to it.
        let _ = send(self, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }

    fn hear(&self) -> bool {
        let mut rings = [0; RINGS_BYTES];
        // Without room for control messages, so descriptors that come along are closed by the kernel.
        matches!(recv(self, &mut rings[..], RecvFlags::DONTWAIT), Ok((RINGS_BYTES, _)))
    }
}

/// One side of a link. Dropping it ends the link in an orderly way.
pub(crate) struct Half<W: Wire = UnixStream> {
    pub(super) wire: W,
    mapping: Arc<Mapping>,
    /// Which of the two sides this is.
    side: usize,
    pub(super) send: Producer,
    pub(super) receive: Consumer,
    bell: Bell,
    ringer: Ringer,
    /// Where the producer was, when the other side was last told.
    told: u64,
    /// The other side has broken a rule: it is not told that all is well.
    pub(super) cut_off: bool,
    /// Where the other side is, for people.
    pub(crate) address: Option<Box<str>>,
    /// Held as long as the link lives, by who counts links.
    pub(crate) counted: Option<PlainArc<()>>,
}

impl<W: Wire> Half<W> {
    /// Asks to be rung from the start: nobody looks at the ring before the half is adopted.
    pub(super) fn new(wire: W, mapping: Mapping, side: usize) -> Self {
        Self::of(wire, Arc::new(mapping), side)
    }

    /// The same of a mapping that both sides have, for tests within one process.
    pub(super) fn of(wire: W, mapping: Arc<Mapping>, side: usize) -> Self {
        let mut half = Self {
            send: Producer::new(Arc::clone(&mapping), side),
            receive: Consumer::new(Arc::clone(&mapping), 1 - side),
            wire,
            mapping,
            side,
            bell: Bell::default(),
            ringer: Ringer::default(),
            told: 0,
            cut_off: false,
            address: None,
            counted: None,
        };
        half.ask();
        half
    }

    /// Where the other side is, for people.
    pub(crate) fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }

    /// Bytes of memory that the link takes, those of both directions.
    pub(super) fn mapped_bytes(&self) -> usize {
        mapped_bytes(self.mapping.ring_bytes())
    }

    /// Wants to be rung from now on. The rings must be looked at after this.
    pub(super) fn ask(&mut self) {
        self.bell.ask(&self.mapping.side(self.side).state.0.bell);
        // Full fence, pairs with the one in `tell`: the word is stored before, the rings are looked at after.
        fence(Ordering::SeqCst);
    }

    /// The same without the fence, for several links that share one.
    pub(super) fn ask_without_fence(&mut self) {
        self.bell.ask(&self.mapping.side(self.side).state.0.bell);
    }

    /// Looks at the rings by itself from now on.
    #[inline]
    pub(super) fn look(&mut self) {
        self.bell.look(&self.mapping.side(self.side).state.0.bell);
    }

    /// Publishes what was written and gives back the room of what was read, and rings the other side if it may wait for either
    /// and wants to be rung. A fence and a load, if anything was written; a system call only to a side that is not looking.
    #[inline]
    pub(super) fn tell(&mut self) {
        self.send.publish();
        let may_wait = self.receive.release();
        if !may_wait && self.told == self.send.position() {
            return;
        }
        self.told = self.send.position();
        // Full fence, pairs with the one in `ask`: the indices were moved before, the word is looked at after.
        fence(Ordering::SeqCst);
        if self.ringer.must_ring(&self.mapping.side(1 - self.side).state.0.bell) {
            self.wire.ring();
        }
    }

    /// Reads away the rings that came. Says whether there may be more.
    pub(super) fn hear(&self) -> bool {
        self.wire.hear()
    }

    /// Whether the other side has said that it ended the link. To be asked when nothing more can come.
    pub(super) fn is_closed_by_peer(&self) -> bool {
        // Acquire, pairs with the Release in `drop`; the socket's end was seen before and orders as well.
        self.mapping.side(1 - self.side).state.0.closed.load(Ordering::Acquire) == 1
    }

    /// Whether one of the other's indices has moved since it was last looked at. Hints.
    #[inline]
    pub(super) fn has_arrivals(&self) -> bool {
        self.receive.has_news()
    }

    #[inline]
    pub(super) fn has_room_news(&self) -> bool {
        self.send.has_news()
    }
}

#[cfg(all(test, not(any(miri, loom))))]
impl<W: Wire> Half<W> {
    /// The words and bytes, to do with as a hostile process would.
    pub(super) fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }
}

impl<W: Wire> Drop for Half<W> {
    fn drop(&mut self) {
        self.send.publish();
        if !self.cut_off {
            // Release, pairs with the Acquire in `is_closed_by_peer`: all that was written is published before.
            self.mapping.side(self.side).state.0.closed.store(1, Ordering::Release);
        }
        // The socket closes now, and the other side hears of it.
    }
}

impl<W: Wire> fmt::Debug for Half<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shm::Half(side {})", self.side)
    }
}

/// Counts this thread's rings, so that tests can claim that there were none.
#[cfg(test)]
pub(super) mod rings {
    use std::cell::Cell;

    thread_local!(static RINGS: Cell<u64> = const { Cell::new(0) });

    pub(super) fn count() {
        RINGS.with(|rings| rings.set(rings.get() + 1));
    }

    /// Rings of this thread so far.
    #[cfg(not(loom))]
    pub(in crate::shm) fn of_this_thread() -> u64 {
        RINGS.with(Cell::get)
    }
}

#[cfg(all(test, loom))]
mod models;
