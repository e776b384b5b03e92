//! One table of the file, read key by key: a wrong value is reported and left out, and a key that
//! nobody asked for is an error. A strict serde struct would stop at its first mistake; here each
//! key is named once, where it is read, and reading goes on.

use std::borrow::Cow;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::error::{Report, Span, nearest};

/// A table under inspection. Call [`TomlTable::finish`] when every key has been asked for.
pub(super) struct TomlTable<'a> {
    name: &'static str,
    span: Span,
    entries: &'a DeTable<'a>,
    defaults: Option<Defaults<'a>>,
    report: &'a Report<'a>,
    known: Vec<&'static str>,
    missing: Vec<&'static str>,
    excused: bool,
}

/// The values that a table has where it does not say otherwise.
struct Defaults<'a> {
    entries: &'a DeTable<'a>,
    /// The place in the file that asks for them.
    span: Span,
}

/// The value at a key, and the place in the file that sets it.
struct Entry<'a> {
    value: &'a Spanned<DeValue<'a>>,
    /// The place, if the value is a default, which has no place of its own.
    span: Option<Span>,
}

impl<'a> Entry<'a> {
    fn span(&self) -> Span {
        self.span.clone().unwrap_or_else(|| self.value.span())
    }

    /// Returns another value of the same origin.
    fn beside(&self, value: &'a Spanned<DeValue<'a>>) -> Self {
        Self { value, span: self.span.clone() }
    }
}

/// The keys that a table's unknown keys were probably meant to be. An error that one of these is
/// missing would be the second one for the same slip.
#[derive(Default)]
pub(super) struct Misspelt(Vec<&'static str>);

impl Misspelt {
    /// Returns whether an unknown key was probably meant to be `key`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.0.contains(&key)
    }
}

impl<'a> TomlTable<'a> {
    /// Returns the file itself as a table.
    pub(super) fn root(document: &'a Spanned<DeTable<'a>>, report: &'a Report<'a>) -> Self {
        Self::new("the file", 0..0, document.get_ref(), report)
    }

    fn new(
        name: &'static str,
        span: Span,
        entries: &'a DeTable<'a>,
        report: &'a Report<'a>,
    ) -> Self {
        let (known, missing) = (Vec::new(), Vec::new());
        Self { name, span, entries, defaults: None, report, known, missing, excused: false }
    }

    /// Returns a table that has nothing but defaults, for which the file asks at `span`; keys that
    /// they leave out do not count as missing.
    pub(super) fn of_defaults(
        name: &'static str,
        span: Span,
        empty: &'a DeTable<'a>,
        entries: &'a DeTable<'a>,
        report: &'a Report<'a>,
    ) -> Self {
        let mut table = Self::new(name, span.clone(), empty, report);
        table.default_to(entries, span);
        table.excuse_missing();
        table
    }

    /// Makes no key count as missing, because the defaults are unknown, which has been reported.
    pub(super) fn excuse_missing(&mut self) {
        self.excused = true;
    }

    /// Makes missing keys have their values in `entries` from here on. The file asks for these at
    /// `span`.
    pub(super) fn default_to(&mut self, entries: &'a DeTable<'a>, span: Span) {
        self.defaults = Some(Defaults { entries, span });
    }

    /// Returns where the table begins.
    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    /// Returns the report that collects the mistakes.
    pub(super) fn report(&self) -> &'a Report<'a> {
        self.report
    }

    /// Returns whether `key` is in the file, right or wrong.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Returns the text at `key`, right or wrong. The key does not count as asked for.
    pub(super) fn as_written(&self, key: &str) -> Option<&'a str> {
        self.find(key).and_then(|entry| entry.value.get_ref().as_str())
    }

    /// Reads the value of `key`; returns `None` where it is missing or wrong.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<Spanned<T>> {
        let entry = self.get(key)?;
        self.read(key, &entry, &read)
    }

    /// Does the same, and reports a missing key.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<Spanned<T>> {
        self.require(key);
        self.optional(key, read)
    }

    /// Reads a list. Leaves out a wrong entry; reports an empty list, because it could be taken for
    /// "none" and for "all".
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<Vec<Spanned<T>>> {
        let items = self.items(key)?;
        if items.is_empty() {
            let span = self.find(key).map(|entry| entry.span()).unwrap_or_default();
            self.report.add(&span, format!("{key}: the list is empty; {EMPTY_LIST}"));
        }
        Some(items.iter().filter_map(|item| self.read(key, item, &read)).collect())
    }

    /// Does the same, and reports a missing key.
    pub(super) fn required_list<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&DeValue<'_>) -> Result<T, String>,
    ) -> Vec<Spanned<T>> {
        self.require(key);
        self.list(key, read).unwrap_or_default()
    }

    /// Does the same, but accepts an empty list, which here means none.
    pub(super) fn list_or_none<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&DeValue<'_>) -> Result<T, String>,
    ) -> Vec<Spanned<T>> {
        let Some(items) = self.items(key) else { return Vec::new() };
        items.iter().filter_map(|item| self.read(key, item, &read)).collect()
    }

    /// Returns the table at `key`, which error messages call `name`.
    pub(super) fn table(&mut self, key: &'static str, name: &'static str) -> Option<TomlTable<'a>> {
        let value = self.get(key)?.value;
        match value.get_ref() {
            DeValue::Table(entries) => {
                Some(TomlTable::new(name, value.span(), entries, self.report))
            }
            _ => {
                let text = format!("{key} is one table; write {name}, with single brackets");
                self.report.add(&value.span(), text);
                None
            }
        }
    }

    /// Returns the tables at `key`, each of which error messages call `name`.
    pub(super) fn tables(&mut self, key: &'static str, name: &'static str) -> Vec<TomlTable<'a>> {
        let Some(Entry { value, .. }) = self.get(key) else { return Vec::new() };
        match value.get_ref() {
            DeValue::Array(items) => {
                items.iter().filter_map(|item| self.entry(key, name, item)).collect()
            }
            DeValue::Table(entries) => {
                if let Some(below) = lone_below(entries) {
                    let inner = name.trim_matches(['[', ']']);
                    let text = format!(
                        "[[{inner}.{}]] stands below no {name}; write {name} above it",
                        below.get_ref()
                    );
                    self.report.add(&below.span(), text);
                    return Vec::new();
                }
                let text = format!("there can be several; write {name} with two brackets");
                self.report.add(&value.span(), text);
                vec![TomlTable::new(name, value.span(), entries, self.report)]
            }
            _ => {
                self.report.add(&value.span(), format!("{key} is a table; write {name} above it"));
                Vec::new()
            }
        }
    }

    /// Notes that the key must be there.
    pub(super) fn require(&mut self, key: &'static str) {
        if self.find(key).is_none() {
            self.missing.push(key);
        }
    }

    /// Reports the keys that were not asked for, and those that are missing.
    pub(super) fn finish(self) -> Misspelt {
        let mut misspelt = Misspelt::default();
        for (key, _) in self.entries.iter() {
            if !self.known.contains(&key.get_ref().as_ref()) {
                let (text, meant) = self.unknown(key.get_ref());
                self.report.add(&key.span(), text);
                misspelt.0.extend(meant);
            }
        }
        for key in self.missing.iter().filter(|key| !self.excused && !misspelt.has(key)) {
            self.report.add(&self.span, self.lacks(key));
        }
        misspelt
    }

    fn get(&mut self, key: &'static str) -> Option<Entry<'a>> {
        self.known.push(key);
        self.find(key)
    }

    fn find(&self, key: &str) -> Option<Entry<'a>> {
        if let Some(value) = self.entries.get(key) {
            return Some(Entry { value, span: None });
        }
        let defaults = self.defaults.as_ref()?;
        let value = defaults.entries.get(key)?;
        Some(Entry { value, span: Some(defaults.span.clone()) })
    }

    fn items(&mut self, key: &'static str) -> Option<Vec<Entry<'a>>> {
        let entry = self.get(key)?;
        match entry.value.get_ref() {
            DeValue::Array(items) => Some(items.iter().map(|item| entry.beside(item)).collect()),
            DeValue::Table(_) => {
                self.report.add(&entry.span(), format!("{key}: write a list in [ ]"));
                None
            }
            other => {
                let text = format!("{key}: {} stands alone; write a list in [ ]", describe(other));
                self.report.add(&entry.span(), text);
                None
            }
        }
    }

    fn entry(
        &self,
        key: &str,
        name: &'static str,
        item: &'a Spanned<DeValue<'a>>,
    ) -> Option<TomlTable<'a>> {
        if let DeValue::Table(entries) = item.get_ref() {
            return Some(TomlTable::new(name, item.span(), entries, self.report));
        }
        self.report
            .add(&item.span(), format!("{key} is a list of tables; write {name} above each"));
        None
    }

    fn read<T>(
        &self,
        key: &str,
        entry: &Entry<'_>,
        read: impl Fn(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<Spanned<T>> {
        match read(entry.value.get_ref()) {
            Ok(read) => Some(Spanned::new(entry.span(), read)),
            Err(text) => {
                self.report.add(&entry.span(), format!("{key}: {text}"));
                None
            }
        }
    }

    /// Describes an unknown key. Never shows its value: it may be a secret that somebody put there.
    fn unknown(&self, key: &str) -> (String, Option<&'static str>) {
        let meant = nearest(key, self.known.iter().copied());
        if SECRET_KEYS.contains(&key) {
            let place = SECRET_PLACES.into_iter().find(|place| self.known.contains(place));
            return (secret_in_file(key, self.name, place), place.or(meant));
        }
        let name = self.name;
        let text = match meant {
            Some(meant) => format!("unknown key {key:?} in {name}; did you mean {meant:?}?"),
            None => format!("unknown key {key:?} in {name}; it takes {}", self.known.join(", ")),
        };
        (text, meant)
    }

    fn lacks(&self, key: &str) -> String {
        let own = NAMES.iter().find(|(of, _)| key == "name" && *of == self.name);
        let example = own.or_else(|| EXAMPLES.iter().find(|(of, _)| *of == key));
        let example = example.map_or_else(String::new, |(_, text)| format!("; write {text}"));
        format!("{} lacks {key:?}{example}", self.name)
    }
}

/// Formats a value for an error.
pub(super) fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => super::error::quote(text),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "a list".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

fn secret_in_file(key: &str, table: &str, place: Option<&str>) -> String {
    let place = place.map_or_else(String::new, |key| format!(", and say where with {key:?}"));
    format!(
        "{key:?} in {table} looks like a secret, and none belongs in this file; put it in Vault or \
         in a file that only the daemon can read{place}"
    )
}

/// Returns a key of a table that is there only because other tables stand below it.
fn lone_below<'a>(entries: &'a DeTable<'_>) -> Option<&'a Spanned<Cow<'a, str>>> {
    let is_list = |value: &DeValue<'_>| {
        matches!(value, DeValue::Array(items)
        if items.iter().all(|item| matches!(item.get_ref(), DeValue::Table(_))))
    };
    let only = entries.iter().all(|(_, value)| is_list(value.get_ref()));
    entries.iter().next().filter(|_| only).map(|(key, _)| key)
}

const EMPTY_LIST: &str = "put something in it, or leave the key out where it has a default";

/// Keys under which people write secrets.
const SECRET_KEYS: [&str; 9] = [
    "token",
    "secret_id",
    "value",
    "password",
    "api_key",
    "key",
    "secret_value",
    "vault_token",
    "private_key",
];

/// Keys that name the source of a secret, the best one of a table first.
const SECRET_PLACES: [&str; 3] = ["secret_id_file", "secret", "file"];

/// Examples of the name of each table.
const NAMES: [(&str, &str); 6] = [
    ("[[group]]", "name = \"research\""),
    ("[[api]]", "name = \"openai\""),
    ("[[api.mint]]", "name = \"git-lfs\""),
    ("[[splice]]", "name = \"pypi\""),
    ("[[inspect]]", "name = \"docs\""),
    ("[[tcp]]", "name = \"git-ssh\""),
];

/// Examples of each key that may be missing.
const EXAMPLES: [(&str, &str); 19] = [
    ("gateway", "[gateway]"),
    ("group", "[[group]]"),
    ("binding", "[[api.binding]] below it"),
    ("resolvers", "resolvers = [\"192.0.2.53\"]"),
    ("interface", "interface = \"agents0\""),
    ("prefixes", "prefixes = [\"192.0.2.0/28\"]"),
    ("mac", "mac = \"02:00:00:00:00:01\""),
    ("addresses", "addresses = [\"192.0.2.5\"]"),
    ("hosts", "hosts = [\"api.example.com\"]"),
    ("ports", "ports = [22]"),
    ("groups", "groups = [\"research\"]"),
    ("placeholder", "placeholder = \"EXAMPLE_API_KEY\""),
    ("places", "places = [\"header authorization bearer\"]"),
    ("secret", "secret = \"vault:kv/agents/example#api_key\""),
    ("address", "address = \"https://vault.example:8200\""),
    ("role_id", "role_id = \"...\""),
    ("secret_id_file", "secret_id_file = \"/etc/cloakroom/vault-secret-id\""),
    ("ca_file", "ca_file = \"/etc/cloakroom/vault-ca.pem\""),
    ("file", "file = \"/etc/cloakroom/secrets/store\""),
];
