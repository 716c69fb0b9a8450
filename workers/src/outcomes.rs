//! How tasks have ended, until somebody asks; and whose end nobody will ask for.
//! Knows tasks by name; not what they were. Held by the driver.
//!
//! Every task passes through here once, so looking one up costs a multiplication and no tree. The names are this process's own:
//! nobody outside can choose them so that they collide.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};

use rangefold_proto::client::TaskId;

use crate::driver::Ended;

#[derive(Debug)]
enum Outcome {
    Ended(Ended),
    /// It has not ended, and nobody will ask.
    Unwanted,
}

/// Outcomes by task.
#[derive(Default, Debug)]
pub(crate) struct Outcomes(HashMap<TaskId, Outcome, BuildHasherDefault<Multiply>>);

impl Outcomes {
    /// A task has ended.
    pub(crate) fn end(&mut self, task: TaskId, ended: Ended) {
        match self.0.entry(task) {
            Entry::Occupied(entry) => drop(entry.remove()),
            Entry::Vacant(entry) => drop(entry.insert(Outcome::Ended(ended))),
        }
    }

    /// Nobody will ask for the end of this task. `is_open` says whether it is still to come.
    pub(crate) fn forget(&mut self, task: TaskId, is_open: bool) {
        self.0.remove(&task);
        if is_open {
            self.0.insert(task, Outcome::Unwanted);
        }
    }

    /// Takes the end of a task, once.
    pub(crate) fn take(&mut self, task: TaskId) -> Option<Ended> {
        match self.0.entry(task) {
            Entry::Occupied(entry) if matches!(entry.get(), Outcome::Ended(_)) => match entry.remove() {
                Outcome::Ended(ended) => Some(ended),
                Outcome::Unwanted => None,
            },
            _ => None,
        }
    }

    /// Whether a task has ended and its end was not taken.
    pub(crate) fn has(&self, task: TaskId) -> bool {
        matches!(self.0.get(&task), Some(Outcome::Ended(_)))
    }
}

/// Mixes numbers by a multiplication; the table takes its upper and its lower bits.
#[derive(Default)]
struct Multiply(u64);

impl Hasher for Multiply {
    fn finish(&self) -> u64 {
        self.0.rotate_left(26)
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        // An odd number without a pattern: the golden ratio's fraction.
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rangefold_proto::{Lane, Stamp};

    #[test]
    fn an_outcome_is_had_once_and_an_unwanted_one_never() {
        let task = |number| TaskId { lane: Lane(3), stamp: Stamp(number) };
        let ended = || Ended { outcome: Ok(()), values: None };
        let mut outcomes = Outcomes::default();
        outcomes.end(task(1), ended());
        assert!(outcomes.has(task(1)) && !outcomes.has(task(2)));
        assert!(outcomes.take(task(1)).is_some() && outcomes.take(task(1)).is_none());
        outcomes.forget(task(2), true);
        assert!(outcomes.take(task(2)).is_none(), "unwanted is not ended");
        outcomes.end(task(2), ended());
        assert!(!outcomes.has(task(2)));
        outcomes.end(task(3), ended());
        outcomes.forget(task(3), false);
        assert!(outcomes.take(task(3)).is_none());
        assert!(outcomes.0.is_empty(), "nothing is kept of what nobody asks for");
    }
}
