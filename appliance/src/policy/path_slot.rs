//! A place in a path: one whole segment with fixed text around it.

use std::{fmt, ops::Range, sync::Arc};

use super::{PathRule, path::has_one_reading};

/// A credential's place in a path, as in `/bot{}/`: one whole segment, with fixed text before and
/// behind it. Where the text behind holds a slash, the API decides what follows; where not, the
/// path ends with the segment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PathSlot {
    before: Arc<str>,
    /// The fixed text that ends the segment.
    ending: Arc<str>,
    /// Empty, or begins with a slash.
    behind: Arc<str>,
}

/// The reason why a text is not a [`PathSlot`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathSlotError {
    /// Does not begin with a slash, or has no `{}` or more than one.
    #[error("a place in a path begins with '/' and has one {{}}, as in /bot{{}}/")]
    Shape,
    /// Different servers read its fixed text differently, or the text holds characters that only a
    /// template would have.
    #[error(
        "the text around {{}} is a plain path: no '%', no dots as a segment, no empty segment, no \
         second {{}}"
    )]
    Ambiguous,
}

impl PathSlot {
    /// Reads a place as policy writes it.
    ///
    /// # Errors
    ///
    /// Where the text is no such place.
    pub fn parse(text: &str) -> Result<Self, PathSlotError> {
        let (before, after) = text.split_once("{}").ok_or(PathSlotError::Shape)?;
        if !before.starts_with('/') {
            return Err(PathSlotError::Shape);
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~:@!$'(),+=".contains(&byte);
        let fixed = format!("{before}x{after}");
        if !fixed.bytes().all(plain) || !has_one_reading(&fixed) {
            return Err(PathSlotError::Ambiguous);
        }
        let (ending, behind) = after.split_at(after.find('/').unwrap_or(after.len()));
        Ok(Self { before: before.into(), ending: ending.into(), behind: behind.into() })
    }

    /// Returns the range in which a server that is lenient about case, and about the rest of the
    /// path, would find a credential.
    pub fn find(&self, path: &str) -> Option<Range<usize>> {
        let start = self.before.len();
        let rest = path.get(start..)?;
        let segment = rest.split('/').next()?;
        let fixed = path.get(..start)?.eq_ignore_ascii_case(&self.before);
        let length = segment.len().checked_sub(self.ending.len()).filter(|&length| length > 0)?;
        let ends = segment.get(length..)?.eq_ignore_ascii_case(&self.ending);
        (fixed && ends).then_some(start..start + length)
    }

    /// Whether the fixed text around a credential that was [found](Self::find) is there, byte for
    /// byte.
    pub fn fits(&self, path: &str, at: &Range<usize>) -> bool {
        let after = path.get(at.end..).and_then(|after| after.strip_prefix(&*self.ending));
        let ends = after.is_some_and(|after| {
            after == &*self.behind || !self.behind.is_empty() && after.starts_with(&*self.behind)
        });
        ends && path.get(..at.start) == Some(&*self.before)
    }

    /// Whether a credential is found here in the shortest path that has `credential` in the other
    /// place: then a request with that credential is refused for the text that stands here.
    pub fn is_found_beside(&self, other: &Self, credential: &str) -> bool {
        let Self { before, ending, behind } = other;
        self.find(&format!("{before}{credential}{ending}{behind}")).is_some()
    }
}

impl PathSlot {
    /// Whether these rules allow some path that has this text here.
    pub fn is_allowed(&self, text: &str, rules: &[PathRule]) -> bool {
        let Self { before, ending, behind } = self;
        let path = format!("{before}{text}{ending}{behind}");
        rules.is_empty() || rules.iter().any(|rule| rule.is_reached(&path, !behind.is_empty()))
    }
}

impl fmt::Display for PathSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{{}}{}{}", self.before, self.ending, self.behind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(text: &str) -> PathSlot {
        PathSlot::parse(text).unwrap()
    }

    #[test]
    fn a_path_place_is_one_segment_between_plain_text() {
        for text in ["/bot{}/", "/{}", "/{}/", "/v1/keys/{}/use", "/file/bot{}/", "/a-{}.json"] {
            assert_eq!(slot(text).to_string(), text);
        }
        for text in ["", "{}", "bot{}/", "/bot/", "/{", "/}{"] {
            assert_eq!(PathSlot::parse(text), Err(PathSlotError::Shape), "{text}");
        }
        for text in
            ["/{}{}", "/{}/{}", "//{}", "/../{}", "/%2e/{}", "/{}//", "/a b/{}", "/{}?", "/{}/../"]
        {
            assert_eq!(PathSlot::parse(text), Err(PathSlotError::Ambiguous), "{text}");
        }
    }

    #[test]
    fn a_credential_is_found_leniently_and_fits_exactly() {
        for (place, path, found, fits) in [
            ("/bot{}/", "/botTOKEN/sendMessage", Some("TOKEN"), true),
            ("/bot{}/", "/botTOKEN/", Some("TOKEN"), true),
            ("/bot{}/", "/botTOKEN", Some("TOKEN"), false),
            ("/bot{}/", "/BOTTOKEN/x", Some("TOKEN"), false),
            ("/bot{}/", "/bot/x", None, false),
            ("/bot{}/", "/robot/x", None, false),
            ("/bot{}/", "/", None, false),
            ("/{}", "/TOKEN", Some("TOKEN"), true),
            ("/{}", "/TOKEN/x", Some("TOKEN"), false),
            ("/a-{}.json", "/a-TOKEN.json", Some("TOKEN"), true),
            ("/a-{}.json", "/a-TOKEN.JSON", Some("TOKEN"), false),
            ("/a-{}.json", "/a-TOKEN.xml", None, false),
            ("/keys/{}/use", "/keys/TOKEN/use", Some("TOKEN"), true),
            ("/keys/{}/use", "/keys/TOKEN/drop", Some("TOKEN"), false),
        ] {
            let at = slot(place).find(path);
            assert_eq!(at.clone().map(|at| &path[at]), found, "{place} {path}");
            assert_eq!(at.is_some_and(|at| slot(place).fits(path, &at)), fits, "{place} {path}");
        }
    }
}
