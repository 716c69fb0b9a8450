//! What the exit status says of the rows: bounds that were asked for, and wrong data.
//! Knows rows and bounds; not how they were measured. Asked once, at the end.
//! Source: perftest's limits (`-w`, `-y`), nccl-tests' `#wrong`.

use super::row::{Row, median};

/// Bounds that every row must keep.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Bounds {
    /// At least so many MB/s.
    pub(super) bandwidth_min: Option<f64>,
    /// At most so many microseconds.
    pub(super) p99_max_us: Option<f64>,
}

/// What is wrong with the repeats of one shape, in words; nothing if all is well. Bounds are for the repeat that stands for
/// them, wrong data are wrong in any.
pub(super) fn failures(repeats: &[Row], bounds: Bounds) -> Vec<String> {
    let Some(row) = median(repeats) else { return Vec::new() };
    let at = format!("at {} bytes", row.shape.bytes);
    let mut failures = Vec::new();
    let wrong: u64 = repeats.iter().filter_map(|row| row.wrong).sum();
    if wrong > 0 {
        failures.push(format!("wrong data {at}: {wrong} elements are not what was sent"));
    }
    let bandwidth = row.megabytes_per_second();
    if let Some(min) = bounds.bandwidth_min.filter(|&min| bandwidth < min) {
        failures.push(format!("bandwidth {at}: {bandwidth:.3} MB/s is below --min-bw {min}"));
    }
    match (bounds.p99_max_us, row.latency.p99_ns) {
        (Some(max), Some(p99_ns)) if p99_ns as f64 / 1e3 > max => {
            failures
                .push(format!("latency {at}: p99 {:.3} us is above --max-p99 {max}", p99_ns as f64 / 1e3));
        }
        (Some(_), None) => failures.push(format!(
            "latency {at}: {} samples are too few for a p99, so --max-p99 cannot be kept; measure longer",
            row.iterations
        )),
        _ => {}
    }
    failures
}

#[cfg(test)]
mod tests {
    use super::super::row::tests::row;
    use super::*;

    #[test]
    fn bounds_are_kept_or_named() {
        // 64 B * 1,000 / 64 us: 1,000 MB/s; p99 is 990 us.
        let good = row(64, 1_000, 64_000);
        let failed = |bandwidth_min, p99_max_us| {
            failures(std::slice::from_ref(&good), Bounds { bandwidth_min, p99_max_us })
        };
        assert_eq!(failed(None, None), Vec::<String>::new());
        assert_eq!(failed(Some(1_000.0), Some(991.0)), Vec::<String>::new());
        assert_eq!(
            failed(Some(1_000.1), Some(989.0)),
            [
                "bandwidth at 64 bytes: 1000.000 MB/s is below --min-bw 1000.1",
                "latency at 64 bytes: p99 990.207 us is above --max-p99 989",
            ]
        );
    }

    #[test]
    fn a_p99_that_is_not_known_is_not_kept() {
        let few = row(64, 50, 1_000);
        let failures = failures(&[few], Bounds { p99_max_us: Some(1e9), ..Bounds::default() });
        assert!(failures[0].contains("50 samples are too few"), "{failures:?}");
    }

    #[test]
    fn wrong_data_fail_and_what_was_not_looked_at_does_not() {
        let wrong = |wrong| failures(&[Row { wrong, ..row(64, 1_000, 64_000) }], Bounds::default());
        assert_eq!(wrong(Some(3)), ["wrong data at 64 bytes: 3 elements are not what was sent"]);
        assert!(wrong(Some(0)).is_empty() && wrong(None).is_empty());
    }
    #[test]
    fn of_several_repeats_the_median_is_bound_and_any_may_be_wrong() {
        let repeats = [100, 200, 300].map(|elapsed_ns| row(64, 1_000, elapsed_ns));
        // 640, 320 and 213 GB/s.
        let bound = |bandwidth_min| Bounds { bandwidth_min: Some(bandwidth_min), ..Bounds::default() };
        assert!(failures(&repeats, bound(319_000.0)).is_empty());
        assert_eq!(failures(&repeats, bound(321_000.0)).len(), 1);
        let mut one_wrong = repeats;
        one_wrong[0].wrong = Some(2);
        assert!(failures(&one_wrong, Bounds::default())[0].contains("2 elements"));
    }
}
