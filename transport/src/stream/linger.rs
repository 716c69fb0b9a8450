//! Connections that this side has closed and the other side may still be writing to.
//! Knows sockets; does not know peers any more. Called by the endpoints of `socket` and `uring`.
//!
//! A socket that is closed with bytes unread, or that receives some after, answers with a reset, and the other side would
//! take an orderly close for a broken connection. So the bytes are read away until the other side has closed too, for
//! a bounded time and of a bounded number of connections.

use std::collections::VecDeque;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::stream::CLOSE_PATIENCE_MS;

/// Connections that are kept for this at a time; the oldest is given up first.
const COUNT_MAX: usize = 64;
/// Reads of one connection and poll.
const READS: usize = 16;

#[derive(Default)]
pub(crate) struct Lingering {
    streams: VecDeque<(TcpStream, Instant)>,
    away: Vec<u8>,
}

impl Lingering {
    /// Ends the sending direction and waits for the end of the other.
    pub(crate) fn push(&mut self, stream: TcpStream) {
        // An error means that the connection is gone already.
        if stream.shutdown(Shutdown::Write).is_err() {
            return;
        }
        if self.streams.len() == COUNT_MAX {
            self.streams.pop_front();
        }
        let until = Instant::now() + Duration::from_millis(u64::from(CLOSE_PATIENCE_MS));
        self.streams.push_back((stream, until));
        self.poll();
    }

    /// Reads away what came. Costs nothing when nobody lingers.
    pub(crate) fn poll(&mut self) {
        if self.streams.is_empty() {
            return;
        }
        let now = Instant::now();
        self.away.resize(64 << 10, 0);
        let away = &mut self.away;
        self.streams.retain(|(stream, until)| now < *until && is_open(stream, away));
    }
}

/// Reads away what is there. Whether the other side may send more.
fn is_open(stream: &TcpStream, away: &mut [u8]) -> bool {
    for _ in 0..READS {
        match rustix::net::recv(stream, &mut *away, rustix::net::RecvFlags::DONTWAIT) {
            Ok((0, _)) => return false,
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return error == rustix::io::Errno::AGAIN,
        }
    }
    true
}
