//! The source of the daemon's issuing CAs: the folder of `cloakroom ca issue`, or Vault.
//!
//! A file that is not right stops the start. A CA that has ended does not, nor does a Vault that
//! does not sign: the rule's hosts are closed until there is a CA.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::DaemonError;
use crate::{
    ca::{Rotation, RuleCa, RuleCas},
    config::Settings,
    policy::Policy,
    policy_snapshot::PolicySnapshot,
    secrets::SecretStore,
    vault::Session,
};

/// Returns the CAs, from Vault where it signs them, else from the folder.
pub(super) fn cas(
    policy: &Policy,
    settings: &Settings,
    rotation: Option<&Rotation>,
) -> Result<RuleCas, DaemonError> {
    let cas = match rotation {
        Some(rotation) => rotation.cas(policy),
        None => RuleCa::load_all(&settings.ca_dir, policy, SystemTime::now()),
    };
    cas.map_err(DaemonError::Ca)
}

/// Waits for values and CAs that a policy needs and that are not there yet.
pub(super) async fn first_round(
    secrets: &SecretStore,
    rotation: Option<&Rotation>,
    cas: &RuleCas,
    timeout: Duration,
) {
    let deadline = Instant::now() + timeout;
    let signed = async {
        if let Some(rotation) = rotation {
            rotation.tend(cas);
            rotation.first_round(deadline).await;
        }
    };
    tokio::join!(secrets.first_round(deadline), signed);
}

/// Opens the rotation of a gateway whose Vault signs the issuing CAs.
pub(super) fn open_rotation(
    settings: &Settings,
    vault: Option<&Arc<Session>>,
) -> Result<Option<Rotation>, DaemonError> {
    let pki = settings.vault.as_ref().and_then(|vault| vault.pki.as_ref());
    let (Some(pki), Some(vault)) = (pki, vault) else { return Ok(None) };
    Rotation::new(Arc::clone(vault) as _, pki).map(Some).map_err(DaemonError::Ca)
}

/// Logs which hosts are closed, and which will be unless their CA is replaced.
pub(super) fn report(policy_snapshot: &PolicySnapshot, signed_by_vault: bool) {
    let now = SystemTime::now();
    let remedy = remedy(signed_by_vault);
    for ca in policy_snapshot.cas() {
        let rule = ca.rule();
        if let Some(cause) = ca.missing(now) {
            tracing::warn!(%rule, %cause, "no issuing CA; its hosts are closed until there is one: {remedy}");
        } else if let Some(left) = ca.overdue(now) {
            let days = left.as_secs() / 86_400;
            tracing::warn!(%rule, days, "its issuing CA ends, and its hosts close with it: {remedy}");
        }
    }
}

/// Returns the remedy where a CA is missing or about to end.
pub(super) const fn remedy(signed_by_vault: bool) -> &'static str {
    match signed_by_vault {
        true => "Vault signs another; see why it did not (`cloakroom vault doctor`)",
        false => "run `cloakroom ca issue` and `cloakroom reload`, and enable cloakroom-ca.timer",
    }
}
