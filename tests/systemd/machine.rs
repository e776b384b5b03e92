//! A machine that is booted: systemd is its first process, the shipped unit is installed, and its
//! network is that of the lab's gateway.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use lab::{
    Lab,
    client::Hello,
    gateway::{self, SECRETS},
    tools, wait,
};
use policy_builder::Config;

/// The machine. It ends with the sandbox.
pub struct Machine {
    _nspawn: Child,
    leader: u32,
    console: PathBuf,
}

impl Machine {
    /// Boots a Debian 13, with the guard loaded, the daemon's user created and the unit not yet
    /// started.
    pub fn boot(lab: &Lab) -> Self {
        gateway::guard();
        Self::switch_on(lab, &[]).booted()
    }

    /// Starts it with these files in it, each given by its path here and there, and does not wait.
    pub fn switch_on(lab: &Lab, files: &[(PathBuf, String)]) -> Self {
        let image = tools::repository().join("image");
        let etc = lab.dir.join("etc");
        fs::create_dir_all(&etc).expect("the lab's folder is writable");
        let units = UNITS.map(|name| (image.join(name), format!("/etc/systemd/system/{name}")));
        let program = (tools::cloakroom(), "/usr/bin/cloakroom".into());
        let user =
            (image.join("package/sysusers.conf"), "/usr/lib/sysusers.d/cloakroom.conf".into());
        let beside = (image.join(BESIDE), format!("/etc/systemd/system/{BESIDE}"));
        let shipped = units.into_iter().chain([program, user, beside]);
        let shipped = shipped.map(|(here, there)| bound("bind-ro", &here, &there));
        let own = [(etc, "/etc/cloakroom".to_owned())];
        let own = own.iter().chain(files).map(|(here, there)| bound("bind", here, there));
        Self::start(lab, &told("CLOAKROOM_MACHINE"), shipped.chain(own))
    }

    /// Boots a Debian with the program and these files of the router image, and does not wait. The
    /// options are for systemd-nspawn.
    pub fn as_router(
        lab: &Lab,
        files: &[(PathBuf, String)],
        options: impl Iterator<Item = String>,
    ) -> Self {
        let user = tools::repository().join("image/package/sysusers.conf");
        let own = [
            (tools::cloakroom(), "/usr/bin/cloakroom".to_owned()),
            (user, "/usr/lib/sysusers.d/cloakroom.conf".into()),
        ];
        let bound = own.iter().chain(files).map(|(here, there)| bound("bind-ro", here, there));
        Self::start(lab, &told("CLOAKROOM_MACHINE"), bound.chain(options))
    }

    /// Boots the Debian at `root` as it is, with this file of the host's in it, read-only.
    pub fn with(lab: &Lab, root: &str, (here, there): (&Path, &str)) -> Self {
        let etc = lab.dir.join("etc");
        fs::create_dir_all(&etc).expect("the lab's folder is writable");
        let files = [(here, there), (&*etc, "/mnt/etc")];
        let files = files.map(|(here, there)| bound("bind-ro", here, there));
        Self::start(lab, root, files).booted()
    }

    fn start(lab: &Lab, root: &str, files: impl IntoIterator<Item = String>) -> Self {
        let console = lab.dir.join("console.log");
        let log = fs::File::create(&console).expect("the lab's folder is writable");
        let nspawn = Command::new("systemd-nspawn")
            .args(["--quiet", "--boot", "--volatile=overlay", "--console=pipe"])
            .args(["--register=no", "--keep-unit", "--machine=gateway"])
            .args(["--resolv-conf=off", "--timezone=off", "--link-journal=no"])
            // System calls that the unit may use where there is no container around it. pidfd_getfd
            // stays filtered, as it is in every container of this kind.
            .arg("--system-call-filter=landlock_create_ruleset landlock_add_rule landlock_restrict_self")
            .arg("--network-namespace-path=/run/netns/gateway")
            .arg("--capability=CAP_NET_ADMIN")
            .arg(format!("--directory={root}"))
            .args(files)
            .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
            .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("systemd-nspawn starts");
        let leader = wait::until(wait::SOON, || child_of(nspawn.id()));
        let leader = leader.unwrap_or_else(|| panic!("{}", read(&console)));
        Self { _nspawn: nspawn, leader, console }
    }

    fn booted(self) -> Self {
        self.wait_until("it has booted", || self.says("systemctl is-system-running --wait"));
        self
    }

    /// Puts the configuration into `/etc/cloakroom`, with the files that it names and the issuing
    /// CAs, as `docs/operations.md` describes.
    pub fn install(&self, lab: &Lab, config: &Config) {
        put(lab, config);
        // A machine with a folder of its own gets a copy.
        self.run("[ ! -d /mnt/etc ] || cp /mnt/etc/* /etc/cloakroom/");
        self.run("cd /etc/cloakroom; chmod 0644 cloakroom.toml public-ca.pem");
        self.run("cd /etc/cloakroom; chown cloakroom secrets.toml; chmod 0600 secrets.toml");
        self.run("test -d /root/cloakroom-root || cloakroom ca init --dir /root/cloakroom-root");
        self.run("cloakroom ca issue --dir /root/cloakroom-root /etc/cloakroom/cloakroom.toml");
        let root = self.run("cloakroom ca show --dir /root/cloakroom-root");
        lab.write("agents.pem", [root, lab.public.pem().to_string()].concat());
    }

    /// Runs a shell command in it, and returns its output.
    #[track_caller]
    pub fn run(&self, command: &str) -> String {
        let output = self.command(command).output().expect("nsenter starts");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {said}{complained}{}", self.journal());
        said
    }

    /// Returns whether a shell command in it succeeds.
    pub fn says(&self, command: &str) -> bool {
        self.command(command).output().is_ok_and(|output| output.status.success())
    }

    /// Adds lines to the unit's `[Service]`, as an operator does.
    pub fn drop_in(&self, lines: &str) {
        let folder = "/run/systemd/system/cloakroom.service.d";
        self.run(&format!(
            "mkdir -p {folder}; printf '[Service]\n{lines}\n' > {folder}/test.conf; \
             systemctl daemon-reload"
        ));
    }

    /// Returns a shell in it.
    pub fn command(&self, command: &str) -> Command {
        let mut nsenter = Command::new("nsenter");
        let leader = self.leader.to_string();
        nsenter.args(["--target", &leader, "--mount", "--uts", "--ipc", "--net", "--pid"]);
        // nsenter's own `--wd` is a folder of the host.
        nsenter.args(["--root", "--", "sh", "-c", &format!("cd /; {command}")]);
        nsenter.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin");
        nsenter
    }

    /// Waits until the daemon is there, and returns how long that took.
    #[track_caller]
    pub fn wait_until(&self, what: &str, probe: impl FnMut() -> bool) -> Duration {
        let begun = std::time::Instant::now();
        let mut probe = probe;
        let came = wait::until(LONG, || probe().then_some(()));
        assert!(came.is_some(), "not {what}:\n{}{}", read(&self.console), self.journal());
        begun.elapsed()
    }

    /// Returns one property of the unit (`systemctl show`).
    #[track_caller]
    pub fn property(&self, name: &str) -> String {
        let shown = self.run(&format!("systemctl show --value -p {name} cloakroom"));
        shown.trim().to_owned()
    }

    /// Returns the state of another unit in systemd's word; an empty text while systemd restarts.
    pub fn state(&self, unit: &str) -> String {
        let shown = self.command(&format!("systemctl show --value -p ActiveState {unit}")).output();
        let shown = shown.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        shown.unwrap_or_default()
    }

    /// Returns the unit's log.
    pub fn journal(&self) -> String {
        self.journal_of("-u cloakroom")
    }

    /// Returns the journal's output for these arguments of journalctl.
    pub fn journal_of(&self, arguments: &str) -> String {
        let output = self.command(&format!("journalctl --no-pager -o cat {arguments}")).output();
        output.map_or_else(
            |error| error.to_string(),
            |it| String::from_utf8_lossy(&it.stdout).into_owned(),
        )
    }
}

/// Writes the configuration and the files that it names, as a person does who makes a disk for the
/// machine.
pub fn put(lab: &Lab, config: &Config) {
    let etc = lab.dir.join("etc");
    fs::create_dir_all(&etc).expect("the lab's folder is writable");
    let secrets = ["openai", "anthropic", "git", "ops"].iter().zip(SECRETS);
    let secrets: String = secrets.map(|(name, value)| format!("{name} = {value}\n")).collect();
    fs::write(etc.join("secrets.toml"), secrets).expect("writable");
    fs::copy(lab.public_ca(), etc.join("public-ca.pem")).expect("writable");
    fs::write(etc.join("cloakroom.toml"), config.to_string()).expect("writable");
    let modes = [("", 0o755), ("secrets.toml", 0o600), ("public-ca.pem", 0o644)];
    for (name, mode) in modes.into_iter().chain([("cloakroom.toml", 0o644)]) {
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(etc.join(name), mode).expect("ours");
    }
}

/// Returns the value of a variable that `make test-systemd` sets.
///
/// # Panics
/// When it is not set.
pub fn told(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("`make test-systemd` says {variable}"))
}

fn bound(how: &str, here: &Path, there: &str) -> String {
    format!("--{how}={}:{there}", here.display())
}

/// Returns the usual policy with the reference's defaults for all folders.
pub fn config() -> Config {
    gateway::with_default_folders(gateway::usual_config())
}

/// Returns a client that trusts the CAs that agents trust.
pub fn hello(lab: &Lab, name: &str) -> Hello {
    let pem = fs::read_to_string(lab.dir.join("agents.pem")).expect("it was made");
    Hello::h1(name).trusting(&pem)
}

fn child_of(process: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).ok()?;
    let leader = children.split_whitespace().next()?.parse().ok()?;
    let is_systemd = |name: String| name.trim() == "systemd";
    fs::read_to_string(format!("/proc/{leader}/comm")).is_ok_and(is_systemd).then_some(leader)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

pub const UNITS: [&str; 4] =
    ["cloakroom-guard.service", "cloakroom.service", "cloakroom-ca.service", "cloakroom-ca.timer"];
/// The package's addition to a unit of Debian's.
const BESIDE: &str = "nftables.service.d/cloakroom-guard.conf";
/// Longest time of a boot, on a busy machine.
const LONG: Duration = Duration::from_secs(60);
