//! The lab's tools on the machine: the built program, the repository, caches; and signals.

use std::{
    path::{Path, PathBuf},
    process::Child,
};

use rustix::process::{Pid, Signal, kill_process};

/// Returns the program under test: `CLOAKROOM_BIN`, or the one that cargo put beside this test
/// binary.
///
/// # Panics
/// When it has not been built.
pub fn cloakroom() -> PathBuf {
    let found = std::env::var_os("CLOAKROOM_BIN").map_or_else(beside_this, PathBuf::from);
    assert!(found.is_file(), "{} is missing: run `cargo build -p cloakroom`", found.display());
    found
}

/// Returns the repository's root.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// Returns the folder of downloads and builds that outlive `cargo clean`; the scripts in `tests/`
/// use the same rule.
pub fn cache() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("CLOAKROOM_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("cloakroom")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/cloakroom")))
        .unwrap_or_else(|| PathBuf::from("/var/cache/cloakroom"))
}

/// Returns the first of `names` that is on `PATH`.
pub fn on_path(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    names.iter().find_map(|name| {
        folders.iter().map(|folder| folder.join(name)).find(|candidate| candidate.is_file())
    })
}

/// Sends a signal to a process that this test started; nothing happens if it has ended.
pub fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        let _ = kill_process(pid, signal);
    }
}

/// Returns the folder of the program: test binaries live in `target/PROFILE/deps`, the program in
/// `target/PROFILE`.
fn beside_this() -> PathBuf {
    let me = std::env::current_exe().unwrap_or_default();
    let profile = me.ancestors().find(|folder| !folder.ends_with("deps") && folder.is_dir());
    profile.unwrap_or(Path::new(".")).join("cloakroom")
}
