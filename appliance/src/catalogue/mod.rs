//! Programs that agents run (`client`), and APIs that they use: for each provider the hosts, the
//! places of its key, and the environment variables in which clients look for it. A configuration
//! uses a provider by `provider = "NAME"` in an `[[api]]`; every other key there takes precedence.
//!
//! Each provider is a file of `providers/`, written as a configuration is, so that one parser reads
//! both.

mod client;
mod file;

use std::sync::LazyLock;

use serde::Deserialize;
use toml::de::DeTable;

use file::{files, of, table};

pub(crate) use client::ClientRule;
pub use client::{Client, client, clients};

/// One API.
pub struct Provider {
    /// The name in a configuration.
    pub name: &'static str,
    about: ProviderHeader,
    text: &'static str,
    api: DeTable<'static>,
    binding: DeTable<'static>,
}

/// The table `[provider]`: texts for people.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderHeader {
    title: String,
    note: Option<String>,
    #[serde(default)]
    ran: Vec<String>,
}

impl Provider {
    /// Returns the provider's name for itself.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.about.title
    }

    /// Returns some sentences that an operator should know before using it.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        self.about.note.as_ref().map(|note| note.replace('\n', " "))
    }

    /// Returns the clients, each with its version, that a test of this project runs with these
    /// settings.
    #[must_use]
    pub fn ran(&self) -> &[String] {
        &self.about.ran
    }

    /// Returns whether this is one of its hosts, and none of them serves anything without its key.
    pub(crate) fn is_keyed_at(&self, host: &str) -> bool {
        let anonymous =
            self.api.get("anonymous").is_some_and(|it| it.get_ref().as_bool() == Some(true));
        self.hosts().contains(&host) && !anonymous
    }

    /// Returns its hosts, where they are the same for all users.
    pub(crate) fn hosts(&self) -> Vec<&str> {
        let hosts = self.api.get("hosts").and_then(|hosts| hosts.get_ref().as_array());
        hosts.into_iter().flatten().filter_map(|it| it.get_ref().as_str()).collect()
    }

    /// Returns the placeholder that an agent holds, unless a configuration says otherwise.
    pub(crate) fn placeholder(&self) -> &str {
        self.binding.get("placeholder").and_then(|text| text.get_ref().as_str()).unwrap_or_default()
    }

    /// Returns the keys that an `[[api]]` has where it does not say otherwise.
    pub(crate) fn api(&self) -> &DeTable<'static> {
        &self.api
    }

    /// Returns the keys that an `[[api.binding]]` has where it does not say otherwise.
    pub(crate) fn binding(&self) -> &DeTable<'static> {
        &self.binding
    }

    /// Returns the list of texts at a key of either table, for people.
    #[cfg(test)]
    pub(crate) fn texts(&self, key: &str) -> Vec<&str> {
        let value = self.api.get(key).or_else(|| self.binding.get(key));
        let items = value.and_then(|value| value.get_ref().as_array());
        let texts = items.into_iter().flatten().filter_map(|item| item.get_ref().as_str());
        texts.collect()
    }

    /// Returns the lines of the file below this heading.
    fn lines(&self, heading: &str) -> &'static str {
        let text = self.text.split_once(heading).map_or("", |(_, rest)| rest);
        text.split("\n[").next().unwrap_or_default().trim()
    }

    /// Returns the text that `provider = "NAME"` stands for, as a configuration has it: everything
    /// except the groups that hold a placeholder and the source of its value.
    #[must_use]
    pub fn as_toml(&self) -> String {
        let hosts = if self.api.contains_key("hosts") { "" } else { "hosts = [\"...\"]\n" };
        format!(
            "[[api]]\n{}\n{hosts}\n[[api.binding]]\ngroups = [\"...\"]\n{}\n\
             secret = \"vault:MOUNT/PATH#FIELD\"\n",
            self.lines("[api]"),
            self.lines("[binding]"),
        )
    }
}

/// Returns all providers, in the order of their names.
pub fn providers() -> &'static [Provider] {
    &PROVIDERS
}

/// Returns the provider of this name.
#[must_use]
pub fn provider(name: &str) -> Option<&'static Provider> {
    providers().iter().find(|provider| provider.name == name)
}

static PROVIDERS: LazyLock<Vec<Provider>> =
    LazyLock::new(|| FILES.iter().filter_map(|(name, text)| read(name, text)).collect());

/// Reads a provider's file. Returns `None` where the file is wrong, which a test rules out.
fn read(name: &'static str, text: &'static str) -> Option<Provider> {
    let mut file = DeTable::parse(text).ok()?.into_inner();
    let about = ProviderHeader::deserialize(of(text, table(&mut file, "provider")?));
    let (api, binding) = (table(&mut file, "api")?, table(&mut file, "binding")?);
    Some(Provider { name, about: about.ok()?, text, api, binding })
}

const FILES: &[(&str, &str)] = files!["providers":
    "anthropic" "azure-openai" "bedrock" "bedrock-signed" "brave" "cohere" "datadog" "deepseek" "discord" "elevenlabs"
    "fal" "gemini" "github" "github-copilot" "github-git" "gitlab" "groq" "huggingface" "jira" "linear"
    "mistral" "notion" "npm" "openai" "openrouter" "pypi-upload" "replicate" "s3" "sentry" "slack" "stripe"
    "tavily" "telegram" "twilio" "vertex-express" "xai"
];

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    #[test]
    fn every_file_is_read_and_in_order() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/catalogue/providers");
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let files: BTreeSet<String> =
            entries.map(|path| path.file_stem().unwrap().to_str().unwrap().into()).collect();
        let names: Vec<&str> = providers().iter().map(|provider| provider.name).collect();
        assert_eq!(names, files.iter().map(String::as_str).collect::<Vec<_>>());
    }

    #[test]
    fn each_provider_is_named_like_its_file() {
        for provider in providers() {
            let name = provider.api.get("name").and_then(|name| name.get_ref().as_str());
            assert_eq!(name, Some(provider.name));
        }
    }

    /// Returns whether the version is the one that Debian has, or rustup.
    fn is_of_the_machine(name: &str, version: &str) -> bool {
        version.ends_with(" of Debian 12") || name == "cargo"
    }

    #[test]
    fn a_program_that_ran_is_pinned_and_dated() {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/clients");
        let read = |file| fs::read_to_string(tests.join(file)).unwrap();
        let node =
            ["package.json", "packages/package.json", "more/package.json", "sdks/package.json"];
        let node = node.map(read).concat();
        let python = [
            "requirements.txt",
            "packages/requirements.txt",
            "more/llm.txt",
            "more/aider.txt",
            "sdks/requirements.txt",
        ];
        let python = python.map(read).concat();
        let of_providers = providers().iter().map(|it| (it.name, it.ran()));
        for (of, ran) in of_providers.chain(clients().iter().map(|it| (it.name, it.ran()))) {
            for ran in ran {
                let (program, day) = ran.split_once(" on ").unwrap();
                assert!(day.len() == 10 && day.starts_with("20"), "{of}: {ran}");
                let (name, version) = program.split_once(' ').unwrap();
                let version = version.trim_end_matches(" (npm)");
                let pinned = node.contains(&format!("\"{name}\": \"{version}\""))
                    || python.lines().any(|line| line == format!("{name}=={version}"))
                    || is_of_the_machine(name, version);
                assert!(pinned, "{of}: {ran}");
            }
        }
    }
}
