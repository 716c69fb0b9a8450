//! A dense segment: its values in one flat array.
//! Knows keys, shapes and which update function; the loops are `apply.rs`. Held by the store.
//! Source: OSDI'14 §3.1.

use rangefold_proto::{ElementType, KeyRange, TableSpec, UpdateFunction};
use rangefold_transport::{Body, Region, RegionError, SliceMut};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::apply::{self, Element};

/// Elements that are carried over at once where a payload is cut or not aligned.
const CARRY: usize = 64;

/// The content of a segment on its way to another shard.
#[derive(Clone, PartialEq, Debug)]
pub struct Image(Vec<u8>);

/// The values of one segment.
#[derive(Debug)]
pub struct DenseSegment {
    range: KeyRange,
    element: ElementType,
    width: usize,
    update: UpdateFunction,
    values: SliceMut,
}

/// Room for the sums of one round; shared by all segments of a shard, because a round's contributions and its end come in
/// one step. Grows to the largest segment.
#[derive(Debug, Default)]
pub(super) struct Sums {
    f32: Sum<f32>,
    f64: Sum<f64>,
}

#[derive(Debug, Default)]
struct Sum<T> {
    /// Pushed elements by position in the segment; zero where `touched` does not say otherwise.
    pushed: Vec<T>,
    /// Positions of keys that had a contribution, as ranges; neighbours are merged.
    touched: Vec<std::ops::Range<usize>>,
}

trait Typed: Element + FromBytes + IntoBytes + Immutable + KnownLayout {
    fn sum(sums: &mut Sums) -> &mut Sum<Self>;
}

impl Typed for f32 {
    fn sum(sums: &mut Sums) -> &mut Sum<Self> {
        &mut sums.f32
    }
}

impl Typed for f64 {
    fn sum(sums: &mut Sums) -> &mut Sum<Self> {
        &mut sums.f64
    }
}

/// Calls a method with the segment's element type.
macro_rules! typed {
    ($segment:expr, $method:ident ( $($argument:expr),* )) => {
        match $segment.element {
            ElementType::F32 => $segment.$method::<f32>($($argument),*),
            ElementType::F64 => $segment.$method::<f64>($($argument),*),
        }
    };
}

impl DenseSegment {
    /// A segment with the table's initial value everywhere.
    ///
    /// # Errors
    /// [`RegionError`] when the memory cannot be had.
    pub fn new(range: KeyRange, spec: &TableSpec) -> Result<Self, RegionError> {
        let width = spec.width as usize;
        let bytes = length(range.len()) * spec.value_bytes() as usize;
        let (_, values) = Region::anonymous(bytes)?;
        let mut segment = Self { range, element: spec.element, width, update: spec.update, values };
        if spec.initial != 0.0 {
            typed!(segment, fill(spec.initial));
        }
        Ok(segment)
    }

    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.values.len()
    }

    fn fill<T: Typed>(&mut self, initial: f64) {
        elements_mut::<T>(self.values.as_mut_bytes()).fill(T::from_f64(initial));
    }

    pub(super) fn into_image(self) -> Image {
        Image(self.values.as_bytes().to_vec())
    }

    pub(super) fn restore(&mut self, image: &Image) {
        self.values.as_mut_bytes().copy_from_slice(&image.0);
    }

    pub(super) fn copy_out(&self, range: KeyRange, out: &mut [u8]) {
        let key_bytes = self.width * self.element.bytes() as usize;
        let start = length(range.start - self.range.start) * key_bytes;
        out.copy_from_slice(&self.values.as_bytes()[start..start + length(range.len()) * key_bytes]);
    }

    pub(super) fn apply(
        &mut self,
        sums: &mut Sums,
        values: KeyRange,
        payload: &Body,
        bytes: std::ops::Range<u32>,
        arguments: &[f64],
    ) {
        match self.update {
            UpdateFunction::Assign | UpdateFunction::Add => {
                typed!(self, apply_elements(values, payload, bytes));
            }
            // Works on whole rows, which a payload may cut anywhere: gathered first.
            UpdateFunction::ProximalL1 => {
                self.contribute(sums, values, payload, bytes);
                self.finish(sums, arguments);
            }
        }
    }

    fn apply_elements<T: Typed>(&mut self, values: KeyRange, payload: &Body, bytes: std::ops::Range<u32>) {
        let first = length(values.start - self.range.start) * self.width;
        let update = self.update;
        let target = elements_mut::<T>(self.values.as_mut_bytes());
        for_each_run::<T>(payload, bytes, |at, run| {
            let target = &mut target[first + at..first + at + run.len()];
            if update == UpdateFunction::Assign {
                apply::assign(target, run);
            } else {
                T::add(target, run);
            }
        });
    }

    pub(super) fn contribute(
        &self,
        sums: &mut Sums,
        values: KeyRange,
        payload: &Body,
        bytes: std::ops::Range<u32>,
    ) {
        typed!(self, contribute_elements(sums, values, payload, bytes));
    }

    fn contribute_elements<T: Typed>(
        &self,
        sums: &mut Sums,
        values: KeyRange,
        payload: &Body,
        bytes: std::ops::Range<u32>,
    ) {
        let per_key = self.width;
        let keys = length(values.start - self.range.start)..length(values.end - self.range.start);
        let sum = T::sum(sums);
        if sum.pushed.len() < keys.end * per_key {
            sum.pushed.resize(keys.end * per_key, T::default());
        }
        let target = &mut sum.pushed[keys.start * per_key..keys.end * per_key];
        for_each_run::<T>(payload, bytes, |at, run| T::add(&mut target[at..at + run.len()], run));
        touch(&mut sum.touched, keys);
    }

    pub(super) fn finish(&mut self, sums: &mut Sums, arguments: &[f64]) {
        typed!(self, finish_elements(sums, arguments));
    }

    fn finish_elements<T: Typed>(&mut self, sums: &mut Sums, arguments: &[f64]) {
        let (width, update) = (self.width, self.update);
        let sum = T::sum(sums);
        let values = elements_mut::<T>(self.values.as_mut_bytes());
        for keys in sum.touched.drain(..) {
            let elements = keys.start * width..keys.end * width;
            let pushed = &mut sum.pushed[elements.clone()];
            let target = &mut values[elements];
            match update {
                UpdateFunction::Assign => apply::assign(target, pushed),
                UpdateFunction::Add => T::add(target, pushed),
                UpdateFunction::ProximalL1 => apply::proximal_l1(target, pushed, arguments),
            }
            pushed.fill(T::default());
        }
    }
}

/// Notes that these keys have a contribution. Contributions of a round mostly name the same keys.
fn touch(touched: &mut Vec<std::ops::Range<usize>>, mut keys: std::ops::Range<usize>) {
    touched.retain(|held| {
        let apart = held.end < keys.start || keys.end < held.start;
        if !apart {
            keys = held.start.min(keys.start)..held.end.max(keys.end);
        }
        apart
    });
    touched.push(keys);
}

/// Lengths of what is in memory fit usize, which is 64 bits here.
fn length(keys: u64) -> usize {
    usize::try_from(keys).unwrap_or(usize::MAX)
}

/// A segment's own memory as elements: page-aligned and a whole number of them, by construction.
fn elements_mut<T: Typed>(bytes: &mut [u8]) -> &mut [T] {
    match <[T]>::mut_from_bytes(bytes) {
        Ok(elements) => elements,
        Err(_) => unreachable!("a segment's memory is page-aligned and a whole number of elements"),
    }
}

/// Calls `each(position, elements)` for the elements in these bytes of a payload, in order and without a gap. Runs lie where
/// they were received; only where a slice is cut or not aligned is a run copied first, `CARRY` elements at a time.
fn for_each_run<T: Typed>(payload: &Body, bytes: std::ops::Range<u32>, mut each: impl FnMut(usize, &[T])) {
    let mut skip = bytes.start as usize;
    let mut left = bytes.len();
    let mut at = 0;
    // The bytes of an element that was cut by the end of a slice.
    let mut cut = [0u8; 8];
    let mut cut_len = 0;
    for slice in payload.slices() {
        let mut slice = slice.as_bytes();
        if skip >= slice.len() {
            skip -= slice.len();
            continue;
        }
        slice = &slice[skip..];
        skip = 0;
        slice = &slice[..slice.len().min(left)];
        left -= slice.len();
        if cut_len > 0 {
            let take = (size_of::<T>() - cut_len).min(slice.len());
            cut[cut_len..cut_len + take].copy_from_slice(&slice[..take]);
            cut_len += take;
            slice = &slice[take..];
            if cut_len < size_of::<T>() {
                continue;
            }
            each(at, &[T::read_from_prefix(&cut).map_or_else(|_| T::default(), |(element, _)| element)]);
            at += 1;
        }
        let whole = slice.len() / size_of::<T>() * size_of::<T>();
        let (run, rest) = slice.split_at(whole);
        match <[T]>::ref_from_bytes(run) {
            Ok(run) => {
                each(at, run);
                at += run.len();
            }
            Err(_) => {
                for chunk in run.chunks(CARRY * size_of::<T>()) {
                    let mut carried = [T::default(); CARRY];
                    carried.as_mut_bytes()[..chunk.len()].copy_from_slice(chunk);
                    let count = chunk.len() / size_of::<T>();
                    each(at, &carried[..count]);
                    at += count;
                }
            }
        }
        cut[..rest.len()].copy_from_slice(rest);
        cut_len = rest.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rangefold_proto::table::Aggregation;
    use rangefold_transport::Arena;

    fn body(bytes: &[u8], cuts: &[usize]) -> Body {
        let mut arena = Arena::new(1 << 20);
        let mut at = 0;
        let mut slices = Vec::new();
        let ends = cuts.iter().map(|&cut| cut % (bytes.len() + 1)).chain([bytes.len()]);
        for end in ends {
            if end > at {
                // One byte in front makes every second slice unaligned.
                let odd = slices.len() % 2;
                let mut slice = arena.take(end - at + odd).unwrap();
                slice.as_mut_bytes()[odd..].copy_from_slice(&bytes[at..end]);
                let len = slice.len();
                slices.push(slice.freeze().cut(odd..len));
                at = end;
            }
        }
        Body::of(slices)
    }

    fn spec(update: UpdateFunction, width: u32) -> TableSpec {
        TableSpec { width, segments: 1, ..TableSpec::dense("t", ElementType::F64, 40, update) }
    }

    fn read(segment: &DenseSegment) -> Vec<f64> {
        let mut out = vec![0; segment.values.len()];
        segment.copy_out(segment.range, &mut out);
        out.chunks_exact(8).map(|chunk| f64::from_le_bytes(chunk.try_into().unwrap())).collect()
    }

    proptest! {
        /// Any cut of the payload, any part of it, any alignment: the same as a plain loop.
        #[test]
        fn pushes_agree_with_a_plain_array(
            pushes in proptest::collection::vec((0u64..40, 0u64..41, proptest::collection::vec(0usize..700, 0..4), 0u64..3), 1..12),
            add in any::<bool>(), width in 1u32..3,
        ) {
            let update = if add { UpdateFunction::Add } else { UpdateFunction::Assign };
            let spec = spec(update, width);
            let mut segment = DenseSegment::new(KeyRange::new(0, 40), &spec).unwrap();
            let mut sums = Sums::default();
            let mut oracle = vec![0.0; 40 * width as usize];
            for (index, (a, b, cuts, skip)) in pushes.iter().enumerate() {
                let range = KeyRange::new(*a.min(b), *a.max(b));
                let count = usize::try_from(range.len()).unwrap() * width as usize;
                let values: Vec<f64> = (0..count).map(|i| (index * 1000 + i) as f64).collect();
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                // Only the part from `skip` keys on is open.
                let open = KeyRange::new((range.start + skip).min(range.end), range.end);
                let from = usize::try_from(open.start - range.start).unwrap() * width as usize;
                let part = u32::try_from(from * 8).unwrap()..u32::try_from(count * 8).unwrap();
                segment.apply(&mut sums, open, &body(&bytes, cuts), part, &[]);
                let first = usize::try_from(open.start).unwrap() * width as usize;
                for (i, value) in values[from..].iter().enumerate() {
                    if add { oracle[first + i] += value } else { oracle[first + i] = *value }
                }
            }
            prop_assert_eq!(read(&segment), oracle);
        }
    }

    //= protocol.md T10
    //= type=test
    #[test]
    fn a_round_is_summed_once_and_leaves_nothing_behind() {
        let spec = TableSpec { aggregation: Aggregation::Round, ..spec(UpdateFunction::Assign, 1) };
        let mut segment = DenseSegment::new(KeyRange::new(0, 40), &spec).unwrap();
        let mut sums = Sums::default();
        let ones: Vec<u8> = [1.0f64; 10].iter().flat_map(|one| one.to_le_bytes()).collect();
        for _ in 0..2 {
            segment.contribute(&mut sums, KeyRange::new(0, 10), &body(&ones, &[]), 0..80);
            segment.contribute(&mut sums, KeyRange::new(5, 15), &body(&ones, &[3]), 0..80);
            segment.contribute(&mut sums, KeyRange::new(30, 40), &body(&ones, &[]), 0..80);
            segment.finish(&mut sums, &[]);
        }
        let values = read(&segment);
        let expected =
            |i: usize| f64::from(u8::from(i < 10) + u8::from((5..15).contains(&i)) + u8::from(i >= 30));
        assert!(values.iter().enumerate().all(|(i, &value)| value == expected(i)), "{values:?}");
    }
}
