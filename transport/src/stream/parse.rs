//! Finds heads in a stream of bytes that is cut anywhere.
//! Knows lengths through `Framing` only; bodies are the caller's. Called by the receiving halves of the TCP backends and of `shm`.
//! Source: protocol.md §12, F1: a length counts only after the head's check.

use crate::endpoint::{EXTENSION_BYTES_MAX, HEAD_BYTES_MAX, HEADER_BYTES, Head};
use crate::error::Violation;
use crate::stream::Framing;

/// Takes bytes and gives heads. A head that lies whole in the bytes at hand is parsed where it lies; of one that is cut
/// the beginning is kept here.
#[derive(Debug)]
pub struct HeadParser {
    framing: Framing,
    connection: u64,
    body_bytes_max: usize,
    /// The beginning of a head. Invariant: `kept` is less than the head's length as far as that is known.
    beginning: [u8; HEAD_BYTES_MAX],
    kept: usize,
}

/// What some bytes came to.
#[derive(Debug)]
pub struct Parsed {
    /// Bytes used up.
    pub consumed: usize,
    /// The head that ended there, and its body's length. `None`: all bytes are used up, and more are needed.
    pub head: Option<(Head, usize)>,
}

impl HeadParser {
    /// A parser for the stream of the connection of this number, whose bodies are of `body_bytes_max` at most.
    #[must_use]
    pub fn new(framing: Framing, connection: u64, body_bytes_max: u32) -> Self {
        Self {
            framing,
            connection,
            body_bytes_max: body_bytes_max as usize,
            beginning: [0; HEAD_BYTES_MAX],
            kept: 0,
        }
    }

    /// Whether nothing of a head has come yet.
    #[must_use]
    pub fn is_between(&self) -> bool {
        self.kept == 0
    }

    /// Looks for the end of the next head. To be called with what follows the last body.
    ///
    /// # Errors
    /// [`Violation::Head`], [`Violation::BodyTooLong`]: the stream is not worth reading any more.
    #[inline]
    pub fn parse(&mut self, bytes: &[u8]) -> Result<Parsed, Violation> {
        if self.kept == 0
            && let Some(fixed) = bytes.first_chunk()
            && let Some(head) = bytes.get(..self.head_bytes(fixed)?)
        {
            return Ok(Parsed { consumed: head.len(), head: Some(self.check(head)?) });
        }
        let mut consumed = self.keep(bytes, HEADER_BYTES);
        let Some(fixed) = self.beginning[..self.kept].first_chunk() else {
            return Ok(Parsed { consumed, head: None });
        };
        let head_bytes = self.head_bytes(fixed)?;
        consumed += self.keep(&bytes[consumed..], head_bytes);
        if self.kept < head_bytes {
            return Ok(Parsed { consumed, head: None });
        }
        self.kept = 0;
        Ok(Parsed { consumed, head: Some(self.check(&self.beginning[..head_bytes])?) })
    }

    /// The next head out of bytes that must be copied before they may be looked at: `read` copies those that follow, and says
    /// how many there were. `None`: there are not enough yet.
    ///
    /// # Errors
    /// As [`Self::parse`].
    #[inline]
    pub(crate) fn read(
        &mut self,
        mut read: impl FnMut(&mut [u8]) -> usize,
    ) -> Result<Option<(Head, usize)>, Violation> {
        if self.kept < HEADER_BYTES {
            self.kept += read(&mut self.beginning[self.kept..HEADER_BYTES]);
        }
        let Some(fixed) = self.beginning[..self.kept].first_chunk() else { return Ok(None) };
        let head_bytes = self.head_bytes(fixed)?;
        if self.kept < head_bytes {
            self.kept += read(&mut self.beginning[self.kept..head_bytes]);
        }
        if self.kept < head_bytes {
            return Ok(None);
        }
        self.kept = 0;
        self.check(&self.beginning[..head_bytes]).map(Some)
    }

    fn head_bytes(&self, fixed: &[u8; HEADER_BYTES]) -> Result<usize, Violation> {
        match (self.framing.extension_bytes)(fixed) {
            Some(bytes) if bytes <= EXTENSION_BYTES_MAX => Ok(HEADER_BYTES + bytes),
            _ => Err(Violation::Head),
        }
    }

    fn check(&self, head: &[u8]) -> Result<(Head, usize), Violation> {
        let body_bytes = (self.framing.body_bytes)(head, self.connection).ok_or(Violation::Head)?;
        if body_bytes > self.body_bytes_max {
            return Err(Violation::BodyTooLong);
        }
        Ok((Head::new(head).ok_or(Violation::Head)?, body_bytes))
    }

    /// Keeps bytes until there are `target`. Returns how many were taken.
    fn keep(&mut self, bytes: &[u8], target: usize) -> usize {
        let count = target.saturating_sub(self.kept).min(bytes.len());
        self.beginning[self.kept..self.kept + count].copy_from_slice(&bytes[..count]);
        self.kept += count;
        count
    }
}
