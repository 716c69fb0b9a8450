//! Runs one command of a stage and says how it ended and how long it took.
//! Knows processes; not what they are for. Called by every stage.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

/// How a stage ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// As it should.
    Passed,
    /// As it should, and this is its closing line: printed last of all, after the times.
    Closed(String),
    /// Something it needs is not there.
    Skipped(String),
    /// It did not hold.
    Failed(String),
}

/// Runs a stage and prints `== name 12 s`.
pub(crate) fn timed(name: &str, run: fn() -> Outcome) -> Outcome {
    say(&format!("== {name}"));
    let begun = Instant::now();
    let outcome = run();
    let seconds = begun.elapsed().as_secs_f64();
    match &outcome {
        Outcome::Passed | Outcome::Closed(_) => say(&format!("== {name} {seconds:.0} s")),
        Outcome::Skipped(why) => say(&format!("== {name} skipped: {why}")),
        Outcome::Failed(why) => say(&format!("== {name} FAILED after {seconds:.0} s: {why}")),
    }
    outcome
}

/// A line on standard output, at once: the commands write there as well.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout();
    // Without anybody to read it there is nothing to do about it.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// What a check comes to whose tool is not here: skipped by hand, failed in CI, where nobody would notice.
pub(crate) fn missing(what: &str) -> Outcome {
    if std::env::var_os("CI").is_some() {
        Outcome::Failed(format!("{what}; CI must have it"))
    } else {
        Outcome::Skipped(what.into())
    }
}

/// Whether a program is there and does what it is asked, quietly.
pub(crate) fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// How many tests a closing line says have passed: `test result: ok. 12 passed; 0 failed; …`.
fn passed_in(line: &str) -> u64 {
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|word| word.starts_with("passed"));
    at.and_then(|at| words.get(at.checked_sub(1)?)?.parse().ok()).unwrap_or(0)
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

    /// Runs it as [`Self::run`] does, and keeps back the test runner's last line for the end.
    pub(crate) fn run_tests(mut self) -> Outcome {
        say(&format!("$ {}", self.text));
        let failed = |error: std::io::Error| Outcome::Failed(format!("{}: {error}", self.text));
        let mut child = match self.command.stdout(Stdio::piped()).spawn() {
            Ok(child) => child,
            Err(error) => return failed(error),
        };
        let (mut last, mut passed) = (None, 0);
        let lines = child.stdout.take().map(BufReader::new).into_iter().flat_map(|out| out.split(b'\n'));
        for line in lines.map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            if line.is_empty() {
                continue;
            }
            last.take().inspect(|held: &String| say(held));
            if line.starts_with("test result: ") {
                passed += passed_in(&line);
                last = Some(line);
            } else {
                say(&line);
            }
        }
        match child.wait() {
            Ok(status) if status.success() => {
                say(&format!("{passed} tests passed"));
                last.map_or(Outcome::Passed, Outcome::Closed)
            }
            Ok(status) => {
                last.take().inspect(|held| say(held));
                Outcome::Failed(format!("{} ({status})", self.text))
            }
            Err(error) => failed(error),
        }
    }

    /// Runs it if the target is installed or can be had.
    pub(crate) fn run_on(self, target: &str) -> Outcome {
        if has_target(target) || (succeeds("rustup", &["target", "add", target]) && has_target(target)) {
            self.run()
        } else {
            missing(&format!("the target {target} is not installed and cannot be downloaded here"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closing_line_says_how_many_passed() {
        let line =
            "test result: ok. 125 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.31s";
        assert_eq!(passed_in(line), 125);
        assert_eq!(passed_in("test result: what"), 0);
    }
}
