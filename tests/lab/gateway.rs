//! The program under test, run in an operator's order: the guard, then the certificates, then the
//! daemon.

use std::{
    fmt::Display,
    fs,
    io::Write as _,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output},
    time::Duration,
};

use policy_builder::{Config, Table, api, binding, group, splice};
use rustix::process::Signal;

use crate::{
    audit::Audit,
    net::{ANTHROPIC, GATEWAY, GIT, Host, Lab, OPENAI, VAULT, sysctl},
    tools, wait,
};

/// The value behind the placeholder `OPENAI_API_KEY`.
pub const OPENAI_SECRET: &str = "sk-lab-0penai-b7f3c1d95e8a4426";
/// The value behind `ANTHROPIC_API_KEY`.
pub const ANTHROPIC_SECRET: &str = "sk-ant-lab-5c0d7e3f9b214a68";
/// The value behind `GIT_TOKEN`.
pub const GIT_SECRET: &str = "glpat-lab-91e4d7a2c6f84b03";
/// The value behind the second group's `OPS_OPENAI_KEY`.
pub const OPS_SECRET: &str = "sk-lab-0ps-2f6a8c0e4d1b7935";
/// Every value that no agent may ever see.
pub const SECRETS: [&str; 4] = [OPENAI_SECRET, ANTHROPIC_SECRET, GIT_SECRET, OPS_SECRET];

/// A running gateway.
pub struct Gateway {
    process: Child,
    /// Its audit records.
    pub audit: Audit,
    log: PathBuf,
    options: Options,
}

/// How the daemon is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// The level of its log.
    pub level: &'static str,
    /// Environment variables beside the usual ones.
    pub variables: Vec<(String, String)>,
    /// The kernel forwards all the time, from before the daemon's first instruction: in its own
    /// mount namespace other files cover the switches, and say that they are off. [`forwards`]
    /// tells whether the kernel forwards.
    pub forwarding: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { level: "info", variables: Vec::new(), forwarding: false }
    }
}

/// A gateway that did not become ready.
#[derive(Debug)]
pub struct Failed {
    /// Its exit status; `None` when it was still running and had to be killed.
    pub status: Option<ExitStatus>,
    /// Its standard error.
    pub stderr: String,
}

impl Gateway {
    /// Starts the gateway with this configuration.
    ///
    /// # Panics
    /// When it does not become ready. The panic shows its output.
    #[track_caller]
    pub fn start(lab: &Lab, config: &dyn Display) -> Self {
        Self::try_start(lab, config).unwrap_or_else(|failed| failed.panic())
    }

    /// Starts the gateway with this configuration, which may not work.
    ///
    /// # Errors
    /// When it ends before it is ready, or is not ready in time.
    ///
    /// # Panics
    /// When the guard or the certificates cannot be made.
    pub fn try_start(lab: &Lab, config: &dyn Display) -> Result<Self, Failed> {
        Self::run(lab, &Self::prepare(lab, config)?)
    }

    /// Makes the guard, the files and the certificates, and gives the configuration's path.
    ///
    /// # Errors
    /// When the program refuses to make the certificates.
    ///
    /// # Panics
    /// When the guard or the files cannot be made.
    pub fn prepare(lab: &Lab, config: &dyn Display) -> Result<PathBuf, Failed> {
        guard();
        let config = install(lab, config);
        certificates(lab, &config)?;
        Ok(config)
    }

    /// Starts the daemon only: the guard, the files and the certificates are there already.
    ///
    /// # Errors
    /// As [`Gateway::try_start`].
    ///
    /// # Panics
    /// When the program is missing.
    pub fn run(lab: &Lab, config: &PathBuf) -> Result<Self, Failed> {
        Self::run_with(lab, config, &Options::default())
    }

    /// [`Gateway::run`] in another way than the usual.
    ///
    /// # Errors
    /// As [`Gateway::try_start`].
    ///
    /// # Panics
    /// When the program is missing.
    pub fn run_with(lab: &Lab, config: &PathBuf, options: &Options) -> Result<Self, Failed> {
        let mut program = if options.forwarding { forwarding(lab) } else { program() };
        program.envs(options.variables.iter().map(|(name, value)| (name, value)));
        let gateway = Self::begin(lab, config, program, options)?;
        if !options.forwarding {
            forward();
        }
        Ok(gateway)
    }

    /// How it was started.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Starts this program and waits until it is ready.
    fn begin(
        lab: &Lab,
        config: &PathBuf,
        mut program: Command,
        options: &Options,
    ) -> Result<Self, Failed> {
        let (ready, log) = (lab.dir.join("ready"), lab.dir.join("gateway.log"));
        let _ = fs::remove_file(&ready);
        keep_log(&log);
        let stderr = fs::File::create(&log).expect("the lab's folder is writable");
        let process = program
            .args(["run", "--log", options.level, "--ready-file"])
            .arg(&ready)
            .arg(config)
            .stderr(stderr)
            .spawn()
            .expect("the gateway starts");
        let audit = Audit::of(lab.dir.join("audit.jsonl"));
        let mut gateway = Self { process, audit, log, options: options.clone() };
        let end = wait::until(wait::SOON, || match gateway.process.try_wait() {
            Ok(Some(status)) => Some(Err(status)),
            _ => ready.exists().then_some(Ok(())),
        });
        match end {
            Some(Ok(())) => Ok(gateway),
            Some(Err(status)) => Err(Failed { status: Some(status), stderr: gateway.stderr() }),
            None => {
                gateway.kill();
                Err(Failed { status: None, stderr: gateway.stderr() })
            }
        }
    }

    /// Returns its standard error so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Returns its process id, for reading `/proc`.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Ends it without a warning, as the kernel would when memory runs out.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn kill(&mut self) {
        tools::signal(&self.process, Signal::KILL);
        self.process.wait().expect("the gateway ends");
    }

    /// Sends a signal whose default is to end with a core dump, and returns the exit status.
    ///
    /// # Panics
    /// When it has not ended soon.
    #[track_caller]
    pub fn crash(&mut self, signal: Signal) -> ExitStatus {
        tools::signal(&self.process, signal);
        let ended = wait::until(wait::SOON, || self.process.try_wait().ok().flatten());
        ended.unwrap_or_else(|| panic!("still running after {signal:?}"))
    }

    /// Asks it to end, and returns the exit status.
    ///
    /// # Panics
    /// When it has not ended within `limit`.
    #[track_caller]
    pub fn terminate(&mut self, limit: Duration) -> ExitStatus {
        tools::signal(&self.process, Signal::TERM);
        let ended = wait::until(limit, || self.process.try_wait().ok().flatten());
        ended.unwrap_or_else(|| panic!("still running {limit:?} after SIGTERM"))
    }

    /// Asks it to read its configuration again.
    pub fn reload(&self) {
        tools::signal(&self.process, Signal::HUP);
    }

    /// Stops all of its threads, until [`Gateway::thaw`].
    pub fn freeze(&self) {
        tools::signal(&self.process, Signal::STOP);
    }

    /// Lets it go on after [`Gateway::freeze`].
    pub fn thaw(&self) {
        tools::signal(&self.process, Signal::CONT);
    }

    /// Returns whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Returns the states of its TCP sockets, as `ss` names them: to show that none is left behind.
    pub fn sockets(&self) -> Vec<String> {
        let listed = GATEWAY.shell("ss -Htan");
        listed
            .lines()
            .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
            .collect()
    }

    /// Its log, after those of the gateways that ran in this lab before it.
    fn every_log(&self) -> String {
        fs::read_to_string(earlier(&self.log)).unwrap_or_default() + &self.stderr()
    }

    /// No secret is in the audit or in a log.
    ///
    /// # Panics
    /// When one is.
    #[track_caller]
    pub fn assert_secrets_untold(&self) {
        let (audit, log) = (self.audit.text(), self.every_log());
        for secret in SECRETS {
            assert!(!audit.contains(secret), "a secret is in the audit: {audit}");
            assert!(!log.contains(secret), "a secret is in the log: {log}");
        }
    }
}

/// Puts what another gateway has logged behind the logs of those before it.
fn keep_log(log: &Path) {
    let Ok(text) = fs::read(log) else { return };
    let mut file = fs::OpenOptions::new().create(true).append(true).open(earlier(log));
    let kept = file.as_mut().map(|file| file.write_all(&text));
    assert!(matches!(kept, Ok(Ok(()))), "the lab's folder is writable");
}

fn earlier(log: &Path) -> PathBuf {
    log.with_file_name("earlier.log")
}

/// At the end of each gateway, whatever the test is about, this asserts that it told no secret, did
/// not panic, and met no error of its own.
impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.assert_secrets_untold();
        let written = self.audit.text() + &self.every_log();
        for word in ["internal_error", "panicked"] {
            assert!(!written.contains(word), "{word}:\n{written}");
        }
    }
}

impl Failed {
    /// Fails the test, with what the program said.
    ///
    /// # Panics
    /// Always.
    #[track_caller]
    pub fn panic(self) -> ! {
        panic!("the gateway did not become ready ({:?}):\n{}", self.status, self.stderr)
    }

    /// Returns the exit code, if it ended by itself.
    pub fn code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code().or(status.signal().map(|signal| -signal)))
    }
}

/// Loads the static guard, which closes the gateway before any daemon runs, with the agents'
/// interfaces, as the first boot does.
///
/// # Panics
/// When nft refuses it.
pub fn guard() {
    let base = tools::repository().join("nft/base.nft");
    GATEWAY.shell(&format!("nft -f '{}'", base.display()));
    GATEWAY.shell(
        "nft add element inet cloakroom_base agent_interfaces '{ \"agents0\", \"agents1\" }'",
    );
}

/// Makes the gateway's kernel forward, which the daemon turns off when it starts: in tests of the
/// packet rules, nothing else may hide a hole in them.
pub fn forward() {
    GATEWAY.enter(|| switches().iter().for_each(|name| sysctl(name, "1")));
}

/// Returns whether the gateway's kernel forwards, between all of its interfaces.
pub fn forwards() -> bool {
    let on = |name: &String| {
        let value = fs::read_to_string(format!("/proc/sys/net/{name}"));
        value.is_ok_and(|value| value.trim() == "1")
    };
    GATEWAY.enter(|| switches().iter().all(on))
}

/// Returns the settings that decide about forwarding. IPv4 has a switch of its own on each
/// interface, which the daemon turns off; the switch that sets all of them comes first.
fn switches() -> Vec<String> {
    let interfaces = ["agents0", "agents1", "wan0"].into_iter().flat_map(|interface| {
        ["ipv4", "ipv6"].map(|family| format!("{family}/conf/{interface}/forwarding"))
    });
    let all = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"].map(str::to_owned);
    all.into_iter().chain(interfaces).collect()
}

/// Writes the configuration, with `{dir}` replaced by the lab's folder, and the files it names.
pub fn install(lab: &Lab, config: &dyn Display) -> PathBuf {
    lab.write("secrets.toml", secrets_file());
    install_as(lab, "cloakroom.toml", config)
}

/// Does the same under another name in the lab's folder.
pub fn install_as(lab: &Lab, name: &str, config: &dyn Display) -> PathBuf {
    lab.write(name, config.to_string().replace("{dir}", &lab.dir.display().to_string()))
}

/// Makes the root, the issuing CAs, and `agents.pem`, which agents trust: the gateway's root and
/// the public one.
fn certificates(lab: &Lab, config: &PathBuf) -> Result<(), Failed> {
    let folder = lab.dir.join("root");
    if !folder.exists() {
        checked(program().args(["ca", "init", "--dir"]).arg(&folder))?;
    }
    checked(program().args(["ca", "issue", "--dir"]).arg(&folder).arg(config))?;
    let root = checked(program().args(["ca", "show", "--dir"]).arg(&folder))?;
    let bundle = [String::from_utf8_lossy(&root.stdout).as_ref(), lab.public.pem()].concat();
    lab.write("agents.pem", bundle);
    Ok(())
}

/// Returns a command that runs the program inside the gateway's namespace.
pub fn program() -> Command {
    GATEWAY.command(tools::cloakroom())
}

/// The same where the kernel forwards and other files say that it does not.
fn forwarding(lab: &Lab) -> Command {
    forward();
    let off = lab.write("off", "0\n");
    let mount =
        |name: &String| format!("mount --bind '{}' /proc/sys/net/{name} && ", off.display());
    let mounts: String = switches().iter().map(mount).collect();
    let mut program = GATEWAY.command("sh");
    program.args(["-c", &format!("{mounts} exec \"$0\" \"$@\"")]).arg(tools::cloakroom());
    program
}

fn checked(command: &mut Command) -> Result<Output, Failed> {
    let output = command.output().expect("the program starts");
    if output.status.success() {
        return Ok(output);
    }
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Failed { status: Some(output.status), stderr })
}

/// Returns the lab's usual policy: two groups, three APIs, one host that is spliced.
pub fn usual_config() -> Config {
    let research = binding("research", "OPENAI_API_KEY", &[BEARER], "file:openai");
    let operations = binding("operations", "OPS_OPENAI_KEY", &[BEARER], "file:ops");
    let places = ["header x-api-key raw", BEARER];
    let anthropic = binding("research", "ANTHROPIC_API_KEY", &places, "file:anthropic");
    let git = binding("research", "GIT_TOKEN", &["basic password"], "file:git");
    Config::new()
        .gateway("audit", "{dir}/audit.jsonl")
        .gateway("ca_dir", "{dir}/issuing")
        .gateway("state_dir", "{dir}/state")
        .gateway("control", "{dir}/control/control.sock")
        .gateway("resolvers", ["203.0.113.53"])
        .gateway("ipv6", true)
        .gateway("ports", [443, 80])
        .secrets("file", "{dir}/secrets.toml")
        .with(group("research", "agents0", &["192.0.2.0/25", "2001:db8:a::/64"]))
        .with(group("operations", "agents1", &["192.0.2.128/25", "2001:db8:b::/64"]))
        .with(usual_api("openai", OPENAI, &OPENAI_PATHS).with(research).with(operations))
        .with(usual_api("anthropic", ANTHROPIC, &["/v1/*"]).with(anthropic))
        .with(
            usual_api("git", GIT, &["/*"])
                .set("anonymous", true)
                .with(git.set("basic_user", "agent")),
        )
        .with(splice("pypi", &["research"], &["pypi.example", "*.cdn.example"]).set("ports", [443]))
}

/// Returns the usual policy with every secret from Vault.
pub fn from_vault(usual: Config) -> Config {
    let bindings = [
        ("OPENAI_API_KEY", "openai"),
        ("ANTHROPIC_API_KEY", "anthropic"),
        ("GIT_TOKEN", "git"),
        ("OPS_OPENAI_KEY", "ops"),
    ];
    bindings.into_iter().fold(usual.without("secrets"), |config, (placeholder, name)| {
        let secret = format!("vault:kv/agents/{name}#api_key");
        config.binding(placeholder, |it| it.set("secret", secret))
    })
}

/// Returns a configuration for a machine of its own: every folder is the default one, and files are
/// beside the configuration.
pub fn with_default_folders(config: Config) -> Config {
    let folders = ["audit", "ca_dir", "state_dir", "control"];
    folders.into_iter().fold(config, Config::without_gateway).moved("{dir}/", "")
}

/// Adds a Vault that is absent to a configuration's other sources of secrets.
pub fn with_absent_vault(config: Config) -> Config {
    let login = Table::section("approle").set("role_id", "lab");
    config
        .vault("address", format!("https://{VAULT}:8200"))
        .vault("ca_file", PUBLIC_CA)
        .login(login.set("secret_id_file", "{dir}/secret-id"))
}

/// Returns an API of the lab whose agents may read and post at these paths.
fn usual_api(name: &str, host: Host, paths: &[&str]) -> Table {
    let api = api(name, &[host.name]).set("methods", ["GET", "POST"]).set("paths", paths);
    api.set("upstream_ca", PUBLIC_CA)
}

/// The usual place of a key.
pub const BEARER: &str = "header authorization bearer";
/// The CA that issued the certificates of the lab's origins.
pub const PUBLIC_CA: &str = "{dir}/public-ca.pem";
/// The paths of the first API that agents may use.
const OPENAI_PATHS: [&str; 10] = [
    "/v1/*",
    "/reflect",
    "/reflect-split",
    "/sse",
    "/big",
    "/slow",
    "/cut",
    "/trailers",
    "/redirect",
    "/status/*",
];

fn secrets_file() -> String {
    let names = ["openai", "anthropic", "git", "ops"];
    names.iter().zip(SECRETS).map(|(name, value)| format!("{name} = {value}\n")).collect()
}
