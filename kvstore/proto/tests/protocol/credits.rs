//! What a shard grants, holds and gives back (protocol.md §13, B1 to B5).

use std::rc::Rc;

use rangefold_proto::server::Input;
use rangefold_proto::wire::{Extension, Header, Kind};
use rangefold_proto::{Limits, LinkId};

use crate::shard::{Effect, LINK, SEGMENT, Shard, acks, applied, kinds, pull, push, replies, said};
use crate::{aggregated, at, table, view};

fn shard_with(limits: Limits, aggregate: bool) -> Shard {
    let spec = if aggregate { aggregated(10) } else { table(10) };
    Shard::new(limits, &[spec], &view(1, &[(1, 0), (1, 0)]))
}

/// Three whole pushes of the table.
const THREE: Limits = Limits { push_bytes_per_link: 240, ..Limits::standard() };

//= protocol.md B1
//= type=test
#[test]
fn pushing_more_than_was_granted_ends_the_connection() {
    let mut shard = shard_with(THREE, true);
    for time in 1..=3 {
        let effects = shard.push(push(0, at(time), at(time - 1), 0..10));
        assert!(!effects.contains(&Effect::Disconnected(LINK)));
    }
    // Expect: all three wait for their round, so the fourth is over the bound.
    let effects = shard.push(push(0, at(4), at(3), 0..10));
    assert_eq!(effects, [Effect::Disconnected(LINK)]);
    assert_eq!(shard.core.counters().violations, 1);
}

//= protocol.md B1
//= type=test
#[test]
fn credit_is_cumulative_and_comes_back_when_a_payload_is_let_go() {
    let mut shard = shard_with(THREE, true);
    let credit = |effects: &[Effect]| said(effects).iter().filter_map(|said| said.extension.credit).max();
    assert_eq!(credit(&shard.push(push(0, at(1), at(0), 0..10))), None);
    assert_eq!(credit(&shard.push(push(1, at(1), at(0), 0..10))), None);
    shard.close(0, at(0), 0, &[(SEGMENT, at(1))]);
    assert_eq!(credit(&shard.close(1, at(0), 0, &[(SEGMENT, at(1))])), Some(160));
    // Expect: a number that grows, so that one lost or late changes nothing.
    shard.push(Header { round: 1, ..push(0, at(2), at(1), 0..10) });
    shard.close(0, at(0), 1, &[(SEGMENT, at(2))]);
    assert_eq!(credit(&shard.close(1, at(0), 1, &[(SEGMENT, at(1))])), Some(240));
}

#[test]
fn what_is_not_applied_gives_its_credit_back_too() {
    let mut shard = shard_with(THREE, false);
    // Expect: gaps, duplicates, a fenced and a homeless push in a row never run into the bound.
    for time in 2..50 {
        let frames = [
            push(0, at(time + 1), at(time), 0..10),
            push(0, at(1), at(0), 0..10),
            push(7, at(1), at(0), 0..10),
            Header { segment: rangefold_proto::SegmentId(99), ..push(0, at(1), at(0), 0..10) },
        ];
        for frame in frames {
            assert!(!shard.push(frame).contains(&Effect::Disconnected(LINK)));
        }
    }
}

#[test]
fn credit_is_sent_alone_when_a_quarter_is_due_and_nothing_else_is_said() {
    let mut shard = shard_with(Limits { push_bytes_per_link: 800, ..Limits::standard() }, false);
    shard.push(push(0, at(2), at(1), 0..10));
    // Expect: two more behind the gap are let go silently; the third makes it a quarter.
    assert_eq!(kinds(&shard.push(push(0, at(3), at(2), 0..10))), []);
    assert_eq!(kinds(&shard.push(push(0, at(4), at(3), 0..10))), []);
    let effects = shard.push(push(0, at(5), at(4), 0..10));
    assert_eq!((kinds(&effects), acks(&effects)), (vec![Kind::Ack], vec![]));
    assert_eq!(said(&effects)[0].extension.credit, Some(320));
}

//= protocol.md T6
//= type=test
#[test]
fn pulling_more_than_was_granted_ends_the_connection() {
    let mut shard = shard_with(Limits { pulls_per_link: 2, ..Limits::standard() }, false);
    shard.pull(pull(0, at(1), 0..10), 1, &[]);
    shard.pull(pull(0, at(2), 0..10), 1, &[]);
    assert_eq!(shard.pull(pull(0, at(3), 0..10), 1, &[]), [Effect::Disconnected(LINK)]);
    // Expect: what was parked stays parked until the connection is gone.
    assert_eq!(shard.core.parked_count(), 2);
}

//= protocol.md B5
//= type=test
#[test]
fn replies_wait_for_a_slice_and_take_turns() {
    let mut shard = shard_with(Limits { replies_per_shard: 2, ..Limits::standard() }, false);
    let other = LinkId(2);
    shard.tell(Input::Linked { link: other });
    shard.sends_complete = false;
    assert_eq!(replies(&shard.pull(pull(0, at(1), 0..10), 0, &[])).len(), 1);
    assert_eq!(replies(&shard.pull(pull(0, at(2), 0..10), 0, &[])).len(), 1);
    assert_eq!(replies(&shard.pull(pull(0, at(3), 0..10), 0, &[])).len(), 0);
    assert_eq!(replies(&shard.pull_on(other, pull(1, at(1), 0..10), 0, &[])).len(), 0);
    // Expect: a push is acknowledged meanwhile; replies block replies only.
    assert_eq!(acks(&shard.push(push(0, at(4), at(0), 0..10))), [(0, SEGMENT, at(4))]);
    let first = shard.tell(Input::Sent { link: LINK, reply: true, count: 1 });
    let second = shard.tell(Input::Sent { link: LINK, reply: true, count: 1 });
    let links: Vec<_> = said(&first).into_iter().chain(said(&second)).map(|said| said.link).collect();
    assert_eq!(links, [LINK, other]);
}

//= protocol.md B5
//= type=test
#[test]
fn a_peer_that_does_not_read_holds_its_own_share_of_the_slices_only() {
    let limits = Limits { replies_per_shard: 8, replies_per_link: 3, ..Limits::standard() };
    let mut shard = shard_with(limits, false);
    let other = LinkId(2);
    shard.tell(Input::Linked { link: other });
    shard.sends_complete = false;
    let answered = |effects: &[Effect]| said(effects).iter().map(|said| said.link).collect::<Vec<_>>();
    let stalled: usize =
        (1..8).map(|time| answered(&shard.pull(pull(0, at(time), 0..10), 0, &[])).len()).sum();
    assert_eq!(stalled, 3);
    assert_eq!(answered(&shard.pull_on(other, pull(1, at(1), 0..10), 0, &[])), [other]);
    // Expect: what waits goes when the peer reads on.
    assert_eq!(answered(&shard.tell(Input::Sent { link: LINK, reply: true, count: 1 })), [LINK]);
}

//= protocol.md B5
//= type=test
#[test]
fn replies_that_are_large_together_are_gathered_one_after_the_other() {
    let limits = Limits { reply_bytes_per_link: 1, ..Limits::standard() };
    let mut shard = shard_with(limits, false);
    shard.sends_complete = false;
    // Expect: one goes alone, however large it is, and the next when its send has ended.
    assert_eq!(replies(&shard.pull(pull(0, at(1), 0..10), 0, &[])).len(), 1);
    assert_eq!(replies(&shard.pull(pull(0, at(2), 0..10), 0, &[])).len(), 0);
    assert_eq!(replies(&shard.tell(Input::Sent { link: LINK, reply: false, count: 1 })).len(), 0);
    assert_eq!(replies(&shard.tell(Input::Sent { link: LINK, reply: true, count: 1 })).len(), 1);
    assert_eq!(replies(&shard.tell(Input::Sent { link: LINK, reply: true, count: 1 })).len(), 0);
}

#[test]
fn a_lost_connection_does_not_keep_its_turn_at_the_slices() {
    let mut shard = shard_with(Limits { replies_per_shard: 1, ..Limits::standard() }, false);
    let (first, second) = (LinkId(2), LinkId(3));
    shard.tell(Input::Linked { link: first });
    shard.tell(Input::Linked { link: second });
    shard.sends_complete = false;
    shard.pull(pull(0, at(1), 0..10), 0, &[]);
    shard.pull_on(first, pull(1, at(1), 0..10), 0, &[]);
    shard.pull_on(second, pull(1, at(2), 0..10), 0, &[]);
    shard.tell(Input::Lost { link: first });
    let effects = shard.tell(Input::Sent { link: LINK, reply: true, count: 1 });
    assert_eq!(said(&effects).iter().map(|said| said.link).collect::<Vec<_>>(), [second]);
}

#[test]
fn a_connection_without_room_passes_its_turn_at_the_slices_on() {
    let limits = Limits { replies_per_shard: 1, sends_per_link: 1, ..Limits::standard() };
    let mut shard = shard_with(limits, false);
    let (slow, second) = (LinkId(2), LinkId(3));
    for link in [slow, second] {
        shard.tell(Input::Linked { link });
        shard.show(link, &view(1, &[(1, 0), (1, 0)]));
    }
    shard.sends_complete = false;
    assert_eq!(replies(&shard.pull(pull(0, at(1), 0..10), 0, &[])).len(), 1);
    // It waits for the slice, and then an acknowledgement that its peer does not read takes its only send.
    shard.pull_on(slow, pull(1, at(1), 0..10), 0, &[]);
    assert_eq!(kinds(&shard.push_on(slow, push(1, at(2), at(0), 0..10))), [Kind::Ack]);
    shard.pull_on(second, pull(1, at(3), 0..10), 0, &[]);
    let effects = shard.tell(Input::Sent { link: LINK, reply: true, count: 1 });
    assert_eq!(said(&effects).iter().map(|said| said.link).collect::<Vec<_>>(), [second]);
    shard.tell(Input::Sent { link: slow, reply: false, count: 1 });
    let effects = shard.tell(Input::Sent { link: second, reply: true, count: 1 });
    assert_eq!(said(&effects).iter().map(|said| said.link).collect::<Vec<_>>(), [slow]);
}

//= protocol.md B3
//= type=test
#[test]
fn a_peer_that_does_not_read_gets_one_answer_per_lane_and_segment() {
    let mut shard = shard_with(Limits { sends_per_link: 1, ..Limits::standard() }, false);
    shard.sends_complete = false;
    let mut sent = 0;
    for time in 2..200 {
        // Every second one shows the gap again.
        sent += said(&shard.push(push(0, at(2 + time % 2), at(1 + time % 2), 0..10))).len();
    }
    // Expect: one frame went into the only room there is; behind it waits one answer, not a hundred.
    assert_eq!(sent, 1);
    let later: usize =
        (0..5).map(|_| said(&shard.tell(Input::Sent { link: LINK, reply: false, count: 1 })).len()).sum();
    assert!(later <= 2, "{later} frames were queued");
}

#[test]
fn without_memory_for_frames_effects_still_happen() {
    let mut shard = shard_with(Limits::standard(), false);
    let header = push(0, at(1), at(0), 0..10);
    let payload: Rc<[u8]> = vec![0; 80].into();
    shard.core.handle_input(
        shard.now,
        Input::Push { link: LINK, header, extension: Extension::default(), payload },
    );
    let effects = shard.drain_if(false);
    assert_eq!((applied(&effects).len(), kinds(&effects)), (1, vec![]));
    assert_eq!(acks(&shard.drain_if(true)), [(0, SEGMENT, at(1))]);
}
