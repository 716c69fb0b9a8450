//! The socket backend beyond the conformance suite.
