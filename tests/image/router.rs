//! The built image, booted: its disk runs under QEMU, and its cards are plugged into the lab's
//! links instead of the lab's own gateway.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use lab::{Lab, gateway::SECRETS, net::GATEWAY, tools, wait};
use policy_builder::Config;

/// The disk from which a router is booted.
pub struct Disk {
    lab: PathBuf,
}

/// A router that runs, in one QEMU after another: each reboot gets a fresh one, because the code
/// that QEMU has translated for one boot makes the next one in it minutes slower.
pub struct Router {
    on: Arc<AtomicBool>,
    runs: Option<JoinHandle<()>>,
    folder: PathBuf,
}

/// The cards: the trunk with the agents' VLANs, and the uplink.
const PORTS: [&str; 3] = ["trunk:10:agents0", "trunk:20:agents1", "wan:0:wan0"];
const TRUNK_MAC: &str = "02:00:00:00:01:01";
const WAN_MAC: &str = "02:00:00:00:01:02";
/// The same as bytes in a frame.
pub const WAN_ADDRESS: [u8; 6] = [2, 0, 0, 0, 1, 2];

/// The network in systemd-networkd's files: names by card, two VLANs, a static uplink.
const NETWORK: [(&str, &str); 7] = [
    ("trunk.link", "[Match]\nMACAddress=02:00:00:00:01:01\nType=ether\n[Link]\nName=trunk0\n"),
    ("wan.link", "[Match]\nMACAddress=02:00:00:00:01:02\n[Link]\nName=wan0\n"),
    (
        "trunk.network",
        "[Match]\nName=trunk0\n[Network]\nVLAN=agents0\nVLAN=agents1\nLinkLocalAddressing=no\n",
    ),
    ("agents0.netdev", "[NetDev]\nName=agents0\nKind=vlan\n[VLAN]\nId=10\n"),
    ("agents1.netdev", "[NetDev]\nName=agents1\nKind=vlan\n[VLAN]\nId=20\n"),
    (
        "agents.network",
        "[Match]\nName=agents0\n[Network]\nIPv6AcceptRA=no\nAddress=192.0.2.1/25\nAddress=2001:db8:a::1/64\n",
    ),
    (
        "wan.network",
        "[Match]\nName=wan0\n[Network]\nAddress=203.0.113.2/24\nAddress=2001:db8:f::2/64\n\
         Gateway=203.0.113.1\nGateway=2001:db8:f::1\nIPv6AcceptRA=no\n",
    ),
];
const SECOND: (&str, &str) = (
    "agents1.network",
    "[Match]\nName=agents1\n[Network]\nIPv6AcceptRA=no\nAddress=192.0.2.129/25\nAddress=2001:db8:b::1/64\n",
);

/// Returns the files of a router of the lab, with this as its `cloakroom.toml`.
pub fn files(lab: &Lab, config: &Config) -> Vec<(String, String)> {
    let secrets = ["openai", "anthropic", "git", "ops"].iter().zip(SECRETS);
    let secrets: String = secrets.map(|(name, value)| format!("{name} = {value}\n")).collect();
    let mut files: Vec<(String, String)> = NETWORK
        .iter()
        .chain([&SECOND])
        .map(|(name, text)| ((*name).into(), (*text).into()))
        .collect();
    files.push(("cloakroom.toml".into(), config.to_string()));
    files.push(("secrets.toml".into(), secrets));
    files.push(("public-ca.pem".into(), lab.public.pem().into()));
    files
}

/// The properties of a machine: the accelerator, the processor, and the number of processors.
type Machine = (&'static str, &'static str, &'static str);

/// Returns KVM where it runs a machine. Otherwise, or if `CLOAKROOM_EMULATED` is set, returns
/// emulation with one processor: now and then a kernel that patches itself fails on QEMU's second
/// one.
fn accelerator() -> Machine {
    static CHOSEN: LazyLock<Machine> = LazyLock::new(|| {
        let probe = || Command::new(tools::repository().join("tests/kvm")).status();
        let runs = std::env::var_os("CLOAKROOM_EMULATED").is_none()
            && probe().expect("the probe starts").success();
        println!("booted {}", if runs { "with KVM" } else { "under emulation" });
        if runs { ("kvm", "host,-arch-capabilities", "2") } else { ("tcg", "max", "1") }
    });
    *CHOSEN
}

/// Returns the folder of the image.
pub fn image() -> PathBuf {
    let folder = tools::repository().join("target/image");
    std::env::var_os("CLOAKROOM_IMAGE").map_or(folder, PathBuf::from)
}

/// Returns the files in this folder whose names end so.
pub fn artefacts(folder: &Path, end: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("`make test-image` made it");
    let paths = entries.flatten().map(|entry| entry.path());
    let mut paths: Vec<_> = paths.filter(|path| path.to_string_lossy().ends_with(end)).collect();
    paths.sort();
    paths
}

impl Disk {
    /// Creates a disk above the built image, and the firmware's memory.
    pub fn new(lab: &Lab) -> Self {
        let base = artefacts(&image(), ".qcow2").pop().expect("`make image` made a disk");
        let disk = Self { lab: lab.dir.clone() };
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
            .args([&base, &disk.path("disk.qcow2")])
            .status();
        assert!(made.expect("qemu-img starts").success());
        fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", disk.path("firmware.fd")).expect("copied");
        disk
    }

    /// Puts the configuration on a FAT disk, as a person would.
    pub fn configure(&self, files: &[(String, String)]) {
        self.configure_as("CLOAKROOM", files);
    }

    /// Does the same on a disk with this label.
    pub fn configure_as(&self, label: &str, files: &[(String, String)]) {
        let medium = self.path("config.img");
        let folder = self.path("config");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("writable");
        fs::write(&medium, vec![0; 4 << 20]).expect("writable");
        let made = Command::new("/usr/sbin/mkfs.vfat")
            .args(["-n", label])
            .arg(&medium)
            .stdout(Stdio::null())
            .status();
        assert!(made.expect("mkfs.vfat starts").success());
        for (name, text) in files {
            fs::write(folder.join(name), text).expect("writable");
            let copied = Command::new("mcopy")
                .arg("-i")
                .args([&medium, &folder.join(name)])
                .arg(format!("::{name}"))
                .status();
            assert!(copied.expect("mcopy starts").success(), "{name}");
        }
    }

    /// Gives the machine a TPM2 that knows nothing yet.
    pub fn new_tpm(&self) {
        let _ = fs::remove_dir_all(self.path(TPM));
        fs::create_dir_all(self.path(TPM)).expect("writable");
    }

    /// Whether this text is on the disk for whoever carries it away.
    pub fn holds(&self, text: &str) -> bool {
        let (disk, raw) = (self.path("disk.qcow2"), self.path("disk.raw"));
        let converted =
            Command::new("qemu-img").args(["convert", "-O", "raw"]).args([&disk, &raw]).status();
        assert!(converted.expect("qemu-img starts").success());
        let found = Command::new("grep").args(["-aqF", text]).arg(&raw).status();
        match found.expect("grep starts").code() {
            Some(0) => true,
            Some(1) => false,
            other => panic!("grep ended with {other:?}"),
        }
    }

    /// Switches the machine on.
    pub fn boot(&self) -> Router {
        let _ = fs::remove_file(self.path("console.log"));
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-action", "reboot=shutdown"]);
        let (accelerator, processor, count) = accelerator();
        qemu.args(["-machine", "q35", "-accel", accelerator, "-cpu", processor, "-smp", count]);
        qemu.args(["-m", "1024", "-nodefaults", "-display", "none", "-no-user-config"]);
        let code = "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd";
        let vars = format!("if=pflash,format=raw,file={}", self.path("firmware.fd").display());
        let disk = format!(
            "if=virtio,format=qcow2,cache=unsafe,file={}",
            self.path("disk.qcow2").display()
        );
        qemu.args(["-drive", code, "-drive", &vars, "-drive", &disk]);
        let medium = self.path("config.img");
        if medium.exists() {
            let medium = format!("if=virtio,format=raw,readonly=on,file={}", medium.display());
            qemu.args(["-drive", &medium]);
        }
        for (nic, mac) in [("trunk", TRUNK_MAC), ("wan", WAN_MAC)] {
            let (local, remote) = (self.path(nic), self.path(nic));
            let wire = format!(
                "dgram,id={nic},local.type=unix,local.path={}.router,remote.type=unix,remote.path={}.switch",
                local.display(),
                remote.display()
            );
            qemu.args(["-netdev", &wire]);
            qemu.args(["-device", &format!("virtio-net-pci,netdev={nic},mac={mac}")]);
        }
        if self.path(TPM).exists() {
            let socket = format!("socket,id=tpm,path={}", tpm_socket(&self.lab).display());
            qemu.args(["-chardev", &socket, "-tpmdev", "emulator,id=tpm0,chardev=tpm"]);
            qemu.args(["-device", "tpm-crb,tpmdev=tpm0"]);
        }
        // The firmware gives the machine its id, under which the journal is kept.
        qemu.args(["-uuid", "3d0b0c3e-7a54-4d3a-9f52-6d1f6d2b8f11", "-device", "virtio-rng-pci"]);
        let log = format!("file,id=log,append=on,path={}", self.path("console.log").display());
        let shell = format!("unix:{},server=on,wait=off", self.path("shell").display());
        qemu.args(["-chardev", &log, "-serial", "chardev:log", "-serial", &shell]);
        // A shell for the test: whoever controls the firmware's strings controls the machine.
        let way_in = format!(
            "type=11,value=io.systemd.stub.kernel-cmdline-extra=systemd.debug_shell=ttyS1 \
             systemd.default_device_timeout_sec={}",
            patience().as_secs()
        );
        qemu.args(["-smbios", &way_in]);
        qemu.stdin(Stdio::null());
        let on = Arc::new(AtomicBool::new(true));
        let runs = thread::spawn({
            let (on, folder) = (on.clone(), self.lab.clone());
            move || {
                while on.load(Ordering::Relaxed) {
                    run(&mut qemu, &folder, &on);
                }
            }
        });
        Router { on, runs: Some(runs), folder: self.lab.clone() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.lab.join(name)
    }
}

impl Router {
    /// Returns the output of the serial console so far.
    pub fn console(&self) -> String {
        read(&self.folder.join("console.log"))
    }

    /// Waits until the console shows this text.
    #[track_caller]
    pub fn wait_console(&self, text: &str) {
        let shown = wait::until(patience(), || self.console().contains(text).then_some(()));
        assert!(shown.is_some(), "no {text:?} on the console:\n{}", self.console());
    }

    /// Returns how often a kernel has been started since the machine was switched on.
    pub fn boots(&self) -> usize {
        self.console().matches("Linux version ").count()
    }

    /// Waits until a kernel has been started so often.
    #[track_caller]
    pub fn wait_boots(&self, count: usize) {
        let started = wait::until(BOOTS * patience(), || {
            thread::sleep(wait::QUIET);
            (self.boots() >= count).then_some(())
        });
        assert!(started.is_some(), "{} boots:\n{}", self.boots(), self.console());
        assert_eq!(self.boots(), count);
    }

    /// Runs a command as root in it, and returns its output.
    #[track_caller]
    pub fn run(&self, command: &str) -> String {
        self.try_run(command).unwrap_or_else(|| panic!("{command}: no answer\n{}", self.console()))
    }

    /// Does the same as [`Router::run`] where there may not be a shell yet.
    pub fn try_run(&self, command: &str) -> Option<String> {
        thread::sleep(PAUSE);
        let mut shell = UnixStream::connect(self.folder.join("shell")).ok()?;
        shell.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
        // Unread output of an earlier command, and the prompt, come before the first mark.
        let line = format!(
            "\nstty -echo; export SYSTEMD_COLORS=0 SYSTEMD_PAGER=cat; echo BEGI''N; {command}; echo EN''D\n"
        );
        shell.write_all(line.as_bytes()).ok()?;
        let mut said = String::new();
        let mut lines = BufReader::new(shell).take(1 << 20);
        let mut begun = false;
        loop {
            let mut line = Vec::new();
            if lines.read_until(b'\n', &mut line).ok()? == 0 {
                return None;
            }
            let line = String::from_utf8_lossy(&line).replace('\r', "");
            match line.trim_end() {
                text if text.ends_with("BEGIN") => begun = true,
                text if begun && text.ends_with("END") => return Some(said),
                _ if begun => said.push_str(&line),
                _ => {}
            }
        }
    }

    /// Waits until the daemon is ready.
    #[track_caller]
    pub fn wait_ready(&self) {
        let ready = wait::until(patience(), || {
            self.try_run("systemctl is-active cloakroom").filter(|it| it.trim() == "active")
        });
        assert!(
            ready.is_some(),
            "not ready:\n{}\n{}",
            self.try_run(
                "journalctl --no-pager -b -o cat -u 'cloakroom*' -u systemd-networkd | tail -n 60"
            )
            .unwrap_or_default(),
            self.console()
        );
    }

    /// Pulls the plug.
    pub fn cut(self) {}
}

impl Drop for Router {
    fn drop(&mut self) {
        self.on.store(false, Ordering::Relaxed);
        let _ = self.runs.take().map(JoinHandle::join);
    }
}

/// Runs one QEMU until the machine reboots or is cut.
fn run(qemu: &mut Command, folder: &Path, on: &AtomicBool) {
    // The sockets of the QEMU before.
    for name in ["trunk.router", "wan.router", "shell"] {
        let _ = fs::remove_file(folder.join(name));
    }
    let _tpm = folder.join(TPM).exists().then(|| power_tpm(folder));
    let mut qemu = qemu.spawn().expect("qemu starts");
    while on.load(Ordering::Relaxed) {
        if let Some(status) = qemu.try_wait().expect("it was started") {
            assert!(status.success(), "QEMU ended with {status}");
            return;
        }
        thread::sleep(wait::QUIET);
    }
    let _ = qemu.kill();
    let _ = qemu.wait();
}

/// The machine's TPM2, which ends with the QEMU that it is of. Its state stays in its folder.
fn power_tpm(folder: &Path) -> Child {
    let socket = tpm_socket(folder);
    let _ = fs::remove_file(&socket);
    let tpm = Command::new("swtpm")
        .args(["socket", "--tpm2", "--terminate", "--flags", "startup-clear", "--tpmstate"])
        .arg(format!("dir={}", folder.join(TPM).display()))
        .args(["--ctrl", &format!("type=unixio,path={}", socket.display())])
        .spawn()
        .expect("swtpm starts");
    wait::until(patience(), || socket.exists().then_some(())).expect("it listens");
    tpm
}

fn tpm_socket(folder: &Path) -> PathBuf {
    folder.join("tpm.socket")
}

/// The folder of what a TPM keeps.
const TPM: &str = "tpm";

/// The switch into which the router's cards are plugged. It ends with the sandbox.
pub struct Switch {
    _python: Child,
}

/// Plugs the lab's links into the router's cards, instead of the lab's own gateway.
pub fn plug(lab: &Lab) -> Switch {
    // The lab's gateway is now a switch: it has no address, and its kernel does nothing with
    // packets.
    GATEWAY.shell("for it in agents0 agents1 wan0; do ip addr flush dev $it; done");
    GATEWAY.shell(
        "for it in agents0 agents1 wan0; do sysctl -qw net.ipv6.conf.$it.disable_ipv6=1; done",
    );
    GATEWAY.shell("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0");
    for (ns, link) in [
        ("agent", "eth0"),
        ("agent2", "eth0"),
        ("internet", "wan0"),
        ("gateway", "agents0"),
        ("gateway", "agents1"),
        ("gateway", "wan0"),
    ] {
        let off = Command::new("ip")
            .args(["netns", "exec", ns, "/usr/sbin/ethtool", "-K", link])
            .args(["tx", "off", "tso", "off", "gso", "off", "gro", "off"])
            .stdout(Stdio::null())
            .status();
        assert!(off.expect("ip starts").success(), "{ns} {link}");
    }
    let script = tools::repository().join("tests/image/switch.py");
    let mut switch = GATEWAY.command("python3");
    let mut switch = switch
        .arg(script)
        .arg(&lab.dir)
        .args(PORTS)
        .stdout(Stdio::piped())
        .spawn()
        .expect("python starts");
    let mut line = String::new();
    let output = switch.stdout.take().expect("it was piped");
    BufReader::new(output).read_line(&mut line).expect("it says so");
    assert_eq!(line.trim(), "plugged");
    Switch { _python: switch }
}

fn read(path: &Path) -> String {
    fs::read(path).map_or_else(|_| String::new(), |it| String::from_utf8_lossy(&it).into_owned())
}

/// Pause before each command in a router: a test that waits repeats its commands, and leaves the
/// router time for its work.
const PAUSE: Duration = Duration::from_secs(1);

/// Returns the longest time of a boot, or of a step that takes as long. Only a failure uses all of
/// it.
pub fn patience() -> Duration {
    let (accelerator, ..) = accelerator();
    if accelerator == "kvm" { BOOT } else { BOOT * EMULATED }
}

/// Longest time of a boot. systemd waits as long for a device.
const BOOT: Duration = Duration::from_secs(90);

/// Factor of that time under emulation, on a machine that does other work too.
const EMULATED: u32 = 13;

/// Most boots in a row that a step waits for: the attempts of a version, and the one before it.
const BOOTS: u32 = 4;
