//! Readers of the names and texts of a policy. A text that does not fit is refused, never repaired.

use std::{fmt, sync::Arc};

/// The name of an agent group: 1 to 64 bytes of `[a-z0-9_-]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupName(pub(crate) Arc<str>);

/// The name of an API, a pass or a TCP rule: 1 to 64 bytes of `[a-z0-9_-]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleName(pub(crate) Arc<str>);

/// A network interface's name: 1 to 15 bytes, as the kernel takes it (`IFNAMSIZ` less one).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceName(pub(crate) Arc<str>);

/// The text an agent holds instead of a secret: 8 to 256 bytes of 0x21 to 0x7E without `:`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Placeholder(pub(crate) Arc<str>);

macro_rules! text_newtype {
    ($($name:ident),+) => {$(
        impl $name {
            /// The text as the operator wrote it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )+};
}

text_newtype!(GroupName, RuleName, InterfaceName, Placeholder);

/// A text is not 1 to 64 bytes of `[a-z0-9_-]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a name has 1 to 64 of the characters a-z, 0-9, '_' and '-'")]
pub struct NameError;

/// A text is not the name of an interface that agents can be behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceError {
    /// Not 1 to 15 bytes.
    #[error("the name of an interface has 1 to 15 bytes")]
    Length,
    /// A byte outside letters, digits, `.`, `_` and `-`, or no letter or digit at all.
    #[error("the name of an interface has letters, digits, '.', '_' and '-'")]
    BadByte,
    /// A name that means something else: `lo`, `all` or `default`.
    #[error("'lo', 'all' and 'default' are not interfaces with agents behind")]
    Reserved,
}

/// The reason why a text is not a [`Placeholder`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlaceholderError {
    /// Fewer than [`Placeholder::MIN_BYTES`].
    #[error("a placeholder has at least 8 bytes")]
    TooShort,
    /// More than [`Placeholder::MAX_BYTES`].
    #[error("a placeholder has at most 256 bytes")]
    TooLong,
    /// A byte outside 0x21 to 0x7E.
    #[error("a placeholder has only visible ASCII characters, no space")]
    BadByte,
    /// A colon, which would end the user of a Basic credential (RFC 7617, section 2).
    #[error("a placeholder has no ':', which would split a Basic credential")]
    Colon,
}

impl GroupName {
    /// Reads the name of a group.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        check_name(text).map(|()| Self(text.into()))
    }
}

impl RuleName {
    /// Reads the name of an API or a pass rule. It becomes part of file names.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        check_name(text).map(|()| Self(text.into()))
    }
}

impl InterfaceName {
    /// Longest name in bytes: `IFNAMSIZ` less the closing zero.
    pub const MAX_BYTES: usize = 15;

    /// Reads the name of a network interface. Stricter than the kernel: no byte that a shell, a
    /// rule listing or a path under `/proc/sys/net` could misread.
    pub fn parse(text: &str) -> Result<Self, InterfaceError> {
        if text.is_empty() || text.len() > Self::MAX_BYTES {
            return Err(InterfaceError::Length);
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if !text.bytes().all(plain) || !text.bytes().any(|b| b.is_ascii_alphanumeric()) {
            return Err(InterfaceError::BadByte);
        }
        if matches!(text, "lo" | "all" | "default") {
            return Err(InterfaceError::Reserved);
        }
        Ok(Self(text.into()))
    }
}

impl Placeholder {
    /// The fewest bytes: a shorter text could be an ordinary word of a header.
    pub const MIN_BYTES: usize = 8;
    /// The most bytes.
    pub const MAX_BYTES: usize = 256;

    /// Reads a placeholder.
    pub fn parse(text: &str) -> Result<Self, PlaceholderError> {
        if text.len() < Self::MIN_BYTES {
            return Err(PlaceholderError::TooShort);
        }
        if text.len() > Self::MAX_BYTES {
            return Err(PlaceholderError::TooLong);
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(PlaceholderError::BadByte);
        }
        if text.contains(':') {
            return Err(PlaceholderError::Colon);
        }
        Ok(Self(text.into()))
    }
}

fn check_name(text: &str) -> Result<(), NameError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    let fits = (1..=MAX_NAME_BYTES).contains(&text.len()) && text.bytes().all(plain);
    fits.then_some(()).ok_or(NameError)
}

const MAX_NAME_BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_plain_and_lower_case() {
        for text in ["a", "openai", "git-hub_2", &"x".repeat(64)] {
            assert_eq!(GroupName::parse(text).unwrap().as_str(), text);
            assert_eq!(RuleName::parse(text).unwrap().as_str(), text);
        }
        for text in ["", "A", "a b", "a/b", "..", "a.b", "\u{e9}", &"x".repeat(65)] {
            assert_eq!(GroupName::parse(text), Err(NameError), "{text:?}");
            assert_eq!(RuleName::parse(text), Err(NameError), "{text:?}");
        }
    }

    #[test]
    fn an_interface_is_one_that_agents_can_be_behind() {
        for text in ["agents0", "eth0.100", "br-lan_1", "x"] {
            assert_eq!(InterfaceName::parse(text).unwrap().as_str(), text);
        }
        for (text, error) in [
            ("", InterfaceError::Length),
            ("a123456789012345", InterfaceError::Length),
            ("a/b", InterfaceError::BadByte),
            ("..", InterfaceError::BadByte),
            ("eth*", InterfaceError::BadByte),
            ("a\nb", InterfaceError::BadByte),
            ("lo", InterfaceError::Reserved),
            ("all", InterfaceError::Reserved),
        ] {
            assert_eq!(InterfaceName::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn a_placeholder_can_stand_whole_in_every_place() {
        for text in ["OPENAI_API_KEY", "sk-placeholder", "xoxb-1/2+3=", &"x".repeat(256)] {
            assert_eq!(Placeholder::parse(text).unwrap().as_str(), text);
        }
        for (text, error) in [
            ("1234567", PlaceholderError::TooShort),
            ("two words", PlaceholderError::BadByte),
            ("sch\u{fc}ssel0", PlaceholderError::BadByte),
            ("user:password", PlaceholderError::Colon),
        ] {
            assert_eq!(Placeholder::parse(text), Err(error), "{text:?}");
        }
        assert_eq!(Placeholder::parse(&"x".repeat(257)), Err(PlaceholderError::TooLong));
    }
}
