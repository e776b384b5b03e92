//! Values out of HashiCorp Vault (or OpenBao): one login, a token for each group, and reads of any
//! engine by path.
//!
//! Tokens and login credentials live in this module and nowhere else. They go to the addresses that
//! the operator named, over a connection that the operator's CA vouches for, and are wiped when
//! they are no longer needed. Of Vault's answers only the requested value is ever logged or passed
//! on: each failure becomes a cause and a fixed text. The exception is the misspelt name of a key
//! of ours, such as `Hosts`.

mod client;
mod doctor;
mod error;
#[cfg(test)]
mod fake;
mod holder;
mod lease;
mod login;
mod path;
mod pick;

mod pki;
pub mod plan;
mod read;
mod session;
mod sources;
#[cfg(test)]
mod tests;
mod token;
mod upkeep;

pub use doctor::{DoctorError, DoctorReport, examine};
pub(crate) use error::CallError;
pub use error::VaultSourceError;
pub(crate) use session::Session;
pub use sources::Sources;
pub(crate) use token::TokenClient;

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

use self::client::Transport;
use crate::{
    config::VaultSettings,
    dial::Resolver,
    policy::{Group, GroupName, Location, Pick, VaultLocation},
    reason::SecretCause,
    secrets::{FetchError, Fetched, Lease, Prolonged, SecretSource, Standing},
};

/// A Vault to read from, with the gateway's session there.
pub struct VaultSource {
    session: Arc<Session>,
}

impl VaultSource {
    /// Checks the settings and reads the CA and the login's files; sends Vault nothing yet.
    /// `resolver` looks up Vault's addresses, which join its control plane before they are
    /// connected to.
    ///
    /// # Errors
    ///
    /// An address that is neither `https` nor `http` to loopback, or a file that cannot be used.
    pub fn new(
        settings: &VaultSettings,
        groups: &[Arc<Group>],
        resolver: &Resolver,
    ) -> Result<Self, VaultSourceError> {
        Self::with_call_time(settings, groups, resolver, CALL_TIME)
    }

    fn with_call_time(
        settings: &VaultSettings,
        groups: &[Arc<Group>],
        resolver: &Resolver,
        call_time: Duration,
    ) -> Result<Self, VaultSourceError> {
        let transport = Transport::new(settings, resolver, call_time)?;
        Ok(Self { session: Arc::new(Session::new(transport, settings, groups)?) })
    }

    /// Returns the session, for further requests of the gateway's.
    pub(crate) fn session(&self) -> Arc<Session> {
        Arc::clone(&self.session)
    }
}

impl SecretSource for VaultSource {
    fn fetch<'a>(
        &'a self,
        group: &'a GroupName,
        location: &'a Location,
        picks: &'a [Pick],
    ) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        Box::pin(async move { read::fetch(&self.session, group, in_vault(location)?, picks).await })
    }

    fn renew<'a>(
        &'a self,
        group: &'a GroupName,
        lease: &'a Lease,
    ) -> BoxFuture<'a, Result<Prolonged, FetchError>> {
        Box::pin(lease::renew(&self.session, group, lease))
    }

    fn check<'a>(
        &'a self,
        group: &'a GroupName,
        location: &'a Location,
        lease: &'a Lease,
    ) -> BoxFuture<'a, Result<Standing, FetchError>> {
        Box::pin(
            async move { lease::check(&self.session, group, in_vault(location)?, lease).await },
        )
    }

    fn revoke<'a>(
        &'a self,
        group: &'a GroupName,
        lease: &'a Lease,
    ) -> BoxFuture<'a, Result<(), FetchError>> {
        Box::pin(lease::revoke(&self.session, group, lease))
    }

    fn generation(&self, group: &GroupName) -> u64 {
        self.session.generation(group)
    }

    fn try_again(&self) {
        self.session.login.try_again();
    }

    fn tend(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.session.tend())
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.session.close().await;
        })
    }
}

impl std::fmt::Debug for VaultSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VaultSource")
    }
}

fn in_vault(location: &Location) -> Result<&VaultLocation, FetchError> {
    match location {
        Location::Vault(location) => Ok(location),
        Location::File(_) => {
            Err(FetchError::Gone(SecretCause::VaultDenied, "not a reference into Vault"))
        }
    }
}

/// The longest time for one request, from its first byte to the last of the answer.
const CALL_TIME: Duration = Duration::from_secs(10);
