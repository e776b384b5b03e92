//! An intercepted connection, as each of its exchanges sees it.

use std::{borrow::Cow, sync::Arc, time::Duration};

use http::{HeaderMap, Uri, request};

use super::{exchanges::Exchanges, pinned_authority::PinnedAuthority, wire::TrailerRule};
use crate::{
    audit::Sink,
    decide::Route,
    identity::{AgentAddr, FlowId},
    limits::{Coded, Taken},
    policy::{Api, Carry, Group, ResponseRules},
    policy_snapshot::MaskCache,
    reason::Reason,
    secrets::SecretStore,
    substitute::{self, SubstitutionRules},
    tickets::Tickets,
};

/// The state that all exchanges of one connection share.
pub(super) struct Connection {
    /// Its flow.
    pub flow: FlowId,
    /// The agent's group.
    pub group: Arc<Group>,
    /// The address of the agent.
    pub agent: AgentAddr,
    /// The one name and port that requests may be for.
    pub pinned: PinnedAuthority,
    /// The rule that permitted it.
    pub route: Route,
    /// The checks of each request.
    pub rules: RequestRules,
    /// The account against which requests are counted.
    pub taken: Arc<Taken>,
    /// The sink of its records.
    pub audit: Sink,
    /// The store of the values.
    pub secrets: Arc<SecretStore>,
    /// The tickets that agents hold in the place of minted credentials.
    pub tickets: Arc<Tickets>,
    /// Compiled masks, shared between connections.
    pub masks: Arc<MaskCache>,
    /// The compressed answers to its group.
    pub(super) coded: Arc<Coded>,
    /// The most fields that a head may have, and the most bytes in a list of them: no reader of
    /// ours counts them in HTTP/2.
    pub(super) head_fields: usize,
    pub(super) head_bytes: usize,
    /// The longest time for a body that is read whole.
    pub(super) head_time: Duration,
    /// The longest time for which an upstream may be silent about a request of which nothing moves.
    pub(super) idle_time: Duration,
    /// Exchanges under way.
    pub(super) exchanges: Arc<Exchanges>,
}

/// The checks of a request, by how the connection was permitted.
pub(super) enum RequestRules {
    /// Placeholders become secrets.
    Substitute(Arc<SubstitutionRules>),
    /// Method and path only.
    Inspect,
}

impl Connection {
    /// Whether one of its requests may become a WebSocket.
    pub(super) fn allows_websocket(&self) -> bool {
        allows_websocket(&self.route)
    }

    /// Returns the path of a request as its record shows it.
    pub(super) fn shown_path<'a>(&self, uri: &'a Uri) -> Cow<'a, str> {
        match &self.rules {
            RequestRules::Substitute(rules) => rules.shown_path(uri.path()),
            RequestRules::Inspect => Cow::Borrowed(uri.path()),
        }
    }

    /// Returns the rules on the fields and the parts that an answer keeps.
    pub(super) fn response_rules(&self) -> ResponseRules {
        match &self.route {
            Route::Intercept(api) => api.response,
            Route::Splice(_) | Route::Tcp(_) | Route::Inspect(_) => {
                ResponseRules { cookies: true, ranges: true }
            }
        }
    }
}

/// Whether a request on this route may become a WebSocket.
pub(super) fn allows_websocket(route: &Route) -> bool {
    match route {
        Route::Intercept(api) => api.websocket,
        Route::Inspect(pass) => matches!(pass.carry, Carry::Inspect { websocket: true, .. }),
        Route::Splice(_) | Route::Tcp(_) => false,
    }
}

impl RequestRules {
    /// Takes the rules of the route's API; for a route without one, only method and path are
    /// checked.
    pub(super) fn of(
        route: &Route,
        rules: impl FnOnce(&Arc<Api>) -> Arc<SubstitutionRules>,
    ) -> Self {
        match route {
            Route::Intercept(api) => Self::Substitute(rules(api)),
            Route::Splice(_) | Route::Tcp(_) | Route::Inspect(_) => Self::Inspect,
        }
    }

    /// Whether the body of this request is read whole.
    pub(super) fn reads_body(&self, head: &request::Parts) -> bool {
        match self {
            Self::Substitute(rules) => rules.reads_body(head),
            Self::Inspect => false,
        }
    }
}

impl TrailerRule for Connection {
    fn check(&self, trailers: &HeaderMap) -> Result<(), Reason> {
        match &self.rules {
            RequestRules::Substitute(rules)
                if substitute::trailers_carry_credential(rules, trailers) =>
            {
                Err(Reason::TrailerDenied)
            }
            _ => Ok(()),
        }
    }
}
