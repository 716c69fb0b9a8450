//! Loom models of two endpoints: adoption at any time, sleep, completion, the end. A lost wake-up is a deadlock, which
//! loom reports.

use loom::model::Builder;
use loom::thread;

use crate::endpoint::{Batch, Body, Endpoint as _, Event, Events, HEADER_BYTES, Head, Peer, Token};
use crate::memory::{Endpoint, pair};
use crate::wait::{Clock, Ended, Loop, Shell, Turn};

/// The models are too large to be explored without a bound on the switches a scheduler would not have to make.
fn model(check: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(check);
}

struct Polled {
    endpoint: Endpoint,
    seen: Vec<Event>,
    events: Events,
}

impl Polled {
    fn new() -> Self {
        Self { endpoint: Endpoint::new(), seen: Vec::new(), events: Events::with_limit(8) }
    }

    /// Runs the loop that ships until so many events were seen.
    fn run_until_seen(&mut self, count: usize) {
        let ended =
            Loop::new(Clock::new(), 1).with_spin_ns(0).run(self, |polled| polled.seen.len() >= count, None);
        assert_eq!(ended, Ended::Until);
    }
}

impl Shell for Polled {
    type Endpoint = Endpoint;

    fn turn(&mut self, _now_ns: u64) -> Turn {
        self.endpoint.poll(&mut self.events);
        let progressed = !self.events.is_empty();
        self.seen.extend(self.events.drain());
        Turn { progressed, deadline: None }
    }

    fn endpoint(&mut self) -> &mut Endpoint {
        &mut self.endpoint
    }
}

fn send(endpoint: &mut Endpoint, peer: Peer, token: u64) {
    let mut batch = Batch::default();
    let head = Head::new(&[0; HEADER_BYTES]).expect("a header is a legal head");
    batch.send(peer, Token(token), head, Body::empty());
    endpoint.post(&mut batch).expect("room for one");
}

/// One side adopts and sends while the other adopts and sleeps: it is woken, or finds the message.
#[test]
fn loom_late_adopter_misses_nothing() {
    model(|| {
        let (left, right) = pair(1, 1);
        let sender = thread::spawn(move || {
            let mut sender = Polled::new();
            let peer = sender.endpoint.adopt(left).expect("the first link");
            send(&mut sender.endpoint, peer, 1);
            sender
        });
        let mut receiver = Polled::new();
        let _ = receiver.endpoint.adopt(right).expect("the first link");
        receiver.run_until_seen(1);
        assert!(matches!(receiver.seen[0], Event::Arrived { .. }));
        drop(sender.join().expect("the sender does not fail"));
    });
}

/// The sender sleeps for its completion.
#[test]
fn loom_completion_wakes_the_sender() {
    model(|| {
        let (left, right) = pair(1, 1);
        let (mut sender, mut receiver) = (Polled::new(), Polled::new());
        let peer = sender.endpoint.adopt(left).expect("the first link");
        let _ = receiver.endpoint.adopt(right).expect("the first link");
        send(&mut sender.endpoint, peer, 1);
        let other = thread::spawn(move || {
            receiver.turn(0);
            assert!(matches!(receiver.seen[..], [Event::Arrived { .. }]));
            receiver
        });
        sender.run_until_seen(1);
        assert!(matches!(sender.seen[0], Event::Sent { outcome: Ok(()), .. }));
        drop(other.join().expect("the receiver does not fail"));
    });
}

/// Two messages, each with its own wake-up, then the end: the sleeper sees all three, in this order.
#[test]
fn loom_end_comes_after_what_was_sent() {
    model(|| {
        let (left, right) = pair(1, 2);
        let (mut sender, mut receiver) = (Polled::new(), Polled::new());
        let peer = sender.endpoint.adopt(left).expect("the first link");
        let _ = receiver.endpoint.adopt(right).expect("the first link");
        let other = thread::spawn(move || {
            send(&mut sender.endpoint, peer, 1);
            send(&mut sender.endpoint, peer, 2);
            drop(sender);
        });
        receiver.run_until_seen(3);
        assert!(matches!(
            receiver.seen[..],
            [Event::Arrived { .. }, Event::Arrived { .. }, Event::Lost { .. }]
        ));
        other.join().expect("the sender does not fail");
    });
}

/// A half that is dropped before it is adopted ends the link, whenever the other side adopts.
#[test]
fn loom_dropped_half_is_noticed() {
    model(|| {
        let (left, right) = pair(1, 1);
        let other = thread::spawn(move || drop(left));
        let mut receiver = Polled::new();
        let _ = receiver.endpoint.adopt(right).expect("the first link");
        receiver.run_until_seen(1);
        assert!(matches!(receiver.seen[..], [Event::Lost { .. }]));
        other.join().expect("nothing fails");
    });
}
