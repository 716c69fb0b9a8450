//! What a small push costs in instructions, on each side: a worker and a shard turned in one thread, over a transport. With 1 as
//! the second argument one push is under way at a time, else 64 are issued between two turns.
//!
//! `valgrind --tool=callgrind --collect-atstart=no --toggle-collect='*worker_side*' target/release/examples/instructions socket`
//! counts the worker's side, `'*shard_side*'` the shard's; divide the total by the pushes printed.

use rangefold::{ElementType, Limits, TableSpec, UpdateFunction};
use rangefold_kvstore::{Command as ToNode, Node, NodeOptions};
use rangefold_proto::client::Grant;
use rangefold_proto::manager::ManagerCore;
use rangefold_proto::wire::Arguments;
use rangefold_proto::{
    ClusterMap, Incarnation, JobId, KeyRange, Lane, Member, ServerEntry, ServerId, ShardId, TableId, View,
};
use rangefold_transport::{Endpoint, Link, Shell, memory, socket, uring};
use rangefold_workers::driver::{Command as ToDriver, Dialed, Dialer, Driver};
use rangefold_workers::remote;

const JOB: JobId = JobId(1);
const SHARD: ShardId = ShardId { server: ServerId(0), shard: 0 };
/// Rounds of pushes, each of a burst that is issued before either side turns.
const ROUNDS: usize = 2_000;

/// Hands out the one connection that there is.
struct Once {
    link: Option<Link>,
    dialed: bool,
}

impl Dialer for Once {
    fn dial(&mut self, _: &ClusterMap, _: ShardId) {
        self.dialed = true;
    }

    fn poll(&mut self) -> Option<(ShardId, Result<Dialed, String>)> {
        let link = self.dialed.then(|| self.link.take()).flatten()?;
        let limits = Limits::standard();
        let grant = Grant { push_bytes: limits.push_bytes_per_link, pulls: limits.pulls_per_link };
        Some((SHARD, Ok(Dialed { link, grant })))
    }
}

#[inline(never)]
fn worker_side<E: Endpoint>(
    driver: &mut Driver<E, Once>,
    table: TableId,
    burst: usize,
    now_ns: u64,
) -> usize {
    let mut issued = 0;
    while issued < burst && driver.core().open_tasks() < 4 * burst {
        let Ok(mut values) = driver.buffer(256) else { break };
        values.as_mut_bytes().fill(0);
        let range = KeyRange::new(7, 8);
        let task = driver.push(Lane(0), table, range, values.freeze(), Arguments::default());
        let Ok(task) = task else { break };
        driver.forget(task);
        issued += 1;
    }
    driver.turn(now_ns);
    issued
}

#[inline(never)]
fn shard_side<E: Endpoint>(node: &mut Node<E>, now_ns: u64) {
    node.turn(now_ns);
}

fn run<E: Endpoint>(burst: usize, links: (Link, Link), endpoint: impl Fn() -> E) {
    let mut manager = ManagerCore::new();
    let entry = ServerEntry { server: ServerId(0), address: String::new(), shards: 1, host: 0 };
    assert_eq!(manager.join(entry), Ok(()));
    let mut spec = TableSpec::dense("t", ElementType::F32, 1024, UpdateFunction::Add);
    (spec.segments, spec.width) = (1, 64);
    let table = manager.create_table(&spec).unwrap_or_else(|error| panic!("{error}"));
    let member = Member { lane: Lane(0), incarnation: Incarnation(1), first_round: 0 };
    let view = View { number: 1, members: vec![member] };
    let limits = Limits::standard();
    let options = NodeOptions { shard: SHARD, job: JOB, limits, send_bytes_max: 64 << 20 };
    let mut node = Node::new(endpoint(), options, ());
    let dialer = Once { link: Some(links.0), dialed: false };
    let mut driver = Driver::new(endpoint(), dialer, JOB, limits, 64 << 20);
    node.command(0, ToNode::Map(manager.map().clone()));
    node.command(0, ToNode::View(view.clone()));
    node.command(0, ToNode::Adopt(links.1));
    driver.command(0, ToDriver::Map(manager.map().clone()));
    driver.command(0, ToDriver::View(view));
    driver.command(0, ToDriver::Run(vec![member]));
    let mut pushed = 0;
    for round in 0..ROUNDS as u64 {
        pushed += worker_side(&mut driver, table, burst, round);
        shard_side(&mut node, round);
    }
    for round in 0..1_000_000 {
        if driver.core().open_tasks() == 0 {
            break;
        }
        driver.turn(ROUNDS as u64 + round);
        node.turn(ROUNDS as u64 + round);
    }
    assert_eq!(driver.core().open_tasks(), 0, "every push is acknowledged");
    assert_eq!(node.counters().pushes, pushed as u64, "every push is applied once");
    println!("{pushed} pushes");
}

fn tcp() -> std::io::Result<(Link, Link)> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let ours = std::net::TcpStream::connect(listener.local_addr()?)?;
    let (theirs, _) = listener.accept()?;
    Ok((Link::tcp(ours, 7)?, Link::tcp(theirs, 7)?))
}

fn main() -> anyhow::Result<()> {
    let framing = remote::framing();
    let burst = std::env::args().nth(2).map_or(Ok(64), |burst| burst.parse())?;
    match std::env::args().nth(1).as_deref() {
        Some("memory") => run(burst, memory::pair(7, 1024), memory::Endpoint::new),
        Some("socket") => {
            let endpoint = || socket::Endpoint::new(framing, socket::Limits::default());
            drop(endpoint()?);
            run(burst, tcp()?, || endpoint().unwrap_or_else(|error| panic!("{error}")));
        }
        Some("uring") => {
            let endpoint = || uring::Endpoint::new(framing, uring::Options::default());
            drop(endpoint()?);
            run(burst, tcp()?, || endpoint().unwrap_or_else(|error| panic!("{error}")));
        }
        _ => anyhow::bail!("which transport? memory, socket or uring"),
    }
    Ok(())
}
