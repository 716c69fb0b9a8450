//! Which transport a process uses between hosts, from `--transport`.
//! Knows names; making an endpoint is the backend's.

use std::fmt;

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Wish {
    /// Non-blocking sockets and epoll.
    Socket,
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Socket => "socket",
        })
    }
}
