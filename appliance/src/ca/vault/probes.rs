//! Requests that show what Vault would sign for a holder of the gateway's token. Their keys are
//! dropped at once, so that a CA that comes back is of no use to anybody.

use std::collections::BTreeMap;

use super::{CaKey, SignIntermediate, SigningParameters, TlsRule, rules_that_end_tls, seconds};
use crate::{
    ca::CaError,
    config::PkiSettings,
    policy::{Policy, RuleName},
};

/// The requests that Vault must sign, and those that it must not.
pub(crate) struct Probes {
    /// The gateway's own request, for each rule.
    pub(crate) good: Vec<(RuleName, SignIntermediate)>,
    /// The wider requests, each with the way in which it is wider.
    pub(crate) wider: Vec<(&'static str, SignIntermediate)>,
}

/// Returns the requests for a policy; none where no rule ends TLS.
///
/// # Errors
///
/// A rule's names cannot be put into a name constraint, or there are no random numbers.
pub(crate) fn probes(settings: &PkiSettings, policy: &Policy) -> Result<Probes, CaError> {
    let mut good = Vec::new();
    let mut all: Vec<SigningParameters> = Vec::new();
    for TlsRule { rule, names, .. } in rules_that_end_tls(policy)? {
        let limits = SigningParameters::new(&rule, &names, seconds(settings))?;
        all.push(limits.clone());
        good.push((rule, question(limits)?));
    }
    let Some(first) = all.first() else { return Ok(Probes { good, wider: Vec::new() }) };
    let mut wider = Vec::new();
    for (how, limits) in limits_that_are_wider(first).into_iter().chain(mixture(&all)) {
        wider.push((how, question(limits)?));
    }
    for (how, name, value) in BESIDE {
        let more = BTreeMap::from([(name, value)]);
        wider.push((how, SignIntermediate { more, ..question(first.clone())? }));
    }
    Ok(Probes { good, wider })
}

fn question(limits: SigningParameters) -> Result<SignIntermediate, CaError> {
    SignIntermediate::new(limits, &CaKey::generate()?)
}

/// The way in which a request is wider, and the change that makes it so.
type Widening = (&'static str, fn(&mut SigningParameters));

/// Returns limits that are each wider in one value. A policy compares each value by itself, so one
/// at a time is enough.
fn limits_that_are_wider(limits: &SigningParameters) -> [(&'static str, SigningParameters); 9] {
    let changes: [Widening; 9] = [
        ("a name outside of the configuration", |it| {
            it.permitted_dns_domains = vec![OUTSIDE.to_owned()];
        }),
        ("no names, which are all names", |it| it.permitted_dns_domains.clear()),
        ("an empty name, which is every name", |it| {
            it.permitted_dns_domains = vec![String::new()];
        }),
        ("a common name of its own, which the engine makes a name", |it| {
            OUTSIDE.clone_into(&mut it.common_name);
        }),
        ("IP addresses", |it| it.excluded_ip_ranges = ""),
        ("a longer path", |it| it.max_path_length = "1"),
        ("a path of any length", |it| it.max_path_length = ""),
        ("a longer life", |it| it.ttl = LONGER.to_owned()),
        ("a life without a bound", |it| it.ttl.clear()),
    ];
    changes.map(|(how, change)| {
        let mut limits = limits.clone();
        change(&mut limits);
        (how, limits)
    })
}

/// Returns one request with the names of two rules, where two rules have different names.
fn mixture(all: &[SigningParameters]) -> Option<(&'static str, SigningParameters)> {
    let mut mixed = all.first()?.clone();
    let other = all.iter().find(|it| it.permitted_dns_domains != mixed.permitted_dns_domains)?;
    let names = &mut mixed.permitted_dns_domains;
    names.extend(other.permitted_dns_domains.iter().cloned());
    names.sort_unstable();
    names.dedup();
    // Where one rule has all of these names, it may ask for them.
    let is_new = all.iter().all(|it| it.permitted_dns_domains != mixed.permitted_dns_domains);
    is_new.then_some(("the names of two rules at once", mixed))
}

/// The way in which a request is wider, and the field that it sends beside its limits.
const BESIDE: [(&str, &str, &str); 3] = [
    ("whatever its CSR says", "use_csr_values", "true"),
    ("alternative names", "alt_names", OUTSIDE),
    ("an end of its own", "not_after", "2099-01-01T00:00:00Z"),
];

/// More than the configuration can ask for: a year and an hour.
const LONGER: &str = "31539600s";

/// RFC 2606 keeps this from ever being a name.
const OUTSIDE: &str = "cloakroom-doctor.invalid";
