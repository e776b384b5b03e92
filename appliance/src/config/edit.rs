//! One change of a configuration's text, as a person would make it: another rule at the end,
//! another table below an API, or a key of an existing table.
//!
//! Nothing is checked here. The result is a text for [`parse`](super::parse), as any other.

use std::fmt;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::error::Span;
use crate::catalogue;

/// A change of a configuration's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// Another rule, at the end.
    Append(String),
    /// Another table, below the API of this name.
    Below {
        /// The API.
        api: String,
        /// The table.
        text: String,
    },
    /// A value that replaces the present one.
    Set {
        /// The table that has it.
        table: TableAt,
        /// Its key.
        key: &'static str,
        /// The value, as TOML has it.
        value: String,
    },
}

/// A table of the file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum TableAt {
    /// `[gateway]`.
    Gateway,
    /// The rule or the group of this name.
    Named {
        /// `api`, `splice`, `inspect`, `tcp` or `group`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The `[[api.binding]]` of this placeholder.
    Binding {
        /// The API that it is below.
        api: String,
        /// Its placeholder.
        placeholder: String,
    },
}

/// Returns the text with the change in it; `None` where the text lacks the part to be changed.
pub fn edited(text: &str, edit: &Edit) -> Option<String> {
    match edit {
        Edit::Append(more) => Some(format!("{}\n\n{}\n", text.trim_end(), more.trim_end())),
        Edit::Below { api, text: more } => below(text, api, more),
        Edit::Set { table, key, value } => set(text, table, key, value),
    }
}

fn below(text: &str, api: &str, more: &str) -> Option<String> {
    let document = DeTable::parse(text).ok()?;
    let (begin, _) = named(document.get_ref(), "api", api)?;
    let next = heads(document.get_ref()).filter(|head| *head > begin.start).min();
    let end = next.unwrap_or(text.len());
    let (before, after) = (text.get(..end)?.trim_end(), text.get(end..)?);
    Some(format!("{before}\n{}\n\n{after}", more.trim_end()).trim_end().to_owned() + "\n")
}

/// Returns where each top-level table begins.
fn heads(document: &DeTable<'_>) -> impl Iterator<Item = usize> {
    document.iter().flat_map(|(_, value)| match value.get_ref() {
        DeValue::Array(items) => items.iter().map(|item| item.span().start).collect(),
        DeValue::Table(_) => vec![value.span().start],
        _ => vec![],
    })
}

fn set(text: &str, table: &TableAt, key: &str, value: &str) -> Option<String> {
    let document = DeTable::parse(text).ok()?;
    let (span, entries) = find(document.get_ref(), table)?;
    let line = format!("{key} = {value}");
    let there = entries.iter().find(|(name, _)| *name.get_ref() == key);
    if let Some((name, old)) = there {
        let (before, after) = (text.get(..name.span().start)?, text.get(old.span().end..)?);
        return Some(format!("{before}{line}{after}"));
    }
    let head = text.get(span.start..)?.find('\n').map_or(text.len(), |at| span.start + at);
    let (before, after) = (text.get(..head)?, text.get(head..)?);
    Some(format!("{before}\n{line}{after}"))
}

fn find<'a>(document: &'a DeTable<'a>, table: &TableAt) -> Option<(Span, &'a DeTable<'a>)> {
    match table {
        TableAt::Gateway => {
            let value = document.get("gateway")?;
            Some((value.span(), value.get_ref().as_table()?))
        }
        TableAt::Named { kind, name } => named(document, kind, name),
        TableAt::Binding { api, placeholder } => {
            let (_, api) = named(document, "api", api)?;
            let own = catalogued(api).map(|provider| provider.placeholder());
            items(api, "binding")
                .find(|(_, binding)| text_at(binding, "placeholder").or(own) == Some(placeholder))
        }
    }
}

/// Returns the rule of this name. The name may be that of its provider.
fn named<'a>(document: &'a DeTable<'a>, kind: &str, name: &str) -> Option<(Span, &'a DeTable<'a>)> {
    items(document, kind).find(|(_, rule)| {
        let own = || catalogued(rule).map(|provider| provider.name);
        text_at(rule, "name").or_else(own) == Some(name)
    })
}

fn catalogued(api: &DeTable<'_>) -> Option<&'static catalogue::Provider> {
    text_at(api, "provider").and_then(catalogue::provider)
}

fn text_at<'a>(table: &'a DeTable<'_>, key: &str) -> Option<&'a str> {
    table.get(key)?.get_ref().as_str()
}

fn items<'a>(table: &'a DeTable<'a>, key: &str) -> impl Iterator<Item = (Span, &'a DeTable<'a>)> {
    let items = table.get(key).and_then(|value| value.get_ref().as_array());
    let table = |item: &'a Spanned<DeValue<'a>>| Some((item.span(), item.get_ref().as_table()?));
    items.into_iter().flatten().filter_map(table)
}

/// Formats the edit as it is written into the file. Where it does not belong at the end, a comment
/// above it names its place.
impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Append(text) => writeln!(f, "{}", text.trim_end()),
            Self::Below { api, text } => {
                writeln!(f, "# Below [[api]] {api:?} and its keys:\n{}", text.trim_end())
            }
            Self::Set { table, key, value } => {
                writeln!(f, "# In {table}, in place of the {key} that it has, if any:")?;
                writeln!(f, "{key} = {value}")
            }
        }
    }
}

impl fmt::Display for TableAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway => f.write_str("[gateway]"),
            Self::Named { kind, name } => write!(f, "[[{kind}]] {name:?}"),
            Self::Binding { api, placeholder } => {
                write!(f, "the [[api.binding]] of {placeholder:?} below [[api]] {api:?}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"[gateway]
resolvers = ["192.0.2.53"]

[[api]] # the first
name = "one"
hosts = ["one.example"]
paths = [
  "/v1/*",
]

[[api.binding]]
placeholder = "ONE_API_KEY"
groups = ["research"]

[[api]]
provider = "openai"

[[api.binding]]
groups = ["research"]
secret = "file:openai"

[[splice]]
name = "pypi"
hosts = ["pypi.org"]
"#;

    fn rule(kind: &'static str, name: &str) -> TableAt {
        TableAt::Named { kind, name: name.into() }
    }

    fn with(table: TableAt, key: &'static str, value: &str) -> Option<String> {
        edited(TEXT, &Edit::Set { table, key, value: value.into() })
    }

    #[test]
    fn a_key_is_replaced_in_place_or_stands_first() {
        for (table, key, before, after) in [
            (rule("api", "one"), "paths", "paths = [\n  \"/v1/*\",\n]\n", "paths = [1]\n"),
            (rule("api", "one"), "port", "# the first\n", "# the first\nport = [1]\n"),
            (rule("api", "openai"), "paths", "\"openai\"\n", "\"openai\"\n"),
            (rule("splice", "pypi"), "ech", "[[splice]]\n", "[[splice]]\nech = [1]\n"),
            (TableAt::Gateway, "ports", "[gateway]\n", "[gateway]\nports = [1]\n"),
        ] {
            let changed = with(table, key, "[1]").unwrap();
            let wanted = match key == "paths" && before.starts_with("\"openai") {
                true => TEXT.replace("[[api]]\nprovider", "[[api]]\npaths = [1]\nprovider"),
                false => TEXT.replacen(before, after, 1),
            };
            assert_eq!(changed, wanted, "{key}");
        }
    }

    #[test]
    fn a_binding_is_found_by_either_placeholder() {
        let binding = |api: &str, placeholder: &str| TableAt::Binding {
            api: api.into(),
            placeholder: placeholder.into(),
        };
        let changed = with(binding("openai", "OPENAI_API_KEY"), "groups", "[1]").unwrap();
        assert!(changed.ends_with(
            "[[api.binding]]\ngroups = [1]\nsecret = \"file:openai\"\n\n[[splice]]\nname = \"pypi\"\n\
             hosts = [\"pypi.org\"]\n"
        ));
        let changed = with(binding("one", "ONE_API_KEY"), "places", "[1]").unwrap();
        assert!(changed.contains("[[api.binding]]\nplaces = [1]\nplaceholder = \"ONE_API_KEY\"\n"));
        assert_eq!(with(binding("one", "OPENAI_API_KEY"), "places", "[1]"), None);
        assert_eq!(with(rule("api", "two"), "paths", "[1]"), None);
    }

    #[test]
    fn a_table_below_an_api_stands_before_the_next_rule() {
        for (api, before) in [("one", "[[api]]\nprovider"), ("openai", "[[splice]]")] {
            let edit = Edit::Below { api: api.into(), text: "[[api.binding]]\nnew = 1".into() };
            let wanted = TEXT.replace(before, &format!("[[api.binding]]\nnew = 1\n\n{before}"));
            let changed = edited(TEXT, &edit).unwrap();
            assert_eq!(changed.replace("\n\n", "\n"), wanted.replace("\n\n", "\n"));
        }
    }

    #[test]
    fn a_rule_more_stands_at_the_end() {
        let edit = Edit::Append("[[splice]]\nname = \"npm\"\n".into());
        let changed = edited(TEXT, &edit).unwrap();
        assert_eq!(changed, format!("{TEXT}\n[[splice]]\nname = \"npm\"\n"));
    }
}
