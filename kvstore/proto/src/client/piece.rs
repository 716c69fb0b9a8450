//! The pieces of a pull: one frame's worth of keys each, sent when they can be answered, again elsewhere when they must.
//! Knows rounds needed and where a piece was sent; not values. Held by the client core.
//! Source: protocol.md T3, T6, G1, K5.

use alloc::vec::Vec;

use crate::id::{LinkId, ShardId};
use crate::time::Round;
use crate::wire::Header;

use super::{ClientCore, Output, Piece, PieceId, Retry, TaskId};

impl<P: Clone> ClientCore<P> {
    /// Queues a piece of a pull at the connection of the segment's owner, unless it is too early by what this client knows.
    ///
    /// A pull that needs a round which one of this client's own lanes has not closed cannot be answered yet. Sent all the
    /// same it would hold a pull credit, and the lane that must go on may need that very credit: so it waits here. What is
    /// sent waits for other clients only, and the slowest lane of all waits for nobody (protocol.md B2, T6).
    pub(super) fn ready_piece(&mut self, id: PieceId) {
        let closed = self.lowest_round();
        let Some(piece) = self.pieces.get_mut(&id) else { return };
        piece.sent_on = None;
        if piece.rounds_needed > closed {
            self.early.insert((piece.rounds_needed, id));
            return;
        }
        let Some(shard) = self.map.owner(piece.segment) else { return };
        self.link_mut(shard).queue_piece(id);
        self.enlist(shard);
    }

    /// The client's slowest lane may have gone on: pulls that waited for it are sent.
    pub(super) fn release_early(&mut self) {
        let closed = self.lowest_round();
        while let Some(&(needed, id)) = self.early.first().filter(|(needed, _)| *needed <= closed) {
            self.early.remove(&(needed, id));
            self.ready_piece(id);
        }
    }

    /// A lane has come that is behind: pulls that wait for it and were sent would hold the credit that it needs.
    pub(super) fn recall_early(&mut self) {
        let closed = self.lowest_round();
        let sent = |piece: &Piece| piece.sent_on.filter(|_| piece.rounds_needed > closed);
        let early: Vec<(PieceId, LinkId)> =
            self.pieces.iter().filter_map(|(&id, piece)| Some((id, sent(piece)?))).collect();
        for (id, link) in early {
            if let Some(&shard) = self.shards.get(link) {
                self.recall(shard, id);
            }
        }
    }

    /// Asks a shard to give a parked pull back.
    fn recall(&mut self, shard: ShardId, id: PieceId) {
        let Some(piece) = self.pieces.get(&id) else { return };
        let (segment, range) = (piece.segment, piece.range);
        self.link_mut(shard).cancels.push_back((id.0, segment, range));
        self.enlist(shard);
    }

    pub(super) fn lowest_round(&self) -> Round {
        self.lanes.values().map(|state| state.round).min().unwrap_or(Round::MAX)
    }

    /// A piece sent on `link` was answered, with values or without. Says whether it was one of ours.
    pub(super) fn answered(&mut self, id: PieceId, link: LinkId) -> bool {
        let Some(&shard) = self.shards.get(link) else { return false };
        let piece = self.pieces.get_mut(&id).filter(|piece| piece.sent_on == Some(link));
        let ours = piece.map(|piece| piece.sent_on = None).is_some();
        let link = self.link_mut(shard);
        if ours {
            link.pull_answered();
        } else {
            // Cancelled in the meantime. Its credit is free; anything else would be a peer's fault, and harmless.
            link.orphan_answered();
        }
        self.enlist(shard);
        ours
    }

    pub(super) fn retry_piece(&mut self, id: PieceId, link: LinkId, delay_ns: u64) {
        if !self.answered(id, link) {
            return;
        }
        if delay_ns == 0 {
            self.ready_piece(id);
        } else {
            self.retries.insert((self.now.after(delay_ns), Retry::Piece(id)));
        }
    }

    /// A piece is not wanted any more. What answers it is ignored when it comes; its credit comes back with it.
    pub(super) fn forget_piece(&mut self, id: PieceId) {
        let sent_on = self.pieces.get(&id).and_then(|piece| piece.sent_on);
        if let Some(shard) = sent_on.and_then(|link| self.shards.get(link)).copied() {
            self.recall(shard, id);
        }
        let Some(piece) = self.pieces.remove(&id) else { return };
        self.early.remove(&(piece.rounds_needed, id));
        if let Some(shard) = piece.sent_on.and_then(|link| self.shards.get(link)).copied() {
            self.link_mut(shard).orphans += 1;
        }
    }

    pub(super) fn reply(&mut self, link: LinkId, header: &Header, payload: P) {
        let task = TaskId { lane: header.lane, stamp: header.stamp };
        let id = (task, header.range.start);
        let whole = |piece: &Piece| piece.segment == header.segment && piece.range == header.range;
        let matches = self.pieces.get(&id).is_some_and(whole);
        if !self.answered(id, link) || !matches {
            return;
        }
        self.pieces.remove(&id);
        self.counters.bytes_pulled += u64::from(header.value_bytes);
        self.effects.push_back(Output::Deliver { task, range: header.range, payload });
        self.piece_done(task);
    }
}
