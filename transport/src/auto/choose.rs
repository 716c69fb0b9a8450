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
    /// Shared memory with processes of the same host or nothing.
    Shm,
}

/// A name that is no transport.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("`{0}` is no transport; there are auto, shm, uring and socket")]
pub struct NoSuchTransport(String);

impl FromStr for Wish {
    type Err = NoSuchTransport;

    fn from_str(name: &str) -> Result<Self, NoSuchTransport> {
        match name {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Uring),
            "socket" => Ok(Self::Socket),
            "shm" => Ok(Self::Shm),
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
            Self::Shm => "shm",
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
    /// The backend's name; where memory is shared with processes of the same host, that of the way to all others.
    pub transport: &'static str,
    /// Whether memory is shared with processes of the same host, though `transport` is another way.
    pub shares: bool,
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
        let mut refused = vec![Refusal { transport: "uring", reason }];
        refused.extend(self.refused);
        Self { transport: "socket", refused, ..self }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.shares {
            f.write_str("shm with processes of this host, else ")?;
        }
        f.write_str(self.transport)?;
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

/// Whether each backend can be had, and if not why.
pub(super) struct Offers {
    pub(super) uring: Result<(), String>,
    pub(super) socket: Result<(), String>,
    pub(super) shm: Result<(), String>,
}

/// Chooses.
pub(super) fn choose(wish: Wish, offers: Offers) -> Result<Choice, Unavailable> {
    let Offers { uring, socket, shm } = offers;
    let refused = |transport, reason: String| Refusal { transport, reason };
    // What was not asked for.
    let but = |others: [&'static str; 2]| -> Vec<Refusal> {
        others.map(|transport| refused(transport, format!("{wish} was asked for"))).into()
    };
    let alone = |transport, refused| Choice { transport, shares: false, refused };
    match wish {
        Wish::Uring => match uring {
            Ok(()) => Ok(alone("uring", but(["socket", "shm"]))),
            Err(reason) => Err(Unavailable { transport: "uring", reason }),
        },
        Wish::Socket => match socket {
            Ok(()) => Ok(alone("socket", but(["uring", "shm"]))),
            Err(reason) => Err(Unavailable { transport: "socket", reason }),
        },
        Wish::Shm => match shm {
            Ok(()) => Ok(alone("shm", but(["uring", "socket"]))),
            Err(reason) => Err(Unavailable { transport: "shm", reason }),
        },
        Wish::Auto => {
            let (transport, mut refusals) = match (uring, socket) {
                (Ok(()), Ok(())) => (BOTH, Vec::new()),
                (Err(reason), Ok(())) => ("socket", vec![refused("uring", reason)]),
                (Ok(()), Err(reason)) => ("uring", vec![refused("socket", reason)]),
                (Err(_), Err(reason)) => return Err(Unavailable { transport: "socket", reason }),
            };
            let shares = shm.is_ok();
            refusals.extend(shm.err().map(|reason| refused("shm", reason)));
            Ok(Choice { transport, shares, refused: refusals })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers(uring: bool, socket: bool, shm: bool) -> Offers {
        let offer = |is_there: bool| is_there.then_some(()).ok_or_else(|| "denied by policy".to_owned());
        Offers { uring: offer(uring), socket: offer(socket), shm: offer(shm) }
    }

    #[test]
    fn a_wish_is_kept_or_refused_never_replaced() {
        for (wish, name) in [(Wish::Uring, "uring"), (Wish::Socket, "socket"), (Wish::Shm, "shm")] {
            let there = |name: &str| offers(name == "uring", name == "socket", name == "shm");
            assert_eq!(choose(wish, there(name)).unwrap().transport, name);
            for other in ["uring", "socket", "shm"] {
                if other != name {
                    let refused = choose(wish, there(other)).unwrap_err().to_string();
                    assert_eq!(refused, format!("transport {name} cannot be used: denied by policy"));
                }
            }
        }
    }

    #[test]
    fn auto_says_what_is_for_whom_and_why_not_the_rest() {
        let said = |uring, socket, shm| choose(Wish::Auto, offers(uring, socket, shm)).unwrap().to_string();
        let all = said(true, true, true);
        let expected =
            "shm with processes of this host, else socket and uring (socket for the first 4 connections";
        assert!(all.starts_with(expected), "{all}");
        let expected = "shm with processes of this host, else socket (not uring: denied by policy)";
        assert_eq!(said(false, true, true), expected);
        let expected = "socket (not uring: denied by policy; not shm: denied by policy)";
        assert_eq!(said(false, true, false), expected);
        assert_eq!(
            said(true, false, false),
            "uring (not socket: denied by policy; not shm: denied by policy)"
        );
        assert!(choose(Wish::Auto, offers(false, false, true)).is_err(), "other hosts would be out of reach");
        let for_links = |links| choose(Wish::Auto, offers(true, true, true)).unwrap().for_links(links);
        assert_eq!((for_links(4).transport, for_links(5).transport), ("socket", BOTH));
        assert!(for_links(4).shares && for_links(5).shares);
        assert_eq!(choose(Wish::Uring, offers(true, true, true)).unwrap().for_links(1).transport, "uring");
    }

    #[test]
    fn names_are_read_as_they_are_printed() {
        for wish in [Wish::Auto, Wish::Uring, Wish::Socket, Wish::Shm] {
            assert_eq!(wish.to_string().parse(), Ok(wish));
        }
        let error = "rdma".parse::<Wish>().unwrap_err();
        assert_eq!(error.to_string(), "`rdma` is no transport; there are auto, shm, uring and socket");
    }
}
