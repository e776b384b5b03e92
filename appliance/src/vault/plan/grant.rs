//! Grants, and their text in a Vault policy. A text that Vault would read as a pattern is refused
//! here, and nowhere changed to fit.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::Arc,
};

use serde::Deserialize;
use serde_json::Value;

use super::error::PlanError;
use crate::policy::VaultLocation;

/// One path and the one capability there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathGrant {
    /// The path below `/v1/`, without a pattern.
    pub path: String,
    /// The capability, as Vault names it.
    pub capability: &'static str,
    /// The parameters that may be written there; `None` where they are not limited.
    parameters: Option<AllowedParameters>,
}

/// The values that each parameter may have, none for any value, and the parameters that are
/// required. A value that ends in an asterisk stands for all that begin so.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct AllowedParameters {
    allowed: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    required: BTreeSet<Arc<str>>,
}

/// The parameters that a token may write at a path, as a live Vault lists them.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct WritableParameters {
    allowed_parameters: Option<BTreeMap<String, Option<Vec<Value>>>>,
    denied_parameters: Option<BTreeMap<String, Option<Vec<Value>>>>,
    required_parameters: Option<Vec<String>>,
}

impl WritableParameters {
    /// Whether all of `names` are required, and no other parameter is allowed.
    pub(crate) fn holds_to(&self, names: &[&str]) -> bool {
        let required: Vec<&str> =
            self.required_parameters.iter().flatten().map(String::as_str).collect();
        let allowed = self.allowed_parameters.as_ref();
        let no_more = allowed.is_some_and(|all| {
            !all.is_empty() && all.keys().all(|name| names.contains(&name.as_str()))
        });
        no_more && names.iter().all(|name| required.contains(name))
    }
}

impl PathGrant {
    pub(super) fn new(path: impl Into<String>, capability: &'static str) -> Self {
        Self { path: path.into(), capability, parameters: None }
    }

    /// Whether a right with the parameters of `live` lets nobody write more than this grant.
    pub(crate) fn limits(&self, live: &WritableParameters) -> bool {
        self.parameters.as_ref().is_none_or(|parameters| parameters.limit(live))
    }
}

/// Returns the grants for a group's requests about its leases. A lease's id begins with the path
/// that lent it, so a token can ask about no others, even if it learns their ids.
pub(super) fn leases(locations: &BTreeSet<VaultLocation>) -> Vec<PathGrant> {
    let lends = |location: &&VaultLocation| {
        !matches!(location, VaultLocation::Kv2 { .. }) && !location.is_identity_token()
    };
    let ids = locations.iter().filter(lends).map(|it| format!("{}/*", it.api_path()).into());
    let ids: BTreeSet<Arc<str>> = ids.collect();
    if ids.is_empty() {
        return Vec::new();
    }
    let grant = |(path, parameter): (&str, Option<&str>)| {
        let any = parameter.map(|name| (name.into(), BTreeSet::new()));
        let own = (LEASE_ID.into(), ids.clone());
        let parameters = AllowedParameters {
            allowed: any.into_iter().chain([own]).collect(),
            required: [LEASE_ID.into()].into(),
        };
        PathGrant { parameters: Some(parameters), ..PathGrant::new(path, "update") }
    };
    LEASES.into_iter().map(grant).collect()
}

/// Returns one grant for each path and capability: versions of one secret share theirs, and so do
/// writes that differ in their parameters alone.
pub(super) fn reads(locations: &BTreeSet<VaultLocation>) -> Result<Vec<PathGrant>, PlanError> {
    let mut paths: BTreeMap<String, Vec<&VaultLocation>> = BTreeMap::new();
    for location in locations {
        let path = location.api_path();
        check_path("path", &path)?;
        paths.entry(path).or_default().push(location);
    }
    let mut grants = Vec::new();
    for (path, locations) in paths {
        let written = locations.iter().filter_map(|location| match location {
            VaultLocation::Write { parameters, .. } => Some(&**parameters),
            VaultLocation::Kv2 { .. } | VaultLocation::Read { .. } => None,
        });
        let written: Vec<_> = written.collect();
        let is_read = written.len() < locations.len();
        if is_read {
            grants.push(PathGrant::new(path.clone(), "read"));
        }
        if !written.is_empty() {
            let mut parameters = AllowedParameters::new(&written)?;
            if is_read {
                // Vault would require the parameters of the read too.
                parameters.required.clear();
            }
            grants.push(PathGrant { path, capability: "update", parameters: Some(parameters) });
        }
    }
    Ok(grants)
}

impl AllowedParameters {
    fn new(written: &[&[(Arc<str>, Arc<str>)]]) -> Result<Self, PlanError> {
        let mut parameters = Self::default();
        for (key, value) in written.iter().copied().flatten() {
            // Vault takes an asterisk at either end for any text.
            check_policy_text("parameter", value)?;
            check_policy_text("parameter", key)?;
            // Vault compares the names of parameters in lower case.
            let key = key.to_ascii_lowercase().into();
            parameters.allowed.entry(key).or_default().insert(Arc::clone(value));
        }
        let always = |key: &&Arc<str>| {
            written.iter().all(|one| one.iter().any(|(other, _)| other.eq_ignore_ascii_case(key)))
        };
        parameters.required = parameters.allowed.keys().filter(always).cloned().collect();
        Ok(parameters)
    }

    /// Whether `live` allows no more. Follows Vault's own order: required, denied, allowed.
    fn limit(&self, live: &WritableParameters) -> bool {
        let required = live.required_parameters.iter().flatten();
        let required: BTreeSet<_> = required.map(|name| name.to_ascii_lowercase()).collect();
        if !self.required.iter().all(|name| required.contains(&**name)) {
            return false;
        }
        let denied = |name: &str| live.denied_parameters.as_ref().and_then(|all| all.get(name));
        if denied("*").is_some() {
            return true;
        }
        let Some(allowed) = live.allowed_parameters.as_ref().filter(|all| !all.is_empty()) else {
            return false;
        };
        let mut never_empty = self.never_empty().filter(|name| allowed.contains_key(&***name));
        never_empty.all(|name| denied(name).is_some_and(denies_empty))
            && allowed.iter().all(|(name, values)| self.allows(name, values.as_deref()))
    }

    /// Whether each of these values is one that the parameter may have.
    fn allows(&self, name: &str, values: Option<&[Value]>) -> bool {
        let Some(own) = self.allowed.get(name) else { return false };
        let values = values.unwrap_or_default();
        let is_own = |value: &Value| value.as_str().is_some_and(|text| own.contains(text));
        own.is_empty() || (!values.is_empty() && values.iter().all(is_own))
    }

    /// Returns the parameters whose value must be one of a list without an empty value.
    fn never_empty(&self) -> impl Iterator<Item = &Arc<str>> {
        let full = |values: &BTreeSet<Arc<str>>| !values.is_empty() && !values.contains("");
        self.allowed.iter().filter(move |(_, values)| full(values)).map(|(key, _)| key)
    }

    /// Writes the lines of a stanza. Vault does not check an empty value against
    /// `allowed_parameters`, so `denied_parameters` has to refuse it.
    fn hcl(&self, text: &mut String) {
        if self.allowed.is_empty() {
            text.push_str("  denied_parameters = {\n    \"*\" = []\n  }\n");
            return;
        }
        if !self.required.is_empty() {
            let _ = writeln!(text, "  required_parameters = {}", list(&self.required));
        }
        text.push_str("  allowed_parameters = {\n");
        for (key, values) in &self.allowed {
            let _ = writeln!(text, "    \"{key}\" = {}", list(values));
        }
        text.push_str("  }\n");
        let full: Vec<_> = self.never_empty().collect();
        if !full.is_empty() {
            text.push_str("  denied_parameters = {\n");
            for key in full {
                let _ = writeln!(text, "    \"{key}\" = [\"\", []]");
            }
            text.push_str("  }\n");
        }
    }
}

/// Returns a policy in Vault's language. The rights on one path stand in one stanza: of two, Vault
/// would take the last.
pub(super) fn hcl(grants: &[PathGrant]) -> String {
    let mut paths: BTreeMap<&str, Vec<&PathGrant>> = BTreeMap::new();
    for grant in grants {
        paths.entry(&grant.path).or_default().push(grant);
    }
    let mut text = String::new();
    for (path, grants) in paths {
        let capabilities = list(grants.iter().map(|grant| grant.capability));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "path \"{path}\" {{\n  capabilities = {capabilities}");
        if let Some(parameters) = grants.iter().find_map(|grant| grant.parameters.as_ref()) {
            parameters.hcl(&mut text);
        }
        text.push_str("}\n");
    }
    text
}

/// Whether empty values are denied. An empty list stands for all values.
fn denies_empty(values: &Option<Vec<Value>>) -> bool {
    let empty = [Value::from(""), Value::Array(Vec::new())];
    let all = values.as_ref().is_none_or(Vec::is_empty);
    all || values.iter().any(|values| empty.iter().all(|one| values.contains(one)))
}

fn list<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    let items = items.into_iter().map(|item| format!("\"{}\"", item.as_ref()));
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

/// Refuses a path that a Vault policy would read as more than this one.
pub(super) fn check_path(what: &'static str, path: &str) -> Result<(), PlanError> {
    check_policy_text(what, path)?;
    match path.split('/').any(|segment| matches!(segment, "+" | "" | "." | "..")) {
        true => Err(pattern(what, path)),
        false => Ok(()),
    }
}

/// Refuses a text that does not stand for itself in the quotes of HCL, in a policy and in a
/// Terraform file.
fn check_policy_text(what: &'static str, text: &str) -> Result<(), PlanError> {
    check_text(what, text)?;
    let special =
        text.contains(['"', '\\', '*']) || ["{{", "${", "%{"].iter().any(|it| text.contains(it));
    if special { Err(pattern(what, text)) } else { Ok(()) }
}

/// Refuses a text that does not stay on its line.
pub(super) fn check_text(what: &'static str, text: &str) -> Result<(), PlanError> {
    if text.contains(char::is_control) { Err(pattern(what, text)) } else { Ok(()) }
}

fn pattern(what: &'static str, text: &str) -> PlanError {
    PlanError::Pattern { what, text: text.escape_default().to_string() }
}

/// The requests about a lease, and the parameter that each has beside the lease's id.
const LEASES: [(&str, Option<&str>); 3] = [
    ("sys/leases/lookup", None),
    ("sys/leases/renew", Some("increment")),
    ("sys/leases/revoke", None),
];

const LEASE_ID: &str = "lease_id";
