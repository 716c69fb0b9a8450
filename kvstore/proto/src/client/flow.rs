//! The pushes of one lane to one segment: issued, sent, sent again, acknowledged, in stamp order.
//! Knows stamps and byte ranges of payloads; not connections. Held by the client core.
//! Source: protocol.md P1, P2, P5 to P7.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::id::{Assignment, Lane, LinkId, SegmentId, ShardId};
use crate::key::{Key, KeyRange};
use crate::limits::Limits;
use crate::map::Row;
use crate::table::Aggregation;
use crate::time::{Round, Stamp};
use crate::wire::{self, Arguments, Refusal, Small};

use super::link::Turn;
use super::say::GATHER_BYTES_MAX;
use super::{ClientCore, Counters, Frame, Gathered, Retry, SendBody, TaskError, TaskId};

/// A push that is not acknowledged: kept, because it may have to be sent again, to somebody else.
#[derive(Debug)]
pub(super) struct Pending<P> {
    pub(super) task: TaskId,
    pub(super) previous: Stamp,
    pub(super) round: Round,
    /// The keys of this segment that it has values for.
    pub(super) values: KeyRange,
    /// The key at which the payload begins.
    pub(super) base: Key,
    pub(super) payload: P,
    pub(super) arguments: Arguments,
}

impl<P> Pending<P> {
    /// Where the values of these keys lie in the payload.
    fn bytes_of(&self, range: KeyRange, value_bytes: u32) -> core::ops::Range<usize> {
        // A payload lies in memory, so positions in it fit usize.
        let at = |key: Key| usize::try_from((key - self.base) * u64::from(value_bytes)).unwrap_or(usize::MAX);
        at(range.start)..at(range.end)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Sends what it has.
    Live,
    /// Waits to hear what has arrived.
    Resuming,
    /// Waits for a time.
    Resting,
}

/// Pushes in stamp order, and how far they were sent.
#[derive(Debug)]
pub(super) struct Flow<P> {
    last: Stamp,
    /// `last` when the lane closed its latest round.
    closed: Stamp,
    unacknowledged: VecDeque<Pending<P>>,
    /// The push to send from next, and the key within it; `None` means its first.
    next: usize,
    next_key: Option<Key>,
    /// The highest (stamp, key) that was ever sent: below it a frame is a repeat.
    sent: (Stamp, Key),
    state: State,
    /// Its turn in its connection's queue.
    pub(super) queued: Option<Turn>,
    /// Where its frames go, and what they say of it. Both follow the map.
    pub(super) shard: Option<ShardId>,
    assignment: Assignment,
    value_bytes: u32,
    /// Bytes of whole keys in a frame, at most.
    frame_bytes_max: u32,
    /// Whether its small pushes may share a frame.
    gathers: bool,
    /// Whether the lane has pushed to it in its present round.
    pub(super) pushed: bool,
}

impl<P> Flow<P> {
    pub(super) fn new(floor: Stamp, value_bytes: u32, aggregation: Aggregation, limits: &Limits) -> Self {
        Self {
            last: floor,
            closed: floor,
            unacknowledged: VecDeque::new(),
            next: 0,
            next_key: None,
            sent: (Stamp(0), 0),
            state: State::Live,
            queued: None,
            shard: None,
            assignment: Assignment(0),
            value_bytes,
            frame_bytes_max: (limits.frame_bytes_max / value_bytes).max(1) * value_bytes,
            gathers: aggregation == Aggregation::None,
            pushed: false,
        }
    }

    /// The newest stamp issued; a predecessor for the next.
    pub(super) const fn last(&self) -> Stamp {
        self.last
    }

    /// The lane closes its round.
    pub(super) const fn close(&mut self) {
        self.closed = self.last;
        self.pushed = false;
    }

    /// The newest stamp of the rounds that are closed.
    pub(super) const fn closed(&self) -> Stamp {
        self.closed
    }

    pub(super) fn issue(&mut self, pending: Pending<P>) {
        self.last = pending.task.stamp;
        self.unacknowledged.push_back(pending);
    }

    /// What is not acknowledged, if anything.
    pub(super) fn describe(&self) -> Option<String> {
        let (first, count) = (self.unacknowledged.front()?, self.unacknowledged.len());
        let (stamp, round, next, state) = (first.task.stamp, first.round, self.next, self.state);
        Some(format!("{count} from {stamp:?} of round {round}, {next} sent, {state:?}, to {:?}", self.shard))
    }

    /// Whether an acknowledgement is owed.
    pub(super) fn is_owed(&self) -> bool {
        !self.unacknowledged.is_empty()
    }

    /// The round of the oldest push that is not acknowledged.
    pub(super) fn oldest_round(&self) -> Option<Round> {
        self.unacknowledged.front().map(|pending| pending.round)
    }

    pub(super) fn next_round(&self) -> Option<Round> {
        let live = self.state == State::Live;
        self.unacknowledged.get(self.next).filter(|_| live).map(|pending| pending.round)
    }

    fn rewind(&mut self, index: usize) {
        self.next = index;
        self.next_key = None;
    }

    /// Everything above `clock` is to be sent (again).
    fn rewind_to(&mut self, clock: Stamp) {
        self.rewind(self.unacknowledged.iter().take_while(|pending| pending.task.stamp <= clock).count());
    }

    /// Takes out the pushes that `clock` covers, and names their tasks.
    fn pop_covered(&mut self, clock: Stamp, tasks: &mut Vec<TaskId>) {
        while let Some(pending) = self.unacknowledged.pop_front_if(|pending| pending.task.stamp <= clock) {
            tasks.push(pending.task);
            if self.next == 0 {
                self.next_key = None;
            } else {
                self.next -= 1;
            }
        }
    }

    /// How many bytes the next frame will carry; `None` when there is nothing to send.
    pub(super) fn next_frame_bytes(&self) -> Option<u64> {
        if self.state != State::Live {
            return None;
        }
        let pending = self.unacknowledged.get(self.next)?;
        let start = self.next_key.unwrap_or(pending.values.start);
        let bytes = (pending.values.end - start) * u64::from(self.value_bytes);
        Some(bytes.min(self.frame_bytes_max.into()))
    }
}

impl<P: Clone> Flow<P> {
    /// The round and the bytes of the next push, if it may share a frame: small, whole, without arguments, and applied as it
    /// comes. What is kept until its round ends would keep the others' bytes as well.
    pub(super) fn next_small(&self) -> Option<(Round, u64)> {
        if !self.gathers || self.state != State::Live || self.next_key.is_some() {
            return None;
        }
        let pending = self.unacknowledged.get(self.next)?;
        let bytes = pending.values.len() * u64::from(self.value_bytes);
        let near = pending.task.stamp.0.wrapping_sub(pending.previous.0) <= u32::MAX.into();
        let small = near && bytes <= GATHER_BYTES_MAX.min(self.frame_bytes_max.into());
        (small && pending.arguments.as_slice().is_empty()).then_some((pending.round, bytes))
    }

    /// Adds the next push, which may share a frame, to one.
    pub(super) fn gather_next(
        &mut self,
        segment: SegmentId,
        keys: &mut Vec<u8>,
        gathered: &mut Gathered<P>,
        counters: &mut Counters,
    ) {
        let Some(pending) = self.unacknowledged.get(self.next) else { return };
        let bytes = pending.values.len() * u64::from(self.value_bytes);
        let small = Small {
            segment,
            assignment: self.assignment,
            stamp: pending.task.stamp,
            previous: pending.previous,
            range: pending.values,
            // Small.
            value_bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
        };
        wire::put_small(keys, &small);
        gathered.push((pending.payload.clone(), pending.bytes_of(pending.values, self.value_bytes)));
        let mark = (pending.task.stamp, pending.values.end);
        self.say_mark(mark, bytes, counters);
        self.rewind(self.next + 1);
    }

    /// Counts what is said, and how far that is.
    fn say_mark(&mut self, mark: (Stamp, Key), bytes: u64, counters: &mut Counters) {
        counters.push_frames += 1;
        counters.bytes_pushed += bytes;
        counters.repeats += u64::from(mark <= self.sent);
        self.sent = self.sent.max(mark);
    }

    //= protocol.md P2
    /// The next of its values, `bytes` of them, as much as a frame holds. Its tiles cut the whole segment. `frame` says
    /// already where it goes.
    pub(super) fn next_frame(&mut self, bytes: u64, frame: &mut Frame<P>, counters: &mut Counters) {
        let Some(pending) = self.unacknowledged.get(self.next) else { return };
        let start = self.next_key.unwrap_or(pending.values.start);
        let range = KeyRange::new(start, start + bytes / u64::from(self.value_bytes));
        let last = range.end == pending.values.end;
        let header = &mut frame.header;
        header.first = range.start == pending.values.start;
        header.last = last;
        // A frame's bytes fit 32 bits.
        header.value_bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        header.key_bytes = 0;
        header.assignment = self.assignment;
        header.round = pending.round;
        header.stamp = pending.task.stamp;
        header.range = range;
        header.previous = pending.previous;
        let bytes_of = pending.bytes_of(range, self.value_bytes);
        frame.body = SendBody::Values { payload: pending.payload.clone(), bytes: bytes_of };
        let extension = &mut frame.extension;
        (extension.credit, extension.pull) = (None, None);
        extension.after.clear();
        extension.arguments = pending.arguments;
        let mark = (pending.task.stamp, range.end);
        self.say_mark(mark, bytes, counters);
        if last {
            self.rewind(self.next + 1);
        } else {
            self.next_key = Some(range.end);
        }
    }
}

impl<P: Clone> ClientCore<P> {
    /// Queues a flow at its connection if it has something to send.
    pub(super) fn ready_flow(&mut self, lane: Lane, segment: SegmentId) {
        let Some(place) = self.flows.place((lane, segment)) else { return };
        let Some((_, flow)) = self.flows.at_mut(place) else { return };
        if flow.shard.is_none()
            && let Some(row) = self.map.rows.get(&segment)
        {
            (flow.shard, flow.assignment) = (Some(row.owner), row.assignment);
        }
        let (Some(round), Some(shard), None) = (flow.next_round(), flow.shard, flow.queued) else { return };
        self.sequence += 1;
        let turn = (round, self.sequence);
        flow.queued = Some(turn);
        self.link_mut(shard).queue_flow(turn, place);
        self.enlist(shard);
    }

    //= protocol.md P6
    pub(super) fn acknowledged_to(&mut self, lane: Lane, segment: SegmentId, stamp: Stamp) {
        // The clock of another incarnation says nothing of this one's pushes.
        if self.lanes.get(lane).is_none_or(|state| state.member.incarnation != stamp.incarnation()) {
            return;
        }
        let Some(flow) = self.flows.get_mut((lane, segment)) else { return };
        let mut covered = core::mem::take(&mut self.covered);
        flow.pop_covered(stamp, &mut covered);
        for task in covered.drain(..) {
            self.piece_done(task);
        }
        self.covered = covered;
    }

    /// A predecessor is missing at the owner: send again from there, unless that is what is about to be sent anyway.
    pub(super) fn go_back(&mut self, lane: Lane, segment: SegmentId, clock: Stamp) {
        let Some(flow) = self.flows.get_mut((lane, segment)) else { return };
        if flow.state == State::Live {
            flow.rewind_to(clock);
            self.ready_flow(lane, segment);
        }
    }

    //= protocol.md P7
    /// The owner may have lost frames, or is another one: find out what it has, or just send again if that is cheap.
    pub(super) fn restart(&mut self, lane: Lane, segment: SegmentId, link: Option<LinkId>) {
        let Some(flow) = self.flows.get_mut((lane, segment)) else { return };
        let keys: u64 = flow.unacknowledged.iter().map(|pending| pending.values.len()).sum();
        let cheap = keys * u64::from(flow.value_bytes) < self.limits.resume_bytes_min;
        let unsent = flow.next == 0 && flow.next_key.is_none();
        let shard = flow.shard;
        match (link, shard) {
            (Some(_), Some(shard)) if !cheap && !unsent => {
                flow.state = State::Resuming;
                self.link_mut(shard).ask(lane, segment);
                self.enlist(shard);
            }
            _ => {
                flow.state = State::Live;
                flow.rewind(0);
                self.ready_flow(lane, segment);
            }
        }
    }

    pub(super) fn resumed(&mut self, shard: ShardId, lane: Lane, segment: SegmentId, clock: Stamp) {
        let Some(flow) = self.flows.get_mut((lane, segment)) else { return };
        if flow.state == State::Resuming && flow.shard == Some(shard) {
            flow.state = State::Live;
            flow.rewind_to(clock);
            self.ready_flow(lane, segment);
        }
    }

    /// The owner is busy, or not there yet: send again later.
    pub(super) fn put_off(&mut self, lane: Lane, segment: SegmentId) {
        let at = self.now.after(self.limits.retry_ns);
        let Some(flow) = self.flows.get_mut((lane, segment)) else { return };
        if flow.state != State::Live {
            return;
        }
        flow.state = State::Resting;
        self.unqueue(lane, segment);
        self.retries.insert((at, Retry::Flow(lane, segment)));
    }

    pub(super) fn try_again(&mut self, lane: Lane, segment: SegmentId) {
        let Some(flow) = self.flows.get_mut((lane, segment)) else { return };
        if flow.state == State::Resting {
            flow.state = State::Live;
            flow.rewind(0);
            self.ready_flow(lane, segment);
        }
    }

    /// The connection is gone. How far the flow was sent stays known, so that `restart` asks or sends again when the next
    /// connection is up. Says whether there is anything to do then.
    pub(super) fn disconnected(&mut self, lane: Lane, segment: SegmentId) -> bool {
        let Some(flow) = self.flows.get_mut((lane, segment)) else { return false };
        flow.queued = None;
        if flow.state == State::Resuming {
            flow.state = State::Live;
        }
        !flow.unacknowledged.is_empty()
    }

    pub(super) fn unqueue(&mut self, lane: Lane, segment: SegmentId) {
        let Some(flow) = self.flows.get_mut((lane, segment)) else { return };
        if let (Some(turn), Some(shard)) = (flow.queued.take(), flow.shard) {
            self.link_mut(shard).unqueue_flow(turn);
        }
    }

    /// A push was refused for good. Later ones name it as their predecessor, so the whole flow ends.
    pub(super) fn refuse_flow(&mut self, lane: Lane, segment: SegmentId, refusal: Refusal) {
        self.unqueue(lane, segment);
        let Some(flow) = self.flows.get_mut((lane, segment)) else { return };
        let tasks: Vec<TaskId> = flow.unacknowledged.iter().map(|pending| pending.task).collect();
        // `departure:` protocol.md P11 sends a refused push as empty tiles. Here a push is refused only by an owner that has
        // no such segment, so it has none of them, and the next push names the one before.
        if let Some(first) = flow.unacknowledged.front() {
            flow.last = first.previous;
            flow.closed = flow.closed.min(flow.last);
        }
        flow.unacknowledged.clear();
        flow.rewind(0);
        for task in tasks {
            self.complete(task, Err(TaskError::Refused(refusal)));
        }
    }

    //= protocol.md G1
    /// A newer row: what goes to the segment goes to its new owner from here on.
    pub(super) fn adopt_row(&mut self, row: Row) {
        self.map.adopt_row(row);
        self.name_segment(row);
        let lanes: Vec<Lane> = self.lanes.keys().collect();
        for lane in lanes {
            if !self.flows.contains((lane, row.segment)) {
                continue;
            }
            self.unqueue(lane, row.segment);
            if let Some(flow) = self.flows.get_mut((lane, row.segment)) {
                flow.assignment = row.assignment;
                if !(cfg!(planted = "resent_to_the_old_owner") && flow.shard.is_some()) {
                    flow.shard = Some(row.owner);
                }
            }
            let link = self.link_mut(row.owner).id();
            self.restart(lane, row.segment, link);
        }
    }

    //= protocol.md T1
    /// The segment's owner has heard of no close that names it: every lane's newest close goes there, with its name.
    pub(super) fn name_segment(&mut self, row: Row) {
        let lanes: Vec<(Lane, Round)> = self.lanes.iter().map(|(lane, state)| (lane, state.round)).collect();
        for (lane, round) in lanes {
            let link = self.link_mut(row.owner);
            link.name_in_close(lane, row.segment);
            if round > 0 {
                link.close_due(lane);
                self.enlist(row.owner);
            }
        }
    }
}
