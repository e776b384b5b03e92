//! The rules that end TLS, each of which has a CA of its own.

use std::collections::BTreeSet;

use super::CaError;
use crate::policy::{Carry, Constraints, HostPattern, Policy, RuleName};

/// A rule that ends TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsRule {
    /// Its name, and that of its CA.
    pub rule: RuleName,
    /// The names that it may show a certificate for.
    pub names: Vec<HostPattern>,
    /// The way in which its CA is limited to them.
    pub constraints: Constraints,
}

/// Returns the rules that end TLS.
pub(super) fn rules_that_end_tls(policy: &Policy) -> Result<Vec<TlsRule>, CaError> {
    let apis = policy.apis.iter().map(|api| TlsRule {
        rule: api.name.clone(),
        names: api.hosts.iter().cloned().map(HostPattern::Exact).collect(),
        constraints: api.constraints,
    });
    let inspected = policy.passes.iter().filter_map(|pass| match pass.carry {
        Carry::Splice { .. } => None,
        Carry::Inspect { constraints, .. } => {
            Some(TlsRule { rule: pass.name.clone(), names: pass.hosts.clone(), constraints })
        }
    });
    let rules: Vec<TlsRule> = apis.chain(inspected).collect();
    let mut seen = BTreeSet::new();
    match rules.iter().find(|rule| !seen.insert(&rule.rule)) {
        Some(twice) => Err(CaError::SameName(twice.rule.clone())),
        None => Ok(rules),
    }
}
