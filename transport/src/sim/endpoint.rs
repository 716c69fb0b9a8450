//! The endpoint of a simulated host: what its links have for it, in turn.
//! Knows peers and their ends; moves nothing by itself, time does (`Network::advance_to`).

use std::collections::{BTreeMap, VecDeque};

use crate::caps::Capabilities;
use crate::endpoint::{Arrival, Batch, Event, Events, Operation, Peer, Token};
use crate::error::{AdoptError, AttachError, Full, LostReason, Violation};
use crate::link::{Kind, Link};
use crate::region::{Region, SliceMut};
use crate::sim::HostId;
use crate::sim::network::{Cable, End, Happening, Message, Placing, Shared, World, lock};
use crate::wait::{Armed, Sleep, Waker};

/// Events that one peer may report before the next one's turn: few, so that peers mix.
const QUOTA: usize = 4;
const FRAME_BYTES: u32 = 256 << 10;

/// The network's side of an endpoint.
pub(super) struct Station {
    pub(super) host: HostId,
    body_bytes_max: u32,
    /// Its host has crashed, or the endpoint was dropped.
    dead: bool,
    waker: Waker,
    peers: BTreeMap<Peer, End>,
    peer_count: u64,
    /// Why peers were lost, for what is posted to them afterwards.
    lost: BTreeMap<Peer, LostReason>,
    /// Completions of operations to peers that are gone.
    flushed: VecDeque<(Peer, Token, LostReason)>,
    /// Ends that may have something to report, each at most once, in turn.
    pub(super) ready: VecDeque<End>,
    arrival_count: u64,
    /// Bodies that were announced and not placed.
    arrivals: BTreeMap<u64, End>,
}

impl Station {
    pub(super) fn new(host: HostId, body_bytes_max: u32) -> Self {
        let waker = Waker::new();
        // Always armed, so that a ring leaves a mark for `Network::has_events`.
        waker.arm();
        Self {
            host,
            body_bytes_max,
            dead: false,
            waker,
            peers: BTreeMap::new(),
            peer_count: 0,
            lost: BTreeMap::new(),
            flushed: VecDeque::new(),
            ready: VecDeque::new(),
            arrival_count: 0,
            arrivals: BTreeMap::new(),
        }
    }

    pub(super) fn has_events(&self) -> bool {
        !self.dead && (!self.ready.is_empty() || !self.flushed.is_empty() || self.waker.is_rung())
    }

    pub(super) fn die(&mut self) {
        self.dead = true;
        self.peers.clear();
        self.arrivals.clear();
        self.flushed.clear();
        self.ready.clear();
    }
}

/// An endpoint of a simulated host.
pub struct Endpoint {
    shared: Shared,
    station: usize,
}

impl Endpoint {
    pub(super) fn new(shared: Shared, station: usize) -> Self {
        Self { shared, station }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let mut world = lock(&self.shared);
        let ends = std::mem::take(&mut world.stations[self.station].peers);
        for end in ends.into_values() {
            world.terminal(end).lost_reported = true;
            world.close(end, LostReason::ClosedHere);
            // It may have ended before, with something unread.
            world.discard_arrived(end, LostReason::ClosedHere);
        }
        world.stations[self.station].die();
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let world = lock(&self.shared);
        let station = &world.stations[self.station];
        write!(f, "sim::Endpoint({:?}, {} peers)", station.host, station.peers.len())
    }
}

impl crate::endpoint::Endpoint for Endpoint {
    fn capabilities(&self) -> Capabilities {
        let world = lock(&self.shared);
        Capabilities {
            name: "sim",
            operations_per_peer_max: world.config.depth,
            peers_max: world.config.peers_max,
            body_bytes_max: world.stations[self.station].body_bytes_max,
            frame_bytes: FRAME_BYTES,
            by_reference: true,
        }
    }

    fn attach(&mut self, _region: &Region) -> Result<(), AttachError> {
        Ok(())
    }

    fn adopt(&mut self, link: Link) -> Result<Peer, AdoptError> {
        let found = link.kind_name();
        let Link { place_from, kind: Kind::Sim(mut half), .. } = link else {
            return Err(AdoptError::OtherKind { expected: "sim", found });
        };
        let mut world = lock(&self.shared);
        let limit = world.config.peers_max;
        let station = &mut world.stations[self.station];
        if station.dead || station.peers.len() >= limit as usize {
            // Before the half closes its link, which locks.
            drop(world);
            return Err(AdoptError::TooManyPeers { limit });
        }
        half.adopted = true;
        let peer = Peer(station.peer_count);
        station.peer_count += 1;
        station.peers.insert(peer, half.end);
        // An empty body has nothing to place.
        let place_from = place_from.map(|bytes| bytes.max(1));
        world.terminal(half.end).adopted = Some((self.station, peer, place_from));
        world.wake(half.end);
        Ok(peer)
    }

    fn post(&mut self, batch: &mut Batch) -> Result<(), Full> {
        let mut world = lock(&self.shared);
        if world.stations[self.station].dead {
            batch.operations.clear();
            return Ok(());
        }
        let depth = world.config.depth as usize;
        // Each operation goes round once; those that stay end up in their old order.
        for _ in 0..batch.operations.len() {
            let Some(operation) = batch.operations.pop_front() else { break };
            let Operation { peer, token, .. } = operation;
            let station = &mut world.stations[self.station];
            let Some(end) = station.peers.get(&peer).copied() else {
                let reason = station.lost.get(&peer).copied().unwrap_or(LostReason::Broken);
                station.flushed.push_back((peer, token, reason));
                continue;
            };
            let terminal = world.terminal(end);
            if let Some(reason) = terminal.ended {
                terminal.completed.push_back((token, Err(reason)));
                world.wake(end);
            } else if terminal.tokens.len() + terminal.completed.len() >= depth {
                // Nothing is reported meanwhile, so later ones of this peer stay as well.
                batch.operations.push_back(operation);
            } else {
                world.send(end, token, Message { head: operation.head, body: operation.body });
            }
        }
        if batch.operations.is_empty() { Ok(()) } else { Err(Full) }
    }

    fn poll(&mut self, events: &mut Events) {
        let mut world = lock(&self.shared);
        let station = &mut world.stations[self.station];
        if station.dead {
            return;
        }
        station.waker.arm();
        while events.room() > 0
            && let Some((peer, token, reason)) = station.flushed.pop_front()
        {
            events.list.push(Event::Sent { peer, token, outcome: Err(reason) });
        }
        while events.room() > 0
            && let Some(end) = world.stations[self.station].ready.pop_front()
        {
            world.terminal(end).queued = false;
            let mut left = QUOTA.min(events.room());
            while left > 0
                && let Some(event) = world.next_event(end)
            {
                events.list.push(event);
                left -= 1;
            }
            if left == 0 {
                world.wake(end);
            }
        }
    }

    fn place(&mut self, arrival: Arrival, destination: Option<SliceMut>) {
        let mut world = lock(&self.shared);
        let Some(end) = world.stations[self.station].arrivals.remove(&arrival.0) else { return };
        let landing_ns = world.config.landing_ns.clone();
        let terminal = world.terminal(end);
        if !matches!(&terminal.placing, Placing::Waiting(waiting, _) if *waiting == arrival) {
            return;
        }
        let Placing::Waiting(_, body) = std::mem::replace(&mut terminal.placing, Placing::Nothing) else {
            return;
        };
        let Some(destination) = destination else {
            world.wake(end);
            return;
        };
        assert_eq!(body.len(), destination.len(), "a destination is exactly as long as its body");
        terminal.placing = Placing::Landing(arrival, body, destination);
        let land_ns = world.timeline.now_ns() + world.chance.within(&landing_ns);
        world.timeline.plan(land_ns, Happening::Land(end, arrival));
    }

    fn arm(&mut self) -> Armed {
        let world = lock(&self.shared);
        let station = &world.stations[self.station];
        if station.has_events() { Armed::Ready } else { Armed::Sleep(Sleep::Waker(station.waker.clone())) }
    }

    fn waker(&self) -> Waker {
        lock(&self.shared).stations[self.station].waker.clone()
    }

    fn close(&mut self, peer: Peer) {
        let mut world = lock(&self.shared);
        if let Some(end) = world.stations[self.station].peers.get(&peer).copied() {
            world.close(end, LostReason::ClosedHere);
        }
    }
}

impl World {
    /// The next thing an end has to report, in the order of the contract: completions, then what arrived, then the loss.
    fn next_event(&mut self, end: End) -> Option<Event> {
        let (station, peer, place_from) = self.terminal(end).adopted?;
        let terminal = self.terminal(end);
        if let Some((token, outcome)) = terminal.completed.pop_front() {
            return Some(Event::Sent { peer, token, outcome });
        }
        match std::mem::replace(&mut terminal.placing, Placing::Nothing) {
            Placing::Nothing => {}
            Placing::Placed(arrival, destination, outcome) => {
                return Some(Event::Placed { peer, arrival, destination, outcome });
            }
            waiting => {
                terminal.placing = waiting;
                return None;
            }
        }
        let Some(Message { head, body }) = terminal.arrived.pop_front() else { return self.next_loss(end) };
        let body_bytes = body.len();
        if body_bytes > self.stations[station].body_bytes_max as usize {
            self.close(end, LostReason::Violation(Violation::BodyTooLong));
            return self.next_event(end);
        }
        self.counters.delivered_late += u64::from(self.terminal(end.other()).lost_reported);
        if place_from.is_none_or(|from| body_bytes < from) {
            return Some(Event::Arrived { peer, head, body });
        }
        let station = &mut self.stations[station];
        station.arrival_count += 1;
        let arrival = Arrival(station.arrival_count);
        station.arrivals.insert(arrival.0, end);
        self.terminal(end).placing = Placing::Waiting(arrival, body);
        Some(Event::Announced { peer, arrival, head, body_bytes })
    }

    fn next_loss(&mut self, end: End) -> Option<Event> {
        let terminal = self.terminal(end);
        let reason = terminal.ended?;
        let (station, peer, _) = terminal.adopted.take()?;
        terminal.lost_reported = true;
        let station = &mut self.stations[station];
        station.peers.remove(&peer);
        station.lost.insert(peer, reason);
        station.arrivals.retain(|_, at| *at != end);
        Some(Event::Lost { peer, reason })
    }
}

impl Cable {
    /// Whether both ends still use it and nothing broke it.
    pub(super) fn is_alive(&self) -> bool {
        !self.broken && self.ends.iter().all(|end| end.ended.is_none())
    }
}
