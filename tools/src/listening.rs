//! The options that say where a process listens: `--bind`, or `--interface` and `--port`.
//! Knows this host's interfaces and how to say which option is to be changed. Taken by `scheduler` and `server`.

use std::net::IpAddr;

use anyhow::anyhow;
use if_addrs::{IfAddr, Interface, get_if_addrs};
use rangefold_transport::bootstrap::BindError;

use crate::exit::Usage;
use crate::usage;

/// Options of what listens.
#[derive(clap::Args, Debug)]
// Its group would be named as those of the subcommands that it is part of.
#[group(skip)]
pub(crate) struct Arguments {
    /// Where to listen, host and port; port 0 takes any. Without a cluster secret, loopback only [default: 127.0.0.1, port 7700
    /// for a scheduler, any for a server].
    #[arg(long, value_name = "ADDR", value_parser = usage::listening)]
    bind: Option<String>,
    /// Listen on the address of this network interface, its first IPv4 address if it has one.
    #[arg(long, value_name = "NAME", conflicts_with = "bind")]
    interface: Option<String>,
    /// The port there, 0 for any [default: as for --bind].
    #[arg(long, value_name = "N", requires = "interface")]
    port: Option<u16>,
}

impl Arguments {
    /// The address to listen on; `default` if the user says nothing.
    ///
    /// # Errors
    /// There is no such interface, or it has no address.
    pub(crate) fn address(&self, default: &str) -> anyhow::Result<String> {
        let Some(name) = &self.interface else {
            return Ok(self.bind.as_deref().unwrap_or(default).to_owned());
        };
        let interfaces = get_if_addrs().map_err(|error| {
            anyhow!("--interface {name}: the system does not say which interfaces there are: {error}; give --bind ADDR")
        })?;
        let host = choose(name, &interfaces)?;
        let port = default.rsplit_once(':').map_or("0", |(_, port)| port);
        Ok(self.port.map_or_else(|| format!("{host}:{port}"), |port| format!("{host}:{port}")))
    }

    /// Says with an error which option is to be changed.
    pub(crate) fn explain(&self, error: BindError) -> anyhow::Error {
        let option = if self.interface.is_some() { "--interface" } else { "--bind" };
        match error {
            BindError::Exposed { .. } => Usage(format!("{option}: {error}")).into(),
            error => anyhow!("{option}: {error}"),
        }
    }
}

/// The address of an interface, as the host of an address to listen on: IPv4 first, and of IPv6 those that need no zone first.
fn choose(name: &str, interfaces: &[Interface]) -> Result<String, Usage> {
    let of_name: Vec<&Interface> = interfaces.iter().filter(|interface| interface.name == name).collect();
    let rank = |interface: &&Interface| match &interface.addr {
        IfAddr::V4(_) => 0,
        IfAddr::V6(address) if !address.ip.is_unicast_link_local() => 1,
        IfAddr::V6(_) => 2,
    };
    let chosen = of_name.into_iter().min_by_key(rank).ok_or_else(|| {
        let listed: Vec<String> =
            interfaces.iter().map(|interface| format!("{} ({})", interface.name, interface.ip())).collect();
        Usage(format!(
            "--interface {name}: no interface of this name has an address; is it up? There are {}",
            listed.join(", ")
        ))
    })?;
    Ok(match chosen.ip() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) if address.is_unicast_link_local() => {
            // A link-local address means nothing without the interface.
            format!("[{address}%{}]", chosen.index.unwrap_or_default())
        }
        IpAddr::V6(address) => format!("[{address}]"),
    })
}
