//! Real processes on loopback: `launch` with a scheduler, servers and workers; killed, stopped, interrupted.
//! What users may do wrong, and what they are told. Each test ends the processes it started, by pid.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

const OPTIMUM: f64 = 13_545.570_474_2;
/// Longer than any of these takes on a loaded machine; a test that reaches it has hung.
const PATIENCE: Duration = Duration::from_secs(100);

fn rangefold(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rangefold"));
    command.args(arguments.split_whitespace());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A job of its own, whatever this test runs in.
    for name in [
        "RANGEFOLD_CORES",
        "RANGEFOLD_BUSY_THREADS",
        "RANGEFOLD_SCHEDULER",
        "RANGEFOLD_RANK",
        "RANGEFOLD_WORLD",
        "RANGEFOLD_TRANSPORT",
    ] {
        command.env_remove(name);
    }
    command
}

/// Waits for the end, with its output; kills it and panics when it does not come.
fn finish(mut child: Child) -> Output {
    let (mut out, mut error) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read_error = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        error.read_to_end(&mut bytes).map(|_| bytes)
    });
    let read_out = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        out.read_to_end(&mut bytes).map(|_| bytes)
    });
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
            let error = read_error.join().unwrap().unwrap();
            panic!("hung; standard error was:\n{}", String::from_utf8_lossy(&error));
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    Output { status, stdout: read_out.join().unwrap().unwrap(), stderr: read_error.join().unwrap().unwrap() }
}

fn run(arguments: &str) -> Output {
    finish(rangefold(arguments).spawn().unwrap())
}

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn result_of(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("no result in:\n{text}\n{}", error_of(output)))
}

/// A file or folder of this test alone, gone with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("rangefold-{}-{name}", std::process::id())))
    }

    fn path(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0).or_else(|_| std::fs::remove_dir_all(&self.0));
    }
}

/// A process that is started by hand, and killed if nobody ends it.
struct Started(Option<Child>);

impl Started {
    fn new(arguments: &str) -> Self {
        Self(Some(rangefold(arguments).spawn().unwrap()))
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.0.as_ref().unwrap()), signal).unwrap();
    }

    /// The first line of its standard output.
    fn first_line(&mut self) -> String {
        line(self.0.as_mut().unwrap().stdout.as_mut().unwrap())
    }

    /// The first line of its standard error.
    fn first_note(&mut self) -> String {
        line(self.0.as_mut().unwrap().stderr.as_mut().unwrap())
    }

    fn finish(mut self) -> Output {
        finish(self.0.take().unwrap())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// A line, and nothing of what follows it.
fn line(from: &mut impl Read) -> String {
    let mut line = String::new();
    // A byte at a time, so that the rest is still there for `finish`.
    BufReader::with_capacity(1, from).read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// A scheduler that waits for one server, and its address.
fn start_scheduler() -> (Started, String) {
    let mut scheduler = Started::new("scheduler --bind 127.0.0.1:0 --servers 1");
    let address = scheduler.first_line().strip_prefix("listening on ").unwrap().to_owned();
    (scheduler, address)
}

/// A server that has joined there.
fn start_server(address: &str) -> Started {
    let mut server = Started::new(&format!("server --scheduler {address}"));
    let note = server.first_note();
    assert!(note.contains("serves on"), "{note}");
    server
}

fn assert_optimal(result: &Value) {
    let number = |name: &str| result[name].as_f64().unwrap();
    let (objective, gap) = (number("objective"), number("gap"));
    assert!(gap <= 0.01 && objective <= 1.001 * OPTIMUM, "{result}");
    assert!(objective >= OPTIMUM * (1.0 - gap), "{result}");
    assert!((number("test_auc") - 0.88652).abs() <= 0.002, "{result}");
}

/// The processes below `parent` whose command line has this word, by pid.
fn children(parent: &Child, word: &str) -> Vec<Pid> {
    let parent = parent.id().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        // The parent's pid is the second field behind the name, which ends with the last parenthesis.
        let of_parent =
            stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)) == Some(&parent);
        if of_parent && line.split(|&byte| byte == 0).any(|argument| argument == word.as_bytes()) {
            found.extend(Pid::from_raw(pid));
        }
    }
    found.sort_by_key(|pid| pid.as_raw_nonzero());
    found
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn processes_reach_the_optimum_and_are_gone() {
    let child = rangefold("launch --servers 2 --workers 2 -- train lr --json").spawn().unwrap();
    let services =
        wait_for("two servers", || Some(children(&child, "server")).filter(|found| found.len() == 2));
    let output = finish(child);
    assert!(output.status.success(), "{}", error_of(&output));
    let result = result_of(&output);
    assert_optimal(&result);
    let rows: u64 =
        result["workers"].as_array().unwrap().iter().map(|worker| worker["rows"].as_u64().unwrap()).sum();
    assert_eq!(rows, 39_099);
    let steps = |server: &Value| server["proximal_steps"].as_u64().unwrap();
    let servers = result["servers"].as_array().unwrap();
    assert!(
        servers.len() == 2 && servers.iter().all(|server| steps(server) > 0),
        "both servers are used: {result}"
    );
    for pid in services {
        assert!(test_kill_process(pid).is_err(), "a server is left behind");
    }
}

/// Whether io_uring can be had here. In CI it must; elsewhere a container may deny it, and the test says so and ends.
fn uring_is_here() -> bool {
    let info = run("info --json");
    let here = result_of(&info)["transport"]["between_processes"] == "uring";
    assert!(
        here || std::env::var_os("CI").is_none(),
        "no io_uring: {}",
        String::from_utf8_lossy(&info.stdout)
    );
    if !here {
        eprintln!("skipped: no io_uring here");
    }
    here
}

#[test]
fn all_combinations_reach_the_optimum_over_uring_and_two_over_socket() {
    let mut combinations = vec![("socket", 0, 2, 3), ("socket", 16, 1, 1)];
    if uring_is_here() {
        for delay in [0, 4, 16] {
            combinations.extend([(1, 1), (1, 3), (2, 1), (2, 3)].map(|(w, s)| ("uring", delay, w, s)));
        }
    }
    for (transport, delay, workers, servers) in combinations {
        let job = format!("train lr --delay {delay} --json");
        let output =
            run(&format!("launch --transport {transport} --servers {servers} --workers {workers} -- {job}"));
        let about = format!("{transport}, delay {delay}, {workers} workers, {servers} servers");
        assert!(output.status.success(), "{about}: {}", error_of(&output));
        let result = result_of(&output);
        assert_optimal(&result);
        assert!(
            result["passes"].as_f64().unwrap() <= 1000.0 && result["transport"] == transport,
            "{about}: {result}"
        );
    }
}

#[test]
fn a_transport_that_is_asked_for_is_never_replaced() {
    let output = run("launch --transport carrier-pigeon -- train lr");
    assert_eq!(output.status.code(), Some(2));
    assert!(error_of(&output).contains("there are auto, uring and socket"), "{}", error_of(&output));
}

//= OSDI'14 §4.6
//= type=test
#[test]
fn a_worker_killed_in_the_middle_leaves_no_trace_at_delay_0() {
    let (undisturbed, disturbed) = (Scratch::new("undisturbed"), Scratch::new("disturbed"));
    // A small gap, so that there is a middle to be killed in.
    let job = "launch --servers 2 --workers 2 -- train lr --gap 0.0005 --json --model";
    assert!(run(&format!("{job} {}", undisturbed.path())).status.success());
    for delay in [300, 900] {
        let child = rangefold(&format!("{job} {}", disturbed.path())).spawn().unwrap();
        let workers =
            wait_for("two workers", || Some(children(&child, "train")).filter(|found| found.len() == 2));
        std::thread::sleep(Duration::from_millis(delay));
        kill_process(workers[1], Signal::KILL).unwrap();
        let output = finish(child);
        assert_eq!(output.status.code(), Some(137), "the worst of the copies: {}", error_of(&output));
        assert_optimal(&result_of(&output));
        let weights = |scratch: &Scratch| std::fs::read(&scratch.0).unwrap();
        assert!(weights(&undisturbed) == weights(&disturbed), "weights differ; killed after {delay} ms");
    }
}

/// A variable in the environment of a process.
fn variable(pid: Pid, name: &str) -> String {
    let environment = std::fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap();
    let mut entries = environment.split(|&byte| byte == 0).map(String::from_utf8_lossy);
    let entry = entries.find_map(|entry| entry.strip_prefix(&format!("{name}=")).map(str::to_owned));
    entry.unwrap_or_else(|| panic!("no {name} in the environment of {pid:?}"))
}

//= OSDI'14 §4.6
//= type=test
#[test]
fn a_killed_worker_is_replaced_by_one_that_knows_nothing_without_a_trace_at_delay_0() {
    let (undisturbed, replaced) = (Scratch::new("whole"), Scratch::new("replaced"));
    let job = "train lr --gap 0.0005 --json --model";
    assert!(run(&format!("launch --servers 2 --workers 2 -- {job} {}", undisturbed.path())).status.success());
    let child =
        rangefold(&format!("launch --servers 2 --workers 2 -- {job} {}", replaced.path())).spawn().unwrap();
    let workers =
        wait_for("two workers", || Some(children(&child, "train")).filter(|found| found.len() == 2));
    std::thread::sleep(Duration::from_millis(400));
    let first = *workers.iter().find(|&&pid| variable(pid, "RANGEFOLD_RANK") == "0").unwrap();
    let scheduler = variable(first, "RANGEFOLD_SCHEDULER");
    kill_process(first, Signal::KILL).unwrap();
    // The scheduler takes a newcomer when it has seen the other's connection break.
    let newcomer = wait_for("a place", || {
        let newcomer = format!("{job} {} --scheduler {scheduler} --workers 2 --rank 0", replaced.path());
        let output = run(&newcomer);
        assert!(
            output.status.success()
                || ["one too many", "is taken"].iter().any(|why| error_of(&output).contains(why)),
            "{}",
            error_of(&output)
        );
        output.status.success().then_some(output)
    });
    assert_optimal(&result_of(&newcomer));
    assert_eq!(finish(child).status.code(), Some(137));
    assert!(std::fs::read(&undisturbed.0).unwrap() == std::fs::read(&replaced.0).unwrap(), "weights differ");
}

#[test]
fn a_result_is_printed_whoever_is_lost() {
    let child = rangefold("launch -- train lr --gap 0.0005 --json").spawn().unwrap();
    let workers =
        wait_for("two workers", || Some(children(&child, "train")).filter(|found| found.len() == 2));
    let first = *workers.iter().find(|&&pid| variable(pid, "RANGEFOLD_RANK") == "0").unwrap();
    std::thread::sleep(Duration::from_millis(400));
    kill_process(first, Signal::KILL).unwrap();
    let output = finish(child);
    assert!(error_of(&output).contains("worker 1 prints the result"), "{}", error_of(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"objective\""));
}

#[test]
fn a_job_that_has_begun_does_not_need_its_scheduler() {
    let child = rangefold("launch -- train lr --gap 0.0005 --json").spawn().unwrap();
    wait_for("two workers", || Some(children(&child, "train")).filter(|found| found.len() == 2));
    std::thread::sleep(Duration::from_millis(400));
    kill_process(children(&child, "scheduler")[0], Signal::KILL).unwrap();
    let output = finish(child);
    let error = error_of(&output);
    assert!(output.status.success() && error.contains("the job goes on without it"), "{error}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"objective\""), "{error}");
}

#[test]
fn an_interrupt_before_training_ends_at_once() {
    let (_scheduler, address) = start_scheduler();
    // The other worker never comes.
    let alone = rangefold(&format!("train lr --scheduler {address} --workers 2 --rank 0")).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    kill_process(Pid::from_child(&alone), Signal::INT).unwrap();
    let output = finish(alone);
    assert_eq!(output.status.code(), Some(130), "{}", error_of(&output));
    assert!(error_of(&output).contains("before training began"), "{}", error_of(&output));
}

#[test]
fn what_contradicts_itself_is_refused() {
    let other = run("launch --workers 2 -- train lr --workers 3");
    assert_eq!(other.status.code(), Some(2));
    assert!(error_of(&other).contains("RANGEFOLD_WORLD says that 2 were started"), "{}", error_of(&other));
    let data = Scratch::new("precious.svm");
    std::fs::write(&data.0, "+1 1:1\n-1 2:1\n").unwrap();
    let same = run(&format!("train lr --data {0} --model {0}", data.path()));
    assert_eq!(same.status.code(), Some(2), "{}", error_of(&same));
    assert_eq!(std::fs::read_to_string(&data.0).unwrap(), "+1 1:1\n-1 2:1\n");
}

#[test]
fn a_worker_that_stays_stopped_is_replaced_and_does_not_outlive_the_job() {
    let child = rangefold("launch -- train lr --gap 0.0005 --json").spawn().unwrap();
    let workers =
        wait_for("two workers", || Some(children(&child, "train")).filter(|found| found.len() == 2));
    std::thread::sleep(Duration::from_millis(400));
    let stopped = *workers.iter().find(|&&pid| variable(pid, "RANGEFOLD_RANK") == "1").unwrap();
    kill_process(stopped, Signal::STOP).unwrap();
    let output = finish(child);
    assert_eq!(output.status.code(), Some(137), "{}", error_of(&output));
    assert_optimal(&result_of(&output));
    assert!(error_of(&output).contains("worker 1 is stopped, and all others have ended"));
}

#[test]
fn a_stopped_server_is_named_and_one_that_continues_is_waited_for() {
    for (deadline, success) in [(8, false), (60, true)] {
        let job = format!("launch -- train lr --gap 0.0005 --deadline {deadline} --json");
        let child = rangefold(&job).spawn().unwrap();
        wait_for("two workers", || Some(children(&child, "train")).filter(|found| found.len() == 2));
        std::thread::sleep(Duration::from_millis(400));
        let server = *children(&child, "server").last().unwrap();
        kill_process(server, Signal::STOP).unwrap();
        std::thread::sleep(Duration::from_secs(if success { 1 } else { 10 }));
        // Without this, a stopped process could not be asked to end.
        kill_process(server, Signal::CONT).unwrap();
        let output = finish(child);
        let error = error_of(&output);
        assert_eq!(output.status.success(), success, "{error}");
        if !success {
            assert!(error.contains("waiting for server") && error.contains("longer than 8s"), "{error}");
            assert!(error.contains("and gives up after 8 s"), "named before the deadline: {error}");
        }
    }
}

#[test]
fn an_interrupt_ends_the_job_and_says_what_was_saved() {
    let model = Scratch::new("interrupted");
    let job = format!("launch -- train lr --gap 0.00001 --json --model {}", model.path());
    let child = rangefold(&job).spawn().unwrap();
    wait_for("two workers", || Some(children(&child, "train")).filter(|found| found.len() == 2));
    std::thread::sleep(Duration::from_millis(500));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = finish(child);
    let error = error_of(&output);
    assert_eq!(output.status.code(), Some(130), "{error}");
    let saved = format!("the weights so far are in {}", model.path());
    assert_eq!(error.matches(&saved).count(), 1, "only the worker that wrote them says so: {error}");
    assert_eq!(std::fs::read_to_string(&model.0).unwrap().lines().count(), 123);
}

#[test]
fn when_launch_is_killed_everything_ends() {
    let mut child = rangefold("launch -- train lr --gap 0.00001 --deadline 5").spawn().unwrap();
    wait_for("two workers", || Some(children(&child, "train")).filter(|found| found.len() == 2));
    let all: Vec<Pid> =
        ["scheduler", "server", "train"].iter().flat_map(|word| children(&child, word)).collect();
    assert_eq!(all.len(), 5);
    child.kill().unwrap();
    child.wait().unwrap();
    for pid in all {
        // An orphan is reaped by init, or stays a zombie where there is none.
        wait_for("the end of a process", || {
            let stat =
                std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
            (stat.is_empty() || stat.contains(") Z ")).then_some(())
        });
    }
}

#[test]
fn a_program_of_ones_own_is_a_worker() {
    let program = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples/sums");
    assert!(
        program.exists(),
        "`cargo test` builds it; before `--test`, `cargo build --examples` does: {}",
        program.display()
    );
    let output = run(&format!("launch --servers 2 --workers 3 -- {}", program.display()));
    assert!(output.status.success(), "{}", error_of(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("[3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0]"), "{text}");
}

#[test]
fn many_starts_all_end() {
    for start in 0..10 {
        let output = run("launch --servers 2 --workers 2 -- train lr --passes 1 --json");
        assert!(output.status.success(), "start {start}: {}", error_of(&output));
        assert!(result_of(&output)["objective"].is_number());
    }
}

#[test]
fn what_is_wrong_is_said_in_time_with_cause_and_remedy() {
    let nobody = run("train lr --scheduler 127.0.0.1:9 --deadline 1");
    assert_eq!(nobody.status.code(), Some(1));
    let said_once = error_of(&nobody).matches("nothing listens on 127.0.0.1:9").count() == 1;
    assert!(said_once, "a cause is said once: {}", error_of(&nobody));

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let busy = run(&format!("scheduler --bind {address}"));
    assert!(error_of(&busy).contains("another process uses this port"), "{}", error_of(&busy));

    let foreign = std::thread::spawn(move || {
        // Answers as a web server would.
        let (mut stream, _) = taken.accept().unwrap();
        std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
    });
    let web = run(&format!("train lr --scheduler {address} --deadline 2"));
    assert!(error_of(&web).contains("is not Rangefold"), "{}", error_of(&web));
    foreign.join().unwrap();

    let everywhere = run("scheduler --bind 0.0.0.0:0");
    assert!(error_of(&everywhere).contains("bind a loopback address"), "{}", error_of(&everywhere));

    let missing = run("train lr --data /nowhere/at/all");
    assert!(error_of(&missing).contains("/nowhere/at/all"), "{}", error_of(&missing));
}

#[test]
fn a_worker_too_many_is_refused() {
    let (_scheduler, address) = start_scheduler();
    let join = || {
        rangefold(&format!("train lr --scheduler {address} --workers 1 --deadline 20 --gap 0.0005"))
            .spawn()
            .unwrap()
    };
    // No server: the first worker waits for its table; the second claims its place.
    let waiting = join();
    std::thread::sleep(Duration::from_millis(700));
    let refused = finish(join());
    assert_eq!(refused.status.code(), Some(1));
    assert!(error_of(&refused).contains("rank 0 is taken by a worker"), "{}", error_of(&refused));
    let waited = finish(waiting);
    assert!(error_of(&waited).contains("0 of 1 servers are there"), "{}", error_of(&waited));
}

#[test]
fn wrong_usage_ends_with_2_and_says_what_may_be_given() {
    let joined = "train lr --scheduler 127.0.0.1:9 --deadline 1";
    let cases = [
        ("launch --workers 1025 -- /nowhere/at/all", "1025 is not in 1..=1024"),
        ("launch --servers 0 -- /nowhere/at/all", "0 is not in 1..=1024"),
        ("launch --shards 0 -- /nowhere/at/all", "0 is not in 1..=1024"),
        ("launch --transport memory -- /nowhere/at/all", "memory is for an embedded cluster"),
        ("launch -- train lr --lambda -1", "expected a positive finite number"),
        ("train lr --lambda inf", "expected a positive finite number"),
        ("train lr --gap 1", "expected a number above 0 and below 1"),
        ("train lr --passes -0.5", "expected a finite number, at least 1"),
        ("train lr --delay 64", "64 is not in 0..=63"),
        ("train lr --delay -1", "-1 is not in 0..=63"),
        ("train lr --parts 4097", "4097 is not in 1..=4096"),
        ("train lr --seed -1", "expected a whole number from 0"),
        ("train lr --deadline -1", "-1 is not in 1..=31536000"),
        ("train lr --deadline 31536001", "31536001 is not in 1..=31536000"),
        ("train lr --busy-threads 0", "0 is not in 1.."),
        ("train lr --parts 2 --workers 3", "--parts 2 is less than --workers 3"),
        ("train lr --transport socket", "`rangefold launch --transport socket -- train lr`"),
        ("train lr --rank 0", "without --scheduler the cluster is embedded"),
        ("train lr --scheduler nonsense", "expected host:port"),
        ("train lr --scheduler ::1:7700", "expected host:port"),
        ("scheduler --bind 127.0.0.1", "expected host:port"),
        ("scheduler --bind 0.0.0.0:0", "bind a loopback address"),
        ("scheduler --silence 0", "0 is not in 1..=31536000"),
        ("server --scheduler 127.0.0.1:0", "a port from 1"),
        ("server --scheduler 127.0.0.1:9 --cores x", "--cores is `x`"),
        (&format!("{joined} --transport memory"), "memory is for embedded clusters"),
        (&format!("{joined} --rank 2"), "numbered from 0 to 1"),
        (&format!("{joined} --servers 2"), "--servers is for embedded clusters"),
    ];
    for (arguments, expected) in cases {
        let output = run(arguments);
        let error = error_of(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments}: {error}");
        assert!(error.contains(expected), "{arguments}: {error}");
    }
}

#[test]
fn variables_count_as_the_options_they_stand_for() {
    let with = |arguments: &str, name: &str, value: &str| {
        finish(rangefold(arguments).env(name, value).spawn().unwrap())
    };
    let alone = with("train lr --passes 1 --json", "RANGEFOLD_SCHEDULER", "");
    assert_eq!(result_of(&alone)["transport"], "memory");
    let cores = with("server --scheduler 127.0.0.1:9", "RANGEFOLD_CORES", "99999");
    assert_eq!(cores.status.code(), Some(2));
    assert!(error_of(&cores).contains("RANGEFOLD_CORES is `99999`"), "{}", error_of(&cores));
    let socket = with("launch -- train lr --passes 1 --json", "RANGEFOLD_TRANSPORT", "socket");
    assert_eq!(result_of(&socket)["transport"], "socket");
}

#[test]
fn a_result_that_nobody_takes_is_an_error_and_no_panic() {
    for arguments in ["train lr --passes 1", "info", "scheduler --bind 127.0.0.1:0"] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = rangefold(arguments).stdout(full).output().unwrap();
        let error = error_of(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments}: {error}");
        assert!(error.contains("to standard output: No space left"), "{arguments}: {error}");
    }
    // A pipe that nobody reads, for what is said on the way.
    let mut child = rangefold("train lr --data /nowhere/at/all").spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn a_model_is_written_to_whatever_its_path_leads_to() {
    let scratch = Scratch::new("models");
    let folder = &scratch.0;
    std::fs::create_dir(folder).unwrap();
    let at = |name: &str| folder.join(name).display().to_string();
    let train = |path: &str| run(&format!("train lr --passes 1 --model {path}"));
    for (path, expected) in
        [(at(""), "it is a folder"), (at("none/model"), "none cannot be used: No such file")]
    {
        let output = train(&path);
        assert_eq!(output.status.code(), Some(1), "{path}");
        assert!(error_of(&output).contains(expected), "{}", error_of(&output));
        assert!(output.stdout.is_empty(), "said before anything was trained");
    }

    std::os::unix::fs::symlink("behind", folder.join("link")).unwrap();
    for _ in 0..2 {
        assert!(train(&at("link")).status.success());
        assert_eq!(std::fs::read_link(folder.join("link")).unwrap().to_str(), Some("behind"));
        assert_eq!(std::fs::read_to_string(at("behind")).unwrap().lines().count(), 123);
    }

    assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
    let pipe = at("pipe");
    let reader = std::thread::spawn(move || std::fs::read_to_string(pipe).unwrap());
    assert!(train(&at("pipe")).status.success());
    assert_eq!(reader.join().unwrap().lines().count(), 123);

    let output = train("/dev/stdout");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("1 ") && text.contains("\nobjective "), "{text}");

    let full = train("/dev/full");
    assert_eq!(full.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&full.stdout).starts_with("objective"), "the result is printed");
    assert!(error_of(&full).contains("cannot write the model to /dev/full: No space left"));

    let mut left: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["behind", "link", "pipe"]);
}

#[test]
fn small_gaps_and_unused_transports_can_be_read() {
    let output = run("train lr --gap 0.0005");
    let text = String::from_utf8_lossy(&output.stdout);
    let gap = text.lines().find_map(|line| line.strip_prefix("certified gap")).unwrap();
    assert!(gap.contains("e-") && gap.trim().parse::<f64>().unwrap() <= 0.0005, "{text}");
    let info = run("info");
    let text = String::from_utf8_lossy(&info.stdout);
    assert!(text.lines().any(|line| line.trim() == "verbs: not part of this version"), "{text}");
    let help = run("train lr --help");
    let text = String::from_utf8_lossy(&help.stdout);
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("started by hand need --rank 0, 1,"), "{text}");
}

#[test]
fn a_scheduler_lost_at_the_end_does_not_cost_the_result() {
    let (scheduler, address) = start_scheduler();
    let _server = start_server(&address);
    let mut worker = Started::new(&format!("train lr --scheduler {address} --workers 1 --gap 1e-12 --json"));
    assert!(worker.first_note().contains("worker 0 over"));
    // Long enough to be in the middle of the training, also on a loaded machine.
    std::thread::sleep(Duration::from_millis(1500));
    scheduler.signal(Signal::KILL);
    scheduler.finish();
    worker.signal(Signal::INT);
    let output = worker.finish();
    let error = error_of(&output);
    assert_eq!(output.status.code(), Some(130), "{error}");
    assert!(error.contains("its own share only"), "{error}");
    assert!(
        error.contains("told to stop") && !error.contains("interrupted"),
        "nobody knows by whom: {error}"
    );
    let result = result_of(&output);
    assert_eq!(result["workers"].as_array().unwrap().len(), 1);
    let servers = result["servers"].as_array().unwrap();
    assert!(
        servers[0].get("proximal_steps").is_some() && servers[0].get("pushes").is_none(),
        "what is not known is left out: {result}"
    );
}

#[test]
fn an_interrupted_worker_that_fails_says_why_and_is_still_interrupted() {
    let (_scheduler, address) = start_scheduler();
    let server = start_server(&address);
    let job = format!("train lr --scheduler {address} --workers 1 --gap 1e-12 --deadline 2");
    let mut worker = Started::new(&job);
    assert!(worker.first_note().contains("worker 0 over"));
    // Long enough to be in the middle of the training, also on a loaded machine.
    std::thread::sleep(Duration::from_millis(1500));
    server.signal(Signal::KILL);
    server.finish();
    worker.signal(Signal::INT);
    let output = worker.finish();
    let error = error_of(&output);
    assert_eq!(output.status.code(), Some(130), "{error}");
    assert!(error.contains("longer than 2s"), "{error}");
}

#[test]
fn an_interrupted_launch_ends_with_130_whatever_its_workers_do() {
    let ready = Scratch::new("ready");
    let script = format!("trap 'exit 3' INT; touch {}; while :; do sleep 0.1; done", ready.path());
    let mut command = rangefold("launch --servers 1 --workers 1 --");
    let child = command.args(["sh", "-c", &script]).spawn().unwrap();
    wait_for("a worker that waits", || ready.0.exists().then_some(()));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = finish(child);
    assert_eq!(output.status.code(), Some(130), "{}", error_of(&output));
}

#[test]
fn an_interrupt_during_the_start_is_heard() {
    // Of a command that does not exist: without the interrupt, launch would fail when it comes to the workers.
    let child = rangefold("launch --servers 30 -- /nowhere/at/all").spawn().unwrap();
    let launch = Pid::from_child(&child);
    wait_for("a scheduler", || children(&child, "scheduler").pop());
    // Stopped meanwhile, so that it has not come that far when the interrupt is there.
    kill_process(launch, Signal::STOP).unwrap();
    kill_process(launch, Signal::INT).unwrap();
    kill_process(launch, Signal::CONT).unwrap();
    let output = finish(child);
    let error = error_of(&output);
    assert_eq!(output.status.code(), Some(130), "{error}");
    assert!(!error.contains("/nowhere/at/all"), "{error}");
}

#[test]
fn services_end_well_when_interrupted_and_a_server_too_many_is_named() {
    let (scheduler, address) = start_scheduler();
    let servers = [start_server(&address), start_server(&address)];
    for server in servers {
        server.signal(Signal::INT);
        assert_eq!(server.finish().status.code(), Some(0));
    }
    scheduler.signal(Signal::INT);
    let output = scheduler.finish();
    assert_eq!(output.status.code(), Some(0));
    let error = error_of(&output);
    let late: Vec<&str> =
        error.lines().filter(|line| line.contains("tables made before do not use it")).collect();
    assert!(late.len() == 1 && late[0].contains("server 1 joined"), "{error}");
}
