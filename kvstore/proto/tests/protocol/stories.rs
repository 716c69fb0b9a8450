//! Stories from end to end, without a network: what a program sees of lost connections, moved segments, dead workers.

use rangefold_proto::client::TaskError;
use rangefold_proto::{Lane, Limits, SegmentId, TableId, TableSpec};

use crate::pair::Pair;
use crate::shard::id;
use crate::{aggregated, table};

/// Tables in several segments, whose length they do not divide.
fn tables() -> [TableSpec; 2] {
    [TableSpec { segments: 4, ..table(23) }, TableSpec { segments: 2, ..aggregated(7) }]
}

fn pair(workers: u32, parts: u32) -> Pair {
    Pair::new(Limits::test_min(), 2, workers, parts, &tables())
}

#[test]
fn a_worker_reads_what_it_wrote_in_every_segment() {
    let mut pair = pair(1, 1);
    let push = pair.push(0, 0, 0, 0..23, 1.5).unwrap();
    let pull = pair.pull(0, 0, 0, 3..21, 0).unwrap();
    pair.drive();
    assert_eq!(pair.workers[0].ended[&push], Ok(()));
    assert_eq!(pair.values(0, pull), [1.5; 18]);
    assert_eq!(pair.stored(0), [1.5; 23]);
}

//= protocol.md P3
//= type=test
#[test]
fn a_broken_connection_loses_nothing_and_repeats_nothing() {
    // Cut after every number of steps: before, between and after a push, its effect and its acknowledgement.
    for steps in 0..30 {
        let mut pair = pair(1, 1);
        for _ in 0..3 {
            pair.push(0, 0, 0, 0..23, 1.0).unwrap();
        }
        let pull = pair.pull(0, 0, 0, 0..23, 0).unwrap();
        for _ in 0..steps {
            pair.step();
        }
        pair.cut_all();
        pair.drive();
        assert_eq!(pair.values(0, pull), [3.0; 23], "cut after {steps} steps");
        assert_eq!(pair.stored(0), [3.0; 23], "cut after {steps} steps");
        assert_eq!(pair.workers[0].core.open_tasks(), 0);
    }
}

#[test]
fn a_dial_that_fails_is_repeated_at_growing_distances() {
    let mut pair = pair(1, 1);
    pair.dials_to_fail.insert(id(0), 3);
    let pull = pair.pull(0, 0, 0, 0..23, 0).unwrap();
    pair.drive();
    assert_eq!(pair.values(0, pull), [0.0; 23]);
    let times: Vec<u64> =
        pair.dials.iter().filter(|(_, shard)| *shard == id(0)).map(|(at, _)| at.0).collect();
    let waits: Vec<u64> =
        times.windows(2).map(|pair| (pair[1] - pair[0]) / Limits::test_min().retry_ns).collect();
    assert_eq!(waits, [1, 2, 4]);
}

//= protocol.md G1
//= type=test
#[test]
fn a_segment_that_moves_takes_its_values_and_clocks_along() {
    for steps in 0..12 {
        let mut pair = pair(1, 1);
        pair.push(0, 0, 0, 0..23, 1.0).unwrap();
        pair.push(0, 0, 0, 0..23, 1.0).unwrap();
        for _ in 0..steps {
            pair.step();
        }
        for index in 0..4 {
            let segment = SegmentId::new(TableId(0), index);
            let to = 1 - pair.manager.map().owner(segment).unwrap().server.0;
            pair.move_segment(segment, to);
        }
        pair.push(0, 0, 0, 5..20, 1.0).unwrap();
        let pull = pair.pull(0, 0, 0, 5..20, 0).unwrap();
        pair.drive();
        assert_eq!(pair.values(0, pull), [3.0; 15], "moved after {steps} steps");
    }
}

//= protocol.md T4
//= type=test
#[test]
fn bounded_delay_waits_for_the_slowest_and_no_longer() {
    let mut pair = pair(2, 2);
    // Lane 0 is in round 2, lane 1 in round 0.
    for round in 0..2 {
        pair.push(0, 0, 0, 0..23, 1.0).unwrap();
        assert_eq!(pair.advance(0, 0), round + 1);
    }
    let with_delay = pair.pull(0, 0, 0, 0..23, 0).unwrap();
    let sequential = pair.pull(0, 0, 0, 0..23, 2).unwrap();
    pair.quiet();
    assert!(pair.workers[0].ended.contains_key(&with_delay));
    assert!(!pair.workers[0].ended.contains_key(&sequential));
    pair.push(1, 1, 0, 0..23, 1.0).unwrap();
    pair.advance(1, 1);
    pair.quiet();
    assert!(!pair.workers[0].ended.contains_key(&sequential));
    pair.push(1, 1, 0, 0..23, 1.0).unwrap();
    pair.advance(1, 1);
    pair.drive();
    assert_eq!(pair.values(0, sequential), [4.0; 23]);
}

//= protocol.md T7
//= type=test
#[test]
fn a_dead_worker_holds_nobody_up_once_it_is_given_up() {
    let mut pair = pair(2, 2);
    pair.push(0, 0, 0, 0..23, 1.0).unwrap();
    pair.advance(0, 0);
    let pull = pair.pull(0, 0, 0, 0..23, 1).unwrap();
    pair.kill(1);
    pair.quiet();
    assert!(!pair.workers[0].ended.contains_key(&pull));
    pair.give_up(1);
    // Lane 1 is worker 0's now, from round 0.
    assert_eq!(pair.workers[0].core.lanes().collect::<Vec<_>>(), [Lane(0), Lane(1)]);
    pair.advance(0, 1);
    pair.drive();
    assert_eq!(pair.values(0, pull), [1.0; 23]);
}

//= protocol.md T10
//= type=test
#[test]
fn a_restarted_worker_does_its_rounds_again_and_they_count_once() {
    for steps in 0..25 {
        let mut pair = pair(2, 2);
        // Each lane contributes its round number and lane; lane 1's worker dies somewhere in the middle.
        for round in 0..3 {
            for lane in [0, 1] {
                pair.push(lane, lane as u32, 1, 0..7, f64::from(round + 1)).unwrap();
                pair.advance(lane, lane as u32);
            }
        }
        for _ in 0..steps {
            pair.step();
        }
        pair.kill(1);
        pair.give_up(1);
        let heir = pair.join();
        let heir = if pair.workers[heir].core.lanes().count() > 0 { heir } else { 0 };
        let first = pair.workers[heir].core.round(Lane(1)).unwrap();
        assert_eq!(first, 0, "nobody reported, so the lane begins anew");
        for round in 0..3 {
            pair.push(heir, 1, 1, 0..7, f64::from(round + 1)).unwrap();
            pair.advance(heir, 1);
        }
        let pull = pair.pull(heir, 1, 1, 0..7, 3).unwrap();
        pair.drive();
        assert_eq!(pair.values(heir, pull), [12.0; 7], "killed after {steps} steps");
    }
}

//= protocol.md P10
//= type=test
#[test]
fn a_worker_that_was_taken_for_dead_hears_of_it_and_its_late_pushes_change_nothing() {
    let mut pair = pair(2, 2);
    pair.push(1, 1, 0, 0..23, 1.0).unwrap();
    pair.drive();
    let late = pair.push(1, 1, 0, 0..23, 1.0).unwrap();
    pair.give_up(1);
    pair.drive();
    assert_eq!(pair.workers[1].fenced, [Lane(1)]);
    assert_eq!(pair.workers[1].ended[&late], Err(TaskError::Fenced(Lane(1))));
    let before = pair.stored(0);
    pair.push(0, 1, 0, 0..23, 10.0).unwrap();
    pair.drive();
    assert_eq!(pair.stored(0), before.iter().map(|value| value + 10.0).collect::<Vec<_>>());
}

#[test]
fn a_fast_lane_meets_the_bound_on_open_rounds_and_goes_on_when_it_may() {
    let mut pair = pair(2, 2);
    for _ in 0..Limits::test_min().rounds_open_max + 3 {
        pair.push(0, 0, 1, 0..7, 1.0).unwrap();
        pair.advance(0, 0);
    }
    pair.quiet();
    // Expect: nothing is applied before lane 1 has closed a round.
    assert_eq!(pair.stored(1), [0.0; 7]);
    for _ in 0..Limits::test_min().rounds_open_max + 3 {
        pair.advance(1, 1);
    }
    pair.drive();
    assert_eq!(pair.stored(1), [6.0; 7]);
    assert_eq!(pair.workers[0].core.open_tasks(), 0);
}

/// Contributions hold credit until their round is applied, and their round is not applied before the last of them has come.
#[test]
fn several_pushes_of_a_round_beyond_the_credit_are_refused_or_done() {
    let mut pair = Pair::new(Limits::test_min(), 1, 1, 1, &[aggregated(16)]);
    let pushes: Vec<_> = (0..3).filter_map(|_| pair.push(0, 0, 0, 0..16, 1.0).ok()).collect();
    pair.advance(0, 0);
    pair.drive();
    assert!(pushes.iter().all(|push| pair.workers[0].ended.contains_key(push)), "{}", pair.describe());
}
