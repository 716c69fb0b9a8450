//! The head of a message: 64 fixed bytes, typed extensions, one check.
//! Knows layout and limits of heads; not what a receiver does with them, not values. Called by both shells.
//! Source: OSDI'14 §4.2; protocol.md §12, F1.
//!
//! ```text
//!        0       1       2       3       4       5       6       7
//!    +-------+-------+-------+-------+-------+-------+-------+-------+
//!  0 |     magic     |version| kind  |     flags     |      job      |
//!    +-------+-------+-------+-------+-------+-------+-------+-------+
//!  8 |           key_bytes           |          value_bytes          |
//!    +-------+-------+-------+-------+-------+-------+-------+-------+
//! 16 |            segment            |           assignment          |
//!    +-------+-------+-------+-------+-------+-------+-------+-------+
//! 24 |              lane             |             round             |
//!    +-------+-------+-------+-------+-------+-------+-------+-------+
//! 32 |                             stamp                             |
//!    +-------+-------+-------+-------+-------+-------+-------+-------+
//! 40 |                             start                             |
//!    +-------+-------+-------+-------+-------+-------+-------+-------+
//! 48 |                              end                              |
//!    +-------+-------+-------+-------+-------+-------+-------+-------+
//! 56 |         previous_delta        |          header_check         |
//!    +-------+-------+-------+-------+-------+-------+-------+-------+
//! 64   extensions: sections of (tag u8, words u8, 6 bytes of zero) and `words` little-endian u64
//! ```
//!
//! All numbers are little-endian. `header_check` is CRC-32C over the head without the check itself and the
//! connection's number, so neither a damaged head nor one of another connection is believed.

mod lists;

use alloc::vec::Vec;

use crate::id::{Assignment, JobId, Lane, SegmentId};
use crate::key::KeyRange;
use crate::time::{Round, Stamp};

pub use lists::{
    NAMED_BYTES, Named, PAIR_BYTES, ROW_BYTES, SMALL_BYTES, Small, named, pairs, put_named, put_pair,
    put_row, put_small, rows, smalls,
};

/// Bytes of the fixed part.
pub const HEADER_BYTES: usize = 64;
/// Bytes of all extensions, at most (protocol.md §12).
pub const EXTENSION_BYTES_MAX: usize = 256;
/// Bytes of a head, at most.
pub const HEAD_BYTES_MAX: usize = HEADER_BYTES + EXTENSION_BYTES_MAX;
/// Bytes of a control frame's body, at most; value frames have their own limit.
pub const CONTROL_BYTES_MAX: usize = 64 << 10;
/// Version of this layout.
pub const VERSION: u8 = 1;
/// Task dependencies in one frame, at most (protocol.md K3).
pub const AFTER_MAX: usize = 8;

const MAGIC: u16 = 0x4652; // "RF"
const KEY_BYTES_AT: usize = 8;
const VALUE_BYTES_AT: usize = 12;
const CHECK_AT: usize = 60;
const EXTENSION_SHIFT: u32 = 10;
const SECTION_HEAD_BYTES: usize = 8;
/// A receiver that does not know a section with this bit must refuse the message.
const MANDATORY: u8 = 0x80;
const TAG_CREDIT: u8 = 0x01;
const TAG_PULL: u8 = 0x82;
const TAG_AFTER: u8 = 0x83;
const TAG_ARGUMENTS: u8 = 0x84;
const TAG_PREVIOUS: u8 = 0x85;

/// What a message is (protocol.md §12). Numbers are never reused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Worker to owner: values to apply (P1, P2).
    Push = 1,
    /// Worker to shard: small pushes of one lane and round, each whole, as if they came one after the other. The key section
    /// is a list of [`Small`].
    Pushes = 2,
    /// Worker to a member: values to read (T3).
    Pull = 4,
    /// Its answer.
    PullReply = 5,
    /// Owner to worker: pairs of segment and stamp (P6). Carries credit, also without pairs.
    Ack = 6,
    /// Owner to worker: a predecessor is missing; `stamp` is the lane's clock (P3).
    Gap = 8,
    /// Refused for good; `round` holds the [`Refusal`].
    Refused = 9,
    /// The incarnation is not the view's any more (P10).
    Fenced = 10,
    /// Not now: a bound is reached, or the segment is not here yet. Try again later.
    Busy = 11,
    /// The segment is elsewhere; carries its row (G1).
    WrongEpoch = 14,
    /// The sender knows a newer owner than the receiver; asks for the row (G1).
    NeedMap = 15,
    /// The incarnation is newer than the receiver's view; asks for the view (P10).
    NeedView = 16,
    /// Worker to owner: what have you applied of these segments? (P7)
    Resume = 18,
    /// Its answer: one clock per segment.
    ResumeReply = 19,
    /// Worker to shard: a lane has ended a round (T1).
    Closed = 20,
    /// Worker to shard: the view it has (T7).
    ViewUpdate = 21,
    /// Worker to server: a parked pull is not wanted (any more, or yet) (K5).
    Cancel = 23,
    /// Rows of the map (G1).
    MapDelta = 29,
}

impl Kind {
    const fn from_wire(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Push,
            2 => Self::Pushes,
            4 => Self::Pull,
            5 => Self::PullReply,
            6 => Self::Ack,
            8 => Self::Gap,
            9 => Self::Refused,
            10 => Self::Fenced,
            11 => Self::Busy,
            14 => Self::WrongEpoch,
            15 => Self::NeedMap,
            16 => Self::NeedView,
            18 => Self::Resume,
            19 => Self::ResumeReply,
            20 => Self::Closed,
            21 => Self::ViewUpdate,
            23 => Self::Cancel,
            29 => Self::MapDelta,
            _ => return None,
        })
    }
}

/// Why a request is refused for good.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[repr(u8)]
pub enum Refusal {
    /// No such table or segment.
    #[error("it has no such table or segment; is it of the same cluster?")]
    NoSuchSegment = 1,
    /// The range is not the segment's, or the payload is not as long as the range says.
    #[error("the range is not the segment's; do both sides run the same release?")]
    Shape = 2,
    /// A pull waited as long as its sender allowed.
    #[error("the pull has waited there as long as it was allowed to")]
    Expired = 3,
    /// The shard's host has no memory for the segment.
    #[error("its host has no memory for this part of the table; use more servers, or a smaller table")]
    NoMemory = 4,
    /// Not one of the above: a newer version's reason.
    #[error("for a reason that only a newer release knows")]
    Other = 255,
}

impl Refusal {
    /// Reads what `as u32` wrote.
    #[must_use]
    pub const fn from_wire(code: u32) -> Self {
        match code {
            1 => Self::NoSuchSegment,
            2 => Self::Shape,
            3 => Self::Expired,
            4 => Self::NoMemory,
            _ => Self::Other,
        }
    }
}

/// The fixed part of a head, without magic, version, lengths of extensions and check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// The first tile of a push: it begins at the segment's start (P2).
    pub first: bool,
    /// The last tile of a push: it ends at the segment's end (P2).
    pub last: bool,
    /// Whose.
    pub job: JobId,
    /// Length of the key section in bytes.
    pub key_bytes: u32,
    /// Length of the value section in bytes.
    pub value_bytes: u32,
    /// Of or to which segment; 0/0 where the kind has none.
    pub segment: SegmentId,
    /// The segment's assignment as the sender knows it.
    pub assignment: Assignment,
    /// Of which lane.
    pub lane: Lane,
    /// The sender's round; for a view its number.
    pub round: Round,
    /// The task's stamp, or a clock.
    pub stamp: Stamp,
    /// Keys of the values.
    pub range: KeyRange,
    /// The lane's preceding push to the same segment (P1).
    pub previous: Stamp,
}

impl Header {
    /// A header of `kind` with everything else zero.
    #[must_use]
    pub const fn of(kind: Kind, job: JobId) -> Self {
        Self {
            kind,
            first: false,
            last: false,
            job,
            key_bytes: 0,
            value_bytes: 0,
            segment: SegmentId(0),
            assignment: Assignment(0),
            lane: Lane(0),
            round: 0,
            stamp: Stamp(0),
            range: KeyRange::new(0, 0),
            previous: Stamp(0),
        }
    }

    /// The part of the segment that a push frame stands for (P2).
    #[must_use]
    pub const fn tile(&self, segment: KeyRange) -> KeyRange {
        KeyRange::new(
            if self.first { segment.start } else { self.range.start },
            if self.last { segment.end } else { self.range.end },
        )
    }
}

/// Numbers that an update function takes beside the values (P9): rate, regularisation, step.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Arguments {
    values: [f64; Self::MAX],
    len: u8,
}

impl Arguments {
    /// How many there may be.
    pub const MAX: usize = 4;

    /// These arguments; `None` when they are too many.
    #[must_use]
    pub fn new(values: &[f64]) -> Option<Self> {
        let mut arguments = Self { values: [0.0; Self::MAX], len: u8::try_from(values.len()).ok()? };
        arguments.values.get_mut(..values.len())?.copy_from_slice(values);
        Some(arguments)
    }

    /// The arguments.
    #[must_use]
    pub fn as_slice(&self) -> &[f64] {
        &self.values[..usize::from(self.len)]
    }
}

/// What a head may carry beyond the fixed part.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Extension {
    /// Bytes of push payload that the receiver of pushes has let go on this connection so far (B1).
    pub credit: Option<u64>,
    /// How a pull is admitted.
    pub pull: Option<PullOptions>,
    /// Tasks that must be covered first (T3, K3), at most [`AFTER_MAX`].
    pub after: Vec<(Lane, Stamp)>,
    /// Arguments of an update function.
    pub arguments: Arguments,
}

/// How a pull is admitted (T3, T4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PullOptions {
    /// Rounds that every member must have closed.
    pub rounds_needed: Round,
    /// How long the pull may be parked, in milliseconds from its arrival.
    pub patience_ms: u32,
}

/// Why a head is not believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// Shorter than it says, or than a header.
    #[error("a head of {found} bytes where {expected} were announced")]
    Length {
        /// Bytes there are.
        found: usize,
        /// Bytes there should be.
        expected: usize,
    },
    /// Not one of ours.
    #[error(
        "the first bytes are {0:#06x}, not a Rangefold frame; is another program connected to this port?"
    )]
    Magic(u16),
    /// A version that was not negotiated.
    #[error("frame version {0}; this side speaks {VERSION}")]
    Version(u8),
    /// An unknown kind of message.
    #[error("unknown message kind {0}; is the peer newer than this side?")]
    Kind(u8),
    /// Damaged, or of another connection.
    #[error("header check failed: the frame is damaged or belongs to another connection")]
    Check,
    /// An extension that is cut, repeated or must be understood and is not.
    #[error("extension section {0:#04x} is malformed or unknown and mandatory")]
    Section(u8),
}

/// Bytes of extensions that follow these first [`HEADER_BYTES`] bytes: what a byte stream must receive before it can
/// verify anything. Bounded by [`EXTENSION_BYTES_MAX`] even if the bytes are noise.
///
/// # Errors
/// [`WireError::Magic`], [`WireError::Version`], [`WireError::Length`].
pub fn extension_bytes(fixed: &[u8; HEADER_BYTES]) -> Result<usize, WireError> {
    let magic = u16::from_le_bytes([fixed[0], fixed[1]]);
    if magic != MAGIC {
        return Err(WireError::Magic(magic));
    }
    if fixed[2] != VERSION {
        return Err(WireError::Version(fixed[2]));
    }
    let bytes = usize::from(u16::from_le_bytes([fixed[4], fixed[5]]) >> EXTENSION_SHIFT) * 8;
    if bytes > EXTENSION_BYTES_MAX {
        return Err(WireError::Length { found: bytes, expected: EXTENSION_BYTES_MAX });
    }
    Ok(bytes)
}

fn check(head: &[u8], connection: u64) -> u32 {
    // CRC-32C fits 32 bits.
    let sum = |covered: &[u8]| {
        (crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, covered) & 0xffff_ffff) as u32
    };
    // Most heads have no extension, and need not have room for one cleared.
    if head.len() == HEADER_BYTES {
        let mut covered = [0u8; CHECK_AT + 8];
        covered[..CHECK_AT].copy_from_slice(&head[..CHECK_AT]);
        covered[CHECK_AT..].copy_from_slice(&connection.to_le_bytes());
        return sum(&covered);
    }
    let mut covered = [0u8; HEAD_BYTES_MAX + 8];
    let body = head.len() - 4;
    covered[..CHECK_AT].copy_from_slice(&head[..CHECK_AT]);
    covered[CHECK_AT..body].copy_from_slice(&head[HEADER_BYTES..]);
    covered[body..body + 8].copy_from_slice(&connection.to_le_bytes());
    sum(&covered[..body + 8])
}

/// Writes a head into `out` and returns its length; constant time but for the extensions.
///
/// # Panics
/// When `after` has more than [`AFTER_MAX`] entries, which a client's cannot: it names its own last push at most.
pub fn encode(
    header: &Header,
    extension: &Extension,
    connection: u64,
    out: &mut [u8; HEAD_BYTES_MAX],
) -> usize {
    let mut at = HEADER_BYTES;
    let mut section = |tag: u8, words: &mut dyn Iterator<Item = u64>| {
        let start = at;
        at += SECTION_HEAD_BYTES;
        for word in words {
            out[at..at + 8].copy_from_slice(&word.to_le_bytes());
            at += 8;
        }
        let count = (at - start) / 8 - 1;
        out[start..start + 8].copy_from_slice(&[
            tag,
            u8::try_from(count).unwrap_or(u8::MAX),
            0,
            0,
            0,
            0,
            0,
            0,
        ]);
    };
    if let Some(credit) = extension.credit {
        section(TAG_CREDIT, &mut core::iter::once(credit));
    }
    if let Some(pull) = extension.pull {
        let packed = u64::from(pull.rounds_needed) | u64::from(pull.patience_ms) << 32;
        section(TAG_PULL, &mut core::iter::once(packed));
    }
    if !extension.after.is_empty() {
        assert!(extension.after.len() <= AFTER_MAX, "at most {AFTER_MAX} dependencies travel in one frame");
        section(
            TAG_AFTER,
            &mut extension.after.iter().flat_map(|(lane, stamp)| [u64::from(lane.0), stamp.0]),
        );
    }
    if !extension.arguments.as_slice().is_empty() {
        section(TAG_ARGUMENTS, &mut extension.arguments.as_slice().iter().map(|value| value.to_bits()));
    }
    let delta = u32::try_from(header.stamp.0.wrapping_sub(header.previous.0)).unwrap_or(u32::MAX);
    if delta == u32::MAX {
        section(TAG_PREVIOUS, &mut core::iter::once(header.previous.0));
    }
    let units = u16::try_from((at - HEADER_BYTES) / 8).unwrap_or(u16::MAX);
    let flags = u16::from(header.first) | u16::from(header.last) << 1 | units << EXTENSION_SHIFT;
    out[0..2].copy_from_slice(&MAGIC.to_le_bytes());
    out[2] = VERSION;
    out[3] = header.kind as u8;
    out[4..6].copy_from_slice(&flags.to_le_bytes());
    out[6..8].copy_from_slice(&header.job.0.to_le_bytes());
    out[8..12].copy_from_slice(&header.key_bytes.to_le_bytes());
    out[12..16].copy_from_slice(&header.value_bytes.to_le_bytes());
    out[16..20].copy_from_slice(&header.segment.0.to_le_bytes());
    out[20..24].copy_from_slice(&header.assignment.0.to_le_bytes());
    out[24..28].copy_from_slice(&header.lane.0.to_le_bytes());
    out[28..32].copy_from_slice(&header.round.to_le_bytes());
    out[32..40].copy_from_slice(&header.stamp.0.to_le_bytes());
    out[40..48].copy_from_slice(&header.range.start.to_le_bytes());
    out[48..56].copy_from_slice(&header.range.end.to_le_bytes());
    out[56..60].copy_from_slice(&delta.to_le_bytes());
    let sum = check(&out[..at], connection);
    out[CHECK_AT..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    at
}

fn u32_of(fixed: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]])
}

/// The fixed part of a head that is as long as it says and has the right check.
fn verified(head: &[u8], connection: u64) -> Result<&[u8; HEADER_BYTES], WireError> {
    let short = WireError::Length { found: head.len(), expected: HEADER_BYTES };
    let fixed: &[u8; HEADER_BYTES] = head.first_chunk().ok_or(short)?;
    let expected = HEADER_BYTES + extension_bytes(fixed)?;
    if head.len() != expected {
        return Err(WireError::Length { found: head.len(), expected });
    }
    if check(head, connection) != u32_of(fixed, CHECK_AT) {
        return Err(WireError::Check);
    }
    Ok(fixed)
}

/// Reads a head of the connection with this number. Never panics, whatever the bytes.
///
/// # Errors
/// [`WireError`], saying what was found.
pub fn decode(head: &[u8], connection: u64) -> Result<(Header, Extension), WireError> {
    let fixed = verified(head, connection)?;
    let u16_at = |at: usize| u16::from_le_bytes([fixed[at], fixed[at + 1]]);
    let u32_at = |at: usize| u32_of(fixed, at);
    let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    let kind = Kind::from_wire(fixed[3]).ok_or(WireError::Kind(fixed[3]))?;
    let flags = u16_at(4);
    let stamp = Stamp(u64_at(32));
    let delta = u32_at(56);
    let (extension, previous) = decode_extension(&head[HEADER_BYTES..])?;
    let previous = match previous {
        Some(previous) => previous,
        None if delta == u32::MAX => return Err(WireError::Section(TAG_PREVIOUS)),
        None => Stamp(stamp.0.wrapping_sub(u64::from(delta))),
    };
    let header = Header {
        kind,
        first: flags & 1 != 0,
        last: flags & 2 != 0,
        job: JobId(u16_at(6)),
        key_bytes: u32_at(KEY_BYTES_AT),
        value_bytes: u32_at(VALUE_BYTES_AT),
        segment: SegmentId(u32_at(16)),
        assignment: Assignment(u32_at(20)),
        lane: Lane(u32_at(24)),
        round: u32_at(28),
        stamp,
        range: KeyRange::new(u64_at(40), u64_at(48)),
        previous,
    };
    Ok((header, extension))
}

/// The extensions, and the predecessor where it was too far away for the header.
fn decode_extension(mut bytes: &[u8]) -> Result<(Extension, Option<Stamp>), WireError> {
    let mut extension = Extension::default();
    let mut previous = None;
    while let Some((head, rest)) = bytes.split_first_chunk::<SECTION_HEAD_BYTES>() {
        let (tag, words) = (head[0], usize::from(head[1]));
        let section = rest.get(..words * 8).ok_or(WireError::Section(tag))?;
        bytes = &rest[words * 8..];
        let word = |index: usize| {
            section.get(index * 8..).and_then(<[u8]>::first_chunk).map(|&b| u64::from_le_bytes(b))
        };
        let malformed = WireError::Section(tag);
        match tag {
            TAG_CREDIT if words == 1 => extension.credit = word(0),
            TAG_PULL if words == 1 => {
                let packed = word(0).ok_or(malformed)?;
                // The two halves.
                extension.pull = Some(PullOptions {
                    rounds_needed: (packed & 0xffff_ffff) as u32,
                    patience_ms: (packed >> 32) as u32,
                });
            }
            TAG_AFTER if words % 2 == 0 && words / 2 <= AFTER_MAX => {
                for pair in 0..words / 2 {
                    let lane = word(pair * 2).and_then(|lane| u32::try_from(lane).ok()).ok_or(malformed)?;
                    extension.after.push((Lane(lane), Stamp(word(pair * 2 + 1).ok_or(malformed)?)));
                }
            }
            TAG_ARGUMENTS if words <= Arguments::MAX => {
                let mut values = [0.0; Arguments::MAX];
                for (index, value) in values.iter_mut().enumerate().take(words) {
                    *value = f64::from_bits(word(index).ok_or(malformed)?);
                }
                extension.arguments = Arguments::new(&values[..words]).ok_or(malformed)?;
            }
            TAG_PREVIOUS if words == 1 => previous = word(0).map(Stamp),
            TAG_CREDIT | TAG_PULL | TAG_AFTER | TAG_ARGUMENTS | TAG_PREVIOUS => return Err(malformed),
            unknown if unknown & MANDATORY != 0 => return Err(malformed),
            _ => {}
        }
    }
    if bytes.is_empty() { Ok((extension, previous)) } else { Err(WireError::Section(bytes[0])) }
}

/// Bytes of the body behind a head of the connection with this number; verifies length and check first, so a byte stream
/// may believe it. What the head says besides is [`decode`]'s.
///
/// # Errors
/// [`WireError::Length`], [`WireError::Magic`], [`WireError::Version`], [`WireError::Check`].
pub fn body_bytes(head: &[u8], connection: u64) -> Result<usize, WireError> {
    let fixed = verified(head, connection)?;
    Ok(u32_of(fixed, KEY_BYTES_AT) as usize + u32_of(fixed, VALUE_BYTES_AT) as usize)
}

const _: () = assert!(HEADER_BYTES == 64 && EXTENSION_BYTES_MAX / 8 < 1 << (16 - EXTENSION_SHIFT));
const _: () = assert!(
    // Credit, pull, predecessor, the most dependencies and arguments together fit the extensions.
    SECTION_HEAD_BYTES * 5 + 8 * 3 + AFTER_MAX * 16 + Arguments::MAX * 8 <= EXTENSION_BYTES_MAX
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> (Header, Extension) {
        let header = Header {
            first: true,
            last: false,
            key_bytes: 8,
            value_bytes: 4096,
            segment: SegmentId::new(crate::id::TableId(3), 5),
            assignment: Assignment(7),
            lane: Lane(11),
            round: 13,
            stamp: Stamp(2 << 40 | 9),
            range: KeyRange::new(100, 1124),
            previous: Stamp(2 << 40 | 4),
            ..Header::of(Kind::Push, JobId(1))
        };
        let extension = Extension {
            credit: Some(1 << 40),
            pull: Some(PullOptions { rounds_needed: 4, patience_ms: 1000 }),
            after: alloc::vec![(Lane(1), Stamp(5)), (Lane(2), Stamp(6))],
            arguments: Arguments::new(&[0.5, -2.0]).unwrap(),
        };
        (header, extension)
    }

    #[test]
    fn a_head_comes_back_as_it_went() {
        let (header, extension) = sample();
        let mut bytes = [0; HEAD_BYTES_MAX];
        let len = encode(&header, &extension, 42, &mut bytes);
        assert_eq!(decode(&bytes[..len], 42), Ok((header, extension)));
        assert_eq!(&bytes[..4], &[0x52, 0x46, 1, 1], "magic, version and kind are frozen");
    }

    //= protocol.md F1
    //= type=test
    #[test]
    fn a_frame_of_another_connection_is_not_believed() {
        let (header, extension) = sample();
        let mut bytes = [0; HEAD_BYTES_MAX];
        let len = encode(&header, &extension, 42, &mut bytes);
        assert_eq!(decode(&bytes[..len], 43), Err(WireError::Check));
    }

    #[test]
    fn a_predecessor_far_away_travels_in_an_extension() {
        for distance in [1, u64::from(u32::MAX) - 1, u64::from(u32::MAX), 1 << 33] {
            let header = Header {
                stamp: Stamp((5 << 40) + (1 << 33)),
                previous: Stamp((5 << 40) + (1 << 33) - distance),
                ..sample().0
            };
            let mut bytes = [0; HEAD_BYTES_MAX];
            let len = encode(&header, &Extension::default(), 1, &mut bytes);
            assert_eq!(decode(&bytes[..len], 1).unwrap().0, header, "{distance}");
        }
    }

    proptest! {
        #[test]
        fn any_damaged_bit_is_seen(bit in 0usize..8 * 64) {
            let (header, extension) = sample();
            let mut bytes = [0; HEAD_BYTES_MAX];
            let len = encode(&header, &extension, 42, &mut bytes);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode(&bytes[..len], 42).is_err());
        }

        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400), magic in any::<bool>()) {
            let mut bytes = bytes;
            if magic && bytes.len() > 4 { bytes[..3].copy_from_slice(&[0x52, 0x46, 1]); }
            let _ = decode(&bytes, 1);
            let _ = decode_extension(&bytes);
        }
    }

    #[test]
    fn an_unknown_section_is_skipped_unless_it_is_mandatory() {
        let section = |tag: u8| [tag, 1, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(decode_extension(&section(0x55)), Ok((Extension::default(), None)));
        assert_eq!(decode_extension(&section(0xd5)), Err(WireError::Section(0xd5)));
    }
}
