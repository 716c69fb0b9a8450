//! `rangefold info`: what this machine offers, what would be used, and why not the rest.
//! Knows where the system says what; chooses nothing: the choice shown is `transport::auto`'s.

use rangefold::pinning;
use rangefold_transport::auto::{self, Wish};
use rangefold_workers::remote::framing;
use serde_json::{Value, json};

use crate::exit::Verdict;

/// Options of `info`.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let options = auto::Options { wish: Wish::Auto, framing: framing(), one_thread: true };
    let transport = match auto::Endpoint::new(&options) {
        Ok((_, choice)) => {
            let refused: Vec<Value> = choice
                .refused
                .iter()
                .map(|refusal| json!({ "transport": refusal.transport, "reason": refusal.reason }))
                .chain(absent())
                .collect();
            json!({ "between_processes": choice.transport, "inside_a_process": "memory", "refused": refused })
        }
        Err(unavailable) => json!({ "between_processes": null, "reason": unavailable.to_string() }),
    };
    let facts = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "kernel": read("/proc/sys/kernel/osrelease"),
        "processors": pinning::allowed(),
        "vector_units": vector_units(),
        "locked_memory_bytes": limit(rustix::process::Resource::Memlock),
        "open_files": limit(rustix::process::Resource::Nofile),
        "huge_pages": read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "io_uring_disabled": read("/proc/sys/kernel/io_uring_disabled"),
        "transport": transport,
    });
    if arguments.json {
        println!("{facts:#}");
    } else {
        print(&facts, 0);
    }
    Ok(Verdict::Success)
}

/// Transports that are not built yet.
fn absent() -> impl Iterator<Item = Value> {
    ["verbs", "shm"]
        .into_iter()
        .map(|name| json!({ "transport": name, "reason": "not part of this version" }))
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
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
fn print(value: &Value, indent: usize) {
    let Value::Object(fields) = value else { return };
    for (name, field) in fields {
        match field {
            Value::Object(_) => {
                println!("{:indent$}{name}", "");
                print(field, indent + 2);
            }
            Value::Array(items) if items.iter().any(Value::is_object) => {
                println!("{:indent$}{name}", "");
                for item in items {
                    print(item, indent + 2);
                }
            }
            Value::String(text) => println!("{:indent$}{name:<20} {text}", ""),
            other => println!("{:indent$}{name:<20} {other}", ""),
        }
    }
}
