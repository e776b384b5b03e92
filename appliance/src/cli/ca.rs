//! `cloakroom ca`: makes the root, makes the issuing CAs, shows what agents must trust.
//!
//! No other command opens the root's key, and of this one only `init` and `issue` do.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use clap::{Args, Subcommand};

use crate::{
    ca::{self, CaError, Root, RootCertificate},
    config::{DEFAULT_CONFIG, PkiSettings, Settings},
    policy::Policy,
};

/// Make and show the certificates that agents trust.
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Make the root that agents will trust; done once.
    #[command(
        after_help = "Example:\n  cloakroom ca init --dir /root/cloakroom-root --name 'Example Ltd'\n\n\
        Keep the folder away from the daemon, and offline where you can: `ca issue` needs it \
        again\nbefore a third of 90 days is left."
    )]
    Init(InitArgs),
    /// Make the issuing CAs that a configuration needs; safe to run again, from a timer too.
    #[command(
        after_help = "Example:\n  cloakroom ca issue --dir /root/cloakroom-root /etc/cloakroom/cloakroom.toml\n\n\
        Each is limited to the names of its rule. One is made where there is none, its names \
        changed,\nanother root signed it, or a third of its life or less is left. Then reload the daemon.\n\
        Not for a configuration with [vault.pki]: there Vault signs them, for the daemon itself.\n\
        With --init the root is made, too, where there is none; and there is nothing to do, and no \
        error,\nwhere Vault signs them. For a machine that keeps its own root, such as the router image."
    )]
    Issue(IssueArgs),
    /// Print the root, or a bundle with the system's CAs, for the agents' trust stores.
    #[command(
        after_help = "Examples:\n  cloakroom ca show --dir /root/cloakroom-root > cloakroom-root.pem\n  \
        cloakroom ca show --dir /root/cloakroom-root --bundle > cloakroom-bundle.pem\n  \
        cloakroom ca show --bundle /etc/cloakroom/cloakroom.toml > cloakroom-bundle.pem\n\n\
        A configuration with [vault.pki] names the root itself; any other needs --dir.\n\
        Use the bundle for SSL_CERT_FILE, REQUESTS_CA_BUNDLE and the like, which replace the \
        system's\nCAs; use the root for NODE_EXTRA_CA_CERTS and update-ca-certificates, which add \
        to them."
    )]
    Show(ShowArgs),
}

/// Arguments of `cloakroom ca init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Folder of the root; made where there is none
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Name that people see in their trust stores; a random id is added
    #[arg(long, value_name = "TEXT", default_value = ROOT_NAME)]
    pub name: String,
}

/// Arguments of `cloakroom ca issue`.
#[derive(Debug, Args)]
pub struct IssueArgs {
    /// Folder of the root
    #[arg(long, value_name = "ROOTDIR")]
    pub dir: PathBuf,
    /// Make the root where there is none, and do nothing where Vault signs the issuing CAs
    #[arg(long)]
    pub init: bool,
    /// The daemon's configuration; it names the folder of the issuing CAs
    #[arg(value_name = "CONFIG", default_value = DEFAULT_CONFIG)]
    pub config: PathBuf,
}

/// Arguments of `cloakroom ca show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Folder of the root; only root.pem is read
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Without --dir, a configuration with [vault.pki], whose root_file is read
    #[arg(value_name = "CONFIG", default_value = DEFAULT_CONFIG, conflicts_with = "dir")]
    pub config: PathBuf,
    /// Add the CAs that this system trusts
    #[arg(long)]
    pub bundle: bool,
}

/// The reasons why the command failed; `E` is the error of loading the configuration.
#[derive(Debug, thiserror::Error)]
pub enum CaCommandError<E> {
    /// The configuration.
    #[error("{0}")]
    Config(E),
    /// The certificates.
    #[error("{0}")]
    Ca(CaError),
    /// Vault's engine at this mount signs the issuing CAs; our root does not.
    #[error(
        "the issuing CAs of this configuration are signed by Vault at {0}/, for the daemon itself \
         ([vault.pki]); there is nothing to issue"
    )]
    SignedByVault(Arc<str>),
    /// The configuration does not name the root.
    #[error("this configuration has no [vault.pki]; say --dir DIR")]
    NoRoot,
    /// The output.
    #[error("cannot write the output: {0}")]
    Output(io::Error),
}

/// Runs the command at the time `now` and writes its result to `out`. `load` reads the
/// configuration, where the command names one.
pub fn run<E>(
    command: CaCommand,
    load: impl FnOnce(&Path) -> Result<(Settings, Policy), E>,
    now: SystemTime,
    out: &mut impl Write,
) -> Result<(), CaCommandError<E>> {
    match command {
        CaCommand::Init(args) => init(&args, now, out),
        CaCommand::Issue(args) => {
            let (settings, policy) = load(&args.config).map_err(CaCommandError::Config)?;
            issue(&args, &settings, &policy, now, out)
        }
        CaCommand::Show(args) => show(&args, load, out),
    }
}

fn init<E>(
    args: &InitArgs,
    now: SystemTime,
    out: &mut impl Write,
) -> Result<(), CaCommandError<E>> {
    make_root(&args.dir, &args.name, now, out)?;
    writeln!(out, "next: cloakroom ca issue --dir {} CONFIG", args.dir.display())?;
    Ok(())
}

fn make_root<E>(
    dir: &Path,
    name: &str,
    now: SystemTime,
    out: &mut impl Write,
) -> Result<Root, CaCommandError<E>> {
    let root = Root::init(dir, name, now)?;
    let dir = dir.display();
    writeln!(out, "made `{}`: {dir}/root.pem, its key {dir}/root.key", root.certificate().name())?;
    Ok(root)
}

/// The name that people see in their trust stores.
const ROOT_NAME: &str = "Cloakroom root";

fn issue<E>(
    args: &IssueArgs,
    settings: &Settings,
    policy: &Policy,
    now: SystemTime,
    out: &mut impl Write,
) -> Result<(), CaCommandError<E>> {
    if let Some(pki) = pki(settings) {
        let by_vault = CaCommandError::SignedByVault(Arc::clone(&pki.mount));
        return if args.init { Ok(()) } else { Err(by_vault) };
    }
    let root = match args.init && !Root::is_in(&args.dir) {
        true => make_root(&args.dir, ROOT_NAME, now, out)?,
        false => Root::open(&args.dir, now)?,
    };
    for issued in ca::issue(&root, &settings.ca_dir, policy, now)? {
        writeln!(out, "{issued}")?;
    }
    let left = root.days_left(now)?;
    if left < YEAR {
        writeln!(out, "the root itself has {left} days left; give agents another one before that")?;
    }
    Ok(())
}

/// Days of a year.
const YEAR: i64 = 365;

fn pki(settings: &Settings) -> Option<&PkiSettings> {
    settings.vault.as_ref()?.pki.as_ref()
}

fn show<E>(
    args: &ShowArgs,
    load: impl FnOnce(&Path) -> Result<(Settings, Policy), E>,
    out: &mut impl Write,
) -> Result<(), CaCommandError<E>> {
    let root = match (&args.dir, &args.config) {
        (Some(dir), _) => RootCertificate::load(dir)?,
        (None, config) => {
            let (settings, _) = load(config).map_err(CaCommandError::Config)?;
            RootCertificate::from_file(&pki(&settings).ok_or(CaCommandError::NoRoot)?.root_file)?
        }
    };
    let text = match args.bundle {
        // Single certificates that cannot be read are skipped, as TLS libraries do.
        true => root.to_bundle(&rustls_native_certs::load_native_certs().certs)?,
        false => root.to_pem(),
    };
    Ok(out.write_all(text.as_bytes())?)
}

impl<E> From<CaError> for CaCommandError<E> {
    fn from(error: CaError) -> Self {
        Self::Ca(error)
    }
}

impl<E> From<io::Error> for CaCommandError<E> {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ca::testing::{Scratch, api, now, policy, settings},
        config::Settings,
    };
    use clap::Parser;
    use policy_builder::{Config, Table, group};

    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        command: CaCommand,
    }

    fn ca(words: &[&str], loaded: Option<(Settings, Policy)>) -> Result<String, String> {
        let command = Cli::try_parse_from(std::iter::once(&"ca").chain(words)).unwrap().command;
        let mut out = Vec::new();
        let load = |_: &Path| loaded.ok_or("no configuration");
        run(command, load, now(), &mut out).map_err(|error| error.to_string())?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn init_issue_and_show_make_all_that_both_sides_need() {
        let scratch = Scratch::new();
        // Folders above it are made, too.
        let dir = scratch.path("of/root");
        let dir = dir.to_str().unwrap();
        assert!(ca(&["init", "--dir", dir, "--name", "Lab"], None).unwrap().contains("made `Lab "));
        let loaded =
            || (settings(&scratch.path("state/ca")), policy(vec![api("openai", &["a.test"])]));
        let issue = ["issue", "--dir", dir, "x.toml"];
        assert_eq!(ca(&issue, Some(loaded())).unwrap(), "openai: made, because there is none\n");
        assert_eq!(ca(&issue, Some(loaded())).unwrap(), "openai: kept, 90 days left\n");

        let root = ca(&["show", "--dir", dir], None).unwrap();
        assert_eq!(root, std::fs::read_to_string(scratch.path("of/root/root.pem")).unwrap());
        assert!(!root.contains("PRIVATE"));
    }

    #[test]
    fn a_machine_that_keeps_its_root_makes_it_once() {
        let scratch = Scratch::new();
        let dir = scratch.path("root");
        let issue = ["issue", "--init", "--dir", dir.to_str().unwrap(), "x.toml"];
        let loaded =
            || (settings(&scratch.path("state/ca")), policy(vec![api("openai", &["a.test"])]));
        let first = ca(&issue, Some(loaded())).unwrap();
        assert!(first.starts_with("made `Cloakroom root "), "{first}");
        let root = std::fs::read(dir.join("root.pem")).unwrap();
        assert_eq!(ca(&issue, Some(loaded())).unwrap(), "openai: kept, 90 days left\n");
        assert_eq!(std::fs::read(dir.join("root.pem")).unwrap(), root);

        // A damaged root is never replaced, because agents trust it.
        std::fs::remove_file(dir.join("root.pem")).unwrap();
        assert!(ca(&issue, Some(loaded())).is_err());
        assert!(!dir.join("root.pem").exists());
    }

    #[test]
    fn show_never_opens_the_key() {
        let scratch = Scratch::new();
        let dir = scratch.path("root");
        ca(&["init", "--dir", dir.to_str().unwrap()], None).unwrap();
        std::fs::remove_file(dir.join("root.key")).unwrap();
        assert!(ca(&["show", "--dir", dir.to_str().unwrap()], None).is_ok());
        let issue = ["issue", "--dir", dir.to_str().unwrap(), "x.toml"];
        let loaded = (settings(&scratch.path("ca")), policy(vec![]));
        assert!(ca(&issue, Some(loaded)).is_err());
    }

    #[test]
    fn with_vault_nothing_is_issued_and_its_root_is_shown() {
        let scratch = Scratch::new();
        let dir = scratch.path("root");
        let dir = dir.to_str().unwrap();
        ca(&["init", "--dir", dir], None).unwrap();
        let login = Table::section("approle").set("role_id", "x").set("secret_id_file", "x");
        let pki = Table::section("pki").set("root_file", format!("{dir}/root.pem"));
        let file = Config::new()
            .gateway("resolvers", ["192.0.2.53"])
            .vault("address", "http://127.0.0.1:1")
            .vault("plain_http", true)
            .login(login)
            .below_vault(pki)
            .with(group("g", "a0", &["198.51.100.0/24"]));
        let loaded = || {
            let config = crate::config::testing::config(&file);
            (config.settings, config.policy)
        };
        let error = ca(&["issue", "--dir", dir, "x.toml"], Some(loaded())).unwrap_err();
        assert!(error.contains("signed by Vault at pki/"), "{error}");
        let kept = scratch.path("none");
        let init = ["issue", "--init", "--dir", kept.to_str().unwrap(), "x.toml"];
        assert_eq!(ca(&init, Some(loaded())).unwrap(), "");
        assert!(!kept.exists());
        let shown = ca(&["show", "x.toml"], Some(loaded())).unwrap();
        assert_eq!(shown, ca(&["show", "--dir", dir], None).unwrap());
        let without = (settings(&scratch.path("ca")), policy(vec![]));
        let error = ca(&["show", "x.toml"], Some(without)).unwrap_err();
        assert!(error.contains("--dir DIR"), "{error}");
    }

    #[test]
    fn errors_are_one_clear_line() {
        let scratch = Scratch::new();
        let dir = scratch.path("none");
        let dir = dir.to_str().unwrap();
        assert!(ca(&["show", "--dir", dir], None).unwrap_err().starts_with(dir));
        assert_eq!(ca(&["issue", "--dir", dir, "x"], None).unwrap_err(), "no configuration");
        assert!(
            ca(&["init", "--dir", dir, "--name", "a\nb"], None).unwrap_err().contains("1 to 48")
        );
        ca(&["init", "--dir", dir], None).unwrap();
        let again = ca(&["init", "--dir", dir], None).unwrap_err();
        assert!(again.contains("never overwritten") && !again.contains('\n'), "{again}");
    }
}
