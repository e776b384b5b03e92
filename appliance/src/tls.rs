//! TLS on both sides of an intercepted connection.
//!
//! The upstream comes first: nothing is promised to the agent before the certificate of the exact
//! name has verified. Sessions are resumed towards upstreams only, within one group and rule;
//! agents get neither tickets nor 0-RTT.

mod cause;

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
};

use rustls::{
    CipherSuite, ClientConfig, RootCertStore, ServerConfig, SupportedCipherSuite,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

pub use self::cause::TlsFailure;
use self::cause::Verifier;
use crate::{
    locks::lock,
    policy::{GroupName, Host, RuleName, Upstream},
    reason::Reason,
};

/// The application protocol that both sides of a connection speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1.
    H1,
    /// HTTP/2.
    H2,
}

/// The settings of every handshake under one policy, made once and shared.
pub struct Tls {
    provider: Arc<CryptoProvider>,
    system_roots: Arc<RootCertStore>,
    server: ServerConfig,
    clients: Mutex<HashMap<ClientKey, Arc<ClientConfig>>>,
}

/// The group, rule and offered protocols of a connection. Sessions are resumed within one key and
/// never beyond.
type ClientKey = (GroupName, RuleName, Vec<Protocol>);

/// The reason why there is no verified upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unverified {
    /// The reason.
    pub reason: Reason,
    /// The failure of TLS, where it was TLS that failed.
    pub failure: Option<TlsFailure>,
}

impl From<Reason> for Unverified {
    fn from(reason: Reason) -> Self {
        Self { reason, failure: None }
    }
}

/// The group, rule, CAs and protocols by which a connection to an upstream is made.
#[derive(Clone, Copy)]
pub struct ClientSettings<'a> {
    /// The agent's group.
    pub group: &'a GroupName,
    /// The rule that permits the connection.
    pub rule: &'a RuleName,
    /// The CAs to trust.
    pub upstream: &'a Upstream,
    /// The protocols to offer.
    pub offer: &'a [Protocol],
}

impl Protocol {
    const fn name(self) -> &'static [u8] {
        match self {
            Self::H1 => b"http/1.1",
            Self::H2 => b"h2",
        }
    }

    /// Returns the protocols to offer upstream: those that the agent offers, so that both sides
    /// speak one protocol. An agent that offers nothing speaks HTTP/1.1 (RFC 9110, section 4.2.2).
    pub fn offered(alpn: &[Box<[u8]>]) -> Vec<Self> {
        let offers = |protocol: Self| alpn.iter().any(|name| **name == *protocol.name());
        let both = [Self::H2, Self::H1].into_iter().filter(|&protocol| offers(protocol));
        let offered: Vec<_> = both.collect();
        if offered.is_empty() { vec![Self::H1] } else { offered }
    }
}

impl Tls {
    /// Whether a system CA that `older` trusts is missing here.
    pub(crate) fn has_lost_a_root_of(&self, older: &Self) -> bool {
        older.system_roots.roots.iter().any(|root| !self.system_roots.roots.contains(root))
    }

    /// Makes settings that trust `system_roots` for every upstream without a CA of its own.
    pub fn new(system_roots: Arc<RootCertStore>) -> Result<Self, rustls::Error> {
        let provider = Arc::new(provider());
        let server = server_base(&provider)?;
        Ok(Self { provider, system_roots, server, clients: Mutex::default() })
    }

    /// Verifies the upstream for exactly `host`, and returns the protocol that it chose.
    pub async fn connect<S>(
        &self,
        stream: S,
        host: &Host,
        settings: ClientSettings<'_>,
    ) -> Result<(Box<client::TlsStream<S>>, Protocol), Unverified>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.client_config(&settings)?;
        let name = ServerName::try_from(host.as_str().to_owned())
            .map_err(|_| Reason::UpstreamTlsInvalid)?;
        let stream = TlsConnector::from(config)
            .connect(name, stream)
            .await
            .map(Box::new)
            .map_err(|error| unverified(&error, host))?;
        let protocol = match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Protocol::H2,
            // Without a choice the upstream speaks HTTP/1.1, which the agent must have offered.
            _ if settings.offer.contains(&Protocol::H1) => Protocol::H1,
            _ => return Err(Reason::AlpnDenied.into()),
        };
        Ok((stream, protocol))
    }

    /// Shows the leaf to the agent. `protocol` is the one the upstream chose; `None` offers both,
    /// for a connection that can only ever be refused.
    pub async fn accept<S>(
        &self,
        stream: S,
        leaf: Arc<CertifiedKey>,
        protocol: Option<Protocol>,
    ) -> io::Result<Box<server::TlsStream<S>>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut config = self.server.clone();
        config.cert_resolver = Arc::new(SingleCertAndKey::from(leaf));
        config.alpn_protocols = match protocol {
            Some(protocol) => vec![protocol.name().to_vec()],
            None => vec![Protocol::H2.name().to_vec(), Protocol::H1.name().to_vec()],
        };
        TlsAcceptor::from(Arc::new(config)).accept(stream).await.map(Box::new)
    }

    fn client_config(&self, settings: &ClientSettings<'_>) -> Result<Arc<ClientConfig>, Reason> {
        let key = (settings.group.clone(), settings.rule.clone(), settings.offer.to_vec());
        let mut clients = lock(&self.clients);
        if let Some(config) = clients.get(&key) {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(self.new_client_config(settings)?);
        clients.insert(key, Arc::clone(&config));
        Ok(config)
    }

    fn new_client_config(&self, settings: &ClientSettings<'_>) -> Result<ClientConfig, Reason> {
        let roots = match &settings.upstream.ca_pem {
            Some(pem) => Arc::new(roots_of(pem).ok_or(Reason::UpstreamTlsInvalid)?),
            None => Arc::clone(&self.system_roots),
        };
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
            roots,
            Arc::clone(&self.provider),
        )
        .build()
        .map_err(|_| Reason::UpstreamTlsInvalid)?;
        // The library alone decides what is trusted; `Verifier` only tells better why something is
        // not.
        let verifier = Arc::new(Verifier(verifier));
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(|_| Reason::InternalError)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.alpn_protocols = settings.offer.iter().map(|p| p.name().to_vec()).collect();
        Ok(config)
    }
}

/// Makes the settings for asking DNS servers over TLS (RFC 7858): each is verified for its name, by
/// the CAs in `ca_pem` alone where it is given, else by `system_roots`.
///
/// # Errors
/// There is no CA to verify a server with.
pub fn resolver_client(
    ca_pem: Option<&str>,
    system_roots: &Arc<RootCertStore>,
) -> Result<ClientConfig, String> {
    let roots = match ca_pem {
        Some(pem) => Arc::new(roots_of(pem).ok_or("resolver_ca: it holds no certificate")?),
        None if system_roots.is_empty() => {
            return Err(
                "resolvers over TLS are verified by the system's CAs, and there are none; \
                        install ca-certificates or set resolver_ca"
                    .into(),
            );
        }
        None => Arc::clone(system_roots),
    };
    let config = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("the TLS provider cannot be used: {error}"))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// Returns the CAs of this system. Certificates that the system holds but rustls cannot read are
/// passed over, as elsewhere.
pub fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(public_cas());
    roots
}

/// Returns the CAs of this system as it holds them, in DER.
pub fn public_cas() -> Vec<CertificateDer<'static>> {
    rustls_native_certs::load_native_certs().certs
}

/// The one TLS provider, with the suites in the order that the gateway likes them.
pub fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    // SHA-384 costs a tenth of a handshake's CPU where there is no SHA-512 in hardware.
    provider.cipher_suites.sort_by_key(is_not_preferred);
    provider
}

fn is_not_preferred(suite: &SupportedCipherSuite) -> bool {
    suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256
}

fn server_base(provider: &Arc<CryptoProvider>) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(UnsetLeaf));
    config.ignore_client_order = true;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// A stand-in in the shared settings, until a connection's own leaf takes its place.
#[derive(Debug)]
struct UnsetLeaf;

impl ResolvesServerCert for UnsetLeaf {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

fn roots_of(pem: &str) -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.ok()?).ok()?;
    }
    (!roots.is_empty()).then_some(roots)
}

/// Tells a failure of TLS from a broken connection below it.
fn unverified(error: &io::Error, host: &Host) -> Unverified {
    tracing::debug!(%host, %error, "upstream handshake");
    let failure = TlsFailure::of(error);
    let reason = match failure {
        Some(_) => Reason::UpstreamTlsInvalid,
        None => Reason::UpstreamUnreachable,
    };
    Unverified { reason, failure }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alpn(names: &[&str]) -> Vec<Box<[u8]>> {
        names.iter().map(|name| name.as_bytes().into()).collect()
    }

    #[test]
    fn the_upstream_is_offered_what_the_agent_offers() {
        assert_eq!(Protocol::offered(&alpn(&["http/1.1", "h2"])), [Protocol::H2, Protocol::H1]);
        assert_eq!(Protocol::offered(&alpn(&["h2"])), [Protocol::H2]);
        assert_eq!(Protocol::offered(&alpn(&["http/1.1", "x"])), [Protocol::H1]);
        assert_eq!(Protocol::offered(&[]), [Protocol::H1]);
    }

    #[test]
    fn agents_get_no_tickets_and_no_early_data() {
        let base = server_base(&Arc::new(provider())).unwrap();
        assert_eq!((base.send_tls13_tickets, base.max_early_data_size), (0, 0));
        assert!(!base.session_storage.can_cache());
        assert!(!base.ticketer.enabled());
    }

    #[test]
    fn what_is_no_certificate_is_no_root() {
        assert!(roots_of("").is_none());
        assert!(
            roots_of("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_none()
        );
    }
}
