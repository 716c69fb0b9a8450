//! What is to be sent to one peer, in order, and what one call sends of it.
//! Knows operations and bytes; makes no system call. Called by the endpoints of `socket`, `uring` and `shm`.
//! Source: `transport/DESIGN.md` (TCP): one vectored send a peer and turn, small bodies copied behind their heads.

use std::collections::VecDeque;
use std::ops::Range;

use crate::endpoint::{Body, Event, Events, HEAD_BYTES_MAX, Head, Peer, Token};
use crate::error::LostReason;
use crate::region::Slice;

/// Bodies up to this are copied behind their head: below, an entry of a vector costs the kernel more than the copy.
const COPY_BYTES_MAX: usize = 512;
/// Frames of one call.
const FRAMES_MAX: usize = 128;
/// A call takes no further frame once it has so many bytes.
const CALL_BYTES: usize = 256 << 10;
/// Entries of one call's vector. The system takes 1,024; 128 frames with a body each need 256.
pub(crate) const PARTS_MAX: usize = 260;
/// What is copied for one call, at most.
pub(crate) const COPIED_MAX: usize = FRAMES_MAX * (HEAD_BYTES_MAX + COPY_BYTES_MAX);

/// Operations of one peer: not yet written, written and not yet reported, refused.
pub(crate) struct SendQueue {
    depth: usize,
    unsent: VecDeque<Unsent>,
    /// Bytes of the first unsent operation that were written.
    written: usize,
    /// Written whole, to be reported.
    sent: VecDeque<Token>,
    /// Posted after the end, to be flushed after all others.
    late: VecDeque<Token>,
}

struct Unsent {
    token: Token,
    head: Head,
    body: Body,
}

impl Unsent {
    fn bytes(&self) -> usize {
        self.head.as_bytes().len() + self.body.len()
    }
}

/// What one call sends: bytes copied together, and parts of bodies where they lie.
#[derive(Default)]
pub(crate) struct Plan {
    /// Heads and small bodies.
    pub(crate) copied: Vec<u8>,
    /// In the order in which they are sent.
    pub(crate) parts: Vec<Part>,
    /// In all.
    pub(crate) bytes: usize,
}

/// One entry of a vector.
pub(crate) enum Part {
    /// A range of `Plan::copied`.
    Copied(Range<usize>),
    /// A slice of an unsent operation's body, without its first bytes.
    Body { operation: usize, slice: usize, skip: usize },
}

impl Plan {
    fn clear(&mut self) {
        self.copied.clear();
        // So that it never moves while a vector points into it.
        self.copied.reserve(COPIED_MAX);
        self.parts.clear();
        self.bytes = 0;
    }

    fn copy(&mut self, bytes: &[u8]) {
        let start = self.copied.len();
        self.copied.extend_from_slice(bytes);
        self.bytes += bytes.len();
        let end = self.copied.len();
        match self.parts.last_mut() {
            Some(Part::Copied(range)) => range.end = end,
            _ => self.parts.push(Part::Copied(start..end)),
        }
    }
}

impl SendQueue {
    pub(crate) fn new(depth: u32) -> Self {
        Self {
            depth: depth as usize,
            unsent: VecDeque::new(),
            written: 0,
            sent: VecDeque::new(),
            late: VecDeque::new(),
        }
    }

    /// Whether as many operations are posted and not reported as there may be.
    pub(crate) fn is_full(&self) -> bool {
        self.unsent.len() + self.sent.len() >= self.depth
    }

    pub(crate) fn push(&mut self, token: Token, head: Head, body: Body) {
        self.unsent.push_back(Unsent { token, head, body });
    }

    /// Takes the token of an operation that will not be sent.
    pub(crate) fn push_late(&mut self, token: Token) {
        self.late.push_back(token);
    }

    pub(crate) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    pub(crate) fn has_sent(&self) -> bool {
        !self.sent.is_empty()
    }

    /// Decides what the next call sends.
    pub(crate) fn plan(&self, plan: &mut Plan) {
        plan.clear();
        let mut skip = self.written;
        for (index, operation) in self.unsent.iter().enumerate().take(FRAMES_MAX) {
            if plan.bytes >= CALL_BYTES || plan.parts.len() + 2 > PARTS_MAX {
                break;
            }
            let head = operation.head.as_bytes();
            plan.copy(&head[skip.min(head.len())..]);
            skip = skip.saturating_sub(head.len());
            let copied = operation.body.len() <= COPY_BYTES_MAX;
            for (slice, bytes) in operation.body.slices().iter().enumerate() {
                if skip >= bytes.len() {
                    skip -= bytes.len();
                    continue;
                }
                if copied {
                    plan.copy(&bytes.as_bytes()[skip..]);
                } else if plan.parts.len() == PARTS_MAX {
                    // The rest of this body goes with the next call.
                    return;
                } else {
                    plan.parts.push(Part::Body { operation: index, slice, skip });
                    plan.bytes += bytes.len() - skip;
                }
                skip = 0;
            }
        }
    }

    /// Gives what is due to `put`, where it lies, until that takes less than it is given or `limit` bytes are taken. Says how many
    /// were. Bodies that were taken whole are let go.
    ///
    /// # Errors
    /// Those of `put`; what it took before counts.
    #[inline]
    pub(crate) fn write<E>(
        &mut self,
        limit: usize,
        mut put: impl FnMut(&[u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let mut bytes = 0;
        while let Some(operation) = self.unsent.front() {
            let mut skip = self.written;
            let parts = operation.body.slices().iter().map(Slice::as_bytes);
            for part in std::iter::once(operation.head.as_bytes()).chain(parts) {
                if skip >= part.len() {
                    skip -= part.len();
                    continue;
                }
                let part = &part[skip..];
                skip = 0;
                let count = put(&part[..part.len().min(limit - bytes)])?;
                self.written += count;
                bytes += count;
                if count < part.len() {
                    return Ok(bytes);
                }
            }
            self.written = 0;
            if let Some(Unsent { token, .. }) = self.unsent.pop_front() {
                self.sent.push_back(token);
            }
        }
        Ok(bytes)
    }

    /// The bytes of one part of a plan that was made since the last change of this queue.
    pub(crate) fn bytes<'a>(&'a self, copied: &'a [u8], part: &Part) -> &'a [u8] {
        match part {
            Part::Copied(range) => &copied[range.clone()],
            Part::Body { operation, slice, skip } => {
                &self.unsent[*operation].body.slices()[*slice].as_bytes()[*skip..]
            }
        }
    }

    /// `count` bytes were written. Lets go of the bodies that are written whole.
    pub(crate) fn advance(&mut self, count: usize) {
        self.written += count;
        while let Some(first) = self.unsent.front() {
            let bytes = first.bytes();
            if self.written < bytes {
                return;
            }
            self.written -= bytes;
            if let Some(Unsent { token, .. }) = self.unsent.pop_front() {
                self.sent.push_back(token);
            }
        }
        debug_assert_eq!(self.written, 0, "more was written than was posted");
    }

    /// Reports what was written, while there is room.
    pub(crate) fn report(&mut self, peer: Peer, events: &mut Events, left: &mut usize) {
        while *left > 0
            && let Some(token) = self.sent.pop_front()
        {
            *left -= 1;
            events.list.push(Event::Sent { peer, token, outcome: Ok(()) });
        }
    }

    /// Reports all that is left, as sent or flushed. Says whether there was room for all.
    pub(crate) fn flush(
        &mut self,
        peer: Peer,
        reason: LostReason,
        events: &mut Events,
        left: &mut usize,
    ) -> bool {
        self.report(peer, events, left);
        while *left > 0 {
            let unsent = self.unsent.pop_front().map(|operation| operation.token);
            let Some(token) = unsent.or_else(|| self.late.pop_front()) else { return true };
            self.written = 0;
            *left -= 1;
            events.list.push(Event::Sent { peer, token, outcome: Err(reason) });
        }
        self.sent.is_empty() && self.unsent.is_empty() && self.late.is_empty()
    }
}
