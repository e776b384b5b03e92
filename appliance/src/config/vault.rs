//! `[vault]`, the one login below it (`[vault.approle]`, `[vault.cert]` or `[vault.jwt]`), and
//! `[vault.pki]`.

use std::{collections::BTreeSet, net::IpAddr, path::Path, sync::Arc, time::Duration};

use http::Uri;
use toml::Spanned;

use super::{
    fields::{inner, transpose},
    files::{Files, ca_path, future_ca_path},
    reference::is_path,
    settings::{PkiSettings, VaultLogin, VaultSettings},
    table::TomlTable,
    value::{duration, flag, parsed, path, time, unquoted},
};

/// Reads `[vault]`; returns `None` where a needed key is missing or wrong.
pub(super) fn vault(mut table: TomlTable<'_>, files: Files<'_>) -> Option<VaultSettings> {
    let base = files.base;
    let address = table.required("address", unquoted(vault_address));
    let peers = table.list("peers", unquoted(vault_address)).unwrap_or_default();
    let ca_file = table.optional("ca_file", ca_path(files));
    if is_scheme(address.as_ref(), "https:") {
        table.require("ca_file");
    }
    let plain_http = table.optional("plain_http", flag);
    check_plain_http(&table, plain_http, address.as_ref(), &peers);
    let namespace = table.optional("namespace", parsed(vault_path));
    let refresh = table.optional("refresh", time(SECOND..=HOUR));
    let max_stale = table.optional("max_stale", time(2 * SECOND..=24 * HOUR));
    check_times(&table, refresh.as_ref(), max_stale.as_ref());
    let pki = table.table("pki", "[vault.pki]").map(|table| pki(table, files));
    let login = login(table, base);
    Some(VaultSettings {
        address: address?.into_inner(),
        peers: peers.into_iter().map(Spanned::into_inner).collect(),
        ca_file: ca_file.map(Spanned::into_inner),
        namespace: namespace.map(Spanned::into_inner),
        login: login?,
        refresh: inner(refresh, REFRESH),
        max_stale: inner(max_stale, MAX_STALE),
        pki: transpose(pki)?,
    })
}

/// Reads the login and ends the table.
fn login(mut table: TomlTable<'_>, base: &Path) -> Option<VaultLogin> {
    let report = table.report();
    let span = table.span().clone();
    let named = LOGINS.iter().filter(|login| table.has(login)).count();
    let logins = [
        table.table("approle", "[vault.approle]").map(|login| approle(login, base)),
        table.table("cert", "[vault.cert]").map(|login| cert(login, base)),
        table.table("jwt", "[vault.jwt]").map(|login| jwt(login, base)),
    ];
    let misspelt = table.finish();
    match named {
        0 if !LOGINS.iter().any(|login| misspelt.has(login)) => report.add(
            &span,
            "[vault] lacks a login; write one of [vault.approle], [vault.cert] and [vault.jwt]",
        ),
        0 | 1 => {}
        _ => report.add(
            &span,
            "the gateway has one identity; write only one of [vault.approle], [vault.cert] and \
             [vault.jwt]",
        ),
    }
    logins.into_iter().flatten().next().flatten()
}

fn approle(mut table: TomlTable<'_>, base: &Path) -> Option<VaultLogin> {
    let mount = table.optional("mount", parsed(vault_path));
    let role_id = table.required("role_id", unquoted(role_id));
    let secret_id_file = table.required("secret_id_file", path(base));
    let wrapped = table.optional("wrapped", flag);
    table.finish();
    Some(VaultLogin::AppRole {
        mount: inner(mount, "approle".into()),
        role_id: role_id?.into_inner(),
        secret_id_file: secret_id_file?.into_inner(),
        wrapped: inner(wrapped, false),
    })
}

fn cert(mut table: TomlTable<'_>, base: &Path) -> Option<VaultLogin> {
    let mount = table.optional("mount", parsed(vault_path));
    let role = table.required("role", unquoted(role_id));
    let certificate_file = table.required("certificate_file", path(base));
    let key_file = table.required("key_file", path(base));
    table.finish();
    Some(VaultLogin::Cert {
        mount: inner(mount, "cert".into()),
        role: role?.into_inner(),
        certificate_file: certificate_file?.into_inner(),
        key_file: key_file?.into_inner(),
    })
}

fn jwt(mut table: TomlTable<'_>, base: &Path) -> Option<VaultLogin> {
    let mount = table.optional("mount", parsed(vault_path));
    let role = table.required("role", unquoted(role_id));
    let token_file = table.required("token_file", path(base));
    table.finish();
    Some(VaultLogin::Jwt {
        mount: inner(mount, "jwt".into()),
        role: role?.into_inner(),
        token_file: token_file?.into_inner(),
    })
}

fn pki(mut table: TomlTable<'_>, files: Files<'_>) -> Option<PkiSettings> {
    let root_file = table.required("root_file", future_ca_path(files));
    let mount = table.optional("mount", parsed(vault_path));
    let ttl = table.optional("ttl", whole_seconds(10 * SECOND..=365 * DAY));
    let accept = table.optional("accept_without_ip_exclusion", flag);
    table.finish();
    Some(PkiSettings {
        mount: inner(mount, "pki".into()),
        root_file: root_file?.into_inner(),
        ttl: inner(ttl, 30 * DAY),
        accept_without_ip_exclusion: inner(accept, false),
    })
}

/// Reads a time in whole seconds, because Vault counts in seconds.
fn whole_seconds(
    range: std::ops::RangeInclusive<Duration>,
) -> impl Fn(&toml::de::DeValue<'_>) -> Result<Duration, String> {
    move |value| match time(range.clone())(value)? {
        time if time.subsec_nanos() > 0 => Err("write it in whole seconds".into()),
        time => Ok(time),
    }
}

/// Checks the times against each other: a value is read twice within its time, because otherwise
/// one late read would end it.
fn check_times(
    table: &TomlTable<'_>,
    refresh: Option<&Spanned<Duration>>,
    max_stale: Option<&Spanned<Duration>>,
) {
    let wrong_refresh = refresh.is_none() && table.has("refresh");
    let wrong_max_stale = max_stale.is_none() && table.has("max_stale");
    let often = refresh.map_or(REFRESH, |time| *time.get_ref());
    let long = max_stale.map_or(MAX_STALE, |time| *time.get_ref());
    if wrong_refresh || wrong_max_stale || 2 * often <= long {
        return;
    }
    let (often, long) = (duration(2 * often), duration(long / 2));
    let text =
        format!("a value is read twice within max_stale; write refresh = \"{long}\" at most");
    match (refresh, max_stale) {
        (Some(refresh), Some(_)) => table.report().add(&refresh.span(), format!("refresh: {text}")),
        (Some(refresh), None) => {
            let text = format!("refresh: {text}, or max_stale = \"{often}\" at least");
            table.report().add(&refresh.span(), text);
        }
        (None, Some(max_stale)) => {
            let text = format!("max_stale: {text}, or max_stale = \"{often}\" at least");
            table.report().add(&max_stale.span(), text);
        }
        (None, None) => {}
    }
}

/// Checks that every node is reached in the same way as the first, and without TLS only where the
/// file states it.
fn check_plain_http(
    table: &TomlTable<'_>,
    word: Option<Spanned<bool>>,
    address: Option<&Spanned<Arc<str>>>,
    peers: &[Spanned<Arc<str>>],
) {
    let wrong_word = word.is_none() && table.has("plain_http");
    let said = word.as_ref().is_some_and(|word| *word.get_ref());
    let Some(address) = address else { return };
    let https = is_scheme(Some(address), "https:");
    if let Some(word) = word.filter(|_| said && https) {
        let text = "plain_http: the address is https; leave the key out";
        return table.report().add(&word.span(), text);
    }
    if !https && !said && !wrong_word {
        let text = "every key would cross this machine in the clear; write https, or \
                    plain_http = true";
        table.report().add(&address.span(), text);
    }
    for peer in peers.iter().filter(|peer| is_scheme(Some(peer), "https:") != https) {
        let text = "peers: every node of the cluster is reached as the address is";
        table.report().add(&peer.span(), text);
    }
}

fn is_scheme(address: Option<&Spanned<Arc<str>>>, scheme: &str) -> bool {
    address.is_some_and(|address| address.get_ref().starts_with(scheme))
}

/// Reads Vault's address. Plain HTTP would show every secret to the network, so it is allowed to
/// this machine only.
fn vault_address(text: &str) -> Result<Arc<str>, &'static str> {
    let uri: Uri = text.trim_end_matches('/').parse().map_err(|_| VAULT_ADDRESS)?;
    let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
    let host = authority.map(|authority| authority.host()).filter(|host| !host.is_empty());
    let (Some(host), Some(scheme)) = (host, uri.scheme_str()) else { return Err(VAULT_ADDRESS) };
    if uri.path() != "/" || uri.query().is_some() || text.contains('#') || uri.port_u16() == Some(0)
    {
        return Err(VAULT_ADDRESS);
    }
    match scheme {
        "https" => {}
        "http" if is_loopback(host) => {}
        "http" => return Err("plain http goes no further than 127.0.0.1 and [::1]; write https"),
        _ => return Err(VAULT_ADDRESS),
    }
    Ok(text.trim_end_matches('/').into())
}

fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn vault_path(text: &str) -> Result<Arc<str>, &'static str> {
    is_path(text).then(|| text.into()).ok_or("write its path, without slashes at its ends")
}

fn role_id(text: &str) -> Result<Arc<str>, &'static str> {
    let plain = !text.is_empty() && text.len() <= 256 && text.bytes().all(|b| b.is_ascii_graphic());
    plain.then(|| text.into()).ok_or("a role is named by visible ASCII characters without a space")
}

/// Returns whether somebody could guess the id of an AppRole. Random ids have 32 hexadecimal digits
/// or more. So few different digits are no coincidence: one random id in ten million has them.
pub fn is_guessable(role_id: &str) -> bool {
    let digits = || role_id.bytes().filter(u8::is_ascii_hexdigit).map(|it| it.to_ascii_lowercase());
    let others = role_id.bytes().any(|byte| !byte.is_ascii_hexdigit() && byte != b'-');
    others || digits().count() < 32 || digits().collect::<BTreeSet<_>>().len() < 8
}

const LOGINS: [&str; 3] = ["approle", "cert", "jwt"];
const VAULT_ADDRESS: &str = "write \"https://HOST:PORT\" and nothing after it";
/// The default of `refresh`.
const REFRESH: Duration = MINUTE;
const MAX_STALE: Duration = Duration::from_secs(5 * 60);

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_role_is_one_that_nobody_guesses() {
        for random in ["7B1C2F60-93D4-4E0A-B5C8-6A1F0E2D3C49", "d41d8cd98f00b204e9800998ecf8427e"] {
            assert!(!is_guessable(random), "{random}");
        }
        for guessable in [
            "cloakroom-gateway",
            "00000000-0000-0000-0000-000000000000",
            "deadbeefdeadbeefdeadbeefdeadbeef",
            "7b1c2f60-93d4-4e0a-b5c8-6a1f0e2d3c4",
            "cloakroom-gateway-of-the-production-site-7b1c2f60",
            "",
        ] {
            assert!(is_guessable(guessable), "{guessable}");
        }
    }

    #[test]
    fn plain_http_goes_no_further_than_this_machine() {
        for text in [
            "https://vault.example:8200",
            "https://192.0.2.9",
            "https://[2001:db8::1]:8200/",
            "http://127.0.0.1:8200",
            "http://[::1]:8200",
        ] {
            assert!(vault_address(text).is_ok(), "{text}");
        }
        for text in [
            "http://vault.example:8200",
            "http://127.0.0.1.example",
            "http://192.0.2.9:8200",
            "http://localhost@vault.example",
            "https://user:pass@vault.example",
            "vault.example",
            "https://",
            "https://vault.example/v1",
            "https://vault.example?x=1",
            "ftp://127.0.0.1",
            "https://vault.example:0",
            "https://vault.example#x",
            "",
            "http://127.1",
        ] {
            assert!(vault_address(text).is_err(), "{text}");
        }
    }
}
