//! What only this backend promises: fairness, many peers, adoption at any time, one memory for both sides.

use super::*;
use crate::arena::Arena;
use crate::endpoint::{Batch, Endpoint as _, Event, Events, HEADER_BYTES, Peer, Token};
use crate::primitive::wakes;

fn head() -> Head {
    Head::new(&[7; HEADER_BYTES]).expect("a header is a legal head")
}

fn send(endpoint: &mut Endpoint, peer: Peer, count: u64) {
    let mut batch = Batch::default();
    for token in 0..count {
        batch.send(peer, Token(token), head(), Body::empty());
    }
    endpoint.post(&mut batch).expect("room");
}

#[test]
fn a_side_may_be_adopted_after_messages_came() {
    let (left, right) = pair(1, 8);
    let (mut sender, mut receiver) = (Endpoint::new(), Endpoint::new());
    let peer = sender.adopt(left).expect("the first link");
    send(&mut sender, peer, 3);
    let mut events = Events::with_limit(8);
    let _ = receiver.adopt(right).expect("the first link");
    receiver.poll(&mut events);
    assert_eq!(events.drain().count(), 3);
}

#[test]
fn bodies_arrive_in_the_memory_they_were_sent_from() {
    let (left, right) = pair(1, 8);
    let (mut sender, mut receiver) = (Endpoint::new(), Endpoint::new());
    let peer = sender.adopt(left).expect("the first link");
    let _ = receiver.adopt(right).expect("the first link");
    let slice = Arena::new(1 << 16).take(100).expect("within the budget").freeze();
    let address = slice.as_bytes().as_ptr();
    let mut batch = Batch::default();
    batch.send(peer, Token(1), head(), slice.into());
    sender.post(&mut batch).expect("room");
    let mut events = Events::with_limit(8);
    receiver.poll(&mut events);
    let Some(Event::Arrived { body, .. }) = events.drain().next() else { panic!("an arrival") };
    assert_eq!(body.slices()[0].as_bytes().as_ptr(), address);
}

#[test]
fn a_thousand_peers_take_turns() {
    let count = if cfg!(miri) { 70 } else { 1_000 };
    let mut hub = Endpoint::new();
    let mut far: Vec<_> = (0..count)
        .map(|number| {
            let (here, there) = pair(number, 64);
            let mut endpoint = Endpoint::new();
            let to_hub = endpoint.adopt(there).expect("the first link");
            let peer = hub.adopt(here).expect("room for a thousand");
            (endpoint, to_hub, peer)
        })
        .collect();
    for (endpoint, to_hub, _) in &mut far {
        send(endpoint, *to_hub, 40);
    }
    // Each peer is heard once before any is heard the second time.
    let mut events = Events::with_limit(32);
    let mut order = Vec::new();
    for _ in 0..count * 2 {
        hub.poll(&mut events);
        for event in events.drain() {
            let Event::Arrived { peer, .. } = event else { panic!("an arrival, not {event:?}") };
            if order.last() != Some(&peer) {
                order.push(peer);
            }
        }
    }
    let peers: Vec<Peer> = far.iter().map(|(_, _, peer)| *peer).collect();
    assert_eq!(order[..peers.len()], peers);
    assert_eq!(order[peers.len()..], peers, "the rest of each in the second round");
}

#[test]
fn there_are_as_many_peers_as_the_limit_says() {
    let mut hub = Endpoint::with_limits(Limits { peers_max: 2, ..Limits::default() });
    let mut far = Endpoint::new();
    for number in 0..2 {
        let (here, there) = pair(number, 1);
        let _ = far.adopt(there).expect("room");
        let _ = hub.adopt(here).expect("room for two");
    }
    let (here, there) = pair(2, 1);
    let refused = far.adopt(there).expect("room");
    assert_eq!(hub.adopt(here), Err(crate::AdoptError::TooManyPeers { limit: 2 }));
    let mut events = Events::with_limit(8);
    far.poll(&mut events);
    assert!(
        matches!(events.drain().next(), Some(Event::Lost { peer, .. }) if peer == refused),
        "the other hears of it"
    );
}

#[test]
fn a_name_is_not_used_again() {
    let mut hub = Endpoint::new();
    let mut names = Vec::new();
    let mut events = Events::with_limit(8);
    for number in 0..10 {
        let (here, there) = pair(number, 1);
        names.push(hub.adopt(here).expect("room"));
        drop(there);
        hub.poll(&mut events);
        assert_eq!(events.drain().count(), 1, "lost");
    }
    names.dedup();
    assert_eq!(names.len(), 10);
    assert!(names.iter().all(|peer| peer.0 & 0xffff == 0), "the slot is: {names:?}");
}

#[test]
fn a_link_of_another_kind_is_refused_and_closed() {
    let network = crate::sim::Network::new(1, crate::sim::Config::default());
    let (here, there) = network.connect(crate::sim::HostId(0), crate::sim::HostId(1));
    let mut memory = Endpoint::new();
    let refusal = memory.adopt(here);
    assert_eq!(refusal, Err(crate::AdoptError::OtherKind { expected: "memory", found: "sim" }));
    let mut simulated = network.endpoint(crate::sim::HostId(1));
    let _ = simulated.adopt(there).expect("the first link");
    network.advance_to(1_000_000_000);
    let mut events = Events::with_limit(8);
    simulated.poll(&mut events);
    assert!(matches!(events.drain().next(), Some(Event::Lost { .. })));
}

#[test]
fn a_batch_wakes_a_sleeper_once() {
    let (left, right) = pair(1, 64);
    let (mut sender, mut receiver) = (Endpoint::new(), Endpoint::new());
    let peer = sender.adopt(left).expect("the first link");
    let _ = receiver.adopt(right).expect("the first link");
    receiver.poll(&mut Events::with_limit(8));
    assert!(matches!(receiver.arm(), crate::Armed::Sleep(_)));
    let before = wakes::of_this_thread();
    send(&mut sender, peer, 30);
    send(&mut sender, peer, 30);
    assert_eq!(wakes::of_this_thread() - before, 1);
    assert!(matches!(receiver.arm(), crate::Armed::Ready));
}
