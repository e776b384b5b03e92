//! A gateway that has been through everything, at the level debug: no token, SecretID or value is
//! in its messages, files or remains.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use lab::{
    Lab,
    dns::Dns,
    gateway::{self, Gateway, OPENAI_SECRET, SECRETS},
    net::{AGENT, AGENT2, ANTHROPIC, Host, Ns, OPENAI},
    origin::Origin,
    sandboxed,
    vault::Vault,
    wait,
};
use policy_builder::{Config, Table};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};

use crate::faults::{CHAT, ask, open};

const ROTATED: &str = "sk-lab-r0tated-90c3e7b15f2d4a68";
const WRONG_ID: &str = "3f7a1c52-0000-4000-8000-9b6d2e8c4a10";

const POLICY: &str = r#"
path "kv/data/agents/*" { capabilities = ["read"] }
path "ssh/creds/otp" { capabilities = ["update"] }
path "sys/leases/revoke" { capabilities = ["update"] }
"#;

/// A gateway, its Vault, and all answers so far.
struct Scene {
    lab: Lab,
    origin: Origin,
    _dns: Dns,
    vault: Vault,
    gateway: Gateway,
    policy: Config,
    config: PathBuf,
    told: String,
}

impl Scene {
    fn start() -> Self {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let dns = Dns::start();
        let vault = Vault::start(&lab);
        vault.cli(&["secrets", "enable", "ssh"]);
        let role = ["key_type=otp", "default_user=agent", "cidr_list=192.0.2.0/24"];
        vault.cli(&[&["write", "ssh/roles/otp"][..], &role].concat());
        vault.policy("agents-research", POLICY);
        let config = vault.config().binding("ANTHROPIC_API_KEY", |it| {
            it.set("secret", "vault-write:ssh/creds/otp?ip=192.0.2.1#key")
        });
        // A first, short run makes the certificates.
        Gateway::start(&lab, &config).kill();
        let policy = config;
        let config = gateway::install(&lab, &policy);
        let gateway = debugging(&lab, &config);
        Self { lab, origin, _dns: dns, vault, gateway, policy, config, told: String::new() }
    }

    /// Returns the status of an agent's answer with this credential; keeps the answer.
    fn status(&mut self, ns: Ns, host: Host, credential: &str) -> u16 {
        let request =
            format!("GET /v1/models HTTP/1.1\r\nHost: {}\r\n{credential}\r\n\r\n", host.name);
        let answer = open(&self.lab, ns, host).and_then(|mut tls| tls.ask(request));
        let answer = answer.expect("an answer");
        self.told += &format!("{:?}\n{}\n", answer.headers, answer.text());
        answer.status.as_u16()
    }

    fn openai(&mut self) -> u16 {
        self.status(AGENT, OPENAI, "Authorization: Bearer OPENAI_API_KEY")
    }

    #[track_caller]
    fn becomes(&mut self, what: &str, status: u16) {
        // A failed login is repeated less and less often, and this machine may be busy.
        let came = wait::until(LOGGED_IN, || (self.openai() == status).then_some(()));
        assert!(came.is_some(), "did not happen: {what}");
    }

    /// Runs `cloakroom` with these arguments; keeps its output.
    fn tell(&mut self, arguments: &[&str]) -> Option<i32> {
        let mut command = gateway::program();
        command.args(arguments).arg("--control").arg(self.lab.dir.join("control/control.sock"));
        self.keep(command)
    }

    fn keep(&mut self, mut command: Command) -> Option<i32> {
        let Output { status, stdout, stderr } = command.output().expect("the program starts");
        self.told += &String::from_utf8_lossy(&[stdout, stderr].concat());
        status.code()
    }

    fn keep_what_it_wrote(&mut self) {
        let proc = Path::new("/proc").join(self.gateway.pid().to_string());
        for file in ["cmdline", "environ"] {
            self.told += &String::from_utf8_lossy(&fs::read(proc.join(file)).expect("it runs"));
        }
        let log = self.gateway.stderr();
        assert!(log.contains("DEBUG"), "the log is at the level debug: {log}");
        self.told += &(log + &self.gateway.audit.text());
    }

    /// Reloads a configuration with an error in it, which must be refused; keeps the output.
    fn refused_reload(&mut self, change: impl FnOnce(Config) -> Config) {
        let wrong = change(self.policy.clone());
        gateway::install(&self.lab, &wrong);
        assert_ne!(self.tell(&["reload"]), Some(0), "{wrong}");
        let mut check = gateway::program();
        check.arg("check").arg(&self.config);
        assert_ne!(self.keep(check), Some(0), "{wrong}");
        gateway::install(&self.lab, &self.policy);
    }
}

fn debugging(lab: &Lab, config: &PathBuf) -> Gateway {
    Gateway::run_logging(lab, config, "debug").unwrap_or_else(|failed| panic!("{}", failed.stderr))
}

#[test]
fn after_everything_no_token_secret_id_or_value_is_left() {
    sandboxed(|| {
        let endless = Rlimit { current: None, maximum: None };
        setrlimit(Resource::Core, endless).expect("root may");
        let mut scene = Scene::start();
        let it = &mut scene;
        assert_eq!(it.openai(), 200);
        assert_eq!(it.status(AGENT, ANTHROPIC, "x-api-key: ANTHROPIC_API_KEY"), 200);
        assert_eq!(it.status(AGENT2, OPENAI, "Authorization: Bearer OPS_OPENAI_KEY"), 200);
        assert_eq!(it.status(AGENT, OPENAI, "Authorization: Bearer OPS_OPENAI_KEY"), 403);
        let lent = it.origin.log().wait_requests(3)[1].header("x-api-key")[0].to_owned();
        assert_eq!(lent.len(), 36, "one password of Vault's");

        it.vault.put("openai", ROTATED);
        wait::expect("rotated", || it.openai() == 200 && it.origin.log().holds(ROTATED));
        it.vault.put("openai", "sk-lab-br0ken\r\nX: y");
        it.becomes("a broken value", 503);
        it.vault.put("openai", ROTATED);
        it.becomes("a good one", 200);

        it.vault.seal();
        it.becomes("sealed", 503);
        it.vault.unseal();
        it.becomes("unsealed", 200);
        it.vault.stop();
        it.becomes("gone", 503);
        it.vault.resume();
        it.becomes("there again", 200);

        // The lab's policies are not the plan's, so that the doctor reports much.
        for word in ["plan", "doctor"] {
            let mut command = gateway::program();
            command.args(["vault", word]).arg(&it.config);
            assert_eq!(it.keep(command), Some(i32::from(word == "doctor")), "{}", it.told);
        }
        assert!(
            it.told.contains("vault policy write ") && it.told.contains("\ntoo wide "),
            "{}",
            it.told
        );

        assert_eq!(it.tell(&["quarantine", "research"]), Some(0));
        assert_eq!(it.tell(&["status"]), Some(0));
        assert_eq!(it.tell(&["release", "research"]), Some(0));
        it.becomes("released", 200);

        // In the last one the operator has put the value in the place of the reference.
        it.refused_reload(|config| config.with(Table::section("gatewya")));
        it.refused_reload(|config| config.vault("refresh", "often"));
        let key = |it: Table| it.set("secret", OPENAI_SECRET);
        it.refused_reload(|config| config.binding("OPS_OPENAI_KEY", key));
        assert_eq!(it.tell(&["reload"]), Some(0), "{}", it.told);

        let id = it.lab.dir.join("vault/secret-id");
        let right_id = fs::read_to_string(&id).expect("the SecretID");
        fs::write(&id, WRONG_ID).expect("written");
        it.vault.revoke_gateway();
        it.becomes("no login", 503);
        fs::write(&id, &right_id).expect("written");
        it.becomes("logged in", 200);

        for signal in [Signal::ABORT, Signal::QUIT] {
            it.keep_what_it_wrote();
            let core = fs::read_link(format!("/proc/{}/cwd", it.gateway.pid()));
            let core = core.expect("it runs").join("core");
            let ended = it.gateway.crash(signal);
            assert_eq!(ended.signal(), Some(signal.as_raw()), "{ended:?}");
            assert!(!ended.core_dumped() && !core.exists(), "{ended:?}");
            let mut other = Command::new("sh");
            other.args(["-c", &format!("kill -{} $$", signal.as_raw())]).current_dir(&it.lab.dir);
            let ended = other.status().expect("sh starts");
            assert!(ended.core_dumped(), "the question is a fair one: {ended:?}");
            it.gateway = debugging(&it.lab, &it.config);
            assert_eq!(ask(&it.lab, &it.gateway, CHAT).status, 200);
        }

        let parts = SECRETS.iter().map(|secret| &secret[..14]);
        let known = [&ROTATED[..14], "br0ken", &lent, right_id.trim(), WRONG_ID, "hvs.", "hvb."];
        for secret in parts.chain(known).chain([it.vault.root_token()]) {
            let line = it.told.lines().find(|line| line.contains(secret));
            assert!(line.is_none(), "{secret} was told: {line:?}");
        }
    });
}

/// Longest time for a state to be reached, on a machine with other work.
const LOGGED_IN: Duration = Duration::from_secs(45);
