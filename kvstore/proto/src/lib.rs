//! The Rangefold protocol without I/O: who sends what to whom, when it is admitted, what an answer promises.
//!
//! A core takes inputs and yields outputs; nothing else acts. Inputs carry the time. Outputs are drained after each
//! input, to `Timeout`. A payload `P` is a handle that a core passes on and never reads.
//!
//! `client` is the worker's side, `server` a shard's; `manager` owns the map, `scheduler` a job's lanes and its view.
//! No std, no unsafe, no clock, no thread, no socket.
#![doc = include_str!("../DESIGN.md")]
#![no_std]
#![forbid(unsafe_code)]
#![warn(clippy::std_instead_of_core, clippy::std_instead_of_alloc, clippy::alloc_instead_of_core)]

extern crate alloc;

#[cfg(test)]
extern crate std;

pub mod client;
pub mod clock;
pub mod id;
pub mod key;
pub mod limits;
pub mod manager;
pub mod map;
pub mod ring;
pub mod scheduler;
pub mod server;
mod slab;
pub mod table;
pub mod time;
pub mod view;
pub mod wire;

pub use id::{Assignment, JobId, Lane, LinkId, MapEpoch, SegmentId, ServerId, ShardId, TableId, WorkerId};
pub use key::{Key, KeyRange};
pub use limits::Limits;
pub use map::{ClusterMap, Row, ServerEntry};
pub use table::{Aggregation, ElementType, TableError, TableSpec, UpdateFunction};
pub use time::{Incarnation, Nanos, Round, Stamp};
pub use view::{Member, View};
