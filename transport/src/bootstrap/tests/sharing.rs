//! The way to shared memory over real sockets: who takes it, who is told why not, and who comes to the Unix socket uninvited.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::UnixListener;

use rustix::fs::{MemfdFlags, memfd_create};

use super::*;
use crate::bootstrap::unix::reach;
use crate::{Link, Route};

const DATA: Purpose = Purpose::Data { shard: 5 };

fn sharing(sharing: Sharing, secret: Option<&Secret>) -> Terms {
    Terms { sharing, ..terms(secret) }
}

fn listening(here: Sharing, secret: Option<&Secret>) -> Options {
    Options { terms: sharing(here, secret), ..Options::default() }
}

fn dial_as(address: &str, there: Sharing) -> Result<Link, DialError> {
    dial_with(address, &sharing(there, None))
}

fn dial_with(address: &str, terms: &Terms) -> Result<Link, DialError> {
    match dial(address, &hello(DATA), terms, soon())? {
        Dialed::Data { link, greeting } => {
            assert_eq!(greeting, [3, 2, 1]);
            Ok(link)
        }
        Dialed::Control { .. } => panic!("a link was asked for"),
    }
}

/// The link of the one who is inside.
fn inside(door: &Door) -> Link {
    let deadline = soon();
    loop {
        if let Some(accepted) = door.inside.lock().expect("not poisoned").pop() {
            let Accepted::Data { link, shard, hello } = accepted else { panic!("a link") };
            assert_eq!((shard, hello.job, hello.greeting), (5, 3, vec![1, 2, 3]));
            return link;
        }
        assert!(Instant::now() < deadline, "nobody came in");
        std::thread::yield_now();
    }
}

#[test]
fn two_that_want_it_share_memory_and_the_first_connection_leaves_no_trace() {
    let secret = Secret::random().expect("random");
    for secret in [None, Some(&secret)] {
        for (here, there) in [
            (Sharing::Preferred, Sharing::Preferred),
            (Sharing::Required, Sharing::Preferred),
            (Sharing::Preferred, Sharing::Required),
            (Sharing::Required, Sharing::Required),
        ] {
            let door = Door::default();
            let stats = serve(listening(here, secret), &door, |_, address| {
                let link = dial_with(address, &sharing(there, secret)).expect("comes in");
                let other = inside(&door);
                assert_eq!((link.route(), other.route()), (Route::Shared, Route::Shared));
                assert_eq!(link.number(), other.number());
                assert_eq!(link.address(), Some(address));
                let process = format!("process {} of this host", std::process::id());
                assert_eq!(other.address(), Some(process.as_str()));
            });
            assert_eq!(stats, Stats { connections: 2, referred: 1, accepted: 1, ..Stats::default() });
            assert_eq!(stats.turned_away(), None, "who is sent on is not turned away");
        }
    }
}

#[test]
fn who_prefers_it_goes_over_tcp_and_knows_why() {
    let door = Door::default();
    serve(listening(Sharing::Never, None), &door, |_, address| {
        let link = dial_as(address, Sharing::Preferred).expect("comes in");
        assert_eq!(link.route(), Route::Tcp(Some(Unshared::Unwanted)));
        assert_eq!(inside(&door).route(), Route::Tcp(None));
    });
    serve(listening(Sharing::Preferred, None), &door, |_, address| {
        let link = dial_as(address, Sharing::Never).expect("comes in");
        assert_eq!(link.route(), Route::Tcp(None), "it has not asked");
        inside(&door);
    });
}

#[test]
fn who_insists_gets_it_or_hears_why_not() {
    let door = Door::default();
    for (here, there, why) in [
        (Sharing::Never, Sharing::Required, "this process shares no memory"),
        (Sharing::Required, Sharing::Never, "through shared memory only"),
    ] {
        let stats = serve(listening(here, None), &door, |_, address| {
            let error = dial_as(address, there).expect_err("no way for both");
            assert!(matches!(error, DialError::Refused { .. }), "{error}");
            assert!(error.to_string().contains(why), "{error}");
        });
        assert_eq!(stats, Stats { connections: 1, refused: 1, ..Stats::default() });
    }
    // Control connections stay as they are.
    let stats = serve(listening(Sharing::Required, None), &door, |listener, address| {
        knock(address, &sharing(Sharing::Required, None)).expect("over TCP");
        until(listener, |stats| stats.accepted == 1);
    });
    assert_eq!(stats, Stats { connections: 1, accepted: 1, ..Stats::default() });
}

#[test]
fn there_are_no_more_shared_links_than_there_may_be() {
    let door = Door::default();
    let options = Options { shared_links_max: 1, ..listening(Sharing::Preferred, None) };
    serve(options, &door, |_, address| {
        let first = (dial_as(address, Sharing::Preferred).expect("comes in"), inside(&door));
        assert_eq!(first.0.route(), Route::Shared);
        let second = dial_as(address, Sharing::Preferred).expect("comes in over TCP");
        assert_eq!(second.route(), Route::Tcp(Some(Unshared::NoRoom)));
        let error = dial_as(address, Sharing::Required).expect_err("no room");
        assert!(error.to_string().contains("as many as it may"), "{error}");
        drop(first);
        let third = dial_as(address, Sharing::Preferred).expect("the first has left room");
        assert_eq!(third.route(), Route::Shared);
    });
}

/// Runs the dialling side of a handshake on the Unix socket itself.
fn proven(listener: &Listener, asked: Asked, secret: Option<&Secret>) -> Result<UnixStream, String> {
    let stream = unix(listener);
    let origin = Origin { asked, process: 1, kernel: Kernel::here().expect("a kernel") };
    let (mut dialler, first) = Dialler::begin(&hello(DATA), origin, secret.cloned(), [2; 32]);
    let verdict = converse(&stream, soon(), first, |bytes| dialler.take(bytes));
    match verdict {
        Ok(Verdict::Ready(_)) => Ok(stream),
        verdict => Err(format!("{verdict:?}")),
    }
}

fn unix(listener: &Listener) -> UnixStream {
    let name = &listener.unix().expect("it shares memory").name;
    reach(name, soon()).expect("it listens")
}

/// Reads until the other side closes.
fn hung_up(mut stream: &UnixStream) -> Vec<u8> {
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => bytes,
        Err(error) => panic!("not closed: {error}"),
    }
}

#[test]
fn strangers_at_the_unix_socket_are_cut_off_and_counted_as_those_at_the_address() {
    let (secret, other) = (Secret::random().expect("random"), Secret::random().expect("random"));
    let door = Door::default();
    let stats = serve(listening(Sharing::Preferred, Some(&secret)), &door, |listener, _| {
        for bytes in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0xff; 600]] {
            let mut stream = unix(listener);
            // It may be cut off in the middle.
            let _ = stream.write_all(bytes);
            assert_eq!(hung_up(&stream), []);
        }
        // A scanner that says nothing and goes.
        drop(unix(listener));
        let refused = proven(listener, Asked::Here, Some(&other)).expect_err("another secret");
        assert!(refused.contains("Differ"), "{refused}");
        let refused = proven(listener, Asked::Here, None).expect_err("no secret");
        assert!(refused.contains("MissingHere"), "{refused}");
        // Who knows the secret and takes one door for the other.
        for asked in [Asked::Tcp, Asked::Either, Asked::Memory] {
            let refused = proven(listener, asked, Some(&secret)).expect_err("another door");
            assert!(refused.contains("is for shared memory"), "{refused}");
        }
        until(listener, |stats| stats.gone == 1 && stats.refused == 3);
    });
    let expected =
        Stats { connections: 8, foreign: 2, gone: 1, unauthenticated: 2, refused: 3, ..Stats::default() };
    assert_eq!(stats, expected);
    assert!(door.inside.lock().expect("not poisoned").is_empty());
}

#[test]
fn who_has_proven_itself_and_makes_no_memory_is_cut_off_in_time() {
    let secret = Secret::random().expect("random");
    let door = Door::default();
    let options = Options {
        handshake_timeout: Duration::from_millis(300),
        ..listening(Sharing::Preferred, Some(&secret))
    };
    let stats = serve(options, &door, |listener, _| {
        let come = || proven(listener, Asked::Here, Some(&secret)).expect("knows the secret");
        // Says nothing more.
        let silent = come();
        assert_eq!(hung_up(&silent), [], "one deadline for all of it");
        // Goes.
        drop(come());
        // Says something else.
        let mut foreign = come();
        foreign.write_all(&[7; 24]).expect("connected");
        assert_eq!(hung_up(&foreign), []);
        // Passes no memory.
        let mut empty = come();
        let offer = [&b"rfshm\0\0\x01"[..], &[0; 8], &4096_u64.to_le_bytes()].concat();
        empty.write_all(&offer).expect("connected");
        assert_eq!(hung_up(&empty)[8], 2, "it hears that the terms are wrong");
        until(listener, |stats| (stats.late, stats.gone, stats.unshared) == (1, 1, 2));
    });
    let expected = Stats { connections: 4, late: 1, gone: 1, unshared: 2, ..Stats::default() };
    assert_eq!(stats, expected);
    assert!(stats.turned_away().expect("some").contains("2 offered memory that cannot be shared"));
    assert!(door.inside.lock().expect("not poisoned").is_empty());
}

#[test]
fn memory_that_its_maker_can_take_away_is_refused_and_the_dialler_told() {
    let door = Door::default();
    let stats = serve(listening(Sharing::Preferred, None), &door, |listener, _| {
        let stream = unix(listener);
        let origin = Origin { asked: Asked::Here, process: 1, kernel: Kernel::UNTOLD };
        let (mut dialler, first) = Dialler::begin(&hello(DATA), origin, None, [2; 32]);
        let verdict = converse(&stream, soon(), first, |bytes| dialler.take(bytes)).expect("no secret");
        let Verdict::Ready(welcome) = verdict else { panic!("{verdict:?}") };
        let unsealed = memfd_create("unsealed", MemfdFlags::ALLOW_SEALING).expect("memory");
        rustix::fs::ftruncate(&unsealed, 3 * 4096).expect("memory");
        let offer = [&b"rfshm\0\0\x01"[..], &welcome.number.to_le_bytes(), &4096_u64.to_le_bytes()].concat();
        pass(&stream, &offer, &unsealed);
        assert_eq!(hung_up(&stream)[8], 2);
        until(listener, |stats| stats.unshared == 1);
    });
    assert_eq!(stats, Stats { connections: 1, unshared: 1, ..Stats::default() });
}

fn pass(stream: &UnixStream, message: &[u8], descriptor: &std::os::fd::OwnedFd) {
    use std::io::IoSlice;
    use std::mem::MaybeUninit;
    use std::os::fd::AsFd as _;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let passed = [descriptor.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&passed)));
    sendmsg(stream, &[IoSlice::new(message)], &mut control, SendFlags::empty()).expect("connected");
}

#[test]
fn many_at_the_unix_socket_do_not_keep_those_at_the_address_out() {
    let door = Door::default();
    let options = Options {
        handshakes_max: 2,
        handshake_timeout: Duration::from_secs(60),
        ..listening(Sharing::Preferred, None)
    };
    serve(options, &door, |listener, address| {
        // Two are attended to, the others wait in the backlog of their own socket.
        let mut silent: Vec<_> = (0..9).map(|_| unix(listener)).collect();
        until(listener, |stats| stats.connections == 2);
        let stream = TcpStream::connect(address).expect("listening");
        // Expect: when some have gone, whoever came to the address has had its turn, with more than two still waiting.
        drop(silent.drain(..4));
        let (mut dialler, first) = Dialler::begin(&hello(DATA), Origin::TCP, None, [2; 32]);
        let verdict = converse(&stream, soon(), first, |bytes| dialler.take(bytes));
        assert!(matches!(verdict, Ok(Verdict::Ready(_))), "{verdict:?}");
        drop(silent);
    });
}

#[test]
fn stop_ends_what_is_under_way_at_the_unix_socket() {
    let started = Instant::now();
    let options =
        Options { handshake_timeout: Duration::from_secs(60), ..listening(Sharing::Preferred, None) };
    serve(options, &Door::default(), |listener, _| {
        let silent = unix(listener);
        let idle = proven(listener, Asked::Here, None).expect("no secret");
        until(listener, |stats| stats.connections == 2);
        std::mem::forget((silent, idle));
    });
    assert!(started.elapsed() < Duration::from_secs(10));
}

/// An acceptor that sends who comes first to `name`, then lets in over TCP who comes again.
fn sends_to(listener: &TcpListener, name: &[u8], secret: Option<&Secret>) {
    for again in [false, true] {
        let (stream, _) = listener.accept().expect("a visitor");
        let mut acceptor = Acceptor::new(secret.cloned(), [1; 32]);
        let heard = converse(&stream, soon(), acceptor.begin(), |bytes| acceptor.take(bytes));
        let visitor = heard.expect("it knows the secret");
        assert_eq!(visitor.origin.asked == Asked::Tcp, again);
        let answer = if again { acceptor.ready(7, &[3, 2, 1], None) } else { acceptor.elsewhere(name) };
        stream::write(&stream, soon(), &answer).expect("connected");
    }
}

/// What a dialler says to a name at which there is nothing to be shared.
fn sent_to(name: &[u8], secret: Option<&Secret>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    std::thread::scope(|scope| {
        scope.spawn(|| sends_to(&listener, name, secret));
        let link = dial_with(&address, &sharing(Sharing::Preferred, secret)).expect("over TCP");
        let Route::Tcp(Some(Unshared::Failed(why))) = link.route() else { panic!("{}", link.route()) };
        assert!(link.route().to_string().contains(&format!("TCP (not shm: {why})")));
        why
    })
}

#[test]
fn a_unix_socket_of_another_namespace_is_not_found_and_the_way_is_tcp() {
    assert!(sent_to(b"rangefold-nobody", None).contains("network namespace"));
    assert!(sent_to(&[b'x'; 200], None).contains("cannot be reached"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (stream, _) = listener.accept().expect("a visitor");
            let mut acceptor = Acceptor::new(None, [1; 32]);
            converse(&stream, soon(), acceptor.begin(), |bytes| acceptor.take(bytes)).expect("no secret");
            stream::write(&stream, soon(), &acceptor.elsewhere(b"rangefold-nobody")).expect("connected");
        });
        let error = dial_as(&address, Sharing::Required).expect_err("nothing else is taken");
        assert!(matches!(error, DialError::Unshared { .. }), "{error}");
        assert!(error.to_string().contains("network namespace"), "{error}");
    });
}

#[test]
fn whoever_has_taken_the_name_must_prove_itself() {
    let (secret, other) = (Secret::random().expect("random"), Secret::random().expect("random"));
    let name = format!("rangefold-test-{}", std::process::id()).into_bytes();
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("short");
    let impostor = UnixListener::bind_addr(&address).expect("a free name");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (stream, _) = impostor.accept().expect("a visitor");
            let mut acceptor = Acceptor::new(Some(other), [1; 32]);
            let heard = converse(&stream, soon(), acceptor.begin(), |bytes| acceptor.take(bytes));
            assert!(heard.is_err(), "the dialler's proof is worth nothing there");
        });
        let why = sent_to(&name, Some(&secret));
        assert!(why.contains("the Unix socket of 127.0.0.1:") && why.contains("closed"), "{why}");
    });
}
