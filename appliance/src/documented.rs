//! Tests that the documents for operators agree with the code: `docs/audit.md` with the closed
//! lists of words and the fields of records, `docs/troubleshooting.md` with the causes of health,
//! and `docs/configuration.md` with the reference of the configuration.

use std::{collections::BTreeSet, fs, path::Path};

use crate::{
    audit::{AuditLine, RecordKind},
    catalogue::{Client, Provider, clients, providers},
    health,
    reason::{Reason, SecretCause, TlsCause},
    refuse::wire,
};

const AUDIT: &str = include_str!("../../docs/audit.md");
const TROUBLESHOOTING: &str = include_str!("../../docs/troubleshooting.md");
const CONFIGURATION: &str = include_str!("../../docs/configuration.md");
const REFERENCE: &str = include_str!("../../image/cloakroom.toml");

/// Returns the text below this heading, up to the next one of the same level or a higher one.
fn section<'a>(document: &'a str, heading: &str) -> &'a str {
    let level = heading.len() - heading.trim_start_matches('#').len();
    let start = document.find(&format!("\n{heading}\n"));
    let start = start.unwrap_or_else(|| panic!("no heading {heading}")) + heading.len() + 2;
    let rest = &document[start..];
    let ends = |depth| rest.find(&format!("\n{} ", "#".repeat(depth))).unwrap_or(rest.len());
    &rest[..(1..=level).map(ends).min().unwrap_or(rest.len())]
}

/// Returns the cells of each row of the tables in this text, without their header rows.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let rows = text.lines().filter(|line| line.starts_with("| `") || line.starts_with("| absent"));
    rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect())
}

/// Returns the words in backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

fn first_cells(text: &str) -> Vec<&str> {
    rows(text).flat_map(|cells| quoted(cells[0]).collect::<Vec<_>>()).collect()
}

#[test]
fn each_reason_is_in_the_audit_page_with_a_remedy() {
    let reasons = section(AUDIT, "## Reasons");
    let words: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(first_cells(reasons), words);
    for (cells, reason) in rows(reasons).zip(Reason::ALL) {
        assert!(cells.len() == 4 && cells.iter().all(|cell| !cell.is_empty()), "{cells:?}");
        let status = wire(*reason).status.as_u16().to_string();
        assert!([&status, "none", "DNS"].contains(&cells[1]), "{cells:?} is {status}");
    }
}

#[test]
fn each_cause_is_in_the_audits_page_once() {
    let mut words: Vec<&str> = SecretCause::ALL.iter().map(|cause| cause.as_str()).collect();
    words.extend(TlsCause::ALL.iter().map(|cause| cause.as_str()));
    let mut told = first_cells(section(AUDIT, "## Causes"));
    words.sort_unstable();
    told.sort_unstable();
    assert_eq!(told, words);
}

#[test]
fn each_kind_of_record_is_in_the_audits_page() {
    let kind =
        |kind: &RecordKind| serde_json::to_string(kind).unwrap().trim_matches('"').to_owned();
    let kinds: Vec<String> = RecordKind::ALL.iter().map(kind).collect();
    assert_eq!(first_cells(section(AUDIT, "## Records")), kinds);
}

/// Returns the fields of the audit's serialized structs, as serde names them.
fn fields_of_records() -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/audit");
    let mut fields = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        let derived = text.split("#[derive(").skip(1);
        let lines = derived.filter(|it| it.split(')').next().unwrap().contains("Serialize"));
        for line in lines.filter(|it| it.contains("struct ")) {
            let (_, body) = line.split_once("struct ").unwrap();
            let body = body.split_once("\n}").unwrap().0;
            let mut renamed = None;
            for line in body.lines().map(str::trim).skip(1) {
                if let Some((_, name)) = line.split_once("rename = \"") {
                    renamed = name.split('"').next().map(str::to_owned);
                } else if let Some((name, _)) = line.split_once(": ").filter(|_| !is_other(line)) {
                    let name = name.trim_start_matches("pub(super) ").trim_start_matches("pub ");
                    fields.insert(renamed.take().unwrap_or_else(|| name.to_owned()));
                }
            }
        }
    }
    assert!(fields.len() > 30, "they are read: {fields:?}");
    fields
}

fn is_other(line: &str) -> bool {
    line.starts_with("//") || line.starts_with('#')
}

#[test]
fn the_audit_page_has_exactly_the_fields_of_records() {
    let mut told: BTreeSet<String> =
        first_cells(section(AUDIT, "## Fields")).into_iter().map(str::to_owned).collect();
    for cells in rows(section(AUDIT, "## Records")) {
        told.extend(quoted(cells[2]).map(str::to_owned));
    }
    told.extend(["time", "record"].map(str::to_owned));
    assert_eq!(told, fields_of_records());
}

#[test]
fn the_reader_of_records_knows_exactly_their_fields() {
    let line = serde_json::to_value(AuditLine::default()).unwrap();
    let read: BTreeSet<String> = line.as_object().unwrap().keys().cloned().collect();
    assert_eq!(read, fields_of_records());
}

#[test]
fn the_troubleshooting_page_has_each_health_cause_and_its_state() {
    let causes = section(TROUBLESHOOTING, "## What status says");
    let told: Vec<(&str, &str)> =
        rows(causes).map(|cells| (quoted(cells[0]).next().unwrap(), cells[1])).collect();
    let all = health::HealthCause::ALL.iter();
    assert_eq!(told, all.map(|it| (it.as_str(), it.state().as_str())).collect::<Vec<_>>());
}

/// A key of the reference.
struct Key {
    table: String,
    name: String,
    /// The value after it, where the line is commented out: a default or an example.
    shown: Option<String>,
    /// Whether the comment above speaks of a default: then the value may be an example.
    says_default: bool,
}

fn keys_of_reference() -> Vec<Key> {
    let (mut table, mut keys, mut says_default) = (String::new(), Vec::<Key>::new(), false);
    for line in REFERENCE.lines() {
        let shown = line.strip_prefix('#');
        let key = shown.unwrap_or(line).split_once(" = ").filter(|(key, _)| is_key(key));
        match key {
            _ if line.starts_with('[') => line.clone_into(&mut table),
            Some((name, value)) => {
                if !keys.iter().any(|key| key.table == table && key.name == name) {
                    let shown = shown.map(|_| value.to_owned());
                    keys.push(Key { table: table.clone(), name: name.into(), shown, says_default });
                }
            }
            None => says_default = shown.is_some_and(|it| says_default || it.contains(" default")),
        }
    }
    assert!(keys.len() > 80, "they are read: {}", keys.len());
    keys
}

fn is_key(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

#[test]
fn the_configuration_page_has_exactly_the_references_keys_and_defaults() {
    let mut table = String::new();
    let mut told = Vec::new();
    for line in CONFIGURATION.lines() {
        if let Some(heading) = line.strip_prefix("### `") {
            heading.trim_end_matches('`').clone_into(&mut table);
        }
        let key =
            |cells: Vec<&str>| (table.clone(), cells[0].replace('`', ""), cells[1].to_owned());
        told.extend(rows(line).map(key).filter(|(table, ..)| !table.is_empty()));
    }
    let keys = keys_of_reference();
    for Key { table, name, shown, .. } in &keys {
        let row = told.iter().find(|(of, key, _)| of == table && key == name);
        let (.., cell) = row.unwrap_or_else(|| panic!("{name} of {table} is not there"));
        // One table may refer to another for the meaning of its keys.
        let says_default = keys.iter().any(|key| key.name == *name && key.says_default);
        let is_default = shown.as_ref().is_some_and(|value| *cell == format!("`{value}`"));
        let is_required = shown.is_none() && cell.starts_with("required");
        assert!(is_default || is_required || says_default, "{name} of {table}: {cell}");
    }
    let stands =
        |table: &str, name: &str| keys.iter().any(|it| it.table == table && it.name == name);
    let unknown: Vec<_> = told.iter().filter(|(table, name, _)| !stands(table, name)).collect();
    assert!(unknown.is_empty(), "they do not exist: {unknown:?}");
}

/// A row of `docs/providers.md`.
fn row_of(provider: &Provider) -> String {
    let cell = |items: Vec<String>| items.join(", ");
    let quoted = |key| provider.texts(key).iter().map(|it| format!("`{it}`")).collect::<Vec<_>>();
    let hosts = quoted("hosts");
    let hosts = if hosts.is_empty() { "your own".to_owned() } else { cell(hosts) };
    let ran = if provider.ran().is_empty() { "-".to_owned() } else { provider.ran().join(", ") };
    let (name, title) = (provider.name, provider.title());
    let (variables, places) = (cell(quoted("variables")), cell(quoted("places")));
    let shape = provider.binding().get("shape").and_then(|shape| shape.get_ref().as_str());
    let shape = shape.map_or_else(|| "-".to_owned(), |shape| format!("`{shape}`"));
    format!("| `{name}` | {title} | {hosts} | {variables} | {places} | {shape} | {ran} |")
}

/// `UPDATE=1 cargo test documented` rewrites the page.
#[test]
fn the_page_of_providers_is_what_the_program_knows() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/providers.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, _) = page.split_once("\n| name |").unwrap();
    let mut written = format!(
        "{before}\n| name | API | hosts | variables | places | shape of its keys | clients that a test runs |\n\
         |---|---|---|---|---|---|---|\n"
    );
    for provider in providers() {
        written += &(row_of(provider) + "\n");
    }
    written += "\n## What to know of each\n\n";
    for provider in providers() {
        if let Some(note) = provider.note() {
            written += &format!("- `{}`: {note}\n", provider.name);
        }
    }
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &written).unwrap();
    }
    assert_eq!(page, written, "write it again: UPDATE=1 cargo test documented");
}

/// A row of `docs/clients.md`.
fn row_of_client(client: &Client) -> String {
    let cell = |items: Vec<String>| match items.is_empty() {
        true => "-".to_owned(),
        false => items.join(", "),
    };
    let quoted = |item: &str| format!("`{item}`");
    let hosts = cell(client.hosts().into_iter().map(quoted).collect());
    let providers = cell(client.providers().iter().map(|it| quoted(it)).collect());
    let quiet = cell(client.quiet().iter().map(|it| quoted(it)).collect());
    let switches =
        client.variables().iter().map(|(name, value)| quoted(&format!("{name}={value}")));
    let keys =
        client.keys().iter().map(|(name, of)| format!("`{name}`, the placeholder of `{of}`"));
    let variables = cell(switches.chain(keys).collect());
    let ran = if client.ran().is_empty() { "not run".to_owned() } else { client.ran().join(", ") };
    let (name, title) = (client.name, client.title());
    format!("| `{name}` | {title} | {providers} | {hosts} | {variables} | {quiet} | {ran} |")
}

/// `UPDATE=1 cargo test documented` rewrites the page.
#[test]
fn the_page_of_clients_is_what_the_program_knows() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/clients.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, _) = page.split_once("\n| name |").unwrap();
    let mut written = format!(
        "{before}\n| name | program | providers | hosts | variables | asks for, and does without | a test runs |\n\
         |---|---|---|---|---|---|---|\n"
    );
    for client in clients() {
        written += &(row_of_client(client) + "\n");
    }
    written += "\n## What to know of each\n\n";
    for client in clients() {
        if let Some(note) = client.note() {
            written += &format!("- `{}`: {note}\n", client.name);
        }
    }
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &written).unwrap();
    }
    assert_eq!(page, written, "write it again: UPDATE=1 cargo test documented");
}
