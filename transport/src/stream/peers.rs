//! The peers of one endpoint: slots with generations, what was posted for whom, and who is to be looked at next.
//! Knows numbers and send queues; not what else a connection is. Called by the endpoints of `socket`, `uring` and `shm`.

use std::collections::VecDeque;

use super::SendQueue;
use crate::endpoint::{Arrival, Batch, Event, Events, Operation, Peer, Token};
use crate::error::{Full, LostReason};

/// A `Peer` is a slot and, above it, how often that slot was used before.
const SLOT_BITS: u32 = 16;
const SLOT_MASK: u64 = (1 << SLOT_BITS) - 1;
/// Slots that a peer's number can name.
const SLOTS_MAX: u32 = (1 << SLOT_BITS) - 1;

/// Places for peers, each with a `C` while it is used.
pub(crate) struct Peers<C> {
    slots: Vec<Slot<C>>,
    free: Vec<usize>,
    limit: u32,
    /// Of the first peer in each slot.
    first_generation: u64,
    /// Slots to look at, each at most once (`Slot::queued`), in turn.
    ready: VecDeque<usize>,
    /// Slots that the current post has put operations for, each once (`Slot::touched`).
    touched: VecDeque<usize>,
    /// Completions of operations to peers that are gone.
    flushed: VecDeque<(Peer, Token, LostReason)>,
}

/// Which of several endpoints of a thread a number belongs to: its upper byte. What counts below it, 40 bits above the slot,
/// does not come to its end.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Tag(pub(crate) u8);

const TAG_SHIFT: u32 = 56;

impl Tag {
    /// The tag in a peer's or an arrival's number.
    pub(crate) fn of(number: u64) -> Self {
        Self((number >> TAG_SHIFT) as u8)
    }

    fn above_slot(self) -> u64 {
        u64::from(self.0) << (TAG_SHIFT - SLOT_BITS)
    }
}

/// What a post must know of a connection.
pub(crate) trait Sender {
    /// What is to be sent.
    fn send_queue(&mut self) -> &mut SendQueue;
    /// Whether nothing that is posted from now on will be sent.
    fn has_ended(&self) -> bool;
}

struct Slot<C> {
    generation: u64,
    queued: bool,
    touched: bool,
    connection: Option<C>,
    /// Why the last one here was lost.
    lost: Option<LostReason>,
}

impl<C> Peers<C> {
    /// Peers whose numbers, and those of their arrivals, carry `tag`.
    pub(crate) fn new(limit: u32, tag: Tag) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            limit: limit.min(SLOTS_MAX),
            first_generation: tag.above_slot(),
            ready: VecDeque::new(),
            touched: VecDeque::new(),
            flushed: VecDeque::new(),
        }
    }

    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Slots made so far: the most peers that there were at once.
    pub(crate) fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// The slot that the next `insert` will use.
    pub(crate) fn next_slot(&self) -> Option<usize> {
        let fresh = || (self.slots.len() < self.limit as usize).then_some(self.slots.len());
        self.free.last().copied().or_else(fresh)
    }

    /// Puts a connection into the next slot.
    pub(crate) fn insert(&mut self, connection: C) -> Option<usize> {
        let slot = self.next_slot()?;
        if self.free.pop().is_none() {
            let generation = self.first_generation;
            let fresh = Slot { generation, queued: false, touched: false, connection: None, lost: None };
            self.slots.push(fresh);
        }
        self.slots[slot].connection = Some(connection);
        Some(slot)
    }

    pub(crate) fn peer(&self, slot: usize) -> Peer {
        Peer(self.slots[slot].generation << SLOT_BITS | slot as u64)
    }

    /// The slot of a peer that is not lost yet.
    pub(crate) fn slot_of(&self, peer: Peer) -> Option<usize> {
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

    pub(crate) fn connection(&mut self, slot: usize) -> Option<&mut C> {
        self.slots.get_mut(slot)?.connection.as_mut()
    }

    /// Takes all connections out, for the end.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = C> + '_ {
        self.slots.iter_mut().filter_map(|slot| slot.connection.take())
    }

    /// All slots with a connection.
    pub(crate) fn used(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.slots.len()).filter(|slot| self.slots[*slot].connection.is_some())
    }

    /// Whether any connection is so.
    pub(crate) fn any(&self, is_so: impl Fn(&C) -> bool) -> bool {
        self.slots.iter().filter_map(|slot| slot.connection.as_ref()).any(is_so)
    }

    /// Visits all connections, and queues those of which it says so.
    pub(crate) fn for_each(&mut self, mut visit: impl FnMut(&mut C) -> bool) {
        for slot in 0..self.slots.len() {
            if self.slots[slot].connection.as_mut().is_some_and(&mut visit) {
                self.enqueue(slot);
            }
        }
    }

    /// Frees the slot of a peer whose loss was reported.
    pub(crate) fn remove(&mut self, slot: usize, reason: LostReason) -> Option<C> {
        let found = &mut self.slots[slot];
        let connection = found.connection.take()?;
        found.generation += 1;
        found.lost = Some(reason);
        self.free.push(slot);
        Some(connection)
    }

    /// Puts a slot into the queue of those to be looked at.
    pub(crate) fn enqueue(&mut self, slot: usize) {
        if let Some(found) = self.slots.get_mut(slot)
            && !found.queued
        {
            found.queued = true;
            self.ready.push_back(slot);
        }
    }

    /// The next slot to look at.
    pub(crate) fn dequeue(&mut self) -> Option<usize> {
        let slot = self.ready.pop_front()?;
        self.slots[slot].queued = false;
        Some(slot)
    }

    pub(crate) fn ready_len(&self) -> usize {
        self.ready.len()
    }

    /// Whether a poll has something to do, whatever the system says.
    pub(crate) fn has_work(&self) -> bool {
        !self.ready.is_empty() || !self.flushed.is_empty()
    }

    /// The next peer that the post has put operations for.
    pub(crate) fn next_touched(&mut self) -> Option<usize> {
        let slot = self.touched.pop_front()?;
        self.slots[slot].touched = false;
        Some(slot)
    }

    /// Reports what was posted to peers that were gone.
    pub(crate) fn report_flushed(&mut self, events: &mut Events) {
        while events.room() > 0
            && let Some((peer, token, reason)) = self.flushed.pop_front()
        {
            events.list.push(Event::Sent { peer, token, outcome: Err(reason) });
        }
    }
}

impl<C: Sender> Peers<C> {
    /// Moves a batch into the queues of its peers; what a full peer has no room for stays. [`Self::next_touched`] names those
    /// that got something.
    pub(crate) fn take(&mut self, batch: &mut Batch) -> Result<(), Full> {
        // Each operation goes round once; those that stay end up in their old order.
        for _ in 0..batch.operations.len() {
            let Some(operation) = batch.operations.pop_front() else { break };
            let Some(slot) = self.slot_of(operation.peer) else {
                let reason = self.why_lost(operation.peer);
                self.flushed.push_back((operation.peer, operation.token, reason));
                continue;
            };
            let Some(connection) = self.connection(slot) else { continue };
            let ended = connection.has_ended();
            let queue = connection.send_queue();
            if ended {
                queue.push_late(operation.token);
                continue;
            }
            // Nothing is reported meanwhile, so a peer that is full stays full until the end of the batch.
            if queue.is_full() {
                batch.operations.push_back(operation);
                continue;
            }
            let Operation { token, head, body, .. } = operation;
            queue.push(token, head, body);
            if !self.slots[slot].touched {
                self.slots[slot].touched = true;
                self.touched.push_back(slot);
            }
        }
        if batch.operations.is_empty() { Ok(()) } else { Err(Full) }
    }
}

/// Draws names for announced bodies: the slot, and above it a count.
pub(crate) struct ArrivalIds {
    count: u64,
}

impl ArrivalIds {
    pub(crate) fn new(tag: Tag) -> Self {
        Self { count: tag.above_slot() }
    }

    pub(crate) fn draw(&mut self, peer: Peer) -> Arrival {
        self.count += 1;
        Arrival(self.count << SLOT_BITS | peer.0 & SLOT_MASK)
    }
}

/// The slot in a peer's or an arrival's number.
pub(crate) fn slot_bits(number: u64) -> usize {
    let [low, high, ..] = number.to_le_bytes();
    usize::from(u16::from_le_bytes([low, high]))
}
