//! `rangefold train lr`: on an embedded cluster with a thread for each worker, or as one worker of a running cluster.
//! Knows the order of things, from options to status; the training itself is `rangefold_learn::train`.
//! Source: OSDI'14 §5.1.

mod model;
mod options;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::ProgressBar;
use rangefold::embed::{self, Cluster};
use rangefold::remote::{Choice, Route, Unshared};
use rangefold::{Client, Dialer, Endpoint, Limits, ShardId, pinning, remote};
use rangefold_learn::mapping::Mapping;
use rangefold_learn::plan::Reason;
use rangefold_learn::train::{Ended, Job, Outcome, Seen, train};
use rangefold_learn::{bundled, metrics};

use crate::exit::{self, Verdict};
use crate::say;
use crate::usage::Given;

pub(crate) use options::Arguments;
use options::{Place, Seat};
use report::{Finished, Scored, Share, gap, progress_line, show};

/// A wait that is worth a message: longer than any round of a job that goes well on a loaded machine.
const STALL: Duration = Duration::from_secs(5);
/// Between two looks at what a worker waits for.
const LOOK: Duration = Duration::from_secs(1);

/// Runs the job.
pub(crate) fn run(arguments: &Arguments, given: &Given<'_>) -> anyhow::Result<Verdict> {
    let (job, place) = (arguments.job()?, arguments.place(given)?);
    // Before hours of training rather than after them.
    arguments.model.as_deref().map(model::check).transpose()?;
    arguments.inputs_are_kept()?;
    let (data, test) = load(arguments)?;
    let (interrupt, begun) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (flag, under_way) = (Arc::clone(&interrupt), Arc::clone(&begun));
    // A second interrupt ends the process at once, and so does one before there is anything to save.
    let told = move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        if !under_way.load(Ordering::Relaxed) {
            say::note("told to stop before training began");
            std::process::exit(130);
        }
        say::note("told to stop; stopping at the next certificate (again: at once)");
    };
    ctrlc::set_handler(told).context("cannot catch interrupts")?;
    let finished = match place {
        Place::Embedded { servers } => embedded(arguments, servers, &job, &data, (&interrupt, &begun)),
        Place::Joined(seat) => joined(arguments, &seat, &job, &data, (&interrupt, &begun)),
    };
    match finished.and_then(|finished| conclude(arguments, &finished, test.as_ref())) {
        Err(error) if interrupt.load(Ordering::Relaxed) => {
            exit::print(&error);
            Ok(Verdict::Interrupted)
        }
        outcome => outcome,
    }
}

/// Whether the user has told it to stop, and whether there was a certificate to stop at.
type Flags<'a> = (&'a AtomicBool, &'a AtomicBool);

/// A cluster in this process, each worker on a thread of its own.
fn embedded(
    arguments: &Arguments,
    servers: u32,
    job: &Job,
    data: &Mapping,
    flags: Flags<'_>,
) -> anyhow::Result<Finished> {
    let options = embed::Options {
        servers,
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
    let worked: anyhow::Result<Vec<_>> = thread::scope(|scope| {
        let mut threads = Vec::new();
        for (rank, client) in (0..).zip(&clients) {
            let line = (rank == 0).then_some(&line);
            let worker = thread::Builder::new().name(format!("rangefold-worker-{rank}"));
            let spawned = worker.spawn_scoped(scope, move || work(client, rank, job, data, flags, line));
            let spawned = spawned.inspect_err(|_| {
                // Those that run would wait for this one.
                clients.iter().for_each(Client::leave);
            });
            threads.push(spawned.context("cannot start a thread; raise the limit on processes (ulimit -u)")?);
        }
        let panicked = |_| Err(anyhow::anyhow!("a worker's thread panicked; its message is above"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    });
    line.finish_and_clear();
    let (mut outcomes, shares): (Vec<Outcome>, Vec<Share>) = worked?.into_iter().unzip();
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
fn joined(
    arguments: &Arguments,
    seat: &Seat<'_>,
    job: &Job,
    data: &Mapping,
    flags: Flags<'_>,
) -> anyhow::Result<Finished> {
    let rank = seat.rank;
    let options = remote::Options {
        scheduler: seat.scheduler.to_owned(),
        workers: arguments.workers,
        parts: job.parts,
        rank: Some(rank),
        tau: Some(job.delay),
        busy_threads: arguments.busy_threads,
        deadline: job.deadline,
        terms: seat.terms.clone(),
        ..remote::Options::default()
    };
    let begun = Instant::now();
    let (client, choice) = remote::connect(&options, seat.wish)?;
    // A thread that stays where it was is slower, and no worse.
    let _ = seat.cores.first().map(|&core| pinning::pin(core));
    say::note(&format!("worker {rank} over {choice}"));
    let line = progress_line();
    let worked = work(&client, rank, job, data, flags, (rank == 0).then_some(&line));
    line.finish_and_clear();
    let (outcome, share) = worked?;
    let seconds = begun.elapsed().as_secs_f64();
    let transport = travelled(client.routes().into_iter().map(|(_, route)| route), &choice);
    let (shares, reports) = exchange(&client, rank, arguments.workers, share, job.deadline)
        .unwrap_or_else(|error| {
            say::note(&format!(
                "worker {rank} cannot hear of the others at the end: {error}; it reports its own result, which is theirs \
                 too, and its own share only"
            ));
            (vec![share], true)
        });
    client.leave();
    Ok(Finished { outcome, shares, servers: Vec::new(), seconds, transport, reports })
}

/// What the data travelled over: each way once.
fn travelled(routes: impl Iterator<Item = Route>, choice: &Choice) -> String {
    let names: BTreeSet<&str> =
        routes.map(|route| if route == Route::Shared { "shm" } else { choice.transport }).collect();
    match names.is_empty() {
        true => choice.transport.into(),
        false => names.into_iter().collect::<Vec<_>>().join(" and "),
    }
}

/// What all workers did, by notices; one that was lost has left none. Says also whether it is this one who reports.
fn exchange<E: Endpoint + Send + 'static, D: Dialer + Send + 'static>(
    client: &Client<E, D>,
    rank: u32,
    workers: u32,
    share: Share,
    deadline: Duration,
) -> anyhow::Result<(Vec<Share>, bool)> {
    let name = |rank: u32| format!("share {rank}");
    client.post(&name(rank), serde_json::to_vec(&share)?)?;
    client.barrier(deadline)?;
    let mut shares = Vec::new();
    let mut first = None;
    for rank in 0..workers {
        if let Some(content) = client.notice(&name(rank))? {
            first = first.or(Some(rank));
            shares.push(serde_json::from_slice(&content)?);
        }
    }
    let reports = first == Some(rank);
    if reports && rank > 0 {
        say::note(&format!("worker 0 was lost; worker {rank} prints the result"));
    }
    Ok((shares, reports))
}

/// One worker's part, to its end.
fn work<E: Endpoint + Send + 'static, D: Dialer + Send + 'static>(
    client: &Client<E, D>,
    rank: u32,
    job: &Job,
    data: &Mapping,
    flags: Flags<'_>,
    line: Option<&ProgressBar>,
) -> anyhow::Result<(Outcome, Share)> {
    let (interrupt, under_way) = flags;
    let begun = Instant::now();
    let watch = |seen: &Seen| {
        under_way.store(true, Ordering::Relaxed);
        if let Some(line) = line {
            show(line, seen, begun.elapsed(), client.waited());
        }
    };
    let outcome = thread::scope(|scope| {
        let (ended, end) = mpsc::channel::<()>();
        // Without it a stall is named at the deadline only.
        let _ = thread::Builder::new()
            .name("rangefold-watch".into())
            .spawn_scoped(scope, move || name_stalls(client, rank, job.deadline, &end));
        let outcome = train(client, job, data, interrupt, watch);
        drop(ended);
        outcome
    })?;
    let share = Share::new(rank, &outcome, &client.counters(), client.waited(), begun.elapsed());
    Ok((outcome, share))
}

/// Says what a worker waits for when it has waited for long, once for each wait, which connections it loses and has again, and
/// which of them might go through shared memory and do not.
fn name_stalls<E: Endpoint + Send + 'static, D: Dialer + Send + 'static>(
    client: &Client<E, D>,
    rank: u32,
    deadline: Duration,
    end: &mpsc::Receiver<()>,
) {
    let mut told = false;
    let mut lost: BTreeMap<ShardId, String> = BTreeMap::new();
    let mut over: BTreeMap<ShardId, Route> = BTreeMap::new();
    loop {
        let is_over = end.recv_timeout(LOOK) != Err(mpsc::RecvTimeoutError::Timeout);
        // Once more at the end: a job may be shorter than the time between two looks.
        name_routes(client, rank, &mut over);
        if is_over {
            return;
        }
        let now: BTreeMap<ShardId, String> = client.disconnected().into_iter().collect();
        for (shard, why) in now.iter().filter(|(shard, _)| !lost.contains_key(shard)) {
            say::note(&format!("worker {rank} has no connection to {shard:?}: {why}"));
        }
        for shard in lost.keys().filter(|shard| !now.contains_key(shard)) {
            say::note(&format!("worker {rank} is connected to {shard:?} again"));
        }
        lost = now;
        match client.waiting() {
            Some((waiting, what)) if waiting >= STALL => {
                if !told {
                    let (waiting, deadline) = (waiting.as_secs(), deadline.as_secs());
                    say::note(&format!(
                        "worker {rank} has waited for {waiting} s and gives up after {deadline} s: {what}"
                    ));
                }
                told = true;
            }
            _ => told = false,
        }
    }
}

/// Says of each connection once, and when it has changed, why it goes over TCP though its server might be of this host.
fn name_routes<E: Endpoint + Send + 'static, D: Dialer + Send + 'static>(
    client: &Client<E, D>,
    rank: u32,
    told: &mut BTreeMap<ShardId, Route>,
) {
    for (shard, route) in client.routes() {
        if told.get(&shard) == Some(&route) {
            continue;
        }
        if matches!(&route, Route::Tcp(Some(why)) if *why != Unshared::OtherHost) {
            say::note(&format!("worker {rank} reaches {shard:?} over {route}"));
        }
        told.insert(shard, route);
    }
}

/// Saves and prints what there is. A model that cannot be saved does not keep the result from being printed.
fn conclude(arguments: &Arguments, finished: &Finished, test: Option<&Mapping>) -> anyhow::Result<Verdict> {
    if finished.reports {
        let weights = &finished.outcome.weights;
        let saved = arguments.model.as_deref().map_or(Ok(()), |path| model::write(path, weights));
        let printed = print(arguments, finished, test);
        if let (Err(error), Err(_)) = (&saved, &printed) {
            exit::print(error);
        }
        printed.and(saved)?;
    }
    Ok(verdict(arguments, finished))
}

fn print(arguments: &Arguments, finished: &Finished, test: Option<&Mapping>) -> anyhow::Result<()> {
    let scores = test.map(|test| metrics::score(test, &finished.outcome.weights)).transpose()?;
    let scored = Scored {
        auc: scores.as_ref().and_then(metrics::Scores::area_under_curve),
        accuracy: scores.as_ref().and_then(metrics::Scores::accuracy),
    };
    let text = if arguments.json {
        format!("{:#}\n", report::as_json(finished, &scored))
    } else {
        report::as_table(finished, &scored)
    };
    say::result("the result", &text)
}

fn verdict(arguments: &Arguments, finished: &Finished) -> Verdict {
    let outcome = &finished.outcome;
    match outcome.ended {
        Ended::Planned(Reason::GapReached) => Verdict::Success,
        Ended::Planned(Reason::PassesSpent) if arguments.passes.is_some() => Verdict::Success,
        Ended::Planned(Reason::PassesSpent) => {
            let (gap, passes) = (gap(outcome.certificate.gap), outcome.progress.passes);
            say::note(&format!(
                "the gap is {gap} after {passes:.0} passes; allow more with --passes, or a larger --gap"
            ));
            Verdict::GoalMissed
        }
        Ended::Interrupted => {
            match &arguments.model {
                // Who has not written them does not know whether they could be.
                _ if !finished.reports => say::note("stopped before the goal"),
                Some(path) => {
                    say::note(&format!(
                        "stopped before the goal; the weights so far are in {}",
                        path.display()
                    ));
                }
                None => say::note("stopped before the goal; no weights were saved (--model FILE saves them)"),
            }
            Verdict::Interrupted
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
