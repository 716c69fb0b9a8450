//! The head of a table: what must be known to read the numbers below it.
//! Knows words; every line begins with `#`. Printed by the report, and in part said in the JSON document.

use std::fmt::Write as _;

use super::setting::Setting;
use super::{CELL, COMMIT, command, one_line};
use crate::perf::options::{Check, Operation, Plan, UNDER_WAY_BYTES_MAX};
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
    let columns = COLUMNS[1..].iter().map(|column| format!(" {column:>CELL$}"));
    let _ = writeln!(text, "# {:>10}{}", COLUMNS[0], columns.collect::<String>());
    text
}

fn threads(plan: &Plan, setting: &Setting) -> String {
    let each =
        if plan.operation == Operation::Send { "each with a connection" } else { "all with one client" };
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
        Operation::Send | Operation::Read | Operation::Write => {
            "bytes of a message's body; a head of 64 bytes travels before it"
        }
        Operation::Push | Operation::Pull => {
            "keys x width x 4 bytes of f32, heads apart; messages above 256 KiB travel as frames of that"
        }
        Operation::PushPull => {
            "keys x width x 4 bytes of f32 in each direction, heads apart; messages above 256 KiB travel as frames of that"
        }
    }
}

pub(super) fn time_words(operation: Operation) -> &'static str {
    match operation {
        Operation::Send | Operation::Read | Operation::Write => {
            "round trip, not halved: from sending to the acknowledgement that stands for the message"
        }
        Operation::Push => {
            "round trip, not halved: from the call to when a wait for its acknowledgement returns; added by then"
        }
        Operation::Pull => "round trip, not halved: from the call to when a wait for its values returns",
        Operation::PushPull => {
            "round trip, not halved: a push and, in the same stream behind it, a pull of the same range; until its values are there"
        }
    }
}

pub(super) fn check_words(operation: Operation, check: Check) -> &'static str {
    let raw = matches!(operation, Operation::Send | Operation::Read | Operation::Write);
    match (check, operation) {
        (Check::None, _) => "NONE: no data are looked at",
        (Check::Ends, _) if raw => {
            "the first and the last message, outside the timed window, and the order of all; #wrong counts bytes"
        }
        (Check::Ends, _) => {
            "before and after the timed window the whole table is pushed and read, every sum compared; #wrong counts elements"
        }
        (Check::Every, Operation::Push) => {
            "EVERY push is read back before the next one, inside the timed window: rates are those of both; #wrong counts elements"
        }
        (Check::Every, _) if raw => {
            "EVERY message, by the receiver, inside the timed window; #wrong counts bytes"
        }
        (Check::Every, _) => {
            "EVERY pull, inside the timed window, and the whole table before and after; #wrong counts elements"
        }
    }
}
