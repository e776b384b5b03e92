//! The start: everything that could fail, then the secrets, then the listeners, then the packets
//! that are sent to them. Any doubt is fatal, and what was made before it is closed with it: Vault
//! gets back what it lent.

use std::{
    io,
    os::fd::AsFd,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::RootCertStore;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
};

use super::{
    Daemon, DaemonError, control::Control, cut, flow::Gateway, give_back, issuing, orders::Orders,
    other, refused::Watcher, rulebook, supervisor::Supervisor, wanted::Wanted, worker::Worker,
};
use crate::{
    accept::Places,
    audit::{self, Sink},
    config::{Config, SecretFile, Settings},
    dial::{ControlPlane, Resolver},
    dns::{self, Desk},
    harden::{Confinement, Enforced, Reach},
    intercept::Means,
    packets::{self, Capture, Kept, PacketLog, PacketsError},
    phase::Phases,
    policy::Group,
    quarantine::Quarantine,
    secrets::{FileSource, SecretStore, Session, Sources, VaultSource},
    tls,
};

impl Daemon {
    /// Comes up with everything it owns, or not at all. Packets are captured once it is there.
    pub(super) async fn start(
        (config, config_file): (Config, &Path),
        reach: Reach,
        supervisor: &Supervisor,
        mut kept: Kept,
    ) -> Result<Self, DaemonError> {
        let Config { settings, policy } = config;
        let control = patiently(|| Control::bind(&settings.control), is_in_use).await;
        let control = control.map_err(|error| {
            other(&format!("the control socket {}", settings.control.display()), &error)
        })?;
        let quarantine = Quarantine::open(&settings.state_dir)
            .map_err(|error| DaemonError::Other(error.to_string()))?;
        let quarantine = Arc::new(quarantine);
        audit::make_folder(&settings.audit).map_err(|error| {
            other(&format!("cannot make the folder of the audit {}", settings.audit), &error)
        })?;
        // From here on threads are started.
        let confinement = Arc::new(confine(reach)?);
        let capture = Capture::new(&policy, &settings);
        packets::prepare(&capture).await?;
        let system_roots = Arc::new(system_roots());
        // A listener holds a place while it waits for the connection that will take it.
        let waiting = workers(&settings) * capture.listeners();
        let places = Places::new(policy.limits.connections + waiting);
        let resolver = open_resolver(&settings, &system_roots)?;
        let control_plane = resolver.control_plane().clone();
        control_plane.take_agents(capture.agents());
        let (secrets, vault) = open_secrets(&settings, &policy.groups, &control_plane)?;
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
        let is_running =
            |error: &PacketsError| matches!(error, PacketsError::AlreadyRunning { .. });
        let claim = patiently(|| packets::claim(&kept, &capture), is_running).await;
        let claim = Arc::new(claim?);
        let log = PacketLog::open(capture.nflog_group)?;
        let (in_force, places) = (gateway.rulebook.clone(), Arc::clone(&gateway.places));
        let watcher = Watcher::start(log, audit.clone(), in_force, places, capture.ipv6)
            .map_err(|error| other("cannot start a thread", &error))?;
        let dns = start_dns(&capture, &settings, &gateway, (supervisor, &mut kept))?;
        // From here on there are tokens in Vault, which a start that fails has to give back.
        let refreshing = tokio::spawn(Arc::clone(&secrets).run(cut(phases.clone())));
        issuing::first_round(&secrets, rotation.as_ref(), &cas, FIRST_ROUND).await;
        let workers = capture_packets(&capture, &settings, &gateway, (supervisor, kept));
        let workers = match workers {
            Ok(workers) => workers,
            Err(error) => {
                give_back(&phase, rotation, refreshing).await;
                return Err(error);
            }
        };
        report_secrets(&secrets);
        issuing::report(&rulebooks.borrow(), rotation.is_some());
        let (to_reload, reloads) = mpsc::channel(1);
        let doubt = watch::Sender::default();
        let orders = Orders {
            gateway,
            quarantine: Arc::clone(&quarantine),
            wanted: Arc::clone(&wanted),
            doubt: doubt.subscribe(),
            claim: Arc::clone(&claim),
            landlock: confinement.enforced(),
            reloads: to_reload,
        };
        let obeying = tokio::spawn(control.serve(orders, cut(phases)));
        Ok(Self {
            config_file: config_file.to_owned(),
            confinement,
            settings,
            capture,
            control_plane,
            doubt,
            system_roots,
            phase,
            rulebooks,
            cas_told: Instant::now(),
            secrets,
            wanted,
            quarantine,
            rotation,
            refreshing,
            reloads,
            obeying,
            audit,
            writer,
            workers,
            dns,
            watcher,
            claim,
        })
    }
}

/// Gives up what the daemon has no use for. A kernel without Landlock is no reason not to run.
fn confine(reach: Reach) -> Result<Confinement, DaemonError> {
    let confinement = Confinement::enter(reach)
        .map_err(|error| other("cannot be confined by Landlock", &error))?;
    match confinement.enforced() {
        Enforced::Fully => tracing::info!("confined by Landlock to the folders that it needs"),
        Enforced::Partly => tracing::warn!(
            "confined by Landlock to the folders that it needs, as far as this older kernel knows how"
        ),
        Enforced::Not => tracing::warn!(
            "this kernel has no Landlock, or it is off (lsm=): the file system is open to the daemon \
             as its user's permissions say"
        ),
    }
    Ok(confinement)
}

/// Tries for a moment: a daemon that was killed with its launcher may still be on its way out.
async fn patiently<T, E>(
    mut attempt: impl FnMut() -> Result<T, E>,
    may_pass: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let end = Instant::now() + PREDECESSOR;
    loop {
        match attempt() {
            Err(error) if may_pass(&error) && Instant::now() < end => {
                tokio::time::sleep(RETRY).await;
            }
            done => return done,
        }
    }
}

fn is_in_use(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

/// Names are answered as soon as they can be: whoever asks waits where this is a restart. Elsewhere
/// nobody is sent here before there are rules.
fn start_dns(
    capture: &Capture,
    settings: &Settings,
    gateway: &Arc<Gateway>,
    (supervisor, kept): (&Supervisor, &mut Kept),
) -> Result<dns::Server, DaemonError> {
    let desk = Desk::new(
        gateway.rulebook.clone(),
        (gateway.means.resolver.clone(), gateway.means.audit.clone()),
        gateway.phases.clone(),
        gateway.quarantined.clone(),
        settings.ipv6,
    );
    let sockets = kept.dns(capture)?;
    supervisor.keep("dns", sockets.iter().flat_map(|it| [it.udp.as_fd(), it.tcp.as_fd()]));
    dns::Server::start(sockets, desk)
        .map_err(|error| other("cannot start the agents' resolver", &error))
}

/// Listeners first, then the rules that send packets to them: in between nothing is lost, only
/// refused.
fn capture_packets(
    capture: &Capture,
    settings: &Settings,
    gateway: &Arc<Gateway>,
    (supervisor, mut kept): (&Supervisor, Kept),
) -> Result<Vec<Worker>, DaemonError> {
    let mut begins = Vec::new();
    let count = workers(settings);
    let mut workers = Vec::with_capacity(count);
    for number in 0..count {
        let (begin, begun) = oneshot::channel();
        let listeners = kept.listen(capture)?;
        supervisor.keep("proxy", listeners.iter().map(|listener| listener.socket.as_fd()));
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
    Ok(workers)
}

fn workers(settings: &Settings) -> usize {
    match settings.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    }
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

/// Time for a daemon that was killed to be gone.
const PREDECESSOR: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(20);
/// Time that the start waits for the first values. Without them the gateway comes up all the
/// same and answers 503 where they are needed.
const FIRST_ROUND: Duration = Duration::from_secs(5);
/// How often the file of secrets is read where no Vault says otherwise.
const FILE_REFRESH: Duration = Duration::from_secs(30);
/// How long a value outlives a file that has become unreadable.
const FILE_MAX_STALE: Duration = Duration::from_secs(300);
