//! Memory for bodies that arrive: an arena in which a body that fits the limit always fits in the end.
//! Knows sizes and who waits; does not know what arrives. Called by the receiving halves.
//!
//! **A body that waits gets its turn.** The arena's classes never give memory to each other, so each class is given
//! its chunks at the start: one run a small class, the longest body's worth of pieces for large ones. A large body takes
//! all its pieces or none: two that hold halves would wait for each other for ever. While one waits for pieces, no
//! other takes any.

use std::collections::VecDeque;

use crate::arena::Arena;
use crate::endpoint::Body;
use crate::region::SliceMut;

/// Large bodies are received into pieces of this size: of 256 KiB an update still finds all in the cache
/// (receiving and adding goes at the rate of receiving alone; with pieces of 16 MiB at three quarters of it).
pub(crate) const PIECE_BYTES: usize = 256 << 10;
/// What small classes need beside the pieces: one common mapping of the arena.
const SMALL_BYTES: usize = 4 << 20;
/// Bodies of more than this are large: they take part in the queue.
const SMALL_BODY_BYTES: usize = 64 << 10;

/// Memory of one endpoint for what arrives.
pub(crate) struct Staging {
    arena: Arena,
    /// Slots of connections that wait for a large body's memory, the first to be served first.
    waiting: VecDeque<usize>,
}

impl Staging {
    pub(crate) fn new(receive_bytes: usize, body_bytes_max: u32) -> Self {
        let longest = (body_bytes_max as usize).next_multiple_of(PIECE_BYTES);
        let mut arena = Arena::new(receive_bytes.max(longest + 2 * SMALL_BYTES));
        // Held together, so that they are different chunks; given back at the end of this function.
        let small = (0..).map(|class| 64_usize << class).take_while(|bytes| *bytes < PIECE_BYTES);
        let mut held: Vec<_> = small.filter_map(|bytes| arena.take(bytes)).collect();
        held.extend((0..longest / PIECE_BYTES).filter_map(|_| arena.take(PIECE_BYTES)));
        Self { arena, waiting: VecDeque::new() }
    }

    /// Memory for a body of `len` bytes that arrives at `slot`. `None`: not now; the slot waits.
    pub(crate) fn take(&mut self, slot: usize, len: usize) -> Option<Staged> {
        if len <= SMALL_BODY_BYTES {
            return Some(Staged { first: self.arena.take(len)?, rest: Vec::new(), whole: 0, filled: 0 });
        }
        if self.waiting.front().is_some_and(|first| *first != slot) {
            if !self.waiting.contains(&slot) {
                self.waiting.push_back(slot);
            }
            return None;
        }
        let taken = self.take_large(len);
        match (&taken, self.waiting.is_empty()) {
            (Some(_), false) => drop(self.waiting.pop_front()),
            (None, true) => self.waiting.push_back(slot),
            _ => {}
        }
        taken
    }

    /// The body of these bytes, copied, if it is a small one; `None`: it is not, or there is no memory now.
    #[inline]
    pub(crate) fn copy(&mut self, bytes: &[u8]) -> Option<Body> {
        if bytes.len() > SMALL_BODY_BYTES {
            return None;
        }
        let mut slice = self.arena.take(bytes.len())?;
        slice.as_mut_bytes().copy_from_slice(bytes);
        Some(slice.freeze().into())
    }

    fn take_large(&mut self, len: usize) -> Option<Staged> {
        // What has just come back is still in the cache; the arena by itself would go round all of its memory first.
        self.arena.collect();
        let first = self.arena.take(len.min(PIECE_BYTES))?;
        let mut rest = Vec::new();
        let mut left = len - first.len();
        while left > 0 {
            // What was taken goes back when this fails.
            let mut piece = self.arena.take(PIECE_BYTES)?;
            piece.truncate(left);
            left -= piece.len();
            rest.push(piece);
        }
        Some(Staged { first, rest, whole: 0, filled: 0 })
    }

    /// A connection is gone and waits for nothing any more.
    pub(crate) fn forget(&mut self, slot: usize) {
        self.waiting.retain(|waiting| *waiting != slot);
    }

    #[cfg(test)]
    pub(crate) fn mapped_bytes(&self) -> usize {
        self.arena.mapped_bytes()
    }
}

/// Memory of one body, and how much of it has been filled.
pub(crate) struct Staged {
    first: SliceMut,
    /// Further pieces; most bodies have none, and then this has no allocation.
    rest: Vec<SliceMut>,
    /// Pieces that are full.
    whole: usize,
    /// Bytes filled of the one that is not.
    filled: usize,
}

impl Staged {
    /// Where the next bytes go; empty when all has come.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        let filled = self.filled;
        let piece = match self.whole {
            0 => &mut self.first,
            whole => match self.rest.get_mut(whole - 1) {
                Some(piece) => piece,
                None => return &mut [],
            },
        };
        &mut piece.as_mut_bytes()[filled..]
    }

    /// Whether the room is the last of it.
    pub(crate) fn is_last(&self) -> bool {
        self.whole >= self.rest.len()
    }

    /// `count` bytes were written into the room.
    pub(crate) fn advance(&mut self, count: usize) {
        self.filled += count;
        let len = match self.whole {
            0 => self.first.len(),
            whole => self.rest.get(whole - 1).map_or(usize::MAX, SliceMut::len),
        };
        debug_assert!(self.filled <= len, "{} bytes into {len}", self.filled);
        if self.filled == len {
            self.whole += 1;
            self.filled = 0;
        }
    }

    /// Copies from `bytes` what fits and returns how much that was.
    pub(crate) fn fill(&mut self, mut bytes: &[u8]) -> usize {
        let before = bytes.len();
        while !bytes.is_empty() {
            let room = self.room();
            let count = room.len().min(bytes.len());
            if count == 0 {
                break;
            }
            room[..count].copy_from_slice(&bytes[..count]);
            self.advance(count);
            bytes = &bytes[count..];
        }
        before - bytes.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.whole > self.rest.len()
    }

    pub(crate) fn freeze(self) -> Body {
        if self.rest.is_empty() {
            return self.first.freeze().into();
        }
        Body::of(std::iter::once(self.first).chain(self.rest).map(SliceMut::freeze))
    }
}
