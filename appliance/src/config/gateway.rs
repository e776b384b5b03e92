//! How the daemon itself runs: `[gateway]`, `[limits]`, `[vault]` and `[secrets]`.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::Uri;
use toml::Spanned;

use super::{
    credential::is_path,
    error::Report,
    settings::{AuditTarget, PkiSettings, Settings, VaultSettings},
    table::Table,
    value::{flag, number, parsed, path, port, resolver, size, text, time, unquoted},
};
use crate::policy::Limits;

/// What `[gateway]` says. A field is `None` where it is wrong.
pub(super) struct Gateway {
    audit: AuditTarget,
    ca_dir: Option<Spanned<PathBuf>>,
    pub(super) proxy_port: Spanned<u16>,
    mark: u32,
    route_table: u32,
    nflog_group: u16,
    assert_every: Duration,
    ipv6: bool,
    resolvers: Vec<SocketAddr>,
    workers: usize,
    /// The captured ports where they are listed.
    pub(super) ports: Option<Vec<Spanned<u16>>>,
}

impl Gateway {
    pub(super) fn read(mut table: Table<'_>, base: &Path) -> Self {
        let resolvers = table.required_list("resolvers", resolver);
        let gateway = Self {
            audit: audit(&mut table, base),
            ca_dir: table.optional("ca_dir", path(base)),
            proxy_port: table
                .optional("proxy_port", port)
                .unwrap_or_else(|| Spanned::new(table.span().clone(), DEFAULT_PROXY_PORT)),
            mark: inner(table.optional("mark", number(1..=u64::from(u32::MAX))), DEFAULT_MARK),
            route_table: inner(table.optional("route_table", route_table), DEFAULT_ROUTE_TABLE),
            nflog_group: inner(
                table.optional("nflog_group", number(0..=u64::from(u16::MAX))),
                DEFAULT_NFLOG_GROUP,
            ),
            assert_every: inner(table.optional("assert_every", time(SECOND..=MINUTE)), MINUTE),
            ipv6: inner(table.optional("ipv6", flag), true),
            resolvers: resolvers.into_iter().map(Spanned::into_inner).collect(),
            workers: inner(table.optional("workers", number(0..=1_024)), 0),
            ports: table.list("ports", port),
        };
        table.finish();
        gateway
    }

    /// With `[vault.pki]` no issuing CA is read from a folder: whoever names one expects otherwise.
    pub(super) fn refuse_ca_dir(&self, report: &Report<'_>) {
        if let Some(ca_dir) = &self.ca_dir {
            let text = "ca_dir: with [vault.pki] Vault signs the issuing CAs and no folder of them \
                        is read; remove one of the two";
            report.add(&ca_dir.span(), text);
        }
    }

    pub(super) fn into_settings(
        self,
        vault: Option<VaultSettings>,
        secret_file: Option<PathBuf>,
    ) -> Settings {
        Settings {
            audit: self.audit,
            ca_dir: inner(self.ca_dir, DEFAULT_CA_DIR.into()),
            proxy_port: self.proxy_port.into_inner(),
            mark: self.mark,
            route_table: self.route_table,
            nflog_group: self.nflog_group,
            assert_every: self.assert_every,
            ipv6: self.ipv6,
            resolvers: self.resolvers,
            workers: self.workers,
            vault,
            secret_file,
        }
    }
}

/// Reads `[limits]`; a limit that is not there has its default.
pub(super) fn limits(mut table: Table<'_>) -> Limits {
    let default = Limits::default();
    let whole = table.optional("connections", number(1..=1_048_576));
    let agent = table.optional("agent_connections", number(1..=1_048_576));
    let limits = Limits {
        agent_connections: inner(agent.clone(), default.agent_connections),
        connections: inner(whole, default.connections),
        peek_bytes: inner(
            table.optional("peek_bytes", size(4 * KIB..=256 * KIB)),
            default.peek_bytes,
        ),
        peek_time: inner(table.optional("peek_time", time(SECOND..=MINUTE)), default.peek_time),
        dial_time: inner(table.optional("dial_time", time(SECOND..=2 * MINUTE)), default.dial_time),
        head_time: inner(table.optional("head_time", time(SECOND..=2 * MINUTE)), default.head_time),
        head_bytes: inner(
            table.optional("head_bytes", size(4 * KIB..=1_024 * KIB)),
            default.head_bytes,
        ),
        head_fields: inner(table.optional("head_fields", number(16..=1_000)), default.head_fields),
        idle_time: inner(
            table.optional("idle_time", time(10 * SECOND..=24 * HOUR)),
            default.idle_time,
        ),
        h2_streams: inner(table.optional("h2_streams", number(1..=1_000)), default.h2_streams),
        dns_rate: inner(table.optional("dns_rate", number(1..=100_000)), default.dns_rate),
        drain_time: inner(
            table.optional("drain_time", time(Duration::ZERO..=HOUR)),
            default.drain_time,
        ),
    };
    if let Some(agent) = agent.filter(|_| limits.agent_connections > limits.connections) {
        let (own, all) = (limits.agent_connections, limits.connections);
        let text =
            format!("agent_connections: {own} is more than all agents together may have, {all}");
        table.report().add(&agent.span(), text);
    }
    table.finish();
    limits
}

/// Reads `[vault]`; `None` where something needed is missing or wrong.
pub(super) fn vault(mut table: Table<'_>, base: &Path) -> Option<VaultSettings> {
    let address = table.required("address", unquoted(vault_address));
    let ca_file = table.optional("ca_file", path(base));
    if address.as_ref().is_some_and(|address| address.get_ref().starts_with("https:")) {
        table.require("ca_file");
    }
    let settings = Settle {
        address,
        namespace: table.optional("namespace", parsed(mount)),
        approle_mount: table.optional("approle_mount", parsed(mount)),
        role_id: table.required("role_id", unquoted(role_id)),
        secret_id_file: table.required("secret_id_file", path(base)),
        refresh: table.optional("refresh", time(SECOND..=HOUR)),
        max_stale: table.optional("max_stale", time(Duration::ZERO..=24 * HOUR)),
        pki: table.table("pki", "[vault.pki]").map(|table| pki(table, base)),
    };
    table.finish();
    settings.with_ca(ca_file.map(Spanned::into_inner))
}

/// Reads `[vault.pki]`; `None` where something needed is missing or wrong.
fn pki(mut table: Table<'_>, base: &Path) -> Option<PkiSettings> {
    let root_file = table.required("root_file", path(base));
    let mount = table.optional("mount", parsed(mount));
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

/// Reads `[secrets]`; `None` where its file is missing or wrong.
pub(super) fn secret_file(mut table: Table<'_>, base: &Path) -> Option<PathBuf> {
    let file = table.required("file", path(base));
    table.finish();
    file.map(Spanned::into_inner)
}

/// The values of `[vault]` before it is known that all are there.
struct Settle {
    address: Option<Spanned<Arc<str>>>,
    namespace: Option<Spanned<Arc<str>>>,
    approle_mount: Option<Spanned<Arc<str>>>,
    role_id: Option<Spanned<Arc<str>>>,
    secret_id_file: Option<Spanned<PathBuf>>,
    refresh: Option<Spanned<Duration>>,
    max_stale: Option<Spanned<Duration>>,
    /// `Some(None)` where it is there and wrong.
    pki: Option<Option<PkiSettings>>,
}

impl Settle {
    fn with_ca(self, ca_file: Option<PathBuf>) -> Option<VaultSettings> {
        Some(VaultSettings {
            address: self.address?.into_inner(),
            ca_file,
            namespace: self.namespace.map(Spanned::into_inner),
            approle_mount: inner(self.approle_mount, "approle".into()),
            role_id: self.role_id?.into_inner(),
            secret_id_file: self.secret_id_file?.into_inner(),
            refresh: inner(self.refresh, MINUTE),
            max_stale: inner(self.max_stale, 5 * MINUTE),
            pki: super::transpose(self.pki)?,
        })
    }
}

fn audit(table: &mut Table<'_>, base: &Path) -> AuditTarget {
    let target = table.optional("audit", |value| {
        let word = text(value)?;
        match word.as_str() {
            "stdout" => Ok(AuditTarget::Stdout),
            _ if word.contains('/') => path(base)(value).map(AuditTarget::File),
            _ => Err(format!(
                "{word:?} is neither \"stdout\" nor a path; a file here is \"./{word}\""
            )),
        }
    });
    inner(target, AuditTarget::File(DEFAULT_AUDIT_FILE.into()))
}

/// A time that Vault, which counts in seconds, is told.
fn whole_seconds(
    range: std::ops::RangeInclusive<Duration>,
) -> impl Fn(&toml::de::DeValue<'_>) -> Result<Duration, String> {
    move |value| match time(range.clone())(value)? {
        time if time.subsec_nanos() > 0 => Err("write it in whole seconds".into()),
        time => Ok(time),
    }
}

/// The kernel keeps 0 and 253 to 255 for itself (`rtnetlink(7)`, `rtm_table`).
fn route_table(value: &toml::de::DeValue<'_>) -> Result<u32, String> {
    match number(1..=u64::from(u32::MAX))(value)? {
        table @ 253..=255 => Err(format!("{table} is a table of the kernel's own; take another")),
        table => Ok(table),
    }
}

/// Plain HTTP would show every secret to the network, so it goes no further than this machine.
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

fn mount(text: &str) -> Result<Arc<str>, &'static str> {
    is_path(text).then(|| text.into()).ok_or("write its path, without slashes at its ends")
}

fn role_id(text: &str) -> Result<Arc<str>, &'static str> {
    let plain = !text.is_empty() && text.len() <= 256 && text.bytes().all(|b| b.is_ascii_graphic());
    plain.then(|| text.into()).ok_or("the id of a role is visible ASCII characters without a space")
}

/// The value, or what holds where there is none.
pub(super) fn inner<T>(value: Option<Spanned<T>>, default: T) -> T {
    value.map_or(default, Spanned::into_inner)
}

const DEFAULT_CA_DIR: &str = "/var/lib/cloakroom/ca";
const DEFAULT_AUDIT_FILE: &str = "/var/log/cloakroom/audit.jsonl";
const DEFAULT_PROXY_PORT: u16 = 15_001;
const DEFAULT_MARK: u32 = 0xc10a;
const DEFAULT_ROUTE_TABLE: u32 = 0xc10a;
const DEFAULT_NFLOG_GROUP: u16 = 0xc10a;
const VAULT_ADDRESS: &str = "write \"https://HOST:PORT\" and nothing after it";
const KIB: usize = 1_024;
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);

#[cfg(test)]
mod tests {
    use super::*;

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
