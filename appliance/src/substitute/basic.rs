//! `Authorization: Basic` (RFC 7617): decoded once and strictly, with each half judged as a whole.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use super::{
    apply::{Half, Swap},
    claim::Claim,
    denial::{Denial, astray},
    lookup::CredentialLookup,
};
use crate::{policy::Place, reason::Reason};

/// Judges the text that follows `Basic` and one space.
///
/// A half is good if it is a placeholder that its binding lists for that half. The other half must
/// then be empty, be the text that the same place lists, or be good by another binding. One binding
/// cannot fill both halves: its value would be there twice.
pub(super) fn classify(lookup: &CredentialLookup<'_>, encoded: &[u8]) -> Result<Swap, Denial> {
    let decoded = Zeroizing::new(
        STANDARD.decode(encoded).map_err(|_| Denial::from(Reason::CredentialMalformed))?,
    );
    let colon = decoded.iter().position(|&byte| byte == b':');
    let (user, password) = colon
        .and_then(|at| decoded.split_at_checked(at))
        .and_then(|(user, rest)| Some((user, rest.strip_prefix(b":")?)))
        .ok_or(Reason::CredentialMalformed)?;

    let users = listed(lookup, user, beside_user);
    let passwords = listed(lookup, password, beside_password);
    match (users.first(), passwords.first()) {
        (Some(_), Some(_)) => both(&users, &passwords),
        (Some(_), None) => beside(&users, password)
            .map(|(claim, text)| Swap::Basic {
                user: Half::Secret(claim),
                password: Half::Text(text),
            })
            .ok_or_else(|| astray([lookup.owner(password)].into_iter())),
        (None, Some(_)) => beside(&passwords, user)
            .map(|(claim, text)| Swap::Basic {
                user: Half::Text(text),
                password: Half::Secret(claim),
            })
            .ok_or_else(|| astray([lookup.owner(user)].into_iter())),
        (None, None) => Err(astray([lookup.owner(user), lookup.owner(password)].into_iter())),
    }
}

/// A claim, and the text that may stand as the other half.
type ListedClaim = (Claim, Arc<str>);

/// Returns the claims of `half` there, each with the text that is listed for the other half, or
/// that stood there when the ticket's credential was minted.
fn listed(
    lookup: &CredentialLookup<'_>,
    half: &[u8],
    beside: fn(&Place) -> Option<&Arc<str>>,
) -> Vec<ListedClaim> {
    let with_text = |claim: Claim| {
        let texts = claim.places().iter().filter_map(beside);
        let texts: Vec<_> = texts.map(|text| claim.beside().unwrap_or(text).clone()).collect();
        texts.into_iter().map(move |text| (claim.clone(), text))
    };
    lookup.claims(half).flat_map(with_text).collect()
}

fn beside_user(place: &Place) -> Option<&Arc<str>> {
    match place {
        Place::BasicUser { password } => Some(password),
        _ => None,
    }
}

fn beside_password(place: &Place) -> Option<&Arc<str>> {
    match place {
        Place::BasicPassword { user } => Some(user),
        _ => None,
    }
}

fn both(users: &[ListedClaim], passwords: &[ListedClaim]) -> Result<Swap, Denial> {
    let pairs =
        users.iter().flat_map(|user| passwords.iter().map(move |other| (&user.0, &other.0)));
    pairs
        .filter(|(user, password)| !user.is(password))
        .map(|(user, password)| Swap::Basic {
            user: Half::Secret(user.clone()),
            password: Half::Secret(password.clone()),
        })
        .next()
        .ok_or(Denial::from(Reason::DuplicateCredential))
}

fn beside(listed: &[ListedClaim], other: &[u8]) -> Option<ListedClaim> {
    listed.iter().find_map(|(claim, text)| {
        if other == text.as_bytes() {
            return Some((claim.clone(), text.clone()));
        }
        other.is_empty().then(|| (claim.clone(), Arc::from("")))
    })
}
