//! What comes of the orders that arrive at the control socket.
//!
//! A quarantine comes first and is written down afterwards; a release that could not be written
//! down is not made.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};

use super::{DaemonError, flow::Gateway, wanted::Wanted};
use crate::{
    audit::{Act, ActRecord},
    control::{Answer, EX_USAGE, Order},
    harden::Enforced,
    packets::Claim,
    policy::{GroupName, SecretRef},
    quarantine::Quarantine,
    rulebook::Rulebook,
};

/// Everything that an order can touch. Cheap to clone.
#[derive(Clone)]
pub(super) struct Orders {
    pub(super) gateway: Arc<Gateway>,
    pub(super) quarantine: Arc<Quarantine>,
    pub(super) wanted: Arc<Wanted>,
    /// Why the gateway is closed to new connections, where it is.
    pub(super) doubt: watch::Receiver<Option<String>>,
    /// Knows which interfaces nobody listens on.
    pub(super) claim: Arc<Claim>,
    /// How far Landlock confines the daemon.
    pub(super) landlock: Enforced,
    pub(super) reloads: mpsc::Sender<Reload>,
}

/// A reload that somebody waits for.
pub(super) type Reload = oneshot::Sender<Result<(), DaemonError>>;

impl Orders {
    /// Carries out an order of the user `uid`.
    pub(super) async fn carry_out(&self, order: Order, uid: u32) -> Answer {
        match order {
            Order::Reload => self.reload().await,
            Order::Quarantine(group) => self.hold(group, uid).await,
            Order::Release(group) => self.release(group, uid).await,
            Order::Status => self.status(),
        }
    }

    async fn reload(&self) -> Answer {
        let (done, told) = oneshot::channel();
        // A send that fails leaves nobody who could answer either.
        let _ = self.reloads.send(done).await;
        match told.await {
            Ok(Ok(())) => Answer::done("reloaded"),
            Ok(Err(error)) => {
                let exit = if matches!(error, DaemonError::Config(_)) { EX_USAGE } else { 1 };
                Answer::failed(exit, format!("not reloaded, the old policy stays: {error}"))
            }
            Err(_) => Answer::failed(1, "the gateway is stopping"),
        }
    }

    async fn hold(&self, group: GroupName, uid: u32) -> Answer {
        if !self.knows(&group) {
            return Answer::failed(EX_USAGE, self.unknown(&group));
        }
        let (quarantine, name) = (Arc::clone(&self.quarantine), group.clone());
        let holding = blocking(move || quarantine.hold(&name));
        let held = self.wanted.follow(&group, holding).await;
        tracing::warn!(%group, uid, "quarantined");
        let recorded = self.record(Act::Quarantine, &group, uid);
        match (held, recorded) {
            (Ok(_), true) => Answer::done(format!("{group} is quarantined")),
            (Ok(_), false) => {
                Answer::failed(1, format!("{group} is quarantined, but the audit takes no record"))
            }
            (Err(error), _) => Answer::failed(
                1,
                format!("{group} is quarantined until the gateway restarts: no mark: {error}"),
            ),
        }
    }

    async fn release(&self, group: GroupName, uid: u32) -> Answer {
        if !self.gateway.quarantined.holds(&group) {
            return if self.knows(&group) {
                Answer::done(format!("{group} was not quarantined"))
            } else {
                Answer::failed(EX_USAGE, self.unknown(&group))
            };
        }
        let Ok(slot) = self.gateway.means.audit.reserve() else {
            return Answer::failed(1, format!("{group} stays quarantined: no audit record"));
        };
        let (quarantine, name) = (Arc::clone(&self.quarantine), group.clone());
        match blocking(move || quarantine.release(&name)).await {
            Ok(_) => {
                self.wanted.apply();
                tracing::warn!(%group, uid, "released");
                ActRecord { act: Act::Release, group: &group, uid }.write(slot);
                Answer::done(format!("{group} is released"))
            }
            Err(error) => Answer::failed(1, format!("{group} stays quarantined: {error}")),
        }
    }

    fn record(&self, act: Act, group: &GroupName, uid: u32) -> bool {
        let slot = self.gateway.means.audit.reserve();
        slot.map(|slot| ActRecord { act, group, uid }.write(slot)).is_ok()
    }

    fn knows(&self, group: &GroupName) -> bool {
        let rulebook = self.gateway.rulebook.borrow();
        rulebook.policy.groups.iter().any(|known| known.name == *group)
    }

    fn unknown(&self, group: &GroupName) -> String {
        let rulebook = self.gateway.rulebook.borrow();
        let known: Vec<&str> = rulebook.policy.groups.iter().map(|it| it.name.as_str()).collect();
        format!("the policy has no group {group}; it has {}", known.join(", "))
    }

    fn status(&self) -> Answer {
        let rulebook = Arc::clone(&self.gateway.rulebook.borrow());
        let quarantined = self.gateway.quarantined.groups();
        let names = rulebook.policy.groups.iter().map(|group| &group.name);
        let absent = quarantined.iter().filter(|group| !self.knows(group));
        let groups: Vec<GroupStatus<'_>> = names
            .chain(absent)
            .map(|name| GroupStatus {
                name: name.as_str(),
                quarantined: quarantined.contains(name),
                connections: self.gateway.places.open(name),
            })
            .collect();
        let health = self.gateway.means.secrets.snapshot().health(Instant::now());
        let missing = |group: &GroupName, secret: &SecretRef| {
            health.missing.iter().any(|(of, name, _)| of == group && name == secret)
        };
        let asked = self.wanted.asked();
        let available = asked.iter().filter(|(group, secret)| !missing(group, secret));
        let missing = health.missing.iter();
        let status = Status {
            version: env!("CARGO_PKG_VERSION"),
            phase: self.gateway.phases.now().word(),
            closed: self.doubt.borrow().clone(),
            unserved: self.claim.unserved().into_iter().map(ToString::to_string).collect(),
            landlock: self.landlock.word(),
            connections: groups.iter().map(|group| group.connections).sum(),
            groups,
            secrets: SecretsStatus {
                available: available.map(|(group, secret)| of(group, secret, None)).collect(),
                missing: missing
                    .map(|(group, secret, cause)| of(group, secret, Some(cause.word())))
                    .collect(),
            },
            issuing_cas: cas(&rulebook),
        };
        Answer { exit: 0, text: None, status: serde_json::to_value(&status).ok() }
    }
}

#[derive(Serialize)]
struct Status<'a> {
    version: &'static str,
    phase: &'static str,
    closed: Option<String>,
    /// Interfaces that were made again since the start.
    unserved: Vec<String>,
    /// `fully`, `partly` or `not`: how far Landlock confines the daemon.
    landlock: &'static str,
    connections: usize,
    groups: Vec<GroupStatus<'a>>,
    secrets: SecretsStatus,
    issuing_cas: CasStatus<'a>,
}

#[derive(Serialize)]
struct GroupStatus<'a> {
    name: &'a str,
    quarantined: bool,
    connections: usize,
}

#[derive(Serialize)]
struct SecretsStatus {
    available: Vec<SecretStatus>,
    missing: Vec<SecretStatus>,
}

/// A secret by its reference. Never a value.
#[derive(Serialize)]
struct SecretStatus {
    group: String,
    secret: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
}

/// The rules that end TLS here. The hosts of those that miss their CA are closed.
#[derive(Serialize)]
struct CasStatus<'a> {
    available: Vec<&'a str>,
    /// Those that should have been made anew for long.
    ending: Vec<EndingCa<'a>>,
    missing: Vec<MissingCa<'a>>,
}

#[derive(Serialize)]
struct EndingCa<'a> {
    rule: &'a str,
    days_left: u64,
}

#[derive(Serialize)]
struct MissingCa<'a> {
    rule: &'a str,
    cause: &'static str,
}

fn cas(rulebook: &Rulebook) -> CasStatus<'_> {
    let now = SystemTime::now();
    let mut status = CasStatus { available: vec![], ending: vec![], missing: vec![] };
    for ca in rulebook.cas() {
        let rule = ca.rule().as_str();
        match ca.missing(now) {
            None => status.available.push(rule),
            Some(cause) => status.missing.push(MissingCa { rule, cause: cause.word() }),
        }
    }
    status.ending.extend(rulebook.cas().filter_map(|ca| {
        let days_left = ca.overdue(now)?.as_secs() / 86_400;
        Some(EndingCa { rule: ca.rule().as_str(), days_left })
    }));
    status.available.sort_unstable();
    status.ending.sort_unstable_by_key(|ending| ending.days_left);
    status.missing.sort_unstable_by_key(|missing| missing.rule);
    status
}

fn of(group: &GroupName, secret: &SecretRef, cause: Option<&'static str>) -> SecretStatus {
    SecretStatus { group: group.to_string(), secret: secret.to_string(), cause }
}

/// The disk may be slow, and this thread has others to serve.
async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(act).await.unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into()))
}
