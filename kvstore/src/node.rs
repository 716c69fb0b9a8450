//! A shard's shell: the one place where transport, server core and store shake hands.
//! Knows frames and bytes; decides nothing. Turned by `shard.rs` on a thread, or by the simulator.
//! Source: style of OSDI'14 §3 (server node); protocol.md §12 for heads.

use std::collections::BTreeMap;

use crossbeam_channel::Sender;
use rangefold_proto::server::{Counters, Frame, Input, Output, SegmentImage, SendBody, ServerCore};
use rangefold_proto::wire::{self, Kind, WireError};
use rangefold_proto::{
    Assignment, ClusterMap, JobId, KeyRange, Lane, Limits, LinkId, Nanos, Row, SegmentId, ShardId, Stamp,
    View,
};
use rangefold_transport::{
    Arena, Batch, Body, Endpoint, Event, Events, Head, Link, LostReason, Peer, Shell, Token, Turn,
};

use crate::store::{Image, Store};

/// Events of one turn, at most: what one turn can do is bounded, so that a flood cannot starve commands.
const EVENTS_MAX: usize = 256;

/// How a node is made.
#[derive(Clone, Copy, Debug)]
pub struct NodeOptions {
    /// Which shard it is.
    pub shard: ShardId,
    /// Whose frames it takes.
    pub job: JobId,
    /// Its capacities.
    pub limits: Limits,
    /// Bytes for replies and control frames under way.
    pub send_bytes_max: usize,
}

/// What a node is told by its own process.
#[derive(Debug)]
pub enum Command {
    /// Serve this connection.
    Adopt(Link),
    /// The manager's map. Segments that it gives to this shard at the table's creation are made.
    Map(ClusterMap),
    /// The scheduler's view.
    View(View),
    /// Say what was done so far. Nobody need be listening any more.
    Report(Sender<Report>),
    /// Take over a segment with its values.
    Accept {
        /// The row that makes this shard its owner.
        row: Row,
        /// Its clocks.
        image: SegmentImage,
        /// Its values.
        values: Image,
    },
}

/// What a shard has done since its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    /// Which shard.
    pub shard: ShardId,
    /// What its core has counted.
    pub counters: Counters,
    /// Updates by whole rounds: for logistic regression, its proximal steps and jumps.
    pub steps: u64,
    /// Bytes of values held.
    pub bytes: u64,
}

/// Watches what is applied, for tests and traces, and who is lost, for the operator.
pub trait Observe {
    /// Keys of a segment were updated by a push.
    fn applied(&mut self, _segment: SegmentId, _lane: Lane, _stamp: Stamp, _values: KeyRange) {}
    /// A connection is lost; `address` is where its other side was, if the transport has addresses.
    fn lost(&mut self, _address: Option<&str>, _reason: LostReason) {}
}

impl Observe for () {}

/// One connection, as the endpoint and people know it.
#[derive(Debug)]
struct Connection {
    peer: Peer,
    number: u64,
    address: Option<Box<str>>,
}

/// One shard.
#[derive(Debug)]
pub struct Node<E: Endpoint, O: Observe = ()> {
    endpoint: E,
    core: ServerCore<Body>,
    store: Store,
    arena: Arena,
    /// The head that is being written; kept so that it need not be zeroed.
    head: [u8; wire::HEAD_BYTES_MAX],
    batch: Batch,
    events: Events,
    links: BTreeMap<LinkId, Connection>,
    peers: BTreeMap<Peer, LinkId>,
    next_link: u64,
    /// Sends with one token that have completed and of which the core has not heard.
    sent: (Token, u16),
    /// Connections whose reply could not be built: the core hears of it with the next turn, as of one that was sent.
    unsent: Vec<LinkId>,
    steps: u64,
    frame_bytes_max: usize,
    observer: O,
}

impl<E: Endpoint, O: Observe> Node<E, O> {
    /// A node that owns nothing and serves nobody.
    pub fn new(endpoint: E, options: NodeOptions, observer: O) -> Self {
        Self {
            endpoint,
            core: ServerCore::new(options.shard, options.job, options.limits),
            store: Store::new(),
            arena: Arena::new(options.send_bytes_max).moving(),
            head: [0; wire::HEAD_BYTES_MAX],
            batch: Batch::with_capacity(EVENTS_MAX),
            events: Events::with_limit(EVENTS_MAX),
            links: BTreeMap::new(),
            peers: BTreeMap::new(),
            next_link: 0,
            sent: (Token(0), 0),
            unsent: Vec::new(),
            steps: 0,
            frame_bytes_max: options.limits.frame_bytes_max as usize,
            observer,
        }
    }

    /// What the core has counted.
    pub fn counters(&self) -> Counters {
        self.core.counters()
    }

    /// The core, to be looked at.
    pub fn core(&self) -> &ServerCore<Body> {
        &self.core
    }

    /// The values, to be looked at.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The observer.
    pub fn observer(&self) -> &O {
        &self.observer
    }

    /// Carries out a command of this process.
    pub fn command(&mut self, now_ns: u64, command: Command) {
        match command {
            Command::Adopt(link) => {
                let (number, address) = (link.number(), link.address().map(Into::into));
                // A link that cannot be adopted is closed by that, and its other side hears of it.
                if let Ok(peer) = self.endpoint.adopt(link) {
                    let link = LinkId(self.next_link);
                    self.next_link += 1;
                    self.links.insert(link, Connection { peer, number, address });
                    self.peers.insert(peer, link);
                    self.feed(now_ns, Input::Linked { link });
                }
            }
            Command::Map(map) => {
                let mine: Vec<Row> =
                    map.rows.values().filter(|row| row.owner == self.core.me()).copied().collect();
                self.feed(now_ns, Input::Map(map));
                let owned: Vec<SegmentId> = self.core.owned().collect();
                for row in mine {
                    // Only at its creation is a segment made of nothing; later it comes with its values. A map that is
                    // older than what is known here makes nothing.
                    let current = self.core.row(row.segment) == Some(row);
                    if current
                        && row.assignment == Assignment(1)
                        && owned.binary_search(&row.segment).is_err()
                    {
                        self.create(row);
                    }
                }
                self.carry_out();
            }
            Command::View(view) => self.feed(now_ns, Input::View(view)),
            Command::Report(to) => {
                let (shard, counters) = (self.core.me(), self.core.counters());
                let report = Report { shard, counters, steps: self.steps, bytes: self.store.bytes() as u64 };
                // Whoever asked may have given up.
                let _ = to.try_send(report);
            }
            Command::Accept { row, image, values } => {
                let spec = self.core.table(row.segment.table()).cloned();
                let placed = spec.is_some_and(|spec| self.store.insert(row.segment, &spec, &values).is_ok());
                if placed {
                    self.core.accept(row, Some(&image));
                    self.carry_out();
                }
            }
        }
    }

    fn create(&mut self, row: Row) {
        let Some(spec) = self.core.table(row.segment.table()).cloned() else { return };
        if self.store.create(row.segment, &spec).is_ok() {
            self.core.accept(row, None);
        } else {
            self.core.decline(row.segment);
        }
    }

    /// Gives a segment up, with its clocks and values in one cut: between two entries of its log.
    pub fn release(&mut self, row: Row) -> Option<(SegmentImage, Image)> {
        let image = self.core.release(row)?;
        self.carry_out();
        let values = self.store.remove(row.segment)?;
        Some((image, values))
    }

    fn feed(&mut self, now_ns: u64, input: Input<'_, Body>) {
        self.core.handle_input(Nanos(now_ns), input);
        self.carry_out();
    }

    /// Carries out effects. What the core has to say waits for the end of the turn: one acknowledgement for all that came.
    fn carry_out(&mut self) {
        loop {
            let output = self.core.poll_output(false);
            if let Output::Timeout(_) = output {
                return;
            }
            self.effect(output);
        }
    }

    /// Carries out what the core has to do and say, in order. Frames join the batch of the turn.
    fn drain(&mut self) -> Option<Nanos> {
        self.arena.collect();
        loop {
            // A frame needs memory of at most its own size; without it only effects, which need none.
            let may_send = self.arena.used_bytes() + 2 * self.frame_bytes_max <= self.arena.budget_bytes();
            match self.core.poll_output(may_send) {
                Output::Send { link } => self.send(link),
                Output::Timeout(at) => return at,
                effect => self.effect(effect),
            }
        }
    }

    fn effect(&mut self, effect: Output<Body>) {
        match effect {
            Output::Apply { segment, lane, stamp, values, bytes, payload, arguments } => {
                self.store.apply(segment, values, &payload, bytes, arguments.as_slice());
                self.observer.applied(segment, lane, stamp, values);
            }
            Output::Contribute { segment, lane, stamp, values, bytes, payload } => {
                self.store.contribute(segment, values, &payload, bytes);
                self.observer.applied(segment, lane, stamp, values);
            }
            Output::Finish { segment, arguments, .. } => {
                self.steps += 1;
                self.store.finish(segment, arguments.as_slice());
            }
            Output::Disconnect { link, .. } => {
                if let Some(&Connection { peer, .. }) = self.links.get(&link) {
                    self.endpoint.close(peer);
                }
            }
            Output::Send { .. } | Output::Timeout(_) => {}
        }
    }

    fn send(&mut self, link: LinkId) {
        let Some(&Connection { peer, number, .. }) = self.links.get(&link) else { return };
        let Frame { header, extension, body } = self.core.frame();
        let length = match *body {
            SendBody::Empty => 0,
            SendBody::Control => self.core.control().len(),
            SendBody::Gather { .. } => header.value_bytes as usize,
        };
        let reply = matches!(body, SendBody::Gather { .. });
        let slice = self.arena.take(length).and_then(|mut slice| {
            let filled = match *body {
                SendBody::Empty => true,
                SendBody::Control => {
                    slice.as_mut_bytes().copy_from_slice(self.core.control());
                    true
                }
                SendBody::Gather { segment, range } => {
                    self.store.copy_out(segment, range, slice.as_mut_bytes())
                }
            };
            filled.then_some(slice)
        });
        let Some(slice) = slice else {
            // `drain` has seen that there is room: the system refused to map it, or it lies in pieces. Give the connection up.
            if reply {
                self.unsent.push(link);
            }
            return self.endpoint.close(peer);
        };
        let head_len = wire::encode(header, extension, number, &mut self.head);
        if let Some(head) = Head::new(&self.head[..head_len]) {
            self.batch.send(peer, Token(link.0 << 1 | u64::from(reply)), head, Body::from(slice.freeze()));
        }
    }

    fn event(&mut self, now_ns: u64, event: Event) {
        match event {
            Event::Arrived { peer, head, body } => {
                let Some(&link) = self.peers.get(&peer) else { return };
                if self.arrived(now_ns, link, &head, body).is_err() {
                    self.endpoint.close(peer);
                }
            }
            Event::Sent { token, .. } => {
                if self.sent.0 != token || self.sent.1 == u16::MAX {
                    self.tell_sent(now_ns);
                    self.sent.0 = token;
                }
                self.sent.1 += 1;
            }
            Event::Lost { peer, reason } => {
                if let Some(link) = self.peers.remove(&peer) {
                    let connection = self.links.remove(&link);
                    let address = connection.as_ref().and_then(|connection| connection.address.as_deref());
                    self.observer.lost(address, reason);
                    self.feed(now_ns, Input::Lost { link });
                }
            }
            // Only clients choose where a body lands; a server takes it where it lies.
            Event::Announced { arrival, .. } => self.endpoint.place(arrival, None),
            Event::Placed { .. } => {}
        }
    }

    /// Tells the core of the sends that have completed, of one connection all at once.
    fn tell_sent(&mut self, now_ns: u64) {
        let (Token(token), count) = std::mem::replace(&mut self.sent, (Token(0), 0));
        if count > 0 {
            let (link, reply) = (LinkId(token >> 1), token & 1 == 1);
            self.feed(now_ns, Input::Sent { link, reply, count });
        }
    }

    fn arrived(&mut self, now_ns: u64, link: LinkId, head: &Head, body: Body) -> Result<(), WireError> {
        let number = self.links.get(&link).map_or(0, |connection| connection.number);
        let (header, extension) = wire::decode(head.as_bytes(), number)?;
        let expected = header.key_bytes as usize + header.value_bytes as usize;
        if body.len() != expected || expected > self.frame_bytes_max.max(wire::CONTROL_BYTES_MAX) {
            return Err(WireError::Length { found: body.len(), expected });
        }
        if header.kind == Kind::Push {
            self.feed(now_ns, Input::Push { link, header, extension, payload: body });
        } else if header.kind == Kind::Pushes {
            let keys = body.cut(0..header.key_bytes as usize);
            let keys = keys.contiguous();
            self.feed(now_ns, Input::Pushes { link, header, keys: &keys, payload: body });
        } else {
            self.feed(now_ns, Input::Control { link, header, extension, body: &body.contiguous() });
        }
        Ok(())
    }
}

impl<E: Endpoint, O: Observe> Shell for Node<E, O> {
    type Endpoint = E;

    fn turn(&mut self, now_ns: u64) -> Turn {
        let mut events = std::mem::take(&mut self.events);
        self.endpoint.poll(&mut events);
        let mut progressed = events.take_progress();
        for event in events.drain() {
            self.event(now_ns, event);
        }
        self.tell_sent(now_ns);
        self.events = events;
        for link in std::mem::take(&mut self.unsent) {
            self.feed(now_ns, Input::Sent { link, reply: true, count: 1 });
        }
        self.core.handle_input(Nanos(now_ns), Input::Tick);
        let deadline = self.drain();
        if !self.batch.is_empty() {
            let waiting = self.batch.len();
            // What did not fit stays in the batch and goes after the completion that makes room.
            let _ = self.endpoint.post(&mut self.batch);
            progressed |= self.batch.len() < waiting;
        }
        Turn { progressed, deadline: deadline.map(|at| at.0) }
    }

    fn endpoint(&mut self) -> &mut E {
        &mut self.endpoint
    }
}
