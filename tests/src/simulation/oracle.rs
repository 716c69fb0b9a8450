//! What may be true: every push issued, every key it was applied to, and what acknowledgements and answers promise.
//! Knows the invariants of protocol.md §14; not how anything travels. Told by nodes (as their observer) and workers.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use rangefold_kvstore::Observe;
use rangefold_proto::client::TaskId;
use rangefold_proto::table::Aggregation;
use rangefold_proto::{Incarnation, Key, KeyRange, Lane, Round, SegmentId, Stamp, TableId, View};

use super::program::{Step, steps};
use super::scenario::Scenario;

#[derive(Clone, Copy, Debug)]
struct Issued {
    stamp: Stamp,
    round: Round,
    table: TableId,
    range: KeyRange,
}

/// A pull that was issued, and what it may expect.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Of which table.
    pub table: TableId,
    /// Which keys.
    pub range: KeyRange,
    /// Rounds that must be in, of every member.
    pub rounds_needed: Round,
    /// The issuer's view.
    pub view: View,
    /// The issuer's own pushes up to this stamp must be in.
    pub own: Option<(Lane, Stamp)>,
}

/// Everything that was issued and applied.
#[derive(Debug)]
pub struct Oracle {
    scenario: Scenario,
    tables: Vec<TableId>,
    issued: BTreeMap<(Lane, Incarnation), Vec<Issued>>,
    /// Per table, key and lane: what was applied, in that order. Stamps, or rounds of an aggregated table.
    history: BTreeMap<(TableId, Key, Lane), Vec<u64>>,
    /// Per lane: the keys it contributes to in each round.
    contributions: BTreeMap<Lane, Vec<Option<KeyRange>>>,
    broken: Option<String>,
}

/// The oracle as nodes see it.
#[derive(Clone, Debug)]
pub struct Witness(pub Rc<RefCell<Oracle>>);

impl Observe for Witness {
    fn applied(&mut self, segment: SegmentId, lane: Lane, stamp: Stamp, values: KeyRange) {
        let mut oracle = self.0.borrow_mut();
        if let Err(broken) = oracle.applied(segment.table(), lane, stamp, values) {
            oracle.broken.get_or_insert(broken);
        }
    }
}

impl Oracle {
    /// Nothing has happened.
    #[must_use]
    pub fn new(scenario: &Scenario, tables: Vec<TableId>) -> Self {
        let contribution = |lane, round| {
            steps(scenario, lane, round).into_iter().find_map(|step| match step {
                Step::Push { table, range } if scenario.tables[table].aggregation == Aggregation::Round => {
                    Some(range)
                }
                _ => None,
            })
        };
        let of_lane = |lane| (0..scenario.rounds).map(|round| contribution(lane, round)).collect();
        Self {
            scenario: scenario.clone(),
            tables,
            issued: BTreeMap::new(),
            history: BTreeMap::new(),
            contributions: (0..scenario.parts).map(|lane| (Lane(lane), of_lane(Lane(lane)))).collect(),
            broken: None,
        }
    }

    /// The first invariant that was broken.
    #[must_use]
    pub fn broken(&self) -> Option<String> {
        self.broken.clone()
    }

    fn aggregated(&self, table: TableId) -> bool {
        let index = self.tables.iter().position(|&id| id == table);
        index.is_some_and(|index| self.scenario.tables[index].aggregation == Aggregation::Round)
    }

    /// A lane has issued a push.
    pub fn issued(&mut self, task: TaskId, round: Round, table: TableId, range: KeyRange) {
        let issued = Issued { stamp: task.stamp, round, table, range };
        self.issued.entry((task.lane, task.stamp.incarnation())).or_default().push(issued);
    }

    fn find(&self, lane: Lane, stamp: Stamp) -> Option<(usize, Issued)> {
        let list = self.issued.get(&(lane, stamp.incarnation()))?;
        let at = list.binary_search_by_key(&stamp, |issued| issued.stamp).ok()?;
        Some((at, list[at]))
    }

    /// X1, X2, X3 and T-c, at every application.
    fn applied(&mut self, table: TableId, lane: Lane, stamp: Stamp, values: KeyRange) -> Result<(), String> {
        let Some((at, issued)) = self.find(lane, stamp) else {
            return Err(format!("{lane} {stamp:?} was never issued"));
        };
        if issued.table != table || !issued.range.covers(values) {
            return Err(format!("{lane} {stamp:?} is {issued:?} and was applied to {values:?} of {table}"));
        }
        let aggregated = self.aggregated(table);
        for key in values.start..values.end {
            let touches =
                |issued: &&Issued| issued.table == table && issued.range.covers(KeyRange::new(key, key + 1));
            let list = &self.issued[&(lane, stamp.incarnation())];
            let history = self.history.entry((table, key, lane)).or_default();
            let last = history.last().copied();
            if aggregated {
                let touched = self.contributions[&lane].iter().take(issued.round as usize);
                let before =
                    touched.flatten().filter(|range| range.covers(KeyRange::new(key, key + 1))).count();
                if last.is_some_and(|last| last >= u64::from(issued.round)) || history.len() != before {
                    return Err(format!(
                        "T-c key {key}: round {} of {lane} after {last:?}, {} of {before} before it",
                        issued.round,
                        history.len()
                    ));
                }
                history.push(u64::from(issued.round));
            } else {
                let previous = list[..at].iter().rev().find(touches).map(|issued| issued.stamp.0);
                let floor = stamp.incarnation().floor().0;
                let own = last.filter(|&last| last > floor);
                if last.is_some_and(|last| last >= stamp.0) {
                    return Err(format!(
                        "X1/X2 key {key} of {table}: {lane} {stamp:?} after {:?}",
                        last.map(Stamp)
                    ));
                }
                if own != previous {
                    let (own, previous) = (own.map(Stamp), previous.map(Stamp));
                    return Err(format!(
                        "X3 key {key} of {table}: {lane} {stamp:?} after {own:?}, not {previous:?}"
                    ));
                }
                history.push(stamp.0);
            }
        }
        Ok(())
    }

    /// X4: what a worker was told is in the values.
    ///
    /// # Errors
    /// The key that misses it.
    pub fn acknowledged(&self, task: TaskId) -> Result<(), String> {
        let Some((_, issued)) = self.find(task.lane, task.stamp) else {
            return Err(format!("{task:?} was never issued"));
        };
        let mark = if self.aggregated(issued.table) { u64::from(issued.round) } else { task.stamp.0 };
        for key in issued.range.start..issued.range.end {
            let history = self.history.get(&(issued.table, key, task.lane));
            if history.is_none_or(|history| history.binary_search(&mark).is_err()) {
                return Err(format!(
                    "X4 {task:?} was acknowledged and is not in key {key} of {}",
                    issued.table
                ));
            }
        }
        Ok(())
    }

    /// T-a: an answered pull holds what its consistency promises, and nothing that was never applied.
    ///
    /// # Errors
    /// The key and lane that miss something.
    pub fn answered(&self, expected: &Expected, values: &[f64], current: &View) -> Result<(), String> {
        let width = self.scenario.parts as usize;
        let aggregated = self.aggregated(expected.table);
        for (row, key) in values.chunks_exact(width).zip(expected.range.start..) {
            for (column, lane) in row.iter().zip((0..).map(Lane)) {
                let history = self.history.get(&(expected.table, key, lane)).map_or(0, Vec::len);
                if *column > history as f64 {
                    return Err(format!(
                        "key {key} of {}: {column} pushes of {lane}, {history} applied",
                        expected.table
                    ));
                }
                let Some(member) =
                    expected.view.member(lane).filter(|member| current.member(lane) == Some(member))
                else {
                    continue;
                };
                let rounds = expected.rounds_needed;
                let touches = |range: &KeyRange| range.covers(KeyRange::new(key, key + 1));
                let least = if aggregated {
                    self.contributions[&lane]
                        .iter()
                        .take(rounds as usize)
                        .flatten()
                        .filter(|range| touches(range))
                        .count()
                } else {
                    let own = expected.own.filter(|(of, _)| *of == lane).map(|(_, stamp)| stamp);
                    let in_time = |i: &&Issued| i.round < rounds || own.is_some_and(|own| i.stamp <= own);
                    let list = self.issued.get(&(lane, member.incarnation)).map_or(&[][..], Vec::as_slice);
                    let of_table = list.iter().filter(|i| i.table == expected.table && touches(&i.range));
                    of_table.filter(in_time).count()
                };
                if *column < least as f64 {
                    return Err(format!(
                        "T-a key {key} of {}: a pull that needs {rounds} rounds sees {column} pushes of {lane}, not {least}",
                        expected.table
                    ));
                }
            }
        }
        Ok(())
    }

    /// At the end: the values are the history, and the history is all that it must be.
    ///
    /// # Errors
    /// The key and lane that differ.
    pub fn finished(&self, table: TableId, range: KeyRange, values: &[f64]) -> Result<(), String> {
        let width = self.scenario.parts as usize;
        for (row, key) in values.chunks_exact(width).zip(range.start..) {
            for (column, lane) in row.iter().zip((0..).map(Lane)) {
                let history = self.history.get(&(table, key, lane)).map_or(0, Vec::len);
                if *column != history as f64 {
                    return Err(format!(
                        "key {key} of {table} holds {column} of {lane}, {history} were applied"
                    ));
                }
                let touches = |range: &KeyRange| range.covers(KeyRange::new(key, key + 1));
                let all = if self.aggregated(table) {
                    self.contributions[&lane].iter().flatten().filter(|range| touches(range)).count()
                } else {
                    // What a lane's last holder issued is all there; of former holders, whatever was applied in time.
                    let last =
                        self.issued.range((lane, Incarnation(0))..=(lane, Incarnation(u32::MAX))).next_back();
                    let Some((&(_, incarnation), list)) = last else { continue };
                    let all = list.iter().filter(|i| i.table == table && touches(&i.range)).count();
                    let floor = incarnation.floor().0;
                    let history = self.history.get(&(table, key, lane)).map_or(&[][..], Vec::as_slice);
                    let held = history.iter().filter(|&&stamp| stamp > floor).count();
                    if held != all {
                        let stamps: Vec<Stamp> = history.iter().map(|&stamp| Stamp(stamp)).collect();
                        return Err(format!(
                            "key {key} of {table} has {held} of {all} pushes of {lane} under {incarnation:?}: {stamps:?}"
                        ));
                    }
                    continue;
                };
                if history != all {
                    return Err(format!("key {key} of {table} has {history} of {all} rounds of {lane}"));
                }
            }
        }
        Ok(())
    }
}
