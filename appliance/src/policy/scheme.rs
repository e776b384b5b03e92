//! Schemes: the text before a credential in a header field.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

/// The text before a credential in a header field.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// A word and one space (RFC 9110, section 11.4).
    Word(SchemeWord),
    /// Nothing.
    Raw,
}

/// The word of a scheme, sent as it was written and compared without regard to case (RFC 9110,
/// section 11.1).
#[derive(Debug, Clone)]
pub struct SchemeWord(Arc<str>);

/// The reason why words are no scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SchemeError {
    /// None of the spellings of a scheme.
    #[error(
        "say how the placeholder stands there: bearer, token, scheme WORD or raw, in small letters"
    )]
    Unknown,
    /// Not a token of RFC 9110, section 5.6.2, or longer than [`SchemeWord::MAX_BYTES`].
    #[error("after \"scheme\" stands a word of letters, digits and \"-._~+\"")]
    NotAToken,
    /// Basic, whose credential has two halves with places of their own.
    #[error("for Basic write \"basic user\" or \"basic password\"")]
    Basic,
}

impl Scheme {
    /// Reads a scheme as policy writes it: `bearer`, `token`, `scheme WORD` or `raw`.
    pub fn parse(words: &[&str]) -> Result<Self, SchemeError> {
        match words {
            ["bearer"] => SchemeWord::parse("Bearer").map(Self::Word),
            ["token"] => SchemeWord::parse("token").map(Self::Word),
            ["scheme", word] => SchemeWord::parse(word).map(Self::Word),
            ["raw"] => Ok(Self::Raw),
            _ => Err(SchemeError::Unknown),
        }
    }

    /// Returns the scheme as policy writes it.
    pub(super) fn as_written(&self) -> String {
        match self {
            Self::Word(word) if &*word.0 == "Bearer" => "bearer".to_owned(),
            Self::Word(word) if &*word.0 == "token" => "token".to_owned(),
            Self::Word(word) => format!("scheme {}", word.0),
            Self::Raw => "raw".to_owned(),
        }
    }

    /// Returns the credential of a field's value, where the value has this scheme.
    pub fn credential<'a>(&self, value: &'a [u8]) -> Option<&'a [u8]> {
        match self {
            Self::Raw => Some(value),
            Self::Word(word) => after_word(value, &word.0),
        }
    }
}

impl Scheme {
    /// Returns the encoded pair of a value of Basic (RFC 7617).
    pub fn basic_credential(value: &[u8]) -> Option<&[u8]> {
        after_word(value, "basic")
    }
}

/// Returns the text that follows a word and exactly one space.
pub(crate) fn after_word<'a>(value: &'a [u8], word: &str) -> Option<&'a [u8]> {
    let (start, rest) = value.split_at_checked(word.len())?;
    if start.eq_ignore_ascii_case(word.as_bytes()) { rest.strip_prefix(b" ") } else { None }
}

impl SchemeWord {
    /// The most bytes of a word.
    pub const MAX_BYTES: usize = 64;

    /// Returns the word as policy writes it.
    pub(super) fn written(&self) -> String {
        match &*self.0 {
            "Bearer" => "bearer".to_owned(),
            "token" => "token".to_owned(),
            word => format!("scheme {word}"),
        }
    }

    fn parse(text: &str) -> Result<Self, SchemeError> {
        if text.eq_ignore_ascii_case("basic") {
            return Err(SchemeError::Basic);
        }
        let tchar = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let fits = (1..=Self::MAX_BYTES).contains(&text.len()) && text.bytes().all(tchar);
        fits.then(|| Self(text.into())).ok_or(SchemeError::NotAToken)
    }
}

impl PartialEq for SchemeWord {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for SchemeWord {}

impl Hash for SchemeWord {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_ascii_lowercase().hash(state);
    }
}

/// Writes the text before the credential: the word and its space, or nothing.
impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => write!(f, "{} ", word.0),
            Self::Raw => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheme(text: &str) -> Result<Scheme, SchemeError> {
        Scheme::parse(&text.split(' ').collect::<Vec<_>>())
    }

    #[test]
    fn a_scheme_is_a_word_sent_as_written() {
        for (text, sent) in [
            ("bearer", "Bearer "),
            ("token", "token "),
            ("scheme Key", "Key "),
            ("scheme Klaviyo-API-Key", "Klaviyo-API-Key "),
            ("scheme SSWS", "SSWS "),
            ("scheme a!#$%&'*+-.^_`|~1", "a!#$%&'*+-.^_`|~1 "),
            ("raw", ""),
        ] {
            assert_eq!(scheme(text).unwrap().to_string(), sent, "{text}");
        }
        assert_eq!(scheme("scheme BEARER"), scheme("bearer"));
        assert_ne!(scheme("scheme Bot"), scheme("bearer"));
        let long = format!("scheme {}", "x".repeat(65));
        for (text, error) in [
            ("", SchemeError::Unknown),
            ("Key", SchemeError::Unknown),
            ("Bearer", SchemeError::Unknown),
            ("scheme", SchemeError::Unknown),
            ("scheme a b", SchemeError::Unknown),
            ("scheme ", SchemeError::NotAToken),
            ("scheme a:b", SchemeError::NotAToken),
            ("scheme \"a\"", SchemeError::NotAToken),
            ("scheme \u{e9}", SchemeError::NotAToken),
            (&long, SchemeError::NotAToken),
            ("scheme BASIC", SchemeError::Basic),
        ] {
            assert_eq!(scheme(text), Err(error), "{text}");
        }
    }

    #[test]
    fn a_credential_follows_its_word_and_one_space() {
        let key = scheme("scheme Key").unwrap();
        for value in ["Key FAL_KEY", "key FAL_KEY", "KEY FAL_KEY"] {
            assert_eq!(key.credential(value.as_bytes()), Some(&b"FAL_KEY"[..]), "{value}");
        }
        assert_eq!(key.credential(b"Key  FAL_KEY"), Some(&b" FAL_KEY"[..]));
        for value in ["FAL_KEY", "KeyFAL_KEY", "Key\tFAL_KEY", "Keys FAL_KEY", "Key", ""] {
            assert_eq!(key.credential(value.as_bytes()), None, "{value}");
        }
        assert_eq!(Scheme::Raw.credential(b"Key x"), Some(&b"Key x"[..]));
    }
}
