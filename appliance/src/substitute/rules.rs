//! The rules of one group's placeholders at one API, compiled once per policy.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use http::{
    HeaderMap, HeaderName, Method,
    header::{AUTHORIZATION, COOKIE},
    request::Parts,
};
use percent_encoding::percent_decode_str;

use super::Substitution;
use crate::{
    policy::{
        Anonymous, Api, AwsScope, Binding, BodyPlace, Folded, GroupName, Mint, PathRule, PathSlot,
        Place, Placeholder, Plain, Policy, SubprotocolPrefix, fold_query, has_one_reading,
        is_credential_header, is_credential_query, nested_name, queries_of, query_readings,
    },
    reason::Reason,
};

/// The rules against which a request of one group to one API is checked. Immutable; made once per
/// policy.
#[derive(Debug)]
pub struct SubstitutionRules {
    methods: Vec<Method>,
    paths: Vec<PathRule>,
    anonymous: Anonymous,
    group: GroupName,
    pub(super) own: Vec<Arc<Binding>>,
    mints: Vec<Arc<Mint>>,
    redeems: Vec<Arc<Mint>>,
    /// Whether any API mints, so that there are tickets.
    minted: bool,
    /// The placeholders of the group at all APIs, by each text that stands for one.
    elsewhere: HashMap<Box<[u8]>, Placeholder>,
    names: CredentialFields,
    aws: Option<Arc<AwsScope>>,
}

/// The methods and paths against which one request is checked.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// The methods that may be used.
    pub methods: &'a [Method],
    /// The paths that may be used; empty means every one.
    pub paths: &'a [PathRule],
}

impl SubstitutionRules {
    /// Compiles the rights of `group` at `api`, which is one of `policy.apis`.
    pub fn new(policy: &Policy, group: &GroupName, api: &Arc<Api>) -> Self {
        let elsewhere = policy.apis.iter().flat_map(|api| bindings_of(api, group));
        let texts = |it: &Arc<Binding>| {
            let named = |text: &str| (text.as_bytes().into(), it.placeholder.clone());
            it.texts(group).map(named).collect::<Vec<_>>()
        };
        Self {
            methods: api.methods.clone(),
            paths: api.paths.clone(),
            anonymous: api.anonymous.clone(),
            group: group.clone(),
            own: bindings_of(api, group).cloned().collect(),
            mints: api.mints.clone(),
            minted: policy.apis.iter().any(|api| !api.mints.is_empty() || !api.redeems.is_empty()),
            redeems: api
                .redeems
                .iter()
                .filter(|mint| mint.groups.contains(group))
                .cloned()
                .collect(),
            elsewhere: elsewhere.flat_map(texts).collect(),
            names: CredentialFields::of(api),
            aws: api.aws.clone(),
        }
    }

    /// Returns the methods and paths of a request with a credential, or of one without.
    ///
    /// # Errors
    ///
    /// `placeholder_missing` where this request has to have a credential.
    pub fn scope(&self, substitution: &Substitution, head: &Parts) -> Result<Scope<'_>, Reason> {
        let usual = Scope { methods: &self.methods, paths: &self.paths };
        match &self.anonymous {
            _ if !substitution.is_anonymous() => Ok(usual),
            Anonymous::Never => Err(Reason::PlaceholderMissing),
            Anonymous::Always => Ok(usual),
            Anonymous::Listed(requests) => {
                let listed = requests.iter().find(|one| one.matches(&head.method, head.uri.path()));
                let listed = listed.ok_or(Reason::PlaceholderMissing)?;
                Ok(Scope { methods: listed.methods(), paths: listed.paths() })
            }
        }
    }

    /// Returns the group that the rules are for.
    pub(super) fn group(&self) -> &GroupName {
        &self.group
    }

    /// Whether any API mints tickets at all.
    pub(super) fn are_minted(&self) -> bool {
        self.minted
    }

    /// Returns the mints whose tickets the group may use here.
    pub(super) fn redeems(&self) -> &[Arc<Mint>] {
        &self.redeems
    }

    /// Returns the mints whose credentials an answer to a request for this path may hold.
    pub fn mints<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a Arc<Mint>> {
        let path = self.named(path);
        self.mints.iter().filter(move |mint| mint.is_of(&path))
    }

    /// Whether some server takes this path for one whose answers are searched, though it is spelt
    /// otherwise.
    pub(super) fn resembles_one_that_mints(&self, path: &str) -> bool {
        let path = self.named(path);
        self.mints.iter().any(|mint| mint.is_resembled_by(&path))
    }

    /// Whether answers are searched, by the paths of their requests.
    pub fn has_mints(&self) -> bool {
        !self.mints.is_empty()
    }

    /// Whether the value of a header field with this name is a credential.
    pub fn is_credential_field(&self, name: &HeaderName) -> bool {
        self.names.is_header(name.as_str().as_bytes())
    }

    /// As [`Self::is_credential_field`], for a name as it stands in a list such as Connection.
    pub(super) fn names_credential_field(&self, name: &[u8]) -> bool {
        self.names.is_header(name)
    }

    /// Whether the value under a decoded name in the query is a credential.
    pub(super) fn is_credential_query(&self, name: &str) -> bool {
        self.names.is_query(name)
    }

    /// Returns a path as a record may show it: `{}` stands for each segment in a place of the path,
    /// unless the segment is a placeholder of this group, and for a whole path that servers read in
    /// several ways.
    pub fn shown_path<'a>(&self, path: &'a str) -> Cow<'a, str> {
        if !self.path_slots().is_empty() && !has_one_reading(path) {
            return Cow::Borrowed(HIDDEN);
        }
        self.with_slots(path, HIDDEN)
    }

    /// Returns a path as rules have it: with the names of placeholders, whichever of their texts
    /// the agent sent. Otherwise the agent could choose a text for which no rule is found.
    pub fn named<'a>(&self, path: &'a str) -> Cow<'a, str> {
        self.with_slots(path, None)
    }

    /// Returns the path with the names of placeholders in its places, and with `other` in the place
    /// of any other segment there.
    fn with_slots<'a, 'o>(&self, path: &'a str, other: impl Into<Option<&'o str>>) -> Cow<'a, str> {
        let other = other.into();
        let mut found: Vec<_> =
            self.path_slots().iter().filter_map(|slot| slot.find(path)).collect();
        // From the last to the first, so that the ranges before stay right.
        found.sort_unstable_by_key(|at| std::cmp::Reverse(at.start));
        let (mut shown, mut begin) = (Cow::Borrowed(path), path.len());
        for at in found {
            let own = Cow::from(percent_decode_str(path.get(at.clone()).unwrap_or_default()));
            let text = match self.elsewhere(&own) {
                Some(placeholder) if placeholder.as_str().as_bytes() == &*own => None,
                Some(placeholder) => Some(placeholder.as_str()),
                None => other,
            };
            if let Some(text) = text.filter(|_| at.end <= begin) {
                begin = at.start;
                shown.to_mut().replace_range(at, text);
            }
        }
        shown
    }

    /// Returns the places where a segment of the path is a credential.
    pub(super) fn path_slots(&self) -> &[PathSlot] {
        &self.names.bound_paths
    }

    /// Returns the name of the place that some server takes a cookie of this name for.
    pub(super) fn cookie_place(&self, name: &str) -> Option<&str> {
        let same = |own: &&Arc<str>| Folded(own.as_bytes()) == Folded(name.as_bytes());
        self.names.bound_cookies.iter().find(same).map(|own| &**own)
    }

    /// Whether single cookies are examined.
    pub(super) fn looks_into_cookies(&self) -> bool {
        !self.names.bound_cookies.is_empty()
    }

    /// Whether cookies that are in no place are credentials, too.
    pub(super) fn refuses_cookies(&self) -> bool {
        !self.names.cookies
    }

    /// Returns the places in the body of such a request, for any group.
    pub(super) fn body_places<'a>(
        &'a self,
        head: &'a Parts,
    ) -> impl Iterator<Item = &'a BodyPlace> {
        let path = self.named(head.uri.path());
        let places = self.names.bound_bodies.iter();
        places.filter(move |place| place.is_of(&head.method, &path))
    }

    /// Whether some server takes a request for one whose body must be read whole, though its path
    /// is spelt otherwise.
    pub(super) fn resembles_one_with_body(&self, head: &Parts) -> bool {
        let path = self.named(head.uri.path());
        self.names.bound_bodies.iter().any(|place| place.is_resembled_by(&path))
    }

    /// Returns a path whose bodies are read whole, if there is one.
    pub fn body_path(&self) -> Option<&PathRule> {
        self.names.bound_bodies.first().map(BodyPlace::path)
    }

    /// Whether the body of such a request must be read whole, and [examined](super::examine_whole).
    pub fn reads_body(&self, head: &Parts) -> bool {
        self.body_places(head).next().is_some()
    }

    /// Returns the services and regions that requests may be signed for, where signatures of AWS
    /// are credentials here.
    pub(super) fn aws_scope(&self) -> Option<&AwsScope> {
        self.aws.as_deref()
    }

    /// Returns the texts before a credential in an offered subprotocol.
    pub(super) fn subprotocols(&self) -> &[SubprotocolPrefix] {
        &self.names.bound_subprotocols
    }

    /// The placeholder of this group, at this API or another, that the text stands for: the match
    /// is the whole token, byte for byte.
    pub(super) fn elsewhere(&self, text: &[u8]) -> Option<&Placeholder> {
        self.elsewhere.get(text)
    }
}

/// The text that stands for a credential of the agent's own in a record.
const HIDDEN: &str = "{}";

/// Whether request trailers carry a credential field. That is refused, since a server that merges
/// trailers into the head (RFC 9110, section 6.5.1) would read a second credential.
pub fn trailers_carry_credential(rules: &SubstitutionRules, trailers: &HeaderMap) -> bool {
    trailers.keys().any(|name| rules.is_credential_field(name))
}

fn bindings_of<'a>(api: &'a Api, group: &'a GroupName) -> impl Iterator<Item = &'a Arc<Binding>> {
    api.bindings.iter().filter(move |binding| binding.groups.contains(group))
}

/// The names under which credentials stand at one API.
#[derive(Debug)]
struct CredentialFields {
    /// The header fields of bindings, for any group.
    bound: Vec<HeaderName>,
    /// The same keys in a query, and those that bindings place there, as [`fold_query`] writes
    /// their names.
    bound_queries: Vec<Box<str>>,
    /// The places in a path, for any group.
    bound_paths: Vec<PathSlot>,
    /// The cookies that are places, for any group.
    bound_cookies: Vec<Arc<str>>,
    /// The places in bodies, for any group.
    bound_bodies: Vec<BodyPlace>,
    /// The texts before placeholders in a subprotocol, for any group.
    bound_subprotocols: Vec<SubprotocolPrefix>,
    /// The names that the API declares plain.
    plain: Vec<Plain>,
    /// Whether cookies pass without examination.
    cookies: bool,
}

impl CredentialFields {
    fn of(api: &Api) -> Self {
        let places = || api.places();
        let mut bound: Vec<_> = places().filter_map(field_of).cloned().collect();
        bound.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
        bound.dedup();
        let queries = places().filter_map(query_of).map(|name| fold_query(&name).into());
        let bound_queries =
            bound.iter().flat_map(|name| queries_of(name.as_str())).chain(queries).collect();
        Self {
            bound,
            bound_queries,
            bound_paths: once(places().filter_map(path_of)),
            bound_cookies: once(places().filter_map(cookie_of)),
            bound_bodies: once(places().filter_map(body_of)),
            bound_subprotocols: once(places().filter_map(prefix_of)),
            plain: api.plain.clone(),
            cookies: api.response.cookies,
        }
    }

    fn is_header(&self, name: &[u8]) -> bool {
        if name.eq_ignore_ascii_case(COOKIE.as_str().as_bytes()) {
            return !self.cookies || !self.bound_cookies.is_empty();
        }
        let is = |field: &HeaderName| Folded(field.as_str().as_bytes()) == Folded(name);
        let plain = |plain: &Plain| matches!(plain, Plain::Header(field) if is(field));
        self.bound.iter().any(is) || is_credential_header(name) && !self.plain.iter().any(plain)
    }

    fn is_query(&self, name: &str) -> bool {
        let bound = |name: &str| self.bound_queries.iter().any(|one| **one == *name);
        let is = |name: &str| {
            let plain = |plain: &Plain| matches!(plain, Plain::Query(one) if **one == *name);
            (is_credential_query(name) || bound(name)) && !self.plain.iter().any(plain)
        };
        query_readings(name).any(|name| is(&name))
            || name.contains('[') && bound(&nested_name(name))
    }
}

fn field_of(place: &Place) -> Option<&HeaderName> {
    match place {
        Place::Header { name, .. } => Some(name),
        Place::BasicUser { .. } | Place::BasicPassword { .. } => Some(&AUTHORIZATION),
        Place::Query { .. }
        | Place::Path(_)
        | Place::Subprotocol(_)
        | Place::Cookie { .. }
        | Place::Body(_)
        | Place::Aws => None,
    }
}

/// Returns the name in a query under which a server may read the value of the place.
fn query_of(place: &Place) -> Option<Cow<'_, str>> {
    match place {
        Place::Query { name } => Some(Cow::Borrowed(name)),
        Place::Body(place) => Some(place.spot().query()),
        _ => None,
    }
}

fn path_of(place: &Place) -> Option<&PathSlot> {
    match place {
        Place::Path(place) => Some(place),
        _ => None,
    }
}

fn prefix_of(place: &Place) -> Option<&SubprotocolPrefix> {
    match place {
        Place::Subprotocol(prefix) => Some(prefix),
        _ => None,
    }
}

fn cookie_of(place: &Place) -> Option<&Arc<str>> {
    match place {
        Place::Cookie { name } => Some(name),
        _ => None,
    }
}

fn body_of(place: &Place) -> Option<&BodyPlace> {
    match place {
        Place::Body(place) => Some(place),
        _ => None,
    }
}

/// Returns each place once: bindings of several groups list the same one.
fn once<'a, T: Clone + PartialEq + 'a>(places: impl Iterator<Item = &'a T>) -> Vec<T> {
    let mut all: Vec<T> = Vec::new();
    for place in places {
        if !all.contains(place) {
            all.push(place.clone());
        }
    }
    all
}
