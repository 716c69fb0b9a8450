//! Links inside one process: messages pass by reference through two bounded rings.
//! Knows peers of this process; copies no body, but into a place that the receiver chose.
//! Called by whoever embeds a cluster (`pair`, `Endpoint::new`), then through the `Endpoint` trait.
//! Source: `transport/DESIGN.md` (memory); OSDI'14 says nothing of it.
//!
//! # How the two sides meet
//!
//! [`pair`] makes both sides at once; each may be adopted by an endpoint on any thread, at any time, or dropped.
//! An endpoint has one *inbox*: a bit per peer, "something may have changed at this peer", and the endpoint's
//! waker. Adoption installs the endpoint's inbox in the pair; the other side marks its bit after each change:
//! messages put, messages taken (the sender's completions), the end.
//!
//! **A late adopter misses nothing.** The other side changes something, full fence, looks whether an inbox is installed.
//! The adopter installs, full fence, looks at the rings. At least one of the two sees the other's store, as in
//! `wait.rs`: either the bit is set, or the adopter's first poll finds the change.
//!
//! **Nothing is missed after that.** The change is made before the bit is set (Release), the bit is taken by a swap
//! (Acquire) before the rings are looked at. A change after the swap sets the bit anew.
//!
//! **The end.** A side that ends stores `closed` after its last change. The other side reads `closed` before it looks at
//! the rings for the last time, so it delivers and completes everything first, then reports `Lost`.
//!
//! **Completion.** `Sent` with `Ok` means that the other side has taken the message out of the ring (an announced body:
//! that it was placed), not that the body is unused: the receiver holds it by reference.

mod endpoint;
#[cfg(all(test, loom))]
mod models;
mod ring;
#[cfg(all(test, not(loom)))]
mod tests;

use std::fmt;
use std::sync::OnceLock;

use crossbeam_utils::CachePadded;

pub use endpoint::{Endpoint, Limits};

use crate::endpoint::{Body, Head};
use crate::link::{Kind, Link};
use crate::primitive::{Arc, AtomicBool, AtomicU64, Ordering, fence};
use crate::wait::Waker;

/// The two ends of a new connection called `number`, each with room for `depth` messages not yet taken by the other.
///
/// Costs two rings of `depth` messages of about 360 bytes.
#[must_use]
pub fn pair(number: u64, depth: usize) -> (Link, Link) {
    let (send_left, receive_right) = ring::ring(depth);
    let (send_right, receive_left) = ring::ring(depth);
    let shared = Arc::new(Shared { sides: std::array::from_fn(|_| CachePadded::new(Side::new())) });
    let left = Half {
        send: send_left,
        receive: receive_left,
        shared: Arc::clone(&shared),
        side: 0,
        depth,
        other: None,
    };
    let right = Half { send: send_right, receive: receive_right, shared, side: 1, depth, other: None };
    let link = |half| Link::of(Kind::Memory(half), number);
    (link(left), link(right))
}

/// What passes through a ring.
pub(crate) struct Message {
    head: Head,
    body: Body,
}

/// What the two sides know of each other, beside the rings.
struct Shared {
    sides: [CachePadded<Side>; 2],
}

struct Side {
    /// This side has ended: nothing comes from it any more.
    closed: AtomicBool,
    /// `inbox` is set. A flag of its own, because the models can see it.
    installed: AtomicBool,
    /// Where this side wants to hear of changes; set once, by adoption.
    inbox: OnceLock<Installed>,
}

impl Side {
    fn new() -> Self {
        Self { closed: AtomicBool::new(false), installed: AtomicBool::new(false), inbox: OnceLock::new() }
    }
}

/// An inbox and the bit of one peer in it.
#[derive(Clone)]
struct Installed {
    inbox: Arc<Inbox>,
    slot: usize,
}

/// One side of a pair. Dropping it ends the connection.
pub(crate) struct Half {
    send: ring::Producer<Message>,
    receive: ring::Consumer<Message>,
    shared: Arc<Shared>,
    side: usize,
    depth: usize,
    /// The other side's inbox, once seen.
    other: Option<Installed>,
}

impl Half {
    /// Tells the other side from now on into this inbox to look at its peer `slot`. The caller must look at the rings
    /// itself once more after this.
    fn install(&self, inbox: &Arc<Inbox>, slot: usize) {
        let side = &self.shared.sides[self.side];
        let fresh = side.inbox.set(Installed { inbox: Arc::clone(inbox), slot }).is_ok();
        debug_assert!(fresh, "a half is adopted once");
        // Release, pairs with the Acquire in `notify`.
        side.installed.store(true, Ordering::Release);
        // Full fence, pairs with the one in `notify`: installed before, the rings are looked at after.
        fence(Ordering::SeqCst);
    }

    /// Tells the other side to look, if it is there yet, and wakes it.
    fn notify(&mut self) {
        if self.other.is_none() {
            // Full fence, pairs with the one in `install`: the change was made before, the flag is looked at after.
            fence(Ordering::SeqCst);
            let side = &self.shared.sides[1 - self.side];
            // Acquire, pairs with the Release in `install`.
            if side.installed.load(Ordering::Acquire) {
                self.other = side.inbox.get().cloned();
            }
        }
        if let Some(other) = &self.other {
            other.inbox.mark(other.slot);
        }
    }

    /// Whether the other side has ended. To be asked before the rings are looked at for the last time.
    fn is_closed_by_peer(&self) -> bool {
        // Acquire, pairs with the Release in `drop`: all the other side did is visible after.
        self.shared.sides[1 - self.side].closed.load(Ordering::Acquire)
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        self.send.publish();
        self.receive.release();
        // Release, pairs with the Acquire in `is_closed_by_peer`.
        self.shared.sides[self.side].closed.store(true, Ordering::Release);
        self.notify();
    }
}

impl fmt::Debug for Half {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory::Half(side {})", self.side)
    }
}

/// Words of the bit map: one poll looks at as many as have peers.
#[cfg(not(loom))]
const WORD_COUNT: u32 = 16;
#[cfg(loom)]
const WORD_COUNT: u32 = 1;
/// Peers of one endpoint: a bit each.
const PEERS_MAX: u32 = WORD_COUNT * 64;

/// Where an endpoint hears that something has changed at a peer.
struct Inbox {
    /// Bit `slot % 64` of word `slot / 64`: look at this peer.
    changed: [AtomicU64; WORD_COUNT as usize],
    waker: Waker,
}

impl Inbox {
    fn new() -> Self {
        Self { changed: std::array::from_fn(|_| AtomicU64::new(0)), waker: Waker::new() }
    }

    /// Called after the change was made. Lock-free; a system call only when the endpoint's thread sleeps.
    fn mark(&self, slot: usize) {
        // Release, pairs with the Acquire in `take`.
        self.changed[slot / 64].fetch_or(1 << (slot % 64), Ordering::Release);
        self.waker.ring();
    }

    /// Takes the bits of one word.
    fn take(&self, word: usize) -> u64 {
        // Relaxed: a bit that is missed now is found by the next poll, or after `arm`, whose fence pairs with `ring`'s.
        if self.changed[word].load(Ordering::Relaxed) == 0 {
            return 0;
        }
        // Acquire, pairs with the Release in `mark`: the change is visible to whoever took its bit.
        self.changed[word].swap(0, Ordering::Acquire)
    }

    fn is_empty(&self, words: usize) -> bool {
        // Relaxed: as in `take`.
        self.changed[..words].iter().all(|word| word.load(Ordering::Relaxed) == 0)
    }
}
