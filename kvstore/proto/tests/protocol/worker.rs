//! A client core and somebody who answers it as a shard would, or as none would.

use std::rc::Rc;

use rangefold_proto::client::{
    ClientCore, Grant, Input, IssueError, Output, Pull, Push, SendBody, TaskError, TaskId,
};
use rangefold_proto::wire::{self, Arguments, Extension, Header, Kind};
use rangefold_proto::{
    Key, KeyRange, Lane, Limits, LinkId, Nanos, Round, Row, SegmentId, ShardId, Stamp, TableId, TableSpec,
    View,
};

use crate::shard::{JOB, id, map_of};

/// What a worker did.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Effect {
    Dialed(ShardId),
    Sent(Sent),
    Delivered(TaskId, KeyRange),
    Ended(TaskId, Result<(), TaskError>),
    Fenced(Lane),
    Disconnected(LinkId),
}

/// A frame that it sent.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Sent {
    pub(crate) link: LinkId,
    pub(crate) header: Header,
    pub(crate) extension: Extension,
    pub(crate) body: Vec<u8>,
}

/// A worker under test: it has a map of tables on server 0, lanes, and the connections it is given.
pub(crate) struct Worker {
    pub(crate) core: ClientCore<Rc<[u8]>>,
    pub(crate) now: Nanos,
    pub(crate) sends_complete: bool,
    pub(crate) timeout: Option<Nanos>,
    pub(crate) limits: Limits,
    /// Frames sent. One of several pushes is one; its pushes are effects of their own.
    pub(crate) frames: u32,
}

impl Worker {
    /// A worker that holds these lanes of the view.
    pub(crate) fn new(limits: Limits, tables: &[TableSpec], view: &View, lanes: &[u32]) -> Self {
        let core = ClientCore::new(JOB, limits);
        let mut worker = Self { core, now: Nanos(0), sends_complete: true, timeout: None, limits, frames: 0 };
        worker.tell(Input::Map(map_of(tables, id(0))));
        worker.tell(Input::View(view.clone()));
        worker.tell(Input::Run(lanes.iter().map(|&lane| *view.member(Lane(lane)).unwrap()).collect()));
        worker
    }

    pub(crate) fn tell(&mut self, input: Input<'_, Rc<[u8]>>) -> Vec<Effect> {
        self.core.handle_input(self.now, input);
        self.drain()
    }

    pub(crate) fn tick(&mut self, now_ns: u64) -> Vec<Effect> {
        self.now = Nanos(now_ns);
        self.tell(Input::Tick)
    }

    /// A connection to a server's shard is up.
    pub(crate) fn linked(&mut self, server: u32, link: u64) -> Vec<Effect> {
        let grant = Grant { push_bytes: self.limits.push_bytes_per_link, pulls: self.limits.pulls_per_link };
        self.tell(Input::Linked { shard: id(server), link: LinkId(link), grant })
    }

    pub(crate) fn hear(&mut self, link: u64, header: Header, body: &[u8]) -> Vec<Effect> {
        self.hear_extended(link, header, Extension::default(), body)
    }

    pub(crate) fn hear_extended(
        &mut self,
        link: u64,
        header: Header,
        extension: Extension,
        body: &[u8],
    ) -> Vec<Effect> {
        let header = Header { value_bytes: u32::try_from(body.len()).unwrap(), ..header };
        self.tell(Input::Control { link: LinkId(link), header, extension, body })
    }

    /// An acknowledgement of a lane's pushes to a segment.
    pub(crate) fn ack(&mut self, link: u64, lane: u32, segment: SegmentId, stamp: Stamp) -> Vec<Effect> {
        let mut body = Vec::new();
        wire::put_pair(&mut body, segment, stamp);
        self.hear(link, Header { lane: Lane(lane), ..Header::of(Kind::Ack, JOB) }, &body)
    }

    /// A frame with a row.
    pub(crate) fn row(&mut self, link: u64, header: Header, row: Row) -> Vec<Effect> {
        let mut body = Vec::new();
        wire::put_row(&mut body, &row, rangefold_proto::MapEpoch(9));
        self.hear(link, header, &body)
    }

    /// The values of a pull.
    pub(crate) fn reply(&mut self, link: u64, pull: &Header) -> Vec<Effect> {
        let value_bytes = u32::try_from(pull.range.len() * 8).unwrap();
        let header = Header { kind: Kind::PullReply, value_bytes, ..*pull };
        let payload = vec![0; value_bytes as usize].into();
        self.tell(Input::Reply { link: LinkId(link), header, extension: Extension::default(), payload })
    }

    pub(crate) fn try_push(&mut self, lane: u32, range: core::ops::Range<Key>) -> Result<TaskId, IssueError> {
        let payload = crate::shard::numbered(usize::try_from((range.end - range.start) * 8).unwrap()).into();
        let arguments = Arguments::default();
        self.core.push(Push { lane: Lane(lane), table: TableId(0), range: range.into(), payload, arguments })
    }

    pub(crate) fn push(&mut self, lane: u32, range: core::ops::Range<Key>) -> (TaskId, Vec<Effect>) {
        let task = self.try_push(lane, range).unwrap();
        (task, self.drain())
    }

    pub(crate) fn pull(
        &mut self,
        lane: u32,
        range: core::ops::Range<Key>,
        rounds: Round,
    ) -> (TaskId, Vec<Effect>) {
        let pull = Pull {
            lane: Lane(lane),
            table: TableId(0),
            range: range.into(),
            rounds_needed: rounds,
            own_pushes: true,
            patience_ms: 1000,
        };
        let task = self.core.pull(pull).unwrap();
        (task, self.drain())
    }

    pub(crate) fn advance(&mut self, lane: u32) -> Vec<Effect> {
        self.core.advance(Lane(lane)).unwrap();
        self.drain()
    }

    pub(crate) fn drain(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        loop {
            effects.push(match self.core.poll_output(true) {
                Output::Dial { shard } => Effect::Dialed(shard),
                Output::Send { link } => {
                    let frame = self.core.frame();
                    let (header, extension) = (frame.header, frame.extension.clone());
                    let body = match std::mem::take(&mut frame.body) {
                        SendBody::Empty => Vec::new(),
                        SendBody::Control => self.core.control().to_vec(),
                        SendBody::Gathered => {
                            let mut body = self.core.control().to_vec();
                            for (payload, bytes) in self.core.gathered().drain(..) {
                                body.extend_from_slice(&payload[bytes]);
                            }
                            body
                        }
                        SendBody::Values { payload, bytes } => payload[bytes].to_vec(),
                    };
                    if self.sends_complete {
                        self.core.handle_input(self.now, Input::Sent { link, count: 1 });
                    }
                    self.frames += 1;
                    if header.kind == Kind::Pushes {
                        effects.extend(pushes(link, &header, &body));
                        continue;
                    }
                    Effect::Sent(Sent { link, header, extension, body })
                }
                Output::Deliver { task, range, .. } => Effect::Delivered(task, range),
                Output::Complete { task, outcome } => Effect::Ended(task, outcome),
                Output::Fenced { lane, .. } => Effect::Fenced(lane),
                Output::Disconnect { link, .. } => Effect::Disconnected(link),
                Output::Timeout(at) => {
                    self.timeout = at;
                    return effects;
                }
            });
        }
    }
}

/// The pushes of a frame of several, as if each had gone in a frame of its own.
fn pushes(link: LinkId, header: &Header, body: &[u8]) -> Vec<Effect> {
    let (keys, mut values) = body.split_at(header.key_bytes as usize);
    assert_eq!(values.len(), header.value_bytes as usize);
    let sent = wire::smalls(keys).unwrap().map(|small| {
        let (body, rest) = values.split_at(small.value_bytes as usize);
        values = rest;
        let header = small.header(header);
        Effect::Sent(Sent { link, header, extension: Extension::default(), body: body.to_vec() })
    });
    let sent = sent.collect();
    assert!(values.is_empty());
    sent
}

/// Frames of a kind that were sent.
pub(crate) fn sent(effects: &[Effect], kind: Kind) -> Vec<&Sent> {
    let mut out = Vec::new();
    for effect in effects {
        if let Effect::Sent(sent) = effect
            && sent.header.kind == kind
        {
            out.push(sent);
        }
    }
    out
}

/// Stamps of the pushes that were sent.
pub(crate) fn pushed(effects: &[Effect]) -> Vec<Stamp> {
    sent(effects, Kind::Push).iter().map(|sent| sent.header.stamp).collect()
}

/// Tasks that ended well.
pub(crate) fn done(effects: &[Effect]) -> Vec<TaskId> {
    let of = |effect: &Effect| match effect {
        Effect::Ended(task, Ok(())) => Some(*task),
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

/// Segments that the closes among the frames name, with assignment and last stamp.
pub(crate) fn named(effects: &[Effect]) -> Vec<wire::Named> {
    sent(effects, Kind::Closed).iter().flat_map(|sent| wire::named(&sent.body).unwrap()).collect()
}
