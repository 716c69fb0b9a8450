//! `rangefold server`: a server of a cluster as a process.
//! Knows options and messages for the operator; the work is `rangefold::server`.

use std::time::Duration;

use anyhow::Context;
use rangefold::Limits;
use rangefold::pinning;
use rangefold::server::{Loss, Options, ServeError, Server};
use rangefold_transport::LostReason;
use rangefold_transport::auto::{self, Wish};
use rangefold_transport::bootstrap::Terms;
use rangefold_workers::remote::framing;

use crate::exit::{Usage, Verdict};
use crate::usage::{self, Given};
use crate::{listening, say, stdin, terms};

/// Where a scheduler listens, if nobody says otherwise.
const SCHEDULER: &str = rangefold::remote::SCHEDULER;

/// Where a server listens, if nobody says otherwise.
const BIND: &str = "127.0.0.1:0";

/// Options of `server`.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// The scheduler's address, host and port [default: 127.0.0.1:7700].
    #[arg(long, value_name = "ADDR", env = "RANGEFOLD_SCHEDULER", value_parser = usage::scheduler)]
    scheduler: Option<String>,
    #[command(flatten)]
    listening: listening::Arguments,
    /// Where others reach this server, if not where it listens; port 0 is the one it listens on.
    #[arg(long, value_name = "ADDR", value_parser = usage::listening)]
    advertise: Option<String>,
    /// Shard threads, each the owner of its part of every table.
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = usage::shards())]
    shards: u16,
    /// The number to be known by; `launch` counts them.
    #[arg(long, value_name = "N", env = "RANGEFOLD_SERVER")]
    number: Option<u32>,
    /// Processors for the shard threads, as 0,1,4; without them none is pinned.
    #[arg(long, value_name = "LIST", env = pinning::VARIABLE, default_value = "", allow_negative_numbers = true)]
    cores: String,
    /// Threads that may spin at once on this host; `launch` counts them.
    #[arg(long, value_name = "N", env = "RANGEFOLD_BUSY_THREADS", default_value_t = 1, allow_negative_numbers = true,
        value_parser = usage::threads())]
    busy_threads: usize,
    /// The transport of the data: auto, shm (workers of this host only), uring or socket. Any but auto fails rather than take
    /// another.
    #[arg(long, value_name = "X", env = "RANGEFOLD_TRANSPORT", default_value_t = Wish::Auto,
        value_parser = usage::transport)]
    transport: Wish,
    /// Give up joining after so many seconds.
    #[arg(long, value_name = "S", default_value_t = 30, allow_negative_numbers = true, value_parser = usage::seconds())]
    deadline: u64,
    #[command(flatten)]
    terms: terms::Arguments,
    /// End when standard input closes.
    #[arg(long)]
    until_stdin_closes: bool,
}

pub(crate) fn run(arguments: &Arguments, given: &Given<'_>) -> anyhow::Result<Verdict> {
    let scheduler = given.scheduler(arguments.scheduler.as_deref())?.unwrap_or(SCHEDULER);
    let making = auto::Options { wish: arguments.transport, framing: framing(), one_thread: true };
    // One is made to be looked at: before anybody hears of this server.
    let (tried, choice) = auto::Endpoint::new(&making)?;
    let terms = Terms { sharing: tried.sharing(), ..arguments.terms.terms()? };
    drop(tried);
    let options = Options {
        scheduler: scheduler.to_owned(),
        bind: arguments.listening.address(BIND)?,
        advertise: arguments.advertise.clone(),
        shards: arguments.shards,
        number: arguments.number,
        cores: usage::cores(&arguments.cores, given.origin("cores", "--cores", pinning::VARIABLE))?,
        busy_threads: arguments.busy_threads,
        busy_poll: false,
        limits: Limits::standard(),
        deadline: Duration::from_secs(arguments.deadline),
        terms,
    };
    let endpoint =
        || auto::Endpoint::new(&making).map(|(endpoint, _)| endpoint).map_err(|error| error.to_string());
    let server = Server::start(&options, endpoint, |loss| {
        if let Some(words) = words(loss) {
            say::note(&words);
        }
    });
    let server = server.map_err(|error| match error {
        ServeError::Bind(error) => arguments.listening.explain(error),
        ServeError::Nowhere(_) => Usage(error.to_string()).into(),
        error => error.into(),
    })?;
    let stopper = server.stopper();
    let (stopper_too, door) = (stopper.clone(), stopper.clone());
    ctrlc::set_handler(move || stopper_too.stop()).context("cannot catch interrupts")?;
    if arguments.until_stdin_closes {
        stdin::when_closed(move || stopper.stop())?;
    }
    if server.is_confined() && arguments.advertise.is_none() {
        say::note(&format!(
            "{} can be reached from this host only, and the scheduler from others: --bind or --interface chooses another address",
            server.address()
        ));
    }
    say::note(&format!("{} serves on {} over {choice}", server.id(), server.address()));
    if let Some(reason) = server.unshared() {
        say::note(&format!("{} shares no memory with workers of this host: {reason}", server.id()));
    }
    server.serve(|| say::note("the scheduler is gone; data go on, but nobody can join any more"))?;
    if let Some(turned_away) = door.visitors().turned_away() {
        say::note(&format!("of those who connected, {turned_away}"));
    }
    Ok(Verdict::Success)
}

/// A line for the operator; none of a worker that ended as it should.
fn words(loss: &Loss<'_>) -> Option<String> {
    match loss.reason {
        LostReason::ClosedHere | LostReason::ClosedByPeer => None,
        reason => {
            let address = loss.address.unwrap_or("an unknown address");
            Some(format!("shard {:?} has lost the worker at {address}: {reason}", loss.shard))
        }
    }
}
