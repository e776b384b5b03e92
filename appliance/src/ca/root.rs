//! The root: the one certificate that agents trust. It stays the same for ten years.
//!
//! An existing root is never overwritten, whatever is wrong with it.

use std::{
    fmt,
    io::{self, Read},
    path::{Path, PathBuf},
    time::SystemTime,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyUsagePurpose};
use rustls::pki_types::CertificateDer;

use super::{
    BACKDATE, CaError, DAY, Fault, FileFault,
    check::{self, Validity},
    date,
    folder::{Access, CaFolder, Overwrite},
    key::CaKey,
    one_certificate, random_bytes, random_serial, unix_seconds,
};

/// The root with its key: for `cloakroom ca init` and `cloakroom ca issue`, never the daemon.
pub struct Root {
    folder: CaFolder,
    certificate: RootCertificate,
    validity: Validity,
    issuer: Issuer<'static, CaKey>,
}

/// The root without its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootCertificate(CertificateDer<'static>);

impl Root {
    /// Makes a root in `dir` (made with mode 0700 if it is missing): `root.key`, mode 0600, and
    /// `root.pem`. Its subject is `label`, 1 to 48 printable ASCII characters, and eight random
    /// hexadecimal digits, so that agents of two installations can tell them apart.
    pub fn init(dir: &Path, label: &str, now: SystemTime) -> Result<Self, CaError> {
        let params = params(label, unix_seconds(now)?)?;
        let folder = CaFolder::open_or_make(dir)?;
        let lock = folder.lock_to_write()?;
        if let Some(there) = there(dir) {
            return Err(CaError::RootExists(there));
        }
        let key = CaKey::generate()?;
        let certificate = params.self_signed(&key)?;
        let certificate = RootCertificate(certificate.der().clone());
        let put = |name: &str, bytes: &[u8], access| {
            folder.write(&lock, name, bytes, (access, Overwrite::New)).map_err(
                |fault| match fault {
                    FileFault::Io(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                        CaError::RootExists(dir.join(name))
                    }
                    fault => folder.error(name, fault),
                },
            )
        };
        put(KEY_FILE, key.to_pem().as_bytes(), Access::Private)?;
        put(CERTIFICATE_FILE, certificate.to_pem().as_bytes(), Access::Public)?;
        drop(lock);
        Self::assemble(folder, certificate, key)
    }

    /// Returns whether `dir` has a root, or a part of one.
    #[must_use]
    pub fn is_in(dir: &Path) -> bool {
        there(dir).is_some()
    }

    /// Opens the root and its key.
    pub fn open(dir: &Path, now: SystemTime) -> Result<Self, CaError> {
        let now = unix_seconds(now)?;
        let folder = open_folder(dir)?;
        let lock = folder.lock_to_read()?;
        let certificate = RootCertificate::read(&folder)?;
        let fault = |fault| CaError::Root { dir: dir.into(), fault };
        let pem = folder
            .read(KEY_FILE, Access::Private, KEY_BYTES)
            .map_err(|fault| folder.error(KEY_FILE, fault))?
            .ok_or(fault(Fault::Missing))?;
        let key = CaKey::from_pem(&pem).map_err(fault)?;
        drop(lock);
        check::check_key(&certificate.0, &key).map_err(fault)?;
        let root = Self::assemble(folder, certificate, key)?;
        root.validity.check(now, DAY).map_err(fault)?;
        Ok(root)
    }

    /// Returns the whole days that are left of its life.
    ///
    /// # Errors
    ///
    /// The clock shows a time that no certificate can hold.
    pub fn days_left(&self, now: SystemTime) -> Result<i64, CaError> {
        Ok(self.validity.left(unix_seconds(now)?) / DAY)
    }

    /// Returns the root's certificate.
    pub fn certificate(&self) -> &RootCertificate {
        &self.certificate
    }

    pub(super) fn folder(&self) -> &CaFolder {
        &self.folder
    }

    pub(super) fn validity(&self) -> Validity {
        self.validity
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, CaKey> {
        &self.issuer
    }

    fn assemble(
        folder: CaFolder,
        certificate: RootCertificate,
        key: CaKey,
    ) -> Result<Self, CaError> {
        let validity = check::check_root(&certificate.0)
            .map_err(|fault| CaError::Root { dir: folder.path().into(), fault })?;
        let issuer = Issuer::from_ca_cert_der(&certificate.0, key)?;
        Ok(Self { folder, certificate, validity, issuer })
    }
}

impl RootCertificate {
    /// Reads `root.pem` of `dir`. Does not touch the key.
    pub fn load(dir: &Path) -> Result<Self, CaError> {
        Self::read(&open_folder(dir)?)
    }

    /// Reads the one certificate of a file, at most 64 KiB, that the operator names. Does not check
    /// that it is a root.
    pub fn from_file(path: &Path) -> Result<Self, CaError> {
        let fault = |fault| CaError::File { path: path.into(), fault };
        let file = std::fs::File::open(path).map_err(|error| fault(error.into()))?;
        let mut pem = Vec::new();
        let read = file.take(CERTIFICATE_BYTES as u64 + 1).read_to_end(&mut pem);
        match read.map_err(|error| fault(error.into()))? {
            0..=CERTIFICATE_BYTES => {}
            _ => return Err(fault(FileFault::TooLarge)),
        }
        let certificate = one_certificate(&pem);
        certificate.map(Self).map_err(|fault| CaError::Anchor { path: path.into(), fault })
    }

    fn read(folder: &CaFolder) -> Result<Self, CaError> {
        let fault = |fault| CaError::Root { dir: folder.path().into(), fault };
        let pem = folder
            .read(CERTIFICATE_FILE, Access::Public, CERTIFICATE_BYTES)
            .map_err(|fault| folder.error(CERTIFICATE_FILE, fault))?
            .ok_or(fault(Fault::Missing))?;
        let certificate = one_certificate(&pem).map_err(fault)?;
        check::check_root(&certificate).map_err(fault)?;
        Ok(Self(certificate))
    }

    /// Returns the common name of its subject.
    pub fn name(&self) -> String {
        check::common_name(&self.0).unwrap_or_default()
    }

    /// Returns the certificate in DER.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.0
    }

    /// Returns the certificate in PEM, encoded again: nothing else of the file is in it.
    pub fn to_pem(&self) -> String {
        pem(&self.0)
    }

    /// Returns the root and then the CAs that this system trusts, in PEM. The bundle is for
    /// variables that replace an agent's trust store as a whole, such as `SSL_CERT_FILE`: with the
    /// root alone, every host that is not intercepted would fail.
    pub fn to_bundle(&self, system: &[CertificateDer<'_>]) -> Result<String, CaError> {
        let system: Vec<_> = system.iter().filter(|der| **der != self.0).collect();
        if system.is_empty() {
            return Err(CaError::NoSystemRoots);
        }
        Ok(std::iter::once(self.to_pem()).chain(system.into_iter().map(pem)).collect())
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Root").field("dir", &self.folder.path()).finish_non_exhaustive()
    }
}

/// Opens the folder of the root. A missing folder holds no root.
fn open_folder(dir: &Path) -> Result<CaFolder, CaError> {
    CaFolder::open(dir).map_err(|error| match error {
        CaError::File { fault: FileFault::Io(e), .. } if e.kind() == io::ErrorKind::NotFound => {
            CaError::Root { dir: dir.into(), fault: Fault::Missing }
        }
        error => error,
    })
}

fn params(label: &str, now: i64) -> Result<CertificateParams, CaError> {
    let plain = label.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    if !plain || label.trim().is_empty() || label.len() > LABEL_BYTES {
        return Err(CaError::Label);
    }
    let id = u32::from_be_bytes(random_bytes()?);
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("{label} {id:08x}"));
    params.serial_number = Some(random_serial()?);
    params.not_before = date(now.saturating_sub(BACKDATE))?;
    params.not_after = date(now.saturating_add(LIFE))?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

pub(super) fn pem(der: &CertificateDer<'_>) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while let Some((line, after)) = rest.split_at_checked(64) {
        pem.extend([line, "\n"]);
        rest = after;
    }
    if !rest.is_empty() {
        pem.extend([rest, "\n"]);
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// Returns a file of a root in `dir`, if there is one.
fn there(dir: &Path) -> Option<PathBuf> {
    let mut files = [KEY_FILE, CERTIFICATE_FILE].into_iter().map(|name| dir.join(name));
    files.find(|path| rustix::fs::lstat(path).is_ok())
}

const KEY_FILE: &str = "root.key";
const CERTIFICATE_FILE: &str = "root.pem";
const KEY_BYTES: usize = 4 * 1024;
const CERTIFICATE_BYTES: usize = 64 * 1024;
const LABEL_BYTES: usize = 48;
const LIFE: i64 = 3_653 * DAY;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::ca::testing::{Scratch, later, now};

    #[test]
    fn a_root_is_never_overwritten() {
        let scratch = Scratch::new();
        let dir = scratch.path("root");
        let root = Root::init(&dir, "Test", now()).unwrap();
        let again = || Root::init(&dir, "Test", now());
        assert!(matches!(again(), Err(CaError::RootExists(_))));
        for file in [KEY_FILE, CERTIFICATE_FILE] {
            let kept = std::fs::read(dir.join(file)).unwrap();
            std::fs::remove_file(dir.join(file)).unwrap();
            assert!(matches!(again(), Err(CaError::RootExists(_))), "without {file}");
            assert!(Root::open(&dir, now()).is_err());
            std::fs::write(dir.join(file), kept).unwrap();
            let mode = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(dir.join(file), mode).unwrap();
        }
        let opened = Root::open(&dir, now()).unwrap();
        assert_eq!(opened.certificate(), root.certificate());
    }

    #[test]
    fn a_link_in_place_of_the_root_is_not_followed() {
        let scratch = Scratch::new();
        std::fs::create_dir(scratch.path("root")).unwrap();
        let target = scratch.path("elsewhere");
        std::os::unix::fs::symlink(&target, scratch.path("root/root.key")).unwrap();
        assert!(Root::init(&scratch.path("root"), "Test", now()).is_err());
        assert!(!target.exists());
    }

    #[test]
    fn two_installations_have_two_names() {
        let scratch = Scratch::new();
        let root =
            |dir| Root::init(&scratch.path(dir), "Test", now()).unwrap().certificate().name();
        assert_ne!(root("a"), root("b"));
    }

    #[test]
    fn the_key_is_for_its_owner_alone() {
        let scratch = Scratch::new();
        let dir = scratch.path("root");
        Root::init(&dir, "Test", now()).unwrap();
        let mode = |name| std::fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(KEY_FILE), mode(CERTIFICATE_FILE), mode("")), (0o600, 0o644, 0o700));
        let open_mode = std::fs::Permissions::from_mode(0o640);
        std::fs::set_permissions(dir.join(KEY_FILE), open_mode).unwrap();
        let error = Root::open(&dir, now()).unwrap_err();
        assert!(matches!(error, CaError::File { fault: FileFault::Exposed(0o640), .. }), "{error}");
    }

    #[test]
    fn a_root_lives_for_ten_years() {
        let scratch = Scratch::new();
        let dir = scratch.path("root");
        Root::init(&dir, "Test", now()).unwrap();
        let day = 24;
        assert!(Root::open(&dir, later(3_650 * day)).is_ok());
        assert!(Root::open(&dir, later(3_653 * day)).is_err());
        assert!(Root::open(&dir, now() - std::time::Duration::from_secs(7_200)).is_err());
    }

    #[test]
    fn a_bundle_has_the_root_once_and_the_systems() {
        let scratch = Scratch::new();
        let make =
            |dir| Root::init(&scratch.path(dir), "Test", now()).unwrap().certificate().clone();
        let (root, other) = (make("a"), make("b"));
        let bundle = root.to_bundle(&[other.der().clone(), root.der().clone()]).unwrap();
        assert_eq!(bundle, root.to_pem() + &other.to_pem());
        assert!(matches!(root.to_bundle(&[]), Err(CaError::NoSystemRoots)));
        let own = root.to_bundle(std::slice::from_ref(root.der()));
        assert!(matches!(own, Err(CaError::NoSystemRoots)));
    }
}
