//! Placeholders among the subprotocols that a WebSocket's handshake offers.

use std::sync::Arc;

use http::request::Parts;
use proptest::prelude::*;
use zeroize::Zeroizing;

use super::{testing::*, *};
use crate::{
    policy::{Binding, Place, SubprotocolPrefix},
    reason::{Reason, SecretCause},
    secrets::SecretValue,
};

const PREFIX: &str = "openai-insecure-api-key.";

/// Rules by which the key of the first binding may stand in a subprotocol too.
fn rules() -> SubstitutionRules {
    rules_with(|api| {
        let mut own = api.bindings[0].as_ref().clone();
        own.places.push(Place::Subprotocol(SubprotocolPrefix::parse(PREFIX).unwrap()));
        api.bindings[0] = own.into();
    })
}

fn offered(offers: &str) -> Parts {
    head(&[("upgrade", "websocket"), ("sec-websocket-protocol", offers)])
}

#[test]
fn a_placeholder_behind_its_prefix_alone_becomes_its_value() {
    let value = value_of(BEARER);
    for (offers, expected) in [
        ("openai-insecure-api-key.OPENAI_API_KEY", format!("{PREFIX}{value}")),
        (
            "realtime,  openai-insecure-api-key.OPENAI_API_KEY ,openai-project.proj_1",
            format!("realtime,  {PREFIX}{value} ,openai-project.proj_1"),
        ),
    ] {
        let (parts, substitution) = swapped(&rules(), offered(offers)).unwrap();
        assert_eq!(parts.headers["sec-websocket-protocol"], expected);
        assert!(parts.headers["sec-websocket-protocol"].is_sensitive());
        assert_eq!(substitution.placeholders().count(), 1);
    }
}

#[test]
fn anything_else_like_a_key_in_offers_is_refused() {
    use Reason::{
        DuplicateCredential, ForeignCredential, PlaceholderWrongHost, PlaceholderWrongPlace,
    };
    for (offers, reason) in [
        ("openai-insecure-api-key.sk-mine", ForeignCredential),
        ("realtime, OpenAI-Insecure-API-Key.sk-mine", ForeignCredential),
        ("openai-insecure-api-key.", ForeignCredential),
        ("openai-insecure-api-key.OPENAI_API_KEYx", ForeignCredential),
        ("openai-insecure-api-key.openai_api_key", ForeignCredential),
        ("openai-insecure-api-key.OTHER_GROUPS_KEY", ForeignCredential),
        ("base64url.bearer.authorization.k8s.io.bWluZQ", ForeignCredential),
        ("token, mine", ForeignCredential),
        ("openai-insecure-api-key.ANTHROPIC_API_KEY", PlaceholderWrongHost),
        ("openai-insecure-api-key.X_API_KEY_PLACEHOLDER", PlaceholderWrongPlace),
        ("OpenAI-insecure-api-key.OPENAI_API_KEY", PlaceholderWrongPlace),
        ("OPENAI_API_KEY", PlaceholderWrongPlace),
        ("realtime, other.OPENAI_API_KEY", PlaceholderWrongPlace),
        (
            "openai-insecure-api-key.OPENAI_API_KEY, openai-insecure-api-key.sk-mine",
            DuplicateCredential,
        ),
        (
            "openai-insecure-api-key.OPENAI_API_KEY, x.openai-insecure-api-key.OPENAI_API_KEY",
            DuplicateCredential,
        ),
    ] {
        assert_eq!(refused(&rules(), offered(offers)), reason, "{offers}");
    }
}

#[test]
fn only_a_handshake_with_one_offer_field_has_the_place() {
    let offer = format!("{PREFIX}{BEARER}");
    let plain = head(&[("sec-websocket-protocol", &offer)]);
    assert_eq!(refused(&rules(), plain), Reason::PlaceholderWrongPlace);
    let two = [
        ("upgrade", "websocket"),
        ("sec-websocket-protocol", &*offer),
        ("sec-websocket-protocol", "a"),
    ];
    assert_eq!(refused(&rules(), head(&two)), Reason::PlaceholderWrongPlace);
    let bound_elsewhere = super::testing::rules();
    assert_eq!(refused(&bound_elsewhere, offered(&offer)), Reason::PlaceholderWrongPlace);
}

#[test]
fn a_placeholder_may_be_in_a_field_and_an_offer() {
    let bearer = format!("Bearer {BEARER}");
    let mut parts = offered(&format!("{PREFIX}{BEARER}"));
    parts.headers.insert("authorization", bearer.parse().unwrap());
    let (parts, _) = swapped(&rules(), parts).unwrap();
    let value = value_of(BEARER);
    assert_eq!(parts.headers["authorization"], format!("Bearer {value}"));
    assert_eq!(parts.headers["sec-websocket-protocol"], format!("{PREFIX}{value}"));
}

#[test]
fn a_value_that_is_no_token_is_not_put_in() {
    for text in ["secret-with-a,comma-in-it", "secret/with:a-slash", "secret=with=equals"] {
        let mut parts = offered(&format!("{PREFIX}{BEARER}"));
        let substitution = examine(&rules(), &parts).unwrap();
        let before = parts.headers.clone();
        let value = |_: &Binding| {
            let bytes = Zeroizing::new(text.as_bytes().to_vec());
            Ok(Arc::new(SecretValue::load(bytes, 16).ok().unwrap()))
        };
        assert_eq!(substitution.apply(&mut parts, value), Err(SecretCause::ValueInvalid), "{text}");
        assert_eq!(parts.headers, before);
    }
}

proptest! {
    /// For any offers, the request goes out as it came in, with the value in the place of each
    /// planned placeholder, and no foreign credential goes out with it.
    #[test]
    fn offers_are_the_same_but_for_the_value(
        offers in prop::collection::vec(prop_oneof![
            Just(format!("{PREFIX}{BEARER}")),
            Just(format!("{PREFIX}mine")),
            Just(BEARER.to_owned()),
            "[a-z.]{1,12}",
        ], 1..4),
        space in " {0,2}",
    ) {
        let text = offers.join(&format!("{space},{space}"));
        let Ok((after, substitution)) = swapped(&rules(), offered(&text)) else { return Ok(()) };
        let after = after.headers["sec-websocket-protocol"].to_str().unwrap();
        prop_assert_eq!(after.matches(&value_of(BEARER)).count(), substitution.placeholders().count());
        prop_assert_eq!(after.replace(&value_of(BEARER), BEARER), text);
        prop_assert!(!after.contains("mine"));
    }
}
