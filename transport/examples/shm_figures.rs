//! Figures of the shm backend beside a raw ring of the same size and with the same frames, interleaved in one run: a small
//! round trip, streams of 64 KiB and 1 MiB, both sides spinning. `cargo run --release -p rangefold-transport --example shm_figures
//! [ring KiB]`; a real-time priority from outside (`chrt -f 50`) keeps other work out.
//!
//! The raw ring copies in and out with `memcpy` and does nothing else: no heads are read, no memory is taken for bodies, nobody is
//! distrusted. Two cores may be near (one cache) or far from each other, and move: each cell is probed before and after, dropped if
//! that changed, and both states have a table of their own. Prints medians, least and most, and ratios within a round.

use std::cell::{Cell, UnsafeCell};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rangefold_transport::conformance::{FRAMING, head, number_of};
use rangefold_transport::wait::{Clock, Loop};
use rangefold_transport::{Arena, Batch, Body, Endpoint as _, Event, Events, Link, Shell, Token, Turn, shm};

const ROUNDS: usize = 15;
const STREAM_TIME: Duration = Duration::from_millis(40);
const PAUSE: Duration = Duration::from_millis(50);
const TRIPS: usize = 20_000;
const PROBE_TRIPS: usize = 2_000;
const HEAD_BYTES: usize = 64;
const REQUEST_BODY_BYTES: usize = 256;
/// A raw round trip of less than this is one within a cache.
const NEAR_NS: f64 = 400.0;

/// What it is, its unit, whether more of it is better, and the two ways: raw and ours.
type Row<'a> = (&'a str, &'a str, bool, [&'a dyn Fn() -> f64; 2]);

fn main() {
    let kib = std::env::args().nth(1).and_then(|kib| kib.parse::<usize>().ok());
    let ring_bytes = kib.map_or(shm::RING_BYTES_DEFAULT, |kib| kib << 10);
    println!("rings of {} KiB, {ROUNDS} rounds", ring_bytes >> 10);
    let rows: [Row<'_>; 3] = [
        ("round trip 320 B / 64 B, p50", "ns", false, [&|| raw_trips(TRIPS), &|| trips(ring_bytes)]),
        (
            "stream of 64 KiB",
            "GB/s",
            true,
            [&|| raw_stream(ring_bytes, 64 << 10), &|| stream(ring_bytes, 64 << 10)],
        ),
        (
            "stream of 1 MiB",
            "GB/s",
            true,
            [&|| raw_stream(ring_bytes, 1 << 20), &|| stream(ring_bytes, 1 << 20)],
        ),
    ];
    let mut pairs = vec![[Vec::new(), Vec::new()]; rows.len()];
    let mut dropped = 0;
    for round in 0..ROUNDS {
        for ((_, _, _, ways), pairs) in rows.iter().zip(&mut pairs) {
            // At a real-time priority nobody else runs meanwhile.
            std::thread::sleep(PAUSE);
            let before = is_near();
            // In alternating order.
            let pair = if round % 2 == 0 {
                let raw = ways[0]();
                (raw, ways[1]())
            } else {
                let ours = ways[1]();
                (ways[0](), ours)
            };
            if before == is_near() {
                pairs[usize::from(before)].push(pair);
            } else {
                dropped += 1;
            }
        }
    }
    println!("{dropped} pairs dropped, because the cores moved");
    for (near, title) in [(1, "near"), (0, "far")] {
        println!("{title}:");
        for ((name, unit, more_is_better, _), pairs) in rows.iter().zip(&pairs) {
            let pairs = &pairs[near];
            if pairs.is_empty() {
                continue;
            }
            let ratio = |(raw, ours): &(f64, f64)| if *more_is_better { ours / raw } else { raw / ours };
            let raw = spread(pairs.iter().map(|pair| pair.0));
            let ours = spread(pairs.iter().map(|pair| pair.1));
            let of_raw = spread(pairs.iter().map(ratio));
            println!(
                "  {name:<30} raw ring {raw} {unit}, shm {ours} {unit}, {of_raw} of the ring, {} rounds",
                pairs.len()
            );
        }
    }
}

/// Median, least and most.
fn spread(figures: impl Iterator<Item = f64>) -> String {
    let mut figures: Vec<f64> = figures.collect();
    let median = median(&mut figures);
    format!("{median:.2} ({:.2} to {:.2})", figures[0], figures[figures.len() - 1])
}

/// Sorts as well.
fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn is_near() -> bool {
    raw_trips(PROBE_TRIPS) < NEAR_NS
}

fn pin(core: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    // Without a second core the figures say little, but there are some.
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn rate(bytes: u64, started: Instant) -> f64 {
    bytes as f64 / started.elapsed().as_secs_f64() / 1e9
}

/// The shortest ring of bytes there is: two indices, `memcpy`, and trust.
#[repr(C, align(128))]
struct Index(AtomicU64);

struct Raw {
    written: Index,
    read: Index,
    bytes: Box<[UnsafeCell<u8>]>,
}

// SAFETY: a byte is touched by one side at a time, handed over through the indices (`put`, `take`).
unsafe impl Sync for Raw {}

impl Raw {
    fn new(bytes: usize) -> Arc<Self> {
        let index = || Index(AtomicU64::new(0));
        let bytes = (0..bytes).map(|_| UnsafeCell::new(0)).collect();
        Arc::new(Self { written: index(), read: index(), bytes })
    }

    fn place(&self, position: u64) -> (*mut u8, usize) {
        let at = usize::try_from(position).expect("64 bits") & (self.bytes.len() - 1);
        (self.bytes[at].get(), self.bytes.len() - at)
    }
}

/// One side's copy of both indices.
struct End {
    ring: Arc<Raw>,
    own: u64,
    other: u64,
}

impl End {
    fn new(ring: &Arc<Raw>) -> Self {
        Self { ring: Arc::clone(ring), own: 0, other: 0 }
    }

    fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (place, to_end) = self.ring.place(self.own);
            let count = bytes.len().min(to_end).min(32 << 10);
            while self.own + count as u64 - self.other > self.ring.bytes.len() as u64 {
                self.other = self.ring.read.0.load(Ordering::Acquire);
                std::hint::spin_loop();
            }
            // SAFETY: `count` bytes follow the place, and the reader has left them.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, count) };
            self.own += count as u64;
            self.ring.written.0.store(self.own, Ordering::Release);
            bytes = &bytes[count..];
        }
    }

    /// Says whether all has come; not when the other has stopped before.
    fn take(&mut self, mut bytes: &mut [u8], stopped: &AtomicBool) -> bool {
        while !bytes.is_empty() {
            if self.own == self.other {
                let is_last = stopped.load(Ordering::Acquire);
                self.other = self.ring.written.0.load(Ordering::Acquire);
                if self.own == self.other && is_last {
                    return false;
                }
                std::hint::spin_loop();
                continue;
            }
            let (place, to_end) = self.ring.place(self.own);
            let there = usize::try_from(self.other - self.own).expect("64 bits");
            let count = bytes.len().min(to_end).min(there).min(32 << 10);
            // SAFETY: `count` bytes follow the place, and the writer has published them.
            unsafe { std::ptr::copy_nonoverlapping(place, bytes.as_mut_ptr(), count) };
            self.own += count as u64;
            self.ring.read.0.store(self.own, Ordering::Release);
            bytes = &mut bytes[count..];
        }
        true
    }
}

fn raw_trips(trips: usize) -> f64 {
    let (there, back) = (Raw::new(64 << 10), Raw::new(64 << 10));
    let never = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(1);
            let (mut requests, mut replies) = (End::new(&there), End::new(&back));
            let mut request = [0; HEAD_BYTES + REQUEST_BODY_BYTES];
            for _ in 0..trips {
                requests.take(&mut request, &never);
                replies.put(&request[..HEAD_BYTES]);
            }
        });
        let client = scope.spawn(|| {
            pin(0);
            let (mut requests, mut replies) = (End::new(&there), End::new(&back));
            let request = [7; HEAD_BYTES + REQUEST_BODY_BYTES];
            let mut reply = [0; HEAD_BYTES];
            let mut times = Vec::with_capacity(trips);
            for _ in 0..trips {
                let started = Instant::now();
                requests.put(&request);
                replies.take(&mut reply, &never);
                times.push(started.elapsed().as_secs_f64() * 1e9);
            }
            median(&mut times)
        });
        client.join().expect("it ends")
    })
}

fn raw_stream(ring_bytes: usize, body_bytes: usize) -> f64 {
    let ring = Raw::new(ring_bytes);
    let stopped = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(0);
            let mut end = End::new(&ring);
            let (head, body) = ([7; HEAD_BYTES], vec![7; body_bytes]);
            let started = Instant::now();
            while started.elapsed() < STREAM_TIME {
                end.put(&head);
                end.put(&body);
            }
            stopped.store(true, Ordering::Release);
        });
        let receiver = scope.spawn(|| {
            pin(1);
            let mut end = End::new(&ring);
            let (mut head, mut body) = ([0; HEAD_BYTES], vec![0; body_bytes]);
            let (started, mut bytes) = (Instant::now(), 0);
            while end.take(&mut head, &stopped) && end.take(&mut body, &stopped) {
                bytes += (HEAD_BYTES + body_bytes) as u64;
            }
            rate(bytes, started)
        });
        receiver.join().expect("it ends")
    })
}

/// A shell that does one thing with each event and posts after.
struct Side<F> {
    endpoint: shm::Endpoint,
    events: Events,
    batch: Batch,
    handle: F,
}

impl<F: FnMut(Option<Event>, &mut Batch)> Shell for Side<F> {
    type Endpoint = shm::Endpoint;

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

    fn endpoint(&mut self) -> &mut shm::Endpoint {
        &mut self.endpoint
    }
}

fn drive<F: FnMut(Option<Event>, &mut Batch)>(endpoint: shm::Endpoint, handle: F, done: &Cell<bool>) {
    let mut side = Side { endpoint, events: Events::with_limit(64), batch: Batch::default(), handle };
    Loop::new(Clock::new(), 2).with_spin_ns(u64::MAX).run(&mut side, |_| done.get(), None);
}

fn links(ring_bytes: usize) -> (Link, Link) {
    let (left, right) = UnixStream::pair().expect("descriptors");
    let deadline = Instant::now() + Duration::from_secs(10);
    std::thread::scope(|scope| {
        let offered = scope.spawn(move || shm::offer(left, 1, ring_bytes, deadline));
        let accepted = shm::accept(right, 1, ring_bytes, deadline).expect("what was offered");
        (offered.join().expect("it ends").expect("accepted"), accepted)
    })
}

fn endpoint() -> shm::Endpoint {
    shm::Endpoint::new(FRAMING, shm::Limits::default()).expect("descriptors")
}

fn trips(ring_bytes: usize) -> f64 {
    let (left, right) = links(ring_bytes);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            pin(1);
            let mut endpoint = endpoint();
            let client = endpoint.adopt(right).expect("room");
            let done = Cell::new(false);
            let handle = |event: Option<Event>, batch: &mut Batch| match event {
                Some(Event::Arrived { head: request, body, .. }) => {
                    assert_eq!(body.len(), REQUEST_BODY_BYTES);
                    let number = number_of(&request);
                    batch.send(client, Token(number), head(number, &Body::empty()), Body::empty());
                }
                Some(Event::Lost { .. }) => done.set(true),
                _ => {}
            };
            drive(endpoint, handle, &done);
        });
        let client = scope.spawn(move || {
            pin(0);
            let mut endpoint = endpoint();
            let server = endpoint.adopt(left).expect("room");
            let mut arena = Arena::new(1 << 20);
            let body: Body = arena.take(REQUEST_BODY_BYTES).expect("enough").freeze().into();
            let (mut times, mut started, mut waiting) = (Vec::with_capacity(TRIPS), Instant::now(), false);
            let done = Cell::new(false);
            let handle = |event: Option<Event>, batch: &mut Batch| match event {
                Some(Event::Arrived { head, .. }) => {
                    assert_eq!(number_of(&head), times.len() as u64);
                    times.push(started.elapsed().as_secs_f64() * 1e9);
                    waiting = false;
                }
                Some(Event::Lost { reason, .. }) => panic!("{reason}"),
                Some(_) => {}
                None if waiting => {}
                None if times.len() == TRIPS => done.set(true),
                None => {
                    let number = times.len() as u64;
                    started = Instant::now();
                    batch.send(server, Token(number), head(number, &body), body.clone());
                    waiting = true;
                }
            };
            drive(endpoint, handle, &done);
            median(&mut times)
        });
        client.join().expect("it ends")
    })
}

fn stream(ring_bytes: usize, body_bytes: usize) -> f64 {
    let (left, right) = links(ring_bytes);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            pin(0);
            let mut endpoint = endpoint();
            let peer = endpoint.adopt(left).expect("room");
            let mut arena = Arena::new(4 << 20);
            let mut body = arena.take(body_bytes).expect("enough");
            body.as_mut_bytes().fill(7);
            let body: Body = body.freeze().into();
            let (started, mut posted, mut completed) = (Instant::now(), 0, 0);
            let done = Cell::new(false);
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
            drive(endpoint, handle, &done);
        });
        let receiver = scope.spawn(move || {
            pin(1);
            let mut endpoint = endpoint();
            endpoint.adopt(right).expect("room");
            let (started, mut bytes, mut next) = (Instant::now(), 0, 0);
            let done = Cell::new(false);
            let handle = |event: Option<Event>, _: &mut Batch| match event {
                Some(Event::Arrived { head, body, .. }) => {
                    assert_eq!((number_of(&head), body.len()), (next, body_bytes));
                    assert!(body.slices()[0].as_bytes()[..8] == [7; 8], "the content");
                    next += 1;
                    bytes += (HEAD_BYTES + body.len()) as u64;
                }
                Some(Event::Lost { .. }) => done.set(true),
                Some(event) => panic!("{event:?}"),
                None => {}
            };
            drive(endpoint, handle, &done);
            rate(bytes, started)
        });
        receiver.join().expect("it ends")
    })
}
