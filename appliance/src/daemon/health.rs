//! The daemon's health, computed from the state of its parts each time that somebody asks.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use tokio::sync::watch;

use super::{flow::Gateway, issuing};
use crate::{
    audit::Trouble,
    ca::RuleCa,
    harden::Enforced,
    health::{Finding, Health, HealthCause},
    packets::{ForeignRules, ListenerClaim},
    phase::Phase,
    policy::{Api, Binding, GroupName},
    policy_snapshot::PolicySnapshot,
    reason::SecretCause,
    secrets::{FetchError, SecretSnapshot, unfit},
};

/// The sources of the health state. Cheap to clone.
#[derive(Clone)]
pub(super) struct Vitals {
    pub(super) gateway: Arc<Gateway>,
    /// The doubt about the kernel's settings that keeps new connections out, if there is one.
    pub(super) doubt: watch::Receiver<Option<String>>,
    /// The rules of other programs that may keep captured packets from the gateway.
    pub(super) foreign: watch::Receiver<ForeignRules>,
    /// Knows which interfaces nobody listens on.
    pub(super) claim: Arc<ListenerClaim>,
    /// The extent to which Landlock confines the daemon.
    pub(super) landlock: Enforced,
    /// Whether Vault signs the issuing CAs.
    pub(super) vault_signs: bool,
}

impl Vitals {
    /// Returns the health with all findings.
    pub(super) fn health(&self) -> Health {
        let policy_snapshot = Arc::clone(&self.gateway.policy_snapshot.borrow());
        let mut findings: Vec<Finding> = self.of_the_whole().chain(self.of_the_machine()).collect();
        let quarantined = self.gateway.quarantined.groups();
        findings.extend(quarantined.iter().map(|group| {
            let text = format!("{group} is quarantined; `cloakroom release {group}` undoes that");
            Finding::new(HealthCause::GroupQuarantined, text).of_group(group)
        }));
        let secrets = self.gateway.services.secrets.snapshot();
        let now = Instant::now();
        for one in uses(&policy_snapshot) {
            if !quarantined.contains(one.group) {
                findings.extend(of_secret(&secrets, one, now));
            }
        }
        let now = SystemTime::now();
        findings.extend(policy_snapshot.cas().filter_map(|ca| self.of_ca(ca, now)));
        Health::of(findings)
    }

    /// Returns whether the daemon can still do its work, and has no fault that only another daemon
    /// could mend.
    pub(super) fn is_alive(&self) -> bool {
        self.gateway.services.audit.trouble() != Some(Trouble::Ended)
    }

    fn of_the_whole(&self) -> impl Iterator<Item = Finding> {
        let doubt = self.doubt.borrow().clone();
        let doubt = doubt.map(|doubt| Finding::new(HealthCause::PacketsUnsure, doubt));
        let audit = self.gateway.services.audit.trouble().map(|trouble| {
            let text = match trouble.closes() {
                true => format!("the audit cannot be written: {trouble}"),
                false => format!("the audit: {trouble}"),
            };
            Finding::new(trouble.cause(), text)
        });
        let ends = self.gateway.phases.now() != Phase::Run;
        let ends =
            ends.then(|| Finding::new(HealthCause::ShuttingDown, "the gateway is about to stop"));
        doubt.into_iter().chain(audit).chain(ends)
    }

    fn of_the_machine(&self) -> impl Iterator<Item = Finding> {
        let unserved = self.claim.unserved().into_iter().map(|interface| {
            let text = format!(
                "{interface} was made again and nobody listens on it: its agents are refused; \
                 restart the daemon"
            );
            Finding::new(HealthCause::InterfaceUnserved, text)
        });
        let ForeignRules { marks, filters } = self.foreign.borrow().clone();
        let marks =
            marks.into_iter().map(|it| Finding::new(HealthCause::ForeignMarks, it.to_string()));
        let filters = filters.into_iter();
        let filters = filters.map(|it| Finding::new(HealthCause::ForeignFilter, it.to_string()));
        let open = (self.landlock == Enforced::Not).then(|| {
            let text = "the kernel has no Landlock, or it is off (lsm=): the file system is open to \
                        the daemon as its user's permissions say";
            Finding::new(HealthCause::Unconfined, text)
        });
        unserved.chain(marks).chain(filters).chain(open)
    }

    fn of_ca(&self, ca: &RuleCa, now: SystemTime) -> Option<Finding> {
        let rule = ca.rule();
        let remedy = issuing::remedy(self.vault_signs);
        if let Some(why) = ca.missing(now) {
            let text = format!("{rule} has no issuing CA, and its hosts are closed: {remedy}");
            return Some(
                Finding::new(HealthCause::CaMissing, text).of_rule(rule).because(why.as_str()),
            );
        }
        let left = ca.overdue(now)?;
        let text = format!("the issuing CA of {rule} ends, and its hosts close with it: {remedy}");
        Some(Finding::new(HealthCause::CaEnding, text).of_rule(rule).in_time(left))
    }
}

/// A binding's secret, as one of its groups may use it.
#[derive(Clone, Copy)]
pub(super) struct SecretUse<'a> {
    pub(super) group: &'a GroupName,
    pub(super) api: &'a Api,
    pub(super) binding: &'a Binding,
}

/// Returns every group with the secrets that it may use, and the rules where it may use them.
pub(super) fn uses(policy_snapshot: &PolicySnapshot) -> impl Iterator<Item = SecretUse<'_>> {
    policy_snapshot.policy.apis.iter().flat_map(|api| {
        api.bindings.iter().flat_map(move |binding| {
            binding.groups.iter().map(move |group| SecretUse { group, api, binding })
        })
    })
}

fn of_secret(secrets: &SecretSnapshot, one: SecretUse<'_>, now: Instant) -> Option<Finding> {
    let SecretUse { group, api, binding } = one;
    let (rule, secret) = (&api.name, &binding.secret);
    let about =
        |cause, text| Finding::new(cause, text).of_group(group).of_rule(rule).of_secret(secret);
    let failure = secrets.failure(group, secret);
    match usable(secrets, one, now) {
        Err((why, text)) => {
            let text = format!("{group} has no value at {rule}, {secret}: {text}");
            Some(about(HealthCause::SecretUnavailable, text).because(why.as_str()))
        }
        Ok(()) => {
            let (failure, left) = (failure?, secrets.good_for(group, secret, now)?);
            let text = format!("{group} has an old value at {rule}, {secret}: {}", failure.text());
            Some(
                about(HealthCause::SecretStale, text)
                    .because(failure.cause().as_str())
                    .in_time(left),
            )
        }
    }
}

/// Returns whether any request can get the value. Where only some requests cannot have it, those
/// are refused.
fn usable(
    secrets: &SecretSnapshot,
    SecretUse { group, api, binding }: SecretUse<'_>,
    now: Instant,
) -> Result<(), (SecretCause, &'static str)> {
    let secret = &binding.secret;
    // Looked up without a least length first, to tell a value that is too short from a missing one.
    let value = secrets.current(group, secret, 0, now).map_err(|why| {
        let failure = secrets.failure(group, secret);
        (why, failure.map_or("its source has not given it yet", FetchError::text))
    })?;
    let narrowing = secrets.narrowing(group, secret);
    match narrowing.and_then(|narrowing| unfit((api, binding), &value, narrowing)) {
        Some(text) => Err((SecretCause::ValueInvalid, text)),
        None => Ok(()),
    }
}
