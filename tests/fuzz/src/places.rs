//! A request of an agent with a placeholder in a cookie or in its body: another reader understands
//! the same before and after, except for the value in its one place, and all other bytes are the
//! same.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use cloakroom::{
    policy::{Binding, Policy},
    reason::SecretCause,
    secrets::SecretValue,
    substitute::{SubstitutionRules, examine, examine_whole},
};
use http::{HeaderValue, Request, Version, header::COOKIE, request::Parts};
use policy_builder::{Config, api, binding, group};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::world::policy;

/// Takes a body: the first byte says what the others are, Cookie fields in lines, JSON, or a form.
pub(crate) fn any_place(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    // `@` stands for the placeholder, which the fuzzer would not find by chance.
    let text: Vec<u8> = rest
        .iter()
        .flat_map(
            |byte| if *byte == b'@' { PLACEHOLDER.as_bytes() } else { std::slice::from_ref(byte) },
        )
        .copied()
        .collect();
    match kind % 4 {
        0 => cookies(&text, Version::HTTP_11),
        1 => cookies(&text, Version::HTTP_2),
        2 => json(text),
        _ => form(text),
    }
}

fn head(path: &str, kind: &str) -> Parts {
    let request = Request::builder().method("POST").uri(path).header("content-type", kind);
    request.body(()).expect("a request").into_parts().0
}

/// Returns the body that goes out, if one does, and whether the placeholder was replaced.
fn sent(path: &str, kind: &str, body: &[u8]) -> Option<(Bytes, bool)> {
    let mut parts = head(path, kind);
    let before = Bytes::copy_from_slice(body);
    let plan = examine_whole(&*RULES, &parts, &before).ok()?;
    assert_eq!(
        plan.apply(&mut parts.clone(), |_| Err(SecretCause::VaultDenied)).is_err(),
        !plan.is_anonymous()
    );
    let after = plan.apply(&mut parts, lookup).expect("every value is there");
    let after = after.expect("the body was looked at");
    let swapped = plan.placeholders().count();
    assert!(swapped <= 1 && (swapped == 1 || after == before));
    Some((after, swapped == 1))
}

/// Checks that only one place differs.
fn differs_once(before: &[u8], after: &[u8], value: &[u8]) {
    let common = before.iter().zip(after).take_while(|(one, other)| one == other).count();
    let fits = (0..=common).any(|at| {
        let rest = after[at..].strip_prefix(value);
        rest.is_some_and(|rest| before[at..].ends_with(rest) && before.len() > at + rest.len())
    });
    assert!(fits, "{} became {}", before.escape_ascii(), after.escape_ascii());
}

fn json(body: Vec<u8>) {
    let Some((after, swapped)) = sent("/login", "application/json", &body) else {
        return check_json_refusal(&body);
    };
    if !swapped {
        return;
    }
    let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).expect("JSON");
    let mut wanted = read(&body);
    let place = wanted.pointer_mut("/auth/0/password").expect("the place");
    assert_eq!(place, PLACEHOLDER);
    *place = VALUE.into();
    assert_eq!(read(&after), wanted);
    differs_once(&body, &after, format!("{:?}", VALUE).as_bytes());
}

/// Checks that a placeholder which is plainly in its place is not refused.
fn check_json_refusal(body: &[u8]) {
    let plain = format!("{{\"auth\":[{{\"password\":\"{PLACEHOLDER}\"}}]}}");
    assert_ne!(body, plain.as_bytes(), "refused");
}

fn form(body: Vec<u8>) {
    let Some((after, swapped)) = sent("/token", "application/x-www-form-urlencoded", &body) else {
        return;
    };
    let pairs = |bytes: &[u8]| -> Vec<(String, String)> {
        let pairs = bytes.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty());
        let halves = |pair: &[u8]| {
            let at = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
            (decoded(&pair[..at]), decoded(pair.get(at + 1..).unwrap_or_default()))
        };
        pairs.map(halves).collect()
    };
    // Some servers separate pairs at `;`, too. None takes a name that holds one for another name.
    let names = body.split(|byte| b"&;".contains(byte)).map(|pair| {
        let name = decoded(pair.split(|byte| *byte == b'=').next().unwrap_or_default());
        let name = name.split('[').next().unwrap_or_default();
        let letters = name.chars().filter(char::is_ascii_alphanumeric);
        letters.map(|char| char.to_ascii_lowercase()).collect::<String>()
    });
    let named = names.filter(|name| name == "clientsecret").count();
    assert_eq!(named, usize::from(swapped), "a credential beside it");
    let (before, now) = (pairs(&body), pairs(&after));
    assert_eq!(before.len(), now.len());
    for (one, other) in before.iter().zip(&now) {
        let own = swapped && one.0 == "client_secret";
        assert!(!own || (one.1 == PLACEHOLDER && other.1 == VALUE), "{one:?} became {other:?}");
        assert!(own || one == other, "{one:?} became {other:?}");
    }
}

fn cookies(text: &[u8], version: Version) {
    let mut request = Request::builder().version(version).uri("/x");
    for field in text.split(|byte| *byte == b'\n') {
        let Ok(value) = HeaderValue::from_bytes(field) else { return };
        request = request.header(COOKIE, value);
    }
    let Ok(request) = request.body(()) else { return };
    let mut parts = request.into_parts().0;
    let all = |parts: &Parts| -> Vec<Vec<u8>> {
        parts.headers.get_all(COOKIE).iter().map(|value| value.as_bytes().to_vec()).collect()
    };
    let before = all(&parts);
    let Ok(plan) = examine(&*RULES, &parts) else { return };
    plan.apply(&mut parts, lookup).expect("every value is there");
    let now = all(&parts);
    assert!(version == Version::HTTP_2 || now.len() == 1, "two fields");
    let joined = |fields: &[Vec<u8>]| fields.join(&b"; "[..]);
    // Reads the pairs as a lenient server does: separated by `;` and by `,`, without quotes and
    // spaces.
    let pairs = |fields: &[Vec<u8>]| -> Vec<(Vec<u8>, Vec<u8>)> {
        let text = joined(fields);
        let pairs = text.split(|byte| b";,".contains(byte));
        let halves = |pair: &[u8]| {
            let at = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
            let bare = |half: &[u8]| half.trim_ascii().to_vec();
            (bare(&pair[..at]), bare(pair.get(at + 1..).unwrap_or_default()))
        };
        pairs.map(halves).collect()
    };
    let (was, is) = (pairs(&before), pairs(&now));
    assert_eq!(was.len(), is.len());
    let swapped = plan.placeholders().count();
    let own = was.iter().filter(|(name, _)| name.eq_ignore_ascii_case(b"session")).count();
    assert_eq!(own, swapped, "{}", joined(&before).escape_ascii());
    for (one, other) in was.iter().zip(&is) {
        let own = one.0 == b"session";
        assert!(!own || (one.1 == PLACEHOLDER.as_bytes() && other.1 == VALUE.as_bytes()));
        assert!(own || one == other);
    }
}

fn lookup(binding: &Binding) -> Result<Arc<SecretValue>, SecretCause> {
    let value = SecretValue::load(Zeroizing::new(VALUE.into()), binding.min_value_bytes);
    value.map(Arc::new).map_err(|_| SecretCause::ValueInvalid)
}

/// Returns the meaning of half a pair to a server.
fn decoded(text: &[u8]) -> String {
    let (mut rest, mut decoded) = (text, Vec::new());
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
    String::from_utf8_lossy(&decoded).into_owned()
}

static RULES: LazyLock<SubstitutionRules> = LazyLock::new(|| {
    let policy = &POLICY;
    SubstitutionRules::new(policy, &policy.groups[0].name, &policy.apis[0])
});

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let json = "json /auth/0/password in POST /login";
    let places = ["cookie session", json, "form client_secret in POST /token"];
    let first = api("first", &["first.example"])
        .set("keep_cookies", true)
        .set("anonymous", true)
        .with(binding("agents", PLACEHOLDER, &places, "file:a"));
    let agents = group("agents", "a0", &["192.0.2.0/25"]);
    policy(&Config::of_rules().with(agents).with(first))
});

const PLACEHOLDER: &str = "PLACEHOLDER";
/// A value with bytes that no input of this length holds by chance, and that each format takes as
/// they are or escapes in its own way.
/// or escapes in its own way.
const VALUE: &str = "the/value+of&the=one%place";
