//! The ring's reasons, and buffers that come back.
