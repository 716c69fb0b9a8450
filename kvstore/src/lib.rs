//! The server side: tables of values, and the shard threads that own them.
//!
//! [`store`] holds values and knows nobody; [`node`] is the shell in which the transport, the protocol's server core and
//! the store meet; [`shard`] puts a node on a thread.
#![doc = include_str!("../DESIGN.md")]
#![deny(unsafe_code)]

pub mod node;
pub mod shard;
pub mod store;

pub use node::{Command, Node, NodeOptions, Observe, Report};
pub use shard::{ShardHandle, Unresponsive, spawn};
pub use store::Store;
