//! Who is to be rung: one word per side says whether its thread looks at the ring by itself or wants to be told.
//! Knows the word and when to ring; does not know how (a byte through the link's socket, `half.rs`).
//! Called by `half.rs`. Source: the flag with a fence on both sides is Dekker's, as in `wait.rs`.
//!
//! # States of a side, as its word says
//!
//! | word | meaning | next |
//! | ---- | ------- | ---- |
//! | even | this side's thread looks at the rings in every poll | odd: `ask` |
//! | odd | it does not look before it is rung | even: `look`; the next odd number: `ask` |
//!
//! The word counts up at each change and is written by its side only. The other side rings once for each odd number that
//! it finds, so a thread that is slow to wake is not rung for every message.
//!
//! **No wake-up is lost.** The sleeper stores an odd number, full fence, looks at the rings, and sleeps or leaves the link
//! alone only if there was nothing. The other side moves its index, full fence, loads the word. One of the two sees the other's
//! store, as in `wait.rs`. If it finds the odd number, it rings unless it has rung for this number before. In that case the ring
//! is still there to be heard: whoever hears a ring stores a new number and looks after that, so what was published before
//! the other side loaded the *old* number is found by that look. That the new number is stored before the look matters in one
//! case only, a side that stays asleep (`ask` again, with a fence); a side that wakes looks in every poll from then on.
//!
//! A hostile side may write what it likes: then this side rings for nothing, at most once a batch, or does not ring, and the
//! other has itself to blame.

use crate::primitive::{AtomicU64, Ordering};

/// This side's word, as this side knows it.
#[derive(Default)]
pub(super) struct Bell {
    number: u64,
}

impl Bell {
    /// Whether this side wants to be rung.
    pub(super) fn asks(&self) -> bool {
        !self.number.is_multiple_of(2)
    }

    /// Wants to be rung from now on, for what comes after everything that it was rung for. The caller must issue a full fence
    /// and look at the rings, in this order.
    pub(super) fn ask(&mut self, word: &AtomicU64) {
        self.number += if self.asks() { 2 } else { 1 };
        // Relaxed: ordered by the fence that follows, which pairs with the one before `Ringer::must_ring`.
        word.store(self.number, Ordering::Relaxed);
    }

    /// Looks by itself from now on.
    pub(super) fn look(&mut self, word: &AtomicU64) {
        if self.asks() {
            self.number += 1;
            // Relaxed: whoever still finds the odd number rings for nothing.
            word.store(self.number, Ordering::Relaxed);
        }
    }
}

/// What this side knows of the other's word.
#[derive(Default)]
pub(super) struct Ringer {
    rung_for: u64,
}

impl Ringer {
    /// Whether the other side is to be rung. To be asked after an index was moved and a full fence was issued.
    #[inline]
    pub(super) fn must_ring(&mut self, word: &AtomicU64) -> bool {
        // Relaxed: ordered by the fence before, which pairs with the one after `Bell::ask`.
        let number = word.load(Ordering::Relaxed);
        if number.is_multiple_of(2) || number == self.rung_for {
            return false;
        }
        self.rung_for = number;
        true
    }
}
