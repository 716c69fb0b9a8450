//! Shared memory beyond the conformance suite: load with checked contents, rings smaller than bodies, and real processes that
//! are killed or stopped in the middle of it.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rangefold_transport::conformance::{FRAMING, head, number_of};
use rangefold_transport::shm::{self, Endpoint, Limits};
use rangefold_transport::wait::{Clock, Ended, Loop};
use rangefold_transport::{
    Arena, Batch, Body, Endpoint as _, Event, Events, Link, LostReason, Peer, Shell, Token, Turn,
};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

mod load;

const NUMBER: u64 = 7;
/// What a child process does; unset in the test runner itself.
const CHILD: &str = "RANGEFOLD_TEST_CHILD";

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn links(ring_bytes: usize) -> (Link, Link) {
    let (left, right) = UnixStream::pair().expect("descriptors");
    std::thread::scope(|scope| {
        let offered = scope.spawn(move || shm::offer(left, NUMBER, ring_bytes, soon()));
        let accepted = shm::accept(right, NUMBER, ring_bytes, soon()).expect("what was offered");
        (offered.join().expect("no panic").expect("accepted"), accepted)
    })
}

fn endpoint(receive_bytes: usize) -> Endpoint {
    let limits = Limits {
        peers_max: 16,
        body_bytes_max: 4 << 20,
        operations_per_peer_max: 64,
        receive_bytes,
        ..Limits::default()
    };
    Endpoint::new(FRAMING, limits).expect("descriptors")
}

fn load(
    ring_bytes: usize,
    receive_bytes: usize,
    count: (usize, u64),
    seed: u64,
    spin_ns: u64,
    place: Option<usize>,
) {
    let links = (0..count.0).map(|_| links(ring_bytes));
    load::load([endpoint(receive_bytes), endpoint(receive_bytes)], links, count.1, seed, spin_ns, place);
}

#[test]
fn mixed_load() {
    for (seed, spin_ns) in [(1, 0), (2, 50_000)] {
        load(shm::RING_BYTES_DEFAULT, 32 << 20, (1, 300), seed, spin_ns, None);
        load(shm::RING_BYTES_DEFAULT, 32 << 20, (3, 100), seed + 10, spin_ns, None);
    }
}

#[test]
fn mixed_load_through_small_rings() {
    for (seed, spin_ns) in [(3, 0), (4, 50_000)] {
        load(shm::RING_BYTES_MIN, 32 << 20, (2, 60), seed, spin_ns, None);
    }
}

#[test]
fn mixed_load_with_places() {
    for (seed, from) in [(5, 1), (6, 16 << 10)] {
        load(64 << 10, 32 << 20, (2, 150), seed, 0, Some(from));
    }
}

#[test]
fn mixed_load_in_tiny_memory() {
    for (seed, place) in [(7, None), (8, Some(64 << 10)), (9, None)] {
        load(64 << 10, 0, (4, 80), seed, 0, place);
    }
}

/// An endpoint on its own, driven until something holds.
struct Alone {
    endpoint: Endpoint,
    seen: Vec<Event>,
    events: Events,
}

impl Alone {
    fn new() -> Self {
        Self { endpoint: endpoint(32 << 20), seen: Vec::new(), events: Events::with_limit(16) }
    }

    fn poll(&mut self) {
        self.endpoint.poll(&mut self.events);
        self.seen.extend(self.events.drain());
    }

    /// Drives by the loop that ships, which sleeps.
    fn until(&mut self, what: &str, done: impl FnMut(&mut Self) -> bool) {
        let ended = Loop::new(Clock::new(), 2).with_spin_ns(20_000).run(self, done, Some(30_000_000_000));
        assert_eq!(ended, Ended::Until, "{what}: not in time; saw the last of {:?}", self.seen.last());
    }

    fn loss(&self) -> Option<LostReason> {
        self.seen.iter().find_map(|event| match event {
            Event::Lost { reason, .. } => Some(*reason),
            _ => None,
        })
    }

    fn arrivals(&self) -> impl Iterator<Item = (u64, &Body)> {
        self.seen.iter().filter_map(|event| match event {
            Event::Arrived { head, body, .. } => Some((number_of(head), body)),
            _ => None,
        })
    }

    fn completed(&self, of: Peer) -> usize {
        self.seen.iter().filter(|event| matches!(event, Event::Sent { peer, .. } if *peer == of)).count()
    }
}

impl Shell for Alone {
    type Endpoint = Endpoint;

    fn turn(&mut self, _now_ns: u64) -> Turn {
        let before = self.seen.len();
        self.poll();
        Turn { progressed: self.seen.len() > before, deadline: None }
    }

    fn endpoint(&mut self) -> &mut Endpoint {
        &mut self.endpoint
    }
}

/// A body whose every byte says which message it is of.
fn body_of(arena: &mut Arena, number: u64, len: usize) -> Body {
    let mut slice = arena.take(len).expect("enough memory");
    slice.as_mut_bytes().fill(number.to_le_bytes()[0]);
    slice.freeze().into()
}

fn is_content(number: u64, body: &Body) -> bool {
    body.slices().iter().all(|slice| slice.as_bytes().iter().all(|byte| *byte == number.to_le_bytes()[0]))
}

/// Another process at the other end of a link; killed with the test.
struct Other {
    child: Child,
    link: Option<Link>,
}

impl Other {
    /// Runs `child` of this file in a process of its own, with its end of the socket as its standard input.
    fn new(does: &str) -> Self {
        let (here, there) = UnixStream::pair().expect("descriptors");
        let child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, does)
            .stdin(Stdio::from(OwnedFd::from(there)))
            .stdout(Stdio::null())
            .spawn()
            .expect("this test runs");
        let link = shm::accept(here, NUMBER, shm::RING_BYTES_MAX, soon()).expect("it offers");
        Self { child, link: Some(link) }
    }

    fn link(&mut self) -> Link {
        self.link.take().expect("once")
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn kill(&mut self) {
        kill_process(self.pid(), Signal::KILL).expect("it runs");
        self.child.wait().expect("it was ours");
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bodies are longer than the ring, so their writer is always in the middle of one.
const BODY_BYTES: usize = 1 << 20;
const RING_BYTES: usize = 256 << 10;

/// Not a test: what the other process does, when this is one.
#[test]
fn child() {
    let Ok(does) = std::env::var(CHILD) else { return };
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().expect("a socket"));
    let link = shm::offer(socket, NUMBER, RING_BYTES, soon()).expect("the parent accepts");
    let mut alone = Alone::new();
    let peer = alone.endpoint.adopt(link).expect("room");
    let mut arena = Arena::new(256 << 20);
    let mut batch = Batch::default();
    match &*does {
        // Until it is killed.
        "floods" => {
            for number in 0.. {
                let body = body_of(&mut arena, number, BODY_BYTES);
                batch.send(peer, Token(number), head(number, &body), body);
                alone.until("written", |alone| {
                    let _ = alone.endpoint.post(&mut batch);
                    batch.is_empty() && alone.completed(peer) as u64 + 8 > number
                });
                if alone.loss().is_some() {
                    return;
                }
            }
        }
        "sends three and waits" | "sends three and ends" => {
            for number in 0..3 {
                batch.send(peer, Token(number), head(number, &Body::empty()), Body::empty());
            }
            alone.endpoint.post(&mut batch).expect("room");
            if does.ends_with("waits") {
                alone.until("killed", |alone| alone.loss().is_some());
            }
        }
        "reads" => {
            let mut next = 0;
            alone.until("the end", |alone| {
                for event in alone.seen.drain(..) {
                    match event {
                        Event::Arrived { head: found, body, .. } => {
                            assert_eq!(number_of(&found), next);
                            assert!(is_content(next, &body), "message {next}");
                            next += 1;
                            batch.send(
                                peer,
                                Token(0),
                                head(number_of(&found), &Body::empty()),
                                Body::empty(),
                            );
                        }
                        Event::Lost { .. } => return true,
                        _ => {}
                    }
                }
                let _ = alone.endpoint.post(&mut batch);
                false
            });
        }
        other => panic!("a child does not know how to `{other}`"),
    }
}

/// Mappings in this process of the memory that it shares with the other one. Other tests of this file have links too, so the other
/// process, which has one, says which memory it is.
fn shared_inode(pid: Pid) -> String {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", pid.as_raw_nonzero())).expect("it runs");
    let inodes = maps.lines().filter(|line| line.contains("rangefold-link"));
    let inodes: Vec<_> =
        inodes.map(|line| line.split_whitespace().nth(4).expect("an inode").to_owned()).collect();
    assert_eq!(inodes.len(), 1, "one link: {maps}");
    inodes[0].clone()
}

fn mappings_of(inode: &str) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("a process knows its mappings");
    let is_it =
        |line: &&str| line.contains("rangefold-link") && line.split_whitespace().nth(4) == Some(inode);
    maps.lines().filter(is_it).count()
}

/// What was published whole arrives, the half message does not, and the memory is given back.
#[test]
fn a_process_killed_in_the_middle_of_a_write_is_lost() {
    for wait in [0, 1, 5] {
        let mut other = Other::new("floods");
        let mut alone = Alone::new();
        let peer = alone.endpoint.adopt(other.link()).expect("room");
        alone.until("some come", |alone| alone.arrivals().count() > wait);
        let inode = shared_inode(other.pid());
        assert_eq!(mappings_of(&inode), 1);
        // This side does not read, so the other stands in the middle of a body: a message is longer than the ring. What came until
        // now is one message at most beyond what was counted.
        let before = alone.arrivals().count();
        other.kill();
        alone.until("lost", |alone| alone.loss().is_some());
        assert_eq!(alone.loss(), Some(LostReason::Broken));
        assert!(alone.arrivals().count() <= before + 1);
        for (expected, (number, body)) in (0..).zip(alone.arrivals()) {
            assert_eq!((number, body.len()), (expected, BODY_BYTES));
            assert!(is_content(number, body), "message {number}");
        }
        assert_eq!(mappings_of(&inode), 0, "unmapped");
        let mut batch = Batch::default();
        batch.send(peer, Token(1), head(1, &Body::empty()), Body::empty());
        alone.endpoint.post(&mut batch).expect("it is flushed");
        alone.until("flushed", |alone| alone.completed(peer) == 1);
    }
}

/// Killed between two messages it has not ended in an orderly way either; one that ends by itself has.
#[test]
fn a_killed_process_is_told_from_one_that_ends() {
    for (does, reason) in
        [("sends three and waits", LostReason::Broken), ("sends three and ends", LostReason::ClosedByPeer)]
    {
        let mut other = Other::new(does);
        let mut alone = Alone::new();
        alone.endpoint.adopt(other.link()).expect("room");
        alone.until("three come", |alone| alone.arrivals().count() == 3);
        if reason == LostReason::Broken {
            other.kill();
        }
        alone.until("lost", |alone| alone.loss().is_some());
        assert_eq!(alone.loss(), Some(reason), "{does}");
        assert_eq!(alone.arrivals().map(|(number, _)| number).collect::<Vec<_>>(), [0, 1, 2]);
    }
}

/// A link that nobody has adopted yet is lost as well.
#[test]
fn a_process_killed_before_the_adoption_is_lost() {
    let mut other = Other::new("sends three and waits");
    let link = other.link();
    other.kill();
    let mut alone = Alone::new();
    alone.endpoint.adopt(link).expect("room");
    alone.until("lost", |alone| alone.loss().is_some());
    assert_eq!(alone.loss(), Some(LostReason::Broken));
}

/// A process that is stopped holds up nobody else, memory for it is bounded, and when it goes on everything is delivered.
#[test]
fn a_stopped_process_holds_up_nobody() {
    const COUNT: u64 = 200;
    let (mut stopped, mut good) = (Other::new("reads"), Other::new("reads"));
    let mut hub = Alone::new();
    let to_stopped = hub.endpoint.adopt(stopped.link()).expect("room");
    let to_good = hub.endpoint.adopt(good.link()).expect("room");
    kill_process(stopped.pid(), Signal::STOP).expect("it runs");
    let (_, status) = waitpid(Some(stopped.pid()), WaitOptions::UNTRACED)
        .expect("ours")
        .expect("without NOHANG there is one");
    assert!(status.stopped());
    let mut arena = Arena::new(256 << 20);
    let mut batch = Batch::default();
    for number in 0..COUNT {
        let body = body_of(&mut arena, number, BODY_BYTES);
        batch.send(to_stopped, Token(number), head(number, &body), body);
    }
    for _ in 0..2_000 {
        let _ = hub.endpoint.post(&mut batch);
        hub.poll();
    }
    assert_eq!(hub.completed(to_stopped), 0, "the ring is smaller than a body");
    assert_eq!(batch.len() as u64, COUNT - 64, "as many as may be posted, and no more");
    for number in 0..COUNT {
        let body = body_of(&mut arena, number, 1_000);
        let mut ping = Batch::default();
        ping.send(to_good, Token(number), head(number, &body), body);
        assert_eq!(hub.endpoint.post(&mut ping), Ok(()), "the other one has room");
        hub.until("the other one answers", |hub| hub.arrivals().count() as u64 > number);
    }
    hub.seen.clear();
    kill_process(stopped.pid(), Signal::CONT).expect("it is there");
    hub.until("all is read and answered", |hub| {
        let _ = hub.endpoint.post(&mut batch);
        hub.arrivals().count() as u64 == COUNT
    });
    // It has checked the contents before it answered.
    assert_eq!(hub.arrivals().map(|(number, _)| number).collect::<Vec<_>>(), (0..COUNT).collect::<Vec<_>>());
    assert_eq!(hub.completed(to_stopped) as u64, COUNT);
    drop(hub);
    // Their assertions held: they end well when the link does.
    for mut other in [stopped, good] {
        assert!(other.child.wait().expect("ours").success());
    }
}
