//! Frames that no worker and no server of ours would send: answered or cut off, counted, never a panic.

use std::rc::Rc;

use proptest::prelude::*;
use rangefold_proto::client::{ClientCore, Grant, Push};
use rangefold_proto::server::{Input, Output, SendBody};
use rangefold_proto::wire::{Arguments, Extension, Header, Kind, PullOptions, Refusal};
use rangefold_proto::{Assignment, JobId, KeyRange, Lane, Limits, LinkId, Nanos, SegmentId, Stamp, TableId};

use crate::shard::{
    Effect, JOB, LINK, SEGMENT, Shard, applied, id, kinds, map_of, pull, push, refusal, tile,
};
use crate::{aggregated, at, of, table, view};

fn shard() -> Shard {
    Shard::new(Limits::test_min(), &[table(10), aggregated(10)], &view(1, &[(1, 0), (1, 0)]))
}

/// Ends the connection and applies nothing.
#[track_caller]
fn is_cut_off(effects: &[Effect]) {
    assert_eq!(effects, [Effect::Disconnected(LINK)]);
}

#[test]
fn a_push_that_is_not_as_long_as_its_range_says_is_cut_off() {
    let good = push(0, at(1), at(0), 0..4);
    for wrong in [
        Header { value_bytes: 24, ..good },
        Header { value_bytes: 40, ..good },
        Header { value_bytes: 0, ..good },
        // Expect: a dense push carries no keys.
        Header { key_bytes: 8, ..good },
        // Expect: keys partly beyond the segment, wholly beyond it, and so many that their bytes overflow.
        Header { range: KeyRange::new(8, 12), ..good },
        Header { range: KeyRange::new(u64::MAX - 4, u64::MAX), ..good },
        Header { range: KeyRange::new(0, u64::MAX), value_bytes: u32::MAX, ..good },
        Header { range: KeyRange::new(0, u64::MAX), ..good },
        // Expect: a tile of nothing.
        tile(Header { range: KeyRange::new(3, 3), value_bytes: 0, ..good }, false, false),
    ] {
        let mut shard = shard();
        let extension = Extension::default();
        let payload: Rc<[u8]> = Rc::from([]);
        is_cut_off(&shard.tell(Input::Push { link: LINK, header: wrong, extension, payload }));
        assert_eq!(shard.core.counters().violations, 1, "{wrong:?}");
        assert_eq!(shard.core.counters().pushes, 0);
    }
}

//= protocol.md P11
//= type=test
#[test]
fn a_push_of_nothing_moves_the_clock_and_no_value() {
    for range in [KeyRange::new(3, 3), KeyRange::new(0, 0)] {
        let mut shard = shard();
        let effects = shard.push(Header { range, value_bytes: 0, ..push(0, at(1), at(0), 0..0) });
        assert_eq!(applied(&effects), []);
        assert_eq!(shard.clock(0).unwrap().lowest(), at(1));
    }
}

#[test]
fn a_pull_of_keys_that_are_not_there_is_refused() {
    let good = pull(0, at(1), 0..4);
    for range in [KeyRange::new(8, 12), KeyRange::new(0, u64::MAX), KeyRange::new(0, 10)] {
        // Expect: the last is the whole segment, and more than a frame holds under these limits.
        assert_eq!(refusal(&shard().pull(Header { range, ..good }, 0, &[])), Refusal::Shape, "{range:?}");
    }
}

#[test]
fn a_frame_of_another_job_is_cut_off() {
    is_cut_off(&shard().push(Header { job: JobId(2), ..push(0, at(1), at(0), 0..4) }));
    is_cut_off(&shard().control(LINK, Header::of(Kind::Closed, JobId(2)), &[]));
}

#[test]
fn frames_that_only_servers_send_are_cut_off() {
    for kind in [
        Kind::PullReply,
        Kind::Ack,
        Kind::Gap,
        Kind::Refused,
        Kind::Fenced,
        Kind::Busy,
        Kind::WrongEpoch,
        Kind::NeedMap,
        Kind::NeedView,
        Kind::ResumeReply,
        Kind::Push,
    ] {
        is_cut_off(&shard().control(LINK, Header::of(kind, JOB), &[]));
    }
}

#[test]
fn malformed_bodies_are_cut_off() {
    let long = [0; 68];
    for (kind, body) in [
        (Kind::Closed, &[0; 15][..]),
        (Kind::ViewUpdate, &[0; 13][..]),
        (Kind::MapDelta, &[0; 23][..]),
        (Kind::Resume, &[0; 3][..]),
        // Expect: whole, and longer than a frame may be.
        (Kind::Resume, &long[..]),
    ] {
        is_cut_off(&shard().control(
            LINK,
            Header { lane: Lane(0), stamp: at(0), ..Header::of(kind, JOB) },
            body,
        ));
    }
}

#[test]
fn a_view_of_lanes_out_of_order_or_of_too_many_is_cut_off() {
    let mut twice = view(2, &[(1, 0), (1, 0)]);
    twice.members[1].lane = Lane(0);
    is_cut_off(&shard().show(LINK, &twice));
    is_cut_off(&shard().show(LINK, &view(2, &[(1, 0); 17])));
    is_cut_off(&shard().show(LINK, &view(2, &[(1 << 24, 0)])));
}

#[test]
fn frames_on_a_connection_that_is_gone_change_nothing() {
    let mut shard = shard();
    shard.tell(Input::Lost { link: LINK });
    assert_eq!(shard.push(push(0, at(1), at(0), 0..4)), []);
    assert_eq!(kinds(&shard.pull(pull(0, at(2), 0..4), 0, &[])), []);
    assert_eq!(kinds(&shard.resume(0, at(0), &[SEGMENT])), []);
    assert_eq!(shard.tell(Input::Lost { link: LINK }), []);
}

/// The last round there is: a worker never gets there, noise does.
#[test]
fn a_close_of_the_last_round_is_survived() {
    shard().close(0, at(0), u32::MAX, &[(SEGMENT, at(0))]);
}

/// The tile of a frame without values is cut from its range all the same.
#[test]
fn a_tile_beyond_its_segment_is_cut_off() {
    for range in [KeyRange::new(11, 11), KeyRange::new(99, 12)] {
        let header = Header { range, value_bytes: 0, ..push(0, at(1), at(0), 0..0) };
        is_cut_off(&shard().push(tile(header, true, false)));
    }
}

/// Every time, whatever was cut off before.
#[test]
fn pulls_of_nothing_are_cut_off() {
    let mut shard = shard();
    for time in 1..10 {
        // Expect: no honest peer asks for nothing.
        is_cut_off(&shard.pull(pull(0, at(time), 3..3), 0, &[]));
    }
}

/// A peer that names ever more segments and reads no answer.
#[test]
fn answers_to_segments_that_are_not_there_are_bounded() {
    let mut shard = Shard::new(Limits::test_min(), &[table(10)], &view(1, &[(1, 0)]));
    shard.sends_complete = false;
    for segment in 0..1000 {
        let header = Header {
            segment: SegmentId(0x0100_0000 + segment),
            value_bytes: 0,
            range: KeyRange::new(0, 0),
            ..push(0, at(1), at(0), 0..1)
        };
        shard.push(header);
    }
    let mut queued = 0;
    while !shard.tell(Input::Sent { link: LINK, reply: false, count: 1 }).is_empty() {
        queued += 1;
    }
    assert!(queued < 200, "{queued} answers were kept for one connection");
}

fn kind() -> impl Strategy<Value = Kind> {
    proptest::sample::select(vec![
        Kind::Push,
        Kind::Pushes,
        Kind::Pull,
        Kind::PullReply,
        Kind::Ack,
        Kind::Gap,
        Kind::Refused,
        Kind::Fenced,
        Kind::Busy,
        Kind::WrongEpoch,
        Kind::NeedMap,
        Kind::NeedView,
        Kind::Resume,
        Kind::ResumeReply,
        Kind::Closed,
        Kind::ViewUpdate,
        Kind::Cancel,
        Kind::MapDelta,
    ])
}

/// A number near those that mean something, or any.
fn near(limit: u64) -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..limit, 1 => any::<u64>()]
}

prop_compose! {
    fn stamp()(incarnation in 0u32..4, time in 0u64..6, noise in any::<u64>(), odd in 0..20) -> Stamp {
        if odd == 0 { Stamp(noise) } else { of(incarnation, time) }
    }
}

prop_compose! {
    fn header()(
        kind in kind(), first in any::<bool>(), last in any::<bool>(), job in prop_oneof![9 => Just(1u16), 1 => Just(2u16)], honest in any::<bool>(),
        lane in 0u32..4, round in prop_oneof![8 => 0u32..6, 1 => any::<u32>()], numbers in (near(4), near(5)), range in (near(12), near(12)),
        bytes in near(64), stamps in (stamp(), stamp()),
    ) -> Header {
        let (start, end) = (range.0.min(range.1), range.0.max(range.1));
        let range = KeyRange::new(start, end);
        let table = TableId((numbers.0 & 3) as u16);
        let value_bytes = if honest { range.len().saturating_mul(8).min(1 << 20) } else { bytes & 0xff };
        Header {
            kind, first, last, job: JobId(job), lane: Lane(lane), round, range,
            key_bytes: u32::from(!honest) * 8,
            value_bytes: value_bytes as u32,
            segment: SegmentId::new(table, ((numbers.1 / 4) & 0xffff) as u16),
            assignment: Assignment((numbers.1 & 3) as u32),
            stamp: stamps.0, previous: stamps.1,
        }
    }
}

prop_compose! {
    fn extension()(
        credit in proptest::option::of(any::<u64>()), rounds_needed in 0u32..6, patience_ms in 0u32..3,
        after in proptest::collection::vec((0u32..4, stamp()), 0..3),
    ) -> Extension {
        Extension {
            credit,
            pull: Some(PullOptions { rounds_needed, patience_ms }),
            after: after.into_iter().map(|(lane, stamp)| (Lane(lane), stamp)).collect(),
            arguments: Arguments::default(),
        }
    }
}

proptest! {
    /// Whatever comes: no panic; what is applied lies in its segment and its payload; no more is held than was granted.
    #[test]
    fn a_shard_survives_noise(
        frames in proptest::collection::vec((header(), extension(), proptest::collection::vec(any::<u8>(), 0..80)), 1..60),
    ) {
        let limits = Limits::test_min();
        let view = view(1, &[(1, 0), (2, 1), (1, 0)]);
        let mut shard = Shard::new(limits, &[table(10), aggregated(10)], &view);
        for (header, extension, body) in frames {
            shard.now = Nanos(shard.now.0 + 300_000);
            if header.kind == Kind::Push {
                // The shells have checked that the body is as long as the head says.
                let payload: Rc<[u8]> = vec![0; header.value_bytes as usize].into();
                shard.core.handle_input(shard.now, Input::Push { link: LINK, header, extension, payload });
            } else if header.kind == Kind::Pushes {
                let keys = &body[..body.len().min(header.key_bytes as usize)];
                let payload: Rc<[u8]> = vec![0; keys.len() + header.value_bytes as usize].into();
                shard.core.handle_input(shard.now, Input::Pushes { link: LINK, header, keys, payload });
            } else {
                shard.core.handle_input(shard.now, Input::Control { link: LINK, header, extension, body: &body });
            }
            let mut cut = false;
            loop {
                match shard.core.poll_output(true) {
                    Output::Apply { values, bytes, payload, .. } | Output::Contribute { values, bytes, payload, .. } => {
                        prop_assert!(KeyRange::new(0, 10).covers(values));
                        prop_assert_eq!(u64::from(bytes.end - bytes.start), values.len() * 8);
                        prop_assert!(bytes.end as usize <= payload.len());
                    }
                    Output::Send { link } => {
                        let (header, body) = (shard.core.frame().header, shard.core.frame().body);
                        if let SendBody::Gather { range, .. } = body {
                            prop_assert!(KeyRange::new(0, 10).covers(range) && range.len() * 8 <= 64);
                        }
                        prop_assert!(body != SendBody::Control || header.value_bytes as usize == shard.core.control().len());
                        let reply = matches!(body, SendBody::Gather { .. });
                        shard.core.handle_input(shard.now, Input::Sent { link, reply, count: 1 });
                    }
                    Output::Disconnect { .. } => cut = true,
                    Output::Timeout(_) => break,
                    Output::Finish { .. } => {}
                }
            }
            if cut {
                // As a shell does, and a peer that comes again: else its credit is used up after a frame or two.
                shard.tell(Input::Lost { link: LINK });
                shard.tell(Input::Linked { link: LINK });
                shard.show(LINK, &view);
            }
            prop_assert!(shard.core.parked_count() <= usize::from(limits.pulls_per_link));
        }
    }

    /// The same for a worker: no panic, what it has to say comes to an end, no more open tasks than its bound.
    #[test]
    fn a_worker_survives_noise(
        frames in proptest::collection::vec((header(), extension(), proptest::collection::vec(any::<u8>(), 0..80)), 1..60),
    ) {
        let limits = Limits::test_min();
        let mut core: ClientCore<Rc<[u8]>> = ClientCore::new(JOB, limits);
        let now = Nanos(0);
        core.handle_input(now, rangefold_proto::client::Input::Map(map_of(&[table(10), aggregated(10)], id(0))));
        core.handle_input(now, rangefold_proto::client::Input::View(view(1, &[(1, 0), (2, 1), (1, 0)])));
        let members = core.view().members[..2].to_vec();
        core.handle_input(now, rangefold_proto::client::Input::Run(members));
        let (link, grant) = (LinkId(1), Grant { push_bytes: 256, pulls: 3 });
        core.handle_input(now, rangefold_proto::client::Input::Linked { shard: id(0), link, grant });
        for (time, (header, extension, body)) in (1u64..).zip(frames) {
            let now = Nanos(time * 300_000);
            let payload: Rc<[u8]> = vec![0; 32].into();
            let range = KeyRange::new(time % 6, time % 6 + 4);
            let push = Push { lane: Lane(0), table: TableId(0), range, payload, arguments: Arguments::default() };
            // A fenced lane or a full client takes none.
            let _ = core.push(push);
            let input = if header.kind == Kind::PullReply {
                let payload = vec![0; header.value_bytes as usize].into();
                rangefold_proto::client::Input::Reply { link, header, extension, payload }
            } else {
                rangefold_proto::client::Input::Control { link, header, extension, body: &body }
            };
            core.handle_input(now, input);
            let mut drained = false;
            for _ in 0..10_000 {
                match core.poll_output(true) {
                    rangefold_proto::client::Output::Send { link } => {
                        core.handle_input(now, rangefold_proto::client::Input::Sent { link, count: 1 });
                    }
                    rangefold_proto::client::Output::Timeout(_) => {
                        drained = true;
                        break;
                    }
                    _ => {}
                }
            }
            prop_assert!(drained);
            prop_assert!(core.open_tasks() <= limits.tasks_max as usize);
        }
    }
}

#[test]
fn noise_from_a_worker_is_never_applied_to_the_wrong_lane() {
    let mut shard = shard();
    // Expect: lane 9 is in no view; its frame moves no clock of lane 0.
    shard.push(push(9, at(1), at(0), 0..4));
    assert_eq!(applied(&shard.push(push(0, at(1), at(0), 0..4))).len(), 1);
}
