//! Lists that frames carry behind their heads: pairs, named segments, rows of the map, small pushes.
//! Knows the layout of their entries; not who says them when. Called by the cores. All numbers are little-endian.
//! Source: protocol.md §12.

use alloc::vec::Vec;

use super::{Header, Kind, WireError};
use crate::id::{Assignment, MapEpoch, SegmentId, ServerId, ShardId};
use crate::key::KeyRange;
use crate::map::Row;
use crate::time::Stamp;

/// Bytes of a [`Small`] in the key section of `Pushes`.
pub const SMALL_BYTES: usize = 40;

/// One push of several in a frame: what its head would say beyond theirs.
///
/// ```text
/// segment u32, assignment u32 | stamp u64 | start u64 | keys u32, value_bytes u32 | previous_delta u32, zero u32
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Small {
    /// To which segment.
    pub segment: SegmentId,
    /// As the sender knows it.
    pub assignment: Assignment,
    /// The task's.
    pub stamp: Stamp,
    /// The lane's preceding push to the segment, at most 2^32 - 1 before.
    pub previous: Stamp,
    /// Keys of its values.
    pub range: KeyRange,
    /// Bytes of its values; they follow those of the pushes before it.
    pub value_bytes: u32,
}

impl Small {
    /// What the head of a push in a frame of its own says.
    #[must_use]
    pub const fn of(push: &Header) -> Self {
        Self {
            segment: push.segment,
            assignment: push.assignment,
            stamp: push.stamp,
            previous: push.previous,
            range: push.range,
            value_bytes: push.value_bytes,
        }
    }

    /// The head that it would have in a frame of its own; `frame` is the one that it came in.
    #[must_use]
    pub const fn header(&self, frame: &Header) -> Header {
        Header {
            kind: Kind::Push,
            first: true,
            last: true,
            key_bytes: 0,
            value_bytes: self.value_bytes,
            segment: self.segment,
            assignment: self.assignment,
            stamp: self.stamp,
            range: self.range,
            previous: self.previous,
            ..*frame
        }
    }
}

/// Appends one. Its predecessor is near and its keys are few: whoever gathers has seen to it.
pub fn put_small(bytes: &mut Vec<u8>, small: &Small) {
    let delta = small.stamp.0.wrapping_sub(small.previous.0);
    let keys = small.range.end.wrapping_sub(small.range.start);
    debug_assert!(u32::try_from(delta.max(keys)).is_ok(), "{small:?} cannot be said so");
    let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let (previous_delta, keys) = (narrow(delta), narrow(keys));
    let mut out = [0; SMALL_BYTES];
    out[0..4].copy_from_slice(&small.segment.0.to_le_bytes());
    out[4..8].copy_from_slice(&small.assignment.0.to_le_bytes());
    out[8..16].copy_from_slice(&small.stamp.0.to_le_bytes());
    out[16..24].copy_from_slice(&small.range.start.to_le_bytes());
    out[24..28].copy_from_slice(&keys.to_le_bytes());
    out[28..32].copy_from_slice(&small.value_bytes.to_le_bytes());
    out[32..36].copy_from_slice(&previous_delta.to_le_bytes());
    bytes.extend_from_slice(&out);
}

/// Reads the key section of `Pushes`.
///
/// # Errors
/// [`WireError::Length`] for bytes that are no whole one.
pub fn smalls(bytes: &[u8]) -> Result<impl Iterator<Item = Small> + Clone + '_, WireError> {
    let (smalls, []) = bytes.as_chunks::<SMALL_BYTES>() else {
        let expected = bytes.len().next_multiple_of(SMALL_BYTES);
        return Err(WireError::Length { found: bytes.len(), expected });
    };
    Ok(smalls.iter().map(|small| {
        let word = |at: usize| u32::from_le_bytes([small[at], small[at + 1], small[at + 2], small[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let (stamp, start) = (long(8), long(16));
        Small {
            segment: SegmentId(word(0)),
            assignment: Assignment(word(4)),
            stamp: Stamp(stamp),
            previous: Stamp(stamp.wrapping_sub(word(32).into())),
            range: KeyRange::new(start, start.saturating_add(word(24).into())),
            value_bytes: word(28),
        }
    }))
}

/// Bytes of a (segment, stamp) pair in `Ack` and `ResumeReply`.
pub const PAIR_BYTES: usize = 12;
/// Bytes of a segment named in `Closed`.
pub const NAMED_BYTES: usize = 16;
/// Bytes of a map row in `WrongEpoch` and `MapDelta`.
pub const ROW_BYTES: usize = 24;

/// Appends a (segment, stamp) pair.
pub fn put_pair(bytes: &mut Vec<u8>, segment: SegmentId, stamp: Stamp) {
    bytes.extend_from_slice(&segment.0.to_le_bytes());
    bytes.extend_from_slice(&stamp.0.to_le_bytes());
}

/// Reads (segment, stamp) pairs; bytes that are no whole pair are an error.
///
/// # Errors
/// [`WireError::Length`].
pub fn pairs(bytes: &[u8]) -> Result<impl Iterator<Item = (SegmentId, Stamp)> + '_, WireError> {
    if !bytes.len().is_multiple_of(PAIR_BYTES) {
        return Err(WireError::Length {
            found: bytes.len(),
            expected: bytes.len().next_multiple_of(PAIR_BYTES),
        });
    }
    Ok(bytes.chunks_exact(PAIR_BYTES).map(|pair| {
        let segment = u32::from_le_bytes([pair[0], pair[1], pair[2], pair[3]]);
        let stamp =
            u64::from_le_bytes([pair[4], pair[5], pair[6], pair[7], pair[8], pair[9], pair[10], pair[11]]);
        (SegmentId(segment), Stamp(stamp))
    }))
}

/// A segment named in a close: the assignment under which the lane knows it, and its last push there (T1).
pub type Named = (SegmentId, Assignment, Stamp);

/// Appends a named segment.
pub fn put_named(bytes: &mut Vec<u8>, (segment, assignment, stamp): Named) {
    bytes.extend_from_slice(&segment.0.to_le_bytes());
    bytes.extend_from_slice(&assignment.0.to_le_bytes());
    bytes.extend_from_slice(&stamp.0.to_le_bytes());
}

/// Reads named segments.
///
/// # Errors
/// [`WireError::Length`] for bytes that are no whole one.
pub fn named(bytes: &[u8]) -> Result<impl Iterator<Item = Named> + '_, WireError> {
    if !bytes.len().is_multiple_of(NAMED_BYTES) {
        return Err(WireError::Length {
            found: bytes.len(),
            expected: bytes.len().next_multiple_of(NAMED_BYTES),
        });
    }
    Ok(bytes.chunks_exact(NAMED_BYTES).map(|named| {
        let word = |at: usize| u32::from_le_bytes([named[at], named[at + 1], named[at + 2], named[at + 3]]);
        (SegmentId(word(0)), Assignment(word(4)), Stamp(u64::from(word(8)) | u64::from(word(12)) << 32))
    }))
}

/// Appends a map row with the epoch it was read at.
pub fn put_row(bytes: &mut Vec<u8>, row: &Row, epoch: MapEpoch) {
    bytes.extend_from_slice(&row.segment.0.to_le_bytes());
    bytes.extend_from_slice(&row.assignment.0.to_le_bytes());
    bytes.extend_from_slice(&epoch.0.to_le_bytes());
    bytes.extend_from_slice(&row.owner.server.0.to_le_bytes());
    bytes.extend_from_slice(&u32::from(row.owner.shard).to_le_bytes());
}

/// Reads map rows.
///
/// # Errors
/// [`WireError::Length`] for bytes that are no whole row.
pub fn rows(bytes: &[u8]) -> Result<impl Iterator<Item = (Row, MapEpoch)> + '_, WireError> {
    if !bytes.len().is_multiple_of(ROW_BYTES) {
        return Err(WireError::Length {
            found: bytes.len(),
            expected: bytes.len().next_multiple_of(ROW_BYTES),
        });
    }
    Ok(bytes.chunks_exact(ROW_BYTES).map(|row| {
        let word = |at: usize| u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]);
        let epoch = u64::from(word(8)) | u64::from(word(12)) << 32;
        // A shard is 16 bits; a wider one names no shard of ours and is answered as such.
        let owner =
            ShardId { server: ServerId(word(16)), shard: u16::try_from(word(20)).unwrap_or(u16::MAX) };
        (Row { segment: SegmentId(word(0)), assignment: Assignment(word(4)), owner }, MapEpoch(epoch))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::JobId;
    use proptest::prelude::*;

    #[test]
    fn small_pushes_come_back_as_they_went() {
        let small = |stamp: u64| Small {
            segment: SegmentId::new(crate::id::TableId(3), 5),
            assignment: Assignment(7),
            stamp: Stamp(2 << 40 | stamp),
            previous: Stamp(2 << 40 | 4),
            range: KeyRange::new(1 << 40, (1 << 40) + 3),
            value_bytes: 24,
        };
        let mut bytes = Vec::new();
        put_small(&mut bytes, &small(9));
        put_small(&mut bytes, &small(12));
        assert!(smalls(&bytes).unwrap().eq([small(9), small(12)]));
        let frame = Header { lane: crate::id::Lane(11), round: 13, ..Header::of(Kind::Pushes, JobId(1)) };
        let head = small(9).header(&frame);
        assert_eq!(
            (Small::of(&head), head.lane, head.round, head.kind),
            (small(9), frame.lane, 13, Kind::Push)
        );
        assert_eq!(bytes.len(), 2 * SMALL_BYTES);
        assert!(smalls(&bytes[1..]).is_err());
    }

    proptest! {
        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = pairs(&bytes).map(Iterator::count);
            let _ = named(&bytes).map(Iterator::count);
            let _ = rows(&bytes).map(Iterator::count);
            let _ = smalls(&bytes).map(Iterator::count);
        }
    }
}
