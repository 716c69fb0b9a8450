//! What the two sides of a measurement say to each other beside the data: a question, an answer, then signs of life.
//! Knows the messages and the control connection; opens no data connection. Used by `client.rs` and `server.rs`.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rangefold_transport::Route;
use rangefold_transport::auto::{Choice, Wish};
use rangefold_transport::bootstrap::Terms;
use rangefold_workers::control_stream::{read, write};
use serde::{Deserialize, Serialize};

use super::connection;
use super::host::{Host, cleaned};
use super::stop::Stop;
use crate::exit::Unavailable;

/// Between two signs of life.
const ALIVE: Duration = Duration::from_secs(1);
/// Who has given none for so long is gone: its host is down, or it is stopped.
const SILENCE: Duration = Duration::from_secs(30);

/// Transports that a server may name as not chosen.
const REASONS_MAX: usize = 8;

/// What is said before it is known whether the other side is of this host.
const SHARES: &str = "shm or ";
/// Why a connection within one host goes over nothing else.
const SHARED: &str = "both sides run on one host, and shared memory is faster";

/// What a client asks of a server: one session of its own.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub(super) struct Ask {
    /// A store, or receivers on the raw transport.
    pub(super) store: bool,
    /// `auto`, `shm`, `uring` or `socket`.
    pub(super) transport: String,
    /// Threads of the client.
    pub(super) threads: u16,
}

/// What a server answers.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub(super) enum Answer {
    Ready(Ready),
    /// Not this session; `unavailable` when it is for want of a transport.
    Refused {
        text: String,
        unavailable: bool,
    },
}

/// A session that may begin.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub(super) struct Ready {
    /// Its name, for data connections.
    pub(super) session: u64,
    pub(super) host: Host,
    /// What the server's side travels over.
    pub(super) chosen: Chosen,
    /// How the server's threads wait.
    pub(super) waiting: String,
    /// Bytes of a raw message's body, at most.
    pub(super) body_bytes_max: u64,
    /// Where the scheduler of the session's store listens, on the same host.
    pub(super) scheduler_port: u16,
}

impl Ready {
    /// The same with words that are fit for a terminal, whoever wrote them.
    fn cleaned(self) -> Self {
        let Chosen { transport, refused } = &self.chosen;
        let reasons = refused.iter().take(REASONS_MAX).map(|(name, reason)| (cleaned(name), cleaned(reason)));
        Self {
            host: self.host.cleaned(),
            chosen: Chosen { transport: cleaned(transport), refused: reasons.collect() },
            waiting: cleaned(&self.waiting),
            ..self
        }
    }
}

/// A transport that was chosen, and why not the others.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub(super) struct Chosen {
    pub(super) transport: String,
    pub(super) refused: Vec<(String, String)>,
}

impl Chosen {
    /// Of an endpoint with one connection, as all are here, before there is one.
    pub(super) fn before(choice: Choice) -> Self {
        let choice = choice.for_links(1);
        let transport =
            if choice.shares { format!("{SHARES}{}", choice.transport) } else { choice.transport.into() };
        let refused =
            choice.refused.into_iter().map(|refusal| (refusal.transport.to_owned(), refusal.reason));
        Self { transport, refused: refused.collect() }
    }

    /// The same with a connection over `route`. `and_not` are those that the choice knows nothing of.
    pub(super) fn over(choice: Choice, route: &Route, and_not: &[(&str, &str)]) -> Self {
        let choice = choice.for_links(1);
        let mut refused: Vec<(String, String)> = Vec::new();
        let transport = match route {
            Route::Shared if choice.shares => {
                let others = ["uring", "socket"].into_iter();
                refused.extend(others.map(|name| (name.into(), SHARED.into())));
                "shm"
            }
            _ => {
                let of_choice = choice.refused.into_iter();
                refused.extend(of_choice.map(|refusal| (refusal.transport.to_owned(), refusal.reason)));
                if let Route::Tcp(Some(why)) = route {
                    refused.push(("shm".into(), why.to_string()));
                }
                choice.transport
            }
        };
        refused.extend(and_not.iter().map(|&(name, reason)| (name.to_owned(), reason.to_owned())));
        Self { transport: transport.into(), refused }
    }

    /// What the other side of a connection over `route` says of itself, now that there is one.
    pub(super) fn known(&mut self, route: &Route) {
        let Some(otherwise) = self.transport.strip_prefix(SHARES).map(str::to_owned) else { return };
        if *route == Route::Shared {
            (self.transport, self.refused) = ("shm".into(), Vec::new());
        } else {
            self.transport = otherwise;
        }
    }

    /// Why not the others, a line each.
    pub(super) fn reasons(&self) -> impl Iterator<Item = String> + '_ {
        self.refused.iter().map(|(name, reason)| format!("not {name}: {reason}"))
    }
}

/// The wish that both sides' add up to; a wish for one backend is never answered with another.
///
/// # Errors
/// They contradict each other.
pub(super) fn agreed(server: Wish, client: Wish) -> Result<Wish, String> {
    match (server, client) {
        (Wish::Auto, wish) | (wish, Wish::Auto) => Ok(wish),
        (server, client) if server == client => Ok(server),
        (server, client) => Err(format!(
            "the server was started with --transport {server}, and the client asks for {client}; give both the same, or auto"
        )),
    }
}

/// The client's end of a session. Dropping it ends the session.
pub(super) struct Session {
    stream: TcpStream,
    pub(super) ready: Ready,
    gone: Arc<AtomicBool>,
}

impl Session {
    /// Opens a session at `address`.
    pub(super) fn open(address: &str, ask: &Ask, terms: &Terms, timeout: Duration) -> Result<Self, Stop> {
        let stream = connection::open(address, terms, timeout)?;
        let broken = |error: std::io::Error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Stop::Lost(format!(
                "the server at {address} did not answer within {timeout:?}; it is stopped or overloaded"
            )),
            _ => Stop::Lost(format!("the connection to the server at {address} broke: {error}")),
        };
        stream.set_read_timeout(Some(timeout)).map_err(broken)?;
        stream.set_write_timeout(Some(timeout)).map_err(broken)?;
        write(&stream, ask).map_err(broken)?;
        let ready = match read(&stream).map_err(broken)? {
            Answer::Ready(ready) => ready.cleaned(),
            Answer::Refused { text, unavailable } => {
                let text = format!("the server at {address} refuses: {}", cleaned(&text));
                return Err(Stop::Failed(if unavailable {
                    Unavailable(text).into()
                } else {
                    anyhow::anyhow!(text)
                }));
            }
        };
        let gone = Arc::new(AtomicBool::new(false));
        let (watched, flag) = (stream.try_clone().map_err(broken)?, Arc::clone(&gone));
        let watch = move || {
            keep(&watched, || false);
            // Relaxed: a flag and nothing behind it.
            flag.store(true, Ordering::Relaxed);
        };
        let thread = thread::Builder::new().name("rangefold-perf-session".into()).spawn(watch);
        thread.map_err(|error| Stop::Failed(no_thread(&error)))?;
        Ok(Self { stream, ready, gone })
    }

    /// Raised when the server has ended or is silent.
    pub(super) fn gone(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.gone)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Ends the thread that watches, and the session at the server.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

pub(super) fn no_thread(error: &std::io::Error) -> anyhow::Error {
    anyhow::anyhow!("cannot start a thread: {error}; raise the limit on processes (ulimit -u)")
}

/// Keeps a session: says each second that this side lives, until the other side has ended or is silent, or `end` says so.
pub(super) fn keep(mut stream: &TcpStream, end: impl Fn() -> bool) {
    if stream.set_read_timeout(Some(ALIVE)).is_err() {
        return;
    }
    let mut heard = Instant::now();
    let mut signs = [0; 16];
    while !end() && heard.elapsed() < SILENCE && stream.write_all(&[0]).is_ok() {
        // Until the next sign is due; more than one a second says no more than one.
        let due = Instant::now() + ALIVE;
        while Instant::now() < due {
            match stream.read(&mut signs) {
                Ok(0) => return,
                Ok(_) => heard = Instant::now(),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rangefold_transport::bootstrap::Unshared;

    use super::*;

    #[test]
    fn a_wish_is_kept_or_refused_on_both_sides() {
        assert_eq!(agreed(Wish::Auto, Wish::Uring), Ok(Wish::Uring));
        assert_eq!(agreed(Wish::Socket, Wish::Auto), Ok(Wish::Socket));
        assert_eq!(agreed(Wish::Socket, Wish::Socket), Ok(Wish::Socket));
        assert_eq!(agreed(Wish::Auto, Wish::Shm), Ok(Wish::Shm));
        assert!(agreed(Wish::Socket, Wish::Uring).unwrap_err().contains("give both the same"));
    }

    #[test]
    fn what_is_travelled_over_is_said_when_it_is_known() {
        let choice = |shares| Choice { transport: "socket", shares, refused: Vec::new() };
        for (route, shares, expected, of_server) in [
            (Route::Shared, true, "shm", "shm"),
            (Route::Tcp(None), true, "socket", "socket"),
            (Route::Tcp(None), false, "socket", "socket"),
        ] {
            assert_eq!(Chosen::over(choice(shares), &route, &[]).transport, expected);
            let mut server = Chosen::before(choice(shares));
            server.known(&route);
            assert_eq!(server.transport, of_server);
        }
        let failed = Route::Tcp(Some(Unshared::Failed("no room".into())));
        let reasons: Vec<String> = Chosen::over(choice(true), &failed, &[]).reasons().collect();
        assert_eq!(reasons, ["not shm: no room"]);
    }

    #[test]
    fn a_session_ends_when_the_other_side_does() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let there = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (here, _) = listener.accept().unwrap();
        let kept = thread::spawn(move || keep(&here, || false));
        let mut sign = [1];
        (&there).read_exact(&mut sign).unwrap();
        assert_eq!(sign, [0], "it says that it lives");
        drop(there);
        kept.join().unwrap();
    }
}
