//! The end: nothing new, then what is open may finish, then it is cut. Where another daemon may
//! follow at once, what only one can have is given up first; this one accepts until that one does,
//! and drains beside it.

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinHandle, time::timeout};

use super::{
    Daemon, Leases, Obeying, Records, Serving, cut_now, given_back,
    health::Vitals,
    host_checks::HostChecks,
    launcher::Launched,
    refused::Watcher,
    secret_demand::SecretDemand,
    signals::{DaemonSignals, SignalMeaning},
    worker::Worker,
};
use crate::{packets::DaemonState, phase::Phase, quarantine::Quarantine};

/// What only one daemon at a time can have: the control socket, the address of the metrics, the
/// keeping of the packet rules, the kernel's log of what it refused, and the right to listen, which
/// is among the vitals. The listeners and the sockets of DNS are shared: each daemon answers what
/// it took.
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
        told: SignalMeaning,
        launched: Option<Launched>,
    ) {
        let Self {
            host, phase, policy_snapshots, leases, obeying, records, serving, vitals, ..
        } = self;
        let Leases { secrets, demand, rotation, refreshing } = leases;
        let Serving { mut workers, dns, watcher, host_checks, serves } = serving;
        let holds = Holds { obeying, host_checks, watcher, vitals };
        let proxy_port = host.settings.proxy_port;
        let mut drain_time = policy_snapshots.borrow().policy.limits.drain_time;
        let (alone, holds) = match launched {
            Some(launched) => {
                holds.give_up().await;
                drop(serves);
                // Where a stranger holds the name, the next one does not wait for this.
                let still = DaemonState::AcceptsStill.hold(proxy_port);
                let patience = match told {
                    SignalMeaning::End => Duration::ZERO,
                    _ => SUCCESSOR.min(drain_time),
                };
                tokio::select! {
                    () = make_way(proxy_port, patience, launched) => {}
                    () = follow_marks(&host.quarantine, &demand) => {}
                    () = signals.stop() => drain_time = Duration::ZERO,
                }
                phase.send_replace(Phase::Drain);
                for worker in &mut workers {
                    // One that is too busy to hear of it has its cut like the others.
                    if timeout(GIVE_BACK_TIME, worker.has_stopped_listening()).await.is_err() {
                        tracing::error!("a worker did not stop listening in time");
                        break;
                    }
                }
                drop(still);
                (true, None)
            }
            None => {
                phase.send_replace(Phase::Drain);
                (false, Some(holds))
            }
        };
        tracing::info!(seconds = drain_time.as_secs(), "draining");
        let mut joined = tokio::task::spawn_blocking(|| {
            dns.join();
            workers.into_iter().for_each(Worker::join);
        });
        tokio::select! {
            _ = &mut joined => {}
            () = tokio::time::sleep(drain_time) => tracing::info!("cutting what is still open"),
            () = signals.stop() => tracing::info!("told twice; cutting what is still open"),
            () = follow_marks(&host.quarantine, &demand), if alone => {}
        }
        cut_now(&phase, rotation);
        if !joined.is_finished() && timeout(CUT_TIME, joined).await.is_err() {
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

impl Holds {
    /// Gives up all of it, and takes no further order. Names and connections are served still.
    async fn give_up(self) {
        for task in self.obeying.tasks() {
            task.abort();
            // It was told to.
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

/// The next daemon may come from here on. Until it accepts this one does, which takes the start of
/// the next one from nobody's time; whether one comes at all is not known, so this has an end.
async fn make_way(port: u16, patience: Duration, launched: Launched) {
    if let Err(error) = launched.let_go() {
        return tracing::error!(%error, "cannot tell the launcher; the next daemon waits");
    }
    if patience.is_zero() {
        return tracing::info!("no other daemon is to follow");
    }
    tracing::info!("the next daemon may start");
    let comes = async {
        while !DaemonState::Serves.is_said(port) {
            tokio::time::sleep(LISTEN_EVERY).await;
        }
    };
    if timeout(patience, comes).await.is_err() {
        tracing::info!("no other daemon serves yet; new connections wait for one");
    }
}

/// Orders go to the next daemon. A group that it quarantines is cut off here, too. Returns where
/// that cannot be seen: then nobody may go on.
async fn follow_marks(quarantine: &Arc<Quarantine>, demand: &SecretDemand) {
    loop {
        tokio::time::sleep(LOOK).await;
        let marks = Arc::clone(quarantine);
        match tokio::task::spawn_blocking(move || marks.take_marks()).await {
            Ok(Ok(true)) => demand.apply(),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "cannot see who is quarantined; cutting what is still open");
                return;
            }
            Err(_) => return,
        }
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

/// Time for the next daemon to come, the first round of its secrets among it.
const SUCCESSOR: Duration = Duration::from_secs(10);
/// How often it is asked for.
const LISTEN_EVERY: Duration = Duration::from_millis(10);
/// How often the marks are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Time for flows to end once they are cut.
const CUT_TIME: Duration = Duration::from_secs(5);
/// Time for each of what has a task or a thread of its own to end.
const GIVE_BACK_TIME: Duration = Duration::from_secs(5);
/// Time for the last records to be written.
const AUDIT_TIME: Duration = Duration::from_secs(5);
