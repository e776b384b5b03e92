//! The paths that are asked about, and the question itself.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::super::{
    error::CallError,
    plan::PathGrant,
    token::{Post, TokenClient},
};
use crate::policy::VaultLocation;

/// Returns the capabilities of the token at each path, without paths that have none.
pub(super) async fn ask(
    client: &TokenClient,
    paths: &[String],
) -> Result<BTreeMap<String, BTreeSet<String>>, CallError> {
    let room = paths.iter().map(|path| path.len() + 3).sum();
    let question = Post::new("sys/capabilities-self".to_owned(), &Paths { paths }, room)?;
    let body = client.call(question).await?;
    let strange = CallError::Transport("the answer is not one of Vault's");
    let Capabilities { mut data } = serde_json::from_slice(&body).map_err(|_| strange)?;
    let mut held = BTreeMap::new();
    for path in paths {
        let mut may = data.remove(path).ok_or(strange)?;
        may.remove("deny");
        held.insert(path.clone(), may);
    }
    Ok(held)
}

/// Returns paths that a pattern which matches `path` would most likely match too: another last
/// segment, the same one with more behind it, and another segment in each place.
pub(super) fn neighbours(path: &str, unused: &str) -> Vec<String> {
    let segments: Vec<&str> = path.split('/').collect();
    let mut found = vec![format!("{path}/{unused}"), format!("{path}{unused}")];
    for at in 0..segments.len() {
        let (before, rest) = segments.split_at(at);
        let after = rest.get(1..).unwrap_or_default();
        found.push([before, &[unused]].concat().join("/"));
        found.push([before, &[unused], after].concat().join("/"));
    }
    found
}

/// Returns the path of a secret, and those by which it is changed, listed or brought back.
pub(super) fn around(location: &VaultLocation) -> Vec<String> {
    let own = location.api_path();
    let VaultLocation::Kv2 { mount, path, .. } = location else { return vec![own] };
    let ways = ["metadata", "delete", "undelete", "destroy", "subkeys"];
    ways.iter().map(|way| format!("{mount}/{way}/{path}")).chain([own]).collect()
}

/// Returns the capabilities that each path needs.
pub(super) fn needs(grants: &[PathGrant]) -> BTreeMap<String, BTreeSet<&'static str>> {
    let mut needs: BTreeMap<String, BTreeSet<&'static str>> = BTreeMap::new();
    for grant in grants {
        needs.entry(grant.path.clone()).or_default().insert(grant.capability);
    }
    needs
}

#[derive(Serialize)]
struct Paths<'a> {
    paths: &'a [String],
}

#[derive(Deserialize)]
struct Capabilities {
    data: BTreeMap<String, BTreeSet<String>>,
}

/// Paths below which everything is for operators.
pub(super) const BELOW: [&str; 12] = [
    "auth/token/create",
    "auth/token/roles",
    "identity/entity/id",
    "identity/group/id",
    "sys/audit",
    "sys/auth",
    "sys/leases/revoke-prefix",
    "sys/mounts",
    "sys/namespaces",
    "sys/policies/acl",
    "sys/policy",
    "sys/raw",
];

/// Single paths that are for operators.
pub(super) const EXACT: [&str; 5] = [
    "auth/token/create",
    "auth/token/create-orphan",
    "auth/token/accessors",
    "sys/seal",
    "sys/wrapping/rewrap",
];

/// Paths below the mount of a PKI engine that would sign beyond the limits.
pub(super) const ENGINE: [&str; 8] = [
    "config/ca",
    "intermediate/set-signed",
    "issuer/default/sign-intermediate",
    "issuer/default/sign-self-issued",
    "issuer/default/sign-verbatim",
    "root/generate/internal",
    "root/sign-self-issued",
    "sign-verbatim",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_pattern_holds_a_path_holds_a_neighbour_too() {
        let found = neighbours("kv/data/a", "X");
        for path in ["kv/data/a/X", "kv/data/aX", "kv/data/X", "kv/X", "X", "X/data/a", "kv/X/a"] {
            assert!(found.iter().any(|one| one == path), "{path}: {found:?}");
        }
        assert!(!found.iter().any(|one| one == "kv/data/a"));
    }

    #[test]
    fn kv_secrets_change_at_other_paths_than_reads() {
        let location =
            VaultLocation::Kv2 { mount: "team/kv".into(), path: "a/b".into(), version: None };
        let found = around(&location);
        for path in ["team/kv/data/a/b", "team/kv/metadata/a/b", "team/kv/destroy/a/b"] {
            assert!(found.iter().any(|one| one == path), "{path}: {found:?}");
        }
    }
}
