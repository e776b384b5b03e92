//! Updates: those that a router accepts, and the fallback without a person's help.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use lab::{
    Lab,
    client::{Hello, Tls},
    dns::Dns,
    net::{AGENT, DNS, INTERNET, PYPI},
    origin::Origin,
    sandbox, tools, wait,
};

use crate::{
    config,
    router::{Disk, Router, Switch, artefacts, files, image, patience, plug},
};

#[test]
fn what_is_signed_and_well_is_kept() {
    sandbox::sandboxed_for(5 * patience(), || {
        let scene = Scene::begin();
        let (router, shop) = (&scene.router, &scene.shop);
        confined(router);
        // A root that was damaged before it is written, whoever has signed it; and a list that
        // nobody has signed.
        shop.offer(&other(), &scene.next, |_| {});
        shop.damage();
        shop.sign();
        let said = update(router);
        assert!(said.contains("is not what its root hash says"), "{said}");
        let there = router.run("ls /boot/EFI/Linux");
        assert!(!there.contains(&scene.next), "{there}");
        shop.offer(&other(), &scene.next, |_| {});
        shop.forge();
        let said = update(router);
        assert!(said.contains("is not signed by update.gpg"), "{said}");
        shop.sign();
        start_update(router);
        router.wait_boots(2);
        router.wait_ready();
        assert_eq!(running(router), scene.next);
        let kept = format!("cloakroom_{}.efi", scene.next);
        wait::until(patience(), || kernels(router).filter(|it| it.contains(&kept)))
            .expect("it is blessed");
        router.wait_console(&format!("version {} in slot B", scene.next));
        router.wait_console(&format!("version {} is kept beside it", scene.first));
        let status = router.run("cloakroom status");
        assert!(status.contains(&format!("version {} is kept", scene.first)), "{status}");
        let public = Hello::h1(PYPI.name).trusting(scene.lab.public.pem());
        wait::until(patience(), || Tls::open(AGENT, PYPI.port(443), &public).ok())
            .expect("spliced");
    });
}

#[test]
fn one_whose_daemon_cannot_start_is_fallen_back_from() {
    sandbox::sandboxed_for(8 * patience(), || {
        let scene = Scene::begin();
        let (router, shop, bad) = (&scene.router, &scene.shop, &scene.bad);
        shop.offer(&other(), bad, |kernel| tell(kernel, "systemd.mask=cloakroom"));
        shop.sign();
        start_update(router);
        scene.falls_back();
        let journal = router.run("journalctl --no-pager -o cat -u cloakroom-well");
        assert_eq!(journal.matches("there is no daemon to start").count(), TRIES, "{journal}");
        let said = update(router);
        assert!(said.contains("nothing at"), "{said}");
    });
}

#[test]
fn a_damaged_root_or_initrd_is_fallen_back_from() {
    sandbox::sandboxed_for(6 * patience(), || {
        let scene = Scene::begin();
        let (router, shop, bad, first) = (&scene.router, &scene.shop, &scene.bad, &scene.first);
        // The update is written, but cannot be started yet.
        router.run("systemctl mask --runtime reboot.target");
        shop.offer(&other(), bad, |_| {});
        shop.sign();
        let said = update(router);
        assert!(said.contains(&format!("{bad} is written")), "{said}");

        // Before the last attempt of this version a byte of its root flips. Before that comes
        // another version, whose root cannot be mounted.
        let stops = newest(first);
        router.run(&format!(
            "printf x | dd of=/dev/disk/by-partlabel/cloakroom_{bad} bs=1 seek=1024 conv=notrunc; \
             cd /boot/EFI/Linux; mv cloakroom_{bad}+3-0.efi cloakroom_{bad}+1-2.efi; export LC_ALL=C; \
             sed 's/systemd.verity_root_options=restart-on-corruption/{word:49}/; \
             s/IMAGE_VERSION=\\(\"*\\)./IMAGE_VERSION=\\19/' cloakroom_{first}.efi >new; \
             mv new cloakroom_{stops}+1-2.efi; sync; \
             systemctl unmask --runtime reboot.target; systemctl --no-block reboot",
            word = "rootfstype=vfat",
        ));
        router.wait_boots(1 + 2 + 1);
        router.wait_ready();
        assert_eq!(running(router), *first);
        assert_eq!(router.boots(), 1 + 2 + 1);
        let there = router.run("ls /boot/EFI/Linux");
        for version in [bad, &stops] {
            assert!(there.contains(&format!("cloakroom_{version}+0-3.efi")), "{there}");
            router.wait_console(&format!("version {version} FAILED"));
        }
        let console = router.console();
        assert_eq!(console.matches("this slot cannot be started").count(), 1, "{console}");
        let journal = router.run("cat /boot/initrd-that-failed.log");
        assert!(journal.contains("rootfstype=vfat"), "{journal}");
        assert!(journal.contains("Failed to mount"), "{journal}");
        let hash = router.run(&format!(
            "grep -ao 'roothash=[0-9a-f]*' /boot/EFI/Linux/cloakroom_{bad}+0-3.efi | tail -n 1"
        ));
        let journal = router.run("cat /boot/initrd-that-began.log");
        assert!(hash.len() > 64 && journal.contains(hash.trim()), "{hash} {journal}");
    });
}

/// A router that accepts updates signed with its operator's key from a server on its uplink.
struct Scene {
    router: Router,
    shop: Shop,
    /// The versions of the image, of the one that was built above it, and one above both.
    first: String,
    next: String,
    bad: String,
    _parts: (Origin, Dns, Switch),
    lab: Lab,
}

impl Scene {
    fn begin() -> Self {
        let lab = Lab::new();
        let parts = (Origin::start(&lab), Dns::start(), plug(&lab));
        let shop = Shop::open(&lab);
        let mut given = files(&lab, &config());
        given.push(("update.url".into(), format!("http://{DNS}:8000/\n")));
        given.push(("update.gpg".into(), shop.key()));
        let disk = Disk::new(&lab);
        disk.configure(&given);
        let router = disk.boot();
        router.wait_ready();
        let next = version(&other());
        let bad = newest(&next);
        Self { router, shop, first: version(&image()), next, bad, _parts: parts, lab }
    }

    /// Waits until the bad version was tried three times, and the first one is back and reports it.
    fn falls_back(&self) {
        let Self { router, bad, first, .. } = self;
        router.wait_boots(1 + TRIES + 1);
        router.wait_ready();
        assert_eq!(running(router), *first);
        let failed = format!("cloakroom_{bad}+0-{TRIES}.efi");
        let there = router.run("ls /boot/EFI/Linux");
        assert!(there.contains(&failed), "{there}");
        router.wait_console(&format!("version {bad} FAILED"));
        let status = router.run("cloakroom status");
        assert!(status.contains(&format!("version {bad} FAILED")), "{status}");
        assert_eq!(router.boots(), 1 + TRIES + 1);
    }
}

/// The value of `TriesLeft=` in the kernel's transfer.
const TRIES: usize = 3;

/// Checks the daemon's rights and restrictions, as the image's systemd reports them.
fn confined(router: &Router) {
    let rated = router.run("systemd-analyze security --no-pager cloakroom.service | tail -n 1");
    let exposure = rated.split_whitespace().find_map(|word| word.parse::<f32>().ok());
    assert!(exposure.is_some_and(|it| it <= 2.0), "{rated}");
    let sets = router.run(
        "cat /sys/fs/cgroup/system.slice/cloakroom.service/cgroup.procs | \
         while read it; do grep ^Cap /proc/$it/status; done",
    );
    // CAP_NET_BIND_SERVICE is 10 and CAP_NET_ADMIN is 12.
    let all: u64 = 1 << 10 | 1 << 12;
    let mut seen = 0;
    for line in sets.lines() {
        let (name, set) = line.split_once(':').expect("a line of /proc/PID/status");
        let set = u64::from_str_radix(set.trim(), 16).expect("a number");
        seen |= if name == "CapEff" { set } else { 0 };
        assert_eq!(set & !all, 0, "{sets}");
    }
    assert_eq!(seen, all, "{sets}");
}

/// Returns the version that runs, as its root says.
pub fn running(router: &Router) -> String {
    let text = router.run("sed -n 's/^IMAGE_VERSION=//p' /usr/lib/os-release");
    text.trim().trim_matches('"').to_owned()
}

fn kernels(router: &Router) -> Option<String> {
    router.try_run("ls /boot/EFI/Linux")
}

fn start_update(router: &Router) {
    router.run("systemctl start --no-block cloakroom-update");
}

/// Makes it look for an update that it must not start, and returns its output.
fn update(router: &Router) -> String {
    let boots = router.boots();
    start_update(router);
    let ended = || {
        let state = router.try_run("systemctl show -P ActiveState cloakroom-update")?;
        ["inactive", "failed"].contains(&state.trim()).then_some(())
    };
    wait::until(patience(), ended).expect("it ends");
    assert_eq!(router.boots(), boots);
    router.run("journalctl --no-pager -b -o cat -u cloakroom-update | tail -n 40")
}

/// Returns the folder of the other version.
fn other() -> PathBuf {
    let folder = tools::repository().join("target/image-next");
    std::env::var_os("CLOAKROOM_NEXT").map_or(folder, PathBuf::from)
}

fn version(folder: &Path) -> String {
    let kernels = artefacts(&folder.join("update"), ".efi.gz");
    let name = kernels[0].file_name().and_then(|name| name.to_str()).expect("UTF-8");
    name.trim_start_matches("cloakroom_").trim_end_matches(".efi.gz").to_owned()
}

/// The server of updates on the uplink: a folder served over HTTP, and the operator's key.
struct Shop {
    folder: PathBuf,
    keys: PathBuf,
    _server: Child,
}

impl Shop {
    fn open(lab: &Lab) -> Self {
        let folder = lab.dir.join("shop");
        let keys = lab.dir.join("keys");
        fs::create_dir_all(&folder).expect("writable");
        fs::create_dir_all(&keys).expect("writable");
        shell(&format!("chmod 700 {}", keys.display()));
        let server = INTERNET
            .command("python3")
            .args(["-m", "http.server", "8000", "--bind", &DNS.to_string(), "--directory"])
            .arg(&folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("python starts");
        let shop = Self { folder, keys, _server: server };
        shop.gpg("--quiet --passphrase '' --quick-gen-key update@example.org ed25519 sign never");
        shop
    }

    /// Returns the public key in the form in which people send it.
    fn key(&self) -> String {
        self.gpg("--armor --export")
    }

    fn gpg(&self, arguments: &str) -> String {
        shell(&format!("gpg --homedir {} --batch {arguments}", self.keys.display()))
    }

    /// Offers this image by this name, with its kernel changed; nothing is signed yet.
    fn offer(&self, image: &Path, version: &str, change: fn(&mut [u8])) {
        let _ = fs::remove_dir_all(&self.folder);
        fs::create_dir_all(&self.folder).expect("writable");
        let from = image.join("update");
        for file in artefacts(&from, ".raw.gz") {
            let name = file.file_name().and_then(|name| name.to_str()).expect("UTF-8");
            let rest = name.find(".root.").or_else(|| name.find(".verity.")).expect("a partition");
            symlink(&file, self.folder.join(format!("cloakroom_{version}{}", &name[rest..])))
                .expect("writable");
        }
        let kernel = artefacts(&from, ".efi.gz").remove(0);
        let mut plain = Command::new("gzip").arg("-dc").arg(kernel).output().expect("gzip starts");
        let plain_path = self.folder.join(format!("cloakroom_{version}.efi"));
        change(&mut plain.stdout);
        fs::write(&plain_path, plain.stdout).expect("writable");
        shell(&format!("gzip -1 {}", plain_path.display()));
    }

    /// Flips a byte in the middle of the root.
    fn damage(&self) {
        let mut parts = artefacts(&self.folder, ".raw.gz").into_iter();
        let root = parts.find(|it| it.to_string_lossy().contains(".root.")).expect("a root");
        let path = root.display();
        shell(&format!(
            "gzip -dc {path} >{path}.plain && rm {path} && \
             printf '\\377' | dd of={path}.plain bs=1 seek=50000000 conv=notrunc status=none && \
             gzip -1 <{path}.plain >{path} && rm {path}.plain"
        ));
    }

    fn sign(&self) {
        let folder = self.folder.display();
        shell(&format!("cd {folder} && rm -f SHA256SUMS* && sha256sum *.gz >SHA256SUMS"));
        self.gpg(&format!("--detach-sign --output {folder}/SHA256SUMS.gpg {folder}/SHA256SUMS"));
    }

    /// Changes the list, and leaves the signature of the original beside it.
    fn forge(&self) {
        self.sign();
        shell(&format!(
            "cd {} && sed -i '1s/^./f/' SHA256SUMS && sed -i '2s/^./e/' SHA256SUMS",
            self.folder.display()
        ));
    }
}

/// Returns this version, made the newest of all without a change of its length.
fn newest(version: &str) -> String {
    format!("9{}", &version[1..])
}

fn find(kernel: &[u8], mark: &[u8]) -> usize {
    kernel.windows(mark.len()).position(|it| it == mark).expect("it is in the kernel")
}

/// Makes this the kernel of the newest version, and puts a word on its command line without
/// changing its length.
fn tell(kernel: &mut [u8], word: &str) {
    let mark = b"IMAGE_VERSION=";
    let version = find(kernel, mark) + mark.len();
    let version = version + usize::from(kernel[version] == b'"');
    kernel[version] = b'9';
    let begin = find(kernel, b"roothash=");
    let line = kernel.get_mut(begin..begin + 400).expect("a section");
    let end = line.iter().position(|byte| !(b' '..=b'~').contains(byte)).expect("it ends");
    let text = String::from_utf8_lossy(&line[..end]).into_owned();
    let spared = ["console=tty0 ", "net.ifnames=0 "];
    let shorter = spared.iter().fold(text, |text, word| text.replacen(word, "", 1));
    let changed = format!("{} {word}", shorter.trim_end());
    assert!(changed.len() <= end, "{changed}");
    line[..end].copy_from_slice(format!("{changed:end$}").as_bytes());
}

#[track_caller]
fn shell(line: &str) -> String {
    let output = Command::new("sh").args(["-euc", line]).output().expect("sh starts");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
