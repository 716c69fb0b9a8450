//! Segments that are elsewhere, come, and go (protocol.md §7 G1, T1).

use rangefold_proto::server::Input;
use rangefold_proto::wire::{self, Header, Kind, Refusal};
use rangefold_proto::{Assignment, KeyRange, Limits, Row, SegmentId};

use crate::shard::{
    LINK, SEGMENT, Shard, acks, applied, contributed, finished, id, kinds, map_of, only, pull, push, refusal,
    replies, said,
};
use crate::{aggregated, at, table, view};

fn shard() -> Shard {
    Shard::new(Limits::standard(), &[table(10)], &view(1, &[(1, 0), (1, 0)]))
}

/// Server 1's shard: knows table, view and connection; owns nothing.
fn other(tables: &[rangefold_proto::TableSpec]) -> Shard {
    let mut other = Shard::bare(Limits::standard(), &map_of(tables, id(0)), 1);
    other.tell(Input::View(view(1, &[(1, 0), (1, 0)])));
    other.tell(Input::Linked { link: LINK });
    other.show(LINK, &view(1, &[(1, 0), (1, 0)]));
    other
}

/// Rows that a frame carries.
fn rows(shard: &crate::shard::Said) -> Vec<Row> {
    wire::rows(&shard.body).unwrap().map(|(row, _)| row).collect()
}

//= protocol.md G1
//= type=test
#[test]
fn a_frame_for_a_segment_that_is_elsewhere_is_answered_with_its_row() {
    let mut other = other(&[table(10)]);
    let pushed = other.push(push(0, at(1), at(0), 0..10));
    let pulled = other.pull(pull(0, at(2), 0..10), 0, &[]);
    for effects in [pushed, pulled] {
        assert_eq!(kinds(&effects), [Kind::WrongEpoch]);
        assert_eq!(
            rows(said(&effects)[0]),
            [Row { segment: SEGMENT, assignment: Assignment(1), owner: id(0) }]
        );
    }
    assert_eq!(other.core.counters().stale, 2);
}

//= protocol.md G1
//= type=test
#[test]
fn a_sender_that_knows_a_newer_owner_is_asked_for_its_row() {
    let mut other = other(&[table(10)]);
    let newer = |header: Header| Header { assignment: Assignment(2), ..header };
    assert_eq!(kinds(&other.push(newer(push(0, at(1), at(0), 0..10)))), [Kind::NeedMap]);
    assert_eq!(kinds(&other.pull(newer(pull(0, at(2), 0..10)), 0, &[])), [Kind::NeedMap]);
    // The worker tells it.
    let row = Row { segment: SEGMENT, assignment: Assignment(2), owner: id(1) };
    let mut body = Vec::new();
    wire::put_row(&mut body, &row, rangefold_proto::MapEpoch(9));
    other.control(LINK, Header::of(Kind::MapDelta, crate::shard::JOB), &body);
    // Expect: a worker's word is no assignment: the shard does not own it until it is given the values.
    assert_eq!(kinds(&other.push(newer(push(0, at(1), at(0), 0..10)))), [Kind::Busy]);
    assert_eq!(other.core.owned().count(), 0);
}

#[test]
fn a_segment_that_nobody_has_is_put_off_for_who_knows_it_and_refused_to_others() {
    let mut shard = shard();
    let nowhere =
        |header: Header| Header { segment: SegmentId(0x0009_0009), assignment: Assignment(0), ..header };
    // Expect: who names an assignment has a map in which it is; this shard's may be older.
    let known = Header { assignment: Assignment(1), ..nowhere(push(0, at(1), at(0), 0..10)) };
    assert_eq!(kinds(&shard.push(known)), [Kind::Busy]);
    assert_eq!(refusal(&shard.push(nowhere(push(0, at(1), at(0), 0..10)))), Refusal::NoSuchSegment);
    assert_eq!(refusal(&shard.pull(nowhere(pull(0, at(2), 0..10)), 0, &[])), Refusal::NoSuchSegment);
    // Expect: and a row of it is not believed.
    let row = Row { segment: SegmentId(0x0009_0009), assignment: Assignment(5), owner: id(0) };
    let mut body = Vec::new();
    wire::put_row(&mut body, &row, rangefold_proto::MapEpoch(9));
    shard.control(LINK, Header::of(Kind::MapDelta, crate::shard::JOB), &body);
    assert_eq!(refusal(&shard.push(nowhere(push(0, at(1), at(0), 0..10)))), Refusal::NoSuchSegment);
}

//= protocol.md G1
//= type=test
#[test]
fn a_segment_without_memory_is_refused_with_that_reason_until_it_is_there() {
    let tables = [table(10)];
    let mut shard = Shard::bare(Limits::standard(), &map_of(&tables, id(0)), 0);
    shard.tell(Input::View(view(1, &[(1, 0)])));
    shard.tell(Input::Linked { link: LINK });
    shard.show(LINK, &view(1, &[(1, 0)]));
    only(&shard.pull(pull(0, at(1), 0..10), 0, &[]), Kind::Busy);
    shard.core.decline(SEGMENT);
    assert_eq!(refusal(&shard.pull(pull(0, at(2), 0..10), 0, &[])), Refusal::NoMemory);
    assert_eq!(refusal(&shard.push(push(0, at(3), at(0), 0..10))), Refusal::NoMemory);
    let row = shard.core.row(SEGMENT).unwrap();
    shard.core.accept(row, None);
    shard.drain();
    assert_eq!(replies(&shard.pull(pull(0, at(4), 0..10), 0, &[])).len(), 1);
}

//= protocol.md G5
//= type=test
#[test]
fn parked_pulls_are_sent_elsewhere_when_their_segment_goes() {
    let mut shard = shard();
    shard.pull(pull(0, at(1), 0..10), 1, &[]);
    shard.pull(pull(0, at(2), 0..10), 0, &[(rangefold_proto::Lane(0), at(9))]);
    let (row, image, effects) = shard.release();
    let away: Vec<_> =
        said(&effects).into_iter().filter(|said| said.header.kind == Kind::WrongEpoch).collect();
    assert_eq!(away.len(), 2, "{effects:?}");
    assert!(away.iter().all(|said| rows(said) == [row]));
    assert_eq!((image.segment, shard.core.owned().count()), (SEGMENT, 0));
    // Expect: everybody hears of the row, also who had nothing under way: it must close at the new owner.
    assert!(kinds(&effects).contains(&Kind::MapDelta));
}

//= protocol.md P3
//= type=test
#[test]
fn clocks_travel_with_the_segment() {
    let mut shard = shard();
    shard.push(push(0, at(1), at(0), 0..10));
    let (row, image, _) = shard.release();
    let mut other = other(&[table(10)]);
    other.core.accept(row, Some(&image));
    other.drain();
    let moved = |header: Header| Header { assignment: Assignment(2), ..header };
    // Expect: sent again to the new owner, the acknowledgement having been lost: a duplicate there.
    let again = other.push(moved(push(0, at(1), at(0), 0..10)));
    assert_eq!((applied(&again), acks(&again)), (vec![], vec![(0, SEGMENT, at(1))]));
    assert_eq!(kinds(&other.push(moved(push(0, at(3), at(2), 0..10)))), [Kind::Gap]);
    assert_eq!(applied(&other.push(moved(push(0, at(2), at(1), 0..10)))), [(0, at(2), KeyRange::new(0, 10))]);
}

//= protocol.md T1
//= type=test
#[test]
fn a_new_owner_knows_no_closes_until_it_is_named() {
    let mut shard = shard();
    shard.close(0, at(0), 4, &[(SEGMENT, at(0))]);
    shard.close(1, at(0), 4, &[(SEGMENT, at(0))]);
    let (row, image, _) = shard.release();
    let mut other = other(&[table(10)]);
    other.core.accept(row, Some(&image));
    // Expect: it says that it begins, so that lanes close again with the segment named.
    assert_eq!(kinds(&other.drain()), [Kind::MapDelta]);
    other.pull(Header { assignment: Assignment(2), ..pull(0, at(9), 0..10) }, 5, &[]);
    other.close(0, at(0), 4, &[]);
    // Expect: what lane 1 says under the old assignment is true all the same: round 4 ended with that push.
    other.close(1, at(0), 4, &[(SEGMENT, at(0))]);
    assert_eq!(other.core.parked_count(), 1);
    let effects = other.close_under(0, at(0), 4, &[(SEGMENT, Assignment(2), at(0))]);
    assert_eq!(replies(&effects), [KeyRange::new(0, 10)]);
}

//= protocol.md T10
//= type=test
#[test]
fn open_rounds_do_not_travel_they_were_not_acknowledged_and_come_again() {
    let mut shard = Shard::new(Limits::standard(), &[aggregated(10)], &view(1, &[(1, 0), (1, 0)]));
    shard.push(push(0, at(1), at(0), 0..10));
    shard.close(0, at(0), 0, &[(SEGMENT, at(1))]);
    shard.close(1, at(0), 0, &[(SEGMENT, at(0))]);
    shard.push(Header { round: 1, ..push(0, at(2), at(1), 0..10) });
    let (row, image, _) = shard.release();
    assert_eq!((image.next_round, image.clocks.len()), (1, 2));
    let mut other = other(&[aggregated(10)]);
    other.core.accept(row, Some(&image));
    let named = [(SEGMENT, Assignment(2), at(2))];
    let again = Header { round: 1, assignment: Assignment(2), ..push(0, at(2), at(1), 0..10) };
    assert_eq!(contributed(&other.push(again)), []);
    other.close_under(0, at(0), 1, &named);
    let effects = other.close_under(1, at(0), 1, &[(SEGMENT, Assignment(2), at(0))]);
    assert_eq!((contributed(&effects), finished(&effects)), (vec![(0, at(2))], vec![1]));
    // Expect: round 0 was applied at the former owner and is not counted here again.
    assert_eq!(other.core.counters().rounds, 1);
}

#[test]
fn rows_go_by_assignment() {
    let mut shard = shard();
    let (_, _, _) = shard.release();
    // Expect: an older map, come late, does not bring the segment back.
    shard.tell(Input::Map(map_of(&[table(10)], id(0))));
    assert_eq!(kinds(&shard.push(push(0, at(1), at(0), 0..10))), [Kind::WrongEpoch]);
    assert_eq!(shard.core.row(SEGMENT).unwrap().owner, id(1));
    assert_eq!(only(&shard.push(push(0, at(1), at(0), 0..10)), Kind::WrongEpoch).assignment, Assignment(2));
}

/// Lanes that never touched the segment know of its move only what servers tell them, and the new owner's rounds wait for
/// their closes.
#[test]
fn a_close_that_names_a_segment_which_has_left_is_answered_with_its_row() {
    let mut shard = shard();
    let (row, _, _) = shard.release();
    let late = rangefold_proto::LinkId(2);
    shard.tell(Input::Linked { link: late });
    shard.show(late, &view(1, &[(1, 0), (1, 0)]));
    let mut body = Vec::new();
    wire::put_named(&mut body, (SEGMENT, Assignment(1), at(0)));
    let close = Header { stamp: at(0), previous: at(0), ..Header::of(Kind::Closed, crate::shard::JOB) };
    let effects = shard.control(late, close, &body);
    assert_eq!(kinds(&effects), [Kind::MapDelta]);
    assert_eq!(rows(said(&effects)[0]), [row]);
}
