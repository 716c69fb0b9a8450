//! How a thread waits: spin a little, arm, turn once more, sleep. The only loop that does.
//! Knows time, wakers and when to give up; does not know what a turn does.
//! Called by whoever drives a shell: shard threads, the thread in a client's wait, the progress thread.
//! Source: the flag with a fence on both sides is Dekker's; figures in `transport/DESIGN.md` (spin 50 us).
//!
//! # States of a waker
//!
//! | state | set by | meaning |
//! | ----- | ------ | ------- |
//! | awake | the sleeper, after sleeping | it will turn again; a ring is a fence and a load |
//! | asleep | the sleeper, by `arm` | it sleeps, or is about to; a ring must wake it |
//! | rung | the first ring that saw `asleep` | it has been woken; further rings do nothing |
//!
//! **No wake-up is lost.** The sleeper stores `asleep`, full fence, turns once more, and sleeps only if that found
//! nothing. The ringer publishes its work, full fence, looks at the state. Of two threads that each store and then
//! load the other's, with a full fence between, at least one sees the other's store: either the turn finds the work,
//! or the ringer finds `asleep`. In the second case it stores `rung`, so the kernel, which compares the word before it
//! lets a thread sleep, does not let this one, or the wake call comes after and ends the sleep.
//!
//! A sleeper that waits for descriptors as well (sockets) has an eventfd among them. Then the wake call is a write to
//! it, and the argument is the same: the write comes after `rung` was stored, and stays until the sleeper has seen it.
//!
//! **Progress**: ringing is wait-free and costs a system call only for the ring that finds `asleep`.

use std::fmt;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::endpoint::Endpoint;
use crate::primitive::{Arc, DescriptorArc, Futex, Ordering, fence, spin_loop};
use crate::uring::SleepingRing;

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;
const RUNG: u32 = 2;

/// Spinning before sleeping, by default: the price of one sleep and wake-up (37 to 50 us), so that it never costs more
/// than twice the best choice.
pub const SPIN_NS_DEFAULT: u64 = 50_000;

/// Wakes one thread, from any thread.
#[derive(Clone)]
pub struct Waker {
    futex: Arc<Futex>,
    /// What the sleeper waits for, where it is not the futex. Only one thread ever sleeps on it.
    bell: Option<DescriptorArc<OwnedFd>>,
}

impl Waker {
    /// A waker of a thread that is awake.
    #[must_use]
    pub fn new() -> Self {
        Self { futex: Arc::new(Futex::new(AWAKE)), bell: None }
    }

    /// The same for a thread that sleeps until an eventfd, among other things, is written to.
    pub(crate) fn with_bell() -> rustix::io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { futex: Arc::new(Futex::new(AWAKE)), bell: Some(DescriptorArc::new(bell)) })
    }

    /// The eventfd, if it has one.
    pub(crate) fn bell(&self) -> Option<&DescriptorArc<OwnedFd>> {
        self.bell.as_ref()
    }

    /// Makes sure that the sleeper sees, in a turn to come, what this thread has published. No system call while the
    /// sleeper is awake.
    #[inline]
    pub fn ring(&self) {
        // Full fence, pairs with the one in `arm`: our work was published before, the state is looked at after.
        fence(Ordering::SeqCst);
        if self.futex.word.load(Ordering::Relaxed) == ASLEEP {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        // Relaxed: the work is handed over by what published it; the word only says who calls the kernel.
        if self.futex.word.compare_exchange(ASLEEP, RUNG, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            match &self.bell {
                None => self.futex.wake(),
                // It would fail when 2^64 - 1 rings were not looked at.
                Some(bell) => drop(rustix::io::write(bell, &1_u64.to_ne_bytes())),
            }
        }
    }

    /// For the sleeper itself: work has come up in the turn between `arm` and the sleep that nobody rings for, so it must not sleep.
    /// A load otherwise.
    #[inline]
    pub(crate) fn stir(&self) {
        if self.is_armed() {
            self.wake();
        }
    }

    /// From here on a ring wakes. The caller must look for work once more before it sleeps. Only for the thread that
    /// this waker wakes.
    pub fn arm(&self) {
        // Relaxed: ordered by the fence that follows.
        self.futex.word.store(ASLEEP, Ordering::Relaxed);
        // Full fence, pairs with the one in `ring`: the state is stored before, the work is looked for after.
        fence(Ordering::SeqCst);
    }

    /// Back to work: rings cost nothing again. Says whether it was rung since `arm`.
    pub fn disarm(&self) -> bool {
        // Relaxed: a ring that comes in between published its work before, and the caller turns after this.
        self.futex.word.swap(AWAKE, Ordering::Relaxed) == RUNG
    }

    /// Whether the sleeper has armed and not disarmed: it sleeps, is about to, or has just been woken. For its own thread.
    pub(crate) fn is_armed(&self) -> bool {
        // Relaxed: asked by the thread that arms and disarms; others only tell the two armed states apart.
        self.futex.word.load(Ordering::Relaxed) != AWAKE
    }

    /// Whether it was rung since `arm`; changes nothing.
    #[must_use]
    pub fn is_rung(&self) -> bool {
        // Relaxed: a hint.
        self.futex.word.load(Ordering::Relaxed) == RUNG
    }

    fn sleep(&self, timeout_ns: Option<u64>) {
        self.futex.wait(ASLEEP, timeout_ns);
    }
}

impl Default for Waker {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waker")
    }
}

/// What an endpoint says when asked to prepare for sleep.
#[derive(Debug)]
pub enum Armed {
    /// Something is there already: `poll` would report it.
    Ready,
    /// Nothing yet. Anything that happens from now on ends this sleep.
    Sleep(Sleep),
}

/// What to sleep on. More kinds come with more backends.
#[derive(Debug)]
pub enum Sleep {
    /// The endpoint's waker, which must be armed.
    Waker(Waker),
    /// Until a descriptor is readable: an epoll set, in which the waker's bell is one of many.
    Descriptor {
        /// The set.
        descriptor: DescriptorArc<OwnedFd>,
        /// Not longer than this: something that rings no bell is waited for (memory that other threads hold).
        at_most_ns: Option<u64>,
    },
    /// In the kernel, until the ring has a completion; the waker's bell is one.
    Ring {
        /// The ring of the thread that sleeps.
        ring: SleepingRing,
        /// As above.
        at_most_ns: Option<u64>,
    },
    /// Until any of several would wake: a thread with endpoints of more than one kind. None is the waker alone.
    Any(Vec<Self>),
}

impl Sleep {
    fn sleep(&self, timeout_ns: Option<u64>) {
        match self {
            Self::Waker(waker) => waker.sleep(timeout_ns),
            Self::Descriptor { descriptor, at_most_ns } => {
                sleep_on(&mut [PollFd::new(descriptor, PollFlags::IN)], sooner(timeout_ns, *at_most_ns));
            }
            Self::Ring { ring, at_most_ns } => ring.sleep(sooner(timeout_ns, *at_most_ns)),
            Self::Any(several) => {
                let (mut set, mut timeout_ns) = (Vec::with_capacity(several.len()), timeout_ns);
                for one in several {
                    match one {
                        Self::Descriptor { descriptor, at_most_ns } => {
                            set.push(PollFd::new(descriptor, PollFlags::IN));
                            timeout_ns = sooner(timeout_ns, *at_most_ns);
                        }
                        Self::Ring { ring, at_most_ns } => {
                            // What is not submitted would not wake: look again.
                            if !ring.submit() {
                                return;
                            }
                            set.push(PollFd::from_borrowed_fd(ring.as_fd(), PollFlags::IN));
                            timeout_ns = sooner(timeout_ns, *at_most_ns);
                        }
                        Self::Waker(_) | Self::Any(_) => debug_assert!(false, "no descriptor: {one:?}"),
                    }
                }
                sleep_on(&mut set, timeout_ns);
            }
        }
    }

    /// One sleep for what this one waits for, and the other.
    pub(crate) fn or(self, other: Self) -> Self {
        let mut several = match self {
            Self::Any(several) => several,
            one => vec![one],
        };
        match other {
            Self::Any(more) => several.extend(more),
            one => several.push(one),
        }
        Self::Any(several)
    }
}

/// `poll` of an epoll set, not a wait in it: that would take the events, which are the endpoint's. Every error is a reason to look
/// again.
fn sleep_on(set: &mut [PollFd<'_>], timeout_ns: Option<u64>) {
    let timeout = timeout_ns.map(|ns| rustix::event::Timespec {
        tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(ns % 1_000_000_000).unwrap_or(0),
    });
    let _ = poll(set, timeout.as_ref());
}

fn sooner(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    [one, other].into_iter().flatten().min()
}

/// What a turn of a shell came to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Turn {
    /// Whether anything was done, so that another turn at once may find more.
    pub progressed: bool,
    /// When the shell wants to be turned again even if nothing happens, in the clock's nanoseconds.
    pub deadline: Option<u64>,
}

/// A thing that is driven by turns: a node, a driver, or both of them in turn.
pub trait Shell {
    /// The transport it uses.
    type Endpoint: Endpoint;

    /// Polls, feeds its core, posts once. Never blocks.
    fn turn(&mut self, now_ns: u64) -> Turn;

    /// What to sleep on.
    fn endpoint(&mut self) -> &mut Self::Endpoint;
}

/// Monotonic time in nanoseconds since the clock was made. Copies share their origin.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that shows 0.
    #[must_use]
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }

    /// The time. 64 bits of nanoseconds last for 584 years.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// Why [`Loop::run`] came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// `until` said so.
    Until,
    /// The deadline passed.
    Deadline,
}

/// The loop of a thread that drives one shell. Shown, it says how it waits.
#[derive(Clone, Copy, Debug)]
pub struct Loop {
    spin_ns: u64,
    clock: Clock,
}

impl Loop {
    /// A loop that spins [`SPIN_NS_DEFAULT`], or not at all when the process has fewer cores than `busy_threads`, the
    /// threads that may spin at once: a spinner would then keep the thread it waits for from running.
    #[must_use]
    pub fn new(clock: Clock, busy_threads: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { spin_ns: if cores < busy_threads { 0 } else { SPIN_NS_DEFAULT }, clock }
    }

    /// The same with another spinning time: 0 sleeps at once, `u64::MAX` never.
    #[must_use]
    pub fn with_spin_ns(self, spin_ns: u64) -> Self {
        Self { spin_ns, ..self }
    }

    /// The same, or one that never sleeps when the thread has a processor to burn (`busy_poll`).
    #[must_use]
    pub fn busy(self, busy_poll: bool) -> Self {
        if busy_poll { self.with_spin_ns(u64::MAX) } else { self }
    }

    /// The clock that turns are given.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Turns the shell until `until` holds or the clock has reached `deadline_ns`.
    ///
    /// `until` is asked before the first turn and after each. A turn is taken at least once unless `until` holds at
    /// once. Sleeps when nothing has progressed for the spinning time; after a sleep that ended by its timeout it
    /// does not spin again before something happens (a timer would burn the spinning time at each tick).
    pub fn run<S: Shell>(
        &mut self,
        shell: &mut S,
        mut until: impl FnMut(&mut S) -> bool,
        deadline_ns: Option<u64>,
    ) -> Ended {
        if until(shell) {
            return Ended::Until;
        }
        let waker = shell.endpoint().waker();
        let mut now_ns = self.clock.now_ns();
        // Spinning ends here; moves on with each turn that does something.
        let mut spin_until_ns = now_ns.saturating_add(self.spin_ns);
        loop {
            let turn = shell.turn(now_ns);
            if until(shell) {
                return Ended::Until;
            }
            now_ns = self.clock.now_ns();
            if deadline_ns.is_some_and(|deadline_ns| deadline_ns <= now_ns) {
                return Ended::Deadline;
            }
            if turn.progressed {
                spin_until_ns = now_ns.saturating_add(self.spin_ns);
                continue;
            }
            if now_ns < spin_until_ns {
                spin_loop();
                continue;
            }
            let armed = shell.endpoint().arm();
            let Armed::Sleep(sleep) = armed else {
                waker.disarm();
                continue;
            };
            let turn = shell.turn(now_ns);
            let done = until(shell);
            now_ns = self.clock.now_ns();
            let wake_ns = [deadline_ns, turn.deadline].into_iter().flatten().min();
            let timeout_ns = wake_ns.map(|wake_ns| wake_ns.saturating_sub(now_ns));
            if !done && !turn.progressed && timeout_ns != Some(0) {
                sleep.sleep(timeout_ns);
                now_ns = self.clock.now_ns();
            }
            if waker.disarm() || turn.progressed {
                spin_until_ns = now_ns.saturating_add(self.spin_ns);
            }
            if done {
                return Ended::Until;
            }
        }
    }
}

impl fmt::Display for Loop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.spin_ns {
            0 => f.write_str("sleeps at once"),
            u64::MAX => f.write_str("spins for ever"),
            ns => write!(f, "spins {} us, then sleeps", ns / 1_000),
        }
    }
}

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;
