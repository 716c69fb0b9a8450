//! The side that sends frames and measures: one link, its frames under way, the latencies of those acknowledged.
//! Knows frames and times; not sizes to come. Driven by `crew.rs` as one thread's load.
//!
//! **What the latency is**: from handing a frame to the transport (open loop: from when it was due) to the acknowledgement
//! that stands for it: a round trip, never halved. Of deep closed loops only every fourth part of the depth is
//! acknowledged, as receivers of streams do; with a depth of up to 4, and in open loops, each frame is.

use std::collections::VecDeque;
use std::time::Duration;

use rangefold_transport::wait::Loop;
use rangefold_transport::{Body, Endpoint, Event, Head, Link, Region, Shell, Turn};

use super::receiver::nanoseconds;
use super::{Message, Port, lost};
use crate::perf::crew::{Load, Ran, Run, wait_until};
use crate::perf::options::Check;
use crate::perf::pace::{Next, Schedule};
use crate::perf::pattern;
use crate::perf::samples::Samples;
use crate::perf::size::Shape;
use crate::perf::stop::{Flags, LOOK, Stop};

/// An open loop does not sleep when its next frame is due within this: a sleep ends some 50 us late.
const AWAKE_NS: u64 = 100_000;

/// How a sender is made.
pub(in super::super) struct Options {
    /// How the thread waits.
    pub(in super::super) turns: Loop,
    pub(in super::super) flags: Flags,
    pub(in super::super) check: Check,
    pub(in super::super) seed: u64,
    pub(in super::super) timeout: Duration,
    /// The largest body to come.
    pub(in super::super) bytes_max: u64,
}

/// One thread's load on the raw transport.
pub(in super::super) struct Sender<E: Endpoint> {
    port: Port<E>,
    options: Options,
    /// As long as the largest.
    pattern: Body,
    /// Frames sent on this link, and how many of them were acknowledged.
    sent: u64,
    acknowledged: u64,
    /// Bytes that the receiver has found wrong.
    wrong: u64,
}

impl<E: Endpoint> Sender<E> {
    pub(in super::super) fn new(endpoint: E, link: Link, options: Options) -> Result<Self, Stop> {
        let mut port = Port::new(endpoint, link)?;
        let bytes_max = usize::try_from(options.bytes_max).unwrap_or(usize::MAX);
        let (region, mut slice) = Region::anonymous(bytes_max).map_err(|error| Stop::Failed(error.into()))?;
        pattern::fill(slice.as_mut_bytes(), options.seed);
        port.endpoint.attach(&region).map_err(|error| Stop::Failed(error.into()))?;
        Ok(Self { port, options, pattern: slice.freeze().into(), sent: 0, acknowledged: 0, wrong: 0 })
    }

    /// Sends by a schedule until all is acknowledged.
    fn stream(&mut self, shape: &Shape, run: &Run, check: bool) -> Ran {
        let bytes = usize::try_from(shape.bytes).unwrap_or(usize::MAX);
        let clock = self.options.turns.clock();
        let (mut turns, flags, timeout) =
            (self.options.turns, self.options.flags.clone(), self.options.timeout);
        let every = if run.pace.period_ns.is_some() { 1 } else { run.depth.div_ceil(4) as u64 };
        wait_until(clock, run.start_ns, &flags);
        let begun_ns = clock.now_ns().max(run.start_ns);
        let wrong_before = self.wrong;
        let mut stream = Stream {
            body: self.pattern.cut(0..bytes),
            schedule: Schedule::new(run.pace, run.start_ns),
            depth: run.depth,
            every,
            check,
            under_way: VecDeque::with_capacity(run.depth),
            samples: Samples::new(),
            progress_ns: begun_ns,
            ended_ns: begun_ns,
            stopped: None,
            exhausted: false,
            asked: false,
            clock,
            sender: self,
        };
        while !stream.is_done() {
            let now_ns = clock.now_ns();
            if let Err(stop) = flags.check() {
                stream.stopped = Some(stop);
            } else if !stream.under_way.is_empty()
                && now_ns.saturating_sub(stream.progress_ns) > nanoseconds(timeout)
            {
                stream.stopped = Some(Stop::Lost(format!(
                    "no acknowledgement within {timeout:?}: the peer is stopped, or the network between is cut"
                )));
            } else {
                turns.run(
                    &mut stream,
                    |stream| stream.is_done(),
                    Some(now_ns.saturating_add(nanoseconds(LOOK))),
                );
            }
        }
        let Stream { schedule, samples, ended_ns, stopped, .. } = stream;
        let unsent = schedule.unsent(clock.now_ns());
        Ran { begun_ns, ended_ns, samples, unsent, wrong: self.wrong - wrong_before, stopped }
    }
}

impl<E: Endpoint> Load for Sender<E> {
    fn check(&mut self, shape: &Shape) -> Result<u64, Stop> {
        let run = Run::once(self.options.turns.clock());
        let ran = self.stream(shape, &run, true);
        ran.stopped.map_or(Ok(ran.wrong), Err)
    }

    fn run(&mut self, shape: &Shape, run: &Run) -> Ran {
        self.stream(shape, run, self.options.check == Check::Every)
    }
}

/// Frames of one size on their way.
struct Stream<'a, E: Endpoint> {
    sender: &'a mut Sender<E>,
    body: Body,
    schedule: Schedule,
    depth: usize,
    /// Every so many frames one asks for an acknowledgement.
    every: u64,
    check: bool,
    /// When each frame under way counts from.
    under_way: VecDeque<u64>,
    samples: Samples,
    /// When there was last an acknowledgement, or nothing to wait for.
    progress_ns: u64,
    ended_ns: u64,
    stopped: Option<Stop>,
    /// Nothing more is to be sent.
    exhausted: bool,
    /// The last frames were asked about.
    asked: bool,
    clock: rangefold_transport::wait::Clock,
}

impl<E: Endpoint> Stream<'_, E> {
    fn is_done(&self) -> bool {
        self.stopped.is_some() || self.exhausted && self.under_way.is_empty()
    }

    fn arrived(&mut self, head: &Head, body: &Body, now_ns: u64) {
        let message = self.sender.port.read(head, body);
        let Some(Message::Acknowledgement { received, wrong }) = message.filter(|_| body.is_empty()) else {
            return self.violated();
        };
        let Sender { acknowledged, sent, wrong: wrong_before, .. } = &*self.sender;
        if received < *acknowledged || received > *sent || wrong < *wrong_before {
            return self.violated();
        }
        for _ in self.sender.acknowledged..received {
            // As many as are under way: both counts are this side's.
            if let Some(since_ns) = self.under_way.pop_front() {
                self.samples.record(now_ns.saturating_sub(since_ns));
            }
        }
        self.sender.acknowledged = received;
        self.sender.wrong = wrong;
        (self.progress_ns, self.ended_ns) = (now_ns, now_ns);
    }

    /// Ends it; the first reason stays.
    fn stop(&mut self, stop: Stop) {
        self.stopped.get_or_insert(stop);
    }

    fn violated(&mut self) {
        self.stop(Stop::Failed(anyhow::anyhow!(
            "the peer acknowledges what cannot be; do both sides run the same release?"
        )));
    }

    /// Sends what is due. Says when to come back, if only time brings more.
    fn send(&mut self, now_ns: u64) -> Option<u64> {
        while self.under_way.len() < self.depth {
            match self.schedule.next(now_ns) {
                Next::Now(since_ns) => self.frame(now_ns, since_ns),
                Next::At(due_ns) => return Some(due_ns),
                Next::Never => {
                    self.exhausted = true;
                    if !self.under_way.is_empty() && !self.asked {
                        self.asked = true;
                        self.sender.port.send(Message::Question, Body::empty());
                    }
                    return None;
                }
            }
        }
        None
    }

    fn frame(&mut self, now_ns: u64, since_ns: u64) {
        if self.under_way.is_empty() {
            self.progress_ns = now_ns;
        }
        let sender = &mut *self.sender;
        let number = sender.sent;
        let (acknowledge, seed) = ((number + 1).is_multiple_of(self.every), sender.options.seed);
        let frame = Message::Frame { number, seed, acknowledge, check: self.check };
        sender.port.send(frame, self.body.clone());
        sender.sent += 1;
        self.under_way.push_back(since_ns);
        self.schedule.issued();
    }
}

impl<E: Endpoint> Shell for Stream<'_, E> {
    type Endpoint = E;

    fn turn(&mut self, now_ns: u64) -> Turn {
        let port = &mut self.sender.port;
        let mut events = std::mem::replace(&mut port.events, rangefold_transport::Events::with_limit(1));
        port.endpoint.poll(&mut events);
        let mut progressed = !events.is_empty();
        // The poll may have taken a while.
        let now_ns = if progressed { self.clock.now_ns() } else { now_ns };
        for event in events.drain() {
            match event {
                Event::Arrived { head, body, .. } => self.arrived(&head, &body, now_ns),
                Event::Lost { reason, .. } => self.stop(lost(reason)),
                Event::Announced { arrival, .. } => self.sender.port.endpoint.place(arrival, None),
                Event::Sent { .. } | Event::Placed { .. } => {}
            }
        }
        self.sender.port.events = events;
        let due_ns = self.send(now_ns);
        progressed |= self.sender.port.post();
        // Not asleep when it is due: as if something had happened.
        progressed |= due_ns.is_some_and(|due_ns| due_ns.saturating_sub(now_ns) <= AWAKE_NS);
        Turn { progressed, deadline: due_ns.map(|due_ns| due_ns.saturating_sub(AWAKE_NS)) }
    }

    fn endpoint(&mut self) -> &mut E {
        &mut self.sender.port.endpoint
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rangefold_transport::memory;
    use rangefold_transport::wait::Clock;

    use super::super::receiver::receive;
    use super::*;
    use crate::perf::pace::{Limit, Pace};

    fn options(timeout: Duration) -> Options {
        Options {
            turns: Loop::new(Clock::new(), 2),
            flags: Flags::default(),
            check: Check::Ends,
            seed: 3,
            timeout,
            bytes_max: 1 << 20,
        }
    }

    /// A sender with a receiver that ends with it.
    fn pair() -> (Sender<memory::Endpoint>, std::thread::JoinHandle<()>) {
        let (left, right) = memory::pair(1, 64);
        let receiver = std::thread::spawn(move || {
            receive(memory::Endpoint::new(), right, Loop::new(Clock::new(), 2), &Arc::default());
        });
        (Sender::new(memory::Endpoint::new(), left, options(Duration::from_secs(20))).unwrap(), receiver)
    }

    fn run(sender: &Sender<memory::Endpoint>, depth: usize, pace: Pace) -> Run {
        Run { start_ns: sender.options.turns.clock().now_ns(), depth, pace }
    }

    #[test]
    fn every_frame_is_acknowledged_and_counted_once_at_any_depth() {
        let (mut sender, receiver) = pair();
        for (bytes, depth, messages) in [(8, 1, 50), (100, 16, 1_001), (1 << 20, 7, 40), (64, 200, 3)] {
            let shape = Shape { bytes, rows: None };
            assert_eq!(sender.check(&shape).unwrap(), 0);
            let ran = sender.run(&shape, &run(&sender, depth, Pace::closed(Limit::Messages(messages))));
            assert!(ran.stopped.is_none(), "{:?}", ran.stopped);
            assert_eq!((ran.samples.count(), ran.unsent, ran.wrong), (messages, 0, 0));
            assert!(ran.ended_ns > ran.begun_ns);
        }
        drop(sender);
        receiver.join().unwrap();
    }

    #[test]
    fn an_open_loop_sends_what_is_due_and_counts_what_it_could_not() {
        let (mut sender, receiver) = pair();
        let shape = Shape { bytes: 64, rows: None };
        let slow = Pace::open(Limit::Messages(20), 2_000.0, 0, 1);
        let ran = sender.run(&shape, &run(&sender, 4, slow));
        assert_eq!((ran.samples.count(), ran.unsent), (20, 0));
        assert!(ran.ended_ns - ran.begun_ns >= 19 * 500_000, "the twentieth is due after 9.5 ms");
        // Far more than can be, 10^12 a second: all are due within the first nanoseconds, so the last takes as long as the run.
        let fast = |limit| Pace::open(limit, 1e12, 0, 1);
        let ran = sender.run(&shape, &run(&sender, 4, fast(Limit::Messages(1_000))));
        assert!(ran.samples.latency().max_ns.unwrap() + 1_000 >= ran.ended_ns - ran.begun_ns);
        let ran = sender.run(&shape, &run(&sender, 4, fast(Limit::Time(5_000_000))));
        assert!(ran.stopped.is_none());
        assert_eq!(ran.samples.count() + ran.unsent, 5_000_000_000);
        drop(sender);
        receiver.join().unwrap();
    }

    #[test]
    fn a_peer_that_is_silent_is_lost() {
        let shape = Shape { bytes: 64, rows: None };
        let endless = Pace::closed(Limit::Messages(u64::MAX));
        // Expect: the timeout, from a peer that is there and takes nothing.
        let (left, right) = memory::pair(1, 4);
        let mut sender =
            Sender::new(memory::Endpoint::new(), left, options(Duration::from_millis(50))).unwrap();
        let ran = sender.run(&shape, &run(&sender, 2, endless));
        assert!(
            matches!(&ran.stopped, Some(Stop::Lost(why)) if why.contains("no acknowledgement within 50ms")),
            "{:?}",
            ran.stopped
        );
        drop(right);
    }

    /// A sender's run against a peer that answers the first frames by hand, each with one of these, and closes.
    fn answered(answers: Vec<Message>) -> Ran {
        let (left, right) = memory::pair(1, 4);
        let peer = std::thread::spawn(move || {
            let mut port = Port::new(memory::Endpoint::new(), right).unwrap();
            let mut events = rangefold_transport::Events::with_limit(1);
            let mut answers = answers.into_iter();
            while answers.len() > 0 {
                port.endpoint.poll(&mut events);
                for event in events.drain().filter(|event| matches!(event, Event::Arrived { .. })) {
                    drop(event);
                    port.send(answers.next().unwrap(), Body::empty());
                    port.post();
                }
                std::thread::yield_now();
            }
        });
        let mut sender =
            Sender::new(memory::Endpoint::new(), left, options(Duration::from_secs(20))).unwrap();
        let endless = run(&sender, 1, Pace::closed(Limit::Messages(u64::MAX)));
        let ran = sender.run(&Shape { bytes: 64, rows: None }, &endless);
        drop(sender);
        peer.join().unwrap();
        ran
    }

    #[test]
    fn what_was_acknowledged_before_the_peer_closed_is_kept() {
        let ran =
            answered([1, 2, 3].map(|received| Message::Acknowledgement { received, wrong: 0 }).to_vec());
        assert!(
            matches!(&ran.stopped, Some(Stop::Lost(why)) if why.contains("was lost")),
            "{:?}",
            ran.stopped
        );
        assert_eq!(ran.samples.count(), 3);
    }

    #[test]
    fn a_peer_that_acknowledges_what_cannot_be_is_not_believed() {
        let more = Message::Acknowledgement { received: 2, wrong: 0 };
        let [first, second] =
            [(1, 5), (2, 4)].map(|(received, wrong)| Message::Acknowledgement { received, wrong });
        for answers in [vec![more], vec![first, second], vec![Message::Question]] {
            let ran = answered(answers);
            assert!(matches!(&ran.stopped, Some(Stop::Failed(_))), "{:?}", ran.stopped);
        }
    }
}
