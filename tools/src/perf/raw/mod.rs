//! The bare transport: what a sender and a receiver of frames share.
//! Knows the head of a frame and one link; not when frames are due. Called by `sender.rs` and `receiver.rs`.
//!
//! ```text
//!  0 magic (8 bytes)
//!  8 connection number (8)
//! 16 kind: 1 frame, 2 question, 3 acknowledgement (1)
//! 17 flags of a frame: 1 acknowledge, 2 check (1)
//! 18 zero (2)
//! 20 bytes of the body (4)
//! 24 number of the frame; of an acknowledgement: frames received (8)
//! 32 seed of the body; of an acknowledgement: bytes that were wrong (8)
//! 40 zero (24)
//! ```
//!
//! Numbers are little-endian. Frames of a link count from 0 without a gap. An acknowledgement stands for all frames up to its
//! number and answers a frame that asks for it, or a question, which has no body. A head carries no check of its own: TCP
//! and the memory have theirs, and what is measured is the transport.

pub(super) mod receiver;
pub(super) mod sender;

use rangefold_transport::{
    Batch, Body, Endpoint, Events, Framing, HEADER_BYTES, Head, Link, LostReason, Peer, Token,
};

use super::stop::Stop;

const MAGIC: [u8; 8] = *b"rf-perf1";
const ACKNOWLEDGE: u8 = 1;
const CHECK: u8 = 2;
/// Events of one turn, at most.
const EVENTS_MAX: usize = 256;

/// What a message says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Message {
    Frame { number: u64, seed: u64, acknowledge: bool, check: bool },
    Question,
    Acknowledgement { received: u64, wrong: u64 },
}

/// What a byte stream must know of these heads.
pub(super) fn framing() -> Framing {
    Framing {
        extension_bytes: |fixed| fixed.starts_with(&MAGIC).then_some(0),
        body_bytes: |head, connection| {
            let (_, body_bytes) = decode(head, connection)?;
            usize::try_from(body_bytes).ok()
        },
    }
}

fn encode(message: Message, connection: u64, body_bytes: u32) -> Head {
    let (kind, flags, number, value) = match message {
        Message::Frame { number, seed, acknowledge, check } => {
            let acknowledge = if acknowledge { ACKNOWLEDGE } else { 0 };
            let check = if check { CHECK } else { 0 };
            (1, acknowledge | check, number, seed)
        }
        Message::Question => (2, 0, 0, 0),
        Message::Acknowledgement { received, wrong } => (3, 0, received, wrong),
    };
    let mut head = [0; HEADER_BYTES];
    head[..8].copy_from_slice(&MAGIC);
    head[8..16].copy_from_slice(&connection.to_le_bytes());
    (head[16], head[17]) = (kind, flags);
    head[20..24].copy_from_slice(&body_bytes.to_le_bytes());
    head[24..32].copy_from_slice(&number.to_le_bytes());
    head[32..40].copy_from_slice(&value.to_le_bytes());
    let Some(head) = Head::new(&head) else { unreachable!("a head of 64 bytes is a head") };
    head
}

/// The message and the bytes of its body; `None` for what is no head of this connection.
fn decode(head: &[u8], connection: u64) -> Option<(Message, u32)> {
    let head: &[u8; HEADER_BYTES] = head.try_into().ok()?;
    let word = |at: usize| {
        let bytes = head[at..].first_chunk();
        bytes.map(|bytes| u64::from_le_bytes(*bytes))
    };
    let body_bytes = u32::from_le_bytes(*head[20..].first_chunk()?);
    let (number, value) = (word(24)?, word(32)?);
    let is_ours = head.starts_with(&MAGIC) && word(8)? == connection;
    let message = match (head[16], head[17]) {
        (1, flags) if flags & !(ACKNOWLEDGE | CHECK) == 0 => Message::Frame {
            number,
            seed: value,
            acknowledge: flags & ACKNOWLEDGE != 0,
            check: flags & CHECK != 0,
        },
        (2, 0) if body_bytes == 0 => Message::Question,
        (3, 0) if body_bytes == 0 => Message::Acknowledgement { received: number, wrong: value },
        _ => return None,
    };
    is_ours.then_some((message, body_bytes))
}

/// One end of a link on the endpoint of its thread.
struct Port<E> {
    endpoint: E,
    peer: Peer,
    connection: u64,
    events: Events,
    batch: Batch,
}

impl<E: Endpoint> Port<E> {
    fn new(mut endpoint: E, link: Link) -> Result<Self, Stop> {
        let connection = link.number();
        let peer = endpoint.adopt(link).map_err(|error| Stop::Failed(error.into()))?;
        Ok(Self {
            endpoint,
            peer,
            connection,
            events: Events::with_limit(EVENTS_MAX),
            batch: Batch::with_capacity(EVENTS_MAX),
        })
    }

    /// Adds a message to the turn's batch. The caller has bounded the body.
    fn send(&mut self, message: Message, body: Body) {
        let body_bytes = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let head = encode(message, self.connection, body_bytes);
        self.batch.send(self.peer, Token(0), head, body);
    }

    /// A message that arrived; `None` for what the peer may not send.
    fn read(&self, head: &Head, body: &Body) -> Option<Message> {
        let (message, body_bytes) = decode(head.as_bytes(), self.connection)?;
        (body_bytes as usize == body.len()).then_some(message)
    }

    /// Posts what there is. What does not fit goes after the completion that makes room. Says whether anything left.
    fn post(&mut self) -> bool {
        let waiting = self.batch.len();
        if waiting > 0 {
            let _ = self.endpoint.post(&mut self.batch);
        }
        self.batch.len() < waiting
    }
}

/// How a lost peer is reported.
fn lost(reason: LostReason) -> Stop {
    Stop::Lost(format!("the connection to the peer was lost: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: [Message; 4] = [
        Message::Frame { number: 7, seed: 9, acknowledge: true, check: false },
        Message::Frame { number: u64::MAX, seed: 0, acknowledge: false, check: true },
        Message::Question,
        Message::Acknowledgement { received: 5, wrong: 6 },
    ];

    #[test]
    fn a_head_comes_back_as_it_went_and_only_on_its_connection() {
        for message in MESSAGES {
            let body_bytes = if matches!(message, Message::Frame { .. }) { 1000 } else { 0 };
            let head = encode(message, 42, body_bytes);
            assert_eq!(decode(head.as_bytes(), 42), Some((message, body_bytes)));
            assert_eq!(decode(head.as_bytes(), 43), None);
            assert_eq!((framing().body_bytes)(head.as_bytes(), 42), Some(body_bytes as usize));
        }
    }

    #[test]
    fn noise_and_damaged_heads_are_none_of_ours() {
        let framing = framing();
        assert_eq!((framing.extension_bytes)(&[0; 64]), None);
        assert_eq!(decode(&[0; 64], 0), None);
        assert_eq!(decode(encode(Message::Question, 1, 0).as_bytes().split_at(63).0, 1), None, "too short");
        assert_eq!(decode(encode(Message::Question, 1, 8).as_bytes(), 1), None, "a question with a body");
        let mut head = *encode(MESSAGES[0], 1, 8).as_bytes().first_chunk::<64>().unwrap();
        for (at, value) in [(0, 0), (16, 4), (17, 4), (16, 0)] {
            let kept = std::mem::replace(&mut head[at], value);
            assert_eq!(decode(&head, 1), None, "byte {at}");
            head[at] = kept;
        }
        assert!(decode(&head, 1).is_some());
    }
}
