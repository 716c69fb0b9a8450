//! What is promised of bodies that wait until they are told where to go.
//! Knows the trait and a fixture. Source: `Event::Announced`, `Endpoint::place`.

use super::Fixture;
use super::harness::{Two, pattern};
use crate::endpoint::{Body, Endpoint, Event};

/// Bodies of `place_from` bytes and more are announced, shorter ones arrive.
pub fn announces_from_the_threshold<F: Fixture>(fixture: F) {
    let mut two = Two::with(fixture, None, |link| link.place_from(1_000));
    for (number, len) in [(1, 999), (2, 1_000), (3, 1_001)] {
        let body = two.body(&pattern(len));
        two.left.send(two.to_right, number, body);
    }
    let mut answered = Vec::new();
    two.until("all come", |two| {
        // Each is answered as it comes; the next one waits for that.
        for event in &two.right.seen {
            if let Event::Announced { arrival, body_bytes, .. } = event
                && !answered.contains(body_bytes)
            {
                answered.push(*body_bytes);
                two.right.endpoint.place(*arrival, None);
            }
        }
        two.right.arrived().len() == 3
    });
    assert_eq!(two.right.arrived(), [1, 2, 3], "announcements keep their place in the order");
    assert!(matches!(two.right.seen[0], Event::Arrived { .. }));
    assert!(matches!(two.right.seen[1], Event::Announced { body_bytes: 1_000, .. }));
    assert!(matches!(two.right.seen[2], Event::Announced { body_bytes: 1_001, .. }));
}

/// An announced body lands in the memory given to `place`, which comes back; later messages wait and then arrive.
pub fn places_where_it_was_told<F: Fixture>(fixture: F) {
    let mut two = Two::with(fixture, None, |link| link.place_from(1));
    let bytes = pattern(5_000);
    let parts = [two.body(&bytes[..1_234]), two.body(&bytes[1_234..])];
    let body = Body::of(parts.iter().flat_map(|part| part.slices().iter().cloned()));
    two.left.send(two.to_right, 1, body);
    two.left.send(two.to_right, 2, Body::empty());
    two.until("announced", |two| two.right.announced().is_some());
    two.settle();
    assert_eq!(two.right.arrived(), [1], "what comes later waits");
    let Some((arrival, body_bytes)) = two.right.announced() else { panic!("announced") };
    let mut destination = two.arena.take(body_bytes).expect("the tests use little memory");
    destination.as_mut_bytes().fill(0);
    let address = destination.as_bytes().as_ptr();
    two.right.endpoint.place(arrival, Some(destination));
    let mut placed = None;
    two.until("placed", |two| {
        placed = placed.take().or_else(|| two.right.take_placed());
        placed.is_some() && two.right.arrived().len() == 2
    });
    let Some((destination, outcome)) = placed else { panic!("placed") };
    assert_eq!(outcome, Ok(()));
    assert_eq!(destination.as_bytes(), bytes);
    assert_eq!(destination.as_bytes().as_ptr(), address, "the same memory comes back");
    two.until("both complete", |two| two.left.completions().len() == 2);
}

/// `place` of nothing discards the body; what follows arrives.
pub fn discards_what_is_not_wanted<F: Fixture>(fixture: F) {
    let mut two = Two::with(fixture, None, |link| link.place_from(100));
    let body = two.body(&pattern(500));
    two.left.send(two.to_right, 1, body);
    two.left.send(two.to_right, 2, Body::empty());
    two.until("announced", |two| two.right.announced().is_some());
    let Some((arrival, _)) = two.right.announced() else { panic!("announced") };
    two.right.endpoint.place(arrival, None);
    two.until("the next arrives", |two| two.right.arrived().len() == 2 && two.left.completions().len() == 2);
    two.settle();
    assert!(two.right.take_placed().is_none(), "nothing more of a discarded body");
    two.right.seen.clear();
    two.arena.collect();
    assert_eq!(two.arena.used_bytes(), 0, "its memory is back");
}

/// `place` after the peer was lost does nothing and keeps nothing.
pub fn ignores_places_of_the_lost<F: Fixture>(fixture: F) {
    let mut two = Two::with(fixture, None, |link| link.place_from(1));
    let body = two.body(&pattern(64));
    two.left.send(two.to_right, 1, body);
    two.until("announced", |two| two.right.announced().is_some());
    let Some((arrival, body_bytes)) = two.right.announced() else { panic!("announced") };
    two.right.endpoint.close(two.to_left);
    two.until("lost", |two| !two.right.losses().is_empty() && !two.left.losses().is_empty());
    let destination = two.arena.take(body_bytes).expect("the tests use little memory");
    two.right.endpoint.place(arrival, Some(destination));
    two.settle();
    assert!(two.right.take_placed().is_none());
    assert!(matches!(two.right.seen.last(), Some(Event::Lost { .. })), "the loss stays the last event");
    two.right.seen.clear();
    two.arena.collect();
    assert_eq!(two.arena.used_bytes(), 0, "body and destination are back");
}

/// While an announced body waits, what this side sends goes on: its operations complete, and the other side has them.
pub fn completes_while_a_body_waits<F: Fixture>(fixture: F) {
    let mut two = Two::with(fixture, None, |link| link.place_from(1));
    let body = two.body(&pattern(5_000));
    two.left.send(two.to_right, 1, body);
    two.until("announced", |two| two.right.announced().is_some());
    for token in 2..20 {
        two.right.send(two.to_left, token, Body::empty());
        two.until("completes", |two| two.right.completions().len() as u64 == token - 1);
    }
    two.until("all arrive", |two| two.left.arrived().len() == 18);
    let Some((arrival, _)) = two.right.announced() else { panic!("announced") };
    two.right.endpoint.place(arrival, None);
    two.until("its sender's token is complete", |two| two.left.completions().len() == 1);
}

/// Memory given to `place` comes back once, before the loss, when the peer is closed before the body is complete.
pub fn gives_back_the_place_of_the_lost<F: Fixture>(fixture: F) {
    let mut two = Two::with(fixture, None, |link| link.place_from(1));
    let body = two.body(&pattern(5_000));
    two.left.send(two.to_right, 1, body);
    two.until("announced", |two| two.right.announced().is_some());
    let Some((arrival, body_bytes)) = two.right.announced() else { panic!("announced") };
    let destination = two.arena.take(body_bytes).expect("the tests use little memory");
    let address = destination.as_bytes().as_ptr();
    two.right.endpoint.place(arrival, Some(destination));
    two.right.endpoint.close(two.to_left);
    two.until("lost", |two| !two.right.losses().is_empty() && !two.left.losses().is_empty());
    two.settle();
    assert!(matches!(two.right.seen.last(), Some(Event::Lost { .. })), "the loss is the last event");
    // Complete or not: the peer's end and the body's may come at the same time.
    let (destination, _) = two.right.take_placed().expect("it comes back");
    assert_eq!(destination.as_bytes().as_ptr(), address, "the same memory");
    assert!(two.right.take_placed().is_none(), "once");
}

/// A destination of another length than the body's is a mistake of the caller: `place` panics and writes nothing.
pub fn refuses_a_place_of_another_length<F: Fixture>(fixture: F) {
    let mut two = Two::with(fixture, None, |link| link.place_from(1));
    let body = two.body(&pattern(1_000));
    two.left.send(two.to_right, 1, body);
    two.until("announced", |two| two.right.announced().is_some());
    let Some((arrival, body_bytes)) = two.right.announced() else { panic!("announced") };
    let destination = two.arena.take(body_bytes - 1).expect("the tests use little memory");
    let place = std::panic::AssertUnwindSafe(|| two.right.endpoint.place(arrival, Some(destination)));
    let placed = std::panic::catch_unwind(place);
    assert!(placed.is_err(), "a destination of {} bytes for a body of {body_bytes}", body_bytes - 1);
}
