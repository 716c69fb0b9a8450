//! Knows: the libsvm text format, row by row, and where a line breaks it.
//! Knows not: parts, columns, the constant feature.
//! Called by: `part`, `metrics`.
//! Paper: none; the format is that of LIBSVM's README.
//!
//! A row is a label (`+1`, `1`, `-1`, or `0` for the negative class) and pairs `index:value` behind it, parted by
//! spaces or tabs; indices start at 1 and ascend strictly; values are finite. Empty lines are skipped, `#` starts
//! a comment, a line ends with LF or CR LF, and the last one may have no end. Memory is bounded: the reader holds no
//! more than the caller's buffer of one row.

use std::fmt;
use std::ops::Range;

/// The largest index in a file; one more is left for the constant feature.
pub const INDEX_MAX: u32 = i32::MAX as u32 - 1;

/// Bytes of a piece of the input that an error shows.
const FOUND_BYTES_MAX: usize = 40;

/// A line that is not libsvm.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: expected {expected}, found {found}")]
pub struct MalformedLine {
    /// The file's name.
    pub file: String,
    /// Line in the file, from 1.
    pub line: u64,
    /// Byte in the line, from 1.
    pub column: u64,
    /// What would have been right here.
    pub expected: Expected,
    /// What was here instead, cut to 40 bytes, unprintable bytes escaped.
    pub found: String,
}

/// What the format asks for at some place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// A class.
    Label,
    /// A pair with a colon.
    Pair,
    /// An index within the limits.
    Index {
        /// The largest one allowed.
        max: u32,
    },
    /// An index above its left neighbour's.
    IndexAbove(u32),
    /// A value.
    FiniteNumber,
}

impl fmt::Display for Expected {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label => formatter.write_str("a label (+1, 1, -1 or 0)"),
            Self::Pair => formatter.write_str("index:value"),
            Self::Index { max } => write!(formatter, "an index from 1 to {max}"),
            Self::IndexAbove(previous) => write!(formatter, "an index above {previous} (indices ascend)"),
            Self::FiniteNumber => formatter.write_str("a finite number"),
        }
    }
}

/// One pair of a row: a feature from 0 (the file's index less 1) and its value.
pub type Pair = (u32, f64);

/// Reads rows from a range of a file's bytes.
#[derive(Debug, Clone)]
pub struct RowReader<'a> {
    file: &'a str,
    /// The whole file, so that an error can count its lines.
    bytes: &'a [u8],
    position: usize,
    end: usize,
    index_max: u32,
}

/// What is wrong in a line, before lines are counted: an offset in the line and a piece of it.
struct Fault<'a> {
    offset: usize,
    expected: Expected,
    found: &'a [u8],
}

impl<'a> RowReader<'a> {
    /// A reader of all rows of a file. Cost: none.
    #[must_use]
    pub fn new(file: &'a str, bytes: &'a [u8]) -> Self {
        Self::of_range(file, bytes, 0..bytes.len())
    }

    /// A reader of the rows in a byte range, which starts at the start of a line; a range beyond the end is cut.
    #[must_use]
    pub fn of_range(file: &'a str, bytes: &'a [u8], range: Range<usize>) -> Self {
        let end = range.end.min(bytes.len());
        Self { file, bytes, position: range.start.min(end), end, index_max: INDEX_MAX }
    }

    /// The same reader, which refuses indices above `index_max` (0 refuses all of them).
    #[must_use]
    pub fn with_index_max(mut self, index_max: u32) -> Self {
        self.index_max = index_max.min(INDEX_MAX);
        self
    }

    /// Reads the next row: replaces `pairs` by its pairs, ascending, and returns its label, +1.0 or -1.0; `None` at
    /// the end. Cost: one look at every byte, and number parsing.
    ///
    /// # Errors
    /// The line is malformed; the reader stands behind it and may be asked to go on.
    pub fn next_row(&mut self, pairs: &mut Vec<Pair>) -> Result<Option<f64>, MalformedLine> {
        while self.position < self.end {
            let start = self.position;
            let rest = &self.bytes[start..self.end];
            let line = match rest.iter().position(|&byte| byte == b'\n') {
                Some(length) => {
                    self.position += length + 1;
                    &rest[..length]
                }
                None => {
                    self.position = self.end;
                    rest
                }
            };
            match parse_line(line, self.index_max, pairs) {
                Ok(None) => {}
                Ok(Some(label)) => return Ok(Some(label)),
                Err(fault) => return Err(self.malformed(start, &fault)),
            }
        }
        Ok(None)
    }

    /// Lines are counted here and nowhere else: a part does not know its first line's number, and needs it only now.
    #[cold]
    fn malformed(&self, line_start: usize, fault: &Fault<'_>) -> MalformedLine {
        let lines_before = self.bytes[..line_start].iter().filter(|&&byte| byte == b'\n').count();
        let shown = &fault.found[..fault.found.len().min(FOUND_BYTES_MAX)];
        let ellipsis = if shown.len() < fault.found.len() { ".." } else { "" };
        MalformedLine {
            file: self.file.to_owned(),
            line: lines_before as u64 + 1,
            column: fault.offset as u64 + 1,
            expected: fault.expected,
            found: match shown {
                [] => "nothing".to_owned(),
                _ => format!("`{}{ellipsis}`", shown.escape_ascii()),
            },
        }
    }
}

/// Parses a line without its LF; `None` if there is no row in it.
fn parse_line<'a>(line: &'a [u8], index_max: u32, pairs: &mut Vec<Pair>) -> Result<Option<f64>, Fault<'a>> {
    pairs.clear();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let line = match line.iter().position(|&byte| byte == b'#') {
        Some(comment) => &line[..comment],
        None => line,
    };
    let Some((offset, token)) = next_token(line, 0) else {
        return Ok(None);
    };
    let label = match token {
        b"+1" | b"1" | b"+1.0" | b"1.0" => 1.0,
        b"-1" | b"-1.0" | b"0" | b"0.0" => -1.0,
        found => return Err(Fault { offset, expected: Expected::Label, found }),
    };
    let mut position = offset + token.len();
    let mut previous = 0;
    while let Some((offset, token)) = next_token(line, position) {
        position = offset + token.len();
        let Some(colon) = token.iter().position(|&byte| byte == b':') else {
            return Err(Fault { offset, expected: Expected::Pair, found: token });
        };
        let (index, value) = (&token[..colon], &token[colon + 1..]);
        let index = match parse_index(index) {
            Some(index) if (1..=index_max).contains(&index) => index,
            _ => return Err(Fault { offset, expected: Expected::Index { max: index_max }, found: index }),
        };
        if index <= previous {
            return Err(Fault { offset, expected: Expected::IndexAbove(previous), found: &token[..colon] });
        }
        previous = index;
        let number = std::str::from_utf8(value).ok().and_then(|text| text.parse::<f64>().ok());
        match number {
            Some(number) if number.is_finite() => pairs.push((index - 1, number)),
            _ => {
                let offset = offset + colon + 1;
                return Err(Fault { offset, expected: Expected::FiniteNumber, found: value });
            }
        }
    }
    Ok(Some(label))
}

/// The next run of bytes that are neither space nor tab, and its offset.
fn next_token(line: &[u8], position: usize) -> Option<(usize, &[u8])> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = position + line[position..].iter().position(|byte| !is_blank(byte))?;
    let rest = &line[start..];
    Some((start, &rest[..rest.iter().position(is_blank).unwrap_or(rest.len())]))
}

/// Decimal digits only, at most 10 of them; the sum cannot overflow 64 bits.
fn parse_index(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || digits.len() > 10 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0_u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    u32::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Rows = Vec<(f64, Vec<Pair>)>;

    fn read(text: &[u8]) -> Result<Rows, MalformedLine> {
        let mut reader = RowReader::new("t.svm", text);
        let (mut rows, mut pairs) = (Vec::new(), Vec::new());
        while let Some(label) = reader.next_row(&mut pairs)? {
            rows.push((label, pairs.clone()));
        }
        Ok(rows)
    }

    fn error_of(text: &str) -> String {
        read(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn rows_as_people_write_them() {
        let text = b"# head\n+1 1:0.5 3:-2e1\r\n\n-1\n0\t2:1 # tail 4:4\n  1 7:.25\t \n-1 1:1 2:+3";
        let expected = vec![
            (1.0, vec![(0, 0.5), (2, -20.0)]),
            (-1.0, vec![]),
            (-1.0, vec![(1, 1.0)]),
            (1.0, vec![(6, 0.25)]),
            (-1.0, vec![(0, 1.0), (1, 3.0)]),
        ];
        assert_eq!(read(text).unwrap(), expected);
        assert_eq!(read(b"").unwrap(), vec![]);
    }

    #[test]
    fn each_fault_has_its_line_and_column() {
        assert_eq!(error_of("1 1:1\n2 1:1\n"), "t.svm:2:1: expected a label (+1, 1, -1 or 0), found `2`");
        assert_eq!(error_of("\n\n  1:5"), "t.svm:3:3: expected a label (+1, 1, -1 or 0), found `1:5`");
        assert_eq!(error_of("1 12"), "t.svm:1:3: expected index:value, found `12`");
        assert_eq!(error_of("1 0:1"), "t.svm:1:3: expected an index from 1 to 2147483646, found `0`");
        assert_eq!(error_of("1 :1"), "t.svm:1:3: expected an index from 1 to 2147483646, found nothing");
        assert_eq!(error_of("1 +2:1"), "t.svm:1:3: expected an index from 1 to 2147483646, found `+2`");
        assert_eq!(
            error_of("1 2147483647:1"),
            "t.svm:1:3: expected an index from 1 to 2147483646, found `2147483647`"
        );
        assert_eq!(error_of("1 qid:1"), "t.svm:1:3: expected an index from 1 to 2147483646, found `qid`");
        assert_eq!(error_of("1 5:1 5:2"), "t.svm:1:7: expected an index above 5 (indices ascend), found `5`");
        assert_eq!(
            error_of("1 5:1  4:2"),
            "t.svm:1:8: expected an index above 5 (indices ascend), found `4`"
        );
        assert_eq!(error_of("1 5:"), "t.svm:1:5: expected a finite number, found nothing");
        assert_eq!(error_of("1 5:x1"), "t.svm:1:5: expected a finite number, found `x1`");
        assert_eq!(error_of("1 5:nan"), "t.svm:1:5: expected a finite number, found `nan`");
        assert_eq!(error_of("1 5:1e999"), "t.svm:1:5: expected a finite number, found `1e999`");
        assert_eq!(error_of("1 5:1:2"), "t.svm:1:5: expected a finite number, found `1:2`");
        assert_eq!(error_of("1 5:1\r2"), "t.svm:1:5: expected a finite number, found `1\\r2`");
    }

    #[test]
    fn unprintable_and_long_input_is_shown_short() {
        let error = read(b"1 5:\xff\x00").unwrap_err();
        assert_eq!((error.column, error.found.as_str()), (5, "`\\xff\\x00`"));
        let long = format!("1 5:{}", "z".repeat(1000));
        assert_eq!(read(long.as_bytes()).unwrap_err().found.len(), FOUND_BYTES_MAX + 4);
    }

    #[test]
    fn a_narrower_limit_refuses_what_the_model_lacks() {
        let mut reader = RowReader::new("t.svm", b"1 4:1\n1 3:1\n").with_index_max(3);
        let mut pairs = Vec::new();
        assert_eq!(reader.next_row(&mut pairs).unwrap_err().expected, Expected::Index { max: 3 });
        assert_eq!(reader.next_row(&mut pairs).unwrap(), Some(1.0));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
        }

        #[test]
        fn nearly_right_bytes_never_panic(bytes in "[-+10239:. \t\r\n#e]{0,200}") {
            if let Err(error) = read(bytes.as_bytes()) {
                let lines: Vec<&str> = bytes.split('\n').collect();
                let line = lines[usize::try_from(error.line).unwrap() - 1];
                prop_assert!(usize::try_from(error.column).unwrap() <= line.len() + 1);
            }
        }

        #[test]
        fn what_is_written_is_read(
            rows in proptest::collection::vec(
                (any::<bool>(), proptest::collection::btree_map(0_u32..5000, -1e6_f64..1e6, 0..20)), 0..20)
        ) {
            let mut text = String::new();
            for (positive, pairs) in &rows {
                text += if *positive { "+1" } else { "-1" };
                for (feature, value) in pairs {
                    text += &format!(" {}:{value}", feature + 1);
                }
                text += "\n";
            }
            let expected: Rows = rows
                .iter()
                .map(|(positive, pairs)| {
                    (if *positive { 1.0 } else { -1.0 }, pairs.iter().map(|(&feature, &value)| (feature, value)).collect())
                })
                .collect();
            prop_assert_eq!(read(text.as_bytes()).unwrap(), expected);
        }
    }
}
