//! The forms in which a secret may come back, and how one is recognised at a given place.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use zeroize::Zeroizing;

/// A text, and the spellings in which its bytes may stand.
pub(super) struct Form {
    text: Arc<Zeroizing<Vec<u8>>>,
    alphabet: Alphabet,
    style: Style,
}

/// Which other byte may stand for a byte of the text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Alphabet {
    Exact,
    /// `-` for `+` and `_` for `/` (RFC 4648, section 5).
    Base64,
    /// Upper case for lower case.
    Hex,
}

/// Which bytes are written as escapes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    /// Unreserved bytes as they are; every other one as it is, or as any escape.
    Natural,
    /// Every byte as `%XX`.
    Percent,
    /// Every byte as `\u00XX`.
    Unicode,
}

/// What a form has to say about the bytes at a place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Bytes of the longest occurrence that begins here; 0 where there is none.
    pub(super) matched: usize,
    /// Whether all bytes to the end are the beginning of an occurrence that is not complete.
    pub(super) partial: bool,
}

impl Form {
    /// Every form of `value`.
    pub(super) fn all(value: &[u8]) -> Vec<Self> {
        let raw = Arc::new(Zeroizing::new(value.to_vec()));
        let form = |text: &Arc<Zeroizing<Vec<u8>>>, alphabet, style| Self {
            text: text.clone(),
            alphabet,
            style,
        };
        let mut forms = vec![
            form(&raw, Alphabet::Exact, Style::Natural),
            form(&raw, Alphabet::Exact, Style::Percent),
            form(&raw, Alphabet::Exact, Style::Unicode),
            form(&Arc::new(hex(value)), Alphabet::Hex, Style::Natural),
        ];
        forms.extend((0..3).map(|offset| {
            form(&Arc::new(base64_core(value, offset)), Alphabet::Base64, Style::Natural)
        }));
        forms
    }

    /// Every form of `value` as it looks in a field name, which is always lower case.
    pub(super) fn all_lower_case(value: &[u8]) -> Vec<Self> {
        let mut forms = Self::all(value);
        for form in &mut forms {
            form.text = Arc::new(Zeroizing::new(form.text.to_ascii_lowercase()));
        }
        forms
    }

    /// Holds the beginning of `bytes` against the form.
    pub(super) fn look(&self, bytes: &[u8]) -> Seen {
        let mut seen = Seen::default();
        let plain = self.plain_beginning(bytes);
        let mut ends = Ends::default();
        ends.add(plain);
        for &byte in self.text.iter().skip(plain) {
            let mut next = Ends::default();
            for at in ends.iter() {
                self.step(byte, bytes.get(at..).unwrap_or_default(), |met| match met {
                    Met::Whole(length) => next.add(at + length),
                    Met::Part => seen.partial = true,
                    Met::Not => (),
                });
            }
            if next.one.is_none() {
                return seen;
            }
            ends = next;
        }
        seen.matched = ends.iter().max().unwrap_or(0);
        seen
    }

    /// Every text that an occurrence can begin with, cut after [`FINGERPRINT_BYTES`].
    pub(super) fn fingerprints(&self) -> Vec<[u8; FINGERPRINT_BYTES]> {
        let mut done = Vec::new();
        let mut open = vec![Vec::new()];
        for &byte in self.text.iter() {
            let ends: Vec<_> = self.spellings(byte).flat_map(Spelling::cases).collect();
            let grown =
                open.iter().flat_map(|begun| ends.iter().map(|end| [&**begun, end].concat()));
            let mut next: Vec<Vec<u8>> = Vec::new();
            for text in grown {
                match text.first_chunk() {
                    Some(fingerprint) => done.push(*fingerprint),
                    None => next.push(text),
                }
            }
            open = next;
        }
        done
    }

    /// Bytes of the longest occurrence there can be.
    pub(super) fn longest(&self) -> usize {
        let longest_of = |&byte: &u8| self.spellings(byte).map(|spelling| spelling.length).max();
        self.text.iter().filter_map(longest_of).sum()
    }

    /// How many bytes of the text stand here as they are. As none of them begins an escape, there
    /// is no other way to read them.
    fn plain_beginning(&self, bytes: &[u8]) -> usize {
        if self.style != Style::Natural {
            return 0;
        }
        let plain = |(want, byte): &(&u8, &u8)| want == byte && !begins_escape(**byte);
        self.text.iter().zip(bytes).take_while(plain).count()
    }

    fn step(&self, byte: u8, bytes: &[u8], mut found: impl FnMut(Met)) {
        if let Some(&first) = bytes.first()
            && self.style == Style::Natural
            && !begins_escape(first)
        {
            let stands = self.twins(byte).any(|twin| first == twin);
            return found(if stands { Met::Whole(1) } else { Met::Not });
        }
        self.spellings(byte).for_each(|spelling| found(spelling.meet(bytes)));
    }

    fn spellings(&self, byte: u8) -> impl Iterator<Item = Spelling> {
        let style = self.style;
        self.twins(byte).flat_map(move |byte| style.spellings(byte))
    }

    fn twins(&self, byte: u8) -> impl Iterator<Item = u8> + use<> {
        let twin = match (self.alphabet, byte) {
            (Alphabet::Base64, b'+') => Some(b'-'),
            (Alphabet::Base64, b'/') => Some(b'_'),
            (Alphabet::Hex, b'a'..=b'f') => Some(byte.to_ascii_uppercase()),
            _ => None,
        };
        std::iter::once(byte).chain(twin)
    }
}

impl Style {
    fn spellings(self, byte: u8) -> impl Iterator<Item = Spelling> {
        let unreserved = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        let natural = self == Self::Natural;
        let short = natural && b"\"\\/".contains(&byte);
        [
            natural.then(|| Spelling::new(&[byte], 1)),
            (self == Self::Percent || natural && !unreserved).then(|| Spelling::percent(byte)),
            (self == Self::Unicode || natural && !unreserved).then(|| Spelling::unicode(byte)),
            short.then(|| Spelling::new(&[b'\\', byte], 2)),
        ]
        .into_iter()
        .flatten()
    }
}

/// One way to write one byte, with hexadecimal digits in lower case.
#[derive(Clone, Copy)]
struct Spelling {
    text: [u8; 6],
    length: usize,
    /// Where the hexadecimal digits begin, whose case does not matter.
    digits: usize,
}

enum Met {
    Whole(usize),
    Part,
    Not,
}

impl Spelling {
    fn new(bytes: &[u8], digits: usize) -> Self {
        let mut text = [0; 6];
        text.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        Self { text, length: bytes.len(), digits }
    }

    fn percent(byte: u8) -> Self {
        let [high, low] = hex_digits(byte);
        Self::new(&[b'%', high, low], 1)
    }

    fn unicode(byte: u8) -> Self {
        let [high, low] = hex_digits(byte);
        Self::new(&[b'\\', b'u', b'0', b'0', high, low], 2)
    }

    fn meet(&self, bytes: &[u8]) -> Met {
        let mut spelled = self.text.iter().take(self.length).zip(bytes).enumerate();
        let equal = |(at, (want, byte)): (usize, (&u8, &u8))| {
            want == byte || at >= self.digits && *want == byte.to_ascii_lowercase()
        };
        if !spelled.all(equal) {
            Met::Not
        } else if bytes.len() < self.length {
            Met::Part
        } else {
            Met::Whole(self.length)
        }
    }

    /// The spelling with its digits in lower and in upper case: for a byte of ASCII, at most the
    /// last one is a letter, so there are no more.
    fn cases(self) -> [Vec<u8>; 2] {
        let lower: Vec<u8> = self.text.iter().take(self.length).copied().collect();
        let mut upper = lower.clone();
        upper.iter_mut().skip(self.digits).for_each(u8::make_ascii_uppercase);
        [lower, upper]
    }
}

/// The places where the bytes read so far may end: nearly always one, more only where a secret
/// holds `%` or `\` itself.
#[derive(Default)]
struct Ends {
    one: Option<usize>,
    more: Vec<usize>,
}

impl Ends {
    fn add(&mut self, end: usize) {
        match self.one {
            None => self.one = Some(end),
            Some(one) if one != end && !self.more.contains(&end) => self.more.push(end),
            Some(_) => (),
        }
    }

    fn iter(&self) -> impl Iterator<Item = usize> {
        self.one.into_iter().chain(self.more.iter().copied())
    }
}

/// Every other byte stands for itself or for nothing.
fn begins_escape(byte: u8) -> bool {
    matches!(byte, b'%' | b'\\')
}

fn hex(value: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut text = Zeroizing::new(Vec::with_capacity(value.len() * 2));
    value.iter().for_each(|&byte| text.extend(hex_digits(byte)));
    text
}

fn hex_digits(byte: u8) -> [u8; 2] {
    [byte >> 4, byte & 0xf].map(|digit| if digit < 10 { b'0' + digit } else { b'a' + digit - 10 })
}

/// The base64 of `value` after `offset` unknown bytes, without the characters at either end that
/// depend on what stands beside it.
fn base64_core(value: &[u8], offset: usize) -> Zeroizing<Vec<u8>> {
    let mut padded = Zeroizing::new(vec![0; offset + value.len()]);
    padded.iter_mut().skip(offset).zip(value).for_each(|(to, from)| *to = *from);
    let encoded = Zeroizing::new(STANDARD_NO_PAD.encode(&*padded));
    let begin = (offset * 8).div_ceil(6);
    let end = padded.len() * 8 / 6;
    Zeroizing::new(encoded.as_bytes().get(begin..end).unwrap_or_default().to_vec())
}

/// Bytes by which a form is looked for: a whole `\u00XX`, so that JSON full of escapes gives no
/// reason to look closer. No form is shorter, since no secret has fewer than eight bytes.
pub(super) const FINGERPRINT_BYTES: usize = 6;
