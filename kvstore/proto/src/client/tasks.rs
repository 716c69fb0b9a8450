//! The tasks that are open: found by their stamps, which a lane issues one after the other.
//! Knows stamps; not what a task is made of. Held by the client core.
//! Source: protocol.md §1 (stamps), B6.
//!
//! Most tasks end soon and in order, so a lane's are a window over its stamps: constant time, and no allocation once it has
//! grown. Of a few that stay open while many come and go (a pull that is parked), the window would grow with those that have
//! gone; so it lets go of its oldest, which are then found by search.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use crate::id::Lane;
use crate::slab::Slab;
use crate::time::{Round, Stamp};

use super::{Task, TaskId};

#[derive(Default, Debug)]
struct Window {
    /// The stamp of the first slot.
    first: u64,
    slots: VecDeque<Option<Task>>,
    /// Open tasks that are older than the window.
    elders: BTreeMap<u64, Task>,
}

/// How many of a lane's tasks are open, by their rounds, ascending.
#[derive(Default, Debug)]
pub(super) struct OpenRounds(VecDeque<(Round, u32)>);

impl OpenRounds {
    /// A task of the lane's newest round begins.
    pub(super) fn begin(&mut self, round: Round) {
        match self.0.back_mut() {
            Some((newest, count)) if *newest == round => *count += 1,
            _ => self.0.push_back((round, 1)),
        }
    }

    pub(super) fn end(&mut self, round: Round) {
        let Some((_, count)) = self.0.iter_mut().find(|(of, _)| *of == round) else { return };
        *count -= 1;
        if *count == 0 {
            self.0.retain(|(_, count)| *count > 0);
        }
    }

    /// The oldest round with an open task.
    pub(super) fn oldest(&self) -> Option<Round> {
        self.0.front().map(|&(round, _)| round)
    }
}

/// Open tasks, by lane and stamp.
#[derive(Debug)]
pub(super) struct Tasks {
    lanes: Slab<Lane, Window>,
    count: usize,
    /// Slots of a window, at most.
    slots_max: usize,
}

impl Window {
    fn slot(&mut self, stamp: Stamp) -> Option<&mut Option<Task>> {
        let at = usize::try_from(stamp.0.checked_sub(self.first)?).ok()?;
        self.slots.get_mut(at)
    }

    /// Makes the oldest slot an elder.
    fn age(&mut self) {
        if let Some(Some(task)) = self.slots.pop_front() {
            self.elders.insert(self.first, task);
        }
        self.first += 1;
    }

    fn trim(&mut self) {
        while let Some(None) = self.slots.front() {
            self.slots.pop_front();
            self.first += 1;
        }
    }
}

impl Tasks {
    pub(super) fn new(tasks_max: u32) -> Self {
        Self { lanes: Slab::default(), count: 0, slots_max: 2 * tasks_max as usize }
    }

    pub(super) const fn len(&self) -> usize {
        self.count
    }

    /// A lane's newest task.
    pub(super) fn insert(&mut self, id: TaskId, task: Task) {
        let window = self.lanes.get_or_insert_with(id.lane, Window::default);
        while !window.slots.is_empty()
            && (window.slots.len() >= self.slots_max
                || window.first + window.slots.len() as u64 != id.stamp.0)
        {
            window.age();
        }
        if window.slots.is_empty() {
            window.first = id.stamp.0;
        }
        window.slots.push_back(Some(task));
        self.count += 1;
    }

    pub(super) fn get(&self, id: TaskId) -> Option<&Task> {
        let window = self.lanes.get(id.lane)?;
        match id.stamp.0.checked_sub(window.first).and_then(|at| usize::try_from(at).ok()) {
            Some(at) => window.slots.get(at)?.as_ref(),
            None => window.elders.get(&id.stamp.0),
        }
    }

    pub(super) fn get_mut(&mut self, id: TaskId) -> Option<&mut Task> {
        let window = self.lanes.get_mut(id.lane)?;
        if id.stamp.0 < window.first {
            return window.elders.get_mut(&id.stamp.0);
        }
        window.slot(id.stamp)?.as_mut()
    }

    /// A piece of a task is done. The task, if that was the last.
    pub(super) fn piece_done(&mut self, id: TaskId) -> Option<Task> {
        let window = self.lanes.get_mut(id.lane)?;
        if id.stamp.0 >= window.first {
            let slot = window.slot(id.stamp)?;
            let task = slot.as_mut()?;
            task.left -= 1;
            if task.left > 0 {
                return None;
            }
            let task = slot.take();
            self.count -= 1;
            window.trim();
            return task;
        }
        let task = window.elders.get_mut(&id.stamp.0)?;
        task.left -= 1;
        if task.left > 0 { None } else { self.remove(id) }
    }

    pub(super) fn remove(&mut self, id: TaskId) -> Option<Task> {
        let window = self.lanes.get_mut(id.lane)?;
        let removed = match window.slot(id.stamp) {
            Some(slot) => slot.take(),
            None => window.elders.remove(&id.stamp.0),
        }?;
        self.count -= 1;
        window.trim();
        Some(removed)
    }

    /// A lane's open tasks, ascending.
    pub(super) fn of_lane(&self, lane: Lane) -> Vec<TaskId> {
        let Some(window) = self.lanes.get(lane) else { return Vec::new() };
        let young = (window.first..).zip(&window.slots).filter(|(_, task)| task.is_some());
        let stamps = window.elders.keys().copied().chain(young.map(|(stamp, _)| stamp));
        stamps.map(|stamp| TaskId { lane, stamp: Stamp(stamp) }).collect()
    }

    /// A lane whose tasks have all ended is not held any more.
    pub(super) fn forget_lane(&mut self, lane: Lane) {
        debug_assert!(self.of_lane(lane).is_empty(), "{lane} still has open tasks");
        self.lanes.remove(lane);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a map, with a window so small that most tasks outlive it.
        #[test]
        fn a_window_finds_what_a_map_finds(steps in proptest::collection::vec((0u8..3, 0u32..2, 0usize..12), 1..200)) {
            let mut tasks = Tasks::new(2);
            let mut oracle = BTreeMap::new();
            let mut next = [100u64, 100];
            for (step, lane, pick) in steps {
                let of = |stamp| TaskId { lane: Lane(lane), stamp: Stamp(stamp) };
                match step {
                    0 => {
                        // A new incarnation's stamps begin elsewhere.
                        next[lane as usize] += if pick == 0 { 1000 } else { 1 };
                        let id = of(next[lane as usize]);
                        tasks.insert(id, Task { round: 0, left: 1, bytes: id.stamp.0, released: false });
                        oracle.insert(id, id.stamp.0);
                    }
                    1 => {
                        let id = oracle.keys().nth(pick).copied().unwrap_or(of(7));
                        prop_assert_eq!(tasks.remove(id).map(|task| task.bytes), oracle.remove(&id));
                    }
                    _ => {
                        let id = of(next[lane as usize].saturating_sub(pick as u64));
                        prop_assert_eq!(tasks.get(id).map(|task| task.bytes), oracle.get(&id).copied());
                        prop_assert_eq!(tasks.get_mut(id).map(|task| task.bytes), oracle.get(&id).copied());
                    }
                }
                prop_assert_eq!(tasks.len(), oracle.len());
                let mine: Vec<TaskId> = oracle.keys().copied().filter(|id| id.lane == Lane(lane)).collect();
                prop_assert_eq!(tasks.of_lane(Lane(lane)), mine);
                for window in tasks.lanes.values() {
                    prop_assert!(window.slots.len() <= tasks.slots_max);
                }
            }
        }
    }
}
