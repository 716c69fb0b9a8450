//! The one loop over sizes and repeats; a single size is a sweep of one.
//! Knows the order of things: first round, warm-up, timed window, last round. Leads a crew, hands out rows.

use super::crew::{Crew, Ran};
use super::options::{Check, Plan};
use super::row::Row;
use super::size::Shape;
use super::stop::Stop;

/// Measures every shape as often as planned, and calls `done` with the repeats of each. What an interrupt or a lost peer cuts
/// short is handed out as far as it came, with nothing looked at.
///
/// # Errors
/// Why it ended before its time; an error of `done`.
pub(super) fn sweep(
    plan: &Plan,
    crew: &Crew,
    mut done: impl FnMut(&[Row]) -> anyhow::Result<()>,
) -> Result<(), Stop> {
    for shape in &plan.shapes {
        let mut repeats = Vec::new();
        let outcome =
            (1..=plan.repeats).try_for_each(|repeat| measure(plan, crew, shape, repeat, &mut repeats));
        if !repeats.is_empty() {
            done(&repeats).map_err(Stop::Failed)?;
        }
        outcome?;
    }
    Ok(())
}

fn measure(plan: &Plan, crew: &Crew, shape: &Shape, repeat: u32, rows: &mut Vec<Row>) -> Result<(), Stop> {
    let checks = plan.check != Check::None;
    let depth = plan.depth_at(shape);
    let mut wrong = if checks { crew.check(shape)? } else { 0 };
    let warm = crew.run(shape, depth, |_| plan.warmup(shape))?;
    if let Some(stop) = warm.stopped {
        return Err(stop);
    }
    let ran = crew.run(shape, depth, |index| plan.pace(index))?;
    wrong += warm.wrong + ran.wrong;
    let Ran { begun_ns, ended_ns, samples, unsent, stopped, .. } = ran;
    let looked = if stopped.is_none() && checks { Some(crew.check(shape)) } else { None };
    let (wrong, stopped) = match looked {
        Some(Ok(last)) => (Some(wrong + last), stopped),
        Some(Err(stop)) => (None, Some(stop)),
        None => (None, stopped),
    };
    if samples.count() > 0 || stopped.is_none() {
        rows.push(Row {
            shape: *shape,
            repeat,
            depth,
            iterations: samples.count(),
            elapsed_ns: ended_ns.saturating_sub(begun_ns),
            latency: samples.latency(),
            unsent,
            wrong,
        });
    }
    stopped.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};

    use rangefold_transport::wait::Clock;

    use super::*;
    use crate::perf::crew::{Load, Run};
    use crate::perf::options::tests::plan;
    use crate::perf::samples::Samples;

    /// Says what it was told, finds so much wrong in each round, and ends before its time in one run.
    struct Scripted {
        told: Arc<Mutex<Vec<String>>>,
        wrong: u64,
        stops_at: u64,
        runs: AtomicU64,
    }

    impl Load for Scripted {
        fn check(&mut self, shape: &Shape) -> Result<u64, Stop> {
            self.told.lock().unwrap().push(format!("check {}", shape.bytes));
            Ok(self.wrong)
        }

        fn run(&mut self, shape: &Shape, run: &Run) -> Ran {
            self.told.lock().unwrap().push(format!("run {} {}", shape.bytes, run.depth));
            let mut samples = Samples::new();
            samples.record(5);
            let stopped = self.runs.fetch_add(1, Ordering::Relaxed) == self.stops_at;
            let stopped = stopped.then_some(Stop::Interrupted);
            Ran { begun_ns: 10, ended_ns: 30, samples, unsent: 2, wrong: 1, stopped }
        }
    }

    /// What the load was told, the rows that were handed out, and how it ended.
    fn swept(line: &str, wrong: u64, stops_at: u64) -> (String, Vec<Row>, Result<(), Stop>) {
        let told = Arc::<Mutex<Vec<String>>>::default();
        let load = Arc::clone(&told);
        let make =
            move |_| Ok(Scripted { told: Arc::clone(&load), wrong, stops_at, runs: AtomicU64::new(0) });
        let crew = Crew::start(1, &[], Clock::new(), make).unwrap();
        let mut rows = Vec::new();
        let outcome = sweep(&plan(line).unwrap(), &crew, |repeats| {
            rows.extend_from_slice(repeats);
            Ok(())
        });
        let told = told.lock().unwrap().join(", ");
        (told, rows, outcome)
    }

    #[test]
    fn each_size_is_checked_warmed_up_timed_and_checked_again() {
        let (told, rows, outcome) = swept("push --size 8:16 --depth 3", 100, u64::MAX);
        outcome.unwrap();
        assert_eq!(told, "check 8, run 8 3, run 8 3, check 8, check 16, run 16 3, run 16 3, check 16");
        assert_eq!(rows.len(), 2);
        // Wrong of both rounds and of both runs; the warm-up is in nothing else.
        assert_eq!((rows[0].wrong, rows[0].iterations, rows[0].elapsed_ns), (Some(202), 1, 20));
        let (told, rows, _) = swept("push --size 8 --check none", 100, u64::MAX);
        assert_eq!((told.as_str(), rows[0].wrong), ("run 8 16, run 8 16", None));
    }

    #[test]
    fn one_size_is_measured_as_one_of_a_sweep_is() {
        let (_, sweep, _) = swept("push --size 8:16 --repeats 2", 0, u64::MAX);
        let (_, alone, _) = swept("push --size 16 --repeats 2", 0, u64::MAX);
        assert_eq!(sweep[2..], alone);
        assert_eq!(alone.iter().map(|row| row.repeat).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn what_is_cut_short_is_handed_out_unlooked_at_and_nothing_follows() {
        // The timed run of the second size.
        let (told, rows, outcome) = swept("push --size 8:32", 0, 3);
        assert!(matches!(outcome, Err(Stop::Interrupted)));
        assert!(told.ends_with("check 16, run 16 16, run 16 16"), "{told}");
        assert_eq!(rows.iter().map(|row| row.wrong).collect::<Vec<_>>(), [Some(2), None]);
        // Its warm-up: nothing was timed.
        let (_, rows, outcome) = swept("push --size 8:32", 0, 2);
        assert!(matches!(outcome, Err(Stop::Interrupted)) && rows.len() == 1);
    }
}
