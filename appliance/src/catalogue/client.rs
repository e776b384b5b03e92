//! What is known of programs that agents run: the hosts that each needs beside its API, what it
//! reads from its environment, and the names that it asks for and does without.
//!
//! Each is a file of `clients/`. Its rules are in the words of a configuration, so that one parser
//! reads both.

use std::{collections::BTreeMap, sync::LazyLock};

use serde::Deserialize;
use toml::de::{DeTable, DeValue};

use super::file::{files, of, table};

/// What is known of one program.
pub struct Client {
    /// The name in a configuration.
    pub name: &'static str,
    about: About,
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
    /// Everything in it but whose it is.
    pub(crate) entries: DeTable<'static>,
}

/// The table `[client]`: what is for people, and the names.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
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
    /// What it is called.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.about.title
    }

    /// What to know before one runs it, in some sentences.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        self.about.note.as_ref().map(|note| note.replace('\n', " "))
    }

    /// The APIs that it speaks to, by the names of their providers.
    #[must_use]
    pub fn providers(&self) -> &[String] {
        &self.about.providers
    }

    /// Names that it asks for and does without: telemetry, and looking for newer versions.
    #[must_use]
    pub fn quiet(&self) -> &[String] {
        &self.about.quiet
    }

    /// What a test of this project runs by these rules, with its version.
    #[must_use]
    pub fn ran(&self) -> &[String] {
        &self.about.ran
    }

    /// What is set in its environment, whatever the policy.
    #[must_use]
    pub fn variables(&self) -> &BTreeMap<String, String> {
        &self.variables
    }

    /// Further variables that hold a placeholder, each with the provider whose.
    #[must_use]
    pub fn keys(&self) -> &BTreeMap<String, String> {
        &self.keys
    }

    /// What it asks of its API without a credential, by the API's host: methods with paths.
    #[must_use]
    pub fn anonymous(&self) -> &BTreeMap<String, Vec<String>> {
        &self.anonymous
    }

    pub(crate) fn rules(&self) -> &[ClientRule] {
        &self.rules
    }

    /// The hosts of its rules, for people.
    #[cfg(test)]
    pub(crate) fn hosts(&self) -> Vec<&str> {
        let lists = self.rules.iter().filter_map(|rule| rule.entries.get("hosts"));
        let hosts = lists.filter_map(|hosts| hosts.get_ref().as_array()).flatten();
        hosts.filter_map(|host| host.get_ref().as_str()).collect()
    }

    /// The rules that `client = ["NAME"]` adds, as a configuration has them.
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

/// All of them, in the order of their names.
pub fn clients() -> &'static [Client] {
    &CLIENTS
}

/// The one of this name.
#[must_use]
pub fn client(name: &str) -> Option<&'static Client> {
    clients().iter().find(|client| client.name == name)
}

static CLIENTS: LazyLock<Vec<Client>> =
    LazyLock::new(|| FILES.iter().filter_map(|(name, text)| read(name, text)).collect());

/// `None` where the file is wrong, which a test rules out.
fn read(name: &'static str, text: &'static str) -> Option<Client> {
    let mut file = DeTable::parse(text).ok()?.into_inner();
    let about = About::deserialize(of(text, table(&mut file, "client")?)).ok()?;
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
    fn a_client_that_ran_is_pinned_with_exact_names() {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/clients");
        let node = fs::read_to_string(tests.join("package.json")).unwrap();
        for client in clients() {
            for ran in client.ran() {
                let (name, version) = ran.split_once(' ').unwrap();
                let pinned = node.contains(&format!("\"{name}\": \"{version}\""));
                assert!(pinned, "{}: {ran}", client.name);
            }
            assert!(client.hosts().iter().all(|host| !host.contains('*')), "{}", client.name);
            for host in client.quiet() {
                assert!(!client.hosts().contains(&host.as_str()), "{}: {host}", client.name);
            }
        }
    }
}
