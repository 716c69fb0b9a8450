//! The product's one binary. Knows its subcommands and exit codes; each subcommand is a file or a folder.

mod exit;
mod info;
mod launch;
mod listening;
mod perf;
mod say;
mod scheduler;
mod server;
mod stdin;
mod terms;
mod train;
mod usage;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

/// A parameter server: train on a cluster inside this process, or on processes of this host.
#[derive(Parser)]
#[command(version, propagate_version = true, max_term_width = 100, after_help = exit::HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a model.
    #[command(subcommand)]
    Train(Train),
    /// Start a scheduler, servers and copies of a command on this host, and wait for them.
    Launch(launch::Arguments),
    /// Show what this machine offers, what would be used, and why not the rest.
    Info(info::Arguments),
    Perf(Box<perf::Arguments>),
    /// Run the scheduler of a cluster.
    Scheduler(scheduler::Arguments),
    /// Run a server of a cluster.
    Server(server::Arguments),
}

#[derive(Subcommand)]
enum Train {
    /// Sparse logistic regression with an L1 penalty, to a certified gap. Without arguments: on the bundled Adult data.
    Lr(Box<train::Arguments>),
}

fn main() -> std::process::ExitCode {
    let matches = Arguments::command().get_matches();
    let given = usage::Given::new(&matches);
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let outcome = match arguments.command {
        Command::Train(Train::Lr(arguments)) => train::run(&arguments, &given),
        Command::Info(arguments) => info::run(&arguments),
        Command::Perf(arguments) => perf::run(&arguments),
        Command::Launch(arguments) => launch::run(&arguments),
        Command::Scheduler(arguments) => scheduler::run(&arguments),
        Command::Server(arguments) => server::run(&arguments, &given),
    };
    exit::report(outcome)
}
