//! A table as a worker reaches it: push, pull, both, by range.
//! Knows shapes; what is under way is a ticket. Made by the client.
//! Source: OSDI'14 §3.1, §3.2 (range push and pull).

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use rangefold_proto::client::{IssueError, Pull, TaskId};
use rangefold_proto::wire::Arguments;
use rangefold_proto::{
    Aggregation, ElementType, KeyRange, Lane, Round, SegmentId, ShardId, TableId, TableSpec,
};
use rangefold_transport::Endpoint;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::driver::Dialer;
use crate::error::Error;
use crate::handle::{Client, DEADLINE, check};
use crate::ticket::{PullTicket, Ticket};

/// A type of element that tables may hold.
pub trait Element: FromBytes + IntoBytes + Immutable + KnownLayout + Copy + Default + Send + 'static {
    /// Its name on the wire.
    const TYPE: ElementType;
}

impl Element for f32 {
    const TYPE: ElementType = ElementType::F32;
}

impl Element for f64 {
    const TYPE: ElementType = ElementType::F64;
}

/// A table as this worker reaches it. Clones share the connection.
pub struct Table<T: Element, E: Endpoint, D: Dialer> {
    client: Client<E, D>,
    id: TableId,
    spec: Arc<TableSpec>,
    element: PhantomData<fn() -> T>,
}

impl<T: Element, E: Endpoint, D: Dialer> fmt::Debug for Table<T, E, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("id", &self.id).field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl<T: Element, E: Endpoint, D: Dialer> Clone for Table<T, E, D> {
    fn clone(&self) -> Self {
        Self { client: self.client.clone(), id: self.id, spec: Arc::clone(&self.spec), element: PhantomData }
    }
}

impl<T: Element, E: Endpoint + Send + 'static, D: Dialer + Send + 'static> Table<T, E, D> {
    pub(crate) fn new(client: Client<E, D>, id: TableId, spec: TableSpec) -> Self {
        Self { client, id, spec: Arc::new(spec), element: PhantomData }
    }

    /// Its name on the wire.
    #[must_use]
    pub fn id(&self) -> TableId {
        self.id
    }

    /// What it is.
    #[must_use]
    pub fn spec(&self) -> &TableSpec {
        &self.spec
    }

    fn first_lane(&self) -> Result<(Lane, Round), Error> {
        self.client.with(|session| {
            check(session)?;
            let core = session.driver.core();
            let lane = core.lanes().next().ok_or(Error::NoLane)?;
            Ok((lane, core.round(lane).unwrap_or(0)))
        })
    }

    /// The shard that owns a key's segment, as this worker's map has it.
    #[must_use]
    pub fn owner(&self, key: u64) -> Option<ShardId> {
        let segment = SegmentId::new(self.id, self.spec.segment_of(key));
        (key < self.spec.len)
            .then(|| self.client.with(|session| session.driver.core().map().owner(segment)))
            .flatten()
    }

    /// Pushes `values: [n * width]` to the n keys of `range`, in the name of the worker's first lane.
    ///
    /// The values are copied here and nowhere else. Waits only for room.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Issue`] (keys outside the table, more than could ever be under way), [`Error::NoLane`],
    /// [`Error::Deadline`] when there is no room for [`DEADLINE`], [`Error::Stopped`], [`Error::LanesChanged`].
    pub fn push(&self, range: impl Into<KeyRange>, values: &[T]) -> Result<Ticket<E, D>, Error> {
        let (lane, _) = self.first_lane()?;
        self.push_as(lane, range, values, &[])
    }

    /// Pushes in the name of a lane, with arguments for the update function (at most four).
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn push_as(
        &self,
        lane: Lane,
        range: impl Into<KeyRange>,
        values: &[T],
        arguments: &[f64],
    ) -> Result<Ticket<E, D>, Error> {
        let range = range.into();
        let expected = range.len().saturating_mul(u64::from(self.spec.width));
        if values.len() as u64 != expected {
            return Err(Error::Shape { range, width: self.spec.width, found: values.len(), expected });
        }
        let arguments = Arguments::new(arguments).ok_or(IssueError::TooManyArguments)?;
        if self.is_nothing(range) {
            self.client.with(|session| check(session))?;
            return Ok(Ticket::new(self.client.clone(), None));
        }
        let bytes = values.as_bytes();
        let task = self.client.issue(DEADLINE, |session| {
            // Before the copy, which would be made again at each look.
            session.driver.core().may_push(lane, self.id, range)?;
            let mut memory = session.driver.buffer(bytes.len())?;
            memory.as_mut_bytes().copy_from_slice(bytes);
            session.driver.push(lane, self.id, range, memory, arguments)
        })?;
        Ok(Ticket::new(self.client.clone(), Some(task)))
    }

    /// Pulls the n keys of `range`: at least all that every worker pushed in rounds before this worker's round less the
    /// delay, and this worker's own pushes (not those to a table that is aggregated by rounds).
    ///
    /// # Errors
    /// [`Error::Issue`], [`Error::NoLane`], [`Error::Deadline`] when there is no room for [`DEADLINE`], [`Error::Stopped`],
    /// [`Error::LanesChanged`].
    pub fn pull(&self, range: impl Into<KeyRange>) -> Result<PullTicket<T, E, D>, Error> {
        let (_, round) = self.first_lane()?;
        let tau = self.client.tau();
        self.pull_at(range, round.saturating_sub(tau))
    }

    /// Pulls with at least all that every worker pushed in the first `rounds` rounds.
    ///
    /// # Errors
    /// As [`Self::pull`].
    pub fn pull_at(&self, range: impl Into<KeyRange>, rounds: Round) -> Result<PullTicket<T, E, D>, Error> {
        let (lane, _) = self.first_lane()?;
        let range = range.into();
        if self.is_nothing(range) {
            return Ok(self.pull_ticket(range, None));
        }
        let pull = Pull {
            lane,
            table: self.id,
            range,
            rounds_needed: rounds,
            own_pushes: self.spec.aggregation == Aggregation::None,
            patience_ms: u32::MAX,
        };
        let task = self.client.issue(DEADLINE, |session| session.driver.pull(pull))?;
        Ok(self.pull_ticket(range, Some(task)))
    }

    fn pull_ticket(&self, range: KeyRange, task: Option<TaskId>) -> PullTicket<T, E, D> {
        PullTicket::new(self.client.clone(), task, range, self.spec.width)
    }

    /// Whether a range holds no key and lies in the table: parts of the keys are often empty, and then there is nothing to do.
    fn is_nothing(&self, range: KeyRange) -> bool {
        range.start == range.end && range.end <= self.spec.len
    }

    /// Pushes to a range and pulls it, in one round trip: the values hold the push (but in a table that is aggregated
    /// by rounds).
    ///
    /// # Errors
    /// As [`Self::push`] and [`Self::pull`].
    pub fn push_pull(&self, range: impl Into<KeyRange>, values: &[T]) -> Result<PullTicket<T, E, D>, Error> {
        let range = range.into();
        drop(self.push(range, values)?);
        self.pull(range)
    }
}
