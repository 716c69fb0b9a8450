//! Raw TCP over loopback: a stream, and a ping-pong. Knows sockets and how to wait at them.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::{MESSAGE_BYTES, REPLY_BYTES, REQUEST_BYTES};
use crate::cores;
use crate::spread::Spread;

/// Bytes that the stream's receiver takes at once: enough to make the call cheap, and they stay in its cache.
const CHUNK_BYTES: usize = 64 << 10;

/// Frames of one call of the coalesced stream.
const FRAMES: usize = 64;

/// How a side waits at its socket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// In the kernel, asleep.
    Block,
    /// Asking again and again.
    Spin,
}

/// One end of a connection. `Read` and `Write` return when something was done, whichever way it waits.
struct Wire(TcpStream);

impl Wire {
    fn pair() -> anyhow::Result<(Self, Self)> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let ours = TcpStream::connect(listener.local_addr()?)?;
        let (theirs, _) = listener.accept()?;
        ours.set_nodelay(true)?;
        theirs.set_nodelay(true)?;
        Ok((Self(ours), Self(theirs)))
    }

    fn waiting(self, wait: Wait) -> io::Result<Self> {
        self.0.set_nonblocking(wait == Wait::Spin)?;
        Ok(self)
    }
}

/// Asks until the answer is another than "not now". A blocking socket never says that.
fn insist<T>(mut ask: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match ask() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => cores::pause(),
            answer => return answer,
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        insist(|| self.0.read(buffer))
    }
}

impl Write for Wire {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        insist(|| self.0.write(buffer))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// GB/s of a stream of 1 MiB messages; with `adding`, the receiver adds each to a table of its size.
pub(crate) fn stream(length: Duration, receiver: Wait, adding: bool) -> anyhow::Result<f64> {
    let (mut ours, theirs) = Wire::pair()?;
    let theirs = theirs.waiting(receiver)?;
    let receiver = std::thread::spawn(move || receive(theirs, adding));
    let message = 1.0f32.to_le_bytes().repeat(MESSAGE_BYTES / 4);
    let (begun, mut messages) = (Instant::now(), 0);
    while begun.elapsed() < length {
        ours.write_all(&message)?;
        messages += 1;
    }
    drop(ours);
    let (received, table) = receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))?;
    let seconds = begun.elapsed().as_secs_f64();
    let sent = messages as usize * MESSAGE_BYTES;
    anyhow::ensure!(received == sent, "{received} of {sent} bytes of the raw stream arrived");
    let expected = if adding { messages as f32 } else { 0.0 };
    anyhow::ensure!(table.iter().all(|&sum| sum == expected), "sums of the raw stream are wrong");
    Ok(sent as f64 / seconds / 1e9)
}

/// Million frames a second of a stream that sends `FRAMES` of them with each call, as one vector of heads and bodies.
pub(crate) fn coalesced(length: Duration, receiver: Wait) -> anyhow::Result<f64> {
    let (mut ours, theirs) = Wire::pair()?;
    let theirs = theirs.waiting(receiver)?;
    let receiver = std::thread::spawn(move || receive(theirs, false));
    let (head, body) = ([1u8; REPLY_BYTES], [1u8; REQUEST_BYTES - REPLY_BYTES]);
    let vector: Vec<IoSlice<'_>> =
        (0..FRAMES).flat_map(|_| [IoSlice::new(&head), IoSlice::new(&body)]).collect();
    let (begun, mut calls) = (Instant::now(), 0);
    while begun.elapsed() < length {
        let mut rest = vector.clone();
        let mut rest = &mut rest[..];
        while !rest.is_empty() {
            let count = ours.0.write_vectored(rest)?;
            IoSlice::advance_slices(&mut rest, count);
        }
        calls += 1;
    }
    // Whole chunks, so that the receiver counts all.
    let sent = calls * FRAMES * REQUEST_BYTES;
    let rest = sent.next_multiple_of(CHUNK_BYTES) - sent;
    ours.write_all(&vec![0; rest])?;
    drop(ours);
    let (received, _) = receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))?;
    let seconds = begun.elapsed().as_secs_f64();
    anyhow::ensure!(received == sent + rest, "{received} of {sent} bytes of the raw stream arrived");
    Ok((calls * FRAMES) as f64 / seconds / 1e6)
}

/// Takes whole chunks until the sender has gone; says how many bytes came, and the sums.
fn receive(mut wire: Wire, adding: bool) -> (usize, Vec<f32>) {
    cores::pin_other();
    let mut table = vec![0.0f32; MESSAGE_BYTES / 4];
    let mut chunk = vec![0u8; CHUNK_BYTES];
    let mut received = 0;
    while wire.read_exact(&mut chunk).is_ok() {
        if adding {
            let at = received % MESSAGE_BYTES / 4;
            for (sum, value) in table[at..at + CHUNK_BYTES / 4].iter_mut().zip(chunk.as_chunks().0) {
                *sum += f32::from_le_bytes(*value);
            }
        }
        received += CHUNK_BYTES;
    }
    (received, table)
}

/// Median round trip of a ping-pong of 320 B and 64 B, in microseconds. Both sides wait alike.
pub(crate) fn ping_pong(length: Duration, wait: Wait) -> anyhow::Result<f64> {
    let (ours, theirs) = Wire::pair()?;
    let (mut ours, mut theirs) = (ours.waiting(wait)?, theirs.waiting(wait)?);
    let echo = std::thread::spawn(move || {
        cores::pin_other();
        let mut request = [0u8; REQUEST_BYTES];
        while theirs.read_exact(&mut request).is_ok() && theirs.write_all(&request[..REPLY_BYTES]).is_ok() {}
    });
    let (request, mut reply) = ([7u8; REQUEST_BYTES], [0u8; REPLY_BYTES]);
    let mut trips = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < length {
        let sent = Instant::now();
        ours.write_all(&request)?;
        ours.read_exact(&mut reply)?;
        trips.push(sent.elapsed().as_secs_f64() * 1e6);
        anyhow::ensure!(reply == [7; REPLY_BYTES], "the raw ping-pong's reply is not its request's");
    }
    drop(ours);
    echo.join().map_err(|_| anyhow::anyhow!("the echo panicked"))?;
    Ok(Spread::of(trips).context("no round trip within the length")?.median)
}
