//! The closing table or JSON object of a job, and the line that shows it under way.
//! Knows names and formats. Called by `mod.rs`.

use std::fmt::Write as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rangefold::{ShardId, embed};
use rangefold_learn::train::{Outcome, Seen};
use rangefold_workers::Counters;
use serde_json::json;

/// Below this, fixed decimals would show too little of a gap, or nothing.
const SMALL_GAP: f64 = 1e-3;

/// What one worker did.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Share {
    worker: u32,
    rows: u64,
    pushes: u64,
    pulls: u64,
    rounds: u64,
    waiting_share: f64,
    bytes_pushed: u64,
    bytes_pulled: u64,
}

impl Share {
    pub(super) fn new(
        worker: u32,
        outcome: &Outcome,
        counters: &Counters,
        waited: Duration,
        elapsed: Duration,
    ) -> Self {
        Self {
            worker,
            rows: outcome.rows,
            pushes: counters.push_frames,
            pulls: counters.pull_frames,
            rounds: outcome.progress.rounds,
            waiting_share: waited.as_secs_f64() / elapsed.as_secs_f64().max(1e-9),
            bytes_pushed: counters.bytes_pushed,
            bytes_pulled: counters.bytes_pulled,
        }
    }
}

/// What a finished job is reported with.
pub(super) struct Finished {
    pub(super) outcome: Outcome,
    pub(super) shares: Vec<Share>,
    /// What shards have counted; nothing where they are other processes.
    pub(super) servers: Vec<embed::Report>,
    pub(super) seconds: f64,
    pub(super) transport: String,
    /// Whether this process says so: all ranks have the same weights, and one is enough.
    pub(super) reports: bool,
}

/// What the weights are worth on test data, if there are any.
pub(super) struct Scored {
    pub(super) auc: Option<f64>,
    pub(super) accuracy: Option<f64>,
}

/// A gap as people read it.
pub(super) fn gap(gap: f64) -> String {
    if gap < SMALL_GAP { format!("{gap:.2e}") } else { format!("{gap:.6}") }
}

pub(super) fn progress_line() -> ProgressBar {
    let line = ProgressBar::new_spinner();
    // On a terminal only; a log file gets the closing table.
    line.set_draw_target(ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
        line.set_style(style);
    }
    line
}

pub(super) fn show(line: &ProgressBar, seen: &Seen, elapsed: Duration, waited: Duration) {
    let certificate = &seen.certificate;
    let rate = seen.progress.passes * seen.rows as f64 / elapsed.as_secs_f64().max(1e-9);
    let waiting = 100.0 * waited.as_secs_f64() / elapsed.as_secs_f64().max(1e-9);
    line.set_message(format!(
        "objective {:.4}  gap {}  non-zeros {}  passes {:.0}  {:.2} M examples/s  waiting {waiting:.0} %",
        certificate.objective,
        gap(certificate.gap),
        certificate.nonzeros,
        seen.progress.passes,
        rate / 1e6,
    ));
    line.tick();
}

pub(super) fn as_json(finished: &Finished, scored: &Scored) -> serde_json::Value {
    let outcome = &finished.outcome;
    let server = |(shard, steps): (&ShardId, &u64)| {
        let mut fields = json!({
            "server": shard.server.0,
            "shard": shard.shard,
            "proximal_steps": steps,
        });
        // Servers that are other processes do not tell.
        if let Some(report) = finished.servers.iter().find(|report| report.shard == *shard) {
            fields["pushes"] = report.counters.pushes.into();
            fields["pulls"] = report.counters.pulls.into();
            fields["bytes"] = report.bytes.into();
        }
        fields
    };
    json!({
        "objective": outcome.certificate.objective,
        "gap": outcome.certificate.gap,
        "nonzeros": outcome.certificate.nonzeros,
        "test_auc": scored.auc,
        "test_accuracy": scored.accuracy,
        "seconds": finished.seconds,
        "passes": outcome.progress.passes,
        "rounds": outcome.progress.rounds,
        "transport": finished.transport,
        "workers": finished.shares,
        "servers": outcome.steps.iter().map(server).collect::<Vec<_>>(),
    })
}

pub(super) fn as_table(finished: &Finished, scored: &Scored) -> String {
    let outcome = &finished.outcome;
    let mut text = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<16} {value}");
    };
    row("objective", format!("{:.7}", outcome.certificate.objective));
    row("certified gap", gap(outcome.certificate.gap));
    row("non-zeros", format!("{} of {}", outcome.certificate.nonzeros, outcome.weights.len()));
    if let Some(auc) = scored.auc {
        row("test AUC", format!("{auc:.5}"));
    }
    if let Some(accuracy) = scored.accuracy {
        row("test accuracy", format!("{accuracy:.5}"));
    }
    row("passes", format!("{:.1}", outcome.progress.passes));
    row("rounds", outcome.progress.rounds.to_string());
    row("seconds", format!("{:.2}", finished.seconds));
    row("transport", finished.transport.clone());
    let _ = writeln!(text, "\n# worker    rows   pushes    pulls  MB pushed  MB pulled  waiting");
    for share in &finished.shares {
        let _ = writeln!(
            text,
            "{:>8} {:>7} {:>8} {:>8} {:>10.2} {:>10.2} {:>6.1} %",
            share.worker,
            share.rows,
            share.pushes,
            share.pulls,
            share.bytes_pushed as f64 / 1e6,
            share.bytes_pulled as f64 / 1e6,
            100.0 * share.waiting_share,
        );
    }
    let _ = writeln!(text, "\n# server  shard  proximal steps");
    for (shard, steps) in &outcome.steps {
        let _ = writeln!(text, "{:>8} {:>6} {steps:>15}", shard.server.0, shard.shard);
    }
    text
}
