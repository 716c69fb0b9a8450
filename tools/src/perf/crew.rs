//! The threads of a client: each has a load of its own, all are told the same and start at the same time.
//! Knows threads and orders; not what a load sends. Led by `sweep.rs`.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rangefold::pinning;
use rangefold_transport::wait::Clock;

use super::pace::{Limit, Pace};
use super::samples::Samples;
use super::session::no_thread;
use super::size::Shape;
use super::stop::{Flags, LOOK, Stop};

/// From an order to the start: long enough for every thread to be there.
const READY_NS: u64 = 2_000_000;
/// Sleeps end late; the last part of a wait is spun.
const SPIN: Duration = Duration::from_micros(100);

/// What one thread does.
pub(super) trait Load {
    /// A round that is looked at and not timed. Says how many elements were wrong.
    fn check(&mut self, shape: &Shape) -> Result<u64, Stop>;

    /// Sends by a pace, and measures.
    fn run(&mut self, shape: &Shape, run: &Run) -> Ran;
}

/// When and how to send.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Not before.
    pub(super) start_ns: u64,
    pub(super) pace: Pace,
    /// Messages under way, at most.
    pub(super) depth: usize,
}

impl Run {
    /// One message, now.
    pub(super) fn once(clock: Clock) -> Self {
        Self { start_ns: clock.now_ns(), pace: Pace::closed(Limit::Messages(1)), depth: 1 }
    }
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) begun_ns: u64,
    /// When the last message was acknowledged.
    pub(super) ended_ns: u64,
    /// One for each message that was acknowledged.
    pub(super) samples: Samples,
    /// Messages of an open loop that were due and not sent.
    pub(super) unsent: u64,
    /// Elements that were wrong, where every message is looked at.
    pub(super) wrong: u64,
    /// Why it ended before its time.
    pub(super) stopped: Option<Stop>,
}

impl Ran {
    /// Those of all threads together: from the first start to the last end.
    pub(super) fn all(parts: Vec<Self>) -> Option<Self> {
        parts.into_iter().reduce(|mut all, part| {
            all.begun_ns = all.begun_ns.min(part.begun_ns);
            all.ended_ns = all.ended_ns.max(part.ended_ns);
            all.samples.add(&part.samples);
            all.unsent += part.unsent;
            all.wrong += part.wrong;
            all.stopped = all.stopped.or(part.stopped);
            all
        })
    }
}

enum Order {
    Check(Shape),
    Run(Shape, Run),
}

enum Reply {
    Ready(Result<(), Stop>),
    Checked(Result<u64, Stop>),
    Ran(Ran),
}

struct Member {
    orders: Sender<Order>,
    replies: Receiver<Reply>,
    thread: JoinHandle<()>,
}

/// Threads that wait for orders. Dropping it ends them.
pub(super) struct Crew {
    members: Vec<Member>,
    clock: Clock,
}

impl Crew {
    /// Starts `threads` threads, each bound to its processor of `cores` if there is one; `make` makes a thread's load on it.
    pub(super) fn start<L: Load>(
        threads: usize,
        cores: &[usize],
        clock: Clock,
        make: impl Fn(usize) -> Result<L, Stop> + Clone + Send + 'static,
    ) -> Result<Self, Stop> {
        let mut crew = Self { members: Vec::new(), clock };
        for index in 0..threads {
            let (orders, ordered) = channel();
            let (said, replies) = channel();
            let (make, core) = (make.clone(), cores.get(index).copied());
            let work = move || {
                // A thread that stays where it was is slower, and no worse.
                let _ = core.map(pinning::pin);
                match make(index) {
                    Ok(mut load) => {
                        let _ = said.send(Reply::Ready(Ok(())));
                        obey(&mut load, &ordered, &said);
                    }
                    Err(stop) => drop(said.send(Reply::Ready(Err(stop)))),
                }
            };
            let thread = thread::Builder::new().name(format!("rangefold-perf-{index}")).spawn(work);
            let thread = thread.map_err(|error| Stop::Failed(no_thread(&error)))?;
            crew.members.push(Member { orders, replies, thread });
        }
        for reply in crew.replies() {
            match reply? {
                Reply::Ready(ready) => ready?,
                Reply::Checked(_) | Reply::Ran(_) => unreachable!("a thread answers what it was told"),
            }
        }
        Ok(crew)
    }

    /// Every thread's checked round, in order. Says how many elements were wrong.
    pub(super) fn check(&self, shape: &Shape) -> Result<u64, Stop> {
        self.tell(|_| Order::Check(*shape));
        let mut wrong = 0;
        // All are heard before the first failure is told: they must be ready for the next order.
        for reply in self.replies().collect::<Vec<_>>() {
            match reply? {
                Reply::Checked(found) => wrong += found?,
                Reply::Ready(_) | Reply::Ran(_) => unreachable!("a thread answers what it was told"),
            }
        }
        Ok(wrong)
    }

    /// Lets every thread send, each by its `pace`, from the same moment on.
    pub(super) fn run(&self, shape: &Shape, depth: usize, pace: impl Fn(usize) -> Pace) -> Result<Ran, Stop> {
        let start_ns = self.clock.now_ns() + READY_NS;
        self.tell(|index| Order::Run(*shape, Run { start_ns, pace: pace(index), depth }));
        let mut parts = Vec::new();
        for reply in self.replies().collect::<Vec<_>>() {
            match reply? {
                Reply::Ran(ran) => parts.push(ran),
                Reply::Ready(_) | Reply::Checked(_) => unreachable!("a thread answers what it was told"),
            }
        }
        Ran::all(parts).ok_or_else(|| Stop::Failed(anyhow::anyhow!("no threads")))
    }

    fn tell(&self, order: impl Fn(usize) -> Order) {
        for (index, member) in self.members.iter().enumerate() {
            // One that has ended does not answer either, which is noticed then.
            let _ = member.orders.send(order(index));
        }
    }

    /// The next reply of each. A load keeps its own deadlines, so they come.
    fn replies(&self) -> impl Iterator<Item = Result<Reply, Stop>> + '_ {
        let ended = |_| Stop::Failed(anyhow::anyhow!("a client thread panicked; its message is above"));
        self.members.iter().map(move |member| member.replies.recv().map_err(ended))
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for Member { orders, replies, thread } in self.members.drain(..) {
            drop((orders, replies));
            // One that panicked has said so on standard error.
            let _ = thread.join();
        }
    }
}

fn obey(load: &mut impl Load, orders: &Receiver<Order>, said: &Sender<Reply>) {
    for order in orders {
        let reply = match order {
            Order::Check(shape) => Reply::Checked(load.check(&shape)),
            Order::Run(shape, run) => Reply::Ran(load.run(&shape, &run)),
        };
        if said.send(reply).is_err() {
            return;
        }
    }
}

/// Waits until the clock shows `at_ns`, to the microsecond, or a flag is raised.
pub(super) fn wait_until(clock: Clock, at_ns: u64, flags: &Flags) {
    while flags.check().is_ok() {
        let left = Duration::from_nanos(at_ns.saturating_sub(clock.now_ns()));
        if left.is_zero() {
            return;
        }
        if left > SPIN {
            thread::sleep((left - SPIN).min(LOOK));
        } else {
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::perf::size::store_shape;

    /// Counts what it is told, and fails where it must.
    struct Counting {
        index: usize,
        clock: Clock,
    }

    impl Load for Counting {
        fn check(&mut self, shape: &Shape) -> Result<u64, Stop> {
            if shape.bytes == 64 { Ok(self.index as u64) } else { Err(Stop::Interrupted) }
        }

        fn run(&mut self, _: &Shape, run: &Run) -> Ran {
            wait_until(self.clock, run.start_ns, &Flags::default());
            let begun_ns = self.clock.now_ns();
            let mut samples = Samples::new();
            samples.record(self.index as u64 + 1);
            let stopped = (self.index == 2).then_some(Stop::Interrupted);
            Ran { begun_ns, ended_ns: begun_ns + self.index as u64, samples, unsent: 1, wrong: 2, stopped }
        }
    }

    #[test]
    fn a_run_of_several_threads_lasts_from_the_first_start_to_the_last_end() {
        let part = |begun_ns, ended_ns| Ran {
            begun_ns,
            ended_ns,
            samples: Samples::new(),
            unsent: 0,
            wrong: 0,
            stopped: None,
        };
        let all = Ran::all(vec![part(20, 40), part(10, 30), part(30, 70), part(25, 50)]).unwrap();
        assert_eq!((all.begun_ns, all.ended_ns), (10, 70));
        assert!(Ran::all(Vec::new()).is_none());
    }

    #[test]
    fn threads_start_together_and_are_added_up() {
        let clock = Clock::new();
        let crew = Crew::start(3, &[], clock, move |index| Ok(Counting { index, clock })).unwrap();
        let shape = store_shape(64, None, None).unwrap();
        assert_eq!(crew.check(&shape).unwrap(), 3);
        let before_ns = clock.now_ns();
        let ran = crew.run(&shape, 1, |_| Pace::closed(Limit::Messages(1))).unwrap();
        assert!(ran.begun_ns >= before_ns + READY_NS);
        assert_eq!((ran.samples.count(), ran.unsent, ran.wrong), (3, 3, 6));
        assert!(matches!(ran.stopped, Some(Stop::Interrupted)), "one that stopped stops all");
        // Expect: after a failure the threads still answer, each its own question.
        let other = store_shape(128, None, None).unwrap();
        assert!(crew.check(&other).is_err());
        assert_eq!(crew.check(&shape).unwrap(), 3);
    }

    #[test]
    fn a_load_that_cannot_be_made_or_panics_is_an_error() {
        let clock = Clock::new();
        let fails = |index| {
            if index == 1 {
                Err(Stop::Lost("no".into()))
            } else {
                Ok(Counting { index, clock: Clock::new() })
            }
        };
        assert!(matches!(Crew::start(2, &[], clock, fails), Err(Stop::Lost(_))));
        struct Panicking;
        impl Load for Panicking {
            fn check(&mut self, _: &Shape) -> Result<u64, Stop> {
                panic!("as it must")
            }
            fn run(&mut self, _: &Shape, _: &Run) -> Ran {
                unreachable!()
            }
        }
        let crew = Crew::start(1, &[], clock, |_| Ok(Panicking)).unwrap();
        assert!(matches!(crew.check(&store_shape(64, None, None).unwrap()), Err(Stop::Failed(_))));
    }
}
