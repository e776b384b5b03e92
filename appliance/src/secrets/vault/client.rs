//! One question to Vault: only its address, only its CA, a bound on the answer and a deadline.
//!
//! vaultrs' own constructor follows redirects with the token, adds the system's CAs and reads the
//! environment; its executor logs what Vault says and has no bound on it. So its client is made
//! here from its public fields, and its endpoints are run by [`call`].

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};
use rustify::endpoint::Endpoint;
use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer};
use rustls_pki_types::pem::PemObject;
use vaultrs::{
    api::EndpointMiddleware,
    client::{VaultClient, VaultClientSettings},
};
use zeroize::Zeroizing;

use super::super::{FetchError, PrivateFileError};
use crate::{config::VaultSettings, dial::ControlPlane, reason::SecretCause};

/// Why Vault cannot be used at all. Found at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VaultSourceError {
    /// The address is not `https://host:port`, or `http` to somewhere else than loopback.
    Address(&'static str),
    /// The CA file cannot be used.
    CaFile(PathBuf, &'static str),
    /// The SecretID file cannot be used.
    SecretIdFile(PathBuf, PrivateFileError),
    /// The SecretID file holds no SecretID.
    SecretId(PathBuf),
    /// The namespace or the AppRole mount has bytes that cannot be sent.
    Setting(&'static str),
}

/// Why a question has no answer. Carries nothing that Vault said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallError {
    /// An answer that is no success.
    Status {
        /// The HTTP status.
        code: u16,
        /// Whether it says that Vault is sealed.
        sealed: bool,
    },
    /// No answer.
    Transport(&'static str),
}

impl CallError {
    /// The error where the status is not about the question itself.
    pub(super) const fn outage(self) -> FetchError {
        use SecretCause::{VaultSealed, VaultUnreachable};
        match self {
            Self::Status { code: 503, sealed: true } => {
                FetchError::Outage(VaultSealed, "Vault is sealed")
            }
            // https://developer.hashicorp.com/vault/api-docs/system/health
            Self::Status { code: 429 | 472 | 473 | 501, .. } => {
                FetchError::Outage(VaultSealed, "Vault is in standby, not initialised, or busy")
            }
            Self::Status { code: 300..=399, .. } => FetchError::Outage(
                VaultUnreachable,
                "Vault answered with a redirect, which is not followed; name the active node",
            ),
            Self::Status { .. } => {
                FetchError::Outage(VaultUnreachable, "Vault answered with an error")
            }
            Self::Transport(text) => FetchError::Outage(VaultUnreachable, text),
        }
    }
}

/// How Vault is reached. Holds no token.
pub(super) struct Transport {
    http: reqwest::Client,
    address: Url,
    namespace: Option<String>,
}

impl Transport {
    /// `call_time` is from the first byte sent to the last received.
    pub(super) fn new(
        settings: &VaultSettings,
        control_plane: &ControlPlane,
        call_time: Duration,
    ) -> Result<Self, VaultSourceError> {
        let address = parse_address(&settings.address)?;
        control_plane.learn(literal(&address));
        let roots = match (&settings.ca_file, address.scheme()) {
            (Some(path), _) => read_roots(path)?,
            (None, "http") => RootCertStore::empty(),
            (None, _) => return Err(VaultSourceError::Address("https needs a ca_file")),
        };
        let namespace = settings.namespace.as_deref().map(str::to_owned);
        if namespace.as_deref().is_some_and(|name| !name.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(VaultSourceError::Setting("the namespace has unprintable bytes"));
        }
        let http = build_http(roots, address.scheme() == "https", control_plane, call_time)?;
        Ok(Self { http, address, namespace })
    }

    /// vaultrs' client with `token`, or without one where it is empty.
    pub(super) fn client(&self, token: &str) -> VaultClient {
        VaultClient {
            http: rustify::clients::reqwest::Client::new(self.address.as_str(), self.http.clone()),
            middle: EndpointMiddleware {
                token: token.to_owned(),
                version: "v1".to_owned(),
                wrap: None,
                namespace: self.namespace.clone(),
            },
            // Only `VaultClient::new` and `set_token` look at these; the token is not among them.
            settings: VaultClientSettings {
                address: self.address.clone(),
                ca_certs: vec![],
                identity: None,
                timeout: None,
                token: String::new(),
                verify: true,
                version: 1,
                wrapping: false,
                namespace: self.namespace.clone(),
                proxy: None,
            },
        }
    }
}

/// Runs one endpoint and returns the body of a successful answer.
///
/// rustify builds the request and no more: its way of sending has no bound on the answer, copies
/// bodies into its errors and logs each status but 2xx as an error.
pub(super) async fn call(
    client: &VaultClient,
    endpoint: impl Endpoint,
) -> Result<Zeroizing<Vec<u8>>, CallError> {
    let unsent = CallError::Transport("the question to Vault could not be made");
    let endpoint = endpoint.with_middleware(&client.middle);
    let mut request = endpoint.request(&client.http.base).map_err(|_| unsent)?;
    if let Some(token) = request.headers_mut().get_mut("x-vault-token") {
        token.set_sensitive(true);
    }
    // The body may hold the SecretID: it is wiped when it was sent.
    let request = request.map(|body| Bytes::from_owner(Zeroizing::new(body)));
    let request = reqwest::Request::try_from(request).map_err(|_| unsent)?;
    let response = client.http.http.execute(request).await.map_err(|error| lost(&error))?;
    let status = response.status();
    let body = read_body(response).await?;
    if status.is_success() {
        return Ok(body);
    }
    let sealed = body.windows(SEALED.len()).any(|word| word.eq_ignore_ascii_case(SEALED));
    Err(CallError::Status { code: status.as_u16(), sealed })
}

async fn read_body(mut response: reqwest::Response) -> Result<Zeroizing<Vec<u8>>, CallError> {
    let mut body = Zeroizing::new(Vec::with_capacity(FIRST_BYTES));
    while let Some(chunk) = response.chunk().await.map_err(|error| lost(&error))? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(CallError::Transport("Vault's answer is larger than 1 MiB"));
        }
        append_wiping(&mut body, &chunk);
    }
    Ok(body)
}

/// Appends without leaving the outgrown buffer behind unwiped.
fn append_wiping(body: &mut Zeroizing<Vec<u8>>, chunk: &[u8]) {
    if body.capacity() - body.len() < chunk.len() {
        let mut larger = Vec::with_capacity((body.len() + chunk.len()) * 2);
        larger.extend_from_slice(body);
        *body = Zeroizing::new(larger);
    }
    body.extend_from_slice(chunk);
}

/// Takes from an error what is safe to tell.
fn lost(error: &reqwest::Error) -> CallError {
    CallError::Transport(match error {
        _ if is_tls(error) => "TLS with Vault failed: check its certificate against ca_file",
        _ if error.is_timeout() => "Vault did not answer in time",
        _ if error.is_connect() => "no connection to Vault",
        _ => "the connection to Vault broke",
    })
}

fn is_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    // `source` of an I/O error skips the error that it wraps.
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    error.is::<rustls::Error>()
        || wrapped.is_some_and(|wrapped| is_tls(wrapped))
        || error.source().is_some_and(is_tls)
}

fn parse_address(text: &str) -> Result<Url, VaultSourceError> {
    let wrong = |what| Err(VaultSourceError::Address(what));
    let Ok(address) = Url::parse(text) else { return wrong("not a URL") };
    if !address.username().is_empty() || address.password().is_some() {
        return wrong("it must not hold a user or a password");
    }
    if address.path() != "/" || address.query().is_some() || address.fragment().is_some() {
        return wrong("expected https://host:port and nothing after it");
    }
    match address.scheme() {
        "https" => Ok(address),
        "http" if address.host_str().is_some_and(is_loopback) => Ok(address),
        "http" => wrong("http is for loopback addresses only; use https"),
        _ => wrong("expected https://host:port"),
    }
}

/// Literal addresses only: what `localhost` means is up to a file.
fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn read_roots(path: &Path) -> Result<RootCertStore, VaultSourceError> {
    let wrong = |what| VaultSourceError::CaFile(path.to_owned(), what);
    let certificates =
        CertificateDer::pem_file_iter(path).map_err(|_| wrong("it cannot be read"))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        let certificate = certificate.map_err(|_| wrong("it is not PEM"))?;
        roots.add(certificate).map_err(|_| wrong("it holds a broken certificate"))?;
    }
    if roots.is_empty() {
        return Err(wrong("it holds no certificate"));
    }
    Ok(roots)
}

/// The address in a URL that has no name. It is not looked up, so it is not learned there.
fn literal(address: &Url) -> Option<IpAddr> {
    let host = address.host_str()?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok()
}

/// Looks Vault's name up as the system does, and tells the control plane what it found.
struct Names(ControlPlane);

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let control_plane = self.0.clone();
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            control_plane.learn(found.iter().map(SocketAddr::ip));
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

fn build_http(
    roots: RootCertStore,
    https: bool,
    control_plane: &ControlPlane,
    call_time: Duration,
) -> Result<reqwest::Client, VaultSourceError> {
    let broken = VaultSourceError::Setting("the HTTP client cannot be built");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| broken.clone())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .dns_resolver(Arc::new(Names(control_plane.clone())))
        .https_only(https)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .no_proxy()
        .connect_timeout(CONNECT_TIME)
        .timeout(call_time)
        .pool_max_idle_per_host(MAX_IDLE)
        .build()
        .map_err(|_| broken)
}

impl std::fmt::Display for VaultSourceError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(what) => write!(f, "vault address: {what}"),
            Self::CaFile(path, what) => write!(f, "vault ca_file {}: {what}", path.display()),
            Self::SecretIdFile(path, error) => {
                write!(f, "vault secret_id_file {}: {error}", path.display())
            }
            Self::SecretId(path) => {
                write!(
                    f,
                    "vault secret_id_file {}: it must hold one printable line",
                    path.display()
                )
            }
            Self::Setting(what) => write!(f, "vault: {what}"),
        }
    }
}

impl std::error::Error for VaultSourceError {}

const CONNECT_TIME: Duration = Duration::from_secs(5);

/// Vault's own limit on a KV secret is 1 MiB by default.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// What Vault's errors and its status say of a sealed Vault.
const SEALED: &[u8] = b"sealed";

const FIRST_BYTES: usize = 4_096;

const MAX_IDLE: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_https_or_loopback_and_nothing_more() {
        for good in [
            "https://vault.example:8200",
            "https://[2001:db8::1]/",
            "http://127.0.0.1:8200",
            "http://[::1]:8200",
        ] {
            assert!(parse_address(good).is_ok(), "{good}");
        }
        for bad in [
            "http://vault.example:8200",
            "http://localhost:8200",
            "http://10.0.0.1:8200",
            "https://user:pw@vault.example",
            "https://vault.example/v1",
            "https://vault.example?x=1",
            "unix:///run/vault",
            "vault.example:8200",
            "",
        ] {
            assert!(parse_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_status_that_is_not_about_the_question_is_an_outage_with_its_cause() {
        let cause = |code, sealed| CallError::Status { code, sealed }.outage().cause();
        assert_eq!(cause(503, true), SecretCause::VaultSealed);
        assert_eq!(cause(503, false), SecretCause::VaultUnreachable);
        for code in [429, 472, 473, 501] {
            assert_eq!(cause(code, false), SecretCause::VaultSealed, "{code}");
        }
        for code in [301, 307, 412, 500, 502, 504] {
            assert_eq!(cause(code, false), SecretCause::VaultUnreachable, "{code}");
        }
    }
}
