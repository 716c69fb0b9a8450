//! What several subcommands take: numbers in their ranges, addresses, transports, processors.
//! Knows what may be given and how to say so; everything here that is refused ends with status 2.

use clap::ArgMatches;
use clap::builder::RangedI64ValueParser;
use clap::parser::ValueSource;
use rangefold::pinning;
use rangefold_transport::auto::Wish;

use crate::exit::Usage;

/// Servers or workers. More are more processes or threads than one host should be filled with by a slip of a digit.
pub(crate) fn nodes() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=1024)
}

/// Shard threads of a server: a processor for each, on the largest hosts there are.
pub(crate) fn shards() -> RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..=1024)
}

/// Seconds to wait, up to a year: far more would overflow the clock.
pub(crate) fn seconds() -> RangedI64ValueParser<u64> {
    RangedI64ValueParser::new().range(1..=31_536_000)
}

/// Threads that are counted, not started.
pub(crate) fn threads() -> RangedI64ValueParser<usize> {
    RangedI64ValueParser::new().range(1..)
}

/// Any number that a seed can be.
pub(crate) fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("expected a whole number from 0 to {}", u64::MAX))
}

/// A positive finite number.
pub(crate) fn positive(text: &str) -> Result<f64, String> {
    number(text, "a positive finite number", |number| number > 0.0)
}

/// A number between 0 and 1, both excluded.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    number(text, "a number above 0 and below 1", |number| number > 0.0 && number < 1.0)
}

/// A finite number from 1.
pub(crate) fn from_one(text: &str) -> Result<f64, String> {
    number(text, "a finite number, at least 1", |number| number >= 1.0)
}

fn number(text: &str, expected: &str, fits: impl Fn(f64) -> bool) -> Result<f64, String> {
    let number = text.parse().ok().filter(|&number: &f64| number.is_finite() && fits(number));
    number.ok_or_else(|| format!("expected {expected}"))
}

/// An address to listen on, or to be reached at by the port that is listened on.
pub(crate) fn listening(text: &str) -> Result<String, String> {
    address(text, 0)
}

/// An address to be reached at.
pub(crate) fn reached(text: &str) -> Result<String, String> {
    address(text, 1)
}

/// A scheduler's address. Nothing is nothing, so that an empty variable counts as one that is not set.
pub(crate) fn scheduler(text: &str) -> Result<String, String> {
    if text.is_empty() { Ok(String::new()) } else { address(text, 1) }
}

fn address(text: &str, port_min: u16) -> Result<String, String> {
    let good = text.rsplit_once(':').is_some_and(|(host, port)| {
        let bracketed = host.starts_with('[') && host.ends_with(']');
        let host_is_good = !host.is_empty() && (bracketed || !host.contains(':'));
        host_is_good && port.parse().is_ok_and(|port: u16| port >= port_min)
    });
    let expected = || {
        format!(
            "expected host:port or [IPv6]:port, like 127.0.0.1:7700, with a port from {port_min} to 65535"
        )
    };
    good.then(|| text.to_owned()).ok_or_else(expected)
}

/// A transport between processes.
pub(crate) fn transport(name: &str) -> Result<Wish, String> {
    match name {
        "memory" => Err("memory is for an embedded cluster (`train lr` without --scheduler); between processes there are \
                         auto, shm, uring and socket"
            .into()),
        name => name.parse().map_err(|error: rangefold_transport::auto::NoSuchTransport| error.to_string()),
    }
}

/// The processors in `text`, which came from `--cores` or from its variable.
pub(crate) fn cores(text: &str, origin: &str) -> Result<Vec<usize>, Usage> {
    pinning::parse(text).map_err(|_| {
        Usage(format!(
            "{origin} is `{text}`; expected numbers of processors that this process may use, like 0,1,4 (`rangefold info` \
             lists them)"
        ))
    })
}

/// Where the values of a subcommand's options come from.
pub(crate) struct Given<'a>(&'a ArgMatches);

impl<'a> Given<'a> {
    /// Of the subcommand that was named last.
    pub(crate) fn new(mut matches: &'a ArgMatches) -> Self {
        while let Some((_, below)) = matches.subcommand() {
            matches = below;
        }
        Self(matches)
    }

    /// Whether the user gave this option on the command line.
    pub(crate) fn as_option(&self, id: &str) -> bool {
        self.0.value_source(id) == Some(ValueSource::CommandLine)
    }

    /// What a message calls the origin of this value: the option, or the variable.
    pub(crate) fn origin<'n>(&self, id: &str, option: &'n str, variable: &'n str) -> &'n str {
        if self.0.value_source(id) == Some(ValueSource::EnvVariable) { variable } else { option }
    }

    /// The scheduler's address. An empty variable counts as one that is not set; an empty option is a slip.
    pub(crate) fn scheduler<'t>(&self, text: Option<&'t str>) -> Result<Option<&'t str>, Usage> {
        match text {
            Some("") if self.as_option("scheduler") => {
                Err(Usage("--scheduler is empty; expected host:port, like 127.0.0.1:7700".into()))
            }
            text => Ok(text.filter(|text| !text.is_empty())),
        }
    }
}
