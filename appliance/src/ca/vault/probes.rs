//! Questions that tell what Vault would sign for whoever has the gateway's token. Their keys are
//! dropped at once, so that a CA which comes back is of no use to anybody.

use super::{Key, Limits, SignIntermediate, rules_that_end_tls, seconds};
use crate::{
    ca::CaError,
    config::PkiSettings,
    policy::{Policy, RuleName},
};

/// What must be signed and what must not.
pub(crate) struct Probes {
    /// What the gateway itself asks, for each rule.
    pub(crate) good: Vec<(RuleName, SignIntermediate)>,
    /// What is wider, and in which way.
    pub(crate) wider: Vec<(&'static str, SignIntermediate)>,
}

/// The questions for a policy; none where no rule ends TLS.
///
/// # Errors
///
/// A rule whose names cannot be put into a name constraint, or no random numbers.
pub(crate) fn probes(settings: &PkiSettings, policy: &Policy) -> Result<Probes, CaError> {
    let mut good = Vec::new();
    let mut first = None;
    for (rule, names) in rules_that_end_tls(policy)? {
        let limits = Limits::new(&rule, &names, seconds(settings))?;
        first.get_or_insert_with(|| limits.clone());
        good.push((rule, question(limits)?));
    }
    let wider = first.iter().flat_map(wider).map(|(how, limits)| Ok((how, question(limits)?)));
    Ok(Probes { good, wider: wider.collect::<Result<_, CaError>>()? })
}

fn question(limits: Limits) -> Result<SignIntermediate, CaError> {
    SignIntermediate::new(limits, &Key::generate()?)
}

/// In which way a question is wider, and what makes it so.
type Change = (&'static str, fn(&mut Limits));

/// A policy compares each value by itself, so that one at a time is enough.
fn wider(limits: &Limits) -> [(&'static str, Limits); 7] {
    let changes: [Change; 7] = [
        ("a name outside of the configuration", |it| {
            it.permitted_dns_domains = vec![OUTSIDE.to_owned()];
        }),
        ("no names, which are all names", |it| it.permitted_dns_domains.clear()),
        ("an empty name, which is every name", |it| {
            it.permitted_dns_domains = vec![String::new()];
        }),
        ("IP addresses", |it| it.excluded_ip_ranges = ""),
        ("a longer path", |it| it.max_path_length = "1"),
        ("a path of any length", |it| it.max_path_length = ""),
        ("a life without a bound", |it| it.ttl.clear()),
    ];
    changes.map(|(how, change)| {
        let mut limits = limits.clone();
        change(&mut limits);
        (how, limits)
    })
}

/// RFC 2606 keeps this from ever being a name.
const OUTSIDE: &str = "cloakroom-doctor.invalid";
