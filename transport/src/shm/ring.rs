//! A stream of bytes from one process to another through shared memory: one end writes, one end reads.
//! Knows positions; does not know messages, or who is to be woken: that is the caller's matter.
//! Called by `endpoint.rs` and `receive.rs`, each end by the one thread that has it.
//! Source: Lamport's ring over bytes; each end keeps a copy of the other's index, as in MCRingBuffer.
//!
//! # Who may touch what
//!
//! Positions count bytes from the beginning, for ever; the byte at position `p` lies at `p & mask`. With
//! `read <= written <= read + capacity`:
//!
//! | positions | whose they are | moved by |
//! | --------- | -------------- | -------- |
//! | `read .. written` | the consumer's | `read` up, by `release`, after the bytes were copied out |
//! | `written .. read + capacity` | the producer's | `written` up, by `publish`, after the bytes were copied in |
//!
//! Both ends run ahead of the shared index in private and move it once per batch, within long bodies once a piece, so that the
//! other end copies meanwhile.
//!
//! **The other process is not trusted.** Its index is loaded once, compared with what this side knows ([`Violation::Indices`]
//! when no correct peer could have written it), and only the copy is used: copies stay within the ring whatever it says, and
//! an index never goes back. The bytes are copied once and looked at only in the copy. This side's own words are written
//! and never read.
//!
//! **Progress**: every operation is wait-free.
//! **Orders**: `written` Release in `publish`, pairs with the Acquire in `look`: the bytes are in the ring before they are copied
//! out. `read` Release in `release`, pairs with the Acquire in `make_room`: they were copied out before others take their place.
//!
//! # When the producer may be waiting for room
//!
//! Moving `read` does not say whether the producer waits for it, and asking costs a full fence. It needs to be asked once in
//! a ring of bytes only. Say the consumer has asked when `read` was `c`, and found that the producer did not sleep. Then by the two
//! fences (`bell.rs`) the producer sees at least `c` before it sleeps. It sleeps for want of room only when the ring is full:
//! `written = seen + capacity >= c + capacity`. So the consumer asks at the first release after it has seen `written >= c +
//! capacity`, which it will see, because that is published before the sleep.

use crate::error::Violation;
use crate::primitive::{Arc, Ordering};
use crate::shm::mapping::Mapping;

/// Of long writes and reads the index moves after so many bytes: the other end copies while this one goes on.
const PIECE_BYTES: usize = 32 << 10;

/// So much of what has just come is fetched at once: a head is looked at before its body is copied, and without this the body's
/// lines would be waited for after the head's.
const PREFETCH_BYTES: usize = 512;

/// The end that writes. One per side of a link.
pub(super) struct Producer {
    mapping: Arc<Mapping>,
    /// Whose ring it is.
    side: usize,
    /// Copied in up to here. Invariant: `read_seen <= published <= written <= read_seen + capacity`, where `published` is what
    /// the shared index says.
    written: u64,
    published: u64,
    read_seen: u64,
}

impl Producer {
    pub(super) fn new(mapping: Arc<Mapping>, side: usize) -> Self {
        Self { mapping, side, written: 0, published: 0, read_seen: 0 }
    }

    /// Copies in as many of `bytes` as there is room for, and says how many that was. All but the last piece are published.
    ///
    /// # Errors
    /// The other side's index is impossible.
    #[inline]
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<usize, Violation> {
        let before = bytes.len();
        while !bytes.is_empty() {
            let wanted = bytes.len().min(PIECE_BYTES);
            let room = self.make_room(wanted)?;
            if room == 0 {
                break;
            }
            let (piece, rest) = bytes.split_at(wanted.min(room));
            self.mapping.write(self.side, self.written, piece);
            self.written += piece.len() as u64;
            if self.written - self.published >= PIECE_BYTES as u64 {
                self.publish();
            }
            bytes = rest;
        }
        Ok(before - bytes.len())
    }

    /// Shows the other end all that was written.
    #[inline]
    pub(super) fn publish(&mut self) {
        if self.published != self.written {
            self.published = self.written;
            // Release, pairs with the Acquire in `Consumer::look`.
            self.mapping.side(self.side).written.0.store(self.written, Ordering::Release);
        }
    }

    /// How much has been written since the beginning, for the caller to compare.
    pub(super) fn position(&self) -> u64 {
        self.written
    }

    /// Whether the other end has moved since this one last looked. A hint.
    pub(super) fn has_news(&self) -> bool {
        // Relaxed: only compared; whoever acts on it loads it again.
        self.mapping.side(1 - self.side).read.0.load(Ordering::Relaxed) != self.read_seen
    }

    /// Bytes of room; looks at the other's index only when those it knows of are fewer than `wanted`.
    fn make_room(&mut self, wanted: usize) -> Result<usize, Violation> {
        let capacity = self.mapping.ring_bytes();
        let room = |used: u64| usize::try_from(used).map_or(0, |used| capacity.saturating_sub(used));
        let known = room(self.written - self.read_seen);
        if known >= wanted {
            return Ok(known);
        }
        // Acquire, pairs with the Release in `Consumer::release`. Loaded once.
        let read = self.mapping.side(1 - self.side).read.0.load(Ordering::Acquire);
        if !(self.read_seen..=self.published).contains(&read) {
            return Err(Violation::Indices);
        }
        self.read_seen = read;
        Ok(room(self.written - read))
    }
}

/// The end that reads. One per side of a link.
pub(super) struct Consumer {
    mapping: Arc<Mapping>,
    /// Whose ring it is: the other side's.
    side: usize,
    /// Copied out up to here. Invariant: `released <= read <= written_seen <= read + capacity`, where `released` is what the
    /// shared index says.
    read: u64,
    released: u64,
    written_seen: u64,
    /// What `read` was when the producer was last asked whether it waits for room (module header).
    asked: u64,
}

impl Consumer {
    pub(super) fn new(mapping: Arc<Mapping>, side: usize) -> Self {
        Self { mapping, side, read: 0, released: 0, written_seen: 0, asked: 0 }
    }

    /// Bytes that can be read; looks at the other's index only when those it knows of are used up.
    ///
    /// # Errors
    /// The other side's index is impossible.
    #[inline]
    pub(super) fn look(&mut self) -> Result<usize, Violation> {
        if self.read == self.written_seen {
            // Acquire, pairs with the Release in `Producer::publish`. Loaded once.
            let written = self.mapping.side(self.side).written.0.load(Ordering::Acquire);
            // It has seen what was released at most, and has a ring from there. The limit cannot overflow before 2^64 bytes.
            let limit = self.released + self.mapping.ring_bytes() as u64;
            if !(self.written_seen..=limit).contains(&written) {
                return Err(Violation::Indices);
            }
            self.written_seen = written;
            self.mapping.prefetch(self.side, self.read, self.known().min(PREFETCH_BYTES));
        }
        Ok(self.known())
    }

    /// Copies out as many bytes as were seen by `look` and fit into `to`, and says how many.
    #[inline]
    pub(super) fn read(&mut self, to: &mut [u8]) -> usize {
        let count = to.len().min(self.known());
        let mut rest = &mut to[..count];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at_mut(rest.len().min(PIECE_BYTES));
            self.mapping.read(self.side, self.read, piece);
            self.advance(piece.len());
            rest = after;
        }
        count
    }

    /// Passes over as many bytes as were seen by `look`, at most `count`, and says how many.
    pub(super) fn skip(&mut self, count: usize) -> usize {
        let count = count.min(self.known());
        self.advance(count);
        count
    }

    /// Gives the producer the room of all that was read. Says whether the producer must be asked, after a full fence, whether
    /// it sleeps (module header); it counts as asked then.
    #[inline]
    pub(super) fn release(&mut self) -> bool {
        if self.released != self.read {
            self.store_read();
        }
        let due =
            self.released != self.asked && self.written_seen - self.asked >= self.mapping.ring_bytes() as u64;
        if due {
            self.asked = self.released;
        }
        due
    }

    /// How much has been read since the beginning, for the caller to compare.
    pub(super) fn position(&self) -> u64 {
        self.read
    }

    /// Whether the other end has written since this one last looked. A hint.
    pub(super) fn has_news(&self) -> bool {
        // Relaxed: only compared; whoever acts on it loads it again.
        self.mapping.side(self.side).written.0.load(Ordering::Relaxed) != self.written_seen
    }

    fn known(&self) -> usize {
        // At most a ring (invariant).
        usize::try_from(self.written_seen - self.read).unwrap_or(0)
    }

    fn advance(&mut self, count: usize) {
        self.read += count as u64;
        if self.read - self.released >= PIECE_BYTES as u64 {
            self.store_read();
        }
    }

    fn store_read(&mut self) {
        self.released = self.read;
        // Release, pairs with the Acquire in `Producer::make_room`.
        self.mapping.side(1 - self.side).read.0.store(self.read, Ordering::Release);
    }
}

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;
