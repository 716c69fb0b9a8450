//! The servers' proximal step and jump against the solver's own: the same bits, for sane arguments and for broken ones.
//! The store may not import the solver nor the solver the store, so each has its copy; here they meet.

use rangefold_kvstore::store::apply::proximal_l1;
use rangefold_learn::proximal::{Step, jumps, proximal_step};
use rangefold_learn::random::Random;

/// Values of any size and sign, and now and then one that no sum should be.
fn value(random: &mut Random) -> f64 {
    const BROKEN: [f64; 6] = [0.0, -0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MIN_POSITIVE];
    match random.below(8) {
        0 => BROKEN[random.below(BROKEN.len())],
        1 => f64::from_bits(random.next_u64()),
        _ => (random.below(2_000_001) as f64 - 1e6) * 1e-4,
    }
}

fn bits(values: &[f64]) -> Vec<u64> {
    // Which of the many bit patterns that are not numbers comes out of an operation is nobody's promise.
    values.iter().map(|value| if value.is_nan() { u64::MAX } else { value.to_bits() }).collect()
}

#[test]
fn the_step_of_a_server_is_that_of_the_solver() {
    let mut random = Random::new(1, 0);
    let mut moved = 0;
    for _ in 0..100_000 {
        let (weight, anchor) = (value(&mut random), value(&mut random));
        let (gradient, curvature) = (value(&mut random), value(&mut random));
        let step = Step { lambda: value(&mut random).abs(), damping: [1.0, 2.0, 4.0][random.below(3)] };
        let mut row = [weight, anchor];
        proximal_l1(&mut row, &[gradient, curvature], &[step.lambda, step.damping]);
        let expected = [proximal_step(weight, gradient, curvature, step), anchor];
        assert_eq!(bits(&row), bits(&expected), "{weight:e} {gradient:e} {curvature:e} {step:?}");
        moved += usize::from(row[0] != weight && !weight.is_nan());
    }
    assert!(moved > 10_000, "{moved} weights moved");
}

#[test]
fn the_jump_of_a_server_is_that_of_the_solver() {
    let mut random = Random::new(2, 0);
    let mut moved = 0;
    for _ in 0..100_000 {
        let (weight, anchor, factor) = (value(&mut random), value(&mut random), value(&mut random));
        let mut row = [weight, anchor];
        proximal_l1(&mut row, &[0.0, 0.0], &[factor]);
        let (mut weights, mut anchors) = ([weight], [anchor]);
        jumps(&mut weights, &mut anchors, factor);
        assert_eq!(bits(&row), bits(&[weights[0], anchors[0]]), "{weight:e} {anchor:e} {factor:e}");
        moved += usize::from(row[0] != weight && !weight.is_nan());
    }
    assert!(moved > 10_000, "{moved} weights moved");
}
