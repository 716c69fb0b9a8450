//! One message to and fro between two threads that never sleep, over the memory backend.
//! `cargo run --release -p rangefold-transport --example memory_figures`; prints the mean one way.

use std::time::Instant;

use rangefold_transport::conformance::{head, number_of};
use rangefold_transport::memory::{Endpoint, pair};
use rangefold_transport::{Batch, Body, Endpoint as _, Event, Events, Link, Token};

const TRIPS: u64 = 1_000_000;

fn main() {
    let (left, right) = pair(1, 64);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| run(right, false));
        run(left, true);
    });
    let one_way_ns = begun.elapsed().as_nanos() / u128::from(TRIPS) / 2;
    println!("memory ping-pong, both awake: {one_way_ns} ns one way, mean of {TRIPS} trips");
}

/// Answers each message with the next one, `TRIPS` times; one side speaks first.
fn run(link: Link, first: bool) {
    let mut endpoint = Endpoint::new();
    let peer = endpoint.adopt(link).expect("the first link");
    let mut events = Events::with_limit(64);
    let mut batch = Batch::with_capacity(4);
    let mut arrived = 0;
    if first {
        batch.send(peer, Token(0), head(0, &Body::empty()), Body::empty());
    }
    while arrived < TRIPS {
        let _ = endpoint.post(&mut batch);
        endpoint.poll(&mut events);
        for event in events.drain() {
            if let Event::Arrived { head: received, .. } = event {
                assert_eq!(number_of(&received), arrived);
                arrived += 1;
                let next = if first { arrived } else { arrived - 1 };
                if next < TRIPS {
                    batch.send(peer, Token(0), head(next, &Body::empty()), Body::empty());
                }
            }
        }
        std::hint::spin_loop();
    }
    // The last answer; what is posted is delivered though the link ends.
    let _ = endpoint.post(&mut batch);
}
