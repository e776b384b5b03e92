//! The ways in which others write one byte as several, read forwards and backwards.
//!
//! | family | a byte as |
//! |---|---|
//! | percent | `%XX` (RFC 3986, section 2.1) |
//! | backslash | `\u00XX`, `\xXX`, and `"`, `\`, `/`, `'` after a backslash (RFC 8259, section 7) |
//! | entity | `&#N;`, `&#xX;`, and the five names of XML |
//! | quoted | `=XX`, and a line end after `=` that is nothing (RFC 2045, section 6.7) |
//! | wide | a NUL that is nothing, so that UTF-16 and UTF-32 read like ASCII |
//!
//! Hexadecimal digits count in either case.

/// A set of families of escapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Families(u8);

impl Families {
    pub(super) const NONE: Self = Self(0);
    pub(super) const ALL: Self = Self(0b1_1111);
    const PERCENT: Self = Self(1);
    const BACKSLASH: Self = Self(2);
    const ENTITY: Self = Self(4);
    const QUOTED: Self = Self(8);
    const WIDE: Self = Self(16);

    /// Each family by itself.
    pub(super) const EACH: [Self; 5] =
        [Self::PERCENT, Self::BACKSLASH, Self::ENTITY, Self::QUOTED, Self::WIDE];

    pub(super) fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether there are several.
    pub(super) fn is_mixed(self) -> bool {
        self.0.count_ones() > 1
    }
}

/// What an escape stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    Byte(u8),
    Nothing,
}

/// An escape at some place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Escape {
    pub(super) family: Families,
    pub(super) meaning: Meaning,
    /// Bytes that it takes, at least one and at most [`LONGEST_ESCAPE`].
    pub(super) length: usize,
}

/// Whether an escape may begin with this byte.
pub(super) fn begins_escape(byte: u8) -> bool {
    matches!(byte, b'%' | b'\\' | b'&' | b'=' | 0)
}

/// The escape that `text` begins with.
pub(super) fn escape(text: &[u8]) -> Option<Escape> {
    let (&first, rest) = text.split_first()?;
    match first {
        b'%' => Some(byte(Families::PERCENT, hex_pair(rest)?, 3)),
        b'\\' => backslash(rest),
        b'&' => entity(rest),
        b'=' => quoted(rest),
        0 if !text.starts_with(&[0; MOST_NULS + 1]) => Some(nothing(Families::WIDE, 1)),
        _ => None,
    }
}

/// Whether the NUL at `at` has a character of UTF-16 or UTF-32 beside it that is one of ASCII, with
/// a NUL on its other side. Binary data is full of NULs, and nearly none of them stands so.
pub(super) fn is_wide(text: &[u8], at: usize) -> bool {
    let (before, after) = text.split_at_checked(at).unwrap_or_default();
    let nuls = after.iter().take(MOST_NULS).take_while(|byte| **byte == 0).count();
    let next = match after.get(nuls..).unwrap_or_default() {
        [next] | [next, 0, ..] => next.is_ascii_graphic(),
        _ => false,
    };
    let nuls_before = before.iter().rev().take(MOST_NULS).take_while(|byte| **byte == 0).count();
    let before = before.get(..at - nuls_before).unwrap_or_default();
    let last = matches!(before, [.., 0, last] if last.is_ascii_graphic());
    nuls > 0 && (next || last)
}

/// The lengths of escapes that end where `text` does and stand for a byte, with that byte.
pub(super) fn escapes_before(text: &[u8]) -> impl Iterator<Item = (u8, usize)> {
    let last = text.last().copied().unwrap_or_default();
    let possible = last.is_ascii_hexdigit() || b";\"\\/'".contains(&last);
    let longest = if possible { LONGEST_ESCAPE } else { 0 };
    (2..=longest).filter_map(|length| {
        let begin = text.len().checked_sub(length)?;
        match escape(text.get(begin..)?)? {
            Escape { meaning: Meaning::Byte(byte), length: found, .. } if found == length => {
                Some((byte, length))
            }
            _ => None,
        }
    })
}

/// Bytes at the end of `text` that are nothing; 0 where there are none.
pub(super) fn nothing_before(text: &[u8]) -> usize {
    match text {
        [.., 0] => 1,
        [.., b'=', b'\r', b'\n'] => 3,
        [.., b'=', b'\n'] => 2,
        _ => 0,
    }
}

fn backslash(rest: &[u8]) -> Option<Escape> {
    match *rest {
        [b'u', b'0', b'0', ref digits @ ..] => {
            Some(byte(Families::BACKSLASH, hex_pair(digits)?, 6))
        }
        [b'x', ref digits @ ..] => Some(byte(Families::BACKSLASH, hex_pair(digits)?, 4)),
        [short @ (b'"' | b'\\' | b'/' | b'\''), ..] => Some(byte(Families::BACKSLASH, short, 2)),
        _ => None,
    }
}

fn entity(rest: &[u8]) -> Option<Escape> {
    for (name, stands_for) in NAMED {
        if rest.starts_with(name) {
            return Some(byte(Families::ENTITY, stands_for, 1 + name.len()));
        }
    }
    let (radix, digits, before) = match rest {
        [b'#', b'x' | b'X', digits @ ..] => (16, digits, 3),
        [b'#', digits @ ..] => (10, digits, 2),
        _ => return None,
    };
    let end = digits.iter().take(LONGEST_ESCAPE - before).position(|&byte| byte == b';')?;
    let number = std::str::from_utf8(digits.get(..end)?).ok()?;
    // `from_str_radix` takes a sign, and no browser does.
    let number = u32::from_str_radix(number, radix).ok().filter(|_| !number.starts_with('+'))?;
    Some(byte(Families::ENTITY, u8::try_from(number).ok()?, before + end + 1))
}

fn quoted(rest: &[u8]) -> Option<Escape> {
    match rest {
        [b'\r', b'\n', ..] => Some(nothing(Families::QUOTED, 3)),
        [b'\n', ..] => Some(nothing(Families::QUOTED, 2)),
        _ => Some(byte(Families::QUOTED, hex_pair(rest)?, 3)),
    }
}

fn byte(family: Families, byte: u8, length: usize) -> Escape {
    Escape { family, meaning: Meaning::Byte(byte), length }
}

fn nothing(family: Families, length: usize) -> Escape {
    Escape { family, meaning: Meaning::Nothing, length }
}

fn hex_pair(digits: &[u8]) -> Option<u8> {
    let [high, low, ..] = *digits else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? << 4 | digit(low)?).ok()
}

const NAMED: [(&[u8], u8); 5] =
    [(b"amp;", b'&'), (b"lt;", b'<'), (b"gt;", b'>'), (b"quot;", b'"'), (b"apos;", b'\'')];

/// NULs of a character of UTF-32, at most.
pub(super) const MOST_NULS: usize = 3;
/// Bytes of the longest escape: a character reference with leading zeros.
pub(super) const LONGEST_ESCAPE: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    const WRITTEN: [(&[u8], u8); 14] = [
        (b"%7e", b'~'),
        (b"%7E", b'~'),
        (b"\\u0041", b'A'),
        (b"\\x5A", b'Z'),
        (b"\\\"", b'"'),
        (b"\\/", b'/'),
        (b"\\'", b'\''),
        (b"&#65;", b'A'),
        (b"&#0000065;", b'A'),
        (b"&#x41;", b'A'),
        (b"&#X000041;", b'A'),
        (b"&amp;", b'&'),
        (b"&apos;", b'\''),
        (b"=3D", b'='),
    ];

    #[test]
    fn an_escape_is_read_forwards_and_backwards_alike() {
        for (text, expected) in WRITTEN {
            let found = escape(text).unwrap();
            assert_eq!((found.meaning, found.length), (Meaning::Byte(expected), text.len()));
            let before: Vec<_> = escapes_before(&[b"x", text].concat()).collect();
            assert!(before.contains(&(expected, text.len())), "{before:?}");
        }
    }

    #[test]
    fn half_an_escape_is_none() {
        for (text, _) in WRITTEN {
            for end in 0..text.len() {
                assert_eq!(escape(&text[..end]), None, "{:?}", text[..end].escape_ascii());
            }
        }
        for text in ["%4g", "\\u0141", "\\n", "&#;", "&#+65;", "&#256;", "&x;", "=4", "=\r"] {
            assert_eq!(escape(text.as_bytes()), None, "{text:?}");
        }
    }
}
