//! The embedded store: a file of secrets that is encrypted at rest, and its changes.
//!
//! Every change is made to the whole: read, checked, changed, checked, encrypted, written beside
//! the file and moved over it. If anything goes wrong, or the machine stops at any time, the file
//! is either as before or fully changed. Changes are made one after the other, under a lock beside
//! the file.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, fchown},
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, FlockOperation, OFlags, RenameFlags, flock, renameat_with};
use zeroize::Zeroizing;

use super::{
    FileError, PrivateFileError, SecretError, SecretValue,
    lines::{self, SecretLine, parse, parse_line},
    private_file::{folder_owner, read_private, read_to_edit},
    seal::{SealKey, is_sealed},
};

/// An encrypted file of secrets and the file of its key. Holds neither content nor key.
#[derive(Debug, Clone)]
pub struct SealedFile {
    path: PathBuf,
    key: PathBuf,
}

/// The way in which a file is read: as the daemon does, or as its editor does.
type FileReader = fn(&Path, usize) -> Result<Zeroizing<Vec<u8>>, PrivateFileError>;

/// The reasons why a file of secrets was not changed. Carries no part of its content.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// It cannot be used as it is.
    #[error("{}{}", .0, remedy(.0))]
    File(FileError),
    /// The name cannot be that of a secret.
    #[error("{0}")]
    Name(&'static str),
    /// The value cannot be a secret.
    #[error(fmt = wrong_value)]
    Value(SecretError),
    /// There is no secret with this name.
    #[error("there is no secret with this name")]
    Absent,
    /// The file would be larger than [`FileSource::MAX_BYTES`](super::FileSource::MAX_BYTES).
    #[error("the file would be larger than 1 MiB")]
    Full,
    /// There is a file of secrets, and no key for it.
    #[error(
        "the file of secrets is there and its key is not: bring the key back, or move the file \
         away and set its secrets again"
    )]
    KeyLost,
    /// The system's random numbers or the cipher failed.
    #[error("the system gives no random numbers")]
    Cipher,
    /// It cannot be written.
    #[error("cannot write {0}: {1}")]
    Unwritable(PathBuf, io::Error),
}

impl SealedFile {
    /// Returns the file at `path`, encrypted with the key in the file `key`. Reads nothing yet.
    pub fn new(path: PathBuf, key: PathBuf) -> Self {
        Self { path, key }
    }

    /// Makes the key and an empty file, each with mode 0600, where they are missing. Never
    /// overwrites an existing file. Returns true where something was made.
    pub fn init(&self) -> Result<bool, EditError> {
        let _lock = self.lock()?;
        let missing =
            |path: &Path| fs::symlink_metadata(path).is_err_and(|error| is_absent(&error));
        let (no_key, no_file) = (missing(&self.key), missing(&self.path));
        if no_key && !no_file {
            return Err(EditError::KeyLost);
        }
        if no_key {
            let text = SealKey::generate().map_err(|_| EditError::Cipher)?;
            let owner = owner_beside(&self.key)?;
            put(&self.key, text.as_bytes(), owner, RenameFlags::NOREPLACE)?;
        }
        if no_file {
            self.write(b"")?;
        }
        self.read_with(read_to_edit).map_err(EditError::File)?;
        Ok(no_key || no_file)
    }

    /// Returns the names of the secrets, in their order.
    pub fn names(&self) -> Result<Vec<String>, EditError> {
        let content = self.read_with(read_to_edit).map_err(EditError::File)?;
        let entries = parse(&content).map_err(EditError::File)?;
        Ok(entries.iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect())
    }

    /// Sets a secret, new or not. One line end after the value is not part of it. Returns true
    /// where the name is new.
    pub fn set(&self, name: &str, value: Zeroizing<Vec<u8>>) -> Result<bool, EditError> {
        let value = SecretValue::load(value, SecretValue::FLOOR_BYTES).map_err(EditError::Value)?;
        let line = Zeroizing::new([name.as_bytes(), b"=", value.expose()].concat());
        let entry = parse_line(&line).map_err(EditError::Name)?;
        if entry.0 != name.as_bytes() {
            return Err(EditError::Name("the name holds a byte that no name has"));
        }
        let _lock = self.lock()?;
        let content = self.read_with(read_to_edit).map_err(EditError::File)?;
        let mut entries = parse(&content).map_err(EditError::File)?;
        let before = entries.len();
        entries.retain(|(name, _)| *name != entry.0);
        let new = entries.len() == before;
        entries.push(entry);
        entries.sort_unstable();
        self.write(&render(&entries)?)?;
        Ok(new)
    }

    /// Removes a secret.
    pub fn remove(&self, name: &str) -> Result<(), EditError> {
        let _lock = self.lock()?;
        let content = self.read_with(read_to_edit).map_err(EditError::File)?;
        let mut entries = parse(&content).map_err(EditError::File)?;
        let before = entries.len();
        entries.retain(|(other, _)| *other != name.as_bytes());
        if entries.len() == before {
            return Err(EditError::Absent);
        }
        self.write(&render(&entries)?)
    }

    /// Returns the lines of the file, decrypted.
    pub(super) fn read(&self) -> Result<Zeroizing<Vec<u8>>, FileError> {
        self.read_with(read_private)
    }

    fn read_with(&self, read: FileReader) -> Result<Zeroizing<Vec<u8>>, FileError> {
        let key = self.read_key(read)?;
        let file = read(&self.path, MAX_FILE_BYTES).map_err(FileError::File)?;
        if !is_sealed(&file) {
            return Err(FileError::Plain);
        }
        key.open(&file).ok_or(FileError::NotOpened)
    }

    fn read_key(&self, read: FileReader) -> Result<SealKey, FileError> {
        let text = read(&self.key, MAX_KEY_BYTES).map_err(FileError::Key)?;
        SealKey::parse(&text).ok_or(FileError::NoKey)
    }

    fn write(&self, lines: &[u8]) -> Result<(), EditError> {
        let key = self.read_key(read_to_edit).map_err(EditError::File)?;
        let sealed = key.seal(lines).map_err(|_| EditError::Cipher)?;
        // Root may change the file of the daemon's user, which must still be able to read it.
        let owner = match fs::symlink_metadata(&self.path) {
            Ok(meta) => Some((meta.uid(), meta.gid())),
            Err(_) => owner_beside(&self.path)?,
        };
        put(&self.path, &sealed, owner, RenameFlags::empty())
    }

    fn lock(&self) -> Result<File, EditError> {
        let path = with_ending(&self.path, ".lock");
        let locked = open_lock(&path).and_then(|lock| {
            flock(&lock, FlockOperation::LockExclusive)?;
            Ok(lock)
        });
        locked.map_err(|error| EditError::Unwritable(path, error))
    }
}

/// Opens the lock file at `path`, or a new one. The folder may belong to another user, who could
/// have put anything there: a link is not followed, and a pipe is not waited for.
fn open_lock(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    match options.clone().create_new(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Ok(lock) => {
            // The owner of the folder can take the lock as well.
            give_to(&lock, folder_owner(path)?)?;
            return Ok(lock);
        }
        Err(error) => return Err(error),
    }
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let lock = options.custom_flags(flags.bits().cast_signed()).open(path)?;
    match lock.metadata()?.is_file() {
        true => Ok(lock),
        false => Err(io::Error::other("it is not a regular file")),
    }
}

fn give_to(file: &File, owner: Option<(u32, u32)>) -> io::Result<()> {
    let Some((user, group)) = owner else { return Ok(()) };
    let meta = file.metadata()?;
    match (meta.uid(), meta.gid()) == (user, group) {
        true => Ok(()),
        false => fchown(file, Some(user), Some(group)),
    }
}

/// Returns the owner of a new file at `path`, if that is not this process.
fn owner_beside(path: &Path) -> Result<Option<(u32, u32)>, EditError> {
    folder_owner(path).map_err(|error| EditError::Unwritable(path.to_owned(), error))
}

/// Formats lines that [`parse`] reads as these entries.
fn render(entries: &[SecretLine<'_>]) -> Result<Zeroizing<Vec<u8>>, EditError> {
    let bytes = entries.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    if bytes > lines::MAX_BYTES {
        return Err(EditError::Full);
    }
    let mut lines = Zeroizing::new(Vec::with_capacity(bytes));
    for (name, value) in entries {
        for part in [name, b" = ".as_slice(), value, b"\n"] {
            lines.extend_from_slice(part);
        }
    }
    parse(&lines).map_err(EditError::File)?;
    Ok(lines)
}

/// Moves a file to `path` once all of it is on the disk. The lock keeps others away.
fn put(
    path: &Path,
    content: &[u8],
    owner: Option<(u32, u32)>,
    how: RenameFlags,
) -> Result<(), EditError> {
    let beside = with_ending(path, ".new");
    // A change that broke off has left it.
    match fs::remove_file(&beside) {
        Err(error) if !is_absent(&error) => return Err(EditError::Unwritable(beside, error)),
        _ => {}
    }
    create(&beside, content, owner)?;
    renameat_with(CWD, &beside, CWD, path, how)
        .map_err(|error| EditError::Unwritable(path.to_owned(), error.into()))?;
    sync_folder(path)
}

fn create(path: &Path, content: &[u8], owner: Option<(u32, u32)>) -> Result<(), EditError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let written = options.open(path).and_then(|mut file| {
        give_to(&file, owner)?;
        file.write_all(content)?;
        file.sync_all()
    });
    written.map_err(|error| EditError::Unwritable(path.to_owned(), error))
}

/// Flushes the folder. Without that, a crash can lose a new name.
fn sync_folder(path: &Path) -> Result<(), EditError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))
        .and_then(|folder| folder.sync_all())
        .map_err(|error| EditError::Unwritable(path.to_owned(), error))
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(ending);
    path.into()
}

fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

fn remedy(error: &FileError) -> &'static str {
    match error {
        FileError::File(PrivateFileError::Unreadable(io::ErrorKind::NotFound)) => {
            "; make it with `cloakroom secret init`"
        }
        _ => "",
    }
}

fn wrong_value(error: &SecretError, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match error {
        SecretError::TooShort => {
            write!(f, "the value has fewer than {} bytes", SecretValue::FLOOR_BYTES)
        }
        _ => write!(f, "{error}"),
    }
}

/// Bytes of the largest file's header, nonce and tag, and some room.
const MAX_FILE_BYTES: usize = lines::MAX_BYTES + 128;
const MAX_KEY_BYTES: usize = 4_096;

#[cfg(test)]
mod tests {
    use super::{
        super::{FileSource, private_file::tests::TestFolder},
        *,
    };

    const VALUE: &[u8] = b"sk-0123456789abcdef";

    fn file(folder: &TestFolder) -> SealedFile {
        let file = SealedFile::new(folder.0.join("secrets"), folder.0.join("key"));
        assert!(file.init().unwrap());
        file
    }

    fn set(file: &SealedFile, name: &str, value: &[u8]) -> Result<bool, EditError> {
        file.set(name, value.to_vec().into())
    }

    fn lines(file: &SealedFile) -> String {
        String::from_utf8(file.read().unwrap().to_vec()).unwrap()
    }

    #[test]
    fn a_set_value_is_there_and_not_legible() {
        let folder = TestFolder::new();
        let file = file(&folder);
        assert_eq!(file.names().unwrap(), [""; 0]);
        assert!(set(&file, "openai", &[VALUE, b"\n"].concat()).unwrap());
        assert!(set(&file, "git.hub-1", b"ghp_0123456789abcdef").unwrap());
        assert!(!set(&file, "openai", b"sk-fedcba9876543210").unwrap(), "not new");
        assert_eq!(file.names().unwrap(), ["git.hub-1", "openai"]);
        let wanted = "git.hub-1 = ghp_0123456789abcdef\nopenai = sk-fedcba9876543210\n";
        assert_eq!(lines(&file), wanted);
        let stored = fs::read(&file.path).unwrap();
        for hidden in [b"openai".as_slice(), b"ghp_", b"sk-"] {
            assert!(!stored.windows(hidden.len()).any(|window| window == hidden));
        }
        file.remove("openai").unwrap();
        assert_eq!(file.names().unwrap(), ["git.hub-1"]);
        assert!(matches!(file.remove("openai"), Err(EditError::Absent)));
    }

    #[test]
    fn bad_input_changes_nothing() {
        let folder = TestFolder::new();
        let file = file(&folder);
        set(&file, "openai", VALUE).unwrap();
        let before = fs::read(&file.path).unwrap();
        for name in ["", "a b", "a=b", "a\nb", "#a", &"a".repeat(65)] {
            assert!(matches!(set(&file, name, VALUE), Err(EditError::Name(_))), "{name:?}");
        }
        let long = [b'a'; 8_193];
        for value in [b"".as_slice(), b"short", b"sk-0123456789\nmore = x", b"sk 0123456789", &long]
        {
            assert!(matches!(set(&file, "openai", value), Err(EditError::Value(_))));
        }
        assert!(set(&file, "openai", b"\"sk-0123456789\"").is_err(), "the file takes no quotes");
        assert_eq!(fs::read(&file.path).unwrap(), before);
    }

    #[test]
    fn nothing_that_is_there_is_made_anew() {
        let folder = TestFolder::new();
        let file = file(&folder);
        set(&file, "openai", VALUE).unwrap();
        assert!(!file.init().unwrap());
        assert_eq!(file.names().unwrap(), ["openai"]);
        let key = fs::read(&file.key).unwrap();
        fs::remove_file(&file.path).unwrap();
        assert!(file.init().unwrap(), "a file for a key that is there");
        assert_eq!(fs::read(&file.key).unwrap(), key);
        fs::remove_file(&file.key).unwrap();
        assert!(matches!(file.init(), Err(EditError::KeyLost)));
    }

    #[test]
    fn a_key_is_there_whole_or_not_at_all() {
        let folder = TestFolder::new();
        let file = SealedFile::new(folder.0.join("secrets"), folder.0.join("key"));
        // The remains of an `init` that broke off do not disturb.
        folder.write("key.new", b"cloakroom-ke", 0o600);
        // With this folder the file of secrets cannot be written. The key is whole by then.
        fs::create_dir(folder.0.join("secrets.new")).unwrap();
        assert!(matches!(file.init(), Err(EditError::Unwritable(..))));
        assert!(file.read_key(read_private).is_ok() && !folder.0.join("key.new").exists());
        fs::remove_dir(folder.0.join("secrets.new")).unwrap();
        assert!(file.init().unwrap());
        assert_eq!(file.names().unwrap(), [""; 0]);
    }

    #[test]
    fn plain_and_encrypted_files_are_never_confused() {
        let folder = TestFolder::new();
        let file = file(&folder);
        let plainly = FileSource::new(file.path.clone(), None);
        assert_eq!(plainly.check(), Err(FileError::Sealed));
        folder.write("secrets", b"openai = sk-0123456789abcdef\n", 0o600);
        assert_eq!(plainly.check(), Ok(()));
        assert_eq!(file.read().err(), Some(FileError::Plain));
        assert!(matches!(set(&file, "a", VALUE), Err(EditError::File(FileError::Plain))));
    }

    #[test]
    fn a_readable_or_another_key_opens_nothing() {
        let folder = TestFolder::new();
        let file = file(&folder);
        let key = fs::read(&file.key).unwrap();
        folder.write("key", &key, 0o640);
        assert_eq!(file.read().err(), Some(FileError::Key(PrivateFileError::OpenToOthers)));
        fs::remove_file(&file.key).unwrap();
        folder.write("key", SealKey::generate().unwrap().as_bytes(), 0o600);
        assert_eq!(file.read().err(), Some(FileError::NotOpened));
        folder.write("key", b"hunter2", 0o600);
        assert_eq!(file.read().err(), Some(FileError::NoKey));
    }

    #[test]
    fn changes_at_the_same_time_are_all_kept() {
        let folder = TestFolder::new();
        let file = file(&folder);
        // The remains of a change that broke off do not disturb.
        folder.write("secrets.new", b"half", 0o600);
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let file = file.clone();
                scope.spawn(move || {
                    for number in 0..5 {
                        set(&file, &format!("n{writer}-{number}"), VALUE).unwrap();
                    }
                });
            }
        });
        assert_eq!(file.names().unwrap().len(), 20);
        assert!(!folder.0.join("secrets.new").exists());
    }

    #[test]
    fn a_strangers_lock_is_neither_followed_nor_waited_for() {
        let folder = TestFolder::new();
        let file = file(&folder);
        let (lock, elsewhere) = (folder.0.join("secrets.lock"), folder.0.join("elsewhere"));
        for target in ["elsewhere", "secrets"] {
            fs::remove_file(&lock).unwrap();
            std::os::unix::fs::symlink(target, &lock).unwrap();
            assert!(matches!(set(&file, "openai", VALUE), Err(EditError::Unwritable(..))));
            assert!(!elsewhere.exists(), "a file was made where a link led");
        }
        fs::remove_file(&lock).unwrap();
        let pipe = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(CWD, &lock, pipe, rustix::fs::Mode::RUSR, 0).unwrap();
        assert!(matches!(set(&file, "openai", VALUE), Err(EditError::Unwritable(..))));
        fs::remove_file(&lock).unwrap();
        assert!(set(&file, "openai", VALUE).unwrap());
    }

    #[test]
    fn root_edits_a_users_files_in_that_users_name() {
        let folder = TestFolder::new();
        if std::os::unix::fs::chown(&folder.0, Some(12_345), Some(12_345)).is_err() {
            return;
        }
        let file = file(&folder);
        set(&file, "openai", VALUE).unwrap();
        for name in ["secrets", "key", "secrets.lock"] {
            let meta = fs::metadata(folder.0.join(name)).unwrap();
            assert_eq!((meta.uid(), meta.gid()), (12_345, 12_345), "{name}");
        }
        assert_eq!(file.names().unwrap(), ["openai"]);
        file.remove("openai").unwrap();
    }

    #[test]
    fn the_files_are_for_their_owner_alone_and_stay_his() {
        let folder = TestFolder::new();
        let file = file(&folder);
        for path in [&file.path, &file.key] {
            assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o600);
        }
        if std::os::unix::fs::chown(&file.path, None, Some(12_345)).is_ok() {
            set(&file, "openai", VALUE).unwrap();
            assert_eq!(fs::metadata(&file.path).unwrap().gid(), 12_345);
        }
    }
}
