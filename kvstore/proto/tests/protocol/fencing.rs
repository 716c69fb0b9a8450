//! Incarnations: who may push for a lane, and what is left of who may not any more (protocol.md P10, T7).

use rangefold_proto::server::Input;
use rangefold_proto::wire::{Header, Kind};
use rangefold_proto::{KeyRange, Limits, LinkId};

use crate::shard::{
    LINK, SEGMENT, Shard, acks, applied, contributed, finished, id, kinds, map_of, only, pull, push, replies,
    tile,
};
use crate::{aggregated, at, of, table, view};

fn shard() -> Shard {
    Shard::new(Limits::standard(), &[table(10)], &view(1, &[(1, 0), (1, 0)]))
}

const ALL: KeyRange = KeyRange::new(0, 10);

//= protocol.md P10
//= type=test
#[test]
fn a_fenced_incarnation_is_told_so_with_its_own_stamp() {
    let mut shard = shard();
    shard.tell(Input::View(view(2, &[(2, 0), (1, 0)])));
    let effects = shard.push(push(0, at(1), at(0), 0..10));
    assert_eq!(applied(&effects), []);
    // Expect: the stamp, so that the lane's next holder on the same connection does not take it for its own.
    assert_eq!(only(&effects, Kind::Fenced).stamp, at(1));
    // Expect: whatever it sends is fenced, also what would end another's connection: its peer may hold lanes that are well.
    let misshapen = Header { value_bytes: 8, ..push(0, at(2), at(1), 0..10) };
    assert_eq!(only(&shard.push(misshapen), Kind::Fenced).stamp, at(2));
    assert_eq!(shard.core.counters().fenced, 2);
}

//= protocol.md P10
//= type=test
#[test]
fn a_new_incarnation_begins_anew_on_the_whole_segment() {
    let mut shard = shard();
    shard.push(push(0, at(9), at(0), 0..10));
    shard.tell(Input::View(view(2, &[(2, 0), (1, 0)])));
    // Expect: its first push is no duplicate, though its time is lower; its predecessor is its floor.
    assert_eq!(applied(&shard.push(push(0, of(2, 1), of(2, 0), 0..2))), [(0, of(2, 1), KeyRange::new(0, 2))]);
    assert_eq!(
        applied(&shard.push(push(0, of(2, 2), of(2, 1), 2..10))),
        [(0, of(2, 2), KeyRange::new(2, 10))]
    );
    // Expect: a late frame of the first incarnation changes nothing.
    assert_eq!(kinds(&shard.push(push(0, at(10), at(9), 0..10))), [Kind::Fenced]);
    assert_eq!(shard.clock(0).unwrap().lowest(), of(2, 2));
}

//= protocol.md P10
//= type=test
#[test]
fn an_incarnation_newer_than_the_view_is_asked_for_its_view() {
    let mut shard = shard();
    let frame = push(0, of(2, 1), of(2, 0), 0..10);
    assert_eq!(kinds(&shard.push(frame)), [Kind::NeedView]);
    shard.show(LINK, &view(2, &[(2, 0), (1, 0)]));
    assert_eq!(applied(&shard.push(frame)), [(0, of(2, 1), ALL)]);
}

//= protocol.md P10
//= type=test
#[test]
fn an_unknown_lane_is_asked_once_it_has_shown_its_view_it_is_fenced() {
    let mut shard = shard();
    let other = LinkId(2);
    shard.tell(Input::Linked { link: other });
    let frame = push(5, at(1), at(0), 0..10);
    assert_eq!(kinds(&shard.push_on(other, frame)), [Kind::NeedView]);
    shard.show(other, &view(1, &[(1, 0), (1, 0)]));
    assert_eq!(kinds(&shard.push_on(other, frame)), [Kind::Fenced]);
}

//= protocol.md T7
//= type=test
#[test]
fn a_view_never_goes_back() {
    let mut shard = shard();
    shard.tell(Input::View(view(3, &[(2, 0), (1, 0)])));
    shard.show(LINK, &view(2, &[(1, 0), (1, 0)]));
    shard.tell(Input::View(view(1, &[(1, 0), (1, 0)])));
    assert_eq!(kinds(&shard.push(push(0, at(1), at(0), 0..10))), [Kind::Fenced]);
}

#[test]
fn a_fenced_holder_learns_nothing_that_it_could_take_for_an_acknowledgement() {
    let mut shard = shard();
    shard.push(push(0, at(4), at(0), 0..10));
    shard.tell(Input::View(view(2, &[(2, 0), (1, 0)])));
    let effects = shard.resume(0, at(0), &[SEGMENT]);
    assert_eq!(kinds(&effects), [Kind::Fenced]);
    assert_eq!(acks(&effects), []);
}

#[test]
fn closes_of_a_fenced_holder_count_for_nothing() {
    let mut shard = shard();
    shard.tell(Input::View(view(2, &[(2, 0), (1, 0)])));
    shard.close(1, at(0), 0, &[(SEGMENT, at(0))]);
    shard.pull(pull(1, at(1), 0..10), 1, &[]);
    assert_eq!(replies(&shard.close(0, at(0), 7, &[(SEGMENT, at(0))])), []);
    // Expect: the new holder's close is what was waited for.
    assert_eq!(replies(&shard.close(0, of(2, 0), 0, &[(SEGMENT, of(2, 0))])), [ALL]);
}

#[test]
fn a_task_of_a_fenced_incarnation_can_be_waited_for_no_longer() {
    let mut shard = shard();
    // Lane 1 waits for a push of lane 0 that never comes, as its process has died.
    assert_eq!(replies(&shard.pull(pull(1, at(1), 0..10), 0, &[(rangefold_proto::Lane(0), at(5))])), []);
    assert_eq!(shard.core.parked_count(), 1);
    assert_eq!(replies(&shard.tell(Input::View(view(2, &[(2, 0), (1, 0)])))), [ALL]);
}

/// A segment of a table aggregated by rounds comes to an owner whose view still has the lane's former holder: what that one
/// says late must not count as the word of the next one, whose clock the segment brought.
//= protocol.md P10
//= type=test
#[test]
fn a_segment_may_know_of_a_newer_holder_than_the_view() {
    let (old, new) = (view(1, &[(1, 0), (1, 0)]), view(2, &[(2, 0), (1, 0)]));
    let table = aggregated(10);
    let mut first = Shard::new(Limits::standard(), std::slice::from_ref(&table), &new);
    first.push(push(0, of(2, 1), of(2, 0), 0..2));
    let (row, image, _) = first.release();
    assert_eq!(image.clocks[0].1.lowest(), of(2, 0), "the clock of the new holder goes with the segment");

    let mut second = Shard::bare(Limits::standard(), &map_of(&[table], id(0)), 1);
    second.tell(Input::View(old.clone()));
    second.tell(Input::Linked { link: LINK });
    second.show(LINK, &old);
    second.core.accept(row, Some(&image));
    second.drain();
    // The former holder's close, push and resume.
    let late = second.close_under(0, at(9), 3, &[(SEGMENT, row.assignment, at(9))]);
    assert!(acks(&late).is_empty());
    assert_eq!(kinds(&second.push(push(0, at(9), at(0), 0..10))), [Kind::Fenced]);
    second.resume(0, at(9), &[SEGMENT]);

    second.tell(Input::View(new.clone()));
    second.show(LINK, &new);
    let all = [(SEGMENT, row.assignment, of(1, 0))];
    assert_eq!(finished(&second.close_under(1, of(1, 0), 3, &all)), [], "the new holder has closed nothing");
    second.push(tile(push(0, of(2, 1), of(2, 0), 0..2), true, false));
    assert_eq!(finished(&second.push(tile(push(0, of(2, 1), of(2, 0), 2..10), false, true))), []);
    let round_0 = second.close_under(0, of(2, 1), 0, &[(SEGMENT, row.assignment, of(2, 1))]);
    assert_eq!((finished(&round_0), contributed(&round_0).len()), (vec![0], 2));
}
