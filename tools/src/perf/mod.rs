//! `rangefold perf`: latency and bandwidth of the bare transport or of a store, as a table, CSV or JSON.
//! Knows the order of things, from options to status. A server, a client, or both in one process.
//! Source: perftest, OSU micro-benchmarks and nccl-tests for the habits of their users.
//!
//! | file | knows |
//! | ---- | ----- |
//! | `options.rs`, `size.rs` | what is to be measured |
//! | `client.rs`, `server.rs`, `session.rs`, `connection.rs`, `cluster.rs` | the two sides, and how they meet |
//! | `sweep.rs`, `crew.rs`, `pace.rs` | sizes and repeats, threads, when a message is due |
//! | `raw/`, `store.rs` | the loads: frames on a link; pushes and pulls |
//! | `pattern.rs`, `samples.rs` | what the data must be; latencies |
//! | `row.rs`, `report/`, `stop.rs`, `verdict.rs`, `host.rs` | what is printed, and what the exit status says |

mod client;
mod cluster;
mod connection;
mod crew;
mod host;
mod options;
mod pace;
mod pattern;
mod raw;
mod report;
mod row;
mod samples;
mod server;
mod session;
mod size;
mod stop;
mod store;
mod sweep;
mod verdict;

use crate::exit::{Lost, Verdict};
use crate::say;

use host::Host;
use options::{Plan, RawOperation, Role, StoreOperation};
use report::Report;
use stop::{Flags, Stop};

pub(crate) use options::Arguments;

/// Serves, or measures.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let plan = match &arguments.role {
        Role::Server(server) => return server::run(server),
        Role::Send(raw) => Plan::raw(RawOperation::Send, raw),
        Role::Read(raw) => Plan::raw(RawOperation::Read, raw),
        Role::Write(raw) => Plan::raw(RawOperation::Write, raw),
        Role::Push(store) => Plan::store(StoreOperation::Push, store),
        Role::Pull(store) => Plan::store(StoreOperation::Pull, store),
        Role::PushPull(store) => Plan::store(StoreOperation::PushPull, store),
    };
    measure(&plan?)
}

fn measure(plan: &Plan) -> anyhow::Result<Verdict> {
    let flags = Flags::catching_interrupts()?;
    let bench = match client::set_up(plan, Host::here(), &flags) {
        Ok(bench) => bench,
        Err(stop) => return ended(stop),
    };
    let mut report = Report::begin(plan, &bench.setting)?;
    let outcome = sweep::sweep(plan, &bench.crew, |repeats| report.repeats(repeats));
    let failures: Vec<String> =
        report.shapes().flat_map(|repeats| verdict::failures(repeats, plan.bounds)).collect();
    let words = match &outcome {
        Ok(()) => "complete".to_owned(),
        Err(Stop::Interrupted) => "interrupted".to_owned(),
        Err(Stop::Lost(why)) => why.clone(),
        Err(Stop::Failed(error)) => format!("{error:#}"),
    };
    let printed = report.end(&words, &failures);
    failures.iter().for_each(|failure| say::note(failure));
    match outcome {
        Err(stop) => {
            if let Err(error) = printed {
                crate::exit::print(&error);
            }
            ended(stop)
        }
        Ok(()) => printed.map(|()| if failures.is_empty() { Verdict::Success } else { Verdict::GoalMissed }),
    }
}

/// What the exit status says of a measurement that did not come to its end.
fn ended(stop: Stop) -> anyhow::Result<Verdict> {
    match stop {
        Stop::Interrupted => Ok(Verdict::Interrupted),
        Stop::Lost(why) => Err(Lost(why).into()),
        Stop::Failed(error) => Err(error),
    }
}
