//! The loops of the update functions: free functions over slices, one pass each, nothing else.
//! Knows elements; not keys, not tables. Called by `dense.rs`. Source: OSDI'14 §3.3, Algorithm 3; protocol.md P9.
//!
//! Each loop is written once. The wide twin of `add` is the same loop compiled for AVX2 or AVX-512 and chosen at run time;
//! as it adds element by element, its result is the portable one bit for bit. Off under Miri, which has no such units.
#![allow(unsafe_code, reason = "a function compiled for a wider instruction set may be called only where the set is there")]

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

/// One proximal step per value (OSDI'14 Algorithm 3): the weight that minimises
/// `gradient * d + curvature * damping * d^2 / 2 + lambda * |weight + d|` over `d`.
///
/// `values: [n]`, `pushed: [n * 2]`, gradient and curvature in turn, `arguments: [lambda, damping]`. A curvature that is not
/// positive says that nobody has the key: the weight stays. It also stays where the result would not be finite. With
/// other than two arguments nothing changes. Two divisions per value.
pub fn proximal_l1<T: Element>(values: &mut [T], pushed: &[T], arguments: &[f64]) {
    let &[lambda, damping] = arguments else { return };
    let (pairs, _) = pushed.as_chunks::<2>();
    for (value, &[gradient, curvature]) in values.iter_mut().zip(pairs) {
        let curvature = curvature.to_f64() * damping;
        if curvature.is_nan() || curvature <= 0.0 {
            continue;
        }
        let target = value.to_f64() - gradient.to_f64() / curvature;
        let threshold = lambda / curvature;
        let moved = if target > threshold {
            target - threshold
        } else if target < -threshold {
            target + threshold
        } else {
            0.0
        };
        if moved.is_finite() && target.is_finite() {
            *value = T::from_f64(moved);
        }
    }
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

#[allow(clippy::cast_possible_truncation, reason = "rounding to the table's element type is what `from_f64` is for")]
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
        // d minimises 3 d + 2 d^2 / 2 + |1 + d|: at w + d = 0 the slope is 3 - 2 + [-1, 1], so w stays below 0.
        let mut values = [1.0f64, 1.0, 0.0, 5.0];
        apply_step(&mut values, &[3.0, 2.0, 1.0, 2.0, 0.5, 4.0, 1.0, 0.0]);
        // 1 - 1.5 = -0.5, threshold 0.5; 1 - 0.5 = 0.5, threshold 0.5; |0.5| <= 1 stays 0; no curvature stays.
        assert_eq!(values, [0.0, 0.0, 0.0, 5.0]);
        let mut values = [2.0f64, -2.0];
        apply_step(&mut values, &[0.0, 1.0, 0.0, 1.0]);
        assert_eq!(values, [1.0, -1.0]);
        let mut values = [2.0f64, 1.0];
        apply_step(&mut values, &[f64::INFINITY, 1.0, f64::NAN, 1.0]);
        assert_eq!(values, [2.0, 1.0], "what is not finite moves nothing");
    }

    fn apply_step(values: &mut [f64], pushed: &[f64]) {
        proximal_l1(values, pushed, &[1.0, 1.0]);
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
