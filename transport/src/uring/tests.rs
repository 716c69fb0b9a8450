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
        batch.send(peer, Token(number), head(number, &body), body.clone());
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

fn bytes_of(number: u64, body: &[u8]) -> Vec<u8> {
    let mut arena = Arena::new(8 << 20);
    let slice: Body = arena.take(body.len()).expect("enough").freeze().into();
    [head(number, &slice).as_bytes(), body].concat()
}

/// Eight bodies in the middle hold all buffers, and what is whole is kept by the user: all of them come all the same.
#[test]
fn bodies_in_the_middle_make_room_for_each_other() {
    const BODY_BYTES: usize = 8_000;
    let options = Options { buffer_count: 8, buffer_bytes: 4096, ..Options::default() };
    let mut endpoint = Endpoint::new(FRAMING, options).expect("io_uring is permitted here");
    let mut far = Vec::new();
    for _ in 0..8 {
        let (near, other) = streams();
        endpoint.adopt(crate::Link::tcp(near, 1).expect("connected")).expect("room");
        far.push(other);
    }
    let bytes = bytes_of(1, &[5; BODY_BYTES]);
    let (mut kept, mut events) = (Vec::new(), Events::with_limit(64));
    for part in bytes.chunks(1_000) {
        for far in &mut far {
            std::io::Write::write_all(far, part).expect("connected");
            for _ in 0..20 {
                endpoint.poll(&mut events);
                kept.extend(events.drain());
            }
        }
    }
    for _ in 0..100_000 {
        endpoint.poll(&mut events);
        kept.extend(events.drain());
    }
    assert_eq!(kept.len(), 8, "{kept:?}");
    for event in &kept {
        let Event::Arrived { body, .. } = event else { panic!("an arrival, not {event:?}") };
        assert_eq!(body.len(), BODY_BYTES);
        assert!(body.slices().iter().all(|slice| slice.as_bytes().iter().all(|byte| *byte == 5)));
    }
}

/// A place that has come back is not written any more, though its bytes arrive after.
#[test]
fn a_place_that_came_back_is_not_written() {
    const BODY_BYTES: usize = 1 << 20;
    let mut endpoint = Endpoint::new(FRAMING, Options::default()).expect("io_uring is permitted here");
    let (near, mut far) = streams();
    let link = crate::Link::tcp(near, 1).expect("connected").place_from(1);
    let peer = endpoint.adopt(link).expect("room");
    let bytes = bytes_of(1, &[1; BODY_BYTES]);
    std::io::Write::write_all(&mut far, &bytes[..1_000]).expect("connected");
    let (mut arena, mut events) = (Arena::new(4 << 20), Events::with_limit(64));
    let mut back = None;
    while back.is_none() {
        endpoint.poll(&mut events);
        let mut closing = false;
        for event in events.drain() {
            match event {
                Event::Announced { arrival, body_bytes, .. } => {
                    endpoint.place(arrival, arena.take(body_bytes));
                    closing = true;
                }
                Event::Placed { destination, outcome: Err(_), .. } => back = Some(destination),
                Event::Lost { .. } => {}
                event => panic!("{event:?}"),
            }
        }
        if closing {
            // The receive is in the kernel, waiting, when the connection is closed.
            for _ in 0..10 {
                endpoint.poll(&mut events);
            }
            endpoint.close(peer);
        }
    }
    let mut back = back.expect("it came back");
    back.as_mut_bytes().fill(9);
    let _ = std::io::Write::write_all(&mut far, &bytes[1_000..200_000]);
    for _ in 0..100 {
        endpoint.poll(&mut events);
        events.drain();
    }
    assert!(back.as_bytes().iter().all(|byte| *byte == 9), "the kernel had let go of it");
}
