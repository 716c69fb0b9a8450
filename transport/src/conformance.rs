//! What every backend must do, one function per promise of the crate's documentation.
//! Knows the trait only; a backend's tests bring a [`Fixture`] and call [`all`], or one promise by its name
//! ([`for_each_promise`](crate::for_each_promise)).
//! Source: the shape is arrow-rs-object-store's `integration.rs`.
//!
//! Each function panics when the promise is broken, saying what was expected and what came.

use std::collections::BTreeMap;

use crate::endpoint::{Batch, Body, Endpoint, Event, Events, HEAD_BYTES_MAX, HEADER_BYTES, Head, Token};
use crate::error::{Full, LostReason, Violation};
use crate::link::Link;

mod harness;
mod peers;
mod places;
mod sleep;

pub use harness::{FRAMING, head, number_of};
pub use peers::{closes_what_it_cannot_adopt, names_no_two_peers_alike};
pub use places::{
    announces_from_the_threshold, completes_while_a_body_waits, discards_what_is_not_wanted,
    gives_back_the_place_of_the_lost, ignores_places_of_the_lost, places_where_it_was_told,
    refuses_a_place_of_another_length,
};
pub use sleep::{
    rings_a_sleeper, sees_to_a_late_adoption, sees_to_a_late_close, sees_to_a_late_place,
    sleeps_again_after_a_ring, wakes_a_sleeper,
};

use harness::{STEPS_MAX, Side, Two, bytes_of, head_of, pattern};

/// How a backend makes endpoints and links for these tests. One fixture serves one promise.
pub trait Fixture {
    /// The backend.
    type Endpoint: Endpoint;

    /// An endpoint that takes bodies of at most `body_bytes_max` (`None`: the backend's own limit).
    fn endpoint(&mut self, body_bytes_max: Option<u32>) -> Self::Endpoint;

    /// Both ends of a new link, with as little depth as the backend can have, so that `Full` comes soon (at most 64).
    fn connect(&mut self) -> (Link, Link);

    /// Lets a little time pass, where polls alone do not move things.
    fn step(&mut self);
}

/// Hands the names of all promises to a macro: those that one thread can check on any endpoint, and those that take real time
/// (two threads, or a sleep). The one list; the crate's documentation has a line for each.
#[macro_export]
macro_rules! for_each_promise {
    ($hand_to:ident) => {
        $hand_to! {
            one_thread: [
                keeps_order,
                completes_every_token_once,
                completes_what_was_posted_to_the_lost,
                flushes_before_lost,
                full_ends_with_a_completion,
                a_full_peer_holds_up_nobody,
                reports_no_more_than_there_is_room_for,
                closing_loses_both_sides_once,
                delivers_what_was_sent_before_the_close,
                dropping_an_endpoint_closes,
                dropping_a_link_closes,
                closes_what_it_cannot_adopt,
                names_no_two_peers_alike,
                carries_heads_of_every_length,
                carries_empty_bodies,
                concatenates_slices,
                returns_the_memory_of_bodies,
                cuts_off_who_sends_too_much,
                announces_from_the_threshold,
                places_where_it_was_told,
                completes_while_a_body_waits,
                discards_what_is_not_wanted,
                ignores_places_of_the_lost,
                gives_back_the_place_of_the_lost,
                refuses_a_place_of_another_length,
            ],
            real_time: [
                wakes_a_sleeper,
                rings_a_sleeper,
                sleeps_again_after_a_ring,
                sees_to_a_late_adoption,
                sees_to_a_late_place,
                sees_to_a_late_close,
            ],
        }
    };
}

macro_rules! suite {
    (one_thread: [$($one:ident),* $(,)?], real_time: [$($real:ident),* $(,)?] $(,)?) => {
        /// The names of all promises.
        pub const PROMISES: &[&str] = &[$(stringify!($one),)* $(stringify!($real)),*];

        /// Checks every promise that one thread can check, each with a fixture of its own.
        pub fn all<F: Fixture>(mut make: impl FnMut() -> F) {
            $($one(make());)*
        }

        /// Checks the promises that take two threads or a sleep, for endpoints that real time moves.
        pub fn all_in_real_time<F: Fixture>(mut make: impl FnMut() -> F)
        where
            F::Endpoint: Send,
        {
            $($real(make());)*
        }
    };
}

for_each_promise!(suite);

/// Messages to one peer arrive in the order of posting, each once, over many batches and a full queue.
pub fn keeps_order<F: Fixture>(fixture: F) {
    let mut two = Two::new(fixture);
    let count = two.depth() * 5 + 3;
    let mut batch = Batch::default();
    for number in 0..count {
        let body = two.body(&number.to_le_bytes());
        batch.send(two.to_right, Token(number), head(number, &body), body);
    }
    two.until("all arrive", |two| {
        let _ = two.left.endpoint.post(&mut batch);
        two.right.arrived().len() as u64 >= count
    });
    two.settle();
    assert_eq!(two.right.arrived(), (0..count).collect::<Vec<_>>(), "in order, each once");
    for event in &two.right.seen {
        let Event::Arrived { peer, head, body } = event else { panic!("only arrivals, not {event:?}") };
        assert_eq!(*peer, two.to_left);
        assert_eq!(bytes_of(body), number_of(head).to_le_bytes(), "the body belongs to its head");
    }
}

/// Every token comes back once, in order, though both sides post all the time.
pub fn completes_every_token_once<F: Fixture>(fixture: F) {
    let mut two = Two::new(fixture);
    let count = two.depth() * 4 + 1;
    let (mut to_right, mut to_left) = (Batch::default(), Batch::default());
    for number in 0..count {
        to_right.send(two.to_right, Token(number), head(number, &Body::empty()), Body::empty());
        to_left.send(two.to_left, Token(count + number), head(number, &Body::empty()), Body::empty());
    }
    two.until("all complete", |two| {
        let _ = two.left.endpoint.post(&mut to_right);
        let _ = two.right.endpoint.post(&mut to_left);
        two.left.completions().len() as u64 >= count && two.right.completions().len() as u64 >= count
    });
    two.settle();
    let expected = |first: u64| (first..first + count).map(|token| (token, Ok(()))).collect::<Vec<_>>();
    assert_eq!(two.left.completions(), expected(0));
    assert_eq!(two.right.completions(), expected(count));
}

/// What is posted to a peer that is lost completes as flushed.
pub fn completes_what_was_posted_to_the_lost<F: Fixture>(fixture: F) {
    let mut two = Two::new(fixture);
    two.left.endpoint.close(two.to_right);
    // Not reported yet.
    two.left.send(two.to_right, 1, Body::empty());
    two.until("lost", |two| !two.left.losses().is_empty());
    two.left.send(two.to_right, 2, Body::empty());
    two.until("both complete", |two| two.left.completions().len() == 2);
    two.settle();
    assert_eq!(two.left.completions(), [1, 2].map(|token| (token, Err(LostReason::ClosedHere))));
    assert_eq!(two.right.arrived(), [0; 0]);
}

/// A lost peer's operations complete before its loss is reported, all of them, in order.
pub fn flushes_before_lost<F: Fixture>(fixture: F) {
    let mut two = Two::new(fixture);
    let count = two.depth();
    for number in 0..count {
        two.left.send(two.to_right, number, Body::empty());
    }
    two.left.endpoint.close(two.to_right);
    two.until("lost", |two| !two.left.losses().is_empty());
    two.settle();
    let tokens: Vec<u64> = two.left.completions().iter().map(|(token, _)| *token).collect();
    assert_eq!(tokens, (0..count).collect::<Vec<_>>(), "each once, in order");
    assert!(matches!(two.left.seen.last(), Some(Event::Lost { .. })), "the loss is the last event");
}

/// A close from either side is one loss on each, with who closed as the reason.
pub fn closing_loses_both_sides_once<F: Fixture>(fixture: F) {
    let mut two = Two::new(fixture);
    two.left.send(two.to_right, 1, Body::empty());
    two.right.send(two.to_left, 2, Body::empty());
    two.right.endpoint.close(two.to_left);
    two.right.endpoint.close(two.to_left);
    two.until("both lost", |two| !two.left.losses().is_empty() && !two.right.losses().is_empty());
    two.settle();
    assert_eq!(two.right.losses(), [LostReason::ClosedHere]);
    assert_eq!(two.left.losses(), [LostReason::ClosedByPeer]);
    for side in [&two.left, &two.right] {
        assert!(
            matches!(side.seen.last(), Some(Event::Lost { .. })),
            "the loss is the last event: {:?}",
            side.seen
        );
        assert_eq!(side.completions().len(), 1);
    }
}

/// What was sent before an orderly close arrives before the loss.
pub fn delivers_what_was_sent_before_the_close<F: Fixture>(fixture: F) {
    let mut two = Two::new(fixture);
    let count = two.depth();
    for number in 0..count {
        let body = two.body(&pattern(100));
        two.left.send(two.to_right, number, body);
    }
    two.left.endpoint.close(two.to_right);
    two.until("lost", |two| !two.right.losses().is_empty());
    assert_eq!(two.right.arrived(), (0..count).collect::<Vec<_>>());
    assert!(matches!(two.right.seen.last(), Some(Event::Lost { reason: LostReason::ClosedByPeer, .. })));
}

/// An endpoint that is dropped has closed its links.
pub fn dropping_an_endpoint_closes<F: Fixture>(mut fixture: F) {
    let (mut left, mut right) = (fixture.endpoint(None), Side::new(fixture.endpoint(None)));
    let (link_left, link_right) = fixture.connect();
    left.adopt(link_left).expect("an endpoint takes its first link");
    let _ = right.endpoint.adopt(link_right).expect("an endpoint takes its first link");
    drop(left);
    let seen = poll_until_lost(&mut fixture, &mut right);
    assert_eq!(seen, [LostReason::ClosedByPeer]);
}

/// A link that is dropped before it is adopted is closed, whether or not the other end was adopted before.
pub fn dropping_a_link_closes<F: Fixture>(mut fixture: F) {
    for adopted_before in [false, true] {
        let mut right = Side::new(fixture.endpoint(None));
        let (link_left, link_right) = fixture.connect();
        if adopted_before {
            let _ = right.endpoint.adopt(link_right).expect("an endpoint takes its first link");
            drop(link_left);
        } else {
            drop(link_left);
            let _ = right.endpoint.adopt(link_right).expect("an endpoint takes its first link");
        }
        assert_eq!(poll_until_lost(&mut fixture, &mut right), [LostReason::ClosedByPeer]);
    }
}

fn poll_until_lost<F: Fixture>(fixture: &mut F, side: &mut Side<F::Endpoint>) -> Vec<LostReason> {
    for _ in 0..STEPS_MAX {
        fixture.step();
        side.poll();
        if !side.losses().is_empty() {
            return side.losses();
        }
    }
    panic!("no loss within {STEPS_MAX} steps; saw {:?}", side.seen);
}

/// A queue takes as many operations as it says, refuses the next, and takes one more after each completion.
pub fn full_ends_with_a_completion<F: Fixture>(fixture: F) {
    let mut two = Two::new(fixture);
    let depth = two.depth();
    for number in 0..depth {
        two.left.send(two.to_right, number, Body::empty());
    }
    let mut batch = Batch::default();
    batch.send(two.to_right, Token(depth), head(depth, &Body::empty()), Body::empty());
    batch.send(two.to_right, Token(depth + 1), head(depth + 1, &Body::empty()), Body::empty());
    assert_eq!(two.left.endpoint.post(&mut batch), Err(Full));
    assert_eq!(batch.len(), 2, "what does not fit stays in the batch");
    two.until("a completion", |two| !two.left.completions().is_empty());
    let completed = two.left.completions().len();
    let _ = two.left.endpoint.post(&mut batch);
    assert_eq!(batch.len(), 2 - completed.min(2), "as much room as completions");
    two.until("all arrive", |two| {
        let _ = two.left.endpoint.post(&mut batch);
        two.right.arrived().len() as u64 == depth + 2
    });
    assert_eq!(two.right.arrived(), (0..depth + 2).collect::<Vec<_>>(), "order survives a full queue");
}

/// A peer without room keeps its operations in the batch, in order; those of others are taken.
pub fn a_full_peer_holds_up_nobody<F: Fixture>(mut fixture: F) {
    let mut hub = Side::new(fixture.endpoint(None));
    let mut far = [Side::new(fixture.endpoint(None)), Side::new(fixture.endpoint(None))];
    let peers = [0, 1].map(|index| {
        let (here, there) = fixture.connect();
        let _ = far[index].endpoint.adopt(there).expect("an endpoint takes its first link");
        hub.endpoint.adopt(here).expect("an endpoint takes a second link")
    });
    let depth = u64::from(hub.endpoint.capabilities().operations_per_peer_max);
    let mut batch = Batch::default();
    for number in 0..depth + 2 {
        batch.send(peers[0], Token(number), head(number, &Body::empty()), Body::empty());
    }
    batch.send(peers[1], Token(1_000), head(1_000, &Body::empty()), Body::empty());
    assert_eq!(hub.endpoint.post(&mut batch), Err(Full));
    assert_eq!(batch.len(), 2, "the two without room stay, the one of the other peer is taken");
    for _ in 0..STEPS_MAX {
        let _ = hub.endpoint.post(&mut batch);
        fixture.step();
        hub.poll();
        far.iter_mut().for_each(Side::poll);
        if hub.completions().len() as u64 == depth + 3 {
            break;
        }
    }
    for _ in 0..1_000 {
        fixture.step();
        far.iter_mut().for_each(Side::poll);
    }
    assert_eq!(far[0].arrived(), (0..depth + 2).collect::<Vec<_>>());
    assert_eq!(far[1].arrived(), [1_000]);
}

/// A head arrives as it was, whatever its legal length.
pub fn carries_heads_of_every_length<F: Fixture>(fixture: F) {
    assert!(Head::new(&pattern(HEADER_BYTES - 1)).is_none());
    assert!(Head::new(&pattern(HEAD_BYTES_MAX + 1)).is_none());
    let mut two = Two::new(fixture);
    let mut batch = Batch::default();
    let lengths = HEADER_BYTES..=HEAD_BYTES_MAX;
    for len in lengths.clone() {
        let head = head_of(len as u64, &Body::empty(), &pattern(len));
        batch.send(two.to_right, Token(len as u64), head, Body::empty());
    }
    two.until("all arrive", |two| {
        let _ = two.left.endpoint.post(&mut batch);
        two.right.arrived().len() == lengths.clone().count()
    });
    for (len, event) in lengths.zip(&two.right.seen) {
        let Event::Arrived { head, .. } = event else { panic!("an arrival, not {event:?}") };
        assert_eq!(head.as_bytes(), head_of(len as u64, &Body::empty(), &pattern(len)).as_bytes());
    }
}

/// A message without a body is a message, on a link that announces bodies too.
pub fn carries_empty_bodies<F: Fixture>(fixture: F) {
    let mut two = Two::with(fixture, None, |link| link.place_from(0));
    two.left.send(two.to_right, 1, Body::empty());
    two.until("arrives", |two| !two.right.arrived().is_empty());
    let [Event::Arrived { body, .. }] = two.right.seen.as_slice() else {
        panic!("one arrival: {:?}", two.right.seen)
    };
    assert!(body.is_empty());
}

/// Of a body of many slices the concatenation arrives.
pub fn concatenates_slices<F: Fixture>(fixture: F) {
    let mut two = Two::new(fixture);
    let bytes = pattern(3_000);
    for cuts in [vec![], vec![1, 1, 2], vec![64, 128, 1_024], (0..3_000).step_by(37).collect()] {
        let ends = cuts.iter().copied().chain([bytes.len()]);
        let starts = [0].into_iter().chain(cuts.iter().copied());
        let parts = starts.zip(ends).map(|(start, end)| two.body(&bytes[start..end])).collect::<Vec<_>>();
        let whole = Body::of(parts.iter().flat_map(|part| part.slices().iter().cloned()));
        two.left.send(two.to_right, 1, whole);
        two.until("arrives", |two| two.right.body().is_some() && !two.left.completions().is_empty());
        assert_eq!(two.right.body().as_ref(), Some(&bytes), "cut at {cuts:?}");
        two.right.seen.clear();
        two.left.seen.clear();
    }
}

/// A body of exactly the receiver's limit arrives; of one longer the receiver cuts the sender off, and nobody else.
pub fn cuts_off_who_sends_too_much<F: Fixture>(fixture: F) {
    let mut two = Two::with(fixture, Some(1_000), |link| link);
    assert_eq!(two.right.endpoint.capabilities().body_bytes_max, 1_000);
    let (fits, too_long) = (two.body(&pattern(1_000)), two.body(&pattern(1_001)));
    two.left.send(two.to_right, 1, fits);
    two.left.send(two.to_right, 2, too_long);
    two.until("both lost", |two| !two.left.losses().is_empty() && !two.right.losses().is_empty());
    two.settle();
    assert_eq!(two.right.arrived(), [1], "the one that fits");
    assert_eq!(two.right.losses(), [LostReason::Violation(Violation::BodyTooLong)]);
    assert_eq!(two.left.completions().len(), 2);
    assert_eq!(two.left.losses().len(), 1);
}

/// When the receiver has dropped a body and the sender's token is complete, the memory is the sender's again.
pub fn returns_the_memory_of_bodies<F: Fixture>(fixture: F) {
    let mut two = Two::new(fixture);
    let count = two.depth().min(8);
    for number in 0..count {
        let body = two.body(&pattern(1_000));
        two.left.send(two.to_right, number, body);
    }
    let completed = |two: &mut Two<F>| two.left.completions().len() as u64 == count;
    two.until("all come and complete", |two| completed(two) && two.right.arrived().len() as u64 == count);
    two.right.seen.clear();
    two.arena.collect();
    assert_eq!(two.arena.used_bytes(), 0);
}

/// A poll reports at most as much as `Events` has room for, and the rest later.
pub fn reports_no_more_than_there_is_room_for<F: Fixture>(fixture: F) {
    let mut two = Two::new(fixture);
    let count = two.depth();
    for number in 0..count {
        two.left.send(two.to_right, number, Body::empty());
    }
    two.left.endpoint.close(two.to_right);
    let mut events = Events::with_limit(1);
    let mut kinds = BTreeMap::new();
    for _ in 0..STEPS_MAX {
        two.fixture.step();
        for endpoint in [&mut two.left.endpoint, &mut two.right.endpoint] {
            endpoint.poll(&mut events);
            assert!(events.list.len() <= 1);
            for event in events.drain() {
                let kind = match event {
                    Event::Sent { .. } => "sent",
                    Event::Arrived { .. } => "arrived",
                    Event::Lost { .. } => "lost",
                    other => panic!("nothing is placed here: {other:?}"),
                };
                *kinds.entry(kind).or_insert(0) += 1;
            }
        }
        if kinds.get("lost") == Some(&2) {
            break;
        }
    }
    assert_eq!(kinds, BTreeMap::from([("arrived", count), ("lost", 2), ("sent", count)]));
}
