//! `rangefold train lr`: on an embedded cluster with a thread for each worker, or as one worker of a running cluster.
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
use rangefold::embed::{self, Cluster};
use rangefold::{Limits, Round, ShardId, pinning};
use rangefold_learn::mapping::Mapping;
use rangefold_learn::plan::Reason;
use rangefold_learn::train::{Ended, Job, Outcome, Seen, train};
use rangefold_learn::{bundled, metrics};
use rangefold_transport::Endpoint;
use rangefold_transport::auto::{self, Wish};
use rangefold_workers::driver::Dialer;
use rangefold_workers::{Client, Counters, remote};
use serde_json::json;

use crate::exit::Verdict;

/// Passes after which a job has failed, if its user did not say.
const PASSES_MAX: f64 = 1000.0;

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
    /// Workers; of a running cluster, all that belong to the job.
    #[arg(long, value_name = "W", env = "RANGEFOLD_WORLD", default_value_t = 2)]
    workers: u32,
    /// Servers of the embedded cluster.
    #[arg(long, value_name = "S", default_value_t = 2)]
    servers: u32,
    /// Parts of the data; results depend on it and not on the number of workers [default: 4, or the workers if more].
    #[arg(long, value_name = "P")]
    parts: Option<u32>,
    /// Seed of the order of blocks. With delay 0 a seed gives the same weights to the last bit.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Stop after so many passes over the data, whatever the gap is then [default: fail after 1000].
    #[arg(long, value_name = "N")]
    passes: Option<f64>,
    /// Give up when a round takes longer, in seconds.
    #[arg(long, value_name = "S", default_value_t = 60)]
    deadline: u64,
    /// Join the cluster of this scheduler as one worker, instead of running a cluster in this process.
    #[arg(long, value_name = "ADDR", env = "RANGEFOLD_SCHEDULER")]
    scheduler: Option<String>,
    /// Which of the workers this is; 0 prints the result, or the lowest that is left.
    #[arg(long, value_name = "N", env = "RANGEFOLD_RANK", default_value_t = 0)]
    rank: u32,
    /// The transport of the data of a running cluster: auto, uring or socket. Any but auto fails rather than take another.
    #[arg(long, value_name = "X", env = "RANGEFOLD_TRANSPORT", default_value_t = Wish::Auto)]
    transport: Wish,
    /// Threads that may spin at once on this host; `launch` counts them.
    #[arg(long, value_name = "N", env = "RANGEFOLD_BUSY_THREADS", default_value_t = 1)]
    busy_threads: usize,
    /// Write the weights as text, one `index value` a line, the constant feature last.
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Print one JSON object on standard output instead of a table.
    #[arg(long)]
    json: bool,
}

/// What one worker did.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
struct Share {
    rows: u64,
    pushes: u64,
    pulls: u64,
    rounds: u64,
    waiting_share: f64,
    bytes_pushed: u64,
    bytes_pulled: u64,
}

impl Share {
    fn new(outcome: &Outcome, counters: &Counters, waited: Duration, elapsed: Duration) -> Self {
        Self {
            rows: outcome.rows,
            pushes: counters.push_frames,
            pulls: counters.pull_frames,
            rounds: outcome.progress.rounds,
            waiting_share: waited.as_secs_f64() / elapsed.as_secs_f64().max(1e-9),
            bytes_pushed: counters.bytes_pushed,
            bytes_pulled: counters.bytes_pulled,
        }
    }
}

/// What a finished job is reported with.
struct Finished {
    outcome: Outcome,
    shares: Vec<Share>,
    /// What shards have counted; nothing where they are other processes.
    servers: Vec<embed::Report>,
    seconds: f64,
    transport: String,
    /// Whether this process says so: all ranks have the same weights, and one is enough.
    reports: bool,
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
        passes_max: arguments.passes.unwrap_or(PASSES_MAX),
        deadline: Duration::from_secs(arguments.deadline),
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
    let finished = match &arguments.scheduler {
        None => embedded(arguments, &job, &data, &interrupt)?,
        Some(scheduler) => remote(arguments, scheduler, &job, &data, &interrupt)?,
    };
    if finished.reports {
        report(arguments, &finished, test.as_ref())?;
    }
    verdict(arguments, &finished.outcome)
}

/// A cluster in this process, each worker on a thread of its own.
fn embedded(
    arguments: &Arguments,
    job: &Job,
    data: &Mapping,
    interrupt: &AtomicBool,
) -> anyhow::Result<Finished> {
    let options = embed::Options {
        servers: arguments.servers,
        workers: arguments.workers,
        parts: job.parts,
        tau: Some(job.delay),
        limits: Limits::standard(),
        ..embed::Options::default()
    };
    let begun = Instant::now();
    let cluster = Cluster::start(options)?;
    let clients = (0..arguments.workers).map(|_| cluster.join()).collect::<Result<Vec<_>, _>>()?;
    let line = progress_line();
    let worked: Vec<anyhow::Result<(Outcome, Share)>> = std::thread::scope(|scope| {
        let start = |(index, client)| {
            let line = (index == 0).then_some(&line);
            scope.spawn(move || work(client, job, data, interrupt, line))
        };
        let threads: Vec<_> = clients.iter().enumerate().map(start).collect();
        let joined = threads.into_iter().map(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(anyhow::anyhow!("a worker's thread panicked; its message is above")))
        });
        joined.collect()
    });
    line.finish_and_clear();
    let (mut outcomes, shares): (Vec<Outcome>, Vec<Share>) =
        worked.into_iter().collect::<anyhow::Result<Vec<_>>>()?.into_iter().unzip();
    Ok(Finished {
        outcome: outcomes.swap_remove(0),
        shares,
        servers: cluster.report(),
        seconds: begun.elapsed().as_secs_f64(),
        transport: "memory".into(),
        reports: true,
    })
}

/// One worker of a cluster of processes.
fn remote(
    arguments: &Arguments,
    scheduler: &str,
    job: &Job,
    data: &Mapping,
    interrupt: &AtomicBool,
) -> anyhow::Result<Finished> {
    let options = remote::Options {
        scheduler: scheduler.to_owned(),
        workers: arguments.workers,
        parts: job.parts,
        rank: Some(arguments.rank),
        tau: Some(job.delay),
        limits: Limits::standard(),
        memory_bytes_max: 1 << 30,
        busy_threads: arguments.busy_threads,
        deadline: job.deadline,
    };
    if let Some(&core) = pinning::parse(&std::env::var(pinning::VARIABLE).unwrap_or_default())?.first() {
        // A thread that stays where it was is slower, and no worse.
        let _ = pinning::pin(core);
    }
    // The thread that waits drives, and the progress thread now and then.
    let endpoint = auto::Options { wish: arguments.transport, framing: remote::framing(), one_thread: false };
    let (endpoint, choice) = auto::Endpoint::new(&endpoint)?;
    eprintln!("rangefold: worker {} over {choice}", arguments.rank);
    let begun = Instant::now();
    let client = remote::connect(&options, endpoint)?;
    let line = progress_line();
    let worked = work(&client, job, data, interrupt, (arguments.rank == 0).then_some(&line));
    line.finish_and_clear();
    let (outcome, share) = worked?;
    let seconds = begun.elapsed().as_secs_f64();
    // What each worker did goes to rank 0 as a notice; a worker that was lost has left none.
    let name = |rank: u32| format!("share {rank}");
    client.post(&name(arguments.rank), serde_json::to_vec(&share)?)?;
    client.barrier(job.deadline)?;
    let mut shares = Vec::new();
    let mut first = None;
    for rank in 0..arguments.workers {
        if let Some(content) = client.notice(&name(rank))? {
            first = first.or(Some(rank));
            shares.push(serde_json::from_slice(&content)?);
        }
    }
    client.leave();
    let reports = first == Some(arguments.rank);
    if reports && arguments.rank > 0 {
        eprintln!("rangefold: worker 0 was lost; worker {} prints the result", arguments.rank);
    }
    Ok(Finished {
        outcome,
        shares,
        servers: Vec::new(),
        seconds,
        transport: choice.transport.into(),
        reports,
    })
}

/// One worker's part, to its end.
fn work<E: Endpoint + Send + 'static, D: Dialer + Send + 'static>(
    client: &Client<E, D>,
    job: &Job,
    data: &Mapping,
    interrupt: &AtomicBool,
    line: Option<&ProgressBar>,
) -> anyhow::Result<(Outcome, Share)> {
    let begun = Instant::now();
    let watch = |seen: &Seen| {
        if let Some(line) = line {
            show(line, seen, begun.elapsed(), client.waited());
        }
    };
    let outcome = train(client, job, data, interrupt, watch)?;
    let share = Share::new(&outcome, &client.counters(), client.waited(), begun.elapsed());
    Ok((outcome, share))
}

/// The closing table or JSON object, and the model.
fn report(arguments: &Arguments, finished: &Finished, test: Option<&Mapping>) -> anyhow::Result<()> {
    let weights = &finished.outcome.weights;
    if let Some(path) = &arguments.model {
        write_model(path, weights)
            .with_context(|| format!("cannot write the model to {}", path.display()))?;
    }
    let scores = test.map(|test| metrics::score(test, weights)).transpose()?;
    let auc = scores.as_ref().and_then(metrics::Scores::area_under_curve);
    let accuracy = scores.as_ref().and_then(metrics::Scores::accuracy);
    if arguments.json {
        println!("{:#}", as_json(finished, auc, accuracy));
    } else {
        print!("{}", as_table(finished, auc, accuracy));
    }
    Ok(())
}

fn verdict(arguments: &Arguments, outcome: &Outcome) -> anyhow::Result<Verdict> {
    match outcome.ended {
        Ended::Planned(Reason::GapReached) => Ok(Verdict::Success),
        Ended::Planned(Reason::PassesSpent) if arguments.passes.is_some() => Ok(Verdict::Success),
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

fn as_json(finished: &Finished, auc: Option<f64>, accuracy: Option<f64>) -> serde_json::Value {
    let outcome = &finished.outcome;
    let server = |(shard, steps): (&ShardId, &u64)| {
        let report = finished.servers.iter().find(|report| report.shard == *shard);
        json!({
            "server": shard.server.0,
            "shard": shard.shard,
            "proximal_steps": steps,
            "pushes": report.map(|report| report.counters.pushes),
            "pulls": report.map(|report| report.counters.pulls),
            "bytes": report.map(|report| report.bytes),
        })
    };
    json!({
        "objective": outcome.certificate.objective,
        "gap": outcome.certificate.gap,
        "nonzeros": outcome.certificate.nonzeros,
        "test_auc": auc,
        "test_accuracy": accuracy,
        "seconds": finished.seconds,
        "passes": outcome.progress.passes,
        "rounds": outcome.progress.rounds,
        "transport": finished.transport,
        "workers": finished.shares,
        "servers": outcome.steps.iter().map(server).collect::<Vec<_>>(),
    })
}

fn as_table(finished: &Finished, auc: Option<f64>, accuracy: Option<f64>) -> String {
    let outcome = &finished.outcome;
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
    row("seconds", format!("{:.2}", finished.seconds));
    row("transport", finished.transport.clone());
    let _ = writeln!(text, "\n# worker    rows   pushes    pulls  MB pushed  MB pulled  waiting");
    for (index, share) in finished.shares.iter().enumerate() {
        let _ = writeln!(
            text,
            "{index:>8} {:>7} {:>8} {:>8} {:>10.2} {:>10.2} {:>6.1} %",
            share.rows,
            share.pushes,
            share.pulls,
            share.bytes_pushed as f64 / 1e6,
            share.bytes_pulled as f64 / 1e6,
            100.0 * share.waiting_share,
        );
    }
    let _ = writeln!(text, "\n# server  shard  proximal steps");
    for (shard, steps) in &outcome.steps {
        let _ = writeln!(text, "{:>8} {:>6} {steps:>15}", shard.server.0, shard.shard);
    }
    text
}
