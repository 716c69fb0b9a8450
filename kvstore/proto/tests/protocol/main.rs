//! The cores against crafted messages, and joined to each other without a network.
//!
//! [`shard`] and [`worker`] hold one core each and speak for the other side; [`pair`] joins client and server cores directly,
//! under a virtual clock. One file per theme; `Expect:` says what the frame before it must come to.

#![allow(clippy::cast_possible_truncation, reason = "keys, lanes and lengths of tests are small")]

mod pair;
mod shard;
mod worker;

mod admission;
mod aggregation;
mod credits;
mod fencing;
mod frames;
mod gathering;
mod histories;
mod resending;
mod rounds;
mod routing;
mod stories;

use rangefold_proto::table::Aggregation;
use rangefold_proto::{
    ElementType, Incarnation, Lane, Member, Round, Stamp, TableSpec, UpdateFunction, View,
};

/// A stamp of incarnation 1.
fn at(time: u64) -> Stamp {
    of(1, time)
}

/// A stamp.
fn of(incarnation: u32, time: u64) -> Stamp {
    Stamp(Incarnation(incarnation).floor().0 + time)
}

/// A view of lanes 0, 1, … with these incarnations and first rounds.
fn view(number: u32, members: &[(u32, Round)]) -> View {
    let member = |(lane, &(incarnation, first_round)): (u32, &(u32, Round))| Member {
        lane: Lane(lane),
        incarnation: Incarnation(incarnation),
        first_round,
    };
    View { number, members: (0..).zip(members).map(member).collect() }
}

/// A table of doubles in one segment.
fn table(len: u64) -> TableSpec {
    let mut spec = TableSpec::dense("t", ElementType::F64, len, UpdateFunction::Add);
    spec.segments = 1;
    spec
}

/// The same, aggregated by rounds.
fn aggregated(len: u64) -> TableSpec {
    TableSpec { aggregation: Aggregation::Round, ..table(len) }
}
