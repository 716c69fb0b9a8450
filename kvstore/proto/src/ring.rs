//! Consistent hashing: which server owns a segment.
//! Knows servers and points on a ring; not tables, not addresses. Asked by the manager for each new placement.
//! Source: OSDI'14 §4.3, Figure 7.
//!
//! `departure:` the paper gives each server the ranges before its points. Here a segment hashes to a point and goes to
//! the next virtual node whose server is below its bound, so that sixteen segments spread over two servers as well
//! as a million do (consistent hashing with bounded loads; Mirrokni, Thorup, Zadimoghaddam, SODA 2018).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::id::ServerId;

/// Points of one server on the ring.
const VIRTUAL_NODES: u32 = 64;

/// The ring of virtual nodes.
#[derive(Clone, Debug, Default)]
pub struct Ring {
    /// Virtual nodes by point; ties are impossible to place twice because the server is part of the key.
    points: BTreeSet<(u64, ServerId)>,
    servers: usize,
}

/// A bijection of u64 that spreads neighbouring integers (the finaliser of splitmix64).
#[must_use]
pub const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The point of a name: stable over versions, because every manager must find the same one.
#[must_use]
fn point(name: &[u8], index: u64) -> u64 {
    let folded = name.iter().fold(0x9e37_79b9_7f4a_7c15, |state, &byte| mix(state ^ u64::from(byte)));
    mix(folded ^ mix(index.wrapping_add(0x6a09_e667_f3bc_c909)))
}

impl Ring {
    /// A ring of these servers; O(n · virtual nodes · log).
    #[must_use]
    pub fn new(servers: &[ServerId]) -> Self {
        let node_of = |server: ServerId, node: u32| {
            (point(b"virtual node", u64::from(server.0) << 32 | u64::from(node)), server)
        };
        let nodes = |&server: &ServerId| (0..VIRTUAL_NODES).map(move |node| node_of(server, node));
        Self { points: servers.iter().flat_map(nodes).collect(), servers: servers.len() }
    }

    /// Servers in the ring.
    #[must_use]
    pub const fn servers(&self) -> usize {
        self.servers
    }

    /// The distinct servers clockwise from `point`.
    fn clockwise(&self, point: u64) -> impl Iterator<Item = ServerId> + '_ {
        let mut seen = Vec::new();
        let start = (point, ServerId(0));
        let nodes = self.points.range(start..).chain(self.points.range(..start));
        nodes.map(|&(_, server)| server).filter(move |server| {
            let fresh = !seen.contains(server);
            if fresh {
                seen.push(*server);
            }
            fresh
        })
    }

    /// Owners of all the segments of a group, in order: each goes clockwise from its point to the first server that
    /// owns fewer than a quarter more than its fair share. Empty when there are no servers.
    #[must_use]
    pub fn owners(&self, group: &[u8], segments: u16) -> Vec<ServerId> {
        if self.servers == 0 {
            return Vec::new();
        }
        let fair = usize::from(segments).div_ceil(self.servers);
        let bound = fair + fair / 4;
        let mut owned: BTreeMap<ServerId, usize> = BTreeMap::new();
        (0..segments)
            .filter_map(|index| {
                let below = |server: &ServerId| owned.get(server).copied().unwrap_or(0) < bound;
                let owner = self.clockwise(point(group, u64::from(index))).find(below)?;
                *owned.entry(owner).or_insert(0) += 1;
                Some(owner)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(servers: core::ops::Range<u32>) -> Ring {
        Ring::new(&servers.map(ServerId).collect::<Vec<_>>())
    }

    fn shares(owners: &[ServerId]) -> BTreeMap<ServerId, usize> {
        owners.iter().fold(BTreeMap::new(), |mut shares, &owner| {
            *shares.entry(owner).or_insert(0) += 1;
            shares
        })
    }

    //= OSDI'14 §4.3
    //= type=test
    #[test]
    fn every_server_owns_a_fair_share_even_of_few_segments() {
        for servers in 1..20u32 {
            for segments in [1u16, 4, 16, 64, 1024] {
                let owners = ring(0..servers).owners(b"w", segments);
                assert_eq!(owners.len(), usize::from(segments));
                let shares = shares(&owners);
                let fair = usize::from(segments).div_ceil(servers as usize);
                assert!(
                    shares.values().all(|&n| n <= fair + fair / 4),
                    "{segments} on {servers}: {shares:?}"
                );
                if usize::from(segments) >= 4 * servers as usize {
                    assert_eq!(shares.len(), servers as usize, "{segments} on {servers}: {shares:?}");
                }
            }
        }
    }

    #[test]
    fn a_join_moves_about_one_share() {
        for n in [2u32, 4, 9, 19] {
            let (before, after) = (ring(0..n).owners(b"w", 4096), ring(0..n + 1).owners(b"w", 4096));
            let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
            let fair = 4096 / (n as usize + 1);
            assert!(
                moved >= fair / 2 && moved <= 2 * fair,
                "{moved} of 4096 moved by server {n}; a share is {fair}"
            );
        }
    }

    #[test]
    fn placement_is_stable_over_versions() {
        // A change of these numbers moves the segments of running clusters at an upgrade.
        assert_eq!(point(b"w", 0), point(b"w", 0));
        assert_eq!(mix(1), 0x5692_161d_100b_05e5);
        let owners = ring(0..3).owners(b"weights", 8);
        assert_eq!(owners.iter().map(|s| s.0).collect::<Vec<_>>(), GOLDEN);
    }

    const GOLDEN: [u32; 8] = [0, 1, 0, 1, 2, 0, 1, 2];
}
