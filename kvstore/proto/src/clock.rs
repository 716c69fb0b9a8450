//! The clock of one lane on one segment: which pushes have been applied to which keys.
//! Knows stamps and keys; not values, not who asks. Called by the server core for each push frame.
//! Source: OSDI'14 §4.1, Algorithm 2; protocol.md P1 to P3.
//!
//! `departure:` at rest the paper's clock is one interval per (segment, lane), and so is this one. While a push of
//! several tiles is under way the paper splits the interval; here the tiles of a push are taken in key order, so the
//! split is always one point, `until`. Two pushes in flight over different keys, or tiles out of order, are answered
//! with a gap. The interval map of protocol.md §2 lifts that; no frame changes.

use crate::key::{Key, KeyRange};
use crate::time::Stamp;

/// What a clock says to a frame (protocol.md P3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    /// Nothing of the tile is open: all of it has been applied before.
    Duplicate,
    /// A predecessor is missing (or an earlier tile of the same push): nothing may be applied.
    Gap,
    /// These keys of the tile are open and may be applied, now and in full.
    Open(KeyRange),
}

/// `clock(k) = x`: every push of the lane with a stamp of at most x that touches k has been applied to k, once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clock {
    /// The stamp of the whole segment.
    stamp: Stamp,
    /// A push in the middle of its tiles: keys below `until` stand at its stamp already.
    underway: Option<(Stamp, Key)>,
}

impl Clock {
    /// A clock of nothing but `floor`, the stamp below an incarnation's first (protocol.md P10).
    #[must_use]
    pub const fn at(floor: Stamp) -> Self {
        Self { stamp: floor, underway: None }
    }

    /// The lowest stamp of any key: what may be acknowledged (protocol.md P6).
    #[must_use]
    pub const fn lowest(&self) -> Stamp {
        self.stamp
    }

    /// How many intervals there are: 1 at rest, 2 in the middle of a push.
    #[must_use]
    pub const fn intervals(&self) -> usize {
        if self.underway.is_some() { 2 } else { 1 }
    }

    /// The stamp at `key`.
    #[must_use]
    pub fn stamp_at(&self, key: Key) -> Stamp {
        match self.underway {
            Some((stamp, until)) if key < until => stamp,
            _ => self.stamp,
        }
    }

    /// Judges the tile of a push; constant time, changes nothing.
    #[must_use]
    pub fn judge(&self, segment: KeyRange, tile: KeyRange, stamp: Stamp, previous: Stamp) -> Admission {
        //= protocol.md P3
        if stamp <= self.stamp {
            return Admission::Duplicate;
        }
        let from = match self.underway {
            Some((underway, until)) if underway == stamp => until,
            Some(_) => return Admission::Gap,
            None if cfg!(planted = "predecessor_not_compared") => segment.start,
            None if previous > self.stamp => return Admission::Gap,
            None => segment.start,
        };
        if tile.start > from {
            return Admission::Gap;
        }
        let open = KeyRange::new(from, tile.end);
        if open.is_empty() { Admission::Duplicate } else { Admission::Open(open) }
    }

    /// Moves the clock over keys that `judge` called open.
    pub fn advance(&mut self, segment: KeyRange, open: KeyRange, stamp: Stamp) {
        debug_assert!(segment.covers(open) && stamp > self.stamp, "{open:?} of {segment:?} at {stamp:?}");
        if open.end >= segment.end {
            *self = Self::at(stamp);
        } else {
            self.underway = Some((stamp, open.end));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    const SEGMENT: KeyRange = KeyRange::new(10, 20);

    fn push(clock: &mut Clock, tile: (u64, u64), stamp: u64, previous: u64) -> Admission {
        let admission = clock.judge(SEGMENT, KeyRange::new(tile.0, tile.1), Stamp(stamp), Stamp(previous));
        if let Admission::Open(open) = admission {
            clock.advance(SEGMENT, open, Stamp(stamp));
        }
        admission
    }

    //= protocol.md P3
    //= type=test
    #[test]
    fn a_repeat_is_a_duplicate_and_a_missing_predecessor_a_gap() {
        let mut clock = Clock::at(Stamp(0));
        // Expect: t3 names t2 as its predecessor; t2 has not come.
        assert_eq!(push(&mut clock, (10, 20), 3, 2), Admission::Gap);
        assert_eq!(push(&mut clock, (10, 20), 2, 0), Admission::Open(SEGMENT));
        assert_eq!(push(&mut clock, (10, 20), 2, 0), Admission::Duplicate);
        // Expect: t1 is older than what was applied, so the lane never pushed it here or it is covered.
        assert_eq!(push(&mut clock, (10, 20), 1, 0), Admission::Duplicate);
        assert_eq!(push(&mut clock, (10, 20), 3, 2), Admission::Open(SEGMENT));
    }

    //= protocol.md P5
    //= type=test
    #[test]
    fn a_push_cut_anew_is_applied_in_its_open_part_only() {
        let mut clock = Clock::at(Stamp(0));
        assert_eq!(push(&mut clock, (10, 14), 1, 0), Admission::Open(KeyRange::new(10, 14)));
        assert_eq!(clock.intervals(), 2);
        assert_eq!(clock.lowest(), Stamp(0));
        // Expect: the same push in one frame; keys 10 to 13 are covered.
        assert_eq!(push(&mut clock, (10, 20), 1, 0), Admission::Open(KeyRange::new(14, 20)));
        assert_eq!((clock.intervals(), clock.lowest()), (1, Stamp(1)));
    }

    #[test]
    fn a_tile_before_its_turn_is_a_gap() {
        let mut clock = Clock::at(Stamp(0));
        assert_eq!(push(&mut clock, (14, 20), 1, 0), Admission::Gap);
        assert_eq!(push(&mut clock, (10, 14), 1, 0), Admission::Open(KeyRange::new(10, 14)));
        // Expect: the next push may not overtake the rest of this one.
        assert_eq!(push(&mut clock, (10, 20), 2, 1), Admission::Gap);
    }

    proptest! {
        /// Against a naive oracle: one list of applied stamps per key. Frames come in any order, cut anyhow, repeated.
        #[test]
        fn agrees_with_one_list_per_key(frames in proptest::collection::vec((0u64..5, 0u64..11, 0u64..11), 0..200)) {
            let mut clock = Clock::at(Stamp(0));
            let mut applied: Vec<Vec<u64>> = alloc::vec![Vec::new(); 10];
            for (push_index, a, b) in frames {
                let (stamp, previous) = (push_index + 1, push_index);
                let tile = KeyRange::new(10 + a.min(b), 10 + a.max(b));
                if tile.is_empty() { continue; }
                if let Admission::Open(open) = clock.judge(SEGMENT, tile, Stamp(stamp), Stamp(previous)) {
                    clock.advance(SEGMENT, open, Stamp(stamp));
                    prop_assert!(tile.covers(open));
                    for key in open.start..open.end {
                        applied[usize::try_from(key - 10).unwrap()].push(stamp);
                    }
                }
                for (index, list) in applied.iter().enumerate() {
                    // Each push once, in order, without a hole; and the clock says exactly that.
                    let expected: Vec<u64> = (1..=list.len() as u64).collect();
                    prop_assert_eq!(list, &expected);
                    prop_assert_eq!(clock.stamp_at(10 + index as u64).0, list.len() as u64);
                }
            }
        }
    }
}
