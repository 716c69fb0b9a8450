//! Sizes and sweeps of them: `64K`, `8:4M`. What a message is made of at each.
//! Knows numbers and suffixes; measures nothing. Called by `options.rs`.

use std::str::FromStr;

/// Elements of a row, where a message holds one row or more and the user did not say.
pub(super) const ROW_ELEMENTS: u32 = 64;
/// Bytes of an element: stores are measured with f32.
pub(super) const ELEMENT_BYTES: u64 = 4;

/// A number of bytes or of keys. K, M and G are powers of 1024.
pub(super) fn number(text: &str) -> Result<u64, String> {
    let expected =
        || "expected a whole number from 1, also with K, M or G (powers of 1024), like 64K".to_owned();
    let (digits, shift) = match text.as_bytes().last().map(u8::to_ascii_uppercase) {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    // `parse` would take a sign.
    let number: u64 = digits
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| digits.parse().ok())
        .flatten()
        .ok_or_else(expected)?;
    number.checked_mul(1 << shift).filter(|&number| number > 0).ok_or_else(expected)
}

/// One number, or all from the first to the last by doubling.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sweep {
    first: u64,
    last: u64,
}

impl Sweep {
    pub(super) const fn new(first: u64, last: u64) -> Self {
        Self { first, last }
    }

    /// Every number of it, ascending; the last one is always among them.
    pub(super) fn numbers(self) -> Vec<u64> {
        let doubled = std::iter::successors(Some(self.first), |number| number.checked_mul(2));
        doubled.take_while(|&number| number < self.last).chain([self.last]).collect()
    }
}

impl FromStr for Sweep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once(':').unwrap_or((text, text));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err("a sweep goes from the smaller to the larger, like 64:4M".into());
        }
        Ok(Self { first, last })
    }
}

/// What one message carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    /// Bytes of its values or body, without heads.
    pub(super) bytes: u64,
    /// Rows of a table that it names; `None` on the raw transport.
    pub(super) rows: Option<Rows>,
}

/// The part of a store's message in its table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Rows {
    /// Keys of one message.
    pub(super) keys: u64,
    /// Elements of each.
    pub(super) width: u32,
    /// Messages that cover one thread's part of the table; they are pushed or pulled in turn.
    pub(super) slots: u64,
}

impl Rows {
    /// Elements of one message.
    pub(super) fn elements(&self) -> u64 {
        self.keys * u64::from(self.width)
    }
}

/// A store's message of `bytes`: rows of `width`, or of 64 elements, or one shorter row where that is more than all. The thread's
/// part of the table is `table_bytes`, or one message.
pub(super) fn store_shape(bytes: u64, width: Option<u32>, table_bytes: Option<u64>) -> Result<Shape, String> {
    let elements = bytes / ELEMENT_BYTES;
    let width =
        width.unwrap_or_else(|| u32::try_from(elements).unwrap_or(ROW_ELEMENTS).clamp(1, ROW_ELEMENTS));
    let row_bytes = u64::from(width) * ELEMENT_BYTES;
    if bytes == 0 || !bytes.is_multiple_of(row_bytes) {
        return Err(format!(
            "{bytes} bytes are not whole rows of {width} f32 ({row_bytes} bytes); take a multiple of that, or other rows with --width"
        ));
    }
    let table_bytes = table_bytes.unwrap_or(bytes);
    if table_bytes < bytes {
        return Err(format!("a message of {bytes} bytes does not fit into a --table of {table_bytes}"));
    }
    Ok(Shape { bytes, rows: Some(Rows { keys: bytes / row_bytes, width, slots: table_bytes / bytes }) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_take_suffixes_and_nothing_else() {
        assert_eq!(number("1"), Ok(1));
        assert_eq!(number("64k"), Ok(65_536));
        assert_eq!(number("4M"), Ok(4 << 20));
        assert_eq!(number("2G"), Ok(2 << 30));
        for wrong in ["", "K", "0", "0K", "-1", "+1", "1.5K", "64KB", "1e3", "18446744073709551615K", "٣"] {
            assert!(number(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_sweep_doubles_and_ends_where_it_was_told() {
        let numbers = |text: &str| text.parse::<Sweep>().map(Sweep::numbers);
        assert_eq!(numbers("8:64"), Ok(vec![8, 16, 32, 64]));
        assert_eq!(numbers("8:50"), Ok(vec![8, 16, 32, 50]));
        assert_eq!(numbers("1K"), Ok(vec![1024]), "one size is a sweep of one");
        assert_eq!(numbers("16777215G").unwrap().len(), 1);
        assert!(numbers("8:4").is_err() && numbers("8:").is_err() && numbers(":8").is_err());
    }

    #[test]
    fn a_stores_size_is_keys_times_width() {
        let rows = |bytes, width, table| store_shape(bytes, width, table).map(|shape| shape.rows.unwrap());
        assert_eq!(rows(4096, None, None), Ok(Rows { keys: 16, width: 64, slots: 1 }));
        assert_eq!(
            rows(8, None, None),
            Ok(Rows { keys: 1, width: 2, slots: 1 }),
            "less than a row is a shorter row"
        );
        assert_eq!(rows(4096, Some(1), Some(1 << 20)), Ok(Rows { keys: 1024, width: 1, slots: 256 }));
        for bytes in [8, 256, 65_536] {
            let rows = rows(bytes, None, None).unwrap();
            assert_eq!(rows.elements() * ELEMENT_BYTES, bytes);
        }
        assert!(rows(300, None, None).unwrap_err().contains("not whole rows of 64 f32"));
        assert!(rows(2, None, None).is_err() && rows(8192, None, Some(4096)).is_err());
    }
}
