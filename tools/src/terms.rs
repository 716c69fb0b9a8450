//! The options that say what a cluster's connections are held to: `--secret-file` and `--peer-timeout`.
//! Knows where a secret may come from and which source wins; not what it is for. Taken by every subcommand that connects.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::RangedI64ValueParser;
use rangefold::remote;
use rangefold_transport::bootstrap::{PEER_TIMEOUT, PEER_TIMEOUT_MAX, PEER_TIMEOUT_MIN, Secret, Terms};

use crate::exit::Usage;

/// Options of every subcommand that connects.
#[derive(clap::Args, Debug)]
// Its group would be named as those of the subcommands that it is part of.
#[group(skip)]
pub(crate) struct Arguments {
    /// The file with the cluster's secret, 16 to 4096 bytes of text that all its nodes have and nobody else may read. Without
    /// it the secret is in RANGEFOLD_SECRET, or there is none and the cluster stays on this host.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Within how many seconds a peer that has gone without a word (a cut cable, a host without power) is found lost; from 3
    /// to 86400.
    #[arg(long, value_name = "S", env = remote::PEER_TIMEOUT_VARIABLE, default_value_t = PEER_TIMEOUT.as_secs(),
        allow_negative_numbers = true, value_parser = peer_timeout())]
    peer_timeout: u64,
}

fn peer_timeout() -> RangedI64ValueParser<u64> {
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    RangedI64ValueParser::new().range(seconds(PEER_TIMEOUT_MIN)..=seconds(PEER_TIMEOUT_MAX))
}

impl Arguments {
    /// Whether the user named a file.
    pub(crate) fn names_a_secret(&self) -> bool {
        self.secret_file.is_some()
    }

    /// What they come to: the file before the environment.
    ///
    /// # Errors
    /// A secret that is none, or two that differ.
    pub(crate) fn terms(&self) -> Result<Terms, Usage> {
        let peer_timeout = Duration::from_secs(self.peer_timeout);
        let of_environment =
            remote::secret().map_err(|error| Usage(format!("{}: {error}", remote::SECRET_VARIABLE)))?;
        let of_file = self.secret_file.as_deref().map(Secret::read).transpose();
        let of_file = of_file.map_err(|error| Usage(format!("--secret-file: {error}")))?;
        if let (Some(file), Some(environment)) = (&of_file, &of_environment)
            && file != environment
        {
            return Err(Usage(format!(
                "--secret-file and {} hold different secrets; leave one of them out",
                remote::SECRET_VARIABLE
            )));
        }
        Ok(Terms { secret: of_file.or(of_environment), peer_timeout, ..Terms::default() })
    }
}
