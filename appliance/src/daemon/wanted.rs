//! Which groups and which of their secrets count: those of the policy, less the quarantined ones.
//!
//! A secret that is not asked for any more is dropped by the store, and what was leased for it is
//! given back. A group that does not count any more has no token in Vault: it is revoked, and
//! everything that was leased with it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    policy::{Group, GroupName, Policy, SecretRef},
    quarantine::Quarantined,
    secrets::{SecretStore, Session},
};

/// A group and what it needs.
pub(super) type Need = (GroupName, SecretRef);

/// What the store is told to ask for, and Vault's session to have tokens for.
pub(super) struct Wanted {
    secrets: Arc<SecretStore>,
    vault: Option<Arc<Session>>,
    quarantined: Quarantined,
    /// What the policy in force names. Held while the others are told, so that the last one to
    /// tell them has seen the last policy and the last quarantine.
    named: Mutex<Named>,
}

#[derive(Default)]
struct Named {
    groups: Vec<Arc<Group>>,
    needs: Vec<Need>,
}

impl Wanted {
    /// Tells `secrets` and `vault` what the policy names.
    pub(super) fn new(
        (secrets, vault): (Arc<SecretStore>, Option<Arc<Session>>),
        quarantined: Quarantined,
        policy: &Policy,
    ) -> Self {
        let wanted = Self { secrets, vault, quarantined, named: Mutex::default() };
        wanted.take(policy);
        wanted
    }

    /// Takes what the next policy names beside what the one in force does, so that both can be
    /// served until the next one is taken.
    pub(super) fn add(&self, next: &Policy) {
        let mut named = self.lock();
        let stays = |group: &&Arc<Group>| next.groups.iter().any(|it| it.name == group.name);
        let leaving = named.groups.iter().filter(|group| !stays(group));
        let groups = next.groups.iter().chain(leaving).cloned().collect();
        let mut both = [&named.needs[..], &needs(next)].concat();
        both.sort_unstable();
        both.dedup();
        *named = Named { groups, needs: both };
        self.tell(&named);
    }

    /// Takes what a new policy names, and nothing else any more.
    pub(super) fn take(&self, policy: &Policy) {
        let mut named = self.lock();
        *named = Named { groups: policy.groups.clone(), needs: needs(policy) };
        self.tell(&named);
    }

    /// Takes what has changed about the quarantined groups.
    pub(super) fn apply(&self) {
        self.tell(&self.lock());
    }

    /// What the store was told.
    pub(super) fn asked(&self) -> Vec<Need> {
        self.allowed(&self.lock().needs)
    }

    fn tell(&self, named: &Named) {
        // The groups first: what is new is asked for at once, and needs a token.
        if let Some(vault) = &self.vault {
            let counts = |group: &&Arc<Group>| !self.quarantined.holds(&group.name);
            let groups: Vec<_> = named.groups.iter().filter(counts).cloned().collect();
            vault.set_groups(&groups);
        }
        self.secrets.set_wanted(&self.allowed(&named.needs));
    }

    fn allowed(&self, needs: &[Need]) -> Vec<Need> {
        needs.iter().filter(|(group, _)| !self.quarantined.holds(group)).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Named> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Every value that some group may need.
fn needs(policy: &Policy) -> Vec<Need> {
    let bindings = policy.apis.iter().flat_map(|api| &api.bindings);
    let mut needs: Vec<_> = bindings
        .flat_map(|binding| {
            binding.groups.iter().map(|group| (group.clone(), binding.secret.clone()))
        })
        .collect();
    needs.sort_unstable();
    needs.dedup();
    needs
}
