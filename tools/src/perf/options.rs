//! The options of `perf`, and the measurement that they ask for together.
//! Knows which go with which; measures nothing. Called by `mod.rs`, first of all.
//! Source: the habits of perftest, OSU micro-benchmarks, nccl-tests and redis-benchmark.

use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use rangefold_transport::auto::Wish;
use rangefold_transport::bootstrap::Terms;
use serde_json::{Value, json};

use super::pace::{Limit, Pace, whole};
use super::size::{ELEMENT_BYTES, Shape, Sweep, number, store_shape};
use super::verdict::Bounds;
use crate::exit::Usage;
use crate::{terms, usage};

/// Messages under way, unless said otherwise: enough to fill a stream from 64 KiB on, few enough to read latencies by.
const DEPTH: u16 = 16;
/// Seconds of sending at each size, unless said otherwise: a sweep takes some ten.
const DURATION: f64 = 0.25;
/// Bytes of all threads' messages to a store that may be under way: half of what a client keeps unacknowledged.
pub(super) const UNDER_WAY_BYTES_MAX: u64 = 128 << 20;
/// Sizes of a sweep, unless said otherwise. A store's start with two elements.
const SIZES: Sweep = Sweep::new(8, 4 << 20);
/// Bytes of a store's table, at most: what a server refuses later anyway.
const TABLE_BYTES_MAX: u64 = 1 << 46;

/// Measure latency and bandwidth, of the bare transport or of a store.
///
/// Without an address a server runs in this process: `rangefold perf push` prints a table at once. Between two hosts,
/// `rangefold perf server` runs on one, and the others name it.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(super) role: Role,
}

const EXAMPLES: &str = "\
Examples:
  rangefold perf push                                 8 B to 4 MiB, server and client here
  rangefold perf server --bind 127.0.0.1:7701         wait for clients
  rangefold perf send 127.0.0.1:7701 --depth 1        round trips on the bare transport
  rangefold perf pull 127.0.0.1:7701 --size 64K:64M --repeats 5 --format csv
  rangefold perf push --size 256 --depth 256          rate of pipelined pushes of one row
  rangefold perf push --size 256 --rate 50000         latency at 50,000 pushes a second (open loop)
  rangefold perf push --size 1M --min-bw 2000 --max-p99 20000    a verdict by the exit status

Exit status: 0 success; 1 wrong data, or --min-bw or --max-p99 not kept; 2 wrong usage; 3 the
transport or the operation cannot be had here; 4 the peer cannot be reached, was lost, or did not
answer within --timeout; 130 interrupted. Rows that were measured before are printed in any case.";

/// Who this is, and what it measures.
#[derive(Subcommand, Debug)]
pub(super) enum Role {
    /// Wait for clients and serve what they measure, until told to stop.
    Server(ServerArguments),
    /// A one-way stream of messages on the bare transport, acknowledged by the receiver.
    Send(RawArguments),
    /// One-sided reads on the bare transport.
    Read(RawArguments),
    /// One-sided writes on the bare transport.
    Write(RawArguments),
    /// Range pushes to a table of f32 on a real shard, added and acknowledged.
    Push(StoreArguments),
    /// Range pulls from a table of f32 on a real shard.
    Pull(StoreArguments),
    /// A push to a range and a pull of it, in one round trip.
    PushPull(StoreArguments),
}

/// Options of `perf server`.
#[derive(clap::Args, Debug)]
pub(super) struct ServerArguments {
    /// Where to listen, host and port; port 0 takes any. Without a secret, loopback only. Clients of stores use two more
    /// ports of the same address, which the system picks.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7701", value_parser = usage::listening)]
    pub(super) bind: String,
    /// The transport: auto, shm, uring or socket. auto takes what a client asks for; with another, clients that ask for
    /// something else are refused.
    #[arg(long, value_name = "X", env = "RANGEFOLD_TRANSPORT", default_value_t = Wish::Auto, value_parser = usage::transport)]
    pub(super) transport: Wish,
    /// Processors for the threads that serve, as 0,1,4, in order; threads beyond them are not pinned.
    #[arg(long, value_name = "LIST", default_value = "", allow_negative_numbers = true)]
    pub(super) pin: String,
    /// Spin for ever instead of sleeping after a while: a processor for each thread.
    #[arg(long)]
    pub(super) busy_poll: bool,
    #[command(flatten)]
    pub(super) terms: terms::Arguments,
}

/// Options of every measurement.
#[derive(clap::Args, Debug)]
pub(super) struct Common {
    /// The server, host and port. Without it a server runs in this process.
    #[arg(value_name = "HOST:PORT", value_parser = usage::reached)]
    address: Option<String>,
    /// The transport: auto, shm (a server of this host), uring, socket, or memory inside this process. Any but auto fails
    /// rather than take another.
    #[arg(long, value_name = "X", env = "RANGEFOLD_TRANSPORT", default_value = "auto", value_parser = transport)]
    transport: Transport,
    /// Seconds of sending at each size [default: 0.25].
    #[arg(long, value_name = "S", allow_negative_numbers = true, value_parser = usage::positive, conflicts_with = "iterations")]
    duration: Option<f64>,
    /// Messages of each thread at each size, instead of a duration.
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..))]
    iterations: Option<u64>,
    /// Messages of each thread before the timed ones [default: 100, from 128 KiB on 10].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    warmup: Option<u64>,
    /// Messages of each thread that may be under way, at most 4096; 1 measures round trips [default: 16]. Those to a store
    /// are fewer where 128 MiB would be under way.
    #[arg(long, value_name = "D", allow_negative_numbers = true, value_parser = clap::value_parser!(u16).range(1..=4096))]
    depth: Option<u16>,
    /// Threads that send, at most 64: on the bare transport each with a connection, to a store all with one client.
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    /// Measure each size so often; the table shows the repeat with the median bandwidth.
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = clap::value_parser!(u16).range(1..=1000))]
    repeats: u16,
    /// Open loop: so many messages a second of all threads together, due at fixed times. Latency counts from when a message was
    /// due, not from when it could be sent.
    #[arg(long, value_name = "R", allow_negative_numbers = true, value_parser = usage::positive)]
    rate: Option<f64>,
    /// Spin for ever instead of sleeping after a while. A server elsewhere has its own --busy-poll.
    #[arg(long)]
    busy_poll: bool,
    /// Processors for the threads that send, as 0,1,4, in order, then for those of a server in this process.
    #[arg(long, value_name = "LIST", default_value = "", allow_negative_numbers = true)]
    pin: String,
    /// Which data are checked: those of the first and last round and the whole table at the end, outside the timed window; every
    /// message, inside it; or none.
    #[arg(long, value_name = "WHICH", value_enum, default_value_t = Check::Ends)]
    check: Check,
    /// Seed of the data.
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = usage::seed)]
    seed: u64,
    /// What is printed on standard output: a table, CSV with a line for each repeat, or one JSON document.
    #[arg(long, value_name = "F", value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Fail (status 1) if a size moves less than so many MB/s (10^6 bytes).
    #[arg(long, value_name = "B", allow_negative_numbers = true, value_parser = usage::positive)]
    min_bw: Option<f64>,
    /// Fail (status 1) if the p99 of a size is above so many microseconds.
    #[arg(long, value_name = "T", allow_negative_numbers = true, value_parser = usage::positive)]
    max_p99: Option<f64>,
    /// Give up when a connection or an acknowledgement takes longer, in seconds.
    #[arg(long, value_name = "S", default_value_t = 10, allow_negative_numbers = true, value_parser = usage::seconds())]
    timeout: u64,
    #[command(flatten)]
    terms: terms::Arguments,
}

/// Options of a measurement of the bare transport.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct RawArguments {
    #[command(flatten)]
    common: Common,
    /// Bytes of a message's body (its head of 64 bytes comes on top): one size, or a sweep by doubling like 8:4M. K, M and G are
    /// powers of 1024 [default: 8:4M].
    #[arg(long, value_name = "A[:B]")]
    size: Option<Sweep>,
}

/// Options of a measurement of a store.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct StoreArguments {
    #[command(flatten)]
    common: Common,
    /// Bytes of a message's values, keys x width x 4: one size, or a sweep by doubling like 8:4M. K, M and G are powers of 1024
    /// [default: 8:4M].
    #[arg(long, value_name = "A[:B]", conflicts_with = "keys")]
    size: Option<Sweep>,
    /// Keys of a message instead, one number or a sweep.
    #[arg(long, value_name = "A[:B]")]
    keys: Option<Sweep>,
    /// Elements (f32) of a row, at most 4096 [default: 64, or one shorter row below 256 bytes].
    #[arg(long, value_name = "W", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=4096))]
    width: Option<u32>,
    /// Bytes of each thread's part of the table, which its messages sweep in turn [default: one message].
    #[arg(long, value_name = "SIZE", value_parser = number)]
    table: Option<u64>,
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Operation {
    /// Of the bare transport.
    Raw(RawOperation),
    /// Of a store.
    Store(StoreOperation),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RawOperation {
    Send,
    Read,
    Write,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum StoreOperation {
    Push,
    Pull,
    PushPull,
}

impl Operation {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Raw(RawOperation::Send) => "send",
            Self::Raw(RawOperation::Read) => "read",
            Self::Raw(RawOperation::Write) => "write",
            Self::Store(StoreOperation::Push) => "push",
            Self::Store(StoreOperation::Pull) => "pull",
            Self::Store(StoreOperation::PushPull) => "push-pull",
        }
    }
}

/// A transport that was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Transport {
    Memory,
    Between(Wish),
    /// One that there will be.
    Absent(&'static str),
}

impl Transport {
    pub(super) fn name(self) -> String {
        match self {
            Self::Memory => "memory".into(),
            Self::Between(wish) => wish.to_string(),
            Self::Absent(name) => name.into(),
        }
    }
}

fn transport(name: &str) -> Result<Transport, String> {
    match name {
        "memory" => Ok(Transport::Memory),
        "verbs" => Ok(Transport::Absent("verbs")),
        name => name
            .parse()
            .map(Transport::Between)
            .map_err(|_| format!("`{name}` is no transport; there are auto, shm, uring, socket and memory")),
    }
}

/// Which data are looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Check {
    /// The first and the last round, and the whole table.
    Ends,
    /// Every message.
    Every,
    /// Nothing.
    None,
}

/// What is printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Format {
    Table,
    Csv,
    Json,
}

/// A measurement, as its options say.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) operation: Operation,
    pub(super) address: Option<String>,
    pub(super) transport: Transport,
    pub(super) shapes: Vec<Shape>,
    limit: Limit,
    warmup: Option<u64>,
    pub(super) depth: usize,
    pub(super) threads: usize,
    pub(super) repeats: u32,
    pub(super) rate: Option<f64>,
    pub(super) busy_poll: bool,
    /// Processors of the client's threads, then of a server in this process.
    pub(super) cores: Vec<usize>,
    pub(super) check: Check,
    pub(super) seed: u64,
    pub(super) format: Format,
    pub(super) bounds: Bounds,
    pub(super) timeout: Duration,
    pub(super) terms: Terms,
}

impl Plan {
    /// Of the bare transport.
    ///
    /// # Errors
    /// Options that contradict each other.
    pub(super) fn raw(operation: RawOperation, arguments: &RawArguments) -> Result<Self, Usage> {
        let sizes = arguments.size.unwrap_or(SIZES).numbers();
        let shapes = sizes.into_iter().map(|bytes| Shape { bytes, rows: None }).collect();
        Self::new(Operation::Raw(operation), &arguments.common, shapes)
    }

    /// Of a store.
    ///
    /// # Errors
    /// Options that contradict each other, sizes that are not whole rows.
    pub(super) fn store(operation: StoreOperation, arguments: &StoreArguments) -> Result<Self, Usage> {
        let StoreArguments { size, keys, width, table, .. } = arguments;
        if table.is_some_and(|bytes| bytes > TABLE_BYTES_MAX) {
            return Err(Usage(format!(
                "--table is more than memory can be; the limit is {TABLE_BYTES_MAX} bytes"
            )));
        }
        let shape = |bytes| store_shape(bytes, *width, *table).map_err(Usage);
        let sizes = match keys {
            None => size.unwrap_or(SIZES).numbers(),
            Some(keys) => {
                let row_bytes = u64::from(width.unwrap_or(super::size::ROW_ELEMENTS)) * ELEMENT_BYTES;
                keys.numbers().into_iter().map(|keys| keys.saturating_mul(row_bytes)).collect()
            }
        };
        let plan = Self::new(
            Operation::Store(operation),
            &arguments.common,
            sizes.into_iter().map(shape).collect::<Result<_, _>>()?,
        )?;
        let (threads, largest) = (plan.threads as u64, plan.shapes.last().map_or(0, |shape| shape.bytes));
        if largest.saturating_mul(threads) > UNDER_WAY_BYTES_MAX {
            return Err(Usage(format!(
                "{threads} threads with messages of {largest} bytes each are more than the {UNDER_WAY_BYTES_MAX} bytes that a client \
                 may have under way; take smaller messages or fewer --threads"
            )));
        }
        let reads_back = operation != StoreOperation::Pull;
        if plan.check == Check::Every && reads_back && plan.depth != 1 {
            return Err(Usage(format!(
                "--check every reads each {} back before the next one, which needs --depth 1",
                plan.operation.name()
            )));
        }
        Ok(plan)
    }

    fn new(operation: Operation, common: &Common, shapes: Vec<Shape>) -> Result<Self, Usage> {
        let Common { address, transport, rate, threads, timeout, .. } = common;
        if *transport == Transport::Memory && address.is_some() {
            return Err(Usage(
                "the transport memory is for a server in this process; leave the address out, or take auto, shm, uring or socket".into(),
            ));
        }
        // Each thread's own, so that a wait for the next message is no silence.
        if rate.is_some_and(|rate| f64::from(*threads) / rate > *timeout as f64 / 2.0) {
            return Err(Usage(format!(
                "at --rate {} a thread sends less than two messages within --timeout; raise one of them",
                rate.unwrap_or_default()
            )));
        }
        let limit = common
            .iterations
            .map_or_else(|| Limit::Time(whole(common.duration.unwrap_or(DURATION) * 1e9)), Limit::Messages);
        let depth = common.depth.unwrap_or(if common.check == Check::Every { 1 } else { DEPTH });
        Ok(Self {
            operation,
            address: address.clone(),
            transport: *transport,
            shapes,
            limit,
            warmup: common.warmup,
            depth: depth.into(),
            threads: usize::from(*threads),
            repeats: common.repeats.into(),
            rate: *rate,
            busy_poll: common.busy_poll,
            cores: usage::cores(&common.pin, "--pin")?,
            check: common.check,
            seed: common.seed,
            format: common.format,
            bounds: Bounds { bandwidth_min: common.min_bw, p99_max_us: common.max_p99 },
            timeout: Duration::from_secs(*timeout),
            terms: common.terms.terms()?,
        })
    }

    /// How thread `index` sends in the timed window.
    pub(super) fn pace(&self, index: usize) -> Pace {
        self.rate.map_or(Pace::closed(self.limit), |rate| Pace::open(self.limit, rate, index, self.threads))
    }

    /// How each thread warms up.
    pub(super) fn warmup(&self, shape: &Shape) -> Pace {
        let few = if shape.bytes < 128 << 10 { 100 } else { 10 };
        Pace::closed(Limit::Messages(self.warmup.unwrap_or(few)))
    }

    /// Messages of a thread that may be under way.
    pub(super) fn depth_at(&self, shape: &Shape) -> usize {
        if shape.rows.is_none() {
            return self.depth;
        }
        let fit = UNDER_WAY_BYTES_MAX / shape.bytes.max(1) / self.threads as u64;
        self.depth.min(usize::try_from(fit).unwrap_or(usize::MAX)).max(1)
    }

    /// Its timed part, in words.
    pub(super) fn extent(&self) -> String {
        match self.limit {
            Limit::Messages(count) => format!("{count} messages a thread"),
            Limit::Time(ns) => format!("{} s", ns as f64 / 1e9),
        }
    }

    /// Its warm-up, in words.
    pub(super) fn warmup_words(&self) -> String {
        self.warmup.map_or_else(|| "100 (10 from 128 KiB on)".into(), |count| count.to_string())
    }

    pub(super) fn as_json(&self) -> Value {
        let (iterations, duration) = match self.limit {
            Limit::Messages(count) => (Some(count), None),
            Limit::Time(ns) => (None, Some(ns as f64 / 1e9)),
        };
        json!({
            "address": self.address,
            "transport": self.transport.name(),
            "sizes_bytes": self.shapes.iter().map(|shape| shape.bytes).collect::<Vec<_>>(),
            "iterations": iterations,
            "duration_seconds": duration,
            "warmup": self.warmup,
            "depth": self.depth,
            "threads": self.threads,
            "repeats": self.repeats,
            "rate": self.rate,
            "busy_poll": self.busy_poll,
            "pin": self.cores,
            "check": format!("{:?}", self.check).to_lowercase(),
            "seed": self.seed,
            "min_bw": self.bounds.bandwidth_min,
            "max_p99": self.bounds.p99_max_us,
            "timeout_seconds": self.timeout.as_secs(),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        arguments: Arguments,
    }

    /// What a command line asks for.
    pub(in super::super) fn plan(line: &str) -> Result<Plan, String> {
        let words = std::iter::once("perf").chain(line.split_whitespace());
        let program = Program::try_parse_from(words).map_err(|error| error.to_string())?;
        match &program.arguments.role {
            Role::Send(raw) => Plan::raw(RawOperation::Send, raw),
            Role::Push(store) => Plan::store(StoreOperation::Push, store),
            Role::Pull(store) => Plan::store(StoreOperation::Pull, store),
            other => panic!("{other:?}"),
        }
        .map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_said_is_a_sweep_with_a_server_in_this_process() {
        let plan = plan("push").unwrap();
        let sizes: Vec<u64> = plan.shapes.iter().map(|shape| shape.bytes).collect();
        assert_eq!((sizes.len(), sizes[0], sizes[19]), (20, 8, 4 << 20));
        assert_eq!((plan.address.is_none(), plan.depth, plan.threads, plan.repeats), (true, 16, 1, 1));
        assert_eq!(plan.pace(0), Pace::closed(Limit::Time(250_000_000)));
        assert_eq!(plan.warmup(&plan.shapes[0]), Pace::closed(Limit::Messages(100)));
        assert_eq!(plan.warmup(&plan.shapes[19]), Pace::closed(Limit::Messages(10)));
    }

    #[test]
    fn what_a_store_has_under_way_is_bounded() {
        let store = plan("push --size 64:16M --threads 4").unwrap();
        let depths: Vec<usize> = store.shapes.iter().map(|shape| store.depth_at(shape)).collect();
        assert_eq!((depths[0], *depths.last().unwrap()), (16, 2));
        let raw = plan("send --size 16M --depth 64 --threads 4").unwrap();
        assert_eq!(raw.depth_at(&raw.shapes[0]), 64, "one body serves all messages there");
    }

    #[test]
    fn keys_and_width_are_another_way_to_say_a_size() {
        let sizes = |line| plan(line).unwrap().shapes.iter().map(|shape| shape.bytes).collect::<Vec<u64>>();
        assert_eq!(sizes("push --keys 4:16 --width 8"), [128, 256, 512]);
        assert_eq!(sizes("pull --keys 3"), [3 * 256]);
    }

    #[test]
    fn what_contradicts_itself_is_refused_and_says_why() {
        let cases = [
            ("push --iterations 5 --duration 1", "cannot be used with"),
            ("push --size 8 --keys 1", "cannot be used with"),
            ("push --size 300", "not whole rows of 64 f32"),
            ("push --size 64M --threads 4", "fewer --threads"),
            ("push --check every --depth 2", "needs --depth 1"),
            ("push 127.0.0.1:1 --transport memory", "leave the address out"),
            ("push --transport carrier-pigeon", "there are auto, shm, uring, socket and memory"),
            ("push --rate 0.1", "raise one of them"),
            ("push --rate -1", "positive"),
            ("push --depth 0", "0 is not in 1..=4096"),
            ("push --iterations 0", "0 is not in 1.."),
            ("push --size 64:8", "from the smaller to the larger"),
            ("push --table 128 --size 256", "does not fit into a --table"),
            ("push --pin 99999", "--pin is `99999`"),
            ("send --keys 3", "unexpected argument"),
            ("send 127.0.0.1", "expected host:port"),
        ];
        for (line, expected) in cases {
            let error = plan(line).err().unwrap_or_else(|| panic!("{line} was taken"));
            assert!(error.contains(expected), "{line}: {error}");
        }
        assert_eq!(plan("push --check every").unwrap().depth, 1);
        assert_eq!(plan("pull --check every --depth 8").unwrap().depth, 8);
    }

    #[test]
    fn help_fits_a_terminal_and_ends_with_examples() {
        use clap::CommandFactory as _;
        assert!(EXAMPLES.lines().all(|line| line.len() < 100), "{EXAMPLES}");
        let mut command = Program::command().max_term_width(100).term_width(100);
        let long = command.render_long_help().to_string();
        assert!(long.contains("Examples:"));
        for name in ["server", "send", "push", "push-pull"] {
            let help = command
                .find_subcommand_mut(name)
                .unwrap()
                .clone()
                .max_term_width(100)
                .term_width(100)
                .render_help()
                .to_string();
            assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
        }
    }
}
