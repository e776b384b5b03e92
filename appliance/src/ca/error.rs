//! The faults of CAs, each in one line with its remedy. No key material.

use std::{error, fmt, io, path::PathBuf};

use crate::policy::{Host, RuleName};

/// Why a CA could not be made, loaded or used.
#[derive(Debug)]
pub enum CaError {
    /// A file or folder cannot be used.
    File {
        /// The file or folder.
        path: PathBuf,
        /// The fault.
        fault: FileFault,
    },
    /// There is a root already, and a root is never overwritten.
    RootExists(PathBuf),
    /// The root in this folder cannot be used.
    Root {
        /// The folder.
        dir: PathBuf,
        /// The fault.
        fault: Fault,
    },
    /// A rule's issuing CA cannot be used.
    Issuing {
        /// The rule.
        rule: RuleName,
        /// The fault.
        fault: Fault,
    },
    /// For a rule, Vault signed another certificate than the one that was requested.
    Signed {
        /// The rule.
        rule: RuleName,
        /// The difference.
        fault: Fault,
    },
    /// The operator's file with the root that agents trust cannot be used.
    Anchor {
        /// The file.
        path: PathBuf,
        /// The fault.
        fault: Fault,
    },
    /// The rule's names cannot be put into a name constraint, because it has none or says `*`.
    Unconstrainable(RuleName),
    /// The rule has more names than a handshake can carry.
    TooManyNames {
        /// The rule.
        rule: RuleName,
        /// The most that are allowed.
        most: usize,
    },
    /// Two rules that end TLS have this name, so their files would be the same.
    SameName(RuleName),
    /// The folder of the issuing CAs is also that of the root, which the daemon must not read.
    SameFolder(PathBuf),
    /// A leaf was asked for a host that is none of the rule's names.
    OutsideNames {
        /// The rule.
        rule: RuleName,
        /// The host.
        host: Host,
    },
    /// The root's label is empty, too long or not printable ASCII.
    Label,
    /// The system has no public CAs, so a bundle would cut agents off from spliced hosts.
    NoSystemRoots,
    /// The clock shows a time that no certificate can hold.
    Clock,
    /// The system returned no random bytes.
    Random,
    /// A certificate could not be encoded or signed.
    Encode(rcgen::Error),
    /// The TLS library refuses a key that has just been made.
    Key(rustls::Error),
}

/// The fault of a file.
#[derive(Debug)]
pub enum FileFault {
    /// The system call failed.
    Io(io::Error),
    /// It is a link, a device or a folder.
    NotAFile,
    /// It belongs to another user (this user id).
    Foreign(u32),
    /// Its mode lets others read it (a key) or write to it (a folder).
    Exposed(u32),
    /// It is larger than such a file can be.
    TooLarge,
    /// Another `cloakroom ca` holds the folder's lock.
    Locked,
}

/// The fault of a certificate and its key.
#[derive(Debug)]
pub enum Fault {
    /// The certificate or its key is missing.
    Missing,
    /// The file of the key or of the certificate cannot be trusted.
    File {
        /// Its name in the folder.
        name: String,
        /// The fault.
        fault: FileFault,
    },
    /// The file does not hold exactly one certificate in PEM.
    NotOneCertificate,
    /// The file does not hold exactly one P-256 key (PKCS#8, PEM).
    NotOneKey,
    /// The certificate is not what Cloakroom makes; the word says what differs.
    Shape(&'static str),
    /// The key is not that of the certificate.
    KeyMismatch,
    /// Its constraints are not exactly the rule's names and no IP address.
    NamesDiffer,
    /// It does not exclude every IP address.
    AddressesFree,
    /// Another root signed it.
    OtherRoot,
    /// An agent would not accept it.
    Untrusted(rustls::Error),
    /// It is not valid yet.
    NotYetValid,
    /// It has ended or is about to end: this many seconds are left.
    EndsSoon(i64),
}

impl From<rcgen::Error> for CaError {
    fn from(error: rcgen::Error) -> Self {
        Self::Encode(error)
    }
}

impl From<io::Error> for FileFault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rustix::io::Errno> for FileFault {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Io(error.into())
    }
}

// Not derived: the source of `File` is inside its fault, and no attribute can point there.
impl fmt::Display for CaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, fault } => write!(f, "{}: {fault}", path.display()),
            Self::RootExists(path) => write!(
                f,
                "{}: exists; a root is never overwritten, move it away first",
                path.display()
            ),
            Self::Root { dir, fault: Fault::Missing } => {
                write!(f, "{0}: no root here; run `cloakroom ca init --dir {0}`", dir.display())
            }
            Self::Root { dir, fault } => write!(f, "{}: root: {fault}", dir.display()),
            // A replacement would not help where the system refuses the file.
            Self::Issuing { rule, fault: fault @ Fault::File { fault: FileFault::Io(_), .. } } => {
                write!(f, "issuing CA of `{rule}`: {fault}")
            }
            Self::Issuing { rule, fault } => {
                write!(f, "issuing CA of `{rule}`: {fault}; run `cloakroom ca issue`")
            }
            Self::Signed { rule, fault: fault @ Fault::AddressesFree } => write!(
                f,
                "what Vault signed for `{rule}` is not used: {fault}; OpenBao makes no other, \
                 and accept_without_ip_exclusion takes it"
            ),
            Self::Signed { rule, fault } => {
                write!(f, "what Vault signed for `{rule}` is not used: {fault}")
            }
            Self::Anchor { path, fault } => write!(f, "root_file {}: {fault}", path.display()),
            Self::Unconstrainable(rule) => write!(
                f,
                "`{rule}` ends TLS for every name or for none; a CA can only be limited to names"
            ),
            Self::TooManyNames { rule, most } => {
                write!(f, "`{rule}` ends TLS for more than {most} names; split it")
            }
            Self::SameName(rule) => write!(f, "two rules that end TLS are named `{rule}`"),
            Self::SameFolder(path) => write!(
                f,
                "{}: holds the root; issuing CAs need a folder of their own",
                path.display()
            ),
            Self::OutsideNames { rule, host } => write!(f, "`{rule}` does not name {host}"),
            Self::Label => f.write_str("the name of a root is 1 to 48 printable ASCII characters"),
            Self::NoSystemRoots => f.write_str("no system CAs found; install ca-certificates"),
            Self::Clock => f.write_str("the clock says a time that no certificate can"),
            Self::Random => f.write_str("no randomness from the system"),
            Self::Encode(error) => write!(f, "cannot sign: {error}"),
            Self::Key(error) => write!(f, "cannot use a new key: {error}"),
        }
    }
}

impl fmt::Display for FileFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::NotAFile => f.write_str("not a plain file"),
            Self::Foreign(uid) => write!(f, "belongs to another user (uid {uid})"),
            Self::Exposed(mode) => write!(f, "open to other users (mode {mode:04o})"),
            Self::TooLarge => f.write_str("too large for what it should hold"),
            Self::Locked => f.write_str("another `cloakroom ca` is at work here; try again"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("there is none"),
            Self::File { name, fault } => write!(f, "{name}: {fault}"),
            Self::NotOneCertificate => f.write_str("its file does not hold one certificate (PEM)"),
            Self::NotOneKey => f.write_str("its file does not hold one P-256 key (PKCS#8 PEM)"),
            Self::Shape(what) => write!(f, "not as it should be: {what}"),
            Self::KeyMismatch => f.write_str("its key is not that of its certificate"),
            Self::NamesDiffer => f.write_str("its names are not those of the rule"),
            Self::AddressesFree => f.write_str("it does not exclude every IP address"),
            Self::OtherRoot => f.write_str("another root signed it"),
            Self::Untrusted(error) => write!(f, "agents would not believe it: {error}"),
            Self::NotYetValid => f.write_str("it is not valid yet; is the clock right?"),
            Self::EndsSoon(left) if *left <= 0 => f.write_str("it has ended"),
            Self::EndsSoon(left) if *left < 172_800 => {
                write!(f, "only {} hours of its life are left", left / 3_600)
            }
            Self::EndsSoon(left) => {
                write!(f, "only {} days of its life are left", left / 86_400)
            }
        }
    }
}

impl error::Error for CaError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::File { fault: FileFault::Io(error), .. } => Some(error),
            Self::Encode(error) => Some(error),
            Self::Key(error) => Some(error),
            _ => None,
        }
    }
}
