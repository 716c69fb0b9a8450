//! Memory that travels: a `Region` is a mapping, a slice is a counted piece of it.
//! Knows lengths, page kinds and who still holds a piece; does not know peers or what the bytes mean.
//! Called by the shells and the store (to fill and read bodies), by `Arena`, and by every backend.
//! Source: the header with a count is `Arc`'s; that headers are made ahead follows the mbuf pools of DPDK and eRPC.
//!
//! # States of a chunk
//!
//! A *chunk* is the unit of return: a whole region, or one piece that an [`Arena`](crate::Arena) hands out. Its header
//! counts the slices that lie in it.
//!
//! | count | who may touch the bytes | next |
//! | ----- | ----------------------- | ---- |
//! | 0 | its owner (the arena's thread), nobody through a slice | 1 by `take`, which makes the one [`SliceMut`] |
//! | n | each `SliceMut` its own range, any `Slice` for reading | n + 1 by `split_off`, `cut`, `clone`; n - 1 by drop |
//!
//! `SliceMut`s of a chunk never overlap each other or a `Slice`; `Slice`s may overlap. Whoever takes the count to 0
//! returns the chunk: an arena's by a push that never waits for the owner, a region's by unmapping it.
//!
//! **Progress**: every operation on slices is wait-free but for the return to an arena, which is lock-free.
//! **Reclamation**: by the count. **Orders**: each drop is Release, pairs with the Acquire fence of the drop that
//! reaches 0 (and with the Acquire load in [`Slice::try_into_mut`]), so that whoever reuses the bytes comes after all
//! who read them.
#![allow(unsafe_code, reason = "the file that hands out memory")]

use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;

use crate::arena::Returns;
use crate::error::RegionError;
use crate::primitive::{Arc, AtomicUsize, Ordering, UnsafeCell, fence};

/// What kind of pages a region lies on, as far as this process knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pages {
    /// The system's base pages.
    Base,
    /// The kernel was asked for huge pages and agreed to try (`madvise`). Whether it found them is not said.
    HugeAdvised,
}

/// Regions of this many bytes and more ask for huge pages: the size of one on both targets.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// An anonymous mapping, zeroed. A handle, for `attach`; the bytes are reached through slices only.
///
/// The memory is unmapped when the last handle and the last slice are gone.
#[derive(Clone)]
pub struct Region {
    mapping: Arc<Mapping>,
}

impl Region {
    /// Maps `bytes` (at least one page is used, zeroed) and returns the handle and one exclusive slice of the whole,
    /// page-aligned. One system call, two with huge pages, two allocations.
    ///
    /// # Errors
    /// [`RegionError::Map`] when the system refuses.
    pub fn anonymous(bytes: usize) -> Result<(Self, SliceMut), RegionError> {
        let region = Self::map(bytes)?;
        let chunk = Box::new(Chunk::new(region.clone(), 0..bytes, None));
        // The last slice turns this pointer into a box again, in `Chunk::end`.
        let chunk = NonNull::from(Box::leak(chunk));
        // SAFETY: the chunk is new: its count is 0, nobody else knows it, and it lives until the count is 0 again.
        let slice = unsafe { SliceMut::first(chunk, bytes) };
        Ok((region, slice))
    }

    /// Maps memory without making a slice of it: for the arena, which cuts it itself.
    pub(crate) fn map(bytes: usize) -> Result<Self, RegionError> {
        Ok(Self {
            mapping: Arc::new(Mapping::new(bytes).map_err(|source| RegionError::Map { bytes, source })?),
        })
    }

    /// Its length in bytes, as asked for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.mapping.len
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The page kind.
    #[must_use]
    pub fn pages(&self) -> Pages {
        self.mapping.pages
    }

    /// Whether both are handles of one mapping.
    pub(crate) fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.mapping, &other.mapping)
    }

    fn base(&self) -> NonNull<u8> {
        self.mapping.base
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({} bytes, {:?})", self.len(), self.pages())
    }
}

/// The memory itself. Invariant: `base..base + len` is mapped, readable, writable and initialised as long as this
/// lives, and is used only through slices of chunks.
struct Mapping {
    base: NonNull<u8>,
    len: usize,
    pages: Pages,
    #[cfg(not(any(miri, loom)))]
    _memory: memmap2::MmapRaw,
}

// SAFETY: `base` is plain memory without a home thread (invariant of `Mapping`), and unmapping may happen anywhere.
unsafe impl Send for Mapping {}
// SAFETY: through a shared `Mapping` only its numbers can be read.
unsafe impl Sync for Mapping {}

#[cfg(not(any(miri, loom)))]
impl Mapping {
    fn new(bytes: usize) -> std::io::Result<Self> {
        let memory = memmap2::MmapMut::map_anon(bytes.max(1))?;
        let pages = if bytes >= HUGE_PAGE_BYTES && memory.advise(memmap2::Advice::HugePage).is_ok() {
            Pages::HugeAdvised
        } else {
            Pages::Base
        };
        let memory = memmap2::MmapRaw::from(memory);
        let base =
            NonNull::new(memory.as_mut_ptr()).ok_or_else(|| std::io::Error::other("mapped at address 0"))?;
        Ok(Self { base, len: bytes, pages, _memory: memory })
    }
}

/// Under the checkers memory comes from the heap: Miri has no `madvise`, and loom makes thousands of regions.
#[cfg(any(miri, loom))]
mod heap {
    use std::alloc::{Layout, alloc_zeroed, dealloc};

    use super::{HUGE_PAGE_BYTES, Mapping, NonNull, Pages};

    fn layout(bytes: usize) -> std::io::Result<Layout> {
        Layout::from_size_align(bytes.max(1), 4096).map_err(std::io::Error::other)
    }

    impl Mapping {
        pub(super) fn new(bytes: usize) -> std::io::Result<Self> {
            // SAFETY: the layout has at least one byte.
            let base = unsafe { alloc_zeroed(layout(bytes)?) };
            let base = NonNull::new(base).ok_or(std::io::ErrorKind::OutOfMemory)?;
            let pages = if bytes >= HUGE_PAGE_BYTES { Pages::HugeAdvised } else { Pages::Base };
            Ok(Self { base, len: bytes, pages })
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            let Ok(layout) = layout(self.len) else { return };
            // SAFETY: `new` allocated `base` with this layout, and nothing uses it any more (invariant of `Mapping`).
            unsafe { dealloc(self.base.as_ptr(), layout) }
        }
    }
}

/// Header of a chunk.
///
/// Invariants: `base..base + capacity` lies in `region`, and in no other chunk that is alive. `count` is the number of
/// slices that point here. While it is not 0 this header stays where it is and alive.
pub(crate) struct Chunk {
    count: AtomicUsize,
    /// The next one in the arena's return stack; written by whoever took the count to 0, read by the arena's thread.
    pub(crate) next: UnsafeCell<*mut Self>,
    base: NonNull<u8>,
    capacity: usize,
    region: Region,
    /// Its place among the arena's common mappings; `None` when it has a mapping of its own.
    step: Option<u32>,
    /// Where it goes at count 0; `None`: this header is a box of its own, and is dropped.
    home: Option<NonNull<Returns>>,
    /// Stands for the bytes in the models: loom sees the order of reads and writes through it.
    #[cfg(loom)]
    bytes: UnsafeCell<()>,
}

impl Chunk {
    /// A chunk of nobody, over the bytes `range` of the region.
    pub(crate) fn new(region: Region, range: Range<usize>, home: Option<NonNull<Returns>>) -> Self {
        assert!(range.start <= range.end && range.end <= region.len(), "{range:?} of {} bytes", region.len());
        // SAFETY: the range was just checked to lie in the region.
        let base = unsafe { region.base().add(range.start) };
        Self {
            count: AtomicUsize::new(0),
            next: UnsafeCell::new(std::ptr::null_mut()),
            base,
            capacity: range.len(),
            region,
            step: None,
            home,
            #[cfg(loom)]
            bytes: UnsafeCell::new(()),
        }
    }

    /// The same chunk, cut from the arena's common mapping of this place, if it was.
    pub(crate) fn in_step(mut self, step: Option<u32>) -> Self {
        self.step = step;
        self
    }

    pub(crate) fn step(&self) -> Option<u32> {
        self.step
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    /// Returns a chunk whose count has just become 0.
    ///
    /// # Safety
    /// The caller took the count to 0 and has synchronised with all other holders.
    #[inline]
    unsafe fn end(chunk: NonNull<Self>) {
        // SAFETY: at count 0 the header stays alive until its owner is told, which is what follows.
        let home = unsafe { (*chunk.as_ptr()).home };
        match home {
            // SAFETY: the caller's promise, and the stack outlives every chunk that has not been returned.
            Some(home) => unsafe { Returns::push(home, chunk) },
            // SAFETY: `Region::anonymous` leaked this box, and no slice points to it any more.
            None => drop(unsafe { Box::from_raw(chunk.as_ptr()) }),
        }
    }
}

/// One counted range of a chunk: what both kinds of slices are made of.
///
/// Invariants: `start..start + len` lies in the chunk's bytes; the chunk's count includes this.
struct Piece {
    chunk: NonNull<Chunk>,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the header is shared through an atomic count only, its other fields do not change while the count is not 0,
// and the bytes are reached only through `Slice` (reading) and `SliceMut` (one holder); both may be on any thread,
// because the count's orders put every access before the reuse.
unsafe impl Send for Piece {}
// SAFETY: as for `Send`; a shared piece gives out numbers, and bytes only as its wrapper allows.
unsafe impl Sync for Piece {}

impl Piece {
    /// Another count of the same chunk, for `range` of this piece, which the caller has checked.
    #[inline]
    fn share(&self, range: Range<usize>) -> Self {
        debug_assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} bytes", self.len);
        // SAFETY: the count includes this piece, so the header is alive.
        let count = unsafe { &self.chunk.as_ref().count };
        // Relaxed: the new holder learns of the bytes through whatever hands it this piece. 64 bits do not overflow.
        count.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the range lies within this piece.
        let start = unsafe { self.start.add(range.start) };
        Self { chunk: self.chunk, start, len: range.len() }
    }

    #[inline]
    fn bytes(&self) -> *const [u8] {
        std::ptr::slice_from_raw_parts(self.start.as_ptr(), self.len)
    }

    fn region(&self) -> &Region {
        // SAFETY: the count includes this piece, so the header is alive.
        unsafe { &self.chunk.as_ref().region }
    }

    #[inline]
    fn looked_at(&self) {
        #[cfg(loom)]
        // SAFETY: the count includes this piece, so the header is alive.
        unsafe { self.chunk.as_ref() }.bytes.with(|_| ());
    }

    #[inline]
    fn written_to(&mut self) {
        #[cfg(loom)]
        // SAFETY: the count includes this piece, so the header is alive.
        unsafe { self.chunk.as_ref() }.bytes.with_mut(|_| ());
    }
}

impl Drop for Piece {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the count includes this piece, so the header is alive; afterwards it is not touched, but by the last.
        let count = unsafe { &(*self.chunk.as_ptr()).count };
        // Release, pairs with the Acquire fence of the last drop: all our reads and writes come before the reuse.
        if count.fetch_sub(1, Ordering::Release) == 1 {
            // Acquire, pairs with the Release of every earlier drop.
            fence(Ordering::Acquire);
            // SAFETY: this drop took the count to 0, and the fence has synchronised with the others.
            unsafe { Chunk::end(self.chunk) }
        }
    }
}

/// An exclusive piece of memory: to be written, then frozen. May be moved to any thread, not cloned.
///
/// Invariant: no other slice covers any of its bytes.
pub struct SliceMut(Piece);

impl SliceMut {
    /// The first slice of a chunk: its first `len` bytes.
    ///
    /// # Safety
    /// The chunk's count is 0 and the caller owns it; `len` is at most its capacity; the header stays alive and in
    /// its place until the count is 0 again.
    #[inline]
    pub(crate) unsafe fn first(chunk: NonNull<Chunk>, len: usize) -> Self {
        // SAFETY: the caller owns the chunk, so it is alive.
        let header = unsafe { chunk.as_ref() };
        debug_assert!(len <= header.capacity, "{len} bytes of a chunk of {}", header.capacity);
        // Relaxed: whoever gets a piece of it gets it from this thread.
        header.count.store(1, Ordering::Relaxed);
        Self(Piece { chunk, start: header.base, len })
    }

    /// Length in bytes.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether there are no bytes.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// The bytes.
    #[must_use]
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.looked_at();
        // SAFETY: the range lies in live initialised memory (`Piece`) and only this slice covers it (`SliceMut`).
        unsafe { &*self.0.bytes() }
    }

    /// The bytes, to be written.
    #[must_use]
    #[inline]
    pub fn as_mut_bytes(&mut self) -> &mut [u8] {
        self.0.written_to();
        // SAFETY: the range lies in live initialised memory (`Piece`) and only this slice covers it (`SliceMut`).
        unsafe { &mut *self.0.bytes().cast_mut() }
    }

    /// Keeps `[0, at)` here and returns `[at, len)`, both exclusive. The two return to their owner together, when both
    /// are gone.
    ///
    /// # Panics
    /// When `at > len`.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        assert!(at <= self.len(), "split at {at} of {} bytes", self.len());
        let rest = self.0.share(at..self.0.len);
        self.0.len = at;
        Self(rest)
    }

    /// Shortens it to `len` bytes; longer is no change. The rest is unreachable until the chunk comes back.
    pub fn truncate(&mut self, len: usize) {
        self.0.len = self.0.len.min(len);
    }

    /// Gives up writing. Costs nothing.
    #[must_use]
    #[inline]
    pub fn freeze(self) -> Slice {
        Slice(self.0)
    }

    /// The region it lies in.
    #[must_use]
    pub fn region(&self) -> &Region {
        self.0.region()
    }
}

impl fmt::Debug for SliceMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SliceMut({} bytes)", self.len())
    }
}

/// A piece of memory that nobody writes any more. Cloning and cutting count one up and copy nothing.
///
/// Alignment: a region's and an arena's slice begins 64-byte aligned; a cut begins wherever it was cut.
///
/// Invariant: no `SliceMut` covers any of its bytes.
pub struct Slice(Piece);

impl Slice {
    /// Length in bytes.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether there are no bytes.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// The bytes.
    #[must_use]
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.looked_at();
        // SAFETY: the range lies in live initialised memory (`Piece`) and nobody writes it (`Slice`).
        unsafe { &*self.0.bytes() }
    }

    /// The bytes `range` of it, sharing the memory.
    ///
    /// # Panics
    /// When the range does not lie within the slice.
    #[must_use]
    #[inline]
    pub fn cut(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len(), "cut {range:?} of {} bytes", self.len());
        Self(self.0.share(range))
    }

    /// The same piece for writing, when it is the only one left in its chunk.
    ///
    /// # Errors
    /// The slice itself, when another slice of the same region (or of the same piece of an arena) is alive, wherever
    /// it lies.
    pub fn try_into_mut(self) -> Result<SliceMut, Self> {
        // SAFETY: the count includes this piece, so the header is alive.
        let count = unsafe { &self.0.chunk.as_ref().count };
        // Acquire, pairs with the Release in `Piece::drop`: reads through dropped slices come before our writes. Seen
        // 1, nobody else can count up: that needs a piece, and this is the only one.
        if count.load(Ordering::Acquire) == 1 { Ok(SliceMut(self.0)) } else { Err(self) }
    }

    /// The region it lies in.
    #[must_use]
    pub fn region(&self) -> &Region {
        self.0.region()
    }
}

impl Clone for Slice {
    #[inline]
    fn clone(&self) -> Self {
        Self(self.0.share(0..self.0.len))
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slice({} bytes)", self.len())
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
