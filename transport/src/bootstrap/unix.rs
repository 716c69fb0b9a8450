//! The Unix socket beside a listener's TCP address: where processes of the same host come to share memory.
//! Knows abstract names and how to reach them in time; not who may come in. Called by `listener` and `dial`.
//! Source: unix(7), abstract sockets; `transport/DESIGN.md` (bootstrap of shm).
//!
//! The name is no secret: every process of the network namespace can list it and connect. So it only finds the socket, and whoever
//! comes proves the same as over TCP.

use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::secret::draw;
use super::sharing::{Ability, Kernel};
use super::stream::{Failure, left};

/// Random bytes of a name: nobody can have taken it before.
const NAME_BYTES: usize = 16;

/// A listening Unix socket of this process.
pub(super) struct UnixDoor {
    pub(super) listener: UnixListener,
    /// In the abstract namespace, without the zero before it.
    pub(super) name: Vec<u8>,
    kernel: Kernel,
    /// A clone lives as long as each link that was made here.
    links: Arc<()>,
    links_max: usize,
}

impl UnixDoor {
    /// Listens at a new name, for so many links at a time.
    ///
    /// # Errors
    /// Why memory cannot be shared, for people.
    pub(super) fn open(links_max: usize) -> Result<Self, String> {
        let kernel = Kernel::here()?;
        let random: [u8; NAME_BYTES] =
            draw().map_err(|error| format!("the system gives no random numbers: {error}"))?;
        let hex = random.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let name = format!("rangefold-{hex}").into_bytes();
        let listen = || {
            let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = listen().map_err(|error: io::Error| {
            format!("cannot listen on a Unix socket: {error}; the limit on open files (ulimit -n) or a security policy may be the cause")
        })?;
        Ok(Self { listener, name, kernel, links: Arc::default(), links_max })
    }

    /// What there is to share memory by, now.
    pub(super) fn ability(&self) -> Ability {
        let links = Arc::strong_count(&self.links) - 1;
        if links < self.links_max { Ability::Able(self.kernel) } else { Ability::Full(self.kernel) }
    }

    /// What a link holds as long as it lives. None when there are as many as there may be, also for a moment.
    pub(super) fn count_one(&self) -> Option<Arc<()>> {
        let one = Arc::clone(&self.links);
        (Arc::strong_count(&self.links) - 1 <= self.links_max).then_some(one)
    }
}

/// Why a Unix socket cannot be reached.
#[derive(Debug)]
pub(super) enum Unreached {
    /// Nobody has this name in this network namespace.
    Nobody,
    /// Its backlog was full to the end.
    Late,
    /// Anything else.
    System(io::Error),
}

/// Connects to an abstract name. Waits until the deadline at most when many others are waiting.
pub(super) fn reach(name: &[u8], deadline: Instant) -> Result<UnixStream, Unreached> {
    let system = |errno: Errno| Unreached::System(errno.into());
    let address = SocketAddrUnix::new_abstract_name(name).map_err(system)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let socket: OwnedFd = socket.map_err(system)?;
    loop {
        let left = left(deadline).map_err(|_: Failure| Unreached::Late)?;
        set_socket_timeout(&socket, Timeout::Send, Some(left)).map_err(system)?;
        match connect(&socket, &address) {
            Ok(()) => return Ok(socket.into()),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(Unreached::Late),
            Err(Errno::CONNREFUSED) => return Err(Unreached::Nobody),
            Err(errno) => return Err(system(errno)),
        }
    }
}
