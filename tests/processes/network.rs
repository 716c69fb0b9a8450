//! Two network namespaces with a cable between them: what both sides make of its being pulled out and put back.
//! Needs root; where namespaces are denied the test says so and ends, in CI it fails.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::harness::{Scratch, error_of, rangefold, run, uring_is_here, wait_for};

/// Namespaces of this test alone, gone with it.
struct Cable {
    near: String,
    far: String,
}

const NEAR: &str = "10.77.0.1";
const FAR: &str = "10.77.0.2";
/// The far end of the cable.
const PLUG: &str = "rangefold-far";

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split_whitespace()).output();
    let output = output.map_err(|error| format!("ip {arguments}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(format!("ip {arguments}: {text}")) }
}

impl Cable {
    /// None where namespaces cannot be had, unless this is CI.
    fn new(name: &str) -> Option<Self> {
        let unique = format!("{name}-{}", std::process::id());
        let cable = Self { near: format!("rangefold-near-{unique}"), far: format!("rangefold-far-{unique}") };
        let (near, far) = (&cable.near, &cable.far);
        let made = ip(&format!("netns add {near}")).and_then(|()| ip(&format!("netns add {far}")));
        if let Err(why) = made {
            assert!(std::env::var_os("CI").is_none(), "no network namespaces: {why}");
            eprintln!("skipped: no network namespaces here: {why}");
            return None;
        }
        for command in [
            format!("-n {near} link add rangefold-near type veth peer name {PLUG} netns {far}"),
            format!("-n {near} address add {NEAR}/24 dev rangefold-near"),
            format!("-n {far} address add {FAR}/24 dev {PLUG}"),
            format!("-n {near} link set lo up"),
            format!("-n {far} link set lo up"),
            format!("-n {near} link set rangefold-near up"),
            format!("-n {far} link set {PLUG} up"),
        ] {
            ip(&command).unwrap();
        }
        Some(cable)
    }

    fn plug(&self, state: &str) {
        ip(&format!("-n {} link set {PLUG} {state}", self.far)).unwrap();
    }

    /// Bytes that have come in at the far end.
    fn received(&self) -> u64 {
        let path = format!("/sys/class/net/{PLUG}/statistics/rx_bytes");
        let output = Command::new("ip").args(["netns", "exec", &self.far, "cat", &path]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().parse().unwrap()
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for namespace in [&self.near, &self.far] {
            let _ = ip(&format!("netns delete {namespace}"));
        }
    }
}

/// A process in a namespace, and what it says; killed if nobody waits for its end.
struct Heard {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Heard {
    fn start(namespace: &str, arguments: &str) -> Self {
        let ours = rangefold(arguments);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(ours.get_program()).args(ours.get_args());
        for (name, _) in ours.get_envs() {
            command.env_remove(name);
        }
        command.env("RANGEFOLD_SECRET", "a secret for both ends of a cable");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        for stream in [
            Box::new(child.stdout.take().unwrap()) as Box<dyn std::io::Read + Send>,
            Box::new(child.stderr.take().unwrap()),
        ] {
            let lines = Arc::clone(&lines);
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    lines.lock().unwrap().push(line);
                }
            });
        }
        Self { child, lines }
    }

    fn said(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Waits for a line with all of these words, and returns it.
    fn says(&mut self, words: &[&str]) -> String {
        let mut ended = None;
        wait_for(&format!("{words:?}"), || {
            // In this order: what it said before its end has been heard when that is seen twice.
            let ended = std::mem::replace(&mut ended, self.child.try_wait().unwrap());
            let lines = self.said();
            let found = lines.iter().find(|line| words.iter().all(|word| line.contains(word))).cloned();
            assert!(found.is_some() || ended.is_none(), "ended ({ended:?}) before {words:?}");
            found
        })
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("it said:\n{}", self.said().join("\n"));
        }
    }
}

/// The worker and its scheduler here, the server there: all its data cross the cable. The weights at the end are those of a
/// training that nobody disturbed, to the last bit, so no push is lost and none counts twice.
fn a_pulled_cable_is_noticed_and_the_training_goes_on(transport: &str) {
    let Some(cable) = Cable::new(transport) else { return };
    let (whole, cut) =
        (Scratch::new(&format!("whole-{transport}")), Scratch::new(&format!("cut-{transport}")));
    let job = "train lr --workers 1 --gap 1e-12 --passes 100 --json";
    let undisturbed = run(&format!("launch --servers 1 --workers 1 -- {job} --model {}", whole.path()));
    assert!(undisturbed.status.success(), "{}", error_of(&undisturbed));

    let terms = "--peer-timeout 4";
    let mut scheduler = Heard::start(&cable.near, &format!("scheduler --bind {NEAR}:0 {terms}"));
    let line = scheduler.says(&["listening on"]);
    let address = line.strip_prefix("listening on ").unwrap();
    let server = format!("server --scheduler {address} --interface {PLUG} --transport {transport} {terms}");
    let mut server = Heard::start(&cable.far, &server);
    server.says(&["serves on", FAR, transport]);
    let before = cable.received();
    let worker =
        format!("{job} --model {} --scheduler {address} --transport {transport} {terms}", cut.path());
    let mut worker = Heard::start(&cable.near, &worker);
    // Under way, and far from its end.
    wait_for("a training", || (cable.received() > before + 100_000).then_some(()));

    cable.plug("down");
    worker.says(&["worker 0 has no connection to server 0.0", "no sign of life within the configured time"]);
    server.says(&[
        "shard server 0.0 has lost the worker at",
        NEAR,
        "no sign of life within the configured time",
    ]);
    server.says(&["the scheduler is gone"]);
    scheduler.says(&["server 0 is gone"]);
    assert!(worker.child.try_wait().unwrap().is_none(), "it was cut in the middle: {:?}", worker.said());

    cable.plug("up");
    worker.says(&["worker 0 is connected to server 0.0 again"]);
    let status = wait_for("the end of the training", || worker.child.try_wait().unwrap());
    assert!(status.success(), "{:?}", worker.said());
    assert!(std::fs::read(&whole.0).unwrap() == std::fs::read(&cut.0).unwrap(), "weights differ");
}

/// Two namespaces of one host: the same kernel, and no Unix socket in common.
#[test]
fn shared_memory_is_not_had_across_namespaces_and_everybody_is_told_why() {
    let Some(cable) = Cable::new("shm") else { return };
    let mut scheduler = Heard::start(&cable.near, &format!("scheduler --bind {NEAR}:0"));
    let line = scheduler.says(&["listening on"]);
    let address = line.strip_prefix("listening on ").unwrap().to_owned();
    let mut server = Heard::start(&cable.far, &format!("server --scheduler {address} --interface {PLUG}"));
    server.says(&["serves on", FAR, "shm with processes of this host"]);
    let train = |transport: &str| {
        let job = format!("train lr --workers 1 --gap 0.01 --json --deadline 4 --scheduler {address}");
        Heard::start(&cable.near, &format!("{job} --transport {transport}"))
    };
    // Who asks for it is refused with the reason and the remedy, and takes nothing else.
    let mut asks = train("shm");
    asks.says(&["has no connection to server 0.0", "--transport shm", "network namespace", "container"]);
    let status = wait_for("the end of the one that asks", || asks.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(1), "{:?}", asks.said());
    // Who leaves the choice goes over TCP, and says so.
    let mut leaves = train("auto");
    leaves.says(&["worker 0 reaches server 0.0 over TCP (not shm:", "network namespace"]);
    let status = wait_for("the end of the training", || leaves.child.try_wait().unwrap());
    assert!(status.success(), "{:?}", leaves.said());
    leaves.says(&["\"transport\": \"socket\""]);
    let measured = Heard::start(&cable.far, &format!("perf server --bind {FAR}:0"));
    let mut measured = measured;
    let line = measured.says(&["listening on"]);
    let at = line.strip_prefix("listening on ").unwrap().to_owned();
    for operation in ["send", "push"] {
        let mut perf =
            Heard::start(&cable.near, &format!("perf {operation} {at} --size 64 --iterations 100"));
        perf.says(&["# ", "not shm: ", "network namespace"]);
    }
    let mut perf = Heard::start(&cable.near, &format!("perf send {at} --transport shm --size 64"));
    perf.says(&["no shared memory with", "network namespace"]);
    let status = wait_for("the end of a measurement", || perf.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(3), "the transport cannot be had: {:?}", perf.said());
}

#[test]
fn a_pulled_cable_is_noticed_over_sockets_and_the_training_goes_on() {
    a_pulled_cable_is_noticed_and_the_training_goes_on("socket");
}

#[test]
fn a_pulled_cable_is_noticed_over_uring_and_the_training_goes_on() {
    if uring_is_here() {
        a_pulled_cable_is_noticed_and_the_training_goes_on("uring");
    }
}
