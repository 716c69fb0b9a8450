//! The contract of a transport: one endpoint per thread, batches in, events out.
//! Knows messages (a head and a body of slices), peers and tokens; does not know what a head says.
//! Called by the two shells, `Node` and `Driver`, and by nobody else.
//! Source: OSDI'14 §4.2 (messages); the shape follows eRPC's and libfabric's burst interfaces.

use std::borrow::Cow;
use std::collections::VecDeque;

use crate::caps::Capabilities;
use crate::error::{AdoptError, AttachError, Full, LostReason};
use crate::link::Link;
use crate::region::{Region, Slice, SliceMut};
use crate::wait::{Armed, Waker};

/// Bytes of the fixed part of a head.
pub const HEADER_BYTES: usize = 64;
/// Bytes of all extensions behind the fixed part, at most.
pub const EXTENSION_BYTES_MAX: usize = 256;
/// Bytes of a whole head, at most.
pub const HEAD_BYTES_MAX: usize = HEADER_BYTES + EXTENSION_BYTES_MAX;

/// Bytes of a head that are kept inline: the header and what most heads have besides, up to a pull with one dependency.
const INLINE_BYTES: usize = 104;

/// The head of a message: a fixed header and its extensions, opaque to the transport.
///
/// Kept inline up to 104 bytes, because every message has one, is moved several times, and none should allocate. A longer one,
/// with a list of dependencies, is boxed.
#[derive(Clone)]
pub struct Head {
    inline: [u8; INLINE_BYTES],
    len: u16,
    long: Option<Box<[u8]>>,
}

impl Head {
    /// A head of `bytes`, copied. Returns `None` when they are shorter than a header or longer than
    /// [`HEAD_BYTES_MAX`].
    #[must_use]
    #[inline]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        if !(HEADER_BYTES..=HEAD_BYTES_MAX).contains(&bytes.len()) {
            return None;
        }
        let len = u16::try_from(bytes.len()).ok()?;
        let mut inline = [0; INLINE_BYTES];
        let long = match inline.get_mut(..bytes.len()) {
            Some(inline) => {
                inline.copy_from_slice(bytes);
                None
            }
            None => Some(bytes.into()),
        };
        Some(Self { inline, len, long })
    }

    /// The bytes that travel.
    #[must_use]
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.long {
            None => &self.inline[..usize::from(self.len)],
            Some(long) => long,
        }
    }
}

/// The body of a message: slices of regions, in order. Their concatenation is what the peer receives;
/// where the cuts lie is not preserved.
///
/// One slice is held inline. Several (a frame that spans provided buffers, or keys and values that lie
/// apart) share one allocation, which a body of that size (64 KiB and more on receipt) amortises.
#[derive(Clone, Default)]
pub struct Body(Parts);

#[derive(Clone, Default)]
enum Parts {
    #[default]
    Empty,
    One(Slice),
    Many(std::sync::Arc<[Slice]>),
}

impl Body {
    /// A body of nothing.
    #[must_use]
    pub const fn empty() -> Self {
        Self(Parts::Empty)
    }

    /// A body of several slices; empty ones are dropped.
    #[must_use]
    pub fn of(slices: impl IntoIterator<Item = Slice>) -> Self {
        let mut slices = slices.into_iter().filter(|slice| !slice.is_empty());
        let Some(first) = slices.next() else { return Self::empty() };
        let Some(second) = slices.next() else { return Self(Parts::One(first)) };
        Self(Parts::Many([first, second].into_iter().chain(slices).collect()))
    }

    /// The slices, in order; none of them is empty.
    #[must_use]
    pub fn slices(&self) -> &[Slice] {
        match &self.0 {
            Parts::Empty => &[],
            Parts::One(slice) => std::slice::from_ref(slice),
            Parts::Many(slices) => slices,
        }
    }

    /// Bytes in all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slices().iter().map(Slice::len).sum()
    }

    /// Whether there is nothing to read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self.0, Parts::Empty)
    }

    /// Copies all bytes, once.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn copy_to(&self, mut destination: &mut [u8]) {
        assert_eq!(self.len(), destination.len(), "a destination is exactly as long as its body");
        for slice in self.slices() {
            let (front, rest) = destination.split_at_mut(slice.len());
            front.copy_from_slice(slice.as_bytes());
            destination = rest;
        }
    }

    /// All bytes in one piece; copied only when they lie in several.
    #[must_use]
    pub fn contiguous(&self) -> Cow<'_, [u8]> {
        match self.slices() {
            [] => (&[]).into(),
            [slice] => slice.as_bytes().into(),
            slices => slices.iter().map(Slice::as_bytes).collect::<Vec<_>>().concat().into(),
        }
    }

    /// The bytes `range` of the concatenation, by reference.
    ///
    /// # Panics
    /// When the range does not lie within the body: the caller has checked it against the header.
    #[must_use]
    pub fn cut(&self, range: std::ops::Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len(), "cut {range:?} of {} bytes", self.len());
        let mut start = 0;
        Self::of(self.slices().iter().filter_map(|slice| {
            let (begin, end) = (start, start + slice.len());
            start = end;
            let (from, to) = (range.start.max(begin), range.end.min(end));
            (from < to).then(|| slice.cut(from - begin..to - begin))
        }))
    }
}

impl From<Slice> for Body {
    fn from(slice: Slice) -> Self {
        if slice.is_empty() { Self::empty() } else { Self(Parts::One(slice)) }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Body({} bytes)", self.len())
    }
}

impl std::fmt::Debug for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Head({} bytes)", self.as_bytes().len())
    }
}

/// A peer of one endpoint. Never used again by that endpoint once the peer is lost.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Peer(pub u64);

/// What the poster calls an operation; comes back in its completion. The transport does not look at it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Token(pub u64);

/// Names a body that waits for [`Endpoint::place`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Arrival(pub u64);

/// One described operation.
#[derive(Debug)]
pub struct Operation {
    /// To whom.
    pub peer: Peer,
    /// Comes back in [`Event::Sent`].
    pub token: Token,
    /// The head that travels in front.
    pub head: Head,
    /// The body, lent to the transport until the token completes.
    pub body: Body,
}

/// Operations to be posted together: the unit of a doorbell or a kernel entry.
#[derive(Default, Debug)]
pub struct Batch {
    pub(crate) operations: VecDeque<Operation>,
}

impl Batch {
    /// An empty batch with room for `count` operations before it grows.
    #[must_use]
    pub fn with_capacity(count: usize) -> Self {
        Self { operations: VecDeque::with_capacity(count) }
    }

    /// Appends a send.
    #[inline]
    pub fn send(&mut self, peer: Peer, token: Token, head: Head, body: Body) {
        self.operations.push_back(Operation { peer, token, head, body });
    }

    /// Operations that were not taken yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }
}

/// What happened at an endpoint.
#[derive(Debug)]
pub enum Event {
    /// A posted operation has ended. Exactly one per token; flushed ones come before the peer's `Lost`.
    Sent {
        /// The peer it was posted to.
        peer: Peer,
        /// As posted.
        token: Token,
        /// `Ok`: the body may be reused. It does not say that the peer has seen it.
        outcome: Result<(), LostReason>,
    },
    /// A message has arrived whole. The body lies where the transport received it.
    Arrived {
        /// From whom.
        peer: Peer,
        /// As sent.
        head: Head,
        /// As sent, by reference; dropping the last slice returns the receive buffer.
        body: Body,
    },
    /// The head of a message with a large body has arrived; the body waits for [`Endpoint::place`], and so do all
    /// later messages of that peer (completions do not). Only on links whose receiver asked for it
    /// ([`Link::place_from`]).
    Announced {
        /// From whom.
        peer: Peer,
        /// To be named in `place`.
        arrival: Arrival,
        /// As sent.
        head: Head,
        /// Length of the body.
        body_bytes: usize,
    },
    /// A placed body is complete; the destination comes back.
    Placed {
        /// From whom.
        peer: Peer,
        /// As announced.
        arrival: Arrival,
        /// The memory given to `place`.
        destination: SliceMut,
        /// `Err`: the peer was lost in the middle and the content is undefined.
        outcome: Result<(), LostReason>,
    },
    /// The peer is gone. The last event of that peer, but for the completions of what is posted to it afterwards.
    Lost {
        /// Who.
        peer: Peer,
        /// Why, in words fit for an operator.
        reason: LostReason,
    },
}

/// Events of one poll, at most as many as its limit. The default has room for none and allocates nothing.
#[derive(Default, Debug)]
pub struct Events {
    pub(crate) list: Vec<Event>,
    limit: usize,
    /// Bytes came or left since `take_progress`, whether or not that came to an event.
    pub(crate) moved: bool,
}

impl Events {
    /// Room for `limit` events a poll (at least one).
    #[must_use]
    pub fn with_limit(limit: usize) -> Self {
        let limit = limit.max(1);
        Self { list: Vec::with_capacity(limit), limit, moved: false }
    }

    /// How many more events this poll may report.
    #[must_use]
    pub fn room(&self) -> usize {
        self.limit.saturating_sub(self.list.len())
    }

    /// Takes the events out, in the order they happened.
    pub fn drain(&mut self) -> std::vec::Drain<'_, Event> {
        self.list.drain(..)
    }

    /// Whether the last poll reported nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether anything has happened since the last call, bytes of a message that is not whole included: more may follow soon.
    #[must_use]
    pub fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.moved) || !self.list.is_empty()
    }
}

/// A transport as one thread sees it. Owned by that thread; nothing here blocks and nothing allocates per
/// message. Only `poll` makes progress.
///
/// Order: messages to one peer arrive in the order in which they were posted, each once or, when the peer is
/// lost, not at all. Between peers there is no order.
pub trait Endpoint {
    /// What this endpoint can do, for choosing and for printing.
    fn capabilities(&self) -> Capabilities;

    /// Makes a region known to the device, so that its slices travel without a copy. A slice of a region that
    /// was not attached is still accepted; a backend that must copy it counts that.
    ///
    /// # Errors
    /// [`AttachError`], with the limit that was met and the setting that raises it.
    fn attach(&mut self, region: &Region) -> Result<(), AttachError>;

    /// Takes over a finished link. Constant time.
    ///
    /// # Errors
    /// [`AdoptError`] when the link is of another kind or the endpoint has as many peers as it may have. The link
    /// is closed then, so the other side hears of it.
    fn adopt(&mut self, link: Link) -> Result<Peer, AdoptError>;

    /// Takes operations out of the batch, in order. An operation whose peer has no room stays, with all later
    /// ones of that peer; other peers are not held up. An operation to a peer that is lost completes as flushed.
    ///
    /// # Errors
    /// [`Full`] when anything stayed. It ends after a `poll` that reported a `Sent` or `Lost` of that peer.
    fn post(&mut self, batch: &mut Batch) -> Result<(), Full>;

    /// Drives progress and reports what happened, at most `events.room()` of it.
    fn poll(&mut self, events: &mut Events);

    /// Says where an announced body goes. `destination` must be exactly as long as the body; it comes back in
    /// [`Event::Placed`]. `None` discards the body, and nothing more is reported of it. When the peer was lost since
    /// the announcement, nothing happens and the destination is dropped.
    ///
    /// Every announcement must be answered: until then nothing more of that peer arrives, and its loss may not be
    /// reported.
    ///
    /// # Panics
    /// When the destination is not as long as the announced body.
    fn place(&mut self, arrival: Arrival, destination: Option<SliceMut>);

    /// Prepares to sleep: after this, any event rings the waker. Says that something is there already, or what to
    /// sleep on. [`crate::wait`] is the only caller.
    fn arm(&mut self) -> Armed;

    /// Wakes the thread that sleeps on this endpoint, from any thread.
    fn waker(&self) -> Waker;

    /// Ends a link. What was posted completes as flushed or sent, then `Lost` is reported.
    fn close(&mut self, peer: Peer);
}
