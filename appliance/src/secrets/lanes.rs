//! The bounds on how many requests go to the sources at once.

use std::time::Duration;

use crate::policy::{GroupName, Location};

/// The requests of one group to one kind of source, which have a bound of their own: a slow Vault
/// must not delay the file, nor one group another.
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
    /// Returns the most requests to this kind at once: of one lane, and of all lanes of all groups
    /// together. The longest due go first, and groups whose requests hang leave the others room.
    ///
    /// A file is read once for all requests of a moment: together they cost nothing, and apart each
    /// of them is a read.
    pub(super) fn at_once(self, lanes: usize) -> (usize, usize) {
        match self {
            Self::Vault => {
                let of_lane = (REQUESTS_IN_ALL / lanes.max(1)).clamp(1, REQUESTS_AT_ONCE);
                (of_lane, REQUESTS_IN_ALL)
            }
            Self::File => (usize::MAX, usize::MAX),
        }
    }

    /// Returns the time within which a request is sent together with one that is due. A server's
    /// requests are spread over the last fifth of `refresh`.
    pub(super) fn asked_together(self, refresh: Duration) -> Duration {
        match self {
            Self::Vault => Duration::ZERO,
            Self::File => refresh / 5,
        }
    }
}

/// Most requests of one [`Lane`] to Vault at once; fewer where so many lanes would fill all of
/// [`REQUESTS_IN_ALL`].
pub(super) const REQUESTS_AT_ONCE: usize = 8;

/// Most requests of all groups to Vault at once.
pub(super) const REQUESTS_IN_ALL: usize = 64;
