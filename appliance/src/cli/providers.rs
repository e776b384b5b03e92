//! `cloakroom providers`: what `provider = "NAME"` stands for.

use std::fmt::Write as _;

use clap::Args;

use crate::catalogue::{self, Provider};

/// Which of them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cloakroom providers\n  cloakroom providers anthropic\n\n\
    In the configuration `provider = \"anthropic\"` in an [[api]] means all that is printed, and keys\n\
    beside it count instead of those of the same name.")]
pub struct ProvidersArgs {
    /// One of them, as a configuration has it; without it, all in a line each
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// The list, or one of them.
///
/// # Errors
///
/// Where no provider has this name.
pub fn shown(ProvidersArgs { name }: &ProvidersArgs) -> Result<String, String> {
    let Some(name) = name else { return Ok(list()) };
    let provider = catalogue::provider(name).ok_or_else(|| {
        format!("no provider is named {name:?}; `cloakroom providers` lists them")
    })?;
    Ok(page(provider))
}

fn list() -> String {
    let line = |it: &Provider| format!("{:<16}{}\n", it.name, it.title());
    catalogue::providers().iter().map(line).collect()
}

fn page(provider: &Provider) -> String {
    let mut page = format!("# {}\n", provider.title());
    for line in provider.note().iter().flat_map(|note| note.lines()) {
        let _ = writeln!(page, "# {line}");
    }
    let _ = match provider.ran() {
        [] => writeln!(page, "# No client was run with it."),
        ran => writeln!(page, "# Run with {}.", ran.join(", ")),
    };
    page + &provider.as_toml()
}
