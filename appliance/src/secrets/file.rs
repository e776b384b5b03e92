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
//! Empty lines and lines that begin with `#` are skipped; a `#` further on belongs to the value. A
//! byte order mark at the beginning is not part of the first line. A line that is none of these is
//! passed over, and the log names it. What it was to say is not known: a name that no other line has
//! may stand there, so that what is held for it is not taken for withdrawn. A name on two lines has no
//! value.
//! Every group that policy lets use a name gets the same value: only Vault can tell them apart.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

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
    /// What the log was told of its lines.
    said: Arc<Mutex<Vec<WrongLine>>>,
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
        Self { path, key, said: Arc::default() }
    }

    /// Reads the file once and says what is wrong with it as a whole, for the start of the daemon.
    pub fn check(&self) -> Result<(), FileError> {
        let content = self.read()?;
        self.tell(&read_lines(&content).wrong);
        Ok(())
    }

    /// Tells the log of lines that are wrong, once.
    fn tell(&self, wrong: &[WrongLine]) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
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

    fn value(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, FetchError> {
        let unusable = |error: FileError| {
            tracing::debug!(file = %self.path.display(), %error, "the file of secrets is not usable");
            FetchError::Outage(SecretCause::NotInFile, error.text())
        };
        let content = self.read().map_err(unusable)?;
        let Lines { entries, wrong } = read_lines(&content);
        self.tell(&wrong);
        let found = entries.iter().find(|(found, _)| *found == name.as_bytes());
        found.map(|(_, value)| Zeroizing::new(value.to_vec())).ok_or(match wrong.is_empty() {
            true => FetchError::Gone(SecretCause::NotInFile, "the file does not hold this name"),
            false => FetchError::Outage(SecretCause::NotInFile, HIDDEN),
        })
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

/// The number of a line, counted from 1, and what is wrong with it.
type WrongLine = (usize, &'static str);

/// What the lines of a file say.
struct Lines<'a> {
    entries: Vec<Entry<'a>>,
    wrong: Vec<WrongLine>,
}

/// The entries of a whole file that has nothing wrong.
pub(super) fn parse(content: &[u8]) -> Result<Vec<Entry<'_>>, FileError> {
    let Lines { entries, wrong } = read_lines(content);
    wrong.first().map_or(Ok(entries), |(line, what)| Err(FileError::Line(*line, what)))
}

fn read_lines(content: &[u8]) -> Lines<'_> {
    let content = content.strip_prefix(BYTE_ORDER_MARK).unwrap_or(content);
    let (mut entries, mut wrong): (Vec<Entry<'_>>, Vec<WrongLine>) = Default::default();
    let (mut names, mut twice): (HashSet<&[u8]>, HashSet<&[u8]>) = Default::default();
    for (index, line) in content.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        match parse_line(line) {
            Err(what) => wrong.push((index + 1, what)),
            Ok((name, _)) if !names.insert(name) => {
                twice.insert(name);
                wrong.push((index + 1, "this name stands on an earlier line too: keep one"));
            }
            Ok(_) if entries.len() == MAX_ENTRIES => {
                wrong.push((index + 1, "more than 4096 secrets"));
            }
            Ok(entry) => entries.push(entry),
        }
    }
    // Which of two values is meant is not ours to say.
    entries.retain(|(name, _)| !twice.contains(name));
    Lines { entries, wrong }
}

/// The entry of one line, without the space around it.
pub(super) fn parse_line(line: &[u8]) -> Result<Entry<'_>, &'static str> {
    let at = line.iter().position(|byte| *byte == b'=').ok_or("expected NAME = VALUE")?;
    let (name, rest) = line.split_at(at);
    let name = name.trim_ascii();
    if name.strip_prefix(b"export").is_some_and(|rest| rest.starts_with(b" ")) {
        return Err("this is a line of a shell: write NAME = VALUE, without `export`");
    }
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

const HIDDEN: &str = "no line of the file has this name, and some are not understood: the log names \
    them";

/// What some editors write before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

const MAX_NAME_BYTES: usize = 64;

const MAX_ENTRIES: usize = 4_096;

/// Lines that the log is told of at once.
const MAX_TOLD: usize = 16;

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
    fn whoever_edits_the_file_is_told_the_first_line_that_is_wrong() {
        assert_eq!(line_of("a = 1\nsk-live-0123456789\n"), Some(2));
        assert_eq!(line_of("a = 1\n\na = 2"), Some(3));
        assert_eq!(line_of("a b = 1"), Some(1));
        assert_eq!(line_of("= 1"), Some(1));
        assert_eq!(line_of("a ="), Some(1));
        assert_eq!(line_of("a = \"quoted\""), Some(1));
        assert_eq!(line_of(&format!("{} = 1", "a".repeat(65))), Some(1));
    }

    #[test]
    fn a_line_that_is_wrong_hides_no_other_and_is_named() {
        let text =
            "\u{feff}first = 1\nexport second = 2\nthird 3\nfourth = 4\nfifth = 5\nfifth = 6\n";
        let Lines { entries, wrong } = read_lines(text.as_bytes());
        let names: Vec<_> = entries.iter().map(|(name, _)| str::from_utf8(name).unwrap()).collect();
        assert_eq!(names, ["first", "fourth"]);
        let lines: Vec<_> = wrong.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [2, 3, 6]);
        assert!(wrong[0].1.contains("without `export`"), "{wrong:?}");
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
        assert_eq!(value(&key).await.unwrap(), b"two");
        let hidden = value(&other).await.unwrap_err();
        assert!(matches!(hidden, FetchError::Outage(SecretCause::NotInFile, _)));
        folder.write("s", b"key = two\nkey = one\n", 0o600);
        assert!(matches!(value(&key).await.unwrap_err(), FetchError::Outage(..)));
        folder.write("s", b"key = two\n", 0o640);
        assert_eq!(source.check(), Err(FileError::File(PrivateFileError::OpenToOthers)));
    }
}
