//! `Authorization: Basic` (RFC 7617): decoded once and strictly, each half judged as a whole.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use super::{
    apply::{Half, Swap},
    denial::{Denial, astray},
    rules::{SubstitutionRules, is},
};
use crate::{
    policy::{Binding, Place},
    reason::Reason,
};

/// Judges what follows `Basic` and one space.
///
/// A half is good if it is a placeholder that its binding lists for that half. The other half
/// must then be empty, be the text that the same place lists, or be good by another binding.
/// One binding cannot fill both halves: that would be its value twice.
pub(super) fn classify(rules: &SubstitutionRules, encoded: &[u8]) -> Result<Swap, Denial> {
    let decoded = Zeroizing::new(
        STANDARD.decode(encoded).map_err(|_| Denial::from(Reason::CredentialMalformed))?,
    );
    let colon = decoded.iter().position(|&byte| byte == b':');
    let (user, password) = colon
        .and_then(|at| decoded.split_at_checked(at))
        .and_then(|(user, rest)| Some((user, rest.strip_prefix(b":")?)))
        .ok_or(Reason::CredentialMalformed)?;

    let users: Vec<_> = listed(rules, user, beside_user).collect();
    let passwords: Vec<_> = listed(rules, password, beside_password).collect();
    match (users.first(), passwords.first()) {
        (Some(_), Some(_)) => both(&users, &passwords),
        (Some(_), None) => beside(&users, password)
            .map(|(binding, text)| Swap::Basic {
                user: Half::Secret(binding),
                password: Half::Text(text),
            })
            .ok_or_else(|| astray([rules.owner(password)].into_iter())),
        (None, Some(_)) => beside(&passwords, user)
            .map(|(binding, text)| Swap::Basic {
                user: Half::Text(text),
                password: Half::Secret(binding),
            })
            .ok_or_else(|| astray([rules.owner(user)].into_iter())),
        (None, None) => Err(astray([rules.owner(user), rules.owner(password)].into_iter())),
    }
}

type ListedBinding<'a> = (&'a Arc<Binding>, &'a Arc<str>);

/// The bindings whose placeholder is `half` and that list it there, each with the text that it
/// lists for the other half.
fn listed<'a>(
    rules: &'a SubstitutionRules,
    half: &'a [u8],
    beside: fn(&Place) -> Option<&Arc<str>>,
) -> impl Iterator<Item = ListedBinding<'a>> {
    rules.own.iter().filter(|binding| is(&binding.placeholder, half)).flat_map(move |binding| {
        binding.places.iter().filter_map(beside).map(move |text| (binding, text))
    })
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

fn both(users: &[ListedBinding<'_>], passwords: &[ListedBinding<'_>]) -> Result<Swap, Denial> {
    let pairs = users.iter().flat_map(|user| passwords.iter().map(move |other| (user.0, other.0)));
    pairs
        .filter(|(user, password)| !Arc::ptr_eq(user, password))
        .map(|(user, password)| Swap::Basic {
            user: Half::Secret(user.clone()),
            password: Half::Secret(password.clone()),
        })
        .next()
        .ok_or(Denial::from(Reason::DuplicateCredential))
}

fn beside(listed: &[ListedBinding<'_>], other: &[u8]) -> Option<(Arc<Binding>, Arc<str>)> {
    listed.iter().find_map(|(binding, text)| {
        if other == text.as_bytes() {
            return Some(((*binding).clone(), (*text).clone()));
        }
        other.is_empty().then(|| ((*binding).clone(), Arc::from("")))
    })
}
