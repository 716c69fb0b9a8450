//! The endpoint of one thread for peers in other processes of the host.
//! Knows its peers, which of them it looks at and which ring, and memory; does not know what a head says.
//! Called through the `Endpoint` trait by the shell of one thread.
//!
//! Cost: a poll reads two cache lines of each peer that was active lately, at most [`LOOKED_AT`] when others are silent, and asks the
//! epoll set once in [`ASK_EVERY`] idle polls (one system call). A post is for each peer touched one copy, a store, a fence and a
//! load, and a system call (8 to 10 us) only when that peer's thread is not looking. A body is copied once on each side.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};

use crate::caps::Capabilities;
use crate::endpoint::{Arrival, Batch, Event, Events, Peer};
use crate::error::{AdoptError, AttachError, Full, LostReason};
use crate::link::{Kind, Link};
use crate::primitive::DescriptorArc as Arc;
use crate::region::{Region, SliceMut};
use crate::shm::Half;
use crate::shm::receive::Receiver;
use crate::stream::{
    ArrivalIds, CLOSE_PATIENCE_MS, FRAME_BYTES, Framing, HeadParser, MEMORY_SLEEP_NS, Next, Outcome, Peers,
    QUOTA, QUOTA_BYTES, SendQueue, Sender, Staging, Tag, slot_bits,
};
use crate::wait::{Armed, Sleep, Waker};

/// Edges taken from the set at a time; the rest comes with the next poll.
const EDGES_MAX: usize = 64;
/// The bell's place in the set.
const BELL: u64 = u64::MAX;
/// So many idle polls (20 to 50 ns each) come between two questions to the set, of which each costs 0.3 us. Polls that do something
/// count more, so that the set is asked about as often in time.
const ASK_EVERY: u32 = 256;
const EVENT_COUNTS: u32 = 4;
const COUNTED_BYTES: usize = 4 << 10;
/// While no more peers than this are looked at, none is sent back to ringing because it is silent.
const LOOKED_AT: usize = 16;
/// A peer that was silent for so many polls is sent back to ringing when there are more.
const SILENT_POLLS: u32 = 4 * ASK_EVERY;

/// What an endpoint accepts and may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Peers at a time; at most 65,535. Each takes a descriptor.
    pub peers_max: u32,
    /// Bytes of a body that this side takes. A peer that sends more is cut off.
    pub body_bytes_max: u32,
    /// Operations posted and not reported, per peer.
    pub operations_per_peer_max: u32,
    /// Memory for bodies that have arrived or are arriving, as in [`stream::Limits`](crate::stream::Limits).
    pub receive_bytes: usize,
    /// Shared memory of all links together: twice the ring and a page each (2 MiB and 4 KiB by default).
    pub shared_bytes: usize,
}

impl Default for Limits {
    /// As over TCP. Shared memory for 511 links with rings of the default size, for 2,032 with those of 256 KiB.
    fn default() -> Self {
        let tcp = crate::stream::Limits::default();
        Self {
            peers_max: tcp.peers_max,
            body_bytes_max: tcp.body_bytes_max,
            operations_per_peer_max: tcp.operations_per_peer_max,
            receive_bytes: tcp.receive_bytes,
            shared_bytes: 1 << 30,
        }
    }
}

/// The endpoint of one thread for peers of the same host.
///
/// Dropping it closes all its links.
pub struct Endpoint {
    framing: Framing,
    limits: Limits,
    set: Arc<OwnedFd>,
    waker: Waker,
    peers: Peers<Connection>,
    /// Peers whose rings are looked at in every poll, in no order. All others ring (`Connection::looked_at`).
    looked_at: Vec<usize>,
    /// Peers that are not read because memory is used up.
    starved: Vec<usize>,
    /// Peers that were closed here and have not taken all that was posted.
    closing: Vec<usize>,
    staging: Staging,
    arrivals: ArrivalIds,
    shared_bytes: usize,
    /// The sleep that was prepared last is a short one, because memory is missing.
    short_sleep: bool,
    polls: u32,
    /// Idle polls, or as much work, since the set was asked.
    unasked: u32,
}

struct Connection {
    half: Half,
    receiver: Receiver,
    send: SendQueue,
    /// It is among the endpoint's `looked_at`, and its bell does not ask.
    looked_at: bool,
    /// The number of the poll in which it last had something.
    active: u32,
    /// It has rung since it was last visited.
    rung: bool,
    /// The other side has closed or died: what is in the ring is all there is.
    hung_up: bool,
    /// Nothing can be sent any more, though what has come may still be read.
    cut: bool,
    /// Nothing is received any more; what was posted is brought out (closed here) or flushed.
    ended: Option<LostReason>,
    /// When a close stops bringing out what was posted.
    give_up: Option<Instant>,
    /// A body that was being placed at the end.
    interrupted: Option<(Arrival, SliceMut)>,
}

impl Sender for Connection {
    fn send_queue(&mut self) -> &mut SendQueue {
        &mut self.send
    }

    fn has_ended(&self) -> bool {
        self.ended.is_some()
    }
}

impl Connection {
    /// Copies what is due into the ring, as far as there is room. Says how many bytes that were. `tell` must follow.
    fn write(&mut self) -> usize {
        if self.cut || !self.send.has_unsent() {
            return 0;
        }
        let send = &mut self.half.send;
        match self.send.write(QUOTA_BYTES, |bytes| send.write(bytes)) {
            Ok(count) => count,
            Err(violation) => {
                self.end(LostReason::Violation(violation));
                0
            }
        }
    }

    /// Whether a visit would find something to do that no ring tells of.
    fn has_news(&self) -> bool {
        let receives = self.ended.is_none() && self.receiver.wants_bytes();
        (receives && self.half.has_arrivals()) || (self.send.has_unsent() && self.half.has_room_news())
    }

    /// Receiving is over.
    fn end(&mut self, reason: LostReason) {
        if self.ended.is_some() {
            return;
        }
        self.interrupted = self.receiver.abandon();
        self.ended = Some(reason);
        if reason == LostReason::ClosedHere {
            let patience = Duration::from_millis(u64::from(CLOSE_PATIENCE_MS));
            self.give_up = Some(Instant::now() + patience);
        } else {
            self.cut = true;
            self.half.cut_off = matches!(reason, LostReason::Violation(_));
        }
    }

    /// Ends a link whose other side has hung up and whose ring was read to its end.
    fn end_of_ring(&mut self) {
        let orderly = self.receiver.is_between() && self.half.is_closed_by_peer();
        self.end(if orderly { LostReason::ClosedByPeer } else { LostReason::Broken });
    }

    /// Reports the rest of a link that has ended.
    fn bury(&mut self, reason: LostReason, peer: Peer, events: &mut Events, left: &mut usize) -> Outcome {
        // Nobody reads any more.
        self.cut |= self.hung_up;
        if !self.cut && self.send.has_unsent() {
            return Outcome::Idle;
        }
        if *left > 0
            && let Some((arrival, destination)) = self.interrupted.take()
        {
            *left -= 1;
            events.list.push(Event::Placed { peer, arrival, destination, outcome: Err(reason) });
        }
        if !self.send.flush(peer, reason, events, left) || *left == 0 {
            return Outcome::More;
        }
        events.list.push(Event::Lost { peer, reason });
        Outcome::Lost(reason)
    }
}

impl Endpoint {
    /// An endpoint without peers, whose messages are framed as `framing` says.
    ///
    /// # Errors
    /// The system's, when there is no descriptor to be had (ulimit -n).
    pub fn new(framing: Framing, limits: Limits) -> std::io::Result<Self> {
        Self::beside(framing, limits, Waker::with_bell()?, Tag::default())
    }

    /// One of several endpoints of a thread, all woken by `waker`, whose peers are told apart by `tag`.
    pub(crate) fn beside(framing: Framing, limits: Limits, waker: Waker, tag: Tag) -> std::io::Result<Self> {
        let set = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        if let Some(bell) = waker.bell() {
            // By edges: each write is one, so it need never be read.
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&set, bell, epoll::EventData::new_u64(BELL), flags)?;
        }
        Ok(Self {
            framing,
            limits,
            set,
            waker,
            peers: Peers::new(limits.peers_max, tag),
            looked_at: Vec::new(),
            starved: Vec::new(),
            closing: Vec::new(),
            staging: Staging::new(limits.receive_bytes, limits.body_bytes_max),
            arrivals: ArrivalIds::new(tag),
            shared_bytes: 0,
            short_sleep: false,
            polls: 0,
            unasked: 0,
        })
    }

    #[cfg(test)]
    pub(super) fn looked_at_count(&self) -> usize {
        self.looked_at.len()
    }

    /// Finds out who is to be visited.
    fn find(&mut self) {
        self.polls = self.polls.wrapping_add(1);
        for slot in &self.looked_at {
            if let Some(connection) = self.peers.connection(*slot)
                && connection.has_news()
            {
                connection.active = self.polls;
                self.peers.enqueue(*slot);
            }
        }
        if self.looked_at.len() > LOOKED_AT {
            self.retire_one();
        }
        self.unasked += 1;
        // The last poll before a sleep asks, and the first one after it, in which the reason to wake is found.
        let armed = self.waker.is_armed();
        if self.unasked >= ASK_EVERY || armed {
            self.unasked = if armed { ASK_EVERY } else { 0 };
            self.collect();
            self.give_up();
        }
    }

    /// Sends one peer back to ringing, if the one whose turn it is to be asked was silent for long.
    fn retire_one(&mut self) {
        let index = self.polls as usize % self.looked_at.len();
        let slot = self.looked_at[index];
        let Some(connection) = self.peers.connection(slot) else { return };
        if self.polls.wrapping_sub(connection.active) < SILENT_POLLS {
            return;
        }
        connection.looked_at = false;
        connection.half.ask();
        let missed = connection.has_news();
        self.looked_at.swap_remove(index);
        if missed {
            self.peers.enqueue(slot);
        }
    }

    /// Takes the edges out of the set.
    fn collect(&mut self) {
        // On the stack: it holds pointers by its type and would keep the endpoint on its thread.
        let mut edges = [MaybeUninit::<epoll::Event>::uninit(); EDGES_MAX];
        // An error is a signal: the edges stay for the next time.
        let Ok((edges, _)) = epoll::wait(&self.set, &mut edges[..], Some(&Timespec::default())) else {
            return;
        };
        if edges.len() == EDGES_MAX {
            // There may be more.
            self.unasked = ASK_EVERY;
        }
        for edge in &*edges {
            let epoll::Event { flags, data } = *edge;
            let key = data.u64();
            if key == BELL {
                continue;
            }
            let slot = slot_bits(key);
            let Some(connection) = self.peers.connection(slot) else { continue };
            use epoll::EventFlags as Flags;
            connection.hung_up |= flags.intersects(Flags::RDHUP | Flags::HUP | Flags::ERR);
            connection.rung |= flags.contains(Flags::IN);
            self.peers.enqueue(slot);
        }
    }

    /// Ends the patience with peers that were closed here and take nothing.
    fn give_up(&mut self) {
        if self.closing.is_empty() {
            return;
        }
        let now = Instant::now();
        self.closing.retain(|slot| {
            let Some(connection) = self.peers.connection(*slot) else { return false };
            let Some(give_up) = connection.give_up else { return false };
            if give_up <= now {
                connection.cut = true;
                self.peers.enqueue(*slot);
            }
            give_up > now
        });
    }

    /// Nanoseconds until the patience with the first of them ends.
    fn patience_ns(&mut self) -> Option<u64> {
        if self.closing.is_empty() {
            return None;
        }
        let now = Instant::now();
        let peers = &mut self.peers;
        let left = |slot: &usize| {
            let left = peers.connection(*slot)?.give_up?.saturating_duration_since(now);
            // At least a little more than nothing, so that the deadline has passed after the sleep.
            u64::try_from(left.as_nanos()).ok()?.checked_add(1_000)
        };
        self.closing.iter().filter_map(left).min()
    }

    /// Reports what one peer has and moves its bytes.
    fn visit(&mut self, slot: usize, events: &mut Events) -> Outcome {
        let peer = self.peers.peer(slot);
        let Some(connection) = self.peers.connection(slot) else { return Outcome::Idle };
        let mut unheard = false;
        if connection.rung {
            // Before the bell is set to another number: a ring for the new one must not be read away (`bell.rs`).
            unheard = connection.half.hear();
            connection.rung = unheard;
        }
        if !self.waker.is_armed() {
            look_at(connection, slot, self.polls, &mut self.looked_at);
        } else if !unheard {
            // It goes on ringing, now for what comes after this visit.
            connection.half.ask();
        }
        let mut left = QUOTA.min(events.room());
        let read_before = connection.half.receive.position();
        let mut bytes = connection.write();
        events.moved |= bytes > 0;
        connection.send.report(peer, events, &mut left);
        let mut outcome = if unheard { Outcome::More } else { Outcome::Idle };
        while connection.ended.is_none() {
            if left == 0 || bytes >= QUOTA_BYTES {
                outcome = Outcome::More;
                break;
            }
            // Before the ring is looked at: what the other side did before it ended must be found by the look.
            let hung_up = connection.hung_up;
            let ring = &mut connection.half.receive;
            match connection.receiver.next(ring, peer, slot, &mut self.staging, &mut self.arrivals) {
                Ok(Next::Event(event)) => {
                    left -= 1;
                    bytes += bytes_of(&event);
                    events.list.push(event);
                }
                Ok(Next::Bytes) if hung_up => connection.end_of_ring(),
                Ok(Next::Bytes | Next::Place) => break,
                Ok(Next::Memory) => {
                    outcome = Outcome::Starved;
                    break;
                }
                Err(violation) => connection.end(LostReason::Violation(violation)),
            }
        }
        events.moved |= connection.half.receive.position() != read_before;
        connection.half.tell();
        let counted = u32::try_from(bytes / COUNTED_BYTES).unwrap_or(ASK_EVERY).min(ASK_EVERY);
        self.unasked = self.unasked.saturating_add(counted);
        match connection.ended {
            Some(reason) => {
                // It takes nothing any more, so it must not keep others waiting for memory.
                self.staging.forget(slot);
                connection.bury(reason, peer, events, &mut left)
            }
            None if connection.send.has_sent() => Outcome::More,
            None => outcome,
        }
    }

    /// Frees the slot of a peer whose loss was reported.
    fn forget(&mut self, slot: usize, reason: LostReason) {
        self.staging.forget(slot);
        let Some(connection) = self.peers.remove(slot, reason) else { return };
        if connection.looked_at
            && let Some(index) = self.looked_at.iter().position(|looked_at| *looked_at == slot)
        {
            self.looked_at.swap_remove(index);
        }
        self.closing.retain(|closing| *closing != slot);
        self.shared_bytes -= connection.half.mapped_bytes();
        let _ = epoll::delete(&self.set, &connection.half.wire);
    }
}

/// From now on the peer's ring is looked at in every poll.
#[inline]
fn look_at(connection: &mut Connection, slot: usize, polls: u32, looked_at: &mut Vec<usize>) {
    if !connection.looked_at {
        connection.looked_at = true;
        connection.active = polls;
        connection.half.look();
        looked_at.push(slot);
    }
}

/// Bytes that were copied for an event.
fn bytes_of(event: &Event) -> usize {
    match event {
        Event::Arrived { body, .. } => body.len(),
        Event::Placed { destination, .. } => destination.len(),
        _ => 0,
    }
}

impl crate::endpoint::Endpoint for Endpoint {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "shm",
            operations_per_peer_max: self.limits.operations_per_peer_max,
            peers_max: self.peers.limit(),
            body_bytes_max: self.limits.body_bytes_max,
            frame_bytes: FRAME_BYTES,
            by_reference: false,
        }
    }

    fn attach(&mut self, _region: &Region) -> Result<(), AttachError> {
        Ok(())
    }

    fn adopt(&mut self, link: Link) -> Result<Peer, AdoptError> {
        let found = link.kind_name();
        let Kind::Shm(half) = link.kind else {
            return Err(AdoptError::OtherKind { expected: "shm", found });
        };
        let full = AdoptError::TooManyPeers { limit: self.peers.limit() };
        let Some(slot) = self.peers.next_slot() else { return Err(full) };
        let shared_bytes = self.shared_bytes + half.mapped_bytes();
        if shared_bytes > self.limits.shared_bytes {
            return Err(AdoptError::SharedMemory { limit: self.limits.shared_bytes });
        }
        let parser = HeadParser::new(self.framing, link.number, self.limits.body_bytes_max);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        // The set reports what is there already as the first edge.
        let ready = epoll::add(&self.set, &half.wire, epoll::EventData::new_u64(slot as u64), flags);
        let connection = Connection {
            half,
            receiver: Receiver::new(parser, link.place_from),
            send: SendQueue::new(self.limits.operations_per_peer_max),
            looked_at: false,
            active: self.polls,
            rung: false,
            hung_up: false,
            cut: false,
            // Without an entry in the set nothing would be heard of it.
            ended: ready.is_err().then_some(LostReason::Broken),
            give_up: None,
            interrupted: None,
        };
        self.peers.insert(connection).ok_or(full)?;
        self.shared_bytes = shared_bytes;
        // What the other side wrote before it could find the bell asking has rung nobody.
        self.peers.enqueue(slot);
        self.waker.stir();
        Ok(self.peers.peer(slot))
    }

    fn post(&mut self, batch: &mut Batch) -> Result<(), Full> {
        let outcome = self.peers.take(batch);
        let armed = self.waker.is_armed();
        while let Some(slot) = self.peers.next_touched() {
            let Some(connection) = self.peers.connection(slot) else { continue };
            if !armed {
                // An answer is likely to come soon.
                look_at(connection, slot, self.polls, &mut self.looked_at);
            }
            let bytes = connection.write();
            connection.half.tell();
            // What is left waits for room, of which the other side tells.
            if connection.send.has_sent() || connection.cut || bytes >= QUOTA_BYTES {
                self.peers.enqueue(slot);
            }
        }
        if self.peers.has_work() {
            self.waker.stir();
        }
        outcome
    }

    fn poll(&mut self, events: &mut Events) {
        self.find();
        for slot in self.starved.drain(..) {
            self.peers.enqueue(slot);
        }
        self.peers.report_flushed(events);
        // Each peer once: what is left of a turn waits for the next poll.
        for _ in 0..self.peers.ready_len() {
            if events.room() == 0 {
                break;
            }
            let Some(slot) = self.peers.dequeue() else { break };
            match self.visit(slot, events) {
                Outcome::Idle => {}
                Outcome::More => self.peers.enqueue(slot),
                Outcome::Starved => self.starved.push(slot),
                Outcome::Lost(reason) => self.forget(slot, reason),
            }
        }
        let reported = u32::try_from(events.list.len()).unwrap_or(ASK_EVERY);
        self.unasked = self.unasked.saturating_add(reported * EVENT_COUNTS);
        if self.peers.has_work() || (!self.starved.is_empty() && !self.short_sleep) {
            self.waker.stir();
        }
    }

    fn place(&mut self, arrival: Arrival, destination: Option<SliceMut>) {
        let slot = slot_bits(arrival.0);
        if let Some(connection) = self.peers.connection(slot)
            && connection.receiver.place(arrival, destination)
        {
            self.peers.enqueue(slot);
            self.waker.stir();
        }
    }

    fn arm(&mut self) -> Armed {
        for slot in &self.looked_at {
            if let Some(connection) = self.peers.connection(*slot) {
                connection.looked_at = false;
                connection.half.ask_without_fence();
            }
        }
        // A full fence, for all of them: it pairs with the one in `Half::tell`.
        self.waker.arm();
        for slot in self.looked_at.drain(..) {
            if self.peers.connection(slot).is_some_and(|connection| connection.has_news()) {
                self.peers.enqueue(slot);
            }
        }
        if self.peers.has_work() {
            return Armed::Ready;
        }
        // What comes from now on makes the set readable. The turn that follows asks it.
        self.short_sleep = !self.starved.is_empty();
        let memory_ns = self.short_sleep.then_some(MEMORY_SLEEP_NS);
        let at_most_ns = [memory_ns, self.patience_ns()].into_iter().flatten().min();
        Armed::Sleep(Sleep::Descriptor { descriptor: Arc::clone(&self.set), at_most_ns })
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn close(&mut self, peer: Peer) {
        let Some(slot) = self.peers.slot_of(peer) else { return };
        if let Some(connection) = self.peers.connection(slot)
            && connection.ended.is_none()
        {
            connection.end(LostReason::ClosedHere);
            self.closing.push(slot);
        }
        self.peers.enqueue(slot);
        self.waker.stir();
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        for mut connection in self.peers.drain() {
            connection.write();
            // A reader that sleeps hears of it by the end of the socket.
        }
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "shm::Endpoint({} peers)", self.peers.len())
    }
}
