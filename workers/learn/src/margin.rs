//! Knows: the fixed point in which margins are kept, its range, and when a weight would leave it.
//! Knows not: labels, losses.
//! Called by: `lane`.
//! Paper: none; a promise of ours, that a restarted worker contributes the same bits.
//!
//! The margin of a row is `sum_j fixed(x_j * w_j)` in units of 2^-40, a sum of integers. Integer addition is exact
//! and has no order, so the margin is a function of the weights alone: a worker that followed a million updates and
//! one that has just read the weights hold the same bits. A sum of doubles would drift apart in its last bits.
//!
//! Range: a product may reach `2^62 / (n + 2)` units, `n` the pairs of the longest row, which keeps every sum within
//! 63 bits: with 1,000 pairs a row, products up to 4,185 each. What lies beyond is an error at the door
//! ([`MarginRange::check`]), before anything is added; so sums never overflow, and nothing saturates in silence.
//! Error: at most `(n + 1) * 2^-41` per margin.

/// Bits behind the point.
pub const FRACTION_BITS: u32 = 40;
/// Units in 1.
const ONE: f64 = (1_u64 << FRACTION_BITS) as f64;

/// A product of a value and a weight left the range of the fixed point.
///
/// Only data far from unit scale lead here (values above 10^4, say): scale the features.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error(
    "feature {feature}: value times weight reaches {product:e}, margins hold up to {product_max:e}; scale the data"
)]
pub struct MarginRangeError {
    /// The feature, from 0.
    pub feature: usize,
    /// The largest product of the column.
    pub product: f64,
    /// The largest one that fits.
    pub product_max: f64,
}

/// The largest product of a value and a weight that may enter margins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MarginRange {
    product_max: f64,
}

impl MarginRange {
    /// The range for rows of at most `longest_row` pairs, the constant feature not counted.
    #[must_use]
    pub fn new(longest_row: usize) -> Self {
        // One term more for the constant feature, one for rounding.
        let terms = longest_row as f64 + 2.0;
        Self { product_max: (1_u64 << (62 - FRACTION_BITS)) as f64 / terms }
    }

    /// Passes if a column of values up to `value_max` in size may take the weight.
    ///
    /// # Errors
    /// The product would leave the range, or is not a number.
    pub fn check(self, feature: usize, value_max: f64, weight: f64) -> Result<(), MarginRangeError> {
        let product = value_max * weight.abs();
        if product <= self.product_max {
            Ok(())
        } else {
            Err(MarginRangeError { feature, product, product_max: self.product_max })
        }
    }
}

/// The nearest fixed-point number, halves away from zero. Beyond the range the result saturates; callers have checked.
#[must_use]
#[inline]
#[allow(
    clippy::cast_possible_truncation,
    reason = "truncation is the rounding; `as` saturates and never panics"
)]
pub fn fixed(value: f64) -> i64 {
    let scaled = value * ONE;
    (scaled + 0.5_f64.copysign(scaled)) as i64
}

/// The double nearest to a fixed-point number.
#[must_use]
#[inline]
pub fn double(margin: i64) -> f64 {
    margin as f64 * (1.0 / ONE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rounding_is_symmetric() {
        assert_eq!((fixed(0.0), fixed(1.0), fixed(-1.0)), (0, 1 << 40, -(1 << 40)));
        assert_eq!((fixed(0.5 / ONE), fixed(-0.5 / ONE), fixed(0.49 / ONE)), (1, -1, 0));
        assert_eq!(double(fixed(0.75)), 0.75);
        assert_eq!(fixed(f64::NAN), 0);
        assert_eq!(fixed(f64::INFINITY), i64::MAX);
    }

    #[test]
    fn the_range_keeps_every_sum_within_the_integer() {
        for longest_row in [0_usize, 1, 14, 1000, 1 << 20] {
            let range = MarginRange::new(longest_row);
            let largest = fixed(range.product_max);
            let terms = i128::try_from(longest_row).unwrap() + 1;
            assert!(i128::from(largest) * terms < 1_i128 << 62);
            assert!(range.check(3, range.product_max, -1.0).is_ok());
            assert!(range.check(3, range.product_max, 1.001).is_err());
        }
        let error = MarginRange::new(1000).check(7, 1.0, f64::NAN).unwrap_err();
        assert_eq!(error.feature, 7);
    }

    proptest! {
        #[test]
        fn a_round_trip_loses_half_a_unit_at_most(value in -1e5_f64..1e5) {
            prop_assert!((double(fixed(value)) - value).abs() <= 0.5 / ONE + value.abs() * 1e-15);
        }
    }
}
