//! The command line: the commands that operators type, and the one place that prints.

mod audited;
pub mod ca;
pub mod clients;
pub mod control;
pub mod env;
pub mod explain;
pub mod guard;
mod image;
mod journal;
mod noise;
pub mod providers;
pub mod secret;
pub mod suggest;
pub mod vault;
pub mod watch;

use std::{
    fmt::Display,
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use listenfd::ListenFd;
use tracing::{Level, level_filters::LevelFilter};
use tracing_subscriber::{Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

use self::{
    ca::{CaCommand, CaCommandError},
    clients::ClientsArgs,
    control::{GroupArgs, OrderOutcome, StatusArgs, Target},
    env::EnvArgs,
    explain::{ExplainArgs, NoAnswer},
    guard::GuardArgs,
    image::ImageStatus,
    journal::Prioritized,
    providers::ProvidersArgs,
    secret::{SecretCommand, SecretCommandError},
    suggest::SuggestArgs,
    vault::{VaultCommand, VaultCommandError},
    watch::WatchArgs,
};
use crate::{
    config::{self, Config, DEFAULT_CONFIG, Settings},
    control::{EX_USAGE, Order},
    daemon::{self, DaemonError, Launched, Surroundings},
    harden,
    packets::{self, Capture},
    tls,
};

/// A gateway that gives AI agents claim tickets instead of API keys.
#[derive(Debug, Parser)]
#[command(
    name = "cloakroom",
    version,
    after_help = "Examples:\n  cloakroom check /etc/cloakroom/cloakroom.toml\n  \
    cloakroom ca init --dir /root/cloakroom-root\n  \
    cloakroom ca issue --dir /root/cloakroom-root /etc/cloakroom/cloakroom.toml\n  \
    cloakroom run /etc/cloakroom/cloakroom.toml\n  \
    cloakroom watch --refused /etc/cloakroom/cloakroom.toml\n  \
    cloakroom explain 7f213fc22116f96b\n  \
    cloakroom suggest --since 1h\n  \
    cloakroom env research\n  \
    cloakroom secret set openai\n  \
    cloakroom vault plan /etc/cloakroom/cloakroom.toml\n  \
    cloakroom quarantine research\n\n\
    Exit status: 0 done, 64 the configuration or the command line is wrong, 1 anything else."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway until SIGTERM; SIGHUP reloads the policy
    #[command(
        after_help = "Example:\n  cloakroom run --log debug /etc/cloakroom/cloakroom.toml\n\n\
        Needs CAP_NET_ADMIN, and CAP_NET_BIND_SERVICE for port 53; the guard (`cloakroom guard\n\
        --load CONFIG`); and the issuing CAs (`cloakroom ca issue`), unless Vault signs them. Logs go to standard\n\
        error, audit records where the configuration says."
    )]
    Run {
        /// The configuration
        #[arg(value_name = "CONFIG", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
        /// A file that is there while connections are carried, and not while the gateway is closed
        #[arg(long, value_name = "PATH")]
        ready_file: Option<PathBuf>,
        /// How much to log; never a value, a credential or a body
        #[arg(long, value_enum, default_value_t = Log::Info)]
        log: Log,
    },
    /// Say what a configuration means, or everything that is wrong with it
    #[command(after_help = "Example:\n  cloakroom check /etc/cloakroom/cloakroom.toml")]
    Check {
        /// The configuration
        #[arg(value_name = "CONFIG", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
    },
    /// Print the nftables table that a configuration would install
    #[command(
        after_help = "Example:\n  cloakroom rules /etc/cloakroom/cloakroom.toml | nft -c -f -"
    )]
    Rules {
        /// The configuration
        #[arg(value_name = "CONFIG", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
    },
    /// Print or load the static guard for the interfaces of a configuration
    Guard(GuardArgs),
    /// Show audit records as they are written
    Watch(WatchArgs),
    /// Say why something is refused, and what to write so that it is not
    Explain(ExplainArgs),
    /// Print the rules that would have let through what was refused
    Suggest(SuggestArgs),
    /// Have the running gateway read its configuration and its file of secrets again
    #[command(after_help = "Example:\n  cloakroom reload\n\n\
        An invalid configuration is not taken; its errors are shown, and the old one stays\n\
        in force.")]
    Reload(Target),
    /// Cut a group off at once: its connections, its DNS and its secrets
    #[command(after_help = "Example:\n  cloakroom quarantine research\n\n\
        Holds over restarts and reloads, until `cloakroom release GROUP`.")]
    Quarantine(GroupArgs),
    /// Undo `quarantine`
    #[command(after_help = "Example:\n  cloakroom release research")]
    Release(GroupArgs),
    /// Say whether the running gateway is healthy, and what to do where it is not; never a value
    #[command(after_help = "Examples:\n  cloakroom status\n  \
        cloakroom status --json | jq .health.causes\n\n\
        Healthy: agents get what policy says. Degraded: some get less, or will unless somebody\n\
        acts. Closed: nothing new is carried. Each cause is said, with the time that is left\n\
        where it gets worse by itself.")]
    Status(StatusArgs),
    /// Print the environment of a group's agents: their placeholders, and what they are to trust
    Env(EnvArgs),
    /// List the providers that the configuration knows by name, or print what one stands for
    Providers(ProvidersArgs),
    /// List the programs that the configuration knows by name, or print what one stands for
    Clients(ClientsArgs),
    /// Make, change and list the encrypted file of secrets
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Print the settings that Vault needs, and check a live Vault against them
    #[command(subcommand)]
    Vault(VaultCommand),
    /// Make and show the certificates that agents trust
    #[command(subcommand)]
    Ca(CaCommand),
}

/// The command line as clap sees it, for the man pages and the completions of the package.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Log {
    Error,
    Warn,
    Info,
    Debug,
}

enum CliError {
    /// The configuration is wrong; the text has a line for each error.
    Config(config::Errors),
    /// The exit status and the text: the running daemon's answer, or an error of the command line.
    Told(u8, String),
    /// The exit status of the launched daemon, which has printed the error itself.
    Said(u8),
    /// Anything else, in one line.
    Other(String),
}

const fn usage(text: String) -> CliError {
    CliError::Told(EX_USAGE, text)
}

/// Reads the command line and executes it.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // There is nowhere left to report to where standard error is closed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EX_USAGE } else { 0 });
        }
    };
    // Not only the daemon: other commands also hold Vault's tokens, values or CA keys in memory.
    match harden::process().map_err(CliError::Other).and_then(|()| dispatch(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

fn dispatch(command: Command) -> Result<(), CliError> {
    match command {
        Command::Run { config, ready_file, log } => run(&config, ready_file.as_deref(), log),
        Command::Check { config } => {
            let config = load(&config)?;
            print(&(config::explain(&config) + &here(&config)))
        }
        Command::Rules { config } => {
            let Config { settings, policy } = load(&config)?;
            print(&packets::render(&Capture::new(&policy, &settings)))
        }
        Command::Env(args) => {
            let policy = load(&args.config)?.policy;
            print(&env::environment(&args, &policy).map_err(usage)?)
        }
        Command::Providers(args) => print(&providers::shown(&args).map_err(usage)?),
        Command::Clients(args) => print(&clients::shown(&args).map_err(usage)?),
        Command::Guard(args) => guard(&args),
        Command::Watch(args) => watch(&args),
        Command::Explain(args) => print_answer(explain::answer(&args)),
        Command::Suggest(args) => print_answer(suggest::answer(&args, SystemTime::now())),
        Command::Ca(command) => run_ca(command),
        Command::Secret(command) => run_secret(command),
        Command::Vault(command) => run_vault(command),
        Command::Reload(target) => say(control::tell(&target, &Order::Reload)),
        Command::Status(args) => status(&args),
        Command::Quarantine(named) => say(control::tell_of(named, Order::Quarantine)),
        Command::Release(named) => say(control::tell_of(named, Order::Release)),
    }
}

/// Returns how this machine differs from the configuration, if this machine is the gateway.
fn here(config: &Config) -> String {
    let misfits = packets::misfits(&Capture::new(&config.policy, &config.settings));
    let all = misfits.into_iter().chain(not_there(&config.settings));
    let lines: String = all.map(|misfit| format!("  ! {misfit}\n")).collect();
    if lines.is_empty() { lines } else { format!("\nOn this machine\n{lines}") }
}

/// Returns the files that the daemon needs and that are still missing, as far as this user may
/// look.
fn not_there(settings: &Settings) -> Vec<String> {
    let is_missing = |file: &Path| file.try_exists().is_ok_and(|there| !there);
    let files = settings.files_to_make().into_iter().filter(|(file, _)| is_missing(file));
    files.map(|(file, how)| format!("{} is not there yet: {how}", file.display())).collect()
}

fn run(config: &Path, ready_file: Option<&Path>, log: Log) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::Other(format!("cannot start a runtime: {error}")))?;
    if is_launcher() {
        return launch(&runtime);
    }
    let surroundings = surroundings()?;
    begin_log(log);
    if rustls::crypto::CryptoProvider::install_default(tls::provider()).is_err() {
        return Err(CliError::Other("the TLS provider was set twice".into()));
    }
    let ran = runtime.block_on(daemon::run(config, ready_file, surroundings));
    // A thread that is stuck, as the audit's is while its pipe is full, has had enough time.
    runtime.shutdown_background();
    ran.map_err(|error| match error {
        DaemonError::Config(errors) => CliError::Config(errors),
        other => CliError::Other(other.to_string()),
    })
}

fn begin_log(log: Log) {
    let format = tracing_subscriber::fmt::format().with_ansi(false).with_target(false);
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let layer = match is_journal() {
        true => layer.event_format(Prioritized(format.without_time())).boxed(),
        false => layer.event_format(format).boxed(),
    };
    // The texts of libraries are not under our control, and agents can cause many of them.
    let ours = Targets::new().with_target("cloakroom", log.level());
    tracing_subscriber::registry().with(layer).with(ours).init();
}

/// Returns whether standard error leads to the journal (`JOURNAL_STREAM`, `systemd.exec(5)`).
fn is_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(io::stderr())
        .is_ok_and(|stat| stream == *format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Returns whether a service manager started this process directly.
fn is_launcher() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    set("NOTIFY_SOCKET") && !set(daemon::LAUNCHER)
}

fn launch(runtime: &tokio::runtime::Runtime) -> Result<(), CliError> {
    let arguments = std::env::args_os().skip(1);
    let launched = std::env::current_exe()
        .and_then(|program| runtime.block_on(daemon::launch(&program, arguments)));
    match launched {
        Ok(0) => Ok(()),
        Ok(status) => Err(CliError::Said(status)),
        Err(error) => Err(CliError::Other(format!("cannot start the daemon: {error}"))),
    }
}

/// Reads the variables that a service manager and the launcher set.
fn surroundings() -> Result<Surroundings, CliError> {
    let number = |name| std::env::var_os(name)?.to_str()?.parse::<u64>().ok();
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let for_this = set("WATCHDOG_PID").is_none()
        || number("WATCHDOG_PID") == Some(u64::from(std::process::id()));
    let watchdog = number("WATCHDOG_USEC").filter(|_| for_this).map(Duration::from_micros);
    let launcher = number(daemon::LAUNCHER).and_then(|number| u32::try_from(number).ok());
    let launched = launcher.map(Launched::by).transpose();
    let launched = launched.map_err(|error| CliError::Other(format!("cannot run: {error}")))?;
    // The launcher has removed its own process number.
    let to_launched = launched.is_some() && set("LISTEN_PID").is_none();
    let to_this = number("LISTEN_PID") == Some(u64::from(std::process::id()));
    let handed = if to_this || to_launched { handed() } else { Vec::new() };
    Ok(Surroundings { notify_socket: set("NOTIFY_SOCKET"), watchdog, handed, launched })
}

/// Returns our sockets among those that the service manager passed. Other descriptors are not for
/// us.
fn handed() -> Vec<OwnedFd> {
    let mut all = ListenFd::from_env();
    let count = all.len();
    let take = |at| match all.take_tcp_listener(at) {
        Ok(listener) => listener.map(OwnedFd::from),
        Err(_) => all.take_udp_socket(at).ok().flatten().map(OwnedFd::from),
    };
    (0..count).filter_map(take).collect()
}

fn guard(args: &GuardArgs) -> Result<(), CliError> {
    let interfaces = config::interfaces(&args.config).map_err(CliError::Config)?;
    let text = packets::guard(&interfaces);
    if !args.load {
        return print(&text);
    }
    guard::load(&text).map_err(|error| {
        CliError::Other(format!(
            "the guard is not loaded: {error}; install nftables, and run as root"
        ))
    })
}

fn run_ca(command: CaCommand) -> Result<(), CliError> {
    let load = |path: &Path| config::load(path).map(|config| (config.settings, config.policy));
    let mut out = io::stdout().lock();
    ca::run(command, load, SystemTime::now(), &mut out).map_err(|error| match error {
        CaCommandError::Config(errors) => CliError::Config(errors),
        other => CliError::Other(other.to_string()),
    })
}

fn run_secret(command: SecretCommand) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    secret::run(command, config::load, &mut out).map_err(|error| match error {
        SecretCommandError::Config(errors) => CliError::Config(errors),
        other => CliError::Other(other.to_string()),
    })
}

fn run_vault(command: VaultCommand) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    vault::run(command, config::load, &mut out).map_err(|error| match error {
        VaultCommandError::Config(errors) => CliError::Config(errors),
        other => CliError::Other(other.to_string()),
    })
}

fn say(said: OrderOutcome) -> Result<(), CliError> {
    match said {
        OrderOutcome::Done(text) => print(&text),
        OrderOutcome::Failed(exit, text) => Err(CliError::Told(exit, text)),
    }
}

/// Prints the image's report also where no daemon answers: that is when an operator asks for it.
fn status(args: &StatusArgs) -> Result<(), CliError> {
    let image = ImageStatus::read(Path::new(image::REPORT)).unwrap_or_else(|error| {
        // There is nowhere left to report to where standard error is closed.
        let _ = writeln!(io::stderr(), "cloakroom: {}: {error}", image::REPORT);
        None
    });
    let outcome = control::status(args, image.as_ref());
    if let (OrderOutcome::Failed(..), Some(image)) = (&outcome, &image) {
        print(&image.words())?;
    }
    say(outcome)
}

fn watch(args: &WatchArgs) -> Result<(), CliError> {
    let standard_input = args.file.as_os_str() == "-";
    let config = if standard_input { None } else { Some(load(&args.file)?) };
    if let Some(text) = config.as_ref().and_then(|config| args.no_such_group(&config.policy)) {
        // There is nowhere left to report to where standard error is closed.
        let _ = writeln!(io::stderr(), "cloakroom: {text}");
    }
    watch::run(args, config.as_ref(), &mut io::stdout().lock())
        .map_err(|error| CliError::Other(error.to_string()))
}

fn print_answer(answer: Result<String, NoAnswer>) -> Result<(), CliError> {
    let answer = answer.map_err(|none| match none {
        NoAnswer::Config(errors) => CliError::Config(errors),
        NoAnswer::Other(text) => CliError::Other(text),
    });
    print(&answer?)
}

fn load(path: &Path) -> Result<Config, CliError> {
    config::load(path).map_err(CliError::Config)
}

fn print(text: &str) -> Result<(), CliError> {
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| CliError::Other(format!("cannot write the output: {error}")))
}

fn report(failure: &CliError) -> ExitCode {
    let (text, code): (&dyn Display, u8) = match failure {
        CliError::Config(errors) => (errors, EX_USAGE),
        CliError::Told(exit, text) => (text, *exit),
        CliError::Said(exit) => return ExitCode::from(*exit),
        CliError::Other(text) => (text, 1),
    };
    let text = format!("cloakroom: {text}\n");
    let text = if is_journal() { journal::prioritized(&text, Level::ERROR) } else { text };
    // Where standard error is closed, the exit status still reports the failure.
    let _ = io::stderr().write_all(text.as_bytes());
    ExitCode::from(code)
}

impl Log {
    const fn level(self) -> LevelFilter {
        match self {
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn each_file_still_to_be_made_is_named_with_how() {
        let of = |sources: &str| {
            let text = format!(
                "[gateway]\nresolvers = [\"192.0.2.53\"]\n{sources}\n[[group]]\nname = \"research\"\n\
                 interface = \"agents0\"\nprefixes = [\"192.0.2.0/28\"]\n"
            );
            let folder = std::env::temp_dir();
            let read = |_: &Path| Err(io::Error::from(io::ErrorKind::NotFound));
            let config = config::parse(&text, Some(&folder), "test", &read);
            not_there(&config.unwrap_or_else(|errors| panic!("{errors}")).settings)
        };
        let vault = |login: &str| {
            of(&format!("[vault]\naddress = \"http://127.0.0.1:1\"\nplain_http = true\n{login}"))
        };
        let said = of("[secrets]\nfile = \"no-such-file\"\nkey_file = \"no-such-key\"");
        assert!(said.len() == 2 && said.iter().all(|it| it.contains("cloakroom secret init")));
        assert!(said[1].contains("/no-such-key is not there yet"), "{said:?}");
        let said = of("[secrets]\nfile = \"no-such-file\"");
        assert!(said.len() == 1 && said[0].contains("NAME = VALUE"), "{said:?}");
        let login = "[vault.approle]\nrole_id = \"x\"\nsecret_id_file = \"no-such-id\"";
        let said = vault(&format!("{login}\n[vault.pki]\nroot_file = \"no-such-root\""));
        assert!(said.len() == 2 && said.iter().all(|it| it.contains("cloakroom vault plan")));
        let login = "[vault.cert]\nrole = \"x\"\ncertificate_file = \"no-such-pem\"\nkey_file = \"/dev/null\"";
        let said = vault(login);
        assert!(said.len() == 1 && said[0].contains("no-such-pem"), "{said:?}");
    }

    #[test]
    fn every_command_takes_the_configuration_last_and_has_one_default() {
        let mut looked_at = 0;
        let mut commands: Vec<clap::Command> = vec![Cli::command()];
        while let Some(command) = commands.pop() {
            let name = command.get_name();
            let below: Vec<_> = command.get_subcommands().cloned().collect();
            if below.is_empty() && !["init", "clients", "providers"].contains(&name) {
                let last = command.get_positionals().last().expect(name);
                let value = last.get_value_names().map(|names| names[0].as_str());
                assert_eq!(value, Some("CONFIG"), "{name}");
                assert_eq!(last.get_default_values(), [DEFAULT_CONFIG], "{name}");
                looked_at += 1;
            }
            commands.extend(below);
        }
        assert!(looked_at > 12, "{looked_at}");
    }
}
