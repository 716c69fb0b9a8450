//! Memory for bodies, by the message: size classes over regions, within a budget.
//! Knows sizes and what is free; does not know what the bytes are for.
//! Called by the shells (staging, replies) and by backends; its slices are dropped on any thread.
//! Source: power-of-two classes as in eRPC's `HugeAlloc`; the stack is Treiber's, emptied whole.
//!
//! # States of a chunk
//!
//! | state | who holds it | goes to |
//! | ----- | ------------ | ------- |
//! | free | the arena's thread, in the list of its class | taken, by [`Arena::take`]; or gone, with its mapping |
//! | taken | its slices, on any thread | returned, by the drop of the last one |
//! | returned | the return stack | free, when the arena's thread drains the stack |
//!
//! **Return stack.** Any thread pushes by compare-and-swap of the head; the arena's thread takes the *whole* list by a
//! swap. Nobody pops one element, so there is no ABA: a push only needs the head to be what it wrote into `next`, not
//! that nothing happened in between.
//!
//! **Progress.** `take` is wait-free but for growth (an allocation and at times a mapping, in `grow`). The return is
//! lock-free: a push repeats only when another push or a drain got in between.
//!
//! **Reclamation.** A header lives while its chunk is taken, returned, or in a free list; the arena's thread takes free ones out
//! of their lists, then drops headers and mapping. Otherwise they live as long as the arena or any slice. A dropped arena
//! closes the stack (swaps in `CLOSED`), leaves its *estate* there and adds the number of chunks still taken to `orphans`;
//! a return that finds the stack closed subtracts one. Sums can pass below 0 in between, and reach 0 exactly once: whoever
//! gets there frees the estate.
//!
//! **Orders.** The push is Release, pairs with the Acquire of the swap in `drain`. Both sides of `orphans` are AcqRel
//! and pair with each other.
#![allow(unsafe_code, reason = "hands chunks out and takes them back")]

use std::ptr::NonNull;

use crate::error::RegionError;
use crate::primitive::{AtomicIsize, AtomicPtr, Ordering, UnsafeCell};
use crate::region::{Chunk, Region, SliceMut};

/// The smallest class: a cache line, so that two slices never share one.
const CLASS_BYTES_MIN: usize = 64;
/// The largest class. A chunk above it gets a mapping of its own.
const CLASS_BYTES_MAX: usize = 4 << 20;
const CLASS_COUNT: usize = (CLASS_BYTES_MAX / CLASS_BYTES_MIN).trailing_zeros() as usize + 1;
/// Classes up to this size are cut from common mappings; above, each chunk is a mapping.
const SHARED_BYTES_MAX: usize = 256 << 10;
/// A common mapping: two huge pages, and at most 1/16 of it is left over at its end.
const STEP_BYTES: usize = if TINY { 1024 } else { 4 << 20 };
/// What a class gets at once from a common mapping, so that the headers' allocation is shared by many chunks.
const RUN_BYTES: usize = if TINY { 256 } else { 64 << 10 };
/// Mappings of large chunks are multiples of this: a huge page.
const LARGE_STEP_BYTES: usize = 2 << 20;
/// The checkers see every branch sooner when little fits.
const TINY: bool = cfg!(any(miri, loom));

/// Stands in the head of the return stack when the arena is gone. No header has this address.
const CLOSED: *mut Chunk = std::ptr::without_provenance_mut(1);

/// Where chunks come back to; shared by the arena and its chunks in flight.
///
/// Invariant: alive until the arena is dropped *and* every chunk taken has been pushed (module header, Reclamation).
pub(crate) struct Returns {
    head: AtomicPtr<Chunk>,
    orphans: AtomicIsize,
    /// What keeps headers and mappings alive; written by `Arena::drop` before it adds to `orphans`, and dropped by
    /// whoever brings `orphans` to 0.
    estate: UnsafeCell<Option<Estate>>,
}

/// All headers that an arena has, and through them the regions.
///
/// Invariant: a run's vector holds at least one header, and is never grown or moved from its allocation, so headers stay where
/// they are.
#[derive(Default)]
struct Estate {
    runs: Vec<Vec<Chunk>>,
}

impl Returns {
    /// Gives a chunk back, from any thread. Lock-free, no system call.
    ///
    /// # Safety
    /// `chunk` was taken from the arena of `returns`, its count is 0, and the caller took it there.
    pub(crate) unsafe fn push(returns: NonNull<Self>, chunk: NonNull<Chunk>) {
        // SAFETY: `chunk` has not been pushed, so `returns` is alive (invariant of `Returns`).
        let head_cell = unsafe { &(*returns.as_ptr()).head };
        // Relaxed: only compared, never followed.
        let mut head = head_cell.load(Ordering::Relaxed);
        while head != CLOSED {
            // SAFETY: at count 0 and not yet pushed, the header is alive and this thread's alone.
            let next = unsafe { &chunk.as_ref().next };
            // SAFETY: as above, so nobody reads `next` meanwhile.
            next.with_mut(|next| unsafe { *next = head });
            // Release, pairs with the Acquire swap in `drain` and in `Arena::drop`.
            match head_cell.compare_exchange_weak(head, chunk.as_ptr(), Ordering::Release, Ordering::Relaxed)
            {
                // From here on the owner may free everything: touch nothing.
                Ok(_) => return,
                Err(found) => head = found,
            }
        }
        // SAFETY: as above: this chunk was never pushed and is not subtracted yet.
        let orphans = unsafe { &(*returns.as_ptr()).orphans };
        // AcqRel, pairs with itself in other threads and with the addition in `Arena::drop`.
        if orphans.fetch_sub(1, Ordering::AcqRel) == 1 {
            // SAFETY: the sum is 0: the arena is gone, has left its estate, and every chunk was returned.
            unsafe { Self::bury(returns) }
        }
    }

    /// # Safety
    /// Nobody else uses `returns`, any header, or any slice of them.
    unsafe fn bury(returns: NonNull<Self>) {
        // SAFETY: `Arena::new` leaked this box, and it is used no more.
        let returns = unsafe { Box::from_raw(returns.as_ptr()) };
        // Through the cell, so that the models see that the estate was left before.
        // SAFETY: the caller's promise: nobody else looks at it.
        drop(returns.estate.with_mut(|estate| unsafe { (*estate).take() }));
    }
}

/// A common mapping: how many chunks were cut from it, and how many of them are in free lists.
struct Step {
    region: Region,
    made: usize,
    free: usize,
}

/// Hands out slices of memory within a budget. Owned by one thread; its slices may be dropped on any.
///
/// Memory that was mapped for one class stays with it, so that no class can starve another: `None` can come while other classes
/// have chunks to spare. In an arena that is [moving](Self::moving) it does not stay.
pub struct Arena {
    returns: NonNull<Returns>,
    estate: Estate,
    /// Per class, the free chunks. Invariant: each has count 0, is in no other list, and lies in `estate`.
    free: [Vec<NonNull<Chunk>>; CLASS_COUNT],
    /// Per class, the chunks ever made: what its free list must be able to hold.
    made: [usize; CLASS_COUNT],
    /// Free chunks above the largest class, as many as returned; the same invariant.
    free_large: Vec<NonNull<Chunk>>,
    /// The common mappings; a hole where one was unmapped.
    steps: Vec<Option<Step>>,
    /// The one that is being cut up, and where its unused rest begins.
    cutting: Option<(u32, usize)>,
    /// Bytes of the common mappings all of whose chunks are free.
    free_step_bytes: usize,
    /// Whether memory moves between classes.
    moves: bool,
    regions: Vec<Region>,
    taken_count: usize,
    used_bytes: usize,
    mapped_bytes: usize,
    budget_bytes: usize,
    refused: Option<RegionError>,
}

// SAFETY: the pointers lead to headers and a stack that have no home thread; only one thread at a time has the arena
// (it is not `Sync`, and its methods take `&mut self`).
unsafe impl Send for Arena {}

impl Arena {
    /// An arena that maps at most `budget_bytes`, and nothing yet.
    #[must_use]
    pub fn new(budget_bytes: usize) -> Self {
        let returns = Returns {
            head: AtomicPtr::new(std::ptr::null_mut()),
            orphans: AtomicIsize::new(0),
            estate: UnsafeCell::new(None),
        };
        Self {
            returns: NonNull::from(Box::leak(Box::new(returns))),
            estate: Estate::default(),
            free: [const { Vec::new() }; CLASS_COUNT],
            made: [0; CLASS_COUNT],
            free_large: Vec::new(),
            steps: Vec::new(),
            cutting: None,
            free_step_bytes: 0,
            moves: false,
            regions: Vec::new(),
            taken_count: 0,
            used_bytes: 0,
            mapped_bytes: 0,
            budget_bytes: budget_bytes / CLASS_BYTES_MIN * CLASS_BYTES_MIN,
            refused: None,
        }
    }

    /// The same arena, in which memory moves between classes: when the budget is used up, mappings that are wholly free are
    /// unmapped for whoever asks, and then a larger free chunk serves a smaller request. `None` while memory is free then means
    /// that it lies in pieces that are too small.
    #[must_use]
    pub fn moving(mut self) -> Self {
        self.moves = true;
        self
    }

    /// A slice of `len` bytes, 64-byte aligned, its contents unspecified (what was there before). `None`: the budget is
    /// used up, or the system refused memory ([`refused`](Self::refused) says so); try again after slices were dropped.
    ///
    /// A list's pop when the class has a free chunk; else the returned ones are collected, else memory is added. When it is moved
    /// from other classes for that: system calls, and a pass over what is free.
    #[must_use]
    pub fn take(&mut self, len: usize) -> Option<SliceMut> {
        let chunk = match class_of(len) {
            Some(class) => self.chunk_of(class)?,
            None => self.large_chunk(len)?,
        };
        self.taken_count += 1;
        // SAFETY: chunks in the free lists are alive (invariant of `free`).
        self.used_bytes += unsafe { chunk.as_ref() }.capacity();
        // SAFETY: it was in a free list: count 0, ours, large enough by its class; it lives until it is returned.
        Some(unsafe { SliceMut::first(chunk, len) })
    }

    /// Bytes that a slice of `len` bytes takes of the budget.
    #[must_use]
    pub fn footprint(len: usize) -> usize {
        let large = || len.checked_next_multiple_of(LARGE_STEP_BYTES).unwrap_or(usize::MAX);
        class_of(len).map_or_else(large, class_bytes)
    }

    /// Bytes of the chunks handed out and not collected yet, sizes rounded up to their class.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// Bytes mapped so far; at most the budget.
    #[must_use]
    pub fn mapped_bytes(&self) -> usize {
        self.mapped_bytes
    }

    /// The budget: what was asked for, rounded down to whole cache lines.
    #[must_use]
    pub fn budget_bytes(&self) -> usize {
        self.budget_bytes
    }

    /// The regions mapped so far, to be attached. Grows at its end; loses those that are unmapped.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Takes the system's last refusal to map memory, if there was one.
    pub fn refused(&mut self) -> Option<RegionError> {
        self.refused.take()
    }

    /// Moves what other threads returned into the free lists. `take` does it when it has to.
    pub fn collect(&mut self) {
        for chunk in self.drain() {
            // SAFETY: a drained chunk is ours and alive.
            let capacity = unsafe { chunk.as_ref() }.capacity();
            self.taken_count -= 1;
            self.used_bytes -= capacity;
            match class_of(capacity) {
                Some(class) => self.put(class, chunk),
                None => self.free_large.push(chunk),
            }
        }
    }

    fn chunk_of(&mut self, class: usize) -> Option<NonNull<Chunk>> {
        if self.free[class].is_empty() {
            self.collect();
        }
        if self.free[class].is_empty() {
            self.grow(class);
        }
        // A chunk of a larger class, at last.
        let last = if self.moves { CLASS_COUNT } else { class + 1 };
        (class..last).find_map(|class| self.pop(class))
    }

    /// Takes a chunk out of its list.
    fn pop(&mut self, class: usize) -> Option<NonNull<Chunk>> {
        let chunk = self.free[class].pop()?;
        if let Some(step) = self.step_of(chunk) {
            let whole = if step.free == step.made { step.region.len() } else { 0 };
            step.free -= 1;
            self.free_step_bytes -= whole;
        }
        Some(chunk)
    }

    /// Puts a chunk into its list.
    fn put(&mut self, class: usize, chunk: NonNull<Chunk>) {
        self.free[class].push(chunk);
        if let Some(step) = self.step_of(chunk) {
            step.free += 1;
            let whole = if step.free == step.made { step.region.len() } else { 0 };
            self.free_step_bytes += whole;
        }
    }

    /// The common mapping that a free chunk lies in; `None` for one with a mapping of its own.
    fn step_of(&mut self, chunk: NonNull<Chunk>) -> Option<&mut Step> {
        // SAFETY: the caller has it from a free list or the return stack, so it is alive (invariant of `free`).
        let index = unsafe { chunk.as_ref() }.step()?;
        self.steps[index as usize].as_mut()
    }

    /// The growth step: adds free chunks to a class, as many as a run holds, or none when the budget is used up.
    #[cold]
    #[inline(never)]
    fn grow(&mut self, class: usize) {
        let chunk_bytes = class_bytes(class);
        if !is_shared(class) {
            if let Some(region) = self.map(chunk_bytes) {
                self.cut(class, &region, None, 0, 1);
            }
            return;
        }
        if self.room_in_step() < chunk_bytes {
            if !self.make_room(chunk_bytes) {
                return;
            }
            let step_bytes = STEP_BYTES.min(self.budget_bytes - self.mapped_bytes);
            let Some(region) = self.map(step_bytes) else { return };
            self.cutting = Some((self.keep_step(region), 0));
        }
        let Some((index, begin)) = self.cutting else { return };
        let Some(region) = self.steps[index as usize].as_ref().map(|step| step.region.clone()) else {
            return;
        };
        // A small budget is not spent on the first class that asks.
        let run_bytes = RUN_BYTES.min(region.len() / 16).max(chunk_bytes).min(region.len() - begin);
        let count = run_bytes / chunk_bytes;
        self.cutting = Some((index, begin + count * chunk_bytes));
        self.cut(class, &region, Some(index), begin, count);
    }

    /// Bytes that are left in the common mapping that is being cut up.
    fn room_in_step(&self) -> usize {
        let Some((index, begin)) = self.cutting else { return 0 };
        self.steps[index as usize].as_ref().map_or(0, |step| step.region.len() - begin)
    }

    /// Notes a common mapping and returns its place.
    fn keep_step(&mut self, region: Region) -> u32 {
        let step = Some(Step { region, made: 0, free: 0 });
        let place = self.steps.iter().position(Option::is_none).unwrap_or(self.steps.len());
        if place == self.steps.len() {
            self.steps.push(step);
        } else {
            self.steps[place] = step;
        }
        let Ok(place) = u32::try_from(place) else {
            unreachable!("2^32 common mappings cannot be addressed")
        };
        place
    }

    /// Makes `count` free chunks of a class from the region, beginning at `begin`, which nothing else uses; `step` is the
    /// region's place among the common mappings, if it is one.
    fn cut(&mut self, class: usize, region: &Region, step: Option<u32>, begin: usize, count: usize) {
        let bytes = class_bytes(class);
        let range = |index: usize| begin + index * bytes..begin + (index + 1) * bytes;
        let run = (0..count)
            .map(|index| Chunk::new(region.clone(), range(index), Some(self.returns)).in_step(step))
            .collect();
        let chunks = self.keep(run);
        // Chunks come back in any number at once: `collect` must find room for all and allocate nothing.
        self.made[class] += count;
        self.free[class].reserve(self.made[class]);
        if let Some(step) = step.and_then(|step| self.steps[step as usize].as_mut()) {
            // New chunks are free: a mapping that is wholly free stays so, and an empty one becomes it.
            if step.made == 0 {
                self.free_step_bytes += step.region.len();
            }
            step.made += count;
            step.free += count;
        }
        self.free[class].extend(chunks);
    }

    /// Puts a run of headers into the estate and returns where they are.
    fn keep(&mut self, run: Vec<Chunk>) -> impl Iterator<Item = NonNull<Chunk>> + use<> {
        let count = run.len();
        self.estate.runs.push(run);
        let first = self.estate.runs.last_mut().map(|run| NonNull::from(run.as_mut_slice()).cast::<Chunk>());
        // SAFETY: `index < count` stays in the run.
        first.into_iter().flat_map(move |first| (0..count).map(move |index| unsafe { first.add(index) }))
    }

    /// A chunk above the largest class: a returned one that is not more than twice as large, or a new mapping.
    #[cold]
    #[inline(never)]
    fn large_chunk(&mut self, len: usize) -> Option<NonNull<Chunk>> {
        self.collect();
        let bytes = Self::footprint(len);
        // SAFETY: chunks in the free lists are alive (invariant of `free_large`).
        let capacity = |chunk: &NonNull<Chunk>| unsafe { chunk.as_ref() }.capacity();
        let fits = |chunk: &NonNull<Chunk>| (bytes..=bytes.saturating_mul(2)).contains(&capacity(chunk));
        if let Some(index) = self.free_large.iter().position(fits) {
            return Some(self.free_large.swap_remove(index));
        }
        let region = self.map(bytes)?;
        let run = vec![Chunk::new(region, 0..bytes, Some(self.returns))];
        self.keep(run).next()
    }

    /// Maps within the budget, giving up what is free for it. `None` is remembered when the system refused.
    fn map(&mut self, bytes: usize) -> Option<Region> {
        if !self.make_room(bytes) {
            return None;
        }
        match Region::map(bytes) {
            Ok(region) => {
                self.mapped_bytes += bytes;
                self.regions.push(region.clone());
                Some(region)
            }
            Err(error) => {
                self.refused = Some(error);
                None
            }
        }
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.budget_bytes - self.mapped_bytes >= bytes
    }

    /// Unmaps what is free until `bytes` fit into the budget, if that is enough: chunks with a mapping of their own, the largest
    /// first, then common mappings. An arena that is not moving unmaps chunks above the largest class only. Says whether they
    /// fit.
    fn make_room(&mut self, bytes: usize) -> bool {
        if self.has_room(bytes) {
            return true;
        }
        self.collect();
        let own = || (0..CLASS_COUNT).rev().take_while(|&class| !is_shared(class));
        // SAFETY: chunks in the free lists are alive (invariant of `free_large`).
        let large = self.free_large.iter().map(|chunk| unsafe { chunk.as_ref() }.capacity());
        let mut reclaimable: usize = large.sum();
        if self.moves {
            reclaimable += own().map(|class| self.free[class].len() * class_bytes(class)).sum::<usize>();
            reclaimable += self.free_step_bytes;
        }
        if self.budget_bytes - self.mapped_bytes + reclaimable < bytes {
            return false;
        }
        while !self.has_room(bytes)
            && let Some(chunk) = self.free_large.pop()
        {
            self.unmap_chunk(chunk);
        }
        for class in own() {
            while !self.has_room(bytes)
                && let Some(chunk) = self.pop(class)
            {
                self.made[class] -= 1;
                self.unmap_chunk(chunk);
            }
        }
        if !self.has_room(bytes) {
            self.unmap_free_steps(bytes);
        }
        self.has_room(bytes)
    }

    /// Unmaps a free chunk that has a mapping of its own, taken out of its list.
    fn unmap_chunk(&mut self, chunk: NonNull<Chunk>) {
        let address = chunk.as_ptr().cast_const();
        let Some(index) = self.estate.runs.iter().position(|run| std::ptr::eq(run.as_ptr(), address)) else {
            unreachable!("a chunk with a mapping of its own is a run of its own");
        };
        let header = self.estate.runs.swap_remove(index);
        self.mapped_bytes -= header[0].capacity();
        self.regions.retain(|region| !region.same(header[0].region()));
    }

    /// Unmaps common mappings all of whose chunks are free, until `bytes` fit.
    fn unmap_free_steps(&mut self, bytes: usize) {
        let mut gone = vec![false; self.steps.len()];
        for (index, slot) in self.steps.iter_mut().enumerate() {
            if self.budget_bytes - self.mapped_bytes >= bytes {
                break;
            }
            let Some(step) = slot.take_if(|step| step.made > 0 && step.free == step.made) else { continue };
            gone[index] = true;
            self.mapped_bytes -= step.region.len();
            self.free_step_bytes -= step.region.len();
            self.regions.retain(|region| !region.same(&step.region));
        }
        let is_gone = |chunk: &Chunk| chunk.step().is_some_and(|step| gone[step as usize]);
        self.cutting = self.cutting.filter(|&(index, _)| !gone[index as usize]);
        for (list, made) in self.free.iter_mut().zip(&mut self.made) {
            let before = list.len();
            // SAFETY: chunks in the free lists are alive (invariant of `free`); their headers go below.
            list.retain(|chunk| !is_gone(unsafe { chunk.as_ref() }));
            *made -= before - list.len();
        }
        self.estate.runs.retain(|run| !is_gone(&run[0]));
    }

    /// Takes the whole return stack.
    fn drain(&mut self) -> Drained {
        // SAFETY: the arena is alive, so the stack is (invariant of `Returns`).
        let returns = unsafe { self.returns.as_ref() };
        // Relaxed: only asks whether a swap is worth it; what is missed now is found the next time.
        if returns.head.load(Ordering::Relaxed).is_null() {
            return Drained(std::ptr::null_mut());
        }
        // Acquire, pairs with the Release in `Returns::push`.
        Drained(returns.head.swap(std::ptr::null_mut(), Ordering::Acquire))
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the arena is alive, so the stack is (invariant of `Returns`).
        let returns = unsafe { self.returns.as_ref() };
        // Acquire, pairs with the Release in `Returns::push`. Nothing is published by closing.
        let drained = Drained(returns.head.swap(CLOSED, Ordering::Acquire));
        let orphans = self.taken_count - drained.count();
        let estate = std::mem::take(&mut self.estate);
        // SAFETY: the estate is looked at only by whoever brings `orphans` to 0, which nobody does before the addition.
        returns.estate.with_mut(|cell| unsafe { *cell = Some(estate) });
        let orphans = isize::try_from(orphans).unwrap_or(isize::MAX);
        // AcqRel, pairs with the subtraction in `Returns::push`.
        if returns.orphans.fetch_add(orphans, Ordering::AcqRel) == -orphans {
            // SAFETY: the sum is 0: every chunk has been returned, and the arena ends here.
            unsafe { Returns::bury(self.returns) }
        }
    }
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Arena({} used, {} mapped of {} bytes)",
            self.used_bytes, self.mapped_bytes, self.budget_bytes
        )
    }
}

/// A list of returned chunks. Invariant: it was taken from the stack whole, so it is this thread's alone, and the
/// headers are alive.
struct Drained(*mut Chunk);

impl Iterator for Drained {
    type Item = NonNull<Chunk>;

    fn next(&mut self) -> Option<NonNull<Chunk>> {
        let chunk = NonNull::new(self.0)?;
        // SAFETY: headers in the list are alive and ours.
        let next = unsafe { &chunk.as_ref().next };
        // SAFETY: whoever pushed it has written `next` before, and nobody writes it now.
        self.0 = next.with(|next| unsafe { *next });
        Some(chunk)
    }
}

/// The class whose chunks hold `len` bytes; `None` above the largest.
fn class_of(len: usize) -> Option<usize> {
    if len > CLASS_BYTES_MAX {
        return None;
    }
    let bytes = len.max(CLASS_BYTES_MIN).next_power_of_two();
    Some((bytes / CLASS_BYTES_MIN).trailing_zeros() as usize)
}

fn class_bytes(class: usize) -> usize {
    CLASS_BYTES_MIN << class
}

/// Whether chunks of a class are cut from common mappings.
fn is_shared(class: usize) -> bool {
    class_bytes(class) <= SHARED_BYTES_MAX.min(STEP_BYTES)
}

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;
