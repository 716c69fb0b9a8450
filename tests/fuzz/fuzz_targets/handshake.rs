//! Both roles of the handshake. The first byte chooses: bytes of anybody to one side, or a handshake between two sides that know
//! the secret, whose messages are altered on their way.
//! Nothing may panic or ask for more than a message; without the secret nobody comes in; with it, only what was not altered.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rangefold_transport::bootstrap::handshake::{Acceptor, Dialler, Fault, Step, Verdict, Visitor};
use rangefold_transport::bootstrap::{Asked, GREETING_BYTES_MAX, Hello, Kernel, Origin, Purpose, Secret};

/// A nonce, an origin, the longest greeting, a proof.
const READ_BYTES_MAX: usize = 32 + 24 + GREETING_BYTES_MAX + 32;

/// May be sent on to a Unix socket.
const ORIGIN: Origin = Origin { asked: Asked::Either, process: 7, kernel: Kernel::UNTOLD };

fn secret() -> Option<Secret> {
    Some(Secret::new(b"a secret that no fuzzer guesses".to_vec()).expect("long enough"))
}

fn hello(greeting: &[u8]) -> Hello {
    Hello { purpose: Purpose::Data { shard: 3 }, job: 1, greeting: greeting.to_vec() }
}

/// Gives a side what it asks for, as long as there is something. True if it comes to its end.
fn feed<T>(
    mut step: Step<T>,
    mut bytes: &[u8],
    mut take: impl FnMut(&[u8]) -> Result<Step<T>, Fault>,
) -> bool {
    loop {
        let Step::Next { say, read } = step else { return true };
        assert!(say.len() <= READ_BYTES_MAX && read <= READ_BYTES_MAX);
        let Some((now, later)) = bytes.split_at_checked(read) else { return false };
        bytes = later;
        let Ok(next) = take(now) else { return false };
        step = next;
    }
}

/// Pairs of a place and a value that is put over it; whether that changes anything.
fn alter(bytes: &mut [u8], changes: &[u8]) -> bool {
    let before = bytes.to_vec();
    for change in changes.chunks_exact(2) {
        let at = usize::from(change[0]) % bytes.len();
        bytes[at] ^= change[1];
    }
    bytes != before
}

/// A whole handshake; `changes` are for its four messages in turn. Says whether each side came to its end, and was right to.
fn between(greeting: &[u8], changes: [&[u8]; 4]) {
    let mut acceptor = Acceptor::new(secret(), [1; 32]);
    let (mut dialler, first) = Dialler::begin::<Verdict>(&hello(greeting), ORIGIN, secret(), [2; 32]);
    let Step::Next { say: mut head, .. } = first else { panic!("a hello") };
    let mut altered = alter(&mut head, changes[0]);
    let Ok(Step::Next { .. }) = acceptor.take(&head[..8]) else { return assert!(altered) };
    let Ok(Step::Next { say: mut challenge, read }) = acceptor.take(&head[8..]) else {
        return assert!(altered);
    };
    altered |= alter(&mut challenge, changes[1]);
    for part in [&challenge[..8], &challenge[8..24]] {
        let Ok(Step::Next { .. }) = dialler.take(part) else { return assert!(altered) };
    }
    let Ok(Step::Next { say: mut claim, .. }) = dialler.take(&challenge[24..]) else {
        return assert!(altered);
    };
    altered |= alter(&mut claim, changes[2]);
    if claim.len() != read {
        return assert!(altered);
    }
    let Ok(Step::End(heard)) = acceptor.take(&claim) else { return assert!(altered) };
    assert!(!altered && heard == Visitor { hello: hello(greeting), origin: ORIGIN }, "let in with an altered handshake");
    // Of one half of the greetings a welcome, of the other a name.
    let (mut verdict, is_ready) = if greeting.len() % 2 == 0 {
        (acceptor.ready(7, greeting, None), true)
    } else {
        (acceptor.elsewhere(greeting), false)
    };
    altered |= alter(&mut verdict, changes[3]);
    for part in [&verdict[..8], &verdict[8..24]] {
        let Ok(Step::Next { .. }) = dialler.take(part) else { return assert!(altered) };
    }
    match dialler.take(&verdict[24..]) {
        Ok(Step::End(Verdict::Ready(welcome))) => {
            assert!(!altered && is_ready && welcome.number == 7 && welcome.greeting == greeting, "believed");
        }
        Ok(Step::End(Verdict::Elsewhere(name))) => {
            assert!(!altered && !is_ready && name == greeting, "believed");
        }
        _ => assert!(altered),
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&how, data)) = data.split_first() else { return };
    match how % 4 {
        0 => {
            let mut acceptor = Acceptor::new(secret(), [1; 32]);
            assert!(
                !feed(acceptor.begin(), data, |bytes| acceptor.take(bytes)),
                "came in without the secret"
            );
        }
        1 => {
            let (mut dialler, first) = Dialler::begin(&hello(b"x"), ORIGIN, secret(), [2; 32]);
            assert!(!feed(first, data, |bytes| dialler.take(bytes)), "believed without the secret");
        }
        _ => {
            let (greeting, changes) = data.split_at(data.len().min(usize::from(how >> 2)));
            let part = changes.len() / 4;
            let mut parts = changes.chunks(part.max(1));
            between(greeting, std::array::from_fn(|_| parts.next().unwrap_or_default()));
        }
    }
});
