//! What would have let through what was refused: many records, one list of changes.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    ask::Question,
    mend::{ChangedConfig, Ending, Source},
    recorded::Recorded,
    remedy::{Reach, Remedy},
    verdict::{group_of, judge},
};
use crate::{
    catalogue,
    config::{self, Edit, TableAt},
    policy::{Group, Host, Policy},
};

/// Refusals that are alike, and how often they were.
pub struct Refusals {
    /// One of them.
    pub recorded: Recorded,
    /// How many there are.
    pub count: u64,
}

/// Changes for one host.
pub struct Suggestion {
    /// The host, as far as it has a name.
    pub host: String,
    /// How many refusals they would have let through.
    pub count: u64,
    /// The changes.
    pub remedies: Vec<Remedy>,
    /// The hosts whose parts ask for some of the same values.
    pub shared: BTreeSet<String>,
    /// How many refusals ask for methods and paths beyond those that are listed.
    pub more: u64,
    /// Further refusals at the host for which no change is known, each with what to know of it.
    pub others: Vec<(String, &'static str)>,
}

/// What to change, host by host, and the host first that takes the least.
///
/// # Errors
///
/// Where the text is no configuration.
pub fn suggest(
    source: Source<'_>,
    refusals: &[Refusals],
) -> Result<Vec<Suggestion>, config::Errors> {
    let mut draft = ChangedConfig::read(source)?;
    let now = draft.clone();
    let mut last = BTreeMap::new();
    let mut values: BTreeMap<(TableAt, &'static str), usize> = BTreeMap::new();
    let mut askers: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    let mut hosts: BTreeMap<String, Suggestion> = BTreeMap::new();
    for Refusals { recorded, count } in refusals {
        let question = &recorded.question;
        let refused = judge(&now.config.policy, question).refused;
        let other = refused.as_ref().is_some_and(|refused| refused.reason != recorded.reason);
        let (remedies, ending) = match quiet(&now.config.policy, question) {
            Some(_) => (vec![], Ending::Refused(QUIET)),
            None if other => (vec![], Ending::Refused(OTHER_REASON)),
            None => whole(&mut draft, &values, source, question),
        };
        let name =
            question.hosts().first().map_or_else(|| "no name".to_owned(), ToString::to_string);
        let host = hosts.entry(name.clone()).or_insert_with(|| Suggestion {
            host: name,
            count: 0,
            remedies: vec![],
            shared: BTreeSet::new(),
            more: 0,
            others: vec![],
        });
        match ending {
            Ending::Passes => host.count += count,
            Ending::Refused(MANY) => host.more += count,
            Ending::Refused(text) if refused.is_some() => {
                host.others.push((format!("{} ({})", recorded.asked, recorded.reason), text));
            }
            Ending::Refused(_) => {}
        }
        for edit in remedies.iter().flat_map(|remedy| &remedy.edits) {
            if let Edit::Set { table, key, value } = edit {
                let at = (table.clone(), *key);
                *values.entry(at.clone()).or_default() += 1;
                askers.entry(at.clone()).or_default().insert(host.host.clone());
                last.insert(at, value.clone());
            }
        }
        host.remedies.extend(remedies);
    }
    let mut suggestions: Vec<Suggestion> = hosts.into_values().collect();
    suggestions.retain(|it| !it.remedies.is_empty() || !it.others.is_empty());
    suggestions.sort_by_key(|it| (it.reach(), std::cmp::Reverse(it.count)));
    settle(&mut suggestions, &last);
    for suggestion in &mut suggestions {
        suggestion.share(&askers);
    }
    Ok(suggestions)
}

/// What lets the question pass, in the draft from now on; a part that is not enough is none.
fn whole(
    draft: &mut ChangedConfig,
    values: &BTreeMap<(TableAt, &'static str), usize>,
    source: Source<'_>,
    question: &Question,
) -> (Vec<Remedy>, Ending) {
    let is_full = |edit: &Edit| match edit {
        Edit::Set { table, key: key @ ("methods" | "paths"), .. } => {
            values.get(&(table.clone(), *key)).is_some_and(|count| *count >= MOST_VALUES)
        }
        _ => false,
    };
    let mut tried = draft.clone();
    match tried.mend(source, question) {
        (remedies, Ending::Passes) if remedies.iter().flat_map(|it| &it.edits).any(is_full) => {
            (vec![], Ending::Refused(MANY))
        }
        (remedies, Ending::Passes) => {
            *draft = tried;
            (remedies, Ending::Passes)
        }
        (_, refused) => (vec![], refused),
    }
}

fn quiet(policy: &Policy, question: &Question) -> Option<&'static str> {
    let (group, host) = (group_of(policy, &question.who)?, question.hosts().first()?);
    if question.request.is_some() { None } else { does_without(policy, group, host) }
}

/// The program of the group that asks for this name and does without it.
pub fn does_without(policy: &Policy, group: &Group, host: &Host) -> Option<&'static str> {
    // Where a rule is there, it is wanted.
    if policy.names(group, host) {
        return None;
    }
    let asks = |name: &&&'static str| {
        let client = catalogue::client(name);
        client.is_some_and(|it| it.quiet().iter().any(|quiet| quiet == host.as_str()))
    };
    group.clients.iter().find(asks).copied()
}

/// What there is to say of it.
const QUIET: &str =
    "A client of the group asks for it and does without; `cloakroom clients` says which.";

/// What there is to say where the record's reason is gone, and another has come.
const OTHER_REASON: &str = "By the configuration as it is now it is refused for another reason; \
    `cloakroom explain` says which.";

/// Methods, and paths, that a rule is suggested. A person reads them.
const MOST_VALUES: usize = 50;

const MANY: &str = "The rule is suggested as many methods and paths as one reads.";

/// Of several values for one key, the last holds all that went before.
fn settle(suggestions: &mut [Suggestion], last: &BTreeMap<(TableAt, &'static str), String>) {
    let mut told = BTreeSet::new();
    for remedy in suggestions.iter_mut().flat_map(|it| &mut it.remedies) {
        remedy.edits.retain_mut(|edit| {
            let Edit::Set { table, key, value } = edit else { return true };
            let at = (table.clone(), *key);
            if let Some(last) = last.get(&at) {
                value.clone_from(last);
            }
            told.insert(at)
        });
    }
}

impl Suggestion {
    /// Notes whose parts ask for the values that stand in this one, too.
    fn share(&mut self, askers: &BTreeMap<(TableAt, &'static str), BTreeSet<String>>) {
        for edit in self.remedies.iter().flat_map(|remedy| &remedy.edits) {
            let Edit::Set { table, key, .. } = edit else { continue };
            let hosts = askers.get(&(table.clone(), *key)).into_iter().flatten();
            self.shared.extend(hosts.filter(|host| **host != self.host).cloned());
        }
    }

    fn reach(&self) -> Option<Reach> {
        self.remedies.iter().map(|remedy| remedy.reach).max()
    }
}
