//! The product's one binary. Knows its subcommands and exit codes; each subcommand is a file.

mod exit;
mod train;

use clap::{Parser, Subcommand};

/// A parameter server: train on a cluster inside this process.
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
}

#[derive(Subcommand)]
enum Train {
    /// Sparse logistic regression with an L1 penalty, to a certified gap. Without arguments: on the bundled Adult data.
    Lr(Box<train::Arguments>),
}

fn main() -> std::process::ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Train(Train::Lr(arguments)) => train::run(&arguments),
    };
    exit::report(outcome)
}
