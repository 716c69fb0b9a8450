//! The receiving half of a link: messages out of a ring of bytes, each byte copied once, to where it stays.
//! Knows frames, places and memory; does not know who is to be woken. Called by `endpoint.rs`.
//! Source: `transport/DESIGN.md` (shm). The states are those of `stream/receive.rs`; there is no area, because the ring is one.
//!
//! # States
//!
//! | state | what the next bytes are | next |
//! | ----- | ----------------------- | ---- |
//! | `Head` | a head | a whole message, or one of the others |
//! | `Starved` | a body for which there was no memory | `Filling`, when memory is back |
//! | `Filling` | a body, into its memory | `Head` |
//! | `Announced` | a body that waits for `place` | `Placing` or `Discarding` |
//! | `Placing` | a body, into its place | `Head`, when it was reported |
//! | `Discarding` | a body, to be thrown away | `Head` |

use crate::endpoint::{Arrival, Body, Event, Head, Peer};
use crate::error::Violation;
use crate::region::SliceMut;
use crate::shm::ring::Consumer;
use crate::stream::{ArrivalIds, HeadParser, Next, Staged, Staging};

pub(super) struct Receiver {
    parser: HeadParser,
    place_from: Option<usize>,
    state: Incoming,
}

/// What the next bytes are (module header).
enum Incoming {
    Head,
    Starved { head: Head, body_bytes: usize },
    Filling { head: Head, body: Staged },
    Announced { arrival: Arrival, body_bytes: usize },
    Placing { arrival: Arrival, destination: SliceMut, filled: usize },
    Discarding { left: usize },
}

impl Receiver {
    pub(super) fn new(parser: HeadParser, place_from: Option<usize>) -> Self {
        // An empty body has nothing to place.
        Self { parser, place_from: place_from.map(|bytes| bytes.max(1)), state: Incoming::Head }
    }

    /// Whether the stream may end here, if the ring is empty.
    pub(super) fn is_between(&self) -> bool {
        matches!(self.state, Incoming::Head) && self.parser.is_between()
    }

    /// Whether new bytes in the ring would be taken out of it: they are not before an announcement is answered or memory is back.
    pub(super) fn wants_bytes(&self) -> bool {
        !matches!(self.state, Incoming::Announced { .. } | Incoming::Starved { .. })
    }

    /// Takes bytes out of the ring, up to the next event.
    ///
    /// # Errors
    /// The peer has broken a rule; nothing more is to be read.
    pub(super) fn next(
        &mut self,
        ring: &mut Consumer,
        peer: Peer,
        slot: usize,
        staging: &mut Staging,
        arrivals: &mut ArrivalIds,
    ) -> Result<Next, Violation> {
        loop {
            match &mut self.state {
                Incoming::Head => {
                    if ring.look()? == 0 {
                        return Ok(Next::Bytes);
                    }
                    let Some((head, body_bytes)) = self.parser.read(|to| ring.read(to))? else { continue };
                    if body_bytes == 0 {
                        return Ok(Next::Event(Event::Arrived { peer, head, body: Body::empty() }));
                    }
                    if self.place_from.is_some_and(|from| body_bytes >= from) {
                        let arrival = arrivals.draw(peer);
                        self.state = Incoming::Announced { arrival, body_bytes };
                        return Ok(Next::Event(Event::Announced { peer, arrival, head, body_bytes }));
                    }
                    let Some(mut body) = staging.take(slot, body_bytes) else {
                        self.state = Incoming::Starved { head, body_bytes };
                        return Ok(Next::Memory);
                    };
                    if fill(ring, &mut body)? {
                        return Ok(Next::Event(Event::Arrived { peer, head, body: body.freeze() }));
                    }
                    self.state = Incoming::Filling { head, body };
                    return Ok(Next::Bytes);
                }
                Incoming::Starved { body_bytes, .. } => {
                    let Some(body) = staging.take(slot, *body_bytes) else { return Ok(Next::Memory) };
                    if let Incoming::Starved { head, .. } = std::mem::replace(&mut self.state, Incoming::Head)
                    {
                        self.state = Incoming::Filling { head, body };
                    }
                }
                Incoming::Filling { body, .. } => {
                    if !fill(ring, body)? {
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
                    while *filled < destination.len() {
                        if ring.look()? == 0 {
                            return Ok(Next::Bytes);
                        }
                        *filled += ring.read(&mut destination.as_mut_bytes()[*filled..]);
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
                    while *left > 0 {
                        if ring.look()? == 0 {
                            return Ok(Next::Bytes);
                        }
                        *left -= ring.skip(*left);
                    }
                    self.state = Incoming::Head;
                }
            }
        }
    }

    /// The answer to an announcement. Says whether it was one of this link's.
    ///
    /// # Panics
    /// When the destination is not as long as the body.
    pub(super) fn place(&mut self, named: Arrival, destination: Option<SliceMut>) -> bool {
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
    pub(super) fn abandon(&mut self) -> Option<(Arrival, SliceMut)> {
        match std::mem::replace(&mut self.state, Incoming::Head) {
            Incoming::Placing { arrival, destination, .. } => Some((arrival, destination)),
            _ => None,
        }
    }
}

/// Copies what has come into a body. Says whether that is all of it.
fn fill(ring: &mut Consumer, body: &mut Staged) -> Result<bool, Violation> {
    while !body.is_full() {
        if ring.look()? == 0 {
            return Ok(false);
        }
        let count = ring.read(body.room());
        body.advance(count);
    }
    Ok(true)
}
