//! Rounds of aggregated tables: contributions of lanes, applied once and in one order (protocol.md T10).

use rangefold_proto::server::Input;
use rangefold_proto::wire::{self, Header, Kind};
use rangefold_proto::{Assignment, KeyRange, Lane, Limits, LinkId};

use crate::shard::{
    Effect, JOB, LINK, SEGMENT, Shard, acks, contributed, finished, kinds, pull, push, replies, tile,
};
use crate::{aggregated, at, of, view};

fn shard() -> Shard {
    Shard::new(Limits::standard(), &[aggregated(10)], &view(1, &[(1, 0), (1, 0)]))
}

/// A push of a round.
fn push_in(round: u32, header: Header) -> Header {
    Header { round, ..header }
}

//= protocol.md T10
//= type=test
#[test]
fn a_round_is_applied_when_every_member_has_closed_it_in_the_order_of_lanes() {
    let mut shard = shard();
    assert_eq!(contributed(&shard.push(push(1, at(1), at(0), 0..10))), []);
    shard.close(1, at(0), 0, &[(SEGMENT, at(1))]);
    assert_eq!(contributed(&shard.push(push(0, at(1), at(0), 0..10))), []);
    let effects = shard.close(0, at(0), 0, &[(SEGMENT, at(1))]);
    // Expect: lane 1 came first and is added last, so that sums repeat to the last bit.
    assert_eq!(contributed(&effects), [(0, at(1)), (1, at(1))]);
    assert_eq!(finished(&effects), [0]);
    // Expect: acknowledged only now.
    assert_eq!(acks(&effects), [(0, SEGMENT, at(1)), (1, SEGMENT, at(1))]);
    assert_eq!(shard.core.counters().rounds, 1);
}

/// Of a push whose first keys a tile brought already, the rest is added, and from where it lies in the payload.
#[test]
fn a_contribution_is_cut_to_what_is_open() {
    let mut shard = shard();
    shard.push(tile(push(0, at(1), at(0), 0..4), true, false));
    shard.push(push(0, at(1), at(0), 0..10));
    shard.close(0, at(0), 0, &[(SEGMENT, at(1))]);
    let effects = shard.close(1, at(0), 0, &[(SEGMENT, at(0))]);
    let cut: Vec<(KeyRange, u8, usize)> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Contributed { values, payload, .. } => Some((*values, payload[0], payload.len())),
            _ => None,
        })
        .collect();
    assert_eq!(cut, [(KeyRange::new(0, 4), 0, 32), (KeyRange::new(4, 10), 32, 48)]);
}

#[test]
fn closes_of_several_rounds_at_once_apply_them_one_after_the_other() {
    let mut shard = shard();
    shard.push(push_in(0, push(0, at(1), at(0), 0..10)));
    shard.push(push_in(1, push(0, at(2), at(1), 0..10)));
    shard.close(0, at(0), 1, &[(SEGMENT, at(2))]);
    let effects = shard.close(1, at(0), 1, &[(SEGMENT, at(0))]);
    let order: Vec<&str> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Contributed { .. } => Some("contribute"),
            Effect::Finished { .. } => Some("finish"),
            _ => None,
        })
        .collect();
    assert_eq!(order, ["contribute", "finish", "contribute", "finish"]);
}

#[test]
fn nothing_is_acknowledged_while_a_round_is_open() {
    let mut shard = shard();
    assert_eq!(acks(&shard.push(push(0, at(1), at(0), 0..10))), []);
    // Expect: a repeat is known as one, by the clock of what was received, and not acknowledged either.
    let again = shard.push(push(0, at(1), at(0), 0..10));
    assert_eq!(shard.core.counters().duplicates, 1);
    assert!(acks(&again).iter().all(|&(_, _, stamp)| stamp == at(0)), "{again:?}");
}

#[test]
fn the_arguments_are_those_of_the_first_lane() {
    let mut shard = shard();
    shard.push_with(LINK, push(1, at(1), at(0), 0..10), &[2.0]);
    shard.push_with(LINK, push(0, at(1), at(0), 0..10), &[1.0]);
    shard.close(0, at(0), 0, &[(SEGMENT, at(1))]);
    let effects = shard.close(1, at(0), 0, &[(SEGMENT, at(1))]);
    let finish = effects.iter().find_map(|effect| match effect {
        Effect::Finished { arguments, .. } => Some(*arguments),
        _ => None,
    });
    assert_eq!(finish.unwrap().as_slice(), [1.0]);
}

#[test]
fn a_round_without_contributions_passes_without_an_update() {
    let mut shard = shard();
    shard.close(0, at(0), 0, &[(SEGMENT, at(0))]);
    let effects = shard.close(1, at(0), 0, &[(SEGMENT, at(0))]);
    assert_eq!((finished(&effects), shard.core.counters().rounds), (vec![], 1));
    assert_eq!(replies(&shard.pull(pull(0, at(1), 0..10), 1, &[])), [KeyRange::new(0, 10)]);
}

//= protocol.md T10
//= type=test
#[test]
fn rounds_are_applied_in_order() {
    let mut shard = shard();
    shard.push(push_in(0, push(1, at(1), at(0), 0..10)));
    shard.push(push_in(1, push(0, at(2), at(0), 0..10)));
    // Expect: a push of round 1 whose predecessor is here shows that its lane misses nothing of round 0; with lane 1's,
    // round 0 is complete before any close was heard.
    let effects = shard.push(push_in(1, push(1, at(2), at(1), 0..10)));
    assert_eq!((contributed(&effects), finished(&effects)), (vec![(1, at(1))], vec![0]));
    shard.close(0, at(0), 1, &[(SEGMENT, at(2))]);
    let effects = shard.close(1, at(0), 1, &[(SEGMENT, at(2))]);
    assert_eq!((contributed(&effects), finished(&effects)), (vec![(0, at(2)), (1, at(2))], vec![1]));
}

//= protocol.md T10
//= type=test
#[test]
fn a_new_incarnation_takes_the_slot_of_the_old_one() {
    let mut shard = shard();
    shard.push(push(0, at(1), at(0), 0..10));
    shard.tell(Input::View(view(2, &[(2, 0), (1, 0)])));
    shard.push(push(0, of(2, 1), of(2, 0), 0..10));
    shard.close(0, of(2, 0), 0, &[(SEGMENT, of(2, 1))]);
    let effects = shard.close(1, at(0), 0, &[(SEGMENT, at(0))]);
    // Expect: what the first holder contributed is gone: the round has one contribution of the lane.
    assert_eq!(contributed(&effects), [(0, of(2, 1))]);
}

#[test]
fn what_a_dead_lane_contributed_to_an_open_round_comes_out_even_if_it_does_not_contribute_again() {
    let mut shard = shard();
    shard.push(push(0, at(1), at(0), 0..10));
    shard.tell(Input::View(view(2, &[(2, 0), (1, 0)])));
    shard.close(0, of(2, 0), 0, &[(SEGMENT, of(2, 0))]);
    let effects = shard.close(1, at(0), 0, &[(SEGMENT, at(0))]);
    assert_eq!((contributed(&effects), shard.core.counters().rounds), (vec![], 1));
}

//= protocol.md T10
//= type=test
#[test]
fn a_round_done_again_after_it_was_applied_counts_once() {
    let mut shard = shard();
    shard.push(push(0, at(1), at(0), 0..10));
    shard.close(0, at(0), 0, &[(SEGMENT, at(1))]);
    assert_eq!(finished(&shard.close(1, at(0), 0, &[(SEGMENT, at(0))])), [0]);
    // The scheduler did not hear that round 0 was acknowledged: the new holder does it again.
    shard.tell(Input::View(view(2, &[(2, 0), (1, 0)])));
    let effects = shard.push(push(0, of(2, 1), of(2, 0), 0..10));
    // Expect: acknowledged, so that its worker goes on; not applied.
    assert_eq!((contributed(&effects), acks(&effects)), (vec![], vec![(0, SEGMENT, of(2, 1))]));
    assert_eq!(finished(&shard.close(0, of(2, 0), 0, &[(SEGMENT, of(2, 1))])), []);
}

//= protocol.md T10
//= type=test
#[test]
fn a_round_too_far_ahead_is_put_off_and_not_kept() {
    let limits = Limits { rounds_open_max: 2, ..Limits::standard() };
    let mut shard = Shard::new(limits, &[aggregated(10)], &view(1, &[(1, 0), (1, 0)]));
    shard.push(push_in(0, push(0, at(1), at(0), 0..10)));
    shard.push(push_in(1, push(0, at(2), at(1), 0..10)));
    let ahead = push_in(2, push(0, at(3), at(2), 0..10));
    assert_eq!(kinds(&shard.push(ahead)), [Kind::Busy]);
    // Expect: once round 0 is applied there is room, and the same frame is no duplicate.
    shard.close(0, at(0), 2, &[(SEGMENT, at(3))]);
    assert_eq!(finished(&shard.close(1, at(0), 0, &[(SEGMENT, at(0))])), [0]);
    assert_eq!(kinds(&shard.push(ahead)), []);
    assert_eq!(shard.core.counters().duplicates, 0);
    let effects = shard.close(1, at(0), 2, &[(SEGMENT, at(0))]);
    assert_eq!(contributed(&effects), [(0, at(2)), (0, at(3))]);
}

#[test]
fn a_pull_of_an_aggregated_table_waits_for_the_values_and_not_only_for_the_closes() {
    let mut shard = shard();
    shard.push(push(0, at(1), at(0), 0..10));
    shard.pull(pull(1, at(1), 0..10), 1, &[]);
    shard.close(1, at(0), 0, &[(SEGMENT, at(0))]);
    let effects = shard.close(0, at(0), 0, &[(SEGMENT, at(1))]);
    let finish = effects.iter().position(|effect| matches!(effect, Effect::Finished { .. })).unwrap();
    let reply =
        effects.iter().position(|effect| matches!(effect, Effect::Said(said) if said.gathered.is_some()));
    assert!(finish < reply.unwrap(), "{effects:?}");
}

#[test]
fn a_lane_may_push_several_times_in_a_round() {
    let mut shard = shard();
    shard.push(push(0, at(1), at(0), 0..6));
    shard.push(push(0, at(2), at(1), 4..10));
    shard.close(0, at(0), 0, &[(SEGMENT, at(2))]);
    let effects = shard.close(1, at(0), 0, &[(SEGMENT, at(0))]);
    assert_eq!(contributed(&effects), [(0, at(1)), (0, at(2))]);
    assert_eq!(acks(&effects), [(0, SEGMENT, at(2))]);
}

//= protocol.md P7
//= type=test
#[test]
fn a_late_frame_of_a_broken_connection_does_not_take_the_acknowledgement_with_it() {
    let mut shard = shard();
    let newer = LinkId(2);
    let frame = push(0, at(1), at(0), 0..10);
    shard.tell(Input::Linked { link: newer });
    shard.show(newer, &view(1, &[(1, 0), (1, 0)]));
    // Sent again on the new connection; then the old one brings it once more, and its loss is noticed.
    shard.push_on(newer, frame);
    shard.push_on(LINK, frame);
    shard.tell(Input::Lost { link: LINK });
    let mut close = |lane: u32, last| {
        let mut body = Vec::new();
        wire::put_named(&mut body, (SEGMENT, Assignment(1), last));
        let header =
            Header { lane: Lane(lane), stamp: at(0), previous: at(0), ..Header::of(Kind::Closed, JOB) };
        shard.control(newer, header, &body)
    };
    close(1, at(0));
    assert_eq!(acks(&close(0, at(1))), [(0, SEGMENT, at(1))]);
}
