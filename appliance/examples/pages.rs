//! Writes the man pages and the completions of the package: `cargo run --example pages -- FOLDER`.

use std::{env, fs, io, path::PathBuf};

use clap_complete::{Shell, generate_to};

fn main() -> io::Result<()> {
    let folder = PathBuf::from(env::args_os().nth(1).ok_or(io::ErrorKind::InvalidInput)?);
    let man = folder.join("man");
    fs::create_dir_all(&man)?;
    // A page for each command, and none for "help COMMAND".
    let mut command = cloakroom::cli::command().disable_help_subcommand(true);
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command, "cloakroom", &folder)?;
    }
    clap_mangen::generate_to(command, man)
}
