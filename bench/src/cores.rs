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

/// The second core, if there is one.
pub(crate) fn other() -> Vec<usize> {
    all().get(1).copied().into_iter().collect()
}

fn pin(index: usize) {
    if let Some(&core) = all().get(index) {
        // Where it is not allowed the figures are worse, and the distance says so.
        let _ = rangefold::pinning::pin(core);
    }
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
