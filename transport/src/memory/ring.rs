//! A bounded queue between two threads, one that puts and one that takes.
//! Knows positions; does not know messages, peers or wakers: who is to be woken is the caller's matter.
//! Called by `memory::Half` only.
//! Source: Lamport's ring; each side keeps a copy of the other's index, as in MCRingBuffer and folly's
//! `ProducerConsumerQueue`.
//!
//! # States of a slot
//!
//! Positions count up for ever; position `p` lies in slot `p & mask`. With `head <= tail <= head + depth`:
//!
//! | positions | who may touch the slot | moved by |
//! | --------- | ---------------------- | -------- |
//! | `head .. tail` | the consumer | `head` up, by `release`, after the item was moved out |
//! | `tail .. head + depth` | the producer | `tail` up, by `publish`, after the item was written |
//!
//! Both sides run ahead of the shared index in private (`pushed`, `popped`) and move it once per batch.
//!
//! **Progress**: every operation is wait-free. **Reclamation**: items left at the end are dropped with the ring, after
//! both halves, whose drops move the shared indices to the private ones.
//! **Orders**: `tail` Release in `publish`, pairs with the Acquire in `pop`: the item is written before it is read.
//! `head` Release in `release`, pairs with the Acquire in `taken`: the item is moved out before its slot is reused.
#![allow(unsafe_code, reason = "slots are shared between two threads by turns")]

use std::mem::MaybeUninit;

use crossbeam_utils::CachePadded;

use crate::primitive::{Arc, AtomicUsize, Ordering, UnsafeCell};

/// What both sides share.
///
/// Invariants: the states above; `slots.len()` is a power of two and at least `depth`.
struct Shared<T> {
    head: CachePadded<AtomicUsize>,
    tail: CachePadded<AtomicUsize>,
    depth: usize,
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
}

// SAFETY: a slot is touched by one thread at a time, handed over through `head` and `tail` (states above), so sharing
// the ring only sends items from one thread to the other.
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: it owns its items, which are `Send`.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Shared<T> {
    fn slot(&self, position: usize) -> &UnsafeCell<MaybeUninit<T>> {
        &self.slots[position & (self.slots.len() - 1)]
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // Relaxed: both halves are gone, and the last one's `Arc` has synchronised with the other's.
        let (head, tail) = (self.head.load(Ordering::Relaxed), self.tail.load(Ordering::Relaxed));
        let mut position = head;
        while position != tail {
            self.slot(position).with_mut(|slot| {
                // SAFETY: nobody else is left to use the slot.
                let slot = unsafe { &mut *slot };
                // SAFETY: positions from `head` to `tail` hold written items (states above).
                unsafe { slot.assume_init_drop() }
            });
            position = position.wrapping_add(1);
        }
    }
}

/// A ring of `depth` items (at least one) and its two ends.
pub(super) fn ring<T: Send>(depth: usize) -> (Producer<T>, Consumer<T>) {
    let depth = depth.max(1);
    let shared = Arc::new(Shared {
        head: CachePadded::new(AtomicUsize::new(0)),
        tail: CachePadded::new(AtomicUsize::new(0)),
        depth,
        slots: (0..depth.next_power_of_two()).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect(),
    });
    let producer = Producer { shared: Arc::clone(&shared), pushed: 0, published: 0, head_seen: 0 };
    (producer, Consumer { shared, popped: 0, released: 0, tail_seen: 0 })
}

/// The end that puts. One per ring.
pub(super) struct Producer<T> {
    shared: Arc<Shared<T>>,
    /// Written up to here. Invariant: `head <= head_seen <= published <= pushed <= head_seen + depth`, wrapping, where
    /// `published` is what `tail` says; `head` may be ahead of `head_seen`.
    pushed: usize,
    published: usize,
    head_seen: usize,
}

impl<T> Producer<T> {
    /// Puts an item, seen by the other end after `publish`. Gives it back when the ring is full.
    #[inline]
    pub(super) fn push(&mut self, item: T) -> Result<(), T> {
        if self.pushed.wrapping_sub(self.head_seen) == self.shared.depth {
            self.taken();
            if self.pushed.wrapping_sub(self.head_seen) == self.shared.depth {
                return Err(item);
            }
        }
        // SAFETY: the position lies in `tail .. head + depth`, so the slot is the producer's, and holds no item.
        self.shared.slot(self.pushed).with_mut(|slot| unsafe { slot.write(MaybeUninit::new(item)) });
        self.pushed = self.pushed.wrapping_add(1);
        Ok(())
    }

    /// Shows the other end all that was put.
    #[inline]
    pub(super) fn publish(&mut self) {
        if self.published != self.pushed {
            self.published = self.pushed;
            // Release, pairs with the Acquire in `Consumer::look`.
            self.shared.tail.store(self.pushed, Ordering::Release);
        }
    }

    /// How many items the other end has released since the ring was made, wrapping.
    #[inline]
    pub(super) fn taken(&mut self) -> usize {
        // Acquire, pairs with the Release in `Consumer::release`.
        self.head_seen = self.shared.head.load(Ordering::Acquire);
        self.head_seen
    }
}

impl<T> Drop for Producer<T> {
    fn drop(&mut self) {
        self.publish();
    }
}

/// The end that takes. One per ring.
pub(super) struct Consumer<T> {
    shared: Arc<Shared<T>>,
    /// Moved out up to here. Invariant: `released <= popped <= tail_seen <= tail`, wrapping, where `released` is what
    /// `head` says.
    popped: usize,
    released: usize,
    tail_seen: usize,
}

impl<T> Consumer<T> {
    /// The next item, if there is one, in its slot.
    #[inline]
    pub(super) fn peek(&mut self) -> Option<&T> {
        if !self.look() {
            return None;
        }
        self.shared.slot(self.popped).with(|slot| {
            // SAFETY: the position lies in `head .. tail`, so the slot is the consumer's.
            let slot = unsafe { &*slot };
            // SAFETY: and holds a written item, which is not moved out before `popped` moves.
            Some(unsafe { slot.assume_init_ref() })
        })
    }

    /// Moves the next item out. Its place is free for the other end after `release`.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<T> {
        if !self.look() {
            return None;
        }
        let item = self.shared.slot(self.popped).with(|slot| {
            // SAFETY: the position lies in `head .. tail`, so the slot is the consumer's.
            let slot = unsafe { &*slot };
            // SAFETY: it holds a written item, read once: `popped` moves now.
            unsafe { slot.assume_init_read() }
        });
        self.popped = self.popped.wrapping_add(1);
        Some(item)
    }

    /// Gives the other end the places of all items taken. Says whether there were any.
    #[inline]
    pub(super) fn release(&mut self) -> bool {
        let any = self.released != self.popped;
        if any {
            self.released = self.popped;
            // Release, pairs with the Acquire in `Producer::taken`.
            self.shared.head.store(self.popped, Ordering::Release);
        }
        any
    }

    /// Whether an item can be taken; reads the other end's index only when the known ones are used up.
    #[inline]
    fn look(&mut self) -> bool {
        if self.popped == self.tail_seen {
            // Acquire, pairs with the Release in `Producer::publish`.
            self.tail_seen = self.shared.tail.load(Ordering::Acquire);
        }
        self.popped != self.tail_seen
    }
}

impl<T> Drop for Consumer<T> {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;
