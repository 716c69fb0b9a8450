//! How the system is to find a peer that has gone without a word: a cut cable, a host without power, a stopped process.
//! Knows the kernel's options and their units; not what a connection is for. Called when one has been made.
//! Source: tcp(7); `transport/DESIGN.md` (keepalive).

use std::net::TcpStream;
use std::time::Duration;

use rustix::net::sockopt;

/// Within how long a silent peer is found, at least: the kernel counts keepalive in whole seconds.
pub const PEER_TIMEOUT_MIN: Duration = Duration::from_secs(3);
/// At most; the kernel's own limit is some hours above.
pub const PEER_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// If nobody says otherwise. An outage of less than half of it breaks no connection.
pub const PEER_TIMEOUT: Duration = Duration::from_secs(10);

/// How the kernel is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Settings {
    /// Silence before the first probe.
    idle: Duration,
    /// Between probes.
    interval: Duration,
    /// Probes without an answer; the user timeout decides where the kernel has it.
    count: u32,
    /// How long bytes may stay unacknowledged, or unread by a peer without room, and probes unanswered.
    user_timeout: Duration,
}

/// A probe finds a silent peer at the first interval after the user timeout. Bytes that are sent shortly before stop the
/// probes, and then have a user timeout of their own. So two of them and an interval must fit.
fn settings(within: Duration) -> Settings {
    let within = within.clamp(PEER_TIMEOUT_MIN, PEER_TIMEOUT_MAX);
    let interval = (within / 8).as_secs().max(1);
    let user_timeout = (within - Duration::from_secs(interval)) / 2;
    let idle = (user_timeout / 2).as_secs().max(1);
    let count = user_timeout.as_secs().saturating_sub(idle).div_ceil(interval).max(1);
    Settings {
        idle: Duration::from_secs(idle),
        interval: Duration::from_secs(interval),
        count: u32::try_from(count).unwrap_or(u32::MAX),
        user_timeout,
    }
}

/// From now on the connection breaks when nothing is heard of the other side `within` this time, whether something is being
/// sent or not.
pub(super) fn watch(stream: &TcpStream, within: Duration) -> std::io::Result<()> {
    let settings = settings(within);
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, settings.idle)?;
    sockopt::set_tcp_keepintvl(stream, settings.interval)?;
    sockopt::set_tcp_keepcnt(stream, settings.count)?;
    let user_timeout_ms = u32::try_from(settings.user_timeout.as_millis()).unwrap_or(u32::MAX);
    Ok(sockopt::set_tcp_user_timeout(stream, user_timeout_ms)?)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_worst_case_fits() {
        for seconds in (0..300).chain([86_400, 1_000_000]) {
            let within = Duration::from_secs(seconds);
            let settings = settings(within);
            let Settings { idle, interval, count, user_timeout } = settings;
            // Probes at `idle` and every interval after it; the first beyond the user timeout that follows another breaks.
            let mut probe = idle + interval;
            while probe < user_timeout {
                probe += interval;
            }
            let within = within.clamp(PEER_TIMEOUT_MIN, PEER_TIMEOUT_MAX);
            assert!(probe + user_timeout <= within, "{within:?}: {settings:?}");
            assert!(count <= 127 && idle.as_secs() <= 32_767, "the kernel's limits: {settings:?}");
            assert!(user_timeout * 3 >= within, "an outage of a third is survived: {settings:?}");
        }
    }
}
