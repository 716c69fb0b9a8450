//! Starts processes and waits for them, with patience and no longer; ends what a failed test leaves behind, by pid.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const OPTIMUM: f64 = 13_545.570_474_2;
/// Longer than any of these takes on a loaded machine; a test that reaches it has hung.
const PATIENCE: Duration = Duration::from_secs(100);

pub(crate) fn rangefold(arguments: &str) -> Command {
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
        "RANGEFOLD_SECRET",
        "RANGEFOLD_PEER_TIMEOUT",
    ] {
        command.env_remove(name);
    }
    command
}

/// Waits for the end, with its output; kills it and panics when it does not come.
pub(crate) fn finish(mut child: Child) -> Output {
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

pub(crate) fn run(arguments: &str) -> Output {
    finish(rangefold(arguments).spawn().unwrap())
}

pub(crate) fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn result_of(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("no result in:\n{text}\n{}", error_of(output)))
}

/// A file or folder of this test alone, gone with it.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("rangefold-{}-{name}", std::process::id())))
    }

    pub(crate) fn path(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0).or_else(|_| std::fs::remove_dir_all(&self.0));
    }
}

/// A process that is started by hand, and killed if nobody ends it.
pub(crate) struct Started(Option<Child>);

impl Started {
    pub(crate) fn new(arguments: &str) -> Self {
        Self(Some(rangefold(arguments).spawn().unwrap()))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.0.as_ref().unwrap()), signal).unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    /// The first line of its standard output.
    pub(crate) fn first_line(&mut self) -> String {
        line(self.0.as_mut().unwrap().stdout.as_mut().unwrap())
    }

    /// The first line of its standard error.
    pub(crate) fn first_note(&mut self) -> String {
        line(self.0.as_mut().unwrap().stderr.as_mut().unwrap())
    }

    /// Reads standard output up to a line with these words, which must come.
    pub(crate) fn skip_until(&mut self, words: &str) {
        let out = self.0.as_mut().unwrap().stdout.as_mut().unwrap();
        loop {
            let read = line(out);
            assert!(!read.is_empty(), "no line with {words:?}");
            if read.contains(words) {
                return;
            }
        }
    }

    pub(crate) fn finish(mut self) -> Output {
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
pub(crate) fn line(from: &mut impl Read) -> String {
    let mut line = String::new();
    // A byte at a time, so that the rest is still there for `finish`.
    BufReader::with_capacity(1, from).read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// A scheduler that waits for one server, and its address.
pub(crate) fn start_scheduler() -> (Started, String) {
    let mut scheduler = Started::new("scheduler --bind 127.0.0.1:0 --servers 1");
    let address = scheduler.first_line().strip_prefix("listening on ").unwrap().to_owned();
    (scheduler, address)
}

/// A server that has joined there.
pub(crate) fn start_server(address: &str) -> Started {
    let mut server = Started::new(&format!("server --scheduler {address}"));
    let note = server.first_note();
    assert!(note.contains("serves on"), "{note}");
    server
}

/// Scheduler, server and worker of a job that would go on for long, in the middle of its training.
pub(crate) fn start_training(options: &str) -> [Started; 3] {
    let (scheduler, address) = start_scheduler();
    let server = start_server(&address);
    let job = format!("train lr --scheduler {address} --workers 1 --gap 1e-12 {options}");
    let mut worker = Started::new(&job);
    assert!(worker.first_note().contains("worker 0 over"));
    // Long enough to be in the middle of the training, also on a loaded machine.
    std::thread::sleep(Duration::from_millis(1500));
    [scheduler, server, worker]
}

/// `launch` and the processes of its two workers, when they are there.
pub(crate) fn launch_two(arguments: &str) -> (Child, Vec<Pid>) {
    let child = rangefold(&format!("launch {arguments}")).spawn().unwrap();
    let workers =
        wait_for("two workers", || Some(children(&child, "train")).filter(|found| found.len() == 2));
    (child, workers)
}

pub(crate) fn assert_optimal(result: &Value) {
    let number = |name: &str| result[name].as_f64().unwrap();
    let (objective, gap) = (number("objective"), number("gap"));
    assert!(gap <= 0.01 && objective <= 1.001 * OPTIMUM, "{result}");
    assert!(objective >= OPTIMUM * (1.0 - gap), "{result}");
    assert!((number("test_auc") - 0.88652).abs() <= 0.002, "{result}");
}

/// The processes below `parent` whose command line has this word, by pid.
pub(crate) fn children(parent: &Child, word: &str) -> Vec<Pid> {
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

/// A variable in the environment of a process.
pub(crate) fn variable(pid: Pid, name: &str) -> String {
    let environment = std::fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap();
    let mut entries = environment.split(|&byte| byte == 0).map(String::from_utf8_lossy);
    let entry = entries.find_map(|entry| entry.strip_prefix(&format!("{name}=")).map(str::to_owned));
    entry.unwrap_or_else(|| panic!("no {name} in the environment of {pid:?}"))
}

pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether io_uring can be had here. In CI it must; elsewhere a container may deny it, and the test says so and ends.
pub(crate) fn uring_is_here() -> bool {
    let info = run("info --json");
    let chosen = result_of(&info)["transport"]["between_processes"].clone();
    let here = chosen.as_str().is_some_and(|chosen| chosen.contains("uring"));
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
