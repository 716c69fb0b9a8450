//! The options of `train lr`, and what they ask for together.
//! Knows which go with which; trains nothing. Called by `mod.rs`, first of all.

use std::path::PathBuf;
use std::time::Duration;

use rangefold::{Round, pinning};
use rangefold_learn::train::Job;
use rangefold_transport::auto::Wish;
use rangefold_transport::bootstrap::Terms;

use crate::exit::Usage;
use crate::terms;
use crate::usage::{self, Given};

/// Passes after which a job has failed, if its user did not say.
const PASSES_MAX: f64 = 1000.0;
/// Parts, if the user did not say and there are no more workers.
const PARTS: u32 = 4;

/// Options of `train lr`.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Training data in libsvm format [default: the bundled Adult data].
    #[arg(long, value_name = "FILE")]
    pub(super) data: Option<PathBuf>,
    /// Test data in libsvm format [default: the bundled Adult test set, with the bundled data].
    #[arg(long, value_name = "FILE")]
    pub(super) test: Option<PathBuf>,
    /// Weight of the L1 penalty, above 0; losses are summed, not averaged.
    #[arg(long, value_name = "L", default_value_t = 10.0, allow_negative_numbers = true, value_parser = usage::positive)]
    lambda: f64,
    /// Stop at this certified relative duality gap, above 0 and below 1.
    #[arg(long, value_name = "G", default_value_t = 0.01, allow_negative_numbers = true, value_parser = usage::share)]
    gap: f64,
    /// Bounded delay in rounds, at most 63; 0 is sequential.
    #[arg(long, value_name = "T", default_value_t = 0, allow_negative_numbers = true,
        value_parser = clap::value_parser!(u32).range(0..=63))]
    delay: Round,
    /// Workers, at most 1024; of a running cluster, all that belong to the job.
    #[arg(long, value_name = "W", env = "RANGEFOLD_WORLD", default_value_t = 2, allow_negative_numbers = true,
        value_parser = usage::nodes())]
    pub(super) workers: u32,
    /// Servers of the embedded cluster, at most 1024. Not with --scheduler: a running cluster has its own.
    #[arg(long, value_name = "S", default_value_t = 2, allow_negative_numbers = true, value_parser = usage::nodes())]
    servers: u32,
    /// Parts of the data, at least one for each worker and at most 4096, which are slow; results depend on it and not on the
    /// number of workers, and files are cut by bytes [default: 4, or the workers if more].
    #[arg(long, value_name = "P", allow_negative_numbers = true,
        value_parser = clap::value_parser!(u32).range(1..=4096))]
    parts: Option<u32>,
    /// Seed of the order of blocks. With delay 0 a seed gives the same weights to the last bit.
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = usage::seed)]
    seed: u64,
    /// Stop at the last certificate within so many passes over the data, at least 1. A gap that is missed then still counts
    /// as success. Below about 4 passes nothing is trained yet [default: fail after 1000].
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = usage::from_one)]
    pub(super) passes: Option<f64>,
    /// Give up when a round takes longer, in seconds.
    #[arg(long, value_name = "S", default_value_t = 60, allow_negative_numbers = true, value_parser = usage::seconds())]
    deadline: u64,
    /// Join the cluster of this scheduler as one worker, instead of running a cluster in this process. Workers that are
    /// started by hand need --rank 0, 1, … and the same --workers.
    #[arg(long, value_name = "ADDR", env = "RANGEFOLD_SCHEDULER", value_parser = usage::scheduler)]
    scheduler: Option<String>,
    /// Which of the workers this is, from 0 and below --workers; 0 prints the result, or the lowest that is left. Only with
    /// --scheduler [default: 0].
    #[arg(long, value_name = "N", env = "RANGEFOLD_RANK", allow_negative_numbers = true,
        value_parser = clap::value_parser!(u32).range(0..))]
    rank: Option<u32>,
    /// The transport of the data of a running cluster: auto, shm, uring or socket. Any but auto fails rather than take another. An
    /// embedded cluster uses memory.
    #[arg(long, value_name = "X", env = "RANGEFOLD_TRANSPORT", default_value = "auto", value_parser = transport)]
    transport: Transport,
    /// Threads that may spin at once on this host; `launch` counts them.
    #[arg(long, value_name = "N", env = "RANGEFOLD_BUSY_THREADS", default_value_t = 1, allow_negative_numbers = true,
        value_parser = usage::threads())]
    pub(super) busy_threads: usize,
    #[command(flatten)]
    terms: terms::Arguments,
    /// Write the weights as text, one `index value` a line, the constant feature last.
    #[arg(long, value_name = "FILE")]
    pub(super) model: Option<PathBuf>,
    /// Print one JSON object on standard output instead of a table.
    #[arg(long)]
    pub(super) json: bool,
}

/// A transport that was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Transport {
    Memory,
    Between(Wish),
}

fn transport(name: &str) -> Result<Transport, String> {
    if name == "memory" { Ok(Transport::Memory) } else { usage::transport(name).map(Transport::Between) }
}

/// Where a job runs.
#[derive(Debug)]
pub(super) enum Place<'a> {
    /// On a cluster in this process.
    Embedded {
        /// Its servers.
        servers: u32,
    },
    /// On a running cluster, of which this process is one worker.
    Joined(Seat<'a>),
}

/// One worker of a running cluster.
#[derive(Debug)]
pub(super) struct Seat<'a> {
    pub(super) scheduler: &'a str,
    pub(super) rank: u32,
    pub(super) wish: Wish,
    /// Processors of this process; the worker's thread takes the first.
    pub(super) cores: Vec<usize>,
    pub(super) terms: Terms,
}

impl Arguments {
    /// What is to be trained.
    ///
    /// # Errors
    /// Fewer parts than workers.
    pub(super) fn job(&self) -> Result<Job, Usage> {
        let (parts, workers) = (self.parts.unwrap_or_else(|| self.workers.max(PARTS)), self.workers);
        if parts < workers {
            return Err(Usage(format!(
                "--parts {parts} is less than --workers {workers}: each worker needs a part of the data; give at least \
                 {workers} parts, or fewer workers"
            )));
        }
        Ok(Job {
            lambda: self.lambda,
            gap: self.gap,
            delay: self.delay,
            seed: self.seed,
            parts,
            segments: 16,
            passes_max: self.passes.unwrap_or(PASSES_MAX),
            deadline: Duration::from_secs(self.deadline),
        })
    }

    /// Refuses a model in the place of what is read.
    ///
    /// # Errors
    /// It is the file of `--data` or `--test`.
    pub(super) fn inputs_are_kept(&self) -> Result<(), Usage> {
        let file = |path: &Option<PathBuf>| path.as_ref().and_then(|path| path.canonicalize().ok());
        let model = file(&self.model);
        if model.is_some() && [file(&self.data), file(&self.test)].contains(&model) {
            return Err(Usage("--model would overwrite the data; give the model a file of its own".into()));
        }
        Ok(())
    }

    /// Where it is to be trained.
    ///
    /// # Errors
    /// Options of an embedded cluster and of a running one together, or that contradict what `launch` has set.
    pub(super) fn place(&self, given: &Given<'_>) -> Result<Place<'_>, Usage> {
        match given.scheduler(self.scheduler.as_deref())? {
            None => self.embedded(given),
            Some(scheduler) => self.joined(scheduler, given).map(Place::Joined),
        }
    }

    fn embedded(&self, given: &Given<'_>) -> Result<Place<'_>, Usage> {
        if let Transport::Between(wish @ (Wish::Uring | Wish::Socket | Wish::Shm)) = self.transport {
            return Err(Usage(format!(
                "{} asks for {wish}, which connects processes, but without --scheduler the cluster is embedded in this \
                 process and uses memory. `rangefold launch --transport {wish} -- train lr` makes a cluster of processes; \
                 --scheduler ADDR joins one",
                given.origin("transport", "--transport", "RANGEFOLD_TRANSPORT")
            )));
        }
        if let Some(rank) = self.rank {
            return Err(Usage(format!(
                "{} is {rank}, but without --scheduler the cluster is embedded in this process, with all its workers; give \
                 the scheduler's address, or leave the rank out",
                given.origin("rank", "--rank", "RANGEFOLD_RANK")
            )));
        }
        if self.terms.names_a_secret() {
            return Err(Usage(
                "--secret-file is for a running cluster, but without --scheduler the cluster is embedded in this process, where \
                 nobody connects; give the scheduler's address, or leave the file out"
                    .into(),
            ));
        }
        Ok(Place::Embedded { servers: self.servers })
    }

    fn joined<'a>(&'a self, scheduler: &'a str, given: &Given<'_>) -> Result<Seat<'a>, Usage> {
        let Transport::Between(wish) = self.transport else {
            return Err(Usage(
                "the transport memory is for embedded clusters; a worker that joins a scheduler is a process of its own: \
                 take auto, shm, uring or socket"
                    .into(),
            ));
        };
        // Set by `launch`, which starts so many.
        let started = std::env::var("RANGEFOLD_WORLD").ok().and_then(|world| world.parse().ok());
        if started.is_some_and(|started: u32| started != self.workers) {
            return Err(Usage(format!(
                "--workers is {}, but RANGEFOLD_WORLD says that {} were started; leave it out (`launch` takes it before the --)",
                self.workers,
                started.unwrap_or_default()
            )));
        }
        if given.as_option("servers") {
            return Err(Usage(
                "--servers is for embedded clusters, but this worker joins a running one, whose scheduler knows its \
                 servers; leave it out (`launch` takes it before the --)"
                    .into(),
            ));
        }
        let (rank, workers) = (self.rank.unwrap_or(0), self.workers);
        if rank >= workers {
            return Err(Usage(format!(
                "{} is {rank}, but the {workers} workers of the job are numbered from 0 to {}; give a lower rank, or all \
                 workers the right --workers",
                given.origin("rank", "--rank", "RANGEFOLD_RANK"),
                workers - 1
            )));
        }
        let cores = usage::cores(&std::env::var(pinning::VARIABLE).unwrap_or_default(), pinning::VARIABLE)?;
        Ok(Seat { scheduler, rank, wish, cores, terms: self.terms.terms()? })
    }
}
