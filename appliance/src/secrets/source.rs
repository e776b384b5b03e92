//! Where values come from: one question, two makers.
//!
//! A source answers with the value, with "there is none for this group" or with "I cannot tell
//! now". The difference decides what happens to a value that is already held: the second drops
//! it at once, the third keeps it for a while.

use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

use super::{FileSource, VaultSource};
use crate::{
    policy::{GroupName, SecretRef},
    reason::SecretCause,
};

/// Something that can be asked for the value behind a reference.
pub trait SecretSource: Send + Sync + 'static {
    /// The bytes behind `reference` as `group` may have them, before any check of the value.
    ///
    /// Ends within a time that the source bounds.
    fn fetch<'a>(
        &'a self,
        group: &'a GroupName,
        reference: &'a SecretRef,
    ) -> BoxFuture<'a, Result<Zeroizing<Vec<u8>>, FetchError>>;

    /// Keeps what the source needs between questions (a token) alive. Never returns.
    fn tend(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }

    /// Gives back what the source holds, at shutdown. Ends within a time that the source bounds.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// Why there is no value. Both carry a cause and a fixed text for the operator, and nothing that
/// a server or a file said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchError {
    /// The source says that there is no value for this group: what is held is dropped.
    Gone(SecretCause, &'static str),
    /// The source cannot tell: what is held stays until it is too old.
    Outage(SecretCause, &'static str),
}

impl FetchError {
    /// The cause, for the audit.
    pub const fn cause(self) -> SecretCause {
        match self {
            Self::Gone(cause, _) | Self::Outage(cause, _) => cause,
        }
    }

    /// What the operator should know.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Gone(_, text) | Self::Outage(_, text) => text,
        }
    }
}

/// The sources of one gateway; either may be absent.
#[derive(Default)]
pub struct Sources {
    /// Answers for [`SecretRef::VaultKv2`].
    pub vault: Option<VaultSource>,
    /// Answers for [`SecretRef::File`].
    pub file: Option<FileSource>,
}

impl SecretSource for Sources {
    fn fetch<'a>(
        &'a self,
        group: &'a GroupName,
        reference: &'a SecretRef,
    ) -> BoxFuture<'a, Result<Zeroizing<Vec<u8>>, FetchError>> {
        match (reference, &self.vault, &self.file) {
            (SecretRef::VaultKv2 { .. }, Some(vault), _) => vault.fetch(group, reference),
            (SecretRef::File { .. }, _, Some(file)) => file.fetch(group, reference),
            (SecretRef::VaultKv2 { .. }, None, _) => {
                let no_vault = FetchError::Gone(SecretCause::VaultUnreachable, "no Vault is set");
                Box::pin(std::future::ready(Err(no_vault)))
            }
            (SecretRef::File { .. }, _, None) => {
                let no_file = FetchError::Gone(SecretCause::NotInFile, "no secret file is set");
                Box::pin(std::future::ready(Err(no_file)))
            }
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
