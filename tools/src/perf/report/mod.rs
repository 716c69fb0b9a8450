//! What is printed: a table as users of OSU and perftest read it, CSV, or one JSON document.
//! Knows formats and words; measures and judges nothing. Called by `mod.rs`, row by row.
//!
//! Results go to standard output and nothing else does. A table's lines that are no data begin with `#`.

mod head;
mod setting;

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::host::one_line;
use super::options::{Format, Plan};
use super::row::{COLUMNS, Row, UNKNOWN, median};
use crate::say;

use head::{check_words, head, size_words, time_words};
pub(super) use setting::Setting;

/// Of the JSON document: counted up when a field changes its meaning or goes.
const SCHEMA: u32 = 1;
/// The commit that this program was built from, where that was known (`tools/build.rs`).
const COMMIT: Option<&str> = option_env!("RANGEFOLD_COMMIT");
/// Names of the CSV's columns behind the first ones.
const CSV_COLUMNS: [&str; COLUMNS.len()] = [
    "size_bytes",
    "keys",
    "iterations",
    "seconds",
    "min_us",
    "p50_us",
    "p99_us",
    "p99_9_us",
    "avg_us",
    "megabytes_per_second",
    "megakeys_per_second",
    "megamessages_per_second",
    "wrong",
];

/// Prints as the measurement goes.
pub(super) struct Report<'a> {
    plan: &'a Plan,
    setting: &'a Setting,
    begun: SystemTime,
    rows: Vec<Row>,
}

impl<'a> Report<'a> {
    /// Prints what comes before the first row.
    ///
    /// # Errors
    /// Nobody takes it.
    pub(super) fn begin(plan: &'a Plan, setting: &'a Setting) -> anyhow::Result<Self> {
        let report = Self { plan, setting, begun: SystemTime::now(), rows: Vec::new() };
        match plan.format {
            Format::Table => report.print(&head(plan, setting))?,
            Format::Csv => {
                let columns = CSV_COLUMNS.join(",");
                report.print(&format!("operation,transport,threads,depth,repeat,{columns}\n"))?;
            }
            Format::Json => {}
        }
        Ok(report)
    }

    /// Takes the repeats of one shape.
    ///
    /// # Errors
    /// Nobody takes it.
    pub(super) fn repeats(&mut self, repeats: &[Row]) -> anyhow::Result<()> {
        for row in repeats.iter().filter(|row| row.unsent > 0) {
            say::note(&format!(
                "at {} bytes more was offered than taken: {} messages were due and not sent, {} were",
                row.shape.bytes, row.unsent, row.iterations
            ));
        }
        self.rows.extend_from_slice(repeats);
        match self.plan.format {
            Format::Table => self.print(&table_lines(repeats)),
            Format::Csv => self.print(&repeats.iter().map(|row| self.csv_line(row)).collect::<String>()),
            Format::Json => Ok(()),
        }
    }

    /// The repeats of each shape so far.
    pub(super) fn shapes(&self) -> impl Iterator<Item = &[Row]> {
        self.rows.chunk_by(|one, next| one.shape == next.shape)
    }

    /// Prints what comes after the last row: how it ended, and what is wrong.
    ///
    /// # Errors
    /// Nobody takes it.
    pub(super) fn end(&self, outcome: &str, failures: &[String]) -> anyhow::Result<()> {
        match self.plan.format {
            Format::Table => {
                let complete =
                    (outcome != "complete").then(|| format!("# incomplete: {}\n", one_line(outcome)));
                let failed = failures.iter().map(|failure| format!("# FAILED: {failure}\n"));
                self.print(&complete.into_iter().chain(failed).collect::<String>())
            }
            Format::Csv => Ok(()),
            Format::Json => self.print(&format!("{:#}\n", self.document(outcome, failures))),
        }
    }

    fn print(&self, text: &str) -> anyhow::Result<()> {
        if text.is_empty() { Ok(()) } else { say::result("the results", text) }
    }

    fn csv_line(&self, row: &Row) -> String {
        let known = |cell: String| if cell == UNKNOWN { String::new() } else { cell };
        let cells = row.cells().map(known).join(",");
        let (plan, transport) = (self.plan, &self.setting.chosen.transport);
        format!(
            "{},{transport},{},{},{},{cells}\n",
            plan.operation.name(),
            plan.threads,
            row.depth,
            row.repeat
        )
    }

    fn document(&self, outcome: &str, failures: &[String]) -> Value {
        let begun = self.begun.duration_since(UNIX_EPOCH).unwrap_or_default();
        json!({
            "schema": SCHEMA,
            "tool": "rangefold perf",
            "version": env!("CARGO_PKG_VERSION"),
            "commit": COMMIT,
            "command": command(),
            "begun_unix_seconds": begun.as_secs(),
            "operation": self.plan.operation.name(),
            "setting": self.setting.as_json(),
            "options": self.plan.as_json(),
            "size_means": size_words(self.plan.operation),
            "time_means": time_words(self.plan.operation),
            "check_means": check_words(self.plan.operation, self.plan.check),
            "rows": self.rows.iter().map(Row::as_json).collect::<Vec<_>>(),
            "outcome": outcome,
            "failures": failures,
        })
    }
}

/// The row that stands for the repeats, and how far they lie apart.
fn table_lines(repeats: &[Row]) -> String {
    let Some(row) = median(repeats) else { return String::new() };
    let mut text = cells_line(&row.cells());
    if repeats.len() > 1 {
        let rates = repeats.iter().map(Row::megabytes_per_second);
        let (low, high) =
            rates.fold((f64::INFINITY, 0.0_f64), |(low, high), rate| (low.min(rate), high.max(rate)));
        let wrong: u64 = repeats.iter().filter_map(|row| row.wrong).sum();
        let _ =
            writeln!(text, "# {} repeats: {low:.3} to {high:.3} MB/s, #wrong {wrong} in all", repeats.len());
    }
    text
}

/// A line of a table, its cells under their names.
fn cells_line(cells: &[String; COLUMNS.len()]) -> String {
    let mut text = String::new();
    for (index, (cell, (_, width))) in cells.iter().zip(COLUMNS).enumerate() {
        let between = if index == 0 { "" } else { " " };
        let _ = write!(text, "{between}{cell:>width$}");
    }
    text.push('\n');
    text
}

/// As it was given.
fn command() -> Vec<String> {
    std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::row::tests::row;
    use super::*;

    #[test]
    fn every_line_that_is_no_data_begins_with_a_hash_and_columns_stand_under_their_names() {
        let repeats = [row(64, 10, 3_000), row(64, 20, 3_000), row(64, 30, 3_000)];
        let text = table_lines(&repeats);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].split_whitespace().count(), COLUMNS.len());
        assert_eq!(lines[0].split_whitespace().nth(2), Some("20"), "the repeat in the middle");
        assert_eq!(lines[1], "# 3 repeats: 213.333 to 640.000 MB/s, #wrong 0 in all");
        assert_eq!(table_lines(&repeats[..1]).lines().count(), 1);
    }
}
