//! An SSH server (Dropbear) on the internet with one user, `git`, who logs in with a key, and the
//! files that OpenSSH's client needs to reach it.
//!
//! The server runs as that user, in a user namespace of its own, so that it behaves the same
//! whether or not the lab runs as root. Its user, its keys and its port exist only in the lab.

use std::{net::SocketAddr, process::Child};

use crate::{
    net::{INTERNET, Lab, sysctl},
    tools, wait,
};

/// A running server.
pub struct Ssh {
    server: Child,
}

impl Ssh {
    /// Starts it at these addresses.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(lab: &Lab, addresses: &[SocketAddr]) -> Self {
        let dropbear = tools::on_path(&["dropbear"]).or_else(|| {
            let usual = std::path::PathBuf::from("/usr/sbin/dropbear");
            usual.is_file().then_some(usual)
        });
        let dropbear = dropbear.expect("tests/prerequisites installs dropbear-bin");
        INTERNET.shell(KEYS);
        lab.write("ssh/passwd", "git:x:1000:1000::/run/lab/ssh/home:/bin/sh\n");
        // It is not root, and its port is below 1024.
        INTERNET.enter(|| sysctl("ipv4/ip_unprivileged_port_start", "0"));
        let ports: String = addresses.iter().map(|address| format!(" -p {address}")).collect();
        let line = format!(
            "mount --bind /run/lab/ssh/passwd /etc/passwd; exec unshare --user --map-user=1000 \
             --map-group=1000 {} -F -E -s -j -k -r /run/lab/ssh/host{ports} 2>/run/lab/ssh/log",
            dropbear.display()
        );
        let server = INTERNET.command("sh").args(["-c", &line]).spawn().expect("sh starts");
        for address in addresses {
            wait::expect("the SSH server listens", || INTERNET.connect(*address).is_ok());
        }
        Self { server }
    }

    /// Returns the command that git must run instead of `ssh`, so that this server and no other
    /// lets it in.
    pub fn client() -> &'static str {
        "ssh -F /dev/null -i /run/lab/ssh/key -o IdentitiesOnly=yes -o BatchMode=yes \
         -o StrictHostKeyChecking=yes -o UserKnownHostsFile=/run/lab/ssh/known -o CheckHostIP=no"
    }

    /// Returns its output so far.
    pub fn log() -> String {
        std::fs::read_to_string("/run/lab/ssh/log").unwrap_or_default()
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        // A server that has ended by itself needs no signal.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Makes the server's key, which is trusted under every name, and the user's.
const KEYS: &str = "set -e; umask 077; mkdir -p /run/lab/ssh/home/.ssh; cd /run/lab/ssh; \
    dropbearkey -t ed25519 -f host >/dev/null 2>&1; \
    dropbearkey -y -f host | sed -n 's/^ssh-ed25519/* &/p' >known; \
    ssh-keygen -q -t ed25519 -N '' -f key; cp key.pub home/.ssh/authorized_keys";
