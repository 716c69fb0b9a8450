//! Knows: how a file is cut into parts, and one part as sparse columns.
//! Knows not: weights, margins, which worker holds which part.
//! Called by: workers at the start of a job, `reference`.
//! Paper: OSDI'14 §4.6 (data are handed out by ranges); the columns serve the feature blocks of Algorithm 3.

use std::ops::Range;

use crate::libsvm::{MalformedLine, RowReader};
use crate::mapping::Mapping;

/// A file or a part of it could not be loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// A line is not libsvm.
    #[error(transparent)]
    Malformed(#[from] MalformedLine),
    /// More rows than a part's 32-bit row numbers can tell apart: cut the file into more parts.
    #[error("{file}: a part has more than {} rows; use more parts", u32::MAX)]
    TooManyRows {
        /// The file's name.
        file: String,
    },
}

/// What one look at a whole file shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Survey {
    /// Rows.
    pub rows: u64,
    /// Features of the file: its largest index. The constant feature is not among them.
    pub features: u32,
    /// Pairs.
    pub nonzeros: u64,
    /// Rows labelled +1.
    pub positives: u64,
    /// CRC-64/NVME of the file: workers that read different data must not train together.
    pub checksum: u64,
}

impl Survey {
    /// Length of the weights: the file's features and the constant one behind them.
    #[must_use]
    pub fn weights_len(&self) -> usize {
        self.features as usize + 1
    }
}

/// Reads a whole file once and checks every line. Cost: one parse, about 100 MB/s.
///
/// # Errors
/// The first malformed line.
pub fn survey(mapping: &Mapping) -> Result<Survey, MalformedLine> {
    let checksum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, mapping.bytes());
    let mut survey = Survey { checksum, ..Survey::default() };
    let mut reader = RowReader::new(mapping.name(), mapping.bytes());
    let mut pairs = Vec::new();
    while let Some(label) = reader.next_row(&mut pairs)? {
        survey.rows += 1;
        survey.positives += u64::from(label > 0.0);
        survey.nonzeros += pairs.len() as u64;
        survey.features = survey.features.max(pairs.last().map_or(0, |pair| pair.0 + 1));
    }
    Ok(survey)
}

/// Cuts a file into `count` byte ranges of nearly equal length that begin and end between lines.
///
/// Every byte is in exactly one range, so every row is in exactly one part; ranges may be empty. They depend on the
/// bytes and on `count` only. Cost: one look at about `count` lines.
#[must_use]
pub fn cut(bytes: &[u8], count: usize) -> Vec<Range<usize>> {
    let border = |number: usize| {
        let nominal = (bytes.len() as u128 * number as u128 / count as u128) as usize;
        if number == count || nominal == 0 {
            return nominal;
        }
        // A border in the middle of a line moves behind it; one that is between lines already stays.
        let line_end = bytes[nominal - 1..].iter().position(|&byte| byte == b'\n');
        line_end.map_or(bytes.len(), |length| nominal + length)
    };
    (0..count).map(|number| border(number)..border(number + 1)).collect()
}

/// Sparse columns: the pairs of a part, by feature.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Columns {
    /// Where each column starts in the two below: `[features + 1]`, ascending.
    starts: Vec<usize>,
    /// Rows, ascending in each column: `[nonzeros]`.
    rows: Vec<u32>,
    /// Values: `[nonzeros]`.
    values: Vec<f64>,
}

impl Columns {
    /// Number of columns.
    #[must_use]
    pub fn count(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// Rows (ascending) and values of a column, both `[n]`. Cost: none.
    ///
    /// # Panics
    /// `feature >= count()`.
    #[must_use]
    pub fn column(&self, feature: usize) -> (&[u32], &[f64]) {
        let range = self.starts[feature]..self.starts[feature + 1];
        (&self.rows[range.clone()], &self.values[range])
    }
}

/// The rows of a part: labels, and pairs by column. The constant feature is not stored.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Part {
    /// +1.0 or -1.0 by row, in the order of the file: `[rows]`.
    pub labels: Vec<f64>,
    /// The file's features.
    pub columns: Columns,
    /// Pairs of the longest row.
    pub longest_row: usize,
}

impl Part {
    /// Loads the rows in one byte range of a file (from [`cut`]) whose largest index is `features`.
    ///
    /// Cost: one parse, then one pass to turn rows into columns. Memory: 12 bytes per pair and 8 per row and feature
    /// stay; while loading, 16 bytes per pair more.
    ///
    /// # Errors
    /// A malformed line, an index above `features`, too many rows.
    pub fn load(mapping: &Mapping, range: Range<usize>, features: u32) -> Result<Self, LoadError> {
        let mut reader = RowReader::of_range(mapping.name(), mapping.bytes(), range).with_index_max(features);
        let mut part = Self::default();
        let mut starts = vec![0; features as usize + 1];
        let (mut pairs, mut row_pairs, mut row_ends) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(label) = reader.next_row(&mut pairs)? {
            part.labels.push(label);
            part.longest_row = part.longest_row.max(pairs.len());
            for &(feature, _) in &pairs {
                starts[feature as usize + 1] += 1;
            }
            row_pairs.extend_from_slice(&pairs);
            row_ends.push(row_pairs.len());
        }
        if u32::try_from(part.labels.len()).is_err() {
            return Err(LoadError::TooManyRows { file: mapping.name().to_owned() });
        }
        for feature in 0..features as usize {
            starts[feature + 1] += starts[feature];
        }
        let mut next = starts.clone();
        let mut rows = vec![0; row_pairs.len()];
        let mut values = vec![0.0; row_pairs.len()];
        let mut begin = 0;
        for (row, &end) in (0_u32..).zip(&row_ends) {
            for &(feature, value) in &row_pairs[begin..end] {
                let slot = &mut next[feature as usize];
                rows[*slot] = row;
                values[*slot] = value;
                *slot += 1;
            }
            begin = end;
        }
        part.columns = Columns { starts, rows, values };
        Ok(part)
    }

    /// Cuts a whole file into `count` parts and loads them all. Cost: that of [`Part::load`] for each.
    ///
    /// # Errors
    /// Those of [`Part::load`].
    pub fn load_all(mapping: &Mapping, features: u32, count: usize) -> Result<Vec<Self>, LoadError> {
        cut(mapping.bytes(), count).into_iter().map(|range| Self::load(mapping, range, features)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundled;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_cover_every_line_once(text in "[a\n]{0,60}", count in 1_usize..70) {
            let ranges = cut(text.as_bytes(), count);
            prop_assert_eq!(ranges.len(), count);
            let mut position = 0;
            for range in ranges {
                prop_assert_eq!(range.start, position);
                prop_assert!(range.end >= range.start);
                prop_assert!(range.start == 0 || text.as_bytes()[range.start - 1] == b'\n' || range.start == text.len());
                position = range.end;
            }
            prop_assert_eq!(position, text.len());
        }
    }

    #[test]
    fn parts_are_nearly_equal() {
        let mapping = bundled::adult_test().unwrap();
        for range in cut(mapping.bytes(), 8) {
            assert!(range.len().abs_diff(mapping.bytes().len() / 8) < 200);
        }
    }

    #[test]
    fn survey_counts_what_the_readme_says() {
        let survey = survey(&bundled::adult_train().unwrap()).unwrap();
        let Survey { rows, features, nonzeros, positives, .. } = survey;
        assert_eq!((rows, features, nonzeros, positives), (39_099, 122, 547_386, 9_360));
    }

    #[test]
    fn the_rows_of_all_parts_are_the_rows_of_the_file() {
        let mapping = bundled::adult_test().unwrap();
        let whole = Part::load(&mapping, 0..mapping.bytes().len(), 122).unwrap();
        for count in [1, 2, 3, 8, 20_000] {
            let parts = Part::load_all(&mapping, 122, count).unwrap();
            assert_eq!(parts.len(), count);
            let labels: Vec<f64> = parts.iter().flat_map(|part| part.labels.clone()).collect();
            assert_eq!(labels, whole.labels);
            for feature in 0..122 {
                let mut rows_before = 0;
                let (mut rows, mut values) = (Vec::new(), Vec::new());
                for part in &parts {
                    let column = part.columns.column(feature);
                    rows.extend(column.0.iter().map(|row| row + rows_before));
                    values.extend_from_slice(column.1);
                    rows_before += u32::try_from(part.labels.len()).unwrap();
                }
                assert_eq!((&rows[..], &values[..]), whole.columns.column(feature));
            }
        }
    }

    #[test]
    fn an_index_that_the_model_lacks_is_an_error() {
        let mapping = bundled::adult_test().unwrap();
        let error = Part::load(&mapping, 0..mapping.bytes().len(), 100).unwrap_err();
        assert!(error.to_string().contains("an index from 1 to 100"), "{error}");
    }
}
