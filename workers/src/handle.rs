//! What a program holds: a client, its tables, tickets for what is under way.
//! Knows shapes and deadlines; what may be sent when is the core's. Safe to share between threads.
//! Source: OSDI'14 §3.2 (push and pull), §3.4 (tasks), §3.5 (consistency).

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::Receiver;
use rangefold_proto::client::{Counters, IssueError, Pull, TaskError, TaskId};
use rangefold_proto::wire::Arguments;
use rangefold_proto::{
    Aggregation, ElementType, KeyRange, Lane, Limits, Member, Round, SegmentId, ShardId, TableId, TableSpec,
};
use rangefold_transport::wait::Loop;
use rangefold_transport::{Endpoint, SliceMut};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::baton::Baton;
use crate::control::{Control, ControlError};
use crate::coordinator::News;
use crate::driver::{Dialer, Driver};
use crate::session::{Callback, Session};

/// How long calls without a deadline of their own may take: 60 s, several times the silence after which a
/// scheduler process takes a worker for dead by default (10 s), so that they outlast the loss of another worker.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// How long a progress thread leaves a session alone that somebody has driven, in nanoseconds.
const IDLE_NS: u64 = 1_000_000;

/// Why a call did not do what it was asked to.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum Error {
    /// It took longer than allowed. What was pushed goes on; a pull is given up.
    #[error("{what} took longer than {after:?}; {waits_for}")]
    Deadline {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
        /// The likely cause.
        waits_for: String,
    },
    /// A task ended without success.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// A task was not taken.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The control plane refuses, or is gone.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The values are not as many as the range says.
    #[error(
        "{found} values for keys {range:?} of a table with {width} elements per key; {expected} are needed"
    )]
    Shape {
        /// The keys.
        range: KeyRange,
        /// Elements per key.
        width: u32,
        /// Values given.
        found: usize,
        /// Values needed.
        expected: u64,
    },
    /// The table holds elements of another type.
    #[error("the table holds {found:?}, not {asked:?}")]
    Element {
        /// What it holds.
        found: ElementType,
        /// What was asked for.
        asked: ElementType,
    },
    /// A table that is aggregated by rounds, for a client whose pulls wait for none.
    #[error(
        "the table `{0}` is aggregated by rounds, and this client is eventual: its rounds wait for nothing. Give it a delay, or take a table without aggregation"
    )]
    Eventual(String),
    /// This worker holds no lane (yet, or any more).
    #[error(
        "this worker holds no lane: the job has not started (`wait_for_lanes` waits until all workers have joined), or its lanes were given to another worker"
    )]
    NoLane,
    /// The lanes held are not those that [`Client::attend`] named: some were given to others, or to this worker. What was
    /// waited for goes on.
    #[error("the scheduler has changed the lanes that this worker holds")]
    LanesChanged,
    /// The cluster ended or gave this worker up.
    #[error("the cluster has ended, or has given this worker up")]
    Stopped,
}

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

struct Shared<E: Endpoint, D: Dialer> {
    baton: Baton<Session<E, D>>,
    control: Arc<dyn Control>,
    /// Bounded delay of the next pulls and rounds; `u32::MAX` is eventual.
    tau: AtomicU32,
    /// Nanoseconds that calls have waited for others.
    waited_ns: AtomicU64,
    /// When the latest call that waits began to, of several threads any; 0 when it has ended.
    waiting_since_ns: AtomicU64,
    /// The scheduler was told that this worker is done.
    left: AtomicBool,
}

/// A worker's connection to a cluster. Clones share it.
pub struct Client<E: Endpoint, D: Dialer>(Arc<Shared<E, D>>);

impl<E: Endpoint, D: Dialer> Clone for Client<E, D> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// A table as this worker reaches it. Clones share the connection.
pub struct Table<T: Element, E: Endpoint, D: Dialer> {
    client: Client<E, D>,
    id: TableId,
    spec: Arc<TableSpec>,
    element: PhantomData<fn() -> T>,
}

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

/// The values of a pull: `[n * width]`, in key order. They lie in the client's memory (`memory_bytes_max`) until dropped.
pub struct Values<T: Element> {
    memory: SliceMut,
    element: PhantomData<fn() -> T>,
}

impl<T: Element + fmt::Debug> fmt::Debug for Values<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<E: Endpoint, D: Dialer> fmt::Debug for Client<E, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the lock: it is printed from anywhere.
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl<T: Element, E: Endpoint, D: Dialer> fmt::Debug for Table<T, E, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("id", &self.id).field("spec", &self.spec).finish_non_exhaustive()
    }
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

impl<T: Element> std::ops::Deref for Values<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match <[T]>::ref_from_bytes(self.memory.as_bytes()) {
            Ok(values) => values,
            Err(_) => unreachable!("memory of an arena is 64-byte aligned and was taken for whole elements"),
        }
    }
}

impl<E: Endpoint + Send + 'static, D: Dialer + Send + 'static> Client<E, D> {
    /// A client over a driver and a control plane, with its progress thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn new(
        driver: Driver<E, D>,
        events: Receiver<News>,
        control: Arc<dyn Control>,
        turns: Loop,
        tau: Option<Round>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            baton: Baton::new(Session::new(driver, events, Arc::clone(&control)), turns),
            control,
            tau: AtomicU32::new(tau.unwrap_or(Round::MAX)),
            waited_ns: AtomicU64::new(0),
            waiting_since_ns: AtomicU64::new(0),
            left: AtomicBool::new(false),
        });
        let weak = Arc::downgrade(&shared);
        std::thread::Builder::new().name("rangefold-progress".into()).spawn(move || {
            // Ends with the last client.
            while let Some(shared) = weak.upgrade() {
                shared.progress();
                drop(shared);
                std::thread::sleep(Duration::from_millis(5));
            }
        })?;
        Ok(Self(shared))
    }

    fn now_ns(&self) -> u64 {
        self.0.baton.clock().now_ns()
    }

    fn with<R>(&self, act: impl FnOnce(&mut Session<E, D>) -> R) -> R {
        self.0.baton.with(act)
    }

    /// Drives until `done` yields something.
    fn wait<R>(
        &self,
        what: &'static str,
        deadline: Duration,
        mut done: impl FnMut(&mut Session<E, D>) -> Option<R>,
    ) -> Result<R, Error> {
        let begun_ns = self.now_ns();
        // Relaxed: for messages only.
        self.0.waiting_since_ns.store(begun_ns, Ordering::Relaxed);
        let deadline_ns = begun_ns.saturating_add(u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX));
        let outcome = self.0.baton.drive(
            |session| match done(session) {
                Some(result) => Some(Ok(result)),
                None => check(session).err().map(Err),
            },
            deadline_ns,
        );
        self.0.waiting_since_ns.store(0, Ordering::Relaxed);
        self.0.waited_ns.fetch_add(self.now_ns().saturating_sub(begun_ns), Ordering::Relaxed);
        outcome.unwrap_or_else(|| {
            let waits_for = self.with(Session::waits_for);
            Err(Error::Deadline { what, after: deadline, waits_for })
        })
    }

    /// Waits until the scheduler has handed lanes to this worker, and returns them.
    ///
    /// # Errors
    /// [`Error::Deadline`], [`Error::Stopped`], [`Error::LanesChanged`].
    pub fn wait_for_lanes(&self, deadline: Duration) -> Result<Vec<Lane>, Error> {
        self.wait("waiting for the job to start", deadline, |session| {
            let lanes: Vec<Lane> = session.driver.core().lanes().collect();
            (!lanes.is_empty()).then_some(lanes)
        })
    }

    /// The lanes held now, and the round of each.
    #[must_use]
    pub fn lanes(&self) -> Vec<(Lane, Round)> {
        self.with(|session| {
            let core = session.driver.core();
            core.lanes().map(|lane| (lane, core.round(lane).unwrap_or(0))).collect()
        })
    }

    /// Takes note of the lanes held now and returns them. From here on every call that waits or issues ends with
    /// [`Error::LanesChanged`] when lanes were taken from or given to this worker, so that it can do its part: run what it was
    /// given, from the round where it stands. Nothing is issued then, so no push lands in a round that is not the caller's.
    pub fn attend(&self) -> Vec<Member> {
        self.with(|session| {
            let members: Vec<Member> = session.driver.core().members().collect();
            session.attended = Some(members.clone());
            members
        })
    }

    /// Ends what `attend` began: waits do not end with [`Error::LanesChanged`] any more.
    pub fn ignore_lanes(&self) {
        self.with(|session| session.attended = None);
    }

    /// Makes a table, or attaches to the one with the same specification.
    ///
    /// # Errors
    /// [`Error::Element`] when `T` is not what it holds, [`Error::Eventual`], [`Error::Control`] from the manager, [`Error::Deadline`],
    /// [`Error::Stopped`], [`Error::LanesChanged`].
    pub fn table<T: Element>(&self, spec: &TableSpec) -> Result<Table<T, E, D>, Error> {
        if spec.element != T::TYPE {
            return Err(Error::Element { found: spec.element, asked: T::TYPE });
        }
        //= protocol.md T10
        let eventual = self.0.tau.load(Ordering::Relaxed) == Round::MAX;
        if eventual && spec.aggregation == Aggregation::Round {
            return Err(Error::Eventual(spec.name.clone()));
        }
        let id = self.0.control.create_table(spec)?;
        self.wait("waiting for the map with the table", DEADLINE, |session| {
            session.driver.core().map().tables.contains_key(&id).then_some(())
        })?;
        Ok(Table { client: self.clone(), id, spec: Arc::new(spec.clone()), element: PhantomData })
    }

    /// Sets the bounded delay from the next round and pull on; `None` is eventual (OSDI'14 §3.5).
    pub fn set_delay(&self, tau: Option<Round>) {
        self.0.tau.store(tau.unwrap_or(Round::MAX), Ordering::Relaxed);
    }

    /// Ends this worker's round, that of all its lanes, and waits until the next may start ([`Self::wait_for_round`]). Returns
    /// the new round.
    ///
    /// Lanes that were a lost worker's are brought along, so that nobody waits for them; what it had not pushed is not made up
    /// for. Programs that can do its part again use [`Self::attend`] and [`Self::advance_lane`] instead.
    ///
    /// # Errors
    /// [`Error::NoLane`], [`Error::Deadline`] (the round has ended all the same), [`Error::Stopped`], [`Error::LanesChanged`].
    pub fn advance(&self, deadline: Duration) -> Result<Round, Error> {
        // All lanes or none: a call after an error must not end a round twice.
        let round = self.with(|session| {
            check(session)?;
            let round = session.end_round().ok_or(Error::NoLane)?;
            session.flush_batch();
            Ok::<Round, Error>(round)
        })?;
        self.wait_for_round(deadline)?;
        Ok(round)
    }

    /// Waits until the present round of every lane held may start: all tasks of rounds before it less the delay have ended.
    ///
    /// # Errors
    /// [`Error::Deadline`], [`Error::Stopped`], [`Error::LanesChanged`].
    pub fn wait_for_round(&self, deadline: Duration) -> Result<(), Error> {
        let tau = self.0.tau.load(Ordering::Relaxed);
        self.wait("waiting for the tasks of earlier rounds", deadline, |session| {
            let core = session.driver.core();
            core.lanes().all(|lane| core.may_start(lane, tau)).then_some(())
        })
    }

    /// Ends the round of one lane, without waiting.
    ///
    /// # Errors
    /// [`Error::Issue`] when the lane is not held, [`Error::LanesChanged`], [`Error::Stopped`].
    pub fn advance_lane(&self, lane: Lane) -> Result<Round, Error> {
        self.with(|session| {
            check(session)?;
            let round = session.driver.advance(lane)?;
            // Others wait for this close, and this worker may compute for long.
            session.flush_batch();
            Ok(round)
        })
    }

    /// Waits until every task of this worker has ended. Pushes to tables that are aggregated by rounds end with their round:
    /// call [`Self::advance`] first.
    ///
    /// # Errors
    /// [`Error::Deadline`], [`Error::Stopped`], [`Error::LanesChanged`].
    pub fn flush(&self, deadline: Duration) -> Result<(), Error> {
        self.wait("waiting for all tasks", deadline, |session| {
            (session.driver.core().open_tasks() == 0).then_some(())
        })
    }

    /// Waits until every worker of the job has called this as often; before the job has started, for its workers to join. After
    /// a deadline the next call waits for the same barrier. One thread of a worker at a time.
    ///
    /// # Errors
    /// [`Error::Control`], [`Error::Deadline`], [`Error::Stopped`], [`Error::LanesChanged`].
    pub fn barrier(&self, deadline: Duration) -> Result<(), Error> {
        let (reached, again) =
            self.with(|session| (session.barriers_reached, session.barriers_reached > session.barriers));
        let target = reached + u64::from(!again);
        if !again {
            self.0.control.barrier()?;
            // Only now: one that could not be said is not reached.
            self.with(|session| session.barriers_reached = target);
        }
        self.wait("waiting at a barrier for the other workers", deadline, |session| {
            (session.barriers >= target).then_some(())
        })
    }

    /// Posts a notice that every worker can read, also one that comes later. The first of a name stays.
    ///
    /// # Errors
    /// [`Error::Control`].
    pub fn post(&self, name: &str, content: Vec<u8>) -> Result<(), Error> {
        Ok(self.0.control.post(name, content)?)
    }

    /// Reads a notice.
    ///
    /// # Errors
    /// [`Error::Control`].
    pub fn notice(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.0.control.notice(name)?)
    }

    /// Shard threads of the cluster, as this worker's map has it.
    #[must_use]
    pub fn shard_count(&self) -> usize {
        let servers = |session: &mut Session<E, D>| {
            session.driver.core().map().servers.iter().map(|entry| usize::from(entry.shards)).sum()
        };
        self.with(servers)
    }

    /// This client's capacities.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.with(|session| session.driver.core().limits())
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.with(|session| session.driver.counters())
    }

    /// How long calls have waited for others.
    #[must_use]
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.0.waited_ns.load(Ordering::Relaxed))
    }

    /// How long a call has been waiting now, and for what, in words: for a message before its deadline.
    #[must_use]
    pub fn waiting(&self) -> Option<(Duration, String)> {
        let since_ns = self.0.waiting_since_ns.load(Ordering::Relaxed);
        let waiting = Duration::from_nanos(self.now_ns().saturating_sub(since_ns));
        (since_ns > 0).then(|| (waiting, self.with(Session::waits_for)))
    }

    /// What everything waits for, in words, for a report of a stall.
    #[must_use]
    pub fn describe(&self) -> String {
        self.with(|session| session.driver.core().describe())
    }

    /// Tells the scheduler that this worker is done: its lanes go to others, and pushes that are not acknowledged end here
    /// ([`Self::flush`] first). Dropping the last clone says the same.
    pub fn leave(&self) {
        self.0.leave();
    }

    /// Issues, waiting for room if a bound is reached. `issue` leaves what it was given where it can be had again.
    fn issue(
        &self,
        deadline: Duration,
        mut issue: impl FnMut(&mut Session<E, D>) -> Result<TaskId, IssueError>,
    ) -> Result<TaskId, Error> {
        let outcome = self.with(|session| {
            check(session)?;
            let outcome = issue(session);
            session.flush_batch();
            Ok::<_, Error>(outcome)
        })?;
        match outcome {
            Err(IssueError::Full) => {}
            outcome => return Ok(outcome?),
        }
        let issued = self.wait("waiting for room to issue a task", deadline, |session| {
            // What changed meanwhile is what `wait` finds next; nothing is issued then.
            check(session).ok()?;
            match issue(session) {
                Err(IssueError::Full) => None,
                outcome => Some(outcome),
            }
        })?;
        Ok(issued?)
    }
}

/// Whoever drops its last client is done, said or not: what it holds goes to others.
impl<E: Endpoint, D: Dialer> Drop for Shared<E, D> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Whether the session may go on as its user knows it.
fn check<E: Endpoint, D: Dialer>(session: &Session<E, D>) -> Result<(), Error> {
    if session.stopped {
        Err(Error::Stopped)
    } else if session.lanes_changed() {
        Err(Error::LanesChanged)
    } else {
        Ok(())
    }
}

impl<E: Endpoint, D: Dialer> Shared<E, D> {
    fn leave(&self) {
        // Relaxed: whoever comes second has nothing to wait for.
        if !self.left.swap(true, Ordering::Relaxed) {
            self.control.leave();
        }
    }

    /// One look of the progress thread: if nobody has driven lately, drive. Also without tasks under way: connections break,
    /// segments move, and others wait for what this worker closed.
    fn progress(&self) {
        let now_ns = self.baton.clock().now_ns();
        self.baton.try_with(|session| {
            if now_ns.saturating_sub(session.turned_ns) > IDLE_NS {
                rangefold_transport::Shell::turn(session, now_ns);
            }
        });
    }
}

impl<T: Element, E: Endpoint, D: Dialer> Clone for Table<T, E, D> {
    fn clone(&self) -> Self {
        Self { client: self.client.clone(), id: self.id, spec: Arc::clone(&self.spec), element: PhantomData }
    }
}

impl<T: Element, E: Endpoint + Send + 'static, D: Dialer + Send + 'static> Table<T, E, D> {
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
            return Ok(Ticket { client: self.client.clone(), task: None });
        }
        let bytes = values.as_bytes();
        let task = self.client.issue(DEADLINE, |session| {
            // Before the copy, which would be made again at each look.
            session.driver.core().may_push(lane, self.id, range)?;
            let mut memory = session.driver.buffer(bytes.len())?;
            memory.as_mut_bytes().copy_from_slice(bytes);
            session.driver.push(lane, self.id, range, memory, arguments)
        })?;
        Ok(Ticket { client: self.client.clone(), task: Some(task) })
    }

    /// Pulls the n keys of `range`: at least all that every worker pushed in rounds before this worker's round less the
    /// delay, and this worker's own pushes (not those to a table that is aggregated by rounds).
    ///
    /// # Errors
    /// [`Error::Issue`], [`Error::NoLane`], [`Error::Deadline`] when there is no room for [`DEADLINE`], [`Error::Stopped`],
    /// [`Error::LanesChanged`].
    pub fn pull(&self, range: impl Into<KeyRange>) -> Result<PullTicket<T, E, D>, Error> {
        let (_, round) = self.first_lane()?;
        let tau = self.client.0.tau.load(Ordering::Relaxed);
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
        let (width, spent) = (self.spec.width, false);
        PullTicket { client: self.client.clone(), task, range, width, spent, element: PhantomData }
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

impl<E: Endpoint, D: Dialer> Ticket<E, D> {
    /// Whether the push has ended, or its cluster.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let ended =
            |task| self.client.0.baton.with(|session| session.driver.has_ended(task) || session.stopped);
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
        let Some(task) = self.task.take() else { return Ok(()) };
        let ended =
            self.client.wait("waiting for a push", deadline, |session| session.driver.take_ended(task));
        if ended.is_err() {
            self.task = Some(task);
        }
        Ok(ended?.outcome?)
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
            return Ok(Values { memory, element: PhantomData });
        };
        let ended =
            self.client.wait("waiting for a pull", deadline, |session| session.driver.take_ended(task))?;
        (self.task, self.spent) = (None, true);
        ended.outcome?;
        let memory = ended.values.ok_or(Error::Task(TaskError::Cancelled))?;
        Ok(Values { memory, element: PhantomData })
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
            self.client.0.baton.with(|session| session.driver.forget(task));
        }
    }
}

impl<T: Element, E: Endpoint, D: Dialer> Drop for PullTicket<T, E, D> {
    fn drop(&mut self) {
        if let Some(task) = self.task {
            self.client.0.baton.with(|session| session.driver.cancel(task));
        }
    }
}
