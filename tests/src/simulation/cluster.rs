//! One simulated cluster: turns the real shells when the network has something for them, carries the control plane's messages,
//! lets the faults happen. Knows when; what may be true is the oracle's.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use rangefold_kvstore::{Command as NodeCommand, Node, NodeOptions};
use rangefold_proto::client::{Grant, IssueError, Pull, TaskError, TaskId};
use rangefold_proto::manager::ManagerCore;
use rangefold_proto::scheduler::{JobSpec, Order, SchedulerCore};
use rangefold_proto::wire::Arguments;
use rangefold_proto::{
    ClusterMap, Incarnation, JobId, Lane, Member, Nanos, Round, SegmentId, ServerEntry, ServerId, ShardId,
    TableId, WorkerId,
};
use rangefold_transport::sim::{Config, Endpoint, HostId, Network};
use rangefold_transport::{Link, Shell};
use rangefold_workers::driver::{Command as WorkerCommand, Dialed, Dialer, Driver};

use super::Coverage;
use super::chance::Chance;
use super::oracle::{Expected, Oracle, Witness};
use super::program::{Step, steps};
use super::scenario::{Fault, Scenario};

const JOB: JobId = JobId(1);
/// A run that takes longer than this in virtual time is stuck.
const STUCK_NS: u64 = 10_000_000_000;
const PATIENCE_MS: u32 = 100_000;

/// The dialer's two ends: the driver asks, the harness answers.
#[derive(Debug, Default)]
struct Dials {
    asked: VecDeque<ShardId>,
    answered: VecDeque<(ShardId, Result<Dialed, String>)>,
}

#[derive(Clone, Debug, Default)]
struct SimDialer(Rc<RefCell<Dials>>);

impl Dialer for SimDialer {
    fn dial(&mut self, _: &ClusterMap, shard: ShardId) {
        self.0.borrow_mut().asked.push_back(shard);
    }

    fn poll(&mut self) -> Option<(ShardId, Result<Dialed, String>)> {
        self.0.borrow_mut().answered.pop_front()
    }
}

struct Server {
    host: HostId,
    node: Node<Endpoint, Witness>,
    wake_ns: Option<u64>,
    heard_ns: u64,
}

struct LaneProgram {
    incarnation: Incarnation,
    round: Round,
    steps: VecDeque<Step>,
    finished: bool,
}

struct Worker {
    host: HostId,
    driver: Driver<Endpoint, SimDialer>,
    dials: Rc<RefCell<Dials>>,
    programs: BTreeMap<Lane, LaneProgram>,
    pushes: BTreeMap<TaskId, ()>,
    pulls: BTreeMap<TaskId, Expected>,
    wake_ns: Option<u64>,
    heard_ns: u64,
}

/// Something that the control plane or the harness does at a time.
enum Act {
    TellNode(usize, NodeCommand),
    TellWorker(WorkerId, WorkerCommand),
    Dial(WorkerId, ShardId),
    Report(WorkerId),
    Reported(WorkerId, Vec<(Lane, Round)>),
    Leave(WorkerId),
    Stop(WorkerId),
    Join,
    Fault(Fault),
    Heal(HostId, HostId),
    Speed(HostId),
}

/// A cluster in the middle of its run.
pub struct Cluster {
    scenario: Scenario,
    chance: Chance,
    network: Network,
    manager: ManagerCore,
    scheduler: SchedulerCore,
    servers: Vec<Server>,
    workers: BTreeMap<WorkerId, Worker>,
    tables: Vec<TableId>,
    oracle: Rc<RefCell<Oracle>>,
    acts: BTreeMap<(u64, u64), Act>,
    next_act: u64,
    next_host: u32,
    coverage: Coverage,
}

impl Cluster {
    /// The cluster of a scenario, with its tables, before its workers join.
    #[must_use]
    pub fn new(scenario: Scenario) -> Self {
        let config = Config { silent_after_ns: Some(30_000_000), depth: 4, ..Config::default() };
        let network = Network::new(scenario.seed, config);
        let mut manager = ManagerCore::new();
        for server in 0..scenario.servers {
            let entry = ServerEntry {
                server: ServerId(server),
                address: String::new(),
                shards: scenario.shards,
                host: 0,
            };
            assert_eq!(manager.join(entry), Ok(()));
        }
        let create = |spec| manager.create_table(spec).unwrap_or_else(|error| panic!("{error}: {spec:?}"));
        let tables: Vec<TableId> = scenario.tables.iter().map(create).collect();
        let oracle = Rc::new(RefCell::new(Oracle::new(&scenario, tables.clone())));
        let mut servers = Vec::new();
        for server in 0..scenario.servers {
            for shard in 0..scenario.shards {
                let host = HostId(server);
                let options = NodeOptions {
                    shard: ShardId { server: ServerId(server), shard },
                    job: JOB,
                    limits: scenario.limits,
                    send_bytes_max: 1 << 20,
                };
                let mut node = Node::new(network.endpoint(host), options, Witness(Rc::clone(&oracle)));
                node.command(0, NodeCommand::Map(manager.map().clone()));
                servers.push(Server { host, node, wake_ns: None, heard_ns: 0 });
            }
        }
        let spec = JobSpec { workers: scenario.workers, parts: scenario.parts, silence_ns: u64::MAX };
        let mut cluster = Self {
            chance: Chance::new(scenario.seed, 2),
            network,
            manager,
            scheduler: SchedulerCore::new(spec),
            servers,
            workers: BTreeMap::new(),
            tables,
            oracle,
            acts: BTreeMap::new(),
            next_act: 0,
            next_host: 1000,
            coverage: Coverage::default(),
            scenario,
        };
        for worker in 0..cluster.scenario.workers {
            cluster.act(u64::from(worker) * 10_000, Act::Join);
        }
        for (at, fault) in cluster.scenario.faults.clone() {
            cluster.act(at, Act::Fault(fault));
        }
        cluster
    }

    fn act(&mut self, at_ns: u64, act: Act) {
        self.next_act += 1;
        self.acts.insert((at_ns, self.next_act), act);
    }

    fn now(&self) -> u64 {
        self.network.now_ns()
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The first invariant broken.
    pub fn run(mut self) -> Result<Coverage, String> {
        loop {
            if self.finished() {
                return self.check_end();
            }
            let waking = self.servers.iter().filter_map(|server| server.wake_ns);
            let waking = waking.chain(self.workers.values().filter_map(|worker| worker.wake_ns)).min();
            let acting = self.acts.keys().next().map(|&(at, _)| at);
            let next = [self.network.next_event_ns(), waking, acting].into_iter().flatten().min();
            let Some(next) = next else { return Err(self.stuck("nothing is left to happen")) };
            if next > STUCK_NS {
                return Err(self.stuck("it takes too long"));
            }
            self.network.advance_to(next.max(self.now()));
            while let Some(entry) = self.acts.first_entry().filter(|entry| entry.key().0 <= next) {
                let act = entry.remove();
                self.perform(act);
            }
            self.turn_all()?;
        }
    }

    fn stuck(&self, why: &str) -> String {
        let mut text = format!("B-b at {} ns: {why}", self.now());
        for (id, worker) in &self.workers {
            let rounds: Vec<_> =
                worker.programs.iter().map(|(lane, p)| (lane.0, p.round, p.steps.len())).collect();
            text +=
                &format!("\n{id}: (lane, round, steps left) {rounds:?}, {}", worker.driver.core().describe());
        }
        for server in &self.servers {
            text += &format!("\n{}\n  {:?}", server.node.core().describe(), server.node.counters());
        }
        text
    }

    fn finished(&self) -> bool {
        // Every lane's holder, as the scheduler has it, lives and is done; a worker given up that thinks so does not count.
        let done = |id: WorkerId, lane: Lane| {
            let worker = self.workers.get(&id);
            worker.is_some_and(|worker| worker.programs.get(&lane).is_some_and(|program| program.finished))
        };
        let held =
            self.workers.keys().map(|&id| self.scheduler.lanes_of(id).filter(|&lane| done(id, lane)).count());
        held.sum::<usize>() == self.scenario.parts as usize
            && self.workers.values().all(|worker| worker.driver.core().open_tasks() == 0)
    }

    /// Turns whoever has something to do, each after a nap, so that several events meet in one turn.
    fn turn_all(&mut self) -> Result<(), String> {
        let now = self.now();
        for server in &mut self.servers {
            if server.wake_ns.is_none_or(|wake| wake > now + 20_000) && self.network.has_events(server.host) {
                server.wake_ns = Some(now + self.chance.within(0..20_000));
            }
            if server.wake_ns.is_some_and(|wake| wake <= now) {
                let turn = server.node.turn(now);
                server.wake_ns = if turn.progressed { Some(now) } else { turn.deadline };
            }
        }
        if let Some(broken) = self.oracle.borrow().broken() {
            return Err(format!("at {now} ns: {broken}"));
        }
        let ids: Vec<WorkerId> = self.workers.keys().copied().collect();
        for id in ids {
            let Some(worker) = self.workers.get_mut(&id) else { continue };
            let answered = !worker.dials.borrow().answered.is_empty();
            if worker.wake_ns.is_none_or(|wake| wake > now + 20_000)
                && (answered || self.network.has_events(worker.host))
            {
                worker.wake_ns = Some(now + self.chance.within(0..20_000));
            }
            if worker.wake_ns.is_some_and(|wake| wake <= now) {
                self.turn_worker(id)?;
            }
        }
        Ok(())
    }

    fn turn_worker(&mut self, id: WorkerId) -> Result<(), String> {
        let now = self.now();
        let Some(worker) = self.workers.get_mut(&id) else { return Ok(()) };
        let turn = worker.driver.turn(now);
        worker.wake_ns = if turn.progressed { Some(now) } else { turn.deadline };
        for (lane, incarnation) in worker.driver.take_fenced() {
            if worker.programs.get(&lane).is_some_and(|program| program.incarnation == incarnation) {
                worker.programs.remove(&lane);
            }
        }
        let current = self.scheduler.view();
        let ended: Vec<TaskId> =
            worker.pushes.keys().copied().filter(|&task| worker.driver.has_ended(task)).collect();
        for task in ended {
            worker.pushes.remove(&task);
            match worker.driver.take_ended(task).map(|ended| ended.outcome) {
                Some(Ok(())) => self
                    .oracle
                    .borrow()
                    .acknowledged(task)
                    .map_err(|broken| format!("at {now} ns: {broken}"))?,
                Some(Err(TaskError::Fenced(_))) => {}
                other => return Err(format!("at {now} ns: push {task:?} ended as {other:?}")),
            }
        }
        let ended: Vec<TaskId> =
            worker.pulls.keys().copied().filter(|&task| worker.driver.has_ended(task)).collect();
        for task in ended {
            let Some(expected) = worker.pulls.remove(&task) else { continue };
            let Some(ended) = worker.driver.take_ended(task) else { continue };
            match (ended.outcome, ended.values) {
                (Ok(()), Some(values)) => {
                    let read = |chunk: &[u8]| f64::from_le_bytes(chunk.try_into().unwrap_or_default());
                    let values: Vec<f64> = values.as_bytes().chunks_exact(8).map(read).collect();
                    let answered = self.oracle.borrow().answered(&expected, &values, current);
                    answered.map_err(|broken| format!("at {now} ns, {task:?}: {broken}"))?;
                    self.coverage.pulls += 1;
                }
                (Err(TaskError::Fenced(_)), _) => {}
                other => return Err(format!("at {now} ns: pull {task:?} ended as {other:?}")),
            }
        }
        let issued = self.step_programs(id);
        let Some(worker) = self.workers.get_mut(&id) else { return Ok(()) };
        if issued {
            worker.wake_ns = Some(now);
        }
        let asked: Vec<ShardId> = worker.dials.borrow_mut().asked.drain(..).collect();
        for shard in asked {
            let at = now + self.chance.within(10_000..400_000);
            self.act(at, Act::Dial(id, shard));
        }
        Ok(())
    }

    /// Lets every lane of a worker go on as far as it can. Says whether anything was issued.
    fn step_programs(&mut self, id: WorkerId) -> bool {
        let Some(worker) = self.workers.get_mut(&id) else { return false };
        let Worker { driver, programs, pushes, pulls, .. } = worker;
        let tau = self.scenario.tau;
        let mut issued = false;
        for (&lane, program) in programs.iter_mut() {
            while !program.finished && driver.core().may_start(lane, tau.unwrap_or(Round::MAX)) {
                match program.steps.front().copied() {
                    Some(Step::Push { table, range }) => {
                        let spec = &self.scenario.tables[table];
                        let keys = usize::try_from(range.len()).unwrap_or(0);
                        let Ok(mut memory) = driver.buffer(keys * spec.value_bytes() as usize) else {
                            break;
                        };
                        for (index, chunk) in memory.as_mut_bytes().chunks_exact_mut(8).enumerate() {
                            let one = index % spec.width as usize == lane.0 as usize;
                            chunk.copy_from_slice(&f64::from(u8::from(one)).to_le_bytes());
                        }
                        match driver.push(
                            lane,
                            self.tables[table],
                            range,
                            memory.freeze(),
                            Arguments::default(),
                        ) {
                            Ok(task) => {
                                self.oracle.borrow_mut().issued(
                                    task,
                                    program.round,
                                    self.tables[table],
                                    range,
                                );
                                pushes.insert(task, ());
                                self.coverage.pushes += 1;
                            }
                            Err(IssueError::Full) => break,
                            Err(error) => panic!("{error}"),
                        }
                    }
                    Some(Step::Pull { table, range, own }) => {
                        let needed = tau.map_or(0, |tau| program.round.saturating_sub(tau));
                        let pull = Pull {
                            lane,
                            table: self.tables[table],
                            range,
                            rounds_needed: needed,
                            own_pushes: own,
                            patience_ms: PATIENCE_MS,
                        };
                        match driver.pull(pull) {
                            Ok(task) => {
                                let own = own.then_some((lane, task.stamp));
                                let view = driver.core().view().clone();
                                let table = pull.table;
                                pulls.insert(
                                    task,
                                    Expected { table, range, rounds_needed: needed, view, own },
                                );
                            }
                            Err(IssueError::Full) => break,
                            Err(error) => panic!("{error}"),
                        }
                    }
                    None => {
                        assert!(driver.advance(lane).is_ok());
                        program.round += 1;
                        program.finished = program.round >= self.scenario.rounds;
                        if !program.finished {
                            program.steps = steps(&self.scenario, lane, program.round).into();
                        }
                        issued = true;
                        continue;
                    }
                }
                program.steps.pop_front();
                issued = true;
            }
        }
        issued
    }

    fn perform(&mut self, act: Act) {
        let now = self.now();
        match act {
            Act::TellNode(index, command) => {
                self.servers[index].node.command(now, command);
                self.servers[index].wake_ns = Some(now);
            }
            Act::TellWorker(id, command) => {
                if let Some(worker) = self.workers.get_mut(&id) {
                    let members =
                        if let WorkerCommand::Run(members) = &command { members.clone() } else { Vec::new() };
                    worker.driver.command(now, command);
                    worker.wake_ns = Some(now);
                    for member in members {
                        Self::start_lane(&self.scenario, worker, member);
                    }
                }
            }
            Act::Dial(id, shard) => self.dial(id, shard),
            Act::Report(id) => {
                if let Some(worker) = self.workers.get(&id) {
                    let acknowledged: Vec<_> = worker.driver.core().acknowledged().collect();
                    let at = now + self.chance.within(20_000..200_000);
                    self.act(at, Act::Reported(id, acknowledged));
                    let next = now + self.chance.within(200_000..1_000_000);
                    self.act(next, Act::Report(id));
                }
            }
            Act::Reported(id, acknowledged) => {
                // A report of a worker that was given up changes nothing.
                let _ = self.scheduler.report(Nanos(now), id, &acknowledged);
            }
            Act::Leave(id) => {
                self.scheduler.leave(id);
                self.carry_orders();
                // A job needs somebody; one that has not begun needs all.
                if self.scheduler.workers() == 0 || !self.scheduler.started() {
                    self.act(now + 1_000_000, Act::Join);
                }
            }
            Act::Stop(id) => {
                if let Some(worker) = self.workers.remove(&id) {
                    self.network.crash(worker.host);
                    self.account(&worker);
                }
            }
            Act::Join => self.join(),
            Act::Fault(fault) => self.fault(fault),
            Act::Heal(a, b) => self.network.heal(a, b),
            Act::Speed(host) => self.network.slow(host, 1),
        }
    }

    fn start_lane(scenario: &Scenario, worker: &mut Worker, member: Member) {
        if worker.driver.core().round(member.lane).is_none() {
            // Fenced again before it was told.
            return;
        }
        let finished = member.first_round >= scenario.rounds;
        let steps =
            if finished { VecDeque::new() } else { steps(scenario, member.lane, member.first_round).into() };
        worker.programs.insert(
            member.lane,
            LaneProgram { incarnation: member.incarnation, round: member.first_round, steps, finished },
        );
    }

    fn join(&mut self) {
        let now = self.now();
        let Ok(id) = self.scheduler.join(Nanos(now)) else { return };
        let host = HostId(self.next_host);
        self.next_host += 1;
        let dialer = SimDialer::default();
        let dials = Rc::clone(&dialer.0);
        let mut driver = Driver::new(self.network.endpoint(host), dialer, JOB, self.scenario.limits, 1 << 20);
        driver.command(now, WorkerCommand::Map(self.manager.map().clone()));
        driver.command(now, WorkerCommand::View(self.scheduler.view().clone()));
        let worker = Worker {
            host,
            driver,
            dials,
            programs: BTreeMap::new(),
            pushes: BTreeMap::new(),
            pulls: BTreeMap::new(),
            wake_ns: Some(now),
            heard_ns: now,
        };
        self.workers.insert(id, worker);
        self.act(now + 100_000, Act::Report(id));
        self.carry_orders();
    }

    /// Messages of the control plane: to one receiver in order, to different ones at different times.
    fn carry_orders(&mut self) {
        while let Some(order) = self.scheduler.poll_order() {
            match order {
                Order::View(view) => {
                    for index in 0..self.servers.len() {
                        let at = self.later_for_node(index);
                        self.act(at, Act::TellNode(index, NodeCommand::View(view.clone())));
                    }
                    let ids: Vec<WorkerId> = self.workers.keys().copied().collect();
                    for id in ids {
                        let at = self.later_for_worker(id);
                        self.act(at, Act::TellWorker(id, WorkerCommand::View(view.clone())));
                    }
                }
                Order::Run { worker, lanes } => {
                    let at = self.later_for_worker(worker);
                    self.act(at, Act::TellWorker(worker, WorkerCommand::Run(lanes)));
                }
                Order::Stop { worker } => {
                    let at = self.now() + self.chance.within(100_000..10_000_000);
                    self.act(at, Act::Stop(worker));
                }
                Order::Barrier(_) => {}
            }
        }
    }

    fn later_for_node(&mut self, index: usize) -> u64 {
        let at = self.now() + self.chance.within(10_000..3_000_000);
        let server = &mut self.servers[index];
        server.heard_ns = server.heard_ns.max(at);
        server.heard_ns
    }

    fn later_for_worker(&mut self, id: WorkerId) -> u64 {
        let at = self.now() + self.chance.within(10_000..2_000_000);
        let Some(worker) = self.workers.get_mut(&id) else { return at };
        worker.heard_ns = worker.heard_ns.max(at);
        worker.heard_ns
    }

    fn dial(&mut self, id: WorkerId, shard: ShardId) {
        let now = self.now();
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let index = self.servers.iter().position(|server| server.node.core().me() == shard);
        let server = index.map(|index| &mut self.servers[index]);
        let outcome = match server {
            Some(server)
                if !self.chance.percent(10) && !self.network.is_partitioned(worker.host, server.host) =>
            {
                let (ours, theirs): (Link, Link) = self.network.connect(worker.host, server.host);
                server.node.command(now, NodeCommand::Adopt(theirs));
                server.wake_ns = Some(now);
                let limits = &self.scenario.limits;
                let grant = Grant { push_bytes: limits.push_bytes_per_link, pulls: limits.pulls_per_link };
                Ok(Dialed { link: ours, grant })
            }
            _ => Err("its host is down".into()),
        };
        worker.dials.borrow_mut().answered.push_back((shard, outcome));
        worker.wake_ns = Some(now);
    }

    fn fault(&mut self, fault: Fault) {
        let now = self.now();
        let pick = |of: u64, count: usize| usize::try_from(of % count.max(1) as u64).unwrap_or(0);
        let worker_at = |index: u64| {
            self.workers.iter().nth(pick(index, self.workers.len())).map(|(&id, w)| (id, w.host))
        };
        match fault {
            Fault::BreakLink(index) => {
                let links = self.network.links();
                if !links.is_empty() {
                    self.network.break_link(links[pick(index, links.len())].0);
                }
            }
            Fault::Partition { worker, server, for_ns } => {
                if let Some((_, host)) = worker_at(worker) {
                    let server = self.servers[pick(server, self.servers.len())].host;
                    self.network.partition(host, server);
                    self.act(now + for_ns, Act::Heal(host, server));
                }
            }
            Fault::Slow { host, factor, for_ns } => {
                let servers = self.servers.iter().map(|server| server.host);
                let hosts: Vec<HostId> =
                    servers.chain(self.workers.values().map(|worker| worker.host)).collect();
                let host = hosts[pick(host, hosts.len())];
                self.network.slow(host, factor);
                self.act(now + for_ns, Act::Speed(host));
            }
            Fault::Kill { worker, notice_ns, restart_ns } => {
                if let Some((id, _)) = worker_at(worker).filter(|_| self.workers.len() > 1) {
                    self.coverage.deaths += 1;
                    self.perform(Act::Stop(id));
                    self.act(now + notice_ns, Act::Leave(id));
                    if let Some(restart_ns) = restart_ns {
                        self.act(now + notice_ns + restart_ns, Act::Join);
                    }
                }
            }
            Fault::GiveUp(worker) => {
                if let Some((id, _)) = worker_at(worker).filter(|_| self.scheduler.workers() > 1) {
                    self.coverage.deaths += 1;
                    self.perform(Act::Leave(id));
                }
            }
            Fault::Move { segment, server, gap_ns } => self.move_segment(segment, server, gap_ns),
        }
    }

    /// An administrative move: the old owner gives the segment up, the new one gets it later; others hear of it later still.
    fn move_segment(&mut self, segment: u64, server: u64, gap_ns: u64) {
        let now = self.now();
        let pick = |of: u64, count: usize| usize::try_from(of % count.max(1) as u64).unwrap_or(0);
        let segments: Vec<SegmentId> = self.manager.map().rows.keys().copied().collect();
        let segment = segments[pick(segment, segments.len())];
        let to = pick(server, self.servers.len());
        let from =
            self.servers.iter().position(|server| server.node.core().owned().any(|owned| owned == segment));
        // A segment between two owners stays where it goes.
        let Some(from) = from.filter(|&from| from != to) else { return };
        let shard = self.servers[to].node.core().me();
        let Some(row) = self.manager.move_segment(segment, shard) else { return };
        let Some((image, values)) = self.servers[from].node.release(row) else { return };
        self.coverage.moves += 1;
        self.servers[from].wake_ns = Some(now);
        self.act(now + gap_ns, Act::TellNode(to, NodeCommand::Accept { row, image, values }));
        for index in 0..self.servers.len() {
            let at = self.later_for_node(index);
            self.act(at, Act::TellNode(index, NodeCommand::Map(self.manager.map().clone())));
        }
        // Mostly late, so that workers find out from the old owner.
        let ids: Vec<WorkerId> = self.workers.keys().copied().collect();
        for id in ids {
            let at = self.later_for_worker(id) + self.chance.within(0..20_000_000);
            self.act(at, Act::TellWorker(id, WorkerCommand::Map(self.manager.map().clone())));
        }
    }

    fn account(&mut self, worker: &Worker) {
        self.coverage.reconnects += worker.driver.counters().reconnects;
    }

    /// All tasks have ended and faults have stopped mattering: the values are what they must be.
    fn check_end(mut self) -> Result<Coverage, String> {
        // Segments that were given up and have not arrived yet.
        while let Some((_, act)) = self.acts.pop_first() {
            if let Act::TellNode(index, command @ NodeCommand::Accept { .. }) = act {
                self.servers[index].node.command(u64::MAX / 2, command);
            }
        }
        for (table, spec) in self.tables.iter().zip(&self.scenario.tables) {
            for index in 0..spec.segments {
                let segment = SegmentId::new(*table, index);
                let range = spec.segment_range(index);
                let owners: Vec<&Server> = self
                    .servers
                    .iter()
                    .filter(|server| server.node.core().owned().any(|owned| owned == segment))
                    .collect();
                let [owner] = owners[..] else {
                    return Err(format!("L-a {segment:?} has {} owners", owners.len()));
                };
                let mut bytes =
                    vec![0; usize::try_from(range.len()).unwrap_or(0) * spec.value_bytes() as usize];
                owner.node.store().copy_out(segment, range, &mut bytes);
                let read = |chunk: &[u8]| f64::from_le_bytes(chunk.try_into().unwrap_or_default());
                let values: Vec<f64> = bytes.chunks_exact(8).map(read).collect();
                self.oracle.borrow().finished(*table, range, &values)?;
                for lane in (0..self.scenario.parts).map(Lane) {
                    let intervals =
                        owner.node.core().applied(segment, lane).map_or(1, |clock| clock.intervals());
                    if intervals > 1 {
                        return Err(format!("X7 {segment:?}: {intervals} intervals of {lane} at rest"));
                    }
                }
            }
        }
        let workers = std::mem::take(&mut self.workers);
        for worker in workers.values() {
            self.account(worker);
        }
        for server in &self.servers {
            let counters = server.node.counters();
            if counters.violations > 0 {
                return Err(format!("{:?} counted violations: {counters:?}", server.node.core().me()));
            }
            self.coverage.repeats += counters.duplicates;
            self.coverage.gathered += counters.gathered;
            self.coverage.disordered += counters.gaps;
            self.coverage.parked += counters.parked;
            self.coverage.stale += counters.stale;
            self.coverage.fenced += counters.fenced;
            self.coverage.busy += counters.busy;
            self.coverage.rounds += counters.rounds;
        }
        self.coverage.disordered += self.network.counters().delivered_late;
        Ok(self.coverage)
    }
}
