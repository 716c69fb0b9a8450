//! The simulated network: what it keeps through faults, and that a seed decides everything.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::endpoint::{Batch, Body, Endpoint as _, Event, Events, HEADER_BYTES, Head, Peer, Token};
use crate::error::LostReason;
use crate::sim::chance::Chance;

fn head(link: u64, number: u64) -> Head {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&link.to_le_bytes());
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    Head::new(&bytes).expect("a header is a legal head")
}

fn read(head: &Head) -> (u64, u64) {
    let word = |at: usize| u64::from_le_bytes(head.as_bytes()[at..at + 8].try_into().expect("8 bytes"));
    (word(0), word(8))
}

/// One side of one link, as a harness knows it.
#[derive(Default)]
struct Account {
    link: u64,
    posted: u64,
    arrived: u64,
    open_tokens: BTreeSet<u64>,
    losses: Vec<LostReason>,
}

/// A host with its endpoint and the accounts of its peers.
struct Host {
    id: HostId,
    endpoint: Endpoint,
    accounts: BTreeMap<Peer, Account>,
}

/// Hosts that talk at random, and a record of what must hold.
struct Cluster {
    network: Network,
    chance: Chance,
    hosts: Vec<Host>,
    full_count: u64,
}

impl Cluster {
    fn new(seed: u64, host_count: u32) -> Self {
        let network = Network::new(seed, Config { silent_after_ns: Some(100_000), ..Config::default() });
        let host = |id| Host { id, endpoint: network.endpoint(id), accounts: BTreeMap::new() };
        let hosts = (0..host_count).map(|id| host(HostId(id))).collect();
        Self { network, chance: Chance::new(!seed), hosts, full_count: 0 }
    }

    fn draw(&mut self, end: usize) -> usize {
        self.chance.cut(end - 1)
    }

    fn connect(&mut self, left: usize, right: usize) {
        let (link_left, link_right) = self.network.connect(self.hosts[left].id, self.hosts[right].id);
        for (index, link) in [(left, link_left), (right, link_right)] {
            let number = link.number();
            let peer = self.hosts[index].endpoint.adopt(link).expect("room");
            self.hosts[index].accounts.insert(peer, Account { link: number, ..Account::default() });
        }
    }

    fn post(&mut self, index: usize) {
        let count = self.chance.below(6);
        let Host { endpoint, accounts, .. } = &mut self.hosts[index];
        let mut batch = Batch::default();
        for (peer, account) in accounts.iter_mut().filter(|(_, account)| account.losses.is_empty()) {
            for _ in 0..count {
                batch.send(*peer, Token(account.posted), head(account.link, account.posted), Body::empty());
                account.posted += 1;
            }
            account.open_tokens.extend(account.posted - count..account.posted);
        }
        self.full_count += u64::from(endpoint.post(&mut batch).is_err());
        // What did not fit was never posted.
        for operation in batch.operations.drain(..) {
            let account = accounts.get_mut(&operation.peer).expect("posted above");
            assert!(account.open_tokens.remove(&operation.token.0));
            account.posted -= 1;
        }
    }

    fn poll(&mut self, index: usize) {
        let Host { endpoint, accounts, .. } = &mut self.hosts[index];
        let mut events = Events::with_limit(10);
        endpoint.poll(&mut events);
        for event in events.drain() {
            let (Event::Sent { peer, .. } | Event::Arrived { peer, .. } | Event::Lost { peer, .. }) = event
            else {
                panic!("nothing is placed here: {event:?}")
            };
            let account = accounts.get_mut(&peer).expect("a peer we know");
            assert_eq!(account.losses, [], "nothing after the loss: {event:?}");
            match event {
                Event::Sent { token, .. } => assert!(account.open_tokens.remove(&token.0), "{token:?} twice"),
                Event::Arrived { head, .. } => {
                    assert_eq!(
                        read(&head),
                        (account.link, account.arrived),
                        "in order, without a gap, on its own link"
                    );
                    account.arrived += 1;
                }
                Event::Lost { reason, .. } => {
                    assert!(account.open_tokens.is_empty(), "flushed before the loss");
                    account.losses.push(reason);
                }
                _ => {}
            }
        }
    }

    fn run(&mut self, step_count: usize, faults: bool) {
        for _ in 0..step_count {
            let (left, right) = (self.draw(self.hosts.len()), self.draw(self.hosts.len()));
            let ids = (self.hosts[left].id, self.hosts[right].id);
            match self.chance.below(100) {
                0..40 => self.post(left),
                40..80 => self.poll(left),
                80..88 => {
                    let next_ns = self.network.next_event_ns().unwrap_or(0);
                    self.network.advance_to(next_ns + self.chance.below(20_000));
                }
                88..92 if left != right => self.connect(left, right),
                _ if !faults => {}
                92 => {
                    let links = self.network.links();
                    if !links.is_empty() {
                        let index = self.draw(links.len());
                        assert!(self.network.break_link(links[index].0));
                    }
                }
                93 => self.network.partition(ids.0, ids.1),
                94 | 95 => self.network.heal(ids.0, ids.1),
                96 => {
                    let factor = self.draw(20) + 1;
                    self.network.slow(ids.0, u32::try_from(factor).expect("small"));
                }
                97 => {
                    let peer = self.hosts[left].accounts.keys().next_back().copied();
                    if let Some(peer) = peer {
                        self.hosts[left].endpoint.close(peer);
                    }
                }
                98 => {
                    self.network.crash(ids.0);
                    self.hosts[left].endpoint = self.network.endpoint(ids.0);
                    self.hosts[left].accounts.clear();
                }
                _ => {}
            }
        }
    }

    /// Ends all partitions and lets everything come to rest.
    fn settle(&mut self) {
        for left in 0..self.hosts.len() {
            for right in 0..self.hosts.len() {
                self.network.heal(self.hosts[left].id, self.hosts[right].id);
            }
        }
        loop {
            if let Some(next_ns) = self.network.next_event_ns() {
                self.network.advance_to(next_ns);
            } else if !self.hosts.iter().any(|host| self.network.has_events(host.id)) {
                break;
            }
            (0..self.hosts.len()).for_each(|index| self.poll(index));
        }
        for account in self.hosts.iter().flat_map(|host| host.accounts.values()) {
            assert!(account.open_tokens.is_empty(), "every token came back");
        }
    }

    /// Posted and arrived per link, for pairs both of whose ends are still known.
    fn pairs(&self) -> Vec<[&Account; 2]> {
        let mut by_link: BTreeMap<u64, Vec<&Account>> = BTreeMap::new();
        for account in self.hosts.iter().flat_map(|host| host.accounts.values()) {
            by_link.entry(account.link).or_default().push(account);
        }
        by_link.into_values().filter_map(|ends| ends.try_into().ok()).collect()
    }
}

#[test]
fn a_quiet_network_loses_nothing() {
    for seed in 0..30 {
        let mut cluster = Cluster::new(seed, 4);
        cluster.run(600, false);
        cluster.settle();
        for [left, right] in cluster.pairs() {
            assert_eq!((left.arrived, right.arrived), (right.posted, left.posted), "seed {seed}");
        }
        assert_eq!(cluster.network.counters().dropped, 0);
        assert!(cluster.full_count > 0, "queues of this depth fill");
    }
}

#[test]
fn faults_leave_prefixes_and_one_loss_a_side() {
    let mut sum = Counters::default();
    let mut reasons = BTreeSet::new();
    for seed in 0..200 {
        let mut cluster = Cluster::new(seed, 5);
        cluster.run(800, true);
        cluster.settle();
        let counters = cluster.network.counters();
        sum.broken += counters.broken;
        sum.dropped += counters.dropped;
        sum.delivered_late += counters.delivered_late;
        for [left, right] in cluster.pairs() {
            // That arrivals are in order and without gaps was asserted one by one.
            assert!(left.arrived <= right.posted && right.arrived <= left.posted, "seed {seed}");
            assert_eq!(left.losses.len(), right.losses.len(), "seed {seed}: both or neither");
            if left.losses.is_empty() {
                assert_eq!(
                    (left.arrived, right.arrived),
                    (right.posted, left.posted),
                    "seed {seed}: alive, so all"
                );
            }
            reasons.extend(left.losses.iter().map(ToString::to_string));
        }
    }
    assert!(sum.broken > 0 && sum.dropped > 0, "{sum:?}");
    assert!(sum.delivered_late > 0, "late messages of lost links happen: {sum:?}");
    assert_eq!(reasons.len(), 4, "closed here and there, broken, silent: {reasons:?}");
}

#[test]
fn a_seed_decides_everything() {
    let run = |seed| {
        let mut cluster = Cluster::new(seed, 5);
        cluster.run(1_000, true);
        cluster.settle();
        (cluster.network.trace_hash(), cluster.network.counters(), cluster.network.now_ns())
    };
    let first: Vec<_> = (0..20).map(run).collect();
    let second: Vec<_> = (0..20).map(run).collect();
    assert_eq!(first, second);
    let hashes: BTreeSet<u64> = first.iter().map(|(hash, ..)| *hash).collect();
    assert_eq!(hashes.len(), 20, "other seeds, other runs");
}

/// Two hosts, one link, `count` messages from the first to the second, posted at time 0.
fn two(config: Config, count: u64) -> (Network, [Endpoint; 2], [Peer; 2], u64) {
    let network = Network::new(7, Config { depth: 64, ..config });
    let mut ends = [network.endpoint(HostId(0)), network.endpoint(HostId(1))];
    let (left, right) = network.connect(HostId(0), HostId(1));
    let number = left.number();
    let peers = [ends[0].adopt(left).expect("room"), ends[1].adopt(right).expect("room")];
    let mut batch = Batch::default();
    for token in 0..count {
        batch.send(peers[0], Token(token), head(number, token), Body::empty());
    }
    ends[0].post(&mut batch).expect("room");
    (network, ends, peers, number)
}

fn drain(endpoint: &mut Endpoint) -> Vec<Event> {
    let mut events = Events::with_limit(1_000);
    endpoint.poll(&mut events);
    events.drain().collect()
}

const SECOND_NS: u64 = 1_000_000_000;

#[test]
fn a_partition_holds_back_and_heals() {
    let (network, mut ends, ..) = two(Config::default(), 10);
    network.partition(HostId(1), HostId(0));
    assert!(network.is_partitioned(HostId(0), HostId(1)));
    network.advance_to(SECOND_NS);
    assert_eq!(drain(&mut ends[1]).len(), 0, "nothing arrives");
    assert_eq!(drain(&mut ends[0]).len(), 10, "the sender's buffers took it all");
    network.heal(HostId(0), HostId(1));
    network.advance_to(2 * SECOND_NS);
    assert_eq!(drain(&mut ends[1]).len(), 10);
}

#[test]
fn a_long_partition_is_silence() {
    let (network, mut ends, ..) = two(Config { silent_after_ns: Some(SECOND_NS), ..Config::default() }, 1);
    network.partition(HostId(0), HostId(1));
    network.advance_to(3 * SECOND_NS);
    let silent = |event: &Event| matches!(event, Event::Lost { reason: LostReason::Silent, .. });
    assert!(drain(&mut ends[0]).last().is_some_and(silent));
    let [only] = &drain(&mut ends[1])[..] else { panic!("one event") };
    assert!(silent(only));
}

#[test]
fn a_crashed_host_is_silent_and_missed() {
    let (network, mut ends, peers, number) = two(Config::default(), 10);
    network.crash(HostId(0));
    let mut batch = Batch::default();
    batch.send(peers[0], Token(99), head(number, 99), Body::empty());
    ends[0].post(&mut batch).expect("a dead endpoint swallows all");
    network.advance_to(SECOND_NS);
    assert_eq!(drain(&mut ends[0]).len(), 0);
    assert!(!network.has_events(HostId(0)));
    let seen = drain(&mut ends[1]);
    assert!(matches!(seen.last(), Some(Event::Lost { reason: LostReason::Broken, .. })), "{seen:?}");
    assert!(seen.len() <= 11);
    assert_eq!(network.links(), []);
}

#[test]
fn a_slow_host_is_slow() {
    let config = Config { delay_ns: 1_000..1_001, ..Config::default() };
    let (network, mut ends, peers, number) = two(config, 0);
    network.slow(HostId(1), 1_000);
    let mut batch = Batch::default();
    batch.send(peers[0], Token(0), head(number, 0), Body::empty());
    ends[0].post(&mut batch).expect("room");
    network.advance_to(999_999);
    assert_eq!(drain(&mut ends[1]).len(), 0);
    network.advance_to(1_000_000);
    assert_eq!(drain(&mut ends[1]).len(), 1);
}

#[test]
fn a_ring_is_an_event() {
    let (network, mut ends, ..) = two(Config::default(), 0);
    drain(&mut ends[1]);
    assert!(!network.has_events(HostId(1)));
    ends[1].waker().ring();
    assert!(network.has_events(HostId(1)));
    drain(&mut ends[1]);
    assert!(!network.has_events(HostId(1)));
}

#[test]
fn a_body_that_is_landing_when_the_link_breaks_comes_back() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..50 {
        let config = Config { notice_ns: 0..100_000, landing_ns: 0..100_000, ..Config::default() };
        let network = Network::new(seed, config);
        let (mut left, mut right) = (network.endpoint(HostId(0)), network.endpoint(HostId(1)));
        let (link_left, link_right) = network.connect(HostId(0), HostId(1));
        let number = link_left.number();
        let peer = left.adopt(link_left).expect("room");
        let _ = right.adopt(link_right.place_from(1)).expect("room");
        let mut arena = crate::Arena::new(1 << 20);
        let mut batch = Batch::default();
        batch.send(peer, Token(0), head(number, 0), arena.take(100).expect("room").freeze().into());
        left.post(&mut batch).expect("room");
        network.advance_to(SECOND_NS);
        let Some(Event::Announced { arrival, .. }) = drain(&mut right).pop() else { panic!("announced") };
        assert!(network.break_link(number));
        right.place(arrival, arena.take(100));
        network.advance_to(2 * SECOND_NS);
        let seen = drain(&mut right);
        let [Event::Placed { outcome, .. }, Event::Lost { .. }] = &seen[..] else { panic!("{seen:?}") };
        outcomes.insert(outcome.is_ok());
    }
    assert_eq!(outcomes.len(), 2, "some complete, some cut off");
}
