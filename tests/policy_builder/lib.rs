//! Writes the operator's file table by table, for tests and benches.
//!
//! A [`Config`] has the keys that a test changes, as an operator writes them, and its `Display` is
//! TOML. The program's own parser reads the result, so a key that does not exist ends a test as it
//! would end a start. A change to a missing rule panics, so that no test runs with a configuration
//! that was not changed.

mod value;

use std::fmt;

pub use value::Value;

/// An operator's file, in the order in which it is written.
#[derive(Clone, Debug, Default)]
pub struct Config {
    tables: Vec<Table>,
}

/// One table of the file: its keys, and the tables below it.
#[derive(Clone, Debug)]
pub struct Table {
    kind: &'static str,
    /// Whether the file may have more of its kind, such as `[[api]]`.
    repeats: bool,
    keys: Vec<(&'static str, Value)>,
    below: Vec<Table>,
}

/// Returns a group of agents.
pub fn group(name: &str, interface: &str, prefixes: &[&str]) -> Table {
    Table::one_of("group").set("name", name).set("interface", interface).set("prefixes", prefixes)
}

/// Returns an agent of a group, bound to its card.
pub fn agent(mac: &str, addresses: &[&str]) -> Table {
    Table::one_of("agent").set("mac", mac).set("addresses", addresses)
}

/// Returns an API without bindings: see [`binding`].
pub fn api(name: &str, hosts: &[&str]) -> Table {
    Table::one_of("api").set("name", name).set("hosts", hosts)
}

/// Returns the binding of a placeholder for one group; it belongs below an [`api`].
pub fn binding(group: &str, placeholder: &str, places: &[&str], secret: &str) -> Table {
    Table::one_of("binding")
        .set("groups", [group])
        .set("placeholder", placeholder)
        .set("places", places)
        .set("secret", secret)
}

/// Returns a mint: the credentials in an [`api`]'s answers for which agents get a ticket, and the
/// hosts that want them.
pub fn mint(name: &str, answers: &[&str], hosts: &[&str], places: &[&str], life: &str) -> Table {
    let table = Table::one_of("mint").set("name", name).set("answers", answers);
    table.set("hosts", hosts).set("places", places).set("life", life)
}

/// Returns a rule for names that are spliced.
pub fn splice(name: &str, groups: &[&str], hosts: &[&str]) -> Table {
    Table::one_of("splice").set("name", name).set("groups", groups).set("hosts", hosts)
}

/// Returns a rule for names whose requests are inspected, without a secret.
pub fn inspect(name: &str, groups: &[&str], hosts: &[&str]) -> Table {
    Table::one_of("inspect").set("name", name).set("groups", groups).set("hosts", hosts)
}

/// Returns a rule for names that are reached in protocols which name no host.
pub fn tcp(name: &str, groups: &[&str], hosts: &[&str], ports: &[u16]) -> Table {
    let table = Table::one_of("tcp").set("name", name).set("groups", groups);
    table.set("hosts", hosts).set("ports", ports)
}

impl Config {
    /// Creates an empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a file with everything except groups and rules, for a test that reads it and starts
    /// nothing.
    pub fn of_rules() -> Self {
        let file = Self::new().gateway("resolvers", ["203.0.113.53"]).gateway("audit", "stdout");
        file.gateway("ca_dir", "/ca").secrets("file", "/secrets")
    }

    /// Sets this key in `[gateway]`.
    pub fn gateway(self, key: &'static str, value: impl Into<Value>) -> Self {
        self.section("gateway", |it| it.set(key, value))
    }

    /// Sets this key in `[limits]`.
    pub fn limit(self, key: &'static str, value: impl Into<Value>) -> Self {
        self.section("limits", |it| it.set(key, value))
    }

    /// Sets this key in `[secrets]`.
    pub fn secrets(self, key: &'static str, value: impl Into<Value>) -> Self {
        self.section("secrets", |it| it.set(key, value))
    }

    /// Sets this key in `[vault]`.
    pub fn vault(self, key: &'static str, value: impl Into<Value>) -> Self {
        self.section("vault", |it| it.set(key, value))
    }

    /// Replaces the login to Vault, which is a table below `[vault]`.
    pub fn login(self, login: Table) -> Self {
        self.section("vault", |it| Table { below: vec![login], ..it })
    }

    /// Sets this key of the login below `[vault]`.
    #[track_caller]
    pub fn login_key(self, key: &'static str, value: impl Into<Value>) -> Self {
        self.section("vault", |mut it| {
            let login = it.below.first_mut().expect("a login");
            *login = login.clone().set(key, value);
            it
        })
    }

    /// Adds a table below `[vault]`.
    pub fn below_vault(self, table: Table) -> Self {
        self.section("vault", |it| it.with(table))
    }

    /// Removes this key from `[gateway]`.
    #[track_caller]
    pub fn without_gateway(self, key: &str) -> Self {
        self.section("gateway", |it| it.without(key))
    }

    /// Removes this key from `[vault]`.
    #[track_caller]
    pub fn without_vault(self, key: &str) -> Self {
        self.section("vault", |it| it.without(key))
    }

    /// Removes all tables of this kind.
    #[track_caller]
    pub fn without(mut self, kind: &str) -> Self {
        let before = self.tables.len();
        self.tables.retain(|it| it.kind != kind);
        assert_ne!(before, self.tables.len(), "no {kind} to leave out:\n{self}");
        self
    }

    /// Adds a table.
    pub fn with(mut self, table: Table) -> Self {
        self.tables.push(table);
        self
    }

    /// Changes a group.
    ///
    /// # Panics
    /// When there is none of this name; the other methods here do the same.
    #[track_caller]
    pub fn group(self, name: &str, change: impl FnOnce(Table) -> Table) -> Self {
        self.named("group", name, change)
    }

    /// Changes an API.
    #[track_caller]
    pub fn api(self, name: &str, change: impl FnOnce(Table) -> Table) -> Self {
        self.named("api", name, change)
    }

    /// Changes every API.
    pub fn each_api(mut self, change: impl Fn(Table) -> Table) -> Self {
        for api in self.tables.iter_mut().filter(|it| it.kind == "api") {
            *api = change(api.clone());
        }
        self
    }

    /// Changes the one binding of a placeholder.
    #[track_caller]
    pub fn binding(mut self, placeholder: &str, change: impl FnOnce(Table) -> Table) -> Self {
        let text = self.to_string();
        let apis = self.tables.iter_mut().filter(|it| it.kind == "api");
        let bindings = apis.flat_map(|api| &mut api.below).filter(|it| it.kind == "binding");
        only(bindings.filter(|it| it.is("placeholder", placeholder)), change, placeholder, &text);
        self
    }

    /// Changes a rule of names that are spliced.
    #[track_caller]
    pub fn splice(self, name: &str, change: impl FnOnce(Table) -> Table) -> Self {
        self.named("splice", name, change)
    }

    /// Changes a rule of names that are inspected.
    #[track_caller]
    pub fn inspect(self, name: &str, change: impl FnOnce(Table) -> Table) -> Self {
        self.named("inspect", name, change)
    }

    /// Changes a rule of protocols that name no host.
    #[track_caller]
    pub fn tcp(self, name: &str, change: impl FnOnce(Table) -> Table) -> Self {
        self.named("tcp", name, change)
    }

    /// Replaces `from` by `to` wherever a text begins with it: another folder of files.
    pub fn moved(mut self, from: &str, to: &str) -> Self {
        self.tables.iter_mut().for_each(|it| {
            it.for_texts(&|text| {
                if let Some(rest) = text.strip_prefix(from) {
                    *text = format!("{to}{rest}");
                }
            })
        });
        self
    }

    /// Gives a group another name, wherever it is named.
    #[track_caller]
    pub fn rename_group(self, from: &str, to: &str) -> Self {
        let mut renamed = self.group(from, |it| it.set("name", to));
        renamed.tables.iter_mut().for_each(|it| it.for_groups(from, to));
        renamed
    }

    /// Changes the section of this kind, and begins it where there is none.
    fn section(mut self, kind: &'static str, change: impl FnOnce(Table) -> Table) -> Self {
        match self.tables.iter_mut().find(|it| it.kind == kind) {
            Some(table) => *table = change(table.clone()),
            None => self.tables.push(change(Table::section(kind))),
        }
        self
    }

    #[track_caller]
    fn named(mut self, kind: &str, name: &str, change: impl FnOnce(Table) -> Table) -> Self {
        let text = self.to_string();
        let of_kind = self.tables.iter_mut().filter(|it| it.kind == kind);
        only(of_kind.filter(|it| it.is("name", name)), change, name, &text);
        self
    }
}

/// Changes the one table among these.
#[track_caller]
fn only<'a>(
    mut tables: impl Iterator<Item = &'a mut Table>,
    change: impl FnOnce(Table) -> Table,
    name: &str,
    text: &str,
) {
    let Some(table) = tables.next() else { panic!("no {name} to change:\n{text}") };
    assert!(tables.next().is_none(), "more than one {name}:\n{text}");
    *table = change(table.clone());
}

impl Table {
    /// Creates a table that the file has once, such as `[vault.approle]`.
    pub fn section(kind: &'static str) -> Self {
        Self { kind, repeats: false, keys: Vec::new(), below: Vec::new() }
    }

    /// Creates a table that the file may have several times, such as `[[api]]`.
    pub fn one_of(kind: &'static str) -> Self {
        Self { repeats: true, ..Self::section(kind) }
    }

    /// Sets this key, and replaces a value that is there.
    pub fn set(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        let value = value.into();
        match self.keys.iter_mut().find(|(known, _)| *known == key) {
            Some((_, there)) => *there = value,
            None => self.keys.push((key, value)),
        }
        self
    }

    /// Adds to the list at this key, which is there.
    #[track_caller]
    pub fn more(mut self, key: &'static str, values: &[&str]) -> Self {
        let there = self.keys.iter_mut().find(|(known, _)| *known == key);
        let Some((_, Value::List(list))) = there else { panic!("no list {key}: {self:?}") };
        list.extend(values.iter().map(|it| Value::from(*it)));
        self
    }

    /// Removes this text from the list at this key, which has it.
    #[track_caller]
    pub fn less(mut self, key: &'static str, text: &str) -> Self {
        let there = self.keys.iter_mut().find(|(known, _)| *known == key);
        let Some((_, Value::List(list))) = there else { panic!("no list {key}: {self:?}") };
        let before = list.len();
        list.retain(|it| *it != Value::from(text));
        assert_ne!(before, list.len(), "no {text} to leave out: {self:?}");
        self
    }

    /// Removes this key, which is there.
    #[track_caller]
    pub fn without(mut self, key: &str) -> Self {
        let before = self.keys.len();
        self.keys.retain(|(known, _)| *known != key);
        assert_ne!(before, self.keys.len(), "no {key} to leave out: {self:?}");
        self
    }

    /// Adds a table below.
    pub fn with(mut self, table: Table) -> Self {
        self.below.push(table);
        self
    }

    /// Changes the one binding of a placeholder below this API.
    #[track_caller]
    pub fn binding(mut self, placeholder: &str, change: impl FnOnce(Table) -> Table) -> Self {
        let text = format!("{self:?}");
        let bindings = self.below.iter_mut().filter(|it| it.kind == "binding");
        only(bindings.filter(|it| it.is("placeholder", placeholder)), change, placeholder, &text);
        self
    }

    /// Changes every table of this kind below.
    pub fn below(mut self, kind: &str, change: impl Fn(Table) -> Table) -> Self {
        for table in self.below.iter_mut().filter(|it| it.kind == kind) {
            *table = change(table.clone());
        }
        self
    }

    fn is(&self, key: &str, text: &str) -> bool {
        self.keys.iter().any(|(known, value)| *known == key && *value == Value::from(text))
    }

    fn for_groups(&mut self, from: &str, to: &str) {
        for (_, value) in self.keys.iter_mut().filter(|(key, _)| *key == "groups") {
            value.for_texts(&|text| {
                if text == from {
                    to.clone_into(text);
                }
            });
        }
        self.below.iter_mut().for_each(|it| it.for_groups(from, to));
    }

    fn for_texts(&mut self, change: &dyn Fn(&mut String)) {
        self.keys.iter_mut().for_each(|(_, value)| value.for_texts(change));
        self.below.iter_mut().for_each(|it| it.for_texts(change));
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, above: &str) -> fmt::Result {
        let path = format!("{above}{}", self.kind);
        match self.repeats {
            true => writeln!(f, "[[{path}]]")?,
            false => writeln!(f, "[{path}]")?,
        }
        self.keys.iter().try_for_each(|(key, value)| writeln!(f, "{key} = {value}"))?;
        writeln!(f)?;
        self.below.iter().try_for_each(|it| it.write(f, &format!("{path}.")))
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tables.iter().try_for_each(|it| it.write(f, ""))
    }
}
