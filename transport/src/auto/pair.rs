//! Two endpoints of one thread as one: each link belongs to one of them for life, and one sleep is over both.
//! Knows whose peer is whose by the tag in its number; not what either endpoint is. Used by `endpoint.rs`, also of a pair and a third.
//! Source: `transport/DESIGN.md` (auto).
//!
//! One that was never given a link costs nothing: it is neither polled nor armed. The first one is polled while neither has been,
//! because it hears the bell, which both share.

use crate::caps::Capabilities;
use crate::endpoint::{Arrival, Batch, Endpoint, Events, Peer};
use crate::error::{AdoptError, AttachError, Full};
use crate::link::Link;
use crate::region::{Region, SliceMut};
use crate::stream::Tag;
use crate::wait::{Armed, Waker};

pub(super) struct Pair<A, B> {
    pub(super) first: A,
    pub(super) second: B,
    name: &'static str,
    /// Of the second one's peers, and of no other.
    second_tag: Tag,
    /// Whether each was ever given a link.
    first_used: bool,
    second_used: bool,
    /// Who is polled first; in turn.
    second_goes_first: bool,
    for_first: Batch,
    for_second: Batch,
}

impl<A: Endpoint, B: Endpoint> Pair<A, B> {
    /// Both are woken by the same waker.
    pub(super) fn new(first: A, second: B, second_tag: Tag, name: &'static str) -> Self {
        Self {
            first,
            second,
            name,
            second_tag,
            first_used: false,
            second_used: false,
            second_goes_first: false,
            for_first: Batch::default(),
            for_second: Batch::default(),
        }
    }

    pub(super) fn adopt_by_first(&mut self, link: Link) -> Result<Peer, AdoptError> {
        self.first_used = true;
        self.first.adopt(link)
    }

    pub(super) fn adopt_by_second(&mut self, link: Link) -> Result<Peer, AdoptError> {
        self.second_used = true;
        self.second.adopt(link)
    }

    fn is_of_second(&self, number: u64) -> bool {
        Tag::of(number) == self.second_tag
    }

    pub(super) fn capabilities(&self) -> Capabilities {
        let (first, second) = (self.first.capabilities(), self.second.capabilities());
        Capabilities {
            name: self.name,
            operations_per_peer_max: first.operations_per_peer_max.min(second.operations_per_peer_max),
            // Of whom all may be peers: the first takes a few, or the second those of this host.
            peers_max: first.peers_max.max(second.peers_max),
            body_bytes_max: first.body_bytes_max.min(second.body_bytes_max),
            frame_bytes: first.frame_bytes.min(second.frame_bytes),
            by_reference: false,
        }
    }

    pub(super) fn attach(&mut self, region: &Region) -> Result<(), AttachError> {
        self.first.attach(region)?;
        self.second.attach(region)
    }

    pub(super) fn post(&mut self, batch: &mut Batch) -> Result<(), Full> {
        if !self.second_used {
            return self.first.post(batch);
        }
        if !self.first_used {
            return self.second.post(batch);
        }
        while let Some(operation) = batch.operations.pop_front() {
            let of_second = self.is_of_second(operation.peer.0);
            if of_second { &mut self.for_second } else { &mut self.for_first }
                .operations
                .push_back(operation);
        }
        let first = if self.for_first.is_empty() { Ok(()) } else { self.first.post(&mut self.for_first) };
        let second = if self.for_second.is_empty() { Ok(()) } else { self.second.post(&mut self.for_second) };
        // What stays goes back: the order between peers of two kinds is nobody's.
        batch.operations.append(&mut self.for_first.operations);
        batch.operations.append(&mut self.for_second.operations);
        first.and(second)
    }

    pub(super) fn poll(&mut self, events: &mut Events) {
        if !self.second_used {
            return self.first.poll(events);
        }
        if !self.first_used {
            return self.second.poll(events);
        }
        self.second_goes_first = !self.second_goes_first;
        if self.second_goes_first {
            self.second.poll(events);
            self.first.poll(events);
        } else {
            self.first.poll(events);
            self.second.poll(events);
        }
    }

    pub(super) fn place(&mut self, arrival: Arrival, destination: Option<SliceMut>) {
        if self.is_of_second(arrival.0) {
            self.second.place(arrival, destination);
        } else {
            self.first.place(arrival, destination);
        }
    }

    pub(super) fn arm(&mut self) -> Armed {
        if !self.second_used {
            return self.first.arm();
        }
        if !self.first_used {
            return self.second.arm();
        }
        match (self.first.arm(), self.second.arm()) {
            (Armed::Sleep(first), Armed::Sleep(second)) => Armed::Sleep(first.or(second)),
            _ => Armed::Ready,
        }
    }

    pub(super) fn waker(&self) -> Waker {
        self.first.waker()
    }

    pub(super) fn close(&mut self, peer: Peer) {
        if self.is_of_second(peer.0) {
            self.second.close(peer);
        } else {
            self.first.close(peer);
        }
    }
}
