//! The client side: attach to a cluster, push and pull ranges of tables, wait.
//!
//! [`driver`] is the shell in which the transport and the protocol's client core meet.
#![doc = include_str!("../DESIGN.md")]
#![forbid(unsafe_code)]

pub mod driver;
