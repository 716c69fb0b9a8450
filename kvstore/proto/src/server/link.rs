//! What a shard owes one connection: answers, acknowledgements, replies; and what the connection may still send.
//! Knows counts and subjects; builds no frame. Held by the server core, one per connection.
//! Source: protocol.md §13, B1, B3, B5.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::id::{Lane, SegmentId};
use crate::key::KeyRange;
use crate::limits::Limits;
use crate::server::segment::ParkedPull;
use crate::time::Stamp;
use crate::wire::{Header, Kind, Refusal};

/// A refusal or a question that is owed. For pushes the newest per (lane, segment) is kept, as they are states and not
/// events (B3); a pull has one of its own, bounded by the pulls granted.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Answer {
    pub(super) kind: Kind,
    pub(super) refusal: Option<Refusal>,
    pub(super) lane: Lane,
    pub(super) segment: SegmentId,
    pub(super) stamp: Stamp,
    /// The pull's range; empty when a push is answered.
    pub(super) range: KeyRange,
}

/// One connection.
#[derive(Debug)]
pub(super) struct ServerLink {
    /// Sends that may be posted now.
    pub(super) room: u16,
    /// Pulls held: parked, admitted, or being sent.
    pub(super) pulls_held: u16,
    /// Bytes of each reply whose send has not ended, in the order in which they end, and their sum.
    replies_out: VecDeque<u32>,
    reply_bytes_out: u64,
    /// Bytes of push payload held.
    pub(super) push_bytes_held: u64,
    /// Bytes of push payload let go so far, and how much of that the peer was told.
    pub(super) released: u64,
    pub(super) released_told: u64,
    /// The newest view that the peer has shown; 0 for none.
    pub(super) view_seen: u32,
    /// Whether the core has this connection in its list of those with something to say.
    pub(super) listed: bool,
    /// Whether it is on the list of those that wait for a reply slice.
    pub(super) waits: bool,
    pub(super) answers: VecDeque<Answer>,
    pub(super) acks: Vec<(Lane, SegmentId)>,
    pub(super) resumes: VecDeque<(Lane, Vec<SegmentId>)>,
    /// Segments whose row the peer should hear of, because they came or went.
    pub(super) rows: Vec<SegmentId>,
    /// Pulls that are admitted and wait for a free reply slice.
    pub(super) ready: VecDeque<ParkedPull>,
}

impl ServerLink {
    pub(super) fn new(room: u16) -> Self {
        Self {
            room,
            pulls_held: 0,
            replies_out: VecDeque::new(),
            reply_bytes_out: 0,
            push_bytes_held: 0,
            released: 0,
            released_told: 0,
            view_seen: 0,
            listed: false,
            waits: false,
            answers: VecDeque::new(),
            acks: Vec::new(),
            resumes: VecDeque::new(),
            rows: Vec::new(),
            ready: VecDeque::new(),
        }
    }

    /// Its state in a line.
    pub(super) fn describe(&self) -> String {
        format!(
            "room {}, {} pulls held, {} replies out, {} bytes held, {} of {} bytes told; owes {} answers, {} acknowledgements, \
             {} resumes, {} rows, {} replies; listed {}, waits {}",
            self.room,
            self.pulls_held,
            self.replies_out.len(),
            self.push_bytes_held,
            self.released_told,
            self.released,
            self.answers.len(),
            self.acks.len(),
            self.resumes.len(),
            self.rows.len(),
            self.ready.len(),
            self.listed,
            self.waits
        )
    }

    //= protocol.md B5
    /// Whether a reply of so many bytes may be gathered beside those that are out.
    pub(super) fn may_reply(&self, bytes: u32, limits: &Limits) -> bool {
        let within = self.reply_bytes_out + u64::from(bytes) <= u64::from(limits.reply_bytes_per_link);
        self.replies_out.len() < usize::from(limits.replies_per_link)
            && (within || self.replies_out.is_empty())
    }

    pub(super) fn replied(&mut self, bytes: u32) {
        self.replies_out.push_back(bytes);
        self.reply_bytes_out += u64::from(bytes);
    }

    /// The oldest reply's send has ended.
    pub(super) fn reply_ended(&mut self) {
        self.reply_bytes_out -= self.replies_out.pop_front().map_or(0, u64::from);
    }

    /// Owes an answer to a push; replaces an older one to the same lane and segment.
    pub(super) fn answer_push(
        &mut self,
        kind: Kind,
        refusal: Option<Refusal>,
        header: &Header,
        clock: Stamp,
    ) {
        let answer = Answer {
            kind,
            refusal,
            lane: header.lane,
            segment: header.segment,
            stamp: clock,
            range: KeyRange::default(),
        };
        let same = |held: &&mut Answer| {
            held.lane == answer.lane && held.segment == answer.segment && held.range.is_empty()
        };
        match self.answers.iter_mut().find(same) {
            Some(held) => *held = answer,
            None => self.answers.push_back(answer),
        }
    }

    /// Owes an answer to a pull that will not be served here and now.
    pub(super) fn answer_pull(&mut self, kind: Kind, refusal: Option<Refusal>, header: &Header) {
        self.answers.push_back(Answer {
            kind,
            refusal,
            lane: header.lane,
            segment: header.segment,
            stamp: header.stamp,
            range: header.range,
        });
    }

    /// The peer asked what has arrived of these segments; asked twice before it is told, it is told once.
    pub(super) fn owe_resume(&mut self, lane: Lane, asked: Vec<SegmentId>) {
        match self.resumes.iter_mut().find(|(of, _)| *of == lane) {
            Some((_, owed)) => {
                owed.extend(asked);
                owed.sort_unstable();
                owed.dedup();
            }
            None => self.resumes.push_back((lane, asked)),
        }
    }

    /// The peer is to hear of a segment's row, whatever it is by then.
    pub(super) fn owe_row(&mut self, segment: SegmentId) {
        if !self.rows.contains(&segment) {
            self.rows.push(segment);
        }
    }

    /// Push payload is let go: its credit goes back with the next frame.
    pub(super) fn release(&mut self, bytes: u32) {
        self.push_bytes_held = self.push_bytes_held.saturating_sub(u64::from(bytes));
        self.released += u64::from(bytes);
    }

    /// Whether a frame must be sent for the credit's sake alone.
    pub(super) fn credit_due(&self, granted: u64) -> bool {
        self.released - self.released_told >= granted / 4
    }
}
