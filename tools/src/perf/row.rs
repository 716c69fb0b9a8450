//! One measurement as it is reported: what was counted and timed, and the rates that follow from it.
//! Knows units and formats of numbers; not where they are printed. Made by `sweep.rs`, printed by `report/`.
//!
//! Every rate is computed from the iterations and the seconds that stand beside it, and from nothing else, so that whoever
//! reads a row can do the same. Seconds are printed to the nanosecond for that.

use serde_json::{Value, json};

use super::samples::Latency;
use super::size::Shape;

/// A measurement of one shape.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Row {
    pub(super) shape: Shape,
    /// Counted from 1.
    pub(super) repeat: u32,
    /// Messages of one thread that may be under way.
    pub(super) depth: usize,
    /// Messages of all threads that were acknowledged in the timed window.
    pub(super) iterations: u64,
    /// The timed window: from the start to the last acknowledgement.
    pub(super) elapsed_ns: u64,
    pub(super) latency: Latency,
    /// Messages of an open loop that were due and not sent.
    pub(super) unsent: u64,
    /// Elements (bytes, on the raw transport) that were not as they must be; `None` where nobody looked.
    pub(super) wrong: Option<u64>,
}

/// What stands where a number is not known.
pub(super) const UNKNOWN: &str = "-";

/// Columns of a table, in order, and how wide they are. A cell that is longer makes its line longer.
pub(super) const COLUMNS: [(&str, usize); 13] = [
    ("size(B)", 10),
    ("keys", 7),
    ("iters", 9),
    ("seconds", 12),
    ("t_min", 9),
    ("t_p50", 10),
    ("t_p99", 10),
    ("t_p99.9", 10),
    ("t_avg(us)", 10),
    ("BW(MB/s)", 10),
    ("Mkeys/s", 10),
    ("Mmsg/s", 9),
    ("#wrong", 6),
];

impl Row {
    fn per_second(&self, count: f64) -> f64 {
        // A window of nothing has no rate, and infinity is no number in JSON.
        if self.elapsed_ns == 0 { 0.0 } else { count / (self.elapsed_ns as f64 / 1e9) }
    }

    fn seconds(&self) -> f64 {
        self.elapsed_ns as f64 / 1e9
    }

    /// Millions of bytes of values a second, in one direction.
    pub(super) fn megabytes_per_second(&self) -> f64 {
        self.per_second(self.iterations as f64 * self.shape.bytes as f64) / 1e6
    }

    fn megakeys_per_second(&self) -> Option<f64> {
        self.shape.rows.map(|rows| self.per_second(self.iterations as f64 * rows.keys as f64) / 1e6)
    }

    fn megamessages_per_second(&self) -> f64 {
        self.per_second(self.iterations as f64) / 1e6
    }

    /// Its cells, in the order of [`COLUMNS`].
    pub(super) fn cells(&self) -> [String; COLUMNS.len()] {
        let latency = &self.latency;
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| UNKNOWN.into());
        let time = |ns: Option<u64>| or_unknown(ns.map(|ns| format!("{:.3}", ns as f64 / 1e3)));
        [
            self.shape.bytes.to_string(),
            or_unknown(self.shape.rows.map(|rows| rows.keys.to_string())),
            self.iterations.to_string(),
            format!("{}.{:09}", self.elapsed_ns / 1_000_000_000, self.elapsed_ns % 1_000_000_000),
            time(latency.min_ns),
            time(latency.p50_ns),
            time(latency.p99_ns),
            time(latency.p999_ns),
            or_unknown(latency.avg_ns.map(|ns| format!("{:.3}", ns / 1e3))),
            format!("{:.3}", self.megabytes_per_second()),
            or_unknown(self.megakeys_per_second().map(|rate| format!("{rate:.6}"))),
            format!("{:.6}", self.megamessages_per_second()),
            or_unknown(self.wrong.map(|wrong| wrong.to_string())),
        ]
    }

    pub(super) fn as_json(&self) -> Value {
        let latency = &self.latency;
        let micros = |ns: Option<u64>| ns.map(|ns| ns as f64 / 1e3);
        json!({
            "size_bytes": self.shape.bytes,
            "keys": self.shape.rows.map(|rows| rows.keys),
            "row_width": self.shape.rows.map(|rows| rows.width),
            "repeat": self.repeat,
            "depth": self.depth,
            "iterations": self.iterations,
            "seconds": self.seconds(),
            "latency_us": {
                "min": micros(latency.min_ns),
                "p50": micros(latency.p50_ns),
                "p99": micros(latency.p99_ns),
                "p99_9": micros(latency.p999_ns),
                "max": micros(latency.max_ns),
                "avg": latency.avg_ns.map(|ns| ns / 1e3),
            },
            "megabytes_per_second": self.megabytes_per_second(),
            "megakeys_per_second": self.megakeys_per_second(),
            "megamessages_per_second": self.megamessages_per_second(),
            "unsent": self.unsent,
            "wrong": self.wrong,
        })
    }
}

/// The repeat that stands for all of one shape: that with the median bandwidth, of an even number the lower one of the two.
pub(super) fn median(repeats: &[Row]) -> Option<&Row> {
    let mut sorted: Vec<&Row> = repeats.iter().collect();
    sorted.sort_by(|one, other| one.megabytes_per_second().total_cmp(&other.megabytes_per_second()));
    sorted.get(repeats.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::samples::Samples;
    use super::super::size::{Rows, store_shape};
    use super::*;

    /// A row of these messages that took that long, with latencies of 1 us, 2 us, and so on.
    pub(in super::super) fn row(bytes: u64, iterations: u64, elapsed_ns: u64) -> Row {
        let mut samples = Samples::new();
        (1..=iterations.min(2_000)).for_each(|micros| samples.record(micros * 1_000));
        Row {
            shape: store_shape(bytes, None, None).unwrap(),
            repeat: 1,
            depth: 16,
            iterations,
            elapsed_ns,
            latency: samples.latency(),
            unsent: 0,
            wrong: Some(0),
        }
    }

    #[test]
    fn every_printed_rate_follows_from_the_printed_iterations_and_seconds() {
        let odd = [
            (8, 3, 7),
            (64, 1_234_567, 250_000_123),
            (4096, 999, 1_000_000_001),
            (4 << 20, 1, 1),
            (256, 0, 0),
        ];
        let large = [(4 << 20, u64::MAX, u64::MAX), (8, 1_000_000_000, 3_600_000_000_000)];
        for (bytes, iterations, elapsed_ns) in odd.into_iter().chain(large) {
            let row = row(bytes, iterations, elapsed_ns);
            let cells = row.cells();
            let number = |column: &str| -> f64 {
                let index = COLUMNS.iter().position(|&(name, _)| name == column).unwrap();
                cells[index].parse().unwrap()
            };
            // As somebody with the table and a calculator does.
            let (iterations, seconds) = (number("iters"), number("seconds"));
            let rate = |count: f64| if seconds == 0.0 { 0.0 } else { count / seconds / 1e6 };
            for (column, count, tolerance) in [
                ("BW(MB/s)", iterations * number("size(B)"), 0.000_5),
                ("Mkeys/s", iterations * number("keys"), 0.000_000_5),
                ("Mmsg/s", iterations, 0.000_000_5),
            ] {
                let (printed, again) = (number(column), rate(count));
                assert!(
                    (printed - again).abs() <= tolerance + again * 1e-9,
                    "{column}: {printed}, not {again}: {cells:?}"
                );
                assert!(printed >= 0.0);
            }
        }
    }

    #[test]
    fn what_is_not_known_has_no_number() {
        let few = row(64, 99, 1_000);
        let cells = few.cells();
        assert_eq!((cells[6].as_str(), cells[7].as_str()), ("-", "-"), "p99 and p99.9 of 99 samples");
        assert_ne!(cells[5], "-");
        assert!(few.as_json()["latency_us"]["p99_9"].is_null());
        let nothing = Row { wrong: None, ..row(64, 0, 0) };
        let cells = nothing.cells();
        assert!([4, 5, 6, 7, 8, 12].iter().all(|&index| cells[index] == "-"), "{cells:?}");
        let raw = Row { shape: Shape { bytes: 64, rows: None }, ..few };
        assert_eq!(
            (raw.cells()[1].as_str(), raw.cells()[10].as_str()),
            ("-", "-"),
            "no keys on the raw transport"
        );
    }

    #[test]
    fn the_median_is_one_of_the_repeats() {
        let repeats = [30, 10, 20, 40].map(|elapsed_ns| row(64, 1, elapsed_ns));
        assert_eq!(median(&repeats).unwrap().elapsed_ns, 30, "the lower of the two in the middle");
        assert_eq!(median(&repeats[..3]).unwrap().elapsed_ns, 20);
        assert_eq!(median(&repeats[..1]).unwrap().elapsed_ns, 30);
        assert!(median(&[]).is_none());
        let Rows { keys, width, .. } = repeats[0].shape.rows.unwrap();
        assert_eq!((keys, width), (1, 16));
    }
}
