//! Knows: how well weights tell the classes of a file apart.
//! Knows not: how the weights were found.
//! Called by: the program that trains, when it reports on held-out data.
//! Paper: none.

use crate::libsvm::{MalformedLine, RowReader};
use crate::mapping::Mapping;

/// Scores and labels of the rows of a file, in its order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scores {
    /// Margins: `[rows]`.
    pub scores: Vec<f64>,
    /// +1.0 or -1.0: `[rows]`.
    pub labels: Vec<f64>,
}

/// Scores every row of a file. `weights: [weights_len]`, the constant's last; features beyond the model count nothing.
///
/// Cost: one parse. Memory: 16 bytes per row.
///
/// # Errors
/// The first malformed line.
pub fn score(mapping: &Mapping, weights: &[f64]) -> Result<Scores, MalformedLine> {
    let (&constant, weights) = weights.split_last().unwrap_or((&0.0, &[]));
    let mut result = Scores::default();
    let mut reader = RowReader::new(mapping.name(), mapping.bytes());
    let mut pairs = Vec::new();
    while let Some(label) = reader.next_row(&mut pairs)? {
        let product =
            |&(feature, value): &(u32, f64)| value * weights.get(feature as usize).copied().unwrap_or(0.0);
        result.scores.push(pairs.iter().map(product).sum::<f64>() + constant);
        result.labels.push(label);
    }
    Ok(result)
}

impl Scores {
    /// The area under the ROC curve: the share of pairs (positive, negative) in which the positive has the larger
    /// score, equal scores counting half. `None` if a class is missing. Cost: a sort.
    #[must_use]
    pub fn area_under_curve(&self) -> Option<f64> {
        let mut order: Vec<usize> = (0..self.scores.len()).collect();
        order.sort_unstable_by(|&left, &right| self.scores[left].total_cmp(&self.scores[right]));
        let (mut positives, mut negatives, mut twice_won) = (0_u64, 0_u64, 0_u128);
        for ties in order.chunk_by(|&left, &right| self.scores[left] == self.scores[right]) {
            let of_positives = ties.iter().filter(|&&row| self.labels[row] > 0.0).count() as u64;
            let of_negatives = ties.len() as u64 - of_positives;
            twice_won += u128::from(of_positives) * u128::from(2 * negatives + of_negatives);
            positives += of_positives;
            negatives += of_negatives;
        }
        let pairs = u128::from(positives) * u128::from(negatives);
        (pairs > 0).then(|| twice_won as f64 / (2.0 * pairs as f64))
    }

    /// The share of rows whose score has the sign of their label; a score of 0 is taken for the negative class. `None`
    /// if there are no rows.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        let right = self
            .scores
            .iter()
            .zip(&self.labels)
            .filter(|&(&score, &label)| (score > 0.0) == (label > 0.0))
            .count();
        (!self.scores.is_empty()).then(|| right as f64 / self.scores.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive_area(scores: &Scores) -> Option<f64> {
        let rows = || scores.scores.iter().zip(&scores.labels);
        let (mut won, mut pairs) = (0.0, 0.0);
        for (positive, _) in rows().filter(|row| *row.1 > 0.0) {
            for (negative, _) in rows().filter(|row| *row.1 < 0.0) {
                pairs += 1.0;
                won += if positive > negative {
                    1.0
                } else if positive == negative {
                    0.5
                } else {
                    0.0
                };
            }
        }
        (pairs > 0.0).then_some(won / pairs)
    }

    proptest! {
        #[test]
        fn area_agrees_with_counting_pairs(rows in proptest::collection::vec((any::<bool>(), 0_i8..8), 0..60)) {
            let scores = Scores {
                scores: rows.iter().map(|row| f64::from(row.1)).collect(),
                labels: rows.iter().map(|row| if row.0 { 1.0 } else { -1.0 }).collect(),
            };
            match (scores.area_under_curve(), naive_area(&scores)) {
                (Some(ours), Some(naive)) => prop_assert!((ours - naive).abs() < 1e-12),
                (ours, naive) => prop_assert_eq!(ours, naive),
            }
        }
    }

    #[test]
    fn accuracy_counts_signs() {
        let scores = Scores { scores: vec![1.0, -1.0, 0.0, 2.0], labels: vec![1.0, 1.0, -1.0, -1.0] };
        assert_eq!(scores.accuracy(), Some(0.5));
        assert_eq!(Scores::default().accuracy(), None);
        assert_eq!(Scores::default().area_under_curve(), None);
    }
}
