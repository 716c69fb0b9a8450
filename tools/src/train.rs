//! `rangefold train lr`: the embedded cluster, its workers' threads, the progress line, the closing table.
//! Knows options and output; the training itself is `rangefold_learn::train`.
//! Source: OSDI'14 §5.1.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rangefold::embed::{self, Client, Cluster};
use rangefold::{Limits, Round};
use rangefold_learn::mapping::Mapping;
use rangefold_learn::plan::Reason;
use rangefold_learn::train::{Ended, Job, Outcome, Seen, train};
use rangefold_learn::{bundled, metrics};
use serde_json::json;

use crate::exit::Verdict;

/// Options of `train lr`.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Training data in libsvm format [default: the bundled Adult data].
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Test data in libsvm format [default: the bundled Adult test set, with the bundled data].
    #[arg(long, value_name = "FILE")]
    test: Option<PathBuf>,
    /// Weight of the L1 penalty; losses are summed, not averaged.
    #[arg(long, value_name = "L", default_value_t = 10.0)]
    lambda: f64,
    /// Stop at this certified relative duality gap.
    #[arg(long, value_name = "G", default_value_t = 0.01)]
    gap: f64,
    /// Bounded delay in rounds; 0 is sequential.
    #[arg(long, value_name = "T", default_value_t = 0)]
    delay: Round,
    /// Workers.
    #[arg(long, value_name = "W", default_value_t = 2)]
    workers: u32,
    /// Servers.
    #[arg(long, value_name = "S", default_value_t = 2)]
    servers: u32,
    /// Parts of the data; results depend on it and not on the number of workers [default: 4, or the workers if more].
    #[arg(long, value_name = "P")]
    parts: Option<u32>,
    /// Seed of the order of blocks. With delay 0 a seed gives the same weights to the last bit.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Stop unfinished after so many passes over the data.
    #[arg(long, value_name = "N", default_value_t = 1000.0)]
    passes: f64,
    /// Give up when a round takes longer, in seconds.
    #[arg(long, value_name = "S", default_value_t = 60)]
    deadline: u64,
    /// Write the weights as text, one `index value` a line, the constant feature last.
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Print one JSON object on standard output instead of a table.
    #[arg(long)]
    json: bool,
}

/// What one worker did.
struct Share {
    outcome: Outcome,
    counters: rangefold_workers::Counters,
    waited: Duration,
    seconds: f64,
}

/// Runs the job.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let (data, test) = load(arguments)?;
    let parts = arguments.parts.unwrap_or_else(|| arguments.workers.max(4));
    let job = Job {
        lambda: arguments.lambda,
        gap: arguments.gap,
        delay: arguments.delay,
        seed: arguments.seed,
        parts,
        segments: 16,
        passes_max: arguments.passes,
        deadline: Duration::from_secs(arguments.deadline),
    };
    let options = embed::Options {
        servers: arguments.servers,
        workers: arguments.workers,
        parts,
        tau: Some(arguments.delay),
        limits: Limits::standard(),
        ..embed::Options::default()
    };
    let interrupt = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupt);
    // A second interrupt ends the process at once.
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("rangefold: interrupted; stopping at the next certificate (again: at once)");
    })
    .context("cannot catch interrupts")?;

    let begun = Instant::now();
    let cluster = Cluster::start(options)?;
    let shares = work(&cluster, arguments.workers, &job, &data, &interrupt)?;
    let seconds = begun.elapsed().as_secs_f64();
    let outcome = &shares[0].outcome;
    if let Some(path) = &arguments.model {
        write_model(path, &outcome.weights)
            .with_context(|| format!("cannot write the model to {}", path.display()))?;
    }
    let scores = test.map(|test| metrics::score(&test, &outcome.weights)).transpose()?;
    let auc = scores.as_ref().and_then(metrics::Scores::area_under_curve);
    let accuracy = scores.as_ref().and_then(metrics::Scores::accuracy);
    let servers = cluster.report();
    if arguments.json {
        println!("{:#}", as_json(&shares, &servers, seconds, auc, accuracy));
    } else {
        print!("{}", as_table(&shares, &servers, seconds, auc, accuracy));
    }
    match outcome.ended {
        Ended::Planned(Reason::GapReached) => Ok(Verdict::Success),
        Ended::Planned(Reason::PassesSpent) => {
            let (gap, passes) = (outcome.certificate.gap, outcome.progress.passes);
            eprintln!(
                "rangefold: the gap is {gap:.4} after {passes:.0} passes; allow more with --passes, or a larger --gap"
            );
            Ok(Verdict::GoalMissed)
        }
        Ended::Interrupted => {
            match &arguments.model {
                Some(path) => {
                    eprintln!("rangefold: interrupted; the weights so far are in {}", path.display());
                }
                None => eprintln!("rangefold: interrupted; no weights were saved (--model FILE saves them)"),
            }
            Ok(Verdict::Interrupted)
        }
    }
}

fn load(arguments: &Arguments) -> anyhow::Result<(Mapping, Option<Mapping>)> {
    let test = arguments.test.as_deref().map(Mapping::open).transpose()?;
    match &arguments.data {
        Some(path) => Ok((Mapping::open(path)?, test)),
        None => Ok((bundled::adult_train()?, Some(test.map_or_else(bundled::adult_test, Ok)?))),
    }
}

/// Runs the workers, each on a thread of its own, and the progress line.
fn work(
    cluster: &Cluster,
    workers: u32,
    job: &Job,
    data: &Mapping,
    interrupt: &AtomicBool,
) -> anyhow::Result<Vec<Share>> {
    let clients = (0..workers).map(|_| cluster.join()).collect::<Result<Vec<Client>, _>>()?;
    let line = progress_line();
    let shares: Vec<anyhow::Result<Share>> = std::thread::scope(|scope| {
        let threads: Vec<_> = clients
            .iter()
            .enumerate()
            .map(|(index, client)| {
                let line = &line;
                scope.spawn(move || {
                    let begun = Instant::now();
                    let watch = |seen: &Seen| {
                        if index == 0 {
                            show(line, seen, begun.elapsed(), client.waited());
                        }
                    };
                    let outcome = train(client, job, data, interrupt, watch)?;
                    let seconds = begun.elapsed().as_secs_f64();
                    Ok(Share { outcome, counters: client.counters(), waited: client.waited(), seconds })
                })
            })
            .collect();
        let joined = threads.into_iter().map(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(anyhow::anyhow!("a worker's thread panicked; its message is above")))
        });
        joined.collect()
    });
    line.finish_and_clear();
    shares.into_iter().collect()
}

fn progress_line() -> ProgressBar {
    let line = ProgressBar::new_spinner();
    // On a terminal only; a log file gets the closing table.
    line.set_draw_target(ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
        line.set_style(style);
    }
    line
}

fn show(line: &ProgressBar, seen: &Seen, elapsed: Duration, waited: Duration) {
    let certificate = &seen.certificate;
    let rate = seen.progress.passes * seen.rows as f64 / elapsed.as_secs_f64().max(1e-9);
    let waiting = 100.0 * waited.as_secs_f64() / elapsed.as_secs_f64().max(1e-9);
    line.set_message(format!(
        "objective {:.4}  gap {:.4}  non-zeros {}  passes {:.0}  {:.2} M examples/s  waiting {waiting:.0} %",
        certificate.objective,
        certificate.gap,
        certificate.nonzeros,
        seen.progress.passes,
        rate / 1e6,
    ));
    line.tick();
}

fn write_model(path: &std::path::Path, weights: &[f64]) -> std::io::Result<()> {
    let mut text = String::new();
    for (index, weight) in (1..).zip(weights) {
        // `{}` of a double reads back to the same bits.
        let _ = writeln!(text, "{index} {weight}");
    }
    // Beside the file, then renamed: whoever reads it sees an old model or this one, never half of one.
    let beside = path.with_extension("partial");
    let mut file = std::fs::File::create(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

fn as_json(
    shares: &[Share],
    servers: &[embed::Report],
    seconds: f64,
    auc: Option<f64>,
    accuracy: Option<f64>,
) -> serde_json::Value {
    let outcome = &shares[0].outcome;
    let workers: Vec<_> = shares
        .iter()
        .map(|share| {
            json!({
                "rows": share.outcome.rows,
                "pushes": share.counters.push_frames,
                "pulls": share.counters.pull_frames,
                "rounds": share.outcome.progress.rounds,
                "waiting_share": share.waited.as_secs_f64() / share.seconds.max(1e-9),
                "bytes_pushed": share.counters.bytes_pushed,
                "bytes_pulled": share.counters.bytes_pulled,
            })
        })
        .collect();
    let servers: Vec<_> = servers
        .iter()
        .map(|report| {
            json!({
                "server": report.shard.server.0,
                "shard": report.shard.shard,
                "proximal_steps": report.steps,
                "pushes": report.counters.pushes,
                "pulls": report.counters.pulls,
                "bytes": report.bytes,
            })
        })
        .collect();
    json!({
        "objective": outcome.certificate.objective,
        "gap": outcome.certificate.gap,
        "nonzeros": outcome.certificate.nonzeros,
        "test_auc": auc,
        "test_accuracy": accuracy,
        "seconds": seconds,
        "passes": outcome.progress.passes,
        "rounds": outcome.progress.rounds,
        "transport": "memory",
        "workers": workers,
        "servers": servers,
    })
}

fn as_table(
    shares: &[Share],
    servers: &[embed::Report],
    seconds: f64,
    auc: Option<f64>,
    accuracy: Option<f64>,
) -> String {
    let outcome = &shares[0].outcome;
    let mut text = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<16} {value}");
    };
    row("objective", format!("{:.7}", outcome.certificate.objective));
    row("certified gap", format!("{:.6}", outcome.certificate.gap));
    row("non-zeros", format!("{} of {}", outcome.certificate.nonzeros, outcome.weights.len()));
    if let Some(auc) = auc {
        row("test AUC", format!("{auc:.5}"));
    }
    if let Some(accuracy) = accuracy {
        row("test accuracy", format!("{accuracy:.5}"));
    }
    row("passes", format!("{:.1}", outcome.progress.passes));
    row("rounds", outcome.progress.rounds.to_string());
    row("seconds", format!("{seconds:.2}"));
    row("transport", "memory: all nodes are threads of this process".into());
    let _ = writeln!(text, "\n# worker    rows   pushes    pulls  MB pushed  MB pulled  waiting");
    for (index, share) in shares.iter().enumerate() {
        let counters = &share.counters;
        let _ = writeln!(
            text,
            "{index:>8} {:>7} {:>8} {:>8} {:>10.2} {:>10.2} {:>6.1} %",
            share.outcome.rows,
            counters.push_frames,
            counters.pull_frames,
            counters.bytes_pushed as f64 / 1e6,
            counters.bytes_pulled as f64 / 1e6,
            100.0 * share.waited.as_secs_f64() / share.seconds.max(1e-9),
        );
    }
    let _ = writeln!(text, "\n# server  shard  steps of rounds   pushes    pulls");
    for report in servers {
        let (shard, counters) = (report.shard, report.counters);
        let _ = writeln!(
            text,
            "{:>8} {:>6} {:>16} {:>8} {:>8}",
            shard.server.0, shard.shard, report.steps, counters.pushes, counters.pulls
        );
    }
    text
}
