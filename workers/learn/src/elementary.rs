//! Knows: exp and ln in double precision, in operations whose result IEEE 754 fixes.
//! Knows not: rows, losses.
//! Called by: `logistic`.
//! Paper: none; a promise of ours, that a lane computed on another machine gives the same bits.
//!
//! The standard library calls the system's libm, which picks a variant per processor (with or without fused
//! multiply-add) and changes between versions: two workers could disagree in the last bit. Here are only additions,
//! multiplications, divisions and bit patterns. Both functions are within 2 units in the last place of the truth.

use std::f64::consts::{LN_2, LOG2_E, SQRT_2};

/// The upper bits of ln 2: its product with any exponent of a double is exact.
const LN_2_HIGH: f64 = f64::from_bits(LN_2.to_bits() & !0x7ff_ffff);
/// What [`LN_2_HIGH`] lacks, from ln 2 in more digits than a double holds.
const LN_2_LOW: f64 = (LN_2 - LN_2_HIGH) + 2.319_046_813_846_299_6e-17;

/// Below this the result is 0: the loss of such a row is 0 to 300 digits, and subnormals are slow.
const EXPONENT_MIN: f64 = -708.0;

/// `e^x` for `x <= 0`; 0 below -708. A positive `x` is read as 0.
///
/// Cost: about 20 multiplications and additions, no branch that depends on data but the first.
#[must_use]
pub fn exp_of_negative(x: f64) -> f64 {
    if x < EXPONENT_MIN {
        return 0.0;
    }
    let x = x.min(0.0);
    // x = k ln 2 + r with |r| <= ln 2 / 2; the cast truncates towards zero, so half is taken off first.
    #[allow(clippy::cast_possible_truncation, reason = "x is in [-708, 0], k is in [-1021, 0]")]
    let k = (x * LOG2_E - 0.5) as i64;
    let k_float = k as f64;
    let r = (x - k_float * LN_2_HIGH) - k_float * LN_2_LOW;
    // Taylor to r^13 / 13!: the next term is below 5e-18.
    let mut sum = INVERSE_FACTORIALS[0];
    for coefficient in &INVERSE_FACTORIALS[1..] {
        sum = sum * r + coefficient;
    }
    sum * f64::from_bits((1023 + k).cast_unsigned() << 52)
}

/// `1 / 13!, 1 / 12!, .. 1 / 1!, 1 / 0!`.
const INVERSE_FACTORIALS: [f64; 14] = {
    let mut table = [1.0; 14];
    let mut factorial = 1.0;
    let mut n = 1;
    while n < 14 {
        factorial *= n as f64;
        table[13 - n] = 1.0 / factorial;
        n += 1;
    }
    table
};

/// `ln x` for positive, normal, finite `x`; without meaning for others (it never panics).
///
/// Cost: one division, about 15 multiplications and additions.
#[must_use]
pub fn ln_of_positive(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) & 0x7ff).cast_signed() - 1023;
    let mut mantissa = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | (1023 << 52));
    if mantissa > SQRT_2 {
        mantissa *= 0.5;
        exponent += 1;
    }
    // ln m = 2 atanh(s), s = (m - 1) / (m + 1), |s| < 0.172; the term after s^21 / 21 is below 1e-18.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let mut sum = 1.0 / 21.0;
    for odd in [19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0] {
        sum = sum * square + 1.0 / odd;
    }
    let small = 2.0 * s * (square * sum) + 2.0 * s;
    let exponent = exponent as f64;
    exponent * LN_2_HIGH + (small + exponent * LN_2_LOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(ours: f64, theirs: f64, at: f64) {
        assert!(
            (ours - theirs).abs() <= 4.5e-16 * theirs.abs().max(1e-300),
            "at {at}: {ours} against {theirs}"
        );
    }

    #[test]
    fn exp_agrees_with_the_library() {
        for step in 0..200_000 {
            let x = -700.0 * (f64::from(step) / 200_000.0).powi(3);
            assert_close(exp_of_negative(x), x.exp(), x);
        }
        assert_eq!(exp_of_negative(0.0), 1.0);
        assert_eq!(exp_of_negative(-709.0), 0.0);
        assert_eq!(exp_of_negative(f64::NEG_INFINITY), 0.0);
        assert!(exp_of_negative(-708.0) > 0.0);
    }

    #[test]
    fn ln_agrees_with_the_library() {
        for step in 1..200_000 {
            let x = f64::from(step) / 100_000.0;
            assert_close(ln_of_positive(x), x.ln(), x);
            let tiny = x * 1e-290;
            assert_close(ln_of_positive(tiny), tiny.ln(), tiny);
        }
        assert_eq!(ln_of_positive(1.0), 0.0);
    }
}
