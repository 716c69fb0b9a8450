//! Virtual time and what will happen when.
//! Knows an order of times; does not know what happens. Used by `network`.

use std::collections::BTreeMap;

/// Things to come, in the order of their time and, at the same time, in the order in which they were planned.
#[derive(Debug)]
pub(super) struct Timeline<T> {
    now_ns: u64,
    planned_count: u64,
    planned: BTreeMap<(u64, u64), T>,
}

impl<T> Timeline<T> {
    pub(super) fn new() -> Self {
        Self { now_ns: 0, planned_count: 0, planned: BTreeMap::new() }
    }

    pub(super) fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// Plans something; not before now.
    pub(super) fn plan(&mut self, at_ns: u64, thing: T) {
        self.planned_count += 1;
        self.planned.insert((at_ns.max(self.now_ns), self.planned_count), thing);
    }

    pub(super) fn next_ns(&self) -> Option<u64> {
        self.planned.first_key_value().map(|((at_ns, _), _)| *at_ns)
    }

    /// The next thing due at `until_ns` or before, with time moved there; or `None`, with time moved to `until_ns`.
    pub(super) fn step(&mut self, until_ns: u64) -> Option<T> {
        if self.next_ns().is_some_and(|at_ns| at_ns <= until_ns) {
            let ((at_ns, _), thing) = self.planned.pop_first()?;
            self.now_ns = at_ns;
            return Some(thing);
        }
        self.now_ns = self.now_ns.max(until_ns);
        None
    }
}
