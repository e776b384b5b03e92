//! What can be wrong with a Vault, in our own words: nothing here carries what Vault said.

use std::path::PathBuf;

use super::super::{FetchError, PrivateFileError};
use crate::reason::SecretCause;

/// Why Vault cannot be used at all. Found at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VaultSourceError {
    /// The address is not `https://host:port`, or `http` to somewhere else than loopback.
    Address(&'static str),
    /// The CA file cannot be used.
    CaFile(PathBuf, &'static str),
    /// A file that the login needs cannot be used.
    LoginFile(PathBuf, PrivateFileError),
    /// A file that the login needs holds something else.
    LoginContent(PathBuf, &'static str),
    /// A path or name has bytes that cannot be sent.
    Setting(&'static str),
}

/// Why a question has no answer. Carries nothing that Vault said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallError {
    /// An answer that is no success.
    Status {
        /// The HTTP status.
        code: u16,
        /// Whether it says that Vault is sealed.
        sealed: bool,
        /// Whether it says that there is no such token.
        unknown_token: bool,
    },
    /// No answer.
    Transport(&'static str),
}

impl CallError {
    /// What Vault's policies do not allow.
    pub(crate) const DENIED: Self = Self::Status { code: 403, sealed: false, unknown_token: false };

    /// The error where the status is not about the question itself.
    pub(crate) const fn outage(self) -> FetchError {
        use SecretCause::{VaultSealed, VaultUnreachable};
        match self {
            Self::Status { code: 503, sealed: true, .. } => {
                FetchError::Outage(VaultSealed, "Vault is sealed")
            }
            // https://developer.hashicorp.com/vault/api-docs/system/health
            Self::Status { code: 429 | 472 | 473 | 501, .. } => {
                FetchError::Outage(VaultSealed, "Vault is in standby, not initialised, or busy")
            }
            Self::Status { code: 300..=399, .. } => FetchError::Outage(
                VaultUnreachable,
                "Vault answered with a redirect to no node of its cluster; list the nodes in peers",
            ),
            Self::Status { .. } => {
                FetchError::Outage(VaultUnreachable, "Vault answered with an error")
            }
            Self::Transport(text) => FetchError::Outage(VaultUnreachable, text),
        }
    }

    /// Whether another node of the cluster may know better.
    pub(super) const fn is_about_the_node(self) -> bool {
        matches!(
            self,
            Self::Status { code: 429 | 472 | 473 | 501, .. }
                | Self::Status { code: 503, sealed: true, .. }
        )
    }

    /// Whether the question was refused, and not just left unanswered. A timeout, a node that is
    /// behind and "too early" (408, 412, 425) ask for it again.
    pub(super) const fn is_refusal(self) -> bool {
        match self {
            Self::Status { code: 408 | 412 | 425 | 429 | 472 | 473, .. } => false,
            Self::Status { code, .. } => matches!(code, 400..=499),
            Self::Transport(_) => false,
        }
    }
}

impl std::fmt::Display for VaultSourceError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(what) => write!(f, "vault address: {what}"),
            Self::CaFile(path, what) => write!(f, "vault ca_file {}: {what}", path.display()),
            Self::LoginFile(path, error) => write!(f, "vault login, {}: {error}", path.display()),
            Self::LoginContent(path, what) => {
                write!(f, "vault login, {}: {what}", path.display())
            }
            Self::Setting(what) => write!(f, "vault: {what}"),
        }
    }
}

impl std::error::Error for VaultSourceError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_that_is_not_about_the_question_is_an_outage_with_its_cause() {
        let status = |code, sealed| CallError::Status { code, sealed, unknown_token: false };
        let cause = |code, sealed| status(code, sealed).outage().cause();
        assert_eq!(cause(503, true), SecretCause::VaultSealed);
        assert_eq!(cause(503, false), SecretCause::VaultUnreachable);
        for code in [429, 472, 473, 501] {
            assert_eq!(cause(code, false), SecretCause::VaultSealed, "{code}");
            assert!(!status(code, false).is_refusal(), "{code}");
        }
        for code in [301, 307, 408, 412, 425, 500, 502, 504] {
            assert_eq!(cause(code, false), SecretCause::VaultUnreachable, "{code}");
            assert!(!status(code, false).is_refusal(), "{code}");
        }
        for code in [400, 403, 404, 405, 413] {
            assert!(status(code, false).is_refusal(), "{code}");
        }
    }
}
