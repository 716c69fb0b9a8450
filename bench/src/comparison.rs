//! Rows that are compared with each other, and the order in which they are measured.
//! Knows no row's insides; called by `main.rs`, which lists them.

use std::time::Instant;

use crate::cores;
use crate::results::{Label, Results};

/// What a row is there for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// The most that the machine can do; ours is divided by it.
    Ceiling,
    /// What a plain program does; for the reader.
    Baseline,
    /// Rangefold.
    Ours,
}

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unit {
    /// Of payload; more is better.
    GigabytesPerSecond,
    /// Of messages; more is better.
    MillionsPerSecond,
    /// Less is better.
    Microseconds,
}

type Measure<'a> = Box<dyn FnMut() -> anyhow::Result<f64> + 'a>;

/// Rows of one unit: ceilings, baselines and ours. With several ceilings the best of each repeat is the ceiling.
pub(crate) struct Comparison<'a> {
    name: &'static str,
    unit: Unit,
    rows: Vec<(Kind, &'static str, Measure<'a>)>,
}

impl<'a> Comparison<'a> {
    pub(crate) fn new(name: &'static str, unit: Unit) -> Self {
        Self { name, unit, rows: Vec::new() }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn ceiling(
        self,
        name: &'static str,
        measure: impl FnMut() -> anyhow::Result<f64> + 'a,
    ) -> Self {
        self.row(Kind::Ceiling, name, measure)
    }

    pub(crate) fn baseline(
        self,
        name: &'static str,
        measure: impl FnMut() -> anyhow::Result<f64> + 'a,
    ) -> Self {
        self.row(Kind::Baseline, name, measure)
    }

    pub(crate) fn ours(self, name: &'static str, measure: impl FnMut() -> anyhow::Result<f64> + 'a) -> Self {
        self.row(Kind::Ours, name, measure)
    }

    /// A row of ours for each of several.
    pub(crate) fn each<T>(
        self,
        all: &'a [(&'static str, T)],
        measure: impl Fn(&T) -> anyhow::Result<f64> + Copy + 'a,
    ) -> Self {
        self.each_so(all, "", measure)
    }

    /// A row of ours for each of several, done in a way that `how` names.
    pub(crate) fn each_so<T>(
        self,
        all: &'a [(&'static str, T)],
        how: &str,
        measure: impl Fn(&T) -> anyhow::Result<f64> + Copy + 'a,
    ) -> Self {
        // There are a few names, for as long as the program runs.
        let name = |of: &str| &*Box::leak(format!("{of}{how}").into_boxed_str());
        all.iter().fold(self, |this, (of, one)| this.ours(name(of), move || measure(one)))
    }

    fn row(
        mut self,
        kind: Kind,
        name: &'static str,
        measure: impl FnMut() -> anyhow::Result<f64> + 'a,
    ) -> Self {
        self.rows.push((kind, name, Box::new(measure)));
        self
    }

    fn label(&self, row: usize) -> Label {
        let (kind, name, _) = self.rows[row];
        Label { comparison: self.name, unit: self.unit, kind, name }
    }
}

/// All rows, in the order in which they were listed.
pub(crate) fn labels(comparisons: &[Comparison<'_>]) -> Vec<Label> {
    comparisons.iter().flat_map(|all| (0..all.rows.len()).map(|row| all.label(row))).collect()
}

/// Measures every row once into `results`. Rows of a comparison follow each other, so that they share the state of the
/// machine; every other repeat takes them backwards, so that none always comes after the same one.
pub(crate) fn measure(
    comparisons: &mut [Comparison<'_>],
    repeat: usize,
    results: &mut Results,
) -> anyhow::Result<()> {
    for comparison in comparisons {
        let mut order: Vec<usize> = (0..comparison.rows.len()).collect();
        if !repeat.is_multiple_of(2) {
            order.reverse();
        }
        for row in order {
            let label = comparison.label(row);
            let before = cores::distance();
            let begun = Instant::now();
            let value = (comparison.rows[row].2)()
                .map_err(|error| error.context(format!("{}, {}", label.comparison, label.name)))?;
            anyhow::ensure!(
                value > 0.0,
                "{}, {}: nothing in {:?}",
                label.comparison,
                label.name,
                begun.elapsed()
            );
            let after = cores::distance();
            results.add(label, repeat, (before == after).then_some(before), value);
        }
    }
    Ok(())
}
