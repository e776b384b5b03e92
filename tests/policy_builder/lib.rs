//! Writes the operator's file table by table, for tests and benches.
//!
//! A [`Config`] says what a test changes, by the keys that an operator writes, and its `Display` is
//! TOML: what is tested is read by the program's own parser, so a key that does not exist ends a
//! test as it would end a start. A change to a rule that is not there panics, so that no test runs
//! with a configuration that was not changed.

mod value;

use std::fmt;

pub use value::Value;

/// A file of the operator's, in the order in which it is written.
#[derive(Clone, Debug, Default)]
pub struct Config {
    tables: Vec<Table>,
}

/// One table of the file: its keys, and the tables below it.
#[derive(Clone, Debug)]
pub struct Table {
    kind: &'static str,
    /// Whether there may be more of its kind, as of `[[api]]`.
    repeats: bool,
    keys: Vec<(&'static str, Value)>,
    below: Vec<Table>,
}

/// A group of agents.
pub fn group(name: &str, interface: &str, prefixes: &[&str]) -> Table {
    Table::one_of("group").set("name", name).set("interface", interface).set("prefixes", prefixes)
}

/// An agent of a group, bound to its card.
pub fn agent(mac: &str, addresses: &[&str]) -> Table {
    Table::one_of("agent").set("mac", mac).set("addresses", addresses)
}

/// An API without bindings: see [`binding`].
pub fn api(name: &str, hosts: &[&str]) -> Table {
    Table::one_of("api").set("name", name).set("hosts", hosts)
}

/// What a placeholder stands for, for one group; it belongs below an [`api`].
pub fn binding(group: &str, placeholder: &str, places: &[&str], secret: &str) -> Table {
    Table::one_of("binding")
        .set("groups", [group])
        .set("placeholder", placeholder)
        .set("places", places)
        .set("secret", secret)
}

/// What an [`api`]'s answers hold that its agents get a ticket for, and where that is wanted.
pub fn mint(name: &str, answers: &[&str], hosts: &[&str], places: &[&str], life: &str) -> Table {
    let table = Table::one_of("mint").set("name", name).set("answers", answers);
    table.set("hosts", hosts).set("places", places).set("life", life)
}

/// Names whose connections pass through.
pub fn splice(name: &str, groups: &[&str], hosts: &[&str]) -> Table {
    Table::one_of("splice").set("name", name).set("groups", groups).set("hosts", hosts)
}

/// Names whose requests are looked at, without a secret.
pub fn inspect(name: &str, groups: &[&str], hosts: &[&str]) -> Table {
    Table::one_of("inspect").set("name", name).set("groups", groups).set("hosts", hosts)
}

/// Names that are reached in protocols which name no host.
pub fn tcp(name: &str, groups: &[&str], hosts: &[&str], ports: &[u16]) -> Table {
    let table = Table::one_of("tcp").set("name", name).set("groups", groups);
    table.set("hosts", hosts).set("ports", ports)
}

impl Config {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// What a file needs beside groups and rules, for who reads it and starts nothing.
    pub fn of_rules() -> Self {
        let file = Self::new().gateway("resolvers", ["203.0.113.53"]).gateway("audit", "stdout");
        file.gateway("ca_dir", "/ca").secrets("file", "/secrets")
    }

    /// With this key in `[gateway]`.
    pub fn gateway(self, key: &'static str, value: impl Into<Value>) -> Self {
        self.section("gateway", |it| it.set(key, value))
    }

    /// With this key in `[limits]`.
    pub fn limit(self, key: &'static str, value: impl Into<Value>) -> Self {
        self.section("limits", |it| it.set(key, value))
    }

    /// With this key in `[secrets]`.
    pub fn secrets(self, key: &'static str, value: impl Into<Value>) -> Self {
        self.section("secrets", |it| it.set(key, value))
    }

    /// With this key in `[vault]`.
    pub fn vault(self, key: &'static str, value: impl Into<Value>) -> Self {
        self.section("vault", |it| it.set(key, value))
    }

    /// With this way to log in to Vault, which is a table below `[vault]`, and no other.
    pub fn login(self, login: Table) -> Self {
        self.section("vault", |it| Table { below: vec![login], ..it })
    }

    /// With this key of the login below `[vault]`.
    #[track_caller]
    pub fn login_key(self, key: &'static str, value: impl Into<Value>) -> Self {
        self.section("vault", |mut it| {
            let login = it.below.first_mut().expect("a login");
            *login = login.clone().set(key, value);
            it
        })
    }

    /// With one more table below `[vault]`.
    pub fn below_vault(self, table: Table) -> Self {
        self.section("vault", |it| it.with(table))
    }

    /// Without this key in `[gateway]`.
    #[track_caller]
    pub fn without_gateway(self, key: &str) -> Self {
        self.section("gateway", |it| it.without(key))
    }

    /// Without this key in `[vault]`.
    #[track_caller]
    pub fn without_vault(self, key: &str) -> Self {
        self.section("vault", |it| it.without(key))
    }

    /// Without any table of this kind.
    #[track_caller]
    pub fn without(mut self, kind: &str) -> Self {
        let before = self.tables.len();
        self.tables.retain(|it| it.kind != kind);
        assert_ne!(before, self.tables.len(), "no {kind} to leave out:\n{self}");
        self
    }

    /// With one more table.
    pub fn with(mut self, table: Table) -> Self {
        self.tables.push(table);
        self
    }

    /// With this change to a group.
    ///
    /// # Panics
    /// When there is none of this name, as the others here.
    #[track_caller]
    pub fn group(self, name: &str, change: impl FnOnce(Table) -> Table) -> Self {
        self.named("group", name, change)
    }

    /// With this change to an API.
    #[track_caller]
    pub fn api(self, name: &str, change: impl FnOnce(Table) -> Table) -> Self {
        self.named("api", name, change)
    }

    /// With this change to every API.
    pub fn each_api(mut self, change: impl Fn(Table) -> Table) -> Self {
        for api in self.tables.iter_mut().filter(|it| it.kind == "api") {
            *api = change(api.clone());
        }
        self
    }

    /// With this change to the one binding of a placeholder.
    #[track_caller]
    pub fn binding(mut self, placeholder: &str, change: impl FnOnce(Table) -> Table) -> Self {
        let text = self.to_string();
        let apis = self.tables.iter_mut().filter(|it| it.kind == "api");
        let bindings = apis.flat_map(|api| &mut api.below).filter(|it| it.kind == "binding");
        only(bindings.filter(|it| it.is("placeholder", placeholder)), change, placeholder, &text);
        self
    }

    /// With this change to a rule of names that pass through.
    #[track_caller]
    pub fn splice(self, name: &str, change: impl FnOnce(Table) -> Table) -> Self {
        self.named("splice", name, change)
    }

    /// With this change to a rule of names that are looked at.
    #[track_caller]
    pub fn inspect(self, name: &str, change: impl FnOnce(Table) -> Table) -> Self {
        self.named("inspect", name, change)
    }

    /// With this change to a rule of protocols that name no host.
    #[track_caller]
    pub fn tcp(self, name: &str, change: impl FnOnce(Table) -> Table) -> Self {
        self.named("tcp", name, change)
    }

    /// With `to` in the place of `from` wherever a text begins so: another folder of files.
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

    /// With another name for a group, wherever it is named.
    #[track_caller]
    pub fn rename_group(self, from: &str, to: &str) -> Self {
        let mut renamed = self.group(from, |it| it.set("name", to));
        renamed.tables.iter_mut().for_each(|it| it.for_groups(from, to));
        renamed
    }

    /// The section of this kind, which is begun where there is none.
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
    /// A table that the file has once, such as `[vault.approle]`.
    pub fn section(kind: &'static str) -> Self {
        Self { kind, repeats: false, keys: Vec::new(), below: Vec::new() }
    }

    /// A table that the file has as often as it wants, such as `[[api]]`.
    pub fn one_of(kind: &'static str) -> Self {
        Self { repeats: true, ..Self::section(kind) }
    }

    /// With this value at this key, in the place of another that is there.
    pub fn set(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        let value = value.into();
        match self.keys.iter_mut().find(|(known, _)| *known == key) {
            Some((_, there)) => *there = value,
            None => self.keys.push((key, value)),
        }
        self
    }

    /// With more in the list at this key, which is there.
    #[track_caller]
    pub fn more(mut self, key: &'static str, values: &[&str]) -> Self {
        let there = self.keys.iter_mut().find(|(known, _)| *known == key);
        let Some((_, Value::List(list))) = there else { panic!("no list {key}: {self:?}") };
        list.extend(values.iter().map(|it| Value::from(*it)));
        self
    }

    /// Without this text in the list at this key, which has it.
    #[track_caller]
    pub fn less(mut self, key: &'static str, text: &str) -> Self {
        let there = self.keys.iter_mut().find(|(known, _)| *known == key);
        let Some((_, Value::List(list))) = there else { panic!("no list {key}: {self:?}") };
        let before = list.len();
        list.retain(|it| *it != Value::from(text));
        assert_ne!(before, list.len(), "no {text} to leave out: {self:?}");
        self
    }

    /// Without this key, which is there.
    #[track_caller]
    pub fn without(mut self, key: &str) -> Self {
        let before = self.keys.len();
        self.keys.retain(|(known, _)| *known != key);
        assert_ne!(before, self.keys.len(), "no {key} to leave out: {self:?}");
        self
    }

    /// With one more table below.
    pub fn with(mut self, table: Table) -> Self {
        self.below.push(table);
        self
    }

    /// With this change to the one binding of a placeholder below this API.
    #[track_caller]
    pub fn binding(mut self, placeholder: &str, change: impl FnOnce(Table) -> Table) -> Self {
        let text = format!("{self:?}");
        let bindings = self.below.iter_mut().filter(|it| it.kind == "binding");
        only(bindings.filter(|it| it.is("placeholder", placeholder)), change, placeholder, &text);
        self
    }

    /// With this change to every table of this kind below.
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
