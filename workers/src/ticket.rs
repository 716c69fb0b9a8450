//! What is under way: a push or a pull, to wait for, to look at, or to be called back about.
//! Knows tasks by name; their state is the driver's. Made by tables.
//! Source: OSDI'14 §3.4.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use rangefold_proto::KeyRange;
use rangefold_proto::client::{TaskError, TaskId};
use rangefold_transport::Endpoint;

use crate::driver::Dialer;
use crate::error::Error;
use crate::handle::Client;
use crate::session::Callback;
use crate::table::Element;
use crate::values::Values;

/// A push under way. Dropping it does not stop the push; dropping the last clone of its client does, so [`Client::flush`]
/// before that.
#[must_use = "an unacknowledged push is not safe yet: wait for it, or let the round do so"]
pub struct Ticket<E: Endpoint, D: Dialer> {
    client: Client<E, D>,
    task: Option<TaskId>,
}

/// A pull under way. Dropping it gives the pull up.
#[must_use = "a pull that nobody waits for is given up"]
pub struct PullTicket<T: Element, E: Endpoint, D: Dialer> {
    client: Client<E, D>,
    /// `None` when the range is empty, or the values were handed out.
    task: Option<TaskId>,
    range: KeyRange,
    width: u32,
    spent: bool,
    element: PhantomData<fn() -> T>,
}

impl<E: Endpoint, D: Dialer> fmt::Debug for Ticket<E, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("task", &self.task).finish_non_exhaustive()
    }
}

impl<T: Element, E: Endpoint, D: Dialer> fmt::Debug for PullTicket<T, E, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullTicket")
            .field("task", &self.task)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

impl<E: Endpoint, D: Dialer> Ticket<E, D> {
    /// A ticket for a task; `None` for one that has ended.
    pub(crate) fn new(client: Client<E, D>, task: Option<TaskId>) -> Self {
        Self { client, task }
    }

    /// Whether the push has ended, or its cluster.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let ended = |task| self.client.with(|session| session.driver.has_ended(task) || session.stopped);
        self.task.is_none_or(ended)
    }
}

impl<E: Endpoint + Send + 'static, D: Dialer + Send + 'static> Ticket<E, D> {
    /// Waits until every owner has acknowledged the push. One to a table that is aggregated by rounds is acknowledged when every
    /// worker has ended the round: call [`Client::advance`] first.
    ///
    /// # Errors
    /// [`Error::Task`]; [`Error::Deadline`] and [`Error::LanesChanged`], and the push goes on; [`Error::Stopped`].
    pub fn wait(mut self, deadline: Duration) -> Result<(), Error> {
        self.wait_once(deadline)
    }

    /// The same; after an error that is not the task's own it may be waited for again. A push that has been waited for to its
    /// end has ended for ever.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn wait_once(&mut self, deadline: Duration) -> Result<(), Error> {
        let Some(task) = self.task else { return Ok(()) };
        let ended =
            self.client.wait("waiting for a push", deadline, |session| session.driver.take_ended(task))?;
        self.task = None;
        Ok(ended.outcome?)
    }

    /// Calls back when the push has ended, and how: with [`Error::Task`], or [`Error::Stopped`] when its cluster has. It runs on
    /// the thread that drives then: one that waits on this client, else the progress thread, within about 10 ms; on the calling
    /// one if the push has ended already. It must be short. Calling the client from it panics, and so does dropping one of its
    /// tickets there.
    pub fn on_done(mut self, callback: impl FnOnce(Result<(), Error>) + Send + 'static) {
        let Some(task) = self.task.take() else { return callback(Ok(())) };
        let callback: Callback = Box::new(callback);
        self.client.with(|session| session.call_back_at_end(task, callback));
    }
}

impl<T: Element, E: Endpoint + Send + 'static, D: Dialer + Send + 'static> PullTicket<T, E, D> {
    /// A ticket for a task; `None` where the range is empty.
    pub(crate) fn new(client: Client<E, D>, task: Option<TaskId>, range: KeyRange, width: u32) -> Self {
        Self { client, task, range, width, spent: false, element: PhantomData }
    }

    /// Whether the values are there, or never will be because the cluster has ended.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.task
            .is_none_or(|task| self.client.with(|session| session.driver.has_ended(task) || session.stopped))
    }

    /// Waits for the values.
    ///
    /// # Errors
    /// As [`Self::wait_once`]; the pull is given up then.
    pub fn wait(mut self, deadline: Duration) -> Result<Values<T>, Error> {
        self.wait_once(deadline)
    }

    /// Waits for the values; after an error that is not the task's own it may be waited for again. Once they were handed out
    /// the ticket is spent.
    ///
    /// # Errors
    /// [`Error::Task`], [`Error::Deadline`], [`Error::Stopped`], [`Error::LanesChanged`].
    pub fn wait_once(&mut self, deadline: Duration) -> Result<Values<T>, Error> {
        if self.spent {
            return Err(Error::Task(TaskError::Cancelled));
        }
        let Some(task) = self.task else {
            let memory = self.client.with(|session| session.driver.buffer(0))?;
            self.spent = true;
            return Ok(Values::new(memory));
        };
        let ended =
            self.client.wait("waiting for a pull", deadline, |session| session.driver.take_ended(task))?;
        (self.task, self.spent) = (None, true);
        ended.outcome?;
        let memory = ended.values.ok_or(Error::Task(TaskError::Cancelled))?;
        Ok(Values::new(memory))
    }

    /// Waits for the values and copies them into `out: [n * width]`.
    ///
    /// # Errors
    /// As [`Self::wait`]; [`Error::Shape`] when `out` is not as long.
    pub fn wait_into(self, out: &mut [T], deadline: Duration) -> Result<(), Error> {
        let (range, width) = (self.range, self.width);
        let expected = range.len().saturating_mul(u64::from(width));
        if out.len() as u64 != expected {
            return Err(Error::Shape { range, width, found: out.len(), expected });
        }
        let values = self.wait(deadline)?;
        out.copy_from_slice(&values);
        Ok(())
    }
}

impl<E: Endpoint, D: Dialer> Drop for Ticket<E, D> {
    fn drop(&mut self) {
        if let Some(task) = self.task {
            self.client.with(|session| session.driver.forget(task));
        }
    }
}

impl<T: Element, E: Endpoint, D: Dialer> Drop for PullTicket<T, E, D> {
    fn drop(&mut self) {
        if let Some(task) = self.task {
            self.client.with(|session| session.driver.cancel(task));
        }
    }
}
