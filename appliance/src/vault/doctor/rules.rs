//! The rules of a token, as Vault lists them: of all its policies together, for every path.
//!
//! No question about a path finds a right to another engine; this list shows it. Vault calls the
//! list internal and may change its form: a rule that is not understood is a finding.

use std::collections::{BTreeMap, BTreeSet};

use rustify::{
    endpoint::Endpoint,
    enums::{RequestMethod, RequestType, ResponseType},
};
use serde::Deserialize;

use super::{
    super::{
        plan::{OWN_RULES, PathGrant, WritableParameters},
        token::TokenClient,
    },
    CheckVerdict, Doctor,
};
use crate::ca::SAID;

#[derive(Deserialize)]
struct ListedRules {
    data: WrittenRules,
}

#[derive(Deserialize)]
struct WrittenRules {
    exact_paths: BTreeMap<String, WrittenRule>,
    /// Rules whose path ends in an asterisk, which Vault leaves out, or has a plus inside.
    glob_paths: BTreeMap<String, WrittenRule>,
}

#[derive(Deserialize)]
struct WrittenRule {
    capabilities: BTreeSet<String>,
    #[serde(flatten)]
    written: WritableParameters,
}

impl Doctor<'_> {
    /// Checks that a token has the rules of `grants` and no others, except at `signing`, where
    /// every field that limits a CA must be required. Returns the paths that the other rules can
    /// read.
    pub(super) async fn look_at_rules(
        &mut self,
        whose: &str,
        client: &TokenClient,
        grants: &[PathGrant],
        signing: &[String],
    ) -> Vec<String> {
        let Some(rules) = self.rules(client).await else {
            let text =
                format!("Vault does not list its token's rules: it needs read on {OWN_RULES}");
            self.add(CheckVerdict::Unanswered, whose, &text);
            return Vec::new();
        };
        for grant in grants {
            let rule = rules.iter().find(|(path, _)| *path == grant.path);
            if rule.is_some_and(|(_, rule)| !grant.limits(&rule.written)) {
                let text = format!(
                    "may say more to {} than it needs: set the plan's allowed_parameters",
                    grant.path
                );
                self.add(CheckVerdict::TooWide, whose, &text);
            }
        }
        for path in signing {
            let rule = rules.iter().find(|(other, _)| other == path);
            if rule.is_some_and(|(_, rule)| !rule.written.holds_to(&SAID)) {
                let text = format!(
                    "may leave limits out at {path}, or say more than it needs: set the plan's \
                     required_parameters and allowed_parameters"
                );
                self.add(CheckVerdict::TooWide, whose, &text);
            }
        }
        let needed = |path: &String| {
            grants.iter().any(|grant| grant.path == *path) || signing.contains(path)
        };
        let others = rules.into_iter().filter(|(path, rule)| !needed(path) && !rule.is_usual(path));
        let others = others.map(|(path, rule)| (path, rule.capabilities)).collect();
        let text = ["its policies have no rule beside the plan's", "its policies have more rules"];
        self.open(whose, text, others)
    }

    /// Returns every rule that allows something, by its path as a policy writes it.
    async fn rules(&self, client: &TokenClient) -> Option<Vec<(String, WrittenRule)>> {
        let body = client.call(OwnRules).await.ok()?;
        let ListedRules { data } = serde_json::from_slice(&body).ok()?;
        let globs = data.glob_paths.into_iter().map(|(path, rule)| (as_written(path), rule));
        let rules = data.exact_paths.into_iter().chain(globs);
        let allows = |rule: &WrittenRule| !rule.capabilities.contains("deny");
        let rules = rules.filter(|(_, rule)| allows(rule));
        Some(rules.map(|(path, rule)| (self.within_namespace(path), rule)).collect())
    }

    /// Returns the path as seen from the configured namespace; a path elsewhere stays whole.
    fn within_namespace(&self, path: String) -> String {
        let Some(namespace) = &self.vault.namespace else { return path };
        let within = path.strip_prefix(namespace.trim_matches('/'));
        match within.and_then(|path| path.strip_prefix('/')) {
            Some(within) => within.to_owned(),
            None => format!("/{path}"),
        }
    }
}

impl WrittenRule {
    /// Whether Vault's own default policy has the rule, by which a token reaches itself alone.
    fn is_usual(&self, path: &str) -> bool {
        let own = |(start, held): &(&str, &[&str])| {
            let same = path.strip_prefix(start).is_some_and(|id| !id.contains(['*', '+', '/']));
            (path == *start || start.ends_with('/') && same)
                && self.capabilities.iter().all(|one| held.contains(&&**one))
        };
        path == CUBBYHOLE || USUAL.iter().any(own)
    }
}

fn as_written(path: String) -> String {
    match path.split('/').any(|segment| segment == "+") {
        true => path,
        false => path + "*",
    }
}

struct OwnRules;

impl Endpoint for OwnRules {
    type Response = ();
    const REQUEST_BODY_TYPE: RequestType = RequestType::JSON;
    const RESPONSE_BODY_TYPE: ResponseType = ResponseType::JSON;

    fn path(&self) -> String {
        OWN_RULES.to_owned()
    }

    fn method(&self) -> RequestMethod {
        RequestMethod::GET
    }
}

/// The path of a token's own storage.
const CUBBYHOLE: &str = "cubbyhole/*";

/// Further rules of Vault's default policy that no plan has. A path that ends in a slash has one
/// more segment, the token's own identity.
/// <https://developer.hashicorp.com/vault/docs/concepts/policies#default-policy>
const USUAL: [(&str, &[&str]); 12] = [
    ("identity/entity/id/", &["read"]),
    ("identity/entity/name/", &["read"]),
    ("identity/oidc/provider/+/authorize", &["read", "update"]),
    ("sys/control-group/request", &["update"]),
    ("sys/leases/lookup", &["update"]),
    ("sys/leases/renew", &["update"]),
    ("sys/renew", &["update"]),
    ("sys/tools/hash", &["update"]),
    ("sys/tools/hash/*", &["update"]),
    ("sys/wrapping/lookup", &["update"]),
    ("sys/wrapping/unwrap", &["update"]),
    ("sys/wrapping/wrap", &["update"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(held: &[&str]) -> WrittenRule {
        let capabilities = held.iter().map(|it| (*it).to_owned()).collect();
        WrittenRule { capabilities, written: WritableParameters::default() }
    }

    #[test]
    fn only_what_the_default_policy_has_is_usual() {
        for (path, held) in [
            ("cubbyhole/*", &["read", "delete"][..]),
            ("identity/entity/id/7c9e", &["read"]),
            ("sys/tools/hash/*", &["update"]),
        ] {
            assert!(rule(held).is_usual(path), "{path}");
        }
        for (path, held) in [
            ("identity/entity/id/*", &["read"][..]),
            ("identity/entity/id/+", &["read"]),
            ("identity/entity/id/7c9e/x", &["read"]),
            ("identity/entity/id/7c9e", &["read", "update"]),
            ("sys/renew*", &["update"]),
            ("sys/renew", &["update", "sudo"]),
            ("*", &["read"]),
        ] {
            assert!(!rule(held).is_usual(path), "{path}");
        }
    }

    #[test]
    fn a_rule_is_said_as_its_policy_says_it() {
        for (listed, written) in
            [("finance/", "finance/*"), ("", "*"), ("kv/data/+/ops", "kv/data/+/ops")]
        {
            assert_eq!(as_written(listed.to_owned()), written);
        }
    }
}
