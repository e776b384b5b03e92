//! A placeholder in the shape of its provider's keys.

use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode};
use proptest::{prelude::*, sample::Index};

use super::{testing::*, *};
use crate::{
    policy::{
        Binding, GroupName, KeyShape, Mint, MintedAt, PathRule, PathSlot, Place, Placeholder,
        ShapedTexts,
    },
    reason::Reason,
};

const SHAPE: &str = "key-[1-9][0-9]{9}:[A-Za-z0-9_-]{35}";

fn text_for(placeholder: &str, group: &str) -> String {
    let group = GroupName(group.into());
    let placeholder = Placeholder(placeholder.into());
    KeyShape::parse(SHAPE).unwrap().made_up(&group, &placeholder).to_string()
}

fn shaped(binding: &Arc<Binding>) -> Arc<Binding> {
    let shape = KeyShape::parse(SHAPE).unwrap();
    let shaped = Some(ShapedTexts::new(shape, &binding.placeholder, &binding.groups));
    Arc::new(Binding { shaped, ..Binding::clone(binding) })
}

fn every_place() -> Vec<Place> {
    let mut places = vec![header("authorization", "bearer"), header("x-special-key", "raw")];
    places.push(Place::Query { name: "key".into() });
    places.push(Place::Cookie { name: "session".into() });
    places.push(Place::Path(PathSlot::parse("/bot{}/").unwrap()));
    places
}

/// A binding for every place, and its like of another group, whose placeholders have a shape.
fn with_shapes(paths: &[&str]) -> SubstitutionRules {
    rules_with(|api| {
        let mut own = Binding::clone(&api.bindings[0]);
        let mut other = Binding::clone(api.bindings.last().unwrap());
        (own.places, other.places) = (every_place(), every_place());
        let raw = Arc::clone(&api.bindings[1]);
        api.bindings = [Arc::new(own), raw, Arc::new(other)].iter().map(shaped).collect();
        api.paths = paths.iter().map(|path| PathRule::parse(path).unwrap()).collect();
    })
}

/// A request with this text in the place of that number.
fn request(place: usize, text: &str) -> http::request::Parts {
    match place {
        0 => head(&[("authorization", &format!("Bearer {text}"))]),
        1 => head(&[("x-special-key", text)]),
        2 => head_to(Method::POST, &format!("/v1/chat?key={}", text.replace(':', "%3A")), &[]),
        3 => head(&[("cookie", &format!("session={text}"))]),
        _ => head_to(Method::POST, &format!("/bot{text}/send"), &[]),
    }
}

#[test]
fn a_shaped_text_is_its_placeholder_in_every_place() {
    let (rules, text) = (with_shapes(&[]), text_for(BEARER, "agents"));
    for place in 0..every_place().len() {
        let (parts, substitution) = swapped(&rules, request(place, &text)).unwrap();
        let (named, _) = swapped(&rules, request(place, BEARER)).unwrap();
        assert_eq!((&parts.uri, &parts.headers), (&named.uri, &named.headers), "{place}");
        let told: Vec<_> = substitution.placeholders().map(|it| it.as_str()).collect();
        assert_eq!(told, [BEARER], "the audit knows it by its name");
    }
}

#[test]
fn another_groups_shaped_text_is_foreign_like_any_key() {
    let rules = with_shapes(&[]);
    let others = text_for(OTHER_GROUP, "others");
    for text in [&*others, &text_for(BEARER, "others"), &text_for("UNKNOWN_KEY", "agents")] {
        for place in 0..every_place().len() {
            let denial = examine(&rules, &request(place, text)).unwrap_err();
            let unknown = examine(&rules, &request(place, "key-of-the-agents-own")).unwrap_err();
            assert_eq!(denial, unknown, "{place}");
            assert_eq!(denial.reason, Reason::ForeignCredential);
        }
    }
}

#[test]
fn a_shaped_text_gone_astray_is_named_by_its_placeholder() {
    let rules = with_shapes(&[]);
    let raw = text_for(RAW, "agents");
    let denial = examine(&rules, &request(0, &raw)).unwrap_err();
    assert_eq!(denial.reason, Reason::PlaceholderWrongPlace);
    assert_eq!(denial.placeholder.unwrap().as_str(), RAW);
    let bearer = format!("Bearer {}", text_for(BEARER, "agents"));
    let twice = head(&[("authorization", &bearer), ("x-special-key", "mine")]);
    assert_eq!(refused(&rules, twice), Reason::DuplicateCredential);
}

/// Else an agent could choose the text for which no rule is found.
#[test]
fn rules_on_paths_hold_for_every_text_of_a_placeholder() {
    let text = text_for(BEARER, "agents");
    let rules = with_shapes(&["/botOPENAI_API_KEY/send"]);
    assert!(examine(&rules, &request(4, &text)).is_ok());
    let other = head_to(Method::POST, &format!("/bot{text}/delete"), &[]);
    assert_eq!(refused(&rules, other), Reason::PathDenied);
    assert_eq!(rules.shown_path(&format!("/bot{text}/send")), "/botOPENAI_API_KEY/send");
    assert_eq!(rules.shown_path(&format!("/bot{text}x/send")), "/bot{}/send");
    let escaped = text.replace(':', "%3A");
    assert_eq!(rules.shown_path(&format!("/bot{escaped}/send")), "/botOPENAI_API_KEY/send");
}

#[test]
fn answers_are_looked_at_whichever_text_was_sent() {
    let minted = rules_with(|api| {
        let mut own = Binding::clone(&api.bindings[0]);
        own.places = every_place();
        api.bindings = vec![shaped(&Arc::new(own))];
        let words = ["json", "/token", "in", "/botOPENAI_API_KEY/login"];
        let answers = vec![MintedAt::parse(&words).unwrap()];
        let mint = super::redeemed::mint(vec![], "first.example");
        api.mints = vec![Arc::new(Mint { answers, ..Mint::clone(&mint) })];
    });
    let path = |text: &str| format!("/bot{text}/login");
    let text = text_for(BEARER, "agents");
    for text in [BEARER, &text, &text.replace(':', "%3A")] {
        let path = path(text);
        let answer =
            (StatusCode::OK, &HeaderMap::new(), &br#"{"token":"a-minted-credential"}"#[..]);
        let found = find_minted(minted.mints(&path), &minted.named(&path), answer).unwrap();
        assert_eq!(found.1.len(), 1, "{text}");
    }
    assert_eq!(minted.mints(&path("other")).count(), 0);
}

proptest! {
    #[test]
    fn a_shaped_text_changed_by_one_byte_is_foreign(
        place in 0_usize..5,
        at in any::<Index>(),
        byte in prop::sample::select(b"abcXYZ019-_~".to_vec()),
    ) {
        let mut text = text_for(BEARER, "agents").into_bytes();
        let at = at.index(text.len());
        prop_assume!(text[at] != byte);
        text[at] = byte;
        let text = String::from_utf8(text).unwrap();
        let reason = refused(&with_shapes(&[]), request(place, &text));
        prop_assert_eq!(reason, Reason::ForeignCredential);
    }
}
