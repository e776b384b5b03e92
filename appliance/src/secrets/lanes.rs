//! How many questions go to the sources at once.

use crate::policy::{GroupName, Location};

/// Questions of one group to one kind of source have a bound of their own: neither a slow Vault
/// may hold up the file, nor one group another.
pub(super) type Lane = (SourceKind, GroupName);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum SourceKind {
    Vault,
    File,
}

pub(super) fn lane((group, location): &(GroupName, Location)) -> Lane {
    (kind(location), group.clone())
}

pub(super) const fn kind(location: &Location) -> SourceKind {
    match location {
        Location::Vault(_) => SourceKind::Vault,
        Location::File(_) => SourceKind::File,
    }
}

/// Questions of one [`Lane`] at once; fewer where there are so many lanes that these would fill all
/// of [`REQUESTS_IN_ALL`].
pub(super) const REQUESTS_AT_ONCE: usize = 8;

/// Questions of all groups to one kind of source at once. The longest due go first, and groups
/// whose questions hang leave the others room.
pub(super) const REQUESTS_IN_ALL: usize = 64;
