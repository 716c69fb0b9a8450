//! What users may give and get, what they may do wrong, and what they are told.

use std::process::Command;
use std::time::Duration;

use crate::harness::{Scratch, error_of, finish, rangefold, result_of, run, start_scheduler};

#[test]
fn a_transport_that_is_asked_for_is_never_replaced() {
    let output = run("launch --transport carrier-pigeon -- train lr");
    assert_eq!(output.status.code(), Some(2));
    assert!(error_of(&output).contains("there are auto, shm, uring and socket"), "{}", error_of(&output));
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
        ("scheduler --bind 127.0.0.1:0 --interface lo", "cannot be used with"),
        ("scheduler --port 0", "--interface <NAME>"),
        (
            "scheduler --interface nowhere0",
            "no interface of this name has an address; is it up? There are lo (127.0.0.1)",
        ),
        ("scheduler --peer-timeout 2", "2 is not in 3..=86400"),
        ("server --bind [::]:0", "bind a loopback address"),
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
    for fact in
        ["huge_pages", "of_shared_memory", "memory_nodes", "io_uring", "remote_memory_ports", "vector_units"]
    {
        assert!(text.lines().any(|line| line.split_whitespace().next() == Some(fact)), "{fact}: {text}");
    }
    let help = run("train lr --help");
    let text = String::from_utf8_lossy(&help.stdout);
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("started by hand need --rank 0, 1,"), "{text}");
}
