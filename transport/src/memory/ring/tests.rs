//! The ring against a queue, and between two threads.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

#[test]
fn a_ring_holds_as_many_as_it_says() {
    for depth in [1, 2, 3, 4, 5, 64] {
        let (mut producer, mut consumer) = ring(depth);
        for item in 0..depth {
            assert_eq!(producer.push(item), Ok(()));
        }
        assert_eq!(producer.push(depth), Err(depth));
        assert_eq!(consumer.pop(), None, "not published");
        producer.publish();
        assert_eq!(consumer.pop(), Some(0));
        assert_eq!(producer.push(depth), Err(depth), "not released");
        assert!(consumer.release());
        assert!(!consumer.release(), "nothing new");
        assert_eq!(producer.push(depth), Ok(()));
    }
}

#[test]
fn what_is_left_is_dropped_once() {
    let item = Arc::new(());
    let (mut producer, mut consumer) = ring(8);
    for _ in 0..6 {
        assert!(producer.push(Arc::clone(&item)).is_ok());
    }
    producer.publish();
    assert!(producer.push(Arc::clone(&item)).is_ok());
    drop(consumer.pop());
    let held = consumer.pop();
    assert_eq!(Arc::strong_count(&item), 7);
    drop(producer);
    drop(consumer);
    assert_eq!(Arc::strong_count(&item), 2);
    drop(held);
    assert_eq!(Arc::strong_count(&item), 1);
}

#[test]
fn items_keep_their_order_between_threads() {
    let count = if cfg!(miri) { 200_u32 } else { 200_000 };
    let (mut producer, mut consumer) = ring(7);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for item in 0..count {
                while producer.push(Box::new(item)).is_err() {
                    producer.publish();
                    std::thread::yield_now();
                }
                if item % 3 == 0 {
                    producer.publish();
                }
            }
        });
        for item in 0..count {
            loop {
                if let Some(found) = consumer.pop() {
                    assert_eq!(*found, item);
                    break;
                }
                consumer.release();
                std::thread::yield_now();
            }
        }
    });
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Push,
    Publish,
    Peek,
    Pop,
    Release,
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_ring_is_a_queue(
        depth in 1_usize..6,
        steps in prop::collection::vec(
            prop::sample::select(vec![Step::Push, Step::Push, Step::Publish, Step::Peek, Step::Pop, Step::Pop, Step::Release]),
            1..if cfg!(miri) { 40 } else { 300 },
        ),
    ) {
        let (mut producer, mut consumer) = ring(depth);
        // Put and not shown; shown; taken and not released.
        let (mut hidden, mut shown, mut taken) = (VecDeque::new(), VecDeque::new(), 0);
        for (item, step) in steps.into_iter().map(Box::new).enumerate() {
            match *step {
                Step::Push => {
                    let room = hidden.len() + shown.len() + taken < depth;
                    prop_assert_eq!(producer.push(Box::new(item)).is_ok(), room);
                    if room {
                        hidden.push_back(item);
                    }
                }
                Step::Publish => {
                    producer.publish();
                    shown.append(&mut hidden);
                }
                Step::Peek => prop_assert_eq!(consumer.peek().map(|item| **item), shown.front().copied()),
                Step::Pop => {
                    let expected = shown.pop_front();
                    taken += usize::from(expected.is_some());
                    prop_assert_eq!(consumer.pop().map(|item| *item), expected);
                }
                Step::Release => {
                    prop_assert_eq!(consumer.release(), taken > 0);
                    taken = 0;
                }
            }
        }
    }
}
