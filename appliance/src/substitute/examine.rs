//! Reads a request against [`SubstitutionRules`](super::SubstitutionRules); changes nothing. Every
//! doubt is a denial.
//!
//! The order is fixed: Connection, credentials, method, path. Credentials come before method and
//! path, so that only the holder of a good placeholder learns which methods and paths are listed,
//! and an operator reads `method_denied` only where the method is the mistake.

use std::{borrow::Cow, ops::Range};

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method,
    header::{AUTHORIZATION, CONNECTION, COOKIE, PROXY_AUTHORIZATION},
    request::Parts,
};

use super::{
    Substitution,
    apply::Swap,
    aws, basic, body,
    claim::Claim,
    cookies,
    denial::{Denial, astray},
    locate,
    lookup::CredentialLookup,
    rules::Scope,
    subprotocol,
};
use crate::{
    policy::{PathSlot, Place, after_word, fold_query, has_one_reading, permits, query_pairs},
    reason::Reason,
};

/// Finds the credentials of a request without a place in its body, and decides what happens to
/// each.
///
/// `Proxy-Authorization` does not count here, neither as a credential nor as a second one: it is
/// addressed to a proxy, and [`Substitution::apply`] removes it whatever it holds.
///
/// # Errors
///
/// `http_malformed` where Connection names a credential field, which a later hop would strip; then
/// the reasons of substitution; then `connect_denied`, `method_denied`, `path_denied` and
/// `path_ambiguous`. `internal_error` where a place is in the body.
pub fn examine<'a>(
    lookup: impl Into<CredentialLookup<'a>>,
    head: &Parts,
) -> Result<Substitution, Denial> {
    let lookup = lookup.into();
    if lookup.reads_body(head) {
        return Err(Reason::InternalError.into());
    }
    examine_both(&lookup, head, None)
}

/// Does the same for any request, with its whole body.
///
/// # Errors
///
/// As [`examine`], and `credential_malformed` where the texts in the places of the body cannot be
/// told.
pub fn examine_whole<'a>(
    lookup: impl Into<CredentialLookup<'a>>,
    head: &Parts,
    body: &Bytes,
) -> Result<Substitution, Denial> {
    examine_both(&lookup.into(), head, Some(body))
}

fn examine_both(
    rules: &CredentialLookup<'_>,
    head: &Parts,
    body: Option<&Bytes>,
) -> Result<Substitution, Denial> {
    check_connection(rules, head)?;
    if !rules.path_slots().is_empty() && !has_one_reading(head.uri.path()) {
        return Err(Reason::PathAmbiguous.into());
    }
    let resembles_another = !rules.reads_body(head) && rules.resembles_one_with_body(head)
        || rules.resembles_one_that_mints(head.uri.path());
    if resembles_another {
        return Err(Reason::PathAmbiguous.into());
    }
    let signature = signature(rules, head)?;
    let mut credentials = credentials(rules, head, signature.as_ref());
    credentials.extend(signature.map(Credential::Aws));
    credentials.extend(cookies(rules, head)?);
    let body_bytes = body.map(|body| &**body).unwrap_or_default();
    let found = body::read(rules.body_places(head), &head.headers, body_bytes)?;
    credentials.extend(found.into_iter().map(Credential::Body));
    let substitution = Substitution::new(classify_all(rules, head, &credentials)?, body.cloned());
    check_request(rules, &substitution, head).map_err(|reason| Denial {
        placeholder: substitution.placeholders().next().cloned(),
        ..reason.into()
    })?;
    Ok(substitution)
}

fn check_connection(rules: &CredentialLookup<'_>, head: &Parts) -> Result<(), Denial> {
    let nominated = head
        .headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .any(|option| rules.names_credential_field(option.trim_ascii()));
    if nominated { Err(Reason::HttpMalformed.into()) } else { Ok(()) }
}

/// A value in a place for credentials.
enum Credential<'a> {
    /// In a header field.
    Header(&'a HeaderName, &'a HeaderValue),
    /// In the Cookie field, where no cookie is a place.
    Cookies(&'a HeaderValue),
    /// In a cookie, with the name of the place that a server might take it for.
    Cookie(cookies::Cookie<'a>, Option<&'a str>),
    /// In the body.
    Body(body::BodyValue<'a>),
    /// In the query, both decoded.
    Query { name: Cow<'a, str>, value: Cow<'a, str> },
    /// In the path, as it is on the wire.
    Path { place: &'a PathSlot, at: Range<usize> },
    /// A signature of AWS, which has several fields.
    Aws(aws::FoundSignature<'a>),
    /// In an offered subprotocol.
    Subprotocol { offers: &'a HeaderValue, at: Range<usize> },
}

impl Credential<'_> {
    /// Returns its kind and its name, never its value: a name that is folded, or a place as policy
    /// has it.
    fn place(&self) -> String {
        match self {
            Self::Header(name, _) => format!("header {name}"),
            Self::Cookies(_) | Self::Cookie(_, None) => "cookies".to_owned(),
            Self::Cookie(_, Some(place)) => format!("cookie {place}"),
            Self::Body(found) => found.place.spot().to_string(),
            Self::Query { name, .. } => format!("query {}", fold_query(name)),
            Self::Path { place, .. } => format!("path {place}"),
            Self::Subprotocol { .. } => "websocket subprotocol".to_owned(),
            Self::Aws(found) => found.place(),
        }
    }
}

fn signature<'a>(
    rules: &CredentialLookup<'_>,
    head: &'a Parts,
) -> Result<Option<aws::FoundSignature<'a>>, Denial> {
    match rules.aws_scope() {
        Some(_) => aws::find(head),
        None => Ok(None),
    }
}

/// Returns the credentials that do not belong to the signature.
fn credentials<'a>(
    rules: &'a CredentialLookup<'a>,
    head: &'a Parts,
    signature: Option<&aws::FoundSignature<'_>>,
) -> Vec<Credential<'a>> {
    let signed = |name: &HeaderName| signature.is_some_and(|found| found.has_field(name));
    let other =
        |name: &HeaderName| *name != PROXY_AUTHORIZATION && *name != COOKIE && !signed(name);
    let counts = |name: &HeaderName| rules.is_credential_field(name) && other(name);
    let headers = head.headers.iter().filter(|(name, _)| counts(name));
    let pairs = query_pairs(head.uri.query().unwrap_or_default());
    let signed = |name: &str| signature.is_some_and(|found| found.has_query(name));
    let queries = pairs.filter(|(name, _)| rules.is_credential_query(name) && !signed(name));
    let slots = rules.path_slots().iter();
    let paths = slots.filter_map(|place| Some((place, place.find(head.uri.path())?)));
    headers
        .map(|(name, value)| Credential::Header(name, value))
        .chain(queries.map(|(name, value)| Credential::Query { name, value }))
        .chain(paths.map(|(place, at)| Credential::Path { place, at }))
        .chain(
            subprotocol::find(rules, head)
                .map(|(offers, at)| Credential::Subprotocol { offers, at }),
        )
        .collect()
}

/// Returns the cookies that may be credentials. Where one cookie is a place, each is examined by
/// itself; where none is, they are one credential, or none.
fn cookies<'a>(
    rules: &'a CredentialLookup<'a>,
    head: &'a Parts,
) -> Result<Vec<Credential<'a>>, Denial> {
    if !rules.looks_into_cookies() {
        let all = head.headers.get(COOKIE).filter(|_| rules.is_credential_field(&COOKIE));
        return Ok(all.map(Credential::Cookies).into_iter().collect());
    }
    let denied = |reason: Reason| Denial { credential: Some("cookies".into()), ..reason.into() };
    let all = cookies::read(head).map_err(denied)?.into_iter().map(|cookie| {
        let place = rules.cookie_place(cookie.name);
        (cookie, place)
    });
    let counts = all.filter(|(_, place)| place.is_some() || rules.refuses_cookies());
    Ok(counts.map(|(cookie, place)| Credential::Cookie(cookie, place)).collect())
}

/// Judges all credentials. Where there are several, each has to be a placeholder in its place, in a
/// field of its own: a server may read any of them, so a foreign key could ride beside a good
/// placeholder.
fn classify_all(
    rules: &CredentialLookup<'_>,
    head: &Parts,
    credentials: &[Credential<'_>],
) -> Result<Vec<Swap>, Denial> {
    let swaps = credentials.iter().map(|one| {
        let at = |denial| Denial { credential: Some(one.place()), ..denial };
        classify(rules, head, one).map_err(at)
    });
    let swaps = swaps.collect::<Result<Vec<_>, _>>();
    if credentials.len() < 2 {
        return swaps;
    }
    let duplicate = |credential| Denial { credential, ..Reason::DuplicateCredential.into() };
    let swaps = swaps.map_err(|denial| duplicate(denial.credential))?;
    let spots = || swaps.iter().map(Swap::spot).enumerate();
    let twice = |&(nth, spot): &_| spots().any(|(other, same)| nth != other && spot == same);
    match spots().find(twice) {
        Some((_, spot)) => Err(duplicate(Some(spot.to_string()))),
        None => Ok(swaps),
    }
}

fn classify(
    rules: &CredentialLookup<'_>,
    head: &Parts,
    credential: &Credential<'_>,
) -> Result<Swap, Denial> {
    let uri = &head.uri;
    match credential {
        Credential::Header(field, value) => classify_header(rules, field, value),
        Credential::Aws(found) => found.swap(rules, head),
        Credential::Cookies(value) => Err(deny_cookies(rules, value)),
        Credential::Query { name, value } => locate::in_query(rules, uri, (name, value))
            .ok_or_else(|| deny_credential(rules, value.as_bytes())),
        Credential::Cookie(cookie, _) => locate::in_cookie(rules, cookie)
            .ok_or_else(|| deny_credential(rules, cookie.value.trim_matches('"').as_bytes())),
        Credential::Body(found) => locate::in_body(rules, found)
            .ok_or_else(|| deny_credential(rules, found.text.as_bytes())),
        Credential::Path { place, at } => locate::in_path(rules, uri, (place, at))
            .ok_or_else(|| deny_credential(rules, &locate::segment(uri, at))),
        Credential::Subprotocol { offers, at } => subprotocol::swap(rules, head, (*offers, at))
            .ok_or_else(|| deny_offer(rules, offers, at)),
    }
}

fn classify_header(
    rules: &CredentialLookup<'_>,
    field: &HeaderName,
    value: &HeaderValue,
) -> Result<Swap, Denial> {
    let text = value.as_bytes();
    if !text.iter().all(|&byte| byte == b' ' || byte.is_ascii_graphic()) {
        return Err(Reason::CredentialMalformed.into());
    }
    if *field == AUTHORIZATION
        && let Some(encoded) = after_word(text, "basic")
    {
        return basic::classify(rules, encoded);
    }
    after_space(text)
        .into_iter()
        .chain([text])
        .find_map(|token| {
            rules.claims(token).find_map(|claim| swap_at(claim, field, (text, token)))
        })
        .ok_or_else(|| deny_credential(rules, text))
}

/// Returns the swap for a token that is all of a field's text, or the part after a scheme.
fn swap_at(claim: Claim, field: &HeaderName, (text, token): (&[u8], &[u8])) -> Option<Swap> {
    let scheme = claim.places().iter().find_map(|place| match place {
        Place::Header { name, scheme } if name == field => {
            (scheme.credential(text) == Some(token)).then(|| scheme.clone())
        }
        _ => None,
    })?;
    Some(Swap::Header { field: field.clone(), scheme, claim })
}

/// Returns the text after the first space.
fn after_space(text: &[u8]) -> Option<&[u8]> {
    text.iter().position(|&byte| byte == b' ').and_then(|at| text.get(at + 1..))
}

/// Returns the denial for a credential that stands in no listed place: the whole value, or the text
/// after its first space, decides whether it is one of this group's placeholders gone astray.
fn deny_credential(rules: &CredentialLookup<'_>, text: &[u8]) -> Denial {
    let candidates = [Some(text), after_space(text)];
    astray(candidates.into_iter().flatten().map(|candidate| rules.owner(candidate)))
}

fn deny_offer(rules: &CredentialLookup<'_>, offers: &HeaderValue, at: &Range<usize>) -> Denial {
    let offer = offers.as_bytes().get(at.clone()).unwrap_or_default();
    astray(subprotocol::candidates(rules, offer).map(|candidate| rules.owner(candidate)))
}

/// Returns the denial for cookies of which none is a place. They are pairs separated by `;` (RFC
/// 6265, section 4.2.1).
fn deny_cookies(rules: &CredentialLookup<'_>, value: &HeaderValue) -> Denial {
    let pairs = value.as_bytes().split(|&byte| byte == b';');
    astray(pairs.map(|pair| {
        let value = pair.iter().position(|&byte| byte == b'=').and_then(|at| pair.get(at + 1..));
        rules.owner(value.unwrap_or(pair).trim_ascii())
    }))
}

fn check_request(
    rules: &CredentialLookup<'_>,
    substitution: &Substitution,
    head: &Parts,
) -> Result<(), Reason> {
    let Scope { methods, paths } = rules.scope(substitution, head)?;
    if head.method == Method::CONNECT {
        return Err(Reason::ConnectDenied);
    }
    permits(methods, paths, &head.method, &rules.named(head.uri.path()))
}
