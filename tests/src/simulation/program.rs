//! What a lane does in a round: a pure function of seed, lane and round, so that a lane that is done again by another worker
//! contributes the same.

use rangefold_proto::{KeyRange, Lane, Round};

use super::chance::Chance;
use super::scenario::Scenario;

/// One step of a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Add one to the lane's column of these keys.
    Push {
        /// Of which table, by position.
        table: usize,
        /// Which keys.
        range: KeyRange,
    },
    /// Read these keys.
    Pull {
        /// Of which table, by position.
        table: usize,
        /// Which keys.
        range: KeyRange,
        /// Whether the lane's own pushes must be in.
        own: bool,
    },
}

/// The steps of a lane's round. The first two are pushes; an aggregated table, the last one, gets one push at most.
#[must_use]
pub fn steps(scenario: &Scenario, lane: Lane, round: Round) -> Vec<Step> {
    let mut chance = Chance::new(scenario.seed, 0x1000_0000 + (u64::from(lane.0) << 32) + u64::from(round));
    let aggregated = scenario.tau.is_some().then(|| scenario.tables.len() - 1);
    let direct = scenario.tables.len() as u64 - u64::from(aggregated.is_some());
    let mut steps = Vec::new();
    for _ in 0..2 {
        let table = usize::try_from(chance.within(0..direct)).unwrap_or(0);
        steps.push(Step::Push { table, range: range(scenario, table, &mut chance) });
    }
    if let Some(table) = aggregated.filter(|_| chance.percent(70)) {
        let range = range(scenario, table, &mut chance);
        steps.push(Step::Push { table, range: KeyRange::new(range.start, range.end.min(range.start + 16)) });
    }
    for _ in 0..chance.within(0..3) {
        let table = usize::try_from(chance.within(0..scenario.tables.len() as u64)).unwrap_or(0);
        let own = Some(table) != aggregated && chance.percent(50);
        steps.push(Step::Pull { table, range: range(scenario, table, &mut chance), own });
    }
    // Pulls may come first; the order of pushes is the program's as well.
    let len = steps.len() as u64;
    for index in 0..steps.len() {
        let other = usize::try_from(chance.within(0..len)).unwrap_or(0);
        steps.swap(index, other);
    }
    steps
}

fn range(scenario: &Scenario, table: usize, chance: &mut Chance) -> KeyRange {
    let len = scenario.tables[table].len;
    let start = chance.within(0..len);
    KeyRange::new(start, chance.within(start + 1..len + 1))
}
