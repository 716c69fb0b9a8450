//! The bytes of a message: free functions over slices, no state but scratch. Called by the shells.
//! Knows encodings; not peers, clocks, tasks or transport.
//! Source: OSDI'14 §3.6, §5.1.
//!
//! Nothing is encoded yet: values travel as they lie in memory, and dense ranges need no keys. What comes here: key deltas,
//! elided zeros, quantised values, compression, one file each.
#![no_std]
#![forbid(unsafe_code)]
