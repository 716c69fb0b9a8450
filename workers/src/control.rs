//! What a worker needs of the control plane, whoever provides it: the embedded coordinator or a scheduler process.
//! Knows requests; not how they travel. Implemented by `facade::embed` and `remote.rs`; called by `handle.rs`.
//! Source: OSDI'14 §3.4, §4.6; `workers/DESIGN.md` (the control plane).

use rangefold_proto::scheduler::SchedulerError;
use rangefold_proto::{Lane, Round, TableError, TableId, TableSpec};

/// Why the control plane does not do what it was asked to.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum ControlError {
    /// The manager refuses.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The scheduler refuses.
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
    /// It cannot be reached.
    #[error("the scheduler cannot be reached: {0}")]
    Unreachable(String),
}

/// The control plane as one worker sees it. Calls are rare and may take a round trip.
pub trait Control: Send + Sync {
    /// Makes a table, or finds it. The map with the table comes as an event.
    ///
    /// # Errors
    /// [`ControlError`].
    fn create_table(&self, spec: &TableSpec) -> Result<TableId, ControlError>;

    /// Says how far the lanes are. A sign of life.
    ///
    /// # Errors
    /// [`ControlError`] when this worker was given up.
    fn report(&self, acknowledged: &[(Lane, Round)]) -> Result<(), ControlError>;

    /// This worker has reached its next barrier.
    ///
    /// # Errors
    /// [`ControlError`].
    fn barrier(&self) -> Result<(), ControlError>;

    /// Posts a notice for all workers, also those that come later; the first of a name stays.
    ///
    /// # Errors
    /// [`ControlError`].
    fn post(&self, name: &str, content: Vec<u8>) -> Result<(), ControlError>;

    /// Reads a notice.
    ///
    /// # Errors
    /// [`ControlError`].
    fn notice(&self, name: &str) -> Result<Option<Vec<u8>>, ControlError>;

    /// This worker is done.
    fn leave(&self);
}
