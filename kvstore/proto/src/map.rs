//! The cluster map: tables, servers, and who owns which segment.
//! Knows names and numbers; decides nothing. Made by the manager, copied by every node, adopted by number.
//! Source: OSDI'14 §4.3 ("direct-mapped": every node caches the partition); protocol.md §7 G1.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use crate::id::{Assignment, MapEpoch, SegmentId, ServerId, ShardId, TableId};
use crate::table::TableSpec;

/// One segment's row. Rows are idempotent; of two, the higher assignment wins (protocol.md G1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Row {
    /// Which segment.
    pub segment: SegmentId,
    /// How often its owner has changed.
    pub assignment: Assignment,
    /// The shard that admits its pushes.
    pub owner: ShardId,
}

/// A server as others reach it.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct ServerEntry {
    /// Its name.
    pub server: ServerId,
    /// Where it listens, as the transport takes it.
    pub address: String,
    /// Its shard threads.
    pub shards: u16,
    /// Its host.
    pub host: u64,
}

/// Tables, servers and rows at one epoch.
#[derive(Clone, PartialEq, Default, Debug, serde::Serialize, serde::Deserialize)]
pub struct ClusterMap {
    /// Raised by every change.
    pub epoch: MapEpoch,
    /// Servers in the order they joined.
    pub servers: Vec<ServerEntry>,
    /// Tables by id.
    pub tables: BTreeMap<TableId, TableSpec>,
    /// Rows by segment.
    pub rows: BTreeMap<SegmentId, Row>,
}

impl ClusterMap {
    /// Takes a row if it is newer than the one held. Says whether it was.
    pub fn adopt_row(&mut self, row: Row) -> bool {
        match self.rows.get_mut(&row.segment) {
            Some(held) if held.assignment >= row.assignment => false,
            Some(held) => {
                *held = row;
                true
            }
            None => {
                self.rows.insert(row.segment, row);
                true
            }
        }
    }

    /// Takes what is newer in `other`: rows by assignment, the rest by epoch. Never goes back.
    pub fn adopt(&mut self, other: &Self) {
        if other.epoch > self.epoch {
            self.epoch = other.epoch;
            self.servers.clone_from(&other.servers);
            for (&id, spec) in &other.tables {
                self.tables.entry(id).or_insert_with(|| spec.clone());
            }
        }
        for &row in other.rows.values() {
            self.adopt_row(row);
        }
    }

    /// The owner of a segment.
    #[must_use]
    pub fn owner(&self, segment: SegmentId) -> Option<ShardId> {
        self.rows.get(&segment).map(|row| row.owner)
    }

    /// A table by its name.
    #[must_use]
    pub fn table(&self, namespace: &str, name: &str) -> Option<(TableId, &TableSpec)> {
        let same = |spec: &TableSpec| spec.namespace == namespace && spec.name == name;
        self.tables.iter().find(|(_, spec)| same(spec)).map(|(&id, spec)| (id, spec))
    }

    /// A server by its name.
    #[must_use]
    pub fn server(&self, server: ServerId) -> Option<&ServerEntry> {
        self.servers.iter().find(|entry| entry.server == server)
    }

    /// Every shard that owns a segment, each once, in order.
    #[must_use]
    pub fn shards(&self) -> Vec<ShardId> {
        let mut shards: Vec<ShardId> = self.rows.values().map(|row| row.owner).collect();
        shards.sort_unstable();
        shards.dedup();
        shards
    }
}
