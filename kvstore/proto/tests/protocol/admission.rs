//! What a shard does with push frames: once, in order, in their open part (protocol.md §3).

use rangefold_proto::wire::Kind;
use rangefold_proto::{KeyRange, Limits};

use crate::shard::{Effect, SEGMENT, Shard, acks, applied, kinds, only, push, tile};
use crate::{at, table, view};

fn shard() -> Shard {
    Shard::new(Limits::standard(), &[table(10)], &view(1, &[(1, 0), (1, 0)]))
}

const ALL: KeyRange = KeyRange::new(0, 10);

//= protocol.md P3
//= type=test
#[test]
fn a_duplicate_is_acknowledged_and_not_applied() {
    let mut shard = shard();
    let frame = push(0, at(1), at(0), 0..10);
    assert_eq!(applied(&shard.push(frame)), [(0, at(1), ALL)]);
    let again = shard.push(frame);
    // Expect: nothing to apply; the acknowledgement again, as the first may have been lost.
    assert_eq!((applied(&again), acks(&again)), (vec![], vec![(0, SEGMENT, at(1))]));
    assert_eq!((shard.core.counters().pushes, shard.core.counters().duplicates), (1, 1));
}

//= protocol.md P1
//= type=test
#[test]
fn a_push_whose_predecessor_is_missing_is_answered_with_the_clock() {
    let mut shard = shard();
    shard.push(push(0, at(1), at(0), 0..10));
    let effects = shard.push(push(0, at(3), at(2), 0..10));
    // Expect: not applied; the worker is told to go on from stamp 1.
    assert_eq!(applied(&effects), []);
    assert_eq!(only(&effects, Kind::Gap).stamp, at(1));
    assert_eq!(applied(&shard.push(push(0, at(2), at(1), 0..10))), [(0, at(2), ALL)]);
    assert_eq!(applied(&shard.push(push(0, at(3), at(2), 0..10))), [(0, at(3), ALL)]);
}

//= protocol.md P1
//= type=test
#[test]
fn stamps_may_be_skipped_where_the_predecessor_says_so() {
    let mut shard = shard();
    shard.push(push(0, at(1), at(0), 0..10));
    // Expect: stamps 2 to 8 went to other segments, or were pulls.
    assert_eq!(applied(&shard.push(push(0, at(9), at(1), 0..10))), [(0, at(9), ALL)]);
    assert_eq!(applied(&shard.push(push(0, at(5), at(1), 0..10))), []);
}

//= protocol.md P8
//= type=test
#[test]
fn a_burst_behind_a_gap_is_told_once_and_a_second_burst_again() {
    let mut shard = shard();
    let behind = |shard: &mut Shard, time: u64| kinds(&shard.push(push(0, at(time), at(time - 1), 0..10)));
    assert_eq!(behind(&mut shard, 2), [Kind::Gap]);
    // Expect: silence; the worker goes back already.
    assert_eq!(behind(&mut shard, 3), []);
    assert_eq!(behind(&mut shard, 4), []);
    // Expect: stamp 2 again: the frames that were sent in answer to the gap lost their first as well.
    assert_eq!(behind(&mut shard, 2), [Kind::Gap]);
}

//= protocol.md P2
//= type=test
#[test]
fn tiles_are_applied_as_they_come_and_acknowledged_together() {
    let mut shard = shard();
    let first = shard.push(tile(push(0, at(1), at(0), 0..4), true, false));
    assert_eq!(
        (applied(&first), acks(&first)),
        (vec![(0, at(1), KeyRange::new(0, 4))], vec![(0, SEGMENT, at(0))])
    );
    assert_eq!(shard.clock(0).unwrap().intervals(), 2);
    let last = shard.push(tile(push(0, at(1), at(0), 4..10), false, true));
    // Expect: only now every key stands at stamp 1.
    assert_eq!(
        (applied(&last), acks(&last)),
        (vec![(0, at(1), KeyRange::new(4, 10))], vec![(0, SEGMENT, at(1))])
    );
    assert_eq!(shard.clock(0).unwrap().intervals(), 1);
}

//= protocol.md P2
//= type=test
#[test]
fn the_last_tile_alone_is_a_gap() {
    let mut shard = shard();
    let effects = shard.push(tile(push(0, at(1), at(0), 4..10), false, true));
    assert_eq!((applied(&effects), kinds(&effects)), (vec![], vec![Kind::Gap]));
    shard.push(tile(push(0, at(1), at(0), 0..4), true, false));
    // Expect: the next push may not overtake the rest of this one.
    assert_eq!(applied(&shard.push(push(0, at(2), at(1), 0..10))), []);
}

//= protocol.md P5
//= type=test
#[test]
fn a_push_cut_anew_is_applied_in_its_open_part_with_that_part_of_the_payload() {
    let mut shard = shard();
    shard.push(tile(push(0, at(1), at(0), 0..4), true, false));
    let effects = shard.push(push(0, at(1), at(0), 0..10));
    // Expect: keys 4 to 9, whose values begin 32 bytes into the payload.
    let Effect::Applied { values, payload, .. } = &effects[0] else { panic!("{effects:?}") };
    assert_eq!((*values, payload.len(), payload[0]), (KeyRange::new(4, 10), 48, 32));
    assert_eq!(acks(&effects), [(0, SEGMENT, at(1))]);
}

//= protocol.md P2
//= type=test
#[test]
fn a_push_of_some_keys_moves_the_clock_of_the_whole_segment() {
    let mut shard = shard();
    let effects = shard.push(push(0, at(1), at(0), 3..5));
    assert_eq!(
        (applied(&effects), acks(&effects)),
        (vec![(0, at(1), KeyRange::new(3, 5))], vec![(0, SEGMENT, at(1))])
    );
    // Expect: stamp 2 of other keys finds its predecessor everywhere.
    assert_eq!(applied(&shard.push(push(0, at(2), at(1), 0..2))), [(0, at(2), KeyRange::new(0, 2))]);
}

//= protocol.md P6
//= type=test
#[test]
fn acknowledgements_are_cumulative_and_coalesced() {
    let mut shard = shard();
    shard.sends_complete = false;
    // Expect: three frames come while no answer can be sent; the answer is one pair.
    for time in 1..=3 {
        shard.core.handle_input(shard.now, input(time));
    }
    assert_eq!(acks(&shard.drain()), [(0, SEGMENT, at(3))]);
}

fn input(time: u64) -> rangefold_proto::server::Input<'static, std::rc::Rc<[u8]>> {
    let header = push(0, at(time), at(time - 1), 0..10);
    let extension = rangefold_proto::wire::Extension::default();
    rangefold_proto::server::Input::Push {
        link: crate::shard::LINK,
        header,
        extension,
        payload: vec![0; 80].into(),
    }
}

#[test]
fn an_acknowledgement_never_leaves_before_what_it_stands_for() {
    let mut shard = shard();
    let effects = shard.push(push(0, at(1), at(0), 0..10));
    let place = |wanted: fn(&Effect) -> bool| effects.iter().position(wanted).unwrap();
    assert!(place(|e| matches!(e, Effect::Applied { .. })) < place(|e| matches!(e, Effect::Said(_))));
}

#[test]
fn lanes_have_clocks_of_their_own() {
    let mut shard = shard();
    shard.push(push(0, at(7), at(0), 0..10));
    // Expect: lane 1's stamp 1 is no duplicate, and no predecessor of lane 0's is asked of it.
    assert_eq!(applied(&shard.push(push(1, at(1), at(0), 0..10))), [(1, at(1), ALL)]);
    assert_eq!((shard.clock(0).unwrap().lowest(), shard.clock(1).unwrap().lowest()), (at(7), at(1)));
}

//= protocol.md P7
//= type=test
#[test]
fn a_resume_is_answered_with_what_has_arrived() {
    let mut shard = shard();
    shard.push(push(0, at(1), at(0), 0..10));
    shard.push(tile(push(0, at(2), at(1), 0..4), true, false));
    let effects = shard.resume(0, at(0), &[SEGMENT]);
    let reply =
        crate::shard::said(&effects).into_iter().find(|said| said.header.kind == Kind::ResumeReply).unwrap();
    let pairs: Vec<_> = rangefold_proto::wire::pairs(&reply.body).unwrap().collect();
    // Expect: stamp 1; of stamp 2 only a tile is here.
    assert_eq!(pairs, [(SEGMENT, at(1))]);
    // Expect: the acknowledgement too, as the one that was sent may have died with its connection.
    assert_eq!(acks(&effects), [(0, SEGMENT, at(1))]);
}
