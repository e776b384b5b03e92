//! Finds a placeholder among the subprotocols that a WebSocket's handshake offers (RFC 6455,
//! section 11.3.4).

use std::ops::Range;

use http::{
    HeaderValue,
    header::{SEC_WEBSOCKET_PROTOCOL, UPGRADE},
    request::Parts,
};

use super::{apply::Swap, claim::Claim, lookup::CredentialLookup};
use crate::policy::{Place, SubprotocolPrefix, is_credential_subprotocol};

/// Returns every offer that carries a credential, and its range in its field.
pub(super) fn find<'a>(
    lookup: &'a CredentialLookup<'_>,
    head: &'a Parts,
) -> impl Iterator<Item = (&'a HeaderValue, Range<usize>)> {
    head.headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().flat_map(move |value| {
        let offers = offers(value.as_bytes());
        offers.filter(|at| counts(lookup, text(value, at))).map(move |at| (value, at))
    })
}

/// Returns the swap for one offer, where a binding lists that place for its placeholder. Only a
/// handshake has offers, and only one with a single field of them counts, because every server
/// reads that alike.
pub(super) fn swap(
    lookup: &CredentialLookup<'_>,
    head: &Parts,
    (value, at): (&HeaderValue, &Range<usize>),
) -> Option<Swap> {
    let fields = head.headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().count();
    if fields != 1 || !head.headers.contains_key(UPGRADE) {
        return None;
    }
    lookup.subprotocols().iter().find_map(|prefix| swap_behind(lookup, prefix, (value, at)))
}

/// Returns the parts of an offer that could be a placeholder gone astray: all of it, the part after
/// its last dot, and the part after a prefix.
pub(super) fn candidates<'a>(
    lookup: &'a CredentialLookup<'_>,
    offer: &'a [u8],
) -> impl Iterator<Item = &'a [u8]> {
    let after_dot = offer.rsplit(|&byte| byte == b'.').next();
    let prefixes = lookup.subprotocols().iter();
    let after = prefixes.filter_map(|prefix| offer.get(prefix.find(offer)?..));
    [Some(offer), after_dot].into_iter().flatten().chain(after)
}

/// Returns the members of a comma-separated list, without the spaces around them.
fn offers(list: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut begin = 0;
    list.split(|&byte| byte == b',').map(move |member| {
        let start = begin + (member.len() - member.trim_ascii_start().len());
        begin += member.len() + 1;
        start..start + member.trim_ascii().len()
    })
}

fn text<'a>(value: &'a HeaderValue, at: &Range<usize>) -> &'a [u8] {
    value.as_bytes().get(at.clone()).unwrap_or_default()
}

fn counts(lookup: &CredentialLookup<'_>, offer: &[u8]) -> bool {
    is_credential_subprotocol(offer)
        || lookup.subprotocols().iter().any(|prefix| prefix.find(offer).is_some())
        || candidates(lookup, offer).any(|candidate| lookup.is_known(candidate))
}

fn swap_behind(
    lookup: &CredentialLookup<'_>,
    prefix: &SubprotocolPrefix,
    (value, at): (&HeaderValue, &Range<usize>),
) -> Option<Swap> {
    let offer = text(value, at);
    let begin = prefix.find(offer).filter(|_| prefix.fits(offer))?;
    let lists = |claim: &Claim| claim.places().contains(&Place::Subprotocol(prefix.clone()));
    let claim = lookup.claims(offer.get(begin..)?).find(lists)?;
    let at = at.start + begin..at.end;
    Some(Swap::Subprotocol { prefix: prefix.clone(), value: value.clone(), at, claim })
}
