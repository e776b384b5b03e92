//! The certificates that agents see on intercepted hosts: root, issuing CAs, leaves.
//!
//! The root is what agents trust. Its key is opened by the short-lived `cloakroom ca` and never
//! by the daemon. The root signs one *issuing CA* for each rule that ends TLS, critically
//! constrained to that rule's names and to no IP address, so that a stolen issuing key is good
//! for nothing else. An issuing CA signs leaves of one name that live for a day.
//!
//! With `[vault.pki]` the root is in Vault instead, or above it: the daemon makes each issuing CA's
//! key in memory, has Vault sign it, and makes it anew long before it ends.
//!
//! Errs towards refusal: an issuing CA that says anything but what policy says is not used, and
//! what is in doubt is made anew by `cloakroom ca issue`, never patched.

mod check;
mod error;
mod folder;
mod issue;
mod issuing;
mod key;
mod leaf;
mod name_constraints;
mod root;
mod rotation;
mod rule_ca;
#[cfg(test)]
pub(crate) mod testing;
mod vault;

pub use error::{CaError, Fault, FileFault};
pub use issue::{Issued, Outcome, TlsRule, issue};
pub use issuing::IssuingCa;
pub use leaf::Leaves;
pub use root::{Root, RootCertificate};
pub use rotation::{Rotation, Signer};
pub use rule_ca::{NoLeaf, RuleCa, RuleCas};
#[cfg(test)]
pub(crate) use vault::tests::{Change, Engine};
pub(crate) use vault::{Probes, probes};
pub use vault::{SAID, SignIntermediate, Signed, Terms, policy_hcl, signing_path};

use std::{
    collections::BTreeSet,
    time::{SystemTime, UNIX_EPOCH},
};

use rcgen::SerialNumber;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use time::OffsetDateTime;

use self::issue::rules_that_end_tls;
use crate::policy::HostPattern;

/// The names that a name constraint must permit, sorted, each once. `None` where no constraint
/// can say it: for `*`, and for no names at all, because an empty list permits everything
/// (RFC 5280, section 4.2.1.10).
fn constraint_names(names: &[HostPattern]) -> Option<BTreeSet<&str>> {
    let names = names.iter().map(|name| match name {
        HostPattern::Exact(host) | HostPattern::Suffix(host) => Some(host.as_str()),
        HostPattern::Any => None,
    });
    names.collect::<Option<BTreeSet<_>>>().filter(|names| !names.is_empty())
}

/// Seconds since 1970.
fn unix_seconds(now: SystemTime) -> Result<i64, CaError> {
    let since = now.duration_since(UNIX_EPOCH).map_err(|_| CaError::Clock)?;
    i64::try_from(since.as_secs()).map_err(|_| CaError::Clock)
}

fn date(unix_seconds: i64) -> Result<OffsetDateTime, CaError> {
    OffsetDateTime::from_unix_timestamp(unix_seconds).map_err(|_| CaError::Clock)
}

/// 126 random bits: positive, never zero, always 16 bytes (RFC 5280, section 4.1.2.2).
fn random_serial() -> Result<SerialNumber, CaError> {
    let mut bytes = random_bytes::<16>()?;
    if let Some(first) = bytes.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

fn random_bytes<const N: usize>() -> Result<[u8; N], CaError> {
    let mut bytes = [0; N];
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    random.fill(&mut bytes).map_err(|_| CaError::Random)?;
    Ok(bytes)
}

/// The certificate of a PEM text that holds exactly one.
fn one_certificate(pem: &[u8]) -> Result<CertificateDer<'static>, Fault> {
    let mut certificates = CertificateDer::pem_slice_iter(pem);
    match (certificates.next(), certificates.next()) {
        (Some(Ok(certificate)), None) => Ok(certificate),
        _ => Err(Fault::NotOneCertificate),
    }
}

/// Certificates are backdated by this many seconds, for agents whose clocks are behind.
const BACKDATE: i64 = 3_600;
const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
