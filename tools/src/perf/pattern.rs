//! What is sent and what must be found: seeded patterns, and sums of pushes that an f32 holds exactly.
//! Knows bytes and elements; not how they travelled. Called by `raw/` and `store.rs`, outside the timed window unless
//! `--check every` asks for more.
//!
//! **Sums.** A push adds the pattern, a whole number from 1 to 8 per element, `+` while the sum rises, `-` while it falls: up
//! for 2^20 pushes, down for as many. So a table never holds more than 2^23 + a little, every sum is exact in an f32 (2^24)
//! however long a run is, and one push that is lost or added twice leaves every element of its range wrong.

/// Pushes in one direction.
const RISE: u64 = 1 << 20;
/// The pattern's elements are 1 to this.
const ELEMENT_MAX: u64 = 8;

/// A number that looks drawn at random and depends on both.
fn mixed(seed: u64, index: u64) -> u64 {
    // SplitMix64 (Steele, Lea, Flood, OOPSLA'14).
    let mut z = seed.wrapping_add((index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Writes the bytes of a raw message. Byte i depends on the seed and i alone, so a shorter message is the front of a longer one.
pub(super) fn fill(bytes: &mut [u8], seed: u64) {
    for (index, word) in (0..).zip(bytes.chunks_mut(8)) {
        word.copy_from_slice(&mixed(seed, index).to_le_bytes()[..word.len()]);
    }
}

/// Bytes in which two of the same length differ; of different lengths, all that one has more.
pub(super) fn wrong_bytes<'a>(parts: impl IntoIterator<Item = &'a [u8]>, expected: &[u8]) -> u64 {
    let (mut rest, mut wrong) = (expected, 0);
    for part in parts {
        let (front, behind) = rest.split_at(part.len().min(rest.len()));
        // Equal slices are compared at the speed of memory.
        if &part[..front.len()] != front {
            wrong += part.iter().zip(front).filter(|(found, expected)| found != expected).count();
        }
        wrong += part.len() - front.len();
        rest = behind;
    }
    (wrong + rest.len()) as u64
}

/// One element of what a push adds.
pub(super) fn element(seed: u64, index: u64) -> f32 {
    // Below 9: exact.
    (mixed(seed, index) % ELEMENT_MAX + 1) as f32
}

/// Whether push number `push` of a range adds the pattern; else it takes it away.
pub(super) fn rises(push: u64) -> bool {
    (push / RISE).is_multiple_of(2)
}

/// How often the pattern is in a range after so many pushes.
pub(super) fn multiple(pushes: u64) -> u64 {
    let rest = pushes % RISE;
    if rises(pushes) { rest } else { RISE - rest }
}

/// Elements of `found`, the elements of a range from `first`, that are not `multiple` times the pattern.
pub(super) fn wrong_elements(found: &[f32], seed: u64, first: u64, multiple: u64) -> u64 {
    let expected = (first..).map(|index| element(seed, index) * multiple as f32);
    // A NaN equals nothing.
    found.iter().zip(expected).filter(|&(&found, expected)| found != expected).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_message_is_the_front_of_a_longer_one_and_seeds_differ() {
        let (mut long, mut short, mut other) = (vec![0; 100], vec![0; 37], vec![0; 100]);
        fill(&mut long, 1);
        fill(&mut short, 1);
        fill(&mut other, 2);
        assert_eq!(long[..37], short);
        assert!(wrong_bytes([&other[..]], &long) > 90);
    }

    #[test]
    fn every_wrong_byte_is_counted_wherever_the_cuts_are() {
        let mut expected = vec![0; 1000];
        fill(&mut expected, 3);
        let mut found = expected.clone();
        assert_eq!(wrong_bytes([&found[..10], &found[10..999], &found[999..]], &expected), 0);
        for index in [0, 9, 10, 500, 999] {
            found[index] ^= 1;
        }
        assert_eq!(wrong_bytes([&found[..10], &found[10..999], &found[999..]], &expected), 5);
        assert_eq!(wrong_bytes([&expected[..990]], &expected), 10, "too short");
        assert_eq!(wrong_bytes([&expected[..], &[0; 3]], &expected), 3, "too long");
    }

    /// What a table of one range holds after these pushes, by adding as the store does.
    fn table(seed: u64, len: usize, pushes: impl IntoIterator<Item = u64>) -> Vec<f32> {
        let mut sums = vec![0.0; len];
        for push in pushes {
            for (index, sum) in (0..).zip(&mut sums) {
                *sum += if rises(push) { element(seed, index) } else { -element(seed, index) };
            }
        }
        sums
    }

    #[test]
    fn sums_are_exact_beyond_the_turn() {
        // The first turn, then through the place where it comes back to nothing.
        for pushes in [0, 1, 7, RISE - 1, RISE, RISE + 3, 2 * RISE - 1, 2 * RISE, 2 * RISE + 5] {
            let sums = table(5, 3, 0..pushes);
            assert_eq!(wrong_elements(&sums, 5, 0, multiple(pushes)), 0, "after {pushes}");
        }
        let most = multiple(RISE) * ELEMENT_MAX;
        assert!(most < 1 << 24, "exact in an f32");
    }

    #[test]
    fn a_push_lost_doubled_or_misplaced_is_seen() {
        let count = |sums: &[f32]| wrong_elements(sums, 5, 0, multiple(100));
        assert_eq!(count(&table(5, 8, 0..100)), 0);
        assert_eq!(count(&table(5, 8, 0..99)), 8, "lost");
        assert_eq!(count(&table(5, 8, (0..100).chain([3]))), 8, "twice");
        assert!(count(&table(6, 8, 0..100)) > 0, "another pattern");
        let mut corrupted = table(5, 8, 0..100);
        (corrupted[2], corrupted[7]) = (f32::NAN, corrupted[7] + 1.0);
        assert_eq!(count(&corrupted), 2);
        corrupted.rotate_left(1);
        assert!(count(&corrupted) > 2, "shifted");
    }
}
