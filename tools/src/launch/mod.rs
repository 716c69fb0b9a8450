//! `rangefold launch`: a scheduler, servers and copies of a command as processes of this host, with their output, to a clean end.
//! Knows which processes there are and when each is to end; nothing of what they say to each other.
//! For one host; what its user is promised is in the README (on a laptop).

mod process;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rangefold::{pinning, remote};
use rangefold_transport::auto::Wish;
use rangefold_transport::bootstrap::{Secret, Terms};
use rustix::process::Signal;

use crate::exit::{self, Verdict};
use crate::{terms, usage};

use process::{Output, Process, code};

/// How long the scheduler may take to say where it listens.
const START: Duration = Duration::from_secs(10);
/// How long processes may take to end after they were asked to.
const GRACE: Duration = Duration::from_secs(5);
/// Between two looks at the processes.
const LOOK: Duration = Duration::from_millis(10);

/// Options of `launch`.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Server processes, at most 1024.
    #[arg(long, value_name = "S", default_value_t = 2, allow_negative_numbers = true, value_parser = usage::nodes())]
    servers: u32,
    /// Copies of the command, at most 1024.
    #[arg(long, value_name = "W", default_value_t = 2, allow_negative_numbers = true, value_parser = usage::nodes())]
    workers: u32,
    /// Shard threads of each server, at most 1024.
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = usage::shards())]
    shards: u16,
    /// The transport of the data between the processes: auto, shm, uring or socket. Any but auto fails rather than take another.
    #[arg(long, value_name = "X", env = "RANGEFOLD_TRANSPORT", default_value_t = Wish::Auto,
        value_parser = usage::transport)]
    transport: Wish,
    #[command(flatten)]
    terms: terms::Arguments,
    /// The command: a program that uses the library, or one of our own subcommands (`train lr …`).
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Starts everything, waits for the workers, ends the rest.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let mut terms = arguments.terms.terms()?;
    if terms.secret.is_none() {
        // Loopback is this host's, and this host may have other users.
        terms.secret = Some(Secret::random().context("the system gives no random numbers for a secret")?);
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)).context("cannot catch interrupts")?;
    let mut cluster = Cluster::new(interrupted, terms);
    let outcome = cluster.play(arguments);
    cluster.end();
    match outcome {
        Err(error) if cluster.interrupted() => {
            exit::print(&error);
            Ok(Verdict::Interrupted)
        }
        outcome => outcome,
    }
}

struct Cluster {
    /// The scheduler, then the servers.
    services: Vec<Process>,
    workers: Vec<Process>,
    output: Output,
    interrupted: Arc<AtomicBool>,
    terms: Terms,
}

impl Cluster {
    fn new(interrupted: Arc<AtomicBool>, terms: Terms) -> Self {
        Self { services: Vec::new(), workers: Vec::new(), output: Output::default(), interrupted, terms }
    }

    /// Gives a process what it needs to be of this cluster: by its environment, as its arguments can be read by everybody.
    fn let_in(&self, command: &mut Command) {
        if let Some(secret) = &self.terms.secret {
            command.env(remote::SECRET_VARIABLE, OsStr::from_bytes(secret.expose()));
        }
        command.env(remote::PEER_TIMEOUT_VARIABLE, self.terms.peer_timeout.as_secs().to_string());
    }

    fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    fn play(&mut self, arguments: &Arguments) -> anyhow::Result<Verdict> {
        let Some(address) = self.start_scheduler(arguments.servers)? else {
            return Ok(Verdict::Interrupted);
        };
        // Cores are assigned only when every busy thread can have its own.
        let shards = usize::from(arguments.shards);
        let mut cores = pinning::allowed();
        let busy = arguments.servers as usize * shards + arguments.workers as usize;
        if cores.len() < busy {
            cores.clear();
        }
        let mut take = |count: usize| {
            let taken: Vec<String> =
                cores.drain(..count.min(cores.len())).map(|core| core.to_string()).collect();
            taken.join(",")
        };
        for server in 0..arguments.servers {
            if self.interrupted() {
                return Ok(Verdict::Interrupted);
            }
            let mut command = ours()?;
            self.let_in(&mut command);
            command.env(pinning::VARIABLE, take(shards));
            command.env("RANGEFOLD_SERVER", server.to_string());
            command.env("RANGEFOLD_BUSY_THREADS", busy.to_string());
            command.args(["server", "--scheduler", &address, "--until-stdin-closes"]);
            command.args([
                "--shards",
                &arguments.shards.to_string(),
                "--transport",
                &arguments.transport.to_string(),
            ]);
            let process = Process::start(&self.output, format!("server {server}"), command, false)?;
            self.services.push(process);
        }
        for rank in 0..arguments.workers {
            if self.interrupted() {
                return Ok(Verdict::Interrupted);
            }
            let mut command = if is_ours(&arguments.command[0]) {
                let mut command = ours()?;
                command.args(&arguments.command);
                command
            } else {
                let mut command = Command::new(&arguments.command[0]);
                command.args(&arguments.command[1..]);
                command
            };
            self.let_in(&mut command);
            command.env(pinning::VARIABLE, take(1));
            command.env("RANGEFOLD_BUSY_THREADS", busy.to_string());
            command.env("RANGEFOLD_SCHEDULER", &address);
            command.env("RANGEFOLD_RANK", rank.to_string());
            command.env("RANGEFOLD_WORLD", arguments.workers.to_string());
            command.env("RANGEFOLD_TRANSPORT", arguments.transport.to_string());
            let process = Process::start(&self.output, format!("worker {rank}"), command, rank == 0)?;
            self.workers.push(process);
        }
        self.wait()
    }

    /// The scheduler listens on a port that the system picks, and says which on its first line; nothing if the user does not
    /// want to wait for that.
    fn start_scheduler(&mut self, servers: u32) -> anyhow::Result<Option<String>> {
        let mut command = ours()?;
        self.let_in(&mut command);
        command.args(["scheduler", "--bind", "127.0.0.1:0", "--until-stdin-closes"]);
        command.args(["--servers", &servers.to_string()]);
        let (process, first) = Process::start_and_hear(&self.output, "scheduler".into(), command)?;
        self.services.push(process);
        let begun = Instant::now();
        let line = loop {
            match first.recv_timeout(LOOK) {
                Err(RecvTimeoutError::Timeout) if self.interrupted() => return Ok(None),
                Err(RecvTimeoutError::Timeout) if begun.elapsed() < START => {}
                heard => break heard.ok().flatten(),
            }
        };
        let address = line.as_deref().and_then(|line| line.strip_prefix(crate::scheduler::LISTENING));
        let address = address.with_context(|| {
            format!(
                "the scheduler ended, or did not say within {START:?} where it listens; what it said is above"
            )
        })?;
        Ok(Some(address.to_owned()))
    }

    /// Waits for all workers. A server that ends before them ends the job, a scheduler does not.
    fn wait(&mut self) -> anyhow::Result<Verdict> {
        let mut ended: BTreeMap<usize, ExitStatus> = BTreeMap::new();
        let mut asked: Option<Instant> = None;
        let mut last_end = Instant::now();
        let mut alone = false;
        while ended.len() < self.workers.len() {
            for (rank, worker) in self.workers.iter_mut().enumerate() {
                if !ended.contains_key(&rank)
                    && let Some(status) = worker.ended()?
                {
                    if !status.success() {
                        self.output.note(&format!("{} ended: {status}", worker.name));
                    }
                    ended.insert(rank, status);
                    last_end = Instant::now();
                }
            }
            // Its lanes went to others long ago, and the job is done: nobody need continue it.
            if !ended.is_empty() && last_end.elapsed() > GRACE {
                self.kill_stopped();
            }
            for (place, service) in self.services.iter_mut().enumerate() {
                let Some(status) = service.ended()? else { continue };
                if place > 0 {
                    bail!("{} ended while workers were running ({status})", service.name);
                }
                // The first is the scheduler: what is under way does not need it.
                if !alone {
                    self.output.note(&format!("the scheduler ended ({status}); the job goes on without it"));
                }
                alone = true;
            }
            if self.interrupted() && asked.is_none() {
                asked = Some(Instant::now());
                for worker in &mut self.workers {
                    if worker.runs() {
                        worker.signal(Signal::INT);
                    }
                }
            }
            if asked.is_some_and(|asked| asked.elapsed() > 2 * GRACE) {
                bail!("interrupted; some workers did not stop within {:?} and were killed", 2 * GRACE);
            }
            std::thread::sleep(LOOK);
        }
        let worst = ended.values().map(code).max().unwrap_or(0);
        Ok(match worst {
            _ if asked.is_some() => Verdict::Interrupted,
            0 => Verdict::Success,
            worst => Verdict::Exit(worst),
        })
    }

    /// Kills the workers that run no more because somebody has stopped them, if there are no others left.
    fn kill_stopped(&mut self) {
        let mut left = Vec::new();
        for worker in &mut self.workers {
            if worker.runs() {
                left.push(&*worker);
            }
        }
        if left.iter().all(|worker| worker.is_stopped()) {
            for worker in left {
                self.output
                    .note(&format!("{} is stopped, and all others have ended: it is killed", worker.name));
                worker.signal(Signal::KILL);
            }
        }
    }

    /// Ends what is still running: asked first, killed after a while. Nothing is left behind.
    fn end(&mut self) {
        for process in self.workers.iter_mut().chain(&mut self.services) {
            process.ask();
        }
        let asked = Instant::now();
        for process in self.workers.iter_mut().chain(&mut self.services) {
            while process.runs() {
                if asked.elapsed() > GRACE {
                    process.kill();
                    break;
                }
                std::thread::sleep(LOOK);
            }
            process.drain();
        }
    }
}

fn ours() -> anyhow::Result<Command> {
    Ok(Command::new(std::env::current_exe().context("cannot find this program's own file")?))
}

fn is_ours(word: &str) -> bool {
    matches!(word, "train" | "info")
}
