//! Client cores and server cores joined directly, under a virtual clock: no network, no threads, no values but a plain array.
//!
//! `step` lets everything that is due happen once; `drive` goes on until nothing more will; `drive_bounded` panics with what
//! everybody waits for when that takes too long. A connection keeps its order and loses what is on it when it breaks.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use rangefold_proto::client::{self, ClientCore, Grant, IssueError, Pull, Push, TaskError, TaskId};
use rangefold_proto::manager::ManagerCore;
use rangefold_proto::scheduler::{JobSpec, Order, SchedulerCore};
use rangefold_proto::server::{self, ServerCore};
use rangefold_proto::wire::{self, Arguments, Extension, HEAD_BYTES_MAX, Header, Kind};
use rangefold_proto::{
    Aggregation, Key, KeyRange, Lane, Limits, LinkId, Nanos, Round, SegmentId, ServerEntry, ServerId,
    ShardId, TableId, TableSpec, WorkerId,
};

use crate::shard::{JOB, id};

type Payload = Rc<[u8]>;

/// Virtual nanoseconds that a frame is on its way.
const HOP_NS: u64 = 1_000;

/// A connection: frames on their way, each as bytes of its head and its body.
#[derive(Default)]
struct Wire {
    worker: usize,
    shard: usize,
    to_shard: VecDeque<(Vec<u8>, Payload)>,
    /// With each frame, whether it is a reply.
    to_worker: VecDeque<(Vec<u8>, Payload, bool)>,
}

/// A worker, as its program sees it.
pub(crate) struct Seat {
    pub(crate) core: ClientCore<Payload>,
    pub(crate) name: WorkerId,
    /// Values that came, by task and key.
    pub(crate) values: BTreeMap<TaskId, BTreeMap<Key, f64>>,
    pub(crate) ended: BTreeMap<TaskId, Result<(), TaskError>>,
    pub(crate) fenced: Vec<Lane>,
    dead: bool,
}

/// A shard and its values, one plain array a segment.
struct Room {
    core: ServerCore<Payload>,
    values: BTreeMap<SegmentId, Vec<f64>>,
    sum: BTreeMap<SegmentId, Vec<f64>>,
}

/// Workers, shards, and the control plane.
pub(crate) struct Pair {
    pub(crate) now: Nanos,
    pub(crate) workers: Vec<Seat>,
    rooms: Vec<Room>,
    wires: BTreeMap<LinkId, Wire>,
    next_link: u64,
    pub(crate) manager: ManagerCore,
    pub(crate) scheduler: SchedulerCore,
    limits: Limits,
    /// Dials that will fail, by shard.
    pub(crate) dials_to_fail: BTreeMap<ShardId, u32>,
    pub(crate) dials: Vec<(Nanos, ShardId)>,
}

impl Pair {
    /// A cluster of servers of one shard each, whose table is the first made, and workers that have all joined.
    pub(crate) fn new(limits: Limits, servers: u32, workers: u32, parts: u32, tables: &[TableSpec]) -> Self {
        let mut manager = ManagerCore::new();
        for server in (0..servers).map(ServerId) {
            let entry = ServerEntry { server, address: String::new(), shards: 1, host: 0 };
            manager.join(entry).unwrap();
        }
        for (index, spec) in tables.iter().enumerate() {
            let name = format!("t{index}");
            manager.create_table(&TableSpec { placement_group: name.clone(), name, ..spec.clone() }).unwrap();
        }
        let scheduler = SchedulerCore::new(JobSpec { workers, parts, silence_ns: u64::MAX });
        let mut pair = Self {
            now: Nanos(0),
            workers: Vec::new(),
            rooms: Vec::new(),
            wires: BTreeMap::new(),
            next_link: 1,
            manager,
            scheduler,
            limits,
            dials_to_fail: BTreeMap::new(),
            dials: Vec::new(),
        };
        for server in 0..servers {
            let mut core = ServerCore::new(id(server), JOB, limits);
            core.handle_input(pair.now, server::Input::Map(pair.manager.map().clone()));
            let mut room = Room { core, values: BTreeMap::new(), sum: BTreeMap::new() };
            for row in pair.manager.map().rows.values().filter(|row| row.owner == id(server)) {
                room.core.accept(*row, None);
                room.values.insert(row.segment, vec![0.0; pair.spec(row.segment).len as usize]);
            }
            pair.rooms.push(room);
        }
        for _ in 0..workers {
            pair.join();
        }
        pair
    }

    fn spec(&self, segment: SegmentId) -> &TableSpec {
        &self.manager.map().tables[&segment.table()]
    }

    /// A worker joins; says where it sits.
    pub(crate) fn join(&mut self) -> usize {
        let name = self.scheduler.join(self.now).unwrap();
        let mut core = ClientCore::new(JOB, self.limits);
        core.handle_input(self.now, client::Input::Map(self.manager.map().clone()));
        core.handle_input(self.now, client::Input::View(self.scheduler.view().clone()));
        self.workers.push(Seat {
            core,
            name,
            values: BTreeMap::new(),
            ended: BTreeMap::new(),
            fenced: Vec::new(),
            dead: false,
        });
        self.carry_orders();
        self.workers.len() - 1
    }

    fn carry_orders(&mut self) {
        while let Some(order) = self.scheduler.poll_order() {
            match order {
                Order::View(view) => {
                    for room in &mut self.rooms {
                        room.core.handle_input(self.now, server::Input::View(view.clone()));
                    }
                    for seat in self.workers.iter_mut().filter(|seat| !seat.dead) {
                        seat.core.handle_input(self.now, client::Input::View(view.clone()));
                    }
                    self.settle();
                }
                Order::Run { worker, lanes } => {
                    let seat = self.workers.iter_mut().find(|seat| seat.name == worker).unwrap();
                    seat.core.handle_input(self.now, client::Input::Run(lanes));
                    self.settle();
                }
                _ => {}
            }
        }
    }

    /// A worker's process dies: what it had on its connections is lost with them. The scheduler learns of it when told.
    pub(crate) fn kill(&mut self, worker: usize) {
        self.workers[worker].dead = true;
        let links: Vec<LinkId> =
            self.wires.iter().filter(|(_, wire)| wire.worker == worker).map(|(&link, _)| link).collect();
        for link in links {
            self.cut(link);
        }
    }

    /// A worker is taken for dead, whether it is or not.
    pub(crate) fn give_up(&mut self, worker: usize) {
        self.scheduler.leave(self.workers[worker].name);
        self.carry_orders();
    }

    /// Every connection breaks.
    pub(crate) fn cut_all(&mut self) {
        for link in self.wires.keys().copied().collect::<Vec<_>>() {
            self.cut(link);
        }
    }

    /// One connection breaks: the `index`th of those that are up, counted round. What is on it is lost.
    pub(crate) fn cut_one(&mut self, index: usize) {
        let links: Vec<LinkId> = self.wires.keys().copied().collect();
        if !links.is_empty() {
            self.cut(links[index % links.len()]);
        }
    }

    fn cut(&mut self, link: LinkId) {
        let wire = self.wires.remove(&link).unwrap();
        // Sends under way complete, flushed.
        for (_, _, reply) in &wire.to_worker {
            self.rooms[wire.shard]
                .core
                .handle_input(self.now, server::Input::Sent { link, reply: *reply, count: 1 });
        }
        self.rooms[wire.shard].core.handle_input(self.now, server::Input::Lost { link });
        if !self.workers[wire.worker].dead {
            self.workers[wire.worker].core.handle_input(self.now, client::Input::Lost { link });
        }
        self.settle();
    }

    /// A segment goes to another server, values and clocks in one cut. Workers are not told.
    pub(crate) fn move_segment(&mut self, segment: SegmentId, server: u32) {
        let from = self.manager.map().rows[&segment].owner.server.0 as usize;
        let Some(row) = self.manager.move_segment(segment, id(server)) else { return };
        let image = self.rooms[from].core.release(row).unwrap();
        self.settle();
        let values = self.rooms[from].values.remove(&segment).unwrap();
        self.rooms[server as usize].values.insert(segment, values);
        self.rooms[server as usize].core.accept(row, Some(&image));
        self.settle();
    }

    /// The manager tells every worker its map.
    pub(crate) fn tell_map(&mut self) {
        for seat in self.workers.iter_mut().filter(|seat| !seat.dead) {
            seat.core.handle_input(self.now, client::Input::Map(self.manager.map().clone()));
        }
        self.settle();
    }

    pub(crate) fn push(
        &mut self,
        worker: usize,
        lane: u32,
        table: u16,
        range: core::ops::Range<Key>,
        value: f64,
    ) -> Result<TaskId, IssueError> {
        let payload: Payload = (range.start..range.end).flat_map(|_| value.to_le_bytes()).collect();
        let arguments = Arguments::default();
        let push = Push { lane: Lane(lane), table: TableId(table), range: range.into(), payload, arguments };
        let task = self.workers[worker].core.push(push);
        self.settle();
        task
    }

    /// A pull that needs `rounds` rounds, and the lane's own pushes.
    pub(crate) fn pull(
        &mut self,
        worker: usize,
        lane: u32,
        table: u16,
        range: core::ops::Range<Key>,
        rounds: Round,
    ) -> Result<TaskId, IssueError> {
        let pull = Pull {
            lane: Lane(lane),
            table: TableId(table),
            range: range.into(),
            rounds_needed: rounds,
            own_pushes: true,
            patience_ms: 600_000,
        };
        let task = self.workers[worker].core.pull(pull);
        self.settle();
        task
    }

    pub(crate) fn advance(&mut self, worker: usize, lane: u32) -> Round {
        let round = self.workers[worker].core.advance(Lane(lane)).unwrap();
        self.settle();
        round
    }

    /// The values that a task brought, in key order.
    pub(crate) fn values(&self, worker: usize, task: TaskId) -> Vec<f64> {
        assert_eq!(self.workers[worker].ended.get(&task), Some(&Ok(())), "{task:?}\n{}", self.describe());
        self.workers[worker].values[&task].values().copied().collect()
    }

    /// The values as they are at the owners.
    pub(crate) fn stored(&self, table: u16) -> Vec<f64> {
        let spec = &self.manager.map().tables[&TableId(table)];
        let mut all = vec![0.0; spec.len as usize];
        for segment in (0..spec.segments).map(|index| SegmentId::new(TableId(table), index)) {
            let owner = self.manager.map().owner(segment).unwrap();
            let range = spec.segment_range(segment.index());
            let (start, end) = (range.start as usize, range.end as usize);
            all[start..end]
                .copy_from_slice(&self.rooms[owner.server.0 as usize].values[&segment][start..end]);
        }
        all
    }

    /// Lets what is due happen once. Says whether anything did.
    pub(crate) fn step(&mut self) -> bool {
        self.now = self.now.after(HOP_NS);
        let mut progressed = false;
        for link in self.wires.keys().copied().collect::<Vec<_>>() {
            progressed |= self.deliver(link);
        }
        for worker in 0..self.workers.len() {
            if !self.workers[worker].dead {
                self.workers[worker].core.handle_input(self.now, client::Input::Tick);
            }
        }
        for room in &mut self.rooms {
            room.core.handle_input(self.now, server::Input::Tick);
        }
        self.settle() || progressed
    }

    /// Goes on until nothing is on its way; time does not jump, so nothing expires and nobody tries again.
    pub(crate) fn quiet(&mut self) {
        while self.step() {}
    }

    /// Goes on until nothing more happens by itself, however long that takes in virtual time.
    pub(crate) fn drive(&mut self) {
        self.drive_bounded(100_000);
    }

    /// The same, for so many steps at most.
    pub(crate) fn drive_bounded(&mut self, steps_max: usize) {
        for _ in 0..steps_max {
            if self.step() {
                continue;
            }
            // Nothing is on its way: only time can change that.
            let Some(next) = self.next_timeout() else { return };
            self.now = self.now.max(next);
        }
        panic!("not at rest after {steps_max} steps\n{}", self.describe());
    }

    fn next_timeout(&mut self) -> Option<Nanos> {
        let mut next: Option<Nanos> = None;
        let mut soonest = |at: Option<Nanos>| next = [next, at].into_iter().flatten().min();
        for seat in self.workers.iter_mut().filter(|seat| !seat.dead) {
            if let client::Output::Timeout(at) = seat.core.poll_output(false) {
                soonest(at);
            }
        }
        for room in &mut self.rooms {
            if let server::Output::Timeout(at) = room.core.poll_output(false) {
                soonest(at);
            }
        }
        next
    }

    pub(crate) fn describe(&self) -> String {
        let workers = self.workers.iter().filter(|seat| !seat.dead).map(|seat| seat.core.describe());
        let rooms = self.rooms.iter().map(|room| room.core.describe());
        workers.chain(rooms).collect::<Vec<_>>().join("\n")
    }

    /// Takes the next frame off each end of a connection.
    fn deliver(&mut self, link: LinkId) -> bool {
        let Some(wire) = self.wires.get_mut(&link) else { return false };
        let (worker, shard) = (wire.worker, wire.shard);
        let (up, down) = (wire.to_shard.pop_front(), wire.to_worker.pop_front());
        let progressed = up.is_some() || down.is_some();
        if let Some((head, body)) = up {
            let (header, extension) = wire::decode(&head, link.0).unwrap();
            self.workers[worker].core.handle_input(self.now, client::Input::Sent { link, count: 1 });
            let core = &mut self.rooms[shard].core;
            if header.kind == Kind::Push {
                core.handle_input(self.now, server::Input::Push { link, header, extension, payload: body });
            } else if header.kind == Kind::Pushes {
                let keys = &body[..header.key_bytes as usize];
                let payload = body.clone();
                core.handle_input(self.now, server::Input::Pushes { link, header, keys, payload });
            } else {
                core.handle_input(self.now, server::Input::Control { link, header, extension, body: &body });
            }
            self.settle();
        }
        if let Some((head, body, reply)) = down {
            let (header, extension) = wire::decode(&head, link.0).unwrap();
            self.rooms[shard].core.handle_input(self.now, server::Input::Sent { link, reply, count: 1 });
            let core = &mut self.workers[worker].core;
            if header.kind == Kind::PullReply {
                core.handle_input(self.now, client::Input::Reply { link, header, extension, payload: body });
            } else {
                core.handle_input(self.now, client::Input::Control { link, header, extension, body: &body });
            }
            self.settle();
        }
        progressed
    }

    /// Drains all outputs; what they cause is on its way afterwards.
    fn settle(&mut self) -> bool {
        let mut progressed = false;
        for worker in 0..self.workers.len() {
            while !self.workers[worker].dead && self.act(worker) {
                progressed = true;
            }
        }
        for shard in 0..self.rooms.len() {
            while self.serve(shard) {
                progressed = true;
            }
        }
        progressed
    }

    fn act(&mut self, worker: usize) -> bool {
        let seat = &mut self.workers[worker];
        match seat.core.poll_output(true) {
            client::Output::Timeout(_) => return false,
            client::Output::Dial { shard } => self.dial(worker, shard),
            client::Output::Send { link } => {
                let frame = seat.core.frame();
                let (header, extension) = (frame.header, frame.extension.clone());
                let body: Payload = match std::mem::take(&mut frame.body) {
                    client::SendBody::Empty => [].into(),
                    client::SendBody::Control => seat.core.control().into(),
                    client::SendBody::Gathered => {
                        let mut body = seat.core.control().to_vec();
                        for (payload, bytes) in seat.core.gathered().drain(..) {
                            body.extend_from_slice(&payload[bytes]);
                        }
                        body.into()
                    }
                    client::SendBody::Values { payload, bytes } => payload[bytes].into(),
                };
                let head = encode(&header, &extension, link, body.len());
                self.wires.get_mut(&link).unwrap().to_shard.push_back((head, body));
            }
            client::Output::Deliver { task, range, payload } => {
                let (values, _) = payload.as_chunks::<8>();
                let values =
                    (range.start..range.end).zip(values.iter().map(|&bytes| f64::from_le_bytes(bytes)));
                seat.values.entry(task).or_default().extend(values);
            }
            client::Output::Complete { task, outcome } => {
                assert!(seat.ended.insert(task, outcome).is_none(), "{task:?} ended twice");
            }
            client::Output::Fenced { lane, .. } => seat.fenced.push(lane),
            client::Output::Disconnect { why, .. } => panic!("worker {worker}: {why}"),
        }
        true
    }

    fn dial(&mut self, worker: usize, shard: ShardId) {
        self.dials.push((self.now, shard));
        let fails = self.dials_to_fail.entry(shard).or_default();
        if *fails > 0 {
            *fails -= 1;
            self.workers[worker].core.handle_input(self.now, client::Input::DialFailed { shard });
            return;
        }
        let link = LinkId(self.next_link);
        self.next_link += 1;
        let room = shard.server.0 as usize;
        self.wires.insert(link, Wire { worker, shard: room, ..Wire::default() });
        self.rooms[room].core.handle_input(self.now, server::Input::Linked { link });
        let grant = Grant { push_bytes: self.limits.push_bytes_per_link, pulls: self.limits.pulls_per_link };
        self.workers[worker].core.handle_input(self.now, client::Input::Linked { shard, link, grant });
    }

    fn serve(&mut self, shard: usize) -> bool {
        let room = &mut self.rooms[shard];
        match room.core.poll_output(true) {
            server::Output::Timeout(_) => return false,
            server::Output::Apply { segment, values, bytes, payload, .. } => {
                add(room.values.get_mut(&segment).unwrap(), values, &payload[range(bytes)]);
            }
            server::Output::Contribute { segment, values, bytes, payload, .. } => {
                let len = room.values[&segment].len();
                let sum = room.sum.entry(segment).or_insert_with(|| vec![0.0; len]);
                add(sum, values, &payload[range(bytes)]);
            }
            server::Output::Finish { segment, .. } => {
                let sum = room.sum.remove(&segment).unwrap();
                let values = room.values.get_mut(&segment).unwrap();
                values.iter_mut().zip(sum).for_each(|(value, sum)| *value += sum);
            }
            server::Output::Send { link } => {
                let server::Frame { header, extension, body } = room.core.frame();
                let reply = matches!(body, server::SendBody::Gather { .. });
                let body: Payload = match *body {
                    server::SendBody::Empty => [].into(),
                    server::SendBody::Control => room.core.control().into(),
                    server::SendBody::Gather { segment, range } => {
                        let values = &room.values[&segment][range.start as usize..range.end as usize];
                        values.iter().flat_map(|value| value.to_le_bytes()).collect()
                    }
                };
                let head = encode(header, extension, link, body.len());
                self.wires.get_mut(&link).unwrap().to_worker.push_back((head, body, reply));
            }
            server::Output::Disconnect { why, .. } => panic!("server {shard}: {why}"),
        }
        true
    }
}

fn range(bytes: core::ops::Range<u32>) -> core::ops::Range<usize> {
    bytes.start as usize..bytes.end as usize
}

fn add(values: &mut [f64], keys: KeyRange, bytes: &[u8]) {
    let (pushed, _) = bytes.as_chunks::<8>();
    for (key, &value) in (keys.start..keys.end).zip(pushed) {
        values[key as usize] += f64::from_le_bytes(value);
    }
}

fn encode(header: &Header, extension: &Extension, link: LinkId, body: usize) -> Vec<u8> {
    assert_eq!(header.value_bytes as usize, body, "{header:?}");
    let mut bytes = [0; HEAD_BYTES_MAX];
    let len = wire::encode(header, extension, link.0, &mut bytes);
    bytes[..len].to_vec()
}

/// Whether a table is aggregated.
pub(crate) fn is_aggregated(spec: &TableSpec) -> bool {
    spec.aggregation == Aggregation::Round
}
