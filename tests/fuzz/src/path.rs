//! Rules on paths: however an origin reads a path that passes, the path is under a rule that is
//! read in the same way.

use cloakroom::{
    policy::{PathRule, permits_path},
    reason::Reason,
};
use http::uri::PathAndQuery;
use icu_normalizer::ComposingNormalizerBorrowed;

/// Takes lines: rules, and in the last line the target of a request.
pub(crate) fn any_path(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (rules, target) = text.rsplit_once('\n').unwrap_or(("/v1/*", text));
    let rules: Vec<_> = rules.split('\n').take(MOST_RULES).filter_map(rule).collect();
    // The gateway checks this before it applies the rules.
    let plain = target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    let Ok(target) = target.parse::<PathAndQuery>() else { return };
    if !plain || rules.is_empty() {
        return;
    }
    let path = target.path();
    let parsed: Vec<_> = rules.iter().map(|(_, rule)| rule.clone()).collect();
    let verdict = permits_path(&parsed, path);
    assert_eq!(permits_path(&parsed, &respelt(path)), verdict, "%2F and %2f differ");
    check_overlap(&parsed, path);
    if verdict.is_ok() {
        for reading in &READINGS {
            let read = reading.of(path);
            let under = |(text, _): &(&str, PathRule)| is_under(&read, reading, text);
            assert!(rules.iter().any(under), "{reading:?} of {path}: {}", read.escape_ascii());
        }
    } else {
        assert!(matches!(verdict, Err(Reason::PathDenied | Reason::PathAmbiguous)));
        // A path of plain letters has only one reading.
        let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let plain =
            path.split('/').skip(1).all(|name| !name.is_empty() && name.bytes().all(letters));
        let under = |(text, _): &(&str, PathRule)| is_under(path.as_bytes(), &READINGS[0], text);
        assert!(!plain || !rules.iter().any(under), "{path} is refused");
    }
}

/// Returns the rule, which means the same as its text.
fn rule(text: &str) -> Option<(&str, PathRule)> {
    let rule = PathRule::parse(text).ok()?;
    let written = rule.to_string();
    assert_eq!(PathRule::parse(&written), Ok(rule.clone()), "{text} is written as {written}");
    let path = text.strip_suffix('*').unwrap_or(text);
    assert_eq!(permits_path(std::slice::from_ref(&rule), path), Ok(()), "not under itself");
    Some((text, rule))
}

fn respelt(path: &str) -> String {
    path.split("%2f").map(|part| part.replace("%2F", "%2f")).collect::<Vec<_>>().join("%2F")
}

/// Checks that rules overlap if one path is under both of them.
fn check_overlap(rules: &[PathRule], path: &str) {
    for one in rules {
        for other in rules {
            assert_eq!(one.overlaps(other), other.overlaps(one), "{one} and {other}");
            let both = one.matches(path) && other.matches(path);
            assert!(!both || one.overlaps(other), "{path}: {one} and {other}");
        }
    }
}

fn is_under(read: &[u8], reading: &Reading, rule: &str) -> bool {
    match rule.strip_suffix('*') {
        Some(folder) => read.starts_with(&reading.of(folder)),
        None => read == reading.of(rule),
    }
}

/// The steps in which an origin changes a path before it goes from folder to folder.
#[derive(Debug)]
struct Reading(&'static [Step]);

#[derive(Debug, Clone, Copy)]
enum Step {
    /// `%2F` is a byte of a name, whatever comes later.
    KeepSlashes,
    /// `%2F` alone is decoded.
    OpenSlashes,
    Decode,
    /// Unicode's compatibility forms (NFKC) are applied.
    Compatible,
    /// `\` is a slash.
    Backslashes,
    /// A name ends at its first `;`.
    Parameters,
    /// Spaces are removed, wherever in a name they stand; `+` is one.
    Spaces,
    /// Several slashes are one.
    Collapse,
    /// Dots are resolved (RFC 3986, section 5.2.4). This step also comes last.
    Resolve,
}

impl Reading {
    fn of(&self, path: &str) -> Vec<u8> {
        let path = self.0.iter().fold(path.as_bytes().to_vec(), |path, step| step.apply(path));
        Step::Resolve.apply(path)
    }
}

impl Step {
    fn apply(self, path: Vec<u8>) -> Vec<u8> {
        match self {
            Self::KeepSlashes => replace(&path, KEPT),
            Self::OpenSlashes => replace(&path, b'/'),
            Self::Decode => decoded(&path),
            Self::Compatible => compatible(&path),
            Self::Backslashes => {
                path.into_iter().map(|byte| if byte == b'\\' { b'/' } else { byte }).collect()
            }
            Self::Parameters => each_name(&path, |name| {
                let end = name.iter().position(|byte| *byte == b';').unwrap_or(name.len());
                name[..end].to_vec()
            }),
            Self::Spaces => each_name(&path, |name| {
                let Ok(name) = std::str::from_utf8(name) else { return name.to_vec() };
                name.replace(|char: char| char.is_whitespace() || char == '+', "").into_bytes()
            }),
            Self::Collapse => {
                let mut path = path;
                path.dedup_by(|one, other| *one == b'/' && *other == b'/');
                path
            }
            Self::Resolve => resolved(&path),
        }
    }
}

fn replace(path: &[u8], slash: u8) -> Vec<u8> {
    let mut path = path.to_vec();
    while let Some(at) = path.windows(3).position(|three| three.eq_ignore_ascii_case(b"%2f")) {
        path.splice(at..at + 3, [slash]);
    }
    path
}

fn decoded(path: &[u8]) -> Vec<u8> {
    let (mut rest, mut decoded) = (path, Vec::new());
    while let Some((&first, after)) = rest.split_first() {
        let pair = after.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        let hex = pair.filter(|pair| pair.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let byte = hex.and_then(|pair| u8::from_str_radix(pair, 16).ok());
        match byte.filter(|_| first == b'%') {
            Some(byte) => {
                decoded.push(byte);
                rest = &after[2..];
            }
            None => {
                decoded.push(first);
                rest = after;
            }
        }
    }
    decoded
}

/// Returns the path with its UTF-8 parts in their compatibility form.
fn compatible(path: &[u8]) -> Vec<u8> {
    let nfkc = ComposingNormalizerBorrowed::new_nfkc();
    let chunks = path
        .utf8_chunks()
        .map(|chunk| [nfkc.normalize(chunk.valid()).as_bytes(), chunk.invalid()].concat());
    chunks.collect::<Vec<_>>().concat()
}

fn each_name(path: &[u8], read: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    path.split(|byte| *byte == b'/').map(read).collect::<Vec<_>>().join(&b'/')
}

fn resolved(path: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> = Vec::new();
    let mut segments = path.split(|byte| *byte == b'/').skip(1).peekable();
    while let Some(name) = segments.next() {
        let is_last = segments.peek().is_none();
        match name {
            b".." => drop(names.pop()),
            b"." => {}
            name => {
                names.push(name);
                continue;
            }
        }
        if is_last {
            names.push(b"");
        }
    }
    names.iter().flat_map(|name| [b"/", *name].concat()).collect()
}

use Step::{
    Backslashes, Collapse, Compatible, Decode, KeepSlashes, OpenSlashes, Parameters, Resolve,
    Spaces,
};

/// The known readings of origins: routers that keep `%2F` and others that do not, proxies that
/// decode before the application does, servlets with their parameters, Windows with its names, and
/// servers that normalise Unicode.
static READINGS: [Reading; 22] = [
    Reading(&[KeepSlashes]),
    Reading(&[KeepSlashes, Decode]),
    Reading(&[Decode]),
    Reading(&[OpenSlashes]),
    Reading(&[OpenSlashes, Resolve, Decode]),
    Reading(&[Resolve, Decode]),
    Reading(&[Collapse, Decode, Collapse]),
    Reading(&[Decode, Decode]),
    Reading(&[KeepSlashes, Decode, Decode]),
    Reading(&[KeepSlashes, Parameters]),
    Reading(&[Parameters, Decode]),
    Reading(&[Decode, Parameters]),
    Reading(&[KeepSlashes, Decode, Parameters]),
    Reading(&[Decode, Backslashes]),
    Reading(&[Decode, Backslashes, Collapse, Spaces]),
    Reading(&[Decode, Spaces]),
    Reading(&[KeepSlashes, Decode, Spaces]),
    Reading(&[Decode, Compatible]),
    Reading(&[KeepSlashes, Decode, Compatible]),
    Reading(&[Decode, Compatible, Decode]),
    Reading(&[Decode, Compatible, Parameters]),
    Reading(&[Decode, Compatible, Backslashes, Spaces]),
];

/// Stands for an encoded slash that is kept. No path that passes holds it, because it is no UTF-8.
const KEPT: u8 = 0xff;
/// Most rules that are read.
const MOST_RULES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_character_compatible_with_ascii_leads_out() {
        let nfkc = ComposingNormalizerBorrowed::new_nfkc();
        let is_special = |byte: u8| b"/.\\%;+ ".contains(&byte);
        let is_compatible = |char: &char| {
            !char.is_ascii() && nfkc.normalize(&char.to_string()).bytes().any(is_special)
        };
        let compatible: Vec<char> = ('\0'..=char::MAX).filter(is_compatible).collect();
        assert!(compatible.len() > 100, "{}", compatible.len());
        for char in compatible {
            let bytes = char.to_string().into_bytes();
            let code: String = bytes.iter().map(|byte| format!("%{byte:02X}")).collect();
            for name in ["..C", "C..", ".C", "C", "CC", ".C.", "..Cx", "C2eC2e", "C2E.", "..C..C.."]
            {
                let name = name.replace('C', &code);
                for path in [format!("/v1/{name}/x"), format!("/v1/a/{name}"), format!("/v1{name}")]
                {
                    any_path(format!("/v1/*\n{path}").as_bytes());
                }
            }
        }
    }
}
