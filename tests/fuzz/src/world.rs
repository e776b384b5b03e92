//! A policy for the targets that need one.

use std::path::Path;

use cloakroom::{
    config,
    policy::{Group, Policy},
};

/// Returns the policy of a file that has no mistake.
pub(crate) fn policy(file: &policy_builder::Config) -> Policy {
    let none = |_: &Path| Err(std::io::ErrorKind::NotFound.into());
    config::parse(&file.to_string(), Some(Path::new("/")), "fuzz.toml", &none)
        .unwrap_or_else(|errors| panic!("{errors}"))
        .policy
}

pub(crate) fn group<'a>(policy: &'a Policy, name: &str) -> &'a Group {
    let found = policy.groups.iter().find(|group| group.name.as_str() == name);
    found.expect("a group of the policy")
}
