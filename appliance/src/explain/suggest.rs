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
    policy::{Group, Host, Policy},
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
    /// The number of refusals for methods and paths beyond those that are listed.
    pub more: u64,
    /// Whether a change is for HTTPS only because nothing is known but that the name was looked up.
    pub guessed: bool,
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
    let mut values: BTreeMap<(TableAt, &'static str), usize> = BTreeMap::new();
    let mut askers: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    let mut hosts: BTreeMap<String, Suggestion> = BTreeMap::new();
    // Known refusals go first: they may leave nothing to guess.
    let is_guess = |it: &&Refusals| it.recorded.guessed && it.recorded.looked_up().is_some();
    let known = refusals.iter().filter(|it| !is_guess(it));
    for Refusals { recorded, count } in known.chain(refusals.iter().filter(is_guess)) {
        let question = &recorded.question;
        let refused = judge(&now.config.policy, question).refused;
        let other = refused.as_ref().is_some_and(|refused| refused.reason != recorded.reason);
        let (remedies, ending) = match quiet(&now.config.policy, question) {
            Some(_) => (vec![], Ending::Refused(QUIET)),
            None if is_answered(&now, recorded) => (vec![], Ending::Passes),
            None if recorded.guessed && is_answered(&draft, recorded) => (vec![], Ending::Passes),
            None if is_nearby(recorded) => (vec![], Ending::Refused(NEARBY)),
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
            guessed: false,
            others: vec![],
        });
        host.guessed |= recorded.guessed && recorded.looked_up().is_some() && !remedies.is_empty();
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

/// Returns whether the record is of a look-up, and its name is listed in this configuration: on
/// whatever port, the look-up passes, and the connection behind it has a record of its own.
fn is_answered(config: &ChangedConfig, recorded: &Recorded) -> bool {
    let policy = &config.config.policy;
    let group = group_of(policy, &recorded.question.who);
    group.zip(recorded.looked_up()).is_some_and(|(group, host)| policy.names(group, host))
}

/// Returns whether a name of one label was looked up. Git asks for the agent's own where it has no
/// address of its user, and browsers for made-up ones.
fn is_nearby(recorded: &Recorded) -> bool {
    recorded.guessed && recorded.looked_up().is_some_and(|host| !host.as_str().contains('.'))
}

/// Adds the changes that let the question pass to the draft. A change that is not enough is
/// dropped.
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

/// Returns the note on a name that a program of the group asks for but does not need.
fn quiet(policy: &Policy, question: &Question) -> Option<&'static str> {
    let (group, host) = (group_of(policy, &question.who)?, question.hosts().first()?);
    if question.request.is_some() { None } else { does_without(policy, group, host) }
}

/// Returns the program of the group that asks for this name and does without it.
pub fn does_without(policy: &Policy, group: &Group, host: &Host) -> Option<&'static str> {
    // A name for which there is a rule is wanted.
    if policy.names(group, host) {
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

/// The note on a name of one label.
const NEARBY: &str = "A name of one label is no host of the internet, and most often the agent's own, \
    which belongs in its /etc/hosts; where a host of yours has it, write a rule for it.";

/// The note where the record's reason no longer applies, but another does.
const OTHER_REASON: &str = "By the configuration as it is now it is refused for another reason; \
    `cloakroom explain` says which.";

/// Most methods, and most paths, that are suggested for a rule. A person reads them.
const MOST_VALUES: usize = 50;

const MANY: &str = "The rule is suggested as many methods and paths as one reads.";

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
