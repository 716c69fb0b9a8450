//! `rangefold launch`: a scheduler, servers and copies of a command as processes of this host, with their output, to a clean end.
//! Knows processes, pipes and signals; nothing of what they say to each other.
//! For one host; what its user is promised is in the README (on a laptop).

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rangefold::pinning;
use rangefold_transport::auto::Wish;
use rustix::process::{Pid, Signal, kill_process};

use crate::exit::Verdict;

/// How long the scheduler may take to say where it listens.
const START: Duration = Duration::from_secs(10);
/// How long processes may take to end after they were asked to.
const GRACE: Duration = Duration::from_secs(5);
/// Between two looks at the processes.
const LOOK: Duration = Duration::from_millis(10);

/// Options of `launch`.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Server processes.
    #[arg(long, value_name = "S", default_value_t = 2)]
    servers: u32,
    /// Copies of the command.
    #[arg(long, value_name = "W", default_value_t = 2)]
    workers: u32,
    /// Shard threads of each server.
    #[arg(long, value_name = "N", default_value_t = 1)]
    shards: u16,
    /// The transport of the data between the processes: auto, uring or socket. Any but auto fails rather than take another.
    #[arg(long, value_name = "X", default_value_t = Wish::Auto)]
    transport: Wish,
    /// The command: a program that uses the library, or one of our own subcommands (`train lr …`).
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

/// A process that was started, and the threads that copy its output.
struct Process {
    name: String,
    child: Child,
    copies: Vec<JoinHandle<()>>,
}

/// Where a line of a child's output goes.
#[derive(Clone, Copy)]
enum To {
    Out,
    Error,
}

/// Starts everything, waits for the workers, ends the rest.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    if arguments.servers == 0 || arguments.workers == 0 {
        bail!("a cluster needs at least one server and one worker");
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)).context("cannot catch interrupts")?;
    let mut cluster = Cluster::default();
    let outcome = cluster.play(arguments, &interrupted);
    cluster.end();
    outcome
}

#[derive(Default)]
struct Cluster {
    /// The scheduler, then the servers.
    services: Vec<Process>,
    workers: Vec<Process>,
    output: Output,
}

impl Cluster {
    fn play(&mut self, arguments: &Arguments, interrupted: &AtomicBool) -> anyhow::Result<Verdict> {
        let address = self.start_scheduler(arguments.servers)?;
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
            let mut command = ours()?;
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
            let process = self.start(format!("server {server}"), command, true)?;
            self.services.push(process);
        }
        for rank in 0..arguments.workers {
            let mut command = if is_ours(&arguments.command[0]) {
                let mut command = ours()?;
                command.args(&arguments.command);
                command
            } else {
                let mut command = Command::new(&arguments.command[0]);
                command.args(&arguments.command[1..]);
                command
            };
            command.env(pinning::VARIABLE, take(1));
            command.env("RANGEFOLD_BUSY_THREADS", busy.to_string());
            command.env("RANGEFOLD_SCHEDULER", &address);
            command.env("RANGEFOLD_RANK", rank.to_string());
            command.env("RANGEFOLD_WORLD", arguments.workers.to_string());
            command.env("RANGEFOLD_TRANSPORT", arguments.transport.to_string());
            let process = self.start(format!("worker {rank}"), command, rank != 0)?;
            self.workers.push(process);
        }
        self.wait(interrupted)
    }

    /// The scheduler listens on a port that the system picks, and says which on its first line.
    fn start_scheduler(&mut self, servers: u32) -> anyhow::Result<String> {
        let mut command = ours()?;
        command.args(["scheduler", "--bind", "127.0.0.1:0", "--until-stdin-closes"]);
        command.args(["--servers", &servers.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().context("cannot start the scheduler")?;
        let out = child.stdout.take().context("the scheduler has no standard output")?;
        let error = child.stderr.take().context("the scheduler has no standard error")?;
        let (sender, first) = std::sync::mpsc::channel();
        let output = self.output.clone();
        let lines = std::thread::spawn(move || {
            let mut lines = BufReader::new(out).lines().map_while(Result::ok);
            let _ = sender.send(lines.next());
            for line in lines {
                output.line(To::Out, "[scheduler] ", &line);
            }
        });
        let copies = vec![lines, self.output.copy(error, To::Error, "[scheduler] ".into())];
        self.services.push(Process { name: "scheduler".into(), child, copies });
        let line = first.recv_timeout(START).ok().flatten();
        let address = line.as_deref().and_then(|line| line.strip_prefix(crate::scheduler::LISTENING));
        address.map(str::to_owned).with_context(|| {
            format!("the scheduler did not say within {START:?} where it listens; what it said is above")
        })
    }

    fn start(&self, name: String, mut command: Command, prefixed: bool) -> anyhow::Result<Process> {
        // Services end when this pipe closes, so also when this process is killed. Each process is a group of its own: an
        // interrupt of the terminal comes here only, and workers are asked to stop before their servers end.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command.spawn().with_context(|| format!("cannot start {name}: {program}"))?;
        let prefix = format!("[{name}] ");
        let mut copies = Vec::new();
        if let Some(out) = child.stdout.take() {
            let prefix = if prefixed { prefix.clone() } else { String::new() };
            copies.push(self.output.copy(out, To::Out, prefix));
        }
        if let Some(error) = child.stderr.take() {
            copies.push(self.output.copy(error, To::Error, prefix));
        }
        Ok(Process { name, child, copies })
    }

    /// Waits for all workers. A server that ends before them ends the job.
    fn wait(&mut self, interrupted: &AtomicBool) -> anyhow::Result<Verdict> {
        let mut ended: BTreeMap<usize, ExitStatus> = BTreeMap::new();
        let mut asked: Option<Instant> = None;
        while ended.len() < self.workers.len() {
            for (rank, worker) in self.workers.iter_mut().enumerate() {
                if !ended.contains_key(&rank)
                    && let Some(status) = worker.child.try_wait()?
                {
                    if !status.success() {
                        self.output.line(
                            To::Error,
                            "",
                            &format!("rangefold: {} ended: {status}", worker.name),
                        );
                    }
                    ended.insert(rank, status);
                }
            }
            for service in &mut self.services {
                if let Some(status) = service.child.try_wait()? {
                    bail!(
                        "{} ended while workers were running ({status}); its last words are above",
                        service.name
                    );
                }
            }
            if interrupted.load(Ordering::Relaxed) && asked.is_none() {
                asked = Some(Instant::now());
                for worker in &self.workers {
                    signal(&worker.child, Signal::INT);
                }
            }
            if asked.is_some_and(|asked| asked.elapsed() > 2 * GRACE) {
                bail!("interrupted; some workers did not stop within {:?} and were killed", 2 * GRACE);
            }
            std::thread::sleep(LOOK);
        }
        let worst = ended.values().map(code).max().unwrap_or(0);
        Ok(if worst == 0 { Verdict::Success } else { Verdict::Exit(worst) })
    }

    /// Ends what is still running: asked first, killed after a while. Nothing is left behind.
    fn end(&mut self) {
        for process in self.workers.iter_mut().chain(&mut self.services) {
            drop(process.child.stdin.take());
            if matches!(process.child.try_wait(), Ok(None)) {
                signal(&process.child, Signal::TERM);
            }
        }
        let asked = Instant::now();
        for process in self.workers.iter_mut().chain(&mut self.services) {
            while matches!(process.child.try_wait(), Ok(None)) {
                if asked.elapsed() > GRACE {
                    // It may have ended in this moment; waiting is right either way.
                    let _ = process.child.kill();
                    let _ = process.child.wait();
                    break;
                }
                std::thread::sleep(LOOK);
            }
            for copy in process.copies.drain(..) {
                // A copying thread has no way to fail but a closed terminal.
                let _ = copy.join();
            }
        }
    }
}

fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // A process that has ended needs no signal.
        let _ = kill_process(pid, signal);
    }
}

/// As a shell says it: the exit code, or 128 and the signal.
fn code(status: &ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(u8::MAX)
}

fn ours() -> anyhow::Result<Command> {
    Ok(Command::new(std::env::current_exe().context("cannot find this program's own file")?))
}

fn is_ours(word: &str) -> bool {
    matches!(word, "train" | "info")
}

/// Standard output and error of this process, written a line at a time by many threads.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<()>>);

impl Output {
    fn line(&self, to: To, prefix: &str, line: &str) {
        let _lock = self.0.lock();
        // Nobody may be listening any more; the job goes on.
        let _ = match to {
            To::Out => writeln!(std::io::stdout(), "{prefix}{line}"),
            To::Error => writeln!(std::io::stderr(), "{prefix}{line}"),
        };
    }

    fn copy(&self, from: impl std::io::Read + Send + 'static, to: To, prefix: String) -> JoinHandle<()> {
        let output = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                output.line(to, &prefix, &line);
            }
        })
    }
}
