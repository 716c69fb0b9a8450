//! What is promised of the peers that an endpoint takes and refuses.
//! Knows the trait and a fixture. Source: `Peer`, `Endpoint::adopt`.

use std::collections::BTreeSet;

use super::Fixture;
use super::harness::{STEPS_MAX, Side};
use crate::endpoint::Endpoint;
use crate::error::LostReason;

/// More peers than the endpoint of a test may have.
const PEERS: u32 = 1_025;

/// A link that an endpoint has no room for is closed, so that the other side hears of it.
pub fn closes_what_it_cannot_adopt<F: Fixture>(mut fixture: F) {
    let mut full = fixture.endpoint(None);
    let mut others = Vec::new();
    let far = (0..PEERS).find_map(|_| {
        let (here, there) = fixture.connect();
        if full.adopt(here).is_err() {
            return Some(there);
        }
        others.push(there);
        None
    });
    let far = far.unwrap_or_else(|| panic!("took {PEERS} peers; make it one that takes fewer"));
    let mut side = Side::new(fixture.endpoint(None));
    let _ = side.endpoint.adopt(far).expect("an endpoint takes its first link");
    for _ in 0..STEPS_MAX {
        fixture.step();
        side.poll();
        if !side.losses().is_empty() {
            break;
        }
    }
    assert_eq!(side.losses(), [LostReason::ClosedByPeer]);
    drop(others);
}

/// The name of a lost peer is never given to another.
pub fn names_no_two_peers_alike<F: Fixture>(mut fixture: F) {
    let mut side = Side::new(fixture.endpoint(None));
    let mut names = BTreeSet::new();
    for round in 1..=40 {
        // The other end is dropped, and so closed.
        let (here, _) = fixture.connect();
        let peer = side.endpoint.adopt(here).expect("room: the one before is lost");
        assert!(names.insert(peer), "{peer:?} again, at link {round}");
        for _ in 0..STEPS_MAX {
            fixture.step();
            side.poll();
            if side.losses().len() == round {
                break;
            }
        }
        assert_eq!(side.losses().len(), round, "one loss a link");
    }
}
