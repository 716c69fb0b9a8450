//! Both machines against each other and against whoever has no right to come in: altered, replayed, reflected, random bytes.

use proptest::prelude::*;

use super::super::message::{Purpose, VERSION};
use super::super::sharing::Kernel;
use super::*;

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.draw() % limit as u64).expect("64 bits")
    }
}

fn secret(last: u8) -> Option<Secret> {
    Some(Secret::new([&[b'x'; 31][..], &[last]].concat()).expect("long enough"))
}

fn hello() -> Hello {
    Hello { purpose: Purpose::Data { shard: 5 }, job: 3, greeting: b"from afar".to_vec() }
}

/// A dialler that would share memory.
const ORIGIN: Origin = Origin { asked: Asked::Either, process: 4_242, kernel: Kernel([9; 16]) };

fn visitor() -> Visitor {
    Visitor { hello: hello(), origin: ORIGIN }
}

/// How a handshake ended, on each side that came to an end.
#[derive(Clone, PartialEq, Eq, Debug)]
struct End {
    acceptor: Result<Visitor, Fault>,
    dialler: Option<Result<Verdict, Fault>>,
}

/// What was said, a message each: hello, challenge, claim, verdict.
type Said = Vec<Vec<u8>>;

/// A handshake whose messages `alter` may change on their way, by number. Ends where a side would wait for ever.
fn shake(
    here: Option<Secret>,
    there: Option<Secret>,
    nonces: (Nonce, Nonce),
    mut alter: impl FnMut(usize, &mut Vec<u8>),
) -> (End, Said) {
    let mut said = Said::new();
    let mut carry = |bytes: Vec<u8>, said: &mut Said| {
        let mut bytes = bytes;
        alter(said.len(), &mut bytes);
        said.push(bytes.clone());
        bytes
    };
    let mut acceptor = Acceptor::new(there, nonces.0);
    let (mut dialler, first) = Dialler::begin::<Verdict>(&hello(), ORIGIN, here, nonces.1);
    let Step::Next { say, .. } = first else { panic!("a hello") };
    let (mut to_acceptor, mut to_dialler) = (carry(say, &mut said), Vec::new());
    let mut wanted = (8, 8);
    let mut end = End { acceptor: Err(Fault::Foreign), dialler: None };
    let mut acceptor_is_done = false;
    loop {
        if !acceptor_is_done && to_acceptor.len() >= wanted.0 {
            let bytes: Vec<u8> = to_acceptor.drain(..wanted.0).collect();
            match acceptor.take(&bytes) {
                Ok(Step::Next { say, read }) => {
                    wanted.0 = read;
                    if !say.is_empty() {
                        to_dialler.extend(carry(say, &mut said));
                    }
                }
                Ok(Step::End(visitor)) => {
                    to_dialler.extend(carry(acceptor.clone().ready(77, b"well met", None), &mut said));
                    end.acceptor = Ok(visitor);
                    acceptor_is_done = true;
                }
                Err(fault) => {
                    to_dialler.extend(acceptor.farewell(&fault).into_iter().flatten());
                    end.acceptor = Err(fault);
                    acceptor_is_done = true;
                }
            }
        } else if end.dialler.is_none() && to_dialler.len() >= wanted.1 {
            let bytes: Vec<u8> = to_dialler.drain(..wanted.1).collect();
            match dialler.take(&bytes) {
                Ok(Step::Next { say, read }) => {
                    wanted.1 = read;
                    if !say.is_empty() {
                        to_acceptor.extend(carry(say, &mut said));
                    }
                }
                Ok(Step::End(welcome)) => end.dialler = Some(Ok(welcome)),
                Err(fault) => end.dialler = Some(Err(fault)),
            }
        } else {
            return (end, said);
        }
    }
}

const NONCES: (Nonce, Nonce) = ([1; 32], [2; 32]);

/// Plays recorded bytes to an acceptor.
fn replay(acceptor: &mut Acceptor, mut bytes: &[u8]) -> Result<Option<Visitor>, Fault> {
    let mut step = acceptor.begin();
    loop {
        match step {
            Step::Next { read, .. } if bytes.len() < read => return Ok(None),
            Step::Next { read, .. } => {
                let (now, later) = bytes.split_at(read);
                bytes = later;
                step = acceptor.take(now)?;
            }
            Step::End(visitor) => return Ok(Some(visitor)),
        }
    }
}

#[test]
fn the_same_secret_or_none_on_both_sides_brings_both_in() {
    for secret in [None, secret(b'a')] {
        let (end, said) = shake(secret.clone(), secret, NONCES, |_, _| {});
        assert_eq!(end.acceptor, Ok(visitor()));
        let welcome = Welcome { number: 77, greeting: b"well met".to_vec(), unshared: None };
        assert_eq!(end.dialler, Some(Ok(Verdict::Ready(welcome))));
        let lengths: Vec<usize> = said.iter().map(Vec::len).collect();
        assert_eq!(lengths, [24, 24 + 32, 32 + 24 + 9 + 32, 24 + 8 + 32]);
    }
}

#[test]
fn who_cannot_prove_it_is_told_so_and_nothing_else() {
    let cases = [
        (secret(b'a'), secret(b'b'), Mismatch::Differ, Mismatch::Differ),
        (secret(b'a'), None, Mismatch::MissingHere, Mismatch::MissingThere),
        (None, secret(b'a'), Mismatch::MissingThere, Mismatch::MissingHere),
    ];
    for (here, there, to_acceptor, to_dialler) in cases {
        let acceptor = Acceptor::new(there.clone(), NONCES.0);
        let (end, said) = shake(here, there, NONCES, |_, _| {});
        assert_eq!(end.acceptor, Err(Fault::Unauthenticated(to_acceptor)));
        assert_eq!(end.dialler, Some(Err(Fault::Unauthenticated(to_dialler))));
        let farewell = acceptor.farewell(&Fault::Unauthenticated(to_acceptor)).expect("it is told");
        assert_eq!(farewell[12..], [0; 12], "nothing of shards, jobs, numbers");
        assert!(said.len() <= 3, "no verdict: {said:?}");
    }
}

/// Every bit of every message counts: whatever is altered, nobody comes in who should not, and the dialler does not believe
/// what it is told.
#[test]
fn no_bit_can_be_altered() {
    let (_, said) = shake(secret(b'a'), secret(b'a'), NONCES, |_, _| {});
    for (message, bytes) in said.iter().enumerate() {
        for bit in 0..8 * bytes.len() {
            let (end, _) = shake(secret(b'a'), secret(b'a'), NONCES, |number, bytes| {
                if number == message {
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
            });
            assert!(!matches!(end.dialler, Some(Ok(_))), "message {message}, bit {bit}: {end:?}");
            // The acceptor has said all when its verdict is altered; before that it lets nobody in.
            assert_eq!(end.acceptor.is_ok(), message == 3, "message {message}, bit {bit}: {end:?}");
        }
    }
}

#[test]
fn a_whole_handshake_replayed_is_refused_because_the_nonce_is_the_acceptors() {
    let (end, said) = shake(secret(b'a'), secret(b'a'), NONCES, |_, _| {});
    assert!(end.acceptor.is_ok());
    let recorded = [said[0].as_slice(), &said[2]].concat();
    // The record is good: against the nonce that it was made for it comes in.
    let again = replay(&mut Acceptor::new(secret(b'a'), NONCES.0), &recorded);
    assert_eq!(again, Ok(Some(visitor())));
    let differ = Err(Fault::Unauthenticated(Mismatch::Differ));
    for bit in 0..8 * NONCES.0.len() {
        let mut nonce = NONCES.0;
        nonce[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(replay(&mut Acceptor::new(secret(b'a'), nonce), &recorded), differ, "bit {bit}");
    }
    // And to a dialler, the acceptor's part.
    let recorded = [said[1].as_slice(), &said[3]].concat();
    let (mut dialler, _) = Dialler::begin::<Verdict>(&hello(), ORIGIN, secret(b'a'), [3; 32]);
    let mut at = 0;
    let mut read = 8;
    let fault = loop {
        match dialler.take(&recorded[at..at + read]) {
            Ok(Step::Next { read: next, .. }) => (at, read) = (at + read, next),
            Ok(Step::End(welcome)) => panic!("believed: {welcome:?}"),
            Err(fault) => break fault,
        }
    };
    assert_eq!(fault, Fault::Unauthenticated(Mismatch::Unproven));
}

#[test]
fn a_proof_sent_back_proves_nothing() {
    // To the acceptor, a proof of its own, made with all that it needs: it opens a handshake, takes what the acceptor says to
    // somebody who knows the secret as its own proof.
    let (_, said) = shake(secret(b'a'), secret(b'a'), NONCES, |_, _| {});
    let acceptors = said[3].last_chunk::<PROOF_BYTES>().expect("a proof");
    let mut claim = said[2].clone();
    let at = claim.len() - PROOF_BYTES;
    claim[at..].copy_from_slice(acceptors);
    let mut acceptor = Acceptor::new(secret(b'a'), NONCES.0);
    let outcome = replay(&mut acceptor, &[said[0].as_slice(), &claim].concat());
    assert_eq!(outcome, Err(Fault::Unauthenticated(Mismatch::Differ)));
    // Even over the same bytes the roles' proofs differ.
    let mut one = Transcript::new(secret(b'a'));
    let mut other = one.clone();
    assert_ne!(one.prove(DIALLER), other.prove(ACCEPTOR));
}

#[test]
fn nobody_is_asked_for_less_because_he_says_so() {
    // Somebody between takes the secret away from what both sides say of themselves.
    let (end, _) = shake(secret(b'a'), secret(b'a'), NONCES, |number, bytes| {
        if number < 2 {
            bytes[11] = 0;
        }
    });
    assert_eq!(end.acceptor, Err(Fault::Unauthenticated(Mismatch::MissingThere)));
    let (mut dialler, _) = Dialler::begin::<Verdict>(&hello(), ORIGIN, secret(b'a'), [3; 32]);
    let open = AnswerHead { answer: Answer::Challenge, has_secret: false }.encode();
    assert!(dialler.take(&open[..8]).is_ok());
    assert_eq!(dialler.take(&open[8..]), Err(Fault::Unauthenticated(Mismatch::MissingThere)));
    // A verdict in the place of a challenge.
    let (mut dialler, _) = Dialler::begin::<Verdict>(&hello(), ORIGIN, secret(b'a'), [3; 32]);
    let answer = Answer::Ready { number: 1, greeting_bytes: 0, unshared: None };
    let ready = AnswerHead { answer, has_secret: true }.encode();
    assert!(dialler.take(&ready[..8]).is_ok());
    assert_eq!(dialler.take(&ready[8..]), Err(Fault::Foreign));
}

/// Both sides up to the acceptor's last word, which is `answer`, and what the dialler makes of it.
fn judged(origin: Origin, answer: impl FnOnce(Acceptor) -> Vec<u8>) -> Result<Step<Verdict>, Fault> {
    let (mut dialler, first) = Dialler::begin::<Verdict>(&hello(), origin, secret(b'a'), NONCES.1);
    let mut acceptor = Acceptor::new(secret(b'a'), NONCES.0);
    let Step::Next { say: head, .. } = first else { panic!("a hello") };
    assert!(acceptor.take(&head[..8]).is_ok());
    let Ok(Step::Next { say: challenge, .. }) = acceptor.take(&head[8..]) else { panic!("a challenge") };
    for part in [&challenge[..8], &challenge[8..24]] {
        assert!(dialler.take(part).is_ok());
    }
    let Ok(Step::Next { say: claim, .. }) = dialler.take(&challenge[24..]) else { panic!("a claim") };
    assert_eq!(acceptor.take(&claim), Ok(Step::End(Visitor { hello: hello(), origin })));
    let answer = answer(acceptor);
    dialler.take(&answer[..8])?;
    dialler.take(&answer[8..24])?;
    dialler.take(&answer[24..])
}

#[test]
fn a_refusal_is_heard_in_words_from_who_has_proven_himself() {
    let heard = judged(ORIGIN, |acceptor| acceptor.refused(&"ü".repeat(200)));
    assert_eq!(heard, Err(Fault::Refused("ü".repeat(128))));
}

#[test]
fn who_would_share_memory_is_sent_on_and_nobody_else() {
    for asked in [Asked::Tcp, Asked::Either, Asked::Memory, Asked::Here] {
        let heard = judged(Origin { asked, ..ORIGIN }, |acceptor| acceptor.elsewhere(b"a name"));
        match asked {
            Asked::Either | Asked::Memory => {
                assert_eq!(heard, Ok(Step::End(Verdict::Elsewhere(b"a name".to_vec()))));
            }
            Asked::Tcp | Asked::Here => assert_eq!(heard, Err(Fault::Foreign), "{asked:?}"),
        }
    }
}

#[test]
fn where_to_is_believed_only_with_its_proof() {
    let named = |acceptor: Acceptor| acceptor.elsewhere(b"a name");
    let len = 24 + b"a name".len() + PROOF_BYTES;
    for bit in 0..8 * len {
        let heard = judged(ORIGIN, |acceptor| {
            let mut answer = named(acceptor);
            assert_eq!(answer.len(), len);
            answer[bit / 8] ^= 1 << (bit % 8);
            answer
        });
        assert!(!matches!(heard, Ok(Step::End(_))), "bit {bit}: {heard:?}");
    }
}

#[test]
fn why_memory_is_not_shared_travels_with_the_welcome() {
    for why in [Unshared::OtherHost, Unshared::Unwanted, Unshared::Unable, Unshared::NoRoom] {
        let heard = judged(ORIGIN, |acceptor| acceptor.ready(1, b"", Some(why.clone())));
        let welcome = Welcome { number: 1, greeting: Vec::new(), unshared: Some(why) };
        assert_eq!(heard, Ok(Step::End(Verdict::Ready(welcome))));
    }
}

#[test]
fn versions_hear_of_each_other() {
    let mut other = HelloHead::of(&hello(), true).encode();
    other[8..10].copy_from_slice(&77_u16.to_le_bytes());
    let mut acceptor = Acceptor::new(secret(b'a'), NONCES.0);
    let fault = replay(&mut acceptor, &other).expect_err("another version");
    assert_eq!(fault, Fault::Version(77));
    let farewell = acceptor.farewell(&fault).expect("it is told");
    assert_eq!(
        (&farewell[..8], farewell[8..10].to_vec(), farewell[10]),
        (&MAGIC[..], VERSION.to_le_bytes().to_vec(), 3)
    );
}

/// A hundred thousand handshakes that are random, or good ones with bytes changed, cut out and put in: none comes in, none
/// panics, and none asks for more than a message's bytes.
#[test]
fn a_hundred_thousand_hostile_handshakes_are_refused() {
    let mut chance = Chance(11);
    let (_, said) = shake(secret(b'a'), secret(b'a'), NONCES, |_, _| {});
    let good = [said[0].as_slice(), &said[2]].concat();
    let mut outcomes = [0_u32; 4];
    for round in 0..100_000 {
        let mut bytes = if round % 4 == 0 {
            (0..chance.below(200)).map(|_| chance.draw().to_le_bytes()[0]).collect()
        } else {
            good.clone()
        };
        for _ in 0..=chance.below(3) {
            let at = chance.below(bytes.len().max(1));
            match chance.below(4) {
                0 if at < bytes.len() => drop(bytes.remove(at)),
                1 => bytes.insert(at, chance.draw().to_le_bytes()[0]),
                2 => bytes.truncate(at),
                _ if at < bytes.len() => bytes[at] ^= 1 << chance.below(8),
                _ => {}
            }
        }
        if bytes.starts_with(&good) {
            continue;
        }
        // With the nonce that the good one was made for: only what was changed keeps it out.
        let outcome = replay(&mut Acceptor::new(secret(b'a'), NONCES.0), &bytes);
        assert!(!matches!(outcome, Ok(Some(_))), "round {round} came in: {bytes:?}");
        outcomes[match outcome {
            Ok(_) => 0,
            Err(Fault::Foreign | Fault::Refused(_)) => 1,
            Err(Fault::Version(_)) => 2,
            Err(Fault::Unauthenticated(_)) => 3,
        }] += 1;
    }
    assert!(outcomes.iter().all(|&count| count > 500), "each way out is taken: {outcomes:?}");
}

proptest! {
    /// Whatever an acceptor says, a dialler does not believe it, and never waits for more than a message.
    #[test]
    fn noise_convinces_no_dialler(noise in proptest::collection::vec(any::<u8>(), 0..700), head in 0_u8..8) {
        let (mut dialler, _) = Dialler::begin::<Verdict>(&hello(), ORIGIN, secret(b'a'), NONCES.1);
        let mut bytes = noise;
        // Often well formed as far as that goes.
        for at in [0, 56] {
            if head > 1 && bytes.len() > at + 24 {
                bytes[at..at + 8].copy_from_slice(&MAGIC);
                bytes[at + 8..at + 12].copy_from_slice(&[3, 0, if at == 0 { 4 } else { head }, 1]);
                bytes[at + 13] = 0;
            }
        }
        let (mut rest, mut wanted) = (bytes.as_slice(), 8);
        while let Some((now, later)) = rest.split_at_checked(wanted) {
            rest = later;
            match dialler.take(now) {
                Ok(Step::Next { read, .. }) => wanted = read,
                Ok(Step::End(_)) => prop_assert!(false, "believed"),
                Err(_) => break,
            }
            prop_assert!(wanted <= READ_BYTES_MAX);
        }
    }
}
