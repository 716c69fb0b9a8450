//! Load with checked contents, for any backend: two threads, several links, bodies of all sizes in several slices, held and dropped
//! in any order. Knows the trait only. Called by the tests of the backends.

use std::collections::VecDeque;

use rangefold_transport::conformance::{head, number_of};
use rangefold_transport::wait::{Clock, Ended, Loop};
use rangefold_transport::{
    Arena, Arrival, Batch, Body, Endpoint, Event, Events, Link, Peer, Shell, Token, Turn,
};

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ mixed >> 31) % limit as u64).expect("64 bits")
    }

    fn body_bytes(&mut self) -> usize {
        let limit = match self.below(100) {
            0..30 => 65,
            30..60 => 2_000,
            60..80 => 70_000,
            80..96 => 600_000,
            _ => (4 << 20) + 1,
        };
        self.below(limit)
    }
}

/// What byte `index` of message `number` is: differs between neighbours and between messages.
fn byte(number: u64, index: usize) -> u8 {
    let mixed = (number.wrapping_mul(0x9e37) ^ (index as u64).wrapping_mul(0x0101_0003)).to_le_bytes();
    mixed[0] ^ mixed[2]
}

fn assert_content(number: u64, mut from: usize, bytes: &[u8]) {
    let wrong = bytes.iter().enumerate().find(|(index, found)| byte(number, from + index) != **found);
    if let Some((index, found)) = wrong {
        from += index;
        panic!("message {number}, byte {from}: {found} instead of {}", byte(number, from));
    }
}

/// One side of the load: sends `count` messages to each peer and expects as many from each.
struct Loaded<E> {
    endpoint: E,
    peers: Vec<Peer>,
    events: Events,
    batch: Batch,
    chance: Chance,
    sending: Arena,
    placing: Arena,
    /// Per peer: messages made, completed, received.
    made: Vec<u64>,
    completed: Vec<u64>,
    received: Vec<u64>,
    /// The head of an announced message, per peer.
    announced: Vec<u64>,
    /// An announcement that finds no memory yet.
    unplaced: VecDeque<(Arrival, usize)>,
    held: Vec<Body>,
    count: u64,
}

impl<E: Endpoint> Loaded<E> {
    fn new(endpoint: E, seed: u64, count: u64) -> Self {
        Self {
            endpoint,
            peers: Vec::new(),
            events: Events::with_limit(16),
            batch: Batch::default(),
            chance: Chance(seed),
            sending: Arena::new(32 << 20),
            placing: Arena::new(32 << 20),
            made: Vec::new(),
            completed: Vec::new(),
            received: Vec::new(),
            announced: Vec::new(),
            unplaced: VecDeque::new(),
            held: Vec::new(),
            count,
        }
    }

    fn adopt(&mut self, link: Link) {
        self.peers.push(self.endpoint.adopt(link).expect("room for peers"));
        self.made.push(0);
        self.completed.push(0);
        self.received.push(0);
        self.announced.push(0);
    }

    fn make(&mut self) {
        for index in 0..self.peers.len() {
            while self.made[index] < self.count && self.batch.len() < 32 {
                let len = self.chance.below(2) * self.chance.body_bytes();
                let Some(mut slice) = self.sending.take(len) else { return };
                let number = self.made[index];
                for (at, byte_at) in slice.as_mut_bytes().iter_mut().enumerate() {
                    *byte_at = byte(number, at);
                }
                let mut slice = slice.freeze();
                let mut parts = Vec::new();
                // Some bodies in several slices.
                while self.chance.below(3) == 0 && slice.len() > 1 {
                    let at = self.chance.below(slice.len());
                    parts.push(slice.cut(0..at));
                    slice = slice.cut(at..slice.len());
                }
                parts.push(slice);
                let body = Body::of(parts);
                self.batch.send(self.peers[index], Token(number), head(number, &body), body);
                self.made[index] += 1;
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let index = |peer: Peer| self.peers.iter().position(|known| *known == peer).expect("a known peer");
        match event {
            Event::Sent { peer, token, outcome } => {
                let index = index(peer);
                assert_eq!((token.0, outcome), (self.completed[index], Ok(())));
                self.completed[index] += 1;
            }
            Event::Arrived { peer, head, body } => {
                let index = index(peer);
                let number = number_of(&head);
                assert_eq!(number, self.received[index], "in order");
                let mut from = 0;
                for slice in body.slices() {
                    assert_content(number, from, slice.as_bytes());
                    from += slice.len();
                }
                self.received[index] += 1;
                if self.chance.below(3) == 0 {
                    self.held.push(body);
                }
            }
            Event::Announced { peer, arrival, head, body_bytes } => {
                let index = index(peer);
                assert_eq!(number_of(&head), self.received[index], "in order");
                self.announced[index] = number_of(&head);
                self.unplaced.push_back((arrival, body_bytes));
            }
            Event::Placed { peer, destination, outcome, .. } => {
                assert_eq!(outcome, Ok(()));
                let index = index(peer);
                assert_content(self.announced[index], 0, destination.as_bytes());
                self.received[index] += 1;
            }
            Event::Lost { reason, .. } => panic!("lost: {reason}"),
        }
    }

    fn is_done(&self) -> bool {
        let all = |counts: &[u64]| counts.iter().all(|count| *count == self.count);
        all(&self.completed) && all(&self.received)
    }
}

impl<E: Endpoint> Shell for Loaded<E> {
    type Endpoint = E;

    fn turn(&mut self, _now_ns: u64) -> Turn {
        self.endpoint.poll(&mut self.events);
        let events: Vec<_> = self.events.drain().collect();
        let progressed = !events.is_empty();
        events.into_iter().for_each(|event| self.handle(event));
        // What is held is dropped late and in any order, but never kept for ever.
        while !self.held.is_empty() && (!progressed || self.chance.below(4) == 0) {
            let index = self.chance.below(self.held.len());
            drop(self.held.swap_remove(index));
        }
        while let Some((arrival, body_bytes)) = self.unplaced.pop_front() {
            let Some(destination) = self.placing.take(body_bytes) else {
                self.unplaced.push_front((arrival, body_bytes));
                break;
            };
            self.endpoint.place(arrival, Some(destination));
        }
        self.make();
        let before = self.batch.len();
        let _ = self.endpoint.post(&mut self.batch);
        Turn { progressed: progressed || self.batch.len() < before, deadline: None }
    }

    fn endpoint(&mut self) -> &mut E {
        &mut self.endpoint
    }
}

fn run<E: Endpoint>(side: &mut Loaded<E>, others_done: &std::sync::atomic::AtomicUsize, spin_ns: u64) {
    use std::sync::atomic::Ordering::Relaxed;
    let clock = Clock::new();
    let mut driver = Loop::new(clock, 2).with_spin_ns(spin_ns);
    let done = |side: &mut Loaded<E>| side.is_done();
    assert_eq!(driver.run(side, done, Some(60_000_000_000)), Ended::Until, "{:?}", progress(side));
    others_done.fetch_add(1, Relaxed);
    // The other side may need this one to go on reading and to say so.
    while others_done.load(Relaxed) < 2 {
        side.turn(0);
        std::thread::yield_now();
    }
}

fn progress<E>(side: &Loaded<E>) -> (&[u64], &[u64], &[u64], usize) {
    (&side.made, &side.completed, &side.received, side.held.len())
}

/// Two threads, `links` connections between them, `count` messages each way on each.
pub(crate) fn load<E: Endpoint + Send>(
    [left, right]: [E; 2],
    links: impl IntoIterator<Item = (Link, Link)>,
    count: u64,
    seed: u64,
    spin_ns: u64,
    place_from: Option<usize>,
) {
    let (mut left, mut right) = (Loaded::new(left, seed, count), Loaded::new(right, seed + 1, count));
    for (one, other) in links {
        left.adopt(one);
        right.adopt(match place_from {
            Some(bytes) => other.place_from(bytes),
            None => other,
        });
    }
    let done = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let done = &done;
        let other = scope.spawn(move || run(&mut right, done, spin_ns));
        run(&mut left, done, spin_ns);
        other.join().expect("the other side checks too");
    });
}
