//! The host checks: the conditions that the packet rules need, checked while the daemon runs. Rules
//! and guard are checked after each change that nf_tables reports, and everything is checked every
//! `assert_every`.
//!
//! Somebody may change a kernel setting or a rule under a running gateway. A deviation that the
//! daemon may correct is corrected and logged. Where it may not, the gateway closes to new
//! connections, because its guarantees hold only under these conditions. Connections that were
//! accepted go on: each has its permit.
//!
//! The checks have a thread of their own: nothing in the daemon delays them, and a flood of changes
//! takes no time from anything else.

use std::{
    io,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::{
    runtime::Builder,
    sync::{mpsc, oneshot, watch},
    time::{Interval, MissedTickBehavior},
};

use super::error::{DaemonError, other};
use crate::{
    audit::{self, HostCheckEvent, Sink},
    packets::{self, Capture, ForeignRules, ListenerClaim, Monitor, PacketsError},
};

/// The daemon's handle of the thread.
#[derive(Debug)]
pub(super) struct HostChecks {
    orders: mpsc::Sender<InstallRequest>,
    doubt: watch::Receiver<Option<String>>,
    foreign: watch::Receiver<ForeignRules>,
    failed: oneshot::Receiver<PacketsError>,
    thread: JoinHandle<()>,
}

/// The capture of a new policy, and the channel that reports whether it is in force.
struct InstallRequest {
    capture: Capture,
    done: oneshot::Sender<Result<(), PacketsError>>,
}

impl HostChecks {
    /// Starts to check the rules of this capture, which are in force. It listens for changes before
    /// the first check, so that none is missed.
    pub(super) async fn start(
        capture: Capture,
        every: Duration,
        claim: Arc<ListenerClaim>,
        audit: Sink,
    ) -> Result<Self, DaemonError> {
        let (orders, ordered) = mpsc::channel(1);
        let (failing, failed) = oneshot::channel();
        let (listening, listens) = oneshot::channel();
        let doubting = watch::Sender::default();
        let doubt = doubting.subscribe();
        let finding = watch::Sender::default();
        let foreign = finding.subscribe();
        let keeper = Keeper::new(capture, doubting, finding, claim, audit);
        let keep = async move || {
            let (said, monitor) = match Monitor::open() {
                Ok(monitor) => (Ok(()), Some(monitor)),
                Err(error) => (Err(error), None),
            };
            // A daemon that has gone needs no answer.
            let _ = listening.send(said);
            let Some(monitor) = monitor else { return };
            if let Err(error) = keeper.keep(monitor, ordered, every).await {
                let _ = failing.send(error);
            }
        };
        let thread = thread(keep).map_err(|error| other("cannot start a thread", &error))?;
        listens.await.map_err(|_| gone())??;
        Ok(Self { orders, doubt, foreign, failed, thread })
    }

    /// Returns why the gateway is closed to new connections, if it is.
    pub(super) fn doubt(&self) -> watch::Receiver<Option<String>> {
        self.doubt.clone()
    }

    /// Returns the rules of other programs that may keep captured packets from the gateway.
    pub(super) fn foreign(&self) -> watch::Receiver<ForeignRules> {
        self.foreign.clone()
    }

    /// Installs the rules of a new policy. If that fails, the old ones stay in force.
    pub(super) async fn take(&self, capture: Capture) -> Result<(), DaemonError> {
        let (done, told) = oneshot::channel();
        let request = InstallRequest { capture, done };
        self.orders.send(request).await.map_err(|_| gone())?;
        Ok(told.await.map_err(|_| gone())??)
    }

    /// Waits until the gateway closes, or opens again. An error ends the daemon: the rules cannot
    /// be installed any more, so nothing is certain.
    pub(super) async fn turned(&mut self) -> Result<(), String> {
        tokio::select! {
            Ok(()) = self.doubt.changed() => Ok(()),
            failed = &mut self.failed => Err(match failed {
                Ok(error) => error.to_string(),
                Err(_) => gone().to_string(),
            }),
        }
    }

    /// Ends the checks; the rules stay.
    pub(super) fn end(self) {
        drop(self.orders);
        if self.thread.join().is_err() {
            tracing::error!("the thread that asserts the packet rules panicked");
        }
    }
}

fn thread(keep: impl AsyncFnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("rules".into()).spawn(move || runtime.block_on(keep()))
}

fn gone() -> DaemonError {
    DaemonError::Other("the thread that asserts the packet rules has ended".to_owned())
}

/// The state of the thread.
struct Keeper {
    capture: Capture,
    /// The installed part of the capture: all of it, or no port where the gateway is closed.
    in_force: Capture,
    /// The faults of the guard.
    unguarded: Option<String>,
    /// The faults of the kernel's settings or the routes.
    unsettled: Option<String>,
    /// The fault of rules that cannot be installed.
    uninstalled: Option<Uninstalled>,
    /// The first of these three, which keeps new connections out.
    doubt: watch::Sender<Option<String>>,
    /// The rules of other programs that may keep captured packets from the gateway.
    foreign: watch::Sender<ForeignRules>,
    claim: Arc<ListenerClaim>,
    audit: Sink,
}

/// The fault of rules that cannot be installed.
struct Uninstalled {
    since: Instant,
    error: String,
}

impl Keeper {
    fn new(
        capture: Capture,
        doubt: watch::Sender<Option<String>>,
        foreign: watch::Sender<ForeignRules>,
        claim: Arc<ListenerClaim>,
        audit: Sink,
    ) -> Self {
        let in_force = capture.clone();
        let (unguarded, unsettled, uninstalled) = (None, None, None);
        Self { capture, in_force, unguarded, unsettled, uninstalled, doubt, foreign, claim, audit }
    }

    async fn keep(
        mut self,
        mut monitor: Monitor,
        mut orders: mpsc::Receiver<InstallRequest>,
        every: Duration,
    ) -> Result<(), PacketsError> {
        let mut rounds = rounds(every);
        self.look_for_others();
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(InstallRequest { capture, done }) => {
                        // The one who asked may be gone.
                        let _ = done.send(self.take(capture));
                    }
                    None => return Ok(()),
                },
                () = monitor.changed() => self.look(&mut monitor)?,
                _ = rounds.tick() => {
                    self.look_for_others();
                    self.assert_settings().await;
                    self.look(&mut monitor)?;
                }
            }
        }
    }

    fn take(&mut self, capture: Capture) -> Result<(), PacketsError> {
        self.install(self.rules(&capture))?;
        self.capture = capture;
        Ok(())
    }

    fn install(&mut self, rules: Capture) -> Result<(), PacketsError> {
        packets::apply(&rules)?;
        self.in_force = rules;
        Ok(())
    }

    /// Checks and corrects the kernel's settings and the routes, whose changes nothing reports, and
    /// keeps their faults.
    async fn assert_settings(&mut self) {
        let asserted = packets::assert_settings(&self.capture).await;
        self.unsettled = asserted.err().map(|error| error.to_string());
        for name in self.claim.unserved() {
            tracing::error!(
                "{name} was made again, and nobody listens on it: connections of its agents are \
                 refused; restart the daemon"
            );
        }
    }

    /// Looks for rules of others that are in the way, and logs those that were not there before.
    fn look_for_others(&self) {
        let found = match packets::foreign_rules(&self.capture.interface_names()) {
            Ok(found) => found,
            Err(error) => return tracing::warn!("{error}"),
        };
        let before = self.foreign.borrow().clone();
        for mark in found.marks.iter().filter(|it| !before.marks.contains(it)) {
            tracing::warn!("{mark}");
        }
        for filter in found.filters.iter().filter(|it| !before.filters.contains(it)) {
            tracing::warn!("{filter}");
        }
        self.foreign.send_replace(found);
    }

    /// Checks that guard and rules are there, and installs the rules where they are not. An error
    /// means that this has failed for too long.
    fn look(&mut self, monitor: &mut Monitor) -> Result<(), PacketsError> {
        let begun = Instant::now();
        let installed = self.assert_rules();
        monitor.looked(begun.elapsed());
        let Err(error) = installed else { return Ok(()) };
        // Another program may have changed them meanwhile.
        tracing::debug!("{error}");
        monitor.look_again();
        let fault = || Uninstalled { since: begun, error: error.to_string() };
        let failing = self.uninstalled.get_or_insert_with(fault).since.elapsed();
        self.settle();
        if failing > UNINSTALLED_TIME { Err(error) } else { Ok(()) }
    }

    /// Installs the rules. Where a condition is missing that the daemon may not restore, the
    /// gateway closes: no port is captured, so every new connection is reset. It opens again by
    /// itself.
    fn assert_rules(&mut self) -> Result<(), PacketsError> {
        let changed = packets::verify(&self.in_force).err();
        let guarded = packets::require_guard(&self.capture);
        self.unguarded = guarded.err().map(|error| error.to_string());
        let wanted = self.rules(&self.capture);
        if changed.is_some() || wanted != self.in_force {
            self.install(wanted)?;
        }
        self.uninstalled = None;
        if let Some(error) = &changed {
            tracing::error!("{error}; the packet rules are installed again");
            self.record(&HostCheckEvent::Repaired(error));
        }
        self.settle();
        Ok(())
    }

    /// Publishes the doubt where it has changed: the gateway closed, and why, or opened again.
    fn settle(&self) {
        let doubt = self.doubt().cloned();
        let is_new = self.doubt.send_if_modified(|told| {
            let differs = *told != doubt;
            told.clone_from(&doubt);
            differs
        });
        match doubt {
            Some(doubt) if is_new => {
                tracing::error!("closed to new connections: {doubt}");
                self.record(&HostCheckEvent::Closed(&doubt));
            }
            None if is_new => {
                tracing::info!("open again: what the packet rules lean on is as it has to be");
                self.record(&HostCheckEvent::Open);
            }
            _ => {}
        }
    }

    fn record(&self, host_check: &HostCheckEvent<'_>) {
        match self.audit.reserve() {
            Ok(slot) => audit::host_check(slot, host_check),
            // Without an audit everything is refused, and the log has the fault.
            Err(_) => tracing::warn!("the audit takes no record of that"),
        }
    }

    fn doubt(&self) -> Option<&String> {
        let uninstalled = self.uninstalled.as_ref();
        let lasting = uninstalled.filter(|fault| fault.since.elapsed() > RACE_TIME);
        let uninstalled = lasting.map(|fault| &fault.error);
        self.unguarded.as_ref().or(self.unsettled.as_ref()).or(uninstalled)
    }

    /// Returns the capture to install: as configured, or without a port where the gateway is
    /// closed.
    fn rules(&self, capture: &Capture) -> Capture {
        if self.unguarded.is_some() || self.unsettled.is_some() {
            capture.closed()
        } else {
            capture.clone()
        }
    }
}

fn rounds(every: Duration) -> Interval {
    let mut rounds = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    rounds
}

/// Time for which installing the rules may fail in a row, as it can while another program changes
/// them, before the gateway counts as closed.
const RACE_TIME: Duration = Duration::from_secs(1);
/// Time for which it may fail before the daemon stops.
const UNINSTALLED_TIME: Duration = Duration::from_secs(10);
