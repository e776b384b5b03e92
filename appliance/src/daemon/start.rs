//! The start: everything that could fail, then the secrets, then the listeners, then the packets
//! that are sent to them. Any doubt is fatal, and what was made before it is closed with it: Vault
//! gets back what it lent.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
};

use super::{
    Daemon, DaemonError, control::Control, cut, flow::Gateway, give_back, ground::Ground,
    health::Vitals, issuing, metrics, orders::Orders, other, refused::Watcher, rulebook,
    supervisor::Supervisor, wanted::Wanted, worker::Worker,
};
use crate::{
    accept::{FlowIds, Places},
    audit::{self, Sink},
    config::{Config, SecretFile, Settings},
    dial::{self, Resolver},
    dns::{self, Desk},
    harden::{Confinement, Enforced, Reach},
    intercept::Means,
    packets::{self, Capture, Kept, PacketLog, PacketsError},
    phase::Phases,
    policy::{Group, Policy},
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
        kept: Kept,
    ) -> Result<Self, DaemonError> {
        let Config { settings, policy } = config;
        let control = Control::bind(&settings.control).map_err(|error| {
            other(&format!("the control socket {}", settings.control.display()), &error)
        })?;
        let quarantine = Quarantine::open(&settings.state_dir)
            .map_err(|error| DaemonError::Other(error.to_string()))?;
        audit::make_folder(&settings.audit).map_err(|error| {
            other(&format!("cannot make the folder of the audit {}", settings.audit), &error)
        })?;
        let capture = Capture::new(&policy, &settings);
        // Whoever else answers at port 53 can be named now: Landlock hides what other processes hold.
        let in_the_way = packets::dns_sockets(&capture).err();
        // From here on threads are started.
        let confinement = Arc::new(confine(reach)?);
        packets::prepare(&capture).await?;
        packets::misfits(&capture).iter().for_each(|misfit| tracing::warn!("{misfit}"));
        report_routes(&policy, capture.ipv6);
        let system_roots = Arc::new(tls::system_roots());
        // A listener holds a place while it waits for the connection that will take it.
        let waiting = workers(&settings) * capture.listeners();
        let places = Places::new(policy.limits.connections + waiting);
        let resolver = Resolver::open(&settings, &policy.site, &system_roots);
        let resolver = resolver.map_err(DaemonError::Other)?;
        let off_limits = resolver.off_limits().clone();
        off_limits.control_plane().take_agents(capture.agents());
        let (secrets, vault) = open_secrets(&settings, &policy.groups, &resolver)?;
        let sources = (Arc::clone(&secrets), vault.clone());
        let wanted = Wanted::new(sources, quarantine.watch(), &policy);
        let wanted = Arc::new(wanted);
        let rotation = issuing::open_rotation(&settings, vault.as_ref())?;
        let cas = issuing::cas(&policy, &settings, rotation.as_ref())?;
        let rulebook = rulebook(policy, cas.clone(), &system_roots)?;
        let (audit, writer) = Sink::open(&settings.audit).map_err(|error| {
            other(&format!("cannot write the audit {}", settings.audit), &error)
        })?;
        let management = open_metrics(&settings, &capture).await?;
        let (phase, phases) = Phases::new();
        let (rulebooks, in_force) = watch::channel(Arc::new(rulebook));
        let means = Means { audit: audit.clone(), secrets: Arc::clone(&secrets), resolver };
        let gateway = Arc::new(Gateway {
            means,
            rulebook: in_force,
            phases: phases.clone(),
            quarantined: quarantine.watch(),
            places,
            flow_ids: FlowIds::new()
                .map_err(|error| other("cannot make a key to name flows with", &error))?,
            proxy_port: settings.proxy_port,
        });
        let claim = Arc::new(packets::claim(&kept, &capture)?);
        let log = PacketLog::open(capture.nflog_group)?;
        if let Some(error @ PacketsError::PortInUse { .. }) = in_the_way {
            return Err(error.into());
        }
        let (in_force, places) = (gateway.rulebook.clone(), Arc::clone(&gateway.places));
        let watcher = Watcher::start(log, audit.clone(), in_force, places, capture.ipv6)
            .map_err(|error| other("cannot start a thread", &error))?;
        // From here on there are tokens in Vault, which a start that fails has to give back.
        let refreshing = tokio::spawn(Arc::clone(&secrets).run(cut(phases.clone())));
        issuing::first_round(&secrets, rotation.as_ref(), &cas, FIRST_ROUND).await;
        let captured = capture_packets(&capture, &settings, &gateway, (supervisor, kept));
        let Captured { workers, dns } = match captured {
            Ok(captured) => captured,
            Err(error) => {
                give_back(&phase, rotation, refreshing).await;
                return Err(error);
            }
        };
        report_secrets(&secrets);
        issuing::report(rotation.as_ref());
        let (to_reload, reloads) = mpsc::channel(1);
        let asserted = (settings.assert_every, Arc::clone(&claim), audit.clone());
        let ground = Ground::start(capture.clone(), asserted).await;
        let ground = match ground {
            Ok(ground) => ground,
            Err(error) => {
                give_back(&phase, rotation, refreshing).await;
                return Err(error);
            }
        };
        let vitals = Vitals {
            gateway: Arc::clone(&gateway),
            doubt: ground.doubt(),
            marks: ground.marks(),
            claim,
            landlock: confinement.enforced(),
            vault_signs: rotation.is_some(),
        };
        let orders = Orders {
            gateway,
            quarantine: Arc::new(quarantine),
            wanted: Arc::clone(&wanted),
            vitals: vitals.clone(),
            reloads: to_reload,
        };
        if let Some(listener) = management {
            tokio::spawn(metrics::serve(listener, vitals.clone(), cut(phases.clone())));
        }
        let obeying = tokio::spawn(control.serve(orders, cut(phases)));
        Ok(Self {
            config_file: config_file.to_owned(),
            confinement,
            settings,
            capture,
            off_limits,
            ground,
            vitals,
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

async fn open_metrics(
    settings: &Settings,
    capture: &Capture,
) -> Result<Option<TcpListener>, DaemonError> {
    let Some(address) = settings.metrics else { return Ok(None) };
    let bound = metrics::bind(address, &capture.interface_names()).await;
    bound.map(Some).map_err(|error| other(&format!("metrics on {address}"), &error))
}

fn workers(settings: &Settings) -> usize {
    match settings.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    }
}

/// Opens the sources that the settings name. A file that cannot be read is an error here; a Vault
/// that cannot be reached is not: what depends on it is refused until it can.
fn open_secrets(
    settings: &Settings,
    groups: &[Arc<Group>],
    resolver: &Resolver,
) -> Result<(Arc<SecretStore>, Option<Arc<Session>>), DaemonError> {
    let (mut sources, mut session) = (Sources::default(), None);
    let (mut refresh, mut max_stale) = (FILE_REFRESH, FILE_MAX_STALE);
    if let Some(vault) = &settings.vault {
        let source = VaultSource::new(vault, groups, resolver);
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

/// Says where a family leads nowhere, and what of it agents will see. It is looked at again with each
/// answer, so that nothing has to be started again when there is a route.
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

/// Time that the start waits for the first values. Without them the gateway comes up all the
/// same and answers 503 where they are needed.
const FIRST_ROUND: Duration = Duration::from_secs(5);
/// How often the file of secrets is read where no Vault says otherwise.
const FILE_REFRESH: Duration = Duration::from_secs(30);
/// How long a value outlives a file that has become unreadable.
const FILE_MAX_STALE: Duration = Duration::from_secs(300);
/// Addresses that nobody has, so that the way to them is that to everybody (RFC 5737, RFC 3849).
const ANYWHERE_4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const ANYWHERE_6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
