//! Owner restrictions on one request. Policy has let it pass; a restriction can only refuse it.

use std::time::SystemTime;

use http::request;

use super::overrides;
use crate::{
    policy::{GroupName, Narrowed, NarrowedRequest},
    secrets::SecretSnapshot,
    seldom::Seldom,
    substitute::Substitution,
};

/// Refuses a request of the group that the owners of its secrets do not allow.
pub(super) fn admit(
    group: &GroupName,
    asked: NarrowedRequest<'_>,
    head: &request::Parts,
    snapshot: &SecretSnapshot,
    substitution: &Substitution,
) -> Result<(), Narrowed> {
    for (binding, value_place) in substitution.value_places() {
        // A secret that has no value now is not put in.
        let Some(narrowing) = snapshot.narrowing(group, &binding.secret) else { continue };
        let admitted = narrowing.admits(binding, value_place, asked, SystemTime::now());
        if let Err(Narrowed::Unavailable(_, text)) = admitted
            && SELDOM.is_due(SystemTime::now())
        {
            tracing::warn!(%group, api = %asked.api.name, secret = %binding.secret, text, "a value is kept back");
        }
        admitted?;
        overrides::check(head, narrowing.methods(), narrowing.paths())
            .map_err(Narrowed::Refused)?;
    }
    Ok(())
}

/// The log has a case now and then; the audit has each.
static SELDOM: Seldom = Seldom::new();
