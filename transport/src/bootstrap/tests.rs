//! Handshakes over real loopback sockets, with those who mean well and those who do not.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::handshake::{Acceptor, Dialler, Mismatch, Verdict, Visitor, Welcome};
use super::stream::converse;
use super::*;

mod sharing;

#[derive(Default)]
struct Door {
    inside: Mutex<Vec<Accepted>>,
    refuse: Option<String>,
}

impl Handler for Door {
    fn decide(&self, hello: &Hello, from: Option<SocketAddr>) -> Answer {
        assert!(from.is_none_or(|from| from.ip().is_loopback()));
        match &self.refuse {
            Some(text) => Answer::Refuse { text: text.clone() },
            None => Answer::Accept { greeting: hello.greeting.iter().rev().copied().collect() },
        }
    }

    fn accepted(&self, accepted: Accepted) {
        self.inside.lock().expect("no test panics inside").push(accepted);
    }
}

fn options(handshakes_max: usize, timeout_ms: u64) -> Options {
    let handshake_timeout = Duration::from_millis(timeout_ms);
    Options { handshakes_max, handshake_timeout, ..Options::default() }
}

/// A listener's options with this secret.
fn guarded(secret: &Secret) -> Options {
    Options { terms: terms(Some(secret)), ..Options::default() }
}

fn terms(secret: Option<&Secret>) -> Terms {
    Terms { secret: secret.cloned(), ..Terms::default() }
}

fn knock(address: &str, terms: &Terms) -> Result<Dialed, DialError> {
    dial(address, &hello(Purpose::Control), terms, soon())
}

/// Runs `visit` while a listener serves, and returns the listener's numbers and who is inside.
fn serve(options: Options, door: &Door, visit: impl FnOnce(&Listener, &str)) -> Stats {
    let listener = Listener::bind("127.0.0.1:0", options).expect("a free port");
    std::thread::scope(|scope| {
        let server = scope.spawn(|| listener.serve(door));
        let visited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            visit(&listener, &listener.address().to_string());
        }));
        listener.stop();
        server.join().expect("the listener survives whatever comes");
        if let Err(panic) = visited {
            std::panic::resume_unwind(panic);
        }
    });
    listener.stats()
}

fn hello(purpose: Purpose) -> Hello {
    Hello { purpose, job: 3, greeting: vec![1, 2, 3] }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

/// Waits until the numbers are as expected.
fn until(listener: &Listener, what: impl Fn(Stats) -> bool) {
    let deadline = soon();
    while !what(listener.stats()) {
        assert!(Instant::now() < deadline, "not within 5 s: {:?}", listener.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Reads until the other side closes. Panics when it does not.
fn closed(mut stream: &TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => bytes,
        Err(error) => panic!("not closed: {error}"),
    }
}

#[test]
fn a_data_and_a_control_connection_come_in() {
    let door = Door::default();
    let stats = serve(Options::default(), &door, |listener, address| {
        let data =
            dial(address, &hello(Purpose::Data { shard: 5 }), &Terms::default(), soon()).expect("comes in");
        let Dialed::Data { link, greeting } = data else { panic!("a link") };
        assert_eq!(greeting, [3, 2, 1]);
        assert_eq!(link.address(), Some(address));
        let control = knock(address, &Terms::default()).expect("comes in");
        let Dialed::Control { mut stream, number, .. } = control else { panic!("a stream") };
        until(listener, |stats| stats.accepted == 2);
        // `accepted` is called after it was counted.
        let deadline = soon();
        while door.inside.lock().expect("not poisoned").len() < 2 {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        let mut inside = door.inside.lock().expect("not poisoned");
        assert_ne!(number, link.number(), "each has its own");
        for accepted in inside.drain(..) {
            match accepted {
                Accepted::Data { link: other, shard, hello } => {
                    assert_eq!((other.number(), shard, hello.job), (link.number(), 5, 3));
                    assert_eq!(hello.greeting, [1, 2, 3]);
                }
                Accepted::Control { stream: mut other, number: theirs, .. } => {
                    assert_eq!(theirs, number);
                    other.write_all(b"beat").expect("connected");
                    let mut bytes = [0; 4];
                    stream.read_exact(&mut bytes).expect("connected");
                    assert_eq!(&bytes, b"beat");
                }
            }
        }
    });
    assert_eq!(stats, Stats { connections: 2, accepted: 2, ..Stats::default() });
}

#[test]
fn a_refusal_arrives_in_words_cut_at_a_character() {
    let door = Door { refuse: Some("ü".repeat(200)), ..Door::default() };
    let stats = serve(Options::default(), &door, |_, address| {
        let error = knock(address, &Terms::default()).expect_err("refused");
        let DialError::Refused { text, .. } = &error else { panic!("{error}") };
        assert_eq!(*text, "ü".repeat(128));
        assert!(error.to_string().contains(address));
    });
    assert_eq!(stats, Stats { connections: 1, refused: 1, ..Stats::default() });
}

#[test]
fn foreigners_are_cut_off_and_counted() {
    let door = Door::default();
    let stats = serve(Options::default(), &door, |listener, address| {
        for bytes in
            [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0xff; 600], b"\x16\x03\x01\x02\x00\x01\x00\x01"]
        {
            let mut stream = TcpStream::connect(address).expect("listening");
            stream.write_all(bytes).expect("connected");
            assert_eq!(closed(&stream), []);
        }
        // A scanner that says nothing and goes.
        drop(TcpStream::connect(address).expect("listening"));
        until(listener, |stats| stats.foreign == 3 && stats.gone == 1);
        // A hello with a greeting longer than may be, one of no purpose, and one that half has a secret.
        for (at, value) in [(17, 0xff), (10, 9), (11, 2)] {
            let mut stream = TcpStream::connect(address).expect("listening");
            let mut bytes = [0; 24];
            bytes[..8].copy_from_slice(b"rangefld");
            bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
            bytes[10] = 1;
            bytes[at] = value;
            stream.write_all(&bytes).expect("connected");
            assert_eq!(closed(&stream), []);
        }
    });
    assert_eq!(stats, Stats { connections: 7, foreign: 6, gone: 1, ..Stats::default() });
    assert!(door.inside.lock().expect("not poisoned").is_empty());
}

#[test]
fn the_slow_and_the_silent_are_cut_off_in_time() {
    let stats = serve(options(16, 200), &Door::default(), |listener, address| {
        let silent = TcpStream::connect(address).expect("listening");
        let mut slow = TcpStream::connect(address).expect("listening");
        let started = Instant::now();
        // A byte every 50 ms makes a whole hello in more than a second.
        for byte in *b"rangefld\x03\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" {
            if slow.write_all(&[byte]).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(closed(&slow), []);
        assert_eq!(closed(&silent), []);
        assert!(started.elapsed() < Duration::from_secs(1), "the whole handshake has one deadline");
        until(listener, |stats| stats.late == 2);
    });
    assert_eq!(stats, Stats { connections: 2, late: 2, ..Stats::default() });
}

#[test]
fn more_than_there_is_room_for_wait_and_come_in() {
    let door = Door::default();
    let stats = serve(options(2, 300), &door, |listener, address| {
        let silent = [(); 2].map(|()| TcpStream::connect(address).expect("listening"));
        let started = Instant::now();
        knock(address, &Terms::default()).expect("after the silent ones");
        assert!(started.elapsed() > Duration::from_millis(150), "it had to wait");
        until(listener, |stats| stats.late == 2);
        drop(silent);
    });
    assert_eq!((stats.accepted, stats.late), (1, 2));
}

#[test]
fn versions_are_told_to_both_sides() {
    let stats = serve(Options::default(), &Door::default(), |_, address| {
        let mut stream = TcpStream::connect(address).expect("listening");
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(b"rangefld");
        bytes[8] = 77;
        stream.write_all(&bytes).expect("connected");
        let reply = closed(&stream);
        assert_eq!((&reply[..8], reply[8], reply[10]), (&b"rangefld"[..], 3, 3));
    });
    assert_eq!(stats.other_version, 1);

    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().expect("a visitor");
            let mut bytes = [0; 24];
            bytes[..8].copy_from_slice(b"rangefld");
            bytes[8] = 9;
            stream.write_all(&bytes).expect("connected");
            closed(&stream);
        });
        let error = knock(&address, &Terms::default()).expect_err("another version");
        assert!(matches!(error, DialError::Version { ours: VERSION, theirs: 9, .. }), "{error}");
    });
}

#[test]
fn failures_to_dial_name_their_cause() {
    // A port that was free a moment ago.
    let free =
        TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound").to_string();
    let error = knock(&free, &Terms::default()).expect_err("nothing there");
    assert!(matches!(error, DialError::NothingListens { .. }), "{error}");
    let error = knock("no port", &Terms::default()).expect_err("no address");
    assert!(matches!(error, DialError::Resolve { .. }), "{error}");

    // Connected by the system, answered by nobody.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("bound").to_string();
    let shortly = Instant::now() + Duration::from_millis(100);
    let error = dial(&address, &hello(Purpose::Control), &Terms::default(), shortly);
    let error = error.expect_err("no answer");
    assert!(matches!(error, DialError::Late { stage: Stage::Handshake, .. }), "{error}");
    assert!(error.to_string().contains("handshake was not answered"), "{error}");

    // Something else.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for reply in [&b"220 mail.example ESMTP ready\r\n"[..], b""] {
                // The silent one above is still in the queue.
                let (mut stream, _) = silent.accept().expect("a visitor");
                stream.write_all(reply).expect("connected");
            }
            let (mut stream, _) = silent.accept().expect("a visitor");
            stream.write_all(b"220 mail.example ESMTP ready\r\n").expect("connected");
            closed(&stream);
        });
        let error = knock(&address, &Terms::default()).expect_err("closes at once");
        assert!(matches!(error, DialError::Closed { .. }), "{error}");
        let error = knock(&address, &Terms::default()).expect_err("another program");
        assert!(matches!(error, DialError::NotRangefold { .. }), "{error}");
    });
}

#[test]
fn names_and_both_families_are_resolved() {
    let door = Door::default();
    serve(Options::default(), &door, |listener, _| {
        // The name may have an IPv6 address too, on which nothing listens: all are tried.
        let address = format!("localhost:{}", listener.address().port());
        knock(&address, &Terms::default()).expect("comes in");
    });
    let Ok(listener) = Listener::bind("[::1]:0", Options::default()) else { return };
    std::thread::scope(|scope| {
        scope.spawn(|| listener.serve(&door));
        let dialed = knock(&listener.address().to_string(), &Terms::default());
        listener.stop();
        dialed.expect("comes in over IPv6");
    });
}

#[test]
fn a_port_in_use_says_what_to_do() {
    let first = Listener::bind("127.0.0.1:0", Options::default()).expect("a free port");
    let error = Listener::bind(&first.address().to_string(), Options::default()).expect_err("in use");
    assert!(matches!(error, BindError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("os error 98") && error.to_string().contains("port 0"), "{error}");
    let secret = Secret::random().expect("random");
    let error = Listener::bind("192.0.2.1:0", guarded(&secret)).expect_err("not ours");
    assert!(matches!(error, BindError::Address { .. }), "{error}");
}

#[test]
fn stop_ends_handshakes_under_way() {
    let started = Instant::now();
    serve(options(1, 60_000), &Door::default(), |listener, address| {
        let silent = TcpStream::connect(address).expect("listening");
        until(listener, |stats| stats.connections == 1);
        std::mem::forget(silent);
    });
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn who_knows_the_secret_comes_in_and_nobody_else() {
    let (secret, other) = (Secret::random().expect("random"), Secret::random().expect("random"));
    let stats = serve(guarded(&secret), &Door::default(), |_, address| {
        knock(address, &terms(Some(&secret))).expect("knows it");
        for (theirs, expected) in [(None, Mismatch::MissingHere), (Some(&other), Mismatch::Differ)] {
            let error = knock(address, &terms(theirs)).expect_err("does not know it");
            let DialError::Unauthenticated { mismatch, .. } = error else { panic!("{error}") };
            assert_eq!(mismatch, expected);
        }
    });
    assert_eq!(stats, Stats { connections: 3, accepted: 1, unauthenticated: 2, ..Stats::default() });
    let stats = serve(Options::default(), &Door::default(), |_, address| {
        let error = knock(address, &terms(Some(&secret))).expect_err("never without");
        assert!(error.to_string().contains("the other has none; give the other side the same"), "{error}");
    });
    assert_eq!(stats, Stats { connections: 1, unauthenticated: 1, ..Stats::default() });
}

#[test]
fn an_acceptor_that_only_pretends_to_know_the_secret_is_found_out() {
    let secret = Secret::random().expect("random");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().expect("a visitor");
            let mut said = [0; 24 + 32 + 24 + 3 + 32];
            stream.read_exact(&mut said[..24]).expect("a hello");
            let mut answer = [0; 24 + 32];
            answer[..12].copy_from_slice(b"rangefld\x03\x00\x04\x01");
            stream.write_all(&answer).expect("connected");
            stream.read_exact(&mut said[24..]).expect("a claim");
            answer[10] = 1;
            // The dialler's own proof sent back to it.
            answer[24..].copy_from_slice(&said[83..]);
            stream.write_all(&answer).expect("connected");
            assert_eq!(closed(&stream), []);
        });
        let error = knock(&address, &terms(Some(&secret))).expect_err("pretends");
        let expected = matches!(error, DialError::Unauthenticated { mismatch: Mismatch::Unproven, .. });
        assert!(expected, "{error}");
    });
}

#[test]
fn without_a_secret_only_this_host_is_listened_to() {
    let secret = Secret::random().expect("random");
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "[::ffff:192.0.2.1]:0", "[fe80::1]:0"] {
        let error = Listener::bind(address, Options::default()).expect_err("exposed");
        assert!(matches!(error, BindError::Exposed { .. }), "{error}");
        assert!(error.to_string().contains("--secret-file or RANGEFOLD_SECRET"), "{error}");
    }
    for address in ["127.0.0.1:0", "127.9.9.9:0", "localhost:0"] {
        Listener::bind(address, Options::default()).expect("of this host alone");
    }
    Listener::bind("0.0.0.0:0", guarded(&secret)).expect("whoever comes must prove it");
}

#[test]
fn a_handshake_works_on_a_unix_socket_as_well() {
    let secret = Secret::random().expect("random");
    let (near, far) = UnixStream::pair().expect("a pair");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut acceptor = Acceptor::new(Some(secret.clone()), [1; 32]);
            let heard =
                converse(&far, soon(), acceptor.begin(), |bytes| acceptor.take(bytes)).expect("proven");
            assert_eq!(heard, Visitor { hello: hello(Purpose::Control), origin: Origin::TCP });
            stream::write(&far, soon(), &acceptor.ready(7, b"welcome", None)).expect("connected");
        });
        let (mut dialler, first) =
            Dialler::begin(&hello(Purpose::Control), Origin::TCP, Some(secret.clone()), [2; 32]);
        let welcome = converse(&near, soon(), first, |bytes| dialler.take(bytes)).expect("proven");
        let expected = Welcome { number: 7, greeting: b"welcome".to_vec(), unshared: None };
        assert_eq!(welcome, Verdict::Ready(expected));
    });
}

#[test]
fn connections_are_watched_for_silence_on_both_sides() {
    let door = Door::default();
    let terms = Terms { peer_timeout: Duration::from_secs(30), ..Terms::default() };
    let options = Options { terms: terms.clone(), ..Options::default() };
    serve(options, &door, |_, address| {
        let Ok(Dialed::Control { stream, .. }) = knock(address, &terms) else { panic!("comes in") };
        let deadline = soon();
        let accepted = loop {
            assert!(Instant::now() < deadline);
            if let Some(accepted) = door.inside.lock().expect("not poisoned").pop() {
                break accepted;
            }
            std::thread::yield_now();
        };
        let Accepted::Control { stream: other, .. } = accepted else { panic!("a stream") };
        for side in [&stream, &other] {
            use rustix::net::sockopt;
            assert!(sockopt::socket_keepalive(side).expect("connected"));
            let user_timeout_ms = sockopt::tcp_user_timeout(side).expect("connected");
            let idle = sockopt::tcp_keepidle(side).expect("connected");
            let interval = sockopt::tcp_keepintvl(side).expect("connected");
            assert_eq!((user_timeout_ms, idle.as_secs(), interval.as_secs()), (13_500, 6, 3));
        }
    });
}
