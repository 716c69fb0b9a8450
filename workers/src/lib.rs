//! The client side: attach to a cluster, push and pull ranges of tables, wait.
//!
//! [`handle`] is what a program holds, with `table` and `ticket`; [`driver`] is the shell in which the transport and the
//! protocol's client core meet; between them `baton` says who drives and `session` what is driven. [`control`] is the control
//! plane as a worker needs it.
#![doc = include_str!("../DESIGN.md")]
#![forbid(unsafe_code)]

mod baton;
pub mod control;
pub mod control_stream;
pub mod coordinator;
pub mod driver;
mod error;
pub mod handle;
mod outcomes;
pub mod remote;
pub mod scheduler;
mod session;
mod table;
mod ticket;
mod values;

pub use rangefold_proto::client::Counters;

pub use error::Error;
pub use handle::{Client, DEADLINE};
pub use table::{Element, Table};
pub use ticket::{PullTicket, Ticket};
pub use values::{SharedValues, Values};
