//! The choice as a pure function: from a wish and what can be had to a backend and a reason for every refusal.
//! Knows names and reasons; makes no endpoint. Called by `endpoint.rs`, printed by `info`.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::endpoint::SOCKETS_MAX;

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Wish {
    /// The best there is.
    #[default]
    Auto,
    /// io_uring or nothing.
    Uring,
    /// Non-blocking sockets.
    Socket,
}

/// A name that is no transport.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("`{0}` is no transport; there are auto, uring and socket")]
pub struct NoSuchTransport(String);

impl FromStr for Wish {
    type Err = NoSuchTransport;

    fn from_str(name: &str) -> Result<Self, NoSuchTransport> {
        match name {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Uring),
            "socket" => Ok(Self::Socket),
            other => Err(NoSuchTransport(other.into())),
        }
    }
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Socket => "socket",
        })
    }
}

/// A backend that was not taken, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Its name.
    pub transport: &'static str,
    /// Why not, with the remedy where there is one.
    pub reason: String,
}

/// What was taken, and why nothing else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The backend's name.
    pub transport: &'static str,
    /// All others.
    pub refused: Vec<Refusal>,
}

impl Choice {
    /// The same for threads that have no more than so many connections each.
    #[must_use]
    pub fn for_links(self, links: usize) -> Self {
        if self.transport != BOTH || links > SOCKETS_MAX {
            return self;
        }
        let reason = format!(
            "the first {SOCKETS_MAX} connections of a thread go over sockets, which are faster for few"
        );
        Self { transport: "socket", refused: vec![Refusal { transport: "uring", reason }] }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.transport)?;
        if self.transport == BOTH {
            write!(
                f,
                " (socket for the first {SOCKETS_MAX} connections of a thread, where it is faster, uring for more)"
            )?;
        }
        for (index, refusal) in self.refused.iter().enumerate() {
            let before = if index == 0 { " (" } else { "; " };
            write!(f, "{before}not {}: {}", refusal.transport, refusal.reason)?;
        }
        if self.refused.is_empty() { Ok(()) } else { f.write_str(")") }
    }
}

/// What was asked for cannot be had; nothing else was taken instead.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("transport {transport} cannot be used: {reason}")]
pub struct Unavailable {
    /// Its name.
    pub transport: &'static str,
    /// Why not, with the remedy where there is one.
    pub reason: String,
}

/// Why a client does not take io_uring by itself.
pub(super) const SEVERAL_THREADS: &str =
    "several threads may use this endpoint, and a ring is fast for one only";
/// What a thread with both ways uses.
pub(super) const BOTH: &str = "socket and uring";

/// Chooses. `uring` says whether io_uring can be had, and if not why; `socket` the same of plain sockets.
pub(super) fn choose(
    wish: Wish,
    uring: Result<(), String>,
    socket: Result<(), String>,
) -> Result<Choice, Unavailable> {
    let refused = |transport, reason: String| vec![Refusal { transport, reason }];
    match (wish, uring, socket) {
        (Wish::Auto, Ok(()), Ok(())) => Ok(Choice { transport: BOTH, refused: Vec::new() }),
        (Wish::Auto, Err(reason), Ok(())) => {
            Ok(Choice { transport: "socket", refused: refused("uring", reason) })
        }
        (Wish::Auto, Ok(()), Err(reason)) => {
            Ok(Choice { transport: "uring", refused: refused("socket", reason) })
        }
        (Wish::Uring, Ok(()), _) => {
            Ok(Choice { transport: "uring", refused: refused("socket", "uring was asked for".into()) })
        }
        (Wish::Uring, Err(reason), _) => Err(Unavailable { transport: "uring", reason }),
        (Wish::Socket, _, Ok(())) => {
            Ok(Choice { transport: "socket", refused: refused("uring", "socket was asked for".into()) })
        }
        (Wish::Socket | Wish::Auto, _, Err(reason)) => Err(Unavailable { transport: "socket", reason }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_kept_or_refused_never_replaced() {
        let no = || Err("denied by policy".to_owned());
        let both = choose(Wish::Auto, Ok(()), Ok(())).unwrap().to_string();
        assert!(both.starts_with("socket and uring (socket for the first 4 connections"), "{both}");
        let for_links = |links| choose(Wish::Auto, Ok(()), Ok(())).unwrap().for_links(links).transport;
        assert_eq!((for_links(4), for_links(5)), ("socket", "socket and uring"));
        assert_eq!(choose(Wish::Uring, Ok(()), Ok(())).unwrap().for_links(1).transport, "uring");
        let fallen = choose(Wish::Auto, no(), Ok(())).unwrap();
        assert_eq!(fallen.to_string(), "socket (not uring: denied by policy)");
        assert_eq!(choose(Wish::Socket, Ok(()), Ok(())).unwrap().transport, "socket");
        let refused = choose(Wish::Uring, no(), Ok(())).unwrap_err();
        assert_eq!(refused.to_string(), "transport uring cannot be used: denied by policy");
        assert!(choose(Wish::Auto, no(), no()).is_err());
    }

    #[test]
    fn names_are_read_as_they_are_printed() {
        for wish in [Wish::Auto, Wish::Uring, Wish::Socket] {
            assert_eq!(wish.to_string().parse(), Ok(wish));
        }
        let error = "rdma".parse::<Wish>().unwrap_err();
        assert_eq!(error.to_string(), "`rdma` is no transport; there are auto, uring and socket");
    }
}
