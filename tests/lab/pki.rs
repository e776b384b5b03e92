//! The certificates of the lab's internet, good ones and all kinds of bad ones.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::sync::Arc;
use time::{Duration, OffsetDateTime};

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    name: String,
    pem: String,
    der: CertificateDer<'static>,
}

/// A certificate with its key, for a server.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
    pem: String,
}

/// The possible flaws of a server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing.
    None,
    /// It is for another name.
    WrongName,
    /// It ended yesterday.
    Expired,
    /// It begins tomorrow.
    NotYet,
    /// It signed itself.
    SelfSigned,
    /// Its issuer is unknown to everybody.
    UnknownIssuer,
    /// It names the root as its issuer, but another CA signed it.
    ForgedSignature,
}

impl Authority {
    /// Creates a root that is valid for a day around now.
    ///
    /// # Panics
    /// When no key can be made.
    pub fn new(name: &str) -> Self {
        let mut params = dated(CertificateParams::default(), -1, 30);
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = new_key();
        let root = params.self_signed(&key).expect("the root can be signed");
        let (pem, der) = (root.pem(), root.der().clone());
        Self { name: name.to_owned(), pem, der, issuer: Issuer::new(params, key) }
    }

    /// Returns the root in PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Returns the root in DER.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Issues a certificate for `name`, an IP address or a host name.
    pub fn issue(&self, name: &str) -> Identity {
        self.issue_flawed(name, Flaw::None)
    }

    /// Issues a certificate for `name` with a flaw.
    ///
    /// # Panics
    /// When it cannot be signed.
    pub fn issue_flawed(&self, name: &str, flaw: Flaw) -> Identity {
        let key = new_key();
        let params = leaf(name, flaw);
        let certificate = match flaw {
            Flaw::SelfSigned => params.self_signed(&key),
            Flaw::UnknownIssuer => {
                params.signed_by(&key, &Self::new("Somebody else's root").issuer)
            }
            Flaw::ForgedSignature => params.signed_by(&key, &Self::new(&self.name).issuer),
            _ => params.signed_by(&key, &self.issuer),
        }
        .expect("the leaf can be signed");
        Identity { chain: vec![certificate.der().clone()], pem: certificate.pem(), key }
    }

    /// Issues a certificate for all of these, IP addresses or host names.
    ///
    /// # Panics
    /// When it cannot be signed.
    pub fn issue_all(&self, names: &[&str]) -> Identity {
        let key = new_key();
        let mut params = leaf(names[0], Flaw::None);
        let all = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let all = CertificateParams::new(all).expect("names");
        params.subject_alt_names = all.subject_alt_names;
        let certificate = params.signed_by(&key, &self.issuer).expect("the leaf can be signed");
        Identity { chain: vec![certificate.der().clone()], pem: certificate.pem(), key }
    }

    /// Issues a client's certificate, with which `name` identifies itself to a server.
    ///
    /// # Panics
    /// When it cannot be signed.
    pub fn issue_client(&self, name: &str) -> Identity {
        let key = new_key();
        let mut params = leaf(name, Flaw::None);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).expect("the leaf can be signed");
        Identity { chain: vec![certificate.der().clone()], pem: certificate.pem(), key }
    }
}

impl Identity {
    /// Returns the certificate in PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// Returns the certificate in DER.
    pub fn certificate_der(&self) -> &CertificateDer<'static> {
        &self.chain[0]
    }

    /// Returns the key in PEM.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// Returns the pair for a rustls server.
    ///
    /// # Panics
    /// Never: the key was made here.
    pub fn certified(&self) -> Arc<CertifiedKey> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).expect("P-256");
        Arc::new(CertifiedKey::new(self.chain.clone(), key))
    }
}

fn leaf(name: &str, flaw: Flaw) -> CertificateParams {
    let name = if flaw == Flaw::WrongName { "wrong.example" } else { name };
    let params = CertificateParams::new(vec![name.to_owned()]).expect("a name or address");
    let (from, until) = match flaw {
        Flaw::Expired => (-10, -1),
        Flaw::NotYet => (1, 10),
        _ => (-1, 10),
    };
    let mut params = dated(params, from, until);
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

fn dated(mut params: CertificateParams, from_days: i64, until_days: i64) -> CertificateParams {
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before = OffsetDateTime::now_utc() + Duration::days(from_days);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(until_days);
    params
}

fn new_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a P-256 key")
}
