//! An SSH server (Dropbear) on the internet with one user, `git`, who is let in by a key, and what
//! OpenSSH's client needs to reach it.
//!
//! It runs as that user, in a user namespace of its own, so that it is the same whether the lab
//! runs as root or not. Its user, its keys and its port are nobody's outside of the lab.

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

    /// What git has to run in place of `ssh`, to be let in by the server and by no other.
    pub fn client() -> &'static str {
        "ssh -F /dev/null -i /run/lab/ssh/key -o IdentitiesOnly=yes -o BatchMode=yes \
         -o StrictHostKeyChecking=yes -o UserKnownHostsFile=/run/lab/ssh/known -o CheckHostIP=no"
    }

    /// What it wrote so far.
    pub fn log() -> String {
        std::fs::read_to_string("/run/lab/ssh/log").unwrap_or_default()
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        // Nothing is left to do where it has ended by itself.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The server's key, believed under every name, and the user's.
const KEYS: &str = "set -e; umask 077; mkdir -p /run/lab/ssh/home/.ssh; cd /run/lab/ssh; \
    dropbearkey -t ed25519 -f host >/dev/null 2>&1; \
    dropbearkey -y -f host | sed -n 's/^ssh-ed25519/* &/p' >known; \
    ssh-keygen -q -t ed25519 -N '' -f key; cp key.pub home/.ssh/authorized_keys";
