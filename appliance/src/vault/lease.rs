//! The three requests about a lease: to renew it, to check it, and to end it.
//!
//! They are made with the group's token where the group's policies allow them (Vault's default
//! policy allows the first two), and else with the gateway's own. Only a clear answer of Vault
//! counts as the end of a lease; a request that neither token may make tells nothing. Where the
//! group's token cannot learn its rights, it is in doubt whether it lost one.

use std::time::Duration;

use rustify::{
    endpoint::Endpoint,
    enums::{RequestMethod, RequestType, ResponseType},
    errors::ClientError,
};
use serde::Serialize;
use zeroize::Zeroizing;

use super::{
    CallError, Session,
    pick::{PickedJson, pick},
    read::MAX_LIFE_SECONDS,
};
use crate::{
    policy::{GroupName, VaultLocation},
    reason::SecretCause,
    secrets::{FetchError, Lease, Prolonged, Standing},
};

/// Renews a lease for another full life.
pub(super) async fn renew(
    session: &Session,
    group: &GroupName,
    lease: &Lease,
) -> Result<Prolonged, FetchError> {
    let request = LeaseRequest::Renew { lease_id: &lease.id, increment: lease.life.as_secs() };
    let body = as_group_or_gateway(session, group, request).await?.map_err(lost)?;
    let Some(PickedJson::Number(seconds)) = pick(&body, &["lease_duration"]) else {
        return Err(CallError::Transport("the answer is not one of Vault's").outage());
    };
    Ok(Prolonged {
        life: Duration::from_secs(seconds.min(MAX_LIFE_SECONDS)),
        renewable: matches!(pick(&body, &["renewable"]), Some(PickedJson::Bool(true))),
    })
}

/// Checks whether the group may still read `location`, and whether the lease was ended.
pub(super) async fn check(
    session: &Session,
    group: &GroupName,
    location: &VaultLocation,
    lease: &Lease,
) -> Result<Standing, FetchError> {
    let path = location.api_path();
    let client = session.group(group).await?;
    let request = LeaseRequest::Capabilities { paths: [&path] };
    let mut standing = Standing::Good;
    match client.call(request).await {
        Ok(body) if pick(&body, &["capabilities"]).is_some() && may_not(&body, location) => {
            let text = "Vault's policies no longer let the group have this secret";
            return Err(FetchError::Gone(SecretCause::VaultDenied, text));
        }
        Ok(_) => {}
        Err(CallError::Status { code: 403, .. }) if client.is_unknown() => {
            session.replace_if_dead(&client).await?;
        }
        // Either a whole policy was taken away, or the token is dead, or it never had the right to
        // ask.
        Err(CallError::Status { code: 403, .. }) => standing = Standing::Doubtful,
        Err(CallError::Status { code: 400..=499, .. }) => {}
        Err(error) => return Err(error.outage()),
    }
    if lease.id.is_empty() {
        return Ok(standing);
    }
    match as_group_or_gateway(session, group, LeaseRequest::Lookup { lease_id: &lease.id }).await? {
        // Vault says 400 for a lease that it does not know.
        Err(CallError::Status { code: 400 | 404, .. }) => Ok(Standing::Ended),
        Ok(_) | Err(CallError::Status { code: 401..=499, .. }) => Ok(standing),
        Err(error) => Err(error.outage()),
    }
}

/// Ends a lease. The lease of a group that may have no token any more ends with the group's token,
/// which is revoked.
pub(super) async fn revoke(
    session: &Session,
    group: &GroupName,
    lease: &Lease,
) -> Result<(), FetchError> {
    if lease.id.is_empty() || !session.knows(group) {
        return Ok(());
    }
    match as_group_or_gateway(session, group, LeaseRequest::Revoke { lease_id: &lease.id }).await? {
        // Vault says 400 for a lease that it does not know: it has ended.
        Ok(_) | Err(CallError::Status { code: 400 | 404, .. }) => Ok(()),
        Err(CallError::Status { code: 403, .. }) => {
            let text = "Vault's policies let neither the group nor the gateway revoke leases";
            Err(FetchError::Gone(SecretCause::VaultDenied, text))
        }
        Err(error) => Err(error.outage()),
    }
}

async fn as_group_or_gateway(
    session: &Session,
    group: &GroupName,
    request: LeaseRequest<'_>,
) -> Result<Result<Zeroizing<Vec<u8>>, CallError>, FetchError> {
    if let Ok(client) = session.group(group).await {
        match client.call(request).await {
            Err(CallError::Status { code: 403, .. }) => {}
            other => return Ok(other),
        }
    }
    Ok(session.gateway().await?.call(request).await)
}

/// Whether Vault says clearly that the path may not be read.
fn may_not(body: &[u8], location: &VaultLocation) -> bool {
    #[derive(serde::Deserialize)]
    struct Answer {
        capabilities: Vec<String>,
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(body) else { return false };
    let enough = [location.capability(), "root"];
    // A write needs "create" where the engine tells new paths from old ones.
    let created = matches!(location, VaultLocation::Write { .. });
    !answer
        .capabilities
        .iter()
        .any(|one| enough.contains(&one.as_str()) || (created && one == "create"))
}

fn lost(error: CallError) -> FetchError {
    match error {
        CallError::Status { code: 400 | 403 | 404, .. } => {
            FetchError::Gone(SecretCause::LeaseEnded, "Vault does not renew the lease")
        }
        other => other.outage(),
    }
}

/// A request about a lease, as it is sent.
#[derive(Clone, Copy, Serialize)]
#[serde(untagged)]
enum LeaseRequest<'a> {
    Renew { lease_id: &'a str, increment: u64 },
    Lookup { lease_id: &'a str },
    Revoke { lease_id: &'a str },
    Capabilities { paths: [&'a str; 1] },
}

impl Endpoint for LeaseRequest<'_> {
    type Response = ();
    const REQUEST_BODY_TYPE: RequestType = RequestType::JSON;
    const RESPONSE_BODY_TYPE: ResponseType = ResponseType::JSON;

    fn path(&self) -> String {
        let path = match self {
            Self::Renew { .. } => "sys/leases/renew",
            Self::Lookup { .. } => "sys/leases/lookup",
            Self::Revoke { .. } => "sys/leases/revoke",
            Self::Capabilities { .. } => "sys/capabilities-self",
        };
        path.to_owned()
    }

    fn method(&self) -> RequestMethod {
        RequestMethod::PUT
    }

    fn body(&self) -> Result<Option<Vec<u8>>, ClientError> {
        serde_json::to_vec(self)
            .map(Some)
            .map_err(|error| ClientError::DataParseError { source: error.into() })
    }
}

#[cfg(test)]
mod tests;
