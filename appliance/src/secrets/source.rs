//! Where values come from: one question, two makers.
//!
//! A source answers with values, with "there is none for this group" or with "I cannot tell
//! now". The difference decides what happens to a value that is already held: the second drops
//! it at once, the third keeps it for a while. Values may be lent: what was lent is prolonged
//! and given back by its [`Lease`].

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

use super::SecretValue;
use crate::{
    policy::{GroupName, Location, Narrowing, Pick},
    reason::SecretCause,
};

/// Something that can be asked for values.
pub trait SecretSource: Send + Sync + 'static {
    /// What `group` may have of `location`: one value for each of `picks`, in their order.
    ///
    /// Ends within a time that the source bounds.
    fn fetch<'a>(
        &'a self,
        group: &'a GroupName,
        location: &'a Location,
        picks: &'a [Pick],
    ) -> BoxFuture<'a, Result<Fetched, FetchError>>;

    /// Asks for a lease to go on for another full life.
    fn renew<'a>(
        &'a self,
        _group: &'a GroupName,
        _lease: &'a Lease,
    ) -> BoxFuture<'a, Result<Prolonged, FetchError>> {
        Box::pin(std::future::ready(Err(NOTHING_LENT)))
    }

    /// Asks whether a lease is still good, and whether the group may still have what was lent.
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

    /// A number that changes with the token of the group: what older tokens were lent ends with
    /// them.
    fn generation(&self, _group: &GroupName) -> u64 {
        0
    }

    /// An operator asks for another try with whatever was refused.
    fn try_again(&self) {}

    /// Keeps what the source needs between questions (a token) alive. Never returns.
    fn tend(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }

    /// Gives back what the source holds, at shutdown. Ends within a time that the source bounds.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// What one read brought.
pub struct Fetched {
    /// What each pick made of it, before any check of the value.
    pub values: Vec<Result<PickedValue, FetchError>>,
    /// Set where the values are lent.
    pub lease: Option<Lease>,
    /// In how long others take their place, where the source says so and they are not lent.
    pub changes_in: Option<Duration>,
    /// What the owner of the secret allows.
    pub narrowing: Arc<Narrowing>,
}

/// What a pick made of an answer.
pub struct PickedValue {
    /// The value.
    pub whole: Zeroizing<Vec<u8>>,
    /// The fields that it was made of, where they are not all of it: they are as secret, and are
    /// masked like it.
    pub parts: Vec<Zeroizing<Vec<u8>>>,
}

impl PickedValue {
    /// Whether any binding could use it.
    pub(crate) fn is_usable(&self) -> bool {
        SecretValue::check(&self.whole, SecretValue::FLOOR_BYTES).is_ok()
    }
}

impl From<Zeroizing<Vec<u8>>> for PickedValue {
    fn from(whole: Zeroizing<Vec<u8>>) -> Self {
        Self { whole, parts: vec![] }
    }
}

/// The terms on which values were lent.
#[derive(Clone)]
pub struct Lease {
    /// What the source knows it by; empty for what ends by itself and cannot be given back. Who
    /// holds this may end the lease: it is not shown.
    pub id: Arc<Zeroizing<String>>,
    /// How long it is good from the answer on.
    pub life: Duration,
    /// Whether it can be prolonged.
    pub renewable: bool,
    /// The [`SecretSource::generation`] of the token that it was lent to.
    pub generation: u64,
}

/// What a renewal brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prolonged {
    /// How long the lease is good from the answer on.
    pub life: Duration,
    /// Whether it can be prolonged again.
    pub renewable: bool,
}

/// How a lease stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is good, as far as the source tells.
    Good,
    /// It was ended before its time: there may be another to be had.
    Ended,
    /// The group may have lost the right to it, and nothing but reading again tells.
    Doubtful,
}

/// Why there is no value. Both carry a cause and a fixed text for the operator, and nothing that
/// a server or a file said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchError {
    /// The source says that there is no value for this group: what is held is dropped.
    Gone(SecretCause, &'static str),
    /// The source cannot tell: what is held stays until it is too old.
    Outage(SecretCause, &'static str),
    /// The same, and it asks to be left alone for this long.
    Busy(Duration),
}

impl FetchError {
    /// The cause, for the audit.
    pub const fn cause(self) -> SecretCause {
        match self {
            Self::Gone(cause, _) | Self::Outage(cause, _) => cause,
            Self::Busy(_) => SecretCause::VaultQuota,
        }
    }

    /// What the operator should know.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Gone(_, text) | Self::Outage(_, text) => text,
            Self::Busy(_) => {
                "a quota of Vault's is used up: raise it for the gateway, or read less often (refresh)"
            }
        }
    }

    /// Whether the source says that there is no value.
    pub const fn is_gone(self) -> bool {
        matches!(self, Self::Gone(..))
    }

    /// How long the source asks to be left alone.
    pub(super) const fn asks_for(self) -> Duration {
        match self {
            Self::Busy(time) => time,
            Self::Gone(..) | Self::Outage(..) => Duration::ZERO,
        }
    }

    /// Whether an operator would hear the same of both.
    pub(super) fn is_like(self, other: Self) -> bool {
        (self.is_gone(), self.cause(), self.text())
            == (other.is_gone(), other.cause(), other.text())
    }
}

const NOTHING_LENT: FetchError =
    FetchError::Gone(SecretCause::LeaseEnded, "this source lends nothing");
