//! `cloakroom suggest`: prints the rules that would have allowed what was refused. A person chooses
//! among them; they are never applied.

use std::{
    collections::HashMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use clap::Args;

use super::{
    audited,
    env::no_group,
    explain::{NoAnswer, fragment, loaded},
    watch::escaped,
};
use crate::{
    audit::{self, AuditLine},
    config::{self, DEFAULT_CONFIG},
    explain::{Recorded, Refusals, Source, Suggestion, Who, recorded, suggest},
    policy::{GroupName, Policy},
};

/// The refusals to read.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cloakroom suggest\n  \
    cloakroom suggest --since 1h --group research >suggested.toml\n  \
    journalctl --output cat --unit cloakroom | cloakroom suggest --audit -\n\n\
    Prints TOML, a part for each host, the host first that takes the least. Each part says what it opens\n\
    and how many refusals it would have let through. Names are exact, and everything was tried on a copy of\n\
    the configuration; nothing is applied. A request is no reason to allow what it asked for: read each part,\n\
    and take what you want.")]
pub struct SuggestArgs {
    /// Only refusals of so long ago, as in 30m or 24h
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Duration>,
    /// Only refusals of this agent group
    #[arg(long, value_name = "GROUP", value_parser = GroupName::parse)]
    group: Option<GroupName>,
    /// Records to look at, in place of those that the configuration names, or "-" for standard
    /// input
    #[arg(long, value_name = "FILE")]
    audit: Option<PathBuf>,
    /// The configuration
    #[arg(value_name = "CONFIG", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
}

fn since(text: &str) -> Result<Duration, &'static str> {
    config::read_duration(text).ok_or("write a number with s, m or h, as in 30m")
}

/// Returns the rules that would have allowed what was refused.
pub(super) fn answer(args: &SuggestArgs, now: SystemTime) -> Result<String, NoAnswer> {
    let (text, config) = loaded(&args.config)?;
    if let Some(error) = args.group.as_ref().and_then(|it| no_group(it.as_str(), &config.policy)) {
        return Err(error.into());
    }
    let from = args.since.and_then(|since| now.checked_sub(since));
    let mut refusals = RefusalCounts::default();
    audited::records(args.audit.as_deref(), &config.settings, |record| {
        if args.wants(&record, from) {
            refusals.note(&record, &config.policy);
        }
    })?;
    let (path, read) = (&*args.config, &config::read_bounded);
    let suggestions = suggest(Source { path, text: &text, read }, &refusals.all)?;
    Ok(page(&suggestions, path) + &refusals.left_out())
}

impl SuggestArgs {
    fn wants(&self, record: &AuditLine, from: Option<SystemTime>) -> bool {
        let late = |from| {
            let time = record.time.as_deref().and_then(audit::time_of);
            time.is_some_and(|time: SystemTime| time >= from)
        };
        let group = record.group.as_deref();
        from.is_none_or(late)
            && self.group.as_ref().is_none_or(|wanted| group == Some(wanted.as_str()))
    }
}

/// Counts of refusals that are alike. An agent that asks for one thing without end takes no more
/// room, and each group has its own room.
#[derive(Default)]
struct RefusalCounts {
    all: Vec<Refusals>,
    known: HashMap<(String, String), usize>,
    /// The number of kinds of each group.
    kinds: HashMap<String, usize>,
    /// Records for which there was no room.
    left: u64,
}

impl RefusalCounts {
    fn note(&mut self, record: &AuditLine, policy: &Policy) {
        let Some(recorded) = recorded(record, policy) else { return };
        let key = (format!("{:?}", recorded.question.who), told(&recorded, record));
        let known = self.known.get(&key).copied();
        if let Some(refusals) = known.and_then(|at| self.all.get_mut(at)) {
            refusals.count += 1;
            return;
        }
        let kinds = self.kinds.entry(room(&recorded.question.who)).or_default();
        if *kinds >= MOST_REFUSALS {
            self.left += 1;
            return;
        }
        *kinds += 1;
        self.known.insert(key, self.all.len());
        self.all.push(Refusals { recorded, count: 1 });
    }

    fn left_out(&self) -> String {
        match self.left {
            0 => String::new(),
            left => format!(
                "# Only the first {MOST_REFUSALS} kinds of refusal of a group were looked at; {left} \
                 more records were not: narrow with --since and --group.\n"
            ),
        }
    }
}

/// Returns the owner of a refusal's room: addresses of no group share that of their interface.
fn room(who: &Who) -> String {
    match who {
        Who::Group(group) => format!("group {group}"),
        Who::At(interface, _) => format!("interface {interface:?}"),
    }
}

/// Returns the key that refusals have in common if they are alike. Addresses are no part of it:
/// those of one name differ, and a client tries all.
fn told(recorded: &Recorded, record: &AuditLine) -> String {
    let question = &recorded.question;
    let asked = match question.hosts().first() {
        Some(host) if question.request.is_none() => format!("{host}:{}", question.port()),
        _ => recorded.asked.clone(),
    };
    let AuditLine { credential, placeholders, .. } = record;
    format!("{asked} {} {credential:?} {placeholders:?}", recorded.reason)
}

fn page(suggestions: &[Suggestion], path: &Path) -> String {
    let mut page = String::new();
    let (some, none): (Vec<_>, Vec<_>) = suggestions.iter().partition(|it| !it.remedies.is_empty());
    if some.is_empty() {
        page += "# Nothing that was refused asks for a rule.\n";
    }
    for suggestion in &some {
        let _ = writeln!(page, "# {}: {}", suggestion.host, refusals(suggestion.count));
        for remedy in &suggestion.remedies {
            let _ = writeln!(page, "# For {}. It opens {}.", remedy.reason, remedy.opens);
        }
        if suggestion.guessed {
            page += "# Only the name was looked up: that it is wanted for HTTPS is a guess.\n";
        }
        for edit in suggestion.remedies.iter().flat_map(|remedy| &remedy.edits) {
            page += &fragment(edit);
        }
        if !suggestion.shared.is_empty() {
            let hosts: Vec<&str> = suggestion.shared.iter().map(String::as_str).collect();
            let _ = writeln!(page, "# (also holds what the parts of {} ask for)", hosts.join(", "));
        }
        if suggestion.more > 0 {
            let more = refusals(suggestion.more);
            let _ = writeln!(page, "# and {more} that ask for more methods or paths");
        }
        page.push('\n');
    }
    if !some.is_empty() {
        let _ = writeln!(
            page,
            "# Tried on a copy of {}. Take what you want, then `cloakroom reload`.",
            path.display()
        );
    }
    let others = some.iter().chain(&none).flat_map(|suggestion| &suggestion.others);
    for (asked, text) in others {
        let _ = writeln!(page, "# No rule for {}: {text}", escaped(asked));
    }
    page
}

fn refusals(count: u64) -> String {
    match count {
        1 => "1 refusal".to_owned(),
        count => format!("{count} refusals"),
    }
}

/// Most different refusals of one group. A person reads the result.
const MOST_REFUSALS: usize = 1_000;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_groups_flood_hides_no_other_groups_refusals() {
        let record = |group: &str, name: &str| {
            let record = json!({
                "record": "dns", "group": group, "name": name, "type": "A", "decision": "refuse",
                "reason": "dns_denied"
            });
            AuditLine::of(record).unwrap()
        };
        let text = "[gateway]\nresolvers = [\"192.0.2.53\"]\n\n[[group]]\nname = \"calm\"\n\
            interface = \"agents0\"\nprefixes = [\"192.0.2.0/28\"]\n";
        let policy = config::parse(text, None, "test", &|_| Ok(String::new())).unwrap().policy;
        let mut refused = RefusalCounts::default();
        for number in 0..MOST_REFUSALS + 5 {
            refused.note(&record("loud", &format!("h{number}.example.")), &policy);
        }
        refused.note(&record("calm", "new.example."), &policy);
        assert_eq!((refused.all.len(), refused.left), (MOST_REFUSALS + 1, 5));
        assert!(refused.left_out().contains("5 more records"));
    }
}
