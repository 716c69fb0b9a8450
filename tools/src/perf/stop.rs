//! Why a measurement ends before its time, and who says so while it runs.
//! Knows the reasons and their flags; acts on none. Looked at by everything that waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;

use crate::say;

/// How long anything here waits before it looks at the flags again.
pub(super) const LOOK: Duration = Duration::from_millis(100);

/// Why it ends.
#[derive(Debug)]
pub(super) enum Stop {
    /// The user wants it.
    Interrupted,
    /// The peer cannot be reached, is gone or does not answer.
    Lost(String),
    /// Anything else.
    Failed(anyhow::Error),
}

/// What may end a measurement from outside.
#[derive(Clone, Debug, Default)]
pub(super) struct Flags {
    interrupted: Arc<AtomicBool>,
    /// The server's session has ended.
    gone: Arc<AtomicBool>,
}

impl Flags {
    /// Raised by the first interrupt; the second one ends the process.
    pub(super) fn catching_interrupts() -> anyhow::Result<Self> {
        let flags = Self::default();
        let interrupted = Arc::clone(&flags.interrupted);
        let told = move || {
            if interrupted.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
            say::note("told to stop; printing what there is (again: at once)");
        };
        ctrlc::set_handler(told).context("cannot catch interrupts")?;
        Ok(flags)
    }

    /// The same, and those of a session.
    pub(super) fn with_gone(self, gone: Arc<AtomicBool>) -> Self {
        Self { gone, ..self }
    }

    /// Whether to go on.
    pub(super) fn check(&self) -> Result<(), Stop> {
        // Relaxed: flags and nothing behind them.
        if self.interrupted.load(Ordering::Relaxed) {
            Err(Stop::Interrupted)
        } else if self.gone.load(Ordering::Relaxed) {
            Err(Stop::Lost("the server has ended, or its host is down: its control connection broke".into()))
        } else {
            Ok(())
        }
    }
}
