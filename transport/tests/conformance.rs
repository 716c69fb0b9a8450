//! The conformance suite over the backends of this crate, one test per promise and backend.

use rangefold_transport::conformance::{self, Fixture};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rangefold_transport::stream::Limits;
use rangefold_transport::{Endpoint as _, Events, Link, Peer, auto, memory, shm, sim, socket, uring};

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
            operations_per_peer_max: DEPTH,
            body_bytes_max: body_bytes_max.unwrap_or(limits.body_bytes_max),
            ..limits
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

/// Both ways over TCP on one thread: every second endpoint has a silent peer of the other kind than the links of the test, and
/// sleeps on both.
struct Both {
    number: u64,
    endpoints: u64,
    over_ring: bool,
}

impl Both {
    fn silent(&self, endpoint: &mut auto::Endpoint) -> Peer {
        let (silent, other) = tcp_pair(u64::MAX);
        // Open for as long as the test program runs.
        std::mem::forget(other);
        endpoint.adopt(silent).expect("room")
    }
}

impl Fixture for Both {
    type Endpoint = auto::Endpoint;

    fn endpoint(&mut self, body_bytes_max: Option<u32>) -> auto::Endpoint {
        let options =
            auto::Options { wish: auto::Wish::Auto, framing: conformance::FRAMING, one_thread: true };
        let made = auto::Endpoint::with(&options, tcp_limits(body_bytes_max), 1);
        let (mut endpoint, choice) = made.expect("sockets");
        assert_eq!(choice.transport, "socket and uring", "io_uring is permitted here: {choice}");
        self.endpoints += 1;
        // The first may pass to another thread, which a ring that was used may not.
        if !self.endpoints.is_multiple_of(2) {
            return endpoint;
        }
        let over_socket = self.silent(&mut endpoint);
        if !self.over_ring {
            self.silent(&mut endpoint);
            endpoint.close(over_socket);
            let mut events = Events::with_limit(1);
            while events.is_empty() {
                endpoint.poll(&mut events);
            }
        }
        endpoint
    }

    fn connect(&mut self) -> (Link, Link) {
        self.number += 1;
        tcp_pair(self.number)
    }

    fn step(&mut self) {}
}

fn socket_beside_a_ring() -> Both {
    Both { number: 0, endpoints: 0, over_ring: false }
}

fn ring_beside_a_socket() -> Both {
    Both { number: 0, endpoints: 0, over_ring: true }
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
    let config = sim::Config { depth: DEPTH, ..sim::Config::default() };
    Simulated { network: sim::Network::new(seed, config) }
}

macro_rules! promises {
    ($($promise:ident),* $(,)?) => {
        mod over_memory {
            $(#[test]
            fn $promise() {
                super::conformance::$promise(super::memory());
            })*
        }

        mod over_socket {
            $(#[test]
            fn $promise() {
                super::conformance::$promise(super::socket());
            })*
        }

        mod over_uring {
            $(#[test]
            fn $promise() {
                super::conformance::$promise(super::uring());
            })*
        }

        mod over_uring_of_many {
            $(#[test]
            fn $promise() {
                super::conformance::$promise(super::uring_of_many());
            })*
        }

        mod over_a_socket_beside_a_ring {
            $(#[test]
            fn $promise() {
                super::conformance::$promise(super::socket_beside_a_ring());
            })*
        }

        mod over_a_ring_beside_a_socket {
            $(#[test]
            fn $promise() {
                super::conformance::$promise(super::ring_beside_a_socket());
            })*
        }

        mod over_shm {
            $(#[test]
            fn $promise() {
                super::conformance::$promise(super::shm());
            })*
        }

        mod over_sim {
            $(#[test]
            fn $promise() {
                for seed in 0..20 {
                    super::conformance::$promise(super::simulated(seed));
                }
            })*
        }
    };
}

promises!(
    keeps_order,
    completes_every_token_once,
    completes_what_was_posted_to_the_lost,
    flushes_before_lost,
    closing_loses_both_sides_once,
    delivers_what_was_sent_before_the_close,
    dropping_an_endpoint_closes,
    dropping_a_link_closes,
    full_ends_with_a_completion,
    a_full_peer_holds_up_nobody,
    carries_heads_of_every_length,
    carries_empty_bodies,
    concatenates_slices,
    cuts_off_who_sends_too_much,
    announces_from_the_threshold,
    places_where_it_was_told,
    discards_what_is_not_wanted,
    ignores_places_of_the_lost,
    returns_the_memory_of_bodies,
    reports_no_more_than_there_is_room_for,
);

#[test]
fn all_runs_every_promise() {
    conformance::all(memory);
}

#[test]
fn memory_with_threads() {
    conformance::all_with_threads(memory);
}

#[test]
fn socket_with_threads() {
    conformance::all_with_threads(socket);
}

#[test]
fn uring_with_threads() {
    conformance::all_with_threads(uring);
    conformance::all_with_threads(uring_of_many);
}

#[test]
fn socket_and_uring_with_threads() {
    conformance::all_with_threads(socket_beside_a_ring);
    conformance::all_with_threads(ring_beside_a_socket);
}

#[test]
fn shm_with_threads() {
    conformance::all_with_threads(shm);
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
    assert_send::<rangefold_transport::Event>();
}
