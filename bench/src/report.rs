//! The results as a table for readers and as CSV for programs, with what a reader must know to judge them.
//! Knows layout only; called by `main.rs`.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::path::Path;

use anyhow::Context as _;

use crate::comparison::{Kind, Unit};
use crate::results::{Line, Results};

/// Explains the columns.
pub(crate) const LEGEND: &str = "\
near      the two cores share a cache: a cache line goes there and back in less than 250 ns
far       they do not, or other work runs on one of them
one       only one core may be used
ceiling   what the shortest program does here at most; of several rows the best of each repeat counts
baseline  what a plain program does, which sleeps while it waits; nothing is divided by it
ours      Rangefold, with its acknowledgements
ratio     how much of the ceiling is reached: ours/ceiling, of times ceiling/ours; 1 is the ceiling, a little more is
          noise; the median over pairs of the same repeat at the same distance
n         repeats that count; those during which the distance changed are dropped
";

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Ceiling => "ceiling",
            Self::Baseline => "baseline",
            Self::Ours => "ours",
        }
    }
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::GigabytesPerSecond => "GB/s",
            Self::MillionsPerSecond => "M/s",
            Self::Microseconds => "us",
        }
    }
}

/// The table, then what was dropped, then warnings.
pub(crate) fn text(results: &Results) -> String {
    let (mut text, mut comparison) = (String::new(), "");
    let lines = results.lines();
    for Line { label, distance, spread, ratio } in &lines {
        if label.comparison != comparison {
            comparison = label.comparison;
            let title = format!("{comparison}, {}", label.unit.name());
            let _ = writeln!(
                text,
                "\n{title:<63}{:>8}  {:>8}  {:>8}  {:>2}   ratio  (min - max)     n",
                "median", "min", "max", "n"
            );
        }
        let (distance, kind, name) = (distance.name(), label.kind.name(), label.name);
        let _ = write!(
            text,
            "  {distance:<6}{kind:<10}{name:<45}{:>8.2}  {:>8.2}  {:>8.2}  {:>2}",
            spread.median, spread.least, spread.most, spread.count
        );
        if let Some(ratio) = ratio {
            let range = format!("({} - {})", share(ratio.least), share(ratio.most));
            let _ = write!(text, "   {:>5}  {range:<15} {:>2}", share(ratio.median), ratio.count);
        }
        text.push('\n');
    }
    text.push('\n');
    let (measurements, dropped) = results.dropped();
    let count: usize = dropped.iter().map(|(_, count)| count).sum();
    let _ = writeln!(
        text,
        "dropped because the distance changed meanwhile: {count} of {measurements} measurements"
    );
    for (label, count) in dropped {
        let _ = writeln!(text, "  {count} of {}, {}", label.comparison, label.name);
    }
    for line in lines.iter().filter(|line| line.spread.is_wide()) {
        let Line { label, distance, spread, .. } = line;
        let _ = writeln!(
            text,
            "warning: {} {}, {}: max is {:.1} times min, so the median says little",
            distance.name(),
            label.comparison,
            label.name,
            spread.most / spread.least
        );
    }
    text
}

/// A ratio with two digits that say something.
fn share(ratio: f64) -> String {
    if ratio < 0.1 { format!("{ratio:.3}") } else { format!("{ratio:.2}") }
}

/// The same for programs, the head as comments.
fn csv(head: &str, results: &Results) -> String {
    let mut text = String::new();
    for line in head.lines() {
        let _ = writeln!(text, "# {line}");
    }
    text += "comparison,cores,kind,row,unit,median,min,max,repeats,ratio_median,ratio_min,ratio_max,ratio_repeats\n";
    for Line { label, distance, spread, ratio } in results.lines() {
        let (cores, kind, unit) = (distance.name(), label.kind.name(), label.unit.name());
        let _ = write!(text, "\"{}\",{cores},{kind},\"{}\",{unit}", label.comparison, label.name);
        let _ = write!(text, ",{:.4},{:.4},{:.4},{}", spread.median, spread.least, spread.most, spread.count);
        let _ = match ratio {
            Some(ratio) => {
                writeln!(text, ",{:.4},{:.4},{:.4},{}", ratio.median, ratio.least, ratio.most, ratio.count)
            }
            None => writeln!(text, ",,,,"),
        };
    }
    text
}

/// A file that holds the finished repeats at any time.
pub(crate) struct Csv {
    file: File,
    name: String,
}

impl Csv {
    /// Opens it before anything is measured; what it holds stays until the first repeat is finished.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let name = path.display().to_string();
        let file = File::options().write(true).create(true).truncate(false).open(path);
        let file = file.with_context(|| format!("cannot write {name}, which --csv names"))?;
        Ok(Self { file, name })
    }

    /// Replaces what it holds. What is no file but a pipe or a terminal cannot be replaced and gets the last results only.
    pub(crate) fn save(&mut self, head: &str, results: &Results, is_last: bool) -> anyhow::Result<()> {
        let context = || format!("cannot write {}, which --csv names", self.name);
        let is_file = self.file.metadata().with_context(context)?.is_file();
        if is_file {
            self.file.set_len(0).and_then(|()| self.file.rewind()).with_context(context)?;
        }
        if is_file || is_last {
            self.file.write_all(csv(head, results).as_bytes()).with_context(context)?;
        }
        Ok(())
    }
}
