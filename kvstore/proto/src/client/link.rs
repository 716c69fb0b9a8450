//! A client's side of one connection to one shard: what waits for it, and what may still be sent.
//! Knows queues, credits and whether the connection is up; builds no frame. Held by the client core, one per shard.
//! Source: protocol.md §13 (B1, B6), T1, T7.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::id::{Lane, LinkId, SegmentId, ShardId};
use crate::key::KeyRange;
use crate::limits::Limits;
use crate::slab::Place;
use crate::time::Round;

use super::{ClientCore, Output, PieceId, Retry, TaskId};

/// What a shard has granted to one connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grant {
    /// Bytes of push payload.
    pub push_bytes: u64,
    /// Pulls.
    pub pulls: u16,
}

impl Grant {
    /// Bytes of a grant in a handshake.
    pub const BYTES: usize = 10;

    /// As it travels.
    #[must_use]
    pub fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.push_bytes.to_le_bytes());
        bytes[8..].copy_from_slice(&self.pulls.to_le_bytes());
        bytes
    }

    /// Reads what `encode` wrote; a longer one is a newer version's, whose beginning is the same.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (push_bytes, rest) = bytes.split_first_chunk()?;
        let pulls = rest.first_chunk()?;
        Some(Self { push_bytes: u64::from_le_bytes(*push_bytes), pulls: u16::from_le_bytes(*pulls) })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Down,
    Dialing,
    /// Failed; dials again after a rest.
    Resting,
    Up(LinkId),
}

/// Segments that the next close to a shard must name, and whether one is due.
#[derive(Clone, Default, Debug)]
pub(super) struct Close {
    pub(super) due: bool,
    pub(super) named: BTreeSet<SegmentId>,
}

/// When a flow sends: the round of what it sends, and a number that is drawn when it queues.
pub(super) type Turn = (Round, u64);

#[derive(Debug)]
pub(super) struct ClientLink {
    state: State,
    was_up: bool,
    failures: u32,
    /// An earlier connection carried pushes that are unacknowledged, or closes.
    owed: bool,
    room_max: u16,
    room: u16,
    grant: Grant,
    push_bytes_sent: u64,
    push_bytes_released: u64,
    pulls_out: u16,
    /// Pulls that were cancelled and whose answers have not come.
    pub(super) orphans: u16,
    pub(super) view_sent: u32,
    pub(super) listed: bool,
    /// Flows with something to send by their turns, ascending: oldest round first, then one after the other.
    flows: VecDeque<(Turn, Place)>,
    pub(super) pieces: VecDeque<PieceId>,
    /// Pulls to be given back.
    pub(super) cancels: VecDeque<(TaskId, SegmentId, KeyRange)>,
    pub(super) asks: BTreeSet<(Lane, SegmentId)>,
    pub(super) closes: BTreeMap<Lane, Close>,
    /// Whether one of them may be due; kept so that a frame need not look at all.
    pub(super) closes_due: bool,
    pub(super) rows_due: BTreeSet<SegmentId>,
    /// Whether the last frame was a push's, so that pulls get their turn.
    pub(super) pushed_last: bool,
}

impl ClientLink {
    pub(super) const fn new(limits: &Limits) -> Self {
        Self {
            state: State::Down,
            was_up: false,
            failures: 0,
            owed: false,
            room_max: limits.sends_per_link,
            room: 0,
            grant: Grant { push_bytes: 0, pulls: 0 },
            push_bytes_sent: 0,
            push_bytes_released: 0,
            pulls_out: 0,
            orphans: 0,
            view_sent: 0,
            listed: false,
            flows: VecDeque::new(),
            pieces: VecDeque::new(),
            cancels: VecDeque::new(),
            asks: BTreeSet::new(),
            closes: BTreeMap::new(),
            closes_due: false,
            rows_due: BTreeSet::new(),
            pushed_last: false,
        }
    }

    /// The connection, if it is up.
    pub(super) const fn id(&self) -> Option<LinkId> {
        match self.state {
            State::Up(link) => Some(link),
            _ => None,
        }
    }

    /// Its state in a line.
    pub(super) fn describe(&self) -> String {
        let held = self.push_bytes_sent - self.push_bytes_released;
        format!(
            "{:?}, room {}, {} flows, {} pieces, {held} of {} bytes, {} of {} pulls out",
            self.state,
            self.room,
            self.flows.len(),
            self.pieces.len(),
            self.grant.push_bytes,
            self.pulls_out,
            self.grant.pulls
        )
    }

    /// Whether anything waits for it.
    pub(super) fn wanted(&self) -> bool {
        self.owed
            || !self.flows.is_empty()
            || !self.pieces.is_empty()
            || self.closes.values().any(|close| close.due)
    }

    pub(super) const fn has_room(&self) -> bool {
        self.room > 0
    }

    pub(super) const fn take_room(&mut self) {
        self.room -= 1;
    }

    pub(super) fn sent(&mut self, count: u16) {
        self.room = self.room.saturating_add(count).min(self.room_max);
    }

    pub(super) fn credit(&mut self, released: u64) {
        // Cumulative, so a late one changes nothing; never more than was sent.
        self.push_bytes_released = self.push_bytes_released.max(released.min(self.push_bytes_sent));
    }

    pub(super) const fn may_push(&self, bytes: u64) -> bool {
        self.push_bytes_sent - self.push_bytes_released + bytes <= self.grant.push_bytes
    }

    pub(super) const fn pushed(&mut self, bytes: u64) {
        self.push_bytes_sent += bytes;
    }

    pub(super) const fn may_pull(&self) -> bool {
        self.pulls_out < self.grant.pulls
    }

    pub(super) const fn pulled(&mut self) {
        self.pulls_out += 1;
    }

    pub(super) const fn pull_answered(&mut self) {
        self.pulls_out = self.pulls_out.saturating_sub(1);
    }

    pub(super) const fn orphan_answered(&mut self) {
        if self.orphans > 0 {
            self.orphans -= 1;
            self.pull_answered();
        }
    }

    pub(super) fn queue_flow(&mut self, turn: Turn, flow: Place) {
        let at = match self.flows.back() {
            Some(&(last, _)) if turn < last => self.flows.partition_point(|&(other, _)| other < turn),
            _ => self.flows.len(),
        };
        self.flows.insert(at, (turn, flow));
    }

    pub(super) fn unqueue_flow(&mut self, turn: Turn) {
        if let Ok(at) = self.flows.binary_search_by_key(&turn, |&(other, _)| other) {
            self.flows.remove(at);
        }
    }

    /// The flow whose turn it is.
    pub(super) fn first_flow(&self) -> Option<Place> {
        self.flows.front().map(|&(_, flow)| flow)
    }

    pub(super) fn pop_flow(&mut self) {
        self.flows.pop_front();
    }

    /// The flow whose turn it was goes behind the others of its round; with no round it has nothing more. Says its new turn.
    pub(super) fn requeue_first(&mut self, round: Option<Round>, sequence: &mut u64) -> Option<Turn> {
        if let (Some(round), [(turn, _)], []) = (round, self.flows.as_slices().0, self.flows.as_slices().1)
            && turn.0 == round
        {
            // There are no others.
            return Some(*turn);
        }
        let (_, flow) = self.flows.pop_front()?;
        let round = round?;
        *sequence += 1;
        let turn = (round, *sequence);
        self.queue_flow(turn, flow);
        Some(turn)
    }

    pub(super) fn has_flows(&self) -> bool {
        !self.flows.is_empty()
    }

    /// Whether there is something to say that comes before pushes and pulls. May be wrong once after a close was said.
    pub(super) fn owes_word(&self, view: u32) -> bool {
        self.view_sent < view
            || self.closes_due
            || !self.rows_due.is_empty()
            || !self.asks.is_empty()
            || !self.cancels.is_empty()
    }

    /// Whether it may have something to say after this frame.
    pub(super) fn may_have_more(&self, view: u32) -> bool {
        self.owes_word(view) || self.has_flows() || !self.pieces.is_empty()
    }

    pub(super) fn queue_piece(&mut self, id: PieceId) {
        self.pieces.push_back(id);
    }

    pub(super) fn ask(&mut self, lane: Lane, segment: SegmentId) {
        self.asks.insert((lane, segment));
    }

    pub(super) fn name_in_close(&mut self, lane: Lane, segment: SegmentId) {
        self.closes.entry(lane).or_default().named.insert(segment);
    }

    pub(super) fn close_due(&mut self, lane: Lane) {
        self.closes.entry(lane).or_default().due = true;
        self.closes_due = true;
    }

    /// Its flows are unqueued before.
    pub(super) fn forget_lane(&mut self, lane: Lane) {
        self.closes.remove(&lane);
        self.pieces.retain(|(task, _)| task.lane != lane);
        self.asks.retain(|(of, _)| *of != lane);
    }

    pub(super) const fn rest_over(&mut self) {
        if matches!(self.state, State::Resting) {
            self.state = State::Down;
        }
    }

    /// Whether to dial now; it is dialing afterwards.
    pub(super) fn dial(&mut self) -> bool {
        let dial = self.state == State::Down && self.wanted();
        if dial {
            self.state = State::Dialing;
        }
        dial
    }
}

impl<P: Clone> ClientCore<P> {
    pub(super) fn linked(&mut self, shard: ShardId, id: LinkId, grant: Grant) {
        let link = self.link_mut(shard);
        let again = link.was_up;
        link.state = State::Up(id);
        link.was_up = true;
        link.failures = 0;
        link.owed = false;
        link.room = link.room_max;
        link.grant = grant;
        (link.push_bytes_sent, link.push_bytes_released, link.pulls_out, link.orphans) = (0, 0, 0, 0);
        link.view_sent = 0;
        self.counters.reconnects += u64::from(again);
        self.shards.insert(id, shard);
        //= protocol.md T1
        // A new connection: the newest close, with every segment named.
        let here: Vec<SegmentId> =
            self.map.rows.values().filter(|row| row.owner == shard).map(|row| row.segment).collect();
        let lanes: Vec<(Lane, Round)> = self.lanes.iter().map(|(lane, state)| (lane, state.round)).collect();
        for &(lane, round) in &lanes {
            let link = self.link_mut(shard);
            for &segment in &here {
                link.name_in_close(lane, segment);
            }
            if round > 0 {
                link.close_due(lane);
            }
        }
        //= protocol.md P7
        let flows: Vec<(Lane, SegmentId)> =
            self.flows.iter().filter(|(_, flow)| flow.shard == Some(shard)).map(|(key, _)| key).collect();
        for (lane, segment) in flows {
            self.restart(lane, segment, Some(id));
        }
        self.enlist(shard);
    }

    pub(super) fn dial_failed(&mut self, shard: ShardId) {
        let base = self.limits.retry_ns;
        let link = self.link_mut(shard);
        link.state = State::Resting;
        let wait = base << link.failures.min(6);
        link.failures += 1;
        let at = self.now.after(wait);
        self.retries.insert((at, Retry::Dial(shard)));
    }

    pub(super) fn lost(&mut self, id: LinkId) {
        let Some(shard) = self.shards.remove(id) else { return };
        let link = self.link_mut(shard);
        if link.id() != Some(id) {
            return;
        }
        link.state = State::Down;
        link.flows.clear();
        link.asks.clear();
        link.cancels.clear();
        let queued = core::mem::take(&mut link.pieces);
        let flows: Vec<(Lane, SegmentId)> =
            self.flows.iter().filter(|(_, flow)| flow.shard == Some(shard)).map(|(key, _)| key).collect();
        for (lane, segment) in flows {
            let owed = self.disconnected(lane, segment);
            self.link_mut(shard).owed |= owed;
        }
        // A close may have been lost with it, and others wait for what it said.
        let closed = self.lanes.values().any(|state| state.round > 0);
        self.link_mut(shard).owed |= closed && self.map.shards().contains(&shard);
        let sent: Vec<PieceId> =
            self.pieces.iter().filter(|(_, piece)| piece.sent_on == Some(id)).map(|(&id, _)| id).collect();
        for piece in sent.into_iter().chain(queued) {
            self.ready_piece(piece);
        }
        self.enlist(shard);
    }

    /// One step of dialing, when something waits for a connection that is not there.
    pub(super) fn dial_if_wanted(&mut self, shard: ShardId) {
        if self.link_mut(shard).dial() {
            self.effects.push_back(Output::Dial { shard });
        }
    }
}
