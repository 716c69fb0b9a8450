//! What a measurement runs on: two hosts, two transports, and what connects them.
//! Knows how to say it, to people and in JSON; finds nothing out. Made by `client.rs`, shown by the report.

use rangefold_transport::Route;
use rangefold_transport::wait::Loop;
use serde_json::{Value, json};

use crate::perf::host::Host;
use crate::perf::options::{Operation, Plan};
use crate::perf::session::{Chosen, Ready};

/// What a measurement runs on, for people and for the document.
pub(in super::super) struct Setting {
    pub(super) host: Host,
    /// The client's transport, and why not others.
    pub(super) chosen: Chosen,
    /// How the client's threads wait.
    pub(super) waiting: String,
    /// How the two sides are connected.
    pub(super) connection: String,
    /// The network device, where it is known.
    device: Option<&'static str>,
    server: Server,
}

/// Who answers.
enum Server {
    /// Threads of this process, without a session.
    Threads,
    /// One with a session, of this process or of another.
    Session { address: String, is_here: bool, ready: Box<Ready> },
}

impl Setting {
    /// Without a network.
    pub(in super::super) fn in_memory(plan: &Plan, host: Host, turns: &Loop, connection: &str) -> Self {
        let refused = ["shm", "uring", "socket"]
            .map(|name| (name.to_owned(), format!("{} was asked for", plan.transport.name())));
        Self {
            host,
            chosen: Chosen { transport: "memory".into(), refused: refused.to_vec() },
            waiting: turns.to_string(),
            connection: connection.into(),
            device: None,
            server: Server::Threads,
        }
    }

    /// Through a server at `address`.
    pub(in super::super) fn between(
        plan: &Plan,
        host: Host,
        turns: &Loop,
        chosen: Chosen,
        route: &Route,
        address: &str,
        ready: &Ready,
    ) -> Self {
        let mut ready = ready.clone();
        ready.chosen.known(route);
        let is_shared = *route == Route::Shared;
        let is_here = plan.address.is_none();
        let connections = match plan.operation {
            Operation::Raw(_) => "one connection for each thread",
            Operation::Store(_) => "one connection to the shard, used by all threads",
        };
        let loopback =
            address.starts_with("127.") || address.starts_with("[::1]") || address.starts_with("localhost:");
        Self {
            host,
            chosen,
            waiting: turns.to_string(),
            connection: format!(
                "{}, {connections}; {}",
                if is_shared { "shared memory, a ring in each direction" } else { "TCP" },
                if plan.terms.secret.is_some() {
                    "both sides have proven that they know the secret"
                } else {
                    "without a secret, this host only"
                }
            ),
            device: (loopback && !is_shared).then_some("lo"),
            server: Server::Session { address: address.into(), is_here, ready: Box::new(ready) },
        }
    }

    /// The client's transport, and why not others.
    pub(super) fn transport_lines(&self) -> Vec<String> {
        std::iter::once(self.chosen.transport.clone()).chain(self.chosen.reasons()).collect()
    }

    /// Who answers.
    pub(super) fn server_lines(&self) -> Vec<String> {
        match &self.server {
            Server::Threads => vec![format!("threads of this process, {}", self.waiting)],
            Server::Session { address, is_here: true, ready } => {
                let Ready { chosen, waiting, .. } = &**ready;
                vec![format!("threads of this process at {address}, {}, {waiting}", chosen.transport)]
            }
            Server::Session { address, is_here: false, ready } => {
                let Ready { chosen, waiting, host, .. } = &**ready;
                let first = [format!("{address}, {}, {waiting}", chosen.transport), host.line()];
                first.into_iter().chain(chosen.reasons()).collect()
            }
        }
    }

    pub(super) fn as_json(&self) -> Value {
        let chosen = |chosen: &Chosen| {
            let refused =
                chosen.refused.iter().map(|(name, reason)| json!({ "transport": name, "reason": reason }));
            json!({ "name": chosen.transport, "refused": refused.collect::<Vec<_>>() })
        };
        let host = |host: &Host| json!({ "name": host.name, "kernel": host.kernel, "cpu": host.processor, "processors": host.processors });
        let server = match &self.server {
            Server::Threads => json!({ "in_this_process": true, "waiting": self.waiting }),
            Server::Session { address, is_here, ready } => json!({
                "in_this_process": is_here,
                "address": address,
                "host": host(&ready.host),
                "transport": chosen(&ready.chosen),
                "waiting": ready.waiting,
            }),
        };
        json!({
            "host": host(&self.host),
            "transport": chosen(&self.chosen),
            "device": self.device,
            "connection": self.connection,
            "waiting": self.waiting,
            "server": server,
        })
    }
}
