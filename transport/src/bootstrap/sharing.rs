//! Whether two processes go through shared memory: what each side wants, whether they run under one kernel, and why not.
//! Knows wishes and reasons; no stream, no mapping. Used by the handshake's machines and by both sides of the bootstrap.
//! Source: `transport/DESIGN.md` (bootstrap of shm).

use sha2::{Digest, Sha256};
use thiserror::Error;

use super::message::Purpose;

/// Whether data go through memory that both processes map. Control connections never do.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Sharing {
    /// Over TCP only.
    #[default]
    Never,
    /// With processes of the same host where it can be had, over TCP otherwise, and the reason is kept ([`Unshared`]).
    Preferred,
    /// Or not at all.
    Required,
}

/// How a dialler asks for its connection. A part of its claim, so that the proof of one way is worth nothing on another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// Over TCP.
    Tcp,
    /// Through shared memory, or over TCP if that cannot be.
    Either,
    /// Through shared memory or not at all.
    Memory,
    /// The stream that it speaks on is the Unix socket: shared memory follows.
    Here,
}

/// A running kernel: a digest of what it drew at its start. Processes that see the same one can share memory, if they can reach
/// each other's sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kernel(pub(super) [u8; KERNEL_BYTES]);

pub(super) const KERNEL_BYTES: usize = 16;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl Kernel {
    /// Of a dialler that shares nothing.
    pub const UNTOLD: Self = Self([0; KERNEL_BYTES]);

    /// The one that this process runs under.
    ///
    /// # Errors
    /// Why that is not known, for people.
    pub fn here() -> Result<Self, String> {
        let drawn = std::fs::read(BOOT_ID)
            .map_err(|error| format!("cannot read {BOOT_ID}: {error}; is /proc mounted?"))?;
        // Less would not tell two kernels apart.
        if drawn.len() < KERNEL_BYTES {
            return Err(format!("{BOOT_ID} says nothing"));
        }
        let digest = Sha256::new().chain_update(b"rangefold kernel").chain_update(drawn).finalize();
        let mut kernel = [0; KERNEL_BYTES];
        kernel.copy_from_slice(&digest[..KERNEL_BYTES]);
        Ok(Self(kernel))
    }
}

/// What a dialler says of itself in its claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    /// How its data may travel.
    pub asked: Asked,
    /// Its process, as it is counted where it runs; for people.
    pub process: u32,
    /// Where it runs.
    pub kernel: Kernel,
}

impl Origin {
    /// Of a dialler that wants no shared memory.
    pub const TCP: Self = Self { asked: Asked::Tcp, process: 0, kernel: Kernel::UNTOLD };
}

/// Why a connection that could have gone through shared memory does not.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Unshared {
    /// As nearly all of a cluster of several hosts.
    #[error("the other process runs on another host")]
    OtherHost,
    /// The other side's wish.
    #[error("the other process was started without it; start it with --transport auto or shm")]
    Unwanted,
    /// The other side has no socket to share it by.
    #[error("the other process cannot; it said why when it started")]
    Unable,
    /// The other side's limit.
    #[error("the other process shares memory with as many as it may")]
    NoRoom,
    /// It was tried.
    #[error("{0}")]
    Failed(String),
}

impl Unshared {
    /// What an acceptor says; 0 is none.
    pub(super) fn code(this: Option<&Self>) -> u8 {
        match this {
            None => 0,
            Some(Self::OtherHost) => 1,
            Some(Self::Unwanted) => 2,
            // What an acceptor tries it tries without a dialler.
            Some(Self::Unable | Self::Failed(_)) => 3,
            Some(Self::NoRoom) => 4,
        }
    }

    pub(super) fn of_code(code: u8) -> Option<Option<Self>> {
        Some(match code {
            0 => None,
            1 => Some(Self::OtherHost),
            2 => Some(Self::Unwanted),
            3 => Some(Self::Unable),
            4 => Some(Self::NoRoom),
            _ => return None,
        })
    }
}

/// What an acceptor has to share memory by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ability {
    /// A Unix socket under this kernel, and room for another link.
    Able(Kernel),
    /// As above, without room.
    Full(Kernel),
    /// None.
    Unable,
}

/// The stream that a claim was heard on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Door {
    Tcp,
    Unix,
}

/// Where a dialler that has proven itself goes on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    /// On this stream; and why not through shared memory, if it would have.
    Here(Option<Unshared>),
    /// To the Unix socket.
    Elsewhere,
    /// Out, with these words.
    Out(String),
}

/// Directs a dialler. What it asks for is given or refused, and nothing else given instead.
pub(super) fn direct(
    door: Door,
    sharing: Sharing,
    ability: Ability,
    purpose: Purpose,
    origin: &Origin,
) -> Direction {
    use Direction::{Elsewhere, Here, Out};
    match (door, origin.asked) {
        (Door::Unix, Asked::Here) if matches!(purpose, Purpose::Data { .. }) => {
            return match ability {
                Ability::Able(_) => Here(None),
                // Meanwhile.
                Ability::Full(_) => Out(insisted(&Unshared::NoRoom).into()),
                Ability::Unable => Out(insisted(&Unshared::Unable).into()),
            };
        }
        (Door::Unix, _) => return Out("this Unix socket is for shared memory".into()),
        (Door::Tcp, Asked::Here) => return Out("this address is for TCP".into()),
        (Door::Tcp, _) if purpose == Purpose::Control => return Here(None),
        (Door::Tcp, _) => {}
    }
    let unshared = match ability {
        _ if sharing == Sharing::Never => Unshared::Unwanted,
        Ability::Unable => Unshared::Unable,
        _ if origin.asked == Asked::Tcp => {
            return match sharing {
                Sharing::Required => Out(
                    "this process takes data through shared memory only (--transport shm), and the other side asks for TCP, or \
                     could not share memory; start one of them with --transport auto"
                        .into(),
                ),
                Sharing::Never | Sharing::Preferred => Here(None),
            };
        }
        Ability::Able(kernel) | Ability::Full(kernel) if kernel != origin.kernel => Unshared::OtherHost,
        Ability::Full(_) => Unshared::NoRoom,
        Ability::Able(_) => return Elsewhere,
    };
    match (origin.asked, sharing) {
        (Asked::Tcp, _) => Here(None),
        (Asked::Either, Sharing::Never | Sharing::Preferred) => Here(Some(unshared)),
        // One side insists.
        _ => Out(insisted(&unshared).into()),
    }
}

/// Why there is no shared memory, for the other side's operator: "this process" is the acceptor.
fn insisted(unshared: &Unshared) -> &'static str {
    match unshared {
        Unshared::OtherHost => {
            "shared memory (--transport shm) connects processes of one host only; take auto, uring or socket"
        }
        Unshared::Unwanted => {
            "this process shares no memory (its --transport); start it with --transport auto or shm"
        }
        Unshared::NoRoom => "this process shares memory with as many as it may",
        Unshared::Unable | Unshared::Failed(_) => {
            "this process cannot share memory; it said why when it started"
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const HERE: Kernel = Kernel([1; KERNEL_BYTES]);
    const DATA: Purpose = Purpose::Data { shard: 0 };

    fn origin(asked: Asked, kernel: u8) -> Origin {
        Origin { asked, process: 1, kernel: Kernel([kernel; KERNEL_BYTES]) }
    }

    fn out(direction: Direction) -> String {
        let Direction::Out(text) = direction else { panic!("{direction:?}") };
        text
    }

    #[test]
    fn a_kernel_knows_itself() {
        assert_eq!(Kernel::here(), Kernel::here());
        assert_ne!(Kernel::here(), Ok(Kernel::UNTOLD));
    }

    #[test]
    fn memory_is_shared_where_both_want_it_under_one_kernel() {
        for sharing in [Sharing::Preferred, Sharing::Required] {
            for asked in [Asked::Either, Asked::Memory] {
                let to = direct(Door::Tcp, sharing, Ability::Able(HERE), DATA, &origin(asked, 1));
                assert_eq!(to, Direction::Elsewhere);
            }
        }
    }

    #[test]
    fn who_would_have_shared_hears_why_not() {
        let either = |sharing, ability, kernel| {
            direct(Door::Tcp, sharing, ability, DATA, &origin(Asked::Either, kernel))
        };
        let preferred = Sharing::Preferred;
        for (to, why) in [
            (either(preferred, Ability::Able(HERE), 2), Unshared::OtherHost),
            (either(preferred, Ability::Full(HERE), 2), Unshared::OtherHost),
            (either(preferred, Ability::Full(HERE), 1), Unshared::NoRoom),
            (either(preferred, Ability::Unable, 1), Unshared::Unable),
            (either(Sharing::Never, Ability::Unable, 1), Unshared::Unwanted),
        ] {
            assert_eq!(to, Direction::Here(Some(why)));
        }
        for sharing in [Sharing::Never, preferred] {
            let to = direct(Door::Tcp, sharing, Ability::Able(HERE), DATA, &origin(Asked::Tcp, 0));
            assert_eq!(to, Direction::Here(None), "who did not ask hears nothing of it");
        }
    }

    #[test]
    fn who_insists_is_refused_with_the_reason() {
        let memory = |sharing, ability, kernel| {
            out(direct(Door::Tcp, sharing, ability, DATA, &origin(Asked::Memory, kernel)))
        };
        assert!(memory(Sharing::Preferred, Ability::Able(HERE), 2).contains("one host only"));
        assert!(memory(Sharing::Never, Ability::Unable, 1).contains("shares no memory"));
        assert!(memory(Sharing::Preferred, Ability::Full(HERE), 1).contains("as many as it may"));
        let required = |asked, kernel| {
            out(direct(Door::Tcp, Sharing::Required, Ability::Able(HERE), DATA, &origin(asked, kernel)))
        };
        assert!(required(Asked::Tcp, 0).contains("through shared memory only"));
        assert!(required(Asked::Either, 2).contains("one host only"));
    }

    #[test]
    fn control_stays_on_tcp_and_no_door_is_taken_for_the_other() {
        for asked in [Asked::Tcp, Asked::Either, Asked::Memory] {
            let at = |door, sharing| {
                direct(door, sharing, Ability::Able(HERE), Purpose::Control, &origin(asked, 1))
            };
            assert_eq!(at(Door::Tcp, Sharing::Required), Direction::Here(None));
            out(at(Door::Unix, Sharing::Preferred));
            out(direct(Door::Unix, Sharing::Preferred, Ability::Able(HERE), DATA, &origin(asked, 1)));
        }
        let here = origin(Asked::Here, 1);
        out(direct(Door::Tcp, Sharing::Preferred, Ability::Able(HERE), DATA, &here));
        out(direct(Door::Unix, Sharing::Preferred, Ability::Able(HERE), Purpose::Control, &here));
        let by_the_right_one = direct(Door::Unix, Sharing::Preferred, Ability::Able(HERE), DATA, &here);
        assert_eq!(by_the_right_one, Direction::Here(None));
        out(direct(Door::Unix, Sharing::Preferred, Ability::Full(HERE), DATA, &here));
    }
}
