//! Credentials that an API mints, in its answers: each is found in its place, taken out, and a
//! ticket stands there instead.
//!
//! Errs to refusal, and to too much: every member of JSON whose name some client takes for the
//! listed one is looked at, each of those that are there twice included. What stands in the place
//! and cannot be a credential that is masked well is refused with the whole answer. The body of an
//! answer that is no success is dropped where it cannot be read.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use zeroize::Zeroizing;

use super::{
    json::{Scan, folded},
    splice::{Piece, json_string, splice},
};
use crate::{
    policy::{AnswerSpot, JsonPattern, Mint, MintScheme, MintedAt, Scheme},
    reason::Reason,
    secrets::SecretValue,
    tickets::Minted,
};

/// What was found in an answer, and where.
pub struct MintedAnswer {
    spots: Vec<Spot>,
    /// Whether there is a body that is passed on.
    keeps_body: bool,
}

/// Where a ticket goes, and what stands around it.
struct Spot {
    at: SpotAt,
    around: Around,
}

enum SpotAt {
    /// A string of the body, with its quotes.
    Body(Range<usize>),
    /// The value with this number of this field.
    Field(HeaderName, usize),
}

/// What the ticket stands in.
enum Around {
    /// Behind this.
    Prefix(Zeroizing<String>),
    /// As the user or the password of Basic, with this as the other half.
    User {
        password: Arc<str>,
    },
    Password {
        user: Arc<str>,
    },
}

/// The rules for one place, of which the first whose scheme fits holds.
type Rules<'a> = Vec<(&'a Arc<Mint>, &'a MintedAt)>;

/// Finds what an answer to a request for `path` holds. Changes nothing.
///
/// # Errors
///
/// [`Reason::ResponseUnscannable`] where it cannot be told, or where what stands there is no credential
/// that could be masked.
pub fn find_minted<'a>(
    mints: impl Iterator<Item = &'a Arc<Mint>>,
    path: &str,
    (status, headers, body): (StatusCode, &HeaderMap, &[u8]),
) -> Result<(MintedAnswer, Vec<Minted>), Reason> {
    let rules = mints.flat_map(|mint| mint.answers.iter().map(move |at| (mint, at)));
    let rules: Rules<'_> = rules.filter(|(_, at)| at.path.matches(path)).collect();
    let mut found = MintedAnswer { spots: vec![], keeps_body: true };
    let mut minted = vec![];
    let mut add = |at: SpotAt, text: &str, rules: &Rules<'_>| {
        if let Some((around, one)) = take(text, rules)? {
            found.spots.push(Spot { at, around });
            minted.push(one);
        }
        Ok(())
    };
    for (name, rules) in by_field(&rules) {
        for (nth, value) in headers.get_all(name).iter().enumerate() {
            let text = value.to_str().map_err(|_| Reason::ResponseUnscannable)?;
            add(SpotAt::Field(name.clone(), nth), text, &rules)?;
        }
    }
    let has_body_rules = rules.iter().any(|(_, at)| matches!(at.spot, AnswerSpot::Json(_)));
    if has_body_rules && !body.is_empty() {
        match strings(body, &rules) {
            Ok(strings) => {
                for (at, (text, rules)) in strings {
                    add(SpotAt::Body(at.0..at.1), &text, &rules)?;
                }
            }
            Err(Unreadable) if status.is_success() => return Err(Reason::ResponseUnscannable),
            Err(Unreadable) => found.keeps_body = false,
        }
    }
    Ok((found, minted))
}

impl MintedAnswer {
    /// Writes the tickets, one for each of what was found, in its order. Gives the body.
    ///
    /// # Errors
    ///
    /// `internal_error` where they do not belong to this answer.
    pub fn write(
        self,
        tickets: &[Arc<str>],
        headers: &mut HeaderMap,
        body: &[u8],
    ) -> Result<Bytes, Reason> {
        if tickets.len() != self.spots.len() {
            return Err(Reason::InternalError);
        }
        let mut pieces = vec![];
        for (spot, ticket) in self.spots.iter().zip(tickets) {
            let text = spot.around.with(ticket);
            match &spot.at {
                SpotAt::Body(at) => {
                    pieces.push(Piece { at: at.clone(), text: json_string(text.as_bytes()) });
                }
                SpotAt::Field(name, nth) => write_field(headers, (name, *nth), &text)?,
            }
        }
        if !self.keeps_body {
            return Ok(Bytes::new());
        }
        let text = splice(body, pieces).ok_or(Reason::InternalError)?;
        Ok(Bytes::from_owner(text))
    }
}

fn write_field(
    headers: &mut HeaderMap,
    (name, nth): (&HeaderName, usize),
    text: &str,
) -> Result<(), Reason> {
    let value = HeaderValue::from_str(text).map_err(|_| Reason::InternalError)?;
    let mut values = headers.iter_mut().filter(|(other, _)| *other == name);
    *values.nth(nth).ok_or(Reason::InternalError)?.1 = value;
    Ok(())
}

impl Around {
    fn with(&self, ticket: &str) -> Zeroizing<String> {
        Zeroizing::new(match self {
            Self::Prefix(prefix) => format!("{}{ticket}", **prefix),
            Self::User { password } => {
                format!("Basic {}", STANDARD.encode(format!("{ticket}:{password}")))
            }
            Self::Password { user } => {
                format!("Basic {}", STANDARD.encode(format!("{user}:{ticket}")))
            }
        })
    }
}

/// Takes the credential out of a text. Nothing where the text is empty.
fn take(text: &str, rules: &Rules<'_>) -> Result<Option<(Around, Minted)>, Reason> {
    if text.is_empty() {
        return Ok(None);
    }
    let taken = rules.iter().find_map(|(mint, at)| Some((mint, parted(text, &at.scheme)?)));
    let (mint, (around, secret)) = taken.ok_or(Reason::ResponseUnscannable)?;
    let length = secret.len();
    let value = SecretValue::load(secret, mint.min_value_bytes)
        .ok()
        .filter(|value| value.expose().len() == length)
        .ok_or(Reason::ResponseUnscannable)?;
    let beside = match &around {
        Around::Prefix(_) => None,
        Around::User { password: other } | Around::Password { user: other } => Some(other.clone()),
    };
    Ok(Some((around, Minted { mint: Arc::clone(mint), value, beside })))
}

/// What stands around a credential, and it.
fn parted(text: &str, scheme: &MintScheme) -> Option<(Around, Zeroizing<Vec<u8>>)> {
    let is_user = match scheme {
        MintScheme::Text(scheme) => return behind(text, scheme),
        MintScheme::BasicUser => true,
        MintScheme::BasicPassword => false,
    };
    let encoded = Scheme::basic_credential(text.as_bytes())?;
    let pair = Zeroizing::new(STANDARD.decode(encoded).ok()?);
    let pair = std::str::from_utf8(&pair).ok()?;
    let (user, password) = pair.split_once(':')?;
    Some(if is_user {
        (Around::User { password: password.into() }, Zeroizing::new(user.into()))
    } else {
        (Around::Password { user: user.into() }, Zeroizing::new(password.into()))
    })
}

fn behind(text: &str, scheme: &Scheme) -> Option<(Around, Zeroizing<Vec<u8>>)> {
    let credential = scheme.credential(text.as_bytes())?;
    let prefix = text.get(..text.len() - credential.len())?;
    Some((Around::Prefix(Zeroizing::new(prefix.into())), Zeroizing::new(credential.into())))
}

fn by_field<'a>(rules: &Rules<'a>) -> Vec<(&'a HeaderName, Rules<'a>)> {
    let mut fields: Vec<(&HeaderName, Rules<'_>)> = Vec::new();
    for &(mint, at) in rules {
        let AnswerSpot::Header(name) = &at.spot else { continue };
        match fields.iter_mut().find(|(own, _)| *own == name) {
            Some((_, rules)) => rules.push((mint, at)),
            None => fields.push((name, vec![(mint, at)])),
        }
    }
    fields
}

/// A body that is no JSON, or that has something else than a string in a place.
struct Unreadable;

/// The strings in the places of a body, each with the rules for it, by where they begin and end.
type Strings<'a> = BTreeMap<(usize, usize), (Zeroizing<String>, Rules<'a>)>;

fn strings<'a>(body: &[u8], rules: &Rules<'a>) -> Result<Strings<'a>, Unreadable> {
    let text = std::str::from_utf8(body).map_err(|_| Unreadable)?;
    // It says whether it is JSON; what stands where is the second reader's to say.
    serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|_| Unreadable)?;
    let whole = Scan::new(text, 0).value().ok_or(Unreadable)?;
    let mut strings = Strings::new();
    for &(mint, at) in rules {
        let AnswerSpot::Json(pattern) = &at.spot else { continue };
        for found in pointed(text, whole.clone(), pattern)? {
            let key = (found.start, found.end);
            let written = text.get(found).ok_or(Unreadable)?;
            if written == "null" {
                continue;
            }
            let read = serde_json::from_str(written).map(Zeroizing::new).map_err(|_| Unreadable)?;
            strings.entry(key).or_insert_with(|| (read, vec![])).1.push((mint, at));
        }
    }
    Ok(strings)
}

/// Where the values stand that a pattern names.
fn pointed(
    text: &str,
    whole: Range<usize>,
    pattern: &JsonPattern,
) -> Result<Vec<Range<usize>>, Unreadable> {
    let mut places = vec![whole];
    for name in pattern.names() {
        let mut next = vec![];
        for of in places {
            members(text, of, name.as_deref(), &mut next)?;
        }
        places = next;
    }
    Ok(places)
}

/// Adds the members of that name of the object or the array there, or all of them. Of a name each
/// spelling counts that some client takes for it.
fn members(
    text: &str,
    of: Range<usize>,
    name: Option<&str>,
    into: &mut Vec<Range<usize>>,
) -> Result<(), Unreadable> {
    let mut scan = Scan::new(text, of.start);
    let is_array = match scan.next() {
        Some(b'{') => false,
        Some(b'[') => true,
        _ => return Ok(()),
    };
    for nth in 0_usize.. {
        if scan.ends() {
            break;
        }
        let is_named = if is_array {
            name.is_none_or(|name| name == nth.to_string())
        } else {
            let written = scan.name().and_then(|at| text.get(at)).ok_or(Unreadable)?;
            let own: String = serde_json::from_str(written).map_err(|_| Unreadable)?;
            name.is_none_or(|name| name == own || folded(&own).eq(folded(name)))
        };
        let at = scan.value().ok_or(Unreadable)?;
        if is_named {
            into.push(at);
        }
    }
    Ok(())
}
