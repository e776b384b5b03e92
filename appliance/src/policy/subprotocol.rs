//! A place in a WebSocket's handshake: behind fixed text in one of the offered subprotocols.
//! Browsers let a page set no other field of the handshake, so APIs take keys in this one.

use std::{fmt, sync::Arc};

use thiserror::Error;

use super::credential::is_credential_query;

/// The fixed text before a credential in an offered subprotocol, as in `openai-insecure-api-key.`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SubprotocolPrefix(Arc<str>);

/// The reason why a text is not a [`SubprotocolPrefix`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "the text before a credential in a subprotocol has 1 to 64 letters, digits and marks of a \
     token, and ends in a mark, as in openai-insecure-api-key."
)]
pub struct SubprotocolError;

impl SubprotocolPrefix {
    /// Reads a prefix as policy writes it.
    ///
    /// # Errors
    ///
    /// Where it could not stand in a handshake, or does not end where a credential begins.
    pub fn parse(text: &str) -> Result<Self, SubprotocolError> {
        let ends = text.bytes().last().is_some_and(|byte| !byte.is_ascii_alphanumeric());
        let good = is_token(text.as_bytes()) && ends && text.len() <= MAX_PREFIX;
        if good { Ok(Self(text.into())) } else { Err(SubprotocolError) }
    }

    /// Returns the offset of a credential in an offer, for a server that is lenient about case.
    pub fn find(&self, offer: &[u8]) -> Option<usize> {
        let start = offer.get(..self.0.len())?;
        start.eq_ignore_ascii_case(self.0.as_bytes()).then_some(self.0.len())
    }

    /// Whether an offer begins with this prefix, byte for byte.
    pub fn fits(&self, offer: &[u8]) -> bool {
        offer.starts_with(self.0.as_bytes())
    }
}

/// Whether an offer that no binding knows carries a credential: one of its words is a credential's
/// name (`openai-insecure-api-key.…`, `base64url.bearer.authorization.k8s.io.…`, `token`), or it is
/// longer than the names of protocols are. Errs to refusal.
pub(crate) fn is_credential_subprotocol(offer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(offer);
    let mut words = text.split(|char: char| !char.is_ascii_alphanumeric());
    offer.len() > MAX_PLAIN_OFFER || words.any(is_credential_query)
}

/// Whether a text is a token of HTTP (RFC 9110, section 5.6.2), as subprotocols are.
pub(crate) fn is_token(text: &[u8]) -> bool {
    let mark = |byte: &u8| b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.iter().all(|byte| byte.is_ascii_alphanumeric() || mark(byte))
}

impl fmt::Display for SubprotocolPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The most bytes of the text before a credential.
const MAX_PREFIX: usize = 64;
/// Bytes of the longest subprotocol that is only a name.
const MAX_PLAIN_OFFER: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_part_of_a_token_and_ends_marked() {
        for good in ["openai-insecure-api-key.", "a-", "_"] {
            assert_eq!(SubprotocolPrefix::parse(good).map(|it| it.to_string()), Ok(good.into()));
        }
        let long = format!("{}.", "a".repeat(64));
        for bad in ["", "key", "a b.", "a,", "a:", "a/", "é.", &long] {
            assert_eq!(SubprotocolPrefix::parse(bad), Err(SubprotocolError), "{bad}");
        }
    }

    #[test]
    fn a_protocol_name_is_no_credential_and_its_suffix_is() {
        for plain in [
            "realtime",
            "openai-beta.realtime-v1",
            "openai-organization.org-0123456789abcdefghijklmn",
            "openai-project.proj_0123456789abcdefghijklmn",
            "graphql-transport-ws",
            "v4.channel.k8s.io",
            "mqtt",
            "wamp.2.json",
        ] {
            assert!(!is_credential_subprotocol(plain.as_bytes()), "{plain}");
        }
        for key in [
            "openai-insecure-api-key.sk-mine",
            "OpenAI-Insecure-API-Key.sk-mine",
            "base64url.bearer.authorization.k8s.io.bWluZQ",
            "token",
            "Bearer",
            "apikey-mine",
            "access_token.mine",
            &"a".repeat(65),
        ] {
            assert!(is_credential_subprotocol(key.as_bytes()), "{key}");
        }
    }
}
