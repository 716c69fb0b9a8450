//! The loops of the update functions: free functions over slices, one pass each, nothing else.
//! Knows elements; not keys, not tables. Called by `dense.rs`. Source: OSDI'14 §3.3, Algorithm 3; protocol.md P9.
//!
//! Each loop is written once. The wide twin of `add` is the same loop compiled for AVX2 or AVX-512 and chosen at run time;
//! as it adds element by element, its result is the portable one bit for bit. Off under Miri, which has no such units.
#![allow(
    unsafe_code,
    reason = "a function compiled for a wider instruction set may be called only where the set is there"
)]

use std::ops::AddAssign;

/// An element that the loops can work on.
pub trait Element: Copy + Default + AddAssign + Send + 'static {
    /// As a double, exactly.
    fn to_f64(self) -> f64;
    /// From a double, rounded to nearest.
    fn from_f64(value: f64) -> Self;
    /// `values[i] += pushed[i]`, by the widest unit there is.
    fn add(values: &mut [Self], pushed: &[Self]);
}

/// `values[i] = pushed[i]`. Both are equally long.
pub fn assign<T: Element>(values: &mut [T], pushed: &[T]) {
    values.copy_from_slice(pushed);
}

/// `values[i] += pushed[i]`. Both are equally long. The oracle of the wide versions.
#[inline(always)]
pub fn add_portable<T: Element>(values: &mut [T], pushed: &[T]) {
    for (value, pushed) in values.iter_mut().zip(pushed) {
        *value += *pushed;
    }
}

/// Sparse logistic regression on rows of a weight and its anchor (OSDI'14 Algorithm 3).
///
/// `rows: [n * 2]`, `pushed: [n * 2]`. With `arguments: [lambda, damping]` pushed are gradient and curvature, and each weight
/// takes a [`proximal_step`]. With `arguments: [factor]` each weight takes a [`jump`] and pushed is not read. With any other
/// number of arguments nothing changes. Two divisions per row.
pub fn proximal_l1<T: Element>(rows: &mut [T], pushed: &[T], arguments: &[f64]) {
    let (rows, _) = rows.as_chunks_mut::<2>();
    let (pairs, _) = pushed.as_chunks::<2>();
    match *arguments {
        [lambda, damping] => {
            for ([weight, _], &[gradient, curvature]) in rows.iter_mut().zip(pairs) {
                let stepped =
                    proximal_step(weight.to_f64(), gradient.to_f64(), curvature.to_f64() * damping, lambda);
                *weight = T::from_f64(stepped);
            }
        }
        [factor] => {
            for [weight, anchor] in rows {
                let before = *weight;
                *weight = T::from_f64(jump(before.to_f64(), anchor.to_f64(), factor));
                *anchor = before;
            }
        }
        _ => {}
    }
}

/// The weight that minimises `gradient * d + curvature * d^2 / 2 + lambda * |weight + d|` over `d`.
///
/// A curvature that is not positive says that nobody has the key: the weight stays. It also stays where the result would not
/// be finite.
fn proximal_step(weight: f64, gradient: f64, curvature: f64, lambda: f64) -> f64 {
    if curvature.is_nan() || curvature <= 0.0 {
        return weight;
    }
    let target = weight - gradient / curvature;
    let threshold = lambda / curvature;
    let moved = if target > threshold {
        target - threshold
    } else if target < -threshold {
        target + threshold
    } else {
        0.0
    };
    if moved.is_finite() && target.is_finite() { moved } else { weight }
}

/// The weight moved on along the line from its anchor. One that is zero at either end stays: it has just entered or left.
fn jump(weight: f64, anchor: f64, factor: f64) -> f64 {
    if weight == 0.0 || anchor == 0.0 { weight } else { weight + factor * (weight - anchor) }
}

macro_rules! element {
    ($type:ty, $to:expr, $from:expr, $avx2:ident, $avx512:ident) => {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        #[target_feature(enable = "avx2")]
        fn $avx2(values: &mut [$type], pushed: &[$type]) {
            add_portable(values, pushed);
        }

        #[cfg(all(target_arch = "x86_64", not(miri)))]
        #[target_feature(enable = "avx512f")]
        fn $avx512(values: &mut [$type], pushed: &[$type]) {
            add_portable(values, pushed);
        }

        impl Element for $type {
            fn to_f64(self) -> f64 {
                ($to)(self)
            }

            fn from_f64(value: f64) -> Self {
                ($from)(value)
            }

            fn add(values: &mut [Self], pushed: &[Self]) {
                #[cfg(all(target_arch = "x86_64", not(miri)))]
                {
                    if is_x86_feature_detected!("avx512f") {
                        // SAFETY: the processor has AVX-512F, as just asked; the function needs nothing else.
                        return unsafe { $avx512(values, pushed) };
                    }
                    if is_x86_feature_detected!("avx2") {
                        // SAFETY: the processor has AVX2, as just asked; the function needs nothing else.
                        return unsafe { $avx2(values, pushed) };
                    }
                }
                add_portable(values, pushed);
            }
        }
    };
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "rounding to the table's element type is what `from_f64` is for"
)]
const fn narrow(value: f64) -> f32 {
    value as f32
}

element!(f32, f64::from, narrow, add_f32_avx2, add_f32_avx512);
element!(f64, std::convert::identity, std::convert::identity, add_f64_avx2, add_f64_avx512);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_proximal_step_minimises_its_model() {
        // Each: weight, gradient, curvature, expected, at lambda 1.
        let cases = [
            (1.0, 3.0, 2.0, 0.0),
            (1.0, 1.0, 2.0, 0.0),
            (0.0, 0.5, 4.0, 0.0),
            (2.0, 0.0, 1.0, 1.0),
            (-2.0, 0.0, 1.0, -1.0),
            // Nobody has the key, or the numbers are no numbers: it stays.
            (5.0, 1.0, 0.0, 5.0),
            (2.0, f64::INFINITY, 1.0, 2.0),
            (1.0, f64::NAN, 1.0, 1.0),
            (1.0, 1.0, f64::NAN, 1.0),
        ];
        for (weight, gradient, curvature, expected) in cases {
            let mut row = [weight, 7.0];
            proximal_l1(&mut row, &[gradient, curvature], &[1.0, 1.0]);
            assert_eq!(row, [expected, 7.0], "{weight} {gradient} {curvature}");
        }
    }

    #[test]
    fn a_jump_goes_on_along_the_line_and_moves_the_anchor() {
        let mut rows = [3.0, 2.0, 3.0, 0.0, 0.0, 2.0];
        proximal_l1(&mut rows, &[0.0; 6], &[2.0]);
        assert_eq!(rows, [5.0, 3.0, 3.0, 3.0, 0.0, 0.0]);
        let before = rows;
        proximal_l1(&mut rows, &[1.0; 6], &[1.0, 2.0, 3.0]);
        assert_eq!(rows, before, "arguments that mean nothing change nothing");
    }

    proptest! {
        #[test]
        fn the_wide_add_is_the_portable_one_bit_for_bit(
            pairs in proptest::collection::vec((any::<f32>(), any::<f32>()), 0..200), offset in 0usize..17,
        ) {
            let offset = offset.min(pairs.len());
            let (mut a, b): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
            let mut expected = a.clone();
            add_portable(&mut expected[offset..], &b[offset..]);
            f32::add(&mut a[offset..], &b[offset..]);
            prop_assert!(a.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())));
        }
    }
}
