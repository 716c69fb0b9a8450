//! A message header with its vector, as the kernel reads it: for one operation in flight.
//! Knows addresses; does not know what lies there. Called by the endpoint.
#![allow(unsafe_code, reason = "holds raw addresses for the kernel")]

/// A header that points to a vector that points to memory.
///
/// Invariants: it lies in a box and is not moved; header and vector are not changed, and what the vector points to is
/// kept by the owner, while an operation that names it is in flight.
pub(super) struct Message {
    header: libc::msghdr,
    vector: Vec<libc::iovec>,
}

// SAFETY: the addresses are followed by the kernel only; what they lead to has no home thread.
unsafe impl Send for Message {}

impl Message {
    pub(super) fn new() -> Box<Self> {
        // SAFETY: a header of zeros is one of nothing: null addresses and lengths of 0.
        let header = unsafe { std::mem::zeroed() };
        Box::new(Self { header, vector: Vec::new() })
    }

    /// Points to these pieces, in order. Not to be called while an operation is in flight.
    pub(super) fn read_from<'a>(&mut self, pieces: impl Iterator<Item = &'a [u8]>) {
        let entry =
            |bytes: &[u8]| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        self.vector.clear();
        self.vector.extend(pieces.map(entry));
    }

    /// Points to these pieces, to be written. Not to be called while an operation is in flight.
    pub(super) fn write_to(&mut self, pieces: [&mut [u8]; 2]) {
        let entry =
            |bytes: &mut [u8]| libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        self.vector.clear();
        self.vector.extend(pieces.into_iter().filter(|bytes| !bytes.is_empty()).map(entry));
    }

    /// Its address, for an entry.
    pub(super) fn header(&mut self) -> *mut libc::msghdr {
        self.header.msg_iov = self.vector.as_mut_ptr();
        self.header.msg_iovlen = self.vector.len();
        &raw mut self.header
    }
}
