//! `rangefold scheduler`: the control plane of a cluster as a process.
//! Knows options and messages for the operator; the work is `rangefold_workers::scheduler`.

use std::sync::Arc;
use std::time::Duration;

use rangefold_transport::bootstrap::{Listener, Options};
use rangefold_transport::wait::Clock;
use rangefold_workers::coordinator::Coordinator;
use rangefold_workers::scheduler::{Happening, serve};

use crate::exit::Verdict;
use crate::stdin;

/// What the first line on standard output begins with; the address follows.
pub(crate) const LISTENING: &str = "listening on ";

/// Options of `scheduler`.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Where to listen, host and port; port 0 takes any. Without a secret, loopback only.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7700")]
    bind: String,
    /// Servers that the cluster is to have; tables are made when all have joined.
    #[arg(long, value_name = "S", default_value_t = 1)]
    servers: u32,
    /// A worker that says nothing for so many seconds is taken for dead.
    #[arg(long, value_name = "S", default_value_t = 10)]
    silence: u64,
    /// End when standard input closes.
    #[arg(long)]
    until_stdin_closes: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let listener = Arc::new(Listener::bind(&arguments.bind, Options::default())?);
    anyhow::ensure!(
        listener.address().ip().is_loopback(),
        "{} can be reached from other hosts, and connections are not authenticated yet: bind a loopback address",
        listener.address()
    );
    println!("{LISTENING}{}", listener.address());
    let coordinator = Arc::new(Coordinator::new(Clock::new(), arguments.servers));
    let end = {
        let (listener, coordinator) = (Arc::clone(&listener), Arc::clone(&coordinator));
        move || {
            coordinator.stop();
            listener.stop();
        }
    };
    let end_too = end.clone();
    ctrlc::set_handler(end_too)?;
    if arguments.until_stdin_closes {
        stdin::when_closed(end);
    }
    serve(&listener, &coordinator, Duration::from_secs(arguments.silence), |happening| match happening {
        Happening::ServerJoined(server, what) => eprintln!("rangefold: {server} joined: {what}"),
        Happening::ServerLost(server) => eprintln!("rangefold: {server} is gone"),
        Happening::WorkerJoined(worker, from) => eprintln!("rangefold: {worker} joined from {from}"),
        Happening::WorkerLeft(worker, why) => eprintln!("rangefold: {worker} left: {why}"),
        Happening::Refused(from, why) => eprintln!("rangefold: {from} was refused: {why}"),
    });
    Ok(Verdict::Success)
}
