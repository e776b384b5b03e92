//! The files that the daemon needs once it is up: those that its configuration names, and those
//! that the system keeps for every program.

use std::path::{Path, PathBuf};

use crate::{
    config::{AuditTarget, SecretFile, Settings, VaultSettings},
    harden::FileReach,
};

/// Returns the folders that the daemon needs. `named` are the configuration and the files that it
/// was read with; `ready_file` is not written yet.
pub(super) fn reach(
    settings: &Settings,
    named: &[PathBuf],
    ready_file: Option<&Path>,
) -> FileReach {
    let mut reach = FileReach::default();
    SYSTEM.iter().for_each(|folder| reach.read(*folder));
    SWITCHES.iter().for_each(|folder| reach.write(*folder));
    named.iter().for_each(|file| reach.read_beside(file));
    reach.read(&settings.ca_dir);
    reach.write(&settings.state_dir);
    reach.write_beside(&settings.control);
    if let AuditTarget::File(file) = &settings.audit {
        reach.write_beside(&file.path);
    }
    if let Some(SecretFile { path, key }) = &settings.secret_file {
        reach.read_beside(path);
        key.iter().for_each(|key| reach.read_beside(key));
    }
    settings.vault.iter().for_each(|vault| of_vault(&mut reach, vault));
    ready_file.iter().for_each(|file| reach.write_beside(file));
    reach
}

fn of_vault(reach: &mut FileReach, vault: &VaultSettings) {
    vault.login.files().for_each(|file| reach.read_beside(file));
    if let Some(pki) = &vault.pki {
        reach.read_beside(&pki.root_file);
    }
}

/// The files that the C library reads to resolve a name, with its modules; the CAs that the system
/// trusts; and the files in which the kernel shows its state. All of that is public, and
/// permissions of files hold beside Landlock.
const SYSTEM: [&str; 9] = [
    "/etc",
    "/run/systemd/resolve",
    "/usr/lib",
    "/lib",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/proc",
    "/sys/class/net",
    "/sys/devices/virtual/net",
];

/// The kernel settings that the daemon checks and repairs.
const SWITCHES: [&str; 1] = ["/proc/sys/net"];
