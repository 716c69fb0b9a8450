//! What a shard does with a push frame: guards first, then the clock, then the effect, all in one step.
//! Knows the order of the guards; the clocks themselves are `segment.rs`. Called for each push frame.
//! Source: OSDI'14 §3.2, §4.1; protocol.md §3 (P1 to P4, P10), T10.

use crate::id::{Lane, LinkId, SegmentId};
use crate::key::KeyRange;
use crate::table::Aggregation;
use crate::time::{Incarnation, Stamp};
use crate::wire::{self, Arguments, Header, Kind, Refusal, SMALL_BYTES};

use super::segment::{Contribution, Verdict};
use super::{Output, ServerCore, enlist, owe_ack};

impl<P: Clone> ServerCore<P> {
    /// Several small pushes, each as if it had come in a frame of its own. Nothing of them is looked at before it is known
    /// where the values of each lie.
    pub(super) fn pushes(&mut self, id: LinkId, header: &Header, keys: &[u8], payload: &P) {
        let Ok(smalls) = wire::smalls(keys) else {
            return self.violation(id, "a malformed list of pushes");
        };
        let announced: u64 = smalls.clone().map(|small| u64::from(small.value_bytes)).sum();
        if announced != u64::from(header.value_bytes) || keys.len() != header.key_bytes as usize {
            return self.violation(id, "pushes whose values are not as long as they say");
        }
        let mut at = header.key_bytes;
        for small in smalls {
            // Kept until its round ends, it would keep the bytes of all others, which its credit does not cover.
            if self.segments.get(small.segment).is_some_and(|held| held.aggregation != Aggregation::None) {
                return self.violation(id, "a push that waits for its round in one frame with others");
            }
            let push = small.header(header);
            let entry = u32::try_from(SMALL_BYTES).unwrap_or(u32::MAX);
            let credit = small.value_bytes.saturating_add(entry);
            self.counters.gathered += 1;
            self.push(id, &push, Arguments::default(), payload.clone(), at, credit);
            at = at.saturating_add(small.value_bytes);
        }
    }

    /// `at` is where the values begin in the payload, `credit` what the push took of it.
    pub(super) fn push(
        &mut self,
        id: LinkId,
        header: &Header,
        arguments: Arguments,
        payload: P,
        at: u32,
        credit: u32,
    ) {
        let Some(link) = self.links.get_mut(id) else { return };
        link.push_bytes_held += u64::from(credit);
        if link.push_bytes_held > self.limits.push_bytes_per_link {
            return self.violation(id, "more push bytes than were granted");
        }

        let Some(segment) = self.segments.get(header.segment) else {
            let (kind, refusal) = self.whereabouts(header.segment, header.assignment);
            return self.answer_push(id, header, kind, refusal, Stamp(0), credit);
        };
        let (range, value_bytes) = (segment.range, segment.value_bytes);

        //= protocol.md P10
        let incarnation = header.stamp.incarnation();
        match self.view.member(header.lane).map(|member| member.incarnation) {
            Some(current) if current == incarnation => {}
            Some(current) if current < incarnation => {
                return self.answer_push(id, header, Kind::NeedView, None, Stamp(0), credit);
            }
            // Unknown lane, and the peer has shown no view: it may be newer than ours.
            None if self.links.get(id).is_none_or(|link| link.view_seen == 0) => {
                return self.answer_push(id, header, Kind::NeedView, None, Stamp(0), credit);
            }
            // The answer names the stamp, so that a lane that came back under a new incarnation is not taken for it.
            _ => return self.answer_push(id, header, Kind::Fenced, None, header.stamp, credit),
        }

        let tile = header.tile(range);
        let expected = header.range.len().saturating_mul(u64::from(value_bytes));
        let shape = header.range.start <= header.range.end
            && !tile.is_empty()
            && range.covers(tile)
            && tile.covers(header.range)
            && header.key_bytes == 0
            && expected == u64::from(header.value_bytes);
        if !shape {
            return self.violation(id, "a push whose payload is not as long as its range says");
        }

        // If we are here, the frame is well-formed, in the right place and from the lane's only holder.
        if !self.adopt_lane(header.segment, header.lane, incarnation) {
            return self.answer_push(id, header, Kind::Fenced, None, header.stamp, credit);
        }
        let Some(segment) = self.segments.get_mut(header.segment) else { return };
        let Some(state) = segment.lanes.get_mut(header.lane) else { return };
        state.heard_on(id);
        let rounds_before = state.rounds();
        let verdict = segment.judge(header, self.limits.rounds_open_max);
        if cfg!(planted = "acknowledged_before_applied") {
            self.acknowledge_unapplied(header);
        }
        match verdict {
            Verdict::Covered => {
                self.counters.duplicates += 1;
                self.owe_and_release(id, header, credit);
            }
            Verdict::Gap(clock) => self.gap(id, header, clock, credit),
            Verdict::Busy => self.answer_push(id, header, Kind::Busy, None, Stamp(0), credit),
            Verdict::Apply(open) => {
                self.counters.pushes += 1;
                let values = open.intersect(header.range);
                if !values.is_empty() {
                    self.effects.push_back(Output::Apply {
                        segment: header.segment,
                        lane: header.lane,
                        stamp: header.stamp,
                        values,
                        bytes: byte_range(at, header.range, values, value_bytes),
                        payload,
                        arguments,
                    });
                }
                self.owe_and_release(id, header, credit);
            }
            Verdict::Contribute(open) => {
                self.counters.pushes += 1;
                let values = open.intersect(header.range);
                // Nothing of it is open: an empty contribution, which still moves the clock and holds its credit.
                let values = if values.is_empty() { KeyRange::new(open.start, open.start) } else { values };
                let contribution = Contribution {
                    lane: header.lane,
                    stamp: header.stamp,
                    values,
                    bytes: byte_range(at, header.range, values, value_bytes),
                    payload,
                    arguments,
                    link: id,
                    credit,
                };
                if let Some(segment) = self.segments.get_mut(header.segment) {
                    segment.contribute(header.round, contribution);
                }
            }
        }
        if let Some(segment) = self.segments.get_mut(header.segment)
            && !segment.is_calm(header.lane, rounds_before)
        {
            segment.settle(&self.view, header.lane, rounds_before);
            self.advance(header.segment);
        }
    }

    //= protocol.md P10
    /// Makes a lane's state ready for an incarnation that the view names; credits of what it replaces go back. Whether that
    /// incarnation may act here: a segment that came with its clocks may know a higher one than the view.
    pub(super) fn adopt_lane(&mut self, id: SegmentId, lane: Lane, incarnation: Incarnation) -> bool {
        let Some(segment) = self.segments.get_mut(id) else { return false };
        let Some(replaced) = segment.adopt(lane, incarnation) else {
            return segment.incarnation(lane) == Some(incarnation);
        };
        for contribution in replaced {
            if let Some(link) = self.links.get_mut(contribution.link) {
                link.release(contribution.credit);
                enlist(&mut self.speakers, contribution.link, link);
            }
        }
        true
    }

    //= protocol.md P8
    /// One answer per gap: a burst of frames behind a missing one is told once, a second burst again.
    fn gap(&mut self, id: LinkId, header: &Header, clock: Stamp, credit: u32) {
        self.counters.gaps += 1;
        let state = self.segments.get_mut(header.segment).and_then(|s| s.lanes.get_mut(header.lane));
        let told = state.as_ref().and_then(|state| state.gap_told);
        let again = told.is_some_and(|(told, stamp)| told == clock && stamp < header.stamp);
        if let Some(state) = state {
            state.gap_told = Some((clock, header.stamp));
        }
        if again {
            self.let_go(id, credit);
        } else {
            self.answer_push(id, header, Kind::Gap, None, clock, credit);
        }
    }

    fn owe_and_release(&mut self, id: LinkId, header: &Header, credit: u32) {
        if let Some(segment) = self.segments.get_mut(header.segment) {
            owe_ack(segment, &mut self.links, &mut self.speakers, header.lane);
        }
        self.let_go(id, credit);
    }

    /// Owes an answer to a push that was not applied, and lets its payload go.
    fn answer_push(
        &mut self,
        id: LinkId,
        header: &Header,
        kind: Kind,
        refusal: Option<Refusal>,
        clock: Stamp,
        credit: u32,
    ) {
        match kind {
            Kind::Fenced => self.counters.fenced += 1,
            Kind::WrongEpoch | Kind::NeedMap => self.counters.stale += 1,
            Kind::Busy => self.counters.busy += 1,
            _ => {}
        }
        let Some(link) = self.links.get_mut(id) else { return };
        // One answer is kept for each (lane, segment) that the peer names: its lanes times the segments there are, unless it
        // invents them.
        if link.answers.len() >= self.limits.answers_per_link as usize {
            return self.violation(id, "pushes to ever more lanes and segments, without reading the answers");
        }
        link.answer_push(kind, refusal, header, clock);
        enlist(&mut self.speakers, id, link);
        self.let_go(id, credit);
    }

    fn let_go(&mut self, id: LinkId, credit: u32) {
        if let Some(link) = self.links.get_mut(id) {
            link.release(credit);
            if link.credit_due(self.limits.push_bytes_per_link) {
                enlist(&mut self.speakers, id, link);
            }
        }
    }

    /// A planted bug for the simulator to find: the acknowledgement of whatever arrives.
    fn acknowledge_unapplied(&mut self, header: &Header) {
        let state = self.segments.get_mut(header.segment).and_then(|s| s.lanes.get_mut(header.lane));
        if let Some(state) = state.filter(|state| state.applied.lowest() < header.stamp) {
            state.applied = crate::clock::Clock::at(header.stamp);
        }
        if let Some(segment) = self.segments.get_mut(header.segment) {
            owe_ack(segment, &mut self.links, &mut self.speakers, header.lane);
        }
    }
}

/// Where the values of `part` lie in a payload that holds those of `whole` from `begin` on, in bytes. Both fit a frame.
fn byte_range(begin: u32, whole: KeyRange, part: KeyRange, key_bytes: u32) -> core::ops::Range<u32> {
    let at =
        |keys: u64| u32::try_from(keys).unwrap_or(u32::MAX).saturating_mul(key_bytes).saturating_add(begin);
    if part.is_empty() { 0..0 } else { at(part.start - whole.start)..at(part.end - whole.start) }
}
