//! `guard`: prints the static guard for the interfaces of a configuration, or hands it to nft.
//!
//! Only nft loads the guard: this program writes to no table except its daemon's.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::{Command, Stdio},
};

use clap::Args;

use crate::config::DEFAULT_CONFIG;

/// Arguments of `cloakroom guard`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cloakroom guard /etc/cloakroom/cloakroom.toml | nft -c -f -\n  \
    cloakroom guard --load /etc/cloakroom/cloakroom.toml\n\n\
    Of the configuration only the interfaces of its groups are read, so that a mistake\n\
    elsewhere in it does not keep the guard from being loaded. Loading it again replaces its\n\
    rules in one transaction, and takes no interface away."
)]
pub struct GuardArgs {
    /// The configuration
    #[arg(value_name = "CONFIG", default_value = DEFAULT_CONFIG)]
    pub config: PathBuf,
    /// Have nft load it, instead of printing it
    #[arg(long)]
    pub load: bool,
}

/// Has `nft` load this text in one transaction.
///
/// # Errors
///
/// There is no nft, or it refuses.
pub fn load(text: &str) -> io::Result<()> {
    let mut nft = Command::new("nft");
    let mut nft = nft.args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
    let written = nft.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(text.as_bytes()));
    let status = nft.wait()?;
    written?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other("nft refused it, as it says above")),
    }
}
