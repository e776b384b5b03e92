//! Credentials that an API makes in its answers and wants back: their places in answers, the hosts
//! that take them back, and their places in requests. The agent gets a ticket in the place of each.
//!
//! The path of the request alone decides whether an answer is read for credentials. A method, or a
//! field that some servers take for another method, changes nothing, and a path that some server
//! takes for the same one is refused.

use std::{fmt, sync::Arc};

use http::HeaderName;
use thiserror::Error;

use super::{JsonPattern, Scheme, body_place::loosely_read, path::opened};

/// The look of a ticket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TicketShape {
    /// An opaque word.
    #[default]
    Opaque,
    /// A JSON Web Token, where the credential is one. It holds the same times of issue and expiry,
    /// and nothing else of the credential: some clients read them.
    Jwt,
}

/// The answers in which a credential stands, and its spot there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MintedAt {
    /// The paths of the requests.
    pub path: MintPath,
    /// The spot in their answers.
    pub spot: AnswerSpot,
    /// The text before or around the credential.
    pub scheme: MintScheme,
}

/// The spot of a credential in an answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AnswerSpot {
    /// Every string that this pattern names.
    Json(JsonPattern),
    /// Every value of this field.
    Header(HeaderName),
}

/// The text before a credential in an answer, or around it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum MintScheme {
    /// A scheme, as in a header field of a request.
    Text(Scheme),
    /// The user of `Basic`; the password stays as it is.
    BasicUser,
    /// The password of `Basic`; the user stays as it is.
    BasicPassword,
}

/// The reason why a text is no [`MintedAt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MintedAtError {
    /// Not a spot, a scheme, `in` and a path.
    #[error(
        "write \"json POINTER in PATH\" or \"header NAME raw in PATH\", with bearer, token, \
         scheme WORD, basic user or basic password where something stands before the credential, in \
         small letters"
    )]
    Shape,
    /// Not a pointer that all readers understand alike.
    #[error(
        "a pointer has up to 16 names, each behind a '/': letters, digits, '-', '.', '_', '$', \
         '@', ':', \"~0\" for '~' and \"~1\" for '/', or '*' for every member"
    )]
    Pointer,
    /// Not the name of a field that may hold a credential.
    #[error("this is not the name of a header field")]
    Field,
    /// None of the spellings of a scheme.
    #[error(
        "say how the credential stands there: bearer, token, scheme WORD, basic user, basic \
         password or raw, in small letters"
    )]
    Scheme,
    /// No path.
    #[error(
        "a path begins with '/', without escapes and dot segments; '*' is any one segment, and \
         at the end all that is below"
    )]
    Path,
}

impl MintedAt {
    /// The most bytes of an answer that may hold such a credential. A batch of git-lfs names a
    /// hundred objects, each with a long address.
    pub const MAX_BYTES: usize = 256 * 1024;

    /// Reads the words of such a place, as in `json /access_token in /oauth/token`.
    ///
    /// # Errors
    ///
    /// Where the words are no such place.
    pub fn parse(words: &[&str]) -> Result<Self, MintedAtError> {
        let (path, words) = match words {
            [words @ .., "in", path] => (*path, words),
            _ => return Err(MintedAtError::Shape),
        };
        let (spot, scheme) = match words {
            ["json", pointer, scheme @ ..] => {
                let pattern = JsonPattern::parse(pointer).ok_or(MintedAtError::Pointer)?;
                (AnswerSpot::Json(pattern), if scheme.is_empty() { &["raw"][..] } else { scheme })
            }
            ["header", name, scheme @ ..] => {
                let name = HeaderName::from_bytes(name.as_bytes());
                (AnswerSpot::Header(name.map_err(|_| MintedAtError::Field)?), scheme)
            }
            _ => return Err(MintedAtError::Shape),
        };
        let scheme = MintScheme::parse(scheme).ok_or(MintedAtError::Scheme)?;
        let path = MintPath::parse(path).ok_or(MintedAtError::Path)?;
        Ok(Self { path, spot, scheme })
    }
}

impl MintScheme {
    fn parse(words: &[&str]) -> Option<Self> {
        match words {
            ["basic", "user"] => Some(Self::BasicUser),
            ["basic", "password"] => Some(Self::BasicPassword),
            words => Scheme::parse(words).ok().map(Self::Text),
        }
    }
}

/// The paths of requests whose answers hold a credential: segments, of which `*` is any one, and as
/// the last one everything below.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MintPath {
    segments: Arc<[Box<str>]>,
    below: bool,
}

impl MintPath {
    fn parse(text: &str) -> Option<Self> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:@$,+!".contains(&byte);
        let segment = |text: &str| {
            let good = text == ANY || !text.is_empty() && text.bytes().all(plain);
            (good && text != "." && text != "..").then(|| Box::from(text))
        };
        let (text, below) = match text.strip_suffix("/*") {
            Some(folder) => (folder, true),
            None => (text, false),
        };
        let segments: Option<Arc<[_]>> = match text.strip_prefix('/') {
            Some(rest) => rest.split('/').map(segment).collect(),
            None if text.is_empty() && below => Some([].into()),
            None => None,
        };
        segments.map(|segments| Self { segments, below })
    }

    /// Whether the path, without query, is one of these exactly as it is spelt.
    pub fn matches(&self, path: &str) -> bool {
        let segments: Vec<_> = path.split('/').skip(1).collect();
        self.fits(&segments, |own, other| own == other)
    }

    /// Whether some server may take the path for one of these.
    pub(super) fn is_resembled_by(&self, path: &str) -> bool {
        let same = |own: &str, other: &str| stem(&own.to_lowercase()) == stem(other);
        let segments = loosely_read(&opened(path));
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        self.fits(&segments, same)
    }

    fn fits(&self, segments: &[&str], same: impl Fn(&str, &str) -> bool) -> bool {
        let (own, others) = (self.segments.len(), segments.len());
        let long_enough = if self.below { others > own } else { others == own };
        let fits = |(own, other): (&str, &str)| own == ANY || same(own, other);
        let own = self.segments.iter().map(|own| &**own);
        long_enough && own.zip(segments.iter().copied()).all(fits)
    }
}

/// Returns a name without its ending, which some servers take for a format.
fn stem(name: &str) -> &str {
    name.split_once('.').map_or(name, |(stem, _)| if stem.is_empty() { name } else { stem })
}

/// Stands for any one segment of a path, or any one member.
pub(super) const ANY: &str = "*";

impl fmt::Display for MintPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.segments.iter().try_for_each(|segment| write!(f, "/{segment}"))?;
        if self.below { f.write_str("/*") } else { Ok(()) }
    }
}

impl fmt::Display for AnswerSpot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(pattern) => write!(f, "json {pattern}"),
            Self::Header(name) => write!(f, "header {name}"),
        }
    }
}

/// Writes the scheme as policy does.
impl fmt::Display for MintScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(Scheme::Raw) => f.write_str("raw"),
            Self::Text(Scheme::Word(word)) => word.written().fmt(f),
            Self::BasicUser => f.write_str("basic user"),
            Self::BasicPassword => f.write_str("basic password"),
        }
    }
}

impl fmt::Display for MintedAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.spot, &self.scheme) {
            // Policy leaves `raw` out here.
            (AnswerSpot::Json(_), MintScheme::Text(Scheme::Raw)) => {
                write!(f, "{} in {}", self.spot, self.path)
            }
            (spot, scheme) => write!(f, "{spot} {scheme} in {}", self.path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MintedAt, MintedAtError> {
        MintedAt::parse(&text.split(' ').collect::<Vec<_>>())
    }

    fn path(text: &str) -> MintPath {
        MintPath::parse(text).unwrap()
    }

    #[test]
    fn a_minted_credential_has_a_spot_scheme_and_path() {
        for (text, shown) in [
            ("json /access_token in /oauth/token", "json /access_token in /oauth/token"),
            (
                "json /objects/*/actions/*/header/Authorization scheme RemoteAuth in \
                 /*/*/info/lfs/objects/batch",
                "json /objects/*/actions/*/header/Authorization scheme RemoteAuth in \
                 /*/*/info/lfs/objects/batch",
            ),
            ("json /a raw in /*", "json /a in /*"),
            ("json /a bearer in /*", "json /a bearer in /*"),
            ("json /a token in /*", "json /a token in /*"),
            ("json /a basic user in /*", "json /a basic user in /*"),
            ("json /a basic password in /*", "json /a basic password in /*"),
            ("header X-Xet-Token raw in /api/*", "header x-xet-token raw in /api/*"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), shown);
        }
        for (text, error) in [
            ("json /a", MintedAtError::Shape),
            ("json /a of /b", MintedAtError::Shape),
            ("form a in /b", MintedAtError::Shape),
            ("json a in /b", MintedAtError::Pointer),
            ("json /a** in /b", MintedAtError::Pointer),
            ("header a b raw in /b", MintedAtError::Scheme),
            ("header a in /b", MintedAtError::Scheme),
            ("header a: raw in /b", MintedAtError::Field),
            ("json /a basic in /b", MintedAtError::Scheme),
            ("json /a in b", MintedAtError::Path),
            ("json /a in /b/", MintedAtError::Path),
            ("json /a in /b//c", MintedAtError::Path),
            ("json /a in /b/../c", MintedAtError::Path),
            ("json /a in /b%20", MintedAtError::Path),
            ("json /a in /a*/b", MintedAtError::Path),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn a_star_is_one_segment_or_the_whole_rest() {
        let batch = path("/*/*/info/lfs/objects/batch");
        assert!(batch.matches("/owner/repo.git/info/lfs/objects/batch"));
        assert!(!batch.matches("/repo/info/lfs/objects/batch"));
        assert!(!batch.matches("/a/b/c/info/lfs/objects/batch"));
        let below = path("/api/*/token/*");
        assert!(below.matches("/api/x/token/y") && below.matches("/api/x/token/y/z"));
        assert!(!below.matches("/api/x/token"));
        assert!(path("/*").matches("/") && path("/*").matches("/a/b"));
    }

    #[test]
    fn a_path_that_some_server_takes_for_it_is_told() {
        let token = path("/oauth/token");
        assert!(token.matches("/oauth/token"));
        for other in [
            "//oauth/token",
            "/oauth//token",
            "/oauth/token/",
            "/oauth/./token",
            "/x/../oauth/token",
            "/OAuth/token",
            "/oauth/%74oken",
            "/oauth%2ftoken",
            "/oauth/token;x=1",
            "/oauth/token.json",
            "/oauth\\token",
            "/oauth%EF%BC%8Ftoken",
        ] {
            assert!(!token.matches(other) && token.is_resembled_by(other), "{other}");
        }
        for other in ["/oauth/tokens", "/oauth", "/v1/chat", "/a%2fb"] {
            assert!(!token.matches(other) && !token.is_resembled_by(other), "{other}");
        }
        let batch = path("/*/*/info/lfs/objects/batch");
        assert!(batch.matches("/a/b%20c/info/lfs/objects/batch"));
        assert!(batch.is_resembled_by("/a/b/info/lfs//objects/batch"));
        assert!(batch.is_resembled_by("/a%2fb/info/lfs/objects/batch"));
    }
}
