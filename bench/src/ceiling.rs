//! The machine's ceilings: a plain add over memory, a blocking TCP stream, a blocking ping-pong. Nothing of ours but
//! the add that is handed in.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::cores;

/// Bytes of one message of the streams.
pub(crate) const MESSAGE_BYTES: usize = 1 << 20;
/// Request and reply of the ping-pong: a push of 64 f32 with its head, and an acknowledgement's head.
const REQUEST_BYTES: usize = 320;
const REPLY_BYTES: usize = 64;

/// GB/s of `a[i] += b[i]` over `count` f32, counting the bytes of `b`, which a push would bring.
pub(crate) fn add(count: usize, length: Duration, add: fn(&mut [f32], &[f32])) -> f64 {
    let (mut a, b) = (vec![1.0f32; count], vec![1.0f32; count]);
    let begun = Instant::now();
    let mut passes = 0u32;
    while begun.elapsed() < length {
        add(&mut a, &b);
        passes += 1;
        std::hint::black_box(&mut a);
    }
    let seconds = begun.elapsed().as_secs_f64();
    assert!(a.iter().all(|&sum| sum == (passes + 1) as f32), "the sums are wrong");
    f64::from(passes) * (count * 4) as f64 / seconds / 1e9
}

/// The loop that anybody would write.
pub(crate) fn plain_add(a: &mut [f32], b: &[f32]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a += *b;
    }
}

fn connected() -> anyhow::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let ours = TcpStream::connect(listener.local_addr()?)?;
    let (theirs, _) = listener.accept()?;
    ours.set_nodelay(true)?;
    theirs.set_nodelay(true)?;
    Ok((ours, theirs))
}

/// GB/s of a blocking stream of 1 MiB messages; with `adding`, the receiver adds each to a table of its size.
pub(crate) fn stream(length: Duration, adding: bool) -> anyhow::Result<f64> {
    let (mut ours, mut theirs) = connected()?;
    let receiver = std::thread::spawn(move || {
        cores::pin_other();
        let mut table = vec![0.0f32; MESSAGE_BYTES / 4];
        let mut chunk = vec![0u8; 256 << 10];
        let mut received = 0usize;
        loop {
            let mut filled = 0;
            while filled < chunk.len() {
                match theirs.read(&mut chunk[filled..]) {
                    Ok(0) | Err(_) => return received,
                    Ok(count) => filled += count,
                }
            }
            if adding {
                let at = received % MESSAGE_BYTES / 4;
                for (sum, value) in table[at..at + filled / 4].iter_mut().zip(chunk.as_chunks::<4>().0) {
                    *sum += f32::from_le_bytes(*value);
                }
            }
            received += filled;
        }
    });
    let message = vec![0u8; MESSAGE_BYTES];
    let begun = Instant::now();
    let mut sent = 0;
    while begun.elapsed() < length {
        ours.write_all(&message)?;
        sent += message.len();
    }
    drop(ours);
    let received = receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))?;
    anyhow::ensure!(received == sent, "{received} of {sent} bytes arrived");
    Ok(sent as f64 / begun.elapsed().as_secs_f64() / 1e9)
}

/// Median round trip of a blocking ping-pong, in microseconds.
pub(crate) fn ping_pong(length: Duration) -> anyhow::Result<f64> {
    let (mut ours, mut theirs) = connected()?;
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
        anyhow::ensure!(reply == [7; REPLY_BYTES], "the reply is not the request's");
    }
    drop(ours);
    echo.join().map_err(|_| anyhow::anyhow!("the echo panicked"))?;
    Ok(median(&mut trips))
}

/// The middle one.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
