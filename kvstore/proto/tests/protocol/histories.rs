//! Random histories against a plain array: whatever breaks or moves, every push counts once.

use proptest::prelude::*;
use rangefold_proto::client::{IssueError, TaskId};
use rangefold_proto::{Key, Lane, Limits, SegmentId, TableId, TableSpec};

use crate::pair::Pair;
use crate::{aggregated, table};

const LEN: u64 = 11;
const WORKERS: usize = 2;

#[derive(Clone, Copy, Debug)]
enum Operation {
    Push { lane: usize, start: Key, end: Key },
    Pull { lane: usize, start: Key, end: Key },
    Advance { lane: usize },
    Cut { link: usize },
    Move { segment: u16, server: u32 },
    Step { count: usize },
}

fn operation() -> impl Strategy<Value = Operation> {
    let lane = 0..WORKERS;
    let keys = (0..LEN, 1..=LEN).prop_map(|(start, len)| (start, (start + len).min(LEN)));
    prop_oneof![
        6 => (lane.clone(), keys.clone()).prop_map(|(lane, (start, end))| Operation::Push { lane, start, end }),
        2 => (lane.clone(), keys).prop_map(|(lane, (start, end))| Operation::Pull { lane, start, end }),
        2 => lane.prop_map(|lane| Operation::Advance { lane }),
        1 => (0usize..8).prop_map(|link| Operation::Cut { link }),
        1 => (0u16..4, 0u32..3).prop_map(|(segment, server)| Operation::Move { segment, server }),
        4 => (1usize..12).prop_map(|count| Operation::Step { count }),
    ]
}

/// What a pull must see at least, and may see at most.
struct Expected {
    worker: usize,
    task: TaskId,
    least: Vec<f64>,
    most_at_end: core::ops::Range<usize>,
}

/// Tries until the client is not full; time passes meanwhile.
fn insist(pair: &mut Pair, mut issue: impl FnMut(&mut Pair) -> Result<TaskId, IssueError>) -> TaskId {
    for _ in 0..100_000 {
        match issue(pair) {
            Ok(task) => return task,
            Err(IssueError::Full) => {
                pair.step();
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("full for ever\n{}", pair.describe());
}

fn check(spec: TableSpec, operations: &[Operation]) -> Result<(), TestCaseError> {
    let sums = crate::pair::is_aggregated(&spec);
    let mut pair = Pair::new(Limits::test_min(), 3, 2, 2, &[TableSpec { segments: 4, ..spec }]);
    // Per lane: what it pushed.
    let mut pushed = [[0.0; LEN as usize]; WORKERS];
    let mut round = [0u32; WORKERS];
    let mut contributed = [None; WORKERS];
    let mut pulls: Vec<Expected> = Vec::new();
    for &operation in operations {
        match operation {
            Operation::Push { lane, start, end } => {
                // One push a round to an aggregated table: a round's contributions hold credit until all have come, and
                // more of them than fit would wait for each other.
                if sums && contributed[lane].replace(round[lane]) == Some(round[lane]) {
                    continue;
                }
                insist(&mut pair, |pair| pair.push(lane, lane as u32, 0, start..end, 1.0));
                pushed[lane][start as usize..end as usize].iter_mut().for_each(|value| *value += 1.0);
            }
            Operation::Pull { lane, start, end } => {
                let range = start as usize..end as usize;
                // A pull of an aggregated table in the round of its own push would wait for a close that comes later.
                let task = insist(&mut pair, |pair| {
                    let rounds = round[lane].saturating_sub(1);
                    let pull = rangefold_proto::client::Pull {
                        lane: Lane(lane as u32),
                        table: TableId(0),
                        range: (start..end).into(),
                        rounds_needed: rounds.min(round[1 - lane]),
                        own_pushes: !sums,
                        patience_ms: 600_000,
                    };
                    pair.workers[lane].core.pull(pull)
                });
                let least = if sums { vec![0.0; range.len()] } else { pushed[lane][range.clone()].to_vec() };
                pulls.push(Expected { worker: lane, task, least, most_at_end: range });
            }
            Operation::Advance { lane } => {
                pair.advance(lane, lane as u32);
                round[lane] += 1;
            }
            Operation::Cut { link } => pair.cut_one(link),
            Operation::Move { segment, server } => {
                pair.move_segment(SegmentId::new(TableId(0), segment), server);
            }
            Operation::Step { count } => {
                for _ in 0..count {
                    pair.step();
                }
            }
        }
    }
    let last = round[0].max(round[1]) + 1;
    for (lane, round) in round.into_iter().enumerate() {
        for _ in round..last {
            pair.advance(lane, lane as u32);
        }
    }
    // A worker that had no connection when a segment moved may not hear of it from servers alone (see `routing.rs`).
    pair.tell_map();
    pair.drive();
    let total: Vec<f64> = (0..LEN as usize).map(|key| pushed.iter().map(|lane| lane[key]).sum()).collect();
    prop_assert_eq!(pair.stored(0), total.clone());
    for worker in 0..WORKERS {
        prop_assert_eq!(pair.workers[worker].core.open_tasks(), 0);
    }
    for Expected { worker, task, least, most_at_end } in pulls {
        let values = pair.values(worker, task);
        let most = &total[most_at_end];
        let within = values
            .iter()
            .zip(least.iter().zip(most))
            .all(|(value, (least, most))| least <= value && value <= most);
        prop_assert!(within && values.len() == least.len(), "{values:?} not within {least:?} and {most:?}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_push_counts_once(operations in proptest::collection::vec(operation(), 1..80)) {
        check(table(LEN), &operations)?;
    }

    #[test]
    fn every_contribution_counts_once_in_its_round(operations in proptest::collection::vec(operation(), 1..80)) {
        check(aggregated(LEN), &operations)?;
    }
}
