//! What this program says: results on standard output, everything else on standard error.
//! Knows that nobody may be listening; `println!` and `eprintln!` would panic then.

use std::io::Write as _;

use anyhow::Context;

/// Writes to standard output, to the end.
///
/// # Errors
/// It is closed or full; the error says that `what` is lost.
pub(crate) fn result(what: &str, text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.with_context(|| format!("cannot write {what} to standard output"))
}

/// Writes a line for the operator to standard error. If nobody reads it, the work goes on.
pub(crate) fn note(text: &str) {
    // One write, so that lines of several processes stay whole.
    let _ = std::io::stderr().write_all(format!("rangefold: {text}\n").as_bytes());
}
