//! A worker's shell: the one place where transport and client core shake hands.
//! Knows frames, destinations of pulls and tickets; decides nothing. Turned by whoever holds the baton (`handle.rs`), or by
//! the simulator. Source: protocol.md §12 for heads; `workers/DESIGN.md` (a baton).

use std::collections::BTreeMap;

use rangefold_proto::client::{
    ClientCore, Counters, Grant, Input, IssueError, Output, Pull, Push, SendBody, TaskError, TaskId,
};
use rangefold_proto::wire::{self, Arguments, Kind, WireError};
use rangefold_proto::{
    ClusterMap, Incarnation, JobId, KeyRange, Lane, Limits, LinkId, Member, Nanos, Round, ShardId, TableId,
    View,
};
use rangefold_transport::wait::Clock;
use rangefold_transport::{
    Arena, Batch, Body, Endpoint, Event, Events, Head, Link, Peer, Route, Shell, Slice, SliceMut, Token, Turn,
};

use crate::outcomes::Outcomes;

/// Events of one turn, at most.
const EVENTS_MAX: usize = 256;

/// Posts that follow each other faster than this gather frames, so that one call to the system takes many.
const STREAM_NS: u64 = 10_000;
/// As many are posted one by one before any is gathered: a program that issues a few and then computes is not a stream.
const STREAM_BEGINS: u32 = 8;
/// Frames and bytes that are gathered at most.
const GATHER_FRAMES: usize = 64;
const GATHER_BYTES: usize = 64 << 10;

/// Bytes for bodies of control frames under way: a handful of the largest.
const CONTROL_MEMORY_BYTES: usize = 8 * wire::CONTROL_BYTES_MAX;

/// A connection to a shard, made by a [`Dialer`].
#[derive(Debug)]
pub struct Dialed {
    /// This side of it.
    pub link: Link,
    /// What the shard has granted.
    pub grant: Grant,
}

/// Makes connections to shards; never blocks.
pub trait Dialer {
    /// Begins to connect. The outcome comes from `poll`.
    fn dial(&mut self, map: &ClusterMap, shard: ShardId);

    /// The next outcome: a connection, or why there is none, for people.
    fn poll(&mut self) -> Option<(ShardId, Result<Dialed, String>)>;
}

/// What a worker is told by its own process: news of the control plane.
#[derive(Clone, Debug)]
pub enum Command {
    /// The manager's map.
    Map(ClusterMap),
    /// The scheduler's view.
    View(View),
    /// The scheduler hands lanes to this worker.
    Run(Vec<Member>),
}

/// Where a pull's values go, until it ends.
#[derive(Debug)]
struct Destination {
    memory: SliceMut,
    range: KeyRange,
}

/// A task that has ended.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub outcome: Result<(), TaskError>,
    /// A pull's values, in key order.
    pub values: Option<SliceMut>,
}

/// A worker's shell.
#[derive(Debug)]
pub struct Driver<E: Endpoint, D: Dialer> {
    endpoint: E,
    dialer: D,
    core: ClientCore<Body>,
    /// Values of pushes kept and pulls under way.
    arena: Arena,
    /// Bodies of control frames; apart, so that pushes that wait for an answer never keep a frame from being sent.
    control: Arena,
    /// The head that is being written; kept so that it need not be zeroed.
    head: [u8; wire::HEAD_BYTES_MAX],
    batch: Batch,
    /// Tasks issued and their bytes since the last post.
    issued: usize,
    issued_bytes: usize,
    /// When a call that issued something ended last, in nanoseconds, and how often in a row that was soon after the time before.
    issued_ns: u64,
    stream: u32,
    events: Events,
    links: BTreeMap<LinkId, (Peer, u64, ShardId)>,
    /// Shards whose connection broke or cannot be made, and why, until there is one again.
    disconnected: BTreeMap<ShardId, String>,
    /// What the last connection to each shard went through.
    routes: BTreeMap<ShardId, Route>,
    peers: BTreeMap<Peer, LinkId>,
    next_link: u64,
    /// Sends of a connection that have completed and of which the core has not heard.
    sent: (LinkId, u16),
    destinations: BTreeMap<TaskId, Destination>,
    outcomes: Outcomes,
    /// Lanes that were given to other workers, and as which incarnation each was held here.
    fenced: Vec<(Lane, Incarnation)>,
    frame_bytes_max: usize,
    now_ns: u64,
}

impl<E: Endpoint, D: Dialer> Driver<E, D> {
    /// A driver without lanes, map and connections. `memory_bytes_max` bounds pushes kept and pulls under way.
    pub fn new(endpoint: E, dialer: D, job: JobId, limits: Limits, memory_bytes_max: usize) -> Self {
        Self {
            endpoint,
            dialer,
            core: ClientCore::new(job, limits),
            arena: Arena::new(memory_bytes_max).moving(),
            control: Arena::new(CONTROL_MEMORY_BYTES),
            head: [0; wire::HEAD_BYTES_MAX],
            batch: Batch::with_capacity(EVENTS_MAX),
            issued: 0,
            issued_bytes: 0,
            issued_ns: 0,
            stream: 0,
            events: Events::with_limit(EVENTS_MAX),
            links: BTreeMap::new(),
            disconnected: BTreeMap::new(),
            routes: BTreeMap::new(),
            peers: BTreeMap::new(),
            next_link: 0,
            sent: (LinkId(0), 0),
            destinations: BTreeMap::new(),
            outcomes: Outcomes::default(),
            fenced: Vec::new(),
            frame_bytes_max: limits.frame_bytes_max as usize,
            now_ns: 0,
        }
    }

    /// The core, to be looked at.
    pub fn core(&self) -> &ClientCore<Body> {
        &self.core
    }

    /// What the core has counted.
    pub fn counters(&self) -> Counters {
        self.core.counters()
    }

    /// Shards whose connection broke or cannot be made, and why, in words for people. A connection is made again when something
    /// is to be sent.
    pub fn disconnected(&self) -> &BTreeMap<ShardId, String> {
        &self.disconnected
    }

    /// What the last connection to each shard went through, or goes.
    pub fn routes(&self) -> &BTreeMap<ShardId, Route> {
        &self.routes
    }

    /// News of the control plane.
    pub fn command(&mut self, now_ns: u64, command: Command) {
        self.now_ns = now_ns;
        let input = match command {
            Command::Map(map) => Input::Map(map),
            Command::View(view) => Input::View(view),
            Command::Run(members) => Input::Run(members),
        };
        self.feed(input);
    }

    /// Memory of `bytes` for a push's values, written by the caller and then pushed without a copy.
    ///
    /// # Errors
    /// [`IssueError::Full`] when as much as allowed is under way or held: wait for a task to end; [`IssueError::TooLarge`].
    pub fn buffer(&mut self, bytes: usize) -> Result<SliceMut, IssueError> {
        let max = self.arena.budget_bytes();
        if Arena::footprint(bytes) > max {
            return Err(IssueError::TooLarge { bytes: bytes as u64, max: max as u64 });
        }
        self.arena.take(bytes).ok_or(IssueError::Full)
    }

    /// Bytes of pushes and pulls under way and of values that the program holds, and how many there may be.
    pub fn memory_bytes(&mut self) -> (usize, usize) {
        self.arena.collect();
        (self.arena.used_bytes(), self.arena.budget_bytes())
    }

    /// Issues a push of `values`, which must be as long as the range says.
    ///
    /// # Errors
    /// [`IssueError`]; nothing was issued then, and the values are gone.
    pub fn push(
        &mut self,
        lane: Lane,
        table: TableId,
        range: KeyRange,
        values: Slice,
        arguments: Arguments,
    ) -> Result<TaskId, IssueError> {
        let bytes = values.len();
        let payload = Body::from(values);
        let task = self.core.push(Push { lane, table, range, payload, arguments })?;
        self.issued += 1;
        self.issued_bytes += bytes;
        Ok(task)
    }

    /// Issues a pull.
    ///
    /// # Errors
    /// [`IssueError`]; [`IssueError::Full`] also when there is no memory for its values just now.
    pub fn pull(&mut self, pull: Pull) -> Result<TaskId, IssueError> {
        let key_bytes =
            self.core.map().tables.get(&pull.table).map_or(0, rangefold_proto::TableSpec::value_bytes);
        let bytes =
            usize::try_from(pull.range.len()).unwrap_or(usize::MAX).saturating_mul(key_bytes as usize);
        let inside = self.core.map().tables.get(&pull.table).is_some_and(|spec| pull.range.end <= spec.len);
        // The core says what is wrong with a range that is not the table's.
        let memory = self.buffer(if inside { bytes } else { 0 })?;
        let task = self.core.pull(pull)?;
        self.destinations.insert(task, Destination { memory, range: pull.range });
        self.issued += 1;
        Ok(task)
    }

    /// Ends a lane's round and returns the new one.
    ///
    /// # Errors
    /// [`IssueError::NoLane`].
    pub fn advance(&mut self, lane: Lane) -> Result<Round, IssueError> {
        self.core.advance(lane)
    }

    /// Gives up a pull.
    pub fn cancel(&mut self, task: TaskId) {
        self.core.cancel(task);
        self.carry_out();
        self.outcomes.take(task);
    }

    /// The outcome of this push is not wanted.
    pub fn forget(&mut self, task: TaskId) {
        if self.outcomes.take(task).is_none() {
            self.core.release(task);
        }
    }

    /// Takes the outcome of a task that has ended; once.
    pub fn take_ended(&mut self, task: TaskId) -> Option<Ended> {
        self.outcomes.take(task)
    }

    /// Whether a task has ended and its outcome waits to be taken.
    pub fn has_ended(&self, task: TaskId) -> bool {
        self.outcomes.has(task)
    }

    /// Posts what was issued and all that is due. Says whether anything left. What does not fit goes after the completion that
    /// makes room.
    pub fn post(&mut self) -> bool {
        self.drain();
        self.post_batch()
    }

    fn post_batch(&mut self) -> bool {
        (self.issued, self.issued_bytes) = (0, 0);
        let waiting = self.batch.len();
        if waiting > 0 {
            let _ = self.endpoint.post(&mut self.batch);
        }
        self.batch.len() < waiting
    }

    /// Posts what was issued, now or with what follows: of a stream of small tasks many leave together. What is kept leaves
    /// with the next turn: at once when its program waits, else with the progress thread's.
    ///
    /// What counts is how long the program takes from the end of one call to the next, not how long a post does: so `clock` is read
    /// again after one.
    pub fn post_issued(&mut self, clock: Clock) {
        let now_ns = clock.now_ns();
        let soon = now_ns.saturating_sub(self.issued_ns) < STREAM_NS;
        self.issued_ns = now_ns;
        self.stream = if soon { self.stream.saturating_add(1) } else { 0 };
        let gathers =
            self.stream > STREAM_BEGINS && self.issued < GATHER_FRAMES && self.issued_bytes < GATHER_BYTES;
        if !gathers {
            self.post();
            self.issued_ns = clock.now_ns();
        }
    }

    /// Takes the lanes that were given to other workers since the last call; their tasks have ended with that error. A lane may
    /// have come back since, as a higher incarnation.
    pub fn take_fenced(&mut self) -> Vec<(Lane, Incarnation)> {
        std::mem::take(&mut self.fenced)
    }

    fn feed(&mut self, input: Input<'_, Body>) {
        self.core.handle_input(Nanos(self.now_ns), input);
        self.carry_out();
    }

    /// Carries out effects. What the core has to say waits for the end of the turn, or the next post.
    fn carry_out(&mut self) {
        while self.core.has_effects() {
            let effect = self.core.poll_output(false);
            self.effect(effect);
        }
    }

    /// Carries out what the core has to do and say, in order. Frames join the batch of the turn.
    fn drain(&mut self) -> Option<Nanos> {
        self.control.collect();
        loop {
            let may_send = self.control.used_bytes() + wire::CONTROL_BYTES_MAX <= self.control.budget_bytes();
            match self.core.poll_output(may_send) {
                Output::Send { link } => self.send(link),
                Output::Timeout(at) => return at,
                effect => self.effect(effect),
            }
        }
    }

    fn effect(&mut self, effect: Output<Body>) {
        match effect {
            Output::Dial { shard } => self.dialer.dial(self.core.map(), shard),
            Output::Deliver { task, range, payload } => self.deliver(task, range, &payload),
            Output::Complete { task, outcome } => {
                let values = self.destinations.remove(&task).map(|destination| destination.memory);
                self.outcomes.end(task, Ended { outcome, values });
            }
            Output::Fenced { lane, incarnation } => self.fenced.push((lane, incarnation)),
            Output::Disconnect { link, .. } => {
                if let Some(&(peer, ..)) = self.links.get(&link) {
                    self.endpoint.close(peer);
                }
            }
            Output::Send { .. } | Output::Timeout(_) => {}
        }
    }

    fn deliver(&mut self, task: TaskId, range: KeyRange, payload: &Body) {
        let Some(destination) = self.destinations.get_mut(&task) else { return };
        let keys = usize::try_from(destination.range.len()).unwrap_or(usize::MAX);
        let key_bytes = destination.memory.len() / keys.max(1);
        let at = usize::try_from(range.start - destination.range.start).unwrap_or(usize::MAX) * key_bytes;
        payload.copy_to(&mut destination.memory.as_mut_bytes()[at..at + payload.len()]);
    }

    fn send(&mut self, link: LinkId) {
        let Some(&(peer, number, _)) = self.links.get(&link) else { return };
        let body = match std::mem::take(&mut self.core.frame().body) {
            SendBody::Empty => Body::empty(),
            SendBody::Values { payload, bytes } if bytes.len() == payload.len() => payload,
            SendBody::Values { payload, bytes } => payload.cut(bytes),
            SendBody::Gathered => match self.gather() {
                Some(body) => body,
                None => return self.endpoint.close(peer),
            },
            SendBody::Control => {
                let control = self.core.control();
                let Some(mut slice) = self.control.take(control.len()) else {
                    // `drain` has seen that there is room, so the system refused to map it: give the connection up.
                    return self.endpoint.close(peer);
                };
                slice.as_mut_bytes().copy_from_slice(control);
                Body::from(slice.freeze())
            }
        };
        let frame = self.core.frame();
        let head_len = wire::encode(&frame.header, &frame.extension, number, &mut self.head);
        if let Some(head) = Head::new(&self.head[..head_len]) {
            self.batch.send(peer, Token(link.0), head, body);
        }
    }

    /// The body of several small pushes, in one piece. `None`: the system refused memory although there is room.
    fn gather(&mut self) -> Option<Body> {
        let header = &self.core.frame().header;
        let bytes = header.key_bytes as usize + header.value_bytes as usize;
        let mut slice = self.control.take(bytes)?;
        let (keys, mut values) = slice.as_mut_bytes().split_at_mut(self.core.control().len());
        keys.copy_from_slice(self.core.control());
        for (payload, bytes) in self.core.gathered().drain(..) {
            let (place, rest) = values.split_at_mut(bytes.len());
            match payload.slices() {
                [slice] => place.copy_from_slice(&slice.as_bytes()[bytes]),
                _ => payload.cut(bytes).copy_to(place),
            }
            values = rest;
        }
        Some(Body::from(slice.freeze()))
    }

    fn dialed(&mut self, shard: ShardId, dialed: Result<Dialed, String>) {
        let adopted = dialed.and_then(|Dialed { link, grant }| {
            let (number, route) = (link.number(), link.route());
            let peer = self.endpoint.adopt(link).map_err(|error| error.to_string())?;
            self.routes.insert(shard, route);
            Ok((peer, number, grant))
        });
        let (peer, number, grant) = match adopted {
            Ok(adopted) => adopted,
            Err(why) => {
                self.disconnected.insert(shard, why);
                return self.feed(Input::DialFailed { shard });
            }
        };
        self.disconnected.remove(&shard);
        let link = LinkId(self.next_link);
        self.next_link += 1;
        self.links.insert(link, (peer, number, shard));
        self.peers.insert(peer, link);
        self.feed(Input::Linked { shard, link, grant });
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Arrived { peer, head, body } => {
                let Some(&link) = self.peers.get(&peer) else { return };
                if self.arrived(link, &head, body).is_err() {
                    self.endpoint.close(peer);
                }
            }
            Event::Sent { token, .. } => {
                let link = LinkId(token.0);
                if self.sent.0 != link || self.sent.1 == u16::MAX {
                    self.tell_sent();
                    self.sent.0 = link;
                }
                self.sent.1 += 1;
            }
            Event::Lost { peer, reason } => {
                if let Some(link) = self.peers.remove(&peer) {
                    if let Some((_, _, shard)) = self.links.remove(&link) {
                        self.disconnected.insert(shard, reason.to_string());
                    }
                    self.feed(Input::Lost { link });
                }
            }
            // No link of ours asks for announcements yet.
            Event::Announced { arrival, .. } => self.endpoint.place(arrival, None),
            Event::Placed { .. } => {}
        }
    }

    /// Tells the core of the sends that have completed, of one connection all at once.
    fn tell_sent(&mut self) {
        let (link, count) = std::mem::take(&mut self.sent);
        if count > 0 {
            self.feed(Input::Sent { link, count });
        }
    }

    fn arrived(&mut self, link: LinkId, head: &Head, body: Body) -> Result<(), WireError> {
        let number = self.links.get(&link).map_or(0, |&(_, number, _)| number);
        let (header, extension) = wire::decode(head.as_bytes(), number)?;
        let expected = header.key_bytes as usize + header.value_bytes as usize;
        if body.len() != expected || expected > self.frame_bytes_max.max(wire::CONTROL_BYTES_MAX) {
            return Err(WireError::Length { found: body.len(), expected });
        }
        if header.kind == Kind::PullReply {
            let value_bytes = self
                .core
                .map()
                .tables
                .get(&header.segment.table())
                .map_or(0, rangefold_proto::TableSpec::value_bytes);
            if header.range.len().saturating_mul(u64::from(value_bytes)) != u64::from(header.value_bytes) {
                return Err(WireError::Length { found: body.len(), expected: 0 });
            }
            self.feed(Input::Reply { link, header, extension, payload: body });
        } else {
            self.feed(Input::Control { link, header, extension, body: &body.contiguous() });
        }
        Ok(())
    }
}

impl<E: Endpoint, D: Dialer> Shell for Driver<E, D> {
    type Endpoint = E;

    fn turn(&mut self, now_ns: u64) -> Turn {
        self.now_ns = now_ns;
        let mut progressed = false;
        while let Some((shard, dialed)) = self.dialer.poll() {
            self.dialed(shard, dialed);
            progressed = true;
        }
        let mut events = std::mem::take(&mut self.events);
        self.endpoint.poll(&mut events);
        progressed |= events.take_progress();
        for event in events.drain() {
            self.event(event);
        }
        self.tell_sent();
        self.events = events;
        self.core.handle_input(Nanos(now_ns), Input::Tick);
        let deadline = self.drain();
        progressed |= self.post_batch();
        Turn { progressed, deadline: deadline.map(|at| at.0) }
    }

    fn endpoint(&mut self) -> &mut E {
        &mut self.endpoint
    }
}
