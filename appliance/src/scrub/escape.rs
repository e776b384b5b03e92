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
    pub(super) const WIDE: Self = Self(16);

    /// Each family by itself.
    pub(super) const EACH: [Self; 5] =
        [Self::PERCENT, Self::BACKSLASH, Self::ENTITY, Self::QUOTED, Self::WIDE];

    pub(super) fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the set has several families.
    pub(super) fn is_mixed(self) -> bool {
        self.0.count_ones() > 1
    }
}

/// The meaning of an escape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    Byte(u8),
    Nothing,
}

/// An escape at some position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Escape {
    pub(super) family: Families,
    pub(super) meaning: Meaning,
    /// A small number, so that an escape fits a register.
    length: u8,
}

impl Escape {
    /// Returns the bytes of the escape, at least one and at most [`LONGEST_ESCAPE`].
    pub(super) fn length(self) -> usize {
        usize::from(self.length)
    }
}

/// The properties of a byte by itself.
#[derive(Clone, Copy)]
struct ByteClass {
    /// The families whose escapes may have it as their first byte, and as their second.
    first: u8,
    second: u8,
    /// Whether forms hold it and no escape begins with it.
    plain: bool,
    /// Its value as a hexadecimal digit, or [`NO_DIGIT`].
    worth: u8,
}

impl ByteClass {
    #[inline(always)]
    fn of(byte: u8) -> Self {
        static KINDS: [ByteClass; 256] = kinds();
        KINDS.get(usize::from(byte)).copied().unwrap_or_else(|| Self::made(byte))
    }

    const fn made(byte: u8) -> Self {
        let first = match byte {
            b'%' => Families::PERCENT.0,
            b'\\' => Families::BACKSLASH.0,
            b'&' => Families::ENTITY.0,
            b'=' => Families::QUOTED.0,
            0 => Families::WIDE.0,
            _ => 0,
        };
        let digit = match byte {
            _ if byte.is_ascii_hexdigit() => Families::PERCENT.0 | Families::QUOTED.0,
            _ => 0,
        };
        let other = match byte {
            b'u' | b'x' | b'"' | b'\\' | b'/' | b'\'' => Families::BACKSLASH.0,
            b'#' | b'a' | b'l' | b'g' | b'q' => Families::ENTITY.0,
            b'\r' | b'\n' => Families::QUOTED.0,
            _ => 0,
        };
        let worth = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ => NO_DIGIT,
        };
        let plain = first == 0 && !no_form_holds(byte);
        Self { first, second: digit | other | Families::WIDE.0, plain, worth }
    }
}

const fn kinds() -> [ByteClass; 256] {
    let mut kinds = [ByteClass::made(0); 256];
    let (mut rest, mut byte): (&mut [ByteClass], u8) = (&mut kinds, 0);
    while let Some((kind, others)) = rest.split_first_mut() {
        *kind = ByteClass::made(byte);
        (rest, byte) = (others, byte.wrapping_add(1));
    }
    kinds
}

/// Whether an escape may begin with this byte.
pub(super) fn begins_escape(byte: u8) -> bool {
    ByteClass::of(byte).first != 0
}

/// Whether forms hold a byte and no escape begins with it.
#[inline]
pub(super) fn is_plain(byte: u8) -> bool {
    ByteClass::of(byte).plain
}

/// Returns the escape of one of `families` that `text` has at `at`. Most bytes that look like the
/// beginning of an escape are none, and the next byte shows it.
#[inline(always)]
pub(super) fn escape_at(text: &[u8], at: usize, families: Families) -> Option<Escape> {
    let rest = text.get(at..)?;
    let first = ByteClass::of(*rest.first()?).first & families.0;
    if first == 0 || rest.get(1).is_some_and(|&byte| ByteClass::of(byte).second & first == 0) {
        return None;
    }
    escape(rest)
}

/// Whether a form never holds this byte, raw or inside an escape. Line ends count here, although
/// one after `=` is an escape.
pub(super) const fn no_form_holds(byte: u8) -> bool {
    matches!(byte, 1..=0x20 | 0x7f..)
}

/// Returns the escape that `text` begins with.
#[inline(always)]
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

/// Returns the lengths of escapes that end where `text` does and stand for a byte, with that byte.
pub(super) fn escapes_before(text: &[u8]) -> impl Iterator<Item = (u8, usize)> {
    let last = text.last().copied().unwrap_or_default();
    let possible = last.is_ascii_hexdigit() || b";\"\\/'".contains(&last);
    let longest = if possible { LONGEST_ESCAPE } else { 0 };
    (2..=longest).filter_map(|length| {
        let begin = text.len().checked_sub(length)?;
        let found = escape(text.get(begin..)?).filter(|found| found.length() == length)?;
        match found.meaning {
            Meaning::Byte(byte) => Some((byte, length)),
            Meaning::Nothing => None,
        }
    })
}

/// Returns how many bytes at the end of `text` stand for nothing; 0 where there are none.
pub(super) fn nothing_before(text: &[u8]) -> usize {
    match text {
        [.., 0] => 1,
        [.., b'=', b'\r', b'\n'] => 3,
        [.., b'=', b'\n'] => 2,
        _ => 0,
    }
}

#[inline(always)]
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

#[inline(never)]
fn entity(rest: &[u8]) -> Option<Escape> {
    match rest {
        [b'#', b'x' | b'X', digits @ ..] => number(digits, 16, 3),
        [b'#', digits @ ..] => number(digits, 10, 2),
        _ => {
            let &(_, stands_for, length) =
                NAMED.iter().find(|(name, ..)| rest.starts_with(name))?;
            Some(byte(Families::ENTITY, stands_for, length))
        }
    }
}

/// Returns the character reference whose digits come after `before` other bytes.
fn number(digits: &[u8], radix: u16, before: u8) -> Option<Escape> {
    let mut value = 0;
    for (&found, length) in digits.iter().zip(before + 1..=LONGEST_ESCAPE as u8) {
        let digit = u16::from(ByteClass::of(found).worth);
        if digit < radix {
            value = (value * radix + digit).min(TOO_LARGE);
        } else if found == b';' && length > before + 1 {
            return Some(byte(Families::ENTITY, u8::try_from(value).ok()?, length));
        } else {
            return None;
        }
    }
    None
}

#[inline(always)]
fn quoted(rest: &[u8]) -> Option<Escape> {
    match rest {
        [b'\r', b'\n', ..] => Some(nothing(Families::QUOTED, 3)),
        [b'\n', ..] => Some(nothing(Families::QUOTED, 2)),
        _ => Some(byte(Families::QUOTED, hex_pair(rest)?, 3)),
    }
}

#[inline(always)]
fn byte(family: Families, byte: u8, length: u8) -> Escape {
    Escape { family, meaning: Meaning::Byte(byte), length }
}

#[inline(always)]
fn nothing(family: Families, length: u8) -> Escape {
    Escape { family, meaning: Meaning::Nothing, length }
}

#[inline(always)]
fn hex_pair(digits: &[u8]) -> Option<u8> {
    let [high, low, ..] = *digits else { return None };
    let (high, low) = (ByteClass::of(high).worth, ByteClass::of(low).worth);
    ((high | low) & NO_DIGIT == 0).then_some(high << 4 | low)
}

const NO_DIGIT: u8 = 0x80;
/// Greater than a byte, and small enough that one more digit still fits in 16 bits.
const TOO_LARGE: u16 = 0x100;

/// The names, the bytes that they stand for, and the lengths of the escapes.
const NAMED: [(&[u8], u8, u8); 5] = [
    (b"amp;", b'&', 5),
    (b"lt;", b'<', 4),
    (b"gt;", b'>', 4),
    (b"quot;", b'"', 6),
    (b"apos;", b'\'', 6),
];

/// The most NULs of a character in UTF-32.
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
            assert_eq!((found.meaning, found.length()), (Meaning::Byte(expected), text.len()));
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
