//! A worker's side of the protocol: issues tasks, sends what may be sent, keeps what is not acknowledged.
//! Knows tasks, lanes, stamps, routes, credits; not values, not sockets, not the time. Driven by `workers::Driver`.
//! Source: OSDI'14 §3.2, §3.4, §3.5; protocol.md §3 (P2, P6, P7), §7 (G1).
//!
//! Commands (`push`, `pull`, `advance`) and `handle_input` change the state, `poll_output` is drained to `Timeout` after each.

mod flow;
mod issue;
mod link;
mod piece;
mod say;
mod tasks;
mod types;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::id::{JobId, Lane, LinkId, SegmentId, ShardId};
use crate::key::{Key, KeyRange};
use crate::limits::Limits;
use crate::map::ClusterMap;
use crate::slab::Slab;
use crate::table::Aggregation;
use crate::time::{Nanos, Round, Stamp};
use crate::view::{Member, View};
use crate::wire::{self, Extension, Header, Kind, Refusal};

use flow::Flow;
use link::ClientLink;
pub use link::Grant;
use tasks::{OpenRounds, Tasks};
pub use types::{Counters, Frame, Input, IssueError, Output, Pull, Push, SendBody, TaskError, TaskId};

#[derive(Debug)]
struct LaneState {
    member: Member,
    /// The newest stamp issued.
    stamp: Stamp,
    round: Round,
    /// Segments pushed to in this round.
    pushed: Vec<SegmentId>,
    open: OpenRounds,
}

#[derive(Clone, Copy, Debug)]
struct Task {
    round: Round,
    /// Pieces that are not done: segments of a push, frames of a pull.
    left: u32,
    bytes: u64,
    /// Nobody will ask how it ended.
    released: bool,
}

/// A piece of a pull: one frame's worth of keys in one segment.
#[derive(Clone, Debug)]
struct Piece {
    segment: SegmentId,
    range: KeyRange,
    rounds_needed: Round,
    own: Option<Stamp>,
    patience_ms: u32,
    /// Where it was sent, until it is answered.
    sent_on: Option<LinkId>,
}

type PieceId = (TaskId, Key);

/// Payloads, and which of their bytes.
type Gathered<P> = Vec<(P, core::ops::Range<usize>)>;

/// A worker's core.
#[derive(Debug)]
pub struct ClientCore<P> {
    job: JobId,
    limits: Limits,
    map: ClusterMap,
    view: View,
    lanes: Slab<Lane, LaneState>,
    flows: Slab<(Lane, SegmentId), Flow<P>>,
    pieces: BTreeMap<PieceId, Piece>,
    /// Pieces that wait for one of this client's own lanes, by the rounds they need.
    early: BTreeSet<(Round, PieceId)>,
    tasks: Tasks,
    links: Slab<ShardId, ClientLink>,
    shards: Slab<LinkId, ShardId>,
    speakers: VecDeque<ShardId>,
    effects: VecDeque<Output<P>>,
    frame: Frame<P>,
    /// The payloads of a frame of several pushes.
    gathered: Gathered<P>,
    unacknowledged_bytes: u64,
    /// Bytes that the lanes held pushed to aggregated tables, of rounds that one of them has not left.
    round_bytes: BTreeMap<(Round, ShardId, Lane), u64>,
    /// Dials, flows and pieces that try again at a time.
    retries: BTreeSet<(Nanos, Retry)>,
    sequence: u64,
    control: Vec<u8>,
    /// Tasks of which a push is acknowledged, while they are looked at; kept for its allocation.
    covered: Vec<TaskId>,
    counters: Counters,
    now: Nanos,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Retry {
    Dial(ShardId),
    Flow(Lane, SegmentId),
    Piece(PieceId),
}

impl<P: Clone> ClientCore<P> {
    /// A client without lanes and without a map.
    #[must_use]
    pub fn new(job: JobId, limits: Limits) -> Self {
        Self {
            job,
            limits,
            map: ClusterMap::default(),
            view: View::default(),
            lanes: Slab::default(),
            flows: Slab::default(),
            pieces: BTreeMap::new(),
            early: BTreeSet::new(),
            tasks: Tasks::new(limits.tasks_max),
            links: Slab::default(),
            shards: Slab::default(),
            speakers: VecDeque::new(),
            effects: VecDeque::new(),
            gathered: Vec::new(),
            frame: Frame {
                header: Header::of(Kind::Push, job),
                extension: Extension::default(),
                body: SendBody::Empty,
            },
            unacknowledged_bytes: 0,
            round_bytes: BTreeMap::new(),
            retries: BTreeSet::new(),
            sequence: 0,
            control: Vec::new(),
            covered: Vec::new(),
            counters: Counters::default(),
            now: Nanos(0),
        }
    }

    /// What was counted.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// The body of the last [`Output::Send`] with [`SendBody::Control`].
    #[must_use]
    pub fn control(&self) -> &[u8] {
        &self.control
    }

    /// The capacities it was made with.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// The map as this client has it.
    #[must_use]
    pub const fn map(&self) -> &ClusterMap {
        &self.map
    }

    /// The view as this client has it.
    #[must_use]
    pub const fn view(&self) -> &View {
        &self.view
    }

    /// The lanes held, ascending.
    pub fn lanes(&self) -> impl Iterator<Item = Lane> + '_ {
        self.lanes.keys()
    }

    /// The lanes held, ascending, as the view names them.
    pub fn members(&self) -> impl Iterator<Item = Member> + '_ {
        self.lanes.values().map(|state| state.member)
    }

    /// The round of a lane held.
    #[must_use]
    pub fn round(&self, lane: Lane) -> Option<Round> {
        self.lanes.get(lane).map(|state| state.round)
    }

    /// Tasks that have not ended.
    #[must_use]
    pub fn open_tasks(&self) -> usize {
        self.tasks.len()
    }

    /// Whether this task has not ended.
    #[must_use]
    pub fn is_open(&self, task: TaskId) -> bool {
        self.tasks.get(task).is_some()
    }

    /// Per lane, the rounds whose tasks have all ended: what the scheduler is told (protocol.md N4).
    pub fn acknowledged(&self) -> impl Iterator<Item = (Lane, Round)> + '_ {
        self.lanes.iter().map(|(lane, state)| (lane, state.open.oldest().unwrap_or(state.round)))
    }

    /// Shards whose connection is not up although something waits for it, for messages to the operator.
    pub fn unreachable(&self) -> impl Iterator<Item = ShardId> + '_ {
        self.links.iter().filter(|(_, link)| link.id().is_none() && link.wanted()).map(|(shard, _)| shard)
    }

    /// Shards that owe an answer: to a push that was sent, or a pull. For messages to the operator.
    #[must_use]
    pub fn waiting_for(&self) -> Vec<ShardId> {
        let pushed = self.flows.values().filter(|flow| flow.is_owed()).filter_map(|flow| flow.shard);
        let pulled = self.pieces.values().filter_map(|piece| self.map.owner(piece.segment));
        let mut shards: Vec<ShardId> = pushed.chain(pulled).collect();
        shards.sort_unstable();
        shards.dedup();
        shards
    }

    /// Whether everything open waits for rounds that lanes of this client have not ended themselves: pushes to aggregated
    /// tables, and pulls of rounds to come. For messages to the operator.
    #[must_use]
    pub fn waits_for_own_rounds(&self) -> bool {
        let lowest = self.lowest_round();
        let early = |piece: &Piece| piece.rounds_needed > lowest;
        let own = |flow: &Flow<P>, lane: Lane, segment: SegmentId| {
            let spec = self.map.tables.get(&segment.table());
            let round = self.lanes.get(lane).map_or(0, |state| state.round);
            spec.is_some_and(|spec| spec.aggregation == Aggregation::Round)
                && flow.oldest_round().is_none_or(|oldest| oldest >= round)
        };
        self.pieces.values().all(early)
            && self
                .flows
                .iter()
                .filter(|(_, flow)| flow.is_owed())
                .all(|((lane, segment), flow)| own(flow, lane, segment))
    }

    /// What every lane waits for, for a report of a stall.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = format!("view {}, {} tasks", self.view.number, self.tasks.len());
        for (lane, state) in self.lanes.iter() {
            text += &format!("\n  {lane} round {} open {:?}", state.round, state.open);
        }
        for ((lane, segment), flow) in self.flows.iter() {
            if let Some(waits) = flow.describe() {
                text += &format!("\n  push of {lane} to {segment:?}: {waits}");
            }
        }
        for ((task, start), piece) in &self.pieces {
            let (needed, sent) = (piece.rounds_needed, piece.sent_on);
            text += &format!(
                "\n  pull {task:?} of {:?} from {start}: needs {needed} rounds, sent on {sent:?}",
                piece.segment
            );
        }
        for (shard, link) in self.links.iter() {
            text += &format!("\n  {shard:?}: {}", link.describe());
        }
        text
    }

    /// Takes one input. Drain the outputs before the next.
    pub fn handle_input(&mut self, now: Nanos, input: Input<'_, P>) {
        self.now = now;
        match input {
            Input::Linked { shard, link, grant } => self.linked(shard, link, grant),
            Input::DialFailed { shard } => self.dial_failed(shard),
            Input::Lost { link } => self.lost(link),
            Input::Reply { link, header, extension, payload } => {
                self.credit(link, &extension);
                self.reply(link, &header, payload);
            }
            Input::Control { link, header, extension, body } => {
                self.credit(link, &extension);
                self.control_frame(link, &header, body);
            }
            Input::Sent { link, count } => {
                if let Some(&shard) = self.shards.get(link) {
                    let view = self.view.number;
                    let link = self.link_mut(shard);
                    link.sent(count);
                    if link.may_have_more(view) {
                        self.enlist(shard);
                    }
                }
            }
            Input::Map(map) => {
                for &row in map.rows.values() {
                    if self.map.rows.get(&row.segment).is_none_or(|held| held.assignment < row.assignment) {
                        self.adopt_row(row);
                    }
                }
                self.map.adopt(&map);
            }
            Input::View(view) => self.adopt_view(view),
            Input::Run(members) => {
                for member in members {
                    self.run(member);
                }
            }
            Input::Tick => {}
        }
        self.retry();
    }

    fn run(&mut self, member: Member) {
        if self.lanes.get(member.lane).is_some_and(|held| held.member.incarnation >= member.incarnation) {
            return;
        }
        self.drop_lane(member.lane);
        let stamp = member.incarnation.floor();
        let round = member.first_round;
        let state = LaneState { member, stamp, round, pushed: Vec::new(), open: OpenRounds::default() };
        self.lanes.insert(member.lane, state);
        // A lane that begins in the middle has closed what came before; every shard must hear that this owner is known.
        let rows: Vec<_> = self.map.rows.values().copied().collect();
        for row in rows {
            self.link_mut(row.owner).name_in_close(member.lane, row.segment);
        }
        self.recall_early();
    }

    fn adopt_view(&mut self, view: View) {
        if view.number <= self.view.number {
            return;
        }
        self.view = view;
        let fenced: Vec<Lane> = self
            .lanes
            .values()
            .filter(|held| {
                self.view.member(held.member.lane).is_none_or(|m| m.incarnation > held.member.incarnation)
            })
            .map(|held| held.member.lane)
            .collect();
        for lane in fenced {
            self.fence(lane);
        }
        //= protocol.md T7
        let shards: Vec<ShardId> = self.links.keys().collect();
        for shard in shards {
            self.enlist(shard);
        }
    }

    fn fence(&mut self, lane: Lane) {
        let Some(incarnation) = self.lanes.get(lane).map(|held| held.member.incarnation) else { return };
        self.drop_lane(lane);
        self.effects.push_back(Output::Fenced { lane, incarnation });
    }

    fn drop_lane(&mut self, lane: Lane) {
        if self.lanes.remove(lane).is_none() {
            return;
        }
        // Whoever takes it over pushes the round again.
        self.round_bytes.retain(|&(.., of), _| of != lane);
        for task in self.tasks.of_lane(lane) {
            let ids: Vec<PieceId> =
                self.pieces.range((task, 0)..=(task, Key::MAX)).map(|(&id, _)| id).collect();
            for id in ids {
                self.forget_piece(id);
            }
            self.complete(task, Err(TaskError::Fenced(lane)));
        }
        self.tasks.forget_lane(lane);
        let segments: Vec<SegmentId> =
            self.flows.keys().filter(|(of, _)| *of == lane).map(|(_, segment)| segment).collect();
        for segment in segments {
            self.unqueue(lane, segment);
            self.flows.remove((lane, segment));
        }
        self.retries.retain(|(_, retry)| !matches!(retry, Retry::Flow(of, _) if *of == lane));
        for link in self.links.values_mut() {
            link.forget_lane(lane);
        }
        self.release_early();
    }

    /// Ends a task.
    fn complete(&mut self, task: TaskId, outcome: Result<(), TaskError>) {
        if let Some(ended) = self.tasks.remove(task) {
            self.ended(task, ended, outcome);
        }
    }

    fn piece_done(&mut self, task: TaskId) {
        if let Some(ended) = self.tasks.piece_done(task) {
            self.ended(task, ended, Ok(()));
        }
    }

    fn ended(&mut self, id: TaskId, task: Task, outcome: Result<(), TaskError>) {
        self.unacknowledged_bytes -= task.bytes;
        if let Some(state) = self.lanes.get_mut(id.lane) {
            state.open.end(task.round);
        }
        if !task.released {
            self.effects.push_back(Output::Complete { task: id, outcome });
        }
    }

    fn control_frame(&mut self, link: LinkId, header: &Header, body: &[u8]) {
        let Some(&shard) = self.shards.get(link) else { return };
        // An answer with a range is a pull's, one without a push's.
        let piece = (!header.range.is_empty())
            .then_some((TaskId { lane: header.lane, stamp: header.stamp }, header.range.start));
        match header.kind {
            Kind::Ack => match wire::pairs(body) {
                Ok(pairs) => {
                    for (segment, stamp) in pairs {
                        self.acknowledged_to(header.lane, segment, stamp);
                    }
                }
                Err(_) => self.violation(link, "a malformed acknowledgement"),
            },
            Kind::ResumeReply => match wire::pairs(body) {
                Ok(pairs) => {
                    for (segment, clock) in pairs {
                        self.resumed(shard, header.lane, segment, clock);
                    }
                }
                Err(_) => self.violation(link, "a malformed answer to a resume"),
            },
            Kind::Gap => self.go_back(header.lane, header.segment, header.stamp),
            Kind::MapDelta => self.adopt_rows(link, body),
            Kind::WrongEpoch => {
                self.counters.reroutes += 1;
                self.adopt_rows(link, body);
                if let Some(id) = piece {
                    self.retry_piece(id, link, 0);
                }
            }
            Kind::NeedView => {
                self.link_mut(shard).view_sent = 0;
                self.enlist(shard);
                self.go_back(header.lane, header.segment, Stamp(0));
            }
            Kind::NeedMap | Kind::Busy => {
                if header.kind == Kind::NeedMap {
                    self.link_mut(shard).rows_due.insert(header.segment);
                    self.enlist(shard);
                }
                match piece {
                    Some(id) => self.retry_piece(id, link, self.limits.retry_ns),
                    None => self.put_off(header.lane, header.segment),
                }
            }
            Kind::Fenced => {
                let incarnation = header.stamp.incarnation();
                if self.lanes.get(header.lane).is_some_and(|held| held.member.incarnation == incarnation) {
                    self.fence(header.lane);
                }
            }
            Kind::Refused => {
                let refusal = Refusal::from_wire(header.round);
                match piece {
                    Some(id) => {
                        self.answered(id, link);
                        self.refuse(id.0, refusal);
                    }
                    None => self.refuse_flow(header.lane, header.segment, refusal),
                }
            }
            Kind::Push
            | Kind::Pushes
            | Kind::Pull
            | Kind::PullReply
            | Kind::Resume
            | Kind::Closed
            | Kind::Cancel
            | Kind::ViewUpdate => {
                self.violation(link, "a frame that only workers send");
            }
        }
    }

    fn refuse(&mut self, task: TaskId, refusal: Refusal) {
        let ids: Vec<PieceId> = self.pieces.range((task, 0)..=(task, Key::MAX)).map(|(&id, _)| id).collect();
        for id in ids {
            self.forget_piece(id);
        }
        self.complete(task, Err(TaskError::Refused(refusal)));
    }

    fn violation(&mut self, link: LinkId, why: &'static str) {
        self.effects.push_back(Output::Disconnect { link, why });
    }

    fn credit(&mut self, link: LinkId, extension: &Extension) {
        if let (Some(credit), Some(&shard)) = (extension.credit, self.shards.get(link)) {
            self.link_mut(shard).credit(credit);
            self.enlist(shard);
        }
    }

    fn adopt_rows(&mut self, link: LinkId, body: &[u8]) {
        let Ok(rows) = wire::rows(body) else { return self.violation(link, "a malformed map row") };
        for (row, _) in rows {
            // Rows of tables that this client does not know are not its concern.
            match self.map.rows.get(&row.segment) {
                Some(held) if held.assignment < row.assignment => self.adopt_row(row),
                // The owner says that it has begun: closes that named the segment before were heard by nobody.
                Some(held) if *held == row => self.name_segment(row),
                _ => {}
            }
        }
    }

    fn retry(&mut self) {
        while let Some(&(at, retry)) = self.retries.first() {
            if at > self.now {
                break;
            }
            self.retries.pop_first();
            match retry {
                Retry::Dial(shard) => {
                    self.link_mut(shard).rest_over();
                    self.enlist(shard);
                }
                Retry::Flow(lane, segment) => self.try_again(lane, segment),
                Retry::Piece(id) => self.ready_piece(id),
            }
        }
    }

    fn link_mut(&mut self, shard: ShardId) -> &mut ClientLink {
        let limits = &self.limits;
        self.links.get_or_insert_with(shard, || ClientLink::new(limits))
    }

    fn enlist(&mut self, shard: ShardId) {
        let link = self.link_mut(shard);
        if !link.listed {
            link.listed = true;
            self.speakers.push_back(shard);
        }
    }
}
