//! The provided buffers of one endpoint: given to the kernel, received into, handed out as slices, given again.
//! Knows memory and numbers; does not know what was received. Called by the endpoint.
//! Source: io_uring_register_buf_ring(3); the crate has no manager of it.
//!
//! # States of a buffer
//!
//! | state | who may touch it | next |
//! | ----- | ---------------- | ---- |
//! | given | the kernel; its `SliceMut` lies in `given` and is not looked at | received, by a completion that names it |
//! | received | holders of its slices, reading | free, by the drop of the last, on any thread |
//! | free | nobody; it is a chunk of the arena | given, by `refill` |
//!
//! The arena is what brings buffers back: each buffer is one of its chunks, and all are of one class.
#![allow(unsafe_code, reason = "writes entries that the kernel reads")]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use super::ring::{Ring, Why};
use crate::arena::Arena;
use crate::region::{Region, Slice, SliceMut};

/// The only group of an endpoint.
pub(super) const GROUP: u16 = 0;

pub(super) struct Buffers {
    /// Invariant: the address of as many entries as there are numbers, in `entries`; the first holds the tail as well.
    base: NonNull<BufRingEntry>,
    entries: Option<SliceMut>,
    /// By number: the buffer that the kernel has under it.
    given: Vec<Option<SliceMut>>,
    given_count: usize,
    /// Numbers that the kernel does not have.
    free: Vec<u16>,
    tail: u16,
    arena: Arena,
    buffer_bytes: usize,
}

// SAFETY: `base` leads to memory without a home thread that this alone writes (invariant of `Buffers`).
unsafe impl Send for Buffers {}

impl Buffers {
    /// `count` buffers (rounded up to a power of two) of `buffer_bytes`, none of them given yet.
    pub(super) fn new(ring: &Ring, count: u16, buffer_bytes: usize) -> Result<Self, Why> {
        let count = count.clamp(2, 1 << 15).next_power_of_two();
        let buffer_bytes = buffer_bytes.clamp(4096, 1 << 20).next_power_of_two();
        let entries_bytes = usize::from(count) * size_of::<BufRingEntry>();
        let no_memory = || Why::of(&std::io::Error::from_raw_os_error(libc::ENOMEM));
        let (_, mut entries) = Region::anonymous(entries_bytes).map_err(|_| no_memory())?;
        let base = NonNull::from(entries.as_mut_bytes()).cast::<BufRingEntry>();
        // SAFETY: a region is zeroed and page-aligned; this keeps it, and the endpoint drops it after the ring's last use.
        let registered = unsafe { ring.register_buffers(base.as_ptr().addr() as u64, count, GROUP) };
        registered.map_err(|error| Why::of(&error))?;
        Ok(Self {
            base,
            entries: Some(entries),
            given: (0..count).map(|_| None).collect(),
            given_count: 0,
            free: (0..count).rev().collect(),
            tail: 0,
            arena: Arena::new(usize::from(count) * buffer_bytes),
            buffer_bytes,
        })
    }

    pub(super) fn count(&self) -> usize {
        self.given.len()
    }

    pub(super) fn buffer_bytes(&self) -> usize {
        self.buffer_bytes
    }

    /// Buffers that the kernel has, as far as completions were looked at.
    pub(super) fn given_count(&self) -> usize {
        self.given_count
    }

    /// Gives the kernel all buffers that have come back.
    pub(super) fn refill(&mut self) {
        let before = self.tail;
        while let Some(number) = self.free.last().copied() {
            let Some(mut buffer) = self.arena.take(self.buffer_bytes) else { break };
            self.free.pop();
            let address = buffer.as_mut_bytes().as_mut_ptr().addr() as u64;
            let index = usize::from(self.tail) & (self.given.len() - 1);
            // SAFETY: `index` is less than the number of entries (invariant of `base`).
            let entry = unsafe { self.base.add(index) };
            // SAFETY: as above; the kernel reads an entry only after the tail has passed it.
            let entry = unsafe { &mut *entry.as_ptr() };
            entry.set_addr(address);
            entry.set_len(u32::try_from(self.buffer_bytes).unwrap_or(0));
            entry.set_bid(number);
            self.given[usize::from(number)] = Some(buffer);
            self.given_count += 1;
            self.tail = self.tail.wrapping_add(1);
        }
        if self.tail != before {
            // SAFETY: `base` is the first entry.
            let tail = unsafe { BufRingEntry::tail(self.base.as_ptr()) };
            // SAFETY: the tail is an aligned 16-bit word of live memory that is only accessed atomically.
            let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
            // Release, pairs with the kernel's acquire load: the entries are written before they count.
            tail.store(self.tail, Ordering::Release);
        }
    }

    /// Never frees what the kernel has.
    pub(super) fn leak(&mut self) {
        self.given.drain(..).for_each(std::mem::forget);
        if let Some(entries) = self.entries.take() {
            std::mem::forget(entries);
        }
    }

    /// The first `count` bytes of a buffer that the kernel has filled and does not have any more.
    pub(super) fn take(&mut self, number: u16, count: usize) -> Option<Slice> {
        let mut buffer = self.given.get_mut(usize::from(number))?.take()?;
        self.given_count -= 1;
        self.free.push(number);
        buffer.truncate(count);
        Some(buffer.freeze())
    }
}
