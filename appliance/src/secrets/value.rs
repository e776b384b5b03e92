//! A secret in memory: zeroised when dropped; never printed, cloned or serialised.

use zeroize::Zeroizing;

use crate::policy::{FLOOR_VALUE_BYTES, MAX_VALUE_BYTES, MIN_VALUE_BYTES};

/// The bytes of a credential: 8 to 8,192 of 0x21 to 0x7E.
///
/// Clone, Debug, Display and Serialize are missing on purpose: share the value through an `Arc`,
/// and take its bytes only where they are put on the wire or masked.
pub struct SecretValue(Zeroizing<Box<[u8]>>);

/// The reasons why bytes are no [`SecretValue`]. Carries no part of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub enum SecretError {
    /// There are fewer bytes than the binding demands.
    TooShort,
    /// There are more than [`SecretValue::MAX_BYTES`].
    TooLong,
    /// A byte is outside 0x21 to 0x7E.
    BadByte,
}

impl SecretValue {
    /// Fewest bytes, unless the operator says otherwise: shorter values cannot be masked well.
    pub const MIN_BYTES: usize = MIN_VALUE_BYTES;
    /// Fewest bytes, whatever the operator says.
    pub const FLOOR_BYTES: usize = FLOOR_VALUE_BYTES;
    /// Most bytes.
    pub const MAX_BYTES: usize = MAX_VALUE_BYTES;

    /// Checks a value as its source delivered it; one trailing LF or CRLF is trimmed first.
    pub fn load(bytes: Zeroizing<Vec<u8>>, min_bytes: usize) -> Result<Self, SecretError> {
        Self::check(&bytes, min_bytes).map(|value| Self(Zeroizing::new(value.into())))
    }

    /// Returns the bytes that [`SecretValue::load`] would keep of these.
    pub(super) fn check(bytes: &[u8], min_bytes: usize) -> Result<&[u8], SecretError> {
        let value = without_line_end(bytes);
        if value.len() < min_bytes.max(Self::FLOOR_BYTES) {
            return Err(SecretError::TooShort);
        }
        if value.len() > Self::MAX_BYTES {
            return Err(SecretError::TooLong);
        }
        if !value.iter().all(u8::is_ascii_graphic) {
            return Err(SecretError::BadByte);
        }
        Ok(value)
    }

    /// Returns the bytes, for the wire and for masking only.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// Returns the bytes without one LF or CRLF at the end.
pub(crate) fn without_line_end(bytes: &[u8]) -> &[u8] {
    match bytes.strip_suffix(b"\n") {
        Some(line) => line.strip_suffix(b"\r").unwrap_or(line),
        None => bytes,
    }
}

impl SecretError {
    /// Returns the fault.
    pub const fn text(self) -> &'static str {
        match self {
            Self::TooShort => "the value is shorter than its binding allows",
            Self::TooLong => "the value is longer than 8192 bytes",
            Self::BadByte => "the value has a byte outside 0x21 to 0x7e",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(bytes: &[u8]) -> Result<Vec<u8>, SecretError> {
        SecretValue::load(Zeroizing::new(bytes.to_vec()), SecretValue::MIN_BYTES)
            .map(|value| value.expose().to_vec())
    }

    #[test]
    fn one_line_end_is_trimmed_and_no_more() {
        let plain = b"sk-0123456789abcdef".to_vec();
        for end in ["", "\n", "\r\n"] {
            assert_eq!(load(&[&plain, end.as_bytes()].concat()), Ok(plain.clone()), "{end:?}");
        }
        for end in ["\r", "\n\n", "\r\r\n", " ", "\t\n"] {
            assert_eq!(load(&[&plain, end.as_bytes()].concat()), Err(SecretError::BadByte));
        }
    }

    #[test]
    fn what_could_break_a_header_is_no_value() {
        assert_eq!(load(b"sk-0123456789\r\nX-Evil: 1"), Err(SecretError::BadByte));
        assert_eq!(load(b"0123456789abcde"), Err(SecretError::TooShort));
        assert_eq!(load(&[b'a'; 8_193]), Err(SecretError::TooLong));
    }

    #[test]
    fn no_word_of_the_operator_allows_less_than_the_floor() {
        let short = Zeroizing::new(b"1234567".to_vec());
        assert_eq!(SecretValue::load(short, 1).err(), Some(SecretError::TooShort));
    }
}
