//! Benchmarks: every row of ours beside the ceiling of the machine, interleaved in one run, with a data check.
//!
//! `cargo run --release -p rangefold-bench` prints a table. Two threads matter in each row over a network: the worker, on the
//! first core, and the shard (or the raw receiver), on the second. Load from other work makes absolute figures useless; read
//! the ratios. On a virtual machine the two cores may be near or far from each other and change every few seconds, so the
//! distance is probed before and after each measurement; those during which it changed are dropped, the rest is tabled apart.

mod ceiling;
mod cluster;
mod clusters;
mod comparison;
mod cores;
mod machine;
mod report;
mod results;
mod spread;

use std::cell::RefCell;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use rangefold_kvstore::store::apply::Element as _;

use ceiling::add::{Arrays, plain_add};
use ceiling::handoff::{self, Buffers};
use ceiling::tcp::{self, Wait};
use clusters::Clusters;
use comparison::Comparison;
use comparison::Unit::{GigabytesPerSecond, Microseconds, MillionsPerSecond};
use results::Results;

/// Measures push, pull and round trip against the machine's ceilings.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Repeats of every row; five or more for a claim.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
    repeats: u16,
    /// Length of one measurement in milliseconds.
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    millis: u64,
    /// Measure only the comparisons whose name contains this, as "round trip".
    #[arg(long, value_name = "WORDS")]
    only: Option<String>,
    /// Also write the table as CSV to this file, anew after each repeat: an interrupt loses only the one under way. Lines
    /// that begin with # tell the machine.
    #[arg(long, value_name = "FILE")]
    csv: Option<std::path::PathBuf>,
}

/// The arrays of the rows over memory alone.
struct Memory {
    large: RefCell<Arrays>,
    small: RefCell<Arrays>,
}

/// Every row, in the order in which they are shown.
fn rows<'a>(clusters: &'a Clusters, memory: &'a Memory, length: Duration) -> Vec<Comparison<'a>> {
    let (tcp, embedded) = (&clusters.tcp, &clusters.memory);
    let Memory { large, small } = memory;
    vec![
        Comparison::new("push 1 MiB over TCP", GigabytesPerSecond)
            .ceiling("raw stream, receiver spins and adds", move || tcp::stream(length, Wait::Spin, true))
            .ceiling("raw stream, receiver blocks and adds", move || tcp::stream(length, Wait::Block, true))
            .each(tcp, move |bench| bench.push_shared(length))
            .each_so(tcp, ", copied first", move |bench| bench.push(length)),
        Comparison::new("push 1 MiB in memory", GigabytesPerSecond)
            .ceiling("raw hand-over, 64 KiB, copied and added", move || {
                handoff::push(length, Buffers::Small, f32::add)
            })
            .ceiling("raw hand-over, 1 MiB, copied and added", move || {
                handoff::push(length, Buffers::Large, f32::add)
            })
            .ours("memory, copied first", move || embedded.push(length)),
        Comparison::new("pull 1 MiB over TCP", GigabytesPerSecond)
            .ceiling("raw stream, receiver spins", move || tcp::stream(length, Wait::Spin, false))
            .ceiling("raw stream, receiver blocks", move || tcp::stream(length, Wait::Block, false))
            .each(tcp, move |bench| bench.pull(length)),
        Comparison::new("pull 1 MiB in memory", GigabytesPerSecond)
            .ceiling("raw hand-over, 64 KiB, copied", move || handoff::pull(length, Buffers::Small))
            .ceiling("raw hand-over, 1 MiB, copied", move || handoff::pull(length, Buffers::Large))
            .ours("memory", move || embedded.pull(length)),
        Comparison::new("pipelined pushes of 64 f32 over TCP, 256 under way", MillionsPerSecond)
            .ceiling("raw stream, 64 frames a call, receiver spins", move || {
                tcp::coalesced(length, Wait::Spin)
            })
            .ceiling("raw stream, 64 frames a call, receiver blocks", move || {
                tcp::coalesced(length, Wait::Block)
            })
            .each(tcp, move |bench| bench.pipelined(length)),
        Comparison::new("pipelined pushes of 64 f32 in memory, 256 under way", MillionsPerSecond)
            .ours("memory", move || embedded.pipelined(length)),
        Comparison::new("round trip of 64 f32 over TCP", Microseconds)
            .ceiling("raw ping-pong 320 B / 64 B, both spin", move || tcp::ping_pong(length, Wait::Spin))
            .baseline("raw ping-pong 320 B / 64 B, both block", move || tcp::ping_pong(length, Wait::Block))
            .each(tcp, move |bench| bench.round_trip(length)),
        Comparison::new("round trip of 64 f32 in memory", Microseconds)
            .ceiling("raw hand-over 320 B / 64 B, both spin", move || handoff::round_trip(length))
            .ours("memory", move || embedded.round_trip(length)),
        Comparison::new("add f32, 256 MiB", GigabytesPerSecond)
            .ceiling("copy of the same bytes", move || large.borrow_mut().copy(length))
            .ceiling("plain loop", move || large.borrow_mut().add(length, plain_add))
            .ours("the store's loop", move || large.borrow_mut().add(length, f32::add)),
        Comparison::new("add f32, 256 KiB", GigabytesPerSecond)
            .ceiling("copy of the same bytes", move || small.borrow_mut().copy(length))
            .ceiling("plain loop", move || small.borrow_mut().add(length, plain_add))
            .ours("the store's loop", move || small.borrow_mut().add(length, f32::add)),
    ]
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (length, repeats) = (Duration::from_millis(arguments.millis), usize::from(arguments.repeats));
    let mut csv = arguments.csv.as_deref().map(report::Csv::open).transpose()?;
    let memory = Memory { large: Arrays::new(256 << 20).into(), small: Arrays::new(256 << 10).into() };
    let clusters = Clusters::start()?;
    let mut head = machine::head(length, repeats);
    for unavailable in &clusters.skipped {
        head += &format!("skipped   {unavailable}\n");
    }
    print(&format!("{head}\n{}\n", report::LEGEND))?;

    let mut rows = rows(&clusters, &memory, length);
    if let Some(words) = &arguments.only {
        rows.retain(|comparison| comparison.name().contains(words));
        anyhow::ensure!(!rows.is_empty(), "no comparison's name contains \"{words}\", which --only asks for");
    }
    let (results, outcome) = measure(&mut rows, repeats, |repeat, results| {
        eprintln!("repeat {repeat} of {repeats}");
        csv.as_mut().map_or(Ok(()), |csv| csv.save(&head, results, repeat == repeats))
    });
    // What was finished is shown whatever ended the run.
    print(&report::text(&results))?;
    if let Some(load) = machine::load() {
        print(&format!("load average {load} at the end\n"))?;
    }
    outcome?;
    print(&format!("{}\n", clusters.check()?))
}

/// Measures all repeats, and calls `after` with the number of each and what there is by then.
fn measure(
    rows: &mut [Comparison<'_>],
    repeats: usize,
    mut after: impl FnMut(usize, &Results) -> anyhow::Result<()>,
) -> (Results, anyhow::Result<()>) {
    // After the clusters are made: a process that may use one processor only does not spin.
    cores::pin_worker();
    let mut results = Results::new(comparison::labels(rows));
    let outcome = (1..=repeats).try_for_each(|repeat| {
        comparison::measure(rows, repeat, &mut results)?;
        after(repeat, &results)
    });
    (results, outcome)
}

/// To the standard output; that nobody reads it is an error like another.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to the standard output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_measured_and_no_push_is_lost() {
        let memory = Memory { large: Arrays::new(1 << 20).into(), small: Arrays::new(1 << 16).into() };
        let clusters = Clusters::start().unwrap();
        let mut rows = rows(&clusters, &memory, Duration::from_millis(5));
        let mut saved = 0;
        let (results, outcome) = measure(&mut rows, 2, |_, _| {
            saved += 1;
            Ok(())
        });
        outcome.unwrap();
        assert_eq!(saved, 2);
        assert_eq!(results.dropped().0, 2 * comparison::labels(&rows).len());
        let words = clusters.check().unwrap();
        assert!(words.starts_with("data check passed") && words.contains("over socket"), "{words}");
    }

    #[test]
    fn nothing_to_measure_is_wrong_usage() {
        for wrong in [["--repeats", "0"], ["--millis", "0"]] {
            let error = Arguments::try_parse_from(["bench"].iter().chain(&wrong)).err().unwrap();
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named_before_anything_is_measured() {
        let arguments =
            Arguments { repeats: 1, millis: 1, only: None, csv: Some("/nowhere/at/all.csv".into()) };
        let error = format!("{:#}", run(&arguments).unwrap_err());
        assert!(error.starts_with("cannot write /nowhere/at/all.csv, which --csv names: "), "{error}");
        assert!(!error.contains('\n'));
    }
}
