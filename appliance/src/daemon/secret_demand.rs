//! The secret demand: the groups and secrets of the policy, without the quarantined groups.
//!
//! The store drops a secret that is not demanded any more, and its lease is given back. A group
//! that is not demanded any more has no token in Vault: its token is revoked, with everything
//! leased under it.

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

/// A group and a secret that it needs.
pub(super) type Need = (GroupName, SecretRef);

/// The secrets that the store asks for, and the groups that Vault's session has tokens for.
pub(super) struct SecretDemand {
    secrets: Arc<SecretStore>,
    vault: Option<Arc<Session>>,
    tickets: Arc<Tickets>,
    quarantined: Quarantined,
    /// The groups and secrets that the policy in force names. Held while the store and Vault are
    /// told, so that the last call uses the last policy and the last quarantine.
    named: Mutex<NamedByPolicy>,
}

#[derive(Default)]
struct NamedByPolicy {
    groups: Vec<Arc<Group>>,
    needs: Vec<Need>,
}

impl SecretDemand {
    /// Creates the demand of the secrets that the policy names, and tells `secrets` and `vault`.
    pub(super) fn new(
        secrets: Arc<SecretStore>,
        vault: Option<Arc<Session>>,
        tickets: Arc<Tickets>,
        quarantined: Quarantined,
        policy: &Policy,
    ) -> Self {
        let demand = Self { secrets, vault, tickets, quarantined, named: Mutex::default() };
        demand.take(policy);
        demand
    }

    /// Adds the secrets that the next policy names to those of the present one, so that both
    /// policies can be served until [`take`](Self::take).
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

    /// Takes the secrets that a new policy names, and drops all others.
    pub(super) fn take(&self, policy: &Policy) {
        let mut named = self.lock();
        *named = NamedByPolicy { groups: policy.groups.clone(), needs: needs(policy) };
        self.secrets.set_uses(Uses::of(policy));
        self.tell(&named);
    }

    /// Applies changes of the quarantined groups.
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

    /// Returns the secrets that the store asks for.
    pub(super) fn asked(&self) -> Vec<Need> {
        self.allowed(&self.lock().needs)
    }

    fn tell(&self, named: &NamedByPolicy) {
        // The groups come first: a new secret is asked for at once, and needs a token.
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

/// Returns the groups that Vault signs tokens about, and so has to know apart.
fn with_entity(needs: &[Need]) -> Vec<GroupName> {
    let signed = needs.iter().filter(|(_, secret)| secret.is_identity_token());
    signed.map(|(group, _)| group.clone()).collect()
}

/// Returns every secret that some group may need.
fn needs(policy: &Policy) -> Vec<Need> {
    let mut needs: Vec<_> = Uses::of(policy).keys().cloned().collect();
    needs.sort_unstable();
    needs
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use policy_builder::{Config, api, binding, group};

    use super::*;
    use crate::{config, quarantine::Quarantine, vault::Sources};

    fn policy() -> Policy {
        let key = binding("red", "OPENAI_API_KEY", &["header authorization bearer"], "file:openai");
        let file = Config::of_rules()
            .with(group("red", "agents0", &["192.0.2.0/25"]))
            .with(api("openai", &["api.openai.example"]).with(key));
        config::testing::policy(&file)
    }

    #[tokio::test]
    async fn an_earlier_release_leaves_a_quarantined_group_no_secret() {
        let name = format!("cloakroom-wanted-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        let quarantine = Quarantine::open(&folder).unwrap();
        let policy = policy();
        let day = Duration::from_secs(86_400);
        let secrets = SecretStore::new(Arc::new(Sources::default()), &[], day, day);
        let demand = SecretDemand::new(
            Arc::clone(&secrets),
            None,
            Arc::default(),
            quarantine.watch(),
            &policy,
        );
        let asked = || secrets.snapshot().health(Instant::now()).missing.len();
        assert_eq!(asked(), 1);

        let red = policy.groups[0].name.clone();
        let holding = async {
            // The quarantine is in force; its mark waits for the turn, which a release has.
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
