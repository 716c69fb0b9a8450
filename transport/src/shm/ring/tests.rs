//! The ring against queues of bytes, between two threads, and with another side that lies.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

fn ring(bytes: usize) -> (Producer, Consumer, Arc<Mapping>) {
    let mapping = Arc::new(Mapping::private(bytes));
    (Producer::new(Arc::clone(&mapping), 0), Consumer::new(Arc::clone(&mapping), 0), mapping)
}

fn take(consumer: &mut Consumer, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    let taken = consumer.read(&mut bytes);
    bytes.truncate(taken);
    bytes
}

#[test]
fn a_ring_holds_as_much_as_it_says() {
    for capacity in [1, 2, 8, 64] {
        let (mut producer, mut consumer, _) = ring(capacity);
        let bytes: Vec<u8> = (1..=64).collect();
        assert_eq!(producer.write(&bytes), Ok(capacity));
        assert_eq!(consumer.look(), Ok(0), "not published");
        producer.publish();
        assert_eq!(consumer.look(), Ok(capacity));
        assert_eq!(take(&mut consumer, 1), [1]);
        assert_eq!(producer.write(&[99]), Ok(0), "not released");
        assert!(consumer.release(), "the ring was full, so the producer may be waiting");
        assert_eq!(producer.write(&[99, 98]), Ok(1), "as much as was released");
    }
}

/// What is longer than a piece moves the indices before it ends, so that both sides can copy at once.
#[test]
fn long_writes_and_reads_are_shown_in_pieces() {
    let (mut producer, mut consumer, mapping) = ring(4 * PIECE_BYTES);
    let bytes = vec![5; 2 * PIECE_BYTES + 1];
    assert_eq!(producer.write(&bytes), Ok(bytes.len()));
    assert_eq!(consumer.look(), Ok(2 * PIECE_BYTES), "all but the last piece");
    assert_eq!(take(&mut consumer, bytes.len()).len(), 2 * PIECE_BYTES);
    // Relaxed: one thread.
    assert_eq!(mapping.side(1).read.0.load(Ordering::Relaxed), 2 * PIECE_BYTES as u64);
    producer.publish();
    assert_eq!(consumer.look(), Ok(1));
}

/// The producer is asked whether it waits about once in a ring of bytes, and always when it may.
#[test]
fn the_producer_is_asked_once_in_a_ring() {
    let (mut producer, mut consumer, _) = ring(64);
    let mut asked = 0;
    for _ in 0..64 {
        assert_eq!(producer.write(&[1; 16]), Ok(16));
        producer.publish();
        assert_eq!(consumer.look(), Ok(16));
        assert_eq!(take(&mut consumer, 16).len(), 16);
        asked += usize::from(consumer.release());
        assert!(!consumer.release(), "nothing new");
    }
    assert_eq!(asked, 16);
}

fn threads(capacity: usize, total: usize, chunk_max: usize) {
    let (mut producer, mut consumer, _) = ring(capacity);
    let byte = |index: usize| (index.wrapping_mul(0x9e37) >> 3).to_le_bytes()[0];
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut sent = 0;
            while sent < total {
                let len = (sent * 7 % chunk_max + 1).min(total - sent);
                let chunk: Vec<u8> = (sent..sent + len).map(byte).collect();
                let mut rest = &chunk[..];
                while !rest.is_empty() {
                    let count = producer.write(rest).expect("a correct consumer");
                    rest = &rest[count..];
                    if count == 0 || sent % 3 == 0 {
                        producer.publish();
                    }
                    if count == 0 {
                        std::thread::yield_now();
                    }
                }
                sent += len;
            }
            producer.publish();
        });
        let mut received = 0;
        while received < total {
            if consumer.look().expect("a correct producer") == 0 {
                let _ = consumer.release();
                std::thread::yield_now();
                continue;
            }
            let chunk = take(&mut consumer, received * 5 % chunk_max + 1);
            for (index, found) in chunk.iter().enumerate() {
                assert_eq!(*found, byte(received + index), "byte {}", received + index);
            }
            received += chunk.len();
        }
    });
}

#[test]
fn bytes_keep_their_order_between_threads() {
    if cfg!(miri) {
        threads(8, 300, 11);
    } else {
        threads(8, 200_000, 11);
        threads(64 << 10, 64 << 20, 100_000);
    }
}

/// A position that no correct peer could have written is refused, wherever it lies, and nothing is copied for it.
#[test]
fn a_producer_that_lies_is_found() {
    let lies = |written: u64| {
        let (mut producer, mut consumer, mapping) = ring(16);
        assert_eq!(producer.write(&[1; 10]), Ok(10));
        producer.publish();
        assert_eq!(consumer.look(), Ok(10));
        assert_eq!(take(&mut consumer, 10).len(), 10);
        let _ = consumer.release();
        // Relaxed: one thread.
        mapping.side(0).written.0.store(written, Ordering::Relaxed);
        consumer.look()
    };
    assert_eq!(lies(26), Ok(16), "a ring more");
    for impossible in [27, 9, 0, 10 + (1 << 63), u64::MAX, u64::MAX - 5] {
        assert_eq!(lies(impossible), Err(Violation::Indices), "{impossible}");
    }
}

/// The same of the other direction: room that cannot be there, or that was there already.
#[test]
fn a_consumer_that_lies_is_found() {
    let lies = |read: u64| {
        let (mut producer, mut consumer, mapping) = ring(16);
        assert_eq!(producer.write(&[1; 16]), Ok(16));
        producer.publish();
        assert_eq!(consumer.look(), Ok(16));
        assert_eq!(take(&mut consumer, 5).len(), 5);
        let _ = consumer.release();
        assert_eq!(producer.write(&[2; 5]), Ok(5));
        // Relaxed: one thread.
        mapping.side(1).read.0.store(read, Ordering::Relaxed);
        producer.write(&[3; 16])
    };
    assert_eq!(lies(5), Ok(0));
    assert_eq!(lies(16), Ok(11), "all that was published");
    // 17 to 21 was written but not published yet.
    for impossible in [4, 0, 17, 21, 22, u64::MAX] {
        assert_eq!(lies(impossible), Err(Violation::Indices), "{impossible}");
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Write(usize),
    Publish,
    Look,
    Read(usize),
    Skip(usize),
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0_usize..20).prop_map(Step::Write),
        2 => Just(Step::Publish),
        3 => Just(Step::Look),
        3 => (0_usize..20).prop_map(Step::Read),
        1 => (0_usize..20).prop_map(Step::Skip),
        2 => Just(Step::Release),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 8 } else { 512 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Bytes written and not shown; shown and not seen; seen and not taken; taken and not released: four queues.
    #[test]
    fn a_ring_is_a_queue_of_bytes(
        shift in 0_u32..6,
        steps in prop::collection::vec(step(), 1..if cfg!(miri) { 40 } else { 300 }),
    ) {
        let capacity = 1_usize << shift;
        let (mut producer, mut consumer, _) = ring(capacity);
        let (mut hidden, mut shown, mut seen) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        let (mut taken, mut next) = (0, 0_u8);
        for step in steps {
            match step {
                Step::Write(len) => {
                    let bytes: Vec<u8> = (0..len).map(|_| { next = next.wrapping_add(1); next }).collect();
                    let room = capacity - hidden.len() - shown.len() - seen.len() - taken;
                    let count = producer.write(&bytes).expect("a correct consumer");
                    prop_assert_eq!(count, len.min(room));
                    hidden.extend(&bytes[..count]);
                }
                Step::Publish => {
                    producer.publish();
                    shown.append(&mut hidden);
                }
                Step::Look => {
                    if seen.is_empty() {
                        seen.append(&mut shown);
                    }
                    prop_assert_eq!(consumer.look().expect("a correct producer"), seen.len());
                }
                Step::Read(len) => {
                    let expected: Vec<u8> = seen.drain(..len.min(seen.len())).collect();
                    taken += expected.len();
                    prop_assert_eq!(take(&mut consumer, len), expected);
                }
                Step::Skip(len) => {
                    let count = len.min(seen.len());
                    seen.drain(..count);
                    taken += count;
                    prop_assert_eq!(consumer.skip(len), count);
                }
                Step::Release => {
                    let _ = consumer.release();
                    taken = 0;
                }
            }
        }
    }
}
