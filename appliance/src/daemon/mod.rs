//! The daemon's life, `run → drain → cut`: the owner of each part, and the order in which parts
//! start and end.
//!
//! Start: settings and policy, then everything that could fail, then the listeners, then the
//! packets that are sent to them, then ready. Any doubt is fatal, and everything installed before
//! it is closed again: rules without listeners refuse everything, and Vault gets its tokens back.
//!
//! Stop: nothing new is accepted, then open connections may finish, then they are cut. The rules
//! stay, so that the gateway is closed after the daemon.

mod control;
mod error;
mod farewell;
mod flow;
mod health;
mod host_checks;
mod issuing;
mod launcher;
mod metrics;
mod onboard;
mod orders;
mod policy_mark;
mod reach;
mod refused;
mod secret_demand;
mod signals;
mod start;
mod status;
mod stop;
mod supervisor;
mod worker;

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::RootCertStore;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, timeout},
};

pub use self::{
    error::DaemonError,
    launcher::{LAUNCHER, Launched, launch},
    supervisor::Surroundings,
};
use self::{
    error::other,
    health::Vitals,
    host_checks::HostChecks,
    orders::{Reload, Reloaded},
    policy_mark::PolicyMark,
    refused::Watcher,
    secret_demand::SecretDemand,
    signals::{DaemonSignals, SignalMeaning},
    supervisor::Supervisor,
    worker::Worker,
};
use crate::{
    audit::{Sink, Writer},
    ca::{Rotation, RuleCas},
    config::{self, Config, Settings},
    dial::OffLimits,
    dns,
    harden::{self, Confinement},
    health::{Health, HealthState},
    packets::{Capture, HeldName, InheritedListeners},
    phase::{Phase, Phases},
    policy::Policy,
    policy_snapshot::PolicySnapshot,
    quarantine::Quarantine,
    secrets::{FetchError, SecretSnapshot, SecretStore},
    tls,
};

/// Runs the daemon until it is told to stop. `ready_file` exists while connections are carried.
pub async fn run(
    config_file: &Path,
    ready_file: Option<&Path>,
    surroundings: Surroundings,
) -> Result<(), DaemonError> {
    harden::process().map_err(DaemonError::Other)?;
    raise_descriptors().map_err(|error| other("cannot raise the limit on open files", &error))?;
    let named = RefCell::new(Vec::new());
    let noting = |path: &Path| {
        named.borrow_mut().push(path.to_owned());
        config::read_bounded(path)
    };
    let config = config::load_by(config_file, &noting).map_err(DaemonError::Config)?;
    let reach = reach::reach(&config.settings, &named.into_inner(), ready_file);
    let signals = DaemonSignals::new().map_err(|error| other("cannot handle signals", &error))?;
    let supervisor = Supervisor::of(&surroundings, ready_file)
        .map_err(|error| other("cannot speak to the socket in NOTIFY_SOCKET", &error))?;
    supervisor
        .remove_ready_file()
        .map_err(|error| other("cannot remove the file that says ready", &error))?;
    let mut daemon = Daemon::start(
        config,
        config_file,
        reach,
        &supervisor,
        InheritedListeners::new(surroundings.handed),
    )
    .await?;
    if let Err(error) = supervisor.write_ready_file() {
        let Leases { rotation, refreshing, .. } = daemon.leases;
        give_back(&daemon.phase, rotation, refreshing).await;
        return Err(other("cannot write the file that says ready", &error));
    }
    supervisor.ready(&daemon.state());
    tracing::info!("ready");
    daemon.host.mark_policy();
    daemon.live(signals, &supervisor, surroundings.launched).await;
    Ok(())
}

/// All parts that live as long as the daemon.
struct Daemon {
    host: HostSetup,
    off_limits: OffLimits,
    vitals: Vitals,
    phase: watch::Sender<Phase>,
    policy_snapshots: watch::Sender<Arc<PolicySnapshot>>,
    /// The time at which the log was last told about the issuing CAs.
    cas_told: Instant,
    leases: Leases,
    obeying: Obeying,
    records: Records,
    serving: Serving,
}

/// The operator's configuration, and the parts of this machine that the daemon uses.
struct HostSetup {
    config_file: PathBuf,
    settings: Settings,
    capture: Capture,
    confinement: Arc<Confinement>,
    quarantine: Arc<Quarantine>,
    policy_mark: PolicyMark,
}

/// Secrets and CAs, which last for a time only.
struct Leases {
    secrets: Arc<SecretStore>,
    demand: Arc<SecretDemand>,
    /// Present if Vault signs the issuing CAs.
    rotation: Option<Rotation>,
    refreshing: JoinHandle<()>,
}

/// The tasks that listen to operators.
struct Obeying {
    reloads: mpsc::Receiver<Reload>,
    obeying: JoinHandle<()>,
    /// The task that serves the metrics.
    telling: Option<JoinHandle<()>>,
}

/// The audit.
struct Records {
    sink: Sink,
    writer: Writer,
}

/// The parts that serve agents, and those that watch their packets.
struct Serving {
    workers: Vec<Worker>,
    dns: dns::DnsServer,
    watcher: Watcher,
    host_checks: HostChecks,
    /// Tells an earlier daemon that this one accepts.
    serves: Option<HeldName>,
}

impl HostSetup {
    /// Reads the operator's present configuration.
    fn load(&self) -> Result<Config, config::Errors> {
        let reading = |path: &Path| {
            config::read_bounded(path).map_err(|error| self.confinement.explain(path, error))
        };
        config::load_by(&self.config_file, &reading)
    }

    /// Tells a daemon that drains beside this one that a policy was put in force.
    fn mark_policy(&mut self) {
        if let Err(error) = self.policy_mark.renew() {
            tracing::error!(
                %error,
                "state_dir cannot be written; a daemon that still drains goes by the policy before"
            );
        }
    }
}

impl Daemon {
    async fn live(
        mut self,
        mut signals: DaemonSignals,
        supervisor: &Supervisor,
        launched: Option<Launched>,
    ) {
        let every = self.host.settings.assert_every;
        let mut rounds = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut signs = supervisor.watchdog.map(tokio::time::interval);
        let mut audit = self.records.sink.watch();
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = Vec::new();
        let last = loop {
            tokio::select! {
                told = signals.next() => match told {
                    SignalMeaning::Reload => {
                        // The log has the outcome.
                        let _ = self.reload(supervisor).await;
                    }
                    last => break last,
                },
                Some(waiting) = self.obeying.reloads.recv() => {
                    // The one who asked may be gone.
                    let _ = waiting.send(self.reload(supervisor).await);
                }
                () = next_sign(&mut signs) => self.give_sign(supervisor),
                Ok(()) = audit.changed() => self.tell_state(supervisor),
                _ = looks.tick() => self.tell_news(supervisor, &mut told),
                turned = self.serving.host_checks.turned() => {
                    if let Err(error) = turned {
                        tracing::error!("stopping: {error}");
                        break SignalMeaning::Stop;
                    }
                    self.tell_state(supervisor);
                }
                _ = rounds.tick() => {
                    self.tell_state(supervisor);
                    self.tell_of_cas();
                }
            }
        };
        supervisor.stopping();
        self.stop(signals, last, launched).await;
    }

    /// Takes a new policy as a whole, or keeps the old one and logs why. Each reload is followed by
    /// a pause as long as it took, up to a bound, so that many in a row leave time for the rest of
    /// this runtime, such as the gateway's own DNS queries.
    ///
    /// The audit's file is reopened whether or not the policy is taken; a fault of the audit is
    /// returned.
    /// The audit's file is reopened whatever comes of the policy; what is wrong with it is said.
    async fn reload(&mut self, supervisor: &Supervisor) -> Result<Reloaded, DaemonError> {
        let begun = Instant::now();
        let before = self.leases.secrets.snapshot();
        supervisor.reloading();
        let audit = self.records.sink.reopen().await.err();
        let taken = self.take_new_policy().await;
        match &taken {
            Ok(()) => tracing::info!("reloaded"),
            Err(error) => tracing::error!("not reloaded, the old policy stays in force: {error}"),
        }
        supervisor.ready(&self.state());
        tokio::time::sleep(begun.elapsed().min(LONGEST_REST)).await;
        taken.map(|()| Reloaded { audit, lost: self.lost_since(&before) })
    }

    /// Returns the secrets that had a value until a reload, each with the reason why it has none,
    /// which is a text of its source.
    fn lost_since(&self, before: &SecretSnapshot) -> Vec<String> {
        let now = self.leases.secrets.snapshot();
        let lost = now.lost_since(before, Instant::now()).into_iter();
        let told = lost.map(|(group, secret)| {
            let why = now.failure(&group, &secret).map(FetchError::text);
            let why = why.unwrap_or("it cannot stand where the policy wants it");
            format!("{group}, {secret}: {why}")
        });
        told.collect()
    }

    /// Logs the state of the issuing CAs once a day.
    fn tell_of_cas(&mut self) {
        if self.cas_told.elapsed() >= DAY {
            self.cas_told = Instant::now();
            issuing::report(&self.policy_snapshots.borrow(), self.leases.rotation.is_some());
        }
    }

    fn tell_state(&self, supervisor: &Supervisor) {
        let health = self.vitals.health();
        supervisor.is(&self.line(&health), health.state() != HealthState::Closed);
    }

    /// Tells the service manager and the log of the health, if its kinds of causes have changed.
    fn tell_news(&self, supervisor: &Supervisor, told: &mut Vec<String>) {
        let health = self.vitals.health();
        let news = health.kinds_in_words();
        if news == *told {
            return;
        }
        supervisor.is(&self.line(&health), health.state() != HealthState::Closed);
        match health.state() {
            HealthState::Healthy => tracing::info!("{}", self.line(&health)),
            _ => tracing::warn!("{}; see `cloakroom status`", health.in_words()),
        }
        *told = news;
    }

    /// Sends a sign of life, unless only another daemon could mend a fault: without one, the
    /// service manager starts another daemon.
    fn give_sign(&self, supervisor: &Supervisor) {
        if self.vitals.is_alive() {
            supervisor.alive();
        }
    }

    /// Returns the health in one line; `cloakroom status` shows the details.
    fn state(&self) -> String {
        self.line(&self.vitals.health())
    }

    fn line(&self, health: &Health) -> String {
        if health.state() != HealthState::Healthy {
            return health.line();
        }
        let secrets = self.leases.secrets.snapshot().health(Instant::now());
        format!("healthy: all of {} secrets have a value", secrets.available)
    }

    async fn take_new_policy(&mut self) -> Result<(), DaemonError> {
        let Config { settings, policy } = self.host.load().map_err(DaemonError::Config)?;
        let capture = Capture::new(&policy, &settings);
        let fixed = self.fixed(&settings, &capture, &policy);
        if !fixed.is_empty() {
            let fixed = fixed.join(", ");
            return Err(DaemonError::Other(format!(
                "a reload cannot change {fixed}; restart the daemon, or put back what was there"
            )));
        }
        let cas = issuing::cas(&policy, &settings, self.leases.rotation.as_ref())?;
        // Read again, because the system may trust other CAs by now.
        let system_roots = Arc::new(tls::system_roots());
        let policy_snapshot = policy_snapshot(policy, cas.clone(), &system_roots)?;
        let policy_snapshot = policy_snapshot.after(&self.policy_snapshots.borrow());
        self.serving.host_checks.take(capture.clone()).await?;
        self.off_limits.control_plane().take_agents(capture.agents());
        self.off_limits.take_site(policy_snapshot.policy.site.clone());
        self.host.capture = capture;
        // A new binding's secret or a new CA is there before the first request can ask for it.
        // Until then requests are judged by the old policy and have the secrets that it names,
        // except those that a group's new token role may not read.
        self.leases.demand.add(&policy_snapshot.policy);
        self.leases.secrets.ask_again();
        issuing::first_round(
            &self.leases.secrets,
            self.leases.rotation.as_ref(),
            &cas,
            RELOAD_ROUND,
        )
        .await;
        let policy_snapshot = Arc::new(policy_snapshot);
        self.policy_snapshots.send_replace(Arc::clone(&policy_snapshot));
        self.leases.demand.take(&policy_snapshot.policy);
        self.host.mark_policy();
        self.cas_told = Instant::now();
        issuing::report(&policy_snapshot, self.leases.rotation.is_some());
        Ok(())
    }

    /// Returns the changes of a new configuration that would need a restart.
    fn fixed(&self, settings: &Settings, capture: &Capture, policy: &Policy) -> Vec<&'static str> {
        let mut fixed = self.host.settings.differences(settings);
        if capture.interface_names() != self.host.capture.interface_names() {
            fixed.push("the interfaces of [[group]]");
        }
        if policy.limits.connections != self.policy_snapshots.borrow().policy.limits.connections {
            fixed.push("connections in [limits]");
        }
        fixed
    }
}

/// Ends a start that failed after secrets were asked for: Vault gets its leases back.
async fn give_back(
    phase: &watch::Sender<Phase>,
    rotation: Option<Rotation>,
    refreshing: JoinHandle<()>,
) {
    cut_now(phase, rotation);
    given_back(refreshing).await;
}

fn cut_now(phase: &watch::Sender<Phase>, rotation: Option<Rotation>) {
    // Nothing logs in to Vault again once the token is given back.
    drop(rotation);
    phase.send_replace(Phase::Cut);
}

/// Waits until the sources of secrets have taken their leases back.
async fn given_back(refreshing: JoinHandle<()>) {
    if timeout(GIVE_BACK_TIME, refreshing).await.is_err() {
        tracing::warn!("the secrets' sources did not take back what they lent in time");
    }
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

/// Raises the limit of open descriptors to the system's maximum.
fn raise_descriptors() -> rustix::io::Result<()> {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })
}

fn policy_snapshot(
    policy: Policy,
    cas: RuleCas,
    system_roots: &Arc<RootCertStore>,
) -> Result<PolicySnapshot, DaemonError> {
    // Read only if a group needs them, so that they are not kept otherwise.
    let onboards = policy.groups.iter().any(|group| group.onboarding.is_some());
    let public = if onboards { tls::public_cas() } else { Vec::new() };
    PolicySnapshot::new(policy, cas, Arc::clone(system_roots), &public)
        .map_err(DaemonError::PolicySnapshot)
}

/// Interval at which health is checked, besides the changes that report themselves.
const LOOK: Duration = Duration::from_secs(1);
/// Interval at which the log says which issuing CAs are about to end.
const DAY: Duration = Duration::from_secs(86_400);
/// Longest pause after a reload.
const LONGEST_REST: Duration = Duration::from_millis(200);
/// Time that a reload waits for the values that are new in it.
const RELOAD_ROUND: Duration = Duration::from_secs(2);
/// Time for the sources of secrets to take their leases back.
const GIVE_BACK_TIME: Duration = Duration::from_secs(5);
