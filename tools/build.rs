//! Tells the program which commit it is built from, because figures without it are worth little.
//! Knows git's commands; without git or a checkout nothing is told. `RANGEFOLD_COMMIT` in the environment comes first.

use std::process::Command;

/// What goes into the program: a change of it makes the commit one with changes.
const SOURCES: [&str; 6] = ["Cargo.toml", "Cargo.lock", "kvstore", "tools", "transport", "workers"];

fn main() {
    println!("cargo::rerun-if-env-changed=RANGEFOLD_COMMIT");
    if std::env::var_os("RANGEFOLD_COMMIT").is_some() {
        return;
    }
    let Some(commit) = git(&["describe", "--always", "--dirty", "--exclude=*"]) else { return };
    // Both move with a commit and a checkout, also in a worktree.
    let moving = ["HEAD", "logs/HEAD"].into_iter().filter_map(|name| git(&["rev-parse", "--git-path", name]));
    for path in moving.chain(SOURCES.map(String::from)).filter(|path| std::path::Path::new(path).exists()) {
        println!("cargo::rerun-if-changed={path}");
    }
    println!("cargo::rustc-env=RANGEFOLD_COMMIT={commit}");
}

/// The first line of git's answer.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).stderr(std::process::Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.lines().next().map(str::to_owned)).flatten()
}
