//! The two TCP backends beyond the conformance suite, over real loopback sockets: load with checked contents and little
//! memory, peers that stop reading, die, or talk nonsense.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rangefold_transport::conformance::{FRAMING, head, number_of};
use rangefold_transport::stream::Limits;
use rangefold_transport::wait::{Clock, Ended, Loop};
use rangefold_transport::{
    Arena, Batch, Body, Endpoint, Event, Events, Link, LostReason, Peer, Shell, Token, Turn, Violation,
    socket, uring,
};

mod load;

/// How a test makes endpoints of one backend.
trait Backend {
    type Endpoint: Endpoint + Send;

    fn endpoint(limits: Limits) -> Self::Endpoint;
    /// As little memory as the backend can work with.
    fn tiny(limits: Limits) -> Self::Endpoint;
}

struct Socket;

impl Backend for Socket {
    type Endpoint = socket::Endpoint;

    fn endpoint(limits: Limits) -> socket::Endpoint {
        socket::Endpoint::new(FRAMING, limits).expect("descriptors")
    }

    fn tiny(limits: Limits) -> socket::Endpoint {
        Self::endpoint(Limits { receive_bytes: 0, ..limits })
    }
}

struct Uring;

impl Backend for Uring {
    type Endpoint = uring::Endpoint;

    fn endpoint(limits: Limits) -> uring::Endpoint {
        let options = uring::Options { limits, ..uring::Options::default() };
        uring::Endpoint::new(FRAMING, options).expect("io_uring is permitted here")
    }

    fn tiny(limits: Limits) -> uring::Endpoint {
        let limits = Limits { receive_bytes: 0, ..limits };
        let options =
            uring::Options { limits, buffer_count: 4, buffer_bytes: 4096, ..uring::Options::default() };
        uring::Endpoint::new(FRAMING, options).expect("io_uring is permitted here")
    }
}

/// More buffers than the kernel fills at a stretch, and small ones.
struct UringSmallBuffers;

impl Backend for UringSmallBuffers {
    type Endpoint = uring::Endpoint;

    fn endpoint(limits: Limits) -> uring::Endpoint {
        Self::tiny(limits)
    }

    fn tiny(limits: Limits) -> uring::Endpoint {
        let limits = Limits { receive_bytes: 0, ..limits };
        let options =
            uring::Options { limits, buffer_count: 64, buffer_bytes: 4096, ..uring::Options::default() };
        uring::Endpoint::new(FRAMING, options).expect("io_uring is permitted here")
    }
}

#[test]
fn kept_bodies_stop_their_sender_with_small_buffers() {
    kept_bodies_stop_their_sender::<UringSmallBuffers>();
}

#[test]
fn mixed_load_with_small_buffers() {
    mixed_load_in_tiny_memory::<UringSmallBuffers>();
}

fn streams() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let left = TcpStream::connect(listener.local_addr().expect("bound")).expect("listening");
    let (right, _) = listener.accept().expect("connected");
    (left, right)
}

fn link(stream: TcpStream) -> Link {
    Link::tcp(stream, 7).expect("connected")
}

fn limits() -> Limits {
    Limits { peers_max: 16, body_bytes_max: 4 << 20, operations_per_peer_max: 64, receive_bytes: 32 << 20 }
}

/// Load over `count_links` connections.
fn load<B: Backend>(
    make: fn(Limits) -> B::Endpoint,
    count_links: usize,
    count: u64,
    seed: u64,
    spin_ns: u64,
    place_from: Option<usize>,
) {
    let links = (0..count_links).map(|_| {
        let (one, other) = streams();
        (link(one), link(other))
    });
    load::load([make(limits()), make(limits())], links, count, seed, spin_ns, place_from);
}

fn mixed_load<B: Backend>() {
    for (seed, spin_ns) in [(1, 0), (2, 50_000)] {
        load::<B>(B::endpoint, 1, 300, seed, spin_ns, None);
        load::<B>(B::endpoint, 3, 100, seed + 10, spin_ns, None);
    }
}

fn mixed_load_with_places<B: Backend>() {
    for (seed, from) in [(3, 1), (4, 16 << 10)] {
        load::<B>(B::endpoint, 2, 150, seed, 0, Some(from));
    }
}

fn mixed_load_in_tiny_memory<B: Backend>() {
    for (seed, place_from) in [(5, None), (6, Some(64 << 10)), (7, None)] {
        load::<B>(B::tiny, 4, 80, seed, 0, place_from);
    }
}

/// An endpoint on its own, driven until something holds.
struct Alone<E> {
    endpoint: E,
    seen: Vec<Event>,
    events: Events,
    others: Vec<TcpStream>,
}

impl<E: Endpoint> Alone<E> {
    fn new(endpoint: E) -> Self {
        Self { endpoint, seen: Vec::new(), events: Events::with_limit(16), others: Vec::new() }
    }

    /// With a few more peers that say nothing: few and many peers are looked at in different ways.
    fn among_others(mut self) -> Self {
        for _ in 0..3 {
            let (here, there) = streams();
            self.endpoint.adopt(link(here)).expect("room");
            self.others.push(there);
        }
        self
    }

    fn poll(&mut self) {
        self.endpoint.poll(&mut self.events);
        self.seen.extend(self.events.drain());
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done(self) {
            assert!(Instant::now() < deadline, "{what}: not in time; saw {:?}", self.seen);
            self.poll();
        }
    }

    fn losses(&self) -> Vec<(Peer, LostReason)> {
        let loss = |event: &Event| match event {
            Event::Lost { peer, reason } => Some((*peer, *reason)),
            _ => None,
        };
        self.seen.iter().filter_map(loss).collect()
    }

    fn completions(&self, of: Peer) -> Vec<Result<(), LostReason>> {
        let completion = |event: &Event| match event {
            Event::Sent { peer, outcome, .. } if *peer == of => Some(*outcome),
            _ => None,
        };
        self.seen.iter().filter_map(completion).collect()
    }
}

fn body_of(arena: &mut Arena, len: usize) -> Body {
    arena.take(len).expect("enough memory").freeze().into()
}

/// The bytes of a message.
fn frame(number: u64, len: usize) -> Vec<u8> {
    let mut arena = Arena::new(8 << 20);
    let body = body_of(&mut arena, len);
    let mut bytes = head(number, &body).as_bytes().to_vec();
    bytes.extend(std::iter::repeat_n(0, len));
    bytes
}

/// A peer that takes nothing: its queue fills, its operations stay in the batch, others go on.
fn a_peer_that_stops_reading_holds_up_nobody<B: Backend>() {
    let mut hub = Alone::new(B::endpoint(limits()));
    let (here, stuck) = streams();
    let stuck_peer = hub.endpoint.adopt(link(here)).expect("room");
    let (here, mut good) = streams();
    let good_peer = hub.endpoint.adopt(link(here)).expect("room");
    let mut arena = Arena::new(256 << 20);
    let body = body_of(&mut arena, 1 << 20);
    let mut batch = Batch::default();
    for number in 0..200 {
        batch.send(stuck_peer, Token(number), head(number, &body), body.clone());
    }
    for _ in 0..2_000 {
        let _ = hub.endpoint.post(&mut batch);
        hub.poll();
    }
    let completed = hub.completions(stuck_peer).len();
    assert!(completed < 100, "the system's buffers do not hold {completed} MiB");
    assert_eq!(batch.len(), 200 - 64 - completed, "as many as may be posted, and no more");
    let mut ping = Batch::default();
    let nothing = Body::empty();
    for number in 0..50 {
        ping.send(good_peer, Token(number), head(number, &nothing), Body::empty());
        assert_eq!(hub.endpoint.post(&mut ping), Ok(()), "the other one has room");
        let mut bytes = [0; 64];
        hub.poll();
        good.read_exact(&mut bytes).expect("it comes");
        hub.until("completes", |hub| hub.completions(good_peer).len() as u64 == number + 1);
    }
    // It reads again: everything goes on.
    let reader = std::thread::spawn(move || {
        let (mut stuck, mut bytes) = (stuck, vec![0; 1 << 20]);
        let mut left = 200 * (64 + (1 << 20));
        while left > 0 {
            left -= stuck.read(&mut bytes).expect("it comes");
        }
        stuck
    });
    hub.until("all sent", |hub| {
        let _ = hub.endpoint.post(&mut batch);
        hub.completions(stuck_peer).len() == 200
    });
    drop(reader.join().expect("it reads all"));
}

/// A process that dies without closing resets its connections.
fn a_killed_peer_is_lost<B: Backend>() {
    for body_bytes in [0, 1 << 20] {
        let mut hub = Alone::new(B::endpoint(limits())).among_others();
        let (here, mut there) = streams();
        let peer = hub.endpoint.adopt(link(here)).expect("room");
        let mut arena = Arena::new(8 << 20);
        let body = body_of(&mut arena, body_bytes);
        let mut batch = Batch::default();
        for number in 0..64 {
            batch.send(peer, Token(number), head(number, &body), body.clone());
        }
        assert_eq!(hub.endpoint.post(&mut batch), Ok(()));
        // Half a message of its own, too.
        there.write_all(&frame(1, 1_000)[..500]).expect("connected");
        hub.poll();
        rustix::net::sockopt::set_socket_linger(&there, Some(Duration::ZERO)).expect("a socket");
        drop(there);
        hub.until("lost", |hub| !hub.losses().is_empty());
        assert_eq!(hub.losses(), [(peer, LostReason::Broken)]);
        assert_eq!(hub.completions(peer).len(), 64, "each token once");
        assert!(matches!(hub.seen.last(), Some(Event::Lost { .. })));
        drop(body);
        hub.seen.clear();
        arena.collect();
        assert_eq!(arena.used_bytes(), 0, "nothing is kept of the lost");
    }
}

/// A stream that ends in the middle of a message is broken, between two it is closed.
fn the_end_of_a_stream_tells<B: Backend>() {
    let whole = frame(1, 300);
    for (bytes, reason) in [
        (whole.len(), LostReason::ClosedByPeer),
        (whole.len() - 1, LostReason::Broken),
        (40, LostReason::Broken),
        (0, LostReason::ClosedByPeer),
    ] {
        let mut hub = Alone::new(B::endpoint(limits())).among_others();
        let (here, mut there) = streams();
        let peer = hub.endpoint.adopt(link(here)).expect("room");
        there.write_all(&whole[..bytes]).expect("connected");
        drop(there);
        hub.until("lost", |hub| !hub.losses().is_empty());
        assert_eq!(hub.losses(), [(peer, reason)], "after {bytes} bytes");
    }
}

/// Noise is cut off; what came before it arrives; others do not notice.
fn noise_is_cut_off<B: Backend>() {
    let mut hub = Alone::new(B::endpoint(limits()));
    let (here, mut noisy) = streams();
    let peer = hub.endpoint.adopt(link(here)).expect("room");
    let (here, mut good) = streams();
    let good_peer = hub.endpoint.adopt(link(here)).expect("room");
    noisy.write_all(&frame(1, 100)).expect("connected");
    noisy.write_all(&[0xaa; 1_000]).expect("connected");
    hub.until("cut off", |hub| !hub.losses().is_empty());
    assert_eq!(hub.losses(), [(peer, LostReason::Violation(Violation::Head))]);
    assert!(matches!(hub.seen.first(), Some(Event::Arrived { .. })));
    noisy.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    match noisy.read(&mut [0; 10]) {
        Ok(count) => assert_eq!(count, 0, "the connection is gone"),
        Err(error) => {
            assert!(
                !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
                "still open: {error}"
            );
        }
    }
    hub.seen.clear();
    good.write_all(&frame(2, 70_000)).expect("connected");
    hub.until("the other one arrives", |hub| !hub.seen.is_empty());
    assert!(matches!(&hub.seen[..], [Event::Arrived { peer, .. }] if *peer == good_peer));
}

/// A body whose peer dies in the middle of it comes back from its place.
fn an_interrupted_place_comes_back<B: Backend>() {
    let mut hub = Alone::new(B::endpoint(limits()));
    let (here, mut there) = streams();
    let peer = hub.endpoint.adopt(link(here).place_from(1)).expect("room");
    there.write_all(&frame(1, 1 << 20)[..500_000]).expect("connected");
    hub.until("announced", |hub| !hub.seen.is_empty());
    let Some(Event::Announced { arrival, body_bytes, .. }) = hub.seen.pop() else { panic!("announced") };
    let mut arena = Arena::new(8 << 20);
    hub.endpoint.place(arrival, arena.take(body_bytes));
    for _ in 0..1_000 {
        hub.poll();
    }
    drop(there);
    hub.until("lost", |hub| !hub.losses().is_empty());
    assert_eq!(hub.losses(), [(peer, LostReason::Broken)]);
    let [Event::Placed { outcome: Err(LostReason::Broken), destination, .. }, Event::Lost { .. }] =
        &hub.seen[..]
    else {
        panic!("it comes back: {:?}", hub.seen)
    };
    assert_eq!(destination.len(), 1 << 20);
}

/// A close while much is posted and the peer reads late: all of it arrives.
fn a_close_brings_out_what_was_posted<B: Backend>() {
    let mut hub = Alone::new(B::endpoint(limits())).among_others();
    let (here, mut there) = streams();
    let peer = hub.endpoint.adopt(link(here)).expect("room");
    let mut arena = Arena::new(32 << 20);
    let body = body_of(&mut arena, 1 << 20);
    let mut batch = Batch::default();
    for number in 0..30 {
        batch.send(peer, Token(number), head(number, &body), body.clone());
    }
    assert_eq!(hub.endpoint.post(&mut batch), Ok(()));
    hub.endpoint.close(peer);
    // What is still sent to it meanwhile does not turn the close into a reset.
    there.write_all(&frame(1, 10_000)).expect("connected");
    let reader = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        let mut bytes = Vec::new();
        there.read_to_end(&mut bytes).expect("an orderly end");
        bytes.len()
    });
    hub.until("lost", |hub| !hub.losses().is_empty());
    assert_eq!(hub.completions(peer), [Ok(()); 30]);
    assert_eq!(hub.losses(), [(peer, LostReason::ClosedHere)]);
    assert_eq!(reader.join().expect("it reads to the end"), 30 * (64 + (1 << 20)));
}

/// Memory that another thread lets go of is found by an endpoint that sleeps meanwhile.
fn memory_from_another_thread_ends_the_wait<B: Backend>() {
    const COUNT: u64 = 300;
    let (here, mut there) = streams();
    let writer = std::thread::spawn(move || {
        for number in 0..COUNT {
            there.write_all(&frame(number, 200_000)).expect("connected");
        }
        there
    });
    let (keep, kept) = std::sync::mpsc::channel::<Event>();
    let keeper = std::thread::spawn(move || {
        let mut held = Vec::new();
        while let Ok(event) = kept.recv_timeout(Duration::from_millis(20)).or_else(|error| match error {
            std::sync::mpsc::RecvTimeoutError::Timeout => {
                held.clear();
                kept.recv()
            }
            std::sync::mpsc::RecvTimeoutError::Disconnected => Err(std::sync::mpsc::RecvError),
        }) {
            held.push(event);
        }
    });
    struct Passing<E> {
        hub: Alone<E>,
        count: u64,
        keep: std::sync::mpsc::Sender<Event>,
    }
    impl<E: Endpoint> Shell for Passing<E> {
        type Endpoint = E;
        fn turn(&mut self, _now_ns: u64) -> Turn {
            self.hub.poll();
            let progressed = !self.hub.seen.is_empty();
            for event in self.hub.seen.drain(..) {
                self.count += 1;
                self.keep.send(event).expect("the keeper keeps all");
            }
            Turn { progressed, deadline: None }
        }
        fn endpoint(&mut self) -> &mut E {
            &mut self.hub.endpoint
        }
    }
    let mut passing = Passing { hub: Alone::new(B::tiny(limits())), count: 0, keep };
    passing.hub.endpoint.adopt(link(here)).expect("room");
    let mut driver = Loop::new(Clock::new(), 2).with_spin_ns(0);
    let ended = driver.run(&mut passing, |passing| passing.count == COUNT, Some(20_000_000_000));
    assert_eq!(ended, Ended::Until, "{} of {COUNT} came", passing.count);
    drop(passing);
    keeper.join().expect("it lets go");
    drop(writer.join().expect("it writes all"));
}

/// Bodies that are kept stop their sender when the memory is used up, and nobody else; dropped, they let it go on.
fn kept_bodies_stop_their_sender<B: Backend>() {
    const BODY_BYTES: usize = 100_000;
    const COUNT: u64 = 400;
    let mut hub = Alone::new(B::tiny(limits()));
    let (here, mut greedy) = streams();
    let greedy_peer = hub.endpoint.adopt(link(here)).expect("room");
    let (here, mut modest) = streams();
    let modest_peer = hub.endpoint.adopt(link(here)).expect("room");
    let writer = std::thread::spawn(move || {
        for number in 0..COUNT {
            greedy.write_all(&frame(number, BODY_BYTES)).expect("connected");
        }
        greedy
    });
    let (mut before, mut quiet) = (0, Instant::now());
    while quiet.elapsed() < Duration::from_millis(100) {
        hub.poll();
        if hub.seen.len() > before {
            (before, quiet) = (hub.seen.len(), Instant::now());
        }
    }
    assert!(hub.seen.len() < 250, "{} bodies of {BODY_BYTES} bytes are more than the budget", hub.seen.len());
    for number in 0..20 {
        for bytes in [0, 10, 3_000] {
            modest.write_all(&frame(number, bytes)).expect("connected");
            let before = hub.seen.len();
            hub.until("the other one arrives", |hub| hub.seen.len() > before);
            let Some(Event::Arrived { peer, .. }) = hub.seen.pop() else { panic!("an arrival") };
            assert_eq!(peer, modest_peer);
        }
    }
    let mut expected = 0;
    hub.until("all arrive", |hub| {
        for event in hub.seen.drain(..) {
            let Event::Arrived { peer, head, body } = event else { panic!("an arrival, not {event:?}") };
            assert_eq!((peer, number_of(&head), body.len()), (greedy_peer, expected, BODY_BYTES));
            expected += 1;
        }
        expected == COUNT
    });
    drop(writer.join().expect("it writes all"));
}

/// A peer that waits for memory and is closed, while what was posted to it cannot leave, does not keep others waiting.
fn a_closed_peer_gives_up_its_turn_for_memory<B: Backend>() {
    const BODY_BYTES: usize = 100_000;
    let mut hub = Alone::new(B::tiny(limits()));
    let (here, mut greedy) = streams();
    let greedy_peer = hub.endpoint.adopt(link(here)).expect("room");
    let (here, mut modest) = streams();
    let modest_peer = hub.endpoint.adopt(link(here)).expect("room");
    // More than the system's buffers hold, and nobody reads it.
    let mut arena = Arena::new(8 << 20);
    let body = body_of(&mut arena, 4 << 20);
    let mut batch = Batch::default();
    for number in 0..10 {
        batch.send(greedy_peer, Token(number), head(number, &body), body.clone());
    }
    assert_eq!(hub.endpoint.post(&mut batch), Ok(()));
    let writer = std::thread::spawn(move || {
        // Until it is cut off.
        for number in 0.. {
            if greedy.write_all(&frame(number, BODY_BYTES)).is_err() {
                return;
            }
        }
    });
    let (mut before, mut quiet) = (0, Instant::now());
    while quiet.elapsed() < Duration::from_millis(100) {
        hub.poll();
        if hub.seen.len() > before {
            (before, quiet) = (hub.seen.len(), Instant::now());
        }
    }
    hub.endpoint.close(greedy_peer);
    hub.seen.clear();
    modest.write_all(&frame(1, BODY_BYTES)).expect("connected");
    let arrived = |event: &Event| matches!(event, Event::Arrived { peer, .. } if *peer == modest_peer);
    hub.until("the other one arrives", |hub| hub.seen.iter().any(arrived));
    assert_eq!(hub.losses(), [], "before the closed one is gone");
    drop(hub);
    writer.join().expect("it is cut off");
}

/// A peer is cut off while a send to it is under way; the next peer in its place is not taken for it.
fn the_next_peer_is_not_taken_for_the_last<B: Backend>() {
    let mut hub = Alone::new(B::endpoint(limits()));
    let mut arena = Arena::new(8 << 20);
    let body = body_of(&mut arena, 4 << 20);
    for round in 0..10 {
        let (here, mut stuck) = streams();
        let peer = hub.endpoint.adopt(link(here)).expect("room");
        let mut batch = Batch::default();
        // Few, so that all is reported in the poll that finds the noise.
        for number in 0..4 {
            batch.send(peer, Token(number), head(number, &body), body.clone());
        }
        assert_eq!(hub.endpoint.post(&mut batch), Ok(()));
        // Until the system's buffers are full.
        for _ in 0..200 {
            hub.poll();
        }
        stuck.write_all(&[0xaa; 100]).expect("connected");
        hub.until("cut off", |hub| !hub.losses().is_empty());
        hub.seen.clear();
        let (here, mut good) = streams();
        let peer = hub.endpoint.adopt(link(here)).expect("room");
        for number in 0..3 {
            let nothing = Body::empty();
            batch.send(peer, Token(number), head(number, &nothing), nothing);
            assert_eq!(hub.endpoint.post(&mut batch), Ok(()));
            hub.until("sent", |hub| hub.completions(peer).len() as u64 == number + 1);
            assert_eq!(hub.completions(peer).last(), Some(&Ok(())), "round {round}");
            good.read_exact(&mut [0; 64]).expect("it comes");
        }
        hub.endpoint.close(peer);
        hub.until("closed", |hub| !hub.losses().is_empty());
        hub.seen.clear();
    }
}

/// Connections come and go; slots are reused and numbers are not.
fn peers_come_and_go<B: Backend>() {
    let mut hub = Alone::new(B::endpoint(limits()));
    let mut known = Vec::new();
    for round in 0..100 {
        let (here, mut there) = streams();
        let peer = hub.endpoint.adopt(link(here)).expect("room");
        assert!(!known.contains(&peer), "never the same again");
        known.push(peer);
        there.write_all(&frame(round, 5_000)).expect("connected");
        hub.until("arrives", |hub| matches!(hub.seen.last(), Some(Event::Arrived { .. })));
        if round % 2 == 0 {
            hub.endpoint.close(peer);
        } else {
            drop(there);
        }
        hub.until("lost", |hub| matches!(hub.seen.last(), Some(Event::Lost { .. })));
        hub.seen.clear();
    }
}

macro_rules! over {
    ($($test:ident),* $(,)?) => {
        mod over_socket {
            $(#[test]
            fn $test() {
                super::$test::<super::Socket>();
            })*
        }

        mod over_uring {
            $(#[test]
            fn $test() {
                super::$test::<super::Uring>();
            })*
        }
    };
}

over!(
    mixed_load,
    mixed_load_with_places,
    mixed_load_in_tiny_memory,
    a_peer_that_stops_reading_holds_up_nobody,
    a_killed_peer_is_lost,
    the_end_of_a_stream_tells,
    noise_is_cut_off,
    an_interrupted_place_comes_back,
    a_close_brings_out_what_was_posted,
    peers_come_and_go,
    kept_bodies_stop_their_sender,
    memory_from_another_thread_ends_the_wait,
    the_next_peer_is_not_taken_for_the_last,
    a_closed_peer_gives_up_its_turn_for_memory,
);
