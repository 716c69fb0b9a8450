//! Loom models of a ring alone: bytes arrive whole and in order, and places are reused only after they were copied out.

use loom::thread;

use super::*;

/// Three bytes through a ring of two, so that one place is used twice, published and released one by one.
#[test]
fn loom_shared_ring_keeps_bytes() {
    let mut builder = loom::model::Builder::new();
    // Unbounded it takes minutes; every switch that a scheduler would have to make is still explored.
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let mapping = Arc::new(Mapping::private(2));
        let mut producer = Producer::new(Arc::clone(&mapping), 0);
        let mut consumer = Consumer::new(mapping, 0);
        let other = thread::spawn(move || {
            for byte in 1..=3 {
                while producer.write(&[byte]) == Ok(0) {
                    thread::yield_now();
                }
                producer.publish();
            }
        });
        let mut next = 1;
        while next <= 3 {
            if consumer.look() == Ok(0) {
                thread::yield_now();
                continue;
            }
            let mut byte = [0];
            assert_eq!(consumer.read(&mut byte), 1);
            assert_eq!(byte, [next]);
            let _ = consumer.release();
            next += 1;
        }
        other.join().expect("the producer does not fail");
    });
}
