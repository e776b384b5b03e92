//! The gateway's health: one state, and all its causes, out of one closed list of words.
//!
//! `cloakroom status`, the service manager's line, the ready file and the metrics give the same
//! answer. It is computed from the present each time that it is asked for, so that nothing has to
//! remember to take a cause back.

use std::{fmt, time::Duration};

use serde::Serialize;

/// Whether agents get what policy grants them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// All agents do.
    #[default]
    Healthy,
    /// Some agents get less, or will unless somebody acts.
    Degraded,
    /// Nothing new is carried.
    Closed,
}

macro_rules! causes {
    ($($(#[$doc:meta])* $variant:ident = $word:literal $state:ident,)+) => {
        /// Why the gateway is not healthy.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum HealthCause { $($(#[$doc])* $variant,)+ }

        impl HealthCause {
            /// All causes, in the order of this file.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Returns its word, in status and metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// Returns the gateway's state that follows from it.
            pub const fn state(self) -> HealthState {
                match self { $(Self::$variant => HealthState::$state,)+ }
            }
        }
    };
}

causes! {
    /// The kernel's settings, the packet rules or the guard are not as the daemon needs them.
    PacketsUnsure = "packets_unsure" Closed,
    /// The audit's disk has less room than is kept for flows under way.
    AuditReserve = "audit_reserve" Closed,
    /// The audit's disk has no room at all.
    AuditFull = "audit_full" Closed,
    /// A write of the audit failed in another way.
    AuditUnwritten = "audit_unwritten" Closed,
    /// The audit's file was removed, or is to be reopened, and cannot be opened.
    AuditUnopened = "audit_unopened" Closed,
    /// Records come faster than the audit's disk takes them.
    AuditBehind = "audit_behind" Closed,
    /// The audit's thread has ended.
    AuditEnded = "audit_ended" Closed,
    /// The gateway is about to stop.
    ShuttingDown = "shutting_down" Closed,
    /// The audit's file has reached its size and cannot be moved aside.
    AuditUnrotated = "audit_unrotated" Degraded,
    /// An interface was created again after the start, and nobody listens on it.
    InterfaceUnserved = "interface_unserved" Degraded,
    /// Another program changes packet marks after the gateway's rules have set them.
    ForeignMarks = "foreign_marks" Degraded,
    /// Another program's rules may end what the gateway's rules have captured.
    ForeignFilter = "foreign_filter" Degraded,
    /// The kernel does not confine the daemon to the folders that it needs.
    Unconfined = "unconfined" Degraded,
    /// A secret has no value, or its binding cannot use the value.
    SecretUnavailable = "secret_unavailable" Degraded,
    /// A secret's source does not answer, and the last value is used until its time is over.
    SecretStale = "secret_stale" Degraded,
    /// A rule has no issuing CA, or its CA has ended: its hosts are closed.
    CaMissing = "ca_missing" Degraded,
    /// Less than three tenths of the life of a rule's issuing CA are left, and it was not replaced.
    CaEnding = "ca_ending" Degraded,
    /// A group is cut off.
    GroupQuarantined = "group_quarantined" Degraded,
}

/// One cause, the place where it was found, and its remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The cause.
    pub cause: HealthCause,
    /// The group that it is about.
    pub group: Option<String>,
    /// The rule that it is about.
    pub rule: Option<String>,
    /// The reference of the secret that it is about.
    pub secret: Option<String>,
    /// The reason, in the audit's word.
    pub why: Option<&'static str>,
    /// The time from now until it gets worse, if nothing is done.
    pub left: Option<Duration>,
    /// The fault and its remedy, for a person.
    pub text: String,
}

/// The state, and all its causes, the worst first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    findings: Vec<Finding>,
}

impl HealthState {
    /// All states, from the best to the worst.
    pub const ALL: [Self; 3] = [Self::Healthy, Self::Degraded, Self::Closed];

    /// Returns its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Closed => "closed",
        }
    }
}

impl fmt::Display for HealthState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Finding {
    /// Creates a finding about the gateway as a whole.
    pub fn new(cause: HealthCause, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { cause, group: None, rule: None, secret: None, why: None, left: None, text }
    }

    /// Says that the finding is about this group.
    pub fn of_group(mut self, group: impl ToString) -> Self {
        self.group = Some(group.to_string());
        self
    }

    /// Says that the finding is about this rule.
    pub fn of_rule(mut self, rule: impl ToString) -> Self {
        self.rule = Some(rule.to_string());
        self
    }

    /// Says that the finding is about this secret.
    pub fn of_secret(mut self, secret: impl ToString) -> Self {
        self.secret = Some(secret.to_string());
        self
    }

    /// Adds the reason.
    pub fn because(mut self, why: &'static str) -> Self {
        self.why = Some(why);
        self
    }

    /// Says that it gets worse after this time.
    pub fn in_time(mut self, left: Duration) -> Self {
        self.left = Some(left);
        self
    }
}

impl Health {
    /// Sorts the findings: the worst comes first, and within one kind the one that ends first.
    pub fn of(mut findings: Vec<Finding>) -> Self {
        let left = |it: &Finding| it.left.unwrap_or(Duration::MAX);
        findings.sort_by(|one, other| {
            let worse = other.cause.state().cmp(&one.cause.state());
            worse.then(one.cause.cmp(&other.cause)).then(left(one).cmp(&left(other)))
        });
        Self { findings }
    }

    /// Returns the worst state that any cause leads to.
    pub fn state(&self) -> HealthState {
        self.findings.first().map_or(HealthState::Healthy, |worst| worst.cause.state())
    }

    /// Returns all findings.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Returns the state in one line, with its worst cause.
    pub fn line(&self) -> String {
        let state = self.state();
        match self.kinds().as_slice() {
            [] => state.to_string(),
            [only] => format!("{state}: {only}"),
            [worst, others @ ..] => {
                let words: Vec<&str> =
                    others.iter().map(|kind| kind.first.cause.as_str()).collect();
                format!("{state}: {worst}; also {}", words.join(", "))
            }
        }
    }

    /// Returns the state with the words of its causes, for the log, which already has the text of
    /// each from where it was found.
    pub fn in_words(&self) -> String {
        let mut words: Vec<&str> = self.findings.iter().map(|it| it.cause.as_str()).collect();
        words.dedup();
        match words.as_slice() {
            [] => self.state().to_string(),
            words => format!("{}: {}", self.state(), words.join(", ")),
        }
    }

    /// Returns a line for each kind of cause, for a person.
    pub fn lines(&self) -> Vec<String> {
        self.kinds().iter().map(ToString::to_string).collect()
    }

    /// Returns the kinds of causes without the time that is left. Another text than before is news.
    pub fn kinds_in_words(&self) -> Vec<String> {
        let words = |kind: &SimilarFindings<'_>| {
            format!("{} {:?} {}", kind.first.cause.as_str(), kind.first.why, kind.more)
        };
        self.kinds().iter().map(words).collect()
    }

    /// Groups findings with the same cause and reason, which are shown once: where Vault is sealed,
    /// every secret has the same.
    fn kinds(&self) -> Vec<SimilarFindings<'_>> {
        let mut kinds: Vec<SimilarFindings<'_>> = Vec::new();
        for finding in &self.findings {
            let same = |kind: &&mut SimilarFindings<'_>| {
                (kind.first.cause, kind.first.why) == (finding.cause, finding.why)
            };
            match kinds.iter_mut().find(same) {
                Some(kind) => kind.more += 1,
                None => kinds.push(SimilarFindings { first: finding, more: 0 }),
            }
        }
        kinds
    }
}

/// A finding, and the number of findings like it.
struct SimilarFindings<'a> {
    first: &'a Finding,
    more: usize,
}

impl fmt::Display for SimilarFindings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, more } = self;
        f.write_str(&first.text)?;
        if let Some(left) = first.left {
            write!(f, " ({} left)", countdown(left))?;
        }
        match more {
            0 => Ok(()),
            1 => f.write_str(" (and another like it)"),
            more => write!(f, " (and {more} others like it)"),
        }
    }
}

/// Formats a time for people: two units at most.
pub fn countdown(left: Duration) -> String {
    let seconds = left.as_secs();
    let units = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];
    let at = units.iter().position(|(_, unit)| seconds >= *unit).unwrap_or(units.len() - 1);
    let parts = units.iter().skip(at).take(2).scan(seconds, |rest, (name, unit)| {
        let count = *rest / unit;
        *rest %= unit;
        Some((count, name))
    });
    let texts = parts.filter(|(count, name)| *count > 0 || **name == "s" && seconds == 0);
    texts.map(|(count, name)| format!("{count}{name}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_state_is_as_bad_as_its_worst_cause() {
        assert_eq!(Health::default().state(), HealthState::Healthy);
        for &cause in HealthCause::ALL {
            let other =
                Finding::new(HealthCause::GroupQuarantined, "ops is quarantined").of_group("ops");
            let health = Health::of(vec![other, Finding::new(cause, "this")]);
            assert_eq!(health.state(), cause.state().max(HealthState::Degraded), "{cause:?}");
            assert_ne!(cause.state(), HealthState::Healthy, "a cause is a cause of something");
        }
        let words: HashSet<&str> = HealthCause::ALL.iter().map(|cause| cause.as_str()).collect();
        assert_eq!(words.len(), HealthCause::ALL.len());
    }

    #[test]
    fn findings_with_one_cause_are_told_once() {
        let stale = |secret: &str, left| {
            Finding::new(HealthCause::SecretStale, format!("Vault is sealed; {secret} is old"))
                .of_secret(secret)
                .because("vault_sealed")
                .in_time(Duration::from_secs(left))
        };
        let health = Health::of(vec![
            stale("later", 300),
            stale("first", 90),
            Finding::new(HealthCause::AuditFull, "the disk is full"),
            stale("last", 301),
        ]);
        assert_eq!(health.line(), "closed: the disk is full; also secret_stale");
        assert_eq!(health.in_words(), "closed: audit_full, secret_stale");
        assert_eq!(
            health.lines(),
            [
                "the disk is full",
                "Vault is sealed; first is old (1m30s left) (and 2 others like it)"
            ]
        );
    }

    #[test]
    fn a_countdown_has_two_units() {
        for (seconds, text) in [
            (0, "0s"),
            (1, "1s"),
            (60, "1m"),
            (61, "1m1s"),
            (3_599, "59m59s"),
            (3_601, "1h"),
            (90_000, "1d1h"),
            (86_400 * 20, "20d"),
        ] {
            assert_eq!(countdown(Duration::from_secs(seconds)), text);
        }
    }
}
