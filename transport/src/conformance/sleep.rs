//! What is promised of a thread that sleeps on its endpoint: it is woken, and by nothing that is not there.
//! Knows `wait.rs` and the trait. Source: `transport/DESIGN.md` (spin, then sleep; one waker, one word).

use super::Fixture;
use super::harness::{Side, Two};
use crate::endpoint::{Body, Endpoint};
use crate::wait::{Clock, Ended, Loop, Shell, Turn};

/// How long a sleeper may sleep before the test calls it forgotten.
const PATIENCE_NS: u64 = 20_000_000_000;
/// Long enough for what needs nobody else.
const LATE_PATIENCE_NS: u64 = 5_000_000_000;

/// A thread that sleeps on its endpoint is woken by messages, by completions and by the loss.
pub fn wakes_a_sleeper<F: Fixture>(fixture: F)
where
    F::Endpoint: Send,
{
    let Two { mut left, mut right, to_right, .. } = Two::new(fixture);
    let count = 300;
    let pause = std::time::Duration::from_micros(100);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let clock = Clock::new();
            for number in 0..count {
                // Now and then long enough that the other falls asleep; both do not spin at all.
                if number % 10 == 0 {
                    std::thread::sleep(pause);
                }
                left.send(to_right, number, Body::empty());
                let completed = |left: &mut Side<_>| left.completions().len() as u64 > number;
                let ended = Loop::new(clock, 2).with_spin_ns(0).run(&mut left, completed, Some(PATIENCE_NS));
                assert_eq!(ended, Ended::Until, "completion {number}");
            }
        });
        let lost = |right: &mut Side<_>| !right.losses().is_empty();
        let ended = Loop::new(Clock::new(), 2).with_spin_ns(0).run(&mut right, lost, Some(PATIENCE_NS));
        assert_eq!(ended, Ended::Until, "saw {} of {count} messages", right.arrived().len());
    });
    assert_eq!(right.arrived(), (0..count).collect::<Vec<_>>());
}

/// A ring of the waker from another thread ends a sleep, though no message comes.
pub fn rings_a_sleeper<F: Fixture>(fixture: F)
where
    F::Endpoint: Send,
{
    use std::sync::atomic::{AtomicU64, Ordering};
    let Two { left: mut sleeper, .. } = Two::new(fixture);
    let waker = sleeper.endpoint.waker();
    let (asked, answered) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=200 {
                asked.store(round, Ordering::Relaxed);
                waker.ring();
                while answered.load(Ordering::Relaxed) != round {
                    std::thread::yield_now();
                }
            }
        });
        let mut driver = Loop::new(Clock::new(), 2).with_spin_ns(0);
        for round in 1..=200 {
            let rung = |_: &mut Side<_>| asked.load(Ordering::Relaxed) == round;
            assert_eq!(driver.run(&mut sleeper, rung, Some(PATIENCE_NS)), Ended::Until, "round {round}");
            answered.store(round, Ordering::Relaxed);
        }
    });
}

/// A ring wakes once: who finds nothing to do sleeps again, with and without peers.
pub fn sleeps_again_after_a_ring<F: Fixture>(mut fixture: F)
where
    F::Endpoint: Send,
{
    let alone = Side::new(fixture.endpoint(None));
    let Two { left, right, .. } = Two::new(fixture);
    for mut sleeper in [alone, left, right] {
        sleeper.endpoint.waker().ring();
        let clock = Clock::new();
        let mut looks = 0_u32;
        let look = |_: &mut Side<_>| {
            looks += 1;
            false
        };
        let ended = Loop::new(clock, 2).with_spin_ns(0).run(&mut sleeper, look, Some(50_000_000));
        assert_eq!(ended, Ended::Deadline);
        // Sleeps of a millisecond would be 100 looks; one that never sleeps looks tens of thousands of times.
        assert!(looks < 1_000, "looked {looks} times in 50 ms");
        // Rung while it sleeps.
        let waker = sleeper.endpoint.waker();
        looks = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(5));
                waker.ring();
            });
            let look = |_: &mut Side<_>| {
                looks += 1;
                false
            };
            Loop::new(Clock::new(), 2).with_spin_ns(0).run(&mut sleeper, look, Some(50_000_000));
        });
        assert!(looks < 1_000, "looked {looks} times in 50 ms after a ring");
    }
}

/// Turns a side, and does something at the end of the turn between `arm` and the sleep, which comes to nothing by itself.
struct Late<'a, E: Endpoint, A: FnOnce(&mut Side<E>)> {
    side: &'a mut Side<E>,
    turns: u32,
    act: Option<A>,
}

impl<E: Endpoint, A: FnOnce(&mut Side<E>)> Shell for Late<'_, E, A> {
    type Endpoint = E;

    fn turn(&mut self, now_ns: u64) -> Turn {
        self.turns += 1;
        let turn = self.side.turn(now_ns);
        // A loop that does not spin arms after the first turn that finds nothing.
        if self.turns < 2 {
            return turn;
        }
        if let Some(act) = self.act.take() {
            act(self.side);
            return Turn::default();
        }
        turn
    }

    fn endpoint(&mut self) -> &mut E {
        self.side.endpoint()
    }
}

/// Acts late on a side that has nothing to do, and waits for what must come of it, though nobody rings.
fn act_late<E: Endpoint>(
    what: &str,
    side: &mut Side<E>,
    act: impl FnOnce(&mut Side<E>),
    done: impl Fn(&Side<E>) -> bool,
) {
    let mut late = Late { side, turns: 0, act: Some(act) };
    let mut driver = Loop::new(Clock::new(), 2).with_spin_ns(0);
    let ended = driver.run(&mut late, |late| done(late.side), Some(LATE_PATIENCE_NS));
    assert_eq!(ended, Ended::Until, "{what} in the turn before a sleep is forgotten");
}

/// A link that is adopted in the turn between `arm` and the sleep is seen to: what came before is reported.
pub fn sees_to_a_late_adoption<F: Fixture>(fixture: F) {
    let mut two = Two::new(fixture);
    let (link_left, link_right) = two.fixture.connect();
    let to_right = two.left.endpoint.adopt(link_left).expect("room for a second link");
    two.left.send(to_right, 3, Body::empty());
    two.settle();
    let adopt = |side: &mut Side<F::Endpoint>| {
        let _ = side.endpoint.adopt(link_right).expect("room for a second link");
    };
    act_late("an adoption", &mut two.right, adopt, |side| side.arrived() == [3]);
}

/// A body that is placed in the turn between `arm` and the sleep is seen to: what comes after it is reported.
pub fn sees_to_a_late_place<F: Fixture>(fixture: F) {
    let mut two = Two::with(fixture, None, |link| link.place_from(1));
    let body = two.body(&[7; 100]);
    two.left.send(two.to_right, 1, body);
    two.left.send(two.to_right, 2, Body::empty());
    two.until("it is announced", |two| two.right.announced().is_some());
    two.settle();
    let arrival = two.right.announced().expect("announced").0;
    let place = |side: &mut Side<F::Endpoint>| side.endpoint.place(arrival, None);
    act_late("a place", &mut two.right, place, |side| side.arrived() == [1, 2]);
}

/// A peer that is closed in the turn between `arm` and the sleep is seen to: its loss is reported.
pub fn sees_to_a_late_close<F: Fixture>(fixture: F) {
    let mut two = Two::new(fixture);
    let peer = two.to_left;
    two.settle();
    act_late("a close", &mut two.right, |side| side.endpoint.close(peer), |side| !side.losses().is_empty());
}
