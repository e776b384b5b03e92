//! `cloakroom vault`: prints the setup of Vault that a configuration needs, and checks it. Neither
//! command changes anything in Vault or shows a secret.

use std::{
    io::{self, Write},
    net::{IpAddr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use clap::{Args, Subcommand, ValueEnum};
use http::Uri;
use ipnet::IpNet;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    config::{Config, DEFAULT_CONFIG, Errors, Settings, VaultLogin, VaultSettings},
    dial::Resolver,
    policy::Site,
    tls,
    vault::{
        DoctorError, DoctorReport, examine,
        plan::{PlanError, VaultPlan},
    },
};

/// The commands about Vault.
#[derive(Debug, Subcommand)]
pub enum VaultCommand {
    /// Print the policies, token roles and login that a configuration needs; asks Vault nothing
    #[command(
        after_help = "Examples:\n  cloakroom vault plan /etc/cloakroom/cloakroom.toml > plan.sh\n  \
        cloakroom vault plan --format terraform --from 192.0.2.10 CONFIG > cloakroom.tf\n  \
        cloakroom vault plan --policy cloakroom-gateway CONFIG | \\\n    \
        vault policy write cloakroom-gateway -\n\n\
        Make it on the gateway, to whose address towards Vault all tokens are bound; elsewhere name\n\
        that address with --from. Read the script, then run it where `vault` is logged in; running it\n\
        again changes nothing. Engines and the values in them are yours to set up."
    )]
    Plan(PlanArgs),
    /// Log in as the gateway, and say what is missing in Vault and what is too wide; shows no
    /// secret
    #[command(after_help = "Examples:\n  cloakroom vault doctor /etc/cloakroom/cloakroom.toml\n  \
        cloakroom vault doctor --secret-id-file ./another-secret-id CONFIG\n  \
        cloakroom vault doctor --from 192.0.2.10 CONFIG\n  \
        cloakroom vault doctor --values CONFIG\n\n\
        Run it on the gateway, as root or as its user. It logs in, which is a use of the SecretID, asks what the\n\
        gateway's token and the groups' may do, asks each token role for a policy that it must\n\
        refuse, and has CAs signed whose keys it drops. It reads a secret with --values\n\
        alone. Exit status: 0 healthy, 64 the configuration is wrong, 1 anything else.")]
    Doctor(DoctorArgs),
}

/// Arguments of `cloakroom vault doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The configuration
    #[arg(value_name = "CONFIG", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Log in with the SecretID in this file, where the gateway's own is wrapped
    #[arg(long, value_name = "FILE")]
    secret_id_file: Option<PathBuf>,
    /// The gateway's address towards Vault, or a prefix, which all tokens must be bound to; again
    /// for another; by default what this machine would use
    #[arg(long, value_name = "ADDRESS|PREFIX", value_parser = prefix)]
    from: Vec<IpNet>,
    /// Read each secret, too, as its group does, and say which could not be used; none is shown,
    /// and what Vault lends for it is given back
    #[arg(long)]
    values: bool,
}

/// Arguments of `cloakroom vault plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The configuration
    #[arg(value_name = "CONFIG", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// As a script for a shell, or for Terraform
    #[arg(long, value_enum, default_value_t = PlanFormat::Shell)]
    format: PlanFormat,
    /// Print this policy alone
    #[arg(long, value_name = "NAME", conflicts_with = "format")]
    policy: Option<String>,
    /// The gateway's address towards Vault, or a prefix, which all tokens are bound to; again for
    /// another; by default what this machine would use
    #[arg(long, value_name = "ADDRESS|PREFIX", value_parser = prefix)]
    from: Vec<IpNet>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PlanFormat {
    Shell,
    Terraform,
}

/// The reasons why the command failed. Carries no part of any secret.
#[derive(Debug, thiserror::Error)]
pub enum VaultCommandError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(Errors),
    /// There is no plan for the configuration.
    #[error(transparent)]
    Plan(PlanError),
    /// Nothing could be checked.
    #[error(transparent)]
    Doctor(DoctorError),
    /// The runtime could not be started.
    #[error("cannot start a runtime: {0}")]
    Runtime(io::Error),
    /// The settings' resolvers cannot be used.
    #[error("{0}")]
    Resolver(String),
    /// There is no AppRole to log in with.
    #[error("--secret-id-file is for a login by [vault.approle]")]
    NoAppRole,
    /// Vault differs from the plan; the findings have been written.
    #[error(
        "Vault is not as the configuration needs it; `cloakroom vault plan` prints how it should be"
    )]
    Unhealthy,
    /// The output could not be written.
    #[error("cannot write the output: {0}")]
    Output(io::Error),
}

/// Runs the command and writes its messages to `out`.
pub fn run(
    command: VaultCommand,
    load: impl Fn(&Path) -> Result<Config, Errors>,
    out: &mut impl Write,
) -> Result<(), VaultCommandError> {
    match command {
        VaultCommand::Plan(args) => {
            let config = load(&args.config).map_err(VaultCommandError::Config)?;
            let text = plan(args, &config)?;
            out.write_all(text.as_bytes()).map_err(VaultCommandError::Output)
        }
        VaultCommand::Doctor(args) => {
            let config = load(&args.config).map_err(VaultCommandError::Config)?;
            let health = doctor(args, config)?;
            out.write_all(health.to_string().as_bytes()).map_err(VaultCommandError::Output)?;
            if health.is_good() { Ok(()) } else { Err(VaultCommandError::Unhealthy) }
        }
    }
}

fn doctor(args: DoctorArgs, mut config: Config) -> Result<DoctorReport, VaultCommandError> {
    if let Some(file) = args.secret_id_file {
        match config.settings.vault.as_mut().map(|vault| &mut vault.login) {
            Some(VaultLogin::AppRole { secret_id_file, wrapped, .. }) => {
                (*secret_id_file, *wrapped) = (file, false);
            }
            _ => return Err(VaultCommandError::NoAppRole),
        }
    }
    let runtime = runtime()?;
    let Config { settings, policy } = &config;
    let values = args.values;
    runtime.block_on(async {
        let interrupted = interrupted().map_err(VaultCommandError::Runtime)?;
        let resolver = open_resolver(settings)?;
        let bound = bound(args.from, settings).await?;
        let reached = (bound.as_slice(), &resolver);
        let examined = examine(settings, policy, reached, values, interrupted).await;
        examined.map_err(VaultCommandError::Doctor)
    })
}

fn open_resolver(settings: &Settings) -> Result<Resolver, VaultCommandError> {
    let system_roots = Arc::new(tls::system_roots());
    // Vault is the gateway's own upstream, so no translator counts.
    let site = Site { nat64_prefixes: Some(Vec::new()), ..Site::default() };
    Resolver::open(settings, &site, &system_roots).map_err(VaultCommandError::Resolver)
}

/// Waits until somebody interrupts the command.
fn interrupted() -> io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, VaultCommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(VaultCommandError::Runtime)
}

fn plan(args: PlanArgs, config: &Config) -> Result<String, VaultCommandError> {
    let Config { settings, policy } = config;
    let bound = runtime()?.block_on(bound(args.from, settings))?;
    let plan = VaultPlan::new(settings, policy, bound).map_err(VaultCommandError::Plan)?;
    match (args.policy, args.format) {
        (Some(name), _) => plan.policy(&name).map_err(VaultCommandError::Plan),
        (None, PlanFormat::Shell) => Ok(plan.shell()),
        (None, PlanFormat::Terraform) => Ok(plan.terraform()),
    }
}

/// Returns the addresses that tokens are bound to: the named ones, or those that this machine would
/// use.
async fn bound(from: Vec<IpNet>, settings: &Settings) -> Result<Vec<IpNet>, VaultCommandError> {
    match &settings.vault {
        Some(vault) if from.is_empty() => Ok(sources(vault, &open_resolver(settings)?).await),
        _ => Ok(from),
    }
}

/// Returns the addresses that this machine would use towards Vault's nodes, as far as it can tell.
async fn sources(vault: &VaultSettings, resolver: &Resolver) -> Vec<IpNet> {
    let mut sources = Vec::new();
    for node in std::iter::once(&vault.address).chain(&vault.peers) {
        let nodes = resolve(node, resolver).await;
        sources.extend(nodes.into_iter().filter_map(source_towards).map(IpNet::from));
    }
    sources
}

async fn resolve(node: &str, resolver: &Resolver) -> Vec<SocketAddr> {
    let Ok(uri) = Uri::from_str(node) else { return Vec::new() };
    let Some(host) = uri.host() else { return Vec::new() };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let found = match bare.parse() {
        Ok(literal) => vec![literal],
        Err(_) => resolver.own(bare).await.unwrap_or_default(),
    };
    let port = uri.port_u16().unwrap_or(443);
    found.into_iter().map(|address| SocketAddr::new(address, port)).collect()
}

/// Returns the source address towards a node. Connecting a UDP socket has the kernel choose one,
/// and sends nothing.
fn source_towards(node: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match node {
        SocketAddr::V4(_) => [0; 4].into(),
        SocketAddr::V6(_) => [0; 16].into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(node).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// Parses an address, or a prefix that is not the whole address family.
fn prefix(text: &str) -> Result<IpNet, &'static str> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    let prefix = address.or_else(|_| text.parse()).map_err(|_| "no address or prefix")?;
    match prefix.prefix_len() {
        0 => Err("that is everybody"),
        _ => Ok(prefix.trunc()),
    }
}
