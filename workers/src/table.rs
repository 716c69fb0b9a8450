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
use rangefold_transport::{Endpoint, Slice};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::driver::Dialer;
use crate::error::Error;
use crate::handle::{Client, DEADLINE, check};
use crate::session::Session;
use crate::ticket::{PullTicket, Ticket};
use crate::values::{SharedValues, Values};

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
        self.push_copy(None, range.into(), values, &[])
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
        self.push_copy(Some(lane), range.into(), values, arguments)
    }

    fn push_copy(
        &self,
        lane: Option<Lane>,
        range: KeyRange,
        values: &[T],
        arguments: &[f64],
    ) -> Result<Ticket<E, D>, Error> {
        let bytes = values.as_bytes();
        self.issue_push(lane, range, values.len(), arguments, |session| {
            let mut memory = session.driver.buffer(bytes.len())?;
            memory.as_mut_bytes().copy_from_slice(bytes);
            Ok(memory.freeze())
        })
    }

    /// Pushes `len` values, which `payload` brings when the push may be issued.
    fn issue_push(
        &self,
        lane: Option<Lane>,
        range: KeyRange,
        len: usize,
        arguments: &[f64],
        payload: impl Fn(&mut Session<E, D>) -> Result<Slice, IssueError>,
    ) -> Result<Ticket<E, D>, Error> {
        let arguments = self.shaped(range, len, arguments)?;
        if self.is_nothing(range) {
            self.client.with(|session| check(session))?;
            return Ok(Ticket::new(self.client.clone(), None));
        }
        let task = self.client.issue(DEADLINE, |session| {
            let lane = lane.or_else(|| session.driver.core().lanes().next()).ok_or(Error::NoLane)?;
            // Before the payload, which would be made again at each look.
            session.driver.core().may_push(lane, self.id, range)?;
            let payload = payload(session)?;
            Ok(session.driver.push(lane, self.id, range, payload, arguments)?)
        })?;
        Ok(Ticket::new(self.client.clone(), Some(task)))
    }

    /// Memory for the values of `keys` keys, zeroed: to be written, shared and pushed without a copy. It counts as this
    /// client's (`memory_bytes_max`) until it is dropped. Waits only for room.
    ///
    /// # Errors
    /// [`Error::Issue`] (more than there could ever be), [`Error::Deadline`] when there is no room for [`DEADLINE`],
    /// [`Error::Stopped`], [`Error::LanesChanged`].
    pub fn values(&self, keys: u64) -> Result<Values<T>, Error> {
        let bytes = keys.saturating_mul(u64::from(self.spec.value_bytes()));
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut memory = self.client.issue(DEADLINE, |session| Ok(session.driver.buffer(bytes)?))?;
        memory.as_mut_bytes().fill(0);
        Ok(Values::new(memory))
    }

    /// As [`Self::push`], from where the values lie: nothing is copied on this side.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn push_shared(
        &self,
        range: impl Into<KeyRange>,
        values: &SharedValues<T>,
    ) -> Result<Ticket<E, D>, Error> {
        self.issue_push(None, range.into(), values.len(), &[], |_| Ok(values.slice()))
    }

    /// As [`Self::push_as`], from where the values lie: nothing is copied on this side.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn push_shared_as(
        &self,
        lane: Lane,
        range: impl Into<KeyRange>,
        values: &SharedValues<T>,
        arguments: &[f64],
    ) -> Result<Ticket<E, D>, Error> {
        self.issue_push(Some(lane), range.into(), values.len(), arguments, |_| Ok(values.slice()))
    }

    /// Whether so many values and arguments fit a push to the range.
    fn shaped(&self, range: KeyRange, found: usize, arguments: &[f64]) -> Result<Arguments, Error> {
        let expected = range.len().saturating_mul(u64::from(self.spec.width));
        if found as u64 != expected {
            return Err(Error::Shape { range, width: self.spec.width, found, expected });
        }
        Ok(Arguments::new(arguments).ok_or(IssueError::TooManyArguments)?)
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
        let task = self.client.issue(DEADLINE, |session| Ok(session.driver.pull(pull)?))?;
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
