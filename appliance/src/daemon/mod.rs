//! `run → drain → cut`: who owns what, and in which order it comes and goes.
//!
//! Start: settings and policy, then everything that could fail, then the listeners, then the
//! packets that are sent to them, then ready. Any doubt is fatal, and what was installed before
//! it is closed: rules without listeners refuse everything. Stop: nothing new, then what is open
//! may finish, then it is cut. The rules stay, so that the gateway is closed after the daemon.

mod control;
mod flow;
mod ground;
mod harden;
mod issuing;
mod orders;
mod refused;
mod signals;
mod supervisor;
mod wanted;
mod worker;

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::RootCertStore;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, timeout},
};

use self::{
    control::Control,
    flow::Gateway,
    orders::{Orders, Reload},
    refused::Watcher,
    signals::{Signals, Told},
    supervisor::Supervisor,
    wanted::Wanted,
    worker::Worker,
};
use crate::{
    accept::Places,
    audit::{Sink, Writer},
    ca::{CaError, Rotation, RuleCas},
    config::{self, Config, SecretFile, Settings},
    dial::{ControlPlane, Resolver},
    dns::{self, Desk},
    intercept::Means,
    packets::{self, Capture, Claim, Kept, PacketLog, PacketsError},
    phase::{Phase, Phases},
    policy::{Group, Policy},
    quarantine::Quarantine,
    rulebook::{Rulebook, RulebookError},
    secrets::{FileSource, SecretStore, Session, Sources, VaultSource},
    tls,
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

/// What the environment says of whoever started the daemon; read by the command line.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// The socket of a service manager (`NOTIFY_SOCKET`, `sd_notify(3)`).
    pub notify_socket: Option<OsString>,
    /// The time within which it wants signs of life (`WATCHDOG_USEC`, `sd_watchdog_enabled(3)`).
    pub watchdog: Option<Duration>,
    /// How many descriptors were handed over (`LISTEN_FDS`, `sd_listen_fds(3)`).
    pub handed: u16,
}

/// Runs the daemon until it is told to stop. `ready_file` is written once packets are captured.
pub async fn run(
    config_file: &Path,
    ready_file: Option<&Path>,
    surroundings: &Surroundings,
) -> Result<(), DaemonError> {
    harden::process().map_err(DaemonError::Other)?;
    let config = config::load(config_file).map_err(DaemonError::Config)?;
    let signals = Signals::new().map_err(|error| other("cannot handle signals", &error))?;
    let supervisor = Supervisor::of(surroundings)
        .map_err(|error| other("cannot speak to the socket in NOTIFY_SOCKET", &error))?;
    let handed = supervisor::handed(surroundings.handed)
        .map_err(|error| other("cannot take what LISTEN_FDS says", &error))?;
    let daemon = Daemon::start(config, config_file, &supervisor, Kept::new(handed)).await?;
    if let Some(path) = ready_file {
        std::fs::write(path, "ready\n")
            .map_err(|error| other(&format!("cannot write {}", path.display()), &error))?;
    }
    supervisor.ready();
    tracing::info!("ready");
    daemon.live(signals, &supervisor).await;
    Ok(())
}

/// Everything that lives as long as the daemon.
struct Daemon {
    config_file: PathBuf,
    settings: Settings,
    capture: Capture,
    /// The doubt about the kernel's settings that keeps new connections out, where there is one.
    doubt: watch::Sender<Option<String>>,
    system_roots: Arc<RootCertStore>,
    phase: watch::Sender<Phase>,
    rulebooks: watch::Sender<Arc<Rulebook>>,
    secrets: Arc<SecretStore>,
    wanted: Arc<Wanted>,
    /// Where Vault signs the issuing CAs.
    rotation: Option<Rotation>,
    refreshing: JoinHandle<()>,
    reloads: mpsc::Receiver<Reload>,
    obeying: JoinHandle<()>,
    audit: Sink,
    writer: Writer,
    workers: Vec<Worker>,
    dns: dns::Server,
    watcher: Watcher,
    _claim: Claim,
}

impl Daemon {
    async fn start(
        config: Config,
        config_file: &Path,
        supervisor: &Supervisor,
        kept: Kept,
    ) -> Result<Self, DaemonError> {
        let Config { settings, policy } = config;
        let control = Control::bind(&settings.control).map_err(|error| {
            other(&format!("the control socket {}", settings.control.display()), &error)
        })?;
        let quarantine = Quarantine::open(&settings.state_dir)
            .map_err(|error| DaemonError::Other(error.to_string()))?;
        let capture = Capture::new(&policy, &settings);
        packets::prepare(&capture).await?;
        let system_roots = Arc::new(system_roots());
        // A listener holds a place while it waits for the connection that will take it.
        let waiting = workers(&settings) * capture.listeners();
        let places = Places::new(policy.limits.connections + waiting);
        let resolver = open_resolver(&settings, &system_roots)?;
        let (secrets, vault) = open_secrets(&settings, &policy.groups, resolver.control_plane())?;
        let sources = (Arc::clone(&secrets), vault.clone());
        let wanted = Wanted::new(sources, quarantine.watch(), &policy);
        let wanted = Arc::new(wanted);
        let rotation = issuing::open_rotation(&settings, vault.as_ref())?;
        let cas = issuing::cas(&policy, &settings, rotation.as_ref())?;
        let rulebook = rulebook(policy, cas.clone(), &system_roots)?;
        let (audit, writer) = Sink::open(&settings.audit).map_err(|error| {
            other(&format!("cannot write the audit {}", settings.audit), &error)
        })?;
        let (phase, phases) = Phases::new();
        let (rulebooks, in_force) = watch::channel(Arc::new(rulebook));
        let means = Means { audit: audit.clone(), secrets: Arc::clone(&secrets), resolver };
        let gateway = Arc::new(Gateway {
            means,
            rulebook: in_force,
            phases: phases.clone(),
            quarantined: quarantine.watch(),
            places,
            proxy_port: settings.proxy_port,
        });
        let refreshing = tokio::spawn(Arc::clone(&secrets).run(cut(phases.clone())));
        issuing::first_round(&secrets, rotation.as_ref(), &cas, FIRST_ROUND).await;
        let claim = packets::claim_beside(&kept, &capture)?;
        let log = PacketLog::open(capture.nflog_group)?;
        let (in_force, places) = (gateway.rulebook.clone(), Arc::clone(&gateway.places));
        let watcher = Watcher::start(log, audit.clone(), in_force, places)
            .map_err(|error| other("cannot start a thread", &error))?;
        let Captured { workers, dns } =
            capture_packets(&capture, &settings, &gateway, (supervisor, kept))?;
        report_secrets(&secrets);
        issuing::report(rotation.as_ref());
        let (to_reload, reloads) = mpsc::channel(1);
        let doubt = watch::Sender::default();
        let orders = Orders {
            gateway,
            quarantine: Arc::new(quarantine),
            wanted: Arc::clone(&wanted),
            doubt: doubt.subscribe(),
            reloads: to_reload,
        };
        let obeying = tokio::spawn(control.serve(orders, cut(phases)));
        Ok(Self {
            config_file: config_file.to_owned(),
            settings,
            capture,
            doubt,
            system_roots,
            phase,
            rulebooks,
            secrets,
            wanted,
            rotation,
            refreshing,
            reloads,
            obeying,
            audit,
            writer,
            workers,
            dns,
            watcher,
            _claim: claim,
        })
    }

    async fn live(mut self, mut signals: Signals, supervisor: &Supervisor) {
        let every = self.settings.assert_every;
        let mut rounds = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut signs = supervisor.watchdog.map(tokio::time::interval);
        loop {
            tokio::select! {
                told = signals.next() => match told {
                    Told::Reload => {
                        // The log has said it.
                        let _ = self.reload(supervisor).await;
                    }
                    Told::Stop => break,
                },
                Some(waiting) = self.reloads.recv() => {
                    // Whoever asked may be gone.
                    let _ = waiting.send(self.reload(supervisor).await);
                }
                () = next_sign(&mut signs) => supervisor.alive(),
                _ = rounds.tick() => {
                    if let Err(error) = self.assert_ground().await {
                        tracing::error!("stopping: {error}");
                        break;
                    }
                }
            }
        }
        supervisor.stopping();
        self.stop(signals).await;
    }

    /// Takes a new policy whole, or keeps the old one and says why.
    async fn reload(&mut self, supervisor: &Supervisor) -> Result<(), DaemonError> {
        supervisor.reloading();
        self.audit.reopen().await;
        let taken = self.take_new_policy().await;
        match &taken {
            Ok(()) => tracing::info!("reloaded"),
            Err(error) => tracing::error!("not reloaded, the old policy stays in force: {error}"),
        }
        supervisor.ready();
        taken
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
        let cas = issuing::cas(&policy, &settings, self.rotation.as_ref())?;
        let rulebook = rulebook(policy, cas.clone(), &self.system_roots)?;
        packets::apply(&self.rules(&capture))?;
        self.capture = capture;
        self.wanted.take(&rulebook.policy);
        self.secrets.ask_again();
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
        // It holds a sink of the audit.
        if timeout(GIVE_BACK_TIME, self.obeying).await.is_err() {
            tracing::error!("the control socket did not close in time");
        }
        drop((self.audit, self.rulebooks, self.wanted, self.secrets));
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
    (supervisor, mut kept): (&Supervisor, Kept),
) -> Result<Captured, DaemonError> {
    let (begin, begun) = oneshot::channel();
    let mut begins = vec![begin];
    let desk = Desk::new(
        gateway.rulebook.clone(),
        (gateway.means.resolver.clone(), gateway.means.audit.clone()),
        gateway.phases.clone(),
        gateway.quarantined.clone(),
        settings.ipv6,
    );
    let dns = dns::Server::start(packets::dns_sockets(capture)?, desk, begun)
        .map_err(|error| other("cannot start the agents' resolver", &error))?;
    let count = workers(settings);
    let mut workers = Vec::with_capacity(count);
    for number in 0..count {
        let (begin, begun) = oneshot::channel();
        let listeners = kept.listen(capture)?;
        supervisor.keep(&listeners);
        let worker = Worker::start(number, listeners, Arc::clone(gateway), begun)
            .map_err(|error| other("cannot start a worker", &error))?;
        workers.push(worker);
        begins.push(begin);
    }
    // What nobody took must not be sent a connection.
    drop(kept);
    packets::apply(capture)?;
    for begin in begins {
        // A worker that is gone has said so itself.
        let _ = begin.send(());
    }
    Ok(Captured { workers, dns })
}

async fn next_sign(signs: &mut Option<tokio::time::Interval>) {
    match signs {
        Some(signs) => {
            signs.tick().await;
        }
        None => std::future::pending().await,
    }
}

async fn cut(mut phases: Phases) {
    phases.reached(Phase::Cut).await;
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

fn open_resolver(
    settings: &Settings,
    system_roots: &Arc<RootCertStore>,
) -> Result<Resolver, DaemonError> {
    let over_tls = settings.resolvers.iter().any(|server| server.tls_name.is_some());
    let tls = over_tls.then(|| tls::resolver_client(settings.resolver_ca.as_deref(), system_roots));
    let tls = tls.transpose().map_err(DaemonError::Other)?;
    Resolver::new(&settings.resolvers, tls, Handle::current()).map_err(DaemonError::Other)
}

/// Opens the sources that the settings name. A file that cannot be read is an error here; a Vault
/// that cannot be reached is not: what depends on it is refused until it can.
fn open_secrets(
    settings: &Settings,
    groups: &[Arc<Group>],
    control_plane: &ControlPlane,
) -> Result<(Arc<SecretStore>, Option<Arc<Session>>), DaemonError> {
    let (mut sources, mut session) = (Sources::default(), None);
    let (mut refresh, mut max_stale) = (FILE_REFRESH, FILE_MAX_STALE);
    if let Some(vault) = &settings.vault {
        let source = VaultSource::new(vault, groups, control_plane);
        let source = source.map_err(|error| other("[vault]", &error))?;
        session = Some(source.session());
        sources.vault = Some(source);
        (refresh, max_stale) = (vault.refresh, vault.max_stale);
    }
    if let Some(SecretFile { path, key }) = &settings.secret_file {
        let file = FileSource::new(path.clone(), key.clone());
        file.check().map_err(|error| other(&path.display().to_string(), &error))?;
        sources.file = Some(file);
    }
    Ok((SecretStore::new(Arc::new(sources), &[], refresh, max_stale), session))
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
