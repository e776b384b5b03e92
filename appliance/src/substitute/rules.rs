//! What one group's placeholders mean at one API, compiled once per policy.

use std::{collections::HashSet, sync::Arc};

use http::{HeaderMap, HeaderName, Method, header::AUTHORIZATION};

use crate::policy::{
    Api, Binding, CREDENTIAL_FIELDS, GroupName, PathRule, Place, Placeholder, Policy,
};

/// What a request of one group to one API is held against. Immutable; made once per policy.
#[derive(Debug)]
pub struct Rules {
    pub(super) methods: Vec<Method>,
    pub(super) paths: Vec<PathRule>,
    pub(super) anonymous: bool,
    pub(super) own: Vec<Arc<Binding>>,
    elsewhere: HashSet<Placeholder>,
    fields: Fields,
}

/// Whose a text is, as far as this group may know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner<'a> {
    /// A placeholder of this group at this API.
    Here(&'a Placeholder),
    /// A placeholder of this group at other APIs only.
    Elsewhere(&'a Placeholder),
    /// Nothing that this group holds; another group's placeholder is no exception.
    Foreign,
}

impl Rules {
    /// Compiles what `group` may do at `api`, which is one of `policy.apis`.
    pub fn new(policy: &Policy, group: &GroupName, api: &Arc<Api>) -> Self {
        let elsewhere = policy.apis.iter().flat_map(|api| bindings_of(api, group));
        Self {
            methods: api.methods.clone(),
            paths: api.paths.clone(),
            anonymous: api.anonymous,
            own: bindings_of(api, group).cloned().collect(),
            elsewhere: elsewhere.map(|binding| binding.placeholder.clone()).collect(),
            fields: Fields::of(api),
        }
    }

    /// Whether a decoded credential text is a placeholder of this group, at this API or another.
    pub fn is_placeholder(&self, text: &[u8]) -> bool {
        self.owner(text) != Owner::Foreign
    }

    /// Whether the value of a header field with this name is a credential.
    pub fn is_credential_field(&self, name: &HeaderName) -> bool {
        self.fields.holds(name.as_str().as_bytes())
    }

    /// As [`Self::is_credential_field`], for a name as it stands in a list such as Connection.
    pub(super) fn names_credential_field(&self, name: &[u8]) -> bool {
        self.fields.holds(name)
    }

    pub(super) fn owner(&self, text: &[u8]) -> Owner<'_> {
        let here = self.own.iter().find(|binding| is(&binding.placeholder, text));
        if let Some(binding) = here {
            return Owner::Here(&binding.placeholder);
        }
        match self.elsewhere.iter().find(|placeholder| is(placeholder, text)) {
            Some(placeholder) => Owner::Elsewhere(placeholder),
            None => Owner::Foreign,
        }
    }
}

/// Whether request trailers carry a credential field: that is refused, since a server that
/// merges trailers into the head (RFC 9110, section 6.5.1) would read a second credential.
pub fn trailers_carry_credential(rules: &Rules, trailers: &HeaderMap) -> bool {
    trailers.keys().any(|name| rules.is_credential_field(name))
}

/// The match: the whole token, byte for byte.
pub(super) fn is(placeholder: &Placeholder, text: &[u8]) -> bool {
    placeholder.as_str().as_bytes() == text
}

fn bindings_of<'a>(api: &'a Api, group: &'a GroupName) -> impl Iterator<Item = &'a Arc<Binding>> {
    api.bindings.iter().filter(move |binding| binding.groups.contains(group))
}

/// A set of field names. Whatever is neither letter nor digit counts as `-`: servers behind
/// CGI-like interfaces cannot tell `_` from it (RFC 3875, section 4.1.18), some map every such byte
/// alike, and a foreign key could ride on that.
#[derive(Debug)]
struct Fields {
    names: Vec<Box<[u8]>>,
    /// Bit `n` is set where a name has `n` bytes (63: or more), so that most fields of a request
    /// are told apart from credentials by one test.
    lengths: u64,
}

impl Fields {
    fn of(api: &Api) -> Self {
        let bound = api.bindings.iter().flat_map(|binding| &binding.places).map(field_of);
        let mut names: Vec<Box<[u8]>> = CREDENTIAL_FIELDS
            .iter()
            .chain(bound)
            .map(|name| name.as_str().bytes().map(fold).collect())
            .collect();
        names.sort_unstable();
        names.dedup();
        let lengths = names.iter().fold(0, |bits, name| bits | length_bit(name));
        Self { names, lengths }
    }

    fn holds(&self, name: &[u8]) -> bool {
        self.lengths & length_bit(name) != 0
            && self.names.iter().any(|field| {
                field.len() == name.len() && field.iter().zip(name).all(|(&a, &b)| a == fold(b))
            })
    }
}

fn field_of(place: &Place) -> &HeaderName {
    match place {
        Place::Header { name, .. } => name,
        Place::BasicUser { .. } | Place::BasicPassword { .. } => &AUTHORIZATION,
    }
}

fn fold(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' }
}

fn length_bit(name: &[u8]) -> u64 {
    1 << name.len().min(63)
}
