//! What a table is: its shape, how a push changes it, how it is cut.
//! Knows specifications, not values and not places. Travels from the manager to every node.
//! Source: OSDI'14 §3.1, §3.3.

use alloc::string::String;

use crate::id::{SegmentId, TableId};
use crate::key::KeyRange;

/// The type of one element of a value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub enum ElementType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64.
    F64,
}

impl ElementType {
    /// Bytes of one element.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        match self {
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

/// How a push changes a table: `table[range] = update(table[range], values)`. Key-local (protocol.md P9).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub enum UpdateFunction {
    /// The pushed value replaces the stored one.
    Assign,
    /// The pushed value is added.
    Add,
    /// Sparse logistic regression (OSDI'14 Algorithm 3). A row is a weight and its anchor. Pushed with two arguments (lambda,
    /// damping) are gradient and curvature, for a proximal step; with one (the factor) nothing, for a jump along the line
    /// from anchor to weight.
    ProximalL1,
}

/// What a push of the table waits for before it is applied (protocol.md T10).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub enum Aggregation {
    /// Nothing: each push is applied as it comes.
    None,
    /// The round: contributions are summed in the order of their lanes and applied once, when every member of the view
    /// has closed the round. A lane taken over by another worker *replaces* its contribution to open rounds.
    Round,
}

/// A table as it was made; never changes.
#[derive(Clone, PartialEq, Debug, serde::Serialize, serde::Deserialize)]
pub struct TableSpec {
    /// Unique within the namespace.
    pub name: String,
    /// Separates programs that share a cluster.
    pub namespace: String,
    /// The type of an element.
    pub element: ElementType,
    /// Elements per key.
    pub width: u32,
    /// Keys: the table is dense, its keys are `0..len`.
    pub len: u64,
    /// How a push changes it.
    pub update: UpdateFunction,
    /// What a push waits for.
    pub aggregation: Aggregation,
    /// What every element is before the first push.
    pub initial: f64,
    /// How many segments it is cut into: a power of two, at most `len` and 2^15.
    pub segments: u16,
    /// Tables of one group are cut and placed alike. A table alone has its own name here: give a copy of a specification both.
    pub placement_group: String,
}

/// Why a table cannot be made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum TableError {
    /// No name.
    #[error("a table needs a name")]
    NoName,
    /// No keys.
    #[error("table `{0}` has no keys; its length must be at least 1")]
    Empty(String),
    /// No elements, or more than a frame could hold one key of.
    #[error("table `{name}` has {width} elements per key; allowed are 1 to {max}")]
    Width {
        /// The table.
        name: String,
        /// What was asked for.
        width: u32,
        /// The limit.
        max: u32,
    },
    /// Not a number, or more than the element can hold.
    #[error("table `{0}` is to begin at a value that its elements cannot hold")]
    Initial(String),
    /// A width that the update function cannot work with.
    #[error("table `{name}` has {width} elements per key, but its update function works on rows of {needed}")]
    Rows {
        /// The table.
        name: String,
        /// What was asked for.
        width: u32,
        /// What the update function needs.
        needed: u32,
    },
    /// Not a power of two, or more than there are keys.
    #[error(
        "table `{name}` of {len} keys cannot be cut into {segments} segments; take a power of two, at most the number of keys and 32768"
    )]
    Segments {
        /// The table.
        name: String,
        /// Its keys.
        len: u64,
        /// What was asked for.
        segments: u16,
    },
    /// Another table has the name and another specification.
    #[error("table `{0}` exists with another specification; take another name, or attach with the same one")]
    Differs(String),
    /// Tables of a group must be cut alike.
    #[error(
        "table `{name}` has {len} keys in {segments} segments, but its placement group is cut differently"
    )]
    Group {
        /// The table.
        name: String,
        /// Its keys.
        len: u64,
        /// Its segments.
        segments: u16,
    },
    /// No server to place it on.
    #[error("no server has joined yet; start one, or wait for it")]
    NoServers,
    /// More bytes than can be addressed.
    #[error(
        "table `{name}` of {len} keys and {width} elements each is larger than memory can be; the limit is 2^47 bytes"
    )]
    TooLarge {
        /// The table.
        name: String,
        /// Its keys.
        len: u64,
        /// Elements per key.
        width: u32,
    },
    /// More segments than the control plane carries.
    #[error("the cluster would have {segments} segments; the limit is {max}: cut tables into fewer")]
    TooManySegments {
        /// Segments there would be.
        segments: usize,
        /// The limit.
        max: usize,
    },
    /// Fewer servers than the cluster is to have: a table made now would not use the others.
    #[error(
        "{joined} of {expected} servers are there; the others are not started, have ended, or cannot reach the scheduler"
    )]
    ServersMissing {
        /// Servers there are.
        joined: u32,
        /// Servers there should be.
        expected: u32,
    },
    /// All table ids are used.
    #[error("the cluster has {0} tables already, which is the limit")]
    TooMany(usize),
}

impl TableSpec {
    /// Elements per key, at most: one key's push always fits a frame.
    pub const WIDTH_MAX: u32 = 4096;

    /// A dense table of `len` keys with one `element` each, starting at 0, cut into as many segments as serve a small
    /// cluster: 16, or fewer where there are fewer keys.
    #[must_use]
    pub fn dense(name: &str, element: ElementType, len: u64, update: UpdateFunction) -> Self {
        let mut segments = 16;
        while segments > 1 && u64::from(segments) > len {
            segments /= 2;
        }
        Self {
            name: name.into(),
            namespace: "default".into(),
            element,
            width: 1,
            len,
            update,
            aggregation: Aggregation::None,
            initial: 0.0,
            segments,
            placement_group: name.into(),
        }
    }

    /// Checks everything that does not depend on other tables.
    ///
    /// # Errors
    /// [`TableError`], naming the table and what is allowed.
    pub fn check(&self) -> Result<(), TableError> {
        let name = || self.name.clone();
        if self.name.is_empty() {
            return Err(TableError::NoName);
        }
        if self.len == 0 {
            return Err(TableError::Empty(name()));
        }
        if self.width == 0 || self.width > Self::WIDTH_MAX {
            return Err(TableError::Width { name: name(), width: self.width, max: Self::WIDTH_MAX });
        }
        if u128::from(self.len) * u128::from(self.value_bytes()) > 1 << 47 {
            return Err(TableError::TooLarge { name: name(), len: self.len, width: self.width });
        }
        if self.update == UpdateFunction::ProximalL1 && self.width != 2 {
            return Err(TableError::Rows { name: name(), width: self.width, needed: 2 });
        }
        // Not a number equals nothing, so the table could never be attached to.
        #[allow(clippy::cast_possible_truncation, reason = "whether it fits is the question")]
        let narrowed = self.element == ElementType::F32 && (self.initial as f32).is_infinite();
        if self.initial.is_nan() || narrowed && self.initial.is_finite() {
            return Err(TableError::Initial(name()));
        }
        let segments = self.segments;
        if !segments.is_power_of_two() || segments > 1 << 15 || u64::from(segments) > self.len {
            return Err(TableError::Segments { name: name(), len: self.len, segments });
        }
        Ok(())
    }

    /// The keys of segment `index`. Segments differ by one key at most and none is empty.
    #[must_use]
    pub fn segment_range(&self, index: u16) -> KeyRange {
        segment_range(self.len, self.segments, index)
    }

    /// The segment that holds `key`, which must be one of the table's.
    #[must_use]
    pub fn segment_of(&self, key: u64) -> u16 {
        if self.segments <= 1 {
            return 0;
        }
        let guess = u128::from(key) * u128::from(self.segments) / u128::from(self.len);
        let mut index = u16::try_from(guess).unwrap_or(u16::MAX).min(self.segments - 1);
        // The cut rounds down, so the guess is right or one too low.
        while self.segment_range(index).end <= key {
            index += 1;
        }
        index
    }

    /// The segments that meet `range`, each with the part of the range that lies in it, in key order.
    pub fn cut(
        &self,
        table: TableId,
        range: KeyRange,
    ) -> impl ExactSizeIterator<Item = (SegmentId, KeyRange)> + use<> {
        let (len, segments) = (self.len, self.segments);
        let range = range.intersect(KeyRange::new(0, len));
        let indices = if range.is_empty() {
            0..0
        } else {
            self.segment_of(range.start)..self.segment_of(range.end - 1) + 1
        };
        indices.map(move |index| {
            (SegmentId::new(table, index), segment_range(len, segments, index).intersect(range))
        })
    }

    /// Bytes of a key's stored value, and of what a push carries for it.
    #[must_use]
    pub const fn value_bytes(&self) -> u32 {
        self.width * self.element.bytes()
    }
}

/// The keys of a segment: those of a power of two of them, cut without a division.
fn segment_range(len: u64, segments: u16, index: u16) -> KeyRange {
    let cut = |i: u16| {
        let product = (u128::from(len) * u128::from(i)) >> segments.trailing_zeros();
        u64::try_from(product).unwrap_or(u64::MAX)
    };
    KeyRange::new(cut(index), cut(index + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    proptest! {
        /// The last keys of a range that does not divide evenly are nobody's in other systems.
        #[test]
        fn segments_cut_every_table_without_a_gap(len in 1u64..100_000, power in 0u32..12, key in 0u64..100_000, to in 0u64..100_000) {
            let mut spec = TableSpec::dense("t", ElementType::F64, len, UpdateFunction::Add);
            spec.segments = 1 << power;
            prop_assume!(spec.check().is_ok());
            let mut next = 0;
            for index in 0..spec.segments {
                let range = spec.segment_range(index);
                prop_assert!(range.start == next && !range.is_empty());
                next = range.end;
            }
            prop_assert_eq!(next, len);
            let key = key % len;
            prop_assert!(spec.segment_range(spec.segment_of(key)).covers(KeyRange::new(key, key + 1)));
            let range = KeyRange::new(key, to);
            let parts: Vec<_> = spec.cut(TableId(1), range).collect();
            let mut at = key;
            for (segment, part) in &parts {
                prop_assert!(part.start == at && spec.segment_range(segment.index()).covers(*part));
                at = part.end;
            }
            prop_assert_eq!(at, to.min(len).max(key));
        }
    }

    #[test]
    fn wrong_shapes_are_refused_with_their_limits() {
        let good = TableSpec::dense("t", ElementType::F32, 10, UpdateFunction::Add);
        assert_eq!(good.segments, 8);
        assert_eq!(good.check(), Ok(()));
        for wrong in [3, 0, 16] {
            let spec = TableSpec { segments: wrong, ..good.clone() };
            assert!(matches!(spec.check(), Err(TableError::Segments { .. })), "{wrong} segments of 10 keys");
        }
        assert!(matches!(TableSpec { width: 0, ..good.clone() }.check(), Err(TableError::Width { .. })));
        for initial in [f64::NAN, 1e300, -1e39] {
            assert!(matches!(TableSpec { initial, ..good.clone() }.check(), Err(TableError::Initial(_))));
        }
        assert_eq!(TableSpec { initial: f64::NEG_INFINITY, ..good.clone() }.check(), Ok(()));
        assert!(matches!(TableSpec { len: 0, ..good }.check(), Err(TableError::Empty(_))));
    }

    #[test]
    fn huge_tables_do_not_overflow() {
        let mut spec = TableSpec::dense("t", ElementType::F32, u64::MAX, UpdateFunction::Add);
        spec.segments = 1 << 15;
        assert_eq!(spec.segment_range((1 << 15) - 1).end, u64::MAX);
        assert_eq!(spec.segment_of(u64::MAX - 1), (1 << 15) - 1);
    }
}
