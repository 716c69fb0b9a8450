//! A store for one session: scheduler and one shard, as `rangefold scheduler` and `rangefold server` run them.
//! Knows how a cluster is put together on the server's side; not who measures it. Made and ended by `server.rs`.

use std::net::IpAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use rangefold::Limits;
use rangefold::server::{Options, Server, Stopper};
use rangefold_transport::auto;
use rangefold_transport::bootstrap::{Listener, Terms};
use rangefold_transport::wait::Clock;
use rangefold_workers::coordinator::Coordinator;
use rangefold_workers::scheduler;

use super::connection;
use super::session::no_thread;

/// How long the parts of one process may take to find each other.
const START: Duration = Duration::from_secs(10);
/// A client that says nothing for so long is taken for dead; the session's own end comes first.
const SILENCE: Duration = Duration::from_secs(60);

/// A running store. Dropping it ends it; the values are gone then.
pub(super) struct Cluster {
    scheduler: Arc<Listener>,
    server: Option<Stopper>,
    threads: Vec<JoinHandle<()>>,
}

/// How its shard is run.
pub(super) struct Shard<'a> {
    pub(super) endpoint: &'a auto::Options,
    pub(super) cores: Vec<usize>,
    pub(super) busy_threads: usize,
    pub(super) busy_poll: bool,
    pub(super) terms: Terms,
}

impl Cluster {
    /// Starts one at ports of `ip` that the system picks.
    pub(super) fn start(ip: IpAddr, shard: Shard<'_>) -> anyhow::Result<Self> {
        // An address as text needs brackets around an IPv6 one.
        let any_port = std::net::SocketAddr::new(ip, 0).to_string();
        let listener = Arc::new(connection::listen(&any_port, shard.terms.clone())?);
        let coordinator = Arc::new(Coordinator::new(Clock::new(), 1));
        let mut cluster = Self { scheduler: Arc::clone(&listener), server: None, threads: Vec::new() };
        let address = listener.address().to_string();
        cluster.spawn("rangefold-perf-scheduler", move || {
            scheduler::serve(&listener, &coordinator, SILENCE, |_| {});
        })?;
        let options = Options {
            scheduler: address,
            bind: any_port,
            advertise: None,
            shards: 1,
            number: None,
            cores: shard.cores,
            busy_threads: shard.busy_threads,
            busy_poll: shard.busy_poll,
            limits: Limits::standard(),
            deadline: START,
            terms: shard.terms,
        };
        let endpoint = || {
            auto::Endpoint::new(shard.endpoint)
                .map(|(endpoint, _)| endpoint)
                .map_err(|error| error.to_string())
        };
        let server = Server::start(&options, endpoint, |_| {}).context("cannot start a shard")?;
        cluster.server = Some(server.stopper());
        cluster.spawn("rangefold-perf-server", move || {
            // Its end is the session's, or seen by the client as that of its connections.
            let _ = server.serve(|| {});
        })?;
        Ok(cluster)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
        let thread = thread::Builder::new().name(name.into()).spawn(run);
        self.threads.push(thread.map_err(|error| no_thread(&error))?);
        Ok(())
    }

    /// Where its scheduler listens.
    pub(super) fn scheduler_port(&self) -> u16 {
        self.scheduler.address().port()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.stop();
        }
        self.scheduler.stop();
        for thread in self.threads.drain(..) {
            // One that panicked has said so on standard error.
            let _ = thread.join();
        }
    }
}
