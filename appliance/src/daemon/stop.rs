//! The end: nothing new, then what is open may finish, then it is cut. Where another daemon may follow
//! at once, what only one can have is given up first, and the drain goes on beside it.

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinHandle, time::timeout};

use super::{
    Daemon, Leases, Obeying, Records, Serving, cut_now, given_back, ground::Ground, health::Vitals,
    launcher::Launched, refused::Watcher, signals::Signals, wanted::Wanted, worker::Worker,
};
use crate::{phase::Phase, quarantine::Quarantine};

/// What only one daemon at a time can have: the control socket, the address of the metrics, the
/// keeping of the packet rules, the kernel's log of what it refused, and the right to listen, which is
/// among the vitals. The listeners and the sockets of DNS are shared: each daemon answers what it took.
struct Holds {
    obeying: Obeying,
    ground: Ground,
    watcher: Watcher,
    vitals: Vitals,
}

impl Daemon {
    /// Drains and ends.
    pub(super) async fn stop(self, mut signals: Signals, launched: Option<Launched>) {
        let Self { host, phase, rulebooks, leases, obeying, records, serving, vitals, .. } = self;
        let Leases { secrets, wanted, rotation, refreshing } = leases;
        let Serving { mut workers, dns, watcher, ground } = serving;
        let holds = Holds { obeying, ground, watcher, vitals };
        let drain_time = rulebooks.borrow().policy.limits.drain_time;
        tracing::info!(seconds = drain_time.as_secs(), "draining");
        let (alone, holds) = match launched {
            Some(launched) => {
                holds.end_serving(|| phase.send_replace(Phase::Drain)).await;
                make_way(&mut workers, launched).await;
                (true, None)
            }
            None => {
                phase.send_replace(Phase::Drain);
                (false, Some(holds))
            }
        };
        let mut joined = tokio::task::spawn_blocking(|| {
            dns.join();
            workers.into_iter().for_each(Worker::join);
        });
        tokio::select! {
            _ = &mut joined => {}
            () = tokio::time::sleep(drain_time) => tracing::info!("cutting what is still open"),
            () = signals.stop(), if !alone => {
                tracing::info!("told twice; cutting what is still open");
            }
            () = follow_marks(&host.quarantine, &wanted), if alone => {}
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
        drop((sink, rulebooks, wanted, secrets));
        writer.finish(AUDIT_TIME).await;
        tracing::info!("stopped");
    }
}

impl Holds {
    /// Gives up all of it, and takes no further order. What takes its time comes first, while names and
    /// connections are served still; new ones wait from `drain` on.
    async fn end_serving<T>(self, drain: impl FnOnce() -> T) {
        for task in self.obeying.tasks() {
            task.abort();
            // It was told to.
            let _ = task.await;
        }
        end_watcher(self.watcher).await;
        end_ground(self.ground).await;
        drain();
        drop(self.vitals);
    }

    /// Waits until all of it has ended by itself.
    async fn end(self) {
        end_watcher(self.watcher).await;
        end_ground(self.ground).await;
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

/// The next daemon may come from here on.
async fn make_way(workers: &mut [Worker], launched: Launched) {
    for worker in workers {
        worker.has_stopped_listening().await;
    }
    match launched.let_go() {
        Ok(()) => tracing::info!("the next daemon may start; draining beside it"),
        Err(error) => tracing::error!(%error, "cannot tell the launcher; the next daemon waits"),
    }
}

/// Orders go to the next daemon. A group that it quarantines is cut off here, too. Returns where that
/// cannot be seen: then nobody may go on.
async fn follow_marks(quarantine: &Arc<Quarantine>, wanted: &Wanted) {
    loop {
        tokio::time::sleep(LOOK).await;
        let marks = Arc::clone(quarantine);
        match tokio::task::spawn_blocking(move || marks.take_marks()).await {
            Ok(Ok(true)) => wanted.apply(),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "cannot see who is quarantined; cutting what is still open");
                return;
            }
            Err(_) => return,
        }
    }
}

async fn end_ground(ground: Ground) {
    let ended = tokio::task::spawn_blocking(|| ground.end());
    if timeout(GIVE_BACK_TIME, ended).await.is_err() {
        tracing::error!("the packet rules were still looked at in the end");
    }
}

async fn end_watcher(watcher: Watcher) {
    if tokio::task::spawn_blocking(|| watcher.end()).await.is_err() {
        tracing::error!("the last sums of refused packets were not written");
    }
}

/// How often the marks are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Time for flows to end once they are cut.
const CUT_TIME: Duration = Duration::from_secs(5);
/// Time for each of what has a task or a thread of its own to end.
const GIVE_BACK_TIME: Duration = Duration::from_secs(5);
/// Time for the last records to be written.
const AUDIT_TIME: Duration = Duration::from_secs(5);
