//! Streams of frames: any cut gives the same frames, noise is refused and never panics, limits hold.

use proptest::prelude::*;

use super::*;
use crate::endpoint::{Body, Event, Events, HEAD_BYTES_MAX, Head, Peer, Token};
use crate::error::Violation;
use crate::region::Slice;

const CONNECTION: u64 = 0x1234_5678_9abc_def0;

/// Mark (2 bytes), bytes of extensions (2), bytes of the body (4), a sum of the head and the number (8), then anything.
const FRAMING: Framing = Framing {
    extension_bytes: |fixed| {
        let bytes = usize::from(u16::from_le_bytes([fixed[2], fixed[3]]));
        (fixed[..2] == *b"RF" && bytes <= 256).then_some(bytes)
    },
    body_bytes: |head, connection| {
        let (sum, _) = head[8..].split_first_chunk()?;
        let bytes = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        (u64::from_le_bytes(*sum) == sum_of(head, connection)).then_some(bytes as usize)
    },
};

fn sum_of(head: &[u8], connection: u64) -> u64 {
    let bytes = head[..8].iter().chain(&head[16..]);
    bytes.fold(connection, |sum, byte| sum.wrapping_mul(0x100_0000_01b3) ^ u64::from(*byte))
}

/// A head with `extension` behind it, that announces `body_bytes`.
fn head(extension: &[u8], body_bytes: usize, connection: u64) -> Vec<u8> {
    let mut head = vec![7; HEADER_BYTES];
    head.extend_from_slice(extension);
    head[..2].copy_from_slice(b"RF");
    head[2..4].copy_from_slice(&u16::try_from(extension.len()).expect("short").to_le_bytes());
    head[4..8].copy_from_slice(&u32::try_from(body_bytes).expect("short").to_le_bytes());
    let sum = sum_of(&head, connection);
    head[8..16].copy_from_slice(&sum.to_le_bytes());
    head
}

type Frame = (Vec<u8>, Vec<u8>);

fn frames() -> impl Strategy<Value = Vec<Frame>> {
    let frame = (prop::collection::vec(any::<u8>(), 0..=256), prop::collection::vec(any::<u8>(), 0..300));
    prop::collection::vec(frame, 0..12).prop_map(|frames| {
        frames.into_iter().map(|(extension, body)| (head(&extension, body.len(), CONNECTION), body)).collect()
    })
}

fn receiver(place_from: Option<usize>, body_bytes_max: u32) -> Receiver {
    Receiver::new(HeadParser::new(FRAMING, CONNECTION, body_bytes_max), place_from)
}

/// Feeds `bytes`, at most `cuts` (repeated) at a time, and returns the frames that came, placed ones included.
fn received(bytes: &[u8], cuts: &[usize], receiver: &mut Receiver) -> Result<Vec<Frame>, Violation> {
    let mut staging = Staging::new(0, 1 << 20);
    let mut memory = crate::Arena::new(8 << 20);
    let (mut arrivals, mut frames) = (ArrivalIds::new(Tag::default()), Vec::new());
    let (mut left, mut cuts) = (bytes, cuts.iter().cycle());
    let mut announced = Vec::new();
    loop {
        match receiver.next(Peer(0), 0, &mut staging, &mut arrivals)? {
            Next::Event(Event::Arrived { head, body, .. }) => {
                let body = body.slices().iter().flat_map(Slice::as_bytes).copied().collect();
                frames.push((head.as_bytes().to_vec(), body));
            }
            Next::Event(Event::Announced { arrival, head, body_bytes, .. }) => {
                announced = head.as_bytes().to_vec();
                // One in three is not wanted.
                let destination = (frames.len() % 3 != 2).then(|| memory.take(body_bytes).expect("little"));
                if destination.is_none() {
                    frames.push((announced.clone(), Vec::new()));
                }
                assert!(receiver.place(arrival, destination));
            }
            Next::Event(Event::Placed { destination, outcome, .. }) => {
                assert_eq!(outcome, Ok(()));
                frames.push((std::mem::take(&mut announced), destination.as_bytes().to_vec()));
            }
            Next::Bytes if left.is_empty() => return Ok(frames),
            Next::Bytes => {
                let (rest, area) = receiver.room();
                let count = *cuts.next().expect("not empty");
                let count = count.clamp(1, left.len()).min(rest.len() + area.len());
                let direct = count.min(rest.len());
                rest[..direct].copy_from_slice(&left[..direct]);
                area[..count - direct].copy_from_slice(&left[direct..count]);
                receiver.received(count);
                left = &left[count..];
            }
            Next::Event(event) => panic!("not of a receiver: {event:?}"),
            Next::Memory | Next::Place => panic!("memory and places are there"),
        }
    }
}

proptest! {
    #[test]
    fn any_cut_gives_the_same_frames(
        frames in frames(),
        cuts in prop::collection::vec(1..700_usize, 1..20),
    ) {
        let bytes: Vec<u8> = frames.iter().flat_map(|(head, body)| head.iter().chain(body)).copied().collect();
        let mut receiver = receiver(None, 1 << 20);
        prop_assert_eq!(received(&bytes, &cuts, &mut receiver).expect("frames"), frames);
        prop_assert!(receiver.is_between());
    }

    #[test]
    fn any_cut_places_the_same_bodies(
        frames in frames(),
        cuts in prop::collection::vec(1..700_usize, 1..20),
    ) {
        let bytes: Vec<u8> = frames.iter().flat_map(|(head, body)| head.iter().chain(body)).copied().collect();
        let seen = received(&bytes, &cuts, &mut receiver(Some(100), 1 << 20)).expect("frames");
        prop_assert_eq!(seen.len(), frames.len());
        for (index, (seen, sent)) in seen.iter().zip(&frames).enumerate() {
            prop_assert_eq!(&seen.0, &sent.0);
            if sent.1.len() < 100 || index % 3 != 2 {
                prop_assert_eq!(&seen.1, &sent.1);
            }
        }
    }

    #[test]
    fn noise_never_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..2_000),
        cuts in prop::collection::vec(1..300_usize, 1..20),
    ) {
        let outcome = received(&bytes, &cuts, &mut receiver(None, 1 << 10));
        prop_assert!(bytes.len() < HEADER_BYTES || outcome == Err(Violation::Head));
    }

    #[test]
    fn a_damaged_head_is_not_believed(at in 0..200_usize, bit in 0..8_u8, extension in 0..=136_usize) {
        let mut bytes = head(&vec![3; extension], 10, CONNECTION);
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        // Damage may make it longer; then it waits for bytes that tell.
        bytes.extend_from_slice(&[0; HEAD_BYTES_MAX]);
        prop_assert_eq!(received(&bytes, &[64], &mut receiver(None, 1 << 10)), Err(Violation::Head));
    }

    #[test]
    fn any_writes_send_the_same_bytes(
        bodies in prop::collection::vec(prop::collection::vec(0..1_200_usize, 0..4), 1..20),
        writes in prop::collection::vec(1..3_000_usize, 1..20),
    ) {
        let mut arena = crate::Arena::new(16 << 20);
        let mut queue = SendQueue::new(100);
        let (mut expected, mut sent, mut plan) = (Vec::new(), Vec::new(), Plan::default());
        for (number, lengths) in bodies.iter().enumerate() {
            let body = Body::of(lengths.iter().map(|len| {
                let mut slice = arena.take(*len).expect("little");
                slice.as_mut_bytes().fill(u8::try_from(number).expect("few"));
                slice.freeze()
            }));
            let head = head(&[], body.len(), CONNECTION);
            expected.extend_from_slice(&head);
            expected.extend(body.slices().iter().flat_map(Slice::as_bytes));
            queue.push(Token(number as u64), Head::new(&head).expect("legal"), body);
        }
        for write in writes.iter().cycle() {
            if !queue.has_unsent() {
                break;
            }
            queue.plan(&mut plan);
            let bytes: Vec<u8> =
                plan.parts.iter().flat_map(|part| queue.bytes(&plan.copied, part)).copied().collect();
            prop_assert_eq!(bytes.len(), plan.bytes);
            let count = bytes.len().min(*write);
            sent.extend_from_slice(&bytes[..count]);
            queue.advance(count);
        }
        prop_assert_eq!(sent, expected);
        let (mut events, mut left) = (Events::with_limit(100), 100);
        queue.report(Peer(0), &mut events, &mut left);
        prop_assert_eq!(events.drain().count(), bodies.len());
        arena.collect();
        prop_assert_eq!(arena.used_bytes(), 0);
    }
}

#[test]
fn a_head_of_another_connection_is_refused() {
    let bytes = head(&[1, 2, 3], 0, CONNECTION + 1);
    assert_eq!(received(&bytes, &[1_000], &mut receiver(None, 1 << 10)), Err(Violation::Head));
}

#[test]
fn a_body_beyond_the_limit_is_refused_before_it_comes() {
    let bytes = head(&[], 1_025, CONNECTION);
    assert_eq!(received(&bytes, &[1_000], &mut receiver(None, 1 << 10)), Err(Violation::BodyTooLong));
    let bytes = head(&[], 1_024, CONNECTION);
    assert_eq!(received(&bytes, &[1_000], &mut receiver(None, 1 << 10)), Ok(Vec::new()));
}

#[test]
fn a_call_takes_so_many_frames_and_no_more() {
    let mut queue = SendQueue::new(1_000);
    for number in 0..300 {
        queue.push(Token(number), Head::new(&[0; HEADER_BYTES]).expect("legal"), Body::empty());
    }
    let mut plan = Plan::default();
    queue.plan(&mut plan);
    assert_eq!((plan.bytes, plan.parts.len()), (128 * HEADER_BYTES, 1), "one entry for all");
}

#[test]
fn large_bodies_take_all_their_memory_or_none_and_in_turn() {
    // Room for one body of 4 MiB and some.
    let mut staging = Staging::new(0, 4 << 20);
    let first = staging.take(1, 4 << 20).expect("one longest body fits");
    let mut held: Vec<_> = std::iter::from_fn(|| staging.take(9, 256 << 10)).collect();
    assert!(staging.take(2, 4 << 20).is_none());
    assert!(staging.take(3, 1 << 20).is_none());
    // 15 of the 16 pieces it needs.
    held.truncate(held.len() - 15);
    assert!(staging.take(3, 256 << 10).is_none(), "the first to wait is the first to be served, even now");
    staging.forget(9);
    assert!(staging.take(2, 4 << 20).is_none(), "one piece is missing");
    drop(first);
    let second = staging.take(2, 4 << 20).expect("its turn");
    assert_eq!(second.freeze().len(), 4 << 20);
    assert!(staging.take(3, 1 << 20).is_some());
    assert!(staging.mapped_bytes() <= 12 << 20);
}

#[test]
fn small_bodies_find_memory_while_large_ones_wait() {
    let mut staging = Staging::new(0, 4 << 20);
    let held: Vec<_> = std::iter::from_fn(|| staging.take(9, 1 << 20)).collect();
    assert!(!held.is_empty());
    assert!(staging.take(1, 100).is_some());
    assert!(staging.take(1, 64 << 10).is_some());
}
