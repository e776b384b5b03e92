//! Executes the orders that arrive at the control socket.
//!
//! A quarantine takes effect first and is written to disk afterwards; a release takes effect only
//! after it was written.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::{
    DaemonError, flow::Gateway, health::Vitals, secret_demand::SecretDemand, status::status,
};
use crate::{
    audit::{Act, ActRecord, Trouble},
    control::{EX_USAGE, Order, OrderReply},
    policy::GroupName,
    quarantine::Quarantine,
};

/// Everything that an order can change. Cheap to clone.
#[derive(Clone)]
pub(super) struct Orders {
    pub(super) gateway: Arc<Gateway>,
    pub(super) quarantine: Arc<Quarantine>,
    pub(super) demand: Arc<SecretDemand>,
    pub(super) vitals: Vitals,
    pub(super) reloads: mpsc::Sender<Reload>,
}

/// A reload that somebody waits for.
pub(super) type Reload = oneshot::Sender<Result<Reloaded, DaemonError>>;

/// The faults that remain although the new policy was taken.
#[derive(Debug, Default)]
pub(super) struct Reloaded {
    /// The fault of the audit.
    pub(super) audit: Option<Trouble>,
    /// The secrets that had a value until then, a line for each.
    pub(super) lost: Vec<String>,
}

impl Orders {
    /// Executes an order of the user `uid`.
    pub(super) async fn carry_out(&self, order: Order, uid: u32) -> OrderReply {
        match order {
            Order::Reload => self.reload().await,
            Order::Quarantine(group) => self.hold(group, uid).await,
            Order::Release(group) => self.release(group, uid).await,
            Order::Status => status(&self.vitals, &self.demand),
        }
    }

    async fn reload(&self) -> OrderReply {
        let (done, told) = oneshot::channel();
        // If the send fails, there is nobody left who could answer either.
        let _ = self.reloads.send(done).await;
        match told.await {
            Ok(Ok(reloaded)) => reloaded.answer(),
            Ok(Err(error)) => {
                let exit = if matches!(error, DaemonError::Config(_)) { EX_USAGE } else { 1 };
                OrderReply::failed(exit, format!("not reloaded, the old policy stays: {error}"))
            }
            Err(_) => OrderReply::failed(1, "the gateway is stopping"),
        }
    }

    async fn hold(&self, group: GroupName, uid: u32) -> OrderReply {
        if !self.knows(&group) {
            return OrderReply::failed(EX_USAGE, self.unknown(&group));
        }
        let (quarantine, name) = (Arc::clone(&self.quarantine), group.clone());
        let holding = blocking(move || quarantine.hold(&name));
        let held = self.demand.follow(&group, holding).await;
        tracing::warn!(%group, uid, "quarantined");
        let recorded = self.record(Act::Quarantine, &group, uid);
        match (held, recorded) {
            (Ok(_), true) => OrderReply::done(format!("{group} is quarantined")),
            (Ok(_), false) => OrderReply::failed(
                1,
                format!("{group} is quarantined, but the audit takes no record"),
            ),
            (Err(error), _) => OrderReply::failed(
                1,
                format!("{group} is quarantined until the gateway restarts: no mark: {error}"),
            ),
        }
    }

    async fn release(&self, group: GroupName, uid: u32) -> OrderReply {
        if !self.gateway.quarantined.holds(&group) {
            return if self.knows(&group) {
                OrderReply::done(format!("{group} was not quarantined"))
            } else {
                OrderReply::failed(EX_USAGE, self.unknown(&group))
            };
        }
        let Ok(slot) = self.gateway.services.audit.reserve() else {
            return OrderReply::failed(1, format!("{group} stays quarantined: no audit record"));
        };
        let (quarantine, name) = (Arc::clone(&self.quarantine), group.clone());
        match blocking(move || quarantine.release(&name)).await {
            Ok(_) => {
                self.demand.apply();
                tracing::warn!(%group, uid, "released");
                ActRecord { act: Act::Release, group: &group, uid }.write(slot);
                OrderReply::done(format!("{group} is released"))
            }
            Err(error) => OrderReply::failed(1, format!("{group} stays quarantined: {error}")),
        }
    }

    fn record(&self, act: Act, group: &GroupName, uid: u32) -> bool {
        let slot = self.gateway.services.audit.reserve();
        slot.map(|slot| ActRecord { act, group, uid }.write(slot)).is_ok()
    }

    fn knows(&self, group: &GroupName) -> bool {
        let policy_snapshot = self.gateway.policy_snapshot.borrow();
        policy_snapshot.policy.groups.iter().any(|known| known.name == *group)
    }

    fn unknown(&self, group: &GroupName) -> String {
        let policy_snapshot = self.gateway.policy_snapshot.borrow();
        let known: Vec<&str> =
            policy_snapshot.policy.groups.iter().map(|it| it.name.as_str()).collect();
        format!("the policy has no group {group}; it has {}", known.join(", "))
    }
}

impl Reloaded {
    fn answer(&self) -> OrderReply {
        let lost: String = self.lost.iter().map(|lost| format!("\n  - {lost}")).collect();
        match &self.audit {
            None if lost.is_empty() => OrderReply::done("reloaded"),
            None => OrderReply::done(format!("reloaded; these have no value any more:{lost}")),
            Some(trouble) if trouble.closes() => OrderReply::failed(
                1,
                format!(
                    "reloaded, but the audit cannot be written and all is refused: {trouble}{lost}"
                ),
            ),
            Some(trouble) => {
                OrderReply::failed(1, format!("reloaded, but the audit: {trouble}{lost}"))
            }
        }
    }
}

/// Runs an act on a thread that may block: the disk may be slow, and this thread serves others.
async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(act).await.unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into()))
}
