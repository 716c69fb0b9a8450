//! Exit codes, documented in `--help`, and the one place where an error is printed.

use std::process::ExitCode;

use crate::say;

/// What `--help` says of them.
pub(crate) const HELP: &str = "\
Exit status: 0 success; 1 the goal was not reached (gap, passes, a bound of `perf`), a run failed,
data were wrong, or a result could not be written; 2 wrong usage; of `perf` also 3 the transport or
the operation cannot be had here, 4 the peer cannot be reached, was lost, or did not answer in time;
130 `train`, `launch` or `perf` was interrupted before its end, whatever came of it. `launch` ends
with the worst status of its workers (128 and the signal for one that was killed). `scheduler`,
`server` and `perf server` run until they are told to stop, by an interrupt too, and end with 0 then.";

/// How a subcommand ends, when it ends without an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// The goal was reached.
    Success,
    /// It ran to its end and did not reach its goal.
    GoalMissed,
    /// The user stopped it.
    Interrupted,
    /// A process that was run for the user ended with this status.
    Exit(u8),
}

/// Options that make no sense, alone or together, where the parser cannot tell.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// A transport or an operation that cannot be had here.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unavailable(pub(crate) String);

/// A peer that cannot be reached, was lost, or did not answer in time.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Lost(pub(crate) String);

/// Prints an error with its causes and turns everything into an exit status.
pub(crate) fn report(outcome: anyhow::Result<Verdict>) -> ExitCode {
    match outcome {
        Ok(Verdict::Success) => ExitCode::SUCCESS,
        Ok(Verdict::GoalMissed) => ExitCode::from(1),
        Ok(Verdict::Interrupted) => ExitCode::from(130),
        Ok(Verdict::Exit(code)) => ExitCode::from(code),
        Err(error) => {
            print(&error);
            ExitCode::from(status(&error))
        }
    }
}

fn status(error: &anyhow::Error) -> u8 {
    if error.is::<Usage>() {
        2
    } else if error.is::<Unavailable>() {
        3
    } else if error.is::<Lost>() {
        4
    } else {
        1
    }
}

/// Prints an error with its causes.
pub(crate) fn print(error: &anyhow::Error) {
    let hint = if error.is::<Usage>() { "\n\nFor more information, try '--help'." } else { "" };
    say::note(&format!("{}{hint}", words(error)));
}

/// The error and its causes. Most errors of ours name their cause themselves: it is not said again.
fn words(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
