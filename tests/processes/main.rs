//! Real processes on loopback: `launch` with a scheduler, servers and workers; killed, stopped, interrupted.
//! Each test ends the processes it started, by pid.

use std::io::Read;
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

/// A file of this test alone, gone with it.
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
        let _ = std::fs::remove_file(&self.0);
    }
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
    let scheduler = variable(workers[0], "RANGEFOLD_SCHEDULER");
    kill_process(workers[0], Signal::KILL).unwrap();
    // The scheduler takes a newcomer when it has seen the other's connection break.
    let newcomer = wait_for("a place", || {
        let newcomer = format!("{job} {} --scheduler {scheduler} --workers 2 --rank 0", replaced.path());
        let output = run(&newcomer);
        assert!(
            output.status.success() || error_of(&output).contains("one too many"),
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
fn a_stopped_server_is_named_and_one_that_continues_is_waited_for() {
    for (deadline, success) in [(2, false), (60, true)] {
        let job = format!("launch -- train lr --gap 0.0005 --deadline {deadline} --json");
        let child = rangefold(&job).spawn().unwrap();
        wait_for("two workers", || Some(children(&child, "train")).filter(|found| found.len() == 2));
        std::thread::sleep(Duration::from_millis(400));
        let server = *children(&child, "server").last().unwrap();
        kill_process(server, Signal::STOP).unwrap();
        std::thread::sleep(Duration::from_secs(if success { 1 } else { 4 }));
        // Without this, a stopped process could not be asked to end.
        kill_process(server, Signal::CONT).unwrap();
        let output = finish(child);
        let error = error_of(&output);
        assert_eq!(output.status.success(), success, "{error}");
        if !success {
            assert!(error.contains("waiting for server") && error.contains("longer than 2s"), "{error}");
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
    assert!(error.contains(&format!("the weights so far are in {}", model.path())), "{error}");
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
    assert!(error_of(&nobody).contains("nothing listens on 127.0.0.1:9"), "{}", error_of(&nobody));

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
    let mut scheduler =
        rangefold("scheduler --bind 127.0.0.1:0 --servers 1").stdin(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    let mut out = std::io::BufReader::new(scheduler.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut out, &mut first).unwrap();
    let address = first.trim().strip_prefix("listening on ").unwrap().to_owned();
    let join = |rank: u32| {
        rangefold(&format!(
            "train lr --scheduler {address} --workers 1 --rank {rank} --deadline 20 --gap 0.0005"
        ))
        .spawn()
        .unwrap()
    };
    // No server: the first worker waits for its table; the second is one too many.
    let waiting = join(0);
    std::thread::sleep(Duration::from_millis(700));
    let refused = finish(join(1));
    assert_eq!(refused.status.code(), Some(1));
    assert!(error_of(&refused).contains("one too many"), "{}", error_of(&refused));
    let waited = finish(waiting);
    assert!(error_of(&waited).contains("0 of 1 servers are there"), "{}", error_of(&waited));
    scheduler.kill().unwrap();
    scheduler.wait().unwrap();
}
