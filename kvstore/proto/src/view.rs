//! A job's view: which lanes gate its pulls, and which process may push for each.
//! Knows numbers; made by the scheduler, compared by everybody, never goes back.
//! Source: OSDI'14 §3.5, §4.6; protocol.md §1, T7, T8, P10.

use alloc::vec::Vec;

use crate::id::Lane;
use crate::time::{Incarnation, Round};

/// One lane of a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Member {
    /// The lane.
    pub lane: Lane,
    /// The only process that may push for it.
    pub incarnation: Incarnation,
    /// Rounds below this count as closed by it (protocol.md T2, T8).
    pub first_round: Round,
}

/// The members of a job at one number.
#[derive(Clone, PartialEq, Eq, Default, Debug, serde::Serialize, serde::Deserialize)]
pub struct View {
    /// Grows with every change; 0 is "none yet".
    pub number: u32,
    /// Ascending by lane.
    pub members: Vec<Member>,
}

/// Bytes of a member on the wire.
pub const MEMBER_BYTES: usize = 12;

impl View {
    /// The member of a lane.
    #[must_use]
    pub fn member(&self, lane: Lane) -> Option<&Member> {
        self.members.binary_search_by_key(&lane, |member| member.lane).ok().map(|at| &self.members[at])
    }

    /// Appends the members as they travel, [`MEMBER_BYTES`] each.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        for member in &self.members {
            bytes.extend_from_slice(&member.lane.0.to_le_bytes());
            bytes.extend_from_slice(&member.incarnation.0.to_le_bytes());
            bytes.extend_from_slice(&member.first_round.to_le_bytes());
        }
    }

    /// Reads what `encode` wrote. `None` when the bytes are no view: a cut member, lanes out of order.
    #[must_use]
    pub fn decode(number: u32, bytes: &[u8]) -> Option<Self> {
        if !bytes.len().is_multiple_of(MEMBER_BYTES) {
            return None;
        }
        let word = |chunk: &[u8], at: usize| {
            chunk[at..at + 4].try_into().map(u32::from_le_bytes).unwrap_or_default()
        };
        let members: Vec<Member> = bytes
            .chunks_exact(MEMBER_BYTES)
            .map(|chunk| Member {
                lane: Lane(word(chunk, 0)),
                incarnation: Incarnation(word(chunk, 4)),
                first_round: word(chunk, 8),
            })
            .collect();
        let ascending = members.windows(2).all(|pair| pair[0].lane < pair[1].lane);
        let narrow = members.iter().all(|member| member.incarnation.0 < 1 << 24);
        (ascending && narrow).then_some(Self { number, members })
    }
}
