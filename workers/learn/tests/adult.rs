//! The bundled Adult data against their known optimum, for every delay and several layouts.

use rangefold_learn::bundled::{self, ADULT_OPTIMUM as OPTIMUM};
use rangefold_learn::lane::Lane;
use rangefold_learn::metrics::score;
use rangefold_learn::part::{Part, survey};
use rangefold_learn::plan::{Reason, Settings};
use rangefold_learn::reference::{Outcome, Staleness, train};

fn lanes(count: usize) -> (usize, Vec<Lane>) {
    let mapping = bundled::adult_train().unwrap();
    let survey = survey(&mapping).unwrap();
    let parts = Part::load_all(&mapping, survey.features, count).unwrap();
    (survey.weights_len(), parts.into_iter().map(Lane::new).collect())
}

fn run(part_count: usize, segment_count: usize, delay: usize, gap: f64, staleness: Staleness) -> Outcome {
    let (weights_len, lanes) = lanes(part_count);
    let segment_len = weights_len.div_ceil(segment_count);
    let settings =
        Settings { lambda: 10.0, gap, delay, seed: 1, weights_len, segment_len, passes_max: 1000.0 };
    train(lanes, &settings, staleness).unwrap()
}

fn assert_accepted(outcome: &Outcome, gap: f64) {
    assert_eq!(outcome.reason, Reason::GapReached);
    let last = outcome.certificates.last().unwrap();
    assert!(last.objective <= 1.001 * OPTIMUM, "objective {}", last.objective);
    assert!(last.gap <= gap, "gap {}", last.gap);
    assert!(last.nonzeros <= 87, "{} non-zeros", last.nonzeros);
    assert!(outcome.progress.passes <= 400.0, "{} passes", outcome.progress.passes);
    assert!(outcome.progress.rounds <= 20_000, "{} rounds", outcome.progress.rounds);
    for certificate in &outcome.certificates {
        assert!(certificate.objective >= OPTIMUM * (1.0 - 1e-6), "below the optimum: {certificate:?}");
        assert!(certificate.bound <= OPTIMUM * (1.0 + 1e-6), "not a bound: {certificate:?}");
    }
    let fell =
        outcome.certificates.is_sorted_by(|before, after| after.objective <= before.objective * (1.0 + 1e-9));
    assert!(fell, "the objective rose between two certificates");
}

#[test]
fn sequential_reaches_the_optimum_and_predicts_as_it_should() {
    let outcome = run(4, 4, 0, 0.01, Staleness::Worst);
    assert_accepted(&outcome, 0.01);
    let scores = score(&bundled::adult_test().unwrap(), &outcome.weights).unwrap();
    assert!((scores.area_under_curve().unwrap() - 0.88652).abs() <= 0.002);
    assert!((scores.accuracy().unwrap() - 0.83301).abs() <= 0.003);
}

#[test]
fn delay_4_reaches_the_optimum() {
    assert_accepted(&run(2, 16, 4, 0.01, Staleness::Worst), 0.01);
}

#[test]
fn delay_16_reaches_the_optimum() {
    assert_accepted(&run(1, 4, 16, 0.01, Staleness::Worst), 0.01);
}

#[test]
fn delay_16_with_uneven_workers_reaches_the_optimum() {
    assert_accepted(&run(3, 64, 16, 0.1, Staleness::Random { seed: 5 }), 0.1);
}

#[test]
fn the_same_run_gives_the_same_bits() {
    let (weights_len, lanes) = lanes(5);
    let settings = Settings {
        lambda: 100.0,
        gap: 0.05,
        delay: 0,
        seed: 3,
        weights_len,
        segment_len: 32,
        passes_max: 1000.0,
    };
    let bits = |outcome: Outcome| outcome.weights.into_iter().map(f64::to_bits).collect::<Vec<_>>();
    let first = bits(train(lanes.clone(), &settings, Staleness::Worst).unwrap());
    let second = bits(train(lanes, &settings, Staleness::Random { seed: 1 }).unwrap());
    assert_eq!(first, second);
}

#[test]
fn a_penalty_above_every_gradient_leaves_nothing() {
    let (weights_len, lanes) = lanes(2);
    let settings = Settings {
        lambda: 2e4,
        gap: 0.01,
        delay: 0,
        seed: 3,
        weights_len,
        segment_len: 128,
        passes_max: 10.0,
    };
    let outcome = train(lanes, &settings, Staleness::Worst).unwrap();
    assert_eq!(outcome.certificates.len(), 1);
    assert_eq!(outcome.certificates[0].nonzeros, 0);
    assert!(outcome.certificates[0].gap < 1e-9);
}
