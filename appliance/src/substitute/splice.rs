//! Puts values in the place of some bytes of a text, each escaped as its format demands.

use std::ops::Range;

use zeroize::Zeroizing;

/// A text that takes the place of some bytes.
pub(super) struct Piece {
    pub(super) at: Range<usize>,
    pub(super) text: Zeroizing<Vec<u8>>,
}

/// Returns the text with each piece in its place; every other byte stays. `None` where two places
/// overlap or one is outside of the text.
pub(super) fn splice(before: &[u8], mut pieces: Vec<Piece>) -> Option<Zeroizing<Vec<u8>>> {
    pieces.sort_unstable_by_key(|piece| piece.at.start);
    let added: usize = pieces.iter().map(|piece| piece.text.len()).sum();
    // The buffer has its size from the start: growth would leave copies behind.
    let mut whole = Zeroizing::new(Vec::with_capacity(before.len() + added));
    let mut from = 0;
    for Piece { at, text } in &pieces {
        whole.extend_from_slice(before.get(from..at.start)?);
        whole.extend_from_slice(text);
        from = at.end;
    }
    whole.extend_from_slice(before.get(from..)?);
    Some(whole)
}

/// Percent-encodes every byte except the unreserved characters (RFC 3986, sections 2.1 and 2.3).
pub(super) fn percent(value: &[u8]) -> Zeroizing<Vec<u8>> {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or_default();
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let mut text = Zeroizing::new(Vec::with_capacity(value.len() * 3));
    for &byte in value {
        if unreserved(byte) {
            text.push(byte);
        } else {
            text.extend([b'%', digit(byte >> 4), digit(byte & 0xf)]);
        }
    }
    text
}

/// Returns a string of JSON, with its quotes (RFC 8259, section 7). A value holds visible ASCII
/// alone.
pub(super) fn json_string(value: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut text = Zeroizing::new(Vec::with_capacity(value.len() * 2 + 2));
    text.push(b'"');
    for &byte in value {
        if matches!(byte, b'"' | b'\\') {
            text.push(b'\\');
        }
        text.push(byte);
    }
    text.push(b'"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn piece(at: Range<usize>, text: &str) -> Piece {
        Piece { at, text: Zeroizing::new(text.into()) }
    }

    #[test]
    fn pieces_stand_in_their_places_in_whatever_order() {
        let whole = splice(b"a=1&b=2", vec![piece(6..7, "two"), piece(2..3, "")]).unwrap();
        assert_eq!(&**whole, b"a=&b=two");
        assert_eq!(&**splice(b"same", vec![]).unwrap(), b"same");
    }

    #[test]
    fn places_that_overlap_or_are_not_there_are_no_text() {
        assert!(splice(b"abcd", vec![piece(0..3, "x"), piece(2..4, "y")]).is_none());
        assert!(splice(b"abcd", vec![piece(3..5, "x")]).is_none());
    }

    proptest! {
        #[test]
        fn whatever_a_value_holds_is_read_back(value in "[!-~]{1,40}") {
            let query = String::from_utf8(percent(value.as_bytes()).to_vec()).unwrap();
            let pairs: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
            prop_assert_eq!(&*pairs[0].0, &*value);
            let string = json_string(value.as_bytes());
            prop_assert_eq!(serde_json::from_slice::<String>(&string).unwrap(), value);
        }
    }
}
