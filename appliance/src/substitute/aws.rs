//! A signature of AWS (Signature Version 4) as an agent made it, in the head or in the query of a
//! request. Its key is a placeholder, so it proves nothing: it is read for its owner, and for the
//! service and region that the request is to be signed for.
//!
//! Errs to refusal. A text that some server could take for a signature, and this module does not,
//! stays a credential like any other.

use std::{
    borrow::Cow,
    ops::RangeInclusive,
    time::{Duration, SystemTime},
};

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{AUTHORIZATION, HOST},
    request::Parts,
    uri::Authority,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    apply::Swap,
    denial::{Denial, astray},
    lookup::CredentialLookup,
    signing::{
        ALGORITHM, CREDENTIAL, DATE, DATE_QUERY, EXPIRES, Payload, SECURITY_TOKEN,
        SECURITY_TOKEN_QUERY, SIGNATURE, SIGNATURE_QUERIES, SIGNED_HEADERS, SignatureForm, Times,
    },
};
use crate::{
    policy::{AwsName, Host, Place, fold_query, query_pairs},
    reason::Reason,
};

/// The parts of a `Credential`.
#[derive(Debug, PartialEq, Eq)]
struct CredentialScope<'a> {
    key: &'a str,
    day: &'a str,
    region: &'a str,
    service: &'a str,
}

/// A signature that was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FoundSignature<'a> {
    form: SignatureForm,
    algorithm: Cow<'a, str>,
    credential: Cow<'a, str>,
    /// The time at which it was made, as in `20150830T123600Z`.
    date: Cow<'a, str>,
    /// The time for which it is good from then on, where it states one.
    life: Option<Duration>,
    /// The token of a session.
    token: Option<Cow<'a, str>>,
    /// The request's statement about its body.
    payload: Option<Cow<'a, str>>,
}

/// Finds the signature of a request. Returns `None` where it has none.
///
/// # Errors
///
/// `credential_malformed` where it cannot be read in one way, and `duplicate_credential` where
/// there are two.
pub(super) fn find(head: &Parts) -> Result<Option<FoundSignature<'_>>, Denial> {
    let query = head.uri.query().unwrap_or_default();
    match (authorization(&head.headers), has_marks(query)) {
        (None, false) => Ok(None),
        (Some(_), true) => Err(at(SignatureForm::Query, Reason::DuplicateCredential)),
        (Some(value), false) => in_head(&head.headers, value)
            .ok_or_else(|| at(SignatureForm::Head, Reason::CredentialMalformed))
            .map(Some),
        (None, true) => in_query(&head.headers, query)
            .ok_or_else(|| at(SignatureForm::Query, Reason::CredentialMalformed))
            .map(Some),
    }
}

/// Returns the one `Authorization`, if it is a signature. With a second one neither is.
fn authorization(headers: &HeaderMap) -> Option<&HeaderValue> {
    only(headers, &AUTHORIZATION).flatten().filter(|value| value.as_bytes().starts_with(PREFIX))
}

/// Whether a server could find a signature in the query.
fn has_marks(query: &str) -> bool {
    query_pairs(query).any(|(name, _)| MARKS.contains(&&*fold_query(&name)))
}

fn in_head<'a>(headers: &'a HeaderMap, value: &'a HeaderValue) -> Option<FoundSignature<'a>> {
    let (algorithm, rest) = value.to_str().ok()?.split_once(' ')?;
    let mut fields = [None; HEAD_FIELDS.len()];
    for part in rest.split(',') {
        let (name, value) = part.trim_matches(' ').split_once('=')?;
        let nth = HEAD_FIELDS.iter().position(|field| *field == name)?;
        if fields.get_mut(nth)?.replace(value).is_some() {
            return None;
        }
    }
    let [credential, signed, signature] = fields;
    if !is_list(signed?) || !is_hex(signature?) {
        return None;
    }
    Some(FoundSignature {
        form: SignatureForm::Head,
        algorithm: algorithm.into(),
        credential: credential?.into(),
        date: text(headers, &DATE)??,
        life: None,
        token: text(headers, &SECURITY_TOKEN)?,
        payload: text(headers, &CONTENT_SHA256)?,
    })
}

fn in_query<'a>(headers: &'a HeaderMap, query: &'a str) -> Option<FoundSignature<'a>> {
    let one = |name: &str| one_value(query, name);
    let (algorithm, credential) = (one(ALGORITHM)??, one(CREDENTIAL)??);
    let [date, expires] = [one(DATE_QUERY)??, one(EXPIRES)??];
    let [signed, signature] = [one(SIGNED_HEADERS)??, one(SIGNATURE)??];
    if !is_list(&signed) || !is_hex(&signature) {
        return None;
    }
    let seconds = expires.parse().ok().filter(|_| expires.bytes().all(|b| b.is_ascii_digit()))?;
    let life = Some(seconds).filter(|seconds| LINK_SECONDS.contains(seconds));
    let life = Some(Duration::from_secs(life?));
    let payload = match (text(headers, &CONTENT_SHA256)?, one(CONTENT_SHA256_QUERY)?) {
        (Some(_), Some(_)) => return None,
        (field, named) => field.or(named),
    };
    let (form, token) = (SignatureForm::Query, one(SECURITY_TOKEN_QUERY)?);
    Some(FoundSignature { form, algorithm, credential, date, life, token, payload })
}

/// Returns the decoded value under a name of the query, if it is there. `None` where the name is
/// there twice, or where some server finds it and another does not: the name must stand there as it
/// is, separated from others by `&` alone.
fn one_value<'a>(query: &'a str, name: &str) -> Option<Option<Cow<'a, str>>> {
    let folded = fold_query(name);
    let alike = query_pairs(query).filter(|(other, _)| fold_query(other) == folded).count();
    let mut exact = query.split('&').filter(|part| !part.contains(';')).filter_map(|part| {
        let (own, value) = part.split_once('=')?;
        (own == name).then_some(value)
    });
    match (alike, exact.next()) {
        (0, None) => Some(None),
        (1, Some(value)) => form_urlencoded::parse(value.as_bytes())
            .next()
            .filter(|(_, rest)| rest.is_empty() && !value.contains('='))
            .map(|(value, _)| Some(value)),
        _ => None,
    }
}

/// Returns the text of a field, if it is there; `None` where it is there twice, or is no text.
fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Option<Cow<'a, str>>> {
    let Some(value) = only(headers, name)? else { return Some(None) };
    Some(Some(value.to_str().ok()?.into()))
}

fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Option<&'a HeaderValue>> {
    let mut values = headers.get_all(name).iter();
    let value = values.next();
    values.next().is_none().then_some(value)
}

/// Whether a text lists names of fields, separated by `;`.
fn is_list(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_;".contains(&b);
    !text.is_empty() && text.bytes().all(plain)
}

fn is_hex(text: &str) -> bool {
    let digit = |b: u8| b.is_ascii_hexdigit();
    (1..=MAX_SIGNATURE).contains(&text.len()) && text.bytes().all(digit)
}

impl FoundSignature<'_> {
    /// Whether a field of the head belongs to the signature, and so is no credential by itself.
    pub(super) fn has_field(&self, name: &HeaderName) -> bool {
        self.form == SignatureForm::Head && [&AUTHORIZATION, &SECURITY_TOKEN].contains(&name)
    }

    /// Whether a name in the query belongs to the signature.
    pub(super) fn has_query(&self, name: &str) -> bool {
        self.form == SignatureForm::Query && SIGNATURE_QUERIES.contains(&name)
    }

    /// Returns its place, for the audit.
    pub(super) fn place(&self) -> String {
        place(self.form).to_owned()
    }

    /// Returns the swap for this signature.
    ///
    /// # Errors
    ///
    /// The reasons of substitution for a key that is no placeholder in this place; then, for one
    /// that is, `duplicate_credential` for the token of another session, `signature_denied` and
    /// `scope_denied`.
    pub(super) fn swap(&self, rules: &CredentialLookup<'_>, head: &Parts) -> Result<Swap, Denial> {
        let plain = self.algorithm == HMAC;
        let Some(scope) = CredentialScope::parse(&self.credential, plain) else {
            return Err(at(self.form, Reason::CredentialMalformed));
        };
        let times = self.times().filter(|_| self.date.starts_with(scope.day));
        let times = times.ok_or_else(|| at(self.form, Reason::CredentialMalformed))?;
        let key = scope.key.as_bytes();
        let Some(claim) = rules.claims(key).find(|claim| claim.places().contains(&Place::Aws))
        else {
            return Err(astray([rules.owner(key)].into_iter()));
        };
        let refused =
            |reason: Reason| Denial { placeholder: Some(claim.label().clone()), ..reason.into() };
        let own = |token: &Cow<'_, str>| rules.claims(token.as_bytes()).any(|it| it.is(&claim));
        if !self.token.as_ref().is_none_or(own) {
            return Err(refused(Reason::DuplicateCredential));
        }
        if !plain {
            return Err(refused(Reason::SignatureDenied));
        }
        let host = host(head).ok_or_else(|| refused(Reason::HostMismatch))?;
        let listed = rules.aws_scope();
        let named = listed.and_then(|listed| listed.find(&host, scope.service, scope.region));
        let (service, region) = named.ok_or_else(|| refused(Reason::ScopeDenied))?;
        let payload = self.payload(service).ok_or_else(|| refused(Reason::SignatureDenied))?;
        Ok(Swap::Aws {
            form: self.form,
            service: service.clone(),
            region: region.clone(),
            payload,
            times,
            claim: claim.clone(),
        })
    }

    /// Returns the times between which AWS would accept it.
    fn times(&self) -> Option<Times> {
        let made = moment(&self.date)?;
        let until = made + self.life.unwrap_or(CLOCKS_DIFFER);
        Some(Times { from: made - CLOCKS_DIFFER, until })
    }

    /// Returns the payload to sign; `None` where pieces of the body have signatures of their own.
    fn payload(&self, service: &AwsName) -> Option<Payload> {
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let is_hash = |text: &str| text.len() == SHA256_HEX && text.bytes().all(digit);
        match self.payload.as_deref() {
            None if self.form == SignatureForm::Query && service.is_s3() => Some(Payload::Unsigned),
            None => Some(Payload::Whole),
            Some("UNSIGNED-PAYLOAD") => Some(Payload::Unsigned),
            Some("STREAMING-UNSIGNED-PAYLOAD-TRAILER") => Some(Payload::UnsignedTrailer),
            Some(text) => is_hash(text).then(|| Payload::Hash(text.into())),
        }
    }
}

impl<'a> CredentialScope<'a> {
    /// Reads `KEY/DAY/REGION/SERVICE/aws4_request`, without a region where it is for several.
    fn parse(text: &'a str, has_region: bool) -> Option<Self> {
        let mut parts = text.split('/');
        let (key, day) = (parts.next()?, parts.next()?);
        let region = if has_region { parts.next()? } else { "" };
        let (service, end) = (parts.next()?, parts.next()?);
        let is_day = day.len() == "20150830".len() && day.bytes().all(|b| b.is_ascii_digit());
        let well = is_day && !key.is_empty() && end == "aws4_request" && parts.next().is_none();
        well.then_some(Self { key, day, region, service })
    }
}

/// Reads a time as in `20150830T123600Z`.
fn moment(text: &str) -> Option<SystemTime> {
    let (day, time) = text.strip_suffix('Z')?.split_once('T')?;
    let digits =
        |text: &str, many: usize| text.len() == many && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(day, 8) || !digits(time, 6) {
        return None;
    }
    let (year, month, day) = (day.get(..4)?, day.get(4..6)?, day.get(6..)?);
    let (hour, minute, second) = (time.get(..2)?, time.get(2..4)?, time.get(4..)?);
    let text = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z");
    OffsetDateTime::parse(&text, &Rfc3339).ok().map(SystemTime::from)
}

/// Returns the host of a request whose authority has been checked.
fn host(head: &Parts) -> Option<Host> {
    let named = || head.headers.get(HOST)?.to_str().ok()?.parse::<Authority>().ok();
    let authority = head.uri.authority().cloned().or_else(named)?;
    Host::parse(authority.host()).ok()
}

fn at(form: SignatureForm, reason: Reason) -> Denial {
    Denial { credential: Some(place(form).to_owned()), ..reason.into() }
}

const fn place(form: SignatureForm) -> &'static str {
    match form {
        SignatureForm::Head => "header authorization",
        SignatureForm::Query => "query xamzcredential",
    }
}

/// The values of a link's `X-Amz-Expires` that AWS accepts.
const LINK_SECONDS: RangeInclusive<u64> = 1..=604_800;
/// The difference that AWS accepts between its own clock and a client's.
const CLOCKS_DIFFER: Duration = Duration::from_secs(15 * 60);

const PREFIX: &[u8] = b"AWS4-";
const HMAC: &str = "AWS4-HMAC-SHA256";
const HEAD_FIELDS: [&str; 3] = ["Credential", "SignedHeaders", "Signature"];

const CONTENT_SHA256_QUERY: &str = "X-Amz-Content-Sha256";

/// Names of which one is enough for a server to expect a signature in the query, as [`fold_query`]
/// writes them.
const MARKS: [&str; 4] = ["xamzalgorithm", "xamzcredential", "xamzsignature", "xamzsecuritytoken"];

const CONTENT_SHA256: HeaderName = HeaderName::from_static("x-amz-content-sha256");

const SHA256_HEX: usize = 64;
/// Digits of the longest signature of any kind.
const MAX_SIGNATURE: usize = 256;
