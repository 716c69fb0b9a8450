//! The shard threads of one server: started together, told together, and gone with their owner.
//! Knows threads and what news mean to a shard; not where news come from. Held by `embed` and `server`.
//! Source: `kvstore/DESIGN.md` (one thread owns a shard).

use std::thread::JoinHandle;

use rangefold_kvstore::{Command, NodeOptions, Observe, ShardHandle};
use rangefold_proto::{JobId, Limits, ServerId, ShardId};
use rangefold_transport::wait::Loop;
use rangefold_transport::{Endpoint, LostReason};
use rangefold_workers::coordinator::News;

use crate::pinning;

/// Bytes that a shard may have under way in replies.
const REPLY_BYTES_MAX: usize = 128 << 20;

/// How the shards of a server are started.
pub(crate) struct Plan<'a> {
    pub(crate) server: ServerId,
    pub(crate) shards: u16,
    pub(crate) job: JobId,
    pub(crate) limits: Limits,
    /// How the threads wait. Made before any is bound: one that may use a single processor is taken for one that must not spin.
    pub(crate) turns: Loop,
    /// Processors for the threads, in order; those beyond them are not pinned.
    pub(crate) cores: &'a [usize],
}

/// A connection that a shard has lost.
#[derive(Clone, Copy, Debug)]
pub struct Loss<'a> {
    /// Whose.
    pub shard: ShardId,
    /// Where its other side was, if the transport has addresses.
    pub address: Option<&'a str>,
    /// Why.
    pub reason: LostReason,
}

/// Passes on what a shard loses.
struct Watch<F>(ShardId, F);

impl<F: Fn(&Loss<'_>)> Observe for Watch<F> {
    fn lost(&mut self, address: Option<&str>, reason: LostReason) {
        (self.1)(&Loss { shard: self.0, address, reason });
    }
}

/// Running shards. Dropping them stops the threads and waits for their end; the values are gone then.
pub(crate) struct Shards {
    handles: Vec<ShardHandle>,
    threads: Vec<JoinHandle<()>>,
}

impl Shards {
    /// Starts the threads; `endpoint` makes one for each, and `lost` hears of each lost connection, on them. Those that run are stopped when a later one cannot be started.
    pub(crate) fn start<E: Endpoint + Send + 'static, Error: From<std::io::Error>>(
        plan: &Plan<'_>,
        mut endpoint: impl FnMut() -> Result<E, Error>,
        lost: impl Fn(&Loss<'_>) + Clone + Send + 'static,
    ) -> Result<Self, Error> {
        let mut started = Self { handles: Vec::new(), threads: Vec::new() };
        for number in 0..plan.shards {
            let shard = ShardId { server: plan.server, shard: number };
            let node =
                NodeOptions { shard, job: plan.job, limits: plan.limits, send_bytes_max: REPLY_BYTES_MAX };
            let core = plan.cores.get(usize::from(number)).copied();
            let pin = move || {
                // A thread that stays where it was is slower, and no worse.
                let _ = core.map(pinning::pin);
            };
            let watch = Watch(shard, lost.clone());
            let (handle, thread) = rangefold_kvstore::spawn(endpoint()?, node, watch, plan.turns, pin)?;
            started.handles.push(handle);
            started.threads.push(thread);
        }
        Ok(started)
    }

    /// How to reach each, in order.
    pub(crate) fn handles(&self) -> &[ShardHandle] {
        &self.handles
    }
}

/// Passes on to shards what concerns them.
pub(crate) fn tell(shards: &[ShardHandle], news: &News) {
    for shard in shards {
        let command = match news {
            News::Map(map) => Command::Map(map.clone()),
            News::View(view) => Command::View(view.clone()),
            News::Run(_) | News::Barrier(_) | News::Stop => return,
        };
        // A shard that takes no commands has ended; whoever waits for it is told by its broken connections.
        let _ = shard.command(command);
    }
}

impl Drop for Shards {
    fn drop(&mut self) {
        for shard in &self.handles {
            shard.stop();
        }
        for thread in self.threads.drain(..) {
            // A shard that panicked has said so on standard error.
            let _ = thread.join();
        }
    }
}
