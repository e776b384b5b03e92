//! Helpers that the tests of this module and of `cloakroom ca` share.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime},
};

use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use super::{Issued, IssuingCa, Root, TlsRule, issue, random_bytes};
use crate::{
    config::{AuditTarget, Settings},
    policy::{
        Api, Constraints, Host, HostPattern, Limits, Policy, ResponseRules, RuleName, Rules, Site,
        Upstream,
    },
};

/// A folder that goes away with the test.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        let id = u64::from_be_bytes(random_bytes().unwrap());
        let path = std::env::temp_dir().join(format!("cloakroom-ca-{id:016x}"));
        rustix::fs::mkdir(&path, rustix::fs::Mode::RWXU).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A root and a folder of issuing CAs.
pub(super) struct Installation {
    pub(super) scratch: Scratch,
    pub(super) root: Root,
}

impl Installation {
    pub(super) fn new() -> Self {
        let scratch = Scratch::new();
        let root = Root::init(&scratch.path("root"), "Test", now()).unwrap();
        Self { scratch, root }
    }

    /// An installation with the CA of one API.
    pub(super) fn with(rule: &str, hosts: &[&str]) -> (Self, IssuingCa) {
        let made = Self::new();
        made.issue(&policy(vec![api(rule, hosts)]), now());
        let ca = made.load(rule, &exact(hosts), now()).unwrap();
        (made, ca)
    }

    pub(super) fn dir(&self) -> PathBuf {
        self.scratch.path("ca")
    }

    pub(super) fn issue(&self, policy: &Policy, now: SystemTime) -> Vec<Issued> {
        issue(&self.root, &self.dir(), policy, now).unwrap()
    }

    pub(super) fn load(
        &self,
        rule: &str,
        names: &[HostPattern],
        now: SystemTime,
    ) -> Result<IssuingCa, super::CaError> {
        IssuingCa::load(&self.dir(), &tls_rule(rule, names), now)
    }
}

pub(super) fn tls_rule(rule: &str, names: &[HostPattern]) -> TlsRule {
    let constraints = Constraints::Critical;
    TlsRule { rule: RuleName(rule.into()), names: names.to_vec(), constraints }
}

/// Returns the verdict of rustls on a chain when it trusts the root alone.
pub(super) fn verify(
    root: &CertificateDer<'static>,
    chain: &[CertificateDer<'static>],
    name: &str,
    now: SystemTime,
) -> Result<(), rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap());
    let name = ServerName::try_from(name.to_owned()).unwrap();
    verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], now).map(|_| ())
}

/// Returns the verdict of `openssl verify -x509_strict` on the same; `None` where there is no
/// openssl.
pub(super) fn openssl_verify(
    scratch: &Scratch,
    root: &CertificateDer<'static>,
    chain: &[CertificateDer<'static>],
) -> Option<Result<(), String>> {
    let file = |name: &str, der: &CertificateDer<'static>| {
        let path = scratch.path(name);
        std::fs::write(&path, super::root::pem(der)).unwrap();
        path
    };
    let (root, issuing, leaf) =
        (file("o-root.pem", root), file("o-issuing.pem", &chain[1]), file("o-leaf.pem", &chain[0]));
    let mut command = Command::new("openssl");
    command.args(["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"]);
    let output = command.arg(root).arg("-untrusted").arg(issuing).arg(leaf).output().ok()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Some(if output.status.success() { Ok(()) } else { Err(said) })
}

/// One instant for the whole run, so that no second passes between a test's steps.
pub(crate) fn now() -> SystemTime {
    static NOW: LazyLock<SystemTime> = LazyLock::new(SystemTime::now);
    *NOW
}

pub(super) fn later(hours: u64) -> SystemTime {
    now() + Duration::from_secs(hours * 3_600)
}

pub(super) fn host(name: &str) -> Host {
    Host::parse(name).unwrap()
}

pub(super) fn exact(hosts: &[&str]) -> Vec<HostPattern> {
    hosts.iter().map(|name| HostPattern::Exact(host(name))).collect()
}

pub(crate) fn api(name: &str, hosts: &[&str]) -> Api {
    Api {
        name: RuleName(name.into()),
        hosts: hosts.iter().map(|name| host(name)).collect(),
        port: 443,
        methods: Vec::new(),
        plain: Vec::new(),
        paths: Vec::new(),
        anonymous: crate::policy::Anonymous::Never,
        upstream: Upstream::default(),
        response: ResponseRules { cookies: false, ranges: false },
        websocket: false,
        aws: None,
        constraints: Constraints::Critical,
        bindings: Vec::new(),
        mints: Vec::new(),
        redeems: Vec::new(),
    }
}

pub(crate) fn policy(apis: Vec<Api>) -> Policy {
    Policy {
        groups: Vec::new(),
        apis: apis.into_iter().map(Arc::new).collect(),
        passes: Rules::default(),
        tcp: Rules::default(),
        ports: vec![443],
        limits: Limits::default(),
        site: Site::default(),
    }
}

pub(crate) fn settings(ca_dir: &Path) -> Settings {
    Settings {
        audit: AuditTarget::Stdout,
        ca_dir: ca_dir.into(),
        state_dir: "/nowhere".into(),
        control: "/nowhere".into(),
        metrics: None,
        proxy_port: 1,
        mark: 1,
        route_table: 1,
        nflog_group: 1,
        assert_every: std::time::Duration::from_secs(60),
        ipv6: true,
        agent_services: crate::config::AgentServices::default(),
        resolvers: Vec::new(),
        resolver_ca: None,
        workers: 1,
        vault: None,
        secret_file: None,
    }
}
