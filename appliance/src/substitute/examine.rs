//! Reads a request head against [`Rules`]; changes nothing. Every doubt is a denial.
//!
//! The order is fixed: Connection, credentials, method, path. Credentials come before method and
//! path, so that only the holder of a good placeholder learns which of those are listed, and an
//! operator reads `method_denied` only where the method is what is wrong.

use std::sync::Arc;

use http::{
    HeaderName, HeaderValue, Method,
    header::{AUTHORIZATION, CONNECTION, PROXY_AUTHORIZATION},
    request::Parts,
};

use super::{
    Plan,
    apply::Swap,
    basic,
    rules::{Owner, Rules, is},
};
use crate::{
    policy::{Binding, PathError, Place, Placeholder, Scheme, check_path},
    reason::Reason,
};

/// Why a head is not forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The reason word.
    pub reason: Reason,
    /// The placeholder that the request carried, where it is one of this group's.
    pub placeholder: Option<Placeholder>,
}

impl From<Reason> for Denial {
    fn from(reason: Reason) -> Self {
        Self { reason, placeholder: None }
    }
}

/// Finds the one credential of a request and what is to be done with it.
///
/// `Proxy-Authorization` counts for nothing here, neither as a credential nor as a second one:
/// it is addressed to a proxy, and [`Plan::apply`] removes it whatever it holds.
///
/// # Errors
///
/// `http_malformed` where Connection names a credential field, which would have a later hop
/// strip it; then the words of substitution; then `connect_denied`, `method_denied`,
/// `path_denied` and `path_ambiguous`.
pub fn examine(rules: &Rules, head: &Parts) -> Result<Plan, Denial> {
    check_connection(rules, head)?;
    let plan = match single_credential(rules, head)? {
        Some((field, value)) => Plan::swapping(classify(rules, field, value)?),
        None if rules.anonymous => Plan::anonymous(),
        None => return Err(Reason::PlaceholderMissing.into()),
    };
    check_method(rules, &head.method)
        .and_then(|()| check_path_rules(rules, head.uri.path()))
        .map_err(|reason| Denial { reason, placeholder: plan.placeholders().next().cloned() })?;
    Ok(plan)
}

fn check_connection(rules: &Rules, head: &Parts) -> Result<(), Denial> {
    let nominated = head
        .headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .any(|option| rules.names_credential_field(option.trim_ascii()));
    if nominated { Err(Reason::HttpMalformed.into()) } else { Ok(()) }
}

/// Two credentials are refused whatever they are: a server may read either, so a foreign key
/// could ride beside a good placeholder.
fn single_credential<'a>(
    rules: &Rules,
    head: &'a Parts,
) -> Result<Option<(&'a HeaderName, &'a HeaderValue)>, Denial> {
    let mut credentials = head
        .headers
        .iter()
        .filter(|(name, _)| rules.is_credential_field(name) && *name != PROXY_AUTHORIZATION);
    let first = credentials.next();
    match credentials.next() {
        Some(_) => Err(Reason::DuplicateCredential.into()),
        None => Ok(first),
    }
}

fn classify(rules: &Rules, field: &HeaderName, value: &HeaderValue) -> Result<Swap, Denial> {
    let text = value.as_bytes();
    if !text.iter().all(|&byte| byte == b' ' || byte.is_ascii_graphic()) {
        return Err(Reason::CredentialMalformed.into());
    }
    if *field == AUTHORIZATION
        && let Some(encoded) = after_scheme(text, "basic")
    {
        return basic::classify(rules, encoded);
    }
    rules
        .own
        .iter()
        .find_map(|binding| swap_at(binding, field, text))
        .ok_or_else(|| deny_credential(rules, text))
}

fn swap_at(binding: &Arc<Binding>, field: &HeaderName, text: &[u8]) -> Option<Swap> {
    binding.places.iter().find_map(|place| {
        let Place::Header { name, scheme } = place else { return None };
        let token = match scheme {
            Scheme::Raw => text,
            Scheme::Bearer => after_scheme(text, "bearer")?,
            Scheme::Token => after_scheme(text, "token")?,
        };
        (name == field && is(&binding.placeholder, token)).then(|| Swap::Header {
            field: name.clone(),
            scheme: *scheme,
            binding: binding.clone(),
        })
    })
}

/// The word for a credential that stands in no listed place: the whole value, or what follows
/// its first space, decides whether it is one of this group's placeholders gone astray.
fn deny_credential(rules: &Rules, text: &[u8]) -> Denial {
    let after_word = text.iter().position(|&byte| byte == b' ').and_then(|at| text.get(at + 1..));
    let candidates = [Some(text), after_word];
    astray(candidates.into_iter().flatten().map(|candidate| rules.owner(candidate)))
}

/// The denial for texts that are not where they belong: the most useful word that is true.
pub(super) fn astray<'a>(owners: impl Iterator<Item = Owner<'a>>) -> Denial {
    let mut denial = Denial::from(Reason::ForeignCredential);
    for owner in owners {
        let (reason, placeholder) = match owner {
            Owner::Here(placeholder) => (Reason::PlaceholderWrongPlace, placeholder),
            Owner::Elsewhere(_) if denial.placeholder.is_some() => continue,
            Owner::Elsewhere(placeholder) => (Reason::PlaceholderWrongHost, placeholder),
            Owner::Foreign => continue,
        };
        denial = Denial { reason, placeholder: Some(placeholder.clone()) };
        if denial.reason == Reason::PlaceholderWrongPlace {
            break;
        }
    }
    denial
}

/// What follows a scheme and exactly one space; the scheme is compared without regard to case
/// (RFC 9110, section 11.1).
fn after_scheme<'a>(text: &'a [u8], scheme: &str) -> Option<&'a [u8]> {
    let (word, rest) = text.split_at_checked(scheme.len())?;
    if word.eq_ignore_ascii_case(scheme.as_bytes()) { rest.strip_prefix(b" ") } else { None }
}

fn check_method(rules: &Rules, method: &Method) -> Result<(), Reason> {
    if *method == Method::CONNECT {
        return Err(Reason::ConnectDenied);
    }
    if rules.methods.is_empty() || rules.methods.contains(method) {
        Ok(())
    } else {
        Err(Reason::MethodDenied)
    }
}

fn check_path_rules(rules: &Rules, path: &str) -> Result<(), Reason> {
    if rules.paths.is_empty() {
        return Ok(());
    }
    match check_path(path) {
        Ok(()) if rules.paths.iter().any(|rule| rule.matches(path)) => Ok(()),
        Ok(()) | Err(PathError::NotAbsolute | PathError::StarInside) => Err(Reason::PathDenied),
        Err(PathError::Ambiguous) => Err(Reason::PathAmbiguous),
    }
}
