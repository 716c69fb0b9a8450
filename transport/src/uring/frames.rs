//! The receiving half of a link that reads into the endpoint's shared buffers: frames out of slices.
//! Knows frames, slices and memory; makes no system call. Called by the endpoint.
//! Source: `transport/DESIGN.md` (uring): heads are parsed where they lie, bodies stay where they were received.
//!
//! # States
//!
//! | state | what the next bytes are | next |
//! | ----- | ----------------------- | ---- |
//! | `Head` | a head | a whole message, or one of the others |
//! | `Starved` | a body that needs memory of its own, and there was none | `Filling`, when memory is back |
//! | `Filling` | a body, copied (or received) into its memory | `Head` |
//! | `Holding` | a body, kept in its buffers | `Head`; or `Filling`, when buffers run out |

use std::collections::VecDeque;

use crate::arena::Arena;
use crate::endpoint::{Body, Event, Head, Peer};
use crate::error::Violation;
use crate::region::Slice;
use crate::stream::{HeadParser, Next, Staged, Staging};

/// Bodies up to this are copied out: whoever keeps one would keep a whole buffer, and a copy of 4 KiB takes a tenth of
/// what the kernel takes for it.
const COPY_BYTES_MAX: usize = 4096;

pub(super) struct Frames {
    parser: HeadParser,
    /// Received and not used; of the first, `used` bytes are.
    inbox: VecDeque<Slice>,
    used: usize,
    /// Slices of the inbox, from its front, that lie in buffers no more.
    copied: usize,
    state: State,
}

enum State {
    Head,
    Starved { head: Head, body_bytes: usize },
    Filling { head: Head, body: Staged },
    Holding { head: Head, body_bytes: usize, held_bytes: usize, parts: Vec<Slice> },
}

/// How the endpoint's buffers are.
#[derive(Clone, Copy)]
pub(super) struct Supply {
    /// Bodies up to this may be held in buffers.
    pub(super) hold_bytes_max: usize,
    /// The kernel has few: copy rather than hold.
    pub(super) is_short: bool,
}

impl Frames {
    pub(super) fn new(parser: HeadParser) -> Self {
        Self { parser, inbox: VecDeque::new(), used: 0, copied: 0, state: State::Head }
    }

    pub(super) fn push(&mut self, slice: Slice) {
        self.inbox.push_back(slice);
    }

    /// Whether the stream may end here.
    pub(super) fn is_between(&self) -> bool {
        matches!(self.state, State::Head) && self.inbox.is_empty() && self.parser.is_between()
    }

    /// Works on what was received, up to the next event.
    ///
    /// # Errors
    /// The peer has broken a rule; nothing more is to be read.
    pub(super) fn next(
        &mut self,
        peer: Peer,
        slot: usize,
        staging: &mut Staging,
        supply: Supply,
    ) -> Result<Next, Violation> {
        loop {
            match &mut self.state {
                State::Head => {
                    let Some(first) = self.inbox.front() else { return Ok(Next::Bytes) };
                    let parsed = self.parser.parse(&first.as_bytes()[self.used..])?;
                    self.consume(parsed.consumed);
                    let Some((head, body_bytes)) = parsed.head else { continue };
                    if body_bytes == 0 {
                        return Ok(Next::Event(Event::Arrived { peer, head, body: Body::empty() }));
                    }
                    // Most bodies are small and have come whole with their heads.
                    if body_bytes <= COPY_BYTES_MAX
                        && let Some(bytes) = self
                            .inbox
                            .front()
                            .and_then(|first| first.as_bytes()[self.used..].get(..body_bytes))
                        && let Some(body) = staging.copy(bytes)
                    {
                        self.consume(body_bytes);
                        return Ok(Next::Event(Event::Arrived { peer, head, body }));
                    }
                    let is_large = body_bytes > supply.hold_bytes_max && !self.has(body_bytes);
                    self.state = if body_bytes <= COPY_BYTES_MAX || supply.is_short || is_large {
                        State::Starved { head, body_bytes }
                    } else {
                        State::Holding { head, body_bytes, held_bytes: 0, parts: Vec::new() }
                    };
                }
                State::Starved { body_bytes, .. } => {
                    let body_bytes = *body_bytes;
                    let taken = staging.take(slot, body_bytes);
                    // What has come whole needs no further buffer, so it may as well be held.
                    let whole = body_bytes > COPY_BYTES_MAX && self.has(body_bytes);
                    if taken.is_none() && !whole {
                        return Ok(Next::Memory);
                    }
                    if taken.is_none() {
                        staging.forget(slot);
                    }
                    let State::Starved { head, .. } = std::mem::replace(&mut self.state, State::Head) else {
                        continue;
                    };
                    self.state = match taken {
                        Some(body) => State::Filling { head, body },
                        None => State::Holding { head, body_bytes, held_bytes: 0, parts: Vec::new() },
                    };
                }
                State::Filling { body, .. } => {
                    if !body.is_full() {
                        let Some(first) = self.inbox.front() else { return Ok(Next::Bytes) };
                        let count = body.fill(&first.as_bytes()[self.used..]);
                        self.consume(count);
                        continue;
                    }
                    if let State::Filling { head, body } = std::mem::replace(&mut self.state, State::Head) {
                        return Ok(Next::Event(Event::Arrived { peer, head, body: body.freeze() }));
                    }
                }
                State::Holding { body_bytes, held_bytes, parts, .. } => {
                    let Some(first) = self.inbox.front() else { return Ok(Next::Bytes) };
                    let count = (*body_bytes - *held_bytes).min(first.len() - self.used);
                    let part = first.cut(self.used..self.used + count);
                    *held_bytes += count;
                    let is_whole = held_bytes == body_bytes;
                    if !is_whole || !parts.is_empty() {
                        parts.push(part);
                        self.consume(count);
                        if !is_whole {
                            continue;
                        }
                        if let State::Holding { head, parts, .. } =
                            std::mem::replace(&mut self.state, State::Head)
                        {
                            return Ok(Next::Event(Event::Arrived { peer, head, body: Body::of(parts) }));
                        }
                        continue;
                    }
                    // The common case: all of it lies in one buffer.
                    self.consume(count);
                    if let State::Holding { head, .. } = std::mem::replace(&mut self.state, State::Head) {
                        return Ok(Next::Event(Event::Arrived { peer, head, body: part.into() }));
                    }
                }
            }
        }
    }

    /// Whether so many bytes have come and are not used.
    fn has(&self, bytes: usize) -> bool {
        // Short of a few buffers this ends early.
        let mut sum = 0;
        self.inbox.iter().any(|slice| {
            sum += slice.len();
            sum >= bytes + self.used
        })
    }

    fn consume(&mut self, count: usize) {
        self.used += count;
        if self.inbox.front().is_some_and(|first| first.len() == self.used) {
            self.inbox.pop_front();
            self.used = 0;
            self.copied = self.copied.saturating_sub(1);
        }
    }

    /// Moves a body in the middle out of its buffers, so that they come back. Says whether memory was there for it.
    pub(super) fn spill(&mut self, slot: usize, staging: &mut Staging) -> bool {
        let State::Holding { body_bytes, .. } = &self.state else { return true };
        let Some(mut body) = staging.take(slot, *body_bytes) else {
            // It may go on in buffers, and then it must not stand in the way of others.
            staging.forget(slot);
            return false;
        };
        if let State::Holding { head, parts, .. } = std::mem::replace(&mut self.state, State::Head) {
            for part in &parts {
                body.fill(part.as_bytes());
            }
            self.state = State::Filling { head, body };
        }
        true
    }

    /// Moves what waits in the inbox out of its buffers, as far as `overflow` has memory, so that others may use them.
    pub(super) fn retreat(&mut self, overflow: &mut Arena, buffer_bytes: usize) {
        while let Some(slice) = self.inbox.get_mut(self.copied) {
            let Some(mut copy) = overflow.take(buffer_bytes) else { return };
            copy.truncate(slice.len());
            copy.as_mut_bytes().copy_from_slice(slice.as_bytes());
            *slice = copy.freeze();
            self.copied += 1;
        }
    }

    /// Where the next bytes may be received without a buffer: the rest of a body that has memory of its own.
    pub(super) fn direct(&mut self) -> Option<&mut [u8]> {
        match &mut self.state {
            State::Filling { body, .. } if self.inbox.is_empty() && !body.is_full() => Some(body.room()),
            _ => None,
        }
    }

    /// `count` bytes were received there.
    pub(super) fn received(&mut self, count: usize) {
        if let State::Filling { body, .. } = &mut self.state {
            body.advance(count);
        }
    }

    /// Nothing more is received: buffers and memory go back.
    pub(super) fn abandon(&mut self) {
        self.inbox.clear();
        self.used = 0;
        self.copied = 0;
        self.state = State::Head;
    }
}
