//! Changes of a configuration's text, tried on a copy until the refused question passes.

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

/// A configuration, its text, and the reader of the files that it names.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// The file.
    pub path: &'a Path,
    /// Its text.
    pub text: &'a str,
    /// Reads the certificates that it names.
    pub read: &'a dyn Fn(&Path) -> std::io::Result<String>,
}

/// A changed text that is a valid configuration.
#[derive(Clone)]
pub(super) struct ChangedConfig {
    text: String,
    pub(super) config: Config,
}

/// The present verdict on a question, and the changes that would make it pass.
pub struct Explanation {
    /// The present verdict.
    pub verdict: Verdict,
    /// The changes with which the question passes, in their order; as many as are known.
    pub remedies: Vec<Remedy>,
    /// The verdict with the changes.
    pub ending: Ending,
}

/// The outcome of a question once every remedy was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It passes.
    Passes,
    /// It is refused, with this note for the operator.
    Refused(&'static str),
}

/// Judges the question, and looks for changes that would let it pass.
///
/// # Errors
///
/// The text is no valid configuration.
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

    /// Changes the text until the question passes, or no further change is known.
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

    /// Returns the text with the remedy in it, and the complete remedy: where the configuration
    /// lists the captured ports, a port that no rule had so far is added to them.
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

/// Returns whether a placeholder was moved and then missed: without any placeholder, the request's
/// own credential would reach the API.
fn is_own_credential_alone(remedies: &[Remedy], refused: &Refused) -> bool {
    let moved = |it: &Remedy| it.reason == Reason::PlaceholderWrongPlace;
    refused.reason == Reason::PlaceholderMissing && remedies.iter().any(moved)
}

/// Most remedies of a question: the name, the connection, the method, the path, and some to spare.
const MOST_REMEDIES: usize = 8;

/// The note where the file has no table of the rule's name.
const OF_CLIENT: &str = "The rule is of a client that the group runs: write out what `cloakroom \
    clients NAME` prints in place of that client, and change that.";

const NO_SUCH_CHANGE: &str =
    "No single change of a rule lets this pass; `cloakroom check` says what the rules mean.";
