//! The loop: when it turns, when it sleeps, what a ring costs.

use std::collections::VecDeque;
use std::time::Duration;

use super::*;
use crate::memory;
use crate::primitive::wakes;

/// A shell that does what a script says, one turn after the other, and then nothing.
struct Scripted {
    endpoint: memory::Endpoint,
    script: VecDeque<Turn>,
    rest: Turn,
    turn_count: usize,
}

impl Scripted {
    fn new(script: impl IntoIterator<Item = Turn>) -> Self {
        let script = script.into_iter().collect();
        Self { endpoint: memory::Endpoint::new(), script, rest: Turn::default(), turn_count: 0 }
    }
}

impl Shell for Scripted {
    type Endpoint = memory::Endpoint;

    fn turn(&mut self, _now_ns: u64) -> Turn {
        self.turn_count += 1;
        self.script.pop_front().unwrap_or(self.rest)
    }

    fn endpoint(&mut self) -> &mut memory::Endpoint {
        &mut self.endpoint
    }
}

#[test]
fn a_ring_costs_no_system_call_while_the_sleeper_is_awake() {
    let waker = Waker::new();
    let before = wakes::of_this_thread();
    for _ in 0..1_000 {
        waker.ring();
    }
    assert_eq!(wakes::of_this_thread() - before, 0, "awake");
    waker.arm();
    for _ in 0..1_000 {
        waker.ring();
    }
    assert_eq!(wakes::of_this_thread() - before, 1, "asleep: one for all");
    assert!(waker.disarm(), "it was rung");
    waker.ring();
    assert_eq!(wakes::of_this_thread() - before, 1, "awake again");
    waker.arm();
    assert!(!waker.disarm(), "it was not rung");
}

#[test]
fn until_is_asked_before_the_first_turn() {
    let mut shell = Scripted::new([]);
    assert_eq!(Loop::new(Clock::new(), 1).run(&mut shell, |_| true, None), Ended::Until);
    assert_eq!(shell.turn_count, 0);
}

#[test]
fn a_past_deadline_is_one_turn() {
    let mut shell = Scripted::new([]);
    assert_eq!(Loop::new(Clock::new(), 1).run(&mut shell, |_| false, Some(0)), Ended::Deadline);
    assert_eq!(shell.turn_count, 1);
}

#[test]
fn progress_is_followed_by_a_turn_at_once() {
    let busy = Turn { progressed: true, deadline: None };
    let mut shell = Scripted::new([busy; 10]);
    let ended =
        Loop::new(Clock::new(), 1).with_spin_ns(0).run(&mut shell, |shell| shell.turn_count == 11, None);
    assert_eq!(ended, Ended::Until);
}

#[test]
#[cfg_attr(miri, ignore = "measures time")]
fn without_spinning_an_idle_loop_turns_twice_and_sleeps() {
    let clock = Clock::new();
    let mut shell = Scripted::new([]);
    let ended = Loop::new(clock, 1).with_spin_ns(0).run(&mut shell, |_| false, Some(20_000_000));
    assert_eq!(ended, Ended::Deadline);
    assert!(clock.now_ns() >= 20_000_000);
    // One turn, one more when armed, one after the sleep; a sleep may end for no reason now and then.
    assert!((3..30).contains(&shell.turn_count), "{} turns", shell.turn_count);
}

#[test]
#[cfg_attr(miri, ignore = "measures time")]
fn the_shells_deadline_ends_a_sleep_without_a_new_spin() {
    // As nodes do: a timer every 2 ms. Spinning after each tick would make thousands of turns.
    struct Ticking(Scripted);
    impl Shell for Ticking {
        type Endpoint = memory::Endpoint;
        fn turn(&mut self, now_ns: u64) -> Turn {
            self.0.turn_count += 1;
            Turn { progressed: false, deadline: Some((now_ns / 2_000_000 + 1) * 2_000_000) }
        }
        fn endpoint(&mut self) -> &mut memory::Endpoint {
            &mut self.0.endpoint
        }
    }
    let mut shell = Ticking(Scripted::new([]));
    let clock = Clock::new();
    // The first spin ends at 1 ms.
    Loop::new(clock, 1).with_spin_ns(1_000_000).run(&mut shell, |_| clock.now_ns() > 3_000_000, None);
    let spun = shell.0.turn_count;
    Loop::new(clock, 1).with_spin_ns(0).run(&mut shell, |_| clock.now_ns() > 43_000_000, None);
    assert!(shell.0.turn_count - spun < 200, "{} turns in 40 ms", shell.0.turn_count - spun);
}

#[test]
fn a_loop_without_enough_cores_does_not_spin() {
    assert_eq!(Loop::new(Clock::new(), usize::MAX).spin_ns, 0);
    assert_eq!(Loop::new(Clock::new(), 1).spin_ns, SPIN_NS_DEFAULT);
}

#[test]
#[cfg_attr(miri, ignore = "measures time")]
fn a_busy_loop_never_sleeps() {
    let clock = Clock::new();
    let mut shell = Scripted::new([]);
    // Far longer than it would spin, and with as many busy threads as would keep it from spinning at all.
    let ended = Loop::new(clock, usize::MAX).busy(true).run(&mut shell, |_| false, Some(20_000_000));
    assert_eq!(ended, Ended::Deadline);
    assert!(!shell.endpoint.waker().disarm() && shell.turn_count > 100, "{} turns", shell.turn_count);
    assert_eq!(Loop::new(clock, usize::MAX).busy(false).spin_ns, 0);
}

#[test]
fn a_loop_says_how_it_waits() {
    let words =
        [u64::MAX, 0, SPIN_NS_DEFAULT].map(|ns| Loop::new(Clock::new(), 1).with_spin_ns(ns).to_string());
    assert_eq!(words, ["spins for ever", "sleeps at once", "spins 50 us, then sleeps"]);
}

#[test]
#[cfg_attr(miri, ignore = "measures time")]
fn a_message_ends_a_sleep() {
    let (left, right) = memory::pair(1, 4);
    let mut sleeper = Scripted::new([]);
    let _ = sleeper.endpoint.adopt(left).expect("the first link");
    let waker = sleeper.endpoint.waker();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(5));
            // Its end is an event.
            drop(right);
        });
        let mut events = crate::Events::with_limit(4);
        let lost = |shell: &mut Scripted| {
            shell.endpoint.poll(&mut events);
            !events.is_empty()
        };
        let ended = Loop::new(Clock::new(), 1).with_spin_ns(0).run(&mut sleeper, lost, Some(20_000_000_000));
        assert_eq!(ended, Ended::Until);
        assert!(sleeper.turn_count < 100);
        assert!(!waker.is_rung(), "disarmed");
    });
}
