//! Benchmarks: every row of ours beside the ceiling of the machine, interleaved in one run, with a data check.
//!
//! `cargo run --release -p rangefold-bench` prints a table. Two threads matter in each network row: the worker, on the first
//! core, and the shard (or the raw receiver), on the second. Load from other work makes absolute figures useless; read the
//! ratios. On a virtual machine the two cores may be near or far from each other and change every few seconds, so the
//! distance is probed before and after each repeat; repeats during which it changed are dropped, the rest is tabled apart.

mod ceiling;
mod cluster;
mod cores;
mod table;

use clap::Parser;

use rangefold_kvstore::store::apply::Element;
use rangefold_transport::auto::Wish;
use table::Table;

/// Measures push, pull and round trip against the machine's ceilings.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Repeats of every row; five or more for a claim.
    #[arg(long, default_value_t = 7)]
    repeats: usize,
    /// Length of one measurement in milliseconds.
    #[arg(long, default_value_t = 150)]
    millis: u64,
    /// Also write the table as CSV to this file.
    #[arg(long, value_name = "FILE")]
    csv: Option<std::path::PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let length = std::time::Duration::from_millis(arguments.millis);
    let mut table = Table::default();
    let memory = cluster::Bench::memory()?;
    let uring = cluster::Bench::tcp(Wish::Uring)?;
    let socket = cluster::Bench::tcp(Wish::Socket)?;
    // After the clusters are made: a process that may use one processor only does not spin.
    cores::pin_worker();
    for repeat in 0..arguments.repeats {
        eprintln!("repeat {} of {}", repeat + 1, arguments.repeats);
        let mut row =
            |name: &'static str, unit: &'static str, measure: &mut dyn FnMut() -> anyhow::Result<f64>| {
                let before = cores::distance();
                let value = measure()?;
                let after = cores::distance();
                if before == after {
                    table.add(name, unit, before, value);
                }
                anyhow::Ok(())
            };
        row("add f32, 256 MiB: plain loop", "GB/s", &mut || {
            Ok(ceiling::add(64 << 20, length, ceiling::plain_add))
        })?;
        row("add f32, 256 MiB: ours", "GB/s", &mut || Ok(ceiling::add(64 << 20, length, f32::add)))?;
        row("add f32, 256 KiB: plain loop", "GB/s", &mut || {
            Ok(ceiling::add(64 << 10, length, ceiling::plain_add))
        })?;
        row("add f32, 256 KiB: ours", "GB/s", &mut || Ok(ceiling::add(64 << 10, length, f32::add)))?;
        row("1 MiB: raw blocking stream, received and added", "GB/s", &mut || ceiling::stream(length, true))?;
        row("1 MiB: raw blocking stream", "GB/s", &mut || ceiling::stream(length, false))?;
        row("1 MiB push, uring", "GB/s", &mut || uring.push(length))?;
        row("1 MiB pull, uring", "GB/s", &mut || uring.pull(length))?;
        row("1 MiB push, socket", "GB/s", &mut || socket.push(length))?;
        row("1 MiB pull, socket", "GB/s", &mut || socket.pull(length))?;
        row("1 MiB push, memory", "GB/s", &mut || memory.push(length))?;
        row("1 MiB pull, memory", "GB/s", &mut || memory.pull(length))?;
        row("round trip 320 B / 64 B: raw blocking TCP", "us", &mut || ceiling::ping_pong(length))?;
        row("round trip, push of 64 f32, uring", "us", &mut || uring.round_trip(length))?;
        row("round trip, push of 64 f32, socket", "us", &mut || socket.round_trip(length))?;
        row("round trip, push of 64 f32, memory", "us", &mut || memory.round_trip(length))?;
    }
    memory.check()?;
    uring.check()?;
    socket.check()?;
    table.print();
    if let Some(path) = arguments.csv {
        std::fs::write(path, table.csv())?;
    }
    Ok(())
}
