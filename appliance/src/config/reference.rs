//! The language of secret references. Each location can be written in one way only; a path that a
//! server could read as another one is refused. No error repeats any of the text: it may be the
//! secret itself, put in the wrong place.

use std::sync::Arc;

use crate::policy::{
    IDENTITY_TOKEN, Pick, PickPart, SecretRef, VaultLocation, is_plain_parameter_byte,
};

/// Reads the location of a value:
///
/// - `vault:MOUNT/PATH#FIELD`, KV version 2, with `?version=N` before the `#` to pin one version.
///   The mount is the first segment; a mount with a slash in it is quoted, as in
///   `vault:"team/kv"/agents/openai#api_key`.
/// - `vault-read:PATH#FIELD`, any other path that answers to GET, below `/v1/`. Of Vault's own
///   paths only `identity/oidc/token/ROLE` is allowed.
/// - `vault-write:PATH?key=value&key=value#FIELD`, a path that issues a value on a write.
/// - `file:NAME`.
///
/// A template, as in `#{username}:{password}`, may replace the field.
pub(super) fn secret_ref(text: &str) -> Result<SecretRef, &'static str> {
    if let Some(name) = text.strip_prefix("file:") {
        return file_ref(name);
    }
    let (engine, reference) = text.split_once(':').ok_or(NOT_A_REFERENCE)?;
    let read = match engine {
        "vault" => kv2,
        "vault-read" => read,
        "vault-write" => write,
        _ => return Err(NOT_A_REFERENCE),
    };
    let (location, wanted) = reference.split_once('#').ok_or(NO_FIELD)?;
    Ok(SecretRef::Vault { location: read(location)?, pick: pick(wanted)? })
}

/// Reads the name of a token role, as it stands in the path that makes a token.
pub(super) fn token_role(text: &str) -> Result<Arc<str>, &'static str> {
    let one_segment = text.len() <= 128 && !text.contains('/') && is_path(text);
    one_segment.then(|| text.into()).ok_or("the name of a token role is one segment of a path")
}

/// Returns whether a text is a path in Vault: plain segments, none of which a server could resolve
/// away or a policy would take for any segment (`+`).
pub(super) fn is_path(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'@' | b'+');
    text.len() <= MAX_PATH_BYTES
        && text
            .split('/')
            .all(|segment| !matches!(segment, "" | "." | ".." | "+") && segment.bytes().all(plain))
}

fn kv2(text: &str) -> Result<VaultLocation, &'static str> {
    let (whole, query) = split_query(text);
    let (mount, path) = match whole.strip_prefix('"') {
        Some(quoted) => quoted.split_once("\"/").ok_or(NO_PATH)?,
        None => whole.split_once('/').ok_or(NO_PATH)?,
    };
    let mount = location_path(mount)?;
    // A mount is quoted only if it has a slash.
    if !is_path(path) || whole.starts_with('"') != mount.contains('/') {
        return Err(BAD_PATH);
    }
    let version = query.map(version).transpose()?;
    Ok(VaultLocation::Kv2 { mount, path: path.into(), version })
}

fn version(query: &str) -> Result<u64, &'static str> {
    let digits = query.strip_prefix("version=").ok_or(BAD_VERSION)?;
    let plain = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
    digits.parse().ok().filter(|_| plain).ok_or(BAD_VERSION)
}

fn read(text: &str) -> Result<VaultLocation, &'static str> {
    let role = text.strip_prefix(IDENTITY_TOKEN).filter(|role| !role.contains('/'));
    let path = if role.is_some_and(is_path) { text.into() } else { location_path(text)? };
    Ok(VaultLocation::Read { path })
}

fn write(text: &str) -> Result<VaultLocation, &'static str> {
    let (path, query) = split_query(text);
    let mut parameters: Vec<(Arc<str>, Arc<str>)> = Vec::new();
    for pair in query.into_iter().flat_map(|query| query.split('&')) {
        let (key, value) = pair.split_once('=').ok_or(BAD_PARAMETER)?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        let known = parameters.iter().any(|(other, _)| **other == *key);
        if key.is_empty() || !key.bytes().all(plain) || known || parameters.len() == MAX_PARAMETERS
        {
            return Err(BAD_PARAMETER);
        }
        parameters.push((key.into(), decoded(value)?.into()));
    }
    Ok(VaultLocation::Write { path: location_path(path)?, parameters: parameters.into() })
}

fn split_query(text: &str) -> (&str, Option<&str>) {
    text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)))
}

fn location_path(text: &str) -> Result<Arc<str>, &'static str> {
    let first = text.split('/').next().unwrap_or_default();
    if !is_path(text) {
        return Err(BAD_PATH);
    }
    if NO_SECRETS.contains(&first) {
        return Err(NOT_AN_ENGINE);
    }
    Ok(text.into())
}

/// Percent-decodes. A byte that needs no encoding must not be encoded: one text, one meaning.
fn decoded(text: &str) -> Result<String, &'static str> {
    let mut bytes = text.bytes();
    let mut plain = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        plain.push(
            match byte {
                b'%' => {
                    let high = bytes.next().and_then(hex).ok_or(BAD_PARAMETER)?;
                    let low = bytes.next().and_then(hex).ok_or(BAD_PARAMETER)?;
                    Some(high * 16 + low).filter(|b| !is_plain_parameter_byte(*b))
                }
                byte => Some(byte).filter(|b| is_plain_parameter_byte(*b)),
            }
            .ok_or(BAD_PARAMETER)?,
        );
    }
    String::from_utf8(plain).map_err(|_| BAD_PARAMETER)
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Reads a field, or a template with fields in braces.
fn pick(text: &str) -> Result<Pick, &'static str> {
    if !text.contains(['{', '}']) {
        return Ok(Pick([PickPart::Field(field(text)?)].into()));
    }
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (before, opened) = rest.split_once('{').unwrap_or((rest, ""));
        if !before.is_empty() {
            parts.push(PickPart::Text(visible(before)?));
        }
        if before.len() == rest.len() {
            break;
        }
        let (name, after) = opened.split_once('}').ok_or(BAD_TEMPLATE)?;
        parts.push(PickPart::Field(field(name)?));
        rest = after;
    }
    let fields = parts.iter().filter(|part| matches!(part, PickPart::Field(_))).count();
    if fields == 0 || parts.len() > MAX_PARTS {
        return Err(BAD_TEMPLATE);
    }
    Ok(Pick(parts.into()))
}

fn field(text: &str) -> Result<Arc<str>, &'static str> {
    if text.is_empty() { Err(NO_FIELD) } else { visible(text) }
}

fn visible(text: &str) -> Result<Arc<str>, &'static str> {
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'#' | b'{' | b'}');
    if text.len() <= MAX_FIELD_BYTES && text.bytes().all(plain) {
        return Ok(text.into());
    }
    Err(BAD_TEMPLATE)
}

fn file_ref(name: &str) -> Result<SecretRef, &'static str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
        return Err(
            "after \"file:\" stands a name of at most 64 letters, digits, '-', '_' and '.'",
        );
    }
    Ok(SecretRef::File { name: name.into() })
}

/// Prefixes of paths about Vault itself, its logins and its tokens.
const NO_SECRETS: [&str; 4] = ["sys", "auth", "identity", "cubbyhole"];

const MAX_PATH_BYTES: usize = 512;
const MAX_FIELD_BYTES: usize = 256;
const MAX_PARAMETERS: usize = 16;
const MAX_PARTS: usize = 16;

const NOT_A_REFERENCE: &str = "this says where a value is, and is never the value itself; write \
                               \"vault:MOUNT/PATH#FIELD\", \"vault-read:PATH#FIELD\", \
                               \"vault-write:PATH?key=value#FIELD\" or \"file:NAME\"";
const NO_FIELD: &str = "the field of the secret is missing; write \"vault:MOUNT/PATH#FIELD\"";
const NO_PATH: &str = "the path below the mount is missing; write \"vault:MOUNT/PATH#FIELD\"";
const BAD_PATH: &str = "mount and path have segments of letters, digits and '-_.@+', none of \
                        which is '+' alone, with one slash between two; write \
                        \"vault:MOUNT/PATH#FIELD\"";
const BAD_VERSION: &str = "after '?' stands the version that the secret is held to; write \
                           \"vault:MOUNT/PATH?version=3#FIELD\"";
const BAD_PARAMETER: &str = "after '?' stand at most 16 key=value with '&' between two; keys have \
                             letters, digits, '-' and '_', and none comes twice; in values all \
                             but letters, digits and '-._~:/,@' is written as %XX";
const NOT_AN_ENGINE: &str = "sys, auth, identity and cubbyhole hold Vault's own affairs, and no \
                             secret for a service but \"vault-read:identity/oidc/token/ROLE#token\"";
const BAD_TEMPLATE: &str = "after '#' stands a field, or a template with each field in braces, as \
                            in \"{username}:{password}\"";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Location;
    use proptest::prelude::*;

    #[test]
    fn a_reference_names_a_place_in_one_spelling() {
        for text in [
            "vault:kv/agents/openai#api_key",
            "vault:kv/agents/openai?version=3#api_key",
            "vault:\"team/kv\"/openai#api_key",
            "vault:kv/auth/openai#api_key",
            "vault:kv/a+b/me@example.com#api_key",
            "vault-read:database/creds/reader#password",
            "vault-read:database/creds/reader#{username}:{password}",
            "vault-read:kv1/openai#Key-{key}",
            "vault-read:identity/oidc/token/cloud#token",
            "vault-write:ssh/creds/otp?ip=192.0.2.1#key",
            "vault-write:pki/issue/web?common_name=a.example&ttl=1h&x=%20%25%26#private_key",
            "vault-write:engine/path#key",
            "file:openai",
        ] {
            let meant = secret_ref(text).unwrap();
            assert_eq!(meant.to_string(), text);
        }
        let Ok(SecretRef::Vault { location: VaultLocation::Kv2 { mount, path, version }, .. }) =
            secret_ref("vault:\"team/kv\"/a/b?version=7#f")
        else {
            panic!("not KV v2")
        };
        assert_eq!((&*mount, &*path, version), ("team/kv", "a/b", Some(7)));
    }

    #[test]
    fn two_picks_of_one_answer_share_their_location() {
        let location = |text| secret_ref(text).unwrap().location();
        let user = location("vault-read:database/creds/r#username");
        assert_eq!(user, location("vault-read:database/creds/r#{username}:{password}"));
        assert_ne!(user, location("vault-read:database/creds/s#username"));
        assert!(matches!(user, Location::Vault(VaultLocation::Read { .. })));
    }

    #[test]
    fn a_secret_in_place_of_a_reference_is_not_repeated() {
        for text in [
            "sk-live-0123456789",
            "vault:sk-live-0123456789",
            "vault:sk-live/#x",
            "vault-read:sk-live",
            "vault-write:sk-live?x#y",
            "sk-live:0123456789",
        ] {
            let error = secret_ref(text).unwrap_err();
            assert!(!error.contains("sk-live"), "{error}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_no_reference() {
        for text in [
            "vault:a/b",
            "vault:/a#b",
            "vault:a//b#c",
            "vault:a/../b#c",
            "vault:a/b#",
            "vault:a/b##",
            "vault:\"a/b#c",
            "vault:\"a\"/b#c",
            "vault:a/+/b#c",
            "vault:\"a/+\"/b#c",
            "vault-read:+/b#c",
            "vault-write:a/+#c",
            "vault:a/b?version=0#c",
            "vault:a/b?version=01#c",
            "vault:a/b?version=#c",
            "vault:a/b?version=1&x=2#c",
            "vault:a/b?#c",
            "vault-read:a/b?x=1#c",
            "vault-read:a/./b#c",
            "vault-read:/a/b#c",
            "vault-read:a%2fb#c",
            "vault-write:a/b?#c",
            "vault-write:a/b?x#c",
            "vault-write:a/b?x=1&x=2#c",
            "vault-write:a/b?x=%2e#c",
            "vault-write:a/b?x=%2#c",
            "vault-write:a/b?x=%ff#c",
            "vault-write:a/b?x=%FF#c",
            "vault-write:a/b?x=a b#c",
            "vault-write:a/b?x=a+b#c",
            "vault-read:a/b#{c",
            "vault-read:a/b#c}",
            "vault-read:a/b#{}",
            "vault-read:a/b#{{c}}",
            "vault-read:a/b#a{b}c}",
            "vault-read:a/b#a b",
            "file:",
            "file:a/b",
            "env:KEY",
        ] {
            assert!(secret_ref(text).is_err(), "{text}");
        }
    }

    #[test]
    fn vaults_own_affairs_are_no_secrets() {
        for path in ["sys/raw", "auth/token/create", "identity/entity", "cubbyhole/a"] {
            for engine in ["vault", "vault-read", "vault-write"] {
                assert_eq!(secret_ref(&format!("{engine}:{path}#f")), Err(NOT_AN_ENGINE));
            }
        }
        for text in [
            "vault:\"sys/x\"/y#f",
            "vault-read:identity/oidc/token#token",
            "vault-read:identity/oidc/token/a/b#token",
            "vault-read:identity/oidc/tokens/a#token",
            "vault-write:identity/oidc/token/a#token",
        ] {
            assert_eq!(secret_ref(text), Err(NOT_AN_ENGINE), "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_written_as_it_was(text in "(vault|vault-read|vault-write|file):[\"a-c./?&=%0-9A-F{}#:]{0,24}") {
            if let Ok(meant) = secret_ref(&text) {
                let written = meant.to_string();
                prop_assert_eq!(secret_ref(&written), Ok(meant));
            }
        }
    }
}
