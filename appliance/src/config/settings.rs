//! Settings of the daemon itself, apart from the rights of agents.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::policy::Host;

/// Settings of the daemon. Holds no secret, only where secrets are fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The target of audit records.
    pub audit: AuditTarget,
    /// Folder of the issuing CAs (one `RULE.pem` and `RULE.key` each), owned by the daemon.
    pub ca_dir: PathBuf,
    /// Folder of the state that must outlive a restart: the marks of quarantined groups.
    pub state_dir: PathBuf,
    /// The Unix socket through which `cloakroom` commands reach the running daemon.
    pub control: PathBuf,
    /// The address at which metrics and readiness are served; no agent reaches it.
    pub metrics: Option<SocketAddr>,
    /// TCP port of the transparent listeners. Never reachable by its number.
    pub proxy_port: u16,
    /// Packet mark and routing table that deliver captured packets locally.
    pub mark: u32,
    /// Routing table that the mark selects.
    pub route_table: u32,
    /// The NFLOG group through which the kernel reports what it refused.
    pub nflog_group: u16,
    /// Interval at which the kernel's settings and rules are checked.
    pub assert_every: Duration,
    /// Capture IPv6 as well; where false, every IPv6 packet of an agent is dropped.
    pub ipv6: bool,
    /// The services other than DNS that the gateway offers its agents.
    pub agent_services: AgentServices,
    /// Resolvers that the gateway asks. Never empty; either all of them over TLS or none.
    pub resolvers: Vec<NameServer>,
    /// PEM of the only CAs that are trusted for resolvers over TLS; the system's where absent.
    pub resolver_ca: Option<Arc<str>>,
    /// Threads that carry flows; 0 means one for each core.
    pub workers: usize,
    /// The Vault to lease from.
    pub vault: Option<VaultSettings>,
    /// The file of secrets.
    pub secret_file: Option<SecretFile>,
}

macro_rules! differences {
    ($one:ident, $other:ident, $($field:ident: $name:literal,)+) => {{
        // This does not compile if a field is forgotten.
        let Self { $($field),+ } = $one;
        let all = [$((*$field != $other.$field).then_some($name)),+];
        all.into_iter().flatten().collect()
    }};
}

impl Settings {
    /// Returns the settings that differ in `other`: the keys of `[gateway]`, and tables as a whole.
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        differences!(
            self, other,
            audit: "audit and what is said of its file",
            ca_dir: "ca_dir",
            state_dir: "state_dir",
            control: "control",
            metrics: "metrics",
            proxy_port: "proxy_port",
            mark: "mark",
            route_table: "route_table",
            nflog_group: "nflog_group",
            assert_every: "assert_every",
            ipv6: "ipv6",
            agent_services: "agent_services",
            resolvers: "resolvers",
            resolver_ca: "resolver_ca",
            workers: "workers",
            vault: "[vault]",
            secret_file: "[secrets]",
        )
    }

    /// Returns the files that the daemon reads itself and that are made after the configuration is
    /// written, each with the way to make it.
    pub fn files_to_make(&self) -> Vec<(&Path, &'static str)> {
        let mut files = self.secret_file.iter().flat_map(SecretFile::to_make).collect::<Vec<_>>();
        if let Some(vault) = &self.vault {
            files.extend(vault.login.files().map(|file| (file, vault.login.how_made())));
            let root = vault.pki.iter().map(|pki| &*pki.root_file);
            files
                .extend(root.map(|root| (root, "the script of \"cloakroom vault plan\" says how")));
        }
        files
    }
}

/// A file of secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFile {
    /// The file itself, readable by the daemon alone.
    pub path: PathBuf,
    /// The file of the key that it is encrypted with; without one the file is plain text.
    pub key: Option<PathBuf>,
}

impl SecretFile {
    fn to_make(&self) -> impl Iterator<Item = (&Path, &'static str)> {
        let how = match &self.key {
            Some(_) => "run \"cloakroom secret init\"",
            None => {
                "write it, a line \"NAME = VALUE\" for each secret, for the daemon's user alone"
            }
        };
        [Some(&self.path), self.key.as_ref()].into_iter().flatten().map(move |it| (&**it, how))
    }
}

/// A DNS server that the gateway asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameServer {
    /// The address on which it listens.
    pub address: SocketAddr,
    /// The name that its certificate is verified for (RFC 8310, section 8.1). `None` means plain
    /// DNS; otherwise it is asked over TLS (RFC 7858) and never in any other way.
    pub tls_name: Option<Host>,
}

impl fmt::Display for NameServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tls_name {
            Some(name) => write!(f, "tls://{name}@{}", self.address),
            None => self.address.fmt(f),
        }
    }
}

/// The services other than DNS that the gateway's own address offers its agents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AgentServices {
    /// Echo requests, at a bounded rate; the kernel answers them.
    pub ping: bool,
    /// NTP: datagrams to port 123 reach the time server of this machine.
    pub ntp: bool,
    /// DHCP for IPv4: datagrams to port 67, also from agents that have no address yet.
    pub dhcp: bool,
}

/// The target of audit records, one JSON object a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditTarget {
    /// The daemon's standard output.
    Stdout,
    /// Appended to this file, created with mode 0600.
    File(AuditFile),
}

/// The file of the audit, and how much of its disk it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditFile {
    /// Its path.
    pub path: PathBuf,
    /// Bytes of its file system that are kept for the records of flows under way: with less than
    /// this left, nothing new is begun.
    pub reserve: u64,
    /// Bytes after which the file is moved aside and another one begun; `None` where the daemon
    /// never does that.
    pub rotate: Option<u64>,
    /// The number of files that are kept after they were moved aside.
    pub keep: usize,
}

impl AuditFile {
    /// Creates the settings of a file at this path, with the default sizes.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), reserve: 64 << 20, rotate: Some(256 << 20), keep: 32 }
    }
}

impl fmt::Display for AuditTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("stdout"),
            Self::File(file) => file.path.display().fmt(f),
        }
    }
}

/// Settings to reach and log in to Vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultSettings {
    /// `https://host:port`; `http` only to loopback.
    pub address: Arc<str>,
    /// Other nodes of the same cluster, in the form of `address`. No other redirect is followed.
    pub peers: Vec<Arc<str>>,
    /// PEM file of the only CA to trust for it; may be absent only for `http` to loopback.
    pub ca_file: Option<PathBuf>,
    /// Namespace, for Vault Enterprise and OpenBao.
    pub namespace: Option<Arc<str>>,
    /// The gateway's login.
    pub login: VaultLogin,
    /// Interval at which values are read again.
    pub refresh: Duration,
    /// Time for which a value outlives an outage of Vault.
    pub max_stale: Duration,
    /// The engine that signs the issuing CAs; without it they are files in `ca_dir`.
    pub pki: Option<PkiSettings>,
}

/// Settings of Vault's PKI engine, which signs the issuing CAs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PkiSettings {
    /// Mount of the engine, `pki` by default.
    pub mount: Arc<str>,
    /// PEM file of the root that agents trust: the engine's CA itself, or the root above it.
    pub root_file: PathBuf,
    /// The requested lifetime, in whole seconds.
    pub ttl: Duration,
    /// Accept issuing CAs that could sign for IP addresses: OpenBao's engine makes no others.
    pub accept_without_ip_exclusion: bool,
}

/// The one identity of the gateway. Names files of secrets, and holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VaultLogin {
    /// `[vault.approle]`
    AppRole {
        /// Mount of the engine, `approle` by default.
        mount: Arc<str>,
        /// The role's id: not a secret by itself.
        role_id: Arc<str>,
        /// File that holds the SecretID, readable by the daemon alone.
        secret_id_file: PathBuf,
        /// Whether the file holds a token that wraps the SecretID instead.
        wrapped: bool,
    },
    /// `[vault.cert]`
    Cert {
        /// Mount of the engine, `cert` by default.
        mount: Arc<str>,
        /// The role's name.
        role: Arc<str>,
        /// PEM file of the certificate and those between it and its root.
        certificate_file: PathBuf,
        /// PEM file of its key, readable by the daemon alone.
        key_file: PathBuf,
    },
    /// `[vault.jwt]`, for Kubernetes too.
    Jwt {
        /// Mount of the engine, `jwt` by default.
        mount: Arc<str>,
        /// The role's name.
        role: Arc<str>,
        /// File that holds the signed token; read again at each login, because another program
        /// renews it.
        token_file: PathBuf,
    },
}

impl VaultLogin {
    /// Returns the files that it reads.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let (file, other) = match self {
            Self::AppRole { secret_id_file, .. } => (secret_id_file, None),
            Self::Cert { certificate_file, key_file, .. } => (certificate_file, Some(key_file)),
            Self::Jwt { token_file, .. } => (token_file, None),
        };
        [Some(file), other].into_iter().flatten().map(|file| &**file)
    }

    const fn how_made(&self) -> &'static str {
        match self {
            Self::AppRole { .. } => "make one as the end of \"cloakroom vault plan\" says",
            Self::Cert { .. } => "put the gateway's certificate and its key there",
            Self::Jwt { .. } => "have the gateway's token put there",
        }
    }
}
