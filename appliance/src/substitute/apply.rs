//! Writes values into a head, as a [`Plan`] says. A head whose values cannot all be had is left
//! as it was: it still holds nothing but placeholders.
//!
//! The buffers made here are zeroised when the last handle on the header value or the target goes.
//! Copies that hyper and rustls make of the head while they send it are theirs, and are not. A target
//! is not marked as sensitive, as header values are: nothing prints one after this.

use std::{fmt, ops::Range, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{
    HeaderName, HeaderValue,
    header::{AUTHORIZATION, PROXY_AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL},
    request::Parts,
};
use zeroize::Zeroizing;

use super::target::{self, Part, Piece};
use crate::{
    policy::{Binding, PathSlot, Placeholder, Scheme, Slot, SubprotocolPrefix, is_token},
    reason::SecretCause,
    secrets::SecretValue,
};

/// What to put where in a head that has been examined. Only [`super::examine()`] makes one.
#[derive(Debug)]
pub struct Plan(Vec<Swap>);

#[derive(Debug)]
pub(super) enum Swap {
    Header {
        field: HeaderName,
        scheme: Scheme,
        binding: Arc<Binding>,
    },
    Basic {
        user: Half,
        password: Half,
    },
    /// `at` is where the placeholder stands in the query, as it is on the wire.
    Query {
        name: Box<str>,
        at: Range<usize>,
        binding: Arc<Binding>,
    },
    /// `at` is where the placeholder stands in the path, as it is on the wire.
    Path {
        place: PathSlot,
        at: Range<usize>,
        binding: Arc<Binding>,
    },
    /// `at` is where the placeholder stands in the one field of offers.
    Subprotocol {
        prefix: SubprotocolPrefix,
        value: HeaderValue,
        at: Range<usize>,
        binding: Arc<Binding>,
    },
}

/// What a swap writes to. A request has each at most once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spot<'a> {
    Header(&'a HeaderName),
    Query(&'a str),
    Path,
}

enum Written {
    Header(HeaderName, HeaderValue),
    Target(Piece),
}

#[derive(Debug)]
pub(super) enum Half {
    Secret(Arc<Binding>),
    Text(Arc<str>),
}

impl Plan {
    /// No two swaps are for one [`Spot`].
    pub(super) fn new(swaps: Vec<Swap>) -> Self {
        Self(swaps)
    }

    /// Whether the request has no credential and goes out without one.
    pub fn is_anonymous(&self) -> bool {
        self.0.is_empty()
    }

    /// The bindings whose values are needed: one for each placeholder.
    pub fn bindings(&self) -> impl Iterator<Item = &Arc<Binding>> {
        self.slots().map(|(binding, _)| binding)
    }

    /// Where in the request the value of each binding is about to stand.
    pub fn slots(&self) -> impl Iterator<Item = (&Arc<Binding>, Slot<'_>)> {
        self.0.iter().flat_map(Swap::slots)
    }

    /// The placeholders that stand in the request, for the audit.
    pub fn placeholders(&self) -> impl Iterator<Item = &Placeholder> {
        self.bindings().map(|binding| &binding.placeholder)
    }

    /// Replaces the placeholders of the head that was examined, and removes
    /// `Proxy-Authorization`. Schemes are written anew, and values are marked as sensitive.
    ///
    /// # Errors
    ///
    /// The cause of `lookup`, or `value_invalid` where a value cannot stand in its place. The
    /// head is unchanged then.
    pub fn apply(
        &self,
        head: &mut Parts,
        mut lookup: impl FnMut(&Binding) -> Result<Arc<SecretValue>, SecretCause>,
    ) -> Result<(), SecretCause> {
        let written = self.0.iter().map(|swap| swap.write(&mut lookup));
        let (mut fields, mut targets) = (vec![], vec![]);
        for written in written {
            match written? {
                Written::Header(field, value) => fields.push((field, value)),
                Written::Target(piece) => targets.push(piece),
            }
        }
        if !targets.is_empty() {
            head.uri = target::write(&head.uri, targets)?;
        }
        head.headers.remove(PROXY_AUTHORIZATION);
        for (field, value) in fields {
            head.headers.insert(field, value);
        }
        Ok(())
    }
}

impl Swap {
    /// The one thing that it writes.
    pub(super) fn spot(&self) -> Spot<'_> {
        match self {
            Self::Header { field, .. } => Spot::Header(field),
            Self::Basic { .. } => Spot::Header(&AUTHORIZATION),
            Self::Query { name, .. } => Spot::Query(name),
            Self::Path { .. } => Spot::Path,
            Self::Subprotocol { .. } => Spot::Header(&SEC_WEBSOCKET_PROTOCOL),
        }
    }

    fn slots(&self) -> impl Iterator<Item = (&Arc<Binding>, Slot<'_>)> {
        let pair = match self {
            Self::Header { field, scheme, binding } => {
                [Some((binding, Slot::Header(field, scheme))), None]
            }
            Self::Query { name, binding, .. } => [Some((binding, Slot::Query(name))), None],
            Self::Path { place, binding, .. } => [Some((binding, Slot::Path(place))), None],
            Self::Subprotocol { prefix, binding, .. } => {
                [Some((binding, Slot::Subprotocol(prefix))), None]
            }
            Self::Basic { user, password } => [
                user.binding().map(|binding| (binding, Slot::BasicUser)),
                password.binding().map(|binding| (binding, Slot::BasicPassword)),
            ],
        };
        pair.into_iter().flatten()
    }

    fn write(
        &self,
        lookup: &mut impl FnMut(&Binding) -> Result<Arc<SecretValue>, SecretCause>,
    ) -> Result<Written, SecretCause> {
        match self {
            Self::Header { field, scheme, binding } => {
                let value = lookup(binding)?;
                let text = concat(&[scheme.to_string().as_bytes(), value.expose()]);
                Ok(Written::Header(field.clone(), sensitive(text)?))
            }
            Self::Basic { user, password } => {
                let user = user.write(lookup)?;
                let password = password.write(lookup)?;
                // The first colon ends the user (RFC 7617, section 2).
                if user.contains(&b':') {
                    return Err(SecretCause::ValueInvalid);
                }
                let pair = concat(&[&user, b":", &password]);
                Ok(Written::Header(AUTHORIZATION, sensitive(basic(&pair)?)?))
            }
            Self::Query { at, binding, .. } => piece(Part::Query, at, &*lookup(binding)?),
            Self::Path { at, binding, .. } => piece(Part::Path, at, &*lookup(binding)?),
            Self::Subprotocol { value, at, binding, .. } => offer(value, at, &*lookup(binding)?),
        }
    }
}

impl fmt::Display for Spot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header {name}"),
            Self::Query(name) => write!(f, "query {name}"),
            Self::Path => f.write_str("path"),
        }
    }
}

impl Half {
    fn binding(&self) -> Option<&Arc<Binding>> {
        match self {
            Self::Secret(binding) => Some(binding),
            Self::Text(_) => None,
        }
    }

    fn write(
        &self,
        lookup: &mut impl FnMut(&Binding) -> Result<Arc<SecretValue>, SecretCause>,
    ) -> Result<Zeroizing<Vec<u8>>, SecretCause> {
        Ok(match self {
            Self::Secret(binding) => concat(&[lookup(binding)?.expose()]),
            Self::Text(text) => concat(&[text.as_bytes()]),
        })
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

fn piece(part: Part, at: &Range<usize>, value: &SecretValue) -> Result<Written, SecretCause> {
    Ok(Written::Target(Piece { part, at: at.clone(), value: concat(&[value.expose()]) }))
}

/// A value that is no token would make other offers of the rest.
fn offer(
    offers: &HeaderValue,
    at: &Range<usize>,
    value: &SecretValue,
) -> Result<Written, SecretCause> {
    let offers = offers.as_bytes();
    let before = offers.get(..at.start).ok_or(SecretCause::ValueInvalid)?;
    let behind = offers.get(at.end..).ok_or(SecretCause::ValueInvalid)?;
    if !is_token(value.expose()) {
        return Err(SecretCause::ValueInvalid);
    }
    let text = concat(&[before, value.expose(), behind]);
    Ok(Written::Header(SEC_WEBSOCKET_PROTOCOL, sensitive(text)?))
}

/// Sized before it is filled, so that no copy is left behind by growth.
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
