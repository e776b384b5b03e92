//! `cloakroom clients`: shows the rules that `client = ["NAME"]` in a group stands for.

use std::fmt::Write as _;

use clap::Args;

use crate::catalogue::{self, Client};

/// The client to show.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cloakroom clients\n  cloakroom clients claude-code\n\n\
    In the configuration `client = [\"claude-code\", \"pip\"]` in a [[group]] adds the rules that are\n\
    printed, for that group, except for hosts that the group has a rule for already. `cloakroom env GROUP`\n\
    prints the variables among those of the group. The API itself takes its own lines: `cloakroom providers`.")]
pub struct ClientsArgs {
    /// One of them, as a configuration has it; without it, all in a line each
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// Returns the list of clients, or the text of one.
///
/// # Errors
///
/// No client has this name.
pub fn shown(ClientsArgs { name }: &ClientsArgs) -> Result<String, String> {
    let Some(name) = name else { return Ok(list()) };
    let client = catalogue::client(name)
        .ok_or_else(|| format!("no client is named {name:?}; `cloakroom clients` lists them"))?;
    Ok(page(client))
}

fn list() -> String {
    let line = |it: &Client| format!("{:<16}{}\n", it.name, it.title());
    catalogue::clients().iter().map(line).collect()
}

fn page(client: &Client) -> String {
    let mut page = format!("# {}\n", client.title());
    for line in client.note().iter().flat_map(|note| note.lines()) {
        let _ = writeln!(page, "# {line}");
    }
    if !client.providers().is_empty() {
        let _ = writeln!(page, "# Its APIs: provider {}.", client.providers().join(", "));
    }
    if !client.quiet().is_empty() {
        let _ =
            writeln!(page, "# It asks for these and does without: {}.", client.quiet().join(", "));
    }
    for (variable, value) in client.variables() {
        let _ = writeln!(page, "# {variable}={value}");
    }
    for (variable, provider) in client.keys() {
        let _ = writeln!(page, "# {variable}: the placeholder of {provider}");
    }
    for (host, requests) in client.anonymous() {
        let _ = writeln!(
            page,
            "# Without a credential, of the API at {host}: {}.",
            requests.join(", ")
        );
    }
    let _ = match client.ran() {
        [] => writeln!(page, "# Not run with these rules."),
        ran => writeln!(page, "# Run with {}.", ran.join(", ")),
    };
    if client.rules().is_empty() {
        page += "# It takes no rule beside those of its APIs.\n";
    }
    page + &client.as_toml()
}
