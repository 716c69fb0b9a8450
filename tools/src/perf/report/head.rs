//! The head of a table: what must be known to read the numbers below it.
//! Knows words; every line begins with `#`. Printed by the report, and in part said in the JSON document.

use std::fmt::Write as _;

use super::setting::Setting;
use super::{COMMIT, cells_line, command};
use crate::perf::host::one_line;
use crate::perf::options::{Check, Operation, Plan, StoreOperation, UNDER_WAY_BYTES_MAX};
use crate::perf::row::COLUMNS;

/// All of it, with the names of the columns at its end.
pub(super) fn head(plan: &Plan, setting: &Setting) -> String {
    let commit = COMMIT.map_or_else(|| "not known at build".into(), one_line);
    let mut lines = vec![
        ("version", format!("{}, commit {commit}", env!("CARGO_PKG_VERSION"))),
        ("host", setting.host.line()),
    ];
    for (name, words) in [("transport", setting.transport_lines()), ("server", setting.server_lines())] {
        let names = std::iter::once(name).chain(std::iter::repeat(""));
        lines.extend(names.zip(words));
    }
    lines.extend([
        ("connection", setting.connection.clone()),
        ("threads", threads(plan, setting)),
        ("load", load(plan)),
        ("size", size_words(plan.operation).into()),
        ("time", time_words(plan.operation).into()),
        ("check", check_words(plan.operation, plan.check).into()),
        ("each size", each_size(plan)),
        (
            "units",
            "times in us; MB = 10^6 bytes; BW = iters x size / seconds, in one direction; - is not known"
                .into(),
        ),
        ("command", command().join(" ")),
    ]);
    let mut text = format!("# rangefold perf {}\n", plan.operation.name());
    for (name, words) in lines {
        let _ = writeln!(text, "# {name:<11} {}", one_line(&words));
    }
    // The hash takes the place of a blank, so that the names stand above their numbers.
    let names = cells_line(&COLUMNS.map(|(name, _)| name.to_owned()));
    text.push('#');
    text.push_str(names.strip_prefix(' ').unwrap_or(&names));
    text
}

fn threads(plan: &Plan, setting: &Setting) -> String {
    let each = match plan.operation {
        Operation::Raw(_) => "each with a connection",
        Operation::Store(_) => "all with one client",
    };
    let pinned = if plan.cores.is_empty() {
        "not pinned".into()
    } else {
        format!("pinned to {:?}, in order", plan.cores)
    };
    format!("{} ({each}), {pinned}, {}", plan.threads, setting.waiting)
}

fn load(plan: &Plan) -> String {
    let is_less = plan.shapes.iter().any(|shape| plan.depth_at(shape) < plan.depth);
    let less = if is_less {
        format!(" (fewer where more than {UNDER_WAY_BYTES_MAX} B would be under way)")
    } else {
        String::new()
    };
    let pace = plan.rate.map_or_else(
        || "closed loop".into(),
        |rate| format!("open loop of {rate} messages/s in all; times from when a message was due"),
    );
    format!("depth {}{less}, {pace}", plan.depth)
}

fn each_size(plan: &Plan) -> String {
    let repeats = match plan.repeats {
        1 => String::new(),
        repeats => format!("; {repeats} repeats, the one with the median bandwidth is shown"),
    };
    format!("warm-up of {}, then {}{repeats}", plan.warmup_words(), plan.extent())
}

pub(super) fn size_words(operation: Operation) -> &'static str {
    match operation {
        Operation::Raw(_) => "bytes of a message's body; a head of 64 bytes travels before it",
        Operation::Store(StoreOperation::Push | StoreOperation::Pull) => {
            "keys x width x 4 bytes of f32, heads apart; messages above 256 KiB travel as frames of that"
        }
        Operation::Store(StoreOperation::PushPull) => {
            "keys x width x 4 bytes of f32 in each direction, heads apart; messages above 256 KiB travel as frames of that"
        }
    }
}

pub(super) fn time_words(operation: Operation) -> &'static str {
    match operation {
        Operation::Raw(_) => {
            "round trip, not halved: from sending to the acknowledgement that stands for the message"
        }
        Operation::Store(StoreOperation::Push) => {
            "round trip, not halved: from the call to when a wait for its acknowledgement returns; added by then"
        }
        Operation::Store(StoreOperation::Pull) => {
            "round trip, not halved: from the call to when a wait for its values returns"
        }
        Operation::Store(StoreOperation::PushPull) => {
            "round trip, not halved: a push and, in the same stream behind it, a pull of the same range; until its values are there"
        }
    }
}

pub(super) fn check_words(operation: Operation, check: Check) -> &'static str {
    match (check, operation) {
        (Check::None, _) => "NONE: no data are looked at",
        (Check::Ends, Operation::Raw(_)) => {
            "the first and the last message, outside the timed window, and the order of all; #wrong counts bytes"
        }
        (Check::Ends, Operation::Store(_)) => {
            "before and after the timed window the whole table is pushed and read, every sum compared; #wrong counts elements"
        }
        (Check::Every, Operation::Raw(_)) => {
            "EVERY message, by the receiver, inside the timed window; #wrong counts bytes"
        }
        (Check::Every, Operation::Store(StoreOperation::Push)) => {
            "EVERY push is read back before the next one, inside the timed window: rates are those of both; #wrong counts elements"
        }
        (Check::Every, Operation::Store(StoreOperation::Pull | StoreOperation::PushPull)) => {
            "EVERY pull, inside the timed window, and the whole table before and after; #wrong counts elements"
        }
    }
}
