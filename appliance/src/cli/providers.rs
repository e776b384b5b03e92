//! `cloakroom providers`: shows the settings that `provider = "NAME"` stands for.

use std::fmt::Write as _;

use clap::Args;

use crate::{
    catalogue::{self, Provider},
    config,
};

/// The provider to show.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cloakroom providers\n  cloakroom providers anthropic\n\n\
    In the configuration `provider = \"anthropic\"` in an [[api]] means all that is printed, and keys\n\
    beside it count instead of those of the same name.")]
pub struct ProvidersArgs {
    /// One of them, as a configuration has it; without it, all in a line each
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// Returns the list of providers, or the text of one.
///
/// # Errors
///
/// No provider has this name.
pub fn shown(ProvidersArgs { name }: &ProvidersArgs) -> Result<String, String> {
    let Some(name) = name else { return Ok(list()) };
    let provider = catalogue::provider(name).ok_or_else(|| {
        let names = catalogue::providers().iter().map(|provider| provider.name);
        let meant = config::nearest(name, names).map(|name| format!("did you mean {name:?}? "));
        let meant = meant.unwrap_or_default();
        format!("no provider is named {name:?}; {meant}`cloakroom providers` lists them")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_provider_is_named_with_the_one_meant() {
        let of = |name: &str| shown(&ProvidersArgs { name: Some(name.into()) });
        assert!(of("openai").is_ok());
        assert!(of("opneai").unwrap_err().contains("did you mean \"openai\"?"));
        assert!(of("nobody-at-all").unwrap_err().contains("`cloakroom providers` lists them"));
    }
}
