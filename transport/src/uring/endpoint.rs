//! The endpoint of one thread for peers behind a ring.
//! Knows its peers, their operations in flight and queues; does not know what a head says.
//! Called through the `Endpoint` trait by the shell of one thread.
//!
//! Cost: an idle poll is four loads. Otherwise one system call a poll and one a post, whatever the number of peers; a
//! completion and an entry for each send, a completion for each 64 KiB received.
#![allow(unsafe_code, reason = "entries name memory that must stay until they complete")]

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use io_uring::types::Fd;
use io_uring::{cqueue, opcode};
use rustix::io::Errno;
use rustix::net::sockopt;

use super::buffers::{Buffers, GROUP};
use super::frames::{Frames, Supply};
use super::message::Message;
use super::ring::{Ring, Why};
use crate::arena::Arena;
use crate::caps::Capabilities;
use crate::endpoint::{Arrival, Batch, Event, Events, Peer};
use crate::error::{AdoptError, AttachError, Full, LostReason, Violation};
use crate::link::{Kind, Link, Tcp};
use crate::region::{Region, SliceMut};
use crate::stream::{
    ArrivalIds, CLOSE_PATIENCE_MS, FRAME_BYTES, Framing, HeadParser, Limits, Lingering, MEMORY_SLEEP_NS,
    Next, Outcome, Peers, Plan, QUOTA, Receiver, SendQueue, Sender, Staging, Tag, failure, reason_of,
    slot_bits,
};
use crate::wait::{Armed, Sleep, Waker};

/// What an entry was for, in the upper byte of its user data; below it the slot.
const RECEIVE: u64 = 1 << 56;
const SEND: u64 = 2 << 56;
const BELL: u64 = 3 << 56;
const CANCEL: u64 = 4 << 56;
const KIND: u64 = 0xff << 56;
/// How long the end of an endpoint waits for what the kernel has in its hands. It is cancelled, so it takes no time.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// What an endpoint accepts and may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// As for every TCP endpoint. `receive_bytes` is for bodies that are copied out of the buffers.
    pub limits: Limits,
    /// Provided buffers, a power of two (else rounded up).
    pub buffer_count: u16,
    /// Bytes of each, a power of two from 4 KiB to 1 MiB (else rounded up).
    pub buffer_bytes: usize,
    /// Whether one thread uses the endpoint for its life. A client's endpoint passes from thread to thread, one at a time;
    /// that costs an interrupt per completion that comes while another thread holds it.
    pub one_thread: bool,
}

impl Default for Options {
    /// 64 buffers of 64 KiB receive as fast as anything, larger ones slower (with an add 5.5 GB/s; of 256 KiB, 4.6).
    fn default() -> Self {
        Self { limits: Limits::default(), buffer_count: 64, buffer_bytes: 64 << 10, one_thread: true }
    }
}

/// The endpoint of one thread for TCP peers, through io_uring.
///
/// It may be made on any thread. With [`Options::one_thread`] it belongs to the first one that posts or polls; used on
/// another after that it panics, dropped on another it leaks what the kernel has in its hands. Dropping it closes all its
/// links.
pub struct Endpoint {
    framing: Framing,
    limits: Limits,
    ring: Ring,
    buffers: Buffers,
    hold_bytes_max: usize,
    waker: Waker,
    peers: Peers<Connection>,
    /// Connections that wait for memory or buffers.
    starved: Vec<usize>,
    staging: Staging,
    /// For what was received of a connection that cannot go on, so that it does not hold buffers; as much as they are.
    overflow: Arena,
    arrivals: ArrivalIds,
    lingering: Lingering,
    /// Whether the bell's poll is in the kernel.
    bell_polled: bool,
}

struct Connection {
    stream: TcpStream,
    receive: Receive,
    reading: Reading,
    /// For receives into places and memory.
    receiving: Box<Message>,
    send: SendQueue,
    /// Whether a send is in flight, and what it names.
    in_flight: bool,
    plan: Plan,
    sending: Box<Message>,
    /// Reading has come to its end; what was received before is still to be reported.
    read_to: Option<End>,
    /// Nothing can be sent any more.
    cut: bool,
    /// Why. A socket tells an error once, so the read that finds the end does not hear of it.
    failed: Option<Errno>,
    /// Nothing is received any more; what was posted is brought out (closed here) or flushed.
    ended: Option<LostReason>,
}

/// The way a link receives, for life.
enum Receive {
    Shared(Frames),
    Exact(Receiver),
}

/// What the kernel is doing for a connection's receives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    Nothing,
    /// A multishot receive into buffers is armed.
    Armed,
    /// It is being cancelled.
    Ending,
    /// A receive into the connection's own memory: that must not be touched.
    Direct,
}

/// How the incoming stream ended.
#[derive(Clone, Copy)]
enum End {
    Closed,
    Failed(Errno),
}

impl Receive {
    fn next(
        &mut self,
        peer: Peer,
        slot: usize,
        staging: &mut Staging,
        arrivals: &mut ArrivalIds,
        supply: Supply,
    ) -> Result<Next, Violation> {
        match self {
            Self::Shared(frames) => frames.next(peer, slot, staging, supply),
            Self::Exact(receiver) => receiver.next(peer, slot, staging, arrivals),
        }
    }

    fn is_between(&self) -> bool {
        match self {
            Self::Shared(frames) => frames.is_between(),
            Self::Exact(receiver) => receiver.is_between(),
        }
    }
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
    fn fd(&self) -> Fd {
        Fd(self.stream.as_raw_fd())
    }

    /// Queues a receive, if none is in the kernel.
    fn arm(&mut self, slot: usize, ring: &mut Ring, buffers: &Buffers, staging: &mut Staging) -> Outcome {
        if self.reading != Reading::Nothing {
            return Outcome::Idle;
        }
        let (rest, area): (&mut [u8], &mut [u8]) = match &mut self.receive {
            Receive::Exact(receiver) => receiver.room(),
            Receive::Shared(_) if buffers.given_count() > 0 => {
                let entry = opcode::RecvMulti::new(self.fd(), GROUP).build().user_data(RECEIVE | slot as u64);
                // SAFETY: buffers and socket are kept until the last completion (`bury` and `drop` wait for it).
                let pushed = unsafe { ring.push(&entry) };
                self.reading = if pushed { Reading::Armed } else { Reading::Nothing };
                return if pushed { Outcome::Idle } else { Outcome::More };
            }
            Receive::Shared(frames) => {
                // No buffers: a body in the middle goes on without, so that it lets go of those it holds.
                frames.spill(slot, staging);
                let Some(room) = frames.direct() else { return Outcome::Starved };
                (room, &mut [])
            }
        };
        self.receiving.write_to([rest, area]);
        let header = self.receiving.header();
        let entry = opcode::RecvMsg::new(self.fd(), header).build().user_data(RECEIVE | slot as u64);
        // SAFETY: header and vector lie in a box; what they point to is the receiver's memory, which is not touched
        // while `reading` is `Direct`, and kept with the socket until the completion.
        let pushed = unsafe { ring.push(&entry) };
        self.reading = if pushed { Reading::Direct } else { Reading::Nothing };
        if pushed { Outcome::Idle } else { Outcome::More }
    }

    /// Asks the kernel to give up the receive that it has, if that does not end by itself.
    fn disarm(&mut self, slot: usize, ring: &mut Ring) {
        if matches!(self.reading, Reading::Nothing | Reading::Ending) {
            return;
        }
        let entry = opcode::AsyncCancel::new(RECEIVE | slot as u64).build().user_data(CANCEL | slot as u64);
        // SAFETY: it names no memory.
        if unsafe { ring.push(&entry) } && self.reading == Reading::Armed {
            self.reading = Reading::Ending;
        }
    }

    /// Queues a send of what is due, if none is in flight.
    fn send(&mut self, slot: usize, ring: &mut Ring) {
        if self.in_flight || self.cut || !self.send.has_unsent() {
            return;
        }
        self.send.plan(&mut self.plan);
        let (queue, plan) = (&self.send, &self.plan);
        self.sending.read_from(plan.parts.iter().map(|part| queue.bytes(&plan.copied, part)));
        let header = self.sending.header().cast_const();
        let flags = u32::try_from(libc::MSG_NOSIGNAL).unwrap_or(0);
        let entry =
            opcode::SendMsg::new(self.fd(), header).flags(flags).build().user_data(SEND | slot as u64);
        // SAFETY: header and vector lie in a box, the copied bytes in a vector that changes with the next plan only, the
        // bodies in the queue, which lets go of them only by `advance` and `flush`; all after the completion.
        self.in_flight = unsafe { ring.push(&entry) };
    }

    /// Receiving is over.
    fn end(&mut self, slot: usize, ring: &mut Ring, reason: LostReason) {
        self.ended = Some(reason);
        self.disarm(slot, ring);
        if reason == LostReason::ClosedHere {
            // So that a peer that takes nothing does not hold this for ever. An error means that it is broken already.
            let _ = sockopt::set_tcp_user_timeout(&self.stream, CLOSE_PATIENCE_MS);
        } else {
            self.cut = true;
            // Ends the send that may be in flight.
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }

    /// Reports the rest of a connection that has ended, when the kernel has let go of all its memory.
    fn bury(&mut self, reason: LostReason, peer: Peer, events: &mut Events, left: &mut usize) -> Outcome {
        if self.in_flight || self.reading != Reading::Nothing || (!self.cut && self.send.has_unsent()) {
            return Outcome::Idle;
        }
        match &mut self.receive {
            Receive::Shared(frames) => frames.abandon(),
            Receive::Exact(_) if *left == 0 => return Outcome::More,
            Receive::Exact(receiver) => {
                if let Some((arrival, destination)) = receiver.abandon() {
                    *left -= 1;
                    events.list.push(Event::Placed { peer, arrival, destination, outcome: Err(reason) });
                }
            }
        }
        if !self.send.flush(peer, reason, events, left) || *left == 0 {
            return Outcome::More;
        }
        events.list.push(Event::Lost { peer, reason });
        Outcome::Lost(reason)
    }

    /// A receive has completed.
    fn received(&mut self, entry: &cqueue::Entry, buffers: &mut Buffers) {
        let buffer = cqueue::buffer_select(entry.flags());
        let count = usize::try_from(entry.result()).unwrap_or(0);
        let was_direct = self.reading == Reading::Direct;
        if !cqueue::more(entry.flags()) {
            self.reading = Reading::Nothing;
        }
        if let Some(number) = buffer
            && let Some(slice) = buffers.take(number, count)
            && let Receive::Shared(frames) = &mut self.receive
            && self.ended.is_none()
            && count > 0
        {
            frames.push(slice);
        }
        match entry.result() {
            0 => self.read_to = Some(End::Closed),
            1.. if was_direct && self.ended.is_none() => match &mut self.receive {
                Receive::Shared(frames) => frames.received(count),
                Receive::Exact(receiver) => receiver.received(count),
            },
            1.. => {}
            error => match Errno::from_raw_os_error(-error) {
                // Tried again when the connection is visited and there are buffers.
                Errno::NOBUFS | Errno::CANCELED | Errno::INTR | Errno::AGAIN => {}
                errno => self.read_to = Some(End::Failed(errno)),
            },
        }
    }

    /// A send has completed.
    fn sent(&mut self, result: i32) {
        self.in_flight = false;
        match usize::try_from(result) {
            Ok(count) => self.send.advance(count),
            // Sent again. The kernel cancels what a thread has submitted when that thread ends.
            Err(_)
                if matches!(
                    Errno::from_raw_os_error(-result),
                    Errno::INTR | Errno::AGAIN | Errno::CANCELED
                ) => {}
            // What has come before may still be read; the end is found there.
            Err(_) => {
                self.cut = true;
                self.failed = failure(Errno::from_raw_os_error(-result));
            }
        }
    }
}

impl Endpoint {
    /// An endpoint without peers, whose messages are framed as `framing` says.
    ///
    /// # Errors
    /// [`Why`] there is no io_uring here, with the remedy.
    pub fn new(framing: Framing, options: Options) -> Result<Self, Why> {
        let waker = Waker::with_bell().map_err(|errno| Why::of(&errno.into()))?;
        Self::beside(framing, options, waker, Tag::default())
    }

    /// One of several endpoints of a thread, all woken by `waker`, whose peers are told apart by `tag`.
    pub(crate) fn beside(framing: Framing, options: Options, waker: Waker, tag: Tag) -> Result<Self, Why> {
        let ring = Ring::new(options.one_thread)?;
        let buffers = Buffers::new(&ring, options.buffer_count, options.buffer_bytes)?;
        let limits = options.limits;
        let overflow = Arena::new(buffers.count() * buffers.buffer_bytes());
        Ok(Self {
            framing,
            limits,
            ring,
            hold_bytes_max: buffers.count() * buffers.buffer_bytes() / 4,
            buffers,
            waker,
            peers: Peers::new(limits.peers_max, tag),
            starved: Vec::new(),
            staging: Staging::new(limits.receive_bytes, limits.body_bytes_max),
            overflow,
            arrivals: ArrivalIds::new(tag),
            lingering: Lingering::default(),
            bell_polled: false,
        })
    }

    /// Makes this thread the ring's, once, and keeps the bell polled.
    fn begin(&mut self) {
        if self.ring.enable() {
            self.buffers.refill();
        }
        if !self.bell_polled
            && let Some(bell) = self.waker.bell()
        {
            let flags = u32::try_from(libc::POLLIN).unwrap_or(0);
            let entry = opcode::PollAdd::new(Fd(bell.as_raw_fd()), flags).multi(true).build();
            // SAFETY: it names no memory, and the waker keeps the bell until the ring's end.
            self.bell_polled = unsafe { self.ring.push(&entry.user_data(BELL)) };
        }
    }

    /// Takes the completions that are there. Says whether any was of a receive or a send.
    fn collect(&mut self) -> bool {
        let mut moved = false;
        while let Some(entry) = self.ring.next() {
            let slot = slot_bits(entry.user_data());
            match entry.user_data() & KIND {
                RECEIVE => {
                    if let Some(connection) = self.peers.connection(slot) {
                        connection.received(&entry, &mut self.buffers);
                    }
                }
                SEND => {
                    if let Some(connection) = self.peers.connection(slot) {
                        connection.sent(entry.result());
                    }
                }
                BELL => {
                    // Each write of the bell is one completion; it need never be read.
                    self.bell_polled = cqueue::more(entry.flags());
                    continue;
                }
                _ => continue,
            }
            moved = true;
            self.peers.enqueue(slot);
        }
        moved
    }

    /// Reports what one peer has, and queues what the kernel is to do for it.
    fn visit(&mut self, slot: usize, events: &mut Events) -> Outcome {
        let peer = self.peers.peer(slot);
        let supply = Supply {
            hold_bytes_max: self.hold_bytes_max,
            is_short: self.buffers.given_count() * 4 < self.buffers.count(),
        };
        let Some(connection) = self.peers.connection(slot) else { return Outcome::Idle };
        let mut left = QUOTA.min(events.room());
        connection.send(slot, &mut self.ring);
        connection.send.report(peer, events, &mut left);
        let mut outcome = Outcome::Idle;
        while connection.ended.is_none() && connection.reading != Reading::Direct {
            if left == 0 {
                outcome = Outcome::More;
                break;
            }
            match connection.receive.next(peer, slot, &mut self.staging, &mut self.arrivals, supply) {
                Ok(Next::Event(event)) => {
                    left -= 1;
                    events.list.push(event);
                }
                Ok(Next::Bytes) => match connection.read_to {
                    Some(end) => {
                        let reason = match end {
                            End::Closed if let Some(errno) = connection.failed => reason_of(errno),
                            End::Closed if connection.receive.is_between() => LostReason::ClosedByPeer,
                            End::Closed => LostReason::Broken,
                            End::Failed(errno) => reason_of(errno),
                        };
                        connection.end(slot, &mut self.ring, reason);
                    }
                    None => {
                        outcome = connection.arm(slot, &mut self.ring, &self.buffers, &mut self.staging);
                        break;
                    }
                },
                Ok(Next::Place) => break,
                Ok(Next::Memory) => {
                    // What goes on coming would only hold the buffers of others.
                    connection.disarm(slot, &mut self.ring);
                    if let Receive::Shared(frames) = &mut connection.receive {
                        frames.retreat(&mut self.overflow, self.buffers.buffer_bytes());
                    }
                    outcome = Outcome::Starved;
                    break;
                }
                Err(violation) => connection.end(slot, &mut self.ring, LostReason::Violation(violation)),
            }
        }
        match connection.ended {
            Some(reason) => {
                // Again, if there was no room in the ring for the first.
                connection.disarm(slot, &mut self.ring);
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
        if reason == LostReason::ClosedHere && !connection.cut {
            self.lingering.push(connection.stream);
        }
    }

    /// Waits until the kernel has let go of everything. Says whether it has.
    fn settle(&mut self) -> bool {
        let deadline = Instant::now() + END_PATIENCE;
        let any = opcode::AsyncCancel2::new(io_uring::types::CancelBuilder::any()).build();
        loop {
            self.collect();
            let slots: Vec<_> = self.peers.used().collect();
            let busy = slots.into_iter().any(|slot| {
                let connection = self.peers.connection(slot);
                connection.is_some_and(|found| found.in_flight || found.reading != Reading::Nothing)
            });
            if !busy {
                return true;
            }
            // SAFETY: it names no memory.
            let pushed = unsafe { self.ring.push(&any.clone().user_data(CANCEL)) };
            if !pushed || Instant::now() > deadline {
                return false;
            }
            // The cancellation's own completion is the one that is waited for, at least.
            match self.ring.try_enter(1).map_err(|error| error.raw_os_error()) {
                Ok(()) | Err(Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
                Err(_) => return false,
            }
        }
    }
}

impl crate::endpoint::Endpoint for Endpoint {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "uring",
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
            return Err(AdoptError::OtherKind { expected: "uring", found });
        };
        let parser = HeadParser::new(self.framing, link.number, self.limits.body_bytes_max);
        // The ring waits by itself; an operation on a non-blocking socket would give up instead.
        let blocking = stream.set_nonblocking(false);
        let connection = Connection {
            stream,
            receive: match link.place_from {
                Some(_) => Receive::Exact(Receiver::new(parser, link.place_from)),
                None => Receive::Shared(Frames::new(parser)),
            },
            reading: Reading::Nothing,
            receiving: Message::new(),
            send: SendQueue::new(self.limits.operations_per_peer_max),
            in_flight: false,
            plan: Plan::default(),
            sending: Message::new(),
            read_to: None,
            cut: false,
            failed: None,
            ended: blocking.is_err().then_some(LostReason::Broken),
        };
        let full = AdoptError::TooManyPeers { limit: self.peers.limit() };
        let slot = self.peers.insert(connection).ok_or(full)?;
        self.peers.enqueue(slot);
        self.waker.stir();
        Ok(self.peers.peer(slot))
    }

    fn post(&mut self, batch: &mut Batch) -> Result<(), Full> {
        self.begin();
        let outcome = self.peers.take(batch);
        while let Some(slot) = self.peers.next_touched() {
            if let Some(connection) = self.peers.connection(slot) {
                connection.send(slot, &mut self.ring);
                if !connection.in_flight {
                    // No room in the ring, or nothing can be sent: the next visit finds out.
                    self.peers.enqueue(slot);
                    self.waker.stir();
                }
            }
        }
        self.ring.submit();
        outcome
    }

    fn poll(&mut self, events: &mut Events) {
        self.begin();
        self.ring.advance();
        events.moved |= self.collect();
        self.buffers.refill();
        self.lingering.poll();
        // A body that holds buffers may find memory of its own, so all are visited even if no buffer came back.
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
            && connection.ended.is_none()
            && let Receive::Exact(receiver) = &mut connection.receive
            && receiver.place(arrival, destination)
        {
            self.peers.enqueue(slot);
            self.waker.stir();
        }
    }

    fn arm(&mut self) -> Armed {
        self.begin();
        self.waker.arm();
        // Completions that have come since are found by the turn that follows, or end the sleep at once.
        if self.peers.has_work() || !self.ring.is_idle() {
            return Armed::Ready;
        }
        let at_most_ns = (!self.starved.is_empty()).then_some(MEMORY_SLEEP_NS);
        Armed::Sleep(Sleep::Ring { ring: self.ring.sleeping(), at_most_ns })
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn close(&mut self, peer: Peer) {
        let Some(slot) = self.peers.slot_of(peer) else { return };
        if let Some(connection) = self.peers.connection(slot)
            && connection.ended.is_none()
        {
            connection.end(slot, &mut self.ring, LostReason::ClosedHere);
        }
        self.peers.enqueue(slot);
        self.waker.stir();
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let settled = !self.ring.is_enabled() || self.settle();
        for connection in self.peers.drain() {
            if settled {
                // Reads away what is there, so that the close is an orderly one.
                self.lingering.push(connection.stream);
            } else {
                // The kernel may still write there, so it is never freed; the other side hears of the end.
                let _ = connection.stream.shutdown(Shutdown::Both);
                std::mem::forget(connection);
            }
        }
        if !settled {
            self.buffers.leak();
        }
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "uring::Endpoint({} peers)", self.peers.len())
    }
}
