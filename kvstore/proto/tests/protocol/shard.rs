//! A server core and somebody who speaks to it as a worker would, or as none would.

use std::rc::Rc;

use rangefold_proto::clock::Clock;
use rangefold_proto::manager::ManagerCore;
use rangefold_proto::server::{Input, Output, SegmentImage, SendBody, ServerCore};
use rangefold_proto::wire::{self, Arguments, Extension, Header, Kind, PullOptions, Refusal};
use rangefold_proto::{
    Assignment, ClusterMap, JobId, Key, KeyRange, Lane, Limits, LinkId, Nanos, Round, Row, SegmentId,
    ServerEntry, ServerId, ShardId, Stamp, TableId, TableSpec, View,
};

pub(crate) const JOB: JobId = JobId(1);
/// The connection that is there from the start.
pub(crate) const LINK: LinkId = LinkId(1);
/// The first segment of the first table.
pub(crate) const SEGMENT: SegmentId = SegmentId::new(TableId(0), 0);

/// What a shard did.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Effect {
    Applied { lane: Lane, stamp: Stamp, values: KeyRange, payload: Vec<u8> },
    Contributed { lane: Lane, stamp: Stamp, values: KeyRange, payload: Vec<u8> },
    Finished { round: Round, arguments: Arguments },
    Said(Said),
    Disconnected(LinkId),
}

/// A frame that it sent.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Said {
    pub(crate) link: LinkId,
    pub(crate) header: Header,
    pub(crate) extension: Extension,
    pub(crate) body: Vec<u8>,
    pub(crate) gathered: Option<KeyRange>,
}

/// A shard under test.
pub(crate) struct Shard {
    pub(crate) core: ServerCore<Rc<[u8]>>,
    pub(crate) now: Nanos,
    /// Whether sends complete at once.
    pub(crate) sends_complete: bool,
    /// When it wants to be called again, as it last said.
    pub(crate) timeout: Option<Nanos>,
}

pub(crate) fn id(server: u32) -> ShardId {
    ShardId { server: ServerId(server), shard: 0 }
}

/// A map of these tables, all on `owner`; servers 0 and 1 are in it.
pub(crate) fn map_of(tables: &[TableSpec], owner: ShardId) -> ClusterMap {
    let mut manager = ManagerCore::new();
    for server in 0..2 {
        let entry = ServerEntry { server: ServerId(server), address: String::new(), shards: 1, host: 0 };
        manager.join(entry).unwrap();
    }
    for (index, spec) in tables.iter().enumerate() {
        let name = format!("t{index}");
        let spec = TableSpec { placement_group: name.clone(), name, ..spec.clone() };
        manager.create_table(&spec).unwrap();
    }
    let mut map = manager.map().clone();
    map.rows.values_mut().for_each(|row| row.owner = owner);
    map
}

impl Shard {
    /// Server 0's shard, the owner of these tables, with this view and one connection that has shown it.
    pub(crate) fn new(limits: Limits, tables: &[TableSpec], view: &View) -> Self {
        let mut shard = Self::bare(limits, &map_of(tables, id(0)), 0);
        let rows: Vec<Row> = shard.map_rows(tables.len());
        for row in rows {
            shard.core.accept(row, None);
        }
        shard.drain();
        shard.tell(Input::View(view.clone()));
        shard.tell(Input::Linked { link: LINK });
        shard.show(LINK, view);
        shard
    }

    /// A shard of this server that owns nothing, with a map.
    pub(crate) fn bare(limits: Limits, map: &ClusterMap, server: u32) -> Self {
        let core = ServerCore::new(id(server), JOB, limits);
        let mut shard = Self { core, now: Nanos(0), sends_complete: true, timeout: None };
        shard.tell(Input::Map(map.clone()));
        shard
    }

    fn map_rows(&self, tables: usize) -> Vec<Row> {
        let tables = (0..u16::try_from(tables).unwrap()).map(TableId);
        let segments = tables.flat_map(|table| {
            let count = self.core.table(table).unwrap().segments;
            (0..count).map(move |index| SegmentId::new(table, index))
        });
        segments.filter_map(|segment| self.core.row(segment)).collect()
    }

    /// Shows a view on a connection, as a worker does before its first frame.
    pub(crate) fn show(&mut self, link: LinkId, view: &View) -> Vec<Effect> {
        let mut body = Vec::new();
        view.encode(&mut body);
        let header = Header { round: view.number, ..Header::of(Kind::ViewUpdate, JOB) };
        self.control(link, header, &body)
    }

    pub(crate) fn tell(&mut self, input: Input<'_, Rc<[u8]>>) -> Vec<Effect> {
        self.core.handle_input(self.now, input);
        self.drain()
    }

    pub(crate) fn tick(&mut self, now_ns: u64) -> Vec<Effect> {
        self.now = Nanos(now_ns);
        self.tell(Input::Tick)
    }

    pub(crate) fn control(&mut self, link: LinkId, header: Header, body: &[u8]) -> Vec<Effect> {
        self.extended(link, header, Extension::default(), body)
    }

    pub(crate) fn extended(
        &mut self,
        link: LinkId,
        header: Header,
        extension: Extension,
        body: &[u8],
    ) -> Vec<Effect> {
        let header = Header { value_bytes: u32::try_from(body.len()).unwrap(), ..header };
        self.tell(Input::Control { link, header, extension, body })
    }

    /// A push frame as it is, with a payload of `header.value_bytes` bytes that count from 0.
    pub(crate) fn push(&mut self, header: Header) -> Vec<Effect> {
        self.push_on(LINK, header)
    }

    pub(crate) fn push_on(&mut self, link: LinkId, header: Header) -> Vec<Effect> {
        self.push_with(link, header, &[])
    }

    pub(crate) fn push_with(&mut self, link: LinkId, header: Header, arguments: &[f64]) -> Vec<Effect> {
        let payload = numbered(header.value_bytes as usize).into();
        let extension = Extension { arguments: Arguments::new(arguments).unwrap(), ..Extension::default() };
        self.tell(Input::Push { link, header, extension, payload })
    }

    pub(crate) fn pull(
        &mut self,
        header: Header,
        rounds_needed: Round,
        after: &[(Lane, Stamp)],
    ) -> Vec<Effect> {
        self.pull_on(LINK, header, rounds_needed, after)
    }

    pub(crate) fn pull_on(
        &mut self,
        link: LinkId,
        header: Header,
        rounds_needed: Round,
        after: &[(Lane, Stamp)],
    ) -> Vec<Effect> {
        let pull = Some(PullOptions { rounds_needed, patience_ms: 1000 });
        let extension = Extension { pull, after: after.to_vec(), ..Extension::default() };
        self.extended(link, header, extension, &[])
    }

    /// A close of a lane's round that names these segments with their last stamps, under assignment 1.
    pub(crate) fn close(
        &mut self,
        lane: u32,
        stamp: Stamp,
        round: Round,
        named: &[(SegmentId, Stamp)],
    ) -> Vec<Effect> {
        let named: Vec<_> = named.iter().map(|&(segment, last)| (segment, Assignment(1), last)).collect();
        self.close_under(lane, stamp, round, &named)
    }

    pub(crate) fn close_under(
        &mut self,
        lane: u32,
        stamp: Stamp,
        round: Round,
        named: &[(SegmentId, Assignment, Stamp)],
    ) -> Vec<Effect> {
        let mut body = Vec::new();
        for &named in named {
            wire::put_named(&mut body, named);
        }
        let floor = stamp.incarnation().floor();
        let header = Header {
            lane: Lane(lane),
            round,
            stamp: floor,
            previous: floor,
            ..Header::of(Kind::Closed, JOB)
        };
        self.control(LINK, header, &body)
    }

    pub(crate) fn resume(&mut self, lane: u32, stamp: Stamp, segments: &[SegmentId]) -> Vec<Effect> {
        let body: Vec<u8> = segments.iter().flat_map(|segment| segment.0.to_le_bytes()).collect();
        let floor = stamp.incarnation().floor();
        let header =
            Header { lane: Lane(lane), stamp: floor, previous: floor, ..Header::of(Kind::Resume, JOB) };
        self.control(LINK, header, &body)
    }

    pub(crate) fn clock(&self, lane: u32) -> Option<Clock> {
        self.core.applied(SEGMENT, Lane(lane))
    }

    /// What it does until it has nothing more to do.
    pub(crate) fn drain(&mut self) -> Vec<Effect> {
        self.drain_if(true)
    }

    pub(crate) fn drain_if(&mut self, may_send: bool) -> Vec<Effect> {
        let mut effects = Vec::new();
        loop {
            let cut = |payload: &Rc<[u8]>, bytes: core::ops::Range<u32>| {
                payload[bytes.start as usize..bytes.end as usize].to_vec()
            };
            effects.push(match self.core.poll_output(may_send) {
                Output::Apply { lane, stamp, values, bytes, payload, .. } => {
                    Effect::Applied { lane, stamp, values, payload: cut(&payload, bytes) }
                }
                Output::Contribute { lane, stamp, values, bytes, payload, .. } => {
                    Effect::Contributed { lane, stamp, values, payload: cut(&payload, bytes) }
                }
                Output::Finish { round, arguments, .. } => Effect::Finished { round, arguments },
                Output::Send { link } => {
                    let frame = self.core.frame();
                    let (header, extension, body) = (frame.header, frame.extension.clone(), frame.body);
                    let gathered = match body {
                        SendBody::Gather { range, .. } => Some(range),
                        _ => None,
                    };
                    let bytes =
                        if body == SendBody::Control { self.core.control().to_vec() } else { Vec::new() };
                    if self.sends_complete {
                        let reply = gathered.is_some();
                        self.core.handle_input(self.now, Input::Sent { link, reply, count: 1 });
                    }
                    Effect::Said(Said { link, header, extension, body: bytes, gathered })
                }
                Output::Disconnect { link, .. } => Effect::Disconnected(link),
                Output::Timeout(at) => {
                    self.timeout = at;
                    return effects;
                }
            });
        }
    }

    /// Gives a segment up to server 1 and says what went with it.
    pub(crate) fn release(&mut self) -> (Row, SegmentImage, Vec<Effect>) {
        let row = Row { segment: SEGMENT, assignment: Assignment(2), owner: id(1) };
        let image = self.core.release(row).unwrap();
        (row, image, self.drain())
    }
}

/// Bytes that count from 0, so that a test sees which of them were taken.
pub(crate) fn numbered(len: usize) -> Vec<u8> {
    (0..=255).cycle().take(len).collect()
}

/// The head of a push of one frame: values of `range`, doubles, of round 0.
pub(crate) fn push(lane: u32, stamp: Stamp, previous: Stamp, range: core::ops::Range<Key>) -> Header {
    Header {
        first: true,
        last: true,
        value_bytes: u32::try_from(range.end.saturating_sub(range.start) * 8).unwrap(),
        segment: SEGMENT,
        assignment: Assignment(1),
        lane: Lane(lane),
        stamp,
        previous,
        range: range.into(),
        ..Header::of(Kind::Push, JOB)
    }
}

/// The same as one of several frames.
pub(crate) fn tile(header: Header, first: bool, last: bool) -> Header {
    Header { first, last, ..header }
}

/// The head of a pull.
pub(crate) fn pull(lane: u32, stamp: Stamp, range: core::ops::Range<Key>) -> Header {
    Header {
        segment: SEGMENT,
        assignment: Assignment(1),
        lane: Lane(lane),
        stamp,
        previous: stamp,
        range: range.into(),
        ..Header::of(Kind::Pull, JOB)
    }
}

/// Keys and stamps that were applied.
pub(crate) fn applied(effects: &[Effect]) -> Vec<(u32, Stamp, KeyRange)> {
    let of = |effect: &Effect| match effect {
        Effect::Applied { lane, stamp, values, .. } => Some((lane.0, *stamp, *values)),
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

/// Lanes and stamps of what was contributed.
pub(crate) fn contributed(effects: &[Effect]) -> Vec<(u32, Stamp)> {
    let of = |effect: &Effect| match effect {
        Effect::Contributed { lane, stamp, .. } => Some((lane.0, *stamp)),
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

/// Rounds that were applied.
pub(crate) fn finished(effects: &[Effect]) -> Vec<Round> {
    let of = |effect: &Effect| match effect {
        Effect::Finished { round, .. } => Some(*round),
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

/// Frames that were sent.
pub(crate) fn said(effects: &[Effect]) -> Vec<&Said> {
    let mut out = Vec::new();
    for effect in effects {
        if let Effect::Said(said) = effect {
            out.push(said);
        }
    }
    out
}

/// Kinds of the frames that were sent.
pub(crate) fn kinds(effects: &[Effect]) -> Vec<Kind> {
    said(effects).iter().map(|said| said.header.kind).collect()
}

/// Acknowledgements, by lane.
pub(crate) fn acks(effects: &[Effect]) -> Vec<(u32, SegmentId, Stamp)> {
    let acks = said(effects).into_iter().filter(|said| said.header.kind == Kind::Ack);
    acks.flat_map(|said| {
        wire::pairs(&said.body).unwrap().map(|(segment, stamp)| (said.header.lane.0, segment, stamp))
    })
    .collect()
}

/// Ranges of the pulls that were answered with values.
pub(crate) fn replies(effects: &[Effect]) -> Vec<KeyRange> {
    said(effects).iter().filter_map(|said| said.gathered).collect()
}

/// The only frame sent, which must be of this kind.
#[track_caller]
pub(crate) fn only(effects: &[Effect], kind: Kind) -> Header {
    let said = said(effects);
    assert!(said.len() == 1 && said[0].header.kind == kind, "expected one {kind:?}: {effects:?}");
    said[0].header
}

/// Why the only frame sent refuses.
#[track_caller]
pub(crate) fn refusal(effects: &[Effect]) -> Refusal {
    Refusal::from_wire(only(effects, Kind::Refused).round)
}
