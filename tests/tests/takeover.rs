//! A worker is lost in the middle of training; another runs its lanes on. Delay 0: the same weights, to the last bit.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rangefold::embed::{Cluster, Options, WorkerId};
use rangefold_learn::bundled::{self, ADULT_OPTIMUM as OPTIMUM};
use rangefold_learn::train::{Job, Outcome, train};

/// Trains with two workers; the second is given up when `lose_at` certificates were seen.
fn run(delay: u32, lose_at: Option<u64>) -> Outcome {
    let data = bundled::adult_train().unwrap();
    let deadline = Duration::from_secs(60);
    let job =
        Job { lambda: 10.0, gap: 0.01, delay, seed: 1, parts: 5, segments: 16, passes_max: 1000.0, deadline };
    let options = Options { servers: 2, workers: 2, parts: 5, tau: Some(delay), ..Options::default() };
    let cluster = Cluster::start(options).unwrap();
    let (first, second) = (cluster.join().unwrap(), cluster.join().unwrap());
    let (never, seen) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let survivor = scope.spawn(|| {
            train(&first, &job, &data, &never, |_| {
                seen.fetch_add(1, Ordering::Relaxed);
            })
        });
        let lost = scope.spawn(|| train(&second, &job, &data, &never, |_| {}));
        if let Some(lose_at) = lose_at {
            while seen.load(Ordering::Relaxed) < lose_at && !survivor.is_finished() {
                std::thread::sleep(Duration::from_millis(1));
            }
            // Somewhere in the middle of an epoch.
            std::thread::sleep(Duration::from_millis(5));
            cluster.give_up(WorkerId(1));
            assert!(lost.join().unwrap().is_err(), "the lost worker hears of it");
        } else {
            lost.join().unwrap().unwrap();
        }
        survivor.join().unwrap().unwrap()
    })
}

//= OSDI'14 §4.6
//= type=test
#[test]
fn at_delay_0_nothing_shows_that_a_worker_was_lost() {
    let undisturbed = run(0, None);
    for lose_at in [0, 1, 3, 8] {
        let outcome = run(0, Some(lose_at));
        assert_eq!(outcome.certificate, undisturbed.certificate, "lost after certificate {lose_at}");
        let equal = outcome.weights.iter().zip(&undisturbed.weights).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(equal, "weights differ; lost after certificate {lose_at}");
        assert_eq!(outcome.rows, 39_099, "the survivor has read all rows in the end");
    }
}

#[test]
fn with_delay_the_optimum_is_reached_all_the_same() {
    for lose_at in [1, 5] {
        let certificate = run(4, Some(lose_at)).certificate;
        assert!(certificate.gap <= 0.01 && certificate.objective <= 1.001 * OPTIMUM, "{certificate:?}");
        assert!(certificate.objective >= OPTIMUM * (1.0 - certificate.gap), "{certificate:?}");
    }
}
