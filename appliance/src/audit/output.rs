//! The target of the audit's lines: standard output, or a file that keeps to its size and leaves
//! room on its disk.
//!
//! A file that has reached its size is moved aside under the next number, `audit.jsonl.00000001`
//! and so on. That happens only between two writes of whole lines, so that each line is whole and
//! in exactly one file. Where there are too many such files, the oldest are removed. Another
//! program that moves the file away and has it reopened, as logrotate does, uses names of its own.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock, fstatvfs};

use super::trouble::Trouble;
use crate::config::{AuditFile, AuditTarget};

/// The target that lines are written to.
#[derive(Debug)]
pub(super) enum Output {
    Stdout(io::Stdout),
    File(LogFile),
}

/// A file that lines are appended to.
#[derive(Debug)]
pub(super) struct LogFile {
    file: File,
    settings: AuditFile,
    /// The time at which a rotation that failed is tried again.
    rotation_rests: Option<Instant>,
}

impl Output {
    pub(super) fn open(target: &AuditTarget) -> io::Result<Self> {
        match target {
            AuditTarget::Stdout => Ok(Self::Stdout(io::stdout())),
            AuditTarget::File(settings) => LogFile::open(settings).map(Self::File),
        }
    }

    /// Opens the file at the configured path, or creates it. Where that is another file than
    /// before, moves `from` back to the beginning of a line that is partly written, so that the
    /// line is whole in the new file, and takes its part back out of the old one.
    pub(super) fn reopen(&mut self, lines: &[u8], from: &mut usize) -> io::Result<()> {
        let Self::File(log) = self else { return Ok(()) };
        let torn = torn(lines, *from);
        if log.reopen(torn)? {
            *from = from.saturating_sub(torn);
        }
        Ok(())
    }

    /// Writes the bytes from `from` on. `from` moves with every byte that is written, so that a
    /// later call goes on where this one stopped and no line is torn.
    pub(super) fn write(&mut self, lines: &[u8], from: &mut usize) -> io::Result<()> {
        while let Some(rest) = lines.get(*from..).filter(|rest| !rest.is_empty()) {
            let written = match self {
                Self::Stdout(out) => out.write(rest).and_then(|n| out.flush().map(|()| n)),
                Self::File(log) => log.file.write(rest),
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => *from += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns whether the file has no name any more, so that lines written to it are lost.
    pub(super) fn is_removed(&self) -> bool {
        match self {
            Self::Stdout(_) => false,
            Self::File(log) => log.file.metadata().is_ok_and(|meta| meta.nlink() == 0),
        }
    }

    /// Returns whether the open file is still the one at the configured path.
    pub(super) fn has_its_name(&self) -> bool {
        match self {
            Self::Stdout(_) => true,
            Self::File(log) => log.has_its_name(),
        }
    }

    /// Rotates the file if that is due, and fails if its disk has too little room. Must be called
    /// between whole lines only.
    pub(super) fn tend(&mut self) -> Result<(), Trouble> {
        let Self::File(log) = self else { return Ok(()) };
        let rotated = log.rotate_when_due();
        log.room()?;
        rotated
    }
}

impl LogFile {
    fn open(settings: &AuditFile) -> io::Result<Self> {
        let file = append_to(&settings.path)?;
        Ok(Self { file, settings: settings.clone(), rotation_rests: None })
    }

    /// Opens the file at the path and returns whether it is another one. Takes the last `torn`
    /// bytes back out of the old one.
    fn reopen(&mut self, torn: usize) -> io::Result<bool> {
        let file = append_to(&self.settings.path)?;
        let other = identity(&file.metadata()?) != identity(&self.file.metadata()?);
        if other && torn > 0 {
            let whole = self.file.metadata()?.len().checked_sub(torn as u64);
            // A target without a length, or one on a broken disk, keeps the part of a line.
            let _ = whole.map(|whole| self.file.set_len(whole));
        }
        self.file = file;
        Ok(other)
    }

    fn has_its_name(&self) -> bool {
        let named = self.settings.path.metadata();
        let own = self.file.metadata();
        matches!((named, own), (Ok(named), Ok(own)) if identity(&named) == identity(&own))
    }

    fn rotate_when_due(&mut self) -> Result<(), Trouble> {
        let Some(size) = self.settings.rotate else { return Ok(()) };
        let due = self.file.metadata().is_ok_and(|meta| meta.is_file() && meta.len() >= size);
        if !due {
            self.rotation_rests = None;
            return Ok(());
        }
        if self.rotation_rests.is_some_and(|until| Instant::now() < until) {
            return Err(Trouble::Unrotated("it is tried again every minute".into()));
        }
        self.rotate().map_err(|error| {
            self.rotation_rests = Some(Instant::now() + ROTATION_REST);
            Trouble::Unrotated(error.to_string())
        })
    }

    /// Moves the file aside and begins another. If the new one cannot be opened, lines still go to
    /// the old one under its new name.
    fn rotate(&mut self) -> io::Result<()> {
        // After a restart two daemons write to one file until the first has drained. Only one of
        // them may look for the next number at a time, because a rename replaces a file that
        // already has the name.
        let turn = File::open(folder(&self.settings.path))?;
        flock(&turn, FlockOperation::LockExclusive)?;
        let mut kept = rotated(&self.settings.path)?;
        if self.has_its_name() {
            let next = kept.last().map_or(1, |(number, _)| number.saturating_add(1));
            let aside = numbered(&self.settings.path, next);
            fs::rename(&self.settings.path, &aside)?;
            kept.push((next, aside));
        }
        self.file = append_to(&self.settings.path)?;
        let most = self.settings.keep;
        for (_, oldest) in kept.iter().take(kept.len().saturating_sub(most)) {
            let file = oldest.display();
            match fs::remove_file(oldest) {
                Ok(()) => tracing::info!(%file, "removed: audit_keep of the audit is {most}"),
                Err(error) => tracing::warn!(%file, %error, "an old file of the audit stays"),
            }
        }
        Ok(())
    }

    /// Checks that there is room. A target that is no file on a disk, or a file system that does
    /// not know its size, counts as having room.
    fn room(&self) -> Result<(), Trouble> {
        let is_file = self.file.metadata().is_ok_and(|meta| meta.is_file());
        let Some(disk) = fstatvfs(&self.file).ok().filter(|disk| is_file && disk.f_blocks > 0)
        else {
            return Ok(());
        };
        let (left, kept) = (disk.f_bavail.saturating_mul(disk.f_frsize), self.settings.reserve);
        if left < kept { Err(Trouble::Reserve { left, kept }) } else { Ok(()) }
    }
}

/// Returns how many bytes of the line at `from` stand before it.
fn torn(lines: &[u8], from: usize) -> usize {
    let out = lines.get(..from).unwrap_or_default();
    out.len() - memchr::memrchr(b'\n', out).map_or(0, |end| end + 1)
}

/// Returns the files that hold records, oldest first: those that were moved aside, then the one at
/// the path.
///
/// # Errors
///
/// The folder cannot be read.
pub fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let aside = rotated(path)?.into_iter().map(|(_, path)| path);
    Ok(aside.chain([path.to_owned()]).collect())
}

/// Returns the files that were moved aside with their numbers, oldest first.
fn rotated(path: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let mut found = Vec::new();
    for entry in fs::read_dir(folder(path))? {
        let entry = entry?.file_name();
        let number = entry.as_encoded_bytes().strip_prefix(name).and_then(number);
        if let Some(number) = number {
            found.push((number, path.with_file_name(entry)));
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn number(suffix: &[u8]) -> Option<u64> {
    let digits = suffix.strip_prefix(b".")?;
    let plain = digits.len() >= DIGITS && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| plain)?.parse().ok()
}

fn numbered(path: &Path, number: u64) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{number:0DIGITS$}"));
    path.with_file_name(name)
}

fn identity(meta: &fs::Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Opens the file for appending. Creates it, and its folder, where they are missing: for the
/// daemon's user alone.
fn append_to(path: &Path) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder(path))?;
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Digits of the number in the name of a file that was moved aside; more than logrotate uses.
const DIGITS: usize = 8;
/// Pause after a rotation that failed.
const ROTATION_REST: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_audits_folder_stays_the_daemons_alone_after_a_rotation() {
        let folder = std::env::temp_dir().join(format!("cloakroom-log-{}", std::process::id()));
        let path = folder.join("of/audit.jsonl");
        let target = AuditTarget::File(AuditFile::at(path.clone()));
        let mut output = Output::open(&target).unwrap();
        let mode = std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(output.is_removed());
        output.reopen(b"", &mut 0).unwrap();
        output.write(b"x\n", &mut 0).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "x\n");
        std::fs::remove_dir_all(&folder).unwrap();
        std::fs::write(&folder, "a file").unwrap();
        assert!(Output::open(&target).is_err());
        std::fs::remove_file(&folder).unwrap();
    }

    #[test]
    fn a_half_written_line_is_in_the_new_file_alone() {
        let folder = folder_of("torn");
        let path = folder.join("audit.jsonl");
        let lines = b"{1}\n{22}\n{333}\n";
        for out in 0..=lines.len() {
            let mut output = Output::open(&AuditTarget::File(AuditFile::at(&path))).unwrap();
            output.write(&lines[..out], &mut 0).unwrap();
            let old = folder.join("moved");
            fs::rename(&path, &old).unwrap();
            let mut from = out;
            output.reopen(lines, &mut from).unwrap();
            output.write(lines, &mut from).unwrap();
            let both = [fs::read(&old).unwrap(), fs::read(&path).unwrap()].concat();
            assert_eq!(both, lines, "{out}");
            assert!(fs::read(&old).unwrap().last().is_none_or(|byte| *byte == b'\n'), "{out}");

            // After the same file is opened again, writing goes on where it stopped.
            let mut output = Output::open(&AuditTarget::File(AuditFile::at(&old))).unwrap();
            let mut from = 5;
            output.reopen(lines, &mut from).unwrap();
            assert_eq!(from, 5);
            fs::remove_file(&path).unwrap();
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_full_file_is_moved_aside_and_the_oldest_go() {
        let folder = folder_of("sizes");
        let path = folder.join("audit.jsonl");
        fs::write(folder.join("audit.jsonl.1"), "logrotate's\n").unwrap();
        let settings = AuditFile { rotate: Some(8), keep: 3, ..AuditFile::at(&path) };
        let mut output = Output::open(&AuditTarget::File(settings)).unwrap();
        for number in 0..10 {
            output.write(format!("line {number}\n").as_bytes(), &mut 0).unwrap();
            output.tend().unwrap();
            output.write(b"\n", &mut 0).unwrap();
            output.tend().unwrap();
        }
        let mut names: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|it| it.unwrap().file_name()).collect();
        names.sort_unstable();
        let numbers = ["00000008", "00000009", "00000010"].map(|it| format!("audit.jsonl.{it}"));
        assert_eq!(names[..2], ["audit.jsonl", "audit.jsonl.00000008"]);
        assert_eq!(names[2..], [&*numbers[1], &*numbers[2], "audit.jsonl.1"]);
        assert_eq!(fs::read(folder.join(&numbers[2])).unwrap(), b"line 9\n\n");
        fs::remove_dir_all(&folder).unwrap();
    }

    /// Two daemons do this while one drains beside the next.
    #[test]
    fn two_that_rotate_one_file_lose_no_line() {
        let folder = folder_of("two");
        let path = folder.join("audit.jsonl");
        let settings = AuditFile { rotate: Some(64), keep: 10_000, ..AuditFile::at(&path) };
        let write = |who: &str| {
            let mut output = Output::open(&AuditTarget::File(settings.clone())).unwrap();
            for number in 0..1_000 {
                output.write(format!("{who} {number}\n").as_bytes(), &mut 0).unwrap();
                output.tend().unwrap();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| write("one"));
            scope.spawn(|| write("other"));
        });
        let files = fs::read_dir(&folder).unwrap().map(|it| fs::read(it.unwrap().path()).unwrap());
        let text = String::from_utf8(files.collect::<Vec<_>>().concat()).unwrap();
        let lines: std::collections::HashSet<&str> = text.lines().collect();
        assert_eq!((text.lines().count(), lines.len()), (2_000, 2_000));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_cannot_be_moved_aside_is_written_on_and_told() {
        let folder = folder_of("stuck");
        let path = folder.join("audit.jsonl");
        let settings = AuditFile { rotate: Some(1), ..AuditFile::at(&path) };
        let mut output = Output::open(&AuditTarget::File(settings)).unwrap();
        output.write(b"one\n", &mut 0).unwrap();
        fs::create_dir(folder.join("audit.jsonl.18446744073709551615")).unwrap();
        let told = output.tend().unwrap_err();
        assert_eq!((told.as_str(), told.closes()), ("audit_unrotated", false));
        output.write(b"two\n", &mut 0).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\n");
        fs::remove_dir_all(&folder).unwrap();
    }

    fn folder_of(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("cloakroom-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        folder
    }
}
