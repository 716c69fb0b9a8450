//! What only this backend promises: whom it rings, peers that lie, descriptors that are not what they should be.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::half::{Wire as _, rings};
use super::mapping::{Mapping, mapped_bytes};
use super::*;
use crate::Arena;
use crate::conformance::{FRAMING, head, number_of};
use crate::endpoint::{Batch, Body, Endpoint as _, Event, Events, Peer, Token};
use crate::error::{AdoptError, LostReason, Violation};
use crate::link::{Kind, Link};
use crate::primitive::Ordering;
use crate::wait::{Armed, Sleep};

const RING_BYTES: usize = RING_BYTES_MIN;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn links(ring_bytes: usize) -> (Link, Link) {
    let (left, right) = UnixStream::pair().expect("descriptors");
    std::thread::scope(|scope| {
        let offered = scope.spawn(move || offer(left, 7, ring_bytes, soon()));
        let accepted = accept(right, 7, ring_bytes, soon()).expect("what was offered");
        (offered.join().expect("no panic").expect("accepted"), accepted)
    })
}

/// A link and the bare half of its other side, to do with as a hostile process would.
fn hostile() -> (Link, Half) {
    let (link, other) = links(RING_BYTES);
    let Kind::Shm(half) = other.kind else { panic!("a link of this backend") };
    (link, half)
}

fn limits() -> Limits {
    Limits { body_bytes_max: 1 << 20, receive_bytes: 0, ..Limits::default() }
}

struct Hub {
    endpoint: Endpoint,
    events: Events,
    seen: Vec<Event>,
}

impl Hub {
    fn new(limits: Limits) -> Self {
        let endpoint = Endpoint::new(FRAMING, limits).expect("descriptors");
        Self { endpoint, events: Events::with_limit(64), seen: Vec::new() }
    }

    fn adopt(&mut self, link: Link) -> Peer {
        self.endpoint.adopt(link).expect("room")
    }

    fn poll(&mut self) {
        self.endpoint.poll(&mut self.events);
        self.seen.extend(self.events.drain());
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = soon();
        while !done(self) {
            assert!(Instant::now() < deadline, "{what}: not in time; saw {:?}", self.seen);
            self.poll();
        }
    }

    fn send(&mut self, peer: Peer, count: u64) {
        let mut batch = Batch::default();
        for number in 0..count {
            batch.send(peer, Token(number), head(number, &Body::empty()), Body::empty());
        }
        self.endpoint.post(&mut batch).expect("room");
    }

    fn arrived(&self) -> Vec<u64> {
        let number = |event: &Event| match event {
            Event::Arrived { head, .. } => Some(number_of(head)),
            _ => None,
        };
        self.seen.iter().filter_map(number).collect()
    }

    fn loss(&self) -> Option<LostReason> {
        self.seen.iter().find_map(|event| match event {
            Event::Lost { reason, .. } => Some(*reason),
            _ => None,
        })
    }

    /// Prepares to sleep, as the loop does with its turn between, until nothing speaks against it, and says what it sleeps on.
    fn arm(&mut self) -> Sleep {
        let deadline = soon();
        loop {
            assert!(Instant::now() < deadline, "it never comes to sleep; saw {:?}", self.seen);
            if let Armed::Sleep(sleep) = self.endpoint.arm() {
                let before = self.seen.len();
                self.poll();
                if self.seen.len() == before && !is_rung(&sleep) {
                    return sleep;
                }
            }
            self.endpoint.waker().disarm();
            self.poll();
        }
    }
}

/// Whether a sleep would end at once.
fn is_rung(sleep: &Sleep) -> bool {
    let Sleep::Descriptor { descriptor, .. } = sleep else { panic!("it sleeps on its set") };
    let mut set = [rustix::event::PollFd::new(descriptor, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut set, Some(&rustix::event::Timespec::default())).expect("no signal") == 1
}

fn pair() -> (Hub, Peer, Hub, Peer) {
    let (left, right) = links(RING_BYTES);
    let (mut one, mut other) = (Hub::new(limits()), Hub::new(limits()));
    let (to_other, to_one) = (one.adopt(left), other.adopt(right));
    (one, to_other, other, to_one)
}

/// The bytes of a message whose head says so many bytes of body.
fn frame(number: u64, len: usize) -> Vec<u8> {
    let mut arena = Arena::new(8 << 20);
    let body: Body = arena.take(len).expect("enough memory").freeze().into();
    let mut bytes = head(number, &body).as_bytes().to_vec();
    bytes.extend(std::iter::repeat_n(9, len));
    bytes
}

#[test]
fn who_looks_is_not_rung_and_who_sleeps_is_rung_once() {
    let (mut one, to_other, mut other, _) = pair();
    // Nobody looks at a fresh link.
    let before = rings::of_this_thread();
    one.send(to_other, 3);
    one.send(to_other, 3);
    assert_eq!(rings::of_this_thread() - before, 1, "one ring for both");
    other.until("six come", |other| other.arrived().len() == 6);
    let before = rings::of_this_thread();
    for _ in 0..10 {
        one.send(to_other, 3);
        other.poll();
    }
    assert_eq!(rings::of_this_thread() - before, 0, "it looks");
    other.until("all come", |other| other.arrived().len() == 36);
    let sleep = other.arm();
    one.send(to_other, 1);
    one.send(to_other, 1);
    assert_eq!(rings::of_this_thread() - before, 1, "a batch to a sleeper");
    assert!(is_rung(&sleep));
    // It still sleeps as far as anybody knows: what comes after the ring was heard rings again.
    other.poll();
    assert_eq!(other.arrived().len(), 38);
    assert!(!is_rung(&sleep), "it was heard");
    one.send(to_other, 1);
    assert!(is_rung(&sleep));
    other.endpoint.waker().disarm();
    other.poll();
    assert_eq!(other.arrived().len(), 39);
}

/// A writer that sleeps because the ring is full is rung when the reader has made room.
#[test]
fn room_rings_a_sleeping_writer() {
    let (mut one, to_other, mut other, _) = pair();
    let body: Body = Arena::new(1 << 20).take(3 * RING_BYTES).expect("enough").freeze().into();
    let mut batch = Batch::default();
    batch.send(to_other, Token(1), head(1, &body), body);
    one.endpoint.post(&mut batch).expect("room");
    for round in 0..3 {
        let sleep = one.arm();
        // A post into a full ring is no reason to stay awake.
        one.send(to_other, 1);
        assert!(!is_rung(&sleep), "round {round}");
        other.until(&format!("round {round}: it is rung"), |_| is_rung(&sleep));
        one.endpoint.waker().disarm();
        one.poll();
    }
    other.until("all comes", |other| {
        one.poll();
        other.arrived() == [1, 0, 0, 0]
    });
    one.until("sent", |one| one.seen.len() == 4);
}

/// An announcement that is not answered, with more behind it, does not keep the thread awake.
#[test]
fn an_open_announcement_lets_the_thread_sleep() {
    let (left, right) = links(RING_BYTES);
    let (mut one, mut other) = (Hub::new(limits()), Hub::new(limits()));
    let to_other = one.adopt(left);
    other.adopt(right.place_from(1));
    let body: Body = Arena::new(1 << 20).take(100).expect("enough").freeze().into();
    let mut batch = Batch::default();
    batch.send(to_other, Token(1), head(1, &body), body);
    one.endpoint.post(&mut batch).expect("room");
    other.until("announced", |other| !other.seen.is_empty());
    one.send(to_other, 3);
    other.poll();
    // It hears the ring; there is nothing to be done about it.
    let sleep = other.arm();
    let Some(Event::Announced { arrival, .. }) = other.seen.pop() else { panic!("announced") };
    other.endpoint.place(arrival, None);
    assert!(is_rung(&sleep), "an answer in the turn before the sleep is seen to");
    other.endpoint.waker().disarm();
    other.until("the rest comes", |other| other.arrived().len() == 3);
}

#[test]
fn a_close_in_the_turn_before_the_sleep_is_seen_to() {
    let (mut one, to_other, _other, _) = pair();
    let sleep = one.arm();
    one.endpoint.close(to_other);
    assert!(is_rung(&sleep));
    one.endpoint.waker().disarm();
    one.until("lost", |one| one.loss() == Some(LostReason::ClosedHere));
}

/// Of many peers those that are silent go back to ringing; all are heard.
#[test]
fn a_thousand_peers_are_heard_and_the_silent_ones_ring() {
    const COUNT: u64 = 1_024;
    // Two descriptors a link, both ends being here.
    let wanted = rustix::process::Rlimit { current: Some(8_192), maximum: Some(8_192) };
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if limit.current.is_some_and(|current| current < 8_192) {
        rustix::process::setrlimit(rustix::process::Resource::Nofile, wanted)
            .expect("8,192 descriptors (ulimit -n)");
    }
    let mut hub = Hub::new(limits());
    let mut far = Hub::new(limits());
    let mut peers = Vec::new();
    for _ in 0..COUNT {
        let (here, there) = links(RING_BYTES);
        let _ = hub.adopt(here);
        peers.push(far.adopt(there));
    }
    for _ in 0..2 {
        for peer in &peers {
            far.send(*peer, 1);
        }
        hub.until("one of each", |hub| hub.seen.len() as u64 == COUNT);
        let mut who: Vec<_> = hub
            .seen
            .drain(..)
            .map(|event| match event {
                Event::Arrived { peer, .. } => peer,
                other => panic!("an arrival, not {other:?}"),
            })
            .collect();
        who.sort();
        who.dedup();
        assert_eq!(who.len() as u64, COUNT);
        far.until("completed", |far| far.seen.len() as u64 == COUNT);
        far.seen.clear();
        hub.until("few are looked at", |hub| hub.endpoint.looked_at_count() <= 16);
    }
}

#[test]
fn memory_beyond_the_budget_is_refused_by_name() {
    let shared_bytes = 2 * mapped_bytes(RING_BYTES) + 1;
    let mut hub = Hub::new(Limits { shared_bytes, ..limits() });
    let mut far = Hub::new(limits());
    let mut refused = None;
    for _ in 0..3 {
        let (here, there) = links(RING_BYTES);
        far.adopt(there);
        refused = hub.endpoint.adopt(here).err();
    }
    let error = refused.expect("two fit, three do not");
    assert_eq!(error, AdoptError::SharedMemory { limit: shared_bytes });
    assert!(error.to_string().contains("`shared_bytes`"), "{error}");
    far.until("the refused hear of it", |far| far.loss() == Some(LostReason::ClosedByPeer));
    // What is given up is there for others.
    let peer = Peer(0);
    hub.endpoint.close(peer);
    hub.until("closed", |hub| hub.loss().is_some());
    let (here, _there) = links(RING_BYTES);
    hub.adopt(here);
}

/// Whatever another process writes into its words, it loses this link and nothing else happens.
#[test]
fn impossible_positions_cut_the_peer_off() {
    for lie in [RING_BYTES as u64 + 1, u64::MAX, 1 << 63] {
        let (link, evil) = hostile();
        let mut hub = Hub::new(limits());
        hub.adopt(link);
        hub.poll();
        evil.mapping().side(1).written.0.store(lie, Ordering::Relaxed);
        evil.wire.ring();
        hub.until("cut off", |hub| hub.loss().is_some());
        assert_eq!(hub.loss(), Some(LostReason::Violation(Violation::Indices)), "written {lie}");
        // And of the other direction, found by a post.
        let (link, evil) = hostile();
        let peer = hub.adopt(link);
        hub.seen.clear();
        evil.mapping().side(1).read.0.store(lie, Ordering::Relaxed);
        let body: Body = Arena::new(1 << 20).take(2 * RING_BYTES).expect("enough").freeze().into();
        let mut batch = Batch::default();
        batch.send(peer, Token(1), head(1, &body), body);
        hub.endpoint.post(&mut batch).expect("room");
        hub.until("cut off", |hub| hub.loss().is_some());
        let violation = LostReason::Violation(Violation::Indices);
        assert!(
            matches!(hub.seen[..], [Event::Sent { outcome: Err(_), .. }, Event::Lost { reason, .. }] if reason == violation),
            "{:?}",
            hub.seen
        );
    }
}

/// A position that goes back, after it was believed.
#[test]
fn a_position_that_goes_back_cuts_the_peer_off() {
    let (link, mut evil) = hostile();
    let mut hub = Hub::new(limits());
    hub.adopt(link);
    evil.send.write(&frame(1, 100)).expect("room");
    evil.tell();
    hub.until("arrives", |hub| hub.arrived() == [1]);
    evil.mapping().side(1).written.0.store(100, Ordering::Relaxed);
    hub.until("cut off", |hub| hub.loss().is_some());
    assert_eq!(hub.loss(), Some(LostReason::Violation(Violation::Indices)));
}

#[test]
fn heads_that_lie_cut_the_peer_off() {
    let long = frame(1, 0);
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = long.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let cases = [
        (with(8, &u32::MAX.to_le_bytes()), Violation::BodyTooLong),
        (with(8, &((1_u32 << 20) + 1).to_le_bytes()), Violation::BodyTooLong),
        (with(12, &u16::MAX.to_le_bytes()), Violation::Head),
        (with(14, &[0, 0]), Violation::Head),
        (vec![0xff; 64], Violation::Head),
    ];
    for (bytes, violation) in cases {
        let (link, mut evil) = hostile();
        let mut hub = Hub::new(limits());
        hub.adopt(link);
        evil.send.write(&bytes).expect("room");
        evil.tell();
        hub.until("cut off", |hub| hub.loss().is_some());
        assert_eq!(hub.loss(), Some(LostReason::Violation(violation)));
        assert_eq!(hub.arrived(), [0; 0]);
    }
}

/// A process that goes on changing what it has published: what is judged is what was copied, so whatever is accepted is consistent.
#[test]
fn bytes_that_change_under_the_reader_are_judged_in_the_copy() {
    let (link, mut evil) = hostile();
    let mut hub = Hub::new(limits());
    hub.adopt(link);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mapping = std::sync::Arc::clone(evil.mapping());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Two heads that are both right, with bodies of different lengths, over each other at every frame's place.
            let heads = [frame(1, 64), frame(2, 0)];
            while !stop.load(Ordering::Relaxed) {
                for (position, head) in (0..RING_BYTES as u64).step_by(64).zip(heads.iter().cycle()) {
                    mapping.write(1, position, &head[..64]);
                }
            }
        });
        for _ in 0..2_000 {
            if evil.send.write(&frame(2, 0)) == Ok(0) {
                std::thread::yield_now();
            }
            evil.tell();
            hub.poll();
            if hub.loss().is_some() {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    for event in &hub.seen {
        match event {
            Event::Arrived { head: found, body, .. } => match number_of(found) {
                1 => assert_eq!(body.len(), 64),
                2 => assert_eq!(body.len(), 0),
                // Torn between two heads that differ in the number and the length only: any mixture of whole bytes.
                other => panic!("number {other}"),
            },
            Event::Lost { reason, .. } => assert!(matches!(reason, LostReason::Violation(_)), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
}

/// Rings without end, a socket that is never read, and descriptors nobody asked for: the endpoint neither blocks nor keeps them.
#[test]
fn a_hostile_wire_costs_its_peer_only() {
    let (link, mut evil) = hostile();
    let mut hub = Hub::new(limits());
    let peer = hub.adopt(link);
    evil.wire.set_nonblocking(true).expect("a socket");
    let rings = [1; 4096];
    while (&evil.wire).write(&rings).is_ok() {}
    hub.poll();
    hub.send(peer, 1);
    evil.send.write(&frame(5, 10)).expect("room");
    evil.tell();
    hub.until("arrives", |hub| hub.arrived() == [5]);
    // All rings are heard in the end.
    drop(hub.arm());
    hub.endpoint.waker().disarm();
    // It wants to be rung all the time and never listens.
    for number in 0..100_000_u64 {
        evil.mapping().side(1).state.0.bell.store(2 * number + 1, Ordering::Relaxed);
        hub.send(peer, 1);
        hub.poll();
        hub.seen.clear();
        assert!(evil.receive.look().is_ok());
        evil.receive.skip(usize::MAX);
        evil.tell();
    }
    // A descriptor comes with a ring: nobody takes it, so the kernel closes it.
    let (mut reader, writer) = std::io::pipe().expect("descriptors");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let passed = [writer.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&passed)));
    sendmsg(&evil.wire, &[IoSlice::new(&[1])], &mut control, SendFlags::empty()).expect("room");
    drop(writer);
    drop(hub.arm());
    assert_eq!(reader.read(&mut [0; 1]).expect("a pipe"), 0, "the other end is closed");
}

/// A peer that was closed here and takes nothing is given up in the end.
#[test]
fn a_close_does_not_wait_for_ever() {
    let (link, evil) = hostile();
    let mut hub = Hub::new(limits());
    let peer = hub.adopt(link);
    let body: Body = Arena::new(1 << 20).take(2 * RING_BYTES).expect("enough").freeze().into();
    let mut batch = Batch::default();
    batch.send(peer, Token(1), head(1, &body), body);
    hub.endpoint.post(&mut batch).expect("room");
    hub.endpoint.close(peer);
    hub.poll();
    assert_eq!(hub.loss(), None, "it is brought out first");
    // The sleeps are bounded, so that the end is found by a thread that has nothing else to do.
    let Sleep::Descriptor { at_most_ns, .. } = hub.arm() else { panic!("it sleeps on its set") };
    assert!(at_most_ns.is_some());
    hub.endpoint.waker().disarm();
    hub.until("given up", |hub| hub.loss() == Some(LostReason::ClosedHere));
    assert!(matches!(hub.seen[0], Event::Sent { outcome: Err(LostReason::ClosedHere), .. }));
    drop(evil);
}

/// The kinds of the end, each after what was published whole.
#[test]
fn the_end_of_a_ring_tells() {
    for (bytes, orderly, reason) in [
        (frame(1, 100), true, LostReason::ClosedByPeer),
        (frame(1, 100), false, LostReason::Broken),
        ([frame(1, 100), frame(2, 100)[..150].to_vec()].concat(), true, LostReason::Broken),
        ([frame(1, 100), frame(2, 100)[..30].to_vec()].concat(), true, LostReason::Broken),
    ] {
        let (link, mut evil) = hostile();
        let mut hub = Hub::new(limits());
        hub.adopt(link);
        evil.send.write(&bytes).expect("room");
        evil.tell();
        evil.cut_off = !orderly;
        drop(evil);
        hub.until("lost", |hub| hub.loss().is_some());
        assert_eq!((hub.arrived(), hub.loss()), (vec![1], Some(reason)));
    }
}

fn memfd(seals: Option<SealFlags>, bytes: u64) -> OwnedFd {
    let file = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("memory");
    ftruncate(&file, bytes).expect("a small file");
    if let Some(seals) = seals {
        fcntl_add_seals(&file, seals).expect("may be sealed");
    }
    file
}

/// What `accept` says to a message with these descriptors, and what the offering side is told.
fn offered(message: &[u8], descriptors: &[BorrowedFd<'_>]) -> (Result<Link, ExchangeError>, Vec<u8>) {
    let (mut left, right) = UnixStream::pair().expect("descriptors");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    sendmsg(&left, &[IoSlice::new(message)], &mut control, SendFlags::empty()).expect("room");
    let outcome = accept(right, 7, 1 << 20, soon());
    left.set_nonblocking(true).expect("a socket");
    let mut answer = vec![0; 64];
    let count = left.read(&mut answer).unwrap_or(0);
    answer.truncate(count);
    (outcome, answer)
}

fn message(number: u64, ring_bytes: u64) -> Vec<u8> {
    [&b"rfshm\0\0\x01"[..], &number.to_le_bytes(), &ring_bytes.to_le_bytes()].concat()
}

#[test]
fn memory_that_is_not_what_it_should_be_is_refused() {
    let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    let bytes = mapped_bytes(RING_BYTES) as u64;
    let good = memfd(Some(all), bytes);
    let ring = RING_BYTES as u64;
    let directory = OwnedFd::from(std::fs::File::open("/proc").expect("a directory"));
    let file = OwnedFd::from(std::fs::File::open("/proc/self/exe").expect("a file"));
    let small = memfd(Some(all), bytes - 1);
    let large = memfd(Some(all), bytes + 4096);
    let (open, growing, resealable) = (
        memfd(None, bytes),
        memfd(Some(SealFlags::SHRINK | SealFlags::SEAL), bytes),
        memfd(Some(SealFlags::SHRINK | SealFlags::GROW), bytes),
    );
    let read_only = memfd(Some(all | SealFlags::FUTURE_WRITE), bytes);
    let (pipe, _writer) = std::io::pipe().expect("descriptors");
    let pipe = OwnedFd::from(pipe);
    let (outcome, answer) = offered(&message(7, ring), &[good.as_fd()]);
    assert!(outcome.is_ok(), "{outcome:?}");
    assert_eq!(answer[8], 0);
    let cases: [(&str, Vec<u8>, Vec<&OwnedFd>, &str); 15] = [
        ("nothing", message(7, ring), vec![], "not exactly one"),
        ("two", message(7, ring), vec![&good, &good], "not exactly one"),
        ("many", message(7, ring), vec![&good; 8], "not exactly one"),
        ("a directory", message(7, ring), vec![&directory], "not shared memory"),
        ("a file", message(7, ring), vec![&file], "not shared memory"),
        ("a pipe", message(7, ring), vec![&pipe], "not shared memory"),
        ("too small", message(7, ring), vec![&small], "instead of"),
        ("too large", message(7, ring), vec![&large], "instead of"),
        ("not sealed", message(7, ring), vec![&open], "sealed"),
        ("growing", message(7, ring), vec![&growing], "sealed"),
        ("seals may change", message(7, ring), vec![&resealable], "sealed"),
        ("not writable", message(7, ring), vec![&read_only], "does not map"),
        ("of another connection", message(8, ring), vec![&good], "connection 8"),
        ("larger than agreed", message(7, 2 << 20), vec![&good], "power of two"),
        ("no power of two", message(7, ring + 1), vec![&good], "power of two"),
    ];
    for (what, message, descriptors, words) in cases {
        let descriptors: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
        let (outcome, answer) = offered(&message, &descriptors);
        let Err(ExchangeError::Unfit(text)) = outcome else { panic!("{what}: {outcome:?}") };
        assert!(text.contains(words), "{what}: {text}");
        assert_ne!(answer[8], 0, "{what}: the other side is told");
    }
    for ring_bytes in [0, 1, 64, u64::MAX, 1 << 63, RING_BYTES_MAX as u64 * 2] {
        let (outcome, _) = offered(&message(7, ring_bytes), &[good.as_fd()]);
        assert!(matches!(outcome, Err(ExchangeError::Unfit(_))), "{ring_bytes}: {outcome:?}");
    }
    let (outcome, _) = offered(&[0x20; 24], &[good.as_fd()]);
    assert!(matches!(outcome, Err(ExchangeError::Foreign)), "{outcome:?}");
}

#[test]
fn an_exchange_ends_by_its_deadline_and_by_a_close() {
    let short = || Instant::now() + Duration::from_millis(50);
    let (left, right) = UnixStream::pair().expect("descriptors");
    assert!(matches!(accept(right, 7, RING_BYTES, short()), Err(ExchangeError::Late)), "nothing comes");
    drop(left);
    let (mut left, right) = UnixStream::pair().expect("descriptors");
    left.write_all(&message(7, 4096)[..23]).expect("room");
    assert!(matches!(accept(right, 7, RING_BYTES, short()), Err(ExchangeError::Late)), "not all comes");
    let (left, right) = UnixStream::pair().expect("descriptors");
    drop(left);
    assert!(matches!(accept(right, 7, RING_BYTES, soon()), Err(ExchangeError::Closed)));
    let (left, right) = UnixStream::pair().expect("descriptors");
    assert!(matches!(offer(left, 7, RING_BYTES, short()), Err(ExchangeError::Late)), "no answer");
    drop(right);
    // A full socket takes no offer.
    let (left, _right) = UnixStream::pair().expect("descriptors");
    left.set_nonblocking(true).expect("a socket");
    while (&left).write(&[0; 4096]).is_ok() {}
    left.set_nonblocking(false).expect("a socket");
    assert!(matches!(offer(left, 7, RING_BYTES, short()), Err(ExchangeError::Late)), "no room");
    for (answer, expected) in [(1, "memory limit"), (2, "settings"), (3, "version")] {
        let (left, mut right) = UnixStream::pair().expect("descriptors");
        let bytes = [&b"rfshm\0\0\x01"[..], &[answer, 0, 0, 0, 0, 0, 0, 0]].concat();
        right.write_all(&bytes).expect("room");
        let error = offer(left, 7, RING_BYTES, soon()).expect_err("refused");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

/// The words of a mapping can be reached by both sides, and only there.
#[test]
fn both_sides_see_one_memory() {
    let (mapping, file) = Mapping::create(RING_BYTES).expect("a few pages");
    let other = Mapping::open(&file, RING_BYTES).expect("sealed");
    for position in [0, 100, RING_BYTES as u64 - 3] {
        mapping.write(1, position, b"seven");
        let mut bytes = [0; 5];
        other.read(1, position, &mut bytes);
        assert_eq!(&bytes, b"seven");
        other.read(0, position, &mut bytes);
        assert_eq!(bytes, [0; 5], "the other ring");
    }
    mapping.side(1).read.0.store(9, Ordering::Relaxed);
    assert_eq!(other.side(1).read.0.load(Ordering::Relaxed), 9);
    assert_eq!(other.side(0).read.0.load(Ordering::Relaxed), 0);
}
