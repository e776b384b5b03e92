//! A real Vault (or OpenBao) on the lab's internet, set up in the operator's way: TLS, an audit
//! device, a KV v2 engine at `kv`, an AppRole for the gateway that may make tokens through the two
//! groups' token roles and read nothing, and for each group a policy that may read `kv/agents/*`.
//!
//! Its data are on disk (raft, which every build of both has), so that it can be stopped and
//! started. The lab uses its own command line.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Output, Stdio},
};

use policy_builder::{Config, Table};
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    gateway::{self, ANTHROPIC_SECRET, GIT_SECRET, OPENAI_SECRET, OPS_SECRET},
    net::{INTERNET, Lab, Ns, VAULT},
    tools, wait,
};

/// A running Vault.
pub struct Vault {
    program: PathBuf,
    dir: PathBuf,
    process: Option<Child>,
    unseal_key: String,
    root_token: String,
    role_id: String,
}

impl Vault {
    /// Starts, initialises and fills a Vault. Takes a few seconds.
    ///
    /// # Panics
    /// When no Vault is found, or a command fails.
    pub fn start(lab: &Lab) -> Self {
        let mut vault = Self::start_for_nobody(lab);
        vault.admit_gateway(lab);
        vault
    }

    /// Does the same with the secrets alone: no policy, no role and no way to log in.
    ///
    /// # Panics
    /// When no Vault is found, or a command fails.
    pub fn start_for_nobody(lab: &Lab) -> Self {
        let program = find().expect("no vault on PATH nor in the cache: run tests/vault/get");
        let dir = lab.dir.join("vault");
        fs::create_dir_all(dir.join("data")).expect("the lab's folder is writable");
        let identity = lab.public.issue_all(&[&VAULT.to_string(), NAME]);
        lab.write("vault/cert.pem", identity.certificate_pem());
        lab.write("vault/key.pem", identity.key_pem());
        lab.write("vault/ca.pem", lab.public.pem());
        lab.write("vault/config.hcl", CONFIG.replace("{dir}", &dir.display().to_string()));
        let mut vault = Self {
            program,
            dir,
            process: None,
            unseal_key: String::new(),
            root_token: String::new(),
            role_id: String::new(),
        };
        vault.resume_sealed();
        vault.initialise();
        vault.fill();
        vault
    }

    /// Returns the usual policy, with every secret from this Vault, and a login by AppRole.
    pub fn config(&self) -> Config {
        let dir = self.dir.display();
        let login = Table::section("approle")
            .set("role_id", &self.role_id)
            .set("secret_id_file", format!("{dir}/secret-id"));
        gateway::from_vault(gateway::usual_config())
            .vault("address", format!("https://{VAULT}:8200"))
            .vault("ca_file", format!("{dir}/ca.pem"))
            .vault("refresh", "1s")
            .vault("max_stale", "5s")
            .login(login)
    }

    /// Returns a token that the gateway would get with its own credentials.
    ///
    /// # Panics
    /// When Vault refuses.
    pub fn gateway_token(&self) -> String {
        let secret_id = fs::read_to_string(self.dir.join("secret-id")).expect("the SecretID");
        let role_id = format!("role_id={}", self.role_id);
        let secret_id = format!("secret_id={}", secret_id.trim());
        token(&self.cli(&["write", "auth/approle/login", &role_id, &secret_id]))
    }

    /// Revokes every token that the gateway got by a login, and with them those that they made.
    pub fn revoke_gateway(&self) {
        for accessor in self.accessors() {
            let looked =
                self.try_cli(&["token", "lookup", "-accessor", &accessor], &self.root_token);
            if String::from_utf8_lossy(&looked.stdout).contains("\"gateway\"") {
                self.cli(&["token", "revoke", "-accessor", &accessor]);
            }
        }
    }

    /// Returns the accessors of all tokens.
    ///
    /// # Panics
    /// When Vault answers something else.
    pub fn accessors(&self) -> Vec<String> {
        let listed = self.cli(&["list", "auth/token/accessors"]);
        serde_json::from_str(&listed).expect("a list in JSON")
    }

    /// Returns the records of Vault's own audit device, one for each request and each answer.
    pub fn audit(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.join("audit.log")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Runs the command line as Vault's root, and returns its output.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn cli(&self, args: &[&str]) -> String {
        let output = self.try_cli(args, &self.root_token);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "vault {args:?}: {stderr}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs the command line with this token.
    ///
    /// # Panics
    /// When it does not start.
    pub fn try_cli(&self, args: &[&str], token: &str) -> Output {
        self.try_cli_from(INTERNET, args, token)
    }

    /// Does the same from another place than Vault's own.
    ///
    /// # Panics
    /// When it does not start.
    pub fn try_cli_from(&self, ns: Ns, args: &[&str], token: &str) -> Output {
        ns.command(&self.program)
            .args(args)
            .env("VAULT_ADDR", format!("https://{VAULT}:8200"))
            .env("VAULT_CACERT", self.dir.join("ca.pem"))
            .env("VAULT_TOKEN", token)
            // This variable makes the command line answer in JSON.
            .env("VAULT_FORMAT", "json")
            .output()
            .expect("vault starts")
    }

    /// Runs a script for a shell in which `vault` is logged in as Vault's root.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn script(&self, script: &str) -> String {
        let bin = self.dir.join("bin");
        fs::create_dir_all(&bin).expect("the lab's folder is writable");
        // Scripts call it `vault`, whatever the program's name is.
        let _ = std::os::unix::fs::symlink(&self.program, bin.join("vault"));
        let file = self.dir.join("script.sh");
        fs::write(&file, script).expect("the lab's folder is writable");
        let path = std::env::var("PATH").unwrap_or_default();
        let output = INTERNET
            .command("sh")
            .arg(&file)
            .env("PATH", format!("{}:{path}", bin.display()))
            .env("VAULT_ADDR", format!("https://{VAULT}:8200"))
            .env("VAULT_CACERT", self.dir.join("ca.pem"))
            .env("VAULT_TOKEN", &self.root_token)
            .output()
            .expect("sh starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {stderr}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Returns the token that may do everything.
    pub fn root_token(&self) -> &str {
        &self.root_token
    }

    /// Stores a value under `kv/agents/NAME`, field `api_key`.
    pub fn put(&self, name: &str, value: &str) {
        self.cli(&[
            "kv",
            "put",
            "-mount=kv",
            &format!("agents/{name}"),
            &format!("api_key={value}"),
        ]);
    }

    /// Takes away every group's right to read.
    pub fn forbid(&self) {
        for group in GROUPS {
            self.forbid_group(group);
        }
    }

    /// Gives every group the right to read `kv/agents/*` (back).
    pub fn allow(&self) {
        for group in GROUPS {
            self.allow_group(group);
        }
    }

    /// Takes away one group's right to read.
    pub fn forbid_group(&self, group: &str) {
        let deny = "path \"kv/data/agents/*\" { capabilities = [\"deny\"] }\n";
        self.policy(&format!("agents-{group}"), deny);
    }

    /// Lets one group read `kv/agents/*`.
    pub fn allow_group(&self, group: &str) {
        let read = "path \"kv/data/agents/*\" { capabilities = [\"read\"] }\n";
        self.policy(&format!("agents-{group}"), read);
    }

    /// Makes (or changes) a token role with one policy.
    pub fn token_role(&self, name: &str, policy: &str, orphan: bool) {
        let path = format!("auth/token/roles/{name}");
        let (policies, orphan) = (format!("allowed_policies={policy}"), format!("orphan={orphan}"));
        let life = ["token_period=10m", "token_explicit_max_ttl=24h"];
        let role = ["write", &path, &policies, &orphan, "renewable=true", "token_type=service"];
        self.cli(&[&role[..], &life].concat());
    }

    /// Makes (or changes) a policy.
    pub fn policy(&self, name: &str, policy: &str) {
        let file = self.dir.join("policy.hcl");
        fs::write(&file, policy).expect("the lab's folder is writable");
        self.cli(&["policy", "write", name, &file.display().to_string()]);
    }

    /// Enables the engine that leases users of databases, once.
    pub fn enable_databases(&self) {
        let enabled = self.try_cli(&["secrets", "enable", "database"], &self.root_token);
        let stderr = String::from_utf8_lossy(&enabled.stderr);
        let there = enabled.status.success() || stderr.contains("path is already in use");
        assert!(there, "the database engine: {stderr}");
    }

    /// Seals it: from now on it answers 503.
    pub fn seal(&self) {
        self.cli(&["operator", "seal"]);
    }

    /// Unseals it.
    pub fn unseal(&self) {
        self.cli(&["operator", "unseal", &self.unseal_key]);
        wait::expect("vault is active", || {
            self.try_cli(&["read", "sys/health"], &self.root_token).status.success()
        });
    }

    /// Ends the process, so that nothing listens any more.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            tools::signal(&process, Signal::KILL);
            process.wait().expect("vault ends");
        }
    }

    /// Starts it again with the data it had.
    pub fn resume(&mut self) {
        self.resume_sealed();
        self.unseal();
    }

    fn resume_sealed(&mut self) {
        let log = fs::File::create(self.dir.join("log")).expect("the lab's folder is writable");
        let process = INTERNET
            .command(&self.program)
            .args(["server", "-config"])
            .arg(self.dir.join("config.hcl"))
            // This is for the databases in which it makes users.
            .env("SSL_CERT_FILE", self.dir.join("ca.pem"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("vault starts");
        self.process = Some(process);
        let up = wait::until(wait::SOON, || INTERNET.connect((VAULT, 8200).into()).ok());
        let log = || fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        assert!(up.is_some(), "vault does not listen: {}", log());
    }

    fn initialise(&mut self) {
        let answer = self.cli(&["operator", "init", "-key-shares=1", "-key-threshold=1"]);
        let answer: Value = serde_json::from_str(&answer).expect("vault answers in JSON");
        self.unseal_key = answer["unseal_keys_b64"][0].as_str().unwrap_or_default().to_owned();
        self.root_token = answer["root_token"].as_str().unwrap_or_default().to_owned();
        self.unseal();
    }

    fn fill(&self) {
        // OpenBao takes audit devices from its configuration only.
        let log = format!("file_path={}", self.dir.join("audit.log").display());
        let _ = self.try_cli(&["audit", "enable", "file", &log], &self.root_token);
        self.cli(&["secrets", "enable", "-path=kv", "-version=2", "kv"]);
        wait::expect("the engine is ready", || {
            let put = ["kv", "put", "-mount=kv", "agents/probe", "api_key=probe"];
            self.try_cli(&put, &self.root_token).status.success()
        });
        self.put("openai", OPENAI_SECRET);
        self.put("anthropic", ANTHROPIC_SECRET);
        self.put("git", GIT_SECRET);
        self.put("ops", OPS_SECRET);
    }

    fn admit_gateway(&mut self, lab: &Lab) {
        self.cli(&["auth", "enable", "approle"]);
        self.policy("gateway", GATEWAY_POLICY);
        for group in GROUPS {
            self.token_role(&format!("cloakroom-{group}"), &format!("agents-{group}"), false);
        }
        self.allow();
        self.cli(&["write", ROLE, "token_policies=gateway", "token_ttl=10m", "token_max_ttl=1h"]);
        self.role_id = field(&self.cli(&["read", &format!("{ROLE}/role-id")]), "role_id");
        let secret_id =
            field(&self.cli(&["write", "-f", &format!("{ROLE}/secret-id")]), "secret_id");
        lab.write("vault/secret-id", secret_id);
    }
}

/// Returns `CLOAKROOM_VAULT`, or `vault` on `PATH`, or the newest one in the cache.
pub fn find() -> Option<PathBuf> {
    let named = std::env::var_os("CLOAKROOM_VAULT").map(PathBuf::from);
    named.or_else(|| tools::on_path(&["vault"])).or_else(cached)
}

fn cached() -> Option<PathBuf> {
    let entries = fs::read_dir(tools::cache()).ok()?.filter_map(Result::ok);
    let vaults = entries.filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with("vault-") && !name.contains('~')
    });
    // The newest by age, because the name holds a checksum.
    let age = |entry: &fs::DirEntry| entry.metadata().and_then(|file| file.modified()).ok();
    vaults.max_by_key(age).map(|entry| entry.path())
}

fn field(answer: &str, name: &str) -> String {
    let answer: Value = serde_json::from_str(answer).expect("vault answers in JSON");
    let value = answer["data"][name].as_str();
    value.unwrap_or_else(|| panic!("no {name} in {answer}")).to_owned()
}

/// Returns the token in an answer to a login.
///
/// # Panics
/// When there is none.
pub fn token(answer: &str) -> String {
    let answer: Value = serde_json::from_str(answer).expect("vault answers in JSON");
    let token = answer["auth"]["client_token"].as_str();
    token.unwrap_or_else(|| panic!("no token in {answer}")).to_owned()
}

/// A further name in its certificate. The lab's resolver knows it only after a test has set it.
pub const NAME: &str = "vault.example";

/// The AppRole of the gateway.
pub const ROLE: &str = "auth/approle/role/gateway";

/// The groups of the usual policy.
const GROUPS: [&str; 2] = ["research", "operations"];

/// All rights of the gateway itself.
const GATEWAY_POLICY: &str = r#"
path "auth/token/create/cloakroom-research" { capabilities = ["update"] }
path "auth/token/create/cloakroom-operations" { capabilities = ["update"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/renew-self" { capabilities = ["update"] }
path "auth/token/revoke-self" { capabilities = ["update"] }
path "auth/token/revoke-accessor" { capabilities = ["update"] }
"#;

const CONFIG: &str = r#"
storage "raft" {
  path = "{dir}/data"
  node_id = "lab"
  performance_multiplier = 1
}
listener "tcp" {
  address = "203.0.113.200:8200"
  tls_cert_file = "{dir}/cert.pem"
  tls_key_file = "{dir}/key.pem"
}
api_addr = "https://203.0.113.200:8200"
cluster_addr = "https://203.0.113.200:8201"
disable_mlock = true
"#;
