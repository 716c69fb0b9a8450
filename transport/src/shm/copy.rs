//! Copies between this process's memory and memory that another process may be changing.
//! Knows pointers and lengths; does not know rings or who is right. Called by `mapping.rs` only.
//! Source: design.md §10 (the racing copy); the wide loop is the usual one of 64 bytes a turn.
//!
//! # Why this is sound
//!
//! The other process may write any byte of the mapping at any time, whatever the indices say, so an ordinary read or a
//! `memcpy` there would be a data race, and a `&[u8]` to it would promise the compiler that the bytes do not change. Neither
//! is ever made. What touches the mapping is either an `asm!` block, or a relaxed atomic load or store.
//!
//! An `asm!` block may do what some Rust code could do that uses the same pointers. These do what a loop of relaxed
//! atomic byte copies could do: each byte of the source is read at least once, and the byte that is stored is one that was read
//! there; bytes copied twice (the last 16 may overlap) are two such copies in turn. On the processor a wide load is a number
//! of byte loads in some order, which is all that relaxed promises. So the outcome of a race is arbitrary bytes in memory of
//! ours, never undefined behaviour; and arbitrary bytes are what a hostile peer may send anyway.
//!
//! **Order.** Nothing here orders anything. The bytes are ordered by the Release store and Acquire load of the
//! ring's indices: an `asm!` block without `nomem` counts as reading and writing memory and is not moved across those.
//!
//! Where there is no `asm!` loop, and under Miri, relaxed atomic words and bytes do the same: of 8 bytes where
//! the mapping's address allows it, under Miri of one, because its model forbids races between atomics of two sizes.
#![allow(unsafe_code, reason = "touches memory that another process may be changing")]

#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(super) use wide::{copy_in, copy_out};
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
pub(super) use words::{copy_in, copy_out};

/// Asks for a cache line. No access in the language's sense: it reads nothing, and an address that is not mapped does no harm.
#[inline]
pub(super) fn prefetch(place: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: SSE is part of x86-64, and a prefetch may name any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place.cast()) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = place;
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod wide {
    use std::arch::asm;

    /// Below this the processor's string copy: 16 bytes are the unit of the loop.
    const WIDE_BYTES: usize = 16;

    /// Copies `from` into the mapping.
    ///
    /// # Safety
    /// `to` is writable for `from.len()` bytes of a mapping that nothing has a reference to.
    #[inline]
    pub(in crate::shm) unsafe fn copy_in(from: &[u8], to: *mut u8) {
        // SAFETY: `from` is readable by its type, `to` writable by the caller's promise.
        unsafe { copy(from.as_ptr(), to, from.len()) }
    }

    /// Copies out of the mapping into `to`.
    ///
    /// # Safety
    /// `from` is readable for `to.len()` bytes of a mapping that nothing has a reference to.
    #[inline]
    pub(in crate::shm) unsafe fn copy_out(from: *const u8, to: &mut [u8]) {
        // SAFETY: `to` is writable by its type, `from` readable by the caller's promise.
        unsafe { copy(from, to.as_mut_ptr(), to.len()) }
    }

    /// # Safety
    /// `from` is readable and `to` writable for `len` bytes, and the two do not overlap.
    #[inline]
    unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
        if len < WIDE_BYTES {
            // SAFETY: the caller's promise. The direction flag is clear, as everywhere.
            unsafe {
                asm!(
                    "rep movsb",
                    inout("rsi") from => _, inout("rdi") to => _, inout("rcx") len => _,
                    options(nostack, preserves_flags),
                );
            }
            return;
        }
        // 64 bytes a turn; then 16 a turn; then the last 16, which may overlap what was copied.
        // SAFETY: the caller's promise: all accesses lie within `len` bytes, and there are at least 16.
        unsafe {
            asm!(
                "sub {left}, 64",
                "jb 3f",
                "2:",
                "movups {a}, [{from}]",
                "movups {b}, [{from} + 16]",
                "movups {c}, [{from} + 32]",
                "movups {d}, [{from} + 48]",
                "movups [{to}], {a}",
                "movups [{to} + 16], {b}",
                "movups [{to} + 32], {c}",
                "movups [{to} + 48], {d}",
                "add {from}, 64",
                "add {to}, 64",
                "sub {left}, 64",
                "jae 2b",
                "3:",
                "add {left}, 64",
                "4:",
                "cmp {left}, 16",
                "jb 5f",
                "movups {a}, [{from}]",
                "movups [{to}], {a}",
                "add {from}, 16",
                "add {to}, 16",
                "sub {left}, 16",
                "jmp 4b",
                "5:",
                "test {left}, {left}",
                "jz 6f",
                "movups {a}, [{from} + {left} - 16]",
                "movups [{to} + {left} - 16], {a}",
                "6:",
                from = inout(reg) from => _,
                to = inout(reg) to => _,
                left = inout(reg) len => _,
                a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, d = out(xmm_reg) _,
                options(nostack),
            );
        }
    }
}

#[cfg(any(test, miri, not(target_arch = "x86_64")))]
#[cfg_attr(all(target_arch = "x86_64", not(miri)), allow(dead_code, reason = "the tests use it"))]
mod words {
    use std::ops::Range;
    use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

    const WORD_BYTES: usize = size_of::<u64>();

    /// Where whole words lie among `len` bytes at an address of the mapping.
    fn whole_words(address: usize, len: usize) -> Range<usize> {
        if cfg!(miri) {
            return len..len;
        }
        let begin = (address.next_multiple_of(WORD_BYTES) - address).min(len);
        begin..begin + (len - begin) / WORD_BYTES * WORD_BYTES
    }

    /// Copies `from` into the mapping.
    ///
    /// # Safety
    /// `to` is writable for `from.len()` bytes of a mapping that nothing has a reference to.
    pub(in crate::shm) unsafe fn copy_in(from: &[u8], to: *mut u8) {
        let (words, mut at) = (whole_words(to.addr(), from.len()), 0);
        while at < from.len() {
            // SAFETY: `at` lies within the caller's promise.
            let place = unsafe { to.add(at) };
            if words.contains(&at) {
                let Some(word) = from[at..].first_chunk() else { return };
                // SAFETY: eight bytes lie within the promise, the address is a multiple of eight (`whole_words`), and only atomics
                // and `asm!` touch the mapping.
                let place = unsafe { AtomicU64::from_ptr(place.cast()) };
                // Relaxed: ordered by the ring's indices.
                place.store(u64::from_ne_bytes(*word), Ordering::Relaxed);
                at += WORD_BYTES;
            } else {
                // SAFETY: as above, of one byte.
                let place = unsafe { AtomicU8::from_ptr(place) };
                place.store(from[at], Ordering::Relaxed);
                at += 1;
            }
        }
    }

    /// Copies out of the mapping into `to`.
    ///
    /// # Safety
    /// `from` is readable for `to.len()` bytes of a mapping that nothing has a reference to.
    pub(in crate::shm) unsafe fn copy_out(from: *const u8, to: &mut [u8]) {
        let (words, mut at) = (whole_words(from.addr(), to.len()), 0);
        while at < to.len() {
            // SAFETY: `at` lies within the caller's promise.
            let place = unsafe { from.add(at) }.cast_mut();
            if words.contains(&at) {
                // SAFETY: as in `copy_in`; it is only read.
                let place = unsafe { AtomicU64::from_ptr(place.cast()) };
                // Relaxed: ordered by the ring's indices.
                let word = place.load(Ordering::Relaxed).to_ne_bytes();
                to[at..at + word.len()].copy_from_slice(&word);
                at += word.len();
            } else {
                // SAFETY: as above, of one byte.
                let place = unsafe { AtomicU8::from_ptr(place) };
                to[at] = place.load(Ordering::Relaxed);
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    type In = unsafe fn(&[u8], *mut u8);
    type Out = unsafe fn(*const u8, &mut [u8]);

    /// Every length and every misalignment of either side around the loop's borders, and nothing outside is touched.
    #[test]
    fn copies_what_it_should_and_nothing_else() {
        let ways: [(&str, In, Out); 2] = [
            ("chosen", super::copy_in, super::copy_out),
            ("words", super::words::copy_in, super::words::copy_out),
        ];
        let lengths =
            if cfg!(miri) { vec![0, 1, 9, 17] } else { (0..200).chain([4_095, 4_096, 4_099]).collect() };
        let offsets = if cfg!(miri) { 0..2 } else { 0..17 };
        let source: Vec<u8> = (0..5_000_u32).map(|index| index.to_le_bytes()[0] ^ 0x5a).collect();
        for (name, copy_in, copy_out) in ways {
            for (len, offset) in
                lengths.iter().flat_map(|len| offsets.clone().map(move |offset| (*len, offset)))
            {
                let from = &source[offset / 2..offset / 2 + len];
                let mut there = vec![0_u8; len + 64];
                // SAFETY: the vector has room for `offset + len` bytes and nothing else looks at it meanwhile.
                unsafe { copy_in(from, there[offset..].as_mut_ptr()) };
                assert_eq!(&there[offset..offset + len], from, "{name}, {len} bytes at {offset}");
                assert!(there[..offset].iter().chain(&there[offset + len..]).all(|byte| *byte == 0));
                let mut back = vec![0_u8; len + 32];
                // SAFETY: as above.
                unsafe { copy_out(there[offset..].as_ptr(), &mut back[16..16 + len]) };
                assert_eq!(&back[16..16 + len], from, "{name}, {len} bytes from {offset}");
                assert!(back[..16].iter().chain(&back[16 + len..]).all(|byte| *byte == 0));
            }
        }
    }
}
