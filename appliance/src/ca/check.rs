//! Checks that a certificate says exactly what Cloakroom would have it say. Pure.

use std::collections::BTreeSet;

use rcgen::PublicKeyData;
use rustls::pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{ExtendedKeyUsage, GeneralName, GeneralSubtree, ParsedExtension},
    oid_registry::{OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_NAME_CONSTRAINTS},
    parse_x509_certificate,
};

use super::{BACKDATE, Fault, key::CaKey, name_constraints::EVERY_ADDRESS};
use crate::policy::Constraints;

/// The time for which a certificate is valid: seconds since 1970, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) not_before: i64,
    pub(super) not_after: i64,
}

impl Validity {
    pub(super) fn left(self, now: i64) -> i64 {
        self.not_after.saturating_sub(now)
    }

    /// Returns its lifetime when it was made, without the seconds by which it was backdated.
    pub(super) fn life(self) -> i64 {
        self.not_after.saturating_sub(self.not_before).saturating_sub(BACKDATE)
    }

    /// Checks that the certificate is valid now and for `least` seconds more.
    pub(super) fn check(self, now: i64, least: i64) -> Result<(), Fault> {
        if now < self.not_before {
            return Err(Fault::NotYetValid);
        }
        match self.left(now) {
            left if left < least => Err(Fault::EndsSoon(left)),
            _ => Ok(()),
        }
    }
}

/// Checks a root that Cloakroom made: a CA without constraints, signed by itself.
pub(super) fn check_root(der: &CertificateDer<'_>) -> Result<Validity, Fault> {
    let certificate = parse(der)?;
    check_ca(&certificate, None)?;
    check_self_signed(&certificate)?;
    Ok(validity(&certificate))
}

/// Returns the validity of a CA between an issuing CA and the root.
pub(super) fn validity_of(der: &CertificateDer<'_>) -> Result<Validity, Fault> {
    Ok(validity(&parse(der)?))
}

/// Checks a root that another program made: a CA that signed itself.
pub(super) fn check_anchor(der: &CertificateDer<'_>) -> Result<Validity, Fault> {
    let certificate = parse(der)?;
    let basic = certificate.basic_constraints().ok().flatten();
    if !basic.is_some_and(|basic| basic.value.ca) {
        return Err(Fault::Shape("no CA"));
    }
    check_self_signed(&certificate)?;
    Ok(validity(&certificate))
}

/// Whether an issuing CA must exclude every IP address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AddressExclusion {
    Excluded,
    /// The operator also accepts a CA that excludes none.
    ExcludedOrFree,
}

/// Checks an issuing CA that Vault signed. Vault's engine cannot say what a CA is for, so the CA
/// may be for every purpose; beyond that it must pass [`check_issuing`] and have no name of its
/// own.
pub(super) fn check_signed(
    der: &CertificateDer<'_>,
    names: &BTreeSet<&str>,
    addresses: AddressExclusion,
) -> Result<Validity, Fault> {
    let certificate = parse(der)?;
    check_ca(&certificate, Some(0))?;
    if !matches!(certificate.extended_key_usage(), Ok(None)) {
        check_purpose(&certificate)?;
    }
    check_names(&certificate, (names, Constraints::Critical), addresses)?;
    // Some clients accept a CA as a server, and a CA's own constraints do not bind itself.
    match certificate.subject_alternative_name() {
        Ok(None) => Ok(validity(&certificate)),
        _ => Err(Fault::Shape("it is a certificate for a name itself")),
    }
}

/// Checks an issuing CA: path length 0, server authentication only, and exactly these names and no
/// IP address (RFC 5280, section 4.2.1.10), critically or not.
pub(super) fn check_issuing(
    der: &CertificateDer<'_>,
    names: &BTreeSet<&str>,
    constraints: Constraints,
) -> Result<Validity, Fault> {
    let certificate = parse(der)?;
    check_ca(&certificate, Some(0))?;
    check_purpose(&certificate)?;
    check_names(&certificate, (names, constraints), AddressExclusion::Excluded)?;
    Ok(validity(&certificate))
}

/// Checks that the certificate says that it is a CA before it says for which names. RFC 5280,
/// section 4.2, allows any order, but wolfSSL accepts only this one.
pub(super) fn check_order(der: &CertificateDer<'_>) -> Result<(), Fault> {
    let certificate = parse(der)?;
    let at = |oid| certificate.extensions().iter().position(|extension| extension.oid == oid);
    match at(OID_X509_EXT_BASIC_CONSTRAINTS) < at(OID_X509_EXT_NAME_CONSTRAINTS) {
        true => Ok(()),
        false => Err(Fault::Shape("some clients want basicConstraints before nameConstraints")),
    }
}

/// Checks that the certificate carries this key.
pub(super) fn check_key(der: &CertificateDer<'_>, key: &CaKey) -> Result<(), Fault> {
    if parse(der)?.public_key().raw != key.subject_public_key_info() {
        return Err(Fault::KeyMismatch);
    }
    Ok(())
}

/// Checks that `root` signed the certificate.
pub(super) fn check_signed_by(
    der: &CertificateDer<'_>,
    root: &CertificateDer<'_>,
) -> Result<(), Fault> {
    let (certificate, root) = (parse(der)?, parse(root)?);
    if certificate.issuer().as_raw() != root.subject().as_raw()
        || certificate.verify_signature(Some(root.public_key())).is_err()
    {
        return Err(Fault::OtherRoot);
    }
    Ok(())
}

/// Returns the common name of the subject.
pub(super) fn common_name(der: &CertificateDer<'_>) -> Option<String> {
    let certificate = parse(der).ok()?;
    let name = certificate.subject().iter_common_name().next()?;
    name.as_str().ok().map(str::to_owned)
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Fault> {
    match parse_x509_certificate(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(Fault::Shape("no X.509 certificate")),
    }
}

fn validity(certificate: &X509Certificate<'_>) -> Validity {
    let validity = certificate.validity();
    Validity {
        not_before: validity.not_before.timestamp(),
        not_after: validity.not_after.timestamp(),
    }
}

fn check_self_signed(certificate: &X509Certificate<'_>) -> Result<(), Fault> {
    if certificate.subject().as_raw() != certificate.issuer().as_raw()
        || certificate.verify_signature(None).is_err()
    {
        return Err(Fault::Shape("a root that did not sign itself"));
    }
    Ok(())
}

fn check_ca(certificate: &X509Certificate<'_>, path_length: Option<u32>) -> Result<(), Fault> {
    let basic = certificate.basic_constraints().ok().flatten();
    let ca = basic.is_some_and(|basic| {
        basic.critical && basic.value.ca && basic.value.path_len_constraint == path_length
    });
    if !ca {
        return Err(Fault::Shape("no CA, or of another path length"));
    }
    let usage = certificate.key_usage().ok().flatten();
    if !usage.is_some_and(|usage| usage.critical && usage.value.flags == SIGNS_CERTIFICATES) {
        return Err(Fault::Shape("its key usage is not to sign certificates and CRLs"));
    }
    let is_key_id = |parsed: &_| matches!(parsed, ParsedExtension::SubjectKeyIdentifier(_));
    if !certificate.extensions().iter().any(|e| is_key_id(e.parsed_extension())) {
        return Err(Fault::Shape("no subject key identifier"));
    }
    Ok(())
}

fn check_purpose(certificate: &X509Certificate<'_>) -> Result<(), Fault> {
    let servers_only = ExtendedKeyUsage {
        any: false,
        server_auth: true,
        client_auth: false,
        code_signing: false,
        email_protection: false,
        time_stamping: false,
        ocsp_signing: false,
        other: Vec::new(),
    };
    match certificate.extended_key_usage() {
        Ok(Some(usage)) if *usage.value == servers_only => Ok(()),
        _ => Err(Fault::Shape("its extended key usage is not server authentication alone")),
    }
}

fn check_names(
    certificate: &X509Certificate<'_>,
    (names, wanted): (&BTreeSet<&str>, Constraints),
    allowed: AddressExclusion,
) -> Result<(), Fault> {
    let constraints = certificate.name_constraints().ok().flatten();
    let constraints = constraints.ok_or(Fault::Shape("no name constraints"))?;
    match (wanted, constraints.critical) {
        (Constraints::Critical, true) | (Constraints::Noted, false) => {}
        (Constraints::Critical, false) => {
            return Err(Fault::Shape("its name constraints are not critical"));
        }
        (Constraints::Noted, true) => {
            return Err(Fault::Shape("its name constraints are critical, and not only noted"));
        }
    }
    match addresses(constraints.value.excluded_subtrees.as_deref()) {
        Some(excluded) if excluded == BTreeSet::from(EVERY_ADDRESS) => {}
        Some(none) if none.is_empty() && allowed == AddressExclusion::ExcludedOrFree => {}
        _ => return Err(Fault::AddressesFree),
    }
    match dns_names(constraints.value.permitted_subtrees.as_deref()) {
        Some(permitted) if permitted == *names => Ok(()),
        _ => Err(Fault::NamesDiffer),
    }
}

fn dns_names<'a>(subtrees: Option<&'a [GeneralSubtree<'_>]>) -> Option<BTreeSet<&'a str>> {
    let name = |subtree: &'a GeneralSubtree<'_>| match subtree.base {
        GeneralName::DNSName(name) => Some(name),
        _ => None,
    };
    subtrees.unwrap_or_default().iter().map(name).collect()
}

fn addresses<'a>(subtrees: Option<&'a [GeneralSubtree<'_>]>) -> Option<BTreeSet<&'a [u8]>> {
    let address = |subtree: &'a GeneralSubtree<'_>| match subtree.base {
        GeneralName::IPAddress(address) => Some(address),
        _ => None,
    };
    subtrees.unwrap_or_default().iter().map(address).collect()
}

/// Bits 5 and 6 of KeyUsage, and no other (RFC 5280, section 4.2.1.3).
const SIGNS_CERTIFICATES: u16 = 1 << 5 | 1 << 6;
