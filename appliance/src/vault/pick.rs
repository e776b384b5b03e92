//! Takes one value out of a JSON answer, and nothing else of it.
//!
//! Vault's own client demands every field that today's Vault sends; a proxy, an older Vault and
//! OpenBao leave some out. This parser reads the requested path only. Texts go straight into memory
//! that is wiped; the other secrets of the answer are never copied.

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use zeroize::Zeroizing;

/// The value at a path.
pub(super) enum PickedJson {
    /// A string.
    Text(Zeroizing<Vec<u8>>),
    /// A whole number that is not negative.
    Number(u64),
    /// `true` or `false`.
    Bool(bool),
    /// An object.
    Map,
    /// Anything else except `null`.
    Other,
}

/// Returns the value in `json` below the keys of `path`; `None` for no value, `null`, and no JSON.
///
/// Of repeated keys the last counts, as it does for Vault.
pub(super) fn pick(json: &[u8], path: &[&str]) -> Option<PickedJson> {
    let mut parser = serde_json::Deserializer::from_slice(json);
    let picked = Seed { path }.deserialize(&mut parser).ok()?;
    parser.end().ok()?;
    picked
}

/// Returns the text at `path`, if it is one.
pub(super) fn pick_text(json: &[u8], path: &[&str]) -> Option<Zeroizing<Vec<u8>>> {
    match pick(json, path) {
        Some(PickedJson::Text(text)) => Some(text),
        _ => None,
    }
}

struct Seed<'p> {
    path: &'p [&'p str],
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Option<PickedJson>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Seed<'_> {
    /// Returns a scalar, which counts only at the end of the path.
    fn leaf<E>(&self, value: PickedJson) -> Result<Option<PickedJson>, E> {
        Ok(self.path.is_empty().then_some(value))
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Option<PickedJson>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Some((key, path)) = self.path.split_first() else {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(Some(PickedJson::Map));
        };
        let mut picked = None;
        while let Some(found) = map.next_key_seed(KeyIs(key))? {
            if found {
                picked = map.next_value_seed(Seed { path })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(picked)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        self.leaf(PickedJson::Other)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        self.leaf(PickedJson::Text(Zeroizing::new(text.as_bytes().to_vec())))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        self.leaf(PickedJson::Number(number))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
        self.leaf(PickedJson::Other)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        self.leaf(PickedJson::Other)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        self.leaf(PickedJson::Bool(value))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// Compares a key in its place, without a copy.
struct KeyIs<'p>(&'p str);

impl<'de> DeserializeSeed<'de> for KeyIs<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeyIs<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PATH: &[&str] = &["data", "data", "key"];

    fn text(json: &str) -> Option<String> {
        pick_text(json.as_bytes(), PATH).map(|text| String::from_utf8(text.to_vec()).unwrap())
    }

    #[test]
    fn an_answer_with_nothing_but_the_field_is_enough() {
        assert_eq!(text(r#"{"data":{"data":{"key":"v"}}}"#).as_deref(), Some("v"));
        let full = r#"{"request_id":"r","lease_id":"","warnings":null,"x":[1,{"key":"no"}],
            "data":{"metadata":{"key":"no","version":2},"data":{"other":"no","key":"v\u0041\n"}}}"#;
        assert_eq!(text(full).as_deref(), Some("vA\n"));
    }

    #[test]
    fn what_is_elsewhere_or_no_text_is_not_picked() {
        for json in [
            r#"{"data":{"key":"v"}}"#,
            r#"{"data":{"data":null}}"#,
            r#"{"data":{"data":{"key":null}}}"#,
            r#"{"data":{"data":{"key":1}}}"#,
            r#"{"data":{"data":{"key":["v"]}}}"#,
            r#"{"data":{"data":{"key":{"key":"v"}}}}"#,
            r#"{"data":{"data":"key"}}"#,
            r#"{"data":{"data":{"key":"v"}}} {}"#,
            r#"[{"data":{"data":{"key":"v"}}}]"#,
            "",
            "<html>",
        ] {
            assert_eq!(text(json), None, "{json}");
        }
    }

    #[test]
    fn an_answer_cut_short_yields_nothing() {
        let json = r#"{"data":{"data":{"key":"v"}},"auth":null}"#;
        for end in 0..json.len() {
            assert_eq!(text(&json[..end]), None, "{end}");
        }
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_overflow() {
        assert_eq!(text(&"{\"data\":".repeat(100_000)), None);
        assert_eq!(text(&"[".repeat(1_000_000)), None);
    }

    proptest! {
        #[test]
        fn any_text_survives(value: String) {
            let json = serde_json::json!({"data": {"data": {"key": value.clone()}}}).to_string();
            prop_assert_eq!(text(&json), Some(value));
        }
    }
}
