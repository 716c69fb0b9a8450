//! Atomics, cells, shared pointers and the futex: the standard library's and the kernel's, or loom's under
//! `cfg(loom)`, so that the models check the code that ships.
//! Knows no protocol. Used by every lock-free file of this crate.

#[cfg(loom)]
pub(crate) use loom::{
    sync::Arc,
    sync::atomic::{AtomicBool, AtomicIsize, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
};
#[cfg(not(loom))]
pub(crate) use std::{
    hint::spin_loop,
    sync::Arc,
    sync::atomic::{AtomicBool, AtomicIsize, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
};

/// The standard one, under loom too: for descriptors, which the models do not follow.
pub(crate) use std::sync::Arc as DescriptorArc;

#[cfg(loom)]
pub(crate) use loom::{cell::UnsafeCell, hint::spin_loop};

/// The standard cell with loom's two accessors, so that one source serves both.
#[cfg(not(loom))]
#[derive(Debug)]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    /// Hands out a pointer for reading.
    #[inline]
    pub(crate) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        read(self.0.get())
    }

    /// Hands out a pointer for writing.
    #[inline]
    pub(crate) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        write(self.0.get())
    }
}

/// A word that a thread can sleep on: the kernel's futex, private to the process.
#[derive(Debug)]
pub(crate) struct Futex {
    pub(crate) word: AtomicU32,
    #[cfg(loom)]
    bucket: (loom::sync::Mutex<()>, loom::sync::Condvar),
}

impl Futex {
    pub(crate) fn new(word: u32) -> Self {
        Self {
            word: AtomicU32::new(word),
            #[cfg(loom)]
            bucket: (loom::sync::Mutex::new(()), loom::sync::Condvar::new()),
        }
    }
}

#[cfg(not(loom))]
impl Futex {
    /// Sleeps while the word is `expected`, at most `timeout_ns`. May return for no reason.
    pub(crate) fn wait(&self, expected: u32, timeout_ns: Option<u64>) {
        use rustix::thread::futex;
        let timeout = timeout_ns.map(|ns| futex::Timespec {
            tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(ns % 1_000_000_000).unwrap_or(0),
        });
        // Every error is a reason to look again: the word had changed, the time is over, or a signal came.
        let _ = futex::wait(&self.word, futex::Flags::PRIVATE, expected, timeout.as_ref());
    }

    /// Wakes one sleeper.
    pub(crate) fn wake(&self) {
        use rustix::thread::futex;
        #[cfg(test)]
        wakes::count();
        let _ = futex::wake(&self.word, futex::Flags::PRIVATE, 1);
    }
}

/// Loom's futex: the kernel compares the word under the lock of its hash bucket, and so does this.
#[cfg(loom)]
impl Futex {
    pub(crate) fn wait(&self, expected: u32, _timeout_ns: Option<u64>) {
        let guard = self.bucket.0.lock().expect("no model poisons it");
        if self.word.load(Ordering::Relaxed) == expected {
            drop(self.bucket.1.wait(guard).expect("no model poisons it"));
        }
    }

    pub(crate) fn wake(&self) {
        drop(self.bucket.0.lock().expect("no model poisons it"));
        self.bucket.1.notify_one();
    }
}

/// Counts this thread's wake calls, so that tests can claim that there were none.
#[cfg(all(test, not(loom)))]
pub(crate) mod wakes {
    use std::cell::Cell;

    thread_local!(static WAKES: Cell<u64> = const { Cell::new(0) });

    pub(super) fn count() {
        WAKES.with(|wakes| wakes.set(wakes.get() + 1));
    }

    /// Wake calls of this thread so far.
    pub(crate) fn of_this_thread() -> u64 {
        WAKES.with(Cell::get)
    }
}
