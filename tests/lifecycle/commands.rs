//! The commands beside the daemon also have secrets in their memory, and keep them there. Their
//! output can be used where they say so.

use std::{
    fs,
    net::TcpListener,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use lab::{
    Lab, gateway,
    net::{GATEWAY, INTERNET, VAULT},
    sandboxed, wait,
};
use policy_builder::agent;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, setrlimit};

#[test]
fn a_command_that_dies_leaves_no_core() {
    sandboxed(|| {
        let endless = Rlimit { current: None, maximum: None };
        setrlimit(Resource::Core, endless).expect("root may");
        let lab = Lab::new();
        // A Vault that accepts every connection and sends nothing.
        let _silent = INTERNET.enter(|| TcpListener::bind((VAULT, 8200))).expect("a free port");
        fs::create_dir(lab.dir.join("store")).expect("the lab's folder is writable");
        lab.write("secret-id", "a-secret-id-0123456789\n");
        let config = gateway::with_absent_vault(gateway::usual_config())
            .secrets("file", "{dir}/store/secrets")
            .secrets("key_file", "{dir}/store/key");
        let config = gateway::install(&lab, &config);
        let mut made = gateway::program();
        lab::client::succeed(made.args(["secret", "init"]).arg(&config));

        let set =
            started(&lab.dir, gateway::program().args(["secret", "set", "openai"]).arg(&config));
        let doctor = started(&lab.dir, gateway::program().args(["vault", "doctor"]).arg(&config));
        for mut child in [set, doctor] {
            let pid = child.id();
            wait::expect("the limit on cores is 0", || {
                let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
                let core = limits.lines().find(|line| line.starts_with("Max core file size"));
                let core: Vec<&str> = core.unwrap_or_default().split_whitespace().collect();
                core.get(4..6) == Some(&["0", "0"])
            });
            kill_process(Pid::from_child(&child), Signal::ABORT).expect("it waits");
            let ended = child.wait().expect("it ends");
            assert_eq!(ended.signal(), Some(Signal::ABORT.as_raw()), "{ended:?}");
            assert!(!ended.core_dumped() && !lab.dir.join("core").exists(), "{ended:?}");
        }
        let mut other = Command::new("sh");
        other.args(["-c", "kill -ABRT $$"]).current_dir(&lab.dir);
        let ended = other.status().expect("sh starts");
        assert!(ended.core_dumped(), "the question is a fair one: {ended:?}");
    });
}

#[test]
fn issuing_without_a_root_says_which_command_comes_first() {
    sandboxed(|| {
        let lab = Lab::new();
        let config = gateway::install(&lab, &gateway::usual_config());
        let root = lab.dir.join("no-root");
        let mut issue = gateway::program();
        let issue = issue.args(["ca", "issue", "--dir"]).arg(&root).arg(&config).output();
        let issue = issue.expect("the program starts");
        let said = String::from_utf8_lossy(&issue.stderr);
        assert!(!issue.status.success() && !root.exists(), "{said}");
        assert!(said.contains(&format!("cloakroom ca init --dir {}", root.display())), "{said}");
    });
}

/// Debian's nft takes the names of protocols and ports from a package of their own (netbase),
/// except for a few that it knows itself.
#[test]
fn rules_and_guard_load_where_no_name_is_known() {
    sandboxed(|| {
        let lab = Lab::new();
        let bound = agent("02:00:00:00:00:10", &["192.0.2.10", "2001:db8:a::10"]);
        let config = gateway::usual_config()
            .gateway("agent_services", ["ping", "ntp", "dhcp"])
            .group("research", |it| it.set("mtu", 1400).with(bound));
        let config = gateway::install(&lab, &config);
        // This changes this sandbox's own view of the file system.
        for names in ["/etc/protocols", "/etc/services"] {
            let hidden = ["--bind", "/dev/null", names];
            lab::client::succeed(Command::new("mount").args(hidden));
        }
        let ruled = |protocol: &str| {
            let table = "table inet t { chain c { meta l4proto";
            let nft =
                format!("echo '{table} {protocol} accept; }}; }}' | nft -c -f - 2>&1 || true");
            GATEWAY.shell(&nft)
        };
        assert_eq!(ruled("tcp"), "");
        assert!(ruled("ospf").contains("protocol name"), "the names are hidden: {}", ruled("ospf"));
        for command in ["rules", "guard"] {
            let told = lab::client::succeed(gateway::program().arg(command).arg(&config));
            assert!(told.contains("chain"), "{told}");
            let file = lab.write("rules.nft", told);
            GATEWAY.shell(&format!("nft -c -f {}", file.display()));
        }
    });
}

/// Starts a command whose standard input stays open.
fn started(dir: &Path, command: &mut Command) -> Child {
    command.current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("the program starts")
}
