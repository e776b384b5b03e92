//! The result of a lookup.

use std::{net::IpAddr, sync::Arc, time::Instant};

/// The resolvers' answer about a name.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Every address, IPv4 and IPv6, never none. Not checked: each is checked right before it is
    /// dialled or given away.
    pub addresses: Arc<[IpAddr]>,
    /// The time until which they may be used.
    pub until: Instant,
}

/// The reasons why there is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// There is no such name.
    #[error("there is no such name")]
    NoName,
    /// The name has no address.
    #[error("the name has no address")]
    NoAddress,
    /// No resolver gave an answer, or too many names are being resolved.
    #[error("no resolver answers for the name")]
    Failed,
}

/// The result of looking a name up.
pub(super) type LookupOutcome = Result<Resolved, Unresolved>;
