//! Reading a file that only the daemon may read.
//!
//! The checks are made on the open file, so that nothing can be swapped between check and read. A
//! file that another user could have read is refused, not warned about: its content must be taken
//! for known.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use rustix::fs::{FsWord, OFlags, fstatfs};
use zeroize::Zeroizing;

/// The reasons why a file is not used. Carries no part of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub enum PrivateFileError {
    /// It cannot be opened or read.
    Unreadable(io::ErrorKind),
    /// It is a symbolic link.
    Symlink,
    /// It is a folder, a pipe, a device or a socket.
    NotRegular,
    /// It belongs to neither root nor the daemon's user.
    WrongOwner,
    /// Its group or others have some permission on it.
    OpenToOthers,
    /// It is larger than the bound.
    TooLarge,
}

impl PrivateFileError {
    /// Returns the text for the operator, without the path.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Unreadable(io::ErrorKind::NotFound) => "there is no such file",
            Self::Unreadable(io::ErrorKind::PermissionDenied) => {
                "the daemon may not read it; it has to be the daemon's user's (chown), in a folder that \
                 he may enter"
            }
            Self::Unreadable(_) => "it cannot be read",
            Self::Symlink => "it is a symbolic link; name the file itself",
            Self::NotRegular => "it is not a regular file",
            Self::WrongOwner => "it must belong to root or to the daemon's user",
            Self::OpenToOthers => {
                "its group or others have permissions on it; use mode 0600 or 0400"
            }
            Self::TooLarge => "it is too large",
        }
    }
}

/// Returns the content of `path`, at most `max_bytes` of it, if nobody except root and this user
/// can read it.
pub(crate) fn read_private(
    path: &Path,
    max_bytes: usize,
) -> Result<Zeroizing<Vec<u8>>, PrivateFileError> {
    read_of(path, max_bytes, None)
}

/// Does the same for a file that others may read, and that may be behind links: it must be a
/// regular file, and the read does not wait for a pipe's writer.
pub(crate) fn read_regular(
    path: &Path,
    max_bytes: usize,
) -> Result<Zeroizing<Vec<u8>>, PrivateFileError> {
    let file = open(path, OFlags::empty())?;
    regular(&file)?;
    read_bounded(&file, max_bytes)
}

/// [`read_private`] for root who edits a file for another user: the file may also belong to the
/// owner of its folder, if only that user and root can put files there.
pub(crate) fn read_to_edit(
    path: &Path,
    max_bytes: usize,
) -> Result<Zeroizing<Vec<u8>>, PrivateFileError> {
    let owner = folder_owner(path).map_err(|error| PrivateFileError::Unreadable(error.kind()))?;
    read_of(path, max_bytes, owner.map(|(user, _)| user))
}

/// Returns the user and group of the folder that holds `path`, if this process is root and nobody
/// except that user and root can write there.
pub(crate) fn folder_owner(path: &Path) -> io::Result<Option<(u32, u32)>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let meta = std::fs::metadata(folder.unwrap_or(Path::new(".")))?;
    let counts = rustix::process::geteuid().is_root() && meta.mode() & 0o022 == 0;
    Ok(counts.then(|| (meta.uid(), meta.gid())))
}

fn read_of(
    path: &Path,
    max_bytes: usize,
    beside: Option<u32>,
) -> Result<Zeroizing<Vec<u8>>, PrivateFileError> {
    let file = open(path, OFlags::NOFOLLOW)?;
    check(&file, beside)?;
    read_bounded(&file, max_bytes)
}

fn read_bounded(file: &File, max_bytes: usize) -> Result<Zeroizing<Vec<u8>>, PrivateFileError> {
    // One allocation of the full bound: a buffer that grows leaves copies behind.
    let mut content = Zeroizing::new(vec![0; max_bytes + 1]);
    let length = read_full(file, &mut content)?;
    if length > max_bytes {
        return Err(PrivateFileError::TooLarge);
    }
    content.truncate(length);
    Ok(content)
}

fn open(path: &Path, more: OFlags) -> Result<File, PrivateFileError> {
    // NONBLOCK: opening a pipe must not wait for its writer.
    let flags = more | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(code) if code == rustix::io::Errno::LOOP.raw_os_error() => {
                PrivateFileError::Symlink
            }
            _ => PrivateFileError::Unreadable(error.kind()),
        })
}

fn regular(file: &File) -> Result<std::fs::Metadata, PrivateFileError> {
    let meta = file.metadata().map_err(|error| PrivateFileError::Unreadable(error.kind()))?;
    if meta.is_file() { Ok(meta) } else { Err(PrivateFileError::NotRegular) }
}

/// Checks the open file. `beside` is a user who may own it, besides root and this process.
fn check(file: &File, beside: Option<u32>) -> Result<(), PrivateFileError> {
    let meta = regular(file)?;
    let owners = [Some(0), Some(rustix::process::geteuid().as_raw()), beside];
    if !owners.contains(&Some(meta.uid())) {
        return Err(PrivateFileError::WrongOwner);
    }
    if meta.mode() & 0o077 != 0 && !is_credential(file, &meta) {
        return Err(PrivateFileError::OpenToOthers);
    }
    Ok(())
}

/// Returns whether the file is a service's credential. systemd shows these in a file system in
/// memory that only root and the service can enter. Where the service has a user of its own, an
/// access list lets that user in, and the mode shows it as the group's (`systemd.exec(5)`,
/// `LoadCredential=`; `acl(5)`).
fn is_credential(file: &File, meta: &std::fs::Metadata) -> bool {
    let of_root = meta.uid() == 0 && meta.gid() == 0 && meta.mode() & 0o777 == 0o440;
    of_root && fstatfs(file).is_ok_and(|on| IN_MEMORY.contains(&on.f_type))
}

fn read_full(mut file: &File, buffer: &mut [u8]) -> Result<usize, PrivateFileError> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(PrivateFileError::Unreadable(error.kind())),
        }
    }
    Ok(filled)
}

/// `RAMFS_MAGIC` and `TMPFS_MAGIC` (`statfs(2)`); systemd uses either, whichever the kernel allows.
const IN_MEMORY: [FsWord; 2] = [0x8584_58f6, 0x0102_1994];

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::{
        os::unix::fs::{PermissionsExt, symlink},
        path::PathBuf,
        sync::atomic::{AtomicU32, Ordering},
    };

    /// A folder of one test, removed when dropped.
    pub(crate) struct TestFolder(pub(crate) PathBuf);

    impl TestFolder {
        pub(crate) fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir()
                .join(format!("cloakroom-secrets-{}-{number}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        pub(crate) fn write(&self, name: &str, content: &[u8], mode: u32) -> PathBuf {
            let path = self.0.join(name);
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        }
    }

    impl Drop for TestFolder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_private_file_is_read_up_to_its_bound() {
        let folder = TestFolder::new();
        for mode in [0o600, 0o400] {
            let path = folder.write("f", b"12345678", mode);
            assert_eq!(read_private(&path, 8).map(|read| read.to_vec()), Ok(b"12345678".to_vec()));
            assert_eq!(read_private(&path, 7).err(), Some(PrivateFileError::TooLarge));
            std::fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn a_file_that_others_could_touch_is_refused() {
        let folder = TestFolder::new();
        for bit in [0o040, 0o020, 0o010, 0o004, 0o002, 0o001] {
            let path = folder.write("f", b"x", 0o600 | bit);
            let error = read_private(&path, 8).err();
            assert_eq!(error, Some(PrivateFileError::OpenToOthers), "{bit:o}");
        }
    }

    #[test]
    fn a_systemd_credential_may_be_group_readable_in_memory_only() {
        let Ok((file, path)) = file_in("/dev/shm") else { return };
        let on_tmpfs = fstatfs(&file).is_ok_and(|on| IN_MEMORY.contains(&on.f_type));
        let root = file.metadata().is_ok_and(|meta| (meta.uid(), meta.gid()) == (0, 0));
        let read_with = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            read_private(&path, 8).is_ok()
        };
        let taken = [0o440, 0o460, 0o444, 0o640, 0o442].map(read_with);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(taken, [on_tmpfs && root, false, false, false, false]);
    }

    fn file_in(folder: &str) -> io::Result<(File, PathBuf)> {
        let path = Path::new(folder).join(format!("cloakroom-credential-{}", std::process::id()));
        Ok((File::create(&path)?, path))
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused_without_waiting() {
        let folder = TestFolder::new();
        let target = folder.write("f", b"x", 0o600);
        let link = folder.0.join("link");
        symlink(target, &link).unwrap();
        let pipe = folder.0.join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let pipe_type = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, pipe_type, mode, 0).unwrap();

        assert_eq!(read_private(&link, 8).err(), Some(PrivateFileError::Symlink));
        assert_eq!(read_private(&pipe, 8).err(), Some(PrivateFileError::NotRegular));
        assert_eq!(read_private(&folder.0, 8).err(), Some(PrivateFileError::NotRegular));
        assert_eq!(read_regular(&link, 8).map(|read| read.to_vec()), Ok(b"x".to_vec()));
        assert_eq!(read_regular(&link, 0).err(), Some(PrivateFileError::TooLarge));
        for other in [pipe.as_path(), folder.0.as_path(), Path::new("/dev/zero")] {
            let refused = read_regular(other, 8).err();
            assert_eq!(refused, Some(PrivateFileError::NotRegular), "{}", other.display());
        }
        assert_eq!(
            read_private(&folder.0.join("absent"), 8).err(),
            Some(PrivateFileError::Unreadable(io::ErrorKind::NotFound))
        );
    }

    #[test]
    fn another_users_file_is_refused() {
        let folder = TestFolder::new();
        let path = folder.write("f", b"x", 0o600);
        if std::os::unix::fs::chown(&path, Some(12_345), None).is_ok() {
            assert_eq!(read_private(&path, 8).err(), Some(PrivateFileError::WrongOwner));
        }
    }

    #[test]
    fn root_edits_what_belongs_to_the_folders_one_user() {
        let folder = TestFolder::new();
        let path = folder.write("f", b"x", 0o600);
        let own = |path: &Path, user| std::os::unix::fs::chown(path, Some(user), None).is_ok();
        if !own(&path, 12_345) {
            return;
        }
        let refused = Some(PrivateFileError::WrongOwner);
        assert_eq!(read_to_edit(&path, 8).err(), refused, "in a folder of root's");
        assert!(own(&folder.0, 12_345));
        let mode = |mode| std::fs::set_permissions(&folder.0, PermissionsExt::from_mode(mode));
        mode(0o755).unwrap();
        assert!(read_to_edit(&path, 8).is_ok());
        assert_eq!(read_private(&path, 8).err(), refused, "the daemon reads no such file");
        for open in [0o775, 0o757] {
            mode(open).unwrap();
            assert_eq!(read_to_edit(&path, 8).err(), refused, "others put files there");
        }
    }
}
