//! Two endpoints with a link between them, what they have seen, and the heads and bodies that these tests send.
//! Knows the trait and a fixture; promises nothing. Used by every promise.

use super::Fixture;
use crate::arena::Arena;
use crate::endpoint::{
    Arrival, Batch, Body, EXTENSION_BYTES_MAX, Endpoint, Event, Events, HEADER_BYTES, Head, Peer, Token,
};
use crate::error::{Full, LostReason};
use crate::link::Link;
use crate::region::{Slice, SliceMut};
use crate::stream::Framing;
use crate::wait::{Shell, Turn};

/// Steps after which something that should have happened counts as not happening.
pub(super) const STEPS_MAX: usize = 200_000;
/// Enough memory for any of these tests.
pub(super) const ARENA_BYTES: usize = 16 << 20;

/// An endpoint and all it has reported.
pub(super) struct Side<E> {
    pub(super) endpoint: E,
    pub(super) seen: Vec<Event>,
    pub(super) events: Events,
}

impl<E: Endpoint> Side<E> {
    pub(super) fn new(endpoint: E) -> Self {
        Self { endpoint, seen: Vec::new(), events: Events::with_limit(16) }
    }

    pub(super) fn poll(&mut self) {
        self.endpoint.poll(&mut self.events);
        self.seen.extend(self.events.drain());
    }

    /// Posts one operation, if there is room.
    pub(super) fn try_send(&mut self, peer: Peer, token: u64, body: Body) -> Result<(), Full> {
        let mut batch = Batch::with_capacity(1);
        batch.send(peer, Token(token), head(token, &body), body);
        self.endpoint.post(&mut batch)
    }

    pub(super) fn send(&mut self, peer: Peer, token: u64, body: Body) {
        assert_eq!(self.try_send(peer, token, body), Ok(()), "room for token {token}");
    }

    /// The numbers of the heads that have arrived, announced ones included, in order.
    pub(super) fn arrived(&self) -> Vec<u64> {
        let number = |event: &Event| match event {
            Event::Arrived { head, .. } | Event::Announced { head, .. } => Some(number_of(head)),
            _ => None,
        };
        self.seen.iter().filter_map(number).collect()
    }

    pub(super) fn completions(&self) -> Vec<(u64, Result<(), LostReason>)> {
        let completion = |event: &Event| match event {
            Event::Sent { token, outcome, .. } => Some((token.0, *outcome)),
            _ => None,
        };
        self.seen.iter().filter_map(completion).collect()
    }

    pub(super) fn losses(&self) -> Vec<LostReason> {
        let loss = |event: &Event| match event {
            Event::Lost { reason, .. } => Some(*reason),
            _ => None,
        };
        self.seen.iter().filter_map(loss).collect()
    }

    /// The announcement that was seen, if any.
    pub(super) fn announced(&self) -> Option<(Arrival, usize)> {
        self.seen.iter().find_map(|event| match event {
            Event::Announced { arrival, body_bytes, .. } => Some((*arrival, *body_bytes)),
            _ => None,
        })
    }

    /// The body of the first message that has arrived whole.
    pub(super) fn body(&self) -> Option<Vec<u8>> {
        self.seen.iter().find_map(|event| match event {
            Event::Arrived { body, .. } => Some(bytes_of(body)),
            _ => None,
        })
    }

    /// Takes the first placed destination out of what was seen.
    pub(super) fn take_placed(&mut self) -> Option<(SliceMut, Result<(), LostReason>)> {
        let index = self.seen.iter().position(|event| matches!(event, Event::Placed { .. }))?;
        match self.seen.remove(index) {
            Event::Placed { destination, outcome, .. } => Some((destination, outcome)),
            _ => None,
        }
    }
}

/// Two endpoints with one link between them.
pub(super) struct Two<F: Fixture> {
    pub(super) fixture: F,
    pub(super) left: Side<F::Endpoint>,
    pub(super) right: Side<F::Endpoint>,
    /// What the left calls the right, and the other way round.
    pub(super) to_right: Peer,
    pub(super) to_left: Peer,
    pub(super) arena: Arena,
}

impl<F: Fixture> Two<F> {
    pub(super) fn new(fixture: F) -> Self {
        Self::with(fixture, None, |link| link)
    }

    /// With a limit for the right side's bodies and a change to its link.
    pub(super) fn with(
        mut fixture: F,
        body_bytes_max: Option<u32>,
        change: impl FnOnce(Link) -> Link,
    ) -> Self {
        let (mut left, mut right) = (fixture.endpoint(None), fixture.endpoint(body_bytes_max));
        let (link_left, link_right) = fixture.connect();
        let to_right = left.adopt(link_left).expect("an endpoint takes its first link");
        let to_left = right.adopt(change(link_right)).expect("an endpoint takes its first link");
        let arena = Arena::new(ARENA_BYTES);
        Self { fixture, left: Side::new(left), right: Side::new(right), to_right, to_left, arena }
    }

    pub(super) fn step(&mut self) {
        self.fixture.step();
        self.left.poll();
        self.right.poll();
    }

    /// Steps until `done`.
    pub(super) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..STEPS_MAX {
            if done(self) {
                return;
            }
            self.step();
        }
        panic!(
            "{what}: not within {STEPS_MAX} steps; left saw {:?}, right saw {:?}",
            self.left.seen, self.right.seen
        );
    }

    /// Steps for long enough that whatever was going to happen has.
    pub(super) fn settle(&mut self) {
        for _ in 0..1_000 {
            self.step();
        }
    }

    pub(super) fn depth(&self) -> u64 {
        u64::from(self.left.endpoint.capabilities().operations_per_peer_max)
    }

    pub(super) fn body(&mut self, bytes: &[u8]) -> Body {
        body(&mut self.arena, bytes)
    }
}

impl<E: Endpoint> Shell for Side<E> {
    type Endpoint = E;

    fn turn(&mut self, _now_ns: u64) -> Turn {
        let before = self.seen.len();
        self.poll();
        Turn { progressed: self.seen.len() > before, deadline: None }
    }

    fn endpoint(&mut self) -> &mut E {
        &mut self.endpoint
    }
}

/// What the heads of these tests say, for the backends that read a byte stream: number (8 bytes), length of the body
/// (4), bytes of extensions (2), a mark (2).
pub const FRAMING: Framing = Framing {
    extension_bytes: |fixed| {
        let bytes = usize::from(u16::from_le_bytes([fixed[12], fixed[13]]));
        (fixed[14..16] == MARK && bytes <= EXTENSION_BYTES_MAX).then_some(bytes)
    },
    body_bytes: |head, _connection| {
        let bytes = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        usize::try_from(bytes).ok()
    },
};

/// No byte of these occurs in `pattern`, so heads of noise are never taken for one of ours by chance.
pub(super) const MARK: [u8; 2] = [0xfd, 0xfe];

/// A head for [`FRAMING`] that says a number and the length of what follows.
#[must_use]
pub fn head(number: u64, body: &Body) -> Head {
    head_of(number, body, &[0; HEADER_BYTES])
}

/// The same, of the length of `filling`, whose bytes fill what has no meaning.
pub(super) fn head_of(number: u64, body: &Body, filling: &[u8]) -> Head {
    let mut bytes = filling.to_vec();
    let extension_bytes = u16::try_from(filling.len() - HEADER_BYTES).expect("a legal length");
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..12].copy_from_slice(&u32::try_from(body.len()).expect("a short body").to_le_bytes());
    bytes[12..14].copy_from_slice(&extension_bytes.to_le_bytes());
    bytes[14..16].copy_from_slice(&MARK);
    Head::new(&bytes).expect("a legal head")
}

/// The number that [`head`] was given.
#[must_use]
pub fn number_of(head: &Head) -> u64 {
    let (number, _) = head.as_bytes().split_first_chunk().expect("a head has 64 bytes");
    u64::from_le_bytes(*number)
}

pub(super) fn body(arena: &mut Arena, bytes: &[u8]) -> Body {
    let mut slice = arena.take(bytes.len()).expect("the tests use little memory");
    slice.as_mut_bytes().copy_from_slice(bytes);
    slice.freeze().into()
}

pub(super) fn bytes_of(body: &Body) -> Vec<u8> {
    body.slices().iter().flat_map(Slice::as_bytes).copied().collect()
}

/// Bytes that differ from their neighbours.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| u8::try_from(index % 251).unwrap_or(0)).collect()
}
