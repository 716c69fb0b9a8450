//! What a shard is told and what it does: inputs, outputs, images of segments, counts.
//! Knows shapes only. The vocabulary between the server core and its shell.
//! Source: protocol.md §12 (messages).

use alloc::vec::Vec;

use crate::clock::Clock;
use crate::id::{Lane, LinkId, SegmentId};
use crate::key::KeyRange;
use crate::map::ClusterMap;
use crate::time::{Nanos, Round, Stamp};
use crate::view::View;
use crate::wire::{Arguments, Extension, Header};

/// What happens to a shard.
#[derive(Debug)]
pub enum Input<'a, P> {
    /// A connection is there.
    Linked {
        /// The shell's name for it.
        link: LinkId,
    },
    /// A connection is gone; the last input that names it.
    Lost {
        /// Which.
        link: LinkId,
    },
    /// A push frame has arrived whole, its head verified.
    Push {
        /// On which connection.
        link: LinkId,
        /// Its head.
        header: Header,
        /// What the head carries besides.
        extension: Extension,
        /// Its body: `header.value_bytes` of values.
        payload: P,
    },
    /// A frame of several pushes has arrived whole, its head verified.
    Pushes {
        /// On which connection.
        link: LinkId,
        /// Its head.
        header: Header,
        /// The first `header.key_bytes` of its body.
        keys: &'a [u8],
        /// Its body.
        payload: P,
    },
    /// Any other frame has arrived whole, its head verified.
    Control {
        /// On which connection.
        link: LinkId,
        /// Its head.
        header: Header,
        /// What the head carries besides.
        extension: Extension,
        /// Its body.
        body: &'a [u8],
    },
    /// Sends have completed.
    Sent {
        /// On which connection.
        link: LinkId,
        /// Whether they were replies ([`SendBody::Gather`]), so that as many reply slices are free again.
        reply: bool,
        /// How many.
        count: u16,
    },
    /// The manager's map.
    Map(ClusterMap),
    /// The scheduler's view.
    View(View),
    /// Nothing but time has passed.
    Tick,
}

/// What a shard does.
#[derive(Debug)]
pub enum Output<P> {
    /// Update keys of a segment now. The clock covers them from here on.
    Apply {
        /// Which segment.
        segment: SegmentId,
        /// Whose push, and which.
        lane: Lane,
        /// Its stamp.
        stamp: Stamp,
        /// The keys to update.
        values: KeyRange,
        /// The part of the payload that holds their values, in bytes.
        bytes: core::ops::Range<u32>,
        /// The frame's body.
        payload: P,
        /// The update function's arguments.
        arguments: Arguments,
    },
    /// Add a contribution to the segment's round. `Finish` follows in the same drain.
    Contribute {
        /// Which segment.
        segment: SegmentId,
        /// Whose push, and which.
        lane: Lane,
        /// Its stamp.
        stamp: Stamp,
        /// The keys contributed to.
        values: KeyRange,
        /// The part of the payload that holds their values, in bytes.
        bytes: core::ops::Range<u32>,
        /// The frame's body.
        payload: P,
    },
    /// Apply the sum of the contributions since the last `Finish`, once.
    Finish {
        /// Which segment.
        segment: SegmentId,
        /// Which round.
        round: Round,
        /// The update function's arguments: those of the round's first contribution.
        arguments: Arguments,
    },
    /// Send the frame in [`ServerCore::frame`](super::ServerCore::frame). One send of the connection's room is used until
    /// `Input::Sent`.
    Send {
        /// On which connection.
        link: LinkId,
    },
    /// End a connection: the peer broke the protocol.
    Disconnect {
        /// Which.
        link: LinkId,
        /// What it did, for the operator.
        why: &'static str,
    },
    /// Nothing more to do until an input, or until this time.
    Timeout(Option<Nanos>),
}

/// What a shard sends. Built in place, as it is too large to be handed on with every effect.
#[derive(Debug)]
pub struct Frame {
    /// Its head.
    pub header: Header,
    /// What the head carries besides.
    pub extension: Extension,
    /// Its body.
    pub body: SendBody,
}

/// The body of a frame that a shard sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SendBody {
    /// None.
    Empty,
    /// The bytes in [`ServerCore::control`](super::ServerCore::control), valid until the next `poll_output`.
    Control,
    /// The values of these keys as they are now, gathered by the shell in the same step. Makes the send a reply.
    Gather {
        /// Which segment.
        segment: SegmentId,
        /// Which keys.
        range: KeyRange,
    },
}

/// A segment on its way to another shard, without its values: clocks and rounds, in one cut with them.
#[derive(Clone, PartialEq, Debug)]
pub struct SegmentImage {
    /// Which segment.
    pub segment: SegmentId,
    /// Clocks of what is applied, by lane. What is admitted and not applied was not acknowledged: it comes again.
    pub clocks: Vec<(Lane, Clock)>,
    /// The first round not applied (aggregated tables).
    pub next_round: Round,
}

/// What a shard has counted since its start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    /// Push frames applied or contributed.
    pub pushes: u64,
    /// Pushes that came in one frame with others, whatever became of them.
    pub gathered: u64,
    /// Push frames that had been applied before.
    pub duplicates: u64,
    /// Push frames whose predecessor was missing.
    pub gaps: u64,
    /// Frames for a segment that is elsewhere.
    pub stale: u64,
    /// Frames of a fenced incarnation.
    pub fenced: u64,
    /// Requests put off: a bound was reached.
    pub busy: u64,
    /// Pulls answered with values.
    pub pulls: u64,
    /// Pulls that had to wait.
    pub parked: u64,
    /// Rounds applied.
    pub rounds: u64,
    /// Frames refused for good, and connections ended for what they sent.
    pub violations: u64,
}
