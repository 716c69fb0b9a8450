//! Small pushes that share a frame: each does what it would do in a frame of its own (protocol.md P2, P4).

use std::rc::Rc;

use rangefold_proto::server::Input;
use rangefold_proto::wire::{self, Arguments, Header, Kind, SMALL_BYTES, Small};
use rangefold_proto::{KeyRange, Lane, Limits, SegmentId, TableId};

use crate::shard::{Effect, JOB, LINK, SEGMENT, Shard, acks, applied, kinds, numbered, push, said};
use crate::worker::{Worker, pushed, sent};
use crate::{aggregated, at, table, view};

/// A frame of these pushes, with a payload of numbered bytes.
fn gather(
    shard: &mut Shard,
    pushes: &[Header],
    change: impl FnOnce(&mut Header, &mut Vec<u8>),
) -> Vec<Effect> {
    let mut keys = Vec::new();
    pushes.iter().for_each(|push| wire::put_small(&mut keys, &Small::of(push)));
    let value_bytes = pushes.iter().map(|push| push.value_bytes).sum();
    let (lane, round, stamp) = (pushes[0].lane, pushes[0].round, pushes[0].stamp);
    let mut header = Header { lane, round, stamp, previous: stamp, ..Header::of(Kind::Pushes, JOB) };
    (header.key_bytes, header.value_bytes) = (keys.len() as u32, value_bytes);
    let payload: Rc<[u8]> = numbered(keys.len() + value_bytes as usize).into();
    change(&mut header, &mut keys);
    shard.tell(Input::Pushes { link: LINK, header, keys: &keys, payload })
}

fn shard() -> Shard {
    Shard::new(Limits::standard(), &[table(10), aggregated(10), table(10)], &view(1, &[(1, 0), (1, 0)]))
}

//= protocol.md P3
//= type=test
#[test]
fn each_push_of_a_frame_is_admitted_for_itself() {
    let mut shard = shard();
    shard.push(push(0, at(1), at(0), 0..10));
    let pushes = [push(0, at(1), at(0), 0..10), push(0, at(2), at(1), 2..4), push(0, at(5), at(2), 4..5)];
    let effects = gather(&mut shard, &pushes, |_, _| {});
    // Expect: the first was there before; of the others each has its own part of the payload.
    assert_eq!(applied(&effects), [(0, at(2), KeyRange::new(2, 4)), (0, at(5), KeyRange::new(4, 5))]);
    let payloads: Vec<&[u8]> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Applied { payload, .. } => Some(payload.as_slice()),
            _ => None,
        })
        .collect();
    let all = numbered(3 * SMALL_BYTES + 104);
    assert_eq!(payloads, [&all[3 * SMALL_BYTES + 80..][..16], &all[3 * SMALL_BYTES + 96..]]);
    assert_eq!(acks(&effects), [(0, SEGMENT, at(5))]);
    assert_eq!((shard.core.counters().pushes, shard.core.counters().duplicates), (3, 1));
    // Expect: the credit of all of it comes back, entries included.
    let credit = said(&effects).iter().filter_map(|said| said.extension.credit).max();
    assert_eq!(credit, Some(80 + 104 + 3 * SMALL_BYTES as u64));
}

//= protocol.md P3
//= type=test
#[test]
fn behind_a_gap_nothing_of_that_segment_is_applied() {
    let mut shard = shard();
    let pushes = [
        push(0, at(4), at(3), 0..2),
        Header { segment: SegmentId::new(TableId(2), 0), ..push(0, at(1), at(0), 0..10) },
        push(0, at(6), at(4), 0..2),
    ];
    let effects = gather(&mut shard, &pushes, |_, _| {});
    assert_eq!(applied(&effects), [(0, at(1), KeyRange::new(0, 10))], "the other segment's");
    assert_eq!(kinds(&effects), [Kind::Gap, Kind::Ack]);
}

#[test]
fn a_list_that_does_not_fit_its_values_is_cut_off_before_anything_is_applied() {
    let pushes = [push(0, at(1), at(0), 0..10), push(0, at(2), at(1), 0..2)];
    let changes: [fn(&mut Header, &mut Vec<u8>); 5] = [
        |_, keys| keys.truncate(SMALL_BYTES + 1),
        |_, keys| keys.truncate(SMALL_BYTES),
        |header, _| header.value_bytes += 8,
        |header, _| header.key_bytes -= 8,
        |header, _| header.value_bytes = 0,
    ];
    for change in changes {
        let mut shard = shard();
        assert_eq!(gather(&mut shard, &pushes, change), [Effect::Disconnected(LINK)]);
        assert_eq!(shard.core.counters().pushes, 0);
    }
    // Expect: one that is not as long as its range says, as in a frame of its own.
    let mut shard = shard();
    let wrong = [pushes[0], Header { range: KeyRange::new(0, 3), ..pushes[1] }];
    let effects = gather(&mut shard, &wrong, |_, _| {});
    assert!(effects.contains(&Effect::Disconnected(LINK)), "{effects:?}");
    assert_eq!(shard.core.counters().pushes, 1);
}

//= protocol.md T10
//= type=test
#[test]
fn what_waits_for_its_round_shares_no_frame() {
    let mut shard = shard();
    let kept = Header { segment: SegmentId::new(TableId(1), 0), ..push(0, at(1), at(0), 0..10) };
    assert_eq!(gather(&mut shard, &[kept, kept], |_, _| {}), [Effect::Disconnected(LINK)]);
    assert_eq!(shard.core.counters().pushes, 0);
    let mut worker = Worker::new(Limits::standard(), &[aggregated(10)], &view(1, &[(1, 0), (1, 0)]), &[0]);
    worker.linked(0, 1);
    worker.push(0, 0..1);
    worker.frames = 0;
    worker.try_push(0, 1..2).unwrap();
    worker.try_push(0, 2..3).unwrap();
    assert_eq!((pushed(&worker.drain()), worker.frames), (vec![at(2), at(3)], 2));
}

/// A worker whose view and first push have gone.
fn worker(limits: Limits) -> Worker {
    let mut worker = Worker::new(limits, &[table(10), table(1000)], &view(1, &[(1, 0), (1, 0)]), &[0, 1]);
    worker.linked(0, 1);
    worker.push(0, 0..1);
    worker.frames = 0;
    worker
}

#[test]
fn small_pushes_of_a_lane_and_round_share_a_frame() {
    let mut worker = worker(Limits::standard());
    for key in 1..4 {
        worker.try_push(0, key..key + 1).unwrap();
    }
    let effects = worker.drain();
    assert_eq!((worker.frames, pushed(&effects)), (1, vec![at(2), at(3), at(4)]));
    let previous: Vec<_> = sent(&effects, Kind::Push).iter().map(|sent| sent.header.previous).collect();
    assert_eq!(previous, [at(1), at(2), at(3)]);
    assert_eq!(worker.core.counters().push_frames, 4);
    // Expect: one alone goes as a push, and what is behind a large one or of another lane goes by itself.
    worker.try_push(0, 0..1).unwrap();
    worker.try_push(1, 0..1).unwrap();
    assert_eq!((pushed(&worker.drain()).len(), worker.frames), (2, 3));
    worker.try_push(0, 0..1).unwrap();
    worker.advance(0);
    worker.frames = 0;
    worker.try_push(0, 0..1).unwrap();
    worker.core.advance(Lane(0)).unwrap();
    worker.try_push(0, 1..2).unwrap();
    let effects = worker.drain();
    assert_eq!((pushed(&effects).len(), worker.frames), (2, 3), "two rounds and a close");
}

#[test]
fn pushes_with_arguments_and_large_ones_go_alone() {
    let mut worker = worker(Limits::standard());
    let with_arguments = |worker: &mut Worker| {
        let payload = numbered(8).into();
        let arguments = Arguments::new(&[0.5]).unwrap();
        let range = KeyRange::new(0, 1);
        let push =
            rangefold_proto::client::Push { lane: Lane(0), table: TableId(0), range, payload, arguments };
        worker.core.push(push).unwrap();
    };
    worker.try_push(0, 1..2).unwrap();
    with_arguments(&mut worker);
    worker.try_push(0, 1..2).unwrap();
    let large = numbered(8 * 100).into();
    let (lane, range, arguments) = (Lane(0), KeyRange::new(0, 100), Arguments::default());
    let push = rangefold_proto::client::Push { lane, table: TableId(1), range, payload: large, arguments };
    worker.core.push(push).unwrap();
    let effects = worker.drain();
    assert_eq!((pushed(&effects).len(), worker.frames), (4, 4));
}

//= protocol.md B1
//= type=test
#[test]
fn entries_count_against_the_credit() {
    let limits = Limits { push_bytes_per_link: 8 + 2 * (8 + SMALL_BYTES as u64), ..Limits::standard() };
    let mut worker = worker(limits);
    for _ in 0..3 {
        worker.try_push(0, 0..1).unwrap();
    }
    // Expect: two of them fit with their entries, the third waits.
    assert_eq!(pushed(&worker.drain()), [at(2), at(3)]);
}
