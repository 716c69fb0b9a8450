//! Training through the library, on the bundled data: the optimum for every delay and layout, the same bits at delay 0.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use rangefold::WorkerId;
use rangefold::embed::{Client, Cluster, Options};
use rangefold_learn::bundled::ADULT_OPTIMUM as OPTIMUM;
use rangefold_learn::lane::Lane;
use rangefold_learn::mapping::Mapping;
use rangefold_learn::part::{Part, survey};
use rangefold_learn::plan::{Reason, Settings};
use rangefold_learn::reference::{self, Staleness};
use rangefold_learn::train::{Ended, Job, Outcome, Seen, TrainError, train};
use rangefold_learn::{bundled, metrics};
use rangefold_workers::Error;

const PARTS: u32 = 4;
const SEGMENTS: u16 = 16;
const SEED: u64 = 1;

fn job(delay: u32) -> Job {
    Job {
        lambda: 10.0,
        gap: 0.01,
        delay,
        seed: SEED,
        parts: PARTS,
        segments: SEGMENTS,
        passes_max: 1000.0,
        deadline: Duration::from_secs(60),
    }
}

fn run(job: &Job, workers: u32, servers: u32, data: &Mapping) -> Vec<Result<Outcome, TrainError>> {
    let options = Options { servers, workers, parts: job.parts, tau: Some(job.delay), ..Options::default() };
    let cluster = Cluster::start(options).unwrap();
    let clients: Vec<Client> = (0..workers).map(|_| cluster.join().unwrap()).collect();
    let interrupt = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let threads: Vec<_> = clients
            .iter()
            .map(|client| scope.spawn(|| train(client, job, data, &interrupt, |_| {})))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn bits(weights: &[f64]) -> Vec<u64> {
    weights.iter().map(|weight| weight.to_bits()).collect()
}

/// All combinations of a delay; the weights of each.
fn reaches_the_optimum(delay: u32) -> Vec<Vec<u64>> {
    let (data, test) = (bundled::adult_train().unwrap(), bundled::adult_test().unwrap());
    let mut weights = Vec::new();
    for (workers, servers) in [(1, 1), (1, 3), (2, 1), (2, 3)] {
        let outcomes: Vec<Outcome> =
            run(&job(delay), workers, servers, &data).into_iter().map(Result::unwrap).collect();
        let layout = format!("delay {delay}, {workers} workers, {servers} servers");
        let rows: u64 = outcomes.iter().map(|outcome| outcome.rows).sum();
        assert_eq!(rows, 39_099, "{layout}: every row is read once");
        for outcome in &outcomes {
            let certificate = outcome.certificate;
            assert_eq!(outcome.ended, Ended::Planned(Reason::GapReached), "{layout}");
            assert!((0.0..=0.01).contains(&certificate.gap), "{layout}: gap {}", certificate.gap);
            let (low, high) = (OPTIMUM * (1.0 - certificate.gap), OPTIMUM * 1.001);
            assert!((low..=high).contains(&certificate.objective), "{layout}: {}", certificate.objective);
            assert!(certificate.nonzeros <= 87, "{layout}: {} non-zeros", certificate.nonzeros);
            assert!(outcome.progress.passes <= 1000.0, "{layout}: {} passes", outcome.progress.passes);
            assert_eq!(bits(&outcome.weights), bits(&outcomes[0].weights), "{layout}: workers agree");
        }
        let auc = metrics::score(&test, &outcomes[0].weights).unwrap().area_under_curve().unwrap();
        assert!((auc - 0.886_52).abs() <= 0.002, "{layout}: AUC {auc}");
        weights.push(bits(&outcomes[0].weights));
    }
    weights
}

//= OSDI'14 §5.1
//= type=test
#[test]
fn delay_0_reaches_the_optimum_with_the_same_bits_in_every_layout_as_in_one_thread() {
    let weights = reaches_the_optimum(0);
    let data = bundled::adult_train().unwrap();
    let survey = survey(&data).unwrap();
    let parts = Part::load_all(&data, survey.features, PARTS as usize).unwrap();
    let weights_len = survey.weights_len();
    let settings = Settings {
        lambda: 10.0,
        gap: 0.01,
        delay: 0,
        seed: SEED,
        weights_len,
        segment_len: weights_len.div_ceil(usize::from(SEGMENTS)),
        passes_max: 1000.0,
    };
    let lanes = parts.into_iter().map(Lane::new).collect();
    let oracle = reference::train(lanes, &settings, Staleness::Worst).unwrap();
    for of_layout in weights {
        assert!(of_layout == bits(&oracle.weights), "the weights are not those of one thread");
    }
}

#[test]
fn delay_4_reaches_the_optimum() {
    reaches_the_optimum(4);
}

#[test]
fn delay_16_reaches_the_optimum() {
    reaches_the_optimum(16);
}

/// One worker stays; the two others are given up again and again, one or both, at any point of an epoch, and some that know
/// nothing join in their places. Returns the weights of all that saw the end, the staying one's first.
fn with_replacements(delay: u32, count: u32) -> Vec<Outcome> {
    let data = bundled::adult_train().unwrap();
    let job = job(delay);
    let options = Options { servers: 2, workers: 3, parts: PARTS, tau: Some(delay), ..Options::default() };
    let cluster = Cluster::start(options).unwrap();
    let (interrupt, walked) = (AtomicBool::new(false), AtomicU32::new(0));
    let (certified, certificates) = std::sync::mpsc::channel();
    let (release, released) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let start = |client: Client| {
            let (job, data, interrupt, walked) = (&job, &data, &interrupt, &walked);
            let mut first = true;
            let count = move |seen: &Seen| {
                // Its first certificate is not the job's: it began with an epoch that others had planned.
                walked.fetch_add(u32::from(first && seen.progress.rounds > 4), Ordering::Relaxed);
                first = false;
            };
            scope.spawn(move || train(&client, job, data, interrupt, count))
        };
        let clients = [cluster.join().unwrap(), cluster.join().unwrap(), cluster.join().unwrap()];
        let [first, second, third] = clients;
        let staying = scope.spawn({
            let (job, data, interrupt) = (&job, &data, &interrupt);
            let at_certificate = move |_: &Seen| {
                if certified.send(()).is_ok() {
                    let _ = released.recv();
                }
            };
            move || train(&first, job, data, interrupt, at_certificate)
        });
        let mut others = vec![start(second), start(third)];
        // Workers are named in the order in which they join.
        let mut names = std::collections::VecDeque::from([1, 2]);
        let mut replaced = 0;
        for (replacement, ()) in (1..=count).zip(certificates) {
            replaced = replacement;
            let mut replace = || {
                // Both at once, and the second may take from the first what that was given a moment ago.
                for _ in 0..1 + u32::from(replacement % 3 == 0) {
                    names.push_back(names[1] + 1);
                    cluster.give_up(WorkerId(names.pop_front().unwrap()));
                }
                for _ in 0..1 + u32::from(replacement % 3 == 0) {
                    others.push(start(cluster.join().unwrap()));
                }
            };
            if replacement % 2 == 0 {
                // Between the certificate and the plan, while the one that stays is held there.
                replace();
                release.send(()).unwrap();
            } else {
                // Anywhere in the epoch, or in a later one.
                release.send(()).unwrap();
                std::thread::sleep(Duration::from_micros(u64::from(replacement) * 7919 % 4000));
                replace();
            }
        }
        drop(release);
        let mut outcomes = vec![staying.join().unwrap().unwrap()];
        for other in others {
            match other.join().unwrap() {
                Ok(outcome) => outcomes.push(outcome),
                Err(TrainError::Cluster(Error::Stopped)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(replaced, count, "the job was too short");
        assert!(walked.load(Ordering::Relaxed) > 0, "nobody has begun in the middle");
        outcomes
    })
}

//= OSDI'14 §4.6
//= type=test
#[test]
fn workers_that_join_in_the_middle_change_no_bit_at_delay_0() {
    let data = bundled::adult_train().unwrap();
    let undisturbed = run(&job(0), 1, 1, &data).swap_remove(0).unwrap();
    for outcome in with_replacements(0, 15) {
        assert!(bits(&outcome.weights) == bits(&undisturbed.weights), "the weights are others");
        assert_eq!(outcome.progress, undisturbed.progress);
    }
}

#[test]
fn workers_that_join_in_the_middle_reach_the_optimum_at_delay_4() {
    let outcomes = with_replacements(4, 15);
    for outcome in &outcomes {
        assert_eq!(outcome.ended, Ended::Planned(Reason::GapReached));
        assert!(outcome.certificate.objective <= OPTIMUM * 1.001, "{}", outcome.certificate.objective);
        assert!(bits(&outcome.weights) == bits(&outcomes[0].weights), "workers disagree");
    }
}

#[test]
fn a_worker_of_another_job_is_told_so() {
    let data = bundled::adult_train().unwrap();
    let options = Options { workers: 2, parts: PARTS, ..Options::default() };
    let cluster = Cluster::start(options).unwrap();
    let interrupt = AtomicBool::new(false);
    let (one, other) = (cluster.join().unwrap(), cluster.join().unwrap());
    std::thread::scope(|scope| {
        let interrupt = &interrupt;
        let (data, job) = (&data, job(0));
        // Whoever comes first says what the job is. The other is refused and gone with its client; the first takes its lanes.
        let start =
            |client: Client, job: Job| scope.spawn(move || train(&client, &job, data, interrupt, |_| {}));
        let threads = [start(one, job), start(other, Job { lambda: 11.0, ..job })];
        let outcomes = threads.map(|thread| thread.join().unwrap());
        let refused = outcomes.iter().filter(|outcome| matches!(outcome, Err(TrainError::OtherJob { .. })));
        assert_eq!(refused.count(), 1, "{outcomes:?}");
        let done = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok());
        assert_eq!(done.count(), 1);
    });
}

/// A file in the system's folder for such, gone with the guard.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("rangefold-{}-{name}", std::process::id()));
        std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing depends on it.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_malformed_line_is_named_with_file_line_and_column() {
    let file = Scratch::new("malformed.svm", "+1 1:1 3:0.5\n-1 2:1\n+1 1:1 4:x\n-1 1:2\n-1 1:2\n");
    let data = Mapping::open(&file.0).unwrap();
    for error in run(&Job { parts: 2, ..job(0) }, 2, 1, &data) {
        let text = error.unwrap_err().to_string();
        let place = format!("{}:3:10: expected a finite number, found `x`", file.0.display());
        assert_eq!(text, place);
    }
}

#[test]
fn files_that_differ_are_not_trained_on_together() {
    // As many rows, features and values, and other labels.
    let one = Scratch::new("one.svm", "+1 1:1\n-1 2:1\n+1 1:1\n-1 2:1\n");
    let other = Scratch::new("other.svm", "-1 1:1\n+1 2:1\n-1 1:1\n+1 2:1\n");
    let data = [&one, &other].map(|file| Mapping::open(&file.0).unwrap());
    let cluster = Cluster::start(Options { workers: 2, parts: 2, ..Options::default() }).unwrap();
    let clients = [cluster.join().unwrap(), cluster.join().unwrap()];
    let interrupt = AtomicBool::new(false);
    let job = Job { parts: 2, lambda: 0.1, ..job(0) };
    let outcomes = std::thread::scope(|scope| {
        let threads = clients.into_iter().zip(&data).map(|(client, data)| {
            let (job, interrupt) = (&job, &interrupt);
            scope.spawn(move || train(&client, job, data, interrupt, |_| {}))
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let refused = outcomes.iter().filter(|outcome| matches!(outcome, Err(TrainError::OtherJob { .. })));
    assert_eq!(refused.count(), 1, "{outcomes:?}");
}

#[test]
fn more_features_than_a_round_can_carry_are_refused_before_memory_is_taken() {
    let file = Scratch::new("wide.svm", "+1 1:1\n-1 2000000000:1\n+1 1:1\n-1 2:1\n");
    let data = Mapping::open(&file.0).unwrap();
    let error = run(&job(0), 1, 2, &data).swap_remove(0).unwrap_err();
    let most = 2 * (16 << 20) / (u64::from(PARTS) * 8);
    assert!(
        matches!(error, TrainError::TooManyFeatures { features: 2_000_000_000, most: at, .. } if at == most),
        "{error}"
    );
}

#[test]
fn a_file_without_rows_is_named() {
    let file = Scratch::new("empty.svm", "\n# nothing\n");
    let data = Mapping::open(&file.0).unwrap();
    let error = run(&job(0), 1, 1, &data).swap_remove(0).unwrap_err().to_string();
    assert_eq!(error, format!("{} has no rows", file.0.display()));
}

#[test]
fn more_parts_than_rows_are_refused() {
    let file = Scratch::new("short.svm", "+1 1:1\n-1 2:1\n");
    let data = Mapping::open(&file.0).unwrap();
    let outcomes = run(&job(0), 1, 1, &data);
    assert!(matches!(outcomes[0], Err(TrainError::TooManyParts { parts: 4, rows: 2 })));
}
