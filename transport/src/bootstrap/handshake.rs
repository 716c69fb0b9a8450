//! The handshake as two machines without I/O: bytes in, bytes out, and who may come in.
//! Knows the order of messages and their proofs; no stream, no clock, no random source. Called by `dial` and `listener`.
//! Source: `transport/DESIGN.md` (authentication).
//!
//! ```text
//! dialler                                  acceptor
//!         hello                       ->           purpose, shard, job; whether it has a secret
//!                                     <-   challenge: the acceptor's nonce
//!         claim: nonce, origin, greeting, proof ->
//!                                     <-   ready: number, greeting, proof, or refused: text, proof,
//!                                          or elsewhere: name, proof
//! ```
//!
//! *Elsewhere* is the abstract name of the acceptor's Unix socket: both sides can share memory and want to. The dialler gives this
//! stream up and begins anew over that one, where the same machines meet and the claim says that it is so.
//!
//! A proof is HMAC-SHA-256 under the secret over a label that names the version and the role, and then every byte that was
//! said before it, of both sides. So each side's proof covers both nonces, and nobody can alter or replay anything, or
//! send a proof back to its maker. A side without a secret makes proofs under an empty key, and meets only such: whether it
//! has one is in its first message, and the sides must say the same.

use std::fmt;

use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::message::{
    Answer, AnswerHead, FIXED_BYTES, GREETING_BYTES_MAX, Hello, HelloHead, MAGIC, NONCE_BYTES, Nonce,
    ORIGIN_BYTES, PROOF_BYTES, Wrong, decode_origin, encode_origin, shortened,
};
use super::secret::Secret;
use super::sharing::{Asked, Origin, Unshared};

/// Bytes that a side asks for at a time, at most: a claim.
pub(super) const READ_BYTES_MAX: usize = NONCE_BYTES + ORIGIN_BYTES + GREETING_BYTES_MAX + PROOF_BYTES;

const LABEL_BYTES: usize = 32;
const DIALLER: &[u8; LABEL_BYTES] = b"rangefold handshake 3, dialler  ";
const ACCEPTOR: &[u8; LABEL_BYTES] = b"rangefold handshake 3, acceptor ";

/// What a side does next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step<T> {
    /// Say this, which may be nothing, then read exactly so many bytes.
    Next {
        /// To be written.
        say: Vec<u8>,
        /// To be read.
        read: usize,
    },
    /// The other side has proven itself.
    End(T),
}

/// Why a handshake ends early.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The bytes are none of ours.
    Foreign,
    /// The other side is of this version.
    Version(u16),
    /// The other side has not proven that it knows the secret of this one, or this one has not to it.
    Unauthenticated(Mismatch),
    /// The other side, which has proven itself, says no. Only a dialler hears this.
    Refused(String),
}

/// How the secrets of two sides do not match, as far as one of them knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mismatch {
    /// This side has none, the other says that it has one.
    MissingHere,
    /// This side has one, the other says that it has none.
    MissingThere,
    /// Both have one, and the acceptor does not take the dialler's proof.
    Differ,
    /// The acceptor took the dialler's proof, and its own is wrong.
    Unproven,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MissingHere => "the other side asks for one, and this side has none; give this side the same",
            Self::MissingThere => "this side has one, and the other has none; give the other side the same",
            Self::Differ => "the other side does not take this side's; give both the same",
            Self::Unproven => {
                "the other side took this side's, and cannot prove that it knows the same; it is no node of this cluster, or \
                 somebody between alters what is sent"
            }
        })
    }
}

impl From<Wrong> for Fault {
    fn from(wrong: Wrong) -> Self {
        match wrong {
            Wrong::Foreign => Self::Foreign,
            Wrong::Version(theirs) => Self::Version(theirs),
        }
    }
}

impl Mismatch {
    fn between(here: bool, there: bool) -> Option<Self> {
        match (here, there) {
            (false, true) => Some(Self::MissingHere),
            (true, false) => Some(Self::MissingThere),
            _ => None,
        }
    }
}

/// All that was said so far, by both sides, and the key for proofs.
#[derive(Clone, Debug)]
struct Transcript {
    secret: Option<Secret>,
    said: Vec<u8>,
}

impl Transcript {
    fn new(secret: Option<Secret>) -> Self {
        Self { secret, said: Vec::new() }
    }

    fn proof(&self, label: &[u8; LABEL_BYTES]) -> Hmac<Sha256> {
        let key = self.secret.as_ref().map_or(&[][..], Secret::expose);
        let Ok(mut proof) = Hmac::<Sha256>::new_from_slice(key) else {
            unreachable!("HMAC takes keys of any length")
        };
        proof.update(label);
        proof.update(&self.said);
        proof
    }

    /// Says a proof of all before it.
    fn prove(&mut self, label: &[u8; LABEL_BYTES]) -> [u8; PROOF_BYTES] {
        let proof: [u8; PROOF_BYTES] = self.proof(label).finalize().into_bytes().into();
        self.said.extend_from_slice(&proof);
        proof
    }

    /// Hears a proof of all before it. Compares in constant time.
    fn proven(&mut self, label: &[u8; LABEL_BYTES], proof: &[u8]) -> bool {
        let good = self.proof(label).verify_slice(proof).is_ok();
        self.said.extend_from_slice(proof);
        good
    }

    /// Says or hears bytes.
    fn note(&mut self, bytes: &[u8]) {
        self.said.extend_from_slice(bytes);
    }
}

/// The 24 fixed bytes of a message, magic first: whoever speaks something else may never send as many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fixed {
    Magic,
    Rest,
}

impl Fixed {
    const fn wants(self) -> usize {
        match self {
            Self::Magic => MAGIC.len(),
            Self::Rest => FIXED_BYTES - MAGIC.len(),
        }
    }
}

/// Puts the two parts of a fixed message together again.
fn whole(rest: &[u8]) -> Result<[u8; FIXED_BYTES], Fault> {
    let mut fixed = [0; FIXED_BYTES];
    fixed[..MAGIC.len()].copy_from_slice(&MAGIC);
    let end = &mut fixed[MAGIC.len()..];
    if rest.len() != end.len() {
        return Err(Fault::Foreign);
    }
    end.copy_from_slice(rest);
    Ok(fixed)
}

const fn next<T>(say: Vec<u8>, read: usize) -> Step<T> {
    Step::Next { say, read }
}

/// The accepting side. Its first word is its challenge, and that only to who has said a good hello.
#[derive(Clone, Debug)]
pub struct Acceptor {
    transcript: Transcript,
    nonce: Nonce,
    expects: Expected,
}

/// What an acceptor waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expected {
    Hello(Fixed),
    Claim(HelloHead),
    /// The handler's word: the other side has proven itself.
    Verdict,
    /// It is over.
    Nothing,
}

impl Acceptor {
    /// An acceptor that draws a new `nonce` for each connection.
    #[must_use]
    pub fn new(secret: Option<Secret>, nonce: Nonce) -> Self {
        Self { transcript: Transcript::new(secret), nonce, expects: Expected::Hello(Fixed::Magic) }
    }

    /// The first step.
    #[must_use]
    pub fn begin<T>(&self) -> Step<T> {
        next(Vec::new(), Fixed::Magic.wants())
    }

    /// Takes the bytes that the last step asked for. The end is a visitor that has proven itself, to be answered by
    /// [`Self::ready`], [`Self::refused`] or [`Self::elsewhere`].
    ///
    /// # Errors
    /// [`Fault`]; [`Self::farewell`] has the last word then.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Step<Visitor>, Fault> {
        match self.expects {
            Expected::Hello(Fixed::Magic) if bytes == MAGIC => {
                self.expects = Expected::Hello(Fixed::Rest);
                Ok(next(Vec::new(), Fixed::Rest.wants()))
            }
            Expected::Hello(Fixed::Rest) => self.greeted(&whole(bytes)?),
            Expected::Claim(head) => self.claimed(head, bytes).map(Step::End),
            Expected::Hello(Fixed::Magic) | Expected::Verdict | Expected::Nothing => Err(Fault::Foreign),
        }
    }

    fn greeted(&mut self, fixed: &[u8; FIXED_BYTES]) -> Result<Step<Visitor>, Fault> {
        let hello = HelloHead::decode(fixed)?;
        let has_secret = self.transcript.secret.is_some();
        if let Some(mismatch) = Mismatch::between(has_secret, hello.has_secret) {
            return Err(Fault::Unauthenticated(mismatch));
        }
        self.transcript.note(fixed);
        let head = AnswerHead { answer: Answer::Challenge, has_secret }.encode();
        let challenge = [&head[..], &self.nonce].concat();
        self.transcript.note(&challenge);
        self.expects = Expected::Claim(hello);
        Ok(next(challenge, NONCE_BYTES + ORIGIN_BYTES + hello.greeting_bytes + PROOF_BYTES))
    }

    fn claimed(&mut self, head: HelloHead, claim: &[u8]) -> Result<Visitor, Fault> {
        self.expects = Expected::Nothing;
        let (said, proof) = claim.split_last_chunk::<PROOF_BYTES>().ok_or(Fault::Foreign)?;
        let (_, rest) = said.split_first_chunk::<NONCE_BYTES>().ok_or(Fault::Foreign)?;
        let (origin, greeting) = rest.split_first_chunk::<ORIGIN_BYTES>().ok_or(Fault::Foreign)?;
        if greeting.len() != head.greeting_bytes {
            return Err(Fault::Foreign);
        }
        self.transcript.note(said);
        if !self.transcript.proven(DIALLER, proof) {
            return Err(Fault::Unauthenticated(Mismatch::Differ));
        }
        let origin = decode_origin(origin)?;
        self.expects = Expected::Verdict;
        let hello = Hello { purpose: head.purpose, job: head.job, greeting: greeting.to_vec() };
        Ok(Visitor { hello, origin })
    }

    /// What lets the other side in, on this stream; and why not through shared memory, if it would have.
    ///
    /// # Panics
    /// When the greeting is longer than [`GREETING_BYTES_MAX`], or the other side has not proven itself.
    #[must_use]
    pub fn ready(self, number: u64, greeting: &[u8], unshared: Option<Unshared>) -> Vec<u8> {
        assert!(greeting.len() <= GREETING_BYTES_MAX, "a greeting of {} bytes", greeting.len());
        self.answer(Answer::Ready { number, greeting_bytes: greeting.len(), unshared }, greeting)
    }

    /// What sends the other side on to the Unix socket of this abstract name.
    ///
    /// # Panics
    /// When the name is longer than [`GREETING_BYTES_MAX`], or the other side has not proven itself.
    #[must_use]
    pub fn elsewhere(self, name: &[u8]) -> Vec<u8> {
        assert!(name.len() <= GREETING_BYTES_MAX, "a name of {} bytes", name.len());
        self.answer(Answer::Elsewhere { name_bytes: name.len() }, name)
    }

    /// What tells the other side why it may not come in; the text is shortened to [`GREETING_BYTES_MAX`].
    ///
    /// # Panics
    /// When the other side has not proven itself: it is told nothing.
    #[must_use]
    pub fn refused(self, text: &str) -> Vec<u8> {
        let text = shortened(text).as_bytes();
        self.answer(Answer::Refused { text_bytes: text.len() }, text)
    }

    fn answer(mut self, answer: Answer, rest: &[u8]) -> Vec<u8> {
        assert!(self.expects == Expected::Verdict, "an answer to who has not proven itself");
        let head = AnswerHead { answer, has_secret: self.transcript.secret.is_some() }.encode();
        let mut bytes = [&head[..], rest].concat();
        self.transcript.note(&bytes);
        bytes.extend_from_slice(&self.transcript.prove(ACCEPTOR));
        bytes
    }

    /// The last word to a side that is turned away for this; nothing to a foreign one.
    #[must_use]
    pub fn farewell(&self, fault: &Fault) -> Option<[u8; FIXED_BYTES]> {
        let answer = match fault {
            Fault::Foreign | Fault::Refused(_) => return None,
            Fault::Version(_) => Answer::OtherVersion,
            Fault::Unauthenticated(_) => Answer::Unauthenticated,
        };
        Some(AnswerHead { answer, has_secret: self.transcript.secret.is_some() }.encode())
    }
}

/// Who has proven itself to an acceptor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Visitor {
    /// What it wants.
    pub hello: Hello,
    /// Where it is, and how its data may travel.
    pub origin: Origin,
}

/// What a dialler is told at the end, by an acceptor that has proven itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// The connection's number.
    pub number: u64,
    /// Opaque here.
    pub greeting: Vec<u8>,
    /// Why it does not go through shared memory, if that was asked for.
    pub unshared: Option<Unshared>,
}

/// How a handshake ends for a dialler.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is in.
    Ready(Welcome),
    /// It is to go on at the Unix socket of this abstract name. Only who has asked for shared memory over TCP hears this.
    Elsewhere(Vec<u8>),
}

/// The dialling side.
#[derive(Clone, Debug)]
pub struct Dialler {
    transcript: Transcript,
    nonce: Nonce,
    origin: Origin,
    greeting: Vec<u8>,
    awaits: Awaited,
}

/// What a dialler waits for.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Awaited {
    Challenge(Fixed),
    Nonce,
    Verdict(Fixed),
    /// The rest of the verdict, whose fixed part is this.
    Proof(Answer),
}

impl Dialler {
    /// A dialler that draws a new `nonce` for each connection, and its first step.
    ///
    /// # Panics
    /// When the greeting is longer than [`GREETING_BYTES_MAX`].
    #[must_use]
    pub fn begin<T>(hello: &Hello, origin: Origin, secret: Option<Secret>, nonce: Nonce) -> (Self, Step<T>) {
        let head = HelloHead::of(hello, secret.is_some()).encode();
        let mut transcript = Transcript::new(secret);
        transcript.note(&head);
        let awaits = Awaited::Challenge(Fixed::Magic);
        let dialler = Self { transcript, nonce, origin, greeting: hello.greeting.clone(), awaits };
        (dialler, next(head.to_vec(), Fixed::Magic.wants()))
    }

    /// Takes the bytes that the last step asked for.
    ///
    /// # Errors
    /// [`Fault`]: there is no connection.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Step<Verdict>, Fault> {
        match &self.awaits {
            Awaited::Challenge(Fixed::Magic) if bytes == MAGIC => {
                self.awaits = Awaited::Challenge(Fixed::Rest);
                Ok(next(Vec::new(), Fixed::Rest.wants()))
            }
            Awaited::Challenge(Fixed::Rest) => self.challenged(&whole(bytes)?),
            Awaited::Nonce => Ok(self.claim(bytes)),
            Awaited::Verdict(Fixed::Magic) if bytes == MAGIC => {
                self.awaits = Awaited::Verdict(Fixed::Rest);
                Ok(next(Vec::new(), Fixed::Rest.wants()))
            }
            Awaited::Verdict(Fixed::Rest) => self.judged(&whole(bytes)?),
            Awaited::Proof(answer) => {
                let answer = answer.clone();
                self.proven(answer, bytes).map(Step::End)
            }
            Awaited::Challenge(Fixed::Magic) | Awaited::Verdict(Fixed::Magic) => Err(Fault::Foreign),
        }
    }

    fn challenged(&mut self, fixed: &[u8; FIXED_BYTES]) -> Result<Step<Verdict>, Fault> {
        let head = AnswerHead::decode(fixed)?;
        match (&head.answer, self.mismatch(&head)) {
            (Answer::Challenge, None) => {}
            // Never without a secret to who has one, never with one to who says that it has none.
            (Answer::Challenge, Some(mismatch)) => return Err(Fault::Unauthenticated(mismatch)),
            _ => return Err(self.turned_away(&head)),
        }
        self.transcript.note(fixed);
        self.awaits = Awaited::Nonce;
        Ok(next(Vec::new(), NONCE_BYTES))
    }

    fn claim(&mut self, nonce: &[u8]) -> Step<Verdict> {
        self.transcript.note(nonce);
        let mut claim = [&self.nonce[..], &encode_origin(&self.origin), &self.greeting].concat();
        self.transcript.note(&claim);
        claim.extend_from_slice(&self.transcript.prove(DIALLER));
        self.awaits = Awaited::Verdict(Fixed::Magic);
        next(claim, Fixed::Magic.wants())
    }

    fn judged(&mut self, fixed: &[u8; FIXED_BYTES]) -> Result<Step<Verdict>, Fault> {
        let head = AnswerHead::decode(fixed)?;
        let bytes = match head.answer {
            Answer::Ready { greeting_bytes: bytes, .. } | Answer::Refused { text_bytes: bytes } => bytes,
            Answer::Elsewhere { name_bytes } if self.may_go_elsewhere() => name_bytes,
            _ => return Err(self.turned_away(&head)),
        };
        self.transcript.note(fixed);
        self.awaits = Awaited::Proof(head.answer);
        Ok(next(Vec::new(), bytes + PROOF_BYTES))
    }

    fn may_go_elsewhere(&self) -> bool {
        matches!(self.origin.asked, Asked::Either | Asked::Memory)
    }

    fn proven(&mut self, answer: Answer, bytes: &[u8]) -> Result<Verdict, Fault> {
        let (rest, proof) = bytes.split_last_chunk::<PROOF_BYTES>().ok_or(Fault::Foreign)?;
        self.transcript.note(rest);
        if !self.transcript.proven(ACCEPTOR, proof) {
            return Err(Fault::Unauthenticated(Mismatch::Unproven));
        }
        match answer {
            Answer::Ready { number, unshared, .. } => {
                Ok(Verdict::Ready(Welcome { number, greeting: rest.to_vec(), unshared }))
            }
            Answer::Elsewhere { .. } => Ok(Verdict::Elsewhere(rest.to_vec())),
            Answer::Refused { .. } => Err(Fault::Refused(String::from_utf8_lossy(rest).into_owned())),
            Answer::OtherVersion | Answer::Challenge | Answer::Unauthenticated => Err(Fault::Foreign),
        }
    }

    fn mismatch(&self, head: &AnswerHead) -> Option<Mismatch> {
        Mismatch::between(self.transcript.secret.is_some(), head.has_secret)
    }

    /// What an answer without a proof comes to: nothing in it is believed but that there will be no connection.
    fn turned_away(&self, head: &AnswerHead) -> Fault {
        match head.answer {
            Answer::Unauthenticated => {
                Fault::Unauthenticated(self.mismatch(head).unwrap_or(Mismatch::Differ))
            }
            _ => Fault::Foreign,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
