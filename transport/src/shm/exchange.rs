//! How two processes come to share a mapping: one makes and offers it, the other checks it and says yes or why not.
//! Knows messages, deadlines and reasons; does not know how the socket was connected or who may connect.
//! Called by whoever has finished a handshake over a Unix socket; leaves a `Link`.
//! Source: unix(7), SCM_RIGHTS.
//!
//! ```text
//!    Offer, with the memfd                     Answer
//!  0 magic (8)                                0 magic (8)
//!  8 connection number (8)                    8 answer: 0 yes, 1 no memory, 2 no agreement (1)
//! 16 bytes of a ring (8)                      9 zero (7)
//! ```
//!
//! Numbers are little-endian. The magic names the layout of the mapping (`mapping.rs`) as well: who changes one changes the other.

use std::io::{IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use thiserror::Error;

use super::Half;
use super::mapping::{Mapping, Unfit, mapped_bytes};
use crate::link::{Kind, Link};

/// Bytes of each of a link's two rings, by default (`transport/DESIGN.md`, shm).
pub const RING_BYTES_DEFAULT: usize = 1 << 20;
/// The smallest ring: a page.
pub const RING_BYTES_MIN: usize = 4 << 10;
/// The largest ring that an accepting side maps, whatever its own setting.
pub const RING_BYTES_MAX: usize = 16 << 20;

const MAGIC: [u8; 8] = *b"rfshm\0\0\x01";
const OFFER_BYTES: usize = 24;
const ANSWER_BYTES: usize = 16;
/// Descriptors that one message has room for. One is expected; of a second one the sender hears, and nobody keeps it.
const DESCRIPTORS_MAX: usize = 2;

/// Why there is no link.
#[derive(Debug, Error)]
pub enum ExchangeError {
    /// This side cannot make or map the memory.
    #[error(
        "cannot make {bytes} bytes of shared memory for a link: {source}; lower the ring size or the number of links, \
         or raise the memory limit (cgroup) or the limit of descriptors (ulimit -n)"
    )]
    Memory {
        /// What was asked for.
        bytes: usize,
        /// The system's words.
        source: std::io::Error,
    },
    /// The deadline passed.
    #[error("the other process did not answer in time; it is stopped or overloaded")]
    Late,
    /// The socket's other end is gone.
    #[error(
        "the other process closed the socket in the middle of the exchange; it is ending, or has refused"
    )]
    Closed,
    /// The other side speaks something else, or another version of it.
    #[error("the other process speaks another version of the shared-memory exchange; run the same release")]
    Foreign,
    /// The other side does not want it.
    #[error("the other process refused the shared memory: {0}")]
    Refused(Refusal),
    /// This side does not want it.
    #[error("shared memory of the other process refused: {0}")]
    Unfit(String),
}

/// What the answer to an offer says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Refusal {
    /// It could not map it.
    #[error("it cannot map it; raise its memory limit")]
    Memory,
    /// The ring's size, the number, or the memory itself.
    #[error("number, ring size or seals are not what it accepts; compare the settings of both sides")]
    Terms,
}

/// Makes the memory of the smallest link and gives it back: whether this process can share any.
///
/// # Errors
/// The system's.
pub fn probe() -> std::io::Result<()> {
    Mapping::create(RING_BYTES_MIN).map(drop)
}

/// Makes the memory of a link, with `ring_bytes` for each direction, and offers it to the process at the other end of the
/// socket, which calls [`accept`]. Blocks until `deadline` at most.
///
/// The memory is charged to this process.
///
/// # Errors
/// [`ExchangeError`].
///
/// # Panics
/// When `ring_bytes` is not a power of two from [`RING_BYTES_MIN`] to [`RING_BYTES_MAX`].
pub fn offer(
    socket: UnixStream,
    number: u64,
    ring_bytes: usize,
    deadline: Instant,
) -> Result<Link, ExchangeError> {
    assert!(is_ring(ring_bytes), "a ring of {ring_bytes} bytes");
    let no_memory = |source| ExchangeError::Memory { bytes: mapped_bytes(ring_bytes), source };
    let (mapping, file) = Mapping::create(ring_bytes).map_err(no_memory)?;
    let mut message = [0; OFFER_BYTES];
    message[..8].copy_from_slice(&MAGIC);
    message[8..16].copy_from_slice(&number.to_le_bytes());
    message[16..].copy_from_slice(&(ring_bytes as u64).to_le_bytes());
    pass(&socket, &message, &[file.as_fd()], deadline)?;
    drop(file);
    let mut answer = [0; ANSWER_BYTES];
    read_exact(&socket, &mut answer, deadline)?;
    if answer[..8] != MAGIC || answer[9..] != [0; 7] {
        return Err(ExchangeError::Foreign);
    }
    match answer[8] {
        0 => Ok(link(socket, mapping, 0, number)),
        1 => Err(ExchangeError::Refused(Refusal::Memory)),
        2 => Err(ExchangeError::Refused(Refusal::Terms)),
        _ => Err(ExchangeError::Foreign),
    }
}

/// Takes the memory that the process at the other end of the socket offers by [`offer`], if it is for this `number`, sealed,
/// and its rings have at most `ring_bytes_max` each. Blocks until `deadline` at most.
///
/// # Errors
/// [`ExchangeError`]. The other side is told when there is something to be told.
pub fn accept(
    socket: UnixStream,
    number: u64,
    ring_bytes_max: usize,
    deadline: Instant,
) -> Result<Link, ExchangeError> {
    let (message, descriptor) = take(&socket, deadline)?;
    if message[..8] != MAGIC {
        return Err(ExchangeError::Foreign);
    }
    let refuse = |answer, text: String| {
        // It hears of the close, if not of this.
        let _ = reply(&socket, answer, deadline);
        ExchangeError::Unfit(text)
    };
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&message[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    if word(8) != number {
        return Err(refuse(2, format!("it is for connection {:x}, not for {number:x}", word(8))));
    }
    let limit = ring_bytes_max.min(RING_BYTES_MAX);
    let ring_bytes = usize::try_from(word(16)).ok().filter(|bytes| is_ring(*bytes) && *bytes <= limit);
    let Some(ring_bytes) = ring_bytes else {
        let text = format!(
            "rings of {} bytes; a power of two from {RING_BYTES_MIN} to {limit} is accepted",
            word(16)
        );
        return Err(refuse(2, text));
    };
    let Some(descriptor) = descriptor else {
        return Err(refuse(2, "not exactly one descriptor was passed with it".into()));
    };
    let mapping = Mapping::open(&descriptor, ring_bytes).map_err(|unfit| {
        let answer = if matches!(unfit, Unfit::Map(_)) { 1 } else { 2 };
        refuse(answer, unfit.to_string())
    })?;
    reply(&socket, 0, deadline)?;
    Ok(link(socket, mapping, 1, number))
}

fn is_ring(bytes: usize) -> bool {
    bytes.is_power_of_two() && (RING_BYTES_MIN..=RING_BYTES_MAX).contains(&bytes)
}

fn link(socket: UnixStream, mapping: Mapping, side: usize, number: u64) -> Link {
    Link::of(Kind::Shm(Half::new(socket, mapping, side)), number)
}

fn reply(socket: &UnixStream, answer: u8, deadline: Instant) -> Result<(), ExchangeError> {
    let mut message = [0; ANSWER_BYTES];
    message[..8].copy_from_slice(&MAGIC);
    message[8] = answer;
    pass(socket, &message, &[], deadline)
}

/// Sends a message, and descriptors with it.
fn pass(
    socket: &UnixStream,
    message: &[u8],
    descriptors: &[std::os::fd::BorrowedFd<'_>],
    deadline: Instant,
) -> Result<(), ExchangeError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        let fits = control.push(SendAncillaryMessage::ScmRights(descriptors));
        assert!(fits, "there is room for one");
    }
    loop {
        socket.set_write_timeout(Some(left(deadline)?)).map_err(|_| ExchangeError::Closed)?;
        // Some bytes into an empty buffer: all or nothing.
        match sendmsg(socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL) {
            Ok(count) if count == message.len() => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(ExchangeError::Late),
            Ok(_) | Err(_) => return Err(ExchangeError::Closed),
        }
    }
}

/// Receives an offer. `None` when it brought another number of descriptors than one; all it brought are closed then.
fn take(
    socket: &UnixStream,
    deadline: Instant,
) -> Result<([u8; OFFER_BYTES], Option<OwnedFd>), ExchangeError> {
    let mut message = [0; OFFER_BYTES];
    let (mut filled, mut descriptors, mut truncated) = (0, Vec::new(), false);
    while filled < message.len() {
        socket.set_read_timeout(Some(left(deadline)?)).map_err(|_| ExchangeError::Closed)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut vector = [IoSliceMut::new(&mut message[filled..])];
        match recvmsg(socket, &mut vector, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => {
                for ancillary in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(passed) = ancillary {
                        descriptors.extend(passed);
                    }
                }
                // One too many is enough to know, however many messages they are spread over.
                descriptors.truncate(DESCRIPTORS_MAX);
                truncated |= received.flags.contains(ReturnFlags::CTRUNC);
                if received.bytes == 0 {
                    return Err(ExchangeError::Closed);
                }
                filled += received.bytes;
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(ExchangeError::Late),
            Err(_) => return Err(ExchangeError::Closed),
        }
    }
    let only = if descriptors.len() == 1 && !truncated { descriptors.pop() } else { None };
    Ok((message, only))
}

/// Reads all of it before the deadline, however slowly it comes.
fn read_exact(mut socket: &UnixStream, mut bytes: &mut [u8], deadline: Instant) -> Result<(), ExchangeError> {
    while !bytes.is_empty() {
        socket.set_read_timeout(Some(left(deadline)?)).map_err(|_| ExchangeError::Closed)?;
        match socket.read(bytes) {
            Ok(0) => return Err(ExchangeError::Closed),
            Ok(count) => bytes = &mut bytes[count..],
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Err(ExchangeError::Late),
            Err(_) => return Err(ExchangeError::Closed),
        }
    }
    Ok(())
}

fn left(deadline: Instant) -> Result<Duration, ExchangeError> {
    let left = deadline.saturating_duration_since(Instant::now());
    // A timeout of zero would mean none.
    if left < Duration::from_micros(1) { Err(ExchangeError::Late) } else { Ok(left) }
}
