//! A folder of certificates and keys.
//!
//! Every name is opened relative to the folder's descriptor and never through a link, because
//! `cloakroom ca` may run as root over a folder that the daemon's user owns. A file is whole or
//! absent, whenever the machine stops. Files belong to the owner of the folder.

use std::{
    fs::{DirBuilder, File},
    io::{Read, Write},
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat, fchmod, fchown,
        flock, fstat, fsync, open, openat, renameat_with, unlinkat,
    },
    io::Errno,
    process::{Gid, Uid, geteuid},
};
use zeroize::Zeroizing;

use super::{CaError, FileFault};

/// An open folder that only its owner may write to.
pub(super) struct CaFolder {
    fd: OwnedFd,
    path: PathBuf,
    stat: Stat,
}

/// The readers that a file may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Its owner alone: mode 0600.
    Private,
    /// Everybody: mode 0644.
    Public,
}

/// Whether a file may take the place of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overwrite {
    /// There must be no file of that name.
    New,
    /// It replaces a file of that name.
    Any,
}

/// The folder's lock, released when dropped.
pub(super) struct Lock<'a>(&'a CaFolder);

impl CaFolder {
    /// Opens a folder that exists.
    pub(super) fn open(path: &Path) -> Result<Self, CaError> {
        let fault = |fault| CaError::File { path: path.into(), fault };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(|e| fault(e.into()))?;
        let stat = fstat(&fd).map_err(|e| fault(e.into()))?;
        let mode = stat.st_mode & 0o7777;
        if mode & 0o022 != 0 {
            return Err(fault(FileFault::Exposed(mode)));
        }
        Ok(Self { fd, path: path.into(), stat })
    }

    /// Opens a folder. Makes it and those above it, with mode 0700, where they are missing.
    pub(super) fn open_or_make(path: &Path) -> Result<Self, CaError> {
        match DirBuilder::new().recursive(true).mode(0o700).create(path) {
            Ok(()) => Self::open(path),
            Err(error) => Err(CaError::File { path: path.into(), fault: error.into() }),
        }
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.stat.st_dev, self.stat.st_ino) == (other.stat.st_dev, other.stat.st_ino)
    }

    /// Keeps readers and other writers away. Waits up to two seconds.
    pub(super) fn lock_to_write(&self) -> Result<Lock<'_>, CaError> {
        self.lock(FlockOperation::NonBlockingLockExclusive)
    }

    /// Keeps writers away, so that a certificate and its key are read as one pair. Waits up to
    /// two seconds.
    pub(super) fn lock_to_read(&self) -> Result<Lock<'_>, CaError> {
        self.lock(FlockOperation::NonBlockingLockShared)
    }

    /// Reads a file of at most `most` bytes; returns `None` where there is none of that name. A
    /// private file must be closed to everybody except the folder's owner, this process and root.
    pub(super) fn read(
        &self,
        name: &str,
        access: Access,
        most: usize,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, FileFault> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(FileFault::NotAFile),
            Err(error) => return Err(error.into()),
        };
        self.check(&fstat(&fd)?, access)?;
        // The vector has room for everything from the start: one that grows leaves copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(most.saturating_add(1)));
        File::from(fd).take(most as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > most {
            return Err(FileFault::TooLarge);
        }
        Ok(Some(bytes))
    }

    /// Returns the names of the folder's entries, sorted, without those that are not UTF-8; at most
    /// 100,000.
    pub(super) fn names(&self) -> Result<Vec<String>, FileFault> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd)?.take(MAX_ENTRIES) {
            names.extend(entry?.file_name().to_str().ok().map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    /// Writes a file whole or not at all.
    pub(super) fn write(
        &self,
        _lock: &Lock<'_>,
        name: &str,
        bytes: &[u8],
        (access, overwrite): (Access, Overwrite),
    ) -> Result<(), FileFault> {
        let temporary = format!(".{name}.new");
        let written = self.write_temporary(&temporary, bytes, access).and_then(|file| {
            self.put_in_place(&temporary, name, overwrite)?;
            self.give(&file)
        });
        if written.is_err() {
            // The temporary file may hold a key; where it cannot be removed either, the first error
            // says more.
            let _ = unlinkat(&self.fd, &temporary, AtFlags::empty());
        }
        written
    }

    /// Turns a fault of one of its files, or of the folder itself where `name` is empty, into an
    /// error.
    pub(super) fn error(&self, name: &str, fault: FileFault) -> CaError {
        CaError::File { path: self.path.join(name), fault }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn lock(&self, operation: FlockOperation) -> Result<Lock<'_>, CaError> {
        for _ in 0..LOCK_ATTEMPTS {
            match flock(&self.fd, operation) {
                Ok(()) => return Ok(Lock(self)),
                Err(Errno::WOULDBLOCK) => std::thread::park_timeout(LOCK_PAUSE),
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.error("", error.into())),
            }
        }
        Err(self.error("", FileFault::Locked))
    }

    fn check(&self, stat: &Stat, access: Access) -> Result<(), FileFault> {
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(FileFault::NotAFile);
        }
        let owners = [self.stat.st_uid, geteuid().as_raw(), Uid::ROOT.as_raw()];
        if !owners.contains(&stat.st_uid) {
            return Err(FileFault::Foreign(stat.st_uid));
        }
        let (mode, closed) = (stat.st_mode & 0o7777, access.closed_bits());
        if mode & closed != 0 {
            return Err(FileFault::Exposed(mode));
        }
        Ok(())
    }

    /// Writes the file under a temporary name. The lock is held, so a file that already has that
    /// name was left by a crash.
    fn write_temporary(&self, name: &str, bytes: &[u8], access: Access) -> Result<File, FileFault> {
        match unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)?);
        file.write_all(bytes)?;
        fchmod(&file, access.mode())?;
        self.give(&file)?;
        file.sync_all()?;
        Ok(file)
    }

    /// Gives a file that this process made to the folder's owner of this moment. systemd hands the
    /// folder over when the daemon first starts, which may be between two files, or after it has
    /// looked for the last one.
    fn give(&self, file: &File) -> Result<(), FileFault> {
        let owner = fstat(&self.fd)?;
        if fstat(file)?.st_uid != owner.st_uid {
            let (uid, gid) = (Uid::from_raw(owner.st_uid), Gid::from_raw(owner.st_gid));
            fchown(file, Some(uid), Some(gid))?;
        }
        Ok(())
    }

    fn put_in_place(
        &self,
        temporary: &str,
        name: &str,
        overwrite: Overwrite,
    ) -> Result<(), FileFault> {
        let flags = match overwrite {
            Overwrite::New => RenameFlags::NOREPLACE,
            Overwrite::Any => RenameFlags::empty(),
        };
        renameat_with(&self.fd, temporary, &self.fd, name, flags)?;
        fsync(&self.fd)?;
        Ok(())
    }
}

impl Access {
    fn mode(self) -> Mode {
        match self {
            Self::Private => Mode::RUSR | Mode::WUSR,
            Self::Public => Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH,
        }
    }

    /// Returns the mode bits that must not be set.
    fn closed_bits(self) -> u32 {
        match self {
            Self::Private => 0o077,
            Self::Public => 0o022,
        }
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        // Closing the folder would release the lock as well.
        let _ = flock(&self.0.fd, FlockOperation::Unlock);
    }
}

const MAX_ENTRIES: usize = 100_000;
const LOCK_PAUSE: Duration = Duration::from_millis(20);
const LOCK_ATTEMPTS: usize = 100;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, chown};

    use super::*;
    use crate::ca::testing::Scratch;

    #[test]
    fn a_file_belongs_to_the_folders_owner_of_its_moment() {
        let scratch = Scratch::new();
        let path = scratch.path("handed-over");
        let folder = CaFolder::open_or_make(&path).unwrap();
        // Only root can hand a folder over; for everybody else the owner stays.
        let own = geteuid();
        let owner = if own.is_root() { 12_345 } else { own.as_raw() };
        chown(&path, Some(owner), None).unwrap();
        let lock = folder.lock_to_write().unwrap();
        folder.write(&lock, "key", b"1", (Access::Private, Overwrite::New)).unwrap();
        assert_eq!(std::fs::metadata(path.join("key")).unwrap().uid(), owner);
    }
}
