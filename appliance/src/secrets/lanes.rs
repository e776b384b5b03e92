//! How many questions go to the sources at once.

use std::time::Duration;

use crate::policy::{GroupName, Location};

/// Questions of one group to one kind of source have a bound of their own: neither a slow Vault
/// may hold up the file, nor one group another.
pub(super) type Lane = (SourceKind, GroupName);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum SourceKind {
    Vault,
    File,
}

pub(super) const SOURCE_KINDS: [SourceKind; 2] = [SourceKind::Vault, SourceKind::File];

pub(super) fn lane((group, location): &(GroupName, Location)) -> Lane {
    (kind(location), group.clone())
}

pub(super) const fn kind(location: &Location) -> SourceKind {
    match location {
        Location::Vault(_) => SourceKind::Vault,
        Location::File(_) => SourceKind::File,
    }
}

impl SourceKind {
    /// Questions to this kind at once: of one lane among so many, and of all groups together. The
    /// longest due go first, and groups whose questions hang leave the others room.
    ///
    /// A file is read once for all questions of a moment: they cost nothing to ask, and apart from
    /// each other each of them is a read.
    pub(super) fn at_once(self, lanes: usize) -> (usize, usize) {
        match self {
            Self::Vault => {
                let of_lane = (REQUESTS_IN_ALL / lanes.max(1)).clamp(1, REQUESTS_AT_ONCE);
                (of_lane, REQUESTS_IN_ALL)
            }
            Self::File => (usize::MAX, usize::MAX),
        }
    }

    /// What is due within this time of another question is asked with it. Times are spread over
    /// the last fifth of `refresh`, for the sake of a server.
    pub(super) fn asked_together(self, refresh: Duration) -> Duration {
        match self {
            Self::Vault => Duration::ZERO,
            Self::File => refresh / 5,
        }
    }
}

/// Questions of one [`Lane`] to Vault at once; fewer where there are so many lanes that these would
/// fill all of [`REQUESTS_IN_ALL`].
pub(super) const REQUESTS_AT_ONCE: usize = 8;

/// Questions of all groups to Vault at once.
pub(super) const REQUESTS_IN_ALL: usize = 64;
