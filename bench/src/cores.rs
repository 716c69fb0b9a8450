//! Where threads run, and how far apart the two cores are just now.
//! Knows processors; called around every measurement.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A cache line travels between near cores and back in less than this.
const NEAR_NS: u128 = 250;
const TRIPS: u64 = 2_000;
const ROUNDS: u64 = 5;

/// How far apart the two cores are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Distance {
    /// They share a cache.
    Near,
    /// They do not, or other work runs on one of them.
    Far,
    /// There is only one.
    One,
}

impl Distance {
    pub(crate) const ALL: [Self; 3] = [Self::Near, Self::Far, Self::One];

    /// As it is printed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Near => "near",
            Self::Far => "far",
            Self::One => "one",
        }
    }
}

/// The processors of this process, as they were before a thread was pinned: a pinned thread is told of one only.
fn all() -> &'static [usize] {
    static ALL: OnceLock<Vec<usize>> = OnceLock::new();
    ALL.get_or_init(rangefold::pinning::allowed)
}

/// Binds the calling thread to the first core.
pub(crate) fn pin_worker() {
    pin(0);
}

/// Binds the calling thread to the second core.
pub(crate) fn pin_other() {
    pin(1);
}

/// Which cores are used, and whether a thread can be bound to each.
pub(crate) fn describe() -> String {
    let bound = |index: usize, name: &str| {
        let core = all().get(index)?;
        let bound = std::thread::scope(|scope| scope.spawn(|| pin(index)).join().unwrap_or(false));
        Some(format!(
            "{name} on {core} ({})",
            if bound { "pinned" } else { "NOT pinned: the system refuses" }
        ))
    };
    match (bound(0, "worker"), bound(1, "shard or receiver")) {
        (Some(worker), Some(other)) => format!("{worker}, {other}; {} may be used", all().len()),
        (Some(worker), None) => format!("{worker}, and everything else with it: only this one may be used"),
        (None, _) => "NOT pinned: the system names no processor".into(),
    }
}

/// What a spinning thread does between two looks. On one core it lets the other side run.
pub(crate) fn pause() {
    if all().len() < 2 {
        std::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

/// The second core, if there is one.
pub(crate) fn other() -> Vec<usize> {
    all().get(1).copied().into_iter().collect()
}

/// Says whether it was done. Where it is not allowed the figures are worse; the head of the output says so.
fn pin(index: usize) -> bool {
    all().get(index).is_some_and(|&core| rangefold::pinning::pin(core))
}

/// The distance now: the median of five rounds of a cache line's trips to the other core and back.
pub(crate) fn distance() -> Distance {
    if all().len() < 2 {
        return Distance::One;
    }
    let line = AtomicU64::new(0);
    let mut rounds: Vec<u128> = std::thread::scope(|scope| {
        scope.spawn(|| {
            pin_other();
            for trip in 0..ROUNDS * TRIPS {
                // Acquire and Release pair with those of the other side: the line itself is the message.
                while line.load(Ordering::Acquire) != 2 * trip + 1 {
                    std::hint::spin_loop();
                }
                line.store(2 * trip + 2, Ordering::Release);
            }
        });
        let round = |round: u64| {
            let begun = Instant::now();
            for trip in round * TRIPS..(round + 1) * TRIPS {
                line.store(2 * trip + 1, Ordering::Release);
                while line.load(Ordering::Acquire) != 2 * trip + 2 {
                    std::hint::spin_loop();
                }
            }
            begun.elapsed().as_nanos() / u128::from(TRIPS)
        };
        (0..ROUNDS).map(round).collect()
    });
    rounds.sort_unstable();
    if rounds[rounds.len() / 2] < NEAR_NS { Distance::Near } else { Distance::Far }
}
