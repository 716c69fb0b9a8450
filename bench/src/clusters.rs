//! The clusters that a run measures, each over another transport, and the check that none lost a push.
//! Knows which may be missing; called by `main.rs`.

use rangefold_transport::auto::{self, Wish};
use rangefold_transport::memory;
use rangefold_workers::remote::RemoteDialer;

use crate::cluster::Bench;

/// All that can be had here.
pub(crate) struct Clusters {
    pub(crate) memory: Bench<memory::Endpoint, rangefold::embed::MemoryDialer>,
    /// Over TCP, by the name of the transport.
    pub(crate) tcp: Vec<(&'static str, Bench<auto::Endpoint, RemoteDialer>)>,
    /// What cannot be had, and why.
    pub(crate) skipped: Vec<auto::Unavailable>,
}

impl Clusters {
    /// Starts one each. A transport that this machine does not offer is skipped; whatever else fails is an error.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let (mut tcp, mut skipped) = (Vec::new(), Vec::new());
        for (name, wish) in [("uring", Wish::Uring), ("socket", Wish::Socket), ("auto", Wish::Auto)] {
            match Bench::tcp(wish) {
                Ok(bench) => tcp.push((name, bench)),
                Err(error) => skipped.push(error.downcast::<auto::Unavailable>()?),
            }
        }
        Ok(Self { memory: Bench::memory()?, tcp, skipped })
    }

    /// Whether every push was added exactly once, in words; an error when one was not.
    pub(crate) fn check(&self) -> anyhow::Result<String> {
        let mut counts = vec![("memory", self.memory.check())];
        counts.extend(self.tcp.iter().map(|(name, bench)| (*name, bench.check())));
        let mut words = Vec::new();
        for (name, count) in counts {
            let count = count.map_err(|error| error.context(format!("data check FAILED over {name}")))?;
            words.push(format!("{count} over {name}"));
        }
        Ok(format!("data check passed: every push was added exactly once ({})", words.join(", ")))
    }
}
