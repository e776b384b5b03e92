//! The embedded store: secrets that are encrypted at rest, and the commands for them.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Output, Stdio},
    thread,
    time::Duration,
};

use lab::{
    Lab,
    gateway::{self, ANTHROPIC_SECRET, GIT_SECRET, Gateway, OPENAI_SECRET, OPS_SECRET, SECRETS},
    net::GATEWAY,
    sandboxed, wait,
};
use policy_builder::Config;

use crate::{
    lifecycle::control::{status, tell},
    world::{TICKET, World, get},
};

const NAMES: [(&str, &str); 4] = [
    ("openai", OPENAI_SECRET),
    ("anthropic", ANTHROPIC_SECRET),
    ("git", GIT_SECRET),
    ("ops", OPS_SECRET),
];

const ANOTHER: &str = "sk-lab-an0ther-7c1e5a9d3f2b4806";

/// Returns the usual policy, with the encrypted file in place of the plain one.
fn config() -> Config {
    gateway::usual_config()
        .secrets("file", "{dir}/store/secrets")
        .secrets("key_file", "{dir}/store/key")
}

/// Makes a folder for the store, and a configuration that names it.
fn prepare(lab: &Lab) -> PathBuf {
    fs::create_dir_all(lab.dir.join("store")).expect("the lab's folder is writable");
    gateway::install(lab, &config())
}

fn started(config: &Path, arguments: &[&str]) -> Child {
    let mut command = gateway::program();
    command.arg("secret").args(arguments).arg(config);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the program starts")
}

/// Runs `cloakroom secret` with this on its standard input.
fn secret(config: &Path, arguments: &[&str], input: &str) -> (Option<i32>, String) {
    let mut child = started(config, arguments);
    // A command that reads nothing has closed its input.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().expect("it ends");
    let said = [stdout, stderr].concat();
    let said = String::from_utf8(said).expect("text");
    for value in SECRETS.into_iter().chain([ANOTHER]) {
        assert!(!said.contains(value), "a value is shown: {said}");
    }
    (status.code(), said)
}

#[track_caller]
fn done(config: &Path, arguments: &[&str], input: &str) -> String {
    let (code, said) = secret(config, arguments, input);
    assert_eq!(code, Some(0), "{arguments:?}: {said}");
    said
}

fn filled(lab: &Lab) -> PathBuf {
    let config = prepare(lab);
    done(&config, &["init"], "");
    for (name, value) in NAMES {
        done(&config, &["set", name], &format!("{value}\n"));
    }
    config
}

fn world() -> World {
    World::prepared(&config(), |lab, _| {
        filled(lab);
    })
}

#[test]
fn a_secret_of_the_store_arrives_also_after_changes() {
    sandboxed(|| {
        let world = world();
        let config = world.lab.dir.join("cloakroom.toml");
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        let request = &world.origin.log().wait_requests(1)[0];
        assert_eq!(request.header("authorization"), [format!("Bearer {OPENAI_SECRET}")]);

        assert_eq!(done(&config, &["set", "openai"], ANOTHER), "openai: changed\n");
        tell(&world, &["reload"], 0);
        wait::expect("the new one goes out", || {
            assert_eq!(world.ask(&get(&[TICKET])).status, 200, "no request fails");
            let requests = world.origin.log().requests();
            requests.last().expect("one").header("authorization") == [format!("Bearer {ANOTHER}")]
        });
        done(&config, &["rm", "openai"], "");
        tell(&world, &["reload"], 0);
        wait::expect("it is gone", || world.ask(&get(&[TICKET])).status == 503);
        let missing = status(&world)["secrets"]["missing"].to_string();
        assert!(missing.contains("file:openai"), "{missing}");
        assert_eq!(done(&config, &["list"], ""), "anthropic\ngit\nops\nopenai  missing\n");
        world.assert_secrets_untold();
    });
}

#[test]
fn store_and_neighbours_are_private_and_show_no_value() {
    sandboxed(|| {
        let lab = Lab::new();
        filled(&lab);
        let folder = lab.dir.join("store");
        let mut files = 0;
        for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("one")) {
            files += 1;
            let content = fs::read(entry.path()).expect("read");
            for (name, value) in NAMES {
                for text in [name, value] {
                    let shows = content.windows(text.len()).any(|at| at == text.as_bytes());
                    assert!(!shows, "{text} in {}", entry.path().display());
                }
            }
            let mode = entry.metadata().expect("meta").mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", entry.path().display());
        }
        assert_eq!(files, 3, "the file, its key, its lock, and nothing half done");
    });
}

#[test]
fn what_is_wrong_is_said_and_changes_nothing() {
    sandboxed(|| {
        let lab = Lab::new();
        let config = prepare(&lab);
        let (code, said) = secret(&config, &["set", "openai"], OPENAI_SECRET);
        assert!(code == Some(1) && said.contains("no such file"), "{said}");
        filled(&lab);
        let store = lab.dir.join("store/secrets");
        let before = fs::read(&store).expect("it is there");
        let long = "x".repeat(9_000);
        for (name, value) in [
            ("openai", ""),
            ("openai", "short"),
            ("openai", "sk-0123456789 with a blank"),
            ("openai", "sk-0123456789\nother = sk-9876543210"),
            ("openai", long.as_str()),
            ("../openai", ANOTHER),
            ("openai=x", ANOTHER),
            ("", ANOTHER),
        ] {
            let (code, said) = secret(&config, &["set", name], value);
            assert_eq!(code, Some(1), "{name:?}: {said}");
        }
        assert_eq!(secret(&config, &["rm", "absent"], "").0, Some(1));
        assert_eq!(fs::read(&store).expect("it is there"), before);
        assert!(done(&config, &["init"], "").contains("there already"));

        gateway::install(&lab, &gateway::usual_config());
        let (code, said) = secret(&config, &["list"], "");
        assert!(code == Some(1) && said.contains("key_file"), "{said}");
    });
}

#[test]
fn a_wrong_store_or_key_is_no_start() {
    sandboxed(|| {
        let mut world = world();
        world.gateway.kill();
        let config = world.lab.dir.join("cloakroom.toml");
        let [store, key] = ["store/secrets", "store/key"].map(|name| world.lab.dir.join(name));
        let [content, secret_key] = [&store, &key].map(|path| fs::read(path).expect("there"));
        let mut altered = content.clone();
        *altered.last_mut().expect("not empty") ^= 1;
        let no_start = |says: &str| {
            let failed = Gateway::run(&world.lab, &config).map(drop).expect_err(says);
            assert!(failed.stderr.contains(says), "{says}: {}", failed.stderr);
        };
        for wrong in [altered.as_slice(), &content[..content.len() - 1]] {
            fs::write(&store, wrong).expect("written");
            no_start("another key, or altered");
        }
        fs::write(&store, format!("openai = {OPENAI_SECRET}\n")).expect("written");
        no_start("not encrypted");
        fs::write(&store, &content).expect("written");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).expect("opened");
        no_start("its group or others");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("closed");
        fs::write(&key, "cloakroom-key-1:").expect("written");
        no_start("holds no key");
        fs::remove_file(&key).expect("removed");
        no_start("no such file");
        fs::write(&key, secret_key).expect("written");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("closed");
        world.gateway = Gateway::run(&world.lab, &config).expect("all is well again");
    });
}

#[test]
fn changes_that_are_killed_in_the_middle_lose_nothing() {
    sandboxed(|| {
        let lab = Lab::new();
        let config = filled(&lab);
        for round in 0..40 {
            let mut child = started(&config, &["set", "openai"]);
            let _ = child.stdin.take().expect("a pipe").write_all(ANOTHER.as_bytes());
            thread::sleep(Duration::from_micros(500 * round));
            let _ = child.kill();
            child.wait().expect("it ends");
        }
        assert_eq!(done(&config, &["list"], ""), "anthropic\ngit\nopenai\nops\n");
        let setting: Vec<_> = (0..12)
            .map(|number| {
                let mut child = started(&config, &["set", &format!("new-{number}")]);
                let _ = child.stdin.take().expect("a pipe").write_all(ANOTHER.as_bytes());
                child
            })
            .collect();
        for mut child in setting {
            assert!(child.wait().expect("it ends").success());
        }
        assert_eq!(done(&config, &["list"], "").lines().count(), 16, "each waits for its turn");
    });
}

#[test]
fn a_planted_lock_misleads_and_delays_nobody() {
    sandboxed(|| {
        let lab = Lab::new();
        let config = filled(&lab);
        let (lock, elsewhere) = (lab.dir.join("store/secrets.lock"), lab.dir.join("elsewhere"));
        let refused = || {
            let (code, said) = secret(&config, &["set", "openai"], ANOTHER);
            assert!(code == Some(1) && said.contains("secrets.lock"), "{code:?}: {said}");
        };
        fs::remove_file(&lock).expect("there");
        std::os::unix::fs::symlink(&elsewhere, &lock).expect("a link");
        refused();
        assert!(!elsewhere.exists(), "a file was made where the link led");
        fs::remove_file(&lock).expect("there");
        GATEWAY.shell(&format!("mkfifo '{}'", lock.display()));
        refused();
        fs::remove_file(&lock).expect("there");
        done(&config, &["set", "openai"], ANOTHER);
    });
}

/// Types this at the prompt of `cloakroom secret set typed`. Returns the terminal's output, the
/// exit status, and whether the terminal shows typed text again.
fn type_in(config: &Path, keys: &str) -> (String, i32, bool) {
    let script = "import pty,os,sys,termios\n\
        pid,fd=pty.fork()\n\
        if pid==0: os.execv(sys.argv[1],sys.argv[1:-1])\n\
        seen=b''\n\
        while b': ' not in seen: seen+=os.read(fd,4096)\n\
        os.write(fd,sys.argv[-1].encode())\n\
        status=os.waitstatus_to_exitcode(os.waitpid(pid,0)[1])\n\
        shown=bool(termios.tcgetattr(fd)[3]&termios.ECHO)\n\
        try:\n\
        \x20   while True: seen+=os.read(fd,4096)\n\
        except OSError: pass\n\
        print(seen.decode())\n\
        print(status, int(shown))\n";
    let output = GATEWAY
        .command("python3")
        .args(["-c", script])
        .arg(lab::tools::cloakroom())
        .args(["secret", "set", "typed"])
        .arg(config)
        .arg(keys)
        .output()
        .expect("python3 starts");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let end = said.trim_end().rsplit('\n').next().and_then(|line| line.split_once(' '));
    let (status, shown) = end.unwrap_or_else(|| panic!("{said}"));
    let status = status.parse().unwrap_or_else(|_| panic!("{said}"));
    assert!(said.contains("Value of typed: "), "{said}");
    (said.clone(), status, shown == "1")
}

#[test]
fn a_value_that_is_typed_is_not_shown() {
    sandboxed(|| {
        let lab = Lab::new();
        let config = filled(&lab);
        let (said, status, shown) = type_in(&config, &format!("{ANOTHER}\n"));
        assert!(said.contains("typed: set") && status == 0 && shown, "{said}");
        assert!(!said.contains(ANOTHER), "{said}");
        assert!(done(&config, &["list"], "").contains("typed  in no binding\n"));
    });
}

#[test]
fn an_interrupted_prompt_sets_nothing_and_restores_the_terminal() {
    sandboxed(|| {
        let lab = Lab::new();
        let config = filled(&lab);
        for keys in ["\x03", &format!("{ANOTHER}\x03")] {
            let (said, status, shown) = type_in(&config, keys);
            assert!(said.contains("interrupted") && status == 1 && shown, "{said}");
            assert!(!said.contains(ANOTHER), "{said}");
        }
        assert!(!done(&config, &["list"], "").contains("typed"));
    });
}

#[test]
fn a_line_the_terminal_may_have_cut_is_refused() {
    sandboxed(|| {
        let lab = Lab::new();
        let config = filled(&lab);
        for (length, taken) in [(4_000, true), (4_095, false), (5_000, false)] {
            let (said, status, shown) = type_in(&config, &format!("{}\n", "x".repeat(length)));
            assert_eq!((status == 0, shown), (taken, true), "{length}: {said}");
            assert_eq!(said.contains("standard input"), !taken, "{said}");
        }
    });
}
