//! The sources of values: one trait, two implementations.
//!
//! A source answers with values, with "there is none for this group" or with "I cannot tell now".
//! The difference decides what happens to a value that is already held: the second drops it at
//! once, the third keeps it for a while. Values may be leased: they are renewed and given back by
//! their [`Lease`].

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

use super::SecretValue;
use crate::{
    policy::{GroupName, Location, Narrowing, Pick},
    reason::SecretCause,
};

/// A source that can be asked for values.
pub trait SecretSource: Send + Sync + 'static {
    /// Returns the values of `location` that `group` may have: one for each of `picks`, in their
    /// order.
    ///
    /// Ends within a time that the source bounds.
    fn fetch<'a>(
        &'a self,
        group: &'a GroupName,
        location: &'a Location,
        picks: &'a [Pick],
    ) -> BoxFuture<'a, Result<Fetched, FetchError>>;

    /// Renews a lease for another full life.
    fn renew<'a>(
        &'a self,
        _group: &'a GroupName,
        _lease: &'a Lease,
    ) -> BoxFuture<'a, Result<Prolonged, FetchError>> {
        Box::pin(std::future::ready(Err(NOTHING_LENT)))
    }

    /// Asks whether a lease is still good, and whether the group may still have its value.
    fn check<'a>(
        &'a self,
        _group: &'a GroupName,
        _location: &'a Location,
        _lease: &'a Lease,
    ) -> BoxFuture<'a, Result<Standing, FetchError>> {
        Box::pin(std::future::ready(Ok(Standing::Good)))
    }

    /// Gives a lease back before its time.
    fn revoke<'a>(
        &'a self,
        _group: &'a GroupName,
        _lease: &'a Lease,
    ) -> BoxFuture<'a, Result<(), FetchError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Returns a number that changes with the token of the group: leases of older tokens end with
    /// these tokens.
    fn generation(&self, _group: &GroupName) -> u64 {
        0
    }

    /// Allows another attempt at everything that was refused, because an operator asks for it.
    fn try_again(&self) {}

    /// Keeps a token alive that the source needs between requests. Never returns.
    fn tend(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }

    /// Gives back all leases and tokens of the source, at shutdown. Ends within a time that the
    /// source bounds.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// The result of one read.
pub struct Fetched {
    /// The result of each pick, before any check of the value.
    pub values: Vec<Result<PickedValue, FetchError>>,
    /// Set where the values are leased.
    pub lease: Option<Lease>,
    /// The time after which other values replace these, if the source says so and there is no
    /// lease.
    pub changes_in: Option<Duration>,
    /// The owner restrictions of the secret.
    pub narrowing: Arc<Narrowing>,
}

/// The result of a pick.
pub struct PickedValue {
    /// The value.
    pub whole: Zeroizing<Vec<u8>>,
    /// The fields from which the value was made, where none is all of it: they are as secret, and
    /// are masked like the value.
    pub parts: Vec<Zeroizing<Vec<u8>>>,
}

impl PickedValue {
    /// Returns whether any binding could use it.
    pub(crate) fn is_usable(&self) -> bool {
        SecretValue::check(&self.whole, SecretValue::FLOOR_BYTES).is_ok()
    }
}

impl From<Zeroizing<Vec<u8>>> for PickedValue {
    fn from(whole: Zeroizing<Vec<u8>>) -> Self {
        Self { whole, parts: vec![] }
    }
}

/// The terms of a lease.
#[derive(Clone)]
pub struct Lease {
    /// The source's id of the lease; empty for a lease that ends by itself and cannot be given
    /// back. The id allows its holder to end the lease, so it is not shown.
    pub id: Arc<Zeroizing<String>>,
    /// Time for which it is good, counted from the answer.
    pub life: Duration,
    /// Whether it can be renewed.
    pub renewable: bool,
    /// The [`SecretSource::generation`] of the token under which it was made.
    pub generation: u64,
}

/// The result of a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prolonged {
    /// Time for which the lease is good, counted from the answer.
    pub life: Duration,
    /// Whether it can be renewed again.
    pub renewable: bool,
}

/// The state of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is good, as far as the source tells.
    Good,
    /// It was ended before its time: another one may be available.
    Ended,
    /// The group may have lost the right to it, and only another read tells.
    Doubtful,
}

/// The reasons why there is no value. Each carries a cause and a fixed text for the operator, and
/// nothing from a server or a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchError {
    /// The source says that there is no value for this group: the held value is dropped.
    Gone(SecretCause, &'static str),
    /// The source cannot tell: the held value stays until it is too old.
    Outage(SecretCause, &'static str),
    /// The same, and the source asks not to be asked for this long.
    Busy(Duration),
}

impl FetchError {
    /// Returns the cause, for the audit.
    pub const fn cause(self) -> SecretCause {
        match self {
            Self::Gone(cause, _) | Self::Outage(cause, _) => cause,
            Self::Busy(_) => SecretCause::VaultQuota,
        }
    }

    /// Returns the text for the operator.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Gone(_, text) | Self::Outage(_, text) => text,
            Self::Busy(_) => {
                "a quota of Vault's is used up: raise it for the gateway, or read less often (refresh)"
            }
        }
    }

    /// Returns whether the source says that there is no value.
    pub const fn is_gone(self) -> bool {
        matches!(self, Self::Gone(..))
    }

    /// Returns how long the source asks not to be asked.
    pub(super) const fn asks_for(self) -> Duration {
        match self {
            Self::Busy(time) => time,
            Self::Gone(..) | Self::Outage(..) => Duration::ZERO,
        }
    }

    /// Returns whether both have the same meaning for an operator.
    pub(super) fn is_like(self, other: Self) -> bool {
        (self.is_gone(), self.cause(), self.text())
            == (other.is_gone(), other.cause(), other.text())
    }
}

const NOTHING_LENT: FetchError =
    FetchError::Gone(SecretCause::LeaseEnded, "this source lends nothing");
