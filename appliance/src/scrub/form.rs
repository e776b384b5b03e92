//! The forms in which a secret may come back, and the recognition of one around a given place.

use std::{ops::Range, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use zeroize::Zeroizing;

use super::escape::{
    LONGEST_ESCAPE, Meaning, begins_escape, escape, escapes_before, nothing_before,
};

/// A text any byte of which may also stand as an escape.
pub(super) struct Form {
    text: Arc<Zeroizing<Vec<u8>>>,
    alphabet: Alphabet,
    stable: Range<usize>,
}

/// Other bytes that may stand for a byte of the text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Alphabet {
    Exact,
    /// `-` for `+` and `_` for `/` (RFC 4648, section 5).
    Base64,
    /// Upper case for lower case.
    Hex,
}

impl Form {
    /// Returns every form of `value`.
    pub(super) fn all(value: &[u8]) -> Vec<Self> {
        texts(value).map(|(text, alphabet)| Self::new(text, alphabet)).collect()
    }

    /// Returns every form of `value` as it looks in a field name, which is always lower case.
    pub(super) fn all_lower_case(value: &[u8]) -> Vec<Self> {
        let lower = |text: Zeroizing<Vec<u8>>| Zeroizing::new(text.to_ascii_lowercase());
        texts(value).map(|(text, alphabet)| Self::new(lower(text), alphabet)).collect()
    }

    fn new(text: Zeroizing<Vec<u8>>, alphabet: Alphabet) -> Self {
        let stable = stable(&text);
        Self { text: Arc::new(text), alphabet, stable }
    }

    /// Returns the bytes of the form where none is escaped.
    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// Returns the occurrences whose byte number `offset` begins at `at`.
    pub(super) fn around(&self, text: &[u8], at: usize, offset: usize) -> Option<Occurrences> {
        let (before, after) = self.text.split_at_checked(offset)?;
        let mut ends = Positions::one(at);
        for &byte in after {
            ends = ends.each(|end, next| self.step(byte, text, end, next))?;
        }
        let mut begins = Positions::one(at);
        for &byte in before.iter().rev() {
            begins = begins.each(|begin, next| self.step_back(byte, text, begin, next))?;
        }
        Some(Occurrences { begins, ends })
    }

    /// Returns the part that a search may search for: the stable part or, where it is too short,
    /// all of the form. Then the form is found as it is, and as one encoder writes it.
    pub(super) fn searchable(&self) -> Range<usize> {
        if self.is_stable() { self.stable.clone() } else { 0..self.text.len() }
    }

    /// Returns the width of the windows by which it is found: the bytes that twelve of the value
    /// take, where there is room for so many.
    pub(super) fn width(&self) -> usize {
        let widths = match self.alphabet {
            Alphabet::Exact => [LONG, SHORT].as_slice(),
            Alphabet::Base64 => &[BASE64, LONG, SHORT],
            Alphabet::Hex => &[HEX, LONG, SHORT],
        };
        let room = self.searchable().len();
        widths.iter().copied().find(|&width| width <= room).unwrap_or(usize::MAX)
    }

    pub(super) fn is_stable(&self) -> bool {
        self.stable.len() >= SHORT
    }

    /// Returns the bytes that may stand for this byte of the text.
    pub(super) fn twins(&self, byte: u8) -> impl Iterator<Item = u8> + use<> {
        let twin = match (self.alphabet, byte) {
            (Alphabet::Base64, b'+') => Some(b'-'),
            (Alphabet::Base64, b'/') => Some(b'_'),
            (Alphabet::Hex, b'a'..=b'f') => Some(byte.to_ascii_uppercase()),
            _ => None,
        };
        std::iter::once(byte).chain(twin)
    }

    fn stands_for(&self, found: u8, byte: u8) -> bool {
        self.twins(byte).any(|twin| found == twin)
    }

    /// Adds the places where `byte` may end that begins at `at`.
    fn step(&self, byte: u8, text: &[u8], mut at: usize, next: &mut Positions) {
        for _ in 0..=MOST_NOTHINGS {
            let rest = text.get(at..).unwrap_or_default();
            let Some(&first) = rest.first() else { return };
            if self.stands_for(first, byte) {
                next.add(at + 1);
            }
            match escape(rest) {
                None => return,
                Some(found) => match found.meaning {
                    Meaning::Nothing => at += found.length(),
                    Meaning::Byte(meant) if self.stands_for(meant, byte) => {
                        return next.add(at + found.length());
                    }
                    Meaning::Byte(_) => return,
                },
            }
        }
    }

    /// Adds the places where `byte` may begin that ends at `end`.
    fn step_back(&self, byte: u8, text: &[u8], mut end: usize, next: &mut Positions) {
        for _ in 0..=MOST_NOTHINGS {
            let before = text.get(..end).unwrap_or_default();
            let Some(&last) = before.last() else { return };
            if self.stands_for(last, byte) {
                next.add(end - 1);
            }
            for (meant, length) in escapes_before(before) {
                if self.stands_for(meant, byte) {
                    next.add(end - length);
                }
            }
            match nothing_before(before) {
                0 => return,
                length => end -= length,
            }
        }
    }
}

/// Returns the texts of all forms of `value`.
fn texts(value: &[u8]) -> impl Iterator<Item = (Zeroizing<Vec<u8>>, Alphabet)> {
    let plain = [(Zeroizing::new(value.to_vec()), Alphabet::Exact), (hex(value), Alphabet::Hex)];
    plain.into_iter().chain((0..3).map(|offset| (base64_core(value, offset), Alphabet::Base64)))
}

/// Returns the part of a form that a search may search for: the one, as near to the end as
/// possible, that reads the same wherever the form stands and whichever of its bytes are escaped. A
/// reader may take the beginning for digits of an escape before it, and the end for the beginning
/// of one that goes on, and a value may itself hold a text that reads as an escape.
fn stable(text: &[u8]) -> Range<usize> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let (first, mut escape_end) = (swallowed(text).max(1), 0);
    for (at, &byte) in text.iter().enumerate() {
        if begins_escape(byte) {
            escape_end = at + LONGEST_ESCAPE;
        }
        if at < first || at < escape_end && is_unstable(text, at) {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.end == at => run.end += 1,
            _ => runs.push(at..at + 1),
        }
    }
    let long = runs.iter().rev().find(|run| run.len() >= LONG_RUN);
    long.or(runs.iter().max_by_key(|run| run.len())).cloned().unwrap_or_default()
}

/// Returns how many bytes at the beginning of `text` may be taken for the rest of an escape before
/// it.
fn swallowed(text: &[u8]) -> usize {
    let begun = |before: &&[u8]| {
        let head = text.get(..LONGEST_ESCAPE.min(text.len())).unwrap_or_default();
        let found = escape(&[before, head].concat());
        found.map_or(0, |found| found.length().saturating_sub(before.len()))
    };
    BEGUN.iter().map(begun).max().unwrap_or(0)
}

/// Whether the byte at `at` may belong to an escape where the text stands by itself, or may be
/// misread where it is written as an escape: a backslash before it is then read together with that
/// of the escape.
fn is_unstable(text: &[u8], at: usize) -> bool {
    let first = at.saturating_sub(LONGEST_ESCAPE - 1);
    let behind_backslash = at > 0 && text.get(at - 1) == Some(&b'\\');
    behind_backslash
        || (first..=at).any(|begin| {
            let rest = text.get(begin..).unwrap_or_default();
            let begins = rest.first().is_some_and(|&byte| begins_escape(byte));
            let inside = || escape(rest).is_some_and(|found| begin + found.length() > at);
            begins && (inside() || goes_on(rest))
        })
}

/// Whether an escape at the beginning of `rest` may end beyond it.
fn goes_on(rest: &[u8]) -> bool {
    let within = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'#';
    rest.len() < LONGEST_ESCAPE && rest.iter().skip(1).all(within)
}

/// The possible occurrences around one place: one from each of the beginnings to each of the ends.
pub(super) struct Occurrences {
    begins: Positions,
    ends: Positions,
}

impl Occurrences {
    /// Returns the longest of those that are `wanted`.
    pub(super) fn longest(&self, wanted: impl Fn(&Range<usize>) -> bool) -> Option<Range<usize>> {
        let from = |&begin: &usize| self.ends.0.iter().map(move |&end| begin..end);
        let all = self.begins.0.iter().flat_map(from);
        all.filter(wanted).max_by_key(Range::len)
    }
}

/// Places in a text: nearly always one, and more only where a secret holds a text that reads as an
/// escape.
struct Positions(Vec<usize>);

impl Positions {
    fn one(place: usize) -> Self {
        Self(vec![place])
    }

    fn add(&mut self, place: usize) {
        if !self.0.contains(&place) {
            self.0.push(place);
        }
    }

    fn each(&self, mut step: impl FnMut(usize, &mut Self)) -> Option<Self> {
        let mut next = Self(Vec::new());
        self.0.iter().for_each(|&place| step(place, &mut next));
        (!next.0.is_empty()).then_some(next)
    }
}

fn hex(value: &[u8]) -> Zeroizing<Vec<u8>> {
    let digit = |digit: u8| if digit < 10 { b'0' + digit } else { b'a' + digit - 10 };
    let mut text = Zeroizing::new(Vec::with_capacity(value.len() * 2));
    value.iter().for_each(|&byte| text.extend([digit(byte >> 4), digit(byte & 0xf)]));
    text
}

/// Returns the base64 of `value` after `offset` unknown bytes, without the characters at either end
/// that depend on neighbouring bytes.
fn base64_core(value: &[u8], offset: usize) -> Zeroizing<Vec<u8>> {
    let mut padded = Zeroizing::new(vec![0; offset + value.len()]);
    padded.iter_mut().skip(offset).zip(value).for_each(|(to, from)| *to = *from);
    let encoded = Zeroizing::new(STANDARD_NO_PAD.encode(&*padded));
    let begin = (offset * 8).div_ceil(6);
    let end = padded.len() * 8 / 6;
    Zeroizing::new(encoded.as_bytes().get(begin..end).unwrap_or_default().to_vec())
}

/// Beginnings of every kind of escape; which digits they hold makes no difference.
const BEGUN: [&[u8]; 26] = [
    b"%", b"%4", b"\\", b"\\u", b"\\u0", b"\\u00", b"\\u004", b"\\x", b"\\x4", b"&", b"&#", b"&#6",
    b"&#x", b"&#x4", b"&a", b"&am", b"&amp", b"&ap", b"&l", b"&g", b"&q", b"&qu", b"&quo", b"&apo",
    b"=", b"=4",
];

/// The most bytes that stand for nothing between two of a form: UTF-32 has three, and a soft line
/// break may stand beside them.
const MOST_NOTHINGS: usize = 5;

/// The bytes of a window by which a form is found: of a value, of its hexadecimal and base64 forms,
/// and of one that is too short for these.
pub(super) const LONG: usize = 12;
pub(super) const HEX: usize = 2 * LONG;
pub(super) const BASE64: usize = LONG / 3 * 4;
pub(super) const SHORT: usize = 8;
/// The length from which one stable part is as good as a longer one.
const LONG_RUN: usize = 72;
