//! The audit, read back by its schema: the tables of `docs/audit.md`, which a unit test of the
//! program compares with its code. A line with a field that its kind does not have is an error, and
//! so is a test that asks for a field which no record has.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    ops::Index,
    path::PathBuf,
    sync::OnceLock,
};

use serde_json::Value;

use crate::{tools, wait};

/// The audit log: one JSON object a line.
pub struct Audit {
    file: PathBuf,
}

/// One line of the audit.
#[derive(Clone, PartialEq)]
pub struct Record(Value);

impl Audit {
    /// Returns the audit in this file.
    pub(crate) fn of(file: PathBuf) -> Self {
        Self { file }
    }

    /// Returns every record so far.
    ///
    /// # Panics
    /// When a complete line is no record.
    pub fn records(&self) -> Vec<Record> {
        let text = self.text();
        let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
        complete.lines().map(Record::read).collect()
    }

    /// Returns the records of this kind so far.
    ///
    /// # Panics
    /// As [`Audit::records`], and when there is no such kind.
    pub fn of_kind(&self, kind: &str) -> Vec<Record> {
        assert!(schema().contains_key(kind), "no kind of record: {kind}");
        self.records().into_iter().filter(|record| record.is(kind)).collect()
    }

    /// Returns the whole log as text, in which there must be no secret.
    pub fn text(&self) -> String {
        fs::read_to_string(&self.file).unwrap_or_default()
    }

    /// Waits for a record that `wanted` accepts.
    ///
    /// # Panics
    /// When none comes. The panic shows those that did.
    #[track_caller]
    pub fn wait_for(&self, wanted: impl Fn(&Record) -> bool) -> Record {
        let found = wait::until(wait::SOON, || self.records().into_iter().find(|it| wanted(it)));
        found.unwrap_or_else(|| panic!("no such audit record; there are:\n{}", self.text()))
    }

    /// Waits for a record with this reason word.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn wait_reason(&self, reason: &str) -> Record {
        self.wait_for(|record| record["reason"] == reason)
    }
}

impl Record {
    /// Reads a whole line of the audit.
    ///
    /// # Panics
    /// When it is no record of a known kind, or has a field that its kind does not have.
    pub fn read(line: &str) -> Self {
        let value: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in audit: {line}"));
        let fields = value["record"].as_str().and_then(|kind| schema().get(kind));
        let fields = fields.unwrap_or_else(|| panic!("a record of no kind: {line}"));
        let own = value.as_object().expect("it has a kind");
        for field in own.keys().filter(|field| !["time", "record"].contains(&field.as_str())) {
            assert!(fields.contains(field), "{field} is no field of its kind: {line}");
        }
        Self(value)
    }

    /// Returns whether it is of this kind.
    pub fn is(&self, kind: &str) -> bool {
        self.0["record"] == kind
    }

    /// Returns the record with another value of a field, for one sum instead of several.
    ///
    /// # Panics
    /// When it does not have the field.
    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        *self.0.get_mut(field).expect("a field of the record") = value.into();
        self
    }

    /// Returns whether it has this field.
    ///
    /// # Panics
    /// As the index does.
    #[track_caller]
    pub fn has(&self, field: &str) -> bool {
        !self[field].is_null()
    }
}

/// The value of a field, or null where this record does not have it.
///
/// # Panics
/// When no kind of record has such a field.
impl Index<&str> for Record {
    type Output = Value;

    #[track_caller]
    fn index(&self, field: &str) -> &Value {
        let is_known = schema().values().any(|fields| fields.contains(field));
        assert!(is_known || ["time", "record"].contains(&field), "no record has a field {field}");
        &self.0[field]
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The fields of each kind of record.
type Schema = BTreeMap<String, BTreeSet<String>>;

fn schema() -> &'static Schema {
    static SCHEMA: OnceLock<Schema> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        let page = tools::repository().join("docs/audit.md");
        documented(&fs::read_to_string(&page).expect("the page of the audit"))
    })
}

/// Returns the schema of the page: for each kind, the first table names either its fields or the
/// table of them.
fn documented(page: &str) -> Schema {
    let fields_of = |heading: &str| -> BTreeSet<String> {
        let of_heading = |title: &str| title.to_lowercase().ends_with(&format!("# {heading}"));
        rows(page, of_heading).iter().flat_map(|row| quoted(row[0])).collect()
    };
    let mut schema = Schema::new();
    for row in rows(page, |title| title == "## Records") {
        let linked = row[2].split_once("(#").and_then(|(_, rest)| rest.split_once(')'));
        let fields = match linked {
            Some((heading, _)) => fields_of(heading),
            None => quoted(row[2]).collect(),
        };
        schema.extend(quoted(row[0]).map(|kind| (kind, fields.clone())));
    }
    assert!(schema.len() > 10 && schema["connection"].contains("reason"), "{schema:?}");
    schema
}

/// Returns the cells of each row of the table below this heading.
fn rows(page: &str, is_heading: impl Fn(&str) -> bool) -> Vec<Vec<&str>> {
    let below = page.lines().skip_while(|line| !is_heading(line)).skip(1);
    let own = below.take_while(|line| !line.starts_with('#'));
    let table = own.filter(|line| line.starts_with("| ")).skip(1);
    table.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// Returns the texts between backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned)
}
