//! Policies for the tests of other modules, read as the operator's file is.

use std::{io, path::Path};

use super::{Config, parse};
use crate::policy::Policy;

/// Reads this file, which names no other file.
pub(crate) fn config(file: &policy_builder::Config) -> Config {
    let none = |_: &Path| Err(io::ErrorKind::NotFound.into());
    parse(&file.to_string(), None, "test.toml", &none)
        .unwrap_or_else(|errors| panic!("{errors}\n{file}"))
}

/// Returns its policy.
pub(crate) fn policy(file: &policy_builder::Config) -> Policy {
    config(file).policy
}
