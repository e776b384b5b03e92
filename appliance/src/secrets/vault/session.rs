//! The gateway's own token, and under it one token for each agent group.
//!
//! The gateway's token makes, renews and revokes the groups' tokens and reads no secret; a group's
//! token has the policies that its token role in Vault allows, so that Vault decides what the
//! group gets and writes down who read what. A token is renewed at two thirds of its life, made
//! anew where Vault no longer takes it, and given back at the end. With the gateway's token die
//! the groups' tokens and what was leased with them: before a planned new login the new tokens are
//! made first, and the old ones stay for a while.
//!
//! There is one login at a time, and one making of each group's token; whoever needs it meanwhile
//! waits. A failure counts for a second, so that a hundred waiting questions make one. A token
//! that could do more than it should is not used.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex as Lock, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use serde::Serialize;
use tokio::sync::{Mutex, Notify, watch};
use vaultrs::api::token::requests::{
    LookupTokenSelfRequest, RenewTokenSelfRequest, RevokeTokenAccessorRequest,
    RevokeTokenSelfRequest,
};

use super::{
    super::FetchError,
    client::Transport,
    error::{CallError, VaultSourceError},
    login::Login,
    token::{Grant, Post, TokenClient},
};
use crate::{
    config::VaultSettings,
    policy::{Group, GroupName},
    reason::SecretCause,
};

/// The gateway's session with one Vault.
pub(crate) struct Session {
    transport: Arc<Transport>,
    login: Login,
    gateway: Holder,
    groups: Lock<HashMap<GroupName, Arc<Holder>>>,
    /// Tokens that nobody asks for any more, and holders whose group left the policy.
    retired: Lock<Vec<Retired>>,
    left: Lock<Vec<Arc<Holder>>>,
    /// How many tokens were made.
    tokens: watch::Sender<u64>,
    /// Rings when there is something new to tend.
    replanned: Notify,
}

/// Whoever has a token: the gateway, or one group.
#[derive(Default)]
struct Holder {
    /// The group and its token role; `None` for the gateway.
    role: Option<(GroupName, Arc<str>)>,
    slot: Mutex<Slot>,
    /// When the token is to be renewed; apart from the slot, which is locked during a login.
    renew_at: Lock<Option<Instant>>,
    /// The generation of the token in the slot; 0 for none yet.
    generation: AtomicU64,
}

#[derive(Default)]
struct Slot {
    live: Option<Live>,
    failed: Option<(Instant, FetchError)>,
    /// When a token was last replaced because of a 403 that might have meant the question.
    replaced: Option<Instant>,
}

struct Live {
    client: Arc<TokenClient>,
    /// How long a renewed token should be good for.
    full_life: Duration,
    /// `None` for a token that does not end.
    ends: Option<Instant>,
    /// The generation of the gateway's token that made this one; 0 for the gateway's own.
    parent: u64,
    policies: Vec<String>,
}

struct Retired {
    client: Arc<TokenClient>,
    revoke_at: Instant,
}

#[derive(Serialize)]
struct TokenBody<'a> {
    display_name: &'a str,
    meta: TokenMeta<'a>,
}

/// What Vault's own audit log shows with each question of the token.
#[derive(Serialize)]
struct TokenMeta<'a> {
    cloakroom_group: &'a str,
}

impl Session {
    pub(super) fn new(
        transport: Transport,
        settings: &VaultSettings,
        groups: &[Arc<Group>],
    ) -> Result<Self, VaultSourceError> {
        let session = Self {
            transport: Arc::new(transport),
            login: Login::new(settings)?,
            gateway: Holder::default(),
            groups: Lock::default(),
            retired: Lock::default(),
            left: Lock::default(),
            tokens: watch::Sender::new(0),
            replanned: Notify::new(),
        };
        session.set_groups(groups);
        Ok(session)
    }

    /// Takes the groups of a new policy. The token of a group that is not among them is revoked,
    /// and what was leased with it.
    pub(crate) fn set_groups(&self, groups: &[Arc<Group>]) {
        let mut held = lock(&self.groups);
        let mut old = std::mem::take(&mut *held);
        for group in groups {
            let role = Some((group.name.clone(), Arc::clone(&group.vault_role)));
            let kept = match old.remove(&group.name) {
                Some(holder) if holder.role == role => holder,
                other => {
                    lock(&self.left).extend(other);
                    Arc::new(Holder { role, ..Holder::default() })
                }
            };
            held.insert(group.name.clone(), kept);
        }
        lock(&self.left).extend(old.into_values());
        drop(held);
        self.replanned.notify_one();
    }

    /// The gateway's own token, which makes the tokens of groups and signs, and reads no secret.
    pub(crate) async fn gateway(&self) -> Result<Arc<TokenClient>, FetchError> {
        Ok(self.own().await?.0)
    }

    /// The token of `group`, whose policies say what it may read.
    pub(crate) async fn group(&self, group: &GroupName) -> Result<Arc<TokenClient>, FetchError> {
        let holder = self.holder(group)?;
        let mut slot = holder.slot.lock().await;
        match slot.usable(self.gateway.generation.load(Ordering::Acquire)) {
            Some(client) => Ok(client),
            None => self.make_child(&holder, &mut slot).await,
        }
    }

    /// After a 403 with `used`: another token of the same holder, if that one is dead.
    ///
    /// # Errors
    ///
    /// The token is dead, and another cannot be had.
    pub(crate) async fn replace_if_dead(
        &self,
        used: &Arc<TokenClient>,
    ) -> Result<Option<Arc<TokenClient>>, FetchError> {
        let Some(group) = used.group() else { return self.replace_own_if_dead(used).await };
        let holder = self.holder(group)?;
        let mut slot = holder.slot.lock().await;
        let parent = self.gateway.generation.load(Ordering::Acquire);
        match slot.usable(parent).filter(|live| !Arc::ptr_eq(live, used)) {
            Some(other) => Ok(Some(other)),
            None if slot.is_alive(used).await => Ok(None),
            None => self.make_child(&holder, &mut slot).await.map(Some),
        }
    }

    /// A number that grows whenever any holder has another token. Whoever leased something with a
    /// token of a smaller [`TokenClient::generation`] than its holder has now leases it anew, at
    /// once: the old token goes a minute later.
    pub(crate) fn tokens(&self) -> watch::Receiver<u64> {
        self.tokens.subscribe()
    }

    /// The generation of the token that `group` has now; 0 for none.
    pub(crate) fn generation(&self, group: &GroupName) -> u64 {
        self.holder(group).map_or(0, |holder| holder.generation.load(Ordering::Acquire))
    }

    /// Renews and revokes whatever is due. Never returns.
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

    /// Revokes every token, so that none outlives the daemon.
    pub(super) async fn close(&self) {
        let revoked = tokio::time::timeout(CLOSE_TIME, self.revoke_all()).await;
        if revoked.is_err() {
            tracing::warn!("Vault did not take back the tokens in time; they end by themselves");
        }
    }

    async fn revoke_all(&self) {
        let old: Vec<_> = lock(&self.retired).drain(..).map(|retired| retired.client).collect();
        let mut children = Vec::new();
        let left: Vec<_> = lock(&self.left).drain(..).collect();
        for holder in self.holders().into_iter().chain(left) {
            children.extend(holder.slot.lock().await.live.take().map(|live| live.client));
        }
        let own = self.gateway.slot.lock().await.live.take().map(|live| live.client);
        let cascaded = match &own {
            Some(own) => own.call(RevokeTokenSelfRequest {}).await.is_ok(),
            None => false,
        };
        let rest = children.into_iter().filter(|_| !cascaded).chain(old);
        // They end by themselves where Vault cannot be told.
        futures_util::stream::iter(rest)
            .for_each_concurrent(RENEWALS_AT_ONCE, |client| async move {
                let _ = client.call(RevokeTokenSelfRequest {}).await;
            })
            .await;
    }

    async fn replace_own_if_dead(
        &self,
        used: &Arc<TokenClient>,
    ) -> Result<Option<Arc<TokenClient>>, FetchError> {
        let mut slot = self.gateway.slot.lock().await;
        match slot.usable(0).filter(|live| !Arc::ptr_eq(live, used)) {
            Some(other) => Ok(Some(other)),
            None if slot.is_alive(used).await => Ok(None),
            None => self.log_in(&mut slot).await.map(Some),
        }
    }

    async fn log_in(&self, slot: &mut Slot) -> Result<Arc<TokenClient>, FetchError> {
        slot.check_recent_failure()?;
        match self.ask_for_own().await {
            Ok(live) => Ok(self.put(&self.gateway, slot, live)),
            Err(error) => Err(slot.fail(error)),
        }
    }

    async fn ask_for_own(&self) -> Result<Live, FetchError> {
        let now = Instant::now();
        let body = self.login.ask(&self.transport).await?;
        let strange = CallError::Transport("Vault's answer to the login holds no usable token");
        let grant = Grant::parse(&body).ok_or(strange.outage())?;
        if let Some(unfit) = grant.unfit_for_gateway() {
            return Err(FetchError::Gone(SecretCause::VaultDenied, unfit));
        }
        tracing::info!("logged in to Vault");
        Ok(self.live(grant, now, None, 0))
    }

    /// A new token for a group.
    async fn make_child(
        &self,
        holder: &Holder,
        slot: &mut Slot,
    ) -> Result<Arc<TokenClient>, FetchError> {
        slot.check_recent_failure()?;
        match self.ask_for_child_twice(holder).await {
            Ok(live) => Ok(self.put(holder, slot, live)),
            Err(error) => Err(slot.fail(error)),
        }
    }

    /// Under the gateway's token as it is, or under a new one where that has died.
    async fn ask_for_child_twice(&self, holder: &Holder) -> Result<Live, FetchError> {
        let (own, policies) = self.own().await?;
        let asked = match self.ask_for_child(&own, &policies, holder).await {
            // Vault says 403 for a token that has ended as well as for one that may not.
            Err(ChildError::Asked(CallError::Status { code: 403, .. }))
                if self.replace_own_if_dead(&own).await?.is_some() =>
            {
                let (own, policies) = self.own().await?;
                self.ask_for_child(&own, &policies, holder).await
            }
            other => other,
        };
        asked.map_err(ChildError::into_fetch_error)
    }

    async fn ask_for_child(
        &self,
        own: &TokenClient,
        own_policies: &[String],
        holder: &Holder,
    ) -> Result<Live, ChildError> {
        let Some((group, role)) = &holder.role else {
            return Err(ChildError::Asked(CallError::DENIED));
        };
        let name = format!("cloakroom-{group}");
        let meta = TokenMeta { cloakroom_group: group.as_str() };
        let body = TokenBody { display_name: &name, meta };
        let create = Post::new(format!("auth/token/create/{role}"), &body, 2 * name.len());
        let now = Instant::now();
        let answer = own.call(create.map_err(ChildError::Asked)?).await;
        let answer = answer.map_err(ChildError::Asked)?;
        let strange = CallError::Transport("Vault's answer holds no usable token for the group");
        let grant = Grant::parse(&answer).ok_or(ChildError::Asked(strange))?;
        let unfit = grant.unfit_for_group(own_policies);
        let live = self.live(grant, now, Some(group.clone()), own.generation());
        let Some(unfit) = unfit else { return Ok(live) };
        self.retire(live.client, Instant::now());
        Err(ChildError::Unfit(unfit))
    }

    /// The gateway's token, and the policies that it has.
    async fn own(&self) -> Result<(Arc<TokenClient>, Vec<String>), FetchError> {
        let mut slot = self.gateway.slot.lock().await;
        let client = match slot.usable(0) {
            Some(client) => client,
            None => self.log_in(&mut slot).await?,
        };
        let policies = slot.live.as_ref().map(|live| live.policies.clone());
        Ok((client, policies.unwrap_or_default()))
    }

    async fn renew(&self, holder: &Holder) {
        let used = holder.slot.lock().await.live.as_ref().map(|live| Arc::clone(&live.client));
        let Some(used) = used else { return holder.plan(None) };
        let now = Instant::now();
        let renewed = used.call(RenewTokenSelfRequest { increment: None }).await;
        let outage = matches!(renewed, Err(error) if !error.is_refusal());
        let grant = renewed.ok().and_then(|body| Grant::parse(&body));
        let mut slot = holder.slot.lock().await;
        let Some(live) = slot.live.as_mut().filter(|live| Arc::ptr_eq(&live.client, &used)) else {
            return; // Replaced meanwhile, and planned anew with that.
        };
        match grant {
            // Near its maximum life a token is renewed for ever less: better a new one.
            Some(grant) if grant.renewable && grant.life >= live.full_life / 2 => {
                live.ends = Some(now + grant.life);
                holder.plan(Some(now + jittered(grant.life * 2 / 3)));
            }
            _ if outage => holder.plan(Some(Instant::now() + RETRY_RENEWAL)),
            // The old token stays good for what is left of it if this fails.
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

    /// A new login while the old token is still good: the groups' new tokens are made before the
    /// old ones go with the gateway's.
    pub(super) async fn log_in_anew(&self) {
        let Ok(own) = self.ask_for_own().await else {
            return self.gateway.plan(Some(Instant::now() + RETRY_RENEWAL));
        };
        futures_util::stream::iter(self.holders())
            .for_each_concurrent(RENEWALS_AT_ONCE, |holder| {
                let own = &own;
                async move {
                    let mut slot = holder.slot.lock().await;
                    if slot.live.is_none() {
                        return;
                    }
                    // Where it fails, the next question makes it, or says why not.
                    if let Ok(child) = self.ask_for_child(&own.client, &own.policies, &holder).await
                    {
                        self.put(&holder, &mut slot, child);
                    }
                }
            })
            .await;
        let mut slot = self.gateway.slot.lock().await;
        self.put(&self.gateway, &mut slot, own);
    }

    fn live(&self, grant: Grant, now: Instant, group: Option<GroupName>, parent: u64) -> Live {
        let mut generation = 0;
        self.tokens.send_if_modified(|tokens| {
            *tokens += 1;
            generation = *tokens;
            false
        });
        let transport = Arc::clone(&self.transport);
        Live {
            full_life: grant.life,
            ends: (!grant.life.is_zero()).then_some(now + grant.life),
            parent,
            policies: grant.policies.clone(),
            client: Arc::new(TokenClient::new(transport, grant, group, generation)),
        }
    }

    /// Puts a token where everybody takes it from, and retires the one before.
    fn put(&self, holder: &Holder, slot: &mut Slot, live: Live) -> Arc<TokenClient> {
        let now = Instant::now();
        let client = Arc::clone(&live.client);
        let renew_at = live.ends.map(|_| now + jittered(live.full_life * 2 / 3));
        if let Some(old) = slot.live.replace(live) {
            self.retire(old.client, now + RETIRED_TIME);
        }
        slot.failed = None;
        holder.generation.store(client.generation(), Ordering::Release);
        holder.plan(renew_at);
        self.tokens.send_modify(|_| {});
        self.replanned.notify_one();
        client
    }

    fn retire(&self, client: Arc<TokenClient>, revoke_at: Instant) {
        let mut retired = lock(&self.retired);
        if retired.len() < MAX_RETIRED {
            retired.push(Retired { client, revoke_at });
        }
        drop(retired);
        self.replanned.notify_one();
    }

    async fn revoke_due(&self) {
        let left: Vec<_> = lock(&self.left).drain(..).collect();
        for holder in left {
            let live = holder.slot.lock().await.live.take();
            if let Some(live) = live {
                self.retire(live.client, Instant::now());
            }
        }
        let now = Instant::now();
        let due: Vec<_> =
            lock(&self.retired).extract_if(.., |retired| retired.revoke_at <= now).collect();
        futures_util::stream::iter(due)
            .for_each_concurrent(RENEWALS_AT_ONCE, |retired| self.revoke(retired.client))
            .await;
    }

    /// Revokes a token by itself, or by its accessor where it may not.
    async fn revoke(&self, client: Arc<TokenClient>) {
        if client.is_unknown() {
            return;
        }
        let refused = match client.call(RevokeTokenSelfRequest {}).await {
            Err(CallError::Status { code: 403, unknown_token: false, .. }) => true,
            Err(_) => return tracing::warn!("a token could not be revoked; it ends by itself"),
            Ok(_) => false,
        };
        let Some(accessor) = client.accessor().filter(|_| refused) else { return };
        let request = RevokeTokenAccessorRequest { accessor: accessor.to_owned() };
        let own = self.gateway.slot.lock().await.usable(0);
        let revoked = match own {
            Some(own) => own.call(request).await.is_ok(),
            None => false,
        };
        if !revoked {
            tracing::warn!("Vault does not let the gateway revoke a token; it ends by itself");
        }
    }

    fn holder(&self, group: &GroupName) -> Result<Arc<Holder>, FetchError> {
        let text = "the group is not in the policy";
        let holder = lock(&self.groups).get(group).cloned();
        holder.ok_or(FetchError::Gone(SecretCause::VaultDenied, text))
    }

    fn holders(&self) -> Vec<Arc<Holder>> {
        lock(&self.groups).values().cloned().collect()
    }

    fn next_due(&self) -> Option<Instant> {
        let groups = self.holders();
        let renewals = groups.iter().map(Arc::as_ref).chain([&self.gateway]);
        let renewal = renewals.filter_map(Holder::renewal).min();
        let revocation = lock(&self.retired).iter().map(|retired| retired.revoke_at).min();
        [renewal, revocation].into_iter().flatten().min()
    }
}

impl Holder {
    fn plan(&self, renew_at: Option<Instant>) {
        *lock(&self.renew_at) = renew_at;
    }

    fn renewal(&self) -> Option<Instant> {
        *lock(&self.renew_at)
    }
}

impl Slot {
    /// The token, if it has not ended and its parent was not replaced.
    fn usable(&self, gateway: u64) -> Option<Arc<TokenClient>> {
        let live = self.live.as_ref()?;
        let ended = live.ends.is_some_and(|ends| Instant::now() >= ends);
        let is_own = live.client.group().is_none();
        let orphaned = !is_own && live.parent < gateway;
        (!ended && !orphaned && !live.client.is_unknown()).then(|| Arc::clone(&live.client))
    }

    /// Whether Vault still takes the token, as far as can be told.
    async fn is_alive(&mut self, used: &TokenClient) -> bool {
        if used.is_unknown() {
            return false;
        }
        // A role without the default policy may not look itself up, and is then taken for dead:
        // not more often than this, or each refused secret would cost a token.
        if self.replaced.is_some_and(|then| then.elapsed() < REPLACE_EVERY) {
            return true;
        }
        let alive = used.call(LookupTokenSelfRequest {}).await.is_ok();
        if !alive {
            self.replaced = Some(Instant::now());
        }
        alive
    }

    fn check_recent_failure(&self) -> Result<(), FetchError> {
        match self.failed {
            Some((then, error)) if then.elapsed() < FAILURE_COUNTS => Err(error),
            _ => Ok(()),
        }
    }

    fn fail(&mut self, error: FetchError) -> FetchError {
        self.failed = Some((Instant::now(), error));
        error
    }
}

/// Why a group has no token.
enum ChildError {
    /// Vault did not make one.
    Asked(CallError),
    /// Vault made one that is not to be used.
    Unfit(&'static str),
}

impl ChildError {
    fn into_fetch_error(self) -> FetchError {
        match self {
            // Vault says 400 for a role that is not there.
            Self::Asked(CallError::Status { code: 400 | 403 | 404 | 405, .. }) => {
                let text = "Vault refuses a token for the group: check its token role (vault_role) \
                            and the gateway's policy";
                FetchError::Gone(SecretCause::VaultDenied, text)
            }
            Self::Asked(other) => other.outage(),
            Self::Unfit(text) => FetchError::Gone(SecretCause::VaultDenied, text),
        }
    }
}

fn lock<T>(mutex: &Lock<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Between 90 % and all of `time`, so that tokens made together are not renewed together.
fn jittered(time: Duration) -> Duration {
    let random = RandomState::new().hash_one(()) % 1_000;
    time.mul_f64(0.9 + 0.1 * (random as f64 / 1_000.0))
}

const FAILURE_COUNTS: Duration = Duration::from_secs(1);

const REPLACE_EVERY: Duration = Duration::from_secs(30);

const RETRY_RENEWAL: Duration = Duration::from_secs(5);

/// How long a token that has a successor stays, for questions on their way and for leases that
/// have to be made anew.
const RETIRED_TIME: Duration = Duration::from_secs(60);

/// Above this, old tokens are left to end by themselves.
const MAX_RETIRED: usize = 1_024;

const RENEWALS_AT_ONCE: usize = 4;

const CLOSE_TIME: Duration = Duration::from_secs(2);
