//! A process that stops reading in the middle of a heavy flow: what it costs the one that writes to it, and the others.
//! Contents are checked by the processes themselves (`workers/facade/examples/flow.rs`), memory and progress here, time nowhere.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Started, rangefold, uring_is_here, wait_for};

/// Bytes of an operation at most, and of all that are under way to a shard.
const OPERATION_BYTES: u64 = 256 << 10;
const WINDOW_BYTES: u64 = 64 * OPERATION_BYTES;
/// What the others must move while one is stopped, 8 windows: if any of it were kept for the one that is stopped, it would show.
const OPERATIONS_MEANWHILE: u64 = 512;
/// What a server holds for a connection that takes nothing: gathered replies up to `reply_bytes_per_link`, the frames under way,
/// and classes of memory that nothing else has asked for until then.
const SERVER_BYTES: u64 = 8 << 20;
/// A broken connection is found, and made anew, within one of the long stops.
const PEER_TIMEOUT_S: u64 = 3;

/// A process of a job, what it has said, and how far its threads are.
struct Flow {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    done: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl Flow {
    fn worker(kind: &str, rank: u32, scheduler: &str, transport: &str) -> Self {
        let program = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples/flow");
        assert!(program.exists(), "`cargo test` builds it: {}", program.display());
        let mut command = Command::new(program);
        command.args(kind.split_whitespace());
        for (name, value) in [
            ("SCHEDULER", scheduler),
            ("RANK", &rank.to_string()),
            ("WORLD", "2"),
            ("TRANSPORT", transport),
            ("PEER_TIMEOUT", &PEER_TIMEOUT_S.to_string()),
            // Nobody spins: there are more of them than processors.
            ("BUSY_THREADS", "64"),
        ] {
            command.env(format!("RANGEFOLD_{name}"), value);
        }
        for name in ["RANGEFOLD_CORES", "RANGEFOLD_SECRET"] {
            command.env_remove(name);
        }
        Self::start(command)
    }

    fn server(scheduler: &str, transport: &str) -> Self {
        let arguments = format!(
            "server --scheduler {scheduler} --transport {transport} --peer-timeout {PEER_TIMEOUT_S} --busy-threads 64"
        );
        let server = Self::start(rangefold(&arguments));
        wait_for("a server", || server.has_said("serves on").then_some(()));
        server
    }

    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (lines, done) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Mutex<BTreeMap<_, _>>>::default());
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for stream in streams {
            let (lines, done) = (Arc::clone(&lines), Arc::clone(&done));
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    // How far a thread is, or anything else.
                    match line.rsplit_once(' ').map(|(shard, count)| (shard, count.parse())) {
                        Some((shard, Ok(count))) if shard != "checked" => {
                            done.lock().unwrap().insert(shard.to_owned(), count);
                        }
                        _ => lines.lock().unwrap().push(line),
                    }
                }
            });
        }
        Self { child, lines, done }
    }

    fn has_said(&self, words: &str) -> bool {
        self.lines.lock().unwrap().iter().any(|line| line.contains(words))
    }

    /// Operations that have ended, by shard.
    fn done(&self) -> BTreeMap<String, u64> {
        self.done.lock().unwrap().clone()
    }

    fn done_in_all(&self) -> u64 {
        self.done.lock().unwrap().values().sum()
    }

    /// Waits for so many operations more.
    fn goes_on(&self, operations: u64) {
        let before = self.done_in_all();
        wait_for("progress", || (self.done_in_all() >= before + operations).then_some(()));
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Bytes that are its own; what it shares with others is bounded by what is mapped, from the start.
    fn memory_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
    }

    /// Ends it; all that it pushed or pulled was right.
    fn end(mut self) {
        drop(self.child.stdin.take());
        let status = wait_for("the end", || self.child.try_wait().unwrap());
        assert!(status.success(), "{status}");
        wait_for("its last word", || self.has_said("checked ").then_some(()));
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("it said:\n{}\nand has done {:?}", self.lines.lock().unwrap().join("\n"), self.done());
        }
    }
}

/// A job of two workers that do the same all the time, each with a table of its own.
struct Job {
    _scheduler: Started,
    servers: Vec<Flow>,
    workers: Vec<Flow>,
}

impl Job {
    fn start(kind: &str, servers: usize, transport: &str) -> Self {
        // Nobody is taken for dead.
        let mut scheduler =
            Started::new(&format!("scheduler --bind 127.0.0.1:0 --servers {servers} --silence 100"));
        let address = scheduler.first_line().strip_prefix("listening on ").unwrap().to_owned();
        let servers = (0..servers).map(|_| Flow::server(&address, transport)).collect();
        let workers: Vec<Flow> = (0..2).map(|rank| Flow::worker(kind, rank, &address, transport)).collect();
        let job = Self { _scheduler: scheduler, servers, workers };
        for worker in &job.workers {
            // Long enough that memory has been used as much as it will be.
            worker.goes_on(OPERATIONS_MEANWHILE);
        }
        job
    }

    fn end(self) {
        self.workers.into_iter().for_each(Flow::end);
    }
}

/// Operations a second, to be printed.
#[derive(Default)]
struct Rates {
    before: f64,
    during: f64,
    after: f64,
}

impl std::fmt::Display for Rates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { before, during, after } = self;
        write!(f, "{before:.0} operations/s before, {during:.0} meanwhile, {after:.0} afterwards")
    }
}

/// Operations that `count` counts in a second, over this time.
fn rate(window: Duration, count: impl Fn() -> u64) -> f64 {
    let (begun, before) = (Instant::now(), count());
    std::thread::sleep(window);
    #[expect(clippy::cast_precision_loss, reason = "to be printed")]
    let operations = (count() - before) as f64;
    operations / begun.elapsed().as_secs_f64()
}

/// Watches while somebody is stopped, for this long and until `goes_on` has counted enough. Returns the most bytes that `writer`
/// had more than before.
fn watch(stop: Duration, writers: &[&Flow], before: &[u64], goes_on: impl Fn() -> u64) -> u64 {
    let (begun, first) = (Instant::now(), goes_on());
    let mut more = 0;
    wait_for("progress beside one that is stopped", || {
        for (writer, before) in writers.iter().zip(before) {
            more = more.max(writer.memory_bytes().saturating_sub(*before));
        }
        (goes_on() >= first + OPERATIONS_MEANWHILE && begun.elapsed() >= stop).then_some(())
    });
    more
}

/// A worker stops taking what it has asked for. Its server keeps little for it, and the other worker has its values.
fn a_stopped_worker(transport: &str, kind: &str, stop: Duration) -> (Rates, u64) {
    let job = Job::start(kind, 1, transport);
    let (server, other, reader) = (&job.servers[0], &job.workers[0], &job.workers[1]);
    let mut rates = Rates { before: rate(stop, || other.done_in_all()), ..Rates::default() };
    let before = server.memory_bytes();
    reader.signal(Signal::STOP);
    let at = Instant::now();
    let first = other.done_in_all();
    let more = watch(stop, &[server], &[before], || other.done_in_all());
    #[expect(clippy::cast_precision_loss, reason = "to be printed")]
    let operations = (other.done_in_all() - first) as f64;
    rates.during = operations / at.elapsed().as_secs_f64();
    assert!(
        more <= SERVER_BYTES,
        "the server had {before} bytes and then {more} more, over {transport}; it may hold {SERVER_BYTES} for one that \
         does not read"
    );
    reader.signal(Signal::CONT);
    reader.goes_on(OPERATIONS_MEANWHILE);
    rates.after = rate(stop, || other.done_in_all());
    job.end();
    (rates, more)
}

/// One of two servers stops taking what is pushed to it. The workers keep what their window allows, and go on with the other.
fn a_stopped_server(transport: &str, kind: &str, stop: Duration) -> (Rates, u64) {
    let job = Job::start(kind, 2, transport);
    let server = &job.servers[1];
    let stopped = wait_for("the shards' names", || {
        let names: Vec<String> = job.workers[0].done().into_keys().collect();
        (names.len() == 2).then(|| names[1].clone())
    });
    let elsewhere = || -> u64 {
        let of = |worker: &Flow| {
            worker.done().iter().filter(|(name, _)| **name != stopped).map(|(_, &n)| n).sum::<u64>()
        };
        job.workers.iter().map(of).sum()
    };
    let mut rates = Rates { before: rate(stop, elsewhere), ..Rates::default() };
    let writers: Vec<&Flow> = job.workers.iter().collect();
    let before: Vec<u64> = writers.iter().map(|worker| worker.memory_bytes()).collect();
    server.signal(Signal::STOP);
    let (at, first) = (Instant::now(), elsewhere());
    let more = watch(stop, &writers, &before, elsewhere);
    #[expect(clippy::cast_precision_loss, reason = "to be printed")]
    let operations = (elsewhere() - first) as f64;
    rates.during = operations / at.elapsed().as_secs_f64();
    // The window of one shard, had nothing of it been in use before, and what keeps the books of it.
    let may = WINDOW_BYTES + (2 << 20);
    assert!(
        more <= may,
        "a worker had {before:?} bytes and then {more} more, over {transport}; it may {may}"
    );
    server.signal(Signal::CONT);
    for worker in &job.workers {
        let of = || worker.done()[&stopped];
        let before = of();
        wait_for("the server that continues", || (of() >= before + OPERATIONS_MEANWHILE / 8).then_some(()));
    }
    rates.after = rate(stop, elsewhere);
    job.end();
    (rates, more)
}

/// Too short for a connection to break, and long enough that one over TCP does and is made anew.
const STOPS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(8)];

fn stops(transport: &str) -> &'static [Duration] {
    // Shared memory knows no such end.
    if transport == "shm" { &STOPS[..1] } else { &STOPS }
}

fn a_worker_that_is_stopped_costs_nobody_anything(transport: &str, kind: &str, stops: &[Duration]) {
    for stop in stops {
        let (rates, more) = a_stopped_worker(transport, kind, *stop);
        eprintln!("{transport}, {stop:?}: the other worker {rates}; the server {more} bytes more");
    }
}

fn a_server_that_is_stopped_costs_little_memory_and_no_progress(
    transport: &str,
    kind: &str,
    stops: &[Duration],
) {
    for stop in stops {
        let (rates, more) = a_stopped_server(transport, kind, *stop);
        eprintln!("{transport}, {stop:?}: to the other server {rates}; a worker {more} bytes more");
    }
}

/// Operations at a pace that this machine keeps with ease, so that a processor that is left to the others gains them nothing.
#[test]
#[ignore = "a measurement, to be run alone: it prints how the others fare and asserts no time"]
fn figures() {
    let stop = [Duration::from_secs(4)];
    for transport in ["shm", "socket", "uring"] {
        for _ in 0..2 {
            a_worker_that_is_stopped_costs_nobody_anything(transport, "pull 4000", &stop);
            a_server_that_is_stopped_costs_little_memory_and_no_progress(transport, "push 4000", &stop);
        }
    }
}

#[test]
fn a_stopped_worker_costs_nobody_anything_over_shm() {
    a_worker_that_is_stopped_costs_nobody_anything("shm", "pull", stops("shm"));
}

#[test]
fn a_stopped_worker_costs_nobody_anything_over_sockets() {
    a_worker_that_is_stopped_costs_nobody_anything("socket", "pull", stops("socket"));
}

#[test]
fn a_stopped_worker_costs_nobody_anything_over_uring() {
    if uring_is_here() {
        a_worker_that_is_stopped_costs_nobody_anything("uring", "pull", stops("uring"));
    }
}

#[test]
fn a_stopped_server_costs_little_memory_and_no_progress_over_shm() {
    a_server_that_is_stopped_costs_little_memory_and_no_progress("shm", "push", stops("shm"));
}

#[test]
fn a_stopped_server_costs_little_memory_and_no_progress_over_sockets() {
    a_server_that_is_stopped_costs_little_memory_and_no_progress("socket", "push", stops("socket"));
}

#[test]
fn a_stopped_server_costs_little_memory_and_no_progress_over_uring() {
    if uring_is_here() {
        a_server_that_is_stopped_costs_little_memory_and_no_progress("uring", "push", stops("uring"));
    }
}
