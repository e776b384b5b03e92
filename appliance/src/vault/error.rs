//! The faults of a Vault, in our own words: none carries Vault's text.

use std::{io, path::PathBuf, time::Duration};

use crate::{
    reason::SecretCause,
    secrets::{FetchError, PrivateFileError},
};

/// The reason why Vault cannot be used at all, found at the start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VaultSourceError {
    /// The address is not `https://host:port`, or `http` to somewhere else than loopback.
    #[error("vault address: {0}")]
    Address(&'static str),
    /// The CA file cannot be used.
    #[error("vault ca_file {0}: {1}")]
    CaFile(PathBuf, &'static str),
    /// A file that the login needs, by its key, cannot be used.
    #[error("{0} {path}: {2}{remedy}", path = .1.display(), remedy = remedy(.0, *.2))]
    LoginFile(&'static str, PathBuf, PrivateFileError),
    /// A file that the login needs, by its key, holds something else.
    #[error("{0} {path}: {2}", path = .1.display())]
    LoginContent(&'static str, PathBuf, &'static str),
    /// A path or name has bytes that cannot be sent.
    #[error("vault: {0}")]
    Setting(&'static str),
}

/// Returns how to make a file that is missing.
fn remedy(key: &str, error: PrivateFileError) -> &'static str {
    let is_missing = error == PrivateFileError::Unreadable(io::ErrorKind::NotFound);
    match key {
        SECRET_ID_FILE if is_missing => "; make one as the end of `cloakroom vault plan` says",
        _ => "",
    }
}

/// The keys of the files that logins need.
pub(super) const SECRET_ID_FILE: &str = "secret_id_file";
pub(super) const CERTIFICATE_FILE: &str = "certificate_file";
pub(super) const KEY_FILE: &str = "key_file";
pub(super) const TOKEN_FILE: &str = "token_file";

/// The reason why a request has no answer. Carries no text of Vault's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallError {
    /// Vault's answer is not a success.
    Status {
        /// The HTTP status.
        code: u16,
        /// The meaning of its text.
        says: Says,
        /// The time for which it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// Vault did not answer.
    Transport(&'static str),
}

/// The meaning of an answer's text, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Says {
    /// Vault is sealed.
    Sealed,
    /// Vault does not know the token.
    UnknownToken,
    /// Role and SecretID do not belong together. Vault counts such attempts, and locks the role
    /// out.
    WrongCredentials,
    /// The token has no entity.
    NoEntity,
    /// Anything else.
    Other,
}

impl CallError {
    /// The error where Vault's policies do not allow a request.
    pub(crate) const DENIED: Self =
        Self::Status { code: 403, says: Says::Other, retry_after: None };

    /// Whether Vault does not know the token.
    pub(crate) const fn is_unknown_token(self) -> bool {
        matches!(self, Self::Status { says: Says::UnknownToken, .. })
    }

    /// Returns the error for a status that does not depend on the request.
    pub(crate) const fn outage(self) -> FetchError {
        use SecretCause::{VaultSealed, VaultUnreachable};
        match self {
            Self::Status { code: 503, says: Says::Sealed, .. } => {
                FetchError::Outage(VaultSealed, "Vault is sealed: unseal it")
            }
            // https://developer.hashicorp.com/vault/api-docs#http-status-codes
            Self::Status { code: 429, retry_after, .. } => FetchError::Busy(match retry_after {
                Some(time) => time,
                None => Duration::ZERO,
            }),
            // https://developer.hashicorp.com/vault/api-docs/system/health
            Self::Status { code: 472 | 473 | 501, .. } => FetchError::Outage(
                VaultSealed,
                "Vault is in standby or not initialised: list the other nodes in peers, or \
                 initialise it",
            ),
            Self::Status { code: 300..=399, .. } => FetchError::Outage(
                VaultUnreachable,
                "Vault answered with a redirect to no node of its cluster; list the nodes in peers",
            ),
            Self::Status { .. } => FetchError::Outage(
                VaultUnreachable,
                "Vault answered with an error of its own: look into its log",
            ),
            Self::Transport(text) => FetchError::Outage(VaultUnreachable, text),
        }
    }

    /// Whether another node of the cluster may give another answer.
    pub(super) const fn is_about_the_node(self) -> bool {
        matches!(
            self,
            Self::Status { code: 472 | 473 | 501, .. }
                | Self::Status { code: 503, says: Says::Sealed, .. }
        )
    }

    /// Whether the request was refused, and not just left unanswered. A timeout, a node that is
    /// behind, "too early" and a quota (408, 412, 425, 429) mean that it may be repeated.
    pub(super) const fn is_refusal(self) -> bool {
        match self {
            Self::Status { code: 408 | 412 | 425 | 429 | 472 | 473, .. } => false,
            Self::Status { code, .. } => matches!(code, 400..=499),
            Self::Transport(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, says: Says) -> CallError {
        CallError::Status { code, says, retry_after: None }
    }

    #[test]
    fn an_unrelated_status_is_an_outage_with_its_cause() {
        let cause = |code, says| status(code, says).outage().cause();
        assert_eq!(cause(503, Says::Sealed), SecretCause::VaultSealed);
        assert_eq!(cause(503, Says::Other), SecretCause::VaultUnreachable);
        for (codes, expected) in [
            (&[472, 473, 501][..], SecretCause::VaultSealed),
            (&[429], SecretCause::VaultQuota),
            (&[301, 307, 408, 412, 425, 500, 502, 504], SecretCause::VaultUnreachable),
        ] {
            for &code in codes {
                assert_eq!(cause(code, Says::Other), expected, "{code}");
                assert!(!status(code, Says::Other).is_refusal(), "{code}");
            }
        }
        for code in [400, 403, 404, 405, 413] {
            assert!(status(code, Says::Other).is_refusal(), "{code}");
        }
    }

    #[test]
    fn a_quota_says_how_long_to_wait() {
        let second = Duration::from_secs(1);
        let busy = CallError::Status { code: 429, says: Says::Other, retry_after: Some(second) };
        assert_eq!(busy.outage(), FetchError::Busy(second));
        assert!(!busy.is_about_the_node(), "each node has the same quota");
    }
}
