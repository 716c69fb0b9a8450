//! A driver and the events of its control plane, turned together; what the baton is handed over with.
//! Knows both queues; decides nothing. Held by `handle.rs` under the baton.

use std::collections::BTreeMap;
use std::sync::Arc;

use crossbeam_channel::Receiver;
use rangefold_proto::client::TaskId;
use rangefold_proto::{Lane, Member, Round};
use rangefold_transport::{Endpoint, Shell, Turn};

use crate::control::Control;
use crate::coordinator::News;
use crate::driver::{Command, Dialer, Driver};
use crate::error::Error;

/// Control events of one turn, at most.
const EVENTS_PER_TURN: usize = 64;
/// How often a worker says how far it is, in nanoseconds.
const REPORT_NS: u64 = 50_000_000;

/// Called when a task has ended, with how, by the thread that drives; must not call back into the client.
pub(crate) type Callback = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// A driver with its control plane.
pub(crate) struct Session<E: Endpoint, D: Dialer> {
    pub(crate) driver: Driver<E, D>,
    events: Receiver<News>,
    control: Arc<dyn Control>,
    callbacks: BTreeMap<TaskId, Callback>,
    /// Barriers that everybody has reached, and this worker by itself.
    pub(crate) barriers: u64,
    pub(crate) barriers_reached: u64,
    /// The last of these was not waited for to its end.
    pub(crate) barrier_pending: bool,
    pub(crate) stopped: bool,
    /// The lanes that the program knows it holds; waiting calls return when they are not those held any more.
    pub(crate) attended: Option<Vec<Member>>,
    /// The program ends its rounds as a whole and knows nothing of lanes.
    ends_rounds: bool,
    /// Nanoseconds when the session was last turned, and when it last reported.
    pub(crate) turned_ns: u64,
    reported_ns: u64,
    reported: Vec<(Lane, Round)>,
}

impl<E: Endpoint, D: Dialer> Session<E, D> {
    pub(crate) fn new(driver: Driver<E, D>, events: Receiver<News>, control: Arc<dyn Control>) -> Self {
        Self {
            driver,
            events,
            control,
            callbacks: BTreeMap::new(),
            barriers: 0,
            barriers_reached: 0,
            barrier_pending: false,
            stopped: false,
            attended: None,
            ends_rounds: false,
            turned_ns: 0,
            reported_ns: 0,
            reported: Vec::new(),
        }
    }

    fn hear(&mut self, now_ns: u64, news: News) {
        match news {
            News::Map(map) => self.driver.command(now_ns, Command::Map(map)),
            News::View(view) => self.driver.command(now_ns, Command::View(view)),
            News::Run(lanes) => {
                self.driver.command(now_ns, Command::Run(lanes));
                if self.ends_rounds && self.attended.is_none() {
                    self.bring_along(0);
                }
            }
            News::Barrier(number) => self.barriers = self.barriers.max(number),
            News::Stop => {
                self.stopped = true;
                for (_, callback) in std::mem::take(&mut self.callbacks) {
                    call(callback, Err(Error::Stopped));
                }
            }
        }
    }

    /// Ends the round of the lane that is furthest, and brings the others along. From here on lanes that come are brought along
    /// as well, unless the program attends to them. `None` without a lane.
    pub(crate) fn end_round(&mut self) -> Option<Round> {
        self.ends_rounds = true;
        self.bring_along(1)
    }

    /// Brings all lanes to the round of the one that is furthest, and `more`.
    fn bring_along(&mut self, more: Round) -> Option<Round> {
        let core = self.driver.core();
        let lanes: Vec<(Lane, Round)> =
            core.lanes().map(|lane| (lane, core.round(lane).unwrap_or(0))).collect();
        let target = lanes.iter().map(|&(_, round)| round).max()?.saturating_add(more);
        for (lane, round) in lanes {
            for _ in round..target {
                // Held, as was just read.
                let _ = self.driver.advance(lane);
            }
        }
        Some(target)
    }

    /// Tells the scheduler how far the lanes are, if that has changed and it was not told lately.
    fn report(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.reported_ns) < REPORT_NS {
            return;
        }
        self.reported_ns = now_ns;
        let acknowledged: Vec<(Lane, Round)> = self.driver.core().acknowledged().collect();
        if acknowledged != self.reported {
            // A worker that was given up hears of it as an event; the report's own refusal says no more.
            let _ = self.control.report(&acknowledged);
            self.reported = acknowledged;
        }
    }

    /// Whether the lanes held are not those that the program knows of.
    pub(crate) fn lanes_changed(&self) -> bool {
        let Some(attended) = &self.attended else { return false };
        let same = |(known, held): (&Member, Member)| {
            (known.lane, known.incarnation) == (held.lane, held.incarnation)
        };
        let held = self.driver.core().members();
        held.count() != attended.len() || !attended.iter().zip(self.driver.core().members()).all(same)
    }

    /// Posts what was issued, without reading anything.
    pub(crate) fn flush_batch(&mut self) {
        self.driver.post();
    }

    /// Calls back when a task has ended, or now if it has.
    pub(crate) fn call_back_at_end(&mut self, task: TaskId, callback: Callback) {
        if let Some(ended) = self.driver.take_ended(task) {
            call(callback, ended.outcome.map_err(Error::from));
        } else if self.stopped {
            self.driver.forget(task);
            call(callback, Err(Error::Stopped));
        } else {
            self.callbacks.insert(task, callback);
        }
    }

    /// The likely cause of a wait, in a sentence.
    pub(crate) fn waits_for(&mut self) -> String {
        let (held, most) = self.driver.memory_bytes();
        let core = self.driver.core();
        let why = |shard| self.driver.disconnected().get(&shard).map_or("", String::as_str);
        let unreachable: Vec<String> =
            core.unreachable().map(|shard| format!("{shard:?} ({})", why(shard))).collect();
        if !unreachable.is_empty() {
            return format!("not reachable: {}", unreachable.join(", "));
        }
        if core.open_tasks() == 0 && held > 0 {
            return format!(
                "nothing is under way, but {held} of {most} bytes of this worker's memory hold values of pulls: drop them"
            );
        }
        if core.open_tasks() == 0 {
            return "this worker has nothing under way: it waits for other workers or for the scheduler"
                .into();
        }
        if core.waits_for_own_rounds() {
            return "all that is open belongs to rounds that this worker has not ended: a push to a table that is aggregated by rounds, \
                    or a pull of a round to come, ends after `advance`"
                .into();
        }
        let waiting = core.waiting_for();
        let names: Vec<String> = waiting.iter().map(|shard| format!("{shard:?}")).collect();
        format!(
            "open tasks: {}, waiting for {}; a server may be stopped, or another worker late",
            core.open_tasks(),
            names.join(", ")
        )
    }

    fn call_back(&mut self) {
        if self.callbacks.is_empty() {
            return;
        }
        let ended: Vec<TaskId> =
            self.callbacks.keys().copied().filter(|&task| self.driver.has_ended(task)).collect();
        for task in ended {
            let ended = self.driver.take_ended(task);
            if let (Some(ended), Some(callback)) = (ended, self.callbacks.remove(&task)) {
                call(callback, ended.outcome.map_err(Error::from));
            }
        }
    }
}

/// Calls back. One that panics has said so on standard error; whoever drives goes on, with the other callbacks.
fn call(callback: Callback, outcome: Result<(), Error>) {
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| callback(outcome)));
}

impl<E: Endpoint, D: Dialer> Shell for Session<E, D> {
    type Endpoint = E;

    fn turn(&mut self, now_ns: u64) -> Turn {
        self.turned_ns = now_ns;
        let mut told = false;
        for _ in 0..EVENTS_PER_TURN {
            let Ok(news) = self.events.try_recv() else { break };
            self.hear(now_ns, news);
            told = true;
        }
        let turn = self.driver.turn(now_ns);
        // The program learns of it by `lanes_changed`.
        drop(self.driver.take_fenced());
        self.call_back();
        self.report(now_ns);
        Turn { progressed: turn.progressed || told, ..turn }
    }

    fn endpoint(&mut self) -> &mut E {
        self.driver.endpoint()
    }
}
