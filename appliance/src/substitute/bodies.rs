//! Placeholders in cookies and in bodies.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Version, header::COOKIE, request::Parts};
use proptest::prelude::*;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{testing::*, *};
use crate::{
    policy::{Binding, BodyPlace, Place, Placeholder},
    reason::{Reason, SecretCause},
    secrets::SecretValue,
};

const SESSION: &str = "SESSION_PLACEHOLDER";
const LOGIN: &str = "PASSWORD/PLACEHOLDER";
const CLIENT: &str = "CLIENT_SECRET_PLACEHOLDER";

fn place(text: &str) -> Place {
    let words: Vec<_> = text.split(' ').collect();
    match *words {
        ["cookie", name] => Place::Cookie { name: name.into() },
        _ => Place::Body(BodyPlace::parse(&words).unwrap()),
    }
}

fn rules_keeping(cookies: bool) -> SubstitutionRules {
    rules_with(|api| {
        api.response.cookies = cookies;
        for (at, placeholder, places) in [
            (0, SESSION, &["cookie session"][..]),
            (1, LOGIN, &["json /auth/password in POST /login", "form password in POST /login"]),
            (2, CLIENT, &["form client_secret in POST /token"]),
        ] {
            let mut own = api.bindings[at].as_ref().clone();
            own.placeholder = Placeholder(placeholder.into());
            own.places.extend(places.iter().map(|text| place(text)));
            api.bindings[at] = own.into();
        }
        let mut other = api.bindings.pop().map(Arc::unwrap_or_clone).unwrap();
        other.places.push(place("json /auth/password in POST /login"));
        api.bindings.push(other.into());
    })
}

fn rules() -> SubstitutionRules {
    rules_keeping(false)
}

fn cookies(version: Version, fields: &[&str]) -> Parts {
    let mut request = Request::builder().version(version).uri("/v1/chat");
    for field in fields {
        request = request.header(COOKIE, *field);
    }
    request.body(()).unwrap().into_parts().0
}

fn values(headers: &HeaderMap) -> Vec<String> {
    headers.get_all(COOKIE).iter().map(|it| it.to_str().unwrap().to_owned()).collect()
}

#[test]
fn a_placeholder_in_its_cookie_alone_becomes_its_value() {
    let value = value_of(SESSION);
    let own = format!("session={SESSION}");
    for (fields, expected) in [
        (vec![own.clone()], vec![format!("session={value}")]),
        (vec![format!("a=b; {own};c=\"d\"")], vec![format!("a=b; session={value};c=\"d\"")]),
    ] {
        let fields: Vec<_> = fields.iter().map(|field| &**field).collect();
        let (parts, substitution) =
            swapped(&rules_keeping(true), cookies(Version::HTTP_11, &fields)).unwrap();
        assert_eq!(values(&parts.headers), expected);
        assert!(parts.headers[COOKIE].is_sensitive());
        assert_eq!(substitution.placeholders().count(), 1);
    }
    let crumbs = ["a=b", &own, "c=d"];
    let (parts, _) = swapped(&rules_keeping(true), cookies(Version::HTTP_2, &crumbs)).unwrap();
    assert_eq!(values(&parts.headers), ["a=b", &format!("session={value}"), "c=d"]);
    assert!(swapped(&rules(), cookies(Version::HTTP_11, &[&own])).is_ok());
}

#[test]
fn cookies_that_servers_could_read_in_two_ways_are_refused() {
    use Reason::{
        CredentialMalformed, DuplicateCredential, ForeignCredential, PlaceholderMissing,
        PlaceholderWrongHost, PlaceholderWrongPlace,
    };
    let own = format!("session={SESSION}");
    for (field, kept, dropped) in [
        ("session=mine".to_owned(), ForeignCredential, ForeignCredential),
        (format!("session={SESSION}x"), ForeignCredential, ForeignCredential),
        (format!("session={OTHER_GROUP}"), ForeignCredential, ForeignCredential),
        (format!("session={OTHER_HOST}"), PlaceholderWrongHost, PlaceholderWrongHost),
        (format!("session={CLIENT}"), PlaceholderWrongPlace, PlaceholderWrongPlace),
        (format!("session=\"{SESSION}\""), PlaceholderWrongPlace, PlaceholderWrongPlace),
        (format!("Session={SESSION}"), PlaceholderWrongPlace, PlaceholderWrongPlace),
        (format!("other={SESSION}"), PlaceholderMissing, PlaceholderWrongPlace),
        (format!("{own}; {own}"), DuplicateCredential, DuplicateCredential),
        (format!("{own}; SESSION=mine"), DuplicateCredential, DuplicateCredential),
        (format!("session=mine; {own}"), DuplicateCredential, DuplicateCredential),
        (format!("a=\"; {own}; b=\""), CredentialMalformed, CredentialMalformed),
        (format!("a=b, {own}"), CredentialMalformed, CredentialMalformed),
        (format!("{own};"), CredentialMalformed, CredentialMalformed),
        (format!("{own};  a=b"), CredentialMalformed, CredentialMalformed),
        ("session".to_owned(), CredentialMalformed, CredentialMalformed),
    ] {
        let parts = || cookies(Version::HTTP_11, &[&field]);
        assert_eq!(refused(&rules_keeping(true), parts()), kept, "{field}");
        assert_eq!(refused(&rules(), parts()), dropped, "{field}");
    }
    assert_eq!(
        refused(&rules(), cookies(Version::HTTP_11, &[&format!("a=b; {own}")])),
        DuplicateCredential
    );
    let two = || ["a=b", &own];
    assert_eq!(
        refused(&rules_keeping(true), cookies(Version::HTTP_11, &two())),
        CredentialMalformed
    );
    let twice = cookies(Version::HTTP_2, &[&own, &own]);
    assert_eq!(refused(&rules_keeping(true), twice), DuplicateCredential);
    let named = head(&[("connection", "cookie"), ("cookie", &own)]);
    assert_eq!(refused(&rules_keeping(true), named), Reason::HttpMalformed);
}

#[test]
fn a_value_that_no_cookie_can_hold_is_not_sent() {
    let own = format!("session={SESSION}");
    for bad in [
        "a-value-with-\"-in-it",
        "a-value-with-;-in-it",
        "a-value-with-,-in-it",
        "a-value-with-\\-in",
    ] {
        let mut parts = cookies(Version::HTTP_11, &[&own]);
        let substitution = examine(&rules(), &parts).unwrap();
        let value =
            |_: &Binding| Ok(Arc::new(SecretValue::load(Zeroizing::new(bad.into()), 16).unwrap()));
        assert_eq!(substitution.apply(&mut parts, value), Err(SecretCause::ValueInvalid), "{bad}");
        assert_eq!(values(&parts.headers), [&*own]);
    }
}

const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";

fn asked(path: &str, kind: &str, fields: &[(&str, &str)]) -> Parts {
    let fields = [&[("content-type", kind)], fields].concat();
    head_to(Method::POST, path, &fields)
}

/// Returns the body that goes out.
fn sent(path: &str, kind: &str, body: impl Into<Bytes>) -> Result<Bytes, Reason> {
    let (mut parts, body) = (asked(path, kind, &[]), body.into());
    let substitution = examine_whole(&rules(), &parts, &body).map_err(|denial| denial.reason)?;
    Ok(substitution.apply(&mut parts, lookup).unwrap().expect("the body was read"))
}

#[test]
fn a_placeholder_in_its_body_place_alone_becomes_its_value() {
    let login = format!(
        " {{ \"note\":\"{LOGIN}\", \"auth\" : {{\"user\":\"é\",\"password\":\t\"{LOGIN}\" }} }}\n"
    );
    let at = login.rfind(LOGIN).unwrap();
    let expected = format!("{}{}{}", &login[..at], value_of(LOGIN), &login[at + LOGIN.len()..]);
    assert_eq!(sent("/login", JSON, login.clone()).unwrap(), expected);
    assert_eq!(sent("/login", "application/vnd.x+json; charset=utf-8", login).unwrap(), expected);
    let escaped = r#"{"auth":{"password":"PASSWORD\/PLACEHOLDE\u0052"}}"#;
    let expected = format!("{{\"auth\":{{\"password\":\"{}\"}}}}", value_of(LOGIN));
    assert_eq!(sent("/login", JSON, escaped).unwrap(), expected);
    let form = format!("grant_type=client_credentials&client_secret={CLIENT}&x={CLIENT}&&y=%20+é");
    let expected = form.replacen(CLIENT, &value_of(CLIENT), 1);
    assert_eq!(sent("/token", FORM, form).unwrap(), expected);
    let form = "password=PASSWORD%2FPLACEHOLDER";
    let expected = format!("password={}", value_of(LOGIN).replace('/', "%2F"));
    assert_eq!(sent("/login", FORM, form).unwrap(), expected);
}

#[test]
fn a_value_in_a_body_is_escaped_for_its_format() {
    let every: Vec<u8> = (0x21..=0x7e).collect();
    let value =
        |_: &Binding| Ok(Arc::new(SecretValue::load(Zeroizing::new(every.clone()), 16).unwrap()));
    let text = String::from_utf8(every.clone()).unwrap();
    let go = |path, kind, body: String| {
        let mut parts = asked(path, kind, &[]);
        let substitution = examine_whole(&rules(), &parts, &body.into()).unwrap();
        substitution.apply(&mut parts, value).unwrap().unwrap()
    };
    let login = json!({"auth": {"password": LOGIN}, "z": 1});
    let seen: Value = serde_json::from_slice(&go("/login", JSON, login.to_string())).unwrap();
    assert_eq!(seen, json!({"auth": {"password": text}, "z": 1}));
    let form = go("/token", FORM, format!("a=1&client_secret={CLIENT}&b=2"));
    let pairs: Vec<_> = form_urlencoded::parse(&form).into_owned().collect();
    assert_eq!(pairs[1], ("client_secret".to_owned(), text));
    assert_eq!((&*pairs[0].1, &*pairs[2].1), ("1", "2"));
}

#[test]
fn bodies_that_servers_could_read_in_two_ways_are_refused() {
    use Reason::{
        CredentialMalformed, DuplicateCredential, ForeignCredential, PlaceholderMissing,
        PlaceholderWrongHost, PlaceholderWrongPlace,
    };
    let login = |password: &str| format!("{{\"auth\":{{\"password\":\"{password}\"}}}}");
    let good = login(LOGIN);
    for (body, reason) in [
        (String::new(), PlaceholderMissing),
        ("{}".into(), PlaceholderMissing),
        (format!("{{\"password\":\"{LOGIN}\"}}"), PlaceholderMissing),
        (format!("[{good}]"), PlaceholderMissing),
        (login("mine"), ForeignCredential),
        (login(""), ForeignCredential),
        ("{\"auth\":{\"password\":null}}".into(), ForeignCredential),
        (format!("{{\"auth\":{{\"password\":[\"{LOGIN}\"]}}}}"), ForeignCredential),
        (login(OTHER_GROUP), ForeignCredential),
        (login(&format!("{LOGIN}x")), ForeignCredential),
        (login(OTHER_HOST), PlaceholderWrongHost),
        (login(CLIENT), PlaceholderWrongPlace),
        (good.replace("password", "Password"), PlaceholderWrongPlace),
        (good.replace("password", "p\\u0061ssword"), PlaceholderWrongPlace),
        (good.replace("auth", "AUTH"), PlaceholderWrongPlace),
        (format!("{{\"auth\":{{}},{}", &good[1..]), DuplicateCredential),
        (good.replace("}}", ",\"PASSWORD\":\"mine\"}}"), DuplicateCredential),
        (format!("\u{feff}{good}"), CredentialMalformed),
        (format!("{good}{{}}"), CredentialMalformed),
        (format!("{good}\0"), CredentialMalformed),
        (good.replace("}}", ",}}"), CredentialMalformed),
        (format!("{}{good}{}", "[".repeat(200), "]".repeat(200)), CredentialMalformed),
    ] {
        assert_eq!(sent("/login", JSON, body.clone()).unwrap_err(), reason, "{body}");
    }
    let latin = [good.as_bytes(), b"\xe9"].concat();
    assert_eq!(sent("/login", JSON, latin).unwrap_err(), CredentialMalformed);
    for kind in
        ["text/plain", "application/json; charset=utf-16", "multipart/form-data; boundary=x", "x"]
    {
        assert_eq!(sent("/login", kind, good.clone()).unwrap_err(), CredentialMalformed, "{kind}");
    }
    for (body, reason) in [
        ("a=b".to_owned(), PlaceholderMissing),
        ("client_secret=mine".into(), ForeignCredential),
        ("client_secret=".into(), ForeignCredential),
        (format!("client_secret={LOGIN}"), PlaceholderWrongPlace),
        (format!("clientSecret={CLIENT}"), PlaceholderWrongPlace),
        (format!("client_secret[]={CLIENT}"), PlaceholderWrongPlace),
        (format!("a=b;client_secret={CLIENT}"), PlaceholderWrongPlace),
        (format!("client_secret={CLIENT}&client_secret={CLIENT}"), DuplicateCredential),
        (format!("client_secret={CLIENT}&Client_Secret=mine"), DuplicateCredential),
        (format!("client_secret={CLIENT}&client[secret=mine"), DuplicateCredential),
        (format!("client_secret={CLIENT}&client%5Bsecret=mine"), DuplicateCredential),
        (format!("client_secret={CLIENT}&[client_secret]=mine"), DuplicateCredential),
        ("[client_secret]=mine".into(), ForeignCredential),
        (format!("client_secret={CLIENT}&client_secret%00x=mine"), CredentialMalformed),
        (format!("client_secret={CLIENT}&client%u005Fsecret=mine"), CredentialMalformed),
        (format!("client_secret={CLIENT}&_method=PUT"), CredentialMalformed),
        (format!("client_secret={CLIENT}\r\n"), CredentialMalformed),
        (format!("\0client_secret={CLIENT}"), CredentialMalformed),
    ] {
        assert_eq!(sent("/token", FORM, body.clone()).unwrap_err(), reason, "{body}");
    }
    assert_eq!(sent("/token", JSON, "{}").unwrap_err(), CredentialMalformed);
    let named_alike = "application/x-www-form-urlencoded+json";
    assert_eq!(sent("/login", named_alike, good).unwrap_err(), CredentialMalformed);
}

#[test]
fn a_path_resembling_one_with_a_body_is_ambiguous() {
    for path in
        ["/tok%65n", "/Token", "/token/", "/token;x", "/token.json", "//token", "/x/../token"]
    {
        let denied = refused(&rules(), asked(path, FORM, &[("authorization", "Bearer mine")]));
        assert_eq!(denied, Reason::PathAmbiguous, "{path}");
    }
    for path in ["/tokens", "/v1/chat", "/token/x"] {
        let denied = refused(&rules(), asked(path, FORM, &[("authorization", "Bearer mine")]));
        assert_eq!(denied, Reason::ForeignCredential, "{path}");
    }
}

#[test]
fn compressed_bodies_and_those_that_are_not_read_are_refused() {
    let body = Bytes::from(format!("{{\"auth\":{{\"password\":\"{LOGIN}\"}}}}"));
    let denied = |fields: &[(&str, &str)]| {
        examine_whole(&rules(), &asked("/login", JSON, fields), &body).map(drop).unwrap_err()
    };
    for coding in ["gzip", "zstd", "identity, gzip", "x"] {
        let denial = denied(&[("content-encoding", coding)]);
        assert_eq!(denial.reason, Reason::CredentialMalformed, "{coding}");
        assert_eq!(denial.credential.as_deref(), Some("json /auth/password"));
    }
    assert_eq!(denied(&[("content-type", JSON)]).reason, Reason::CredentialMalformed);
    assert_eq!(refused(&rules(), asked("/login", JSON, &[])), Reason::InternalError);
}

#[test]
fn a_body_is_read_at_its_one_method_and_path() {
    let rules = rules();
    for (method, path, read) in [
        (Method::POST, "/login", true),
        (Method::POST, "/login?x=/y", true),
        (Method::POST, "/token", true),
        (Method::PUT, "/login", false),
        (Method::POST, "/login/", false),
        (Method::POST, "/v1/chat", false),
    ] {
        assert_eq!(rules.reads_body(&head_to(method.clone(), path, &[])), read, "{method} {path}");
    }
}

#[test]
fn a_credential_in_a_body_counts_beside_others() {
    let bearer = format!("Bearer {SESSION}");
    let body =
        |password: &str| Bytes::from(format!("{{\"auth\":{{\"password\":\"{password}\"}}}}"));
    let at = |fields: &[(&str, &str)], path: &str, body: &Bytes| {
        examine_whole(&rules(), &asked(path, JSON, fields), body)
            .map(|substitution| substitution.placeholders().count())
            .map_err(|denial| denial.reason)
    };
    let good = [("authorization", &*bearer)];
    assert_eq!(at(&good, "/login", &body(LOGIN)), Ok(2));
    assert_eq!(at(&good, "/login", &"{}".into()), Ok(1));
    assert_eq!(at(&good, "/login", &Bytes::new()), Ok(1));
    assert_eq!(at(&good, "/login", &body("mine")), Err(Reason::DuplicateCredential));
    let own = [("authorization", "Bearer mine")];
    assert_eq!(at(&own, "/login", &body(LOGIN)), Err(Reason::DuplicateCredential));
    let query = "/login?Password=mine";
    assert_eq!(at(&[], query, &body(LOGIN)), Err(Reason::DuplicateCredential));
}

proptest! {
    /// The library reads the same document, with the value in its one place.
    #[test]
    fn outgoing_json_differs_by_the_value_alone(
        before in "[\\PC]{0,8}",
        users in prop::collection::vec(("\\PC{0,6}", any::<i16>()), 0..3),
        pretty in any::<bool>(),
    ) {
        let mut value = json!({"a": before, "auth": {"password": LOGIN, "z": LOGIN}});
        for (name, number) in users {
            value[format!("x{name}")] = number.into();
        }
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
        let Ok(out) = sent("/login", JSON, text.unwrap()) else { return Ok(()) };
        value["auth"]["password"] = value_of(LOGIN).into();
        prop_assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), value);
    }
}
