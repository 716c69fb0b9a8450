//! Runs one command of a stage and says how it ended and how long it took.
//! Knows processes; not what they are for. Called by every stage.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

/// How a stage ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// As it should.
    Passed,
    /// Something it needs is not there.
    Skipped(String),
    /// It did not hold.
    Failed(String),
}

/// Runs a stage and prints `== name 12 s`; says whether the next may run.
pub(crate) fn timed(name: &str, run: fn() -> Outcome) -> bool {
    say(&format!("== {name}"));
    let begun = Instant::now();
    let outcome = run();
    let seconds = begun.elapsed().as_secs_f64();
    match &outcome {
        Outcome::Passed => say(&format!("== {name} {seconds:.0} s")),
        Outcome::Skipped(why) => say(&format!("== {name} skipped: {why}")),
        Outcome::Failed(why) => say(&format!("== {name} FAILED after {seconds:.0} s: {why}")),
    }
    !matches!(outcome, Outcome::Failed(_))
}

/// A line on standard output, at once: the commands write there as well.
fn say(line: &str) {
    let mut out = std::io::stdout();
    // Without anybody to read it there is nothing to do about it.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Whether a program is there and does what it is asked, quietly.
pub(crate) fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// A command to run.
pub(crate) struct Stage {
    command: Command,
    text: String,
}

impl Stage {
    /// Cargo with these arguments, at the top of the workspace.
    pub(crate) fn cargo(arguments: &[&str]) -> Self {
        // `cargo` and not $CARGO: only the proxy understands `+nightly`.
        let mut command = Command::new("cargo");
        command.args(arguments).current_dir(root());
        if arguments.first().is_some_and(|first| first.starts_with('+')) {
            command.env_remove("RUSTUP_TOOLCHAIN");
        }
        Self { command, text: format!("cargo {}", arguments.join(" ")) }
    }

    /// With this variable set.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self.text = format!("{name}='{value}' {}", self.text);
        self
    }

    /// With its build in a folder of its own under the target folder, so that other flags do not undo the main build.
    pub(crate) fn target_dir(mut self, name: &str) -> Self {
        self.command.env("CARGO_TARGET_DIR", target().join(name));
        self
    }

    /// Runs it; its output is ours.
    pub(crate) fn run(mut self) -> Outcome {
        say(&format!("$ {}", self.text));
        match self.command.status() {
            Ok(status) if status.success() => Outcome::Passed,
            Ok(status) => Outcome::Failed(format!("{} ({status})", self.text)),
            Err(error) => Outcome::Failed(format!("{}: {error}", self.text)),
        }
    }

    /// Runs it if the target is installed or can be had.
    pub(crate) fn run_on(self, target: &str) -> Outcome {
        if has_target(target) || (succeeds("rustup", &["target", "add", target]) && has_target(target)) {
            self.run()
        } else {
            Outcome::Skipped(format!("the target {target} is not installed and cannot be downloaded here"))
        }
    }

    /// Runs it and keeps its standard output, and with `quiet` its standard error as well.
    pub(crate) fn output(mut self, quiet: bool) -> Result<Output, String> {
        say(&format!("$ {}", self.text));
        self.command.stdout(Stdio::piped()).stderr(if quiet { Stdio::piped() } else { Stdio::inherit() });
        let child = self.command.stdin(Stdio::null()).spawn();
        child
            .and_then(std::process::Child::wait_with_output)
            .map_err(|error| format!("{}: {error}", self.text))
    }
}

fn has_target(target: &str) -> bool {
    let list = Command::new("rustup").args(["target", "list", "--installed"]).output();
    list.is_ok_and(|list| String::from_utf8_lossy(&list.stdout).lines().any(|line| line == target))
}

fn root() -> PathBuf {
    // tools/xtask, two levels below the top.
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).map_or_else(|| here.clone(), PathBuf::from)
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
