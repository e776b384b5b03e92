//! A request of an agent: the outgoing request differs from the incoming one only in the places of
//! its placeholders, and holds no other credential.

use std::sync::{Arc, LazyLock};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use cloakroom::{
    policy::{Binding, Policy, is_credential_header, is_credential_query},
    reason::SecretCause,
    secrets::SecretValue,
    substitute::{Substitution, SubstitutionRules, examine},
};
use http::{HeaderName, HeaderValue, Request, request::Parts};
use policy_builder::{Config, api, binding, group};
use zeroize::Zeroizing;

use crate::{
    reader::{Fields, add, fields_of},
    world::policy,
};

/// Takes lines: the method and the target, and the fields. Text behind `~` in a value goes into
/// Basic.
pub(crate) fn any_request(bytes: &[u8]) {
    let Some(before) = head(bytes) else { return };
    let wanted = wanted(&before);
    let Ok(substitution) = examine(&*RULES, &before) else {
        assert!(!is_plainly_good(&before, wanted.as_ref()), "{before:?} is refused");
        return;
    };
    let wanted = wanted.unwrap_or_else(|foreign| panic!("{foreign} goes out, {before:?}"));
    let mut after = before.clone();
    substitution.apply(&mut after, lookup).expect("every value is there");
    assert_eq!(fields_of(&after.headers), wanted.fields);
    assert_eq!(substitution.placeholders().count(), wanted.placeholders, "{before:?}");
    let same = |parts: &Parts| (parts.method.clone(), parts.uri.clone(), parts.version);
    assert_eq!(same(&after), same(&before));
    check_secrets(&after, &substitution);
    check_failure(&before, &substitution);
}

fn head(bytes: &[u8]) -> Option<Parts> {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let first = std::str::from_utf8(lines.next()?).ok()?;
    let (method, target) = first.split_once(' ')?;
    let request = Request::builder().method(method).uri(target).body(()).ok()?;
    let mut parts = request.into_parts().0;
    if !parts.uri.path().starts_with('/') {
        return None;
    }
    for line in lines.take(MOST_FIELDS) {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        let value = line[colon + 1..].trim_ascii();
        let value = match value.strip_prefix(b"~") {
            Some(pair) => HeaderValue::try_from(format!("Basic {}", STANDARD.encode(pair))),
            None => HeaderValue::from_bytes(value),
        };
        parts.headers.append(name, value.ok()?);
    }
    Some(parts)
}

/// The expected outgoing request.
struct Wanted {
    fields: Fields,
    placeholders: usize,
}

/// Returns the expected fields, or the place of a credential that is none of ours.
fn wanted(head: &Parts) -> Result<Wanted, String> {
    let mut wanted = Wanted { fields: Fields::new(), placeholders: 0 };
    for (name, value) in &head.headers {
        let (name, value) = (name.as_str(), value.as_bytes());
        if name == "proxy-authorization" {
            continue;
        }
        let swapped = swapped(name, value);
        let plain = folded(name) == "x-plain-key" || !is_credential_header(name.as_bytes());
        if swapped.is_none() && (!plain || BOUND.contains(&name)) || name == "cookie" {
            return Err(format!("{name}: {}", value.escape_ascii()));
        }
        let (value, placeholders) = swapped.unwrap_or_else(|| (value.to_vec(), 0));
        if placeholders > 0 && wanted.fields.contains_key(name) {
            return Err(format!("a second {name}"));
        }
        add(&mut wanted.fields, name, &value);
        wanted.placeholders += placeholders;
    }
    let query = head.uri.query().unwrap_or_default();
    for pair in query.split(['&', ';']) {
        let name = pair.split('=').next().unwrap_or_default();
        let name = String::from_utf8_lossy(&decoded(name)).into_owned();
        let bare = name.split('[').next().unwrap_or_default();
        let plain = folded(bare).replace('-', "") == "plainsignature";
        if is_credential_query(&name) && !plain {
            return Err(format!("{name} in the query"));
        }
    }
    Ok(wanted)
}

/// Returns a name as servers read it that do not tell `_` or `.` from `-`.
fn folded(name: &str) -> String {
    let fold =
        |char: char| if char.is_ascii_alphanumeric() { char.to_ascii_lowercase() } else { '-' };
    name.chars().map(fold).collect()
}

/// Returns a field with its placeholders replaced, and their number.
fn swapped(name: &str, value: &[u8]) -> Option<(Vec<u8>, usize)> {
    let text = std::str::from_utf8(value).ok()?;
    let words = text.split_once(' ');
    match (name, words) {
        ("authorization", Some((word, BEARER))) if word.eq_ignore_ascii_case("bearer") => {
            Some((format!("Bearer {}", value_of(BEARER)).into_bytes(), 1))
        }
        ("authorization", Some((word, TOKEN))) if word.eq_ignore_ascii_case("token") => {
            Some((format!("token {}", value_of(TOKEN)).into_bytes(), 1))
        }
        ("authorization", Some((word, pair))) if word.eq_ignore_ascii_case("basic") => {
            let pair = String::from_utf8(STANDARD.decode(pair).ok()?).ok()?;
            let (user, password) = pair.split_once(':')?;
            let (user, password, count) = basic(user, password)?;
            let pair = STANDARD.encode(format!("{user}:{password}"));
            Some((format!("Basic {pair}").into_bytes(), count))
        }
        ("x-special-key", _) if text == RAW => Some((value_of(RAW).into_bytes(), 1)),
        _ => None,
    }
}

/// Returns the halves of Basic with their placeholders replaced.
fn basic(user: &str, password: &str) -> Option<(String, String, usize)> {
    let good_user = [(USER, "x"), (EITHER, "")];
    let good_password = [(PASSWORD, "git"), (EITHER, "")];
    let beside = |list: &[(&str, &str)], half: &str| {
        list.iter()
            .find(|(placeholder, _)| *placeholder == half)
            .map(|(_, beside)| (*beside).to_owned())
    };
    match (beside(&good_user, user), beside(&good_password, password)) {
        (Some(_), Some(_)) if user == password => None,
        (Some(_), Some(_)) => Some((value_of(user), value_of(password), 2)),
        (Some(text), None) if password == text || password.is_empty() => {
            Some((value_of(user), password.to_owned(), 1))
        }
        (None, Some(text)) if user == text || user.is_empty() => {
            Some((user.to_owned(), value_of(password), 1))
        }
        _ => None,
    }
}

/// Returns whether nothing at all is wrong: one good credential, a listed method, a path of
/// letters.
fn is_plainly_good(head: &Parts, wanted: Result<&Wanted, &String>) -> bool {
    let letters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let rest = head.uri.path().strip_prefix("/v1/");
    let path = rest.is_some_and(|rest| rest.bytes().all(letters));
    let swaps = head
        .headers
        .iter()
        .filter(|(name, value)| swapped(name.as_str(), value.as_bytes()).is_some());
    head.method == "POST"
        && path
        && !head.headers.contains_key("connection")
        && wanted.is_ok()
        && swaps.count() == 1
}

/// Checks that the value of each placeholder stands there as often as the placeholder did, and no
/// other value.
fn check_secrets(head: &Parts, substitution: &Substitution) {
    let mut text = Vec::new();
    for value in head.headers.values() {
        text.extend_from_slice(value.as_bytes());
        let pair = value.as_bytes().strip_prefix(b"Basic ");
        text.extend(pair.and_then(|pair| STANDARD.decode(pair).ok()).unwrap_or_default());
        text.push(b'\n');
    }
    let text = String::from_utf8_lossy(&text);
    for placeholder in [BEARER, RAW, TOKEN, PASSWORD, USER, EITHER, OTHER_HOST, OTHER_GROUP] {
        let planned = substitution.placeholders().filter(|one| one.as_str() == placeholder).count();
        assert_eq!(text.matches(&value_of(placeholder)).count(), planned, "{placeholder}");
    }
}

/// Checks that the head stays as it was where a value is missing.
fn check_failure(before: &Parts, substitution: &Substitution) {
    for missing in 0..substitution.bindings().count() {
        let (mut head, mut asked) = (before.clone(), 0);
        let lookup = |binding: &Binding| {
            asked += 1;
            if asked > missing { Err(SecretCause::VaultDenied) } else { lookup(binding) }
        };
        assert_eq!(substitution.apply(&mut head, lookup), Err(SecretCause::VaultDenied));
        assert_eq!(head.headers, before.headers, "half a request");
    }
}

fn lookup(binding: &Binding) -> Result<Arc<SecretValue>, SecretCause> {
    let value = value_of(binding.placeholder.as_str()).into_bytes();
    let value = SecretValue::load(Zeroizing::new(value), binding.min_value_bytes);
    value.map(Arc::new).map_err(|_| SecretCause::ValueInvalid)
}

/// Returns the value of a placeholder: distinct, and with bytes that no input of this length holds
/// by chance.
fn value_of(placeholder: &str) -> String {
    format!("<value/of^{}>", placeholder.to_lowercase())
}

/// Returns the meaning of a name in a query to a server: `+` is a space.
fn decoded(name: &str) -> Vec<u8> {
    let (mut rest, mut decoded) = (name.as_bytes(), Vec::new());
    while let Some((&first, after)) = rest.split_first() {
        let pair = after.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        let hex = pair.filter(|pair| pair.bytes().all(|byte| byte.is_ascii_hexdigit()));
        match hex.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) if first == b'%' => {
                decoded.push(byte);
                rest = &after[2..];
            }
            _ => {
                decoded.push(if first == b'+' { b' ' } else { first });
                rest = after;
            }
        }
    }
    decoded
}

static RULES: LazyLock<SubstitutionRules> = LazyLock::new(|| {
    let policy = &POLICY;
    SubstitutionRules::new(policy, &policy.groups[0].name, &policy.apis[0])
});

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let bearer = "header authorization bearer";
    let key = |placeholder: &str, place: &str, secret: &str| {
        binding("agents", placeholder, &[place], secret)
    };
    let halves = ["basic user", "basic password"];
    let first = api("first", &["first.example"])
        .set("methods", ["GET", "POST"])
        .set("paths", ["/v1/*"])
        .set("plain", ["header x-plain-key", "query plain_signature"])
        .set("anonymous", ["GET /api/hello"])
        .with(key(BEARER, bearer, "file:a"))
        .with(key(RAW, "header x-special-key raw", "file:b"))
        .with(key(TOKEN, "header authorization token", "file:c"))
        .with(key(PASSWORD, "basic password", "file:d").set("basic_user", "git"))
        .with(key(USER, "basic user", "file:e").set("basic_password", "x"))
        .with(binding("agents", EITHER, &halves, "file:f"))
        .with(binding("others", OTHER_GROUP, &[bearer], "file:g"));
    let file = Config::of_rules()
        .with(group("agents", "a0", &["192.0.2.0/25"]))
        .with(group("others", "b0", &["192.0.2.128/25"]))
        .with(first)
        .with(api("second", &["second.example"]).with(key(OTHER_HOST, bearer, "file:h")));
    policy(&file)
});

const BEARER: &str = "OPENAI_API_KEY";
const RAW: &str = "X_API_KEY_PLACEHOLDER";
const TOKEN: &str = "GITHUB_TOKEN";
const PASSWORD: &str = "GIT_PASSWORD";
const USER: &str = "TWILIO_ACCOUNT";
const EITHER: &str = "EITHER_HALF";
const OTHER_HOST: &str = "ANTHROPIC_API_KEY";
const OTHER_GROUP: &str = "OTHER_GROUPS_KEY";
/// The fields of bindings, each of which holds a credential whatever its name.
const BOUND: [&str; 2] = ["authorization", "x-special-key"];
const MOST_FIELDS: usize = 16;
