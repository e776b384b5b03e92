//! Issuing CAs that Vault's PKI engine signs: the request, the Vault policy that allows the gateway
//! no other request, and the check that the answer is what was requested. Pure.
//!
//! The key is made here and stays in the process. Vault has the last word on what the gateway may
//! impersonate, and the gateway accepts no more than it requested: an engine that drops a
//! constraint, as OpenBao's drops the exclusion of IP addresses, makes a CA that is not used.
//!
//! Vault compares values with a policy as they are sent (tried with 1.21.0). A list is allowed by
//! an equal list in the policy, and by a list that has each of its elements; a text is also split
//! at its commas. So names are sent as a list, and the policy has one list for each rule, which
//! allows no mixture; all other values are texts. An empty value is not compared with
//! `allowed_parameters` at all, and no names would mean all names: `denied_parameters` refuses it.

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
    /// Lifetime in seconds.
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
    /// Fields that a probe sends beside those.
    #[serde(flatten)]
    more: BTreeMap<&'static str, &'static str>,
}

/// The parameters that a Vault policy can compare with its own: everything except the CSR.
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
    /// front of them; that one is skipped.
    pub chain: Vec<String>,
}

/// A request that is under way, with the key that the answer must be for.
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
    /// The file is not one certificate in PEM, or its certificate is not a root.
    pub fn read(settings: &PkiSettings) -> Result<Self, CaError> {
        let (root, root_validity) = read_root(&settings.root_file)?;
        let addresses = match settings.accept_without_ip_exclusion {
            true => AddressExclusion::ExcludedOrFree,
            false => AddressExclusion::Excluded,
        };
        let mount = Arc::clone(&settings.mount);
        Ok(Self { mount, root, root_validity, ttl: seconds(settings), addresses })
    }

    /// Returns where the engine is mounted.
    pub fn mount(&self) -> &str {
        &self.mount
    }
}

impl SigningRequest {
    /// Makes a key and the request for its certificate.
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

    /// Returns the CA, if the answer is what was requested.
    ///
    /// # Errors
    ///
    /// The CA differs from the request, or an agent would not accept it.
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
        // A certificate is worth nothing after a CA above it has ended.
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

/// Returns the policy, for `vault policy write`, that the gateway's token needs to have the issuing
/// CAs of `policy` signed, and no others. It follows the configuration: names, rules and `ttl`.
///
/// The common name is listed, and is no host name: the engine makes a host name in it a subject
/// alternative name, which some clients take for the name of a server.
///
/// # Errors
///
/// A rule's names cannot be put into a name constraint.
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

/// All parameters that the gateway sends when it has a CA signed. Vault compares a policy's values
/// only with parameters that are sent: an attacker who wants a CA without a limit omits it, unless
/// the policy requires it.
pub const SAID: [&str; 7] = [
    "csr",
    "common_name",
    "permitted_dns_domains",
    "excluded_ip_ranges",
    "max_path_length",
    "ttl",
    "not_before_duration",
];

/// Returns the path at which the engine at `mount` signs issuing CAs.
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

/// Quotes a text for HCL. Neither mounts nor names have a character that would have to be escaped.
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

/// Returns the common name, for people who look at a chain. The space keeps it from being a host
/// name; it has room for 64 characters (RFC 5280, appendix A.1).
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

/// Checks that the CA lives no longer than requested, whatever the two clocks say, and long enough
/// not to be requested again at once.
fn check_life(validity: Validity, ttl: i64, now: i64) -> Result<(), Fault> {
    if validity.life() > ttl.saturating_add(LIFE_SLACK) {
        return Err(Fault::Shape("it lives longer than was asked for"));
    }
    validity.check(now, ttl / LEAST_PART)
}

/// Returns the CAs between the certificate and the root, in the order in which agents are shown
/// them.
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

/// Verifies a leaf with the code that agents written in Rust use, which trusts the root alone:
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

/// The reasons why an answer is not accepted, before the rule is named.
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
/// Most certificates of the chain that are read.
const MAX_CHAIN: usize = 4;
/// Seconds that may pass between the engine's two looks at the clock.
const LIFE_SLACK: i64 = 60;
/// The CA must live at least a tenth of the requested time.
const LEAST_PART: i64 = 10;

#[cfg(test)]
pub(crate) mod tests;
