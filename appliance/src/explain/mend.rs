//! Changes of a configuration's text, tried on a copy, until what was refused passes.

use std::path::Path;

use super::{
    ask::Question,
    remedy::{self, Remedy},
    verdict::{Refused, Verdict, judge},
};
use crate::{
    config::{self, Config},
    reason::Reason,
};

/// A configuration, its text, and how the files that it names are read.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// The file.
    pub path: &'a Path,
    /// What it says.
    pub text: &'a str,
    /// Reads the certificates that it names.
    pub read: &'a dyn Fn(&Path) -> std::io::Result<String>,
}

/// A text that is a configuration.
#[derive(Clone)]
pub(super) struct ChangedConfig {
    text: String,
    pub(super) config: Config,
}

/// What was asked, what was found, and what would change it.
pub struct Explanation {
    /// How it is decided now.
    pub verdict: Verdict,
    /// The changes with which it passes, in their order; as far as there are any.
    pub remedies: Vec<Remedy>,
    /// How it ends with them.
    pub ending: Ending,
}

/// How a question ends once every remedy was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It passes.
    Passes,
    /// It does not, and this is what there is to say.
    Refused(&'static str),
}

/// Puts the question, and looks for what would let it pass.
///
/// # Errors
///
/// Where the text is no configuration.
pub fn explain(source: Source<'_>, question: &Question) -> Result<Explanation, config::Errors> {
    let mut draft = ChangedConfig::read(source)?;
    let verdict = judge(&draft.config.policy, question);
    let (remedies, ending) = draft.mend(source, question);
    Ok(Explanation { verdict, remedies, ending })
}

impl ChangedConfig {
    pub(super) fn read(Source { path, text, read }: Source<'_>) -> Result<Self, config::Errors> {
        let name = path.display().to_string();
        let config = config::parse(text, path.parent(), &name, read)?;
        Ok(Self { text: text.to_owned(), config })
    }

    /// Changes the text until the question passes, or nothing more is known to change.
    pub(super) fn mend(
        &mut self,
        source: Source<'_>,
        question: &Question,
    ) -> (Vec<Remedy>, Ending) {
        let mut remedies = Vec::new();
        for _ in 0..MOST_REMEDIES {
            let Some(refused) = judge(&self.config.policy, question).refused else {
                return (remedies, Ending::Passes);
            };
            if is_own_credential_alone(&remedies, &refused) {
                return (remedies, Ending::Refused(remedy::no_remedy(refused.reason)));
            }
            let remedy = match remedy::remedy(&self.config, question, &refused) {
                Ok(remedy) => remedy,
                Err(text) => return (remedies, Ending::Refused(text)),
            };
            let in_file = |edit| config::edited(&self.text, edit).is_some();
            let of_client = !remedy.edits.iter().all(in_file);
            let Some((changed, remedy)) = self.with(source, remedy) else {
                let text = if of_client { OF_CLIENT } else { NO_SUCH_CHANGE };
                return (remedies, Ending::Refused(text));
            };
            let still = judge(&changed.config.policy, question).refused;
            if still.is_some_and(|still| still.is_again(&refused)) {
                return (remedies, Ending::Refused(NO_SUCH_CHANGE));
            }
            *self = changed;
            remedies.push(remedy);
        }
        (remedies, Ending::Refused(NO_SUCH_CHANGE))
    }

    /// The text with the remedy in it, and what the remedy came to: a port that no rule had so far
    /// has to be captured, too, where the configuration lists those that are.
    fn with(&self, source: Source<'_>, remedy: Remedy) -> Option<(Self, Remedy)> {
        let captured = remedy.captured(&self.config.policy);
        [remedy.edits.clone(), [remedy.edits.clone(), captured].concat()].into_iter().find_map(
            |edits| {
                let changed = edits
                    .iter()
                    .try_fold(self.text.clone(), |text, edit| config::edited(&text, edit))?;
                let draft = Self::read(Source { text: &changed, ..source }).ok()?;
                Some((draft, Remedy { edits, ..remedy.clone() }))
            },
        )
    }
}

/// Whether a placeholder was moved and then missed: without any, what else the request holds would
/// reach the API.
fn is_own_credential_alone(remedies: &[Remedy], refused: &Refused) -> bool {
    let moved = |it: &Remedy| it.reason == Reason::PlaceholderWrongPlace;
    refused.reason == Reason::PlaceholderMissing && remedies.iter().any(moved)
}

/// One refusal after the other: the name, the connection, the method, the path, and some to spare.
const MOST_REMEDIES: usize = 8;

/// The file has no table of the rule's name.
const OF_CLIENT: &str = "The rule is of a client that the group runs: write out what `cloakroom \
    clients NAME` prints in place of that client, and change that.";

const NO_SUCH_CHANGE: &str =
    "No single change of a rule lets this pass; `cloakroom check` says what the rules mean.";
