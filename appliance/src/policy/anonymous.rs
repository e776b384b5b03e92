//! Requests without any credential that an API accepts.

use std::fmt;

use http::Method;

use super::{PathError, PathRule, never_allowed, permits};

/// The requests without any credential that are forwarded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Anonymous {
    /// None.
    #[default]
    Never,
    /// Those that the rule's methods and paths allow.
    Always,
    /// These, whatever the rule's methods and paths say.
    Listed(Vec<AnonymousRequest>),
}

/// A method and the paths that may be requested with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnonymousRequest {
    methods: [Method; 1],
    paths: [PathRule; 1],
}

/// The reason why a text is no [`AnonymousRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnonymousError {
    /// Not a method, a space and a path.
    #[error("write a method and a path, as in \"GET /api/hello\"")]
    Shape,
    /// Not a method in capital letters, or one that is never allowed.
    #[error("it begins with a method that may be used, as in \"GET\"")]
    Method,
    /// Not a path.
    #[error(transparent)]
    Path(PathError),
}

impl AnonymousRequest {
    /// Reads a method, a space and a path, as in `GET /api/hello`.
    pub fn parse(text: &str) -> Result<Self, AnonymousError> {
        let (method, path) = text.split_once(' ').ok_or(AnonymousError::Shape)?;
        let lower = method.bytes().any(|byte| byte.is_ascii_lowercase());
        if lower || never_allowed(method).is_some() {
            return Err(AnonymousError::Method);
        }
        let method = method.parse().map_err(|_| AnonymousError::Method)?;
        let path = PathRule::parse(path).map_err(AnonymousError::Path)?;
        Ok(Self { methods: [method], paths: [path] })
    }

    /// Whether a request is one of these.
    pub fn matches(&self, method: &Method, path: &str) -> bool {
        permits(&self.methods, &self.paths, method, path).is_ok()
    }

    /// Returns the method, as a list like that of a rule.
    pub fn methods(&self) -> &[Method] {
        &self.methods
    }

    /// Returns the path, or the folder of paths, as a list like that of a rule.
    pub fn paths(&self) -> &[PathRule] {
        &self.paths
    }
}

impl fmt::Display for AnonymousRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([method], [path]) = (&self.methods, &self.paths);
        write!(f, "{method} {path}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listed_request_is_its_method_at_its_path() {
        let hello = AnonymousRequest::parse("GET /api/hello").unwrap();
        assert_eq!(hello.to_string(), "GET /api/hello");
        assert!(hello.matches(&Method::GET, "/api/hello"));
        for (method, path) in [
            (Method::HEAD, "/api/hello"),
            (Method::GET, "/api/hello/"),
            (Method::GET, "/api/hello/../admin"),
            (Method::GET, "/api%2fhello"),
            (Method::GET, "/v1/models"),
        ] {
            assert!(!hello.matches(&method, path), "{method} {path}");
        }
        let folder = AnonymousRequest::parse("HEAD /public/*").unwrap();
        assert!(folder.matches(&Method::HEAD, "/public/a/b"));
        assert!(!folder.matches(&Method::HEAD, "/public/..%20/b"));
    }

    #[test]
    fn what_is_no_method_and_path_is_refused() {
        for (text, error) in [
            ("", AnonymousError::Shape),
            ("/api/hello", AnonymousError::Shape),
            ("get /api/hello", AnonymousError::Method),
            ("TRACE /", AnonymousError::Method),
            ("CONNECT /", AnonymousError::Method),
            (" /", AnonymousError::Method),
            ("G:T /", AnonymousError::Method),
            ("GET api", AnonymousError::Path(PathError::NotAbsolute)),
            ("GET  /api", AnonymousError::Path(PathError::NotAbsolute)),
            ("GET /a/../b", AnonymousError::Path(PathError::Ambiguous)),
        ] {
            assert_eq!(AnonymousRequest::parse(text), Err(error), "{text}");
        }
    }
}
