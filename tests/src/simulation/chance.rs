//! The simulator's random numbers: splitmix64, so that a seed means the same run on every machine and version.

use std::ops::Range;

use rangefold_proto::ring::mix;

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// The stream of a seed; different purposes take different salts.
    #[must_use]
    pub fn new(seed: u64, salt: u64) -> Self {
        Self(mix(seed ^ mix(salt)))
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number of a range that is not empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.any() % (range.end - range.start).max(1)
    }

    /// The same for small counts.
    pub fn count(&mut self, range: Range<u64>) -> u32 {
        u32::try_from(self.within(range)).unwrap_or(u32::MAX)
    }

    /// True in so many of a hundred cases.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.any() % 100 < percent
    }
}
