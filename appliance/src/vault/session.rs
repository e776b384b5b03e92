//! The gateway's own token, and under it one token for each agent group.
//!
//! The gateway's token makes, renews and revokes the groups' tokens and reads no secret; a group's
//! token has the policies that its token role in Vault allows, so Vault decides what the group may
//! read and records what it has read. A token is renewed at two thirds of its life, made again
//! where Vault does not accept it any more, and given back at the end. The groups' tokens and all
//! that was leased with them die with the gateway's token: before a planned new login the new
//! tokens are made first, and the old ones stay for a while.
//!
//! There is one login at a time, and one making of each group's token; other tasks that need it
//! meanwhile wait. A failure counts for a second, so that a hundred waiting requests make one try.
//! A token that could do more than it should is not used.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex as Lock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::sync::Notify;

use super::{
    client::Transport,
    error::{CallError, VaultSourceError},
    holder::{Holder, Live, NO_GROUP, Role, TokenState},
    login::Login,
    plan::{self, entity},
    token::{Post, TokenClient, TokenGrant},
};
use crate::{
    config::VaultSettings,
    locks::lock,
    policy::{Group, GroupName},
    reason::SecretCause,
    secrets::{FetchError, timing::jittered},
};

/// The gateway's session with one Vault.
pub(crate) struct Session {
    transport: Arc<Transport>,
    pub(super) login: Login,
    pub(super) gateway: Holder,
    groups: Lock<HashMap<GroupName, Arc<Holder>>>,
    /// Tokens that are not used any more, and holders that are not asked any more.
    pub(super) retired: Lock<Vec<RetiredToken>>,
    pub(super) left: Lock<Vec<Left>>,
    /// The token of a planned login that has not taken over yet.
    pub(super) coming: Lock<Option<Arc<TokenClient>>>,
    /// The number of tokens made so far.
    tokens: AtomicU64,
    /// Rings when there is something new to tend.
    pub(super) replanned: Notify,
}

/// A holder that is not asked for a token any more.
pub(super) enum Left {
    /// Its group left the policy.
    Policy(Arc<Holder>),
    /// Its group stays, and gets its tokens by another role.
    Role(Arc<Holder>),
}

pub(super) struct RetiredToken {
    pub(super) client: Arc<TokenClient>,
    pub(super) revoke_at: Instant,
    /// Its own end; `None` for never. Until then its revocation is tried again.
    pub(super) ends: Option<Instant>,
    /// The number of revocations that Vault did not answer.
    pub(super) tries: u32,
}

#[derive(Serialize)]
struct TokenBody<'a> {
    display_name: &'a str,
    meta: TokenMeta<'a>,
    /// The role decides the policies, unless the request names others.
    #[serde(skip_serializing_if = "Option::is_none")]
    policies: Option<[&'a str; 1]>,
    /// The entity that the token gets instead of the gateway's.
    #[serde(skip_serializing_if = "Option::is_none")]
    entity_alias: Option<&'a str>,
}

/// The metadata that Vault's own audit log shows with each request of the token.
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
            coming: Lock::default(),
            tokens: AtomicU64::new(0),
            replanned: Notify::new(),
        };
        session.set_groups(groups, &[]);
        Ok(session)
    }

    /// Takes the groups that may have a token, and those of them that have an entity of their own.
    /// Where a group is not among them any more, its tokens are revoked with all that was leased
    /// with them; a group that comes back gets a new token. The token of a group with another role
    /// stays for a while, like any token with a successor.
    pub(crate) fn set_groups(&self, groups: &[Arc<Group>], entities: &[GroupName]) {
        let mut held = lock(&self.groups);
        let mut old = std::mem::take(&mut *held);
        for group in groups {
            let role = Some(Role {
                group: group.name.clone(),
                name: Arc::clone(&group.vault_role),
                has_entity: entities.contains(&group.name),
            });
            let kept = match old.remove(&group.name) {
                Some(holder) if holder.role == role => holder,
                other => {
                    lock(&self.left).extend(other.map(Left::Role));
                    Arc::new(Holder::of(role))
                }
            };
            held.insert(group.name.clone(), kept);
        }
        lock(&self.left).extend(old.into_values().map(Left::Policy));
        drop(held);
        self.replanned.notify_one();
    }

    /// Returns the gateway's own token, which makes the tokens of groups and signs, and reads no
    /// secret.
    pub(crate) async fn gateway(&self) -> Result<Arc<TokenClient>, FetchError> {
        Ok(self.own().await?.0)
    }

    /// Returns the token of `group`, whose policies decide what it may read.
    pub(crate) async fn group(&self, group: &GroupName) -> Result<Arc<TokenClient>, FetchError> {
        let holder = self.holder(group)?;
        let mut slot = holder.slot.lock().await;
        match slot.usable(self.gateway.generation(0)) {
            Some(client) => Ok(client),
            None => self.make_child(&holder, &mut slot).await,
        }
    }

    /// Returns, after a 403 with `used`, another token of the same holder if that one is dead.
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
        match slot.usable(self.gateway.generation(0)).filter(|live| !Arc::ptr_eq(live, used)) {
            Some(other) => Ok(Some(other)),
            None if slot.is_alive(used).await => Ok(None),
            None => self.make_child(&holder, &mut slot).await.map(Some),
        }
    }

    /// Returns the generation of the token that `group` has now; 0 for none, and where the gateway
    /// has logged in again since it was made. A caller that leased something with a token of
    /// another [`TokenClient::generation`] leases it again at once: the old token is revoked a
    /// minute later.
    pub(crate) fn generation(&self, group: &GroupName) -> u64 {
        let gateway = self.gateway.generation(0);
        self.holder(group).map_or(0, |holder| holder.generation(gateway))
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

    async fn log_in(&self, slot: &mut TokenState) -> Result<Arc<TokenClient>, FetchError> {
        slot.check_open()?;
        match self.ask_for_own().await {
            Ok(live) => Ok(self.put(&self.gateway, slot, live)),
            Err(error) => Err(slot.fail(error)),
        }
    }

    pub(super) async fn ask_for_own(&self) -> Result<Live, FetchError> {
        let now = Instant::now();
        let body = self.login.ask(&self.transport).await?;
        let strange = CallError::Transport("Vault's answer to the login holds no usable token");
        let grant = TokenGrant::parse(&body).ok_or(strange.outage())?;
        if let Some(unfit) = grant.unfit_for_gateway() {
            return Err(FetchError::Gone(SecretCause::VaultDenied, unfit));
        }
        tracing::info!("logged in to Vault");
        Ok(self.live(grant, now, None, 0))
    }

    /// Makes a new token for a group.
    pub(super) async fn make_child(
        &self,
        holder: &Holder,
        slot: &mut TokenState,
    ) -> Result<Arc<TokenClient>, FetchError> {
        slot.check_open()?;
        match self.ask_for_child_twice(holder).await {
            Ok(live) => Ok(self.put(holder, slot, live)),
            Err(error) => Err(slot.fail(error)),
        }
    }

    /// Asks for a token with the gateway's token, and once more with a new one where that has died.
    async fn ask_for_child_twice(&self, holder: &Holder) -> Result<Live, FetchError> {
        let (own, policies) = self.own().await?;
        let asked = match self.ask_for_child(&own, &policies, holder).await {
            // Vault says 403 both for a token that has ended and for one without the right.
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

    pub(super) async fn ask_for_child(
        &self,
        own: &TokenClient,
        own_policies: &[String],
        holder: &Holder,
    ) -> Result<Live, ChildError> {
        let now = Instant::now();
        let grant = ask_role(own, holder, None).await.map_err(ChildError::Asked)?;
        let unfit = grant.unfit_for_group(own_policies);
        let group = holder.role.as_ref().map(|role| role.group.clone());
        let live = self.live(grant, now, group, own.generation());
        let Some(unfit) = unfit else { return Ok(live) };
        self.retire(live, Instant::now());
        Err(ChildError::Unfit(unfit))
    }

    /// Whether the role of `group` would make a token with `policy`. A token that it makes is given
    /// back.
    pub(super) async fn hands_on(
        &self,
        group: &GroupName,
        policy: &str,
    ) -> Result<bool, FetchError> {
        let (holder, own) = (self.holder(group)?, self.gateway().await?);
        match ask_role(&own, &holder, Some(policy)).await {
            Ok(grant) => {
                let live = self.live(grant, Instant::now(), Some(group.clone()), own.generation());
                self.retire(live, Instant::now());
                Ok(true)
            }
            // Vault says 400 for a policy that the role does not hand on; any other refusal says
            // nothing of the role.
            Err(CallError::Status { code: 400, .. }) => Ok(false),
            Err(error) => Err(error.outage()),
        }
    }

    /// Returns the gateway's token, and its policies.
    async fn own(&self) -> Result<(Arc<TokenClient>, Vec<String>), FetchError> {
        let mut slot = self.gateway.slot.lock().await;
        let client = match slot.usable(0) {
            Some(client) => client,
            None => self.log_in(&mut slot).await?,
        };
        let policies = slot.live.as_ref().map(|live| live.policies.clone());
        Ok((client, policies.unwrap_or_default()))
    }

    fn live(&self, grant: TokenGrant, now: Instant, group: Option<GroupName>, parent: u64) -> Live {
        let generation = self.tokens.fetch_add(1, Ordering::Relaxed) + 1;
        let transport = Arc::clone(&self.transport);
        Live {
            full_life: grant.life,
            ends: (!grant.life.is_zero()).then_some(now + grant.life),
            parent,
            policies: grant.policies.clone(),
            client: Arc::new(TokenClient::new(transport, grant, group, generation)),
        }
    }

    /// Puts a token into the slot that everybody takes it from, and retires the one before.
    pub(super) fn put(
        &self,
        holder: &Holder,
        slot: &mut TokenState,
        live: Live,
    ) -> Arc<TokenClient> {
        let now = Instant::now();
        let client = Arc::clone(&live.client);
        let renew_at = live.ends.map(|_| now + jittered(live.full_life * 2 / 3));
        holder.tell(Some(&live));
        if let Some(old) = slot.live.replace(live) {
            self.retire(old, now + RETIRED_TIME);
        }
        slot.failed = None;
        holder.plan(renew_at);
        self.replanned.notify_one();
        client
    }

    pub(super) fn retire(&self, Live { client, ends, .. }: Live, revoke_at: Instant) {
        if !client.is_revocable() {
            return;
        }
        self.push_retired(RetiredToken { client, revoke_at, ends, tries: 0 });
        self.replanned.notify_one();
    }

    pub(super) fn push_retired(&self, token: RetiredToken) {
        let mut retired = lock(&self.retired);
        if retired.len() >= MAX_RETIRED {
            // A token that never ends is dropped last.
            let first = (0..retired.len())
                .min_by_key(|&at| retired.get(at).map(|one| (one.ends.is_none(), one.ends)));
            first.map(|at| retired.swap_remove(at));
            tracing::error!("too many tokens wait to be revoked; one is left to end by itself");
        }
        retired.push(token);
    }

    /// Whether the group may have a token.
    pub(super) fn knows(&self, group: &GroupName) -> bool {
        lock(&self.groups).contains_key(group)
    }

    fn holder(&self, group: &GroupName) -> Result<Arc<Holder>, FetchError> {
        lock(&self.groups).get(group).cloned().ok_or(NO_GROUP)
    }

    pub(super) fn holders(&self) -> Vec<Arc<Holder>> {
        lock(&self.groups).values().cloned().collect()
    }
}

/// Has the role of `holder` make a token, with `policy` instead of all its policies.
async fn ask_role(
    own: &TokenClient,
    holder: &Holder,
    policy: Option<&str>,
) -> Result<TokenGrant, CallError> {
    let Some(Role { group, name: role, has_entity }) = &holder.role else {
        return Err(CallError::DENIED);
    };
    let name = entity(group);
    let body = TokenBody {
        display_name: &name,
        meta: TokenMeta { cloakroom_group: group.as_str() },
        policies: policy.map(|policy| [policy]),
        entity_alias: has_entity.then_some(&name),
    };
    let room = 3 * name.len() + policy.map_or(0, str::len);
    let answer = own.call(Post::new(plan::create_path(role), &body, room)?).await?;
    let strange = CallError::Transport("Vault's answer holds no usable token for the group");
    TokenGrant::parse(&answer).ok_or(strange)
}

/// The reason why a group has no token.
pub(super) enum ChildError {
    /// Vault did not make a token.
    Asked(CallError),
    /// Vault made a token that must not be used.
    Unfit(&'static str),
}

impl ChildError {
    fn into_fetch_error(self) -> FetchError {
        match self {
            // The gateway's token died meanwhile, which says nothing of the role.
            Self::Asked(error) if error.is_unknown_token() => error.outage(),
            // Vault says 400 for a role that does not exist.
            Self::Asked(CallError::Status { code: 400 | 403 | 404 | 405, .. }) => {
                FetchError::Gone(SecretCause::VaultDenied, NO_TOKEN)
            }
            Self::Asked(other) => other.outage(),
            Self::Unfit(text) => FetchError::Gone(SecretCause::VaultDenied, text),
        }
    }
}

/// The message where Vault makes no token for a group.
pub(super) const NO_TOKEN: &str = "Vault refuses a token for the group: check its token role \
    (vault_role; its token_type, its allowed_entity_aliases) and the gateway's policy, or apply \
    `cloakroom vault plan`";

/// The time that a token with a successor stays, for requests on their way and for leases that have
/// to be made again.
pub(super) const RETIRED_TIME: Duration = Duration::from_secs(60);

/// The most tokens that wait to be revoked; the one that ends soonest makes room.
pub(super) const MAX_RETIRED: usize = 1_024;
