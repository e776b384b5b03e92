//! The control socket: only certain users may give the gateway orders.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net::{UnixListener, UnixStream},
    },
    process::{Command, Output},
    time::{Duration, Instant},
};

use lab::{
    gateway::{self, Gateway, SECRETS},
    net::{GATEWAY, OPENAI},
    sandboxed, tools, wait,
};
use policy_builder::Table;
use serde_json::Value;

use crate::world::{TICKET, World, get};

/// Returns `cloakroom` with these arguments, for the gateway of this world.
pub(crate) fn order(world: &World, arguments: &[&str]) -> Command {
    let mut command = gateway::program();
    command.args(arguments).arg("--control").arg(socket(world));
    command
}

/// Returns the output of `cloakroom` with these arguments; it must end with this exit status.
#[track_caller]
pub(crate) fn tell(world: &World, arguments: &[&str], exit: i32) -> String {
    let Output { status, stdout, stderr } =
        order(world, arguments).output().expect("the program starts");
    let said = [String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)].concat();
    assert_eq!(status.code(), Some(exit), "{arguments:?}: {said}\n{}", world.gateway.stderr());
    said
}

/// Returns the output of `cloakroom status`.
#[track_caller]
pub(crate) fn status(world: &World) -> Value {
    serde_json::from_str(&tell(world, &["status", "--json"], 0)).expect("it is JSON")
}

/// Returns its causes of this kind, in a sentence each.
#[track_caller]
pub(crate) fn causes(world: &World, word: &str) -> Vec<String> {
    let status = status(world);
    let causes = status["health"]["causes"].as_array().expect("a list").iter();
    let texts = causes.filter(|it| it["cause"] == word).filter_map(|it| it["text"].as_str());
    texts.map(str::to_owned).collect()
}

fn socket(world: &World) -> std::path::PathBuf {
    world.lab.dir.join("control/control.sock")
}

#[test]
fn status_tells_how_the_gateway_is_and_no_value() {
    sandboxed(|| {
        let world = World::usual();
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        let _open = world.h1(OPENAI).expect("a connection");
        let words = tell(&world, &["status"], 0);
        assert!(words.starts_with("healthy\n"), "{words}");
        assert!(words.contains("4 of 4 have a value") && words.contains("research 1"), "{words}");
        let said = tell(&world, &["status", "--json"], 0);
        let status: Value = serde_json::from_str(&said).expect("JSON");
        assert_eq!(status["phase"], "run", "{status}");
        assert_eq!(status["health"]["state"], "healthy", "{status}");
        assert_eq!(status["connections"], 1, "{status}");
        assert_eq!(status["groups"][0]["name"], "research", "{status}");
        assert_eq!(status["secrets"]["available"].as_array().map(Vec::len), Some(4), "{status}");

        let fewer = "openai = sk-lab-0penai-b7f3c1d95e8a4426\n";
        world.lab.write("secrets.toml", fewer);
        tell(&world, &["reload"], 0);
        wait::expect("the others are missing", || {
            let status = self::status(&world);
            let missing = status["secrets"]["missing"].as_array().expect("a list");
            missing.len() == 3 && missing.iter().all(|secret| secret["cause"] == "not_in_file")
        });
        let words = tell(&world, &["status"], 0);
        assert!(words.starts_with("degraded: some"), "{words}");
        assert!(words.contains("the file does not hold this name"), "{words}");
        assert!(words.contains("(and 2 others like it)"), "{words}");
        for secret in SECRETS {
            assert!(!said.contains(secret) && !words.contains(secret), "{said}");
        }

        // Values that no request can ever have are reported as soon as they are there.
        let all = gateway::SECRETS;
        let unfit = format!(
            "openai = {}\nanthropic = short-one\ngit = {}\nops = {}\n",
            all[0], all[2], all[3]
        );
        world.lab.write("secrets.toml", unfit);
        tell(&world, &["reload"], 0);
        wait::expect("the value that is too short is told", || {
            let causes = self::status(&world)["health"]["causes"].clone();
            let causes = causes.as_array().cloned().unwrap_or_default();
            causes.len() == 1
                && causes[0]["cause"] == "secret_unavailable"
                && causes[0]["why"] == "value_invalid"
                && causes[0]["rule"] == "anthropic"
        });
        tell(&world, &["quarantine", "operations"], 0);
        let words = tell(&world, &["status"], 0);
        assert!(words.contains("operations is quarantined"), "{words}");
        tell(&world, &["release", "operations"], 0);
    });
}

#[test]
fn a_reload_names_mistakes_and_takes_new_values() {
    sandboxed(|| {
        let world = World::usual();
        let usual = gateway::usual_config();
        let broken = usual.clone().splice("pypi", |it| it.set("hosts", ["pypi..example"]));
        gateway::install(&world.lab, &broken);
        let said = tell(&world, &["reload"], 64);
        let line =
            1 + broken.to_string().lines().position(|it| it.contains("pypi..")).expect("there");
        assert!(said.contains(&format!("cloakroom.toml:{line}:")), "{said}");
        gateway::install(&world.lab, &usual.clone().gateway("ipv6", false));
        let said = tell(&world, &["reload"], 1);
        assert!(said.contains("ipv6") && said.contains("restart"), "{said}");
        assert_eq!(world.ask(&get(&[TICKET])).status, 200, "the old policy serves");

        gateway::install(&world.lab, &usual);
        world.lab.write("secrets.toml", "openai = sk-lab-another-5f9c2e7a1b3d4468\n");
        let begun = Instant::now();
        let said = tell(&world, &["reload"], 0);
        assert!(said.contains("no value any more"), "{said}");
        for gone in ["operations, file:ops", "research, file:git"] {
            assert!(said.contains(&format!("{gone}: the file does not hold this name")), "{said}");
        }
        assert!(!said.contains("file:openai"), "{said}");
        assert_eq!(tell(&world, &["reload"], 0), "reloaded\n", "that is no news any more");
        wait::expect("the new value goes out", || {
            assert_eq!(world.ask(&get(&[TICKET])).status, 200);
            let requests = world.origin.log().requests();
            let last = requests.last().expect("a request");
            last.header("authorization") == ["Bearer sk-lab-another-5f9c2e7a1b3d4468"]
        });
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    });
}

/// The configuration names the daemon's socket, whatever else is wrong in it.
#[test]
fn somebody_elses_file_of_secrets_is_named_and_not_read() {
    sandboxed(|| {
        let world = World::usual();
        let file = world.lab.write("secrets.toml", "openai = sk-lab-another-5f9c2e7a1b3d4468\n");
        if std::os::unix::fs::chown(&file, Some(4321), None).is_err() {
            return println!("there is no other user here");
        }
        tell(&world, &["reload"], 0);
        wait::expect("it is said whose it has to be", || {
            let texts = causes(&world, "secret_stale");
            texts.iter().any(|text| text.contains("must belong to root or to the daemon's user"))
        });
        assert_eq!(world.ask(&get(&[TICKET])).status, 200, "with what was read before");
        let requests = world.origin.log().requests();
        let sent = requests.last().expect("one").header("authorization");
        assert_eq!(sent, [format!("Bearer {}", SECRETS[0])]);
    });
}

#[test]
fn the_daemon_is_found_by_its_configuration() {
    sandboxed(|| {
        let world = World::usual();
        let config = world.lab.dir.join("cloakroom.toml");
        let told = |order: &[&str]| {
            let output = gateway::program().args(order).arg(&config).output().expect("it starts");
            let said = [output.stdout, output.stderr].concat();
            (output.status.code(), String::from_utf8_lossy(&said).into_owned())
        };
        assert!(told(&["status"]).1.starts_with("healthy\n"));
        assert_eq!(told(&["quarantine", "operations"]).0, Some(0));
        assert_eq!(told(&["release", "operations"]).0, Some(0));
        let wrong = gateway::usual_config().with(Table::one_of("nothing"));
        gateway::install(&world.lab, &wrong);
        let (exit, said) = told(&["reload"]);
        assert!(exit == Some(64) && said.contains("unknown key \"nothing\""), "{said}");
    });
}

#[test]
fn the_socket_is_for_root_and_the_daemons_user_alone() {
    sandboxed(|| {
        let world = World::usual();
        let mode = |path: &std::path::Path| fs::metadata(path).expect("it is there").mode() & 0o777;
        assert_eq!(mode(&socket(&world)), 0o600);
        assert_eq!(mode(&world.lab.dir.join("control")), 0o700);

        let program = std::env::temp_dir().join(format!("cloakroom-{}", world.gateway.pid()));
        fs::copy(tools::cloakroom(), &program).expect("copied");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("for everybody");
        let as_nobody = || {
            let output = GATEWAY
                .command("setpriv")
                .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
                .arg(&program)
                .args(["quarantine", "research", "--control"])
                .arg(socket(&world))
                .output()
                .expect("setpriv starts");
            assert!(!output.status.success());
            String::from_utf8_lossy(&output.stderr).into_owned()
        };
        let said = as_nobody();
        if said.contains("setpriv:") {
            return println!("there is no other user here");
        }
        assert!(said.contains("for root"), "{said}");
        // Even where every permission is open, the kernel tells which user connects.
        let control = world.lab.dir.join("control");
        for path in control.ancestors().take_while(|path| path.as_os_str() != "/") {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("opened");
        }
        let open = fs::Permissions::from_mode(0o666);
        fs::set_permissions(socket(&world), open).expect("opened");
        let said = as_nobody();
        assert!(said.contains("no answer") || said.contains("cannot speak"), "{said}");
        fs::remove_file(&program).expect("removed");
        wait::expect("it is told", || world.gateway.stderr().contains("uid=65534"));
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
    });
}

#[test]
fn nonsense_does_nothing_and_nobody_hogs_the_socket() {
    sandboxed(|| {
        let world = World::usual();
        let open = || UnixStream::connect(socket(&world)).expect("it listens");
        for line in
            ["", "\n", "reload now\n", "quarantine research research\n", "GET / HTTP/1.1\r\n"]
        {
            let mut stream = open();
            stream.write_all(line.as_bytes()).expect("sent");
            stream.shutdown(std::net::Shutdown::Write).expect("shut");
            let mut said = String::new();
            stream.read_to_string(&mut said).expect("read");
            assert!(said.is_empty() || said.contains("no such order"), "{line:?}: {said}");
        }
        let mut long = open();
        let _ = long.write_all(&[b'a'; 5_000]);
        let mut said = Vec::new();
        // The connection is closed with unread bytes: by an end or a reset.
        let _ = long.read_to_end(&mut said);
        assert!(said.is_empty());
        // Silent ones hold every slot, for their five seconds.
        let begun = Instant::now();
        let _silent: Vec<_> = (0..8).map(|_| open()).collect();
        assert_eq!(status(&world)["phase"], "run");
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    });
}

#[test]
fn a_dead_daemons_socket_alone_is_replaced() {
    sandboxed(|| {
        let mut world = World::usual();
        let config = world.lab.dir.join("cloakroom.toml");
        let failed = gateway::program().arg("run").arg(&config).output().expect("it starts");
        let said = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert_eq!(failed.status.code(), Some(1), "{said}");
        assert!(said.contains("another daemon"), "{said}");
        assert_eq!(status(&world)["phase"], "run", "the first one still has it");

        world.gateway.kill();
        assert!(fs::metadata(socket(&world)).is_ok_and(|meta| meta.file_type().is_socket()));
        assert!(tell(&world, &["status"], 1).contains("no gateway runs here"));
        world.gateway = Gateway::run(&world.lab, &config).expect("it starts again");
        assert_eq!(status(&world)["phase"], "run");

        assert!(world.gateway.terminate(Duration::from_secs(40)).success());
        assert!(!socket(&world).exists(), "a daemon that ends takes it away");
        fs::write(socket(&world), "not a socket").expect("written");
        let failed = Gateway::run(&world.lab, &config).map(drop).expect_err("no start");
        assert!(failed.stderr.contains("not a socket"), "{}", failed.stderr);
        fs::remove_file(socket(&world)).expect("removed");
        drop(UnixListener::bind(socket(&world)).expect("a socket of nobody"));
        world.gateway = Gateway::run(&world.lab, &config).expect("it starts again");
    });
}

/// Nothing listens for it on a network: the agents' side sees the same as before.
#[test]
fn no_port_is_opened_for_it() {
    sandboxed(|| {
        let _world = World::usual();
        let listening = GATEWAY.shell("ss -Hltn");
        assert!(listening.lines().all(|line| line.contains(":15001") || line.contains(":53")));
    });
}
