//! The messages of the handshake, as bytes.
//! Knows layout and limits; reads slices and makes arrays, touches no stream. What follows what is `handshake`'s.
//!
//! ```text
//!    Hello, of the dialler                        Answer, of the acceptor
//!  0 magic (8 bytes)                            0 magic (8 bytes)
//!  8 version (2)                                8 version (2)
//! 10 purpose: 1 control, 2 data                10 answer: 1 ready, 2 refused, 3 another version,
//! 11 secret: 0 has none, 1 has one                4 challenge, 5 not authenticated, 6 elsewhere
//! 12 shard (2)                                 11 secret: 0 has none, 1 has one
//! 14 job (2)                                   12 bytes of the text, greeting or name (2)
//! 16 bytes of the greeting (2)                 14 why no shared memory, of 1: 0 not asked for, 1 another
//! 18 zero (6)                                     kernel, 2 not wanted, 3 cannot, 4 no room; else zero
//! 24 end                                       15 zero
//!                                              16 connection number (8), of 1; else zero
//!    Claim, of the dialler                     24 of 1: greeting, proof (32)
//!  0 nonce (32)                                   of 2: text in UTF-8, proof (32)
//! 32 asks for: 0 TCP, 1 either,                   of 3 and 5: end
//!    2 shared memory, 3 that here                 of 4: nonce (32)
//! 33 zero (3)                                     of 6: abstract name of a Unix socket, proof (32)
//! 36 process (4)
//! 40 kernel (16)
//! 56 greeting
//!  . proof (32)
//! ```
//!
//! Numbers are little-endian. The first 24 bytes of a hello and of an answer keep their meaning in all versions, so that
//! sides of different versions can tell each other so; a dialler of version 1 sends its greeting behind its hello, a claim of
//! version 2 has nothing between nonce and greeting.

use super::sharing::{Asked, KERNEL_BYTES, Kernel, Origin, Unshared};

/// The version of the handshake and of all that follows it.
pub const VERSION: u16 = 3;
/// Bytes of a greeting, of a refusal's text or of a name, at most.
pub const GREETING_BYTES_MAX: usize = 256;

pub(super) const MAGIC: [u8; 8] = *b"rangefld";
pub(super) const FIXED_BYTES: usize = 24;
pub(super) const NONCE_BYTES: usize = 32;
pub(super) const PROOF_BYTES: usize = 32;
pub(super) const ORIGIN_BYTES: usize = 24;

const _: () = assert!(ORIGIN_BYTES == 8 + KERNEL_BYTES, "asks for, zero, process, kernel");

/// Drawn anew for each connection, by each side.
pub type Nonce = [u8; NONCE_BYTES];

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Heartbeats, map changes, metrics: a blocking stream of a control thread.
    Control,
    /// Messages to one shard: a link for an endpoint.
    Data {
        /// Which shard of the process.
        shard: u16,
    },
}

/// What the dialling side says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// What for.
    pub purpose: Purpose,
    /// Of which job.
    pub job: u16,
    /// Opaque here, at most [`GREETING_BYTES_MAX`] bytes.
    pub greeting: Vec<u8>,
}

/// Why the first bytes of a message are none of ours, or none of this version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wrong {
    Foreign,
    Version(u16),
}

/// The fixed part of a hello.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct HelloHead {
    pub(super) purpose: Purpose,
    pub(super) has_secret: bool,
    pub(super) job: u16,
    pub(super) greeting_bytes: usize,
}

impl HelloHead {
    /// # Panics
    /// When the greeting is too long: its maker has a limit to keep.
    pub(super) fn of(hello: &Hello, has_secret: bool) -> Self {
        let greeting_bytes = hello.greeting.len();
        assert!(greeting_bytes <= GREETING_BYTES_MAX, "a greeting of {greeting_bytes} bytes");
        Self { purpose: hello.purpose, has_secret, job: hello.job, greeting_bytes }
    }

    pub(super) fn encode(&self) -> [u8; FIXED_BYTES] {
        let (purpose, shard) = match self.purpose {
            Purpose::Control => (1, 0),
            Purpose::Data { shard } => (2, shard),
        };
        let mut fixed = fixed(purpose, self.has_secret);
        fixed[12..14].copy_from_slice(&shard.to_le_bytes());
        fixed[14..16].copy_from_slice(&self.job.to_le_bytes());
        fixed[16..18].copy_from_slice(&length(self.greeting_bytes));
        fixed
    }

    pub(super) fn decode(fixed: &[u8; FIXED_BYTES]) -> Result<Self, Wrong> {
        let has_secret = open(fixed)?;
        let shard = u16::from_le_bytes([fixed[12], fixed[13]]);
        let purpose = match fixed[10] {
            1 => Purpose::Control,
            2 => Purpose::Data { shard },
            _ => return Err(Wrong::Foreign),
        };
        let job = u16::from_le_bytes([fixed[14], fixed[15]]);
        Ok(Self { purpose, has_secret, job, greeting_bytes: bounded([fixed[16], fixed[17]])? })
    }
}

/// The part of a claim between nonce and greeting.
pub(super) fn encode_origin(origin: &Origin) -> [u8; ORIGIN_BYTES] {
    let mut bytes = [0; ORIGIN_BYTES];
    bytes[0] = match origin.asked {
        Asked::Tcp => 0,
        Asked::Either => 1,
        Asked::Memory => 2,
        Asked::Here => 3,
    };
    bytes[4..8].copy_from_slice(&origin.process.to_le_bytes());
    bytes[8..].copy_from_slice(&origin.kernel.0);
    bytes
}

pub(super) fn decode_origin(bytes: &[u8; ORIGIN_BYTES]) -> Result<Origin, Wrong> {
    let asked = match bytes[0] {
        0 => Asked::Tcp,
        1 => Asked::Either,
        2 => Asked::Memory,
        3 => Asked::Here,
        _ => return Err(Wrong::Foreign),
    };
    let process = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    let (_, kernel) = bytes.split_last_chunk().ok_or(Wrong::Foreign)?;
    Ok(Origin { asked, process, kernel: Kernel(*kernel) })
}

/// What an answer is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// Behind it are greeting and proof.
    Ready { number: u64, greeting_bytes: usize, unshared: Option<Unshared> },
    /// Behind it are text and proof.
    Refused { text_bytes: usize },
    /// The other side's version is in it as in every message.
    OtherVersion,
    /// Behind it is the nonce.
    Challenge,
    /// The secret differs, or one side has none.
    Unauthenticated,
    /// Behind it are name and proof.
    Elsewhere { name_bytes: usize },
}

/// The fixed part of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct AnswerHead {
    pub(super) answer: Answer,
    pub(super) has_secret: bool,
}

impl AnswerHead {
    pub(super) fn encode(&self) -> [u8; FIXED_BYTES] {
        let (code, bytes, number) = match self.answer {
            Answer::Ready { number, greeting_bytes, .. } => (1, greeting_bytes, number),
            Answer::Refused { text_bytes } => (2, text_bytes, 0),
            Answer::OtherVersion => (3, 0, 0),
            Answer::Challenge => (4, 0, 0),
            Answer::Unauthenticated => (5, 0, 0),
            Answer::Elsewhere { name_bytes } => (6, name_bytes, 0),
        };
        let mut fixed = fixed(code, self.has_secret);
        fixed[12..14].copy_from_slice(&length(bytes));
        if let Answer::Ready { unshared, .. } = &self.answer {
            fixed[14] = Unshared::code(unshared.as_ref());
        }
        fixed[16..24].copy_from_slice(&number.to_le_bytes());
        fixed
    }

    pub(super) fn decode(fixed: &[u8; FIXED_BYTES]) -> Result<Self, Wrong> {
        let has_secret = open(fixed)?;
        let bytes = bounded([fixed[12], fixed[13]])?;
        let answer = match fixed[10] {
            1 => {
                let (_, number) = fixed.split_last_chunk().ok_or(Wrong::Foreign)?;
                let unshared = Unshared::of_code(fixed[14]).ok_or(Wrong::Foreign)?;
                Answer::Ready { number: u64::from_le_bytes(*number), greeting_bytes: bytes, unshared }
            }
            2 => Answer::Refused { text_bytes: bytes },
            3 => Answer::OtherVersion,
            4 => Answer::Challenge,
            5 => Answer::Unauthenticated,
            6 => Answer::Elsewhere { name_bytes: bytes },
            _ => return Err(Wrong::Foreign),
        };
        Ok(Self { answer, has_secret })
    }
}

/// A text's beginning that fits into an answer.
pub(super) fn shortened(text: &str) -> &str {
    let mut end = text.len().min(GREETING_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn fixed(code: u8, has_secret: bool) -> [u8; FIXED_BYTES] {
    let mut fixed = [0; FIXED_BYTES];
    fixed[..8].copy_from_slice(&MAGIC);
    fixed[8..10].copy_from_slice(&VERSION.to_le_bytes());
    fixed[10] = code;
    fixed[11] = u8::from(has_secret);
    fixed
}

/// What is the same in all: magic and version, and whether its sender has a secret.
fn open(fixed: &[u8; FIXED_BYTES]) -> Result<bool, Wrong> {
    if fixed[..8] != MAGIC {
        return Err(Wrong::Foreign);
    }
    match u16::from_le_bytes([fixed[8], fixed[9]]) {
        VERSION => {}
        other => return Err(Wrong::Version(other)),
    }
    match fixed[11] {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Wrong::Foreign),
    }
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(0).to_le_bytes()
}

fn bounded(length: [u8; 2]) -> Result<usize, Wrong> {
    let bytes = usize::from(u16::from_le_bytes(length));
    if bytes > GREETING_BYTES_MAX { Err(Wrong::Foreign) } else { Ok(bytes) }
}
