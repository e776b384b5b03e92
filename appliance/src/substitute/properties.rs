//! Properties of every head.

use http::request::Parts;
use proptest::prelude::*;

use super::{testing::*, *};
use crate::reason::Reason;

const PLACEHOLDERS: [&str; 8] =
    [BEARER, RAW, TOKEN, PASSWORD, USER, EITHER, OTHER_HOST, OTHER_GROUP];

const FIELDS: [&str; 6] =
    ["authorization", "proxy-authorization", "x-special-key", "x-api-key", "dd-api-key", "x-note"];

fn field() -> impl Strategy<Value = String> {
    prop::sample::select(&FIELDS[..]).prop_map(str::to_owned)
}

fn token() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => prop::sample::select(&PLACEHOLDERS[..]).prop_map(str::to_owned),
        1 => "[ -~]{0,12}",
        1 => prop::sample::select(&PLACEHOLDERS[..]).prop_map(|text| format!("{text}{text}")),
    ]
}

fn value() -> impl Strategy<Value = String> {
    let half =
        || prop_oneof![token(), Just("git".to_owned()), Just("x".to_owned()), Just(String::new())];
    prop_oneof![
        token(),
        ("(Bearer|bearer|token|Basic|Digest)", token())
            .prop_map(|(word, token)| format!("{word} {token}")),
        (half(), half()).prop_map(|(user, password)| basic(&format!("{user}:{password}"))),
    ]
}

fn is_secret_in(text: &[u8], placeholder: &str) -> usize {
    let decoded = String::from_utf8_lossy(text).into_owned();
    let inner = decoded.strip_prefix("Basic ").and_then(|encoded| {
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, encoded).ok()
    });
    let plain = inner.map_or(decoded, |bytes| String::from_utf8_lossy(&bytes).into_owned());
    plain.split([' ', ':']).filter(|word| *word == value_of(placeholder)).count()
}

fn occurrences(parts: &Parts, placeholder: &str) -> usize {
    parts.headers.values().map(|value| is_secret_in(value.as_bytes(), placeholder)).sum()
}

proptest! {
    #[test]
    fn a_value_stands_once_for_each_placeholder_and_nowhere_else(
        fields in prop::collection::vec((field(), value()), 0..3)
    ) {
        let rules = rules();
        let fields: Vec<_> = fields.iter().map(|(name, value)| (&**name, &**value)).collect();
        let before = head(&fields);
        let Ok((after, substitution)) = swapped(&rules, before.clone()) else { return Ok(()) };
        let planned: Vec<_> = substitution.placeholders().map(|name| name.as_str()).collect();
        prop_assert_eq!(planned.is_empty(), substitution.is_anonymous());
        for placeholder in PLACEHOLDERS {
            let expected = planned.iter().filter(|name| **name == placeholder).count();
            prop_assert_eq!(occurrences(&after, placeholder), expected);
        }
        prop_assert!(!after.headers.contains_key("proxy-authorization"));
        prop_assert!(!after.headers.contains_key("dd-api-key"));
        let (then, now) = (before.headers.get_all("x-note"), after.headers.get_all("x-note"));
        prop_assert!(then.iter().eq(now.iter()));
    }

    #[test]
    fn no_altered_placeholder_is_ever_swapped(
        at in 0..BEARER.len(),
        byte in 0x20u8..=0xff,
        cut in any::<bool>(),
    ) {
        let mut token = BEARER.as_bytes().to_vec();
        if cut { token.remove(at); } else { token[at] = byte; }
        prop_assume!(token != BEARER.as_bytes() && byte != 0x7f);
        let mut parts = head(&[]);
        let text = [b"Bearer ", &token[..]].concat();
        parts.headers.insert("authorization", http::HeaderValue::from_bytes(&text).unwrap());
        let reason = refused(&rules(), parts);
        prop_assert!(matches!(reason, Reason::ForeignCredential | Reason::CredentialMalformed));
    }

    #[test]
    fn no_head_panics(
        fields in prop::collection::vec(
            (field(), prop::collection::vec(0x20u8..=0x7e, 0..40)), 0..4
        ),
    ) {
        let mut parts = head(&[]);
        for (name, value) in &fields {
            let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            parts.headers.append(name, http::HeaderValue::from_bytes(value).unwrap());
        }
        let _ = examine(&rules(), &parts).map(|_| ());
    }
}
