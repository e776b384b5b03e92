//! The end of the daemon: nothing new is accepted, then open connections may finish, then they are
//! cut. Where another daemon may follow at once, this one first gives up everything that only one
//! can have; it accepts until the next one does, and drains beside it.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinHandle, time::timeout};

use super::{
    Daemon, DaemonError, HostSetup, Leases, Obeying, Records, Serving, cut_now, given_back,
    health::Vitals,
    host_checks::HostChecks,
    launcher::Launched,
    other, policy_snapshot,
    refused::Watcher,
    secret_demand::SecretDemand,
    signals::{DaemonSignals, SignalMeaning},
    worker::Worker,
};
use crate::{
    ca::RuleCas, dial::OffLimits, dns::DnsServer, packets::DaemonState, phase::Phase,
    policy_snapshot::PolicySnapshot, tls,
};

/// Everything that only one daemon at a time can have: the control socket, the address of the
/// metrics, the keeping of the packet rules, the kernel's log of its refusals, and the right to
/// listen, which is among the vitals. The listeners and the sockets of DNS are shared: each daemon
/// answers the connections and queries that it took.
struct Holds {
    obeying: Obeying,
    host_checks: HostChecks,
    watcher: Watcher,
    vitals: Vitals,
}

impl Daemon {
    /// Drains and ends.
    pub(super) async fn stop(
        self,
        mut signals: DaemonSignals,
        signal: SignalMeaning,
        launched: Option<Launched>,
    ) {
        let Self {
            mut host,
            off_limits,
            phase,
            policy_snapshots,
            leases,
            obeying,
            records,
            serving,
            vitals,
            ..
        } = self;
        let Leases { secrets, demand, rotation, refreshing } = leases;
        let Serving { mut workers, dns, watcher, host_checks, serves } = serving;
        let holds = Holds { obeying, host_checks, watcher, vitals };
        let drain_time = policy_snapshots.borrow().policy.limits.drain_time;
        let proxy_port = host.settings.proxy_port;
        let mut successor = Successor {
            host: &mut host,
            off_limits: &off_limits,
            policy_snapshots: &policy_snapshots,
            demand: &demand,
        };
        let (drain_time, holds, follows) = match launched {
            Some(launched) => {
                holds.give_up().await;
                drop(serves);
                // Where a stranger holds the name, the next daemon does not wait for this.
                let still = DaemonState::AcceptsStill.hold(proxy_port);
                let way = make_way(proxy_port, wait_for_successor(signal, drain_time), launched);
                let is_cut_short = accept_until(way, &mut successor, &mut signals).await;
                phase.send_replace(Phase::Drain);
                stop_listening(&mut workers).await;
                drop(still);
                let drain_time = if is_cut_short { Duration::ZERO } else { drain_time };
                (drain_time, None, Some(successor))
            }
            None => {
                phase.send_replace(Phase::Drain);
                (drain_time, Some(holds), None)
            }
        };
        let mut flows = join(dns, workers);
        drain(&mut flows, drain_time, follows, &mut signals).await;
        cut_now(&phase, rotation);
        if !flows.is_finished() && timeout(CUT_TIME, flows).await.is_err() {
            tracing::error!("flows did not end; leaving them to the kernel");
        }
        given_back(refreshing).await;
        if let Some(holds) = holds {
            holds.end().await;
        }
        let Records { sink, writer } = records;
        drop((sink, policy_snapshots, demand, secrets));
        writer.finish(AUDIT_TIME).await;
        tracing::info!("stopped");
    }
}

/// Returns the longest time for which the next daemon is waited for.
fn wait_for_successor(signal: SignalMeaning, drain_time: Duration) -> Duration {
    match signal {
        SignalMeaning::End => Duration::ZERO,
        _ => SUCCESSOR.min(drain_time),
    }
}

/// Accepts until the way is made for the next daemon. Returns whether open connections are to be
/// cut at once: a second signal says so, or it cannot be seen what the next daemon forbids.
async fn accept_until(
    way: impl Future<Output = ()>,
    successor: &mut Successor<'_>,
    signals: &mut DaemonSignals,
) -> bool {
    tokio::select! {
        () = way => false,
        () = successor.follow() => true,
        () = signals.stop() => true,
    }
}

/// Waits for the threads that carry flows and answer queries.
fn join(dns: DnsServer, workers: Vec<Worker>) -> JoinHandle<()> {
    tokio::task::spawn_blocking(|| {
        dns.join();
        workers.into_iter().for_each(Worker::join);
    })
}

/// Lets open connections finish: for the drain time, until a second signal, or until it cannot be
/// seen any more what the next daemon forbids.
async fn drain(
    flows: &mut JoinHandle<()>,
    drain_time: Duration,
    mut successor: Option<Successor<'_>>,
    signals: &mut DaemonSignals,
) {
    tracing::info!(seconds = drain_time.as_secs(), "draining");
    let lost_sight = async {
        match &mut successor {
            Some(successor) => successor.follow().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = flows => {}
        () = tokio::time::sleep(drain_time) => tracing::info!("cutting what is still open"),
        () = signals.stop() => tracing::info!("told twice; cutting what is still open"),
        () = lost_sight => {}
    }
}

impl Holds {
    /// Gives up all of it, and takes no further order. DNS and connections are still served.
    async fn give_up(self) {
        for task in self.obeying.tasks() {
            task.abort();
            // The task was told to end.
            let _ = task.await;
        }
        end_watcher(self.watcher).await;
        end_host_checks(self.host_checks).await;
        drop(self.vitals);
    }

    /// Waits until all of it has ended by itself.
    async fn end(self) {
        end_watcher(self.watcher).await;
        end_host_checks(self.host_checks).await;
        // Each holds a sink of the audit, and so do the vitals.
        for task in self.obeying.tasks() {
            if timeout(GIVE_BACK_TIME, task).await.is_err() {
                tracing::error!(
                    "the control socket or the management address did not close in time"
                );
            }
        }
        drop(self.vitals);
    }
}

impl Obeying {
    fn tasks(self) -> impl Iterator<Item = JoinHandle<()>> {
        [Some(self.obeying), self.telling].into_iter().flatten()
    }
}

/// Waits until the workers listen no more. A worker that is too busy to learn of it is cut like the
/// others.
async fn stop_listening(workers: &mut [Worker]) {
    for worker in workers {
        if timeout(GIVE_BACK_TIME, worker.has_stopped_listening()).await.is_err() {
            return tracing::error!("a worker did not stop listening in time");
        }
    }
}

/// Lets the next daemon come from here on. This daemon accepts until the next one does, so that its
/// start interrupts nobody. Since it is not known whether one comes at all, the wait has a limit.
async fn make_way(port: u16, limit: Duration, launched: Launched) {
    if let Err(error) = launched.let_go() {
        return tracing::error!(%error, "cannot tell the launcher; the next daemon waits");
    }
    if limit.is_zero() {
        return tracing::info!("no other daemon is to follow");
    }
    tracing::info!("the next daemon may start");
    let comes = async {
        while !DaemonState::Serves.is_said(port) {
            tokio::time::sleep(LISTEN_EVERY).await;
        }
    };
    if timeout(limit, comes).await.is_err() {
        tracing::info!("no other daemon serves yet; new connections wait for one");
    }
}

/// The next daemon, which takes the orders, as seen from the one that drains beside it.
struct Successor<'a> {
    host: &'a mut HostSetup,
    off_limits: &'a OffLimits,
    policy_snapshots: &'a watch::Sender<Arc<PolicySnapshot>>,
    demand: &'a SecretDemand,
}

impl Successor<'_> {
    /// Cuts off a group that the next daemon quarantines, and flows that its policy forbids.
    /// Returns where that cannot be seen, because then nobody may go on.
    async fn follow(&mut self) {
        loop {
            tokio::time::sleep(LOOK).await;
            if let Err(error) = self.look().await {
                tracing::error!("cutting what is still open: {error}");
                return;
            }
        }
    }

    async fn look(&mut self) -> Result<(), DaemonError> {
        let marks = Arc::clone(&self.host.quarantine);
        let marked = tokio::task::spawn_blocking(move || marks.take_marks()).await;
        let marked = marked.map_err(|error| other("nobody looked who is quarantined", &error))?;
        if marked.map_err(|error| other("cannot see who is quarantined", &error))? {
            self.demand.apply();
        }
        let mark = self.host.policy_mark.is_new();
        if mark.map_err(|error| other("cannot see whether there is another policy", &error))? {
            self.take_policy()?;
        }
        Ok(())
    }

    /// Takes the next daemon's policy for the connections that are open here. Opens no CA, because
    /// nothing new begins here.
    fn take_policy(&self) -> Result<(), DaemonError> {
        let policy = self.host.load().map_err(DaemonError::Config)?.policy;
        let before = Arc::clone(&self.policy_snapshots.borrow());
        let roots = Arc::new(tls::system_roots());
        let now = policy_snapshot(policy, RuleCas::new(), &roots)?.after(&before);
        if now.forbids_no_more_than(&before) {
            return Ok(());
        }
        self.off_limits.take_site(now.policy.site.clone());
        self.policy_snapshots.send_replace(Arc::new(now));
        tracing::info!("the next daemon has another policy; what it forbids is cut here, too");
        Ok(())
    }
}

async fn end_host_checks(host_checks: HostChecks) {
    let ended = tokio::task::spawn_blocking(|| host_checks.end());
    if timeout(GIVE_BACK_TIME, ended).await.is_err() {
        tracing::error!("the packet rules were still looked at in the end");
    }
}

async fn end_watcher(watcher: Watcher) {
    if tokio::task::spawn_blocking(|| watcher.end()).await.is_err() {
        tracing::error!("the last sums of refused packets were not written");
    }
}

/// Time for the next daemon to come, including the first round of its secrets.
const SUCCESSOR: Duration = Duration::from_secs(10);
/// Interval at which its presence is checked.
const LISTEN_EVERY: Duration = Duration::from_millis(10);
/// Interval at which the marks are checked.
const LOOK: Duration = Duration::from_millis(500);
/// Time for flows to end once they are cut.
const CUT_TIME: Duration = Duration::from_secs(5);
/// Time for each part with a task or a thread of its own to end.
const GIVE_BACK_TIME: Duration = Duration::from_secs(5);
/// Time for the last records to be written.
const AUDIT_TIME: Duration = Duration::from_secs(5);
