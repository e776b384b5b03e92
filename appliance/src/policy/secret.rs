//! The source of a secret's value: a location, which is one read, and a pick of parts of that
//! read's answer. References with one location share the read, its lease and its rotation.

use std::{fmt, sync::Arc};

/// The fewest bytes of a value, unless the operator sets a lower bound: shorter values cannot be
/// masked well.
pub const MIN_VALUE_BYTES: usize = 16;
/// The lowest bound that the operator may set.
pub const FLOOR_VALUE_BYTES: usize = 8;
/// Most bytes of a value.
pub const MAX_VALUE_BYTES: usize = 8_192;

/// The source of a secret's value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SecretRef {
    /// An answer of Vault.
    Vault {
        /// The read.
        location: VaultLocation,
        /// The parts that are taken of the answer.
        pick: Pick,
    },
    /// A name in the file of secrets.
    File {
        /// The name there.
        name: Arc<str>,
    },
}

/// The values that are read together, and change together.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Location {
    /// One read of Vault.
    Vault(VaultLocation),
    /// A name in the file of secrets.
    File(Arc<str>),
}

/// One read of Vault.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum VaultLocation {
    /// A KV version 2 secret.
    Kv2 {
        /// The mount, without slashes at its ends.
        mount: Arc<str>,
        /// The path below the mount, without `data/`.
        path: Arc<str>,
        /// The version that is always read; otherwise the newest.
        version: Option<u64>,
    },
    /// A path of any engine that answers to GET.
    Read {
        /// The path below `/v1/`.
        path: Arc<str>,
    },
    /// A path of any engine that issues on a write.
    Write {
        /// The path below `/v1/`.
        path: Arc<str>,
        /// The parameters that are written, in the order of the policy; no key twice.
        parameters: Arc<[(Arc<str>, Arc<str>)]>,
    },
}

/// The parts that are taken of an answer: one field, or fields with fixed text around them. Never
/// empty for Vault; empty for the file of secrets, which has no fields.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pick(pub Arc<[PickPart]>);

/// A part of a [`Pick`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PickPart {
    /// Fixed text.
    Text(Arc<str>),
    /// A field of the answer.
    Field(Arc<str>),
}

impl SecretRef {
    /// Returns the location that is read for it.
    pub fn location(&self) -> Location {
        match self {
            Self::Vault { location, .. } => Location::Vault(location.clone()),
            Self::File { name } => Location::File(Arc::clone(name)),
        }
    }

    /// Whether it is a token that Vault signs about the asking group, for others to verify.
    pub fn is_identity_token(&self) -> bool {
        matches!(self, Self::Vault { location, .. } if location.is_identity_token())
    }

    /// Returns the parts that are taken of the answer.
    pub fn pick(&self) -> Pick {
        match self {
            Self::Vault { pick, .. } => pick.clone(),
            Self::File { .. } => Pick::default(),
        }
    }
}

impl VaultLocation {
    /// The path below `/v1/`, as a Vault policy names it.
    pub fn api_path(&self) -> String {
        match self {
            Self::Kv2 { mount, path, .. } => format!("{mount}/data/{path}"),
            Self::Read { path } | Self::Write { path, .. } => path.to_string(),
        }
    }

    /// Whether it is a token that Vault signs about the asking group.
    pub fn is_identity_token(&self) -> bool {
        matches!(self, Self::Read { path } if path.starts_with(IDENTITY_TOKEN))
    }

    /// The capability that a Vault policy must give for it.
    pub const fn capability(&self) -> &'static str {
        match self {
            Self::Kv2 { .. } | Self::Read { .. } => "read",
            Self::Write { .. } => "update",
        }
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vault { location, pick } => write!(f, "{location}#{pick}"),
            Self::File { name } => write!(f, "file:{name}"),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vault(location) => location.fmt(f),
            Self::File(name) => write!(f, "file:{name}"),
        }
    }
}

impl fmt::Display for VaultLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kv2 { mount, path, version } => {
                let quote = if mount.contains('/') { "\"" } else { "" };
                write!(f, "vault:{quote}{mount}{quote}/{path}")?;
                version.map_or(Ok(()), |version| write!(f, "?version={version}"))
            }
            Self::Read { path } => write!(f, "vault-read:{path}"),
            Self::Write { path, parameters } => {
                write!(f, "vault-write:{path}")?;
                let mut mark = '?';
                for (key, value) in parameters.iter() {
                    write!(f, "{mark}{key}=")?;
                    write_encoded(f, value)?;
                    mark = '&';
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [PickPart::Field(field)] = &*self.0 {
            return f.write_str(field);
        }
        self.0.iter().try_for_each(|part| match part {
            PickPart::Text(text) => f.write_str(text),
            PickPart::Field(field) => write!(f, "{{{field}}}"),
        })
    }
}

/// The path before the role of an identity token.
pub const IDENTITY_TOKEN: &str = "identity/oidc/token/";

/// Whether a byte of a parameter stands for itself. All others are written as `%XX`.
pub(crate) const fn is_plain_parameter_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'/' | b',' | b'@')
}

fn write_encoded(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    text.bytes().try_for_each(|byte| match byte {
        plain if is_plain_parameter_byte(plain) => write!(f, "{}", char::from(plain)),
        other => write!(f, "%{other:02X}"),
    })
}
