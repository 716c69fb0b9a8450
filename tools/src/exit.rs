//! Exit codes, documented in `--help`, and the one place where an error is printed.

use std::process::ExitCode;

/// What `--help` says of them.
pub(crate) const HELP: &str = "\
Exit status: 0 success; 1 the goal was not reached (gap, passes) or a run failed; 2 wrong usage;
130 interrupted, after saving what was asked for. `launch` ends with the worst status of its workers
(128 and the signal for one that was killed).";

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

/// Prints an error with its causes and turns everything into an exit status.
pub(crate) fn report(outcome: anyhow::Result<Verdict>) -> ExitCode {
    match outcome {
        Ok(Verdict::Success) => ExitCode::SUCCESS,
        Ok(Verdict::GoalMissed) => ExitCode::from(1),
        Ok(Verdict::Interrupted) => ExitCode::from(130),
        Ok(Verdict::Exit(code)) => ExitCode::from(code),
        Err(error) => {
            eprintln!("rangefold: {error:#}");
            ExitCode::from(1)
        }
    }
}
