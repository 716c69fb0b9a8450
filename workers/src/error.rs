//! Why calls of the client do not do what they were asked to: one superset for whoever holds the handle.
//! Knows messages with cause and remedy; decides nothing. Raised by `handle.rs`, `table.rs` and `ticket.rs`.
//! Source: OSDI'14 §3.2.

use std::time::Duration;

use rangefold_proto::client::{IssueError, TaskError};
use rangefold_proto::{ElementType, KeyRange};

use crate::control::ControlError;

/// Why a call did not do what it was asked to.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum Error {
    /// It took longer than allowed. What was pushed goes on; a pull is given up.
    #[error("{what} took longer than {after:?}; {waits_for}")]
    Deadline {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
        /// The likely cause.
        waits_for: String,
    },
    /// A task ended without success.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// A task was not taken.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The control plane refuses, or is gone.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The values are not as many as the range says.
    #[error(
        "{found} values for keys {range:?} of a table with {width} elements per key; {expected} are needed"
    )]
    Shape {
        /// The keys.
        range: KeyRange,
        /// Elements per key.
        width: u32,
        /// Values given.
        found: usize,
        /// Values needed.
        expected: u64,
    },
    /// The table holds elements of another type.
    #[error("the table holds {found:?}, not {asked:?}")]
    Element {
        /// What it holds.
        found: ElementType,
        /// What was asked for.
        asked: ElementType,
    },
    /// A table that is aggregated by rounds, for a client whose pulls wait for none.
    #[error(
        "the table `{0}` is aggregated by rounds, and this client is eventual: its rounds wait for nothing. Give it a delay, or take a table without aggregation"
    )]
    Eventual(String),
    /// This worker holds no lane (yet, or any more).
    #[error(
        "this worker holds no lane: the job has not started (`wait_for_lanes` waits until all workers have joined), or its lanes were given to another worker"
    )]
    NoLane,
    /// The lanes held are not those that [`crate::Client::attend`] named: some were given to others, or to this worker. What was
    /// waited for goes on.
    #[error("the scheduler has changed the lanes that this worker holds")]
    LanesChanged,
    /// The cluster ended or gave this worker up.
    #[error("the cluster has ended, or has given this worker up")]
    Stopped,
}
