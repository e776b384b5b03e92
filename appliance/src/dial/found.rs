//! What resolvers say about a name.

use std::{fmt, net::IpAddr, sync::Arc, time::Instant};

/// What the resolvers said about a name.
#[derive(Debug, Clone)]
pub struct Found {
    /// Every address, IPv4 and IPv6, never none. Not checked: that is done right before each is
    /// dialled or given away.
    pub addresses: Arc<[IpAddr]>,
    /// How long they may be used.
    pub until: Instant,
}

/// Why there is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unresolved {
    /// There is no such name.
    NoName,
    /// The name has no address.
    NoAddress,
    /// No resolver said either, or too many names are being asked for.
    Failed,
}

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoName => "there is no such name",
            Self::NoAddress => "the name has no address",
            Self::Failed => "no resolver answers for the name",
        })
    }
}

impl std::error::Error for Unresolved {}

/// What is known of a name.
pub(super) type Outcome = Result<Found, Unresolved>;
