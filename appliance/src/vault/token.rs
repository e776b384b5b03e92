//! A token: the answer by which Vault grants one, and requests with it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustify::{
    endpoint::Endpoint,
    enums::{RequestMethod, RequestType, ResponseType},
    errors::ClientError,
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    client::Transport,
    error::CallError,
    pick::{PickedJson, pick, pick_text},
};
use crate::policy::GroupName;

/// Sends requests to Vault with one token, which is wiped when the last user drops it.
pub(crate) struct TokenClient {
    transport: Arc<Transport>,
    token: Zeroizing<String>,
    accessor: Option<String>,
    group: Option<GroupName>,
    generation: u64,
    /// Whether it can be revoked: a batch token ends by itself alone.
    revocable: bool,
    /// Whether Vault said that it does not know the token.
    unknown: AtomicBool,
}

impl TokenClient {
    pub(super) fn new(
        transport: Arc<Transport>,
        grant: TokenGrant,
        group: Option<GroupName>,
        generation: u64,
    ) -> Self {
        Self {
            transport,
            token: grant.token,
            revocable: grant.kind.as_deref() != Some("batch"),
            accessor: grant.accessor,
            group,
            generation,
            unknown: AtomicBool::new(false),
        }
    }

    /// Runs one endpoint with this token and returns the body of a successful answer.
    ///
    /// # Errors
    ///
    /// A status other than success, or no answer within ten seconds or 1 MiB.
    pub(crate) async fn call(
        &self,
        endpoint: impl Endpoint,
    ) -> Result<Zeroizing<Vec<u8>>, CallError> {
        let answer = self.transport.call(&self.token, endpoint).await;
        if answer.as_ref().is_err_and(|error| error.is_unknown_token()) {
            self.unknown.store(true, Ordering::Relaxed);
        }
        answer
    }

    /// Returns the number of this token. A later token of the same holder has a larger number; a
    /// renewed one keeps its own. Leases under one number end with the token.
    pub(crate) const fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns the group that has the token; `None` for the gateway's own.
    pub(super) const fn group(&self) -> Option<&GroupName> {
        self.group.as_ref()
    }

    pub(super) fn accessor(&self) -> Option<&str> {
        self.accessor.as_deref()
    }

    pub(super) const fn is_revocable(&self) -> bool {
        self.revocable
    }

    pub(super) fn is_unknown(&self) -> bool {
        self.unknown.load(Ordering::Relaxed)
    }
}

/// Vault's answer where it made or renewed a token.
pub(super) struct TokenGrant {
    token: Zeroizing<String>,
    accessor: Option<String>,
    /// The life of the token; zero for one that does not end.
    pub(super) life: Duration,
    pub(super) renewable: bool,
    pub(super) policies: Vec<String>,
    orphan: Option<bool>,
    kind: Option<String>,
}

/// The part of an answer that is no secret.
#[derive(Deserialize)]
struct LoginReply {
    auth: Auth,
}

#[derive(Deserialize)]
struct Auth {
    accessor: Option<String>,
    policies: Option<Vec<String>>,
    token_policies: Option<Vec<String>>,
    identity_policies: Option<Vec<String>>,
    orphan: Option<bool>,
    token_type: Option<String>,
}

impl TokenGrant {
    /// Returns `None` for an answer that grants no token.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let token = pick_text(body, &["auth", "client_token"])?;
        // A token with other bytes could not be put in a header.
        if token.is_empty()
            || token.len() > MAX_TOKEN_BYTES
            || !token.iter().all(u8::is_ascii_graphic)
        {
            return None;
        }
        let life = match pick(body, &["auth", "lease_duration"]) {
            Some(PickedJson::Number(seconds)) => Duration::from_secs(seconds.min(MAX_LIFE_SECONDS)),
            _ => return None,
        };
        let renewable = matches!(pick(body, &["auth", "renewable"]), Some(PickedJson::Bool(true)));
        let LoginReply { auth } = serde_json::from_slice(body).ok()?;
        let lists = [auth.policies, auth.token_policies, auth.identity_policies];
        let mut policies: Vec<String> = lists.into_iter().flatten().flatten().collect();
        policies.sort_unstable();
        policies.dedup();
        Some(Self {
            token: Zeroizing::new(std::str::from_utf8(&token).ok()?.to_owned()),
            accessor: auth.accessor.filter(|accessor| !accessor.is_empty()),
            life,
            renewable,
            policies,
            orphan: auth.orphan,
            kind: auth.token_type,
        })
    }

    /// Returns why the gateway's own token must not be used, if so.
    pub(super) fn unfit_for_gateway(&self) -> Option<&'static str> {
        self.is_root().then_some("Vault gave the gateway a root token, which is not used")
    }

    /// Returns why the token of a group must not be used, if so. `parent` is the list of the
    /// gateway's own policies.
    pub(super) fn unfit_for_group(&self, parent: &[String]) -> Option<&'static str> {
        if let Some(too_much) = self.may_too_much(parent) {
            Some(too_much)
        } else if self.kind.as_deref() != Some("service") {
            // This check comes first, because Vault takes no orphan=false on a role of other
            // tokens.
            Some(
                "the group's token cannot be revoked: set token_type=service and orphan=false on its role",
            )
        } else if self.orphan != Some(false) {
            Some("the group's token would outlive the gateway's: set orphan=false on its role")
        } else {
            None
        }
    }

    /// Returns the part of [`unfit_for_group`](Self::unfit_for_group) that can change in a token's
    /// life.
    pub(super) fn may_too_much(&self, parent: &[String]) -> Option<&'static str> {
        let inherited = |policy: &String| policy != DEFAULT_POLICY && parent.contains(policy);
        if self.is_root() {
            Some("Vault gave the group a root token, which is not used")
        } else if self.policies.iter().any(inherited) {
            // A role without allowed_policies hands on the policies of its caller.
            Some("the group's token has a policy of the gateway's: set the role's allowed_policies")
        } else {
            None
        }
    }

    fn is_root(&self) -> bool {
        self.policies.iter().any(|policy| policy == "root")
    }
}

/// A POST with a JSON body that may hold a secret. vaultrs' types of this kind print the body and
/// do not wipe it.
pub(super) struct Post {
    path: String,
    body: Zeroizing<Vec<u8>>,
}

impl Post {
    /// Makes a request. `room` is the number of bytes of text in `body`.
    pub(super) fn new(path: String, body: &impl Serialize, room: usize) -> Result<Self, CallError> {
        // There is room for every byte as an escape: a buffer that grows leaves copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(256 + 6 * room));
        serde_json::to_writer(&mut *bytes, body)
            .map_err(|_| CallError::Transport("the question to Vault could not be made"))?;
        Ok(Self { path, body: bytes })
    }
}

impl Endpoint for Post {
    type Response = ();
    const REQUEST_BODY_TYPE: RequestType = RequestType::JSON;
    const RESPONSE_BODY_TYPE: ResponseType = ResponseType::JSON;

    fn path(&self) -> String {
        self.path.clone()
    }

    fn method(&self) -> RequestMethod {
        RequestMethod::POST
    }

    fn body(&self) -> Result<Option<Vec<u8>>, ClientError> {
        Ok(Some(self.body.to_vec()))
    }
}

/// Batch tokens are a few hundred bytes.
pub(super) const MAX_TOKEN_BYTES: usize = 4_096;

/// A year. Keeps sums of instants in range.
const MAX_LIFE_SECONDS: u64 = 365 * 24 * 3600;

/// The policy that every token has unless its role says otherwise.
pub(super) const DEFAULT_POLICY: &str = "default";

#[cfg(test)]
mod tests;
