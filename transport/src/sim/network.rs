//! The network's state and its one motion: events in the order of virtual time.
//! Knows links, what flies on them and what their ends have not seen yet. Faults are in `fault`, the ends' view in
//! `endpoint`.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::endpoint::{Arrival, Body, Head, Peer, Token};
use crate::error::LostReason;
use crate::link::{Kind, Link};
use crate::region::SliceMut;
use crate::sim::chance::Chance;
use crate::sim::clock::Timeline;
use crate::sim::endpoint::Station;
use crate::sim::{Config, Counters, Endpoint, Half, HostId};

pub(super) type Shared = Arc<Mutex<World>>;

/// The lock is never contended: one thread uses the network. A panic of a test must not hide behind a second one.
pub(super) fn lock(shared: &Shared) -> MutexGuard<'_, World> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A handle of a simulated network; clones lead to the same one.
#[derive(Clone)]
pub struct Network {
    pub(super) shared: Shared,
}

impl Network {
    /// A network without hosts, at time 0.
    #[must_use]
    pub fn new(seed: u64, config: Config) -> Self {
        Self { shared: Arc::new(Mutex::new(World::new(seed, config))) }
    }

    /// A new endpoint on a host.
    #[must_use]
    pub fn endpoint(&self, host: HostId) -> Endpoint {
        self.endpoint_with(host, None)
    }

    /// A new endpoint on a host that takes bodies of at most `body_bytes_max`, whatever the configuration says.
    #[must_use]
    pub fn endpoint_with(&self, host: HostId, body_bytes_max: Option<u32>) -> Endpoint {
        let mut world = lock(&self.shared);
        let limit = body_bytes_max.unwrap_or(world.config.body_bytes_max);
        world.stations.push(Station::new(host, limit));
        Endpoint::new(Arc::clone(&self.shared), world.stations.len() - 1)
    }

    /// A new link between two hosts, under a number of its own: first the end of `left`, then that of `right`. It comes
    /// into being at once, partitions or not; a harness that simulates handshakes decides when to call this.
    #[must_use]
    pub fn connect(&self, left: HostId, right: HostId) -> (Link, Link) {
        let mut world = lock(&self.shared);
        let number = world.chance.next();
        let link = world.links.len();
        world.links.push(Cable { number, broken: false, ends: [Terminal::new(left), Terminal::new(right)] });
        world.watch_silence(left, right);
        let half = |side| Half { shared: Arc::clone(&self.shared), end: End { link, side }, adopted: false };
        let link = |side| Link::of(Kind::Sim(half(side)), number);
        (link(0), link(1))
    }

    /// Virtual time.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        lock(&self.shared).timeline.now_ns()
    }

    /// When something happens next, unless somebody posts before.
    #[must_use]
    pub fn next_event_ns(&self) -> Option<u64> {
        lock(&self.shared).timeline.next_ns()
    }

    /// Lets everything happen that is due at `now_ns` or before, and sets the time. Time never goes back.
    pub fn advance_to(&self, now_ns: u64) {
        let mut world = lock(&self.shared);
        while let Some(happening) = world.timeline.step(now_ns) {
            world.happen(happening);
        }
    }

    /// Whether an endpoint of the host has something to report, or its waker was rung.
    #[must_use]
    pub fn has_events(&self, host: HostId) -> bool {
        lock(&self.shared).stations.iter().any(|station| station.host == host && station.has_events())
    }

    /// Sets the delay between two hosts, in both directions.
    pub fn set_delay(&self, left: HostId, right: HostId, delay_ns: Range<u64>) {
        lock(&self.shared).delays.insert(ordered(left, right), delay_ns);
    }

    /// What has happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        lock(&self.shared).counters
    }

    /// A hash of every event so far, its time included: equal for equal seeds and equal calls.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        lock(&self.shared).trace
    }
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let world = lock(&self.shared);
        write!(
            f,
            "sim::Network(at {} ns, {} links, {:?})",
            world.timeline.now_ns(),
            world.links.len(),
            world.counters
        )
    }
}

/// One end of one link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct End {
    pub(super) link: usize,
    pub(super) side: usize,
}

impl End {
    pub(super) fn other(self) -> Self {
        Self { side: 1 - self.side, ..self }
    }
}

/// Something that will happen at a time.
#[derive(Clone, Copy, Debug)]
pub(super) enum Happening {
    /// The first thing in flight from this end arrives at the other.
    Deliver(End),
    /// The first operation of this end that is not completed yet completes.
    Complete(End),
    /// This end notices that its link is broken.
    Notice(End, LostReason),
    /// The body that this end has placed is complete.
    Land(End, Arrival),
    /// The partition between two hosts that began then has lasted too long.
    Silence(HostId, HostId, u64),
}

/// A message on its way, or in the queue of its receiver.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) head: Head,
    pub(super) body: Body,
}

/// What flies.
#[derive(Debug)]
pub(super) enum Flying {
    Message(Message),
    Close,
}

/// A link.
pub(super) struct Cable {
    pub(super) number: u64,
    /// Nothing posted from now on arrives.
    pub(super) broken: bool,
    pub(super) ends: [Terminal; 2],
}

/// What is going on with the announced body of an end, of which there is at most one.
#[derive(Debug)]
pub(super) enum Placing {
    Nothing,
    Waiting(Arrival, Body),
    Landing(Arrival, Body, SliceMut),
    Placed(Arrival, SliceMut, Result<(), LostReason>),
}

/// One end: what it has sent and not heard of, what it has received and not reported.
pub(super) struct Terminal {
    pub(super) host: HostId,
    /// The endpoint, its name for this peer, and from which size on bodies are announced.
    pub(super) adopted: Option<(usize, Peer, Option<usize>)>,
    /// Sent from here, in order; each has a `Deliver` planned, or is held back.
    pub(super) flying: VecDeque<Flying>,
    /// Of `flying`, how many a partition holds back.
    pub(super) held_count: usize,
    pub(super) deliver_ns_last: u64,
    /// Posted and not completed; each has a `Complete` planned.
    pub(super) tokens: VecDeque<Token>,
    pub(super) complete_ns_last: u64,
    /// Completed and not reported.
    pub(super) completed: VecDeque<(Token, Result<(), LostReason>)>,
    /// Arrived and not reported.
    pub(super) arrived: VecDeque<Message>,
    pub(super) placing: Placing,
    /// This end has noticed the end of the link, or made it; nothing is sent or received any more.
    pub(super) ended: Option<LostReason>,
    /// Its endpoint has reported the loss, or is gone.
    pub(super) lost_reported: bool,
    pub(super) queued: bool,
}

impl Terminal {
    fn new(host: HostId) -> Self {
        Self {
            host,
            adopted: None,
            flying: VecDeque::new(),
            held_count: 0,
            deliver_ns_last: 0,
            tokens: VecDeque::new(),
            complete_ns_last: 0,
            completed: VecDeque::new(),
            arrived: VecDeque::new(),
            placing: Placing::Nothing,
            ended: None,
            lost_reported: false,
            queued: false,
        }
    }
}

/// Everything.
pub(super) struct World {
    pub(super) config: Config,
    pub(super) timeline: Timeline<Happening>,
    pub(super) chance: Chance,
    pub(super) links: Vec<Cable>,
    pub(super) stations: Vec<Station>,
    pub(super) delays: BTreeMap<(HostId, HostId), Range<u64>>,
    pub(super) slow: BTreeMap<HostId, u64>,
    /// Pairs that do not hear each other, and since when.
    pub(super) partitions: BTreeMap<(HostId, HostId), u64>,
    pub(super) counters: Counters,
    trace: u64,
}

impl World {
    fn new(seed: u64, config: Config) -> Self {
        Self {
            config,
            timeline: Timeline::new(),
            chance: Chance::new(seed),
            links: Vec::new(),
            stations: Vec::new(),
            delays: BTreeMap::new(),
            slow: BTreeMap::new(),
            partitions: BTreeMap::new(),
            counters: Counters::default(),
            trace: 0xcbf2_9ce4_8422_2325,
        }
    }

    pub(super) fn terminal(&mut self, end: End) -> &mut Terminal {
        &mut self.links[end.link].ends[end.side]
    }

    /// The hosts of a link, the sender's first.
    fn hosts(&self, from: End) -> (HostId, HostId) {
        let ends = &self.links[from.link].ends;
        (ends[from.side].host, ends[1 - from.side].host)
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Deliver(from) => self.deliver(from),
            Happening::Complete(end) => self.complete(end),
            Happening::Notice(end, reason) => self.notice(end, reason),
            Happening::Land(end, arrival) => self.land(end, arrival),
            Happening::Silence(left, right, since_ns) => self.silence(left, right, since_ns),
        }
    }

    /// Takes an operation of an end that has room.
    pub(super) fn send(&mut self, from: End, token: Token, message: Message) {
        let now_ns = self.timeline.now_ns();
        let slow = self.slow_factor(self.hosts(from).0);
        let complete_ns = now_ns + self.chance.within(&self.config.completion_ns.clone()) * slow;
        let terminal = self.terminal(from);
        terminal.tokens.push_back(token);
        terminal.complete_ns_last = terminal.complete_ns_last.max(complete_ns);
        let complete_ns = terminal.complete_ns_last;
        self.timeline.plan(complete_ns, Happening::Complete(from));
        self.fly(from, Flying::Message(message));
    }

    /// Puts something on its way.
    pub(super) fn fly(&mut self, from: End, thing: Flying) {
        if self.links[from.link].broken {
            self.counters.dropped += u64::from(matches!(thing, Flying::Message(_)));
            return;
        }
        self.terminal(from).flying.push_back(thing);
        self.plan_delivery(from);
    }

    /// Plans the arrival of one more thing, behind those before it.
    pub(super) fn plan_delivery(&mut self, from: End) {
        let (left, right) = self.hosts(from);
        let delay_ns = self.delays.get(&ordered(left, right)).unwrap_or(&self.config.delay_ns).clone();
        let factor = self.slow_factor(left) * self.slow_factor(right);
        let deliver_ns = self.timeline.now_ns() + self.chance.within(&delay_ns) * factor;
        let terminal = self.terminal(from);
        terminal.deliver_ns_last = terminal.deliver_ns_last.max(deliver_ns);
        let deliver_ns = terminal.deliver_ns_last;
        self.timeline.plan(deliver_ns, Happening::Deliver(from));
    }

    fn slow_factor(&self, host: HostId) -> u64 {
        self.slow.get(&host).copied().unwrap_or(1)
    }

    fn deliver(&mut self, from: End) {
        let (left, right) = self.hosts(from);
        let partitioned = self.partitions.contains_key(&ordered(left, right));
        let terminal = self.terminal(from);
        if partitioned {
            terminal.held_count = (terminal.held_count + 1).min(terminal.flying.len());
            return;
        }
        // Nothing there: a break has dropped it.
        let Some(thing) = terminal.flying.pop_front() else { return };
        self.note(1, from);
        let to = from.other();
        let receives = self.terminal(to).ended.is_none();
        match thing {
            Flying::Message(message) if receives => {
                self.counters.delivered += 1;
                let body = self.recut(message.body);
                self.terminal(to).arrived.push_back(Message { body, ..message });
                self.wake(to);
            }
            Flying::Message(_) => self.counters.dropped += 1,
            Flying::Close => self.end(to, LostReason::ClosedByPeer),
        }
    }

    /// Some bodies arrive in other pieces than they were sent in.
    fn recut(&mut self, body: Body) -> Body {
        let percent = self.config.recut_percent;
        if !self.chance.percent(percent) {
            return body;
        }
        let at = self.chance.cut(body.len());
        let parts = [body.cut(0..at), body.cut(at..body.len())];
        Body::of(parts.iter().flat_map(|part| part.slices().iter().cloned()))
    }

    fn complete(&mut self, end: End) {
        let terminal = self.terminal(end);
        // Nothing there: it was flushed.
        let Some(token) = terminal.tokens.pop_front() else { return };
        terminal.completed.push_back((token, Ok(())));
        self.note(2, end);
        self.wake(end);
    }

    fn notice(&mut self, end: End, reason: LostReason) {
        if self.terminal(end).ended.is_some() {
            return;
        }
        // A partition may still hold back what was to arrive; it is gone now.
        let lost = std::mem::take(&mut self.terminal(end.other()).flying);
        self.drop_flying(lost);
        // A body that is on its way to its place is cut off with all behind it, or arrives before the end.
        if !matches!(self.terminal(end).placing, Placing::Nothing) && self.chance.percent(50) {
            self.discard_arrived(end, reason);
        }
        self.note(3, end);
        self.end(end, reason);
    }

    fn land(&mut self, end: End, arrival: Arrival) {
        let terminal = self.terminal(end);
        if !matches!(&terminal.placing, Placing::Landing(landing, ..) if *landing == arrival) {
            return;
        }
        if let Placing::Landing(_, body, mut destination) =
            std::mem::replace(&mut terminal.placing, Placing::Nothing)
        {
            body.copy_to(destination.as_mut_bytes());
            terminal.placing = Placing::Placed(arrival, destination, Ok(()));
        }
        self.note(4, end);
        self.wake(end);
    }

    /// What was received and not reported is forgotten; a placed body that is not complete comes back as failed.
    pub(super) fn discard_arrived(&mut self, end: End, reason: LostReason) {
        let terminal = self.terminal(end);
        let count = terminal.arrived.len() as u64;
        terminal.arrived.clear();
        terminal.placing = match std::mem::replace(&mut terminal.placing, Placing::Nothing) {
            Placing::Nothing | Placing::Waiting(..) => Placing::Nothing,
            Placing::Landing(arrival, _, destination) => Placing::Placed(arrival, destination, Err(reason)),
            placed @ Placing::Placed(..) => placed,
        };
        self.counters.delivered -= count;
        self.counters.dropped += count;
    }

    /// This end is over: what it posted and was not completed is flushed, then its loss is reported.
    fn end(&mut self, end: End, reason: LostReason) {
        let terminal = self.terminal(end);
        if terminal.ended.is_some() {
            return;
        }
        terminal.ended = Some(reason);
        while let Some(token) = terminal.tokens.pop_front() {
            terminal.completed.push_back((token, Err(reason)));
        }
        self.note(5, end);
        self.wake(end);
    }

    /// This end gives up the link, in order: what it sent before still arrives, then the other hears of it.
    pub(super) fn close(&mut self, end: End, reason: LostReason) {
        if self.terminal(end).ended.is_some() {
            return;
        }
        self.discard_arrived(end, reason);
        self.fly(end, Flying::Close);
        self.end(end, reason);
    }

    /// Counts what will never arrive.
    pub(super) fn drop_flying(&mut self, things: impl IntoIterator<Item = Flying>) {
        let messages = things.into_iter().filter(|thing| matches!(thing, Flying::Message(_)));
        self.counters.dropped += messages.count() as u64;
    }

    /// Puts an end into the queue of its endpoint.
    pub(super) fn wake(&mut self, end: End) {
        let terminal = self.terminal(end);
        if let Some((station, ..)) = terminal.adopted
            && !terminal.queued
        {
            terminal.queued = true;
            self.stations[station].ready.push_back(end);
        }
    }

    /// Adds an event to the trace (FNV-1a over its numbers).
    pub(super) fn note(&mut self, kind: u64, end: End) {
        for word in [self.timeline.now_ns(), kind, end.link as u64, end.side as u64] {
            for byte in word.to_le_bytes() {
                self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }
}

/// A pair of hosts without direction.
pub(super) fn ordered(left: HostId, right: HostId) -> (HostId, HostId) {
    (left.min(right), left.max(right))
}
