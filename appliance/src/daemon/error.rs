//! Why the daemon did not start, or did not take a new policy.

use std::fmt;

use crate::{ca::CaError, config, packets::PacketsError, rulebook::RulebookError};

/// Why the daemon did not start, or a reload was not taken.
#[derive(Debug)]
pub enum DaemonError {
    /// The configuration, with every error in it.
    Config(config::Errors),
    /// Packets, routes or listeners.
    Packets(PacketsError),
    /// Issuing CAs.
    Ca(CaError),
    /// Certificates.
    Rulebook(RulebookError),
    /// Anything else, said in one line.
    Other(String),
}

impl From<PacketsError> for DaemonError {
    fn from(error: PacketsError) -> Self {
        Self::Packets(error)
    }
}

impl fmt::Display for DaemonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(errors) => errors.fmt(f),
            Self::Packets(error) => error.fmt(f),
            Self::Ca(error) => error.fmt(f),
            Self::Rulebook(error) => error.fmt(f),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for DaemonError {}

/// Something that has no word of its own.
pub(super) fn other(what: &str, error: &dyn fmt::Display) -> DaemonError {
    DaemonError::Other(format!("{what}: {error}"))
}
