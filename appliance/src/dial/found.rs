//! The result of a lookup.

use std::{net::IpAddr, sync::Arc, time::Instant};

/// What the resolvers said about a name.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Every address, IPv4 and IPv6, never none. Not checked: that is done right before each is
    /// dialled or given away.
    pub addresses: Arc<[IpAddr]>,
    /// How long they may be used.
    pub until: Instant,
}

/// Why there is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// There is no such name.
    #[error("there is no such name")]
    NoName,
    /// The name has no address.
    #[error("the name has no address")]
    NoAddress,
    /// No resolver said either, or too many names are being asked for.
    #[error("no resolver answers for the name")]
    Failed,
}

/// What is known of a name.
pub(super) type LookupOutcome = Result<Resolved, Unresolved>;
