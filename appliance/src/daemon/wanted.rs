//! Which secrets are asked for: those of the policy, less those of quarantined groups.
//!
//! A secret that is not asked for any more is dropped by the store, and what was leased for it is
//! given back.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    policy::{GroupName, Policy, SecretRef},
    quarantine::Quarantined,
    secrets::SecretStore,
};

/// A group and what it needs.
pub(super) type Need = (GroupName, SecretRef);

/// What the store is told to ask for.
pub(super) struct Wanted {
    secrets: Arc<SecretStore>,
    quarantined: Quarantined,
    /// What the policy in force needs. Held while the store is told, so that the last one to tell
    /// it has seen the last policy and the last quarantine.
    needs: Mutex<Vec<Need>>,
}

impl Wanted {
    /// Tells `secrets` what the policy needs.
    pub(super) fn new(
        secrets: Arc<SecretStore>,
        quarantined: Quarantined,
        policy: &Policy,
    ) -> Self {
        let wanted = Self { secrets, quarantined, needs: Mutex::default() };
        wanted.take(policy);
        wanted
    }

    /// Takes what a new policy needs.
    pub(super) fn take(&self, policy: &Policy) {
        let mut held = self.needs.lock().unwrap_or_else(PoisonError::into_inner);
        *held = needs(policy);
        self.tell(&held);
    }

    /// Takes what has changed about the quarantined groups.
    pub(super) fn apply(&self) {
        self.tell(&self.needs.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// What the store was told.
    pub(super) fn asked(&self) -> Vec<Need> {
        self.allowed(&self.needs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn tell(&self, needs: &[Need]) {
        self.secrets.set_wanted(&self.allowed(needs));
    }

    fn allowed(&self, needs: &[Need]) -> Vec<Need> {
        needs.iter().filter(|(group, _)| !self.quarantined.holds(group)).cloned().collect()
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
