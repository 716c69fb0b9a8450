//! What a worker's threads ask of its core: pushes, pulls, the end of a round.
//! Knows what may be begun now, and what it takes of the bounds; when it is sent is the others' to know.
//! Source: OSDI'14 §3.2, §3.4; protocol.md §3 (P1), §4 (T1, T4), §13 (B6).

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::id::{Lane, ShardId, TableId};
use crate::key::{Key, KeyRange};
use crate::table::{Aggregation, TableSpec};
use crate::time::Round;

use super::flow::{Flow, Pending};
use super::{ClientCore, IssueError, Piece, PieceId, Pull, Push, Task, TaskError, TaskId};

impl<P: Clone> ClientCore<P> {
    fn spec(&self, table: TableId) -> Result<&TableSpec, IssueError> {
        self.map.tables.get(&table).ok_or(IssueError::NoTable(table))
    }

    fn admit(&self, lane: Lane, table: TableId, range: KeyRange) -> Result<&TableSpec, IssueError> {
        if !self.lanes.contains(lane) {
            return Err(IssueError::NoLane(lane));
        }
        let spec = self.spec(table)?;
        if range.is_empty() || range.end > spec.len {
            return Err(IssueError::Range { range, len: spec.len });
        }
        if self.tasks.len() >= self.limits.tasks_max as usize {
            return Err(IssueError::Full);
        }
        Ok(spec)
    }

    fn begin(&mut self, lane: Lane, left: u32, bytes: u64) -> Option<(TaskId, Round)> {
        let state = self.lanes.get_mut(lane)?;
        state.stamp = state.stamp.next();
        state.open.begin(state.round);
        let task = TaskId { lane, stamp: state.stamp };
        self.tasks.insert(task, Task { round: state.round, left, bytes, released: false });
        Some((task, state.round))
    }

    /// Whether a push would be taken now.
    ///
    /// # Errors
    /// [`IssueError`], as [`Self::push`] would say.
    pub fn may_push(&self, lane: Lane, table: TableId, range: KeyRange) -> Result<(), IssueError> {
        let spec = self.admit(lane, table, range)?;
        self.weigh(spec, lane, table, range).map(drop)
    }

    /// Weighs an admitted push: its bytes, and what it would make each shard hold of its round.
    fn weigh(
        &self,
        spec: &TableSpec,
        lane: Lane,
        table: TableId,
        range: KeyRange,
    ) -> Result<(u64, BTreeMap<ShardId, u64>), IssueError> {
        let bytes = range.len().saturating_mul(u64::from(spec.value_bytes()));
        let max = self.limits.unacknowledged_bytes_max;
        if bytes > max {
            return Err(IssueError::TooLarge { bytes, max });
        }
        let held = match spec.aggregation {
            Aggregation::None => BTreeMap::new(),
            Aggregation::Round => self.held_by_round(spec, lane, table, range)?,
        };
        if self.unacknowledged_bytes + bytes > max {
            return Err(IssueError::Full);
        }
        Ok((bytes, held))
    }

    //= protocol.md B6
    /// A round holds credit at its shards until it is applied, and is not applied before all of it has come: what this
    /// client pushes in one round must fit what one connection is granted.
    fn held_by_round(
        &self,
        spec: &TableSpec,
        lane: Lane,
        table: TableId,
        range: KeyRange,
    ) -> Result<BTreeMap<ShardId, u64>, IssueError> {
        let key_bytes = u64::from(spec.value_bytes());
        let mut held: BTreeMap<ShardId, u64> = BTreeMap::new();
        for (segment, values) in spec.cut(table, range) {
            if let Some(shard) = self.map.owner(segment) {
                *held.entry(shard).or_insert(0) += values.len().saturating_mul(key_bytes);
            }
        }
        let round = self.lanes.get(lane).map_or(0, |state| state.round);
        for (&shard, &new) in &held {
            let of_round = (round, shard, Lane(0))..=(round, shard, Lane(u32::MAX));
            let bytes = new + self.round_bytes.range(of_round).map(|(_, bytes)| bytes).sum::<u64>();
            let max = self.limits.push_bytes_per_link;
            if bytes > max {
                return Err(IssueError::TooLarge { bytes, max });
            }
        }
        Ok(held)
    }

    /// Issues a push; constant time per segment met. Ends when every segment's owner has acknowledged it.
    ///
    /// # Errors
    /// [`IssueError`]; nothing was issued then.
    pub fn push(&mut self, push: Push<P>) -> Result<TaskId, IssueError> {
        let Push { lane, table, range, payload, arguments } = push;
        let spec = self.admit(lane, table, range)?;
        let (bytes, held) = self.weigh(spec, lane, table, range)?;
        let (mut parts, value_bytes, aggregation) =
            (spec.cut(table, range), spec.value_bytes(), spec.aggregation);
        let left = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        let (task, round) = self.begin(lane, left, bytes).ok_or(IssueError::NoLane(lane))?;
        self.unacknowledged_bytes += bytes;
        for (&shard, &bytes) in &held {
            *self.round_bytes.entry((round, shard, lane)).or_insert(0) += bytes;
        }
        let floor = task.stamp.incarnation().floor();
        let mut payload = Some(payload);
        while let Some((segment, values)) = parts.next() {
            // The last part takes it, so that one of one segment is not counted up and down.
            let payload = if parts.len() == 0 { payload.take() } else { payload.clone() };
            let Some(payload) = payload else { break };
            let make = || Flow::new(floor, value_bytes, aggregation, &self.limits);
            let flow = self.flows.get_or_insert_with((lane, segment), make);
            if !core::mem::replace(&mut flow.pushed, true)
                && let Some(state) = self.lanes.get_mut(lane)
            {
                state.pushed.push(segment);
            }
            //= protocol.md P1
            let previous = flow.last();
            flow.issue(Pending { task, previous, round, values, base: range.start, payload, arguments });
            if flow.queued.is_none() {
                self.ready_flow(lane, segment);
            }
        }
        Ok(task)
    }

    /// Issues a pull; values come as `Deliver`, then `Complete`.
    ///
    /// # Errors
    /// [`IssueError`]; nothing was issued then.
    pub fn pull(&mut self, pull: Pull) -> Result<TaskId, IssueError> {
        let spec = self.admit(pull.lane, pull.table, pull.range)?;
        let keys = u64::from((self.limits.frame_bytes_max / spec.value_bytes()).max(1));
        let mut pieces = Vec::new();
        for (segment, part) in spec.cut(pull.table, pull.range) {
            let mut start = part.start;
            while start < part.end {
                let range = KeyRange::new(start, part.end.min(start.saturating_add(keys)));
                pieces.push((segment, range));
                start = range.end;
            }
        }
        let left = u32::try_from(pieces.len()).unwrap_or(u32::MAX);
        let (task, _) = self.begin(pull.lane, left, 0).ok_or(IssueError::NoLane(pull.lane))?;
        for (segment, range) in pieces {
            let own = pull.own_pushes.then(|| self.flows.get((pull.lane, segment)).map(Flow::last)).flatten();
            let piece = Piece {
                segment,
                range,
                rounds_needed: pull.rounds_needed,
                own,
                patience_ms: pull.patience_ms,
                sent_on: None,
            };
            self.pieces.insert((task, range.start), piece);
            self.ready_piece((task, range.start));
        }
        Ok(task)
    }

    /// Ends the lane's round: tells every shard (protocol.md T1) and returns the new round. Whether that round may start
    /// under tau is [`Self::may_start`]'s to say.
    ///
    /// # Errors
    /// [`IssueError::NoLane`].
    pub fn advance(&mut self, lane: Lane) -> Result<Round, IssueError> {
        let state = self.lanes.get_mut(lane).ok_or(IssueError::NoLane(lane))?;
        state.round += 1;
        let round = state.round;
        let pushed = core::mem::take(&mut state.pushed);
        for &segment in &pushed {
            if let Some(flow) = self.flows.get_mut((lane, segment)) {
                flow.close();
            }
            if let Some(shard) = self.map.owner(segment) {
                self.link_mut(shard).name_in_close(lane, segment);
            }
        }
        for shard in self.map.shards() {
            self.link_mut(shard).close_due(lane);
            self.enlist(shard);
        }
        let lowest = self.lowest_round();
        self.round_bytes.retain(|&(round, ..), _| round >= lowest);
        self.release_early();
        Ok(round)
    }

    /// Whether the lane's present round may start: its tasks of rounds before `round - tau` have ended.
    //= protocol.md T4
    #[must_use]
    pub fn may_start(&self, lane: Lane, tau: Round) -> bool {
        let Some(state) = self.lanes.get(lane) else { return true };
        let oldest = state.open.oldest().unwrap_or(state.round);
        oldest >= state.round.saturating_sub(tau)
    }

    /// Nobody will ask how a push ended: its end is not reported. Constant time.
    pub fn release(&mut self, push: TaskId) {
        if let Some(task) = self.tasks.get_mut(push) {
            task.released = true;
        }
    }

    /// Gives up a pull: its values are not wanted any more. A push is not given up, or its lane's clock would have a hole
    /// (protocol.md K5).
    pub fn cancel(&mut self, task: TaskId) {
        let ids: Vec<PieceId> = self.pieces.range((task, 0)..=(task, Key::MAX)).map(|(&id, _)| id).collect();
        if ids.is_empty() {
            return;
        }
        for id in ids {
            self.forget_piece(id);
        }
        self.complete(task, Err(TaskError::Cancelled));
    }
}
