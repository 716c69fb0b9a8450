//! Seeded schedules of a whole cluster. `RANGEFOLD_SEEDS=10000` runs more, `RANGEFOLD_SEED=17` replays one.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rangefold_tests::simulation::{Coverage, run};

/// Schedules that CI runs.
const SEEDS: u64 = 1000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not `{text}`")))
}

//= protocol.md §14
//= type=test
#[test]
fn every_schedule_keeps_the_invariants() {
    let seeds = match number("RANGEFOLD_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RANGEFOLD_SEEDS").unwrap_or(SEEDS),
    };
    let single = seeds.end - seeds.start == 1;
    let next = AtomicU64::new(seeds.start);
    let total = Mutex::new((Coverage::default(), Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = std::panic::catch_unwind(|| run(seed))
                        .unwrap_or_else(|_| Err(format!("seed {seed}: panicked, see above")));
                    let mut total = total.lock().unwrap();
                    match outcome {
                        Ok(coverage) => total.0 = total.0.and(coverage),
                        Err(broken) => {
                            total.1.push(broken);
                            next.store(seeds.end, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let (coverage, broken) = total.into_inner().unwrap();
    assert!(broken.is_empty(), "{}\nreplay with RANGEFOLD_SEED=<seed>", broken.join("\n"));
    println!("{} schedules: {coverage:#?}", seeds.end - seeds.start);
    assert!(single || coverage.missing().is_empty(), "never happened: {:?}", coverage.missing());
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..5 {
        assert_eq!(run(seed), run(seed));
    }
}
