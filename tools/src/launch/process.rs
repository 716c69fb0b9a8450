//! One child process: started, its output copied a line at a time, signalled, ended.
//! Knows pipes, threads and signals; not what the process is for. Called by `mod.rs`.

use std::io::{BufRead, BufReader, ErrorKind, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process_group};

/// A process that was started, and the threads that copy its output. Killed when dropped, if it still runs.
pub(super) struct Process {
    pub(super) name: String,
    child: Child,
    copies: Vec<JoinHandle<()>>,
}

/// Where a line of a child's output goes.
#[derive(Clone, Copy)]
enum To {
    Out,
    Error,
}

impl Process {
    /// Starts a process whose lines on both outputs come out of ours, behind its name; without it for what it `speaks` on
    /// standard output.
    ///
    /// # Errors
    /// There is no such program, or no process, pipe or thread to be had.
    pub(super) fn start(
        output: &Output,
        name: String,
        command: Command,
        speaks: bool,
    ) -> anyhow::Result<Self> {
        let prefix = format!("[{name}] ");
        let mut process = Self::spawn(name, command)?;
        process.copy_error(output, &prefix)?;
        if let Some(out) = process.child.stdout.take() {
            let output = output.clone();
            let prefix = if speaks { String::new() } else { prefix };
            process.copy(move || {
                for line in BufReader::new(out).lines().map_while(Result::ok) {
                    output.line(To::Out, &prefix, &line);
                }
            })?;
        }
        Ok(process)
    }

    /// The same, and its first line on standard output, which is not copied.
    ///
    /// # Errors
    /// As for `start`.
    pub(super) fn start_and_hear(
        output: &Output,
        name: String,
        command: Command,
    ) -> anyhow::Result<(Self, Receiver<Option<String>>)> {
        let prefix = format!("[{name}] ");
        let mut process = Self::spawn(name, command)?;
        process.copy_error(output, &prefix)?;
        let (sender, first) = channel();
        if let Some(out) = process.child.stdout.take() {
            let output = output.clone();
            process.copy(move || {
                let mut lines = BufReader::new(out).lines().map_while(Result::ok);
                // Whoever waited for it may have given up.
                let _ = sender.send(lines.next());
                for line in lines {
                    output.line(To::Out, &prefix, &line);
                }
            })?;
        }
        Ok((process, first))
    }

    fn spawn(name: String, mut command: Command) -> anyhow::Result<Self> {
        // Services end when this pipe closes, so also when this process is killed. Each process is a group of its own: an
        // interrupt of the terminal comes here only, and workers are asked to stop before their servers end.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().map_err(|error| {
            let full = error.kind() == ErrorKind::WouldBlock;
            let remedy = if full { "; raise the limit on processes (ulimit -u)" } else { "" };
            anyhow::anyhow!("cannot start {name}: {program}: {error}{remedy}")
        })?;
        Ok(Self { name, child, copies: Vec::new() })
    }

    fn copy_error(&mut self, output: &Output, prefix: &str) -> anyhow::Result<()> {
        let Some(error) = self.child.stderr.take() else { return Ok(()) };
        let (output, prefix) = (output.clone(), prefix.to_owned());
        self.copy(move || {
            for line in BufReader::new(error).lines().map_while(Result::ok) {
                output.line(To::Error, &prefix, &line);
            }
        })
    }

    fn copy(&mut self, copy: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
        let thread = thread::Builder::new().name("rangefold-copy".into()).spawn(copy);
        let thread = thread.with_context(|| {
            format!(
                "cannot start a thread for the output of {}; raise the limit on processes (ulimit -u)",
                self.name
            )
        })?;
        self.copies.push(thread);
        Ok(())
    }

    /// Whether somebody has stopped it (SIGSTOP).
    pub(super) fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        // The state is the first field behind the name, which ends with the last parenthesis.
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// The system does not say.
    pub(super) fn ended(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    pub(super) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Signals it and what it has started: all of its group.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // A group that has ended needs no signal.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Asks it to end: by the end of its standard input, and by a signal.
    pub(super) fn ask(&mut self) {
        drop(self.child.stdin.take());
        if self.runs() {
            self.signal(Signal::TERM);
        }
    }

    pub(super) fn kill(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }

    /// Waits until all that it said is copied. It has ended; what it has left running in its group is killed, or its outputs
    /// would never close.
    pub(super) fn drain(&mut self) {
        self.signal(Signal::KILL);
        for copy in self.copies.drain(..) {
            // A copying thread has no way to fail but a closed terminal.
            let _ = copy.join();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.runs() {
            self.kill();
        }
    }
}

/// As a shell says it: the exit code, or 128 and the signal.
pub(super) fn code(status: &ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// Standard output and error of this process, written a line at a time by many threads.
#[derive(Clone, Default)]
pub(super) struct Output(Arc<Mutex<()>>);

impl Output {
    /// A line of our own on standard error.
    pub(super) fn note(&self, line: &str) {
        self.line(To::Error, "rangefold: ", line);
    }

    fn line(&self, to: To, prefix: &str, line: &str) {
        let _lock = self.0.lock();
        // Nobody may be listening any more; the job goes on.
        let _ = match to {
            To::Out => writeln!(std::io::stdout(), "{prefix}{line}"),
            To::Error => writeln!(std::io::stderr(), "{prefix}{line}"),
        };
    }
}
