//! `cloakroom explain`: says why something is refused, using the code that refuses it, and which
//! rules would allow it.

use std::{
    collections::HashSet,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use clap::Args;
use http::{HeaderName, HeaderValue};

use super::{audited, env::no_group, watch::escaped};
use crate::{
    config::{self, Config, DEFAULT_CONFIG, Edit},
    decide::Route,
    explain::{
        Ending, Explanation, Question, Recorded, Refused, Source, Step, asked, explain, recorded,
        request,
    },
    policy::GroupName,
    refuse::wire,
};

/// The flow or request to explain.
#[derive(Debug, Args)]
#[command(
    override_usage = "cloakroom explain [OPTIONS] FLOW [CONFIG]\n       \
    cloakroom explain [OPTIONS] --group GROUP METHOD URL [CONFIG]",
    after_help = "Examples:\n  cloakroom explain 7f213fc22116f96b\n  \
    cloakroom explain --group research GET https://pypi.org/simple/\n  \
    cloakroom explain --group research --header 'X-Api-Key: OPENAI_API_KEY' GET https://api.openai.com/v1/models\n  \
    cloakroom explain --group research CONNECT tcp://git.example.com:22\n  \
    journalctl --output cat --unit cloakroom | cloakroom explain --audit - 7f213fc22116f96b\n\n\
    A flow stands in each refusal that an agent reads, and in the audit. The request to a URL has the\n\
    placeholder of its API, unless --header or --anonymous says otherwise. A change that is printed\n\
    was tried on a copy of the configuration. No secret is read, and nothing is changed or asked of\n\
    the daemon: what it answers is by the configuration that it has, which `cloakroom reload` renews."
)]
pub struct ExplainArgs {
    /// A flow of the audit; with --group, the method of a request
    #[arg(value_name = "FLOW|METHOD")]
    what: String,
    /// With --group, what the request is for
    #[arg(value_name = "URL")]
    url: Option<String>,
    /// Explain what would become of a request of this group
    #[arg(long, value_name = "GROUP", value_parser = GroupName::parse)]
    group: Option<GroupName>,
    /// A field of that request, as in 'X-Api-Key: OPENAI_API_KEY'
    #[arg(long, value_name = "FIELD", value_parser = field, requires = "group")]
    header: Vec<(HeaderName, HeaderValue)>,
    /// That request has no credential
    #[arg(long, requires = "group", conflicts_with = "header")]
    anonymous: bool,
    /// Records to look for the flow in, in place of those that the configuration names, or "-" for
    /// standard input
    #[arg(long, value_name = "FILE", conflicts_with = "group")]
    audit: Option<PathBuf>,
    /// The configuration
    #[arg(value_name = "CONFIG", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
}

fn field(text: &str) -> Result<(HeaderName, HeaderValue), &'static str> {
    const SHAPE: &str = "write a field as in 'X-Api-Key: OPENAI_API_KEY'";
    let (name, value) = text.split_once(':').ok_or(SHAPE)?;
    let mut value = HeaderValue::try_from(value.trim()).map_err(|_| SHAPE)?;
    value.set_sensitive(true);
    Ok((name.trim().parse().map_err(|_| SHAPE)?, value))
}

/// The reasons why a command of this kind ends without an answer.
pub(super) enum NoAnswer {
    /// The configuration is wrong.
    Config(config::Errors),
    /// Anything else.
    Other(String),
}

impl From<config::Errors> for NoAnswer {
    fn from(errors: config::Errors) -> Self {
        Self::Config(errors)
    }
}

impl From<String> for NoAnswer {
    fn from(text: String) -> Self {
        Self::Other(text)
    }
}

/// Returns the answer.
pub(super) fn answer(args: &ExplainArgs) -> Result<String, NoAnswer> {
    match &args.group {
        Some(group) => hypothetical(args, group),
        None => of_flow(args),
    }
}

/// Loads a configuration with its text. Commands of this kind change a copy of the text.
pub(super) fn loaded(path: &Path) -> Result<(String, Config), NoAnswer> {
    let config = config::load(path)?;
    let text = config::read_bounded(path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok((text, config))
}

fn hypothetical(args: &ExplainArgs, group: &GroupName) -> Result<String, NoAnswer> {
    let url = args.url.as_deref().ok_or_else(|| "after the method stands a URL".to_owned())?;
    let asked = asked(&args.what, url, &args.header)?;
    let (text, config) = loaded(&args.config)?;
    if let Some(error) = no_group(group.as_str(), &config.policy) {
        return Err(error.into());
    }
    let mut question = request(&config.policy, group.clone(), asked);
    question.fills = !args.anonymous && args.header.is_empty();
    let explanation = explained(&args.config, &text, &question)?;
    let title = format!("{} {url}, for the group {group}", args.what);
    Ok(page(&title, &explanation, &args.config))
}

fn of_flow(args: &ExplainArgs) -> Result<String, NoAnswer> {
    // Without --group the second word is the configuration.
    let path = args.url.as_ref().map_or_else(|| args.config.clone(), PathBuf::from);
    let (text, config) = loaded(&path)?;
    let (mut refused, mut seen) = (Vec::new(), HashSet::new());
    let (mut found, mut more) = (false, 0_u64);
    audited::records(args.audit.as_deref(), &config.settings, |record| {
        if record.flow.as_ref() == Some(&args.what) {
            found = true;
            let Some(recorded) = recorded(&record, &config.policy) else { return };
            let key = (recorded.asked.clone(), recorded.reason);
            if refused.len() >= MOST_REFUSALS {
                more += u64::from(!seen.contains(&key));
            } else if seen.insert(key) {
                refused.push(recorded);
            }
        }
    })?;
    if refused.is_empty() {
        return Err(NoAnswer::Other(nothing(&args.what, found)));
    }
    // A connection whose requests were refused has no reason of its own; one that ended early may
    // have one.
    let pages: Result<Vec<String>, NoAnswer> = refused
        .iter()
        .map(|recorded| {
            let explanation = explained(&path, &text, &recorded.question)?;
            let title = format!("{}, refused: {}", recorded.asked, recorded.reason);
            Ok(page(&title, &explanation, &path) + guess(recorded))
        })
        .collect();
    let more = (more > 0).then(|| format!("# … and {more} more refusals on this flow.\n"));
    let pages = pages?.into_iter().chain(more);
    Ok(pages.collect::<Vec<_>>().join("\n"))
}

fn nothing(flow: &str, found: bool) -> String {
    let flow = escaped(flow);
    match found {
        true => format!("the audit has flow {flow}, and refuses nothing on it"),
        false => format!(
            "the audit has no flow {flow}: a connection is recorded when it ends, and old records \
             may be gone; `cloakroom watch --all --refused` shows those that are there"
        ),
    }
}

fn guess(recorded: &Recorded) -> &'static str {
    if recorded.guessed && recorded.question.request.is_some() { GUESSED } else { "" }
}

const GUESSED: &str = "# The audit holds no query, no fields and no values: the request was put together again \
    from\n# its method, path and placeholder. `explain --group` takes the fields of the real one.\n";

pub(super) fn explained(
    path: &Path,
    text: &str,
    question: &Question,
) -> Result<Explanation, config::Errors> {
    explain(Source { path, text, read: &config::read_bounded }, question)
}

fn page(title: &str, explanation: &Explanation, path: &Path) -> String {
    let mut page = format!("# {}\n", escaped(title));
    for (step, text) in steps(explanation) {
        let _ = writeln!(page, "#   {:<12}{text}", step.as_str());
    }
    if explanation.verdict.refused.is_none() {
        let _ = writeln!(page, "# It passes by {}.", path.display());
        return page;
    }
    let is_partial = explanation.ending != Ending::Passes && !explanation.remedies.is_empty();
    if is_partial {
        page += "#\n# This alone is not enough:\n";
    }
    for remedy in &explanation.remedies {
        let _ = writeln!(page, "#\n# For {}. It opens {}.", remedy.reason, remedy.opens);
        for edit in &remedy.edits {
            let _ = write!(page, "\n{}", fragment(edit));
        }
    }
    let _ = match explanation.ending {
        Ending::Passes => writeln!(
            page,
            "\n# Tried on a copy of {}: with it this passes. After it, `cloakroom reload`.",
            path.display()
        ),
        Ending::Refused(text) => writeln!(page, "#\n# {text}"),
    };
    page
}

/// Formats an edit as text that may stand at the end of a configuration: an edit of another place
/// becomes a comment.
pub(super) fn fragment(edit: &Edit) -> String {
    let text = edit.to_string();
    match edit {
        Edit::Append(_) => text,
        Edit::Below { .. } | Edit::Set { .. } => {
            let lines = text.lines().map(|line| format!("# {}\n", line.trim_start_matches("# ")));
            lines.collect()
        }
    }
}

/// Returns the steps of the decision, up to the refusal.
fn steps(explanation: &Explanation) -> Vec<(Step, String)> {
    let verdict = &explanation.verdict;
    let route = verdict.route.as_ref().map(carried);
    let carried = route.map(|text| (Step::Connection, text)).into_iter();
    let refused = verdict.refused.iter().map(|refused| (refused.step, denied(refused)));
    carried.chain(refused).collect()
}

fn carried(route: &Route) -> String {
    format!("{}, by the rule {}", route.as_str(), route.rule())
}

fn denied(refused: &Refused) -> String {
    let mut text = format!("{}: {}", refused.reason, wire(refused.reason).text);
    if let Some(credential) = &refused.credential {
        let _ = write!(text, " ({})", escaped(credential));
    }
    text
}

/// Most refusals that are explained: one connection can have any number of requests.
const MOST_REFUSALS: usize = 20;
