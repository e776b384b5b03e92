//! All sources of one gateway as one source.

use futures_util::future::BoxFuture;

use super::VaultSource;
use crate::{
    policy::{GroupName, Location, Pick},
    reason::SecretCause,
    secrets::{FetchError, Fetched, FileSource, Lease, Prolonged, SecretSource, Standing},
};

/// The sources of one gateway; either may be absent.
#[derive(Default)]
pub struct Sources {
    /// Answers for [`Location::Vault`].
    pub vault: Option<VaultSource>,
    /// Answers for [`Location::File`].
    pub file: Option<FileSource>,
}

impl Sources {
    fn of(&self, location: &Location) -> Result<&dyn SecretSource, FetchError> {
        match location {
            Location::Vault(_) => self.lender(),
            Location::File(_) => match &self.file {
                Some(file) => Ok(file),
                None => Err(FetchError::Gone(SecretCause::NotInFile, "no secret file is set")),
            },
        }
    }

    /// Returns the source that lends, which only Vault does.
    fn lender(&self) -> Result<&dyn SecretSource, FetchError> {
        match &self.vault {
            Some(vault) => Ok(vault),
            None => Err(FetchError::Gone(SecretCause::VaultUnreachable, "no Vault is set")),
        }
    }
}

impl SecretSource for Sources {
    fn fetch<'a>(
        &'a self,
        group: &'a GroupName,
        location: &'a Location,
        picks: &'a [Pick],
    ) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        match self.of(location) {
            Ok(source) => source.fetch(group, location, picks),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn renew<'a>(
        &'a self,
        group: &'a GroupName,
        lease: &'a Lease,
    ) -> BoxFuture<'a, Result<Prolonged, FetchError>> {
        match self.lender() {
            Ok(source) => source.renew(group, lease),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn check<'a>(
        &'a self,
        group: &'a GroupName,
        location: &'a Location,
        lease: &'a Lease,
    ) -> BoxFuture<'a, Result<Standing, FetchError>> {
        match self.of(location) {
            Ok(source) => source.check(group, location, lease),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn revoke<'a>(
        &'a self,
        group: &'a GroupName,
        lease: &'a Lease,
    ) -> BoxFuture<'a, Result<(), FetchError>> {
        match self.lender() {
            Ok(source) => source.revoke(group, lease),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn generation(&self, group: &GroupName) -> u64 {
        self.lender().map_or(0, |source| source.generation(group))
    }

    fn try_again(&self) {
        if let Some(vault) = &self.vault {
            vault.try_again();
        }
    }

    fn tend(&self) -> BoxFuture<'_, ()> {
        match &self.vault {
            Some(vault) => vault.tend(),
            None => Box::pin(std::future::pending()),
        }
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        match &self.vault {
            Some(vault) => vault.close(),
            None => Box::pin(std::future::ready(())),
        }
    }
}
