//! A handshake on a stream that blocks: reads and writes what its steps ask for, all before one deadline.
//! Knows timeouts; neither addresses nor what is said. Called by `dial` and `listener` for each kind of stream.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::Terms;
use super::handshake::{Fault, READ_BYTES_MAX, Step};
use super::keepalive;

/// A connected stream that blocks, with timeouts.
pub(super) trait Stream {
    /// Reads what is there, waiting for `timeout` at most.
    fn receive(&self, bytes: &mut [u8], timeout: Duration) -> io::Result<usize>;
    /// Writes what there is room for, waiting for `timeout` at most.
    fn send(&self, bytes: &[u8], timeout: Duration) -> io::Result<usize>;
    /// Blocks without timeouts from now on.
    fn unbound(&self) -> io::Result<()>;
}

macro_rules! impl_stream {
    ($kind:ty) => {
        impl Stream for $kind {
            fn receive(&self, bytes: &mut [u8], timeout: Duration) -> io::Result<usize> {
                self.set_read_timeout(Some(timeout))?;
                (&*self).read(bytes)
            }

            fn send(&self, bytes: &[u8], timeout: Duration) -> io::Result<usize> {
                self.set_write_timeout(Some(timeout))?;
                (&*self).write(bytes)
            }

            fn unbound(&self) -> io::Result<()> {
                self.set_read_timeout(None)?;
                self.set_write_timeout(None)
            }
        }
    };
}

impl_stream!(TcpStream);
impl_stream!(UnixStream);

/// Why a handshake did not come to its end.
#[derive(Debug)]
pub(super) enum Failure {
    /// The deadline passed first.
    Late,
    /// The other side closed or the connection broke.
    Closed,
    /// What the other side said.
    Fault(Fault),
}

/// Takes a handshake's steps to their end, beginning with `step`.
pub(super) fn converse<T>(
    stream: &impl Stream,
    deadline: Instant,
    mut step: Step<T>,
    mut take: impl FnMut(&[u8]) -> Result<Step<T>, Fault>,
) -> Result<T, Failure> {
    let mut bytes = [0; READ_BYTES_MAX];
    loop {
        let (say, read) = match step {
            Step::Next { say, read } => (say, read),
            Step::End(end) => return Ok(end),
        };
        write(stream, deadline, &say)?;
        let bytes = &mut bytes[..read];
        read_exact(stream, deadline, bytes)?;
        step = take(bytes).map_err(Failure::Fault)?;
    }
}

/// Writes all of it before the deadline.
pub(super) fn write(stream: &impl Stream, deadline: Instant, mut bytes: &[u8]) -> Result<(), Failure> {
    while !bytes.is_empty() {
        match stream.send(bytes, left(deadline)?) {
            Ok(0) => return Err(Failure::Closed),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(cause(&error)),
        }
    }
    Ok(())
}

/// Reads all of it before the deadline, however slowly it comes.
fn read_exact(stream: &impl Stream, deadline: Instant, mut bytes: &mut [u8]) -> Result<(), Failure> {
    while !bytes.is_empty() {
        match stream.receive(bytes, left(deadline)?) {
            Ok(0) => return Err(Failure::Closed),
            Ok(count) => bytes = &mut bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(cause(&error)),
        }
    }
    Ok(())
}

/// Makes a TCP stream after its handshake what the sides use: without timeouts and delays, its silence noticed.
pub(super) fn settle(stream: &TcpStream, terms: &Terms) -> io::Result<()> {
    stream.unbound()?;
    stream.set_nodelay(true)?;
    keepalive::watch(stream, terms.peer_timeout)
}

fn cause(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Failure::Late,
        _ => Failure::Closed,
    }
}

/// Time until the deadline, never zero, which would mean "for ever".
pub(super) fn left(deadline: Instant) -> Result<Duration, Failure> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(Failure::Late) } else { Ok(left) }
}
