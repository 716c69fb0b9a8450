//! Keys and half-open ranges of keys.
//! Knows integers and order only. Used by everything that names a part of a table.
//! Source: OSDI'14 §3.1 (ordered keys), §3.2 (ranges).

use core::fmt;

/// A parameter's key. Keys are ordered; a dense table of length n has the keys `0..n`.
pub type Key = u64;

/// The keys `start..end`; empty when `start >= end`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
pub struct KeyRange {
    /// The first key.
    pub start: Key,
    /// One past the last key.
    pub end: Key,
}

impl KeyRange {
    /// The keys `start..end`.
    #[must_use]
    pub const fn new(start: Key, end: Key) -> Self {
        Self { start, end }
    }

    /// How many keys there are.
    #[must_use]
    pub const fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether there is no key.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.start >= self.end
    }

    /// The keys in both ranges.
    #[must_use]
    pub fn intersect(self, other: Self) -> Self {
        Self { start: self.start.max(other.start), end: self.end.min(other.end) }
    }

    /// Whether every key of `other` is in `self`; an empty range is in any.
    #[must_use]
    pub const fn covers(self, other: Self) -> bool {
        other.is_empty() || (self.start <= other.start && other.end <= self.end)
    }
}

impl From<core::ops::Range<Key>> for KeyRange {
    fn from(range: core::ops::Range<Key>) -> Self {
        Self { start: range.start, end: range.end }
    }
}

impl fmt::Debug for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}
