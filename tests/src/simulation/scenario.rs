//! What a seed means: the cluster, its tables, its limits, its faults. Drawn once, before anything runs.

use rangefold_proto::table::Aggregation;
use rangefold_proto::{ElementType, Limits, Round, TableSpec, UpdateFunction};

use super::chance::Chance;

/// A fault and when it comes, in virtual nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    /// One of the living links, by this number modulo their count, breaks.
    BreakLink(u64),
    /// A worker and a server cannot reach each other for so long.
    Partition {
        /// Which worker, modulo their count.
        worker: u64,
        /// Which server, modulo their count.
        server: u64,
        /// How long.
        for_ns: u64,
    },
    /// A server or worker becomes slow for a time.
    Slow {
        /// Which host, modulo their count.
        host: u64,
        /// By how much.
        factor: u32,
        /// How long.
        for_ns: u64,
    },
    /// A worker is killed; it is noticed and perhaps a new one comes in its place.
    Kill {
        /// Which, modulo their count.
        worker: u64,
        /// Until it is noticed.
        notice_ns: u64,
        /// Until another joins; none does when this is `None`.
        restart_ns: Option<u64>,
    },
    /// A worker that lives is taken for dead.
    GiveUp(u64),
    /// A segment is given to another shard.
    Move {
        /// Which segment, modulo their count.
        segment: u64,
        /// To which server, modulo their count.
        server: u64,
        /// Between the two owners.
        gap_ns: u64,
    },
}

/// One run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The seed.
    pub seed: u64,
    /// Server nodes.
    pub servers: u32,
    /// Shards of each.
    pub shards: u16,
    /// Workers at the start.
    pub workers: u32,
    /// Lanes.
    pub parts: u32,
    /// Rounds of each lane.
    pub rounds: Round,
    /// Bounded delay; `None` is eventual.
    pub tau: Option<Round>,
    /// The tables, each with one column per lane.
    pub tables: Vec<TableSpec>,
    /// Capacities.
    pub limits: Limits,
    /// Faults in the order of their times.
    pub faults: Vec<(u64, Fault)>,
}

impl Scenario {
    /// Draws the run of a seed.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut chance = Chance::new(seed, 1);
        let servers = chance.count(3..5);
        let workers = chance.count(3..5);
        let parts = workers + chance.count(0..3);
        let eventual = chance.percent(20);
        let tau = (!eventual).then(|| chance.count(0..4));
        let width = parts;
        let mut tables = Vec::new();
        for index in 0..chance.count(1..3) {
            tables.push(Self::table(&mut chance, &format!("direct {index}"), width, Aggregation::None));
        }
        if !eventual {
            tables.push(Self::table(&mut chance, "rounds", width, Aggregation::Round));
        }
        let row = width * 8;
        let frame_bytes_max = row * chance.count(1..5);
        let limits = Limits {
            frame_bytes_max,
            // tau + 1 aggregated rounds of every lane must fit, whoever holds them all (protocol.md B6).
            push_bytes_per_link: u64::from(row) * 16 * u64::from(parts) * u64::from(tau.unwrap_or(0) + 1),
            rounds_open_max: tau.unwrap_or(0) + 1 + chance.count(0..2),
            unacknowledged_bytes_max: u64::from(row) * 16 * u64::from(parts) * chance.within(6..20),
            resume_bytes_min: chance.within(0..2) * u64::from(row) * 8,
            tasks_max: 256,
            // Every lane may be answered for every segment.
            answers_per_link: 1024,
            sends_per_link: u16::try_from(chance.within(2..9)).unwrap_or(2),
            pulls_per_link: u16::try_from(chance.within(1..5)).unwrap_or(1),
            ..Limits::test_min()
        };
        // Two or three pushes a round and lane; every worker makes 200 at least.
        let rounds = (200 * workers).div_ceil(2 * parts) + chance.count(0..5);
        let mut faults = Vec::new();
        // Rounds take some hundred microseconds; faults come while most of them run.
        let horizon = u64::from(rounds) * chance.within(150_000..600_000);
        for _ in 0..chance.within(4..20) {
            let at = chance.within(0..horizon);
            let pick = chance.any() >> 8;
            let for_ns = chance.within(100_000..20_000_000);
            let fault = match chance.within(0..100) {
                0..35 => Fault::BreakLink(pick),
                35..50 => Fault::Partition { worker: pick, server: pick >> 8, for_ns },
                50..60 => Fault::Slow { host: pick, factor: chance.count(2..30), for_ns },
                60..68 => Fault::Kill {
                    worker: pick,
                    notice_ns: chance.within(1_000_000..20_000_000),
                    restart_ns: chance.percent(70).then(|| chance.within(100_000..30_000_000)),
                },
                68..72 => Fault::GiveUp(pick),
                _ => Fault::Move { segment: pick, server: pick >> 16, gap_ns: chance.within(0..2_000_000) },
            };
            faults.push((at, fault));
        }
        faults.sort_unstable();
        Self {
            seed,
            servers,
            shards: u16::try_from(chance.within(1..3)).unwrap_or(1),
            workers,
            parts,
            rounds,
            tau,
            tables,
            limits,
            faults,
        }
    }

    fn table(chance: &mut Chance, name: &str, width: u32, aggregation: Aggregation) -> TableSpec {
        let len = chance.within(1..60);
        let mut spec = TableSpec::dense(name, ElementType::F64, len, UpdateFunction::Add);
        spec.width = width;
        spec.aggregation = aggregation;
        let power = chance.within(0..4);
        while spec.segments > 1 << power {
            spec.segments /= 2;
        }
        spec
    }
}
