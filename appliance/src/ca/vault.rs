//! Issuing CAs that Vault's PKI engine signs: what is asked for, the Vault policy that lets the
//! gateway ask for nothing else, and whether what came back is what was asked for. Pure.
//!
//! The key is made here and stays in the process. Vault has the last word on what the gateway may
//! impersonate, and the gateway does not take more than it asked for: an engine that drops a
//! constraint, as OpenBao's drops the exclusion of IP addresses, makes a CA that is not used.
//!
//! Vault holds values against a policy as they are sent (1.21.0, tried out). A list is allowed by
//! an equal list in the policy, and by one that has each of its elements; a text is also taken
//! apart at its commas. So names are sent as a list and listed as one list for each rule, which
//! allows no mixture; all else is a text. A value that is empty is not held against
//! `allowed_parameters` at all, and no names would be all names: `denied_parameters` refuses it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fmt::Write,
    path::Path,
    sync::Arc,
    time::SystemTime,
};

use rcgen::{CertificateParams, DistinguishedName, DnType};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use serde::Serialize;

use super::{
    BACKDATE, CaError, Fault, TlsRule,
    check::{self, AddressExclusion, Validity},
    constraint_names,
    issuing::IssuingCa,
    key::CaKey,
    one_certificate,
    root::RootCertificate,
    rules_that_end_tls, unix_seconds,
};
use crate::{
    config::PkiSettings,
    policy::{Host, HostPattern, Policy, RuleName},
};

/// The properties that every issuing CA must have.
pub struct Terms {
    mount: Arc<str>,
    root: RootCertificate,
    root_validity: Validity,
    /// Seconds.
    ttl: i64,
    addresses: AddressExclusion,
}

/// The body of a request to `MOUNT/root/sign-intermediate`.
/// <https://developer.hashicorp.com/vault/api-docs/secret/pki#sign-intermediate>
#[derive(Debug, Serialize)]
pub struct SignIntermediate {
    csr: String,
    #[serde(flatten)]
    limits: SigningParameters,
    /// What a probe says beside that.
    #[serde(flatten)]
    more: BTreeMap<&'static str, &'static str>,
}

/// What a Vault policy can hold the request against: everything but the CSR.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct SigningParameters {
    common_name: String,
    permitted_dns_domains: Vec<String>,
    excluded_ip_ranges: &'static str,
    max_path_length: &'static str,
    ttl: String,
    not_before_duration: String,
}

/// Vault's answer, in PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Signed {
    /// The issuing CA.
    pub certificate: String,
    /// The CA that signed it and those above, in this order. Vault puts the issuing CA itself in
    /// front of them; that is passed over.
    pub chain: Vec<String>,
}

/// A question that is out, with the key that the answer must be for.
pub(super) struct SigningRequest {
    rule: RuleName,
    names: Vec<HostPattern>,
    key: CaKey,
    /// The request to Vault.
    pub(super) request: SignIntermediate,
}

impl SignIntermediate {
    fn new(limits: SigningParameters, key: &CaKey) -> Result<Self, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, limits.common_name.as_str());
        let csr = params.serialize_request(key)?.pem()?;
        Ok(Self { csr, limits, more: BTreeMap::new() })
    }
}

impl Terms {
    /// Reads the root.
    ///
    /// # Errors
    ///
    /// The file is not one certificate in PEM, or not that of a root.
    pub fn read(settings: &PkiSettings) -> Result<Self, CaError> {
        let (root, root_validity) = read_root(&settings.root_file)?;
        let addresses = match settings.accept_without_ip_exclusion {
            true => AddressExclusion::ExcludedOrFree,
            false => AddressExclusion::Excluded,
        };
        let mount = Arc::clone(&settings.mount);
        Ok(Self { mount, root, root_validity, ttl: seconds(settings), addresses })
    }

    /// Where the engine is mounted.
    pub fn mount(&self) -> &str {
        &self.mount
    }
}

impl SigningRequest {
    /// Makes a key and the question for its certificate.
    pub(super) fn new(
        rule: &RuleName,
        names: &[HostPattern],
        terms: &Terms,
    ) -> Result<Self, CaError> {
        let limits = SigningParameters::new(rule, names, terms.ttl)?;
        let key = CaKey::generate()?;
        let request = SignIntermediate::new(limits, &key)?;
        Ok(Self { rule: rule.clone(), names: names.to_vec(), key, request })
    }

    /// The CA, if the answer is what was asked for.
    ///
    /// # Errors
    ///
    /// A CA that differs from the request, or that an agent would not believe.
    pub(super) fn take(
        self,
        signed: &Signed,
        terms: &Terms,
        now: SystemTime,
    ) -> Result<IssuingCa, CaError> {
        let now = unix_seconds(now)?;
        let rule = self.rule.clone();
        self.checked(signed, terms, now).map_err(|error| match error {
            Unfit::Fault(fault) => CaError::Signed { rule, fault },
            Unfit::Error(error) => error,
        })
    }

    fn checked(self, signed: &Signed, terms: &Terms, now: i64) -> Result<IssuingCa, Unfit> {
        let unlimited = || CaError::Unconstrainable(self.rule.clone());
        let names = constraint_names(&self.names).ok_or_else(unlimited)?;
        let certificate = one_certificate(signed.certificate.as_bytes())?;
        check::check_key(&certificate, &self.key)?;
        let validity = check::check_signed(&certificate, &names, terms.addresses)?;
        check_life(validity, terms.ttl, now)?;
        let between = chain_to(terms.root.der(), &certificate, &signed.chain)?;
        let host = names.iter().find_map(|name| Host::parse(name).ok()).ok_or_else(unlimited)?;
        let chain: Vec<_> = std::iter::once(certificate).chain(between).collect();
        // What is below an expired CA is worth nothing.
        let mut not_after = validity.not_after.min(terms.root_validity.not_after);
        for above in chain.iter().skip(1) {
            not_after = not_after.min(check::validity_of(above)?.not_after);
        }
        terms.root_validity.check(now, 1)?;
        let validity = Validity { not_after, ..validity };
        let ca = IssuingCa::assemble((self.rule, self.names), chain, self.key, validity)?;
        prove(&ca, terms.root.der(), &host, now)?;
        Ok(ca)
    }
}

/// The policy that the gateway's token needs to have the issuing CAs of `policy` signed, and no
/// others, for `vault policy write`. It follows the configuration: names, rules and `ttl`.
///
/// The common name is listed, and is no host name, because the engine makes a host name in it a
/// subject alternative name, which some clients take for the name of a server.
///
/// # Errors
///
/// A rule whose names cannot be put into a name constraint.
pub fn policy_hcl(settings: &PkiSettings, policy: &Policy) -> Result<String, CaError> {
    let rules = rules_that_end_tls(policy)?;
    let limits = rules
        .iter()
        .map(|TlsRule { rule, names, .. }| SigningParameters::new(rule, names, seconds(settings)));
    let limits = limits.collect::<Result<Vec<_>, _>>()?;
    if limits.is_empty() {
        return Ok(String::new());
    }
    let each = |value: fn(&SigningParameters) -> String| -> BTreeSet<String> {
        limits.iter().map(value).collect()
    };
    let allowed = [
        ("common_name", each(|limits| quoted(&limits.common_name))),
        ("permitted_dns_domains", each(|limits| list(&limits.permitted_dns_domains))),
        ("excluded_ip_ranges", each(|limits| quoted(limits.excluded_ip_ranges))),
        ("max_path_length", each(|limits| quoted(limits.max_path_length))),
        ("ttl", each(|limits| quoted(&limits.ttl))),
        ("not_before_duration", each(|limits| quoted(&limits.not_before_duration))),
    ];
    Ok(stanza(&settings.mount, &allowed))
}

/// All that the gateway says when it has a CA signed. Vault holds a policy's values against what is
/// said alone: a limit that nobody requires is left out by whoever wants a CA without it.
pub const SAID: [&str; 7] = [
    "csr",
    "common_name",
    "permitted_dns_domains",
    "excluded_ip_ranges",
    "max_path_length",
    "ttl",
    "not_before_duration",
];

/// Where the engine at `mount` signs issuing CAs.
pub fn signing_path(mount: &str) -> String {
    format!("{mount}/root/sign-intermediate")
}

fn stanza(mount: &str, allowed: &[(&str, BTreeSet<String>)]) -> String {
    let mut text = String::new();
    let required = list(SAID);
    // Writing to a string cannot fail.
    let _ = writeln!(text, "path \"{}\" {{", signing_path(mount));
    let _ = writeln!(text, "  capabilities = [\"update\"]");
    let _ = writeln!(text, "  required_parameters = {required}");
    let _ = writeln!(text, "  allowed_parameters = {{\n    \"csr\" = []");
    for (name, values) in allowed {
        let values: Vec<_> = values.iter().map(String::as_str).collect();
        let _ = writeln!(text, "    \"{name}\" = [{}]", values.join(", "));
    }
    let _ = writeln!(text, "  }}\n  denied_parameters = {{");
    for (name, _) in allowed {
        let _ = writeln!(text, "    \"{name}\" = [\"\", []]");
    }
    text.push_str("  }\n}\n");
    text
}

/// Neither mounts nor names have a character that HCL would want escaped.
fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

fn list<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| quoted(item.as_ref())).collect();
    format!("[{}]", items.join(", "))
}

impl SigningParameters {
    fn new(rule: &RuleName, names: &[HostPattern], ttl: i64) -> Result<Self, CaError> {
        let names =
            constraint_names(names).ok_or_else(|| CaError::Unconstrainable(rule.clone()))?;
        super::issue::check_count(rule, &names)?;
        Ok(Self {
            common_name: common_name(rule),
            permitted_dns_domains: names.into_iter().map(str::to_owned).collect(),
            excluded_ip_ranges: "0.0.0.0/0,::/0",
            max_path_length: "0",
            ttl: format!("{ttl}s"),
            not_before_duration: format!("{BACKDATE}s"),
        })
    }
}

/// For people who look at a chain. The space keeps it from being a host name; 64 characters are
/// what a common name has room for (RFC 5280, appendix A.1).
fn common_name(rule: &RuleName) -> String {
    format!("Cloakroom {rule}").chars().take(COMMON_NAME_CHARACTERS).collect()
}

fn seconds(settings: &PkiSettings) -> i64 {
    i64::try_from(settings.ttl.as_secs()).unwrap_or(i64::MAX)
}

fn read_root(path: &Path) -> Result<(RootCertificate, Validity), CaError> {
    let root = RootCertificate::from_file(path)?;
    let validity = check::check_anchor(root.der())
        .map_err(|fault| CaError::Anchor { path: path.into(), fault })?;
    Ok((root, validity))
}

/// Not longer than was asked for, whatever the two clocks say, and not so short that it would be
/// asked for again at once.
fn check_life(validity: Validity, ttl: i64, now: i64) -> Result<(), Fault> {
    if validity.life() > ttl.saturating_add(LIFE_SLACK) {
        return Err(Fault::Shape("it lives longer than was asked for"));
    }
    validity.check(now, ttl / LEAST_PART)
}

/// The CAs between the certificate and the root, in the order in which agents are shown them.
fn chain_to(
    root: &CertificateDer<'_>,
    certificate: &CertificateDer<'static>,
    above: &[String],
) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let mut chain = Vec::new();
    let mut last = certificate.clone();
    let mut above = above.iter().take(MAX_CHAIN);
    while check::check_signed_by(&last, root).is_err() {
        let next = one_certificate(above.next().ok_or(Fault::OtherRoot)?.as_bytes())?;
        if next == last {
            continue;
        }
        check::check_signed_by(&last, &next)?;
        chain.push(next.clone());
        last = next;
    }
    Ok(chain)
}

/// Shows a leaf to the same code that agents written in Rust have, with the root alone to trust:
/// constraints, path lengths and dates of every CA above count too.
fn prove(
    ca: &IssuingCa,
    root: &CertificateDer<'static>,
    host: &Host,
    now: i64,
) -> Result<(), Unfit> {
    let leaf = ca.sign_leaf(host, now)?;
    let Some((leaf, chain)) = leaf.key.cert.split_first() else {
        return Err(Fault::NotOneCertificate.into());
    };
    let untrusted = |error| Unfit::Fault(Fault::Untrusted(error));
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).map_err(untrusted)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|_| Fault::Shape("the root cannot be one"))?;
    let name = ServerName::try_from(host.as_str())
        .map_err(|_| Fault::Shape("a name of it is no server's"))?;
    let since = std::time::Duration::from_secs(u64::try_from(now).unwrap_or(0));
    verifier
        .verify_server_cert(leaf, chain, &name, &[], UnixTime::since_unix_epoch(since))
        .map_err(untrusted)?;
    Ok(())
}

/// Why an answer is not taken, before it is said for which rule.
enum Unfit {
    Fault(Fault),
    Error(CaError),
}

impl From<Fault> for Unfit {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<CaError> for Unfit {
    fn from(error: CaError) -> Self {
        Self::Error(error)
    }
}

impl fmt::Debug for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terms").field("mount", &self.mount).finish_non_exhaustive()
    }
}

mod probes;

pub(crate) use probes::{Probes, probes};

const COMMON_NAME_CHARACTERS: usize = 64;
/// Certificates of the chain that are looked at.
const MAX_CHAIN: usize = 4;
/// Seconds for the engine to take its two looks at the clock.
const LIFE_SLACK: i64 = 60;
/// A tenth of what was asked for must be there.
const LEAST_PART: i64 = 10;

#[cfg(test)]
pub(crate) mod tests;
