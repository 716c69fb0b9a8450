//! The conformance suite over the backends of this crate, one test per promise and backend.

use rangefold_transport::conformance::{self, Fixture};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rangefold_transport::stream::Limits;
use rangefold_transport::wait::{Clock, Ended, Loop};
use rangefold_transport::{
    Batch, Body, Endpoint as _, Event, Events, Link, Peer, Shell, Token, Turn, auto, memory, shm, sim,
    socket, uring,
};

/// Depth of the tests' queues, so small that `Full` is common.
const DEPTH: u32 = 4;

struct Memory {
    number: u64,
}

impl Fixture for Memory {
    type Endpoint = memory::Endpoint;

    fn endpoint(&mut self, body_bytes_max: Option<u32>) -> memory::Endpoint {
        let limits = memory::Limits::default();
        memory::Endpoint::with_limits(memory::Limits {
            peers_max: 8,
            operations_per_peer_max: DEPTH,
            body_bytes_max: body_bytes_max.unwrap_or(limits.body_bytes_max),
        })
    }

    fn connect(&mut self) -> (Link, Link) {
        self.number += 1;
        memory::pair(self.number, DEPTH as usize)
    }

    fn step(&mut self) {}
}

struct Simulated {
    network: sim::Network,
}

impl Fixture for Simulated {
    type Endpoint = sim::Endpoint;

    fn endpoint(&mut self, body_bytes_max: Option<u32>) -> sim::Endpoint {
        self.network.endpoint_with(sim::HostId(0), body_bytes_max)
    }

    fn connect(&mut self) -> (Link, Link) {
        self.network.connect(sim::HostId(0), sim::HostId(1))
    }

    fn step(&mut self) {
        if let Some(next_ns) = self.network.next_event_ns() {
            self.network.advance_to(next_ns);
        }
    }
}

/// Both ends of a connection over loopback.
fn tcp_pair(number: u64) -> (Link, Link) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let left = TcpStream::connect(listener.local_addr().expect("bound")).expect("listening");
    let (right, _) = listener.accept().expect("connected");
    let link = |stream| Link::tcp(stream, number).expect("connected");
    (link(left), link(right))
}

fn tcp_limits(body_bytes_max: Option<u32>) -> Limits {
    Limits {
        peers_max: 8,
        operations_per_peer_max: DEPTH,
        body_bytes_max: body_bytes_max.unwrap_or(1 << 20),
        receive_bytes: 0,
    }
}

struct Socket {
    number: u64,
}

impl Fixture for Socket {
    type Endpoint = socket::Endpoint;

    fn endpoint(&mut self, body_bytes_max: Option<u32>) -> socket::Endpoint {
        socket::Endpoint::new(conformance::FRAMING, tcp_limits(body_bytes_max)).expect("descriptors")
    }

    fn connect(&mut self) -> (Link, Link) {
        self.number += 1;
        tcp_pair(self.number)
    }

    fn step(&mut self) {}
}

fn socket() -> Socket {
    Socket { number: 0 }
}

struct Uring {
    number: u64,
    one_thread: bool,
}

impl Fixture for Uring {
    type Endpoint = uring::Endpoint;

    fn endpoint(&mut self, body_bytes_max: Option<u32>) -> uring::Endpoint {
        let limits = tcp_limits(body_bytes_max);
        let options = uring::Options { limits, one_thread: self.one_thread, ..uring::Options::default() };
        uring::Endpoint::new(conformance::FRAMING, options).expect("io_uring is permitted here")
    }

    fn connect(&mut self) -> (Link, Link) {
        self.number += 1;
        tcp_pair(self.number)
    }

    fn step(&mut self) {}
}

fn uring() -> Uring {
    Uring { number: 0, one_thread: true }
}

/// With a ring that any thread may use.
fn uring_of_many() -> Uring {
    Uring { number: 0, one_thread: false }
}

/// What a link of a mixture goes over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    Socket,
    Ring,
    Memory,
}

/// All ways on one thread: every second endpoint has silent peers of other kinds than the links of the test, and sleeps on all.
struct Mixture {
    number: u64,
    endpoints: u64,
    over: Over,
    beside: Over,
}

impl Mixture {
    fn of(over: Over, beside: Over) -> Self {
        Self { number: 0, endpoints: 0, over, beside }
    }

    /// A peer that says nothing for as long as the test program runs.
    fn silent(endpoint: &mut auto::Endpoint, (silent, other): (Link, Link)) -> Peer {
        std::mem::forget(other);
        endpoint.adopt(silent).expect("room")
    }
}

impl Fixture for Mixture {
    type Endpoint = auto::Endpoint;

    fn endpoint(&mut self, body_bytes_max: Option<u32>) -> auto::Endpoint {
        let mut endpoint = mixed(body_bytes_max);
        self.endpoints += 1;
        // The first may pass to another thread, which a ring that was used may not.
        if !self.endpoints.is_multiple_of(2) {
            return endpoint;
        }
        if self.beside == Over::Memory {
            Self::silent(&mut endpoint, shm_pair(u64::MAX));
        }
        // The first over TCP is the one socket; the next is over the ring.
        let first = (self.over == Over::Ring || self.beside != Over::Memory)
            .then(|| Self::silent(&mut endpoint, tcp_pair(u64::MAX)));
        if self.beside == Over::Ring {
            Self::silent(&mut endpoint, tcp_pair(u64::MAX));
        }
        if let (Over::Socket, Some(first)) = (self.over, first) {
            endpoint.close(first);
            let mut events = Events::with_limit(1);
            while events.is_empty() {
                endpoint.poll(&mut events);
            }
        }
        endpoint
    }

    fn connect(&mut self) -> (Link, Link) {
        self.number += 1;
        if self.over == Over::Memory { shm_pair(self.number) } else { tcp_pair(self.number) }
    }

    fn step(&mut self) {}
}

/// An endpoint of all kinds, with one socket.
fn mixed(body_bytes_max: Option<u32>) -> auto::Endpoint {
    let options = auto::Options { wish: auto::Wish::Auto, framing: conformance::FRAMING, one_thread: true };
    let (endpoint, choice) = auto::Endpoint::with(&options, tcp_limits(body_bytes_max), 1).expect("sockets");
    assert!(
        choice.transport == "socket and uring" && choice.shares,
        "io_uring and shared memory are permitted here: {choice}"
    );
    endpoint
}

fn socket_beside_a_ring() -> Mixture {
    Mixture::of(Over::Socket, Over::Ring)
}

fn ring_beside_a_socket() -> Mixture {
    Mixture::of(Over::Ring, Over::Socket)
}

fn socket_beside_memory() -> Mixture {
    Mixture::of(Over::Socket, Over::Memory)
}

/// And a socket.
fn ring_beside_memory() -> Mixture {
    Mixture::of(Over::Ring, Over::Memory)
}

fn memory_beside_a_socket() -> Mixture {
    Mixture::of(Over::Memory, Over::Socket)
}

/// And a socket.
fn memory_beside_a_ring() -> Mixture {
    Mixture::of(Over::Memory, Over::Ring)
}

/// The endpoint that `auto` makes where only memory is shared.
struct OnlyMemory {
    number: u64,
}

impl Fixture for OnlyMemory {
    type Endpoint = auto::Endpoint;

    fn endpoint(&mut self, body_bytes_max: Option<u32>) -> auto::Endpoint {
        let options =
            auto::Options { wish: auto::Wish::Shm, framing: conformance::FRAMING, one_thread: true };
        let (endpoint, choice) =
            auto::Endpoint::with(&options, tcp_limits(body_bytes_max), 1).expect("shared memory");
        assert_eq!(choice.transport, "shm");
        endpoint
    }

    fn connect(&mut self) -> (Link, Link) {
        self.number += 1;
        shm_pair(self.number)
    }

    fn step(&mut self) {}
}

fn only_memory() -> OnlyMemory {
    OnlyMemory { number: 0 }
}

/// Both ends of a link through shared memory, by the exchange that two processes would have.
fn shm_pair(number: u64) -> (Link, Link) {
    let (left, right) = UnixStream::pair().expect("descriptors");
    let deadline = Instant::now() + Duration::from_secs(10);
    std::thread::scope(|scope| {
        let offered = scope.spawn(move || shm::offer(left, number, shm::RING_BYTES_MIN, deadline));
        let accepted = shm::accept(right, number, shm::RING_BYTES_MAX, deadline).expect("what was offered");
        (offered.join().expect("it does not panic").expect("accepted"), accepted)
    })
}

/// With rings of a page, so that bodies are longer than a ring.
struct Shm {
    number: u64,
}

impl Fixture for Shm {
    type Endpoint = shm::Endpoint;

    fn endpoint(&mut self, body_bytes_max: Option<u32>) -> shm::Endpoint {
        let limits = shm::Limits {
            peers_max: 8,
            operations_per_peer_max: DEPTH,
            body_bytes_max: body_bytes_max.unwrap_or(1 << 20),
            receive_bytes: 0,
            ..shm::Limits::default()
        };
        shm::Endpoint::new(conformance::FRAMING, limits).expect("descriptors")
    }

    fn connect(&mut self) -> (Link, Link) {
        self.number += 1;
        shm_pair(self.number)
    }

    fn step(&mut self) {}
}

fn shm() -> Shm {
    Shm { number: 0 }
}

fn memory() -> Memory {
    Memory { number: 0 }
}

fn simulated(seed: u64) -> Simulated {
    let config = sim::Config { depth: DEPTH, peers_max: 8, ..sim::Config::default() };
    Simulated { network: sim::Network::new(seed, config) }
}

/// A test per promise over one backend.
macro_rules! over {
    ($module:ident, $fixture:ident, $($promise:ident),*) => {
        mod $module {
            $(#[test]
            fn $promise() {
                super::conformance::$promise(super::$fixture());
            })*
        }
    };
}

macro_rules! backends {
    (one_thread: [$($one:ident),* $(,)?], real_time: [$($real:ident),* $(,)?] $(,)?) => {
        over!(over_memory, memory, $($one,)* $($real),*);
        over!(over_socket, socket, $($one,)* $($real),*);
        over!(over_uring, uring, $($one,)* $($real),*);
        over!(over_uring_of_many, uring_of_many, $($one,)* $($real),*);
        over!(over_shm, shm, $($one,)* $($real),*);
        over!(over_shm_alone, only_memory, $($one,)* $($real),*);
        over!(over_a_socket_beside_a_ring, socket_beside_a_ring, $($one,)* $($real),*);
        over!(over_a_ring_beside_a_socket, ring_beside_a_socket, $($one,)* $($real),*);
        over!(over_a_socket_beside_shm, socket_beside_memory, $($one,)* $($real),*);
        over!(over_a_ring_beside_shm, ring_beside_memory, $($one,)* $($real),*);
        over!(over_shm_beside_a_socket, memory_beside_a_socket, $($one,)* $($real),*);
        over!(over_shm_beside_a_ring, memory_beside_a_ring, $($one,)* $($real),*);

        mod over_sim {
            $(#[test]
            fn $one() {
                for seed in 0..20 {
                    super::conformance::$one(super::simulated(seed));
                }
            })*
        }
    };
}

rangefold_transport::for_each_promise!(backends);

#[test]
fn all_at_once() {
    conformance::all(memory);
    conformance::all_in_real_time(memory);
}

/// The names in this text behind `conformance::`.
fn named(text: &str) -> Vec<&str> {
    text.split("[`conformance::").skip(1).filter_map(|rest| rest.split('`').next()).collect()
}

/// Both lists hold the same names, each once.
fn assert_same(these: &[&str], those: &[&str], what: [&str; 2]) {
    let only = |here: &[&str], there: &[&str]| -> Vec<String> {
        here.iter().filter(|name| !there.contains(name)).map(ToString::to_string).collect()
    };
    assert_eq!(only(these, those), [""; 0], "{}, and not {}", what[0], what[1]);
    assert_eq!(only(those, these), [""; 0], "{}, and not {}", what[1], what[0]);
    assert_eq!(these.len(), those.len(), "one of these names is there twice: {these:?}, {those:?}");
}

/// The promises of the crate's documentation are the functions of the suite: each promise has one, and each is promised.
#[test]
fn every_promise_has_a_function_and_every_function_a_promise() {
    let source = |path: &str| {
        std::fs::read_to_string(format!("{}/src/{path}", env!("CARGO_MANIFEST_DIR"))).expect("our source")
    };
    let documentation = source("lib.rs");
    let (_, section) = documentation.split_once("//! # Promises\n").expect("a section");
    let (section, _) = section.split_once("\n#!").expect("attributes behind it");
    let section = section.replace("\n//! ", "\n").replace("\n//!", "\n");
    let promises: Vec<&str> = section.split("\n- ").skip(1).collect();
    let mut promised = Vec::new();
    for promise in &promises {
        let names = named(promise);
        assert_eq!(names.len(), 1, "one function for the promise {promise:?}");
        promised.extend(names);
    }
    assert_same(&promised, conformance::PROMISES, ["promised", "in the suite"]);

    let folder = format!("{}/src/conformance", env!("CARGO_MANIFEST_DIR"));
    let files = std::fs::read_dir(folder).expect("our source").map(|entry| entry.expect("our source").path());
    let parts = files.map(|path| std::fs::read_to_string(path).expect("our source"));
    let text: String = parts.chain([source("conformance.rs")]).collect();
    let functions = text.split("\npub fn ").skip(1).filter_map(|rest| rest.split_once('('));
    let written: Vec<&str> = functions.filter_map(|(name, _)| name.strip_suffix("<F: Fixture>")).collect();
    assert_same(&written, conformance::PROMISES, ["written", "in the suite"]);
}

/// Messages of one batch to a peer over each way, and answers from all of them, between two sleeps.
#[test]
fn a_peer_over_each_way_at_once() {
    let links = [tcp_pair(1), tcp_pair(2), shm_pair(3)];
    let mut here = mixed(None);
    let mut there = mixed(None);
    let (mut peers, mut others) = (Vec::new(), Vec::new());
    for (left, right) in links {
        peers.push(here.adopt(left).expect("room"));
        others.push(there.adopt(right).expect("room"));
    }
    let tags: Vec<u64> = peers.iter().map(|peer| peer.0 >> 56).collect();
    assert_eq!(tags, [0, 1, 2], "socket, ring, memory");
    let send = |from: &mut auto::Endpoint, peers: &[Peer], to: &mut auto::Endpoint| {
        let mut batch = Batch::default();
        for (peer, number) in peers.iter().zip(1_u64..) {
            let body = Body::empty();
            batch.send(*peer, Token(number), conformance::head(number, &body), body);
        }
        from.post(&mut batch).expect("room");
        Shelf { endpoint: from, seen: Vec::new() }
            .until(3, |event| matches!(event, Event::Sent { outcome: Ok(()), .. }));
        Shelf { endpoint: to, seen: Vec::new() }.until(3, |event| matches!(event, Event::Arrived { .. }));
    };
    for _ in 0..50 {
        send(&mut here, &peers, &mut there);
        send(&mut there, &others, &mut here);
    }
    for peer in peers {
        here.close(peer);
    }
    Shelf { endpoint: &mut here, seen: Vec::new() }.until(3, |event| matches!(event, Event::Lost { .. }));
    Shelf { endpoint: &mut there, seen: Vec::new() }.until(3, |event| matches!(event, Event::Lost { .. }));
}

/// An endpoint driven until it has seen enough, asleep in between.
struct Shelf<'a> {
    endpoint: &'a mut auto::Endpoint,
    seen: Vec<Event>,
}

impl Shelf<'_> {
    fn until(&mut self, count: usize, what: impl Fn(&Event) -> bool) {
        let mut turns = Loop::new(Clock::new(), 2).with_spin_ns(0);
        let is_done = |shelf: &mut Self| shelf.seen.iter().filter(|event| what(event)).count() == count;
        assert_eq!(turns.run(self, is_done, Some(30_000_000_000)), Ended::Until, "{:?}", self.seen);
    }
}

impl Shell for Shelf<'_> {
    type Endpoint = auto::Endpoint;

    fn turn(&mut self, _now_ns: u64) -> Turn {
        let mut events = Events::with_limit(16);
        self.endpoint.poll(&mut events);
        let progressed = events.take_progress();
        self.seen.extend(events.drain());
        Turn { progressed, deadline: None }
    }

    fn endpoint(&mut self) -> &mut auto::Endpoint {
        self.endpoint
    }
}

/// Endpoints and links may be made on one thread and used on another.
#[test]
fn endpoints_and_links_change_threads() {
    fn assert_send<T: Send>() {}
    assert_send::<Link>();
    assert_send::<memory::Endpoint>();
    assert_send::<sim::Endpoint>();
    assert_send::<uring::Endpoint>();
    assert_send::<shm::Endpoint>();
    assert_send::<socket::Endpoint>();
    assert_send::<auto::Endpoint>();
    assert_send::<rangefold_transport::Arena>();
    assert_send::<rangefold_transport::SliceMut>();
    assert_send::<Event>();
}
