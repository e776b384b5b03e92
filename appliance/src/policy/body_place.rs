//! A place in the body of one request: a member of JSON, or a field of a form.
//!
//! Bodies are not searched otherwise: a prompt to a model is the agent's own affair. So such a
//! place names one method and one path, that of a login or a token exchange.

use std::{borrow::Cow, fmt, sync::Arc};

use http::Method;
use percent_encoding::percent_decode_str;
use thiserror::Error;

use super::{
    name::is_plain_name,
    path::{PathRule, permits, permits_path},
};

/// A credential's spot in a body, with the requests that have such a body.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BodyPlace {
    spot: BodySpot,
    method: [Method; 1],
    path: [PathRule; 1],
}

/// A credential's spot in a body. The body is in the one format that has such a spot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum BodySpot {
    /// The whole string that this pointer names.
    Json(JsonPointer),
    /// The whole value of a field of this name, of `application/x-www-form-urlencoded`.
    Form(Arc<str>),
}

/// Names a value in JSON (RFC 6901).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JsonPointer(Arc<[Box<str>]>);

/// The reason why a text is not a [`BodyPlace`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BodyPlaceError {
    /// Not a spot, `in`, a method and a path.
    #[error(
        "a place in a body is of one request: \"json POINTER in METHOD PATH\" or \"form FIELD in \
         METHOD PATH\""
    )]
    Shape,
    /// A method whose body has no meaning.
    #[error("a body in which a credential stands is sent with POST, PUT or PATCH")]
    Method,
    /// No path, or more than one.
    #[error("a place in a body is of one path, without a '*'")]
    Path,
    /// Not a pointer that all readers understand alike.
    #[error(
        "a pointer has up to 16 names, each behind a '/', with a letter or a digit and otherwise \
         '-', '.', '_', '$', '@', ':', \"~0\" for '~' and \"~1\" for '/'"
    )]
    Pointer,
    /// Not the name of a field that all readers understand alike.
    #[error(
        "the name of a form's field has 1 to 128 letters, digits, '-', '.', '_', '~' and '$', and a \
         letter or a digit among them"
    )]
    Field,
}

impl BodyPlace {
    /// The most bytes of a body in which there is such a place. A login or a token exchange has a
    /// few hundred, and a signed assertion some thousand.
    pub const MAX_BYTES: usize = 64 * 1024;

    /// Reads the words of a place, as in `json /password in POST /login`.
    ///
    /// # Errors
    ///
    /// Where the words are no place.
    pub fn parse(words: &[&str]) -> Result<Self, BodyPlaceError> {
        let [kind, spot, "in", method, path] = words else { return Err(BodyPlaceError::Shape) };
        let spot = match *kind {
            "json" => BodySpot::Json(JsonPointer::parse(spot).ok_or(BodyPlaceError::Pointer)?),
            "form"
                if is_plain_name(spot) && spot.bytes().any(|byte| byte.is_ascii_alphanumeric()) =>
            {
                BodySpot::Form((*spot).into())
            }
            "form" => return Err(BodyPlaceError::Field),
            _ => return Err(BodyPlaceError::Shape),
        };
        let methods = [Method::POST, Method::PUT, Method::PATCH];
        let method = methods.into_iter().find(|one| one.as_str() == *method);
        let path = PathRule::parse(path).ok().filter(PathRule::is_exact);
        Ok(Self {
            spot,
            method: [method.ok_or(BodyPlaceError::Method)?],
            path: [path.ok_or(BodyPlaceError::Path)?],
        })
    }

    /// Returns its spot in the body.
    pub fn spot(&self) -> &BodySpot {
        &self.spot
    }

    /// Returns the one method of the requests that have it.
    pub fn method(&self) -> &Method {
        let [method] = &self.method;
        method
    }

    /// Returns their one path.
    pub fn path(&self) -> &PathRule {
        let [path] = &self.path;
        path
    }

    /// Whether the body of such a request has this place.
    pub fn is_of(&self, method: &Method, path: &str) -> bool {
        permits(&self.method, &self.path, method, path).is_ok()
    }

    /// Whether some server takes this path for that of the place, though it is spelt otherwise.
    pub fn is_resembled_by(&self, path: &str) -> bool {
        permits_path(&self.path, path).is_err()
            && loosely_read(path) == loosely_read(&self.path().to_string())
    }

    /// Whether both places are in the bodies of the same requests.
    pub fn shares_requests_with(&self, other: &Self) -> bool {
        (&self.method, &self.path) == (&other.method, &other.path)
    }
}

/// Returns the segments of a path as a server reads them that is lax in every way: decoded, also
/// more than once, in lower case, without parameters (Servlet), empty and dot segments, control
/// characters around a segment and the last one's ending (Rails).
pub(super) fn loosely_read(path: &str) -> Vec<String> {
    let mut text = path.to_owned();
    for _ in 0..MOST_DECODED {
        text = percent_decode_str(&text).decode_utf8_lossy().into_owned();
    }
    let text = text.to_lowercase();
    let is_around = |at: char| at.is_whitespace() || at.is_control();
    let mut segments: Vec<String> = Vec::new();
    for segment in text.split(['/', '\\']) {
        match segment.split(';').next().unwrap_or_default().trim_matches(is_around) {
            "" | "." => {}
            ".." => drop(segments.pop()),
            name => segments.push(name.to_owned()),
        }
    }
    if let Some(last) = segments.last_mut()
        && let Some(at) = last.find('.').filter(|&at| at > 0)
    {
        last.truncate(at);
    }
    segments
}

/// How many times a chain of servers may decode a path.
const MOST_DECODED: usize = 3;

impl BodySpot {
    /// Returns the name under which a server that reads bodies and queries alike would look for it
    /// in a query. A nested name is written in brackets there.
    pub fn query(&self) -> Cow<'_, str> {
        match self {
            Self::Form(field) => Cow::Borrowed(field),
            Self::Json(JsonPointer(tokens)) => Cow::Owned(tokens.join(".")),
        }
    }

    /// Whether one of two spots is inside the other.
    pub fn holds(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Json(one), Self::Json(other)) => other.0.starts_with(&one.0),
            _ => false,
        }
    }
}

impl JsonPointer {
    fn parse(text: &str) -> Option<Self> {
        let tokens = text.strip_prefix('/')?.split('/').map(token);
        let tokens: Arc<[Box<str>]> = tokens.collect::<Option<_>>()?;
        (tokens.len() <= MAX_TOKENS).then_some(Self(tokens))
    }

    /// Returns the names of members, each inside the one before.
    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|token| &**token)
    }
}

/// Names values in JSON: a pointer, in which `*` is every member of an object or an array.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JsonPattern(Arc<[Option<Box<str>>]>);

impl JsonPattern {
    /// Reads a pattern.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let name = |text: &str| if text == "*" { Some(None) } else { token(text).map(Some) };
        let names: Arc<[_]> =
            text.strip_prefix('/')?.split('/').map(name).collect::<Option<_>>()?;
        (names.len() <= MAX_TOKENS).then_some(Self(names))
    }

    /// Returns the names of members, each inside the one before; `None` stands for every member.
    pub fn names(&self) -> &[Option<Box<str>>] {
        &self.0
    }
}

impl fmt::Display for JsonPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|name| match name {
            Some(name) => write!(f, "/{}", written(name)),
            None => f.write_str("/*"),
        })
    }
}

/// Returns a name as a pointer writes it.
fn written(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// Reads a name of a pointer, in which `~0` is `~` and `~1` is `/`. A name needs a letter or a
/// digit, since names that differ only in other characters are taken for the same.
fn token(text: &str) -> Option<Box<str>> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~$@:".contains(&byte);
    let escaped = text.split('~').skip(1).all(|after| after.starts_with(['0', '1']));
    let named = text.bytes().any(|byte| byte.is_ascii_alphanumeric());
    let good = text.bytes().all(plain) && named && escaped;
    good.then(|| text.replace("~1", "/").replace("~0", "~").into())
}

impl fmt::Display for JsonPointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tokens().try_for_each(|token| write!(f, "/{}", written(token)))
    }
}

impl fmt::Display for BodySpot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(pointer) => write!(f, "json {pointer}"),
            Self::Form(field) => write!(f, "form {field}"),
        }
    }
}

impl fmt::Display for BodyPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {} {}", self.spot, self.method(), self.path())
    }
}

const MAX_TOKENS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<BodyPlace, BodyPlaceError> {
        BodyPlace::parse(&text.split(' ').collect::<Vec<_>>())
    }

    #[test]
    fn a_body_place_is_of_one_method_and_one_path() {
        for text in [
            "json /password in POST /login",
            "json /auth/0/a~1b~0c in PUT /v1/users/me",
            "form client_secret in POST /oauth/token",
        ] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
        let login = parse("json /password in POST /login").unwrap();
        assert!(login.is_of(&Method::POST, "/login"));
        for (method, path) in [
            (Method::PUT, "/login"),
            (Method::POST, "/login/"),
            (Method::POST, "/Login"),
            (Method::POST, "//login"),
            (Method::POST, "/x/../login"),
        ] {
            assert!(!login.is_of(&method, path), "{method} {path}");
        }
    }

    #[test]
    fn what_is_no_place_in_a_body_is_refused() {
        for (text, error) in [
            ("json /password", BodyPlaceError::Shape),
            ("json /password in POST", BodyPlaceError::Shape),
            ("json /password of POST /login", BodyPlaceError::Shape),
            ("xml /password in POST /login", BodyPlaceError::Shape),
            ("json password in POST /login", BodyPlaceError::Pointer),
            ("json / in POST /login", BodyPlaceError::Pointer),
            ("json /a//b in POST /login", BodyPlaceError::Pointer),
            ("json /a~2 in POST /login", BodyPlaceError::Pointer),
            ("json /a\"b in POST /login", BodyPlaceError::Pointer),
            ("json /- in POST /login", BodyPlaceError::Pointer),
            ("form a&b in POST /login", BodyPlaceError::Field),
            ("form a[] in POST /login", BodyPlaceError::Field),
            ("form _ in POST /login", BodyPlaceError::Field),
            ("form  in POST /login", BodyPlaceError::Field),
            ("form a in GET /login", BodyPlaceError::Method),
            ("form a in post /login", BodyPlaceError::Method),
            ("form a in CONNECT /login", BodyPlaceError::Method),
            ("form a in POST /login/*", BodyPlaceError::Path),
            ("form a in POST login", BodyPlaceError::Path),
            ("form a in POST /a/../login", BodyPlaceError::Path),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn a_pointer_in_another_is_told() {
        let spot = |text| parse(&format!("json {text} in POST /x")).unwrap().spot;
        assert!(spot("/a").holds(&spot("/a/b")) && spot("/a").holds(&spot("/a")));
        assert!(!spot("/a/b").holds(&spot("/a")) && !spot("/a").holds(&spot("/ab")));
    }
}
