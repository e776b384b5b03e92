//! The reasons why the daemon did not start, or did not take a new policy.

use std::fmt;

use crate::{ca::CaError, config, packets::PacketsError, policy_snapshot::PolicySnapshotError};

// The text of a `PacketsError` or a `CaError` includes that of its source. So a variant that wraps
// one has no source, and `{0}` instead of `transparent`: a chain of errors would repeat the text.

/// The reasons why the daemon did not start, or a reload was not taken.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration, with every error in it.
    #[error(transparent)]
    Config(config::Errors),
    /// Packets, routes or listeners.
    #[error("{0}")]
    Packets(PacketsError),
    /// Issuing CAs.
    #[error("{0}")]
    Ca(CaError),
    /// Certificates.
    #[error(transparent)]
    PolicySnapshot(PolicySnapshotError),
    /// Anything else, in one line.
    #[error("{0}")]
    Other(String),
}

impl From<PacketsError> for DaemonError {
    fn from(error: PacketsError) -> Self {
        Self::Packets(error)
    }
}

/// Creates an error that has no variant of its own.
pub(super) fn other(what: &str, error: &dyn fmt::Display) -> DaemonError {
    DaemonError::Other(format!("{what}: {error}"))
}
