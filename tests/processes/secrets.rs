//! The secret of a cluster: where it comes from, and who is kept out.

use std::io::{Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Output;

use rustix::process::Signal;

use crate::harness::{
    Scratch, Started, children, error_of, finish, launch_two, rangefold, result_of, run, start_scheduler,
    variable,
};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn with_secret(arguments: &str, secret: &str) -> Output {
    finish(rangefold(arguments).env("RANGEFOLD_SECRET", secret).spawn().unwrap())
}

#[test]
fn nodes_with_the_secret_work_together_and_others_are_told_why_they_do_not() {
    let (file, other) = (Scratch::new("secret"), Scratch::new("other-secret"));
    write(&file.0, &format!("{SECRET}\n"), 0o600);
    write(&other.0, "another secret altogether", 0o400);
    let guarded = format!("--secret-file {}", file.path());
    let mut scheduler = Started::new(&format!("scheduler --bind 127.0.0.1:0 {guarded}"));
    let address = scheduler.first_line().strip_prefix("listening on ").unwrap().to_owned();
    let join = format!("--scheduler {address} --deadline 10");
    for node in ["server", "train lr --workers 1"] {
        let without = run(&format!("{node} {join}"));
        assert_eq!(without.status.code(), Some(1), "{node}");
        let asked = "the other side asks for one, and this side has none";
        assert!(error_of(&without).contains(asked), "{node}: {}", error_of(&without));
        let differs = run(&format!("{node} {join} --secret-file {}", other.path()));
        assert_eq!(differs.status.code(), Some(1), "{node}");
        let give = "the other side does not take this side's; give both the same";
        assert!(error_of(&differs).contains(give), "{node}: {}", error_of(&differs));
    }
    let mut server = Started::new(&format!("server {join} {guarded}"));
    assert!(server.first_note().contains("serves on"));
    // The environment serves as well as the file.
    let trained = with_secret(&format!("train lr {join} --workers 1 --gap 0.01"), SECRET);
    assert!(trained.status.success(), "{}", error_of(&trained));
    scheduler.signal(Signal::TERM);
    let said = error_of(&scheduler.finish());
    assert!(said.contains("of those who connected, 4 did not prove the cluster secret"), "{said}");
}

/// The abstract names of the Unix sockets that a process listens on; every process of the host can list them.
fn unix_sockets(pid: u32) -> Vec<String> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let links: Vec<String> = descriptors
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .map(|link| link.display().to_string())
        .collect();
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    let names = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let name = fields.get(7)?.strip_prefix('@')?;
        links.contains(&format!("socket:[{}]", fields[6])).then(|| name.to_owned())
    });
    names.collect()
}

#[test]
fn strangers_at_the_unix_socket_are_kept_out_and_counted() {
    let (_scheduler, address) = start_scheduler();
    let mut server = Started::new(&format!("server --scheduler {address}"));
    assert!(server.first_note().contains("serves on"));
    let names = unix_sockets(server.pid());
    assert_eq!(names.len(), 1, "one beside the address: {names:?}");
    let connect = || {
        let at = std::os::unix::net::SocketAddr::from_abstract_name(&names[0]).unwrap();
        UnixStream::connect_addr(&at).unwrap()
    };
    // One that speaks something else, one that goes, and some that say nothing for as long as they may.
    let mut scanner = connect();
    scanner.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // It may be a reset: not all of it was read.
    let _ = scanner.read_to_end(&mut answer);
    assert!(answer.is_empty(), "{answer:?}");
    drop(connect());
    let silent: Vec<UnixStream> = (0..8).map(|_| connect()).collect();
    let trained = run(&format!("train lr --scheduler {address} --workers 1 --gap 0.01 --json"));
    assert!(trained.status.success(), "{}", error_of(&trained));
    assert_eq!(result_of(&trained)["transport"], "shm");
    drop(silent);
    server.signal(Signal::TERM);
    let said = error_of(&server.finish());
    assert!(said.contains("1 spoke something else"), "{said}");
    assert!(!said.contains("has lost the worker"), "{said}");
}

#[test]
fn measurements_are_guarded_by_the_secret_too() {
    let file = Scratch::new("perf-secret");
    write(&file.0, SECRET, 0o600);
    // Every address may be bound then, and its store listens there as well.
    let mut server = Started::new(&format!("perf server --bind 0.0.0.0:0 --secret-file {}", file.path()));
    let bound = server.first_line().strip_prefix("listening on ").unwrap().to_owned();
    let port = bound.rsplit_once(':').unwrap().1;
    for operation in ["send", "push"] {
        let measure = format!("perf {operation} 127.0.0.1:{port} --size 64 --iterations 200");
        let without = run(&measure);
        assert_eq!(without.status.code(), Some(1), "{operation}");
        assert!(error_of(&without).contains("this side has none"), "{}", error_of(&without));
        let with = with_secret(&measure, SECRET);
        assert!(with.status.success(), "{operation}: {}", error_of(&with));
    }
}

#[test]
fn who_has_a_secret_joins_no_cluster_without_one() {
    let mut scheduler = Started::new("scheduler --bind 127.0.0.1:0");
    let address = scheduler.first_line().strip_prefix("listening on ").unwrap().to_owned();
    let output = with_secret(&format!("server --scheduler {address} --deadline 10"), SECRET);
    assert_eq!(output.status.code(), Some(1));
    assert!(error_of(&output).contains("this side has one, and the other has none"), "{}", error_of(&output));
}

#[test]
fn a_secret_that_is_none_or_that_others_may_read_is_refused() {
    let scratch = Scratch::new("secrets");
    std::fs::create_dir(&scratch.0).unwrap();
    let at = |name: &str| scratch.0.join(name);
    write(&at("open"), SECRET, 0o644);
    write(&at("short"), "fifteen bytes..\n", 0o600);
    write(&at("good"), SECRET, 0o600);
    let expected = [("open", "(chmod 600 "), ("short", "this one has 15"), ("none", "No such file")];
    for node in ["scheduler --bind 127.0.0.1:0", "server --scheduler 127.0.0.1:9", "launch"] {
        let command = if node == "launch" { "-- train lr" } else { "" };
        for (name, why) in expected {
            let output = run(&format!("{node} --secret-file {} {command}", at(name).display()));
            assert_eq!(output.status.code(), Some(2), "{node}, {name}");
            assert!(error_of(&output).contains(why), "{node}, {name}: {}", error_of(&output));
        }
        let short = with_secret(&format!("{node} {command}"), "too short");
        assert_eq!(short.status.code(), Some(2), "{node}");
        assert!(error_of(&short).contains("RANGEFOLD_SECRET: a cluster secret has 16 to 4096 bytes"));
        assert!(!error_of(&short).contains("too short"), "it is not printed: {}", error_of(&short));
        let both = format!("{node} --secret-file {} {command}", at("good").display());
        let differ = with_secret(&both, "sixteen bytes, and others");
        assert_eq!(differ.status.code(), Some(2), "{node}");
        assert!(error_of(&differ).contains("hold different secrets"), "{}", error_of(&differ));
    }
    let embedded = run(&format!("train lr --secret-file {}", at("good").display()));
    assert_eq!(embedded.status.code(), Some(2), "{}", error_of(&embedded));
}

#[test]
fn launch_makes_a_secret_and_shows_it_to_nobody() {
    let (mut child, workers) = launch_two("-- train lr --gap 0.00001");
    let secret = variable(workers[0], "RANGEFOLD_SECRET");
    assert!(secret.len() == 64 && secret.bytes().all(|byte| byte.is_ascii_hexdigit()), "not as drawn");
    let services = ["scheduler", "server"].iter().flat_map(|word| children(&child, word));
    for pid in workers.iter().copied().chain(services) {
        assert!(variable(pid, "RANGEFOLD_SECRET") == secret, "all have the same");
        let line = std::fs::read_to_string(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap();
        assert!(!line.contains(&secret), "arguments can be read by everybody");
    }
    child.kill().unwrap();
    let output = finish(child);
    assert!(!error_of(&output).contains(&secret), "it is not printed");
}

#[test]
fn an_address_that_others_reach_is_bound_with_a_secret_and_advertised() {
    let file = Scratch::new("everywhere-secret");
    write(&file.0, SECRET, 0o600);
    let guarded = format!("--secret-file {}", file.path());
    let mut scheduler = Started::new(&format!("scheduler --bind 0.0.0.0:0 {guarded}"));
    let bound = scheduler.first_line();
    let address =
        bound.strip_prefix("listening on 0.0.0.0:").map(|port| format!("localhost:{port}")).unwrap();
    let nowhere = run(&format!("server --scheduler {address} --bind 0.0.0.0:0 {guarded}"));
    assert_eq!(nowhere.status.code(), Some(2), "{}", error_of(&nowhere));
    assert!(error_of(&nowhere).contains("advertise one (--advertise)"), "{}", error_of(&nowhere));
    let everywhere =
        format!("server --scheduler {address} --bind 0.0.0.0:0 --advertise localhost:0 {guarded}");
    let mut server = Started::new(&everywhere);
    assert!(server.first_note().contains("serves on 0.0.0.0:"));
    let trained = run(&format!("train lr --scheduler {address} --workers 1 {guarded}"));
    assert!(trained.status.success(), "{}", error_of(&trained));
    let mut other = Started::new(&format!("scheduler --interface lo {guarded} --port 0"));
    assert!(other.first_line().starts_with("listening on 127.0.0.1:"));
}
