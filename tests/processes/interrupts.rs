//! Interrupts, whenever they come: the job ends, with 130, and what was had is kept.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{
    Scratch, children, error_of, finish, launch_two, rangefold, start_scheduler, start_server,
    start_training, wait_for,
};

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
fn an_interrupt_ends_the_job_and_says_what_was_saved() {
    let model = Scratch::new("interrupted");
    let (child, _) = launch_two(&format!("-- train lr --gap 0.00001 --json --model {}", model.path()));
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
fn an_interrupted_worker_that_fails_says_why_and_is_still_interrupted() {
    let [_scheduler, server, worker] = start_training("--deadline 2");
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
