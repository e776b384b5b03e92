//! Values out of HashiCorp Vault (or OpenBao): one login, a token for each group, then KV version 2.
//!
//! Tokens and what proves the login live in this module and nowhere else. They go to the
//! addresses that the operator named, over a connection that the operator's CA vouches for, and are
//! wiped when they are no longer needed. Nothing that Vault answers is ever logged or passed on
//! but the value that was asked for: each failure becomes a cause and a fixed text.

mod client;
mod error;
#[cfg(test)]
mod fake;
mod holder;
mod login;
mod pick;
mod pki;
mod session;
#[cfg(test)]
mod tests;
mod token;
#[cfg(test)]
mod token_tests;
mod upkeep;

pub(crate) use error::CallError;
pub use error::VaultSourceError;
pub(crate) use session::Session;
pub(crate) use token::TokenClient;

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use vaultrs::api::kv2::requests::ReadSecretRequest;
use zeroize::Zeroizing;

use self::{
    client::Transport,
    pick::{Picked, pick},
};
use super::{FetchError, SecretSource};
use crate::{
    config::VaultSettings,
    policy::{Group, GroupName, SecretRef},
    reason::SecretCause,
};

/// A Vault to read from, with the gateway's session there.
pub struct VaultSource {
    session: Arc<Session>,
}

impl VaultSource {
    /// Checks the settings and reads the CA and the login's files; asks Vault nothing yet.
    ///
    /// # Errors
    ///
    /// An address that is neither `https` nor `http` to loopback, or a file that cannot be used.
    pub fn new(settings: &VaultSettings, groups: &[Arc<Group>]) -> Result<Self, VaultSourceError> {
        Self::with_call_time(settings, groups, CALL_TIME)
    }

    fn with_call_time(
        settings: &VaultSettings,
        groups: &[Arc<Group>],
        call_time: Duration,
    ) -> Result<Self, VaultSourceError> {
        let transport = Transport::new(settings, call_time)?;
        Ok(Self { session: Arc::new(Session::new(transport, settings, groups)?) })
    }

    /// The session, for what else the gateway asks of Vault.
    pub(crate) fn session(&self) -> Arc<Session> {
        Arc::clone(&self.session)
    }

    async fn read(
        &self,
        group: &GroupName,
        reference: &SecretRef,
    ) -> Result<Zeroizing<Vec<u8>>, FetchError> {
        let SecretRef::VaultKv2 { mount, path, field } = reference else {
            return Err(FetchError::Gone(SecretCause::VaultDenied, "not a reference into Vault"));
        };
        if !(is_plain_path(mount) && is_plain_path(path)) {
            let text = "mount and path must not have empty, '.' or '..' segments";
            return Err(FetchError::Gone(SecretCause::VaultDenied, text));
        }
        let body = self.read_body(group, mount, path).await?;
        match pick(&body, &["data", "data", field]) {
            Some(Picked::Text(value)) => Ok(value),
            Some(_) => {
                Err(FetchError::Gone(SecretCause::ValueInvalid, "the field is not a string"))
            }
            None => {
                Err(FetchError::Gone(SecretCause::ValueInvalid, "the secret has no such field"))
            }
        }
    }

    async fn read_body(
        &self,
        group: &GroupName,
        mount: &str,
        path: &str,
    ) -> Result<Zeroizing<Vec<u8>>, FetchError> {
        let client = self.session.group(group).await?;
        match read_once(&client, mount, path).await {
            // Vault says 403 for a token that has ended as well as for one that may not.
            Err(CallError::Status { code: 403, .. }) => {
                match self.session.replace_if_dead(&client).await? {
                    Some(fresh) => read_once(&fresh, mount, path).await.map_err(read_failed),
                    None => Err(read_failed(CallError::DENIED)),
                }
            }
            other => other.map_err(read_failed),
        }
    }
}

impl SecretSource for VaultSource {
    fn fetch<'a>(
        &'a self,
        group: &'a GroupName,
        reference: &'a SecretRef,
    ) -> BoxFuture<'a, Result<Zeroizing<Vec<u8>>, FetchError>> {
        Box::pin(self.read(group, reference))
    }

    fn tend(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.session.tend())
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.session.close())
    }
}

impl std::fmt::Debug for VaultSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VaultSource")
    }
}

async fn read_once(
    client: &TokenClient,
    mount: &str,
    path: &str,
) -> Result<Zeroizing<Vec<u8>>, CallError> {
    let request = ReadSecretRequest { mount: mount.into(), path: path.into(), version: None };
    let body = client.call(request).await?;
    // What is no JSON object did not come from Vault, or came broken.
    match pick(&body, &["data"]) {
        Some(_) => Ok(body),
        None => Err(CallError::Transport("the answer is not one of Vault's")),
    }
}

fn read_failed(error: CallError) -> FetchError {
    match error {
        CallError::Status { code: 403, .. } => {
            let text = "Vault's policies do not let the group read this secret";
            FetchError::Gone(SecretCause::VaultDenied, text)
        }
        CallError::Status { code: 404, .. } => {
            FetchError::Gone(SecretCause::VaultDenied, "Vault has no such secret or version")
        }
        CallError::Status { code: 400 | 405, .. } => {
            FetchError::Gone(SecretCause::VaultDenied, "Vault does not serve this path as KV v2")
        }
        other => other.outage(),
    }
}

/// The URL's parser would drop dot segments, and so read another secret.
fn is_plain_path(path: &str) -> bool {
    path.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
        && !path.contains(|c: char| c.is_ascii_control())
}

/// Longest time for one question, from its first byte to the last of the answer.
const CALL_TIME: Duration = Duration::from_secs(10);
