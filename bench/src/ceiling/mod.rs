//! What the machine can do at most, by the shortest programs that do it. Nothing of ours but the add that is handed in.
//! One file for each way: over memory, over TCP, between the two cores. Called by the rows of `main.rs`.
//!
//! A ceiling must reach at least what ours can do. Where it depends on the machine and its load which way is the fastest
//! (a receiver that spins or blocks, small buffers or large), each is a row, and the best of a repeat is its ceiling. The
//! ping-pong that sleeps is a baseline: with two cores it is never the fastest.

pub(crate) mod add;
pub(crate) mod handoff;
pub(crate) mod tcp;

/// Bytes of one message of the streams and hand-overs.
pub(crate) const MESSAGE_BYTES: usize = 1 << 20;
/// Request and reply of the round trips: a push of 64 f32 with its head, and an acknowledgement's head.
const REQUEST_BYTES: usize = 320;
const REPLY_BYTES: usize = 64;
