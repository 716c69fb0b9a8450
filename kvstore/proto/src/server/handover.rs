//! How a segment comes to a shard and leaves it: with its clocks, in one cut with its values.
//! Knows who must hear of it; the values are the shell's. Today an administrative move; migration (G2) will go through here.
//! Source: OSDI'14 §4.5; protocol.md T1, G1, G5.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::id::{LinkId, SegmentId};
use crate::map::Row;

use super::segment::{ParkedPull, Segment};
use super::types::SegmentImage;
use super::{ServerCore, enlist};

impl<P: Clone> ServerCore<P> {
    /// Begins to own a segment: with the image of its former owner, or empty at the table's creation. The shell has the
    /// values in place. Does nothing for a table that the map here does not have.
    pub fn accept(&mut self, row: Row, image: Option<&SegmentImage>) {
        let Some(spec) = self.map.tables.get(&row.segment.table()) else { return };
        let mut segment = Segment::new(row.segment, spec, row.assignment);
        if let Some(image) = image {
            segment.next_round = image.next_round;
            for &(lane, clock) in &image.clocks {
                segment.adopt(lane, clock.lowest().incarnation());
                if let Some(state) = segment.lanes.get_mut(lane) {
                    (state.applied, state.received) = (clock, clock);
                }
            }
        }
        self.segments.insert(row.segment, segment);
        self.declined.remove(&row.segment);
        self.map.adopt_row(row);
        //= protocol.md T1
        // What a shard knows of closes is soft: lanes that hear of the new owner close with every segment named.
        for (id, link) in self.links.iter_mut() {
            link.owe_row(row.segment);
            enlist(&mut self.speakers, id, link);
        }
    }

    /// The system has no memory for a segment that was placed here: whoever asks for it is told so, instead of to wait.
    pub fn decline(&mut self, segment: SegmentId) {
        self.declined.insert(segment);
    }

    /// Ceases to own a segment; the shell takes its values away. Its pulls are sent elsewhere.
    pub fn release(&mut self, row: Row) -> Option<SegmentImage> {
        self.map.adopt_row(row);
        let mut segment = self.segments.remove(row.segment)?;
        let image = SegmentImage {
            segment: row.segment,
            clocks: segment.lanes.iter().map(|(lane, state)| (lane, state.applied)).collect(),
            next_round: segment.next_round,
        };
        //= protocol.md G5
        for pull in segment.unpark(|_| true) {
            self.turn_away(&pull);
        }
        for contribution in segment.open.drain(..).flatten() {
            if let Some(link) = self.links.get_mut(contribution.link) {
                link.release(contribution.credit);
            }
        }
        let ids: Vec<LinkId> = self.links.keys().collect();
        for id in ids {
            let Some(link) = self.links.get_mut(id) else { continue };
            // Everybody must close its rounds at the new owner, also who has nothing under way here.
            link.owe_row(row.segment);
            enlist(&mut self.speakers, id, link);
            let (gone, stay): (VecDeque<ParkedPull>, VecDeque<ParkedPull>) = core::mem::take(&mut link.ready)
                .into_iter()
                .partition(|pull| pull.header.segment == row.segment);
            link.ready = stay;
            link.acks.retain(|&(_, segment)| segment != row.segment);
            for pull in gone {
                self.turn_away(&pull);
            }
        }
        Some(image)
    }
}
