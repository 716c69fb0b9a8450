//! `rangefold info`: what this machine offers, what would be used, and why not the rest.
//! Knows where the system says what; chooses nothing: the choice shown is `transport::auto`'s.

mod facts;

use std::path::Path;

use rangefold::pinning;
use rangefold_transport::auto::{self, Wish};
use rangefold_workers::remote::framing;
use serde_json::{Map, Value, json};

use crate::exit::Verdict;
use crate::say;

/// Options of `info`.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    // A server's thread keeps its endpoint; a worker's passes from thread to thread.
    let chosen = |one_thread| {
        let options = auto::Options { wish: Wish::Auto, framing: framing(), one_thread };
        auto::Endpoint::new(&options).map(|(_, choice)| choice)
    };
    let transport = match chosen(true).and_then(|choice| Ok((choice, chosen(false)?))) {
        Ok((choice, of_a_worker)) => {
            let refused: Vec<Value> = choice
                .refused
                .iter()
                .map(|refusal| json!({ "transport": refusal.transport, "reason": refusal.reason }))
                .chain(absent())
                .collect();
            json!({
                "between_processes": choice.transport,
                "between_processes_of_one_host": if choice.shares { "shm" } else { choice.transport },
                "of_a_server": choice.to_string(),
                "of_a_worker": of_a_worker.to_string(),
                "inside_a_process": "memory",
                "refused": refused,
            })
        }
        Err(unavailable) => json!({ "between_processes": null, "reason": unavailable.to_string() }),
    };
    let sys = Path::new("/sys");
    let ports = facts::remote_memory_ports(sys);
    let facts = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "kernel": facts::read("/proc/sys/kernel/osrelease"),
        "processors": pinning::allowed(),
        "vector_units": vector_units(),
        "locked_memory_bytes": limit(rustix::process::Resource::Memlock),
        "open_files": limit(rustix::process::Resource::Nofile),
        "huge_pages": facts::huge_pages(sys),
        "memory_nodes": facts::memory_nodes(sys),
        "io_uring_disabled": facts::read("/proc/sys/kernel/io_uring_disabled"),
        "io_uring": facts::io_uring(),
        "remote_memory_ports": if ports.as_object().is_some_and(Map::is_empty) { "none".into() } else { ports },
        "transport": transport,
    });
    let text = if arguments.json { format!("{facts:#}\n") } else { lines(&facts, 0) };
    say::result("what this machine offers", &text)?;
    Ok(Verdict::Success)
}

/// A transport that is not built yet.
fn absent() -> [Value; 1] {
    [json!({ "transport": "verbs", "reason": "not part of this version" })]
}

/// The soft limit; `null` is none.
fn limit(resource: rustix::process::Resource) -> Option<u64> {
    rustix::process::getrlimit(resource).current
}

#[cfg(target_arch = "x86_64")]
fn vector_units() -> Vec<&'static str> {
    let units = [
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("vpclmulqdq", is_x86_feature_detected!("vpclmulqdq")),
    ];
    units.into_iter().filter(|&(_, there)| there).map(|(name, _)| name).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn vector_units() -> Vec<&'static str> {
    vec!["neon"]
}

/// An object as lines, nested ones indented.
fn lines(value: &Value, indent: usize) -> String {
    let Value::Object(fields) = value else { return String::new() };
    let line = |(name, field): (&String, &Value)| match field {
        Value::Object(_) => format!("{:indent$}{name}\n{}", "", lines(field, indent + 2)),
        Value::Array(items) if items.iter().any(Value::is_object) => {
            let reasons: String = items.iter().map(|item| reason(item, indent + 2)).collect();
            format!("{:indent$}{name}\n{reasons}", "")
        }
        Value::String(text) => format!("{:indent$}{name:<20} {text}\n", ""),
        other => format!("{:indent$}{name:<20} {other}\n", ""),
    };
    fields.iter().map(line).collect()
}

/// A transport that is not used, as a line.
fn reason(refused: &Value, indent: usize) -> String {
    let field = |name: &str| refused[name].as_str().unwrap_or_default();
    format!("{:indent$}{}: {}\n", "", field("transport"), field("reason"))
}
