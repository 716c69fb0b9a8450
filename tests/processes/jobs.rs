//! Jobs that nobody disturbs.

use rustix::process::test_kill_process;
use serde_json::Value;

use crate::harness::{
    assert_optimal, children, error_of, finish, rangefold, result_of, run, uring_is_here, wait_for,
};

#[test]
fn processes_reach_the_optimum_and_are_gone() {
    let child = rangefold("launch --servers 2 --workers 2 -- train lr --json").spawn().unwrap();
    let services =
        wait_for("two servers", || Some(children(&child, "server")).filter(|found| found.len() == 2));
    let output = finish(child);
    assert!(output.status.success(), "{}", error_of(&output));
    let result = result_of(&output);
    assert_optimal(&result);
    assert_eq!(result["transport"], "shm", "all of it between processes of one host: {result}");
    let error = error_of(&output);
    assert!(error.contains("worker 0 over shm with processes of this host, else socket"), "{error}");
    assert!(!error.contains("not shm"), "{error}");
    assert!(!error.contains("has lost the worker"), "the first connection of each leaves no trace: {error}");
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

#[test]
fn all_combinations_reach_the_optimum_over_uring_and_two_each_over_socket_and_shm() {
    let mut combinations =
        vec![("socket", 0, 2, 3), ("socket", 16, 1, 1), ("shm", 0, 2, 3), ("shm", 16, 1, 1)];
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
