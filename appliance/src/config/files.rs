//! The files that a configuration names.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::value::path;

/// Access to the files that a rule may read besides the configuration.
#[derive(Clone, Copy)]
pub(super) struct Files<'a> {
    /// The folder that relative paths start from.
    pub(super) base: &'a Path,
    /// Reads a whole file, with a bound on its size.
    pub(super) read: &'a dyn Fn(&Path) -> io::Result<String>,
}

/// Returns the content of a file of certificates.
pub(super) fn ca_file(
    files: Files<'_>,
) -> impl Fn(&toml::de::DeValue<'_>) -> Result<Arc<str>, String> {
    move |value| {
        let path = path(files.base)(value)?;
        let pem = (files.read)(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        check_pem(&pem).map_err(|why| format!("{}: {why}", path.display()))?;
        Ok(Arc::from(pem))
    }
}

/// Returns the one certificate of a file, in DER: nothing else of the file is shown to agents.
pub(super) fn one_ca(
    files: Files<'_>,
) -> impl Fn(&toml::de::DeValue<'_>) -> Result<Arc<[u8]>, String> {
    move |value| {
        let pem = ca_file(files)(value)?;
        let mut all = CertificateDer::pem_slice_iter(pem.as_bytes());
        match (all.next(), all.next()) {
            (Some(Ok(one)), None) => Ok(Arc::from(&*one)),
            _ => Err("must be the path of a file with one certificate, the agents' CA".to_owned()),
        }
    }
}

/// Returns the path of a file of certificates that is read again when it is used. The file is
/// checked here, so that a wrong one is a mistake with a line.
pub(super) fn ca_path(
    files: Files<'_>,
) -> impl Fn(&toml::de::DeValue<'_>) -> Result<PathBuf, String> {
    move |value| ca_file(files)(value).and_then(|_| path(files.base)(value))
}

/// Does the same for a file that may be missing still, because a command that reads this
/// configuration says how to make it.
pub(super) fn future_ca_path(
    files: Files<'_>,
) -> impl Fn(&toml::de::DeValue<'_>) -> Result<PathBuf, String> {
    move |value| {
        let path = path(files.base)(value)?;
        let is_missing = |error: io::Error| error.kind() == io::ErrorKind::NotFound;
        match (files.read)(&path).is_err_and(is_missing) {
            true => Ok(path),
            false => ca_path(files)(value),
        }
    }
}

/// Checks that a file of trust holds only certificates that can be trusted, all of them readable,
/// and no key.
fn check_pem(pem: &str) -> Result<(), &'static str> {
    if PrivateKeyDer::from_pem_slice(pem.as_bytes()).is_ok() {
        return Err("holds a private key; name a file that holds certificates only");
    }
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|_| "is not PEM")?;
        roots.add(certificate).map_err(|_| "has a certificate that cannot be read")?;
    }
    if roots.is_empty() { Err("holds no certificate in PEM") } else { Ok(()) }
}
