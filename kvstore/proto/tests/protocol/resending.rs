//! What a worker sends, keeps, and sends again (protocol.md P1, P6, P7, T1, G1, B6).

use rangefold_proto::client::{Input, IssueError, TaskError};
use rangefold_proto::wire::{self, Extension, Header, Kind, Refusal};
use rangefold_proto::{Assignment, KeyRange, Lane, Limits, LinkId, Row, SegmentId, Stamp, TableId};

use crate::shard::{JOB, SEGMENT, id};
use crate::worker::{Effect, Worker, done, named, pushed, sent};
use crate::{aggregated, at, of, table, view};

fn worker() -> Worker {
    worker_with(Limits::standard())
}

fn worker_with(limits: Limits) -> Worker {
    let mut worker = Worker::new(limits, &[table(10)], &view(1, &[(1, 0), (1, 0)]), &[0]);
    worker.linked(0, 1);
    worker
}

fn of_push(kind: Kind, stamp: Stamp) -> Header {
    Header { segment: SEGMENT, lane: Lane(0), stamp, previous: stamp, ..Header::of(kind, JOB) }
}

const MOVED: Row = Row {
    segment: SEGMENT,
    assignment: Assignment(2),
    owner: rangefold_proto::ShardId { server: rangefold_proto::ServerId(1), shard: 0 },
};

//= protocol.md T7
//= type=test
#[test]
fn the_view_goes_before_the_first_frame_that_needs_it() {
    let mut worker = Worker::new(Limits::standard(), &[table(10)], &view(1, &[(1, 0), (1, 0)]), &[0]);
    let (_, effects) = worker.push(0, 0..10);
    assert_eq!(effects, [Effect::Dialed(id(0))]);
    let effects = worker.linked(0, 1);
    let kinds: Vec<Kind> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Sent(sent) => Some(sent.header.kind),
            _ => None,
        })
        .collect();
    assert_eq!(kinds, [Kind::ViewUpdate, Kind::Push]);
}

//= protocol.md P1
//= type=test
#[test]
fn every_push_names_its_predecessor_on_the_segment() {
    let mut worker = worker();
    let (_, first) = worker.push(0, 0..10);
    worker.pull(0, 0..10, 0);
    let (_, second) = worker.push(0, 2..4);
    let names = |effects: &[Effect]| {
        let header = sent(effects, Kind::Push)[0].header;
        (header.stamp, header.previous)
    };
    // Expect: stamp 2 was the pull's.
    assert_eq!((names(&first), names(&second)), ((at(1), at(0)), (at(3), at(1))));
}

//= protocol.md P2
//= type=test
#[test]
fn tiles_cut_the_whole_push_and_each_carries_its_values() {
    let mut worker = worker_with(Limits { frame_bytes_max: 32, ..Limits::standard() });
    let (_, effects) = worker.push(0, 1..10);
    let frames = sent(&effects, Kind::Push);
    let cut: Vec<_> =
        frames.iter().map(|f| (f.header.range, f.header.first, f.header.last, f.body[0])).collect();
    assert_eq!(
        cut,
        [
            (KeyRange::new(1, 5), true, false, 0),
            (KeyRange::new(5, 9), false, false, 32),
            (KeyRange::new(9, 10), false, true, 64)
        ]
    );
}

//= protocol.md P6
//= type=test
#[test]
fn an_acknowledgement_ends_every_push_up_to_it_once() {
    let mut worker = worker();
    let tasks = [1, 2, 3].map(|_| worker.push(0, 0..10).0);
    assert_eq!(done(&worker.ack(1, 0, SEGMENT, at(2))), tasks[..2]);
    // Expect: repeated, late, and of another incarnation: nothing.
    assert_eq!(done(&worker.ack(1, 0, SEGMENT, at(2))), []);
    assert_eq!(done(&worker.ack(1, 0, SEGMENT, at(1))), []);
    assert_eq!(done(&worker.ack(1, 0, SEGMENT, of(2, 9))), []);
    assert_eq!(done(&worker.ack(1, 0, SEGMENT, at(3))), tasks[2..]);
}

//= protocol.md P7
//= type=test
#[test]
fn after_a_lost_connection_little_is_sent_again_at_once() {
    let mut worker = worker();
    worker.push(0, 0..10);
    worker.push(0, 0..10);
    worker.ack(1, 0, SEGMENT, at(1));
    assert_eq!(worker.tell(Input::Lost { link: LinkId(1) }), [Effect::Dialed(id(0))]);
    let effects = worker.linked(0, 2);
    assert_eq!(pushed(&effects), [at(2)]);
    assert_eq!(worker.core.counters().repeats, 1);
}

//= protocol.md P7
//= type=test
#[test]
fn after_a_lost_connection_much_is_asked_for_first() {
    let mut worker = worker_with(Limits { resume_bytes_min: 1, ..Limits::standard() });
    for _ in 0..3 {
        worker.push(0, 0..10);
    }
    worker.tell(Input::Lost { link: LinkId(1) });
    let effects = worker.linked(0, 2);
    assert_eq!((pushed(&effects), sent(&effects, Kind::Resume).len()), (vec![], 1));
    let mut body = Vec::new();
    wire::put_pair(&mut body, SEGMENT, at(2));
    let effects = worker.hear(2, Header { lane: Lane(0), ..Header::of(Kind::ResumeReply, JOB) }, &body);
    // Expect: stamps 1 and 2 have arrived. They are kept, not acknowledged: that is for an acknowledgement to say.
    assert_eq!((pushed(&effects), done(&effects)), (vec![at(3)], vec![]));
    assert_eq!(done(&worker.ack(2, 0, SEGMENT, at(3))).len(), 3);
}

//= protocol.md P3
//= type=test
#[test]
fn a_gap_sends_it_back() {
    let mut worker = worker();
    for _ in 0..3 {
        worker.push(0, 0..10);
    }
    assert_eq!(pushed(&worker.hear(1, of_push(Kind::Gap, at(1)), &[])), [at(2), at(3)]);
}

#[test]
fn busy_is_tried_again_after_a_rest() {
    let mut worker = worker();
    worker.push(0, 0..10);
    assert_eq!(pushed(&worker.hear(1, of_push(Kind::Busy, at(0)), &[])), []);
    let at_ns = worker.timeout.unwrap().0;
    assert_eq!(at_ns, Limits::standard().retry_ns);
    // Expect: what is pushed meanwhile waits behind it.
    let (_, effects) = worker.push(0, 0..10);
    assert_eq!(pushed(&effects), []);
    assert_eq!(pushed(&worker.tick(at_ns - 1)), []);
    assert_eq!(pushed(&worker.tick(at_ns)), [at(1), at(2)]);
}

#[test]
fn a_shard_that_lacks_the_view_gets_it_and_the_pushes_again() {
    let mut worker = worker();
    worker.push(0, 0..10);
    let effects = worker.hear(1, of_push(Kind::NeedView, at(0)), &[]);
    assert_eq!((sent(&effects, Kind::ViewUpdate).len(), pushed(&effects)), (1, vec![at(1)]));
}

#[test]
fn a_shard_that_lacks_the_row_gets_it_and_the_pushes_after_a_rest() {
    let mut worker = worker();
    worker.push(0, 0..10);
    let effects = worker.hear(1, of_push(Kind::NeedMap, at(0)), &[]);
    let rows = sent(&effects, Kind::MapDelta);
    let (row, _) = wire::rows(&rows[0].body).unwrap().next().unwrap();
    assert_eq!(row, Row { segment: SEGMENT, assignment: Assignment(1), owner: id(0) });
    let at_ns = worker.timeout.unwrap().0;
    assert_eq!(pushed(&worker.tick(at_ns)), [at(1)]);
}

//= protocol.md G1
//= type=test
#[test]
fn a_moved_segment_takes_its_unacknowledged_pushes_with_it() {
    let mut worker = worker();
    worker.push(0, 0..10);
    worker.push(0, 0..10);
    let effects = worker.row(1, of_push(Kind::WrongEpoch, at(0)), MOVED);
    assert_eq!((pushed(&effects), effects.contains(&Effect::Dialed(id(1)))), (vec![], true));
    let effects = worker.linked(1, 2);
    let frames = sent(&effects, Kind::Push);
    assert!(frames.iter().all(|f| f.link == LinkId(2) && f.header.assignment == Assignment(2)));
    assert_eq!(pushed(&effects), [at(1), at(2)]);
    // Expect: told the same row again, nothing moves; told an older one, neither.
    assert_eq!(pushed(&worker.row(2, Header::of(Kind::MapDelta, JOB), MOVED)), []);
    let old = Row { assignment: Assignment(1), owner: id(0), ..MOVED };
    assert_eq!(pushed(&worker.row(2, Header::of(Kind::MapDelta, JOB), old)), []);
    assert_eq!(worker.core.counters().reroutes, 1);
}

//= protocol.md T1
//= type=test
#[test]
fn a_close_names_what_was_pushed_and_to_a_new_owner_everything() {
    let mut worker = worker();
    worker.push(0, 0..10);
    assert_eq!(named(&worker.advance(0)), [(SEGMENT, Assignment(1), at(1))]);
    // Expect: nothing was pushed in round 1, so nothing need be named.
    let effects = worker.advance(0);
    assert_eq!((named(&effects), sent(&effects, Kind::Closed)[0].header.round), (vec![], 1));
    worker.row(1, Header::of(Kind::MapDelta, JOB), MOVED);
    let effects = worker.linked(1, 2);
    // Expect: the newest close, with the last push of all rounds that it closes.
    assert_eq!(named(&effects), [(SEGMENT, Assignment(2), at(1))]);
    assert_eq!(sent(&effects, Kind::Closed)[0].header.round, 1);
}

//= protocol.md T1
//= type=test
#[test]
fn a_close_does_not_name_a_push_of_the_round_that_is_open() {
    let mut worker = worker();
    worker.push(0, 0..10);
    worker.advance(0);
    worker.push(0, 0..10);
    worker.tell(Input::Lost { link: LinkId(1) });
    let effects = worker.linked(0, 2);
    assert_eq!(named(&effects), [(SEGMENT, Assignment(1), at(1))]);
}

#[test]
fn a_new_connection_hears_the_newest_close_also_when_nothing_is_unacknowledged() {
    let mut worker = worker();
    worker.advance(0);
    // Expect: others wait for that close, so the worker dials by itself.
    assert_eq!(worker.tell(Input::Lost { link: LinkId(1) }), [Effect::Dialed(id(0))]);
    assert_eq!(named(&worker.linked(0, 2)), [(SEGMENT, Assignment(1), at(0))]);
}

#[test]
fn a_failed_dial_is_repeated_ever_later() {
    let mut worker = Worker::new(Limits::standard(), &[table(10)], &view(1, &[(1, 0)]), &[0]);
    worker.push(0, 0..10);
    let mut waits = Vec::new();
    for _ in 0..9 {
        assert_eq!(worker.tell(Input::DialFailed { shard: id(0) }), []);
        let at = worker.timeout.unwrap().0;
        waits.push((at - worker.now.0) / Limits::standard().retry_ns);
        assert_eq!(worker.tick(at - 1), []);
        assert_eq!(worker.tick(at), [Effect::Dialed(id(0))]);
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 64, 64]);
    assert_eq!(worker.core.unreachable().collect::<Vec<_>>(), [id(0)]);
    // Expect: the first success forgets them.
    assert_eq!(pushed(&worker.linked(0, 1)), [at(1)]);
}

//= protocol.md P10
//= type=test
#[test]
fn a_fenced_lane_ends_its_tasks() {
    let mut worker = worker();
    let (task, _) = worker.push(0, 0..10);
    // Expect: the fence of an incarnation that this worker does not hold is not its own.
    assert_eq!(worker.hear(1, of_push(Kind::Fenced, of(0, 3)), &[]), []);
    let effects = worker.hear(1, of_push(Kind::Fenced, at(1)), &[]);
    assert_eq!(effects, [Effect::Ended(task, Err(TaskError::Fenced(Lane(0)))), Effect::Fenced(Lane(0))]);
    assert_eq!(worker.try_push(0, 0..10), Err(IssueError::NoLane(Lane(0))));
    assert_eq!(worker.core.open_tasks(), 0);
}

#[test]
fn a_newer_view_fences_too() {
    let mut worker = worker();
    let effects = worker.tell(Input::View(view(2, &[(2, 0), (1, 0)])));
    assert!(effects.contains(&Effect::Fenced(Lane(0))), "{effects:?}");
}

/// What a fenced lane pushed in its round is no longer counted against what a round may hold: it is pushed again.
#[test]
fn a_lane_that_comes_back_pushes_its_round_again() {
    let limits = Limits { push_bytes_per_link: 200, ..Limits::standard() };
    let mut worker = Worker::new(limits, &[aggregated(10)], &view(1, &[(1, 0)]), &[0]);
    worker.linked(0, 1);
    for incarnation in 1..4 {
        worker.push(0, 0..10);
        worker.push(0, 0..10);
        assert!(matches!(worker.try_push(0, 0..10), Err(IssueError::TooLarge { bytes: 240, max: 200 })));
        let next = view(incarnation + 1, &[(incarnation + 1, 0)]);
        let effects = worker.tell(Input::View(next.clone()));
        assert!(effects.contains(&Effect::Fenced(Lane(0))), "{effects:?}");
        worker.tell(Input::Run(vec![*next.member(Lane(0)).unwrap()]));
    }
}

#[test]
fn a_refused_push_ends_with_the_reason() {
    let mut worker = worker();
    let (task, _) = worker.push(0, 0..10);
    let header = Header { round: Refusal::NoSuchSegment as u32, ..of_push(Kind::Refused, at(0)) };
    let refused = TaskError::Refused(Refusal::NoSuchSegment);
    assert_eq!(worker.hear(1, header, &[]), [Effect::Ended(task, Err(refused))]);
}

#[test]
fn pushes_after_refused_ones_name_the_one_before_them() {
    let mut worker = worker();
    worker.push(0, 0..10);
    worker.ack(1, 0, SEGMENT, at(1));
    let refused = [worker.push(0, 0..10).0, worker.push(0, 0..10).0];
    let header = Header { round: Refusal::NoSuchSegment as u32, ..of_push(Kind::Refused, at(0)) };
    let ended = |task| Effect::Ended(task, Err(TaskError::Refused(Refusal::NoSuchSegment)));
    assert_eq!(worker.hear(1, header, &[]), refused.map(ended));
    let (_, effects) = worker.push(0, 0..10);
    // Expect: the owner has nothing of the refused ones, so the chain goes on without them.
    assert_eq!(sent(&effects, Kind::Push)[0].header.previous, at(1));
}

//= protocol.md B1
//= type=test
#[test]
fn a_worker_never_sends_more_than_was_granted() {
    let mut worker = worker_with(Limits { push_bytes_per_link: 200, ..Limits::standard() });
    let issued: Vec<Stamp> = (0..5).flat_map(|_| pushed(&worker.push(0, 0..10).1)).collect();
    assert_eq!(issued, [at(1), at(2)]);
    let credit = |credit| Extension { credit: Some(credit), ..Extension::default() };
    let ack = Header { lane: Lane(0), ..Header::of(Kind::Ack, JOB) };
    assert_eq!(pushed(&worker.hear_extended(1, ack, credit(80), &[])), [at(3)]);
    // Expect: late and repeated credit is nothing new; more than was sent is no more than was sent.
    assert_eq!(pushed(&worker.hear_extended(1, ack, credit(40), &[])), []);
    assert_eq!(pushed(&worker.hear_extended(1, ack, credit(80), &[])), []);
    assert_eq!(pushed(&worker.hear_extended(1, ack, credit(u64::MAX), &[])), [at(4), at(5)]);
}

//= protocol.md B1
//= type=test
#[test]
fn pulls_in_excess_wait_for_a_place() {
    let mut worker = worker_with(Limits { pulls_per_link: 2, ..Limits::standard() });
    let first = worker.pull(0, 0..10, 0).1;
    worker.pull(0, 0..10, 0);
    let (third, effects) = worker.pull(0, 0..10, 0);
    assert_eq!(sent(&effects, Kind::Pull).len(), 0);
    let effects = worker.reply(1, &sent(&first, Kind::Pull)[0].header);
    assert_eq!(sent(&effects, Kind::Pull)[0].header.stamp, third.stamp);
}

#[test]
fn sends_in_excess_wait_for_a_completion() {
    let mut worker = worker_with(Limits { sends_per_link: 2, ..Limits::standard() });
    worker.sends_complete = false;
    let issued: Vec<Stamp> = (0..4).flat_map(|_| pushed(&worker.push(0, 0..10).1)).collect();
    assert_eq!(issued, [at(1), at(2)]);
    // Expect: one frame, which takes both that have waited for it.
    assert_eq!(pushed(&worker.tell(Input::Sent { link: LinkId(1), count: 1 })), [at(3), at(4)]);
}

//= protocol.md B6
//= type=test
#[test]
fn a_full_client_says_so_and_issues_nothing() {
    let mut worker = worker_with(Limits { tasks_max: 2, ..Limits::standard() });
    worker.push(0, 0..10);
    worker.push(0, 0..10);
    assert_eq!(worker.try_push(0, 0..10), Err(IssueError::Full));
    worker.ack(1, 0, SEGMENT, at(1));
    assert_eq!(worker.push(0, 0..10).0.stamp, at(3));

    let mut worker = worker_with(Limits { unacknowledged_bytes_max: 100, ..Limits::standard() });
    worker.push(0, 0..10);
    assert_eq!(worker.try_push(0, 0..10), Err(IssueError::Full));
    // Expect: what could never be under way is told apart from what must wait.
    let mut worker = worker_with(Limits { unacknowledged_bytes_max: 79, ..Limits::standard() });
    assert_eq!(worker.try_push(0, 0..10), Err(IssueError::TooLarge { bytes: 80, max: 79 }));
}

//= protocol.md B6
//= type=test
#[test]
fn what_a_client_pushes_in_one_aggregated_round_must_fit_its_credit() {
    let limits = Limits { push_bytes_per_link: 159, ..Limits::standard() };
    let two = view(1, &[(1, 0), (1, 0)]);
    let mut worker = Worker::new(limits, &[aggregated(10)], &two, &[0, 1]);
    assert!(worker.try_push(0, 0..10).is_ok());
    // Expect: the round is not applied before both have come, and the second would wait for the first's credit for ever.
    assert_eq!(worker.try_push(1, 0..10), Err(IssueError::TooLarge { bytes: 160, max: 159 }));
    assert!(worker.try_push(1, 0..9).is_ok());
}

#[test]
fn wrong_requests_are_refused_with_what_is_there() {
    let mut worker = worker();
    assert_eq!(worker.try_push(1, 0..10), Err(IssueError::NoLane(Lane(1))));
    let range = KeyRange::new(5, 11);
    assert_eq!(worker.try_push(0, 5..11), Err(IssueError::Range { range, len: 10 }));
    assert_eq!(worker.try_push(0, 5..5), Err(IssueError::Range { range: KeyRange::new(5, 5), len: 10 }));
    let payload = Vec::new().into();
    let arguments = wire::Arguments::default();
    let push = rangefold_proto::client::Push {
        lane: Lane(0),
        table: TableId(3),
        range: KeyRange::new(0, 1),
        payload,
        arguments,
    };
    assert_eq!(worker.core.push(push), Err(IssueError::NoTable(TableId(3))));
}

#[test]
fn a_pull_that_one_of_its_own_lanes_holds_up_stays_at_home() {
    let mut worker = Worker::new(Limits::standard(), &[table(10)], &view(1, &[(1, 0), (1, 0)]), &[0, 1]);
    worker.linked(0, 1);
    worker.advance(0);
    // Expect: lane 1 is in round 0; sent now, the pull would hold a place that lane 1 may need.
    assert_eq!(sent(&worker.pull(0, 0..10, 1).1, Kind::Pull).len(), 0);
    assert_eq!(sent(&worker.advance(1), Kind::Pull).len(), 1);
}

//= protocol.md K5
//= type=test
#[test]
fn a_cancelled_pull_ends_at_once_and_its_place_comes_back_with_its_answer() {
    let mut worker = worker_with(Limits { pulls_per_link: 1, ..Limits::standard() });
    let (task, effects) = worker.pull(0, 0..10, 0);
    let header = sent(&effects, Kind::Pull)[0].header;
    worker.core.cancel(task);
    let effects = worker.drain();
    assert_eq!(sent(&effects, Kind::Cancel).len(), 1);
    assert!(effects.contains(&Effect::Ended(task, Err(TaskError::Cancelled))));
    assert_eq!(sent(&worker.pull(0, 0..10, 0).1, Kind::Pull).len(), 0);
    // Expect: the answer is nobody's; the place is the next pull's.
    let effects = worker.reply(1, &header);
    assert_eq!(
        (sent(&effects, Kind::Pull).len(), effects.iter().any(|e| matches!(e, Effect::Delivered(..)))),
        (1, false)
    );
}

//= protocol.md T4
//= type=test
#[test]
fn a_round_starts_when_the_tasks_of_rounds_before_tau_have_ended() {
    let mut worker = worker();
    worker.push(0, 0..10);
    worker.advance(0);
    let may = |worker: &Worker, tau| worker.core.may_start(Lane(0), tau);
    assert_eq!((may(&worker, 0), may(&worker, 1)), (false, true));
    assert_eq!(worker.core.acknowledged().collect::<Vec<_>>(), [(Lane(0), 0)]);
    worker.ack(1, 0, SEGMENT, at(1));
    assert!(may(&worker, 0));
    assert_eq!(worker.core.acknowledged().collect::<Vec<_>>(), [(Lane(0), 1)]);
}

#[test]
fn frames_that_only_workers_send_are_cut_off() {
    for kind in [Kind::Push, Kind::Pull, Kind::Resume, Kind::Closed, Kind::Cancel, Kind::ViewUpdate] {
        assert_eq!(worker().hear(1, Header::of(kind, JOB), &[]), [Effect::Disconnected(LinkId(1))]);
    }
    for kind in [Kind::Ack, Kind::ResumeReply, Kind::MapDelta, Kind::WrongEpoch] {
        assert_eq!(worker().hear(1, Header::of(kind, JOB), &[0; 5]), [Effect::Disconnected(LinkId(1))]);
    }
}

#[test]
fn rows_of_unknown_segments_and_answers_to_unknown_pulls_change_nothing() {
    let mut worker = worker();
    let unknown = Row { segment: SegmentId(77), ..MOVED };
    assert_eq!(worker.row(1, Header::of(Kind::MapDelta, JOB), unknown), []);
    let pull = Header { range: KeyRange::new(0, 10), ..of_push(Kind::Pull, at(9)) };
    assert_eq!(worker.reply(1, &pull), []);
}
