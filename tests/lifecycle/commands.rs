//! The commands beside the daemon have secrets in their memory too, and keep them there.

use std::{
    fs,
    net::TcpListener,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use lab::{
    Lab, gateway,
    net::{INTERNET, VAULT},
    sandboxed, wait,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, setrlimit};

#[test]
fn a_command_that_dies_leaves_no_core() {
    sandboxed(|| {
        let endless = Rlimit { current: None, maximum: None };
        setrlimit(Resource::Core, endless).expect("root may");
        let lab = Lab::new();
        // A Vault that takes every connection and says nothing.
        let _silent = INTERNET.enter(|| TcpListener::bind((VAULT, 8200))).expect("a free port");
        fs::create_dir(lab.dir.join("store")).expect("the lab's folder is writable");
        lab.write("secret-id", "a-secret-id-0123456789\n");
        let usual = gateway::usual_config();
        let plain = "file = \"{dir}/secrets.toml\"";
        let kept = "file = \"{dir}/store/secrets\"\nkey_file = \"{dir}/store/key\"";
        assert!(usual.contains(plain));
        let config = gateway::install(&lab, &(usual.replace(plain, kept) + VAULT_PART));
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
fn issuing_before_there_is_a_root_says_which_command_comes_first() {
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

/// A command whose standard input stays open.
fn started(dir: &Path, command: &mut Command) -> Child {
    command.current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("the program starts")
}

const VAULT_PART: &str = r#"
[vault]
address = "https://203.0.113.200:8200"
ca_file = "{dir}/public-ca.pem"
[vault.approle]
role_id = "gateway"
secret_id_file = "{dir}/secret-id"
"#;
