//! The parts of every certificate: times, serial numbers, names.

use std::{
    collections::BTreeSet,
    time::{SystemTime, UNIX_EPOCH},
};

use rcgen::SerialNumber;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use time::OffsetDateTime;

use super::{CaError, Fault};
use crate::policy::HostPattern;

/// Returns the names that a name constraint must permit, sorted, each once. Returns `None` where no
/// constraint can express them: for `*`, and for no names at all, because an empty list permits
/// everything (RFC 5280, section 4.2.1.10).
pub(super) fn constraint_names(names: &[HostPattern]) -> Option<BTreeSet<&str>> {
    let names = names.iter().map(|name| match name {
        HostPattern::Exact(host) | HostPattern::Suffix(host) => Some(host.as_str()),
        HostPattern::Any => None,
    });
    names.collect::<Option<BTreeSet<_>>>().filter(|names| !names.is_empty())
}

/// Returns the seconds since 1970.
pub(super) fn unix_seconds(now: SystemTime) -> Result<i64, CaError> {
    let since = now.duration_since(UNIX_EPOCH).map_err(|_| CaError::Clock)?;
    i64::try_from(since.as_secs()).map_err(|_| CaError::Clock)
}

pub(super) fn date(unix_seconds: i64) -> Result<OffsetDateTime, CaError> {
    OffsetDateTime::from_unix_timestamp(unix_seconds).map_err(|_| CaError::Clock)
}

/// Returns 126 random bits: positive, never zero, always 16 bytes (RFC 5280, section 4.1.2.2).
pub(super) fn random_serial() -> Result<SerialNumber, CaError> {
    let mut bytes = random_bytes::<16>()?;
    if let Some(first) = bytes.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

pub(super) fn random_bytes<const N: usize>() -> Result<[u8; N], CaError> {
    let mut bytes = [0; N];
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    random.fill(&mut bytes).map_err(|_| CaError::Random)?;
    Ok(bytes)
}

/// Returns the certificate of a PEM text that holds exactly one.
pub(super) fn one_certificate(pem: &[u8]) -> Result<CertificateDer<'static>, Fault> {
    let mut certificates = CertificateDer::pem_slice_iter(pem);
    match (certificates.next(), certificates.next()) {
        (Some(Ok(certificate)), None) => Ok(certificate),
        _ => Err(Fault::NotOneCertificate),
    }
}

/// Seconds by which certificates are backdated, for agents whose clocks are behind.
pub(super) const BACKDATE: i64 = 3_600;
pub(super) const HOUR: i64 = 3_600;
pub(super) const DAY: i64 = 24 * HOUR;
