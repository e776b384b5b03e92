//! `run → drain → cut`: who owns what, and in which order it comes and goes.
//!
//! Start: settings and policy, then everything that could fail, then the listeners, then the
//! packets that are sent to them, then ready. Any doubt is fatal, and what was installed before
//! it is closed: rules without listeners refuse everything. Stop: nothing new, then what is open
//! may finish, then it is cut. The rules stay, so that the gateway is closed after the daemon.

mod flow;
mod ground;
mod harden;
mod issuing;
mod refused;
mod worker;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::RootCertStore;
use tokio::{
    runtime::Handle,
    signal::unix::{Signal, SignalKind, signal},
    sync::{oneshot, watch},
    time::{MissedTickBehavior, timeout},
};

use self::{flow::Gateway, refused::Watcher, worker::Worker};
use crate::{
    accept::Places,
    audit::{Sink, Writer},
    ca::{CaError, Rotation, RuleCas},
    config::{self, Config, Settings},
    dial::Resolver,
    dns::{self, Desk},
    intercept::Means,
    packets::{self, Capture, Claim, PacketLog, PacketsError},
    phase::{Phase, Phases},
    policy::{GroupName, Policy, SecretRef},
    rulebook::{Rulebook, RulebookError},
    secrets::{FileSource, SecretStore, Session, Sources, VaultSource},
};

/// Why the daemon did not start, or a reload was not taken.
#[derive(Debug)]
pub enum DaemonError {
    /// The configuration, with every error in it.
    Config(config::Errors),
    /// Packets, routes or listeners.
    Packets(PacketsError),
    /// Issuing CAs.
    Ca(CaError),
    /// Certificates.
    Rulebook(RulebookError),
    /// Anything else, said in one line.
    Other(String),
}

/// Runs the daemon until it is told to stop. `ready_file` is written once packets are captured.
pub async fn run(config_file: &Path, ready_file: Option<&Path>) -> Result<(), DaemonError> {
    harden::process().map_err(DaemonError::Other)?;
    let config = config::load(config_file).map_err(DaemonError::Config)?;
    let signals = Signals::new().map_err(|error| other("cannot handle signals", &error))?;
    let daemon = Daemon::start(config, config_file).await?;
    if let Some(path) = ready_file {
        std::fs::write(path, "ready\n")
            .map_err(|error| other(&format!("cannot write {}", path.display()), &error))?;
    }
    tracing::info!("ready");
    daemon.live(signals).await;
    Ok(())
}

/// Everything that lives as long as the daemon.
struct Daemon {
    config_file: PathBuf,
    settings: Settings,
    capture: Capture,
    /// Whether a doubt about the kernel's settings keeps new connections out.
    closed: bool,
    system_roots: Arc<RootCertStore>,
    phase: watch::Sender<Phase>,
    rulebooks: watch::Sender<Arc<Rulebook>>,
    secrets: Arc<SecretStore>,
    vault: Option<Arc<Session>>,
    /// Where Vault signs the issuing CAs.
    rotation: Option<Rotation>,
    refreshing: tokio::task::JoinHandle<()>,
    audit: Sink,
    writer: Writer,
    workers: Vec<Worker>,
    dns: dns::Server,
    watcher: Watcher,
    _claim: Claim,
}

impl Daemon {
    async fn start(config: Config, config_file: &Path) -> Result<Self, DaemonError> {
        let Config { settings, policy } = config;
        let capture = Capture::new(&policy, &settings);
        packets::prepare(&capture).await?;
        let system_roots = Arc::new(system_roots());
        // A listener holds a place while it waits for the connection that will take it.
        let waiting = workers(&settings) * capture.listeners();
        let places = Places::new(policy.limits.connections + waiting);
        let (secrets, vault) = open_secrets(&settings, &policy)?;
        let rotation = issuing::open_rotation(&settings, vault.as_ref())?;
        let cas = issuing::cas(&policy, &settings, rotation.as_ref())?;
        let rulebook = rulebook(policy, cas.clone(), &system_roots)?;
        let (audit, writer) = Sink::open(&settings.audit).map_err(|error| {
            other(&format!("cannot write the audit {}", settings.audit), &error)
        })?;
        let resolver =
            Resolver::new(&settings.resolvers, Handle::current()).map_err(DaemonError::Other)?;
        let (phase, phases) = Phases::new();
        let (rulebooks, in_force) = watch::channel(Arc::new(rulebook));
        let means = Means { audit: audit.clone(), secrets: Arc::clone(&secrets), resolver };
        let gateway = Arc::new(Gateway {
            means,
            rulebook: in_force,
            phases: phases.clone(),
            places,
            proxy_port: settings.proxy_port,
        });
        let mut phases = phases;
        let closing = async move { phases.reached(Phase::Cut).await };
        let refreshing = tokio::spawn(Arc::clone(&secrets).run(closing));
        issuing::first_round(&secrets, rotation.as_ref(), &cas, FIRST_ROUND).await;
        let claim = packets::claim(&capture)?;
        let log = PacketLog::open(capture.nflog_group)?;
        let watcher = Watcher::start(log, audit.clone(), gateway.rulebook.clone())
            .map_err(|error| other("cannot start a thread", &error))?;
        let Captured { workers, dns } = capture_packets(&capture, &settings, &gateway)?;
        report_secrets(&secrets);
        issuing::report(rotation.as_ref());
        Ok(Self {
            config_file: config_file.to_owned(),
            settings,
            capture,
            closed: false,
            system_roots,
            phase,
            rulebooks,
            secrets,
            vault,
            rotation,
            refreshing,
            audit,
            writer,
            workers,
            dns,
            watcher,
            _claim: claim,
        })
    }

    async fn live(mut self, mut signals: Signals) {
        let every = self.settings.assert_every;
        let mut rounds = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                told = signals.next() => match told {
                    Told::Reload => self.reload().await,
                    Told::Stop => break,
                },
                _ = rounds.tick() => {
                    if let Err(error) = self.assert_ground().await {
                        tracing::error!("stopping: {error}");
                        break;
                    }
                }
            }
        }
        self.stop(signals).await;
    }

    /// Takes a new policy whole, or keeps the old one and says why.
    async fn reload(&mut self) {
        self.audit.reopen().await;
        match self.take_new_policy().await {
            Ok(()) => tracing::info!("reloaded"),
            Err(error) => tracing::error!("not reloaded, the old policy stays in force: {error}"),
        }
    }

    async fn take_new_policy(&mut self) -> Result<(), DaemonError> {
        let Config { settings, policy } =
            config::load(&self.config_file).map_err(DaemonError::Config)?;
        let capture = Capture::new(&policy, &settings);
        let places = self.rulebooks.borrow().policy.limits.connections;
        if settings != self.settings
            || capture.interface_names() != self.capture.interface_names()
            || policy.limits.connections != places
        {
            return Err(DaemonError::Other(
                "the settings, the interfaces or limits.connections have changed; restart the \
                 daemon to take them"
                    .into(),
            ));
        }
        let wanted = wanted(&policy);
        let groups = policy.groups.clone();
        let cas = issuing::cas(&policy, &settings, self.rotation.as_ref())?;
        let rulebook = rulebook(policy, cas.clone(), &self.system_roots)?;
        packets::apply(&self.rules(&capture))?;
        self.capture = capture;
        if let Some(vault) = &self.vault {
            vault.set_groups(&groups);
        }
        self.secrets.set_wanted(&wanted);
        // A binding or a CA that is new is there before the first request can ask for it.
        issuing::first_round(&self.secrets, self.rotation.as_ref(), &cas, RELOAD_ROUND).await;
        self.rulebooks.send_replace(Arc::new(rulebook));
        Ok(())
    }

    async fn stop(self, mut signals: Signals) {
        let drain_time = self.rulebooks.borrow().policy.limits.drain_time;
        tracing::info!(seconds = drain_time.as_secs(), "draining");
        self.phase.send_replace(Phase::Drain);
        let (workers, dns) = (self.workers, self.dns);
        let mut joined = tokio::task::spawn_blocking(|| {
            dns.join();
            for worker in workers {
                worker.join();
            }
        });
        tokio::select! {
            _ = &mut joined => {}
            _ = tokio::time::sleep(drain_time) => tracing::info!("cutting what is still open"),
            () = signals.stop() => tracing::info!("told twice; cutting what is still open"),
        }
        // Nothing logs in to Vault again once the token is given back.
        drop(self.rotation);
        self.phase.send_replace(Phase::Cut);
        if !joined.is_finished() && timeout(CUT_TIME, joined).await.is_err() {
            tracing::error!("flows did not end; leaving them to the kernel");
        }
        if timeout(GIVE_BACK_TIME, self.refreshing).await.is_err() {
            tracing::warn!("the secrets' sources did not take back what they lent in time");
        }
        let watcher = self.watcher;
        if tokio::task::spawn_blocking(|| watcher.end()).await.is_err() {
            tracing::error!("the last sums of refused packets were not written");
        }
        drop((self.audit, self.rulebooks, self.secrets));
        self.writer.finish(AUDIT_TIME).await;
        tracing::info!("stopped");
    }
}

/// Whoever the packets are sent to.
struct Captured {
    workers: Vec<Worker>,
    dns: dns::Server,
}

/// Listeners first, then the rules that send packets to them: in between nothing is lost, only
/// refused.
fn capture_packets(
    capture: &Capture,
    settings: &Settings,
    gateway: &Arc<Gateway>,
) -> Result<Captured, DaemonError> {
    let (begin, begun) = oneshot::channel();
    let mut begins = vec![begin];
    let desk = Desk::new(
        gateway.rulebook.clone(),
        gateway.means.resolver.clone(),
        gateway.means.audit.clone(),
        gateway.phases.clone(),
        settings.ipv6,
    );
    let dns = dns::Server::start(packets::dns_sockets(capture)?, desk, begun)
        .map_err(|error| other("cannot start the agents' resolver", &error))?;
    let count = workers(settings);
    let mut workers = Vec::with_capacity(count);
    for number in 0..count {
        let (begin, begun) = oneshot::channel();
        let listeners = packets::listen(capture)?;
        let worker = Worker::start(number, listeners, Arc::clone(gateway), begun)
            .map_err(|error| other("cannot start a worker", &error))?;
        workers.push(worker);
        begins.push(begin);
    }
    packets::apply(capture)?;
    for begin in begins {
        // A worker that is gone has said so itself.
        let _ = begin.send(());
    }
    Ok(Captured { workers, dns })
}

fn workers(settings: &Settings) -> usize {
    match settings.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    }
}

fn rulebook(
    policy: Policy,
    cas: RuleCas,
    system_roots: &Arc<RootCertStore>,
) -> Result<Rulebook, DaemonError> {
    Rulebook::new(policy, cas, Arc::clone(system_roots)).map_err(DaemonError::Rulebook)
}

/// Opens the sources that the settings name. A file that cannot be read is an error here; a Vault
/// that cannot be reached is not: what depends on it is refused until it can.
fn open_secrets(
    settings: &Settings,
    policy: &Policy,
) -> Result<(Arc<SecretStore>, Option<Arc<Session>>), DaemonError> {
    let (mut sources, mut session) = (Sources::default(), None);
    let (mut refresh, mut max_stale) = (FILE_REFRESH, FILE_MAX_STALE);
    if let Some(vault) = &settings.vault {
        let source = VaultSource::new(vault, &policy.groups);
        let source = source.map_err(|error| other("[vault]", &error))?;
        session = Some(source.session());
        sources.vault = Some(source);
        (refresh, max_stale) = (vault.refresh, vault.max_stale);
    }
    if let Some(path) = &settings.secret_file {
        let file = FileSource::new(path.clone());
        file.check().map_err(|error| other(&path.display().to_string(), &error))?;
        sources.file = Some(file);
    }
    let store = SecretStore::new(Arc::new(sources), &wanted(policy), refresh, max_stale);
    Ok((store, session))
}

/// Every value that some group may need.
fn wanted(policy: &Policy) -> Vec<(GroupName, SecretRef)> {
    let bindings = policy.apis.iter().flat_map(|api| &api.bindings);
    let mut wanted: Vec<_> = bindings
        .flat_map(|binding| {
            binding.groups.iter().map(|group| (group.clone(), binding.secret.clone()))
        })
        .collect();
    wanted.sort_unstable();
    wanted.dedup();
    wanted
}

/// Certificates that the system holds but rustls cannot read are passed over, as elsewhere.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

fn report_secrets(secrets: &SecretStore) {
    let health = secrets.snapshot().health(Instant::now());
    tracing::info!(available = health.available, missing = health.missing.len(), "secrets");
    for (group, secret, cause) in &health.missing {
        tracing::warn!(%group, %secret, %cause, "no value yet; requests that need it get 503");
    }
}

fn other(what: &str, error: &dyn fmt::Display) -> DaemonError {
    DaemonError::Other(format!("{what}: {error}"))
}

struct Signals {
    reload: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            reload: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.reload.recv() => Told::Reload,
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
        }
    }

    async fn stop(&mut self) {
        while self.next().await != Told::Stop {}
    }
}

#[derive(PartialEq, Eq)]
enum Told {
    Reload,
    Stop,
}

impl From<PacketsError> for DaemonError {
    fn from(error: PacketsError) -> Self {
        Self::Packets(error)
    }
}

impl fmt::Display for DaemonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(errors) => errors.fmt(f),
            Self::Packets(error) => error.fmt(f),
            Self::Ca(error) => error.fmt(f),
            Self::Rulebook(error) => error.fmt(f),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for DaemonError {}

/// Time that the start waits for the first values. Without them the gateway comes up all the
/// same and answers 503 where they are needed.
const FIRST_ROUND: Duration = Duration::from_secs(5);
/// Time that a reload waits for the values that are new in it.
const RELOAD_ROUND: Duration = Duration::from_secs(2);
/// Time for flows to end once they are cut.
const CUT_TIME: Duration = Duration::from_secs(5);
/// Time for the sources of secrets to take back what they lent.
const GIVE_BACK_TIME: Duration = Duration::from_secs(5);
/// How often the file of secrets is read where no Vault says otherwise.
const FILE_REFRESH: Duration = Duration::from_secs(30);
/// How long a value outlives a file that has become unreadable.
const FILE_MAX_STALE: Duration = Duration::from_secs(300);
/// Time for the last records to be written.
const AUDIT_TIME: Duration = Duration::from_secs(5);
