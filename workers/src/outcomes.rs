//! How tasks have ended, until somebody asks.
//! Knows tasks by name; not what they were. Held by the driver.
//!
//! Looking one up costs a multiplication and no tree. The names are this process's own: nobody outside can choose them so that
//! they collide.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use rangefold_proto::client::TaskId;

use crate::driver::Ended;

/// Outcomes by task.
#[derive(Default, Debug)]
pub(crate) struct Outcomes(HashMap<TaskId, Ended, BuildHasherDefault<Multiply>>);

impl Outcomes {
    /// A task has ended.
    pub(crate) fn end(&mut self, task: TaskId, ended: Ended) {
        self.0.insert(task, ended);
    }

    /// Takes the end of a task, once.
    pub(crate) fn take(&mut self, task: TaskId) -> Option<Ended> {
        // Of most pushes nobody asks for the end, so there is often nothing here.
        if self.0.is_empty() { None } else { self.0.remove(&task) }
    }

    /// Whether a task has ended and its end was not taken.
    pub(crate) fn has(&self, task: TaskId) -> bool {
        self.0.contains_key(&task)
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
    fn an_outcome_is_had_once() {
        let task = |number| TaskId { lane: Lane(3), stamp: Stamp(number) };
        let mut outcomes = Outcomes::default();
        assert!(outcomes.take(task(1)).is_none());
        for number in 0..100 {
            outcomes.end(task(number), Ended { outcome: Ok(()), values: None });
        }
        assert!(outcomes.has(task(1)) && !outcomes.has(task(100)));
        assert!((0..100).all(|number| outcomes.take(task(number)).is_some()));
        assert!(outcomes.take(task(1)).is_none() && outcomes.0.is_empty());
    }
}
