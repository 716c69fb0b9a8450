//! What was measured, and what is said of it: per row and distance the spread, and for ours the ratio to the ceiling.
//! Knows values and labels; prints nothing.

use crate::comparison::{Kind, Unit};
use crate::cores::Distance;
use crate::spread::Spread;

/// What a row is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Label {
    pub(crate) comparison: &'static str,
    pub(crate) unit: Unit,
    pub(crate) kind: Kind,
    pub(crate) name: &'static str,
}

/// One measurement. Without a distance: it changed meanwhile, and the value counts for nothing.
struct Measured {
    label: Label,
    repeat: usize,
    distance: Option<Distance>,
    value: f64,
}

/// What is said of one row at one distance.
pub(crate) struct Line {
    pub(crate) label: Label,
    pub(crate) distance: Distance,
    pub(crate) spread: Spread,
    /// For ours: how much of the ceiling is reached, of the repeats in which both were measured at this distance.
    pub(crate) ratio: Option<Spread>,
}

/// The measurements of a run.
pub(crate) struct Results {
    labels: Vec<Label>,
    all: Vec<Measured>,
}

impl Results {
    /// None yet, of these rows, which will be shown in this order.
    pub(crate) fn new(labels: Vec<Label>) -> Self {
        Self { labels, all: Vec::new() }
    }

    pub(crate) fn add(&mut self, label: Label, repeat: usize, distance: Option<Distance>, value: f64) {
        self.all.push(Measured { label, repeat, distance, value });
    }

    /// By comparison, then distance, then row.
    pub(crate) fn lines(&self) -> Vec<Line> {
        let comparisons = self.labels.chunk_by(|one, next| one.comparison == next.comparison);
        let each = comparisons.flat_map(|labels| {
            Distance::ALL.into_iter().flat_map(|distance| labels.iter().map(move |label| (*label, distance)))
        });
        each.filter_map(|(label, distance)| self.line(label, distance)).collect()
    }

    fn line(&self, label: Label, distance: Distance) -> Option<Line> {
        let own = || self.all.iter().filter(|one| one.label == label && one.distance == Some(distance));
        let spread = Spread::of(own().map(|one| one.value).collect())?;
        let ratio = |one: &Measured| {
            let ceiling = self.ceiling(label, one.repeat, distance)?;
            Some(match label.unit {
                Unit::GigabytesPerSecond | Unit::MillionsPerSecond => one.value / ceiling,
                Unit::Microseconds => ceiling / one.value,
            })
        };
        let ratios = if label.kind == Kind::Ours { own().filter_map(ratio).collect() } else { Vec::new() };
        Some(Line { label, distance, spread, ratio: Spread::of(ratios) })
    }

    /// The best of the comparison's ceilings in one repeat; none unless all of them were measured at this distance.
    fn ceiling(&self, of: Label, repeat: usize, distance: Distance) -> Option<f64> {
        let ceilings = self
            .labels
            .iter()
            .filter(|label| label.comparison == of.comparison && label.kind == Kind::Ceiling);
        let values: Option<Vec<f64>> = ceilings
            .map(|label| {
                let here = |one: &&Measured| {
                    one.label == *label && one.repeat == repeat && one.distance == Some(distance)
                };
                self.all.iter().find(here).map(|one| one.value)
            })
            .collect();
        let best = match of.unit {
            Unit::GigabytesPerSecond | Unit::MillionsPerSecond => f64::max,
            Unit::Microseconds => f64::min,
        };
        values?.into_iter().reduce(best)
    }

    /// How many measurements there are, and each row of which some were dropped, with how many.
    pub(crate) fn dropped(&self) -> (usize, Vec<(Label, usize)>) {
        let count = |label: &Label| {
            let count = self.all.iter().filter(|one| one.label == *label && one.distance.is_none()).count();
            (count > 0).then_some((*label, count))
        };
        (self.all.len(), self.labels.iter().filter_map(count).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Distance::{Far, Near};

    fn label(unit: Unit, kind: Kind, name: &'static str) -> Label {
        Label { comparison: "push", unit, kind, name }
    }

    fn ratio(results: &Results, distance: Distance) -> Option<Spread> {
        let lines = results.lines();
        lines.iter().find(|line| line.label.kind == Kind::Ours && line.distance == distance)?.ratio
    }

    #[test]
    fn ratios_pair_the_same_repeat_at_the_same_distance() {
        let ceiling = label(Unit::GigabytesPerSecond, Kind::Ceiling, "raw");
        let baseline = label(Unit::GigabytesPerSecond, Kind::Baseline, "blocking");
        let ours = label(Unit::GigabytesPerSecond, Kind::Ours, "uring");
        let mut results = Results::new(vec![baseline, ceiling, ours]);
        // 0: both near. 1: apart. 2: the ceiling was dropped. 3: both far. 4: both near.
        let runs = [(Near, Near), (Near, Far), (Near, Near), (Far, Far), (Near, Near)];
        for (repeat, (first, second)) in runs.into_iter().enumerate() {
            results.add(ceiling, repeat, (repeat != 2).then_some(first), 10.0);
            results.add(baseline, repeat, Some(first), 1.0);
            results.add(ours, repeat, Some(second), 4.0 + repeat as f64);
        }
        assert_eq!(ratio(&results, Near), Spread::of(vec![0.4, 0.8]));
        assert_eq!(ratio(&results, Far), Spread::of(vec![0.7]));
        assert_eq!(results.dropped(), (15, vec![(ceiling, 1)]));
        assert!(
            results
                .lines()
                .iter()
                .filter(|line| line.label.kind != Kind::Ours)
                .all(|line| line.ratio.is_none())
        );
    }

    #[test]
    fn times_are_divided_the_other_way_and_the_best_ceiling_counts() {
        let [fast, slow] = ["fast", "slow"].map(|name| label(Unit::Microseconds, Kind::Ceiling, name));
        let ours = label(Unit::Microseconds, Kind::Ours, "uring");
        let mut results = Results::new(vec![slow, fast, ours]);
        for repeat in 0..2 {
            results.add(slow, repeat, Some(Near), 20.0);
            results.add(ours, repeat, Some(Near), 16.0);
        }
        results.add(fast, 1, Some(Near), 8.0);
        assert_eq!(ratio(&results, Near), Spread::of(vec![0.5]));
    }
}
