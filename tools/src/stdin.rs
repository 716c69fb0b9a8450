//! A process that ends when whoever started it has ended: standard input is a pipe whose other end closes then, however that
//! process died.

/// Calls back once, on a thread of its own, when standard input is at its end.
pub(crate) fn when_closed(act: impl FnOnce() + Send + 'static) {
    std::thread::spawn(move || {
        // Whatever is typed or piped is read and ignored; an error is an end.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        act();
    });
}
