//! The receiving half of a connection that reads `[the rest of a body, an area]` in one call.
//! Knows frames, places and memory; makes no system call. Called by `socket`, and by `uring` for links that place.
//! Source: `transport/DESIGN.md` (TCP): large bodies land where they stay, small ones are copied out of the area.
//!
//! # States
//!
//! | state | what the next bytes are | next |
//! | ----- | ----------------------- | ---- |
//! | `Head` | a head, in the area | a whole message, or one of the others |
//! | `Starved` | a body for which there was no memory | `Filling`, when memory is back |
//! | `Filling` | a body, into its memory | `Head` |
//! | `Announced` | a body that waits for `place` | `Placing` or `Discarding` |
//! | `Placing` | a body, into its place | `Head`, when it was reported |
//! | `Discarding` | a body, to be thrown away | `Head` |

use crate::endpoint::{Arrival, Body, Event, Head, Peer};
use crate::error::Violation;
use crate::region::SliceMut;
use crate::stream::{ArrivalIds, HeadParser, Staged, Staging};

/// Bytes of a connection's area: one call brings as much as a provided buffer of `uring` would.
const AREA_BYTES: usize = 64 << 10;
/// Of a place, one call fills at most this: a request that the kernel has polled 128 times goes to a kernel thread, as
/// those of 16 MiB did, and may starve there.
const DIRECT_BYTES: usize = 256 << 10;

pub(crate) struct Receiver {
    parser: HeadParser,
    place_from: Option<usize>,
    /// Bytes received and not used: `area[begin..end]`.
    area: Box<[u8]>,
    begin: usize,
    end: usize,
    state: Incoming,
}

/// What the next bytes are (module header).
pub(crate) enum Incoming {
    Head,
    Starved { head: Head, body_bytes: usize },
    Filling { head: Head, body: Staged },
    Announced { arrival: Arrival, body_bytes: usize },
    Placing { arrival: Arrival, destination: SliceMut, filled: usize },
    Discarding { left: usize },
}

/// What the bytes at hand came to.
pub(crate) enum Next {
    /// To be reported. There may be more.
    Event(Event),
    /// Nothing more without new bytes.
    Bytes,
    /// Nothing more without memory.
    Memory,
    /// Nothing more before `place`.
    Place,
}

impl Receiver {
    pub(crate) fn new(parser: HeadParser, place_from: Option<usize>) -> Self {
        Self {
            parser,
            // An empty body has nothing to place.
            place_from: place_from.map(|bytes| bytes.max(1)),
            area: vec![0; AREA_BYTES].into_boxed_slice(),
            begin: 0,
            end: 0,
            state: Incoming::Head,
        }
    }

    /// Whether the stream may end here.
    pub(crate) fn is_between(&self) -> bool {
        matches!(self.state, Incoming::Head) && self.begin == self.end && self.parser.is_between()
    }

    /// Works on what was received, up to the next event.
    ///
    /// # Errors
    /// The peer has broken a rule; nothing more is to be read.
    pub(crate) fn next(
        &mut self,
        peer: Peer,
        slot: usize,
        staging: &mut Staging,
        arrivals: &mut ArrivalIds,
    ) -> Result<Next, Violation> {
        loop {
            let bytes = &self.area[self.begin..self.end];
            match &mut self.state {
                Incoming::Head => {
                    let parsed = self.parser.parse(bytes)?;
                    self.begin += parsed.consumed;
                    let Some((head, body_bytes)) = parsed.head else { return Ok(Next::Bytes) };
                    if body_bytes == 0 {
                        return Ok(Next::Event(Event::Arrived { peer, head, body: Body::empty() }));
                    }
                    let place = self.place_from.is_some_and(|from| body_bytes >= from);
                    // Most bodies are small and have come whole with their heads.
                    if !place
                        && let Some(bytes) = self.area[self.begin..self.end].get(..body_bytes)
                        && let Some(body) = staging.copy(bytes)
                    {
                        self.begin += body_bytes;
                        return Ok(Next::Event(Event::Arrived { peer, head, body }));
                    }
                    if place {
                        let arrival = arrivals.draw(peer);
                        self.state = Incoming::Announced { arrival, body_bytes };
                        return Ok(Next::Event(Event::Announced { peer, arrival, head, body_bytes }));
                    }
                    self.state = Incoming::Starved { head, body_bytes };
                }
                Incoming::Starved { body_bytes, .. } => {
                    let Some(body) = staging.take(slot, *body_bytes) else { return Ok(Next::Memory) };
                    let Incoming::Starved { head, .. } = std::mem::replace(&mut self.state, Incoming::Head)
                    else {
                        continue;
                    };
                    self.state = Incoming::Filling { head, body };
                }
                Incoming::Filling { body, .. } => {
                    self.begin += body.fill(bytes);
                    if !body.is_full() {
                        return Ok(Next::Bytes);
                    }
                    if let Incoming::Filling { head, body } =
                        std::mem::replace(&mut self.state, Incoming::Head)
                    {
                        return Ok(Next::Event(Event::Arrived { peer, head, body: body.freeze() }));
                    }
                }
                Incoming::Announced { .. } => return Ok(Next::Place),
                Incoming::Placing { destination, filled, .. } => {
                    let room = &mut destination.as_mut_bytes()[*filled..];
                    let count = room.len().min(bytes.len());
                    room[..count].copy_from_slice(&bytes[..count]);
                    self.begin += count;
                    *filled += count;
                    if *filled < destination.len() {
                        return Ok(Next::Bytes);
                    }
                    if let Incoming::Placing { arrival, destination, .. } =
                        std::mem::replace(&mut self.state, Incoming::Head)
                    {
                        return Ok(Next::Event(Event::Placed {
                            peer,
                            arrival,
                            destination,
                            outcome: Ok(()),
                        }));
                    }
                }
                Incoming::Discarding { left } => {
                    let count = (*left).min(bytes.len());
                    self.begin += count;
                    *left -= count;
                    if *left > 0 {
                        return Ok(Next::Bytes);
                    }
                    self.state = Incoming::Head;
                }
            }
        }
    }

    /// Where the next bytes go: the rest of a body (or nothing), then the area (or nothing). To be asked after
    /// [`Next::Bytes`], when all that was received is used.
    pub(crate) fn room(&mut self) -> (&mut [u8], &mut [u8]) {
        debug_assert_eq!(self.begin, self.end, "received bytes are used before more come");
        self.begin = 0;
        self.end = 0;
        let area = &mut *self.area;
        match &mut self.state {
            Incoming::Filling { body, .. } => {
                let is_last = body.is_last();
                (body.room(), if is_last { area } else { &mut [] })
            }
            Incoming::Placing { destination, filled, .. } => {
                let rest = &mut destination.as_mut_bytes()[*filled..];
                if rest.len() > DIRECT_BYTES { (&mut rest[..DIRECT_BYTES], &mut []) } else { (rest, area) }
            }
            _ => (&mut [], area),
        }
    }

    /// `count` bytes came into the room.
    pub(crate) fn received(&mut self, count: usize) {
        let direct = match &mut self.state {
            Incoming::Filling { body, .. } => {
                let direct = body.room().len().min(count);
                body.advance(direct);
                direct
            }
            Incoming::Placing { destination, filled, .. } => {
                let direct = (destination.len() - *filled).min(count);
                *filled += direct;
                direct
            }
            _ => 0,
        };
        self.end = count - direct;
        debug_assert!(self.end <= self.area.len(), "no more came than there was room for");
    }

    /// The answer to an announcement. Says whether it was one of this connection's.
    ///
    /// # Panics
    /// When the destination is not as long as the body.
    pub(crate) fn place(&mut self, named: Arrival, destination: Option<SliceMut>) -> bool {
        let Incoming::Announced { arrival, body_bytes } = self.state else { return false };
        if arrival != named {
            return false;
        }
        self.state = match destination {
            Some(destination) => {
                assert_eq!(destination.len(), body_bytes, "a destination is exactly as long as its body");
                Incoming::Placing { arrival, destination, filled: 0 }
            }
            None => Incoming::Discarding { left: body_bytes },
        };
        true
    }

    /// Nothing more is received. A body that was being placed comes back, its content undefined.
    pub(crate) fn abandon(&mut self) -> Option<(Arrival, SliceMut)> {
        (self.begin, self.end) = (0, 0);
        match std::mem::replace(&mut self.state, Incoming::Head) {
            Incoming::Placing { arrival, destination, .. } => Some((arrival, destination)),
            _ => None,
        }
    }
}
