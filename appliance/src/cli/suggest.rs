//! `cloakroom suggest`: the rules that would have let through what was refused. They are printed
//! for a person to choose from, and never applied.

use std::{
    collections::HashMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use clap::Args;
use serde_json::Value;

use super::{
    audited,
    explain::{NoAnswer, loaded},
    watch::escaped,
};
use crate::{
    audit,
    config::{self, DEFAULT_CONFIG, Edit},
    explain::{Recorded, Refusals, Source, Suggestion, recorded, suggest},
    policy::{GroupName, Policy},
};

/// What to look back at.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cloakroom suggest\n  \
    cloakroom suggest --since 1h --group research >suggested.toml\n  \
    journalctl --output cat --unit cloakroom | cloakroom suggest --audit -\n\n\
    Prints TOML, a part for each host, the host first that takes the least. Each part says what it opens\n\
    and how many refusals it would have let through. Names are exact, and everything was tried on a copy of\n\
    the configuration; nothing is applied. What an agent asked for is no reason to allow it: read each part,\n\
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

/// What would have let it through.
pub(super) fn answer(args: &SuggestArgs, now: SystemTime) -> Result<String, NoAnswer> {
    let (text, config) = loaded(&args.config)?;
    let from = args.since.and_then(|since| now.checked_sub(since));
    let mut refusals = Refused::default();
    audited::records(args.audit.as_deref(), &config.settings, |record| {
        if args.wants(&record, from) {
            refusals.note(&record, &config.policy);
        }
    })?;
    let refusals = refusals.all;
    let (path, read) = (&*args.config, &config::read_bounded);
    let suggestions = suggest(Source { path, text: &text, read }, &refusals)?;
    Ok(page(&suggestions, path))
}

impl SuggestArgs {
    fn wants(&self, record: &Value, from: Option<SystemTime>) -> bool {
        let word = |key| record.get(key).and_then(Value::as_str);
        let late = |from| {
            word("time").and_then(audit::time_of).is_some_and(|time: SystemTime| time >= from)
        };
        from.is_none_or(late)
            && self.group.as_ref().is_none_or(|group| word("group") == Some(group.as_str()))
    }
}

/// Refusals that are alike are counted, so that an agent that asks for one thing without end takes
/// no room.
#[derive(Default)]
struct Refused {
    all: Vec<Refusals>,
    known: HashMap<(String, String), usize>,
}

impl Refused {
    fn note(&mut self, record: &Value, policy: &Policy) {
        let Some(recorded) = recorded(record, policy) else { return };
        let key = (format!("{:?}", recorded.question.who), told(&recorded));
        let known = self.known.get(&key).copied();
        if let Some(refusals) = known.and_then(|at| self.all.get_mut(at)) {
            refusals.count += 1;
        } else if self.all.len() < MOST_REFUSALS {
            self.known.insert(key, self.all.len());
            self.all.push(Refusals { recorded, count: 1 });
        }
    }
}

/// What makes refusals alike: addresses of one name differ, and a client tries all.
fn told(recorded: &Recorded) -> String {
    let question = &recorded.question;
    let asked = match question.hosts().first() {
        Some(host) if question.request.is_none() => format!("{host}:{}", question.port()),
        _ => recorded.asked.clone(),
    };
    format!("{asked} {}", recorded.reason)
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
        for edit in suggestion.remedies.iter().flat_map(|remedy| &remedy.edits) {
            page += &fragment(edit);
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

/// All that is printed may stand at the end of a configuration: what belongs elsewhere is a
/// comment.
fn fragment(edit: &Edit) -> String {
    let text = edit.to_string();
    match edit {
        Edit::Append(_) => text,
        Edit::Below { .. } | Edit::Set { .. } => {
            let lines = text.lines().map(|line| format!("# {}\n", line.trim_start_matches("# ")));
            lines.collect()
        }
    }
}

fn refusals(count: u64) -> String {
    match count {
        1 => "1 refusal".to_owned(),
        count => format!("{count} refusals"),
    }
}

/// Refusals that differ. A person reads what comes of them.
const MOST_REFUSALS: usize = 1_000;
