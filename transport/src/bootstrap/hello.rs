//! The two messages of the handshake, as bytes.
//! Knows layout and limits; reads from anything that blocks with a deadline. Called by `listener` and `dial`.
//!
//! ```text
//!    Hello                                        Reply
//!  0 magic (8 bytes)                            0 magic (8 bytes)
//!  8 version (2)                                8 version (2)
//! 10 purpose: 1 control, 2 data                10 answer: 1 ready, 2 refused, 3 another version
//! 11 zero                                      11 zero
//! 12 shard (2)                                 12 bytes of the text or greeting (2)
//! 14 job (2)                                   14 zero (2)
//! 16 bytes of the greeting (2)                 16 connection number (8)
//! 18 zero (6)                                  24 greeting of the acceptor, or UTF-8 text
//! 24 greeting
//! ```
//!
//! Numbers are little-endian. The first 24 bytes keep their meaning in all versions, so that sides of different
//! versions can tell each other so.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// The version of the handshake and of all that follows it.
pub const VERSION: u16 = 1;
/// Bytes of a greeting or of a refusal's text, at most.
pub const GREETING_BYTES_MAX: usize = 256;

const MAGIC: [u8; 8] = *b"rangefld";
const FIXED_BYTES: usize = 24;
/// Bytes of either message, at most.
const MESSAGE_BYTES_MAX: usize = FIXED_BYTES + GREETING_BYTES_MAX;
const _: () = assert!(MESSAGE_BYTES_MAX <= 512, "a handshake is at most 512 bytes each way");

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

/// What the accepting side answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Reply {
    Ready { number: u64, greeting: Vec<u8> },
    Refused { text: String },
    OtherVersion { theirs: u16 },
}

/// Why no message was read.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The deadline passed first.
    Late,
    /// The other side closed or the connection broke.
    Closed,
    /// It speaks something else.
    Foreign,
    /// A hello of another version.
    Version(u16),
}

impl Hello {
    /// # Panics
    /// When the greeting is too long: its maker has a limit to keep.
    pub(super) fn write(&self, stream: &TcpStream, deadline: Instant) -> Result<(), ReadError> {
        let mut fixed = [0; FIXED_BYTES];
        let (purpose, shard) = match self.purpose {
            Purpose::Control => (1, 0),
            Purpose::Data { shard } => (2, shard),
        };
        fixed[10] = purpose;
        fixed[12..14].copy_from_slice(&shard.to_le_bytes());
        fixed[14..16].copy_from_slice(&self.job.to_le_bytes());
        fixed[16..18].copy_from_slice(&length(&self.greeting).to_le_bytes());
        write(stream, deadline, fixed, &self.greeting)
    }

    pub(super) fn read(stream: &TcpStream, deadline: Instant) -> Result<Self, ReadError> {
        let (version, fixed) = read_fixed(stream, deadline)?;
        if version != VERSION {
            return Err(ReadError::Version(version));
        }
        let shard = u16::from_le_bytes([fixed[12], fixed[13]]);
        let purpose = match fixed[10] {
            1 => Purpose::Control,
            2 => Purpose::Data { shard },
            _ => return Err(ReadError::Foreign),
        };
        let job = u16::from_le_bytes([fixed[14], fixed[15]]);
        let greeting = read_rest(stream, deadline, u16::from_le_bytes([fixed[16], fixed[17]]))?;
        Ok(Self { purpose, job, greeting })
    }
}

impl Reply {
    pub(super) fn write(&self, stream: &TcpStream, deadline: Instant) -> Result<(), ReadError> {
        let mut fixed = [0; FIXED_BYTES];
        let rest: &[u8] = match self {
            Self::Ready { number, greeting } => {
                fixed[10] = 1;
                fixed[16..24].copy_from_slice(&number.to_le_bytes());
                greeting
            }
            Self::Refused { text } => {
                fixed[10] = 2;
                text.as_bytes()
            }
            Self::OtherVersion { .. } => {
                fixed[10] = 3;
                &[]
            }
        };
        fixed[12..14].copy_from_slice(&length(rest).to_le_bytes());
        write(stream, deadline, fixed, rest)
    }

    pub(super) fn read(stream: &TcpStream, deadline: Instant) -> Result<Self, ReadError> {
        let (version, fixed) = read_fixed(stream, deadline)?;
        if version != VERSION {
            return Ok(Self::OtherVersion { theirs: version });
        }
        let rest = read_rest(stream, deadline, u16::from_le_bytes([fixed[12], fixed[13]]))?;
        let (_, number) = fixed.split_last_chunk().ok_or(ReadError::Foreign)?;
        match fixed[10] {
            1 => Ok(Self::Ready { number: u64::from_le_bytes(*number), greeting: rest }),
            2 => Ok(Self::Refused { text: String::from_utf8_lossy(&rest).into_owned() }),
            3 => Ok(Self::OtherVersion { theirs: version }),
            _ => Err(ReadError::Foreign),
        }
    }
}

/// A text's beginning that fits into a reply.
pub(super) fn shortened(text: &str) -> String {
    let mut end = text.len().min(GREETING_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

fn length(rest: &[u8]) -> u16 {
    assert!(rest.len() <= GREETING_BYTES_MAX, "a greeting of {} bytes", rest.len());
    u16::try_from(rest.len()).unwrap_or(0)
}

fn write(
    mut stream: &TcpStream,
    deadline: Instant,
    mut fixed: [u8; FIXED_BYTES],
    rest: &[u8],
) -> Result<(), ReadError> {
    fixed[..8].copy_from_slice(&MAGIC);
    fixed[8..10].copy_from_slice(&VERSION.to_le_bytes());
    let bytes = [&fixed, rest].concat();
    stream.set_write_timeout(Some(left(deadline)?)).map_err(|_| ReadError::Closed)?;
    // A few hundred bytes always fit into the socket's buffer, so one timeout is the deadline.
    stream.write_all(&bytes).map_err(|error| cause(&error))
}

fn read_fixed(stream: &TcpStream, deadline: Instant) -> Result<(u16, [u8; FIXED_BYTES]), ReadError> {
    let mut fixed = [0; FIXED_BYTES];
    // The magic first: whoever speaks something else may never send as many bytes.
    let (magic, rest) = fixed.split_at_mut(MAGIC.len());
    read_exact(stream, deadline, magic)?;
    if magic != MAGIC {
        return Err(ReadError::Foreign);
    }
    read_exact(stream, deadline, rest)?;
    Ok((u16::from_le_bytes([fixed[8], fixed[9]]), fixed))
}

fn read_rest(stream: &TcpStream, deadline: Instant, bytes: u16) -> Result<Vec<u8>, ReadError> {
    let bytes = usize::from(bytes);
    if bytes > GREETING_BYTES_MAX {
        return Err(ReadError::Foreign);
    }
    let mut rest = vec![0; bytes];
    read_exact(stream, deadline, &mut rest)?;
    Ok(rest)
}

/// Reads all of it before the deadline, however slowly it comes.
fn read_exact(mut stream: &TcpStream, deadline: Instant, mut bytes: &mut [u8]) -> Result<(), ReadError> {
    while !bytes.is_empty() {
        stream.set_read_timeout(Some(left(deadline)?)).map_err(|_| ReadError::Closed)?;
        match stream.read(bytes) {
            Ok(0) => return Err(ReadError::Closed),
            Ok(count) => bytes = &mut bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(cause(&error)),
        }
    }
    Ok(())
}

fn cause(error: &io::Error) -> ReadError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ReadError::Late,
        _ => ReadError::Closed,
    }
}

/// Time until the deadline, never zero, which would mean "for ever".
fn left(deadline: Instant) -> Result<Duration, ReadError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ReadError::Late) } else { Ok(left) }
}
