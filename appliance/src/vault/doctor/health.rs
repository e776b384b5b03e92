//! The doctor's findings, as lines for people. Carries no secret: paths, names and our own words.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::super::{VaultSourceError, plan::PlanError};
use crate::{ca::CaError, policy::GroupName};

/// The findings of an examination.
#[derive(Debug, Default)]
pub struct DoctorReport {
    pub(super) checks: Vec<Check>,
    /// The paths that each group can read, among those that were asked about.
    pub(super) reads: BTreeMap<GroupName, BTreeSet<String>>,
}

#[derive(Debug)]
pub(super) struct Check {
    pub(super) verdict: CheckVerdict,
    pub(super) whose: String,
    pub(super) text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CheckVerdict {
    Ok,
    Missing,
    TooWide,
    Unanswered,
}

/// The reason why nothing could be examined.
#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    /// The configuration asks for something that no Vault can be told.
    #[error(transparent)]
    Plan(PlanError),
    /// The files for Vault cannot be used.
    #[error(transparent)]
    Source(VaultSourceError),
    /// The issuing CAs cannot be asked for.
    #[error("{0}")]
    Ca(CaError),
    /// The SecretID is wrapped, and opening it would take it from the gateway.
    #[error(
        "the SecretID is wrapped and opens once, for the gateway; make another one and give it with \
         --secret-id-file"
    )]
    Wrapped,
    /// The examination was interrupted before its end.
    #[error("interrupted before everything was looked at")]
    Interrupted,
}

impl DoctorReport {
    /// Whether nothing is missing, too wide or unanswered.
    pub fn is_good(&self) -> bool {
        self.checks.iter().all(|check| check.verdict == CheckVerdict::Ok)
    }
}

impl fmt::Display for DoctorReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Check { verdict, whose, text } in &self.checks {
            writeln!(f, "{:<9} {whose}: {text}", verdict.as_str())?;
        }
        for (group, paths) in &self.reads {
            writeln!(f, "\ngroup {group} can read:")?;
            paths.iter().try_for_each(|path| writeln!(f, "  {path}"))?;
        }
        let count = |verdict| self.checks.iter().filter(|it| it.verdict == verdict).count();
        write!(f, "\n{} checks: ", self.checks.len())?;
        match self.is_good() {
            true => f.write_str("healthy\n"),
            false => writeln!(
                f,
                "{} missing, {} too wide, {} unanswered",
                count(CheckVerdict::Missing),
                count(CheckVerdict::TooWide),
                count(CheckVerdict::Unanswered)
            ),
        }
    }
}

impl CheckVerdict {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Missing => "missing",
            Self::TooWide => "too wide",
            Self::Unanswered => "unknown",
        }
    }
}
