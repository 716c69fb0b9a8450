//! Latencies of one run: a histogram, and exactly what need not be rounded.
//! Knows nanoseconds and counts; not what was measured. Filled by `raw/sender.rs` and `store.rs`, merged by `sweep.rs`.
//! Source: G. Tene's HdrHistogram; memory does not grow with the number of samples.

use hdrhistogram::Histogram;

/// Longest latency that is told apart: an hour. Longer ones count as that.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;
/// Significant digits: a percentile is at most 0.1 % too high.
const DIGITS: u8 = 3;
/// A percentile that fewer than one sample lies above is not known: 99 % needs so many.
const P99_SAMPLES_MIN: u64 = 100;
/// As above, for 99.9 %.
const P999_SAMPLES_MIN: u64 = 1000;

/// Some latencies.
#[derive(Debug)]
pub(super) struct Samples {
    histogram: Histogram<u64>,
    sum_ns: u128,
    min_ns: u64,
    max_ns: u64,
}

/// What is known of them, in nanoseconds. `None` is not known.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub(super) struct Latency {
    pub(super) min_ns: Option<u64>,
    pub(super) p50_ns: Option<u64>,
    pub(super) p99_ns: Option<u64>,
    pub(super) p999_ns: Option<u64>,
    pub(super) max_ns: Option<u64>,
    pub(super) avg_ns: Option<f64>,
}

impl Samples {
    pub(super) fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LATENCY_NS_MAX, DIGITS);
        let Ok(histogram) = histogram else { unreachable!("the bounds are constants that the crate allows") };
        Self { histogram, sum_ns: 0, min_ns: u64::MAX, max_ns: 0 }
    }

    pub(super) fn record(&mut self, latency_ns: u64) {
        self.histogram.saturating_record(latency_ns.max(1));
        self.sum_ns += u128::from(latency_ns);
        self.min_ns = self.min_ns.min(latency_ns);
        self.max_ns = self.max_ns.max(latency_ns);
    }

    /// Adds those of another thread.
    pub(super) fn add(&mut self, other: &Self) {
        // Of the same bounds, so there is room.
        let _ = self.histogram.add(&other.histogram);
        self.sum_ns += other.sum_ns;
        self.min_ns = self.min_ns.min(other.min_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    pub(super) fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// What can be said of them. A percentile needs a sample above it; less would be the maximum under another name.
    pub(super) fn latency(&self) -> Latency {
        let count = self.count();
        if count == 0 {
            return Latency::default();
        }
        let at = |quantile, samples_min| {
            // The histogram gives the upper end of a bucket.
            (count >= samples_min)
                .then(|| self.histogram.value_at_quantile(quantile).clamp(self.min_ns, self.max_ns))
        };
        Latency {
            min_ns: Some(self.min_ns),
            p50_ns: at(0.5, 1),
            p99_ns: at(0.99, P99_SAMPLES_MIN),
            p999_ns: at(0.999, P999_SAMPLES_MIN),
            max_ns: Some(self.max_ns),
            avg_ns: Some(self.sum_ns as f64 / count as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::perf::pace::whole;

    fn of(latencies: impl IntoIterator<Item = u64>) -> Samples {
        let mut samples = Samples::new();
        latencies.into_iter().for_each(|latency| samples.record(latency));
        samples
    }

    /// The sample with as many others below it, by sorting.
    fn sorted_at(latencies: &[u64], quantile: f64) -> u64 {
        let mut sorted = latencies.to_vec();
        sorted.sort_unstable();
        let below = whole(quantile * sorted.len() as f64);
        sorted[usize::try_from(below).unwrap().max(1) - 1]
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_samples() {
        let mut state = 7_u64;
        let latencies: Vec<u64> = (0..5_000)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                1_000 + (state >> 44)
            })
            .collect();
        let latency = of(latencies.iter().copied()).latency();
        for (found, quantile) in [(latency.p50_ns, 0.5), (latency.p99_ns, 0.99), (latency.p999_ns, 0.999)] {
            let (found, exact) = (found.unwrap() as f64, sorted_at(&latencies, quantile) as f64);
            assert!(found >= exact && found <= exact * 1.001 + 1.0, "{quantile}: {found}, exactly {exact}");
        }
        assert_eq!(latency.min_ns, latencies.iter().min().copied());
        assert_eq!(latency.max_ns, latencies.iter().max().copied());
        let average = latencies.iter().sum::<u64>() as f64 / 5_000.0;
        assert!((latency.avg_ns.unwrap() - average).abs() < 1e-6);
    }

    #[test]
    fn a_percentile_without_a_sample_above_it_is_not_known() {
        let known = |count| {
            let latency = of(1..=count).latency();
            (latency.p50_ns.is_some(), latency.p99_ns.is_some(), latency.p999_ns.is_some())
        };
        assert_eq!(known(99), (true, false, false));
        assert_eq!(known(100), (true, true, false));
        assert_eq!(known(999), (true, true, false));
        assert_eq!(known(1_000), (true, true, true));
        assert_eq!(Samples::new().latency(), Latency::default());
    }

    #[test]
    fn threads_add_up_and_nothing_is_too_long() {
        let mut all = of([5, 7]);
        all.add(&of([1, u64::MAX]));
        assert_eq!(all.count(), 4);
        let latency = all.latency();
        assert_eq!((latency.min_ns, latency.max_ns), (Some(1), Some(u64::MAX)));
        assert!(latency.p50_ns.unwrap() <= 7);
    }
}
