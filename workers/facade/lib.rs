//! A parameter server: a sharded store for the parameters of a model, which many workers push to and pull from by key range.
//!
//! A cluster in one process, for one machine and for tests ([`embed`]):
//!
//! ```
//! use rangefold::embed::{Cluster, Options};
//! use rangefold::{DEADLINE, ElementType, TableSpec, UpdateFunction};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let cluster = Cluster::start(Options::default())?;
//! let client = cluster.join()?;
//! client.wait_for_lanes(DEADLINE)?; // the job starts when all its workers have joined
//! let weights = client.table::<f32>(&TableSpec::dense("weights", ElementType::F32, 1000, UpdateFunction::Add))?;
//!
//! weights.push(10..13, &[1.0, 2.0, 3.0])?.wait(DEADLINE)?;
//! assert_eq!(*weights.pull(9..14)?.wait(DEADLINE)?, [0.0, 1.0, 2.0, 3.0, 0.0]);
//! client.advance(DEADLINE)?; // the round ends
//! # Ok(())
//! # }
//! ```
//!
//! A worker of a cluster of processes: [`remote`]. Programs for both are generic over the client's [`Endpoint`] and [`Dialer`].
//!
//! What a program holds is a [`Client`], its [`Table`]s, and a [`Ticket`] or [`PullTicket`] for what is under way.
//!
//! # Features
//!
//! | feature | brings |
//! | ------- | ------ |
//! | none | [`remote`]: a worker |
//! | `server` | [`embed`], [`server`]: shard threads in this process |
//! | `tool` (default, with `server`) | the binary `rangefold` |
#![forbid(unsafe_code)]

#[cfg(feature = "server")]
pub mod embed;
pub mod pinning;
pub mod remote;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
mod shards;

pub use rangefold_proto::client::{IssueError, TaskError, TaskId};
pub use rangefold_proto::scheduler::SchedulerError;
pub use rangefold_proto::{
    Aggregation, ElementType, Incarnation, KeyRange, Lane, Limits, Member, Round, SegmentId, ServerId,
    ShardId, TableError, TableId, TableSpec, UpdateFunction, WorkerId,
};
pub use rangefold_transport::Endpoint;
pub use rangefold_workers::control::ControlError;
pub use rangefold_workers::coordinator::AdmitError;
pub use rangefold_workers::driver::Dialer;
pub use rangefold_workers::{
    Client, Counters, DEADLINE, Element, Error, PullTicket, SharedValues, Table, Ticket, Values,
};
