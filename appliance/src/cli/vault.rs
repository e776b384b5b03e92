//! `cloakroom vault`: what Vault must be told for a configuration to work. It asks Vault nothing
//! but what the command says, and prints no secret.

use std::{
    fmt,
    io::{self, Write},
    net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket},
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::{Args, Subcommand, ValueEnum};
use http::Uri;
use ipnet::IpNet;

use crate::{
    config::{Config, Errors, VaultSettings},
    plan::{Plan, PlanError},
};

/// What to say about Vault.
#[derive(Debug, Subcommand)]
pub enum VaultCommand {
    /// Print the policies, token roles and login that a configuration needs; asks Vault nothing
    #[command(
        after_help = "Examples:\n  cloakroom vault plan /etc/cloakroom/cloakroom.toml | sh\n  \
        cloakroom vault plan --format terraform --from 192.0.2.10 CONFIG > cloakroom.tf\n  \
        cloakroom vault plan --policy cloakroom-gateway CONFIG | \\\n    \
        vault policy write cloakroom-gateway -\n\n\
        The script is for a shell where `vault` is logged in; running it again changes nothing.\n\
        Engines and the values in them are yours to set up."
    )]
    Plan(PlanArgs),
}

/// Arguments of `cloakroom vault plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The configuration
    #[arg(value_name = "CONFIG")]
    config: PathBuf,
    /// As a script for a shell, or for Terraform
    #[arg(long, value_enum, default_value_t = Format::Shell)]
    format: Format,
    /// Print this policy alone
    #[arg(long, value_name = "NAME", conflicts_with = "format")]
    policy: Option<String>,
    /// The gateway's address towards Vault, or a prefix, which all tokens are bound to; again for
    /// another; by default what this machine would use
    #[arg(long, value_name = "ADDRESS|PREFIX", value_parser = prefix)]
    from: Vec<IpNet>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Shell,
    Terraform,
}

/// Why nothing came of it. Carries no part of any secret.
#[derive(Debug)]
pub enum VaultCommandError {
    /// The configuration is wrong.
    Config(Errors),
    /// There is no plan for it.
    Plan(PlanError),
    /// The output could not be written.
    Output(io::Error),
}

/// Does it, and writes what there is to say to `out`.
pub fn run(
    command: VaultCommand,
    load: impl Fn(&Path) -> Result<Config, Errors>,
    out: &mut impl Write,
) -> Result<(), VaultCommandError> {
    match command {
        VaultCommand::Plan(args) => {
            let config = load(&args.config).map_err(VaultCommandError::Config)?;
            let text = plan(args, &config).map_err(VaultCommandError::Plan)?;
            out.write_all(text.as_bytes()).map_err(VaultCommandError::Output)
        }
    }
}

fn plan(args: PlanArgs, config: &Config) -> Result<String, PlanError> {
    let Config { settings, policy } = config;
    let bound = match &settings.vault {
        Some(vault) if args.from.is_empty() => sources(vault),
        _ => args.from,
    };
    let plan = Plan::new(settings, policy, bound)?;
    match (args.policy, args.format) {
        (Some(name), _) => plan.policy(&name),
        (None, Format::Shell) => Ok(plan.shell()),
        (None, Format::Terraform) => Ok(plan.terraform()),
    }
}

/// The addresses that this machine would use towards Vault's nodes, as far as it can tell.
fn sources(vault: &VaultSettings) -> Vec<IpNet> {
    let nodes = std::iter::once(&vault.address).chain(&vault.peers);
    let addresses = nodes.filter_map(|node| resolve(node)).flatten();
    addresses.filter_map(source_towards).map(IpNet::from).collect()
}

fn resolve(node: &str) -> Option<impl Iterator<Item = SocketAddr> + use<>> {
    let uri = Uri::from_str(node).ok()?;
    let port = uri.port_u16().unwrap_or(443);
    let host = uri.host()?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (host, port).to_socket_addrs().ok()
}

/// Connecting a UDP socket has the kernel choose, and sends nothing.
fn source_towards(node: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match node {
        SocketAddr::V4(_) => [0; 4].into(),
        SocketAddr::V6(_) => [0; 16].into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(node).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// An address, or a prefix of more than everything.
fn prefix(text: &str) -> Result<IpNet, &'static str> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    let prefix = address.or_else(|_| text.parse()).map_err(|_| "no address or prefix")?;
    match prefix.prefix_len() {
        0 => Err("that is everybody"),
        _ => Ok(prefix.trunc()),
    }
}

impl fmt::Display for VaultCommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(errors) => errors.fmt(f),
            Self::Plan(error) => error.fmt(f),
            Self::Output(error) => write!(f, "cannot write the output: {error}"),
        }
    }
}

impl std::error::Error for VaultCommandError {}
