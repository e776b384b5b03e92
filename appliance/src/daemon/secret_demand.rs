//! Which groups and which of their secrets count: those of the policy, less the quarantined ones.
//!
//! A secret that is not asked for any more is dropped by the store, and what was leased for it is
//! given back. A group that does not count any more has no token in Vault: it is revoked, and
//! everything that was leased with it.

use std::{
    pin::pin,
    sync::{Arc, Mutex, MutexGuard},
};

use crate::{
    locks::lock,
    policy::{Group, GroupName, Policy, SecretRef},
    quarantine::Quarantined,
    secrets::{SecretStore, Uses},
    tickets::Tickets,
    vault::Session,
};

/// A group and what it needs.
pub(super) type Need = (GroupName, SecretRef);

/// The secrets that the store asks for, and the groups that Vault's session has tokens for.
pub(super) struct SecretDemand {
    secrets: Arc<SecretStore>,
    vault: Option<Arc<Session>>,
    tickets: Arc<Tickets>,
    quarantined: Quarantined,
    /// The groups and secrets that the policy in force names. Held while the others are told, so
    /// that the last one to tell them has seen the last policy and the last quarantine.
    named: Mutex<NamedByPolicy>,
}

#[derive(Default)]
struct NamedByPolicy {
    groups: Vec<Arc<Group>>,
    needs: Vec<Need>,
}

impl SecretDemand {
    /// Tells `secrets` and `vault` what the policy names.
    pub(super) fn new(
        (secrets, vault): (Arc<SecretStore>, Option<Arc<Session>>),
        tickets: Arc<Tickets>,
        quarantined: Quarantined,
        policy: &Policy,
    ) -> Self {
        let demand = Self { secrets, vault, tickets, quarantined, named: Mutex::default() };
        demand.take(policy);
        demand
    }

    /// Takes what the next policy names beside what the one in force does, so that both can be
    /// served until the next one is taken.
    pub(super) fn add(&self, next: &Policy) {
        let mut named = self.lock();
        let stays = |group: &&Arc<Group>| next.groups.iter().any(|it| it.name == group.name);
        let leaving = named.groups.iter().filter(|group| !stays(group));
        let groups = next.groups.iter().chain(leaving).cloned().collect();
        self.secrets.set_uses(Uses::of(next));
        let mut both = [&named.needs[..], &needs(next)].concat();
        both.sort_unstable();
        both.dedup();
        *named = NamedByPolicy { groups, needs: both };
        self.tell(&named);
    }

    /// Takes what a new policy names, and nothing else any more.
    pub(super) fn take(&self, policy: &Policy) {
        let mut named = self.lock();
        *named = NamedByPolicy { groups: policy.groups.clone(), needs: needs(policy) };
        self.secrets.set_uses(Uses::of(policy));
        self.tell(&named);
    }

    /// Takes what has changed about the quarantined groups.
    pub(super) fn apply(&self) {
        self.tell(&self.lock());
    }

    /// Applies the demand once the quarantine of `group` is in force (the disk may be slow to write
    /// its mark), and again afterwards, in case a concurrent release has added the group's secrets
    /// in between.
    pub(super) async fn follow<T>(&self, group: &GroupName, holding: impl Future<Output = T>) -> T {
        let mut in_force = self.quarantined.clone();
        let mut holding = pin!(holding);
        let early = tokio::select! {
            held = &mut holding => Some(held),
            () = in_force.reached(group) => None,
        };
        self.apply();
        let Some(held) = early else {
            let held = holding.await;
            self.apply();
            return held;
        };
        held
    }

    /// The secrets that the store asks for.
    pub(super) fn asked(&self) -> Vec<Need> {
        self.allowed(&self.lock().needs)
    }

    fn tell(&self, named: &NamedByPolicy) {
        // The groups first: what is new is asked for at once, and needs a token.
        if let Some(vault) = &self.vault {
            let counts = |group: &&Arc<Group>| !self.quarantined.holds(&group.name);
            let groups: Vec<_> = named.groups.iter().filter(counts).cloned().collect();
            vault.set_groups(&groups, &with_entity(&named.needs));
        }
        self.secrets.set_wanted(&self.allowed(&named.needs));
        let is_named = |group: &GroupName| named.groups.iter().any(|named| named.name == *group);
        self.tickets.end(|group| is_named(group) && !self.quarantined.holds(group));
    }

    fn allowed(&self, needs: &[Need]) -> Vec<Need> {
        needs.iter().filter(|(group, _)| !self.quarantined.holds(group)).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, NamedByPolicy> {
        lock(&self.named)
    }
}

/// The groups that Vault signs something about, and so has to know apart.
fn with_entity(needs: &[Need]) -> Vec<GroupName> {
    let signed = needs.iter().filter(|(_, secret)| secret.is_identity_token());
    signed.map(|(group, _)| group.clone()).collect()
}

/// Every value that some group may need.
fn needs(policy: &Policy) -> Vec<Need> {
    let mut needs: Vec<_> = Uses::of(policy).keys().cloned().collect();
    needs.sort_unstable();
    needs
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::{config, quarantine::Quarantine, vault::Sources};

    const POLICY: &str = r#"
        [gateway]
        resolvers = ["203.0.113.53"]
        audit = "stdout"
        ca_dir = "/ca"
        [secrets]
        file = "/nowhere"
        [[group]]
        name = "red"
        interface = "agents0"
        prefixes = ["192.0.2.0/25"]
        [[api]]
        name = "openai"
        hosts = ["api.openai.example"]
        [[api.binding]]
        groups = ["red"]
        placeholder = "OPENAI_API_KEY"
        places = ["header authorization bearer"]
        secret = "file:openai"
    "#;

    #[tokio::test]
    async fn a_release_that_had_its_turn_first_leaves_a_quarantined_group_no_secret() {
        let name = format!("cloakroom-wanted-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        let quarantine = Quarantine::open(&folder).unwrap();
        let none = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
        let policy = config::parse(POLICY, None, "test.toml", &none)
            .unwrap_or_else(|errors| panic!("{errors}"))
            .policy;
        let day = Duration::from_secs(86_400);
        let secrets = SecretStore::new(Arc::new(Sources::default()), &[], day, day);
        let demand = SecretDemand::new(
            (Arc::clone(&secrets), None),
            Arc::default(),
            quarantine.watch(),
            &policy,
        );
        let asked = || secrets.snapshot().health(Instant::now()).missing.len();
        assert_eq!(asked(), 1);

        let red = policy.groups[0].name.clone();
        let holding = async {
            // In force, and waiting for its turn, which a release has.
            quarantine.hold(&red).unwrap();
            while asked() > 0 {
                tokio::task::yield_now().await;
            }
            quarantine.release(&red).unwrap();
            demand.apply();
            assert_eq!(asked(), 1);
            quarantine.hold(&red).unwrap();
        };
        demand.follow(&red, holding).await;
        assert_eq!(asked(), 0, "its secrets are still asked for");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
