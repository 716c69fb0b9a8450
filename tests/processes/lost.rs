//! Processes that are killed or stopped, and what the others make of it.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{
    Scratch, assert_optimal, children, error_of, finish, launch_two, rangefold, result_of, run,
    start_training, variable, wait_for,
};

//= OSDI'14 §4.6
//= type=test
#[test]
fn a_worker_killed_in_the_middle_leaves_no_trace_at_delay_0() {
    for transport in ["shm", "socket"] {
        a_worker_killed_in_the_middle_leaves_no_trace(transport);
    }
}

fn a_worker_killed_in_the_middle_leaves_no_trace(transport: &str) {
    let (undisturbed, disturbed) = (Scratch::new("undisturbed"), Scratch::new("disturbed"));
    // A small gap, so that there is a middle to be killed in.
    let job =
        format!("--transport {transport} --servers 2 --workers 2 -- train lr --gap 0.0005 --json --model");
    assert!(run(&format!("launch {job} {}", undisturbed.path())).status.success());
    for delay in [300, 900] {
        let (child, workers) = launch_two(&format!("{job} {}", disturbed.path()));
        std::thread::sleep(Duration::from_millis(delay));
        kill_process(workers[1], Signal::KILL).unwrap();
        let output = finish(child);
        let error = error_of(&output);
        assert_eq!(output.status.code(), Some(137), "the worst of the copies: {error}");
        assert_optimal(&result_of(&output));
        if transport == "shm" {
            let process =
                format!("has lost the worker at process {} of this host", workers[1].as_raw_nonzero());
            assert!(error.contains(&process), "{error}");
        }
        let weights = |scratch: &Scratch| std::fs::read(&scratch.0).unwrap();
        assert!(weights(&undisturbed) == weights(&disturbed), "weights differ; killed after {delay} ms");
    }
}

//= OSDI'14 §4.6
//= type=test
#[test]
fn a_killed_worker_is_replaced_by_one_that_knows_nothing_without_a_trace_at_delay_0() {
    let (undisturbed, replaced) = (Scratch::new("whole"), Scratch::new("replaced"));
    let job = "train lr --gap 0.0005 --json --model";
    assert!(run(&format!("launch --servers 2 --workers 2 -- {job} {}", undisturbed.path())).status.success());
    // Over shm: the newcomer, who is no child of `launch`, shares memory with the same servers.
    let (child, workers) = launch_two(&format!("--servers 2 --workers 2 -- {job} {}", replaced.path()));
    std::thread::sleep(Duration::from_millis(400));
    let first = *workers.iter().find(|&&pid| variable(pid, "RANGEFOLD_RANK") == "0").unwrap();
    let scheduler = variable(first, "RANGEFOLD_SCHEDULER");
    let secret = variable(first, "RANGEFOLD_SECRET");
    kill_process(first, Signal::KILL).unwrap();
    // The scheduler takes a newcomer when it has seen the other's connection break.
    let newcomer = wait_for("a place", || {
        let newcomer = format!("{job} {} --scheduler {scheduler} --workers 2 --rank 0", replaced.path());
        let output = finish(rangefold(&newcomer).env("RANGEFOLD_SECRET", &secret).spawn().unwrap());
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
    let (child, workers) = launch_two("-- train lr --gap 0.0005 --json");
    let first = *workers.iter().find(|&&pid| variable(pid, "RANGEFOLD_RANK") == "0").unwrap();
    std::thread::sleep(Duration::from_millis(400));
    kill_process(first, Signal::KILL).unwrap();
    let output = finish(child);
    assert!(error_of(&output).contains("worker 1 prints the result"), "{}", error_of(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"objective\""));
}

#[test]
fn a_worker_that_stays_stopped_is_replaced_and_does_not_outlive_the_job() {
    let (child, workers) = launch_two("-- train lr --gap 0.0005 --json");
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
    for (transport, deadline, success) in [("shm", 8, false), ("shm", 60, true), ("socket", 60, true)] {
        let job = format!("--transport {transport} -- train lr --gap 0.0005 --deadline {deadline} --json");
        let (child, _) = launch_two(&job);
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
fn a_server_killed_in_the_middle_is_named_and_ends_the_job() {
    for transport in ["shm", "socket"] {
        let (child, _) = launch_two(&format!("--transport {transport} -- train lr --gap 1e-12 --deadline 8"));
        std::thread::sleep(Duration::from_millis(700));
        kill_process(children(&child, "server")[0], Signal::KILL).unwrap();
        let output = finish(child);
        let error = error_of(&output);
        assert!(
            !output.status.success() && error.contains("ended while workers were running (signal: 9"),
            "{error}"
        );
    }
}

#[test]
fn a_job_that_has_begun_does_not_need_its_scheduler() {
    let (child, _) = launch_two("-- train lr --gap 0.0005 --json");
    std::thread::sleep(Duration::from_millis(400));
    kill_process(children(&child, "scheduler")[0], Signal::KILL).unwrap();
    let output = finish(child);
    let error = error_of(&output);
    assert!(output.status.success() && error.contains("the job goes on without it"), "{error}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"objective\""), "{error}");
}

#[test]
fn a_scheduler_lost_at_the_end_does_not_cost_the_result() {
    let [scheduler, _server, worker] = start_training("--json");
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
fn when_launch_is_killed_everything_ends() {
    let (mut child, _) = launch_two("-- train lr --gap 0.00001 --deadline 5");
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
