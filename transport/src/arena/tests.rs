//! The arena against a model: slices never overlap, keep their contents, and are accounted for.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::region::Slice;

#[test]
fn classes_hold_what_they_are_asked_for() {
    for (len, class) in [(0, 0), (1, 0), (64, 0), (65, 1), (128, 1), (129, 2), (4 << 20, CLASS_COUNT - 1)] {
        assert_eq!(class_of(len), Some(class), "{len} bytes");
        assert!(class_bytes(class) >= len);
    }
    assert_eq!(class_of((4 << 20) + 1), None);
    assert_eq!(class_bytes(CLASS_COUNT - 1), CLASS_BYTES_MAX);
}

#[test]
fn slices_are_aligned_and_as_long_as_asked() {
    let mut arena = Arena::new(1 << 20);
    for len in [0, 1, 63, 64, 65, 100, 4_095, 5_000] {
        let slice = arena.take(len).expect("within the budget");
        assert_eq!(slice.len(), len);
        assert_eq!(slice.as_bytes().as_ptr().addr() % 64, 0);
    }
}

#[test]
fn a_budget_is_kept_and_returned_memory_is_used_again() {
    let mut arena = Arena::new(1_000);
    assert_eq!(arena.budget_bytes(), 960);
    let slices: Vec<_> = std::iter::from_fn(|| arena.take(64)).collect();
    assert_eq!((slices.len(), arena.used_bytes(), arena.mapped_bytes()), (15, 960, 960));
    assert!(arena.take(1).is_none());
    assert!(arena.refused().is_none(), "the budget said no, not the system");
    drop(slices);
    assert_eq!(arena.used_bytes(), 960, "not collected yet");
    let again: Vec<_> = std::iter::from_fn(|| arena.take(64)).collect();
    assert_eq!((again.len(), arena.mapped_bytes()), (15, 960));
}

#[test]
#[cfg_attr(miri, ignore = "much memory")]
fn large_chunks_are_kept_used_again_and_given_up() {
    let mut arena = Arena::new(32 << 20);
    drop(arena.take(5 << 20).expect("within the budget"));
    assert_eq!((arena.mapped_bytes(), arena.regions().len()), (6 << 20, 1));
    drop(arena.take(6 << 20).expect("the returned one"));
    assert_eq!(arena.mapped_bytes(), 6 << 20, "used again");
    let large = arena.take(30 << 20).expect("the free one is given up for it");
    assert_eq!((arena.mapped_bytes(), arena.regions().len()), (30 << 20, 1));
    assert!(arena.take(3 << 20).is_none());
    drop(large);
    arena.collect();
    assert!(arena.take(100).is_some(), "small ones too");
    assert_eq!(arena.used_bytes(), 128);
}

#[test]
#[cfg_attr(miri, ignore = "much memory")]
fn memory_moves_to_the_class_that_asks() {
    let mut arena = Arena::new(32 << 20).moving();
    // All of it in chunks of one class, free again; then any other class can have all of it.
    for bytes in [4 << 20, 64, 256 << 10, 1 << 20, 100 << 10, 30 << 20, 5_000] {
        let slices: Vec<_> = std::iter::from_fn(|| arena.take(bytes)).collect();
        let capacity = bytes.next_power_of_two().min(30 << 20);
        assert!(slices.len() * capacity > 27 << 20, "{} of {bytes} bytes", slices.len());
        assert!(arena.mapped_bytes() <= 32 << 20);
    }
}

#[test]
#[cfg_attr(miri, ignore = "much memory")]
fn a_larger_chunk_serves_when_no_mapping_is_free() {
    let mut arena = Arena::new(4 << 20).moving();
    // One mapping, cut up whole; what stays taken keeps it from being unmapped.
    let mut slices: Vec<_> = std::iter::from_fn(|| arena.take(256 << 10)).collect();
    slices.truncate(slices.len() - 1);
    assert!(arena.take(64).is_some());
    assert!(arena.take(300 << 10).is_none(), "what is free is too small");
    drop(slices);
    assert!(arena.take(300 << 10).is_some(), "now it is not");
}

#[test]
#[cfg_attr(miri, ignore = "much memory")]
fn a_class_keeps_its_memory_in_an_arena_that_is_not_moving() {
    let mut arena = Arena::new(4 << 20);
    let large: Vec<_> = std::iter::from_fn(|| arena.take(256 << 10)).collect();
    let count = large.len();
    drop(large);
    // Expect: small ones take none of it, however many are asked for.
    let small: Vec<_> = std::iter::from_fn(|| arena.take(64)).collect();
    assert!(small.is_empty(), "{} small ones", small.len());
    let again: Vec<_> = std::iter::from_fn(|| arena.take(256 << 10)).collect();
    assert_eq!(again.len(), count);
}

#[test]
#[cfg_attr(miri, ignore = "asks the system for more than there is")]
fn a_refusal_of_the_system_is_remembered() {
    let mut arena = Arena::new(1 << 60);
    assert!(arena.take(1 << 59).is_none());
    assert!(arena.refused().is_some());
    assert!(arena.refused().is_none(), "taken");
    assert!(arena.take(64).is_some());
}

#[test]
fn slices_outlive_the_arena() {
    let mut arena = Arena::new(1 << 16);
    let returned = arena.take(64).expect("within the budget");
    let mut kept = arena.take(64).expect("within the budget");
    kept.as_mut_bytes().fill(3);
    drop(returned);
    drop(arena);
    let kept = kept.freeze();
    let clone = kept.clone();
    drop(kept);
    assert_eq!(clone.as_bytes(), [3; 64]);
}

#[test]
fn an_arena_without_slices_ends_alone() {
    let mut arena = Arena::new(1 << 16);
    drop(arena.take(64));
    drop(arena);
    drop(Arena::new(0));
}

#[test]
fn slices_come_back_from_other_threads() {
    let rounds = if cfg!(miri) { 20 } else { 20_000 };
    let mut arena = Arena::new(1 << 16);
    let (send, receive) = std::sync::mpsc::sync_channel::<Slice>(16);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for (round, slice) in receive.into_iter().enumerate() {
                let expected = u8::try_from(round % 256).expect("below 256");
                assert!(slice.as_bytes().iter().all(|byte| *byte == expected));
            }
        });
        for round in 0..rounds {
            let mut slice = loop {
                match arena.take(1 + round % 500) {
                    Some(slice) => break slice,
                    None => std::thread::yield_now(),
                }
            };
            slice.as_mut_bytes().fill(u8::try_from(round % 256).expect("below 256"));
            send.send(slice.freeze()).expect("the other thread reads until the end");
        }
        drop(send);
    });
    arena.collect();
    assert_eq!(arena.used_bytes(), 0);
}

/// Miri looks at every byte by hand.
const LEN_MAX: usize = if cfg!(miri) { 80 } else { 3_000 };
const STEPS_MAX: usize = if cfg!(miri) { 20 } else { 200 };

#[derive(Clone, Debug)]
enum Step {
    Take(usize),
    DropOldest,
    DropNewest,
    Split(usize),
    Collect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..LEN_MAX).prop_map(Step::Take),
        2 => Just(Step::DropOldest),
        1 => Just(Step::DropNewest),
        1 => (0..LEN_MAX).prop_map(Step::Split),
        1 => Just(Step::Collect),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn slices_keep_their_contents(moves in any::<bool>(), steps in prop::collection::vec(step(), 1..STEPS_MAX)) {
        let mut arena = Arena::new(64 << 10);
        arena.moves = moves;
        let mut live: VecDeque<(SliceMut, u8)> = VecDeque::new();
        for (count, step) in steps.into_iter().enumerate() {
            let mark = u8::try_from(count % 256).expect("below 256");
            match step {
                Step::Take(len) => {
                    if let Some(mut slice) = arena.take(len) {
                        prop_assert_eq!(slice.len(), len);
                        slice.as_mut_bytes().fill(mark);
                        live.push_back((slice, mark));
                    }
                }
                Step::DropOldest => drop(live.pop_front()),
                Step::DropNewest => drop(live.pop_back()),
                Step::Split(at) => {
                    if let Some((slice, mark)) = live.front_mut() {
                        let rest = slice.split_off(at.min(slice.len()));
                        let mark = *mark;
                        live.push_back((rest, mark));
                    }
                }
                Step::Collect => arena.collect(),
            }
            prop_assert!(arena.used_bytes() <= arena.mapped_bytes());
            prop_assert!(arena.mapped_bytes() <= arena.budget_bytes());
            for (slice, mark) in &live {
                prop_assert!(slice.as_bytes().iter().all(|byte| byte == mark), "another slice wrote here");
            }
        }
        live.clear();
        arena.collect();
        prop_assert_eq!(arena.used_bytes(), 0);
    }
}
