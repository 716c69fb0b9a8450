//! The values of the segments that one shard owns. One thread writes and reads them; nobody else has a reference.
//! Knows keys, values and update functions; not who sent what, not clocks: those were judged before it is called.
//! Called by `node.rs`. Source: OSDI'14 §3.1, §3.3.
//!
//! | operation | progress | what an overlapping reader sees |
//! | --------- | -------- | ------------------------------- |
//! | `apply`, `contribute`, `finish`, `copy_out` | wait-free: bounded by the keys named | none can overlap: one thread |

pub mod apply;
mod dense;

use std::collections::BTreeMap;

use rangefold_proto::{KeyRange, SegmentId, TableSpec};
use rangefold_transport::{Body, RegionError};

pub use dense::{DenseSegment, Image};

/// The segments of one shard.
#[derive(Debug, Default)]
pub struct Store {
    segments: BTreeMap<SegmentId, DenseSegment>,
    sums: dense::Sums,
}

impl Store {
    /// A store of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a segment with the table's initial value everywhere. Costs a pass over its memory.
    ///
    /// # Errors
    /// [`RegionError`] when the memory cannot be had; nothing has changed then.
    pub fn create(&mut self, segment: SegmentId, spec: &TableSpec) -> Result<(), RegionError> {
        self.segments.insert(segment, DenseSegment::new(spec.segment_range(segment.index()), spec)?);
        Ok(())
    }

    /// Takes a segment out, with its values and state.
    pub fn remove(&mut self, segment: SegmentId) -> Option<Image> {
        self.segments.remove(&segment).map(DenseSegment::into_image)
    }

    /// Puts a segment in that `remove` took out elsewhere.
    ///
    /// # Errors
    /// [`RegionError`] when the memory cannot be had.
    pub fn insert(&mut self, segment: SegmentId, spec: &TableSpec, image: &Image) -> Result<(), RegionError> {
        let mut made = DenseSegment::new(spec.segment_range(segment.index()), spec)?;
        made.restore(image);
        self.segments.insert(segment, made);
        Ok(())
    }

    /// Updates `values` with bytes `bytes` of the payload: one pass. The core has checked shape and clock.
    pub fn apply(
        &mut self,
        segment: SegmentId,
        values: KeyRange,
        payload: &Body,
        bytes: std::ops::Range<u32>,
        arguments: &[f64],
    ) {
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.apply(&mut self.sums, values, payload, bytes, arguments);
        }
    }

    /// Adds a contribution to the sum of the segment's round; `finish` follows before anything else touches the segment.
    pub fn contribute(
        &mut self,
        segment: SegmentId,
        values: KeyRange,
        payload: &Body,
        bytes: std::ops::Range<u32>,
    ) {
        if let Some(segment) = self.segments.get(&segment) {
            segment.contribute(&mut self.sums, values, payload, bytes);
        }
    }

    /// Applies the sum of the contributions, to the keys that had one.
    pub fn finish(&mut self, segment: SegmentId, arguments: &[f64]) {
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.finish(&mut self.sums, arguments);
        }
    }

    /// Copies the values of `range` into `out`, which is exactly as long. Says whether the segment is here.
    pub fn copy_out(&self, segment: SegmentId, range: KeyRange, out: &mut [u8]) -> bool {
        let Some(segment) = self.segments.get(&segment) else { return false };
        segment.copy_out(range, out);
        true
    }

    /// Bytes of values and state held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.segments.values().map(DenseSegment::bytes).sum()
    }
}
