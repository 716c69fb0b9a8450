//! Bugs planted in the protocol's cores: the simulator must find each, or it would not find one of ours either.
//! Knows their names and how the simulator is run; the bugs are behind `cfg(planted = "…")`. Called as a stage.

use crate::stage::{Outcome, Stage};

/// The planted bugs.
const BUGS: &[&str] = &[
    "no_duplicate_check",
    "predecessor_not_compared",
    "acknowledged_before_applied",
    "pull_a_round_early",
    "resent_to_the_old_owner",
];

/// The command that runs the simulator.
pub(crate) const SIMULATION: &[&str] = &[
    "test",
    "--release",
    "--package",
    "rangefold-tests",
    "--test",
    "simulation",
    "--locked",
    "every",
    "--",
    "--nocapture",
];
/// Schedules within which each must be found.
pub(crate) const SEEDS: &str = "10000";

pub(crate) fn planted() -> Outcome {
    let mut missed = Vec::new();
    for &bug in BUGS {
        match find(bug) {
            Ok(found) => println!("{bug}: {found}"),
            Err(why) => {
                println!("{bug}: {why}");
                missed.push(bug);
            }
        }
    }
    if missed.is_empty() {
        Outcome::Passed
    } else {
        Outcome::Failed(format!("the simulator did not find: {}", missed.join(", ")))
    }
}

/// What the simulator says of a bug: the seed and the invariant.
fn find(bug: &str) -> Result<String, String> {
    let output = Stage::cargo(SIMULATION)
        .env("RUSTFLAGS", &format!("--cfg planted=\"{bug}\""))
        .env("RANGEFOLD_SEEDS", SEEDS)
        .target_dir(&format!("planted/{bug}"))
        .output(true)?;
    let text = [output.stdout.as_slice(), b"\n", output.stderr.as_slice()].concat();
    let text = String::from_utf8_lossy(&text);
    if output.status.success() {
        return Err(format!("not found in {SEEDS} schedules"));
    }
    finding(&text).ok_or_else(|| format!("the run failed for another reason:\n{text}"))
}

/// The line that a broken schedule prints, `seed 17: …`.
fn finding(text: &str) -> Option<String> {
    let line = text.lines().map(str::trim_start).find(|line| {
        let seed = line.strip_prefix("seed ").and_then(|rest| rest.split_once(':'));
        seed.is_some_and(|(number, _)| number.parse::<u64>().is_ok())
    })?;
    Some(line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_told_from_other_failures() {
        let text = "thread panicked at x:1:\nseed 17: at 3 ns: X1 twice\n  in Scenario";
        assert_eq!(finding(text).as_deref(), Some("seed 17: at 3 ns: X1 twice"));
        assert_eq!(finding("error: could not compile\nseed of doubt: none"), None);
    }
}
