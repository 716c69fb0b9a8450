//! Hand-overs between the two cores of one process, without a system call: what `memory` can reach at most.
//! Knows channels and atomics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::{MESSAGE_BYTES, REPLY_BYTES, REQUEST_BYTES};
use crate::cores;
use crate::spread::Spread;

/// Buffers that travel, as many as pushes of ours are under way.
const BUFFERS: usize = 8;

/// Bytes of a buffer. Either may be the faster: small ones stay in the nearest caches, and who waits for them spins; with
/// large ones a side that is not let run for a while does not stop the other, and who waits for them sleeps after a while,
/// so that other work is done then and not when there is something to do.
#[derive(Clone, Copy)]
pub(crate) enum Buffers {
    Small = 64 << 10,
    Large = MESSAGE_BYTES as isize,
}

/// GB/s of messages of ones, copied here into buffers and added there to a table of 1 MiB.
pub(crate) fn push(length: Duration, buffers: Buffers, add: fn(&mut [f32], &[f32])) -> anyhow::Result<f64> {
    let message = vec![1.0f32; MESSAGE_BYTES / 4];
    let mut table = vec![0.0f32; MESSAGE_BYTES / 4];
    let (mut copied, mut added) = (pieces(buffers), pieces(buffers));
    let fill = |buffer: &mut [f32]| buffer.copy_from_slice(&message[copied.next().unwrap_or_default()]);
    let take = |buffer: &mut [f32]| add(&mut table[added.next().unwrap_or_default()], buffer);
    let (rate, messages) = hand_over(length, buffers, fill, take)?;
    anyhow::ensure!(table.iter().all(|&sum| sum == messages as f32), "sums of the raw hand-over are wrong");
    Ok(rate)
}

/// GB/s of a table of 1 MiB, copied there into buffers that come back here. They are not read here, as ours are not.
pub(crate) fn pull(length: Duration, buffers: Buffers) -> anyhow::Result<f64> {
    let table = vec![1.0f32; MESSAGE_BYTES / 4];
    let mut copied = pieces(buffers);
    let see = |buffer: &mut [f32]| {
        std::hint::black_box(buffer);
    };
    let fill = |buffer: &mut [f32]| buffer.copy_from_slice(&table[copied.next().unwrap_or_default()]);
    Ok(hand_over(length, buffers, see, fill)?.0)
}

/// Where each buffer lies in its message, over and over.
fn pieces(buffers: Buffers) -> impl Iterator<Item = std::ops::Range<usize>> {
    let len = buffers as usize / 4;
    (0..MESSAGE_BYTES / 4 / len).cycle().map(move |piece| piece * len..(piece + 1) * len)
}

/// Lets whole messages go round: `here` works on each buffer, then `there` on the other core. GB/s, and how many messages.
fn hand_over(
    length: Duration,
    buffers: Buffers,
    mut here: impl FnMut(&mut [f32]),
    mut there: impl FnMut(&mut [f32]) + Send,
) -> anyhow::Result<(f64, u32)> {
    std::thread::scope(|scope| {
        let (go, gone) = channel::<Vec<f32>>();
        let (come_back, back) = channel();
        for _ in 0..BUFFERS {
            come_back.send(vec![0.0; buffers as usize / 4])?;
        }
        let other = scope.spawn(move || {
            cores::pin_other();
            while let Some(mut buffer) = buffers.wait(&gone) {
                there(&mut buffer);
                if come_back.send(buffer).is_err() {
                    return;
                }
            }
        });
        let (begun, mut messages) = (Instant::now(), 0);
        while begun.elapsed() < length {
            for _ in 0..MESSAGE_BYTES / buffers as usize {
                let mut buffer = buffers.wait(&back).context("the other side panicked")?;
                here(&mut buffer);
                go.send(buffer)?;
            }
            messages += 1;
        }
        drop(go);
        // The last buffers count when they are done.
        other.join().map_err(|_| anyhow::anyhow!("the other side panicked"))?;
        let seconds = begun.elapsed().as_secs_f64();
        Ok((f64::from(messages) * MESSAGE_BYTES as f64 / seconds / 1e9, messages))
    })
}

impl Buffers {
    /// The next one, or none when the sender has gone.
    fn wait<T>(self, receiver: &Receiver<T>) -> Option<T> {
        match self {
            Self::Small => loop {
                match receiver.try_recv() {
                    Ok(value) => return Some(value),
                    Err(TryRecvError::Empty) => cores::pause(),
                    Err(TryRecvError::Disconnected) => return None,
                }
            },
            Self::Large => receiver.recv().ok(),
        }
    }
}

/// A request and a reply in memory that both cores see. Apart, so that neither shares a line with `turn`.
#[derive(Default)]
#[repr(align(128))]
struct Apart<T>(T);

#[derive(Default)]
struct Mailbox {
    request: Apart<Letter<{ REQUEST_BYTES / 8 }>>,
    reply: Apart<Letter<{ REPLY_BYTES / 8 }>>,
    /// Odd: the request is there. Even: its reply is. `END`: no more.
    turn: Apart<AtomicU64>,
}

const END: u64 = u64::MAX;

struct Letter<const WORDS: usize>([AtomicU64; WORDS]);

impl<const WORDS: usize> Default for Letter<WORDS> {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; WORDS])
    }
}

impl<const WORDS: usize> Letter<WORDS> {
    /// Relaxed, as `turn` orders: its Release store pairs with the other side's Acquire load.
    fn write(&self, words: &[u64]) {
        for (word, value) in self.0.iter().zip(words) {
            word.store(*value, Ordering::Relaxed);
        }
    }

    /// Relaxed for the same reason.
    fn read(&self) -> [u64; WORDS] {
        std::array::from_fn(|index| self.0[index].load(Ordering::Relaxed))
    }
}

/// Median round trip of 320 B and 64 B through memory, in microseconds.
pub(crate) fn round_trip(length: Duration) -> anyhow::Result<f64> {
    let mailbox = Mailbox::default();
    let turn = &mailbox.turn.0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            cores::pin_other();
            let mut done = 0;
            loop {
                match turn.load(Ordering::Acquire) {
                    END => return,
                    now if now == done + 1 => {
                        mailbox.reply.0.write(&mailbox.request.0.read());
                        done += 2;
                        turn.store(done, Ordering::Release);
                    }
                    _ => cores::pause(),
                }
            }
        });
        let (mut trips, mut done) = (Vec::new(), 0);
        let mut right = true;
        let begun = Instant::now();
        while begun.elapsed() < length {
            let sent = Instant::now();
            mailbox.request.0.write(&[done; REQUEST_BYTES / 8]);
            turn.store(done + 1, Ordering::Release);
            while turn.load(Ordering::Acquire) != done + 2 {
                cores::pause();
            }
            right &= mailbox.reply.0.read() == [done; REPLY_BYTES / 8];
            trips.push(sent.elapsed().as_secs_f64() * 1e6);
            done += 2;
        }
        turn.store(END, Ordering::Release);
        anyhow::ensure!(right, "a reply of the raw hand-over is not its request's");
        Ok(Spread::of(trips).context("no round trip within the length")?.median)
    })
}
