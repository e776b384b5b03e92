//! Writes values into a request, as a [`Substitution`] says. Where a value is missing, the head
//! stays as it was: it still holds only placeholders.
//!
//! The buffers made here are zeroised when the last handle on the header value, the target or the
//! body is dropped. The copies that hyper and rustls make while they send are their own, and are
//! not zeroised. A target is not marked as sensitive, as header values are: nothing prints one
//! after this.

use std::{fmt, ops::Range, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{
    HeaderName, HeaderValue,
    header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL},
    request::Parts,
};
use zeroize::Zeroizing;

use super::{
    claim::Claim,
    cookies,
    signing::{Payload, SignatureForm, Signing, Times},
    splice::{Piece, json_string, percent, splice},
    target::{self, TargetPart},
};
use crate::{
    policy::{
        AwsName, Binding, BodyPlace, BodySpot, PathSlot, Placeholder, Scheme, SubprotocolPrefix,
        ValuePlace, is_token,
    },
    reason::SecretCause,
    secrets::{AwsKeys, SecretValue},
};

/// The values for a request that has been examined, and their spots. Only [`super::examine()`] and
/// [`super::examine_whole()`] make one.
#[derive(Debug)]
pub struct Substitution {
    swaps: Vec<Swap>,
    /// The body, where it was examined.
    body: Option<Bytes>,
}

#[derive(Debug)]
pub(super) enum Swap {
    Header {
        field: HeaderName,
        scheme: Scheme,
        claim: Claim,
    },
    Basic {
        user: Half,
        password: Half,
    },
    /// `at` is the range of the placeholder in the query, as it is on the wire.
    Query {
        name: Box<str>,
        at: Range<usize>,
        claim: Claim,
    },
    /// `at` is the range of the placeholder in the path, as it is on the wire.
    Path {
        place: PathSlot,
        at: Range<usize>,
        claim: Claim,
    },
    /// `at` is the range of the placeholder in the one field of offers.
    Subprotocol {
        prefix: SubprotocolPrefix,
        value: HeaderValue,
        at: Range<usize>,
        claim: Claim,
    },
    Cookie {
        name: Box<str>,
        at: cookies::CookieSpan,
        claim: Claim,
    },
    /// The gateway [signs](Signing) the request itself, once it is otherwise as it will be sent.
    Aws {
        form: SignatureForm,
        service: AwsName,
        region: AwsName,
        payload: Payload,
        times: Times,
        claim: Claim,
    },
    /// `at` is the range that the value replaces: of JSON a string with its quotes.
    Body {
        place: BodyPlace,
        at: Range<usize>,
        claim: Claim,
    },
}

/// A part of the request that a swap writes. A request has each at most once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spot<'a> {
    Header(&'a HeaderName),
    Query(&'a str),
    Path,
    Cookie(&'a str),
    Body(&'a BodySpot),
}

enum WrittenField {
    Header(HeaderName, HeaderValue),
    Target(TargetPart, Piece),
    Cookie(usize, Piece),
    Body(Piece),
    /// The signature, which is written last.
    Later,
}

#[derive(Debug)]
pub(super) enum Half {
    Secret(Claim),
    Text(Arc<str>),
}

impl Substitution {
    /// Makes a substitution of swaps, no two of which are for one [`Spot`].
    pub(super) fn new(swaps: Vec<Swap>, body: Option<Bytes>) -> Self {
        Self { swaps, body }
    }

    /// Whether the request has no credential and goes out without one.
    pub fn is_anonymous(&self) -> bool {
        self.swaps.is_empty()
    }

    /// Returns the bindings whose values are needed: one for each placeholder.
    pub fn bindings(&self) -> impl Iterator<Item = &Arc<Binding>> {
        self.value_places().map(|(binding, _)| binding)
    }

    /// Returns each binding, and the place in the request where its value is about to stand.
    pub fn value_places(&self) -> impl Iterator<Item = (&Arc<Binding>, ValuePlace<'_>)> {
        self.swaps.iter().flat_map(Swap::claims).filter_map(|(claim, place)| match claim {
            Claim::Bound(binding) => Some((binding, place)),
            Claim::Ticket(..) => None,
        })
    }

    /// Returns the placeholders in the request, and the labels of its tickets, for the audit.
    pub fn placeholders(&self) -> impl Iterator<Item = &Placeholder> {
        self.swaps.iter().flat_map(Swap::claims).map(|(claim, _)| claim.label())
    }

    /// Replaces the placeholders of the request that was examined, and removes
    /// `Proxy-Authorization`. Schemes are written as the binding has them, and values are marked as
    /// sensitive. Returns the body as it is to be sent, where it was examined.
    ///
    /// # Errors
    ///
    /// The cause of `lookup`, or `value_invalid` where a value cannot stand in its place. The
    /// head is unchanged then.
    pub fn apply(
        &self,
        head: &mut Parts,
        mut lookup: impl FnMut(&Binding) -> Result<Arc<SecretValue>, SecretCause>,
    ) -> Result<Option<Bytes>, SecretCause> {
        let written = self.swaps.iter().map(|swap| swap.write(&mut lookup));
        let (mut fields, mut targets, mut crumbs, mut pieces) = (vec![], vec![], vec![], vec![]);
        for written in written {
            match written? {
                WrittenField::Header(field, value) => fields.push((field, value)),
                WrittenField::Target(part, piece) => targets.push((part, piece)),
                WrittenField::Cookie(field, piece) => crumbs.push((field, piece)),
                WrittenField::Body(piece) => pieces.push(piece),
                WrittenField::Later => {}
            }
        }
        let body = self.write_body(pieces)?;
        let cookies = match crumbs.is_empty() {
            true => None,
            false => Some(cookies::write(&head.headers, crumbs)?),
        };
        if !targets.is_empty() {
            head.uri = target::write(&head.uri, targets)?;
        }
        head.headers.remove(PROXY_AUTHORIZATION);
        for (field, value) in fields {
            head.headers.insert(field, value);
        }
        if let Some(cookies) = cookies {
            head.headers.remove(COOKIE);
            cookies.into_iter().for_each(|value| _ = head.headers.append(COOKIE, value));
        }
        Ok(body)
    }

    /// Returns how the request is signed, where its credential is a signature.
    ///
    /// # Errors
    ///
    /// The cause of `lookup`, or `value_invalid` where the value is no pair of AWS keys.
    pub fn signing(
        &self,
        mut lookup: impl FnMut(&Binding) -> Result<Arc<SecretValue>, SecretCause>,
    ) -> Result<Option<Signing>, SecretCause> {
        let signed = self.swaps.iter().find_map(|swap| match swap {
            Swap::Aws { form, service, region, payload, times, claim } => {
                Some((*form, service, region, payload, *times, claim))
            }
            _ => None,
        });
        let Some((form, service, region, payload, times, claim)) = signed else { return Ok(None) };
        let keys = value_of(claim, &mut lookup)?;
        AwsKeys::of(&keys).ok_or(SecretCause::ValueInvalid)?;
        let (service, region, payload) = (service.clone(), region.clone(), payload.clone());
        let binding = match claim {
            Claim::Bound(binding) => Some(Arc::clone(binding)),
            Claim::Ticket(..) => None,
        };
        Ok(Some(Signing { form, service, region, payload, times, keys, binding }))
    }

    fn write_body(&self, pieces: Vec<Piece>) -> Result<Option<Bytes>, SecretCause> {
        let Some(body) = self.body.as_ref().filter(|_| !pieces.is_empty()) else {
            return Ok(self.body.clone());
        };
        let text = splice(body, pieces).ok_or(SecretCause::ValueInvalid)?;
        Ok(Some(Bytes::from_owner(text)))
    }
}

impl Swap {
    /// Returns the one part that this swap writes.
    pub(super) fn spot(&self) -> Spot<'_> {
        match self {
            Self::Header { field, .. } => Spot::Header(field),
            Self::Basic { .. } => Spot::Header(&AUTHORIZATION),
            Self::Query { name, .. } => Spot::Query(name),
            Self::Path { .. } => Spot::Path,
            Self::Cookie { name, .. } => Spot::Cookie(name),
            Self::Body { place, .. } => Spot::Body(place.spot()),
            Self::Subprotocol { .. } => Spot::Header(&SEC_WEBSOCKET_PROTOCOL),
            Self::Aws { .. } => Spot::Header(&AUTHORIZATION),
        }
    }

    fn claims(&self) -> impl Iterator<Item = (&Claim, ValuePlace<'_>)> {
        let pair = match self {
            Self::Header { field, scheme, claim } => {
                [Some((claim, ValuePlace::Header(field, scheme))), None]
            }
            Self::Query { name, claim, .. } => [Some((claim, ValuePlace::Query(name))), None],
            Self::Path { place, claim, .. } => [Some((claim, ValuePlace::Path(place))), None],
            Self::Cookie { name, claim, .. } => [Some((claim, ValuePlace::Cookie(name))), None],
            Self::Body { place, claim, .. } => [Some((claim, ValuePlace::Body(place))), None],
            Self::Aws { claim, .. } => [Some((claim, ValuePlace::Aws)), None],
            Self::Subprotocol { prefix, claim, .. } => {
                [Some((claim, ValuePlace::Subprotocol(prefix))), None]
            }
            Self::Basic { user, password } => [
                user.claim().map(|claim| (claim, ValuePlace::BasicUser)),
                password.claim().map(|claim| (claim, ValuePlace::BasicPassword)),
            ],
        };
        pair.into_iter().flatten()
    }

    fn write(
        &self,
        lookup: &mut impl FnMut(&Binding) -> Result<Arc<SecretValue>, SecretCause>,
    ) -> Result<WrittenField, SecretCause> {
        match self {
            Self::Header { field, scheme, claim } => {
                let value = value_of(claim, lookup)?;
                let text = concat(&[scheme.to_string().as_bytes(), value.expose()]);
                Ok(WrittenField::Header(field.clone(), sensitive(text)?))
            }
            Self::Basic { user, password } => {
                let user = user.write(lookup)?;
                let password = password.write(lookup)?;
                // The first colon ends the user (RFC 7617, section 2).
                if user.contains(&b':') {
                    return Err(SecretCause::ValueInvalid);
                }
                let pair = concat(&[&user, b":", &password]);
                Ok(WrittenField::Header(AUTHORIZATION, sensitive(basic(&pair)?)?))
            }
            Self::Query { at, claim, .. } => Ok(WrittenField::Target(
                TargetPart::Query,
                piece(at, percent, &*value_of(claim, lookup)?),
            )),
            Self::Path { at, claim, .. } => Ok(WrittenField::Target(
                TargetPart::Path,
                piece(at, percent, &*value_of(claim, lookup)?),
            )),
            Self::Cookie { at, claim, .. } => {
                let (field, piece) = cookies::piece(at, value_of(claim, lookup)?.expose())?;
                Ok(WrittenField::Cookie(field, piece))
            }
            Self::Body { place, at, claim } => {
                let escape = match place.spot() {
                    BodySpot::Json(_) => json_string,
                    BodySpot::Form(_) => percent,
                };
                Ok(WrittenField::Body(piece(at, escape, &*value_of(claim, lookup)?)))
            }
            Self::Subprotocol { value, at, claim, .. } => {
                offer(value, at, &*value_of(claim, lookup)?)
            }
            Self::Aws { claim, .. } => value_of(claim, lookup).map(|_| WrittenField::Later),
        }
    }
}

impl fmt::Display for Spot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header {name}"),
            Self::Query(name) => write!(f, "query {name}"),
            Self::Path => f.write_str("path"),
            Self::Cookie(name) => write!(f, "cookie {name}"),
            Self::Body(spot) => spot.fmt(f),
        }
    }
}

impl Half {
    fn claim(&self) -> Option<&Claim> {
        match self {
            Self::Secret(claim) => Some(claim),
            Self::Text(_) => None,
        }
    }

    fn write(
        &self,
        lookup: &mut impl FnMut(&Binding) -> Result<Arc<SecretValue>, SecretCause>,
    ) -> Result<Zeroizing<Vec<u8>>, SecretCause> {
        Ok(match self {
            Self::Secret(claim) => concat(&[value_of(claim, lookup)?.expose()]),
            Self::Text(text) => concat(&[text.as_bytes()]),
        })
    }
}

/// Returns the value behind a claim: that of `lookup`, or that of the ticket.
fn value_of(
    claim: &Claim,
    lookup: &mut impl FnMut(&Binding) -> Result<Arc<SecretValue>, SecretCause>,
) -> Result<Arc<SecretValue>, SecretCause> {
    match claim {
        Claim::Bound(binding) => lookup(binding),
        Claim::Ticket(_, ticket) => Ok(Arc::clone(&ticket.value)),
    }
}

fn basic(pair: &[u8]) -> Result<Zeroizing<Vec<u8>>, SecretCause> {
    const SCHEME: &[u8] = b"Basic ";
    let mut text = Zeroizing::new(vec![0; SCHEME.len() + pair.len().div_ceil(3) * 4]);
    let (scheme, encoded) =
        text.split_at_mut_checked(SCHEME.len()).ok_or(SecretCause::ValueInvalid)?;
    scheme.copy_from_slice(SCHEME);
    STANDARD.encode_slice(pair, encoded).map_err(|_| SecretCause::ValueInvalid)?;
    Ok(text)
}

fn piece(
    at: &Range<usize>,
    escape: impl Fn(&[u8]) -> Zeroizing<Vec<u8>>,
    value: &SecretValue,
) -> Piece {
    Piece { at: at.clone(), text: escape(value.expose()) }
}

/// Writes a value into an offer. A value that is no token would split the offer into several.
fn offer(
    offers: &HeaderValue,
    at: &Range<usize>,
    value: &SecretValue,
) -> Result<WrittenField, SecretCause> {
    let offers = offers.as_bytes();
    let before = offers.get(..at.start).ok_or(SecretCause::ValueInvalid)?;
    let behind = offers.get(at.end..).ok_or(SecretCause::ValueInvalid)?;
    if !is_token(value.expose()) {
        return Err(SecretCause::ValueInvalid);
    }
    let text = concat(&[before, value.expose(), behind]);
    Ok(WrittenField::Header(SEC_WEBSOCKET_PROTOCOL, sensitive(text)?))
}

/// Joins the parts. The buffer has its size from the start: growth would leave copies behind.
fn concat(parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    let mut whole = Zeroizing::new(Vec::with_capacity(parts.iter().map(|part| part.len()).sum()));
    for part in parts {
        whole.extend_from_slice(part);
    }
    whole
}

fn sensitive(text: Zeroizing<Vec<u8>>) -> Result<HeaderValue, SecretCause> {
    let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(text))
        .map_err(|_| SecretCause::ValueInvalid)?;
    value.set_sensitive(true);
    Ok(value)
}
