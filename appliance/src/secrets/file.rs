//! The file of secrets, for a first run and for installs without Vault. It is encrypted at rest if
//! it has a key ([`SealedFile`]), and plain if it has none; one is never taken for the other.
//!
//! ```text
//! # One secret a line: a name, an equals sign, the value.
//! openai = sk-...
//! github = ghp_...
//! ```
//!
//! Names are 1 to 64 bytes of `[A-Za-z0-9_.-]`. Spaces and tabs around the name and the value are
//! not part of them; nothing else is removed, and there are no quotes and no escapes. Empty lines
//! and lines that begin with `#` are skipped; a `#` further on belongs to the value. A byte order
//! mark at the beginning is not part of the first line. Any other line is skipped, and the log
//! names it. It may have been meant to set a name that no other line has, so values that are held
//! for missing names do not count as withdrawn. A name on two lines has no value. Every group that
//! may use a name under policy gets the same value: only Vault can tell them apart.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

use super::{
    FetchError, Fetched, FileError, SealedFile, SecretSource,
    joined::JoinedReads,
    lines::{self, Lines, WrongLine, read_lines},
    private_file::read_private,
    seal::is_sealed,
};
use crate::{
    locks::lock,
    policy::{GroupName, Location, Pick},
    reason::SecretCause,
};

/// A file of secrets. It is read again for each request, and once for all requests that come
/// together.
#[derive(Debug, Clone)]
pub struct FileSource {
    path: PathBuf,
    key: Option<PathBuf>,
    /// The lines that the log was told of.
    said: Arc<Mutex<Vec<WrongLine>>>,
    reads: JoinedReads<Arc<Result<Content, FileError>>>,
}

/// The content of the file, kept for as long as a request waits for a part of it.
struct Content {
    values: HashMap<Box<[u8]>, Zeroizing<Vec<u8>>>,
    /// Whether a wrong line may hide a name.
    is_partial: bool,
}

impl FileSource {
    /// Most bytes of the file.
    pub const MAX_BYTES: usize = lines::MAX_BYTES;

    /// Creates the source of the file at `path`, encrypted with the key in the file `key` or plain.
    /// Does not read it yet.
    pub fn new(path: PathBuf, key: Option<PathBuf>) -> Self {
        Self { path, key, said: Arc::default(), reads: JoinedReads::default() }
    }

    /// Reads the file once and returns a fault of the file as a whole, for the start of the daemon.
    pub fn check(&self) -> Result<(), FileError> {
        let content = self.read()?;
        self.tell(&read_lines(&content).wrong);
        Ok(())
    }

    /// Logs wrong lines, once.
    fn tell(&self, wrong: &[WrongLine]) {
        let mut said = lock(&self.said);
        if *said == wrong {
            return;
        }
        for (line, what) in wrong.iter().filter(|one| !said.contains(one)).take(MAX_TOLD) {
            let file = self.path.display();
            tracing::error!(%file, line, "a line of the file of secrets is passed over: {what}");
        }
        *said = wrong.to_vec();
    }

    fn read(&self) -> Result<Zeroizing<Vec<u8>>, FileError> {
        if let Some(key) = &self.key {
            return SealedFile::new(self.path.clone(), key.clone()).read();
        }
        let content = read_private(&self.path, Self::MAX_BYTES).map_err(FileError::File)?;
        if is_sealed(&content) { Err(FileError::Sealed) } else { Ok(content) }
    }

    fn content(&self) -> Result<Content, FileError> {
        let content = self.read().inspect_err(|error| {
            tracing::debug!(file = %self.path.display(), %error, "the file of secrets is not usable");
        })?;
        let Lines { entries, wrong } = read_lines(&content);
        self.tell(&wrong);
        let own = |(name, value): (&[u8], &[u8])| (name.into(), Zeroizing::new(value.to_vec()));
        Ok(Content {
            values: entries.into_iter().map(own).collect(),
            is_partial: !wrong.is_empty(),
        })
    }
}

/// Returns the value of a name in a file that was read.
fn value(read: &Result<Content, FileError>, name: &str) -> Result<Zeroizing<Vec<u8>>, FetchError> {
    let unusable = |error: &FileError| FetchError::Outage(SecretCause::NotInFile, error.text());
    let Content { values, is_partial } = read.as_ref().map_err(unusable)?;
    values.get(name.as_bytes()).cloned().ok_or(match is_partial {
        false => FetchError::Gone(SecretCause::NotInFile, "the file does not hold this name"),
        true => FetchError::Outage(SecretCause::NotInFile, HIDDEN),
    })
}

impl SecretSource for FileSource {
    fn fetch<'a>(
        &'a self,
        _group: &'a GroupName,
        location: &'a Location,
        picks: &'a [Pick],
    ) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        Box::pin(async move {
            let Location::File(name) = location else {
                return Err(FetchError::Gone(SecretCause::NotInFile, "not a name in a file"));
            };
            let source = self.clone();
            let failed = FetchError::Outage(SecretCause::NotInFile, "reading the file broke off");
            let read = self.reads.ask(move || Arc::new(source.content())).await;
            let value = value(&*read.ok_or(failed)?, name)?;
            // A line has no fields: every pick takes all of it.
            let values = picks.iter().map(|_| Ok(value.clone().into())).collect();
            Ok(Fetched { values, lease: None, changes_in: None, narrowing: Arc::default() })
        })
    }
}

const HIDDEN: &str = "no line of the file has this name, and some are not understood: the log names \
    them";

/// Most lines that are logged at once.
const MAX_TOLD: usize = 16;

#[cfg(test)]
mod tests {
    use super::{
        super::{PrivateFileError, private_file::tests::TestFolder},
        *,
    };

    #[tokio::test]
    async fn the_file_is_read_again_for_each_question() {
        let folder = TestFolder::new();
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
        assert_eq!(value(&key).await.unwrap(), b"two");
        let hidden = value(&other).await.unwrap_err();
        assert!(matches!(hidden, FetchError::Outage(SecretCause::NotInFile, _)));
        folder.write("s", b"key = two\nkey = one\n", 0o600);
        assert!(matches!(value(&key).await.unwrap_err(), FetchError::Outage(..)));
        folder.write("s", b"key = two\n", 0o640);
        assert_eq!(source.check(), Err(FileError::File(PrivateFileError::OpenToOthers)));
    }
}
