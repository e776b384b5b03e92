//! The gateway's login: by an AppRole, a certificate, or a signed token.
//!
//! The credential is read from its file at each login, because others renew it, and is wiped once
//! it is sent. The exception is a SecretID that comes wrapped: its token opens once, so the
//! SecretID stays in memory from then on. A token that does not open any more is reported, because
//! somebody else may hold the SecretID that was in it.
//!
//! Vault counts wrong SecretIDs and locks a role out after a few of them. So a SecretID that Vault
//! refused is not sent again: the next try needs another one, or an operator's order.

use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex as Lock,
        atomic::{AtomicBool, Ordering},
    },
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::{
    client::{ClientIdentity, Transport},
    error::{
        CERTIFICATE_FILE, CallError, KEY_FILE, SECRET_ID_FILE, Says, TOKEN_FILE, VaultSourceError,
    },
    path::is_plain_path,
    pick::pick_text,
    token::{MAX_TOKEN_BYTES, Post, TokenClient},
};
use crate::{
    config::{VaultLogin, VaultSettings},
    locks::lock,
    reason::SecretCause,
    secrets::{
        FetchError,
        private_file::{read_private, read_regular},
    },
};

/// The gateway's one identity.
pub(super) enum Login {
    AppRole(AppRole),
    Cert { mount: String, role: String, certificate_file: PathBuf, key_file: PathBuf },
    Jwt { mount: String, role: String, token_file: PathBuf },
}

/// A role, and the SecretID that opens it.
pub(super) struct AppRole {
    mount: String,
    role_id: String,
    secret_id: SecretId,
    /// The SecretID that Vault refused last.
    refused: Lock<Option<Zeroizing<String>>>,
}

/// The source of the SecretID.
pub(super) enum SecretId {
    InFile(PathBuf),
    Wrapped { file: PathBuf, opened: Mutex<Option<Opened>>, said: AtomicBool },
}

/// A SecretID, and the token that wrapped it.
pub(super) struct Opened {
    secret_id: Zeroizing<String>,
    wrapping: Zeroizing<String>,
}

#[derive(Serialize)]
struct AppRoleBody<'a> {
    role_id: &'a str,
    secret_id: &'a str,
}

#[derive(Serialize)]
struct LookupBody<'a> {
    secret_id: &'a str,
}

#[derive(Serialize)]
struct CertBody<'a> {
    name: &'a str,
}

#[derive(Serialize)]
struct JwtBody<'a> {
    role: &'a str,
    jwt: &'a str,
}

#[derive(Serialize)]
struct WrappingBody<'a> {
    token: &'a str,
}

#[derive(Serialize)]
struct NoBody {}

impl Login {
    /// Checks the settings, as far as that is possible without Vault.
    pub(super) fn new(settings: &VaultSettings) -> Result<Self, VaultSourceError> {
        let login = match &settings.login {
            VaultLogin::AppRole { mount, role_id, secret_id_file, wrapped } => {
                let file = secret_id_file.clone();
                let (opened, said) = (Mutex::default(), AtomicBool::new(false));
                Self::AppRole(AppRole {
                    mount: mount.to_string(),
                    role_id: role_id.to_string(),
                    secret_id: if *wrapped {
                        SecretId::Wrapped { file, opened, said }
                    } else {
                        SecretId::InFile(file)
                    },
                    refused: Lock::default(),
                })
            }
            VaultLogin::Cert { mount, role, certificate_file, key_file } => Self::Cert {
                mount: mount.to_string(),
                role: role.to_string(),
                certificate_file: certificate_file.clone(),
                key_file: key_file.clone(),
            },
            VaultLogin::Jwt { mount, role, token_file } => Self::Jwt {
                mount: mount.to_string(),
                role: role.to_string(),
                token_file: token_file.clone(),
            },
        };
        login.check()?;
        Ok(login)
    }

    /// Logs in, and returns Vault's answer. One call at a time.
    pub(super) async fn ask(
        &self,
        transport: &Transport,
    ) -> Result<Zeroizing<Vec<u8>>, FetchError> {
        match self {
            Self::AppRole(role) => role.ask(transport).await,
            Self::Cert { mount, role, certificate_file, key_file } => {
                let unusable = "the login's certificate or key is missing, broken or not private";
                let identity = read_identity(certificate_file, key_file);
                identity
                    .and_then(|identity| transport.present(identity))
                    .map_err(|_| FetchError::Outage(SecretCause::VaultUnreachable, unusable))?;
                let answer = send(transport, mount, &CertBody { name: role }, role.len()).await;
                answer.map_err(login_failed)
            }
            Self::Jwt { mount, role, token_file } => {
                let unusable = "the login's token file is missing, too large or not one line";
                let jwt = read_jwt(token_file)
                    .map_err(|_| FetchError::Outage(SecretCause::VaultUnreachable, unusable))?;
                let body = JwtBody { role, jwt: &jwt };
                let answer = send(transport, mount, &body, role.len() + jwt.len()).await;
                answer.map_err(login_failed)
            }
        }
    }

    /// Allows another try with a refused SecretID: an operator asks for it.
    pub(super) fn try_again(&self) {
        if let Self::AppRole(role) = self {
            *lock(&role.refused) = None;
        }
    }

    /// Returns the role and its SecretID, where the gateway logs in by them.
    pub(super) const fn approle(&self) -> Option<&AppRole> {
        match self {
            Self::AppRole(role) => Some(role),
            Self::Cert { .. } | Self::Jwt { .. } => None,
        }
    }

    fn check(&self) -> Result<(), VaultSourceError> {
        let mount = match self {
            Self::AppRole(AppRole { mount, .. })
            | Self::Cert { mount, .. }
            | Self::Jwt { mount, .. } => mount,
        };
        if !is_plain_path(mount) {
            return Err(VaultSourceError::Setting("the login's mount is not a plain path"));
        }
        match self {
            Self::AppRole(role) => read_line(role.secret_id.file()).map(drop),
            Self::Cert { certificate_file, key_file, .. } => {
                read_identity(certificate_file, key_file).map(drop)
            }
            Self::Jwt { token_file, .. } => read_jwt(token_file).map(drop),
        }
    }
}

impl AppRole {
    async fn ask(&self, transport: &Transport) -> Result<Zeroizing<Vec<u8>>, FetchError> {
        let proof = self.proof(transport).await?;
        let body = AppRoleBody { role_id: &self.role_id, secret_id: &proof };
        let room = self.role_id.len() + proof.len();
        let answer = send(transport, &self.mount, &body, room).await;
        let Err(error) = answer else { return answer.map_err(login_failed) };
        if is_wrong_secret_id(error) {
            *lock(&self.refused) = Some(proof);
        }
        if is_login_refusal(error) {
            self.secret_id.forget_where_renewed().await;
        }
        Err(self.failed(error))
    }

    /// Returns a SecretID that Vault has not refused yet.
    async fn proof(&self, transport: &Transport) -> Result<Zeroizing<String>, FetchError> {
        let mut proof = self.secret_id.read(transport, &self.mount).await?;
        if self.was_refused(&proof) {
            self.secret_id.forget_where_renewed().await;
            proof = self.secret_id.read(transport, &self.mount).await?;
        }
        match self.was_refused(&proof) {
            false => Ok(proof),
            true => Err(FetchError::Gone(SecretCause::VaultDenied, WRONG_SECRET_ID)),
        }
    }

    fn was_refused(&self, proof: &Zeroizing<String>) -> bool {
        lock(&self.refused).as_ref() == Some(proof)
    }

    fn failed(&self, error: CallError) -> FetchError {
        match error {
            _ if is_wrong_secret_id(error) => {
                FetchError::Gone(SecretCause::VaultDenied, WRONG_SECRET_ID)
            }
            // Anybody can cause a lockout, so values that are held stay for a while.
            CallError::Status { code: 403, .. } => {
                FetchError::Outage(SecretCause::VaultDenied, LOCKED_OUT)
            }
            other => login_failed(other),
        }
    }

    /// Asks Vault about the SecretID, with the gateway's token for the role `name`. The answer is
    /// empty where Vault knows no such SecretID.
    pub(super) async fn look_up(
        &self,
        name: &str,
        own: &TokenClient,
    ) -> Result<Zeroizing<Vec<u8>>, FetchError> {
        let unasked = CallError::Transport("the SecretID could not be read again");
        let proof = match &self.secret_id {
            SecretId::InFile(file) => read_line(file).ok(),
            SecretId::Wrapped { opened, .. } => {
                opened.lock().await.as_ref().map(|opened| opened.secret_id.clone())
            }
        };
        let proof = proof.ok_or(unasked.outage())?;
        let path = format!("auth/{}/role/{name}/secret-id/lookup", self.mount);
        let question = Post::new(path, &LookupBody { secret_id: &proof }, proof.len());
        let answer = match question {
            Ok(question) => own.call(question).await,
            Err(error) => Err(error),
        };
        answer.map_err(CallError::outage)
    }
}

impl SecretId {
    fn file(&self) -> &Path {
        match self {
            Self::InFile(file) | Self::Wrapped { file, .. } => file,
        }
    }

    async fn read(
        &self,
        transport: &Transport,
        mount: &str,
    ) -> Result<Zeroizing<String>, FetchError> {
        let unusable = |_| {
            let text = "the SecretID file is missing, not private or not one line";
            FetchError::Outage(SecretCause::VaultUnreachable, text)
        };
        match self {
            Self::InFile(file) => read_line(file).map_err(unusable),
            Self::Wrapped { file, opened, said } => {
                let mut opened = opened.lock().await;
                if let Some(opened) = &*opened {
                    return Ok(opened.secret_id.clone());
                }
                let wrapping = read_line(file).map_err(unusable)?;
                let unwrapped = unwrap(transport, mount, &wrapping).await;
                // This is reported once, and not with each try.
                let refused = matches!(unwrapped, Err(FetchError::Gone(..)));
                if let Some(error) = unwrapped.as_ref().err().filter(|_| refused)
                    && !said.swap(true, Ordering::Relaxed)
                {
                    tracing::error!("{}", error.text());
                }
                let secret_id = unwrapped?;
                said.store(false, Ordering::Relaxed);
                *opened = Some(Opened { secret_id: secret_id.clone(), wrapping });
                Ok(secret_id)
            }
        }
    }

    /// Forgets a refused SecretID where the file holds a new wrapping token: the next login opens
    /// that.
    async fn forget_where_renewed(&self) {
        let Self::Wrapped { file, opened, .. } = self else { return };
        let mut opened = opened.lock().await;
        let old = opened.as_ref().map(|opened| opened.wrapping.as_str());
        if read_line(file).is_ok_and(|wrapping| old != Some(wrapping.as_str())) {
            *opened = None;
        }
    }
}

/// Examines what is wrapped before opening it: a token that wraps something else was put there by
/// somebody else.
async fn unwrap(
    transport: &Transport,
    mount: &str,
    wrapping: &str,
) -> Result<Zeroizing<String>, FetchError> {
    let strange = CallError::Transport("Vault's answer about the wrapping token makes no sense");
    let body = WrappingBody { token: wrapping };
    let lookup = Post::new("sys/wrapping/lookup".to_owned(), &body, wrapping.len());
    let lookup = lookup.map_err(CallError::outage)?;
    let properties = transport.call("", lookup).await.map_err(wrapping_failed)?;
    let made_at = pick_text(&properties, &["data", "creation_path"]).ok_or(strange.outage())?;
    if !is_secret_id_path(&made_at, mount) {
        return Err(FetchError::Gone(SecretCause::VaultDenied, SWAPPED));
    }
    let unwrap = Post::new("sys/wrapping/unwrap".to_owned(), &NoBody {}, 0);
    let unwrap = unwrap.map_err(CallError::outage)?;
    let answer = transport.call(wrapping, unwrap).await.map_err(wrapping_failed)?;
    let secret_id = pick_text(&answer, &["data", "secret_id"]).ok_or(strange.outage())?;
    let secret_id = one_line(&secret_id).ok_or(strange.outage())?;
    tracing::info!("unwrapped the SecretID");
    Ok(secret_id)
}

/// Whether a wrapped answer was made by `auth/MOUNT/role/ROLE/secret-id`.
fn is_secret_id_path(path: &[u8], mount: &str) -> bool {
    let Some(role) = std::str::from_utf8(path)
        .ok()
        .and_then(|path| path.strip_prefix("auth/"))
        .and_then(|path| path.strip_prefix(mount))
        .and_then(|path| path.strip_prefix("/role/"))
        .and_then(|path| path.strip_suffix("/secret-id"))
    else {
        return false;
    };
    !role.is_empty() && !role.contains('/')
}

async fn send(
    transport: &Transport,
    mount: &str,
    body: &impl Serialize,
    room: usize,
) -> Result<Zeroizing<Vec<u8>>, CallError> {
    transport.call("", Post::new(format!("auth/{mount}/login"), body, room)?).await
}

const fn is_wrong_secret_id(error: CallError) -> bool {
    matches!(error, CallError::Status { says: Says::WrongCredentials, .. })
}

/// Whether Vault refused the login. It says 400 for a wrong RoleID or SecretID.
const fn is_login_refusal(error: CallError) -> bool {
    matches!(error, CallError::Status { code: 400 | 401 | 403 | 404, .. })
}

fn login_failed(error: CallError) -> FetchError {
    if is_login_refusal(error) {
        return FetchError::Gone(SecretCause::VaultDenied, REFUSED);
    }
    error.outage()
}

fn wrapping_failed(error: CallError) -> FetchError {
    if is_login_refusal(error) {
        return FetchError::Gone(SecretCause::VaultDenied, OPENED_BEFORE);
    }
    error.outage()
}

fn read_line(path: &Path) -> Result<Zeroizing<String>, VaultSourceError> {
    let content = read_private(path, MAX_TOKEN_BYTES)
        .map_err(|error| VaultSourceError::LoginFile(SECRET_ID_FILE, path.to_owned(), error))?;
    let wrong = || VaultSourceError::LoginContent(SECRET_ID_FILE, path.to_owned(), ONE_LINE);
    one_line(&content).ok_or_else(wrong)
}

/// Reads a file that a platform keeps fresh. Kubernetes links it and lets everybody in the pod read
/// it, so only its kind and its size are bounded here.
fn read_jwt(path: &Path) -> Result<Zeroizing<String>, VaultSourceError> {
    let content = read_regular(path, MAX_JWT_BYTES)
        .map_err(|error| VaultSourceError::LoginFile(TOKEN_FILE, path.to_owned(), error))?;
    let wrong = || VaultSourceError::LoginContent(TOKEN_FILE, path.to_owned(), ONE_LINE);
    one_line(&content).ok_or_else(wrong)
}

fn read_identity(certificate: &Path, key: &Path) -> Result<ClientIdentity, VaultSourceError> {
    let wrong =
        |what| VaultSourceError::LoginContent(CERTIFICATE_FILE, certificate.to_owned(), what);
    let unreadable = |_| wrong("it cannot be read");
    let chain: Vec<_> = CertificateDer::pem_file_iter(certificate)
        .map_err(unreadable)?
        .collect::<Result<_, _>>()
        .map_err(|_| wrong("it is not PEM"))?;
    if chain.is_empty() {
        return Err(wrong("it holds no certificate"));
    }
    let pem = read_private(key, MAX_KEY_BYTES)
        .map_err(|error| VaultSourceError::LoginFile(KEY_FILE, key.to_owned(), error))?;
    let no_key = "it holds no private key in PEM";
    let key = private_key(&pem)
        .ok_or_else(|| VaultSourceError::LoginContent(KEY_FILE, key.to_owned(), no_key))?;
    Ok(ClientIdentity { chain, key })
}

/// Returns the first private key of a PEM text. The parser of rustls does not wipe what it decodes.
fn private_key(pem: &[u8]) -> Option<Zeroizing<PrivateKeyDer<'static>>> {
    let pem = std::str::from_utf8(pem).ok()?;
    let of = |label: &str| {
        let (_, rest) = pem.split_once(&format!("-----BEGIN {label}-----"))?;
        Some(rest.split_once(&format!("-----END {label}-----"))?.0)
    };
    let (label, text) = KEY_LABELS.into_iter().find_map(|label| Some((label, of(label)?)))?;
    // The buffers have their size from the start: growth would leave copies behind.
    let mut digits = Zeroizing::new(Vec::with_capacity(text.len()));
    digits.extend(text.bytes().filter(|byte| !byte.is_ascii_whitespace()));
    let mut der = Zeroizing::new(Vec::with_capacity(text.len() + 3));
    STANDARD.decode_vec(&*digits, &mut der).ok()?;
    let der = std::mem::take(&mut *der);
    Some(Zeroizing::new(match label {
        PKCS8 => PrivateKeyDer::Pkcs8(der.into()),
        SEC1 => PrivateKeyDer::Sec1(der.into()),
        _ => PrivateKeyDer::Pkcs1(der.into()),
    }))
}

fn one_line(content: &[u8]) -> Option<Zeroizing<String>> {
    let line = content.trim_ascii_end();
    let printable = !line.is_empty() && line.iter().all(u8::is_ascii_graphic);
    let text = std::str::from_utf8(line).ok().filter(|_| printable)?;
    Some(Zeroizing::new(text.to_owned()))
}

/// The message where Vault refuses the login.
pub(super) const REFUSED: &str = "Vault refused the login: check the role, what proves it, the \
    mount, and whether the role may be used from here";

/// The message where Vault does not know the SecretID.
pub(super) const WRONG_SECRET_ID: &str = "Vault does not take the SecretID for this role_id: put a \
    new one into secret_id_file; this one is not tried again before a reload";

/// The message where Vault does not even examine the SecretID.
pub(super) const LOCKED_OUT: &str = "locked out: Vault does not look at the SecretID (403). Either \
    the role had too many wrong ones, from anywhere: `vault read sys/locked-users` shows it, `vault \
    write -f sys/locked-users/MOUNT_ACCESSOR/unlock/ROLE_ID` ends it, and `cloakroom vault plan` \
    turns it off; or the mount is not there";

const ONE_LINE: &str = "it must hold one printable line";

const OPENED_BEFORE: &str = "the wrapping token of the SecretID was used before or has ended: \
    somebody else may hold the SecretID; destroy it in Vault and put a new wrapping token";

const SWAPPED: &str = "the wrapping token wraps no SecretID of this mount: somebody may have \
    swapped it; put a new one";

const PKCS8: &str = "PRIVATE KEY";
const SEC1: &str = "EC PRIVATE KEY";

/// The labels of RFC 7468, section 10, and those that OpenSSL writes for older forms.
const KEY_LABELS: [&str; 3] = [PKCS8, SEC1, "RSA PRIVATE KEY"];

/// A signed token with many claims has a few kilobytes.
const MAX_JWT_BYTES: usize = 16 * 1024;

/// An RSA key of 16,384 bits has 13 kB in PEM.
const MAX_KEY_BYTES: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_rustls_reads_it() {
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let with_crlf = key.replace('\n', "\r\n");
        let after_others = format!("note\n-----BEGIN X-----\nAA==\n-----END X-----\n{key}{key}");
        let renamed = |label: &str| key.replace("PRIVATE KEY", label);
        let [sec1, pkcs1] = ["EC PRIVATE KEY", "RSA PRIVATE KEY"].map(renamed);
        for pem in [&key, &with_crlf, &after_others, &sec1, &pkcs1] {
            let theirs = PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
            assert!(*private_key(pem.as_bytes()).unwrap() == theirs, "{pem}");
        }
        for end in 0..key.trim_end().len() {
            assert!(private_key(&key.as_bytes()[..end]).is_none(), "{end}");
        }
        for bad in [renamed("PUBLIC KEY"), renamed("ENCRYPTED PRIVATE KEY"), key.replace('M', "*")]
        {
            assert!(private_key(bad.as_bytes()).is_none(), "{bad}");
        }
    }

    #[test]
    fn only_a_secret_id_of_this_mount_is_unwrapped() {
        assert!(is_secret_id_path(b"auth/approle/role/gateway/secret-id", "approle"));
        assert!(is_secret_id_path(b"auth/team/a/role/gateway/secret-id", "team/a"));
        for other in [
            "auth/approle/role//secret-id",
            "auth/approle/role/a/b/secret-id",
            "auth/approle2/role/gateway/secret-id",
            "auth/approle/role/gateway/secret-id/lookup",
            "auth/token/create",
            "kv/data/approle/role/gateway/secret-id",
            "sys/wrapping/wrap",
            "",
        ] {
            assert!(!is_secret_id_path(other.as_bytes(), "approle"), "{other}");
        }
    }
}
