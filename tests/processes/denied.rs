//! Processes that may not have io_uring, as in many containers: what takes its place, and what is said about it.
//! By a filter of system calls, or by a limit on locked memory. The filter is put on the thread that starts them, and inherited; the test's other threads do not have it.

use std::process::{Command, Output, Stdio};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

use serde_json::Value;

use crate::harness::{assert_optimal, error_of, finish, rangefold, result_of};

/// How a kernel answers for io_uring, and what must be said then: what is the matter, and what helps.
const DENIALS: [(i32, [&str; 3]); 2] = [
    // A container's profile.
    (
        libc::EPERM,
        [
            "io_uring is not permitted here (Operation not permitted",
            "a container's seccomp profile denies it",
            "use --transport socket, or allow it",
        ],
    ),
    // A kernel without it, and a profile that hides it.
    (libc::ENOSYS, ["Function not implemented", "Linux 6.1 or later is needed", "use --transport socket"]),
];

/// Runs the product so that it and all its children are answered this errno by these system calls.
fn run_denied(errno: i32, calls: &[i64], arguments: &str) -> Output {
    let filter = SeccompFilter::new(
        calls.iter().map(|&call| (call, Vec::new())).collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno.unsigned_abs()),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let filter: BpfProgram = filter.unwrap().try_into().unwrap();
    let mut command = rangefold(arguments);
    let starter = std::thread::spawn(move || {
        apply_filter(&filter).unwrap();
        command.spawn().unwrap()
    });
    finish(starter.join().unwrap())
}

#[track_caller]
fn assert_said(text: &str, words: &[&str]) {
    assert!(words.iter().all(|words| text.contains(words)), "not all of {words:?} in:\n{text}");
}

#[test]
fn without_io_uring_info_names_sockets_and_why() {
    for (errno, words) in DENIALS {
        let output = run_denied(errno, &[libc::SYS_io_uring_setup], "info --json");
        let transport = result_of(&output)["transport"].clone();
        assert_eq!(transport["between_processes"], "socket", "{transport}");
        assert_eq!(transport["between_processes_of_one_host"], "shm", "{transport}");
        let refused = transport["refused"].as_array().unwrap().iter();
        let of_uring: Vec<&Value> = refused.filter(|refusal| refusal["transport"] == "uring").collect();
        assert_eq!(of_uring.len(), 1, "{transport}");
        assert_said(of_uring[0]["reason"].as_str().unwrap(), &words);
        assert_said(transport["of_a_server"].as_str().unwrap(), &words);
        let output = run_denied(errno, &[libc::SYS_io_uring_setup], "info");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}", error_of(&output));
        assert_said(text.lines().find(|line| line.contains("uring: ")).unwrap(), &words);
    }
}

/// Without memory to share either (its pages are made by `fallocate`), so that all goes over what takes the place of io_uring.
#[test]
fn without_io_uring_a_job_goes_over_sockets_and_says_so() {
    for (errno, words) in DENIALS {
        let calls = [libc::SYS_io_uring_setup, libc::SYS_fallocate];
        let job = "launch --servers 2 --workers 2 -- train lr --gap 0.01 --json";
        let output = run_denied(errno, &calls, job);
        let error = error_of(&output);
        assert!(output.status.success(), "{error}");
        let result = result_of(&output);
        assert_optimal(&result);
        assert_eq!(result["transport"], "socket", "{result}");
        let servers: Vec<&str> = error.lines().filter(|line| line.contains("serves on")).collect();
        assert_eq!(servers.len(), 2, "{error}");
        for line in servers {
            assert_said(line, &["over socket (not uring: ", "; not shm: "]);
            assert_said(line, &words);
        }
        let output = run_denied(errno, &calls, "perf push --size 64 --iterations 100 --format json");
        let document = result_of(&output);
        let chosen = &document["setting"]["transport"];
        assert_eq!((&chosen["name"], output.status.code()), (&"socket".into(), Some(0)), "{document}");
        let of_server = &document["setting"]["server"]["transport"];
        assert_eq!(of_server["name"], "socket", "{document}");
    }
}

#[test]
fn who_asks_for_io_uring_where_it_is_denied_is_told_why_and_gets_nothing_else() {
    for (errno, words) in DENIALS {
        for (arguments, status) in [
            ("server --scheduler 127.0.0.1:9", 1),
            ("train lr --scheduler 127.0.0.1:9", 1),
            ("perf send --size 64 --iterations 1", 3),
            ("perf push --size 64 --iterations 1", 3),
            ("perf server --bind 127.0.0.1:0", 3),
        ] {
            let asks = format!("{arguments} --transport uring");
            let output = run_denied(errno, &[libc::SYS_io_uring_setup], &asks);
            let error = error_of(&output);
            assert_eq!(output.status.code(), Some(status), "{asks}: {error}");
            assert!(output.stdout.is_empty(), "{asks}: {}", String::from_utf8_lossy(&output.stdout));
            assert_said(&error, &["transport uring cannot be used: "]);
            assert_said(&error, &words);
        }
        let job = "launch --transport uring -- train lr --gap 0.01";
        let output = run_denied(errno, &[libc::SYS_io_uring_setup], job);
        let error = error_of(&output);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert_said(
            &error,
            &["[server 0] rangefold: transport uring cannot be used: ", "ended while workers"],
        );
        assert_said(&error, &words);
    }
}

/// Some kernels count rings as locked memory, unless the user may lock as much as there is.
#[test]
fn without_locked_memory_the_limit_is_named_and_sockets_are_taken() {
    let run = |arguments: &str| {
        let ours = rangefold(arguments);
        let mut command = Command::new("prlimit");
        command.arg("--memlock=0");
        if rustix::process::geteuid().is_root() {
            command.args(["setpriv", "--bounding-set=-ipc_lock"]);
        }
        command.arg(ours.get_program()).args(ours.get_args());
        for (name, _) in ours.get_envs() {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        finish(command.spawn().unwrap())
    };
    let output = run("info --json");
    let facts = result_of(&output);
    assert_eq!(facts["locked_memory_bytes"], 0, "{facts}");
    let transport = &facts["transport"];
    if transport["between_processes"] == "socket and uring" {
        eprintln!("skipped: this kernel does not count rings as locked memory");
        return;
    }
    assert_eq!(transport["between_processes"], "socket", "{transport}");
    let words = ["the limit on locked memory is", "ulimit -l"];
    assert_said(transport["of_a_server"].as_str().unwrap(), &words);
    let asks = run("perf send --transport uring --size 64 --iterations 1");
    assert_eq!(asks.status.code(), Some(3), "{}", error_of(&asks));
    assert_said(&error_of(&asks), &words);
}
