//! A process that ends when whoever started it has ended: standard input is a pipe whose other end closes then, however that
//! process died.

use anyhow::Context;

/// Calls back once, on a thread of its own, when standard input is at its end.
///
/// # Errors
/// There is no thread to be had.
pub(crate) fn when_closed(act: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let watch = move || {
        // Whatever is typed or piped is read and ignored; an error is an end.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        act();
    };
    let thread = std::thread::Builder::new().name("rangefold-stdin".into()).spawn(watch);
    thread.map(drop).context("cannot start a thread; raise the limit on processes (ulimit -u)")
}
