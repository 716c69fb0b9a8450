//! Names: of servers, shards, tables, segments, lanes, links. Newtypes, so that none is taken for another.
//! Knows nothing of what the names stand for. Used everywhere.

use core::fmt;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    };
}

name!(
    /// A server node. Never issued twice in a cluster's life.
    ServerId(u32), "server "
);
name!(
    /// A worker process, as the scheduler counts them. A restarted process is a new one.
    WorkerId(u32), "worker "
);
name!(
    /// A job: one training program and the lanes that belong to it.
    JobId(u16), "job "
);
name!(
    /// A stream of tasks with one order (protocol.md §1). A job's lanes are its data parts.
    Lane(u32), "lane "
);
name!(
    /// A table.
    TableId(u16), "table "
);
name!(
    /// How often a segment's owner has changed (protocol.md §1). Frames carry it.
    Assignment(u32), "assignment "
);
name!(
    /// The number of a committed cluster map.
    MapEpoch(u64), "epoch "
);
name!(
    /// The shell's name for one connection. Never used again once the connection is lost.
    LinkId(u64), "link "
);

/// A shard thread of a server: what a frame is addressed to.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
pub struct ShardId {
    /// The server.
    pub server: ServerId,
    /// Which of its shard threads, from 0.
    pub shard: u16,
}

impl fmt::Debug for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.server, self.shard)
    }
}

/// A key range of one table, never cut again (protocol.md §1): the unit of placement and of clocks.
///
/// The table in the upper 16 bits, the position in the lower; so tables that are placed alike have equal positions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct SegmentId(pub u32);

impl SegmentId {
    /// The segment at `index` of `table`.
    #[must_use]
    pub const fn new(table: TableId, index: u16) -> Self {
        Self((table.0 as u32) << 16 | index as u32)
    }

    /// The table it belongs to.
    #[must_use]
    pub const fn table(self) -> TableId {
        TableId((self.0 >> 16) as u16)
    }

    /// Its position in the table, from 0 in key order.
    #[must_use]
    pub const fn index(self) -> u16 {
        (self.0 & 0xffff) as u16
    }
}

impl fmt::Debug for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.table(), self.index())
    }
}
