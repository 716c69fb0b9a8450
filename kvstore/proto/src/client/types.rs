//! What a client is told and what it does: commands, inputs, outputs, errors, counts.
//! Knows shapes only. The vocabulary between the client core and its shell.
//! Source: protocol.md §10 (tasks), §12 (messages).

use crate::client::Grant;
use crate::id::{Lane, LinkId, ShardId, TableId};
use crate::key::KeyRange;
use crate::map::ClusterMap;
use crate::time::{Incarnation, Nanos, Round, Stamp};
use crate::view::{Member, View};
use crate::wire::{Arguments, Extension, Header, Refusal};
use alloc::vec::Vec;

/// A task of this client (protocol.md K1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TaskId {
    /// Its lane.
    pub lane: Lane,
    /// Its stamp.
    pub stamp: Stamp,
}

/// How a task ended, when it did not succeed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TaskError {
    /// Another process holds the lane now.
    #[error("{0} was given to another worker: this one was silent for too long or was replaced")]
    Fenced(Lane),
    /// A server refused it for good.
    #[error("a server refused it: {0}")]
    Refused(Refusal),
    /// The caller gave up.
    #[error("cancelled")]
    Cancelled,
}

/// Why a task is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IssueError {
    /// A bound is reached; it falls when tasks end. Wait and try again.
    #[error("the client has as many open tasks or unacknowledged bytes as it may")]
    Full,
    /// The lane is not this client's.
    #[error("{0} is not held by this worker")]
    NoLane(Lane),
    /// No such table.
    #[error("{0} is not in the map")]
    NoTable(TableId),
    /// Keys outside the table.
    #[error("keys {range:?} are not within the table's 0..{len}")]
    Range {
        /// What was asked for.
        range: KeyRange,
        /// The table's length.
        len: u64,
    },
    /// More arguments than a frame carries.
    #[error("an update function takes at most {} arguments", Arguments::MAX)]
    TooManyArguments,
    /// More bytes than could ever be under way.
    #[error("{bytes} bytes at once exceed the limit of {max}; go in parts, or raise the limit")]
    TooLarge {
        /// What was asked for.
        bytes: u64,
        /// The limit.
        max: u64,
    },
}

/// A push to be issued.
#[derive(Debug)]
pub struct Push<P> {
    /// Of which lane.
    pub lane: Lane,
    /// To which table.
    pub table: TableId,
    /// Which keys.
    pub range: KeyRange,
    /// Their values: `range.len() * table.value_bytes()` bytes.
    pub payload: P,
    /// Arguments of the update function.
    pub arguments: Arguments,
}

/// A pull to be issued.
#[derive(Clone, Copy, Debug)]
pub struct Pull {
    /// In the name of which lane.
    pub lane: Lane,
    /// From which table.
    pub table: TableId,
    /// Which keys.
    pub range: KeyRange,
    /// Rounds that every member must have closed (protocol.md T3): the lane's round less tau, or more.
    pub rounds_needed: Round,
    /// Whether the lane's own pushes to these keys must be in the values.
    pub own_pushes: bool,
    /// How long servers may park it, in milliseconds.
    pub patience_ms: u32,
}

/// What happens to a client.
#[derive(Debug)]
pub enum Input<'a, P> {
    /// A dial has succeeded.
    Linked {
        /// To which shard.
        shard: ShardId,
        /// The shell's name for the connection.
        link: LinkId,
        /// What the shard has granted to it.
        grant: Grant,
    },
    /// A dial has failed.
    DialFailed {
        /// To which shard.
        shard: ShardId,
    },
    /// A connection is gone; the last input that names it.
    Lost {
        /// Which.
        link: LinkId,
    },
    /// A reply with values has arrived, its head verified.
    Reply {
        /// On which connection.
        link: LinkId,
        /// Its head.
        header: Header,
        /// What the head carries besides.
        extension: Extension,
        /// Its body: `header.value_bytes` of values.
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
        /// How many.
        count: u16,
    },
    /// The manager's map.
    Map(ClusterMap),
    /// The scheduler's view.
    View(View),
    /// The scheduler hands this client lanes to run.
    Run(Vec<Member>),
    /// Nothing but time has passed.
    Tick,
}

/// What a client does.
#[derive(Debug)]
pub enum Output<P> {
    /// Open a connection to a shard; answer with `Linked` or `DialFailed`.
    Dial {
        /// To which.
        shard: ShardId,
    },
    /// Send the frame in [`ClientCore::frame`](super::ClientCore::frame). One send of the connection's room is used until
    /// `Input::Sent`.
    Send {
        /// On which connection.
        link: LinkId,
    },
    /// Values have arrived for a task: of `range`, in `payload`.
    Deliver {
        /// Whose.
        task: TaskId,
        /// Which keys.
        range: KeyRange,
        /// Their values.
        payload: P,
    },
    /// A task has ended. Once per task, but of a push that was [released](super::ClientCore::release).
    Complete {
        /// Which.
        task: TaskId,
        /// How.
        outcome: Result<(), TaskError>,
    },
    /// A lane was given to another process. All its tasks have ended.
    Fenced {
        /// Which.
        lane: Lane,
        /// As which it was held here; the same lane may have come back as a higher one.
        incarnation: Incarnation,
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

/// What a client sends. Built in place, as it is too large to be handed on for every push.
#[derive(Debug)]
pub struct Frame<P> {
    /// Its head.
    pub header: Header,
    /// What the head carries besides.
    pub extension: Extension,
    /// Its body. The shell takes it out.
    pub body: SendBody<P>,
}

/// The body of a frame that a client sends.
#[derive(Clone, Default, Debug)]
pub enum SendBody<P> {
    /// None.
    #[default]
    Empty,
    /// The bytes in [`ClientCore::control`](super::ClientCore::control), valid until the next `poll_output`.
    Control,
    /// Several small pushes: the bytes in `control`, then those of each of
    /// [`ClientCore::gathered`](super::ClientCore::gathered), which the shell takes out.
    Gathered,
    /// These bytes of a push's payload.
    Values {
        /// The push's payload.
        payload: P,
        /// Which of its bytes.
        bytes: core::ops::Range<usize>,
    },
}

/// What a client has counted since its start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    /// Push frames sent, repeats included; of a frame of several pushes each counts.
    pub push_frames: u64,
    /// Pulls sent, repeats included.
    pub pull_frames: u64,
    /// Connections that came up after one to the same shard was lost.
    pub reconnects: u64,
    /// Push frames of tasks of which something had been sent before.
    pub repeats: u64,
    /// Times a segment was found elsewhere.
    pub reroutes: u64,
    /// Bytes of values sent in pushes.
    pub bytes_pushed: u64,
    /// Bytes of values received by pulls.
    pub bytes_pulled: u64,
}
