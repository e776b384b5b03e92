//! The shape of a provider's keys, for clients that check a key before they send it.
//!
//! A text of that shape is made of names alone: the group's, the placeholder's, and the shape's. So
//! it is the same after a restart and on every gateway with that policy, nothing of a secret is in
//! it, and it is as public as the placeholder, which it stands for.

use std::{fmt, sync::Arc};

use aws_lc_rs::digest::{self, Digest, SHA256};

use super::{GroupName, Placeholder};

/// Fixed text, and letters of alphabets, as in `ghp_[A-Za-z0-9]{36}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyShape {
    written: Arc<str>,
    parts: Arc<[ShapePart]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum ShapePart {
    Text(Arc<str>),
    Letters { alphabet: Arc<[u8]>, count: usize },
}

/// The reason why a text is not a [`KeyShape`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyShapeError {
    /// Neither fixed text nor a class with a count.
    #[error(
        "a shape is fixed text of letters, digits and '-._~:', and classes of these with counts, as \
         in ghp_[A-Za-z0-9]{{36}}"
    )]
    Syntax,
    /// More than [`Placeholder::MAX_BYTES`], as it is written or as a key.
    #[error("a shape, and a key of it, has at most 256 bytes")]
    TooLong,
    /// So few texts have the shape that two placeholders could have one, or a key be met by chance.
    #[error("too few texts have this shape; [A-Za-z0-9]{{11}} is the least")]
    TooFew,
}

impl KeyShape {
    /// Reads a shape as policy writes it.
    ///
    /// # Errors
    ///
    /// Where it is none.
    pub fn parse(written: &str) -> Result<Self, KeyShapeError> {
        if written.len() > Placeholder::MAX_BYTES {
            return Err(KeyShapeError::TooLong);
        }
        let mut parts = Vec::new();
        let mut rest = written;
        while !rest.is_empty() {
            let (part, after) = part(rest).ok_or(KeyShapeError::Syntax)?;
            parts.push(part);
            rest = after;
        }
        let shape = Self { written: written.into(), parts: parts.into() };
        if shape.length() > Placeholder::MAX_BYTES {
            return Err(KeyShapeError::TooLong);
        }
        if shape.texts() < FEWEST_TEXTS {
            return Err(KeyShapeError::TooFew);
        }
        Ok(shape)
    }

    /// Returns the text of this shape that stands for a placeholder of a group.
    pub fn made_up(&self, group: &GroupName, placeholder: &Placeholder) -> Arc<str> {
        let names = [VERSION, group.as_str(), placeholder.as_str(), &*self.written];
        let mut source = ShapeSource::of(&names);
        let mut text = String::with_capacity(self.length());
        for part in self.parts.iter() {
            match part {
                ShapePart::Text(fixed) => text.push_str(fixed),
                ShapePart::Letters { alphabet, count } => {
                    text.extend((0..*count).map(|_| char::from(source.letter(alphabet))));
                }
            }
        }
        text.into()
    }

    /// Whether every text of it is of these bytes alone.
    pub fn is_of(&self, allowed: impl Fn(u8) -> bool) -> bool {
        self.parts.iter().all(|part| match part {
            ShapePart::Text(fixed) => fixed.bytes().all(&allowed),
            ShapePart::Letters { alphabet, .. } => alphabet.iter().copied().all(&allowed),
        })
    }

    /// Returns the bytes of each text of it.
    pub fn length(&self) -> usize {
        let lengths = self.parts.iter().map(|part| match part {
            ShapePart::Text(fixed) => fixed.len(),
            ShapePart::Letters { count, .. } => *count,
        });
        lengths.sum()
    }

    /// The number of texts that have it, or the highest that can be counted.
    fn texts(&self) -> u128 {
        let letters = self.parts.iter().filter_map(|part| match part {
            ShapePart::Text(_) => None,
            ShapePart::Letters { alphabet, count } => Some((alphabet.len() as u128, *count as u32)),
        });
        letters.fold(1, |all, (letters, count)| all.saturating_mul(letters.saturating_pow(count)))
    }
}

impl fmt::Display for KeyShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

/// Returns the first part of a text, and the rest behind it.
fn part(text: &str) -> Option<(ShapePart, &str)> {
    let Some(class) = text.strip_prefix('[') else {
        let (fixed, rest) = text.split_at(text.find('[').unwrap_or(text.len()));
        return fixed.bytes().all(is_plain).then(|| (ShapePart::Text(fixed.into()), rest));
    };
    let (class, rest) = class.split_once(']')?;
    let alphabet = alphabet(class)?;
    let (count, rest) = match rest.strip_prefix('{') {
        Some(counted) => {
            let (count, rest) = counted.split_once('}')?;
            (number(count)?, rest)
        }
        None => (1, rest),
    };
    Some((ShapePart::Letters { alphabet, count }, rest))
}

/// The letters of a class, of which none is there twice. A hyphen at its end stands for itself.
fn alphabet(class: &str) -> Option<Arc<[u8]>> {
    let mut letters = Vec::new();
    let mut rest = class.as_bytes();
    while let [first, after @ ..] = rest {
        let (last, after) = match after {
            [b'-', last, after @ ..] => (last, after),
            after => (first, after),
        };
        let is_range = is_of_one_kind(*first, *last) && first < last;
        if first != last && !is_range || !is_plain(*first) {
            return None;
        }
        letters.extend(*first..=*last);
        rest = after;
    }
    let mut once = letters.clone();
    once.sort_unstable();
    once.dedup();
    (once.len() == letters.len() && once.len() > 1).then(|| letters.into())
}

fn is_of_one_kind(one: u8, other: u8) -> bool {
    let kinds = [u8::is_ascii_lowercase, u8::is_ascii_uppercase, u8::is_ascii_digit];
    kinds.iter().any(|kind| kind(&one) && kind(&other))
}

/// Letters that stand for themselves in every place where a key may be.
const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':')
}

fn number(text: &str) -> Option<usize> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|count| plain && *count <= Placeholder::MAX_BYTES)
}

/// Bytes without end that follow from a seed: SHA-256 of the seed with a counter.
struct ShapeSource {
    seed: Digest,
    block: Digest,
    blocks: u64,
    taken: usize,
}

impl ShapeSource {
    fn of(names: &[&str]) -> Self {
        // No name has a NUL.
        let seed = digest::digest(&SHA256, names.join("\0").as_bytes());
        Self { seed, block: block(&seed, 0), blocks: 0, taken: 0 }
    }

    fn byte(&mut self) -> u8 {
        loop {
            if let Some(byte) = self.block.as_ref().get(self.taken) {
                self.taken += 1;
                return *byte;
            }
            self.blocks += 1;
            (self.block, self.taken) = (block(&self.seed, self.blocks), 0);
        }
    }

    /// Any letter as often as any other.
    fn letter(&mut self, alphabet: &[u8]) -> u8 {
        let fair = 256 - 256 % alphabet.len().max(1);
        loop {
            let byte = usize::from(self.byte());
            if let Some(letter) = alphabet.get(byte % alphabet.len().max(1)).filter(|_| byte < fair)
            {
                return *letter;
            }
        }
    }
}

fn block(seed: &Digest, number: u64) -> Digest {
    digest::digest(&SHA256, &[seed.as_ref(), &number.to_be_bytes()].concat())
}

/// A change of this changes every made-up text.
const VERSION: &str = "cloakroom key shape 1";

/// So many that two placeholders of a policy do not have one text by chance.
const FEWEST_TEXTS: u128 = 1 << 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn made_up(shape: &str, group: &str, placeholder: &str) -> String {
        let (group, placeholder) = (GroupName(group.into()), Placeholder(placeholder.into()));
        KeyShape::parse(shape).unwrap().made_up(&group, &placeholder).to_string()
    }

    /// The texts that agents hold stay good after an update.
    #[test]
    fn a_made_up_text_is_the_same_in_every_version() {
        let text = made_up("made-up_[a-z0-9]{20}.[0-9A-F]{8}", "research", "OPENAI_API_KEY");
        assert_eq!(text, GOLDEN);
    }

    const GOLDEN: &str = "made-up_awzp1u9zzrha1060shtm.D6ADA6E0";

    #[test]
    fn each_group_placeholder_and_shape_has_its_own_text() {
        let one = made_up("x[a-z0-9]{20}", "research", "OPENAI_API_KEY");
        assert_eq!(one, made_up("x[a-z0-9]{20}", "research", "OPENAI_API_KEY"));
        for other in [
            made_up("x[a-z0-9]{20}", "researc", "hOPENAI_API_KEY"),
            made_up("x[a-z0-9]{20}", "ci", "OPENAI_API_KEY"),
            made_up("x[a-z0-9]{20}", "research", "OPENAI_API_KEY2"),
            made_up("x[a-z0-9]{10}[a-z0-9]{10}", "research", "OPENAI_API_KEY"),
        ] {
            assert_ne!(other, one);
        }
    }

    #[test]
    fn a_text_that_is_no_shape_is_refused() {
        for text in ["", "sk-", "[a-z]{13}", "[A-Za-z0-9]{10}", "x[a-z]", "[ab]{63}"] {
            assert_eq!(KeyShape::parse(text), Err(KeyShapeError::TooFew), "{text}");
        }
        for text in [
            "[a-z]{20",
            "[a-z",
            "[]{20}",
            "[a]{20}",
            "[aa-z]{20}",
            "[z-a]{20}",
            "[A-z]{20}",
            "[a-Z]{20}",
            "a]b[a-z]{20}",
            "x{20}[a-z]{20}",
            "[a-z]{020}",
            "[a-z]{}",
            "[a-z]{+20}",
            "[a-z]{0}",
            "[a-z]{20}*",
            "a b[a-z]{20}",
            "a/[a-z]{20}",
            "\u{e9}[a-z]{20}",
            "[\u{e9}a]{90}",
            "[a-z]{20,30}",
            "[^a]{20}",
            "[--a]{64}",
            "a%[a-z]{20}",
            "[a-z ]{20}",
        ] {
            assert_eq!(KeyShape::parse(text), Err(KeyShapeError::Syntax), "{text}");
        }
        for text in ["[a-z]{257}".to_owned(), "x[a-z]{256}".to_owned(), "x".repeat(257)] {
            assert!(KeyShape::parse(&text).is_err(), "{text}");
        }
        for text in [
            "[A-Za-z0-9]{11}",
            "[a-z]{256}",
            "[ab]{64}",
            "[a-z-]{20}",
            "[-a-z]{20}",
            "[1-9][0-9]{9}:AA[A-Za-z0-9_-]{33}",
        ] {
            assert_eq!(KeyShape::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn letters_of_an_alphabet_are_all_as_likely() {
        let mut counts = std::collections::BTreeMap::new();
        for number in 0..200 {
            let text = made_up("[a-z0-9_-]{250}", "research", &format!("PLACEHOLDER_{number}"));
            text.bytes().for_each(|byte| *counts.entry(byte).or_insert(0_u32) += 1);
        }
        // 50,000 letters of 38: 1,316 of each, with a deviation of 36.
        assert_eq!(counts.len(), 38);
        assert!(counts.values().all(|count| (1_136..1_496).contains(count)), "{counts:?}");
    }

    proptest! {
        #[test]
        fn a_made_up_text_matches_its_shape_and_is_visible(
            prefix in "[a-z_.~:-]{0,9}",
            class in "A-Z|a-f0-9|A-Za-z0-9_-|0-9|xyz-",
            count in 70_usize..200,
            placeholder in "[!-~]{8,40}",
        ) {
            let shape = format!("{prefix}[{class}]{{{count}}}");
            let text = made_up(&shape, "research", &placeholder);
            let pattern = format!("^{prefix}[{class}]{{{count}}}$");
            let parsed = KeyShape::parse(&shape).unwrap();
            prop_assert_eq!(text.len(), prefix.len() + count);
            prop_assert!(text.starts_with(&prefix), "{} {}", pattern, text);
            prop_assert!(parsed.is_of(|byte| byte.is_ascii_graphic()));
            prop_assert!(text.bytes().all(is_plain));
            let letters = alphabet(&class).unwrap();
            prop_assert!(text.bytes().skip(prefix.len()).all(|byte| letters.contains(&byte)));
        }

        #[test]
        fn whatever_is_no_shape_does_no_harm(text in ".{0,300}") {
            if let Ok(shape) = KeyShape::parse(&text) {
                let (group, placeholder) = (GroupName("g".into()), Placeholder("x".into()));
                prop_assert!(shape.made_up(&group, &placeholder).len() <= Placeholder::MAX_BYTES);
            }
        }
    }
}
