//! The server manager: owns the cluster map and changes it, one epoch at a time.
//! Knows servers, tables and the ring; not values, not workers. Driven by the embedded coordinator or a scheduler process.
//! Source: OSDI'14 §4.3, §4.5; protocol.md §7, §8.
//!
//! Today a map is committed when this core has made it: chains of one, one manager, no witnesses (protocol.md N1 comes
//! with replication). What callers see of it, a map with an epoch, stays.

use alloc::collections::BTreeSet;
use alloc::string::ToString;
use alloc::vec::Vec;

use crate::id::{Assignment, SegmentId, ServerId, ShardId, TableId};
use crate::map::{ClusterMap, Row, ServerEntry};
use crate::ring::Ring;
use crate::table::{TableError, TableSpec};

/// Tables of one cluster, at most.
pub const TABLES_MAX: usize = 1 << 12;

/// Segments of one cluster, at most: a close that names all of them, and a map of them, fit one control message.
pub const SEGMENTS_MAX: usize = crate::wire::CONTROL_BYTES_MAX / crate::wire::NAMED_BYTES;

/// Why a server cannot join.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JoinError {
    /// The name is taken.
    #[error("{0} is in the map already")]
    Known(ServerId),
    /// Nothing to serve with.
    #[error("{0} has no shard threads; start it with at least one")]
    NoShards(ServerId),
}

/// The owner of the map.
#[derive(Clone, Debug, Default)]
pub struct ManagerCore {
    map: ClusterMap,
    /// Of the servers that are there.
    ring: Ring,
    gone: BTreeSet<ServerId>,
}

impl ManagerCore {
    /// A manager of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The map as it is now.
    #[must_use]
    pub const fn map(&self) -> &ClusterMap {
        &self.map
    }

    /// A server joins. Tables made from now on may be placed on it.
    ///
    /// # Errors
    /// [`JoinError`].
    pub fn join(&mut self, entry: ServerEntry) -> Result<(), JoinError> {
        if self.map.server(entry.server).is_some() {
            return Err(JoinError::Known(entry.server));
        }
        if entry.shards == 0 {
            return Err(JoinError::NoShards(entry.server));
        }
        self.map.servers.push(entry);
        self.map.epoch.0 += 1;
        self.place_anew();
        Ok(())
    }

    /// A server is gone: no table that is made from now on has a segment there. What it owns stays named as its own.
    pub fn leave(&mut self, server: ServerId) {
        self.gone.insert(server);
        self.place_anew();
    }

    fn place_anew(&mut self) {
        let names = self.map.servers.iter().map(|entry| entry.server);
        let servers: Vec<ServerId> = names.filter(|server| !self.gone.contains(server)).collect();
        self.ring = Ring::new(&servers);
    }

    /// Servers that have joined and are not gone.
    #[must_use]
    pub fn servers(&self) -> usize {
        self.ring.servers()
    }

    /// Makes a table, or finds the one that exists with the same specification.
    ///
    /// # Errors
    /// [`TableError`], naming the table and what is allowed.
    pub fn create_table(&mut self, spec: &TableSpec) -> Result<TableId, TableError> {
        spec.check()?;
        if let Some((id, held)) = self.map.table(&spec.namespace, &spec.name) {
            return if held == spec { Ok(id) } else { Err(TableError::Differs(spec.name.to_string())) };
        }
        if self.ring.servers() == 0 {
            return Err(TableError::NoServers);
        }
        if self.map.tables.len() >= TABLES_MAX {
            return Err(TableError::TooMany(TABLES_MAX));
        }
        let segments = self.map.rows.len() + usize::from(spec.segments);
        if segments > SEGMENTS_MAX {
            return Err(TableError::TooManySegments { segments, max: SEGMENTS_MAX });
        }
        let in_group = |held: &&TableSpec| {
            held.namespace == spec.namespace && held.placement_group == spec.placement_group
        };
        if let Some(other) = self.map.tables.values().find(in_group)
            && (other.len, other.segments) != (spec.len, spec.segments)
        {
            return Err(TableError::Group {
                name: spec.name.clone(),
                len: spec.len,
                segments: spec.segments,
            });
        }
        let id = TableId(self.map.tables.keys().next_back().map_or(0, |last| last.0 + 1));
        for (index, owner) in (0..spec.segments).zip(self.place(spec)) {
            let segment = SegmentId::new(id, index);
            self.map.rows.insert(segment, Row { segment, assignment: Assignment(1), owner });
        }
        self.map.tables.insert(id, spec.clone());
        self.map.epoch.0 += 1;
        Ok(id)
    }

    /// Where the segments of a table go: servers by the ring, shards of a server in turn.
    fn place(&self, spec: &TableSpec) -> Vec<ShardId> {
        let group = [spec.namespace.as_bytes(), b"/", spec.placement_group.as_bytes()].concat();
        let owners = self.ring.owners(&group, spec.segments);
        let mut placed: Vec<ShardId> = Vec::with_capacity(owners.len());
        for server in owners {
            let before = placed.iter().filter(|shard| shard.server == server).count();
            let shards = self.map.server(server).map_or(1, |entry| entry.shards);
            let shard = u16::try_from(before % usize::from(shards)).unwrap_or(0);
            placed.push(ShardId { server, shard });
        }
        placed
    }

    /// Gives a segment to another shard. `None` when there is no such segment, or nothing would change.
    pub fn move_segment(&mut self, segment: SegmentId, to: ShardId) -> Option<Row> {
        let row = self.map.rows.get_mut(&segment).filter(|row| row.owner != to)?;
        row.owner = to;
        row.assignment.0 += 1;
        self.map.epoch.0 += 1;
        Some(*row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{ElementType, UpdateFunction};
    use alloc::string::String;

    fn manager(servers: u32, shards: u16) -> ManagerCore {
        let mut manager = ManagerCore::new();
        for server in 0..servers {
            let entry = ServerEntry { server: ServerId(server), address: String::new(), shards, host: 0 };
            manager.join(entry).unwrap();
        }
        manager
    }

    #[test]
    fn a_table_is_made_once_and_found_again() {
        let mut manager = manager(2, 2);
        let spec = TableSpec::dense("w", ElementType::F64, 1000, UpdateFunction::Add);
        let id = manager.create_table(&spec).unwrap();
        let epoch = manager.map().epoch;
        assert_eq!(manager.create_table(&spec), Ok(id));
        assert_eq!(manager.map().epoch, epoch);
        let other = TableSpec { width: 2, ..spec.clone() };
        assert_eq!(manager.create_table(&other), Err(TableError::Differs("w".into())));
        assert_eq!(manager.map().rows.len(), 16);
        assert_eq!(manager.map().shards().len(), 4, "all shards of both servers own something");
    }

    #[test]
    fn tables_of_a_group_are_placed_alike() {
        let mut manager = manager(3, 2);
        let spec = TableSpec::dense("w", ElementType::F64, 1000, UpdateFunction::Add);
        let beside = TableSpec { name: "g".into(), element: ElementType::F32, ..spec.clone() };
        let (a, b) = (manager.create_table(&spec).unwrap(), manager.create_table(&beside).unwrap());
        for index in 0..16 {
            let owner = |table| manager.map().owner(SegmentId::new(table, index));
            assert_eq!(owner(a), owner(b));
        }
        let cut = TableSpec { name: "x".into(), len: 10, segments: 8, ..spec };
        assert!(matches!(manager.create_table(&cut), Err(TableError::Group { .. })));
    }

    #[test]
    fn a_table_needs_a_server() {
        let spec = TableSpec::dense("w", ElementType::F64, 1, UpdateFunction::Add);
        assert_eq!(ManagerCore::new().create_table(&spec), Err(TableError::NoServers));
    }

    #[test]
    fn tables_are_placed_on_servers_that_are_there() {
        let mut manager = manager(2, 1);
        let spec = TableSpec::dense("w", ElementType::F64, 1000, UpdateFunction::Add);
        let before = manager.create_table(&spec).unwrap();
        manager.leave(ServerId(0));
        assert_eq!(manager.servers(), 1);
        let beside = TableSpec { name: "g".into(), placement_group: "g".into(), ..spec.clone() };
        let after = manager.create_table(&beside).unwrap();
        let owners = |table| {
            let owner = |index| manager.map().owner(SegmentId::new(table, index)).unwrap().server;
            (0..16).map(owner).collect::<BTreeSet<_>>()
        };
        assert_eq!(owners(after).into_iter().collect::<Vec<_>>(), [ServerId(1)]);
        assert_eq!(owners(before).len(), 2, "what was placed stays where it is");
    }

    #[test]
    fn a_move_raises_the_assignment() {
        let mut manager = manager(2, 1);
        let spec = TableSpec::dense("w", ElementType::F64, 64, UpdateFunction::Add);
        let segment = SegmentId::new(manager.create_table(&spec).unwrap(), 3);
        let from = manager.map().owner(segment).unwrap();
        let to = ShardId { server: ServerId(1 - from.server.0), shard: 0 };
        assert_eq!(manager.move_segment(segment, from), None);
        assert_eq!(manager.move_segment(segment, to).map(|row| row.assignment), Some(Assignment(2)));
        assert_eq!(manager.map().owner(segment), Some(to));
    }
}
