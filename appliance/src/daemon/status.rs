//! The report of `cloakroom status`: text for a person, and all of it as JSON.

use std::{
    fmt::Write as _,
    sync::Arc,
    time::{Instant, SystemTime},
};

use serde::Serialize;

use super::{health::Vitals, secret_demand::SecretDemand};
use crate::{
    control::OrderReply,
    health::{Finding, Health, HealthState},
    policy::{GroupName, SecretRef},
    policy_snapshot::PolicySnapshot,
};

/// Returns the present state of the gateway.
pub(super) fn status(vitals: &Vitals, demand: &SecretDemand) -> OrderReply {
    let gateway = &vitals.gateway;
    let policy_snapshot = Arc::clone(&gateway.policy_snapshot.borrow());
    let health = vitals.health();
    let groups = groups(vitals, &policy_snapshot);
    let status = Status {
        version: env!("CARGO_PKG_VERSION"),
        phase: gateway.phases.now().as_str(),
        health: HealthStatus::of(&health),
        landlock: vitals.landlock.as_str(),
        connections: groups.iter().map(|group| group.connections).sum(),
        groups,
        secrets: secrets(vitals, demand),
        issuing_cas: cas(&policy_snapshot),
    };
    let text = Some(words(&health, &status));
    OrderReply { exit: 0, text, status: serde_json::to_value(&status).ok() }
}

fn words(health: &Health, status: &Status<'_>) -> String {
    let mut text = health.state().to_string();
    match health.state() {
        HealthState::Closed => text += ": nothing new is carried",
        HealthState::Degraded => text += ": some requests or agents get less than the policy says",
        HealthState::Healthy => {}
    }
    for line in health.lines() {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n  - {line}");
    }
    let groups: Vec<String> = status.groups.iter().map(GroupStatus::words).collect();
    let tickets = status.groups.iter().map(|group| format!("{} {}", group.name, group.tickets));
    let tickets: Vec<String> = tickets.collect();
    let secrets = (status.secrets.available.len(), status.secrets.missing.len());
    let cas = (status.issuing_cas.available.len(), status.issuing_cas.missing.len());
    let _ = write!(
        text,
        "\nconnections   {} open; {}\nsecrets       {} of {} have a value\ntickets       {} are good; {}\n\
         issuing CAs   {} of {} are there\nlandlock      {}\nversion       {}, {}",
        status.connections,
        groups.join(", "),
        secrets.0,
        secrets.0 + secrets.1,
        status.groups.iter().map(|group| group.tickets).sum::<usize>(),
        tickets.join(", "),
        cas.0,
        cas.0 + cas.1,
        status.landlock,
        status.version,
        status.phase,
    );
    text
}

fn groups<'a>(vitals: &Vitals, policy_snapshot: &'a PolicySnapshot) -> Vec<GroupStatus> {
    let quarantined = vitals.gateway.quarantined.groups();
    let known: Vec<&'a GroupName> =
        policy_snapshot.policy.groups.iter().map(|group| &group.name).collect();
    let absent = quarantined.iter().filter(|group| !known.contains(group));
    let status = |name: &GroupName| GroupStatus {
        name: name.to_string(),
        quarantined: quarantined.contains(name),
        connections: vitals.gateway.capacity.open(name),
        tickets: vitals.gateway.services.tickets.good(name, Instant::now()),
    };
    known.iter().copied().chain(absent).map(status).collect()
}

fn secrets(vitals: &Vitals, demand: &SecretDemand) -> SecretsStatus {
    let health = vitals.gateway.services.secrets.snapshot().health(Instant::now());
    let missing = |group: &GroupName, secret: &SecretRef| {
        health.missing.iter().any(|(of, name, _)| of == group && name == secret)
    };
    let asked = demand.asked();
    let available = asked.iter().filter(|(group, secret)| !missing(group, secret));
    let missing = health.missing.iter();
    SecretsStatus {
        available: available.map(|(group, secret)| of(group, secret, None)).collect(),
        missing: missing
            .map(|(group, secret, cause)| of(group, secret, Some(cause.as_str())))
            .collect(),
    }
}

#[derive(Serialize)]
struct Status<'a> {
    version: &'static str,
    phase: &'static str,
    health: HealthStatus<'a>,
    /// `fully`, `partly` or `not`: the extent to which Landlock confines the daemon.
    landlock: &'static str,
    connections: usize,
    groups: Vec<GroupStatus>,
    secrets: SecretsStatus,
    issuing_cas: CasStatus<'a>,
}

#[derive(Serialize)]
struct HealthStatus<'a> {
    state: HealthState,
    causes: Vec<CauseStatus<'a>>,
}

#[derive(Serialize)]
struct CauseStatus<'a> {
    cause: &'static str,
    state: HealthState,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'static str>,
    /// Seconds until it gets worse.
    #[serde(skip_serializing_if = "Option::is_none")]
    left: Option<u64>,
    text: &'a str,
}

impl<'a> HealthStatus<'a> {
    fn of(health: &'a Health) -> Self {
        let cause = |finding: &'a Finding| CauseStatus {
            cause: finding.cause.as_str(),
            state: finding.cause.state(),
            group: finding.group.as_deref(),
            rule: finding.rule.as_deref(),
            secret: finding.secret.as_deref(),
            why: finding.why,
            left: finding.left.map(|left| left.as_secs()),
            text: &finding.text,
        };
        Self { state: health.state(), causes: health.findings().iter().map(cause).collect() }
    }
}

#[derive(Serialize)]
struct GroupStatus {
    name: String,
    quarantined: bool,
    connections: usize,
    /// The number of good tickets, for credentials that APIs have minted.
    tickets: usize,
}

impl GroupStatus {
    fn words(&self) -> String {
        let quarantined = if self.quarantined { " (quarantined)" } else { "" };
        format!("{} {}{quarantined}", self.name, self.connections)
    }
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

/// The rules that end TLS here. The hosts of rules without a CA are closed.
#[derive(Serialize)]
struct CasStatus<'a> {
    available: Vec<&'a str>,
    missing: Vec<MissingCa<'a>>,
}

#[derive(Serialize)]
struct MissingCa<'a> {
    rule: &'a str,
    cause: &'static str,
}

fn cas(policy_snapshot: &PolicySnapshot) -> CasStatus<'_> {
    let now = SystemTime::now();
    let mut status = CasStatus { available: vec![], missing: vec![] };
    for ca in policy_snapshot.cas() {
        let rule = ca.rule().as_str();
        match ca.missing(now) {
            None => status.available.push(rule),
            Some(cause) => status.missing.push(MissingCa { rule, cause: cause.as_str() }),
        }
    }
    status.available.sort_unstable();
    status.missing.sort_unstable_by_key(|missing| missing.rule);
    status
}

fn of(group: &GroupName, secret: &SecretRef, cause: Option<&'static str>) -> SecretStatus {
    SecretStatus { group: group.to_string(), secret: secret.to_string(), cause }
}
