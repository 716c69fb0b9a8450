//! What a client says, one frame at a time: built when there is room to send it, from what waits by then.
//! Knows frames and the order of their importance. Called by `poll_output`.
//! Source: protocol.md §12; T1, T7, P7, B1.

use alloc::vec::Vec;

use crate::id::{LinkId, SegmentId, ShardId};
use crate::time::Stamp;
use crate::wire::{self, Extension, Header, Kind, PullOptions};

use super::link::Close;
use super::{ClientCore, Output, PieceId, SendBody};

/// A frame: its head, and what its body is made of.
pub(super) type Said<P> = (Header, Extension, SendBody<P>);

impl<P: Clone> ClientCore<P> {
    /// Whether `poll_output` has an effect to tell, whatever may be sent.
    #[must_use]
    #[inline]
    pub fn has_effects(&self) -> bool {
        !self.effects.is_empty()
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
            let number = self.view.number;
            let Some(link) = self.links.get_mut(&shard) else { continue };
            link.listed = false;
            let Some(id) = link.id() else {
                self.dial_if_wanted(shard);
                continue;
            };
            if !link.has_room() {
                continue;
            }
            let owes_word = link.owes_word(number);
            let word = if owes_word { self.say_word(shard) } else { None };
            if let Some((header, extension, body)) = word.or_else(|| self.say_data(shard, id)) {
                if let Some(link) = self.links.get_mut(&shard) {
                    link.take_room();
                    if link.may_have_more(number) && !link.listed {
                        link.listed = true;
                        self.speakers.push_back(shard);
                    }
                }
                return Output::Send { link: id, header, extension, body };
            }
        }
    }

    /// A frame that others wait for: these come first.
    fn say_word(&mut self, shard: ShardId) -> Option<Said<P>> {
        self.say_view(shard)
            .or_else(|| self.say_rows(shard))
            .or_else(|| self.say_resume(shard))
            .or_else(|| self.say_close(shard))
            .or_else(|| self.say_cancel(shard))
    }

    /// A push's frame or a pull, in turn.
    fn say_data(&mut self, shard: ShardId, id: LinkId) -> Option<Said<P>> {
        let link = self.links.get_mut(&shard)?;
        let (pushes, pulls) = (link.has_flows(), !link.pieces.is_empty());
        if core::mem::take(&mut link.pushed_last)
            && pulls
            && let Some(said) = self.say_pull(shard, id)
        {
            return Some(said);
        }
        if pushes && let Some(said) = self.say_push(shard) {
            self.link_mut(shard).pushed_last = true;
            return Some(said);
        }
        if pulls { self.say_pull(shard, id) } else { None }
    }

    fn controlled(&self, header: Header) -> Said<P> {
        let value_bytes = u32::try_from(self.control.len()).unwrap_or(u32::MAX);
        let body = if value_bytes == 0 { SendBody::Empty } else { SendBody::Control };
        (Header { value_bytes, ..header }, Extension::default(), body)
    }

    //= protocol.md T7
    fn say_view(&mut self, shard: ShardId) -> Option<Said<P>> {
        let number = self.view.number;
        let link = self.link_mut(shard);
        if link.view_sent >= number {
            return None;
        }
        link.view_sent = number;
        self.control.clear();
        self.view.encode(&mut self.control);
        Some(self.controlled(Header { round: number, ..Header::of(Kind::ViewUpdate, self.job) }))
    }

    fn say_rows(&mut self, shard: ShardId) -> Option<Said<P>> {
        let link = self.link_mut(shard);
        let segment = link.rows_due.pop_first()?;
        self.control.clear();
        if let Some(row) = self.map.rows.get(&segment) {
            wire::put_row(&mut self.control, row, self.map.epoch);
        }
        Some(self.controlled(Header { segment, ..Header::of(Kind::MapDelta, self.job) }))
    }

    //= protocol.md P7
    fn say_resume(&mut self, shard: ShardId) -> Option<Said<P>> {
        let room = (self.limits.frame_bytes_max as usize / 4).max(1);
        let link = self.link_mut(shard);
        let lane = link.asks.first()?.0;
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
        let floor = self.lanes.get(&lane).map_or(Stamp(0), |state| state.member.incarnation.floor());
        let header = Header { lane, stamp: floor, previous: floor, ..Header::of(Kind::Resume, self.job) };
        Some(self.controlled(header))
    }

    //= protocol.md T1
    fn say_close(&mut self, shard: ShardId) -> Option<Said<P>> {
        let link = self.link_mut(shard);
        let due = link.closes.iter_mut().find(|(_, close)| close.due);
        link.closes_due = due.is_some();
        let (&lane, close) = due?;
        let Close { named, .. } = core::mem::take(close);
        let state = self.lanes.get(&lane)?;
        let floor = state.member.incarnation.floor();
        self.control.clear();
        for segment in named {
            // A segment that went elsewhere is named to its new owner.
            let Some(row) = self.map.rows.get(&segment).filter(|row| row.owner == shard) else { continue };
            let last = self.flows.get(&(lane, segment)).map_or(floor, super::flow::Flow::closed);
            wire::put_named(&mut self.control, (segment, row.assignment, last));
        }
        let header = Header {
            lane,
            round: state.round - 1,
            stamp: floor,
            previous: floor,
            ..Header::of(Kind::Closed, self.job)
        };
        Some(self.controlled(header))
    }

    //= protocol.md K5
    fn say_cancel(&mut self, shard: ShardId) -> Option<Said<P>> {
        let (task, segment, range) = self.link_mut(shard).cancels.pop_front()?;
        let (lane, stamp) = (task.lane, task.stamp);
        let header =
            Header { lane, segment, stamp, range, previous: stamp, ..Header::of(Kind::Cancel, self.job) };
        Some((header, Extension::default(), SendBody::Empty))
    }

    fn say_push(&mut self, shard: ShardId) -> Option<Said<P>> {
        loop {
            let link = self.links.get_mut(&shard)?;
            let (lane, segment) = link.first_flow()?;
            let flow = self.flows.get_mut(&(lane, segment));
            let Some((flow, bytes)) = flow.and_then(|flow| {
                let bytes = flow.next_frame_bytes(self.map.tables.get(&segment.table())?, &self.limits)?;
                Some((flow, bytes))
            }) else {
                self.unqueue_first(shard);
                continue;
            };
            if !link.may_push(bytes) {
                return None;
            }
            let spec = self.map.tables.get(&segment.table())?;
            let assignment = self.map.rows.get(&segment)?.assignment;
            let header = Header { segment, assignment, lane, ..Header::of(Kind::Push, self.job) };
            let said = flow.next_frame(bytes, spec, header, &mut self.counters)?;
            link.pushed(bytes);
            link.pop_flow();
            flow.queued = None;
            // It comes again after the others, if it has more.
            if let Some(round) = flow.next_round() {
                self.sequence += 1;
                flow.queued = Some((round, self.sequence));
                link.queue_flow((round, self.sequence), lane, segment);
            }
            return Some(said);
        }
    }

    fn say_pull(&mut self, shard: ShardId, id: LinkId) -> Option<Said<P>> {
        let closed = self.lowest_round();
        while self.link_mut(shard).may_pull() {
            let piece_id: PieceId = self.link_mut(shard).pieces.pop_front()?;
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
            self.counters.pull_frames += 1;
            self.link_mut(shard).pulled();
            return Some((header, extension, SendBody::Empty));
        }
        None
    }
}
