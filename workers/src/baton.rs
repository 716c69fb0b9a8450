//! Who drives: the thread that waits holds the session and turns it; others pass it what they want done, or wait for news.
//! Knows threads; not what is driven. Used by `handle.rs`.
//! Source: `workers/DESIGN.md` (a baton instead of a thread).
//!
//! States of a thread that waits: *holder* (has the lock, turns, sleeps on the endpoint), *contender* (wants the lock for a
//! moment: counts itself, rings the holder, locks), *passive* (waits for the generation to change). A holder gives way to
//! contenders, and starts a new generation when it leaves; a passive thread looks itself now and then, because the holder may
//! end its tasks without leaving. Blocking: a contender waits for the holder's turn.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use rangefold_transport::wait::{Clock, Loop};
use rangefold_transport::{Shell, Waker};

/// How long a passive thread waits before it looks itself.
const PASSIVE: Duration = Duration::from_millis(20);

thread_local! {
    /// The baton whose shell this thread has, by its address; 0 for none.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// Restores what was held before, also when a callback panics.
struct Held {
    before: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.set(self.before);
    }
}

/// A shell that many threads share and one drives.
pub(crate) struct Baton<S> {
    shell: Mutex<S>,
    contenders: AtomicUsize,
    generation: Mutex<u64>,
    news: Condvar,
    waker: Waker,
    turns: Loop,
}

impl<S: Shell> Baton<S> {
    pub(crate) fn new(mut shell: S, turns: Loop) -> Self {
        let waker = rangefold_transport::Endpoint::waker(shell.endpoint());
        Self {
            shell: Mutex::new(shell),
            contenders: AtomicUsize::new(0),
            generation: Mutex::new(0),
            news: Condvar::new(),
            waker,
            turns,
        }
    }

    pub(crate) fn clock(&self) -> Clock {
        self.turns.clock()
    }

    /// Does something with the shell, now.
    ///
    /// # Panics
    /// This thread has it already: a callback calls the client that called it.
    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut S) -> R) -> R {
        let _held = self.hold();
        let mut shell = self.lock();
        act(&mut shell)
    }

    /// Notes that this thread is about to have the shell.
    fn hold(&self) -> Held {
        let address = std::ptr::from_ref(self).addr();
        assert!(
            HELD.get() != address,
            "a callback must not call the client whose task has ended: it would wait for itself"
        );
        Held { before: HELD.replace(address) }
    }

    /// Does something with the shell if nobody else holds it.
    pub(crate) fn try_with<R>(&self, act: impl FnOnce(&mut S) -> R) -> Option<R> {
        let _held = self.hold();
        self.try_lock().map(|mut shell| act(&mut shell))
    }

    fn lock(&self) -> MutexGuard<'_, S> {
        if let Some(shell) = self.try_lock() {
            return shell;
        }
        // SeqCst, pairs with the load in `drive`: the holder either sees this contender before it sleeps, or is rung.
        self.contenders.fetch_add(1, Ordering::SeqCst);
        self.waker.ring();
        let shell = self.shell.lock().unwrap_or_else(PoisonError::into_inner);
        self.contenders.fetch_sub(1, Ordering::SeqCst);
        shell
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, S>> {
        match self.shell.try_lock() {
            Ok(shell) => Some(shell),
            // A panic in a callback leaves the shell between two turns, which is a consistent place.
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn generation(&self) -> u64 {
        *self.generation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        *self.generation.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.news.notify_all();
    }

    /// Turns the shell, or waits for the thread that does, until `done` yields something or `deadline_ns` has come.
    ///
    /// `done` is asked under the lock, after each turn.
    pub(crate) fn drive<R>(&self, mut done: impl FnMut(&mut S) -> Option<R>, deadline_ns: u64) -> Option<R> {
        let mut turns = self.turns;
        loop {
            let seen = self.generation();
            if let Some(mut shell) = self.try_lock() {
                let mut result = None;
                let until = |shell: &mut S| {
                    result = done(shell);
                    // SeqCst, pairs with the addition in `lock`.
                    result.is_some() || self.contenders.load(Ordering::SeqCst) > 0
                };
                let held = self.hold();
                turns.run(&mut *shell, until, Some(deadline_ns));
                drop(shell);
                drop(held);
                self.tell();
                if result.is_some() {
                    return result;
                }
                // A contender was promised the lock: it is its turn before this thread's next.
                while self.contenders.load(Ordering::SeqCst) > 0 {
                    std::thread::yield_now();
                }
            } else {
                let generation = self.generation.lock().unwrap_or_else(PoisonError::into_inner);
                let unchanged = |generation: &mut u64| *generation == seen;
                drop(self.news.wait_timeout_while(generation, PASSIVE, unchanged));
                if let Some(result) = self.with(&mut done) {
                    return Some(result);
                }
            }
            if self.turns.clock().now_ns() >= deadline_ns {
                return None;
            }
        }
    }
}
