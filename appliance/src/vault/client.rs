//! Sends one request to Vault: to its nodes only, trusting its CA only, with a deadline and a bound
//! on the answer.
//!
//! vaultrs' own client follows redirects with the token, adds the system's CAs and reads the
//! environment; its executor logs Vault's answers and has no bound on them. So only the endpoints
//! of vaultrs are used, and they are run here.
//!
//! A request goes to the node that answered last. Where that node cannot be reached, or says that
//! another one must answer, the next one of the list is asked. A redirect is followed to a node of
//! the list and to nothing else; our request is repeated there, and not the one that the redirect
//! names.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
    header::{HeaderMap, LOCATION, RETRY_AFTER},
};
use rustify::endpoint::Endpoint;
use rustls::{
    CertificateError, ClientConfig, InconsistentKeys, RootCertStore,
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::pem::PemObject;
use tokio::task::JoinSet;
use vaultrs::api::EndpointMiddleware;
use zeroize::{Zeroize, Zeroizing};

use super::error::{CallError, Says, VaultSourceError};
use crate::{
    config::VaultSettings,
    dial::{Resolver, Unresolved},
};

/// The connection to Vault. Holds no token.
pub(super) struct Transport {
    /// The configured address and its peers. Never empty.
    nodes: Vec<Url>,
    /// The node that answered last.
    active: AtomicUsize,
    namespace: Option<String>,
    roots: RootCertStore,
    resolver: Resolver,
    call_time: Duration,
    http: ArcSwap<reqwest::Client>,
    /// Learns the addresses of the nodes that are not asked.
    _learning: Option<JoinSet<()>>,
}

/// The certificate and key that the gateway shows in the handshake.
pub(super) struct ClientIdentity {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: Zeroizing<PrivateKeyDer<'static>>,
}

/// The reply of one node.
enum NodeReply {
    Body(Zeroizing<Vec<u8>>),
    /// The node names another one, which is to be asked.
    Ask(usize),
    /// The node has no answer; another may have one, and asking it does nothing twice.
    AskAnother(CallError),
    Failed(CallError),
}

impl Transport {
    /// Makes a transport. `call_time` is from the first byte sent to the last received, all nodes
    /// together.
    pub(super) fn new(
        settings: &VaultSettings,
        resolver: &Resolver,
        call_time: Duration,
    ) -> Result<Self, VaultSourceError> {
        let addresses = std::iter::once(&settings.address).chain(&settings.peers);
        let nodes: Vec<Url> =
            addresses.map(|text| parse_address(text)).collect::<Result<_, _>>()?;
        let https = nodes.iter().any(|node| node.scheme() == "https");
        resolver.off_limits().control_plane().learn(nodes.iter().filter_map(literal));
        let named = nodes.iter().filter(|node| literal(node).is_none());
        let names: Vec<String> = named.filter_map(|node| Some(node.host_str()?.into())).collect();
        // A single node is asked with every request, which is how its address is learned.
        let learning = (nodes.len() > 1).then(|| resolver.keep_learning(names));
        let roots = match &settings.ca_file {
            Some(path) => read_roots(path)?,
            None if https => return Err(VaultSourceError::Address("https needs a ca_file")),
            None => RootCertStore::empty(),
        };
        let namespace = settings.namespace.as_deref().map(str::to_owned);
        if namespace.as_deref().is_some_and(|name| !name.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(VaultSourceError::Setting("the namespace has unprintable bytes"));
        }
        let http = build_http(roots.clone(), https, None, resolver, call_time)?;
        Ok(Self {
            nodes,
            active: AtomicUsize::new(0),
            namespace,
            roots,
            resolver: resolver.clone(),
            call_time,
            http: ArcSwap::from_pointee(http),
            _learning: learning,
        })
    }

    /// Shows `identity` in every handshake from now on.
    pub(super) fn present(&self, identity: ClientIdentity) -> Result<(), VaultSourceError> {
        let https = self.nodes.iter().any(|node| node.scheme() == "https");
        let roots = self.roots.clone();
        let http = build_http(roots, https, Some(identity), &self.resolver, self.call_time)?;
        self.http.store(Arc::new(http));
        Ok(())
    }

    /// Runs one endpoint with `token`, or without one where it is empty, and returns the body of a
    /// successful answer.
    pub(super) async fn call(
        &self,
        token: &str,
        endpoint: impl Endpoint,
    ) -> Result<Zeroizing<Vec<u8>>, CallError> {
        let middleware = Wiped(EndpointMiddleware {
            token: token.to_owned(),
            version: "v1".to_owned(),
            wrap: None,
            namespace: self.namespace.clone(),
        });
        let endpoint = endpoint.with_middleware(&middleware.0);
        let asked = tokio::time::timeout(self.call_time, self.ask_nodes(&endpoint)).await;
        asked.unwrap_or(Err(CallError::Transport(LATE)))
    }

    async fn ask_nodes(&self, endpoint: &impl Endpoint) -> Result<Zeroizing<Vec<u8>>, CallError> {
        let first = self.active.load(Ordering::Relaxed);
        let (mut node, mut hops) = (first, 0);
        let mut others = (1..self.nodes.len()).map(|step| (first + step) % self.nodes.len());
        loop {
            let error = match self.ask(node, endpoint).await {
                NodeReply::Body(body) => {
                    self.active.store(node, Ordering::Relaxed);
                    return Ok(body);
                }
                NodeReply::Failed(error) => return Err(error),
                NodeReply::Ask(other) if hops < MAX_HOPS => {
                    hops += 1;
                    node = other;
                    continue;
                }
                NodeReply::Ask(_) => CallError::Transport("Vault's nodes point at one another"),
                NodeReply::AskAnother(error) => error,
            };
            match others.next() {
                Some(other) => node = other,
                None => return Err(error),
            }
        }
    }

    /// Asks one node. rustify only builds the request: its way of sending has no bound on the
    /// answer, copies bodies into its errors and logs each status other than 2xx as an error.
    async fn ask(&self, node: usize, endpoint: &impl Endpoint) -> NodeReply {
        let Some(base) = self.nodes.get(node) else { return NodeReply::Failed(UNSENT) };
        let Ok(mut request) = endpoint.request(base.as_str()) else {
            return NodeReply::Failed(UNSENT);
        };
        if let Some(token) = request.headers_mut().get_mut("x-vault-token") {
            token.set_sensitive(true);
        }
        // The body may hold the SecretID, so it is wiped once it was sent.
        let request = request.map(|body| Bytes::from_owner(Zeroizing::new(body)));
        let Ok(request) = reqwest::Request::try_from(request) else {
            return NodeReply::Failed(UNSENT);
        };
        let target = request.url().clone();
        let http = self.http.load_full();
        let response = match http.execute(request).await {
            Ok(response) => response,
            Err(error) if error.is_connect() => return NodeReply::AskAnother(lost(&error)),
            Err(error) => return NodeReply::Failed(lost(&error)),
        };
        let status = response.status();
        if let Some(other) = self.redirected(&response, &target) {
            return NodeReply::Ask(other);
        }
        let retry_after = retry_after(response.headers());
        let body = match read_body(response).await {
            Ok(body) => body,
            Err(error) => return NodeReply::Failed(error),
        };
        if status.is_success() {
            return NodeReply::Body(body);
        }
        let code = status.as_u16();
        let error = CallError::Status { code, says: understood(code, &body), retry_after };
        if error.is_about_the_node() {
            NodeReply::AskAnother(error)
        } else {
            NodeReply::Failed(error)
        }
    }

    /// Returns the node to which a redirect points.
    fn redirected(&self, response: &reqwest::Response, target: &Url) -> Option<usize> {
        if !matches!(response.status().as_u16(), 307 | 308) {
            return None;
        }
        let location = response.headers().get(LOCATION)?.to_str().ok()?;
        let to = target.join(location).ok()?;
        let same_question = to.path() == target.path()
            && to.query().unwrap_or_default() == target.query().unwrap_or_default()
            && to.username().is_empty()
            && to.password().is_none();
        let node = self.nodes.iter().position(|node| node.origin() == to.origin())?;
        same_question.then_some(node)
    }
}

/// A middleware that owns a copy of the token, and wipes it when it is dropped.
struct Wiped(EndpointMiddleware);

impl Drop for Wiped {
    fn drop(&mut self) {
        self.0.token.zeroize();
    }
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

/// Returns the meaning of an answer other than a success.
fn understood(code: u16, body: &[u8]) -> Says {
    let is_said = |text: &[u8]| body.windows(text.len()).any(|it| it.eq_ignore_ascii_case(text));
    let texts = SAYINGS.iter().filter(|(of, ..)| *of == code);
    let said = texts.filter(|(_, text, _)| is_said(text)).map(|(.., says)| *says).next();
    said.unwrap_or(Says::Other)
}

/// Reads Retry-After (RFC 9110, section 10.2.3) in its form of seconds.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_WAIT))
}

/// Returns the parts of an error that are safe to tell, with a remedy.
fn lost(error: &reqwest::Error) -> CallError {
    CallError::Transport(match tls_error(error) {
        Some(rustls::Error::InvalidCertificate(wrong)) => invalid(wrong),
        Some(_) => "Vault's address does not speak TLS as it should: check address and port",
        None if find::<Unresolved>(error).is_some() => UNRESOLVED,
        None if error.is_connect() => unconnected(error),
        None if error.is_timeout() => LATE,
        None => BROKEN,
    })
}

fn invalid(wrong: &CertificateError) -> &'static str {
    match wrong {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "Vault's certificate is for another name: write the name in it as address, or have it \
             made again with this one"
        }
        // `BadSignature` is the error for another key under the same name.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "Vault's certificate is of another CA: put the CA that signed it into ca_file"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "Vault's certificate has ended: renew it"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "Vault's certificate is not valid yet: check the clocks of both machines"
        }
        _ => "Vault's certificate is not accepted: have it made again by the CA in ca_file",
    }
}

fn unconnected(error: &reqwest::Error) -> &'static str {
    match find::<std::io::Error>(error).map(std::io::Error::kind) {
        Some(ErrorKind::ConnectionRefused) => {
            "no connection to Vault: nothing listens at its address and port; is it running?"
        }
        Some(ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable) => {
            "no connection to Vault: there is no way to its address; check routes and links"
        }
        Some(ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof) => {
            "no connection to Vault: it was cut while it began; look at what stands before it"
        }
        _ if error.is_timeout() => {
            "no connection to Vault: its address does not answer; check address, routes and firewalls"
        }
        _ => "no connection to Vault: check address, routes and firewalls",
    }
}

fn tls_error(error: &reqwest::Error) -> Option<&rustls::Error> {
    find(error)
}

/// Returns the first error of this type among those that `error` wraps.
fn find<'e, E: std::error::Error + 'static>(
    error: &'e (dyn std::error::Error + 'static),
) -> Option<&'e E> {
    let own = error.downcast_ref::<E>();
    // `source` of an I/O error skips the error that it wraps.
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    own.or_else(|| wrapped.and_then(|wrapped| find(wrapped)))
        .or_else(|| error.source().and_then(|source| find(source)))
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

/// Whether a host is a literal loopback address: the meaning of `localhost` depends on a file.
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

/// Returns the address in a URL without a name. It is not looked up, so it is not learned there.
fn literal(address: &Url) -> Option<IpAddr> {
    let host = address.host_str()?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok()
}

/// Looks Vault's name up as the gateway looks up every name, and not as the system would: nobody on
/// the wire learns where the gateway's secrets are.
struct GatewayNames(Resolver);

impl Resolve for GatewayNames {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.0.clone();
        Box::pin(async move {
            let found = resolver.own(name.as_str()).await?;
            let addresses = found.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(addresses) as Addrs)
        })
    }
}

fn build_http(
    roots: RootCertStore,
    https: bool,
    identity: Option<ClientIdentity>,
    resolver: &Resolver,
    call_time: Duration,
) -> Result<reqwest::Client, VaultSourceError> {
    let broken = VaultSourceError::Setting("the HTTP client cannot be built");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| broken.clone())?
        .with_root_certificates(roots);
    let tls = match identity {
        Some(ClientIdentity { chain, key }) => {
            let wrong = "the login's certificate and key do not belong together";
            // The key goes by reference: a function that takes its bytes as its own does not wipe
            // them.
            let key = any_supported_type(&key).map_err(|_| VaultSourceError::Setting(wrong))?;
            let shown = CertifiedKey::new(chain, key);
            match shown.keys_match() {
                Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
                Err(rustls::Error::InconsistentKeys(_)) => {
                    return Err(VaultSourceError::Setting(wrong));
                }
                Err(_) => {
                    let text = "the login's certificate_file holds no certificate of X.509";
                    return Err(VaultSourceError::Setting(text));
                }
            }
            tls.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown)))
        }
        None => tls.with_no_client_auth(),
    };
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .dns_resolver(Arc::new(GatewayNames(resolver.clone())))
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

const UNRESOLVED: &str =
    "Vault's name does not resolve: [gateway] resolvers or /etc/hosts must have it";

const LATE: &str = "Vault did not answer in time: look at its load, and at the network before it";
const BROKEN: &str =
    "the connection to Vault broke: look into its log, and into that of what stands before it";

const UNSENT: CallError = CallError::Transport("the question to Vault could not be made");

/// Redirects between nodes that one request follows.
const MAX_HOPS: usize = 2;

const CONNECT_TIME: Duration = Duration::from_secs(5);

/// Vault's own limit on a KV secret is 1 MiB by default.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// The meanings of Vault's texts, by status. An older Vault and OpenBao may leave the texts out.
const SAYINGS: [(u16, &[u8], Says); 6] = [
    (503, b"sealed", Says::Sealed),
    (403, b"invalid token", Says::UnknownToken),
    (400, b"invalid role or secret id", Says::WrongCredentials),
    (400, b"invalid secret", Says::WrongCredentials),
    (400, b"invalid role", Says::WrongCredentials),
    (400, b"no entity associated", Says::NoEntity),
];

/// The longest time that Vault is left alone because it asks for that.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

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
}
