//! Vault's PKI engine as an operator sets it up, and the requests that a holder of the gateway's
//! token can send it.

use std::{collections::BTreeMap, process::Command};

use lab::{Lab, vault::Vault};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

/// A Vault with a PKI engine, and the policy for the gateway.
pub struct Engine {
    pub vault: Vault,
    /// The root that agents trust, in PEM.
    pub root: String,
    dir: std::path::PathBuf,
}

/// The body of a request to sign.
pub type Question = BTreeMap<String, Value>;

/// An issuing CA with its key, as a thief of the gateway's key would have it.
pub struct Issuing {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A leaf and its issuing CA, and the leaf's key in PEM.
pub struct Leaf {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: String,
}

impl Engine {
    pub fn start(lab: &Lab) -> Self {
        let vault = Vault::start(lab);
        vault.cli(&["secrets", "enable", "-max-lease-ttl=87600h", "pki"]);
        let made = vault.cli(&[
            "write",
            "pki/root/generate/internal",
            "common_name=Agents' root",
            "ttl=87600h",
            "key_type=ec",
            "key_bits=256",
        ]);
        let made: Value = serde_json::from_str(&made).expect("JSON");
        let root = made["data"]["certificate"].as_str().expect("a certificate").to_owned() + "\n";
        lab.write("pki-root.pem", &root);
        let policy = lab.write("pki.hcl", POLICY);
        vault.cli(&["policy", "write", "gateway-pki", &policy.display().to_string()]);
        vault.cli(&[
            "write",
            "auth/approle/role/gateway",
            "token_policies=gateway,gateway-pki",
            "token_ttl=10m",
            "token_max_ttl=1h",
        ]);
        Self { vault, root, dir: lab.dir.clone() }
    }

    /// Makes Vault allow the gateway this life of a CA, and no other, from now on.
    pub fn sign_for(&self, ttl: &str) {
        self.vault.policy("gateway-pki", &POLICY.replace("20s", ttl));
    }

    /// Makes the engine sign with a CA below a root outside of Vault, which agents trust from now
    /// on.
    pub fn move_below_another_root(&mut self) {
        let made =
            self.vault.cli(&["write", "pki/intermediate/generate/internal", "common_name=Agents"]);
        let made: Value = serde_json::from_str(&made).expect("JSON");
        let csr = made["data"]["csr"].as_str().expect("a CSR");
        let mut csr = CertificateSigningRequestParams::from_pem(csr).expect("a CSR");
        let (root, issuer) = root_elsewhere();
        let subject = csr.params.distinguished_name.clone();
        csr.params = ca_params(BasicConstraints::Constrained(1));
        csr.params.distinguished_name = subject;
        let signed = csr.signed_by(&issuer).expect("signed").pem();
        let file = self.dir.join("engine.pem");
        std::fs::write(&file, signed + &root).expect("the lab's folder is writable");
        let set = self.vault.cli(&[
            "write",
            "pki/intermediate/set-signed",
            &format!("certificate=@{}", file.display()),
        ]);
        let set: Value = serde_json::from_str(&set).expect("JSON");
        let mapping = set["data"]["mapping"].as_object().expect("issuers");
        let (issuer, _) = mapping
            .iter()
            .find(|(_, key)| key.as_str().is_some_and(|key| !key.is_empty()))
            .expect("the one with a key");
        self.vault.cli(&["write", "pki/config/issuers", &format!("default={issuer}")]);
        std::fs::write(self.dir.join("pki-root.pem"), &root).expect("writable");
        self.root = root;
    }

    /// Returns the gateway's request, with a new key.
    pub fn question(&self, common_name: &str, names: [&str; 2]) -> Question {
        self.question_for(&new_key(), common_name, names)
    }

    /// Returns Vault's answer to the gateway's token, or its error.
    pub fn sign(&self, question: &Question) -> Result<String, String> {
        self.sign_at("pki/root/sign-intermediate", question)
    }

    pub fn sign_at(&self, path: &str, question: &Question) -> Result<String, String> {
        let file = self.dir.join("question.json");
        std::fs::write(&file, json!(question).to_string()).expect("the lab's folder is writable");
        let token = self.vault.gateway_token();
        let output = self.vault.try_cli(&["write", path, &format!("@{}", file.display())], &token);
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        Ok(answer["data"]["certificate"].as_str().expect("a certificate").to_owned())
    }

    /// Returns an issuing CA as the gateway gets it.
    pub fn issuing(&self, common_name: &str, names: [&str; 2]) -> Issuing {
        let key = new_key();
        let pem = self.sign(&self.question_for(&key, common_name, names)).expect("allowed");
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
        let issuer = Issuer::from_ca_cert_der(&certificate, key).expect("a CA");
        Issuing { certificate, issuer }
    }

    fn question_for(&self, key: &KeyPair, common_name: &str, names: [&str; 2]) -> Question {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let csr = params.serialize_request(key).expect("a CSR").pem().expect("PEM");
        let question = [
            ("csr", json!(csr)),
            ("common_name", json!(common_name)),
            ("permitted_dns_domains", json!(names)),
            ("excluded_ip_ranges", json!("0.0.0.0/0,::/0")),
            ("max_path_length", json!("0")),
            ("ttl", json!("20s")),
            ("not_before_duration", json!("3600s")),
        ];
        question.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

impl Issuing {
    /// Returns a leaf for any name or address, whatever the constraints.
    pub fn leaf(&self, name: &str) -> Leaf {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "A leaf");
        params.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
        params.not_after = OffsetDateTime::now_utc() + Duration::hours(1);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.is_ca = IsCa::ExplicitNoCa;
        let key = new_key();
        let leaf = params.signed_by(&key, &self.issuer).expect("signed");
        Leaf { chain: vec![leaf.der().clone(), self.certificate.clone()], key: key.serialize_pem() }
    }
}

/// Returns OpenSSL's verdict on a chain, checked as strictly as possible.
pub fn openssl_verify(
    lab: &Lab,
    root: &str,
    chain: &[CertificateDer<'static>],
) -> Result<(), String> {
    let root = lab.write("o-root.pem", root);
    let leaf = lab.write("o-leaf.pem", pem(&chain[..1]));
    let untrusted = lab.write("o-untrusted.pem", pem(&chain[1..]));
    let output = Command::new("openssl")
        .args(["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"])
        .arg(root)
        .arg("-untrusted")
        .arg(untrusted)
        .arg(leaf)
        .output()
        .expect("openssl starts");
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Returns the certificates in PEM.
pub fn pem(chain: &[CertificateDer<'static>]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let one = |der: &CertificateDer<'static>| {
        let text = STANDARD.encode(der);
        let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        let body = lines.join("\n");
        format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
    };
    chain.iter().map(one).collect()
}

/// Returns the serial number, as OpenSSL prints it.
pub fn serial(certificate: &CertificateDer<'static>) -> String {
    let text = pem(std::slice::from_ref(certificate));
    let script = format!("printf '%s' '{text}' | openssl x509 -noout -serial");
    let output = Command::new("sh").args(["-c", &script]).output().expect("openssl starts");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn root_elsewhere() -> (String, Issuer<'static, KeyPair>) {
    let mut params = ca_params(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "A root elsewhere");
    let key = new_key();
    let pem = params.self_signed(&key).expect("signed").pem();
    (pem, Issuer::new(params, key))
}

fn ca_params(path_length: BasicConstraints) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.is_ca = IsCa::Ca(path_length);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.not_before = OffsetDateTime::now_utc() - Duration::days(1);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(3_000);
    params
}

fn new_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a P-256 key")
}

const POLICY: &str = include_str!("../pki.hcl");
