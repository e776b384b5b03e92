//! Finds the position of a value in JSON (RFC 8259).
//!
//! `serde_json` reads the text and decides whether it is JSON, but does not tell positions. So a
//! second reader finds the position, and both have to see the same value there.

use std::ops::Range;

use serde_json::Value;

use crate::policy::JsonPointer;

/// A text that is JSON.
pub(super) struct Document<'a> {
    text: &'a str,
    value: Value,
}

/// The value that a pointer leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PointedValue {
    /// The range of the whole value, of a string with its quotes.
    pub(super) at: Range<usize>,
    /// The decoded text; `None` where the value is no string.
    pub(super) text: Option<String>,
    /// Whether every name on the way is written as the pointer has it. Some servers would take
    /// other spellings for it.
    pub(super) exact: bool,
}

/// The reason why a pointer does not lead to one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PointerFault {
    /// The text is no JSON, or two readers disagree.
    Malformed,
    /// Two members have one name, or names that some server takes for one.
    Twice,
}

impl<'a> Document<'a> {
    /// Reads a text, which is the whole document: only spaces stand before or behind it. A document
    /// that is nested deeper than the library goes is refused.
    pub(super) fn read(text: &'a str) -> Result<Self, PointerFault> {
        let value = serde_json::from_str(text).map_err(|_| PointerFault::Malformed)?;
        Ok(Self { text, value })
    }

    /// Returns the value that the pointer leads to, if there is one.
    pub(super) fn find(&self, pointer: &JsonPointer) -> Result<Option<PointedValue>, PointerFault> {
        let mut at = Scan::new(self.text, 0).value().ok_or(PointerFault::Malformed)?;
        let mut exact = true;
        for token in pointer.tokens() {
            let Some((next, spelt)) = self.member(at, token)? else { return Ok(None) };
            at = next;
            exact &= spelt;
        }
        let text = self.text.get(at.clone()).ok_or(PointerFault::Malformed)?;
        let seen: Value = serde_json::from_str(text).map_err(|_| PointerFault::Malformed)?;
        if exact && self.value.pointer(&pointer.to_string()) != Some(&seen) {
            return Err(PointerFault::Malformed);
        }
        let text = seen.as_str().map(str::to_owned);
        Ok(Some(PointedValue { at, text, exact }))
    }

    /// Returns the range of the member of that name in the object or the array there, and whether
    /// its name is spelt exactly so.
    fn member(
        &self,
        of: Range<usize>,
        token: &str,
    ) -> Result<Option<(Range<usize>, bool)>, PointerFault> {
        let mut found = None;
        let mut scan = Scan::new(self.text, of.start);
        let array = match scan.next() {
            Some(b'{') => false,
            Some(b'[') => true,
            _ => return Ok(None),
        };
        for nth in 0.. {
            if scan.ends() {
                break;
            }
            let (named, spelt) = if array {
                (nth.to_string() == token, true)
            } else {
                self.name(scan.name().ok_or(PointerFault::Malformed)?, token)?
            };
            let at = scan.value().ok_or(PointerFault::Malformed)?;
            if named && found.replace((at, spelt)).is_some() {
                return Err(PointerFault::Twice);
            }
        }
        Ok(found)
    }

    /// Whether some server takes the name there for `token`, and whether it is spelt exactly so.
    fn name(&self, at: Range<usize>, token: &str) -> Result<(bool, bool), PointerFault> {
        let written = self.text.get(at).ok_or(PointerFault::Malformed)?;
        let name: String = serde_json::from_str(written).map_err(|_| PointerFault::Malformed)?;
        let spelt = name == token && !written.contains('\\');
        Ok((folded(&name).eq(folded(token)), spelt))
    }
}

/// Returns a name without the parts that some servers ignore: case, as Unicode folds the letters of
/// ASCII, and everything except letters and digits.
pub(super) fn folded(name: &str) -> impl Iterator<Item = char> {
    let fold = |char: char| match char {
        'ſ' => 's',
        '\u{212a}' => 'k',
        'ı' | 'İ' => 'i',
        other => other.to_ascii_lowercase(),
    };
    // Some servers end a text at a NUL.
    let name = name.split('\0').next().unwrap_or_default();
    name.chars().map(fold).filter(char::is_ascii_alphanumeric)
}

/// A position in a text that is JSON.
pub(super) struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    pub(super) fn new(text: &'a str, at: usize) -> Self {
        Self { text: text.as_bytes(), at }
    }

    fn peek(&mut self) -> Option<u8> {
        while self.text.get(self.at).is_some_and(|byte| b" \t\r\n".contains(byte)) {
            self.at += 1;
        }
        self.text.get(self.at).copied()
    }

    pub(super) fn next(&mut self) -> Option<u8> {
        let byte = self.peek();
        self.at += 1;
        byte
    }

    /// Whether the object or array around this position ends here; a comma before the next member
    /// is passed.
    pub(super) fn ends(&mut self) -> bool {
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                false
            }
            Some(b'}' | b']') | None => true,
            Some(_) => false,
        }
    }

    /// Passes the name of a member, and the colon behind it.
    pub(super) fn name(&mut self) -> Option<Range<usize>> {
        self.peek()?;
        let at = self.string()?;
        (self.next() == Some(b':')).then_some(at)
    }

    /// Passes a value of any kind.
    pub(super) fn value(&mut self) -> Option<Range<usize>> {
        let first = self.peek()?;
        let start = self.at;
        match first {
            b'"' => return self.string(),
            b'{' | b'[' => self.nested()?,
            _ => {
                let rest = self.text.get(start..)?;
                let ends = |byte: &u8| b",]} \t\r\n".contains(byte);
                self.at += rest.iter().position(ends).unwrap_or(rest.len());
            }
        }
        Some(start..self.at)
    }

    /// Passes an object or an array, with everything in it.
    fn nested(&mut self) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            match self.peek()? {
                b'"' => {
                    self.string()?;
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.checked_sub(1)?,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return Some(());
            }
        }
    }

    /// Passes a string, with its quotes.
    fn string(&mut self) -> Option<Range<usize>> {
        let start = self.at;
        let mut bytes = self.text.get(start..)?.iter().enumerate();
        if bytes.next()?.1 != &b'"' {
            return None;
        }
        loop {
            match bytes.next()? {
                (_, b'\\') => _ = bytes.next()?,
                (nth, b'"') => {
                    self.at = start + nth + 1;
                    return Some(start..self.at);
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{BodyPlace, BodySpot};
    use proptest::prelude::*;

    fn pointer(text: &str) -> JsonPointer {
        let place = BodyPlace::parse(&["json", text, "in", "POST", "/"]).unwrap();
        match place.spot() {
            BodySpot::Json(pointer) => pointer.clone(),
            BodySpot::Form(_) => unreachable!(),
        }
    }

    fn find(text: &str, at: &str) -> Result<Option<(String, Option<String>, bool)>, PointerFault> {
        let found = Document::read(text)?.find(&pointer(at))?;
        Ok(found.map(|it| (text[it.at].to_owned(), it.text, it.exact)))
    }

    #[track_caller]
    fn says(text: &str, at: &str, written: &str, says: &str) {
        assert_eq!(find(text, at), Ok(Some((written.into(), Some(says.into()), true))), "{text}");
    }

    #[test]
    fn a_value_is_found_where_its_pointer_leads() {
        says(r#"{"password":"x"}"#, "/password", r#""x""#, "x");
        says(
            " { \"a\" : { \"b\" :\t[ 1 , \"x\\u0041\\\"\" ] } } ",
            "/a/b/1",
            r#""x\u0041\"""#,
            "xA\"",
        );
        says(r#"{"a":"}\\","b~/":"y","c":[{"b":1}]}"#, "/b~0~1", r#""y""#, "y");
        says(r#"[[],{"a":"é\\"},"z"]"#, "/1/a", r#""é\\""#, "é\\");
        says(r#"{"0":"zero"}"#, "/0", r#""zero""#, "zero");
        for (text, at) in [
            ("{}", "/a"),
            (r#""a""#, "/a"),
            ("[]", "/0"),
            (r#"["x"]"#, "/00"),
            (r#"["x"]"#, "/1"),
            (r#"{"b":{"a":"x"}}"#, "/a"),
            (r#"{"a":"x"}"#, "/a/b"),
            (r#"{"x":"\",\"a\":\"y"}"#, "/a"),
        ] {
            assert_eq!(find(text, at), Ok(None), "{text}");
        }
        assert_eq!(find(r#"{"a":null}"#, "/a"), Ok(Some(("null".into(), None, true))));
        assert_eq!(find(r#"{"a":[1,{}] }"#, "/a"), Ok(Some(("[1,{}]".into(), None, true))));
    }

    #[test]
    fn a_name_some_server_would_fold_is_noticed_and_differs() {
        for name in
            ["Password", "PASSWORD", "pass_word", r"p\u0061ssword", "paſſword", r"password\u0000"]
        {
            let text = format!("{{\"{name}\":\"x\"}}");
            let found = find(&text, "/password").unwrap().unwrap();
            assert_eq!((found.1.as_deref(), found.2), (Some("x"), false), "{name}");
        }
        assert!(!find("{\"to\u{212a}en\":1}", "/token").unwrap().unwrap().2);
        assert_eq!(find(r#"{"passwords":"x"}"#, "/password"), Ok(None));
    }

    #[test]
    fn a_name_repeated_on_the_way_is_a_fault() {
        for text in [
            r#"{"a":{"b":"x"},"a":{"b":"x"}}"#,
            r#"{"a":1,"A":{"b":"x"}}"#,
            r#"{"a":{"b":"x","\u0062":"y"}}"#,
            r#"{"a":{"b":"x","B":null}}"#,
        ] {
            assert_eq!(find(text, "/a/b"), Err(PointerFault::Twice), "{text}");
        }
        says(r#"{"c":1,"a":{"b":"x","c":1,"c":2},"c":2}"#, "/a/b", r#""x""#, "x");
    }

    #[test]
    fn what_is_no_json_is_a_fault() {
        let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        for text in [
            "",
            " ",
            "\u{feff}{}",
            "{} x",
            "{}{}",
            "{}\0",
            "{'a':1}",
            "{a:1}",
            "{\"a\":1,}",
            "[1,]",
            "{\"a\":\"\n\"}",
            r#"{"a":"\x"}"#,
            r#"{"a":"\ud800"}"#,
            r#"{"a":01}"#,
            r#"{"a":1e999}"#,
            "{\"a\":NaN}",
            "// x\n{}",
            &deep(200),
        ] {
            assert_eq!(find(text, "/a"), Err(PointerFault::Malformed), "{text}");
        }
        assert_eq!(find(&deep(100), "/a"), Ok(None));
    }

    fn value() -> impl Strategy<Value = Value> {
        let text = prop_oneof!["[a-c]{0,2}", "\\PC{0,4}", Just("\\\"}],:".to_owned())];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            text.clone().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((text.clone(), inner), 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Where no two names fold to one, each string that the library knows by a pointer is
        /// found.
        #[test]
        fn what_the_library_reads_is_found_and_nothing_else(
            value in value(),
            pretty in any::<bool>(),
            at in "/[a-c0-3]{1,2}(/[a-c0-3]{1,2})?",
        ) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            let text = text.unwrap();
            match find(&text, &at) {
                Ok(Some((written, says, true))) => {
                    let known = value.pointer(&at).unwrap();
                    prop_assert_eq!(&serde_json::from_str::<Value>(&written).unwrap(), known);
                    prop_assert_eq!(says.as_deref(), known.as_str());
                }
                Ok(None) => prop_assert_eq!(value.pointer(&at), None),
                Ok(Some((_, _, false))) | Err(PointerFault::Twice) => {}
                Err(PointerFault::Malformed) => prop_assert!(false, "{text}"),
            }
        }

        #[test]
        fn no_text_panics(text in "[\\[\\]{}\",:\\\\a0 ]{0,24}") {
            let read = find(&text, "/a/0");
            prop_assert_eq!(read == Err(PointerFault::Malformed), serde_json::from_str::<Value>(&text).is_err());
        }
    }
}
