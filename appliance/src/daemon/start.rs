//! The start: everything that could fail, then the secrets, then the listeners, then the packets
//! that are sent to them. Any doubt is fatal, and everything made before it is closed again: Vault
//! gets its leases back.
//!
//! `prepared → equipped → answering → leasing → serving`: each stage is made from the one before,
//! and holds the parts that exist by then.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use super::{
    Daemon, DaemonError, HostSetup, Leases, Obeying, Records, Serving, control::Control, cut,
    flow::Gateway, give_back, health::Vitals, host_checks::HostChecks, issuing, metrics,
    orders::Orders, other, policy_mark::PolicyMark, policy_snapshot, refused::Watcher,
    secret_demand::SecretDemand, supervisor::Supervisor, worker::Worker,
};
use crate::{
    audit::{self, Sink},
    ca::{Rotation, RuleCas},
    config::{Config, SecretFile, Settings},
    dial::{self, OffLimits, Resolver},
    dns::{self, QueryHandler},
    harden::{Confinement, Enforced, FileReach},
    identity::FlowIds,
    intercept::Services,
    limits::Capacity,
    packets::{
        self, Capture, DaemonState, DnsSockets, HeldName, InheritedListeners, ListenerClaim,
        PacketLog, PacketsError,
    },
    phase::{Phase, Phases},
    policy::{Group, Policy},
    policy_snapshot::PolicySnapshot,
    quarantine::Quarantine,
    secrets::{FileSource, SecretStore},
    tickets::Tickets,
    tls,
    vault::{Session, Sources, VaultSource},
};

impl Daemon {
    /// Starts with all parts, or not at all. Packets are captured last.
    pub(super) async fn start(
        config: Config,
        config_file: &Path,
        reach: FileReach,
        supervisor: &Supervisor,
        inherited: InheritedListeners,
    ) -> Result<Self, DaemonError> {
        let prepared = Prepared::new(config, config_file, reach, inherited).await?;
        let equipped = prepared.equip().await?;
        let answering = equipped.answer(supervisor).await?;
        let leasing = answering.lease().await;
        leasing.serve(supervisor).await
    }
}

/// The stage in which the machine can do all that the gateway needs. From here on threads are
/// started.
struct Prepared {
    host: HostSetup,
    policy: Policy,
    control: Control,
    inherited: InheritedListeners,
    sockets: Result<Vec<DnsSockets>, PacketsError>,
}

/// The stage that has everything to judge and carry a connection, and serves nobody yet.
struct Equipped {
    host: HostSetup,
    core: Core,
    inherited: InheritedListeners,
    sockets: Result<Vec<DnsSockets>, PacketsError>,
}

/// The stage that answers DNS queries. No secret was asked for.
struct Answering {
    host: HostSetup,
    core: Core,
    succession: Succession,
    claim: Arc<ListenerClaim>,
    dns: dns::DnsServer,
    watcher: Watcher,
}

/// The stage with tokens in Vault, which a start that fails has to give back.
struct Leasing {
    answering: Answering,
    refreshing: JoinHandle<()>,
}

/// The ties to a daemon that drains beside this one.
struct Succession {
    /// The listeners that were passed on.
    inherited: InheritedListeners,
    /// The name that says that this daemon serves. Where listeners were passed on, it is said
    /// later.
    serves: Option<HeldName>,
}

/// The sockets at which operators ask.
struct OperatorSockets {
    control: Control,
    management: Option<TcpListener>,
}

/// The parts that live as long as the daemon, made before anybody is served.
struct Core {
    gateway: Arc<Gateway>,
    off_limits: OffLimits,
    phase: watch::Sender<Phase>,
    policy_snapshots: watch::Sender<Arc<PolicySnapshot>>,
    demand: Arc<SecretDemand>,
    rotation: Option<Rotation>,
    cas: RuleCas,
    records: Records,
    operator_sockets: OperatorSockets,
}

impl Prepared {
    async fn new(
        Config { settings, policy }: Config,
        config_file: &Path,
        reach: FileReach,
        mut inherited: InheritedListeners,
    ) -> Result<Self, DaemonError> {
        let control = retried(|| Control::bind(&settings.control), is_in_use).await;
        let control = control.map_err(|error| {
            other(&format!("the control socket {}", settings.control.display()), &error)
        })?;
        let policy_mark = PolicyMark::of(&settings.state_dir);
        let quarantine = Quarantine::open(&settings.state_dir)
            .map_err(|error| DaemonError::Other(error.to_string()))?;
        audit::make_folder(&settings.audit).map_err(|error| {
            other(&format!("cannot make the folder of the audit {}", settings.audit), &error)
        })?;
        let capture = Capture::new(&policy, &settings);
        // Another program that answers at port 53 can be named here. Later Landlock hides which
        // sockets other processes hold.
        let sockets = inherited.dns(&capture);
        let confinement = confine(reach)?;
        packets::prepare(&capture).await?;
        packets::misfits(&capture).iter().for_each(|misfit| tracing::warn!("{misfit}"));
        report_routes(&policy, capture.ipv6);
        let host = HostSetup {
            config_file: config_file.to_owned(),
            settings,
            capture,
            confinement,
            policy_mark,
            quarantine: Arc::new(quarantine),
        };
        Ok(Self { host, policy, control, inherited, sockets })
    }

    async fn equip(self) -> Result<Equipped, DaemonError> {
        let Self { host, policy, control, inherited, sockets } = self;
        let HostSetup { settings, capture, quarantine, .. } = &host;
        let system_roots = Arc::new(tls::system_roots());
        // A listener holds a slot while it waits for the connection that will take it.
        let waiting = workers(settings) * capture.listeners();
        let capacity = Capacity::new(policy.limits.connections + waiting);
        let resolver = Resolver::open(settings, &policy.site, &system_roots);
        let resolver = resolver.map_err(DaemonError::Other)?;
        let off_limits = resolver.off_limits().clone();
        off_limits.control_plane().take_agents(capture.agents());
        let OpenedSources { secrets, vault } = open_sources(settings, &policy.groups, &resolver)?;
        let tickets = Arc::<Tickets>::default();
        let demand = Arc::new(SecretDemand::new(
            Arc::clone(&secrets),
            vault.clone(),
            Arc::clone(&tickets),
            quarantine.watch(),
            &policy,
        ));
        let rotation = issuing::open_rotation(settings, vault.as_ref())?;
        let cas = issuing::cas(&policy, settings, rotation.as_ref())?;
        let policy_snapshot = policy_snapshot(policy, cas.clone(), &system_roots)?;
        let records = Records::open(settings)?;
        let management = retried(|| open_metrics(settings, capture), is_in_use).await;
        let management = management.map_err(|error| other("metrics", &error))?;
        let (phase, phases) = Phases::new();
        let (policy_snapshots, in_force) = watch::channel(Arc::new(policy_snapshot));
        let gateway = Arc::new(Gateway {
            services: Services { audit: records.sink.clone(), secrets, tickets, resolver },
            policy_snapshot: in_force,
            phases,
            quarantined: quarantine.watch(),
            capacity,
            flow_ids: FlowIds::new()
                .map_err(|error| other("cannot make a key to name flows with", &error))?,
            proxy_port: settings.proxy_port,
        });
        let core = Core {
            gateway,
            off_limits,
            phase,
            policy_snapshots,
            demand,
            rotation,
            cas,
            records,
            operator_sockets: OperatorSockets { control, management },
        };
        Ok(Equipped { host, core, inherited, sockets })
    }
}

impl Equipped {
    async fn answer(self, supervisor: &Supervisor) -> Result<Answering, DaemonError> {
        let Self { host, core, mut inherited, sockets } = self;
        let (capture, gateway) = (&host.capture, &core.gateway);
        let port = host.settings.proxy_port;
        // A daemon that drains has the sockets that were not passed on, and gives them up when it
        // hears this.
        let serves = if inherited.is_empty() { say_serves(port).await } else { None };
        let claim = retried(|| packets::claim(&inherited, capture), is_in_the_way).await;
        let claim = Arc::new(claim?);
        let log = PacketLog::open(capture.nflog_group)?;
        // The program in the way may have been a daemon that has gone by now.
        let sockets = sockets.or_else(|named| inherited.dns(capture).map_err(|_| named))?;
        let (in_force, capacity) = (gateway.policy_snapshot.clone(), Arc::clone(&gateway.capacity));
        let watcher =
            Watcher::start(log, core.records.sink.clone(), in_force, capacity, capture.ipv6)
                .map_err(|error| other("cannot start a thread", &error))?;
        let dns = start_dns(sockets, &host.settings, gateway, supervisor)?;
        let succession = Succession { inherited, serves };
        Ok(Answering { host, core, succession, claim, dns, watcher })
    }
}

impl Answering {
    /// Asks for the secrets, and waits a while for those that can be had at once.
    async fn lease(self) -> Leasing {
        let Core { gateway, rotation, cas, .. } = &self.core;
        let secrets = &gateway.services.secrets;
        let refreshing = tokio::spawn(Arc::clone(secrets).run(cut(gateway.phases.clone())));
        issuing::first_round(secrets, rotation.as_ref(), cas, FIRST_ROUND).await;
        Leasing { answering: self, refreshing }
    }
}

impl Leasing {
    /// Captures packets and takes orders; on failure, gives back the leases.
    async fn serve(self, supervisor: &Supervisor) -> Result<Daemon, DaemonError> {
        let Self { answering, refreshing } = self;
        let Answering { host, core, succession, claim, dns, watcher } = answering;
        let captured = Captured::new(&host, &core, &claim, supervisor, succession).await;
        let Captured { workers, host_checks, serves } = match captured {
            Ok(captured) => captured,
            Err(error) => {
                give_back(&core.phase, core.rotation, refreshing).await;
                return Err(error);
            }
        };
        let Core {
            gateway,
            off_limits,
            phase,
            policy_snapshots,
            demand,
            rotation,
            records,
            operator_sockets,
            ..
        } = core;
        let vitals = Vitals {
            gateway: Arc::clone(&gateway),
            doubt: host_checks.doubt(),
            foreign: host_checks.foreign(),
            claim,
            landlock: host.confinement.enforced(),
            vault_signs: rotation.is_some(),
        };
        let obeying = Obeying::start(operator_sockets, &host, &demand, &vitals);
        let secrets = Arc::clone(&gateway.services.secrets);
        Ok(Daemon {
            host,
            off_limits,
            vitals,
            phase,
            policy_snapshots,
            cas_told: Instant::now(),
            leases: Leases { secrets, demand, rotation, refreshing },
            obeying,
            records,
            serving: Serving { workers, dns, watcher, host_checks, serves },
        })
    }
}

/// The parts that receive agents' packets.
struct Captured {
    workers: Vec<Worker>,
    host_checks: HostChecks,
    serves: Option<HeldName>,
}

impl Captured {
    async fn new(
        host: &HostSetup,
        core: &Core,
        claim: &Arc<ListenerClaim>,
        supervisor: &Supervisor,
        Succession { inherited, serves }: Succession,
    ) -> Result<Self, DaemonError> {
        let HostSetup { settings, capture, .. } = host;
        let workers = capture_packets(capture, settings, &core.gateway, supervisor, inherited)?;
        let serves = match serves {
            Some(held) => Some(held),
            None => say_serves(settings.proxy_port).await,
        };
        is_left_alone(settings.proxy_port).await;
        report_secrets(&core.gateway.services.secrets);
        issuing::report(&core.policy_snapshots.borrow(), core.rotation.is_some());
        let (every, audit) = (settings.assert_every, core.records.sink.clone());
        let host_checks = HostChecks::start(capture.clone(), every, Arc::clone(claim), audit);
        let host_checks = host_checks.await?;
        Ok(Self { workers, host_checks, serves })
    }
}

impl Records {
    fn open(settings: &Settings) -> Result<Self, DaemonError> {
        let (sink, writer) = Sink::open(&settings.audit).map_err(|error| {
            other(&format!("cannot write the audit {}", settings.audit), &error)
        })?;
        Ok(Self { sink, writer })
    }
}

impl Obeying {
    fn start(
        OperatorSockets { control, management }: OperatorSockets,
        host: &HostSetup,
        demand: &Arc<SecretDemand>,
        vitals: &Vitals,
    ) -> Self {
        let gateway = &vitals.gateway;
        let phases = &gateway.phases;
        let (to_reload, reloads) = mpsc::channel(1);
        let orders = Orders {
            gateway: Arc::clone(gateway),
            quarantine: Arc::clone(&host.quarantine),
            demand: Arc::clone(demand),
            vitals: vitals.clone(),
            reloads: to_reload,
        };
        let telling = management.map(|listener| {
            tokio::spawn(metrics::serve(listener, vitals.clone(), cut(phases.clone())))
        });
        let obeying = tokio::spawn(control.serve(orders, cut(phases.clone())));
        Self { reloads, obeying, telling }
    }
}

/// Gives up the rights that the daemon does not use. A kernel without Landlock is no reason not to
/// run.
fn confine(reach: FileReach) -> Result<Arc<Confinement>, DaemonError> {
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
    Ok(Arc::new(confinement))
}

/// Repeats an attempt for a moment: a daemon that was killed with its launcher may not have ended
/// yet.
async fn retried<T, E>(
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

/// Tells an earlier daemon that this one accepts. Without that, the earlier one goes on for a
/// while.
async fn say_serves(port: u16) -> Option<HeldName> {
    let held = retried(|| DaemonState::Serves.hold(port), is_in_use).await;
    if let Err(error) = &held {
        tracing::warn!(%error, "cannot tell a daemon that drains that this one serves");
    }
    held.ok()
}

/// Waits until an earlier daemon accepts nothing any more, so that only this one's policy is in
/// force.
async fn is_left_alone(port: u16) {
    let gone = || if DaemonState::AcceptsStill.is_said(port) { Err(()) } else { Ok(()) };
    if retried(gone, |()| true).await.is_err() {
        tracing::warn!("the daemon that was before this one accepts connections still");
    }
}

fn is_in_the_way(error: &PacketsError) -> bool {
    matches!(error, PacketsError::AlreadyRunning { .. } | PacketsError::PortInUse { .. })
}

fn is_in_use(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

/// Starts to answer DNS as early as possible, because in a restart agents wait for it. In a first
/// start no query arrives before there are rules.
fn start_dns(
    sockets: Vec<DnsSockets>,
    settings: &Settings,
    gateway: &Arc<Gateway>,
    supervisor: &Supervisor,
) -> Result<dns::DnsServer, DaemonError> {
    let handler = QueryHandler::new(
        gateway.policy_snapshot.clone(),
        (gateway.services.resolver.clone(), gateway.services.audit.clone()),
        gateway.phases.clone(),
        gateway.quarantined.clone(),
        settings.ipv6,
    );
    supervisor.keep("dns", sockets.iter().flat_map(|it| [it.udp.as_fd(), it.tcp.as_fd()]));
    dns::DnsServer::start(sockets, handler)
        .map_err(|error| other("cannot start the agents' resolver", &error))
}

/// Starts the listeners, then installs the rules that send packets to them: in between nothing is
/// lost, only refused.
fn capture_packets(
    capture: &Capture,
    settings: &Settings,
    gateway: &Arc<Gateway>,
    supervisor: &Supervisor,
    mut inherited: InheritedListeners,
) -> Result<Vec<Worker>, DaemonError> {
    let mut begins = Vec::new();
    let count = workers(settings);
    let mut workers = Vec::with_capacity(count);
    for number in 0..count {
        let (begin, begun) = oneshot::channel();
        let listeners = inherited.listen(capture)?;
        supervisor.keep("proxy", listeners.iter().map(|listener| listener.socket.as_fd()));
        let worker = Worker::start(number, listeners, Arc::clone(gateway), begun)
            .map_err(|error| other("cannot start a worker", &error))?;
        workers.push(worker);
        begins.push(begin);
    }
    // A socket that nobody took must not receive a connection.
    drop(inherited);
    packets::apply(capture)?;
    for begin in begins {
        // A worker that is gone has reported that itself.
        let _ = begin.send(());
    }
    Ok(workers)
}

fn open_metrics(settings: &Settings, capture: &Capture) -> io::Result<Option<TcpListener>> {
    let Some(address) = settings.metrics else { return Ok(None) };
    let bound = metrics::bind(address, &capture.interface_names());
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{address}: {error}"));
    bound.map(Some).map_err(named)
}

fn workers(settings: &Settings) -> usize {
    match settings.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    }
}

/// Opens the sources that the settings name. A file that cannot be read is an error here. A Vault
/// that cannot be reached is not: requests that depend on it are refused until it can.
fn open_sources(
    settings: &Settings,
    groups: &[Arc<Group>],
    resolver: &Resolver,
) -> Result<OpenedSources, DaemonError> {
    let (mut sources, mut vault_session) = (Sources::default(), None);
    let (mut refresh, mut max_stale) = (FILE_REFRESH, FILE_MAX_STALE);
    if let Some(vault) = &settings.vault {
        let source = VaultSource::new(vault, groups, resolver);
        let source = source.map_err(|error| other("[vault]", &error))?;
        vault_session = Some(source.session());
        sources.vault = Some(source);
        (refresh, max_stale) = (vault.refresh, vault.max_stale);
    }
    if let Some(SecretFile { path, key }) = &settings.secret_file {
        let file = FileSource::new(path.clone(), key.clone());
        file.check().map_err(|error| other(&path.display().to_string(), &error))?;
        sources.file = Some(file);
    }
    let secrets = SecretStore::new(Arc::new(sources), &[], refresh, max_stale);
    Ok(OpenedSources { secrets, vault: vault_session })
}

/// The secrets of all sources, and the session in Vault where it is one of them.
struct OpenedSources {
    secrets: Arc<SecretStore>,
    vault: Option<Arc<Session>>,
}

/// Logs where there is no route for an address family, and what agents will see of that. Each
/// answer checks it again, so that no restart is needed once there is a route.
fn report_routes(policy: &Policy, ipv6: bool) {
    let anywhere: [(&str, IpAddr); 2] = [("IPv4", ANYWHERE_4.into()), ("IPv6", ANYWHERE_6.into())];
    for (family, address) in anywhere.into_iter().filter(|(_, it)| ipv6 || it.is_ipv4()) {
        let uses = |group: &Arc<Group>| {
            group.has_family_of(address)
                && policy.tcp.iter().any(|tcp| tcp.groups.contains(&group.name))
        };
        if !dial::has_route(address) && policy.groups.iter().any(uses) {
            tracing::warn!(
                "no route to the {family} internet: for names of [[tcp]] agents are told addresses \
                 of the other family alone, until there is one"
            );
        }
    }
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
/// Interval at which the file of secrets is read where no Vault says otherwise.
const FILE_REFRESH: Duration = Duration::from_secs(30);
/// Time for which a value outlives a file that has become unreadable.
const FILE_MAX_STALE: Duration = Duration::from_secs(300);
/// Addresses that nobody has, so that their route is the default route (RFC 5737, RFC 3849).
const ANYWHERE_4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const ANYWHERE_6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
