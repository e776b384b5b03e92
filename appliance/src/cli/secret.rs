//! `cloakroom secret`: the embedded store. Values come in through a prompt or standard input, and
//! never go out.

use std::{
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};
use zeroize::Zeroizing;

use crate::{
    config::{Config, DEFAULT_CONFIG, Errors, SecretFile},
    policy::{Policy, SecretRef},
    secrets::{EditError, SealedFile, SecretValue},
};

/// The commands for the embedded store.
#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Make the key and an empty file of secrets, where they are missing
    #[command(after_help = "Example:\n  cloakroom secret init\n\n\
        With systemd the key can stay sealed to the machine:\n  \
        systemd-creds encrypt --name=cloakroom-key /etc/cloakroom/secrets/key \\\n    \
        /etc/cloakroom/cloakroom-key.cred")]
    Init(SecretFileArgs),
    /// Set a secret; its value is asked for, or read from standard input
    #[command(after_help = "Examples:\n  cloakroom secret set openai\n  \
        vault kv get -field=api_key kv/openai | cloakroom secret set openai\n  \
        cloakroom reload\n\n\
        The value is 8 to 8192 visible ASCII characters. One line end after it is not part\n\
        of it. The gateway takes it at the next reload, or by itself within its refresh.")]
    Set {
        /// The name that a binding writes as "file:NAME"
        name: String,
        /// Where it is
        #[command(flatten)]
        of: SecretFileArgs,
    },
    /// Show the names of the secrets, and those that a binding names and that are missing
    #[command(after_help = "Example:\n  cloakroom secret list")]
    List(SecretFileArgs),
    /// Take a secret out
    #[command(after_help = "Example:\n  cloakroom secret rm openai && cloakroom reload")]
    Rm {
        /// Its name
        name: String,
        /// Where it is
        #[command(flatten)]
        of: SecretFileArgs,
    },
}

/// The configuration that names the file of secrets and its key.
#[derive(Debug, Args)]
pub struct SecretFileArgs {
    /// The configuration
    #[arg(value_name = "CONFIG", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
}

/// The reasons why the command failed. Carries no part of any secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretCommandError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(Errors),
    /// It names no encrypted file of secrets.
    #[error(
        "the configuration names no encrypted file of secrets: set file and key_file in [secrets], \
         then run `cloakroom secret init`"
    )]
    NotEncrypted,
    /// The file of secrets could not be used or changed.
    #[error("{0}: {1}")]
    Edit(PathBuf, EditError),
    /// The value could not be read.
    #[error("cannot read the value: {0}")]
    Input(io::Error),
    /// The output could not be written.
    #[error("cannot write the output: {0}")]
    Output(io::Error),
}

/// Runs the command and writes its messages to `out`.
pub fn run(
    command: SecretCommand,
    load: impl Fn(&Path) -> Result<Config, Errors>,
    out: &mut impl Write,
) -> Result<(), SecretCommandError> {
    let (SecretCommand::Init(of)
    | SecretCommand::Set { of, .. }
    | SecretCommand::List(of)
    | SecretCommand::Rm { of, .. }) = &command;
    let Config { settings, policy } = load(&of.config).map_err(SecretCommandError::Config)?;
    let Some(SecretFile { path, key: Some(key) }) = settings.secret_file else {
        return Err(SecretCommandError::NotEncrypted);
    };
    let file = SealedFile::new(path.clone(), key);
    let said = match &command {
        SecretCommand::Init(_) => file.init().map(|made| {
            format!("{}: {}\n", path.display(), if made { "made" } else { "there already" })
        }),
        SecretCommand::Set { name, .. } => {
            let value = read_value(name).map_err(SecretCommandError::Input)?;
            let length = value.trim_ascii_end().len();
            if length == 0 {
                return Err(SecretCommandError::Input(io::Error::other(NO_VALUE)));
            }
            file.set(name, value).map(|new| {
                let done = if new { "set" } else { "changed" };
                format!("{name}: {done}{}\n", notes(name, length, &policy))
            })
        }
        SecretCommand::List(_) => file.names().map(|names| listing(&names, &policy)),
        SecretCommand::Rm { name, .. } => file.remove(name).map(|()| format!("{name}: removed\n")),
    };
    let said = said.map_err(|error| SecretCommandError::Edit(path, error))?;
    out.write_all(said.as_bytes()).map_err(SecretCommandError::Output)
}

/// Returns the reasons why a value that has been set is not used.
fn notes(name: &str, length: usize, policy: &Policy) -> String {
    let mut least = bound(policy).filter(|(bound, _)| *bound == name).map(|(_, least)| least);
    let Some(first) = least.next() else { return "; no binding names it".to_owned() };
    if length >= least.fold(first, usize::max) {
        return String::new();
    }
    format!(
        "; it has {length} bytes, so write min_value_bytes = {length} in its bindings, or it is not \
         used (value_invalid)"
    )
}

fn listing(names: &[String], policy: &Policy) -> String {
    let mut missing: Vec<&str> = bound(policy)
        .map(|(needed, _)| needed)
        .filter(|needed| !names.iter().any(|name| name == needed))
        .collect();
    missing.sort_unstable();
    missing.dedup();
    let there = names.iter().map(|name| match bound(policy).any(|(bound, _)| bound == name) {
        true => format!("{name}\n"),
        false => format!("{name}  in no binding\n"),
    });
    there.chain(missing.iter().map(|name| format!("{name}  missing\n"))).collect()
}

/// Returns the names that bindings use, each with the fewest bytes that its value may have there.
fn bound(policy: &Policy) -> impl Iterator<Item = (&str, usize)> {
    let bindings = policy.apis.iter().flat_map(|api| &api.bindings);
    bindings.filter_map(|binding| match &binding.secret {
        SecretRef::File { name } => Some((&**name, binding.min_value_bytes)),
        _ => None,
    })
}

/// Reads a line from the terminal, which does not show it, or all of standard input.
fn read_value(name: &str) -> io::Result<Zeroizing<Vec<u8>>> {
    let input = io::stdin();
    if !input.is_terminal() {
        return read_bounded(&input, |_| false);
    }
    let mut terminal = io::stderr();
    // Begun before the prompt: a user may type, or paste, as soon as the prompt is there.
    let silent = Silent::begin()?;
    write!(terminal, "Value of {name}: ")?;
    terminal.flush()?;
    let line = read_bounded(&input, |read| read.ends_with(b"\n") || silent.interrupts(read))?;
    if silent.interrupts(&line) {
        writeln!(terminal)?;
        return Err(io::Error::other("interrupted"));
    }
    if line.len() >= TERMINAL_LINE {
        return Err(io::Error::other(
            "a terminal cuts lines of this length; give the value on standard input",
        ));
    }
    Ok(line)
}

/// Reads until `whole` says so, the input ends, or there are more bytes than a value may have. Uses
/// no buffer of the standard library, because nothing would clear it.
fn read_bounded(
    input: &impl AsFd,
    whole: impl Fn(&[u8]) -> bool,
) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut value = Zeroizing::new(vec![0; SecretValue::MAX_BYTES + 3]);
    let mut filled = 0;
    while let Some(rest) = value.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match rustix::io::read(input, rest) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if value.get(..filled).is_some_and(&whole) {
            break;
        }
    }
    value.truncate(filled);
    Ok(value)
}

/// A terminal that does not show the typed text until this is dropped. The interrupt key ends the
/// line instead of the process, which could not restore the terminal.
struct Silent {
    shown: Termios,
    interrupt: u8,
}

impl Silent {
    fn begin() -> io::Result<Self> {
        let shown = tcgetattr(io::stdin())?;
        let interrupt = shown.special_codes[SpecialCodeIndex::VINTR];
        let mut silent = shown.clone();
        silent.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
        silent.local_modes.insert(LocalModes::ECHONL);
        silent.special_codes[SpecialCodeIndex::VEOL] = interrupt;
        tcsetattr(io::stdin(), OptionalActions::Flush, &silent)?;
        Ok(Self { shown, interrupt })
    }

    /// Returns whether the interrupt key ended the line. A terminal without such a key has NUL.
    fn interrupts(&self, line: &[u8]) -> bool {
        self.interrupt != 0 && line.last() == Some(&self.interrupt)
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // A terminal that is gone shows nothing either.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.shown);
    }
}

const NO_VALUE: &str = "no value came; type it at the prompt, or give it on standard input";

/// Most bytes of a line that a terminal passes on, with its end; it cuts a longer line without an
/// error (`termios(3)`, canonical mode).
const TERMINAL_LINE: usize = 4_096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn setting_a_value_says_if_it_cannot_be_used() {
        let text = |least: usize| {
            format!(
                "[gateway]\nresolvers = [\"192.0.2.53\"]\n[secrets]\nfile = \"secrets\"\n[[group]]\n\
                 name = \"research\"\ninterface = \"agents0\"\nprefixes = [\"192.0.2.0/28\"]\n\
                 [[api]]\nprovider = \"openai\"\n[[api.binding]]\ngroups = [\"research\"]\n\
                 secret = \"file:openai\"\nmin_value_bytes = {least}\n"
            )
        };
        let policy = |least| {
            let none = |_: &Path| Err(io::ErrorKind::NotFound.into());
            config::parse(&text(least), None, "test", &none).unwrap().policy
        };
        let usual = policy(16);
        assert_eq!(notes("openai", 16, &usual), "");
        assert_eq!(notes("opneai", 16, &usual), "; no binding names it");
        let short = notes("openai", 8, &usual);
        assert!(short.contains("has 8 bytes, so write min_value_bytes = 8"), "{short}");
        assert_eq!(notes("openai", 8, &policy(8)), "");
        let names = ["openai".to_owned(), "opneai".to_owned()];
        assert_eq!(listing(&names, &usual), "openai\nopneai  in no binding\n");
        assert_eq!(listing(&[], &usual), "openai  missing\n");
    }
}
