//! Settings of the daemon itself: `[gateway]`, `[limits]` and `[secrets]`.

use std::{
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use toml::Spanned;

use super::{
    error::Report,
    fields::{inner, plain},
    files::{Files, ca_file},
    settings::{
        AgentServices, AuditFile, AuditTarget, NameServer, SecretFile, Settings, VaultSettings,
    },
    table::TomlTable,
    value::{
        flag, nat64_prefix, number, path, port, prefix_or_address, resolver, size, text, time,
        unicast,
    },
};
use crate::policy::{Limits, Site};

/// The content of `[gateway]`. A field is `None` where it is wrong.
pub(super) struct GatewaySection {
    audit: AuditTarget,
    ca_dir: Option<Spanned<PathBuf>>,
    state_dir: PathBuf,
    control: PathBuf,
    /// The address at which metrics are served.
    pub(super) metrics: Option<Spanned<SocketAddr>>,
    pub(super) proxy_port: Spanned<u16>,
    mark: u32,
    route_table: u32,
    nflog_group: u16,
    assert_every: Duration,
    ipv6: bool,
    agent_services: AgentServices,
    pub(super) resolvers: Vec<Spanned<NameServer>>,
    resolver_ca: Option<Arc<str>>,
    workers: usize,
    /// The captured ports, if they are listed.
    pub(super) ports: Option<Vec<Spanned<u16>>>,
    pub(super) site: Site,
}

impl GatewaySection {
    pub(super) fn read(mut table: TomlTable<'_>, files: Files<'_>) -> Self {
        let base = files.base;
        let or_default = |path: Option<Spanned<PathBuf>>, default: &str| {
            path.map_or_else(|| default.into(), Spanned::into_inner)
        };
        let (resolvers, resolver_ca) = resolvers(&mut table, files);
        let gateway = Self {
            audit: audit(&mut table, base),
            ca_dir: table.optional("ca_dir", path(base)),
            state_dir: or_default(table.optional("state_dir", path(base)), DEFAULT_STATE_DIR),
            control: or_default(table.optional("control", socket_path(base)), DEFAULT_CONTROL),
            metrics: table.optional("metrics", management),
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
            agent_services: agent_services(&mut table),
            resolvers,
            resolver_ca,
            workers: inner(table.optional("workers", number(0..=1_024)), 0),
            ports: table.list("ports", port),
            site: site(&mut table),
        };
        table.finish();
        gateway
    }

    /// Refuses `ca_dir` beside `[vault.pki]`: no issuing CA would be read from that folder,
    /// contrary to what the operator expects.
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
        secret_file: Option<SecretFile>,
    ) -> Settings {
        Settings {
            audit: self.audit,
            ca_dir: inner(self.ca_dir, DEFAULT_CA_DIR.into()),
            state_dir: self.state_dir,
            control: self.control,
            metrics: self.metrics.map(Spanned::into_inner),
            proxy_port: self.proxy_port.into_inner(),
            mark: self.mark,
            route_table: self.route_table,
            nflog_group: self.nflog_group,
            assert_every: self.assert_every,
            ipv6: self.ipv6,
            agent_services: self.agent_services,
            resolvers: plain(self.resolvers),
            resolver_ca: self.resolver_ca,
            workers: self.workers,
            vault,
            secret_file,
        }
    }
}

/// Reads the properties of addresses that are special at this site.
fn site(table: &mut TomlTable<'_>) -> Site {
    // An empty list states that there is no translator; without the key nobody knows.
    let stated = table.has("nat64_prefixes");
    let nat64_prefixes = plain(table.list_or_none("nat64_prefixes", nat64_prefix));
    Site {
        never_dial: plain(table.list_or_none("never_dial", prefix_or_address)),
        public_addresses: plain(table.list_or_none("public_addresses", unicast)),
        nat64_prefixes: stated.then_some(nat64_prefixes),
    }
}

fn agent_services(table: &mut TomlTable<'_>) -> AgentServices {
    let mut services = AgentServices::default();
    let words = table.list_or_none("agent_services", |value| match text(value)?.as_str() {
        word @ ("ping" | "ntp" | "dhcp") => Ok(word.to_owned()),
        other => Err(format!("{other:?} is none of \"ping\", \"ntp\" and \"dhcp\"")),
    });
    for word in words {
        match word.get_ref().as_str() {
            "ping" => services.ping = true,
            "ntp" => services.ntp = true,
            _ => services.dhcp = true,
        }
    }
    services
}

/// Reads `[limits]`; a missing limit has its default.
pub(super) fn limits(mut table: TomlTable<'_>) -> Limits {
    let default = Limits::default();
    let defaults = (default.connections, default.agent_connections);
    let names = ["connections", "agent_connections"];
    let (connections, agent_connections) =
        places(&mut table, names, Limits::MAX_CONNECTIONS, defaults);
    let defaults = (default.requests, default.agent_requests);
    let names = ["requests", "agent_requests"];
    let (requests, agent_requests) = places(&mut table, names, Limits::MAX_REQUESTS, defaults);
    let defaults = (default.buffers, default.agent_buffers);
    let names = ["buffers", "agent_buffers"];
    let (buffers, agent_buffers) = room(&mut table, names, MIB..=1_024 * MIB, defaults);
    let defaults = (default.peeks, default.agent_peeks);
    let names = ["peeks", "agent_peeks"];
    let (peeks, agent_peeks) = room(&mut table, names, 256 * KIB..=256 * MIB, defaults);
    let limits = Limits {
        connections,
        agent_connections,
        agent_new_connections: inner(
            table.optional("agent_new_connections", number(1..=1_000_000)),
            default.agent_new_connections,
        ),
        agent_new_requests: inner(
            table.optional("agent_new_requests", number(1..=1_000_000)),
            default.agent_new_requests,
        ),
        requests,
        agent_requests,
        buffers,
        agent_buffers,
        peeks,
        agent_peeks,
        agent_leaves: inner(
            table.optional("agent_leaves", number(1..=10_000)),
            default.agent_leaves,
        ),
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
    table.finish();
    limits
}

/// Reads the most of something that all agents together may have at once, and the most that one
/// may.
fn places(
    table: &mut TomlTable<'_>,
    names: [&'static str; 2],
    most: usize,
    defaults: (usize, usize),
) -> (usize, usize) {
    let [all, own] = names;
    let of_all = table.optional(all, number(1..=most as u64));
    let of_one = table.optional(own, number(1..=most as u64 / 2));
    whole_and_part(table, names, [of_all, of_one], defaults)
}

/// Reads the most bytes that all agents together may hold, and the most that one may.
fn room(
    table: &mut TomlTable<'_>,
    names: [&'static str; 2],
    of_one: RangeInclusive<usize>,
    defaults: (usize, usize),
) -> (usize, usize) {
    let [all, own] = names;
    let of_all = table.optional(all, size(*of_one.start()..=16 * of_one.end()));
    let of_one = table.optional(own, size(of_one));
    whole_and_part(table, names, [of_all, of_one], defaults)
}

/// Returns the most that all agents together may have, and the most that one may. Where only the
/// latter is set, the former is raised to twice that, so that one group can let an agent have it:
/// an agent may have half of its group's.
fn whole_and_part(
    table: &mut TomlTable<'_>,
    [all, own]: [&'static str; 2],
    [of_all, of_one]: [Option<Spanned<usize>>; 2],
    (default_all, default_own): (usize, usize),
) -> (usize, usize) {
    let one = of_one.as_ref().map_or(default_own, |it| *it.get_ref());
    let Some(of_all) = of_all else { return (default_all.max(2 * one), one) };
    let most = *of_all.get_ref();
    if of_one.is_none() {
        return (most, one.min(most));
    }
    if one > most {
        let text = format!("{all}: {most} is fewer than {own} lets one agent have, {one}");
        table.report().add(&of_all.span(), text);
    }
    (most, one)
}

/// Reads `[secrets]`; returns `None` where its file is missing or wrong.
pub(super) fn secret_file(mut table: TomlTable<'_>, base: &Path) -> Option<SecretFile> {
    let file = table.required("file", path(base));
    let key = table.optional("key_file", path(base));
    if let (Some(file), Some(key)) = (&file, &key)
        && file.get_ref() == key.get_ref()
    {
        let text = "key_file: this is the file of secrets; the key is a file of its own";
        table.report().add(&key.span(), text);
    }
    table.finish();
    Some(SecretFile { path: file?.into_inner(), key: key.map(Spanned::into_inner) })
}

/// Reads the resolvers. All of them are asked over TLS, or none: one plain server among the others
/// would get all names as soon as an attacker keeps the others from answering.
fn resolvers(
    table: &mut TomlTable<'_>,
    files: Files<'_>,
) -> (Vec<Spanned<NameServer>>, Option<Arc<str>>) {
    let servers = table.required_list("resolvers", resolver);
    let over_tls = servers.iter().filter(|server| server.get_ref().tls_name.is_some()).count();
    if let Some(plain) = servers.iter().find(|server| server.get_ref().tls_name.is_none())
        && over_tls > 0
    {
        let text = format!(
            "resolvers: {} is asked in clear text beside others over TLS, which whoever can \
             block those could make use of; write all of them with tls://, or none",
            plain.get_ref()
        );
        table.report().add(&plain.span(), text);
    }
    let ca = table.optional("resolver_ca", ca_file(files));
    if let Some(ca) = ca.as_ref().filter(|_| over_tls == 0 && !servers.is_empty()) {
        let text = "resolver_ca: no resolver is asked over TLS; write resolvers with tls://, or \
                    leave this out";
        table.report().add(&ca.span(), text);
    }
    (servers, ca.map(Spanned::into_inner))
}

fn audit(table: &mut TomlTable<'_>, base: &Path) -> AuditTarget {
    let target = table.optional("audit", |value| {
        let word = text(value)?;
        match word.as_str() {
            "stdout" => Ok(None),
            _ if word.contains('/') => path(base)(value).map(Some),
            _ => Err(format!(
                "{word:?} is neither \"stdout\" nor a path; a file here is \"./{word}\""
            )),
        }
    });
    let reserve = table.optional("audit_reserve", size(0..=MAX_AUDIT_BYTES));
    let rotate = table.optional("audit_rotate", rotation);
    let keep = table.optional("audit_keep", number(1..=10_000));
    let Some(path) = inner(target, Some(DEFAULT_AUDIT_FILE.into())) else {
        let spans =
            [reserve.map(|it| it.span()), rotate.map(|it| it.span()), keep.map(|it| it.span())];
        for span in spans.into_iter().flatten() {
            let text = "the audit goes to standard output, and this is about its file; leave it \
                        out, or name a file in audit";
            table.report().add(&span, text);
        }
        return AuditTarget::Stdout;
    };
    let default = AuditFile::at(path);
    AuditTarget::File(AuditFile {
        reserve: reserve.map_or(default.reserve, |it| it.into_inner() as u64),
        rotate: inner(rotate, default.rotate),
        keep: inner(keep, default.keep),
        path: default.path,
    })
}

/// Reads the bytes of a file, or 0 for a file that is never rotated.
fn rotation(value: &toml::de::DeValue<'_>) -> Result<Option<u64>, String> {
    match size(0..=MAX_AUDIT_BYTES)(value)? {
        0 => Ok(None),
        bytes if bytes >= 64 * KIB => Ok(Some(bytes as u64)),
        bytes => Err(format!(
            "{bytes} bytes are a few records; write 65536 or more, or 0 where another program \
             rotates the file"
        )),
    }
}

/// Reads one address. It may not stand for all of this machine's, because agents can reach some of
/// those.
fn management(value: &toml::de::DeValue<'_>) -> Result<SocketAddr, String> {
    let word = text(value)?;
    let one = |address: &SocketAddr| {
        let ip = address.ip();
        address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast()
    };
    word.parse().ok().filter(one).ok_or_else(|| {
        format!(
            "{word:?} is not one address of this machine and a port; write \"127.0.0.1:9464\" or \
             \"[2001:db8::1]:9464\""
        )
    })
}

/// Reads the path of a socket. The kernel takes no longer one than `sun_path` with its final NUL
/// (`unix(7)`).
fn socket_path(base: &Path) -> impl Fn(&toml::de::DeValue<'_>) -> Result<PathBuf, String> {
    let path = path(base);
    move |value| {
        let path = path(value)?;
        match path.as_os_str().len() {
            0..=MAX_SOCKET_PATH => Ok(path),
            bytes => Err(format!(
                "{} has {bytes} bytes, and the path of a socket at most {MAX_SOCKET_PATH}",
                path.display()
            )),
        }
    }
}

/// Reads the number of a routing table. The kernel keeps 0 and 253 to 255 for itself
/// (`rtnetlink(7)`, `rtm_table`).
fn route_table(value: &toml::de::DeValue<'_>) -> Result<u32, String> {
    match number(1..=u64::from(u32::MAX))(value)? {
        table @ 253..=255 => Err(format!("{table} is a table of the kernel's own; take another")),
        table => Ok(table),
    }
}

/// Returns the control socket of a `[gateway]`, or the default, whatever else is wrong in the
/// table.
pub(super) fn control(table: Option<TomlTable<'_>>, base: &Path) -> PathBuf {
    let named = table.and_then(|mut table| table.optional("control", socket_path(base)));
    inner(named, DEFAULT_CONTROL.into())
}

const DEFAULT_CA_DIR: &str = "/var/lib/cloakroom/ca";
const DEFAULT_AUDIT_FILE: &str = "/var/log/cloakroom/audit.jsonl";
const DEFAULT_STATE_DIR: &str = "/var/lib/cloakroom";
/// The socket on which the daemon listens for commands.
const DEFAULT_CONTROL: &str = "/run/cloakroom/control.sock";
const MAX_SOCKET_PATH: usize = 107;
const DEFAULT_PROXY_PORT: u16 = 15_001;
const DEFAULT_MARK: u32 = 0xc10a;
const DEFAULT_ROUTE_TABLE: u32 = 0xc10a;
const DEFAULT_NFLOG_GROUP: u16 = 0xc10a;
const MAX_AUDIT_BYTES: usize = 16_384 * MIB;
const KIB: usize = 1_024;
const MIB: usize = 1_024 * KIB;
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
