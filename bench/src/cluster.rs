//! Our rows: one worker and one shard, over a transport, through the client that programs use.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use rangefold::embed::{Cluster, Options};
use rangefold::server::{Server, Stopper};
use rangefold::{ElementType, Limits, TableSpec, UpdateFunction, server};
use rangefold_transport::bootstrap::{Listener, Options as Listening, Terms};
use rangefold_transport::wait::Clock;
use rangefold_transport::{Endpoint, auto, memory};
use rangefold_workers::coordinator::Coordinator;
use rangefold_workers::driver::Dialer;
use rangefold_workers::{Client, Table, Ticket, remote, scheduler};

use crate::ceiling::MESSAGE_BYTES;
use crate::cores;
use crate::spread::Spread;

/// Elements of the table: one message, so that the ceiling's receiver and ours sweep the same memory.
const ELEMENTS: usize = MESSAGE_BYTES / 4;
/// Messages under way.
const WINDOW: usize = 8;
/// Small pushes under way.
const OUTSTANDING: usize = 256;
const DEADLINE: Duration = Duration::from_secs(30);

/// A cluster of one worker and one shard.
pub(crate) struct Bench<E: Endpoint, D: Dialer> {
    client: Client<E, D>,
    table: Table<f32, E, D>,
    /// Pushes of ones to the first 64 keys, and to all keys.
    small: AtomicU64,
    large: AtomicU64,
    /// What must live as long.
    _cluster: Box<dyn std::any::Any>,
}

/// Ends the processes' threads of a cluster over sockets.
struct Services {
    scheduler: Arc<Listener>,
    server: Stopper,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Drop for Services {
    fn drop(&mut self) {
        self.server.stop();
        self.scheduler.stop();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn spec() -> TableSpec {
    let mut spec = TableSpec::dense("bench", ElementType::F32, ELEMENTS as u64, UpdateFunction::Add);
    spec.segments = 1;
    spec
}

impl Bench<memory::Endpoint, rangefold::embed::MemoryDialer> {
    pub(crate) fn memory() -> anyhow::Result<Self> {
        let options = Options { cores: cores::other(), ..Options::default() };
        let cluster = Cluster::start(options)?;
        let client = cluster.join()?;
        Self::new(client, Box::new(cluster))
    }
}

impl Bench<auto::Endpoint, remote::RemoteDialer> {
    /// Over TCP in this process, as between processes. [`auto::Unavailable`] where this machine has no such transport.
    pub(crate) fn tcp(wish: auto::Wish) -> anyhow::Result<Self> {
        let endpoint = |one_thread| {
            auto::Endpoint::new(&auto::Options { wish, framing: remote::framing(), one_thread })
                .map(|(endpoint, _)| endpoint)
        };
        // As most programs have it, but where a transport is asked for that is at its best for one thread.
        let one_thread = wish != auto::Wish::Auto;
        // Both kinds are asked for before a thread is started: a refusal then leaves nothing behind.
        let client = endpoint(one_thread)?;
        drop(endpoint(true)?);
        let listener = Arc::new(Listener::bind("127.0.0.1:0", Listening::default())?);
        let address = listener.address().to_string();
        let coordinator = Arc::new(Coordinator::new(Clock::new(), 1));
        let listening = Arc::clone(&listener);
        let serving = std::thread::spawn(move || {
            scheduler::serve(&listening, &coordinator, Duration::from_secs(60), |_| {});
        });
        let options = server::Options {
            scheduler: address.clone(),
            bind: "127.0.0.1:0".into(),
            advertise: None,
            shards: 1,
            number: None,
            cores: cores::other(),
            busy_threads: 2,
            busy_poll: false,
            limits: Limits::standard(),
            deadline: DEADLINE,
            terms: Terms::default(),
        };
        let server = Server::start(&options, || endpoint(true).map_err(|error| error.to_string()), |_| {})?;
        let stopper = server.stopper();
        let shard = std::thread::spawn(move || {
            let _ = server.serve(|| {});
        });
        let options = remote::Options {
            scheduler: address,
            busy_threads: 2,
            one_thread,
            deadline: DEADLINE,
            ..remote::Options::default()
        };
        let client = remote::connect(&options, client)?;
        let services = Services { scheduler: listener, server: stopper, threads: vec![serving, shard] };
        Self::new(client, Box::new(services))
    }
}

impl<E: Endpoint + Send + 'static, D: Dialer + Send + 'static> Bench<E, D> {
    fn new(client: Client<E, D>, cluster: Box<dyn std::any::Any>) -> anyhow::Result<Self> {
        client.wait_for_lanes(DEADLINE)?;
        let table = client.table(&spec())?;
        Ok(Self { client, table, small: AtomicU64::new(0), large: AtomicU64::new(0), _cluster: cluster })
    }

    /// GB/s of pushes of the whole table, each added and acknowledged, out of memory that is copied first.
    pub(crate) fn push(&self, length: Duration) -> anyhow::Result<f64> {
        let ones = vec![1.0f32; ELEMENTS];
        self.pushes(length, || self.table.push(0..ELEMENTS as u64, &ones))
    }

    /// The same from where the values lie.
    pub(crate) fn push_shared(&self, length: Duration) -> anyhow::Result<f64> {
        let mut ones = self.table.values(ELEMENTS as u64)?;
        ones.fill(1.0);
        let ones = ones.share();
        self.pushes(length, || self.table.push_shared(0..ELEMENTS as u64, &ones))
    }

    fn pushes(
        &self,
        length: Duration,
        push: impl Fn() -> Result<Ticket<E, D>, rangefold::Error>,
    ) -> anyhow::Result<f64> {
        let mut under_way = std::collections::VecDeque::new();
        let begun = Instant::now();
        let mut pushed = 0u64;
        while begun.elapsed() < length {
            if under_way.len() == WINDOW
                && let Some(oldest) = under_way.pop_front()
            {
                Ticket::wait(oldest, DEADLINE)?;
            }
            under_way.push_back(push()?);
            pushed += 1;
        }
        for ticket in under_way {
            ticket.wait(DEADLINE)?;
        }
        self.large.fetch_add(pushed, Ordering::Relaxed);
        Ok(pushed as f64 * MESSAGE_BYTES as f64 / begun.elapsed().as_secs_f64() / 1e9)
    }

    /// GB/s of pulls of the whole table.
    pub(crate) fn pull(&self, length: Duration) -> anyhow::Result<f64> {
        let mut under_way = std::collections::VecDeque::new();
        let begun = Instant::now();
        let mut pulled = 0u64;
        while begun.elapsed() < length {
            if under_way.len() == WINDOW
                && let Some(oldest) = under_way.pop_front()
            {
                std::hint::black_box(&*rangefold_workers::PullTicket::wait(oldest, DEADLINE)?);
            }
            under_way.push_back(self.table.pull(0..ELEMENTS as u64)?);
            pulled += 1;
        }
        for ticket in under_way {
            ticket.wait(DEADLINE)?;
        }
        Ok(pulled as f64 * MESSAGE_BYTES as f64 / begun.elapsed().as_secs_f64() / 1e9)
    }

    /// Million pushes a second of one key of 64 f32, `OUTSTANDING` under way, each added and acknowledged.
    pub(crate) fn pipelined(&self, length: Duration) -> anyhow::Result<f64> {
        let ones = [1.0f32; 64];
        let mut under_way = std::collections::VecDeque::with_capacity(OUTSTANDING);
        let begun = Instant::now();
        let mut pushed = 0u64;
        while begun.elapsed() < length {
            // The clock is looked at once in a while, as by the ceiling.
            for _ in 0..OUTSTANDING / 4 {
                if under_way.len() == OUTSTANDING
                    && let Some(oldest) = under_way.pop_front()
                {
                    Ticket::wait(oldest, DEADLINE)?;
                }
                under_way.push_back(self.table.push(0..64, &ones)?);
                pushed += 1;
            }
        }
        for ticket in under_way {
            ticket.wait(DEADLINE)?;
        }
        self.small.fetch_add(pushed, Ordering::Relaxed);
        Ok(pushed as f64 / begun.elapsed().as_secs_f64() / 1e6)
    }

    /// Median microseconds from a push of 64 f32 to its acknowledgement.
    pub(crate) fn round_trip(&self, length: Duration) -> anyhow::Result<f64> {
        let ones = [1.0f32; 64];
        let mut trips = Vec::new();
        let begun = Instant::now();
        while begun.elapsed() < length {
            let sent = Instant::now();
            self.table.push(0..64, &ones)?.wait(DEADLINE)?;
            trips.push(sent.elapsed().as_secs_f64() * 1e6);
        }
        self.small.fetch_add(trips.len() as u64, Ordering::Relaxed);
        Ok(Spread::of(trips).context("no round trip within the length")?.median)
    }

    /// Whether every push was added exactly once; says how many there were. Sums are exact below 2^24.
    pub(crate) fn check(&self) -> anyhow::Result<u64> {
        let values = self.table.pull(0..ELEMENTS as u64)?.wait(DEADLINE)?;
        let (small, large) = (self.small.load(Ordering::Relaxed), self.large.load(Ordering::Relaxed));
        let pushes = small + large;
        anyhow::ensure!(
            pushes < 1 << 24,
            "{pushes} pushes are more than an f32 counts: use fewer --repeats or --millis"
        );
        let wrong = values.iter().enumerate().filter(|&(key, &value)| {
            let expected = large + if key < 64 { small } else { 0 };
            f64::from(value) != expected as f64
        });
        let wrong = wrong.count();
        anyhow::ensure!(wrong == 0, "{wrong} of {ELEMENTS} sums are wrong after {pushes} pushes");
        self.client.leave();
        Ok(pushes)
    }
}
