//! The upkeep of tokens: they are renewed ahead of their end, replaced where renewing no longer
//! helps, and given back when nobody needs them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use vaultrs::api::token::requests::{
    RenewTokenSelfRequest, RevokeTokenAccessorRequest, RevokeTokenSelfRequest,
};

use super::{
    error::CallError,
    holder::{Holder, Live, TokenState},
    session::{Left, RETIRED_TIME, RetiredToken, Session},
    token::{TokenClient, TokenGrant},
};
use crate::{
    locks::lock,
    policy::GroupName,
    secrets::timing::{back_off, jittered},
};

impl Session {
    /// Renews and revokes the tokens that are due. Never returns.
    pub(super) async fn tend(&self) {
        loop {
            self.revoke_due().await;
            let now = Instant::now();
            let groups = self.holders();
            let holders = groups.iter().map(Arc::as_ref).chain([&self.gateway]);
            let due = holders.filter(|holder| holder.renewal().is_some_and(|at| at <= now));
            futures_util::stream::iter(due)
                .for_each_concurrent(RENEWALS_AT_ONCE, |holder| self.renew(holder))
                .await;
            let wait = async {
                match self.next_due() {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => {}
                () = self.replanned.notified() => {}
            }
        }
    }

    /// Revokes every token, so that none outlives the daemon. Returns false where one may.
    pub(super) async fn close(&self) -> bool {
        let revoked = tokio::time::timeout(CLOSE_TIME, self.revoke_all()).await.unwrap_or(false);
        if !revoked {
            tracing::warn!("Vault did not take back all the tokens; they end by themselves");
        }
        revoked
    }

    async fn revoke_all(&self) -> bool {
        let mut old: Vec<_> = lock(&self.retired).drain(..).map(|retired| retired.client).collect();
        old.extend(lock(&self.coming).take());
        let mut children = Vec::new();
        let left: Vec<_> = lock(&self.left).drain(..).collect();
        let left = left.into_iter().map(|(Left::Policy(holder) | Left::Role(holder))| holder);
        for holder in self.holders().into_iter().chain(left) {
            children.extend(holder.slot.lock().await.live.take().map(|live| live.client));
        }
        let own = self.gateway.slot.lock().await.live.take().map(|live| live.client);
        let gone = match &own {
            Some(own) => is_gone(own).await,
            None => true,
        };
        let cascaded = gone && own.is_some();
        let rest = children.into_iter().filter(|_| !cascaded).chain(old);
        futures_util::stream::iter(rest)
            .map(|client| async move { is_gone(&client).await })
            .buffer_unordered(RENEWALS_AT_ONCE)
            .fold(gone, |all, one| async move { all && one })
            .await
    }

    pub(super) async fn renew(&self, holder: &Holder) {
        let used = holder.slot.lock().await.live.as_ref().map(|live| Arc::clone(&live.client));
        let Some(used) = used else { return holder.plan(None) };
        let now = Instant::now();
        let renewed = used.call(RenewTokenSelfRequest { increment: None }).await;
        let outage = matches!(renewed, Err(error) if !error.is_refusal());
        let grant = renewed.ok().and_then(|body| TokenGrant::parse(&body));
        // A renewal shows the rights that the token's identity was given since.
        let unfit = match (&grant, &holder.role) {
            (Some(grant), Some(_)) => grant.may_too_much(&self.own_policies().await),
            (Some(grant), None) => grant.unfit_for_gateway(),
            (None, _) => None,
        };
        let mut slot = holder.slot.lock().await;
        let Some(live) = slot.live.as_mut().filter(|live| Arc::ptr_eq(&live.client, &used)) else {
            return; // The token was replaced meanwhile, which has planned its renewal.
        };
        if let Some(unfit) = unfit {
            return self.withdraw(holder, &mut slot, unfit);
        }
        match grant {
            // Near its maximum life a token is renewed for ever shorter times, so a new one is
            // better.
            Some(grant) if grant.renewable && grant.life >= live.full_life / 2 => {
                live.ends = Some(now + grant.life);
                live.policies = grant.policies;
                holder.plan(Some(now + jittered(grant.life * 2 / 3)));
            }
            _ if outage => holder.plan(Some(Instant::now() + RETRY_RENEWAL)),
            // If this fails, the old token stays good for the rest of its life.
            _ if holder.role.is_some() => {
                if self.make_child(holder, &mut slot).await.is_err() {
                    holder.plan(Some(Instant::now() + RETRY_RENEWAL));
                }
            }
            _ => {
                drop(slot);
                self.log_in_anew().await;
            }
        }
    }

    /// Takes a token from use and revokes it at once, and all that was leased with it. The next
    /// request asks for another token, which is examined like any new one.
    fn withdraw(&self, holder: &Holder, slot: &mut TokenState, unfit: &'static str) {
        let group = holder.role.as_ref().map(|role| role.group.as_str());
        tracing::error!(group, "a token is withdrawn: {unfit}");
        if let Some(live) = slot.live.take() {
            self.retire(live, Instant::now());
        }
        if holder.role.is_some() {
            holder.tell(None);
        }
        holder.plan(None);
    }

    async fn own_policies(&self) -> Vec<String> {
        let slot = self.gateway.slot.lock().await;
        slot.live.as_ref().map(|live| live.policies.clone()).unwrap_or_default()
    }

    /// Logs in again while the old token is still good: the groups' new tokens are made before
    /// their old ones end with the gateway's.
    pub(super) async fn log_in_anew(&self) {
        let Ok(own) = self.ask_for_own().await else {
            return self.gateway.plan(Some(Instant::now() + RETRY_RENEWAL));
        };
        // A shutdown drops the rest of this function, and the token must be revoked all the same.
        *lock(&self.coming) = Some(Arc::clone(&own.client));
        futures_util::stream::iter(self.holders())
            .for_each_concurrent(RENEWALS_AT_ONCE, |holder| {
                let own = &own;
                async move {
                    let mut slot = holder.slot.lock().await;
                    if slot.live.is_none() {
                        return;
                    }
                    // Where it fails, the next request makes it, or reports why not.
                    if let Ok(child) = self.ask_for_child(&own.client, &own.policies, &holder).await
                    {
                        self.put(&holder, &mut slot, child);
                    }
                }
            })
            .await;
        let mut slot = self.gateway.slot.lock().await;
        lock(&self.coming).take();
        let newer = |live: &Live| live.client.generation() > own.client.generation();
        match slot.live.as_ref().is_some_and(newer) {
            // The old token died meanwhile, and another task has logged in.
            true => self.retire(own, Instant::now()),
            false => drop(self.put(&self.gateway, &mut slot, own)),
        }
    }

    async fn revoke_due(&self) {
        let left: Vec<_> = lock(&self.left).drain(..).collect();
        for left in left {
            let (holder, stays) = match &left {
                Left::Policy(holder) => (holder, Duration::ZERO),
                Left::Role(holder) => (holder, RETIRED_TIME),
            };
            let mut slot = holder.slot.lock().await;
            slot.closed = true;
            if let Some(live) = slot.live.take() {
                self.retire(live, Instant::now() + stays);
            }
            drop(slot);
            if let (Left::Policy(_), Some(role)) = (&left, &holder.role) {
                self.hasten(&role.group);
            }
        }
        let now = Instant::now();
        let due = |retired: &mut RetiredToken| retired.revoke_at <= now;
        let due: Vec<_> =
            lock(&self.retired).extract_if(.., due).take(REVOCATIONS_A_ROUND).collect();
        futures_util::stream::iter(due)
            .for_each_concurrent(RENEWALS_AT_ONCE, |retired| self.revoke(retired))
            .await;
    }

    /// Brings forward the end of a group's earlier tokens, which do not stay for requests on their
    /// way once the group has left.
    fn hasten(&self, group: &GroupName) {
        let now = Instant::now();
        for retired in lock(&self.retired).iter_mut() {
            if retired.client.group() == Some(group) {
                retired.revoke_at = retired.revoke_at.min(now);
            }
        }
    }

    /// Revokes a token. Where Vault does not answer, it is asked again until the token has ended.
    async fn revoke(&self, retired: RetiredToken) {
        if retired.client.is_unknown() {
            return;
        }
        match self.ask_to_revoke(&retired.client).await {
            Ok(()) => {}
            Err(error) if error.is_refusal() => tracing::error!(
                group = retired.client.group().map(GroupName::as_str),
                "Vault does not let the gateway revoke a token; it ends by itself"
            ),
            Err(_) => self.revoke_later(retired),
        }
    }

    /// Revokes a token by itself, or by its accessor where it may not revoke itself.
    async fn ask_to_revoke(&self, client: &TokenClient) -> Result<(), CallError> {
        match client.call(RevokeTokenSelfRequest {}).await {
            Err(error) if error.is_unknown_token() => return Ok(()),
            Err(CallError::Status { code: 403, .. }) => {}
            other => return other.map(drop),
        }
        let Some(accessor) = client.accessor() else { return Err(CallError::DENIED) };
        let request = RevokeTokenAccessorRequest { accessor: accessor.to_owned() };
        let Some(own) = self.gateway.slot.lock().await.usable(0) else { return Err(NO_OWN) };
        match own.call(request).await {
            Err(error) if error.is_unknown_token() => Err(NO_OWN),
            other => other.map(drop),
        }
    }

    fn revoke_later(&self, retired: RetiredToken) {
        let now = Instant::now();
        if retired.ends.is_some_and(|ends| ends <= now) {
            return;
        }
        if retired.tries == 0 {
            let group = retired.client.group().map(GroupName::as_str);
            tracing::warn!(group, "a token is not revoked yet; Vault is asked until it ends");
        }
        let tries = retired.tries.saturating_add(1);
        self.push_retired(RetiredToken { revoke_at: now + back_off(tries), tries, ..retired });
    }

    fn next_due(&self) -> Option<Instant> {
        let groups = self.holders();
        let renewals = groups.iter().map(Arc::as_ref).chain([&self.gateway]);
        let renewal = renewals.filter_map(Holder::renewal).min();
        let revocation = lock(&self.retired).iter().map(|retired| retired.revoke_at).min();
        [renewal, revocation].into_iter().flatten().min()
    }
}

const RETRY_RENEWAL: Duration = Duration::from_secs(5);

const RENEWALS_AT_ONCE: usize = 4;

/// Tokens that are revoked before renewals have their turn again: a Vault that hangs on each delays
/// those by less than a minute.
const REVOCATIONS_A_ROUND: usize = 16;

/// Revokes a token by itself. Returns whether it is good no longer.
async fn is_gone(client: &TokenClient) -> bool {
    client.call(RevokeTokenSelfRequest {}).await.is_ok() || client.is_unknown()
}

/// Nobody can revoke by an accessor now: the next login changes that.
const NO_OWN: CallError = CallError::Transport("the gateway has no token");

const CLOSE_TIME: Duration = Duration::from_secs(2);
