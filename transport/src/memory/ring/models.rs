//! Loom models of the ring alone: order, reuse of slots, what is left at the end.

use loom::thread;

use super::*;

/// Three items through two slots, so that one slot is used twice.
#[test]
fn loom_ring_reuses_slots() {
    loom::model(|| {
        let (mut producer, mut consumer) = ring(2);
        let other = thread::spawn(move || {
            for item in 0..3 {
                while producer.push(item).is_err() {
                    thread::yield_now();
                }
                producer.publish();
            }
        });
        for item in 0..3 {
            loop {
                if let Some(found) = consumer.pop() {
                    assert_eq!(found, item);
                    consumer.release();
                    break;
                }
                thread::yield_now();
            }
        }
        other.join().expect("the producer does not fail");
    });
}

/// The consumer ends at any time: every item is dropped once.
#[test]
fn loom_ring_drops_what_is_left() {
    loom::model(|| {
        let item = Arc::new(());
        let (mut producer, mut consumer) = ring(2);
        let other = {
            let item = Arc::clone(&item);
            thread::spawn(move || {
                for _ in 0..2 {
                    let _ = producer.push(Arc::clone(&item));
                    producer.publish();
                }
            })
        };
        drop(consumer.pop());
        drop(consumer);
        other.join().expect("the producer does not fail");
        assert_eq!(Arc::strong_count(&item), 1);
    });
}
