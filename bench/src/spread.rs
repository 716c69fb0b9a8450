//! Several values of one thing: the median with the least and the most.

/// What is said of several values.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Spread {
    /// The middle one; of an even count the mean of the middle two.
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
    pub(crate) count: usize,
}

impl Spread {
    /// None of no values.
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let (count, middle) = (values.len(), values.len() / 2);
        let (&least, &most) = (values.first()?, values.last()?);
        let below = if count.is_multiple_of(2) { values[middle - 1] } else { values[middle] };
        Some(Self { median: f64::midpoint(below, values[middle]), least, most, count })
    }

    /// Whether the largest is more than twice the smallest, so that the median says little.
    pub(crate) fn is_wide(&self) -> bool {
        self.most > 2.0 * self.least
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_is_the_mean_of_the_middle_two() {
        assert_eq!(Spread::of(vec![]), None);
        let one = Spread { median: 3.0, least: 3.0, most: 3.0, count: 1 };
        assert_eq!(Spread::of(vec![3.0]), Some(one));
        let odd = Spread { median: 2.0, least: 1.0, most: 9.0, count: 3 };
        assert_eq!(Spread::of(vec![9.0, 1.0, 2.0]), Some(odd));
        let even = Spread { median: 3.0, least: 1.0, most: 9.0, count: 4 };
        assert_eq!(Spread::of(vec![9.0, 4.0, 2.0, 1.0]), Some(even));
    }

    #[test]
    fn wide_begins_above_twice() {
        assert!(!Spread::of(vec![1.0, 2.0]).unwrap().is_wide());
        assert!(Spread::of(vec![1.0, 2.1]).unwrap().is_wide());
    }
}
