//! Names of fields and in queries as servers may read them. Behind CGI-like interfaces `_` cannot
//! be told from `-` (RFC 3875, section 4.1.18), and some servers map every byte that is neither
//! letter nor digit alike, so that a field under another spelling would ride on the rule for the
//! first.

use std::{borrow::Cow, ops::Range};

/// Returns one byte for all bytes of a name that some server takes for the same.
pub(super) fn fold(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' }
}

/// A name that equals every other name that some server takes for the same one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Folded<'a>(pub &'a [u8]);

impl PartialEq<Folded<'_>> for Folded<'_> {
    fn eq(&self, other: &Folded<'_>) -> bool {
        let same = |(&one, &other): (&u8, &u8)| fold(one) == fold(other);
        self.0.len() == other.0.len() && self.0.iter().zip(other.0).all(same)
    }
}

/// Whether a name in a query or a form needs no other spelling: no byte of it separates, encodes,
/// or makes a list.
pub(crate) fn is_plain_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~$".contains(&byte);
    text.bytes().all(plain) && (1..=MAX_NAME).contains(&text.len())
}

const MAX_NAME: usize = 128;

/// Returns the pairs of a query or a form, decoded once. A `;` separates pairs too, because older
/// servers read it so.
pub(crate) fn query_pairs(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    query.split(';').flat_map(|part| form_urlencoded::parse(part.as_bytes()))
}

/// Returns the values under `name` in a query or a form: the range of each in the text, and the
/// decoded text. Only pairs count that every server finds alike: separated by `&`, and without a
/// `;`.
pub(crate) fn query_values<'a>(
    query: &'a str,
    name: &'a str,
) -> impl Iterator<Item = (Range<usize>, Cow<'a, str>)> {
    let starts = query.split('&').scan(0, |next, part| {
        let start = *next;
        *next += part.len() + 1;
        Some((start, part))
    });
    starts.filter(|(_, part)| !part.contains(';')).filter_map(move |(start, part)| {
        let (found, value) = form_urlencoded::parse(part.as_bytes()).next()?;
        let at = start + part.find('=')? + 1;
        (found == name).then_some((at..start + part.len(), value))
    })
}

/// Returns the range of a name's value, where it is the only value under that name that every
/// server finds.
pub(crate) fn only_value(text: &str, name: &str, value: &str) -> Option<Range<usize>> {
    let mut values = query_values(text, name);
    let ((at, found), None) = (values.next()?, values.next()) else { return None };
    (found == value).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_same_however_it_is_spelt() {
        for name in ["X-Api-Key", "x_api_key", "X.API.KEY", "x~api|key"] {
            assert!(Folded(name.as_bytes()) == Folded(b"x-api-key"), "{name}");
        }
        for name in ["xapikey", "x-api-keys", "x--api-key", ""] {
            assert!(Folded(name.as_bytes()) != Folded(b"x-api-key"), "{name}");
        }
    }

    #[test]
    fn a_query_is_cut_where_some_server_would_cut_it() {
        let pairs = |query| query_pairs(query).collect::<Vec<_>>();
        let expected = [("a", "b c"), ("key", "x"), ("", "y"), ("z", "")];
        let expected = expected.map(|(name, value)| (name.into(), value.into()));
        assert_eq!(pairs("a=b+c;k%65y=x&=y&z"), expected);
        assert_eq!(pairs("&&;"), []);
    }

    #[test]
    fn a_value_in_a_query_is_found_where_it_stands() {
        let found = |query| query_values(query, "key").collect::<Vec<_>>();
        assert_eq!(found("a=b&k%65y=x%2dy&c"), [(10..15, "x-y".into())]);
        assert_eq!(found("key="), [(4..4, "".into())]);
        assert_eq!(found("key=1&key=2"), [(4..5, "1".into()), (10..11, "2".into())]);
        for query in ["", "key", "KEY=x", "key[]=x", "a=b;key=x", "key=x;a=b", "akey=x"] {
            assert_eq!(found(query), [], "{query}");
        }
    }
}
