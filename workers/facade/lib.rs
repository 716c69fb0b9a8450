//! A parameter server: a sharded store for the parameters of a model, which many workers push to and pull from by key range.
//!
//! ```
//! use std::time::Duration;
//! use rangefold::{ElementType, TableSpec, UpdateFunction, embed};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let cluster = embed::Cluster::start(embed::Options::default())?;
//! let client = cluster.join()?;
//! let weights = client.table::<f32>(&TableSpec::dense("weights", ElementType::F32, 1000, UpdateFunction::Add))?;
//! weights.push(10..13, &[1.0, 2.0, 3.0])?.wait(Duration::from_secs(1))?;
//! assert_eq!(*weights.pull(9..14)?.wait(Duration::from_secs(1))?, [0.0, 1.0, 2.0, 3.0, 0.0]);
//! # Ok(())
//! # }
//! ```
//!
//! The crate only puts together what others do: [`rangefold_workers`] is the client, `rangefold_kvstore` the server; with the
//! feature `server` (on by default) [`embed`] runs both in one process.
#![forbid(unsafe_code)]

#[cfg(feature = "server")]
pub mod embed;
#[cfg(feature = "server")]
pub mod pinning;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
mod shards;

pub use rangefold_proto::{
    Aggregation, ElementType, KeyRange, Lane, Limits, Round, ShardId, TableSpec, UpdateFunction, WorkerId,
};
pub use rangefold_workers::{DEADLINE, Element, Error, Values};
