//! Figures of the two TCP backends beside plain sockets, interleaved in one run: a stream of 1 MiB frames, and a small
//! round trip, awake and asleep. `cargo run --release -p rangefold-transport --example tcp_figures [pinned]`
//!
//! Prints medians of 5 rounds and ratios to the plain socket. Each mode checks what it received.

use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rangefold_transport::conformance::{FRAMING, head, number_of};
use rangefold_transport::wait::{Clock, Loop};
use rangefold_transport::{
    Arena, Batch, Body, Endpoint, Event, Events, Head, Link, Peer, Shell, Token, Turn, socket, uring,
};

const ROUNDS: usize = 5;
const FRAME_BYTES: usize = 1 << 20;
const STREAM_TIME: Duration = Duration::from_millis(120);
const REQUEST_BODY_BYTES: usize = 256;
const TRIPS: usize = 2_000;
const TRIPS_ASLEEP: usize = 1_000;

fn main() {
    let pinned = std::env::args().any(|argument| argument == "pinned");
    println!("1 MiB frames one way, GB/s; {} rounds, {}", ROUNDS, if pinned { "pinned" } else { "unpinned" });
    let modes: [(&str, &dyn Fn() -> f64); 5] = [
        ("plain blocking", &|| plain_stream(pinned)),
        ("socket, spinning", &|| stream(new_socket, pinned, u64::MAX)),
        ("uring, spinning", &|| stream(new_uring, pinned, u64::MAX)),
        ("socket, spin 50 us", &|| stream(new_socket, pinned, 50_000)),
        ("uring, spin 50 us", &|| stream(new_uring, pinned, 50_000)),
    ];
    table(&modes, "GB/s");
    println!("round trip 320 B / 64 B, both ends awake, p50 us");
    let modes: [(&str, &dyn Fn() -> f64); 3] = [
        ("plain, spinning", &|| plain_trips(pinned, true)),
        ("socket", &|| trips(new_socket, pinned, u64::MAX, TRIPS)),
        ("uring", &|| trips(new_uring, pinned, u64::MAX, TRIPS)),
    ];
    table(&modes, "us");
    println!("round trip 320 B / 64 B, both ends sleeping at once, p50 us");
    let modes: [(&str, &dyn Fn() -> f64); 3] = [
        ("plain, blocking", &|| plain_trips(pinned, false)),
        ("socket", &|| trips(new_socket, pinned, 0, TRIPS_ASLEEP)),
        ("uring", &|| trips(new_uring, pinned, 0, TRIPS_ASLEEP)),
    ];
    table(&modes, "us");
}

/// Runs the modes in turn, round by round, and prints the median of each.
fn table(modes: &[(&str, &dyn Fn() -> f64)], unit: &str) {
    let mut figures = vec![Vec::new(); modes.len()];
    for _ in 0..ROUNDS {
        for (mode, figures) in modes.iter().zip(&mut figures) {
            figures.push((mode.1)());
        }
    }
    let medians: Vec<f64> = figures.iter_mut().map(|figures| median(figures)).collect();
    for ((name, _), (median, figures)) in modes.iter().zip(medians.iter().zip(&figures)) {
        let (low, high) = (figures[0], figures[figures.len() - 1]);
        println!(
            "  {name:<20} {median:>7.2} {unit} ({low:.2} to {high:.2}), {:.2} of plain",
            median / medians[0]
        );
    }
}

/// Sorts as well.
fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn new_socket() -> socket::Endpoint {
    socket::Endpoint::new(FRAMING, socket::Limits::default()).expect("descriptors")
}

fn new_uring() -> uring::Endpoint {
    match uring::Endpoint::new(FRAMING, uring::Options::default()) {
        Ok(endpoint) => endpoint,
        Err(why) => panic!("{why}"),
    }
}

fn streams() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let left = TcpStream::connect(listener.local_addr().expect("bound")).expect("listening");
    let (right, _) = listener.accept().expect("connected");
    for stream in [&left, &right] {
        stream.set_nodelay(true).expect("connected");
    }
    (left, right)
}

fn pin(pinned: bool, core: usize) {
    if pinned {
        let mut set = rustix::thread::CpuSet::new();
        set.set(core);
        rustix::thread::sched_setaffinity(None, &set).expect("this core is ours");
    }
}

fn plain_stream(pinned: bool) -> f64 {
    let (mut left, mut right) = streams();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            pin(pinned, 0);
            let (head, body) = ([0_u8; 64], vec![7_u8; FRAME_BYTES]);
            let started = Instant::now();
            while started.elapsed() < STREAM_TIME {
                let mut slices = [IoSlice::new(&head), IoSlice::new(&body)];
                let mut rest = &mut slices[..];
                while !rest.is_empty() {
                    let count = left.write_vectored(rest).expect("connected");
                    IoSlice::advance_slices(&mut rest, count);
                }
            }
        });
        let receiver = scope.spawn(move || {
            pin(pinned, 1);
            let mut buffer = vec![0_u8; FRAME_BYTES];
            let (started, mut bytes) = (Instant::now(), 0_u64);
            loop {
                match right.read(&mut buffer).expect("connected") {
                    0 => return rate(bytes, started),
                    count => bytes += count as u64,
                }
            }
        });
        receiver.join().expect("it reads")
    })
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn rate(bytes: u64, started: Instant) -> f64 {
    bytes as f64 / started.elapsed().as_secs_f64() / 1e9
}

/// A shell that does one thing with each event and posts after.
struct Side<E, F> {
    endpoint: E,
    events: Events,
    batch: Batch,
    handle: F,
}

impl<E: Endpoint, F: FnMut(Option<Event>, &mut Batch)> Side<E, F> {
    fn new(endpoint: E, handle: F) -> Self {
        Self { endpoint, events: Events::with_limit(64), batch: Batch::default(), handle }
    }
}

impl<E: Endpoint, F: FnMut(Option<Event>, &mut Batch)> Shell for Side<E, F> {
    type Endpoint = E;

    fn turn(&mut self, _now_ns: u64) -> Turn {
        self.endpoint.poll(&mut self.events);
        let mut progressed = false;
        for event in self.events.drain() {
            progressed = true;
            (self.handle)(Some(event), &mut self.batch);
        }
        (self.handle)(None, &mut self.batch);
        let before = self.batch.len();
        let _ = self.endpoint.post(&mut self.batch);
        Turn { progressed: progressed || self.batch.len() < before, deadline: None }
    }

    fn endpoint(&mut self) -> &mut E {
        &mut self.endpoint
    }
}

fn drive<E: Endpoint, F: FnMut(Option<Event>, &mut Batch)>(
    side: &mut Side<E, F>,
    spin_ns: u64,
    done: &std::cell::Cell<bool>,
) {
    Loop::new(Clock::new(), 2).with_spin_ns(spin_ns).run(side, |_| done.get(), None);
}

fn link(stream: TcpStream) -> Link {
    Link::tcp(stream, 1).expect("connected")
}

fn stream<E: Endpoint>(make: fn() -> E, pinned: bool, spin_ns: u64) -> f64 {
    let (left, right) = streams();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            pin(pinned, 0);
            let mut endpoint = make();
            let peer = endpoint.adopt(link(left)).expect("room");
            let mut arena = Arena::new(4 << 20);
            let mut body = arena.take(FRAME_BYTES).expect("enough");
            body.as_mut_bytes().fill(7);
            let body: Body = body.freeze().into();
            let (started, mut posted, mut completed) = (Instant::now(), 0, 0);
            let done = std::cell::Cell::new(false);
            let handle = |event: Option<Event>, batch: &mut Batch| match event {
                Some(Event::Sent { outcome, .. }) => {
                    assert_eq!(outcome, Ok(()));
                    completed += 1;
                }
                Some(event) => panic!("{event:?}"),
                None => {
                    let over = started.elapsed() >= STREAM_TIME;
                    while !over && posted - completed < 8 {
                        batch.send(peer, Token(posted), head(posted, &body), body.clone());
                        posted += 1;
                    }
                    done.set(over && posted == completed);
                }
            };
            drive(&mut Side::new(endpoint, handle), spin_ns, &done);
        });
        let receiver = scope.spawn(move || {
            pin(pinned, 1);
            let mut endpoint = make();
            endpoint.adopt(link(right)).expect("room");
            let (started, mut bytes, mut next) = (Instant::now(), 0, 0);
            let done = std::cell::Cell::new(false);
            let handle = |event: Option<Event>, _: &mut Batch| match event {
                Some(Event::Arrived { head, body, .. }) => {
                    assert_eq!((number_of(&head), body.len()), (next, FRAME_BYTES));
                    next += 1;
                    bytes += 64 + body.len() as u64;
                }
                Some(Event::Lost { .. }) => done.set(true),
                Some(event) => panic!("{event:?}"),
                None => {}
            };
            drive(&mut Side::new(endpoint, handle), spin_ns, &done);
            rate(bytes, started)
        });
        receiver.join().expect("it reads")
    })
}

fn plain_trips(pinned: bool, spinning: bool) -> f64 {
    fn read(mut stream: &TcpStream, mut bytes: &mut [u8]) -> bool {
        while !bytes.is_empty() {
            match stream.read(bytes) {
                Ok(0) => return false,
                Ok(count) => bytes = &mut bytes[count..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => std::hint::spin_loop(),
                Err(error) => panic!("{error}"),
            }
        }
        true
    }
    let (left, right) = streams();
    for stream in [&left, &right] {
        stream.set_nonblocking(spinning).expect("connected");
    }
    std::thread::scope(|scope| {
        scope.spawn(move || {
            pin(pinned, 1);
            let mut request = [0; 64 + REQUEST_BODY_BYTES];
            while read(&right, &mut request) {
                (&right).write_all(&[0; 64]).expect("connected");
            }
        });
        let client = scope.spawn(move || {
            pin(pinned, 0);
            let trips = if spinning { TRIPS } else { TRIPS_ASLEEP };
            let times = (0..trips).map(|_| {
                let started = Instant::now();
                (&left).write_all(&[0; 64 + REQUEST_BODY_BYTES]).expect("connected");
                assert!(read(&left, &mut [0; 64]));
                started.elapsed().as_secs_f64() * 1e6
            });
            let figure = median(&mut times.collect::<Vec<_>>());
            drop(left);
            figure
        });
        client.join().expect("it ends")
    })
}

fn trips<E: Endpoint>(make: fn() -> E, pinned: bool, spin_ns: u64, trips: usize) -> f64 {
    let (left, right) = streams();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            pin(pinned, 1);
            let mut endpoint = make();
            let client = endpoint.adopt(link(right)).expect("room");
            let done = std::cell::Cell::new(false);
            let reply = |peer: Peer, head: &Head, batch: &mut Batch| {
                let number = number_of(head);
                let nothing = Body::empty();
                batch.send(peer, Token(number), self::head(number, &nothing), nothing);
            };
            let handle = |event: Option<Event>, batch: &mut Batch| match event {
                Some(Event::Arrived { peer, head, body }) => {
                    assert_eq!((peer, body.len()), (client, REQUEST_BODY_BYTES));
                    reply(peer, &head, batch);
                }
                Some(Event::Lost { .. }) => done.set(true),
                _ => {}
            };
            drive(&mut Side::new(endpoint, handle), spin_ns, &done);
        });
        let client = scope.spawn(move || {
            pin(pinned, 0);
            let mut endpoint = make();
            let server = endpoint.adopt(link(left)).expect("room");
            let mut arena = Arena::new(1 << 20);
            let body: Body = arena.take(REQUEST_BODY_BYTES).expect("enough").freeze().into();
            let (mut times, mut started, mut waiting) = (Vec::with_capacity(trips), Instant::now(), false);
            let done = std::cell::Cell::new(false);
            let handle = |event: Option<Event>, batch: &mut Batch| match event {
                Some(Event::Arrived { head, .. }) => {
                    assert_eq!(number_of(&head), times.len() as u64);
                    times.push(started.elapsed().as_secs_f64() * 1e6);
                    waiting = false;
                }
                Some(Event::Lost { reason, .. }) => panic!("{reason}"),
                Some(_) => {}
                None if waiting => {}
                None if times.len() == trips => done.set(true),
                None => {
                    let number = times.len() as u64;
                    started = Instant::now();
                    batch.send(server, Token(number), head(number, &body), body.clone());
                    waiting = true;
                }
            };
            drive(&mut Side::new(endpoint, handle), spin_ns, &done);
            median(&mut times)
        });
        client.join().expect("it ends")
    })
}
