//! Programs that agents run: the hosts that each needs beside its API, the variables that it reads
//! from its environment, and the names that it asks for but does not need.
//!
//! Each program is a file of `clients/`. Its rules are written as in a configuration, so that one
//! parser reads both.
//! reads both.

use std::{collections::BTreeMap, sync::LazyLock};

use serde::Deserialize;
use toml::de::{DeTable, DeValue};

use super::file::{files, of, table};

/// One program that agents run.
pub struct Client {
    /// The name in a configuration.
    pub name: &'static str,
    about: ClientHeader,
    text: &'static str,
    variables: BTreeMap<String, String>,
    keys: BTreeMap<String, String>,
    anonymous: BTreeMap<String, Vec<String>>,
    rules: Vec<ClientRule>,
}

/// A rule that a program needs.
pub(crate) struct ClientRule {
    /// `splice` or `inspect`.
    pub(crate) kind: &'static str,
    /// All entries of the rule except its group.
    pub(crate) entries: DeTable<'static>,
}

/// The table `[client]`: texts for people, and the names.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientHeader {
    title: String,
    note: Option<String>,
    #[serde(default)]
    providers: Vec<String>,
    #[serde(default)]
    quiet: Vec<String>,
    #[serde(default)]
    ran: Vec<String>,
}

impl Client {
    /// Returns the program's name for people.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.about.title
    }

    /// Returns some sentences that an operator should know before using it.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        self.about.note.as_ref().map(|note| note.replace('\n', " "))
    }

    /// Returns the APIs that it speaks to, by the names of their providers.
    #[must_use]
    pub fn providers(&self) -> &[String] {
        &self.about.providers
    }

    /// Returns names that it asks for but does not need: telemetry, and looking for newer versions.
    #[must_use]
    pub fn quiet(&self) -> &[String] {
        &self.about.quiet
    }

    /// Returns the programs, each with its version, that a test of this project runs by these
    /// rules.
    #[must_use]
    pub fn ran(&self) -> &[String] {
        &self.about.ran
    }

    /// Returns the variables that are set in its environment, whatever the policy.
    #[must_use]
    pub fn variables(&self) -> &BTreeMap<String, String> {
        &self.variables
    }

    /// Returns further variables that hold a placeholder, each with the provider of the key.
    #[must_use]
    pub fn keys(&self) -> &BTreeMap<String, String> {
        &self.keys
    }

    /// Returns its requests that carry no credential, by the API's host: methods with paths.
    #[must_use]
    pub fn anonymous(&self) -> &BTreeMap<String, Vec<String>> {
        &self.anonymous
    }

    pub(crate) fn rules(&self) -> &[ClientRule] {
        &self.rules
    }

    /// Returns the hosts of its rules, for people.
    #[cfg(test)]
    pub(crate) fn hosts(&self) -> Vec<&str> {
        let lists = self.rules.iter().filter_map(|rule| rule.entries.get("hosts"));
        let hosts = lists.filter_map(|hosts| hosts.get_ref().as_array()).flatten();
        hosts.filter_map(|host| host.get_ref().as_str()).collect()
    }

    /// Returns the rules that `client = ["NAME"]` adds, as a configuration has them.
    #[must_use]
    pub fn as_toml(&self) -> String {
        let begin = self.text.find("\n[[").unwrap_or(self.text.len());
        let rules = self.text.get(begin..).unwrap_or_default().trim();
        rules.lines().fold(String::new(), |text, line| {
            let groups = if line.starts_with("name = ") { "groups = [\"...\"]\n" } else { "" };
            text + line + "\n" + groups
        })
    }
}

/// Returns all clients, in the order of their names.
pub fn clients() -> &'static [Client] {
    &CLIENTS
}

/// Returns the client of this name.
#[must_use]
pub fn client(name: &str) -> Option<&'static Client> {
    clients().iter().find(|client| client.name == name)
}

static CLIENTS: LazyLock<Vec<Client>> =
    LazyLock::new(|| FILES.iter().filter_map(|(name, text)| read(name, text)).collect());

/// Reads a client's file. Returns `None` where the file is wrong, which a test rules out.
fn read(name: &'static str, text: &'static str) -> Option<Client> {
    let mut file = DeTable::parse(text).ok()?.into_inner();
    let about = ClientHeader::deserialize(of(text, table(&mut file, "client")?)).ok()?;
    let mut texts = |key| match table(&mut file, key) {
        Some(table) => BTreeMap::deserialize(of(text, table)).ok(),
        None => Some(BTreeMap::new()),
    };
    let (variables, keys) = (texts("variables")?, texts("keys")?);
    let anonymous = match table(&mut file, "anonymous") {
        Some(table) => BTreeMap::deserialize(of(text, table)).ok()?,
        None => BTreeMap::new(),
    };
    let mut rules = Vec::new();
    for kind in ["splice", "inspect"] {
        if let Some(DeValue::Array(items)) = file.remove(kind).map(toml::Spanned::into_inner) {
            for item in items {
                let DeValue::Table(entries) = item.into_inner() else { return None };
                rules.push(ClientRule { kind, entries });
            }
        }
    }
    let known = file.is_empty();
    known.then_some(Client { name, about, text, variables, keys, anonymous, rules })
}

const FILES: &[(&str, &str)] = files!["clients":
    "aider" "apt-debian" "apt-ubuntu" "cargo" "claude-code" "codex" "copilot" "gemini-cli" "git"
    "git-lfs" "go" "litellm" "llm" "npm" "opencode" "pip" "qwen-code" "uv" "yarn"
];

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn every_file_is_read_and_in_order() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/catalogue/clients");
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<String> =
            entries.map(|path| path.file_stem().unwrap().to_str().unwrap().into()).collect();
        files.sort_unstable();
        let names: Vec<&str> = clients().iter().map(|client| client.name).collect();
        assert_eq!(names, files);
    }

    #[test]
    fn a_clients_hosts_are_exact_names_and_not_quiet() {
        for client in clients() {
            assert!(client.hosts().iter().all(|host| !host.contains('*')), "{}", client.name);
            for host in client.quiet() {
                assert!(!client.hosts().contains(&host.as_str()), "{}: {host}", client.name);
            }
        }
    }
}
