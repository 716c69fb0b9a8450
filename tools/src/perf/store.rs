//! A load on a store: pushes and pulls through the client that programs use.
//! Knows one table at a time and this thread's part of it; not where the shard is. Driven by `crew.rs` as one thread's load.
//!
//! **What the latency is**: from the call (open loop: from when it was due) to when a wait for it returns: a round trip, never
//! halved. Of several under way the oldest is waited for.
//!
//! **The table** has a part for each thread, and each part as many slots as it takes messages to sweep it. What every
//! element must be follows from how often its slot was pushed (`pattern.rs`).

use std::collections::VecDeque;
use std::time::Duration;

use rangefold::{
    Client, Dialer, ElementType, Endpoint, Error, PullTicket, Table, TableSpec, Ticket, UpdateFunction,
    Values,
};
use rangefold_transport::wait::Clock;

use super::crew::{Load, Ran, Run, wait_until};
use super::options::{Check, StoreOperation};
use super::pace::{Next, Schedule};
use super::pattern;
use super::samples::Samples;
use super::size::{Rows, Shape};
use super::stop::{Flags, LOOK, Stop};

/// Bytes that are pushed or pulled at once where a whole part is: what fits a cache beside what it is compared with.
const PIECE_BYTES: u64 = 4 << 20;
/// A wait that is to end at a time ends this much before, because sleeps end late; the rest is spun.
const EARLY: Duration = Duration::from_micros(50);

/// How a load is made.
#[derive(Clone)]
pub(super) struct Options {
    pub(super) operation: StoreOperation,
    pub(super) clock: Clock,
    pub(super) flags: Flags,
    pub(super) check: Check,
    pub(super) seed: u64,
    pub(super) timeout: Duration,
    /// Which of the client's threads this is, and how many there are.
    pub(super) index: u64,
    pub(super) threads: u64,
}

/// One thread's load.
pub(super) struct Store<E: Endpoint, D: Dialer> {
    client: Client<E, D>,
    options: Options,
    part: Option<Part<E, D>>,
}

/// This thread's part of the table of one shape.
struct Part<E: Endpoint, D: Dialer> {
    shape: Shape,
    rows: Rows,
    table: Table<f32, E, D>,
    /// The first key.
    first_key: u64,
    /// The pattern, for as many slots as a piece has; and that of one slot to be taken away.
    added: Vec<f32>,
    taken: Vec<f32>,
    /// Pushes by turns, one slot each; and how often the whole part was pushed besides.
    pushes: u64,
    covers: u64,
    /// Pulls by turns.
    pulls: u64,
}

/// A task under way.
enum Task<E: Endpoint, D: Dialer> {
    Push(Ticket<E, D>),
    Pull(PullTicket<f32, E, D>),
}

struct Flight<E: Endpoint, D: Dialer> {
    task: Task<E, D>,
    slot: u64,
    /// What its latency counts from, and when it was really issued.
    since_ns: u64,
    issued_ns: u64,
}

type Result<T> = std::result::Result<T, Stop>;

/// What an error of the client means for the measurement.
fn stop(error: Error) -> Stop {
    match error {
        Error::Deadline { .. } | Error::Stopped | Error::LanesChanged | Error::NoLane => {
            Stop::Lost(error.to_string())
        }
        error => Stop::Failed(error.into()),
    }
}

impl<E: Endpoint + Send + 'static, D: Dialer + Send + 'static> Store<E, D> {
    pub(super) fn new(client: Client<E, D>, options: Options) -> Self {
        Self { client, options, part: None }
    }

    /// The part of this shape; a table is made, or the other threads' found, when it is another shape than before.
    fn part(&mut self, shape: &Shape) -> Result<&mut Part<E, D>> {
        let part = match self.part.take().filter(|part| part.shape == *shape) {
            Some(part) => part,
            None => Part::new(&self.client, shape, &self.options)?,
        };
        Ok(self.part.insert(part))
    }
}

impl<E: Endpoint + Send + 'static, D: Dialer + Send + 'static> Part<E, D> {
    fn new(client: &Client<E, D>, shape: &Shape, options: &Options) -> Result<Self> {
        let rows = shape.rows.ok_or_else(|| Stop::Failed(anyhow::anyhow!("a store's message has rows")))?;
        let part_keys = rows.slots.saturating_mul(rows.keys);
        let name = format!("perf {} x {} x {}", rows.slots, rows.keys, rows.width);
        let len = part_keys.saturating_mul(options.threads);
        let mut spec = TableSpec::dense(&name, ElementType::F32, len, UpdateFunction::Add);
        // One, so that a message is cut into frames and into nothing else; the shard is one as well.
        (spec.width, spec.segments) = (rows.width, 1);
        let table = client.table(&spec).map_err(stop)?;
        let slot_len = usize::try_from(rows.elements()).unwrap_or(usize::MAX);
        let piece_slots = (PIECE_BYTES / shape.bytes).clamp(1, rows.slots);
        let element = |index: usize| pattern::element(options.seed, (index % slot_len) as u64);
        let piece_len = slot_len.saturating_mul(usize::try_from(piece_slots).unwrap_or(usize::MAX));
        let added: Vec<f32> = (0..piece_len).map(element).collect();
        let taken = added[..slot_len].iter().map(|value| -value).collect();
        let first_key = options.index * part_keys;
        Ok(Self { shape: *shape, rows, table, first_key, added, taken, pushes: 0, covers: 0, pulls: 0 })
    }

    fn slot_len(&self) -> usize {
        self.taken.len()
    }

    /// The keys of some slots.
    fn keys(&self, first_slot: u64, slots: u64) -> std::ops::Range<u64> {
        let start = self.first_key + first_slot * self.rows.keys;
        start..start + slots * self.rows.keys
    }

    /// How often the pattern must be in a slot.
    fn multiple(&self, slot: u64) -> u64 {
        let visits = self.pushes / self.rows.slots + u64::from(slot < self.pushes % self.rows.slots);
        pattern::multiple(visits) + self.covers
    }

    /// Elements of one slot's values that are not what they must be.
    fn wrong(&self, slot: u64, found: &[f32], seed: u64) -> u64 {
        pattern::wrong_elements(found, seed, 0, self.multiple(slot))
    }

    /// The next push by turns. Says of which slot.
    fn push(&mut self) -> Result<(u64, Ticket<E, D>)> {
        let (slot, visit) = (self.pushes % self.rows.slots, self.pushes / self.rows.slots);
        let values = if pattern::rises(visit) { &self.added[..self.taken.len()] } else { &self.taken };
        let ticket = self.table.push(self.keys(slot, 1), values).map_err(stop)?;
        self.pushes += 1;
        Ok((slot, ticket))
    }

    /// The next pull by turns.
    fn pull(&mut self) -> Result<(u64, PullTicket<f32, E, D>)> {
        let slot = self.pulls % self.rows.slots;
        let ticket = self.table.pull(self.keys(slot, 1)).map_err(stop)?;
        self.pulls += 1;
        Ok((slot, ticket))
    }

    fn issue(&mut self, operation: StoreOperation) -> Result<(u64, Task<E, D>)> {
        match operation {
            StoreOperation::Push => self.push().map(|(slot, push)| (slot, Task::Push(push))),
            StoreOperation::Pull => self.pull().map(|(slot, pull)| (slot, Task::Pull(pull))),
            // Nobody waits for the push itself: its pull, behind it in the same stream, comes back after it.
            StoreOperation::PushPull => {
                let (slot, push) = self.push()?;
                drop(push);
                let pull = self.table.pull(self.keys(slot, 1)).map_err(stop)?;
                Ok((slot, Task::Pull(pull)))
            }
        }
    }

    /// Pieces of the whole part: first slot and slots of each.
    fn pieces(&self) -> impl Iterator<Item = (u64, u64)> + use<E, D> {
        let (slots, piece) = (self.rows.slots, (self.added.len() / self.slot_len()) as u64);
        (0..slots.div_ceil(piece)).map(move |index| (index * piece, piece.min(slots - index * piece)))
    }

    /// Pushes the pattern to the whole part, once.
    fn cover(&mut self, options: &Options) -> Result<()> {
        for (first, slots) in self.pieces() {
            options.flags.check()?;
            let len = self.slot_len() * usize::try_from(slots).unwrap_or(usize::MAX);
            let push = self.table.push(self.keys(first, slots), &self.added[..len]).map_err(stop)?;
            push.wait(options.timeout).map_err(stop)?;
        }
        self.covers += 1;
        Ok(())
    }

    /// Pulls one slot, when nothing of it is under way.
    fn read_back(&self, slot: u64, options: &Options) -> Result<Values<f32>> {
        let pull = self.table.pull(self.keys(slot, 1)).map_err(stop)?;
        pull.wait(options.timeout).map_err(stop)
    }

    /// Pulls the whole part and compares every element. Says how many are wrong.
    fn compare(&self, options: &Options) -> Result<u64> {
        let mut wrong = 0;
        for (first, slots) in self.pieces() {
            options.flags.check()?;
            let pull = self.table.pull(self.keys(first, slots)).map_err(stop)?;
            let found = pull.wait(options.timeout).map_err(stop)?;
            for (slot, found) in (first..).zip(found.chunks(self.slot_len())) {
                wrong += self.wrong(slot, found, options.seed);
            }
        }
        Ok(wrong)
    }
}

impl<E: Endpoint + Send + 'static, D: Dialer + Send + 'static> Load for Store<E, D> {
    fn check(&mut self, shape: &Shape) -> Result<u64> {
        let options = self.options.clone();
        let part = self.part(shape)?;
        part.cover(&options)?;
        part.compare(&options)
    }

    fn run(&mut self, shape: &Shape, run: &Run) -> Ran {
        let options = self.options.clone();
        let mut running = Running {
            schedule: Schedule::new(run.pace, run.start_ns),
            under_way: VecDeque::with_capacity(run.depth),
            samples: Samples::new(),
            ended_ns: 0,
            wrong: 0,
        };
        let part = self.part(shape);
        wait_until(options.clock, run.start_ns, &options.flags);
        let begun_ns = options.clock.now_ns().max(run.start_ns);
        running.ended_ns = begun_ns;
        let stopped = part.and_then(|part| running.play(part, run.depth, &options)).err();
        let unsent = running.schedule.unsent(options.clock.now_ns());
        let Running { samples, ended_ns, wrong, .. } = running;
        Ran { begun_ns, ended_ns, samples, unsent, wrong, stopped }
    }
}

/// A run under way.
struct Running<E: Endpoint, D: Dialer> {
    schedule: Schedule,
    under_way: VecDeque<Flight<E, D>>,
    samples: Samples,
    ended_ns: u64,
    wrong: u64,
}

impl<E: Endpoint + Send + 'static, D: Dialer + Send + 'static> Running<E, D> {
    fn play(&mut self, part: &mut Part<E, D>, depth: usize, options: &Options) -> Result<()> {
        loop {
            let now_ns = options.clock.now_ns();
            let next = self.schedule.next(now_ns);
            match next {
                Next::Now(since_ns) if self.under_way.len() < depth => {
                    let (slot, task) = part.issue(options.operation)?;
                    self.under_way.push_back(Flight { task, slot, since_ns, issued_ns: now_ns });
                    self.schedule.issued();
                }
                _ => {
                    let until_ns = if let Next::At(due_ns) = next { Some(due_ns) } else { None };
                    options.flags.check()?;
                    match (self.under_way.is_empty(), until_ns) {
                        (false, until_ns) => self.wait(part, until_ns, options)?,
                        (true, Some(due_ns)) => wait_until(options.clock, due_ns, &options.flags),
                        (true, None) => return Ok(()),
                    }
                }
            }
        }
    }

    /// Waits for the oldest until it has ended, or the next is due, or it is time to look at the flags.
    fn wait(&mut self, part: &Part<E, D>, until_ns: Option<u64>, options: &Options) -> Result<()> {
        let Some(oldest) = self.under_way.front_mut() else { return Ok(()) };
        let left = until_ns
            .map_or(LOOK, |until_ns| Duration::from_nanos(until_ns.saturating_sub(options.clock.now_ns())));
        let patience = if left > 2 * EARLY { (left - EARLY).min(LOOK) } else { left };
        let ended = match &mut oldest.task {
            Task::Push(ticket) => ticket.wait_once(patience).map(|()| None),
            Task::Pull(ticket) => ticket.wait_once(patience).map(Some),
        };
        let now_ns = options.clock.now_ns();
        let (slot, since_ns, issued_ns) = (oldest.slot, oldest.since_ns, oldest.issued_ns);
        match ended {
            Ok(values) => {
                self.under_way.pop_front();
                self.samples.record(now_ns.saturating_sub(since_ns));
                self.ended_ns = now_ns;
                if options.check == Check::Every {
                    self.wrong += match &values {
                        Some(values) => part.wrong(slot, values, options.seed),
                        None => part.wrong(slot, &part.read_back(slot, options)?, options.seed),
                    };
                }
                Ok(())
            }
            Err(Error::Deadline { waits_for, .. }) => {
                let waited = Duration::from_nanos(now_ns.saturating_sub(issued_ns));
                if waited < options.timeout {
                    return Ok(());
                }
                let timeout = options.timeout;
                Err(Stop::Lost(format!("a message was not answered within {timeout:?}: {waits_for}")))
            }
            Err(error) => Err(stop(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use rangefold::embed::{self, Cluster, MemoryDialer};
    use rangefold_transport::memory;
    use rangefold_transport::wait::Clock;

    use super::*;
    use crate::perf::pace::{Limit, Pace};
    use crate::perf::size::store_shape;

    const LONG: Duration = Duration::from_secs(30);

    type Memory = Store<memory::Endpoint, MemoryDialer>;

    fn cluster() -> (Cluster, embed::Client) {
        let cluster = Cluster::start(embed::Options::default()).unwrap();
        let client = cluster.join().unwrap();
        client.wait_for_lanes(LONG).unwrap();
        (cluster, client)
    }

    fn load(
        client: &embed::Client,
        operation: StoreOperation,
        check: Check,
        (index, threads): (u64, u64),
    ) -> Memory {
        let (clock, flags) = (Clock::new(), Flags::default());
        let options = Options { operation, clock, flags, check, seed: 9, timeout: LONG, index, threads };
        Store::new(client.clone(), options)
    }

    fn run(load: &mut Memory, shape: &Shape, depth: usize, messages: u64) -> Ran {
        let run = Run {
            start_ns: load.options.clock.now_ns(),
            pace: Pace::closed(Limit::Messages(messages)),
            depth,
        };
        let ran = load.run(shape, &run);
        assert!(ran.stopped.is_none(), "{:?}", ran.stopped);
        assert_eq!((ran.samples.count(), ran.unsent), (messages, 0));
        ran
    }

    #[test]
    fn every_operation_counts_its_messages_and_leaves_the_sums_it_must() {
        let (_cluster, client) = cluster();
        for operation in [StoreOperation::Push, StoreOperation::Pull, StoreOperation::PushPull] {
            for (bytes, table) in [(8, None), (256, Some(4096)), (100_000, None), (6 << 20, Some(20 << 20))] {
                let width = (bytes == 100_000).then_some(5);
                let shape = store_shape(bytes, width, table).unwrap();
                let mut load = load(&client, operation, Check::Ends, (0, 1));
                // Of another operation's table the covers and pushes are not known here: a table of its own.
                let shape = Shape {
                    rows: shape.rows.map(|rows| Rows { slots: rows.slots + operation as u64, ..rows }),
                    ..shape
                };
                assert_eq!(load.check(&shape).unwrap(), 0);
                run(&mut load, &shape, 7, 37);
                assert_eq!(load.check(&shape).unwrap(), 0, "{operation:?} of {bytes}");
            }
        }
    }

    #[test]
    fn threads_have_parts_of_their_own() {
        let (_cluster, client) = cluster();
        let shape = store_shape(1024, None, Some(4096)).unwrap();
        let mut loads = [0, 1].map(|index| load(&client, StoreOperation::Push, Check::Ends, (index, 2)));
        for load in &mut loads {
            load.check(&shape).unwrap();
        }
        std::thread::scope(|scope| {
            for (load, messages) in loads.iter_mut().zip([50, 51]) {
                scope.spawn(move || run(load, &shape, 4, messages));
            }
        });
        for load in &mut loads {
            assert_eq!(load.check(&shape).unwrap(), 0);
        }
    }

    #[test]
    fn a_push_by_somebody_else_is_found_at_the_end_and_at_once() {
        let (_cluster, client) = cluster();
        let shape = store_shape(512, None, Some(1024)).unwrap();
        for (operation, check) in [
            (StoreOperation::Push, Check::Ends),
            (StoreOperation::Pull, Check::Every),
            (StoreOperation::PushPull, Check::Every),
            (StoreOperation::Push, Check::Every),
        ] {
            let rows = shape.rows.unwrap();
            // A table for each case.
            let shape = Shape {
                rows: Some(Rows {
                    slots: 2 + operation as u64 * 2 + u64::from(check == Check::Every),
                    ..rows
                }),
                ..shape
            };
            let mut load = load(&client, operation, check, (0, 1));
            assert_eq!(load.check(&shape).unwrap(), 0);
            let every = u64::from(check == Check::Every);
            assert_eq!(run(&mut load, &shape, 1, 4).wrong, 0);
            // One row of the first slot, changed behind its back.
            load.part(&shape).unwrap().table.push(1..2, &[0.5; 64]).unwrap().wait(LONG).unwrap();
            let slots = shape.rows.unwrap().slots;
            assert_eq!(run(&mut load, &shape, 1, slots).wrong, 64 * every, "{operation:?}");
            assert_eq!(load.check(&shape).unwrap(), 64, "{operation:?}");
        }
    }

    #[test]
    fn an_open_loop_of_pushes_keeps_its_times() {
        let (_cluster, client) = cluster();
        let shape = store_shape(64, None, None).unwrap();
        let mut load = load(&client, StoreOperation::Push, Check::Ends, (0, 1));
        load.check(&shape).unwrap();
        let pace = Pace::open(Limit::Messages(20), 2_000.0, 0, 1);
        let ran = load.run(&shape, &Run { start_ns: load.options.clock.now_ns(), pace, depth: 4 });
        assert!(ran.stopped.is_none() && ran.samples.count() == 20);
        assert!(ran.ended_ns - ran.begun_ns >= 19 * 500_000, "the twentieth is due after 9.5 ms");
        // Far more than can be, 10^12 a second: all are due within the first nanosecond, so the last takes as long as the run.
        let pace = Pace::open(Limit::Messages(100), 1e12, 0, 1);
        let ran = load.run(&shape, &Run { start_ns: load.options.clock.now_ns(), pace, depth: 4 });
        assert!(ran.stopped.is_none() && ran.samples.count() == 100);
        assert!(ran.samples.latency().max_ns.unwrap() + 1_000 >= ran.ended_ns - ran.begun_ns);
    }

    #[test]
    fn a_cluster_that_ends_is_a_peer_lost() {
        let (cluster, client) = cluster();
        let shape = store_shape(64, None, None).unwrap();
        let mut load = load(&client, StoreOperation::Push, Check::Ends, (0, 1));
        load.check(&shape).unwrap();
        let ending = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            drop(cluster);
        });
        let pace = Pace::closed(Limit::Messages(u64::MAX));
        let ran = load.run(&shape, &Run { start_ns: load.options.clock.now_ns(), pace, depth: 4 });
        assert!(matches!(ran.stopped, Some(Stop::Lost(_))), "{:?}", ran.stopped);
        ending.join().unwrap();
    }
}
