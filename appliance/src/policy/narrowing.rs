//! Owner restrictions: what an owner allows for a secret, beside the operator's policy. They only
//! narrow: a request must pass both, and a text that cannot be understood, or that leaves nothing,
//! permits nothing.

use std::time::SystemTime;

use http::Method;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    Api, Binding, BodyPlace, Host, PathRule, PathSlot, Place, Scheme, SubprotocolPrefix,
    never_allowed, permits_path,
};
use crate::reason::{Reason, SecretCause};

/// The restrictions of one secret. Empty where its owner sets none.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Narrowing {
    hosts: Option<Vec<Host>>,
    places: Option<Vec<OwnerPlace>>,
    methods: Option<Vec<Method>>,
    paths: Option<Vec<PathRule>>,
    expires: Option<SystemTime>,
}

/// A place as an owner writes it. The other half of Basic is the operator's part.
#[derive(Debug, Clone, PartialEq, Eq)]
enum OwnerPlace {
    Header(http::HeaderName, Scheme),
    BasicUser,
    BasicPassword,
    Query(Box<str>),
    Path(PathSlot),
    Cookie(Box<str>),
    Body(BodyPlace),
    Subprotocol(SubprotocolPrefix),
    Aws,
}

/// A request that policy has let pass.
#[derive(Debug, Clone, Copy)]
pub struct NarrowedRequest<'a> {
    /// The rule that let it pass.
    pub api: &'a Api,
    /// The host that it is for.
    pub host: &'a Host,
    /// Its method.
    pub method: &'a Method,
    /// Its path, with the names of placeholders.
    pub path: &'a str,
}

/// The place in a request where a value is about to stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValuePlace<'a> {
    /// In this field, after this scheme.
    Header(&'a http::HeaderName, &'a Scheme),
    /// The user of Basic.
    BasicUser,
    /// The password of Basic.
    BasicPassword,
    /// Under this name in the query.
    Query(&'a str),
    /// In this slot of the path.
    Path(&'a PathSlot),
    /// In the cookie of this name.
    Cookie(&'a str),
    /// In this place of the body.
    Body(&'a BodyPlace),
    /// Behind this text in a subprotocol of a WebSocket.
    Subprotocol(&'a SubprotocolPrefix),
    /// In a signature of AWS.
    Aws,
}

/// The reason why an owner restriction keeps a value from a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Narrowed {
    /// The request is outside of what the owner allows.
    Refused(Reason),
    /// No value is available: it has expired, or the restriction leaves nothing of what the policy
    /// grants.
    Unavailable(SecretCause, &'static str),
}

/// The keys by which an owner restricts a secret. Other keys have no meaning here, unless they
/// [look like one](looks_narrowing).
pub const NARROWING_KEYS: [&str; 5] = ["hosts", "places", "methods", "paths", "expires"];

impl Narrowing {
    /// Takes the text of one of [`NARROWING_KEYS`]: a list with commas, each entry as the
    /// configuration writes it, or for `expires` a time (RFC 3339).
    ///
    /// # Errors
    ///
    /// The mistake, without the text.
    pub fn set(&mut self, key: &str, text: &str) -> Result<(), &'static str> {
        match key {
            "hosts" => self.hosts = Some(list(text, |entry| Host::parse(entry).ok()).ok_or(HOSTS)?),
            "places" => self.places = Some(list(text, place).ok_or(PLACES)?),
            "methods" => self.methods = Some(list(text, method).ok_or(METHODS)?),
            "paths" => {
                self.paths = Some(list(text, |entry| PathRule::parse(entry).ok()).ok_or(PATHS)?);
            }
            "expires" => {
                let time = OffsetDateTime::parse(text.trim_ascii(), &Rfc3339);
                self.end_by(time.map_err(|_| EXPIRES)?);
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes the time (RFC 3339) at which Vault deletes the value, which counts like `expires`.
    ///
    /// # Errors
    ///
    /// The mistake, without the text.
    pub fn end_at(&mut self, text: &str) -> Result<(), &'static str> {
        self.end_by(OffsetDateTime::parse(text, &Rfc3339).map_err(|_| DELETION_TIME)?);
        Ok(())
    }

    /// Takes an end. The earliest one counts.
    fn end_by(&mut self, time: OffsetDateTime) {
        let time = time.into();
        self.expires = Some(self.expires.map_or(time, |other| other.min(time)));
    }

    /// Returns whether a value of `binding` may stand at this place of the request.
    ///
    /// # Errors
    ///
    /// The restriction that keeps it out.
    pub fn admits(
        &self,
        binding: &Binding,
        value_place: ValuePlace<'_>,
        request: NarrowedRequest<'_>,
        now: SystemTime,
    ) -> Result<(), Narrowed> {
        let NarrowedRequest { api, host, method, path } = request;
        if self.expires.is_some_and(|expires| expires <= now) {
            let text = "the time in expires or deletion_time has passed";
            return Err(Narrowed::Unavailable(SecretCause::LeaseEnded, text));
        }
        self.leaves(api, binding)
            .map_err(|text| Narrowed::Unavailable(SecretCause::ValueInvalid, text))?;
        let refused = |reason| Err(Narrowed::Refused(reason));
        if self.hosts.as_ref().is_some_and(|hosts| !hosts.contains(host)) {
            return refused(Reason::PlaceholderWrongHost);
        }
        if self.places.as_ref().is_some_and(|places| !places.iter().any(|one| one.is(value_place)))
        {
            return refused(Reason::PlaceholderWrongPlace);
        }
        if self.methods().is_some_and(|methods| !methods.contains(method)) {
            return refused(Reason::MethodDenied);
        }
        permits_path(self.paths(), path).map_err(Narrowed::Refused)
    }

    /// Returns the only methods that the owner allows, if the owner lists any.
    pub fn methods(&self) -> Option<&[Method]> {
        self.methods.as_deref()
    }

    /// Returns the only paths that the owner allows; empty means every one.
    pub fn paths(&self) -> &[PathRule] {
        self.paths.as_deref().unwrap_or_default()
    }

    /// Checks that the restriction leaves anything of what policy grants.
    ///
    /// # Errors
    ///
    /// The restriction that leaves nothing.
    pub fn leaves(&self, api: &Api, binding: &Binding) -> Result<(), &'static str> {
        let meets = |hosts: &Vec<Host>| hosts.iter().any(|host| api.hosts.contains(host));
        if !self.hosts.as_ref().is_none_or(meets) {
            return Err("custom_metadata: none of its hosts is one of the API");
        }
        let bound =
            |place: &OwnerPlace| binding.places.iter().any(|one| place.is(value_place(one)));
        if !self.places.as_ref().is_none_or(|places| places.iter().any(bound)) {
            return Err("custom_metadata: none of its places is one of the binding");
        }
        let meets = |methods: &[Method]| methods.iter().any(|method| api.methods.contains(method));
        if !self.methods().is_none_or(meets) {
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

/// Whether `key` is none of [`NARROWING_KEYS`] but differs from one by no more than case or a final
/// `s` or `es`. An owner who wrote it believes that the secret is narrowed.
pub fn looks_narrowing(key: &str) -> bool {
    let longest = NARROWING_KEYS.iter().map(|ours| ours.len() + "es".len()).max();
    if NARROWING_KEYS.contains(&key) || Some(key.len()) > longest {
        return false;
    }
    let key = key.to_ascii_lowercase();
    NARROWING_KEYS.iter().any(|ours| endings(ours).any(|ours| endings(&key).any(|key| key == ours)))
}

/// Returns a word as it is, without a final `s`, and without a final `es`.
fn endings(word: &str) -> impl Iterator<Item = &str> {
    ["", "s", "es"].into_iter().filter_map(|ending| word.strip_suffix(ending))
}

impl OwnerPlace {
    fn is(&self, value_place: ValuePlace<'_>) -> bool {
        match (self, value_place) {
            (Self::Header(name, scheme), ValuePlace::Header(other, used)) => {
                name == other && scheme == used
            }
            (Self::BasicUser, ValuePlace::BasicUser)
            | (Self::BasicPassword, ValuePlace::BasicPassword)
            | (Self::Aws, ValuePlace::Aws) => true,
            (Self::Query(name), ValuePlace::Query(other)) => **name == *other,
            (Self::Path(place), ValuePlace::Path(other)) => place == other,
            (Self::Cookie(name), ValuePlace::Cookie(other)) => **name == *other,
            (Self::Body(place), ValuePlace::Body(other)) => place == other,
            (Self::Subprotocol(prefix), ValuePlace::Subprotocol(other)) => prefix == other,
            _ => false,
        }
    }
}

fn value_place(place: &Place) -> ValuePlace<'_> {
    match place {
        Place::Header { name, scheme } => ValuePlace::Header(name, scheme),
        Place::BasicUser { .. } => ValuePlace::BasicUser,
        Place::BasicPassword { .. } => ValuePlace::BasicPassword,
        Place::Query { name } => ValuePlace::Query(name),
        Place::Path(place) => ValuePlace::Path(place),
        Place::Cookie { name } => ValuePlace::Cookie(name),
        Place::Body(place) => ValuePlace::Body(place),
        Place::Subprotocol(prefix) => ValuePlace::Subprotocol(prefix),
        Place::Aws => ValuePlace::Aws,
    }
}

/// Reads a list of at least one entry, with none that is empty or not understood.
fn list<T>(text: &str, parse: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    text.split(',').map(|entry| parse(entry.trim_matches([' ', '\t']))).collect()
}

fn place(text: &str) -> Option<OwnerPlace> {
    let words: Vec<&str> = text.split(' ').collect();
    Some(match words.as_slice() {
        ["basic", "user"] => OwnerPlace::BasicUser,
        ["basic", "password"] => OwnerPlace::BasicPassword,
        ["aws"] => OwnerPlace::Aws,
        ["query", name] => OwnerPlace::Query((*name).into()),
        ["path", place] => OwnerPlace::Path(PathSlot::parse(place).ok()?),
        ["cookie", name] => OwnerPlace::Cookie((*name).into()),
        ["json" | "form", ..] => OwnerPlace::Body(BodyPlace::parse(&words).ok()?),
        ["websocket", "subprotocol", prefix] => {
            OwnerPlace::Subprotocol(SubprotocolPrefix::parse(prefix).ok()?)
        }
        ["header", name, scheme @ ..] => {
            let name = http::HeaderName::from_bytes(name.as_bytes()).ok()?;
            OwnerPlace::Header(name, Scheme::parse(scheme).ok()?)
        }
        _ => return None,
    })
}

fn method(text: &str) -> Option<Method> {
    let method = Method::from_bytes(text.as_bytes()).ok()?;
    // A method in small letters is another method (RFC 9110, section 9.1), and surely a mistake.
    let upper = !text.bytes().any(|byte| byte.is_ascii_lowercase());
    Some(method).filter(|_| upper && never_allowed(text).is_none())
}

const HOSTS: &str = "custom_metadata: hosts is not a list of exact host names";
const PLACES: &str = "custom_metadata: places is not a list of places";
const METHODS: &str = "custom_metadata: methods is not a list of methods in capital letters";
const PATHS: &str = "custom_metadata: paths is not a list of paths";
const DELETION_TIME: &str = "Vault's deletion_time is not a time";
const EXPIRES: &str = "custom_metadata: expires is not a time such as 2030-01-31T12:00:00Z";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Placeholder, RuleName, SecretRef};
    use http::HeaderName;
    use proptest::prelude::*;
    use std::{sync::LazyLock, time::Duration};

    fn scheme(text: &str) -> Scheme {
        Scheme::parse(&text.split(' ').collect::<Vec<_>>()).unwrap()
    }

    fn bearer() -> ValuePlace<'static> {
        static BEARER: LazyLock<Scheme> = LazyLock::new(|| scheme("bearer"));
        ValuePlace::Header(&http::header::AUTHORIZATION, &BEARER)
    }

    fn host(name: &str) -> Host {
        Host::parse(name).unwrap()
    }

    fn binding() -> Binding {
        let bearer = Place::Header { name: http::header::AUTHORIZATION, scheme: scheme("bearer") };
        Binding {
            groups: vec![],
            placeholder: Placeholder("OPENAI_API_KEY".into()),
            shaped: None,
            places: vec![
                bearer,
                Place::BasicPassword { user: "agent".into() },
                Place::Query { name: "key".into() },
                Place::Path(PathSlot::parse("/bot{}/").unwrap()),
                Place::Cookie { name: "session".into() },
                Place::Body(login()),
            ],
            secret: SecretRef::File { name: "openai".into() },
            variables: Vec::new(),
            min_value_bytes: 16,
        }
    }

    fn login() -> BodyPlace {
        BodyPlace::parse(&["json", "/password", "in", "POST", "/v1/login"]).unwrap()
    }

    fn api() -> Api {
        Api {
            name: RuleName("openai".into()),
            hosts: vec![host("a.example"), host("b.example")],
            port: 443,
            methods: vec![Method::GET, Method::POST],
            paths: vec![PathRule::parse("/v1/*").unwrap()],
            plain: vec![],
            anonymous: crate::policy::Anonymous::Never,
            upstream: Default::default(),
            response: Default::default(),
            websocket: false,
            aws: None,
            constraints: Default::default(),
            bindings: vec![],
            mints: vec![],
            redeems: vec![],
        }
    }

    fn narrowing(key: &str, text: &str) -> Narrowing {
        let mut narrowing = Narrowing::default();
        narrowing.set(key, text).unwrap();
        narrowing
    }

    /// Asks for `/v1/models` at `a.example` with a bearer, which policy permits.
    fn usual(narrowing: &Narrowing) -> Result<(), Narrowed> {
        asked(narrowing, "a.example", bearer(), "/v1/models")
    }

    fn asked(
        narrowing: &Narrowing,
        at: &str,
        value_place: ValuePlace<'_>,
        path: &str,
    ) -> Result<(), Narrowed> {
        let (api, binding, now) = (api(), binding(), SystemTime::now());
        let (host, method) = (host(at), &Method::GET);
        let request = NarrowedRequest { api: &api, host: &host, method, path };
        narrowing.admits(&binding, value_place, request, now)
    }

    #[test]
    fn each_key_refuses_with_its_word() {
        use Reason::{MethodDenied, PathDenied, PlaceholderWrongHost, PlaceholderWrongPlace};
        for (key, text, reason) in [
            ("hosts", "b.example", PlaceholderWrongHost),
            ("places", "basic password", PlaceholderWrongPlace),
            ("methods", "POST", MethodDenied),
            ("paths", "/v1/other,/v1/files/*", PathDenied),
        ] {
            let refused = usual(&narrowing(key, text));
            assert_eq!(refused, Err(Narrowed::Refused(reason)), "{key}");
        }
    }

    #[test]
    fn what_lies_inside_is_admitted() {
        assert_eq!(usual(&Narrowing::default()), Ok(()));
        for (key, text) in [
            ("hosts", "a.example"),
            ("hosts", "other.example, A.example."),
            ("places", "basic user,header Authorization bearer"),
            ("places", "header authorization scheme Bearer"),
            ("methods", "DELETE, GET"),
            ("paths", "/*"),
            ("paths", "/v1/models"),
            ("expires", "2999-12-31T23:59:59Z"),
            ("owner", "team, 7"),
        ] {
            assert_eq!(usual(&narrowing(key, text)), Ok(()), "{key} = {text}");
        }
        let basic = narrowing("places", "basic password");
        assert_eq!(asked(&basic, "b.example", ValuePlace::BasicPassword, "/v1/x"), Ok(()));
        let raw = HeaderName::from_static("authorization");
        let raw = asked(&basic, "b.example", ValuePlace::Header(&raw, &Scheme::Raw), "/v1/x");
        assert_eq!(raw, Err(Narrowed::Refused(Reason::PlaceholderWrongPlace)));
        let place = PathSlot::parse("/bot{}/").unwrap();
        let login = login();
        for (text, value_place) in [
            ("query key", ValuePlace::Query("key")),
            ("path /bot{}/", ValuePlace::Path(&place)),
            ("cookie session", ValuePlace::Cookie("session")),
            ("json /password in POST /v1/login", ValuePlace::Body(&login)),
        ] {
            let target = narrowing("places", text);
            assert_eq!(asked(&target, "b.example", value_place, "/v1/x"), Ok(()), "{text}");
            assert_eq!(
                usual(&target),
                Err(Narrowed::Refused(Reason::PlaceholderWrongPlace)),
                "{text}"
            );
        }
    }

    #[test]
    fn what_leaves_nothing_of_the_policy_is_a_contradiction() {
        for (key, text) in [
            ("hosts", "other.example"),
            ("places", "header authorization raw"),
            ("places", "basic user"),
            ("methods", "DELETE"),
            ("paths", "/v2/*"),
            ("paths", "/v1"),
        ] {
            let Err(Narrowed::Unavailable(cause, _)) = usual(&narrowing(key, text)) else {
                panic!("{key} = {text}")
            };
            assert_eq!(cause, SecretCause::ValueInvalid, "{key} = {text}");
        }
    }

    #[test]
    fn a_value_ends_at_the_time_that_its_owner_named() {
        let (api, binding) = (api(), binding());
        let narrowing = narrowing("expires", "2030-01-31T13:00:00+01:00");
        let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(1_896_091_200);
        let at = |now| {
            let (host, method) = (host("a.example"), &Method::GET);
            let request = NarrowedRequest { api: &api, host: &host, method, path: "/v1/models" };
            narrowing.admits(&binding, bearer(), request, now)
        };
        assert_eq!(at(noon - Duration::from_secs(1)), Ok(()));
        let ended = at(noon);
        assert!(matches!(ended, Err(Narrowed::Unavailable(SecretCause::LeaseEnded, _))));
    }

    #[test]
    fn a_key_that_looks_like_one_of_ours_is_found() {
        for key in [
            "host", "Host", "Hosts", "HOSTS", "place", "method", "Methodes", "path", "pathes",
            "expire", "Expires",
        ] {
            assert!(looks_narrowing(key), "{key}");
        }
        let others = ["", "s", "owner", "hostname", "paths_note", "expiry", "es", "hostsss"];
        for key in NARROWING_KEYS.into_iter().chain(others) {
            assert!(!looks_narrowing(key), "{key}");
        }
        assert!(!looks_narrowing(&"h".repeat(100_000)));
    }

    #[test]
    fn an_ambiguous_path_meets_no_rule() {
        let narrowing = narrowing("paths", "/v1/*");
        let twisted = asked(&narrowing, "a.example", bearer(), "/v1/%2e%2e/admin");
        assert_eq!(twisted, Err(Narrowed::Refused(Reason::PathAmbiguous)));
    }

    proptest! {
        /// No text of an owner makes a narrowing admit a request that one of its lists excludes.
        #[test]
        fn no_text_of_an_owner_widens(key in 0_usize..5, text in "[ -~]{0,40}") {
            let mut narrowing = narrowing("methods", "POST");
            let key = NARROWING_KEYS[key];
            if narrowing.set(key, &text).is_ok() && key != "methods" {
                prop_assert!(usual(&narrowing).is_err(), "{key} = {text}");
            }
        }

        #[test]
        fn rules_overlap_where_a_path_matches_both(one in "/[a-c/]{0,4}\\*?", other in "/[a-c/]{0,4}\\*?", path in "/[a-c/]{0,6}") {
            if let (Ok(one), Ok(other)) = (PathRule::parse(&one), PathRule::parse(&other)) {
                prop_assert_eq!(one.overlaps(&other), other.overlaps(&one));
                if one.matches(&path) && other.matches(&path) {
                    prop_assert!(one.overlaps(&other));
                }
            }
        }
    }
}
