//! Limits the daemon, once it is up, to the files that it may touch and the processes that it may
//! signal: Landlock (`landlock(7)`). An attacker who takes the daemon over reads and writes in
//! these folders and nowhere else, and starts no program.
//!
//! The kernel applies each rule to a folder and everything below it. Rules are for folders and not
//! for files: a file that replaces another of its name is another file to the kernel.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, LandlockStatus, PathBeneath, PathFd,
    RestrictionStatus, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope,
};

/// The folders that a process needs. Folders that do not exist are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileReach {
    read: BTreeSet<PathBuf>,
    write: BTreeSet<PathBuf>,
}

/// The confinement of this process, which nothing can undo.
#[derive(Debug)]
pub struct Confinement {
    enforced: Enforced,
    reach: FileReach,
    /// The folders, kept open. The kernel knows a folder by its inode. In `/proc` a folder gets
    /// another inode when nobody has it open and memory gets short.
    _held: Vec<PathFd>,
}

/// The part of the confinement that this kernel enforces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enforced {
    /// All.
    Fully,
    /// All that the kernel knows, which is older than this program.
    Partly,
    /// Nothing: the kernel has no Landlock, or it is off.
    Not,
}

impl FileReach {
    /// Lets the process read the files in a folder.
    pub fn read(&mut self, folder: impl Into<PathBuf>) {
        add(&mut self.read, folder.into());
    }

    /// Lets the process read the folder of a file.
    pub fn read_beside(&mut self, file: &Path) {
        self.read(folder_of(file));
        // The kernel applies the rule to the folder that a link leads to.
        if let Ok(real) = fs::canonicalize(file) {
            self.read(folder_of(&real));
        }
    }

    /// Lets the process read, write, make and remove in a folder.
    pub fn write(&mut self, folder: impl Into<PathBuf>) {
        add(&mut self.write, folder.into());
    }

    /// Lets the process do the same in the folder of a file.
    pub fn write_beside(&mut self, file: &Path) {
        self.write(folder_of(file));
        if let Ok(real) = fs::canonicalize(file) {
            self.write(folder_of(&real));
        }
    }

    fn covers(&self, path: &Path) -> bool {
        self.read.iter().chain(&self.write).any(|folder| path.starts_with(folder))
    }
}

impl Confinement {
    /// Confines this process for as long as it lives. Must be called before any thread starts: the
    /// kernel confines the calling thread and those that it starts.
    ///
    /// # Errors
    ///
    /// The kernel has Landlock and refuses, a folder cannot be opened, or there are threads
    /// already.
    pub fn enter(reach: FileReach) -> io::Result<Self> {
        if fs::read_dir("/proc/self/task")?.count() != 1 {
            return Err(io::Error::other("there are threads already, which it would not hold for"));
        }
        let mut held = Vec::new();
        let ruleset = ruleset(&reach, &mut held).map_err(io::Error::other)?;
        let status = ruleset.restrict_self().map_err(io::Error::other)?;
        Ok(Self { enforced: Enforced::of(&status), reach, _held: held })
    }

    /// Returns how much of the confinement this kernel enforces.
    pub fn enforced(&self) -> Enforced {
        self.enforced
    }

    /// Adds a remedy to an error at `path`, if the error comes from the confinement.
    pub fn explain(&self, path: &Path, error: io::Error) -> io::Error {
        let refused = error.kind() == io::ErrorKind::PermissionDenied;
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if !refused || self.enforced == Enforced::Not || self.reach.covers(&real) {
            return error;
        }
        let folder = folder_of(&real);
        io::Error::other(format!(
            "the daemon may not read in {} (Landlock), which its configuration did not name when it \
             started; restart the daemon",
            folder.display()
        ))
    }
}

impl Enforced {
    fn of(status: &RestrictionStatus) -> Self {
        match (&status.landlock, &status.ruleset) {
            (LandlockStatus::Available { .. }, RulesetStatus::FullyEnforced) => Self::Fully,
            (LandlockStatus::Available { .. }, RulesetStatus::PartiallyEnforced) => Self::Partly,
            _ => Self::Not,
        }
    }

    /// Returns the word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fully => "fully",
            Self::Partly => "partly",
            Self::Not => "not",
        }
    }
}

impl fmt::Display for Enforced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn ruleset(reach: &FileReach, held: &mut Vec<PathFd>) -> Result<RulesetCreated, RulesetError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?
        .create()?;
    let read = reach.read.iter().map(|folder| (folder, read_access()));
    let write = reach.write.iter().map(|folder| (folder, read_access() | write_access()));
    for (folder, access) in read.chain(write) {
        // A folder that does not exist now cannot be reached later.
        let Ok(opened) = PathFd::new(folder) else { continue };
        ruleset = ruleset.add_rule(PathBeneath::new(&opened, access))?;
        held.push(opened);
    }
    Ok(ruleset)
}

fn read_access() -> BitFlags<AccessFs> {
    AccessFs::ReadFile | AccessFs::ReadDir
}

/// The rights over files and sockets; none over devices, and none to link out of a folder.
fn write_access() -> BitFlags<AccessFs> {
    AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeSock
        | AccessFs::RemoveFile
}

fn add(folders: &mut BTreeSet<PathBuf>, folder: PathBuf) {
    folders.insert(folder.canonicalize().unwrap_or(folder));
}

fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.into(),
        _ => ".".into(),
    }
}

/// The version of Landlock that this program knows; an older kernel enforces the part that it
/// knows.
const KNOWN: ABI = ABI::V7;

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Landlock cannot be left, so the test runs itself again as a process that enters it.
    #[test]
    fn a_refusal_by_landlock_says_what_to_do() {
        let folder = std::env::temp_dir().join(format!("cloakroom-reach-{}", std::process::id()));
        let Some(given) = std::env::var_os(INSIDE) else {
            for name in ["in", "of", "out"] {
                fs::create_dir_all(folder.join(name)).unwrap();
                fs::write(folder.join(name).join("file"), "x").unwrap();
            }
            let test = "harden::confinement::tests::\
                        a_refusal_by_landlock_says_what_to_do";
            let program = std::env::current_exe().unwrap();
            let ran = Command::new(program)
                .args(["--exact", test, "--nocapture", "--test-threads=1"])
                .env(INSIDE, &folder)
                .output()
                .unwrap();
            fs::remove_dir_all(&folder).unwrap();
            let said = String::from_utf8_lossy(&ran.stdout);
            assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
            return;
        };
        // The harness has threads; a test of the built program shows the behaviour of a fresh
        // process.
        let folder = PathBuf::from(given);
        let mut reach = FileReach::default();
        reach.read_beside(&folder.join("in/file"));
        reach.write(folder.join("of"));
        assert!(Confinement::enter(reach.clone()).is_err(), "there are threads");
        let status = ruleset(&reach, &mut Vec::new()).unwrap().restrict_self().unwrap();
        let confined = Confinement { enforced: Enforced::of(&status), reach, _held: Vec::new() };
        if confined.enforced == Enforced::Not {
            return;
        }
        assert_eq!(fs::read_to_string(folder.join("in/file")).unwrap(), "x");
        fs::write(folder.join("in/file"), "y").unwrap_err();
        fs::write(folder.join("of/new"), "y").unwrap();
        fs::rename(folder.join("of/new"), folder.join("of/old")).unwrap();
        fs::remove_file(folder.join("of/old")).unwrap();
        fs::create_dir(folder.join("of/folder")).unwrap_err();
        assert!(Command::new("/bin/true").spawn().is_err(), "it starts no program");
        let path = folder.join("out/file");
        let said = confined.explain(&path, fs::read_to_string(&path).unwrap_err()).to_string();
        assert!(said.contains("/out (Landlock)") && said.contains("restart"), "{said}");
        let path = folder.join("in/none");
        let said = confined.explain(&path, fs::read_to_string(&path).unwrap_err());
        assert_eq!(said.kind(), io::ErrorKind::NotFound);
    }

    const INSIDE: &str = "CLOAKROOM_REACH";
}
