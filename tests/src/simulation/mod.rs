//! The seeded simulator: real shells (`Node::turn`, `Driver::turn`) over `transport::sim`, with faults, and the invariants
//! of protocol.md §14 checked whenever something is applied, acknowledged or answered.
//!
//! [`scenario`] draws a cluster and its faults from a seed, [`cluster`] runs it, [`program`] is what the workers do,
//! [`oracle`] knows what may be true. A seed replays a run exactly.

pub mod chance;
pub mod cluster;
pub mod oracle;
pub mod program;
pub mod scenario;

use scenario::Scenario;

/// What a run went through, so that a quiet simulator is noticed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Coverage {
    /// Pushes issued.
    pub pushes: u64,
    /// Pushes that arrived in one frame with others.
    pub gathered: u64,
    /// Pulls answered.
    pub pulls: u64,
    /// Connections that came up again.
    pub reconnects: u64,
    /// Push frames that had been applied before.
    pub repeats: u64,
    /// Push frames before their predecessor, and frames of a lost connection after its successor's.
    pub disordered: u64,
    /// Pulls that waited.
    pub parked: u64,
    /// Frames that met another owner than they thought.
    pub stale: u64,
    /// Frames of a lane's former holder.
    pub fenced: u64,
    /// Requests put off.
    pub busy: u64,
    /// Rounds applied in one.
    pub rounds: u64,
    /// Segments moved.
    pub moves: u64,
    /// Workers killed, or given up while they lived.
    pub deaths: u64,
}

impl Coverage {
    /// The sum of two runs.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            pushes: self.pushes + other.pushes,
            gathered: self.gathered + other.gathered,
            pulls: self.pulls + other.pulls,
            reconnects: self.reconnects + other.reconnects,
            repeats: self.repeats + other.repeats,
            disordered: self.disordered + other.disordered,
            parked: self.parked + other.parked,
            stale: self.stale + other.stale,
            fenced: self.fenced + other.fenced,
            busy: self.busy + other.busy,
            rounds: self.rounds + other.rounds,
            moves: self.moves + other.moves,
            deaths: self.deaths + other.deaths,
        }
    }

    /// The names of what never happened.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let all = [
            ("pushes", self.pushes),
            ("pushes that share a frame", self.gathered),
            ("pulls", self.pulls),
            ("reconnects", self.reconnects),
            ("repeats delivered", self.repeats),
            ("messages out of order", self.disordered),
            ("parked pulls", self.parked),
            ("stale assignments", self.stale),
            ("fenced frames", self.fenced),
            ("busy answers", self.busy),
            ("aggregated rounds", self.rounds),
            ("moved segments", self.moves),
            ("dead workers", self.deaths),
        ];
        all.into_iter().filter(|&(_, count)| count == 0).map(|(name, _)| name).collect()
    }
}

/// Runs the schedule of one seed to its end.
///
/// # Errors
/// The invariant that was broken, with the time and the scenario.
pub fn run(seed: u64) -> Result<Coverage, String> {
    let scenario = Scenario::draw(seed);
    let text = format!("{scenario:?}");
    cluster::Cluster::new(scenario).run().map_err(|broken| format!("seed {seed}: {broken}\n  in {text}"))
}
