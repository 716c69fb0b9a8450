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
