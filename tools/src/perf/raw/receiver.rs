//! The side that receives frames: takes them, looks at those that ask for it, acknowledges.
//! Knows one link; not why frames are sent. Run on a thread of its own for each link, by `server.rs` and `client.rs`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rangefold_transport::wait::Loop;
use rangefold_transport::{Body, Endpoint, Event, Head, Link, Shell, Slice, Turn};

use super::{Message, Port};
use crate::perf::pattern;
use crate::perf::stop::LOOK;

/// Acknowledgements that wait to be sent, at most: more than a sender may have under way. A peer that asks and does not
/// read is cut off.
const ACKNOWLEDGEMENTS_MAX: usize = 8192;
/// A link on which nothing arrives for so long is given up.
const IDLE: Duration = Duration::from_secs(600);

/// The receiving end of a link.
struct Receiver<E: Endpoint> {
    port: Port<E>,
    /// Frames received: the next one's number.
    received: u64,
    /// Bytes that were wrong, and frames that were not the next one.
    wrong: u64,
    /// What a body must be: of this seed.
    expected: Vec<u8>,
    seed: u64,
    arrived_ns: u64,
    ended: bool,
}

/// Receives until the peer closes, breaks the rules, is silent for long, or `stop` is raised.
pub(in super::super) fn receive<E: Endpoint>(endpoint: E, link: Link, mut turns: Loop, stop: &AtomicBool) {
    // A link that cannot be adopted is closed by that, and the other side hears of it.
    let Ok(port) = Port::new(endpoint, link) else { return };
    let clock = turns.clock();
    let mut receiver = Receiver {
        port,
        received: 0,
        wrong: 0,
        expected: Vec::new(),
        seed: 0,
        arrived_ns: clock.now_ns(),
        ended: false,
    };
    let look_ns = nanoseconds(LOOK);
    // Relaxed: a flag and nothing behind it.
    while !receiver.ended && !stop.load(Ordering::Relaxed) {
        let now_ns = clock.now_ns();
        if now_ns.saturating_sub(receiver.arrived_ns) > nanoseconds(IDLE) {
            return;
        }
        turns.run(&mut receiver, |receiver| receiver.ended, Some(now_ns.saturating_add(look_ns)));
    }
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl<E: Endpoint> Receiver<E> {
    fn arrived(&mut self, head: &Head, body: &Body) {
        let acknowledge = match self.port.read(head, body) {
            Some(Message::Frame { number, seed, acknowledge, check }) => {
                if number != self.received {
                    self.wrong += 1;
                }
                self.received = number.wrapping_add(1);
                if check {
                    self.look_at(body, seed);
                }
                acknowledge
            }
            Some(Message::Question) => true,
            Some(Message::Acknowledgement { .. }) | None => {
                self.port.endpoint.close(self.port.peer);
                false
            }
        };
        if acknowledge {
            let (received, wrong) = (self.received, self.wrong);
            self.port.send(Message::Acknowledgement { received, wrong }, Body::empty());
        }
    }

    /// Compares a body with what it must be. The transport has bounded its length.
    fn look_at(&mut self, body: &Body, seed: u64) {
        if self.seed != seed || self.expected.len() < body.len() {
            self.expected = vec![0; body.len()];
            pattern::fill(&mut self.expected, seed);
            self.seed = seed;
        }
        let parts = body.slices().iter().map(Slice::as_bytes);
        self.wrong += pattern::wrong_bytes(parts, &self.expected[..body.len()]);
    }
}

impl<E: Endpoint> Shell for Receiver<E> {
    type Endpoint = E;

    fn turn(&mut self, now_ns: u64) -> Turn {
        let mut events = std::mem::replace(&mut self.port.events, rangefold_transport::Events::with_limit(1));
        self.port.endpoint.poll(&mut events);
        let mut progressed = !events.is_empty();
        if progressed {
            self.arrived_ns = now_ns;
        }
        for event in events.drain() {
            match event {
                Event::Arrived { head, body, .. } => self.arrived(&head, &body),
                Event::Lost { .. } => self.ended = true,
                // This link did not ask to place bodies.
                Event::Announced { arrival, .. } => self.port.endpoint.place(arrival, None),
                Event::Sent { .. } | Event::Placed { .. } => {}
            }
        }
        self.port.events = events;
        progressed |= self.port.post();
        if self.port.batch.len() > ACKNOWLEDGEMENTS_MAX {
            self.port.endpoint.close(self.port.peer);
        }
        Turn { progressed, deadline: None }
    }

    fn endpoint(&mut self) -> &mut E {
        &mut self.port.endpoint
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rangefold_transport::wait::Clock;
    use rangefold_transport::{Events, LostReason, Region, memory};

    use super::*;

    /// A peer that speaks by hand to a receiver on another thread.
    struct Peer {
        port: Port<memory::Endpoint>,
        thread: std::thread::JoinHandle<()>,
    }

    impl Peer {
        fn new() -> Self {
            let (left, right) = memory::pair(1, 64);
            let thread = std::thread::spawn(move || {
                receive(memory::Endpoint::new(), right, Loop::new(Clock::new(), 1), &Arc::default());
            });
            Self { port: Port::new(memory::Endpoint::new(), left).unwrap(), thread }
        }

        fn frame(&mut self, number: u64, body: &[u8]) {
            let (_, mut slice) = Region::anonymous(body.len()).unwrap();
            slice.as_mut_bytes().copy_from_slice(body);
            let frame = Message::Frame { number, seed: 5, acknowledge: true, check: true };
            self.port.send(frame, slice.freeze().into());
            self.port.post();
        }

        /// The next acknowledgement, or why there will be none.
        fn hear(&mut self) -> Result<Message, LostReason> {
            let begun = std::time::Instant::now();
            let mut events = Events::with_limit(1);
            while begun.elapsed() < Duration::from_secs(20) {
                self.port.endpoint.poll(&mut events);
                for event in events.drain() {
                    match event {
                        Event::Arrived { head, body, .. } => {
                            return Ok(self.port.read(&head, &body).unwrap());
                        }
                        Event::Lost { reason, .. } => return Err(reason),
                        _ => {}
                    }
                }
                std::thread::yield_now();
            }
            panic!("heard nothing");
        }
    }

    fn body(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        pattern::fill(&mut bytes, 5);
        bytes
    }

    #[test]
    fn damaged_and_missing_frames_are_counted() {
        let mut peer = Peer::new();
        peer.frame(0, &body(100));
        assert_eq!(peer.hear(), Ok(Message::Acknowledgement { received: 1, wrong: 0 }));
        let mut damaged = body(5000);
        (damaged[0], damaged[4999]) = (!damaged[0], !damaged[4999]);
        peer.frame(1, &damaged);
        assert_eq!(peer.hear(), Ok(Message::Acknowledgement { received: 2, wrong: 2 }));
        peer.frame(3, &body(8));
        assert_eq!(
            peer.hear(),
            Ok(Message::Acknowledgement { received: 4, wrong: 3 }),
            "number 2 is missing"
        );
        peer.port.endpoint.close(peer.port.peer);
        peer.thread.join().unwrap();
    }

    #[test]
    fn a_peer_that_breaks_the_rules_is_cut_off() {
        let mut peer = Peer::new();
        peer.port.send(Message::Acknowledgement { received: 1, wrong: 0 }, Body::empty());
        peer.port.post();
        assert!(peer.hear().is_err());
        peer.thread.join().unwrap();
    }
}
