//! A fake Vault over real TLS, for the faults that a real one does not show on demand.

use std::sync::{Arc, Mutex, OnceLock};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::{
    config::VaultLogin,
    dial::Resolver,
    policy::{InterfaceName, PickPart, Site},
    secrets::private_file::tests::TestFolder,
};

pub(super) const SECRET_ID: &str = "secret-id-4b1d2e3f";
pub(super) const TOKEN: &str = "hvs.token-0123456789";
pub(super) const CHILD_TOKEN: &str = "hvs.child-0123456789";
pub(super) const VALUE: &str = "sk-live-0123456789abcdef";

/// One request as the fake received it.
#[derive(Debug, Clone, Default)]
pub(super) struct Received {
    pub(super) target: String,
    pub(super) token: Option<String>,
    pub(super) body: String,
}

/// The fake's reaction to a request.
pub(super) enum FakeReply {
    Json(u16, String),
    Redirect(String),
    Hang,
    Cut,
    Bytes(usize),
}

pub(super) type Respond = dyn Fn(&Received) -> FakeReply + Send + Sync;

pub(super) struct Fake {
    pub(super) address: String,
    pub(super) received: Arc<Mutex<Vec<Received>>>,
    pub(super) folder: TestFolder,
    pub(super) task: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    pub(super) async fn start(
        respond: impl Fn(&Received) -> FakeReply + Send + Sync + 'static,
    ) -> Self {
        let folder = TestFolder::new();
        folder.write("secret-id", format!("{SECRET_ID}\n").as_bytes(), 0o600);
        folder.write("ca.pem", authority().0.as_bytes(), 0o644);
        let acceptor = acceptor();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("https://{}", listener.local_addr().unwrap());
        let received = Arc::new(Mutex::new(Vec::new()));
        let (log, respond): (_, Arc<Respond>) = (Arc::clone(&received), Arc::new(respond));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(
                    acceptor.clone(),
                    stream,
                    Arc::clone(&log),
                    Arc::clone(&respond),
                ));
            }
        });
        Self { address, received, folder, task }
    }

    pub(super) fn settings(&self) -> VaultSettings {
        self.settings_with(false)
    }

    /// Makes settings. With `wrapped`, the file holds a token that wraps the SecretID.
    pub(super) fn settings_with(&self, wrapped: bool) -> VaultSettings {
        VaultSettings {
            address: self.address.as_str().into(),
            ca_file: Some(self.folder.0.join("ca.pem")),
            namespace: None,
            peers: vec![],
            login: VaultLogin::AppRole {
                mount: "approle".into(),
                role_id: "role-1".into(),
                secret_id_file: self.folder.0.join("secret-id"),
                wrapped,
            },
            refresh: Duration::from_secs(60),
            max_stale: Duration::from_secs(300),
            pki: None,
        }
    }

    pub(super) fn source(&self) -> VaultSource {
        VaultSource::new(&self.settings(), &groups(), &resolver()).unwrap()
    }

    pub(super) fn targets(&self) -> Vec<String> {
        self.received.lock().unwrap().iter().map(|one| one.target.clone()).collect()
    }

    pub(super) fn count(&self, target: &str) -> usize {
        self.targets().iter().filter(|one| *one == target).count()
    }
}

/// Makes a resolver without an upstream: fakes are at literal addresses.
pub(super) fn resolver() -> Resolver {
    let site = Site { nat64_prefixes: Some(Vec::new()), ..Site::default() };
    Resolver::new(&[], None, site, tokio::runtime::Handle::current()).unwrap()
}

/// Returns the CA of every fake, so that a client of one would trust any other.
fn authority() -> &'static (String, Issuer<'static, KeyPair>) {
    static AUTHORITY: OnceLock<(String, Issuer<'static, KeyPair>)> = OnceLock::new();
    AUTHORITY.get_or_init(new_authority)
}

/// Makes a CA: its certificate in PEM, and its issuer.
pub(super) fn new_authority() -> (String, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    (pem, Issuer::new(params, key))
}

fn acceptor() -> TlsAcceptor {
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &authority().1).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key.serialize_der().try_into().unwrap())
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn serve(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    log: Arc<Mutex<Vec<Received>>>,
    respond: Arc<Respond>,
) -> Option<()> {
    let mut stream = acceptor.accept(stream).await.ok()?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let field = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    let mut body = vec![0; field("content-length").map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).await.ok()?;
    let received = Received {
        target: head.split(' ').nth(1).unwrap().trim_end_matches('?').to_owned(),
        token: field("x-vault-token"),
        body: String::from_utf8(body).unwrap(),
    };
    log.lock().unwrap().push(received.clone());
    let answer = match respond(&received) {
        FakeReply::Json(status, body) => http(status, "", body.as_bytes()),
        FakeReply::Redirect(to) => http(307, &format!("Location: {to}\r\n"), b""),
        FakeReply::Bytes(count) => http(200, "", &vec![b' '; count]),
        FakeReply::Cut => b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"data\"".to_vec(),
        FakeReply::Hang => std::future::pending().await,
    };
    stream.write_all(&answer).await.ok()?;
    stream.shutdown().await.ok()
}

fn http(status: u16, fields: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} Any\r\n{fields}Connection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// Answers with the gateway's own token.
pub(super) fn grant(token: &str, seconds: u64) -> FakeReply {
    granted(token, seconds, r#""policies":["default","gateway"]"#)
}

/// Answers with a group's token.
pub(super) fn child(token: &str, seconds: u64) -> FakeReply {
    granted(token, seconds, r#""policies":["agents"],"orphan":false,"token_type":"service""#)
}

pub(super) fn granted(token: &str, seconds: u64, rest: &str) -> FakeReply {
    let auth = format!(r#""client_token":"{token}","lease_duration":{seconds},"renewable":true"#);
    FakeReply::Json(
        200,
        format!(r#"{{"auth":{{{auth},"accessor":"accessor-of-{token}",{rest}}}}}"#),
    )
}

pub(super) fn value() -> FakeReply {
    FakeReply::Json(200, format!(r#"{{"data":{{"data":{{"key":"{VALUE}"}}}}}}"#))
}

pub(super) fn refused() -> FakeReply {
    FakeReply::Json(403, r#"{"errors":["permission denied"]}"#.to_owned())
}

/// A Vault that is healthy, except that `read` answers its reads.
pub(super) fn healthy(
    read: impl Fn() -> FakeReply + Send + Sync + 'static,
) -> impl Fn(&Received) -> FakeReply {
    move |request| match request.target.as_str() {
        LOGIN => grant(TOKEN, 3600),
        CHILD => child(CHILD_TOKEN, 3600),
        READ => read(),
        LOOKUP | REVOKE => FakeReply::Json(200, "{}".to_owned()),
        other => panic!("unexpected {other}"),
    }
}

pub(super) fn groups() -> Vec<Arc<Group>> {
    vec![group("agents")]
}

pub(super) fn group(name: &str) -> Arc<Group> {
    Arc::new(Group {
        name: GroupName(name.into()),
        interface: InterfaceName("agents0".into()),
        prefixes: vec![],
        agents: Vec::new(),
        vault_role: format!("cloakroom-{name}").into(),
        clients: Vec::new(),
        mtu: None,
        onboarding: None,
    })
}

pub(super) fn location(path: &str) -> Location {
    let (mount, path) = ("kv".into(), path.into());
    Location::Vault(VaultLocation::Kv2 { mount, path, version: None })
}

pub(super) fn agents() -> GroupName {
    GroupName("agents".into())
}

pub(super) async fn fetch(source: &VaultSource) -> Result<String, FetchError> {
    fetch_at(source, "team/openai").await
}

/// Fetches the field `key` of a KV v2 secret.
pub(super) async fn fetch_at(source: &VaultSource, path: &str) -> Result<String, FetchError> {
    let pick = Pick([PickPart::Field("key".into())].into());
    let mut answer = source.fetch(&agents(), &location(path), &[pick]).await?;
    answer.values.remove(0).map(|value| String::from_utf8(value.whole.to_vec()).unwrap())
}

pub(super) const LOGIN: &str = "/v1/auth/approle/login";
pub(super) const CHILD: &str = "/v1/auth/token/create/cloakroom-agents";
pub(super) const LOOKUP: &str = "/v1/auth/token/lookup-self";
pub(super) const RENEW: &str = "/v1/auth/token/renew-self";
pub(super) const REVOKE: &str = "/v1/auth/token/revoke-self";
pub(super) const REVOKE_ACCESSOR: &str = "/v1/auth/token/revoke-accessor";
pub(super) const READ: &str = "/v1/kv/data/team/openai";
