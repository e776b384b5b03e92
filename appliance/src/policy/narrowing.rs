//! What the owner of a secret allows, beside what the operator's policy does. It narrows: a
//! request must pass both, and what cannot be understood or leaves nothing is no permission.

use std::time::SystemTime;

use http::Method;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{Api, Binding, Host, PathRule, Place, Scheme, path::permits};
use crate::reason::{Reason, SecretCause};

/// The narrowing of one secret. Empty where its owner says nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Narrowing {
    hosts: Option<Vec<Host>>,
    places: Option<Vec<OwnersPlace>>,
    methods: Option<Vec<Method>>,
    paths: Option<Vec<PathRule>>,
    expires: Option<SystemTime>,
}

/// A place as an owner writes it. What may stand beside a half of Basic is the operator's part.
#[derive(Debug, Clone, PartialEq, Eq)]
enum OwnersPlace {
    Header(http::HeaderName, Scheme),
    BasicUser,
    BasicPassword,
}

/// Where in a request a value is about to stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot<'a> {
    /// In this field, after this scheme.
    Header(&'a http::HeaderName, Scheme),
    /// The user of Basic.
    BasicUser,
    /// The password of Basic.
    BasicPassword,
}

/// Why an owner's word keeps a value from a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Narrowed {
    /// The request is outside of what the owner allows.
    Refused(Reason),
    /// The value is not to be had: it has expired, or the owner's word leaves nothing of what
    /// the policy grants.
    Unavailable(SecretCause, &'static str),
}

/// The names under which an owner narrows a secret. Others mean nothing here.
pub const NARROWING_KEYS: [&str; 5] = ["hosts", "places", "methods", "paths", "expires"];

impl Narrowing {
    /// Takes the text of one of [`NARROWING_KEYS`]: a list with commas, each entry as the
    /// configuration writes it, or for `expires` a time (RFC 3339).
    ///
    /// # Errors
    ///
    /// What is wrong, without the text.
    pub fn set(&mut self, key: &str, text: &str) -> Result<(), &'static str> {
        match key {
            "hosts" => self.hosts = Some(list(text, |entry| Host::parse(entry).ok()).ok_or(HOSTS)?),
            "places" => self.places = Some(list(text, place).ok_or(PLACES)?),
            "methods" => self.methods = Some(list(text, method).ok_or(METHODS)?),
            "paths" => {
                self.paths = Some(list(text, |entry| PathRule::parse(entry).ok()).ok_or(PATHS)?);
            }
            "expires" => {
                let time =
                    OffsetDateTime::parse(text.trim_ascii(), &Rfc3339).map_err(|_| EXPIRES)?;
                self.expires = Some(time.into());
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether a value of `binding` may stand in this request, which policy has already let pass.
    pub fn admits(
        &self,
        (api, binding): (&Api, &Binding),
        (host, slot): (&Host, Slot<'_>),
        (method, path): (&Method, &str),
        now: SystemTime,
    ) -> Result<(), Narrowed> {
        if self.expires.is_some_and(|expires| expires <= now) {
            let text = "custom_metadata: the time in expires has passed";
            return Err(Narrowed::Unavailable(SecretCause::LeaseEnded, text));
        }
        self.meets(api, binding)
            .map_err(|text| Narrowed::Unavailable(SecretCause::ValueInvalid, text))?;
        let refused = |reason| Err(Narrowed::Refused(reason));
        if self.hosts.as_ref().is_some_and(|hosts| !hosts.contains(host)) {
            return refused(Reason::PlaceholderWrongHost);
        }
        if self.places.as_ref().is_some_and(|places| !places.iter().any(|one| one.is(slot))) {
            return refused(Reason::PlaceholderWrongPlace);
        }
        permits(self.methods(), self.paths(), method, path).map_err(Narrowed::Refused)
    }

    /// The only methods that the owner allows; empty means every one.
    pub fn methods(&self) -> &[Method] {
        self.methods.as_deref().unwrap_or_default()
    }

    /// The only paths that the owner allows; empty means every one.
    pub fn paths(&self) -> &[PathRule] {
        self.paths.as_deref().unwrap_or_default()
    }

    /// Whether anything of what policy grants is left.
    fn meets(&self, api: &Api, binding: &Binding) -> Result<(), &'static str> {
        let meets = |hosts: &Vec<Host>| hosts.iter().any(|host| api.hosts.contains(host));
        if !self.hosts.as_ref().is_none_or(meets) {
            return Err("custom_metadata: none of its hosts is one of the API");
        }
        let bound = |place: &OwnersPlace| binding.places.iter().any(|one| place.is(slot(one)));
        if !self.places.as_ref().is_none_or(|places| places.iter().any(bound)) {
            return Err("custom_metadata: none of its places is one of the binding");
        }
        let open = api.methods.is_empty() || self.methods.is_none();
        if !open && !self.methods().iter().any(|method| api.methods.contains(method)) {
            return Err("custom_metadata: none of its methods is one of the API");
        }
        let open = api.paths.is_empty() || self.paths.is_none();
        let overlap = |path: &PathRule| api.paths.iter().any(|other| path.overlaps(other));
        if !open && !self.paths().iter().any(overlap) {
            return Err("custom_metadata: none of its paths is one of the API");
        }
        Ok(())
    }
}

impl OwnersPlace {
    fn is(&self, slot: Slot<'_>) -> bool {
        match (self, slot) {
            (Self::Header(name, scheme), Slot::Header(other, used)) => {
                name == other && *scheme == used
            }
            (Self::BasicUser, Slot::BasicUser) | (Self::BasicPassword, Slot::BasicPassword) => true,
            _ => false,
        }
    }
}

fn slot(place: &Place) -> Slot<'_> {
    match place {
        Place::Header { name, scheme } => Slot::Header(name, *scheme),
        Place::BasicUser { .. } => Slot::BasicUser,
        Place::BasicPassword { .. } => Slot::BasicPassword,
    }
}

/// At least one entry, and none that is empty or not understood.
fn list<T>(text: &str, parse: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    text.split(',').map(|entry| parse(entry.trim_matches([' ', '\t']))).collect()
}

fn place(text: &str) -> Option<OwnersPlace> {
    let words: Vec<&str> = text.split(' ').collect();
    Some(match words.as_slice() {
        ["basic", "user"] => OwnersPlace::BasicUser,
        ["basic", "password"] => OwnersPlace::BasicPassword,
        ["header", name, scheme] => {
            let scheme = match *scheme {
                "bearer" => Scheme::Bearer,
                "token" => Scheme::Token,
                "raw" => Scheme::Raw,
                _ => return None,
            };
            OwnersPlace::Header(http::HeaderName::from_bytes(name.as_bytes()).ok()?, scheme)
        }
        _ => return None,
    })
}

fn method(text: &str) -> Option<Method> {
    let method = Method::from_bytes(text.as_bytes()).ok()?;
    // A method in small letters is another method (RFC 9110, section 9.1), and surely a mistake.
    let upper = !text.bytes().any(|byte| byte.is_ascii_lowercase());
    Some(method).filter(|method| upper && *method != Method::CONNECT)
}

const HOSTS: &str = "custom_metadata: hosts is not a list of exact host names";
const PLACES: &str = "custom_metadata: places is not a list of places";
const METHODS: &str = "custom_metadata: methods is not a list of methods in capital letters";
const PATHS: &str = "custom_metadata: paths is not a list of paths";
const EXPIRES: &str = "custom_metadata: expires is not a time such as 2030-01-31T12:00:00Z";
