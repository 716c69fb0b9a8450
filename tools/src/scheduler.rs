//! `rangefold scheduler`: the control plane of a cluster as a process.
//! Knows options and messages for the operator; the work is `rangefold_workers::scheduler`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rangefold::remote;
use rangefold_transport::bootstrap::{Listener, Options};
use rangefold_transport::wait::Clock;
use rangefold_workers::coordinator::Coordinator;
use rangefold_workers::scheduler::{Happening, serve};

use crate::exit::Verdict;
use crate::{listening, say, stdin, terms, usage};

/// What the first line on standard output begins with; the address follows.
pub(crate) const LISTENING: &str = "listening on ";

/// Options of `scheduler`.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    listening: listening::Arguments,
    /// Servers that the cluster is to have; tables are made when all have joined.
    #[arg(long, value_name = "S", default_value_t = 1, allow_negative_numbers = true, value_parser = usage::nodes())]
    servers: u32,
    /// A worker that says nothing for so many seconds is taken for dead.
    #[arg(long, value_name = "S", default_value_t = 10, allow_negative_numbers = true, value_parser = usage::seconds())]
    silence: u64,
    #[command(flatten)]
    terms: terms::Arguments,
    /// End when standard input closes.
    #[arg(long)]
    until_stdin_closes: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let options = Options { terms: arguments.terms.terms()?, ..Options::default() };
    let address = arguments.listening.address(remote::SCHEDULER)?;
    let listener = Listener::bind(&address, options).map_err(|error| arguments.listening.explain(error))?;
    let listener = Arc::new(listener);
    let coordinator = Arc::new(Coordinator::new(Clock::new(), arguments.servers));
    let end = {
        let (listener, coordinator) = (Arc::clone(&listener), Arc::clone(&coordinator));
        move || {
            coordinator.stop();
            listener.stop();
        }
    };
    let end_too = end.clone();
    ctrlc::set_handler(end_too).context("cannot catch interrupts")?;
    if arguments.until_stdin_closes {
        stdin::when_closed(end)?;
    }
    say::result("the address", &format!("{LISTENING}{}\n", listener.address()))?;
    let expected = arguments.servers;
    serve(&listener, &coordinator, Duration::from_secs(arguments.silence), move |happening| {
        say::note(&words(&happening, expected));
    });
    if let Some(turned_away) = listener.stats().turned_away() {
        say::note(&format!("of those who connected, {turned_away}"));
    }
    Ok(Verdict::Success)
}

/// A line for the operator; `servers_expected` is how many the cluster is to have.
fn words(happening: &Happening, servers_expected: u32) -> String {
    match happening {
        // Numbers below are for those that are expected, and each is given once.
        Happening::ServerJoined(server, what) if server.0 >= servers_expected => format!(
            "{server} joined: {what}; it is more than the {servers_expected} of --servers, or in the place of one that is \
             gone, and tables made before do not use it"
        ),
        Happening::ServerJoined(server, what) => format!("{server} joined: {what}"),
        Happening::ServerLost(server) => format!("{server} is gone"),
        Happening::WorkerJoined(worker, from) => format!("{worker} joined from {from}"),
        Happening::WorkerLeft(worker, why) => format!("{worker} left: {why}"),
        Happening::Refused(from, why) => format!("{from} was refused: {why}"),
    }
}
