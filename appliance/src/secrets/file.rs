//! The file of secrets: for a first run, and for installs without Vault. Encrypted at rest where it
//! has a key ([`SealedFile`]), plain where it has none; one is never taken for the other.
//!
//! ```text
//! # One secret a line: a name, an equals sign, the value.
//! openai = sk-...
//! github = ghp_...
//! ```
//!
//! Names are 1 to 64 bytes of `[A-Za-z0-9_.-]`. Spaces and tabs around the name and the value
//! are not part of them; nothing else is taken away, and there are no quotes and no escapes.
//! Empty lines and lines that begin with `#` are skipped; a `#` further on belongs to the value.
//! One bad line refuses the whole file, since a typing error must not pass for a rotation.
//! Every group that policy lets use a name gets the same value: only Vault can tell them apart.

use std::{path::PathBuf, sync::Arc};

use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

use super::{
    Answer, FetchError, PrivateFileError, SealedFile, SecretSource, private_file::read_private,
    seal::is_sealed,
};
use crate::{
    policy::{GroupName, Location, Pick},
    reason::SecretCause,
};

/// A file of secrets; it is read again for each question.
#[derive(Debug, Clone)]
pub struct FileSource {
    path: PathBuf,
    key: Option<PathBuf>,
}

/// Why a file of secrets is not used. Carries no part of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileError {
    /// It cannot be read, or others can.
    File(PrivateFileError),
    /// The file of its key cannot be read, or others can.
    Key(PrivateFileError),
    /// The file of its key holds none.
    NoKey,
    /// It has a key and is not encrypted.
    Plain,
    /// It is encrypted and has no key.
    Sealed,
    /// It was encrypted with another key, or altered, or cut.
    NotOpened,
    /// A line is not `name = value`. Counted from 1.
    Line(usize, &'static str),
}

impl FileSource {
    /// Most bytes of the file.
    pub const MAX_BYTES: usize = 1024 * 1024;

    /// The file at `path`, encrypted with the key in the file `key` or plain. Not read yet.
    pub fn new(path: PathBuf, key: Option<PathBuf>) -> Self {
        Self { path, key }
    }

    /// Reads the file once and says what is wrong with it, for the start of the daemon.
    pub fn check(&self) -> Result<(), FileError> {
        let content = self.read()?;
        parse(&content).map(drop)
    }

    fn read(&self) -> Result<Zeroizing<Vec<u8>>, FileError> {
        if let Some(key) = &self.key {
            return SealedFile::new(self.path.clone(), key.clone()).read();
        }
        let content = read_private(&self.path, Self::MAX_BYTES).map_err(FileError::File)?;
        if is_sealed(&content) { Err(FileError::Sealed) } else { Ok(content) }
    }

    fn value(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, FetchError> {
        let unusable = |error: FileError| {
            tracing::debug!(file = %self.path.display(), %error, "the file of secrets is not usable");
            FetchError::Outage(SecretCause::NotInFile, error.text())
        };
        let content = self.read().map_err(unusable)?;
        let entries = parse(&content).map_err(unusable)?;
        entries
            .iter()
            .find(|(found, _)| *found == name.as_bytes())
            .map(|(_, value)| Zeroizing::new(value.to_vec()))
            .ok_or(FetchError::Gone(SecretCause::NotInFile, "the file does not hold this name"))
    }
}

impl SecretSource for FileSource {
    fn fetch<'a>(
        &'a self,
        _group: &'a GroupName,
        location: &'a Location,
        picks: &'a [Pick],
    ) -> BoxFuture<'a, Result<Answer, FetchError>> {
        Box::pin(async move {
            let Location::File(name) = location else {
                return Err(FetchError::Gone(SecretCause::NotInFile, "not a name in a file"));
            };
            let (source, name) = (self.clone(), name.clone());
            let failed = FetchError::Outage(SecretCause::NotInFile, "reading the file broke off");
            let read = tokio::task::spawn_blocking(move || source.value(&name)).await;
            let value = read.unwrap_or(Err(failed))?;
            // A line has no fields: every pick is the whole of it.
            let values = picks.iter().map(|_| Ok(value.clone().into())).collect();
            Ok(Answer { values, lease: None, changes_in: None, narrowing: Arc::default() })
        })
    }
}

impl FileError {
    /// What is wrong, without the path and the line.
    pub const fn text(self) -> &'static str {
        match self {
            Self::File(error) => error.text(),
            Self::Key(_) => "its key_file cannot be used",
            Self::NoKey => "its key_file holds no key; `cloakroom secret init` makes one",
            Self::Plain => "it is not encrypted, and key_file says that it is",
            Self::Sealed => "it is encrypted; name the file of its key in key_file",
            Self::NotOpened => "it was encrypted with another key, or altered",
            Self::Line(_, what) => what,
        }
    }
}

impl std::fmt::Display for FileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(error) => error.fmt(f),
            Self::Key(error) => write!(f, "its key_file: {error}"),
            Self::Line(line, what) => write!(f, "line {line}: {what}"),
            other => f.write_str(other.text()),
        }
    }
}

impl std::error::Error for FileError {}

/// A name and its value.
pub(super) type Entry<'a> = (&'a [u8], &'a [u8]);

/// The entries of a whole file.
pub(super) fn parse(content: &[u8]) -> Result<Vec<Entry<'_>>, FileError> {
    let mut entries: Vec<Entry<'_>> = Vec::new();
    for (index, line) in content.split(|byte| *byte == b'\n').enumerate() {
        let wrong = |what| FileError::Line(index + 1, what);
        let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let entry = parse_line(line).map_err(wrong)?;
        if entries.iter().any(|(name, _)| *name == entry.0) {
            return Err(wrong("this name stands on an earlier line too"));
        }
        if entries.len() == MAX_ENTRIES {
            return Err(wrong("more than 4096 secrets"));
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// The entry of one line, without the space around it.
pub(super) fn parse_line(line: &[u8]) -> Result<Entry<'_>, &'static str> {
    let at = line.iter().position(|byte| *byte == b'=').ok_or("expected NAME = VALUE")?;
    let (name, rest) = line.split_at(at);
    let name = name.trim_ascii();
    let value = rest.strip_prefix(b"=").unwrap_or(rest).trim_ascii();
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.iter().all(is_name_byte) {
        return Err("the name is not 1 to 64 bytes of A-Z, a-z, 0-9, '_', '.' and '-'");
    }
    if value.is_empty() {
        return Err("the value is empty");
    }
    match value {
        [first @ (b'"' | b'\''), .., last] if first == last => {
            Err("the value is in quotes; write it without them")
        }
        _ => Ok((name, value)),
    }
}

fn is_name_byte(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-')
}

const MAX_NAME_BYTES: usize = 64;

/// Names are compared pairwise when the file is read.
const MAX_ENTRIES: usize = 4_096;

#[cfg(test)]
mod tests {
    use super::{super::private_file::tests::Folder, *};
    use proptest::prelude::*;

    fn parsed(text: &str) -> Result<Vec<(String, String)>, FileError> {
        let text_of = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        parse(text.as_bytes())
            .map(|all| all.iter().map(|(name, value)| (text_of(name), text_of(value))).collect())
    }

    fn line_of(text: &str) -> Option<usize> {
        match parsed(text) {
            Err(FileError::Line(line, _)) => Some(line),
            _ => None,
        }
    }

    #[test]
    fn a_line_is_a_name_an_equals_sign_and_a_value() {
        let text = "# keys\n\nopenai = sk-a=b#c==\r\n  git.hub-1=\tghp_x  \n#end";
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let wanted = vec![pair("openai", "sk-a=b#c=="), pair("git.hub-1", "ghp_x")];
        assert_eq!(parsed(text), Ok(wanted));
        assert_eq!(parsed(""), Ok(vec![]));
    }

    #[test]
    fn a_typing_error_refuses_the_file_and_names_the_line() {
        assert_eq!(line_of("a = 1\nsk-live-0123456789\n"), Some(2));
        assert_eq!(line_of("a = 1\n\na = 2"), Some(3));
        assert_eq!(line_of("a b = 1"), Some(1));
        assert_eq!(line_of("= 1"), Some(1));
        assert_eq!(line_of("a ="), Some(1));
        assert_eq!(line_of("a = \"quoted\""), Some(1));
        assert_eq!(line_of(&format!("{} = 1", "a".repeat(65))), Some(1));
    }

    #[test]
    fn an_error_never_repeats_what_the_file_says() {
        for text in
            ["sk-live-0123456789", "sk live = sk-live-1", "a = 'sk-live-1'", "sk-live=1\nsk-live=2"]
        {
            let error = parsed(text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("live"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse_to_clean_entries_or_to_an_error(bytes: Vec<u8>) {
            for (name, value) in parse(&bytes).unwrap_or_default() {
                prop_assert!(!name.is_empty() && name.iter().all(is_name_byte));
                prop_assert!(!value.is_empty() && value.trim_ascii() == value);
            }
        }
    }

    #[tokio::test]
    async fn the_file_is_read_again_for_each_question() {
        let folder = Folder::new();
        let path = folder.write("s", b"key = one\n", 0o600);
        let source = FileSource::new(path, None);
        let group = GroupName("agents".into());
        let [key, other] = ["key", "other"].map(|name| Location::File(name.into()));
        let value = async |location: &Location| {
            let mut answer = source.fetch(&group, location, &[Pick::default()]).await?;
            answer.values.remove(0).map(|value| value.whole.to_vec())
        };
        assert_eq!(source.check(), Ok(()));
        assert_eq!(value(&key).await.unwrap(), b"one");
        let absent = value(&other).await.unwrap_err();
        assert!(matches!(absent, FetchError::Gone(SecretCause::NotInFile, _)));

        folder.write("s", b"key = two\n", 0o600);
        assert_eq!(value(&key).await.unwrap(), b"two");

        folder.write("s", b"key = two\nhalf a li", 0o600);
        let broken = value(&key).await.unwrap_err();
        assert!(matches!(broken, FetchError::Outage(..)));
        folder.write("s", b"key = two\n", 0o640);
        assert_eq!(source.check(), Err(FileError::File(PrivateFileError::OpenToOthers)));
    }
}
