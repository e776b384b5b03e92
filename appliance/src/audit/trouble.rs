//! The faults of the audit, and the remedy of each.

use std::{fmt, io};

use crate::health::{HealthCause, HealthState};

/// A fault of the audit. All but one close the gateway, because nothing may be done that cannot be
/// recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// Its file system has less room, in bytes, than is kept for the records of flows under way.
    Reserve {
        /// The room that is left.
        left: u64,
        /// The room that is kept, `audit_reserve`.
        kept: u64,
    },
    /// Its file system has no room at all, or its user has none left (`ENOSPC`, `EDQUOT`).
    Full(String),
    /// A write failed in another way.
    Unwritten(String),
    /// The file was removed, or is to be reopened, and cannot be opened.
    Unopened(String),
    /// Records come faster than the disk takes them.
    Behind,
    /// The writer's thread has ended.
    Ended,
    /// The file has reached its size and cannot be moved aside; lines are still written to it.
    Unrotated(String),
}

impl Trouble {
    /// Classifies the error of a write.
    pub(super) fn unwritten(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full(error.to_string())
            }
            _ => Self::Unwritten(error.to_string()),
        }
    }

    /// Classifies the error of opening the file.
    pub(super) fn unopened(error: &io::Error) -> Self {
        Self::Unopened(error.to_string())
    }

    /// Returns its cause in the gateway's health.
    pub fn cause(&self) -> HealthCause {
        match self {
            Self::Reserve { .. } => HealthCause::AuditReserve,
            Self::Full(_) => HealthCause::AuditFull,
            Self::Unwritten(_) => HealthCause::AuditUnwritten,
            Self::Unopened(_) => HealthCause::AuditUnopened,
            Self::Behind => HealthCause::AuditBehind,
            Self::Ended => HealthCause::AuditEnded,
            Self::Unrotated(_) => HealthCause::AuditUnrotated,
        }
    }

    /// Returns its word, for machines.
    pub fn as_str(&self) -> &'static str {
        self.cause().as_str()
    }

    /// Returns whether it closes the gateway.
    pub fn closes(&self) -> bool {
        self.cause().state() == HealthState::Closed
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reserve { left, kept } => write!(
                f,
                "its file system has {} left, and audit_reserve keeps {} for what is under way; \
                 free space there",
                mib(*left),
                mib(*kept)
            ),
            Self::Full(error) => write!(f, "its file system is full ({error}); free space there"),
            Self::Unwritten(error) => write!(f, "a write failed ({error})"),
            Self::Unopened(error) => {
                write!(f, "its file cannot be opened ({error}); see to its folder and its owner")
            }
            Self::Behind => {
                f.write_str("records come faster than its disk takes them; see to the disk")
            }
            Self::Ended => f.write_str("its thread has ended, which is a bug; restart the daemon"),
            Self::Unrotated(error) => write!(
                f,
                "the file has reached audit_rotate and cannot be moved aside ({error}); the daemon \
                 must be able to write to its folder"
            ),
        }
    }
}

/// Formats bytes for people.
fn mib(bytes: u64) -> String {
    match bytes >> 20 {
        0 => format!("{} KiB", bytes >> 10),
        mib => format!("{mib} MiB"),
    }
}
