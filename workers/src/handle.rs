//! What a program holds: a client. It joins a job, makes tables, ends rounds, waits.
//! Knows deadlines and who drives; what may be sent when is the core's. Safe to share between threads.
//! Source: OSDI'14 §3.4 (tasks), §3.5 (consistency).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::Receiver;
use rangefold_proto::client::{Counters, IssueError};
use rangefold_proto::{Aggregation, Lane, Limits, Member, Round, ShardId, TableSpec};
use rangefold_transport::wait::Loop;
use rangefold_transport::{Endpoint, Route};

use crate::baton::Baton;
use crate::control::Control;
use crate::coordinator::News;
use crate::driver::{Dialer, Driver};
use crate::error::Error;
use crate::session::Session;
use crate::table::{Element, Table};

/// How long calls without a deadline of their own may take: 60 s, several times the silence after which a
/// scheduler process takes a worker for dead by default (10 s), so that they outlast the loss of another worker.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// How long a progress thread leaves a session alone that somebody has driven, in nanoseconds.
const IDLE_NS: u64 = 1_000_000;

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

impl<E: Endpoint, D: Dialer> fmt::Debug for Client<E, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the lock: it is printed from anywhere.
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl<E: Endpoint, D: Dialer> Client<E, D> {
    /// Does something with the session, now.
    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut Session<E, D>) -> R) -> R {
        self.0.baton.with(act)
    }

    /// Bounded delay of the next pulls; `Round::MAX` is eventual.
    pub(crate) fn tau(&self) -> Round {
        // Relaxed: a change that comes at the same time may count or not.
        self.0.tau.load(Ordering::Relaxed)
    }
}

impl<E: Endpoint + Send + 'static, D: Dialer + Send + 'static> Client<E, D> {
    /// A client over a driver and a control plane. What is under way moves while a thread is in a call of it.
    pub fn new(
        driver: Driver<E, D>,
        events: Receiver<News>,
        control: Arc<dyn Control>,
        turns: Loop,
        tau: Option<Round>,
    ) -> Self {
        Self(Arc::new(Shared {
            baton: Baton::new(Session::new(driver, events, Arc::clone(&control)), turns),
            control,
            tau: AtomicU32::new(tau.unwrap_or(Round::MAX)),
            waited_ns: AtomicU64::new(0),
            waiting_since_ns: AtomicU64::new(0),
            left: AtomicBool::new(false),
        }))
    }

    /// Starts the progress thread, which moves what is under way while no thread is in a call. It ends with the last client.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn spawn_progress(&self) -> std::io::Result<()> {
        let weak = Arc::downgrade(&self.0);
        let progress = move || {
            while let Some(shared) = weak.upgrade() {
                shared.progress();
                drop(shared);
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        std::thread::Builder::new().name("rangefold-progress".into()).spawn(progress).map(drop)
    }

    fn now_ns(&self) -> u64 {
        self.0.baton.clock().now_ns()
    }

    /// Drives until `done` yields something.
    pub(crate) fn wait<R>(
        &self,
        what: &'static str,
        deadline: Duration,
        mut done: impl FnMut(&mut Session<E, D>) -> Option<R>,
    ) -> Result<R, Error> {
        // Of many tasks under way most have ended when they are asked for. Whoever drives is not disturbed for that.
        if let Some(result) = self.0.baton.try_with(&mut done).flatten() {
            return Ok(result);
        }
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
        let eventual = self.tau() == Round::MAX;
        if eventual && spec.aggregation == Aggregation::Round {
            return Err(Error::Eventual(spec.name.clone()));
        }
        let id = self.0.control.create_table(spec)?;
        self.wait("waiting for the map with the table", DEADLINE, |session| {
            session.driver.core().map().tables.contains_key(&id).then_some(())
        })?;
        Ok(Table::new(self.clone(), id, spec.clone()))
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
        let tau = self.tau();
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
        if !self.with(|session| session.barrier_pending) {
            self.0.control.barrier()?;
            // Only now: one that could not be said is not reached.
            self.with(|session| {
                session.barriers_reached += 1;
                session.barrier_pending = true;
            });
        }
        self.wait("waiting at a barrier for the other workers", deadline, |session| {
            (session.barriers >= session.barriers_reached).then(|| session.barrier_pending = false)
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

    /// Shards whose connection broke or cannot be made, and why, in words. What is not acknowledged is sent again over a new one.
    #[must_use]
    pub fn disconnected(&self) -> Vec<(ShardId, String)> {
        self.with(|session| session.driver.disconnected().clone().into_iter().collect())
    }

    /// What the last connection to each shard went through, or goes; nothing of a shard to which none was needed yet.
    #[must_use]
    pub fn routes(&self) -> Vec<(ShardId, Route)> {
        self.with(|session| session.driver.routes().clone().into_iter().collect())
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
    pub(crate) fn issue<R>(
        &self,
        deadline: Duration,
        mut issue: impl FnMut(&mut Session<E, D>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let clock = self.0.baton.clock();
        let outcome = self.with(|session| {
            check(session)?;
            let outcome = issue(session);
            session.driver.post_issued(clock);
            outcome
        });
        let Err(Error::Issue(IssueError::Full)) = outcome else { return outcome };
        self.wait("waiting for room to issue a task", deadline, |session| {
            // What changed meanwhile is what `wait` finds next; nothing is issued then.
            check(session).ok()?;
            match issue(session) {
                Err(Error::Issue(IssueError::Full)) => None,
                outcome => Some(outcome),
            }
        })?
    }
}

/// Whoever drops its last client is done, said or not: what it holds goes to others.
impl<E: Endpoint, D: Dialer> Drop for Shared<E, D> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Whether the session may go on as its user knows it.
pub(crate) fn check<E: Endpoint, D: Dialer>(session: &Session<E, D>) -> Result<(), Error> {
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
