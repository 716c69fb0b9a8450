//! The embedded cluster as a program sees it: values, rounds, deadlines, errors. No clock is trusted for more than "long".

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use rangefold::embed::{Client, Cluster, Options, StartError, Table, WorkerId};
use rangefold::{Aggregation, ElementType, Error, KeyRange, Lane, Limits, TableSpec, UpdateFunction};
use rangefold_proto::client::{IssueError, TaskError};

/// Long enough for anything that will happen at all.
const LONG: Duration = Duration::from_secs(30);
/// Short enough for what will not.
const SHORT: Duration = Duration::from_millis(60);

fn cluster(options: Options) -> (Cluster, Vec<Client>) {
    let workers = options.workers;
    let cluster = Cluster::start(options).unwrap();
    let clients: Vec<Client> = (0..workers).map(|_| cluster.join().unwrap()).collect();
    for client in &clients {
        client.wait_for_lanes(LONG).unwrap();
    }
    (cluster, clients)
}

fn one() -> (Cluster, Client) {
    let (cluster, mut clients) = cluster(Options { servers: 2, shards: 2, ..Options::default() });
    (cluster, clients.remove(0))
}

fn workers(count: u32, tau: Option<u32>) -> (Cluster, Vec<Client>) {
    cluster(Options { servers: 2, workers: count, parts: count, tau, ..Options::default() })
}

fn sums(client: &Client, name: &str, len: u64) -> Table<f64> {
    client.table(&TableSpec::dense(name, ElementType::F64, len, UpdateFunction::Add)).unwrap()
}

fn rounds(client: &Client, name: &str, len: u64) -> Table<f64> {
    let mut spec = TableSpec::dense(name, ElementType::F64, len, UpdateFunction::Add);
    spec.aggregation = Aggregation::Round;
    client.table(&spec).unwrap()
}

fn pull(table: &Table<f64>, range: impl Into<KeyRange>) -> Vec<f64> {
    table.pull(range).unwrap().wait(LONG).unwrap().to_vec()
}

/// Ends a client's round, and drives it until others have heard: a client without open tasks is not driven by itself, see
/// `a_close_goes_out_by_itself`.
fn advance(client: &Client, table: &Table<f64>) {
    client.advance(LONG).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < SHORT {
        table.pull_at(0..1, 0).unwrap().wait(LONG).unwrap();
    }
}

#[test]
fn what_is_pushed_is_pulled() {
    let (_cluster, client) = one();
    let table = sums(&client, "t", 100);
    table.push(10..13, &[1.0, 2.0, 3.0]).unwrap().wait(LONG).unwrap();
    table.push(11..12, &[0.5]).unwrap().wait(LONG).unwrap();
    assert_eq!(pull(&table, 9..14), [0.0, 1.0, 2.5, 3.0, 0.0]);
    let pulled = table.push_pull(12..14, &[1.0, 1.0]).unwrap().wait(LONG).unwrap();
    assert_eq!(*pulled, [4.0, 1.0]);
    let mut out = [0.0; 3];
    table.pull(11..14).unwrap().wait_into(&mut out, LONG).unwrap();
    assert_eq!(out, [2.5, 4.0, 1.0]);
}

#[test]
fn assigned_and_initial_values_and_rows_of_several_elements() {
    let (_cluster, client) = one();
    let mut spec = TableSpec::dense("rows", ElementType::F32, 50, UpdateFunction::Assign);
    spec.width = 3;
    spec.initial = 7.0;
    let table: Table<f32> = client.table(&spec).unwrap();
    table.push(49..50, &[1.0, 2.0, 3.0]).unwrap().wait(LONG).unwrap();
    table.push(49..50, &[4.0, 5.0, 6.0]).unwrap().wait(LONG).unwrap();
    assert_eq!(*table.pull(48..50).unwrap().wait(LONG).unwrap(), [7.0, 7.0, 7.0, 4.0, 5.0, 6.0]);
}

/// The last keys of a range that does not divide evenly are nobody's in other systems.
#[test]
fn ranges_that_do_not_divide_evenly() {
    let (_cluster, clients) = cluster(Options { servers: 3, shards: 2, ..Options::default() });
    for len in [1, 2, 3, 7, 16, 17, 1000, 1023] {
        let table = sums(&clients[0], &format!("t{len}"), len);
        let values: Vec<f64> = (0..len).map(|key| key as f64 + 1.0).collect();
        table.push(0..len, &values).unwrap().wait(LONG).unwrap();
        assert_eq!(pull(&table, 0..len), values, "length {len}");
        for (start, end) in [(0, 1), (len - 1, len), (len / 3, len.div_ceil(2)), (len / 2, len)] {
            if start < end {
                let expected: Vec<f64> = (start..end).map(|key| key as f64 + 1.0).collect();
                assert_eq!(pull(&table, start..end), expected, "{start}..{end} of {len}");
            }
        }
    }
}

/// Frames of 64 bytes, three sends, two replies: everything is cut, and every queue is full most of the time.
#[test]
fn the_smallest_limits_change_nothing_but_speed() {
    let options = Options { servers: 2, shards: 2, limits: Limits::test_min(), ..Options::default() };
    let (_cluster, clients) = cluster(options);
    let table = sums(&clients[0], "t", 61);
    for _ in 0..20 {
        let ones = [1.0; 61];
        drop(table.push(0..61, &ones).unwrap());
    }
    assert_eq!(pull(&table, 0..61), [20.0; 61]);
    // Expect: more than could ever be under way is an error and no wait.
    let wide = sums(&clients[0], "wide", 1000);
    let refused = wide.push(0..1000, &[0.0; 1000]).err();
    assert_eq!(refused, Some(Error::Issue(IssueError::TooLarge { bytes: 8000, max: 2048 })));
}

#[test]
fn threads_share_a_client() {
    let (_cluster, client) = one();
    let table = sums(&client, "t", 64);
    let (threads, pushes) = (4, 200);
    let start = Barrier::new(threads);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (table, start) = (table.clone(), &start);
            scope.spawn(move || {
                let key = 16 * thread as u64;
                start.wait();
                for count in 1..=pushes {
                    let ticket = table.push(key..key + 16, &[1.0; 16]).unwrap();
                    if count % 10 == 0 {
                        ticket.wait(LONG).unwrap();
                        assert_eq!(pull(&table, key..key + 16), [f64::from(count); 16]);
                    }
                }
            });
        }
    });
    client.flush(LONG).unwrap();
    assert_eq!(pull(&table, 0..64), [f64::from(pushes); 64]);
}

#[test]
fn a_passed_deadline_says_what_was_waited_for() {
    let (_cluster, clients) = workers(2, Some(0));
    let table = sums(&clients[0], "t", 8);
    clients[0].advance(LONG).unwrap();
    let begun = Instant::now();
    // Worker 1 has not ended round 0.
    let late = table.pull(0..8).unwrap().wait(SHORT).err().unwrap();
    assert!(begun.elapsed() >= SHORT);
    let Error::Deadline { what, after, waits_for } = &late else { panic!("{late}") };
    assert_eq!((*what, *after), ("waiting for a pull", SHORT));
    assert!(waits_for.contains("server") && waits_for.contains("another worker late"), "{waits_for}");
    let late = clients[0].barrier(SHORT).err().unwrap();
    assert!(late.to_string().contains("barrier"), "{late}");
    // Expect: a pull whose wait ended so may be waited for again when it was kept.
    let mut kept = table.pull(0..8).unwrap();
    assert!(matches!(kept.wait_once(SHORT), Err(Error::Deadline { .. })));
    advance(&clients[1], &sums(&clients[1], "t", 8));
    assert_eq!(*kept.wait_once(LONG).unwrap(), [0.0; 8]);
    assert_eq!(kept.wait_once(SHORT).err(), Some(Error::Task(TaskError::Cancelled)));
}

#[test]
fn a_push_whose_wait_ended_too_soon_may_be_waited_for_again() {
    let (_cluster, client) = one();
    let table = rounds(&client, "t", 8);
    // Applied at the end of the round.
    let mut kept = table.push(0..8, &[1.0; 8]).unwrap();
    assert!(matches!(kept.wait_once(SHORT), Err(Error::Deadline { .. })));
    client.advance(LONG).unwrap();
    kept.wait_once(LONG).unwrap();
    kept.wait_once(SHORT).unwrap();
    assert_eq!(pull(&table, 0..8), [1.0; 8]);
}

#[test]
fn values_are_pushed_from_where_they_lie_and_come_back() {
    let (_cluster, client) = one();
    let table = sums(&client, "t", 100);
    let mut values = table.values(100).unwrap();
    assert!(values.iter().all(|&value| value == 0.0));
    values.fill(1.5);
    let shared = values.share();
    let tickets = [(), ()].map(|()| table.push_shared(0..100, &shared).unwrap());
    assert!(matches!(table.push_shared(0..3, &shared), Err(Error::Shape { found: 100, .. })));
    for ticket in tickets {
        ticket.wait(LONG).unwrap();
    }
    assert_eq!(pull(&table, 0..100), [3.0; 100]);
    let clone = shared.clone();
    let shared = shared.try_into_values().expect_err("a clone is left");
    drop(clone);
    let mut values = shared.try_into_values().expect("all that read it have ended");
    values[0] = 7.0;
    table.push_shared(0..100, &values.share()).unwrap().wait(LONG).unwrap();
    // What was pulled may be written and pushed as well.
    let mut pulled = table.pull(0..1).unwrap().wait(LONG).unwrap();
    pulled[0] += 90.0;
    table.push_shared(99..100, &pulled.share()).unwrap().wait(LONG).unwrap();
    assert_eq!(pull(&table, 0..2), [10.0, 4.5]);
    assert_eq!(pull(&table, 99..100), [4.5 + 100.0]);
}

/// Small pushes in a row are gathered; the last of them leave although their program never waits.
#[test]
fn a_stream_that_nobody_waits_for_leaves_by_itself() {
    let (cluster, client) = one();
    let table = sums(&client, "t", 8);
    for _ in 0..1_000 {
        drop(table.push(0..1, &[1.0]).unwrap());
    }
    let begun = Instant::now();
    let applied = || cluster.report().iter().map(|shard| shard.counters.pushes).sum::<u64>();
    while applied() < 1_000 {
        assert!(begun.elapsed() < LONG, "{} of 1000 pushes were applied", applied());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(pull(&table, 0..1), [1_000.0]);
}

#[test]
fn a_dropped_push_goes_on_and_a_dropped_pull_is_given_up() {
    let (_cluster, clients) = workers(2, Some(0));
    let table = sums(&clients[0], "t", 8);
    drop(table.push(0..8, &[1.0; 8]).unwrap());
    clients[0].flush(LONG).unwrap();
    clients[0].advance(LONG).unwrap();
    // Expect: far more pulls than a server grants; each gives its place back.
    for _ in 0..500 {
        drop(table.pull(0..8).unwrap());
    }
    clients[0].flush(LONG).unwrap();
    advance(&clients[1], &sums(&clients[1], "t", 8));
    assert_eq!(pull(&table, 0..8), [1.0; 8]);
}

/// A worker ends its round and turns to something else; the others wait for its close.
#[test]
fn a_close_goes_out_by_itself() {
    let (_cluster, clients) = workers(2, Some(0));
    let tables = [0, 1].map(|worker| sums(&clients[worker], "t", 8));
    clients[1].flush(LONG).unwrap();
    std::thread::sleep(SHORT);
    clients[1].advance(LONG).unwrap();
    clients[0].advance(LONG).unwrap();
    assert!(tables[0].pull(0..8).unwrap().wait(LONG).is_ok());
}

#[test]
fn an_ended_push_calls_back() {
    let (_cluster, client) = one();
    let table = sums(&client, "t", 8);
    let called = Arc::new(AtomicUsize::new(0));
    for _ in 0..10 {
        let called = Arc::clone(&called);
        table.push(0..8, &[1.0; 8]).unwrap().on_done(move |outcome| {
            assert_eq!(outcome, Ok(()));
            called.fetch_add(1, Ordering::Relaxed);
        });
    }
    // Expect: without a call of ours, by the client's progress thread.
    let begun = Instant::now();
    while called.load(Ordering::Relaxed) < 10 && begun.elapsed() < LONG {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(called.load(Ordering::Relaxed), 10);
}

#[test]
fn a_push_that_cannot_end_any_more_calls_back_and_is_done() {
    let (cluster, mut clients) = workers(1, Some(0));
    let client = clients.remove(0);
    let table = rounds(&client, "t", 8);
    let (called, outcomes) = std::sync::mpsc::channel();
    let too_late = called.clone();
    // The round stays open, so neither push ends before the cluster does.
    let waiting = table.push(0..8, &[1.0; 8]).unwrap();
    table.push(0..8, &[1.0; 8]).unwrap().on_done(move |outcome| called.send(outcome).unwrap());
    let last = table.push(0..8, &[1.0; 8]).unwrap();
    drop(cluster);
    assert_eq!(outcomes.recv_timeout(LONG), Ok(Err(Error::Stopped)));
    assert!(waiting.is_done());
    last.on_done(move |outcome| too_late.send(outcome).unwrap());
    assert_eq!(outcomes.recv_timeout(LONG), Ok(Err(Error::Stopped)));
    assert_eq!(waiting.wait(LONG).err(), Some(Error::Stopped));
}

#[test]
fn a_callback_that_calls_its_client_panics_instead_of_waiting_for_itself() {
    let (_cluster, client) = one();
    let table = sums(&client, "t", 8);
    let (called, outcome) = std::sync::mpsc::channel();
    let again = table.clone();
    table.push(0..8, &[1.0; 8]).unwrap().on_done(move |_| {
        let call = std::panic::AssertUnwindSafe(|| again.push(0..8, &[1.0; 8]).map(drop));
        called.send(std::panic::catch_unwind(call).is_err()).unwrap();
    });
    assert_eq!(outcome.recv_timeout(LONG), Ok(true));
    assert_eq!(pull(&table, 0..1), [1.0]);
}

#[test]
fn empty_ranges_are_nothing_to_do() {
    let (_cluster, client) = one();
    let table = sums(&client, "t", 100);
    for at in [0, 5, 100] {
        table.push(at..at, &[]).unwrap().wait(LONG).unwrap();
        let mut ticket = table.pull(at..at).unwrap();
        assert!(ticket.is_done());
        assert!(ticket.wait_once(LONG).unwrap().is_empty());
        assert!(ticket.wait_once(LONG).is_err(), "handed out once");
    }
    assert!(matches!(table.pull(101..101).err(), Some(Error::Issue(IssueError::Range { .. }))));
}

#[test]
fn memory_that_values_held_is_there_for_anything_again() {
    let options = Options { worker_bytes_max: 16 << 20, ..Options::default() };
    let (_cluster, mut clients) = cluster(options);
    let client = clients.remove(0);
    let table = sums(&client, "t", 1 << 20);
    // All of the memory in large pieces, then in small ones, then large again.
    let held: Vec<_> = (0..4).map(|_| table.pull(0..1 << 19).unwrap().wait(LONG).unwrap()).collect();
    drop(held);
    let pushes: Vec<_> = (0..1000).map(|_| table.push(0..100, &[1.0; 100]).unwrap()).collect();
    for push in pushes {
        push.wait(LONG).unwrap();
    }
    let all = table.pull(0..1 << 20).unwrap().wait(LONG).unwrap();
    assert_eq!((all[99], all[100]), (1000.0, 0.0));
    let large = vec![0.0; (2 << 20) + 1];
    let table = sums(&client, "large", large.len() as u64);
    let error = table.push(0..large.len() as u64, &large).err();
    assert!(matches!(error, Some(Error::Issue(IssueError::TooLarge { .. }))), "{error:?}");
}

#[test]
fn a_wait_for_the_own_round_says_so() {
    let (_cluster, clients) = workers(1, Some(0));
    let table = rounds(&clients[0], "t", 8);
    let push = table.push(0..8, &[1.0; 8]).unwrap();
    let error = push.wait(SHORT).unwrap_err().to_string();
    assert!(error.contains("`advance`"), "{error}");
    let held = table.pull_at(0..8, 0).unwrap().wait(LONG).unwrap();
    clients[0].advance(LONG).unwrap();
    drop(held);
}

#[test]
fn a_barrier_waits_for_workers_that_join_later_and_can_be_waited_for_again() {
    let cluster = Cluster::start(Options { workers: 2, parts: 2, ..Options::default() }).unwrap();
    let first = cluster.join().unwrap();
    assert!(first.barrier(SHORT).is_err());
    assert!(first.barrier(SHORT).is_err(), "the same one again");
    let second = cluster.join().unwrap();
    assert_eq!(second.barrier(LONG), Ok(()), "the first has reached it");
    // Its news come while nobody waits.
    std::thread::sleep(SHORT);
    assert_eq!(first.barrier(LONG), Ok(()), "the one that it gave up waiting for");
    assert!(first.barrier(SHORT).is_err(), "the next one, which the other has not reached");
}

/// Every worker pushes one per round and checks that it sees at least what the delay promises.
fn runs_with(tau: Option<u32>) {
    let (_cluster, clients) = workers(3, tau);
    std::thread::scope(|scope| {
        for client in &clients {
            scope.spawn(move || {
                let table = sums(client, "t", 31);
                for round in 0..40u32 {
                    assert_eq!(client.lanes()[0].1, round);
                    drop(table.push(0..31, &[1.0; 31]).unwrap());
                    let values = pull(&table, 0..31);
                    let own = f64::from(round + 1);
                    let others = tau.map_or(0.0, |tau| 2.0 * f64::from(round.saturating_sub(tau)));
                    let least = own + others;
                    assert!(
                        values.iter().all(|value| *value >= least),
                        "round {round}: {values:?} below {least}"
                    );
                    assert!(values.iter().all(|value| *value <= 120.0));
                    client.advance(LONG).unwrap();
                }
                client.flush(LONG).unwrap();
                client.barrier(LONG).unwrap();
                assert_eq!(pull(&table, 0..31), [120.0; 31]);
            });
        }
    });
}

//= OSDI'14 §3.5
//= type=test
#[test]
fn sequential_rounds() {
    runs_with(Some(0));
}

#[test]
fn bounded_delay() {
    runs_with(Some(4));
}

#[test]
fn eventual() {
    runs_with(None);
}

#[test]
fn bounded_delay_lets_a_worker_run_ahead_so_far() {
    let (_cluster, clients) = workers(2, Some(2));
    let table = sums(&clients[0], "t", 4);
    for _ in 0..2 {
        clients[0].advance(LONG).unwrap();
        assert_eq!(pull(&table, 0..4), [0.0; 4]);
    }
    clients[0].advance(LONG).unwrap();
    assert!(matches!(table.pull(0..4).unwrap().wait(SHORT), Err(Error::Deadline { .. })));
    // Expect: the delay may be changed while the job runs.
    clients[0].set_delay(None);
    assert_eq!(pull(&table, 0..4), [0.0; 4]);
}

//= protocol.md T10
//= type=test
#[test]
fn aggregated_rounds_are_applied_whole() {
    let (_cluster, clients) = workers(3, Some(0));
    std::thread::scope(|scope| {
        for client in &clients {
            scope.spawn(move || {
                let table = rounds(client, "t", 17);
                for round in 1..=30u32 {
                    drop(table.push(0..17, &[1.0; 17]).unwrap());
                    client.advance(LONG).unwrap();
                    // Expect: rounds are multiples of three; never a part of one.
                    let values = table.pull_at(0..17, round).unwrap().wait(LONG).unwrap().to_vec();
                    let whole = |value: &f64| *value >= f64::from(3 * round) && *value % 3.0 == 0.0;
                    assert!(values.iter().all(whole), "round {round}: {values:?}");
                }
            });
        }
    });
}

#[test]
fn barriers_and_notices() {
    let (_cluster, clients) = workers(3, None);
    let reached = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for client in &clients {
            let reached = &reached;
            scope.spawn(move || {
                for round in 1..=20 {
                    reached.fetch_add(1, Ordering::SeqCst);
                    client.barrier(LONG).unwrap();
                    assert!(reached.load(Ordering::SeqCst) >= 3 * round);
                }
            });
        }
    });
    assert_eq!(clients[0].notice("n"), Ok(None));
    clients[0].post("n", b"first".to_vec()).unwrap();
    clients[1].post("n", b"second".to_vec()).unwrap();
    assert_eq!(clients[2].notice("n"), Ok(Some(b"first".to_vec())));
}

#[test]
fn wrong_shapes_types_and_keys_are_errors_that_say_what_is_there() {
    let (_cluster, client) = one();
    let spec = TableSpec { width: 2, ..TableSpec::dense("t", ElementType::F32, 10, UpdateFunction::Add) };
    let table: Table<f32> = client.table(&spec).unwrap();
    let shape = table.push(0..4, &[0.0; 4]).err().unwrap();
    assert_eq!(shape, Error::Shape { range: KeyRange::new(0, 4), width: 2, found: 4, expected: 8 });
    let beyond = table.push(8..11, &[0.0; 6]).err().unwrap();
    assert_eq!(beyond, Error::Issue(IssueError::Range { range: KeyRange::new(8, 11), len: 10 }));
    assert_eq!(
        table.pull(KeyRange { start: 3, end: 2 }).err(),
        Some(Error::Issue(IssueError::Range { range: KeyRange::new(3, 2), len: 10 }))
    );
    let mut short = [0.0; 3];
    let into = table.pull(2..4).unwrap().wait_into(&mut short, LONG).err().unwrap();
    assert_eq!(into, Error::Shape { range: KeyRange::new(2, 4), width: 2, found: 3, expected: 4 });
    let arguments = table.push_as(Lane(0), 0..1, &[0.0; 2], &[0.0; 5]).err().unwrap();
    assert_eq!(arguments, Error::Issue(IssueError::TooManyArguments));
    let lane = table.push_as(Lane(9), 0..1, &[0.0; 2], &[]).err().unwrap();
    assert_eq!(lane, Error::Issue(IssueError::NoLane(Lane(9))));
    let element = client.table::<f64>(&spec).err().unwrap();
    assert_eq!(element, Error::Element { found: ElementType::F32, asked: ElementType::F64 });
    let other = client.table::<f32>(&TableSpec { len: 11, ..spec.clone() }).err().unwrap();
    assert!(other.to_string().contains("`t` exists with another specification"), "{other}");
    let segments = client.table::<f32>(&TableSpec { name: "u".into(), segments: 3, ..spec }).err().unwrap();
    assert!(segments.to_string().contains("power of two"), "{segments}");
    let mut out = [0.0; 3];
    assert!(matches!(table.pull(0..1).unwrap().wait_into(&mut out, LONG), Err(Error::Shape { .. })));
}

#[test]
fn clusters_that_cannot_be_and_a_worker_too_many() {
    for options in [
        Options { servers: 0, ..Options::default() },
        Options { shards: 0, ..Options::default() },
        Options { workers: 2, parts: 1, ..Options::default() },
        Options { parts: 1 << 20, ..Options::default() },
        Options { tau: Some(64), ..Options::default() },
    ] {
        assert!(matches!(Cluster::start(options), Err(StartError::Options(_))));
    }
    let (cluster, _clients) = workers(2, None);
    let refused = cluster.join().err().unwrap();
    assert!(refused.to_string().contains("one too many"), "{refused}");
}

#[test]
fn a_job_does_not_start_before_its_workers_are_there() {
    let cluster = Cluster::start(Options { workers: 2, parts: 2, ..Options::default() }).unwrap();
    let first = cluster.join().unwrap();
    let late = first.wait_for_lanes(SHORT).err().unwrap();
    assert!(late.to_string().contains("the job to start"), "{late}");
    assert_eq!(first.advance(SHORT).err(), Some(Error::NoLane));
    let table = sums(&first, "t", 4);
    assert_eq!(table.push(0..4, &[0.0; 4]).err(), Some(Error::NoLane));
    let _second = cluster.join().unwrap();
    assert_eq!(first.wait_for_lanes(LONG), Ok(vec![Lane(0)]));
    table.push(0..4, &[1.0; 4]).unwrap().wait(LONG).unwrap();
}

#[test]
fn a_cluster_that_ends_while_a_client_waits_ends_the_wait() {
    let (cluster, mut clients) = workers(2, Some(0));
    let (client, waiting) = (clients.remove(0), Arc::new(AtomicBool::new(false)));
    let flag = Arc::clone(&waiting);
    let waiter = std::thread::spawn(move || {
        let table = sums(&client, "t", 8);
        client.advance(LONG).unwrap();
        let pull = table.pull(0..8).unwrap();
        flag.store(true, Ordering::SeqCst);
        let begun = Instant::now();
        (pull.wait(LONG).err(), begun.elapsed())
    });
    while !waiting.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(SHORT);
    drop(cluster);
    let (error, took) = waiter.join().unwrap();
    assert_eq!(error, Some(Error::Stopped));
    assert!(took < LONG / 2, "{took:?}");
    // Expect: what comes afterwards ends as well.
    let table = clients[0].table::<f64>(&TableSpec::dense("u", ElementType::F64, 4, UpdateFunction::Add));
    assert!(table.is_err() || table.unwrap().pull(0..4).is_err());
}

//= protocol.md T10
//= type=test
#[test]
fn lanes_of_a_worker_given_up_are_taken_over_and_their_rounds_count_once() {
    let (cluster, clients) = workers(2, Some(0));
    let table = rounds(&clients[0], "t", 9);
    let lost = rounds(&clients[1], "t", 9);
    // Worker 1 contributes to round 0 and is lost before it has closed it.
    lost.push(0..9, &[100.0; 9]).map(drop).unwrap();
    std::thread::sleep(SHORT);
    cluster.give_up(WorkerId(1));
    assert_eq!(clients[1].flush(LONG).err(), Some(Error::Stopped));
    let begun = Instant::now();
    while clients[0].wait_for_lanes(LONG).unwrap().len() < 2 && begun.elapsed() < LONG {
        // Whoever waits drives; this wait is for nothing else.
        let _ = clients[0].barrier(Duration::from_millis(1));
    }
    assert_eq!(clients[0].lanes(), [(Lane(0), 0), (Lane(1), 0)]);
    for lane in [Lane(0), Lane(1)] {
        drop(table.push_as(lane, 0..9, &[1.0; 9], &[]).unwrap());
    }
    clients[0].advance(LONG).unwrap();
    // Expect: the heir's contribution stands in the place of the lost one.
    assert_eq!(*table.pull_at(0..9, 1).unwrap().wait(LONG).unwrap(), [2.0; 9]);
}

#[test]
fn a_worker_comes_in_the_place_of_one_that_is_gone() {
    let (cluster, clients) = workers(2, None);
    let table = sums(&clients[0], "t", 4);
    clients[1].leave();
    let heir = cluster.join().unwrap();
    let lanes = heir.wait_for_lanes(LONG).unwrap();
    assert_eq!(lanes.len(), 1);
    let same = sums(&heir, "t", 4);
    same.push(0..4, &[1.0; 4]).unwrap().wait(LONG).unwrap();
    assert_eq!(pull(&table, 0..4), [1.0; 4]);
}

#[test]
fn a_client_that_is_dropped_has_left() {
    let (cluster, mut clients) = workers(2, Some(0));
    let table = sums(&clients[0], "t", 4);
    drop(clients.remove(1));
    // Expect: a round waits for nobody who is gone; who was dropped has a place to be taken.
    let heir = cluster.join().unwrap();
    assert_eq!(heir.wait_for_lanes(LONG).unwrap().len(), 1);
    drop(heir);
    let begun = Instant::now();
    while clients[0].lanes().len() < 2 && begun.elapsed() < LONG {
        // Whoever waits drives.
        let _ = clients[0].barrier(Duration::from_millis(1));
    }
    clients[0].advance(LONG).unwrap();
    assert_eq!(*table.pull_at(0..4, 1).unwrap().wait(LONG).unwrap(), [0.0; 4]);
}

#[test]
fn a_program_that_knows_no_lanes_goes_on_when_another_is_lost() {
    let (_cluster, mut clients) = workers(3, Some(0));
    let tables: Vec<_> = clients.iter().map(|client| rounds(client, "t", 4)).collect();
    let (stays, table) = (clients.remove(0), tables.into_iter().next().unwrap());
    drop(table.push(0..4, &[1.0; 4]).unwrap());
    let waits = std::thread::spawn(move || {
        stays.advance(LONG).unwrap();
        let first = table.pull(0..4).unwrap().wait(LONG).map(|values| values[0]);
        // One was lost while it waited, the other is lost now: both of their lanes are its own by then.
        for _ in 0..3 {
            drop(table.push(0..4, &[1.0; 4]).unwrap());
            stays.advance(LONG).unwrap();
        }
        let last = table.pull(0..4).unwrap().wait(LONG).map(|values| values[0]);
        (first, last)
    });
    std::thread::sleep(SHORT);
    // Neither has ended the round that the first one waits for.
    clients.clear();
    assert_eq!(waits.join().unwrap(), (Ok(1.0), Ok(4.0)));
}

#[test]
fn a_late_word_of_a_job_that_never_started_is_nobodys() {
    let cluster = Cluster::start(Options { workers: 3, parts: 3, ..Options::default() }).unwrap();
    let first = cluster.join().unwrap();
    cluster.give_up(WorkerId(0));
    // The job is forgotten; the next one's workers are not called as the first one was.
    let others: Vec<Client> = (0..3).map(|_| cluster.join().unwrap()).collect();
    drop(first);
    for client in &others {
        assert_eq!(client.wait_for_lanes(LONG).unwrap().len(), 1);
    }
    let waiting: Vec<_> =
        others.into_iter().map(|client| std::thread::spawn(move || client.barrier(LONG))).collect();
    for waiter in waiting {
        assert_eq!(waiter.join().unwrap(), Ok(()));
    }
}

//= protocol.md T10
//= type=test
#[test]
fn rounds_and_eventual_do_not_go_together() {
    let (_cluster, clients) = workers(1, None);
    let mut spec = TableSpec::dense("t", ElementType::F64, 4, UpdateFunction::Add);
    spec.aggregation = Aggregation::Round;
    assert_eq!(clients[0].table::<f64>(&spec).err(), Some(Error::Eventual("t".into())));
    clients[0].set_delay(Some(1));
    assert!(clients[0].table::<f64>(&spec).is_ok());
}

#[test]
fn servers_say_what_they_did() {
    let (cluster, client) = one();
    let table = sums(&client, "t", 100);
    table.push(0..100, &[1.0; 100]).unwrap().wait(LONG).unwrap();
    pull(&table, 0..100);
    let reports = cluster.report();
    assert_eq!(reports.len(), 4);
    let total = |count: fn(&rangefold::embed::Report) -> u64| reports.iter().map(count).sum::<u64>();
    let segments = u64::from(table.spec().segments);
    assert_eq!((total(|r| r.counters.pushes), total(|r| r.counters.pulls)), (segments, segments));
    assert_eq!(total(|r| r.bytes), 800);
    assert_eq!(client.counters().bytes_pushed, 800);
}
