//! The endpoint of one thread for peers behind sockets.
//! Knows its peers, their sockets and queues; does not know what a head says.
//! Called through the `Endpoint` trait by the shell of one thread.
//!
//! Cost: a poll is one system call that asks for readiness, then for each peer with something one call a 64 KiB or
//! body; a post is one call for each peer touched. Small bodies are copied once out of the area; large ones are not copied.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::OwnedFd;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg, sockopt};

use crate::caps::Capabilities;
use crate::endpoint::{Arrival, Batch, Event, Events, Peer};
use crate::error::{AdoptError, AttachError, Full, LostReason};
use crate::link::{Kind, Link, Tcp};
use crate::primitive::DescriptorArc as Arc;
use crate::region::{Region, SliceMut};
use crate::stream::{
    ArrivalIds, CLOSE_PATIENCE_MS, FRAME_BYTES, Framing, HeadParser, Limits, Lingering, MEMORY_SLEEP_NS,
    Next, Outcome, PARTS_MAX, Peers, Plan, QUOTA, QUOTA_BYTES, Receiver, SendQueue, Sender, Staging, Tag,
    failure, reason_of, slot_bits,
};
use crate::wait::{Armed, Sleep, Waker};

/// Edges taken from the set at a time; the rest comes with the next poll.
const EDGES_MAX: usize = 64;
/// Where there were never more peers at once, a poll reads their sockets without asking the set first: a read that finds
/// nothing costs as much as the question, and one that finds something has saved it (round trips of 64 B: 7.8 us
/// against 9.8).
const FEW_PEERS: usize = 2;
/// Every so many polls it asks all the same: room to write and the bell are heard of through the set only.
const ASK_EVERY: u32 = 16;
/// The bell's place in the set.
const BELL: u64 = u64::MAX;

/// The endpoint of one thread for TCP peers, on non-blocking sockets and epoll.
///
/// Dropping it closes all its links.
pub struct Endpoint {
    framing: Framing,
    limits: Limits,
    set: Arc<OwnedFd>,
    waker: Waker,
    peers: Peers<Connection>,
    /// Connections that are not read because memory is used up.
    starved: Vec<usize>,
    staging: Staging,
    arrivals: ArrivalIds,
    lingering: Lingering,
    plan: Plan,
    /// Polls since the set was asked.
    unasked: u32,
}

struct Connection {
    stream: TcpStream,
    receiver: Receiver,
    send: SendQueue,
    /// There may be bytes to read, or room to write.
    readable: bool,
    writable: bool,
    /// The other side has closed, or the connection has broken: reading to the end will tell.
    hung_up: bool,
    /// Nothing can be sent any more, though what has come may still be read.
    cut: bool,
    /// Why. A socket tells an error once, so the read that finds the end does not hear of it.
    failed: Option<Errno>,
    /// Nothing is received any more; what was posted is brought out (closed here) or flushed.
    ended: Option<LostReason>,
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
    /// Writes what is due, as far as the socket takes it. Says whether anything was.
    fn write(&mut self, plan: &mut Plan) -> bool {
        let mut bytes = 0;
        while self.writable && !self.cut && self.send.has_unsent() && bytes < QUOTA_BYTES {
            self.send.plan(plan);
            match send(&self.stream, &self.send, plan) {
                Ok(count) => {
                    // Less than there was: the buffer is full, and an edge comes when it is not.
                    self.writable = count == plan.bytes;
                    bytes += count;
                    self.send.advance(count);
                }
                Err(Errno::AGAIN) => self.writable = false,
                Err(Errno::INTR) => {}
                // What has come before may still be read; the end is found there.
                Err(error) => {
                    self.cut = true;
                    self.failed = failure(error);
                    (self.readable, self.hung_up) = (true, true);
                }
            }
        }
        bytes > 0
    }

    /// Whether `write` could go on at once.
    fn can_write(&self) -> bool {
        self.writable && !self.cut && self.send.has_unsent()
    }

    /// Reads into the rest of a body and the area, once.
    fn read(&mut self) -> Result<usize, LostReason> {
        let (rest, area) = self.receiver.room();
        let asked = rest.len() + area.len();
        // Mostly there is one place only, and a plain call is the shorter way.
        let outcome = match (rest.is_empty(), area.is_empty()) {
            (false, false) => {
                rustix::io::readv(&self.stream, &mut [IoSliceMut::new(rest), IoSliceMut::new(area)])
            }
            (false, true) => recv(&self.stream, rest, RecvFlags::DONTWAIT).map(|(count, _)| count),
            _ => recv(&self.stream, area, RecvFlags::DONTWAIT).map(|(count, _)| count),
        };
        match outcome {
            Ok(0) if let Some(error) = self.failed => Err(reason_of(error)),
            Ok(0) if self.receiver.is_between() => Err(LostReason::ClosedByPeer),
            Ok(0) => Err(LostReason::Broken),
            Ok(count) => {
                self.readable = count == asked || self.hung_up;
                self.receiver.received(count);
                Ok(count)
            }
            Err(Errno::AGAIN) => {
                self.readable = false;
                Ok(0)
            }
            Err(Errno::INTR) => Ok(0),
            Err(error) => Err(reason_of(error)),
        }
    }

    /// Receiving is over.
    fn end(&mut self, reason: LostReason) {
        self.interrupted = self.receiver.abandon();
        self.ended = Some(reason);
        if reason == LostReason::ClosedHere {
            // So that a peer that takes nothing does not hold this for ever. An error means that it is broken already.
            let _ = sockopt::set_tcp_user_timeout(&self.stream, CLOSE_PATIENCE_MS);
        } else {
            self.cut = true;
        }
    }

    /// Reports the rest of a connection that has ended.
    fn bury(&mut self, reason: LostReason, peer: Peer, events: &mut Events, left: &mut usize) -> Outcome {
        if !self.cut && self.send.has_unsent() {
            return if self.can_write() { Outcome::More } else { Outcome::Idle };
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

/// One call for what was planned.
fn send(stream: &TcpStream, queue: &SendQueue, plan: &Plan) -> Result<usize, Errno> {
    if let [part] = &*plan.parts {
        let bytes = queue.bytes(&plan.copied, part);
        return rustix::net::send(stream, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }
    let mut vector = [IoSlice::new(&[]); PARTS_MAX];
    for (entry, part) in vector.iter_mut().zip(&plan.parts) {
        *entry = IoSlice::new(queue.bytes(&plan.copied, part));
    }
    let vector = &vector[..plan.parts.len()];
    sendmsg(stream, vector, &mut SendAncillaryBuffer::default(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
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
            starved: Vec::new(),
            staging: Staging::new(limits.receive_bytes, limits.body_bytes_max),
            arrivals: ArrivalIds::new(tag),
            lingering: Lingering::default(),
            plan: Plan::default(),
            unasked: 0,
        })
    }

    /// Peers adopted and not reported as lost.
    pub(crate) fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// Finds out who is to be looked at.
    fn find(&mut self) {
        self.unasked += 1;
        let waits = |connection: &Connection| connection.send.has_unsent() || connection.ended.is_some();
        if self.peers.slot_count() > FEW_PEERS || self.unasked >= ASK_EVERY || self.peers.any(waits) {
            self.unasked = 0;
            return self.collect();
        }
        self.peers.for_each(|connection| {
            connection.readable = true;
            true
        });
    }

    /// Takes the edges out of the set.
    fn collect(&mut self) {
        // On the stack: it holds pointers by its type and would keep the endpoint on its thread.
        let mut edges = [MaybeUninit::<epoll::Event>::uninit(); EDGES_MAX];
        // An error is a signal: the edges stay for the next time.
        let Ok((edges, _)) = epoll::wait(&self.set, &mut edges[..], Some(&Timespec::default())) else {
            return;
        };
        for edge in &*edges {
            let epoll::Event { flags, data } = *edge;
            let key = data.u64();
            if key == BELL {
                continue;
            }
            let slot = slot_bits(key);
            let Some(connection) = self.peers.connection(slot) else { continue };
            use epoll::EventFlags as Flags;
            let hung_up = flags.intersects(Flags::RDHUP | Flags::HUP | Flags::ERR);
            connection.hung_up |= hung_up;
            connection.readable |= hung_up || flags.contains(Flags::IN);
            // A broken connection is found by writing, if this side only writes.
            connection.writable |= flags.intersects(Flags::OUT | Flags::HUP | Flags::ERR);
            self.peers.enqueue(slot);
        }
    }

    /// Reports what one peer has and moves its bytes.
    fn visit(&mut self, slot: usize, events: &mut Events) -> Outcome {
        let peer = self.peers.peer(slot);
        let Some(connection) = self.peers.connection(slot) else { return Outcome::Idle };
        let mut left = QUOTA.min(events.room());
        events.moved |= connection.write(&mut self.plan);
        connection.send.report(peer, events, &mut left);
        let (mut bytes, mut outcome) = (0, Outcome::Idle);
        while connection.ended.is_none() {
            if left == 0 || bytes >= QUOTA_BYTES {
                outcome = Outcome::More;
                break;
            }
            match connection.receiver.next(peer, slot, &mut self.staging, &mut self.arrivals) {
                Ok(Next::Event(event)) => {
                    left -= 1;
                    events.list.push(event);
                }
                Ok(Next::Bytes) if connection.readable => match connection.read() {
                    Ok(count) => {
                        events.moved |= count > 0;
                        bytes += count;
                    }
                    Err(reason) => connection.end(reason),
                },
                Ok(Next::Bytes | Next::Place) => break,
                Ok(Next::Memory) => {
                    outcome = Outcome::Starved;
                    break;
                }
                Err(violation) => connection.end(LostReason::Violation(violation)),
            }
        }
        match connection.ended {
            Some(reason) => {
                // It takes nothing any more, so it must not keep others waiting for memory.
                self.staging.forget(slot);
                connection.bury(reason, peer, events, &mut left)
            }
            // What was read may have made room for nothing, but what was written is to be reported.
            None if connection.send.has_sent() || connection.can_write() => Outcome::More,
            None => outcome,
        }
    }

    /// Frees the slot of a peer whose loss was reported.
    fn forget(&mut self, slot: usize, reason: LostReason) {
        self.staging.forget(slot);
        let Some(connection) = self.peers.remove(slot, reason) else { return };
        let _ = epoll::delete(&self.set, &connection.stream);
        if reason == LostReason::ClosedHere && !connection.cut {
            self.lingering.push(connection.stream);
        }
    }
}

impl crate::endpoint::Endpoint for Endpoint {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "socket",
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
        let Kind::Tcp(Tcp { stream, .. }) = link.kind else {
            return Err(AdoptError::OtherKind { expected: "socket", found });
        };
        let full = AdoptError::TooManyPeers { limit: self.peers.limit() };
        let Some(slot) = self.peers.next_slot() else { return Err(full) };
        let parser = HeadParser::new(self.framing, link.number, self.limits.body_bytes_max);
        let flags =
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        let ready = stream.set_nonblocking(true).and_then(|()| {
            Ok(epoll::add(&self.set, &stream, epoll::EventData::new_u64(slot as u64), flags)?)
        });
        let connection = Connection {
            stream,
            receiver: Receiver::new(parser, link.place_from),
            send: SendQueue::new(self.limits.operations_per_peer_max),
            // The set reports what is there already as the first edge.
            readable: false,
            writable: true,
            hung_up: false,
            cut: false,
            failed: None,
            // Without an entry in the set nothing would be heard of it.
            ended: ready.is_err().then_some(LostReason::Broken),
            interrupted: None,
        };
        self.peers.insert(connection).ok_or(full)?;
        self.peers.enqueue(slot);
        self.waker.stir();
        Ok(self.peers.peer(slot))
    }

    fn post(&mut self, batch: &mut Batch) -> Result<(), Full> {
        let outcome = self.peers.take(batch);
        while let Some(slot) = self.peers.next_touched() {
            if let Some(connection) = self.peers.connection(slot) {
                connection.write(&mut self.plan);
                if connection.send.has_sent() || connection.can_write() || connection.cut {
                    self.peers.enqueue(slot);
                    self.waker.stir();
                }
            }
        }
        outcome
    }

    fn poll(&mut self, events: &mut Events) {
        self.find();
        self.lingering.poll();
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
        self.waker.arm();
        // The turn that follows asks the set, and so does the one after a sleep.
        self.unasked = ASK_EVERY;
        // Edges that have come since are found by the turn that follows, or end the sleep at once.
        if self.peers.has_work() {
            return Armed::Ready;
        }
        let at_most_ns = (!self.starved.is_empty()).then_some(MEMORY_SLEEP_NS);
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
        }
        self.peers.enqueue(slot);
        self.waker.stir();
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        for mut connection in self.peers.drain() {
            connection.write(&mut self.plan);
            // Reads away what is there, so that the close is an orderly one.
            self.lingering.push(connection.stream);
        }
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "socket::Endpoint({} peers)", self.peers.len())
    }
}
