//! A request on its way out: checked against its rules, with the values put in.

use std::{slice, sync::Arc, time::Instant};

use bytes::Bytes;
use http::request;

use super::{
    connection::{Connection, RequestRules, allows_websocket},
    decoded::{DecoderPlaces, Reading},
    masking::Masking,
    message,
    minting::Minting,
    overrides, owner_restrictions,
    pinned_authority::PinnedAuthority,
    receive::ResponseHandling,
    trace::Trace,
    whole::WholeBody,
};
use crate::{
    decide::{Permit, Route},
    policy::{Binding, Carry, GroupName, NarrowedRequest, Pass, Policy, permits},
    reason::{Reason, SecretCause},
    scrub::{self, Part},
    secrets::SecretSnapshot,
    substitute::{
        self, CredentialLookup, Denial, Signing, Substitution, SubstitutionRules, TicketsAt,
    },
};

/// A request that has been checked and may be sent.
pub(super) struct PreparedRequest {
    /// The handling of its answer.
    pub(super) answering: ResponseHandling,
    /// The bindings whose values are in the request.
    pub(super) used: Vec<Arc<Binding>>,
    /// The body, where it has been read.
    pub(super) body: Option<Bytes>,
    /// The signing that remains, once the request is otherwise as it will be sent.
    pub(super) signing: Option<Signing>,
}

/// Checks the request against its rules and puts the values in.
pub(super) fn prepare(
    connection: &Connection,
    head: &mut request::Parts,
    whole: Option<&WholeBody>,
    snapshot: &SecretSnapshot,
    trace: &Trace,
) -> Result<PreparedRequest, Reason> {
    match (&connection.rules, &connection.route) {
        (RequestRules::Substitute(rules), Route::Intercept(api)) => {
            let lookup = lookup(connection, rules);
            let substitution = match whole {
                Some(whole) => substitute::examine_whole(lookup, head, &whole.bytes),
                None => substitute::examine(lookup, head),
            };
            let substitution = substitution.map_err(|denial| trace.denied(denial))?;
            trace.with(|record| record.placeholders(substitution.placeholders()));
            check_overrides(rules, &substitution, head)?;
            let path = rules.named(head.uri.path());
            let asked = NarrowedRequest {
                api,
                host: &connection.pinned.host,
                method: &head.method,
                path: &path,
            };
            let group = &connection.group.name;
            owner_restrictions::admit(group, asked, head, snapshot, &substitution)
                .map_err(|word| trace.narrowed(word))?;
            let minting = Minting::of(rules, head, &connection.taken)?;
            let masking = Masking::of(connection, snapshot);
            let part = Part::of(&head.method, &head.headers).filter(|_| !api.response.ranges);
            let reading = match (&part, &minting) {
                // Such an answer is cut out of one of a known length, or read whole.
                (Some(_), _) | (_, Some(_)) => Reading::Decoded(DecoderPlaces::default()),
                (None, None) => Reading::Decoded(DecoderPlaces::of(
                    (&connection.coded, &connection.taken),
                    &head.headers,
                )),
            };
            let accepted = reading.accepted();
            scrub::request_encodings(&api.response, accepted, &mut head.headers);
            let (body, signing) = swap(connection, head, snapshot, &substitution)
                .map_err(|cause| trace.secret_unavailable(cause))?;
            let used = substitution.bindings().cloned().collect();
            Ok(PreparedRequest {
                answering: ResponseHandling { masking, reading, part, minting },
                used,
                body,
                signing,
            })
        }
        (RequestRules::Inspect, Route::Inspect(pass)) => {
            inspect(pass, head)?;
            let masking = Masking::none(connection);
            let reading = Reading::Unread;
            let answering = ResponseHandling { masking, reading, part: None, minting: None };
            Ok(PreparedRequest { answering, used: vec![], body: None, signing: None })
        }
        _ => Err(Reason::InternalError),
    }
}

/// Returns the rules and tickets against which credentials are checked.
fn lookup<'a>(connection: &'a Connection, rules: &'a SubstitutionRules) -> CredentialLookup<'a> {
    let (all, host) = (&*connection.tickets, &connection.pinned.host);
    CredentialLookup::new(rules, TicketsAt { all, host, now: Instant::now() })
}

fn swap(
    connection: &Connection,
    head: &mut request::Parts,
    snapshot: &SecretSnapshot,
    substitution: &Substitution,
) -> Result<(Option<Bytes>, Option<Signing>), SecretCause> {
    let group = &connection.group.name;
    let now = Instant::now();
    let lookup =
        |binding: &Binding| snapshot.current(group, &binding.secret, binding.min_value_bytes, now);
    Ok((substitution.apply(head, lookup)?, substitution.signing(lookup)?))
}

/// Refuses fields that replace a method or a path that was examined.
fn check_overrides(
    rules: &SubstitutionRules,
    substitution: &Substitution,
    head: &request::Parts,
) -> Result<(), Reason> {
    let scope = rules.scope(substitution, head)?;
    overrides::check(head, Some(scope.methods), scope.paths)?;
    if let Some(path) = rules.body_path() {
        // A value in a body is for one method and one path, whatever else the API allows.
        let (method, path) = (slice::from_ref(&head.method), slice::from_ref(path));
        overrides::check(head, Some(method), path)?;
    }
    Ok(())
}

/// Checks a request without a body against policy alone, with the very checks that each request on
/// this route meets. The checks that come after them (a ticket, an owner restriction, whether there
/// is a value) cannot be made here.
///
/// # Errors
///
/// The reason for which it is refused.
pub fn admits(
    policy: &Policy,
    group: &GroupName,
    permit: &Permit,
    head: &request::Parts,
) -> Result<(), Denial> {
    let route = permit.route();
    let pinned = PinnedAuthority { host: permit.host().clone(), port: permit.port() };
    message::check(head, &pinned, allows_websocket(route))?;
    match route {
        Route::Intercept(api) => {
            let rules = SubstitutionRules::new(policy, group, api);
            let substitution = match rules.reads_body(head) {
                true => substitute::examine_whole(&rules, head, &Bytes::new())?,
                false => substitute::examine(&rules, head)?,
            };
            Ok(check_overrides(&rules, &substitution, head)?)
        }
        Route::Inspect(pass) => Ok(inspect(pass, head)?),
        Route::Splice(_) | Route::Tcp(_) => Ok(()),
    }
}

fn inspect(pass: &Pass, head: &request::Parts) -> Result<(), Reason> {
    match &pass.carry {
        Carry::Inspect { methods, paths, .. } => {
            permits(methods, paths, &head.method, head.uri.path())?;
            overrides::check(head, Some(methods), paths)
        }
        Carry::Splice { .. } => Err(Reason::InternalError),
    }
}
