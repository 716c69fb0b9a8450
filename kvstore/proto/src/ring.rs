//! Consistent hashing: which server owns a segment.
//! Knows servers, hosts and points on a ring; not tables, not addresses. Asked by the manager for each new placement.
//! Source: OSDI'14 §4.3, Figure 7.
//!
//! `departure:` the paper gives each server the ranges before its points. Here a segment hashes to a point and goes to
//! the next virtual node whose server is below its bound, so that sixteen segments spread over two servers as well
//! as a million do (consistent hashing with bounded loads; Mirrokni, Thorup, Zadimoghaddam, SODA 2018).

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::id::ServerId;

/// Points of one server on the ring. 64 keep the shares of ten servers within 1.5 of each other before the bound acts.
pub const VIRTUAL_NODES: u32 = 64;

/// A server as the ring sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// The server.
    pub server: ServerId,
    /// Its host, so that a chain can avoid two members on one.
    pub host: u64,
}

/// The ring of virtual nodes.
#[derive(Clone, Debug, Default)]
pub struct Ring {
    /// Virtual nodes by point; ties are impossible to place twice because the server is part of the key.
    points: BTreeMap<(u64, ServerId), u64>,
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
pub fn point(name: &[u8], index: u64) -> u64 {
    let folded = name.iter().fold(0x9e37_79b9_7f4a_7c15, |state, &byte| mix(state ^ u64::from(byte)));
    mix(folded ^ mix(index.wrapping_add(0x6a09_e667_f3bc_c909)))
}

impl Ring {
    /// A ring of these servers; O(n · virtual nodes · log).
    #[must_use]
    pub fn new(members: &[Member]) -> Self {
        let mut points = BTreeMap::new();
        for member in members {
            for node in 0..VIRTUAL_NODES {
                points.insert(
                    (
                        point(b"virtual node", u64::from(member.server.0) << 32 | u64::from(node)),
                        member.server,
                    ),
                    member.host,
                );
            }
        }
        Self { points, servers: members.len() }
    }

    /// Servers in the ring.
    #[must_use]
    pub const fn servers(&self) -> usize {
        self.servers
    }

    /// The distinct servers clockwise from `point`.
    fn clockwise(&self, point: u64) -> impl Iterator<Item = (ServerId, u64)> + '_ {
        let mut seen = Vec::new();
        let start = (point, ServerId(0));
        self.points.range(start..).chain(self.points.range(..start)).filter_map(
            move |(&(_, server), &host)| {
                if seen.contains(&server) {
                    return None;
                }
                seen.push(server);
                Some((server, host))
            },
        )
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
                let owner =
                    self.clockwise(point(group, u64::from(index))).map(|(server, _)| server).find(below)?;
                *owned.entry(owner).or_insert(0) += 1;
                Some(owner)
            })
            .collect()
    }

    /// The first `k` distinct servers clockwise from `owner`'s segment, on distinct hosts as long as there are any.
    #[must_use]
    pub fn chain(&self, group: &[u8], index: u16, owner: ServerId, k: usize) -> Vec<ServerId> {
        let mut chain: Vec<ServerId> = alloc::vec![owner];
        let mut hosts: Vec<u64> = Vec::new();
        let all: Vec<(ServerId, u64)> = self.clockwise(point(group, u64::from(index))).collect();
        hosts.extend(all.iter().find(|(server, _)| *server == owner).map(|&(_, host)| host));
        for distinct_hosts in [true, false] {
            for &(server, host) in &all {
                if chain.len() >= k {
                    return chain;
                }
                if chain.contains(&server) || (distinct_hosts && hosts.contains(&host)) {
                    continue;
                }
                chain.push(server);
                hosts.push(host);
            }
        }
        chain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(servers: core::ops::Range<u32>) -> Ring {
        let members: Vec<Member> =
            servers.map(|s| Member { server: ServerId(s), host: u64::from(s / 2) }).collect();
        Ring::new(&members)
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
    fn a_chain_names_distinct_servers_and_hosts_while_there_are_any() {
        let ring = ring(0..6);
        for index in 0..100 {
            let owner = ring.owners(b"w", 128)[index as usize];
            let chain = ring.chain(b"w", index, owner, 3);
            assert_eq!((chain.len(), chain[0]), (3, owner));
            let mut hosts: Vec<u32> = chain.iter().map(|s| s.0 / 2).collect();
            hosts.dedup();
            assert_eq!(hosts.len(), 3, "{chain:?}");
            assert_eq!(ring.chain(b"w", index, owner, 9).len(), 6);
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
