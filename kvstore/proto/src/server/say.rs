//! What a shard says, one frame at a time: built when there is room to send it, from what is owed by then.
//! Knows frames; decides nothing about clocks. Called by `poll_output`.
//! Source: protocol.md §12, B3, B5, P6.

use alloc::vec::Vec;

use crate::id::LinkId;
use crate::time::Stamp;
use crate::wire::{self, Extension, Header, Kind};

use super::link::{Answer, ServerLink};
use super::{Frame, Output, SendBody, ServerCore, enlist};

impl<P: Clone> ServerCore<P> {
    /// The frame of the last [`Output::Send`], until the next `poll_output`.
    #[must_use]
    pub const fn frame(&self) -> &Frame {
        &self.frame
    }

    /// The next thing to do. `Timeout` when there is none. Without `may_send` (the shell has no memory for another
    /// frame just now) effects only: they free memory and need none.
    pub fn poll_output(&mut self, may_send: bool) -> Output<P> {
        if let Some(effect) = self.effects.pop_front() {
            return effect;
        }
        if !may_send {
            return Output::Timeout(self.expiry);
        }
        loop {
            while let Some(id) = self.speakers.pop_front() {
                let Some((place, mut link)) = self.links.lift(id) else { continue };
                link.listed = false;
                let said = link.room > 0 && self.say(id, &mut link);
                if said {
                    link.room -= 1;
                    enlist(&mut self.speakers, id, &mut link);
                }
                self.links.put_back(place, id, link);
                if said {
                    return Output::Send { link: id };
                }
            }
            // A reply slice may be free although somebody waits: whose turn it was is gone, or cannot send just now.
            if self.replies_in_flight >= self.limits.replies_per_shard || !self.wake_waiter() {
                return Output::Timeout(self.expiry);
            }
        }
    }

    /// One frame, the most urgent first. Every frame tells the credit. Says whether there was one.
    fn say(&mut self, id: LinkId, link: &mut ServerLink) -> bool {
        let said = self
            .say_rows(link)
            .or_else(|| self.say_answer(link))
            .or_else(|| self.say_resume(link))
            .or_else(|| self.say_ack(id, link))
            .or_else(|| self.say_reply(id, link))
            .or_else(|| {
                let due = link.credit_due(self.limits.push_bytes_per_link);
                due.then(|| (Header::of(Kind::Ack, self.job), SendBody::Empty))
            });
        let Some((header, body)) = said else { return false };
        let credit = (link.released > link.released_told).then_some(link.released);
        link.released_told = link.released;
        self.frame = Frame { header, extension: Extension { credit, ..Extension::default() }, body };
        true
    }

    fn controlled(&self, header: Header) -> (Header, SendBody) {
        // Control bodies are bounded by a frame, so their length fits.
        let value_bytes = u32::try_from(self.control.len()).unwrap_or(u32::MAX);
        (Header { value_bytes, ..header }, if value_bytes == 0 { SendBody::Empty } else { SendBody::Control })
    }

    /// Rows of segments that came here or went.
    fn say_rows(&mut self, link: &mut ServerLink) -> Option<(Header, SendBody)> {
        if link.rows.is_empty() {
            return None;
        }
        let control = reuse(&mut self.control);
        let room = (self.limits.frame_bytes_max as usize / wire::ROW_BYTES).max(1);
        let count = link.rows.len().min(room);
        for segment in link.rows.drain(..count) {
            if let Some(row) = self.map.rows.get(&segment) {
                wire::put_row(control, row, self.map.epoch);
            }
        }
        Some(self.controlled(Header::of(Kind::MapDelta, self.job)))
    }

    fn say_answer(&mut self, link: &mut ServerLink) -> Option<(Header, SendBody)> {
        let Answer { kind, refusal, lane, segment, stamp, range } = link.answers.pop_front()?;
        let for_pull = !range.is_empty();
        link.pulls_held -= u16::from(for_pull);
        let mut header =
            Header { lane, segment, stamp, range, previous: stamp, ..Header::of(kind, self.job) };
        header.round = refusal.map_or(0, |refusal| refusal as u32);
        let control = reuse(&mut self.control);
        if kind == Kind::WrongEpoch
            && let Some(row) = self.map.rows.get(&segment)
        {
            header.assignment = row.assignment;
            wire::put_row(control, row, self.map.epoch);
        }
        Some(self.controlled(header))
    }

    /// The clock of each segment asked for, as a pair.
    fn say_resume(&mut self, link: &mut ServerLink) -> Option<(Header, SendBody)> {
        let (lane, segments) = link.resumes.pop_front()?;
        let control = reuse(&mut self.control);
        for id in segments {
            // Not ours, or a lane not heard of: nothing of it is here, so the lane sends and learns where to.
            let state = self.segments.get(id).and_then(|segment| segment.lanes.get(lane));
            wire::put_pair(control, id, state.map_or(Stamp(0), |state| state.received.lowest()));
        }
        Some(self.controlled(Header { lane, ..Header::of(Kind::ResumeReply, self.job) }))
    }

    //= protocol.md P6
    fn say_ack(&mut self, id: LinkId, link: &mut ServerLink) -> Option<(Header, SendBody)> {
        let lane = link.acks.first()?.0;
        let control = reuse(&mut self.control);
        let room = (self.limits.frame_bytes_max as usize / wire::PAIR_BYTES).max(1);
        let segments = &mut self.segments;
        let mut count = 0;
        link.acks.retain(|&(of, segment)| {
            if of != lane || count == room {
                return true;
            }
            let state = segments.get_mut(segment).and_then(|segment| segment.lanes.get_mut(lane));
            if let Some(state) = state.filter(|state| state.link == Some(id)) {
                state.ack_owed = false;
                count += 1;
                wire::put_pair(control, segment, state.applied.lowest());
            }
            false
        });
        Some(self.controlled(Header { lane, ..Header::of(Kind::Ack, self.job) }))
    }

    //= protocol.md B5
    fn say_reply(&mut self, id: LinkId, link: &mut ServerLink) -> Option<(Header, SendBody)> {
        // At its own bound it waits for its own peer, not for a slice.
        let pull = link.ready.front()?;
        // Pulls of a segment that left were turned away when it did, so it is here.
        let segment = self.segments.get_mut(pull.header.segment)?;
        // A pull's range fits a frame: it was checked when it came.
        let bytes =
            u32::try_from(pull.header.range.len()).unwrap_or(u32::MAX).saturating_mul(segment.value_bytes);
        if !link.may_reply(bytes, &self.limits) {
            return None;
        }
        if self.replies_in_flight >= self.limits.replies_per_shard {
            if !link.waits {
                link.waits = true;
                self.waiters.push_back(id);
            }
            return None;
        }
        let pull = link.ready.pop_front()?;
        link.pulls_held -= 1;
        link.replied(bytes);
        self.replies_in_flight += 1;
        self.counters.pulls += 1;
        let header = Header {
            lane: pull.header.lane,
            segment: pull.header.segment,
            assignment: segment.assignment,
            round: segment.rounds_closed(&self.view),
            stamp: pull.header.stamp,
            previous: pull.header.stamp,
            range: pull.header.range,
            value_bytes: bytes,
            ..Header::of(Kind::PullReply, self.job)
        };
        Some((header, SendBody::Gather { segment: pull.header.segment, range: pull.header.range }))
    }
}

/// Bodies of control frames are small; this one keeps its allocation.
fn reuse(buffer: &mut Vec<u8>) -> &mut Vec<u8> {
    buffer.clear();
    buffer
}
