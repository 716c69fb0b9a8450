//! The endpoint of links inside one process.
//! Knows its peers, their rings and what was reported of them; does not know what a head says.
//! Called through the `Endpoint` trait by the shell of one thread.
//!
//! Cost of a poll: a load for each 64 peers this endpoint ever had at once (16 at most), and then work only for peers
//! at which something changed: a swap for each word with a bit set, two cache lines of indices a peer, one move of
//! about 360 bytes a message. Peers take turns after `QUOTA` events each. Posting costs a compare and a move per
//! operation, then per peer touched a store, a locked bit and a fence: a batch is one of those, not one per message.

use std::collections::VecDeque;

use crate::caps::Capabilities;
use crate::endpoint::{Arrival, Batch, Body, Event, Events, Operation, Peer, Token};
use crate::error::{AdoptError, AttachError, Full, LostReason, Violation};
use crate::link::{Kind, Link};
use crate::memory::{Half, Inbox, Message, PEERS_MAX};
use crate::primitive::Arc;
use crate::region::{Region, SliceMut};
use crate::wait::{Armed, Sleep, Waker};

/// Events that one peer may report before the next one's turn.
const QUOTA: usize = 32;
/// A `Peer` is a slot and, above it, how often that slot was used before.
const SLOT_BITS: u32 = 16;
const SLOT_MASK: u64 = (1 << SLOT_BITS) - 1;
/// Frames need not be cut for this backend's sake; it takes the size that serves the others.
const FRAME_BYTES: u32 = 256 << 10;

/// What an endpoint accepts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Peers at a time; at most 1,024.
    pub peers_max: u32,
    /// Bytes of a body that this side takes. A peer that sends more is cut off.
    pub body_bytes_max: u32,
    /// Reported as the capability; the depth of a link counts.
    pub operations_per_peer_max: u32,
}

impl Default for Limits {
    /// All the peers there can be; any body, since none is copied.
    fn default() -> Self {
        Self { peers_max: PEERS_MAX, body_bytes_max: u32::MAX, operations_per_peer_max: 1024 }
    }
}

/// The endpoint of one thread for peers of the same process.
///
/// Dropping it ends all its links; the peers hear of it as of any close.
pub struct Endpoint {
    inbox: Arc<Inbox>,
    limits: Limits,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Slots to look at, each at most once (`Slot::queued`), in turn.
    ready: VecDeque<usize>,
    /// Completions of operations to peers that are gone.
    flushed: VecDeque<(Peer, Token, LostReason)>,
    /// Slots that the current `post` has put messages for.
    touched: Vec<usize>,
    arrivals: ArrivalIds,
}

/// A place for a peer.
#[derive(Default)]
struct Slot {
    generation: u64,
    queued: bool,
    touched: bool,
    connection: Option<Connection>,
    /// Why the last one here was lost.
    lost: Option<LostReason>,
}

struct Connection {
    state: State,
    depth: usize,
    /// Bodies of so many bytes and more are announced.
    place_from: Option<usize>,
    /// Operations posted and not reported yet, in order.
    tokens: VecDeque<Token>,
    /// Operations that the other side has taken and that were reported, counted since the beginning, wrapping.
    taken: usize,
    reported: usize,
    placing: Placing,
}

enum State {
    Open(Half),
    /// This side has let go; tokens and the loss are still to be reported.
    Ended(LostReason),
}

/// What is going on with the announced body, of which there is at most one a peer.
enum Placing {
    Nothing,
    /// Announced. Later messages wait in the ring.
    Waiting(Arrival, Body),
    /// Copied, to be reported.
    Placed(Arrival, SliceMut),
}

/// What one peer may report in its turn.
struct Visit<'a> {
    peer: Peer,
    events: &'a mut Events,
    left: usize,
}

impl Visit<'_> {
    fn report(&mut self, event: Event) {
        self.left -= 1;
        self.events.list.push(event);
    }
}

impl Connection {
    fn report_sent(&mut self, visit: &mut Visit<'_>) {
        if let State::Open(half) = &mut self.state {
            self.taken = half.send.taken();
        }
        while visit.left > 0 && self.reported != self.taken {
            let Some(token) = self.tokens.pop_front() else { break };
            self.reported = self.reported.wrapping_add(1);
            visit.report(Event::Sent { peer: visit.peer, token, outcome: Ok(()) });
        }
    }

    fn report_placed(&mut self, visit: &mut Visit<'_>) {
        if visit.left == 0 || !matches!(self.placing, Placing::Placed(..)) {
            return;
        }
        if let Placing::Placed(arrival, destination) = std::mem::replace(&mut self.placing, Placing::Nothing)
        {
            visit.report(Event::Placed { peer: visit.peer, arrival, destination, outcome: Ok(()) });
        }
    }

    /// Reports what came, up to an announced body. `Err`: the peer has broken a rule.
    fn receive(
        &mut self,
        visit: &mut Visit<'_>,
        body_bytes_max: u32,
        next: &mut ArrivalIds,
    ) -> Result<(), Violation> {
        let State::Open(half) = &mut self.state else { return Ok(()) };
        let mut released = false;
        let mut outcome = Ok(());
        while visit.left > 0 && matches!(self.placing, Placing::Nothing) {
            let Some(body_bytes) = half.receive.peek().map(|message| message.body.len()) else { break };
            if body_bytes > body_bytes_max as usize {
                outcome = Err(Violation::BodyTooLong);
                break;
            }
            let announced = self.place_from.is_some_and(|from| body_bytes >= from);
            if announced {
                // The announced one itself is released when it was placed.
                released |= half.receive.release();
            }
            let Some(Message { head, body }) = half.receive.pop() else { break };
            let peer = visit.peer;
            if announced {
                let arrival = next.draw(peer);
                self.placing = Placing::Waiting(arrival, body);
                visit.report(Event::Announced { peer, arrival, head, body_bytes });
            } else {
                visit.report(Event::Arrived { peer, head, body });
            }
        }
        if matches!(self.placing, Placing::Nothing) {
            released |= half.receive.release();
        }
        if released {
            half.notify();
        }
        outcome
    }

    /// Whether nothing is left to be taken from the other side.
    fn is_drained(&mut self) -> bool {
        let State::Open(half) = &mut self.state else { return true };
        self.reported == self.taken
            && matches!(self.placing, Placing::Nothing)
            && half.receive.peek().is_none()
    }

    /// Lets go of the half, so that the other side hears of the end. The rest is reported by `bury`.
    fn end(&mut self, reason: LostReason) {
        if let State::Open(half) = &mut self.state {
            // What was taken until now was sent; the rest will be flushed.
            self.taken = half.send.taken();
            self.state = State::Ended(reason);
        }
        if matches!(self.placing, Placing::Waiting(..)) {
            self.placing = Placing::Nothing;
        }
    }

    /// Reports the rest of a peer that has ended. `Some`: all of it, the loss included.
    fn bury(&mut self, visit: &mut Visit<'_>) -> Option<LostReason> {
        let State::Ended(reason) = self.state else { return None };
        self.report_sent(visit);
        self.report_placed(visit);
        while visit.left > 0
            && let Some(token) = self.tokens.pop_front()
        {
            visit.report(Event::Sent { peer: visit.peer, token, outcome: Err(reason) });
        }
        if visit.left == 0 {
            return None;
        }
        visit.report(Event::Lost { peer: visit.peer, reason });
        Some(reason)
    }
}

/// Draws names for announced bodies: the slot, and above it a count.
struct ArrivalIds {
    count: u64,
}

impl ArrivalIds {
    fn draw(&mut self, peer: Peer) -> Arrival {
        self.count += 1;
        Arrival(self.count << SLOT_BITS | peer.0 & SLOT_MASK)
    }
}

impl Endpoint {
    /// An endpoint without peers.
    #[must_use]
    pub fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    /// The same with other limits. There are never more than 1,024 peers.
    #[must_use]
    pub fn with_limits(limits: Limits) -> Self {
        Self {
            inbox: Arc::new(Inbox::new()),
            limits: Limits { peers_max: limits.peers_max.min(PEERS_MAX), ..limits },
            slots: Vec::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
            flushed: VecDeque::new(),
            touched: Vec::new(),
            arrivals: ArrivalIds { count: 0 },
        }
    }

    fn peer(&self, slot: usize) -> Peer {
        Peer(self.slots[slot].generation << SLOT_BITS | slot as u64)
    }

    /// The slot of a peer that is not lost yet.
    fn slot_of(&self, peer: Peer) -> Option<usize> {
        let slot = slot_bits(peer.0);
        let found = self.slots.get(slot)?;
        (found.generation == peer.0 >> SLOT_BITS && found.connection.is_some()).then_some(slot)
    }

    /// Why a peer that is gone was lost. Of each slot only the last loss is remembered.
    fn why_lost(&self, peer: Peer) -> LostReason {
        let slot = self.slots.get(slot_bits(peer.0));
        let last = slot.filter(|slot| slot.generation == (peer.0 >> SLOT_BITS) + 1);
        last.and_then(|slot| slot.lost).unwrap_or(LostReason::Broken)
    }

    /// Puts a slot into the queue of those to be looked at.
    fn enqueue(&mut self, slot: usize) {
        if !self.slots[slot].queued {
            self.slots[slot].queued = true;
            self.ready.push_back(slot);
        }
    }

    /// Words of the inbox that have peers.
    fn words(&self) -> usize {
        self.slots.len().div_ceil(64)
    }

    /// Queues the peers that were marked since the last time.
    fn collect(&mut self) {
        for word in 0..self.words() {
            let mut bits = self.inbox.take(word);
            while bits != 0 {
                let slot = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                self.enqueue(slot);
            }
        }
    }

    /// Reports what one peer has. Says whether there may be more.
    fn visit(&mut self, slot: usize, events: &mut Events) -> bool {
        let peer = self.peer(slot);
        let Some(connection) = &mut self.slots[slot].connection else { return false };
        let left = QUOTA.min(events.room());
        let mut visit = Visit { peer, events, left };
        // Before the rings are looked at: what the other side did before it ended must be seen below.
        let closed = matches!(&connection.state, State::Open(half) if half.is_closed_by_peer());
        connection.report_sent(&mut visit);
        connection.report_placed(&mut visit);
        if let Err(violation) = connection.receive(&mut visit, self.limits.body_bytes_max, &mut self.arrivals)
        {
            connection.end(LostReason::Violation(violation));
        }
        if closed && connection.is_drained() {
            connection.end(LostReason::ClosedByPeer);
        }
        if let Some(reason) = connection.bury(&mut visit) {
            self.forget(slot, reason);
            return false;
        }
        visit.left == 0
    }

    /// Frees the slot of a peer whose loss was reported.
    fn forget(&mut self, slot: usize, reason: LostReason) {
        let found = &mut self.slots[slot];
        found.connection = None;
        found.generation += 1;
        found.lost = Some(reason);
        self.free.push(slot);
    }
}

impl Default for Endpoint {
    fn default() -> Self {
        Self::new()
    }
}

impl crate::endpoint::Endpoint for Endpoint {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "memory",
            operations_per_peer_max: self.limits.operations_per_peer_max,
            peers_max: self.limits.peers_max,
            body_bytes_max: self.limits.body_bytes_max,
            frame_bytes: FRAME_BYTES,
            by_reference: true,
        }
    }

    fn attach(&mut self, _region: &Region) -> Result<(), AttachError> {
        Ok(())
    }

    fn adopt(&mut self, link: Link) -> Result<Peer, AdoptError> {
        let found = link.kind_name();
        let Kind::Memory(half) = link.kind else {
            return Err(AdoptError::OtherKind { expected: "memory", found });
        };
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < self.limits.peers_max as usize => {
                self.slots.push(Slot::default());
                self.slots.len() - 1
            }
            None => return Err(AdoptError::TooManyPeers { limit: self.limits.peers_max }),
        };
        half.install(&self.inbox, slot);
        self.slots[slot].connection = Some(Connection {
            depth: half.depth,
            // An empty body has nothing to place.
            place_from: link.place_from.map(|bytes| bytes.max(1)),
            tokens: VecDeque::with_capacity(half.depth),
            taken: 0,
            reported: 0,
            placing: Placing::Nothing,
            state: State::Open(half),
        });
        // What the other side did before `install` has marked nothing here.
        self.enqueue(slot);
        Ok(self.peer(slot))
    }

    fn post(&mut self, batch: &mut Batch) -> Result<(), Full> {
        // Each operation goes round once; those that stay end up in their old order.
        for _ in 0..batch.operations.len() {
            let Some(operation) = batch.operations.pop_front() else { break };
            let Some(slot) = self.slot_of(operation.peer) else {
                let reason = self.why_lost(operation.peer);
                self.flushed.push_back((operation.peer, operation.token, reason));
                continue;
            };
            let found = &mut self.slots[slot];
            let Some(connection) = &mut found.connection else { continue };
            let State::Open(half) = &mut connection.state else {
                // Flushed with the others, by `bury`.
                connection.tokens.push_back(operation.token);
                continue;
            };
            // Nothing is reported meanwhile, so a peer that is full stays full until the end of the batch.
            if connection.tokens.len() >= connection.depth {
                batch.operations.push_back(operation);
                continue;
            }
            let Operation { peer, token, head, body } = operation;
            if let Err(Message { head, body }) = half.send.push(Message { head, body }) {
                debug_assert!(false, "the ring holds what was not taken, the tokens what was not reported");
                batch.operations.push_back(Operation { peer, token, head, body });
                continue;
            }
            connection.tokens.push_back(token);
            if !found.touched {
                found.touched = true;
                self.touched.push(slot);
            }
        }
        for slot in self.touched.drain(..) {
            let found = &mut self.slots[slot];
            found.touched = false;
            if let Some(Connection { state: State::Open(half), .. }) = &mut found.connection {
                half.send.publish();
                half.notify();
            }
        }
        if batch.operations.is_empty() { Ok(()) } else { Err(Full) }
    }

    fn poll(&mut self, events: &mut Events) {
        self.collect();
        while events.room() > 0
            && let Some((peer, token, reason)) = self.flushed.pop_front()
        {
            events.list.push(Event::Sent { peer, token, outcome: Err(reason) });
        }
        while events.room() > 0
            && let Some(slot) = self.ready.pop_front()
        {
            self.slots[slot].queued = false;
            if self.visit(slot, events) {
                self.enqueue(slot);
            }
        }
    }

    fn place(&mut self, arrival: Arrival, destination: Option<SliceMut>) {
        let slot = slot_bits(arrival.0);
        let Some(Some(connection)) = self.slots.get_mut(slot).map(|slot| &mut slot.connection) else {
            return;
        };
        let State::Open(half) = &mut connection.state else { return };
        if !matches!(connection.placing, Placing::Waiting(waiting, _) if waiting == arrival) {
            return;
        }
        let Placing::Waiting(_, body) = std::mem::replace(&mut connection.placing, Placing::Nothing) else {
            return;
        };
        if let Some(mut destination) = destination {
            body.copy_to(destination.as_mut_bytes());
            connection.placing = Placing::Placed(arrival, destination);
        }
        half.receive.release();
        half.notify();
        self.enqueue(slot);
        self.inbox.waker.stir();
    }

    fn arm(&mut self) -> Armed {
        self.inbox.waker.arm();
        // After the fence in `arm`: whatever marks from now on rings.
        if self.ready.is_empty() && self.flushed.is_empty() && self.inbox.is_empty(self.words()) {
            Armed::Sleep(Sleep::Waker(self.waker()))
        } else {
            Armed::Ready
        }
    }

    fn waker(&self) -> Waker {
        self.inbox.waker.clone()
    }

    fn close(&mut self, peer: Peer) {
        let Some(slot) = self.slot_of(peer) else { return };
        if let Some(connection) = &mut self.slots[slot].connection {
            connection.end(LostReason::ClosedHere);
        }
        self.enqueue(slot);
        self.inbox.waker.stir();
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "memory::Endpoint({} peers)", self.slots.len() - self.free.len())
    }
}

/// The slot in a peer's or an arrival's number.
fn slot_bits(number: u64) -> usize {
    let [low, high, ..] = number.to_le_bytes();
    usize::from(u16::from_le_bytes([low, high]))
}
