//! The ring's reasons, and what an endpoint does on another thread.

use super::ring::Errno;
use super::*;
use crate::conformance::FRAMING;
use crate::endpoint::{Endpoint as _, Events};

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
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mut far = std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("listening");
    let (near, _) = listener.accept().expect("connected");
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
        let (near, _far) = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
            let far = std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("listening");
            (listener.accept().expect("connected").0, far)
        };
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
