//! Rounds, parked pulls, views: when a pull is answered (protocol.md §4).

use rangefold_proto::server::Input;
use rangefold_proto::wire::{Extension, Header, Kind, PullOptions, Refusal};
use rangefold_proto::{Assignment, KeyRange, Lane, Limits, LinkId, Nanos};

use crate::shard::{LINK, SEGMENT, Shard, kinds, only, pull, push, refusal, replies, said, tile};
use crate::{at, of, table, view};

fn shard() -> Shard {
    Shard::new(Limits::standard(), &[table(10)], &view(1, &[(1, 0), (1, 0)]))
}

const ALL: KeyRange = KeyRange::new(0, 10);
/// A segment that is somewhere else, for closes that name another one only.
const ELSEWHERE: rangefold_proto::SegmentId = rangefold_proto::SegmentId(7);

//= protocol.md T3
//= type=test
#[test]
fn a_pull_waits_until_every_member_has_closed() {
    let mut shard = shard();
    assert_eq!(replies(&shard.pull(pull(0, at(1), 0..10), 1, &[])), []);
    assert_eq!(replies(&shard.close(0, at(0), 0, &[(SEGMENT, at(0))])), []);
    let effects = shard.close(1, at(0), 0, &[(SEGMENT, at(0))]);
    assert_eq!(replies(&effects), [ALL]);
    // Expect: the reply says how many rounds it holds.
    assert_eq!(only(&effects, Kind::PullReply).round, 1);
    assert_eq!((shard.core.counters().parked, shard.core.counters().pulls), (1, 1));
}

//= protocol.md T4
//= type=test
#[test]
fn eventual_waits_for_nobody() {
    assert_eq!(replies(&shard().pull(pull(0, at(1), 2..5), 0, &[])), [KeyRange::new(2, 5)]);
}

//= protocol.md T2
//= type=test
#[test]
fn a_close_that_overtakes_its_push_does_not_count_yet() {
    let mut shard = shard();
    shard.close(1, at(0), 0, &[(SEGMENT, at(0))]);
    shard.pull(pull(1, at(1), 0..10), 1, &[]);
    // Expect: lane 0 pushed stamp 1 in this round, and it is not here.
    assert_eq!(replies(&shard.close(0, at(0), 0, &[(SEGMENT, at(1))])), []);
    assert_eq!(replies(&shard.push(tile(push(0, at(1), at(0), 0..4), true, false))), []);
    assert_eq!(replies(&shard.push(tile(push(0, at(1), at(0), 4..10), false, true))), [ALL]);
}

//= protocol.md T1
//= type=test
#[test]
fn a_close_that_never_named_the_segment_says_nothing_of_it() {
    let mut shard = shard();
    shard.close(1, at(0), 0, &[(SEGMENT, at(0))]);
    shard.pull(pull(1, at(1), 0..10), 1, &[]);
    // Expect: this lane may take the segment to be elsewhere.
    assert_eq!(replies(&shard.close(0, at(0), 0, &[(ELSEWHERE, at(1))])), []);
    assert_eq!(replies(&shard.close(0, at(0), 0, &[(SEGMENT, at(0))])), [ALL]);
    // Expect: from here on silence means "nothing new".
    shard.pull(pull(1, at(2), 0..10), 2, &[]);
    shard.close(1, at(0), 1, &[]);
    assert_eq!(replies(&shard.close(0, at(0), 1, &[(ELSEWHERE, at(3))])), [KeyRange::new(0, 10)]);
}

#[test]
fn a_name_under_an_older_assignment_does_not_make_later_silence_count() {
    let mut shard = shard();
    shard.close(1, at(0), 0, &[(SEGMENT, at(0))]);
    shard.close(1, at(0), 1, &[]);
    // Expect: what it says of round 0 is true; of round 1 it says nothing.
    shard.close_under(0, at(0), 0, &[(SEGMENT, Assignment(0), at(0))]);
    assert_eq!(replies(&shard.pull(pull(1, at(1), 0..10), 1, &[])), [ALL]);
    shard.close_under(0, at(0), 1, &[]);
    assert_eq!(replies(&shard.pull(pull(1, at(2), 0..10), 2, &[])), []);
    assert_eq!(replies(&shard.close(0, at(0), 1, &[(SEGMENT, at(0))])), [ALL]);
}

//= protocol.md T2
//= type=test
#[test]
fn a_stream_of_closes_does_not_starve_a_pull() {
    let mut shard = shard();
    for round in 0..20 {
        shard.close(1, at(0), round, &[(SEGMENT, at(0))]);
    }
    shard.pull(pull(1, at(1), 0..10), 1, &[]);
    // Expect: closes of rounds 0 to 9 each name a push that is not here; the oldest is kept.
    for round in 0..10 {
        assert_eq!(replies(&shard.close(0, at(0), round, &[(SEGMENT, at(u64::from(round) + 1))])), []);
    }
    assert_eq!(replies(&shard.push(push(0, at(1), at(0), 0..10))), [ALL]);
}

//= protocol.md T3
//= type=test
#[test]
fn a_worker_reads_its_own_writes() {
    let mut shard = shard();
    let own = [(Lane(0), at(1))];
    assert_eq!(replies(&shard.pull(pull(0, at(2), 0..10), 0, &own)), []);
    assert_eq!(replies(&shard.push(push(0, at(1), at(0), 0..10))), [ALL]);
    assert_eq!(replies(&shard.pull(pull(0, at(3), 0..10), 0, &own)), [ALL]);
}

#[test]
fn a_dependency_does_not_excuse_from_rounds() {
    let mut shard = shard();
    shard.pull(pull(0, at(2), 0..10), 1, &[(Lane(0), at(1))]);
    assert_eq!(replies(&shard.push(push(0, at(1), at(0), 0..10))), []);
    shard.close(0, at(0), 0, &[(SEGMENT, at(1))]);
    assert_eq!(replies(&shard.close(1, at(0), 0, &[(SEGMENT, at(0))])), [ALL]);
}

//= protocol.md T6
//= type=test
#[test]
fn pulls_wake_oldest_round_first() {
    let mut shard = shard();
    shard.pull(pull(0, at(1), 0..3), 2, &[]);
    shard.pull(pull(0, at(2), 3..6), 1, &[]);
    shard.close(0, at(0), 1, &[(SEGMENT, at(0))]);
    // Expect: lane 1 closes two rounds at once; both pulls wake.
    let effects = shard.close(1, at(0), 1, &[(SEGMENT, at(0))]);
    assert_eq!(replies(&effects), [KeyRange::new(3, 6), KeyRange::new(0, 3)]);
}

//= protocol.md T7
//= type=test
#[test]
fn the_dead_do_not_gate() {
    let mut shard = shard();
    shard.close(0, at(0), 0, &[(SEGMENT, at(0))]);
    shard.pull(pull(0, at(1), 0..10), 1, &[]);
    let mut survivors = view(2, &[(1, 0), (1, 0)]);
    survivors.members.truncate(1);
    assert_eq!(replies(&shard.tell(Input::View(survivors))), [ALL]);
}

//= protocol.md T7
//= type=test
#[test]
fn a_worker_brings_the_view_that_wakes_its_pull() {
    let mut shard = shard();
    shard.close(0, at(0), 0, &[(SEGMENT, at(0))]);
    shard.pull(pull(0, at(1), 0..10), 1, &[]);
    let mut survivors = view(2, &[(1, 0), (1, 0)]);
    survivors.members.truncate(1);
    // Expect: no word from the scheduler is needed.
    assert_eq!(replies(&shard.show(LINK, &survivors)), [ALL]);
}

//= protocol.md T8
//= type=test
#[test]
fn a_joiner_counts_from_its_first_round() {
    let mut shard = shard();
    for round in 0..3 {
        shard.close(0, at(0), round, &[(SEGMENT, at(0))]);
        shard.close(1, at(0), round, &[(SEGMENT, at(0))]);
    }
    shard.tell(Input::View(view(2, &[(1, 0), (1, 0), (1, 3)])));
    // Expect: rounds 0 to 2 count as closed by lane 2; round 3 does not.
    assert_eq!(replies(&shard.pull(pull(0, at(1), 0..10), 3, &[])), [ALL]);
    shard.pull(pull(0, at(2), 0..10), 4, &[]);
    shard.close(0, at(0), 3, &[]);
    assert_eq!(replies(&shard.close(1, at(0), 3, &[])), []);
    assert_eq!(replies(&shard.close(2, at(0), 3, &[(SEGMENT, at(0))])), [ALL]);
}

//= protocol.md T8
//= type=test
#[test]
fn a_lane_taken_over_goes_on_from_its_first_round() {
    let mut shard = shard();
    shard.close(0, at(0), 4, &[(SEGMENT, at(0))]);
    shard.close(1, at(0), 4, &[(SEGMENT, at(0))]);
    shard.tell(Input::View(view(2, &[(2, 3), (1, 0)])));
    assert_eq!(replies(&shard.pull(pull(1, at(1), 0..10), 3, &[])), [ALL]);
    // Expect: the former holder's closes of rounds 3 and 4 are not the new one's.
    assert_eq!(replies(&shard.pull(pull(1, at(2), 0..10), 4, &[])), []);
    assert_eq!(replies(&shard.close(0, of(2, 0), 3, &[(SEGMENT, of(2, 0))])), [ALL]);
}

#[test]
fn without_a_view_nothing_is_known_of_rounds() {
    let mut shard = Shard::new(Limits::standard(), &[table(10)], &view(0, &[]));
    assert_eq!(replies(&shard.pull(pull(0, at(1), 0..10), 1, &[])), []);
    assert_eq!(replies(&shard.tell(Input::View(view(1, &[(1, 1)])))), [ALL]);
}

#[test]
fn a_pull_is_given_back_when_its_patience_ends() {
    let mut shard = shard();
    shard.pull(pull(0, at(1), 0..10), 1, &[]);
    // Expect: it asks to be called then.
    assert_eq!(shard.timeout, Some(Nanos(1_000_000_000)));
    assert_eq!(kinds(&shard.tick(999_999_999)), []);
    let effects = shard.tick(1_000_000_000);
    assert_eq!(refusal(&effects), Refusal::Expired);
    assert_eq!((shard.core.parked_count(), shard.timeout), (0, None));
}

//= protocol.md K5
//= type=test
#[test]
fn a_parked_pull_is_given_back_on_request() {
    let mut shard = shard();
    shard.pull(pull(0, at(1), 0..5), 1, &[]);
    shard.pull(pull(0, at(1), 5..10), 1, &[]);
    let effects = shard.control(LINK, Header { kind: Kind::Cancel, ..pull(0, at(1), 0..5) }, &[]);
    assert_eq!(only(&effects, Kind::Busy).range, KeyRange::new(0, 5));
    // Expect: the other piece of the same task still waits; asking twice changes nothing.
    assert_eq!(shard.core.parked_count(), 1);
    assert_eq!(kinds(&shard.control(LINK, Header { kind: Kind::Cancel, ..pull(0, at(1), 0..5) }, &[])), []);
}

#[test]
fn pulls_of_a_lost_connection_are_forgotten() {
    let mut shard = shard();
    let other = LinkId(2);
    shard.tell(Input::Linked { link: other });
    shard.pull(pull(0, at(1), 0..10), 1, &[]);
    shard.pull_on(other, pull(1, at(1), 0..10), 1, &[]);
    shard.tell(Input::Lost { link: LINK });
    assert_eq!(shard.core.parked_count(), 1);
    shard.tell(Input::Linked { link: LINK });
    shard.close(0, at(0), 0, &[(SEGMENT, at(0))]);
    let effects = shard.close(1, at(0), 0, &[(SEGMENT, at(0))]);
    assert!(said(&effects).iter().all(|said| said.link == other), "{effects:?}");
}

#[test]
fn a_pull_without_options_needs_nothing() {
    let mut shard = shard();
    let effects = shard.extended(LINK, pull(0, at(1), 0..10), Extension::default(), &[]);
    assert_eq!(replies(&effects), [ALL]);
    let pull_options = Some(PullOptions { rounds_needed: 1, patience_ms: 0 });
    let extension = Extension { pull: pull_options, ..Extension::default() };
    // Expect: no patience at all: given back in the same step.
    assert_eq!(refusal(&shard.extended(LINK, pull(0, at(2), 0..10), extension, &[])), Refusal::Expired);
}
