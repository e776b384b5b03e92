//! Placeholders in the query or in the path.

use std::sync::Arc;

use http::{Method, request::Parts};
use proptest::prelude::*;
use zeroize::Zeroizing;

use super::{testing::*, *};
use crate::{
    policy::{Binding, PathSlot, Place, fold_query, query_pairs},
    reason::{Reason, SecretCause},
    secrets::SecretValue,
};

const GEMINI: &str = "GEMINI_API_KEY";
const WEATHER: &str = "WEATHER_ID";

/// Rules with two placeholders in the query, one of them under a name that is a credential's only
/// here.
fn rules() -> SubstitutionRules {
    rules_with(|api| {
        for (at, placeholder, name) in [(0, GEMINI, "key"), (1, WEATHER, "appid")] {
            let mut own = api.bindings[at].as_ref().clone();
            own.placeholder = crate::policy::Placeholder(placeholder.into());
            own.places.push(Place::Query { name: name.into() });
            api.bindings[at] = own.into();
        }
    })
}

fn asked(query: &str) -> Parts {
    head_to(Method::POST, &format!("/v1/chat?{query}"), &[])
}

#[track_caller]
fn query_sent(query: &str) -> String {
    let (parts, _) = swapped(&rules(), asked(query)).unwrap_or_else(|no| panic!("{query}: {no:?}"));
    assert_eq!(parts.uri.path(), "/v1/chat");
    parts.uri.query().unwrap().to_owned()
}

#[test]
fn a_placeholder_under_its_query_name_alone_becomes_its_value() {
    let (key, id) = (value_of(GEMINI), value_of(WEATHER));
    for (query, expected) in [
        ("key=GEMINI_API_KEY", format!("key={key}")),
        ("a=%20+b&key=GEMINI_API_KEY&&c", format!("a=%20+b&key={key}&&c")),
        ("k%65y=GEMINI%5fAPI_KEY&x=?/", format!("k%65y={key}&x=?/")),
        ("appid=WEATHER_ID&key=GEMINI_API_KEY", format!("appid={id}&key={key}")),
        ("a=b;c&key=GEMINI_API_KEY", format!("a=b;c&key={key}")),
    ] {
        assert_eq!(query_sent(query), expected);
    }
}

#[test]
fn a_value_in_the_query_is_percent_encoded() {
    let every: Vec<u8> = (0x21..=0x7e).collect();
    let mut parts = asked("z=1&key=GEMINI_API_KEY&a=2");
    let substitution = examine(&rules(), &parts).unwrap();
    let value =
        |_: &Binding| Ok(Arc::new(SecretValue::load(Zeroizing::new(every.clone()), 16).unwrap()));
    substitution.apply(&mut parts, value).unwrap();
    let query = parts.uri.query().unwrap();
    assert!(query.starts_with("z=1&key=%21%22%23%24%25%26%27%28%29%2A%2B%2C-.%2F0"), "{query}");
    let pairs: Vec<_> = query_pairs(query).collect();
    let every = String::from_utf8(every).unwrap();
    assert_eq!(
        pairs,
        [("z", "1"), ("key", &*every), ("a", "2")].map(|(n, v)| (n.into(), v.into()))
    );
}

#[test]
fn an_absent_value_leaves_the_target_unchanged() {
    let mut parts = asked("appid=WEATHER_ID&key=GEMINI_API_KEY");
    let before = parts.clone();
    let substitution = examine(&rules(), &parts).unwrap();
    let only_one = |binding: &Binding| match binding.placeholder.as_str() {
        WEATHER => lookup(binding),
        _ => Err(SecretCause::VaultSealed),
    };
    assert_eq!(substitution.apply(&mut parts, only_one), Err(SecretCause::VaultSealed));
    assert_eq!(parts.uri, before.uri);
}

#[test]
fn a_target_that_outgrows_a_uri_is_not_sent() {
    let padding = "a".repeat(60_000);
    let mut parts = asked(&format!("key=GEMINI_API_KEY&pad={padding}"));
    let substitution = examine(&rules(), &parts).unwrap();
    let long = |_: &Binding| {
        Ok(Arc::new(SecretValue::load(Zeroizing::new(vec![b'%'; 4096]), 16).unwrap()))
    };
    assert_eq!(substitution.apply(&mut parts, long), Err(SecretCause::ValueInvalid));
}

#[test]
fn whatever_servers_could_read_in_two_ways_is_refused() {
    use Reason::{
        DuplicateCredential, ForeignCredential, PlaceholderWrongHost, PlaceholderWrongPlace,
    };
    for (query, reason) in [
        ("key=mine", ForeignCredential),
        ("appid=mine", ForeignCredential),
        ("APPID=mine", ForeignCredential),
        ("app_id[]=mine", ForeignCredential),
        ("key=", ForeignCredential),
        ("key=GEMINI_API_KEYx", ForeignCredential),
        ("key=gemini_api_key", ForeignCredential),
        ("key=GEMINI_API_KEY%20x", ForeignCredential),
        ("key=OTHER_GROUPS_KEY", ForeignCredential),
        ("key=ANTHROPIC_API_KEY", PlaceholderWrongHost),
        ("key=WEATHER_ID", PlaceholderWrongPlace),
        ("appid=GEMINI_API_KEY", PlaceholderWrongPlace),
        ("Key=GEMINI_API_KEY", PlaceholderWrongPlace),
        ("key[]=GEMINI_API_KEY", PlaceholderWrongPlace),
        ("api_key=GEMINI_API_KEY", PlaceholderWrongPlace),
        ("a=b;key=GEMINI_API_KEY", PlaceholderWrongPlace),
        ("key=GEMINI_API_KEY;a=b", PlaceholderWrongPlace),
        ("key=GEMINI_API_KEY&key=GEMINI_API_KEY", DuplicateCredential),
        ("key=GEMINI_API_KEY&k%65y=GEMINI_API_KEY", DuplicateCredential),
        ("key=GEMINI_API_KEY&key=mine", DuplicateCredential),
        ("key=mine&key=GEMINI_API_KEY", DuplicateCredential),
        ("key=GEMINI_API_KEY&KEY=mine", DuplicateCredential),
        ("key=GEMINI_API_KEY&key[]=GEMINI_API_KEY", DuplicateCredential),
        ("key=GEMINI_API_KEY&a=b;key=GEMINI_API_KEY", DuplicateCredential),
        ("key=GEMINI_API_KEY&access_token=mine", DuplicateCredential),
        ("key=GEMINI_API_KEY&appid=mine", DuplicateCredential),
    ] {
        assert_eq!(refused(&rules(), asked(query)), reason, "{query}");
    }
}

#[test]
fn one_placeholder_stands_in_a_field_and_in_the_query() {
    let text = format!("Bearer {GEMINI}");
    let parts = head_to(Method::POST, "/v1/chat?key=GEMINI_API_KEY", &[("authorization", &text)]);
    let (parts, substitution) = swapped(&rules(), parts).unwrap();
    assert_eq!(parts.headers["authorization"], format!("Bearer {}", value_of(GEMINI)));
    assert_eq!(parts.uri.query(), Some(&*format!("key={}", value_of(GEMINI))));
    assert_eq!(substitution.placeholders().count(), 2);
}

#[test]
fn a_name_no_binding_of_this_api_lists_is_none() {
    let plain = super::testing::rules();
    let text = format!("/v1/chat?key={BEARER}");
    assert_eq!(refused(&plain, head_to(Method::POST, &text, &[])), Reason::PlaceholderWrongPlace);
    let parts = head_to(Method::POST, "/v1/chat?appid=anything", &[("x-special-key", RAW)]);
    assert!(swapped(&plain, parts).is_ok());
}

/// Rules with a bot's token in the path, beside the places of [`rules`].
fn with_a_path() -> SubstitutionRules {
    rules_with(|api| {
        let mut own = api.bindings[0].as_ref().clone();
        own.places.push(Place::Path(PathSlot::parse("/bot{}/").unwrap()));
        own.places.push(Place::Query { name: "key".into() });
        api.bindings[0] = own.into();
    })
}

fn to(target: &str) -> Parts {
    head_to(Method::POST, target, &[])
}

#[test]
fn a_placeholder_in_its_path_place_becomes_its_value() {
    let value = value_of(BEARER);
    for (target, expected) in [
        ("/botOPENAI_API_KEY/sendMessage", format!("/bot{value}/sendMessage")),
        ("/botOPENAI_API_KEY/", format!("/bot{value}/")),
        ("/botOPENAI_API_KEY/a%20b?c=%2e", format!("/bot{value}/a%20b?c=%2e")),
        (
            "/botOPENAI_API_KEY/a?x=1&key=OPENAI_API_KEY&y",
            format!("/bot{value}/a?x=1&key={value}&y"),
        ),
    ] {
        let (parts, _) =
            swapped(&with_a_path(), to(target)).unwrap_or_else(|no| panic!("{target}: {no:?}"));
        assert_eq!(parts.uri.path_and_query().unwrap().as_str(), expected);
    }
    let bearer = format!("Bearer {BEARER}");
    let elsewhere = head_to(Method::POST, "/v1/robot/", &[("authorization", &bearer)]);
    assert!(swapped(&with_a_path(), elsewhere).is_ok());
}

#[test]
fn a_record_shows_placeholders_of_the_group_alone_in_places() {
    for (path, shown) in [
        ("/botOPENAI_API_KEY/send", "/botOPENAI_API_KEY/send"),
        ("/bot123:abc/send/botx/", "/bot{}/send/botx/"),
        ("/BOT123:abc/send", "/BOT{}/send"),
        ("/bot%4fPENAI_API_KEY/send", "{}"),
        ("/x/../bot123:abc/", "{}"),
        ("//bot123:abc/", "{}"),
        ("/v1/chat", "/v1/chat"),
    ] {
        assert_eq!(with_a_path().shown_path(path), shown, "{path}");
    }
    assert_eq!(super::testing::rules().shown_path("/x/../bot123:abc/"), "/x/../bot123:abc/");
}

#[test]
fn groups_share_the_places_of_an_api() {
    let rules = rules_with(|api| {
        for at in [0, api.bindings.len() - 1] {
            let mut own = api.bindings[at].as_ref().clone();
            own.places = ["/bot{}/", "/file/bot{}/"]
                .map(|place| Place::Path(PathSlot::parse(place).unwrap()))
                .to_vec();
            api.bindings[at] = own.into();
        }
    });
    for target in ["/botOPENAI_API_KEY/x", "/file/botOPENAI_API_KEY/x"] {
        assert!(swapped(&rules, to(target)).is_ok(), "{target}");
    }
    assert_eq!(refused(&rules, to("/botOTHER_GROUPS_KEY/x")), Reason::ForeignCredential);
}

#[test]
fn a_value_in_the_path_is_always_one_segment() {
    let mut parts = to("/botOPENAI_API_KEY/a?b");
    let substitution = examine(&with_a_path(), &parts).unwrap();
    let value = |_: &Binding| {
        Ok(Arc::new(
            SecretValue::load(Zeroizing::new(b"123:a/../b?c#d%2f;e".to_vec()), 16).unwrap(),
        ))
    };
    substitution.apply(&mut parts, value).unwrap();
    let expected = "/bot123%3Aa%2F..%2Fb%3Fc%23d%252f%3Be/a?b";
    assert_eq!(parts.uri.path_and_query().unwrap().as_str(), expected);
}

#[test]
fn a_path_that_servers_read_in_two_ways_is_refused() {
    use Reason::{
        DuplicateCredential, ForeignCredential, PathAmbiguous, PlaceholderMissing,
        PlaceholderWrongHost, PlaceholderWrongPlace,
    };
    for (target, reason) in [
        ("/botmine/x", ForeignCredential),
        ("/BOTmine/x", ForeignCredential),
        ("/botmine", ForeignCredential),
        ("/botOPENAI_API_KEYx/x", ForeignCredential),
        ("/botOTHER_GROUPS_KEY/x", ForeignCredential),
        ("/botANTHROPIC_API_KEY/x", PlaceholderWrongHost),
        ("/botX_API_KEY_PLACEHOLDER/x", PlaceholderWrongPlace),
        ("/botOPENAI_API_KEY", PlaceholderWrongPlace),
        ("/BotOPENAI_API_KEY/x", PlaceholderWrongPlace),
        ("/bot/x", PlaceholderMissing),
        ("//botmine/x", PathAmbiguous),
        ("/x/../botmine/x", PathAmbiguous),
        ("/./botmine/x", PathAmbiguous),
        ("/%62otmine/x", PathAmbiguous),
        ("/bot%6dine/x", PathAmbiguous),
        ("/botmine%2fx", PathAmbiguous),
        ("/x;a/%2e%2e/botmine/", PathAmbiguous),
        ("/%EF%BD%82otmine/x", PathAmbiguous),
        ("/botOPENAI_API_KEY/x?key=mine", DuplicateCredential),
        ("/botmine/x?key=OPENAI_API_KEY", DuplicateCredential),
    ] {
        assert_eq!(refused(&with_a_path(), to(target)), reason, "{target}");
    }
}

fn piece() -> impl Strategy<Value = String> {
    let name =
        prop::sample::select(vec!["key", "KEY", "k%65y", "appid", "key[]", "a", "token", ""]);
    let value =
        prop::sample::select(vec![GEMINI, WEATHER, BEARER, "GEMINI%5FAPI_KEY", "mine", "", "a;b"]);
    let mark = prop::sample::select(vec!["=", "=", "=", "==", ""]);
    (name, mark, value).prop_map(|(name, mark, value)| format!("{name}{mark}{value}"))
}

proptest! {
    /// However a server splits the query, at `&` alone or at `;` too, it reads the same pairs, with
    /// each value in the place of its placeholder, once, under its own name, and nowhere else.
    #[test]
    fn a_query_is_the_same_but_for_the_values(
        pieces in prop::collection::vec(piece(), 0..5),
        mark in prop::sample::select(vec!["&", "&", ";"]),
    ) {
        let query = pieces.join(mark);
        let Ok((after, substitution)) = swapped(&rules(), asked(&query)) else { return Ok(()) };
        let after = after.uri.query().unwrap();
        let back = |text: &str| text.replace(&value_of(GEMINI), GEMINI).replace(&value_of(WEATHER), WEATHER);
        let before: Vec<_> = query_pairs(&query).collect();
        let now: Vec<_> = query_pairs(after).map(|(name, value)| (name, back(&value))).collect();
        prop_assert!(before.iter().map(|(n, v)| (&**n, &**v)).eq(now.iter().map(|(n, v)| (&**n, &**v))));
        for (placeholder, name) in [(GEMINI, "key"), (WEATHER, "appid")] {
            let value = value_of(placeholder);
            let planned = substitution.placeholders().filter(|one| one.as_str() == placeholder).count();
            prop_assert_eq!(after.matches(&value).count(), planned);
            let under = query_pairs(after).filter(|pair| pair.1 == *value);
            under.for_each(|pair| assert_eq!(fold_query(&pair.0), name));
        }
    }
}
