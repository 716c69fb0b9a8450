//! A shard's side of the protocol: admits pushes once, parks early pulls, says what is stable.
//! Knows segments, clocks, credits; not values, not sockets, not the time. Driven by `kvstore::Node`.
//! Source: OSDI'14 §3.2, §3.4, §3.5, §4.1; protocol.md §3, §4, §13.
//!
//! Called in this order: `handle_input`, then `poll_output` until it says `Timeout`. Outputs are effects that the shell
//! performs at once and in order: an acknowledgement never leaves before the `Apply` it stands for.

mod handover;
mod link;
mod push;
mod say;
mod segment;
mod types;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::clock::Clock;
use crate::id::{Assignment, JobId, Lane, LinkId, SegmentId, ShardId, TableId};
use crate::limits::Limits;
use crate::map::{ClusterMap, Row};
use crate::slab::Slab;
use crate::table::TableSpec;
use crate::time::{Nanos, Stamp};
use crate::view::View;
use crate::wire::{Extension, Header, Kind, Refusal};

use link::ServerLink;
use segment::{ParkedPull, Segment};
pub use types::{Counters, Frame, Input, Output, SegmentImage, SendBody};

/// A shard's core.
#[derive(Debug)]
pub struct ServerCore<P> {
    me: ShardId,
    job: JobId,
    limits: Limits,
    map: ClusterMap,
    view: View,
    segments: Slab<SegmentId, Segment<P>>,
    /// Segments that should be here and have no memory.
    declined: BTreeSet<SegmentId>,
    links: Slab<LinkId, Box<ServerLink>>,
    /// Connections with something to say and room to say it.
    speakers: VecDeque<LinkId>,
    /// Connections whose reply waits for one of the shard's reply slices.
    waiters: VecDeque<LinkId>,
    effects: VecDeque<Output<P>>,
    frame: Frame,
    replies_in_flight: u16,
    /// The earliest time at which a parked pull may expire; late is harmless, never early.
    expiry: Option<Nanos>,
    control: Vec<u8>,
    woken: Vec<ParkedPull>,
    counters: Counters,
    now: Nanos,
}

impl<P: Clone> ServerCore<P> {
    /// A shard that owns nothing yet.
    #[must_use]
    pub fn new(me: ShardId, job: JobId, limits: Limits) -> Self {
        Self {
            me,
            job,
            limits,
            map: ClusterMap::default(),
            view: View::default(),
            segments: Slab::default(),
            declined: BTreeSet::new(),
            links: Slab::default(),
            speakers: VecDeque::new(),
            waiters: VecDeque::new(),
            effects: VecDeque::new(),
            frame: Frame {
                header: Header::of(Kind::Ack, job),
                extension: Extension::default(),
                body: SendBody::Empty,
            },
            replies_in_flight: 0,
            expiry: None,
            control: Vec::new(),
            woken: Vec::new(),
            counters: Counters::default(),
            now: Nanos(0),
        }
    }

    /// What was counted.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// This shard.
    #[must_use]
    pub const fn me(&self) -> ShardId {
        self.me
    }

    /// The body of the last [`Output::Send`] with [`SendBody::Control`].
    #[must_use]
    pub fn control(&self) -> &[u8] {
        &self.control
    }

    /// The segments owned here.
    pub fn owned(&self) -> impl Iterator<Item = SegmentId> + '_ {
        self.segments.keys()
    }

    /// The clock of what is applied: its lowest stamp and how many intervals it has.
    #[must_use]
    pub fn applied(&self, segment: SegmentId, lane: Lane) -> Option<Clock> {
        self.segments.get(segment)?.lanes.get(lane).map(|state| state.applied)
    }

    /// What every segment waits for, a line each, for a report of a stall.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = format!("{:?}, view {}, {} links", self.me, self.view.number, self.links.len());
        for segment in self.segments.values() {
            text += &format!("\n  {:?} {:?} {:?}: ", segment.id, segment.assignment, segment.range);
            text += &segment.describe(&self.view);
        }
        for (id, link) in self.links.iter() {
            text += &format!("\n  {id:?}: {}", link.describe());
        }
        text
    }

    /// Pulls parked now, over all segments.
    #[must_use]
    pub fn parked_count(&self) -> usize {
        self.segments.values().map(Segment::parked_count).sum()
    }

    /// A segment's row, as the map here has it.
    #[must_use]
    pub fn row(&self, segment: SegmentId) -> Option<Row> {
        self.map.rows.get(&segment).copied()
    }

    /// A table's specification, as the map here has it.
    #[must_use]
    pub fn table(&self, table: TableId) -> Option<&TableSpec> {
        self.map.tables.get(&table)
    }

    /// Takes one input. Drain the outputs before the next.
    pub fn handle_input(&mut self, now: Nanos, input: Input<'_, P>) {
        self.now = now;
        match input {
            Input::Linked { link } => {
                self.links.insert(link, Box::new(ServerLink::new(self.limits.sends_per_link)));
            }
            Input::Lost { link } => self.lose(link),
            Input::Push { link, header, extension, payload } if header.job == self.job => {
                let credit = header.key_bytes.saturating_add(header.value_bytes);
                self.push(link, &header, extension.arguments, payload, 0, credit);
            }
            Input::Pushes { link, header, keys, payload } if header.job == self.job => {
                self.pushes(link, &header, keys, &payload);
            }
            Input::Control { link, header, extension, body } if header.job == self.job => {
                self.control_frame(link, &header, &extension, body);
            }
            Input::Push { link, .. } | Input::Pushes { link, .. } | Input::Control { link, .. } => {
                self.violation(link, "a frame of another job");
            }
            Input::Sent { link, reply, count } => self.sent(link, reply, count),
            Input::Map(map) => self.map.adopt(&map),
            Input::View(view) => self.adopt_view(view),
            Input::Tick => {}
        }
        self.expire();
    }

    fn control_frame(&mut self, id: LinkId, header: &Header, extension: &Extension, body: &[u8]) {
        match header.kind {
            Kind::Pull => self.pull(id, header, extension),
            Kind::Closed => self.closed(id, header, body),
            Kind::ViewUpdate => match View::decode(header.round, body) {
                Some(view) if view.members.len() <= self.limits.lanes_max as usize => {
                    if let Some(link) = self.links.get_mut(id) {
                        link.view_seen = link.view_seen.max(view.number);
                    }
                    self.adopt_view(view);
                }
                _ => self.violation(id, "a malformed view"),
            },
            Kind::Resume => self.resume(id, header, body),
            Kind::Cancel => self.cancel(id, header),
            Kind::MapDelta => match crate::wire::rows(body) {
                Ok(rows) => {
                    for (row, _) in rows {
                        // Routing knowledge only: ownership begins with `accept`, never with a worker's word.
                        if !self.segments.contains(row.segment) && self.map.rows.contains_key(&row.segment) {
                            self.map.adopt_row(row);
                        }
                    }
                }
                Err(_) => self.violation(id, "a malformed map row"),
            },
            _ => self.violation(id, "a frame that only servers send"),
        }
    }

    fn adopt_view(&mut self, view: View) {
        if view.number <= self.view.number {
            return;
        }
        //= protocol.md T7
        self.view = view;
        let ids: Vec<SegmentId> = self.segments.keys().collect();
        for id in ids {
            if let Some(segment) = self.segments.get_mut(id) {
                segment.recount();
            }
            self.advance(id);
        }
    }

    /// What a moved clock, close or view sets free on a segment: rounds, then pulls.
    fn advance(&mut self, id: SegmentId) {
        let Some(segment) = self.segments.get_mut(id) else { return };
        while self.view.number > 0 {
            let Some((round, contributions)) = segment.complete_round(&self.view) else { break };
            self.counters.rounds += 1;
            let Some(arguments) = contributions.first().map(|contribution| contribution.arguments) else {
                continue;
            };
            for contribution in contributions {
                owe_ack(segment, &mut self.links, &mut self.speakers, contribution.lane);
                if let Some(link) = self.links.get_mut(contribution.link) {
                    link.release(contribution.credit);
                    if link.credit_due(self.limits.push_bytes_per_link) {
                        enlist(&mut self.speakers, contribution.link, link);
                    }
                }
                if contribution.values.is_empty() {
                    continue;
                }
                self.effects.push_back(Output::Contribute {
                    segment: id,
                    lane: contribution.lane,
                    stamp: contribution.stamp,
                    values: contribution.values,
                    bytes: contribution.bytes,
                    payload: contribution.payload,
                });
            }
            self.effects.push_back(Output::Finish { segment: id, round, arguments });
        }
        segment.wake(&self.view, &mut self.woken);
        for pull in self.woken.drain(..) {
            ready(&mut self.links, &mut self.speakers, pull);
        }
    }

    fn pull(&mut self, id: LinkId, header: &Header, extension: &Extension) {
        if header.range.is_empty() {
            // An answer with an empty range is a push's.
            return self.violation(id, "a pull of nothing");
        }
        let Some(link) = self.links.get_mut(id) else { return };
        if link.pulls_held >= self.limits.pulls_per_link {
            return self.violation(id, "more pulls than were granted");
        }
        link.pulls_held += 1;
        let options = extension.pull.unwrap_or(crate::wire::PullOptions { rounds_needed: 0, patience_ms: 0 });
        let pull = ParkedPull {
            link: id,
            header: *header,
            rounds_needed: options.rounds_needed,
            after: extension.after.clone(),
            expires: self.now.after(u64::from(options.patience_ms) * 1_000_000),
        };
        let Some(segment) = self.segments.get_mut(header.segment) else { return self.turn_away(&pull) };
        let bytes = header.range.len().saturating_mul(u64::from(segment.value_bytes));
        if !segment.range.covers(header.range) || bytes > u64::from(self.limits.frame_bytes_max) {
            return self.refuse_pull(&pull, Kind::Refused, Some(Refusal::Shape));
        }
        //= protocol.md T3
        if segment.admits(&self.view, pull.rounds_needed, &pull.after) {
            ready(&mut self.links, &mut self.speakers, pull);
        } else {
            self.counters.parked += 1;
            self.expiry = Some(self.expiry.map_or(pull.expires, |expiry| expiry.min(pull.expires)));
            segment.park(pull);
        }
    }

    //= protocol.md K5
    /// Gives a parked pull back to its sender. One that is admitted is answered anyway.
    fn cancel(&mut self, id: LinkId, header: &Header) {
        let Some(segment) = self.segments.get_mut(header.segment) else { return };
        let same = |pull: &ParkedPull| {
            let (held, named) = (&pull.header, header);
            pull.link == id && (held.lane, held.stamp, held.range) == (named.lane, named.stamp, named.range)
        };
        for pull in segment.unpark(same) {
            self.refuse_pull(&pull, Kind::Busy, None);
        }
    }

    /// Tells a pull that its segment is elsewhere, or not here yet.
    fn turn_away(&mut self, pull: &ParkedPull) {
        let (kind, refusal) = self.whereabouts(pull.header.segment, pull.header.assignment);
        self.refuse_pull(pull, kind, refusal);
    }

    fn refuse_pull(&mut self, pull: &ParkedPull, kind: Kind, refusal: Option<Refusal>) {
        let Some(link) = self.links.get_mut(pull.link) else { return };
        match kind {
            Kind::Busy => self.counters.busy += 1,
            Kind::Refused => self.counters.violations += 1,
            _ => self.counters.stale += 1,
        }
        link.answer_pull(kind, refusal, &pull.header);
        enlist(&mut self.speakers, pull.link, link);
    }

    //= protocol.md G1
    /// How to answer a frame for a segment that is not here.
    fn whereabouts(&self, segment: SegmentId, assignment: Assignment) -> (Kind, Option<Refusal>) {
        match self.map.rows.get(&segment) {
            // Its table is newer than the map here: the sender heard of it first.
            None if assignment.0 > 0 => (Kind::Busy, None),
            None => (Kind::Refused, Some(Refusal::NoSuchSegment)),
            Some(row) if row.owner == self.me && self.declined.contains(&segment) => {
                (Kind::Refused, Some(Refusal::NoMemory))
            }
            Some(row) if row.owner == self.me => (Kind::Busy, None),
            Some(row) if row.assignment < assignment => (Kind::NeedMap, None),
            Some(_) => (Kind::WrongEpoch, None),
        }
    }

    fn closed(&mut self, id: LinkId, header: &Header, body: &[u8]) {
        let Ok(named) = crate::wire::named(body) else { return self.violation(id, "a malformed close") };
        let incarnation = header.stamp.incarnation();
        if self.view.member(header.lane).is_none_or(|member| member.incarnation != incarnation) {
            // A fenced lane's closes count for nothing; a lane newer than the view shows the view first.
            return;
        }
        let named: BTreeMap<SegmentId, (Assignment, Stamp)> =
            named.map(|(segment, assignment, last)| (segment, (assignment, last))).collect();
        //= protocol.md G1
        // A lane that was away when a segment went closes here still; its new owner waits for that.
        for (segment, (assignment, _)) in &named {
            let gone = self.map.rows.get(segment).is_some_and(|row| row.assignment > *assignment);
            if let (true, Some(link)) = (gone && !self.segments.contains(*segment), self.links.get_mut(id)) {
                link.owe_row(*segment);
                enlist(&mut self.speakers, id, link);
            }
        }
        let ids: Vec<SegmentId> = self.segments.keys().collect();
        for segment_id in ids {
            if !self.adopt_lane(segment_id, header.lane, incarnation) {
                continue;
            }
            let Some(segment) = self.segments.get_mut(segment_id) else { continue };
            segment.close(&self.view, header.lane, header.round, named.get(&segment_id).copied());
            self.advance(segment_id);
        }
    }

    fn resume(&mut self, id: LinkId, header: &Header, body: &[u8]) {
        if !body.len().is_multiple_of(4) || body.len() > self.limits.frame_bytes_max as usize {
            return self.violation(id, "a malformed resume");
        }
        let word = |chunk: &[u8]| u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        // What is not in the map here is nobody's: not remembered, so a peer cannot make this grow.
        let known = |segment: &SegmentId| self.map.rows.contains_key(segment);
        let asked: Vec<SegmentId> =
            body.chunks_exact(4).map(|chunk| SegmentId(word(chunk))).filter(known).collect();
        let incarnation = header.stamp.incarnation();
        let current = self.view.member(header.lane).is_some_and(|member| member.incarnation == incarnation);
        // A former holder of the lane is told nothing that it could take for an acknowledgement of its own.
        for &segment_id in asked.iter().filter(|_| current) {
            if !self.adopt_lane(segment_id, header.lane, incarnation) {
                continue;
            }
            let Some(segment) = self.segments.get_mut(segment_id) else { continue };
            if let Some(state) = segment.lanes.get_mut(header.lane) {
                state.heard_on(id);
                state.gap_told = None;
            }
            // What became stable while the lane had no connection was acknowledged to nobody.
            owe_ack(segment, &mut self.links, &mut self.speakers, header.lane);
        }
        let Some(link) = self.links.get_mut(id) else { return };
        if !current && link.view_seen > 0 {
            self.counters.fenced += 1;
            link.answer_push(Kind::Fenced, None, header, header.stamp);
            return enlist(&mut self.speakers, id, link);
        }
        link.owe_resume(header.lane, asked);
        enlist(&mut self.speakers, id, link);
    }

    fn sent(&mut self, id: LinkId, reply: bool, count: u16) {
        let replies = if reply { count } else { 0 };
        for _ in 0..replies {
            self.replies_in_flight -= 1;
            self.wake_waiter();
        }
        if let Some(link) = self.links.get_mut(id) {
            link.room += count;
            for _ in 0..replies {
                link.reply_ended();
            }
            enlist(&mut self.speakers, id, link);
        }
    }

    /// A free reply slice goes to whoever has waited longest for one. Whether there is anybody.
    fn wake_waiter(&mut self) -> bool {
        while let Some(waiter) = self.waiters.pop_front() {
            if let Some(link) = self.links.get_mut(waiter) {
                link.waits = false;
                enlist(&mut self.speakers, waiter, link);
                return true;
            }
        }
        false
    }

    fn lose(&mut self, id: LinkId) {
        let Some(_) = self.links.remove(id) else { return };
        for segment in self.segments.values_mut() {
            drop(segment.unpark(|pull| pull.link == id));
            for state in segment.lanes.values_mut() {
                if state.link == Some(id) {
                    state.link = None;
                    state.ack_owed = false;
                }
            }
        }
    }

    fn violation(&mut self, link: LinkId, why: &'static str) {
        self.counters.violations += 1;
        self.effects.push_back(Output::Disconnect { link, why });
    }

    fn expire(&mut self) {
        if self.expiry.is_none_or(|expiry| expiry > self.now) {
            return;
        }
        let now = self.now;
        let mut expired = Vec::new();
        let mut next: Option<Nanos> = None;
        for segment in self.segments.values_mut() {
            expired.extend(segment.unpark(|pull| pull.expires <= now));
            let waiting = segment.parked.values().flatten().chain(&segment.parked_after);
            next = waiting.map(|pull| pull.expires).chain(next).min();
        }
        self.expiry = next;
        for pull in expired {
            self.refuse_pull(&pull, Kind::Refused, Some(Refusal::Expired));
        }
    }
}

/// Puts a connection on the list of those with something to say.
fn enlist(speakers: &mut VecDeque<LinkId>, id: LinkId, link: &mut ServerLink) {
    if !link.listed {
        link.listed = true;
        speakers.push_back(id);
    }
}

/// An admitted pull waits for a reply slice of its connection.
fn ready(links: &mut Slab<LinkId, Box<ServerLink>>, speakers: &mut VecDeque<LinkId>, pull: ParkedPull) {
    if let Some(link) = links.get_mut(pull.link) {
        let id = pull.link;
        link.ready.push_back(pull);
        enlist(speakers, id, link);
    }
}

/// The lane's clock on the segment is to be acknowledged, once, whatever it is by then.
fn owe_ack<P>(
    segment: &mut Segment<P>,
    links: &mut Slab<LinkId, Box<ServerLink>>,
    speakers: &mut VecDeque<LinkId>,
    lane: Lane,
) {
    let Some(state) = segment.lanes.get_mut(lane) else { return };
    let Some((id, link)) = state.link.and_then(|id| links.get_mut(id).map(|link| (id, link))) else {
        return;
    };
    if !state.ack_owed {
        state.ack_owed = true;
        link.acks.push((lane, segment.id));
    }
    enlist(speakers, id, link);
}
