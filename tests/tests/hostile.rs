//! Those who must not come in, and those who came in and talk nonsense: refused and counted, while an innocent client pushes
//! on and notices nothing.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rangefold::server::{self, Server, Stopper};
use rangefold::{DEADLINE, ElementType, Limits, TableSpec, UpdateFunction, remote};
use rangefold_proto::wire::{self, Extension, Header, Kind};
use rangefold_proto::{JobId, KeyRange, Lane, SegmentId, Stamp};
use rangefold_transport::auto::Wish;
use rangefold_transport::bootstrap::handshake::{Dialler, Fault, Mismatch, Step, Verdict};
use rangefold_transport::bootstrap::{
    Hello, Listener, Nonce, Options, Origin, Purpose, Secret, Stats, Terms,
};
use rangefold_transport::stream::HeadParser;
use rangefold_transport::wait::Clock;
use rangefold_transport::{LostReason, Violation, auto};
use rangefold_workers::coordinator::Coordinator;
use rangefold_workers::remote::framing;
use rangefold_workers::scheduler;

/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

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
        usize::try_from(self.draw() % limit.max(1) as u64).unwrap()
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.draw().to_le_bytes()[0]).collect()
    }

    /// Changes, takes out, puts in and cuts off a few bytes, at least one.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        let before = bytes.clone();
        while *bytes == before {
            for _ in 0..=self.below(3) {
                let at = self.below(bytes.len());
                match self.below(4) {
                    0 if at < bytes.len() => drop(bytes.remove(at)),
                    1 => bytes.insert(at, self.draw().to_le_bytes()[0]),
                    2 => bytes.truncate(at),
                    _ if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                    _ => {}
                }
            }
        }
    }
}

/// A push, as a worker would send it.
fn frame(connection: u64) -> Vec<u8> {
    let mut header = Header::of(Kind::Push, JobId(1));
    (header.first, header.last) = (true, true);
    (header.segment, header.lane, header.stamp) = (SegmentId(1 << 16), Lane(0), Stamp(1 << 40 | 1));
    (header.range, header.value_bytes) = (KeyRange::new(0, 16), 64);
    let mut head = [0; wire::HEAD_BYTES_MAX];
    let len = wire::encode(&header, &Extension::default(), connection, &mut head);
    [&head[..len], &[1; 64]].concat()
}

/// What a receiver makes of a stream that is cut into pieces: the frames found whole, and how it ended.
fn parse(bytes: &[u8], connection: u64, chance: &mut Chance) -> (u32, Result<(), Violation>) {
    let mut parser = HeadParser::new(framing(), connection, 1 << 20);
    let (mut frames, mut body, mut rest) = (0, 0, bytes);
    while !rest.is_empty() {
        let (mut piece, later) = rest.split_at(1 + chance.below(rest.len()));
        rest = later;
        while !piece.is_empty() {
            let skipped = body.min(piece.len());
            (body, piece) = (body - skipped, &piece[skipped..]);
            match parser.parse(piece) {
                Err(violation) => return (frames, Err(violation)),
                Ok(parsed) => {
                    assert!(parsed.consumed <= piece.len() && (parsed.consumed > 0 || piece.is_empty()));
                    piece = &piece[parsed.consumed..];
                    if let Some((head, body_bytes)) = parsed.head {
                        // What the parser lets through, the protocol can read.
                        wire::decode(head.as_bytes(), connection).unwrap();
                        (frames, body) = (frames + 1, body_bytes);
                    }
                }
            }
        }
    }
    (frames, Ok(()))
}

#[test]
fn a_hundred_thousand_hostile_frames_are_found_out() {
    const CONNECTION: u64 = 0x0123_4567_89ab_cdef;
    let mut chance = Chance(5);
    let good = frame(CONNECTION);
    assert_eq!(parse(&good.repeat(3), CONNECTION, &mut chance), (3, Ok(())));
    assert_eq!(parse(&good, CONNECTION ^ 1, &mut chance), (0, Err(Violation::Head)), "of another connection");
    let mut found_out = 0;
    for round in 0..100_000 {
        let bytes = if round % 4 == 0 {
            let len = wire::HEADER_BYTES + chance.below(400);
            chance.bytes(len)
        } else {
            // Only the head is under the check: bodies are opaque here.
            let mut bytes = good[..wire::HEADER_BYTES].to_vec();
            chance.mutate(&mut bytes);
            bytes.extend_from_slice(&good);
            bytes
        };
        let (frames, outcome) = parse(&bytes, CONNECTION, &mut chance);
        assert!(frames == 0 || bytes[..64] == good[..64], "round {round}: {bytes:?}");
        found_out += u32::from(outcome.is_err());
    }
    assert!(found_out > 95_000, "of a few only the end was changed: {found_out}");
}

/// A cluster over loopback whose nodes have a secret: a scheduler, a server with one shard, and what its shard has lost.
struct Cluster {
    scheduler: Arc<Listener>,
    server: Stopper,
    address: String,
    terms: Terms,
    losses: Arc<Mutex<Vec<LostReason>>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Cluster {
    fn start() -> Self {
        let terms = Terms { secret: Some(Secret::random().unwrap()), ..Terms::default() };
        let listening = Options { terms: terms.clone(), ..Options::default() };
        let listener = Arc::new(Listener::bind("127.0.0.1:0", listening).unwrap());
        let coordinator = Arc::new(Coordinator::new(Clock::new(), 1));
        let serving = Arc::clone(&listener);
        let scheduling = std::thread::spawn(move || {
            scheduler::serve(&serving, &coordinator, Duration::from_secs(60), |_| {});
        });
        let options = server::Options {
            scheduler: listener.address().to_string(),
            bind: "127.0.0.1:0".into(),
            advertise: None,
            shards: 1,
            number: None,
            cores: Vec::new(),
            busy_threads: 100,
            busy_poll: false,
            limits: Limits::standard(),
            deadline: PATIENCE,
            terms: terms.clone(),
        };
        let making = auto::Options { wish: Wish::Auto, framing: framing(), one_thread: true };
        let endpoint = || auto::Endpoint::new(&making).map(|made| made.0).map_err(|error| error.to_string());
        let losses = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&losses);
        let server = Server::start(&options, endpoint, move |loss| seen.lock().unwrap().push(loss.reason));
        let server = server.unwrap();
        let (stopper, address) = (server.stopper(), server.address().to_string());
        let sharding = std::thread::spawn(move || server.serve(|| {}).unwrap());
        let threads = vec![scheduling, sharding];
        Self { scheduler: listener, server: stopper, address, terms, losses, threads }
    }

    /// Runs the visitor's side of a handshake on a stream of its own and returns it with the connection's number; what was said
    /// to the acceptor is kept in `said`.
    fn knock(
        &self,
        secret: Option<Secret>,
        nonce: Nonce,
        said: &mut Vec<u8>,
    ) -> Result<(TcpStream, u64), Fault> {
        let mut stream = self.connect();
        let hello = Hello { purpose: Purpose::Data { shard: 0 }, job: 1, greeting: Vec::new() };
        let (mut dialler, mut step) = Dialler::begin::<Verdict>(&hello, Origin::TCP, secret, nonce);
        loop {
            match step {
                Step::Next { say, read } => {
                    said.extend_from_slice(&say);
                    stream.write_all(&say).unwrap();
                    let mut bytes = vec![0; read];
                    stream.read_exact(&mut bytes).unwrap();
                    step = dialler.take(&bytes)?;
                }
                Step::End(Verdict::Ready(welcome)) => return Ok((stream, welcome.number)),
                Step::End(Verdict::Elsewhere(_)) => panic!("nobody asked for it"),
            }
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Says something and reads what comes back until the other side closes.
    fn say(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        // It may be cut off in the middle.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        closed(&mut stream)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.server.stop();
        self.scheduler.stop();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => bytes,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => bytes,
        Err(error) => panic!("not closed: {error}"),
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_innocent_client_pushes_on_while_others_are_kept_out() {
    let cluster = Cluster::start();
    let options = remote::Options {
        scheduler: cluster.scheduler.address().to_string(),
        busy_threads: 100,
        terms: cluster.terms.clone(),
        ..remote::Options::default()
    };
    let (client, _) = remote::connect(&options, Wish::Auto).unwrap();
    client.wait_for_lanes(DEADLINE).unwrap();
    let table =
        client.table::<f32>(&TableSpec::dense("sums", ElementType::F32, 256, UpdateFunction::Add)).unwrap();
    let (pushed, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let innocent = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                table.push(0..256, &[1.0; 256]).unwrap().wait(DEADLINE).unwrap();
                pushed.fetch_add(1, Ordering::Relaxed);
            }
        });
        // Whatever is asserted, the innocent one must end.
        let visited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let expected = visit(&cluster, &|| {
                let before = pushed.load(Ordering::Relaxed);
                until("another push", || {
                    pushed.load(Ordering::Relaxed) > before + 10 || innocent.is_finished()
                });
            });
            until("the last count", || cluster.server.visitors() == expected);
        }));
        stop.store(true, Ordering::Relaxed);
        innocent.join().unwrap();
        if visited.is_err() {
            eprintln!("visitors: {:?}", cluster.server.visitors());
        }
        visited.unwrap();
    });
    let sums = table.pull(0..256).unwrap().wait(DEADLINE).unwrap();
    let total = pushed.load(Ordering::Relaxed) as f32;
    assert!(sums.iter().all(|&sum| sum == total), "each push once: {total} and {:?}", &sums[..4]);
    assert_eq!(client.counters().reconnects, 0, "it was not disturbed");
    assert!(client.disconnected().is_empty());
    client.leave();
}

/// Everybody who has no business there, one kind after the other; `push_on` awaits pushes of the innocent client. Returns what
/// the server must have counted, that client included.
fn visit(cluster: &Cluster, push_on: &dyn Fn()) -> Stats {
    const ROUNDS: u64 = 300;
    let secret = cluster.terms.secret.clone();
    let mut expected = Stats { connections: 1, accepted: 1, ..Stats::default() };
    push_on();

    // Who says nothing, and who says it slowly: they are there for all of the rest.
    let silent = cluster.connect();
    let mut slow = cluster.connect();
    let dripping = std::thread::spawn(move || {
        let begun = Instant::now();
        for byte in b"rangefld".iter().cycle() {
            if slow.write_all(&[*byte]).is_err() {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "it is not cut off");
            std::thread::sleep(Duration::from_millis(900));
        }
    });
    (expected.connections, expected.late) = (expected.connections + 2, 2);

    // Port scanners.
    for greeting in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"\x16\x03\x01\x02\x00\x01\x00\x01", &[0; 64]]
    {
        assert_eq!(cluster.say(greeting), [], "a foreigner is told nothing");
    }
    assert_eq!(cluster.say(b""), []);
    drop(cluster.connect());
    (expected.connections, expected.foreign, expected.gone) = (expected.connections + 5, 3, 2);
    push_on();

    // The wrong secret, and none.
    let differ = cluster.knock(Some(Secret::random().unwrap()), [1; 32], &mut Vec::new());
    assert_eq!(differ.err(), Some(Fault::Unauthenticated(Mismatch::Differ)));
    let missing = cluster.knock(None, [1; 32], &mut Vec::new());
    assert_eq!(missing.err(), Some(Fault::Unauthenticated(Mismatch::MissingHere)));
    (expected.connections, expected.unauthenticated) = (expected.connections + 2, 2);

    // A handshake that was recorded, sent again byte by byte.
    let mut recorded = Vec::new();
    let honest = cluster.knock(secret.clone(), [2; 32], &mut recorded);
    drop(honest.unwrap());
    let mut replay = cluster.connect();
    replay.set_nodelay(true).unwrap();
    for byte in &recorded {
        replay.write_all(&[*byte]).unwrap();
    }
    let answers = closed(&mut replay);
    assert_eq!(
        (answers.len(), answers[10], answers[56 + 10]),
        (56 + 24, 4, 5),
        "challenged, and turned away"
    );
    expected.accepted += 1;
    (expected.connections, expected.unauthenticated) = (expected.connections + 2, 3);
    push_on();

    // Random and mutated handshakes.
    let mut chance = Chance(3);
    let before = cluster.server.visitors();
    for round in 0..ROUNDS {
        let mut bytes = if round % 4 == 0 { chance.bytes(200) } else { recorded.clone() };
        chance.mutate(&mut bytes);
        let answers = cluster.say(&bytes);
        assert!(
            answers.len() <= 56 + 24 && answers.get(56 + 10).is_none_or(|&code| code == 5),
            "{answers:?}"
        );
    }
    let turned_away = |stats: Stats| stats.foreign + stats.gone + stats.other_version + stats.unauthenticated;
    until("the end of the handshakes", || {
        turned_away(cluster.server.visitors()) - turned_away(before) == ROUNDS
    });
    let after = cluster.server.visitors();
    assert_eq!(after.accepted, expected.accepted, "nobody came in");
    let ways = [
        after.foreign - before.foreign,
        after.gone - before.gone,
        after.other_version - before.other_version,
        after.unauthenticated - before.unauthenticated,
    ];
    assert!(ways.iter().all(|&way| way > 0), "each way out is taken: {ways:?}");
    expected = Stats { connections: expected.connections + ROUNDS, late: expected.late, ..after };
    push_on();

    // Random and mutated frames, from those who know the secret.
    let before = cluster.losses.lock().unwrap().len();
    for round in 0..ROUNDS {
        let (mut stream, number) = cluster.knock(secret.clone(), [3; 32], &mut Vec::new()).unwrap();
        let mut bytes = if round % 4 == 0 { chance.bytes(200) } else { frame(number) };
        bytes.truncate(wire::HEADER_BYTES);
        bytes[chance.below(wire::HEADER_BYTES)] ^= 1 << chance.below(8);
        bytes.extend(chance.bytes(100));
        // It may be cut off in the middle.
        let _ = stream.write_all(&bytes);
        closed(&mut stream);
    }
    let lost = || cluster.losses.lock().unwrap()[before..].to_vec();
    let counted = |reason| lost().iter().filter(|&&lost| lost == reason).count() as u64;
    until("the last loss", || counted(LostReason::Violation(Violation::Head)) == ROUNDS);
    (expected.connections, expected.accepted) = (expected.connections + ROUNDS, expected.accepted + ROUNDS);
    push_on();
    dripping.join().unwrap();
    until("the end of the silent", || cluster.server.visitors().late == 2);
    drop(silent);
    expected
}
