//! Suggests the rules that would have allowed what was refused: many records, one list of changes.

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
    policy::Policy,
};

/// Refusals that are alike, and their number.
pub struct Refusals {
    /// One of them.
    pub recorded: Recorded,
    /// Their number.
    pub count: u64,
}

/// Changes for one host.
pub struct Suggestion {
    /// The host, if it has a name.
    pub host: String,
    /// The number of refusals that the changes would have allowed.
    pub count: u64,
    /// The changes.
    pub remedies: Vec<Remedy>,
    /// The hosts whose suggestions need some of the same values.
    pub shared: BTreeSet<String>,
    /// The number of refusals for paths beyond those that are listed.
    pub more_paths: u64,
    /// Further refusals at the host for which no change is known, each with a note.
    pub others: Vec<(String, &'static str)>,
}

/// Returns the changes, host by host; the host that needs the least comes first.
///
/// # Errors
///
/// The text is no valid configuration.
pub fn suggest(
    source: Source<'_>,
    refusals: &[Refusals],
) -> Result<Vec<Suggestion>, config::Errors> {
    let mut draft = ChangedConfig::read(source)?;
    let now = draft.clone();
    let mut last = BTreeMap::new();
    let mut paths: BTreeMap<TableAt, usize> = BTreeMap::new();
    let mut askers: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    let mut hosts: BTreeMap<String, Suggestion> = BTreeMap::new();
    for Refusals { recorded, count } in refusals {
        let question = &recorded.question;
        let refused = judge(&now.config.policy, question).refused;
        let other = refused.as_ref().is_some_and(|refused| refused.reason != recorded.reason);
        let (remedies, ending) = match quiet(&now.config.policy, question) {
            Some(_) => (vec![], Ending::Refused(QUIET)),
            None if other => (vec![], Ending::Refused(OTHER_REASON)),
            None => whole(&mut draft, &paths, source, question),
        };
        let name =
            question.hosts().first().map_or_else(|| "no name".to_owned(), ToString::to_string);
        let host = hosts.entry(name.clone()).or_insert_with(|| Suggestion {
            host: name,
            count: 0,
            remedies: vec![],
            shared: BTreeSet::new(),
            more_paths: 0,
            others: vec![],
        });
        match ending {
            Ending::Passes => host.count += count,
            Ending::Refused(MANY_PATHS) => host.more_paths += count,
            Ending::Refused(text) if refused.is_some() => {
                host.others.push((format!("{} ({})", recorded.asked, recorded.reason), text));
            }
            Ending::Refused(_) => {}
        }
        for edit in remedies.iter().flat_map(|remedy| &remedy.edits) {
            if let Edit::Set { table, key, value } = edit {
                let at = (table.clone(), *key);
                if *key == "paths" {
                    *paths.entry(table.clone()).or_default() += 1;
                }
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

/// Adds the changes that let the question pass to the draft. A change that is not enough is
/// dropped.
fn whole(
    draft: &mut ChangedConfig,
    paths: &BTreeMap<TableAt, usize>,
    source: Source<'_>,
    question: &Question,
) -> (Vec<Remedy>, Ending) {
    let is_full = |edit: &Edit| match edit {
        Edit::Set { table, key: "paths", .. } => {
            paths.get(table).is_some_and(|count| *count >= MOST_PATHS)
        }
        _ => false,
    };
    let mut tried = draft.clone();
    match tried.mend(source, question) {
        (remedies, Ending::Passes) if remedies.iter().flat_map(|it| &it.edits).any(is_full) => {
            (vec![], Ending::Refused(MANY_PATHS))
        }
        (remedies, Ending::Passes) => {
            *draft = tried;
            (remedies, Ending::Passes)
        }
        (_, refused) => (vec![], refused),
    }
}

/// Returns the note on a name that a program of the group asks for but does not need.
fn quiet(policy: &Policy, question: &Question) -> Option<&'static str> {
    let (group, host) = (group_of(policy, &question.who)?, question.hosts().first()?);
    // A name for which there is a rule is wanted.
    if question.request.is_some() || policy.names(group, host) {
        return None;
    }
    let asks = |name: &&&'static str| {
        let client = catalogue::client(name);
        client.is_some_and(|it| it.quiet().iter().any(|quiet| quiet == host.as_str()))
    };
    group.clients.iter().find(asks).copied()
}

/// The note on such a name.
const QUIET: &str =
    "A client of the group asks for it and does without; `cloakroom clients` says which.";

/// The note where the record's reason no longer applies, but another does.
const OTHER_REASON: &str = "By the configuration as it is now it is refused for another reason; \
    `cloakroom explain` says which.";

/// Most paths that are suggested for a rule. A person reads them.
const MOST_PATHS: usize = 50;

const MANY_PATHS: &str = "The rule is suggested as many paths as one reads.";

/// Of several values for one key, keeps the last, which includes all earlier ones.
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
    /// Notes the hosts whose suggestions also need values of this one.
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
