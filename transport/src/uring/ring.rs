//! The ring itself: made, enabled, entered, waited in.
//! Knows entries and completions; does not know what they are for. Called by the endpoint, and by `wait` to sleep.
#![allow(unsafe_code, reason = "entries name memory, and queues are shared with the kernel")]

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::sync::Arc;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, squeue};
use thiserror::Error;

/// Entries between two entries of the kernel; more are submitted in between.
const ENTRIES: u32 = 512;
/// Completions that fit; more wait in the kernel.
const COMPLETIONS: u32 = 8192;

/// Why there is no io_uring here, for people and for the choice of a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Why {
    /// Denied by policy.
    #[error(
        "io_uring is not permitted here ({0}): a container's seccomp profile denies it, or sysctl kernel.io_uring_disabled is \
         not 0; use --transport socket, or allow it"
    )]
    NotPermitted(Errno),
    /// Too old, or a filter that says so.
    #[error(
        "this kernel has no io_uring that serves, or a sandbox hides it ({0}): Linux 6.1 or later is needed; use --transport socket"
    )]
    NoKernelSupport(Errno),
    /// Locked memory.
    #[error(
        "no memory for the ring ({errno}): the limit on locked memory is {}; raise it (ulimit -l, LimitMEMLOCK=)",
        .memlock.map_or_else(|| "none".to_owned(), |bytes| format!("{bytes} bytes"))
    )]
    NoMemory {
        /// The limit, where there is one.
        memlock: Option<u64>,
        /// The system's answer.
        errno: Errno,
    },
    /// Open files.
    #[error("no descriptor for the ring ({0}): raise the limit on open files (ulimit -n)")]
    NoDescriptor(Errno),
    /// Anything else.
    #[error("io_uring cannot be set up: {0}")]
    Other(Errno),
}

/// The system's error number, printed in its words.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&io::Error::from_raw_os_error(self.0), f)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Why {
    pub(super) fn of(error: &io::Error) -> Self {
        let errno = Errno(error.raw_os_error().unwrap_or(0));
        match errno.0 {
            libc::EPERM | libc::EACCES => Self::NotPermitted(errno),
            libc::ENOSYS | libc::EINVAL => Self::NoKernelSupport(errno),
            libc::ENOMEM => {
                let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
                Self::NoMemory { memlock: limit.current, errno }
            }
            libc::EMFILE | libc::ENFILE => Self::NoDescriptor(errno),
            _ => Self::Other(errno),
        }
    }
}

/// The ring of one endpoint.
///
/// Invariant: queues of the ring are borrowed only in methods of this that take `&mut self`, so there is never more than
/// one of each; other holders of `ring` only enter the kernel.
pub(super) struct Ring {
    ring: Arc<IoUring>,
    enabled: bool,
}

impl Ring {
    /// A ring that takes no entries yet. With `one_thread` the first that uses it is the only one, and completions wait
    /// until it asks for them; else the kernel interrupts whichever thread has submitted, so that no other waits for it.
    pub(super) fn new(one_thread: bool) -> Result<Self, Why> {
        let mut builder = IoUring::builder();
        builder.setup_submit_all().setup_r_disabled().setup_cqsize(COMPLETIONS).setup_clamp().dontfork();
        if one_thread {
            builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
        }
        let ring = builder.build(ENTRIES).map_err(|error| Why::of(&error))?;
        if !ring.params().is_feature_nodrop() || !ring.params().is_feature_ext_arg() {
            return Err(Why::NoKernelSupport(Errno(libc::ENOSYS)));
        }
        Ok(Self { ring: Arc::new(ring), enabled: false })
    }

    /// Makes this thread the ring's. Says whether it just did.
    pub(super) fn enable(&mut self) -> bool {
        if self.enabled {
            return false;
        }
        let enabled = self.ring.submitter().register_enable_rings();
        assert!(enabled.is_ok(), "a disabled ring can be enabled: {enabled:?}");
        self.enabled = true;
        true
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Registers memory for a ring of provided buffers.
    ///
    /// # Safety
    /// `entries` is the address of `count` zeroed entries, page-aligned, that stay until this ring is closed.
    pub(super) unsafe fn register_buffers(&self, entries: u64, count: u16, group: u16) -> io::Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.ring.submitter().register_buf_ring_with_flags(entries, count, group, 0) }
    }

    /// Queues an entry. `false`: there is no room even after submitting; try again later.
    ///
    /// # Safety
    /// All that the entry names (memory, descriptors) stays as the kernel needs it until its last completion.
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) -> bool {
        for _ in 0..2 {
            // SAFETY: invariant of `Ring`.
            let mut queue = unsafe { self.ring.submission_shared() };
            // SAFETY: the caller's promise.
            if unsafe { queue.push(entry) }.is_ok() {
                return true;
            }
            drop(queue);
            self.enter();
        }
        false
    }

    /// Whether the kernel has anything to do for us, or we for it. Looks at shared memory only.
    fn has_work(&mut self) -> bool {
        // SAFETY: invariant of `Ring`.
        let queue = unsafe { self.ring.submission_shared() };
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    /// Enters the kernel if it has anything to do: submits what is queued, runs what it has deferred.
    pub(super) fn advance(&mut self) {
        if self.has_work() {
            self.enter();
        }
    }

    /// Submits what is queued. Completions that are due on the way come too.
    pub(super) fn submit(&mut self) {
        // SAFETY: invariant of `Ring`.
        let queue = unsafe { self.ring.submission_shared() };
        let is_empty = queue.is_empty();
        drop(queue);
        if !is_empty {
            self.enter();
        }
    }

    fn enter(&mut self) {
        let error = self.try_enter(0).err().and_then(|error| error.raw_os_error());
        assert!(
            error != Some(libc::EEXIST),
            "an endpoint over io_uring stays on the thread that has used it first"
        );
        // All others (interrupted, completions to be taken first) are reasons to come again.
    }

    /// Enters the kernel and waits for `want` completions.
    pub(super) fn try_enter(&mut self, want: u32) -> io::Result<()> {
        // SAFETY: invariant of `Ring`.
        let queue = unsafe { self.ring.submission_shared() };
        let queued = u32::try_from(queue.len()).unwrap_or(u32::MAX);
        drop(queue);
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: no argument, and a count that the kernel checks.
        unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, want, flags, None) }.map(drop)
    }

    /// The next completion that is there.
    pub(super) fn next(&mut self) -> Option<cqueue::Entry> {
        // SAFETY: invariant of `Ring`.
        let mut queue = unsafe { self.ring.completion_shared() };
        queue.next()
    }

    /// Whether no completion is there. Looks at shared memory only.
    pub(super) fn is_idle(&mut self) -> bool {
        // SAFETY: invariant of `Ring`.
        unsafe { self.ring.completion_shared() }.is_empty()
    }

    /// What its thread can sleep on.
    pub(super) fn sleeping(&self) -> SleepingRing {
        SleepingRing(Arc::clone(&self.ring))
    }
}

/// A ring that its thread can wait in.
#[derive(Clone)]
pub struct SleepingRing(Arc<IoUring>);

impl SleepingRing {
    /// Submits what is queued and waits for a completion. Every error is a reason to look again.
    pub(crate) fn sleep(&self, timeout_ns: Option<u64>) {
        let timeout = Timespec::new()
            .sec(timeout_ns.map_or(0, |ns| ns / 1_000_000_000))
            .nsec(timeout_ns.map_or(0, |ns| u32::try_from(ns % 1_000_000_000).unwrap_or(0)));
        let arguments = match timeout_ns {
            Some(_) => SubmitArgs::new().timespec(&timeout),
            None => SubmitArgs::new(),
        };
        let _ = self.0.submitter().submit_with_args(1, &arguments);
    }

    /// Submits what is queued, for a sleep on the descriptor. `false`: not all of it.
    pub(crate) fn submit(&self) -> bool {
        self.0.submit().is_ok()
    }
}

impl AsFd for SleepingRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring keeps its descriptor open for as long as it lives, which the borrow does not outlast.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

impl fmt::Debug for SleepingRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SleepingRing")
    }
}
