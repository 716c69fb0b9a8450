//! Stamps, rounds, incarnations, and the time that inputs carry.
//! Knows how they are packed and compared; reads no clock.
//! Source: OSDI'14 §4.1 (timestamps); protocol.md §1.

use core::fmt;

/// Nanoseconds since an origin that the shell chose. Inputs carry it; the cores never ask for it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Nanos(pub u64);

impl Nanos {
    /// This time and `delay_ns` more.
    #[must_use]
    pub const fn after(self, delay_ns: u64) -> Self {
        Self(self.0.saturating_add(delay_ns))
    }
}

/// Counts the processes that have held a lane; never issued twice for it. 24 bits.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, serde::Serialize, serde::Deserialize,
)]
pub struct Incarnation(pub u32);

impl Incarnation {
    /// The stamp below every stamp of this incarnation: where its predecessors begin (protocol.md P1, P10).
    #[must_use]
    pub const fn floor(self) -> Stamp {
        Stamp((self.0 as u64) << Stamp::TIME_BITS)
    }
}

/// A job's logical step, counted from 0 by each lane itself (protocol.md §1).
pub type Round = u32;

/// Identifies a task of a lane: `incarnation << 40 | time`, time counted from 1 (protocol.md §1).
///
/// Stamps of one lane are ordered as integers; stamps of two lanes cannot be compared.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
pub struct Stamp(pub u64);

impl Stamp {
    /// Bits of the time; 2^40 tasks of one incarnation.
    pub const TIME_BITS: u32 = 40;

    /// The process that issued it.
    #[must_use]
    pub const fn incarnation(self) -> Incarnation {
        Incarnation((self.0 >> Self::TIME_BITS) as u32)
    }

    /// The stamp of the next task.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0 >> Self::TIME_BITS, self.0 & ((1 << Self::TIME_BITS) - 1))
    }
}
