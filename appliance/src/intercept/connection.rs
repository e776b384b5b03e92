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

/// What every exchange of one connection shares.
pub(super) struct Connection {
    /// Its flow.
    pub flow: FlowId,
    /// Whose it is.
    pub group: Arc<Group>,
    /// Where it came from.
    pub agent: AgentAddr,
    /// The one name and port that requests may be for.
    pub pinned: PinnedAuthority,
    /// How it was permitted.
    pub route: Route,
    /// What a request must look like.
    pub rules: RequestRules,
    /// Where requests are counted.
    pub taken: Arc<Taken>,
    /// Where records go.
    pub audit: Sink,
    /// Where values come from.
    pub secrets: Arc<SecretStore>,
    /// What agents hold for what APIs have minted.
    pub tickets: Arc<Tickets>,
    /// Compiled masks, shared between connections.
    pub masks: Arc<MaskCache>,
    /// Compressed answers to its group.
    pub(super) coded: Arc<Coded>,
    /// Fields that a head may have, and the bytes of a list of them; HTTP/2 has no reader of ours
    /// that counts them.
    pub(super) head_fields: usize,
    pub(super) head_bytes: usize,
    /// How long a body may take that is read whole.
    pub(super) head_time: Duration,
    /// How long an upstream may say nothing to a request of which nothing moves.
    pub(super) idle_time: Duration,
    /// Exchanges under way.
    pub(super) exchanges: Arc<Exchanges>,
}

/// What is asked of a request, by how the connection was permitted.
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

    /// The path of a request as its record shows it.
    pub(super) fn shown_path<'a>(&self, uri: &'a Uri) -> Cow<'a, str> {
        match &self.rules {
            RequestRules::Substitute(rules) => rules.shown_path(uri.path()),
            RequestRules::Inspect => Cow::Borrowed(uri.path()),
        }
    }

    /// Which fields an answer keeps, and which parts.
    pub(super) fn response_rules(&self) -> ResponseRules {
        match &self.route {
            Route::Intercept(api) => api.response,
            Route::Splice(_) | Route::Tcp(_) | Route::Inspect(_) => {
                ResponseRules { cookies: true, ranges: true }
            }
        }
    }
}

/// Whether a request that is permitted so may become a WebSocket.
pub(super) fn allows_websocket(route: &Route) -> bool {
    match route {
        Route::Intercept(api) => api.websocket,
        Route::Inspect(pass) => matches!(pass.carry, Carry::Inspect { websocket: true, .. }),
        Route::Splice(_) | Route::Tcp(_) => false,
    }
}

impl RequestRules {
    /// Whether the API's rules are in here; for a route that carries none there is nothing.
    pub(super) fn of(
        route: &Route,
        rules: impl FnOnce(&Arc<Api>) -> Arc<SubstitutionRules>,
    ) -> Self {
        match route {
            Route::Intercept(api) => Self::Substitute(rules(api)),
            Route::Splice(_) | Route::Tcp(_) | Route::Inspect(_) => Self::Inspect,
        }
    }

    /// Whether the body of such a request is read whole.
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
