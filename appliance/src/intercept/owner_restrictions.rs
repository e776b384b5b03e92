//! Owner restrictions on one request. Policy has let it pass; a restriction can only refuse it.

use std::time::SystemTime;

use http::request;

use super::overrides;
use crate::{
    policy::{Api, GroupName, Host, Narrowed},
    secrets::SecretSnapshot,
    seldom::Seldom,
    substitute::Substitution,
};

/// Refuses a request that the owners of its secrets do not allow. The path has the names of
/// placeholders.
pub(super) fn admit(
    (group, api, host): (&GroupName, &Api, &Host),
    (head, path): (&request::Parts, &str),
    snapshot: &SecretSnapshot,
    substitution: &Substitution,
) -> Result<(), Narrowed> {
    for (binding, value_place) in substitution.value_places() {
        // A secret that has no value now is not put in.
        let Some(narrowing) = snapshot.narrowing(group, &binding.secret) else { continue };
        let request = (&head.method, path);
        let admitted =
            narrowing.admits((api, binding), (host, value_place), request, SystemTime::now());
        if let Err(Narrowed::Unavailable(_, text)) = admitted
            && SELDOM.is_due(SystemTime::now())
        {
            tracing::warn!(%group, api = %api.name, secret = %binding.secret, text, "a value is kept back");
        }
        admitted?;
        overrides::check(head, narrowing.methods(), narrowing.paths())
            .map_err(Narrowed::Refused)?;
    }
    Ok(())
}

/// The log has a case now and then; the audit has each.
static SELDOM: Seldom = Seldom::new();
