//! Host names as policy and the wire write them, reduced to one form.

use std::{borrow::Borrow, fmt};

/// A DNS host name: LDH labels plus `_`, lower case, no trailing dot, never an IP address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(Box<str>);

/// The reason why a text is not a [`Host`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Nothing, or an empty label.
    #[error("a host name has no empty label")]
    Empty,
    /// Above 253 bytes, or a label above 63 (RFC 1035, section 2.3.4).
    #[error("a host name has at most 253 bytes, and 63 in each label")]
    TooLong,
    /// A byte outside letters, digits, hyphen and underscore, or a hyphen at a label's end.
    #[error("a host name has only letters, digits, '-' (not at a label's end) and '_'")]
    BadByte,
    /// An IP address, or a name whose last label is a number and could be read as one.
    #[error("an IP address is not a host name")]
    IpAddress,
}

impl Host {
    /// Longest name in bytes, without the trailing dot (RFC 1035, section 2.3.4).
    pub const MAX_BYTES: usize = 253;
    const MAX_LABEL_BYTES: usize = 63;

    /// Reads a name as it stands in policy, in an SNI or in an authority without its port.
    /// Lower-cases it and removes one trailing dot.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() {
            return Err(HostError::Empty);
        }
        if name.len() > Self::MAX_BYTES {
            return Err(HostError::TooLong);
        }
        name.split('.').try_for_each(check_label)?;
        if last_label_is_number(name) {
            return Err(HostError::IpAddress);
        }
        Ok(Self(name.to_ascii_lowercase().into()))
    }

    /// The name, lower case, without trailing dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the names that this one is below, by whole labels, from the nearest on: a suffix
    /// matches if it is one of these.
    pub fn parents(&self) -> impl Iterator<Item = &str> {
        std::iter::successors(parent(&self.0), |name| parent(name))
    }
}

/// Both compare and hash as their text does.
impl Borrow<str> for Host {
    fn borrow(&self) -> &str {
        &self.0
    }
}

fn parent(name: &str) -> Option<&str> {
    name.split_once('.').map(|(_, parent)| parent)
}

fn check_label(label: &str) -> Result<(), HostError> {
    if label.is_empty() {
        return Err(HostError::Empty);
    }
    if label.len() > Host::MAX_LABEL_BYTES {
        return Err(HostError::TooLong);
    }
    let plain = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if !plain || label.starts_with('-') || label.ends_with('-') {
        return Err(HostError::BadByte);
    }
    Ok(())
}

/// Whether the last label is a number. URL parsers read `1.2.3`, `0x7f.1` and the like as IPv4
/// (WHATWG URL, section 3.5), so such a name is nobody's host name.
fn last_label_is_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    last.bytes().all(|b| b.is_ascii_digit())
        || hex.is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The names that a rule matches.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// Exactly this name.
    Exact(Host),
    /// Every name below this one, by whole labels, at any depth; never the name itself.
    Suffix(Host),
    /// Every name there is. Policy must ask for this with a word that says how dangerous it is.
    Any,
}

impl HostPattern {
    /// Whether the rule matches `host`.
    pub fn matches(&self, host: &Host) -> bool {
        match self {
            Self::Exact(name) => name == host,
            Self::Suffix(suffix) => host
                .as_str()
                .strip_suffix(suffix.as_str())
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
            Self::Any => true,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => host.fmt(f),
            Self::Suffix(host) => write!(f, "*.{host}"),
            Self::Any => f.write_str("*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Host {
        Host::parse(text).expect(text)
    }

    #[test]
    fn a_name_has_one_form() {
        assert_eq!(host("API.OpenAI.com.").as_str(), "api.openai.com");
        assert_eq!(host("_acme.x-1.example"), host("_ACME.X-1.EXAMPLE"));
    }

    #[test]
    fn what_is_not_a_plain_name_is_refused() {
        for (text, error) in [
            ("", HostError::Empty),
            (".", HostError::Empty),
            ("a..b", HostError::Empty),
            ("a.b..", HostError::Empty),
            (".a", HostError::Empty),
            ("a b", HostError::BadByte),
            ("a\0.b", HostError::BadByte),
            ("bücher.example", HostError::BadByte),
            ("-a.example", HostError::BadByte),
            ("a-.example", HostError::BadByte),
            ("*.example", HostError::BadByte),
            ("a:443", HostError::BadByte),
            ("[::1]", HostError::BadByte),
            ("127.0.0.1", HostError::IpAddress),
            ("127.1", HostError::IpAddress),
            ("0x7f.0x1", HostError::IpAddress),
            ("2130706433", HostError::IpAddress),
        ] {
            assert_eq!(Host::parse(text), Err(error), "{text:?}");
        }
        assert_eq!(Host::parse(&"a".repeat(64)), Err(HostError::TooLong));
        assert_eq!(Host::parse(&"a.".repeat(127)), Ok(host(&"a.".repeat(127))));
        assert_eq!(Host::parse(&"ab.".repeat(85)), Err(HostError::TooLong));
    }

    #[test]
    fn a_suffix_means_whole_labels_below_it() {
        let suffix = HostPattern::Suffix(host("pythonhosted.org"));
        assert!(suffix.matches(&host("files.pythonhosted.org")));
        assert!(suffix.matches(&host("a.b.pythonhosted.org")));
        assert!(!suffix.matches(&host("pythonhosted.org")));
        assert!(!suffix.matches(&host("evilpythonhosted.org")));
        assert!(!suffix.matches(&host("pythonhosted.org.evil.example")));
    }
}
