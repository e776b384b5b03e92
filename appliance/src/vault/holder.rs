//! The holder of a token, the token, and its faults.

use std::{
    sync::{
        Arc, Mutex as Lock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Mutex;
use vaultrs::api::token::requests::LookupTokenSelfRequest;

use super::token::TokenClient;
use crate::{locks::lock, policy::GroupName, reason::SecretCause, secrets::FetchError};

/// A holder of tokens: the gateway, or one group.
#[derive(Default)]
pub(super) struct Holder {
    /// The role that makes its tokens; `None` for the gateway.
    pub(super) role: Option<Role>,
    pub(super) slot: Mutex<TokenState>,
    /// The time at which the token is to be renewed. It is apart from the slot, which is locked
    /// during a login.
    pub(super) renew_at: Lock<Option<Instant>>,
    /// The generation of the token in the slot; 0 for none yet.
    generation: AtomicU64,
    /// The generation of the gateway's token that made it; 0 for the gateway's own.
    parent: AtomicU64,
}

/// The token role of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Role {
    pub(super) group: GroupName,
    pub(super) name: Arc<str>,
    /// Whether its tokens have an entity of the group's own in Vault, instead of the gateway's.
    pub(super) has_entity: bool,
}

#[derive(Default)]
pub(super) struct TokenState {
    pub(super) live: Option<Live>,
    pub(super) failed: Option<(Instant, FetchError)>,
    /// The last time when a token was replaced for a 403 that might have been about the request.
    pub(super) replaced: Option<Instant>,
    /// Whether the group left the policy or its role: this holder takes no more tokens.
    pub(super) closed: bool,
}

pub(super) struct Live {
    pub(super) client: Arc<TokenClient>,
    /// The time that a renewed token should be good for.
    pub(super) full_life: Duration,
    /// The end of its life; `None` for a token that does not end.
    pub(super) ends: Option<Instant>,
    /// The generation of the gateway's token that made this one; 0 for the gateway's own.
    pub(super) parent: u64,
    pub(super) policies: Vec<String>,
}

impl Holder {
    /// Makes a holder without a token.
    pub(super) fn of(role: Option<Role>) -> Self {
        Self { role, ..Self::default() }
    }

    pub(super) fn plan(&self, renew_at: Option<Instant>) {
        *lock(&self.renew_at) = renew_at;
    }

    /// Publishes the generation of the token in the slot, for readers that do not wait for the
    /// slot.
    pub(super) fn tell(&self, live: Option<&Live>) {
        let (generation, parent) = live.map_or((0, 0), |it| (it.client.generation(), it.parent));
        // The parent is stored first: a new token under an old parent would be taken for an orphan.
        self.parent.store(parent, Ordering::Release);
        self.generation.store(generation, Ordering::Release);
    }

    /// Returns the generation of the token in the slot; 0 for none, and for one whose parent is
    /// older than the `gateway`'s token, because it ends with its parent.
    pub(super) fn generation(&self, gateway: u64) -> u64 {
        let generation = self.generation.load(Ordering::Acquire);
        let is_own = self.role.is_none();
        if is_own || self.parent.load(Ordering::Acquire) >= gateway { generation } else { 0 }
    }

    pub(super) fn renewal(&self) -> Option<Instant> {
        *lock(&self.renew_at)
    }
}

impl TokenState {
    /// Returns the token, if it has not ended and its parent was not replaced.
    pub(super) fn usable(&self, gateway: u64) -> Option<Arc<TokenClient>> {
        let live = self.live.as_ref()?;
        let ended = live.ends.is_some_and(|ends| Instant::now() >= ends);
        let is_own = live.client.group().is_none();
        let orphaned = !is_own && live.parent < gateway;
        (!ended && !orphaned && !live.client.is_unknown()).then(|| Arc::clone(&live.client))
    }

    /// Whether Vault still accepts the token, as far as can be told.
    pub(super) async fn is_alive(&mut self, used: &TokenClient) -> bool {
        if used.is_unknown() {
            return false;
        }
        // A token of a role without the default policy may not look itself up, and is then taken
        // for dead: not more often than this, or each refused secret would cost a token.
        if self.replaced.is_some_and(|then| then.elapsed() < REPLACE_EVERY) {
            return true;
        }
        match used.call(LookupTokenSelfRequest {}).await {
            Ok(_) => true,
            Err(error) if error.is_refusal() => {
                self.replaced = Some(Instant::now());
                false
            }
            // The login that follows will say that Vault cannot be reached.
            Err(_) => false,
        }
    }

    /// Fails where there is nothing to try: no group, or a failure of a moment ago.
    pub(super) fn check_open(&self) -> Result<(), FetchError> {
        if self.closed {
            return Err(NO_GROUP);
        }
        match self.failed {
            Some((then, error)) if then.elapsed() < FAILURE_COUNTS => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) fn fail(&mut self, error: FetchError) -> FetchError {
        self.failed = Some((Instant::now(), error));
        error
    }
}

pub(super) const NO_GROUP: FetchError =
    FetchError::Gone(SecretCause::VaultDenied, "the group is not in the policy");

const FAILURE_COUNTS: Duration = Duration::from_secs(1);

const REPLACE_EVERY: Duration = Duration::from_secs(30);
