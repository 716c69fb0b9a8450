//! The memory that two processes share: a sealed memfd with each side's words and one ring of bytes per direction.
//! Knows layout, seals and sizes; does not know what the words mean or what passes through the rings.
//! Made and checked by `exchange.rs`; read and written by `ring.rs` and `bell.rs`.
//! Source: memfd_create(2) and the sealing that it describes.
//!
//! ```text
//!                  0 side 0: bytes written (8)                            one line pair (128) each: what one side
//!                128 side 0: bytes read of what side 1 wrote (8)          writes often is not fetched with
//!                256 side 0: state of its bell (8), closed (4)            what it writes rarely
//!                384 unused
//!                512 side 1: the same
//!               4096 ring that side 0 writes (a power of two of bytes)
//!  4096 + ring bytes ring that side 1 writes
//! ```
//!
//! **Neither side can take memory away from the other.** The file is sealed against shrinking before the other side maps it, and the
//! other side looks: without the seal an access could end this process (SIGBUS). Its length is exactly what the layout says.
//! All pages are there before it is passed on, so that what is missing is an error then and not a signal later. A peer that punches
//! holes into the file gets zeros, as if it had written them.
//!
//! **Invariant** of [`Mapping`]: `base` is mapped, readable and writable, for the whole layout as long as it lives, and is touched
//! by atomics and by `copy.rs` only. No reference to a byte of the rings is ever made.
#![allow(unsafe_code, reason = "maps memory that another process may be changing")]

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    FallocateFlags, FileType, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals, fstat,
    ftruncate, memfd_create,
};
use thiserror::Error;

use crate::primitive::{AtomicU32, AtomicU64};

/// Words of one side: it writes them, the other side reads them.
#[repr(C, align(512))]
pub(super) struct Side {
    /// Bytes that this side has written into its ring, since the beginning.
    pub(super) written: Line<AtomicU64>,
    /// Bytes that this side has read out of the other's ring, since the beginning.
    pub(super) read: Line<AtomicU64>,
    /// Written when it falls asleep, wakes, or ends.
    pub(super) state: Line<State>,
}

#[repr(C)]
pub(super) struct State {
    /// Odd: this side wants to be rung (`bell.rs`).
    pub(super) bell: AtomicU64,
    /// 1: this side has ended the link in an orderly way, after its last byte.
    pub(super) closed: AtomicU32,
}

/// Two cache lines: the processor fetches them in pairs.
#[repr(C, align(128))]
pub(super) struct Line<T>(pub(super) T);

/// Where the rings begin: a page, so that they are aligned to anything.
const RINGS_BEGIN: usize = 4096;

#[cfg(not(loom))]
const _: () = assert!(size_of::<Side>() == 512 && 2 * size_of::<Side>() <= RINGS_BEGIN);

/// Bytes of a mapping with rings of `ring_bytes`.
pub(super) fn mapped_bytes(ring_bytes: usize) -> usize {
    RINGS_BEGIN + 2 * ring_bytes
}

/// Why memory that another process offers is not mapped.
#[derive(Debug, Error)]
pub(super) enum Unfit {
    #[error("what was passed is not shared memory that can be sealed (memfd)")]
    NotMemory,
    #[error("the shared memory may still shrink; it must be sealed before it is passed on")]
    NotSealed,
    #[error("the shared memory has {found} bytes instead of {expected}")]
    Size { expected: u64, found: u64 },
    #[error("the system does not map it: {0}")]
    Map(std::io::Error),
}

/// What must hold of a file before its bytes are touched.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

impl Mapping {
    /// Makes the memory, every page of it, seals it and maps it. The descriptor is for the other side.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn create(ring_bytes: usize) -> std::io::Result<(Self, OwnedFd)> {
        let file = memfd_create("rangefold-link", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let bytes = mapped_bytes(ring_bytes) as u64;
        ftruncate(&file, bytes)?;
        fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
        fcntl_add_seals(&file, SEALS)?;
        Ok((Self::map(&file, ring_bytes)?, file))
    }

    /// Checks what another process has made, and maps it.
    ///
    /// # Errors
    /// [`Unfit`].
    pub(super) fn open(file: impl AsFd, ring_bytes: usize) -> Result<Self, Unfit> {
        // Anything but shared memory has no seals.
        let seals = fcntl_get_seals(&file).map_err(|_| Unfit::NotMemory)?;
        let status = fstat(&file).map_err(|_| Unfit::NotMemory)?;
        if !FileType::from_raw_mode(status.st_mode).is_file() {
            return Err(Unfit::NotMemory);
        }
        if !seals.contains(SEALS) {
            return Err(Unfit::NotSealed);
        }
        // Sealed, so it stays as it is found.
        let (expected, found) = (mapped_bytes(ring_bytes) as u64, u64::try_from(status.st_size).unwrap_or(0));
        if found != expected {
            return Err(Unfit::Size { expected, found });
        }
        Self::map(&file, ring_bytes).map_err(Unfit::Map)
    }
}

#[cfg(not(loom))]
pub(super) use shared::Mapping;

#[cfg(not(loom))]
mod shared {
    use std::os::fd::AsFd;
    use std::ptr::NonNull;

    use super::{RINGS_BEGIN, Side, mapped_bytes};
    use crate::shm::copy;

    /// The mapping of one link in this process (module header).
    pub(in crate::shm) struct Mapping {
        base: NonNull<u8>,
        /// A power of two.
        ring_bytes: usize,
        #[cfg_attr(not(test), expect(dead_code, reason = "unmaps when it is dropped"))]
        memory: Memory,
    }

    /// What `base` points into.
    enum Memory {
        Shared(#[expect(dead_code, reason = "unmaps when it is dropped")] memmap2::MmapRaw),
        /// Of this process alone: the rings' tests need no more, and Miri has no memfd.
        #[cfg(test)]
        Heap,
    }

    // SAFETY: the memory has no home thread, and unmapping may happen anywhere.
    unsafe impl Send for Mapping {}
    // SAFETY: the memory is touched by atomics and racing copies only (module header), from any number of threads.
    unsafe impl Sync for Mapping {}

    impl Mapping {
        pub(in crate::shm) fn ring_bytes(&self) -> usize {
            self.ring_bytes
        }

        pub(in crate::shm) fn side(&self, side: usize) -> &Side {
            assert!(side < 2, "a link has two sides");
            // SAFETY: both sides' words lie within the first page, aligned (layout above, sizes asserted).
            let words = unsafe { self.base.cast::<Side>().add(side) };
            // SAFETY: mapped as long as `self` (invariant), any bits are valid atomics, and only atomics are in it: what
            // the other process changes it changes under `UnsafeCell`s.
            unsafe { words.as_ref() }
        }

        /// Copies `from`, at most a ring of bytes, into the ring of `side`, beginning at `position`.
        #[inline]
        pub(in crate::shm) fn write(&self, side: usize, position: u64, from: &[u8]) {
            let (place, to_end) = self.place(side, position);
            assert!(from.len() <= self.ring_bytes, "at most a ring");
            let (first, rest) = from.split_at(from.len().min(to_end));
            // SAFETY: `place` is followed by `to_end` bytes of the ring, and no reference leads there (invariant).
            unsafe { copy::copy_in(first, place) };
            if !rest.is_empty() {
                let (begin, _) = self.place(side, 0);
                // SAFETY: `begin` is followed by a whole ring, and `rest` is not longer.
                unsafe { copy::copy_in(rest, begin) };
            }
        }

        /// Copies bytes, at most a ring, out of the ring of `side`, beginning at `position`, into `to`.
        #[inline]
        pub(in crate::shm) fn read(&self, side: usize, position: u64, to: &mut [u8]) {
            let (place, to_end) = self.place(side, position);
            assert!(to.len() <= self.ring_bytes, "at most a ring");
            let (first, rest) = to.split_at_mut(to.len().min(to_end));
            // SAFETY: as in `write`.
            unsafe { copy::copy_out(place, first) };
            if !rest.is_empty() {
                let (begin, _) = self.place(side, 0);
                // SAFETY: as in `write`.
                unsafe { copy::copy_out(begin, rest) };
            }
        }

        /// Asks the processor for the lines of `len` bytes, which may be in the other one's cache. Reads nothing.
        #[inline]
        pub(in crate::shm) fn prefetch(&self, side: usize, position: u64, len: usize) {
            for at in (0..len).step_by(64) {
                let (place, _) = self.place(side, position + at as u64);
                copy::prefetch(place);
            }
        }

        /// Where a position lies in a ring, and how many bytes of the ring begin there.
        #[inline]
        fn place(&self, side: usize, position: u64) -> (*mut u8, usize) {
            assert!(side < 2, "a link has two sides");
            let mask = self.ring_bytes as u64 - 1;
            // The mask is below `ring_bytes`, a `usize`.
            #[expect(clippy::cast_possible_truncation, reason = "masked to less than a `usize`")]
            let index = (position & mask) as usize;
            // SAFETY: `index < ring_bytes`, so the place lies in the ring of this side (layout above).
            let place = unsafe { self.base.add(RINGS_BEGIN + side * self.ring_bytes + index) };
            (place.as_ptr(), self.ring_bytes - index)
        }

        pub(super) fn map(file: impl AsFd, ring_bytes: usize) -> std::io::Result<Self> {
            assert!(ring_bytes.is_power_of_two(), "positions are masked");
            let file = file.as_fd();
            // With its pages, so that no message pays for them.
            let memory =
                memmap2::MmapOptions::new().len(mapped_bytes(ring_bytes)).populate().map_raw(&file)?;
            let base = NonNull::new(memory.as_mut_ptr());
            let base = base.ok_or_else(|| std::io::Error::other("mapped at address 0"))?;
            Ok(Self { base, ring_bytes, memory: Memory::Shared(memory) })
        }
    }

    #[cfg(test)]
    mod heap {
        use std::alloc::{Layout, alloc_zeroed, dealloc};

        use super::{Mapping, Memory, NonNull, RINGS_BEGIN, mapped_bytes};

        fn layout(ring_bytes: usize) -> Layout {
            Layout::from_size_align(mapped_bytes(ring_bytes), RINGS_BEGIN).expect("a small ring")
        }

        impl Mapping {
            pub(in crate::shm) fn private(ring_bytes: usize) -> Self {
                assert!(ring_bytes.is_power_of_two(), "positions are masked");
                // SAFETY: the layout has more than a page.
                let base = NonNull::new(unsafe { alloc_zeroed(layout(ring_bytes)) });
                Self { base: base.expect("memory"), ring_bytes, memory: Memory::Heap }
            }
        }

        impl Drop for Mapping {
            fn drop(&mut self) {
                if matches!(self.memory, Memory::Heap) {
                    // SAFETY: `private` allocated it with this layout, and it is used no more.
                    unsafe { dealloc(self.base.as_ptr(), layout(self.ring_bytes)) }
                }
            }
        }
    }
}

/// For the models: loom's atomics cannot lie in a mapping. The bytes are cells, whose every use loom orders: between two correct
/// sides there must be no race, though the copies would bear one.
#[cfg(loom)]
mod modelled {
    use std::os::fd::AsFd;

    use super::{Line, Side, State};
    use crate::primitive::{AtomicU32, AtomicU64, UnsafeCell};

    pub(in crate::shm) struct Mapping {
        sides: [Side; 2],
        rings: [Box<[UnsafeCell<u8>]>; 2],
    }

    // SAFETY: loom fails a model in which two threads use a cell at once.
    unsafe impl Sync for Mapping {}

    impl Mapping {
        pub(in crate::shm) fn private(ring_bytes: usize) -> Self {
            let side = || Side {
                written: Line(AtomicU64::new(0)),
                read: Line(AtomicU64::new(0)),
                state: Line(State { bell: AtomicU64::new(0), closed: AtomicU32::new(0) }),
            };
            let ring = || (0..ring_bytes).map(|_| UnsafeCell::new(0)).collect();
            Self { sides: [side(), side()], rings: [ring(), ring()] }
        }

        pub(super) fn map(_file: impl AsFd, _ring_bytes: usize) -> std::io::Result<Self> {
            Err(std::io::Error::other("the models share no memory with other processes"))
        }

        pub(in crate::shm) fn ring_bytes(&self) -> usize {
            self.rings[0].len()
        }

        pub(in crate::shm) fn side(&self, side: usize) -> &Side {
            &self.sides[side]
        }

        pub(in crate::shm) fn write(&self, side: usize, position: u64, from: &[u8]) {
            for (position, byte) in (position..).zip(from) {
                // SAFETY: the byte is this side's (`ring.rs`), which loom checks.
                self.byte(side, position).with_mut(|place| unsafe { *place = *byte });
            }
        }

        pub(in crate::shm) fn read(&self, side: usize, position: u64, to: &mut [u8]) {
            for (position, byte) in (position..).zip(to) {
                // SAFETY: as in `write`.
                *byte = self.byte(side, position).with(|place| unsafe { *place });
            }
        }

        pub(in crate::shm) fn prefetch(&self, _side: usize, _position: u64, _len: usize) {}

        fn byte(&self, side: usize, position: u64) -> &UnsafeCell<u8> {
            let index = position % self.rings[side].len() as u64;
            &self.rings[side][usize::try_from(index).expect("a small ring")]
        }
    }
}
#[cfg(loom)]
pub(super) use modelled::Mapping;
