//! The ring's reasons, and what an endpoint does on another thread.

use super::ring::Errno;
use super::*;
use crate::arena::Arena;
use crate::conformance::{FRAMING, head};
use crate::endpoint::{Batch, Body, Endpoint as _, Event, Events, HEADER_BYTES, Token};

#[test]
fn a_refusal_says_why_and_what_to_do() {
    let why = |errno| Why::of(&std::io::Error::from_raw_os_error(errno));
    assert_eq!(why(libc::EPERM), Why::NotPermitted(Errno(libc::EPERM)));
    assert!(why(libc::EPERM).to_string().contains("seccomp"));
    assert_eq!(why(libc::ENOSYS), Why::NoKernelSupport(Errno(libc::ENOSYS)));
    assert_eq!(why(libc::EINVAL), Why::NoKernelSupport(Errno(libc::EINVAL)));
    assert!(matches!(why(libc::ENOMEM), Why::NoMemory { errno: Errno(libc::ENOMEM), .. }));
    assert!(why(libc::ENOMEM).to_string().contains("ulimit -l"));
    assert_eq!(why(libc::EMFILE), Why::NoDescriptor(Errno(libc::EMFILE)));
    assert_eq!(why(libc::EIO), Why::Other(Errno(libc::EIO)));
}

#[test]
fn an_endpoint_changes_threads_until_it_is_used() {
    let mut endpoint = Endpoint::new(FRAMING, Options::default()).expect("io_uring is permitted here");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            endpoint.poll(&mut Events::with_limit(1));
            drop(endpoint);
        });
    });
}

#[test]
fn a_used_endpoint_may_be_dropped_on_another_thread() {
    let mut endpoint = Endpoint::new(FRAMING, Options::default()).expect("io_uring is permitted here");
    let (near, mut far) = streams();
    endpoint.adopt(crate::Link::tcp(near, 1).expect("connected")).expect("room");
    for _ in 0..3 {
        endpoint.poll(&mut Events::with_limit(1));
    }
    std::thread::spawn(move || drop(endpoint)).join().expect("no panic");
    let read = std::io::Read::read(&mut far, &mut [0; 1]);
    assert!(matches!(read, Ok(0) | Err(_)), "the other side hears of it");
}

#[test]
fn a_used_endpoint_refuses_another_thread() {
    let mut endpoint = Endpoint::new(FRAMING, Options::default()).expect("io_uring is permitted here");
    endpoint.poll(&mut Events::with_limit(1));
    let moved = std::thread::spawn(move || {
        let (near, _far) = streams();
        endpoint.adopt(crate::Link::tcp(near, 1).expect("connected")).expect("room");
        for _ in 0..3 {
            endpoint.poll(&mut Events::with_limit(1));
        }
    });
    let panic = moved.join().expect_err("it says so");
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    assert!(text.contains("stays on the thread"), "{text}");
}

/// Both ends of a connection over loopback.
fn streams() -> (std::net::TcpStream, std::net::TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let far = std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("listening");
    (listener.accept().expect("connected").0, far)
}

/// Each turn on a thread of its own, which ends after it, with a send that the kernel cannot finish.
#[test]
fn an_endpoint_of_many_threads_outlives_them() {
    const BODY_BYTES: usize = 1 << 20;
    const COUNT: u64 = 20;
    let options = Options { one_thread: false, ..Options::default() };
    let mut endpoint = Endpoint::new(FRAMING, options).expect("io_uring is permitted here");
    let (near, far) = streams();
    let peer = endpoint.adopt(crate::Link::tcp(near, 1).expect("connected")).expect("room");
    let mut arena = Arena::new(4 << 20);
    let body: Body = arena.take(BODY_BYTES).expect("enough").freeze().into();
    let mut batch = Batch::default();
    for number in 0..COUNT {
        batch.send(peer, Token(number), &head(number, &body), body.clone());
    }
    let mut sent = 0;
    let mut turn = |endpoint: &mut Endpoint, batch: &mut Batch| {
        let mut events = Events::with_limit(64);
        let _ = endpoint.post(batch);
        endpoint.poll(&mut events);
        for event in events.drain() {
            let Event::Sent { outcome, .. } = event else { panic!("no loss: {event:?}") };
            assert_eq!(outcome, Ok(()));
            sent += 1;
        }
        sent == COUNT
    };
    // Nobody reads yet: a send stays in the kernel when its thread ends.
    for _ in 0..20 {
        std::thread::scope(|scope| scope.spawn(|| turn(&mut endpoint, &mut batch)).join().expect("no panic"));
    }
    let reader = std::thread::spawn(move || {
        let (mut far, mut bytes, mut left) = (far, vec![0; 1 << 20], 20 * (HEADER_BYTES + BODY_BYTES));
        while left > 0 {
            left -= std::io::Read::read(&mut far, &mut bytes).expect("it comes");
        }
        far
    });
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !std::thread::scope(|scope| {
        scope.spawn(|| turn(&mut endpoint, &mut batch)).join().expect("no panic")
    }) {
        assert!(std::time::Instant::now() < deadline, "not in time");
    }
    drop(reader.join().expect("it reads all"));
}
