//! The rows of a run: medians with the least and the most, near and far apart.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::ceiling::median;
use crate::cores::Distance;

/// Values by distance and row, rows in the order in which they came first.
#[derive(Default)]
pub(crate) struct Table {
    order: Vec<(&'static str, &'static str)>,
    values: BTreeMap<(Distance, &'static str), Vec<f64>>,
}

impl Table {
    pub(crate) fn add(&mut self, name: &'static str, unit: &'static str, distance: Distance, value: f64) {
        if !self.order.contains(&(name, unit)) {
            self.order.push((name, unit));
        }
        self.values.entry((distance, name)).or_default().push(value);
    }

    fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        [Distance::Near, Distance::Far, Distance::One].into_iter().flat_map(move |distance| {
            let of_row = move |&(name, unit): &(&'static str, &'static str)| {
                let mut values = self.values.get(&(distance, name))?.clone();
                let median = median(&mut values);
                let (least, most, repeats) = (values[0], values[values.len() - 1], values.len());
                let cores = format!("{distance:?}").to_lowercase();
                Some(Row { cores, name, unit, median, least, most, repeats })
            };
            self.order.iter().filter_map(of_row)
        })
    }

    pub(crate) fn print(&self) {
        println!(
            "# cores  row                                                     median       min       max  unit  repeats"
        );
        for Row { cores, name, unit, median, least, most, repeats } in self.rows() {
            println!("{cores:<8} {name:<54} {median:>8.3}  {least:>8.3}  {most:>8.3}  {unit:<5} {repeats}");
        }
    }

    pub(crate) fn csv(&self) -> String {
        let mut text = String::from("cores,row,unit,median,min,max,repeats\n");
        for Row { cores, name, unit, median, least, most, repeats } in self.rows() {
            let _ = writeln!(text, "{cores},\"{name}\",{unit},{median:.4},{least:.4},{most:.4},{repeats}");
        }
        text
    }
}

/// What is said of one row at one distance.
struct Row {
    cores: String,
    name: &'static str,
    unit: &'static str,
    median: f64,
    least: f64,
    most: f64,
    repeats: usize,
}
