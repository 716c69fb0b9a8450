//! How the two sides of a measurement find each other: the only file here that calls the transport's bootstrap.
//! Knows addresses, greetings and the names of sessions; not what is measured. Called by `server.rs`, `session.rs`, `raw/`.
//!
//! A measurement is a *session*: one control connection, opened first, whose end is the session's; then, on the raw transport,
//! a data connection for each thread, which names its session in the greeting.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use rangefold_transport::Link;
use rangefold_transport::bootstrap::{
    BindError, DialError, Dialed, Hello, Listener, Options, Purpose, Terms, dial,
};

use super::stop::Stop;
use crate::exit::{Unavailable, Usage};

/// What tells a measurement from a cluster's job, which counts from 1.
const JOB: u16 = u16::from_be_bytes(*b"pf");
/// What a control connection greets with: both sides must speak the same messages.
const GREETING: &[u8] = concat!("perf 1 ", env!("CARGO_PKG_VERSION")).as_bytes();

/// What a connection that came in is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Visitor {
    /// A new session.
    Session,
    /// Data of this one.
    Data(u64),
}

/// Listens at `address`.
///
/// # Errors
/// It cannot be bound, or others than this host could connect and there is no secret.
pub(super) fn listen(address: &str, terms: Terms) -> anyhow::Result<Listener> {
    Listener::bind(address, Options { terms, ..Options::default() }).map_err(|error| match error {
        BindError::Exposed { .. } => anyhow::Error::new(Usage(format!("--bind: {error}"))),
        error => error.into(),
    })
}

/// Opens the control connection of a new session.
pub(super) fn open(address: &str, terms: &Terms, timeout: Duration) -> Result<TcpStream, Stop> {
    let hello = Hello { purpose: Purpose::Control, job: JOB, greeting: GREETING.to_vec() };
    match dial(address, &hello, terms, Instant::now() + timeout).map_err(stop)? {
        Dialed::Control { stream, .. } => Ok(stream),
        Dialed::Data { .. } => unreachable!("a hello for control is answered by a control stream"),
    }
}

/// Opens a data connection of a session, through shared memory if the terms say so.
pub(super) fn join(address: &str, session: u64, terms: &Terms, timeout: Duration) -> Result<Link, Stop> {
    let hello =
        Hello { purpose: Purpose::Data { shard: 0 }, job: JOB, greeting: session.to_le_bytes().to_vec() };
    match dial(address, &hello, terms, Instant::now() + timeout).map_err(stop)? {
        Dialed::Data { link, .. } => Ok(link),
        Dialed::Control { .. } => unreachable!("a hello for data is answered by a link"),
    }
}

/// What a dial that failed says of the other side: that it is not there, or that the two do not fit.
pub(super) fn stop(error: DialError) -> Stop {
    match error {
        DialError::NothingListens { .. }
        | DialError::Unreachable { .. }
        | DialError::Late { .. }
        | DialError::Closed { .. } => Stop::Lost(error.to_string()),
        DialError::Unshared { .. } => Stop::Failed(Unavailable(error.to_string()).into()),
        error => Stop::Failed(error.into()),
    }
}

/// What a hello asks for.
///
/// # Errors
/// Why it is none of ours, for the other side's operator.
pub(super) fn visitor(hello: &Hello) -> Result<Visitor, String> {
    if hello.job != JOB {
        return Err("this is `rangefold perf server`, which serves measurements and no jobs".into());
    }
    match hello.purpose {
        Purpose::Control if hello.greeting == GREETING => Ok(Visitor::Session),
        Purpose::Control => Err(format!(
            "this `rangefold perf server` is of version {}; run the same release on both sides",
            env!("CARGO_PKG_VERSION")
        )),
        Purpose::Data { .. } => {
            let name = hello.greeting.as_slice().try_into().map(u64::from_le_bytes);
            name.map(Visitor::Data).map_err(|_| "a data connection must name its session".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visitors_are_told_apart_and_strangers_are_told_why() {
        let hello =
            |purpose, job, greeting: &[u8]| visitor(&Hello { purpose, job, greeting: greeting.to_vec() });
        assert_eq!(hello(Purpose::Control, JOB, GREETING), Ok(Visitor::Session));
        assert_eq!(hello(Purpose::Data { shard: 0 }, JOB, &7_u64.to_le_bytes()), Ok(Visitor::Data(7)));
        let refused = |purpose, job, greeting: &[u8]| hello(purpose, job, greeting).unwrap_err();
        assert!(refused(Purpose::Control, 1, GREETING).contains("no jobs"));
        assert!(refused(Purpose::Control, JOB, b"perf 0 0.0.1").contains("the same release"));
        assert!(refused(Purpose::Data { shard: 0 }, JOB, b"x").contains("name its session"));
    }
}
