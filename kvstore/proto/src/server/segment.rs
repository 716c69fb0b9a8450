//! What a shard knows of one segment: its lanes' clocks, the rounds they have closed, and who waits.
//! Knows stamps, rounds and headers; not connections' state, not values. Held and asked by the server core.
//! Source: OSDI'14 §4.1, §3.5; protocol.md §2, T1 to T3, T6, T10, P10.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::clock::{Admission, Clock};
use crate::id::{Assignment, Lane, LinkId, SegmentId};
use crate::key::KeyRange;
use crate::slab::Slab;
use crate::table::{Aggregation, TableSpec};
use crate::time::{Incarnation, Nanos, Round, Stamp};
use crate::view::View;
use crate::wire::{Arguments, Header};

/// A pull that waits for a clock. It holds its header only (protocol.md T6).
#[derive(Clone, PartialEq, Debug)]
pub(super) struct ParkedPull {
    pub(super) link: LinkId,
    pub(super) header: Header,
    pub(super) rounds_needed: Round,
    pub(super) after: Vec<(Lane, Stamp)>,
    pub(super) expires: Nanos,
}

/// What closes were heard of a lane (protocol.md T2): the rounds reached, the oldest close not reached, the newest.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Closed {
    rounds: Round,
    oldest: Option<(Round, Stamp)>,
    newest: Option<(Round, Stamp)>,
    /// The last stamp that the lane said it pushed here.
    last: Stamp,
    /// The lane has named this segment under its present assignment. Only then do closes that do not name it say
    /// "nothing new here": before, they may come from a lane that takes the segment to be elsewhere.
    known: bool,
}

impl Closed {
    //= protocol.md T2
    fn reach(&mut self, clock: Stamp) {
        for close in [self.oldest, self.newest].into_iter().flatten() {
            if clock >= close.1 {
                self.rounds = self.rounds.max(close.0.saturating_add(1));
            }
        }
        self.oldest = self.oldest.filter(|close| clock < close.1);
        self.newest = self.newest.filter(|close| clock < close.1);
        if self.oldest.is_none() {
            self.oldest = self.newest.take();
        }
    }

    fn hear(&mut self, round: Round, clock: Stamp) {
        if round < self.rounds {
            return;
        }
        let close = Some((round, self.last));
        if self.oldest.is_none() {
            self.oldest = close;
        } else if self.newest.is_none_or(|(newest, _)| newest < round) {
            self.newest = close;
        }
        self.reach(clock);
    }
}

/// One lane on one segment.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct LaneState {
    /// What is in the values, or counted out by a round that had been applied.
    pub(super) applied: Clock,
    /// What has been admitted: ahead of `applied` only while a round is open (protocol.md T10, `received`).
    pub(super) received: Clock,
    closed: Closed,
    /// Rounds that the lane's pushes show to be closed here: a push of round r names its predecessor, so once that is
    /// admitted no push of a round below r is missing. A new owner may hear of nothing else: the newest close may
    /// name a push that is too far ahead to be admitted before older rounds are applied.
    implied: Round,
    /// Where the lane was last heard from: whom to answer.
    pub(super) link: Option<LinkId>,
    /// An acknowledgement is owed and queued.
    pub(super) ack_owed: bool,
    /// The gap that was told, and the stamp that showed it: told once per burst of frames behind it.
    pub(super) gap_told: Option<(Stamp, Stamp)>,
}

impl LaneState {
    /// Rounds that the lane is known to have closed here.
    pub(super) fn rounds(&self) -> Round {
        self.closed.rounds.max(self.implied)
    }

    /// The lane speaks on this connection from now on; what is owed on another is owed here. One incarnation has one connection
    /// after the other, so a late frame of an older one does not take it back: its peer does not read there any more.
    pub(super) fn heard_on(&mut self, link: LinkId) {
        if self.link.is_none_or(|newest| newest < link) {
            self.link = Some(link);
            self.ack_owed = false;
            self.gap_told = None;
        }
    }
}

/// A contribution to an open round.
#[derive(Debug)]
pub(super) struct Contribution<P> {
    pub(super) lane: Lane,
    pub(super) stamp: Stamp,
    pub(super) values: KeyRange,
    pub(super) bytes: core::ops::Range<u32>,
    pub(super) payload: P,
    pub(super) arguments: Arguments,
    /// Whose credit it holds, and how much.
    pub(super) link: LinkId,
    pub(super) credit: u32,
}

/// What an admitted push frame comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Nothing to apply; the clock covers it, perhaps only now.
    Covered,
    /// A predecessor is missing; the lane's clock is this.
    Gap(Stamp),
    /// Apply these keys now.
    Apply(KeyRange),
    /// Keep these keys for their round.
    Contribute(KeyRange),
    /// The round is too far ahead.
    Busy,
}

/// A segment that this shard owns.
#[derive(Debug)]
pub(super) struct Segment<P> {
    pub(super) id: SegmentId,
    pub(super) range: KeyRange,
    pub(super) assignment: Assignment,
    pub(super) value_bytes: u32,
    pub(super) aggregation: Aggregation,
    pub(super) lanes: Slab<Lane, LaneState>,
    /// The first round that has not been applied (aggregated tables).
    pub(super) next_round: Round,
    /// Contributions to `next_round`, `next_round + 1`, …, each in the order of arrival.
    pub(super) open: VecDeque<Vec<Contribution<P>>>,
    /// The fewest rounds any member has closed, and how many members stand there; `None` until counted (again).
    lowest: Option<(Round, usize)>,
    /// Pulls that wait for rounds, by the rounds needed.
    pub(super) parked: BTreeMap<Round, Vec<ParkedPull>>,
    /// Pulls that wait for stamps (and perhaps for rounds as well).
    pub(super) parked_after: Vec<ParkedPull>,
}

impl<P> Segment<P> {
    pub(super) fn new(id: SegmentId, spec: &TableSpec, assignment: Assignment) -> Self {
        Self {
            id,
            range: spec.segment_range(id.index()),
            assignment,
            value_bytes: spec.value_bytes(),
            aggregation: spec.aggregation,
            lanes: Slab::default(),
            next_round: 0,
            open: VecDeque::new(),
            lowest: None,
            parked: BTreeMap::new(),
            parked_after: Vec::new(),
        }
    }

    /// Makes the lane's state ready for this incarnation. A higher one than before adopts the lane on the whole segment,
    /// and what the lower one contributed to open rounds comes out: the new one contributes again in its place. `None`
    /// when nothing was adopted.
    pub(super) fn adopt(&mut self, lane: Lane, incarnation: Incarnation) -> Option<Vec<Contribution<P>>> {
        let floor = incarnation.floor();
        let fresh = || LaneState {
            applied: Clock::at(floor),
            received: Clock::at(floor),
            closed: Closed::default(),
            implied: 0,
            link: None,
            ack_owed: false,
            gap_told: None,
        };
        let state = self.lanes.get_or_insert_with(lane, fresh);
        //= protocol.md P10
        if state.received.lowest().incarnation() >= incarnation {
            return None;
        }
        // Owed acknowledgements are queued by lane and segment, so that flag stays true to the queue.
        *state = LaneState { ack_owed: state.ack_owed, ..fresh() };
        self.lowest = None;
        //= protocol.md T10 (replace)
        let mut replaced = Vec::new();
        for round in &mut self.open {
            replaced.extend(round.extract_if(.., |contribution| contribution.lane == lane));
        }
        Some(replaced)
    }

    /// The incarnation of the lane that this segment has heard of last.
    pub(super) fn incarnation(&self, lane: Lane) -> Option<Incarnation> {
        self.lanes.get(lane).map(|state| state.received.lowest().incarnation())
    }

    /// Judges an admitted frame's tile and moves the clocks; the caller does what the verdict says in the same step.
    /// The lane must be there (`adopt`).
    pub(super) fn judge(&mut self, header: &Header, rounds_open_max: Round) -> Verdict {
        let (range, next_round) = (self.range, self.next_round);
        let Some(state) = self.lanes.get_mut(header.lane) else { return Verdict::Busy };
        let tile = header.tile(range);
        let admission = state.received.judge(range, tile, header.stamp, header.previous);
        if admission != Admission::Gap {
            state.implied = state.implied.max(header.round);
        }
        let open = match admission {
            Admission::Duplicate if cfg!(planted = "no_duplicate_check") => tile,
            Admission::Duplicate => return Verdict::Covered,
            Admission::Gap => return Verdict::Gap(state.received.lowest()),
            Admission::Open(open) => open,
        };
        let advance = |clock: &mut Clock| {
            if header.stamp > clock.lowest() {
                clock.advance(range, open, header.stamp);
            }
        };
        match self.aggregation {
            Aggregation::None => {
                advance(&mut state.received);
                state.applied = state.received;
                Verdict::Apply(open)
            }
            //= protocol.md T10
            // A lane taken over does rounds again that had been applied with its first contribution: they count once.
            Aggregation::Round if header.round < next_round => {
                advance(&mut state.received);
                state.applied = state.received;
                Verdict::Covered
            }
            Aggregation::Round if header.round - next_round >= rounds_open_max => Verdict::Busy,
            Aggregation::Round => {
                advance(&mut state.received);
                Verdict::Contribute(open)
            }
        }
    }

    /// Keeps a contribution. `round` was judged to be open.
    pub(super) fn contribute(&mut self, round: Round, contribution: Contribution<P>) {
        let at = (round - self.next_round) as usize;
        while self.open.len() <= at {
            self.open.push_back(Vec::new());
        }
        self.open[at].push(contribution);
    }

    //= protocol.md T1
    /// A lane has closed `round`. `named` is the assignment under which it knows this segment and its last push here, if the
    /// close names it. The lane must be there (`adopt`).
    pub(super) fn close(
        &mut self,
        view: &View,
        lane: Lane,
        round: Round,
        named: Option<(Assignment, Stamp)>,
    ) {
        let before = self.member_rounds(view, lane);
        let Some(state) = self.lanes.get_mut(lane) else { return };
        if named.is_none() && !state.closed.known {
            return;
        }
        if let Some((assignment, last)) = named {
            state.closed.last = state.closed.last.max(last);
            // A name under an older assignment is a late word of an earlier stay here: true, and no more than that.
            state.closed.known |= assignment == self.assignment;
        }
        state.closed.hear(round, state.received.lowest());
        self.count(view, lane, before);
    }

    /// Whether a frame of the lane that was just judged sets nothing free: its rounds are as before, no close waits for its
    /// clock, and nobody waits for either. So it is with nearly all.
    pub(super) fn is_calm(&self, lane: Lane, rounds_before: Round) -> bool {
        self.aggregation == Aggregation::None
            && self.parked.is_empty()
            && self.parked_after.is_empty()
            && self
                .lanes
                .get(lane)
                .is_some_and(|state| state.closed.oldest.is_none() && state.rounds() == rounds_before)
    }

    /// A frame of the lane, which is a member's, was judged: closes that waited for its clock may be reached.
    pub(super) fn settle(&mut self, view: &View, lane: Lane, rounds_before: Round) {
        let before = view.member(lane).map(|member| member.first_round.max(rounds_before));
        if let Some(state) = self.lanes.get_mut(lane) {
            state.closed.reach(state.received.lowest());
        }
        self.count(view, lane, before);
    }

    /// The view has changed: the lowest member is counted anew.
    pub(super) fn recount(&mut self) {
        self.lowest = None;
    }

    //= protocol.md T6
    /// Keeps the minimum by counting the members at it: constant time but when the last of them moves on.
    fn count(&mut self, view: &View, lane: Lane, before: Option<Round>) {
        if let (Some((lowest, members)), Some(before)) = (self.lowest, before)
            && before == lowest
            && self.member_rounds(view, lane) != Some(before)
        {
            self.lowest = (members > 1).then_some((lowest, members - 1));
        }
    }

    /// Rounds that a member of the view has closed here, as far as they are admitted.
    pub(super) fn member_rounds(&self, view: &View, lane: Lane) -> Option<Round> {
        let member = view.member(lane)?;
        let state =
            self.lanes.get(lane).filter(|state| state.received.lowest().incarnation() == member.incarnation);
        Some(state.map_or(0, LaneState::rounds).max(member.first_round))
    }

    /// Rounds closed on this segment by the member that has closed the fewest; what is admitted counts.
    fn lowest_received(&mut self, view: &View) -> Round {
        if let Some((lowest, _)) = self.lowest {
            return lowest;
        }
        let rounds = || view.members.iter().filter_map(|member| self.member_rounds(view, member.lane));
        let lowest = rounds().min().unwrap_or(0);
        let members = rounds().filter(|&rounds| rounds == lowest).count();
        self.lowest = Some((lowest, members));
        lowest
    }

    /// The next round to be applied, when every member has closed it: its contributions in the order of their lanes.
    /// An aggregated table's rounds are applied in order, so call this until it says `None`.
    pub(super) fn complete_round(&mut self, view: &View) -> Option<(Round, Vec<Contribution<P>>)> {
        if self.aggregation == Aggregation::None || self.lowest_received(view) <= self.next_round {
            return None;
        }
        let round = self.next_round;
        self.next_round += 1;
        let mut contributions = self.open.pop_front().unwrap_or_default();
        // Stable: a lane's own pushes keep their order.
        contributions.sort_by_key(|contribution| contribution.lane);
        for contribution in &contributions {
            let state = self.lanes.get_mut(contribution.lane);
            if let Some(state) = state.filter(|state| state.applied.lowest() < contribution.stamp) {
                state.applied = Clock::at(contribution.stamp);
            }
        }
        Some((round, contributions))
    }

    /// Rounds that every member of the view has closed and that are in the values (protocol.md T3).
    pub(super) fn rounds_closed(&mut self, view: &View) -> Round {
        match self.aggregation {
            Aggregation::None => self.lowest_received(view),
            Aggregation::Round => self.next_round,
        }
    }

    /// Whether a pull that needs this may be answered (protocol.md T3).
    pub(super) fn admits(&mut self, view: &View, rounds_needed: Round, after: &[(Lane, Stamp)]) -> bool {
        let needed = if cfg!(planted = "pull_a_round_early") {
            rounds_needed.saturating_sub(1)
        } else {
            rounds_needed
        };
        let rounds = needed == 0 || (view.number > 0 && self.rounds_closed(view) >= needed);
        rounds && after.iter().all(|(lane, stamp)| self.covers(view, *lane, *stamp))
    }

    /// Whether a task's effect is in the values. A task of a fenced incarnation can have no more effect than it has.
    fn covers(&self, view: &View, lane: Lane, stamp: Stamp) -> bool {
        let fenced = view.member(lane).is_some_and(|member| member.incarnation > stamp.incarnation());
        fenced || self.lanes.get(lane).is_some_and(|state| state.applied.lowest() >= stamp)
    }

    /// Parks a pull.
    pub(super) fn park(&mut self, pull: ParkedPull) {
        if pull.after.is_empty() {
            self.parked.entry(pull.rounds_needed).or_default().push(pull);
        } else {
            self.parked_after.push(pull);
        }
    }

    /// Takes out the pulls that may be answered now, those that need the oldest rounds first.
    pub(super) fn wake(&mut self, view: &View, woken: &mut Vec<ParkedPull>) {
        if !self.parked.is_empty() {
            let reached =
                self.rounds_closed(view).saturating_add(u32::from(cfg!(planted = "pull_a_round_early")));
            while let Some(entry) = self.parked.first_entry() {
                if *entry.key() > reached || view.number == 0 {
                    break;
                }
                woken.append(&mut entry.remove());
            }
        }
        if self.parked_after.is_empty() {
            return;
        }
        let reached = self.rounds_closed(view);
        let mut waiting = core::mem::take(&mut self.parked_after);
        let ready = |pull: &mut ParkedPull| {
            (pull.rounds_needed == 0 || (view.number > 0 && reached >= pull.rounds_needed))
                && pull.after.iter().all(|(lane, stamp)| self.covers(view, *lane, *stamp))
        };
        woken.extend(waiting.extract_if(.., ready));
        self.parked_after = waiting;
    }

    /// Takes out the parked pulls that `gone` names: of a lost link, or expired, or all.
    pub(super) fn unpark(&mut self, mut gone: impl FnMut(&ParkedPull) -> bool) -> Vec<ParkedPull> {
        let mut out: Vec<ParkedPull> = Vec::new();
        for list in self.parked.values_mut() {
            out.extend(list.extract_if(.., |pull| gone(pull)));
        }
        self.parked.retain(|_, list| !list.is_empty());
        out.extend(self.parked_after.extract_if(.., |pull| gone(pull)));
        out
    }

    /// What the segment waits for, in a line.
    pub(super) fn describe(&self, view: &View) -> String {
        let mut text =
            format!("round {}, {} open, {} parked", self.next_round, self.open.len(), self.parked_count());
        for member in &view.members {
            let rounds = self.member_rounds(view, member.lane);
            text += &format!("; {} from {} closed {rounds:?}", member.lane, member.first_round);
            if let Some(state) = self.lanes.get(member.lane) {
                let (received, applied) = (state.received.lowest(), state.applied.lowest());
                text += &format!(" received {received:?} applied {applied:?} waits {:?}", state.closed);
            }
        }
        text
    }

    /// How many pulls are parked.
    pub(super) fn parked_count(&self) -> usize {
        self.parked.values().map(Vec::len).sum::<usize>() + self.parked_after.len()
    }
}
