//! What CI does, by hand: `cargo xtask <stage>`, `cargo xtask ci` for all of them, `cargo xtask deep` for what takes longer.
//! Knows cargo's command lines; nothing of what they build. Called by developers and by `.ci/run`.

mod job;
mod planted;
mod stage;

use std::process::ExitCode;
use std::time::Instant;

use stage::{Outcome, Stage};

/// The target on which the protocol must build: it has no std. Not x86-64's: `crc-fast` 1.10 needs std there.
const NO_STD: &str = "aarch64-unknown-none";
/// The second architecture that Rangefold supports.
const AARCH64: &str = "aarch64-unknown-linux-gnu";

/// A stage and its name on the command line.
type Named = (&'static str, fn() -> Outcome);

/// What CI does, in this order: cheap stages first, the tests last, so that their closing lines end the output.
const CI: &[Named] = &[
    ("format", format),
    ("clippy", clippy),
    ("docs", docs),
    ("no-std", no_std),
    ("aarch64", aarch64),
    ("deny", deny),
    ("main-job", job::main_job),
    ("loom", loom),
    ("test", test),
];

/// What takes too long for every change.
const DEEP: &[Named] =
    &[("miri", miri), ("fuzz", fuzz), ("simulation", simulation), ("planted", planted::planted)];

/// The fuzz targets, in `tests/fuzz`.
const FUZZ_TARGETS: &[&str] = &["frames", "handshake"];
/// The variable with the seconds that each fuzz target runs for.
const FUZZ_SECONDS: &str = "RANGEFOLD_FUZZ_SECONDS";

fn main() -> ExitCode {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let [name] = asked.as_slice() else { return usage() };
    let stages: Vec<_> = match name.as_str() {
        "ci" => CI.to_vec(),
        "deep" => DEEP.to_vec(),
        name => CI.iter().chain(DEEP).filter(|(stage, _)| *stage == name).copied().collect(),
    };
    if stages.is_empty() {
        return usage();
    }
    let begun = Instant::now();
    let mut closing = None;
    for (name, run) in stages {
        match stage::timed(name, run) {
            Outcome::Failed(_) => return ExitCode::FAILURE,
            Outcome::Closed(line) => closing = Some(line),
            Outcome::Passed | Outcome::Skipped(_) => {}
        }
    }
    stage::say(&format!("== {name} done in {:.0} s", begun.elapsed().as_secs_f64()));
    closing.inspect(|line| stage::say(line));
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    let names = |stages: &[Named]| stages.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    eprintln!("usage: cargo xtask STAGE\n\n  ci     {}\n  deep   {}", names(CI), names(DEEP));
    ExitCode::from(2)
}

fn format() -> Outcome {
    Stage::cargo(&["fmt", "--all", "--check"]).run()
}

fn clippy() -> Outcome {
    Stage::cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]).run()
}

fn docs() -> Outcome {
    // Private items are documented, so links to them lead somewhere.
    let flags = "-D warnings -A rustdoc::private_intra_doc_links";
    Stage::cargo(&["doc", "--workspace", "--no-deps", "--document-private-items", "--locked"])
        .env("RUSTDOCFLAGS", flags)
        .run()
}

/// The protocol without std. Whoever builds for such a target brings a panic handler; for the check `crc-fast` lends its own.
fn no_std() -> Outcome {
    let check = ["check", "--package", "rangefold-proto", "--no-default-features", "--locked"];
    Stage::cargo(&[&check[..], &["--features", "crc-fast/panic-handler", "--target", NO_STD]].concat())
        .run_on(NO_STD)
}

fn aarch64() -> Outcome {
    Stage::cargo(&["check", "--workspace", "--locked", "--target", AARCH64]).run_on(AARCH64)
}

fn deny() -> Outcome {
    if !stage::succeeds("cargo", &["deny", "--version"]) {
        return stage::missing(
            "cargo-deny is not installed (`cargo install --locked cargo-deny`, some minutes)",
        );
    }
    // Licences and sources are decided by the tree; advisories need a database from the network.
    Stage::cargo(&["deny", "--locked", "check", "licenses", "bans", "sources"]).run()
}

/// The models of the lock-free parts, every interleaving.
fn loom() -> Outcome {
    Stage::cargo(&["test", "--release", "--package", "rangefold-transport", "--lib", "--locked", "loom"])
        .env("RUSTFLAGS", "--cfg loom")
        .target_dir("loom")
        .run()
}

/// The README's test command.
fn test() -> Outcome {
    Stage::cargo(&["test", "--workspace", "--locked"]).run_tests()
}

/// Those files of the transport that hold `unsafe` and make no system calls, under Miri.
fn miri() -> Outcome {
    if !stage::succeeds("cargo", &["+nightly", "miri", "--version"]) {
        return stage::missing(
            "Miri is not installed (`rustup toolchain install nightly --component miri,rust-src`)",
        );
    }
    let filters = ["--", "region::", "arena::tests::", "memory::", "wait::", "shm::ring::", "shm::copy::"];
    Stage::cargo(
        &[&["+nightly", "miri", "test", "--package", "rangefold-transport", "--lib"][..], &filters].concat(),
    )
    .target_dir("miri")
    .run()
}

/// What comes from the network, by libFuzzer: each target for a minute, or as long as the variable says.
fn fuzz() -> Outcome {
    if !stage::succeeds("cargo", &["+nightly", "fuzz", "--version"]) {
        return stage::missing(
            "cargo-fuzz is not installed (`cargo install --locked cargo-fuzz`, and a nightly toolchain to run it with)",
        );
    }
    let seconds = std::env::var(FUZZ_SECONDS).unwrap_or_else(|_| "60".into());
    let Ok(seconds) = seconds.parse::<u32>() else {
        return Outcome::Failed(format!("{FUZZ_SECONDS} is `{seconds}`; expected a number of seconds"));
    };
    for target in FUZZ_TARGETS {
        let time = format!("-max_total_time={seconds}");
        let run = ["+nightly", "fuzz", "run", "--fuzz-dir", "tests/fuzz", target, "--"];
        // Longer streams find nothing that several short frames do not.
        let outcome = Stage::cargo(
            &[&run[..], &[&time, "-max_len=2048", "-len_control=0", "-print_final_stats=1"]].concat(),
        )
        .run();
        if outcome != Outcome::Passed {
            return outcome;
        }
    }
    Outcome::Passed
}

/// Ten thousand schedules of the simulated cluster, as fast as they go.
fn simulation() -> Outcome {
    Stage::cargo(planted::SIMULATION).env("RANGEFOLD_SEEDS", planted::SEEDS).run()
}
