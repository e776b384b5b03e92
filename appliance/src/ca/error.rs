//! The faults of CAs, each in one line with its remedy. No key material.

use std::{
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::policy::{Host, RuleName};

/// Why a CA could not be made, loaded or used.
#[derive(Debug, Error)]
pub enum CaError {
    /// A file or folder cannot be used.
    #[error("{}: {fault}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// The fault.
        #[source]
        fault: FileFault,
    },
    /// There is a root already, and a root is never overwritten.
    #[error("{}: exists; a root is never overwritten, move it away first", .0.display())]
    RootExists(PathBuf),
    /// The root in this folder cannot be used.
    #[error("{}", root_text(dir, fault))]
    Root {
        /// The folder.
        dir: PathBuf,
        /// The fault.
        fault: Fault,
    },
    /// A rule's issuing CA cannot be used.
    #[error("issuing CA of `{rule}`: {fault}{}", issuing_remedy(fault))]
    Issuing {
        /// The rule.
        rule: RuleName,
        /// The fault.
        fault: Fault,
    },
    /// For a rule, Vault signed another certificate than the one that was requested.
    #[error("what Vault signed for `{rule}` is not used: {fault}{}", signed_remedy(fault))]
    Signed {
        /// The rule.
        rule: RuleName,
        /// The difference.
        fault: Fault,
    },
    /// The operator's file with the root that agents trust cannot be used.
    #[error("root_file {}: {fault}", path.display())]
    Anchor {
        /// The file.
        path: PathBuf,
        /// The fault.
        fault: Fault,
    },
    /// The rule's names cannot be put into a name constraint, because it has none or says `*`.
    #[error("`{0}` ends TLS for every name or for none; a CA can only be limited to names")]
    Unconstrainable(RuleName),
    /// The rule has more names than a handshake can carry.
    #[error("`{rule}` ends TLS for more than {most} names; split it")]
    TooManyNames {
        /// The rule.
        rule: RuleName,
        /// The most that are allowed.
        most: usize,
    },
    /// Two rules that end TLS have this name, so their files would be the same.
    #[error("two rules that end TLS are named `{0}`")]
    SameName(RuleName),
    /// The folder of the issuing CAs is also that of the root, which the daemon must not read.
    #[error("{}: holds the root; issuing CAs need a folder of their own", .0.display())]
    SameFolder(PathBuf),
    /// A leaf was asked for a host that is none of the rule's names.
    #[error("`{rule}` does not name {host}")]
    OutsideNames {
        /// The rule.
        rule: RuleName,
        /// The host.
        host: Host,
    },
    /// The root's label is empty, too long or not printable ASCII.
    #[error("the name of a root is 1 to 48 printable ASCII characters")]
    Label,
    /// The system has no public CAs, so a bundle would cut agents off from spliced hosts.
    #[error("no system CAs found; install ca-certificates")]
    NoSystemRoots,
    /// The clock shows a time that no certificate can hold.
    #[error("the clock says a time that no certificate can")]
    Clock,
    /// The system returned no random bytes.
    #[error("no randomness from the system")]
    Random,
    /// A certificate could not be encoded or signed.
    #[error("cannot sign: {0}")]
    Encode(#[from] rcgen::Error),
    /// The TLS library refuses a key that has just been made.
    #[error("cannot use a new key: {0}")]
    Key(#[source] rustls::Error),
}

/// The fault of a file.
#[derive(Debug, Error)]
pub enum FileFault {
    /// The system call failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is a link, a device or a folder.
    #[error("not a plain file")]
    NotAFile,
    /// It belongs to another user (this user id).
    #[error("belongs to another user (uid {0})")]
    Foreign(u32),
    /// Its mode lets others read it (a key) or write to it (a folder).
    #[error("open to other users (mode {0:04o})")]
    Exposed(u32),
    /// It is larger than such a file can be.
    #[error("too large for what it should hold")]
    TooLarge,
    /// Another `cloakroom ca` holds the folder's lock.
    #[error("another `cloakroom ca` is at work here; try again")]
    Locked,
}

/// The fault of a certificate and its key.
#[derive(Debug, Error)]
pub enum Fault {
    /// The certificate or its key is missing.
    #[error("there is none")]
    Missing,
    /// The file of the key or of the certificate cannot be trusted.
    #[error("{name}: {fault}")]
    File {
        /// Its name in the folder.
        name: String,
        /// The fault.
        fault: FileFault,
    },
    /// The file does not hold exactly one certificate in PEM.
    #[error("its file does not hold one certificate (PEM)")]
    NotOneCertificate,
    /// The file does not hold exactly one P-256 key (PKCS#8, PEM).
    #[error("its file does not hold one P-256 key (PKCS#8 PEM)")]
    NotOneKey,
    /// The certificate is not what Cloakroom makes; the word says what differs.
    #[error("not as it should be: {0}")]
    Shape(&'static str),
    /// The key is not that of the certificate.
    #[error("its key is not that of its certificate")]
    KeyMismatch,
    /// Its constraints are not exactly the rule's names and no IP address.
    #[error("its names are not those of the rule")]
    NamesDiffer,
    /// It does not exclude every IP address.
    #[error("it does not exclude every IP address")]
    AddressesFree,
    /// Another root signed it.
    #[error("another root signed it")]
    OtherRoot,
    /// An agent would not accept it.
    #[error("agents would not believe it: {0}")]
    Untrusted(rustls::Error),
    /// It is not valid yet.
    #[error("it is not valid yet; is the clock right?")]
    NotYetValid,
    /// It has ended or is about to end: this many seconds are left.
    #[error("{}", time_left(*.0))]
    EndsSoon(i64),
}

impl From<rustix::io::Errno> for FileFault {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Io(error.into())
    }
}

fn root_text(dir: &Path, fault: &Fault) -> String {
    let dir = dir.display();
    match fault {
        Fault::Missing => format!("{dir}: no root here; run `cloakroom ca init --dir {dir}`"),
        fault => format!("{dir}: root: {fault}"),
    }
}

/// Returns the end of an issuing CA's fault: its remedy, except where the system refuses the file,
/// because another file would be refused, too.
const fn issuing_remedy(fault: &Fault) -> &'static str {
    match fault {
        Fault::File { fault: FileFault::Io(_), .. } => "",
        _ => "; run `cloakroom ca issue`",
    }
}

const fn signed_remedy(fault: &Fault) -> &'static str {
    match fault {
        Fault::AddressesFree => {
            "; OpenBao makes no other, and accept_without_ip_exclusion takes it"
        }
        _ => "",
    }
}

fn time_left(seconds: i64) -> String {
    match seconds {
        ..=0 => "it has ended".to_owned(),
        1..TWO_DAYS => format!("only {} hours of its life are left", seconds / 3_600),
        TWO_DAYS.. => format!("only {} days of its life are left", seconds / 86_400),
    }
}

/// Seconds from which a time is told in days.
const TWO_DAYS: i64 = 172_800;
