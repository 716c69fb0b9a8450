//! What a client says, one frame at a time: built when there is room to send it, from what waits by then.
//! Knows frames and the order of their importance. Called by `poll_output`.
//! Source: protocol.md §12; T1, T7, P7, B1.

use alloc::vec::Vec;
use core::mem;

use crate::id::{Assignment, LinkId, SegmentId, ShardId};
use crate::key::KeyRange;
use crate::time::Stamp;
use crate::wire::{self, Extension, Header, Kind, PullOptions, SMALL_BYTES, Small};

use super::link::Close;
use super::{ClientCore, Frame, Output, PieceId, SendBody};

/// Pushes of at most so many bytes go together: larger ones cost more to copy than a head does.
pub(super) const GATHER_BYTES_MAX: u64 = 512;
/// Bytes of a frame of several pushes, at most: some fifty of 64 f32, which is where more saves nothing any more.
const GATHERED_BYTES_MAX: u64 = 16 << 10;

impl<P: Clone> ClientCore<P> {
    /// Whether `poll_output` has an effect to tell, whatever may be sent.
    #[must_use]
    #[inline]
    pub fn has_effects(&self) -> bool {
        !self.effects.is_empty()
    }

    /// The frame of the last [`Output::Send`], until the next `poll_output`.
    #[inline]
    pub const fn frame(&mut self) -> &mut Frame<P> {
        &mut self.frame
    }

    /// The payloads of a frame with [`SendBody::Gathered`], in order; to be drained.
    #[inline]
    pub const fn gathered(&mut self) -> &mut Vec<(P, core::ops::Range<usize>)> {
        &mut self.gathered
    }

    /// The next thing to do. `Timeout` when there is none. Without `may_send` (the shell has no memory for another
    /// frame just now) effects only.
    pub fn poll_output(&mut self, may_send: bool) -> Output<P> {
        loop {
            if let Some(effect) = self.effects.pop_front() {
                return effect;
            }
            let Some(shard) = may_send.then(|| self.speakers.pop_front()).flatten() else {
                return Output::Timeout(self.retries.first().map(|&(at, _)| at));
            };
            if let Some(link) = self.speak(shard) {
                return Output::Send { link };
            }
        }
    }

    /// A connection's turn to say one frame. Says on which.
    fn speak(&mut self, shard: ShardId) -> Option<LinkId> {
        let number = self.view.number;
        let link = self.links.get_mut(shard)?;
        link.listed = false;
        let Some(id) = link.id() else {
            self.dial_if_wanted(shard);
            return None;
        };
        if !link.has_room() {
            return None;
        }
        let owes_word = link.owes_word(number);
        if !(owes_word && self.say_word(shard) || self.say_data(shard, id)) {
            return None;
        }
        let link = self.links.get_mut(shard)?;
        link.take_room();
        if link.may_have_more(number) && !link.listed {
            link.listed = true;
            self.speakers.push_back(shard);
        }
        Some(id)
    }

    /// A frame that others wait for: these come first.
    fn say_word(&mut self, shard: ShardId) -> bool {
        self.say_view(shard)
            || self.say_rows(shard)
            || self.say_resume(shard)
            || self.say_close(shard)
            || self.say_cancel(shard)
    }

    /// A push's frame or a pull, in turn.
    fn say_data(&mut self, shard: ShardId, id: LinkId) -> bool {
        let Some(link) = self.links.get_mut(shard) else { return false };
        let (pushes, pulls) = (link.has_flows(), !link.pieces.is_empty());
        if mem::take(&mut link.pushed_last) && pulls && self.say_pull(shard, id) {
            return true;
        }
        if pushes && self.say_push(shard) {
            self.link_mut(shard).pushed_last = true;
            return true;
        }
        pulls && self.say_pull(shard, id)
    }

    /// Says what `control` holds.
    fn say_controlled(&mut self, header: Header) -> bool {
        let value_bytes = u32::try_from(self.control.len()).unwrap_or(u32::MAX);
        let body = if value_bytes == 0 { SendBody::Empty } else { SendBody::Control };
        self.frame =
            Frame { header: Header { value_bytes, ..header }, extension: Extension::default(), body };
        true
    }

    //= protocol.md T7
    fn say_view(&mut self, shard: ShardId) -> bool {
        let number = self.view.number;
        let link = self.link_mut(shard);
        if link.view_sent >= number {
            return false;
        }
        link.view_sent = number;
        self.control.clear();
        self.view.encode(&mut self.control);
        self.say_controlled(Header { round: number, ..Header::of(Kind::ViewUpdate, self.job) })
    }

    fn say_rows(&mut self, shard: ShardId) -> bool {
        let Some(segment) = self.link_mut(shard).rows_due.pop_first() else { return false };
        self.control.clear();
        if let Some(row) = self.map.rows.get(&segment) {
            wire::put_row(&mut self.control, row, self.map.epoch);
        }
        self.say_controlled(Header { segment, ..Header::of(Kind::MapDelta, self.job) })
    }

    //= protocol.md P7
    fn say_resume(&mut self, shard: ShardId) -> bool {
        let room = (self.limits.frame_bytes_max as usize / 4).max(1);
        let link = self.link_mut(shard);
        let Some(&(lane, _)) = link.asks.first() else { return false };
        let segments: Vec<SegmentId> = link
            .asks
            .iter()
            .take_while(|(of, _)| *of == lane)
            .take(room)
            .map(|&(_, segment)| segment)
            .collect();
        self.control.clear();
        for &segment in &segments {
            self.link_mut(shard).asks.remove(&(lane, segment));
            self.control.extend_from_slice(&segment.0.to_le_bytes());
        }
        let floor = self.lanes.get(lane).map_or(Stamp(0), |state| state.member.incarnation.floor());
        let header = Header { lane, stamp: floor, previous: floor, ..Header::of(Kind::Resume, self.job) };
        self.say_controlled(header)
    }

    //= protocol.md T1
    fn say_close(&mut self, shard: ShardId) -> bool {
        let link = self.link_mut(shard);
        let due = link.closes.iter_mut().find(|(_, close)| close.due);
        link.closes_due = due.is_some();
        let Some((&lane, close)) = due else { return false };
        let Close { named, .. } = mem::take(close);
        let Some(state) = self.lanes.get(lane) else { return false };
        let floor = state.member.incarnation.floor();
        self.control.clear();
        for segment in named {
            // A segment that went elsewhere is named to its new owner.
            let Some(row) = self.map.rows.get(&segment).filter(|row| row.owner == shard) else { continue };
            let last = self.flows.get((lane, segment)).map_or(floor, super::flow::Flow::closed);
            wire::put_named(&mut self.control, (segment, row.assignment, last));
        }
        let header = Header {
            lane,
            round: state.round - 1,
            stamp: floor,
            previous: floor,
            ..Header::of(Kind::Closed, self.job)
        };
        self.say_controlled(header)
    }

    //= protocol.md K5
    fn say_cancel(&mut self, shard: ShardId) -> bool {
        let Some((task, segment, range)) = self.link_mut(shard).cancels.pop_front() else { return false };
        let (lane, stamp) = (task.lane, task.stamp);
        let header =
            Header { lane, segment, stamp, range, previous: stamp, ..Header::of(Kind::Cancel, self.job) };
        self.control.clear();
        self.say_controlled(header)
    }

    fn say_push(&mut self, shard: ShardId) -> bool {
        let Some(link) = self.links.get_mut(shard) else { return false };
        while let Some(place) = link.first_flow() {
            let Some(((lane, segment), flow)) = self.flows.at_mut(place) else {
                link.pop_flow();
                continue;
            };
            let Some(bytes) = flow.next_frame_bytes() else {
                flow.queued = None;
                link.pop_flow();
                continue;
            };
            if !link.may_push(bytes) {
                return false;
            }
            let is_small = flow.next_small().is_some();
            let header = &mut self.frame.header;
            (header.kind, header.job, header.segment, header.lane) = (Kind::Push, self.job, segment, lane);
            flow.next_frame(bytes, &mut self.frame, &mut self.counters);
            link.pushed(bytes);
            // It comes again after the others, if it has more.
            let next = flow.next_round();
            flow.queued = link.requeue_first(next, &mut self.sequence);
            if is_small {
                self.gather(shard, bytes);
            }
            return true;
        }
        false
    }

    /// Adds to a small push those that would follow it in frames of their own: one head, one check and one clock's worth of
    /// work on both sides for many. A frame of one stays a push.
    fn gather(&mut self, shard: ShardId, bytes: u64) {
        let Some(link) = self.links.get_mut(shard) else { return };
        let entry = SMALL_BYTES as u64;
        let room = GATHERED_BYTES_MAX.min(self.limits.frame_bytes_max.into());
        let mut used = entry + bytes;
        let header = &mut self.frame.header;
        self.gathered.clear();
        while let Some(((lane, segment), flow)) = link.first_flow().and_then(|place| self.flows.at_mut(place))
        {
            let Some((round, bytes)) = flow.next_small() else { break };
            // The first one's entry is not paid for before there is a second.
            let more = if self.gathered.is_empty() { 2 * entry + bytes } else { entry + bytes };
            let fits = used + entry + bytes <= room && link.may_push(more);
            if !fits || (lane, round) != (header.lane, header.round) {
                break;
            }
            if let SendBody::Values { payload, bytes } = mem::take(&mut self.frame.body) {
                self.control.clear();
                wire::put_small(&mut self.control, &Small::of(header));
                self.gathered.push((payload, bytes));
            }
            flow.gather_next(segment, &mut self.control, &mut self.gathered, &mut self.counters);
            link.pushed(more);
            used += entry + bytes;
            let next = flow.next_round();
            flow.queued = link.requeue_first(next, &mut self.sequence);
        }
        if !self.gathered.is_empty() {
            header.kind = Kind::Pushes;
            (header.first, header.last) = (false, false);
            (header.segment, header.assignment) = (SegmentId(0), Assignment(0));
            (header.range, header.previous) = (KeyRange::default(), header.stamp);
            // Both are bounded by a frame.
            header.key_bytes = u32::try_from(self.control.len()).unwrap_or(u32::MAX);
            header.value_bytes = u32::try_from(used).unwrap_or(u32::MAX) - header.key_bytes;
            self.frame.body = SendBody::Gathered;
        }
    }

    fn say_pull(&mut self, shard: ShardId, id: LinkId) -> bool {
        let closed = self.lowest_round();
        while self.link_mut(shard).may_pull() {
            let Some(piece_id): Option<PieceId> = self.link_mut(shard).pieces.pop_front() else {
                return false;
            };
            let Some(piece) = self.pieces.get_mut(&piece_id).filter(|piece| piece.sent_on.is_none()) else {
                continue;
            };
            let Some(&row) = self.map.rows.get(&piece.segment) else { continue };
            // Since it was queued, the segment may have moved, or a lane may have come that is behind.
            if row.owner != shard || piece.rounds_needed > closed {
                self.ready_piece(piece_id);
                continue;
            }
            piece.sent_on = Some(id);
            let task = piece_id.0;
            let header = Header {
                segment: piece.segment,
                assignment: row.assignment,
                lane: task.lane,
                round: self.tasks.get(task).map_or(0, |task| task.round),
                stamp: task.stamp,
                range: piece.range,
                previous: task.stamp,
                ..Header::of(Kind::Pull, self.job)
            };
            let extension = Extension {
                pull: Some(PullOptions {
                    rounds_needed: piece.rounds_needed,
                    patience_ms: piece.patience_ms,
                }),
                after: piece.own.map(|stamp| (task.lane, stamp)).into_iter().collect(),
                ..Extension::default()
            };
            self.frame = Frame { header, extension, body: SendBody::Empty };
            self.counters.pull_frames += 1;
            self.link_mut(shard).pulled();
            return true;
        }
        false
    }
}
