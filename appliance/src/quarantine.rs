//! Groups that get nothing through, under every policy, until somebody releases them.
//!
//! A group is quarantined while a file with its name stands in the folder of marks, so that it
//! stays so over a restart, a crash and a new policy. Marks that cannot be read do not count as
//! absent: the daemon does not start. A quarantine holds from the moment of the order, whether its
//! mark is written or not; a release holds once the mark is gone from the disk.

use std::{
    collections::BTreeSet,
    fmt, fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use tokio::sync::watch;

use crate::{locks::lock, policy::GroupName};

/// The marks, and the right to set and remove them: one for the daemon.
#[derive(Debug)]
pub struct Quarantine {
    folder: PathBuf,
    /// Allows one act at a time, because otherwise a mark could differ from what is in force.
    acting: Mutex<()>,
    groups: watch::Sender<Arc<Groups>>,
}

type Groups = BTreeSet<GroupName>;

/// One watcher's view of the quarantined groups. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Quarantined(watch::Receiver<Arc<Groups>>);

/// The error where the marks cannot be read for certain.
#[derive(Debug, thiserror::Error)]
#[error("{path}: cannot tell which groups are quarantined: {what}")]
pub struct QuarantineError {
    path: PathBuf,
    what: String,
}

impl Quarantine {
    /// Reads the marks in the folder `quarantine` of `state_dir`, which is created where it is
    /// missing.
    ///
    /// # Errors
    ///
    /// Another user could have taken a mark away, an entry of the folder is no mark, or the folder
    /// cannot be read.
    pub fn open(state_dir: &Path) -> Result<Self, QuarantineError> {
        let folder = state_dir.join("quarantine");
        let doubt = |what: &dyn fmt::Display| QuarantineError {
            path: folder.clone(),
            what: what.to_string(),
        };
        let groups = read(&folder).map_err(|error| doubt(&error))?;
        let groups = watch::Sender::new(Arc::new(groups));
        Ok(Self { folder, acting: Mutex::default(), groups })
    }

    /// Returns a view of the quarantined groups that learns of every change.
    pub fn watch(&self) -> Quarantined {
        Quarantined(self.groups.subscribe())
    }

    /// Quarantines a group at once, then writes its mark. Returns false where the group was
    /// quarantined already.
    ///
    /// # Errors
    ///
    /// The mark cannot be written. The group is quarantined all the same, until the daemon ends.
    pub fn hold(&self, group: &GroupName) -> io::Result<bool> {
        // Inserted before waiting for the turn, because another act may hold it while a disk hangs,
        // and again after that, because that act may have been the group's release.
        let before = self.insert(group);
        let _acting = lock(&self.acting);
        let new = self.insert(group) || before;
        match self.mark(group) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => sync(&self.folder)?,
        }
        Ok(new)
    }

    /// Removes the mark, then lets the group go. Returns false where the group was not quarantined.
    ///
    /// # Errors
    ///
    /// The mark cannot be removed for certain. The group stays quarantined.
    pub fn release(&self, group: &GroupName) -> io::Result<bool> {
        let _acting = lock(&self.acting);
        match fs::remove_file(self.folder.join(group.as_str())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => sync(&self.folder)?,
        }
        Ok(self.groups.send_if_modified(|groups| Arc::make_mut(groups).remove(group)))
    }

    /// Takes over the marks that another daemon has made meanwhile, and returns whether there were
    /// any. A mark that the other daemon removed stays in force here.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn take_marks(&self) -> io::Result<bool> {
        let marked = read(&self.folder)?;
        Ok(self.groups.send_if_modified(|groups| {
            let before = groups.len();
            Arc::make_mut(groups).extend(marked);
            groups.len() > before
        }))
    }

    fn insert(&self, group: &GroupName) -> bool {
        self.groups.send_if_modified(|groups| Arc::make_mut(groups).insert(group.clone()))
    }

    fn mark(&self, group: &GroupName) -> io::Result<()> {
        let path = self.folder.join(group.as_str());
        let mut mark =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        mark.write_all(MARK)?;
        mark.sync_all()
    }
}

impl Quarantined {
    /// Returns whether the group is quarantined now.
    pub fn holds(&self, group: &GroupName) -> bool {
        self.0.borrow().contains(group)
    }

    /// Returns all groups that are quarantined now, in the policy or not.
    pub fn groups(&self) -> Vec<GroupName> {
        self.0.borrow().iter().cloned().collect()
    }

    /// Waits until the group is quarantined; returns at once if it is.
    pub async fn reached(&mut self, group: &GroupName) {
        if self.0.wait_for(|groups| groups.contains(group)).await.is_err() {
            // The daemon is about to stop, which has a reason of its own.
            std::future::pending::<()>().await;
        }
    }
}

fn read(folder: &Path) -> io::Result<Groups> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let meta = fs::symlink_metadata(folder)?;
    let own = [0, rustix::process::geteuid().as_raw()].contains(&meta.uid());
    if !meta.is_dir() || !own || meta.mode() & 0o022 != 0 {
        return Err(io::Error::other(
            "it must be a folder of root or of the daemon's user that nobody else can write to",
        ));
    }
    let mut groups = Groups::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let group = name.to_str().and_then(|name| GroupName::parse(name).ok());
        let stray = || io::Error::other(format!("{} is not the name of a group", name.display()));
        groups.insert(group.ok_or_else(stray)?);
    }
    Ok(groups)
}

/// Flushes the folder. Without that, a crash can lose a new name or bring a removed one back.
fn sync(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

/// A text for people who read the file. Only its presence counts.
const MARK: &[u8] = b"This group is quarantined. Undo it with: cloakroom release GROUP\n";

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::PermissionsExt,
        sync::atomic::{AtomicU32, Ordering::Relaxed},
    };

    use super::*;

    struct MarkFolder(PathBuf);

    impl MarkFolder {
        fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name = format!(
                "cloakroom-quarantine-{}-{}",
                std::process::id(),
                NEXT.fetch_add(1, Relaxed)
            );
            Self(std::env::temp_dir().join(name))
        }
    }

    impl Drop for MarkFolder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn group(name: &str) -> GroupName {
        GroupName::parse(name).unwrap()
    }

    #[test]
    fn a_quarantine_outlives_the_daemon_and_a_release_ends_it() {
        let (state, red) = (MarkFolder::new(), group("red"));
        let first = Quarantine::open(&state.0).unwrap();
        assert!(!first.watch().holds(&red));
        assert!(first.hold(&red).unwrap());
        assert!(!first.hold(&red).unwrap(), "it is already");
        let second = Quarantine::open(&state.0).unwrap();
        assert!(second.watch().holds(&red) && !second.watch().holds(&group("blue")));
        assert!(second.release(&red).unwrap());
        assert!(!second.release(&red).unwrap(), "it was not");
        assert!(Quarantine::open(&state.0).unwrap().watch().groups().is_empty());
    }

    #[test]
    fn marks_in_doubt_are_no_start() {
        let state = MarkFolder::new();
        let folder = state.0.join("quarantine");
        fs::create_dir_all(&folder).unwrap();
        let open_to =
            |mode| fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
        for mode in [0o770, 0o707, 0o722] {
            open_to(mode);
            assert!(Quarantine::open(&state.0).is_err(), "{mode:o}");
        }
        open_to(0o755);
        assert!(Quarantine::open(&state.0).is_ok());
        fs::write(folder.join("Not a group"), "").unwrap();
        let error = Quarantine::open(&state.0).unwrap_err().to_string();
        assert!(error.contains("Not a group"), "{error}");
        fs::remove_dir_all(&folder).unwrap();
        fs::write(&folder, "").unwrap();
        assert!(Quarantine::open(&state.0).is_err(), "a file where the folder belongs");
    }

    #[test]
    fn a_group_is_quarantined_even_where_that_cannot_be_written() {
        let (state, red) = (MarkFolder::new(), group("red"));
        let quarantine = Quarantine::open(&state.0).unwrap();
        fs::remove_dir_all(&state.0).unwrap();
        assert!(quarantine.hold(&red).is_err());
        assert!(quarantine.watch().holds(&red));
        assert!(quarantine.release(&red).is_err());
        assert!(quarantine.watch().holds(&red), "a release that is not certain is none");
    }

    #[test]
    fn a_quarantine_does_not_wait_for_another_groups_mark() {
        let (state, red) = (MarkFolder::new(), group("red"));
        let quarantine = Quarantine::open(&state.0).unwrap();
        let other = quarantine.acting.lock().unwrap();
        std::thread::scope(|scope| {
            let holding = scope.spawn(|| quarantine.hold(&red));
            let begun = std::time::Instant::now();
            while !quarantine.watch().holds(&red) && begun.elapsed().as_secs() < 10 {
                std::thread::yield_now();
            }
            assert!(quarantine.watch().holds(&red) && !holding.is_finished());
            drop(other);
            assert!(holding.join().unwrap().unwrap(), "it is new");
        });
    }

    #[tokio::test]
    async fn whoever_waits_for_a_quarantine_is_woken() {
        let (state, red) = (MarkFolder::new(), group("red"));
        let quarantine = Quarantine::open(&state.0).unwrap();
        let mut watching = quarantine.watch();
        let waiting = tokio::spawn({
            let red = red.clone();
            async move { watching.reached(&red).await }
        });
        quarantine.hold(&group("blue")).unwrap();
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        quarantine.hold(&red).unwrap();
        waiting.await.unwrap();
    }
}
